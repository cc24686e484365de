"""From rows of text to batches: encoding, padding, labels, and what is refused in which words."""

import pytest
import torch
from datasets import ClassLabel, Dataset, Features, Value
from transformers import AutoTokenizer

from qat_lightning.data import text_classification as text_module
from tests.data.conftest import MODEL_MAX_LENGTH, WORDS

ROWS = "sentence,label\nthe cat sat,1\nthe dog,0\nthe film is not very good,1\n"
PAIRS = "question,sentence,label\nthe cat,sat,1\na dog,ran,0\n"


def tokens(*words):
    return [WORDS.index(word) for word in words]


def parquet(folder, split, labels, names=None, sentences=None):
    features = Features({"sentence": Value("string"), "label": ClassLabel(names=names)}) if names else None
    columns = {"sentence": sentences or ["a cat"] * len(labels), "label": labels}
    Dataset.from_dict(columns, features=features).to_parquet(folder / f"{split}.parquet")


def test_a_batch_holds_the_models_inputs_padded_to_the_longest(text, write):
    write(ROWS)
    batch = text().example_batch(2)
    assert set(batch) == {"input_ids", "token_type_ids", "attention_mask", "labels"}
    assert batch["input_ids"].tolist() == [
        tokens("[CLS]", "the", "cat", "sat", "[SEP]"),
        tokens("[CLS]", "the", "dog", "[SEP]", "[PAD]"),
    ]
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 1, 1], [1, 1, 1, 1, 0]]
    assert batch["labels"].tolist() == [1, 0]
    assert all(tensor.dtype == torch.int64 for tensor in batch.values())


def test_padding_to_the_maximal_length_pads_every_batch(text, write):
    write(ROWS)
    longest, fixed = text(), text(padding="max_length")
    assert longest.example_batch(1)["input_ids"].shape == (1, 5)
    assert [batch["input_ids"].shape[1] for batch in fixed.train_dataloader()] == [8, 8]
    assert fixed.example_batch(1)["attention_mask"].sum() == 5
    assert longest.fingerprint() != fixed.fingerprint()


def test_long_rows_are_cut(text, write):
    write(ROWS)
    data = text(max_length=5)
    batch = data.example_batch(3)
    assert batch["input_ids"][2].tolist() == tokens("[CLS]", "the", "film", "is", "[SEP]")


def test_pairs_are_encoded_together(text, write):
    write(PAIRS)
    batch = text(text_columns=["question", "sentence"]).example_batch(1)
    assert batch["input_ids"][0].tolist() == tokens("[CLS]", "the", "cat", "[SEP]", "sat", "[SEP]")
    assert batch["token_type_ids"][0].tolist() == [0, 0, 0, 0, 1, 1]


def test_rows_are_the_same_however_many_are_tokenized_at_once(text, write, monkeypatch):
    write(ROWS)
    whole = text()
    whole.load()
    monkeypatch.setattr(text_module, "CHUNK", 1)
    chunked = text()
    chunked.load()
    assert chunked.train_rows == whole.train_rows
    assert [row["labels"] for row in chunked.train_rows] == [1, 0, 1]


def test_tokens_of_a_picture_are_words(text, write):
    write(ROWS)
    data = text()
    assert data.tokens(data.example_batch(2)) == ["[CLS]", "the", "cat", "sat", "[SEP]"]


def test_a_missing_text_is_an_empty_one(text, tmp_path):
    for split in ("train", "validation"):
        parquet(tmp_path, split, [1, 0], sentences=["a cat", None])
    assert text().example_batch(2)["input_ids"][1].tolist() == tokens("[CLS]", "[SEP]", "[PAD]", "[PAD]")


def test_regression_labels_are_float32(text, write):
    write("sentence,label\na cat,2.5\na dog,4\n")
    data = text(num_labels=1)
    assert data.regression
    labels = data.example_batch(2)["labels"]
    assert labels.dtype == torch.float32
    assert labels.tolist() == [2.5, 4.0]
    assert data.label_names is None


