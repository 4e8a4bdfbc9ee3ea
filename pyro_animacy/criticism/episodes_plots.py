"""What `episodes` measured of a model of episodes, in figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from pyro_animacy.criticism.episodes import Array, OpenLoop
from pyro_animacy.criticism.style import (
    BODY_COLOURS,
    GENERATED,
    QUIET,
    RECORDED,
    WIDTH,
    styled,
)

Pixels = npt.NDArray[np.uint8]
LOOKS = {
    "open loop": (BODY_COLOURS[1], "-"),
    "last frame stays": (QUIET, "--"),
    "mean reward": (QUIET, "--"),
    "reconstruction": (BODY_COLOURS[0], "-"),
    "other actions": (BODY_COLOURS[3], ":"),
}
FEATURES = 3  # of a vector, drawn at most


def plot_sheet(rows: Mapping[str, Pixels], columns: Sequence[str] = ()) -> Figure:
    """Rows of pictures, each (n, height, width, channel), under the names of their columns."""
    count = max(len(images) for images in rows.values())
    height, width = next(iter(rows.values())).shape[1:3]
    with styled():
        side = (WIDTH - 0.9) / count
        tall = side * height / width
        figure = Figure(
            figsize=(WIDTH, (tall + 0.03) * len(rows) + 0.2 * bool(columns)),
            layout=ConstrainedLayoutEngine(w_pad=0.01, h_pad=0.01, wspace=0, hspace=0),
        )
        grid = figure.subplots(len(rows), count, squeeze=False)
        for axes, (name, images) in zip(grid, rows.items(), strict=True):
            for axis in axes:
                axis.set(xticks=[], yticks=[])
                axis.spines[:].set_visible(False)
                axis.grid(visible=False)
            for axis, image in zip(axes, images, strict=False):
                grey = image.shape[-1] == 1
                axis.imshow(image[..., 0] if grey else image[..., :3], cmap="gray", vmin=0,
                            vmax=255, interpolation="nearest")  # fmt: skip
            axes[0].set_ylabel(name, rotation=0, ha="right", va="center", fontsize=8)
        for axis, name in zip(grid[0], columns, strict=False):
            axis.set_title(name, fontsize=8)
    return figure


def plot_horizon(errors: Mapping[str, npt.NDArray], fps: float, what: str) -> Figure:
    """Mean error (window, H) of each forecaster against how far ahead it looks."""
    with styled():
        figure = Figure(figsize=(WIDTH, 2.9), layout="constrained")
        axis = figure.subplots()
        for name, error in errors.items():
            colour, line = LOOKS[name]
            ahead = np.arange(1, error.shape[1] + 1)
            axis.plot(ahead, error.mean(0), line, color=colour, label=name,
                      marker="o" if len(ahead) < 3 else None)  # fmt: skip
        axis.set_ylim(bottom=0)
        axis.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        axis.yaxis.set_major_locator(MaxNLocator(5))
        axis.set_xlabel(f"frames ahead ({fps:g} a second)")
        axis.set_ylabel(what.replace(" (", "\n("))
        figure.legend(loc="outside lower center", ncols=2)
    return figure


def plot_dimensions(kl: Array, active: npt.NDArray[np.bool_]) -> Figure:
    """KL divergence (Z,) of each dimension from its prior, the largest first; active in colour."""
    order = np.argsort(-kl, kind="stable")
    looks = {True: (BODY_COLOURS[0], "active"), False: ("#a8a8a8", "not active")}
    with styled():
        figure = Figure(figsize=(WIDTH, 2.6), layout="constrained")
        axis = figure.subplots()
        colours = [looks[bool(used)][0] for used in active[order]]
        axis.bar(np.arange(1, len(kl) + 1), kl[order], color=colours)
        axis.xaxis.set_major_locator(MaxNLocator(8, integer=True))
        axis.yaxis.set_major_locator(MaxNLocator(5))
        axis.grid(axis="x", visible=False)
        axis.set_xlabel("dimensions, from the largest")
        axis.set_ylabel("KL divergence\n(nats per frame)")
        handles = [Patch(color=colour, label=label) for colour, label in looks.values()]
        figure.legend(handles=handles, loc="outside lower center", ncols=2)
    return figure


def plot_vectors(loop: OpenLoop) -> Figure:
    """The features of one window that move most: recorded, reconstructed, and draws ahead."""
    spread = loop.recorded.std(0)
    chosen = np.sort(np.argsort(-spread, kind="stable")[:FEATURES])
    time = np.arange(len(loop.recorded)) / loop.fps
    K = loop.context
    with styled():
        figure = Figure(figsize=(WIDTH, 0.7 + 1.2 * len(chosen)), layout="constrained")
        axes = figure.subplots(len(chosen), 1, sharex=True, squeeze=False)[:, 0]
        for axis, feature in zip(axes, chosen, strict=True):
            for n, draw in enumerate(loop.predicted):
                axis.plot(time[K - 1 :], draw[K - 1 :, feature], color=LOOKS["open loop"][0],
                          lw=0.7, alpha=0.6, label=None if n else "open loop, draws")  # fmt: skip
            axis.plot(time, loop.reconstructed[:, feature], color=GENERATED, lw=1.2,
                      label="reconstructed")  # fmt: skip
            axis.plot(time, loop.recorded[:, feature], color=RECORDED, lw=1.2, label="recorded")
            axis.axvline(time[K - 1], color=QUIET, lw=0.8, ls=":")
            axis.set_title(f"feature {feature}", loc="left")
            axis.yaxis.set_major_locator(MaxNLocator(4))
        axes[-1].set_xlabel("time (s); the dotted line is the last frame given")
        figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    return figure
