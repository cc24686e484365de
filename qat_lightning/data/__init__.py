"""Lightning data modules."""

from qat_lightning.data.answers import AnswerScore
from qat_lightning.data.base import TaskData
from qat_lightning.data.images import Digits, ImageData
from qat_lightning.data.language import LanguageModelData
from qat_lightning.data.squad import SquadData
from qat_lightning.data.synthetic import RandomImages, RandomQuestions, RandomText, RandomTokens
from qat_lightning.data.text import TextData

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
