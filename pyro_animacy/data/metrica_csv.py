"""Football tracking in CSV files, one for each team, as Metrica Sports publish sample games."""

import re
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pyro_animacy.data.columns import Columns
from pyro_animacy.data.epts import team_order
from pyro_animacy.data.frames import tidy
from pyro_animacy.data.tables import Table, make_table
from pyro_animacy.data.text import first_lines, parse
from pyro_animacy.data.values import whole_numbers
from pyro_animacy.errors import DataError

PITCH = (105.0, 68.0)  # metres, of the sample games
NAMES = 3  # rows: teams, shirts, and Period, Frame, Time [s], Player11, ..., Ball
OTHER = {"home": "away", "Home": "Away", "HOME": "AWAY"}
OTHER |= {away: home for home, away in OTHER.items()}


def is_team(path: Path) -> bool:
    """Whether it is such a file, by its first bytes; False where it cannot be read."""
    try:
        with path.open("rb") as file:
            return file.read(6).removeprefix(b"\xef\xbb\xbf").startswith(b",,,")
    except OSError:
        return False


def of_matches(items: Iterable[Any]) -> Iterator[Any]:
    """These recordings; of two teams' files of a match only the first, which has the other."""
    seen = set()
    for item in items:
        other = other_team(item) if isinstance(item, Path) else None
        if other is None or other.resolve() not in seen:
            yield item
            seen.add(item.resolve() if other else None)


def other_team(path: Path) -> Path | None:
    """The file of the other team beside that of a team, by its name; None where there is none."""
    name = re.sub("|".join(OTHER), lambda match: OTHER[match[0]], path.name)
    if name == path.name or not is_team(path):
        return None
    other = path.with_name(name)
    return other if is_team(other) else None


def read_teams(path: Path, pause: int = 1) -> Table:
    """Read a team's file, and that of the other team where there is one beside it.

    Players are named by their team and shirt, `home_11`. Coordinates 0..1 become metres of a pitch
    of 105 x 68; (0, 0) stays the top left corner. No run of frames goes from one period to the
    next, which is numbered a ``pause`` further on. The resolution is the last decimal of the file
    along the longer side.

    Args:
        path: the file, such as `Sample_Game_1_RawTrackingData_Home_Team.csv`.
        pause: how many frames without a body are put between periods.

    Returns:
        A wide table of all players and `ball`.

    Raises:
        DataError: where a file has another layout, or a cell is no number.
    """
    table, other = _read_team(path, pause), other_team(path)
    if other is not None:
        table = _beside(table, _read_team(other, pause))
    order = sorted(range(len(table.bodies)), key=lambda i: team_order(table.bodies[i]))
    bodies = [table.bodies[i] for i in order]
    return replace(
        table,
        bodies=bodies,
        pairs=[table.pairs[i] for i in order],
        animate=[body != "ball" for body in bodies],
    )


def _read_team(path: Path, pause: int) -> Table:
    """One team's file and the ball, with a pause of so many frames between periods."""
    where = path.name
    rows = [[cell.strip() for cell in line.split(",")] for line in first_lines(path)[1]]
    if len(rows) <= NAMES or [name.lower() for name in rows[2][:2]] != ["period", "frame"]:
        raise DataError(
            f"{where}: row 1 begins with empty cells, as in Metrica's team files, but row 3 does "
            "not begin with Period,Frame,Time [s]; write the column names in row 1"
        )
    last = max(i for i, name in enumerate(rows[2]) if name)
    columns, pairs, team = ["period", "frame", "time"], {}, ""
    for i in range(len(columns), last + 1, 2):
        said, shirt, name = (row[i] if i < len(row) else "" for row in rows[:NAMES])
        team = said or team  # which may be said only once
        body = f"{team}_{shirt}".lower() if shirt else name.lower()
        if not re.fullmatch(r"(home|away)_\d+|ball", body):
            raise DataError(
                f"{where}: column {i + 1} is named {team!r}, {shirt!r}, {name!r}; expected Home or "
                "Away, a shirt number and the player, or Ball in row 3"
            )
        pairs[body] = ({f"{body}_x": 1.0}, {f"{body}_y": 1.0})
        columns += [f"{body}_x", f"{body}_y"]
    options = {"usecols": range(len(columns)), "encoding": "utf-8-sig", "index_col": False}
    frame = parse(path, where, header=None, skiprows=NAMES, **options).set_axis(columns, axis=1)
    table = make_table(frame, Columns((), (), "frame", "time", (), pairs), where, NAMES + 1)
    assert table.frame is not None
    assert table.time is not None
    if len(table.frame) < 2:
        raise DataError(f"{where}: there is only one frame; motion needs two")
    frames, seconds = (np.median(np.diff(x)) for x in (table.frame, table.time))  # of a step
    if not (frames >= 1 and seconds > 0):
        raise DataError(f"{where}: frames and times do not go on from row to row; sort the rows")
    period = frame["period"].iloc[np.asarray(table.row) - NAMES - 1]
    number = table.frame + int(frames) * pause * whole_numbers(period, where, table.row)
    if len(np.unique(number)) < len(number):
        raise DataError(f"{where}: a frame is there twice in its period; keep one row of each")
    decimals = max(len(cell.partition(".")[2]) for row in rows[NAMES:] for cell in row[3:])
    return replace(
        table,
        frame=number,
        time=None,
        fps=tidy(1 / float(seconds), where),
        pairs=[(x * PITCH[0], y * PITCH[1]) for x, y in table.pairs],
        units="m",
        resolution=max(PITCH) * 10.0**-decimals,
    )


def _beside(table: Table, other: Table) -> Table:
    """The bodies of both tables in one, by the numbers of their frames."""
    number = [one.frame for one in (table, other) if one.frame is not None]
    frames = np.union1d(*number)
    pairs: dict[str, tuple[npt.NDArray, npt.NDArray]] = {}
    for one, own in zip((table, other), number, strict=True):
        for body, (x, y) in zip(one.bodies, one.pairs, strict=True):
            if body not in pairs:  # the ball is in both
                placed = np.full((2, len(frames)), np.nan)
                placed[:, np.searchsorted(frames, own)] = x, y
                pairs[body] = placed[0], placed[1]
    return replace(
        table,
        row=range(NAMES + 1, NAMES + 1 + len(frames)),
        trajectory=np.zeros(len(frames), np.int8),
        frame=frames,
        bodies=list(pairs),
        pairs=list(pairs.values()),
    )
