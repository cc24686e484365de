"""What stands below the pictures of a report: how to read each, and the paper's figure that shows the same."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

ATTENTION = (
    "Attention of one validation sample, mean over the heads, without padding. Each row of a map says where one token"
    " looks and sums to 1; brighter is more. The maps of a layer share one colour scale. The student's maps should look"
    " like the teacher's, where quantization alone blurs or shifts them. This is what the attention-map loss of"
    " arXiv:2211.11014 brings together."
)


def curves(stages: Collection[str], teacher: bool) -> str:
    """Args: stages: those of the run; what is said fits them. teacher: the run had one."""
    parts = ["Above: the training loss, each logged value (thin) and the running mean (thick)."]
    if "teacher" in stages:
        parts.append("The teacher's own training (grey) minimizes another loss, so the two heights do not compare.")
    if "intervene" in stages:
        parts.append(
            "The loss may jump where the intervene stage ends, as from there on the student stands on its own"
            " (arXiv:2302.11812 Fig. 4a)."
        )
    parts.append("Below: the validation metric; filled markers are the score of the trained model itself.")
    if "intervene" in stages:
        parts.append("Hollow markers on a dashed line are teacher-assisted: not the student's own score.")
    if teacher:
        parts.append("The closer to the teacher's level, and the earlier, the better (arXiv:2302.11812 Fig. 3c).")
    return " ".join(parts)


def errors(measured: Mapping[str, Sequence[float]]) -> str:
    """Args: measured: name → the error of each layer."""
    said = (
        "Mean squared error between the student's and the teacher's hidden states after each layer, on one validation"
        " batch, padding not counted; lower is better. An error that grows with depth is handed on from layer to layer;"
        " a flat line means that it is not (arXiv:2302.11812 Fig. 2b)."
    )
    if any(error == 0 for line in measured.values() for error in line):
        said += " An error of exactly 0 (nothing quantized so far) is left out of a logarithmic axis."
    return said
