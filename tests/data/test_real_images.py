"""CIFAR-10 and MNIST from the folder that QAT_SHARED names, or ../shared beside the checkout; minutes."""

import pytest

from tests.acceptance.test_real_data import whole_run
from tests.data.test_real import SHARED, counts, real

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (SHARED / "data" / "cifar10").is_dir(), reason=f"no images in {SHARED}"),
]


def test_cifar_has_its_official_rows():
    data = real("cifar10", "cifar10", "model=vit_small")
    assert counts(data.train_rows) == [5000] * 10
    assert counts(data.validation_rows) == [1000] * 10
    assert data.label_names[:3] == ["airplane", "automobile", "bird"]
    assert len(data.fingerprint()) == 64


def test_teacher_intervention_on_a_vit_and_cifar(tmp_path):
    results = whole_run(
        tmp_path, "model=vit_small", "data=cifar10", f"data.path={SHARED / 'data' / 'cifar10'}", "data.batch_size=64",
        "data.train_limit=768", "data.validation_limit=256", "stages.teacher.max_epochs=4", "stages.train.max_epochs=1",
        "stages.intervene.max_steps=4", "stages.intervene.validate_every=2", "optimizer.lr=1e-3",
        "trainer.enable_progress_bar=false", "trainer.accelerator=cpu", "threads=2",
    )  # fmt: skip
    assert (results["task"], results["metric"]) == ("cifar10", "accuracy")
    # chance is 0.1, and 256 images tell that to 0.019
    assert results["teacher"] > 0.16
    assert results["student"] > 0.14
    assert results["assisted"] is not None
    assert results["bytes"]["ratio"] > 10
