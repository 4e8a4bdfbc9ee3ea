"""Does a directed chaser chase as asked, and still move as recorded? Some minutes.

    .venv/bin/python scripts/directed_chase.py CLIPS [--out docs/images/directed_chase.png]

CLIPS is `charades_two_body_20hz.csv.gz`. Fits `control_vae` to the clips labelled chase and to
simulated soccer, makes displays of every subtlety, prints a table and draws the figure of the
docs. Displays begin on held-out recordings. Their log density is compared with that of these, since
a fit gives more to what it was fitted to; their evidence, which is of one model beside another,
with that of all recordings, held-out or not: six clips alone have hardly a range. Fits are kept in
`--runs` and used again.
"""

import argparse
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pyro_animacy import Run, fit, preset, read_trajectories, score_animacy, simulate_soccer
from pyro_animacy.acting.direct import DirectConfig, direct, nats_per_step
from pyro_animacy.acting.goals import goal_of, heading_error
from pyro_animacy.criticism.style import (
    BODY_COLOURS,
    QUIET,
    WIDTH,
    png,
    styled,
)

Floats = npt.NDArray[np.float64]

SUBTLETIES = (0, 15, 30, 45, 60, 90, 120)
RANGE = (0.05, 0.95)


@dataclass(frozen=True)
class Outcome:
    """Displays of every subtlety, and the recordings that they are compared with.

    Attributes:
        name: What was directed.
        subtlety: As asked for, degrees, (display,).
        error: Mean heading error of each, degrees.
        evidence: Mean evidence that its chaser is an agent, nats per step.
        nats: Mean log density of its steps under the run.
        kl: Mean KL to the run's prior, nats per step.
        recorded: The first three of the recordings: each (clip,), evidence of all of them.
        seconds: Of making the displays.
    """

    name: str
    subtlety: Floats
    error: Floats
    evidence: Floats
    nats: Floats
    kl: Floats
    recorded: dict[str, Floats]
    seconds: float

    @property
    def correlation(self) -> float:
        """Of requested subtlety and measured heading error, over displays."""
        return float(np.corrcoef(self.subtlety, self.error)[0, 1])

    def limits(self, measure: str) -> Floats:
        """The 5 and 95 % quantiles of the recordings, (2,)."""
        return np.nanquantile(self.recorded[measure], RANGE)

    def within(self, measure: str) -> float:
        """Share of the displays that are within these."""
        low, high = self.limits(measure)
        values = getattr(self, measure)
        return float(((values >= low) & (values <= high)).mean())


