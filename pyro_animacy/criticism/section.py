"""What a report is made of: sections of findings, figures and tables.

Each instrument (`calibration`, `importance`, ...) says what it saw as a `Section`; the report's
template draws all of them alike, and the findings' sentences make up its summary.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from matplotlib.figure import Figure

from pyro_animacy.criticism.style import png

Grade = Literal["right", "near", "wrong", "undefined"]


@dataclass(frozen=True)
class Finding:
    """What is seen, in one sentence, and whether it is good.

    Attributes:
        grade: "right" (as it should be), "near", "wrong", or "undefined" (cannot be said).
        sentence: a whole sentence that a reader understands without the figure: what was measured,
            its value, what it should be.
        attempt: what to try, where it is wrong; "" otherwise.
        more: further sentences, which the summary leaves out; "" if none.
    """

    grade: Grade
    sentence: str
    attempt: str = ""
    more: str = ""


@dataclass(frozen=True)
class Image:
    """An embedded picture: its data as a URI, and what it shows in words.

    A ``photo`` keeps its colours on a dark page, where a figure is turned over.
    """

    source: str
    alt: str
    photo: bool = False


@dataclass(frozen=True)
class Panel:
    """A picture with its caption, and the grade that colours it."""

    image: Image
    caption: str
    grade: Grade = "undefined"


@dataclass(frozen=True)
class Table:
    """A table of text: `head` names the columns, the first of each of `rows` names the row."""

    caption: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True)
class Section:
    """One part of a report.

    Attributes:
        key: its anchor, such as "calibration".
        title: its heading, a question or a few words.
        intro: a paragraph for a reader who has never seen this figure: what is shown, how to read
            it, what one hopes for.
        findings: what is seen; the first three words count, they may be read alone.
        panels: its figures.
        tables: its tables.
        note: definitions and sources, in small print.
    """

    key: str
    title: str
    intro: str
    findings: Sequence[Finding] = ()
    panels: Sequence[Panel] = ()
    tables: Sequence[Table] = ()
    note: str = ""


def embed(data: bytes, kind: str, alt: str) -> Image:
    """A file of an image as a data URI; `kind` is "png" or "gif"."""
    return Image(f"data:image/{kind};base64,{base64.b64encode(data).decode('ascii')}", alt)


def picture(figure: Figure, alt: str, photo: bool = False) -> Image:
    """A matplotlib figure as an embedded PNG; of a ``photo`` a dark page keeps the colours."""
    return replace(embed(png(figure), "png", alt), photo=photo)
