"""What all data modules share: limits, ranks, calibration rows, fingerprints."""

import itertools
from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from torchmetrics.classification import MulticlassAccuracy

from qat_lightning.data.base import TaskData
from qat_lightning.data.image_classification import collate_images


class Numbered(TaskData):
    """Row r of the train split is the number r, of the validation split 100 + r."""

    task = "numbers"

    def __init__(self, rows=10, validation_rows=6, values=None, **common):
        defaults = {"batch_size": 4, "num_labels": 2, "metrics": {"accuracy": MulticlassAccuracy(2)}}
        super().__init__(**defaults | {"metric": "accuracy"} | common)
        self.counts, self.values, self.reads = (rows, validation_rows), values or {}, 0

    def read(self):
        self.reads += 1
        train, validation = self.counts
        return [self._row(row) for row in range(train)], [self._row(100 + row) for row in range(validation)]

    def _row(self, number):
        return {"pixel_values": torch.tensor([float(self.values.get(number, number))]), "labels": number % 2}

    def collate(self, rows):
        return collate_images(rows)


def numbers(batches):
    return [batch["pixel_values"].flatten().int().tolist() for batch in batches]


def attached(data, rank, world_size, max_steps=3, accumulate=1, processed=0):
    total = SimpleNamespace(processed=processed)
    loop = SimpleNamespace(epoch_loop=SimpleNamespace(batch_progress=SimpleNamespace(total=total)))
    data.trainer = SimpleNamespace(
        global_rank=rank, world_size=world_size, max_steps=max_steps, accumulate_grad_batches=accumulate, fit_loop=loop
    )
    return data


def test_unknown_primary_metric_is_refused_with_the_names():
    with pytest.raises(ValueError, match=r"metric='f1' is not one of the metrics: accuracy"):
        Numbered(metric="f1")


@pytest.mark.parametrize(
    "name", ["batch_size", "evaluation_batch_size", "num_labels", "train_limit", "validation_limit"]
)
def test_a_size_below_one_is_refused(name):
    with pytest.raises(ValueError, match=rf"{name}=0 must be 1 or more"):
        Numbered(**{name: 0})


@pytest.mark.parametrize(
    "use",
    [
        lambda data: data.batches_per_epoch(),
        lambda data: len(data.calibration_batches(1)),
        lambda data: len(data.example_batch(1)["labels"]),
        lambda data: len(data.train_dataloader()),
        lambda data: len(data.val_dataloader()),
    ],
)
def test_rows_are_read_when_first_asked_for(use):
    data = Numbered()
    assert use(data) > 0
    data.setup("fit")
    assert data.reads == 1


@pytest.mark.parametrize(("counts", "split"), [((0, 5), "train"), ((5, 0), "validation")])
def test_an_empty_split_is_refused(counts, split):
    with pytest.raises(ValueError, match=rf"the {split} split of numbers is empty: set path"):
        Numbered(*counts).load()


def test_train_limit_takes_the_same_mixed_rows_for_every_seed():
    few = [Numbered(rows=100, train_limit=20, seed=seed) for seed in (0, 7)]
    chosen = [{row["pixel_values"].item() for row in data.train_rows} for data in few if data.load() is None]
    assert chosen[0] == chosen[1]
    assert len(chosen[0]) == 20
    assert chosen[0] != set(range(20))  # not the file's first ones, which are often of one class
    more = Numbered(rows=100, train_limit=30)
    more.load()
    assert chosen[0] < {row["pixel_values"].item() for row in more.train_rows}


@pytest.mark.parametrize(("given", "width"), [(None, 8), (3, 3)])
def test_validation_batches_are_twice_as_large_unless_given(given, width):
    batches = numbers(Numbered(validation_rows=20, evaluation_batch_size=given).val_dataloader())
    assert len(batches[0]) == width


def test_resumed_stage_continues_after_the_processed_batches():
    every = numbers(attached(Numbered(), 0, 1, max_steps=3, accumulate=2).train_dataloader())
    rest = numbers(attached(Numbered(), 0, 1, max_steps=3, accumulate=2, processed=4).train_dataloader())
    assert len(every) == 6  # 3 steps of 2 batches: two epochs
    assert rest == every[4:]


def test_lightning_reads_a_stage_in_the_order_of_the_sampler():
    seen = []

    class Reader(LightningModule):
        def __init__(self):
            super().__init__()
            self.layer = torch.nn.Linear(1, 1)

        def training_step(self, batch, index):
            seen.extend(batch["pixel_values"].flatten().int().tolist())
            return self.layer(batch["pixel_values"]).sum()

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.0)

    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "accelerator": "cpu"}
    trainer = Trainer(max_steps=5, max_epochs=-1, use_distributed_sampler=False, enable_model_summary=False, **quiet)
    trainer.fit(Reader(), Numbered())
    assert sorted(seen[:10]) == list(range(10))
    assert len(seen) == 18  # 4 + 4 + 2, then 4 + 4 of the second epoch
    assert seen[10:] != seen[:8]


def test_a_trainer_without_a_number_of_steps_is_refused():
    with pytest.raises(ValueError, match="the Trainer needs max_steps"):
        attached(Numbered(), 0, 1, max_steps=-1).train_dataloader()


def test_calibration_rows_are_the_same_for_every_rank_seed_and_batch_size():
    given = [Numbered(), Numbered(seed=5), Numbered(batch_size=3), attached(Numbered(), 1, 2)]
    rows = [list(itertools.chain(*numbers(data.calibration_batches(6)))) for data in given]
    assert rows[0] == rows[1] == rows[2] == rows[3]
    assert len(set(rows[0])) == 6
    assert [len(batch) for batch in numbers(given[2].calibration_batches(6))] == [6], "whatever the batch size"


def test_fingerprint_depends_on_content_only():
    same = {Numbered(**changed).fingerprint() for changed in ({}, {"seed": 3}, {"batch_size": 2}, {"train_limit": 10})}
    assert len(same) == 1


@pytest.mark.parametrize(
    "changed",
    [
        {"values": {3: 3.5}},
        {"values": {103: 3.5}},
        {"rows": 9},
        {"validation_limit": 5},
        {"train_limit": 9},
        {"num_labels": 3},
    ],
)
def test_fingerprint_changes_with_rows_and_limits(changed):
    assert Numbered(**changed).fingerprint() != Numbered().fingerprint()
