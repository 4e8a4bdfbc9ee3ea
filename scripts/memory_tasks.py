"""Why a recurrent state-space model: three models on a task of memory and a task of branching.

    .venv/bin/python scripts/memory_tasks.py [--out docs/images/memory_tasks.png]

Fits `deterministic`, `stochastic` and `rssm`, with the same options, to the scenes of
`pyro_animacy.data.tasks`; prints what each expected of the decisive step beside the exact values,
and draws what each forecast there. Fits are kept in `--runs` and used again.
"""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pyro_animacy import FitConfig, Run, StateSpaceConfig, TrainConfig, fit, predict
from pyro_animacy.criticism.style import (
    BODY_COLOURS,
    QUIET,
    WIDTH,
    png,
    styled,
)
from pyro_animacy.data import tasks
from pyro_animacy.data.windows import Scale, Windows
from pyro_animacy.infer.score import bounds
from pyro_animacy.infer.steps import window_steps
from pyro_animacy.nets import StackConfig

Floats = npt.NDArray[np.float64]

SIZES = {"deterministic": (64, 0), "stochastic": (0, 1), "rssm": (64, 1)}  # of h and z
CLASSES = 4  # of z. A posterior over classes can be exact; a Gaussian one is never half a Gaussian
DELAYS = (2, 5, 10, 20, 40)  # of the scenes of recall that are fitted, up to the one asked of
FITTED, HELDOUT = 2000, 400  # scenes
UPDATES = 1500


@dataclass(frozen=True)
class Task:
    """A kind of scenes, and the delay at which a model is asked of their decisive step.

    Args:
        name: ``recall`` or ``branching``.
        delay: Frames of rest before the call.
    """

    name: str
    delay: int = tasks.DELAY

    def scenes(self, trajectories: int, seed: int, delay: int | Sequence[int]) -> xr.Dataset:
        """So many scenes."""
        make = {"recall": tasks.recall, "branching": tasks.branching}[self.name]
        return make(trajectories, seed, delay)

    def fitted(self) -> xr.Dataset:
        """The scenes that a model is fitted to: of recall some have shorter delays."""
        shorter = [delay for delay in DELAYS if delay <= self.delay]
        return self.scenes(FITTED, 0, shorter if self.name == "recall" else self.delay)

    def heldout(self) -> xr.Dataset:
        """Those that it is asked of."""
        return self.scenes(HELDOUT, 1, self.delay)

    @property
    def jump(self) -> int:
        """The decisive frame."""
        return tasks.decisive_frame(self.delay)


TASKS = Task("recall"), Task("branching")


@dataclass(frozen=True)
class Outcome:
    """What a model expected of the decisive step of held-out scenes, and what came.

    Attributes:
        task: The task.
        model: Name of the model.
        log_density: Of what came, nats, of each scene (S,): the filter's estimate.
        drawn: Forecasts of the displacement, (draws, S, 2), in body lengths.
        came: The displacement, (S, 2).
        side: b, -1 or +1, (S,).
    """

    task: Task
    model: str
    log_density: Floats
    drawn: Floats
    came: Floats
    side: Floats

    def exact(self, knows: tasks.Knowledge) -> float:
        """Mean exact log density of what came, in nats."""
        return float(tasks.log_density(self.came, knows, self.side).mean())

    @property
    def near_a_branch(self) -> float:
        """Share of forecasts within three standard deviations of a branch."""
        return float(tasks.near_a_branch(self.drawn).mean())

    @property
    def right_side(self) -> float:
        """Share of forecasts to the side that came."""
        return float((np.sign(self.drawn[..., 0]) == self.side).mean())


def options(task: Task, model: str, unit: float, updates: int = UPDATES) -> FitConfig:
    """Small sizes, and the same training for all three; a window is a whole scene.

    Args:
        task: The task.
        model: Name of the model.
        unit: The scenes' root mean square displacement, in body lengths (`Scale.unit`).
        updates: Of the fit.
    """
    net, policy = StackConfig(hidden=64, layers=1), StackConfig(hidden=64, layers=2)
    memory_size, latent_size = SIZES[model]
    history, frames = 2, task.jump + 2 + tasks.REST
    return FitConfig(
        family=model,
        model=StateSpaceConfig(
            history=history, memory_size=memory_size, latent_size=latent_size, arena="open",
            memory_steps=frames - history,
            # no uniform share: at a scale of 0.05 the wrong side costs 800 nats. And that scale is
            # given: one that is learned lets a wide Gaussian explain both sides, and stays there
            classes=CLASSES, unimix=0.0, policy_scale=tasks.NOISE / unit,
            prior=net, posterior=net, policy=policy,
        ),
        train=TrainConfig(
            steps=updates, batch_size=64, window=frames - history, symmetry="none",
            learning_rate=3e-3, patience=None, evaluate_every=updates,
        ),
    )  # fmt: skip


def fitted(task: Task, model: str, runs: Path, updates: int = UPDATES) -> Run:
    """The run of a task and model, fitted if it is not there."""
    path = runs / f"{task.name}_{task.delay}_{model}"
    if (path / "summary.json").is_file():
        return Run.load(path)
    scenes = task.fitted()
    config = options(task, model, Scale.of(scenes).unit, updates)
    return fit(scenes, config, out=path, overwrite=True, progress=False)


