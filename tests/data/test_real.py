"""Real data and a real tokenizer, from the folder that QAT_SHARED names, or ../shared beside the checkout."""

import os
import unicodedata
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from qat_lightning.config.instantiate import create
from tests.training.runs import resolved

SHARED = Path(os.environ.get("QAT_SHARED", Path(__file__).parents[2].parent / "shared"))
TOKENIZER = SHARED / "models" / "all-MiniLM-L6-v2"
STORIES = SHARED / "models" / "stories260K"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not (SHARED / "data").is_dir() or not TOKENIZER.is_dir(), reason=f"no data or models in {SHARED}"
    ),
]


def real(choice, folder, *overrides):
    places = (f"data={choice}", f"data.path={SHARED / 'data' / folder}", f"model.path={TOKENIZER}")
    data = create(resolved(*places, *overrides).data, "data")
    data.load()
    return data


def letters(text):
    """Lower-case, without accents, spaces and invisible characters: what an uncased tokenizer keeps."""
    characters = unicodedata.normalize("NFD", text.lower())
    return "".join(c for c in characters if unicodedata.category(c) not in ("Mn", "Cf") and not c.isspace())


def counts(rows):
    return torch.bincount(torch.tensor([row["labels"] for row in rows])).tolist()


@pytest.mark.parametrize(
    ("task", "train", "validation", "names"),
    [
        ("cola", [2528, 6023], [322, 721], ["unacceptable", "acceptable"]),
        ("sst2", [29780, 37569], [428, 444], ["negative", "positive"]),
        ("rte", [1249, 1241], [146, 131], ["entailment", "not_entailment"]),
        ("wnli", [323, 312], [40, 31], ["not_entailment", "entailment"]),
    ],
)
def test_glue_has_its_official_rows(task, train, validation, names):
    data = real(task, f"glue/{task}")
    assert counts(data.train_rows) == train
    assert counts(data.validation_rows) == validation
    assert data.label_names == names
    assert max(len(row["input_ids"]) for row in data.train_rows) <= data.max_length


def test_spans_of_squad_decode_to_the_answers():
    """Every whole answer of the development set; of one that begins or ends inside a word, the tokens hold that word."""
    data = real("squad", "squad", "data.train_split=validation", "data.train_limit=1")
    key, unknown = data.key, data.tokenizer.unk_token
    assert len(key.contexts) == 10570
    whole, exact = set(), 0
    for row in data.validation_rows:
        number, (first, last) = row["question"], row["labels"]
        if last == 0:
            continue
        whole.add(number)
        answer, text = key.answers[number][0], key.contexts[number][row["offsets"][first, 0] : row["offsets"][last, 1]]
        assert answer in text, number
        assert len(answer.split()) == len(text.split()), number
        decoded = data.tokenizer.decode(row["input_ids"][first : last + 1])
        assert letters(decoded).removeprefix("##") == letters(text) or unknown in decoded, number
        exact += answer == text
    assert len(whole) > 10560  # a handful is longer than the windows' overlap and crosses their bounds
    assert exact > 0.99 * len(whole)


def test_right_positions_in_squad_score_one_but_for_answers_that_are_cut():
    """Cut: longer than 30 tokens, or beginning or ending inside a word."""
    data = real("squad", "small/squad_from_dev")
    assert (len(data.key.contexts), len({row["question"] for row in data.train_rows})) == (2096, 8474)
    for batch in data.val_dataloader():
        width = batch["input_ids"].shape[1]
        logits = [torch.nn.functional.one_hot(batch["labels"][:, side], width).float() for side in (0, 1)]
        for metric in data.metrics.values():
            metric.update(*data.predict(logits, batch))
    found = data.metrics["f1"].answers()
    for number, answers in enumerate(data.key.answers):
        if letters(found[number]) not in map(letters, answers):
            length = len(data.tokenizer(answers[0], add_special_tokens=False)["input_ids"])
            assert length > 30 or (letters(answers[0]) in letters(found[number])), (number, found[number], answers)
    assert data.metrics["exact_match"].compute() == pytest.approx(1 - 9 / 2096, abs=1e-6)
    assert 0.997 < data.metrics["f1"].compute() < 0.999


def test_perplexity_of_stories_is_the_published_one():
    """Each story alone, cut to 512 tokens, as where the model was converted: a loss of 1.49, so 4.44."""
    places = (f"model.path={STORIES}", "data.packing=false")
    data = real("language", "tinystories_sample", *places)
    model = AutoModelForCausalLM.from_pretrained(STORIES).eval()
    with torch.no_grad():
        for batch in data.val_dataloader():
            logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
            data.metrics["perplexity"].update(*data.predict([logits], batch))
    assert data.metrics["perplexity"].compute() == pytest.approx(4.44, abs=0.005)


def test_wikitext_is_one_stream_whose_text_comes_back():
    data = real("wikitext2", "wikitext2", f"model.path={STORIES}", "data.train_split=test")
    stream = torch.cat([row["input_ids"] for row in data.validation_rows])
    assert all(len(row["input_ids"]) == 512 for row in data.validation_rows[:-1])
    text = data.tokenizer.decode(stream.tolist())
    assert text.startswith("\n\n = Homarus gammarus = \n\n\n\n\n Homarus gammarus , known as the European lobster")
    assert 1.1e6 < len(text) < 1.2e6
    following = torch.cat([row["labels"] for row in data.validation_rows])
    assert torch.equal(following[:-1], stream[1:])
