"""Load a packed folder as a plain transformers model."""

from __future__ import annotations

import copy
import os
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from qat_lightning.exporters.packed.manifest import CONFIG, GENERATION, PARTS, verify
from qat_lightning.exporters.packed.model_config import read_config, read_generation
from qat_lightning.exporters.packed.quantization_config import Block, Weight
from qat_lightning.exporters.packed.untrusted_files import in_a_line, read_json, refusing, to_tensor
from qat_lightning.models.convert import quantize
from qat_lightning.models.sentence_pooling import MODULES, POOLING, read_pooling
from qat_lightning.quantization.packing.bit_packing import unpack, unpack_base3
from qat_lightning.quantization.packing.stored_weight import dequantized
from qat_lightning.quantization.quantizers.base import Quantizer

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def load_packed(
    folder: str | os.PathLike[str], *, activations: bool = True, quantizers: Iterable[type[Quantizer]] = ()
) -> PreTrainedModel:
    """Load the model of a packed folder in evaluation mode: transformers' own class with float32 weights.

    It predicts exactly what the student predicted. Nothing is downloaded and no code of the folder is run; its files are
    read only if they are, byte for byte, those that were written.

    Args:
        activations: False leaves out the quantizers of inputs and attention operands: a model of plain layers alone, whose
            predictions differ a little from the student's.
        quantizers: classes of other packages that may quantize this model's activations; the folder itself never causes
            an import.

    Raises:
        PackedError: a damaged or changed folder, or a plain one; the message names the tensor or the file.
    """
    with refusing(Path(folder)):
        return _load(Path(folder), activations, quantizers)


def _load(folder: Path, activations: bool, quantizers: Iterable[type[Quantizer]]) -> PreTrainedModel:
    files, tensors = verify(folder)
    kind, configuration, block = read_config(read_json(files[CONFIG], CONFIG), quantizers, activations)
    state = _restore_tensors({name: to_tensor(tensor) for name, tensor in tensors.items()}, block)
    if not activations:
        state = {name: tensor for name, tensor in state.items() if "_quantizer." not in name}
    try:
        with torch.device("meta"):  # to compare names and shapes of tensors
            blank = kind(copy.deepcopy(configuration))  # opening attention writes into it
    except Exception as error:
        raise ValueError(f"config.json describes no {kind.__name__}: {in_a_line(error)}") from error
    own = _compare(blank, state, block)
    weights = {
        name: state[name].float() if state[name].is_floating_point() else state[name] for name in state.keys() & own
    }
    model = _build(kind, configuration, weights)
    if GENERATION in files:
        model.generation_config = read_generation(read_json(files[GENERATION], GENERATION))
    if POOLING in files:
        modules = read_json(files.get(MODULES, b"[]"), MODULES, list)
        model.sentence_pooling = read_pooling(read_json(files[POOLING], POOLING), modules)  # type: ignore[assignment]
    if activations:
        if block.eager:  # as the student was; opened attention is bitwise eager attention
            model.set_attn_implementation("eager")
        quantize(model, block.rules, block.attention)  # weights are on their grids already
        model.load_state_dict({name: tensor for name, tensor in state.items() if name not in own}, strict=False)
    return model.eval()


def _restore_tensors(stored: dict[str, Tensor], block: Block) -> dict[str, Tensor]:
    """Return the model's tensors by name, with quantized weights restored."""
    for name, tensor in stored.items():
        if tensor.is_floating_point() and not tensor.isfinite().all():
            raise ValueError(f"{name} is not finite")
    weights = {
        f"{path}.weight": _restore_weight(f"{path}.weight", weight, stored) for path, weight in block.weights.items()
    }
    for name in stored:
        if name.endswith(PARTS) or name in weights:
            raise ValueError(f"{name} is not part of a weight that config.json describes")
    return stored | weights


def _restore_weight(name: str, entry: Weight, stored: dict[str, Tensor]) -> Tensor:
    """Restore a weight from its codes, scale and zero_point, which are removed from `stored`."""
    parts = [f"{name}.codes", f"{name}.scale", *([f"{name}.zero_point"] if entry.zero_point is None else [])]
    for part in parts:
        if part not in stored:
            raise ValueError(f"the tensor {part} is missing")
    packed, scale, *moved = (stored.pop(part) for part in parts)
    for tensor in (scale, *moved):
        if tensor.dtype != torch.float32:
            raise ValueError(f"{name} has a scale or a zero point of {tensor.dtype} where float32 is written")
    zero_point = moved[0] if entry.zero_point is None else entry.zero_point
    group = entry.group_size
    shape = entry.shape if group is None else (*entry.shape[:-1], entry.shape[-1] // group, group)
    try:
        count = torch.Size(shape).numel()
        codes = unpack_base3(packed, count) if entry.packing == "base3" else unpack(packed, int(entry.bits), count)
        if torch.broadcast_shapes(shape, scale.shape, *(tensor.shape for tensor in moved)) != torch.Size(shape):
            raise ValueError(f"a scale of shape {tuple(scale.shape)} for codes of shape {tuple(shape)}")
        weight = dequantized(codes.view(shape), scale, zero_point, entry.shape)
    except (RuntimeError, ValueError) as error:
        raise ValueError(f"{name}: {error}") from error
    return weight.t().contiguous() if entry.transposed else weight


def _compare(blank: nn.Module, state: dict[str, Tensor], block: Block) -> set[str]:
    """Compare names and shapes of the tensors with the model; return those that no quantizer of activations has."""
    own: dict[str, Tensor] = {}
    for name, tensor in blank.state_dict(keep_vars=True).items():
        if not any(tensor is other for other in own.values()):  # tied weights are in the file once
            own[name] = tensor
    plain = set(blank.state_dict())
    quantize(blank, block.rules, block.attention)
    wanted = own | {name: tensor for name, tensor in blank.state_dict().items() if name not in plain}
    for name in sorted(wanted.keys() ^ state.keys()):
        wrong = "is missing" if name in wanted else f"is not a tensor of a {type(blank).__name__}"
        raise ValueError(f"{name} {wrong}")
    for name, tensor in wanted.items():
        if name.removesuffix(".weight") in block.weights and tensor.dim() > 2 and state[name].numel() == tensor.numel():
            state[name] = state[name].view(tensor.shape)  # a convolution's, which is stored as rows
        found = state[name]
        if tensor.shape != found.shape or tensor.is_floating_point() != found.is_floating_point():
            here, there = (f"{each.dtype} {tuple(each.shape)}" for each in (found, tensor))
            raise ValueError(f"{name} is {here} where the model has {there}")
    return set(own)


def _build(kind: Any, configuration: Any, state: dict[str, Tensor]) -> PreTrainedModel:
    """Build the model from a state dict; no weight is drawn at random, and no file is read."""
    from transformers.utils import logging

    bar = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        model, report = kind.from_pretrained(
            None,
            config=configuration,
            state_dict=state,
            dtype=torch.float32,
            local_files_only=True,
            trust_remote_code=False,
            output_loading_info=True,
        )
    finally:
        if bar:
            logging.enable_progress_bar()
    if wrong := [str(name) for names in report.values() for name in names]:
        raise ValueError(f"{wrong[0]} does not fit a {kind.__name__} of this version of transformers")
    return model
