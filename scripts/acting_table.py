"""What agents learn in minutes, and what their parts are worth: writes docs/acting-results.md.

    .venv/bin/python scripts/acting_table.py [--runs runs/acting] [--only chase] [--jobs 2]

Runs are kept in `--runs` and gone on with or used again, so that it can be stopped and started.
Each run has one thread, `--jobs` of them go at once. The figure has every evaluation of every run,
the table the episodes of a last evaluation on seeds that no run has seen.

    score = (return - random) / (true simulator - random)
"""

import argparse
import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib.pyplot as plt
import numpy as np
import yaml

from pyro_animacy.acting.agent import AtRandom, Controls, returned
from pyro_animacy.acting.config import ActConfig, act_preset
from pyro_animacy.acting.evaluate import SIMULATED, Simulated, standard_error
from pyro_animacy.acting.planners import PlannerConfig
from pyro_animacy.acting.run import evaluation, load_agent, make_env
from pyro_animacy.infer.traced import no_validation

EPISODES, SEED = 10, 1000  # of the last evaluation
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")


class Task(NamedTuple):
    """An environment, and the options that all agents have there."""

    name: str
    environment: str
    options: dict[str, Any]
    simulated: PlannerConfig
    preset: str = "small"


class Trial(NamedTuple):
    """One run: its task, what it is called in the table, and its options."""

    task: Task
    name: str
    config: ActConfig

    @property
    def folder(self) -> str:
        """Of the run, among the runs."""
        seed = self.config.train.seed
        return f"{self.task.name}-{self.name.replace(' ', '_')}-{seed}"


CHASE = Task("chase", "Chase-v0", {}, SIMULATED)
PENDULUM = Task(  # to swing up takes some two seconds, 20 actions of 0.1 s
    "pendulum", "Pendulum-v1",
    {"action_repeat": 2, "episodes": 30, "planner": {"horizon": 25},
     "behaviour": {"discount": 0.97}},
    PlannerConfig(horizon=25, iterations=4, candidates=60, elites=8, warm_start=True),
)  # fmt: skip
PIXELS = Task("chase pixels", "Chase-v0", {}, SIMULATED, preset="pixels")


def trials() -> Iterator[Trial]:
    """All runs, the most wanted first."""
    for seed in range(3):
        for agent in ("planet", "dreamer"):
            yield trial(CHASE, agent, agent, seed)
            yield trial(PENDULUM, agent, agent, seed)
        yield trial(PIXELS, "planet", "planet", seed)
        yield trial(CHASE, "dreamerv2", "dreamerv2", seed)
    for seed in range(2):
        for name, changes in ABLATIONS.items():
            yield trial(CHASE, f"planet, {name}", "planet", seed, changes)


# What is taken from PlaNet, or added: the other parts stay.
ABLATIONS: dict[str, dict[str, Any]] = {
    "stochastic": {"model": {"memory_size": 0}},
    "random shooting": {"planner": {"method": "random_shooting"}},
    "random collection": {"collect": "random"},
    "overshooting": {"train": {"overshooting": {"distance": 5}}},
}


def trial(
    task: Task, name: str, agent: str, seed: int, changes: dict[str, Any] | None = None
) -> Trial:
    """The task's preset of an agent with what the task and the trial change of it."""
    config = act_preset(task.preset, agent)
    for change in (task.options, changes or {}, {"train": {"seed": seed}}):
        config = changed(config, change)
    return Trial(task, name, config)


def changed(config: Any, change: dict[str, Any]) -> Any:
    """Options with some replaced, also within options."""
    return dataclasses.replace(
        config,
        **{
            name: changed(getattr(config, name), value) if isinstance(value, dict) else value
            for name, value in change.items()
        },
    )


def run(trial: Trial, runs: Path) -> subprocess.Popen | None:
    """Start a run, or go on with it; None where it is done."""
    path = runs / trial.folder
    if (path / "done").is_file():
        return None
    environment = os.environ | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    command = [sys.executable, __file__, "--runs", str(runs), "--trial", trial.folder]
    return subprocess.Popen(command, env=environment)


