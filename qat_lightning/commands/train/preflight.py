"""Two rows through the whole method before anything is trained: what cannot work is told in seconds, not after a teacher."""

from __future__ import annotations

import copy
import math
import warnings
from typing import Any

import torch
from torch import Tensor, nn

from qat_lightning.commands.train.trainer_checks import check_stages
from qat_lightning.config.builders.exports import unsupported_formats
from qat_lightning.config.builders.models import build_quantized
from qat_lightning.config.instantiate import create_all
from qat_lightning.config.schema import ConfigError, RunConfig
from qat_lightning.data.base import TaskData
from qat_lightning.data.tokenizers import read_tokenizer
from qat_lightning.distillation.intervention import Intervention
from qat_lightning.distillation.step import check_visible
from qat_lightning.models.capture import SignalCapture
from qat_lightning.models.convert import open_attention_for
from qat_lightning.models.module_paths import part_paths
from qat_lightning.models.quantized_model import switch_on
from qat_lightning.training.compatibility import label_names, other_order


@torch.no_grad()
def rehearse(config: RunConfig, data: TaskData, model: nn.Module) -> dict[str, str]:
    """Quantize a copy of `model`, and work out every loss under every intervention.

    Returns the export formats that cannot write the student, each with the reason.

    Raises:
        ValueError: in words, for a site or an intervention that the family does not have, layers that do not fit, a part
            that does not exist, tokens or lengths that are beyond the model, classes or tokens that it numbers otherwise,
            callbacks that do not go together, or watch what is not logged, metrics that are not for such answers.
    """
    check_tokens(data, model)
    _check_pixels(data, model)
    _check_labels(data, model)
    _check_tokenizer(config, data, model)
    check_stages(config, data)
    losses = {name: loss for name, loss in create_all(config.losses, "losses").items() if loss.weight != 0}
    interventions = create_all(config.intervention, "intervention")
    batch, copied = data.calibration_batches(2)[0], copy.deepcopy(model).eval()
    check_visible({site for one in interventions.values() for site in one.sites}, losses)
    _check_metrics(data, copied)
    for intervention in interventions.values():
        intervention.check(copied)
    read = {site for loss in losses.values() for site in loss.sites}
    given = {site for intervention in interventions.values() for site in intervention.sites}
    taught = SignalCapture(open_attention_for(copied, read | given), sorted(read | given))(batch)
    student = build_quantized(config, copied)
    unsupported = unsupported_formats(config, student)
    switch_on(student, config.stages.intervene.target_modules)
    for intervention in [Intervention(), *interventions.values()]:
        with intervention.apply(student, taught):
            own = SignalCapture(student, sorted(read))(batch)
        for name, loss in losses.items():
            try:
                value = float(loss(own, taught, batch))
            except ValueError as error:
                raise ConfigError(f"losses.{name}: {error}") from error
            if not math.isfinite(value):
                raise ConfigError(
                    f"losses.{name} is {value} for two rows of the data: look at its arguments, and at the model's weights"
                )
    return unsupported


def _check_metrics(data: TaskData, model: nn.Module) -> None:
    """Each metric takes what the model answers, and makes one number of it."""
    batch = data.example_batch(8)
    answers = data.predict([logits.float() for logits in SignalCapture(model)(batch)["logits"]], batch)
    for name, metric in copy.deepcopy(data.metrics).items():
        try:
            with warnings.catch_warnings(action="ignore"):  # of so few rows
                metric.update(*answers)
                score = metric.compute()
        except (ValueError, RuntimeError, TypeError) as error:
            raise ConfigError(f"data.metrics.{name}: {' '.join(str(error).split())}") from error
        if not isinstance(score, Tensor) or score.numel() != 1:
            raise ConfigError(
                f"data.metrics.{name} gives {score} and must give one number: where it has an average, give macro or micro"
            )


def check_tokens(data: TaskData, model: nn.Module) -> None:
    """Positions, token types and vocabulary of a text model, where it has limits, for all rows."""
    rows = [row for split in (data.train_rows, data.validation_rows) for row in split if "input_ids" in row]
    if not rows:
        return
    longest, positions = getattr(data, "max_length", max(len(row["input_ids"]) for row in rows)), _positions(model)
    if positions is not None and longest > positions:
        raise ConfigError(
            f"rows of {longest} tokens are beyond the model's {positions} positions: give data.max_length={positions} or less"
        )
    types = _table(model, "embeddings.token_type")
    kinds = [_largest(row["token_type_ids"]) for row in rows if "token_type_ids" in row]
    if types is not None and kinds and max(kinds) >= types.num_embeddings:
        raise ConfigError(
            f"the data holds token type {max(kinds)}, and the model knows 0 to {types.num_embeddings - 1}: give the model's own"
            " tokenizer with data.tokenizer=…, or another model.path"
        )
    vocabulary = getattr(model.config, "vocab_size", None)
    padding = getattr(getattr(data, "tokenizer", None), "pad_token_id", None) or 0
    largest = max(_largest(row["input_ids"]) for row in rows)
    if vocabulary is not None and max(largest, padding) >= vocabulary:
        held = (
            f"the data holds token {largest}" if largest >= vocabulary else f"the data are padded with token {padding}"
        )
        raise ConfigError(
            f"{held}, and the model knows 0 to {vocabulary - 1}: give the model's own tokenizer with"
            " data.tokenizer=…, or another model.path"
        )


def _positions(model: nn.Module) -> int | None:
    """Tokens that a row may have. RoBERTa counts positions from `padding_idx` + 1, so its table is longer than its rows."""
    table = _table(model, "embeddings.position")
    if table is not None and table.padding_idx is not None:
        return table.num_embeddings - table.padding_idx - 1
    return getattr(model.config, "max_position_embeddings", None)


def _table(model: nn.Module, part: str) -> nn.Embedding | None:
    path = part_paths(model).get(part)
    table = None if path is None else model.get_submodule(path)
    return table if isinstance(table, nn.Embedding) else None


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


def _check_labels(data: TaskData, model: nn.Module) -> None:
    """The teacher, which the student is a copy of, numbers the classes as the data does, where both name them.

    The data follow the model where it knows all their classes, so this is for a model that knows some of them, or for
    `data.label_names`. Also where a teacher stage would teach it the other order: an export names its classes by the model's.
    """
    if (told := other_order(label_names(model), data.label_names)) is not None:
        raise ConfigError(
            f"the model numbers the classes otherwise than the data: {told}: give data.label_names=[…] in the model's order"
            f" ({', '.join(label_names(model) or ())[:200]}), or a model.path that was trained on these classes"
        )


def _check_tokenizer(config: RunConfig, data: TaskData, model: nn.Module) -> None:
    """Another tokenizer than the model's own must give a token the same number; words added at the end may be more."""
    own, path = getattr(data, "tokenizer", None), config.model.path
    if own is None or not config.model.pretrained or config.data.get("tokenizer") in (None, path):
        return
    try:
        known = read_tokenizer(path, 1, must_pad=False).get_vocab()
    except ValueError:  # the model comes without one: there is nothing to compare with
        return
    numbers = own.get_vocab()
    moved = [token for token, number in numbers.items() if known.get(token, number) != number]
    if moved or len(numbers.keys() - known.keys()) > len(numbers) / 2:
        token = moved[0] if moved else next(iter(numbers.keys() - known.keys()))
        raise ConfigError(
            f"data.tokenizer={config.data['tokenizer']!r} is not the tokenizer of model.path={path!r}: {token!r} is"
            f" {numbers[token]} and not {known.get(token, 'known')}: leave data.tokenizer out, or give another model.path"
        )
