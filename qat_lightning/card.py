"""The model card of an export: `export/README.md`, written from the run's own files alone."""

from __future__ import annotations

import json
import math
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cached_property
from pathlib import Path, PureWindowsPath
from typing import Any

import yaml
from huggingface_hub import EvalResult, ModelCard, ModelCardData
from huggingface_hub.utils import HFValidationError, validate_repo_id

import qat_lightning.data
from qat_lightning.analysis import markdown
from qat_lightning.analysis.verdict import QUANTIZED, score, student_kind, verdict
from qat_lightning.data import TaskData
from qat_lightning.export.onnx.weights import WIDTHS

Node = Mapping[str, Any]
"""A part of a configuration."""

PIPELINES = {
    "text_classification": "text-classification",
    "image_classification": "image-classification",
    "question_answering": "question-answering",
    "causal_language_model": "text-generation",
}
"""Head → the hub's name of the task."""

INTERVENTIONS = {"attention.projection": "TI-O", "attention.context": "TI-C", "attention.probs": "TI-M"}
"""What the teacher supplies → the name of that intervention in arXiv:2302.11812 §3."""

QUANTIZERS = {
    "TernaryQuantizer": "ternary, −α 0 α (arXiv:1605.04711)",
    "BinaryQuantizer": "binary, −α α (arXiv:1603.05279)",
    "UniformQuantizer": "uniform, symmetric (arXiv:2009.12812)",
    "minmax": "uniform, least to largest value (arXiv:2009.12812)",
    "symmetric": "uniform, ∓ the largest value",
    "mean": "uniform, ∓ the mean of the large values (arXiv:2211.11014)",
    "threshold": "learned threshold (arXiv:2101.05938)",
    "step": "learned step (arXiv:1902.08153)",
}
"""The class of a quantizer, its range or its form → what it does."""

FILES = {"packed": "packed/", "onnx": "model.onnx"}
"""What may have been exported → where it lies beside the card."""

SITES = {
    "hidden": "MSE of the hidden states (arXiv:2009.12812 §3.3)",
    "attention.scores": "MSE of the attention scores (arXiv:2009.12812 §3.3)",
    "attention.output": "MSE of the attention outputs after LayerNorm (arXiv:2211.11014 §4)",
    "attention.residual": "MSE of the attention outputs before LayerNorm (arXiv:2211.11014 §4)",
    "attention.projection": "MSE of the attention outputs before the residual (arXiv:2302.11812)",
    "attention.context": "MSE of each head's context (arXiv:2211.11014)",
}
"""Where a `Match` loss looks → what it is."""


def write_card(folder: Path) -> Path:
    """Write `export/README.md` of a run folder; returns its path.

    Read are `config.yaml`, `metrics.json`, `overrides.yaml` and `export/metrics.json`, and which files the packed folder
    has. Nothing is asked of the hub; folders of this machine are named by their last component alone.

    Raises:
        ValueError: a folder without one of these files (`overrides.yaml` may be absent).
    """
    facts = Facts(
        folder,
        yaml.safe_load(_text(folder, "config.yaml", "python -m qat_lightning hydra.run.dir=DIR")),
        json.loads(_text(folder, "metrics.json", "finish the run: the same command with hydra.run.dir=DIR goes on")),
        json.loads(_text(folder, "export/metrics.json", "python -m qat_lightning.export run=DIR")),
    )
    sections = [_heading, _loading, _results, _method, _bits, _data, _training, _again]
    body = "\n\n".join(block for section in sections for block in section(facts) if block)
    path = folder / "export" / "README.md"
    ModelCard(f"---\n{_metadata(facts).to_yaml()}\n---\n\n{body}\n").save(path)
    return path


