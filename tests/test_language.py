"""Words that no text of this project uses; CONTRIBUTING.md says how to write instead."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
WORDS = re.compile(
    r"\b(told|anew|mend(s|ed)?|heed(s|ed)?|bears|lies|stands|stood|hands on|handed on|brings? forth|whoever)\b"
    r"|(?<!word )(?<!chunk )\bin words\b"
    r"|\b(is|are) no (?!such)(\w+ )?(argument|key|column|number|class|file|folder|model|YAML|JSON|choice|name)s?\b",
    re.IGNORECASE,
)
FOLDERS = ("qat_lightning", "conf", "docs", "notebooks")
FILES = [file for folder in FOLDERS for file in sorted((ROOT / folder).rglob("*.*")) if "__pycache__" not in file.parts]
FILES += sorted(ROOT.glob("*.md"))


@pytest.mark.parametrize("folder", sorted({file.relative_to(ROOT).parts[0] for file in FILES}))
def test_words_that_are_not_used(folder: str) -> None:
    found = [
        f"{file.relative_to(ROOT)}:{number}: {match[0]}"
        for file in FILES
        if file.is_file() and file.relative_to(ROOT).parts[0] == folder
        for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), start=1)
        for match in WORDS.finditer(line)
    ]
    assert found == []
