"""Learning-rate factors as pure functions of progress: (step, steps) → factor."""

from __future__ import annotations


class LinearWarmup:
    """Learning-rate factor: 0 → 1 over the first `warmup` share of the steps, then linearly to 0 at the last.

    The papers' recipe, warmup 0.1 (arXiv:2009.12812, released code). The first step already learns, at 1/(w+1) of the
    peak for a warm-up of w steps, and so does the last: no step runs at a factor of 0.
    """

    def __init__(self, warmup: float = 0.1) -> None:
        if not 0 <= warmup < 1:
            raise ValueError(f"warmup={warmup} is a share of the steps: 0 or more, less than 1")
        self.warmup = warmup

    def __call__(self, step: int, steps: int) -> float:
        rising = int(self.warmup * steps)
        if step < rising:
            return (step + 1) / (rising + 1)
        return max(0.0, (steps - step) / (steps - rising))


class Constant:
    """The factor 1 at every step."""

    def __call__(self, step: int, steps: int) -> float:
        return 1.0
