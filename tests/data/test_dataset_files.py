"""Splits from folders in five formats, and every failure in words."""

import json

import pytest
from datasets import ClassLabel, Dataset, Features, Value
from datasets.packaged_modules import _PACKAGED_DATASETS_MODULES

from qat_lightning.data import dataset_files
from qat_lightning.data.dataset_files import read_split
from qat_lightning.data.file_formats import Column
from qat_lightning.data.hub import Unreachable

ROWS = [{"sentence": "a cat", "label": 1}, {"sentence": "a dog", "label": 0}]
AS_TEXT = {
    "csv": "sentence,label\na cat,1\na dog,0\n",
    "tsv": "sentence\tlabel\na cat\t1\na dog\t0\n",
    "json": json.dumps(ROWS),
    "jsonl": "\n".join(json.dumps(row) for row in ROWS) + "\n",
}


def put(folder, name, content):
    (folder / name).write_text(content, encoding="utf-8")
    return str(folder)


@pytest.mark.parametrize("suffix", [*AS_TEXT, "parquet"])
def test_every_format_gives_the_same_rows_and_leaves_the_folder_alone(tmp_path, suffix):
    if suffix == "parquet":
        Dataset.from_list(ROWS).to_parquet(tmp_path / "train.parquet")
    else:
        put(tmp_path, f"train.{suffix}", AS_TEXT[suffix])
    assert read_split(str(tmp_path), None, "train").to_list() == ROWS
    assert [path.name for path in tmp_path.iterdir()] == [f"train.{suffix}"]


def test_json_may_hold_one_object_in_each_line(tmp_path):
    assert read_split(put(tmp_path, "train.json", AS_TEXT["jsonl"]), None, "train").to_list() == ROWS


def test_a_line_separator_within_a_json_text_ends_no_line(tmp_path):
    text = "one\u2028two\u0085three"
    folder = put(tmp_path, "train.jsonl", json.dumps({"sentence": text}, ensure_ascii=False))
    assert read_split(folder, None, "train")["sentence"][:] == [text]


def test_parquet_keeps_the_names_of_classes(tmp_path):
    features = Features({"label": ClassLabel(names=["bad", "good"])})
    Dataset.from_dict({"label": [1]}, features=features).to_parquet(tmp_path / "train.parquet")
    assert read_split(str(tmp_path), None, "train").features["label"].names == ["bad", "good"]


@pytest.mark.parametrize(("suffix", "separator"), [("csv", ","), ("tsv", "\t")])
def test_words_that_other_readers_take_for_missing_stay_words(tmp_path, suffix, separator):
    words = ["NA", "null", "None", "nan", "", "true story"]
    lines = ["sentence" + separator + "label", *(f"{word}{separator}1" for word in words)]
    split = read_split(put(tmp_path, f"train.{suffix}", "\n".join(lines) + "\n"), None, "train")
    assert split["sentence"][:] == words


def test_lone_quote_marks_of_tab_separated_files_swallow_no_rows(tmp_path):
    split = read_split(put(tmp_path, "train.tsv", 'sentence\tlabel\n"the cat\t1\na "dog\t0\n'), None, "train")
    assert split["sentence"][:] == ['"the cat', 'a "dog']


def test_quoted_commas_and_line_ends_of_csv_are_text(tmp_path):
    split = read_split(put(tmp_path, "train.csv", 'sentence,label\n"a cat, a\ndog",1\n'), None, "train")
    assert split.to_list() == [{"sentence": "a cat, a\ndog", "label": 1}]


def test_line_ends_within_a_text_do_no_harm_in_a_file_read_in_several_pieces(tmp_path):
    text = "a cat\n" * 200
    content = "sentence,label\n" + f'"{text}",1\n' * 1500  # 1.8 MB; pieces are of 1 MiB
    split = read_split(put(tmp_path, "train.csv", content), None, "train")
    assert split["sentence"][:] == [text] * 1500


def test_a_byte_order_mark_is_no_part_of_a_name(tmp_path):
    for name in ("train.csv", "train_json.jsonl"):
        (tmp_path / name).write_bytes(b"\xef\xbb\xbf" + (AS_TEXT["csv" if name.endswith("csv") else "jsonl"]).encode())
    assert read_split(str(tmp_path), None, "train").to_list() == ROWS
    assert read_split(str(tmp_path), None, "train_json").to_list() == ROWS