def test_named_labels_are_numbered_in_sorted_order_of_the_training_split(text, write):
    write("sentence,label\na,positive\na,negative\na,neutral\n", "sentence,label\nthe,neutral\nthe,positive\n")
    data = text(num_labels=3)
    assert data.example_batch(2)["labels"].tolist() == [1, 2]
    assert data.label_names == ["negative", "neutral", "positive"]


def test_classes_keep_the_order_of_their_column(text, tmp_path):
    for split in ("train", "validation"):
        parquet(tmp_path, split, [0, 1], names=["positive", "negative"])
    data = text()
    assert data.example_batch(2)["labels"].tolist() == [0, 1]
    assert data.label_names == ["positive", "negative"]


def test_other_splits_can_be_named(text, tmp_path):
    parquet(tmp_path, "train", [1, 0])
    parquet(tmp_path, "validation_matched", [1, 1])
    parquet(tmp_path, "validation_mismatched", [0, 0])
    data = text(validation_split="validation_mismatched")
    assert data.example_batch(2)["labels"].tolist() == [0, 0]


def test_task_is_the_configuration_or_the_folder(text, tmp_path):
    assert text(name="cola").task == "cola"
    assert text().task == tmp_path.name


def test_fingerprint_is_of_the_content_not_of_the_folder_or_the_format(text, write, tmp_path):
    write(ROWS)
    first = text().fingerprint()
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    for split in ("train", "validation"):
        (elsewhere / f"{split}.tsv").write_text(ROWS.replace(",", "\t"))
    assert text(path=str(elsewhere)).fingerprint() == first


@pytest.mark.parametrize(
    ("train", "validation", "changed"),
    [
        (ROWS.replace("very good,1", "very good,0"), ROWS, {}),
        (ROWS.replace("sat", "ran"), ROWS, {}),
        (ROWS, ROWS.replace("sat", "ran"), {}),
        (ROWS, ROWS, {"max_length": 5}),
        (ROWS, ROWS, {"train_limit": 2}),
    ],
)
def test_fingerprint_changes_with_one_row_and_with_its_encoding(text, write, train, validation, changed):
    write(ROWS)
    before = text().fingerprint()
    write(train, validation)
    assert text(**changed).fingerprint() != before


NOT_TEXT = r"column 'sentence' of the train split holds 3, which is no text .*data\.text_columns=\[…\]"


def test_a_column_of_numbers_is_not_text(text, write):
    write('{"sentence": 3, "label": 1}\n{"sentence": 4, "label": 0}\n', suffix="jsonl")
    with pytest.raises(ValueError, match=NOT_TEXT):
        text().load()


@pytest.mark.parametrize(
    ("rows", "changed", "words"),
    [
        (
            ROWS,
            {"text_columns": ["question"]},
            r"no column 'question', it has sentence, label: .*data\.text_columns=\[…\]",
        ),
        (ROWS, {"label_column": "y"}, r"train split .*no column 'y', it has sentence, label: .*data\.label_column=…"),
        (ROWS, {"text_columns": []}, r"data\.text_columns=\[\] must be a list of one column, or of two"),
        (ROWS, {"text_columns": ["a", "b", "c"]}, r"must be a list of one column, or of two"),
        (ROWS, {"text_columns": "sentence"}, r"data\.text_columns='sentence' must be a list"),
        (ROWS, {"padding": "none"}, r"data\.padding='none' is unknown: choose longest or max_length"),
        (ROWS, {"tokenizer": None}, r"no tokenizer .* give model\.path=FOLDER or data\.tokenizer=FOLDER"),
        (ROWS, {"tokenizer": "no-such-owner/none"}, r"data\.tokenizer='no-such-owner/none': neither a local folder"),
        (ROWS, {"max_length": 17}, rf"data\.max_length=17 is beyond the model's {MODEL_MAX_LENGTH} positions"),
        ("sentence,label\n", {}, r"the train split of .* is empty"),
        (ROWS, {"num_labels": 1, "label_column": "sentence"}, r"row 0 .*'the cat sat', which is no number"),
        (
            "sentence,label\na,1\nb,inf\n",
            {"num_labels": 1},
            r"row 1 of the train split has label inf, which is no number",
        ),
        ("sentence,label\na,0\nb,1\nc,2\n", {}, r"row 2 .*label 2, outside 0…1: set data\.num_labels"),
        ("sentence,label\na,1\nb,-1\n", {"unlabelled": []}, r"row 1 .*label -1, outside 0…1"),
        ("sentence,label\na,1\nb,0.5\n", {}, r"row 1 .*label 0\.5, outside 0…1"),
        (
            "sentence,label\na,no\nb,yes\n",
            {"num_labels": 3},
            r"data\.num_labels=3, .*2 classes \(no, yes\): .*num_labels=2",
        ),
    ],
)
def test_what_cannot_be_used_is_refused_with_the_remedy(text, write, rows, changed, words):
    write(rows)
    with pytest.raises(ValueError, match=words) as error:
        text(**changed).load()
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("train", "validation", "words"),
    [
        ("yes\na,no", "yes\na,maybe", r"row 1 of the validation split has label 'maybe', .* train split .*\(no, yes\)"),
        ("yes\na,no", "0\na,1", r"row 0 of the validation split has label '0', .* train split .*\(no, yes\)"),
        ("0\na,1", "yes\na,no", r"row 0 of the validation split has label 'yes', .*train split are whole numbers"),
        ("0\na,1", "0\na,2", r"row 1 of the validation split has label 2, outside 0…1"),
    ],
)
def test_splits_whose_labels_disagree_are_refused(text, write, train, validation, words):
    write(f"sentence,label\na,{train}\n", f"sentence,label\na,{validation}\n")
    with pytest.raises(ValueError, match=words):
        text().load()


