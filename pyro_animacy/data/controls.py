"""Control stimuli for animacy: what a recording would look like without agents, or without a pair.

- `inert_twins`: a body replaced by one that starts there, is as fast, and only obeys physics.
- `yoked`: a body replaced by the same body of another clip with the same label, so that each moves
  as recorded and nothing links the two (Gao, McCarthy & Scholl, The wolfpack effect, Psychological
  Science 21(12), 2010, and the yoked controls of the chasing literature).
"""

from collections.abc import Sequence

import numpy as np
import xarray as xr

from pyro_animacy.data.schema import DIMS, check_trajectories
from pyro_animacy.errors import DataError

Name = str | int


def inert_twins(
    dataset: xr.Dataset, bodies: Name | Sequence[Name], *, damping: float = 0.8, seed: int = 0
) -> xr.Dataset:
    """Replace bodies by inert twins: same start, same mean speed, damping and walls, no engine.

    A twin leaves its start in a random direction, loses all but the share ``damping`` of its
    velocity every second, and bounces elastically off the edges of the area in which its body was
    recorded. The distance it has gone after t seconds is

        l(t) = v_0 (damping^t - 1) / log(damping)

    with v_0 such that the mean speed is the recorded one.

    Args:
        dataset: Recordings in the schema.
        bodies: Name of the body to replace, or names of several; 0 is the body "0".
        damping: Share of its velocity that a twin keeps over one second, in (0, 1].
        seed: Seeds the directions; trajectory i depends on it and on i only.

    Returns:
        The recordings, with twins unobserved where their bodies were, at the same resolution.

    Raises:
        DataError: If a body is not in the recordings, or ``damping`` cannot be used.
    """
    if not 0 < damping <= 1:
        raise DataError(f"damping is {damping}; expected a share of velocity kept, in (0, 1]")
    several = [bodies] if isinstance(bodies, str | int | np.integer) else bodies
    chosen = dict.fromkeys(_index(dataset, name) for name in several)  # each once
    x = dataset["position"].transpose(*DIMS).to_numpy().copy()
    fps = float(dataset.attrs["fps"])
    grid = dataset["resolution"].to_numpy()
    for body in chosen:
        low, high = np.nanmin(x[:, :, body], (0, 1)), np.nanmax(x[:, :, body], (0, 1))
        for i, path in enumerate(x[:, :, body]):
            seen = np.flatnonzero(np.isfinite(path).all(-1))
            if not len(seen):
                path[:] = np.nan
                continue
            generator = np.random.default_rng(np.random.SeedSequence((seed, body, i)))
            angle = generator.uniform(0, 2 * np.pi)
            start = path[seen[0]]
            t = np.maximum(np.arange(len(path)) - seen[0], 0) / fps
            elapsed = t if damping == 1 else np.expm1(t * np.log(damping)) / np.log(damping)
            moved = np.linalg.norm(np.diff(path, axis=0), axis=-1)
            pace = np.diff(elapsed)[np.isfinite(moved)].sum()
            start_speed = np.nansum(moved) / pace if pace > 0 else 0.0
            direction = np.array([np.cos(angle), np.sin(angle)])
            twin = _between(start + start_speed * elapsed[:, None] * direction, low, high)
            if grid[i] > 0:
                twin = start + np.rint((twin - start) / grid[i]) * grid[i]
            path[:] = np.where(np.isfinite(path), twin, np.nan)
    return check_trajectories(dataset.assign(position=(DIMS, x)))


def _index(dataset: xr.Dataset, body: Name) -> int:
    """Where a body is on its axis."""
    names = [str(name) for name in dataset["body"].to_numpy()]
    if str(body) not in names:
        raise DataError(f"no body {str(body)!r} in the recordings, which have {', '.join(names)}")
    return names.index(str(body))


def _between(free: np.ndarray, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """Where elastic walls leave a free path: a triangle wave of it, axis by axis."""
    room = np.where(high > low, high - low, 1.0)
    phase = np.mod(free - low, 2 * room)
    return np.where(high > low, low + np.minimum(phase, 2 * room - phase), low)


def yoked(dataset: xr.Dataset, body: Name, *, seed: int = 0) -> xr.Dataset:
    """Swap in one body from another recording with the same label and about the same length.

    Each trajectory's partner comes from one of the five others of its label whose lengths are
    nearest; both end with the shorter of the two, and have the coarser resolution.

    Args:
        dataset: Recordings in the schema; without labels, all count as alike.
        body: Name of the body that is swapped; 0 is the body "0".
        seed: Seeds the choice.

    Returns:
        The trajectories that have a partner, each with the swapped body.

    Raises:
        DataError: If the body is not in the recordings, or no recording has a partner.
    """
    index = _index(dataset, body)
    length = dataset["length"].to_numpy()
    recording = dataset["recording"].to_numpy()
    label = dataset["label"].to_numpy() if "label" in dataset.coords else np.zeros(len(length))
    x = dataset["position"].transpose(*DIMS).to_numpy().copy()
    generator = np.random.default_rng(seed)
    partner = np.full(len(length), -1)
    for i in range(len(length)):
        others = np.flatnonzero((label == label[i]) & (recording != recording[i]))
        if len(others):
            gap = np.abs(length[others] - length[i])
            partner[i] = generator.choice(others[np.argsort(gap, kind="stable")[:5]])
    rows = np.flatnonzero(partner >= 0)
    if not len(rows):
        raise DataError("no two recordings share a label, so there is no one to yoke to")
    y = x[rows]
    y[:, :, index] = x[partner[rows], :, index]
    shorter = np.minimum(length[rows], length[partner[rows]])
    y[np.arange(x.shape[1]) >= shorter[:, None]] = np.nan
    step = dataset["resolution"].to_numpy()
    coarser = np.maximum(step[rows], step[partner[rows]])
    kept = dataset.isel(trajectory=rows).assign(position=(DIMS, y))
    kept = kept.assign_coords(length=("trajectory", shorter), resolution=("trajectory", coarser))
    return check_trajectories(kept)
