"""Which cell of a dense array (trajectory, time, body, 2) each row of a table goes to."""

import os
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import numpy.typing as npt

from pyro_animacy.data.frames import Frames
from pyro_animacy.data.schema import shortened
from pyro_animacy.data.tables import Table
from pyro_animacy.data.values import Codes
from pyro_animacy.errors import DataError, how_many

BLOCK = 2**17  # rows put in their cells at once: in less, threads wait more than they work
SPARSE = 200  # cells of the dense array for each row beyond which something must be wrong


def scatter(table: Table, frames: Frames) -> npt.NDArray[np.float64]:
    """Put every row in its cell.

    Args:
        table: the rows.
        frames: where they are on the frame axis.

    Returns:
        (trajectory, time, body, 2), NaN where there is no row.

    Raises:
        DataError: for two rows in one cell, naming the second; for frames so far apart that the
            array would be nearly all empty.
    """
    count, time, bodies = len(table.trajectories), int(frames.count.max()), len(table.bodies)
    rows, cells = len(table.trajectory), count * time * bodies
    if cells > max(2**22, SPARSE * rows * len(table.pairs)):
        raise DataError(
            f"{table.where}: {how_many(rows, 'row')} spread over {how_many(time, 'frame')} of "
            f"{how_many(bodies, 'body')} in {how_many(count, 'trajectory')} would take "
            f"{cells * 16 / 1e9:.1f} GB; check the frame column, or use --bodies each"
        )
    each = bodies if table.body is not None else 1
    seen = np.zeros(count * time * each, bool)
    position = np.empty((len(seen), len(table.pairs), 2))

    def put(block: slice) -> None:
        for some, cell in _places(table, frames, time, each, block):
            seen[cell] = True
            for b, (x, y) in enumerate(table.pairs):
                position[cell, b, 0] = x[some]
                position[cell, b, 1] = y[some]

    size = max(1, BLOCK // each) * each
    blocks = [slice(begin, min(begin + size, rows)) for begin in range(0, rows, size)]
    with ThreadPoolExecutor(min(len(blocks), os.cpu_count() or 1)) as pool:
        list(pool.map(put, blocks))  # what one raises is raised
    if np.count_nonzero(seen) != rows:
        _check_repeated(table, frames, _cells(table, frames, time, each, slice(None)), position)
    if rows < len(seen):
        position[~seen] = np.nan
    return position.reshape(count, time, bodies, 2)


def _cells(table: Table, frames: Frames, time: int, each: int, some: slice) -> Codes:
    """Which cell some rows belong in, of (trajectory, time, each) in one row."""
    owner = table.trajectory[some]
    cell = owner.astype(np.int64) * time + frames.index(owner, some)
    return cell if table.body is None else cell * each + table.body[some]


def _places(
    table: Table, frames: Frames, time: int, each: int, block: slice
) -> Iterator[tuple[slice, slice | Codes]]:
    """The rows of a block and their cells; those of one body after another where in order."""
    if not _in_order(table, frames, each, block):
        yield block, _cells(table, frames, time, each, block)
        return
    begin = block.start
    first = _cells(table, frames, time, each, slice(begin, begin + each))
    end = first.min() + block.stop - begin
    for i, cell in enumerate(first.tolist()):
        yield slice(begin + i, block.stop, each), slice(cell, end, each)


def _in_order(table: Table, frames: Frames, each: int, some: slice) -> bool:
    """Whether rows are frame after frame of a trajectory, all bodies in the same order in each.

    Those of most files are; then the cells of each body are a slice, far faster than any.
    """
    owner, number = table.trajectory[some], frames.number[some]
    if len(owner) % each or (owner != owner[0]).any() or (number[:each] != number[0]).any():
        return False
    if table.body is not None:
        body = table.body[some]
        if len(set(body[:each].tolist())) < each or (body[each:] != body[:-each]).any():
            return False
    return bool((number[each:] - number[:-each] == frames.stride).all())


def _check_repeated(
    table: Table, frames: Frames, cell: Codes, position: npt.NDArray[np.float64]
) -> None:
    """Raise the DataError for the first row whose cell has another, unless all repeat one another.

    Args:
        table: the rows.
        frames: where they are on the frame axis.
        cell: (rows,) of each.
        position: (cells, pairs, 2) what the last row put there.
    """
    same = np.ones(len(cell), bool)
    for b, pair in enumerate(table.pairs):
        for axis, values in enumerate(pair):
            last = position[cell, b, axis]
            same &= (values == last) | (np.isnan(values) & np.isnan(last))
    if same.all():
        count = len(cell) - len(np.unique(cell))
        print(f"{table.where}: rows that repeat another are left out: {count:,}", file=sys.stderr)
        return
    _, first, owner = np.unique(cell, return_index=True, return_inverse=True)
    contradicted = np.zeros(len(first), bool)
    contradicted[owner[~same]] = True
    later = np.ones(len(cell), bool)
    later[first] = False
    i = int((later & contradicted[owner]).argmax())
    what = "" if table.body is None else f"body {table.bodies[table.body[i]]!r}, "
    others = []
    if table.body is None:
        others.append(
            "if a row is one body, name its x and y by --columns x=...,y=..., of a box with two "
            "corners as x=x1/2+x2/2,y=y1/2+y2/2"
        )
    elif table.bodies == ["body"] and table.recordings is None:
        others.append("if a column says which body a row is, name it by --columns id=...")
    if len(table.trajectories) == 1:
        others.append("if a column numbers trials, name it by --columns trajectory=...")
    else:
        others.append("if two columns together say which trajectory, by --columns trajectory=A+B")
    there = f"; other columns are {shortened(table.unused)}" if table.unused else ""
    here = slice(i, i + 1)
    index = frames.index(table.trajectory[here], here)
    frame = index[0] if table.frame is None else table.frame[i]
    raise DataError(
        f"{table.where}: row {table.row[i]}: a second row for {what}frame {frame} of trajectory "
        f"{table.trajectories[table.trajectory[i]]!r}; {', or '.join(['keep one', *others])}{there}"
    )
