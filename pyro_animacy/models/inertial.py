"""Inert bodies: they keep a share of their velocity, bounce off walls, are hit, and want nothing.

    m_t = s_t + rho v_t                                where the body would be without walls
    m_t beyond a wall w:  m_t <- w - e (m_t - w),  v_{t+1} = -e rho v_t     (that axis alone)
    s_{t+1} ~ (1 - eps) N(m_t, sigma^2 I) + eps N(m_t, tau^2 I)     else v_{t+1} = s_{t+1} - s_t
    or, with probability phi_t, it rests: s_{t+1} ~ N(s_t, sigma_0^2 I)

A law of motion with damping rho (the share of its velocity that a body keeps, as in pymunk; here
from frame to frame), restitution e, walls, noise sigma, and now and then an impulse from elsewhere
of scale tau (Tukey's contaminated normal, A survey of sampling from contaminated distributions,
1960), for each body by itself: what is left to explain by agency is what this law does not expect
(Tremoulet & Feldman, Perception of animacy from the motion of a single object, Perception 29, 2000,
on changes of speed and heading that no force explains). Without impulses a ball that is kicked now
and then would be so uncertain all the time that its mere rolling speaks for an agent. Fitted by
maximum likelihood to the very motion that is scored, so that inertia has the benefit of hindsight;
rho and e lie in [0, 1], since an inert body has no engine, and eps in [0, 1/2].

A body that lies still goes on lying still until it is hit: phi_t is one probability where its last
displacement was within the recording's resolution, and another, that of coming to a stop, where it
was not. sigma_0 is the standard deviation of a step of zero that was dequantised. Without this,
lying still would speak for an agent, whose policy has a state of rest (`pyro_animacy.resting`).
"""

import math
import warnings
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import xarray as xr

from pyro_animacy.data.windows import Scale

Floats = npt.NDArray[np.float64]
ROUNDS = 8  # of coordinate ascent, each a Gauss-Newton step; three or four suffice
EM_STEPS = 6  # of expectation maximisation, in each round
AT_REST = 4.0  # sigma_0, the longest displacement of a body that rests


class Inertia(NamedTuple):
    """The parameters of every body of every trajectory.

    Attributes:
        damping: rho, share of its velocity that a body keeps from frame to frame,
            (trajectory, body).
        restitution: e, share of it that a wall gives back, (body,); 1 where none was hit.
        noise: sigma, in data units per frame, (trajectory, body); NaN where no step was observed.
        impulse_rate: eps, share of steps with an impulse, (trajectory, body); likewise.
        impulse_scale: tau, in data units per frame, at least sigma, (trajectory, body); likewise.
        staying: phi of a body at rest, (trajectory, body); likewise.
        stopping: phi of one that moves, (trajectory, body); likewise.
        rest_scale: sigma_0, in data units, (trajectory, body).
        low: The walls: least coordinates (body, space), in data units.
        high: Greatest coordinates, likewise.
    """

    damping: Floats
    restitution: Floats
    noise: Floats
    impulse_rate: Floats
    impulse_scale: Floats
    staying: Floats
    stopping: Floats
    rest_scale: Floats
    low: Floats
    high: Floats


