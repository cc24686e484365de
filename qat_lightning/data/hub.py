"""Check within seconds that models and data sets are on the disk, or that the hub answers."""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping
from pathlib import Path

from huggingface_hub import constants, get_session
from huggingface_hub.file_download import repo_folder_name

PATIENCE = 5.0
"""Seconds for the hub to answer one request."""


class UnreachableError(ValueError):
    """A model or data set that is not a local folder, not cached, and not available from the hub."""


def require_hub(places: Mapping[str, str]) -> None:
    """Refuse a model or a data set that neither the disk nor the hub can supply.

    Args:
        places: key or argument → hub id or folder, such as {"model.path": "google-bert/bert-base-uncased"}; "data.path"
            and "path" name a data set, all others a model.

    Raises:
        UnreachableError: one message that names everything that is missing, and the keys that supply it.
    """
    absent = {key: place for key, place in places.items() if not Path(place).is_dir()}
    paths = {key: place for key, place in absent.items() if _is_path(place)}
    remote = {
        key: place
        for key, place in absent.items()
        if key not in paths and not _is_cached(place, "dataset" if key in ("data.path", "path") else "model")
    }
    if remote and _hub_answers():
        remote = {}
    if not (paths or remote):
        return
    reasons = [f"{key}={place!r} is not a folder" for key, place in paths.items()]
    if remote:
        named = ", ".join(f"{key}={place!r}" for key, place in remote.items())
        reasons.append(f"{named}: neither a local folder nor cached, and the hub cannot be reached")
    remedy = " ".join(f"{key}=FOLDER" for key in places if key in paths or key in remote)
    raise UnreachableError(f"{'; '.join(reasons)}: set {remedy}")


def _is_path(place: str) -> bool:
    """Return whether `place` looks like a path and not like a hub id (`name` or `owner/name`)."""
    return place.startswith((".", "/", "~")) or place.count("/") > 1


def _is_cached(place: str, kind: str) -> bool:
    """Return whether the hub's cache has a revision, or the cache of `datasets` a data set."""
    folder = Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=place, repo_type=kind) / "snapshots"
    # the cache of `datasets` by its name: importing the library takes seconds
    built = Path(os.environ.get("HF_DATASETS_CACHE") or Path(constants.HF_HOME, "datasets")) / place.replace("/", "___")
    return any(folder.glob("*/*")) or (kind == "dataset" and any(built.glob("*/*")))


def _hub_answers() -> bool:
    """Send one request without a retry; a thread, as a request's time limit does not cover the look-up of the name."""
    if constants.is_offline_mode():
        return False
    answers: list[bool] = []

    def ask() -> None:
        try:
            answers.append(get_session().head(constants.ENDPOINT, timeout=PATIENCE).status_code < 500)
        except Exception:  # any error of the transport means that the hub did not answer
            answers.append(False)

    request = threading.Thread(target=ask, daemon=True)
    request.start()
    request.join(PATIENCE)
    return any(answers)
