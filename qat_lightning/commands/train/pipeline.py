"""The state that the stages of a run share, and the training of one stage."""

from __future__ import annotations

import logging
import math
import warnings
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import datasets
import torch
from lightning.pytorch import Trainer, seed_everything
from lightning.pytorch.loggers import WandbLogger
from rich.console import Console
from rich.text import Text
from torch import nn
from transformers.utils import logging as transformers_logging

from qat_lightning.commands.train.bit_budget import with_chosen_bits, with_recorded_bits
from qat_lightning.commands.train.process_rank import count_devices, first_process
from qat_lightning.commands.train.teacher_cache import check_disk_space, find_cache, teacher_facts
from qat_lightning.config.builders.models import build_model, build_student, load_data
from qat_lightning.config.builders.training import (
    Objective,
    StageParts,
    build_loggers,
    build_module,
    build_objective,
    build_parts,
    build_trainer,
    stage_names,
    stage_settings,
)
from qat_lightning.config.schema import Keep, RunConfig
from qat_lightning.data.base import TaskData
from qat_lightning.data.padding_stats import count_padding
from qat_lightning.io.screen import console, printable
from qat_lightning.models.quantized_model import switch_on
from qat_lightning.reports.summary import score
from qat_lightning.training.checkpoints.stage_result import StageResult, load_stage, weights_of
from qat_lightning.training.process.supervision import watch_processes
from qat_lightning.training.stage import Stage, own_scores, shared
from qat_lightning.training.teacher_cache.cache import TeacherCache
from qat_lightning.training.wandb_fallback import begin


