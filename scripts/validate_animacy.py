"""Does the animacy score do what it says? Writes docs/animacy-validation.md; some minutes.

    .venv/bin/python scripts/validate_animacy.py RECORDINGS [--out docs/animacy-validation.md]

RECORDINGS is a folder with `movingshapes/` and `termites/`; a part whose recordings are absent is
left out, and the page says so. Runs are kept in `--runs` and used again.
"""

import argparse
import functools
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import xarray as xr

from pyro_animacy import FitConfig, Run, fit, preset, read_trajectories, simulate_soccer
from pyro_animacy.criticism.animacy import interaction, score_animacy
from pyro_animacy.criticism.animacy_table import by_body
from pyro_animacy.criticism.discrimination import Auc, auc_interval
from pyro_animacy.data.controls import inert_twins, yoked
from pyro_animacy.infer.score import mean_and_error

Fitted = Callable[[xr.Dataset, str], Run]
LABELS = ("chase", "follow", "fight", "herd")
FOLDS = 2


def main() -> None:
    """Validate, and write the page."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("recordings", type=Path, help="folder of movingshapes/ and termites/")
    options.add_argument("--out", type=Path, default=Path("docs/animacy-validation.md"))
    options.add_argument("--runs", type=Path, default=Path("runs/animacy"), help="fits are kept")
    options.add_argument("--preset", default="small", help="of the fits")
    options.add_argument("--games", type=int, default=200, help="simulated games")
    given = options.parse_args()
    began, kept = time.monotonic(), given.runs.is_dir()
    fitted = functools.partial(fit_once, config=preset(given.preset), runs=given.runs)
    parts = [INTRODUCTION, simulated(given.games, fitted)]
    clips = given.recordings / "movingshapes" / "charades_two_body_20hz.csv.gz"
    pairs = given.recordings / "termites"
    for title, path, part in (
        ("True pairs against yoked controls", clips, shapes),
        ("Who leads?", pairs, termites),
    ):
        absent = f"## {title}\n\nLeft out: the recordings were not there when this was written.\n"
        parts.append(part(path, fitted) if path.exists() else absent)
    minutes = (time.monotonic() - began) / 60
    fits = "with fits kept from before" if kept else "fits included"
    parts.append(f"Written in {minutes:.0f} minutes, {fits}.\n")
    given.out.write_text("\n".join(parts))
    print(f"wrote {given.out}")


INTRODUCTION = """# Does the animacy score do what it says?

Written by `scripts/validate_animacy.py`; what the measures are is told in [animacy](animacy.md).
AUC is the area under the ROC curve: the chance that a motion that should score higher does; 0.5 is
chance, 1 perfect. Intervals are 95 % percentile bootstrap. Every motion scored is one that its
model was not fitted to.
"""


def simulated(count: int, fitted: Fitted) -> str:
    """Evidence for an agent: players against the ball, and against their inert twins."""
    games = simulate_soccer(count, 200)
    run = fitted(games, "soccer")
    heldout = run.heldout(games)
    scores = score_animacy(run, heldout)
    players, ball = ["player_1", "player_2"], ["ball"]
    twins = [
        per_trajectory(score_animacy(run, inert_twins(heldout, [b]), surrogates=1), [b])
        for b in players
    ]
    agents = per_trajectory(scores, players)
    rows = [
        auc_row("ball", auc_interval(agents, per_trajectory(scores, ball))),
        auc_row("inert twins", auc_interval(agents, np.concatenate(twins))),
    ]
    means = [
        f"| {body} | {row['evidence']:+.2f} ± {row['evidence_error']:.2f} "
        f"| {row['interaction']:+.2f} ± {row['interaction_error']:.2f} |"
        for body, row in by_body(scores).iterrows()
    ]
    return f"""## Players against the ball and against inert twins

{heldout.sizes["trajectory"]} held-out games of the simulator, 10 s each at 20 Hz; a game and body
is one motion, its score the mean evidence for an agent. A twin starts where its player does and is
as fast on average, but only slows down and bounces off the walls.

| players against | AUC of evidence | 95 % interval | motions |
|---|---|---|---|
{chr(10).join(rows)}

