"""Inert bodies: they keep a share of their velocity, bounce off walls, and want nothing.

    m_t = s_t + rho v_t                                where the body would be without walls
    m_t beyond a wall w:  m_t <- w - e (m_t - w),  v_{t+1} = -e rho v_t     (that axis alone)
    s_{t+1} ~ N(m_t, sigma^2 I)                        else v_{t+1} = s_{t+1} - s_t

A linear-Gaussian law of motion with damping rho (the share of its velocity that a body keeps, as in
pymunk; here from frame to frame), restitution e, walls and noise sigma, for each body by itself:
what is left to explain by agency is what this law does not expect (Tremoulet & Feldman, Perception
of animacy from the motion of a single object, Perception 29, 2000, on changes of speed and heading
that no force explains). Fitted by maximum likelihood to the very motion that
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
ROUNDS = 8  # of coordinate ascent, each a Gauss-Newton step; three or four suffice


class Inertia(NamedTuple):
    """The parameters of every body of every trajectory.

    Attributes:
        damping: rho, share of its velocity that a body keeps from frame to frame,
            (trajectory, body).
        restitution: e, share of it that a wall gives back, (body,); 1 where none was hit.
        noise: sigma, in data units per frame, (trajectory, body); NaN where no step was observed.
        low: The walls: least coordinates (body, space), in data units.
        high: Greatest coordinates, likewise.
    """

    damping: Floats
    restitution: Floats
    noise: Floats
    low: Floats
    high: Floats


def fit_inertia(position: Floats, floor: float | Floats) -> Inertia:
    """Fit damping and noise to each body of each trajectory; walls and restitution to each body.

    Args:
        position: (trajectory, time, body, space), NaN where not observed.
        floor: Least sigma, positive, one or one for each trajectory, (trajectory, 1): below the
            resolution of a recording a density means nothing.

    Returns:
        The maximum-likelihood parameters: damping, noise and restitution in turn, by least squares
        of what the expected displacement leaves, in the slopes of the law about the last estimate;
        to about 0.01 nats a step, since the likelihood jumps where a body just reaches a wall.
        The walls are the extremes of what was recorded of a body, which are the maximum-likelihood
        estimate of hard walls.
    """
    N, _, bodies, _ = position.shape
    with np.errstate(invalid="ignore"):
        low = np.fmin.reduce(position, axis=(0, 1))
        high = np.fmax.reduce(position, axis=(0, 1))
    inertia = Inertia(np.ones((N, bodies)), np.ones(bodies), np.zeros((N, bodies)), low, high)
    a = np.diff(position, axis=1)[:, 1:]
    for _ in range(ROUNDS):
        law = _expected(position, inertia)
        step = _slope(law.by_damping, a - law.mean, axis=(1, 3))
        inertia = inertia._replace(damping=np.clip(inertia.damping + step, 0, 1))
        law = _expected(position, inertia)
        sigma = _spread(a - law.mean, floor)[:, None, :, None]
        step = _slope(law.by_restitution / sigma, (a - law.mean) / sigma, axis=(0, 1, 3))
        inertia = inertia._replace(restitution=np.clip(inertia.restitution + step, 0, 1))
    return inertia._replace(noise=_spread(a - _expected(position, inertia).mean, floor))


def inertial_log_density(position: Floats, inertia: Inertia) -> Floats:
    """Log N(s_{t+1}; m_t, sigma^2 I) of each body, in nats per data unit of each coordinate.

    Args:
        position: (trajectory, time, body, space), NaN where not observed.
        inertia: Of `fit_inertia`.

    Returns:
        (trajectory, time - 2, body): of the step from frame t + 1 to t + 2; NaN where one of the
        three frames was not observed.
    """
    sigma = inertia.noise[:, None, :, None]
    error = np.diff(position, axis=1)[:, 1:] - _expected(position, inertia).mean
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


class _Expected(NamedTuple):
    """The expected displacement of each step from frame 1 on, and its slopes along rho and e.

    Each (trajectory, time - 2, body, space).
    """

    mean: Floats
    by_damping: Floats
    by_restitution: Floats


def _expected(position: Floats, inertia: Inertia) -> _Expected:
    rho, e = inertia.damping[..., None], inertia.restitution[:, None]
    x = position
    if x.shape[1] < 3:
        return _Expected(*(np.empty((len(x), 0, *x.shape[2:])) for _ in range(3)))
    v = x[:, 1] - x[:, 0]
    v_rho = v_e = np.zeros_like(v)
    steps = []
    for t in range(1, x.shape[1] - 1):
        s, after = x[:, t], x[:, t + 1] - x[:, t]
        m = s + rho * v
        m_rho, m_e = v + rho * v_rho, rho * v_e
        over = np.where(m > inertia.high, m - inertia.high, np.minimum(m - inertia.low, 0.0))
        turn = np.where(over != 0, -e, 1.0)
        steps.append((rho * v - (1 + e) * over, turn * m_rho, turn * m_e - over))
        bounced = (over != 0) & np.isfinite(m)
        v_rho, v_e = (
            np.where(bounced, turn * m_rho, 0.0),
            np.where(bounced, turn * m_e - rho * v, 0.0),
        )
        v = np.where(bounced, turn * rho * v, after)
    return _Expected(*(np.stack(parts, 1) for parts in zip(*steps, strict=True)))


def _slope(x: Floats, y: Floats, axis: tuple[int, ...]) -> Floats:
    """Least squares of y = k x over what was observed; 0 where there is nothing to fit."""
    seen = np.isfinite(x) & np.isfinite(y)
    xx = np.where(seen, x * x, 0.0).sum(axis)
    xy = np.where(seen, x * y, 0.0).sum(axis)
    return np.divide(xy, xx, out=np.zeros_like(xx), where=xx > 0)


def _spread(error: Floats, floor: float | Floats) -> Floats:
    """Root mean square error of each body of each trajectory, no less than the floor."""
    seen = np.isfinite(error)
    with np.errstate(invalid="ignore"):
        square = np.where(seen, error**2, 0.0).sum((1, 3)) / seen.sum((1, 3))
    return np.maximum(np.sqrt(square), floor)
