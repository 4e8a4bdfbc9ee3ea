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
    at least 2 % of the recording's counted steps, and at least 20 of them, are equal to it, and at
    most a quarter are smaller (among a few long steps some are equal by chance). The rule, in this
    order:

    1. the smallest common step of the recording (a mouse moves by whole pixels, so a drawing
       scaled from pixels shows a smallest step much larger than its decimals);
    2. the smallest common step of all recordings together;
    3. the decimal grid 10^-k of the values (k <= 9); 0 where they have none;
    4. but where 1 % of the steps or more are exactly zero, no less than the step that 1 % of the
       recording's non-zero steps do not reach: what rests so often is not measured more finely,
       however many decimals its file has.

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
    values = np.asarray(position[:, :frames])
    grid = decimal_grid(values[~np.isnan(values)])
    unit = grid or 10.0**-DECIMALS
    owners = int(code.max(initial=0)) + 1
    few = max(1, BLOCK * len(values) // max(values.size, 1))  # trajectories at once
    parts = [
        _steps(values[i : i + few], code[i : i + few], unit) for i in range(0, len(values), few)
    ]
    step, owner, new = (np.concatenate(part) for part in zip(*parts, strict=True))
    rest = np.bincount(owner[step == 0], minlength=owners)
    keep = step > 0
    own = _smallest_common(step[new], owner[new], owners)
    resolution = own * unit
    if np.isnan(own).any():
        pooled = _smallest_common(step[new], np.zeros_like(owner[new]), 1)[0]
        resolution[np.isnan(own)] = grid if np.isnan(pooled) else pooled * unit
    moving = np.bincount(owner[keep], minlength=owners)
    rests = (moving > 0) & (rest >= REST * (moving + rest))
    if rests.any():
        keep &= rests[owner]
        least = _least(step[keep], owner[keep], owners) * unit
        resolution = np.maximum(resolution, least)
    return resolution[code]


def _steps(
    values: npt.NDArray[np.float64], code: npt.NDArray[np.int64], unit: float
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
    """Finite steps in whole units, the recording of each, and whether it is counted.

    Args:
        values: (trajectory, time, body, 2).
        code: (trajectory,) number of the recording.
        unit: of the steps.
    """
    # infinite values are for check_trajectories to name, not for warnings
    with np.errstate(invalid="ignore", over="ignore"):
        signed = np.rint(np.diff(values, axis=1) / unit)
        turn = np.abs(np.diff(signed, axis=1, prepend=np.nan))
        step = np.abs(signed)
        repeated = turn <= SAME * step
    finite = np.isfinite(step)
    owner = np.broadcast_to(code[:, None, None, None], step.shape)[finite]
    return step[finite], owner, ((step > 0) & ~repeated)[finite]


def decimal_grid(values: npt.NDArray[np.float64]) -> float:
    """The coarsest 10^-k, k = 0..9, on which all values lie but for rounding error; 0 if none.

    Values that were stored in single precision are recognised and allowed its rounding error.

    Args:
        values: any shape, without NaN.

    Returns:
        10^-k, or 0 where there is no such grid.
    """
    values = np.abs(values[np.isfinite(values)])
    if not values.size:
        return 0.0
    with np.errstate(over="ignore"):
        single = bool((values.astype(np.float32) == values).all())
    relative = np.finfo(np.float32 if single else np.float64).eps
    largest = values.max()
    for decimals in range(DECIMALS + 1):
        if 2 * relative * (largest * 10.0**decimals) > 0.05:  # rounding alone would look like one
            return 0.0
        for looked in (values[:HEAD], values):  # the first few tell most grids that it is not
            scaled = looked * 10.0**decimals
            if not (np.abs(scaled - np.rint(scaled)) <= 2 * relative * scaled).all():
                break
        else:
            return float(10.0**-decimals)
    return 0.0


def _smallest_common(
    step: npt.NDArray[np.float64], owner: npt.NDArray[np.int64], owners: int
) -> npt.NDArray[np.float64]:
    """(owners,) the smallest common step of each owner; NaN where none is common.

    Args:
        step: (n,) positive whole steps.
        owner: (n,) which owner each belongs to.
        owners: how many owners there are.
    """
    smallest = np.full(owners, np.nan)
    step, owner = _in_order(step, owner)
    new = np.ones(len(step), bool)
    new[1:] = (np.diff(step) != 0) | (np.diff(owner) != 0)
    first = np.flatnonzero(new)
    count = np.diff(np.append(first, len(step)))
    totals = np.bincount(owner, minlength=owners)
    total = totals[owner[first]]
    below = first - (np.cumsum(totals) - totals)[owner[first]]
    common = first[(count >= COUNT) & (count >= SHARE * total) & (below <= BELOW * total)][::-1]
    smallest[owner[common]] = step[common]  # the last write, the smallest step, stays
    return smallest


def _in_order(
    step: npt.NDArray[np.float64], owner: npt.NDArray[np.int64]
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.int64]]:
    """Steps and owners by owner, then by step; to sort each owner's is far faster than both."""
    if (np.diff(owner) < 0).any():
        order = np.argsort(owner, kind="stable")
        step, owner = step[order], owner[order]
    else:
        step = step.copy()
    for own in np.split(step, np.flatnonzero(np.diff(owner)) + 1):
        own.sort()
    return step, owner


def _least(
    step: npt.NDArray[np.float64], owner: npt.NDArray[np.int64], owners: int
) -> npt.NDArray[np.float64]:
    """(owners,) the 1 % quantile of the steps of each owner; 0 of those that have none.

    Args:
        step: (n,) positive steps.
        owner: (n,) which owner each belongs to.
        owners: how many owners there are.
    """
    ordered, _ = _in_order(step, owner)
    moving = np.bincount(owner, minlength=owners)
    begin, some = np.cumsum(moving) - moving, moving > 0
    least = np.zeros(owners)
    least[some] = ordered[(begin + (REST * moving).astype(int))[some]]
    return least
