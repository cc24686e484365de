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
from hydra import compose, initialize_config_dir
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from qat_lightning.commands.train.run import run
from qat_lightning.config.schema import CONF, as_plain, resolve
from qat_lightning.reports.model_card.card import write_card
from tests.training.runs import SMALL, small_run

TEXT = ("+experiment=ti_bert_base", "data=rte", "seed=42")
IMAGE = (
    "+experiment=ti_vit",
    "model.path=/srv/somebody/vit-tuned",
    "data=images",
    "data.path=/srv/somebody/our cats",
    "data.num_labels=5",
    "data.validation_limit=500",
    "quantization=lsq_w3a8",
    "quantization.bits={layers.0.*:8}",
    "intervention=none",
    "intervention_schedule=none",
    "losses=unified_gamma",
)
DECODER = ("+experiment=tsld_llama", "model.path=/home/me/tiny-llama", "data=language", "data.path=/home/me/stories")

RESULTS: dict[str, Any] = {
    "experiment": "ti_bert_base",
    "task": "rte",
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
    "bits": {"embeddings.word": 2, "embeddings.position": 32, "attention.query": 2, "pooler": 2, "head": 32},
    "student_hash": "ab12" * 16,
    "versions": {"qat-lightning": "0.1.0", "torch": "2.13.0"},
    "status": "finished",
}
EXPORTED: dict[str, Any] = {
    "metric": "accuracy",
    "packed": {
        "bytes": 29_433_000,
        "ratio": 14.879,
        "score": 0.6720,
        "student": 0.6720,
        "rows": 277,
        "largest_difference": 0.0,
        "agreement": 1.0,
        "bits_per_weight": 2.0417,
        "full_precision_bytes": 2_097_152,
        "full_precision": ["bert.embeddings.position_embeddings", "classifier"],
        "unquantized_dtype": "float32",
        "ternary_encoding": "bits",
    },
    "onnx": {
        "bytes": 30_408_704,
        "ratio": 14.402,
        "score": 0.6684,
        "student": 0.6720,
        "rows": 277,
        "largest_difference": 0.01234,
        "agreement": 276 / 277,
        "inputs": ["input_ids", "attention_mask"],
        "outputs": ["logits"],
    },
    "seconds": 12.3,
    "versions": {"torch": "2.13.0", "onnxruntime": "1.31.1"},
}
PERPLEXITY = {"task": "stories", "metric": "perplexity", "higher_is_better": False}
PERPLEXITY |= {"teacher": 4.31, "untrained": 252.9, "student": 9.75, "student_last_step": 9.75, "assisted": None}


@cache
def _composed(*overrides: str) -> dict[str, Any]:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return as_plain(resolve(compose("config", overrides=list(overrides))))


def composed(*overrides: str) -> dict[str, Any]:
    return copy.deepcopy(_composed(*overrides))


def card(
    folder: Path,
    overrides: tuple[str, ...] = TEXT,
    results: Mapping[str, Any] = {},
    exported: Mapping[str, Any] = {},
    processor: str | None = None,
    config: dict[str, Any] | None = None,
) -> str:
    """What is written for a run folder made by hand."""
    (folder / "export" / "packed").mkdir(parents=True, exist_ok=True)
    if processor is not None:
        (folder / "export" / "packed" / processor).write_text("{}")
    (folder / "config.yaml").write_text(yaml.safe_dump(config or composed(*overrides), sort_keys=False))
    (folder / "overrides.yaml").write_text(yaml.safe_dump(list(overrides)))
    (folder / "metrics.json").write_text(json.dumps(RESULTS | results))
    (folder / "export" / "metrics.json").write_text(json.dumps(copy.deepcopy(EXPORTED) | exported))
    path = write_card(folder)
    assert path == folder / "export" / "README.md"
    return path.read_text(encoding="utf-8")


def metadata(folder: Path) -> dict[str, Any]:
    return ModelCard.load(folder / "export" / "README.md").data.to_dict()


