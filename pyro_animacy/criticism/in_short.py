"""The top of a report: the numbers of a run in a few sentences, by plain rules."""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pyro_animacy.criticism.attempts import Figures, attempts
from pyro_animacy.criticism.comparison import Comparison
from pyro_animacy.criticism.judgement import FEW_DRAWS, judge
from pyro_animacy.criticism.section import Section
from pyro_animacy.criticism.verdicts import finite_baselines, score_grade
from pyro_animacy.criticism.wording import listed, number

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
            "explodes. Everything below is about the rest."
        )
    score, sentence = score_grade(summary)
    if score in lists or finite_baselines(summary):  # that it cannot be told apart leads too
        lists[score if score in lists else "near"].append(sentence)
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
    tried = attempts(Figures(comparisons, summary, metrics, _of_findings(sections)))
    right, near, wrong, attempt = (_at_most(x) for x in (*lists.values(), tried))
    return InShort(right, near, wrong, attempt, where)


def _nothing_wrong(comparisons: Sequence[Comparison]) -> str:
    """What is said where nothing is graded wrong: that it is right, or that it is not known."""
    unknown = [c for c in comparisons if judge(c).grade == "undefined"]
    if len(unknown) < len(comparisons):
        seen = "Nothing that these checks can see; they look at short stretches of motion."
        few = f" {len(unknown)} of {len(comparisons)} statistics of motion are not known."
        return seen + (few if unknown else "")
    if any(c.observed.size and len(c.generated) < FEW_DRAWS for c in unknown):
        return "Not known: there are too few draws to tell any difference in motion from chance."
    return (
        "Not known: no statistic of motion can be taken, because too few frames in a row are "
        "observed or the generated ones are not finite."
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