@dataclass(frozen=True)
class Facts:
    """What the run's files say."""

    folder: Path
    config: Node
    results: Node
    exported: Node

    def at(self, *keys: str) -> Any:
        """A value of the configuration; None where a key is absent."""
        value: Any = self.config
        for key in keys:
            value = value.get(key) if isinstance(value, Mapping) else None
        return value

    def is_hub_id(self, place: str) -> bool:
        """`name` or `owner/name`, and no folder that a run from here, or from above the run folder, would have read."""
        try:
            validate_repo_id(place)
        except HFValidationError:
            return False
        return not any((base / place).exists() for base in (Path.cwd(), *self.folder.resolve().parents))

    def named(self, place: str) -> str:
        """A hub id as it is, a folder by its last component."""
        return place if self.is_hub_id(place) else PureWindowsPath(place).name or "local"

    @cached_property
    def base_model(self) -> str | None:
        """What the weights came from; None for random ones."""
        return self.at("model", "path") if self.at("model", "pretrained") is not False else None

    @cached_property
    def model(self) -> str:
        return (
            self.named(self.base_model)
            if self.base_model
            else self.at("model", "architecture", "model_type") or "model"
        )

    @cached_property
    def data(self) -> str:
        return self.named(self.at("data", "path")) if self.at("data", "path") else self.results["task"]

    @cached_property
    def head(self) -> str:
        """By the data's class, looked up by its name among this package's own: nothing is imported for a file's sake."""
        return getattr(qat_lightning.data, _kind(self.at("data") or {}), TaskData).head

    @cached_property
    def taught(self) -> bool:
        return self.at("teacher") != "none"

    @cached_property
    def intervened(self) -> int:
        """Steps with the teacher's signals in place of the student's."""
        return (self.results.get("steps") or {}).get("intervene") or 0

    @cached_property
    def losses(self) -> dict[str, Node]:
        """Those that count."""
        given = (self.at("losses") or {}).items()
        return {name: loss for name, loss in given if loss and loss.get("weight", 1.0) != 0}

    @cached_property
    def weights(self) -> list[tuple[str, Node]]:
        """(parts, quantizer of their weights), of the rules that match something."""
        return [(_code(rule["parts"]), rule["weight"]) for rule in self._rules if rule.get("weight")]

    @cached_property
    def activations(self) -> list[tuple[str, Node]]:
        """(what, quantizer) of the inputs of parts and the operands of attention's products."""
        inputs = [(_code(rule["parts"]), rule["input"]) for rule in self._rules if rule.get("input")]
        attention = self.at("quantization", "attention") or {}
        slots = [slot for slot in ("query", "key", "probs", "value") if attention.get(slot)]
        return inputs + [(slot, attention[slot]) for slot in slots]

    @cached_property
    def _rules(self) -> list[Node]:
        rules = (self.at("quantization", "rules") or {}).values()
        return [rule for rule in rules if rule and (not rule.get("optional") or self._has(rule["parts"]))]

    def _has(self, parts: str) -> bool:
        """Whether the model has such parts; those of the layers it has, under any name."""
        return parts.startswith("layers.") or any(fnmatchcase(kind, parts) for kind in self.results.get("bits") or {})

    @cached_property
    def forms(self) -> dict[str, Node]:
        """What was exported, each with its figures, the student's score on the same rows, and how many those were."""
        student = (self.exported.get("student") or {}).get("score", self.results.get("student"))
        whole = [kind for kind, width in (self.results.get("bits") or {}).items() if width >= QUANTIZED]
        shared = {"student": student, "rows": self.exported.get("rows"), "full_precision": whole}
        return {name: shared | self.exported[name] for name in FILES if self.exported.get(name)}

    @cached_property
    def figures(self) -> Node:
        """metrics.json as the report's tables take it, with what was exported."""
        return {"student": None, **self.results, "export": self.forms}

    @cached_property
    def processor(self) -> str | None:
        """The class of transformers that reads the packed folder's preprocessing, where it has any."""
        packed = self.folder / "export" / FILES["packed"]
        files = {"preprocessor_config.json": "AutoImageProcessor", "tokenizer_config.json": "AutoTokenizer"}
        return next((name for file, name in files.items() if (packed / file).is_file()), None)

    @cached_property
    def methods(self) -> dict[str, str]:
        """Name → source, of the papers' methods that this run is made of."""
        kinds = {_kind(loss) for loss in self.losses.values()}
        sites = {loss.get("site") for loss in self.losses.values()}
        learned = any(_kind(quantizer) == "LSQQuantizer" for _, quantizer in self.weights)
        found = {
            "Teacher Intervention": ("arXiv:2302.11812", bool(self.intervened)),
            "KD-QAT": (
                "arXiv:2211.11014",
                not self.intervened
                and bool(kinds & {"AttentionMap", "Balance"} or sites & {*SITES} - {"hidden", "attention.scores"}),
            ),
            "KDLSQ-BERT": ("arXiv:2101.05938", learned and self.taught),
            "LSQ": ("arXiv:1902.08153", learned and not self.taught),
            "TSLD": ("arXiv:2308.06744", "TokenScaled" in kinds),
        }
        chosen = {name: source for name, (source, applies) in found.items() if applies}
        ternary = self.taught and student_kind(self.results.get("bits")) == "ternary"
        return chosen or ({"TernaryBERT": "arXiv:2009.12812"} if ternary and "attention.scores" in sites else {})


