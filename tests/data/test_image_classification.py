"""The digits, and any set of image files: pixels by hand, every way to read them, every refusal."""

import io

import numpy
import pytest
import torch
from datasets import ClassLabel, Dataset, Features, Image, Value
from PIL import Image as Pillow
from torch import nn
from torchmetrics.classification import MulticlassAccuracy
from transformers import AutoImageProcessor

from qat_lightning.config.instantiate import create
from qat_lightning.data.augmentation import Crop, Flip
from qat_lightning.data.image_classification import Digits, ImageClassificationData
from tests.training.runs import resolved as composed

COMMON = {"batch_size": 2, "metrics": {"a": MulticlassAccuracy(2)}, "metric": "a"}
RED, GREEN, BLUE, GREY = (255, 0, 0), (0, 255, 0), (0, 0, 255), (102, 102, 102)


def digits(**changed):
    return Digits(**COMMON | {"batch_size": 32, "num_labels": 10} | changed)


def images(folder, **changed):
    """Two pixels high and wide, the numbers left as they are: pixel_values are pixels / 255."""
    return ImageClassificationData(
        **COMMON | {"path": str(folder), "num_labels": 2, "size": 2, "mean": [0.0], "std": [1.0]} | changed
    )


def file(pixels, kind="PNG", **saving):
    """The bytes of an image file of these rows of pixels."""
    written = io.BytesIO()
    Pillow.fromarray(numpy.array(pixels, dtype=numpy.uint8)).save(written, kind, **saving)
    return written.getvalue()


COLORS = [file([[RED, GREEN], [BLUE, GREY]]), file([[GREY, GREY], [GREY, RED]])]


def parquet(folder, encoded=COLORS, labels=(0, 1), features=None, **renamed):
    """The same rows for both splits."""
    columns = {renamed.get("image", "image"): list(encoded), renamed.get("label", "label"): list(labels)}
    for split in ("train", "validation"):
        Dataset.from_dict(columns, features).to_parquet(str(folder / f"{split}.parquet"))
    return folder


def test_pixels_keep_their_place_and_are_scaled_by_channel(tmp_path):
    mean, std = [0.1, 0.2, 0.3], [0.5, 0.25, 2.0]
    batch = images(parquet(tmp_path), mean=mean, std=std).example_batch(2)
    pixels = numpy.array([[[RED, GREEN], [BLUE, GREY]], [[GREY, GREY], [GREY, RED]]], dtype=numpy.float64)
    expected = ((pixels / 255 - mean) / std).transpose(0, 3, 1, 2)
    assert batch["pixel_values"].dtype == torch.float32
    assert batch["pixel_values"].is_contiguous()
    numpy.testing.assert_allclose(batch["pixel_values"], expected, rtol=1e-6, atol=1e-6)
    assert batch["labels"].tolist() == [0, 1]
    assert batch["labels"].dtype == torch.int64


@pytest.mark.parametrize(
    ("given", "expected", "notes"),
    [
        ({}, (1 - 0.4) / 0.2, 0),
        ({"mean": [0.4, 0.4, 0.4]}, (1 - 0.4) / 0.2, 0),
        ({"mean": [0.5]}, (1 - 0.5) / 0.2, 1),
        ({"mean": [0.5], "std": [0.5]}, (1 - 0.5) / 0.5, 2),
    ],
)
def test_mean_and_deviation_of_the_model_are_used_unless_others_are_given(tmp_path, given, expected, notes):
    data = ImageClassificationData(**COMMON, path=str(parquet(tmp_path)), num_labels=2, size=2, **given)
    data.follow_statistics([0.4], [0.2, 0.2, 0.2])
    assert data.example_batch(1)["pixel_values"][0, 0, 0, 0].item() == pytest.approx(expected)  # of a red of 255
    assert len([note for note in data.notes if "is not the model's" in note]) == notes


