import pytest
import torch

from qat_lightning.commands.bench.shapes import check_shapes, label, random_batch, shapes_for
from tests.tiny_models import FAMILIES, IMAGE, IMAGE_FAMILIES, PAD, POSITIONS, TEXT_FAMILIES, VOCABULARY, tiny_model


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ([], "must be a list"),
        ("1x128", "must be a list"),
        (None, "must be a list"),
        ([1, 128], "holds 1: "),
        ([[]], r"holds \[\]"),
        ([[1, 8], [1, 0]], r"holds \[1, 0\]"),
        ([[-1, 8]], r"holds \[-1, 8\]"),
        ([[1, 2, 3]], r"holds \[1, 2, 3\]"),
        ([[1, 8.0]], r"holds \[1, 8\.0\]"),
        ([[True, 8]], r"holds \[True, 8\]"),
        ([["1", "8"]], r"holds \['1', '8'\]"),
    ],
)
def test_what_is_no_shape_is_told(given, told):
    with pytest.raises(ValueError, match=f"bench.shapes.*{told}.*rows"):
        check_shapes(given)


def test_shapes_of_texts_stay_in_order_each_once():
    check_shapes([[2, 8], [1, 4]])
    assert shapes_for(tiny_model("bert"), [[2, 8], [1, 4], [2, 8]]) == [(2, 8), (1, 4)]


@pytest.mark.parametrize("family", IMAGE_FAMILIES)
def test_images_have_rows_alone(family):
    assert shapes_for(tiny_model(family), [[1, 32], [8, 128], [1], [8, 999]]) == [(1,), (8,)]


def test_a_text_without_tokens_is_refused():
    with pytest.raises(ValueError, match=r"holds \[4\], .*\[\[4,128\]\]"):
        shapes_for(tiny_model("bert"), [[1, 8], [4]])


@pytest.mark.parametrize("family", TEXT_FAMILIES)
def test_texts_may_be_as_long_as_the_model_reads(family):
    """RoBERTa's positions begin behind the number of its padding."""
    longest = POSITIONS - (PAD + 1) * (family == "roberta")
    model = tiny_model(family)
    assert shapes_for(model, [[2, longest]]) == [(2, longest)]
    with pytest.raises(ValueError, match=rf"5×{longest + 1}, too long for this {family} model"):
        shapes_for(model, [[5, longest + 1], [1, 4]])


def test_labels():
    assert [label(shape) for shape in ((8, 128), (1,))] == ["8×128", "1"]


@pytest.mark.parametrize("family", FAMILIES)
def test_batches_are_full_and_the_same_every_time(family):
    model = tiny_model(family)
    shape = (50,) if family in IMAGE_FAMILIES else (50, 20)
    batch, again, other = (random_batch(model, shape, seed) for seed in (1, 1, 2))
    first = next(iter(batch))
    assert torch.equal(batch[first], again[first])
    assert not torch.equal(batch[first], other[first])
    if family in IMAGE_FAMILIES:
        assert {name: value.shape for name, value in batch.items()} == {"pixel_values": (50, 3, IMAGE, IMAGE)}
    else:
        assert batch["input_ids"].shape == batch["attention_mask"].shape == shape
        assert batch["attention_mask"].all()
        assert batch["input_ids"].unique().tolist() == list(range(PAD + 1, VOCABULARY)), "1,000 draws of 78 tokens"