def _metadata(facts: Facts) -> ModelCardData:
    """The block that the hub reads; what is not known is left out, the license with it."""
    base, data, student = facts.base_model, facts.at("data", "path"), facts.results.get("student")
    quantized = student_kind(facts.results.get("bits")).partition(" ")[0]
    tags = ["quantization", quantized] if facts.weights or facts.activations else []
    tags += ["distillation"] if facts.taught else []
    tags += ["qat_lightning", *(name.lower().replace(" ", "-") for name in facts.methods)]
    result = EvalResult(
        task_type=PIPELINES[facts.head],
        dataset_type=facts.data,
        dataset_name=facts.results["task"],
        dataset_config=facts.at("data", "name"),
        dataset_split=_split(facts, "validation"),
        metric_type=facts.results["metric"],
        metric_value=student,
    )
    return ModelCardData(
        library_name="transformers",
        pipeline_tag=PIPELINES[facts.head],
        tags=tags,
        base_model=base if base and facts.is_hub_id(base) else None,
        datasets=[data] if data and facts.is_hub_id(data) else None,
        metrics=[facts.results["metric"]],
        model_name=facts.results["experiment"],
        eval_results=[result] if student is not None and math.isfinite(student) else None,
    )


def _heading(facts: Facts) -> Iterator[str]:
    kind, task = student_kind(facts.results.get("bits")), PIPELINES[facts.head].replace("-", " ")
    yield f"# {kind.capitalize()} {facts.model} for {facts.results['task']}"
    how = "distilled from its full-precision teacher" if facts.taught else "trained without a teacher"
    if facts.methods:
        how += " by " + " and ".join(f"{name} ({source})" for name, source in facts.methods.items())
    files = [f"{_code(FILES[name])} is {markdown.human_bytes(form['bytes'])}" for name, form in facts.forms.items()]
    yield f"{'An' if kind[0] == '8' else 'A'} {kind} {_code(facts.model)} for {task}, {how}: {', '.join(files)}."
    if facts.results.get("student") is not None:
        yield f"**{verdict(facts.results)}**"


def _loading(facts: Facts) -> Iterator[str]:
    if facts.forms:
        yield "## How to load"
    imports = [f"from transformers import {facts.processor}"] if facts.processor else []
    if facts.processor == "AutoImageProcessor":
        imports.insert(0, "from PIL import Image")
    if "packed" in facts.forms:
        same = facts.forms["packed"]["agreement"] == 1
        does = ", which predicted what the student predicts on every row checked" if same else ""
        yield f"In PyTorch, as a plain transformers model{does} (package `qat-lightning`):"
        loads = [*imports, "from qat_lightning import load_packed", "", 'model = load_packed("packed")']
        yield _block("python", [*loads, *_inputs(facts, "pt"), "outputs = model(**inputs)"])
        yield _answers(facts)
    if onnx := facts.forms.get("onnx"):
        yield "In onnxruntime, without PyTorch:"
        session = 'session = onnxruntime.InferenceSession("model.onnx", providers=["CPUExecutionProvider"])'
        feed = "{name: inputs[name] for name in " + json.dumps(onnx["inputs"]) + "}"
        outputs = f"outputs = session.run({json.dumps(onnx['outputs'])}, {feed})"
        yield _block("python", ["import onnxruntime", *imports, "", session, *_inputs(facts, "np"), outputs])
        free = "The batch" if facts.head == "image_classification" else "Batch and length"
        yield f"Inputs: {_codes(onnx['inputs'])}; outputs: {_codes(onnx['outputs'])}. {free} may be of any size."
    if facts.processor:
        kind = "image processor" if facts.processor == "AutoImageProcessor" else "tokenizer"
        yield f"The {kind} lies in `packed/`, beside the weights."


