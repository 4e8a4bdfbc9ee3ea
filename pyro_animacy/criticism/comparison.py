"""Recorded against generated motion, statistic by statistic and body by body.

A posterior predictive check (Gelman, Meng & Stern 1996) asks whether the recording looks like a
draw from the model: it compares T(recording) with T(draw) for a summary T of each statistic.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import scipy
import xarray as xr
from numpy.typing import ArrayLike

from pyro_animacy.criticism.aligned import DIMS, data_units, each_draw, motion_shown, recording_of
from pyro_animacy.criticism.alike import groups
from pyro_animacy.criticism.arrays import as_numbers
from pyro_animacy.criticism.statistics import STATISTICS, Scene, Statistic
from pyro_animacy.data.trajectories import FEW_RECORDINGS
from pyro_animacy.errors import ConfigError
from pyro_animacy.progress import tqdm

KEPT = 1000  # values kept of each draw for the curves: its evenly spaced quantiles
LEAST_KEPT = 200  # of them, where there are very many draws and pairs of bodies
ALL_KEPT = 16_000_000  # values kept of all draws together, 128 MB
BLOCK = 30_000  # positions that statistics are computed of at once: they stay in the cache


class Between(NamedTuple):
    """How recordings differ in a mean; nothing is known of it where fewer than five have values.

    Attributes:
        means: (recording,) the mean of each.
        error: standard error of the mean of all.
    """

    means: np.ndarray
    error: float


@dataclass(frozen=True)
class Comparison:
    """One statistic of one body (or pair), recorded against generated. Means are of |x| if signed.

    Attributes:
        statistic: what was compared.
        body: name of the body or group of bodies.
        units: units of the values.
        observed: the recorded values, sorted, finite.
        generated: the values of each draw, sorted, finite, at most `KEPT` evenly spaced quantiles;
            fewer of very many draws and bodies.
        observed_mean: mean of the recorded values.
        between: the mean of each recording that has values, and the standard error of their mean.
        observed_sd: their standard deviation.
        generated_means: (draw,) mean of each draw.
        generated_sds: (draw,) standard deviation of each draw.
        p_mean: the smaller of P(mean(rep) >= mean(obs)) and P(mean(rep) <= mean(obs)), near 0 where
            the recording is on the edge of the draws or beyond; draws that tie are in both.
        motions: number of separate motions recorded; a body that several windows show at the same
            moment of a recording, as scenes of one match do, moved once.
        distance: Wasserstein-1 distance of the recorded from the pooled generated values.
        p_distance: P(distance of rep >= distance of obs), both from the pool of all draws and the
            recording: near 0 the recording lies further from what is usual than the draws do, in
            mean, spread or shape.
    """

    statistic: Statistic
    body: str
    units: str
    observed: np.ndarray = field(repr=False)
    generated: tuple[np.ndarray, ...] = field(repr=False)
    observed_mean: float
    between: Between
    observed_sd: float
    generated_means: np.ndarray
    generated_sds: np.ndarray
    p_mean: float
    distance: float
    p_distance: float
    motions: int

    @property
    def generated_mean(self) -> float:
        """Mean over the draws of their means; NaN where no draw has a value."""
        return _finite_mean(self.generated_means)

    @property
    def generated_sd(self) -> float:
        """Mean over the draws of their standard deviations; NaN where no draw has a value."""
        return _finite_mean(self.generated_sds)

    @property
    def effect(self) -> float:
        """`distance` in recorded standard deviations: 0 is perfect; infinite for a constant.

        Of shares of frames p and q it is Cohen's h = |2 asin sqrt p - 2 asin sqrt q| (Statistical
        Power Analysis, 1988, section 6.2). That is |p - q| / sqrt(p (1 - p)) where p and q are
        close, as above, and finite where p is 0 or 1.
        """
        if np.isnan(self.distance) or self.distance == 0:
            return self.distance
        if self.statistic.share:
            angles = 2 * np.arcsin(
                np.sqrt(np.clip([self.observed_mean, self.generated_mean], 0, 1))
            )
            return float(abs(angles[1] - angles[0]))
        spread = float(self.observed.std())  # of x, where observed_sd may be of |x|
        return self.distance / spread if spread > 0 else float("inf")


def posterior_predictive_p(observed_summary: float, replicated_summaries: ArrayLike) -> float:
    """The tail probability P(T(rep) >= T(obs)), over the draws that have the summary at all.

    Args:
        observed_summary: T of the recording.
        replicated_summaries: (draw,) T of each draw; NaN is left out.

    Returns:
        A probability; near 0 the recording has more of T than the model makes. Near 1 it has less,
        or as many draws tie with it: of -T the tail tells which. NaN where the recording or every
        draw lacks the summary.
    """
    replicated = as_numbers("replicated_summaries", replicated_summaries)
    replicated = replicated[np.isfinite(replicated)]
    if not replicated.size or not np.isfinite(observed_summary):
        return float("nan")
    return float((replicated >= observed_summary).mean())


def _finite_mean(values: np.ndarray) -> float:
    values = values[np.isfinite(values)]
    return float(values.mean()) if values.size else float("nan")


def _moments(values: np.ndarray, signed: bool) -> tuple[float, float]:
    """Mean and population standard deviation, of the size |x| where `signed`; NaN if empty."""
    if not values.size:
        return float("nan"), float("nan")
    values = np.abs(values) if signed else values
    return float(values.mean()), float(values.std())


def _quantiles(values: np.ndarray, count: int = 200) -> np.ndarray:
    """Those of sorted (n,) `values` in the middle of `count` equal shares, so ties stay."""
    return values[((np.arange(count) + 0.5) / count * values.size).astype(int)]


def _distance_p(observed: np.ndarray, draws: list[np.ndarray], pool: np.ndarray) -> float:
    """Tail probability of the distance from the pool, W1 = mean |F^-1 - G^-1| over quantiles.

    The recording joins the pool by as many values as a draw has in it: each draw is near a pool
    that holds itself, so that from a pool without the recording even that of the true model would
    lie furthest too often (with one draw, always).
    """
    if not observed.size or not pool.size:
        return float("nan")
    size = max(sample.size for sample in draws)
    recorded = observed if observed.size <= size else _quantiles(observed, size)
    usual = _quantiles(np.sort(np.concatenate([pool, recorded])))
    own, *others = (
        float(np.abs(_quantiles(sample) - usual).mean()) if sample.size else float("nan")
        for sample in (observed, *draws)
    )
    return posterior_predictive_p(own, np.array(others))


def compare(
    observed: xr.Dataset,
    generated: xr.DataArray,
    statistics: Mapping[str, Statistic] = STATISTICS,
    *,
    progress: bool = True,
) -> list[Comparison]:
    """Every statistic of every body, recorded against generated.

    A motion that several windows share is counted once, and a draw then shows it once too, now in
    one and now in another of these windows: so a draw varies as much as the recording would. One
    draw at a time is in memory.

    Args:
        observed: recording from `align`.
        generated: (chain, draw, trajectory, time, body, space) from `align`.
        statistics: what to compare by.
        progress: show a progress bar.

    Returns:
        One comparison a statistic and body (or group of bodies), in that order; those that do not
        apply, such as distances where there is one body, are left out.

    Raises:
        ConfigError: a statistic does not give one value for each of the bodies it is of.
    """
    scene, units = Scene.of(observed), data_units(observed)
    position = observed["position"].transpose(*DIMS).values.astype(float, copy=False)
    members = _members(observed, position, scene, statistics)
    # groups of bodies of one label are pooled
    pools = {name: groups(one.over.labels(scene)) for name, one in statistics.items()}
    recorded, of_recording, between = {}, recording_of(observed), {}
    for key, parts in _each(position, scene, statistics, members, pools, 0):
        recorded[key] = _sorted(parts)
        between[key] = _between(parts, of_recording, statistics[key[0]].signed)
    count = generated.sizes["chain"] * generated.sizes["draw"]
    most = int(np.clip(ALL_KEPT // max(1, count * len(recorded)), LEAST_KEPT, KEPT))
    kept: dict[tuple[str, str], list[np.ndarray]] = {key: [] for key in recorded}
    moments: dict[tuple[str, str], list[tuple[float, float]]] = {key: [] for key in recorded}
    draws = enumerate(each_draw(observed, generated))
    bar = tqdm(draws, "compare", count, leave=False, unit="draw", disable=not progress, delay=1)
    for draw, position in bar:
        for key, parts in _each(position, scene, statistics, members, pools, draw):
            values = _sorted(parts)
            moments[key].append(_moments(values, statistics[key[0]].signed))
            kept[key].append(values if values.size <= most else _quantiles(values, most))

    comparisons = []
    for (name, label), values in recorded.items():
        statistic = statistics[name]
        mean, sd = _moments(values, statistic.signed)
        means, sds = np.array(moments[name, label]).reshape(-1, 2).T
        pool = np.concatenate([*kept[name, label], np.empty(0)])
        both = values.size and pool.size
        distance = scipy.stats.wasserstein_distance(values, pool) if both else math.nan
        comparisons.append(
            Comparison(
                statistic=statistic,
                body=label,
                units=statistic.units.format(units=units),
                observed=values,
                generated=tuple(kept[name, label]),
                observed_mean=mean,
                between=between[name, label],
                observed_sd=sd,
                generated_means=means,
                generated_sds=sds,
                p_mean=min(
                    posterior_predictive_p(mean, means), posterior_predictive_p(-mean, -means)
                ),
                distance=float(distance),
                p_distance=_distance_p(values, kept[name, label], pool),
                motions=sum(len(members[name][i]) for i in pools[name][label]),
            )
        )
    return comparisons


Members = dict[str, list[list[np.ndarray]]]


def _members(
    observed: xr.Dataset, position: np.ndarray, scene: Scene, statistics: Mapping[str, Statistic]
) -> Members:
    """For each group of bodies of each statistic, its separate motions: the windows of each."""
    motions: dict[tuple[int, ...], list[np.ndarray]] = {}  # by bodies, in whatever order
    found: Members = {}
    for name, statistic in statistics.items():
        found[name] = []
        for group in statistic.over.groups(scene):
            chosen = tuple(sorted(group))
            if chosen not in motions:
                every = np.arange(len(position))
                motion = motion_shown(observed, every, 0, position[:, :, chosen])
                motions[chosen] = [np.flatnonzero(motion == i) for i in range(motion.max() + 1)]
            found[name].append(motions[chosen])
    return found


Parts = list[tuple[np.ndarray, np.ndarray]]


def _each(
    position: np.ndarray,
    scene: Scene,
    statistics: Mapping[str, Statistic],
    members: Members,
    pools: dict[str, dict[str, list[int]]],
    draw: int,
) -> Iterator[tuple[tuple[str, str], Parts]]:
    """Each statistic and label: of each group of bodies the windows and their values.

    Each motion is there once, in windows (n,), with values (n, time').
    """
    for name, statistic in statistics.items():
        found = _values(statistic, position, scene)
        if not len(found):  # it does not apply
            continue
        for label, several in pools[name].items():
            parts = []
            for index in several:
                values, motions = found[index], members[name][index]
                if len(motions) == len(values):  # nothing is copied
                    parts.append((np.arange(len(values)), values))
                    continue
                rows = np.array([motion[draw % len(motion)] for motion in motions], int)
                parts.append((rows, values[rows]))
            yield (name, label), parts


def _sorted(parts: Parts) -> np.ndarray:
    """All finite values in order."""
    together = np.concatenate([values[np.isfinite(values)] for _, values in parts])
    together.sort()
    return together


def _between(parts: Parts, recording: np.ndarray, signed: bool) -> Between:
    """What is between recordings: by the spread of the sums over those that have values."""
    values = np.concatenate([x.ravel() for _, x in parts])
    of = np.concatenate([recording[rows].repeat(x.shape[1]) for rows, x in parts])
    some = np.isfinite(values)
    values = np.abs(values[some]) if signed else values[some]
    number = np.bincount(of[some])
    R = np.count_nonzero(number)
    if R < FEW_RECORDINGS:
        return Between(np.empty(0), float("nan"))
    means = np.bincount(of[some], values)[number > 0] / number[number > 0]
    totals = number[number > 0] * (means - values.mean())
    return Between(means, float(np.sqrt(np.square(totals).sum() * R / (R - 1)) / len(values)))


def _values(statistic: Statistic, position: np.ndarray, scene: Scene) -> np.ndarray:
    """A statistic of all trajectories, group by group: (group, trajectory, time')."""
    groups, found = len(statistic.over.groups(scene)), np.empty((0, len(position), 0))
    several = max(1, BLOCK // max(1, position[0].size))
    for row in range(0, len(position), several):
        block = position[row : row + several]
        values = statistic.function(block, scene.part(slice(row, row + several)))
        if values.ndim != 3 or len(values) != len(block) or values.shape[-1] not in (0, groups):
            raise ConfigError(
                f"statistic {statistic.name!r} gives an array {values.shape} of {len(block)} "
                f"trajectories; expected ({len(block)}, time, {groups}), one value for each "
                f"{statistic.over.kind}"
            )
        if row == 0:
            found = np.empty((values.shape[2], len(position), values.shape[1]))
        found[:, row : row + several] = np.moveaxis(values, -1, 0)
    return found
