"""What a cell becomes, in each format: whatever is in the other columns, and whoever has written the file."""

import csv
import gzip
import io
import json

import pandas
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qat_lightning.data.csv_quoting import encloses_cells
from qat_lightning.data.file_formats import Column, read_file
from qat_lightning.data.json_records import read_records

COLUMNS = [Column("text", "", text=True), Column("label", "")]


def read(folder, name, content):
    """Texts and labels of a file with this content."""
    file = folder / name
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    table = read_file(file, COLUMNS).table
    return table["text"].to_pylist(), table["label"].to_pylist()


@pytest.mark.parametrize(
    ("name", "content", "texts", "labels"),
    [
        ("digits stay text", "text,label\n00042,1\n7,0\n", ["00042", "7"], [1, 0]),
        ("dates stay text", "text,label\n2020-01-01,1\n2020-01-02,0\n", ["2020-01-01", "2020-01-02"], [1, 0]),
        ("booleans stay text", "text,label\ntrue,1\nFalse,0\n", ["true", "False"], [1, 0]),
        ("missing values stay text", "text,label\nNA,1\nnull,0\n", ["NA", "null"], [1, 0]),
        ("labels that are words", "text,label\na,true\nb,NA\n", ["a", "b"], ["true", "NA"]),
        ("labels some of which are words", "text,label\na,1\nb,none\n", ["a", "b"], ["1", "none"]),
        ("labels that are numbers", "text,label\na,1.0\nb,-2e3\n", ["a", "b"], [1.0, -2000.0]),
        ("labels with spaces", "text,label\na, 1\nb,0 \n", ["a", "b"], [1, 0]),
        ("a missing label", "text,label\na,1\nb,\n", ["a", "b"], [1, None]),
        ("a large number that is not read", "text,label,id\na,1,18446744073709551616\n", ["a"], [1]),
        ("bytes that are not read", b"text,label,id\na,1,caf\xe9\n", ["a"], [1]),
        ("a mark at the beginning", b"\xef\xbb\xbftext,label\na,1\n", ["a"], [1]),
        ("line ends of Windows", "text,label\r\na,1\r\nb,0\r\n\r\n", ["a", "b"], [1, 0]),
        ("UTF-16", "text,label\nä,1\n".encode("utf-16"), ["ä"], [1]),
        ("a long cell", "text,label\n" + 3_000_000 * "a" + ",1\nb,0\n", [3_000_000 * "a", "b"], [1, 0]),
    ],
)
def test_a_cell_of_csv(tmp_path, name, content, texts, labels):
    assert read(tmp_path, "train.csv", content) == (texts, labels)


@pytest.mark.parametrize(
    ("name", "content", "texts", "labels"),
    [
        ("keys that rows lack", '{"label": 1}\n{"text": "b", "label": 0}\n{"text": "c"}', [None, "b", "c"], [1, 0, None]),
        ("a large number that is not read", '{"text": "a", "label": 1, "id": 18446744073709551616}', ["a"], [1]),
        ("types that are not read", '{"text": "a", "label": 1, "id": 3}\n{"text": "b", "id": {"x": []}}', ["a", "b"], [1, None]),
        ("empty lines", '\n{"text": "a", "label": 1}\n\n{"text": "b", "label": 0}\n\n\n', ["a", "b"], [1, 0]),
        ("line ends of Windows", '{"text": "a\\r\\n", "label": 1}\r\n', ["a\r\n"], [1]),
        ("a mark at the beginning", b'\xef\xbb\xbf{"text": "a", "label": 1}', ["a"], [1]),
        ("several lines each", '{"text": "a",\n "label": 1}\n{"text": "b",\n "label": 0}\n', ["a", "b"], [1, 0]),
        ("a list", '[{"text": "a", "label": 1},\n {"label": 0}]\n', ["a", None], [1, 0]),
        ("a list called data", '{"version": 1, "data": [{"text": "a", "label": 1}]}', ["a"], [1]),
        ("a column called data", '{"text": "a", "label": 1, "data": [1, 2]}', ["a"], [1]),
    ],
)  # fmt: skip
@pytest.mark.parametrize("suffix", ["json", "jsonl", "JSONL"])
def test_a_cell_of_json(tmp_path, suffix, name, content, texts, labels):
    assert read(tmp_path, f"train.{suffix}", content) == (texts, labels)


@pytest.mark.parametrize("name", ["train.csv", "train.tsv", "train.jsonl", "train.CSV.GZ"])
def test_text_files_may_be_packed(tmp_path, name):
    kind = name.lower().split(".")[1]
    content = json.dumps({"text": "a", "label": 1}) if kind == "jsonl" else "text,label\na,1\n"
    packed = gzip.compress((content.replace(",", "\t") if kind == "tsv" else content).encode())
    assert read(tmp_path, name if name.endswith("GZ") else f"{name}.gz", packed) == (["a"], [1])


QUOTED = {"pandas": 'he said "great" twice', "a tab": "one\tcell", "a line": "one\ncell", "all": '"\t\t"\n"'}


@pytest.mark.parametrize("text", QUOTED.values(), ids=QUOTED)
@pytest.mark.parametrize("ends", ["\n", "\r\n"])
def test_tab_separated_files_of_pandas(tmp_path, text, ends):
    frame = pandas.DataFrame({"text": ["a cat", text, "", "a dog"], "label": [1, 0, 1, 0]})
    content = frame.to_csv(sep="\t", index=False, lineterminator=ends)
    assert read(tmp_path, "train.tsv", content) == (["a cat", text, "", "a dog"], [1, 0, 1, 0])
    content = frame.to_csv(sep="\t", index=False, quoting=csv.QUOTE_NONNUMERIC)
    assert read(tmp_path, "train.tsv", content) == (["a cat", text, "", "a dog"], [1, 0, 1, 0])


@pytest.mark.parametrize(
    "texts",
    [
        ['"the cat', 'a "dog'],
        ['"the cat sat', 'and ran"', "a dog"],
        ['the 6" cat', "a dog"],
        ['"the cat"', "a dog"],
        ['"the cat" sat', '"a dog"'],
        ['"', '"'],
    ],
)
def test_quote_marks_of_glue_are_text(tmp_path, texts):
    content = "text\tlabel\n" + "".join(f"{text}\t1\n" for text in texts)
    assert read(tmp_path, "train.tsv", content) == (texts, [1] * len(texts))


CELL = st.text(st.sampled_from("ab\"\t\n '"), max_size=6)


@given(cells=st.lists(st.tuples(CELL, CELL, CELL), min_size=1, max_size=4))
def test_what_pandas_encloses_is_recognized_wherever_it_must_be(cells):
    """Against the standard library's writer: enclosed where a cell holds a quote mark, unless the lines fit without."""
    written = io.StringIO()
    csv.writer(written, delimiter="\t", lineterminator="\n").writerows([("a", "b", "c"), *cells])
    data = written.getvalue()
    if any('"' in cell for row in cells for cell in row) and all(line.count("\t") == 2 for line in data.splitlines()):
        if not any("\n" in cell for row in cells for cell in row):
            assert encloses_cells(data.encode())
    elif '"' in data and any(line.count("\t") != 2 for line in data.splitlines() if line):
        assert encloses_cells(data.encode())


@given(text=st.text(st.sampled_from('[]{}":,1a \n'), max_size=20))
def test_any_text_is_read_or_refused(text):
    try:
        rows = read_records(text)
    except (ValueError, RecursionError):
        return
    assert all(isinstance(row, dict) for row in rows)
