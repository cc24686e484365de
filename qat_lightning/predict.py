"""Predict labels for rows without labels: `python -m qat_lightning.predict run=DIR input=FILE output=FILE`."""

from qat_lightning.commands.cli import predict

if __name__ == "__main__":
    predict()
