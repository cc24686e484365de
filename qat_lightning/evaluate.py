"""`python -m qat_lightning.evaluate run=DIR [model=packed] [overrides]`: score a finished run, or its export, again."""

from qat_lightning.commands.cli import evaluate

if __name__ == "__main__":
    evaluate()
