"""Chase-v0: you are the chaser, a scripted evader runs from you in a box with four walls.

    y
    ^   +--------------+ 700        state s_t   (x_c, x_e, v_c, v_e, theta), 2 + 2 + 2 + 2 + 1
    |   |  c -> . . e  |            action a_t  share of the greatest force, |a| > 1 counts as 1
    |   |            ^ |            reward      r_{t+1} = exp(-|x_c - x_e| / 150), in (0, 1]
    +---+--------------+-> x
        0             700           s_t --a_t--> s_{t+1}, r_{t+1}, o_{t+1}     10 times a second

The mechanics are those of `pyro_animacy.data.soccer` without its contacts. Within a step the forces
stand still, and each of n substeps of length h = 1 / (10 n) is semi-implicit Euler:

    v <- limit( damping^h v + h F / m, top speed )          limit(u, r) = u min(1, r / |u|)
    x <- x + h v;  a wall puts x back to where the disc touches it and takes v across it away

The chaser's force is F_c = force limit(a, 1). The evader looks at K headings u_k about it, at the
places p_k = into the box(x_e + l u_k) they lead to, and prefers those that are far from the chaser,
that it can really run to, and that go on as it moves:

    w = softmax_k( ( |p_k - x_c| + |p_k - x_e| + keep u_k . v_e / top_e ) / tau )
    F_e = limit( m (R(theta) top_e sum_k w_k u_k - v_e) 10 Hz, force )

The second term is what turns it along a wall and out of a corner: standing there is the one thing
that leads nowhere. Its heading wanders by theta, an Ornstein-Uhlenbeck process in exact steps:

    theta <- k theta + sigma sqrt(1 - k^2) e,   e ~ N(0, 1),   k = exp(-1 / (10 heading_time))

All of this is `step`, one pure function of tensors of any batch shape: the environment calls it for
one state, a planner for a thousand candidates (with e = 0, the mean heading to come).
"""

import math
from dataclasses import dataclass, fields
from typing import Any

import gymnasium
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pyro_animacy.errors import ConfigError

RATE = 10  # decisions per second
STATE = 9  # numbers of a state
HEADINGS = 16  # K, that the evader considers
_KEEP = 60.0  # court units: what going on as it moves is worth to the evader
_TAU = 20.0  # court units: differences of this size the evader does not tell apart
_APART = 200.0  # court units, least distance at the start

# Okabe and Ito's palette, which colour-blind people tell apart; also apart in brightness.
BACKGROUND = (235.0, 235.0, 235.0)
CHASER = (213.0, 94.0, 0.0)  # vermilion
EVADER = (0.0, 114.0, 178.0)  # blue

Picture = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class ChaseConfig:
    """The constants of the world, in court units, seconds and mass units.

    Attributes:
        side: Of the square box.
        radius: Of both bodies.
        mass: Of both bodies.
        force: Largest force with which a body can push itself.
        top_speed: Largest speed of the chaser.
        evader_speed: Largest speed of the evader.
        damping: Share of its velocity that a free body keeps over one second.
        substeps: n, steps of the integrator to a decision.
        look_ahead: l, how far ahead the evader looks.
        heading_noise: sigma, standard deviation of the wandering of its heading, in radians.
        heading_time: Correlation time of that wandering.
        reward_scale: Distance at which the reward is 1/e.
    """

    side: float = 700.0
    radius: float = 35.0
    mass: float = 2.0
    force: float = 2000.0
    top_speed: float = 500.0
    evader_speed: float = 375.0
    damping: float = 0.2
    substeps: int = 4
    look_ahead: float = 200.0
    heading_noise: float = 0.35
    heading_time: float = 0.5
    reward_scale: float = 150.0

    def __post_init__(self) -> None:
        """Check the values.

        Raises:
            ConfigError: If a value cannot be used; the message names it.
        """
        for field in fields(self):
            value = getattr(self, field.name)
            if not (
                math.isfinite(value)
                and (value > 0 or (value == 0 and field.name == "heading_noise"))
            ):
                raise ConfigError(f"chase.{field.name} is {value}; it must be positive")
        if self.damping > 1:
            raise ConfigError(f"chase.damping is {self.damping}; it must be in (0, 1]")
        if self.side / math.sqrt(2) - 2 * self.radius <= _APART:
            raise ConfigError(
                f"chase.side is {self.side}: no room for two bodies of radius {self.radius}, "
                f"{_APART:g} apart; make the box larger or the bodies smaller"
            )


