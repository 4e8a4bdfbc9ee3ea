"""Text files of positions: how a file is written is seen from its first lines."""

import codecs
import gzip
import re
import warnings
import zlib
from collections.abc import Mapping
from itertools import takewhile
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from pyro_animacy.data.columns import Columns, find_columns
from pyro_animacy.data.tables import Table, make_table, no_name_twice
from pyro_animacy.data.values import DECIMAL_COMMA, HEAD
from pyro_animacy.errors import DataError, how_many

UNREADABLE = (OSError, EOFError, zlib.error, ValueError, OverflowError)  # of a damaged text file
LINES = 20  # of a text file, that are looked at to see how it is written
MOTCHALLENGE = ("frame", "id", "bb_left", "bb_top", "bb_width", "bb_height")
MISSING = ("", "-", "na", "nan", "n/a", "#n/a", "none", "null", "inf", "-inf")


def read_text_table(path: Path, columns: Mapping[str, str] | None) -> Table:
    """Read a CSV or whitespace-separated file, plain or gzipped.

    The delimiter is taken from the row of the column names. That is the first row, or the first
    after rows that begin with #; rows of units or descriptions below it are left aside. Where a row
    of numbers comes first, the columns are frame, id, x, y, as the ETH and UCY pedestrian
    recordings are kept, or those of MOTChallenge, or `columns` gives them by their numbers, from 1.

    Args:
        path: the file.
        columns: role to column, where the usual names do not apply.

    Returns:
        The table.

    Raises:
        DataError: where the file cannot be read; the row is named as the file counts, from 1.
    """
    where = path.name
    encoding, lines = first_lines(path)
    notes = next((i for i, line in enumerate(lines) if not re.match("#|sep=.$", line)), 0)
    first = lines[notes]
    delimiter = next((d for d in (",", "\t", ";", "|") if d in first), r"\s+")
    if first.startswith("scorer" + delimiter):
        return _read_deeplabcut(path, lines, columns)
    cells = _cells(first, delimiter)
    headerless = sum(map(_is_number, cells)) > len(cells) / 2
    options: dict[str, Any] = {
        "sep": delimiter,
        "skip_blank_lines": False,  # so that rows are counted as in the file
        "skipinitialspace": True,
        "encoding": encoding,
        "encoding_errors": "backslashreplace",  # of other encodings, that only names depend on
        "compression": "gzip" if _gzipped(path) else None,
    }
    if delimiter != "," and any(
        DECIMAL_COMMA.fullmatch(cell) for line in lines[notes:] for cell in _cells(line, delimiter)
    ):
        options["decimal"] = ","
    below = 0
    if headerless:
        names = _names_above(lines[:notes], cells, delimiter)
        rows = [_cells(line, delimiter) for line in lines[notes:] if line.strip()]
        names = names or _names_by_number(rows, columns, f"{where}: row {notes + 1}")
        options |= {"header": None, "names": names, "skiprows": notes}
    else:
        rest = (_cells(line, delimiter) for line in lines[notes + 1 :])
        below = len([*takewhile(_is_description, rest)])
        skipped = [*range(notes), *range(notes + 1, notes + 1 + below)]
        options["skiprows"] = skipped or 0  # to look for each row in a list takes as long as it
        names = [str(n) for n in parse(path, where, nrows=0, **options).columns]
    found = find_columns(names, columns, where)
    if not headerless:  # pandas would give the second another name
        no_name_twice([c.strip("\"'") for c in cells], found, where)
    if found.used() != set(names):  # only then: with usecols pandas lets rows be too long
        options["usecols"] = [n for n in names if n in found.used()]
    frame = _parse_rows(path, first, found, **(options | {"index_col": False}))
    return make_table(frame, found, where, notes + (1 if headerless else 2 + below))


def _cells(line: str, delimiter: str) -> list[str]:
    """The cells of a line that are not empty."""
    parts = line.split() if delimiter == r"\s+" else line.split(delimiter)
    return [part.strip() for part in parts if part.strip()]


def _names_above(notes: list[str], cells: list[str], delimiter: str) -> list[str] | None:
    """The column names behind a #, as numpy.savetxt writes them."""
    names = _cells(notes[-1].lstrip("#"), delimiter) if notes else []
    return names if len(names) == len(cells) else None


def _names_by_number(
    rows: list[list[str]], columns: Mapping[str, str] | None, where: str
) -> list[str]:
    """The column names of a file without any, by the cells of its first rows."""
    cells = rows[0]
    if columns is not None:
        return [str(i) for i in range(1, len(cells) + 1)]
    if _is_motchallenge(rows):
        return [*MOTCHALLENGE, *(f"column {i}" for i in range(7, len(cells) + 1))]
    if len(cells) != 4 or not (_is_number(cells[0]) and float(cells[0]).is_integer()):
        raise DataError(
            f"{where} has no column names, and is not frame id x y; write names above it, or say "
            f"which of the {how_many(len(cells), 'column')} is which, such as "
            "--columns frame=1,id=2,x=3,y=4"
        )
    return ["frame", "id", "x", "y"]


