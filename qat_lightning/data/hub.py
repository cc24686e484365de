"""Check that models and data sets are on the disk or the hub answers, and that code of a model is pinned by a commit."""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import constants, get_session
from huggingface_hub.file_download import repo_folder_name

from qat_lightning.io.documents import DocumentError, check_size, read_json

PATIENCE = 5.0
"""Seconds for the hub to answer one request."""


COMMIT, HUB_ID = re.compile(r"[0-9a-f]{40}"), re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")

LARGEST_VOCABULARY = 128 * 2**20
"""Largest tokenizer file in bytes; tokenizer.json of a vocabulary of 262,144 has 33 MB."""

TEXTS = (".json", ".jinja", ".model", ".txt")
"""Suffixes of configurations and tokenizers, without those of weights."""


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
    # a hub id is `name` or `owner/name`
    paths = {key: place for key, place in absent.items() if place.startswith((".", "/", "~")) or place.count("/") > 1}
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


def source(path: str, revision: str | None = None, trust_remote_code: bool = False) -> dict[str, Any]:
    """Return the arguments for each `from_pretrained` of `path`: the revision, and whether its code may run.

    Raises:
        ValueError: trust in code that is not pinned: a folder, or a revision that is not a full commit; JSON of a folder
            that exceeds the limits of `qat_lightning.io.documents`.
    """
    _check_documents(Path(path))
    if trust_remote_code and (Path(path).exists() or not HUB_ID.fullmatch(path)):
        raise ValueError(f"model.trust_remote_code=true needs a hub id, which keeps its commits; {path!r} is not one")
    if trust_remote_code and not COMMIT.fullmatch(revision or ""):
        raise ValueError(
            f"model.trust_remote_code=true runs foreign code, and model.revision={revision} can change: read the code and set"
            " model.revision=COMMIT, all its 40 hexadecimal digits"
        )
    return {"revision": revision, "code_revision": revision, "trust_remote_code": trust_remote_code}


def _check_documents(folder: Path) -> None:
    """Check the size of every text, and the nesting of configurations, before transformers reads them."""
    places = (folder, folder / "additional_chat_templates")
    for file in (file for place in places if place.is_dir() for file in sorted(place.iterdir())):
        try:
            if file.name.endswith(("config.json", "index.json", "_map.json", "added_tokens.json")):
                read_json(file)
            elif file.suffix in TEXTS:
                check_size(file, LARGEST_VOCABULARY)
        except FileNotFoundError as error:
            raise DocumentError(f"{file} is a link to a missing file: copy the file itself") from error
