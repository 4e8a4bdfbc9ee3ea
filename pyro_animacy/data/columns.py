"""Which column of a table plays which role, and which columns are the positions of a wide table."""

import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pyro_animacy.data.schema import shortened
from pyro_animacy.errors import ConfigError, DataError

# What people call these columns; compared without case. The first that is there is taken.
ALIASES: dict[str, tuple[str, ...]] = {
    "trajectory": (
        *("trajectory", "trajectory_id", "clip", "clip_id", "trial", "trial_id", "trial_no"),
        *("trial_number", "trials.thisn", "trials_thisn", "sequence"),  # thisN is PsychoPy's
        *("sequence_id", "seq", "episode", "scene", "scene_id", "video", "video_id", "session"),
        *("session_id", "match", "match_id", "game", "game_id", "recording", "run"),
    ),
    "id": (
        *("body", "body_id", "id", "track", "track_id", "trackid", "player", "player_id"),
        *("object", "object_id", "agent", "agent_id", "individual", "individual_id", "animal"),
        *("animal_id", "pedestrian", "pedestrian_id", "ped_id", "person", "person_id", "vehicle"),
        *("vehicle_id", "target", "target_id", "particle", "entity", "entity_id", "name"),
    ),
    "frame": (
        *("frame", "frame_id", "frame_number", "frame_index", "frame_idx", "frameid"),
        *("framenumber", "frame_no", "frames", "timestep", "time_step", "step"),
    ),
    "time": ("time", "time_s", "time_sec", "t", "timestamp", "seconds", "sec", "time [s]"),
    "x": (
        *("x", "x_pos", "pos_x", "xpos", "x_m", "x_px", "x_cm", "x_mm", "position_x"),
        *("x_position", "x_center", "center_x", "x_coordinate", "x_coord", "x [m]"),
    ),
    "y": (
        *("y", "y_pos", "pos_y", "ypos", "y_m", "y_px", "y_cm", "y_mm", "position_y"),
        *("y_position", "y_center", "center_y", "y_coordinate", "y_coord", "y [m]"),
    ),
    "label": ("label",),
}
# {name}_x and {name}.x, x_{name} and x.{name}, x0: the names of a wide table's bodies
WIDE = (r"(?P<body>.+)[_.]{axis}", r"{axis}[_.](?P<body>.+)", r"{axis}(?P<body>\d+)")
# a_vel_x is how fast body a moves, not where a body a_vel is
DERIVED = re.compile(
    r"(.*[_. ])?(vel|velocity|speed|acc|accel|acceleration)([_. ].*)?", re.IGNORECASE
)
CORNERS = frozenset(("min", "max"))  # of a box


@dataclass(frozen=True)
class Columns:
    """The column for each role, None where the table has none; `pairs` in a wide table only."""

    trajectory: str | None
    id: str | None
    frame: str | None
    time: str | None
    label: str | None
    pairs: dict[str, tuple[str, str]]  # body -> its x and y column; one body "" in a long table

    @property
    def long(self) -> bool:
        """Whether a row is one body in one frame."""
        return "" in self.pairs

    def used(self) -> set[str]:
        """All columns that play a role."""
        roles = (self.trajectory, self.id, self.frame, self.time, self.label)
        return {c for c in roles if c} | {c for pair in self.pairs.values() for c in pair}


def find_columns(names: Sequence[str], given: Mapping[str, str] | None, where: str) -> Columns:
    """Find the columns of a long or a wide table.

    Args:
        names: the table's columns.
        given: role to column, where the aliases would not find it.
        where: what to name in a message.

    Returns:
        The columns: long where there are x and y, wide where there are pairs of columns for each
        body.

    Raises:
        ConfigError: for a role that does not exist.
        DataError: for a column that does not exist, or a table without positions.
    """
    given = {("id" if role == "body" else role): name for role, name in (given or {}).items()}
    for role, name in given.items():
        if role not in ALIASES:
            raise ConfigError(f"--columns {role}={name}: the roles are {', '.join(ALIASES)}")
        if name not in names:
            raise DataError(
                f"{where}: no column {name!r} (--columns {role}={name}); there are "
                f"{shortened(names)}"
            )
    lower = {name.strip().lower(): name for name in reversed(names)}
    found = {
        role: given.get(role) or next((lower[a] for a in aliases if a in lower), None)
        for role, aliases in ALIASES.items()
    }
    if found["frame"] is None and found["time"] is None:
        found["frame"] = lower.get("position")  # where it can be nothing else
    x, y = found.pop("x"), found.pop("y")
    pairs = {"": (x, y)} if x is not None and y is not None else wide_pairs(names)
    if not pairs:
        raise DataError(
            f"{where}: no columns x and y, and no pairs like ball_x, ball_y or x0, y0; there are "
            f"{shortened(names)}; name them with --columns x=...,y=..."
        )
    if "" in pairs and found["frame"] is None and found["time"] is None:
        raise DataError(
            f"{where}: no frame or time column; there are {shortened(names)}; name it with "
            "--columns frame=..., or of times in seconds time=..."
        )
    columns = Columns(pairs=pairs, **found)
    doubtful = [n for n in names if re.search("likelihood|confidence", n.lower())]
    if left := [n for n in doubtful if n not in columns.used()]:
        print(
            f"{where}: {shortened(left)} not used: blank the positions of unlikely points first",
            file=sys.stderr,
        )
    return columns


def wide_pairs(names: Sequence[str]) -> dict[str, tuple[str, str]]:
    """The bodies of a wide table and their two columns, in the order of the columns.

    Velocities, speeds and accelerations (a_vel_x, x_velocity) are no bodies, nor are the corners of
    a box (x_min, x_max).
    """
    axes: list[dict[str, str]] = []
    for axis in ("x", "y"):
        axes.append({})
        for name in names:
            for pattern in WIDE:
                match = re.fullmatch(pattern.replace("{axis}", axis), name.strip(), re.IGNORECASE)
                if match and match["body"] not in axes[-1]:
                    axes[-1][match["body"]] = name
                    break
    x, y = axes
    corners = CORNERS if {b.lower() for b in x} >= CORNERS else ()
    return {
        b: (x[b], y[b])
        for b in x
        if b in y and not DERIVED.fullmatch(b) and b.lower() not in corners
    }
