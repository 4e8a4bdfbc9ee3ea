"""Which column of a table plays which role, and which columns are the positions of a wide table."""

import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pyro_animacy.data.schema import shortened
from pyro_animacy.errors import DataError


def _numbered(*names: str) -> tuple[str, ...]:
    """What a column may be called that says which of these: trial, trial_id, trial_no, ..."""
    ends = ("", "id", "no", "nr", "num", "number", "index", "idx", "name", "n")
    return tuple(name + end for name in names for end in ends)


# What people call these columns, compared without case, spaces, signs and units (track_id,
# "Track ID" and trackId are one). The first that is there is taken.
ALIASES: dict[str, tuple[str, ...]] = {
    "trajectory": (
        *_numbered("trajectory", "clip", "trial"),
        "trialsthisn",  # PsychoPy's trials.thisN
        *_numbered("sequence", "seq", "episode", "scene", "video", "movie", "stimulus", "play"),
        *_numbered("session", "match", "game", "recording", "run", "file"),
    ),
    "id": (
        *("body", "bodyid", "id"),
        *_numbered("track", "player", "object", "agent", "individual", "animal", "pedestrian"),
        *_numbered("ped", "person", "vehicle", "target", "particle", "entity", "body", "shape"),
        *("name", "displayname", "who"),
        *_numbered("fish", "fly", "mouse", "rat", "ant", "bee", "termite", "bird", "bat", "dog"),
        *_numbered("sheep", "cow", "worm", "larva", "cell", "robot", "car", "cyclist"),
    ),
    "frame": (
        *_numbered("frame"),
        "frames",
        "framecount",
        "timestep",
        "step",
        "ticks",
        *_numbered("slice"),
    ),
    "time": ("time", "timesec", "t", "timestamp", "seconds", "sec", "elapsed", "elapsedtime"),
    "label": ("label", "action", "actionlabel", "category", "condition", "behaviour", "behavior"),
}
# Names that are often of something else, a flag or the length of a step: the values must fit
DOUBTFUL = {"trajectory": ("match", "run", "play"), "frame": ("step", "timestep", "ticks")}
ROWS = "Unnamed: 0"  # as pandas calls a column without a name: the numbers of the rows
ROLES = ("trajectory", "id", "frame", "time", "x", "y", "label")
TOGETHER = ("trajectory", "id", "label")  # roles that several columns may play together
AXES = ("x", "y")  # and these, as a sum: left+width/2
WORD = r"(?:pos(?:ition)?|coo?r(?:d(?:inate)?)?|cent(?:er|re)|[wp]?centroid|loc(?:al|ation)?)"
# pos_x, xCenter, X#wcentroid, cx
AXIS = rf"(?:{WORD}[_. ]?{{axis}}|{{axis}}[_. #]?{WORD}|c{{axis}}|{{axis}}c)"
# {name}_x, {name}.x, ...; x ({name}); x_{name}, ...; x0; pos_x_1: a wide table's bodies
WIDE = (
    r"(?P<body>.+)[-_. :/]{axis}",
    r"{axis} ?[(\[](?P<body>.+)[)\]]",
    r"{axis}[-_. :/](?P<body>.+)",
    r"{axis}(?P<body>\d+)",
    rf"{AXIS}[_. ](?P<body>.+)",
    rf"{AXIS}(?P<body>\d+)",
)
# catx, xcat: where no name is like those above
JOINED = (r"(?P<body>.*[^\W_]){axis}", r"{axis}(?P<body>[^\W_].*)")
# a_vel_x is how fast body a moves, not where a body a_vel is
DERIVED = re.compile(
    r"(.*[_. ])?(vel|velocity|speed|acc|accel|acceleration)([_. ].*)?|v|d", re.IGNORECASE
)
CORNERS = frozenset(("min", "max"))  # of a box
# What the sides of a box may be called, also with bb, box, bbox or bounding_box before it
SIDES = {
    "left": ("left", "xmin", "minx", "xleft", "x1"),
    "top": ("top", "ymin", "miny", "ytop", "y1"),
    "right": ("right", "xmax", "maxx", "xright", "x2"),
    "bottom": ("bottom", "ymax", "maxy", "ybottom", "y2"),
    "width": ("width", "w"),
    "height": ("height", "h"),
}
LENGTH = "m|met(?:er|re)s?|cm|mm|km|[uµμ]m|microns?|px|pix(?:els?)?|ft|feet|yd|yards?|deg"
MILLISECONDS = "ms|msecs?|milliseconds?"
TIME = rf"s|secs?|seconds?|{MILLISECONDS}"
# A coordinate is a sum of columns and their factors: {"x": 1}, of a box {"left": 1, "width": 0.5}
Coordinate = dict[str, float]


