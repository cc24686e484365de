"""The command line: Hydra composes, the schema checks, the run runs; a mistake ends in one message and exit code 1."""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from qat_lightning.commands.errors import ASKED, FULL, mistakes_in_words
from qat_lightning.commands.multirun import all_jobs, one_job
from qat_lightning.commands.terminal import ended_by_signals, words_may_be_lost
from qat_lightning.config.allowed_targets import allowing, split_allowed
from qat_lightning.config.command_line import MULTIRUN, check_words, is_override, quote_paths
from qat_lightning.config.hydra_settings import check_flags, guarded_hydra
from qat_lightning.config.run_config import in_one_process, located, needed_places, read_run
from qat_lightning.config.schema import CONF, BenchConfig, ConfigError, RunConfig, resolve
from qat_lightning.config.validation import check
from qat_lightning.io.documents import DocumentError, read_yaml
from qat_lightning.io.screen import clean_streams

FREE = ("export.", "threads=", "data.path=", "data.tokenizer=", "trainer.accelerator=", "trainer.enable_progress_bar=")
"""What can be changed in a finished run without making another one of it."""
EVALUATE_HELP = """python -m qat_lightning.evaluate run=DIR [model=student|teacher|packed|onnx] [key=value …]

Score a finished run on its validation rows again: the student (as trained), its teacher, or what was exported
(the ONNX file on the CPU, in float32).
Overrides are those of the run: data.path=FOLDER, data.validation_split=test, data.validation_limit=500,
trainer.accelerator=cpu, threads=2 … Of the data only that split is read. The figures go to DIR/evaluation/<model>.json as
well; for other rows than the run's own to DIR/evaluation/<model>-<split>.json, with nothing to compare them with."""
EXPORT_HELP = """python -m qat_lightning.export run=DIR [key=value …]

Write DIR/export anew from a finished run: packed folder, ONNX file, model card; each is checked against the student.
export.onnx=false, export.packed=false leave one out; export.unquantized_dtype=float16 and
export.ternary_encoding=base3 make the folder smaller;
export.rows=1000 validation rows are compared."""

os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # torch's notes on DDP from C++, which no filter reaches


@hydra.main(version_base="1.3", config_path=str(CONF), config_name="config")
def _train(config: DictConfig) -> float:
    if HydraConfig.get().mode == RunMode.MULTIRUN:
        return one_job(lambda: _run(config))
    with mistakes_in_words():
        return _run(config)


def _run(config: DictConfig) -> float:
    """The student's score, NaN where it is undefined."""
    made = checked(config)
    # after the checks: what follows takes seconds to import
    from qat_lightning.data.hub import require_hub

    require_hub(needed_places(made))
    from qat_lightning.commands.train.run import run
    from qat_lightning.training.process.watchdog import Watchdog

    with Watchdog():
        folder = Path(HydraConfig.get().runtime.output_dir)
        score = run(made, folder, list(HydraConfig.get().overrides.task))["student"]
        return math.nan if score is None else float(score)


def checked(config: DictConfig) -> RunConfig:
    """What Hydra has composed, resolved, and free of all mistakes that can be seen before data and models are loaded.

    Raises:
        ConfigError, OmegaConfBaseException: what `told` tells.
    """
    made = resolve(config)
    check(made)
    return made


def train() -> None:
    """`python -m qat_lightning` and `qat-train`; without arguments they print the help."""
    sys.argv[1:] = sys.argv[1:] or ["--help"]
    _in_words(_train)


def _in_words(main: Callable[[], None]) -> None:
    """Call one of Hydra's, and tell what it refuses."""
    words = quote_paths(sys.argv[1:])
    sys.argv[1:] = sorted(words, key=lambda word: word not in MULTIRUN)  # Hydra wants flags before overrides
    with _program():
        check_words(sys.argv[1:])
        check_flags(sys.argv[1:])
        before = {name: os.environ.get(name) for name in (ASKED, FULL)}
        os.environ[ASKED] = before[ASKED] or before[FULL] or "0"
        os.environ[FULL] = "1"  # let Hydra pass errors on instead of printing them
        try:
            with all_jobs(), guarded_hydra():
                main()
        finally:
            os.environ.update({name: value or "0" for name, value in before.items()})
            if before[ASKED] is None:
                del os.environ[ASKED]


