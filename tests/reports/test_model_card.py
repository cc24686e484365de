import copy
import json
import re
import socket
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import ModelCard
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from qat_lightning.commands.train.run import run
from qat_lightning.config.builders.models import build_quantized
from qat_lightning.config.instantiate import create_all
from qat_lightning.config.schema import as_plain
from qat_lightning.models.size import bits
from qat_lightning.reports.description import describe_losses, describe_quantizers
from qat_lightning.reports.model_card.card import write_card
from tests.tiny_models import tiny_model
from tests.training.runs import SMALL, resolved

TEXT = ("+experiment=ti_bert_base", "data=rte", "seed=42")
IMAGE = (
    "+experiment=ti_vit",
    "model.path=/srv/somebody/vit-tuned",
    "data=images",
    "data.path=/srv/somebody/our cats",
    "data.num_labels=5",
    "data.validation_limit=500",
    "quantization=lsq_w2a8",
    "quantization.bits={layers.0.*:8}",
    "intervention=none",
    "intervention_schedule=none",
    "losses=unified_gamma",
)
DECODER = ("+experiment=tsld_llama", "model.path=/home/me/tiny-llama", "data=language", "data.path=/home/me/stories")
FAMILIES = {"causal_language_model": "llama", "image_classification": "vit"}
PLAIN = ("intervention=none", "intervention_schedule=none")

RESULTS: dict[str, Any] = {
    "experiment": "ti_bert_base",
    "task": "rte",
    "head": "text_classification",
    "metric": "accuracy",
    "higher_is_better": True,
    "teacher": 0.7000,
    "untrained": 0.4729,
    "student": 0.6720,
    "student_last_step": 0.6700,
    "assisted": 0.6900,
    "seed": 42,
    "steps": {"teacher": 234, "intervene": 60, "train": 174},
    "seconds": {"teacher": 46.8, "intervene": 30.0, "train": 3723.0},
    "bytes": {"float32": 437_931_008, "packed": 29_430_912, "ratio": 14.88, "checkpoint": 3 * 437_931_008},
    "student_hash": "ab12" * 16,
    "versions": {"qat-lightning": "0.1.0", "torch": "2.13.0"},
    "status": "finished",
}
FIGURES = {"student": 0.6720, "rows": 277}
EXPORTED: dict[str, Any] = {
    "metric": "accuracy",
    "packed": FIGURES | {
        "path": "packed/",
        "bytes": 29_433_000, "ratio": 14.879, "score": 0.6720, "largest_difference": 0.0, "agreement": 1.0,
        "bits_per_weight": 2.0417, "full_precision_bytes": 2_097_152, "unquantized_dtype": "float32",
        "full_precision": ["bert.embeddings.position_embeddings", "classifier"], "ternary_encoding": "2bit",
    },
    "onnx": FIGURES | {
        "path": "model.onnx",
        "bytes": 30_408_704, "ratio": 14.402, "score": 0.6684, "largest_difference": 0.01234, "agreement": 276 / 277,
        "inputs": ["input_ids", "attention_mask"], "outputs": ["logits"],
    },
    "seconds": 12.3,
    "versions": {"torch": "2.13.0", "onnxruntime": "1.31.1"},
}  # fmt: skip
PERPLEXITY = {"task": "stories", "metric": "perplexity", "higher_is_better": False}
PERPLEXITY |= {"teacher": 4.31, "untrained": 252.9, "student": 9.75, "student_last_step": 9.75, "assisted": None}


def composed(*overrides: str) -> dict[str, Any]:
    return as_plain(resolved(*overrides))


@cache
def described(head: str, *overrides: str) -> dict[str, Any]:
    """Return what metrics.json says of the losses, and of the quantizers of a tiny model."""
    config = resolved(*overrides)
    config.model.student_layers = None
    student = build_quantized(config, tiny_model(FAMILIES.get(head, "bert")))
    losses = describe_losses(create_all(config.losses, "losses"))
    return {"head": head, "bits": bits(student), "quantizers": describe_quantizers(student), "losses": losses}


