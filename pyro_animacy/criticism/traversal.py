"""Latent traversals: what one dimension of the latent does to the motion, as paths and as a GIF."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Circle

from pyro_animacy.criticism.aligned import data_units
from pyro_animacy.criticism.animation import gif
from pyro_animacy.criticism.latent import ACTIVE, kl_per_step
from pyro_animacy.criticism.style import (
    WIDTH,
    body_looks,
    frame_panel,
    styled,
)
from pyro_animacy.criticism.wording import body_name
from pyro_animacy.data.windows import Windows
from pyro_animacy.errors import ConfigError, DataError
from pyro_animacy.infer.run import Run, check_kind, suited
from pyro_animacy.infer.steps import needs_gaussian_latent
from pyro_animacy.models.program import HeldResidual
from pyro_animacy.models.recorded import spread
from pyro_animacy.models.scene import RollOut

SECONDS = 1.0  # of a roll-out
SHOWN = 6  # bodies of a traversal, at most
REACH = 2.5  # prior standard deviations that a traversal goes to either side

Array = npt.NDArray[np.floating]


def traverse(
    run: Run, start_state: Array, past_actions: Array, dim: int, values: Array, steps: int
) -> Array:
    """Roll out in closed loop with one dimension of the residual held at each of some values.

    At every step z_t = mu_p(c_t) + sigma_p v e_dim and a_t = E pi(. | c_t, z_t): no noise, and the
    other dimensions at the prior mean. `SceneModel.roll_out` runs it, walls of the arena included.

    Args:
        run: the fitted run.
        start_state: s_0 (body, space), data units.
        past_actions: the ``history - 1`` displacements before it, newest first, (history - 1, body,
            space), data units.
        dim: which dimension of the latent, from 0.
        values: v (value,), in standard deviations of the prior.
        steps: number of steps.

    Returns:
        Positions (value, steps + 1, body, space), data units; the first is ``start_state``.

    Raises:
        ConfigError: if there is no such dimension, or no step.
        DataError: if the state or the actions are not of the model's shape, or not all observed.
    """
    rolled, start, here = _hold(run, start_state, past_actions, dim, values, steps)
    states = torch.stack([start, *rolled.state], 1)
    states = states.masked_fill(~spread(here, states.shape[-1]), torch.nan)
    position = states.double().cpu().numpy()
    shape = (len(values), steps + 1, *start_state.shape)
    return position.reshape(shape) * run.card.scale.unit + np.asarray(run.card.scale.center)


def policy_spread(
    run: Run, start_state: Array, past_actions: Array, dim: int, values: Array
) -> Array:
    """Standard deviation of each body's next displacement under pi(. | c_0, z_0), z_0 held.

    A dimension may say how sure the motion is rather than where it goes: paths of means do not
    show that. Root mean square over the axes.

    Args:
        run: the fitted run.
        start_state: as for `traverse`, like the others.
        past_actions: likewise.
        dim: likewise.
        values: likewise.

    Returns:
        (value, body), data units.

    Raises:
        ConfigError: as `traverse`.
        DataError: as `traverse`.
    """
    rolled, _, here = _hold(run, start_state, past_actions, dim, values, 1)
    variance = rolled.policy[0].variance.double().cpu().numpy()
    of_body = variance.reshape(len(values), *start_state.shape).mean(-1)
    there = spread(here, of_body.shape[1]).cpu().numpy()
    of_body[:, ~there] = np.nan
    return np.sqrt(of_body) * run.card.scale.unit


def _hold(
    run: Run, start_state: Array, past_actions: Array, dim: int, values: Array, steps: int
) -> tuple[RollOut, torch.Tensor, torch.Tensor]:
    """The roll-out of `traverse` in model units, its start (value, D), and who is there."""
    check_kind(run.card, "scenes", run.path)
    needs_gaussian_latent(run.model)
    config, scale, size = run.model.config, run.card.scale, run.model.latent_size
    if not 0 <= dim < size:
        raise ConfigError(f"dim is {dim}; the latent has dimensions 0 to {size - 1}")
    if steps < 1:
        raise ConfigError(f"steps is {steps}; it must be at least 1")
    body_space = (len(run.card.bodies), len(run.card.axes))
    wanted = {"start_state": body_space, "past_actions": (config.history - 1, *body_space)}
    given = {"start_state": start_state, "past_actions": past_actions}
    for name, shape in wanted.items():
        if given[name].shape != shape:
            raise DataError(f"{name} has shape {given[name].shape}; expected {shape}")
    seen = np.isfinite(np.stack([start_state, *past_actions])).all(0).reshape(run.card.parts, -1)
    here = torch.from_numpy(seen.all(-1))
    if not here.any():
        raise DataError("start_state and past_actions must be observed, of one body of a set")
    parameter = next(run.model.parameters())

    def tensor(x: Array) -> torch.Tensor:
        known = np.nan_to_num(x.reshape(-1))
        flat = torch.as_tensor(known, dtype=parameter.dtype, device=parameter.device)
        return flat.expand(len(values), -1)

    start = tensor((start_state - np.asarray(scale.center)) / scale.unit)
    residual = start.new_zeros(len(values), size)
    residual[:, dim] = torch.as_tensor(values).to(residual)
    with torch.no_grad(), HeldResidual(residual):
        actions = [tensor(a / scale.unit) for a in past_actions]
        here = here.to(start.device).expand(len(values), -1)
        return run.model.roll_out(start, actions, steps, here=here), start, here[0]


@dataclass(frozen=True)
class Traversal:
    """Paths from one recorded state, with one dimension of the residual held at each of `values`.

    Attributes:
        dim: the dimension, from 0.
        values: v (value,), prior standard deviations.
        past: what was recorded up to the state, (frame, body, space), data units.
        paths: from `traverse`, (value, steps + 1, body, space), data units; NaN of a body of a set
            that is not there, whose reach and length are 0.
        spread: from `policy_spread`, (value, body), data units, likewise.
        bodies: their names.
        fps: frames per second.
        units: of position.
    """

    dim: int
    values: Array
    past: Array
    paths: Array
    spread: Array
    bodies: tuple[str, ...]
    fps: float
    units: str

    def name(self, body: int) -> str:
        """How the body with this index is called."""
        return body_name(self.bodies[body])

    @property
    def reach(self) -> Array:
        """Distance (body,) between the ends of the paths of the least and of the greatest v."""
        return np.nan_to_num(np.linalg.norm(self.paths[-1, -1] - self.paths[0, -1], axis=-1))

    @property
    def length(self) -> Array:
        """Length (body,) of the path whose v is nearest 0."""
        path = self.paths[np.abs(self.values).argmin()]
        return np.nan_to_num(np.linalg.norm(np.diff(path, axis=0), axis=-1).sum(0))

    @property
    def widening(self) -> Array:
        """Greatest over least standard deviation (body,) of the policy over the values."""
        return np.nan_to_num(self.spread.max(0) / self.spread.min(0), nan=1.0)


def traversals(run: Run, dataset: xr.Dataset, use: xr.Dataset, *, dims: int = 3) -> list[Traversal]:
    """`traverse` the active dimensions with most KL, from a recorded state with much movement.

    The state is that of which one in a hundred moved more in the same time before: the greatest
    movement of all may be an error of tracking. A roll-out lasts SECONDS, at least one frame; half
    as long of the recorded past is shown.

    Args:
        run: the fitted run.
        dataset: the recordings.
        use: from `latent_use`.
        dims: how many dimensions, at most.

    Raises:
        DataError: if the recordings do not suit the model or hold no step.
    """
    dataset, history = suited(run.card, dataset), run.model.config.history
    windows = Windows(
        dataset, frames=history + 1, context=history, scale=run.card.scale, parts=run.card.parts
    )
    row, frame = windows.index.numpy().T
    frame = frame + history - 1
    steps = max(1, round(SECONDS * run.card.fps))
    position = dataset["position"].to_numpy()
    speed = np.nan_to_num(np.linalg.norm(np.diff(position, axis=1), axis=-1))
    travelled = np.pad(np.sqrt(speed).sum(-1).cumsum(1), ((0, 0), (1, 0)))  # one jump is not much
    moved = travelled[row, frame] - travelled[row, np.maximum(0, frame - steps)]
    best = np.argsort(moved, kind="stable")[int(0.99 * (len(moved) - 1))]
    x, t = position[row[best]], frame[best]
    actions = np.diff(x[t - history + 1 : t + 1], axis=0)[::-1]
    values = np.linspace(-REACH, REACH, 17)
    active = np.flatnonzero(use["activity"] > ACTIVE)
    total = kl_per_step(use)[active]
    return [
        Traversal(
            dim=int(dim), values=values, past=x[max(0, t - steps // 2) : t + 1],
            paths=traverse(run, x[t], actions, int(dim), values, steps),
            spread=policy_spread(run, x[t], actions, int(dim), values),
            bodies=run.card.bodies, fps=run.card.fps, units=data_units(dataset),
        )
        for dim in active[np.argsort(-total, kind="stable")][:dims]
    ]  # fmt: skip


def traversal_gif(traversal: Traversal) -> bytes:
    """The traversal swept from end to end and back: a panel a body that it turns most, one scale.

    Args:
        traversal: from `traversals`.

    Returns:
        A GIF file, looping: the recorded past in grey, the path for the present v in colour, those
        for the other values faint; the disc is one standard deviation of the policy's noise over
        the path, assuming it stays as at the first step and steps are independent.
    """
    past, paths, values = traversal.past, traversal.paths, traversal.values
    there = np.flatnonzero(np.isfinite(traversal.paths[0, 0]).all(-1))
    order = there[np.sort(np.argsort(-traversal.reach[there], kind="stable")[:SHOWN])]
    columns = min(3, len(order))
    noise = traversal.spread * math.sqrt(paths.shape[1] - 1)  # the steps' noise is independent
    rows = -(-len(order) // columns)
    every = np.concatenate([past, paths.reshape(-1, *past.shape[1:])])[:, order]
    low, high = np.nanmin(every, axis=0), np.nanmax(every, axis=0)  # (place, 2)
    centre, half = (low + high) / 2, 0.56 * float((high - low).max()) or 1.0
    looks = body_looks(traversal.bodies)
    with styled():
        side = WIDTH / columns
        figure = Figure(figsize=(WIDTH, 0.62 + (side + 0.08) * rows), dpi=100, layout="constrained")
        canvas = FigureCanvasAgg(figure)
        grid = figure.add_gridspec(rows + 1, columns, height_ratios=[side] * rows + [0.1])
        moving: list[Any] = []
        for place, body in enumerate(order):
            axis = figure.add_subplot(grid[divmod(place, columns)])
            colour, marker = looks[int(body)]
            step = frame_panel(axis, centre[place] - half, centre[place] + half)
            axis.set_title(traversal.name(int(body)), fontweight="bold")
            axis.plot(*past[:, body].T, color="#8c8c8c", lw=2.4)
            for path in paths[:: max(1, len(paths) // 10), :, body]:
                axis.plot(*path.T, color=colour, alpha=0.22, lw=0.9)
            moving += axis.plot([], [], color=colour, lw=2.4, animated=True)
            disc = Circle((0, 0), 0, color=colour, alpha=0.25, lw=0, animated=True)
            moving += [axis.add_patch(disc)]
            moving += axis.plot([], [], marker, color=colour, mec="white", ms=8, animated=True)
        knob = _slider(figure.add_subplot(grid[rows, :]), traversal, step)
        canvas.draw()
        background, images = canvas.copy_from_bbox(figure.bbox), []
        for index in [*range(len(values)), *range(len(values) - 2, 0, -1)]:
            canvas.restore_region(background)
            for place, body in enumerate(order):
                path = paths[index, :, body]
                line, disc, end = moving[3 * place : 3 * place + 3]
                line.set_data(*path.T)
                disc.set(center=path[-1], radius=noise[index, body])
                end.set_data(*path[-1:].T)
            knob.set_data([values[index]], [0])
            for artist in (*moving, knob):
                artist.axes.draw_artist(artist)
            images.append(np.asarray(canvas.buffer_rgba())[..., :3].copy())
    return gif(images, 90)


def _slider(axis: Axes, traversal: Traversal, step: float) -> Line2D:
    """An axis of v with a knob to be moved along it."""
    low, high = traversal.values[[0, -1]]
    axis.set(xlim=(low * 1.05, high * 1.05), ylim=(-1, 1), yticks=[])
    axis.spines["left"].set_visible(False)
    axis.set_xlabel(
        f"dimension {traversal.dim}, prior standard deviations  (grid {step:g} {traversal.units})",
        fontsize=8.5,
    )
    # Where it starts: without a place it would be laid out at the figure's corner.
    return axis.plot(low, 0, "o", color="black", ms=8, animated=True, clip_on=False)[0]
