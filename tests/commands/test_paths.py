"""Paths on the command line, typed as they are: what Hydra's grammar would refuse, or take for something else."""

import os
import sys

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import given
from hypothesis import strategies as st

from qat_lightning.commands import cli
from qat_lightning.config.command_line import quote_paths

PLAIN = [
    "/data/of the year", "/data/a=b", "/data/a,b", "/data/a[1]", "[a]", "/data/a(b)", "/data/{a: b}", "/data/Übung/日本語",
    "/data/it's", '/data/"x"', "/data/a\\b", "/data/a\\", "/data/a!", "/data/#1;&*?", " /data ", "123", "true", "1e3",
    "owner/name", "../data/v1.0-rc+2", "/data/$x", "",
]  # fmt: skip


@pytest.mark.parametrize("path", PLAIN)
@pytest.mark.parametrize(
    "key", ["data.path", "model.path", "data.tokenizer", "+teacher_cache", "++hydra.run.dir", "output"]
)
def test_a_path_is_read_as_it_is_typed(key, path):
    (word,) = quote_paths([f"{key}={path}"])
    (override,) = OverridesParser.create().parse_overrides([word])
    assert override.value() == path
    assert isinstance(override.value(), str)
    assert not override.is_sweep_override()
    assert quote_paths([word]) == [word]  # as the processes of a run type it again


@given(path=st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1))
def test_any_path_survives(path):
    word = quote_paths([f"data.path=/{path}"])[0]
    assert OverridesParser.create().parse_override(word).value() == f"/{path}"


def test_the_home_folder_has_its_short_name(monkeypatch):
    monkeypatch.setenv("HOME", "/home/of me")
    assert quote_paths(["data.path=~/a b"]) == ["data.path=/home/of me/a b"]
    assert quote_paths(["data.path=~"]) == ["data.path=/home/of me"]
    assert quote_paths(["-m", "data.path=~/a,/b"]) == ["-m", "data.path=/home/of me/a,/b"]


@pytest.mark.parametrize(
    "word",
    [
        "model.path=null", "data.path='/a b'", 'data.path="/a b"', "data.path=${oc.env:HOME}/x", "hydra.run.dir=runs/${now:%Y}",
        "data.path=choice(a,b)", "~data.path", "data.text_columns=[a,b]", "seed=1,2", "--config-dir=/a b", "-m", "/a b",
    ],
)  # fmt: skip
def test_what_hydra_reads_rightly_stays_as_it_is(word):
    assert quote_paths([word]) == [word]


def test_commas_part_the_jobs_of_a_sweep_unless_such_a_path_exists(tmp_path):
    (tmp_path / "a,b").mkdir()
    with_comma = f"data.path={tmp_path}/a,b"
    words = ["data.path=/a,/b", "model.path=/a[1],/ü", with_comma, "hydra.sweep.dir=/a,b", "data.path=/a b"]
    assert quote_paths(["--multirun", *words]) == [
        "--multirun",
        "data.path=/a,/b",
        "model.path='/a[1]','/ü'",
        f"data.path='{tmp_path}/a,b'",
        "hydra.sweep.dir='/a,b'",
        "data.path=/a b",
    ]
    assert quote_paths(["hydra.mode=MULTIRUN", "data.path=/a,/b"])[1] == "data.path=/a,/b"
    assert quote_paths(["data.path=/a,/b"]) == ["data.path='/a,/b'"]


def test_every_command_takes_paths_as_they_are_typed(monkeypatch):
    typed = ["data.path=/a=b", "-m"]
    monkeypatch.setattr(sys, "argv", ["qat-train", *typed])
    cli.start_hydra(lambda: None)
    assert sys.argv[1:] == ["-m", "data.path='/a=b'"]
    monkeypatch.setattr(sys, "argv", ["qat-evaluate", "run=/runs/a=b [1]", "data.path=/a=b"])
    folder, _, overrides = cli.parse_arguments("")
    assert (os.fspath(folder), overrides) == ("/runs/a=b [1]", ["data.path='/a=b'"])
