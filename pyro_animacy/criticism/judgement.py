"""Is a statistic of the generated motion as recorded? By plain rules.

A statistic's `effect` is its Wasserstein-1 distance in recorded standard deviations. With many
frames nearly every tail probability is 0 or 1, for a difference nobody would see; the effect says
how large the difference is, the tail probability whether it is more than chance.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy.special import stdtrit

from pyro_animacy.criticism.comparison import Comparison
from pyro_animacy.criticism.section import Grade
from pyro_animacy.criticism.wording import number, percent, times

RIGHT = 0.1  # effect up to which nobody would see the difference
NEAR = 0.3  # effect up to which it is right in kind
NEAR_MEAN = 0.25  # relative error of the mean up to which it is
REST = 0.05  # difference in the share of frames at rest that is said
TAIL = 0.025  # on either side, a tail probability that is more than chance
FEW_DRAWS = 20  # below this no tail probability can say anything


@dataclass(frozen=True)
class Verdict:
    """How one comparison came out.

    Attributes:
        grade: "right", "near", "wrong" or "undefined".
        sentence: why, in words, without the name of the statistic.
    """

    grade: Grade
    sentence: str


def judge(comparison: Comparison) -> Verdict:
    """Grade one comparison.

    Right: effect at most RIGHT, or at most NEAR with tail probabilities that chance gives. Near:
    effect at most NEAR, the mean within NEAR_MEAN (but of a share of frames, whose effect says
    it all) and rest as often; or more, but still what chance gives, in the draws or in which
    recordings there are. Wrong: all others. Undefined:
    nothing to compare, or an effect above RIGHT of fewer than FEW_DRAWS draws, which chance may
    give. One recorded value is right or wrong by its tail probabilities alone.
    """
    if not comparison.observed.size:
        return Verdict(
            "undefined", "not defined in the recording (nothing moves, too short or too few)"
        )
    if math.isnan(comparison.distance):
        return Verdict(
            "undefined", "not defined in the draws (nothing moves, too short or not finite)"
        )
    if comparison.effect <= RIGHT:
        return Verdict("right", "as recorded")
    if (count := len(comparison.generated)) < FEW_DRAWS:
        draws = "1 draw is" if count == 1 else f"{count} draws are"
        return Verdict("undefined", f"{_difference(comparison)}; {draws} too few to tell")
    chance = within_chance(comparison)
    if comparison.observed.size == 1:  # no spread to measure a difference by, but tails there are
        if chance:
            return Verdict("right", "as recorded, within chance")
        return Verdict("wrong", _difference(comparison))
    if comparison.effect <= NEAR and chance:
        return Verdict("right", "as recorded, within chance")
    if chance:
        return Verdict("near", f"{_difference(comparison)}, which may be chance")
    if like_recordings(comparison):
        return Verdict("near", (
            f"{_difference(comparison)}, which may be chance: the "
            f"{len(comparison.between.means)} recordings differ as much among themselves"
        ))  # fmt: skip
    mean = comparison.observed_mean
    close = comparison.effect <= NEAR and not resting(comparison)
    if not comparison.statistic.share:
        close = close and (mean <= 0 or abs(comparison.generated_mean / mean - 1) <= NEAR_MEAN)
    return Verdict("near" if close else "wrong", _difference(comparison))


def within_chance(comparison: Comparison) -> bool:
    """Whether both tail probabilities are such as an exact model gives; False of few draws."""
    if len(comparison.generated) < FEW_DRAWS:
        return False
    return comparison.p_mean >= TAIL and comparison.p_distance >= 2 * TAIL


def like_recordings(comparison: Comparison) -> bool:
    """Whether it is the mean that differs, within its 95 % interval as recordings differ.

    And within their own means: one that is unlike all others makes the interval wide. Tail
    probabilities are of draws, which start as these recordings do; that other recordings of the
    same kind are faster or slower, as those fitted to may have been, they do not know.
    """
    means, error = comparison.between
    made = comparison.generated_mean
    if not len(means) or not means.min() <= made <= means.max():
        return False
    off = abs(made - comparison.observed_mean)
    return bool(0.5 * comparison.distance <= off <= stdtrit(len(means) - 1, 0.975) * error)


def _difference(comparison: Comparison) -> str:
    """Which of mean, spread and shape differs most, and by how much; and whether bodies rest."""
    at_rest, moves = resting(comparison), _moments_differ(comparison)
    return " and ".join(part for part in (moves, at_rest) if part) or (
        "same mean and spread but a different shape"
    )


def _moments_differ(comparison: Comparison) -> str:
    statistic = comparison.statistic
    mean, sd = comparison.observed_mean, comparison.observed_sd
    made = comparison.generated_mean
    word = statistic.more if made > mean else statistic.less
    if statistic.share:
        return f"{word} ({percent(made)} of frames, recorded {percent(mean)})"
    if comparison.observed.size == 1:
        return f"{word} ({number(made)}, recorded {number(mean)})"
    if sd == 0:
        return f"{number(made)} where it is always {number(mean)}"
    if abs(made - mean) >= 0.5 * comparison.distance:
        if min(made, mean) > 0 and abs(made / mean - 1) > 0.05:  # less says little of 0.99
            return f"{word} (mean {times(made / mean)})"
        return f"{word} (mean {number(made)}, recorded {number(mean)})"
    ratio = comparison.generated_sd / sd
    if abs(ratio - 1) > RIGHT:
        word = "too spread out" if ratio > 1 else "too even"
        return f"{word} (spread {times(ratio)})"
    return ""


def resting(comparison: Comparison) -> str:
    """Of speeds, whether bodies stand still far more or far less often than recorded."""
    if comparison.statistic.name != "speed" or comparison.observed_sd == 0:
        return ""
    rest = float((comparison.observed == 0).mean())
    made = float(np.mean([(values == 0).mean() for values in comparison.generated if values.size]))
    if abs(made - rest) <= REST or max(made, rest) < 2 * min(made, rest):
        return ""
    often = "seldom" if made < rest else "often"
    return f"too {often} at rest ({percent(made)} of frames, recorded {percent(rest)})"
