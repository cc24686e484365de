"""Whose code may be run: nobody's, unless it is asked for by a flag and pinned to a commit."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from qat_lightning.documents import check_size, read_json

COMMIT, HUB_ID = re.compile(r"[0-9a-f]{40}"), re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")


LARGEST_VOCABULARY = 128 * 2**20
"""Bytes of tokenizer.json and vocab.json; those of a vocabulary of 262,144 have 33 MB."""


def source(path: str, revision: str | None = None, trust_remote_code: bool = False) -> dict[str, Any]:
    """The arguments that every `from_pretrained` of `path` is given: what is read, and whether its code may be run.

    Raises:
        ValueError: trust in code that is not pinned: of a folder, or of a revision that is no full commit; JSON of a
            folder that exceeds the limits of `qat_lightning.documents`.
    """
    _check_documents(Path(path))
    if trust_remote_code and (Path(path).exists() or not HUB_ID.fullmatch(path)):
        raise ValueError(f"model.trust_remote_code=true needs a hub id, which keeps its commits; {path!r} is none")
    if trust_remote_code and not COMMIT.fullmatch(revision or ""):
        raise ValueError(
            f"model.trust_remote_code=true runs what others wrote, and what model.revision={revision} names can change:"
            " read the code and give model.revision=COMMIT, all its 40 hexadecimal digits"
        )
    return {"revision": revision, "code_revision": revision, "trust_remote_code": trust_remote_code}


def _check_documents(folder: Path) -> None:
    """Before transformers reads them: vocabularies by their size, other JSON by its size and its nesting."""
    for file in sorted(folder.glob("*.json")) if folder.is_dir() else ():
        if file.name in ("tokenizer.json", "vocab.json"):
            check_size(file, LARGEST_VOCABULARY)
        elif file.name.endswith(("config.json", "index.json", "_map.json", "added_tokens.json")):
            read_json(file)