def _inputs(facts: Facts, kind: str) -> list[str]:
    """Lines that make `inputs` of what a user has."""
    if not facts.processor:
        usual = ["pixel_values"] if facts.head == "image_classification" else ["input_ids", "attention_mask"]
        names = (facts.forms.get("onnx") or {}).get("inputs") or usual
        return [
            f"inputs = {{{', '.join(f'{json.dumps(name)}: ...' for name in names)}}}  # as the run's data made them"
        ]
    pair = len(facts.at("data", "text_columns") or []) > 1
    texts = {"image_classification": 'Image.open("picture.png")', "question_answering": '"a question", "its context"'}
    given = texts.get(facts.head, '"a text", "another"' if pair else '"a text"')
    if length := facts.at("data", "max_length"):
        given += f", truncation=True, max_length={length}"
    made = f'inputs = processor({given}, return_tensors="{kind}")'
    return [f'processor = {facts.processor}.from_pretrained("packed")', made]


def _answers(facts: Facts) -> str:
    if facts.head == "question_answering":
        return "`outputs.start_logits` and `outputs.end_logits` say where the answer begins and ends."
    if facts.head == "causal_language_model":
        return "`outputs.logits` are those of the token that follows each token."
    if facts.at("data", "num_labels") == 1:
        return "`outputs.logits` is the score, one number for each row."
    return "`model.config.id2label[int(outputs.logits[0].argmax())]` names the class."


def _results(facts: Facts) -> Iterator[str]:
    figures = facts.figures
    names = {form: _code(FILES[name]) for name, form in markdown.FORMS.items()}
    if not facts.taught:
        names["teacher"] = "full precision, where the student began"
    rows = [[names.get(row[0], row[0]), *row[1:]] for row in markdown.model_rows(figures)]
    arrow = "↑" if figures.get("higher_is_better", True) else "↓"
    yield "## Results"
    yield markdown.table(["model", f"{figures['metric']} {arrow} (validation)", "bytes", "ratio"], rows)
    yield markdown.selection(figures)
    yield markdown.assisted(figures)
    yield markdown.sizes(figures)
    yield from _compared(facts)


def _compared(facts: Facts) -> Iterator[str]:
    """The exported files beside the student that they were made from."""
    rows = [
        [
            _code(FILES[name]),
            score(form["score"]),
            score(form["student"]),
            f"{form['largest_difference']:.2g}",
            _percent(form["agreement"]),
            str(form["rows"]),
        ]
        for name, form in facts.forms.items()
    ]
    if rows:
        metric = facts.results["metric"]
        head = ["file", metric, f"{metric} of the student", "largest difference of logits", "equal predictions", "rows"]
        yield "Each file was run beside the student on the first rows of the validation split, on the CPU in float32:"
        yield markdown.table(head, rows)
    if any(q.get("scale") == "dynamic" and q.get("granularity", "tensor") == "tensor" for _, q in facts.activations):
        beside = "the rows beside it" + ("" if facts.head == "image_classification" else " and on their padding")
        size = facts.at("data", "evaluation_batch_size") or 2 * facts.at("data", "batch_size")
        yield (
            "The scales of activations are those of the batch at hand (dynamic, as in the papers): **what a row gets"
            f" depends a little on {beside}**. The scores are for validation batches of {size} rows."
        )


