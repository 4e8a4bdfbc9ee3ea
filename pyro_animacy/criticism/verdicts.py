"""What a run's summary and log say: its score beside the baselines, and its terms by step."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from pyro_animacy.criticism.section import Grade
from pyro_animacy.criticism.wording import nats, number, plus_minus
from pyro_animacy.models.linear_gaussian import EACH

COLLAPSED = 0.01  # nats per step of KL under which the latent variable carries nothing
FOREIGN = 25.0  # nats per step and body below the best baseline: motion of quite another kind
MODEST = 1.0  # nats per step, two standard errors up to which no difference means level


def baseline_name(key: str) -> str:
    """`constant_velocity` -> constant velocity, `ar3_each` -> AR(3), each body."""
    kind = key.removesuffix(EACH)
    order = kind.removeprefix("ar")
    name = f"AR({order})" if order.isdigit() else kind.replace("_", " ")
    return name if kind == key else f"{name}, each body"


def finite_baselines(summary: Mapping[str, Any]) -> dict[str, float]:
    """The baselines that have a score, best first."""
    baselines = summary.get("baselines") or {}
    found = {key: v for key, v in baselines.items() if v is not None and math.isfinite(v)}
    return dict(sorted(found.items(), key=lambda item: -item[1]))


def score_grade(summary: Mapping[str, Any]) -> tuple[Grade, str]:
    """How the held-out score compares with that of the best baseline: the grade, and a sentence.

    Right: above it by two standard errors. Wrong: below it likewise, or by more than FOREIGN nats
    per step and body, whatever the error. Near: level with it, within two standard errors of at
    most MODEST nats per step together. Undefined: an error above that or not known, or no score.
    """
    score, baselines = summary.get("heldout_nats_per_step"), finite_baselines(summary)
    if score is None or not baselines:
        sentence = "The model was not scored beside the baselines on held-out frames."
        return "undefined", sentence
    best = next(iter(baselines))
    gain = score - baselines[best]
    if not math.isfinite(gain):
        return "wrong", f"The held-out score is {number(score)}, so it cannot be compared."
    error = summary.get("gain_standard_error")
    against = f"{nats(score)} nats per step against {nats(baselines[best])} for "
    against += baseline_name(best)
    if is_foreign(summary):
        return "wrong", (
            f"These recordings are nothing like what the run has learned: {against}. Are their "
            "units, arena or rate others than in training, or was it trained too briefly? Then "
            "what follows says little about the model."
        )
    if error is None:
        return "undefined", (
            f"Too few held-out steps were scored to tell it from the best baseline: {against}, and "
            "nothing says whether that is chance."
        )
    if abs(gain) < 2 * error:
        if 2 * error > MODEST:
            return "undefined", (
                f"On held-out frames it cannot be told apart from the best baseline: {against}, "
                f"a difference of {plus_minus(gain, error)} (standard error), too uncertain to "
                "be called level."
            )
        return "near", (
            f"On held-out frames it is level with the best baseline: {against}, a "
            f"difference of {plus_minus(gain, error)} (standard error)."
        )
    if gain > 0:
        odds = f", {number(math.exp(gain))} times the density" if gain < 16 else ""
        return "right", (
            f"It predicts held-out frames better than every baseline: {against}, "
            f"the best of them ({plus_minus(gain, error)} nats per step{odds})."
        )
    return "wrong", (
        f"A simple baseline predicts held-out frames better: {against} (−{nats(-gain)} nats per "
        "step)."
    )


def is_foreign(summary: Mapping[str, Any]) -> bool:
    """Whether the held-out score is so far below that of the best baseline that all is in doubt.

    By FOREIGN for each body of `summary["data"]`, of two where that does not name them.
    """
    score, baselines = summary["heldout_nats_per_step"], finite_baselines(summary)
    bodies = len((summary.get("data") or {}).get("bodies") or "ab")
    return bool(score - max(baselines.values()) < -FOREIGN * bodies)


def doubt(summary: Mapping[str, Any]) -> str:
    """Why a run says nothing of the bodies yet: it is not clearly ahead of a baseline; else ""."""
    (grade, _), baselines = score_grade(summary), finite_baselines(summary)
    if grade == "right" or not baselines or summary.get("heldout_nats_per_step") is None:
        return ""
    how = "no better than" if grade == "wrong" else "not clearly better than"
    return (
        f"the model predicts steps {how} {baseline_name(next(iter(baselines)))}, so these say "
        "nothing about the bodies yet"
    )


def series(metrics: Sequence[Mapping[str, Any]], key: str) -> tuple[list[float], list[float]]:
    """Steps and values of one term of the training log, where it was logged and is finite.

    The log of a run of `act` has a row an episode: of it, episodes and values.
    """
    pairs = [
        (float(x), float(row[key]))
        for row in metrics
        if (x := row.get("step", row.get("episode"))) is not None
        and row.get(key) is not None
        and math.isfinite(row[key])
    ]
    return [x for x, _ in pairs], [y for _, y in pairs]
