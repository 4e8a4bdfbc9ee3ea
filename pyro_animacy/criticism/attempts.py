"""What to try next, by small rules: each reads some figures of a run."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from pyro_animacy.criticism.comparison import Comparison
from pyro_animacy.criticism.judgement import FEW_DRAWS, judge, resting
from pyro_animacy.criticism.verdicts import (
    COLLAPSED,
    is_foreign,
    score_grade,
    series,
)
from pyro_animacy.criticism.wording import number
from pyro_animacy.infer.schedules import KLWeightConfig
from pyro_animacy.models.scene_config import REST_NEEDS, allows_rest

LEAST_FALL = 0.05  # nats per step; less is noise of the validation score
SMALLER = "More data or a smaller model"
LARGER = ("A larger ", "Train longer")  # how advice begins that is contrary to it


@dataclass(frozen=True)
class Figures:
    """What the rules of `attempts` look at."""

    comparisons: Sequence[Comparison]
    summary: Mapping[str, Any]
    metrics: Sequence[Mapping[str, Any]]
    found: Sequence[str]  # what the findings of the sections say to try

    @property
    def model(self) -> Mapping[str, Any]:
        """The options of the model."""
        return self.summary.get("model") or {}

    @property
    def scored(self) -> bool:
        """Whether the score is what training looks at."""
        return self.model.get("likelihood") != "squared_error"

    @cached_property
    def wrong(self) -> dict[str, Comparison]:
        """The statistics of motion that are wrong, by name."""
        return {c.statistic.name: c for c in self.comparisons if judge(c).grade == "wrong"}


def attempts(figures: Figures) -> list[str]:
    """What to try next: what the rules say, then the findings; a last resort where none does.

    A model that has learned its recordings by heart is not to be larger, or trained for longer.
    """
    said = [sentence for rule in RULES if (sentence := rule(figures))] + list(figures.found)
    if any(sentence.startswith(SMALLER) for sentence in said):
        said = [sentence for sentence in said if not sentence.startswith(LARGER)]
    return said or [next(sentence for rule in LAST if (sentence := rule(figures)))]


def _stopped(figures: Figures) -> str:
    if not (stopped := figures.summary.get("stopped")):
        return ""
    return (
        f"The rest of the training ({stopped['resume']}): it was stopped at step "
        f"{stopped['step']:,} of {stopped['of']:,}."
    )


def _headings(figures: Figures) -> str:
    shaky = [name for name in ("acceleration", "turning angle") if name in figures.wrong]
    if not shaky or figures.model.get("history") != 1:
        return ""
    return (
        f"--model.history 2 or more: the {' and '.join(shaky)} cannot be right while the model "
        "sees positions only, since a position does not say where a body was heading."
    )


def _noise(figures: Figures) -> str:
    if figures.scored:
        return ""
    return (
        "--model.likelihood policy: with squared error the scale of the noise is set by hand, "
        "not learned, so speeds and scores depend on that setting."
    )


def _drift(figures: Figures) -> str:
    distance = figures.wrong.get("inter-body distance")
    far = distance is not None and distance.generated_mean > distance.observed_mean
    if not far or figures.model.get("roll_out") == "closed_loop":
        return ""
    but = " In closed loop nobody rests." if figures.model.get("rest") else ""
    return (
        "Closed-loop training over longer windows (--model.roll_out closed_loop --train.window "
        f"24): bodies drift apart, which training one step at a time does not punish. It takes "
        f"many times as long, and single steps score less.{but}"
    )


def _rest(figures: Figures) -> str:
    model, said = figures.model, " ".join(resting(c) for c in figures.wrong.values())
    on, allowed = bool(model.get("rest")), allows_rest(model)
    if "too often" in said and on and allowed:
        return (
            "Longer training (--train.steps), or a policy without a state of rest (--model.rest "
            "false): bodies rest too often."
        )
    if "too seldom" not in said or (on and allowed):
        return ""
    if on:
        return (
            "The state of rest (--model.rest true) has no effect, and bodies rest too seldom: it "
            f"is for {REST_NEEDS}."
        )
    needs = "" if allowed else f", which is for {REST_NEEDS}"
    return (
        f"A policy with a state of rest (--model.rest true{needs}): a Gaussian one seldom makes a "
        "step below the recording's resolution."
    )


def _length(figures: Figures) -> str:
    """Whether to train for longer, or on more: by the validation scores."""
    steps, scores = series(figures.metrics, "validation_nats_per_step")
    if not figures.scored or not scores or figures.summary.get("stopped"):
        return ""
    if len(scores) == 1:
        return (
            "Longer training (--train.steps) may help: there is one validation score, so nothing "
            "shows that it had stopped rising."
        )
    best = max(range(len(scores)), key=scores.__getitem__)
    if best == len(scores) - 1:
        return (
            "Longer training (--train.steps) is likely to help: the best validation score was "
            "the last one."
        )
    span = max(scores) - min(scores)
    if len(scores) < 5 or scores[best] - scores[-1] <= max(0.1 * span, LEAST_FALL):
        return ""
    return (
        f"{SMALLER}: the validation score was best at step "
        f"{int(steps[best]):,} and fell after it (overfitting)."
    )


def _collapse(figures: Figures) -> str:
    _, kl = series(figures.metrics, "kl")
    attempt = smaller_kl_weight(figures.summary)
    said = any(other.startswith(attempt) for other in figures.found)
    if not kl or abs(kl[-1]) >= COLLAPSED or said:
        return ""
    return (
        f"{attempt}, if one step ahead the model is not calibrated: the KL is {number(kl[-1])}, so "
        "the latent variable carries nothing and from a situation it goes on in one way only, but "
        "for noise."
    )


def _score(figures: Figures) -> str:
    """What to try where a baseline has the better score."""
    if not figures.scored or score_grade(figures.summary)[0] != "wrong":
        return ""
    if math.isfinite(figures.summary["heldout_nats_per_step"]) and is_foreign(figures.summary):
        return (
            "Recordings in the units, arena and rate of those that the run was fitted to, or a new "
            "fit on these, or a longer one (--train.steps)."
        )
    return (
        "A larger model (--model.policy.hidden) or more training (--train.steps): until it beats "
        "the best baseline, it explains less than a linear model of the last frames does."
    )


def _draws(figures: Figures) -> str:
    if not figures.comparisons or (n := len(figures.comparisons[0].generated)) >= FEW_DRAWS:
        return ""
    return (
        f"More draws ({FEW_DRAWS} or more, 100 is good): with {n} the tail probabilities say "
        "nothing."
    )


def _one_at_a_time(figures: Figures) -> str:
    if not figures.wrong:
        return ""
    return (
        f"These figures do not say what would mend the {_either(figures.wrong)}. Watch the "
        "motion, then change one option at a time: --model.history, --model.latent_size, "
        "--model.roll_out."
    )


def _observed(figures: Figures) -> str:
    unknown = sum(judge(c).grade == "undefined" for c in figures.comparisons)
    if unknown <= len(figures.comparisons) / 2:
        return ""
    return (
        "Recordings in which bodies are observed for several frames in a row: most statistics "
        "could not be compared here."
    )


def _nothing(_: Figures) -> str:
    return "Longer roll-outs and other recordings: nothing in these figures asks for a change."


# Each reads some figures of a run, and has a sentence or "": what is not trained out comes first.
RULES = (_stopped, _length, _score, _headings, _noise, _drift, _rest, _collapse, _draws)
LAST = (_one_at_a_time, _observed, _nothing)


def _either(names: Iterable[str]) -> str:
    *first, last = names
    return f"{', '.join(first)} or {last}" if first else last


def gentle_kl_weight(train: Mapping[str, Any], steps: int) -> KLWeightConfig:
    """A weight of the KL that rises from a hundredth of what it was to that, by mid-training.

    Args:
        train: The run's options of training.
        steps: Updates of the run; where they are few it gets there at the last.
    """
    end = (train.get("kl_weight") or {}).get("end", 1.0)
    epochs = max(2, steps // train.get("steps_per_epoch", 1))
    levels = min(10, epochs)
    every = max(1, epochs // (2 * levels))
    return KLWeightConfig(start=end / 100, end=end, levels=levels, every=every)


def smaller_kl_weight(summary: Mapping[str, Any]) -> str:
    """What to try against a latent that carries nothing, with the options.

    Args:
        summary: The run's, with its options of training as `train`.
    """
    train = summary.get("train") or {}
    steps = summary.get("steps") or train.get("steps")
    if steps is None:
        return "A smaller KL weight at the start (--train.kl_weight.start)"
    weight = gentle_kl_weight(train, steps)
    options = " ".join(
        f"--train.kl_weight.{name} {getattr(weight, name):g}"
        for name in ("start", "end", "levels", "every")
    )
    return f"A smaller KL weight at the start ({options})"
