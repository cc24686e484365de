"""A whole run: data → teacher → quantize → intervene → train → report, each stage once."""

from qat_lightning.run.command import prepared, run
from qat_lightning.run.rank import first_process, know_the_rank
from qat_lightning.run.stages import Run, opened

__all__ = ["Run", "first_process", "know_the_rank", "opened", "prepared", "run"]
