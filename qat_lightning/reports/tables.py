"""Turn the numbers of metrics.json into the rows and figures that report.md, the model card and the terminal share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from qat_lightning.io.markdown import Markdown, codes, human_bytes, human_seconds, table
from qat_lightning.reports.summary import NAMES, score

Results = Mapping[str, Any]

PADDED = {
    "longest": "batches of mixed rows, each padded to its longest",
    "max_length": "all rows padded to `data.max_length`",
}
"""Kinds of padding that a run's own padding is compared with."""

SIZES = (
    "Bytes count each of the student's parameters once. *float32*: 4 bytes per element. *packed*: a quantized weight takes"
    " its bits per element and 4 bytes per scale, everything else 4 bytes per element. The ratio is float32 ÷ packed. A file"
    " under export/ is counted as a whole, with the names of its tensors."
)


def model_rows(results: Results) -> list[list[str]]:
    """Return [model, metric, bytes, ratio] of teacher, PTQ baseline, student and exports, without those that are absent."""
    size = results.get("bytes") or {}
    small = [human_bytes(size.get("packed")), f"{size['ratio']:.2f}×" if "ratio" in size else "–"]
    sizes = {"teacher": [human_bytes(size.get("float32")), "1×"], "untrained": small, "student": small}
    rows = [[name, score(results[key]), *sizes[key]] for key, name in NAMES.items() if key in results]
    for figures in exports(results).values():
        place = f"export/{figures['path'].rstrip('/')}"
        own, reference = figures["score"], figures["student"]
        shown = score(own)
        if reference != results["student"] and None not in (own, reference):  # fewer rows were compared
            shown = f"student {own - reference:+.4f}"
        rows.append([place, shown, human_bytes(figures["bytes"]), f"{figures['ratio']:.2f}×"])
    return rows


def exports(results: Results) -> dict[str, Mapping[str, Any]]:
    """Return export → its figures, for what was exported."""
    entries = (results.get("export") or {}).items()
    return {name: entry for name, entry in entries if isinstance(entry, Mapping) and "bytes" in entry}


def stage_rows(results: Results) -> list[list[str]]:
    """Return [stage, steps, time, time per step] of each stage."""
    seconds, rows = results.get("seconds") or {}, []
    for stage, steps in {**dict.fromkeys(seconds, 0), **(results.get("steps") or {})}.items():
        spent = seconds.get(stage)
        each = f"{1000 * spent / steps:.0f} ms" if spent and steps else "–"
        rows.append([stage, str(steps), human_seconds(spent), each])
    return rows


def common_context(results: Results) -> dict[str, Any]:
    """Return what the templates of report.md and of the model card both show."""
    return {
        "stages": table(["stage", "steps", "time", "per step"], stage_rows(results)),
        "selected": results.get("student_last_step", results["student"]) != results["student"],
        "undefined": has_undefined_score(results),
        "sizes": Markdown(SIZES),
        "storage": storage(results, Markdown),
        "arrow": "↑" if results.get("higher_is_better", True) else "↓",
    }


SHOWN = 50
"""Most classes in the report's table."""


def test_rows(results: Results) -> tuple[list[str], list[list[str]]]:
    """Return head and rows of the scores on the test splits: split, its number of rows and metric; then each model."""
    return ["test split", *NAMES.values()], [
        [f"{split} ({figures['rows']}): {metric}", *(score(figures[name][metric]) for name in NAMES)]
        for split, figures in (results.get("test") or {}).items()
        for metric in figures["teacher"]
    ]


def answers(results: Results) -> dict[str, Any] | None:
    """Return the tables of all models and of all classes, those with the student's lowest F1 if there are too many."""
    given = results.get("answers")
    if not given:
        return None
    models, order = given["models"], list(range(len(given["classes"])))
    if len(order) > SHOWN:
        order = sorted(order, key=lambda number: models["student"]["f1"][number])[:SHOWN]
    head = ["class", "rows", *(f"F1 {NAMES[name]}" for name in models), "student's precision", "student's recall"]
    shown = [*(model["f1"] for model in models.values()), models["student"]["precision"], models["student"]["recall"]]
    rows = [[given["classes"][n], given["rows"][n], *(score(values[n]) for values in shown)] for n in order]
    return {
        "models": table(
            ["model", "agreement with the teacher", "calibration error"],
            [[NAMES[name], score(own["agreement"]), score(own["calibration_error"])] for name, own in models.items()],
        ),
        "classes": table(head, rows),
        "left_out": len(given["classes"]) - len(rows),
    }


