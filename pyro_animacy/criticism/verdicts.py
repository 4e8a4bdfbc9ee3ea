"""From numbers to sentences, by plain rules: what is right, what is wrong, what to try.

A statistic's `effect` is its Wasserstein-1 distance in recorded standard deviations. With many
frames nearly every tail probability is 0 or 1, for a difference nobody would see; the effect says
how large the difference is, the tail probability whether it is more than chance.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from pyro_animacy.criticism.comparison import Comparison
from pyro_animacy.criticism.wording import nats, number, percent, times

if TYPE_CHECKING:  # it imports the figures, which import this
    from pyro_animacy.criticism.section import Grade, Section

RIGHT = 0.1  # effect up to which nobody would see the difference
NEAR = 0.3  # effect up to which it is right in kind
NEAR_MEAN = 0.25  # relative error of the mean up to which it is
REST = 0.05  # difference in the share of frames at rest that is said
TAIL = 0.025  # on either side, a tail probability that is more than chance
FEW_DRAWS = 20  # below this no tail probability can say anything
COLLAPSED = 0.01  # nats per step of KL under which the latent variable carries nothing
ENTRIES = 6  # sentences in a list of the summary, at most
NAMED = 4  # statistics named in its sentence on motion
LEADING = ("guide", "calibration")  # sections said before the motion


@dataclass(frozen=True)
class Verdict:
    """How one comparison came out.

    Attributes:
        grade: "right", "near", "wrong" or "undefined".
        sentence: why, in words, without the name of the statistic.
    """

    grade: Grade
    sentence: str


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


def judge(comparison: Comparison) -> Verdict:
    """Grade one comparison.

    Right: effect at most RIGHT, or at most NEAR with tail probabilities that chance gives. Near:
    effect at most NEAR, the mean within NEAR_MEAN (but of a share of frames, whose effect says
    it all) and rest as often; or more, but still what chance gives. Wrong: all others. Undefined:
    nothing to compare. One recorded value is right or wrong by its tail probabilities alone.
    """
    if not comparison.observed.size:
        return Verdict(
            "undefined", "not defined in the recording (nothing moves, too short or too few)"
        )
    if math.isnan(comparison.distance):
        return Verdict(
            "undefined", "not defined in the draws (nothing moves, too short or not finite)"
        )
    if comparison.effect <= RIGHT:
        return Verdict("right", "as recorded")
    chance = _within_chance(comparison)
    if comparison.observed.size == 1:  # no spread to measure a difference by, but tails there are
        if chance:
            return Verdict("right", "as recorded, within chance")
        if len(comparison.generated) < FEW_DRAWS:
            return Verdict("undefined", "recorded once only, and there are too few draws to tell")
        return Verdict("wrong", _difference(comparison))
    if comparison.effect <= NEAR and chance:
        return Verdict("right", "as recorded, within chance")
    if chance:
        return Verdict("near", f"{_difference(comparison)}, which may be chance")
    mean = comparison.observed_mean
    close = comparison.effect <= NEAR and not _rest(comparison)
    if not comparison.statistic.share:
        close = close and (mean <= 0 or abs(comparison.generated_mean / mean - 1) <= NEAR_MEAN)
    return Verdict("near" if close else "wrong", _difference(comparison))


def _within_chance(comparison: Comparison) -> bool:
    if len(comparison.generated) < FEW_DRAWS:
        return False
    return TAIL <= comparison.p_mean <= 1 - TAIL and comparison.p_distance >= 2 * TAIL


def _difference(comparison: Comparison) -> str:
    """Which of mean, spread and shape differs most, and by how much; and whether bodies rest."""
    at_rest, moves = _rest(comparison), _moments_differ(comparison)
    return " and ".join(part for part in (moves, at_rest) if part) or (
        "same mean and spread but another shape"
    )


def _moments_differ(comparison: Comparison) -> str:
    statistic = comparison.statistic
    mean, sd = comparison.observed_mean, comparison.observed_sd
    made = comparison.generated_mean
    word = statistic.more if made > mean else statistic.less
    if statistic.share:
        return f"{word} ({percent(made)} of frames, recorded {percent(mean)})"
    if comparison.observed.size == 1:
        return f"{word} ({number(made)}, recorded {number(mean)})"
    if sd == 0:
        return f"{number(made)} where it is always {number(mean)}"
    if abs(made - mean) >= 0.5 * comparison.distance:
        if min(made, mean) > 0 and abs(made / mean - 1) > 0.05:  # less says little of 0.99
            return f"{word} (mean {times(made / mean)})"
        return f"{word} (mean {number(made)}, recorded {number(mean)})"
    ratio = comparison.generated_sd / sd
    if abs(ratio - 1) > RIGHT:
        word = "too spread out" if ratio > 1 else "too even"
        return f"{word} (spread {times(ratio)})"
    return ""


def _rest(comparison: Comparison) -> str:
    """Of speeds, whether bodies stand still far more or far less often than recorded."""
    if comparison.statistic.name != "speed" or comparison.observed_sd == 0:
        return ""
    rest = float((comparison.observed == 0).mean())
    made = float(np.mean([(values == 0).mean() for values in comparison.generated if values.size]))
    if abs(made - rest) <= REST or max(made, rest) < 2 * min(made, rest):
        return ""
    often = "seldom" if made < rest else "often"
    return f"too {often} at rest ({percent(made)} of frames, recorded {percent(rest)})"


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


def score_sentence(summary: Mapping[str, Any]) -> tuple[bool | None, str]:
    """Whether the model beats the best baseline (None: no clear difference), and the sentence."""
    score, baselines = summary.get("heldout_nats_per_step"), finite_baselines(summary)
    if score is None or not baselines:
        return None, "The model was not scored beside the baselines on held-out frames."
    best = next(iter(baselines))
    gain = score - baselines[best]
    if not math.isfinite(gain):
        return False, f"The held-out score is {number(score)}: it cannot be compared."
    error = summary.get("gain_standard_error")
    name = baseline_name(best)
    against = f"{nats(score)} nats per step against {nats(baselines[best])} of {name}"
    if error is not None and abs(gain) < 2 * error:
        return None, (
            f"Predicting held-out frames, it is level with the best baseline: {against}, a "
            f"difference within two standard errors (±{nats(2 * error)})."
        )
    size = f"{nats(abs(gain))} nats per step"
    if gain > 0:
        odds = f", {number(math.exp(gain))} times the density" if gain < 16 else ""
        return True, (
            f"It predicts held-out frames better than every baseline: {against}, "
            f"the best of them (+{size}{odds})."
        )
    return False, f"A simple baseline predicts held-out frames better: {against} (−{size})."


def score_grade(summary: Mapping[str, Any]) -> tuple[Grade, str]:
    """The grade of the held-out score, and `score_sentence`."""
    better, sentence = score_sentence(summary)
    if summary.get("heldout_nats_per_step") is None:
        return "undefined", sentence
    return "near" if better is None else "right" if better else "wrong", sentence


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
        lists["wrong"].append("Nothing that these checks can see; they look at a second at a time.")
    attempts = _attempts(comparisons, summary, metrics, _of_findings(sections))
    right, near, wrong, attempt = (_at_most(x) for x in (*lists.values(), attempts))
    return InShort(right, near, wrong, attempt, where)


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
            f"history = 2 or more: the {' and '.join(shaky)} cannot be right while the model sees "
            "positions only, since a position does not say where a body was heading."
        )
    if model.get("likelihood") == "squared_error":
        attempts.append(
            "The policy likelihood: with squared error the scale of the noise is set by hand, not "
            "learned, so speeds and scores depend on that setting."
        )
    distance = wrong.get("inter-body distance")
    far = distance is not None and distance.generated_mean > distance.observed_mean
    if far and model.get("roll_out") != "closed_loop":
        attempts.append(
            "Closed-loop training over longer windows (--model.roll_out closed_loop --train.window "
            "24): bodies drift apart, which training one step at a time does not punish."
        )
    if any(_rest(c).startswith("too seldom") for c in wrong.values()):
        attempts.append(
            "A policy with a state of rest: a Gaussian one seldom gives a step below the "
            "recording's resolution, and no option of this model mends that."
        )
    scored = model.get("likelihood") != "squared_error"  # the score is what training looks at
    attempts += _training_attempts(metrics, scored)
    if scored and score_sentence(summary)[0] is False:
        attempts.append(
            "A larger model or more training steps: until it beats the baseline, its latent "
            "variables explain less than a straight line does."
        )
    if comparisons and len(comparisons[0].generated) < FEW_DRAWS:
        attempts.append(
            f"More draws ({FEW_DRAWS} or more, 100 is good): with "
            f"{len(comparisons[0].generated)} the tail probabilities say nothing."
        )
    attempts += found
    if not attempts and wrong:
        attempts.append(
            f"These figures do not say what would mend the {_either(wrong)}. Watch the "
            "motion, then change one option at a time: model.history, model.latent_size, "
            "model.roll_out."
        )
    if not attempts:
        attempts.append(
            "Longer roll-outs and other recordings: nothing in these figures asks for a change."
        )
    return attempts


def _either(names: Iterable[str]) -> str:
    *first, last = names
    return f"{', '.join(first)} or {last}" if first else last


def _training_attempts(metrics: Sequence[Mapping[str, Any]], scored: bool) -> list[str]:
    attempts = []
    steps, scores = series(metrics, "validation_nats_per_step")
    if scored and len(scores) >= 5:
        best = max(range(len(scores)), key=scores.__getitem__)
        span = max(scores) - min(scores)
        if best == len(scores) - 1 and scores[best] - scores[-3] > 0.02 * span > 0:
            attempts.append("More training steps: the validation score was still rising.")
        elif scores[best] - scores[-1] > 0.1 * span > 0:
            attempts.append(
                f"More data or a smaller model: the validation score was best at step "
                f"{int(steps[best]):,} and fell after it (overfitting)."
            )
    _, kl = series(metrics, "kl")
    if kl and abs(kl[-1]) < COLLAPSED:
        attempts.append(
            f"A smaller KL weight: the KL is {number(kl[-1])}, so the latent variable carries "
            "nothing and the model has one answer to every situation."
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
