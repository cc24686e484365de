"""Reading a packed folder needs no training code and no network."""

import subprocess
import sys
from pathlib import Path

from qat_lightning.exporters.packed.writer import write_packed
from tests.exporters.students import student

TRAINING = ("lightning", "hydra", "omegaconf", "datasets", "wandb", "torchmetrics")

BARE = """
import sys
import qat_lightning
heavy = {"torch", "transformers", "safetensors", "numpy"} & sys.modules.keys()
assert not heavy, heavy
assert qat_lightning.__all__ == ["load_packed"]
try:
    qat_lightning.nothing
except AttributeError as error:
    assert "has no attribute 'nothing'" in str(error)
else:
    raise AssertionError
"""

READING = """
import os, socket, sys
os.environ.pop("HF_HUB_OFFLINE", None)

def refuse(*arguments, **keywords):
    raise AssertionError("the network was asked for")

socket.socket.connect = socket.getaddrinfo = socket.create_connection = refuse
from qat_lightning import load_packed
print(type(load_packed(sys.argv[1])).__name__)
loaded = {name.split(".")[0] for name in sys.modules}
print(*sorted(loaded & set(sys.argv[2:])))
"""


def run_python(code: str, *arguments: str) -> list[str]:
    command = [sys.executable, "-c", code, *arguments]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=Path(__file__).parents[3])
    assert ended.returncode == 0, ended.stderr
    return ended.stdout.split("\n")


def test_reading_imports_no_training_code_and_asks_no_network(tmp_path: Path) -> None:
    """Torch and json prove that the check finds what is imported."""
    write_packed(student("gpt2", "ternary_w2a8"), tmp_path / "packed")
    assert run_python(READING, str(tmp_path / "packed"), *TRAINING, "torch", "json")[:2] == [
        "GPT2LMHeadModel",
        "json torch",
    ]


def test_the_package_alone_imports_nothing() -> None:
    run_python(BARE)