def fit_inertia(position: Floats, floor: float | Floats) -> Inertia:
    """Fit damping, noise and impulses to each body of each trajectory, walls and restitution to it.

    Args:
        position: (trajectory, time, body, space), NaN where not observed.
        floor: Least sigma, positive, one or one for each trajectory, (trajectory, 1): below the
            resolution of a recording a density means nothing. It is that of one position; sigma_0,
            of a difference of two, is sqrt(2) times as large.

    Returns:
        The maximum-likelihood parameters: noise, impulses and rest by expectation maximisation,
        damping and restitution by least squares of what the expected displacement leaves, each step
        weighted by its expected precision, in the slopes of the law about the last estimate, in
        turn; to about 0.01 nats a step, since the likelihood jumps where a body just reaches a
        wall. The walls are the extremes of what was recorded of a body, which are the
        maximum-likelihood estimate of hard walls.
    """
    N, _, bodies, _ = position.shape
    with np.errstate(invalid="ignore"):
        low = np.fmin.reduce(position, axis=(0, 1))
        high = np.fmax.reduce(position, axis=(0, 1))
    one = np.ones((N, bodies))
    inertia = Inertia(
        damping=one, restitution=np.ones(bodies), noise=one, impulse_rate=0.1 * one,
        impulse_scale=one, staying=0.9 * one, stopping=0.1 * one,
        rest_scale=math.sqrt(2) * floor * one, low=low, high=high,
    )  # fmt: skip
    a = np.diff(position, axis=1)[:, 1:]
    rest = _rest(position, inertia)
    law = _expected(position, inertia)
    inertia = _begun(_square(a - law.mean), rest, inertia, floor)
    for _ in range(ROUNDS):
        error = a - law.mean
        inertia = _shares(_square(error), rest, inertia, floor)
        weight = _precision(_square(error), rest, inertia)
        step = _slope(law.by_damping, error, weight, axis=(1, 3))
        inertia = inertia._replace(damping=np.clip(inertia.damping + step, 0, 1))
        law = _expected(position, inertia)
        error = a - law.mean
        weight = _precision(_square(error), rest, inertia)
        step = _slope(law.by_restitution, error, weight, axis=(0, 1, 3))
        inertia = inertia._replace(restitution=np.clip(inertia.restitution + step, 0, 1))
        law = _expected(position, inertia)
    return _shares(_square(a - law.mean), rest, inertia, floor)


def inertial_log_density(position: Floats, inertia: Inertia) -> Floats:
    """Log density of s_{t+1} of each body, in nats per data unit of each coordinate.

    Args:
        position: (trajectory, time, body, space), NaN where not observed.
        inertia: Of `fit_inertia`.

    Returns:
        (trajectory, time - 2, body): of the step from frame t + 1 to t + 2; NaN where one of the
        three frames was not observed.
    """
    error = np.diff(position, axis=1)[:, 1:] - _expected(position, inertia).mean
    with np.errstate(invalid="ignore"):
        return np.logaddexp.reduce(_components(_square(error), _rest(position, inertia), inertia))


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
    dims = ("trajectory", "time", "body")
    coords = {n: c for n, c in dataset.coords.items() if {*c.dims} <= {*dims}}
    return xr.DataArray(surprise, coords, dims)


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


def _square(error: Floats) -> Floats:
    """Squared lengths (N, time, body) of (N, time, body, space); NaN where not observed in full."""
    return (error**2).sum(-1)


class _Rest(NamedTuple):
    """What tells whether a body rests in each step, (trajectory, time - 2, body)."""

    square: Floats  # squared length of the step
    slow: npt.NDArray[np.bool_]  # whether it may be that of a body at rest
    rested: npt.NDArray[np.bool_]  # whether the displacement before it may


def _rest(position: Floats, inertia: Inertia) -> _Rest:
    square = _square(np.diff(position, axis=1))
    with np.errstate(invalid="ignore"):
        slow = square <= (AT_REST * inertia.rest_scale[:, None]) ** 2
    return _Rest(square[:, 1:], slow[:, 1:], slow[:, :-1])


def _components(square: Floats, rest: _Rest, inertia: Inertia) -> Floats:
    """Log densities of a step at rest, undisturbed and hit, with their shares: (3, N, time, body).

    log phi N(s_{t+1} - s_t; 0, sigma_0^2 I), log (1 - phi) (1 - eps) N(error; 0, sigma^2 I) and
    log (1 - phi) eps N(error; 0, tau^2 I).

    Args:
        square: |error|^2, of what was displaced beyond what was expected, (N, time, body).
        rest: Of the same steps.
        inertia: The parameters.
    """
    D, eps = inertia.low.shape[-1], inertia.impulse_rate[:, None]
    phi = np.where(rest.rested, inertia.staying[:, None], inertia.stopping[:, None])
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.stack([
            np.log(share) - 0.5 * far / scale**2 - D * np.log(scale * math.sqrt(2 * math.pi))
            for share, far, scale in (
                (phi, rest.square, inertia.rest_scale[:, None]),
                ((1 - phi) * (1 - eps), square, inertia.noise[:, None]),
                ((1 - phi) * eps, square, inertia.impulse_scale[:, None]),
            )
        ])  # fmt: skip


