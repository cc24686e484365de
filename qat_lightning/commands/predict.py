"""Predict labels and probabilities for rows without labels, with a model of a finished run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow
from pyarrow import csv as arrow_csv
from pyarrow import parquet

from qat_lightning.commands.evaluate import choose_model, load_model, recorded_scores
from qat_lightning.commands.train.answers import outputs_of
from qat_lightning.commands.train.pipeline import opened
from qat_lightning.config.builders.models import build_data
from qat_lightning.config.instantiate import add_keys
from qat_lightning.config.schema import ConfigError, RunConfig
from qat_lightning.data.base import TaskData
from qat_lightning.io.files import atomic_write, check_plain

GLUE_NAMES = ("mnli", "mnli_matched", "mnli_mismatched", "qnli", "rte", "ax")
"""GLUE tasks whose submission holds names of classes; that of the others holds numbers."""

OUTPUTS = (".csv", ".jsonl", ".parquet", ".tsv")


def predict(config: RunConfig, folder: Path, model: str, source: Path, target: Path) -> Path:
    """Write the input's columns with `prediction` and, for classes, `probability_<class>`; return `target`.

    For token classification `prediction` holds the tag of each word, for several labels a row those of more than half
    probability. For a sentence encoder the column is `embedding`.

    Rows are read in batches of `data.evaluation_batch_size`, in their order, so that the predictions of a file are those
    that `evaluate` scores. A target that ends in .tsv is a submission to GLUE: `index` (the column idx, else the row's
    number) and `prediction`.

    Args:
        model: "student", "teacher", or the name of an export format.
        source: csv, tsv, json, jsonl or parquet with the columns of the run's inputs, or a folder of images.
        target: csv, jsonl, parquet or tsv; it must not exist.

    Raises:
        ValueError: an input that cannot be read, an unknown model, a target that exists or has another suffix.
    """
    config, formats = choose_model(config, model)
    if target.suffix.lower() not in OUTPUTS:
        raise ConfigError(f"output={str(target)!r} must end in {', '.join(OUTPUTS)}")
    if target.exists():
        raise ConfigError(f"output={str(target)!r} exists: remove it, or give another file")
    check_plain(folder)
    data, table = _read(config, source)
    recorded = recorded_scores(folder)
    run = opened(config, folder, data=data)
    logits, _ = outputs_of(run, load_model(run, model, formats), data.validation_rows)
    columns = data.output_columns(logits, recorded.get("label_names") or data.model_names)
    _write(target, _submission(table, columns, data) if target.suffix.lower() == ".tsv" else _joined(table, columns))
    run.say("predictions", f"{len(table)} rows of {source} by {model}: {target}")
    return target


def _read(config: RunConfig, source: Path) -> tuple[TaskData, pyarrow.Table]:
    """Return the run's data with the rows of `source` in place of both splits, and the columns of `source`."""
    if not source.exists():
        raise ConfigError(f"input={str(source)!r} does not exist")
    data = build_data(config)
    try:
        rows, table = data.read_unlabelled(source)
    except ValueError as error:
        raise ConfigError(f"input={str(source)!r}: {add_keys(str(error), config.data, 'data')}") from error
    if not len(rows):
        raise ConfigError(f"input={str(source)!r} has no rows")
    data.train_rows = data.validation_rows = rows
    return data, table


def _joined(table: pyarrow.Table, columns: dict[str, list[Any]]) -> pyarrow.Table:
    if taken := sorted(columns.keys() & set(table.column_names)):
        raise ConfigError(f"input has a column {taken[0]!r}, which the output writes: rename it")
    for name, values in columns.items():
        table = table.append_column(name, pyarrow.array(values))
    return table


def _submission(table: pyarrow.Table, columns: dict[str, list[Any]], data: TaskData) -> pyarrow.Table:
    """Return the two columns that gluebenchmark.com asks for (arXiv:1804.07461)."""
    if "prediction" not in columns:
        raise ConfigError(
            "a .tsv file is a submission to GLUE, which has no embeddings: give a .parquet, .jsonl or .csv file"
        )
    predictions, own = columns["prediction"], table.column_names
    index = next((table[name].to_pylist() for name in ("idx", "index") if name in own), list(range(len(predictions))))
    if not data.regression and data.task not in GLUE_NAMES:
        numbers = [name.removeprefix("probability_") for name in columns if name != "prediction"]
        predictions = [numbers.index(str(name)) for name in predictions]
    return pyarrow.table({"index": index, "prediction": predictions})


def _write(target: Path, table: pyarrow.Table) -> None:
    suffix = target.suffix.lower()
    if suffix in (".csv", ".tsv"):
        table = _with_texts(table)
    with atomic_write(target) as temporary:
        if suffix == ".parquet":
            parquet.write_table(table, temporary)
        elif suffix == ".jsonl":
            lines = (json.dumps(row, ensure_ascii=False, default=str) + "\n" for row in table.to_pylist())
            temporary.write_text("".join(lines), encoding="utf-8")
        elif suffix == ".tsv":  # pyarrow would put quote marks around the names
            lines = ("\t".join(map(str, row.values())) + "\n" for row in table.to_pylist())
            temporary.write_text("\t".join(table.column_names) + "\n" + "".join(lines), encoding="utf-8")
        else:
            arrow_csv.write_csv(table, temporary)


def _with_texts(table: pyarrow.Table) -> pyarrow.Table:
    """Join each list of a table to a text, with spaces: csv and tsv have no lists."""
    for number, name in enumerate(table.column_names):
        if pyarrow.types.is_list(table[name].type):
            texts = [None if row is None else " ".join(map(str, row)) for row in table[name].to_pylist()]
            table = table.set_column(number, name, pyarrow.array(texts, pyarrow.string()))
    return table