def test_classes_of_a_validation_split_keep_their_names_not_their_numbers(text, tmp_path):
    parquet(tmp_path, "train", [0, 1], names=["no", "yes"])
    parquet(tmp_path, "validation", [0, 1], names=["yes", "no"])
    assert text().example_batch(2)["labels"].tolist() == [1, 0]


def test_classes_for_a_regression_are_refused(text, tmp_path):
    for split in ("train", "validation"):
        parquet(tmp_path, split, [0, 1], names=["no", "yes"])
    with pytest.raises(ValueError, match=r"'label' holds classes \(no, yes\), .*give data\.num_labels=2"):
        text(num_labels=1).load()


def test_rows_without_a_label_are_left_out_and_others_keep_theirs(text, write):
    write("sentence,label\nthe cat,yes\na dog,-\na film,no\n")
    data = text()
    assert data.example_batch(9)["input_ids"][:, 1:3].tolist() == [tokens("the", "cat"), tokens("a", "film")]
    assert data.example_batch(9)["labels"].tolist() == [1, 0]
    assert len(data.train_rows) == 2
    assert "1 of 3 rows of the validation split have no label ('-': 1) and are left out" in data.notes


def test_labels_that_are_no_numbers_at_all_are_refused(text, tmp_path):
    for split in ("train", "validation"):
        parquet(tmp_path, split, [[0, 1]])
    with pytest.raises(ValueError, match=r"row 0 of the train split has label \[0, 1\], which is neither a word"):
        text().load()


def test_a_missing_column_of_the_validation_split_is_told_as_such(text, write):
    write(ROWS, ROWS.replace("label", "score"))
    with pytest.raises(ValueError, match=r"the validation split .*no column 'label', it has sentence, score"):
        text().load()


def test_a_folder_without_a_tokenizer_is_refused(text, write, tmp_path):
    write(ROWS)
    with pytest.raises(ValueError, match=r"no tokenizer in .*: give model\.path or data\.tokenizer") as error:
        text(tokenizer=str(tmp_path)).load()
    assert "\n" not in str(error.value)


def test_a_tokenizer_that_cannot_pad_is_refused(text, write, tokenizer, tmp_path):
    write(ROWS)
    unpadded = AutoTokenizer.from_pretrained(tokenizer)
    unpadded.pad_token = None
    unpadded.save_pretrained(tmp_path / "tokenizer")
    with pytest.raises(ValueError, match=r"has no padding token: .*data\.tokenizer"):
        text(tokenizer=str(tmp_path / "tokenizer")).load()
