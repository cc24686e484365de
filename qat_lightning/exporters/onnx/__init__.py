"""A quantized model as an ONNX file: codes at their width, products of whole numbers."""

from qat_lightning.exporters.onnx.exporter import OnnxError, export_onnx
from qat_lightning.exporters.onnx.runtime import OnnxModel

__all__ = ["OnnxError", "OnnxModel", "export_onnx"]
