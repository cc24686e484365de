"""From rows of text to batches: encoding, padding, labels, reproducibility, and the argument that each error names."""

import pytest
import torch
from datasets import ClassLabel, Dataset, Features, Value
from transformers import AutoTokenizer, BertTokenizerFast

from tests.data.conftest import MODEL_MAX_LENGTH, WORDS

ROWS = "sentence,label\nthe cat sat,1\nthe dog,0\nthe film is not very good,1\n"
PAIRS = "question,sentence,label\nthe cat,sat,1\na dog,ran,0\n"
SORTED = "sentence,label\n" + "the cat,0\n" * 50 + "a dog,1\n" * 50


def tokens(words):
    return [WORDS.index(word) for word in words.split()]


def parquet(folder, split, labels, names=None, sentences=None):
    features = Features({"sentence": Value("string"), "label": ClassLabel(names=names)}) if names else None
    columns = {"sentence": sentences or ["a cat"] * len(labels), "label": labels}
    Dataset.from_dict(columns, features=features).to_parquet(folder / f"{split}.parquet")


def test_batch_is_padded_to_the_longest_row(text, write):
    write(ROWS)
    data = text()
    batch = data.example_batch(2)
    assert set(batch) == {"input_ids", "token_type_ids", "attention_mask", "labels"}
    assert batch["input_ids"].tolist() == [tokens("[CLS] the cat sat [SEP]"), tokens("[CLS] the dog [SEP] [PAD]")]
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 1, 1], [1, 1, 1, 1, 0]]
    assert batch["labels"].tolist() == [1, 0]
    assert all(tensor.dtype == torch.int64 for tensor in batch.values())
    assert data.tokens(batch) == ["[CLS]", "the", "cat", "sat", "[SEP]"]
    fixed = text(padding="max_length")
    assert [batch["input_ids"].shape[1] for batch in fixed.train_dataloader()] == [8, 8]
    assert data.fingerprint() != fixed.fingerprint()


def test_long_rows_are_cut_and_pairs_encoded_together(text, write):
    write(ROWS)
    assert text(max_length=5).example_batch(3)["input_ids"][2].tolist() == tokens("[CLS] the film is [SEP]")
    write(PAIRS)
    batch = text(text_columns=["question", "sentence"]).example_batch(1)
    assert batch["input_ids"][0].tolist() == tokens("[CLS] the cat [SEP] sat [SEP]")
    assert batch["token_type_ids"][0].tolist() == [0, 0, 0, 0, 1, 1]


def test_classes_have_the_order_of_words_or_of_their_column(text, write, tmp_path):
    write("sentence,label\na,positive\na,negative\na,neutral\n", "sentence,label\nthe,neutral\nthe,positive\n")
    data = text(num_labels=3)
    assert data.example_batch(2)["labels"].tolist() == [1, 2]
    assert data.label_names == ["negative", "neutral", "positive"]
    (other := tmp_path / "other").mkdir()
    parquet(other, "train", [0, 1], names=["no", "yes"])
    parquet(other, "validation", [0, 1], names=["yes", "no"])
    data = text(path=str(other))
    assert (data.example_batch(2)["labels"].tolist(), data.label_names) == ([1, 0], ["no", "yes"])
    with pytest.raises(ValueError, match=r"num_labels=1 is a regression: set num_labels=2"):
        text(path=str(other), num_labels=1).load()


def test_other_splits_and_missing_texts(text, tmp_path):
    parquet(tmp_path, "train", [1, 0])
    parquet(tmp_path, "validation_matched", [1, 1])
    parquet(tmp_path, "validation_mismatched", [0, 0], sentences=["a cat", None])
    batch = text(validation_split="validation_mismatched").example_batch(2)
    assert batch["labels"].tolist() == [0, 0]
    assert batch["input_ids"][1].tolist() == tokens("[CLS] [SEP] [PAD] [PAD]")
    assert (text(name="cola").task, text().task) == ("cola", tmp_path.name)


