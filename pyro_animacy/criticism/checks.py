"""The posterior predictive checks of a report: each statistic's figures, table and verdict."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from pyro_animacy.criticism import plots
from pyro_animacy.criticism.comparison import Comparison
from pyro_animacy.criticism.judgement import (
    FEW_DRAWS,
    TAIL,
    Verdict,
    judge,
)
from pyro_animacy.criticism.section import Grade, Image, picture
from pyro_animacy.criticism.statistics import Statistic
from pyro_animacy.criticism.wording import listed, number, per_unit, percent

PANELS = 6  # of a statistic


@dataclass(frozen=True)
class Row:
    """A line of the table of a statistic; `image` where it is drawn too."""

    comparison: Comparison
    verdict: Verdict
    image: Image | None


@dataclass(frozen=True)
class Check:
    """A statistic with its rows, and how many of its panels are left out for room."""

    statistic: Statistic
    rows: tuple[Row, ...]
    left_out: int

    @property
    def grades(self) -> list[tuple[Grade, str]]:
        """Each grade that a body has, the worst first, and the bodies that have it."""
        kind, found = self.statistic.over.kind, []
        order: tuple[Grade, ...] = ("wrong", "near", "right", "undefined")
        for grade in order:
            bodies = [row.comparison.body for row in self.rows if row.verdict.grade == grade]
            if bodies:
                found.append((grade, listed(bodies, len(self.rows), kind)))
        return found

    @property
    def open(self) -> bool:
        """Whether it has to be looked at: a body is wrong."""
        return any(row.verdict.grade == "wrong" for row in self.rows)


def checks(comparisons: Sequence[Comparison]) -> Iterator[Check]:
    """The comparisons by statistic; of many bodies, the worst `PANELS` are drawn."""
    for _, group in itertools.groupby(comparisons, key=lambda c: c.statistic.name):
        members = list(group)
        worst = sorted(members, key=lambda c: -np.nan_to_num(c.effect, nan=-1, posinf=1e9))
        drawn = {c.body for c in worst[:PANELS] if c.observed.size or _has_values(c)}
        rows = tuple(Row(c, judge(c), _image(c) if c.body in drawn else None) for c in members)
        yield Check(members[0].statistic, rows, len(members) - len(drawn))


def chance(comparisons: Sequence[Comparison]) -> str:
    """How many of the checks chance alone would put outside, in a sentence; "" if none can be.

    A check is outside where p(mean) is, 2 TAIL of all, or p(W1), again 2 TAIL; the two go together
    more or less, so the share outside is between 2 TAIL and 4 TAIL if the model is exact.
    """
    defined = [c for c in comparisons if c.observed.size and not math.isnan(c.distance)]
    if not defined or len(defined[0].generated) < FEW_DRAWS:
        return ""
    low, high = (share * TAIL * len(defined) for share in (2, 4))
    count = f"about {low:.0f} to {high:.0f}" if round(low) < round(high) else f"about {high:.0f}"
    return (
        f"Some checks come out badly by chance: even if the model were exact, "
        f"{count if high >= 0.5 else 'hardly one'} of these {len(defined)} would have a tail "
        f"probability beyond its limits (p(mean) or p(W₁), {percent(2 * TAIL)} each). A check "
        "beyond them is called wrong or close only if the difference is large too."
    )


def _has_values(comparison: Comparison) -> bool:
    return any(values.size for values in comparison.generated)


def _image(comparison: Comparison) -> Image:
    units = per_unit(comparison.units)
    alt = (
        f"Distribution of {comparison.statistic.name} of {comparison.body}: recorded mean "
        f"{number(comparison.observed_mean)} {units}, generated "
        f"{number(comparison.generated_mean)} {units}."
    )
    return picture(plots.plot_statistic(comparison), alt)