def _method(facts: Facts) -> Iterator[str]:
    yield "## Method"
    yield "\n".join(f"- {line}" for line in (*_teaching(facts), _intervention(facts)) if line)
    if facts.losses:
        yield "Losses, added with these weights:"
        rows = [
            [_code(name), _loss(loss, facts), f"{loss.get('weight', 1.0):g}"] for name, loss in facts.losses.items()
        ]
        yield markdown.table(["loss", "what", "weight"], rows, left=2)
    if facts.weights or facts.activations:
        yield "Quantizers:"
        rows = [*_quantizer_rows(facts, facts.weights, True), *_quantizer_rows(facts, facts.activations, False)]
        yield markdown.table(["of", "quantizer", "scale", "clip", "bits"], rows, left=4)
        if apart := facts.at("quantization", "bits"):
            told = ", ".join(f"{_code(parts)} {width}" for parts, width in apart.items())
            yield f"Weights with bits of their own: {told}."
    else:
        yield "Nothing is quantized."


def _teaching(facts: Facts) -> Iterator[str]:
    steps = (facts.results.get("steps") or {}).get("teacher") or 0
    made = f"fine-tuned for {steps} steps" if steps else "as it was given, not trained further"
    begun = _code(facts.model) if facts.base_model else f"{_code(facts.model)} with random weights"
    if facts.taught:
        yield f"Teacher: {begun} in full precision, {made}. The student begins from its weights."
    else:
        yield f"No teacher. The student begins from {begun} in full precision, {made}."
    if kept := facts.at("model", "student_layers"):
        yield f"The student is made of the teacher's layers {', '.join(map(str, kept))}, counted from 0."


def _intervention(facts: Facts) -> str:
    """What stood in for the student's signals, and for how long."""
    if not facts.intervened:
        return "No intervention."
    schedule, given = facts.at("schedule") or {}, facts.at("intervention") or {}
    shares = schedule.get("shares") or {}
    total = sum(shares.values())
    names = [*(shares or schedule.get("names") or given)]
    told = [_supplied(given.get(name) or {}) for name in names]
    if shares:
        order = ", then ".join(f"{what} for {shares[name]}/{total}" for name, what in zip(names, told, strict=True))
        order += " of them" if len(names) > 1 else ""
        order = told[0] if len(names) == 1 else order
    else:
        order = f"drawn at each step among {', '.join(told)}"
    parts = facts.at("stages", "intervene", "parts")
    only = f" Only {_codes(parts)} were quantized meanwhile." if parts else ""
    return (
        f"Teacher Intervention (arXiv:2302.11812): in the {facts.intervened} steps before training, the teacher's signal"
        f" stood in place of the student's in every layer: {order}.{only}"
    )


def _supplied(intervention: Node) -> str:
    sites = intervention.get("replace") or []
    name = INTERVENTIONS.get(sites[0]) if len(sites) == 1 else None
    layers = intervention.get("at")
    where = f" in layers {', '.join(map(str, layers))} alone" if layers is not None else ""
    return (f"{name} ({_codes(sites)})" if name else _codes(sites)) + where


def _loss(loss: Node, facts: Facts) -> str:
    """In the papers' words."""
    told = {
        "Task": "the labels",
        "AttentionMap": "KL divergence of the attention maps, teacher ‖ student (arXiv:2211.11014 §4)",
        "TokenScaled": "soft cross-entropy of the logits, tokens weighted by the teacher's own loss (arXiv:2308.06744 §4.2)",
    }.get(_kind(loss), _code(_kind(loss)))
    if _kind(loss) == "Match":
        told = SITES.get(loss["site"], f"distance of {_code(loss['site'])}")
    if _kind(loss) == "SoftCrossEntropy":
        told = f"soft cross-entropy with the teacher's logits, {loss.get('classes', 'sum')} over the classes (arXiv:2009.12812)"
        if facts.at("data", "num_labels") == 1:
            told = "MSE of the logits (arXiv:2009.12812)"
    if _kind(loss) == "Balance":
        sides = (("first", loss["share"]), ("second", 1 - loss["share"]))
        shares = [f"{share * loss[side].get('weight', 1.0):g} · {_loss(loss[side], facts)}" for side, share in sides]
        told = f"{' + '.join(shares)}, with shares that sum to 1 (arXiv:2211.11014 §5)"
    more = {
        f"temperature {loss.get('temperature', 1):g}": loss.get("temperature", 1) != 1,
        f"layers {loss.get('layers')}": loss.get("layers") is not None,
        "padding counts": loss.get("reduction") == "reference",
    }
    return "; ".join([told, *(words for words, applies in more.items() if applies)])


