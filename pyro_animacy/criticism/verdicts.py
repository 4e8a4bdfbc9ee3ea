"""From numbers to sentences, by plain rules: what is right, what is wrong, what to try."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pyro_animacy.criticism.comparison import Comparison
from pyro_animacy.criticism.judgement import (
    FEW_DRAWS,
    judge,
    resting,
)
from pyro_animacy.criticism.section import Grade, Section
from pyro_animacy.criticism.wording import nats, number, plus_minus

COLLAPSED = 0.01  # nats per step of KL under which the latent variable carries nothing
FOREIGN = 50.0  # nats per step below the best baseline: recordings of quite another kind
MODEST = 1.0  # nats per step, two standard errors up to which no difference means level
ENTRIES = 6  # sentences in a list of the summary, at most
NAMED = 4  # statistics named in its sentence on motion
LEADING = ("guide", "calibration")  # sections said before the motion


@dataclass(frozen=True)
class InShort:
    """The top of the report: what is right, nearly right and wrong, and what to try next.

    `where` has the key and the title of the section that a sentence is from.
    """

    right: tuple[str, ...]
    near: tuple[str, ...]
    wrong: tuple[str, ...]
    attempt: tuple[str, ...]
    where: Mapping[str, tuple[str, str]] = field(default_factory=dict)


def baseline_name(key: str) -> str:
    """`constant_velocity` -> constant velocity, `ar3` -> AR(3)."""
    if key.startswith("ar") and key[2:].isdigit():
        return f"AR({key[2:]})"
    return key.replace("_", " ")


def finite_baselines(summary: Mapping[str, Any]) -> dict[str, float]:
    """The baselines that have a score, best first."""
    baselines = summary.get("baselines") or {}
    found = {key: v for key, v in baselines.items() if v is not None and math.isfinite(v)}
    return dict(sorted(found.items(), key=lambda item: -item[1]))


def score_grade(summary: Mapping[str, Any]) -> tuple[Grade, str]:
    """How the held-out score compares with that of the best baseline: the grade, and a sentence.

    Right: above it, by two standard errors where the error is known. Wrong: below it likewise, or
    by more than FOREIGN nats per step, whatever the error. Near: level with it, that is within two
    standard errors of at most MODEST nats per step together. Undefined: an error above that, or no
    score.
    """
    score, baselines = summary.get("heldout_nats_per_step"), finite_baselines(summary)
    if score is None or not baselines:
        sentence = "The model was not scored beside the baselines on held-out frames."
        return "undefined", sentence
    best = next(iter(baselines))
    gain = score - baselines[best]
    if not math.isfinite(gain):
        return "wrong", f"The held-out score is {number(score)}: it cannot be compared."
    error = summary.get("gain_standard_error")
    against = f"{nats(score)} nats per step against {nats(baselines[best])} of "
    against += baseline_name(best)
    if gain < -FOREIGN:
        return "wrong", (
            f"These recordings are nothing like what the run was fitted to: {against}. Other "
            "units, another arena or another rate? What follows then says little of the model."
        )
    if error is not None and abs(gain) < 2 * error:
        if 2 * error > MODEST:
            return "undefined", (
                f"Predicting held-out frames, it cannot be told from the best baseline: {against}, "
                f"a difference of {plus_minus(gain, error)} (standard error), too uncertain to "
                "call level."
            )
        return "near", (
            f"Predicting held-out frames, it is level with the best baseline: {against}, a "
            f"difference of {plus_minus(gain, error)} (standard error)."
        )
    size = f"{nats(abs(gain))} nats per step"
    if gain > 0:
        odds = f", {number(math.exp(gain))} times the density" if gain < 16 else ""
        return "right", (
            f"It predicts held-out frames better than every baseline: {against}, "
            f"the best of them (+{size}{odds})."
        )
    return "wrong", f"A simple baseline predicts held-out frames better: {against} (−{size})."


def doubt(summary: Mapping[str, Any]) -> str:
    """Why a run says nothing of the bodies yet: it is not clearly ahead of a baseline; else ""."""
    (grade, _), baselines = score_grade(summary), finite_baselines(summary)
    if grade == "right" or not baselines or summary.get("heldout_nats_per_step") is None:
        return ""
    how = "no better than" if grade == "wrong" else "not clearly better than"
    return (
        f"the model foresees steps {how} {baseline_name(next(iter(baselines)))}, so these say "
        "nothing of the bodies yet"
    )


def in_short(
    comparisons: Sequence[Comparison],
    summary: Mapping[str, Any],
    metrics: Sequence[Mapping[str, Any]],
    lost: float = 0.0,
    sections: Sequence[Section] = (),
) -> InShort:
    """The report in a few sentences, at most `ENTRIES` a list.

    The score leads, then the guide and calibration, the motion, and all other sections. A section
    has one sentence in each list, its first of that grade; the statistics of motion share one.

    Args:
        comparisons: all of them, from `compare`.
        summary: the run's summary.
        metrics: the run's training log.
        lost: share of generated positions that are not finite.
        sections: the instruments', whose findings are merged.
    """
    lists: dict[str, list[str]] = {"right": [], "near": [], "wrong": []}
    where: dict[str, tuple[str, str]] = {}
    if lost > 0:
        lists["wrong"].append(
            f"{number(100 * lost)}\u00a0% of the generated positions are not finite: the motion "
            "explodes. Everything below is of the rest."
        )
    score, sentence = score_grade(summary)
    if score in lists:
        lists[score].append(sentence)
        where[sentence] = ("score", "Score")
    for grade, sentences in lists.items():
        lead = [s for s in sections if s.key in LEADING]
        rest = [s for s in sections if s.key not in LEADING]
        said = [_of_section(s, grade) for s in lead]
        said += [(_of_checks(comparisons, grade), "checks", "Motion statistics")]
        said += [_of_section(s, grade) for s in rest]
        for sentence, key, title in said:
            if sentence:
                sentences.append(sentence)
                where[sentence] = (key, title)
    if not lists["wrong"]:
        lists["wrong"].append(_nothing_wrong(comparisons))
    attempts = _attempts(comparisons, summary, metrics, _of_findings(sections))
    right, near, wrong, attempt = (_at_most(x) for x in (*lists.values(), attempts))
    return InShort(right, near, wrong, attempt, where)


def _nothing_wrong(comparisons: Sequence[Comparison]) -> str:
    """What is said where nothing is graded wrong: that it is right, or that it is not known."""
    unknown = [c for c in comparisons if judge(c).grade == "undefined"]
    if len(unknown) < len(comparisons):
        seen = "Nothing that these checks can see; they look at short stretches of motion."
        few = f" {len(unknown)} of {len(comparisons)} statistics of motion are not known."
        return seen + (few if unknown else "")
    if any(c.observed.size and len(c.generated) < FEW_DRAWS for c in unknown):
        return "Not known: there are too few draws to tell anything of the motion from chance."
    return (
        "Not known: no statistic of motion can be taken, as too few frames in a row are observed "
        "or the generated ones are not finite."
    )


def _at_most(sentences: Sequence[str]) -> tuple[str, ...]:
    if len(sentences) <= ENTRIES:
        return tuple(sentences)
    return (*sentences[: ENTRIES - 1], f"And {len(sentences) - ENTRIES + 1} more below.")


def _of_section(section: Section, grade: str) -> tuple[str, str, str]:
    """The first finding of a grade without its criteria, and where there are more; "" if none."""
    found = [finding.sentence for finding in section.findings if finding.grade == grade]
    if not found:
        return "", section.key, section.title
    first = re.sub(r" \((right|near):[^()]*\)", "", found[0])
    first = re.split(r"(?<=[.?!]) (?=[A-Z0-9])", first)[0]
    more = f" ({len(found) - 1} more)" if len(found) > 1 else ""
    return first, section.key, f"{section.title}{more}"


def _of_checks(comparisons: Sequence[Comparison], grade: str) -> str:
    """One sentence on the statistics of motion of a grade, those that differ most first."""
    said: list[tuple[float, str]] = []
    count = 0
    for _, group in itertools.groupby(comparisons, key=lambda c: c.statistic.name):
        judged = [(comparison, judge(comparison)) for comparison in group]
        chosen = [pair for pair in judged if pair[1].grade == grade]
        if not chosen:
            continue
        count += len(chosen)
        statistic = chosen[0][0].statistic
        bodies = listed([c.body for c, _ in chosen], len(judged), statistic.over.kind)
        ways = {verdict.sentence.split(" (")[0] for _, verdict in chosen}
        way = ways.pop() if len(ways) == 1 and grade != "right" else ""
        way = f" ({way})" if way and not way[0].isdigit() else ""
        said.append((max(c.effect for c, _ in chosen), f"{statistic.name} of {bodies}{way}"))
    if not said:
        return ""
    said.sort(key=lambda pair: -pair[0] if grade != "right" else pair[0])
    words = {"right": "as recorded", "near": "close to the recording", "wrong": "wrong"}[grade]
    more = f"; and {len(said) - NAMED} more below" if len(said) > NAMED else ""
    return (
        f"Motion, {words} in {count} of {len(comparisons)} checks: "
        f"{'; '.join(text for _, text in said[:NAMED])}{more}."
    )


def _of_findings(sections: Sequence[Section]) -> list[str]:
    """What the findings say to try, of what is wrong first; each said once."""
    found: dict[str, str] = {}
    for grade in ("wrong", "near"):
        for finding in (f for section in sections for f in section.findings):
            if finding.grade == grade and finding.attempt:
                found.setdefault(finding.attempt.split(". ")[0].rstrip("."), finding.attempt)
    return list(found.values())


def listed(names: Sequence[str], of: int, kind: str) -> str:
    """Names of bodies, or "every body" where they are all of several."""
    if len(names) == of > 1:
        return f"every {kind}"
    shown = ", ".join(names[:4])
    return f"{shown} and {len(names) - 4} more" if len(names) > 4 else shown


def _attempts(
    comparisons: Sequence[Comparison],
    summary: Mapping[str, Any],
    metrics: Sequence[Mapping[str, Any]],
    found: Sequence[str],
) -> list[str]:
    """What to try next: each rule reads one figure of the run; then what the findings say."""
    attempts: list[str] = []
    model = summary.get("model") or {}
    wrong = {c.statistic.name: c for c in comparisons if judge(c).grade == "wrong"}
    shaky = [name for name in ("acceleration", "turning angle") if name in wrong]
    if shaky and model.get("history") == 1:
        attempts.append(
            f"--model.history 2 or more: the {' and '.join(shaky)} cannot be right while the model "
            "sees positions only, since a position does not say where a body was heading."
        )
    if model.get("likelihood") == "squared_error":
        attempts.append(
            "--model.likelihood policy: with squared error the scale of the noise is set by hand, "
            "not learned, so speeds and scores depend on that setting."
        )
    distance = wrong.get("inter-body distance")
    far = distance is not None and distance.generated_mean > distance.observed_mean
    if far and model.get("roll_out") != "closed_loop":
        attempts.append(
            "Closed-loop training over longer windows (--model.roll_out closed_loop --train.window "
            "24): bodies drift apart, which training one step at a time does not punish."
        )
    if any(resting(c).startswith("too seldom") for c in wrong.values()):
        attempts.append(
            "A policy with a state of rest: a Gaussian one seldom gives a step below the "
            "recording's resolution, and no option of this model mends that."
        )
    scored = model.get("likelihood") != "squared_error"  # the score is what training looks at
    attempts += _training_attempts(metrics, scored)
    attempts += [] if not scored else _score_attempts(summary)
    if comparisons and len(comparisons[0].generated) < FEW_DRAWS:
        attempts.append(
            f"More draws ({FEW_DRAWS} or more, 100 is good): with "
            f"{len(comparisons[0].generated)} the tail probabilities say nothing."
        )
    attempts += found
    if not attempts and wrong:
        attempts.append(
            f"These figures do not say what would mend the {_either(wrong)}. Watch the "
            "motion, then change one option at a time: --model.history, --model.latent_size, "
            "--model.roll_out."
        )
    unknown = sum(judge(c).grade == "undefined" for c in comparisons)
    if not attempts and unknown > len(comparisons) / 2:
        attempts.append(
            "Recordings in which bodies are observed for several frames in a row: most statistics "
            "could not be compared here."
        )
    if not attempts:
        attempts.append(
            "Longer roll-outs and other recordings: nothing in these figures asks for a change."
        )
    return attempts


def _score_attempts(summary: Mapping[str, Any]) -> list[str]:
    """What to try where a baseline has the better score."""
    score, baselines = summary.get("heldout_nats_per_step"), finite_baselines(summary)
    if score_grade(summary)[0] != "wrong":
        return []
    if score is not None and math.isfinite(score) and score < max(baselines.values()) - FOREIGN:
        return [
            "Recordings in the units, arena and rate of those that the run was fitted to, or a new "
            "fit on these."
        ]
    return [
        "A larger model (--model.policy.hidden) or more training (--train.steps): until it beats "
        "the baseline, its latent variables explain less than a straight line does."
    ]


def _either(names: Iterable[str]) -> str:
    *first, last = names
    return f"{', '.join(first)} or {last}" if first else last


def _training_attempts(metrics: Sequence[Mapping[str, Any]], scored: bool) -> list[str]:
    attempts = []
    steps, scores = series(metrics, "validation_nats_per_step")
    if scored and len(scores) > 1:
        best = max(range(len(scores)), key=scores.__getitem__)
        span = max(scores) - min(scores)
        if best == len(scores) - 1:
            attempts.append(
                "Longer training (--train.steps) is likely to help: the best validation score was "
                "the last one."
            )
        elif len(scores) >= 5 and scores[best] - scores[-1] > 0.1 * span > 0:
            attempts.append(
                f"More data or a smaller model: the validation score was best at step "
                f"{int(steps[best]):,} and fell after it (overfitting)."
            )
    _, kl = series(metrics, "kl")
    if kl and abs(kl[-1]) < COLLAPSED:
        attempts.append(
            "A smaller KL weight at the start (--train.kl_weight.start 0.01 "
            f"--train.kl_weight.levels 10): the KL is {number(kl[-1])}, so the latent variable "
            "carries nothing and the model has one answer to all situations."
        )
    return attempts


def series(metrics: Sequence[Mapping[str, Any]], key: str) -> tuple[list[float], list[float]]:
    """Steps and values of one term of the training log, where it was logged and is finite."""
    pairs = [
        (float(row["step"]), float(row[key]))
        for row in metrics
        if row.get("step") is not None and row.get(key) is not None and math.isfinite(row[key])
    ]
    return [step for step, _ in pairs], [value for _, value in pairs]
