"""Configuration → data, teacher and student."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING,
    MODEL_FOR_QUESTION_ANSWERING_MAPPING,
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
    MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING,
    MODEL_MAPPING,
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForImageClassification,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    PretrainedConfig,
    PreTrainedModel,
)

from qat_lightning.config.builders.data_arguments import follow_model
from qat_lightning.config.builders.pretrained import as_data, random_weights, read_architecture, read_weights, runs_code
from qat_lightning.config.builders.pretrained_weights import check_weights, warnings_of_transformers
from qat_lightning.config.instantiate import add_keys, create, create_all, keys_in_messages
from qat_lightning.config.schema import BenchConfig, ConfigError, ModelConfig, QuantizationConfig, RunConfig
from qat_lightning.data.base import Head, TaskData
from qat_lightning.data.sentence_embedding import SentenceEmbeddingData
from qat_lightning.models.capture import SignalCapture
from qat_lightning.models.convert import QuantizationRule, keep_layers, quantize
from qat_lightning.models.families import FAMILIES
from qat_lightning.models.module_paths import family
from qat_lightning.models.quantized_model import calibrate
from qat_lightning.models.sentence_pooling import SentencePooling

HEADS: Mapping[Head, tuple[Any, Any]] = {
    "text_classification": (AutoModelForSequenceClassification, MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING),
    "image_classification": (AutoModelForImageClassification, MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING),
    "token_classification": (AutoModelForTokenClassification, MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING),
    "question_answering": (AutoModelForQuestionAnswering, MODEL_FOR_QUESTION_ANSWERING_MAPPING),
    "causal_language_model": (AutoModelForCausalLM, MODEL_FOR_CAUSAL_LM_MAPPING),
    "sentence_embedding": (AutoModel, MODEL_MAPPING),
}
"""Head → the class that makes a model with it, and the configurations that this class knows."""

FULL_PRECISION = {"64-true": torch.float64, "bf16-true": torch.bfloat16, "16-true": torch.float16}
"""Lightning's precisions that convert the model; made so from the start, a resumed run begins like any other."""


def build_data(config: RunConfig) -> TaskData:
    """The task's data, not read yet; its classes numbered, its pixels scaled as the model's files say."""
    data: TaskData = create(config.data, "data")
    follow_model(config.model, data)
    if isinstance(data, SentenceEmbeddingData):
        data.embed = partial(_embeddings, config, data)
    return data


@torch.no_grad()
def _embeddings(config: RunConfig, data: TaskData, batches: Iterable[Mapping[str, Tensor]]) -> Tensor:
    """Return the sentence embeddings (rows, D) of `model.path`."""
    capture = SignalCapture(build_model(config, data).eval())
    return torch.cat([capture(batch)["logits"][0].float() for batch in batches])


def load_data(config: RunConfig) -> TaskData:
    """Build the task's data and read it; messages name the keys of arguments."""
    data = build_data(config)
    with keys_in_messages(config.data, "data"):
        data.load()
    data.notes = [add_keys(note, config.data, "data") for note in data.notes]
    return data


def build_model(config: RunConfig, data: TaskData, say: Callable[[str], None] = lambda line: None) -> PreTrainedModel:
    """An unforked transformers model with the task's head: pretrained from a hub id or folder, or random weights.

    Nothing that comes with a model is run. `say` gets, line by line, where the weights are from and what transformers warns of.
    """
    with warnings_of_transformers() as warned:
        loaded, source = _read_model(config, data)
    for line in (source, *(f"transformers warns: {line}" for line in warned)):
        say(line)
    causal, own = family(loaded).causal, loaded.config  # whatever an earlier task has left in its config.json:
    own.return_dict, own.output_attentions, own.output_hidden_states, own.problem_type = True, False, False, None
    if isinstance(data, SentenceEmbeddingData):
        loaded.sentence_pooling = SentencePooling(data.pooling or "mean", data.normalize is not False)  # type: ignore[arg-type,assignment]
    if data.head in ("text_classification", "image_classification"):
        own.problem_type = "regression" if data.regression else "single_label_classification"
        if data.multi_label:
            own.problem_type = "multi_label_classification"
    if data.head == "text_classification":
        # a decoder classifies at the last token that is not padding, so it must know the padding of the batches
        padding = getattr(getattr(data, "tokenizer", None), "pad_token_id", None)
        if own.pad_token_id is None or (causal and padding is not None):
            own.pad_token_id = 0 if padding is None else padding
    loaded.to(dtype=FULL_PRECISION.get(config.trainer.precision, torch.float32))  # type: ignore[call-arg]
    return loaded