def work(trial: Trial, runs: Path) -> None:
    """What a process of its own does: learn, then play the last evaluation."""
    import torch

    from pyro_animacy.acting.act import act, resume_acting

    torch.set_num_threads(1)
    path = runs / trial.folder
    if (path / "trainer.pt").is_file():
        resume_acting(path, progress=False)
    else:
        act(trial.task.environment, trial.config, out=path, overwrite=True, progress=False)
    probe = make_env(trial.task.environment, trial.config)
    agent = load_agent(path, probe)
    returns = played(trial, lambda _: agent)
    (path / "returns.json").write_text(json.dumps(returns))
    (path / "done").write_text("")


def played(trial: Trial, agent_of: Any, alone: bool = False) -> list[float]:
    """Returns of the last evaluation."""
    with no_validation():
        episodes = evaluation(
            lambda: make_env(trial.task.environment, trial.config), agent_of, EPISODES,
            seed=SEED, fps=1.0, alone=alone,
        )  # fmt: skip
    return returned(episodes).tolist()


def references(task: Task, runs: Path) -> dict[str, list[float]]:
    """Returns at random and by search in the true simulator, kept beside the runs."""
    file = runs / f"references-{task.environment}-{task.options.get('action_repeat', 1)}.json"
    if not file.is_file():
        first = trial(task, "", "planet", 0)
        first = first._replace(config=changed(first.config, {"pixels": False}))
        controls = Controls.of(make_env(task.environment, first.config))
        found = {
            "random": played(first, lambda _: AtRandom(controls)),
            "true simulator": played(first, lambda env: Simulated(env, task.simulated), alone=True),
        }
        file.write_text(json.dumps(found))
    return json.loads(file.read_text())


class Result(NamedTuple):
    """What came of a trial, over its seeds: scores, seconds, and the curves."""

    scores: np.ndarray
    returns: np.ndarray
    seconds: np.ndarray
    episodes: int
    curves: list[np.ndarray]  # (3, evaluations): episodes, seconds, return


def results(task: Task, runs: Path) -> dict[str, Result]:
    """By name of the trial, of those that are done."""
    base = {name: float(np.mean(v)) for name, v in references(task, runs).items()}
    found: dict[str, list[Trial]] = {}
    for each in trials():
        if each.task.name == task.name and (runs / each.folder / "done").is_file():
            found.setdefault(each.name, []).append(each)
    out = {}
    for name, several in found.items():
        returns, seconds, curves = [], [], []
        for each in several:
            path = runs / each.folder
            returns.append(np.mean(json.loads((path / "returns.json").read_text())))
            rows = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
            seconds.append(rows[-1]["seconds"])
            episodes = rows[-1]["episode"] + 1
            evaluated = [row for row in rows if "evaluation_return" in row]
            curves.append(
                np.array([
                    [row["episode"] + 1, row["seconds"], row["evaluation_return"]]
                    for row in evaluated
                ]).T
            )  # fmt: skip
        scores = (np.array(returns) - base["random"]) / (base["true simulator"] - base["random"])
        out[name] = Result(scores, np.array(returns), np.array(seconds), episodes, curves)
    return out


