"""Pictures of a run: matplotlib figures outside its global state. `training_curves(…).savefig("curves.png")`."""

from qat_lightning.reports.plots.attention_maps import attention_map_plot
from qat_lightning.reports.plots.attention_norms import norm_plot
from qat_lightning.reports.plots.dynamic_range import dynamic_range_plot
from qat_lightning.reports.plots.hessian_spectrum import spectrum_plot
from qat_lightning.reports.plots.layer_errors import layer_error_plot
from qat_lightning.reports.plots.loss_landscape import landscape_plot
from qat_lightning.reports.plots.panels import layer_panels_plot
from qat_lightning.reports.plots.step_sizes import step_size_plot
from qat_lightning.reports.plots.style import own_look
from qat_lightning.reports.plots.training_curves import training_curves

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
