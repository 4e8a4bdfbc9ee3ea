"""Football tracking in FIFA's EPTS format, as Metrica Sports publishes it."""

import io
import re
import warnings
import xml.etree.ElementTree as ElementTree
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd

from pyro_animacy.data.columns import Columns
from pyro_animacy.data.frames import frame_stride
from pyro_animacy.data.tables import Table, make_table
from pyro_animacy.data.text import UNREADABLE
from pyro_animacy.data.values import Codes
from pyro_animacy.errors import DataError

LOOK = 1_000  # lines that are looked at for their decimals
SHARE = 2  # of the pitch: no body is so far off


@dataclass(frozen=True)
class Metadata:
    """What `metadata.xml` says about `tracking.txt`."""

    fps: float
    size: tuple[float, float]  # of the pitch, metres
    # from each first frame on, the columns of a line: "frame", "home_1_x", ...; line-ups change
    formats: list[tuple[int, list[str]]]
    separators: set[str]
    halves: list[int]  # the first frame of each but the first


def read_epts(path: Path, pause: int = 1) -> Table:
    """Read a `tracking.txt` with the `metadata.xml` beside it.

    Players are named `home_1`, `home_2`, ..., `away_1`, ...: numbered within their team in the
    order of their shirts, among those the file has channels for. Coordinates 0..1 become metres
    by the size of the pitch; (0, 0) stays the top left corner. The resolution is the last
    decimal of the file, as most coordinates have it, along the longer side. Frames may be numbered
    on from one half to the next; where players are elsewhere then, no run of frames goes across.

    Args:
        path: the tracking file.
        pause: how many frames without a body are put between halves.

    Returns:
        A wide table of all players and `ball`.

    Raises:
        DataError: where the metadata are missing or do not fit, a cell is no number, or positions
            are no shares of the pitch.
    """
    metadata = read_metadata(_metadata_of(path), path.name)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UNREADABLE as error:
        raise DataError(f"{path.name}: cannot be read: {error}") from None
    commas = str.maketrans("".join(metadata.separators), "," * len(metadata.separators))
    lines = text.translate(commas).splitlines()
    parts = _by_format(lines, metadata, path.name)
    rows = pd.concat(parts).reindex(range(len(lines)))
    columns = [c for _, names in metadata.formats for c in names]
    bodies = sorted({c[:-2] for c in columns if c.endswith("_x")}, key=team_order)
    pairs = {body: ({f"{body}_x": 1.0}, {f"{body}_y": 1.0}) for body in bodies}
    table = make_table(rows, Columns((), (), "frame", None, (), pairs), path.name, 1)
    width, height = metadata.size
    _are_shares(table)
    return replace(
        table,
        frame=_with_pauses(table, metadata.halves, pause),
        pairs=[(x * width, y * height) for x, y in table.pairs],
        fps=metadata.fps,
        units="m",
        animate=[body != "ball" for body in bodies],
        resolution=max(width, height) * 10.0 ** -_decimals(lines),
    )


