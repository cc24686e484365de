"""Where Weights & Biases' key goes is said before anything goes."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import wandb

from qat_lightning.training.wandb_fallback import begin

ELSEWHERE = "https://elsewhere.example"


class Logger:
    """As Lightning's, not yet begun; it notes what was said before."""

    def __init__(self, said: list[str], offline: bool = False) -> None:
        self._offline, self.said = offline, said
        self.before: list[str] | None = None

    @property
    def experiment(self) -> Any:
        self.before = self.said.copy() if self.before is None else self.before
        return SimpleNamespace(settings=SimpleNamespace(mode="online"))


@pytest.mark.parametrize("place", ["wandb/settings", "WANDB_BASE_URL", "nowhere", "offline"])
def test_another_host_is_named_before_the_key_is_sent_there(place: str, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("WANDB_MODE", "WANDB_BASE_URL", "WANDB_DIR", "WANDB_CONFIG_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("WANDB_SILENT", "true")
    if place in ("wandb/settings", "offline"):
        (tmp_path / "wandb").mkdir()
        (tmp_path / "wandb" / "settings").write_text(f"[default]\nbase_url = {ELSEWHERE}\n")
    if place == "WANDB_BASE_URL":
        monkeypatch.setenv(place, ELSEWHERE)
    said: list[str] = []
    logger: Any = Logger(said, place == "offline")
    wandb.teardown()
    begin(logger, lambda *words: said.append(": ".join(words)))
    wandb.teardown()
    assert logger.before == said
    if place in ("nowhere", "offline"):
        assert said == []
    else:
        (line,) = said
        assert line.startswith(f"wandb: sends this run and your API key to {ELSEWHERE} (base_url of ")
        assert place in line
