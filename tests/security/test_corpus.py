"""Nothing that a stranger has written is run: every case of the corpus is refused, or read as data, and no canary sings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from omegaconf.errors import OmegaConfBaseException

from tests.security.corpus import CASES, HARMLESS, Case
from tests.security.listening import listening, note, quiet
from tests.security.plant import SECRET

_refused: set[str] = set()


@pytest.fixture(autouse=True)
def _kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if the library were installed that downloads kernels, and a secret in the environment."""
    from transformers import modeling_utils

    def sing(*_: Any, **__: Any) -> None:
        note("a kernel was loaded")

    monkeypatch.setattr(modeling_utils, "lazy_import_flash_attention", sing)
    monkeypatch.setenv("QAT_CANARY", SECRET)


def refuse(name: str, folder: Path) -> None:
    case: Case = CASES[name]
    hostile = case.make(folder)
    with listening() as heard, pytest.raises((ValueError, OmegaConfBaseException), match=case.words) as caught:
        case.read(hostile)
    quiet(folder, heard)
    if (outside := folder / "outside").exists():
        assert [path.name for path in outside.iterdir()] == ["manifest.json"]
    assert str(caught.value)
    assert "\n" not in str(caught.value)
    assert SECRET not in str(caught.value)
    _refused.add(name)


@pytest.mark.parametrize("name", CASES)
def test_it_is_refused_before_anything_runs(name: str, tmp_path: Path) -> None:
    refuse(name, tmp_path)


@pytest.mark.parametrize("name", HARMLESS)
def test_it_is_read_as_data(name: str, tmp_path: Path) -> None:
    case: Case = HARMLESS[name]
    hostile = case.make(tmp_path)
    with listening() as heard:
        assert case.read(hostile) is not None
    quiet(tmp_path, heard)


def test_every_case_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The figure; what other processes have tried, or a selection has left out, is tried here."""
    for index, name in enumerate(sorted(set(CASES) - _refused)):
        (tmp_path / str(index)).mkdir()
        refuse(name, tmp_path / str(index))
    with capsys.disabled():
        print(f"\nhostile corpus: refused {len(_refused)} of {len(CASES)}")
    assert _refused == set(CASES)
    assert len(CASES) >= 120
