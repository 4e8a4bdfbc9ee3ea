"""Tables of positions, as files or DataFrames, read into plain arrays of numbers."""

import gzip
import re
import sys
import warnings
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from pyro_animacy.data.columns import Columns, find_columns
from pyro_animacy.errors import DataError, MissingExtra

UNREADABLE = (OSError, EOFError, zlib.error, ValueError, OverflowError)  # of a damaged text file
LINES = 20  # of a text file, that are looked at to see how it is written
DECIMAL_COMMA = re.compile(r"[+-]?\d+,\d+")
HEAD = 1000  # rows that are looked at to see whether names are whole numbers
Codes = npt.NDArray[np.int64]


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
    label: list[str] | None = None  # for each trajectory
    unlabelled: str | None = None  # a trajectory with a label that changes or is missing
    recordings: list[str] | None = None  # for each trajectory; its own by default
    fps: float | None = None  # as the file itself says
    units: str = "unknown"
    resolution: float | None = None  # None: to be estimated
    animate: list[bool] | None = None  # for each body


def read_text_table(path: Path, columns: Mapping[str, str] | None) -> Table:
    """Read a CSV or whitespace-separated file, plain or gzipped.

    The delimiter is taken from the first line. A first line of four numbers means a headerless
    file of frame, id, x, y, as the ETH and UCY pedestrian recordings are kept.

    Args:
        path: the file.
        columns: role to column, where the usual names do not apply.

    Returns:
        The table.

    Raises:
        DataError: where the file cannot be read; the row is named as the file counts, from 1.
    """
    where = path.name
    lines = _first_lines(path)
    first = lines[0]
    delimiter = next((d for d in (",", "\t", ";") if d in first), r"\s+")
    if first.startswith("scorer" + delimiter):
        return _read_deeplabcut(path, lines, columns)
    cells = [c.strip() for c in re.split(delimiter, first.lstrip("#").strip()) if c.strip()]
    headerless = all(_is_number(c) for c in cells)
    if headerless and len(cells) != 4:
        raise DataError(
            f"{where}: row 1 has no column names; expected names, or four numbers: frame id x y"
        )
    options: dict[str, Any] = {
        "sep": delimiter,
        "skip_blank_lines": False,  # so that rows are counted as in the file
        "skipinitialspace": True,
        "encoding": "utf-8-sig",
        "compression": "gzip" if _gzipped(path) else None,
    }
    some = (cell.strip() for line in lines[1:] for cell in re.split(delimiter, line))
    if delimiter != "," and any(DECIMAL_COMMA.fullmatch(cell) for cell in some):
        options["decimal"] = ","
    if headerless:
        names = ["frame", "id", "x", "y"]
        options |= {"header": None, "names": names}
    else:
        if first.startswith("#"):  # as numpy.savetxt writes the names
            options |= {"header": 0, "names": cells}
        names = [str(n) for n in _parse(path, where, nrows=0, **options).columns]
    found = find_columns(names, columns, where)
    if not headerless:  # pandas would give the second another name
        _no_name_twice([c.strip("\"'") for c in cells], found, where)
    if found.used() != set(names):  # only then: with usecols pandas lets rows be too long
        options["usecols"] = [n for n in names if n in found.used()]
    frame = _parse_rows(path, first, found, **(options | {"index_col": False}))
    return make_table(frame, found, where, 1 if headerless else 2)


def _read_deeplabcut(path: Path, lines: list[str], columns: Mapping[str, str] | None) -> Table:
    """Read DeepLabCut's table: its head names scorer, perhaps individual, body part and axis."""
    where = path.name
    levels = next((i for i, line in enumerate(lines, 1) if line.startswith("coords")), 3)
    frame = _parse(path, where, header=[*range(levels)], index_col=0)
    names = ["_".join(map(str, name[1:])) for name in frame.columns]  # without the scorer's
    frame = frame.set_axis(names, axis="columns").rename_axis("frame").reset_index()
    return make_table(frame, find_columns(list(frame.columns), columns, where), where, levels + 1)


def _first_lines(path: Path) -> list[str]:
    """The first lines of a text file; DataError where there is none."""
    try:
        opener = gzip.open if _gzipped(path) else open
        with opener(path, "rb") as file:
            lines = [file.readline(1_000_000) for _ in range(LINES)]
    except UNREADABLE as error:
        raise DataError(f"{path.name}: cannot be read: {error}") from None
    if b"\0" in lines[0]:
        raise DataError(f"{path.name}: is not a text file; rename it by its kind, see --help")
    texts = [line.decode("utf-8-sig", errors="replace") for line in lines]
    if not texts[0].strip():
        empty = "the file is empty" if not lines[0] else "row 1 is blank; expected the column names"
        raise DataError(f"{path.name}: {empty}")
    return texts


def _gzipped(path: Path) -> bool:
    return path.suffix.lower() == ".gz"


