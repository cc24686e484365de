"""Ultra-low-bit quantization-aware training with distillation for Transformers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from qat_lightning.exporters.packed.reader import load_packed

    __version__: str

__all__ = ["load_packed"]


def __getattr__(name: str) -> Any:
    """Import a public name at its first use, so that `import qat_lightning` alone takes no time."""
    if name == "__version__":
        from importlib.metadata import version

        return version("qat-lightning")
    if name == "load_packed":
        from qat_lightning.exporters.packed.reader import load_packed

        return load_packed
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
