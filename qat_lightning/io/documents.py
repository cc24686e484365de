"""Read untrusted JSON and YAML within limits of size, nesting and number of values."""

from __future__ import annotations

import json
import stat
from pathlib import Path
from typing import Any

import yaml

LARGEST_YAML, MOST_VALUES = 2**20, 20_000
"""Largest YAML file in bytes, and in values with all aliases expanded; a run's configuration has 20 kB and 500 values."""

LARGEST_JSON = 8 * 2**20
"""Largest JSON file in bytes; a model's config.json has some kB, an index of shards less than 1 MB."""

DEEPEST = 50
"""Deepest nesting of lists and dictionaries; a run's configuration has 6."""

LONGEST_NUMBER = 1_000
"""Longest YAML number in characters; the time for a number in base 60 (`1:0:0`) grows with their square."""

PLAIN = tuple(f"tag:yaml.org,2002:{kind}" for kind in ("map", "seq", "str", "int", "float", "bool", "null"))
"""The tags of plain values, without that of a merge key (`<<`), which can multiply its content."""

TEXT = "tag:yaml.org,2002:str"


class DocumentError(ValueError):
    """A file that is not plain JSON or YAML, or exceeds the limits."""


def read_json(path: Path, largest: int = LARGEST_JSON) -> Any:
    """Read a JSON file; DocumentError if it is not JSON, larger than `largest` bytes, or nested too deeply."""
    try:
        content = json.loads(read_bytes(path, largest))
    except (ValueError, RecursionError) as error:
        raise DocumentError(f"{path} cannot be read as JSON: {_line(error)}") from error
    check_nesting(content, path)
    return content


def read_yaml(path: Path) -> Any:
    """Read a YAML file, see `read_yaml_text`."""
    return read_yaml_text(path)[1]


def read_yaml_text(path: Path) -> tuple[str, Any]:
    """Read text and content of a YAML file of plain values: DocumentError for tags, merge keys, or beyond the limits."""
    try:
        text = read_bytes(path, LARGEST_YAML).decode()
        _check_nodes(yaml.compose(text, Loader=yaml.SafeLoader))
        content = yaml.safe_load(text)  # fails for a wrong value of a plain tag, as in `!!int x`
    except (ValueError, ArithmeticError, LookupError, RecursionError, yaml.YAMLError) as error:
        raise DocumentError(f"{path} cannot be read as YAML: {_line(error)}") from error
    return text, content


def read_bytes(path: Path, largest: int) -> bytes:
    """Read a plain file, see `check_size`."""
    check_size(path, largest)
    return path.read_bytes()


def check_size(path: Path, largest: int | None = None) -> None:
    """Raise DocumentError if a path is not a plain file or larger than `largest` bytes, without opening it."""
    try:
        found = path.stat()
    except FileNotFoundError:
        raise
    except OSError as error:  # a link to itself, a folder without permission
        raise DocumentError(f"{path} cannot be read ({error.strerror})") from error
    if not stat.S_ISREG(found.st_mode):
        raise DocumentError(f"{path} is not a plain file")
    if largest is not None and found.st_size > largest:
        raise DocumentError(f"{path} has {found.st_size} bytes, more than the {largest} that are read")


def check_nesting(content: Any, name: object) -> None:
    """Raise DocumentError if lists and dictionaries are nested deeper than `DEEPEST`."""
    level = [content]
    for _ in range(DEEPEST):
        level = [child for node in level for child in _children(node)]
        if not level:
            return
    raise DocumentError(f"{name} has more than {DEEPEST} lists and dictionaries within each other")


def _children(node: Any) -> list[Any]:
    children = node.values() if isinstance(node, dict) else node if isinstance(node, list) else ()
    return [child for child in children if isinstance(child, dict | list)]


def _check_nodes(root: yaml.Node | None) -> None:
    """Check every node with all aliases expanded, without recursion."""
    left, seen = [(root, 1)] if root else [], 0
    while left:
        (node, depth), seen = left.pop(), seen + 1
        if seen > MOST_VALUES:
            raise ValueError(f"it holds more than {MOST_VALUES} values")
        if depth > DEEPEST:
            raise ValueError(f"it has more than {DEEPEST} lists and dictionaries within each other")
        if node.tag not in PLAIN:
            raise ValueError(f"line {node.start_mark.line + 1} has the tag {node.tag!r}: only plain values are read")
        if isinstance(node, yaml.ScalarNode) and node.tag != TEXT and len(node.value) > LONGEST_NUMBER:
            raise ValueError(f"line {node.start_mark.line + 1} has a number of {len(node.value)} characters")
        if isinstance(node, yaml.SequenceNode):
            left += [(child, depth + 1) for child in node.value]
        if isinstance(node, yaml.MappingNode):
            left += [(part, depth + 1) for pair in node.value for part in pair]


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())