def _is_motchallenge(rows: list[list[str]]) -> bool:
    """Whether rows are boxes of bodies with an identity, as in MOTChallenge's files.

    Behind the six columns `MOTCHALLENGE` are confidence, -1, -1, -1, or as in its ground truth
    whether the row counts, a class and the visible share.
    """
    size = len(rows[0])
    if size not in (9, 10) or not all(len(r) == size and all(map(_is_number, r)) for r in rows):
        return False
    columns = np.array([[float(cell) for cell in row] for row in rows]).T
    truth = size == 9
    whole = columns[[0, 1, 7] if truth else [0, 1]]
    if (whole < 1).any() or (whole != np.rint(whole)).any() or not (columns[4:6] > 0).all():
        return False
    if truth:
        flag, visible = columns[6], columns[8]
        return bool((np.isin(flag, (0, 1)) & (visible >= 0) & (visible <= 1)).all())
    return bool((columns[7:] == -1).all())


def _is_description(cells: list[str]) -> bool:
    """Whether a row below the column names says more of these: units, words, but no number."""
    said = [cell for cell in cells if cell.lower().strip("\"'") not in MISSING]
    return bool(said) and not any(re.match(r"[\"']?[+-]?\.?\d", cell) for cell in said)


def _read_deeplabcut(path: Path, lines: list[str], columns: Mapping[str, str] | None) -> Table:
    """Read DeepLabCut's table: its head names scorer, perhaps individual, body part and axis."""
    where = path.name
    levels = next((i for i, line in enumerate(lines, 1) if line.startswith("coords")), 3)
    frame = parse(path, where, header=[*range(levels)], index_col=0)
    names = ["_".join(map(str, name[1:])) for name in frame.columns]  # without the scorer's
    frame = frame.set_axis(names, axis="columns").rename_axis("frame").reset_index()
    return make_table(frame, find_columns(list(frame.columns), columns, where), where, levels + 1)


def first_lines(path: Path) -> tuple[str, list[str]]:
    """The encoding and the first lines of a text file; DataError where there is none."""
    try:
        opener: Any = gzip.open if _gzipped(path) else open
        with opener(path, "rb") as file:
            wide = file.read(2) in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
        encoding = "utf-16" if wide else "utf-8-sig"
        with opener(path, "rt", encoding=encoding, errors="backslashreplace") as file:
            lines = [line for _ in range(LINES) if (line := file.readline(1_000_000))]
    except UNREADABLE as error:
        raise DataError(f"{path.name}: cannot be read: {error}") from None
    if any("\0" in line for line in lines[:1]):
        raise DataError(f"{path.name}: is not a text file; rename it by its kind, see --help")
    if not lines or not lines[0].strip():
        empty = "row 1 is blank; write the column names there" if lines else "the file is empty"
        raise DataError(f"{path.name}: {empty}")
    return encoding, lines


def _gzipped(path: Path) -> bool:
    """Whether the file is compressed, whatever it is called."""
    with path.open("rb") as file:
        return file.read(2) == b"\x1f\x8b"


def _is_number(cell: str) -> bool:
    """Whether a cell reads as a number."""
    try:
        float(cell)
    except ValueError:
        return False
    return True


def parse(path: Path, where: str, **options: Any) -> pd.DataFrame:
    """`pandas.read_csv`, with its complaints as one line; a dash too is a cell without a value."""
    try:
        with warnings.catch_warnings():
            # A column of mixed types has a cell that is no number; `numbers` names its row.
            warnings.simplefilter("ignore", pd.errors.DtypeWarning)
            warnings.simplefilter("error", pd.errors.ParserWarning)
            return pd.read_csv(path, na_values=["-"], **options)
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
    texts = found.names()
    careful = options | {"dtype": dict.fromkeys(texts, "category")}
    if re.search(options["sep"] + " ", first):
        return parse(path, path.name, **careful)
    plain = options | {"skipinitialspace": False}
    try:
        head = parse(path, path.name, nrows=HEAD, **plain)
        categories = [c for c in texts if head[c].dtype.kind != "i"]
        frame = parse(path, path.name, dtype=dict.fromkeys(categories, "category"), **plain)
    except DataError:
        return parse(path, path.name, **careful)
    plainly = all(_is_plain(frame[c], c in texts) for c in found.used())
    return frame if plainly else parse(path, path.name, **careful)


def _is_plain(values: pd.Series, names: bool) -> bool:
    """Whether the column is numbers, or names, that would be no different if parsed with care."""
    if isinstance(values.dtype, pd.CategoricalDtype):
        return not any(str(name).startswith(" ") for name in values.cat.categories)
    return values.dtype.kind in ("i" if names else "if")
