"""Text files of positions: how a file is written is seen from its first lines."""

import gzip
import re
import warnings
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from pyro_animacy.data.columns import Columns, find_columns
from pyro_animacy.data.tables import DECIMAL_COMMA, HEAD, Table, make_table, no_name_twice
from pyro_animacy.errors import DataError

UNREADABLE = (OSError, EOFError, zlib.error, ValueError, OverflowError)  # of a damaged text file
LINES = 20  # of a text file, that are looked at to see how it is written


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
        no_name_twice([c.strip("\"'") for c in cells], found, where)
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