def decoder(folder: Path, **changes: Any) -> str:
    bits = {"embeddings.word": 32, "attention.query": 2, "feedforward.in": 2, "head": 32}
    more = {"bits": bits, "steps": {"teacher": 0, "train": 262}, "seconds": {"train": 100.0}} | PERPLEXITY
    exported = {"onnx": None, "packed": EXPORTED["packed"] | {"score": 9.75, "student": 9.75}}
    return card(folder, DECODER, more | changes, exported)


def image(folder: Path) -> str:
    bits = {f"layers.{layer}.attention.query": 8 if layer == 0 else 3 for layer in range(12)} | {"head": 32}
    steps = {"teacher": 234, "train": 174}
    files = {"onnx": EXPORTED["onnx"] | {"inputs": ["pixel_values"]}}
    return card(folder, IMAGE, {"task": "our cats", "bits": bits, "steps": steps, "assisted": None}, files)


def test_metadata_of_a_text_model(tmp_path: Path) -> None:
    card(tmp_path)
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


def test_metadata_of_local_folders_names_no_hub_id(tmp_path: Path) -> None:
    image(tmp_path)
    found = metadata(tmp_path)
    assert found["pipeline_tag"] == "image-classification"
    assert found["tags"] == ["quantization", "mixed-precision", "distillation", "qat_lightning", "kd-qat", "kdlsq-bert"]
    assert not {"base_model", "datasets", "license"} & found.keys()
    assert found["model-index"][0]["results"][0]["dataset"] == {
        "name": "our cats",
        "type": "our cats",
        "split": "validation",
    }


def test_a_folder_that_lies_there_is_no_hub_id(tmp_path: Path) -> None:
    (tmp_path / "google-bert" / "bert-base-uncased").mkdir(parents=True)
    text = card(tmp_path / "outputs" / "run")
    assert "base_model" not in metadata(tmp_path / "outputs" / "run")
    assert "google-bert" not in text
    assert text.count("\n# Ternary bert-base-uncased for rte\n") == 1


def test_the_models_stand_in_one_table(tmp_path: Path) -> None:
    text = card(tmp_path)
    assert (
        "| model | accuracy ↑ (validation) | bytes | ratio |\n| :-- | --: | --: | --: |\n"
        "| teacher | 0.7000 | 417.6 MiB | 1× |\n"
        "| quantized, not trained | 0.4729 | 28.07 MiB | 14.88× |\n"
        "| student | 0.6720 | 28.07 MiB | 14.88× |\n"
        "| `packed/` | 0.6720 | 28.07 MiB | 14.88× |\n"
    ) in text
    assert re.search(r"\| `model.onnx` \| 0\.6684 \| 29 MiB \| 14\.40× \|", text)
    assert "**The ternary student keeps 96.0 % of the teacher's accuracy (0.6720 of 0.7000)" in text
    assert "those of the last step scored 0.6700" in text
    assert "took 1.224 GiB" in text
    assert "2 MiB of it stay float32: `bert.embeddings.position_embeddings`, `classifier`, biases" in text


def test_the_files_stand_beside_the_student(tmp_path: Path) -> None:
    text = card(tmp_path)
    assert (
        "| `packed/` | 0.6720 | 0.6720 | 0 | 100 % | 277 |\n| `model.onnx` | 0.6684 | 0.6720 | 0.012 | 99.64 % | 277 |"
        in text
    )


@pytest.mark.parametrize(("agreement", "told"), [(1.0, "100 %"), (0.999999, "99.99 %"), (0.5, "50 %")])
def test_all_equal_is_only_said_where_all_are(tmp_path: Path, agreement: float, told: str) -> None:
    text = card(tmp_path, exported={"onnx": EXPORTED["onnx"] | {"agreement": agreement}})
    assert f"| {told} | 277 |" in text.partition("| `model.onnx` | 0.6684 | 0.6720 |")[2].splitlines()[0]


