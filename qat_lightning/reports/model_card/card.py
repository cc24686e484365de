"""Write the model card of an export, `export/README.md`, from the run's own files alone."""

from __future__ import annotations

import json
import math
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from qat_lightning.exporters.onnx.weights import WIDTHS
from qat_lightning.io.documents import read_json, read_yaml
from qat_lightning.io.files import write_text
from qat_lightning.io.markdown import Markdown, block, code, codes, one_line, table
from qat_lightning.io.screen import printable
from qat_lightning.reports import tables
from qat_lightning.reports.model_card.facts import Facts
from qat_lightning.reports.rendering import percent, render
from qat_lightning.reports.summary import LOW_PRECISION, score, student_kind, verdict

PIPELINES = {
    "text_classification": "text-classification",
    "image_classification": "image-classification",
    "token_classification": "token-classification",
    "question_answering": "question-answering",
    "causal_language_model": "text-generation",
    "sentence_embedding": "sentence-similarity",
}
"""Head → the hub's name of the task."""

GRANULARITIES = {
    "per_tensor": "one per tensor",
    "per_channel": "one per row",
    "per_token": "one per token",
    "per_group": "one per {} values",
}


def write_card(folder: Path) -> Path:
    """Write `export/README.md` of a run folder and return its path; ValueError if a file that it needs is missing.

    `config.yaml`, `metrics.json`, `overrides.yaml` and `export/metrics.json` are read, and the file names of the packed
    folder. The hub is not asked; folders of this machine are named by their last component.
    """
    overrides = folder / "overrides.yaml"
    given = read_yaml(overrides) if overrides.is_file() else None
    facts = Facts(
        folder,
        read_yaml(_required(folder, "config.yaml", "python -m qat_lightning hydra.run.dir=DIR")),
        read_json(_required(folder, "metrics.json", "continue the run by the same command with hydra.run.dir=DIR")),
        read_json(_required(folder, "export/metrics.json", "python -m qat_lightning.export run=DIR")),
        [*map(str, given)] if isinstance(given, list) else [],
    )
    path = folder / "export" / "README.md"
    body = render("model_card.md.jinja", facts=facts, **_context(facts))
    write_text(path, printable(str(ModelCard(f"---\n{_metadata(facts).to_yaml()}\n---\n\n{body}"))))
    return path


def _required(folder: Path, name: str, remedy: str) -> Path:
    place = folder / name
    if not place.is_file():
        raise ValueError(f"{folder} has no {name}, which the model card needs: {remedy}")
    return place


def _metadata(facts: Facts) -> ModelCardData:
    """Return the block that the hub reads; unknown values, such as the license, are left out."""
    base, data, student = facts.base_model, facts.at("data", "path"), facts.results.get("student")
    name, metric = facts.at("data", "name"), one_line(facts.results["metric"])
    quantized = ["quantization", student_kind(facts.results).partition(" ")[0]] if facts.quantizers else []
    result = EvalResult(
        task_type=PIPELINES[facts.head],
        dataset_type=one_line(facts.data),
        dataset_name=one_line(facts.results["task"]),
        dataset_config=name and one_line(name),
        dataset_split=one_line(facts.split("validation")),
        metric_type=metric,
        metric_value=student,
    )
    return ModelCardData(
        library_name="qat_lightning",  # the hub must not offer AutoModel, which cannot read the packed folder
        pipeline_tag=PIPELINES[facts.head],
        tags=[
            *quantized, *(["distillation"] if facts.distilled else []), "qat_lightning",
            *(method.lower().replace(" ", "-") for method in facts.methods),
        ],
        base_model=base if base and facts.is_hub_id(base) else None,
        datasets=[data] if data and facts.is_hub_id(data) else None,
        metrics=[metric],
        model_name=one_line(facts.results["experiment"]),
        eval_results=[result] if student is not None and math.isfinite(student) else None,
    )  # fmt: skip


def _context(facts: Facts) -> dict[str, Any]:
    results = {"student": None, **facts.results, "export": facts.exports}
    metric, common = results["metric"], tables.common_context(results)
    kind, widths = student_kind(results), results.get("bits") or {}
    trained, exported = results.get("versions") or {}, facts.exported.get("versions") or {}
    losses = [
        [
            code(name), code(loss["class"]), loss["what"], codes(loss["sites"]),
            codes([f"{key}={value}" for key, value in loss["settings"].items()]), f"{loss['weight']:g}",
        ]
        for name, loss in facts.losses.items()
    ]  # fmt: skip
    overrides = [override for override in facts.overrides if not override.startswith("hydra.")]
    shown = [_without_folders(facts, override) for override in overrides]
    return {
        **common,
        "results": results,
        "kind": kind,
        "article": "An" if kind.startswith("8") else "A",
        "task": PIPELINES[facts.head].replace("-", " "),
        "verdict": verdict(results) if "student" in facts.results else "",
        "models": table(
            ["model", f"{metric} {common['arrow']} (validation)", "bytes", "ratio"], _model_rows(facts, results)
        ),
        "compared": _comparison_table(facts, metric),
        "losses": table(["loss", "class", "what", "sites", "settings", "weight"], losses, left=5),
        "quantizers": table(["of", "quantizer", "levels", "bits", "scale", "clip"], [*_quantizer_rows(facts)], left=2),
        "dynamic": any(  # a row's result depends on the other rows of its batch
            row["scale"] == "dynamic" and row["granularity"] == "per_tensor"
            for row in facts.quantizers
            if row["tensor"] != "weights"
        ),
        "bits": tables.bits(widths),
        "onnx_bits": [(bits, WIDTHS[bits]) for bits in sorted({int(b) for b in widths.values() if b < LOW_PRECISION})],
        "packed_code": _packed_code(facts),
        "onnx_code": _onnx_code(facts) if "onnx" in facts.exports else "",
        "exported_with": {name: number for name, number in exported.items() if trained.get(name) != number},
        "evaluate": block("bash", [f"python -m qat_lightning.evaluate run=DIR model={name}" for name in facts.exports]),
        "command": block("bash", [shlex.join(["python", "-m", "qat_lightning", *shown])]) if facts.overrides else "",
        "shortened": shown != overrides,
    }


