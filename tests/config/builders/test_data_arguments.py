"""What the model's own files say of its data holds: the order of its classes, the scale of its pixels."""

import json

import numpy
import pytest
import torch
from datasets import ClassLabel, Dataset, Features, Value
from PIL import Image
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    BertTokenizerFast,
    ViTConfig,
    ViTForImageClassification,
)

from qat_lightning.config.builders.models import build_data
from qat_lightning.config.schema import ConfigError
from tests.training.runs import composed

SIZES = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
MNLI = ["CONTRADICTION", "NEUTRAL", "ENTAILMENT"]
SNLI = ["entailment", "neutral", "contradiction"]
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *SNLI]


def loaded(*overrides):
    config = composed(*overrides, "trainer.accelerator=cpu", small=())
    return config, build_data(config)


def named(names):
    """A configuration's two maps."""
    return {
        "id2label": dict(enumerate(names)),
        "label2id": {name: number for number, name in enumerate(names)},
    }


@pytest.fixture
def nli(tmp_path):
    """A BERT whose classes are in MNLI's order, and data in SNLI's order."""
    model = BertForSequenceClassification(BertConfig(vocab_size=len(WORDS), **SIZES, **named(MNLI)))
    model.save_pretrained(tmp_path / "model")
    BertTokenizerFast(vocab={word: number for number, word in enumerate(WORDS)}).save_pretrained(tmp_path / "model")

    def write(labels, names=None):
        features = Features({"text": Value("string"), "label": ClassLabel(names=names)}) if names else None
        for split in ("train", "validation"):
            Dataset.from_dict({"text": SNLI, "label": labels}, features).to_parquet(tmp_path / f"{split}.parquet")
        return ["model=bert_base", f"model.path={tmp_path / 'model'}", "data=text", f"data.path={tmp_path}",
                "data.text_columns=[text]", "data.num_labels=3", "data.max_length=8"]  # fmt: skip

    return write


@pytest.mark.parametrize(("labels", "names"), [(SNLI, None), ([0, 1, 2], SNLI)], ids=["words", "ClassLabel"])
def test_the_data_follow_the_models_order(nli, labels, names):
    _, data = loaded(*nli(labels, names))
    assert data.example_batch(3)["labels"].tolist() == [2, 1, 0]
    assert data.label_names == MNLI


def test_the_users_order_comes_before_the_models(nli):
    _, data = loaded(*nli(SNLI), "data.label_names=[neutral,entailment,contradiction]")
    assert data.example_batch(3)["labels"].tolist() == [1, 0, 2]


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({"id2label": {"0": "LABEL_0", "1": "LABEL_1", "2": "LABEL_2"}}, [2, 1, 0]),
        ({"label2id": None}, [2, 1, 0]),
        ({"id2label": None, "label2id": None, "num_labels": 3}, [1, 2, 0]),  # sorted
    ],
)
def test_one_of_the_two_maps_is_enough(nli, tmp_path, changed, expected):
    place = tmp_path / "model" / "config.json"
    overrides = nli(SNLI)
    given = json.loads(place.read_text()) | changed
    place.write_text(json.dumps({name: value for name, value in given.items() if value is not None}))
    assert loaded(*overrides)[1].example_batch(3)["labels"].tolist() == expected


def test_two_maps_that_contradict_each_other_are_refused(nli, tmp_path):
    place = tmp_path / "model" / "config.json"
    overrides = nli(SNLI)
    reversed_map = {name: 2 - number for number, name in enumerate(MNLI)}
    place.write_text(json.dumps(json.loads(place.read_text()) | {"label2id": reversed_map}))
    with pytest.raises(ConfigError, match=r"label2id gives 'CONTRADICTION' the number 2, .* to 'ENTAILMENT'"):
        loaded(*overrides)


