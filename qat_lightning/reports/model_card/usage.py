"""What the model is and how it is loaded."""

from __future__ import annotations

import json
from collections.abc import Iterator

from qat_lightning.io import markdown
from qat_lightning.io.markdown import block, code, text
from qat_lightning.reports.model_card.formatting import codes
from qat_lightning.reports.model_card.metadata import PIPELINES
from qat_lightning.reports.model_card.run_facts import FILES, Facts
from qat_lightning.reports.summary import student_kind, verdict


def heading(facts: Facts) -> Iterator[str]:
    kind, task = student_kind(facts.results.get("bits")), PIPELINES[facts.head].replace("-", " ")
    yield f"# {kind.capitalize()} {text(facts.model)} for {text(facts.results['task'])}"
    how = "distilled from its full-precision teacher" if facts.taught else "trained without a teacher"
    if facts.methods:
        how += " by " + " and ".join(f"{name} ({source})" for name, source in facts.methods.items())
    files = [f"{code(FILES[name])} is {markdown.human_bytes(form['bytes'])}" for name, form in facts.forms.items()]
    yield f"{'An' if kind[0] == '8' else 'A'} {kind} {code(facts.model)} for {task}, {how}: {', '.join(files)}."
    if "student" in facts.results:
        yield f"**{text(verdict(facts.results))}**"


def loading(facts: Facts) -> Iterator[str]:
    if facts.forms:
        yield "## How to load"
    imports = [f"from transformers import {facts.processor}"] if facts.processor else []
    if facts.processor == "AutoImageProcessor":
        imports.insert(0, "from PIL import Image, ImageOps")
    if "packed" in facts.forms:
        same = facts.forms["packed"]["agreement"] == 1
        does = ", which predicted what the student predicts on every row checked" if same else ""
        yield f"In PyTorch, as a plain transformers model{does} (package `qat-lightning`):"
        loads = [*imports, "from qat_lightning import load_packed", "", 'model = load_packed("packed")']
        yield block("python", [*loads, *_inputs(facts, "pt"), "outputs = model(**inputs)"])
        yield _answers(facts)
    if onnx := facts.forms.get("onnx"):
        yield "In onnxruntime, without PyTorch:"
        session = 'session = onnxruntime.InferenceSession("model.onnx", providers=["CPUExecutionProvider"])'
        feed = "{name: inputs[name] for name in " + json.dumps(onnx["inputs"]) + "}"
        outputs = f"outputs = session.run({json.dumps(onnx['outputs'])}, {feed})"
        yield block("python", ["import onnxruntime", *imports, "", session, *_inputs(facts, "np"), outputs])
        free = "The batch" if facts.head == "image_classification" else "Batch and length"
        yield f"Inputs: {codes(onnx['inputs'])}; outputs: {codes(onnx['outputs'])}. {free} may be of any size."
        if classes := facts.exported.get("classes"):
            named = ", ".join(f"{number} {code(name)}" for number, name in enumerate(classes))
            yield f"Classes, by the place of the largest logit: {named}."
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
    grey = '.convert("L")' if facts.at("data", "channels") == 1 else ""
    opened = f'ImageOps.exif_transpose(Image.open("picture.png")){grey}'  # turned upright, as the data turns its images
    texts = {"image_classification": opened, "question_answering": '"a question", "its context"'}
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
