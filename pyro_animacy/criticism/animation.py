"""Recorded and generated motion side by side, as an animated GIF: no script to run."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import LineCollection, PathCollection
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from pyro_animacy.criticism.aligned import DIMS, data_units
from pyro_animacy.criticism.gif import Pixels, delay, save_gif
from pyro_animacy.criticism.plots import one_draw
from pyro_animacy.criticism.style import (
    QUIET,
    body_legend,
    body_looks,
    frame_panel,
    styled,
    view,
)
from pyro_animacy.data.windows import evenly

FRAMES = 110  # at most, which keeps a file under a megabyte
SECONDS = (2.5, 8.0)  # shortest and longest play
TRAIL = 2.0  # seconds of play that a trail lasts
SMOOTH = 0.5  # seconds that the time courses of scores are running means over
DPI = 144
COLOURS = 96  # of an animation


@dataclass(frozen=True)
class Pace:
    """Which frames of a recording are shown, and how fast.

    Attributes:
        frames: indices of the recorded frames shown.
        delay: milliseconds each is shown.
        tempo: played seconds are recorded seconds divided by this.
    """

    frames: np.ndarray
    delay: int
    tempo: float


def pace(length: int, fps: float) -> Pace:
    """A play of `length` frames at `fps` that lasts SECONDS and has at most FRAMES frames."""
    stride = max(1, int(np.ceil(length / FRAMES)))
    frames = np.arange(0, length, stride)
    seconds = float(np.clip(length / fps, *SECONDS))
    shown = delay(seconds / len(frames))
    return Pace(frames, shown, stride / fps / (shown / 1000))


def animate(observed: xr.Dataset, generated: xr.DataArray, trajectory: str) -> bytes:
    """The recording beside the first draw of it, bodies as markers with fading trails.

    Args:
        observed: recording from `align`.
        generated: (chain, draw, trajectory, time, body, space) from `align`.
        trajectory: which to show.

    Returns:
        A GIF file, looping.
    """
    recorded = observed["position"].sel(trajectory=trajectory).transpose(*DIMS[1:]).values
    panels = [recorded, one_draw(generated, trajectory, 0)]
    length = _length(recorded)
    panels = [np.where(np.isfinite(recorded), panel, np.nan)[:length] for panel in panels]
    fps, bodies = float(observed.attrs["fps"]), [*map(str, observed["body"].values)]
    play = pace(length, fps)
    trail = trail_frames(play, length)
    with styled():
        figure = Figure(
            figsize=(0.1 + 2.15 * len(panels), 2.95),
            dpi=DPI,
            layout=ConstrainedLayoutEngine(h_pad=0.06),
        )
        axes = figure.subplots(1, len(panels), squeeze=False)[0]
        low, high = view(*panels)
        for index, axis in enumerate(axes):
            axis.set_title("recorded" if index == 0 else "generated", fontweight="bold")
            grid = frame_panel(axis, low, high)
        axes[0].set_xlabel(f"grid {grid:g} {data_units(observed)}", fontsize=8, loc="left")
        body_legend(figure, bodies)
        clock = axes[-1].text(1, -0.03, "", transform=axes[-1].transAxes, ha="right", va="top")
        clock.set(fontsize=8, animated=True)
        scenes = [Scene(axis, bodies) for axis in axes]

        def show(frame: int) -> None:
            for scene, panel in zip(scenes, panels, strict=True):
                scene.show(panel, frame, trail)
            clock.set_text(f"{frame / fps:.1f} s{_tempo(play.tempo)}")
            clock.axes.draw_artist(clock)

        return film(figure, play, show)


def animate_scores(
    observed: xr.Dataset, scores: xr.Dataset, trajectory: str, measures: Mapping[str, str]
) -> bytes:
    """The recording beside the time courses of its scores, a cursor on the frame that is shown.

    Args:
        observed: recording, `position` (trajectory, time, body, space).
        scores: the measures, (time, body), of the same frames of this trajectory.
        trajectory: which to show.
        measures: titles by the name of the measure, one panel each.

    Returns:
        A GIF file, looping.
    """
    recorded = observed["position"].sel(trajectory=trajectory).transpose(*DIMS[1:]).values
    length, fps = _length(recorded), float(observed.attrs["fps"])
    bodies = [*map(str, observed["body"].values)]
    recorded = recorded[:length]
    play = pace(length, fps)
    trail = trail_frames(play, length)
    seconds = np.arange(length) / fps
    with styled():
        figure = Figure(figsize=(4.4, 2.95), dpi=DPI, layout=ConstrainedLayoutEngine(h_pad=0.06))
        grid = figure.add_gridspec(len(measures), 2, width_ratios=(1, 1))
        axis = figure.add_subplot(grid[:, 0])
        axis.set_title("recorded", fontweight="bold")
        step = frame_panel(axis, *view(recorded))
        axis.set_xlabel(f"grid {step:g} {data_units(observed)}", fontsize=8, loc="left")
        body_legend(figure, bodies)
        scene = Scene(axis, bodies)
        strips, cursors = [], []
        for row, (name, title) in enumerate(measures.items()):
            strip = figure.add_subplot(grid[row, 1])
            courses = scores[name].transpose("time", "body").values
            _draw_courses(strip, seconds, courses[:length], smooth_frames(fps), bodies)
            strip.set_title(title, loc="left", fontsize=8)
            strips.append(strip)
            cursors.append(strip.axvline(0, color="black", lw=1, animated=True))
        strip.set_xlabel(f"seconds{_tempo(play.tempo)}", fontsize=8)

        def show(frame: int) -> None:
            scene.show(recorded, frame, trail)
            for strip, cursor in zip(strips, cursors, strict=True):
                cursor.set_xdata([seconds[frame]] * 2)
                strip.draw_artist(cursor)

        return film(figure, play, show)


def smooth_frames(fps: float) -> int:
    """Frames that the time courses of scores are running means over."""
    return max(1, round(SMOOTH * fps))


def _draw_courses(
    axis: Axes, seconds: np.ndarray, courses: np.ndarray, width: int, bodies: Sequence[str]
) -> None:
    """A line a body of (time, body) `courses`, each a running mean over `width` frames."""
    axis.axhline(0, color=QUIET, lw=0.8)
    axis.tick_params(labelsize=7)
    drawn = []
    for (colour, _), values in zip(body_looks(bodies), courses.T, strict=True):
        mean = pd.Series(values).rolling(width, center=True, min_periods=1).mean()
        smooth = np.where(np.isfinite(values), mean, np.nan)
        axis.plot(seconds, smooth, color=colour, lw=1.2)
        drawn.append(smooth[np.isfinite(smooth)])
    values = np.concatenate(drawn)
    if values.size:  # a few steps of hundreds of nats would flatten all others
        low, high = np.quantile(values, (0.02, 0.98))
        pad = 0.15 * max(high - low, 1e-6)
        axis.set_ylim(min(low - pad, -pad), max(high + pad, pad))


def _length(recorded: np.ndarray) -> int:
    """Frames up to the last that shows a body."""
    seen = np.isfinite(recorded).any((-1, -2))
    return int(np.flatnonzero(seen)[-1]) + 1 if seen.any() else 1


def trail_frames(play: Pace, length: int) -> int:
    """Recorded frames that a trail goes back."""
    return max(2, round(TRAIL / (play.delay / 1000) * (play.frames[1] if length > 1 else 1)))


def film(figure: Figure, play: Pace, show: Callable[[int], None]) -> bytes:
    """The frames of a figure: `show` draws the moving artists of each on a kept background."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    background = canvas.copy_from_bbox(figure.bbox)
    images = []
    for frame in play.frames:
        canvas.restore_region(background)
        show(int(frame))
        images.append(np.asarray(canvas.buffer_rgba())[..., :3].copy())
    return gif(images, play.delay)


