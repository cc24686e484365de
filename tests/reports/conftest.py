"""Pictures are drawn in the tests of this folder."""

import pytest
from matplotlib.figure import Figure

draw = Figure.savefig


@pytest.fixture(autouse=True)
def _drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Figure, "savefig", draw)
