"""Which frame each row of a table is of, and the frame rate: by frame numbers, times, or both."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pyro_animacy.data.tables import Table, first_of_runs
from pyro_animacy.data.values import Codes
from pyro_animacy.errors import DataError

LOOK = 2**18  # rows that are looked at to find the frame stride; enough to tell
EVEN = 0.25  # of a frame, by which times may be out of step
RARE = 0.05  # of the steps, the most that may be pauses, or late
PAUSED = 3  # times the usual step: not of a rate
OTHER, ENOUGH = 0.2, 10  # a rate so far off, log, of so many frames, is another
SLOW = 1.01  # frames a second; slower times may also be milliseconds, or numbers of frames


@dataclass(frozen=True)
class Frames:
    """Where on the frame axis the rows are."""

    number: Codes  # (rows,) as in the file, or counted from the times
    begin: Codes  # (trajectory,) number of its first frame
    stride: int  # from the number of one frame to that of the next
    count: Codes  # (trajectory,) how many frames
    fps: float | None  # from the times, if there are any

    def index(self, owner: Codes, some: slice) -> Codes:
        """Of some rows and the trajectories that they are of, the frame, from 0 on in each."""
        index = self.number[some] - self.begin[owner]
        return index if self.stride == 1 else index // self.stride


def frame_axis(table: Table, pause: int = 1) -> Frames:
    """Find each row's frame, counted from its trajectory's first.

    Frame numbers may go in steps (the ETH recordings count by 6 or 10): the commonest positive
    difference between successive rows of a body is one frame. Without frame numbers they are
    counted from the times. With both, a pause that the numbers run on through is a gap.

    Args:
        table: the rows.
        pause: how many frames a pause is long of which only the end is known.

    Returns:
        The frames; those without a row are counted too.

    Raises:
        DataError: for rows between frames.
    """
    owner, owners = table.trajectory, len(table.trajectories)
    if table.frame is None:
        return _frames_from_time(table)
    stride = frame_stride(table)
    begin = extreme(np.minimum, table.frame, owner, owners)
    if stride > 1:
        off = (table.frame - begin[owner]) % stride != 0
        if off.any():
            i = int(off.argmax())
            raise DataError(
                f"{table.where}: row {table.row[i]}: frame {table.frame[i]} lies between others; "
                f"frames go in steps of {stride}. Remove such rows, or try --bodies each"
            )
    number, fps = _clocked(table, stride, pause)
    end = extreme(np.maximum, number, owner, owners)
    return Frames(number, begin, stride, (end - begin) // stride + 1, fps)


def extreme(function: np.ufunc, values: npt.NDArray, owner: Codes, owners: int) -> npt.NDArray:
    """(owners,) smallest or largest value of each owner."""
    first = first_of_runs(owner)
    if len(first) < len(owner) // 8:
        values, owner = function.reduceat(values, first), owner[first]
    out = np.empty(owners, values.dtype)
    out[owner] = values  # any value of its own to begin with
    function.at(out, owner, values)
    return out


def frame_stride(table: Table) -> int:
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


def _clocked(table: Table, stride: int, pause: int) -> tuple[Codes, float | None]:
    """The frame numbers, with what was lost in pauses added, and frames per second.

    A counter may run on while nothing is recorded, between halves of a match, say; a clock does
    not, or begins again. Times that differ by less than a frame or two, or stand still from one
    frame to the next, do not tell of pauses; nor do those that contradict many frame numbers.
    """
    assert table.frame is not None
    rate = _rate(table, stride)
    if rate is None or table.time is None or np.isnan(table.time).any():
        return table.frame, rate
    order = _by_frame(table)
    owner, frame, time = (x[order] for x in (table.trajectory, table.frame, table.time))
    at = np.flatnonzero((np.diff(owner) == 0) & (np.diff(frame) > 0))
    frames, passed = np.diff(frame)[at] // stride, np.diff(time)[at].astype(np.float64)
    usual = float(np.median(passed / frames))
    near = np.abs(passed / frames - usual) < EVEN * usual
    if (passed == 0).any() or not near.any():
        return table.frame, rate
    fps = float(frames[near].sum() / passed[near].sum())
    lost = np.rint(passed * fps - frames)
    again = passed < 0  # the clock begins again
    paused = (lost > 1) | again
    if not 0 < paused.mean() <= RARE:
        return table.frame, rate
    added = np.zeros(len(frame), np.int64)
    # no longer than all that was recorded: the array has a place for each
    lost = np.where(again, pause, np.clip(lost, 1, len(frame)))
    added[at[paused] + 1] = lost[paused].astype(np.int64)
    added = added.cumsum()
    first = first_of_runs(owner)
    number = table.frame.copy()
    number[order] += stride * (added - added[first].repeat(np.diff(first, append=len(owner))))
    return number, tidy(fps, table.where)


def _by_frame(table: Table) -> slice | Codes:
    """The rows trajectory after trajectory, frame after frame; most often as they are."""
    assert table.frame is not None
    owner, frame = table.trajectory, table.frame
    back = (np.diff(owner) == 0) & (np.diff(frame) < 0)
    if len(first_of_runs(owner)) > len(table.trajectories) or back.any():
        return np.lexsort((frame, owner))
    return slice(None)


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
    seconds = np.subtract(*(extreme(end, time, owner, owners) for end in ends))
    frames = np.subtract(*(extreme(end, number, owner, owners) for end in ends)) // stride
    usable = (seconds > 0) & (frames > 0)
    if not usable.any():
        return None
    rate = frames[usable] / seconds[usable]
    fps = tidy(float(np.median(rate)), table.where)
    # where there are enough frames for the rounding of their times not to matter
    other = (np.abs(np.log(rate / fps)) > OTHER) & (frames[usable] >= ENOUGH)
    for i in np.unique(table.trajectory[known])[usable][other]:
        rows = known & (table.trajectory == i)
        number, first = np.unique(table.frame[rows], return_index=True)
        passed, counted = np.diff(table.time[rows][first]), np.diff(number) // stride
        steady = passed <= PAUSED * np.median(passed / counted) * counted
        own = counted[steady].sum() / max(passed[steady].sum(), 1e-9)
        if abs(np.log(own / fps)) > OTHER:
            raise DataError(
                f"{table.where}: trajectory {table.trajectories[i]!r} has {own:.4g} frames a "
                f"second, and most have {fps:g}; give files of one rate each, and --downsample "
                "those that have more"
            )
    return fps


def tidy(fps: float, where: str) -> float:
    """Without the last digits, which come from the rounding of the times."""
    if not 1e-6 < fps < 1e9:
        raise DataError(
            f"{where}: the times give {fps:g} frames per second, so they are not in seconds; "
            "convert them"
        )
    return float(f"{fps:.6g}")


def _frames_from_time(table: Table) -> Frames:
    """Count frames from the times: a step is as many frames as it is times the usual step.

    Counting step by step keeps the rounding of the times (0.033, 0.067, 0.1) from adding up. A few
    frames may come late, by less than half a frame.
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
    usual = usual_step(step)
    frames = step / usual
    whole = np.rint(np.minimum(frames, 2**50))
    by = np.where(whole < 4, np.abs(frames - whole), 0)
    late = (step > 0) & (by > EVEN)
    lost = (step > 0) & ((whole < 1) | (by >= 0.45))  # it may be one frame or another
    if lost.any() or late.mean() > RARE:
        i = int(order[(lost | late).argmax()])
        raise DataError(
            f"{table.where}: row {table.row[i]}: time {time[i]:g} is out of step; frames are "
            f"{usual:g} s apart. Resample to even steps, or if every row is the next frame, number "
            "them in a column `frame`"
        )
    index = np.empty(len(time), np.int64)
    total = np.cumsum(np.minimum(whole, 2**40).astype(np.int64))
    index[order] = total
    begin, end = (extreme(f, index, owner, owners) for f in (np.minimum, np.maximum))
    start = extreme(np.minimum, time, owner, owners)
    first = np.rint(np.minimum((start - start.min()) / usual, 2**50)).astype(np.int64)
    index += (first - begin)[owner]
    return Frames(index, first, 1, end - begin + 1, tidy(1 / usual, table.where))