DEFAULT = ChaseConfig()

# ---------------------------------------------------------------------------------- the dynamics


def step(state: Tensor, action: Tensor, noise: Tensor, config: ChaseConfig = DEFAULT) -> Tensor:
    """s_{t+1} of s_t, a_t and e_t: the equations at the head of this file.

    Args:
        state: s_t (..., 9).
        action: a_t (..., 2); what is not finite is no push.
        noise: e_t (...), standard normal draws; 0 is the mean heading to come.
        config: The constants.

    Returns:
        s_{t+1} (..., 9). Batch shapes are broadcast.
    """
    c = config
    batch = torch.broadcast_shapes(state.shape[:-1], action.shape[:-1], noise.shape)
    state, action = state.expand(*batch, STATE), action.to(state).expand(*batch, 2)
    place, velocity, theta = _unpacked(state)
    push = c.force * limit(torch.nan_to_num(action, 0.0, 0.0, 0.0), 1.0)
    force = torch.stack((push, _flight(place, velocity, theta, c)), -2)
    top = state.new_tensor([c.top_speed, c.evader_speed])
    h = 1 / (RATE * c.substeps)
    for _ in range(c.substeps):
        velocity = limit(c.damping**h * velocity + h / c.mass * force, top)
        place = place + h * velocity
        inside = place.clamp(c.radius, c.side - c.radius)
        velocity = torch.where(inside == place, velocity, 0.0)
        place = inside
    k = math.exp(-1 / (RATE * c.heading_time))
    theta = k * theta + c.heading_noise * math.sqrt(1 - k**2) * noise
    return torch.cat((place.flatten(-2), velocity.flatten(-2), theta[..., None]), -1)


def reward(state: Tensor, config: ChaseConfig = DEFAULT) -> Tensor:
    """Reward exp(-|x_c - x_e| / reward_scale) (...), of states (..., 9)."""
    gap = torch.linalg.vector_norm(state[..., 0:2] - state[..., 2:4], dim=-1)
    return torch.exp(-gap / config.reward_scale)


def observe(state: Tensor, config: ChaseConfig = DEFAULT) -> Tensor:
    """Observations (..., 8) of states (..., 9): places of chaser and evader, then velocities.

    The box is [-1, 1]^2, and the chaser's top speed 1.
    """
    place = state[..., :4] / (config.side / 2) - 1
    return torch.cat((place, state[..., 4:8] / config.top_speed), -1).clamp(-1, 1)


def limit(vector: Tensor, longest: Tensor | float) -> Tensor:
    """Vectors (..., 2), shortened to a length (...) where they are longer."""
    longest = torch.as_tensor(longest, dtype=vector.dtype, device=vector.device)
    length = torch.linalg.vector_norm(vector, dim=-1)
    return vector * (longest / torch.maximum(length, longest))[..., None]


