"""Two toy scenes whose decisive step has a known density: what a model of motion must do.

A body at rest is called, by a hop along y, and then jumps a length l to the left or to the right:

    displacements     a_t ~ N(m_t, noise^2 I),   s_{t+1} = s_t + a_t,   s_0 ~ N(0, noise^2 I)
    m_t               (b l, 0), (-b l, 0)        `recall` only: the cue, there and back
                      (0, 0), ..., (0, 0)        rest, `delay` frames
                      (0, l)                     the call
                      (b l, 0)                   the jump, the decisive step
                      (0, 0), ..., (0, 0)        rest
    side              b = -1 or +1, each with probability 1/2

In `recall` the jump repeats the cue. The way back is drawn independently of the way there, so from
frame 2 on neither the position nor any later displacement says anything of b: a model must carry
one bit across the delay. In `branching` there is no cue and nothing foretells b: a model must
expect two places and nothing between them.

With a the displacement of the decisive step, the oracle values are the log densities

    side known        log N(a; (b l, 0), noise^2 I)
    side unknown      log [ 1/2 N(a; (-l, 0), noise^2 I) + 1/2 N(a; (l, 0), noise^2 I) ]
    one Gaussian      log N(a; (0, 0), diag(l^2 + noise^2, noise^2))

The last has the mean and covariance of a, so of all Gaussians it is the nearest to its law (the one
of greatest expected log density). A model that remembers can reach the first in `recall`, and none
more than the second in `branching`; without memory the second is the most in both, and without
several branches (a latent, or a mixture) the third.
"""

from collections.abc import Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt
import xarray as xr

from pyro_animacy.data.schema import make_trajectories
from pyro_animacy.errors import require

LENGTH = 1.0  # l, of a jump, in body lengths
NOISE = 0.05  # standard deviation of every displacement and coordinate, in body lengths
DELAY = 40  # frames of rest before the call
REST = 5  # frames of rest after the jump
FPS = 20.0
SIDES = {-1: "left", 1: "right"}

Knowledge = Literal["side", "branches", "gaussian"]


def recall(trajectories: int, seed: int, delay: int | Sequence[int] = DELAY) -> xr.Dataset:
    """Scenes in which the jump repeats the direction of a cue that ended `delay` frames before.

    Args:
        trajectories: Number of scenes; each is a recording of its own.
        seed: Of sides and noise.
        delay: Frames of rest between the cue and the call; of several, one drawn for each scene.
            With short ones among them the lesson has easier parts.

    Returns:
        The Dataset, one body, `delay + 10` frames at 20 Hz, in body lengths; `label` is the side.

    Raises:
        ConfigError: If a count is too small or the seed negative.
    """
    return _scene("recall", trajectories, seed, delay, cued=True)


def branching(trajectories: int, seed: int, delay: int | Sequence[int] = DELAY) -> xr.Dataset:
    """Scenes in which nothing foretells the side of the jump.

    Args:
        trajectories: Number of scenes; each is a recording of its own.
        seed: Of sides and noise.
        delay: Frames of rest, as in `recall`.

    Returns:
        The Dataset, as that of `recall`, with rest in place of the cue.

    Raises:
        ConfigError: If the count is too small or the seed negative.
    """
    return _scene("branching", trajectories, seed, delay, cued=False)


def decisive_frame(delay: int = DELAY) -> int:
    """The frame from which the body jumps: its displacement to the next frame is decisive."""
    return delay + 3


def log_density(
    displacement: npt.ArrayLike, knows: Knowledge, side: npt.ArrayLike = 1
) -> npt.NDArray[np.float64]:
    """Exact log density of the displacement of the decisive step.

    Args:
        displacement: (..., 2) in body lengths a frame.
        knows: ``side``: given b; ``branches``: b unknown; ``gaussian``: the best single Gaussian.
        side: (...) b, -1 or +1; looked at where the side is known.

    Returns:
        (...) in nats, of a density per squared body length.
    """
    a = np.asarray(displacement, float)
    if knows == "gaussian":
        return _normal(a, 0.0, np.hypot(LENGTH, NOISE))
    if knows == "branches":
        left, right = (_normal(a, b * LENGTH, NOISE) for b in SIDES)
        return np.logaddexp(left, right) - np.log(2)
    return _normal(a, np.asarray(side) * LENGTH, NOISE)


def near_a_branch(displacement: npt.ArrayLike) -> npt.NDArray[np.bool_]:
    """Whether a displacement lies near one of the two places where jumps end.

    That is within three standard deviations, as 1 - exp(-9 / 2) = 98.9 % of the jumps are.

    Args:
        displacement: (..., 2) in body lengths a frame.

    Returns:
        (...)
    """
    a = np.asarray(displacement, float)
    distance = np.hypot(np.abs(a[..., 0]) - LENGTH, a[..., 1])
    return distance <= 3 * NOISE


def _normal(
    a: npt.NDArray[np.float64], mean: float | npt.NDArray[np.float64], scale: float
) -> npt.NDArray[np.float64]:
    """Log N(a; (mean, 0), diag(scale^2, noise^2))."""
    x, y = (a[..., 0] - mean) / scale, a[..., 1] / NOISE
    return -(x**2 + y**2) / 2 - np.log(2 * np.pi * scale * NOISE)


def _scene(
    name: str, trajectories: int, seed: int, delay: int | Sequence[int], *, cued: bool
) -> xr.Dataset:
    delays = [delay] if isinstance(delay, int) else list(delay)
    least = min(delays, default=0)
    require(
        f"{name}: ",
        {"trajectories": trajectories, "seed": seed, "delay": least},
        ("trajectories", trajectories >= 1, "at least 1"),
        ("seed", seed >= 0, "0 or more"),
        ("delay", least >= 1, "at least 1"),
    )
    rng = np.random.default_rng(seed)
    side, rest = rng.choice(list(SIDES), trajectories), rng.choice(delays, trajectories)
    jump, scene = rest + decisive_frame(0), np.arange(trajectories)
    mean = np.zeros((trajectories, jump.max() + 1 + REST, 2))
    if cued:
        mean[:, 0, 0], mean[:, 1, 0] = side * LENGTH, -side * LENGTH
    mean[scene, jump - 1, 1] = LENGTH
    mean[scene, jump, 0] = side * LENGTH
    start = rng.normal(0.0, NOISE, (trajectories, 1, 2))
    position = np.concatenate([start, rng.normal(mean, NOISE)], 1).cumsum(1)
    position[np.arange(position.shape[1]) > jump[:, None] + 1 + REST] = np.nan
    return make_trajectories(
        position[:, :, None], fps=FPS, body=["body"], units="body lengths", resolution=0.0,
        label=[SIDES[b] for b in side], animate=[True], source=name,
    )  # fmt: skip
