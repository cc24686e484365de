"""What others wrote is shown on the terminal and controls nothing there: each place that prints is given hostile names."""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from huggingface_hub.errors import RepositoryNotFoundError
from hydra.errors import HydraException
from lightning.pytorch.callbacks import TQDMProgressBar
from lightning.pytorch.utilities import rank_zero_warn
from omegaconf import OmegaConf

from qat_lightning.commands import cli
from qat_lightning.commands.bench import run as bench
from qat_lightning.commands.bench.tables import inference_table
from qat_lightning.commands.evaluate import scores_table
from qat_lightning.commands.multirun import JobError
from qat_lightning.commands.train.pipeline import Run
from qat_lightning.config.command_line import check_words
from qat_lightning.config.instantiate import suggest
from qat_lightning.config.schema import BenchConfig, ConfigError
from qat_lightning.io.screen import CleanStream, clean_streams, console, printable
from qat_lightning.reports.report import summary_table
from qat_lightning.training.callbacks import StageBar
from qat_lightning.training.process import supervision
from qat_lightning.training.stage import Stage
from qat_lightning.training.wandb_fallback import begin
from tests.reports.test_report import RESULTS
from tests.security.hostile import STRINGS, controls

ALL = " ".join(STRINGS.values())


def raising(make: Callable[[str], Exception]) -> Callable[[str], None]:
    def raise_it(name: str) -> None:
        raise make(name)

    return raise_it


def hub_error(name: str) -> Exception:
    response: Any = SimpleNamespace(headers={}, request=None, status_code=404)
    return RepositoryNotFoundError(f"404 for {name}", response=response)


def logged(name: str) -> None:
    logger = logging.Logger(name)
    logger.addHandler(logging.StreamHandler())
    logger.warning("a library says %s", name)


def unknown_key(name: str) -> None:
    OmegaConf.structured(OmegaConf.create({"good": 1}, flags={"struct": True}))[name]


def stopped(name: str) -> None:
    trainer: Any = SimpleNamespace(is_global_zero=True)
    Stage._print(SimpleNamespace(name=name, folder=Path(name)), trainer, "stopped")  # type: ignore[arg-type]


def a_run() -> Run:
    return Run({}, Path(), None, console(), {})  # type: ignore[arg-type]


def summary(name: str) -> None:
    packed = {
        "bytes": 1, "ratio": 2.0, "score": 0.5, "student": 0.5, "bits_per_weight": 2.0, "full_precision_bytes": 1,
        "full_precision": [name], "unquantized_dtype": name, "path": name,
    }  # fmt: skip
    named = {"experiment": name, "task": name, "metric": name, "steps": {name: 1}, "export": {"packed": packed}}
    console().print(summary_table(RESULTS | named, Path(name)))


def evaluated(name: str) -> None:
    scores = dict.fromkeys(("model", "task", "metric", "split"), name) | {
        "rows": 1,
        "recorded": 0.5,
        "scores": {name: 0.5},
    }
    console().print(scores_table(scores, own=True))


def benched(name: str) -> None:
    """All that `run_bench` prints: what is measured now, the table, and where the figures are."""

    def measure(config: Any, say: Callable[[str], None]) -> dict[str, Any]:
        say(name)
        return {}

    bench.BENCHES[name] = (measure, lambda results: name)  # type: ignore[assignment]
    try:
        bench.run_bench(BenchConfig(bench={"name": name}, threads=1), [name])
    finally:
        del bench.BENCHES[name]


def bench_heading(name: str) -> None:
    machine = {"instructions": [name], "processor": name, "cores": 1, "system": name}
    results = {
        "machine": machine, "model": {"family": name, "parameters": 1}, "versions": {name: name}, "threads": 1,
        "command": [name], "repeats": 1, "baseline": name,
        "runtimes": {name: {"bytes": 1, "ratio": 1.0, "load": {"median": 1.0}, "speed": {}}},
    }  # fmt: skip
    console().print(inference_table(results))


def without_service(name: str) -> None:
    import wandb

    class Logger:
        _experiment, _offline = None, True
        tries = 0

        @property
        def experiment(self) -> Any:
            self.tries += 1
            if self.tries == 1:
                raise wandb.Error(name)
            return SimpleNamespace(settings=SimpleNamespace(sync_dir=name))

    begin(Logger(), a_run().say)  # type: ignore[arg-type]


PLACES: dict[str, Callable[[str], None]] = {
    "a label or a text in an error": raising(lambda name: ValueError(f"label {name} is not known")),
    "a key of a configuration": raising(lambda name: ConfigError(f"{name}=3: {suggest(name, ['good', name])}")),
    "an unknown key": unknown_key,
    "an override": lambda name: check_words([name]),
    "what Hydra refuses": raising(lambda name: HydraException(f"Could not find {name}\nConfig search path: …")),
    "a path that is not there": raising(lambda name: FileNotFoundError(2, "No such file", name)),
    "a path without permission": raising(lambda name: PermissionError(13, "Permission denied", name)),
    "a text of the hub": raising(hub_error),
    "a model type": raising(lambda name: KeyError(name)),
    "a module that is missing": raising(lambda name: ModuleNotFoundError(f"No module named {name}")),
    "a tensor that is damaged": raising(lambda name: RuntimeError(f"Error while deserializing {name}")),
    "a mistake of ours, and its traceback": raising(lambda name: TypeError(f"unexpected {name}")),
    "jobs of a sweep": raising(lambda name: JobError(f"1 of 2 jobs failed: job 0 ({name})")),
    "a stage that was stopped": stopped,
    "a process that has died": lambda name: supervision._print_reason(name),
    "a warning": lambda name: warnings.warn(name, stacklevel=1),
    "a warning of Lightning": lambda name: rank_zero_warn(name),
    "a log line": logged,
    "the output of a library": lambda name: print(name),
    "the errors of a library": lambda name: print(name, file=sys.stderr),
    "a line of the run": lambda name: a_run().say(name, name),
    "the result of a run": summary,
    "the result of an evaluation": evaluated,
    "the result of a bench": benched,
    "the heading of a bench": bench_heading,
    "Weights & Biases that is not reached": without_service,
}
"""Where names of others are printed → what prints them there."""


