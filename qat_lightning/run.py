"""A whole run: data → teacher → quantize → intervene → train → report, each stage once."""

from __future__ import annotations

import copy
import json
import logging
import warnings
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import datasets
import torch
import yaml
from lightning.pytorch import seed_everything
from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.utilities import rank_zero_only
from rich.console import Console
from torch import Tensor, nn

from qat_lightning.analysis import class_ids, projection_weights, token_classes
from qat_lightning.build import (
    build_callbacks,
    build_data,
    build_model,
    build_module,
    build_student,
    build_trainer,
    stage_names,
    stage_settings,
)
from qat_lightning.config import Plain
from qat_lightning.convert import open_attention
from qat_lightning.data.base import TaskData
from qat_lightning.data.hub import require_hub
from qat_lightning.folder import check_own, held
from qat_lightning.foresight import check_libraries
from qat_lightning.packing import bits, size, tensors_hash
from qat_lightning.quantized import switch_on
from qat_lightning.rehearsal import rehearse
from qat_lightning.signals import Observed, Signals
from qat_lightning.sites import has_site
from qat_lightning.training.loggers import begin
from qat_lightning.training.processes import watch_the_others
from qat_lightning.training.report import summary_table, write_report
from qat_lightning.training.stages import Budget, Outcome, Stage, load_weights, own_scores, weights_of
from qat_lightning.training.whole import whole

PICTURED = ("hidden", "attention.probs", "attention.output", "attention.value")
"""The sites that the report shows."""


@dataclass
class Run:
    """What the stages of one run share."""

    config: Plain
    folder: Path
    data: TaskData
    console: Console
    outcomes: dict[str, Outcome] = field(default_factory=dict)
    stages: dict[str, Stage] = field(default_factory=dict)

    def plan(self) -> None:
        """The stages with their settings, none begun.

        Raises:
            ValueError: a budget that cannot be met, or a folder that holds stages made with other settings.
        """
        previous, content = None, self.data.fingerprint()
        for name in stage_names(self.config):
            settings = stage_settings(self.config, name, self.steps(name), self.data, content, previous)
            self.stages[name] = Stage(name, self.folder, settings)
            previous = self.stages[name].fingerprint

    def stage(self, name: str, student: nn.Module, teacher: nn.Module | None = None) -> None:
        """Train `student` through one stage, or take over what an earlier start of this run has finished."""
        stage, steps = self.stages[name], self.steps(name)
        if stage.outcome is not None:
            stage.load(student)
            self.say(f"[bold]{name}[/]: finished before, not run again ({self._told(stage.outcome)})")
        else:
            self._announce(name, steps, stage)
            self._fit(stage, steps, student, teacher)
        outcome = stage.outcome
        assert outcome is not None
        self.outcomes[name] = outcome

    def steps(self, name: str) -> int:
        """Optimizer steps of a stage's budget. Raises ValueError where the intervene stage leaves none for training."""
        stage = self.config["stages"][name]
        already = self.steps("intervene") if stage.get("includes_intervene") and self.config["intervention"] else 0
        budget = Budget(stage["max_steps"], stage["max_epochs"], already)
        return budget.steps(self.batches_per_epoch, self.config["trainer"]["accumulate_grad_batches"])

    @property
    def batches_per_epoch(self) -> int:
        """Of one process, all processes sharing an epoch."""
        trainer = self.config["trainer"]
        return self.data.batches_per_epoch(_count(trainer["devices"]) * trainer["num_nodes"])

    def scores(self, model: nn.Module) -> dict[str, float]:
        """The validation metrics of a model as it stands."""
        trainer = build_trainer(self.config, "teacher", 0, self.folder, record=False)
        return own_scores(trainer, build_module(self.config, "teacher", 0, model, self.data), self.data)

    def restored(self, stage: str) -> nn.Module:
        """The teacher or the student with the weights that a finished stage has handed on.

        Raises:
            ValueError: the folder holds no such weights.
        """
        weights = weights_of(stage, self.folder)
        if not weights.is_file():
            raise ValueError(
                f"{weights} is not there: the run has not finished its {stage} stage, or was moved in part"
            )
        model: nn.Module = build_model(self.config, self.data)
        if stage != "teacher":
            model = build_student(self.config, model, self.data)
        load_weights(model, weights)
        return model

    def say(self, words: str) -> None:
        """A line for the terminal, however long; from the first process only."""
        self.console.print(words, soft_wrap=True)

    def _fit(self, stage: Stage, steps: int, student: nn.Module, teacher: nn.Module | None) -> None:
        settings = self.config["stages"][stage.name]
        module = build_module(self.config, stage.name, steps, student, self.data, teacher)
        callbacks = [
            *build_callbacks(self.config, stage.name, self.data),
            *stage.callbacks(self.data, settings["checkpoint_every"], settings["checkpoint_minutes"]),
        ]
        every = settings["validate_every"]
        batches = self.batches_per_epoch if every is None else every * self.config["trainer"]["accumulate_grad_batches"]
        trainer = build_trainer(self.config, stage.name, steps, self.folder, callbacks, batches)
        switch_on(student, settings.get("parts"))
        for logger in trainer.loggers:
            if isinstance(logger, WandbLogger) and _first_process():
                begin(logger, self.say)
        outcome = stage.fit(trainer, module, self.data, settings["keep"])
        switch_on(student)
        for logger in trainer.loggers:
            logger.finalize("success")
            if isinstance(logger, WandbLogger):
                logger.experiment.finish()  # the next stage is a W&B run of its own
        self.say(f"[bold]{stage.name}[/]: {self._told(outcome)}")

    def _announce(self, name: str, steps: int, stage: Stage) -> None:
        if stage.unfinished is not None:
            self.say(f"[bold]{name}[/]: going on from {stage.unfinished} ({steps} steps in all)")
        elif steps:
            self.say(f"[bold]{name}[/]: {steps} steps …")

    def _told(self, outcome: Outcome) -> str:
        told = f"{outcome.steps} steps, {outcome.seconds:.0f} s, {self.data.metric} {outcome.score:.4f}"
        return told + ("" if outcome.assisted is None else f" (teacher-assisted {outcome.assisted:.4f})")


