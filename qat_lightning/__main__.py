"""Run all stages of an experiment: `python -m qat_lightning [+experiment=NAME] [overrides]`."""

from qat_lightning.commands.cli import train

if __name__ == "__main__":
    train()