def _unpacked(state: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Places and velocities (..., 2 bodies, 2), and theta (...)."""
    return (
        state[..., 0:4].unflatten(-1, (2, 2)),
        state[..., 4:8].unflatten(-1, (2, 2)),
        state[..., 8],
    )


def _flight(place: Tensor, velocity: Tensor, theta: Tensor, config: ChaseConfig) -> Tensor:
    """F_e (..., 2), the evader's force."""
    c = config
    chaser, evader, moving = place[..., :1, :], place[..., 1:, :], velocity[..., 1, :]
    angle = torch.arange(HEADINGS, dtype=place.dtype, device=place.device) * math.tau / HEADINGS
    heading = torch.stack((angle.cos(), angle.sin()), -1)  # u_k (K, 2)
    there = (evader + c.look_ahead * heading).clamp(c.radius, c.side - c.radius)
    norm = torch.linalg.vector_norm
    worth = norm(there - chaser, dim=-1) + norm(there - evader, dim=-1)
    worth = worth + _KEEP / c.evader_speed * (moving @ heading.T)
    wanted = c.evader_speed * (torch.softmax(worth / _TAU, -1) @ heading)
    (x, y), sin, cos = wanted.unbind(-1), theta.sin(), theta.cos()
    wanted = torch.stack((cos * x - sin * y, sin * x + cos * y), -1)
    return limit(c.mass * RATE * (wanted - moving), c.force)


# ---------------------------------------------------------------------------------- the pictures


def picture(observation: npt.ArrayLike, size: int = 64, config: ChaseConfig = DEFAULT) -> Picture:
    """Draw a vector observation, also one that was predicted.

    Args:
        observation: o (8,) as `observe` gives it; of places that are not finite nothing is drawn.
        size: Of the square picture in pixels.
        config: The constants.

    Returns:
        Pixels (size, size, 3); y points up.
    """
    places = (np.asarray(observation, float)[:4].reshape(2, 2) + 1) / 2 * size
    radius = config.radius / config.side * size
    pixels = np.full((size, size, 3), BACKGROUND)
    for place, colour in zip(places[::-1], (EVADER, CHASER), strict=True):  # chaser on top
        paint_disc(pixels, place, (radius, radius), colour)
    return pixels.round().astype(np.uint8)


def paint_disc(
    pixels: npt.NDArray[np.float64],
    centre: npt.ArrayLike,
    radii: tuple[float, float],
    colour: tuple[float, float, float],
) -> None:
    """Paint a disc with a soft rim, one pixel wide, into a picture.

    Args:
        pixels: (height, width, 3), changed in place.
        centre: x and y in pixels from the lower left corner.
        radii: Half widths along x and y in pixels.
        colour: From 0 to 255.
    """
    (x, y), (height, width) = np.asarray(centre, float), pixels.shape[:2]
    column = (np.arange(width) + 0.5 - x) / radii[0]
    row = (height - np.arange(height) - 0.5 - y) / radii[1]
    with np.errstate(over="ignore", invalid="ignore"):
        away = 1 - np.sqrt(column**2 + row[:, None] ** 2)  # 0 at the rim
        cover = np.nan_to_num(np.clip(min(radii) * away + 0.5, 0.0, 1.0))[..., None]
    pixels += cover * (np.array(colour) - pixels)


# ------------------------------------------------------------------------------- the environment


class Chase(gymnasium.Env):
    """The world for gymnasium; ``state`` (9,) is all there is to know of it.

    It never terminates; registered as ``pyro_animacy/Chase-v0`` it is truncated after 100 steps.

    Args:
        render_mode: "rgb_array", or None.
        config: The constants.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": RATE}  # noqa: RUF012

    def __init__(self, render_mode: str | None = None, config: ChaseConfig = DEFAULT) -> None:
        self.config = config
        self.render_mode = render_mode
        self.observation_space = gymnasium.spaces.Box(-1.0, 1.0, (8,), np.float32)
        self.action_space = gymnasium.spaces.Box(-1.0, 1.0, (2,), np.float32)
        self.state = torch.zeros(STATE, dtype=torch.float64)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[npt.NDArray[np.float32], dict[str, Any]]:
        """Put both bodies somewhere, 200 apart at least, with a little speed; o_0 and no news."""
        super().reset(seed=seed)
        c, draw = self.config, self.np_random
        apart = 0.0
        while apart < _APART:
            places = draw.uniform(c.radius, c.side - c.radius, (2, 2))
            apart = float(np.linalg.norm(places[0] - places[1]))
        # Some speed: at rest it would give exact zeros, which no density describes.
        velocities = c.evader_speed / 8 * draw.standard_normal((2, 2)).clip(-3, 3)
        theta = c.heading_noise * draw.standard_normal(1)
        state = np.concatenate([places.ravel(), velocities.ravel(), theta])
        self.state = torch.from_numpy(state)
        return self._seen(), {}

    def step(
        self, action: npt.ArrayLike
    ) -> tuple[npt.NDArray[np.float32], float, bool, bool, dict[str, Any]]:
        """Push by the action (2,): o_{t+1}, r_{t+1}, never terminated, not truncated, no news."""
        push = torch.as_tensor(np.asarray(action, np.float64))
        noise = torch.tensor(self.np_random.standard_normal(), dtype=torch.float64)
        self.state = step(self.state, push, noise, self.config)
        return self._seen(), float(reward(self.state, self.config)), False, False, {}

    def render(self) -> Picture | None:
        """The picture of what is observed, (64, 64, 3), where that was asked for."""
        return picture(self._seen(), config=self.config) if self.render_mode else None

    def _seen(self) -> npt.NDArray[np.float32]:
        return observe(self.state, self.config).numpy().astype(np.float32)
