"""Lightning data modules."""

from qat_lightning.data.base import TaskData
from qat_lightning.data.image_classification import Digits, ImageClassificationData
from qat_lightning.data.language_modeling import LanguageModelingData
from qat_lightning.data.sentence_embedding import SentenceEmbeddingData, SimilaritySpearman
from qat_lightning.data.squad.datamodule import SquadData
from qat_lightning.data.squad.metric import AnswerScore
from qat_lightning.data.synthetic import RandomImages, RandomQuestions, RandomText, RandomTokens
from qat_lightning.data.text_classification import TextClassificationData

__all__ = [
    "AnswerScore",
    "Digits",
    "ImageClassificationData",
    "LanguageModelingData",
    "RandomImages",
    "RandomQuestions",
    "RandomText",
    "RandomTokens",
    "SentenceEmbeddingData",
    "SimilaritySpearman",
    "SquadData",
    "TaskData",
    "TextClassificationData",
]
