"""A model from outside is data: the one place where its files become a model, and where what they could run is refused."""

from __future__ import annotations

import copy
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from textwrap import shorten
from typing import Any

import torch
from transformers import AutoConfig, PretrainedConfig, PreTrainedModel
from transformers.utils import cached_file, find_adapter_config_file, is_peft_available

from qat_lightning.config.schema import ConfigError, ModelConfig
from qat_lightning.data.hub import require_hub, source
from qat_lightning.io.documents import read_json
from qat_lightning.io.external_errors import explain

IMPLEMENTATIONS = ("_attn_implementation_internal", "_experts_implementation_internal")
"""Keys that name the implementation of attention and experts; a name that transformers does not define is downloaded and run."""

OWN = (None, "eager", "sdpa", "batched_mm", "grouped_mm")

NEVER = (
    "quantization_config",  # its loaders import other libraries, some of them kernels from the hub
    "transformers_weights",  # another file of weights than model.safetensors
    "custom_generate", "distributed_config", "fusion_config", "kernel_config", "per_layer_config", "use_kernels",
)  # fmt: skip
"""Keys of config.json, at any depth, that change what is loaded or run."""

PICKLED = (
    "only safetensors are read: save the model again with save_pretrained, or let its pytorch_model.bin be read, as tensors"
    " alone, with model.pickled_weights=true"
)
INDEX = "model.safetensors.index.json"

LONGEST = 500
"""Characters of another library's message; some hold a whole model."""

# If a hub id has no safetensors, transformers would take those of a pull request, which can be from anybody.
os.environ.setdefault("DISABLE_SAFETENSORS_CONVERSION", "1")


def read_architecture(model: ModelConfig, num_labels: int) -> PretrainedConfig:
    """The configuration of `model.path`, a hub id or a folder, in which nothing is left that would be run.

    Raises ConfigError for none there, a kernel, code of its own, or code that is trusted and not pinned.
    """
    given, path = _source(model), str(model.path)
    require_hub({"model.path": path})
    try:
        architecture = AutoConfig.from_pretrained(path, **given)
        architecture.problem_type = None  # of an earlier task, which may not go with this number of classes
        if architecture.num_labels != num_labels:
            architecture.num_labels = num_labels
    except Exception as error:  # transformers' checks of values raise classes of their own
        if "trust_remote_code" in str(error):
            raise ConfigError(
                f"{_path_key(model)} is of no family of transformers, and its own code is not run: give another model, or"
                " read that code and give model.trust_remote_code=true model.revision=COMMIT"
            ) from error
        raise ConfigError(
            f"{_path_key(model)} cannot be loaded, its config.json does not describe a model: {_in_a_line(error)}"
        ) from error
    return as_data(architecture, _path_key(model))


def read_weights(
    model: ModelConfig, architecture: PretrainedConfig, auto: Any
) -> tuple[PreTrainedModel, Mapping[str, Any]]:
    """The model in float32, and transformers' report on its weights. config.json is not read again: it was checked.

    Raises ConfigError for no weights, pickled ones without `model.pickled_weights`, an adapter, or a damaged file.
    """
    given, pickled = _source(model), model.pickled_weights
    try:
        _check_files(str(model.path), given["revision"])
        loaded, report = auto.from_pretrained(
            model.path,
            config=architecture,
            use_safetensors=None if pickled else True,
            weights_only=True,  # of a pytorch_model.bin: tensors, no objects
            dtype=torch.float32,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
            **given,
        )
    except Exception as error:  # of transformers, safetensors, the hub's client or the unpickler
        if not runs_code(model, architecture, auto):
            with torch.device("meta"):  # is it the architecture, without any weights?
                random_weights(model, architecture, auto)
        reason = _in_a_line(error)
        if "weights_only" in str(error):  # torch's own words advise to read such a pickle with weights_only=False
            reason = "its pickle holds more than tensors, which is never read"
        elif not pickled and isinstance(error, OSError) and ".safetensors" in str(error):
            reason += f" ({PICKLED})"
        raise ConfigError(f"{_path_key(model)} cannot be loaded: {reason}") from error
    return loaded, report


def random_weights(model: ModelConfig, architecture: PretrainedConfig, auto: Any) -> PreTrainedModel:
    """A model of that architecture, newly initialized; ConfigError with the file whose values do not go together."""
    own = copy.deepcopy(architecture)  # transformers 5.23 fails at None where a head has several classes (DeiT):
    own.architectures = own.architectures or []
    try:
        return auto.from_config(own, trust_remote_code=False)
    except Exception as error:  # whatever a family raises for a value of its own
        if explain(error) is not None:  # the machine's fault, such as too little memory
            raise
        place = f"{_path_key(model)} cannot be loaded, its config.json" if model.path else "model.architecture"
        raise ConfigError(f"{place} does not describe a model: {_in_a_line(error)}") from error


def as_data(architecture: PretrainedConfig, name: str) -> PretrainedConfig:
    """The configuration itself, refused where it names a kernel or another file; `name` names it in messages.

    Code that it names (`auto_map`) transformers leaves alone, and takes its own class of that family.
    """
    for key, value in _entries(architecture):
        if key in IMPLEMENTATIONS and value not in OWN:
            raise ConfigError(f"{name} names the kernel {value!r}, which would be downloaded and run: take it out")
        if key in NEVER and value not in (None, False, {}):
            raise ConfigError(f"{name} says {key} in its config.json, which is not honoured: give a plain model")
    return architecture


def runs_code(model: ModelConfig, architecture: PretrainedConfig, auto: Any) -> bool:
    """Tell whether the model's class comes from its own, trusted code."""
    return model.trust_remote_code and auto.__name__ in (getattr(architecture, "auto_map", None) or {})


def _source(model: ModelConfig) -> dict[str, Any]:
    try:
        return source(str(model.path), model.revision, model.trust_remote_code)
    except ValueError as error:
        raise ConfigError(str(error)) from error


def _check_files(path: str, revision: str | None) -> None:
    """Adapters would be loaded by another library; an index of shards could name pickles, or files elsewhere."""
    if (is_peft_available() or Path(path).is_dir()) and find_adapter_config_file(path, revision=revision) is not None:
        raise ValueError("it has an adapter: merge that into the weights and save the model")
    index = optional_file(path, INDEX, revision)
    for name in read_json(index)["weight_map"].values() if index else ():
        if Path(name).name != name or not name.endswith(".safetensors"):
            raise ValueError(f"{INDEX} names {name!r}, no .safetensors of the same folder")


def optional_file(path: str, name: str, revision: str | None) -> Path | None:
    """A file of a folder or a hub id; None where it has no file of that name, or the hub cannot be asked."""
    quiet = {"_raise_exceptions_for_missing_entries": False, "_raise_exceptions_for_connection_errors": False}
    found = cached_file(path, name, revision=revision, **quiet)
    return None if found is None else Path(found)


def _entries(node: Any) -> Iterator[tuple[str, Any]]:
    """Key and value at every depth: of dictionaries, and of the configurations within a configuration."""
    if isinstance(node, PretrainedConfig):
        node = vars(node)
    if isinstance(node, list | tuple):
        for child in node:
            yield from _entries(child)
    if isinstance(node, Mapping):
        for key, value in node.items():
            yield str(key), value
            yield from _entries(value)


def _path_key(model: ModelConfig) -> str:
    return f"model.path={model.path!r}"


def _in_a_line(error: Exception) -> str:
    named = f"{type(error).__name__} {error}" if isinstance(error, KeyError) else str(error)
    return shorten(named, LONGEST, placeholder=" …")
