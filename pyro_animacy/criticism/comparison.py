"""Recorded against generated motion, statistic by statistic and body by body.

A posterior predictive check (Gelman, Meng & Stern 1996) asks whether the recording looks like a
draw from the model: it compares T(recording) with T(draw) for a summary T of each statistic.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
import xarray as xr
from tqdm import tqdm

from pyro_animacy.criticism.statistics import (
    STATISTICS,
    Scene,
    Statistic,
    posterior_predictive_p,
    wasserstein,
)
from pyro_animacy.errors import ConfigError, DataError, RunError

DIMS = ("trajectory", "time", "body", "space")
KEPT = 1000  # values kept of each draw for the curves: its evenly spaced quantiles
LEAST_KEPT = 200  # of them, where there are very many draws and pairs of bodies
ALL_KEPT = 16_000_000  # values kept of all draws together, 128 MB
BLOCK = 30_000  # positions that statistics are computed of at once: they stay in the cache


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


def align(observed: xr.Dataset, draws: xr.DataTree) -> tuple[xr.Dataset, xr.DataArray]:
    """The recording and the draws of it on the same trajectories, frames and bodies.

    Args:
        observed: recording in the schema, `position` (trajectory, time, body, space).
        draws: tree with `posterior_predictive/position` (chain, draw, trajectory, time, body,
            space), of some or all of these trajectories and of consecutive frames.

    Returns:
        The recording cut to what was generated, and the generated positions, still on disk if the
        draws were opened from there.

    Raises:
        DataError: the recording has no positions or no frame rate, or is none.
        RunError: the draws hold no positions, or positions of something not in the recording, or
            the same one twice.
    """
    if not isinstance(observed, xr.Dataset):
        raise DataError(f"the recording is a {type(observed).__name__}; expected an xarray Dataset")
    if "position" not in observed or "fps" not in observed.attrs:
        raise DataError(
            "the recording has no variable `position` or no attribute `fps`: "
            "make it with read_trajectories or make_trajectories"
        )
    if not isinstance(draws, xr.DataTree):
        raise RunError(
            f"draws are a {type(draws).__name__}; expected an xarray DataTree that holds "
            "posterior_predictive/position: make it with --mode generate"
        )
    if "posterior_predictive" not in draws or "position" not in draws["posterior_predictive"]:
        raise RunError(
            "draws hold no posterior_predictive/position: make them with --mode generate"
        )
    generated = draws["posterior_predictive"]["position"]
    if set(generated.dims) != {"chain", "draw", *DIMS}:
        raise RunError(
            f"draws of position have the dimensions {', '.join(map(str, generated.dims))}; "
            f"expected chain, draw, {', '.join(DIMS)}: make them with --mode generate"
        )
    generated = generated.transpose("chain", "draw", *DIMS)
    for name in ("chain", "draw", "trajectory", "time", "body"):
        if not generated.sizes[name]:
            raise RunError(f"draws hold no {name} at all: make them with --mode generate")
    for name in ("trajectory", "body", "space"):
        recorded, made = set(observed[name].values.tolist()), generated[name].values.tolist()
        absent = [value for value in made if value not in recorded]
        if absent:
            raise RunError(
                f"draws of {name} {absent[0]!r}, which is not in the recording: "
                "criticise them against the recording they were made from"
            )
        value, times = Counter(made).most_common(1)[0]
        if times > 1:
            raise RunError(
                f"draws hold {name} {value!r} {times} times, but it is one: keep one of them"
            )
    cut = observed.sel({name: generated[name].values for name in ("trajectory", "body", "space")})
    return cut.isel(time=_frames(observed, generated)), generated


def _frames(observed: xr.Dataset, generated: xr.DataArray) -> np.ndarray:
    """Numbers of the recorded frames that were generated, from their times."""
    fps, time, recorded = float(observed.attrs["fps"]), generated["time"].values, observed["time"]
    if not np.issubdtype(time.dtype, np.number) or not np.isfinite(time).all():
        raise RunError(
            f"times of the draws begin with {', '.join(map(str, time[:3]))}; expected seconds: "
            "make them with --mode generate"
        )
    passed = (time - float(recorded[0])) * fps  # frames since the recording's first
    frame = np.rint(passed).astype(int)
    if frame.min() < 0 or frame.max() >= recorded.size:
        raise RunError(
            f"times of the draws, {time.min():g} to {time.max():g} s, are not within those of the "
            f"recording, {float(recorded[0]):g} to {float(recorded[-1]):g} s: criticise them "
            "against the recording they were made from"
        )
    if (np.diff(frame) != 1).any() or np.abs(passed - frame).max() > 0.25:
        raise RunError(
            f"times of the draws begin with {', '.join(f'{t:g}' for t in time[:3])} s, which are "
            f"not consecutive frames of a recording at {fps:g} Hz: criticise them against the "
            "recording they were made from"
        )
    return frame


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
    unseen = ~np.isfinite(observed["position"].transpose(*DIMS).values)
    step = np.zeros(unseen.shape[0])
    if "resolution" in observed.coords:
        step = np.nan_to_num(observed["resolution"].values.astype(float))
    coarse = step > 0
    grid = step[coarse, None, None, None]
    for position in _read(generated):
        if coarse.all():
            position = np.rint(position / grid) * grid
        elif coarse.any():
            position[coarse] = np.rint(position[coarse] / grid) * grid
        position[unseen | ~np.isfinite(position)] = np.nan
        yield position


def _read(generated: xr.DataArray) -> Iterator[np.ndarray]:
    """A copy of each draw, in double precision."""
    for chain, draw in np.ndindex(generated.sizes["chain"], generated.sizes["draw"]):
        yield generated.isel(chain=chain, draw=draw).values.astype(float)


def share_lost(observed: xr.Dataset, generated: xr.DataArray) -> float:
    """Share of the generated positions that are not finite, of those whose recording was seen.

    Args:
        observed: recording from `align`.
        generated: (chain, draw, trajectory, time, body, space) from `align`.
    """
    seen = np.isfinite(observed["position"].transpose(*DIMS).values)
    kept = [int((np.isfinite(position) & seen).sum()) for position in _read(generated)]
    return 1 - sum(kept) / (int(seen.sum()) * len(kept)) if seen.any() and kept else 0.0


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
    recorded = dict(_by_body(position, scene, statistics, members, 0))
    count = generated.sizes["chain"] * generated.sizes["draw"]
    most = int(np.clip(ALL_KEPT // max(1, count * len(recorded)), LEAST_KEPT, KEPT))
    kept: dict[tuple[str, int], list[np.ndarray]] = {key: [] for key in recorded}
    moments: dict[tuple[str, int], list[tuple[float, float]]] = {key: [] for key in recorded}
    draws = enumerate(each_draw(observed, generated))
    bar = tqdm(draws, "compare", count, leave=False, unit="draw", disable=not progress, delay=1)
    for draw, position in bar:
        for key, values in _by_body(position, scene, statistics, members, draw):
            moments[key].append(_moments(values, statistics[key[0]].signed))
            kept[key].append(values if values.size <= most else _quantiles(values, most))

    comparisons = []
    for (name, index), values in recorded.items():
        statistic = statistics[name]
        mean, sd = _moments(values, statistic.signed)
        means, sds = np.array(moments[name, index]).reshape(-1, 2).T
        pool = np.concatenate([*kept[name, index], np.empty(0)])
        comparisons.append(
            Comparison(
                statistic=statistic,
                body=statistic.over.labels(scene)[index],
                units=statistic.units.format(units=units),
                observed=values,
                generated=tuple(kept[name, index]),
                observed_mean=mean,
                observed_sd=sd,
                generated_means=means,
                generated_sds=sds,
                p_mean=min(
                    posterior_predictive_p(mean, means), posterior_predictive_p(-mean, -means)
                ),
                distance=wasserstein(values, pool),
                p_distance=_distance_p(values, kept[name, index], pool),
                motions=len(members[name][index]),
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


def motion_shown(
    dataset: xr.Dataset, trajectory: np.ndarray, begin: np.ndarray | int, shown: np.ndarray
) -> np.ndarray:
    """Which motion each row shows: the same places at the same moment of a recording are one.

    The places alone do not tell, as bodies at rest are in the same at other times too.

    Args:
        dataset: recordings; a trajectory that does not say of which it is, is one of its own.
        trajectory: (row,) number of the trajectory that each row is of.
        begin: frame of it with which the row begins, (row,) or one for all.
        shown: (row, ...) positions.

    Returns:
        (row,) numbers from 0; -1 where nothing was observed.
    """
    of = dataset["recording" if "recording" in dataset.coords else "trajectory"].to_numpy()
    start = dataset["start"].to_numpy() if "start" in dataset.coords else np.zeros(len(of))
    recording = np.unique(of, return_inverse=True)[1]
    places = shown.reshape(len(shown), -1)
    key = np.column_stack([recording[trajectory], start[trajectory] + begin, places])
    seen, motion = np.isfinite(places).any(1), np.full(len(shown), -1)
    as_bytes = key[seen].view(f"V{key[0].nbytes}")[:, 0]  # in which NaN equals NaN
    motion[seen] = np.unique(as_bytes, return_inverse=True)[1]
    return motion


def _by_body(
    position: np.ndarray,
    scene: Scene,
    statistics: Mapping[str, Statistic],
    members: Members,
    draw: int,
) -> Iterator[tuple[tuple[str, int], np.ndarray]]:
    """Each (statistic, index on its last axis) and its sorted finite values, each motion once."""
    for name, statistic in statistics.items():
        for index, values in enumerate(_values(statistic, position, scene)):
            rows = [motion[draw % len(motion)] for motion in members[name][index]]
            chosen = values if len(rows) == len(values) else values[rows]
            chosen = chosen[np.isfinite(chosen)]
            chosen.sort()
            yield (name, index), chosen


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


def data_units(observed: xr.Dataset) -> str:
    """The recording's units, in words where they are not known."""
    units = str(observed.attrs.get("units", "unknown"))
    return "data units" if units in ("", "unknown") else units
