"""Goals of directed displays: which way a body would go, and how well it does.

A goal is a direction g(s_t, a_t) for body A. With v = a^A_t, its typical (root mean square)
displacement v_0 and w = v_0 / 4, a step is worth the cosine of its heading error less a half,

    R = |v|^2 / (|v|^2 + w^2)  |g| / sqrt(|g|^2 + v_0^2)  [cos(angle(v) - angle(g) - delta) - 1/2]

and nothing at rest, where there is no heading, or on arrival, where there is nowhere to go. So to
rest is better than to go more than 60 degrees astray, and worse than to go less; without the half a
body is paid for speed, and moves far more, and faster, than any that was recorded.

    chase    g = s^B - s^A                              flee    g = s^A - s^B
    follow   g = s^B + a^B - d h^B - s^A                d behind B, which heads for h^B
    guard    g = (s^B + s^C) / 2 - s^A                  between B and the body C nearest to it

delta is the deviation of a chaser that is not perfect. Subtlety is that of Gao, Newman & Scholl,
The psychophysics of chasing, Cognitive Psychology 59(2), 2009: delta ~ U[-subtlety, subtlety],
drawn anew every 170 ms, so that a perfect display has a mean heading error of subtlety / 2.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
import xarray as xr
from torch import Tensor

from pyro_animacy.errors import ConfigError, DataError
from pyro_animacy.infer.checkpoint import ModelCard
from pyro_animacy.infer.run import suited

Floats = npt.NDArray[np.float64]
ASTRAY = 0.5  # cosine of the heading error at which moving is worth as much as resting
MOVING = 0.25  # of the typical speed; a body that is slower has no heading to measure


class Goal(NamedTuple):
    """What a body is after.

    Attributes:
        name: One of `AIMS`.
        mover: Number of body A, which pursues it.
        target: Number of body B.
        speed: v_0, root mean square displacement of A per frame.
        distance: Between A and B, which `follow` keeps; in the units of ``speed``, as positions.
    """

    name: str
    mover: int
    target: int
    speed: float
    distance: float

    def aim(self, position: Tensor, moves: Tensor) -> Tensor:
        """Return g (..., 2), given s_t and a_t, each (..., bodies, 2)."""
        return AIMS[self.name](position, moves, self)

    def reward(self, position: Tensor, moves: Tensor, deviation: Tensor) -> Tensor:
        """R (...) of a step, the equation above; delta (...) in radians."""
        v, g = moves[..., self.mover, :], self.aim(position, moves)
        along, across = (v * g).sum(-1), v[..., 1] * g[..., 0] - v[..., 0] * g[..., 1]
        turned = along * deviation.cos() + across * deviation.sin()  # |v| |g| cos(error - delta)
        fast, far = v.square().sum(-1), g.square().sum(-1)
        moved, away = fast + (MOVING * self.speed) ** 2, (far + self.speed**2).sqrt()
        return fast.sqrt() * (turned - ASTRAY * (fast * far).sqrt()) / (moved * away)


def _chase(position: Tensor, moves: Tensor, goal: Goal) -> Tensor:
    """From A to B."""
    return position[..., goal.target, :] - position[..., goal.mover, :]


def _flee(position: Tensor, moves: Tensor, goal: Goal) -> Tensor:
    """From B to A, and on."""
    return -_chase(position, moves, goal)


def _follow(position: Tensor, moves: Tensor, goal: Goal) -> Tensor:
    """To a place behind B as it moves; to B itself while B rests."""
    v = moves[..., goal.target, :]
    heading = v / (v.square().sum(-1, keepdim=True) + (MOVING * goal.speed) ** 2).sqrt()
    return _chase(position, moves, goal) + v - goal.distance * heading


def _guard(position: Tensor, moves: Tensor, goal: Goal) -> Tensor:
    """To the middle between B and the body nearest to it."""
    others = [i for i in range(position.shape[-2]) if i not in (goal.mover, goal.target)]
    from_target = position[..., others, :] - position[..., [goal.target], :]
    nearest = from_target.square().sum(-1).argmin(-1)[..., None, None]
    return _chase(position, moves, goal) + from_target.take_along_dim(nearest, -2).squeeze(-2) / 2


AIMS: dict[str, Callable[[Tensor, Tensor, Goal], Tensor]] = {
    "chase": _chase, "flee": _flee, "follow": _follow, "guard": _guard,
}  # fmt: skip


def goal_of(objective: str, card: ModelCard, recordings: xr.Dataset) -> Goal:
    """Read ``name:A->B``, and measure how A moves, and how far from B, in model units.

    Raises:
        ConfigError: If the objective or a body does not exist.
        DataError: If A does not move in the recordings.
    """
    bodies = list(card.bodies)
    name, colon, pair = objective.partition(":")
    mover, arrow, target = (part.strip() for part in pair.partition("->"))
    if not (colon and arrow) or name not in AIMS:
        raise ConfigError(
            f"objective {objective!r}: it must be name:A->B, the name one of {', '.join(AIMS)} and "
            f"A and B of the bodies {', '.join(bodies)}"
        )
    for body in (mover, target):
        if body not in bodies:
            raise ConfigError(
                f"objective {objective!r}: the run has no body {body!r}; choose of "
                f"{', '.join(bodies)}"
            )
    if mover == target:
        raise ConfigError(f"objective {objective!r}: {mover} cannot {name} itself; name two bodies")
    if name == "guard" and len(bodies) < 3:
        raise ConfigError(
            f"objective {objective!r}: to guard takes a third body to stand against, and the run "
            f"has {', '.join(bodies)}"
        )
    A, B = bodies.index(mover), bodies.index(target)
    x = suited(card, recordings)["position"].to_numpy() / card.scale.unit
    speed = float(np.sqrt(np.nanmean(np.square(np.diff(x[:, :, A], axis=1)).sum(-1))))
    if not speed > 0:
        raise DataError(f"{mover} does not move in these recordings, so it has no typical speed")
    apart = np.linalg.norm(x[:, :, A] - x[:, :, B], axis=-1)
    return Goal(name, A, B, speed, float(np.nanmedian(apart)))


def heading_error(position: npt.ArrayLike, goal: Goal) -> Floats:
    """Angle between the heading of A and g, from 0 to 180 degrees.

    Args:
        position: (..., time, bodies, 2), in the units of ``goal.speed``; NaN where not observed.
        goal: What A is after.

    Returns:
        (..., time - 1) degrees; NaN where A is slower than a quarter of its typical speed, or has
        arrived (g is less than a typical step).
    """
    x = torch.as_tensor(np.asarray(position, np.float64))
    moves = x.diff(dim=-3)
    v, g = moves[..., goal.mover, :], goal.aim(x[..., :-1, :, :], moves)
    error = torch.atan2(v[..., 1], v[..., 0]) - torch.atan2(g[..., 1], g[..., 0])
    error = torch.atan2(error.sin(), error.cos()).abs().rad2deg()
    heads = (v.norm(dim=-1) >= MOVING * goal.speed) & (g.norm(dim=-1) >= goal.speed)
    return error.where(heads, torch.nan).numpy()
