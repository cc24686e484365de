"""Small configurations of the benchmarks."""

from collections.abc import Iterator
from contextlib import contextmanager

from hydra import compose, initialize_config_dir

from qat_lightning.config.schema import CONF, BenchConfig, resolve

ONE_LAYER = ("model=tiny", "++model.architecture.num_hidden_layers=1", "threads=1", "bench.repeats=2", "bench.warmup=0")
INFERENCE = (*ONE_LAYER, "bench.shapes=[[1,8],[3,16]]", "bench.loads=1")
STEPS = (*ONE_LAYER, "bench.device=cpu", "bench.shape=[3,8]")


@contextmanager
def composed(bench: str, *overrides: str) -> Iterator[BenchConfig]:
    """Yield a configuration while Hydra is initialized, as under the command line, so that variants can be composed."""
    small = INFERENCE if bench == "inference" else STEPS
    with initialize_config_dir(str(CONF), version_base="1.3"):
        yield resolve(compose("bench", overrides=[f"bench={bench}", *small, *overrides]), BenchConfig)
