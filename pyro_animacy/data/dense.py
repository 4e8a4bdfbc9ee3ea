"""From the rows of a table to a dense array: frames and scenes."""

from dataclasses import replace

import numpy as np
import numpy.typing as npt
import xarray as xr

from pyro_animacy.data.bodies import body_groups, select_bodies
from pyro_animacy.data.cells import Frames, scatter
from pyro_animacy.data.schema import make_trajectories
from pyro_animacy.data.tables import Codes, Table, first_of_runs
from pyro_animacy.errors import DataError

LOOK = 2**18  # rows that are looked at to find the frame stride; enough to tell
SOME = 97  # one row in so many is looked at before all are
RARE = 0.05  # of the steps, the most that may be pauses
SLOW = 0.1  # frames a second; a slower time column is likely to be in milliseconds


def table_dataset(table: Table, bodies: str | None, fps: float | None) -> xr.Dataset:
    """Make the Dataset of a table.

    Only the bodies asked for are made dense: `each` of a pedestrian file with hundreds of ids
    over an hour never becomes an array of all ids over all frames.

    Args:
        table: the rows.
        bodies: which bodies make up a scene, see `select_bodies`; all by default.
        fps: frames per second, if the table does not know it.

    Returns:
        Trajectories in the schema. Frames that have no row are NaN.

    Raises:
        DataError: where rows contradict one another or `fps`, or bodies differ between
            trajectories.
    """
    each = bodies is not None and bodies.strip() == "each"
    if each and table.body is not None:
        table = _body_by_body(table)
    elif bodies is not None and not each:
        _, groups = body_groups(bodies, table.bodies, table.where)
        table = _keep_bodies(table, sorted({i for group in groups for i in group}))
    elif bodies is None:
        _same_bodies(table)
    frames = frame_axis(table)
    table, frames = _drop_short(table, frames)
    whole = each and table.body is not None
    ds = make_trajectories(
        scatter(table, frames),
        fps=agreed_fps(fps, table.fps, table.where)
        if table.fps
        else _timed_fps(fps, frames.fps, table.where),
        body=table.bodies,
        units=table.units,
        trajectory=table.trajectories,
        recording=table.recordings,
        start=_starts(table, frames) if whole else None,
        length=frames.count,
        label=table.label,
        resolution=table.resolution,
        animate=table.animate,
        source=table.where,
    )
    return ds if bodies is None or whole else select_bodies(ds, bodies)


def _starts(table: Table, frames: Frames) -> Codes:
    """(trajectory,) first frame of each, counted from the first frame of its recording."""
    code = np.unique(table.recordings or table.trajectories, return_inverse=True)[1]
    first = frames.begin // frames.stride
    return first - _extreme(np.minimum, first, code, int(code.max()) + 1)[code]


def agreed_fps(given: float | None, found: float | None, where: str) -> float | None:
    """The frame rate given, or found in the data; DataError where they differ by over 1 %."""
    if given is not None and found is not None and not abs(given - found) <= 0.01 * found:
        raise DataError(
            f"{where}: the data say {found:g} frames per second, --fps says {given:g}; leave "
            "--fps out, or mend the times"
        )
    return found if given is None else given


def _timed_fps(given: float | None, found: float | None, where: str) -> float | None:
    """The frame rate given, or found in a time column, which may be in milliseconds."""
    if given is not None and found is not None and abs(given / found / 1000 - 1) <= 0.01:
        return given
    if given is None and found is not None and found < SLOW:
        raise DataError(
            f"{where}: the time column gives {found:g} frames a second; if it is in milliseconds, "
            f"give --fps {found * 1000:g}, else --fps {found:g}"
        )
    return agreed_fps(given, found, where)


def _keep(table: Table, rows: npt.NDArray[np.bool_], **changes: object) -> Table:
    """The table with only these rows (a mask)."""
    return replace(
        table,
        row=np.asarray(table.row)[rows],
        trajectory=table.trajectory[rows],
        body=None if table.body is None else table.body[rows],
        frame=None if table.frame is None else table.frame[rows],
        time=None if table.time is None else table.time[rows],
        pairs=[(x[rows], y[rows]) for x, y in table.pairs],
        **changes,  # type: ignore[arg-type]
    )


def _keep_bodies(table: Table, kept: list[int]) -> Table:
    """The table with only these bodies."""
    bodies = [table.bodies[i] for i in kept]
    if table.body is None:
        animate = None if table.animate is None else [table.animate[i] for i in kept]
        pairs = [table.pairs[i] for i in kept]
        return replace(table, bodies=bodies, pairs=pairs, animate=animate)
    code = np.full(len(table.bodies), -1)
    code[kept] = np.arange(len(kept))
    body = code[table.body]
    rows = body >= 0
    table = replace(table, body=body, bodies=bodies)
    return table if rows.all() else _keep_trajectories(_keep(table, rows))