def test_a_file_whose_name_begins_with_the_split_is_found_and_the_exact_one_preferred(tmp_path):
    folder = put(tmp_path, "validation_matched.csv", "label\n1\n")
    assert read_split(folder, None, "validation")["label"][:] == [1]
    put(tmp_path, "validation_mismatched.csv", "label\n2\n")
    assert read_split(folder, None, "validation_mismatched")["label"][:] == [2]
    put(tmp_path, "validation.csv", "label\n3\n")
    assert read_split(folder, None, "validation")["label"][:] == [3]


def test_the_shards_of_a_split_are_one(tmp_path):
    for number, text in enumerate(("one", "two", "three")):
        rows = Dataset.from_list([{"sentence": text, "label": number}])
        rows.to_parquet(tmp_path / f"train-0000{number}-of-00003-0123abcd.parquet")
    rows.to_parquet(tmp_path / "validation-00000-of-00001.parquet")
    assert read_split(str(tmp_path), None, "train")["sentence"][:] == ["one", "two", "three"]
    assert read_split(str(tmp_path), None, "validation")["sentence"][:] == ["three"]


@pytest.mark.parametrize(("name", "place"), [(None, "data"), ("cola", "cola"), ("cola", "data")])
def test_a_copy_of_a_data_set_of_the_hub_is_read_where_it_has_its_files(tmp_path, name, place):
    (tmp_path / place).mkdir()
    Dataset.from_list(ROWS).to_parquet(tmp_path / place / "train-00000-of-00001.parquet")
    assert read_split(str(tmp_path), name, "train").to_list() == ROWS


def test_shards_may_differ_in_what_is_not_read_and_not_in_what_is(tmp_path):
    put(tmp_path, "train-00000-of-00002.jsonl", '{"sentence": "one", "label": 1, "id": 3, "parts": 3}\n')
    put(tmp_path, "train-00001-of-00002.jsonl", '{"sentence": null, "label": 0, "id": "x", "parts": [3]}\n')
    split = read_split(str(tmp_path), None, "train", [Column("sentence", "", text=True), Column("label", "")])
    assert split.to_list() == [{"sentence": "one", "label": 1}, {"sentence": None, "label": 0}]
    assert read_split(str(tmp_path), None, "train", [Column("id", "")])["id"][:] == ["3", "x"]
    with pytest.raises(ValueError, match=r"files of the train split of .* do not go together"):
        read_split(str(tmp_path), None, "train", [Column("parts", "")])


def test_columns_are_those_that_are_asked_for_once_each(tmp_path):
    path = put(tmp_path, "train.csv", "a text,label,id,id\nx,1,2,3\n")
    assert read_split(path, None, "train", [Column("a text", "", text=True)]).to_list() == [{"a text": "x"}]
    with pytest.raises(ValueError, match=r"train split of .* has 2 columns called 'id': rename"):
        read_split(path, None, "train", [Column("id", "")])
    with pytest.raises(ValueError, match=r"has no column 'text', it has a text, label, id, id: name another"):
        read_split(path, None, "train", [Column("text", "name another")])
    put(tmp_path, "train.csv", "text, label\nx,1\n")
    with pytest.raises(ValueError, match=r"has no column 'label', it has text, ' label': name another"):
        read_split(path, None, "train", [Column("label", "name another")])


def test_a_folder_called_key_value_adds_no_column(tmp_path):
    (tmp_path / "label=7").mkdir()
    Dataset.from_list(ROWS).to_parquet(tmp_path / "label=7" / "train.parquet")
    assert read_split(str(tmp_path / "label=7"), None, "train").to_list() == ROWS