def test_image_is_turned_upright_by_its_orientation_tag(tmp_path):
    exif = Pillow.Exif()
    exif[0x0112] = 6  # "the first row is the right side, the first column the top" (TIFF 6.0, Orientation)
    stored = numpy.zeros((16, 16), dtype=numpy.uint8)
    stored[:8] = 255
    parquet(tmp_path, [file(stored, "JPEG", exif=exif)] * 2)
    pixels = images(tmp_path, size=16, channels=1).example_batch(1)["pixel_values"][0, 0]
    assert pixels[:, 8:].mean() > 0.95
    assert pixels[:, :8].mean() < 0.05


@pytest.mark.parametrize("kind", ["image", "struct", "bytes"])
def test_images_are_read_from_each_kind_of_column(tmp_path, kind):
    struct = {"bytes": Value("binary"), "path": Value("string")}
    features = Features({
        "image": {"image": Image(), "struct": struct, "bytes": Value("binary")}[kind],
        "label": ClassLabel(names=["cat", "dog"]),
    })  # fmt: skip
    encoded = COLORS if kind == "bytes" else [{"bytes": each, "path": None} for each in COLORS]
    data = images(parquet(tmp_path, encoded, features=features))
    batch = data.example_batch(2)
    assert batch["pixel_values"][0, :, 0, 1].tolist() == [0, 1, 0]
    assert data.label_names == ["cat", "dog"]


def test_a_folder_for_each_class_of_each_split(tmp_path):
    for split, place, color in (
        ("train", "dog/1.png", RED), ("train", "dog/far/away/2.JFIF", RED), ("train", "cat/1.png", GREEN),
        ("train", "__MACOSX/1.png", BLUE), ("train", "cat/@eaDir/1.png", BLUE),
        ("validation", "cat/9.png", BLUE), ("validation", "dog/3.webp", RED),
    ):  # fmt: skip
        path = tmp_path / split / place
        path.parent.mkdir(parents=True, exist_ok=True)
        Pillow.new("RGB", (2, 2), color).save(path)
    (tmp_path / "train" / "cat" / "notes.txt").write_text("not an image")
    (tmp_path / "train" / ".cache").mkdir()
    data = images(tmp_path)
    batch = data.example_batch(9)
    assert data.label_names == ["cat", "dog"]
    assert [row["labels"] for row in data.train_rows] == [0, 1, 1]
    assert batch["labels"].tolist() == [0, 1]
    assert batch["pixel_values"][:, :, 0, 0].round().tolist() == [[0, 0, 1], [1, 0, 0]]


@pytest.mark.parametrize(
    "changed",
    [
        {"size": 3}, {"channels": 1}, {"mean": [0.5]}, {"std": [0.5]}, {"validation_limit": 1},
        {"augmentation": {"flip": Flip()}}, {"augmentation": {"flip": Flip(0.25)}}, {"augmentation": {"crop": Crop()}},
        {"augmentation": {"crop": Crop(), "flip": Flip()}}, {"augmentation": {"flip": Flip(), "crop": Crop()}},
    ],
    ids=str,
)  # fmt: skip
def test_fingerprint_changes_with_what_changes_pixels(tmp_path, changed):
    before = images(parquet(tmp_path)).fingerprint()
    assert images(tmp_path, **changed).fingerprint() != before
    assert images(tmp_path, **changed).fingerprint() == images(tmp_path, **changed).fingerprint()