def _keep_trajectories(table: Table) -> Table:
    """Number the trajectories anew, without those that have no row."""
    kept, code = np.unique(table.trajectory, return_inverse=True)
    return replace(
        table,
        trajectory=code,
        trajectories=[table.trajectories[i] for i in kept],
        recordings=None if table.recordings is None else [table.recordings[i] for i in kept],
        label=None if table.label is None else [table.label[i] for i in kept],
    )


def _body_by_body(table: Table) -> Table:
    """Every (trajectory, id) as a trajectory with one body, of the recording it comes from."""
    assert table.body is not None
    pair = table.trajectory.astype(np.int64) * len(table.bodies) + table.body
    kept, code = np.unique(pair, return_inverse=True)
    scene, body = np.divmod(kept, len(table.bodies))
    alone = len(table.trajectories) == 1
    return replace(
        table,
        trajectory=code,
        trajectories=[
            table.bodies[b] if alone else f"{table.trajectories[s]}/{table.bodies[b]}"
            for s, b in zip(scene, body, strict=True)
        ],
        recordings=[table.trajectories[s] for s in scene],
        body=np.zeros_like(code),
        bodies=["body"],
        label=None if table.label is None else [table.label[s] for s in scene],
    )


def _same_bodies(table: Table) -> None:
    """Raise DataError where a trajectory lacks a body that another has."""
    if table.body is None or len(table.trajectories) == 1:
        return
    seen = np.zeros((len(table.trajectories), len(table.bodies)), bool)
    for step in (SOME, 1):  # some rows most often show all
        seen[table.trajectory[::step], table.body[::step]] = True
        if seen.all():
            return
    worst = int(seen.sum(1).argmin())
    lacking = int(seen[worst].argmin())
    raise DataError(
        f"{table.where}: trajectory {table.trajectories[worst]!r} has no body "
        f"{table.bodies[lacking]!r}, which others have; choose common ones with --bodies, or "
        "--bodies each for one-body trajectories"
    )


