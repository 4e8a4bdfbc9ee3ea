"""Recorded against generated motion, statistic by statistic and body by body.

A posterior predictive check (Gelman, Meng & Stern 1996) asks whether the recording looks like a
draw from the model: it compares T(recording) with T(draw) for a summary T of each statistic.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
import xarray as xr

from pyro_animacy.criticism.statistics import (
    STATISTICS,
    Statistic,
    posterior_predictive_p,
    wasserstein,
)
from pyro_animacy.errors import RunError

DIMS = ("trajectory", "time", "body", "space")
KEPT = 1000  # values kept of each draw for the curves: its evenly spaced quantiles


@dataclass(frozen=True)
class Comparison:
    """One statistic of one body (or pair), recorded against generated. Means are of |x| if signed.

    Attributes:
        statistic: what was compared.
        body: name of the body or pair.
        units: units of the values.
        observed: the recorded values, sorted, finite.
        generated: the values of each draw, sorted, finite, at most `KEPT` evenly spaced quantiles.
        observed_mean: mean of the recorded values.
        observed_sd: their standard deviation.
        generated_means: (draw,) mean of each draw.
        generated_sds: (draw,) standard deviation of each draw.
        p_mean: P(mean(rep) >= mean(obs)).
        motions: number of separate motions recorded; a body that several windows share, as scenes
            of one match do, moved once.
        distance: Wasserstein-1 distance of the recorded from the pooled generated values.
        p_distance: P(distance of rep >= distance of obs), both from the pool: near 0 the recording
            lies further from what is usual than the draws do, in mean, spread or shape.
    """

    statistic: Statistic
    body: str
    units: str
    observed: np.ndarray = field(repr=False)
    generated: tuple[np.ndarray, ...] = field(repr=False)
    observed_mean: float
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
        """`distance` in recorded standard deviations: 0 is perfect; infinite for a constant."""
        if np.isnan(self.distance) or self.distance == 0:
            return self.distance
        spread = float(self.observed.std())  # of x, where observed_sd may be of |x|
        return self.distance / spread if spread > 0 else float("inf")


def _finite_mean(values: np.ndarray) -> float:
    values = values[np.isfinite(values)]
    return float(values.mean()) if values.size else float("nan")


def _moments(values: np.ndarray, signed: bool) -> tuple[float, float]:
    """Mean and population standard deviation, of the size |x| where `signed`; NaN if empty."""
    if not values.size:
        return float("nan"), float("nan")
    values = np.abs(values) if signed else values
    return float(values.mean()), float(values.std())


def _kept(values: np.ndarray) -> np.ndarray:
    """At most KEPT of sorted (n,) `values`: those in the middle of equal shares, so ties stay."""
    if values.size <= KEPT:
        return values
    return values[((np.arange(KEPT) + 0.5) / KEPT * values.size).astype(int)]


def _quantiles(values: np.ndarray) -> np.ndarray:
    """The quantile function of sorted (n,) `values` in the middle of 200 equal shares."""
    return values[((np.arange(200) + 0.5) / 200 * values.size).astype(int)]


def _distance_p(observed: np.ndarray, draws: list[np.ndarray], pool: np.ndarray) -> float:
    """Tail probability of the distance from the pool, W1 = mean |F^-1 - G^-1| over quantiles."""
    if not observed.size or not pool.size:
        return float("nan")
    usual = _quantiles(np.sort(pool))
    own, *others = (
        float(np.abs(_quantiles(sample) - usual).mean()) if sample.size else float("nan")
        for sample in (observed, *draws)
    )
    return posterior_predictive_p(own, np.array(others))


def align(observed: xr.Dataset, draws: xr.DataTree) -> tuple[xr.Dataset, xr.DataArray]:
    """The recording and the draws of it on the same trajectories, frames and bodies.

    Args:
        observed: recording in the schema, `position` (trajectory, time, body, space).
        draws: tree with `posterior_predictive/position` (chain, draw, trajectory, time, body,
            space), of some or all of these trajectories and frames.

    Returns:
        The recording cut to what was generated, and the generated positions.

    Raises:
        RunError: the draws hold no positions, or positions of something not in the recording.
    """
    if "posterior_predictive" not in draws or "position" not in draws["posterior_predictive"]:
        raise RunError(
            "draws hold no posterior_predictive/position: make them with --mode generate"
        )
    generated = draws["posterior_predictive"]["position"].transpose("chain", "draw", *DIMS)
    for name in ("trajectory", "body"):
        absent = sorted(set(generated[name].values.tolist()) - set(observed[name].values.tolist()))
        if absent:
            raise RunError(
                f"draws of {name} {absent[0]!r}, which is not in the recording: "
                "criticise them against the recording they were made from"
            )
    frame = np.rint(generated["time"].values * observed.attrs["fps"]).astype(int)
    if frame.size == 0 or frame.min() < 0 or frame.max() >= observed.sizes["time"]:
        raise RunError(
            f"draws of {frame.size} frames do not fit the recording's {observed.sizes['time']}: "
            "criticise them against the recording they were made from"
        )
    cut = observed.sel(
        trajectory=generated["trajectory"].values, body=generated["body"].values
    ).isel(time=frame)
    return cut, generated


def each_draw(observed: xr.Dataset, generated: xr.DataArray) -> Iterator[np.ndarray]:
    """One draw after the other as the recording would have shown it, so only one is in memory.

    What the recording did not observe is NaN in the draw too, so that both are summarised over the
    same frames. Draws are rounded to the recording's `resolution`: no motion below it could have
    been recorded, and without the rounding a body that stands still would never do so in a draw.

    Args:
        observed: recording from `align`.
        generated: (chain, draw, trajectory, time, body, space) from `align`.

    Yields:
        (trajectory, time, body, space).
    """
    seen = np.isfinite(observed["position"].transpose(*DIMS).values)
    step = np.zeros(seen.shape[0])
    if "resolution" in observed.coords:
        step = np.nan_to_num(observed["resolution"].values.astype(float))
    step = step[:, None, None, None]
    for chain, draw in np.ndindex(generated.sizes["chain"], generated.sizes["draw"]):
        position = generated.isel(chain=chain, draw=draw).values.astype(float)
        grid = np.where(step > 0, step, 1.0)
        position = np.where(step > 0, np.rint(position / grid) * grid, position)
        yield np.where(seen & np.isfinite(position), position, np.nan)


def share_lost(observed: xr.Dataset, generated: xr.DataArray) -> float:
    """Share of the generated positions that are not finite, of those whose recording was seen.

    Args:
        observed: recording from `align`.
        generated: (chain, draw, trajectory, time, body, space) from `align`.
    """
    seen = int(np.isfinite(observed["position"].values).sum())
    kept = [int(np.isfinite(position).sum()) for position in each_draw(observed, generated)]
    return 1 - sum(kept) / (seen * len(kept)) if seen and kept else 0.0


def compare(
    observed: xr.Dataset,
    generated: xr.DataArray,
    statistics: Mapping[str, Statistic] = STATISTICS,
) -> list[Comparison]:
    """Every statistic of every body, recorded against generated.

    A motion that several windows share is counted once, and a draw then shows it once too, now in
    one and now in another of these windows: so a draw varies as much as the recording would.

    Args:
        observed: recording from `align`.
        generated: (chain, draw, trajectory, time, body, space) from `align`.
        statistics: what to compare by.

    Returns:
        One comparison a statistic and body (or pair), in that order.
    """
    fps, units = float(observed.attrs["fps"]), data_units(observed)
    bodies = [str(body) for body in observed["body"].values]
    position = observed["position"].transpose(*DIMS).values
    members = _members(position, statistics)
    recorded = _by_body(position, fps, statistics, members, 0)
    kept: dict[tuple[str, int], list[np.ndarray]] = {key: [] for key in recorded}
    moments: dict[tuple[str, int], list[tuple[float, float]]] = {key: [] for key in recorded}
    for draw, position in enumerate(each_draw(observed, generated)):
        for key, values in _by_body(position, fps, statistics, members, draw).items():
            kept[key].append(_kept(values))
            moments[key].append(_moments(values, statistics[key[0]].signed))

    comparisons = []
    for (name, index), values in recorded.items():
        statistic = statistics[name]
        mean, sd = _moments(values, statistic.signed)
        means, sds = np.array(moments[name, index]).reshape(-1, 2).T
        pool = np.concatenate([*kept[name, index], np.empty(0)])
        comparisons.append(
            Comparison(
                statistic=statistic,
                body=statistic.labels(bodies)[index],
                units=statistic.units.format(units=units),
                observed=values,
                generated=tuple(kept[name, index]),
                observed_mean=mean,
                observed_sd=sd,
                generated_means=means,
                generated_sds=sds,
                p_mean=posterior_predictive_p(mean, means),
                distance=wasserstein(values, pool),
                p_distance=_distance_p(values, kept[name, index], pool),
                motions=len(members[statistic.pairs][index]),
            )
        )
    return comparisons


Members = dict[bool, list[list[np.ndarray]]]


def _members(position: np.ndarray, statistics: Mapping[str, Statistic]) -> Members:
    """For each body (False) and pair (True), its separate motions: the windows that show each."""
    bodies = range(position.shape[2])
    found: Members = {}
    for pairs in {statistic.pairs for statistic in statistics.values()}:
        found[pairs] = []
        for chosen in itertools.combinations(bodies, 2) if pairs else zip(bodies, strict=True):
            groups: dict[bytes, list[int]] = {}
            for row, window in enumerate(position[:, :, chosen]):
                if np.isfinite(window).any():
                    groups.setdefault(window.tobytes(), []).append(row)
            found[pairs].append([np.array(group) for group in groups.values()])
    return found


def _by_body(
    position: np.ndarray,
    fps: float,
    statistics: Mapping[str, Statistic],
    members: Members,
    draw: int,
) -> dict[tuple[str, int], np.ndarray]:
    """Sorted finite values of each (statistic, index on its last axis), each motion once."""
    found = {}
    for name, statistic in statistics.items():
        values = statistic.function(position, fps)
        for index in range(values.shape[-1]):
            rows = [group[draw % len(group)] for group in members[statistic.pairs][index]]
            body = values[rows, ..., index].ravel()
            found[name, index] = np.sort(body[np.isfinite(body)])
    return found


def data_units(observed: xr.Dataset) -> str:
    """The recording's units, in words where they are not known."""
    units = str(observed.attrs.get("units", "unknown"))
    return "data units" if units in ("", "unknown") else units
