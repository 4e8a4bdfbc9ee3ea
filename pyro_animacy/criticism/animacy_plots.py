"""What `animacy` measured, in figures and words."""

from collections.abc import Mapping

import numpy as np
import pandas as pd
import xarray as xr
from matplotlib.figure import Figure

from pyro_animacy.criticism.alike import counted_as, groups
from pyro_animacy.criticism.animacy_table import by_body
from pyro_animacy.criticism.animation import animate_scores, smooth_frames
from pyro_animacy.criticism.importance import k_hat_threshold
from pyro_animacy.criticism.plots import most_movement
from pyro_animacy.criticism.section import Finding, Panel, Section, Table, embed, picture
from pyro_animacy.criticism.style import (
    QUIET,
    WIDTH,
    body_looks,
    shorten,
    styled,
)
from pyro_animacy.criticism.wording import (
    body_name,
    counted,
    listed,
    nats,
    percent,
    seconds,
    with_error,
)
from pyro_animacy.data.schema import agents

SHOWN = 2  # trajectories shown in motion
LITTLE = 0.1  # nats per step, of which in ten steps one comes together
TITLES = {
    "evidence": "evidence for an agent (nats)",
    "interaction": "interaction (nats)",
    "choice": "choice (nats)",
    "surprise": "surprise under inert physics (nats)",
}


def plot_bodies(scores: xr.Dataset) -> Figure:
    """Evidence for an agent and interaction of each body, with two standard errors.

    Args:
        scores: of `score_animacy`.
    """
    table = by_body(scores)
    names = [name for name in ("evidence", "interaction") if name in table]
    looks = body_looks([str(body) for body in table.index])
    with styled():
        size = (WIDTH, 0.9 + 0.3 * max(2, len(table)))
        figure = Figure(figsize=size, layout="constrained")
        for axis, name in zip(figure.subplots(1, len(names), squeeze=False)[0], names, strict=True):
            for row, (_, values) in enumerate(table[::-1].iterrows()):
                colour, marker = looks[len(table) - 1 - row]
                error = 2 * values[f"{name}_error"]
                bar = None if np.isnan(error) else error
                axis.errorbar(values[name], row, xerr=bar, fmt=marker, color=colour)
            axis.axvline(0, color=QUIET, lw=1)
            labels = [shorten(body_name(body), 18) for body in table.index[::-1]]
            axis.set_yticks(range(len(table)), labels if axis is figure.axes[0] else [])
            axis.set_ylim(-0.6, len(table) - 0.4)
            axis.grid(axis="y", visible=False)
            axis.margins(x=0.15)
            axis.set_title(name, loc="left")
            axis.set_xlabel("nats per step")
    return figure


def section(
    scores: xr.Dataset,
    observed: xr.Dataset,
    courses: Mapping[str, xr.Dataset],
    doubt: str = "",
) -> Section:
    """The section "animacy" of a report.

    Args:
        scores: of `score_animacy`.
        observed: windows of the recordings scored, of which some are shown in motion.
        courses: the scores of each window by its name, (time, body).
        doubt: why the model says nothing of the bodies, of `verdicts.doubt`.
    """
    table = by_body(scores)
    first = [bodies[0] for bodies in groups(counted_as(scores)).values()]
    animate = agents(observed)[first]
    findings = [_agency(table, animate, doubt), *_interplay(table, doubt), _reliable(scores)]
    caption = (
        "Means over the steps of each body; bars are two standard errors either side. Evidence "
        "below 0: an inert body predicts better. Interaction at 0: the others do not matter."
    )
    panels = [Panel(picture(plot_bodies(scores), f"{findings[0].sentence} {caption}"), caption)]
    strips = {name: TITLES[name] for name in ("evidence", "interaction") if name in scores}
    fps = float(observed.attrs["fps"])
    width = smooth_frames(fps)
    mean = f" Running means over {seconds(width / fps)}." if width > 1 else ""
    for name in most_movement(observed, SHOWN):
        caption = f"{name}: the recording, and its scores over time.{mean}"
        film = animate_scores(observed, courses[name], name, strips)
        panels.append(Panel(embed(film, "gif", caption), caption))
    linked = (
        "And do the others matter to it? The interaction is how much better the step is predicted "
        "from what the others did than from what they did elsewhere, when the body's own past was "
        "like this."
    ) if "interaction" in scores else ""  # fmt: skip
    return Section(
        key="animacy",
        title="How alive does the motion look?",
        intro=(
            "A question about every step of every body: could an inert body, which only keeps its "
            "speed, slows down, bounces off walls and is hit now and then, have done this? The "
            "evidence for an agent is how much better the model of agents predicts the step, in "
            "nats: above 0 it moves as an agent does. " + linked
        ),
        findings=findings,
        panels=panels,
        tables=[_table(table)],
        note=(
            "Evidence: log density under the model minus log density under the best inertial body, "
            "whose damping, noise and impulses (how often it is hit, and how hard) are fitted to "
            "the very trajectory, in hindsight: the shorter that is, the less evidence, so compare "
            "conditions of similar length. A body that is no agent, such as a ball, is scored as "
            "if it were one. Interaction: an estimate of transfer entropy (Schreiber 2000), the "
            "others averaged over as they were elsewhere when the body's own past was most like "
            "this; it is more where such moments are rare. "
            f"Below {LITTLE} nats per step neither counts. Surprise: "
            "minus the log density under the inertial body. Choice: what the body's step alone "
            "tells of the latent, KL(p(z | own step) || p(z))."
        ),
    )