def _read_model(config: RunConfig, data: TaskData) -> tuple[PreTrainedModel, str]:
    """The model, and a line that says where its weights are from."""
    model, (auto, _) = config.model, HEADS[data.head]
    if not model.pretrained:
        architecture = described(model, num_labels=data.num_labels)
        _check_head(architecture, data.head)
        of = f" of {model.path!r}" if model.path else ""
        source = f"random weights (model.pretrained=false), {architecture.model_type} architecture{of}"
        return random_weights(model, architecture, auto), source
    if model.path is None:
        raise ConfigError("model.path must be given: a hub id or a folder (or model.pretrained=false, random weights)")
    architecture = read_architecture(model, num_labels=data.num_labels)
    if not runs_code(model, architecture, auto):
        _check_head(architecture, data.head)
    loaded, report = read_weights(model, architecture, auto)
    return loaded, check_weights(config, loaded, report)


def in_teacher_precision(config: RunConfig, teacher: nn.Module) -> nn.Module:
    """Return the teacher itself, or with `teacher_precision` a copy: what is quantized, scored and saved stays as it is.

    Parameters alone are converted: the angles of rotary positions are buffers, which transformers keeps in float32.
    """
    if config.teacher_precision is None:
        return teacher
    copied = copy.deepcopy(teacher)
    for parameter in copied.parameters():
        parameter.data = parameter.data.bfloat16()
    return copied


def build_student(config: RunConfig, teacher: nn.Module, data: TaskData) -> nn.Module:
    """Put the configured quantizers into `teacher` (hand over a copy); calibrate what is static on training batches."""
    student = build_quantized(config, teacher)
    calibrate(student, data.calibration_batches(config.quantization.calibration_rows))
    return student


def build_quantized(config: RunConfig | BenchConfig, teacher: nn.Module) -> nn.Module:
    """Put the configured quantizers into the student's layers of `teacher`, in place; they are not calibrated."""
    keep_student_layers(config.model, teacher)
    quantization = config.quantization
    attention = quantization.attention
    operands = create(attention, "quantization.attention") if attention else None
    return quantize(teacher, build_rules(quantization), operands, quantization.bits or {})


def build_rules(quantization: QuantizationConfig) -> list[QuantizationRule]:
    """Build the rules that place quantizers, in their order."""
    return list(create_all(quantization.rules, "quantization.rules").values())


def keep_student_layers(model: ModelConfig, teacher: nn.Module) -> nn.Module:
    """Leave only the layers of `model.student_layers` in `teacher`, in place."""
    if model.student_layers is not None:
        try:
            keep_layers(teacher, model.student_layers)
        except ValueError as error:
            raise ConfigError(f"model.student_layers: {error}") from error
    return teacher


def _check_head(architecture: PretrainedConfig, head: Head) -> None:
    known = FAMILIES.get(architecture.model_type)
    if head == "causal_language_model" and known is not None and not known.causal:
        raise ConfigError(f"a {architecture.model_type} model predicts no next token: choose model=gpt2 or llama")
    if type(architecture) not in HEADS[head][1]:
        raise ConfigError(
            f"a {architecture.model_type} model has no head for {head.replace('_', ' ')}: choose another model=… or data=…"
        )


def described(model: ModelConfig, num_labels: int) -> PretrainedConfig:
    """The architecture: of a local folder, else as configured; never from the hub."""
    if model.path and (Path(model.path) / "config.json").is_file():
        return read_architecture(model, num_labels)
    if not model.architecture:
        raise ConfigError("model.pretrained=false needs model.architecture, or a model.path that holds a config.json")
    return as_data(AutoConfig.for_model(**model.architecture, num_labels=num_labels), "model.architecture")
