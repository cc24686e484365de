"""Run one configuration in one process, in two, and in two that are stopped by a signal and continued.

`python -m tests.training.process.forked_runs FOLDER` forks each process after importing everything once.
"""

import json
import sys
from pathlib import Path

from tests.training.checkpoints.killing import _start
from tests.training.runs import composed, without

# Static scales: the result of a row does not depend on its batch. Each process draws its own dropout, so there is none.
# Images have no padding, so the mean of two halves is the mean of all. Stages and epochs end within a batch. In float64 no
# value is near the border between two codes, which in float32 falls to one side or the other sooner or later.
EQUAL = (
    *without("model", "data"),
    "model=vit_digits",
    "data=digits",
    "data.train_limit=100",
    "data.validation_limit=51",
    "quantization.activation.scale=static",
    "+model.architecture.hidden_dropout_prob=0.0",
    "+model.architecture.attention_probs_dropout_prob=0.0",
    "model.architecture.num_hidden_layers=1",
    "trainer.precision=64-true",
    "optimizer.lr=1e-4",
    "stages.train.max_steps=10",
    "export.packed=false",
)
TWO = ("trainer.devices=2", "trainer.strategy=ddp", "data.batch_size=10")


def main() -> None:
    folder = Path(sys.argv[1])
    one, two = (composed(*EQUAL, *words, small=()) for words in (("data.batch_size=20",), TWO))
    codes = {
        "one": _start(folder / "one", one, None, 1),
        "two": _start(folder / "two", two, None, 2),
        "stopped": _start(folder / "stopped", two, ("signal", 7, []), 2),
        "continued": _start(folder / "stopped", two, None, 2),
    }
    (folder / "codes.json").write_text(json.dumps(codes))


if __name__ == "__main__":
    main()
