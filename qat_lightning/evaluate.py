"""Score a finished run, or one of its exports, again: `python -m qat_lightning.evaluate run=DIR [model=packed]`."""

from qat_lightning.commands.cli import evaluate

if __name__ == "__main__":
    evaluate()
