"""CarRacing: a car seen from above on a winding road, driven by a script and recorded as images.

The environment is gymnasium's CarRacing-v3, the frames those of World Models (Ha & Schmidhuber
2018, Recurrent World Models Facilitate Policy Evolution, NeurIPS): of its observation of 96 x 96
pixels the lowest 12 rows, the indicator bar, are cut off, and the 84 x 96 that are left are
averaged over areas to the size asked for.

    environment     0 ... 50       50 + k       50 + 2k          50 steps a second, k = 50 / fps
                  zooms in,  |        |          |
    recorded      car stands | x_0 -a_0-> x_1 -a_1-> x_2 ...     a_t is repeated k times,
                                       r_1         r_2           r_{t+1} the sum of its k rewards

Controls: steering in [-1, 1] (left is negative), gas and brake in [0, 1]. A tile of road driven
over for the first time pays 1000 / tiles, and each environment step costs 0.1. An episode ends by
itself where the lap is done or the car has left the field.

The driver looks at the frame, as an agent would, and at the speedometer. It follows the road's
middle from the car upwards, steers for the point `_LOOK_AHEAD` rows ahead, and holds a speed of its
own by gas and brake. Its steering wanders (an Ornstein-Uhlenbeck process), and speed and wandering
differ between episodes: it keeps to the road most of the time, cuts corners, spins on fast bends
and finds back, so that frames show more than the middle of the lane.
"""

import math
import os
import warnings
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr
from PIL import Image

from pyro_animacy.data.episodes import make_episodes
from pyro_animacy.errors import ConfigError, MissingExtra, require
from pyro_animacy.progress import tqdm

STEPS_PER_SECOND = 50
CONTROLS = ("steering", "gas", "brake")
_ZOOM_IN = 50  # environment steps in which the camera comes down; the car stands still
_BAR = 84  # first row of the indicator bar
_CAR = (66, 47.5)  # row of the car's nose and column of its middle, in the observation
_LOOK_AHEAD = 22  # rows, about 11 metres
_LANE = 14  # columns: half the width in which the road's next row is looked for
_WANDER_TIME = 0.6  # seconds, correlation time of the wandering

Frame = npt.NDArray[np.uint8]


def simulate_carracing(
    episodes: int,
    frames: int,
    size: tuple[int, int] = (64, 64),
    seed: int = 0,
    *,
    fps: float = 25.0,
    progress: bool = True,
) -> xr.Dataset:
    """Record a scripted driver in CarRacing-v3.

    Episode i depends on ``seed`` and i only, not on how many are asked for.

    Args:
        episodes: Number of episodes; each is a track of its own.
        frames: Frames of each; fewer where the episode ends by itself.
        size: Height and width of the images in pixels.
        seed: Of tracks and drivers, at least 0.
        fps: Frames per second; divides 50. Every action is repeated 50 / fps times.
        progress: Show a progress bar, after two seconds.

    Returns:
        A Dataset in the schema of `episodes`: ``image``, ``action`` (steering, gas, brake),
        ``reward`` and ``terminal``.

    Raises:
        ConfigError: If a value cannot be used.
        MissingExtra: If gymnasium or Box2D is not installed.
    """
    repeat = _repeat(episodes, frames, size, seed, fps)
    env = _environment()
    recorded = []
    try:
        for i in tqdm(range(episodes), desc="carracing", unit="episode", delay=2,
                      disable=not progress):  # fmt: skip
            recorded.append(_drive(env, np.random.SeedSequence((seed, i)), frames, size, repeat))
    finally:
        env.close()
    length = np.array([len(episode[0]) for episode in recorded])
    image, action, reward, terminal = (
        np.stack([_padded(part, max(length)) for part in parts])
        for parts in zip(*recorded, strict=True)
    )
    return make_episodes(
        image=image,
        action=action,
        reward=reward,
        terminal=terminal,
        length=length,
        fps=float(fps),
        trajectory=[f"carracing_{seed}_{i}" for i in range(episodes)],
        control=CONTROLS,
        source=f"CarRacing-v3, seed {seed}",
    )


def _repeat(episodes: int, frames: int, size: tuple[int, int], seed: int, fps: float) -> int:
    """How often an action is repeated; ConfigError for what cannot be simulated."""
    given = {"trajectories": episodes, "frames": frames, "seed": seed, "size": size}
    require(
        "",
        given,
        ("trajectories", episodes >= 1, "at least 1"),
        ("frames", frames >= 2, "at least 2"),
        ("seed", seed >= 0, "0 or more"),
        ("size", min(size) >= 1, "at least one pixel each way"),
    )
    if not fps > 0 or STEPS_PER_SECOND % fps:
        raise ConfigError(
            f"fps: {fps} does not divide the {STEPS_PER_SECOND} steps a second of CarRacing; "
            "give 50, 25, 12.5, 10 or 5"
        )
    return round(STEPS_PER_SECOND / fps)