def _quantizer_rows(facts: Facts, given: Sequence[tuple[str, Node]], weights: bool) -> Iterator[list[str]]:
    """[of, quantizer, scale, clip, bits]; those that are alike in one row."""
    alike: dict[tuple[str, str, str, str], list[str]] = {}
    for place, quantizer in given:
        kind = _kind(quantizer)
        what = {"AffineQuantizer": quantizer.get("range", "minmax"), "LSQQuantizer": quantizer.get("form", "threshold")}
        name = QUANTIZERS.get(what.get(kind, kind), _code(kind))
        width = quantizer.get("bits") or {"TernaryQuantizer": 2, "BinaryQuantizer": 1}.get(kind)
        clip = quantizer.get("clip")
        scale = _scale(quantizer, weights, facts.at("quantization", "calibration_rows"))
        cells = (name, scale, "–" if clip is None else f"±{clip:g}", "–" if width is None else f"{width:g}")
        alike.setdefault(cells, []).append(place)
    for cells, places in alike.items():
        yield [f"weights of {', '.join(places)}" if weights else _inputs_of(places), *cells]


def _inputs_of(places: Sequence[str]) -> str:
    """["`layers.*`", "`pooler`", "query", "key"] → inputs of `layers.*`, `pooler`; attention's query, key."""
    parts, operands = ([place for place in places if place.startswith("`") == coded] for coded in (True, False))
    told = [f"inputs of {', '.join(parts)}"] if parts else []
    return "; ".join([*told, f"attention's {', '.join(operands)}"] if operands else told)


def _scale(quantizer: Node, weights: bool, rows: int | None) -> str:
    """How many there are, and where each comes from."""
    shared = {
        "tensor": "one a matrix" if weights else "one a tensor",
        "row": "one a row" if weights else "one a token",
        "group": f"one for {quantizer.get('group_size')} neighbours",
    }[quantizer.get("granularity") or "tensor"]
    if _kind(quantizer) == "LSQQuantizer":
        return f"{shared}, learned"
    if weights:
        return shared
    if quantizer.get("scale") == "static":
        return f"{shared}, fixed" + (f" (static, from {rows} training rows)" if rows else " (static)")
    return f"{shared}, of the batch at hand (dynamic)"


def _bits(facts: Facts) -> Iterator[str]:
    """Widths by kind of part, in the packed folder and in ONNX."""
    widths: Node = facts.results.get("bits") or {}
    if not widths:
        return
    yield "## Bits"
    yield markdown.bits({"bits": dict(_folded(widths))})
    if (facts.forms.get("packed") or {}).get("ternary") == "trits":
        yield "In `packed/` ternary weights lie five to a byte, 1.6 bits each."
    if "onnx" in facts.forms:
        small = sorted({int(width) for width in widths.values() if width < QUANTIZED})
        told = [f"weights of {width} bits in {WIDTHS[width]} each" for width in small]
        yield f"`model.onnx` stores {', '.join([*told, 'all else' if told else 'all weights'])} in float32."


def _folded(widths: Node) -> Iterator[tuple[str, float]]:
    """Layers that differ, gathered by kind and width: layers.0-3,11.attention.query."""
    layers: dict[tuple[str, float], list[int]] = {}
    for part, width in widths.items():
        found = re.fullmatch(r"layers\.(\d+)\.(.+)", part)
        layers.setdefault((found[2] if found else part, width), []).extend([int(found[1])] if found else [])
    for (kind, width), numbers in layers.items():
        yield f"layers.{_ranges(numbers)}.{kind}" if numbers else kind, width


def _ranges(numbers: Sequence[int]) -> str:
    """[0, 1, 2, 5] → 0-2,5."""
    runs: list[list[int]] = []
    for number in sorted(numbers):
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ",".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else f"{run[0]}" for run in runs)


