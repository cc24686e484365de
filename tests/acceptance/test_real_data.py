"""Whole runs on real data; minutes. Text needs the folder named by QAT_SHARED, or ../shared beside the checkout."""

import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoTokenizer

from qat_lightning import load_packed
from qat_lightning.commands.evaluate import evaluate
from qat_lightning.commands.train.run import run
from qat_lightning.config.run_config import read_run
from qat_lightning.exporters.onnx.runtime import OnnxModel
from tests.training.runs import composed

SHARED = Path(os.environ.get("QAT_SHARED", Path(__file__).parents[2].parent / "shared"))
MODEL = SHARED / "models" / "all-MiniLM-L6-v2"
needs_shared = pytest.mark.skipif(not MODEL.is_dir(), reason=f"no {MODEL}")
SMALL = (
    "+experiment=ti_minilm_l6", f"model.path={MODEL}", "data.train_limit=256", "data.validation_limit=128",
    "stages.teacher.max_epochs=1", "stages.intervene.max_steps=6", "stages.intervene.validate_every=3",
    "stages.train.max_epochs=1", "trainer.enable_progress_bar=false", "threads=2",
)  # fmt: skip


def whole_run(folder: Path, *overrides: str) -> dict:
    config = composed(*overrides, small=())
    return run(config, folder, list(overrides))


@pytest.mark.slow
def test_quickstart_is_an_honest_demonstration(tmp_path):
    results = whole_run(tmp_path, "+experiment=quickstart", "trainer.enable_progress_bar=false")
    assert results["teacher"] >= 0.95
    assert results["untrained"] <= results["teacher"] - 0.05
    assert results["student"] >= results["teacher"] - 0.02
    assert results["bytes"]["ratio"] > 10
    config = read_run(tmp_path)
    for model in ("student", "packed", "onnx"):
        assert evaluate(config, tmp_path, model)["scores"]["accuracy"] == pytest.approx(results["student"], abs=1e-6)


@pytest.mark.slow
@needs_shared
def test_what_is_exported_of_a_real_encoder_answers_as_the_student_on_the_whole_dev_set(tmp_path):
    data = ("data=sst2", f"data.path={SHARED / 'data' / 'glue' / 'sst2'}", "data.validation_limit=null")
    results = whole_run(tmp_path, *SMALL, *data)
    packed, onnx = results["export"]["packed"], results["export"]["onnx"]
    assert (packed["rows"], packed["agreement"], packed["largest_difference"]) == (872, 1, 0)
    assert packed["score"] == results["student"]
    assert packed["ratio"] > 13.5
    assert onnx["agreement"] > 0.99
    assert abs(onnx["score"] - results["student"]) <= 0.005
    assert onnx["ratio"] > 13.4
    texts = ["a gripping and funny film", "a waste of two hours"]
    inputs = AutoTokenizer.from_pretrained(tmp_path / "export" / "packed")(texts, padding=True, return_tensors="pt")
    with torch.no_grad():
        logits = load_packed(tmp_path / "export" / "packed")(**inputs).logits
    assert logits.shape == (2, 2)
    answered = OnnxModel(tmp_path / "export" / "model.onnx")(**inputs)["logits"]
    torch.testing.assert_close(answered, logits, atol=0.1, rtol=0)


MINILM = (
    "model=minilm_l6", f"model.path={MODEL}", "data.train_limit=64", "data.validation_limit=48", "data.batch_size=16",
    "stages.teacher.max_epochs=1", "stages.train.max_epochs=1", "trainer.enable_progress_bar=false", "threads=2",
)  # fmt: skip
DATA = SHARED / "data"
GLUE = {task: (f"data={task}", f"data.path={DATA / 'glue' / task}") for task in ("cola", "rte")}
SICK = (
    "data=text", f"data.path={DATA / 'sick'}", "data.text_columns=[sentence1,sentence2]", "data.num_labels=3",
)  # fmt: skip
SQUAD = ("data=squad", f"data.path={DATA / 'small' / 'squad_from_dev'}", "data.max_length=192", "data.stride=64")
HALF = "validation_cs224n_half"
SQUAD_2 = (
    "data=squad_v2", f"data.path={DATA / 'squad_v2'}", f"data.train_split={HALF}", f"data.validation_split={HALF}",
    "data.max_length=192", "data.stride=64",
)  # fmt: skip
SHORT_TI = ("stages.intervene.max_steps=2", "stages.intervene.validate_every=1")
ON_TEXT = {
    "kdqat_bert_base": (*GLUE["cola"], "losses=unified"),
    "kdqat_bert_large": (*GLUE["rte"], "losses=attention_output"),
    "kdlsq_bert_base": (*SICK, "losses=kdlsq_task", "quantization=lsq_w2a8", "quantization.weight.bits=4"),
    "lsq_bert_base": GLUE["rte"],
    "ternarybert_base": GLUE["cola"],
    "ti_bert_base": (*SICK, *SHORT_TI),
    "ti_bert_large": (*GLUE["rte"], *SHORT_TI),
    "ti_bert_base_6l": (*GLUE["cola"], *SHORT_TI, "model.student_layers=[1,3,5]"),
    "ti_tinybert_4l": (*GLUE["cola"], *SHORT_TI, "model.student_layers=[0,1,2,5]", "teacher=none", "losses=task",
                       "intervention=none", "intervention_schedule=none"),
    "ti_tinybert_6l": (*GLUE["cola"], *SHORT_TI),
}  # fmt: skip
"""Each experiment's method on MiniLM, the only pretrained encoder at hand, and a real task."""