@pytest.mark.parametrize(
    ("names", "words"),
    [
        ([], r"has no file of the train split, it holds nothing: give it train\.parquet .*data\.train_split=…"),
        (["test.csv", "notes.md"], r"no file of the train split, it holds notes\.md, test\.csv"),
        (["train.csv", "train.tsv"], r"has several files of the train split, it holds train\.csv, train\.tsv"),
        (["train_a.csv", "train_b.csv"], r"has several files of the train split"),
        (
            ["train-00001-of-00002.csv"],
            r"has 1 of the 2 files of the train split \(train-00001-of-00002\.csv\): give it",
        ),
        (["train-00000-of-00001.csv", "train-00000-of-00002.csv"], r"has 2 of the 2 files of the train split"),
        (["train.csv", "train-00000-of-00001.csv"], r"has several files of the train split"),
    ],
)
def test_a_folder_without_the_file_is_told_with_what_it_holds(tmp_path, names, words):
    for name in names:
        put(tmp_path, name, "label\n1\n")
    with pytest.raises(ValueError, match=words):
        read_split(str(tmp_path), None, "train")


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("train.parquet", b"PAR1 and then noise", "magic bytes"),
        ("train.parquet", b"", "0 bytes|size is 0"),
        ("train.csv", b"", "Empty CSV file"),
        ("train.csv", b"sentence,label\na,b,c,1\n", "Expected 2 columns, got 4"),
        ("train.jsonl", b'{"sentence": "a c', "Unterminated string"),
        ("train.jsonl", b"3\n", "3 is not an object"),
        ("train.json", b"[[1, 2]]", r"\[1, 2\] is not an object"),
        ("train.jsonl", b'{"sentence": "caf\xe9"}\n', "utf-8"),
        ("train.jsonl", b'{"label": 1}\n{"label": ["one"]}\n', "column 'label': .*list"),
        ("train.jsonl", b'{"label": 18446744073709551616}\n', "column 'label': .*too (large|big)"),
        ("train.jsonl", b'{"label": 1}\n{"label": 1,}\n', "line 2 column 13"),
        ("train.json", b'{"data": [{"paragraphs": [{"qas": [{}]}]}]}', "nested form has paragraphs.*'context'"),
        ("train.csv.gz", b"sentence\na cat\n", "gzip|incorrect header|zlib"),
    ],
)
def test_content_that_cannot_be_read_is_told_with_the_file(tmp_path, name, content, words):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(
        ValueError, match=rf"{name}' cannot be read \(.*({words}).*\): repair it .*, or give data\.path"
    ) as error:
        read_split(str(tmp_path), None, "train")
    assert "\n" not in str(error.value)


def test_a_cut_parquet_file_is_told(tmp_path):
    features = Features({"sentence": Value("string")})
    Dataset.from_dict({"sentence": ["a cat"] * 500}, features=features).to_parquet(tmp_path / "train.parquet")
    whole = (tmp_path / "train.parquet").read_bytes()
    (tmp_path / "train.parquet").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"train\.parquet' cannot be read"):
        read_split(str(tmp_path), None, "train")


def test_a_folder_that_does_not_exist_is_told():
    with pytest.raises(Unreachable, match=r"data\.path='/no/such/folder' is no folder: give data\.path=FOLDER"):
        read_split("/no/such/folder", None, "train")


def test_a_data_set_of_the_hub_is_refused_where_there_is_no_hub():
    with pytest.raises(Unreachable, match=r"data\.path='no-such-owner/no-such-set': neither .* give data\.path=FOLDER"):
        read_split("no-such-owner/no-such-set", "cola", "train")


@pytest.mark.parametrize(
    "name", ["pandas", "csv", "json", "text", "arrow", "parquet", "webdataset", "imagefolder", "sql"]
)
def test_the_name_of_a_format_reads_nothing_of_the_folder_at_hand(tmp_path, monkeypatch, name):
    Dataset.from_list(ROWS).to_pandas().to_pickle(tmp_path / "train.pkl")
    put(tmp_path, "train.csv", AS_TEXT["csv"])
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(dataset_files, "require_hub", lambda places: None)
    monkeypatch.setattr(dataset_files, "load_dataset", lambda *given, **named: pytest.fail("it was read"))
    with pytest.raises(ValueError, match=f"data.path='{name}' is the name of a file format.*give data.path=FOLDER"):
        read_split(name, None, "train")


def test_every_format_that_datasets_knows_is_refused():
    assert set(_PACKAGED_DATASETS_MODULES) <= dataset_files.FORMATS


def test_a_folder_may_be_called_as_a_format_is(tmp_path, monkeypatch):
    (tmp_path / "json").mkdir()
    put(tmp_path / "json", "train.csv", AS_TEXT["csv"])
    monkeypatch.chdir(tmp_path)
    assert read_split("json", None, "train").to_list() == ROWS


def test_the_hub_is_asked_for_the_configuration_and_the_split(monkeypatch):
    monkeypatch.setattr(dataset_files, "require_hub", lambda places: None)
    monkeypatch.setattr(dataset_files, "load_dataset", lambda *given, **named: (given, named))
    assert read_split("nyu-mll/glue", "cola", "train") == (("nyu-mll/glue", "cola"), {"split": "train"})


def test_what_the_hub_does_not_have_is_told_with_the_overrides(monkeypatch):
    def refuse(*_, **__):
        raise ValueError("BuilderConfig 'colaa' not found. Available: ['cola']")

    monkeypatch.setattr(dataset_files, "require_hub", lambda places: None)
    monkeypatch.setattr(dataset_files, "load_dataset", refuse)
    words = r"train split of data\.path='nyu-mll/glue' data\.name=colaa .*Available: \['cola'\].* another data\.name=…"
    with pytest.raises(ValueError, match=words):
        read_split("nyu-mll/glue", "colaa", "train")
