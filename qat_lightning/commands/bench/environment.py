"""What figures depend on besides the code: the processor and the versions."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path

import torch

from qat_lightning.config.schema import Plain

PROCESSOR = Path("/proc/cpuinfo")

INSTRUCTIONS = ("avx2", "avx512f", "avx_vnni", "avx512_vnni", "amx_int8", "asimd", "asimddp", "i8mm")
"""Those of which products of 8-bit numbers are made; with none of VNNI, AMX, asimddp they are little faster than float32."""

LIBRARIES = ("qat-lightning", "torch", "onnxruntime", "onnx", "transformers")


def machine() -> Plain:
    """The processor's name, how many cores this process may use, the instructions that matter here."""
    told = PROCESSOR.read_text(encoding="utf-8") if PROCESSOR.is_file() else ""
    fields = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in told.splitlines())}
    known = set((fields.get("flags") or fields.get("Features") or "").split())
    return {
        "processor": fields.get("model name") or platform.processor() or platform.machine(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "instructions": [name for name in INSTRUCTIONS if name in known],
    }


def versions() -> dict[str, str]:
    return {name: version(name) for name in LIBRARIES}


@contextmanager
def torch_threads(threads: int) -> Iterator[None]:
    """torch's own, until the context ends."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)
