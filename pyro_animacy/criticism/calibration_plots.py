"""The figures and tables of `calibration`: what its Dataset shows, as pictures for a phone."""

from collections.abc import Iterator
from functools import cache

import numpy as np
import xarray as xr
from matplotlib.figure import Figure

from pyro_animacy.criticism.forecast_scores import (
    GRID,
    RIGHT,
    Uniformity,
    ecdf_difference,
    uniformity,
)
from pyro_animacy.criticism.forecasts import MODEL, frames_ahead
from pyro_animacy.criticism.section import Table
from pyro_animacy.criticism.style import (
    GENERATED,
    QUIET,
    WIDTH,
    body_legend,
    body_looks,
    shorten,
    styled,
)
from pyro_animacy.criticism.verdicts import baseline_name
from pyro_animacy.criticism.wording import number, percent, seconds
from pyro_animacy.errors import how_many

LEVELS = (0.5, 0.8, 0.95)  # of central intervals
PANELS = 6
LONG = 40  # letters of a legend in one line
FEWEST_STEPS = 3  # of which the band of a curve is known
SHOWN = (0.5, 1.0, 2.0, 4.0, 8.0)  # seconds ahead, in the tables; see `frames_ahead`


def plot_pit(calibration: xr.Dataset) -> Figure:
    """Share of recorded steps below each point of the forecast, less what it should be, by body.

    The band holds the whole curve of a calibrated model 95 times in 100 (Saeilynoja, Buerkner &
    Vehtari, Statistics and Computing 32, 2022; `arviz_stats`), for as many independent steps.
    """
    values = calibration["pit"].sel(model=MODEL)
    bodies = _least_uniform(calibration)
    with styled():
        figure = Figure(figsize=(WIDTH, 0.9 + 1.25 * len(bodies)), layout="constrained")
        axes = figure.subplots(len(bodies), 1, sharex=True, sharey=True, squeeze=False)[:, 0]
        for axis, body in zip(axes, bodies, strict=True):
            independent = int(calibration["independent"].sel(body=body))
            low, high = _band(independent)
            chance = f"chance ({how_many(independent, 'step')})"
            axis.fill_between(GRID, low, high, color="#dddddd", lw=0, label=chance)
            axis.axhline(0, color=QUIET, lw=0.8)
            for space, style in zip(calibration["space"].values, ("-", "--", ":"), strict=False):
                u = np.sort(values.sel(body=body, space=space).values)
                u = u[np.isfinite(u)]
                if u.size:
                    axis.plot(GRID, ecdf_difference(u), style, color=GENERATED, label=str(space))
            axis.set_title(shorten(str(body), 30), loc="left", fontweight="bold")
            axis.legend(loc="upper right", fontsize=8, ncols=3, handlelength=1.6, borderpad=0.1)
        curves = [np.abs(line.get_ydata()).max() for axis in axes for line in axis.get_lines()]
        top = max(0.1, 1.2 * max(curves))  # the band may leave the panel
        axes[0].set(xlim=(0, 1), ylim=(-top, 1.35 * top))
        axes[-1].set_xlabel("point of the forecast (share of it that lies below)")
        said = (
            "recorded share below, less forecast" if len(bodies) > 1 else "recorded less forecast"
        )
        figure.supylabel(said, fontsize=9)
    return figure


def in_band(calibration: xr.Dataset, body: str, axis: str) -> bool:
    """Whether the curve of `plot_pit` stays in the band: as good as can be told."""
    u = calibration["pit"].sel(model=MODEL, body=body, space=axis).values
    u = np.sort(u[np.isfinite(u)])
    if not u.size:
        return False
    (low, high), curve = _band(int(calibration["independent"].sel(body=body))), ecdf_difference(u)
    return bool(((low <= curve) & (curve <= high)).all())


@cache
def _band(independent: int) -> tuple[np.ndarray, np.ndarray]:
    """The simultaneous 95 % band of F(u) - u on the grid; of one or two steps there is none."""
    if independent < FEWEST_STEPS:
        return np.full_like(GRID, -1), np.ones_like(GRID)
    from arviz_stats.ecdf_utils import get_pointwise_confidence_band, simulate_confidence_bands

    generator = np.random.default_rng(0)
    level = simulate_confidence_bands(independent, 1, GRID, 0.95, 1000, generator)
    low, high = get_pointwise_confidence_band(level, independent, GRID)
    return low - GRID, high - GRID


def uniformities(calibration: xr.Dataset) -> dict[str, dict[str, Uniformity]]:
    """Of the model, by body and axis."""
    values = calibration["pit"].sel(model=MODEL)
    return {
        str(body): {
            str(space): uniformity(values.sel(body=body, space=space).values)
            for space in calibration["space"].values
        }
        for body in calibration["body"].values
    }


def _least_uniform(calibration: xr.Dataset) -> list[str]:
    """The bodies in their order; if there are more than PANELS, those with the largest gaps."""
    gaps = {b: max(u.gap for u in of.values()) for b, of in uniformities(calibration).items()}
    worst = sorted(gaps, key=lambda b: -np.nan_to_num(gaps[b], nan=-1))[:PANELS]
    return [body for body in gaps if body in worst]


