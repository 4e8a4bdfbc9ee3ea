"""Arrays that a caller gave, as numbers; and large ones a part at a time."""

from collections.abc import Iterator

import numpy as np
from numpy.typing import ArrayLike

from pyro_animacy.errors import DataError

CHUNK = 4_000_000  # coordinates of draws looked at or drawn at once: 32 MB in float64


def as_numbers(name: str, values: ArrayLike) -> np.ndarray:
    """Values as an array of floats, which is the same array where it is one already.

    Args:
        name: What an error calls them.
        values: An array, lists of numbers, or what numpy makes an array of.

    Raises:
        DataError: If they are ragged or not numbers.
    """
    try:
        found = np.asarray(values)
    except ValueError:
        raise DataError(f"{name} is ragged; expected lists of equal lengths") from None
    if found.dtype.kind not in "biuf":
        raise DataError(f"{name} holds values of type {found.dtype}; expected real numbers")
    return found if found.dtype.kind == "f" else found.astype(float)


def chunks(draws: np.ndarray) -> Iterator[tuple[slice, np.ndarray]]:
    """Draws (draw, trajectory, ...) in float64, a few trajectories at a time, and which these are.

    So that what is derived of them takes little beside them.
    """
    several = max(1, CHUNK // max(1, draws[:, :1].size))
    for first in range(0, draws.shape[1], several):
        rows = slice(first, first + several)
        yield rows, draws[:, rows].astype(float)