def _environment() -> Any:
    """CarRacing-v3 without a screen.

    Raises:
        MissingExtra: If gymnasium or what it needs for Box2D is not installed.
    """
    os.environ.setdefault("SDL_VIDEODRIVER", "dummy")
    os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "1")
    try:
        with warnings.catch_warnings():
            # Box2D's SWIG types; made an error, this warning takes the interpreter down.
            warnings.filterwarnings("ignore", "builtin type", DeprecationWarning)
            import Box2D  # noqa: F401
        import gymnasium
        import pygame  # noqa: F401
    except ImportError as error:
        raise MissingExtra("CarRacing", "rl", error) from error
    # Frames are counted here, so its limit of 1000 steps is lifted.
    return gymnasium.make("CarRacing-v3", render_mode="rgb_array", max_episode_steps=10**9)


def _drive(
    env: Any, seed: np.random.SeedSequence, frames: int, size: tuple[int, int], repeat: int
) -> tuple[npt.NDArray, npt.NDArray, npt.NDArray, npt.NDArray]:
    """One episode of at most ``frames`` frames.

    Returns:
        Images (time, height, width, 3), actions (time, 3), rewards (time,), terminal (time,). The
        last frame's action was not taken: it is zero.
    """
    rng = np.random.default_rng(seed)
    driver = _Driver(rng, repeat / STEPS_PER_SECOND)
    seen, _ = env.reset(seed=int(rng.integers(2**31)))
    for _ in range(_ZOOM_IN):
        seen, *_ = env.step(np.zeros(3, np.float32))
    images, actions, rewards = [_resized(seen, size)], [], [0.0]
    over = False
    while len(images) < frames and not over:
        action = driver.act(seen, env.unwrapped.car.hull.linearVelocity.length)
        actions.append(action)
        rewards.append(0.0)
        for _ in range(repeat):
            seen, reward, over, _, _ = env.step(action)
            rewards[-1] += float(reward)
            if over:
                break
        images.append(_resized(seen, size))
    terminal = np.zeros(len(images), bool)
    terminal[-1] = over
    return (
        np.stack(images),
        np.stack([*actions, np.zeros(3, np.float32)]),
        np.array(rewards, np.float32),
        terminal,
    )


class _Driver:
    """Steers along the road it sees, with a wandering hand, at a speed of its own."""

    def __init__(self, rng: np.random.Generator, interval: float) -> None:
        """Draw the temper of one episode; ``interval`` is the time between actions in seconds."""
        self.rng = rng
        self.speed = rng.uniform(20.0, 50.0)  # metres a second, on a straight road
        self.wandering = rng.uniform(0.05, 0.4)  # standard deviation of the steering
        # The exact discretisation of d w = -w dt / tau + sigma sqrt(2 / tau) dW.
        self.keep = math.exp(-interval / _WANDER_TIME)
        self.wander = self.wandering * rng.standard_normal()
        self.bearing = 0.0

    def act(self, seen: Frame, speed: float) -> npt.NDArray[np.float32]:
        """Steering, gas and brake (3,) for an observation (96, 96, 3) and a speed."""
        self.bearing = _bearing(seen, self.bearing)
        spread = self.wandering * math.sqrt(1 - self.keep**2)
        self.wander = self.keep * self.wander + spread * self.rng.standard_normal()
        steering = 1.2 * self.bearing + self.wander
        excess = speed - self.speed * max(0.4, 1 - abs(self.bearing))
        gas, brake = max(0.0, -0.05 * excess), max(0.0, 0.03 * excess - 0.1)
        return np.clip([steering, gas, brake], [-1, 0, 0], [1, 0.6, 0.6]).astype(np.float32)


def _bearing(seen: Frame, before: float) -> float:
    """Direction of the road ahead in radians, right is positive; ``before`` where none is seen.

    Grey is road: its green is near its red, which grass has far apart.
    """
    pixels = seen.astype(int)
    road = (abs(pixels[..., 1] - pixels[..., 0]) < 40) & (pixels[..., 0] > 60)
    column = np.arange(seen.shape[1])
    nose, middle = _CAR
    centre, found = middle, 0
    for row in range(nose, nose - _LOOK_AHEAD, -1):
        # Where the car is off the road, the whole row is searched until there is some.
        near = road[row] & (abs(column - centre) <= (_LANE if found else len(column)))
        if near.any():
            centre, found = column[near].mean(), nose - row + 1
    return math.atan2(centre - middle, max(found, _LOOK_AHEAD // 2)) if found else before


def _resized(seen: Frame, size: tuple[int, int]) -> Frame:
    """The picture without the indicator bar, averaged over areas to (height, width, 3)."""
    height, width = size
    picture = Image.fromarray(seen[:_BAR]).resize((width, height), Image.Resampling.BOX)
    return np.asarray(picture)


def _padded(part: npt.NDArray, frames: int) -> npt.NDArray:
    """Zeros after the end of an episode."""
    return np.pad(part, [(0, frames - len(part)), *[(0, 0)] * (part.ndim - 1)])