def printed(place: Callable[[str], None], name: str, capture: pytest.CaptureFixture[str]) -> str:
    """All that the program prints, on a page as wide as it needs."""
    with warnings.catch_warnings(), suppress(SystemExit), cli._environment():
        warnings.simplefilter("always")
        warnings.showwarning = lambda *given, **_: sys.stderr.write(warnings.formatwarning(*given[:4]))  # not pytest's
        place(name)
    shown = capture.readouterr()
    return shown.out + shown.err


@pytest.fixture(autouse=True)
def _wide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "5000")
    monkeypatch.setattr(bench, "WIDTH", 5000)
    monkeypatch.setenv("WANDB_MODE", "offline")


@pytest.mark.parametrize("place", PLACES)
def test_what_others_wrote_controls_no_terminal(place: str, capsys: pytest.CaptureFixture[str]) -> None:
    shown = printed(PLACES[place], ALL, capsys)
    assert controls(shown) == []
    assert "good" in shown, "it is shown"


@pytest.mark.parametrize("string", STRINGS)
def test_each_string_is_printed_as_it_is(string: str, capsys: pytest.CaptureFixture[str]) -> None:
    name = STRINGS[string]
    assert printed(PLACES["a line of the run"], name, capsys) == f"{printable(name)}: {printable(name)}\n"
    for place in ("the result of a run", "the result of an evaluation"):  # rich leaves some characters out by itself
        shown = printed(PLACES[place], name, capsys)
        assert controls(shown) == []
        assert (name in shown) == name.isprintable()


@pytest.mark.parametrize("string", STRINGS)
def test_a_string_keeps_what_can_be_shown(string: str) -> None:
    shown = printable(STRINGS[string])
    assert controls(shown) == []
    assert shown.startswith("good")
    assert (shown == STRINGS[string]) == string.startswith(("markup", "emoji"))


def test_texts_of_all_languages_are_left_alone() -> None:
    for words in ("naïve Ünïcode", "می‌خواهم", "עברית", "क्‍ष", "你好　世界", "👩‍👩‍👧", "a\u00a0b", "one\ntwo\tthree"):
        assert printable(words) == words


def test_no_message_forges_a_second_one(capsys: pytest.CaptureFixture[str]) -> None:
    forged = "good\nqat_lightning: all is well"
    shown = printed(PLACES["a label or a text in an error"], forged, capsys)
    assert [line for line in shown.splitlines() if line.startswith("qat_lightning: all")] == []
    assert len(printed(PLACES["a line of the run"], forged, capsys).splitlines()) == 1


def test_what_other_libraries_colour_is_printed_without_colours(capsys: pytest.CaptureFixture[str]) -> None:
    with clean_streams():
        assert sys.stdout.write("\x1b[1m\x1b[34mwandb\x1b[0m: \x1b]8;;https://x.example\x07run\x1b]8;;\x07\r\n") == 54
        sys.stdout.writelines(["a\x1bM\n", "b\r\n"])
    assert capsys.readouterr().out == "wandb: run\na\nb\n"


def test_the_programs_own_colours_and_bars_are_left(capsys: pytest.CaptureFixture[str], monkeypatch: Any) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    with clean_streams():
        a_run().say("teacher\x1b[2J", "4 steps")
        bar = StageBar("teacher").init_train_tqdm()
        bar.set_description(printable("teacher\x1b[2J"))
        bar.write("a line")
        bar.close()
        print("\x1b[1mno other", file=sys.stdout)
    shown = capsys.readouterr().out
    assert "\x1b[1mteacher\\x1b[2J\x1b[0m: 4 steps\n" in shown
    assert "\rteacher\\x1b[2J: " in shown
    assert "\ra line\n" in shown, "the bar is cleared before"
    assert shown.endswith("no other\n")
    assert "\x1b[1mno other" not in shown


def test_metric_names_of_the_progress_bar_are_printable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(TQDMProgressBar, "get_metrics", lambda *_: {"v_num": 1, ALL: 0.5})
    (name,) = StageBar("teacher").get_metrics(None, None)  # type: ignore[arg-type]
    assert name == printable(ALL)
    assert controls(name) == []


def test_a_stream_without_a_name_for_a_character_still_prints(tmp_path: Path) -> None:
    with (tmp_path / "shown").open("w", encoding="utf-8") as file:
        CleanStream(file).write("\udc80\n")
    assert (tmp_path / "shown").read_text() == "\\udc80\n"