def _data(facts: Facts) -> Iterator[str]:
    given = facts.at("data") or {}
    path = given.get("path")
    where = "" if path and facts.is_hub_id(path) else " (a local folder)" if path else f" ({_code(_kind(given))})"
    lines = [f"Data: {_code(facts.data)}{where}" + (f", {_code(given['name'])}" if given.get("name") else "")]
    for split in ("train", "validation"):
        limit = given.get(f"{split}_limit")
        used = "all rows" if limit is None else f"at most {limit} rows"
        lines.append(f"{split.capitalize()}: {_code(_split(facts, split))}, {used}")
    if given.get("max_length"):
        lines.append(f"Tokens in a row: at most {given['max_length']}")
    if facts.at("stages", "train", "keep") == "best":
        lines.append(
            "The weights kept are those that scored best on this validation split: unseen rows may score lower"
        )
    yield "## Data"
    yield "\n".join(f"- {line}" for line in lines)


def _training(facts: Facts) -> Iterator[str]:
    results, optimizer = facts.results, facts.at("optimizer") or {}
    yield "## Training"
    yield markdown.table(["stage", "steps", "time", "per step"], markdown.stage_rows(results))
    newer = {
        name: number
        for name, number in (facts.exported.get("versions") or {}).items()
        if (results.get("versions") or {}).get(name) != number
    }
    rate, batch = optimizer.get("lr"), facts.at("data", "batch_size")
    lines = {
        "Seed": results.get("seed"),
        "Optimizer": f"{_code(_kind(optimizer))}" + (f", learning rate {rate:g}" if isinstance(rate, float) else ""),
        "Rows in a batch": batch,
        "Precision": facts.at("trainer", "precision"),
        "Trained with": ", ".join(f"{name} {number}" for name, number in (results.get("versions") or {}).items()),
        "Exported with": ", ".join(f"{name} {number}" for name, number in newer.items()),
        "SHA-256 of the student's tensors": _code(results["student_hash"]) if results.get("student_hash") else None,
    }
    yield "\n".join(f"- {name}: {value}" for name, value in lines.items() if value not in (None, "", "``"))


def _again(facts: Facts) -> Iterator[str]:
    """The commands that give these figures."""
    if facts.forms:
        yield "## To recompute"
        yield "`DIR` is the run folder; this card lies in `DIR/export`."
        yield _block("bash", [f"python -m qat_lightning.evaluate run=DIR model={name}" for name in facts.forms])
    place = facts.folder / "overrides.yaml"
    given = yaml.safe_load(place.read_text(encoding="utf-8")) if place.is_file() else None
    if not isinstance(given, list):
        return
    shown = [_without_folders(facts, str(override)) for override in given if not str(override).startswith("hydra.")]
    yield "The whole run:"
    yield _block("bash", [shlex.join(["python", "-m", "qat_lightning", *shown])])
    if any(override not in given for override in shown):
        yield "Folders of the machine that it ran on are named by their last component."


def _without_folders(facts: Facts, override: str) -> str:
    """`data.path=/home/me/rte` → `data.path=rte`."""
    key, _, value = override.partition("=")
    if "/" not in value and "\\" not in value:
        return override
    value = value.strip("'\" ")
    if not value.startswith(("[", "{")):
        return f"{key}={facts.named(value)}"
    inner = r"""[^\s,:=\[\]{}'"]*[/\\][^,:=\[\]{}'"]*"""
    return f"{key}={re.sub(inner, lambda found: facts.named(found[0].strip()), value)}"


def _split(facts: Facts, split: str) -> str:
    return facts.at("data", f"{split}_split") or split


def _kind(node: Node) -> str:
    """The class's own name."""
    return str(node.get("_target_") or "").rpartition(".")[2]


def _code(text: str) -> str:
    return f"`{' '.join(str(text).replace('`', chr(39)).split())}`"


def _codes(texts: Sequence[str]) -> str:
    return ", ".join(map(_code, texts))


def _block(language: str, lines: Sequence[str]) -> str:
    return "\n".join([f"```{language}", *lines, "```"])


def _percent(share: float | None) -> str:
    """100 % only where all are."""
    return "–" if share is None else f"{100 if share == 1 else min(round(100 * share, 2), 99.99):g} %"


def _text(folder: Path, name: str, remedy: str) -> str:
    place = folder / name
    if not place.is_file():
        raise ValueError(f"{folder} holds no {name}, so nothing can be said in a card: {remedy}")
    return place.read_text(encoding="utf-8")