def main() -> None:
    """Fit, direct, print the table, write the figure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("clips", type=Path, help="charades_two_body_20hz.csv.gz")
    parser.add_argument("--out", type=Path, default=Path("docs/images/directed_chase.png"))
    parser.add_argument("--runs", type=Path, default=Path("runs/directed"), help="fits are kept")
    parser.add_argument("--displays", type=int, default=6, help="of each subtlety")
    parser.add_argument("--frames", type=int, default=200, help="of each display")
    parser.add_argument("--preset", default="small", help="of the fits")
    given = parser.parse_args()
    clips = read_trajectories(given.clips, labels="chase", downsample=2, units="stage units")
    games = simulate_soccer(200, 200)
    shapes, soccer = "chase:big_triangle->little_triangle", "chase:player_1->ball"
    size = {"displays": given.displays, "frames": given.frames}
    kept = given.runs, given.preset
    outcomes = [
        outcome("chase clips", fitted("chase", clips, *kept), clips, shapes, **size),
        outcome("soccer", fitted("soccer", games, *kept), games, soccer, **size),
        outcome(
            "chase clips, latent alone", fitted("chase", clips, *kept), clips, shapes,
            config=DirectConfig(steer="latent"), **size,
        ),
    ]  # fmt: skip
    print("\n\n".join(table(o) for o in outcomes))
    given.out.parent.mkdir(parents=True, exist_ok=True)
    given.out.write_bytes(png(figure(outcomes[:2]), dpi=200))
    print(f"\nwrote {given.out}")


def fitted(name: str, recordings: xr.Dataset, runs: Path, options: str) -> Run:
    """The run of that name, fitted if it is not there."""
    if (runs / name / "summary.json").is_file():
        return Run.load(runs / name)
    return fit(recordings, preset(options), out=runs / name, overwrite=True)


def outcome(
    name: str,
    run: Run,
    recordings: xr.Dataset,
    objective: str,
    *,
    displays: int,
    frames: int,
    config: DirectConfig | None = None,
) -> Outcome:
    """Make displays of every subtlety, and measure them and the recordings."""
    heldout, began = run.heldout(recordings), time.monotonic()
    made = [
        direct(
            run, objective=objective, subtlety=subtlety, frames=frames, displays=displays,
            seed=seed, recordings=heldout, config=config, progress=False,
        )
        for seed, subtlety in enumerate(SUBTLETIES)
    ]  # fmt: skip
    seconds = time.monotonic() - began
    goal, scale = goal_of(objective, run.card, heldout), run.card.scale
    mover = run.card.bodies[goal.mover]
    print(f"{name}: {seconds:.0f} s for {len(made) * displays} displays", flush=True)
    return Outcome(
        name=name,
        subtlety=np.repeat(np.array(SUBTLETIES, float), displays),
        error=np.concatenate([x["heading_error"].mean("time").values for x in made]),
        evidence=np.concatenate([evidence(run, x, mover) for x in made]),
        nats=np.concatenate([nats_per_step(run, x) for x in made]),
        kl=np.concatenate([x["kl"].mean("time").values for x in made]),
        recorded={
            "error": np.nanmean(heading_error(heldout["position"] / scale.unit, goal), -1),
            "evidence": evidence(run, recordings, mover),
            "nats": nats_per_step(run, heldout),
        },
        seconds=seconds,
    )


def evidence(run: Run, trajectories: xr.Dataset, body: str) -> Floats:
    """Mean evidence for an agent of a body in each trajectory, nats per step."""
    scores = score_animacy(run, trajectories, surrogates=1, progress=False)
    return scores["evidence"].sel(body=body).mean("time").values


def table(o: Outcome) -> str:
    """The figures of each subtlety as a table in Markdown."""
    rows = []
    for subtlety in SUBTLETIES:
        of = o.subtlety == subtlety
        error, kl, animate, nats = (x[of].mean() for x in (o.error, o.kl, o.evidence, o.nats))
        rows.append(f"| {subtlety} | {error:.1f} | {kl:.2f} | {animate:+.2f} | {nats:.2f} |")
    spread = [f"{low:+.2f} to {high:+.2f}" for low, high in map(o.limits, ("evidence", "nats"))]
    mean = np.nanmean(o.recorded["error"])
    return "\n".join(
        [
            f"{o.name}: correlation {o.correlation:.3f} over displays; within the recorded range: "
            f"evidence {o.within('evidence'):.0%}, nats {o.within('nats'):.0%} of displays",
            "",
            "| subtlety | heading error | KL | evidence | nats per step |",
            "|---|---|---|---|---|",
            *rows,
            f"| recorded, 5 to 95 % | {mean:.1f} (mean) | | {spread[0]} | {spread[1]} |",
        ]
    )


def figure(outcomes: list[Outcome]) -> Figure:
    """A row for each run: heading error, animacy and log density against requested subtlety."""
    with styled():
        drawing = Figure(figsize=(1.6 * WIDTH, 2.3 * len(outcomes)), layout="constrained")
        rows = drawing.subplots(len(outcomes), 3, sharex=True, squeeze=False)
        for axes, o in zip(rows, outcomes, strict=True):
            _points(axes[0], o.subtlety, o.error)
            axes[0].plot([0, 120], [0, 60], color=QUIET, ls="--", lw=1, label="subtlety / 2")
            mean = np.nanmean(o.recorded["error"])
            axes[0].axhline(mean, color=QUIET, lw=0.8, label="recorded")
            axes[0].set_ylabel(f"{o.name}\nheading error (degrees)")
            for axis, measure, label in (
                (axes[1], "evidence", "evidence for an agent\n(nats per step)"),
                (axes[2], "nats", "log density\n(nats per step)"),
            ):
                axis.axhspan(
                    *o.limits(measure), fc="#e6e6e6", ec=QUIET, lw=0.5, label="recorded, 5 to 95 %"
                )
                _points(axis, o.subtlety, getattr(o, measure))
                axis.set_ylabel(label)
        for axis in rows[-1]:
            axis.set(xlabel="requested subtlety (°)", xticks=(0, 30, 60, 90, 120))
        for axis in rows[0, :2]:
            axis.legend(fontsize=7, loc="best")
    return drawing


def _points(axis: Axes, subtlety: Floats, values: Floats) -> None:
    """A dot a display, and a line through their means."""
    axis.plot(subtlety, values, "o", color=BODY_COLOURS[0], markersize=2.5, alpha=0.5)
    means = [values[subtlety == each].mean() for each in SUBTLETIES]
    axis.plot(SUBTLETIES, means, color=BODY_COLOURS[1], label="mean of displays")


if __name__ == "__main__":
    main()
