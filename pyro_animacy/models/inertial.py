"""Inert bodies: they keep a share of their velocity, bounce off walls, and want nothing.

    m_t = s_t + rho v_t                                where the body would be without walls
    m_t beyond a wall w:  m_t <- w - e (m_t - w),  v_{t+1} = -e rho v_t     (that axis alone)
    s_{t+1} ~ N(m_t, sigma^2 I)                        else v_{t+1} = s_{t+1} - s_t

A linear-Gaussian law of motion with friction rho, restitution e, walls and noise sigma, for each
body by itself: what is left to explain by agency is what this law does not expect (Tremoulet &
Feldman, Perception of animacy from the motion of a single object, Perception 29, 2000, on changes
of speed and heading that no force explains). Fitted by maximum likelihood to the very motion that
is scored, so that inertia has the benefit of hindsight; rho and e lie in [0, 1], since an inert
body has no engine.
"""

import math
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import xarray as xr

from pyro_animacy.data.windows import Scale

Floats = npt.NDArray[np.float64]
ROUNDS = 6  # of coordinate ascent: each parameter has a closed form given the others


class Inertia(NamedTuple):
    """The parameters of every body of every trajectory.

    Attributes:
        friction: rho, share of its velocity that a body keeps from frame to frame,
            (trajectory, body).
        restitution: e, share of it that a wall gives back, (body,); 1 where none was hit.
        noise: sigma, in data units per frame, (trajectory, body); NaN where no step was observed.
        low: The walls: least coordinates (body, space), in data units.
        high: Greatest coordinates, likewise.
    """

    friction: Floats
    restitution: Floats
    noise: Floats
    low: Floats
    high: Floats


def fit_inertia(position: Floats, floor: float | Floats) -> Inertia:
    """Fit friction and noise to each body of each trajectory; walls and restitution to each body.

    Args:
        position: (trajectory, time, body, space), NaN where not observed.
        floor: Least sigma, one or one for each trajectory, (trajectory, 1): below the resolution
            of a recording a density means nothing.

    Returns:
        The maximum-likelihood parameters, by coordinate ascent. The walls are the extremes of what
        was recorded of a body, which are the maximum-likelihood estimate of hard walls.
    """
    N, _, bodies, _ = position.shape
    with np.errstate(invalid="ignore"):
        low = np.fmin.reduce(position, axis=(0, 1))
        high = np.fmax.reduce(position, axis=(0, 1))
    inertia = Inertia(np.ones((N, bodies)), np.ones(bodies), np.zeros((N, bodies)), low, high)
    a = np.diff(position, axis=1)[:, 1:]
    for _ in range(ROUNDS):
        v, mean, over = _expected(position, inertia)
        free = np.isfinite(a) & np.isfinite(v) & (over == 0)
        friction = _slope(v, a, free, axis=(1, 3))
        # at a wall, s_{t+1} - s_t = (m - s_t - over) - e over
        reach = inertia.friction[:, None, :, None] * v - over
        hit = np.isfinite(a) & np.isfinite(v) & (over != 0)
        restitution = _slope(over, reach - a, hit, axis=(0, 1, 3))
        inertia = inertia._replace(friction=friction, restitution=restitution)
    _, mean, _ = _expected(position, inertia)
    seen = np.isfinite(a - mean)
    with np.errstate(invalid="ignore"):
        square = np.where(seen, (a - mean) ** 2, 0.0).sum((1, 3)) / seen.sum((1, 3))
    return inertia._replace(noise=np.maximum(np.sqrt(square), floor))


def inertial_log_density(position: Floats, inertia: Inertia) -> Floats:
    """Log N(s_{t+1}; m_t, sigma^2 I) of each body, in nats per data unit of each coordinate.

    Args:
        position: (trajectory, time, body, space), NaN where not observed.
        inertia: Of `fit_inertia`.

    Returns:
        (trajectory, time - 2, body): of the step from frame t + 1 to t + 2; NaN where one of the
        three frames was not observed.
    """
    _, mean, _ = _expected(position, inertia)
    sigma = inertia.noise[:, None, :, None]
    error = np.diff(position, axis=1)[:, 1:] - mean
    with np.errstate(invalid="ignore", divide="ignore"):
        each = -0.5 * (error / sigma) ** 2 - np.log(sigma) - 0.5 * math.log(2 * math.pi)
    return each.sum(-1)


def inertial_surprise(dataset: xr.Dataset, scale: Scale) -> xr.DataArray:
    """Surprise under inert physics, -log p(s_{t+1} | s_t, s_{t-1}), at the time of s_t.

    Args:
        dataset: Recordings in the schema, dequantised.
        scale: The length scale that gives the least noise where no resolution is known.

    Returns:
        (trajectory, time, body) nats, NaN where not defined.
    """
    x = dataset["position"].transpose("trajectory", "time", "body", "space").to_numpy()
    resolution = dataset["resolution"].to_numpy()[:, None]
    floor = np.maximum(resolution / math.sqrt(12), 1e-4 * scale.unit)
    surprise = np.full(x.shape[:3], np.nan)
    surprise[:, 1:-1] = -inertial_log_density(x, fit_inertia(x, floor))
    return dataset["position"].isel(space=0, drop=True).copy(data=surprise)


def _expected(position: Floats, inertia: Inertia) -> tuple[Floats, Floats, Floats]:
    """The velocity v_t on arrival at s_t, the expected displacement, and how far beyond a wall.

    Each (trajectory, time - 2, body, space), of the steps from frame 1 on.
    """
    rho, e = inertia.friction[..., None], inertia.restitution[:, None]
    x = position
    v = x[:, 1] - x[:, 0]
    velocities, means, overs = [], [], []
    for t in range(1, x.shape[1] - 1):
        s = x[:, t]
        m = s + rho * v
        over = np.where(m > inertia.high, m - inertia.high, np.minimum(m - inertia.low, 0.0))
        velocities.append(v)
        means.append(rho * v - (1 + e) * over)
        overs.append(over)
        v = np.where(over != 0, -e * rho * v, x[:, t + 1] - s)
        v = np.where(np.isfinite(v), v, x[:, t + 1] - s)
    shape = (len(x), 0, *x.shape[2:])
    return tuple(  # type: ignore[return-value]
        np.stack(parts, 1) if parts else np.empty(shape) for parts in (velocities, means, overs)
    )


def _slope(x: Floats, y: Floats, where: npt.NDArray[np.bool_], axis: tuple[int, ...]) -> Floats:
    """Least squares of y = k x with k in [0, 1]; 1 where there is nothing to fit."""
    xx = np.where(where, x * x, 0.0).sum(axis)
    xy = np.where(where, x * y, 0.0).sum(axis)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.clip(np.where(xx > 0, xy / xx, 1.0), 0.0, 1.0)