def agreement(results: Results) -> str:
    """Summarize agreement and calibration in one line for the terminal."""
    models = results["answers"]["models"]
    own = ", ".join(f"{NAMES[name]} {score(each['agreement'])}" for name, each in models.items() if name != "teacher")
    errors = ", ".join(f"{NAMES[name]} {score(each['calibration_error'])}" for name, each in models.items())
    return f"answers as the teacher's: {own}\ncalibration error: {errors}"


def gate(results: Results) -> Markdown | str:
    """Format the limits of `gate` and what the student keeps of them; empty without limits."""
    limits = (results.get("gate") or {}).get("limits") or {}
    shown = {name: human_bytes if name == "bytes" else score for name in limits}
    rows = [
        [f"gate.{name}", shown[name](each["limit"]), shown[name](each["value"]), "missed" if each["missed"] else "kept"]
        for name, each in limits.items()
    ]
    return table(["limit", "value", "student", "result"], rows) if rows else ""


def padding(results: Results) -> dict[str, Any] | None:
    """Sum the padding of all stages' batches, and what it saves against `PADDED`; None if nothing is padded."""
    stages = list((results.get("padding") or {}).values())
    if not stages:
        return None
    sums: dict[str, Any] = {name: sum(stage[name] for stage in stages) for name in stages[0]}
    own, tokens = sums["padding"], sums["tokens"]
    saved = [
        (Markdown(description), sums[name] - own, _share(sums[name], tokens))
        for name, description in PADDED.items()
        if sums.get(name, own) > own
    ]
    longest = {"longest_share": _share(sums["longest"], tokens), "longest_saves": sums["longest"] < own}
    return sums | longest | {"share": _share(own, tokens), "saved": saved}


def _share(padding: int, tokens: int) -> str:
    return f"{100 * padding / (padding + tokens):.1f} %"


def storage(results: Results, kind: type[str] = str) -> str:
    """Describe the size of a training checkpoint and of the packed file, with the parts that stay in full precision."""
    sentences, packed = [], exports(results).get("packed")
    if checkpoint := (results.get("bytes") or {}).get("checkpoint"):
        sentences.append(f"A training checkpoint (weights and optimizer, no teacher) took {human_bytes(checkpoint)}.")
    if packed:
        bits = packed["bits_per_weight"]
        per_weight = f", {bits:.3g} bits per quantized weight" if bits < 32 else ""
        parts = ", ".join([codes(packed["full_precision"]), "biases and normalization"]).removeprefix(", ")
        sentences.append(
            f"The packed file takes {human_bytes(packed['bytes'])}{per_weight};"
            f" {human_bytes(packed['full_precision_bytes'])} of it are {codes([packed['unquantized_dtype']])}: {parts}."
        )
    return kind(" ".join(sentences))


def has_undefined_score(results: Results) -> bool:
    """Return whether a score of the run, or of an export, is not a finite number."""
    scores = [results.get(name, 0.0) for name in (*NAMES, "student_last_step")]
    return None in [*scores, *(figures.get("score", 0.0) for figures in exports(results).values())]


def bits(widths: Mapping[str, float]) -> Markdown:
    """Format a table: width → the kinds of parts whose weights have it."""
    kinds: dict[float, list[str]] = {}
    for kind, width in widths.items():
        kinds.setdefault(width, []).append(kind)
    return table(["bits", "weights of"], [[f"{width:g}", codes(kinds[width])] for width in sorted(kinds)], left=2)


def error_table(errors: Mapping[str, Sequence[float]]) -> Markdown:
    """Format a table: layer by layer, a column for each model; layer 0 is the embeddings."""
    rows = [
        [str(layer) if layer else "0 (embeddings)", *(f"{line[layer]:.4g}" for line in errors.values())]
        for layer in range(max(map(len, errors.values())))
    ]
    return table(["layer", *errors], rows)
