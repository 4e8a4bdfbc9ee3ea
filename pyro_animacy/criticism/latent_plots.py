"""What `latent` measured, in figures and words."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from pyro_animacy.criticism.attempts import smaller_kl_weight
from pyro_animacy.criticism.latent import ACTIVE, NEIGHBOURS, Surgery, kl_per_step
from pyro_animacy.criticism.section import Finding, Grade, Panel, Section, embed, picture
from pyro_animacy.criticism.style import (
    BODY_COLOURS,
    QUIET,
    WIDTH,
    styled,
)
from pyro_animacy.criticism.traversal import REACH, Traversal, traversal_gif
from pyro_animacy.criticism.verdicts import COLLAPSED, score_grade
from pyro_animacy.criticism.wording import counted, nats, number, percent, seconds, signed, tick

LITTLE = 0.1  # nats per step under which a latent does little
WASTE = (0.1, 0.3)  # share of the rate lost to the aggregate posterior: right up to, near up to
UNSEEN = 0.02  # share of the path that a traversal must turn to be seen
WIDER = 1.25  # factor of the policy's standard deviation that is seen
ROWS = 24  # dimensions drawn at most


def plot_kl(use: xr.Dataset) -> Figure:
    """KL of each dimension, most first; the active ones in colour.

    Args:
        use: from `latent_use`.
    """
    kl = kl_per_step(use)
    order = np.argsort(-kl, kind="stable")[:ROWS]
    active = use["activity"].to_numpy()[order] > ACTIVE
    with styled():
        figure = Figure(figsize=(WIDTH, 1.0 + 0.17 * len(order)), layout="constrained")
        axis = figure.subplots()
        colours = np.where(active, BODY_COLOURS[0], "#a8a8a8")
        axis.barh(np.arange(len(order)), kl[order], color=list(colours), height=0.75)
        axis.set_yticks(range(len(order)), [str(dim) for dim in order], fontsize=8)
        axis.invert_yaxis()
        axis.grid(axis="y", visible=False)
        more = len(kl) - len(order)
        axis.set_ylabel("dimension" + (f" ({more} more have less)" if more else ""))
        axis.xaxis.set_major_locator(MaxNLocator(5))
        axis.set_xlabel("KL divergence from the prior (nats per step)")
        looks = [(BODY_COLOURS[0], "active"), ("#a8a8a8", "not active")]
        handles = [Patch(color=colour, label=label) for colour, label in looks]
        axis.legend(handles=handles, loc="lower right")
    return figure


def plot_rate_distortion(use: xr.Dataset) -> Figure:
    """The run's rate and distortion, lines of equal ELBO, and the way of the training.

    Args:
        use: from `latent_use`.
    """
    rate, distortion = _rate_distortion(use)
    rates, distortions = use["training_rate"].to_numpy(), use["training_distortion"].to_numpy()
    late = distortions[distortions <= np.quantile([*distortions, distortion], 0.85)]
    low, high = min([*late, distortion]), max([*late, distortion])
    pad = 0.12 * max(high - low, 0.5)
    right = 1.25 * max([*rates, rate, 0.05])
    with styled():
        figure = Figure(figsize=(WIDTH, 3.4), layout="constrained")
        axis = figure.subplots()
        axis.grid(visible=False)
        x, y = np.meshgrid(np.linspace(0, right, 50), np.linspace(low - pad, high + pad, 50))
        lines = axis.contour(x, y, -(x + y), levels=8, colors="#b5b5b5", linestyles="-",
                             linewidths=0.8)  # fmt: skip
        axis.clabel(lines, fmt=lambda v: f"ELBO {number(v)}", fontsize=7, colors=QUIET)
        if rates.size:
            axis.plot(rates, distortions, color=BODY_COLOURS[0], marker="o", ms=3, lw=1.2,
                      label="training batches, in order")  # fmt: skip
        axis.plot(rate, distortion, "D", color=BODY_COLOURS[1], mec="white", ms=9, ls="none",
                  label="these recordings")  # fmt: skip
        axis.set(xlim=(0, right), ylim=(low - pad, high + pad))
        axis.xaxis.set_major_formatter(tick)
        axis.yaxis.set_major_formatter(tick)
        axis.set_xlabel("rate: KL divergence (nats per step)")
        axis.set_ylabel("distortion: −log density\n(nats per step)")
        figure.legend(loc="outside lower center", ncols=2)
    return figure


def _rate_distortion(use: xr.Dataset) -> tuple[float, float]:
    steps = use["distortion"].notnull()
    return float(use["kl"].sum("latent_dim").where(steps).mean()), float(use["distortion"].mean())


def section(
    use: xr.Dataset, traversals: Sequence[Traversal], summary: Mapping[str, Any]
) -> Section:
    """The section "latent" of a report.

    Args:
        use: from `latent_use`.
        traversals: from `traversals`.
        summary: the run's, with its options of training as `train`.
    """
    rate, distortion = _rate_distortion(use)
    elbo = f"an ELBO of {nats(-rate - distortion)} nats per step (more is better)"
    path = "the line is the training, on its own batches" if use["training_rate"].size else (
        "the path of training is not drawn, because its log holds no rate and distortion of this "
        "kind (it does with the policy likelihood, teacher forced and without discount)"
    )  # fmt: skip
    gap = " If it ends below the diamond, the model fits what it was trained on better than these."
    gap = gap if use["training_rate"].size else ""
    if (K := use.attrs.get("trained", 1)) > 1:
        gap += (
            f" Both are of single draws; this run was trained on the bound of {K}, not on the ELBO."
        )
    panels = [
        Panel(picture(plot_kl(use), "Bars: the KL divergence of each dimension of the latent."),
              "What each dimension of the latent carries. All near 0: the latent is not used. "
              f"{_traversed(use, traversals)}"),
        Panel(picture(plot_rate_distortion(use), f"Rate {nats(rate)}, distortion "
                      f"{nats(distortion)} nats per step."),
              f"Rate and distortion, with {elbo}. Along a grey line the ELBO is the same; at "
              f"rate 0 the latent is not used. The diamond is these recordings; {path}.{gap}"),
    ]  # fmt: skip
    for t in traversals:
        caption = (
            f"Dimension {t.dim} held at one value after another: {_farthest(t)}; {_widest(t)}."
        )
        if t is traversals[0]:
            caption += (
                f" Each path lasts {seconds((t.paths.shape[1] - 1) / t.fps)}, the other dimensions "
                "at their prior mean, without noise. Grey: recorded before. Disc: one standard "
                "deviation of the policy's noise added up over the path, assuming it stays as at "
                "the first step and steps are independent. Paths that stay together: the dimension "
                "does nothing."
            )
        panels.append(Panel(embed(traversal_gif(t), "gif", caption), caption))
    attempt = smaller_kl_weight(summary)
    findings = [*_surgery(use, rate), *_turned(traversals, attempt)]
    if _dead(use):
        findings = [_unused(finding) for finding in findings]
    return Section(
        key="latent",
        title="Does the latent variable do work?",
        intro="The latent variable stands for what the bodies chose to do at each step. It does "
        "work if the step that was recorded changes what the model believes of it (the KL "
        "divergence of its posterior from its prior, in nats), and if another value of it would "
        "have moved the bodies otherwise. One hopes for active dimensions, for a rate that tells "
        "steps apart, and for paths that fan out.",
        findings=[_carried(use, rate, attempt, score_grade(summary)[0]), *findings],
        panels=panels,
        note="Active: the posterior mean varies over steps by more than 0.01 prior variances "
        "around the prior's (Burda, Grosse & Salakhutdinov 2016). Posterior collapse: under "
        f"{COLLAPSED} nats per step. Rate and distortion: Alemi et al. 2018. Mutual information "
        "and aggregate posterior: Hoffman & Johnson 2016, in prior standard deviations around the "
        "prior mean of each step. Dimensions count from 0; their signs mean nothing.",
    )


def _traversed(use: xr.Dataset, traversals: Sequence[Traversal]) -> str:
    """Of how many dimensions a traversal is shown."""
    if not traversals:
        return "No dimension is known to be active, so no traversal is shown."
    active = int((use["activity"] > ACTIVE).sum())
    of = counted(len(traversals), active, "active dimensions")
    return f"Traversals are shown of {of}, most KL first."


def _dead(use: xr.Dataset) -> bool:
    """Whether it is known of every dimension that it is not active."""
    return bool((use["activity"] <= ACTIVE).all())


def _unused(finding: Finding) -> Finding:
    """What is good of a latent that is used says nothing of one that is not."""
    if finding.grade != "right":
        return finding
    return Finding(
        "undefined", f"No dimension is active, so this does not show it at work: {finding.sentence}"
    )


def _carried(use: xr.Dataset, rate: float, attempt: str, score: Grade) -> Finding:
    """How many dimensions are active, and what they carry.

    Args:
        use: from `latent_use`.
        rate: nats per step.
        attempt: what to try where that is nothing.
        score: of the model's score beside that of the best baseline.
    """
    kl, Z = kl_per_step(use), use.sizes["latent_dim"]
    if rate < COLLAPSED and score == "near":
        return Finding(
            "near",
            f"The latent carries {number(rate)} nats per step, under {COLLAPSED}: what a linear "
            "model of the last frames leaves open, as well as this one, may be nothing but chance; "
            "if it is not, the posterior has collapsed.",
        )
    if rate < COLLAPSED and score == "right":
        return Finding(
            "near",
            f"The latent carries {number(rate)} nats per step, under {COLLAPSED}: from a situation "
            "the model goes on in one way only, but for noise. That is enough where one step ahead "
            "it is calibrated; where it is not, the posterior has collapsed.",
            f"{attempt}.",
        )
    if rate < COLLAPSED:
        return Finding(
            "wrong",
            f"Posterior collapse: the latent carries {number(rate)} nats per step, under "
            f"{COLLAPSED}, so the model knows of one way only to go on from a situation.",
            f"{attempt}.",
        )
    if use["activity"].isnull().all():
        return Finding(
            "undefined", "There is only one recorded step, and whether a dimension is active shows "
            "only in how its posterior differs between steps.",
        )  # fmt: skip
    if _dead(use):
        return Finding(
            "wrong",
            f"{counted(0, Z, 'dimensions').capitalize()} is active: the latent carries "
            f"{nats(rate)} nats per step, and what the posterior says of it is nearly the same at "
            "every step.",
            f"{attempt}.",
        )
    active = use["activity"].to_numpy() > ACTIVE
    idle = int((~active & (kl < COLLAPSED)).sum())
    rest = "" if not idle else (
        f"As good as the prior, at under {COLLAPSED} nats each: {idle} of the others, which cost "
        "nothing; a smaller --model.latent_size would do."
    )  # fmt: skip
    are = "is active; it carries" if active.sum() == 1 else "are active; they carry"
    said = (
        f"{int(active.sum())} of {Z} dimensions {are} {nats(kl[active].sum())} of the {nats(rate)} "
        f"nats per step, and the largest alone {nats(kl.max())}"
    )
    if round(rate, 2) < LITTLE:  # as it is said
        return Finding(
            "near",
            f"{said}: under {LITTLE} nats per step the latent does little, and the model says "
            "nearly the same whatever it is.",
            f"{attempt}.",
        )
    return Finding("right", f"{said}.", more=rest)


def _surgery(use: xr.Dataset, rate: float) -> list[Finding]:
    """Whether the rate tells steps apart, or is lost to an aggregate posterior off the prior."""
    steps, information = int(use["surgery_steps"]), float(use["information"])
    if rate < COLLAPSED:
        return []
    if steps < NEIGHBOURS:
        return [Finding("undefined", f"With {steps} recorded steps the mutual information of step "
                        "and latent cannot be estimated.")]  # fmt: skip
    error, used = 2 * float(use["surgery_error"]), float(use["surgery_rate"])
    lost = float(use["marginal_kl"])
    surgery = Surgery(used, information, lost, error / 2, steps)
    if surgery.at_bound:
        return [Finding("undefined", f"The mutual information of step and latent is at least "
                        f"{nats(information)} nats, near the most that {steps:,} steps can show "
                        f"(log {steps:,} = {nats(math.log(steps))}), so what is lost to the "
                        "aggregate posterior cannot be estimated.")]  # fmt: skip
    right, near = (share * used for share in WASTE)
    chance = right < lost <= error
    grade: Grade = "right" if lost <= right else "near" if lost <= near or chance else "wrong"
    said = (
        f"Of {nats(used)} nats per step, {nats(min(information, used))} tell one step from another "
        f"(the mutual information of step and latent; two standard errors are {nats(error)}); "
        f"{nats(max(0.0, lost))} are the divergence of the posterior over all steps together from "
        "the prior"
    )
    if round(used, 2) < LITTLE:
        return [Finding("undefined", f"{said}: of under {LITTLE} nats, neither says much.")]
    return [
        Finding(
            grade,
            f"{said}, which {'may be chance and ' if chance else ''}should be under "
            f"{percent(WASTE[0])} of it: generation draws from that prior, and where the two "
            "differ the policy meets values that it was seldom trained on.",
            ""
            if grade == "right"
            else "A larger prior network (--model.prior.hidden) or a longer --model.history.",
        )
    ]


def _turned(traversals: Sequence[Traversal], attempt: str) -> list[Finding]:
    """Whether another value of the latent moves the bodies otherwise."""
    if not traversals:
        return []
    held = f"from {signed(-REACH)} to {signed(REACH)} prior standard deviations"
    far = max(traversals, key=lambda t: (t.reach / t.length.max()).max() if t.length.any() else 0)
    wide = max(traversals, key=lambda t: t.widening.max())
    turns = bool(far.reach.max() > UNSEEN * far.length.max())
    widens = bool(wide.widening.max() > WIDER)
    if not turns and not widens:
        return [
            Finding(
                "wrong",
                f"No dimension with a traversal does anything to the motion when held {held}: no "
                f"path ends more than {percent(UNSEEN)} of its length away, and the policy's "
                f"standard deviation changes by less than a factor of {WIDER}.",
                f"{attempt}.",
            )
        ]
    where = (
        f"dimension {far.dim} says where to go: held {held}, {_farthest(far)}, on a path of "
        f"{number(float(far.length.max()))} {far.units}" if turns else "no dimension says where "
        f"to go: no path ends more than {percent(UNSEEN)} of its length away"
    )  # fmt: skip
    sure = f"; dimension {wide.dim} says how sure it is: {_widest(wide)}" if widens else ""
    return [Finding("right", f"From a recorded state, {where}{sure}.")]


def _farthest(traversal: Traversal) -> str:
    body = int(traversal.reach.argmax())
    return (
        f"{traversal.name(body)} ends up to {number(float(traversal.reach[body]))} "
        f"{traversal.units} away"
    )


def _widest(traversal: Traversal) -> str:
    body = int(traversal.widening.argmax())
    low, high = (float(f(traversal.spread[:, body])) for f in (np.min, np.max))
    return (
        f"the standard deviation of the next displacement of {traversal.name(body)} goes from "
        f"{number(low)} to {number(high)} {traversal.units}"
    )
