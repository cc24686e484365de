"""What stands below the pictures of a report: how to read each, and the paper's figure that shows the same."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

ATTENTION = (
    "Attention of one validation sample, mean over the heads, without padding. Each row of a map says where one token"
    " looks and sums to 1; brighter is more. The maps of a layer share one colour scale. The student's maps should look"
    " like the teacher's, where quantization alone blurs or shifts them. This is what the attention-map loss of"
    " arXiv:2211.11014 brings together."
)

MEASURES = (
    "Of one validation batch, mean over samples and heads, without padding. *Ranking loss*: by how much the student's"
    " probabilities disagree with the teacher's about which of two keys is larger, summed over all pairs; it grows with"
    " the length of the texts. *Cover-length ratio*: the share of the student's keys, best first, that one must take to"
    " have the teacher's best five; the teacher's own row is the ideal. *Map KL*: KL(teacher ‖ student). Lower is better"
    " for these three (arXiv:2211.11014 §3). *Attention distance*: how many tokens away a token looks. *Mass*: the"
    " probability that goes to that token. For these, nearer to the teacher's is better."
)
RANGES = (
    "Smallest and largest hidden unit of each token, after the attention's output, residual and LayerNorm: dark is the"
    " mean over the tokens of a validation batch, light goes to the extremes. A student whose range is not its teacher's"
    " has lost its outliers, or made new ones (arXiv:2211.11014 Fig. 5)."
)
STEP_SIZES = (
    "What quantizers learn (steps or thresholds), the geometric mean over a layer, relative to its first value in the train"
    " stage (arXiv:2101.05938)."
)
NORMS = (
    "How far the students' means are from the teacher's, by class of the token that is looked at, mean over layers and"
    " heads: the attention α, the length of the vector f(x) that a token hands on, both together, and their sum over the"
    " heads (arXiv:2211.11014 Fig. 6, arXiv:2004.10102). Lower is better."
)
HESSIAN = (
    "The eigenvalues of largest magnitude of the loss's Hessian, of each of several mini-batches, pooled. The smaller, the"
    " flatter the minimum; many negative ones, a saddle (arXiv:2211.11014, 2302.11812). The weights are those of the"
    " last step. {about}."
)
LANDSCAPE = (
    "The loss around the weights of the last step (+), in two random directions scaled to the weights' own size"
    " (arXiv:2211.11014, 2302.11812 Fig. 2), in one colour scale. Smooth and wide is easy to train. {about}."
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
