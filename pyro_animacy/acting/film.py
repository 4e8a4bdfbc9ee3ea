"""Frames of a video: three panels side by side, words under each, and the rewards over time.

    +----------+ +---------------+ +-----------+      panel: a function of the number of a frame;
    | recorded | | reconstructed | | predicted |      its picture there, (height, width, 3)
    +----------+ +---------------+ +-----------+
    4.3 s        sees every frame  12 of 30 ahead
    ~~~~~~ reward over time ~~~|~~~~~~~~~~~~~~~~      the bar moves; all else is drawn once

All panels are of one size. Positions are in pixels from the upper left corner.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator
from PIL import Image, ImageOps

from pyro_animacy.criticism.gif import Pixels, rgb
from pyro_animacy.criticism.style import QUIET, RECORDED, styled

OVERLAID = 8  # draws in one picture: of more, each alone would hardly show
SIDE = 208  # pixels of a picture that is drawn
LEAST = 192  # pixels of an image, at least
CURVES = (300, 240)  # width and height of a panel of lines
FEATURES = 4  # of a vector in such a panel, at most: those that move most

# Told apart by colour-blind readers, from each other and from the bodies' vermilion and blue.
OPEN_LOOP = "#AA3377"
SEEN = "#d9d9d9"
DPI = 100
MARGIN, BORDER = 10, 4  # pixels
TITLE, CAPTION, STRIP, TICKS, SCALE = 24, 40, 60, 36, 44  # pixels, heights but for the last

Panel = Callable[[int], Pixels]  # the picture of frame t


# ---------------------------------------------------------------------------------- the panels


def enlarged(images: npt.NDArray[np.uint8]) -> Panel:
    """Panel of images (T, height, width, 3): every pixel a square, `LEAST` or more in all."""
    times = -(-LEAST // min(images.shape[1:3]))
    return lambda t: images[t].repeat(times, 0).repeat(times, 1)


def fitted(frames: Sequence[Pixels]) -> Panel:
    """Panel of T frames of any size that an environment has rendered, as large as `Lines`."""

    def panel(t: int) -> Pixels:
        frame = Image.fromarray(np.asarray(frames[t]))
        return np.asarray(ImageOps.pad(frame, CURVES, Image.Resampling.BOX, color="white"))

    return panel


def overlaid(picture: Callable[..., Pixels], observations: npt.NDArray) -> Panel:
    """Panel of vectors, drawn as their environment does, draws laid over each other.

    Args:
        picture: Draws a vector (feature,) in a size.
        observations: (draws, T, feature); of draws the first `OVERLAID`.
    """

    def panel(t: int) -> Pixels:
        drawn = [picture(o, SIDE) for o in observations[:OVERLAID, t]]
        return np.mean(drawn, 0).round().astype(np.uint8)

    return panel


class Lines:
    """Panel of features over time, one part of the episode after another.

    Args:
        recorded: (T, feature).
        draws: (draws, T, feature), or None where there is only what was recorded.
        colour: Of the draws: a line for their mean, a band for 90 % of them.
        part: Frames of a part.
        seen: Frames at the beginning of a part to shade.
        fps: Frames per second.
    """

    def __init__(
        self, recorded: npt.NDArray, draws: npt.NDArray | None, colour: str, *, part: int,
        seen: int, fps: float,
    ) -> None:  # fmt: skip
        self.recorded, self.draws, self.colour = recorded, draws, colour
        self.part, self.seen, self.fps = part, seen, fps
        spread = recorded.std(0)
        self.features = np.sort(np.argsort(-spread, kind="stable")[:FEATURES])
        self.shown: tuple[int, Pixels, npt.NDArray[np.int64], slice] | None = None

    def __call__(self, t: int) -> Pixels:
        """The part that frame t is in, and a bar at it."""
        n, k = divmod(t, self.part)
        if self.shown is None or self.shown[0] != n:
            self.shown = n, *self._sheet(n)
        _, sheet, columns, rows = self.shown
        pixels = sheet.copy()
        pixels[rows, columns[k]] = 0
        return pixels

    def _sheet(self, n: int) -> tuple[Pixels, npt.NDArray[np.int64], slice]:
        """Part n without a bar; the pixel column of each of its frames, and a bar's rows."""
        first = n * self.part
        here = slice(first, min(first + self.part, len(self.recorded)))
        time = (first + np.arange(self.part)) / self.fps
        drawn = time[: here.stop - first]
        with styled():
            figure = Figure(figsize=inches(*CURVES), dpi=DPI, layout="constrained")
            axes = figure.subplots(len(self.features), 1, sharex=True, squeeze=False)[:, 0]
            for axis, i in zip(axes, self.features, strict=True):
                if self.seen:
                    _shade(axis, drawn[: self.seen])
                if self.draws is not None:
                    _band(axis, drawn, self.draws[:, here, i], self.colour)
                _line(axis, drawn, self.recorded[here, i], RECORDED, 1)
                axis.set_ylim(*_limits(self.recorded[:, i]))
                axis.yaxis.set_major_locator(MaxNLocator(2))
                axis.tick_params(labelsize=7)
                axis.set_title(f"feature {i}", loc="left", fontsize=7, pad=2)
            axes[-1].set_xlim(*_ends(time))
            axes[-1].set_xlabel("seconds", fontsize=7)
            canvas = FigureCanvasAgg(figure)
            canvas.draw()
        columns, rows = _bar(axes[0], axes[-1], time)
        return np.asarray(canvas.buffer_rgba())[..., :3].copy(), columns, rows


