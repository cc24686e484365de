"""What the program's streams do with words: their order, characters that they lack, and readers that have gone."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
INTERLEAVED = """
import os, sys
from qat_lightning.commands.terminal import robust_streams
with robust_streams():
    print("one")
    print("two", file=sys.stderr)
    print("three")
    print("four", file=sys.stderr)
    os._exit(0)  # as the watchdog ends a process: nothing is flushed
"""
BEYOND_ASCII = """
import sys
from rich import box
from rich.console import Console
from rich.table import Table
from qat_lightning.commands.terminal import robust_streams
with robust_streams():
    print("teacher: 4 steps … 14.88× accuracy ↑ a · b – café 猫 \\udcff")
    print("old → new", file=sys.stderr)
    table = Table("model", "accuracy ↑", box=box.SIMPLE_HEAD)
    table.add_row("student", "0.97")
    Console().print(table)
"""


def said(program: str, together: bool = False, **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-c", f"exec({program!a})"], stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT if together else subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": str(ROOT)} | environment, check=False,
    )  # fmt: skip


def test_without_buffers_nothing_waits_and_the_order_stays():
    ended = said(INTERLEAVED, together=True, PYTHONUNBUFFERED="1")
    assert ended.stdout == b"one\ntwo\nthree\nfour\n"


@pytest.mark.parametrize(
    "environment",
    [
        {"PYTHONIOENCODING": "ascii"},
        {"LC_ALL": "C", "LANG": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
        {"PYTHONIOENCODING": "latin-1"},
    ],
    ids=str,
)
def test_a_terminal_without_unicode_gets_readable_words(environment):
    ended = said(BEYOND_ASCII, **environment)
    assert ended.returncode == 0, ended.stderr
    words = ended.stdout.decode("latin-1")
    expected = "4 steps ... 14.88× accuracy ^ a · b - café \\u732b \\udcff\n"
    if environment.get("PYTHONIOENCODING") != "latin-1":
        expected = expected.replace("×", "x").replace("·", "-").replace("é", "e")
    assert expected in words
    assert "accuracy ^" in words.split("\n", 1)[1]
    assert ended.stderr == b"old -> new\n"


def test_a_terminal_with_unicode_gets_what_was_written():
    ended = said(BEYOND_ASCII, PYTHONIOENCODING="utf-8")
    assert ended.returncode == 0, ended.stderr
    assert "4 steps … 14.88× accuracy ↑ a · b – café 猫 \\udcff\n" in ended.stdout.decode()
    assert "───" in ended.stdout.decode()
