"""Check a model family's table on a random tiny model: `python -m qat_lightning.check_model model=TYPE_OR_FOLDER`."""

from qat_lightning.commands.cli import check_model

if __name__ == "__main__":
    check_model()
