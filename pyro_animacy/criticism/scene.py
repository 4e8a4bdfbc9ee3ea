"""What a statistic may need to know of a recording beside the positions, and of whom it is."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import xarray as xr

from pyro_animacy.criticism.alike import counted_as
from pyro_animacy.data.schema import agents


@dataclass(frozen=True)
class Scene:
    """What a statistic may need to know of a recording beside the positions.

    Attributes:
        fps: frames per second.
        bodies: their names.
        animate: for each body, whether it moves itself; a ball does not.
        extent: (2,) size along x and y of the arena: of the box in which the bodies that move
            themselves were recorded, in all trajectories; NaN if none was.
        low: (..., 2) least corner of the arena for each trajectory, as the others show it. Were it
            drawn around the trajectory too, no recording would leave it but some draws would, even
            from the true model; so, the two are there equally often on average. NaN where there
            are no others.
        high: (..., 2) greatest corner, alike.
        kinds: what each body counts as, of which all are pooled; empty for their names.
    """

    fps: float
    bodies: tuple[str, ...]
    animate: tuple[bool, ...]
    extent: np.ndarray
    low: np.ndarray
    high: np.ndarray
    kinds: tuple[str, ...] = ()

    @classmethod
    def of(cls, recording: xr.Dataset) -> Scene:
        """The scene of a recording in the schema.

        Where it has no `animate`, all bodies but one called "ball" move themselves. Where none
        does, the arena is that of all bodies. All trajectories are taken to share one.
        """
        bodies = tuple(str(body) for body in recording["body"].values)
        animate = tuple(bool(moves) for moves in agents(recording))
        position = recording["position"].transpose("trajectory", "time", "body", "space").values
        position = position[:, :, animate if any(animate) else slice(None)]
        seen = np.isfinite(position).all(-1, keepdims=True)
        low = position.min((1, 2), where=seen, initial=np.inf)
        high = position.max((1, 2), where=seen, initial=-np.inf)
        extent = high.max(0) - low.min(0)
        extent = np.where(extent >= 0, extent, np.nan)
        return cls(
            float(recording.attrs["fps"]),
            bodies,
            animate,
            extent,
            _least_of_others(low),
            -_least_of_others(-high),
            tuple(counted_as(recording)),
        )

    def part(self, rows: slice) -> Scene:
        """The scene of some of the trajectories."""
        return replace(self, low=self.low[rows], high=self.high[rows])


def _least_of_others(values: np.ndarray) -> np.ndarray:
    """For each row of (n, 2) `values`, the least of the other rows, NaN where none is finite."""
    least, second = np.sort(np.concatenate([values, np.full((2, 2), np.inf)]), axis=0)[:2]
    others = np.where(values == least, second, least)
    return np.where(np.isfinite(others), others, np.nan)


@dataclass(frozen=True)
class Over:
    """The groups of bodies that the last axis of a statistic goes over.

    Attributes:
        kind: what one of them is called.
        groups: the indices of the bodies in each.
        joint: between their names.
    """

    kind: str
    groups: Callable[[Scene], list[tuple[int, ...]]]
    joint: str = " – "

    def labels(self, scene: Scene) -> list[str]:
        """The name of each group; those of bodies of the same kinds have one name."""
        names = scene.kinds or scene.bodies
        return [self.joint.join(names[i] for i in group) for group in self.groups(scene)]

    def ends(self, scene: Scene) -> tuple[np.ndarray, np.ndarray]:
        """The first and the second bodies of pairs, (group,) each."""
        first, second = np.array(self.groups(scene), int).reshape(-1, 2).T
        return first, second


def _with_ball(scene: Scene) -> list[tuple[int, ...]]:
    moves = np.array(scene.animate, bool)
    return list(itertools.product(np.flatnonzero(moves).tolist(), np.flatnonzero(~moves).tolist()))


BODIES = Over("body", lambda scene: [(i,) for i in range(len(scene.bodies))])
PAIRS = Over("pair", lambda scene: list(itertools.combinations(range(len(scene.bodies)), 2)))
ORDERED_PAIRS = Over(
    "ordered pair", lambda scene: list(itertools.permutations(range(len(scene.bodies)), 2)), " → "
)
WITH_BALL = Over("pair", _with_ball)