| body | evidence, nats a step | interaction, nats a step |
|---|---|---|
{chr(10).join(means)}
"""


def shapes(path: Path, fitted: Fitted) -> str:
    """Interaction: true pairs of shapes against yoked ones, label by label."""
    clips = read_trajectories(path, downsample=2)
    order = np.random.default_rng(0).permutation(clips.sizes["trajectory"])
    true: list[np.ndarray] = []
    control: list[np.ndarray] = []
    labels: list[np.ndarray] = []
    for fold in range(FOLDS):
        fitting = np.sort(np.concatenate([order[k::FOLDS] for k in range(FOLDS) if k != fold]))
        run = fitted(clips.isel(trajectory=fitting), f"movingshapes_{fold}")
        pairs = clips.isel(trajectory=np.sort(order[fold::FOLDS]))
        controls = yoked(pairs, str(pairs["body"].values[1]), seed=fold)
        pairs = pairs.sel(trajectory=controls["trajectory"])
        for scenes, store in ((pairs, true), (controls, control)):
            score = interaction(run, scenes, draws=64, seed=fold)
            store.append(score.mean("time").sum("body", skipna=False).values)
        labels.append(pairs["label"].values)
    a, b, label = (np.concatenate(parts) for parts in (true, control, labels))
    named = [auc_row(name, interval_of(a, b, label == name)) for name in LABELS]
    whole = interval_of(a, b, np.ones(len(a), bool))
    rest = sorted(set(label) - set(LABELS), key=lambda name: -interval_of(a, b, label == name)[0])
    others = [auc_row(name, interval_of(a, b, label == name)) for name in rest]
    chance = [name for name in LABELS if interval_of(a, b, label == name).at_chance]
    return f"""## True pairs against yoked controls

{len(a)} clips of two triangles animated by hand, at 10 Hz; every clip is scored by a model fitted
to the other half of them. In its control the second triangle comes from another clip of the same
label and about the same length. A clip's score is the mean interaction, summed over both.

| label | AUC of interaction | 95 % interval | clips + controls |
|---|---|---|---|
{auc_row("**all**", whole)}
{chr(10).join(named)}

{verdict(whole, chance)}
One mouse moved one shape at a time, so much of what links two shapes lies between their turns,
seconds apart, and a model that looks back 0.4 s does not see it.

| other labels | AUC | 95 % interval | clips + controls |
|---|---|---|---|
{chr(10).join(others)}
"""


def termites(path: Path, fitted: Fitted) -> str:
    """Interaction: which of two termites answers to the other."""
    pairs = read_trajectories(path, fps=30, downsample=6)
    run = fitted(pairs, "termites")
    heldout = run.heldout(pairs)
    score = interaction(run, heldout, draws=64)
    rows = []
    for which in [[i] for i in range(heldout.sizes["trajectory"])] + [slice(None)]:
        part, scenes = score.isel(trajectory=which), heldout.isel(trajectory=which)
        leader, follower, difference = (
            error_of(values, scenes)
            for values in (part.isel(body=0), part.isel(body=1),
                           part.isel(body=1) - part.isel(body=0))
        )  # fmt: skip
        name = "all" if isinstance(which, slice) else str(scenes["trajectory"].values[0])
        rows.append(f"| {name} | {leader} | {follower} | {difference} |")
    return f"""## Who leads?

Tandem runs of two termites, of which body 0 leads; the last fifth of each, at 5 Hz. The one that
answers more to the other's past follows: its interaction is the larger. Errors are over blocks of
time.

| pair | leader's interaction | follower's interaction | follower's less leader's |
|---|---|---|---|
{chr(10).join(rows)}
"""


def fit_once(dataset: xr.Dataset, name: str, config: FitConfig, runs: Path) -> Run:
    """A run of that name, fitted if it is not there."""
    if (runs / name / "summary.json").is_file():
        return Run.load(runs / name)
    return fit(dataset, config, out=runs / name, overwrite=True)


def per_trajectory(scores: xr.Dataset, bodies: list[str]) -> np.ndarray:
    """Mean evidence of each trajectory and body."""
    return scores["evidence"].sel(body=bodies).mean("time").values.ravel()


def interval_of(true: np.ndarray, control: np.ndarray, chosen: np.ndarray) -> Auc:
    """The AUC of the chosen clips against their controls."""
    return auc_interval(true[chosen], control[chosen], paired=True, resamples=500)


def auc_row(name: str, area: Auc) -> str:
    """A line of a table."""
    interval = f"{area.low:.2f} to {area.high:.2f}"
    return f"| {name} | {area.value:.3f} | {interval} | {area.positives} + {area.negatives} |"


def verdict(whole: Auc, chance: list[str]) -> str:
    """What the intervals say, in words."""
    of_all = "not told apart" if whole.at_chance else "told apart, if weakly"
    if whole.value > 0.75:
        of_all = "told apart"
    of_labels = f"at chance: {', '.join(chance)}" if chance else "none of the four is at chance"
    return f"Over all labels, true pairs are {of_all}; {of_labels}."


def error_of(values: xr.DataArray, scenes: xr.Dataset) -> str:
    """Mean of what is finite, and its standard error, in words."""
    found = values.transpose("trajectory", "time").values
    index = np.argwhere(np.isfinite(found))
    mean, error = mean_and_error(found[tuple(index.T)], scenes, index)
    return f"{mean:+.2f} ± {error:.2f}"


if __name__ == "__main__":
    main()
