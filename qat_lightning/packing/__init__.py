"""What a quantized model takes: codes at their true width, scales, and the rest in full precision."""

from qat_lightning.packing.codes import pack, pack_trits, packed_bytes, unpack, unpack_trits
from qat_lightning.packing.counting import Size, bits, quantized_weights, size, size_of, tensors_hash
from qat_lightning.packing.tensors import Layout, Packed, PackedWeight, Rest, packed_tensors, quantized_modules
from qat_lightning.packing.weights import DivergedError, Stored, dequantized, stored, transposed

__all__ = [
    "DivergedError",
    "Layout",
    "Packed",
    "PackedWeight",
    "Rest",
    "Size",
    "Stored",
    "bits",
    "dequantized",
    "pack",
    "pack_trits",
    "packed_bytes",
    "packed_tensors",
    "quantized_modules",
    "quantized_weights",
    "size",
    "size_of",
    "stored",
    "tensors_hash",
    "transposed",
    "unpack",
    "unpack_trits",
]