def _no_name_twice(names: list[str], found: Columns, where: str) -> None:
    """Raise DataError where two columns have a name that is used: which is meant is not known."""
    if twice := sorted({name for name in found.used() if names.count(name) > 1}):
        raise DataError(f"{where}: two columns are named {twice[0]!r}; rename one, or drop it")


def _is_number(cell: str) -> bool:
    """Whether a cell reads as a number."""
    try:
        float(cell)
    except ValueError:
        return False
    return True


def _parse(path: Path, where: str, **options: Any) -> pd.DataFrame:
    """`pandas.read_csv`, with its complaints as one line."""
    try:
        with warnings.catch_warnings():
            # A column of mixed types has a cell that is no number; `numbers` names its row.
            warnings.simplefilter("ignore", pd.errors.DtypeWarning)
            warnings.simplefilter("error", pd.errors.ParserWarning)
            return pd.read_csv(path, **options)
    except (*UNREADABLE, pd.errors.ParserWarning) as error:
        line = str(error).strip().splitlines()[-1:] or [type(error).__name__]
        what = line[0].removeprefix("Error tokenizing data. C error: ")
        raise DataError(f"{where}: cannot be read as a table: {what}") from None


def _parse_rows(path: Path, first: str, found: Columns, **options: Any) -> pd.DataFrame:
    """Parse the rows, names as categories: a string for each would cost many times the numbers.

    Most files have no cell that begins with a space, and whole numbers for names: these are first
    tried without allowing for the other kind, in half the time. Where anything but plain names and
    numbers comes out, the file is parsed again with care.
    """
    texts = [c for c in (found.trajectory, found.id, found.label) if c]
    careful = options | {"dtype": dict.fromkeys(texts, "category")}
    if re.search(options["sep"] + " ", first):
        return _parse(path, path.name, **careful)
    plain = options | {"skipinitialspace": False}
    try:
        head = _parse(path, path.name, nrows=HEAD, **plain)
        categories = [c for c in texts if head[c].dtype.kind != "i"]
        frame = _parse(path, path.name, dtype=dict.fromkeys(categories, "category"), **plain)
    except DataError:
        return _parse(path, path.name, **careful)
    plainly = all(_is_plain(frame[c], c in texts) for c in found.used())
    return frame if plainly else _parse(path, path.name, **careful)


def _is_plain(values: pd.Series, names: bool) -> bool:
    """Whether the column is numbers, or names, that would be no different if parsed with care."""
    if isinstance(values.dtype, pd.CategoricalDtype):
        return not any(str(name).startswith(" ") for name in values.cat.categories)
    return values.dtype.kind in ("i" if names else "if")


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
        rows = f"{len(row):,} rows, none with a value," if len(row) else "no rows"
        raise DataError(f"{where}: there are {rows} below the column names")

    def named(column: str | None, default: str) -> tuple[Codes, list[str]]:
        if column is None:
            return np.zeros(len(frame), np.int8), [default]
        codes, names = categories(frame[column])
        if codes.min() < 0:
            at = row[int(codes.argmin())]
            raise DataError(f"{where}: row {at}: no {column!r}; every row needs one")
        return codes, names

    trajectory, trajectories = named(columns.trajectory, Path(where).name.split(".")[0])
    body, bodies = named(columns.id, "body") if columns.long else (None, list(columns.pairs))
    pairs, lost = _observed(
        [numbers(frame[column], where, row, finite=False) for column in pair]
        for pair in columns.pairs.values()
    )
    if lost:
        print(f"{where}: {lost:,} infinite values are read as not observed", file=sys.stderr)
    frames = None
    if columns.frame is not None:
        frames = whole_numbers(frame[columns.frame], where, row)
    elif columns.time is None:  # a wide table of consecutive frames
        frames = pd.Series(trajectory).groupby(trajectory).cumcount().to_numpy().astype(np.int64)
    time = None if columns.time is None else seconds(frame[columns.time], where, row)
    label, unlabelled = None, None
    if columns.label is not None:
        code, names = categories(frame[columns.label])
        label, bad = _constant_labels(code, names, trajectory, len(trajectories))
        unlabelled = None if bad is None else trajectories[bad]
    return Table(
        *(where, row, trajectory, trajectories, body, bodies, frames, time, pairs),
        label=label,
        unlabelled=unlabelled,
    )


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
    texts = [str(c) for c in entries]
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


