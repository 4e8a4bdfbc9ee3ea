"""Statistics of motion on plain arrays.

A statistic is a function of `position` (..., time, body, 2), in data units and NaN where not
observed, and of the `Scene` it was recorded in. It gives (..., time', body or group of bodies),
NaN wherever a position that it needs is; where it does not apply (no ball, one body), its last axis
is empty. x_t is a body's position at frame t, d_t = x_{t+1} - x_t its step.

`STATISTICS` names those that a report shows. Another one is a function and an entry:

    def height(position, scene):
        return position[..., 1]

    STATISTICS["height"] = Statistic("height", height, "{units}", "the y coordinate")

If it is of groups of bodies, `over` says which: `over=PAIRS`, with one value for each of
`PAIRS.groups(scene)`, in that order.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps

import numpy as np
from numpy.typing import ArrayLike

from pyro_animacy.criticism.arrays import as_numbers
from pyro_animacy.criticism.scene import BODIES, ORDERED_PAIRS, PAIRS, WITH_BALL, Over, Scene
from pyro_animacy.criticism.wording import seconds
from pyro_animacy.errors import DataError

WINDOW = 1.0  # seconds over which a path is straight or not
LAG = 0.5  # seconds after which a step is compared with itself
NEAR_BALL = 0.05  # of the arena's diagonal
AT_EDGE = 0.05  # of the arena's shorter side
Function = Callable[[np.ndarray, Scene], np.ndarray]  # of positions and their scene


def _of_positions(function: Function) -> Callable[[ArrayLike, Scene], np.ndarray]:
    """A statistic that takes lists too, and refuses what are not positions in its scene."""

    @wraps(function)
    def checked(position: ArrayLike, scene: Scene) -> np.ndarray:
        x, bodies = as_numbers("position", position), len(scene.bodies)
        if x.ndim < 3 or x.shape[-2:] != (bodies, 2):
            raise DataError(f"position has the shape {x.shape}; expected (..., time, {bodies}, 2)")
        return function(x, scene)

    return checked


def _length(vector: np.ndarray) -> np.ndarray:
    return np.hypot(vector[..., 0], vector[..., 1])


def _cross_and_dot(first: np.ndarray, second: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """|a||b| sin and |a||b| cos of the angle from a to b."""
    (a, b), (c, d) = (np.moveaxis(vector, -1, 0) for vector in (first, second))
    return a * d - b * c, a * c + b * d


def _moves(step: np.ndarray) -> np.ndarray:
    return (step[..., 0] != 0) | (step[..., 1] != 0)


def _ratio(top: np.ndarray, bottom: np.ndarray) -> np.ndarray:
    """`top` / `bottom`, NaN where `bottom` is not positive."""
    return np.divide(top, bottom, out=np.full(top.shape, np.nan), where=bottom > 0)


@_of_positions
def speed(position: np.ndarray, scene: Scene) -> np.ndarray:
    """|d_t| fps: (..., time - 1, body), in data units per second."""
    return _length(np.diff(position, axis=-3)) * scene.fps


@_of_positions
def acceleration(position: np.ndarray, scene: Scene) -> np.ndarray:
    """|d_{t+1} - d_t| fps^2, so change of direction counts as much as change of speed.

    Returns:
        (..., time - 2, body), in data units per second squared.
    """
    return _length(np.diff(position, n=2, axis=-3)) * scene.fps**2


@_of_positions
def turning_angle(position: np.ndarray, scene: Scene) -> np.ndarray:
    """The signed angle from one step to the next, atan2(d_t x d_{t+1}, d_t . d_{t+1}).

    Returns:
        (..., time - 2, body), radians in (-pi, pi], positive from the x towards the y axis, NaN
        where one of the two steps is zero.
    """
    step = np.diff(position, axis=-3)
    cross, dot = _cross_and_dot(step[..., :-1, :, :], step[..., 1:, :, :])
    angle = np.arctan2(cross, dot)
    angle[angle == -np.pi] = np.pi  # atan2 of a cross product of -0.0
    moves = _moves(step)
    angle[~(moves[..., :-1, :] & moves[..., 1:, :])] = np.nan
    return angle


@_of_positions
def curvature(position: np.ndarray, scene: Scene) -> np.ndarray:
    """Turning angle over the arc it takes, d theta / ds = angle / ((|d_t| + |d_{t+1}|) / 2).

    A path's, not a motion's: it does not depend on speed. On a circle of radius r it is
    (1 / r) (1 + angle^2 / 24 + ...), with the sign of the turn.

    Returns:
        (..., time - 2, body), radians per data unit, NaN where one of the two steps is zero.
    """
    length = _length(np.diff(position, axis=-3))
    arc = (length[..., :-1, :] + length[..., 1:, :]) / 2
    return _ratio(turning_angle(position, scene), arc)


def straight_frames(fps: float) -> int:
    """Steps of a stretch that is straight or not."""
    return max(2, round(WINDOW * fps))


def lag_frames(fps: float) -> int:
    """Frames after which a step is compared with itself."""
    return max(1, round(LAG * fps))


@_of_positions
def straightness(position: np.ndarray, scene: Scene) -> np.ndarray:
    """Net displacement over path length, |x_{t+w} - x_t| / sum_{s=t}^{t+w-1} |d_s|.

    Batschelet's straightness index (Circular Statistics in Biology, 1981) of every stretch of
    w = `WINDOW` seconds, at least two steps: 1 on a straight line, 0 on the way out and back.

    Returns:
        (..., time - w, body), from 0 to 1, NaN where a frame of the stretch was not observed or
        the body did not move in it.
    """
    w = straight_frames(scene.fps)
    length = _length(np.diff(position, axis=-3))
    seen = np.isfinite(length)
    lead = [(0, 0)] * (length.ndim - 2) + [(1, 0), (0, 0)]
    walked = np.pad(np.cumsum(np.where(seen, length, 0), axis=-2), lead)
    unseen = np.pad(np.cumsum(~seen, axis=-2), lead)
    path = walked[..., w:, :] - walked[..., :-w, :]
    path[unseen[..., w:, :] > unseen[..., :-w, :]] = np.nan
    net = _length(position[..., w:, :, :] - position[..., :-w, :, :])
    return np.minimum(_ratio(net, path), 1)  # a rounding error above 1 is none


@_of_positions
def step_autocorrelation(position: np.ndarray, scene: Scene) -> np.ndarray:
    """How much of its velocity a body keeps for `LAG` seconds, one value a trajectory.

    rho = sum_t d_t . d_{t+l} / sqrt(sum_t |d_t|^2 sum_t |d_{t+l}|^2), l = `LAG` fps and at least
    one frame, over the t at which both steps were observed; about zero, not about the mean, so that
    steady motion has 1 and a random walk 0.

    Returns:
        (..., 1, body), from -1 to 1, NaN where no two steps were observed or the body did not move.
    """
    lag = lag_frames(scene.fps)
    step = np.diff(position, axis=-3)
    now, later = step[..., :-lag, :, :], step[..., lag:, :, :]
    _, dot = _cross_and_dot(now, later)
    both = np.isfinite(dot)
    size, size_later = (
        np.sqrt(np.square(_length(part), where=both, out=np.zeros(both.shape)).sum(-2))
        for part in (now, later)
    )
    return _ratio(np.where(both, dot, 0).sum(-2), size * size_later)[..., None, :]


@_of_positions
def inter_body_distance(position: np.ndarray, scene: Scene) -> np.ndarray:
    """|x_i - x_j| of every pair of bodies: (..., time, pair), in data units."""
    first, second = PAIRS.ends(scene)
    return _length(position[..., first, :] - position[..., second, :])


@_of_positions
def approach_rate(position: np.ndarray, scene: Scene) -> np.ndarray:
    """-d/dt |x_i - x_j|, that is (r_t - r_{t+1}) fps with r the distance of a pair.

    Returns:
        (..., time - 1, pair), in data units per second, positive where two bodies close in.
    """
    return -np.diff(inter_body_distance(position, scene), axis=-2) * scene.fps


@_of_positions
def heading_to_other(position: np.ndarray, scene: Scene) -> np.ndarray:
    """The angle between the step of body i and the direction from it to body j, for each i -> j.

    |atan2(d_t x r_t, d_t . r_t)|, with d the step of i and r = x_j - x_i. Chasing subtlety is the
    largest such angle that a chaser allows itself (Gao, Newman & Scholl 2009, Cognitive
    Psychology 59): 0 heads straight for the other, pi straight away, pi / 2 is what chance gives.

    Returns:
        (..., time - 1, ordered pair), radians from 0 to pi, NaN where i does not move or is at j.
    """
    first, second = ORDERED_PAIRS.ends(scene)
    here = position[..., :-1, :, :]
    step = np.diff(position, axis=-3)[..., first, :]
    gap = here[..., second, :] - here[..., first, :]
    cross, dot = _cross_and_dot(step, gap)
    return np.where(_moves(step) & _moves(gap), np.abs(np.arctan2(cross, dot)), np.nan)


@_of_positions
def near_ball(position: np.ndarray, scene: Scene) -> np.ndarray:
    """1 where |x_i - x_ball| is at most `NEAR_BALL` of the arena's diagonal, else 0.

    Returns:
        (..., time, pair), of each body that moves itself with each that does not; NaN where one of
        the two was not observed.
    """
    first, second = WITH_BALL.ends(scene)
    gap = _length(position[..., first, :] - position[..., second, :])
    return _indicator(gap, NEAR_BALL * float(np.hypot(*scene.extent)))


@_of_positions
def at_edge(position: np.ndarray, scene: Scene) -> np.ndarray:
    """1 where a body is at most `AT_EDGE` of the arena's shorter side from an edge of it, else 0.

    The edges are those of the box [`low`, `high`] in which bodies were recorded, the walls if there
    are any; outside it counts too. A side along which nothing moved has none.

    Returns:
        (..., time, body), NaN where not observed, or where the arena is not known.
    """
    wide = scene.extent > 0
    if not wide.any():
        return np.full(position.shape[:-1], np.nan)
    low, high = (corner[..., None, None, :] for corner in (scene.low, scene.high))
    inside = np.minimum(position - low, high - position)
    inside = inside.min(-1) if wide.all() else inside[..., wide].min(-1)
    return _indicator(inside, AT_EDGE * float(scene.extent[wide].min()))


def _indicator(distance: np.ndarray, limit: float) -> np.ndarray:
    """1 where `distance` is at most `limit`, 0 where not, NaN where it is NaN."""
    return np.where(np.isnan(distance), np.nan, distance <= limit)


@dataclass(frozen=True)
class Statistic:
    """A function of positions that recorded and generated motion are compared by.

    Attributes:
        name: how a report calls it.
        function: (position (..., time, body, 2), scene) -> (..., time', group).
        units: its units, where `{units}` stands for those of the recording.
        description: one phrase for a reader who does not know it; `{span}` stands for the seconds
            that `span` frames last.
        over: the groups of bodies on its last axis.
        signed: whether it lies about zero; its size |x| is then what is averaged.
        share: whether it is 1 or 0; its mean is then a share of frames.
        more: what to say of motion that has too much of it.
        less: what to say of motion that has too little of it.
        span: of a rate, how many frames the description speaks of.
    """

    name: str
    function: Function
    units: str
    description: str
    over: Over = BODIES
    signed: bool = False
    share: bool = False
    more: str = "too large"
    less: str = "too small"
    span: Callable[[float], int] | None = None

    def described(self, fps: float) -> str:
        """The description, of recordings at this rate."""
        if self.span is None:
            return self.description
        return self.description.replace("{span}", seconds(self.span(fps) / fps))


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
    "curvature": Statistic(
        "curvature",
        curvature,
        "rad/{units}",
        "change of heading over the length of path it takes, left and right, at any speed",
        signed=True,
        more="bends too sharply",
        less="bends too gently",
    ),
    "straightness": Statistic(
        "straightness",
        straightness,
        "ratio",
        "distance between the ends of {span} of path over its length: 1 is a straight line",
        more="too straight",
        less="too winding",
        span=straight_frames,
    ),
    "step_autocorrelation": Statistic(
        "step autocorrelation",
        step_autocorrelation,
        "correlation",
        "how much of its velocity a body keeps for {span}, 1 is all; one value a motion",
        more="keeps its velocity too long",
        less="loses its velocity too soon",
        span=lag_frames,
    ),
    "at_edge": Statistic(
        "time at the edge",
        at_edge,
        "share of frames",
        f"frames within {AT_EDGE:.0%} of the arena's shorter side from its edge, or beyond it",
        share=True,
        more="too often at the edge",
        less="too seldom at the edge",
    ),
    "inter_body_distance": Statistic(
        "inter-body distance",
        inter_body_distance,
        "{units}",
        "how far apart two bodies are",
        over=PAIRS,
        more="too far apart",
        less="too close together",
    ),
    "approach_rate": Statistic(
        "approach rate",
        approach_rate,
        "{units}/s",
        "how fast two bodies close in (above 0) or draw apart (below)",
        over=PAIRS,
        signed=True,
        more="closes in and draws apart too fast",
        less="closes in and draws apart too slowly",
    ),
    "heading_to_other": Statistic(
        "heading to the other",
        heading_to_other,
        "rad",
        "angle between where a body goes and where the other is: 0 is a chase, π a flight",
        over=ORDERED_PAIRS,
        more="heads too much away from the other",
        less="heads too much towards the other",
    ),
    "near_ball": Statistic(
        "time near the ball",
        near_ball,
        "share of frames",
        f"frames within {NEAR_BALL:.0%} of the arena's diagonal from the ball",
        over=WITH_BALL,
        share=True,
        more="too often near the ball",
        less="too seldom near the ball",
    ),
}