@dataclass
class Run:
    """The configuration, data and results that the stages of one run share."""

    config: RunConfig
    folder: Path
    data: TaskData
    console: Console
    scoring: RunConfig  # for reading data and scoring models
    outcomes: dict[str, StageResult] = field(default_factory=dict)
    stages: dict[str, Stage] = field(default_factory=dict)
    parts: dict[str, StageParts] = field(default_factory=dict)
    cache: TeacherCache | None = None
    tests: dict[str, TaskData] = field(default_factory=dict)  # split → data, scored at the end
    content: str = ""

    def plan(self) -> None:
        """Create the stages with their settings; none begins. ValueError for stages made with other settings."""
        previous, self.content = None, self.data.fingerprint()
        for name in stage_names(self.config):
            settings = stage_settings(self.config, name, self.steps(name), self.data, self.content, previous)
            self.stages[name] = Stage(name, self.folder, settings)
            previous = self.stages[name].fingerprint
        if "intervene" in self.stages and (steps := self.steps("intervene")) < (asked := self._budget("intervene")):
            self.say(
                "intervene",
                f"{steps} steps, not {asked}, which would leave none of the train stage's"
                f" {self._budget('train')} (stages.train.includes_intervene=true)",
            )

    @cached_property
    def scorer(self) -> Trainer:
        """Return the trainer that scores models and trains none."""
        return build_trainer(self.scoring, "teacher", 0, self.folder, record=False)

    @cached_property
    def objective(self) -> Objective:
        """Return the losses and interventions of the run."""
        return build_objective(self.config, self.data)

    def build_parts(self) -> None:
        """Build what trains the stages that are not finished."""
        for name, stage in self.stages.items():
            if stage.outcome is None:
                every = self.config.stage(name).validate_every
                accumulate = self.config.trainer.accumulate_grad_batches
                batches = self.batches_per_epoch if every is None else every * accumulate
                self.parts[name] = build_parts(self.config, stage, self.steps(name), batches, self.data, self.objective)

    def take_precision(self) -> None:
        """Record the precision that the trainer computes in: Lightning computes 16-mixed on a CPU in bf16-mixed."""
        precision, asked = str(self.scorer.precision), self.config.trainer.precision
        self.config.trainer.precision = precision
        if precision not in (asked, f"{asked}-true", f"{asked}-mixed"):
            self.say(
                "precision",
                f"this machine cannot compute trainer.precision={asked}; the run uses and records {precision}",
            )

    def find_cache(self, teacher: nn.Module) -> None:
        """Check the folder of `teacher_cache` before the training; nothing is written."""
        device = self.scorer.strategy.root_device
        self.cache = find_cache(self.config, self.data, self.content, teacher, device)
        if self.cache is not None:
            read = {name: self.steps(name) * self.config.trainer.accumulate_grad_batches for name in self.stages}
            most = math.inf if self.data.reshuffle else self.batches_per_epoch
            counts = {name: int(self.processes * min(count, most)) for name, count in read.items() if name != "teacher"}
            self.say(
                "teacher's cache", check_disk_space(self.config, self.data, teacher, self.cache, counts, self.objective)
            )

    def stage(self, name: str, student: nn.Module, teacher: nn.Module | None = None) -> None:
        """Train `student` through one stage, or load the result if the stage is finished."""
        stage, steps = self.stages[name], self.steps(name)
        if stage.outcome is not None:
            stage.load(student)
            self.say(name, f"finished before, not run again ({self._summary(stage.outcome)})")
        else:
            if stage.unfinished is not None:
                self.say(name, f"going on from {stage.unfinished} ({steps} steps in all)")
            elif steps:
                self.say(name, f"{steps} steps …")
            self._fit(stage, steps, student, teacher)
        outcome = stage.outcome
        assert outcome is not None
        self.outcomes[name] = outcome

    def steps(self, name: str) -> int:
        """Return the optimizer steps of a stage; the intervene stage is shortened if it would leave none to the train stage."""
        steps, together = self._budget(name), self.config.stages.train.includes_intervene
        if name == "teacher" or not together or "intervene" not in stage_names(self.config):
            return steps
        intervene = shared(self._budget("intervene"), self._budget("train"))
        return intervene if name == "intervene" else steps - intervene

    def _budget(self, name: str) -> int:
        """Return the optimizer steps that the configuration gives a stage: the fewer ones of `max_steps` and `max_epochs`."""
        stage, accumulate = self.config.stage(name), self.config.trainer.accumulate_grad_batches
        epochs = math.inf if stage.max_epochs is None else stage.max_epochs * self.batches_per_epoch / accumulate
        return math.ceil(epochs if stage.max_steps is None else min(stage.max_steps, epochs))

    @property
    def batches_per_epoch(self) -> int:
        """Return the batches of one process; all processes share an epoch."""
        return self.data.batches_per_epoch(self.processes)

    @property
    def processes(self) -> int:
        """Return the number of processes on all machines."""
        trainer = self.config.trainer
        return count_devices(trainer.devices) * trainer.num_nodes

    def padding(self) -> dict[str, dict[str, int]]:
        """Return the result of `count_padding` for each stage that trained on tokens."""
        batches = {
            name: outcome.steps * self.config.trainer.accumulate_grad_batches for name, outcome in self.outcomes.items()
        }
        counted = {name: count_padding(self.data, count, self.processes) for name, count in batches.items()}
        return {name: tokens for name, tokens in counted.items() if tokens is not None}

    def scores(self, model: nn.Module, data: TaskData | None = None) -> dict[str, float]:
        """Compute the validation metrics of a model, on other data than those of the run if they are given."""
        data, objective = data or self.data, Objective({}, {}).of("teacher")
        module = build_module(self.scoring, "teacher", 0, model, data, objective=objective)
        return own_scores(self.scorer, module, data)

    def test_scores(self, model: nn.Module) -> dict[str, dict[str, float]]:
        """Compute the metrics of a model on each test split."""
        return {split: self.scores(model, data) for split, data in self.tests.items()}

    def quantized(self, teacher: nn.Module) -> nn.Module:
        """Put the student's quantizers into `teacher`, in place; the budget of bits, if there is one, chooses their widths."""
        made_for = self.stages["train"].fingerprint
        chosen = with_chosen_bits(self.config, self.folder, made_for, teacher, self.data, self.say)
        return build_student(chosen, teacher, self.data)

    def restored(self, stage: str) -> nn.Module:
        """Build the teacher or the student with the weights of a finished stage; ValueError if there are none."""
        weights = weights_of(stage, self.folder)
        if not weights.is_file():
            raise ValueError(
                f"{weights} is not there: the run has not finished its {stage} stage, or was moved in part"
            )
        model: nn.Module = build_model(self.config, self.data)
        if stage != "teacher":
            model = build_student(with_recorded_bits(self.config, self.folder), model, self.data)
        load_stage(stage, self.folder, model)
        return model

    def say(self, subject: str, words: str) -> None:
        """Print one line, however long, its subject in bold; from the first process only."""
        subject, words = (printable(given.replace("\n", " ")) for given in (subject, words))
        self.console.print(Text.assemble((subject, "bold"), ": ", words), soft_wrap=True)

    def _fit(self, stage: Stage, steps: int, student: nn.Module, teacher: nn.Module | None) -> None:
        settings, parts = self.config.stage(stage.name), self.parts[stage.name]
        module = build_module(self.config, stage.name, steps, student, self.data, teacher, self.cache, parts.objective)
        trainer = parts.trainer
        trainer.loggers = build_loggers(self.config, stage.name, self.folder)
        if self.cache is not None and module.teacher is not None:
            self.cache.claim(teacher_facts(self.config, self.content, module.teacher, trainer.strategy.root_device))
        switch_on(student, getattr(settings, "target_modules", None))
        for logger in trainer.loggers:
            if isinstance(logger, WandbLogger) and first_process():
                begin(logger, self.say)
        with module.distillation.compiled() if self.config.compile else nullcontext():
            outcome = stage.fit(trainer, module, self.data, settings.keep is Keep.best)
        switch_on(student)
        for logger in trainer.loggers:
            logger.finalize("success")
            if isinstance(logger, WandbLogger):
                logger.experiment.finish()  # the next stage is a W&B run of its own
        self.say(stage.name, self._summary(outcome))
        if self.config.trainer.profiler:
            self.say(stage.name, f"profile in {trainer.log_dir}")
        if self.cache is not None and module.teacher is not None:
            self.say("teacher's cache", self.cache.summary())

    def _summary(self, outcome: StageResult) -> str:
        summary = f"{outcome.steps} steps, {outcome.seconds:.0f} s, {self.data.metric} {score(outcome.score)}"
        return summary + ("" if outcome.assisted is None else f" (teacher-assisted {score(outcome.assisted)})")


def opened(config: RunConfig, folder: Path, scoring: RunConfig | None = None, data: TaskData | None = None) -> Run:
    """Read the data, unless it is given, and set the seed of a run.

    `scoring` is the configuration for reading data and scoring models, where it is another than that of the training.
    """
    for name in ("lightning.pytorch", "lightning.fabric", "transformers", "datasets", "httpx"):
        logging.getLogger(name).setLevel(logging.ERROR)
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    datasets.disable_progress_bars()
    warnings.filterwarnings("ignore", module=r"lightning\..*")
    for words in (
        "find_unused_parameters=True",
        "variance of predictions or target is close to zero",  # "undefined"
    ):
        warnings.filterwarnings("ignore", message=f".*{words}.*")
    watch_processes()
    scoring = scoring or config
    if scoring.threads is not None:
        torch.set_num_threads(scoring.threads)
    data = load_data(scoring) if data is None else data
    seed_everything(config.seed, verbose=False)
    run = Run(config, folder, data, console(quiet=not first_process()), scoring)
    for note in data.notes:
        run.say("data", note)
    return run