def _agency(table: pd.DataFrame, animate: np.ndarray, doubt: str) -> Finding:
    """Whether agents move as agents, and the others as inert bodies."""
    said = [
        f"{body_name(body)} {with_error(row['evidence'], row['evidence_error'])}"
        for body, row in table.iterrows()
    ]
    more = f"; and {len(said) - 8} more" if len(said) > 8 else ""
    what = f"Evidence for an agent, nats per step (± standard error): {'; '.join(said[:8])}{more}"
    if doubt:
        return Finding("undefined", f"{what}; {doubt}.")
    value, clear = table["evidence"], table["evidence"].abs() > 2 * table["evidence_error"]
    slight = [body_name(body) for body in table.index[animate & clear & value.between(0, LITTLE)]]
    coasting = [body_name(body) for body in table.index[animate & clear & (value < 0)]]
    pushed = [body_name(body) for body in table.index[~animate & clear & (value > 0)]]
    reasons = []
    if coasting:
        how = "coasts as an inert body would" if len(coasting) == 1 else "coast as inert bodies do"
        reasons.append(
            f"from frame to frame {' and '.join(coasting)} {how}: look at fewer frames a second "
            "(fit --downsample)"
        )
    if pushed:
        one = len(pushed) == 1
        are, them = ("is no agent", "it one") if one else ("are no agents", "them agents")
        reasons.append(
            f"{' and '.join(pushed)} {are}, and a value above 0 does not make {them}: what others "
            f"do to {'it' if one else 'them'} looks just as unlike coasting"
        )
    if reasons:
        return Finding("near", f"{what}; {'; '.join(reasons)}.")
    if not clear.all():
        unsure = table.index[~clear]
        names = listed([body_name(body) for body in unsure], len(table), "body")
        be = "is" if len(unsure) in (1, len(table)) else "are"
        return Finding("near", f"{what}; {names} {be} within two standard errors of 0.")
    if slight:
        names = listed(slight, len(table), "body")
        return Finding(
            "near",
            f"{what}; that of {names} is above 0, but slight: a force towards a place, which the "
            "inert body here has not, would do as much.",
        )
    if animate.all():
        return Finding("right", f"{what}: every body moves as agents do, not as inert bodies.")
    return Finding("right", f"{what}: above 0 for what moves by itself, below for the rest.")


def _interplay(table: pd.DataFrame, doubt: str) -> list[Finding]:
    """Which bodies the others matter to."""
    if "interaction" not in table:
        return []
    least = np.maximum(2 * table["interaction_error"], LITTLE)
    clear = table["interaction"] > least
    order = table["interaction"].sort_values(ascending=False)
    values = "; ".join(
        f"{body_name(body)} {with_error(row['interaction'], row['interaction_error'])}"
        for body, row in table.loc[order.index[:6]].iterrows()
    )
    if doubt:
        return [Finding("undefined", f"Interaction, nats per step: {values}; {doubt}.")]
    if clear.all():
        return [
            Finding(
                "right",
                f"What the others did helps to predict every body (nats per step): {values}.",
            )
        ]
    if clear.any():
        names = ", ".join(body_name(body) for body in order.index if clear[body])
        return [Finding("near", f"This model uses the others' past for {names} only "
                                f"(nats per step): {values}.")]  # fmt: skip
    return [Finding(
        "near", f"The others' past helps this model little or not to predict any body ({values}): "
        "they ignore each other, or what links them is too slow or too rare to show from step to "
        "step, or the model has not learned it.",
    )]  # fmt: skip


def _reliable(scores: xr.Dataset) -> Finding:
    """Whether the importance-sampled densities can be trusted."""
    k_hat = scores["k_hat"].to_numpy()
    k_hat = k_hat[~np.isnan(k_hat)]
    if not len(k_hat):
        return Finding("undefined", "No step could be scored.")
    draws = scores["k_hat"].attrs["draws"]
    limit = k_hat_threshold(draws)
    bad = int((k_hat >= limit).sum())
    error = float(np.sqrt(np.nanmean(scores["evidence_standard_error"].to_numpy() ** 2)))
    most = f"{limit:.2f}, the most that {draws} draws allow"
    if not bad:
        return Finding(
            "right", f"Every step's density can be relied on: Pareto k-hat is below {most}, the "
            f"Monte Carlo error of a step {nats(error)} nats.",
        )  # fmt: skip
    return Finding(
        "right" if bad <= 0.1 * len(k_hat) else "near",
        f"Pareto k-hat is at or above {most}, in {counted(bad, len(k_hat), 'steps')}, whose own "
        f"density is uncertain (right: at most {percent(0.1)} of steps); the Monte Carlo error of "
        f"one step is {nats(error)} nats, far less in the means.",
    )


def _table(table: pd.DataFrame) -> Table:
    names = [name for name in ("evidence", "interaction", "choice", "surprise") if name in table]
    rows = [
        [body_name(body), *(with_error(row[n], row[f"{n}_error"]) for n in names)]
        for body, row in table.iterrows()
    ]
    return Table("Nats per step, mean and standard error", ["", *names], rows)
