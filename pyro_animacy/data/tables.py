"""Tables of positions, from DataFrames and parquet files, read into plain arrays of numbers."""

import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from pyro_animacy.data.columns import ROWS, Columns, Coordinate, find_columns
from pyro_animacy.data.values import Codes, numbers, seconds, whole_numbers
from pyro_animacy.errors import DataError, MissingExtra, how_many

FLAGS = {"0", "1", "False", "True"}


@dataclass(frozen=True)
class Table:
    """The rows of a table, as numbers.

    In a long table a row is one body in one frame: `body` says which, and `pairs` has one entry.
    In a wide table a row is one frame: `body` is None, and `pairs` has an entry for each body.
    """

    where: str  # file or object, for messages
    row: Sequence[int] | Codes  # (rows,) numbers of the rows as the user counts them
    trajectory: Codes  # (rows,) index into trajectories
    trajectories: list[str]
    body: Codes | None  # (rows,) index into bodies
    bodies: list[str]
    frame: Codes | None  # (rows,) as in the file; None where there is only the time
    time: npt.NDArray[np.float64] | None  # (rows,) seconds
    pairs: list[tuple[npt.NDArray, npt.NDArray]]  # x and y, (rows,) each; NaN = not observed
    clock: str | None = None  # the column of the times, where nothing says that they are seconds
    label: list[str] | None = None  # for each trajectory
    unlabelled: str | None = None  # a trajectory with a label that changes or is missing
    recordings: list[str] | None = None  # for each trajectory; its own by default
    fps: float | None = None  # as the file itself says
    units: str = "unknown"
    resolution: float | None = None  # None: to be estimated
    animate: list[bool] | None = None  # for each body
    unused: tuple[str, ...] = ()  # other columns, for messages


def no_name_twice(names: list[str], found: Columns, where: str) -> None:
    """Raise DataError where two columns have a name that is used: which is meant is not known."""
    if twice := sorted({name for name in found.used() if names.count(name) > 1}):
        raise DataError(f"{where}: two columns are named {twice[0]!r}; rename one, or drop it")


def make_table(frame: pd.DataFrame, columns: Columns, where: str, first_row: int) -> Table:
    """Turn the columns of a DataFrame into a `Table`.

    Args:
        frame: the rows; other columns are left aside.
        columns: what its columns are.
        where: what to name in a message.
        first_row: number of the first row, as the user counts.

    Returns:
        The table.

    Raises:
        DataError: for a table without rows, and for a cell that is no number, an infinite time or
            frame, or a missing id or frame, naming the row.
    """
    row: Sequence[int] | Codes = range(first_row, first_row + len(frame))
    used = [frame[column] for column in columns.used()]
    if not any(values.dtype == np.int64 for values in used):  # where no cell is empty
        blank = np.ones(len(frame), bool)
        for values in used:
            if blank.any():
                blank &= values.isna().to_numpy()
        if not (columns.frame or columns.time or columns.trajectory):
            # a row is a frame, also one in which nobody was seen
            blank &= np.arange(len(frame)) > np.flatnonzero(~blank).max(initial=-1)
        if blank.any():
            frame = frame[~blank]
            row = np.asarray(row)[~blank] if len(frame) else row
    if not len(frame):
        rows = f"{how_many(len(row), 'row')}, none with a value," if len(row) else "no rows"
        raise DataError(f"{where}: there are {rows} below the column names")

    def named(role: str, default: str, between: str) -> tuple[Codes, list[str]]:
        names: tuple[str, ...] = getattr(columns, role)
        if not names:
            return np.zeros(len(frame), np.int8), [default]
        codes, found = together([frame[name] for name in names], between)
        if codes.min() < 0:
            at = int(codes.argmin())
            what = "+".join(names)
            raise DataError(
                f"{where}: row {row[at]}: no {what!r}; every row needs one: fill it in, or name "
                f"another column, or two, by --columns {role}=A+B"
            )
        return codes, found

    default = Path(where).name.split(".")[0]
    trajectory, trajectories = named("trajectory", default, "/")
    body, bodies = None, list(columns.pairs)
    if columns.long:
        body, bodies = named("id", "body", "_")
    pairs, lost = _observed(
        [_sum(frame, axis, where, row) for axis in pair] for pair in columns.pairs.values()
    )
    if lost:
        print(f"{where}: {lost:,} infinite values are read as not observed", file=sys.stderr)
    frames = None
    doubtful = columns.time is not None and columns.frame in columns.doubtful
    if doubtful and not _counts(frame[columns.frame], trajectory, body):
        what = f"{columns.frame!r} does not number the frames of a body"
        print(f"{where}: {what}, so they are taken from {columns.time!r}", file=sys.stderr)
    elif columns.frame is not None:
        frames = whole_numbers(frame[columns.frame], where, row)
    time, clock = None, None
    if columns.time is not None:
        time, dated = seconds(frame[columns.time], where, row)
        if columns.ticks is None and not dated:
            clock = columns.time
        elif columns.ticks == 1000:
            time = time / 1000
    if {*columns.trajectory} & {*columns.doubtful} and {*trajectories} <= FLAGS:
        in_order = (m for m in (frames, time, np.arange(len(frame))) if m is not None)
        if _goes_back(trajectory, body, next(in_order)):
            flag = columns.trajectory[0]
            print(
                f"{where}: {flag!r} is 0 and 1 by turns, so it is not used as a trajectory; if it "
                f"says which trajectory a row is of, give --columns trajectory={flag}",
                file=sys.stderr,
            )
            trajectory, trajectories = np.zeros(len(frame), np.int8), [default]
    if frames is None and time is None:  # a wide table of consecutive frames
        frames = pd.Series(trajectory).groupby(trajectory).cumcount().to_numpy().astype(np.int64)
    label, unlabelled = None, None
    if columns.label:
        code, names = together([frame[name] for name in columns.label], "/")
        label, bad = _constant_labels(code, names, trajectory, len(trajectories))
        unlabelled = None if bad is None else trajectories[bad]
    return Table(
        *(where, row, trajectory, trajectories, body, bodies, frames, time, pairs),
        clock=clock,
        label=label,
        unlabelled=unlabelled,
        units=columns.units or "unknown",
        unused=columns.unused,
    )