def opened(config: Plain, folder: Path, needs_model: bool = True) -> Run:
    """A run with its data read and its seed set, nothing begun.

    Args:
        needs_model: False where `model.path` will not be read.

    Raises:
        ValueError: in words, for data or a model that is not there or cannot be used.
    """
    _quiet()
    watch_the_others(int(getattr(rank_zero_only, "rank", 0)))
    if config["threads"] is not None:
        torch.set_num_threads(config["threads"])
    require_hub(_wanted(config if needs_model else config | {"model": {**config["model"], "pretrained": False}}))
    data = build_data(config)
    data.load()
    seed_everything(config["seed"], verbose=False)
    return Run(config, folder, data, Console(quiet=not _first_process(), highlight=False))


def run(config: Plain, folder: Path, command: list[str]) -> Plain:
    """Run all stages of `config` in `folder`; returns the content of `metrics.json`.

    The same configuration in the same folder goes on where an earlier start stopped.

    Raises:
        ValueError: in words with the remedy, for all that is wrong with input.
    """
    with held(folder) if _first_process() else nullcontext():
        if _first_process():
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
    check_libraries(config, folder)
    run.plan()
    teacher = build_model(config, run.data)
    rehearse(config, run.data, teacher)
    return run, teacher


def _trained(run: Run, teacher: nn.Module) -> Plain:
    """All stages, then what is written of them."""
    config, folder, data, console = run.config, run.folder, run.data, run.console
    batch = data.example_batch(8)
    run.stage("teacher", teacher)
    student = build_student(config, copy.deepcopy(teacher), data)
    untrained, signals = run.scores(student)[data.metric], {"untrained": _watch(student, batch)}
    run.say(f"[bold]quantized[/], not trained: {data.metric} {untrained:.4f}")

    distilled = teacher if config["teacher"] == "full_precision" else None
    if "intervene" in run.stages:
        run.stage("intervene", student, distilled)
    run.stage("train", student, distilled)

    signals |= {"teacher": _watch(teacher, batch), "student": _watch(student, batch)}
    results = _results(run, student, untrained)
    report = folder / "report.md"
    if _first_process():
        # not before: torch's exporter takes seconds to import, and what is missing must be told first
        from qat_lightning.card import write_card
        from qat_lightning.exporting import Exporter

        results["export"] = Exporter(config, folder, data, student, run.say).export()
        report = write_report(folder, results, signals, batch, data.tokens(batch), _classes(data, batch))
        # last: a folder with metrics.json is a finished run
        _write(folder / "metrics.json", json.dumps(results, indent=2) + "\n")
        if results["export"]:
            write_card(folder)
    console.print(summary_table(results, report))
    return results


