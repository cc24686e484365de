"""A student → a folder with its weights packed at their true width; it appears whole or not at all."""

from __future__ import annotations

import os
import re
import secrets
import shutil
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import nn

from qat_lightning.exporters.packed.manifest import (
    CONFIG,
    GENERATION,
    MANIFEST,
    WEIGHTS,
    Plain,
    canonical,
    make_manifest,
    names_code,
)
from qat_lightning.exporters.packed.model_config import make_config, make_generation
from qat_lightning.exporters.packed.untrusted_files import LARGEST_JSON, SUFFIXES
from qat_lightning.io.documents import DocumentError, read_json
from qat_lightning.io.files import atomic_write
from qat_lightning.models.packed_state import TernaryEncoding, UnquantizedDtype, packed_tensors
from qat_lightning.models.sentence_pooling import pooling_files
from qat_lightning.models.size import size_of


def write_packed(
    model: nn.Module,
    folder: str | Path,
    *,
    unquantized_dtype: UnquantizedDtype = "float32",
    ternary_encoding: TernaryEncoding = "2bit",
    processor: Any = None,
    facts: Mapping[str, Any] | None = None,
) -> Plain:
    """Write a folder that `qat_lightning.load_packed` reads; return the manifest.

    A packed folder of that name is replaced once the new one is complete. The same model gives the same bytes. A student
    that computes in bfloat16 or float64 is stored, and will be read, in float32.

    Args:
        unquantized_dtype: type of the weights that are not quantized; float16 halves them, and predictions then differ a little.
        ternary_encoding: weights of at most three levels as 2 bits each, or as five trits a byte (1.6 bits).
        processor: a tokenizer or image processor, which writes its own files (`save_pretrained`).
        facts: what the manifest carries along, as JSON.

    Raises:
        ValueError: a model that could not be read again; a folder that holds something else; see `packed_tensors`.
    """
    folder = Path(os.path.realpath(folder))
    _check_free(folder)
    packed = packed_tensors(model, unquantized_dtype, ternary_encoding)
    configurations = {CONFIG: canonical(make_config(model, packed))}
    if (generation := make_generation(model)) is not None:
        configurations[GENERATION] = canonical(generation)
    configurations |= {name: canonical(content) for name, content in pooling_files(model).items()}
    try:
        canonical(facts or {})
    except (TypeError, ValueError) as error:
        raise ValueError(f"facts cannot be written as JSON: {error}") from error
    folder.parent.mkdir(parents=True, exist_ok=True)
    _clear(folder)
    partial = folder.with_name(f".{folder.name}.{secrets.token_hex(8)}.partial")
    try:
        partial.mkdir()
        files = _processor_files(processor, partial) | configurations
        manifest = make_manifest(packed, size_of(model, packed), files, facts or {})
        for name, content in (*configurations.items(), (MANIFEST, canonical(manifest))):
            (partial / name).parent.mkdir(exist_ok=True)
            with atomic_write(partial / name) as temporary:
                temporary.write_bytes(content)
        with atomic_write(partial / WEIGHTS) as temporary:
            save_file(packed.tensors, temporary, metadata={"format": "pt"})
        _replace(partial, folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return manifest


def _check_free(folder: Path) -> None:
    """Refuse an existing folder that holds files its manifest does not list: it is going to be removed."""
    if not folder.exists():
        return
    if not folder.is_dir():
        raise ValueError(f"{folder} is a file, which would be lost: name a folder that is new, or a packed one")
    own, place = {MANIFEST, WEIGHTS, CONFIG}, folder / MANIFEST
    with suppress(DocumentError, KeyError, TypeError):
        files = read_json(place, LARGEST_JSON)["files"] if place.is_file() else {}
        own |= set(files) if isinstance(files, dict) else set()
    found = [
        path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_symlink() or not path.is_dir()
    ]
    if others := sorted(set(found) - (own if place.is_file() else set())):
        raise ValueError(f"{folder} holds something else, which would be lost, {others[0]}: name a new folder")


def _clear(folder: Path) -> None:
    """Remove what killed exports of this folder left; an old folder without a new one comes back first."""
    own = re.compile(rf"\.{re.escape(folder.name)}\.[0-9a-f]{{16}}\.(old|partial)")
    left = [path for path in folder.parent.iterdir() if own.fullmatch(path.name) and not path.is_symlink()]
    old = sorted((path for path in left if path.suffix == ".old"), key=lambda path: path.stat().st_mtime)
    if old and not folder.exists():
        left.remove(old[-1])
        old[-1].rename(folder)
    for path in left:
        shutil.rmtree(path, ignore_errors=True)


def _processor_files(processor: Any, folder: Path) -> dict[str, bytes]:
    """Let a tokenizer or image processor write its files; return name → content."""
    if processor is None:
        return {}
    processor.save_pretrained(folder)
    files = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}
    for name, path in files.items():
        if name in (CONFIG, GENERATION, WEIGHTS, MANIFEST) or path.suffix not in SUFFIXES - {".safetensors"}:
            raise ValueError(f"{type(processor).__name__} writes {name}, which has no place in a packed folder")
    contents = {name: path.read_bytes() for name, path in files.items()}
    for name, data in contents.items():
        if names_code(name, data):
            raise ValueError(f"{type(processor).__name__} has code of its own (auto_map in {name}): use a plain one")
    return contents


def _replace(partial: Path, folder: Path) -> None:
    """Replace the folder by two renames; if the second fails, the old folder comes back."""
    old = folder.with_name(f".{folder.name}.{secrets.token_hex(8)}.old")
    if not folder.exists():
        partial.rename(folder)
        return
    folder.rename(old)
    try:
        partial.rename(folder)
    except OSError:
        old.rename(folder)
        raise
    shutil.rmtree(old)
