"""Choose the widths of a student's weights under `quantization.budget`, once a run, and record them in `bits.json`."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

from torch import nn

from qat_lightning.analysis.bit_allocation import (
    RECORD,
    BitRecord,
    WidthOption,
    choose_widths,
    measure_width_options,
    read_record,
    write_record,
)
from qat_lightning.commands.train.process_rank import first_process
from qat_lightning.config.builders.models import build_quantized, build_rules, keep_student_layers
from qat_lightning.config.schema import ConfigError, RunConfig, parse_size
from qat_lightning.data.base import TaskData
from qat_lightning.io.markdown import human_bytes
from qat_lightning.models.convert import adjustable_parts
from qat_lightning.models.quantized_model import calibrate
from qat_lightning.models.size import size

ROWS = 64
"""Training rows on which errors are measured, at most."""

Options = Mapping[str, list[WidthOption]]


def with_recorded_bits(config: RunConfig, folder: Path) -> RunConfig:
    """Return the configuration with the widths that the run has recorded; unchanged without a budget."""
    return config if config.quantization.budget is None else _with_bits(config, read_record(folder)["bits"])


def with_chosen_bits(
    config: RunConfig, folder: Path, made_for: str, teacher: nn.Module, data: TaskData, say: Callable[[str, str], None]
) -> RunConfig:
    """Return the configuration with widths under its budget: those of the record, or measured on `teacher` and recorded.

    Args:
        made_for: a record that was made for something else is replaced.
        say: is given the subject and a line before the measurement, which may take minutes.
    """
    budget = config.quantization.budget
    if budget is None:
        return config
    record = read_record(folder) if (folder / RECORD).is_file() else None
    if record is None or record["made_for"] != made_for:
        say("bits", f"measuring the error of each weight at {config.quantization.budget_widths} bits …")
        options = _measure(config, teacher, data)
        record = BitRecord(
            made_for=made_for, budget=budget, bits=_choose(config, teacher, options), options=dict(options)
        )
        if first_process():
            write_record(folder, record)
    return _with_bits(config, record["bits"])


def check_budget(config: RunConfig, teacher: nn.Module) -> None:
    """Raise ConfigError unless the narrowest widths meet the budget, and if no quantizer of weights takes `bits`."""
    text = config.quantization.budget
    if text is None:
        return
    (limit, unit), narrowest = parse_size(text, "quantization.budget"), min(config.quantization.budget_widths)
    student = keep_student_layers(config.model, copy.deepcopy(teacher))
    parts = adjustable_parts(student, build_rules(config.quantization))
    if not parts:
        raise ConfigError(f"quantization.budget={text}, but no quantizer takes bits: choose quantization=lsq_w2a8")
    least = _packed_bytes(config, teacher, dict.fromkeys(parts, narrowest))
    if unit == "bytes" and least > limit:
        raise ConfigError(f"quantization.budget={text} is too small: {narrowest} bits take {human_bytes(least)}")
    if unit == "bits" and narrowest > limit:
        raise ConfigError(f"quantization.budget={text} is below the least of quantization.budget_widths, {narrowest}")


def _measure(config: RunConfig, teacher: nn.Module, data: TaskData) -> Options:
    student = keep_student_layers(config.model, copy.deepcopy(teacher))
    device = next(student.parameters()).device
    batches = data.calibration_batches(min(ROWS, config.quantization.calibration_rows))
    placed = [{name: value.to(device) for name, value in batch.items()} for batch in batches]
    rules = build_rules(config.quantization)
    return measure_width_options(student, rules, placed, config.quantization.budget_widths)


def _choose(config: RunConfig, teacher: nn.Module, options: Options) -> dict[str, int]:
    limit, unit = parse_size(config.quantization.budget or "", "quantization.budget")
    if unit == "bits":
        weights = sum(own[0].elements for own in options.values())
        return choose_widths(options, limit * weights, lambda option: option.bits * option.elements)
    first = {part: own[0].bits for part, own in options.items()}
    others = _packed_bytes(config, teacher, first) - sum(own[0].bytes for own in options.values())
    return choose_widths(options, limit - others)


def _packed_bytes(config: RunConfig, teacher: nn.Module, bits: Mapping[str, int]) -> int:
    student = build_quantized(_with_bits(config, bits), copy.deepcopy(teacher))
    calibrate(student, [])  # the weights alone
    return size(student).packed


def _with_bits(config: RunConfig, bits: Mapping[str, int]) -> RunConfig:
    return replace(config, quantization=replace(config.quantization, bits=dict(bits)))