def _tempo(tempo: float) -> str:
    return "" if abs(tempo - 1) < 0.15 else f"  (×{tempo:.2g} speed)"


class Scene:
    """The moving artists of one panel: redrawn on a kept background, ten times faster than all."""

    def __init__(self, axis: Axes, bodies: Sequence[str]) -> None:
        self.axis, self.looks = axis, body_looks(bodies)
        self.trails = [LineCollection([], linewidths=2.2, capstyle="butt") for _ in bodies]
        self.markers: list[PathCollection] = []
        for (colour, marker), trail in zip(self.looks, self.trails, strict=True):
            trail.set_animated(True)
            axis.add_collection(trail, autolim=False)
            self.markers.append(
                axis.scatter([], [], s=70, c=colour, marker=marker, edgecolors="white", zorder=5)
            )
            self.markers[-1].set_animated(True)

    def show(self, position: np.ndarray, frame: int, trail: int) -> None:
        """Draw `position` (time, body, 2) at `frame`, with the `trail` frames before it."""
        past = position[max(0, frame - trail) : frame + 1]
        fade = np.linspace(0, 0.8, trail + 1)[-len(past) :][1:]
        for body, (line, marker) in enumerate(zip(self.trails, self.markers, strict=True)):
            path = past[:, body]
            colours = np.tile(to_rgba(self.looks[body][0]), (len(path) - 1, 1))
            colours[:, 3] = fade
            line.set_segments(list(np.stack([path[:-1], path[1:]], axis=1)))
            line.set_color(list(colours))
            marker.set_offsets(path[-1:])
            self.axis.draw_artist(line)
        for marker in self.markers:
            self.axis.draw_artist(marker)


def gif(frames: Sequence[Pixels], milliseconds: int) -> bytes:
    """Frames of a figure as a GIF file, in few colours."""
    some = [frames[index] for index in evenly(len(frames), 4)]
    with io.BytesIO() as buffer:
        save_gif(buffer, frames, some, milliseconds, colours=COLOURS)
        return buffer.getvalue()