def test_equal_predictions_are_only_claimed_where_they_were_seen(tmp_path: Path) -> None:
    claim = "predicted what the student predicts on every row checked"
    assert claim in card(tmp_path)
    half = EXPORTED["packed"] | {"unquantized_dtype": "float16", "agreement": 0.999}
    text = card(tmp_path, exported={"packed": half})
    assert claim not in text
    assert "2 MiB of it stay float16" in text


def test_the_method_is_told_in_the_papers_words(tmp_path: Path) -> None:
    text = card(tmp_path)
    assert (
        "distilled from its full-precision teacher by Teacher Intervention (arXiv:2302.11812): `packed/` is 28.07 MiB"
        in text
    )
    assert (
        "in the 60 steps before training, the teacher's signal stood in place of the student's in every layer:"
        " TI-O (`attention.projection`) for 1/6, then TI-C (`attention.context`) for 1/6, then TI-M (`attention.probs`)"
        " for 4/6 of them."
    ) in text
    assert (
        "| `logits` | soft cross-entropy with the teacher's logits, sum over the classes (arXiv:2009.12812) | 1 |"
        in text
    )
    assert "| `scores` | MSE of the attention scores (arXiv:2009.12812 §3.3) | 1 |" in text
    assert "| `output` | MSE of the attention outputs after LayerNorm (arXiv:2211.11014 §4) | 1 |" in text
    assert "| weights of `layers.*`, `pooler` | ternary, −α 0 α (arXiv:1605.04711) | one a matrix | ±2.5 | 2 |" in text
    assert "| weights of `embeddings.word` | ternary, −α 0 α (arXiv:1605.04711) | one a row | ±2.5 | 2 |" in text
    assert (
        "| inputs of `layers.*`, `pooler`; attention's query, key, probs, value | uniform, symmetric (arXiv:2009.12812)"
        " | one a tensor, of the batch at hand (dynamic) | ±2.5 | 8 |"
    ) in text
    assert "**what a row gets depends a little on the rows beside it and on their padding**" in text
    assert "`model.onnx` stores weights of 2 bits in 2 each, all else in float32." in text


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (("intervention=map", "intervention_schedule=map"), "every layer: TI-M (`attention.probs`)."),
        (("intervention_schedule=stochastic",), "drawn at each step among TI-O (`attention.projection`), TI-C"),
        (("intervention.map.at=[0,2]", "intervention_schedule=map"), "TI-M (`attention.probs`) in layers 0, 2 alone."),
        (
            ("stages.intervene.target_modules=[layers.*.feedforward.*]",),
            "Only `layers.*.feedforward.*` were quantized meanwhile.",
        ),
    ],
)
def test_interventions(tmp_path: Path, overrides: tuple[str, ...], told: str) -> None:
    assert told in card(tmp_path, (*TEXT, *overrides))


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (("losses.scores.weight=0.25",), "MSE of the attention scores (arXiv:2009.12812 §3.3) | 0.25 |"),
        (("losses=attention_map", "losses.map.layers=[[0,1]]"), "(arXiv:2211.11014 §4); layers [[0, 1]] | 1 |"),
        (("losses=attention_map", "losses.map.temperature=2"), "(arXiv:2211.11014 §4); temperature 2 | 1 |"),
        (("losses.hidden.padding=include",), "(arXiv:2009.12812 §3.3); padding counts | 1 |"),
        (("losses.logits.classes=mean",), "the teacher's logits, mean over the classes"),
        (("data.num_labels=1",), "| `logits` | MSE of the logits (arXiv:2009.12812) | 1 |"),
        (
            ("losses=unified_gamma", "losses.unified.gamma=0.7"),
            "| `unified` | 0.7 · KL divergence of the attention maps",
        ),
        (("losses=task", "losses.task.weight=16"), "| `task` | the labels | 16 |"),
    ],
)
def test_losses(tmp_path: Path, overrides: tuple[str, ...], told: str) -> None:
    assert told in card(tmp_path, (*TEXT, *overrides))


