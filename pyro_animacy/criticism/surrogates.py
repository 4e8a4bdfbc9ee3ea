"""Moments elsewhere in the recordings when a body's own past was like it is now.

What the others did at such moments stands for p(others | c^i): nearest neighbours, as in estimates
of conditional mutual information (Frenzel & Pompe, Partial Mutual Information for Coupling Analysis
of Multivariate Time Series, Physical Review Letters 99, 2007).
"""

import math

import numpy as np
import numpy.typing as npt
import torch
import xarray as xr
from torch import Tensor

from pyro_animacy.data.trajectories import FEW_RECORDINGS
from pyro_animacy.data.windows import Windows, evenly

Integers = npt.NDArray[np.int64]
POOL = 16_384  # windows that are looked through; of more, so many evenly spaced
APART = 0.1  # of a recording's frames, which lie between a moment and those that stand for it
AT_ONCE = 2**24  # distances taken together


def like_moments(
    dataset: xr.Dataset, windows: Windows, scored: Integers, count: int, history: int
) -> Tensor:
    """For each body and window, windows elsewhere in which its own past is most alike.

    They are of other recordings; where these have too few, of the same one too. Where there are few
    recordings, of the same one alone, since other dishes and courts lie elsewhere. Of the same one
    at least a tenth of its frames lie between, because the others too are still where they were a
    moment ago.

    Args:
        dataset: Recordings.
        windows: Every step with its past.
        scored: (S,) the windows that are asked about.
        count: M, how many are taken of each.
        history: Frames of the past that are compared, the last before the step.

    Returns:
        (bodies, M, S) windows, the most alike first; -1 where there are no more.
    """
    pool, asked = torch.from_numpy(evenly(len(windows), POOL)), torch.from_numpy(scored)
    names, number = np.unique(dataset["recording"].to_numpy(), return_inverse=True)
    begin = dataset["start"].to_numpy()

    def places(which: Tensor) -> tuple[Tensor, Tensor]:
        """The recording of each window, and its first frame on that one's axis, (W,)."""
        row, start = windows.places(which)
        return torch.from_numpy(number[row]), torch.from_numpy(begin[row] + start)

    recording, frame = places(pool)
    apart = torch.zeros(len(names))
    for n in (there := recording.unique()):
        apart[n] = math.ceil(APART * (np.ptp(frame[recording == n].numpy()) + 1))
    few = len(there) < FEW_RECORDINGS
    found = torch.full((windows.bodies, count, len(asked)), -1)
    past, seen = _own_pasts(windows, pool, history)
    sizes = [_size(past[seen[:, i], i], windows.axes) for i in range(windows.bodies)]
    for at, part in enumerate(asked.split(several := max(1, AT_ONCE // len(pool)))):
        own, when = (x[:, None] for x in places(part))
        later = (recording == own) & ((frame - when).abs() >= apart[own])
        elsewhere = later if few else recording != own
        now, _ = _own_pasts(windows, part, history)
        for i, size in enumerate(sizes):
            there = elsewhere & seen[:, i]
            scarce = there.sum(1, keepdim=True) < count
            there = there | (later & seen[:, i] & scarce)
            distance = torch.cdist(now[:, i] / size, past[:, i] / size)
            nearest = distance.where(there, torch.inf).topk(min(count, len(pool)), largest=False)
            like = pool[nearest.indices].where(nearest.values.isfinite(), -1)
            found[i, : like.shape[1], at * several : at * several + len(part)] = like.T
    return found


def _own_pasts(windows: Windows, which: Tensor, history: int) -> tuple[Tensor, Tensor]:
    """Where each body is and its last displacements, (W, bodies, axes x history), and who is seen.

    Args:
        windows: Every step with its past.
        which: (W,) windows.
        history: Frames.
    """
    frames = slice(windows.context - history, windows.context)
    x, observed = (of[frames].unflatten(-1, (windows.bodies, -1)) for of in windows.batch(which))
    own = torch.cat([x[-1:], x.diff(dim=0)])  # (history, W, bodies, axes)
    return own.permute(1, 2, 0, 3).flatten(2), observed.all(-1).all(0)


def _size(own: Tensor, axes: int) -> Tensor:
    """What pasts (W, axes x history) are divided by, so that all displacements weigh as positions.

    The standard deviation of positions, and the root mean square of displacements times the root of
    their number.
    """
    if not len(own):
        return own.new_ones(own.shape[1])
    moves = own[:, axes:].square().mean().sqrt() * math.sqrt(max(own.shape[1] // axes - 1, 1))
    size = torch.full(own.shape[1:], float(moves))
    size[:axes] = own[:, :axes].std(0, unbiased=False).square().mean().sqrt()
    return size.where(size > 0, 1.0)  # of what never moves
