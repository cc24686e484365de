"""A trained student as a folder that others can read."""

from qat_lightning.export.files import PackedError
from qat_lightning.export.loading import load_packed
from qat_lightning.export.packed import write_packed

__all__ = ["PackedError", "load_packed", "write_packed"]
