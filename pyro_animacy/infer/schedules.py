"""Schedules: a number for every step of training, a function of the step alone."""

import math
from dataclasses import dataclass
from typing import Literal

from pyro_animacy.errors import ConfigError


@dataclass(frozen=True)
class KLWeightConfig:
    """beta, annealed: ``levels`` equal steps from ``start`` to ``end``, one every ``every`` epochs.

    The paper's table is start 0.009, end 0.09, levels 9, every 500.
    """

    start: float = 1.0
    end: float = 1.0
    levels: int = 1
    every: int = 500

    def __post_init__(self) -> None:
        """Check the values."""
        if min(self.start, self.end) < 0 or self.levels < 1 or self.every < 1:
            raise ConfigError(
                f"train.kl_weight is {self}; expected start and end not negative, levels and "
                "every at least 1"
            )

    def __call__(self, epoch: int) -> float:
        """Return beta at an epoch, counted from 0."""
        if self.levels == 1:
            return self.end
        level = min(epoch // self.every, self.levels - 1)
        return self.start + (self.end - self.start) * level / (self.levels - 1)


def learning_rate(
    step: int, steps: int, peak: float, schedule: Literal["constant", "cosine"]
) -> float:
    """Learning rate at a step: constant, or half a cosine from ``peak`` to 1 % of it."""
    if schedule == "constant":
        return peak
    return peak * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * min(step / steps, 1.0))))
