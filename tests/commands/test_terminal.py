"""Output streams: their order, and characters that the terminal lacks."""

import subprocess

import pytest

from tests.command_line import fresh

INTERLEAVED = """
import os, sys
from qat_lightning.commands.terminal import robust_streams
with robust_streams():
    for number, stream in enumerate((sys.stdout, sys.stderr) * 2):
        print(number, file=stream)
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


def run(tmp_path, program, **options):
    return fresh(tmp_path, "-c", f"exec({program!a})", encoding="latin-1", **options)


def test_the_order_of_both_streams_is_kept_without_buffers(tmp_path):
    ended = run(tmp_path, INTERLEAVED, environment={"PYTHONUNBUFFERED": "1"}, stderr=subprocess.STDOUT)
    assert ended.stdout == "0\n1\n2\n3\n"


@pytest.mark.parametrize(
    "environment",
    [
        {"PYTHONIOENCODING": "latin-1"},
        {"LC_ALL": "C", "LANG": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
    ],
    ids=["latin-1", "ascii"],
)
def test_a_terminal_without_unicode_gets_escapes(tmp_path, environment):
    ended = run(tmp_path, BEYOND_ASCII, environment=environment)
    assert ended.returncode == 0, ended.stderr
    expected = "4 steps \\u2026 14.88× accuracy \\u2191 a · b \\u2013 café \\u732b \\udcff\n"
    if "LC_ALL" in environment:
        expected = expected.encode("ascii", "backslashreplace").decode()
    assert expected in ended.stdout
    assert ended.stderr == "old \\u2192 new\n"


def test_a_terminal_with_unicode_gets_the_text_unchanged(tmp_path):
    ended = run(tmp_path, BEYOND_ASCII, environment={"PYTHONIOENCODING": "utf-8"})
    printed = ended.stdout.encode("latin-1").decode()
    assert "4 steps … 14.88× accuracy ↑ a · b – café 猫 \\udcff\n" in printed
    assert "───" in printed
