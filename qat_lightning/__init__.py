"""Ultra-low-bit quantization-aware training with distillation for Transformers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from qat_lightning.exporters.packed.reader import load_packed

__all__ = ["load_packed"]


def __getattr__(name: str) -> Any:
    """The public names, imported when first asked for: `import qat_lightning` alone imports nothing."""
    if name == "load_packed":
        from qat_lightning.exporters.packed.reader import load_packed

        return load_packed
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
