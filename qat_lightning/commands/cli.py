"""The commands that a user starts. Each ends with exit code 0, or with one message and exit code 1."""

from __future__ import annotations

import math
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from qat_lightning.commands.errors import HYDRA_TRACEBACK, USER_TRACEBACK, exit_on_error
from qat_lightning.commands.multirun import run_job, summarize_failures
from qat_lightning.commands.terminal import exit_on_signals, robust_streams
from qat_lightning.config.allowed_targets import allowing, split_allowed
from qat_lightning.config.command_line import MULTIRUN, check_words, is_override, put_debug_last, quote_paths
from qat_lightning.config.hydra_settings import check_flags, guarded_hydra
from qat_lightning.config.run_config import in_one_process, located, needed_places, read_run
from qat_lightning.config.schema import CONF, BenchConfig, ConfigError, RunConfig, resolve
from qat_lightning.config.validation import check
from qat_lightning.io.documents import DocumentError, read_yaml
from qat_lightning.io.screen import clean_streams

EXPORT_KEYS = (
    "export.", "threads=", "data.path=", "data.tokenizer=", "trainer.accelerator=", "trainer.enable_progress_bar=",
)  # fmt: skip
"""Beginnings of the overrides that leave a finished run's results as they are."""
EVALUATE_HELP = """usage: python -m qat_lightning.evaluate run=DIR [model=NAME] [KEY=VALUE ...]

Score a finished run again on its validation rows and compare the score with the recorded one.

arguments:
  run=DIR      folder of the run
  model=NAME   student (default), teacher, packed (DIR/export/packed) or onnx (DIR/export/model.onnx, on the CPU in float32)
  KEY=VALUE    overrides of the run's configuration, such as data.path=FOLDER, data.validation_split=test,
               data.validation_limit=500, trainer.accelerator=cpu, threads=2; only the validation split is read

The scores are written to DIR/evaluation/NAME.json. Those of other rows than the run's own are written to
DIR/evaluation/NAME-SPLIT.json and have no recorded score to compare with."""
PREDICT_HELP = """usage: python -m qat_lightning.predict run=DIR input=FILE output=FILE [model=NAME] [KEY=VALUE ...]

Predict labels and probabilities for rows without labels: texts and images, classes and scores.

arguments:
  run=DIR      folder of the run
  input=FILE   csv, tsv, json, jsonl or parquet with the columns of the run's inputs, or a folder of images
  output=FILE  csv, jsonl or parquet: the columns of the input with prediction and probability_CLASS; or tsv, the form of a
               submission to GLUE (index, prediction). The file must not exist
  model=NAME   student (default), teacher, packed or onnx
  KEY=VALUE    overrides of the run's configuration, such as 'data.text_columns=[question]', trainer.accelerator=cpu"""
EXPORT_HELP = """usage: python -m qat_lightning.export run=DIR [KEY=VALUE ...]

Write DIR/export of a finished run again: packed folder, ONNX file and model card. Each export is compared with the student.

arguments:
  run=DIR      folder of the run
  KEY=VALUE    export.packed=false or export.onnx=false leaves out a format; export.unquantized_dtype=float16 and
               export.ternary_encoding=base3 make the folder smaller; export.rows=1000 sets the compared validation rows"""
CHECK_MODEL_HELP = """usage: python -m qat_lightning.check_model model=MODEL [table=PATH] [onnx=false]

Check the table of a model family on a random tiny model of that family: one line for each check.

arguments:
  model=MODEL  model type of transformers (bert), folder with a config.json, or hub id
  table=PATH   a Family of your own package, as a dotted path, with allow_targets=[my_package]
  onnx=false   leave out the ONNX export, which takes half a minute"""

os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # hides torch's C++ warnings about DDP, which no filter reaches


def train() -> None:
    """Run `python -m qat_lightning` and `qat-train`; without arguments, print the help."""
    sys.argv[1:] = sys.argv[1:] or ["--help"]
    start_hydra(_train)


def bench() -> None:
    """Run `python -m qat_lightning.bench` and `qat-bench`."""
    start_hydra(_bench)


def evaluate() -> None:
    """Run `python -m qat_lightning.evaluate` and `qat-evaluate`."""
    with _environment():
        folder, arguments, overrides = parse_arguments(EVALUATE_HELP, model="student")
        config = in_one_process(located(read_run(folder, overrides), overrides), overrides)
        from qat_lightning.commands.evaluate import evaluate as score
        from qat_lightning.training.process.watchdog import Watchdog

        with Watchdog():
            score(config, folder, arguments["model"])


def predict() -> None:
    """Run `python -m qat_lightning.predict` and `qat-predict`."""
    with _environment():
        folder, arguments, overrides = parse_arguments(PREDICT_HELP, model="student", input="", output="")
        for name in ("input", "output"):
            if not arguments[name]:
                raise ConfigError(f"{name} is missing: set {name}=FILE")
        config = in_one_process(located(read_run(folder, overrides), overrides), overrides)
        from qat_lightning.commands.predict import predict as write

        write(config, folder, arguments["model"], Path(arguments["input"]), Path(arguments["output"]))


def check_model() -> None:
    """Run `python -m qat_lightning.check_model` and `qat-check-model`."""
    with _environment():
        arguments, other = _split_arguments(CHECK_MODEL_HELP, "model=MODEL", table="", onnx="true")
        if other or arguments["onnx"] not in ("true", "false"):
            raise ConfigError(
                f"{(other or ['onnx=' + arguments['onnx']])[0]!r}: give model, table, or onnx=true or false"
            )
        from qat_lightning.commands.check_model.run import run_check

        run_check(arguments["model"], arguments["table"], arguments["onnx"] == "true")


