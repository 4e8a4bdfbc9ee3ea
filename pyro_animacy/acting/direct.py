"""Directed displays: motion that pursues a goal and otherwise goes on as a fitted run moves.

A display is the run's own free motion whose chances are moved by u_t, the controls of the plan:

    eps_t = u_t + xi_t,       xi_t ~ N(0, I)        u = 0 is free generation
    z_t = mu_p(c_t, h_t) + sigma_p(c_t, h_t) eps^z_t                    what the agents choose
    a_t = mu_pi(c_t, h_t, z_t) + sigma_pi(c_t, h_t, z_t) eps^a_t        what comes of it
    s_{t+1} = s_t + a_t

(where bodies may rest, each has one more, and rests where Phi(eps^r_t) < rho), so that a step comes
from q = N(mu + sigma u_t, sigma^2): a residual, as the guide of a ControlVAE adds to its prior,
here chosen by a goal. What it costs is how far q leads from the run, in nats:

    KL(q || p) = |u_t|^2 / 2 = -log N(eps = u_t; 0, I) + log N(0; 0, I)

`pyro_animacy.acting.planners.plan` looks for the best H controls; the first is taken, and the
search goes on from the others. While planning, chance is left out (xi = 0):

    V(u) = sum_{k=0..H-1} [ R(s_{t+k}, a_{t+k}, delta_{t+k}) - weight |u_{t+k}|^2 / 2 ]

    s_t --u_t--> a_t --> s_{t+1} --u_{t+1}--> a_{t+1} --> ... s_{t+H}       imagined, at every t
          delta_t              delta_{t+1}          the display's deviation, drawn before it begins

R is worth what `pyro_animacy.acting.goals` says of goal, heading and deviation delta, which is
uniform within the subtlety and held for 170 ms.

Yao et al., ControlVAE, 2022, control a character by choosing z; the cost is that of
Todorov, Efficient computation of optimal actions, PNAS 106(28), 2009. That the policy's chance is
moved too is ours: a learned policy scale may leave the latent little to say (docs/directing.md).
"""

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
import xarray as xr
from matplotlib.figure import Figure
from torch import Tensor

from pyro_animacy.acting.goals import Goal, goal_of, heading_error
from pyro_animacy.acting.planners import PlannerConfig, plan
from pyro_animacy.criticism.animation import Scene, film, pace, trail_frames
from pyro_animacy.criticism.style import body_legend, frame_panel, styled, view
from pyro_animacy.data.netcdf import save_netcdf
from pyro_animacy.data.schema import agents, make_trajectories
from pyro_animacy.data.windows import Windows, dequantised
from pyro_animacy.errors import RunError, how_many, require
from pyro_animacy.infer.checkpoint import write_atomically
from pyro_animacy.infer.predict import predict
from pyro_animacy.infer.run import Run, check_kind, suited
from pyro_animacy.infer.score import (
    DEQUANTISE_HELDOUT,
    bounds,
    least_context,
    scoring_windows,
)
from pyro_animacy.infer.steps import needs_gaussian_latent, window_steps
from pyro_animacy.infer.traced import no_validation
from pyro_animacy.models.program import HeldResidual, Memory
from pyro_animacy.models.scene import SceneModel
from pyro_animacy.progress import tqdm
from pyro_animacy.resting import chosen

Floats = npt.NDArray[np.float64]
HOLD = 0.17  # seconds that a deviation is held (Gao, Newman & Scholl 2009)
SHOWN = 4  # displays in the animation


@dataclass(frozen=True)
class DirectConfig:
    """Options of directed displays.

    Args:
        weight: What a nat of KL to the run's own motion costs; to go straight for the goal is worth
            a half each step.
        steer: What the plan moves: the ``latent`` alone, or also the chance of the policy.
        noise: Standard deviation of xi in the displacement of the body that pursues the goal. All
            other chances have 1, as in free motion; with 1 here an unsteered display is free.
        planner: Options of the search.
    """

    weight: float = 0.2
    steer: Literal["latent", "latent_and_policy"] = "latent_and_policy"
    noise: float = 0.5
    planner: PlannerConfig = field(
        default_factory=lambda: PlannerConfig(
            method="mppi", horizon=4, iterations=3, candidates=256, temperature=1.0, warm_start=True
        )
    )

    def __post_init__(self) -> None:
        """Check the values.

        Raises:
            ConfigError: If a value cannot be used; the message names it.
        """
        require(
            "direct.",
            vars(self),
            ("weight", self.weight >= 0, "0 or more"),
            ("noise", 0 < self.noise <= 1, "in (0, 1]"),
            (
                "steer",
                self.steer in ("latent", "latent_and_policy"),
                "latent or latent_and_policy",
            ),
        )