def card(
    folder: Path,
    overrides: tuple[str, ...] = TEXT,
    results: Mapping[str, Any] = {},
    exported: Mapping[str, Any] = {},
    processor: str | None = None,
    config: dict[str, Any] | None = None,
) -> str:
    """Write the card of a run folder made by hand."""
    (folder / "export" / "packed").mkdir(parents=True, exist_ok=True)
    if processor is not None:
        (folder / "export" / "packed" / processor).write_text("{}")
    known = {} if config else described(results.get("head", "text_classification"), *overrides)
    (folder / "config.yaml").write_text(yaml.safe_dump(config or composed(*overrides), sort_keys=False))
    (folder / "overrides.yaml").write_text(yaml.safe_dump(list(overrides)))
    (folder / "metrics.json").write_text(json.dumps(RESULTS | known | results))
    (folder / "export" / "metrics.json").write_text(json.dumps(copy.deepcopy(EXPORTED) | exported))
    path = write_card(folder)
    assert path == folder / "export" / "README.md"
    return path.read_text(encoding="utf-8")


def metadata(folder: Path) -> dict[str, Any]:
    return ModelCard.load(folder / "export" / "README.md").data.to_dict()


def decoder(folder: Path) -> str:
    more = {"head": "causal_language_model", "steps": {"teacher": 0, "train": 262}, "seconds": {"train": 100.0}}
    exported = {"onnx": None, "packed": EXPORTED["packed"] | {"score": 9.75, "student": 9.75}}
    return card(folder, DECODER, more | PERPLEXITY, exported)


def image(folder: Path, *overrides: str) -> str:
    more = {"head": "image_classification", "task": "our cats", "steps": {"teacher": 234, "train": 174}}
    files = {"onnx": EXPORTED["onnx"] | {"inputs": ["pixel_values"]}}
    return card(folder, (*IMAGE, *overrides), more | {"assisted": None}, files, "preprocessor_config.json")


def test_card_of_a_text_model(tmp_path: Path) -> None:
    text = card(tmp_path, exported={"classes": ["no", "yes"]}, processor="tokenizer_config.json")
    assert metadata(tmp_path) == {
        "library_name": "qat_lightning",
        "pipeline_tag": "text-classification",
        "tags": ["quantization", "ternary", "distillation", "qat_lightning", "teacher-intervention"],
        "base_model": "google-bert/bert-base-uncased",
        "datasets": ["nyu-mll/glue"],
        "metrics": ["accuracy"],
        "model-index": [
            {
                "name": "ti_bert_base",
                "results": [
                    {
                        "task": {"type": "text-classification"},
                        "dataset": {"name": "rte", "type": "nyu-mll/glue", "config": "rte", "split": "validation"},
                        "metrics": [{"type": "accuracy", "value": 0.672}],
                    }
                ],
            }
        ],
    }
    for part in (
        "distilled from its full-precision teacher by Teacher Intervention (arXiv:2302.11812): `packed/` is 28.07 MiB",
        "| teacher | 0.7000 | 417.6 MiB | 1× |\n"
        "| PTQ baseline | 0.4729 | 28.07 MiB | 14.88× |\n"
        "| student | 0.6720 | 28.07 MiB | 14.88× |\n"
        "| `packed/` | 0.6720 | 28.07 MiB | 14.88× |\n"
        "| `model.onnx` | 0.6684 | 29 MiB | 14.40× |\n",
        "**The ternary student keeps 96.0 % of the teacher's accuracy (0.6720 of 0.7000)",
        "2 MiB of it are `float32`: `bert.embeddings.position_embeddings`, `classifier`, biases",
        "| `packed/` | 0.6720 | 0.6720 | 0 | 100 % | 277 |",
        "| `model.onnx` | 0.6684 | 0.6720 | 0.012 | 99.64 % | 277 |",
        "made the student's predictions on every row checked",
        "TI-O (`attention.projection`) for 1/6 of them, then TI-C (`attention.context`) for 1/6 of them, then TI-M",
        "ternary (arXiv:1605.04711) | 3 | 2 | one per row, dynamic | ±2.5 |",
        "uniform (arXiv:2009.12812) | 255 | 8 | one per tensor, dynamic | ±2.5 |",
        "the result of a row depends slightly on the other rows of its batch and on their padding",
        "`model.onnx` stores weights of 2 bits in 2 each, everything else in float32.",
        "python -m qat_lightning.evaluate run=DIR model=packed\npython -m qat_lightning.evaluate run=DIR model=onnx",
        "python -m qat_lightning +experiment=ti_bert_base data=rte seed=42\n",
        "| intervene | 60 | 30.0 s | 500 ms |",
        "- Seed: 42\n- Optimizer: `BertAdam`",
        "- Trained with: qat-lightning 0.1.0, torch 2.13.0\n- Exported with: onnxruntime 1.31.1\n",
        "- Data: `nyu-mll/glue`, `rte`\n- Train: `train`, all rows",
        'inputs = processor("a text", "another", truncation=True, max_length=128, return_tensors="pt")\n',
        'session.run(["logits"], {name: inputs[name] for name in ["input_ids", "attention_mask"]})',
        "largest logit: 0 `no`, 1 `yes`.",
    ):
        assert part in text
    rows = [line.split(" | ") for line in text.splitlines() if "MatchingLoss`" in line]
    assert {(row[0], row[3], row[5]) for row in rows} >= {("| `scores`", "`attention.scores`", "1 |")}


