"""Store the signals of a frozen teacher on disk: a batch that is seen again is read instead of computed.

    folder/teacher.json                        the facts that the signals depend on; a folder of another teacher is refused
    folder/ab/abcd….hidden.safetensors         the signals of one site for one batch

A file's name is the SHA-256 of everything that its content depends on: the facts, how the attention is computed, and the
batch (names, types, shapes and bytes of the model's inputs). So a stored signal equals the computed one bit for bit, and
other batch orders, stages, runs and processes can share the folder. Each site has its own file, so a run that reads other
sites uses the files that exist.
"""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from qat_lightning.compat import attention_implementation, is_compiled
from qat_lightning.io.documents import read_json
from qat_lightning.io.files import PART, short_hash, write_once
from qat_lightning.models.capture import Batch, SignalCapture, Signals
from qat_lightning.models.sites import MAPS
from qat_lightning.quantization.modules.attention import InstrumentedAttention
from qat_lightning.training.teacher_cache.tensor_files import DamagedError, bytes_of, read_tensors, write_tensors

MANIFEST = "teacher.json"
Facts = Mapping[str, str | int | float | bool | list[Any] | None]
"""Name → value of everything that the signals depend on, except the batch and how the attention is computed."""


class TeacherCache:
    """A folder with one teacher's signals, created when the first are written.

    Attributes:
        found, computed: numbers of batches since this object was made.
        damaged: number of files that were computed and written again.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.found, self.computed, self.damaged = folder, 0, 0, 0
        self.facts_hash: str | None = None

    def check(self, facts: Facts, unknown: Sequence[str] = ()) -> None:
        """Raise ValueError if the folder holds signals of another teacher (the message names each difference), or other files.

        `unknown` names facts that are not known yet.
        """
        if not (self.folder / MANIFEST).is_file():
            self._check_empty()
            return
        stored = self._read_manifest()
        names = sorted({*stored, *facts} - {*unknown})
        if changed := [name for name in names if stored.get(name) != facts.get(name)]:
            changes = "; ".join(
                f"{name}: {short_hash(stored.get(name))} → {short_hash(facts.get(name))}" for name in changed
            )
            raise ValueError(
                f"teacher_cache={str(self.folder)!r} holds the signals of another teacher ({changes}): set another folder,"
                " or remove this one"
            )

    def claim(self, facts: Facts) -> None:
        """Write the facts to the folder, or check them against those of an earlier run; raises as `check` does."""
        self.check(facts)
        text = json.dumps(facts, indent=2, sort_keys=True)
        if not (self.folder / MANIFEST).is_file():
            write_once(self.folder / MANIFEST, text)
        self.check(facts)  # another run may have written its facts first
        self.facts_hash = hashlib.sha256(text.encode()).hexdigest()

    def wrap(self, capture: SignalCapture) -> CachedCapture:
        """Return a capture that reads signals from this folder where they exist."""
        return CachedCapture(capture, self)

    @property
    def bytes(self) -> int:
        """Bytes of all files in the folder, from all runs."""
        return sum(path.stat().st_size for path in self.folder.glob("*/*.safetensors"))

    def figures(self) -> dict[str, Any]:
        """Return the counts of this process and the folder's bytes, for `metrics.json`."""
        counts = {"found": self.found, "computed": self.computed, "damaged": self.damaged, "bytes": self.bytes}
        return {"folder": str(self.folder), **counts}

    def summary(self) -> str:
        """Return the counts in one line."""
        damaged = f", {self.damaged} damaged files written again" if self.damaged else ""
        return f"{self.found} batches found, {self.computed} computed{damaged}"

    def path(self, key: str, site: str) -> Path:
        """Return the file of one batch and site."""
        return self.folder / key[:2] / f"{key}.{site}.safetensors"

    def _check_empty(self) -> None:
        if self.folder.exists() and not self.folder.is_dir():
            raise ValueError(f"teacher_cache={str(self.folder)!r} is a file: set a folder")
        if self.folder.exists() and any(not PART.fullmatch(path.name) for path in self.folder.iterdir()):
            raise ValueError(f"teacher_cache={str(self.folder)!r} holds files but no {MANIFEST}: set a new folder")

    def _read_manifest(self) -> dict[str, Any]:
        with suppress(ValueError):
            stored = read_json(self.folder / MANIFEST)
            if isinstance(stored, dict):
                return stored
        raise ValueError(f"{self.folder / MANIFEST} is damaged: remove its folder, or set another teacher_cache")


class CachedCapture:
    """A `SignalCapture` that runs the teacher only for batches with a missing signal.

    On an accelerator the model's inputs are copied to the host once a batch to compute the key, which waits for them.
    """

    def __init__(self, capture: SignalCapture, cache: TeacherCache) -> None:
        self.capture, self.cache, self.paths = capture, cache, capture.paths
        self.sites = [*capture.paths, "logits"]

    def __call__(self, batch: Batch) -> Signals:
        inputs = {name: batch[name] for name in self.capture.inputs if name in batch}
        key = self._key(inputs)
        device = next(iter(inputs.values())).device
        stored = {site: self._read(self.cache.path(key, site), device) for site in self.sites}
        found = {site: signals for site, signals in stored.items() if signals is not None}
        if len(found) == len(self.sites):
            self.cache.found += 1
            return found
        signals = self.capture(batch)
        self.cache.computed += 1
        for site in self.sites:
            if site not in found:
                self._write(self.cache.path(key, site), signals[site])
        return signals

    def _key(self, inputs: Mapping[str, Tensor]) -> str:
        if self.cache.facts_hash is None:
            raise ValueError("call cache.claim(facts) before training: the facts of the teacher are part of the key")
        digest = hashlib.sha256(f"{self.cache.facts_hash} {self._attention()}".encode())
        for name, tensor in inputs.items():
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(bytes_of(tensor))
        return digest.hexdigest()

    def _attention(self) -> str:
        """Describe how the attention is computed, because each way rounds differently."""
        model = self.capture.model
        needs_maps = bool(MAPS.intersection(self.sites))  # a lean attention computes no maps unless one is captured
        fused = [core.lean and not needs_maps for core in model.modules() if isinstance(core, InstrumentedAttention)]
        return f"{attention_implementation(model)} {fused} {is_compiled(model)}"

    def _write(self, path: Path, signals: list[Tensor]) -> None:
        try:
            write_tensors(path, signals)
        except OSError as error:
            raise ValueError(
                f"teacher_cache={str(self.cache.folder)!r} cannot be written to ({error.strerror or error}): free some space"
                " on its disk, or leave teacher_cache out, which changes no result"
            ) from error

    def _read(self, path: Path, device: torch.device) -> list[Tensor] | None:
        """Return the stored signals, or None where the file is missing or damaged."""
        try:
            return read_tensors(path, device)
        except FileNotFoundError:
            return None
        except DamagedError as error:
            self.cache.damaged += 1
            warnings.warn(f"{error}; its signals are computed and written again", stacklevel=2)
            return None