class Belief(NamedTuple):
    """Where a display is: all that bears on how it goes on.

    Attributes:
        state: s_t (..., D).
        moves: The ``history - 1`` displacements before it, newest first, each (..., D).
        memory: m_{t-1}.
        low: The walls, (..., D); minus infinity where there are none.
        high: Likewise.
    """

    state: Tensor
    moves: tuple[Tensor, ...]
    memory: Memory
    low: Tensor
    high: Tensor

    def repeated(self, times: int) -> "Belief":
        """Every display so many times, one after the other: (times x E, ...)."""

        def of(x: Tensor) -> Tensor:
            return x.expand(times, *x.shape).flatten(0, 1)

        moves, memory = tuple(of(a) for a in self.moves), Memory(*(of(x) for x in self.memory))
        return Belief(of(self.state), moves, memory, of(self.low), of(self.high))


class Imagined(NamedTuple):
    """Steps of candidates: s_t and a_t, (H, J, E, bodies, 2), and the controls (H, J, E, U)."""

    position: Tensor
    moves: Tensor
    controls: Tensor


class Directed:
    """A model of scenes whose chances are chosen: what `plan` plans with.

    Args:
        model: The model; its latent is Gaussian.
        axes: Coordinates of each body.
    """

    def __init__(self, model: SceneModel, axes: int = 2) -> None:
        needs_gaussian_latent(model)
        self.model, self.axes = model, axes
        # A, chances of the policy: of each coordinate, and of each body that may rest
        self.chances = model.state_size + model.config.rests * (model.state_size // axes)

    def begin(self, frames: Tensor) -> Belief:
        """Where displays begin after the frames (history, E, D); nothing is remembered."""
        model, s, moves = self.model, frames[-1], frames.diff(dim=0).flip(0)
        return Belief(s, tuple(moves), model.start(s.shape[:-1]), *model.walls(s))

    def step(self, belief: Belief, eps: Tensor) -> Belief:
        """The next frame, given eps_t (..., Z + A), or (..., Z) for the mean of the policy."""
        model, (s, moves, m, low, high) = self.model, belief
        z, of_policy = eps.split((model.latent_size, eps.shape[-1] - model.latent_size), -1)
        c = model.context(s, list(moves))
        with HeldResidual(z):
            m = model.advance("latent", c, m, None)
        pi = model.policy(c, m)
        a = chosen(pi, of_policy) if of_policy.shape[-1] else pi.mean
        a = (s + a).clamp(low, high) - s  # the displacement that the walls leave
        return Belief(s + a, (a, *moves)[: len(moves)], m, low, high)

    def imagine(self, belief: Belief, controls: Tensor) -> Imagined:
        """Roll on from E displays under controls (H, J, E, U), without chance; U = Z or Z + A."""
        J, E = controls.shape[1:3]
        now, path = belief.repeated(J), []
        for u in controls.flatten(1, 2):
            path.append(now.state)
            now = self.step(now, u)
        x = torch.stack([*path, now.state]).unflatten(1, (J, E)).unflatten(-1, (-1, self.axes))
        return Imagined(x[:-1], x.diff(dim=0), controls)


def direct(
    run: Run,
    *,
    objective: str,
    subtlety: float = 0.0,
    frames: int = 200,
    displays: int = 8,
    seed: int = 0,
    recordings: xr.Dataset,
    config: DirectConfig | None = None,
    progress: bool = True,
) -> xr.Dataset:
    """Make displays in which one body pursues a goal, from moments of recordings on.

    Args:
        run: A fitted run of a model of scenes with a Gaussian latent.
        objective: ``name:A->B``: A is to chase, flee, follow or guard B.
        subtlety: In degrees, from 0 to 180; see the top of this module.
        frames: Of each display, the first as recorded.
        displays: Number of displays.
        seed: Of where they begin, their deviations and their chance.
        recordings: Of the bodies the run was fitted to; say what speed is typical.
        config: The options.
        progress: Show a progress bar.

    Returns:
        Trajectories in the schema of `pyro_animacy.data.schema`, labelled by the objective, with
        the coordinate ``subtlety`` (trajectory), and by (trajectory, time), at the time of s_t:
        ``heading_error`` and ``deviation`` (delta) in degrees, ``kl`` in nats.

    Raises:
        ConfigError: If an option cannot be used, or the run's model has no Gaussian latent.
        DataError: If the recordings do not suit the run.
    """
    o = config or DirectConfig()
    _check(run, subtlety, frames, displays, seed)
    goal = goal_of(objective, run.card, recordings)
    model, scale, T = Directed(run.model, len(run.card.axes)), run.card.scale, frames - 1
    recordings, history = suited(run.card, recordings), run.model.config.history
    moments = Windows(recordings, frames=history, context=history, scale=scale, complete=True)
    with torch.no_grad(), no_validation(), torch.random.fork_rng():
        torch.manual_seed(seed)
        several = -(-displays // len(moments))
        which = torch.randperm(len(moments)).repeat(several)[:displays]
        parameter = next(run.model.parameters(), run.model.view)
        before = moments.batch(which).position.to(parameter)
        hold = max(1, round(HOLD * run.card.fps))
        held = torch.rand(-(-(T + o.planner.horizon) // hold), displays).to(parameter)
        deviation = ((2 * held - 1) * math.radians(subtlety)).repeat_interleave(hold, 0)
        path, kl = _pursue(model, before, goal, deviation, T, o, progress)
    x = path.double().cpu().numpy().reshape(frames, displays, len(run.card.bodies), -1)
    x = x.transpose(1, 0, 2, 3)
    ended = np.full((displays, 1), np.nan)  # of the last frame no step is taken
    # A body at rest takes steps of exactly zero, as in a recording, whose density means nothing
    # below its resolution.
    resolution = float(recordings["resolution"].median()) if run.model.config.rests else 0.0
    found = {
        "heading_error": (heading_error(x, goal), "degrees"),
        "deviation": (deviation[:T].rad2deg().T.double().cpu().numpy(), "degrees"),
        "kl": (kl.T.double().cpu().numpy(), "nats"),
    }
    out = make_trajectories(
        x * scale.unit + np.asarray(scale.center), fps=run.card.fps, body=run.card.bodies,
        units=run.card.units, label=[objective] * displays, resolution=resolution,
        trajectory=[f"{goal.name}_{subtlety:g}_{seed}_{i}" for i in range(displays)],
        animate=agents(recordings).tolist(),
        source=f"{objective}, directed in {run.path.name}",
    ).assign_coords(subtlety=("trajectory", np.full(displays, float(subtlety))))  # fmt: skip
    return out.assign(
        {
            name: (("trajectory", "time"), np.hstack([values, ended]), {"units": units})
            for name, (values, units) in found.items()
        }
    )


def _check(run: Run, subtlety: float, frames: int, displays: int, seed: int) -> None:
    """Raise ConfigError for what cannot be asked of the run."""
    check_kind(run.card, "scenes", run.path)
    least = least_context(run.model.config.history) + 1
    given = {"subtlety": subtlety, "frames": frames, "displays": displays, "seed": seed}
    require(
        "",
        given,
        ("subtlety", 0 <= subtlety <= 180, "from 0 to 180 degrees"),
        ("frames", frames >= least, f"at least {least}, so that a step can be scored"),
        ("displays", displays >= 1, "at least 1"),
        ("seed", 0 <= seed < 2**63, "from 0 to 2^63 - 1"),
    )


def _pursue(
    model: Directed,
    before: Tensor,
    goal: Goal,
    deviation: Tensor,
    steps: int,
    o: DirectConfig,
    progress: bool,
) -> tuple[Tensor, Tensor]:
    """Plan and take so many steps: s_{0..T} (T + 1, E, D), and KL(q || p) of each step (T, E).

    The chance of the mover's displacement is narrowed to the deviation ``noise``, at a cost of
    (noise^2 - 1 - log noise^2) / 2 nats for each of its coordinates.
    """
    Z, A, H = model.model.latent_size, model.chances, o.planner.horizon
    E, U = before.shape[1], Z if o.steer == "latent" else Z + A
    spread = before.new_ones(Z + A)
    own = Z + model.axes * goal.mover
    spread[own : own + model.axes] = o.noise
    narrowed = (spread.square() - 1 - 2 * spread.log()).sum() / 2
    belief, start = model.begin(before), before.new_zeros(H, E, U)
    path, kl = [belief.state], []
    for t in tqdm(range(steps), desc="direct", unit="step", disable=not progress, delay=1):
        delta = deviation[t : t + H, None]

        def value(imagined: Imagined, delta: Tensor = delta) -> Tensor:
            reward = goal.reward(imagined.position, imagined.moves, delta)
            return reward - o.weight * imagined.controls.square().sum(-1) / 2

        found = plan(model, belief, value, start, o.planner, bound=None)
        start = found.moved_on() if o.planner.warm_start else torch.zeros_like(start)
        u = found.controls[0]
        xi = torch.randn(E, Z + A).to(before) * spread
        belief = model.step(belief, xi + torch.cat([u, u.new_zeros(E, Z + A - U)], -1))
        path.append(belief.state)
        kl.append(u.square().sum(-1) / 2 + narrowed)
    return torch.stack(path), torch.stack(kl)


def nats_per_step(run: Run, trajectories: xr.Dataset, draws: int = 64) -> Floats:
    """Mean log density of each trajectory's steps under a run, as the held-out score takes it.

    Args:
        run: The run.
        trajectories: Of its bodies.
        draws: K of IWAE.

    Returns:
        (trajectory,) nats per step, per data unit; NaN where none of its steps can be scored.
    """
    scale = run.card.scale
    data = dequantised(suited(run.card, trajectories), DEQUANTISE_HELDOUT)
    windows = scoring_windows(data, scale, run.model.config.history)
    with torch.no_grad(), torch.random.fork_rng():
        torch.manual_seed(0)
        steps = window_steps(run.guide, windows, torch.arange(len(windows)), draws)
        found = torch.cat([bounds(of)[0][-1] for _, of in steps]).double().cpu()
    found = found - scale.log_jacobian(windows.coordinates)
    row, N = windows.index[:, 0], trajectories.sizes["trajectory"]
    total, count = (torch.bincount(row, w, minlength=N) for w in (found, torch.ones_like(found)))
    return (total / count).numpy()


def summary_text(run: Run, displays: xr.Dataset, seed: int = 0) -> str:
    """What came out, beside free motion from the same starts, for people to read.

    Args:
        run: The run that was directed.
        displays: Of `direct`.
        seed: Of the free motion.
    """
    history, frames = run.model.config.history, displays.sizes["time"]
    free = predict(run, displays, draws=1, horizon=frames - history, seed=seed, progress=False)
    drawn = free["posterior_predictive"].dataset["position"].values[0, 0]
    unled = displays.assign(position=displays["position"].copy(data=drawn))
    subtlety, error = float(displays["subtlety"][0]), displays["heading_error"].values[:, :-1]
    heldout = run.summary.get("heldout_nats_per_step")
    known = "" if heldout is None else f", held-out recordings {heldout:.2f}"
    led, free_nats = (nats_per_step(run, x).mean() for x in (displays, unled))
    return "\n".join(
        [
            f"{how_many(len(error), 'display')} of {how_many(frames, 'frame')}, "
            f"{frames / run.card.fps:g} s: {displays['label'].values[0]}, subtlety {subtlety:g} "
            "degrees",
            f"  mean heading error      {np.nanmean(error):.1f} degrees (asked for "
            f"{subtlety / 2:g}, half the subtlety), over the {np.isfinite(error).mean():.0%} of "
            "steps with a heading",
            f"  KL to the run's prior   {np.nanmean(displays['kl'].values):.2f} nats per step "
            "(free motion 0)",
            f"  under the run           {led:.2f} nats per step (free motion {free_nats:.2f}"
            f"{known})",
        ]
    )


def save(displays: xr.Dataset, out: str | Path, *, overwrite: bool = False) -> list[Path]:
    """Write ``displays.nc`` and ``displays.gif`` to a folder.

    Args:
        displays: Of `direct`.
        out: The folder; made if it is not there.
        overwrite: Replace them where they exist.

    Returns:
        The two files.

    Raises:
        RunError: If they exist, or cannot be written.
    """
    arrays, film = (Path(out) / name for name in ("displays.nc", "displays.gif"))
    for file in (arrays, film):
        if file.exists() and not overwrite:
            raise RunError(f"{file}: exists; choose another folder, or give --overwrite")
    write_atomically(arrays, lambda to: save_netcdf(displays, to))
    write_atomically(film, lambda to: to.write_bytes(animate_displays(displays)))
    return [arrays, film]


def animate_displays(displays: xr.Dataset) -> bytes:
    """The first displays side by side, bodies as markers with fading trails: a GIF, looping."""
    panels = list(displays["position"].values[:SHOWN])
    frames, fps = displays.sizes["time"], float(displays.attrs["fps"])
    play = pace(frames, fps)
    trail = trail_frames(play, frames)
    with styled():
        figure = Figure(figsize=(0.1 + 2.15 * len(panels), 2.95), dpi=144, layout="constrained")
        axes = figure.subplots(1, len(panels), squeeze=False)[0]
        for axis in axes:
            grid = frame_panel(axis, *view(*panels))
        title = f"{displays['label'].values[0]}, subtlety {float(displays['subtlety'][0]):g}°"
        figure.suptitle(title, fontsize=9)
        axes[0].set_xlabel(f"grid {grid:g} {displays.attrs['units']}", fontsize=8, loc="left")
        bodies = [str(body) for body in displays["body"].values]
        body_legend(figure, bodies)
        scenes = [Scene(axis, bodies) for axis in axes]

        def show(frame: int) -> None:
            for scene, panel in zip(scenes, panels, strict=True):
                scene.show(panel, frame, trail)

        return film(figure, play, show)