def _band(axis: Axes, time: npt.NDArray, draws: npt.NDArray, colour: str) -> None:
    """Mean of draws (draws, T), and between which values 90 % of them are."""
    low, high = np.quantile(draws, (0.05, 0.95), axis=0)
    axis.fill_between(time, low, high, color=colour, alpha=0.3, lw=0)
    _line(axis, time, draws.mean(0), colour, 1.4)


def _line(axis: Axes, time: npt.NDArray, values: npt.NDArray, colour: str, width: float) -> None:
    """A line, also of a single frame."""
    dot = "o" if len(time) == 1 else None
    axis.plot(time, values, color=colour, lw=width, marker=dot, markersize=3, clip_on=dot is None)


def _shade(axis: Axes, time: npt.NDArray) -> None:
    """Mark the frames seen."""
    axis.axvspan(time[0], time[-1], color=SEEN, lw=0, zorder=0)


def _limits(*values: npt.NDArray) -> tuple[float, float]:
    """Limits of an axis that shows all values."""
    low, high = min(map(np.nanmin, values)), max(map(np.nanmax, values))
    pad = 0.1 * (high - low) or 0.5
    return float(low - pad), float(high + pad)


def _ends(time: npt.NDArray) -> tuple[float, float]:
    """Limits of an axis of time."""
    return float(time[0]), float(time[-1] if len(time) > 1 else time[0] + 1)


def _bar(upper: Axes, lower: Axes, time: npt.NDArray) -> tuple[npt.NDArray[np.int64], slice]:
    """Where in the pixels of a figure, once drawn, a bar stands: columns (T,), and its rows."""
    x = upper.transData.transform(np.stack([time, np.zeros_like(time)], 1))[:, 0]
    top, bottom = upper.get_window_extent(), lower.get_window_extent()
    figure: Any = upper.figure
    height = figure.bbox.height
    rows = slice(round(height - top.y1), round(height - bottom.y0))
    return x.astype(np.int64).clip(int(top.x0), int(top.x1) - 1), rows


# ---------------------------------------------------------------------------------- the frames


class Rewards(NamedTuple):
    """Of each frame, as far as there are any.

    Attributes:
        recorded: (T,); at the first frame none was met, whatever stands there.
        reconstructed: (draws, T).
        predicted: (draws, T).
    """

    recorded: npt.NDArray
    reconstructed: npt.NDArray
    predicted: npt.NDArray