def table(task: Task, found: dict[str, Result], runs: Path) -> str:
    """Markdown: a line a trial, the mean over seeds and the seeds themselves."""
    base = {name: float(np.mean(v)) for name, v in references(task, runs).items()}
    lines = [
        "| agent | seeds | return | score | score of each seed | episodes | minutes |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, r in found.items():
        each = ", ".join(f"{s:.2f}" for s in r.scores)
        error = f" ± {standard_error(r.scores):.2f}" if len(r.scores) > 1 else ""
        lines.append(
            f"| {name} | {len(r.scores)} | {r.returns.mean():.1f} | **{r.scores.mean():.2f}**"
            f"{error} | {each} | {r.episodes} | {r.seconds.mean() / 60:.1f} |"
        )
    lines.append(f"| random actions | | {base['random']:.1f} | 0 | | | |")
    lines.append(f"| search in the true simulator | | {base['true simulator']:.1f} | 1 | | | |")
    return "\n".join(lines)


def draw(tasks: list[Task], runs: Path, file: Path) -> None:
    """Evaluations over episodes, a panel a task: thin lines the seeds, thick their mean."""
    fig, axes = plt.subplots(1, len(tasks), figsize=(4.2 * len(tasks), 3.4), layout="constrained")
    for ax, task in zip(np.atleast_1d(axes), tasks, strict=True):
        base = {name: float(np.mean(v)) for name, v in references(task, runs).items()}
        found = {n: r for n, r in results(task, runs).items() if "," not in n}
        for colour, (name, r) in zip(COLOURS, found.items(), strict=False):
            for curve in r.curves:
                ax.plot(curve[0], curve[2], color=colour, lw=0.7, alpha=0.5)
            mean = np.mean([curve[1:] for curve in r.curves], 0)
            ax.plot(r.curves[0][0], mean[1], color=colour, lw=2, label=name)
        for name, style in (("true simulator", "--"), ("random", ":")):
            ax.axhline(base[name], color="0.4", ls=style, lw=1, label=name)
        ax.set_title(task.name)
        ax.set_xlabel("episodes collected")
        ax.set_ylabel("mean return without exploration")
        ax.legend(fontsize=7, framealpha=1, edgecolor="none")
    file.parent.mkdir(parents=True, exist_ok=True)
    fig.savefig(file, dpi=130)


def main() -> None:
    """Run what is missing, then write table and figure."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--runs", type=Path, default=Path("runs/acting"))
    parser.add_argument("--only", default="", help="trials whose folder has this in its name")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--trial", help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, default=Path("docs/acting-results.md"))
    parser.add_argument("--report", action="store_true", help="only write what is done")
    options = parser.parse_args()
    options.runs.mkdir(parents=True, exist_ok=True)
    wanted = [each for each in trials() if options.only in each.folder]
    if options.trial:
        work(next(each for each in wanted if each.folder == options.trial), options.runs)
        return
    going: list[subprocess.Popen] = []
    for each in [] if options.report else wanted:
        while len(going) >= options.jobs:
            going = [p for p in going if _alive(p)]
        process = run(each, options.runs)
        if process is not None:
            print(each.folder, flush=True)
            going.append(process)
    for process in going:
        process.wait()
    report(options.runs, options.out)


def _alive(process: subprocess.Popen) -> bool:
    try:
        process.wait(timeout=1)
    except subprocess.TimeoutExpired:
        return True
    return False


def report(runs: Path, out: Path) -> None:
    """Write the page and its figure, of what is done."""
    tasks = [t for t in (CHASE, PENDULUM, PIXELS) if results(t, runs)]
    draw(tasks, runs, out.parent / "images" / "acting.png")
    parts = [PAGE.strip()]
    for task in tasks:
        options = yaml.safe_dump(task.options, default_flow_style=True).strip()
        beside = f"options beside the preset `{task.preset}`: `{options}`"
        results_of = table(task, results(task, runs), runs)
        parts.append(f"## {task.name}\n\n`{task.environment}`, {beside}\n\n{results_of}")
    out.write_text("\n\n".join(parts) + "\n")
    print(f"wrote {out}")


PAGE = f"""
# What agents learn in minutes, and what their parts are worth

Made by `scripts/acting_table.py`, which goes on where it was stopped: what is not here was not run
yet. (It does not see that options have changed since: then begin with another `--runs`.) Every run
has one thread of a machine of two cores, which does other work besides (the seeds are not equally
slow); minutes are wall time, with seed episodes, learning, collecting, and the evaluations on the
way. Returns are means of {EPISODES} episodes without exploration, on seeds that no run has seen; ±
is the standard error over seeds of the run.

    score = (return - random) / (true simulator - random)

![learning curves](images/acting.png)
"""


if __name__ == "__main__":
    main()
