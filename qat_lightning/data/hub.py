"""Is everything there that a run needs from outside? Asked before anything begins, answered in seconds."""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping
from pathlib import Path

from huggingface_hub import constants, get_session
from huggingface_hub.file_download import repo_folder_name

PATIENCE = 5.0
"""Seconds for the hub to answer one request."""


class Unreachable(ValueError):  # noqa: N818 (reads as a sentence: raise Unreachable)
    """Neither a local folder, nor cached, nor to be had from the hub."""


def require_hub(places: Mapping[str, str]) -> None:
    """Refuse to begin without a model or a data set that neither the disk nor the hub can supply.

    Args:
        places: override → hub id or folder, such as {"model.path": "google-bert/bert-base-uncased"}. What `data.path`
            names is a data set, anything else a model.

    Raises:
        Unreachable: one message that names all that is missing, and the overrides that supply it.
    """
    absent = {override: place for override, place in places.items() if not Path(place).is_dir()}
    paths = {override: place for override, place in absent.items() if _is_path(place)}
    remote = {
        override: place
        for override, place in absent.items()
        if override not in paths and not _cached(place, "dataset" if override == "data.path" else "model")
    }
    if remote and _hub_answers():
        remote = {}
    if not (paths or remote):
        return
    reasons = [f"{override}={place!r} is no folder" for override, place in paths.items()]
    if remote:
        named = ", ".join(f"{override}={place!r}" for override, place in remote.items())
        reasons.append(f"{named}: neither a local folder nor cached, and the hub cannot be reached")
    remedy = " ".join(f"{override}=FOLDER" for override in places if override in paths or override in remote)
    raise Unreachable(f"{'; '.join(reasons)}: give {remedy}")


def _is_path(place: str) -> bool:
    """Looks like a path and not like a hub id (`name` or `owner/name`)."""
    return place.startswith((".", "/", "~")) or place.count("/") > 1


def _cached(place: str, kind: str) -> bool:
    """Some revision lies in the hub's cache, or a data set has been built in that of `datasets`."""
    folder = Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=place, repo_type=kind) / "snapshots"
    if any(folder.glob("*/*")):
        return True
    return kind == "dataset" and any((_built() / place.replace("/", "___")).glob("*/*"))


def _built() -> Path:
    """Where `datasets` keeps what it has built: its HF_DATASETS_CACHE, without the seconds that importing it takes."""
    return Path(os.environ.get("HF_DATASETS_CACHE") or Path(constants.HF_HOME, "datasets"))


def _hub_answers() -> bool:
    """One request without a retry: the libraries' own take half a minute to give up.

    A thread, as the time limit of a request does not cover the look-up of the name.
    """
    if constants.is_offline_mode():
        return False
    answers: list[bool] = []

    def ask() -> None:
        try:
            answers.append(get_session().head(constants.ENDPOINT, timeout=PATIENCE).status_code < 500)
        except Exception:  # whatever the transport raises: it did not answer
            answers.append(False)

    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    asking.join(PATIENCE)
    return any(answers)
