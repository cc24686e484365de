"""What every test gets: one thread, the hypothesis profile, no network, no pictures.

Two processes run tests side by side; a second thread of one that waits would take the other's core.
"""

import os
from collections.abc import Iterator

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import pytest
import torch
from hypothesis import settings

settings.register_profile("house", deadline=None, max_examples=25)
settings.load_profile("house")
torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def _fast_files() -> Iterator[None]:
    """Leave the files of pictures empty, and wait for no disk: together these take more than half of a small run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("matplotlib.figure.Figure.savefig", lambda *_, **__: None)
        patch.setattr("os.fsync", lambda _: None)
        yield


@pytest.fixture(autouse=True)
def _seed() -> None:
    """A test that draws without seeding draws the same numbers alone and in the suite."""
    torch.manual_seed(0)
