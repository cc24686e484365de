"""Pictures of a run: matplotlib figures outside its global state. `training_curves(…).savefig("curves.png")`."""

from qat_lightning.analysis.plots.curves import training_curves
from qat_lightning.analysis.plots.layers import layer_error_plot
from qat_lightning.analysis.plots.maps import attention_map_plot

__all__ = ["attention_map_plot", "layer_error_plot", "training_curves"]