def _are_shares(table: Table) -> None:
    """Raise DataError where positions are no shares of the pitch, as where they are metres."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # of a body that is never seen
        middle = [float(np.nanmedian(np.abs(values))) for pair in table.pairs for values in pair]
    if (usual := np.nanmedian([*middle, 0.0])) > SHARE:
        raise DataError(
            f"{table.where}: EPTS positions are shares of the pitch, from 0 to 1, and these are "
            f"{usual:.3g} in the middle; divide them by its length and width, or write them as a "
            "CSV with columns such as home_1_x,home_1_y"
        )


def _decimals(lines: list[str]) -> int:
    """How many decimals most coordinates have, of some lines; zeros at the end may be left out."""
    some = lines[:: max(1, len(lines) // LOOK)]
    count = Counter(len(cell.partition(".")[2]) for line in some for cell in line.split(",")[1:])
    del count[0]  # of those that were not observed
    return count.most_common(1)[0][0] if count else 0


def _with_pauses(table: Table, halves: list[int], pause: int) -> Codes | None:
    """The frame numbers, a ``pause`` further on from each half on, unless players just go on.

    They do in an excerpt, whose metadata name halves all the same. Else, as they change ends, the
    middle one of them is further off than it ever goes from one frame to the next.
    """
    assert table.frame is not None
    players = [pair for b, pair in zip(table.bodies, table.pairs, strict=True) if b != "ball"]
    if not (halves and players):
        return table.frame
    order, stride = np.argsort(table.frame, kind="stable"), frame_stride(table)
    number, added = table.frame[order], np.zeros_like(table.frame)
    moved = np.array([np.hypot(np.diff(x[order]), np.diff(y[order])) for x, y in players])
    seen = np.isfinite(moved).any(0)
    middle = np.zeros(len(number) - 1)
    middle[seen] = np.nanmedian(moved[:, seen], axis=0)
    first = [int(np.searchsorted(number, half)) - 1 for half in halves]
    first = [step for step in first if 0 <= step < len(middle)]
    usual = np.delete(middle, first)[np.delete(np.diff(number) == stride, first)].max(initial=0)
    for step in first:
        if middle[step] > usual:
            added[table.frame >= number[step + 1]] += stride * pause
    return table.frame + added


def _metadata_of(path: Path) -> Path:
    """The metadata of a tracking file: of its own name, as sample game 3 has, or metadata.xml."""
    own = path.with_name(re.sub("tracking", "metadata", path.stem, flags=re.IGNORECASE) + ".xml")
    return own if own.is_file() else path.with_name("metadata.xml")


def team_order(body: str) -> tuple[int, int]:
    """Sort key: home, away, ball, each by number."""
    team, _, number = body.partition("_")
    return ("home", "away", "ball").index(team), int(number or 0)


def _by_format(lines: list[str], metadata: Metadata, where: str) -> list[pd.DataFrame]:
    """The lines as DataFrames indexed by line, one for each format that holds from a frame on."""
    frame = pd.to_numeric(
        pd.Series([line.partition(",")[0] for line in lines], dtype=object), errors="coerce"
    )
    starts = [start for start, _ in metadata.formats]
    which = np.searchsorted(starts, frame.fillna(starts[0]).to_numpy(), side="right") - 1
    filled = np.array([bool(line.strip()) for line in lines], bool)
    parts = []
    for k, (_, names) in enumerate(metadata.formats):
        rows = np.flatnonzero((which.clip(0) == k) & filled)
        for i in rows:
            if lines[i].count(",") != len(names) - 1:
                raise DataError(
                    f"{where}: row {i + 1}: {lines[i].count(',') + 1} numbers, metadata.xml says "
                    f"{len(names)}; is it the metadata of this file?"
                )
        if len(rows):
            text = io.StringIO("\n".join(lines[i] for i in rows))
            parts.append(pd.read_csv(text, header=None, names=names).set_axis(rows))
    if not parts:
        raise DataError(f"{where}: the file is empty")
    return parts


def read_metadata(path: Path, wanted_by: str) -> Metadata:
    """Read the frame rate, the pitch and the channels of an EPTS recording.

    Args:
        path: the metadata.
        wanted_by: the tracking file, for messages.

    Returns:
        The metadata.

    Raises:
        DataError: where the file or one of these is missing.
    """
    if not path.is_file():
        raise DataError(f"{wanted_by}: EPTS tracking needs its metadata.xml in the same folder")
    try:
        root = ElementTree.parse(path).getroot()
        fps = float(_text(root, ".//FrameRate"))
        size = float(_text(root, ".//FieldSize/Width")), float(_text(root, ".//FieldSize/Height"))
        channels = _channels(root)
        formats = [
            (int(spec.get("startFrame", "1")), _names(spec, channels))
            for spec in root.iter("DataFormatSpecification")
        ]
        separators = {e.get("separator", ",") for e in root.iter() if e.get("separator")}
    except (OSError, ElementTree.ParseError, ValueError, KeyError) as error:
        raise DataError(f"{path.name} beside {wanted_by}: cannot be used: {error}") from None
    starts = [
        (e.findtext("Value") or "").strip()
        for e in root.iter("ProviderParameter")
        if (e.findtext("Name") or "").strip().endswith("half_start")
    ]
    halves = sorted(int(value) for value in starts if value.isdecimal())[1:]
    if not formats or any(names[0] != "frame" for _, names in formats):
        raise DataError(f"{path.name} beside {wanted_by}: no line format that begins with a frame")
    if any(len(separator) > 1 for separator in separators):
        raise DataError(f"{path.name} beside {wanted_by}: separators longer than one character")
    return Metadata(fps, size, sorted(formats), separators, halves)


def _text(root: ElementTree.Element, path: str) -> str:
    """The text of an element that must be there."""
    found = root.findtext(path)
    if not found:
        raise ValueError(f"no {path.removeprefix('.//')}")
    return found


def _channels(root: ElementTree.Element) -> dict[str, str]:
    """Channel id -> column name (home_1_x) for the players that have a place in some line."""
    used = {e.get("playerChannelId") for e in root.iter("PlayerChannelRef")}
    refs = [e for e in root.iter("PlayerChannel") if e.get("id") in used]
    playing = {e.get("playerId") for e in refs}
    score = root.find(".//Score")
    local = None if score is None else score.get("idLocalTeam")
    teams = [e.get("id") for e in root.iter("Team")]
    home = local if local in teams else teams[0]
    shirts: dict[str, list[tuple[int, str]]] = {"home": [], "away": []}
    for player in root.iter("Player"):
        if player.get("id") in playing:
            team = "home" if player.get("teamId") == home else "away"
            shirts[team].append((int(_text(player, "ShirtNumber")), player.attrib["id"]))
    names = {
        player: f"{team}_{n}"
        for team, players in shirts.items()
        for n, (_, player) in enumerate(sorted(players), start=1)
    }
    return {e.attrib["id"]: f"{names[e.attrib['playerId']]}_{e.attrib['channelId']}" for e in refs}


def _names(spec: ElementTree.Element, channels: dict[str, str]) -> list[str]:
    """The columns of a line, in order; those that are no position get a name of no meaning."""
    names = []
    for place, e in enumerate(spec.iter()):
        if e.tag == "PlayerChannelRef":
            names.append(channels[e.attrib["playerChannelId"]])
        elif e.tag == "BallChannelRef":
            names.append(f"ball_{e.attrib['channelId']}")
        elif e.tag == "StringRegister":
            names.append("frame" if e.get("name") == "frameCount" else f"register {place}")
    return names