def test_a_loss_of_weight_0_is_not_told(tmp_path: Path) -> None:
    assert "`scores`" not in card(tmp_path, (*TEXT, "losses.scores.weight=0"))


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (("quantization=binary_w1a8",), "binary, −α α (arXiv:1603.05279) | one a row | ±2.5 | 1 |"),
        (("quantization=uniform_w4a8",), "uniform, ∓ the mean of the large values (arXiv:2211.11014)"),
        (
            ("quantization=uniform_w8a8_asymmetric",),
            "uniform, least to largest value (arXiv:2009.12812) | one a tensor",
        ),
        (("quantization=lsq_w2a8",), "learned threshold (arXiv:2101.05938) | one a matrix, learned | – | 2 |"),
        (("quantization=lsq_w2a8", "quantization.weight.parametrization=step_size"), "learned step (arXiv:1902.08153)"),
        (
            ("quantization.weight.granularity=per_group", "quantization.weight.group_size=8"),
            "(arXiv:1605.04711) | one for 8 neighbours | ±2.5 | 2 |",
        ),
        (
            ("quantization.activation.scale=static",),
            "one a tensor, fixed (static, from 256 training rows) | ±2.5 | 8 |",
        ),
        (("quantization.activation.granularity=per_token",), "one a token, of the batch at hand (dynamic)"),
    ],
)
def test_quantizers(tmp_path: Path, overrides: tuple[str, ...], told: str) -> None:
    assert told in card(tmp_path, (*TEXT, *overrides))


@pytest.mark.parametrize(
    "overrides",
    [
        ("quantization=lsq_w2a8",),
        ("quantization=ternary_w2a16",),  # dynamic quantizers are described there, and nothing takes them
        ("quantization.activation.scale=static",),
        ("quantization.activation.granularity=per_token",),
        ("quantization=none",),
    ],
)
def test_a_batch_is_not_blamed_where_it_changes_nothing(tmp_path: Path, overrides: tuple[str, ...]) -> None:
    assert "depends a little on" not in card(tmp_path, (*TEXT, *overrides))


def test_layers_that_differ_are_gathered(tmp_path: Path) -> None:
    text = image(tmp_path)
    assert "| 3 | `layers.1-11.attention.query` |\n| 8 | `layers.0.attention.query` |\n| 32 | `head` |" in text
    assert "`model.onnx` stores weights of 3 bits in 4 each, weights of 8 bits in 8 each, all else in float32." in text
    assert "`embeddings.word`" not in text  # an optional rule, of a part that an image model does not have
    assert "- Validation: `validation`, at most 500 rows" in text
    assert "No intervention." in text
    assert "Weights with bits of their own: `layers.0.*` 8." in text


def test_a_decoder_has_no_onnx_and_a_lower_score_is_better(tmp_path: Path) -> None:
    text = decoder(tmp_path)
    assert metadata(tmp_path)["pipeline_tag"] == "text-generation"
    assert metadata(tmp_path)["tags"] == ["quantization", "ternary", "distillation", "qat_lightning", "tsld"]
    assert "onnx" not in re.sub(r"onnxruntime 1\.31\.1", "", text)
    assert "| model | perplexity ↓ (validation) |" in text
    assert "lower is better; teacher 4.31" in text
    assert "- Teacher: `tiny-llama` in full precision, as it was given, not trained further." in text
    assert "`outputs.logits` are those of the token that follows each token." in text
    assert text.count("python -m qat_lightning.evaluate run=DIR model=") == 1


def test_how_to_load_a_text_model(tmp_path: Path) -> None:
    text = card(tmp_path, processor="tokenizer_config.json")
    assert (
        "from transformers import AutoTokenizer\nfrom qat_lightning import load_packed\n\n"
        'model = load_packed("packed")\n'
        'processor = AutoTokenizer.from_pretrained("packed")\n'
        'inputs = processor("a text", "another", truncation=True, max_length=128, return_tensors="pt")\n'
        "outputs = model(**inputs)\n```"
    ) in text
    assert 'session.run(["logits"], {name: inputs[name] for name in ["input_ids", "attention_mask"]})' in text
    assert "Inputs: `input_ids`, `attention_mask`; outputs: `logits`. Batch and length may be of any size." in text
    assert "The tokenizer lies in `packed/`" in text


