"""Two rows through the whole method before anything is trained: what cannot work is told in seconds, not after a teacher."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from qat_lightning.build import build_callbacks, build_quantized, stage_names
from qat_lightning.config import ConfigError, Plain, create_all
from qat_lightning.convert import open_attention_for
from qat_lightning.data.base import TaskData
from qat_lightning.intervention import Intervention
from qat_lightning.quantized import switch_on
from qat_lightning.signals import Observed


@torch.no_grad()
def rehearse(config: Plain, data: TaskData, model: nn.Module) -> None:
    """Quantize a copy of `model`, and work out every loss under every intervention.

    Raises:
        ValueError: in words, for a site or an intervention that the family does not have, layers that do not fit, a part
            that does not exist, tokens or lengths that are beyond the model.
    """
    _check_tokens(data, model)
    _check_pixels(data, model)
    for stage in stage_names(config):
        build_callbacks(config, stage, data)
    losses = {name: loss for name, loss in create_all(config["losses"], "losses").items() if loss.weight != 0}
    interventions = create_all(config["intervention"], "intervention")
    batch, copied = data.calibration_batches(2)[0], copy.deepcopy(model).eval()
    for intervention in interventions.values():
        intervention.check(copied)
    read = {site for loss in losses.values() for site in loss.sites}
    given = {site for intervention in interventions.values() for site in intervention.sites}
    taught = Observed(open_attention_for(copied, read | given), sorted(read | given))(batch)
    student = build_quantized(config, copied)
    switch_on(student, config["stages"]["intervene"]["parts"])
    for intervention in [Intervention(), *interventions.values()]:
        with intervention.by(taught, student):
            own = Observed(student, sorted(read))(batch)
        for name, loss in losses.items():
            try:
                loss(own, taught, batch)
            except ValueError as error:
                raise ConfigError(f"losses.{name}: {error}") from error


def _check_tokens(data: TaskData, model: nn.Module) -> None:
    """Positions and vocabulary of a text model, where it has limits."""
    rows = [
        row["input_ids"] for split in (data.train_rows, data.validation_rows) for row in split if "input_ids" in row
    ]
    if not rows:
        return
    longest = getattr(data, "max_length", max(map(len, rows)))
    positions = getattr(model.config, "max_position_embeddings", longest)
    if longest > positions:
        raise ConfigError(
            f"rows of {longest} tokens are beyond the model's {positions} positions: give data.max_length={positions} or less"
        )
    largest, vocabulary = max(_largest(row) for row in rows), getattr(model.config, "vocab_size", None)
    if vocabulary is not None and largest >= vocabulary:
        raise ConfigError(
            f"the data holds token {largest}, and the model knows 0 to {vocabulary - 1}: give the model's own tokenizer with"
            " data.tokenizer=…, or another model.path"
        )


def _largest(row: Any) -> int:
    """A tensor is asked itself: Python's max would make a tensor of each of its elements."""
    return int(row.max() if isinstance(row, Tensor) else max(row))


def _check_pixels(data: TaskData, model: nn.Module) -> None:
    """Height, width and channels of an image model."""
    given, taken = getattr(data, "size", None), getattr(model.config, "image_size", None)
    if None not in (given, taken) and given != taken:
        raise ConfigError(f"data.size={given}, but the model takes images of {taken} pixels: give data.size={taken}")
    given, taken = getattr(data, "channels", None), getattr(model.config, "num_channels", None)
    if None not in (given, taken) and given != taken:
        raise ConfigError(f"data.channels={given}, but the model takes {taken} channels: give data.channels={taken}")
