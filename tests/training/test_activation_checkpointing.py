"""Activation checkpointing by an override: the same run in less memory."""

import copy

import pytest

from qat_lightning.config.builders.models import build_data, build_model, build_student
from qat_lightning.config.builders.training import build_module
from qat_lightning.models.module_paths import layer_paths
from tests.training.runs import composed, small_run

ON = "activation_checkpointing=true"


def checkpointed(model):
    return [model.get_submodule(path).gradient_checkpointing for path in layer_paths(model)]


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    return small_run(tmp_path_factory.mktemp("plain"))


def test_a_run_trains_the_same_student(tmp_path, plain):
    """All stages, dropout on."""
    own = small_run(tmp_path, ON)
    assert own["student_hash"] == plain["student_hash"]
    assert (own["teacher"], own["student"]) == (plain["teacher"], plain["student"])


def test_the_trained_model_runs_so_and_the_teacher_does_not():
    config = composed(ON)
    data = build_data(config)
    data.load()
    teacher = build_model(config, data)
    student = build_student(config, copy.deepcopy(teacher), data)
    assert checkpointed(student) == [False, False]
    module = build_module(config, "train", 4, student, data, teacher)
    assert checkpointed(module.student) == [True, True]
    assert checkpointed(module.teacher) == [False, False]
    assert checkpointed(build_module(config, "teacher", 4, teacher, data).student) == [True, True]
