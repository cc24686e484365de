"""What every test gets: two threads, the hypothesis profile, no network."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import pytest
import torch
from hypothesis import settings

settings.register_profile("house", deadline=None, max_examples=25)
settings.load_profile("house")
torch.set_num_threads(2)


@pytest.fixture(autouse=True)
def _seed() -> None:
    """A test that draws without seeding draws the same numbers alone and in the suite."""
    torch.manual_seed(0)
