"""manifest.json: what a packed folder holds, with a checksum of every tensor and every file."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from qat_lightning.exporters.packed.untrusted_files import (
    KINDS,
    LARGEST_JSON,
    PackedError,
    StoredTensor,
    read_bytes,
    read_json,
    read_tensors,
    sha256,
)
from qat_lightning.models.packed_state import Packed
from qat_lightning.models.size import Size

FORMAT = 1
MANIFEST, WEIGHTS, CONFIG = "manifest.json", "packed.safetensors", "config.json"
"""Not model.safetensors: `from_pretrained` would take that, find none of its names, and go on with random weights."""
GENERATION = "generation_config.json"
"""Default settings of generation of a language model."""
PARTS = (".weight.codes", ".weight.scale", ".weight.zero_point")

Plain = dict[str, Any]


def canonical(content: Mapping[str, Any]) -> bytes:
    """Serialize to JSON: the same bytes for the same content."""
    return (json.dumps(content, indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n").encode()


def make_manifest(packed: Packed, size: Size, files: Mapping[str, bytes], facts: Mapping[str, Any]) -> Plain:
    """Make the manifest of a folder with these tensors and other files."""
    entries = {name: _tensor_entry(name, tensor, packed) for name, tensor in packed.tensors.items()}
    content = {
        "format": FORMAT,
        "tensors": entries,
        "files": {name: sha256(data) for name, data in files.items()},
        "bytes": _totals(entries, size, packed),
        "facts": json.loads(canonical(facts)),  # so that they are now what they will be when they are read
    }
    return content | {"sha256": sha256(canonical(content))}


def names_code(name: str, data: bytes) -> bool:
    """Return whether the configuration of a model, tokenizer or image processor names classes in its own folder."""
    return name.endswith("config.json") and "auto_map" in read_json(data, name)


def verify(folder: Path) -> tuple[dict[str, bytes], dict[str, StoredTensor]]:
    """Return the content of each file but the weights, and the tensors, after the manifest has been checked.

    Raises ValueError for a file or tensor that is missing, unknown to the manifest, or different from what was written.
    """
    if not folder.is_dir():
        raise PackedError(f"{folder} is not a folder: give the folder that an export has written")
    written = read_bytes(folder, CONFIG)
    if "quantization_config" not in read_json(written, CONFIG):
        raise PackedError(f"{folder} is a plain transformers folder: read it with from_pretrained, or export a run")
    manifest, files = _read_manifest(folder), {}
    for name, digest in manifest["files"].items():
        files[name] = data = written if name == CONFIG else read_bytes(folder, name)
        if sha256(data) != digest:
            raise ValueError(f"{name} is not the file that was exported (its SHA-256 differs)")
        if names_code(name, data):
            raise ValueError(f"{name} names code of its own (auto_map), which is never run")
    if CONFIG not in files:
        raise ValueError(f"{MANIFEST} does not know {CONFIG}")
    tensors = read_tensors(read_bytes(folder, WEIGHTS, LARGEST_JSON + _count(manifest["tensors"])), WEIGHTS)
    _compare(manifest["tensors"], tensors)
    return files, tensors


def _read_manifest(folder: Path) -> Plain:
    manifest = read_json(read_bytes(folder, MANIFEST), MANIFEST)
    if type(manifest.get("format")) is int and manifest["format"] > FORMAT:
        raise PackedError(f"{folder} is of a later version (format {manifest['format']}): update qat-lightning")
    content = {name: value for name, value in manifest.items() if name != "sha256"}
    if manifest.get("sha256") != sha256(canonical(content)):
        raise ValueError(f"{MANIFEST} was changed after the export (its own SHA-256 differs)")
    if not all(isinstance(content.get(name), dict) for name in ("tensors", "files")):
        raise ValueError(f"{MANIFEST} lists no tensors and files")
    return manifest


def _count(listed: Plain) -> int:
    """Sum the bytes of the tensors in the manifest; they are compared with the file later."""
    counts = [entry.get("bytes") for entry in listed.values() if isinstance(entry, dict)]
    return sum(count for count in counts if type(count) is int and count > 0)


def _compare(listed: Plain, tensors: Mapping[str, StoredTensor]) -> None:
    for name in sorted(listed.keys() ^ tensors.keys()):
        wrong = "lacks" if name in listed else "has"
        raise ValueError(f"{WEIGHTS} {wrong} the tensor {name}, other than {MANIFEST} lists")
    for name, tensor in tensors.items():
        found = {"shape": list(tensor.shape), "dtype": tensor.kind, "bytes": len(tensor.data)}
        for key, value in (found | {"sha256": sha256(tensor.data)}).items():
            if not isinstance(listed[name], dict) or listed[name].get(key) != value:
                raise ValueError(f"the {key} of {name} is not the one that {MANIFEST} lists")


def _tensor_entry(name: str, tensor: Tensor, packed: Packed) -> Plain:
    codes = packed.weights.get(name.removesuffix(".weight.codes")) if name.endswith(".weight.codes") else None
    if tensor.dtype not in KINDS.values():
        raise ValueError(f"{name} is of {tensor.dtype}; a packed folder has {', '.join(map(str, KINDS.values()))}")
    return {
        "shape": list(tensor.shape),
        "dtype": next(kind for kind, dtype in KINDS.items() if dtype == tensor.dtype),
        "bits": codes.bits if codes else 8 * tensor.element_size(),
        "bytes": tensor.numel() * tensor.element_size(),
        "sha256": sha256(tensor.numpy()),
    }


def _totals(entries: Mapping[str, Plain], size: Size, packed: Packed) -> Plain:
    """Sum bytes; bits_per_weight counts codes, scales and zero points of quantized weights."""
    of_weights = {f"{path}{part}" for path in packed.weights for part in PARTS}
    quantized = sum(entry["bytes"] for name, entry in entries.items() if name in of_weights)
    count = sum(math.prod(weight.shape) for weight in packed.weights.values())
    return {
        "float32": size.float32,
        "packed": size.packed,
        "ratio": round(size.ratio, 3),
        "bits_per_weight": round(8 * quantized / count, 4) if count else 32,
        "full_precision": size.packed - quantized,
    }
