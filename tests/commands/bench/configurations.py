"""Composed configurations of the bench, small enough for tests."""

from collections.abc import Iterator
from contextlib import contextmanager

from hydra import compose, initialize_config_dir

from qat_lightning.config.schema import CONF, BenchConfig, resolve

SMALL = (
    "model=tiny",
    "threads=1",
    "bench.shapes=[[1,8],[3,16]]",
    "bench.repeats=2",
    "bench.warmup=0",
    "bench.loads=1",
)

SMALL_STEPS = (
    "model=tiny",
    "model.architecture.num_hidden_layers=1",
    "threads=1",
    "bench.device=cpu",
    "bench.shape=[3,8]",
    "bench.repeats=2",
    "bench.warmup=0",
)

ONE_LAYER = ("model.architecture.num_hidden_layers=1",)
"""Half the time of an export."""


def composed(*overrides: str) -> BenchConfig:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return resolve(compose("bench", overrides=[*SMALL, *overrides]), BenchConfig)


@contextmanager
def of_steps(*overrides: str, bench: str = "training") -> Iterator[BenchConfig]:
    """A bench of steps; Hydra stays initialized, as under the command line, for the variants to be composed."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        yield resolve(compose("bench", overrides=[f"bench={bench}", *SMALL_STEPS, *overrides]), BenchConfig)
