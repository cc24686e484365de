"""A trained student as a folder that others can read."""

from qat_lightning.exporters.packed.reader import load_packed
from qat_lightning.exporters.packed.untrusted_files import PackedError
from qat_lightning.exporters.packed.writer import write_packed

__all__ = ["PackedError", "load_packed", "write_packed"]