@dataclass(frozen=True)
class Columns:
    """The columns for each role, none where the table has none; `pairs` in a wide table only."""

    trajectory: tuple[str, ...]  # several together say which, as game and play
    id: tuple[str, ...]
    frame: str | None
    time: str | None
    label: tuple[str, ...]
    pairs: dict[str, tuple[Coordinate, Coordinate]]  # body -> x and y; one body "" in a long table
    units: str | None = None  # of the positions, where their names say
    ticks: int | None = None  # of the time in a second, where its name says: 1 or 1000
    unused: tuple[str, ...] = ()  # other columns
    doubtful: tuple[str, ...] = ()  # trajectory and frame by names that may be of something else

    @property
    def long(self) -> bool:
        """Whether a row is one body in one frame."""
        return "" in self.pairs

    def names(self) -> tuple[str, ...]:
        """The columns with names in their cells."""
        return (*self.trajectory, *self.id, *self.label)

    def used(self) -> set[str]:
        """All columns that play a role."""
        numbers = {c for c in (self.frame, self.time) if c}
        return {*self.names(), *numbers, *self.coordinates()}

    def coordinates(self) -> set[str]:
        """The columns of positions."""
        return {column for pair in self.pairs.values() for axis in pair for column in axis}


def find_columns(names: Sequence[str], given: Mapping[str, str] | None, where: str) -> Columns:
    """Find the columns of a long or a wide table.

    Args:
        names: the table's columns.
        given: role (of `ROLES`, or "body") to column, where the usual names would not find it; of
            trajectory, id and label also several columns, as "game+play", of x and y a sum, as
            "left+width/2".
        where: what to name in a message.

    Returns:
        The columns: long where there are x and y, wide where there are pairs of columns for each
        body, long where there is neither but a box, of which the middle is taken.

    Raises:
        DataError: for a column that does not exist, a table without positions, or positions in
            two units.
    """
    chosen = {
        "id" if role == "body" else role: _given(role, name, names, where)
        for role, name in (given or {}).items()
    }
    # a column given another role is no frame or time by its name, as times in a column `frame`
    taken = {column for several in chosen.values() for column in several}
    rest = [name for name in names if name not in taken]
    found = {
        role: tuple(chosen.get(role, ()))
        or _usual(role, rest if role in ("frame", "time") else names)
        for role in ALIASES
    }
    if not found["frame"] and not found["time"]:
        found["frame"] = tuple(n for n in rest if n.strip().lower() == "position")[:1]
    pairs = _wide_pairs(names)
    x, y = (chosen.get(axis) or _axis(axis, names) for axis in AXES)
    sure = {*AXES} & {*chosen} or found["id"]
    if x and y and (sure or not _is_one_of(x, y, pairs)):
        pairs = {"": (x, y)}
    pairs = pairs or _box(names)
    if not pairs:
        raise DataError(
            f"{where}: no columns x and y, and no pairs like ball_x, ball_y or x0, y0; there are "
            f"{shortened(names)}; name them with --columns x=...,y=..."
        )
    if "" not in pairs and (lone := _lone(names, pairs)):
        raise DataError(
            f"{where}: {shortened(lone)} without the other coordinate beside it; there are "
            f"{shortened(names)}; add it, or remove what is no position"
        )
    if not found["frame"] and not found["time"] and "" not in pairs:
        found["frame"] = tuple(n for n in names if n == ROWS)
    if "" in pairs and not found["frame"] and not found["time"]:
        raise DataError(
            f"{where}: no frame or time column; there are {shortened(names)}; name it with "
            "--columns frame=..., or of times in seconds time=..."
        )
    frame, time = (found[role][0] if found[role] else None for role in ("frame", "time"))
    roles = (found["trajectory"], found["id"], frame, time, found["label"])
    columns = Columns(*roles, pairs)
    units = {_without(LENGTH, name)[1] for name in columns.coordinates()}
    if len(several := sorted(u for u in units if u)) > 1:
        raise DataError(
            f"{where}: positions in {' and '.join(several)} by the names of their columns; convert "
            "them to one unit, and name the columns by it"
        )
    unused = tuple(n for n in names if n not in columns.used())
    if left := [n for n in unused if re.search("likelihood|confidence", n.lower())]:
        print(
            f"{where}: {shortened(left)} not used: blank the positions of unlikely points first",
            file=sys.stderr,
        )
    if not {*AXES} & {*chosen} and (left := _depths(unused, pairs)):
        mend = "rename the columns"
        if "" in pairs:
            mend = f"--columns x={next(iter(pairs[''][0]))},y={left[0]}"
        print(
            f"{where}: {shortened(left)} not used, motion is that of x and y; for another plane "
            f"{mend}",
            file=sys.stderr,
        )
    return Columns(
        *roles,
        pairs,
        units=units.pop() if len(units) == 1 else None,
        ticks=_ticks(time) if time else None,
        unused=unused,
        doubtful=tuple(
            column
            for role, doubtful in DOUBTFUL.items()
            for column in found[role]
            if role not in chosen and _plain(column) in doubtful
        ),
    )