def usual_step(step: npt.NDArray[np.float64]) -> float:
    """The step in the middle of those forwards; infinite where there is none."""
    forwards = step[step > 0]
    if not len(forwards):
        return np.inf
    usual = float(np.quantile(forwards, 0.5, method="lower"))
    # the mean of the steps near it, as 5 ms near 4 at 240 Hz, is finer than the digits of one time
    return float(step[np.abs(step - usual) < 0.26 * usual].mean())


def agreed_fps(given: float | None, found: float | None, where: str) -> float | None:
    """The frame rate given, or found in the data; DataError where they differ by over 1 %."""
    if given is not None and found is not None and not abs(given - found) <= 0.01 * found:
        raise DataError(
            f"{where}: the data say {found:g} frames per second, --fps says {given:g}; leave "
            "--fps out, or mend the times"
        )
    return found if given is None else given


def timed_fps(
    given: float | None, found: float | None, clock: str | None, where: str
) -> float | None:
    """The frame rate given, or found in times that may be in another unit than seconds.

    Args:
        given: by --fps.
        found: if the times are seconds.
        clock: what holds the times, where nothing says their unit.
        where: what to name in a message.

    Returns:
        Frames per second; None where there are neither.

    Raises:
        DataError: where the times may be of several kinds, or contradict the rate given.
    """
    if clock is None or found is None:
        return agreed_fps(given, found, where)
    if given is not None and abs(given / found / 1000 - 1) <= 0.01:
        return given
    if found > SLOW or (given is not None and abs(given - found) <= 0.01 * found):
        return agreed_fps(given, found, where)
    step = float(f"{1 / found:.5g}")
    kinds = [f"if seconds, give --fps {found:g}", f"if milliseconds, --fps {1000 * found:g}"]
    if step.is_integer():
        kinds.append(f"if numbers of frames, --columns frame={clock} and their --fps")
    said = "" if given is None else f", and --fps says {given:g}"
    raise DataError(f"{where}: {clock!r} goes in steps of {step:g}{said}: {'; '.join(kinds)}")
