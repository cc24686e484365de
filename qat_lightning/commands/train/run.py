"""Run all stages of a configuration in one folder, each once, and write the results."""

from __future__ import annotations

import copy
from contextlib import nullcontext, suppress
from pathlib import Path

import yaml
from torch import nn

from qat_lightning.commands.train.answers import class_outputs, describe_answers
from qat_lightning.commands.train.gate import check_gate, layer_outputs
from qat_lightning.commands.train.pipeline import Run, opened
from qat_lightning.commands.train.preflight import check_libraries, preflight
from qat_lightning.commands.train.process_rank import first_process, know_the_rank
from qat_lightning.commands.train.results import (
    check_recorded,
    classes,
    read_test_splits,
    results_of,
    test_results,
    watch,
)
from qat_lightning.commands.train.run_directory import check_own, lock_folder
from qat_lightning.config.builders.models import build_model
from qat_lightning.config.builders.training import stage_names
from qat_lightning.config.schema import Plain, RunConfig, Teacher, as_plain
from qat_lightning.io.files import write_json, write_text
from qat_lightning.reports.report import EXPORT_FAILED, FINISHED, draw_sections, summary_table, write_report
from qat_lightning.reports.summary import score
from qat_lightning.training.checkpoints.stage_result import verified_weights
from qat_lightning.training.stage import refuse_other_stages


def run(config: RunConfig, folder: Path, command: list[str], scoring: RunConfig | None = None) -> Plain:
    """Run all stages of `config` in `folder`, or resume them; return the content of `metrics.json`.

    With `scoring`, the configuration in which models of a finished run are scored again and exported, nothing is trained, and
    no callback or logger is made. ValueError for a problem of the input, with the key to change.
    """
    know_the_rank(scoring or config)
    with lock_folder(folder) if first_process() else nullcontext():
        if scoring is not None:
            for stage in stage_names(config):
                verified_weights(stage, folder)
        elif first_process():
            check_own(folder, config.experiment)
        run, teacher = prepared(config, folder, scoring)
        if first_process():  # after preflight: a refused command leaves the folder unchanged
            written = as_plain(config) | {"working_directory": config.working_directory or str(Path.cwd())}
            for name, content in (("config.yaml", written), ("overrides.yaml", command)):
                write_text(folder / name, yaml.safe_dump(content, sort_keys=False, allow_unicode=True))
        return _trained(run, teacher)


def prepared(config: RunConfig, folder: Path, scoring: RunConfig | None = None) -> tuple[Run, nn.Module]:
    """Plan a run, build its teacher and run preflight; nothing is written."""
    run = opened(config, folder, scoring)
    run.tests = read_test_splits(run)
    check_libraries(run)
    refuse_other_stages(folder, stage_names(config))
    run.plan()
    teacher = build_model(config, run.data, lambda line: run.say("model", line))
    if scoring is None:
        preflight(run, teacher)
    return run, teacher


def _trained(run: Run, teacher: nn.Module) -> Plain:
    """Run all stages, then write the results, the report and the exports."""
    config, folder, data, console = run.config, run.folder, run.data, run.console
    batch = data.example_batch(8)
    run.stage("teacher", teacher)
    student = run.quantized(copy.deepcopy(teacher))
    untrained, signals = run.scores(student)[data.metric], {"untrained": watch(student, batch)}
    outputs, tests = {"untrained": class_outputs(run, student)}, {"untrained": run.test_scores(student)}
    run.say("PTQ baseline", f"{data.metric} {score(untrained)}")

    distilled = teacher if config.teacher is Teacher.full_precision else None
    if "intervene" in run.stages:
        run.stage("intervene", student, distilled)
    run.stage("train", student, distilled)

    signals |= {"teacher": watch(teacher, batch), "student": watch(student, batch)}
    tests = {"teacher": run.test_scores(teacher), **tests, "student": run.test_scores(student)}
    results = results_of(run, student, untrained) | {"test": test_results(run, tests) or None}
    if not first_process():
        return results
    check_recorded(folder, results)
    outputs = {"teacher": class_outputs(run, teacher), **outputs, "student": class_outputs(run, student)}
    results["answers"] = describe_answers(data, outputs)
    write_json(folder / "metrics.json", results)  # before plots and exports, which can fail
    drawn = draw_sections(folder, results, signals, batch, data.tokens(batch), classes(data, batch))
    write_report(folder, results, drawn)
    failure = _export(run, student, results)
    missed = None if failure else check_gate(run, teacher, student, results, layer_outputs(signals, batch))
    with suppress(OSError) if failure else nullcontext():  # a full disk must not hide why the export failed
        write_report(folder, results, drawn)
        write_json(folder / "metrics.json", results)
    console.print(summary_table(results, folder / "report.md"))
    if failure or missed:
        raise failure or missed  # type: ignore[misc]
    return results


def _export(run: Run, student: nn.Module, results: Plain) -> Exception | None:
    """Export what the configuration asks for, with its model card, and enter it in `results`; returns what failed."""
    # not before: torch's exporter takes seconds to import, and missing packages are reported first
    from qat_lightning.commands.export import Exporter
    from qat_lightning.reports.model_card.card import write_card

    exporter, failure = Exporter(run.config, run.folder, run.data, student, run.say), None
    try:
        exporter.export()
    except Exception as error:
        failure = error
    results |= {"export": exporter.record, "status": EXPORT_FAILED if failure else FINISHED}
    if exporter.record:
        write_card(run.folder)
    return failure
