"""The smallest step that a recording can show.

A density of displacements means nothing below it: bodies that stand still give exact zeros, and
a model could raise its score without end by shrinking its scale there.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from pyro_animacy.data.stored import Stored

DECIMALS = 9  # finer decimal grids than 10^-9 are taken for full floating-point precision
SHARE, COUNT = 0.02, 20  # a step is common if this share of those counted, and as many, are it
SAME = 1e-3  # steps that differ by less than this share are one velocity with rounded decimals
REST = 0.01  # share of steps that are exactly zero from which on a body is taken to rest
BELOW = 0.25  # where more than this share of the steps are smaller, a common step is a coincidence
PEAK = 3  # and where it is not so many times as frequent as the steps below it are, one by one
BLOCK = 2**17  # coordinates whose steps are taken at once, so that these stay in cache
HEAD = 1000  # values that are tried on a decimal grid before all are
SAMPLE = 2**18  # coordinates looked at of all trajectories together, which is cheap;
LEAST, MOST = 2**12, 2**22  # or so many of each, enough to count shares of 2 %, up to so many


def estimate_resolution(
    position: npt.NDArray[np.float64] | Stored, recording: Sequence[str] | None = None
) -> npt.NDArray[np.float64]:
    """Estimate the resolution of each trajectory: the smallest common step of its recording.

    Steps are |x_{t+1} - x_t| of every coordinate, rounded to the decimal grid of the values. A
    step is counted unless it is zero or repeats the one before it: a run of constant velocity, as
    linear interpolation between annotations makes it, says nothing about the grid. It is common if
    at least 2 % of the recording's counted steps, and at least 20 of them, are equal to it; at most
    a quarter are smaller (among a few long steps some are equal by chance); and it is three times
    as frequent as those below it on the decimal grid are in the mean (a body that moves by some 40
    units of the grid has 2 % of its steps at about every one of them). The rule, in this order:

    1. the smallest common step of the recording (a mouse moves by whole pixels, so a drawing
       scaled from pixels shows a smallest step much larger than its decimals);
    2. the smallest common step of all recordings together; or where they have none, as where few
       are short and each was scaled by itself, the smallest that any of them has;
    3. the decimal grid 10^-k of the values (k <= 9); 0 where they have none;
    4. but where 1 % of the steps or more are exactly zero, no less than the step that 1 % of the
       recording's non-zero steps do not reach: what rests so often is not measured more finely,
       however many decimals its file has. What never moves at all, a rock or the one
       coordinate of a straight track, does not count as resting.

    Call it at the recorded rate: steps of a downsampled recording are sums of several.

    Args:
        position: (trajectory, time, body, 2); NaN where not observed.
        recording: (trajectory,) names; every trajectory its own by default.

    Returns:
        (trajectory,) steps in the units of `position`; 0 if none is known.
    """
    names = np.arange(len(position)) if recording is None else np.asarray(recording, str)
    code = np.unique(names, return_inverse=True)[1]
    trajectories = max(len(position), 1)
    each = max(SAMPLE // trajectories, min(LEAST, MOST // trajectories))
    frames = max(2, each // max(int(np.prod(position.shape[2:])), 1))
    order = np.argsort(code, kind="stable")  # recording after recording
    owner, owners = code[order], int(code.max(initial=0)) + 1
    values = np.asarray(position[:, :frames])
    values = values if (np.diff(order) == 1).all() else values[order]
    grid = decimal_grid(values)
    unit = grid or 10.0**-DECIMALS
    few = max(1, BLOCK * len(values) // max(values.size, 1))  # trajectories at once
    parts = [_steps(values[i : i + few], unit) for i in range(0, len(values), few)]
    step, counted = (np.concatenate(part) for part in zip(*parts, strict=True))

    def of_each(which: npt.NDArray[np.bool_]) -> npt.NDArray[np.int64]:
        return np.bincount(owner, np.count_nonzero(which, axis=1), owners).astype(np.int64)

    new, number = step[counted], of_each(counted)
    resolution = _smallest_common(new, number) * unit
    if np.isnan(resolution).any():
        pooled = _smallest_common(new, np.array([len(new)]))[0] * unit
        found = (pooled, np.fmin.reduce(resolution), grid)
        resolution[np.isnan(resolution)] = next(of for of in found if not np.isnan(of))
    moving, rest = of_each(step > 0), of_each(step == 0)
    if rest.any():
        coordinate = step.reshape(len(step), -1, int(np.prod(values.shape[2:])))
        coordinate[:, :, ~(coordinate > 0).any((0, 1))] = np.nan  # what never moves
        rest = of_each(step == 0)
    rests = (moving > 0) & (rest >= REST * (moving + rest))
    if rests.any():
        step = step[rests[owner]]
        least = _least(step[step > 0], moving[rests]) * unit
        resolution[rests] = np.maximum(resolution[rests], least)
    return resolution[code]


def _steps(
    values: npt.NDArray[np.float64], unit: float
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.bool_]]:
    """(trajectory, step) steps in whole units, NaN if not finite, and whether each is counted.

    Args:
        values: (trajectory, time, body, 2).
        unit: of the steps.
    """
    # infinite values are for check_trajectories to name, not for warnings
    with np.errstate(invalid="ignore", over="ignore"):
        signed = np.rint(np.diff(values, axis=1) / unit)
        turn = np.abs(np.diff(signed, axis=1, prepend=np.nan))
        step = np.abs(signed)
        counted = (step > 0) & ~(turn <= SAME * step)
    finite = np.isfinite(step)
    if not finite.all():
        step[~finite] = np.nan
        counted &= finite
    return step.reshape(len(step), -1), counted.reshape(len(step), -1)


def decimal_grid(values: npt.NDArray[np.float64]) -> float:
    """The coarsest 10^-k, k = 0..9, on which all values lie but for rounding error; 0 if none.

    Values that were stored in single precision are recognised and allowed its rounding error.

    Args:
        values: any shape; those that are not finite are left aside.

    Returns:
        10^-k, or 0 where there is no such grid.
    """
    values = np.abs(values[np.isfinite(values)])
    if not values.size:
        return 0.0
    # the first few tell most grids that they are not; the rest by blocks that stay in cache
    blocks = [values[:HEAD], *np.array_split(values, -(-len(values) // BLOCK))]
    with np.errstate(over="ignore"):
        single = all((v.astype(np.float32) == v).all() for v in blocks)
    relative = np.finfo(np.float32 if single else np.float64).eps
    largest = values.max()
    for decimals in range(DECIMALS + 1):
        if 2 * relative * (largest * 10.0**decimals) > 0.05:  # rounding alone would look like one
            return 0.0
        scaled = (v * 10.0**decimals for v in blocks)
        if all((np.abs(v - np.rint(v)) <= 2 * relative * v).all() for v in scaled):
            return float(10.0**-decimals)
    return 0.0


def _smallest_common(
    step: npt.NDArray[np.float64], number: npt.NDArray[np.int64]
) -> npt.NDArray[np.float64]:
    """(owners,) the smallest common step of each owner; NaN where none is common.

    Args:
        step: (n,) positive whole steps, owner after owner; they are put in order.
        number: (owners,) how many each has.
    """
    smallest = np.full(len(number), np.nan)
    begin = _in_order(step, number)
    new = np.ones(len(step), bool)
    new[1:] = step[1:] != step[:-1]
    new[begin[number > 0]] = True
    first = np.flatnonzero(new)
    count = np.diff(first, append=len(step))
    first, count = first[count >= COUNT], count[count >= COUNT]
    owner = np.searchsorted(begin + number, first, side="right")
    total, below = number[owner], first - begin[owner]
    peak = count * (step[first] - 1) >= PEAK * below  # of so many smaller whole steps
    common = ((count >= SHARE * total) & (below <= BELOW * total) & peak).nonzero()[0][::-1]
    smallest[owner[common]] = step[first[common]]  # the last write, the smallest step, stays
    return smallest


def _in_order(
    step: npt.NDArray[np.float64], number: npt.NDArray[np.int64]
) -> npt.NDArray[np.int64]:
    """Put the steps of each owner in order, and return where they begin."""
    begin = np.cumsum(number) - number
    for i, n in zip(begin.tolist(), number.tolist(), strict=True):
        step[i : i + n].sort()
    return begin


def _least(step: npt.NDArray[np.float64], number: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """(owners,) the 1 % quantile of the steps of each owner.

    Args:
        step: (n,) positive steps, owner after owner; they are put in order.
        number: (owners,) how many each has, one at least.
    """
    begin = _in_order(step, number)
    return step[begin + (REST * number).astype(int)]