@pytest.mark.slow
@needs_shared
@pytest.mark.parametrize("experiment", ON_TEXT)
def test_experiment_on_real_text(tmp_path, experiment):
    results = whole_run(tmp_path, f"+experiment={experiment}", *MINILM, *ON_TEXT[experiment])
    assert results["status"] == "finished"
    assert results["bytes"]["ratio"] > (7 if "weight.bits=4" in str(ON_TEXT[experiment]) else 12)


@pytest.mark.slow
@needs_shared
@pytest.mark.parametrize("data", [SQUAD, SQUAD_2], ids=["1.1", "2.0"])
def test_the_same_learned_steps_answer_questions(tmp_path, data):
    results = whole_run(tmp_path, "+experiment=kdlsq_bert_base", "losses=kdlsq_squad", *MINILM, *data)
    assert (results["metric"], results["bits"]["attention.query"]) == ("f1", 2)
    assert 0 <= results["student"] <= 1
    tensors = load_file(tmp_path / "checkpoints" / "train.safetensors")
    learned = [value for name, value in tensors.items() if name.endswith(".step_size")]
    # six layers of six matrices with their inputs and four operands; two tables, and no pooler
    assert len(learned) == 6 * (6 * 2 + 4) + 2
    assert all(value.isfinite().all() and (value > 0).all() for value in learned)


@pytest.mark.slow
@needs_shared
def test_token_scaled_logits_on_wikitext(tmp_path):
    data = ("data=wikitext2", f"data.path={DATA / 'wikitext2'}", "data.name=null", "data.max_length=128")
    results = whole_run(
        tmp_path, "+experiment=tsld_llama", f"model.path={SHARED / 'models' / 'stories260K'}", *data,
        "data.train_limit=256", "data.validation_limit=64", "stages.teacher.max_epochs=1", "stages.train.max_epochs=1",
        "optimizer.lr=5e-4", "trainer.enable_progress_bar=false", "threads=2",
    )  # fmt: skip
    assert (results["metric"], results["higher_is_better"]) == ("perplexity", False)
    assert results["teacher"] < results["student"] < results["untrained"]


@pytest.mark.slow
@needs_shared
@pytest.mark.parametrize(("task", "metric"), [("sst2", "accuracy"), ("rte", "accuracy"), ("cola", "matthews")])
def test_glue_task_from_local_files(tmp_path, task, metric):
    results = whole_run(tmp_path, *SMALL, f"data={task}", f"data.path={SHARED / 'data' / 'glue' / task}")
    assert (results["task"], results["metric"]) == (task, metric)
    assert results["bits"]["embeddings.word"] == 2
    assert results["bytes"]["ratio"] == pytest.approx(13.6, abs=0.1)


@pytest.mark.slow
@needs_shared
def test_regression_on_a_set_with_columns_of_its_own(tmp_path):
    columns = ("data=text_regression", f"data.path={SHARED / 'data' / 'sick'}", "data.label_column=relatedness_score")
    names = ["sentence1", "sentence2"]
    results = whole_run(tmp_path, *SMALL, *columns, f"data.text_columns=[{','.join(names)}]")
    assert results["metric"] == "pearson"
    assert -1 <= results["student"] <= 1


@pytest.mark.slow
@needs_shared
def test_classes_by_number_on_any_set(tmp_path):
    columns = ("data=text", f"data.path={SHARED / 'data' / 'trec'}", "data.validation_split=test", "data.num_labels=6")
    results = whole_run(tmp_path, *SMALL, *columns, "data.text_columns=[text]", "data.label_column=label")
    assert results["metric"] == "accuracy"
    assert results["status"] == "finished"