def test_an_onnx_file_does_not_name_its_classes_so_the_card_does(tmp_path: Path) -> None:
    assert "largest logit: 0 `no`, 1 `yes`." in card(tmp_path, exported={"classes": ["no", "yes"]})
    assert "largest logit" not in card(tmp_path, exported={"classes": None})


def test_images_are_opened_as_the_data_opens_them(tmp_path: Path) -> None:
    grey = card(tmp_path, (*IMAGE, "data.channels=1"), processor="preprocessor_config.json")
    assert 'processor(ImageOps.exif_transpose(Image.open("picture.png")).convert("L"), return_tensors="pt")' in grey


def test_code_in_the_card_is_python(tmp_path: Path) -> None:
    for name, write in {"text": card, "image": image, "decoder": decoder}.items():
        for block in python_blocks(write(tmp_path / name)):
            compile(block, name, "exec")


def python_blocks(text: str) -> list[str]:
    found = re.findall(r"```python\n(.*?)\n```", text, re.DOTALL)
    assert found
    return found


def test_what_made_it_can_be_repeated(tmp_path: Path) -> None:
    text = card(tmp_path)
    assert (
        "python -m qat_lightning.evaluate run=DIR model=packed\npython -m qat_lightning.evaluate run=DIR model=onnx"
        in text
    )
    assert "python -m qat_lightning +experiment=ti_bert_base data=rte seed=42\n" in text
    assert "| intervene | 60 | 30.0 s | 500 ms |" in text
    assert "- Seed: 42\n- Optimizer: `BertAdam`" in text
    assert "- Trained with: qat-lightning 0.1.0, torch 2.13.0\n- Exported with: onnxruntime 1.31.1\n" in text
    assert f"`{'ab12' * 16}`" in text
    assert "- Data: `nyu-mll/glue`, `rte`\n- Train: `train`, all rows" in text


def test_without_a_teacher_there_is_no_distillation(tmp_path: Path) -> None:
    overrides = ("+experiment=lsq_bert_base", "data=rte")
    text = card(tmp_path, overrides, {"assisted": None, "steps": {"teacher": 5, "train": 7}})
    assert metadata(tmp_path)["tags"] == ["quantization", "ternary", "qat_lightning", "lsq"]
    assert "trained without a teacher by LSQ (arXiv:1902.08153)" in text
    assert (
        "No teacher. The student begins from `google-bert/bert-base-uncased` in full precision, fine-tuned for 5 steps"
        in text
    )
    assert "| full precision, where the student began | 0.7000 |" in text
    assert "distilled" not in text


def test_plain_fine_tuning_claims_no_quantization(tmp_path: Path) -> None:
    overrides = ("quantization=none", "teacher=none", "losses=task", "intervention=none", "intervention_schedule=none")
    whole = {"bits": {"attention.query": 32, "head": 32}, "steps": {"teacher": 4, "train": 3}, "assisted": None}
    text = card(tmp_path, (*TEXT, *overrides), whole)
    assert metadata(tmp_path)["tags"] == ["qat_lightning"]
    assert "Nothing is quantized." in text
    assert "`model.onnx` stores all weights in float32." in text


def test_a_regression_and_a_shallower_student(tmp_path: Path) -> None:
    overrides = (
        "+experiment=ti_bert_base_6l",
        "data=text_regression",
        "data.path=sick/relatedness",
        "data.text_columns=[a]",
    )
    text = card(tmp_path, overrides, {"task": "relatedness", "metric": "pearson"})
    assert "`outputs.logits` is the score, one number for each row." in text
    assert "The student is made of the teacher's layers 1, 3, 5, 7, 9, 11, counted from 0." in text
    assert metadata(tmp_path)["model-index"][0]["results"][0]["metrics"] == [{"type": "pearson", "value": 0.672}]