def _model_rows(facts: Facts, results: dict[str, Any]) -> list[list[str]]:
    """Return the rows of the report with places beside the card, as files."""
    names: dict[str, str] = {
        f"export/{entry['path'].rstrip('/')}": code(entry["path"]) for entry in facts.exports.values()
    }
    if not facts.distilled:
        names["teacher"] = "full precision, the student's initialization"
    return [[names.get(row[0], row[0]), *row[1:]] for row in tables.model_rows(results)]


def _comparison_table(facts: Facts, metric: str) -> str:
    """Compare the exported files with the student that they were made from."""
    head = ["file", metric, f"{metric} of the student", "largest difference of logits", "equal predictions", "rows"]
    rows = [
        [
            code(entry["path"]), score(entry["score"]), score(entry["student"]),
            "undefined" if entry["largest_difference"] is None else f"{entry['largest_difference']:.2g}",
            percent(entry["agreement"]), entry["rows"],
        ]
        for entry in facts.exports.values()
    ]  # fmt: skip
    return table(head, rows) if rows else ""


def _quantizer_rows(facts: Facts) -> Iterator[list[str]]:
    for row in facts.quantizers:
        source = f" ({row['source']})" if row["source"] else ""
        scale = f"{GRANULARITIES[row['granularity']].format(row['group_size'])}, {row['scale']}"
        if row["scale"] == "static" and (rows := facts.at("quantization", "calibration_rows")):
            scale += f" (from {rows} training rows)"
        clip = "–" if row["clip"] is None else f"±{row['clip']:g}"
        of = {"weights": "weights of ", "inputs": "inputs of ", "attention": "attention's "}[row["tensor"]]
        yield [Markdown(of + codes(row["parts"])), row["kind"] + source, row["levels"], row["bits"], scale, clip]


def _packed_code(facts: Facts) -> str:
    imports = [*_imports(facts), "from qat_lightning import load_packed"]
    load, run = 'model = load_packed("packed")', "outputs = model(**inputs)"
    return block("python", [*imports, "", load, *_input_code(facts, "pt"), run])


def _onnx_code(facts: Facts) -> str:
    inputs, outputs = (json.dumps(facts.exports["onnx"][name]) for name in ("inputs", "outputs"))
    session = 'session = onnxruntime.InferenceSession("model.onnx", providers=["CPUExecutionProvider"])'
    run = f"outputs = session.run({outputs}, {{name: inputs[name] for name in {inputs}}})"
    return block("python", ["import onnxruntime", *_imports(facts), "", session, *_input_code(facts, "np"), run])


def _imports(facts: Facts) -> list[str]:
    images = ["from PIL import Image, ImageOps"] if facts.processor == "AutoImageProcessor" else []
    return [*images, *([f"from transformers import {facts.processor}"] if facts.processor else [])]


def _input_code(facts: Facts, tensors: str) -> list[str]:
    """Return the lines that make `inputs` of a text or an image."""
    if not facts.processor:
        usual = ["pixel_values"] if facts.head == "image_classification" else ["input_ids", "attention_mask"]
        names = (facts.exports.get("onnx") or {}).get("inputs") or usual
        content = ", ".join(f"{json.dumps(name)}: ..." for name in names)
        return [f"inputs = {{{content}}}  # as the run's data module makes them"]
    pair = len(facts.at("data", "text_columns") or []) > 1
    grey = '.convert("L")' if facts.at("data", "channels") == 1 else ""
    image = f'ImageOps.exif_transpose(Image.open("picture.png")){grey}'  # upright, as the data module turns its images
    examples = {
        "image_classification": image,
        "token_classification": '["a", "text"], is_split_into_words=True',
        "question_answering": '"a question", "its context"',
    }
    example = examples.get(facts.head, '"a text", "another"' if pair else '"a text"')
    if length := facts.at("data", "max_length"):
        example += f", truncation=True, max_length={length}"
    call = f'inputs = processor({example}, return_tensors="{tensors}")'
    return [f'processor = {facts.processor}.from_pretrained("packed")', call]


def _without_folders(facts: Facts, override: str) -> str:
    """Shorten `data.path=/home/me/rte` to `data.path=rte`."""
    key, _, value = override.partition("=")
    if "/" not in value and "\\" not in value:
        return override
    value = value.strip("'\" ")
    if not value.startswith(("[", "{")):
        return f"{key}={facts.public_name(value)}"
    inner = r"""[^\s,:=\[\]{}'"]*[/\\][^,:=\[\]{}'"]*"""
    return f"{key}={re.sub(inner, lambda found: facts.public_name(found[0].strip()), value)}"
