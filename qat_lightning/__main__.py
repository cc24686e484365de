"""`python -m qat_lightning [+experiment=NAME] [overrides]`: the whole run, all stages of the experiment."""

from qat_lightning.commands.cli import train

if __name__ == "__main__":
    train()
