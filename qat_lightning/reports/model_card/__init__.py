"""The model card of an export."""

from qat_lightning.reports.model_card.card import write_card

__all__ = ["write_card"]
