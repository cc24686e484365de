"""What a run did, in numbers and pictures. `analysis.plots` needs matplotlib and is imported by name only."""

from qat_lightning.analysis.errors import layer_errors
from qat_lightning.analysis.history import StageHistory, read_history
from qat_lightning.analysis.verdict import verdict

__all__ = ["StageHistory", "layer_errors", "read_history", "verdict"]
