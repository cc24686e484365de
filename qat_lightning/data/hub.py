"""Is everything there that a run needs from outside? Asked before anything begins, answered in seconds."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from huggingface_hub import constants, get_session, scan_cache_dir
from huggingface_hub.errors import CacheNotFound

PATIENCE = 5.0
"""Seconds for the hub to answer one request."""


class Unreachable(ValueError):
    """Neither a local folder, nor cached, nor to be had from the hub."""


def require_hub(wanted: Mapping[str, str]) -> None:
    """Refuse to begin without a model or a data set that neither the disk nor the hub can supply.

    Args:
        wanted: override → hub id or folder, such as {"model.path": "google-bert/bert-base-uncased"}.

    Raises:
        Unreachable: one message that names all that is missing, and the overrides that supply it.
    """
    remote = {override: place for override, place in wanted.items() if not Path(place).is_dir()}
    if folders := {override: place for override, place in remote.items() if _is_path(place)}:
        override, place = next(iter(folders.items()))
        raise Unreachable(f"{override}={place!r} is no folder: give the path of one, or a hub id such as owner/name")
    cached = _cached()
    missing = {override: place for override, place in remote.items() if place not in cached}
    if missing and not _hub_answers():
        things = ", ".join(f"{place!r} ({override})" for override, place in missing.items())
        remedy = " ".join(f"{override}=FOLDER" for override in missing)
        raise Unreachable(
            f"{things}: neither a local folder nor cached, and the hub cannot be reached. Give local folders with: {remedy}"
        )


def _is_path(place: str) -> bool:
    """Looks like a path and not like a hub id (`name` or `owner/name`)."""
    return place.startswith((".", "/", "~")) or place.count("/") > 1


def _cached() -> set[str]:
    try:
        return {repository.repo_id for repository in scan_cache_dir().repos if repository.size_on_disk > 0}
    except CacheNotFound:
        return set()


def _hub_answers() -> bool:
    """One request, no retry: a library's own retries take half a minute to give up."""
    if constants.is_offline_mode():
        return False
    try:
        get_session().head(constants.ENDPOINT, timeout=PATIENCE)
    except Exception:  # whatever the transport raises: it did not answer
        return False
    return True