def _given(role: str, name: str, names: Sequence[str], where: str) -> Coordinate:
    """The columns that were named for a role and their factors: "game+play", "left+width/2"."""
    there = {n.strip(): n for n in names}
    several = role in (*TOGETHER, *AXES, "body") and name not in there
    found = {}
    for one in map(str.strip, name.split("+") if several else [name]):
        half = role in AXES and one.endswith("/2") and one not in there
        column = one.removesuffix("/2").strip() if half else one
        if column not in there:
            raise DataError(
                f"{where}: no column {column!r} (--columns {role}={name}); there are "
                f"{shortened(names)}"
            )
        found[there[column]] = 0.5 if half else 1.0
    return found


def _plain(name: str) -> str:
    """A name without case, spaces and signs."""
    return re.sub(r"[\W_]", "", name).lower()


def _usual(role: str, names: Sequence[str]) -> tuple[str, ...]:
    """The column that has a usual name for a role, if there is one."""
    plain: dict[str, str] = {}
    for known in (list(names), [_without(TIME, name)[0] for name in names]):
        for name, text in zip(names, known, strict=True):
            plain.setdefault(_plain(text), name)
    return tuple(plain[alias] for alias in ALIASES[role] if alias in plain)[:1]


def _axis(axis: str, names: Sequence[str]) -> Coordinate | None:
    """A long table's x or y: a column so named, or else with a word or a unit beside it."""
    for pattern, behind in ((axis, False), (AXIS, False), (f"{axis}|{AXIS}", True)):
        for name in names:
            if _matches(pattern.replace("{axis}", axis), _without(LENGTH, name, behind)[0]):
                return {name: 1.0}
    return None


def _box(names: Sequence[str]) -> dict[str, tuple[Coordinate, Coordinate]]:
    """The middle of a long table's box: of left and right, or left and half of the width."""
    plain: dict[str, str] = {}
    for name in names:
        text = _plain(_without(LENGTH, name)[0])
        plain.setdefault(re.sub("^(bounding)?(bbox|box|bb)", "", text), name)
    side = {s: plain[alias] for s in SIDES for alias in SIDES[s] if alias in plain}
    for right, bottom, share in (("right", "bottom", 0.5), ("width", "height", 1.0)):
        if side.keys() >= {"left", "top", right, bottom}:
            x, y = ({side[a]: share, side[b]: 0.5} for a, b in (("left", right), ("top", bottom)))
            return {"": (x, y)}
    return {}


