"""Pure functions of progress: (step, steps) → value. Nothing is remembered, so nothing can be lost on resume."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence


class PiecewiseSchedule:
    """One name after the other, each for its share of the steps.

    Name k holds while step < steps · (share_1 + … + share_k) / (sum of shares), in exact integer arithmetic. Teacher
    Intervention's gradual order is {output: 1, context: 1, map: 4}: TI-O for step < s/6, TI-C for step < s/3, then
    TI-M (arXiv:2302.11812 §4; released code). Its inverted order is {map: 1, context: 1, output: 1}.

    Raises:
        ValueError: no shares, or one that is not a positive whole number.
    """

    def __init__(self, shares: Mapping[str, int]) -> None:
        if not shares or any(int(share) != share or share <= 0 for share in shares.values()):
            raise ValueError(f"shares={dict(shares)} must name at least one thing, each with a positive whole number")
        self.shares = {name: int(share) for name, share in shares.items()}
        self.names = tuple(self.shares)

    def __call__(self, step: int, steps: int) -> str:
        total, until = sum(self.shares.values()), 0
        for name, share in self.shares.items():
            until += share
            if step * total < steps * until:
                return name
        return self.names[-1]


class RandomSchedule:
    """A uniform draw among the names at each step: a function of (seed, step) alone (arXiv:2302.11812 §4)."""

    def __init__(self, names: Sequence[str], seed: int = 0) -> None:
        if not names:
            raise ValueError("names must hold at least one name")
        self.names, self.seed = tuple(names), seed

    def __call__(self, step: int, steps: int) -> str:
        return random.Random(f"{self.seed}/{step}").choice(self.names)
