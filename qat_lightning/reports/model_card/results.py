"""How well it does, beside its teacher and as exported."""

from __future__ import annotations

from collections.abc import Iterator

from qat_lightning.io import markdown
from qat_lightning.io.markdown import code, text
from qat_lightning.reports import tables
from qat_lightning.reports.model_card.formatting import percent
from qat_lightning.reports.model_card.run_facts import FILES, Facts
from qat_lightning.reports.summary import score


def results(facts: Facts) -> Iterator[str]:
    figures = facts.figures
    names = {form: code(FILES[name]) for name, form in tables.FORMS.items()}
    if not facts.taught:
        names["teacher"] = "full precision, where the student began"
    rows = [[names.get(row[0], row[0]), *row[1:]] for row in tables.model_rows(figures)]
    arrow = "↑" if figures.get("higher_is_better", True) else "↓"
    yield "## Results"
    yield markdown.table(["model", f"{text(figures['metric'])} {arrow} (validation)", "bytes", "ratio"], rows)
    yield tables.undefined(figures)
    yield tables.selection(figures)
    yield tables.assisted(figures)
    yield tables.sizes(figures)
    yield from _compared(facts)


def _compared(facts: Facts) -> Iterator[str]:
    """The exported files beside the student that they were made from."""
    rows = [
        [
            code(FILES[name]),
            score(form["score"]),
            score(form["student"]),
            "undefined" if form["largest_difference"] is None else f"{form['largest_difference']:.2g}",
            percent(form["agreement"]),
            str(form["rows"]),
        ]
        for name, form in facts.forms.items()
    ]
    if rows:
        metric = text(facts.results["metric"])
        head = ["file", metric, f"{metric} of the student", "largest difference of logits", "equal predictions", "rows"]
        yield "Each file was run beside the student on the first rows of the validation split, on the CPU in float32:"
        yield markdown.table(head, rows)
    if any(
        q.get("scale") == "dynamic" and q.get("granularity", "per_tensor") == "per_tensor" for _, q in facts.activations
    ):
        beside = "the rows beside it" + ("" if facts.head == "image_classification" else " and on their padding")
        size = facts.at("data", "evaluation_batch_size") or 2 * facts.at("data", "batch_size")
        yield (
            "The scales of activations are those of the batch at hand (dynamic, as in the papers): **what a row gets"
            f" depends a little on {beside}**. The scores are for validation batches of {size} rows."
        )
