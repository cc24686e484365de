"""`python -m qat_lightning.export run=DIR [overrides]`: write the packed folder, the ONNX file and the model card anew."""

from qat_lightning.commands.cli import export

if __name__ == "__main__":
    export()
