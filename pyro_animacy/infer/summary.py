"""The figures of a run: its held-out score beside the baselines, and what it was fitted to."""

import math
from itertools import islice
from typing import Any

import numpy as np
import xarray as xr

from pyro_animacy.data.stored import blocks, positions
from pyro_animacy.errors import command_line, how_many
from pyro_animacy.infer.run import Run, suited
from pyro_animacy.infer.score import MOST_STEPS, Score, score

SCORE_DRAWS = 64
SCORE_DENSITY = {
    "policy": "teacher-forced policy density of the recorded displacement, IWAE",
    "squared_error": (
        "teacher-forced policy density of the recorded displacement with the policy's fixed scale, "
        "IWAE; this run was trained on the squared error, not on this density"
    ),
}


def summarise(
    run: Run, heldout: xr.Dataset, *, most: int = MOST_STEPS, progress: bool = True
) -> dict[str, Any]:
    """Score a run and its baselines on recordings it was not fitted to, ``most`` steps of them.

    Returns:
        The figures of ``summary.json``; see the README. Errors are None where too few steps were
        scored to know them.

    Raises:
        RunError: If the run has no baselines to compare with.
        DataError: If they do not suit the model, or no trajectory is long enough.
    """
    heldout = suited(run.card, heldout)
    draws = run.config.train.score_draws or SCORE_DRAWS
    result: Score = score(
        run.guide, heldout,
        scale=run.card.scale, history=run.card.config["history"], draws=draws,
        baselines=run.baselines(),
        most=most,
        progress=progress,
    )  # fmt: skip
    return {
        "heldout_nats_per_step": result.model,
        "heldout_elbo_per_step": result.elbo,
        "heldout_standard_error": known(result.standard_error),
        "baselines": result.baselines,
        "best_baseline": result.best_baseline,
        "gain_standard_error": known(result.gain_standard_error),
        "score_density": _density(run, draws),
        "score_steps": result.steps,
        "score_bodies": result.bodies,
        "train_seconds": run.summary.get("train_seconds"),
        "steps": run.summary.get("steps"),
        "batch_size": run.summary.get("batch_size"),
        "parameters": run.parameters,
        "data": describe(heldout),
    }


def known(error: float) -> float | None:
    """A standard error, None where it is NaN, which is not JSON."""
    return None if math.isnan(error) else error


def _density(run: Run, draws: int) -> str:
    """What the score is a density of, and how it was estimated."""
    by = "IWAE"
    if not run.model.latent_size:
        by = "exact"
    elif run.model.latent_remembered:
        by = "particle filter"
    density = SCORE_DENSITY[run.card.config["likelihood"]].replace("IWAE", by)
    return density if by == "exact" else f"{density} (K = {draws})"


def describe(dataset: xr.Dataset) -> dict[str, Any]:
    """What recordings hold, for people: counts, rate, units, resolution."""
    resolution = dataset["resolution"].to_numpy()
    return {
        "source": str(dataset.attrs.get("source", "")),
        "trajectories": dataset.sizes["trajectory"],
        "recordings": len(np.unique(dataset["recording"])),
        "frames": int(dataset["length"].sum()),
        "bodies": [str(b) for b in dataset["body"].to_numpy()],
        "fps": float(dataset.attrs["fps"]),
        "units": str(dataset.attrs.get("units", "unknown")),
        "resolution": {
            "smallest": float(resolution.min()),
            "median": float(np.median(resolution)),
            "largest": float(resolution.max()),
        },
    }


def describe_text(dataset: xr.Dataset) -> str:
    """What was read, in one line: a wrong rate or wrong units show in the speed.

    The resolution is there since densities mean nothing below it: one that is taken to be coarser
    than it is (`--resolution`) costs score.

    Of large recordings the speed is that of the first eight million coordinates, and so is what is
    said of bodies that never move, which a model of motion learns nothing from.
    """
    told, some = describe(dataset), islice(blocks(positions(dataset)), 32)
    each = len(told["bodies"])
    steps = [np.linalg.norm(np.diff(x, axis=1), axis=-1).reshape(-1, each) for _, _, x in some]
    speed = np.concatenate(steps) * told["fps"]
    moves = np.isfinite(speed) & (speed > 0)
    moving, still = speed[moves], np.array(told["bodies"])[~moves.any(0)].tolist()
    median = f"{np.median(moving):.3g}" if len(moving) else "0"
    units = "data units" if told["units"] == "unknown" else told["units"]
    bodies = ", ".join(told["bodies"][:4]) + (", ..." if len(told["bodies"]) > 4 else "")
    seconds, once = (frames / told["fps"] for frames in (told["frames"], _frames_once(dataset)))
    of = f"{once:,.0f} s" + (f" ({seconds:,.0f} s over all trajectories)" if once < seconds else "")
    return (
        f"read {how_many(told['trajectories'], 'trajectory')} of "
        f"{how_many(told['recordings'], 'recording')}: "
        f"{how_many(len(told['bodies']), 'body')} ({bodies}), "
        f"{of} at {told['fps']:g} Hz; median speed of a moving "
        f"body {median} {units}/s, {_resolution(dataset, units)}"
        + (f"; never moves: {', '.join(still)} (leave out by --bodies)" if still else "")
    )