def test_random_weights_have_no_base_model(tmp_path: Path) -> None:
    text = card(tmp_path, ("+experiment=quickstart",), {"task": "digits"}, processor="preprocessor_config.json")
    assert "base_model" not in metadata(tmp_path)
    assert "Teacher: `vit` with random weights in full precision, fine-tuned for 234 steps." in text
    assert "- Data: `digits` (`Digits`)" in text
    assert 'inputs = processor(ImageOps.exif_transpose(Image.open("picture.png")), return_tensors="pt")' in text


def test_an_undefined_score_is_not_reported_to_the_hub(tmp_path: Path) -> None:
    text = card(tmp_path, results={"student": None})
    assert "model-index" not in metadata(tmp_path)
    assert "is undefined: it is not a finite number" in text
    assert "*undefined*: " in text


@pytest.mark.parametrize(
    "nothing",
    [
        "teacher",
        "untrained",
        "student",
        "student_last_step",
        "assisted",
        "seed",
        "seconds",
        "steps",
        "bits",
        "versions",
    ],
)
def test_what_is_not_known_is_left_out(tmp_path: Path, nothing: str) -> None:
    text = card(tmp_path, results={nothing: None})
    assert "None" not in text
    assert metadata(tmp_path)["library_name"] == "qat_lightning"


@pytest.mark.parametrize(
    "part", ["losses", "intervention", "intervention_schedule", "optimizer", "quantization", "stages", "trainer"]
)
def test_an_empty_part_of_the_configuration_is_left_out(tmp_path: Path, part: str) -> None:
    text = card(tmp_path, config=composed(*TEXT) | {part: {}})
    assert "None" not in text


def test_nodes_that_were_taken_out_are_left_out(tmp_path: Path) -> None:
    config = composed(*TEXT)
    config["losses"]["scores"] = config["quantization"]["rules"]["embedding"] = config["quantization"]["attention"] = (
        None
    )
    text = card(tmp_path, config=config)
    assert "`scores`" not in text
    assert "weights of `embeddings.word`" not in text
    assert "inputs of `layers.*`, `pooler` |" in text


def test_only_what_was_exported_is_named(tmp_path: Path) -> None:
    text = card(tmp_path, exported={"packed": None})
    assert "load_packed" not in text
    assert "packed/" not in text
    assert text.count("python -m qat_lightning.evaluate run=DIR model=onnx") == 1


@pytest.mark.parametrize("name", ["config.yaml", "metrics.json", "export/metrics.json"])
def test_a_missing_file_is_told(tmp_path: Path, name: str) -> None:
    card(tmp_path)
    (tmp_path / name).unlink()
    with pytest.raises(ValueError, match=name):
        write_card(tmp_path)


def test_without_overrides_the_command_is_left_out(tmp_path: Path) -> None:
    card(tmp_path)
    (tmp_path / "overrides.yaml").unlink()
    assert "The whole run" not in write_card(tmp_path).read_text(encoding="utf-8")


def test_the_hub_is_not_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: Any) -> None:
        raise AssertionError("a connection was opened")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    card(tmp_path)


def test_the_command_names_folders_by_their_last_component(tmp_path: Path) -> None:
    overrides = [
        "+experiment=ti_bert_base",
        "model.path='/home/me/my models/bert tuned'",
        "data.path=~/sets/rte",
        "data.text_columns=[a/b,c]",
        "+callbacks.x={path: /home/me/a b/c,other:[../up/there]}",
        "hydra.run.dir=/home/me/runs/1",
        "losses.scores.weight=0.5",
        "model.path=C:\\Users\\me\\bert",
        "~losses.output",
    ]
    card(tmp_path)
    (tmp_path / "overrides.yaml").write_text(yaml.safe_dump(overrides))
    text = write_card(tmp_path).read_text(encoding="utf-8")
    assert (
        "python -m qat_lightning +experiment=ti_bert_base 'model.path=bert tuned' data.path=rte 'data.text_columns=[a/b,c]'"
        " '+callbacks.x={path: c,other:[there]}' losses.scores.weight=0.5 model.path=bert '~losses.output'\n"
    ) in text
    assert "Folders of the machine that it ran on are named by their last component." in text


