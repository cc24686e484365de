"""Refuse code that comes with a model or tokenizer, unless a flag asks for it and a commit pins it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from qat_lightning.io.documents import DocumentError, check_size, read_json

COMMIT, HUB_ID = re.compile(r"[0-9a-f]{40}"), re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")

LARGEST_VOCABULARY = 128 * 2**20
"""Largest tokenizer file in bytes; tokenizer.json of a vocabulary of 262,144 has 33 MB."""

TEXTS = (".json", ".jinja", ".model", ".txt")
"""Suffixes of configurations and tokenizers, without those of weights."""


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
