"""Pictures of a run: matplotlib figures outside its global state. `training_curves(…).savefig("curves.png")`."""

from qat_lightning.analysis.plots.curves import training_curves
from qat_lightning.analysis.plots.landscape import landscape_plot
from qat_lightning.analysis.plots.layers import layer_error_plot
from qat_lightning.analysis.plots.maps import attention_map_plot
from qat_lightning.analysis.plots.norms import norm_plot
from qat_lightning.analysis.plots.panels import layer_panels_plot
from qat_lightning.analysis.plots.ranges import dynamic_range_plot
from qat_lightning.analysis.plots.spectrum import spectrum_plot
from qat_lightning.analysis.plots.step_sizes import step_size_plot
from qat_lightning.analysis.plots.style import own_look

__all__ = [
    "attention_map_plot",
    "dynamic_range_plot",
    "landscape_plot",
    "layer_error_plot",
    "layer_panels_plot",
    "norm_plot",
    "own_look",
    "spectrum_plot",
    "step_size_plot",
    "training_curves",
]
