"""Token classification: a class for each word, from CoNLL-style files or from columns of lists."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow
import torch
from datasets import Dataset, Features, Value
from torch import Tensor

from qat_lightning.data.base import Row
from qat_lightning.data.dataset_files import read_split, read_table
from qat_lightning.data.file_formats import Column
from qat_lightning.data.labels import UNLABELLED, LabelColumn, read_labels
from qat_lightning.data.token_classification.conll import SUFFIXES, conll_file, read_conll
from qat_lightning.data.token_classification.metric import EntityScore
from qat_lightning.data.tokenizers import CHUNK, IGNORED, TokenizedData, pad_rows


@dataclass
class Sentences:
    """The sentences of a split as lists of words, and the tags of all words as one column; no tags for rows to predict."""

    words: list[list[str]]
    tags: Dataset | None = None


class TokenClassificationData(TokenizedData):
    """Batches of input_ids, attention_mask (and token_type_ids), and labels, (B, N).

    A word's label is at its first token; its other tokens, special tokens and padding have −100. Words beyond `max_length`
    are cut, and counted.

    Args:
        words_column, tags_column: columns of lists in parquet, json or jsonl; tags are names or numbers.
        conll_columns: positions of the word and of the tag in train.conll, .iob, .iob2, .bio or .txt.
        label_names: the tags in the order of their numbers; None for the model's order, else the data's own.
        unlabelled: tags of words that are neither trained nor scored.
        common: the arguments of `TokenizedData` and `TaskData`.

    Raises:
        ValueError: an argument out of range; when read, other numbers of words and tags, an unknown tag, no fast tokenizer,
            or an error of `read_split`.
    """

    head = "token_classification"

    def __init__(
        self,
        *,
        words_column: str = "tokens",
        tags_column: str = "ner_tags",
        conll_columns: Sequence[int] = (0, -1),
        label_names: Sequence[str | int | bool] | None = None,
        unlabelled: Sequence[str | int] = UNLABELLED,
        max_length: int = 128,
        **common: Any,
    ) -> None:
        super().__init__(max_length=max_length, **common)
        if len(conll_columns) != 2 or self.num_labels < 2:
            raise ValueError(
                f"conll_columns={list(conll_columns)} must be the positions of word and tag, and num_labels={self.num_labels} 2"
                " or more"
            )
        self.words_column, self.tags_column, self.conll_columns = words_column, tags_column, list(conll_columns)
        names = None if label_names is None else [*map(str, label_names)]
        self.labels = LabelColumn(tags_column, self.num_labels, names, unlabelled=unlabelled, unit="word")

    def read(self) -> tuple[Sequence[Row], Sequence[Row]]:
        self._read_tokenizer()
        splits = {name: self._sentences(name) for name in self.splits}
        tags = {name: split.tags for name, split in splits.items() if split.tags is not None}
        labels = read_labels(tags, replace(self.labels, model_names=self.model_names))
        self.label_names, self.notes = labels.names, [*labels.notes]
        for metric in self.metrics.values():
            if isinstance(metric, EntityScore):
                metric.names = self.label_names or [str(number) for number in range(self.num_labels)]
        train, validation = (self._encode(split.words, labels.splits[name], name) for name, split in splits.items())
        return train, validation

    def read_unlabelled(self, source: Path) -> tuple[Sequence[Row], pyarrow.Table]:
        self._read_tokenizer()
        if source.suffix.lower() in SUFFIXES:
            sentences = read_conll(source, self.conll_columns[:1])
            table = pyarrow.table({self.words_column: [words for (words,) in sentences]})
        else:
            table = read_table(source, [Column(self.words_column, "name the column with words_column=…")])
        words = _words(table[self.words_column].to_pylist(), "input", self.words_column)
        return self._encode(words, [0] * sum(map(len, words)), "input", unlabelled=True), table

    def output_columns(self, logits: Tensor, names: Sequence[str] | None) -> dict[str, list[Any]]:
        """Return the tag of each word, a list a row; None for a word without a token."""
        tags = iter([names[number] if names else number for number in logits.argmax(-1).tolist()])
        return {"prediction": [[next(tags) if seen else None for seen in row] for row in self.seen]}

    def collate(self, rows: Sequence[Row]) -> dict[str, Tensor]:
        batch = self.pad(rows)
        labels = pad_rows([torch.tensor(row["labels"]) for row in rows], IGNORED, batch["input_ids"].shape[1])
        return {**batch, "labels": labels}

    def _read_tokenizer(self) -> None:
        self.read_tokenizer(pad_right=True, words=True)
        if not self.tokenizer.is_fast:
            raise ValueError(
                f"tokenizer={self.tokenizer_path!r} does not say which tokens a word has: set tokenizer=FOLDER to a tokenizer"
                " with a tokenizer.json"
            )

    def _sentences(self, name: str) -> Sentences:
        """Read one split."""
        column = self.tags_column
        if (file := conll_file(self.path, self.splits[name])) is not None:
            pairs, feature = read_conll(file, self.conll_columns), Value("string")
            words, tags = ([pair[part] for pair in pairs] for part in range(2))
        else:
            columns = [
                Column(self.words_column, "name the column with words_column=…"),
                Column(column, "name the column with tags_column=…"),
            ]
            split = read_split(self.path, self.name, self.splits[name], columns)
            words = _words(split[self.words_column][:], name, self.words_column)
            tags, feature = split[column][:], getattr(split.features[column], "feature", None)
        for row, (text, own) in enumerate(zip(words, tags, strict=True)):
            if not isinstance(own, list) or len(own) != len(text):
                raise ValueError(
                    f"row {row} of the {name} split has {len(text)} words and {column}={own!r}, which is not a list of as many"
                    " tags: repair the row, or set another tags_column=…"
                )
        flat = [tag for own in tags for tag in own]
        return Sentences(words, Dataset.from_dict({column: flat}, Features({column: feature}) if feature else None))

    def _encode(
        self, words: list[list[str]], labels: Sequence[int | float | None], name: str, unlabelled: bool = False
    ) -> list[Row]:
        """Tokenize the sentences, those without any labelled word only if `unlabelled`."""
        rows: list[Row] = []
        own, cut, self.seen = iter(labels), 0, list[list[bool]]()
        for start in range(0, len(words), CHUNK):
            chunk = words[start : start + CHUNK]
            encoded = self.tokenizer(
                chunk, is_split_into_words=True, truncation=True, max_length=self.max_length, return_attention_mask=True
            )
            for row, text in enumerate(chunk):
                places, numbers = encoded.word_ids(row), [next(own) for _ in text]
                firsts = [place for place in range(len(places)) if place == 0 or places[place] != places[place - 1]]
                known = {place: numbers[places[place]] for place in firsts if places[place] is not None}
                targets = [IGNORED if known.get(place) is None else known[place] for place in range(len(places))]
                self.seen.append([place in set(places) for place in range(len(text))])
                cut += self.seen[-1].count(False)
                if unlabelled or any(target != IGNORED for target in targets):
                    rows.append({key: encoded[key][row] for key in encoded} | {"labels": targets})
        if cut:
            self.notes.append(
                f"{cut} of {len(labels)} words of the {name} split have no token, as max_length={self.max_length} cuts them or"
                " the tokenizer drops them: they are neither trained nor scored"
            )
        return rows


def _words(rows: Sequence[Any], name: str, column: str) -> list[list[str]]:
    """Return the words of each row; raise ValueError for anything but lists of texts."""
    for row, words in enumerate(rows):
        if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
            raise ValueError(
                f"row {row} of the {name} split has {column}={words!r}, which is not a list of words: name a column of lists"
                " with words_column=…"
            )
    return list(rows)