def _results(run: Run, student: nn.Module, untrained: float) -> Plain:
    weight, last = size(student), run.outcomes["train"]
    intervene = run.outcomes.get("intervene")
    return {
        "experiment": run.config["experiment"],
        "task": run.data.task,
        "metric": run.data.metric,
        "higher_is_better": run.data.higher_is_better,
        "teacher": run.outcomes["teacher"].score,
        "untrained": untrained,
        "student": last.score,
        "student_last_step": last.last_score,
        "assisted": intervene.assisted if intervene else None,
        "seed": run.config["seed"],
        "steps": {name: outcome.steps for name, outcome in run.outcomes.items()},
        "seconds": {name: outcome.seconds for name, outcome in run.outcomes.items()},
        "bytes": {
            "float32": weight.float32,
            "packed": weight.packed,
            "ratio": round(weight.ratio, 3),
            "checkpoint": last.checkpoint_bytes,
        },
        "bits": bits(student),
        "student_hash": tensors_hash(student),
        "versions": {name: version(name) for name in ("qat-lightning", "torch", "lightning", "transformers")},
        "export": None,
        "status": "finished",
    }


@torch.no_grad()
def _watch(model: nn.Module, batch: Mapping[str, Tensor]) -> Signals:
    """The signals that the report shows, on the CPU."""
    device, training = next(model.parameters()).device, model.training
    observe = Observed(open_attention(model).eval(), [site for site in PICTURED if has_site(model, site)])
    signals = observe({name: value.to(device) for name, value in batch.items()})
    signals["attention.projection.weight"] = projection_weights(model)
    model.train(training)
    return {site: [signal.float().cpu() for signal in layers] for site, layers in signals.items() if site != "logits"}


def _classes(data: TaskData, batch: Mapping[str, Tensor]) -> dict[str, Tensor] | None:
    """Where the batch has [CLS], [SEP], punctuation; None where its tokens have no names."""
    rows = [data.tokens({name: value[row : row + 1] for name, value in batch.items()}) for row in range(_rows(batch))]
    names = [name for row in rows if row is not None for name in row]
    if not names:
        return None
    return token_classes(batch, class_ids(names, batch["input_ids"].flatten().tolist()))


def _rows(batch: Mapping[str, Tensor]) -> int:
    return len(batch["labels"])


def _wanted(config: Plain) -> dict[str, str]:
    """Override → hub id or folder of all that must be there before anything begins."""
    wanted = {"data.path": config["data"].get("path")}
    if config["model"]["pretrained"]:
        wanted["model.path"] = config["model"]["path"]
    if config["data"].get("tokenizer") != wanted.get("model.path"):
        wanted["data.tokenizer"] = config["data"].get("tokenizer")
    return {override: place for override, place in wanted.items() if place is not None}


def _write_config(config: Plain, folder: Path, command: list[str]) -> None:
    if _first_process():
        _write(folder / "config.yaml", yaml.safe_dump(config, sort_keys=False, allow_unicode=True))
        _write(folder / "overrides.yaml", yaml.safe_dump(command, allow_unicode=True))


def _write(path: Path, text: str) -> None:
    with whole(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def _first_process() -> bool:
    """Whether this process writes files and speaks, before and after there is a trainer."""
    return int(getattr(rank_zero_only, "rank", 0)) == 0


def _count(devices: Any) -> int:
    """Processes on one machine."""
    if isinstance(devices, list):
        return len(devices)
    if devices in ("auto", -1, "-1"):
        return max(1, torch.cuda.device_count())
    return int(devices)


def _quiet() -> None:
    """Leave the terminal to the run's own words."""
    for name in ("lightning.pytorch", "lightning.fabric", "transformers", "datasets", "httpx"):
        logging.getLogger(name).setLevel(logging.ERROR)
    from transformers.utils import logging as transformers_logging

    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    datasets.disable_progress_bars()
    warnings.filterwarnings("ignore", module=r"lightning\..*")
    warnings.filterwarnings("ignore", message=".*find_unused_parameters=True.*")