@contextmanager
def _program() -> Iterator[None]:
    """What all commands have."""
    with words_may_be_lost(), clean_streams(), ended_by_signals(), mistakes_in_words():
        sys.argv[1:], packages = split_allowed(sys.argv[1:])
        with allowing(packages):
            yield
        sys.stdout.flush()  # while what keeps the words from a file can still be told


@hydra.main(version_base="1.3", config_path=str(CONF), config_name="bench")
def _bench(config: DictConfig) -> None:
    with mistakes_in_words():
        made = resolve(config, BenchConfig)
        from qat_lightning.commands.bench.run import run_bench

        run_bench(made, list(HydraConfig.get().overrides.task))


def bench() -> None:
    """`python -m qat_lightning.bench` and `qat-bench`."""
    _in_words(_bench)


def evaluate() -> None:
    """`python -m qat_lightning.evaluate` and `qat-evaluate`."""
    with _program():
        folder, given, overrides = _of_a_run(EVALUATE_HELP, model="student")
        config = in_one_process(located(read_run(folder, overrides), overrides), overrides)
        from qat_lightning.commands.evaluate import evaluate as score
        from qat_lightning.training.process.watchdog import Watchdog

        with Watchdog():
            score(config, folder, given["model"])


def export() -> None:
    """`python -m qat_lightning.export` and `qat-export`: the run's own command again, which finds its stages finished."""
    with _program():
        folder, _, overrides = _of_a_run(EXPORT_HELP)
        config = read_run(folder, overrides)
        if other := [word for word in overrides if not word.startswith(FREE)]:
            free = ", ".join(f"{key}…" for key in FREE)
            raise ConfigError(f"{other[0]} would make another run of this one: only {free} can be given here")
        from qat_lightning.commands.train.run import run
        from qat_lightning.training.process.watchdog import Watchdog

        if located(config, overrides) != config:
            raise ConfigError(
                f"run={str(folder)!r} has folders that are relative to {config.working_directory!r}: start the export"
                " in that directory"
            )
        given = {word.split("=", 1)[0] for word in overrides}
        before = [word for word in _typed(folder) if word.split("=", 1)[0] not in given]
        with Watchdog():
            run(config, folder, [*before, *overrides], in_one_process(config, overrides))


def _of_a_run(help: str, **defaults: str) -> tuple[Path, dict[str, str], list[str]]:
    """The run folder, what else the command takes, and the overrides of the run's configuration."""
    words = quote_paths(sys.argv[1:])
    if not words or {"-h", "--help"}.intersection(words):
        print(help)
        raise SystemExit(0 if words else 1)
    if wrong := [word for word in words if not is_override(word)]:
        raise ConfigError(f"{wrong[0]!r} is no key=value; --help shows what can be given")
    given = dict(word.split("=", 1) for word in words if word.split("=", 1)[0] in {"run", *defaults})
    if "run" not in given:
        raise ConfigError("run=DIR must be given: the folder of a run")
    overrides = [word for word in words if word.split("=", 1)[0] not in {"run", *defaults}]
    return Path(given.pop("run")).expanduser(), defaults | given, overrides


def _typed(folder: Path) -> list[str]:
    """What was given when the run began.

    Raises:
        ConfigError: the file that says so is damaged.
    """
    place = folder / "overrides.yaml"
    if not place.is_file():
        return []
    try:
        words = read_yaml(place) or []
    except DocumentError as error:
        raise ConfigError(f"{place} is damaged: {error}") from error
    if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
        raise ConfigError(f"{place} is damaged: it is no list of overrides")
    return words
