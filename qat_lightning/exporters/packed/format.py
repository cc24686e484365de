"""The packed folder as an export format."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import nn

from qat_lightning.exporters.base import ExportContext
from qat_lightning.exporters.packed.manifest import MANIFEST, PARTS, WEIGHTS
from qat_lightning.exporters.packed.model_config import check_class
from qat_lightning.exporters.packed.quantization_config import check_quantizers
from qat_lightning.exporters.packed.reader import load_packed
from qat_lightning.exporters.packed.untrusted_files import read_bytes, read_json
from qat_lightning.exporters.packed.writer import write_packed
from qat_lightning.models.packed_state import TernaryEncoding, UnquantizedDtype
from qat_lightning.quantization.quantizers.base import Quantizer


class PackedFormat:
    """`packed/`: codes at their true width, as `write_packed` writes them and `load_packed` reads them.

    `quantizers` are classes of other packages that may quantize activations.
    """

    name = path = "packed"

    def __init__(
        self,
        unquantized_dtype: UnquantizedDtype = "float32",
        ternary_encoding: TernaryEncoding = "2bit",
        quantizers: Sequence[type[Quantizer]] = (),
    ) -> None:
        self.unquantized_dtype, self.ternary_encoding = unquantized_dtype, ternary_encoding
        self.quantizers = tuple(quantizers)
        self.exact = unquantized_dtype == "float32"

    def supports(self, model: nn.Module) -> str | None:
        try:
            check_class(model)
            check_quantizers(model)
        except ValueError as error:
            return str(error)
        return None

    def write(self, student: nn.Module, folder: Path, context: ExportContext) -> None:
        write_packed(
            student,
            folder / self.path,
            unquantized_dtype=self.unquantized_dtype,
            ternary_encoding=self.ternary_encoding,
            processor=context.processor,
        )

    def load(self, folder: Path) -> nn.Module:
        return load_packed(folder / self.path, quantizers=self.quantizers)

    def describe(self, folder: Path) -> dict[str, Any]:
        manifest = read_json(read_bytes(folder / self.path, MANIFEST), MANIFEST)
        matrices = [  # unquantized; vectors are biases, normalization and scales
            name.removesuffix(".weight")
            for name, entry in manifest["tensors"].items()
            if len(entry["shape"]) > 1 and not name.endswith(PARTS)
        ]
        return {
            "path": f"{self.path}/",
            "bytes": (folder / self.path / WEIGHTS).stat().st_size,
            "bits_per_weight": manifest["bytes"]["bits_per_weight"],
            "full_precision_bytes": manifest["bytes"]["full_precision"],
            "full_precision": list(dict.fromkeys(re.sub(r"\.\d+\.", ".*.", name) for name in matrices)),
            "unquantized_dtype": self.unquantized_dtype,
            "ternary_encoding": self.ternary_encoding,
        }
