"""Statistics of motion on plain arrays, and measures of how far two samples of them are apart.

A statistic is a function of one array `position` (..., time, body, space) and of `fps`.
`STATISTICS` names those that a report shows; another one is one more entry:

    STATISTICS["height"] = Statistic(
        "height", lambda position, fps: position[..., 1], "{units}", "the y coordinate")
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np


def speed(position: np.ndarray, fps: float) -> np.ndarray:
    """|x_{t+1} - x_t| fps.

    Args:
        position: (..., time, body, space), NaN where not observed.
        fps: frames per second.

    Returns:
        (..., time - 1, body), in data units per second.
    """
    return np.linalg.norm(np.diff(position, axis=-3), axis=-1) * fps


def acceleration(position: np.ndarray, fps: float) -> np.ndarray:
    """|x_{t+1} - 2 x_t + x_{t-1}| fps^2, so change of direction counts as much as change of speed.

    Args:
        position: (..., time, body, space), NaN where not observed.
        fps: frames per second.

    Returns:
        (..., time - 2, body), in data units per second squared.
    """
    return np.linalg.norm(np.diff(position, n=2, axis=-3), axis=-1) * fps**2


def turning_angle(position: np.ndarray, fps: float) -> np.ndarray:
    """The signed angle from one displacement d_t to the next, atan2(d_t x d_{t+1}, d_t . d_{t+1}).

    Args:
        position: (..., time, body, 2), NaN where not observed.
        fps: not used: the angle is per frame.

    Returns:
        (..., time - 2, body), radians in (-pi, pi], positive from the x towards the y axis, NaN
        where one of the two displacements is zero.
    """
    step = np.diff(position, axis=-3)
    before, after = step[..., :-1, :, :], step[..., 1:, :, :]
    cross = before[..., 0] * after[..., 1] - before[..., 1] * after[..., 0]
    dot = (before * after).sum(-1)
    angle = np.arctan2(cross, dot)
    angle = np.where(angle == -np.pi, np.pi, angle)  # atan2 of a cross product of -0.0
    still = ~(before.any(-1) & after.any(-1))
    return np.where(still, np.nan, angle)


def inter_body_distance(position: np.ndarray, fps: float) -> np.ndarray:
    """|x_i - x_j| of every pair of bodies i < j, in the order of `numpy.triu_indices`.

    Args:
        position: (..., time, body, space), NaN where not observed.
        fps: not used.

    Returns:
        (..., time, pair), in data units; no pairs where there is one body.
    """
    first, second = np.triu_indices(position.shape[-2], k=1)
    return np.linalg.norm(position[..., first, :] - position[..., second, :], axis=-1)


@dataclass(frozen=True)
class Statistic:
    """A function of positions that recorded and generated motion are compared by.

    Attributes:
        name: how a report calls it.
        function: (position (..., time, body, space), fps) -> (..., time', body or pair).
        units: its units, where `{units}` stands for those of the recording.
        description: one phrase for a reader who does not know it.
        pairs: whether its last axis holds pairs of bodies, not bodies.
        signed: whether it lies about zero; its size |x| is then what is averaged.
        more: what to say of motion that has too much of it.
        less: what to say of motion that has too little of it.
    """

    name: str
    function: Callable[[np.ndarray, float], np.ndarray]
    units: str
    description: str
    pairs: bool = False
    signed: bool = False
    more: str = "too large"
    less: str = "too small"

    def labels(self, bodies: list[str]) -> list[str]:
        """The names of the last axis: of `bodies`, or of all their pairs."""
        if not self.pairs:
            return bodies
        return [f"{first} – {second}" for first, second in itertools.combinations(bodies, 2)]


STATISTICS: dict[str, Statistic] = {
    "speed": Statistic(
        "speed", speed, "{units}/s", "how fast a body moves", more="too fast", less="too slow"
    ),
    "acceleration": Statistic(
        "acceleration",
        acceleration,
        "{units}/s²",
        "how quickly velocity changes, in size or direction",
        more="too jerky",
        less="too smooth",
    ),
    "turning_angle": Statistic(
        "turning angle",
        turning_angle,
        "rad",
        "change of heading from frame to frame, left and right",
        signed=True,
        more="turns too much",
        less="turns too little",
    ),
    "inter_body_distance": Statistic(
        "inter-body distance",
        inter_body_distance,
        "{units}",
        "how far apart two bodies are",
        pairs=True,
        more="too far apart",
        less="too close together",
    ),
}


def posterior_predictive_p(observed_summary: float, replicated_summaries: np.ndarray) -> float:
    """The tail probability P(T(rep) >= T(obs)), over the draws that have the summary at all.

    Args:
        observed_summary: T of the recording.
        replicated_summaries: (draw,) T of each draw; NaN is left out.

    Returns:
        A probability; near 0 the recording has more of T than the model makes, near 1 less. NaN
        where the recording or every draw lacks the summary.
    """
    replicated = np.asarray(replicated_summaries, dtype=float)
    replicated = replicated[np.isfinite(replicated)]
    if not replicated.size or not np.isfinite(observed_summary):
        return float("nan")
    return float((replicated >= observed_summary).mean())


def wasserstein(first: np.ndarray, second: np.ndarray) -> float:
    """The Wasserstein-1 distance of two samples, the integral of |F(x) - G(x)| dx.

    Equal to that of |F^-1(u) - G^-1(u)| du: how far, on average, values of one sample must be moved
    to become the other. In the units of the values.

    Args:
        first: (n,) values; what is not finite is left out.
        second: (m,) values; what is not finite is left out.

    Returns:
        The distance; NaN where a sample is empty.
    """
    first, second = (np.sort(sample[np.isfinite(sample)]) for sample in (first, second))
    if not first.size or not second.size:
        return float("nan")
    both = np.sort(np.concatenate([first, second]))
    below_first = np.searchsorted(first, both[:-1], side="right") / first.size
    below_second = np.searchsorted(second, both[:-1], side="right") / second.size
    return float(np.abs(below_first - below_second) @ np.diff(both))
