"""Where things are in a model.

A *site* is a named place in every layer where a signal passes; a *part* is a named module that can be quantized.
"""

from qat_lightning.sites.families import FAMILIES, Family
from qat_lightning.sites.names import AXES, CORE_SITES, FACTORS, FUSED, INPUT_SITES, MAPS, READERS, check_site
from qat_lightning.sites.paths import (
    attention_paths,
    entrances,
    family,
    has_site,
    layer_pairs,
    layer_paths,
    part_kind,
    part_paths,
    site_paths,
    source_paths,
)

__all__ = [
    "AXES",
    "CORE_SITES",
    "FACTORS",
    "FAMILIES",
    "FUSED",
    "INPUT_SITES",
    "MAPS",
    "READERS",
    "Family",
    "attention_paths",
    "check_site",
    "entrances",
    "family",
    "has_site",
    "layer_pairs",
    "layer_paths",
    "part_kind",
    "part_paths",
    "site_paths",
    "source_paths",
]
