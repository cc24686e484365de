"""A trained student in forms that others can load; one folder is one format."""

from qat_lightning.exporters.base import ExportContext, ExportFormat
from qat_lightning.exporters.packed.reader import load_packed
from qat_lightning.exporters.packed.untrusted_files import PackedError
from qat_lightning.exporters.packed.writer import write_packed

__all__ = ["ExportContext", "ExportFormat", "PackedError", "load_packed", "write_packed"]
