"""The sections of report.md: the numbers of metrics.json → Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from qat_lightning.io.markdown import code, human_bytes, human_seconds, table, text
from qat_lightning.reports.summary import score

Results = Mapping[str, Any]

FORMS = {"packed": "export/packed", "onnx": "export/model.onnx"}
"""What a run exports → where it lies in the run folder."""

PADDED = {
    "longest": "batches of mixed rows, each padded to its longest",
    "max_length": "all rows padded to `data.max_length`",
}
"""What the padding of a run is compared with → in words."""


def model_rows(results: Results) -> list[list[str]]:
    """[model, metric, bytes, ratio] of the teacher, the student without training, the student, and what was exported of it;
    absent ones left out. A score of None is undefined."""
    size = results.get("bytes") or {}
    small = [human_bytes(size.get("packed")), f"{size['ratio']:.2f}×" if "ratio" in size else "–"]
    rows: list[tuple[str, str, list[str]]] = [
        ("teacher", "teacher", [human_bytes(size.get("float32")), "1×"]),
        ("quantized, not trained", "untrained", small),
        ("student", "student", small),
    ]
    shown = [[name, score(results[key]), *cells] for name, key, cells in rows if key in results]
    for form, name in FORMS.items():
        if told := (results.get("export") or {}).get(form):
            shown.append([name, _form_score(told, results), human_bytes(told["bytes"]), f"{told['ratio']:.2f}×"])
    return shown


def _form_score(form: Mapping[str, Any], results: Results) -> str:
    """The metric of an exported form; where fewer rows were compared, only how far it was from the student's on those."""
    if form["student"] == results["student"] or None in (form["score"], form["student"]):
        return score(form["score"])
    return f"student {form['score'] - form['student']:+.4f}"


def stage_rows(results: Results) -> list[list[str]]:
    """[stage, steps, time, time per step] of each stage that took steps or time."""
    seconds = results.get("seconds") or {}
    rows = []
    for stage, steps in {**dict.fromkeys(seconds, 0), **(results.get("steps") or {})}.items():
        spent = seconds.get(stage)
        each = f"{1000 * spent / steps:.0f} ms" if spent and steps else "–"
        rows.append([stage, str(steps), human_seconds(spent), each])
    return rows


def padding(results: Results) -> str:
    """How many tokens of all stages' batches were padding, and how many that saved; empty where nothing is padded."""
    stages = (results.get("padding") or {}).values()
    if not stages:
        return ""
    sums = {name: sum(stage[name] for stage in stages) for name in next(iter(stages))}
    tokens, own = sums["tokens"], sums["padding"]
    others = {how: sums[name] for name, how in PADDED.items() if name in sums}
    saved = [f"{other - own:,} against {how} ({_share(other, tokens)})" for how, other in others.items() if other > own]
    told = f"Padding: {own:,} of the {tokens + own:,} tokens in the training batches ({_share(own, tokens)})."
    if own == sums.get("max_length") and sums["longest"] < own:
        told += f" `data.padding=longest` would have had {sums['longest']:,} ({_share(sums['longest'], tokens)})."
    return f"{told} Saved: {'; '.join(saved)}." if saved else told


def teacher_cache(results: Results) -> str:
    """What was found in the teacher's cache and what was computed; empty where there is none."""
    kept = results.get("teacher_cache")
    if not kept:
        return ""
    return (
        f"The teacher's signals of {kept['found']:,} of {kept['found'] + kept['computed']:,} batches were found in"
        f" {code(kept['folder'])}, the others computed and written there (by the first process, since the program's last start);"
        f" the folder holds {human_bytes(kept['bytes'])}."
    )


def _share(padding: int, tokens: int) -> str:
    return f"{100 * padding / (padding + tokens):.1f} %"


def sizes(results: Results) -> str:
    """How the bytes are counted, in a line."""
    lines = (
        "Bytes count each of the student's parameters once. *float32*: 4 bytes an element. *packed*: a quantized weight"
        " takes its bits for each element and 4 bytes for each scale, all else 4 bytes an element. The ratio is"
        " float32 ÷ packed. A file under export/ is counted whole, with the names of its tensors."
    )
    return f"{lines} {stored(results)}".strip()


def stored(results: Results) -> str:
    """What a training checkpoint took and what the packed file takes, and why that is not less: what stays as it was."""
    told, packed = [], (results.get("export") or {}).get("packed")
    if checkpoint := (results.get("bytes") or {}).get("checkpoint"):
        told.append(f"A training checkpoint (weights and optimizer, no teacher) took {human_bytes(checkpoint)}.")
    if packed:
        each = packed["bits_per_weight"]
        told.append(
            f"The packed file takes {human_bytes(packed['bytes'])}"
            + (f", {each:.3g} bits a quantized weight;" if each < 32 else ";")
            + f" {human_bytes(packed['full_precision_bytes'])} of it stay {text(packed['unquantized_dtype'])}:"
            f" {', '.join([*map(code, packed['full_precision']), 'biases and normalization'])}."
        )
    return " ".join(told)


def selection(results: Results) -> str:
    """Which of the train stage's weights were kept, where the last ones scored otherwise; else empty."""
    if results.get("student_last_step", results["student"]) == results["student"]:
        return ""
    last = results["student_last_step"]
    scored = "had an undefined score" if last is None else f"scored {score(last)}"
    return (
        "The student's weights are those that scored best on the validation split during training, as in the papers;"
        f" those of the last step {scored}."
    )


def undefined(results: Results) -> str:
    """What an undefined score is, where there is one; else empty."""
    forms = [form for form in (results.get("export") or {}).values() if isinstance(form, Mapping)]
    scores = [results.get(name, 0.0) for name in ("teacher", "untrained", "student", "student_last_step")]
    if None not in [*scores, *(form.get("score", 0.0) for form in forms)]:
        return ""
    return (
        f"*undefined*: {text(results['metric'])} is not a finite number for these predictions. A correlation, for example, is"
        " undefined where all predictions are equal."
    )


def assisted(results: Results) -> str:
    """The score of the intervene stage, never to be taken for a result; empty where there was none."""
    if results.get("assisted") is None:
        return ""
    return (
        f"During the intervene stage the validation score was {score(results['assisted'])}: **teacher-assisted, not the"
        " student's own**. The teacher's signals stood in place of the student's (arXiv:2302.11812), so it says how far"
        " that stage had come and nothing about the student alone."
    )


def bits(results: Results) -> str:
    """Width → the kinds of parts whose weights have it."""
    widths: dict[float, list[str]] = {}
    for kind, width in (results.get("bits") or {}).items():
        widths.setdefault(width, []).append(code(kind))
    return table(
        ["bits", "weights of"], [[f"{width:g}", ", ".join(kinds)] for width, kinds in sorted(widths.items())], left=2
    )


def error_table(errors: Mapping[str, Sequence[float]]) -> str:
    """Layer by layer, a column for each model; layer 0 is the embeddings."""
    rows = [
        [str(layer) if layer else "0 (embeddings)", *(f"{line[layer]:.4g}" for line in errors.values())]
        for layer in range(max(map(len, errors.values())))
    ]
    return table(["layer", *errors], rows)
