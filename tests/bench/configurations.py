"""Composed configurations of the bench, small enough for tests."""

from typing import Any

from hydra import compose, initialize_config_dir

from qat_lightning.config import CONF, resolve

SMALL = (
    "model=tiny",
    "threads=1",
    "bench.shapes=[[1,8],[3,16]]",
    "bench.repeats=2",
    "bench.warmup=0",
    "bench.loads=1",
)

ONE_LAYER = ("model.architecture.num_hidden_layers=1",)
"""Half the time of an export."""


def composed(*overrides: str) -> dict[str, Any]:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return resolve(compose("bench", overrides=[*SMALL, *overrides]))