def _depths(names: Sequence[str], pairs: Mapping[str, tuple[Coordinate, Coordinate]]) -> list[str]:
    """The columns of a third axis beside x and y."""
    if "" in pairs:  # of boxes z is rather which lies on top
        return [*(_axis("z", names) or ())] if len(pairs[""][0]) == 1 else []
    found = _bodies("z", names, (*WIDE, *JOINED))
    return [found[body] for body in pairs if body in found]


def _is_one_of(
    x: Coordinate, y: Coordinate, pairs: Mapping[str, tuple[Coordinate, Coordinate]]
) -> bool:
    """Whether x and y are columns of one of several bodies: center_x beside nose_x, x_m beside x_f.

    They are not where they are plainly named x and y, or the others are the same in other units.
    """
    if _matches("x", _without(LENGTH, next(iter(x)), behind=False)[0]):
        return False
    return any(pair != (x, y) and not _matches(LENGTH, body) for body, pair in pairs.items())


def _without(unit: str, name: str, behind: bool = True) -> tuple[str, str | None]:
    """A column's name without its unit, and that: x (cm), Time [s] or, `behind`, also x_cm."""
    for pattern in (r"(.+?)[\s_.]*[(\[]\s*({})\s*[)\]]", r"(.+)[_ ]({})")[: 1 + behind]:
        match = re.fullmatch(pattern.format(unit), name.strip(), re.IGNORECASE)
        if match:
            return match[1], match[2]
    return name.strip(), None


def _ticks(time: str) -> int | None:
    """How many units of a column of times are a second: time_ms, Time [s], seconds."""
    unit = _without(TIME, time)[1]
    if _matches(MILLISECONDS, unit):
        return 1000
    return 1 if unit or _plain(time) in ("timesec", "seconds", "sec") else None


def _matches(pattern: str, text: str | None) -> bool:
    return bool(re.fullmatch(pattern, text or "", re.IGNORECASE))


def _wide_pairs(names: Sequence[str]) -> dict[str, tuple[Coordinate, Coordinate]]:
    """The bodies of a wide table, each with a column of x and one of y, in the order of columns.

    Velocities, speeds and accelerations (a_vel_x, x_velocity) are no bodies, nor are the corners of
    a box (x_min, x_max).
    """
    for patterns in (WIDE, JOINED):
        x, y = (_bodies(axis, names, patterns) for axis in ("x", "y"))
        both = {b.lower() for b in x} >= CORNERS
        corners = CORNERS if both or patterns is JOINED else ()
        pairs = {
            b: ({x[b]: 1.0}, {y[b]: 1.0})
            for b in x
            if b in y and not DERIVED.fullmatch(b) and b.lower() not in corners
        }
        if pairs:
            return pairs
    return {}


def _lone(names: Sequence[str], pairs: Mapping[str, tuple[Coordinate, Coordinate]]) -> list[str]:
    """Columns of a body that has x or y alone, beside numbered bodies that have both: x1 of x0, y0.

    Of names that are no numbers one cannot tell: pitch_x may be anything.
    """
    if not all(body.isdigit() for body in pairs):
        return []
    x, y = (_bodies(axis, names, WIDE) for axis in ("x", "y"))
    return [column[b] for column in (x, y) for b in column if b.isdigit() and b not in pairs]


def _bodies(axis: str, names: Sequence[str], patterns: Sequence[str]) -> dict[str, str]:
    """Body to its column for one axis."""
    found: dict[str, str] = {}
    forms = [pattern.replace("{axis}", axis) for pattern in patterns]
    for name in names:
        plain = _without(LENGTH, name, behind=False)[0]
        for text, form in ((t, f) for t in (plain, _without(LENGTH, plain)[0]) for f in forms):
            match = re.fullmatch(form, text, re.IGNORECASE)
            if match:
                found.setdefault(match["body"], name)
                break
    return found
