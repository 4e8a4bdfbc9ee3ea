"""Columns of a table as arrays: numbers, times in seconds, whole numbers of frames."""

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from pyro_animacy.errors import DataError

DECIMAL_COMMA = re.compile(r"[+-]?\d+,\d+")
HEAD = 1000  # rows that are looked at to see what kind a column is of
Codes = npt.NDArray[np.int64]


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


def seconds(values: pd.Series, where: str, row: Sequence[int] | Codes) -> tuple[npt.NDArray, bool]:
    """A column as seconds: numbers, or dates and times of day, counted from the first.

    Args:
        values: (rows,) the column.
        where: what to name in a message.
        row: (rows,) numbers of the rows.

    Returns:
        (rows,) numbers, NaN where a cell is empty, and whether they are of dates or times of day.

    Raises:
        DataError: naming the row of the first cell that is none of these.
    """
    if values.dtype.kind not in "Mm":
        if pd.to_numeric(values.dropna().head(HEAD), errors="coerce").notna().any():
            return numbers(values, where, row), False
        moments: Any = pd.to_datetime(values, format="ISO8601", errors="coerce", utc=True)
        if moments.isna().gt(values.isna()).any():
            clocks = values.where(values.astype(str).str.contains(":"))  # or "5" is nanoseconds
            moments = _over_midnight(pd.to_timedelta(clocks.astype(str), errors="coerce"))
        if (bad := moments.isna().gt(values.isna()).to_numpy()).any():
            i = int(bad.argmax())
            raise DataError(
                f"{where}: row {row[i]}, column {values.name!r}: {str(values.iloc[i])[:40]!r} is "
                "no time; expected seconds, a time of day, or a date like 2024-05-31T12:00:00.04"
            )
        values = moments
    from_first = values - values.min() if values.dtype.kind == "M" else values
    return from_first.dt.total_seconds().to_numpy(np.float64), True


def _over_midnight(clocks: pd.Series) -> pd.Series:
    """Times of day (rows,) that go on over midnight: those after it are of the next day.

    A clock that goes back by more than half a day, and shows none of the times of half a day, has
    passed midnight in between.
    """
    half = pd.Timedelta(hours=12)
    known = clocks.dropna()
    if not known.diff().lt(-half).any():
        return clocks
    ordered = known.sort_values()
    pause = ordered.diff() > half
    return clocks.where(~(clocks < ordered[pause].min()), clocks + 2 * half)


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
            "frames are counted by whole numbers; if these are times in seconds, give "
            f"--columns time={values.name}"
        )
    return found.astype(np.int64, copy=False)
