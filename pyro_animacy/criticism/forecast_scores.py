"""How good forecasts are, on plain arrays: calibration, and scores that reward sharpness too.

A forecast is a density or, further ahead, m draws x_1..x_m of where bodies will be; y is where they
went. The scores are in data units, the less the better, and proper: on average nobody does better
than who forecasts the true distribution (Gneiting & Raftery, Strictly Proper Scoring Rules,
Prediction, and Estimation, Journal of the American Statistical Association 102, 2007, section 4).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import ndtr

from pyro_animacy.criticism.arrays import as_numbers, chunks
from pyro_animacy.criticism.section import Grade
from pyro_animacy.errors import ConfigError, DataError

GRID = np.arange(1, 100) / 100  # points at which distribution functions are compared
RIGHT, NEAR = 0.05, 0.1  # gaps between shares that should agree
ANY = "..."  # any further dimensions
DIMS = ("trajectory", "time", "body", "space")


def matched(
    recorded: ArrayLike, dims: Sequence[str] = DIMS, **forecasts: ArrayLike
) -> list[np.ndarray]:
    r"""The recorded values and forecasts of them as arrays of shapes that fit.

    Args:
        recorded: What happened, of the dimensions `dims`.
        dims: Names of its dimensions, the last of which may be `ANY`.
        **forecasts: By the names that an error calls them: draws, or other numbers of which there
            are m for each recorded one, m first and then as `recorded`.

    Returns:
        The recorded values, then the forecasts in their order.

    Raises:
        DataError: If any is not numbers, or the shapes do not fit.
    """
    y = as_numbers("recorded", recorded)
    found = {name: as_numbers(name, values) for name, values in forecasts.items()}
    named = len(dims) - (dims[-1] == ANY)
    fits = y.ndim >= named if ANY in dims else y.ndim == named
    shapes = {x.shape for x in found.values()}
    if not fits or len(shapes) > 1 or any(s[:1] + y.shape != s or 0 in s[:1] for s in shapes):
        got = ", ".join(f"{name} {x.shape}" for name, x in found.items())
        raise DataError(
            f"shapes do not fit: {got} and recorded {y.shape}; expected ({', '.join(dims)}) "
            f"recorded, and the same sizes after a first one of draws in {' and '.join(found)}"
        )
    return [y, *found.values()]


def pit(
    mean: ArrayLike, scale: ArrayLike, recorded: ArrayLike, weight: ArrayLike = 1.0
) -> np.ndarray:
    """Probability integral transform of a mixture of m normals: the share of it below x.

        PIT = sum_k w_k Phi((x - mu_k) / sigma_k) / sum_k w_k

    Its components are draws of a latent; their distribution functions are averaged, not draws
    from them counted, which has less noise. Uniform on (0, 1) if the forecast is right, and from
    step to step independent (Gneiting, Balabdaoui & Raftery 2007, section 3.1).

    Args:
        mean: mu (m, ...).
        scale: sigma (m, ...), standard deviations.
        recorded: x (...), NaN where not observed.
        weight: w (m, ...), or as broadcasts to it.

    Returns:
        (...), NaN where not observed.

    Raises:
        DataError: If the shapes do not fit, or a scale is negative.
    """
    x, mu, sigma = matched(recorded, (ANY,), mean=mean, scale=scale)
    if (sigma < 0).any():
        raise DataError(f"scale has {sigma.min():g}; expected standard deviations, above 0")
    w = np.broadcast_to(np.asarray(weight, dtype=float), mu.shape)
    return (w * ndtr((x - mu) / sigma)).sum(0) / w.sum(0)


class Uniformity(NamedTuple):
    """How far n numbers in (0, 1) are from uniform; F is their empirical distribution function.

    Attributes:
        gap: max |F(u) - u|, the Kolmogorov-Smirnov distance: the largest difference between the
            share of the recordings that lies below a point and the share that was forecast to.
        shift: the part of F(u) - u that is even about u = 1/2, where largest: above 0 the
            recordings lie lower than forecast.
        spread: its odd part at u < 1/2, where largest: above 0 the forecast is too narrow (many
            recordings in its tails), below 0 too wide.
        n: how many numbers.
    """

    gap: float
    shift: float
    spread: float
    n: int

    @property
    def direction(self) -> str:
        """What the gap mostly is: "too narrow", "too wide", "too high" or "too low"."""
        if abs(self.shift) > abs(self.spread):
            return "too high" if self.shift > 0 else "too low"
        return "too narrow" if self.spread > 0 else "too wide"

    def grade(self, chance: bool = False) -> Grade:
        """RIGHT, NEAR or more; a gap that may be `chance` is near."""
        if not self.n:
            return "undefined"
        if self.gap <= RIGHT:
            return "right"
        return "near" if self.gap <= NEAR or chance else "wrong"


def uniformity(values: ArrayLike) -> Uniformity:
    """Measure how far numbers in (0, 1) of any shape are from uniform, NaN left out.

    An effect size, not a test: with thousands of dependent steps a p-value is 0 for a difference
    that nobody would see.

    Raises:
        DataError: If a number lies outside [0, 1].
    """
    u = as_numbers("values", values)
    u = np.sort(u[np.isfinite(u)])
    n = u.size
    if not n:
        return Uniformity(np.nan, np.nan, np.nan, 0)
    if u[0] < 0 or u[-1] > 1:
        raise DataError(f"values lie from {u[0]:g} to {u[-1]:g}; expected shares, from 0 to 1")
    i = np.arange(1, n + 1)
    gap = max((i / n - u).max(), (u - (i - 1) / n).max())
    d = ecdf_difference(u)
    even, odd = (d + d[::-1]) / 2, ((d - d[::-1]) / 2)[: GRID.size // 2]
    shift, spread = (float(part[np.abs(part).argmax()]) for part in (even, odd))
    return Uniformity(float(gap), shift, spread, n)


def ecdf_difference(values: ArrayLike) -> np.ndarray:
    """F(u) - u on GRID, of sorted (n,) values."""
    u = as_numbers("values", values)
    return np.searchsorted(u, GRID, side="right") / u.size - GRID


def coverage(draws: ArrayLike, recorded: ArrayLike, levels: Sequence[float]) -> np.ndarray:
    """How often central intervals of draws cover what was recorded, each coordinate by itself.

    The interval of a level has (1 - level) / 2 of the forecast on either side. Its ends are the
    quantiles between the draws at p (m + 1) (Weibull's plotting position): m draws of the true
    distribution then cover as often as the level says, exactly so where p (m + 1) is whole, unless
    draws and recording tie, as those of bodies at rest do: then more often, or less often if they
    are rounded otherwise, so ties have to be broken by noise before. m must be at least
    2 / (1 - level) - 1, which is 39 for 95 %: even the interval from the least to the greatest of
    fewer draws covers less often than that.

    Args:
        draws: (draw, trajectory, time, body, space).
        recorded: (trajectory, time, body, space), NaN where not observed.
        levels: Each above 0 and below 1, such as 0.95.

    Returns:
        (level, time, body), shares over trajectories and axes; NaN where nothing was observed.

    Raises:
        DataError: If the shapes do not fit.
        ConfigError: If a level is none, or needs more draws.
    """
    happened, forecast = matched(recorded, draws=draws)
    shares = np.atleast_1d(as_numbers("levels", levels))
    if shares.ndim > 1 or not shares.size or not ((shares > 0) & (shares < 1)).all():
        raise ConfigError(f"levels is {levels}; expected shares above 0 and below 1, such as 0.95")
    most, m = float(shares.max()), len(forecast)
    fewest = int(np.ceil(2 / (1 - most) - 1 - 1e-9))  # 1 - 0.95 is not quite 0.05
    if m < fewest:
        raise ConfigError(f"draws is {m}; {100 * most:g} % intervals need at least {fewest}")
    tails = (1 - shares) / 2
    inside = np.zeros((len(tails), *happened.shape[1:3]))
    seen = np.isfinite(happened).sum((0, 3))
    for rows, x in chunks(forecast):
        y = happened[rows]
        with np.errstate(invalid="ignore", over="ignore"):
            ends = np.quantile(x, [*tails, *(1 - tails)], axis=0, method="weibull")
            low, high = ends[: len(tails)], ends[len(tails) :]
            inside += ((low <= y) & (y <= high)).sum((1, 4))
    return inside / np.where(seen > 0, seen, np.nan)


def crps(draws: ArrayLike, recorded: ArrayLike) -> np.ndarray:
    """Continuous ranked probability score of each coordinate, from draws.

        CRPS = E|X - y| - E|X - X'| / 2          (Gneiting & Raftery 2007, equation 21)

    estimated without bias by 1/m sum_i |x_i - y| - 1/(m (m - 1)) sum_{i<j} |x_i - x_j|, the "fair"
    score (Ferro, Quarterly Journal of the Royal Meteorological Society 140, 2014), which does not
    depend on how many draws were made, but in its noise. Of sorted draws the second sum is
    sum_i (2 i - m - 1) x_(i): O(m log m).

    Args:
        draws: (draw, trajectory, ...).
        recorded: (trajectory, ...), NaN where not observed.

    Returns:
        (trajectory, ...) in the units of the draws; NaN where not observed. The absolute error
        where all draws agree.

    Raises:
        DataError: If the shapes do not fit.
        ConfigError: If there is only one draw.
    """
    y, forecast = matched(recorded, ("trajectory", ANY), draws=draws)
    m = _several(forecast)
    weight = (2 * np.arange(1, m + 1) - m - 1) / (m * (m - 1))
    result = np.empty(y.shape)
    for rows, x in chunks(forecast):
        with np.errstate(invalid="ignore", over="ignore"):
            error = np.moveaxis(x - y[rows], 0, -1)
            error = np.sort(np.ascontiguousarray(error), -1)
            result[rows] = np.abs(error).mean(-1) - error @ weight
    return result


def energy_score(draws: ArrayLike, recorded: ArrayLike, lags: int = 10) -> np.ndarray:
    """Energy score of the joint scene, all bodies and axes together, from draws.

        ES = E|X - y| - E|X - X'| / 2            (Gneiting & Raftery 2007, equation 22)

    with the Euclidean norm over the coordinates observed; in one dimension it is the CRPS. The
    second expectation is the mean over the pairs (x_i, x_{i+l}), l = 1..``lags``, draws taken in
    a circle. Draws are exchangeable, so it is unbiased whatever the pairs; with ``lags`` = m - 1
    every pair is taken, at m / lags times the cost.

    Args:
        draws: (draw, trajectory, time, body, space).
        recorded: (trajectory, time, body, space), NaN where not observed.
        lags: Pairs taken of each draw.

    Returns:
        (trajectory, time) in the units of the draws; NaN where nothing was observed.

    Raises:
        DataError: If the shapes do not fit.
        ConfigError: If there is only one draw, or no lag.
    """
    y, forecast = matched(recorded, draws=draws)
    m = _several(forecast)
    if lags < 1:
        raise ConfigError(f"lags is {lags}; it must be at least 1")
    result = np.empty(y.shape[:2])
    for rows, x in chunks(forecast):
        with np.errstate(invalid="ignore", over="ignore"):
            error = (x - y[rows]).reshape(*x.shape[:3], -1)
            seen = np.isfinite(y[rows]).reshape(error.shape[1:])
            error = np.where(seen, error, 0.0)
            far = np.sqrt(np.einsum("...d,...d->...", error, error)).mean(0)
            apart = np.zeros_like(far)
            several = range(1, min(lags, m - 1) + 1)
            for i in range(m):
                for lag in several:
                    pair = error[i] - error[(i + lag) % m]
                    apart += np.sqrt(np.einsum("...d,...d->...", pair, pair))
            score = far - apart / (2 * m * len(several))
        result[rows] = np.where(seen.any(-1), score, np.nan)
    return result


def _several(draws: np.ndarray) -> int:
    """The number of draws, which must be at least two for a score to be fair."""
    if len(draws) < 2:
        raise ConfigError(f"draws is {len(draws)}; the scores of a forecast need at least 2")
    return len(draws)
