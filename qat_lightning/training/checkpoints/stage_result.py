"""The result of a finished stage: `checkpoints/<stage>.safetensors`, and `<stage>.json` with its figures and its checksum."""

from __future__ import annotations

import textwrap
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter
from safetensors import SafetensorError
from safetensors.torch import load_model, save_model
from torch import nn

from qat_lightning.io.documents import read_json
from qat_lightning.io.files import atomic_write, checksum, write_json

Settings = dict[str, Any]
"""Dotted key → value: all that decides a stage's result."""


@dataclass(frozen=True)
class StageResult:
    """The figures of a finished stage; a score that is not a finite number is None, "undefined"."""

    steps: int
    seconds: float
    score: float | None  # the kept weights' own validation metric
    last_score: float | None  # that of the last step
    assisted: float | None  # the last score with the teacher's signals in place; None where no intervention was at work
    checkpoint_bytes: int
    settings: Settings = field(repr=False)
    stage: str = ""  # this and the SHA-256 of the weights are empty until the file is written
    sha256: str = ""


def weights_of(stage: str, folder: Path) -> Path:
    """The file of weights of a stage of a run folder."""
    return folder / "checkpoints" / f"{stage}.safetensors"


def read_outcome(stage: str, folder: Path) -> StageResult | None:
    """The record of a stage; None if the stage is not finished. ValueError if it is damaged, or of another stage."""
    record = weights_of(stage, folder).with_suffix(".json")
    if not record.is_file():
        return None
    try:
        outcome = TypeAdapter(StageResult).validate_python(read_json(record))
    except ValueError as error:
        raise ValueError(f"{record} is damaged: {train_again(stage)}") from error
    if outcome.stage != stage:
        raise ValueError(f"{record} is the record of stage {outcome.stage!r}: {train_again(stage)}")
    return outcome


def write_stage(stage: str, folder: Path, model: nn.Module, outcome: StageResult) -> None:
    """Write the weights, then the record: a stage with a record is a finished stage."""
    weights = weights_of(stage, folder)
    with atomic_write(weights) as temporary:
        save_model(model, str(temporary))  # a tied weight once
        sha256 = checksum(temporary)
    write_json(weights.with_suffix(".json"), asdict(replace(outcome, stage=stage, sha256=sha256)))


def load_stage(stage: str, folder: Path, model: nn.Module) -> None:
    """Load the weights of a finished stage; ValueError if they are missing, damaged, or not those that it wrote."""
    weights = verified_weights(stage, folder)
    try:
        load_model(model, weights)
    except (OSError, RuntimeError, SafetensorError) as error:
        reason = textwrap.shorten(str(error), 240, placeholder=" …")
        raise ValueError(f"{weights} is of another model than configured ({reason}): {train_again(stage)}") from error


def verified_weights(stage: str, folder: Path) -> Path:
    """Return the file of weights of a finished stage; ValueError if it, or the record, is missing or changed."""
    weights, outcome = weights_of(stage, folder), read_outcome(stage, folder)
    if outcome is None:
        raise ValueError(
            f"{weights.with_suffix('.json')} is not there: the run has not finished its {stage} stage, or was moved in"
            f" part; the run's own command with hydra.run.dir={folder} trains what is missing"
        )
    try:
        same = checksum(weights) == outcome.sha256
    except OSError as error:
        raise ValueError(f"{weights} is not there, or cannot be read ({error}): {train_again(stage)}") from error
    if not same:
        raise ValueError(f"{weights} is not the file of stage {stage!r}, its SHA-256 differs: {train_again(stage)}")
    return weights


def train_again(stage: str) -> str:
    """Return the advice for a damaged stage."""
    names = f"{stage}.json and {stage}.safetensors beside it, and the run's metrics.json,"
    return f"copy it again, or remove {names} and the run's own command trains stage {stage!r} again"