def test_card_of_an_image_model_in_local_folders(tmp_path: Path) -> None:
    text, found = image(tmp_path, "data.channels=1"), metadata(tmp_path)
    assert found["tags"] == ["quantization", "mixed-precision", "distillation", "qat_lightning", "kd-qat", "kdlsq-bert"]
    assert not {"base_model", "datasets", "license"} & found.keys()
    dataset = {"name": "our cats", "type": "our cats", "split": "validation"}
    assert found["model-index"][0]["results"][0]["dataset"] == dataset
    for part in (
        "| 2 | `layers.1.attention.query`",
        "weights of `layers.1.attention.query`",
        "`model.onnx` stores weights of 2 bits in 2 each, weights of 8 bits in 8 each, everything else in float32.",
        "- Validation: `validation`, at most 500 rows",
        "No intervention.",
        "`unified.second` | `FeatureMatchingLoss`",
        'processor(ImageOps.exif_transpose(Image.open("picture.png")).convert("L"), return_tensors="pt")',
    ):
        assert part in text
    assert "`embeddings.word`" not in text


def test_card_of_a_decoder(tmp_path: Path) -> None:
    text = decoder(tmp_path)
    assert metadata(tmp_path)["pipeline_tag"] == "text-generation"
    assert metadata(tmp_path)["tags"] == ["quantization", "ternary", "distillation", "qat_lightning", "tsld"]
    assert "onnx" not in text.replace("onnxruntime 1.31.1", "")
    assert "| model | perplexity ↓ (validation) |" in text
    assert "- Teacher: `tiny-llama` in full precision, as published, not trained further." in text
    assert "`outputs.logits` predict the next token after each token." in text


def test_code_in_the_card_is_python(tmp_path: Path) -> None:
    for name, write in {"text": card, "image": image, "decoder": decoder}.items():
        for block in python_blocks(write(tmp_path / name)):
            compile(block, name, "exec")


def python_blocks(text: str) -> list[str]:
    found = re.findall(r"```python\n(.*?)\n```", text, re.DOTALL)
    assert found
    return found