def _counts(values: pd.Series, trajectory: Codes, body: Codes | None) -> bool:
    """Whether a column numbers the frames of every body: by whole numbers, and none twice."""
    number = pd.to_numeric(values, errors="coerce").reset_index(drop=True)
    rows = pd.DataFrame({"trajectory": trajectory, "body": body, "number": number})
    return bool(number.mod(1).eq(0).all()) and not rows.duplicated().any()


def _goes_back(trajectory: Codes, body: Codes | None, moment: npt.NDArray) -> bool:
    """Whether a body goes back to a trajectory that it had left; not where these share moments."""
    rows = pd.DataFrame({"body": body, "moment": moment, "trajectory": trajectory})
    if rows.duplicated(["body", "moment"]).any():
        return False
    owner = rows.sort_values(["body", "moment"]).fillna({"body": 0})[["body", "trajectory"]]
    return bool(owner.ne(owner.shift()).any(axis=1).sum() > len(owner.drop_duplicates()))


def _sum(
    frame: pd.DataFrame, axis: Coordinate, where: str, row: Sequence[int] | Codes
) -> npt.NDArray:
    """(rows,) one coordinate, of a column or of several."""
    parts = [(numbers(frame[column], where, row, finite=False), f) for column, f in axis.items()]
    with np.errstate(all="ignore"):  # infinite values are not observed
        # a column alone is not copied
        return reduce(np.add, (values if f == 1 else f * values for values, f in parts))


def _observed(
    pairs: Iterable[list[npt.NDArray]],
) -> tuple[list[tuple[npt.NDArray, npt.NDArray]], int]:
    """Coordinates, NaN where they are infinite, as TRex writes them of lost animals; and how many.

    Args:
        pairs: x and y of each body, each (rows,).
    """
    lost, seen = 0, []
    for pair in pairs:
        for at, values in enumerate(pair):
            with np.errstate(all="ignore"):
                if np.isfinite(values.sum()):  # most often, and then no value is infinite
                    continue
            if count := int(np.isinf(values).sum()):
                lost += count
                pair[at] = np.where(np.isinf(values), np.nan, values)  # a copy: they may be given
        seen.append((pair[0], pair[1]))
    return seen, lost


def together(columns: Sequence[pd.Series], between: str) -> tuple[npt.NDArray[Any], list[str]]:
    """Number the distinct entries of several columns together, as of game and play.

    Args:
        columns: (rows,) each; one at least.
        between: joins the entries to a name; those that are missing are left out of it.

    Returns:
        As `categories`; -1 where all entries are missing.
    """
    codes, names = categories(columns[0])
    for column in columns[1:]:
        other, more = categories(column)
        pair = (codes.astype(np.int64) + 1) * (len(more) + 1) + other + 1  # 0: both are missing
        kept, codes = np.unique(np.append(0, pair), return_inverse=True)
        codes = codes[1:] - 1
        parts = [
            (["", *names][i], ["", *more][j])
            for i, j in zip(*divmod(kept[1:], len(more) + 1), strict=True)
        ]
        names = [between.join(part for part in both if part) for both in parts]
    return codes, names