class Film:
    """Frames of one episode: what stands still is drawn once, the rest is put over it.

    Args:
        panels: What was recorded, reconstructed, predicted; all of one size.
        reward: The same of rewards.
        context: C, frames seen before each prediction.
        open_loop: K, frames predicted.
        fps: Frames per second.
        heading: What stands before the time.
    """

    def __init__(
        self, panels: Sequence[Panel], reward: Rewards, *, context: int, open_loop: int,
        fps: float, heading: str = "",
    ) -> None:  # fmt: skip
        recorded = reward.recorded.astype(float)
        recorded[0] = np.nan
        self.panels, self.reward = panels, reward._replace(recorded=recorded)
        self.context, self.open_loop, self.fps, self.heading = context, open_loop, fps, heading
        tall, wide = panels[0](0).shape[:2]
        self.left = [MARGIN + BORDER + i * (wide + 2 * BORDER + MARGIN) for i in range(3)]
        self.top = TITLE + BORDER
        below = self.top + tall + BORDER
        width, height = self.left[2] + wide + BORDER + MARGIN, below + CAPTION + TITLE + STRIP
        height += TICKS
        self.width, self.height = width + width % 2, height + height % 2  # MP4 needs them even
        with styled():
            self.figure = Figure(figsize=inches(self.width, self.height), dpi=DPI)
            names = ("recorded", "reconstructed", "predicted")
            self.captions = []
            for x, name in zip(self.left, names, strict=True):
                self._text(x - BORDER, 4, name, fontweight="bold")
                caption = self._text(x - BORDER, below + 5, "", fontsize=8, animated=True)
                self.captions.append(caption)
            strip = self._strip(below + CAPTION)
            self.canvas = FigureCanvasAgg(self.figure)
            self.canvas.draw()
        self.background = self.canvas.copy_from_bbox(self.figure.bbox)
        self.columns, self.rows = _bar(strip, strip, np.arange(len(recorded)) / fps)

    def __len__(self) -> int:
        return len(self.reward.recorded)

    def frame(self, t: int) -> Pixels:
        """Frame t, (height, width, 3)."""
        self.canvas.restore_region(self.background)
        for caption, text in zip(self.captions, self.words(t), strict=True):
            caption.set_text(text)
            self.figure.draw_artist(caption)
        pixels = np.asarray(self.canvas.buffer_rgba())[..., :3].copy()
        ahead = self._ahead(t) > 0
        frames = ((QUIET, 1), (QUIET, 1), (OPEN_LOOP, BORDER) if ahead else (QUIET, 1))
        for x, panel, (colour, b) in zip(self.left, self.panels, frames, strict=True):
            shown, y = panel(t), self.top
            tall, wide = shown.shape[:2]
            pixels[y - b : y + tall + b, x - b : x + wide + b] = rgb(colour)
            pixels[y : y + tall, x : x + wide] = shown
        pixels[self.rows, self.columns[t]] = 0
        return pixels

    def words(self, t: int) -> tuple[str, str, str]:
        """Under the panels: time, what is seen, and the reward."""
        seen, ahead, r = t % (self.context + self.open_loop) + 1, self._ahead(t), self.reward
        if ahead:
            now = f"open loop, {ahead} of {self.open_loop} ahead"
        else:
            now = f"sees frame {seen} of {self.context}"
        digits = 1 if self.fps <= 10 else 2
        return (
            f"{self.heading}{t / self.fps:.{digits}f} s\n{self._reward(r.recorded[t])}",
            f"sees every frame\n{self._reward(r.reconstructed[:, t].mean())}",
            f"{now}\n{self._reward(r.predicted[:, t].mean())}",
        )

    def _reward(self, value: float) -> str:
        """A reward, three significant digits of the largest that was recorded."""
        if np.isnan(value):
            return "reward –"
        largest = max(np.nanmax(abs(self.reward.recorded)), 1e-6)
        digits = max(0, 2 - math.floor(math.log10(largest)))
        return f"reward {round(value, digits) + 0.0:.{digits}f}".replace("-", "−")

    def _ahead(self, t: int) -> int:
        """Frames since the last one seen; 0 where it is seen."""
        return max(0, t % (self.context + self.open_loop) - self.context + 1)

    def _text(self, x: float, y: float, text: str, **look: Any) -> Any:
        """Text whose upper left corner is at pixel (x, y)."""
        return self.figure.text(x / self.width, 1 - y / self.height, text, va="top", **look)

    def _strip(self, top: int) -> Axes:
        """Rewards over time, under pixel row ``top``."""
        r, frames, part = self.reward, len(self), self.context + self.open_loop
        self._text(MARGIN, top + 4, "reward", fontweight="bold", fontsize=8)
        bottom, wide = self.height - top - TITLE - STRIP, self.width - SCALE - 2 * MARGIN
        axis = self.figure.add_axes((
            SCALE / self.width, bottom / self.height, wide / self.width, STRIP / self.height
        ))  # fmt: skip
        time = np.arange(frames) / self.fps
        for first in range(0, frames, part):
            last = min(first + self.context, frames) - 1  # of those seen
            _shade(axis, time[first : last + 1])
            ahead = slice(last, min(first + part, frames))
            if ahead.stop > last + 1:
                _band(axis, time[ahead], r.predicted[:, ahead], OPEN_LOOP)
        _line(axis, time, r.recorded, RECORDED, 1)
        axis.set_xlim(*_ends(time))
        axis.set_ylim(*_limits(r.recorded, r.predicted.mean(0)))
        axis.yaxis.set_major_locator(MaxNLocator(3))
        axis.tick_params(labelsize=7)
        axis.set_xlabel("seconds", fontsize=8)
        handles = [
            Line2D([], [], color=RECORDED, lw=1, label="recorded"),
            Line2D([], [], color=OPEN_LOOP, lw=1.4, label="predicted"),
            Patch(color=OPEN_LOOP, alpha=0.3, lw=0, label="90 % of draws"),
            Patch(color=SEEN, lw=0, label="frames seen"),
        ]
        corner = 1 - MARGIN / self.width, 1 - (top + 4) / self.height
        self.figure.legend(
            handles=handles, loc="upper right", bbox_to_anchor=corner, ncols=4, fontsize=8,
            handlelength=1.2, columnspacing=1.2, borderpad=0, borderaxespad=0,
        )  # fmt: skip
        return axis


def inches(width: int, height: int) -> tuple[float, float]:
    """Size of a figure in pixels, as matplotlib has it."""
    return width / DPI, height / DPI
