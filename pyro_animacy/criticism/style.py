"""What all figures share: their look, how bodies are told apart, and the panel they move in.

Figures are at most 4.5 inches wide with 9-point type, to be read on a phone. Colours are those
of Okabe & Ito (2008), told apart by colour-blind readers; bodies differ in marker too.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MultipleLocator

from pyro_animacy.criticism.wording import body_name
from pyro_animacy.data.bodies import body_stem, is_place
from pyro_animacy.sets import body_types

BODY_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
BODY_MARKERS = ("o", "s", "^", "D", "v", "P", "X")
NAMED = 8  # bodies in a legend, at most
RECORDED, GENERATED, QUIET = "#000000", "#0072B2", "#6b6b6b"
WIDTH = 4.5  # inches
STYLE = {
    "font.size": 9,
    "text.parse_math": False,  # names of bodies may hold a dollar
    "axes.titlesize": 9.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": QUIET,
    "axes.linewidth": 0.8,
    "axes.grid": True,
    "grid.color": "#e6e6e6",
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
    "axes.formatter.useoffset": False,  # the factor of an axis would lie on its labels
    "xtick.color": QUIET,
    "ytick.color": QUIET,
    "legend.frameon": False,
    "lines.linewidth": 1.6,
}


@contextmanager
def styled() -> Iterator[None]:
    """The style of every figure, without touching matplotlib's global settings."""
    with mpl.rc_context(STYLE), warnings.catch_warnings():
        # A name in a script that the font lacks shows as boxes here; the page has it right.
        warnings.filterwarnings("ignore", message="Glyph")
        yield


def body_looks(bodies: Sequence[str]) -> list[tuple[str, str]]:
    """Colour and marker of each body; of more than can be told apart, those of its type.

    Args:
        bodies: Their names, from which the types are (`pyro_animacy.sets.body_types`).
    """
    of, n = body_types(bodies) if _by_type(bodies) else range(len(bodies)), len(BODY_COLOURS)
    return [(BODY_COLOURS[i % n], BODY_MARKERS[(i + i // n) % n]) for i in of]


def _by_type(bodies: Sequence[str]) -> bool:
    """Whether there are too many bodies to tell apart, and few enough types, but several."""
    return len(bodies) > len(BODY_COLOURS) >= len({*body_types(bodies)}) > 1


def png(figure: Figure, dpi: int = 144) -> bytes:
    """The figure as a PNG file."""
    with styled(), io.BytesIO() as buffer:
        FigureCanvasAgg(figure)
        figure.savefig(buffer, format="png", dpi=dpi, facecolor="white")
        return buffer.getvalue()


def view(recorded: np.ndarray, *others: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Limits (low, high), each (2,), of a square view that shows `recorded` and most of `others`.

    Others may run away: they widen the view to at most twice the recorded extent.

    Args:
        recorded: (time, body, 2), NaN where not observed.
        others: arrays (..., 2) alike.
    """
    points = recorded.reshape(-1, 2)
    points = points[np.isfinite(points).all(-1)]
    if not points.size:
        points = np.zeros((1, 2))
    low, high = points.min(0), points.max(0)
    extent = float(max((high - low).max(), 1e-6 * max(1.0, np.abs(points).max())))
    for other in others:
        seen = other.reshape(-1, 2)
        seen = seen[np.isfinite(seen).all(-1)]
        if seen.size:
            low = np.minimum(low, np.maximum(seen.min(0), points.min(0) - extent / 2))
            high = np.maximum(high, np.minimum(seen.max(0), points.max(0) + extent / 2))
    half = max(float((high - low).max()), extent) * 0.54
    centre = (low + high) / 2
    return centre - half, centre + half


def frame_panel(axis: Axes, low: np.ndarray, high: np.ndarray) -> float:
    """A square box with equal axes and a grid of a round step, which is returned, in data units."""
    axis.set(xlim=(low[0], high[0]), ylim=(low[1], high[1]), aspect="equal")
    extent = float(high[0] - low[0])
    power = 10 ** np.floor(np.log10(extent / 3))
    grid = max(step * power for step in (1, 2, 5) if step * power <= extent / 3)
    axis.xaxis.set_major_locator(MultipleLocator(grid))
    axis.yaxis.set_major_locator(MultipleLocator(grid))
    axis.tick_params(length=0, labelbottom=False, labelleft=False)
    for spine in axis.spines.values():
        spine.set(visible=True, color="#c8c8c8")
    return float(grid)


def body_legend(figure: Figure, bodies: Sequence[str]) -> None:
    """The bodies under the figure; with many, their types, or the first few and how many more.

    Places that bodies take in turn are nobody's name.
    """
    named = [body for body in bodies if _by_type(bodies) or not is_place(body)]
    shown = named if _by_type(bodies) else named[:NAMED]
    more, alike = len(bodies) - len(shown), dict[tuple[str, str], list[str]]()
    for look, body in zip(body_looks(bodies), bodies, strict=True):
        if body in shown:
            alike.setdefault(look, []).append(body)
    handles = []
    for (colour, marker), (body, *others) in alike.items():
        name = f"{body_stem(body)} ({1 + len(others)})" if others else body_name(body)
        name = f" {name}" if name.startswith("_") else name  # else the legend leaves it out
        handles.append(
            mpl.lines.Line2D(
                [], [], color=colour, marker=marker, mec="white", ms=7, label=shorten(name, 18)
            )
        )
    figure.legend(
        handles=handles,
        loc="outside lower center",
        ncols=min(4, max(1, len(handles))),
        title=(f"and {more} more" if shown else f"{more} places") if more else None,
        handlelength=1.2,
        columnspacing=1.2,
    )


def shorten(name: str, size: int) -> str:
    """A long name by its two ends."""
    return name if len(name) <= size else f"{name[: size // 2 - 1]}…{name[-(size // 2) :]}"
