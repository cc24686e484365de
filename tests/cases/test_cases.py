"""Every kind of input that users have is read rightly, or refused with one true message."""

from __future__ import annotations

from pathlib import Path

import pytest
from omegaconf.errors import OmegaConfBaseException

from tests.cases.fitting import FITTING
from tests.cases.labels import LABELS
from tests.cases.reading import FILES
from tests.cases.teachers import TEACHERS
from tests.cases.whole import WHOLE

CASES = FILES | LABELS | TEACHERS | FITTING | WHOLE

_right: set[str] = set()


def try_case(name: str, folder: Path) -> None:
    case = CASES[name]
    case.make(folder)
    if case.refused:
        with pytest.raises((ValueError, OmegaConfBaseException), match=case.refused) as caught:
            case.read(folder)
        assert "\n" not in str(caught.value)
    else:
        assert case.read(folder) == case.value
    _right.add(name)


@pytest.mark.parametrize("name", CASES)
def test_it_is_read_rightly(name: str, tmp_path: Path) -> None:
    try_case(name, tmp_path)


def test_every_case_is_right(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The figure; what other processes have tried, or a selection has left out, is tried here."""
    for index, name in enumerate(sorted(set(CASES) - _right)):
        (tmp_path / str(index)).mkdir()
        try_case(name, tmp_path / str(index))
    with capsys.disabled():
        print(f"\ncases right: {len(_right)} of {len(CASES)}")
    assert _right == set(CASES)
