"""How well a score tells two kinds of motion apart."""

from typing import NamedTuple

import numpy as np
import scipy
from numpy.typing import ArrayLike

from pyro_animacy.criticism.arrays import as_numbers
from pyro_animacy.errors import ConfigError, DataError


class Auc(NamedTuple):
    """Area under the ROC curve, with a 95 % bootstrap interval.

    Attributes:
        value: The area: 1 for perfect, 0.5 for chance.
        low: Lower end of the interval.
        high: Upper end.
        positives: Number of positives.
        negatives: Number of negatives.
    """

    value: float
    low: float
    high: float
    positives: int
    negatives: int

    @property
    def at_chance(self) -> bool:
        """Whether the interval leaves chance possible, as one that is NaN does."""
        return not (self.low > 0.5 or self.high < 0.5)


def auc(positive: ArrayLike, negative: ArrayLike) -> float:
    """P(positive > negative) + P(positive = negative) / 2: the area under the ROC curve.

    The Mann-Whitney statistic over the number of pairs (Hanley & McNeil, Radiology 143, 1982).

    Args:
        positive: (n,) scores of what should score high; NaN is left out.
        negative: (m,) scores of what should score low; NaN is left out.

    Raises:
        DataError: If either has no finite score, or holds something else than numbers.
    """
    return float(_area(_finite(positive), _finite(negative)))


def _area(positive: np.ndarray, negative: np.ndarray, axis: int = -1) -> np.ndarray:
    """The area along an axis: the positives' ranks among all, less those among themselves."""
    n, m = positive.shape[axis], negative.shape[axis]
    ranks = scipy.stats.rankdata(np.concatenate([positive, negative], axis), axis=axis)
    above = np.take(ranks, np.arange(n), axis).sum(axis) - n * (n + 1) / 2
    return above / (n * m)


def auc_interval(
    positive: ArrayLike,
    negative: ArrayLike,
    *,
    paired: bool = False,
    resamples: int = 2000,
    seed: int = 0,
) -> Auc:
    """`auc` with its 95 % percentile bootstrap interval (Efron & Tibshirani 1993, chapter 13).

    What is resampled must be independent: positives and negatives on their own or, ``paired``,
    each positive together with the negative made of it. With fewer than two the interval is NaN.

    Args:
        positive: (n,) scores; NaN is left out, with its pair.
        negative: (m,) scores; likewise.
        paired: Whether the negatives are controls of the positives, one each, in the same order;
            there must then be as many.
        resamples: Number of bootstrap samples.
        seed: Seeds them.

    Raises:
        DataError: If either has no finite score, or they are pairs and not as many.
        ConfigError: If ``resamples`` is less than one.
    """
    if resamples < 1:
        raise ConfigError(f"resamples is {resamples}; it must be at least 1")
    if paired:
        whole = [as_numbers("a score", x).ravel() for x in (positive, negative)]
        if len(whole[0]) != len(whole[1]):
            raise DataError(
                f"{len(whole[0])} positive and {len(whole[1])} negative scores; paired, there must "
                "be one negative for each positive, in the same order, NaN where there is none"
            )
        both = np.stack(whole)
        positive, negative = both[:, np.isfinite(both).all(0)]
    first, second = _finite(positive), _finite(negative)
    low = high = float("nan")
    if min(len(first), len(second)) > 1:
        interval = scipy.stats.bootstrap(
            (first, second), _area, n_resamples=resamples, vectorized=True, paired=paired,
            method="percentile", rng=np.random.default_rng(seed),
        ).confidence_interval  # fmt: skip
        low, high = float(interval.low), float(interval.high)
    return Auc(auc(first, second), low, high, len(first), len(second))


def _finite(scores: ArrayLike) -> np.ndarray:
    values = as_numbers("a score", scores).ravel()
    values = values[np.isfinite(values)]
    if not len(values):
        raise DataError("no finite score to compare; give trajectories with at least one step")
    return values
