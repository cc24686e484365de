"""All stages of a configuration in one folder, each once, and what is written of them."""

from __future__ import annotations

import copy
from contextlib import nullcontext
from pathlib import Path

import yaml
from rich.markup import escape
from torch import nn

from qat_lightning.build import build_model, build_student, stage_names
from qat_lightning.config import Plain
from qat_lightning.files import write_json, write_text
from qat_lightning.folder import check_own, held
from qat_lightning.foresight import check_libraries
from qat_lightning.rehearsal import rehearse
from qat_lightning.run.results import classes, results_of, watch
from qat_lightning.run.stages import Run, first_process, know_the_rank, opened
from qat_lightning.training.report import summary_table, write_report
from qat_lightning.training.stages import refuse_other_stages


def run(config: Plain, folder: Path, command: list[str]) -> Plain:
    """Run all stages of `config` in `folder`; returns the content of `metrics.json`.

    The same configuration in the same folder goes on where an earlier start stopped.

    Raises:
        ValueError: in words with the remedy, for all that is wrong with input.
    """
    know_the_rank(config)
    with held(folder) if first_process() else nullcontext():
        if first_process():
            check_own(folder, config["experiment"])
        run, teacher = prepared(config, folder)
        _write_config(config, folder, command)  # not before: a command that is refused leaves the folder as it was
        return _trained(run, teacher)


def prepared(config: Plain, folder: Path) -> tuple[Run, nn.Module]:
    """A run with all its stages planned, and the teacher not yet fine-tuned: nothing is written, and what is known to be
    wrong has been told.

    Raises:
        ValueError: in words with the remedy, for all that is wrong with input.
    """
    run = opened(config, folder)
    run.take_precision(check_libraries(config, folder))
    refuse_other_stages(folder, stage_names(config))
    run.plan()
    teacher = build_model(config, run.data, lambda line: run.say(f"[bold]model[/]: {escape(line)}"))
    rehearse(config, run.data, teacher)
    run.find_cache(teacher)
    return run, teacher


def _trained(run: Run, teacher: nn.Module) -> Plain:
    """All stages, then what is written of them."""
    config, folder, data, console = run.config, run.folder, run.data, run.console
    batch = data.example_batch(8)
    run.stage("teacher", teacher)
    student = build_student(config, copy.deepcopy(teacher), data)
    untrained, signals = run.scores(student)[data.metric], {"untrained": watch(student, batch)}
    run.say(f"[bold]quantized[/], not trained: {data.metric} {untrained:.4f}")

    distilled = teacher if config["teacher"] == "full_precision" else None
    if "intervene" in run.stages:
        run.stage("intervene", student, distilled)
    run.stage("train", student, distilled)

    signals |= {"teacher": watch(teacher, batch), "student": watch(student, batch)}
    results = results_of(run, student, untrained)
    report = folder / "report.md"
    if first_process():
        # not before: torch's exporter takes seconds to import, and what is missing must be told first
        from qat_lightning.card import write_card
        from qat_lightning.exporting import Exporter

        results["export"] = Exporter(config, folder, data, student, run.say).export()
        report = write_report(folder, results, signals, batch, data.tokens(batch), classes(data, batch))
        # last: a folder with metrics.json is a finished run
        write_json(folder / "metrics.json", results)
        if results["export"]:
            write_card(folder)
    console.print(summary_table(results, report))
    return results


def _write_config(config: Plain, folder: Path, command: list[str]) -> None:
    if first_process():
        write_text(folder / "config.yaml", yaml.safe_dump(config, sort_keys=False, allow_unicode=True))
        write_text(folder / "overrides.yaml", yaml.safe_dump(command, allow_unicode=True))