def _responsibilities(square: Floats, rest: _Rest, inertia: Inertia) -> Floats:
    """Posterior probabilities of the three, (3, N, time, body); NaN where not observed."""
    logs = _components(square, rest, inertia)
    with np.errstate(invalid="ignore"):
        return np.exp(logs - np.logaddexp.reduce(logs))


def _precision(square: Floats, rest: _Rest, inertia: Inertia) -> Floats:
    """Expected precision of each step, (N, time, body, 1); NaN where not observed.

    0 of a step at rest, which says nothing of how bodies move.
    """
    _, calm, hit = _responsibilities(square, rest, inertia)
    precise, loose = inertia.noise[:, None] ** -2, inertia.impulse_scale[:, None] ** -2
    return (calm * precise + hit * loose)[..., None]


def _begun(square: Floats, rest: _Rest, inertia: Inertia, floor: float | Floats) -> Inertia:
    """Where the search begins: noise of half of the steps that are no rest, impulses larger."""
    square = np.where(rest.rested & rest.slow, np.nan, square)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # of what was never observed
        typical, mean = np.nanmedian(square, axis=1), np.nanmean(square, axis=1)
    # the least where nothing moves
    typical, mean = (np.where(np.isnan(x), np.square(floor), x) for x in (typical, mean))
    noise, impulse = (np.sqrt(np.maximum(x, np.finfo(float).tiny)) for x in (typical, 10 * mean))
    return inertia._replace(noise=noise, impulse_scale=np.maximum(noise, impulse))


def _shares(square: Floats, rest: _Rest, inertia: Inertia, floor: float | Floats) -> Inertia:
    """Rest, noise and impulses of each body of each trajectory, by expectation maximisation.

    sigma is no less than the floor, and tau than sigma.
    """
    seen, D = np.isfinite(square), inertia.low.shape[-1]
    each = np.where(seen, square / D, 0.0)  # of a coordinate
    rested, moved = seen & rest.rested, seen & ~rest.rested
    never = np.where(seen.any(1), 0.0, np.nan)
    for _ in range(EM_STEPS):
        still, calm, hit = np.where(seen, _responsibilities(square, rest, inertia), 0.0)
        hits = hit.sum(1)
        noise = np.sqrt(_ratio((calm * each).sum(1), calm.sum(1)))
        noise = np.maximum(noise, floor) + never
        impulse = np.sqrt(_ratio((hit * each).sum(1), hits))
        inertia = inertia._replace(
            noise=noise,
            impulse_rate=np.minimum(_ratio(hits, hits + calm.sum(1)), 0.5) + never,
            impulse_scale=np.maximum(noise, impulse),
            staying=_ratio((still * rested).sum(1), rested.sum(1)) + never,
            stopping=_ratio((still * moved).sum(1), moved.sum(1)) + never,
        )
    return inertia


def _ratio(a: Floats, b: Floats) -> Floats:
    """Divide, and return 0 where b is 0."""
    return np.divide(a, b, out=np.zeros_like(a), where=b > 0)


def _slope(x: Floats, y: Floats, weight: Floats, axis: tuple[int, ...]) -> Floats:
    """Weighted least squares of y = k x over what was observed; 0 where there is nothing to fit."""
    seen = np.isfinite(x) & np.isfinite(y) & np.isfinite(weight)
    xx = np.where(seen, weight * x * x, 0.0).sum(axis)
    xy = np.where(seen, weight * x * y, 0.0).sum(axis)
    return _ratio(xy, xx)
