"""A module with one weight, for a stage that is to be resumed."""

import torch
from lightning.pytorch import LightningModule
from torch import nn


class OneWeight(LightningModule):
    """Trains on nothing; what matters is the checkpoint that it is resumed from."""

    steps = 1

    def __init__(self) -> None:
        super().__init__()
        self.student = nn.Linear(1, 1)

    def training_step(self, batch, index):
        return self.student(torch.ones(1, 1)).sum()

    def validation_step(self, batch, index):
        self.log("val/accuracy", 0.5)

    def configure_optimizers(self):
        return torch.optim.SGD(self.student.parameters(), lr=0.1)