def export() -> None:
    """Run `python -m qat_lightning.export` and `qat-export`: the run's own command again, whose stages are finished."""
    with _environment():
        folder, _, overrides = parse_arguments(EXPORT_HELP)
        config = read_run(folder, overrides)
        if other := [word for word in overrides if not word.startswith(EXPORT_KEYS)]:
            allowed = ", ".join(f"{key}…" for key in EXPORT_KEYS)
            raise ConfigError(f"{other[0]} would change the run: an export accepts only {allowed}")
        from qat_lightning.commands.train.run import run
        from qat_lightning.training.process.watchdog import Watchdog

        if located(config, overrides) != config:
            raise ConfigError(f"run={str(folder)!r} has relative folders: start in {config.working_directory!r}")
        replaced = {word.split("=", 1)[0] for word in overrides}
        recorded = [word for word in _recorded_overrides(folder) if word.split("=", 1)[0] not in replaced]
        with Watchdog():
            run(config, folder, [*recorded, *overrides], in_one_process(config, overrides))


@hydra.main(version_base="1.3", config_path=str(CONF), config_name="config")
def _train(config: DictConfig) -> float:
    if HydraConfig.get().mode == RunMode.MULTIRUN:
        return run_job(lambda: _run(config))
    with exit_on_error():
        return _run(config)


@hydra.main(version_base="1.3", config_path=str(CONF), config_name="bench")
def _bench(config: DictConfig) -> None:
    with exit_on_error():
        bench_config = resolve(config, BenchConfig)
        from qat_lightning.commands.bench.run import run_bench

        run_bench(bench_config, list(HydraConfig.get().overrides.task))


def _run(config: DictConfig) -> float:
    """Return the student's score; NaN if it is undefined."""
    run_config = checked(config)
    # imported after the checks, because it takes seconds
    from qat_lightning.data.hub import require_hub

    require_hub(needed_places(run_config))
    from qat_lightning.commands.train.run import run
    from qat_lightning.training.process.watchdog import Watchdog

    with Watchdog():
        folder = Path(HydraConfig.get().runtime.output_dir)
        score = run(run_config, folder, list(HydraConfig.get().overrides.task))["student"]
        return math.nan if score is None else float(score)


def checked(config: DictConfig) -> RunConfig:
    """Resolve a composed configuration and check everything that needs neither data nor model."""
    run_config = resolve(config)
    check(run_config)
    return run_config


def start_hydra(main: Callable[[], None]) -> None:
    """Call a function of `hydra.main` and report its errors."""
    words = put_debug_last(quote_paths(sys.argv[1:]))
    sys.argv[1:] = sorted(words, key=lambda word: word not in MULTIRUN)  # Hydra expects flags before overrides
    with _environment():
        check_words(sys.argv[1:])
        check_flags(sys.argv[1:])
        before = {name: os.environ.get(name) for name in (USER_TRACEBACK, HYDRA_TRACEBACK)}
        os.environ[USER_TRACEBACK] = before[USER_TRACEBACK] or before[HYDRA_TRACEBACK] or "0"
        os.environ[HYDRA_TRACEBACK] = "1"  # makes Hydra raise its errors instead of printing them
        try:
            with summarize_failures(), guarded_hydra():
                main()
        finally:
            os.environ.update({name: value or "0" for name, value in before.items()})
            if before[USER_TRACEBACK] is None:
                del os.environ[USER_TRACEBACK]


@contextmanager
def _environment() -> Iterator[None]:
    """Set up streams, signals and error messages for one command."""
    with robust_streams(), clean_streams(), exit_on_signals(), exit_on_error():
        warnings.filterwarnings(
            "ignore", message=".*will save all targets and predictions in the buffer.*"
        )  # torchmetrics
        sys.argv[1:], packages = split_allowed(sys.argv[1:])
        with allowing(packages):
            yield
        sys.stdout.flush()  # here, so that an error of writing is reported


def parse_arguments(help: str, **defaults: str) -> tuple[Path, dict[str, str], list[str]]:
    """Return the run folder, the command's other arguments, and the overrides of the run's configuration."""
    arguments, overrides = _split_arguments(help, "run=DIR", **defaults)
    return Path(arguments.pop("run")).expanduser(), arguments, overrides


def _split_arguments(help: str, needed: str, **defaults: str) -> tuple[dict[str, str], list[str]]:
    """Return the command's own arguments and all others.

    Args:
        needed: the argument without a default, as the message shows it: `run=DIR`.
    """
    typed = quote_paths(sys.argv[1:])
    if not typed or {"-h", "--help"}.intersection(typed):
        print(help)
        raise SystemExit(0 if typed else 1)
    if wrong := [word for word in typed if not is_override(word)]:
        raise ConfigError(f"{wrong[0]!r} is not of the form key=value; --help lists the arguments")
    own = {needed.partition("=")[0], *defaults}
    given = dict(word.split("=", 1) for word in typed if word.split("=", 1)[0] in own)
    if missing := own - defaults.keys() - given.keys():
        raise ConfigError(f"{missing.pop()} is missing: set {needed}; --help lists the arguments")
    return defaults | given, [word for word in typed if word.split("=", 1)[0] not in own]


def _recorded_overrides(folder: Path) -> list[str]:
    """Return the overrides that the run was started with; ConfigError if the file is damaged."""
    place = folder / "overrides.yaml"
    if not place.is_file():
        return []
    try:
        typed = read_yaml(place) or []
    except DocumentError as error:
        raise ConfigError(f"{place} is damaged: {error}") from error
    if not isinstance(typed, list) or not all(isinstance(word, str) for word in typed):
        raise ConfigError(f"{place} is damaged: it is not a list of overrides")
    return typed
