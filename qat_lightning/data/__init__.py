"""Lightning data modules."""

from qat_lightning.data.base import TaskData
from qat_lightning.data.images import Digits
from qat_lightning.data.synthetic import RandomImages, RandomText
from qat_lightning.data.text import TextData

__all__ = ["Digits", "RandomImages", "RandomText", "TaskData", "TextData"]