def frame_axis(table: Table) -> Frames:
    """Find each row's frame, counted from its trajectory's first.

    Frame numbers may go in steps (the ETH recordings count by 6 or 10): the commonest positive
    difference between successive rows of a body is one frame. Without frame numbers they are
    counted from the times. With both, a pause that the numbers run on through is a gap.

    Args:
        table: the rows.

    Returns:
        The frames; those without a row are counted too.

    Raises:
        DataError: for rows between frames.
    """
    owner, owners = table.trajectory, len(table.trajectories)
    if table.frame is None:
        return _frames_from_time(table)
    stride = _stride(table)
    begin = _extreme(np.minimum, table.frame, owner, owners)
    if stride > 1:
        off = (table.frame - begin[owner]) % stride != 0
        if off.any():
            i = int(off.argmax())
            raise DataError(
                f"{table.where}: row {table.row[i]}: frame {table.frame[i]} lies between others; "
                f"frames go in steps of {stride}. Remove such rows, or try --bodies each"
            )
    number, fps = _clocked(table, stride)
    end = _extreme(np.maximum, number, owner, owners)
    return Frames(number, begin, stride, (end - begin) // stride + 1, fps)


def _extreme(function: np.ufunc, values: npt.NDArray, owner: Codes, owners: int) -> npt.NDArray:
    """(owners,) smallest or largest value of each owner."""
    first = first_of_runs(owner)
    if len(first) < len(owner) // 8:
        values, owner = function.reduceat(values, first), owner[first]
    out = np.empty(owners, values.dtype)
    out[owner] = values  # any value of its own to begin with
    function.at(out, owner, values)
    return out


def _stride(table: Table) -> int:
    """The commonest positive difference between successive frame numbers of a body."""
    assert table.frame is not None
    frame, key = table.frame[:LOOK], table.trajectory[:LOOK].astype(np.int64)
    if table.body is not None:
        key = key * len(table.bodies) + table.body[:LOOK]
    key = key.astype(np.min_scalar_type(-int(key.max()) - 1))  # the smaller, the sooner in order
    order = np.argsort(key, kind="stable")
    same, step = np.diff(key[order]) == 0, np.diff(frame[order])
    if (step[same] < 0).any():  # the rows of a body are not in the order of its frames
        order = np.lexsort((frame, key))
        step = np.diff(frame[order])
    step = step[same & (step > 0)]
    if not len(step):
        return 1
    value, count = np.unique(step, return_counts=True)
    return int(value[count.argmax()])


def _clocked(table: Table, stride: int) -> tuple[Codes, float | None]:
    """The frame numbers, with what was lost in pauses added, and frames per second.

    A counter may run on while nothing is recorded, between halves of a match, say; a clock does
    not, or begins again. Times that differ by less than a frame or two, or stand still from one
    frame to the next, do not tell of pauses; nor do those that contradict many frame numbers.
    """
    assert table.frame is not None
    rate = _rate(table, stride)
    if rate is None or table.time is None or np.isnan(table.time).any():
        return table.frame, rate
    owner, frame, time = table.trajectory, table.frame, table.time
    new, steps = np.diff(owner) != 0, np.diff(frame)
    order: slice | Codes = slice(None)
    if (steps < 0).any() and not (new | (steps >= 0)).all():
        order = np.lexsort((frame, owner))
        owner, frame, time = owner[order], frame[order], time[order]
        new, steps = np.diff(owner) != 0, np.diff(frame)
    at = np.flatnonzero(~new & (steps > 0))
    frames, passed = steps[at] // stride, np.diff(time)[at].astype(np.float64)
    usual = float(np.median(passed / frames))
    if usual <= 0 or (passed == 0).any():
        return table.frame, rate
    near = np.abs(passed / frames - usual) < 0.25 * usual
    lost = np.rint(passed * (frames[near].sum() / passed[near].sum()) - frames)
    pause = (lost > 1) | (passed < 0)
    if not 0 < pause.mean() <= RARE:
        return table.frame, rate
    added = np.zeros(len(frame), np.int64)
    # no longer than all that was recorded: the array has a place for each
    added[at[pause] + 1] = np.clip(lost[pause], 1, len(frame)).astype(np.int64)
    added = added.cumsum()
    first = first_of_runs(owner)
    added -= added[first].repeat(np.diff(first, append=len(owner)))
    number = table.frame.copy()
    number[order] += stride * added
    return number, _tidy(float(frames[near].sum() / passed[near].sum()), table.where)


def _rate(table: Table, stride: int) -> float | None:
    """Frames per second from frames and times: the median over trajectories, first to last."""
    if table.time is None:
        return None
    assert table.frame is not None  # or there would be no stride
    known = ~np.isnan(table.time)
    if not known.any():
        return None
    owner = np.unique(table.trajectory[known], return_inverse=True)[1]
    owners = int(owner.max()) + 1
    time, number = table.time[known].astype(np.float64), table.frame[known]
    ends = (np.maximum, np.minimum)
    seconds = np.subtract(*(_extreme(end, time, owner, owners) for end in ends))
    frames = np.subtract(*(_extreme(end, number, owner, owners) for end in ends)) // stride
    usable = (seconds > 0) & (frames > 0)
    if not usable.any():
        return None
    return _tidy(float(np.median(frames[usable] / seconds[usable])), table.where)


def _tidy(fps: float, where: str) -> float:
    """Without the last digits, which come from the rounding of the times."""
    if not 1e-6 < fps < 1e9:
        raise DataError(f"{where}: the times give {fps:g} frames per second; expected seconds")
    return float(f"{fps:.6g}")


def _frames_from_time(table: Table) -> Frames:
    """Count frames from the times: a step is as many frames as it is times the usual step.

    Counting step by step keeps the rounding of the times (0.033, 0.067, 0.1) from adding up.
    """
    assert table.time is not None
    owner, owners = table.trajectory, len(table.trajectories)
    time = table.time.astype(np.float64)
    if np.isnan(time).any():
        at = table.row[int(np.isnan(time).argmax())]
        raise DataError(f"{table.where}: row {at}: no time; every row needs a frame or a time")
    order = np.lexsort((time, owner))
    step = np.diff(time[order], prepend=time[order[0]])
    step[1:][np.diff(owner[order]) != 0] = 0
    if not (step > 0).any():
        raise DataError(f"{table.where}: there is only one frame; motion needs two")
    usual = float(np.quantile(step[step > 0], 0.5, method="lower"))
    # the mean of the steps near it is finer than the digits of one time
    usual = float(step[(step > 0.75 * usual) & (step < 1.25 * usual)].mean())
    frames = step / usual
    whole = np.rint(np.minimum(frames, 2**50))
    off = (step > 0) & ((whole < 1) | ((np.abs(frames - whole) > 0.25) & (whole < 4)))
    if off.any():
        i = int(order[off.argmax()])
        raise DataError(
            f"{table.where}: row {table.row[i]}: time {time[i]:g} is out of step; frames are "
            f"{usual:g} s apart. Resample to even steps, or name the frame column"
        )
    index = np.empty(len(time), np.int64)
    total = np.cumsum(np.minimum(whole, 2**40).astype(np.int64))
    index[order] = total
    begin, end = (_extreme(f, index, owner, owners) for f in (np.minimum, np.maximum))
    start = _extreme(np.minimum, time, owner, owners)
    first = np.rint(np.minimum((start - start.min()) / usual, 2**50)).astype(np.int64)
    index += (first - begin)[owner]
    return Frames(index, first, 1, end - begin + 1, _tidy(1 / usual, table.where))


def _drop_short(table: Table, frames: Frames) -> tuple[Table, Frames]:
    """Without trajectories of a single frame; DataError where no other is left."""
    long = frames.count >= 2
    if long.all():
        return table, frames
    if not long.any():
        raise DataError(f"{table.where}: there is only one frame; motion needs two")
    rows = long[table.trajectory]
    kept = _keep_trajectories(_keep(table, rows))
    return kept, replace(
        frames, number=frames.number[rows], begin=frames.begin[long], count=frames.count[long]
    )
