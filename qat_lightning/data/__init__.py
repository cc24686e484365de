"""Lightning data modules."""

from qat_lightning.data.base import TaskData
from qat_lightning.data.image_classification import Digits, ImageClassificationData
from qat_lightning.data.language_modeling import LanguageModelingData
from qat_lightning.data.multi_label import MultiLabelData
from qat_lightning.data.reranking import RankingScore, RerankingData
from qat_lightning.data.sentence_embedding import SentenceEmbeddingData, SimilaritySpearman
from qat_lightning.data.squad.datamodule import SquadData
from qat_lightning.data.squad.metric import AnswerScore
from qat_lightning.data.synthetic import RandomImages, RandomQuestions, RandomText, RandomTokens
from qat_lightning.data.text_classification import TextClassificationData
from qat_lightning.data.token_classification.datamodule import TokenClassificationData
from qat_lightning.data.token_classification.metric import EntityScore

__all__ = [
    "AnswerScore",
    "Digits",
    "EntityScore",
    "ImageClassificationData",
    "LanguageModelingData",
    "MultiLabelData",
    "RandomImages",
    "RandomQuestions",
    "RandomText",
    "RandomTokens",
    "RankingScore",
    "RerankingData",
    "SentenceEmbeddingData",
    "SimilaritySpearman",
    "SquadData",
    "TaskData",
    "TextClassificationData",
    "TokenClassificationData",
]