NAMES = st.lists(st.from_regex(r"hidden[a-z .\-]{0,6}q", fullmatch=True), min_size=1, max_size=4)


@settings(max_examples=40, deadline=None)
@given(above=NAMES, start=st.sampled_from(["/", "~/", "../", "C:\\", "//host/"]), quote=st.sampled_from(["", "'", '"']))
def test_no_folder_of_the_machine_is_named(
    tmp_path_factory: pytest.TempPathFactory, above: list[str], start: str, quote: str
) -> None:
    place = f"{start}{'/'.join(above)}/last"
    if "\\" in start:
        place = place.replace("/", "\\")
    config = composed(*TEXT)
    config["model"]["path"] = config["data"]["path"] = config["data"]["tokenizer"] = place
    overrides = (f"model.path={quote}{place}{quote}", f"data={{path:{quote}{place}{quote}}}", f"hydra.run.dir={place}")
    text = card(tmp_path_factory.mktemp("run"), overrides, config=config)
    assert "hidden" not in text.replace("hidden states", "").replace("| `hidden` |", "")
    assert "Ternary last for rte" in text
    assert "model.path=last" in text


def digits_run(folder: Path, *overrides: str) -> dict[str, Any]:
    small = [override for override in SMALL if override.split("=")[0] not in ("model", "data", "data.rows")]
    return run(composed(*small, "data.train_limit=24", "data.validation_limit=24", *overrides), folder, list(overrides))


def test_a_real_run_loads_as_its_card_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    results = digits_run(tmp_path / "run")
    text = write_card(tmp_path / "run").read_text(encoding="utf-8")
    assert f"| student | {results['student']:.4f} |" in text
    assert str(tmp_path) not in text
    assert metadata(tmp_path / "run")["model-index"][0]["results"][0]["metrics"][0]["value"] == results["student"]
    (block,) = python_blocks(text)
    monkeypatch.chdir(tmp_path / "run" / "export")
    Image.new("L", (8, 8), 7).save("picture.png")
    said: dict[str, Any] = {}
    exec(block, said)
    assert said["outputs"].logits.shape == (1, 10)


@pytest.mark.parametrize(
    "overrides",
    [
        ("model=tiny_gpt2", "data=random_tokens", "losses=token_scaled", "quantization=ternary_w2a16"),
        ("quantization=none", "teacher=none", "losses=task"),
    ],
)
def test_real_runs(tmp_path: Path, overrides: tuple[str, ...]) -> None:
    plain = ("intervention=none", "intervention_schedule=none", "stages.intervene.max_steps=0")
    results = small_run(tmp_path, *overrides, *plain)
    text = write_card(tmp_path).read_text(encoding="utf-8")
    assert str(tmp_path) not in text
    assert "None" not in text
    packed = json.loads((tmp_path / "export" / "metrics.json").read_text())["packed"]
    assert f"| {packed['ratio']:.2f}× |" in text
    assert results["student_hash"] in text


@pytest.mark.slow
def test_onnx_runs_as_the_card_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    digits_run(tmp_path, "export.onnx=true")
    blocks = python_blocks(write_card(tmp_path).read_text(encoding="utf-8"))
    monkeypatch.chdir(tmp_path / "export")
    Image.new("L", (8, 8), 7).save("picture.png")
    torch_says, onnx_says = ({}, {})
    exec(blocks[0], torch_says)
    exec(blocks[1], onnx_says)
    difference = torch_says["outputs"].logits.detach().numpy() - onnx_says["outputs"][0]
    assert abs(difference).max() < 1e-2