@pytest.mark.parametrize(
    ("overrides", "part"),
    [
        (("intervention=map", "intervention_schedule=map"), "every layer: TI-M (`attention.probs`)."),
        (("intervention_schedule=stochastic",), "(`attention.probs`), drawn at random for each step."),
        (("intervention.map.at=[0,2]", "intervention_schedule=map"), "TI-M (`attention.probs`) in layers 0, 2 only."),
        (("stages.intervene.target_modules=[layers.*.feedforward.*]",), "Only `layers.*.feedforward.*` were quantized"),
        (("losses.scores.weight=0.25",), "| 0.25 |"),
        (("losses=attention_map", "losses.map.temperature=2"), "`temperature=2"),
        (("losses.hidden.padding=include",), "`padding=include`"),
        (("quantization=binary_w1a8",), "binary (arXiv:1603.05279) | 2 | 1 | one per row, dynamic | ±2.5 |"),
        (("quantization=lsq_w2a8",), "LSQ (arXiv:2101.05938) | 3 | 2 | one per tensor, learned | – |"),
        (
            ("quantization=lsq_w2a8", "quantization.weight.parametrization=step_size"),
            "LSQ (arXiv:1902.08153) | 4 | 2 | one per tensor, learned",
        ),
        (
            ("quantization.weight.granularity=per_group", "quantization.weight.group_size=8"),
            "one per 8 values, dynamic | ±2.5 |",
        ),
        (("quantization.activation.scale=static",), "one per tensor, static (from 256 training rows) | ±2.5 |"),
        (("data.num_labels=1",), "`outputs.logits` is the score, one number for each row."),
    ],
)
def test_method(tmp_path: Path, overrides: tuple[str, ...], part: str) -> None:
    assert part in card(tmp_path, (*TEXT, *overrides))


@pytest.mark.parametrize(
    "overrides",
    [
        ("quantization=lsq_w2a8",),
        ("quantization=ternary_w2a16",),
        ("quantization.activation.granularity=per_token",),
        ("losses.scores.weight=0",),
    ],
)
def test_inactive_parts_are_not_mentioned(tmp_path: Path, overrides: tuple[str, ...]) -> None:
    absent = "`scores`" if "losses" in overrides[0] else "depends slightly on"
    assert absent not in card(tmp_path, (*TEXT, *overrides))


@pytest.mark.parametrize(("agreement", "shown"), [(1.0, "100 %"), (0.999999, "99.99 %")])
def test_equal_predictions_are_claimed_only_if_all_rows_agree(tmp_path: Path, agreement: float, shown: str) -> None:
    text = card(tmp_path, exported={"packed": EXPORTED["packed"] | {"agreement": agreement}})
    assert f"| `packed/` | 0.6720 | 0.6720 | 0 | {shown} | 277 |" in text
    assert ("on every row checked" in text) == (agreement == 1)


def test_card_without_a_teacher(tmp_path: Path) -> None:
    overrides = ("+experiment=lsq_bert_base", "data=rte")
    text = card(tmp_path, overrides, {"assisted": None, "steps": {"teacher": 5, "train": 7}})
    assert metadata(tmp_path)["tags"] == ["quantization", "ternary", "qat_lightning", "lsq"]
    assert "trained without a teacher by LSQ (arXiv:1902.08153)" in text
    assert "No teacher. The student is initialized from `google-bert/bert-base-uncased` in full precision" in text
    assert "| full precision, the student's initialization | 0.7000 |" in text
    assert "distilled" not in text


def test_card_of_plain_fine_tuning(tmp_path: Path) -> None:
    overrides = (*TEXT, "quantization=none", "teacher=none", "losses=task", *PLAIN)
    text = card(tmp_path, overrides, {"steps": {"teacher": 4, "train": 3}, "assisted": None})
    assert metadata(tmp_path)["tags"] == ["qat_lightning"]
    assert "Nothing is quantized." in text
    assert "`model.onnx` stores all weights in float32." in text


def test_card_of_random_weights(tmp_path: Path) -> None:
    more = {"task": "digits", "head": "image_classification"}
    text = card(tmp_path, ("+experiment=quickstart",), more, processor="preprocessor_config.json")
    assert "base_model" not in metadata(tmp_path)
    assert "Teacher: `vit` with random weights in full precision, fine-tuned for 234 steps." in text
    assert "- Data: `digits` (`Digits`)" in text


def test_undefined_score_is_not_reported_to_the_hub(tmp_path: Path) -> None:
    text = card(tmp_path, results={"student": None})
    assert "model-index" not in metadata(tmp_path)
    assert "is undefined: it is not a finite number" in text


UNKNOWN = ("teacher", "untrained", "student", "student_last_step", "assisted", "seed", "seconds", "steps", "bits", "versions",
           "quantizers", "losses")  # fmt: skip
