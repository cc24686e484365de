"""`task_loss`: class weights and label smoothing reach the teacher stage and `losses.task`, or are refused with the key."""

import pytest

from qat_lightning.config.schema import ConfigError
from tests.training.runs import composed, planned, save_tokenizer, saved_tiny, small_run, without

TEXT = without("data.rows")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Twelve rows, three of them "yes", and a model with its tokenizer."""
    place = tmp_path_factory.mktemp("texts")
    save_tokenizer(saved_tiny(place / "model"), "film", "walk")
    kinds = ("film", "no"), ("film", "no"), ("walk", "no"), ("walk", "yes")
    rows = [f"{word} {'film ' * count},{label}" for word, label in kinds for count in range(3)]
    for split in ("train", "validation"):
        (place / f"{split}.csv").write_text("\n".join(["text,label", *rows]) + "\n")
    return place


def words(folder, *more):
    return (
        f"model.path={folder / 'model'}", "data=text", f"data.path={folder}", "data.text_columns=[text]", "data.num_labels=2",
        "data.max_length=16", "losses=kdlsq_task", *more,
    )  # fmt: skip


def test_balanced_weights_are_counted_and_reach_both_losses(folder):
    run = planned(
        composed(*words(folder, "task_loss.class_weights=balanced", "task_loss.label_smoothing=0.1"), small=TEXT)
    )
    for loss in (run.objective.of("teacher").losses["task"], run.objective.losses["task"]):
        assert loss.class_weights == pytest.approx([12 / (2 * 9), 12 / (2 * 3)])  # 9 rows "no", 3 rows "yes"
        assert loss.label_smoothing == 0.1
    assert run.stages["teacher"].settings["task_loss.label_smoothing"] == 0.1
    plain = planned(composed(*words(folder), small=TEXT))
    assert not [key for key in plain.stages["teacher"].settings if key.startswith("task_loss")]


def test_teacher_of_weighted_classes_finds_more_of_the_rare_one(folder, tmp_path):
    short = ("stages.teacher.max_steps=30", "stages.teacher.max_epochs=null", "stages.train.max_steps=2",
             "stages.intervene.max_steps=0", "stages.teacher.keep=last", "optimizer.lr=2e-3")  # fmt: skip
    recall = {}
    for weights in ("null", "[1,30]"):
        results = small_run(
            tmp_path / weights, *words(folder, *short, f"task_loss.class_weights={weights}"), small=TEXT
        )
        recall[weights] = results["answers"]["models"]["teacher"]["recall"][1]
    assert recall["[1,30]"] == 1 > recall["null"]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("task_loss.class_weights=[1,2,3]", r"task_loss\.class_weights=\[1, 2, 3\] must have 2 numbers"),
        ("task_loss.class_weights=even", r"task_loss\.class_weights='even' must be balanced"),
        (
            "task_loss.class_weights=[1,-2]",
            r"task_loss\.class_weights=\[1, -2\] must be balanced, or a list of positive",
        ),
        ("task_loss.label_smoothing=1.5", r"task_loss\.label_smoothing=1\.5 must be 0 or more"),
    ],
)
def test_wrong_setting_is_refused_with_its_key(folder, given, message):
    with pytest.raises(ConfigError, match=message):
        _ = planned(composed(*words(folder, given), small=TEXT)).objective


def test_language_models_have_no_class_weights():
    with pytest.raises(ConfigError, match="are for classes"):
        _ = planned(composed("model=tiny_llama", "data=random_tokens", "task_loss.label_smoothing=0.1")).objective
