"""Lightning data modules."""

from qat_lightning.data.base import TaskData
from qat_lightning.data.image_classification import Digits, ImageData
from qat_lightning.data.language_modeling import LanguageModelData
from qat_lightning.data.squad.datamodule import SquadData
from qat_lightning.data.squad.metric import AnswerScore
from qat_lightning.data.synthetic import RandomImages, RandomQuestions, RandomText, RandomTokens
from qat_lightning.data.text_classification import TextData

__all__ = [
    "AnswerScore",
    "Digits",
    "ImageData",
    "LanguageModelData",
    "RandomImages",
    "RandomQuestions",
    "RandomText",
    "RandomTokens",
    "SquadData",
    "TaskData",
    "TextData",
]