def plot_coverage(calibration: xr.Dataset) -> Figure:
    """How often central intervals hold the recording, by seconds ahead; a line a body."""
    shares = calibration["coverage"].sel(model=MODEL)
    bodies, ahead = [*map(str, calibration["body"].values)], calibration["horizon"].values
    with styled():
        figure = Figure(figsize=(WIDTH, 3.0), layout="constrained")
        axes = figure.subplots(1, 2, sharey=True)
        for axis, level in zip(axes, (LEVELS[0], LEVELS[-1]), strict=True):
            for index, (colour, marker) in enumerate(body_looks(bodies)):
                every = max(1, len(ahead) // 6)
                line = shares.sel(level=level).isel(body=index).values
                axis.plot(ahead, line, color=colour, marker=marker, ms=4, markevery=every)
            axis.axhline(level, color="black", ls="--", lw=1)
            axis.set_title(f"{percent(level)} intervals, ideal dashed", loc="left", fontsize=8)
            axis.set(xlabel="seconds ahead", xlim=(0, None), ylim=(0, 1.08))
        axes[0].set_ylabel("share of positions inside")
        axes[0].yaxis.set_major_formatter(lambda share, _: percent(share))
        body_legend(figure, bodies)
    return figure


def plot_scores(calibration: xr.Dataset) -> Figure:
    """CRPS (mean over bodies) and energy score by seconds ahead, of the model and baselines."""
    looks = ((GENERATED, "-"), (QUIET, ":"), ("#D55E00", "--"))
    with styled():
        figure = Figure(figsize=(WIDTH, 2.9), layout="constrained")
        for axis, (name, values) in zip(figure.subplots(1, 2), scores(calibration), strict=True):
            for model, (colour, style) in zip(calibration["model"].values, looks, strict=True):
                mean = values.sel(model=model).mean("trajectory")
                axis.plot(mean["horizon"], mean, style, color=colour, label=named(model))
            axis.set_title(f"{name} ({calibration.attrs['units']})", loc="left")
            axis.set_xlabel("seconds ahead")
            axis.set_ylim(bottom=0)
        handles, labels = axis.get_legend_handles_labels()
        columns = 1 if sum(map(len, labels)) > LONG else 3
        figure.legend(handles, labels, loc="outside lower center", ncols=columns, handlelength=1.8)
    return figure


def scores(calibration: xr.Dataset) -> Iterator[tuple[str, xr.DataArray]]:
    """The scores of forecasts with their names, each (model, trajectory, horizon)."""
    yield "CRPS", calibration["crps"].mean("body")
    yield "energy score", calibration["energy_score"]


def named(model: str) -> str:
    """A contender as people call it."""
    return "this model" if model == MODEL else baseline_name(str(model))


def _how(calibration: xr.Dataset, body: str, axis: str, u: Uniformity) -> str:
    """What the forecasts of a step are; in which way they are off only where it is not chance."""
    if not u.n:
        return "–"
    if u.gap <= RIGHT:
        return "right"
    return "may be chance" if in_band(calibration, body, axis) else u.direction


def tables(calibration: xr.Dataset) -> Iterator[Table]:
    """Of each body one step ahead; of coverage and each score by seconds ahead."""
    rows = []
    for body, of in uniformities(calibration).items():
        for axis, u in of.items():
            below = calibration["pit"].sel(model=MODEL, body=body, space=axis).values
            below = below[np.isfinite(below)]
            inside = [np.abs(below - 0.5) < level / 2 for level in LEVELS]
            shares = "/".join(f"{100 * x.mean():.0f}" if x.size else "–" for x in inside)
            rows.append(
                [f"{body}, {axis}", number(u.gap), _how(calibration, body, axis, u), shares]
            )
    head = ("body, axis", "largest gap", "forecast is", "inside 50/80/95 %")
    yield Table("One step ahead", head, rows)
    ahead = calibration["horizon"].values
    frames = frames_ahead(SHOWN, 1 / ahead[0], len(ahead)) or [len(ahead)]
    shown = [h - 1 for h in frames]
    times = [seconds(ahead[i]) for i in shown]
    covered = calibration["coverage"].mean("body")
    yield Table(
        "Positions inside 50 %, 80 % and 95 % intervals, by time ahead", ("model", *times),
        [[named(m), *("/".join(f"{100 * x:.0f}" for x in covered.sel(model=m).values[:, i])
                       for i in shown)] for m in calibration["model"].values],
    )  # fmt: skip
    for name, values in scores(calibration):
        mean = values.mean("trajectory")
        yield Table(
            f"{name}, {calibration.attrs['units']}, by time ahead", ("model", *times),
            [[named(m), *(number(float(x)) for x in mean.sel(model=m).values[shown])]
             for m in calibration["model"].values],
        )  # fmt: skip
