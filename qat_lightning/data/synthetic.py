"""Random rows with random labels, for smoke tests and timing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from qat_lightning.data.base import Row, TaskData, check_sizes
from qat_lightning.data.image_classification import collate_images
from qat_lightning.data.language_modeling import collate_tokens


class RandomText(TaskData):
    """Rows of two to `length` random tokens, padded to the longest of the batch.

    Args:
        rows: number of rows in each split.
        length: largest number of tokens in a row.
        vocabulary_size: tokens are 1…vocabulary_size − 1; 0 is padding.
    """

    task = "random text"

    def __init__(self, *, rows: int = 64, length: int = 16, vocabulary_size: int = 128, **common: Any) -> None:
        super().__init__(**common)
        check_sizes(rows=rows)
        check_sizes(2, length=length, vocabulary_size=vocabulary_size)
        self.rows, self.length, self.vocabulary_size = rows, length, vocabulary_size

    def read(self) -> tuple[Sequence[Row], Sequence[Row]]:
        draw = torch.Generator().manual_seed(0)
        return self._rows(draw), self._rows(draw)

    def _rows(self, draw: torch.Generator) -> list[Row]:
        lengths = torch.randint(2, self.length + 1, (self.rows,), generator=draw).tolist()
        return [self._row(length, draw) for length in lengths]

    def _row(self, length: int, draw: torch.Generator) -> Row:
        return {"input_ids": self._tokens(length, draw), "labels": _label(self.num_labels, draw)}

    def _tokens(self, length: int, draw: torch.Generator) -> Tensor:
        return torch.randint(1, self.vocabulary_size, (length,), generator=draw)

    def collate(self, rows: Sequence[Row]) -> dict[str, Tensor]:
        ids = torch.nn.utils.rnn.pad_sequence([row["input_ids"] for row in rows], batch_first=True)
        return {
            "input_ids": ids,
            "attention_mask": (ids > 0).long(),
            "labels": torch.tensor([row["labels"] for row in rows]),
        }


class RandomQuestions(RandomText):
    """Rows of random tokens, the first always 1, as a [CLS]; answers are random spans after it."""

    task, head = "random questions", "question_answering"

    def __init__(self, **given: Any) -> None:
        super().__init__(num_labels=2, **given)  # a start and an end

    def _row(self, length: int, draw: torch.Generator) -> Row:
        tokens = self._tokens(length, draw)
        tokens[0] = 1
        return {"input_ids": tokens, "labels": torch.randint(1, length, (2,), generator=draw).sort().values}

    def collate(self, rows: Sequence[Row]) -> dict[str, Tensor]:
        batch = collate_tokens(rows, fill=0)
        return batch | {"labels": torch.stack([row["labels"] for row in rows])}

    def predict(self, logits: Sequence[Tensor], batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Return the most likely positions (2B,), starts and then ends, and the right ones."""
        padding = batch["attention_mask"] == 0
        positions = [scores.masked_fill(padding, -torch.inf).argmax(1) for scores in logits]
        return torch.cat(positions), batch["labels"].T.flatten()


class RandomTokens(RandomText):
    """Rows of random tokens for a language model; "labels" are the next tokens."""

    task, head = "random tokens", "causal_language_model"

    def __init__(self, **given: Any) -> None:
        super().__init__(num_labels=2, **given)  # a language model does not use it

    def _row(self, length: int, draw: torch.Generator) -> Row:
        tokens = self._tokens(length + 1, draw)
        return {"input_ids": tokens[:-1], "labels": tokens[1:]}

    def collate(self, rows: Sequence[Row]) -> dict[str, Tensor]:
        return collate_tokens(rows, fill=0)

    def predict(self, logits: Sequence[Tensor], batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Return logits (B, N, V) and labels (B, N)."""
        return logits[0], batch["labels"]


class RandomImages(TaskData):
    """Images of normally distributed pixels.

    Args:
        rows: number of rows in each split.
        channels: number of channels.
        size: height and width in pixels.
    """

    task, head = "random images", "image_classification"

    def __init__(self, *, rows: int = 64, channels: int = 3, size: int = 224, **common: Any) -> None:
        super().__init__(**common)
        check_sizes(rows=rows, channels=channels, size=size)
        self.rows, self.channels, self.size = rows, channels, size

    def read(self) -> tuple[Sequence[Row], Sequence[Row]]:
        draw = torch.Generator().manual_seed(0)
        return self._rows(draw), self._rows(draw)

    def _rows(self, draw: torch.Generator) -> list[Row]:
        shape = (self.channels, self.size, self.size)
        return [
            {"pixel_values": torch.randn(shape, generator=draw), "labels": _label(self.num_labels, draw)}
            for _ in range(self.rows)
        ]

    def collate(self, rows: Sequence[Row]) -> dict[str, Tensor]:
        return collate_images(rows)


def _label(num_labels: int, draw: torch.Generator) -> int | float:
    """Draw a class, or a score for a regression."""
    if num_labels == 1:
        return torch.rand((), generator=draw).item()
    return int(torch.randint(num_labels, (), generator=draw))