@pytest.fixture
def vit(tmp_path):
    """A ViT whose classes are dog and cat, images of both, and the overrides that read them."""
    config = ViTConfig(**SIZES, image_size=4, patch_size=2, **named(["dog", "cat"]))
    ViTForImageClassification(config).save_pretrained(tmp_path / "model")
    for number, place in enumerate(("train/cat", "train/dog", "validation/cat", "validation/dog")):
        (tmp_path / place).mkdir(parents=True)
        Image.fromarray(numpy.full((4, 4, 3), 51 * number, dtype=numpy.uint8)).save(tmp_path / place / "1.png")
    return ["model=vit_base", f"model.path={tmp_path / 'model'}", "data=images", f"data.path={tmp_path}",
            "data.num_labels=2", "data.size=4"]  # fmt: skip


def processor(tmp_path, given):
    (tmp_path / "model" / "preprocessor_config.json").write_text(given if isinstance(given, str) else json.dumps(given))


def test_folders_of_images_take_the_numbers_of_the_models_classes(vit):
    _, data = loaded(*vit)
    assert data.example_batch(2)["labels"].tolist() == [1, 0]
    assert data.label_names == ["dog", "cat"]


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (None, (102 / 255 - 0.5) / 0.5),
        ({"image_mean": [0.4, 0.3, 0.2], "image_std": [0.2, 0.5, 0.5]}, 0.0),
        ({"image_mean": 0.2, "image_std": 0.1}, 2.0),
        ({"do_normalize": False, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}, 0.4),
        ({"do_normalize": False, "do_rescale": False}, 102.0),
        ({"rescale_factor": 1 / 127.5, "image_mean": [1.0] * 3, "image_std": [1.0] * 3}, 102 / 127.5 - 1),
        ({"do_normalize": False, "rescale_factor": 1 / 51}, 2.0),
        (
            {"image_mean": [0.2], "image_std": [0.1], "do_rescale": None, "do_normalize": None, "rescale_factor": None},
            2.0,
        ),
    ],
)
def test_pixels_are_scaled_as_the_models_processor_scales_them(vit, tmp_path, given, expected):
    if given is not None:
        processor(tmp_path, given)
    _, data = loaded(*vit)
    pixels = data.example_batch(1)["pixel_values"]
    assert pixels[0, 0, 0, 0].item() == pytest.approx(expected, abs=1e-5)
    image = Image.open(tmp_path / "validation" / "cat" / "1.png")
    exported = data.processor(image, return_tensors="pt")["pixel_values"]
    assert torch.allclose(exported, pixels, atol=1e-4)


def test_a_processor_within_another_files_comes_first(vit, tmp_path):
    """As transformers writes the image processor of a processor with several parts."""
    processor(tmp_path, {"image_mean": [0.5], "image_std": [0.5]})
    nested = {"image_processor": {"image_mean": [0.2], "image_std": [0.1]}}
    (tmp_path / "model" / "processor_config.json").write_text(json.dumps(nested))
    _, data = loaded(*vit)
    assert data.example_batch(1)["pixel_values"][0, 0, 0, 0].item() == pytest.approx(2.0, abs=1e-5)


def test_a_given_mean_that_is_not_the_models_is_said(vit, tmp_path):
    processor(tmp_path, {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]})
    _, data = loaded(*vit, "data.mean=[0.5]")
    data.load()
    assert "mean=[0.5] is not the model's [0.485, 0.456, 0.406]" in data.notes[0]


@pytest.mark.parametrize(
    "given",
    ["{", "[]", {"image_mean": ["a"], "image_std": [1]}, {"image_mean": [0.5], "image_std": [0.0]},
     {"do_normalize": False, "rescale_factor": 0}, {"image_mean": [123.7, 116.3, 103.5], "image_std": [58.4, 57.1, 57.4]}],
)  # fmt: skip
def test_a_damaged_processor_is_named(vit, tmp_path, given):
    processor(tmp_path, given)
    with pytest.raises(ConfigError, match=r"preprocessor_config\.json .*cannot be (used|read as JSON)") as error:
        loaded(*vit)
    assert "\n" not in str(error.value)
