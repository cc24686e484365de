"""A quantized model as an ONNX file: codes at their width, products of integers.

`exporter.export_onnx` is imported when it is used: torch's exporter takes seconds to import.
"""

from qat_lightning.exporters.onnx.format import OnnxFormat
from qat_lightning.exporters.onnx.runtime import OnnxError, OnnxModel

__all__ = ["OnnxError", "OnnxFormat", "OnnxModel"]
