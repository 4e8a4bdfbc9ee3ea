"""Schedules: a number for every step of training, a function of the step alone."""

import math
from dataclasses import dataclass
from typing import Literal

from pyro_animacy.errors import ConfigError, require


@dataclass(frozen=True)
class KLWeightConfig:
    """beta, annealed: ``levels`` equal steps from ``start`` to ``end``, one every ``every`` epochs.

    With one level the weight is constant, and start must equal end. The paper's table is start
    0.009, end 0.09, levels 9, every 500. With ``shape: geometric`` the steps are equal factors:
    start 0.01, end 0.0891, levels 20 is 0.01 x 1.122^k after 500 k epochs, as in code for 2-D
    soccer.

    Args:
        start: Its first value.
        end: Its last value.
        levels: Values in all; 1 for a constant weight.
        every: Epochs that each lasts.
        shape: ``linear``, equal steps, or ``geometric``, equal factors.
    """

    start: float = 1.0
    end: float = 1.0
    levels: int = 1
    every: int = 500
    shape: Literal["linear", "geometric"] = "linear"

    def __post_init__(self) -> None:
        """Check the values.

        Raises:
            ConfigError: If a value cannot be used, or start and end differ with one level.
        """
        require(
            "train.kl_weight.",
            vars(self),
            ("start", self.start >= 0, "0 or more"),
            ("end", self.end >= 0, "0 or more"),
            ("levels", self.levels >= 1, "at least 1"),
            ("every", self.every >= 1, "at least 1"),
        )
        if self.shape == "geometric" and min(self.start, self.end) == 0:
            raise ConfigError(
                f"train.kl_weight goes from {self.start:g} to {self.end:g} by equal factors, and "
                "no factor leads from 0 or to it; both must be positive, or the shape linear"
            )
        if self.levels == 1 and self.start != self.end:
            raise ConfigError(
                f"train.kl_weight starts at {self.start:g} and ends at {self.end:g}, in one level; "
                "give --train.kl_weight.levels too, or the same start and end for a constant weight"
            )

    def __call__(self, epoch: int) -> float:
        """Return beta at an epoch, counted from 0."""
        level = min(epoch // self.every, self.levels - 1)
        if self.shape == "geometric":
            return self.start * (self.end / self.start) ** (level / max(self.levels - 1, 1))
        return self.start + (self.end - self.start) * level / max(self.levels - 1, 1)


def learning_rate(
    step: int, steps: int, peak: float, schedule: Literal["constant", "cosine"]
) -> float:
    """Learning rate at a step: constant, or half a cosine from ``peak`` to 1 % of it."""
    if schedule == "constant":
        return peak
    return peak * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * min(step / steps, 1.0))))
