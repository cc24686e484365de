"""Write the exports of a finished run again: `python -m qat_lightning.export run=DIR [overrides]`."""

from qat_lightning.commands.cli import export

if __name__ == "__main__":
    export()
