"""A sentence encoder from sentences without labels: training, exports, scores, and what a newcomer may leave wrong."""

import json
import shutil

import pytest
import torch
from pyarrow import parquet
from transformers import BertConfig, BertModel

from qat_lightning import load_packed
from qat_lightning.commands.predict import predict
from qat_lightning.config.schema import ConfigError
from qat_lightning.models.capture import SignalCapture
from tests.data.conftest import WORDS
from tests.training.runs import composed, save_tokenizer, small_run, without

SENTENCES = [f"{first} {second} {third}" for first in WORDS[5:9] for second in WORDS[8:12] for third in WORDS[10:]]
TEXT = without("data.rows")
HUMAN = "+data.metrics.human={_target_: qat_lightning.data.SimilaritySpearman, target: human}"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A sentence encoder with a tokenizer, sentences to train on, and pairs with scores."""
    place = tmp_path_factory.mktemp("sentences")
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    BertModel(
        BertConfig(vocab_size=len(WORDS), max_position_embeddings=16, initializer_range=0.2, **sizes)
    ).save_pretrained(place / "model")
    save_tokenizer(place / "model", *WORDS[5:])
    (place / "train.csv").write_text("\n".join(["sentence", *SENTENCES]) + "\n")
    pairs = [f"{a},{b},{n}" for n, (a, b) in enumerate(zip(SENTENCES[::5], SENTENCES[1::5], strict=False))]
    (place / "validation.csv").write_text("\n".join(["one,other,score", *pairs]) + "\n")
    return place


def words(folder, *more):
    return (
        "+experiment=embed_minilm", f"model.path={folder / 'model'}", "data=sentences", f"data.path={folder}",
        "data.max_length=16", "data.pair_columns=[one,other]", "data.score_column=score", HUMAN,
        "stages.teacher={max_steps:null,max_epochs:0}", "stages.train.max_steps=100",
        "stages.train.validate_every=20", "optimizer.lr=3e-3", *more,
    )  # fmt: skip


@pytest.fixture(scope="module")
def finished(folder, tmp_path_factory):
    place = tmp_path_factory.mktemp("run")
    return place, small_run(place, *words(folder, "export.onnx=true"), small=TEXT)


def test_student_learns_the_similarities(finished):
    _, results = finished
    assert results["teacher"] == pytest.approx(1.0)
    assert results["student"] > max(results["untrained"], 0.8)
    assert results["answers"] is None
    assert results["status"] == "finished"


def test_exports_keep_pooling_and_score(finished):
    place, results = finished
    for name in ("packed", "onnx"):
        assert results["export"][name]["score"] == pytest.approx(results["student"], abs=5e-3)
    assert results["export"]["packed"]["largest_difference"] == 0
    assert results["export"]["onnx"]["outputs"] == ["sentence_embedding"]
    modules = json.loads((place / "export/packed/modules.json").read_text())
    assert [module["type"].rpartition(".")[2] for module in modules] == ["Transformer", "Pooling", "Normalize"]
    assert "sentence_pooling" in (place / "export" / "README.md").read_text()


def test_embedding_does_not_depend_on_its_batch(finished):
    place, _ = finished
    model = load_packed(place / "export/packed")
    rows = torch.tensor([[2, 5, 7, 9, 3], [2, 16, 15, 14, 3]])
    alone = SignalCapture(model)({"input_ids": rows[:1], "attention_mask": torch.ones(1, 5)})["logits"][0]
    padded = torch.cat([rows, torch.zeros(2, 4, dtype=torch.int64)], 1)
    mask = (padded > 0).long()
    together = SignalCapture(model)({"input_ids": padded, "attention_mask": mask})["logits"][0]
    assert torch.allclose(alone[0], together[0], atol=1e-5)


def test_predictions_are_the_embeddings_of_the_packed_student(folder, finished, tmp_path):
    place, _ = finished
    config = composed(*words(folder), small=TEXT)
    predict(config, place, "packed", folder / "train.csv", tmp_path / "out.parquet")
    embeddings = torch.tensor(parquet.read_table(tmp_path / "out.parquet")["embedding"].to_pylist())
    assert embeddings.shape == (len(SENTENCES), 32)
    assert torch.allclose(embeddings.norm(dim=1), torch.ones(len(SENTENCES)))
    with pytest.raises(ConfigError, match="submission to GLUE"):
        predict(config, place, "packed", folder / "train.csv", tmp_path / "out.tsv")


def test_pooling_of_the_model_folder_is_used(folder, tmp_path):
    from qat_lightning.config.builders.models import build_model, load_data

    model = shutil.copytree(folder / "model", tmp_path / "model")
    (model / "1_Pooling").mkdir()
    (model / "1_Pooling" / "config.json").write_text('{"pooling_mode_cls_token": true}')
    config = composed(*words(folder, f"model.path={model}"), small=TEXT)
    data = load_data(config)
    pooling = build_model(config, data).sentence_pooling
    assert (pooling.pooling, pooling.normalize) == ("cls", False)
    (model / "1_Pooling" / "config.json").write_text('{"pooling_mode_max_tokens": true}')
    with pytest.raises(ConfigError, match=r"1_Pooling/config.json.*data.pooling"):
        load_data(config)


def test_teacher_stage_without_labels_is_refused(folder, tmp_path):
    with pytest.raises(ConfigError, match=r"stages\.teacher\.max_epochs=0"):
        small_run(tmp_path, *words(folder, "stages.teacher={max_steps:3,max_epochs:null}"), small=TEXT)