EMPTY = ("losses", "intervention", "intervention_schedule", "optimizer", "quantization", "stages", "trainer")


def test_unknown_values_and_empty_nodes_are_left_out(tmp_path: Path) -> None:
    for name in UNKNOWN:
        assert "None" not in card(tmp_path, results={name: None})
        assert metadata(tmp_path)["library_name"] == "qat_lightning"
    for name in EMPTY:
        assert "None" not in card(tmp_path, config=composed(*TEXT) | {name: {}})
    text = card(tmp_path, exported={"packed": None})
    assert "load_packed" not in text
    assert "packed/" not in text
    (tmp_path / "overrides.yaml").unlink()
    assert "The whole run" not in write_card(tmp_path).read_text(encoding="utf-8")


@pytest.mark.parametrize("name", ["config.yaml", "metrics.json", "export/metrics.json"])
def test_missing_file_is_named(tmp_path: Path, name: str) -> None:
    card(tmp_path)
    (tmp_path / name).unlink()
    with pytest.raises(ValueError, match=name):
        write_card(tmp_path)


def test_hub_is_not_asked_and_folders_are_no_hub_ids(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: Any) -> None:
        raise AssertionError("a connection was opened")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    (tmp_path / "google-bert" / "bert-base-uncased").mkdir(parents=True)
    text = card(tmp_path / "outputs" / "run")
    assert "base_model" not in metadata(tmp_path / "outputs" / "run")
    assert "google-bert" not in text


NAMES = st.lists(st.from_regex(r"hidden[a-z .\-]{0,6}q", fullmatch=True), min_size=1, max_size=4)


@settings(max_examples=15, deadline=None)
@given(above=NAMES, start=st.sampled_from(["/", "~/", "../", "C:\\", "//host/"]), quote=st.sampled_from(["", "'", '"']))
def test_folders_of_the_machine_are_not_named(
    tmp_path_factory: pytest.TempPathFactory, above: list[str], start: str, quote: str
) -> None:
    place = f"{start}{'/'.join(above)}/last"
    if "\\" in start:
        place = place.replace("/", "\\")
    config = composed(*TEXT)
    config["model"]["path"] = config["data"]["path"] = config["data"]["tokenizer"] = place
    overrides = (f"model.path={quote}{place}{quote}", f"data={{path:{quote}{place}{quote}}}", f"hydra.run.dir={place}")
    text = card(tmp_path_factory.mktemp("run"), overrides, config=config)
    assert "hidden" not in text
    assert "last for rte" in text
    assert "model.path=last" in text


def digits_run(folder: Path, *overrides: str) -> dict[str, Any]:
    small = [override for override in SMALL if override.split("=")[0] not in ("model", "data", "data.rows")]
    limits = ("data.train_limit=24", "data.validation_limit=24")
    return run(resolved(*small, *limits, *overrides), folder, list(overrides))


def test_card_of_a_real_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    results = digits_run(tmp_path / "run")
    text = (tmp_path / "run" / "export" / "README.md").read_text(encoding="utf-8")
    assert f"| student | {results['student']:.4f} |" in text
    assert str(tmp_path) not in text
    assert metadata(tmp_path / "run")["model-index"][0]["results"][0]["metrics"][0]["value"] == results["student"]
    (block,) = python_blocks(text)
    monkeypatch.chdir(tmp_path / "run" / "export")
    Image.new("L", (8, 8), 7).save("picture.png")
    names: dict[str, Any] = {}
    exec(block, names)
    assert names["outputs"].logits.shape == (1, 10)


@pytest.mark.slow
def test_onnx_code_of_the_card_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    digits_run(tmp_path, "export.onnx=true")
    blocks = python_blocks(write_card(tmp_path).read_text(encoding="utf-8"))
    monkeypatch.chdir(tmp_path / "export")
    Image.new("L", (8, 8), 7).save("picture.png")
    in_torch, in_onnx = ({}, {})
    exec(blocks[0], in_torch)
    exec(blocks[1], in_onnx)
    assert abs(in_torch["outputs"].logits.detach().numpy() - in_onnx["outputs"][0]).max() < 1e-2
