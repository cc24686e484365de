"""Checkpoints to resume from, the best weights, and the results of finished stages."""