def categories(values: pd.Series) -> tuple[npt.NDArray[Any], list[str]]:
    """Number the distinct entries of a column.

    "7" and "7.0" are the same name where all entries are whole numbers. Names are in natural
    order (home_2 before home_10), so that they do not depend on the order of the rows.

    Args:
        values: (rows,) entries of any kind.

    Returns:
        (rows,) codes, -1 where the entry is missing, and the names.
    """
    if isinstance(values.dtype, pd.CategoricalDtype):
        codes, entries = values.cat.codes.to_numpy(), list(values.cat.categories)
    else:
        codes, entries = _factorize(values)
    texts = [str(c).strip() or str(c) for c in entries]
    if all(re.fullmatch(r"[+-]?\d{1,15}(\.0*)?", t) for t in texts):
        texts = [str(int(float(t))) for t in texts]
    names = sorted(set(texts), key=_natural)
    place = {name: i for i, name in enumerate(names)}
    lookup = np.array([place[t] for t in texts] + [-1], codes.dtype)  # -1 picks the last
    ordered = len(names) == len(texts) and (np.diff(lookup[:-1]) == 1).all()
    return (codes if ordered else lookup[codes]), names


def _factorize(values: pd.Series) -> tuple[npt.NDArray[Any], list[Any]]:
    """`pandas.factorize`; of whole numbers that come in long runs, as of clips, by the runs."""
    if values.dtype == np.int64 and len(values):
        x = values.to_numpy()
        first = first_of_runs(x)
        if len(first) < len(x) // 8:
            codes, entries = pd.factorize(x[first])
            small = codes.astype(np.min_scalar_type(-len(entries)))
            return small.repeat(np.diff(first, append=len(x))), list(entries)
    codes, index = pd.factorize(values)
    return codes, list(index)


def first_of_runs(values: npt.NDArray) -> npt.NDArray[np.int64]:
    """Where the runs of equal values begin in (rows,), of which there is one at least."""
    return np.append(0, np.flatnonzero(values[1:] != values[:-1]) + 1)


def _natural(name: str) -> tuple[list[str | int], str]:
    """Sort key: runs of digits count as numbers."""
    return [int(p) if p.isdecimal() else p for p in re.split(r"(\d+)", name)], name


def _constant_labels(
    code: Codes, names: list[str], trajectory: Codes, count: int
) -> tuple[list[str] | None, int | None]:
    """The label of each trajectory, or else the first in which it changes or is missing."""
    low, high = np.full(count, len(names)), np.full(count, -1)
    np.minimum.at(low, trajectory, code)
    np.maximum.at(high, trajectory, code)
    bad = (low != high) | (low < 0)
    if bad.any():
        return None, int(bad.argmax())
    return [names[i] for i in low], None


def read_parquet(path: Path, columns: Mapping[str, str] | None) -> Table:
    """Read a parquet table; arguments, result and errors as for `text.read_text_table`."""
    try:
        import pyarrow.parquet as parquet
    except ImportError:
        raise MissingExtra(f"reading {path.name}", "parquet") from None
    try:
        schema = parquet.read_schema(path)
        found = find_columns([str(n) for n in schema.names], columns, path.name)
        frame = parquet.read_table(path, columns=[n for n in schema.names if n in found.used()])
    except (OSError, ValueError) as error:
        line = str(error).splitlines()[0]
        raise DataError(f"{path.name}: cannot be read as parquet: {line}") from None
    return make_table(frame.to_pandas(ignore_metadata=True), found, path.name, 1)


def from_dataframe(frame: pd.DataFrame, columns: Mapping[str, str] | None) -> Table:
    """A DataFrame as a table; rows are counted from 0 in messages.

    An index that has a name, or moments, is a column; so is one of whole numbers that grow, in a
    wide table without frames: rows may have been left out.
    """
    frame = _with_index(frame)
    names = [
        "_".join(str(part) for part in c if part != "") if isinstance(c, tuple) else str(c)
        for c in frame.columns
    ]
    frame = frame.set_axis(names, axis="columns")
    found = find_columns(names, columns, "DataFrame")
    no_name_twice(names, found, "DataFrame")
    return make_table(frame, found, "DataFrame", 0)


def _with_index(frame: pd.DataFrame) -> pd.DataFrame:
    """The DataFrame with its index as columns, where it says anything."""
    index = frame.index
    if index.names == [None] and not isinstance(index, pd.RangeIndex):
        if index.dtype.kind in "mM":
            frame = frame.rename_axis("time")
        elif index.dtype.kind == "i" and (np.diff(index) > 0).all():
            frame = frame.rename_axis(ROWS)
    named = [n for n in frame.index.names if n is not None and n not in frame.columns]
    return (frame.reset_index(named) if named else frame).reset_index(drop=True)