def _frames_once(dataset: xr.Dataset) -> int:
    """Frames in any of the trajectories, those that several share counted once."""
    _, recording = np.unique(dataset["recording"].to_numpy(), return_inverse=True)
    start, length = dataset["start"].to_numpy(), dataset["length"].to_numpy()
    apart = int((start + length).max(initial=0)) + 1
    begin = start + recording * apart
    order = np.argsort(begin, kind="stable")
    begin, end = begin[order], (begin + length)[order]
    before = np.maximum.accumulate(np.append(0, end))[:-1]  # how far those before it go
    return int(np.maximum(end - np.maximum(begin, before), 0).sum())


def _resolution(dataset: xr.Dataset, units: str) -> str:
    least, most = (float(of) for of in (dataset["resolution"].min(), dataset["resolution"].max()))
    if not most:
        return "no known resolution"
    return f"resolution {least:.3g}{'' if least == most else f' to {most:.3g}'} {units}"


def _updates(run: Run) -> str:
    """How many updates the fit took; of how many, where it was not better any more."""
    steps, most = run.summary["steps"], run.config.train.steps
    early = f" of {most:,} (stopped early)" if steps < most else ""
    return how_many(steps, "update") + early


def _episodes_text(run: Run) -> str:
    s = run.summary
    spread = _spread(s["heldout_standard_error"])
    return (
        f"held-out evidence lower bound {s['heldout_elbo_per_frame']:.3f}{spread} nats per frame, "
        f"on {s['data']['heldout_episodes']} of {how_many(s['data']['episodes'], 'episode')}; "
        f"{_updates(run)} in {s['train_seconds']:.0f} s, {s['parameters']:,} parameters\n"
        f"{_next(run)}"
    )


def summary_text(run: Run) -> str:
    """The scores of a run, for people to read."""
    if run.data == "episodes":
        return _episodes_text(run)
    s, units = run.summary, run.card.units
    wide = max(20, *(len(name) + 1 for name in s["baselines"]))

    def row(name: str, value: float, more: str = "") -> str:
        return f"  {name:<{wide}}{value:9.3f}{more}"

    error = _spread(s["heldout_standard_error"])
    lines = [
        f"held-out log density, nats per time step of the joint displacement (units: {units})",
        row("model", s["heldout_nats_per_step"], f" {error}   ({s['score_density']})"),
        row("model, ELBO", s["heldout_elbo_per_step"]),
        *(row(name, value) for name, value in s["baselines"].items()),
    ]
    gain = s["heldout_nats_per_step"] - s["baselines"][s["best_baseline"]]
    lines.append(
        f"{gain:+.3f}{_spread(s['gain_standard_error'])} nats per step against the best baseline "
        f"({s['best_baseline']}), on "
        f"{how_many(s['score_steps'], 'step')}; {_updates(run)} in "
        f"{s['train_seconds']:.0f} s, {s['parameters']:,} parameters"
    )
    there = s.get("score_bodies", len(run.card.bodies))
    if there < len(run.card.bodies):  # a score grows with how many are there
        each = s["heldout_nats_per_step"] / there
        lines.append(f"{there:.1f} bodies are there in the mean: {each:.3f} nats per body and step")
    return "\n".join([*lines, _next(run)])


def _spread(error: float | None) -> str:
    return "" if error is None else f" +- {error:.3f}"


def _next(run: Run) -> str:
    criticise = command_line("criticise", run.path, "--out", "report.html")
    return f"run: {run.path}   next: {criticise}"