def numbers(
    values: pd.Series, where: str, row: Sequence[int] | Codes, *, finite: bool = True
) -> npt.NDArray:
    """A column as numbers, NaN where a cell is empty.

    Args:
        values: (rows,) the column.
        where: what to name in a message.
        row: (rows,) numbers of the rows.
        finite: refuse infinite values.

    Returns:
        (rows,) float64, or int64 where all are whole and none is missing.

    Raises:
        DataError: naming the row of the first cell that is no number, or is infinite where it must
            not be.
    """
    if pd.api.types.is_numeric_dtype(values) and not pd.api.types.is_bool_dtype(values):
        found = values
    else:
        text = values.astype(object).where(values.notna(), None).map(str, na_action="ignore")
        found = pd.to_numeric(text, errors="coerce")
        bad = (found.isna() & values.notna()).to_numpy()
        if bad.any():
            i = int(bad.argmax())
            cell = str(values.iloc[i])[:40]
            mend = "leave the cell empty where nothing was observed"
            if DECIMAL_COMMA.fullmatch(cell):
                mend = "write decimals with a point"
            raise DataError(
                f"{where}: row {row[i]}, column {values.name!r}: {cell!r} is not a number; {mend}"
            )
    whole = found.dtype.kind in "iu" and found.dtype.name != "uint64"
    if whole and (isinstance(found.dtype, np.dtype) or not found.hasnans):
        return found.to_numpy(np.int64)
    plain = found.to_numpy(np.float64, na_value=np.nan)
    if finite and (infinite := np.isinf(plain)).any():
        at = row[int(infinite.argmax())]
        raise DataError(
            f"{where}: row {at}, column {values.name!r}: infinite value; every row needs a finite "
            "one"
        )
    return plain


def seconds(values: pd.Series, where: str, row: Sequence[int] | Codes) -> npt.NDArray:
    """A column as seconds: numbers, or dates and times of day, counted from the first.

    Args:
        values: (rows,) the column.
        where: what to name in a message.
        row: (rows,) numbers of the rows.

    Returns:
        (rows,) numbers, NaN where a cell is empty.

    Raises:
        DataError: naming the row of the first cell that is none of these.
    """
    if values.dtype.kind not in "Mm":
        if pd.to_numeric(values.dropna().head(HEAD), errors="coerce").notna().any():
            return numbers(values, where, row)
        moments: Any = pd.to_datetime(values, format="ISO8601", errors="coerce", utc=True)
        if moments.isna().gt(values.isna()).any():
            clocks = values.where(values.astype(str).str.contains(":"))  # or "5" is nanoseconds
            moments = pd.to_timedelta(clocks.astype(str), errors="coerce")
        if (bad := moments.isna().gt(values.isna()).to_numpy()).any():
            i = int(bad.argmax())
            raise DataError(
                f"{where}: row {row[i]}, column {values.name!r}: {str(values.iloc[i])[:40]!r} is "
                "no time; expected seconds, a time of day, or a date like 2024-05-31T12:00:00.04"
            )
        values = moments
    from_first = values - values.min() if values.dtype.kind == "M" else values
    return from_first.dt.total_seconds().to_numpy(np.float64)


def whole_numbers(values: pd.Series, where: str, row: Sequence[int] | Codes) -> Codes:
    """A column as integers: frame numbers.

    Args:
        values: (rows,) the column.
        where: what to name in a message.
        row: (rows,) numbers of the rows.

    Returns:
        (rows,) int64.

    Raises:
        DataError: naming the first row where it is missing or not a whole number.
    """
    found = numbers(values, where, row)
    if found.dtype.kind == "i" and found.min() > -(2**53) and found.max() < 2**53:
        return found
    bad = ~((np.rint(found) == found) & (np.abs(found) < 2**53))  # NaN is bad too
    if bad.any():
        i = int(bad.argmax())
        raise DataError(
            f"{where}: row {row[i]}, column {values.name!r}: {found[i]} is not a frame number; "
            "expected a whole number (a time in seconds is --columns time=...)"
        )
    return found.astype(np.int64, copy=False)


def read_parquet(path: Path, columns: Mapping[str, str] | None) -> Table:
    """Read a parquet table; arguments, result and errors as for `read_text_table`."""
    try:
        import pyarrow.parquet as parquet
    except ImportError:
        raise MissingExtra(f"reading {path.name}", "parquet") from None
    try:
        names = [str(n) for n in parquet.read_schema(path).names]
        found = find_columns(names, columns, path.name)
        frame = pd.read_parquet(path, columns=[n for n in names if n in found.used()])
    except (OSError, ValueError) as error:
        line = str(error).splitlines()[0]
        raise DataError(f"{path.name}: cannot be read as parquet: {line}") from None
    return make_table(frame.reset_index(drop=True), found, path.name, 1)


def from_dataframe(frame: pd.DataFrame, columns: Mapping[str, str] | None) -> Table:
    """A DataFrame as a table; rows are counted from 0 in messages."""
    names = ["_".join(map(str, c)) if isinstance(c, tuple) else str(c) for c in frame.columns]
    frame = frame.set_axis(names, axis="columns")
    found = find_columns(list(frame.columns), columns, "DataFrame")
    _no_name_twice(names, found, "DataFrame")
    return make_table(frame.reset_index(drop=True), found, "DataFrame", 0)
