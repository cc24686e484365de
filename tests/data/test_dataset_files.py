"""Splits and cells from files in five formats, and the argument that each error names."""

import csv
import json

import pandas
import pytest
from datasets import Dataset
from datasets.packaged_modules import _PACKAGED_DATASETS_MODULES

from qat_lightning.data import dataset_files
from qat_lightning.data.dataset_files import read_split
from qat_lightning.data.file_formats import Column, read_file
from qat_lightning.data.hub import UnreachableError

ROWS = [{"sentence": "a cat", "label": 1}, {"sentence": "a dog", "label": 0}]
LINES = "\n".join(json.dumps(row) for row in ROWS) + "\n"
FORMATS = {
    "csv": "sentence,label\na cat,1\na dog,0\n",
    "tsv": "sentence\tlabel\na cat\t1\na dog\t0\n",
    "json": json.dumps(ROWS),
    "jsonl": LINES,
}
COLUMNS = [Column("text", "", text=True), Column("label", "")]


def put(folder, name, content):
    folder.mkdir(exist_ok=True)
    (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    return str(folder)


def parquet(folder, name, rows=ROWS):
    folder.mkdir(exist_ok=True)
    Dataset.from_list(rows).to_parquet(folder / f"{name}.parquet")
    return str(folder)


def cells(folder, name, content):
    """Return texts and labels of a file with this content."""
    put(folder, name, content)
    table = read_file(folder / name, COLUMNS).table
    return table["text"].to_pylist(), table["label"].to_pylist()


@pytest.mark.parametrize("suffix", [*FORMATS, "parquet"])
def test_every_format_gives_the_same_rows_and_writes_no_file(tmp_path, suffix):
    folder = parquet(tmp_path, "train") if suffix == "parquet" else put(tmp_path, f"train.{suffix}", FORMATS[suffix])
    assert read_split(folder, None, "train").to_list() == ROWS
    assert [path.name for path in tmp_path.iterdir()] == [f"train.{suffix}"]


LONG = 3_000_000 * "a"


@pytest.mark.parametrize(
    ("name", "content", "texts", "labels"),
    [
        ("csv", "text,label\n00042,1\n2020-01-01,0\n", ["00042", "2020-01-01"], [1, 0]),
        ("csv", "text,label\nNA,1\nnull,0\ntrue,1\n,0\n", ["NA", "null", "true", ""], [1, 0, 1, 0]),
        ("csv", "text,label\na,true\nb,NA\n", ["a", "b"], ["true", "NA"]),
        ("csv", "text,label\na,1\nb,none\n", ["a", "b"], ["1", "none"]),
        ("csv", "text,label\na,1.0\nb,-2e3\n", ["a", "b"], [1.0, -2000.0]),
        ("csv", "text,label\na, 1\nb,\n", ["a", "b"], [1, None]),
        ("csv", "text;label\na, b;0\n", ["a, b"], [0]),
        ("csv", "text,label,id\na,1,18446744073709551616\n", ["a"], [1]),
        ("csv", b"text,label,id\na,1,caf\xe9\n", ["a"], [1]),
        ("csv", b"\xef\xbb\xbftext,label\r\na,1\r\n\r\n", ["a"], [1]),
        ("csv", f"text,label\n{LONG},1\n", [LONG], [1]),
        ("csv", 'text,label\n"a cat, a\ndog",1\n', ["a cat, a\ndog"], [1]),
        ("CSV", "text,label\na,1\n", ["a"], [1]),
        ("jsonl", '{"label": 1}\n{"text": "b", "label": 0}\n{"text": "c"}', [None, "b", "c"], [1, 0, None]),
        ("jsonl", '{"text": "a", "label": 1, "id": 18446744073709551616}', ["a"], [1]),
        ("jsonl", '{"text": "a", "label": 1, "id": 3}\n{"text": "b", "id": {"x": []}}', ["a", "b"], [1, None]),
        ("jsonl", '\n{"text": "a\u2028b", "label": 1}\r\n\n{"text": "c", "label": 0}\n\n', ["a\u2028b", "c"], [1, 0]),
        ("jsonl", '{"text": 42, "label": 1}\n{"text": "b", "label": 0}', ["42", "b"], [1, 0]),
        ("json", b'\xef\xbb\xbf[{"text": "a", "label": 1},\n {"label": 0}]\n', ["a", None], [1, 0]),
        ("json", '{"version": 1, "data": [{"text": "a", "label": 1}]}', ["a"], [1]),
        ("json", '{"text": "a", "label": 1, "data": [1, 2]}', ["a"], [1]),
    ],
)
def test_cells(tmp_path, name, content, texts, labels):
    assert cells(tmp_path, f"train.{name}", content) == (texts, labels)


QUOTED = {"pandas": 'he said "great" twice', "a tab": "one\tcell", "a line": "one\ncell", "all": '"\t\t"\n"'}


@pytest.mark.parametrize("text", QUOTED.values(), ids=QUOTED)
def test_quote_marks_of_pandas_enclose_cells(tmp_path, text):
    frame = pandas.DataFrame({"text": ["a cat", text, "", "a dog"], "label": [1, 0, 1, 0]})
    for options in ({}, {"lineterminator": "\r\n"}, {"quoting": csv.QUOTE_NONNUMERIC}):
        content = frame.to_csv(sep="\t", index=False, **options)
        assert cells(tmp_path, "train.tsv", content) == (["a cat", text, "", "a dog"], [1, 0, 1, 0])


@pytest.mark.parametrize(
    "texts",
    [
        ['"the cat', 'a "dog'],
        ['"the cat sat', 'and ran"', "a dog"],
        ['the 6" cat'],
        ['"the cat"'],
        ['"a" b', '"c"'],
        ['"', '"'],
    ],
)
def test_quote_marks_of_glue_are_text(tmp_path, texts):
    content = "text\tlabel\n" + "".join(f"{text}\t1\n" for text in texts)
    assert cells(tmp_path, "train.tsv", content) == (texts, [1] * len(texts))


def test_name_may_begin_with_the_split_and_the_exact_one_is_preferred(tmp_path):
    folder = put(tmp_path, "validation_matched.csv", "label\n1\n")
    assert read_split(folder, None, "validation")["label"][:] == [1]
    put(tmp_path, "validation_mismatched.csv", "label\n2\n")
    assert read_split(folder, None, "validation_mismatched")["label"][:] == [2]
    put(tmp_path, "validation.csv", "label\n3\n")
    assert read_split(folder, None, "validation")["label"][:] == [3]


def test_shards_may_differ_in_columns_that_are_not_read(tmp_path):
    put(tmp_path, "train-00000-of-00002.jsonl", '{"sentence": "one", "label": 1, "id": 3}\n')
    put(tmp_path, "train-00001-of-00002.jsonl", '{"sentence": null, "label": 0, "id": "x"}\n')
    split = read_split(str(tmp_path), None, "train", [Column("sentence", "", text=True), Column("label", "")])
    assert split.to_list() == [{"sentence": "one", "label": 1}, {"sentence": None, "label": 0}]
    with pytest.raises(ValueError, match=r"path=.* different types"):
        read_split(str(tmp_path), None, "train", [Column("id", "")])


@pytest.mark.parametrize(("name", "place"), [(None, "data"), ("cola", "cola"), ("cola", "data"), (None, "label=7")])
def test_copy_of_a_hub_data_set_is_read(tmp_path, name, place):
    parquet(tmp_path / place, "train-00000-of-00001")
    folder = tmp_path / place if "=" in place else tmp_path
    assert read_split(str(folder), name, "train").to_list() == ROWS


@pytest.mark.parametrize(
    ("content", "column", "words"),
    [
        ("a text,label,id,id\nx,1,2,3\n", "id", '"id" exists 2 times'),
        ("a text,label\nx,1\n", "text", r"has no column 'text' \(columns: a text, label\): name another"),
        ("text, label\nx,1\n", "label", r"\(columns: text, ' label'\)"),
    ],
)
def test_column_must_occur_once(tmp_path, content, column, words):
    with pytest.raises(ValueError, match=words):
        read_split(put(tmp_path, "train.csv", content), None, "train", [Column(column, "name another")])


@pytest.mark.parametrize(
    ("names", "words"),
    [
        ([], r"no file of the train split, it contains nothing.*train_split=…"),
        (["test.csv", "notes.md"], r"no file of the train split, it contains notes\.md, test\.csv"),
        (["train.csv", "train.tsv"], r"several files"),
        (["train_a.csv", "train_b.csv"], r"several files"),
        (["train.csv", "train-00000-of-00001.csv"], r"several files"),
        (["train-00001-of-00002.csv"], r"1 of the 2 files"),
        (["train-00000-of-00001.csv", "train-00000-of-00002.csv"], r"2 of the 2 files"),
    ],
)
def test_folder_without_the_split_is_refused(tmp_path, names, words):
    for name in names:
        put(tmp_path, name, "label\n1\n")
    with pytest.raises(ValueError, match=rf"^path=.*{words}"):
        read_split(str(tmp_path), None, "train")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("train.parquet", b"PAR1 and then noise"), ("train.parquet", b""), ("train.csv", b""),
        ("train.csv", b"sentence,label\na,b,c,1\n"), ("train.jsonl", b'{"sentence": "a c'), ("train.jsonl", b"3\n"),
        ("train.json", b"[[1, 2]]"), ("train.jsonl", b'{"sentence": "caf\xe9"}\n'),
        ("train.jsonl", b'{"label": 1}\n{"label": ["one"]}\n'), ("train.jsonl", b'{"label": 18446744073709551616}\n'),
        ("train.jsonl", b'{"label": 1}\n{"label": 1,}\n'), ("train.json", b'{"data": [{"paragraphs": [{"qas": [{}]}]}]}'),
    ],
)  # fmt: skip
def test_damaged_file_is_named_in_one_line(tmp_path, name, content):
    with pytest.raises(ValueError, match=rf"{name}' cannot be read .*path=FOLDER") as error:
        read_split(put(tmp_path, name, content), None, "train")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("path", ["/no/such/folder", "no-such-owner/no-such-set"])