@pytest.mark.parametrize(
    ("written", "changed", "words"),
    [
        ({}, {"image_column": "img"}, r"train split .* no column 'img' .*image_column=…"),
        ({}, {"label_column": "y"}, r"train split .* no column 'y' .*label_column=…"),
        ({}, {"image_column": "label"}, r"row 0 of the train split has no image file in column 'label'"),
        ({"encoded": [COLORS[0], b"no"]}, {}, r"row 1 of the train split has no image .*image_column=…"),
        ({"encoded": [COLORS[0], None]}, {}, r"row 1 of the train split has no image file"),
        ({"labels": [0, 2]}, {}, r"row 1 of the train split has label 2, outside 0…1"),
        ({}, {"size": 0}, r"size=0 must be 1 or more"),
        ({}, {"channels": 4}, r"channels=4 must be 3 for RGB, or 1 for grey"),
        ({}, {"mean": [0.5, 0.5]}, r"mean=\[0\.5, 0\.5\] must be a list of one number, or of 3"),
        ({}, {"channels": 1, "std": [1.0] * 3}, r"std=.* of 1,"),
        ({}, {"std": [0.0]}, r"std=\[0\.0\] must be above 0"),
        ({}, {"augmentation": {"flip": max}}, r"augmentation=.*'flip'.* is not a torch module"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_errors_name_the_argument_before_the_run(tmp_path, written, changed, words):
    parquet(tmp_path, **written)
    with pytest.raises(ValueError, match=words) as error:
        images(tmp_path, **changed).fingerprint()
    assert "\n" not in str(error.value)


def test_a_damaged_file_of_a_folder_is_named_by_its_path(tmp_path):
    for place in ("train/a", "train/b", "validation/a", "validation/b"):
        (tmp_path / place).mkdir(parents=True)
        (tmp_path / place / "1.png").write_bytes(COLORS[0][:-30])
    with pytest.raises(
        ValueError, match=r"row 0 of the validation split \('.*validation/a/1\.png'\) .* cannot be read"
    ):
        images(tmp_path).example_batch(1)


def test_an_image_of_sixteen_bits_is_refused_as_it_would_be_cut_to_white(tmp_path):
    written = io.BytesIO()
    Pillow.fromarray(numpy.full((2, 2), 1000, dtype=numpy.uint16)).save(written, "PNG")
    parquet(tmp_path, [written.getvalue()] * 2)
    with pytest.raises(ValueError, match=r"cannot be read \(pixels of more than 8 bits, convert it to 8\)"):
        images(tmp_path).example_batch(1)


def test_an_image_without_a_label_is_left_out_and_rows_keep_their_place(tmp_path):
    parquet(tmp_path, [COLORS[0], b"no image", COLORS[1]], labels=[0, -1, 1])
    data = images(tmp_path)
    assert data.example_batch(9)["labels"].tolist() == [0, 1]
    assert [row["row"] for row in data.train_rows] == [0, 2]


def test_augmentation_that_changes_the_shape_is_refused(tmp_path):
    data = images(parquet(tmp_path), augmentation={"pool": nn.AvgPool2d(2)})
    with pytest.raises(ValueError, match=r"augmentation\.pool turned \(2, 3, 2, 2\) into \(2, 3, 1, 1\)"):
        data.augment(data.example_batch(2), 0)


@pytest.mark.parametrize("choice", ["none", "crop", "crop_flip", "trivial_augment"])
def test_a_configured_augmentation_is_made_and_runs(tmp_path, choice):
    chosen = ("data=images", f"data.path={parquet(tmp_path)}", "data.num_labels=2", "model=tiny_vit")
    data = create(composed(*chosen, f"data/augmentation={choice}").data, "data")
    batch = data.example_batch(2)
    assert batch["pixel_values"].shape == data.augment(batch, 0)["pixel_values"].shape == (2, 3, 16, 16)
    assert bool(data.augmentation) == (choice != "none")


@pytest.mark.parametrize("size", [2, 5], ids=["as it is", "resized"])
@pytest.mark.parametrize("kept", ["RGB", "L"])
def test_the_image_processor_gives_the_pixels_of_the_data_module(tmp_path, size, kept):
    scales = {"mean": [0.1, 0.2, 0.3], "std": [0.5, 0.6, 0.7], "size": size}
    encoded = [file(numpy.arange(27).reshape(3, 3, 3) * 9 if kept == "RGB" else [[0, 90], [180, 250]])] * 2
    data = images(parquet(tmp_path, encoded), **scales)
    data.processor.save_pretrained(tmp_path / "kept")
    processor = AutoImageProcessor.from_pretrained(tmp_path / "kept", use_fast=False)
    made = processor(Pillow.open(io.BytesIO(encoded[0])), return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(made[0], data.example_batch(1)["pixel_values"][0], atol=1e-6, rtol=1e-6)
