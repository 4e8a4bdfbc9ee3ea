"""What `episodes` measured, in words: the sections of a report, with their figures."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr

from pyro_animacy.criticism.episodes import OpenLoop, Pictures, paired
from pyro_animacy.criticism.episodes_plots import (
    plot_dimensions,
    plot_horizon,
    plot_sheet,
    plot_vectors,
)
from pyro_animacy.criticism.section import Finding, Grade, Panel, Section, Table, picture
from pyro_animacy.criticism.verdicts import COLLAPSED
from pyro_animacy.criticism.wording import nats, number, percent
from pyro_animacy.data.windows import evenly
from pyro_animacy.errors import how_many
from pyro_animacy.models.world_model import Sight

HOW: dict[Grade, str] = {  # an error beside that of a rule
    "right": "better than",
    "near": "not clearly better or worse than",
    "wrong": "worse than",
    "undefined": "no better or worse, as far as one episode tells, than",
}
CLOSER = (
    "More training (--train.steps) or a learned scale (--model.image_scale null for an image VAE): "
    "what a small error is worth against the KL depends on it."
)


def bound_section(summary: Mapping[str, Any], found: Pictures | None) -> Section:
    """The section "bound" of a report.

    Args:
        summary: With ``heldout_elbo_per_frame`` and ``heldout_standard_error``.
        found: From `pictures` of an image VAE, whose densities compare with its bound.
    """
    elbo, error = summary["heldout_elbo_per_frame"], summary["heldout_standard_error"]
    spread = "" if error is None else f" ± {number(2 * error)}"
    rows = [("this model, evidence lower bound (ELBO)", f"{nats(elbo)}{spread}")]
    findings = []
    if found is not None and "PCA" in found.density:
        ours, pca = found.density["model"], found.density["PCA"]
        gain = paired(-ours, -pca, found.episode)
        grade = _grade(gain.difference, gain.error)
        how = {
            "right": "more density under the model than",
            "near": "not clearly more or less density under the model than",
            "wrong": "less density under the model than",
            "undefined": "no more or less density, as far as one episode tells, than",
        }
        rows.append(("this model, on the frames below", nats(float(ours.mean()))))
        rows.append((f"PCA, {found.components} components, there", nats(float(pca.mean()))))
        findings.append(Finding(
            grade,
            f"Held-out frames have {how[grade]} under probabilistic "
            f"PCA with as many components: at least {nats(float(ours.mean()))} nats a frame "
            f"against {nats(float(pca.mean()))} (right: more by two standard errors over "
            "episodes).",
            "" if grade == "right" else CLOSER,
        ))  # fmt: skip
    return Section(
        key="bound",
        title="How probable are held-out frames?",
        intro="The model is trained to give what it has seen a high density. Here is the lower "
        "bound of the logarithm of that density for episodes that it has not seen; the more, the "
        "better. It compares models on the same episodes only.",
        findings=findings,
        tables=[Table("Log density of a held-out frame, ± two standard errors",
                      ("", "nats per frame"), rows)],
        note="Densities are per range of a pixel, or in the units of the vector; rewards, ends and "
        "actions, where the model has them, count too; a frame that it is given does not. "
        "Probabilistic PCA: Tipping & Bishop 1999, its "
        "evidence in closed form.",
    )  # fmt: skip


def pictures_section(found: Pictures) -> Section:
    """The section "pictures" of a report: reconstructions and inventions.

    Args:
        found: From `pictures`.
    """
    panels = [
        Panel(
            picture(plot_sheet({"recorded": found.recorded, "from z": found.reconstructed}),
                    "Held-out frames above, the model's reconstructions below.", photo=True),
            "Held-out frames, evenly chosen, and what the model makes of them: the mean picture of "
            "one draw of z from the posterior.",
        )
    ]  # fmt: skip
    if len(found.generated):
        half = len(found.generated) // 2
        sheet = {"from p(z)": found.generated[:half], "": found.generated[half:]}
        panels.append(Panel(
            picture(plot_sheet(sheet), "Frames invented by the model.", photo=True),
            "Invented: z drawn from the prior, and decoded. One hopes for frames that could have "
            "been recorded.",
        ))  # fmt: skip
    findings = [_better(found, rule) for rule in ("PCA", "mean frame") if rule in found.errors]
    if len(found.errors) == 1:
        findings = [Finding("undefined", "What the model was fitted to is not known here, so there "
                            "are no principal components to compare it with.")]  # fmt: skip
    names = {"model": "this model", "PCA": f"PCA, {found.components} components"}
    rows = [
        (names.get(name, name), number(float(error.mean())), number(float(error.mean()) ** 0.5))
        for name, error in sorted(found.errors.items(), key=lambda item: item[1].mean())
    ]
    return Section(
        key="pictures",
        title="Can it reconstruct and invent pictures?",
        intro="A code that says what a frame shows lets the decoder reconstruct it. Principal "
        "components do so linearly: a network that has as many numbers for a frame should come "
        "closer.",
        findings=findings,
        panels=panels,
        tables=[Table("Mean squared error of a pixel on held-out frames",
                      ("", "squared error", "its root"), rows)],
        note="A pixel has the range 1. z is sampled from the posterior, not put at its mean, which "
        "costs the model some error that PCA does not pay. Components and mean frame: of the "
        "frames it was fitted to.",
    )  # fmt: skip


def _better(found: Pictures, rule: str) -> Finding:
    """Whether reconstructions are closer than those of a rule, by two standard errors."""
    ours, theirs = found.errors["model"], found.errors[rule]
    gain = paired(ours, theirs, found.episode)
    grade = _grade(gain.difference, gain.error)
    name = f"PCA with {found.components} components" if rule == "PCA" else "the mean frame"
    return Finding(
        grade,
        f"Held-out frames are reconstructed {HOW[grade]} {name}: squared error "
        f"{number(float(ours.mean()))} a pixel against {number(float(theirs.mean()))} (right: less "
        "by two standard errors over episodes).",
        "" if grade == "right" else CLOSER,
    )


def _grade(difference: float, error: float) -> Grade:
    """Of an error less that of a rule: right below by two standard errors, wrong above likewise."""
    if np.isnan(error):
        return "undefined"
    if abs(difference) < 2 * error:
        return "near"
    return "right" if difference < 0 else "wrong"


def latent_section(use: xr.Dataset, active: npt.NDArray[np.bool_]) -> Section:
    """The section "latent" of a report.

    Args:
        use: From `latent_use`.
        active: Which dimensions are.
    """
    kl = use["kl"].mean(("trajectory", "time")).to_numpy()
    rate, count = float(kl.sum()), int(active.sum())
    grade: Grade = "right" if count and rate >= COLLAPSED else "wrong"
    return Section(
        key="latent",
        title="Which dimensions of the code are used?",
        intro="A dimension is used if its posterior differs from the prior, and differs from frame "
        "to frame. What it tells is counted in nats of KL divergence.",
        findings=[Finding(
            grade,
            f"{count} of {len(kl)} dimensions {'is' if count == 1 else 'are'} active; all "
            f"together carry {nats(rate)} nats a frame, the largest "
            f"{percent(float(kl.max()) / max(rate, 1e-12))} of them.",
            "" if grade == "right" else "A smaller scale (--model.image_scale, "
            "--model.observation_scale or --model.policy_scale null, whichever the model has), "
            "under which details are worth their nats.",
        )],
        panels=[Panel(picture(plot_dimensions(kl, active), "Bars: KL of each dimension."),
                      "KL divergence of each dimension from its prior, the largest first.")],
        note="Active: the posterior mean varies over frames by more than 0.01 prior variances "
        "(Burda, Grosse & Salakhutdinov 2016); of classes, a KL of more than 0.01 nats.",
    )  # fmt: skip


def open_loop_section(loop: OpenLoop, sight: Sight) -> Section:
    """The section "forecast" of a report.

    Args:
        loop: From `open_loop`.
        sight: What there is to see.
    """
    H = loop.errors["open loop"].shape[1]
    what = "squared error of a pixel" if sight.image else "squared error (variances of a feature)"
    panels = [Panel(_picture_of(loop, sight), _caption(loop, sight))]
    panels.append(Panel(
        picture(plot_horizon(loop.errors, loop.fps, what), "Errors by how far ahead."),
        f"Mean {what} by how far ahead; of the open loop that of the mean of "
        f"{len(loop.predicted)} draws. The reconstruction has seen the frame itself.",
    ))  # fmt: skip
    still = "a still picture" if sight.image else "the last frame held"
    findings = [_ahead(loop, still), *_acts(loop), *_rewarded(loop)]
    if loop.reward:
        panels.append(Panel(
            picture(plot_horizon(loop.reward, loop.fps, "squared error of the reward"),
                    "Errors of the reward by how far ahead."),
            "Mean squared error of the predicted reward by how far ahead.",
        ))  # fmt: skip
    steps = sorted({1, *(k for k in (5, 10, 20) if k < H), H})
    rows = [(name, *(number(float(error[:, k - 1].mean())) for k in steps))
            for name, error in loop.errors.items()]  # fmt: skip
    return Section(
        key="forecast",
        title="Does it know how an episode goes on?",
        intro=f"The model sees {how_many(loop.context, 'frame')}, and after that only the actions: "
        "its prior is rolled on under the recorded ones, in open loop. One hopes for errors under "
        f"those of {still} for as long as possible, near the reconstruction at first.",
        findings=findings,
        panels=panels,
        tables=[Table(f"Mean {what}, frames ahead", ("", *map(str, steps)), rows)],
        note="Of each of the windows; standard errors are over episodes. Other actions: the "
        "same forecasts under the actions of another window. The reconstruction of a model that "
        "acts is its policy following the recording.",
    )


def _picture_of(loop: OpenLoop, sight: Sight) -> Any:
    alt = "One window as recorded, reconstructed and predicted."
    if not sight.image:
        return picture(plot_vectors(loop), alt)
    T, K = len(loop.recorded), loop.context
    chosen = [K - 1, *(K + evenly(T - K, 7))]
    rows = {
        "recorded": loop.recorded[chosen],
        "reconstructed": loop.reconstructed[chosen],
        "predicted": loop.predicted[0][chosen],
    }
    return picture(
        plot_sheet(rows, ["given", *(f"+{t - K + 1}" for t in chosen[1:])]), alt, photo=True
    )


def _caption(loop: OpenLoop, sight: Sight) -> str:
    if sight.image:
        return (
            "One window of middling movement, by frames ahead. Reconstructed: the model saw the "
            f"frame itself. Predicted: it saw the first {how_many(loop.context, 'frame')}, then "
            "only the actions."
        )
    return "One window of middling movement; of its features those that move most, in their units."


def _ahead(loop: OpenLoop, name: str) -> Finding:
    """Whether forecasts are better than the last frame, and for how long."""
    ours, still = loop.errors["open loop"], loop.errors["last frame stays"]
    gain = paired(ours.mean(1), still.mean(1), loop.episode)
    grade = _grade(gain.difference, gain.error)
    lost = np.flatnonzero(ours.mean(0) >= still.mean(0))
    H = ours.shape[1]
    if not len(lost):
        until = f" at each of the {how_many(H, 'frame')} ahead"
    elif lost[0]:
        until = f"; the mean error is less up to {how_many(lost[0], 'frame')} ahead"
    elif grade == "right":
        until = ", but not at the first frame ahead"
    else:
        until = ""
    return Finding(
        grade,
        f"In open loop it is {HOW[grade]} {name}: squared error {number(float(ours.mean()))} "
        f"against {number(float(still.mean()))} over {how_many(H, 'frame')}{until} "
        "(right: less by two standard errors over episodes).",
        ""
        if grade == "right"
        else "More training (--train.steps), longer windows "
        "(--train.window) or, of a world_model, overshooting (--train.overshooting.distance).",
    )


def _acts(loop: OpenLoop) -> list[Finding]:
    """Whether the actions make a difference."""
    if "other actions" not in loop.errors:
        return []
    ours, other = loop.errors["open loop"], loop.errors["other actions"]
    gain = paired(ours.mean(1), other.mean(1), loop.episode)
    grade = _grade(gain.difference, gain.error)
    uses = "uses" if grade == "right" else "does not clearly use"
    return [Finding(
        grade,
        f"The model {uses} the actions: given those of another window, the squared error is "
        f"{number(float(other.mean()))} instead of {number(float(ours.mean()))} (right: more by "
        "two standard errors over episodes).",
        "" if grade == "right" else "More training, or longer windows (--train.window): until "
        "the model uses them, nothing can be planned with it.",
    )]  # fmt: skip


def _rewarded(loop: OpenLoop) -> list[Finding]:
    """Whether rewards are predicted better than by their mean."""
    if "mean reward" not in loop.reward:
        return []
    ours, mean = loop.reward["open loop"], loop.reward["mean reward"]
    gain = paired(ours.mean(1), mean.mean(1), loop.episode)
    grade = _grade(gain.difference, gain.error)
    return [Finding(
        grade,
        f"Rewards ahead are predicted {HOW[grade]} by their mean: squared error "
        f"{number(float(ours.mean()))} against {number(float(mean.mean()))} (right: less by two "
        "standard errors over episodes).",
        "" if grade == "right" else "A larger --model.reward_weight.",
    )]  # fmt: skip