def test_missing_data_set_is_refused(path):
    with pytest.raises(UnreachableError, match=f"path='{path}'.*path=FOLDER"):
        read_split(path, "cola", "train")


@pytest.mark.parametrize("name", ["pandas", "csv", "imagefolder"])
def test_name_of_a_format_does_not_read_the_current_directory(tmp_path, monkeypatch, name):
    Dataset.from_list(ROWS).to_pandas().to_pickle(tmp_path / "train.pkl")
    put(tmp_path, "train.csv", FORMATS["csv"])
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(dataset_files, "require_hub", lambda places: None)
    monkeypatch.setattr(dataset_files, "load_dataset", lambda *given, **named: pytest.fail("it was read"))
    with pytest.raises(ValueError, match=f"path='{name}' is the name of a file format"):
        read_split(name, None, "train")
    (tmp_path / name).mkdir()
    put(tmp_path / name, "train.csv", FORMATS["csv"])
    assert read_split(name, None, "train").to_list() == ROWS
    assert set(_PACKAGED_DATASETS_MODULES) <= dataset_files.FORMATS


def test_hub_is_asked_for_configuration_and_split(monkeypatch):
    def load(*given, **named):
        if given[1] == "colaa":
            raise ValueError("BuilderConfig 'colaa' not found. Available: ['cola']")
        return given, named

    monkeypatch.setattr(dataset_files, "require_hub", lambda places: None)
    monkeypatch.setattr(dataset_files, "load_dataset", load)
    assert read_split("nyu-mll/glue", "cola", "train") == (("nyu-mll/glue", "cola"), {"split": "train"})
    with pytest.raises(ValueError, match=r"path='nyu-mll/glue' name=colaa .*Available: \['cola'\].* another name=…"):
        read_split("nyu-mll/glue", "colaa", "train")
