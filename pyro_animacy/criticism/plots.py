"""The report's figures. Each function returns a matplotlib Figure, and shows nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from pyro_animacy.criticism.aligned import DIMS, data_units
from pyro_animacy.criticism.comparison import Comparison
from pyro_animacy.criticism.style import (
    GENERATED,
    QUIET,
    RECORDED,
    WIDTH,
    body_legend,
    body_looks,
    frame_panel,
    styled,
    view,
)
from pyro_animacy.criticism.verdicts import baseline_name, finite_baselines, series
from pyro_animacy.criticism.wording import nats, per_unit, percent, tick

BINS = 48  # of a density, at most
TOWER = 3  # times as high as all others, from which a bar of a density leaves the panel
DRAWN = 2  # draws whose paths are shown
LOSS_TERMS = {
    "loss": "total loss",
    "reconstruction": "reconstruction",
    "kl": "KL (nats)",
    "importance": "what the importance weights change (nats)",
    "action_cost": "action cost",
    "validation_nats_per_step": "validation score (nats per step)",
    "kl_weight": "KL weight",
}


def plot_loss_terms(metrics: Sequence[Mapping[str, Any]]) -> Figure:
    """Each logged term of the loss over training steps, one panel a term.

    Args:
        metrics: rows with `step` (or `episode`) and any of the terms; see `terms_shown`.
    """
    found = terms_shown(metrics)
    with styled():
        figure = Figure(figsize=(WIDTH, 0.5 + 1.15 * max(1, len(found))), layout="constrained")
        axes = figure.subplots(max(1, len(found)), 1, sharex=True, squeeze=False)[:, 0]
        for axis, (key, (steps, values)) in zip(axes, found.items(), strict=False):
            validation = key == "validation_nats_per_step"
            marker = "o" if validation or len(steps) < 12 else None
            colour = "#D55E00" if validation else GENERATED
            axis.plot(steps, values, color=colour, marker=marker, markersize=3)
            axis.set_title(LOSS_TERMS[key], loc="left")
            axis.yaxis.set_major_locator(MaxNLocator(3))
            axis.yaxis.set_major_formatter(tick)
            axis.margins(x=0.02, y=0.12)
            axis.set_ylim(*_room(np.array(values)))
            if validation:
                best = int(np.argmax(values))
                axis.plot(steps[best], values[best], "o", mfc="white", color=colour, markersize=7)
                axis.annotate(
                    f"best {nats(values[best])}",
                    (steps[best], values[best]),
                    xytext=(0, -12),
                    textcoords="offset points",
                    ha="right" if best > len(values) / 2 else "left",
                )
        by_episode = any("step" not in row and "episode" in row for row in metrics)
        axes[-1].set_xlabel("episode" if by_episode else "training step")
        axes[-1].xaxis.set_major_locator(MaxNLocator(5, integer=True))
    return figure


def terms_shown(metrics: Sequence[Mapping[str, Any]]) -> dict[str, tuple[list, list]]:
    """Steps and values of each logged term; not those that were never anything but 0 or fixed."""
    found = {key: series(metrics, key) for key in LOSS_TERMS}
    dull = {"action_cost": {0.0}, "kl_weight": set(found["kl_weight"][1][:1])}
    return {
        key: pair
        for key, pair in found.items()
        if pair[0] and not set(pair[1]) <= dull.get(key, set())
    }


def _room(values: np.ndarray) -> tuple[float, float]:
    """Limits of a training curve: the spikes of its beginning may leave the panel."""
    low, middle, high = np.quantile(values, (0.02, 0.5, 0.98))
    room = 3 * max(high - low, 1e-9 * max(1.0, abs(middle)))
    low, high = max(values.min(), low - room), min(values.max(), high + room)
    pad = 0.12 * (high - low) or 0.05 * max(1.0, abs(middle))
    return float(low - pad), float(high + pad)


def plot_scores(summary: Mapping[str, Any]) -> Figure:
    """Held-out nats per step of the model and of every baseline, higher is better.

    Args:
        summary: a run's `heldout_nats_per_step` and `baselines`; and `gain_standard_error`, of the
            difference from the best of these: twice that is the model's bar. Its own error is
            mostly that of steps that are hard for all.
    """
    scores = {baseline_name(key): value for key, value in finite_baselines(summary).items()}
    own_score = summary.get("heldout_nats_per_step")
    if own_score is not None and np.isfinite(own_score):
        scores["this model"] = own_score
    names = sorted(scores, key=scores.__getitem__)
    with styled():
        figure = Figure(figsize=(WIDTH, 0.8 + 0.3 * max(2, len(names))), layout="constrained")
        axis = figure.subplots()
        for row, name in enumerate(names):
            own = name == "this model"
            colour = "#D55E00" if own else QUIET
            error = (summary.get("gain_standard_error") or 0) if own else 0
            axis.errorbar(
                scores[name], row, xerr=2 * error or None, fmt="D" if own else "o", color=colour
            )
            axis.annotate(
                nats(scores[name]),
                (scores[name] + 2 * error, row),
                xytext=(8, 0),
                textcoords="offset points",
                va="center",
                fontweight="bold" if own else "normal",
            )
        axis.set_yticks(range(len(names)), names)
        for label in axis.get_yticklabels():
            own = label.get_text() == "this model"
            label.set(fontweight="bold" if own else "normal", color="#D55E00" if own else "black")
        axis.set_ylim(-0.6, max(len(names), 1) - 0.4)
        axis.margins(x=0.18)
        axis.grid(axis="y", visible=False)
        axis.xaxis.set_major_locator(MaxNLocator(4))
        axis.xaxis.set_major_formatter(tick)
        axis.set_xlabel("held-out nats per step (more is better)", loc="right")
    return figure


def plot_statistic(comparison: Comparison) -> Figure:
    """One statistic of one body: its density above, its cumulative share of frames below.

    The recording is black; the median over draws is a line and 95 % of the draws a band. A bar that
    stands for one value, such as the speed of bodies at rest, would press all else flat: it leaves
    the panel, and the legend has its share of the values. Of a share of frames: the recorded one
    among those of the draws.

    Args:
        comparison: from `compare`.
    """
    if comparison.statistic.share:
        return _plot_share(comparison)
    low, high = _limits(comparison)
    bins = _bins(comparison.observed, low, high)
    edges = np.linspace(low, high, bins + 1)
    fine = np.linspace(low, high, 4 * BINS)
    draws = [values for values in comparison.generated if values.size]
    with styled():
        figure = Figure(figsize=(4, 3.3), layout="constrained")
        above, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))
        for axis, grid, measure in ((above, edges, _density), (below, fine, _cumulative)):
            if draws:
                curves = np.stack([measure(values, grid) for values in draws])
                bottom, middle, top = np.quantile(curves, (0.025, 0.5, 0.975), axis=0)
                axis.fill_between(grid, bottom, top, step="post", color=GENERATED, alpha=0.25, lw=0)
                axis.step(grid, middle, where="post", color=GENERATED, label="generated")
            if comparison.observed.size:
                curve = measure(comparison.observed, grid)
                axis.step(grid, curve, where="post", color=RECORDED, label="recorded")
        _cut_tower(above, edges)
        above.set_yticks([])
        above.spines["left"].set_visible(False)
        above.set_ylabel("density")
        _legend_below(above)
        below.set_ylim(-0.03, 1.03)
        below.set_yticks((0, 0.5, 1), ("0", "½", "1"))
        below.set_ylabel("share below")
        below.set_xlim(low, high)
        below.set_xlabel(f"{comparison.statistic.name} ({per_unit(comparison.units)})")
        above.set_title(comparison.body, loc="left", fontweight="bold")
    return figure


def _legend_below(axis: Axes) -> None:
    """The legend of an axis under the figure: bands may leave no room in it."""
    handles, labels = axis.get_legend_handles_labels()
    figure = axis.get_figure()
    if labels and isinstance(figure, Figure):
        figure.legend(handles, labels, loc="outside lower center", ncols=2, handlelength=1.2)


def _cut_tower(axis: Axes, edges: np.ndarray) -> None:
    """Limit a panel of densities to all bars but one that is TOWER times as high as the others."""
    heights = np.array([np.asarray(line.get_ydata())[:-1] for line in axis.lines])
    axis.set_ylim(0, 1.08 * axis.get_ylim()[1])
    *_, other, tower = np.sort(heights.max(0)) if len(heights) else (0.0, 0.0)
    if 0 < TOWER * other < tower:
        axis.set_ylim(0, 1.3 * other)
        for line, share in zip(axis.lines, heights[:, heights.max(0).argmax()], strict=True):
            share *= edges[1] - edges[0]
            line.set_label(f"{line.get_label()}, {percent(share)} cut off")


def _plot_share(comparison: Comparison) -> Figure:
    """The share of frames of each draw, as a histogram, and the recorded one, as a line."""
    shares = comparison.generated_means[np.isfinite(comparison.generated_means)]
    top = 1.15 * max([*shares, comparison.observed_mean if comparison.observed.size else 0, 0.01])
    with styled():
        figure = Figure(figsize=(4, 2.3), layout="constrained")
        axis = figure.subplots()
        if shares.size:
            axis.hist(
                shares, np.linspace(0, top, 31).tolist(), color=GENERATED, alpha=0.5, label="draws"
            )
        if comparison.observed.size:
            axis.axvline(comparison.observed_mean, color=RECORDED, label="recorded")
        _legend_below(axis)
        axis.yaxis.set_major_locator(MaxNLocator(3, integer=True))
        axis.set(xlim=(-0.02 * top, top), ylabel="draws")
        axis.set_xlabel(f"{comparison.statistic.name} ({per_unit(comparison.units)})")
        axis.set_title(comparison.body, loc="left", fontweight="bold")
    return figure


def _bins(values: np.ndarray, low: float, high: float) -> int:
    """How many bins: fewer where sorted (n,) `values` lie on a grid, which fine bins would comb."""
    shares = (values[(values >= low) & (values <= high)] - low) / (high - low)
    distinct, counts = np.unique(shares.round(6), return_counts=True)
    if distinct.size < 2:
        return BINS
    gap = np.quantile(np.repeat(np.diff(distinct), counts[:-1]), 0.9)
    return int(np.clip(1 / (1.5 * gap), BINS // 4, BINS))


def _density(values: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """Histogram of (n,) `values` as a density at the left of each bin, the last one repeated."""
    density = np.histogram(values, edges)[0] / (values.size * np.diff(edges))
    return np.append(density, density[-1])


def _cumulative(values: np.ndarray, grid: np.ndarray) -> np.ndarray:
    """Share of sorted (n,) `values` at or below each point of `grid`."""
    return np.searchsorted(values, grid, side="right") / values.size


def _limits(comparison: Comparison) -> tuple[float, float]:
    """Where most of the recorded and of the generated values lie, never empty.

    Generated values may be far off; they get at most three times the recorded range, so that the
    recorded distribution stays visible. So it does beside a long tail of a few recorded values.
    """
    samples = [comparison.observed] if comparison.observed.size else []
    pool = np.concatenate([*comparison.generated, np.empty(0)])
    samples += [pool] if pool.size else []
    if not samples:
        return 0.0, 1.0
    if comparison.statistic.signed:
        high = max(_most(np.sort(np.abs(sample))) for sample in samples) or 1.0
        return -high, high
    quantiles = np.array([(np.quantile(sample, 0.005), _most(sample)) for sample in samples])
    low, high = quantiles[:, 0].min(), quantiles[:, 1].max()
    if len(samples) == 2:
        room = 3 * max(np.ptp(quantiles[0]), 0.1 * np.ptp(quantiles[1]))
        low, high = max(low, quantiles[0, 0] - room), min(high, quantiles[0, 1] + room)
    if low >= 0 and low < 0.3 * high:
        low = 0.0
    pad = max(0.02 * (high - low), 1e-6 * max(abs(low), abs(high)), 1e-12)
    return float(low - pad), float(high + pad)


def _most(values: np.ndarray) -> float:
    """What 99 % of (n,) `values` are below; where they have a tail, 4 times that of 90 %."""
    most, nearly = np.quantile(values, (0.99, 0.9))
    return float(min(most, 4 * nearly) if nearly > 0 else most)


def most_movement(observed: xr.Dataset, count: int) -> list[str]:
    """Names of the `count` trajectories whose bodies move furthest a frame, in that order.

    A body that stands still or is missing weakens a trajectory, since there is less to look at:
    the measure is the sum over bodies of the square root of the mean step. Of several that show
    the same moment of a recording, as scenes that share bodies do, one comes before the rest.
    """
    position = observed["position"].transpose(*DIMS).values
    step = np.linalg.norm(np.diff(position, axis=1), axis=-1)
    frames = np.maximum(1, np.isfinite(position).all(-1).sum(1).max(-1))
    movement = np.sqrt(np.nansum(step, axis=1) / frames[:, None]).sum(-1) * np.sqrt(frames)
    order = np.argsort(-movement, kind="stable")
    if {"recording", "start"} <= set(observed.coords):
        moments = list(zip(observed["recording"].values, observed["start"].values, strict=True))
        first = {moments[row]: row for row in order[::-1]}
        again = [first[moments[row]] != row for row in order]
        order = order[np.argsort(again, kind="stable")]
    order = order[:count]
    return [str(name) for name in observed["trajectory"].values[order]]


def plot_paths(
    observed: xr.Dataset,
    generated: xr.DataArray,
    trajectories: Sequence[str],
    reconstructed: xr.DataArray | None = None,
) -> Figure:
    """Small multiples of paths: a row a trajectory; recorded, reconstructed and generated columns.

    Each path fades in from its start and ends at its marker.

    Args:
        observed: recording from `align`.
        generated: (chain, draw, trajectory, time, body, space) from `align`; the first two draws
            are shown.
        trajectories: which to show.
        reconstructed: draws of the model following the recording, the first is shown.
    """
    bodies = [str(body) for body in observed["body"].values]
    titles = ["recorded", *["followed"] * (reconstructed is not None)]
    titles += [f"draw {draw + 1}" for draw in range(DRAWN)]
    with styled():
        size = (WIDTH, 0.65 + WIDTH / len(titles) * len(trajectories))
        figure = Figure(figsize=size, layout="constrained")
        grid = figure.subplots(len(trajectories), len(titles), squeeze=False)
        for row, name in zip(grid, trajectories, strict=True):
            panels = [observed["position"].sel(trajectory=name).transpose(*DIMS[1:]).values]
            if reconstructed is not None:
                panels.append(one_draw(reconstructed, name, 0))
            panels += [one_draw(generated, name, draw) for draw in range(DRAWN)]
            low, high = view(*panels)
            for axis, panel in zip(row, panels, strict=True):
                _draw_paths(axis, np.where(np.isfinite(panels[0]), panel, np.nan), bodies)
                step = frame_panel(axis, low, high)
            window = trajectories.index(name) + 1
            units = data_units(observed)
            grid_step = f"grid {step:g} {units if len(units) <= 4 else ''}".rstrip()
            row[0].set_ylabel(f"window {window}\n{grid_step}", fontsize=8)
        for axis, title in zip(grid[0], titles, strict=True):
            axis.set_title(title)
        body_legend(figure, bodies)
    return figure


def one_draw(draws: xr.DataArray, trajectory: str, draw: int) -> np.ndarray:
    """One draw of the first chain: (time, body, space)."""
    chosen = draws.isel(chain=0, draw=draw % draws.sizes["draw"]).sel(trajectory=trajectory)
    return chosen.transpose(*DIMS[1:]).values


def _draw_paths(axis: Axes, position: np.ndarray, bodies: Sequence[str]) -> None:
    """Paths (time, body, 2) in four shades, markers at the last observed frame."""
    for body, (colour, marker) in enumerate(body_looks(bodies)):
        path = position[:, body]
        parts = np.array_split(np.arange(len(path)), 4)
        for part, alpha in zip(parts, (0.3, 0.5, 0.7, 0.95), strict=True):
            if part.size:
                piece = path[max(0, part[0] - 1) : part[-1] + 1]
                axis.plot(*piece.T, color=colour, alpha=alpha, lw=1.3, solid_capstyle="round")
        seen = np.flatnonzero(np.isfinite(path).all(-1))
        if seen.size:
            axis.plot(*path[seen[-1]], marker, color=colour, mec="white", ms=6, zorder=5)