def outcome(run: Run, task: Task, draws: int = 100) -> Outcome:
    """Ask a run what it expects of the decisive step of scenes that no fit has seen."""
    scenes, jump = task.heldout(), task.jump
    tree = predict(
        run, scenes, mode="forecast", context=jump + 1, horizon=1, draws=draws, progress=False
    )
    drawn = tree["predictions"].dataset["position"].values[0, :, :, jump + 1, 0]
    position = scenes["position"].values[:, :, 0]
    return Outcome(
        task=task, model=run.card.model,
        log_density=decisive_log_density(run, scenes, jump),
        drawn=drawn - position[:, jump],
        came=position[:, jump + 1] - position[:, jump],
        side=np.where(scenes["label"].values == tasks.SIDES[1], 1.0, -1.0),
    )  # fmt: skip


def decisive_log_density(run: Run, scenes: xr.Dataset, jump: int, draws: int = 64) -> Floats:
    """Log density of each scene's displacement at frame ``jump`` given all before, (S,) nats."""
    history, scale = run.card.config["history"], run.card.scale
    windows = Windows(scenes, frames=history + 1, context=history, scale=scale, complete=True)
    which = (windows.index[:, 1] == jump - history + 1).nonzero()[:, 0]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        steps = window_steps(run.guide, windows, which, draws)
        found = torch.cat([bounds(step)[0][0] for _, step in steps])
    return found.double().numpy() - 2 * np.log(scale.unit)  # per model unit -> per body length


def table(outcomes: Sequence[Outcome]) -> str:
    """The figures as a table in Markdown."""
    rows = [
        f"| {o.task.name} | `{o.model}` | {o.log_density.mean():.2f} | {o.exact('side'):.2f} "
        f"| {o.exact('branches'):.2f} | {o.exact('gaussian'):.2f} | {o.near_a_branch:.1%} "
        f"| {o.right_side:.1%} |"
        for o in outcomes
    ]
    head = (
        "| task | model | log density | exact, side known | exact, two branches "
        "| exact, one Gaussian | near a branch | right side |"
    )
    return "\n".join([head, "|---|---|---|---|---|---|---|---|", *rows])


def figure(outcomes: Sequence[Outcome]) -> Figure:
    """Where each model forecast the jump: a row for each task, a column for each model."""
    placed = {(o.task, o.model): o for o in outcomes}
    with styled():
        drawing = Figure(figsize=(WIDTH, 4.0), layout="constrained")
        axes = drawing.subplots(len(TASKS), len(SIZES), sharex=True, sharey=True)
        for row, task in zip(axes, TASKS, strict=True):
            for axis, model in zip(row, SIZES, strict=True):
                _panel(axis, placed[task, model])
            row[0].set_ylabel(f"{task.name}\nshare of forecasts")
        for axis, model in zip(axes[0], SIZES, strict=True):
            axis.set_title(model)
        axes[-1, 1].set_xlabel("jump along x (body lengths)")
        drawing.legend(
            *axes[0, 0].get_legend_handles_labels(),
            loc="outside lower center",
            ncols=3,
            columnspacing=1.0,
            handlelength=1.2,
        )
    return drawing


def _panel(axis: Axes, outcome: Outcome) -> None:
    """Forecasts of scenes that went right upwards, of those that went left downwards."""
    edges = np.linspace(-2.05, 2.05, 42)
    middle = (edges[1:] + edges[:-1]) / 2
    for side, colour in zip((1, -1), BODY_COLOURS, strict=False):
        where, name = outcome.side == side, tasks.SIDES[side]
        share = np.histogram(outcome.drawn[:, where, 0], edges)[0] / outcome.drawn[:, where, 0].size
        came = np.histogram(outcome.came[where, 0], edges)[0] / where.sum()
        axis.bar(middle, side * share, width=0.1, color=colour, label=f"forecast; went {name}")
        axis.stairs(
            side * came, edges, color="black", lw=0.8, label="what came" if side > 0 else None
        )
    axis.axhline(0, color=QUIET, lw=0.8)
    axis.set(xlim=(-2.05, 2.05), ylim=(-0.8, 0.8), xticks=(-1, 0, 1), yticks=(-0.5, 0, 0.5))
    axis.yaxis.set_major_formatter(lambda y, _: f"{abs(y):.0%}")


def main() -> None:
    """Fit, print the table, write the figure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("docs/images/memory_tasks.png"))
    parser.add_argument("--runs", type=Path, default=Path("runs/memory_tasks"), help="fits kept")
    parser.add_argument("--updates", type=int, default=UPDATES, help="of each fit")
    given = parser.parse_args()
    outcomes = []
    for task in TASKS:
        for model in SIZES:
            run = fitted(task, model, given.runs, given.updates)
            outcomes.append(outcome(run, task))
            print(f"{task.name}, {model}: {run.summary['train_seconds']:.0f} s", flush=True)
    print(table(outcomes))
    given.out.write_bytes(png(figure(outcomes), dpi=200))
    print(f"wrote {given.out}")


if __name__ == "__main__":
    main()
