"""Plots of a run as matplotlib figures: `training_curves(…).savefig("curves.png")`."""

from qat_lightning.reports.plots.attention_maps import attention_map_plot
from qat_lightning.reports.plots.bits import bits_plot
from qat_lightning.reports.plots.confusion import confusion_plot
from qat_lightning.reports.plots.curvature import landscape_plot, spectrum_plot
from qat_lightning.reports.plots.layers import (
    dynamic_range_plot,
    layer_error_plot,
    layer_panels_plot,
    norm_plot,
    step_size_plot,
)
from qat_lightning.reports.plots.style import default_style
from qat_lightning.reports.plots.training_curves import training_curves

__all__ = [
    "attention_map_plot", "bits_plot", "confusion_plot", "default_style", "dynamic_range_plot", "landscape_plot",
    "layer_error_plot", "layer_panels_plot", "norm_plot", "spectrum_plot", "step_size_plot", "training_curves",
]  # fmt: skip
