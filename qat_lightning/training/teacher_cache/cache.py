"""A frozen teacher's signals kept on disk: a batch that comes again is read and not computed.

    folder/teacher.json                        what the signals depend on; another teacher's folder is refused
    folder/ab/abcd….hidden.safetensors         one site's signals of one batch

A file bears the SHA-256 of all that its content depends on: what teacher.json says, how the attention is computed, and the
batch itself (names, types, shapes and bytes of what the model reads). So what is found is what would be computed, bit for
bit; another order of the batches, another stage, another run or process may share the folder; and of two that write the
same file at once each writes the same bytes. A site is a file of its own, so a run that reads fewer or more of them finds
those that are there.
"""

from __future__ import annotations

import hashlib
import time
import warnings
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from torch import Tensor

from qat_lightning.compat import attention_implementation, is_compiled
from qat_lightning.io.files import PART
from qat_lightning.models.capture import Batch, SignalCapture, Signals
from qat_lightning.models.sites import MAPS
from qat_lightning.quantization.modules.attention import InstrumentedAttention
from qat_lightning.training.teacher_cache.fingerprint import Facts, check_facts, claim
from qat_lightning.training.teacher_cache.tensor_files import DamagedError, bytes_of, read_tensors, write_tensors

DAY = 86400


class TeacherCache:
    """`cache.of(observed)` takes the place of `observed`: batch → Signals.

    Args:
        folder: of this teacher's signals; made when the first are written.

    Attributes:
        found, computed: batches, since this object was made; damaged: files that were written anew.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.found, self.computed, self.damaged = folder, 0, 0, 0
        self.digest: str | None = None  # of the facts, once the folder is known to be theirs

    def check(self, facts: Facts, unknown: Sequence[str] = ()) -> None:
        """Raises ValueError where the folder holds another teacher's signals, or none (`check_facts`)."""
        check_facts(self.folder, facts, unknown)

    def claim(self, facts: Facts) -> None:
        """The folder is this teacher's from now on; raises as `check` does."""
        self.digest = claim(self.folder, facts)
        self._clear()

    def of(self, observed: SignalCapture) -> Kept:
        return Kept(observed, self)

    @property
    def bytes(self) -> int:
        """Of all files in the folder, whoever wrote them."""
        return sum(path.stat().st_size for path in self.folder.glob("*/*.safetensors"))

    def figures(self) -> dict[str, Any]:
        """For a run's records; the counts are of this process, from the program's last start on."""
        counts = {"found": self.found, "computed": self.computed, "damaged": self.damaged, "bytes": self.bytes}
        return {"folder": str(self.folder), **counts}

    def told(self) -> str:
        """What there was to do so far, in a line."""
        anew = f", {self.damaged} damaged files written anew" if self.damaged else ""
        return f"{self.found} batches found, {self.computed} computed{anew}"

    def path(self, key: str, site: str) -> Path:
        return self.folder / key[:2] / f"{key}.{site}.safetensors"

    def _clear(self) -> None:
        """Of what was being written a day ago the writer has been killed."""
        for path in self.folder.rglob("*.part"):
            with suppress(FileNotFoundError):
                if PART.fullmatch(path.name) and path.lstat().st_mtime < time.time() - DAY:
                    path.unlink()


class Kept:
    """Like the `SignalCapture` that it wraps; the teacher runs only for a batch of which a signal is missing.

    On a device the integers that a text model reads, or an image model's pixels, are copied to the host for the key, once
    a batch, which waits for them; on a CPU nothing is copied.
    """

    def __init__(self, observed: SignalCapture, cache: TeacherCache) -> None:
        self.observed, self.cache, self.paths = observed, cache, observed.paths
        self.sites = [*observed.paths, "logits"]

    def __call__(self, batch: Batch) -> Signals:
        read = {name: batch[name] for name in self.observed.inputs if name in batch}
        key = self._key(read)
        device = next(iter(read.values())).device
        kept = {site: self._read(self.cache.path(key, site), device) for site in self.sites}
        found = {site: signals for site, signals in kept.items() if signals is not None}
        if len(found) == len(self.sites):
            self.cache.found += 1
            return found
        signals = self.observed(batch)
        self.cache.computed += 1
        for site in self.sites:
            if site not in found:
                self._write(self.cache.path(key, site), signals[site])
        return signals

    def _key(self, read: Mapping[str, Tensor]) -> str:
        if self.cache.digest is None:
            raise ValueError("whose signals the folder holds is not said yet: call cache.claim(facts) before training")
        digest = hashlib.sha256(f"{self.cache.digest} {self._attention()}".encode())
        for name, tensor in read.items():
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(bytes_of(tensor))
        return digest.hexdigest()

    def _attention(self) -> str:
        """How it is computed, which rounds otherwise: transformers' own way, or opened and lean or with its maps made."""
        model = self.observed.model
        watched = bool(MAPS.intersection(self.sites))  # which a lean core makes no maps without
        fused = [core.lean and not watched for core in model.modules() if isinstance(core, InstrumentedAttention)]
        own = attention_implementation(model)
        compiled = is_compiled(model)
        return f"{own} {fused} {compiled}"

    def _write(self, path: Path, signals: list[Tensor]) -> None:
        try:
            write_tensors(path, signals)
        except OSError as error:
            raise ValueError(
                f"teacher_cache={str(self.cache.folder)!r} cannot be written to ({error.strerror or error}): make room there, or"
                " leave teacher_cache out, which changes no result"
            ) from error

    def _read(self, path: Path, device: Any) -> list[Tensor] | None:
        """None where there is no such file, or a damaged one: the teacher is at hand and makes it anew."""
        try:
            return read_tensors(path, device)
        except FileNotFoundError:
            return None
        except DamagedError as error:
            self.cache.damaged += 1
            warnings.warn(f"{error}; it is computed and written again", stacklevel=2)
            return None
