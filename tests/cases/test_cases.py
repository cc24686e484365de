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


@pytest.mark.parametrize("name", CASES)
def test_input_is_read_or_refused(name: str, tmp_path: Path) -> None:
    case = CASES[name]
    case.make(tmp_path)
    if case.refused:
        with pytest.raises((ValueError, OmegaConfBaseException), match=case.refused) as caught:
            case.read(tmp_path)
        assert "\n" not in str(caught.value)
    else:
        assert case.read(tmp_path) == case.value
