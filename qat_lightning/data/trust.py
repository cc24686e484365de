"""Whose code may be run: nobody's, unless it is asked for by a flag and pinned to a commit."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

COMMIT, HUB_ID = re.compile(r"[0-9a-f]{40}"), re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")


def source(path: str, revision: str | None = None, trust_remote_code: bool = False) -> dict[str, Any]:
    """The arguments that every `from_pretrained` of `path` is given: what is read, and whether its code may be run.

    Raises:
        ValueError: trust in code that is not pinned: of a folder, or of a revision that is no full commit.
    """
    if trust_remote_code and (Path(path).exists() or not HUB_ID.fullmatch(path)):
        raise ValueError(f"model.trust_remote_code=true needs a hub id, which keeps its commits; {path!r} is none")
    if trust_remote_code and not COMMIT.fullmatch(revision or ""):
        raise ValueError(
            f"model.trust_remote_code=true runs what others wrote, and what model.revision={revision} names can change:"
            " read the code and give model.revision=COMMIT, all its 40 hexadecimal digits"
        )
    return {"revision": revision, "code_revision": revision, "trust_remote_code": trust_remote_code}