def test_fingerprint_does_not_depend_on_folder_format_and_tokenizer_folder(text, write, tmp_path):
    write(ROWS)
    before, files = text().fingerprint(), sorted(tmp_path.rglob("*"))
    assert sorted(tmp_path.rglob("*")) == files  # reading writes nothing
    (elsewhere := tmp_path / "elsewhere").mkdir()
    for split in ("train", "validation"):
        (elsewhere / f"{split}.tsv").write_text(ROWS.replace(",", "\t"))
    for name, words in (("same", WORDS), ("other", [*WORDS[:5], *reversed(WORDS[5:])])):
        vocabulary = {word: number for number, word in enumerate(words)}
        BertTokenizerFast(vocab=vocabulary, model_max_length=MODEL_MAX_LENGTH).save_pretrained(tmp_path / name)
    assert text(path=str(elsewhere), tokenizer=str(tmp_path / "same"), train_limit=3).fingerprint() == before
    assert text(tokenizer=str(tmp_path / "other")).fingerprint() != before


@pytest.mark.parametrize(
    ("train", "validation", "changed"),
    [
        (ROWS.replace("very good,1", "very good,0"), ROWS, {}),
        (ROWS, ROWS.replace("sat", "ran"), {}),
        (ROWS, ROWS, {"max_length": 5}),
    ],
)
def test_fingerprint_changes_with_rows_and_encoding(text, write, train, validation, changed):
    write(ROWS)
    before = text().fingerprint()
    write(train, validation)
    assert text(**changed).fingerprint() != before


@pytest.mark.parametrize(
    ("rows", "changed", "words"),
    [
        (ROWS, {"text_columns": ["question"]}, r"no column 'question' .*text_columns=\[…\]"),
        (ROWS, {"label_column": "y"}, r"train split .*no column 'y' .*label_column=…"),
        (ROWS, {"text_columns": []}, r"text_columns=\[\] must be a list"),
        (ROWS, {"text_columns": "sentence"}, r"text_columns='sentence' must be a list"),
        (ROWS, {"padding": "none"}, r"padding='none' is unknown"),
        (ROWS, {"padding": "max_length", "group_by_length": True}, r"padding=max_length .*group_by_length"),
        (ROWS, {"tokenizer": None}, r"tokenizer=FOLDER"),
        (ROWS, {"tokenizer": "no-such-owner/none"}, r"tokenizer='no-such-owner/none': neither a local folder"),
        (ROWS, {"tokenizer": "unpadded"}, r"has no padding token.*tokenizer=FOLDER"),
        (ROWS, {"tokenizer": "empty"}, r"no tokenizer in .*tokenizer=FOLDER"),
        (ROWS, {"max_length": 17}, rf"max_length=17 is more than the model's {MODEL_MAX_LENGTH} positions"),
        ("sentence,label\n", {}, r"the train split of .* is empty"),
        ("sentence,label\na,1\nb,inf\n", {"num_labels": 1}, r"row 1 of the train split has label inf"),
    ],
)
def test_errors_name_the_argument_in_one_line(text, write, tokenizer, tmp_path, rows, changed, words):
    write(rows)
    if (name := changed.get("tokenizer")) in ("unpadded", "empty"):
        (tmp_path / name).mkdir()
        changed = {"tokenizer": str(tmp_path / name)}
        if name == "unpadded":
            unpadded = AutoTokenizer.from_pretrained(tokenizer)
            unpadded.pad_token = None
            unpadded.save_pretrained(tmp_path / name)
    with pytest.raises(ValueError, match=words) as error:
        text(**changed).load()
    assert "\n" not in str(error.value)


def test_column_of_numbers_is_not_text(text, write):
    write('{"sentence": 3, "label": 1}\n{"sentence": 4, "label": 0}\n', suffix="jsonl")
    with pytest.raises(ValueError, match=r"column 'sentence' of the train split contains 3.*text_columns=…"):
        text().load()
