"""Planners: what to do next, found by search over what a model imagines.

    V(u) = sum_{k=1..H} R(m_{t+k}),      m_{t+1..t+H} imagined from m_t under u = (u_t .. u_{t+H-1})

Every planner draws J candidates u_j ~ N(mu, diag sigma^2), has the model imagine all of them in one
batch, and keeps what did well; mu and sigma begin at 0 and 1 (or at the last plan, moved on):

    CEM               K elites of the greatest V:  mu, sigma <- their mean and standard deviation
    MPPI              weights w_j ~ exp((V_j - max V) / (temperature sd(V))):
                      mu, sigma <- weighted mean and standard deviation
    random shooting   as many candidates in all, from N(mu, 1): the best of them

One call serves every model: `plan` asks it for ``imagine(belief, controls)``, and an objective what
is worth what. A `WorldModel`'s belief is its memory m_t and its controls are actions; of the
true simulator (`pyro_animacy.acting.simulator`), the upper bound, the belief is its state; of a
ControlVAE (`pyro_animacy.acting.direct`) the controls are latents z, which its policy decodes.

Hafner et al., Learning Latent Dynamics for Planning from Pixels, 2019, algorithm 2; Williams et
al., Information Theoretic MPC for Model-Based Reinforcement Learning, ICRA 2017, equation 18.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Protocol

import torch
from torch import Tensor

from pyro_animacy.errors import ConfigError, require


class Plannable(Protocol):
    """What can be planned with."""

    def imagine(self, belief: Any, controls: Tensor, /) -> Any:
        """Roll on from ``belief`` (E, ...) under ``controls`` (H, J, E, A)."""
        ...


Objective = Callable[[Any], Tensor]  # what was imagined -> reward of every step, (H, J, E)


def identity(imagined: Tensor) -> Tensor:
    """The objective where what is imagined is the rewards already, (H, J, E)."""
    return imagined


@dataclass(frozen=True)
class PlannerConfig:
    """Options of a planner; the values are PlaNet's.

    Args:
        method: ``cem``, ``mppi`` or ``random_shooting``.
        horizon: H, steps imagined ahead.
        iterations: Times that candidates are drawn.
        candidates: J, drawn each time.
        elites: K, of which the next candidates' mean and deviation are; of ``cem``.
        temperature: Of MPPI's weights, in standard deviations of the values.
        warm_start: Begin at the last plan moved on by one step, in place of zeros.
    """

    method: Literal["cem", "mppi", "random_shooting"] = "cem"
    horizon: int = 12
    iterations: int = 10
    candidates: int = 1000
    elites: int = 100
    temperature: float = 0.5
    warm_start: bool = False

    def __post_init__(self) -> None:
        """Check the values.

        Raises:
            ConfigError: If a value cannot be used; the message names it.
        """
        require(
            "planner.",
            vars(self),
            ("horizon", self.horizon >= 1, "at least 1"),
            ("iterations", self.iterations >= 1, "at least 1"),
            ("candidates", self.candidates >= 1, "at least 1"),
            ("elites", self.elites >= 1, "at least 1"),
            ("temperature", self.temperature > 0, "positive"),
        )
        if self.method == "cem" and not 2 <= self.elites <= self.candidates:
            raise ConfigError(
                f"planner.elites is {self.elites} of {self.candidates} candidates; it must be 2 or "
                "more, and no more than there are candidates"
            )


class Plan(NamedTuple):
    """What a planner found.

    Attributes:
        controls: mu (H, E, A), in each environment.
        value: The greatest V among its last candidates, (E,).
    """

    controls: Tensor
    value: Tensor

    def moved_on(self) -> Tensor:
        """The plan one step later, zeros at its end: where the next search may begin."""
        return torch.cat([self.controls[1:], torch.zeros_like(self.controls[:1])])


@torch.no_grad()
def plan(
    model: Plannable,
    belief: Any,
    objective: Objective,
    start: Tensor,
    config: PlannerConfig | None = None,
    *,
    bound: float | None = 1.0,
) -> Plan:
    """Search for the controls of the greatest V.

    Args:
        model: What imagines.
        belief: Where it begins, of E environments.
        objective: The reward of each step of what was imagined, (H, J, E).
        start: mu at the beginning (H, E, A): zeros, or the last plan moved on.
        config: The options.
        bound: Candidates are clipped to [-bound, bound], as actions are; None for none.

    Returns:
        The plan. Values that are not finite count as the worst; where an environment has no other,
        its controls are NaN.
    """
    o = config or PlannerConfig()
    (H, E, A), J = start.shape, o.candidates
    mu, sigma = start, torch.ones_like(start)
    shot = Plan(start, start.new_full((E,), -torch.inf))  # the best so far
    for _ in range(o.iterations):
        u = torch.randn(H, J, E, A, dtype=start.dtype, device=start.device)
        u.mul_(sigma.unsqueeze(1)).add_(mu.unsqueeze(1))
        if bound is not None:
            u.clamp_(-bound, bound)
        V = objective(model.imagine(belief, u)).sum(0)
        V = V.where(V.isfinite(), -torch.inf)
        if o.method == "cem":
            elites = _greatest(u, V, o.elites)
            mu, sigma = elites.mean(1), elites.std(1, correction=0)
        elif o.method == "mppi":
            mu, sigma = _weighted(u, V, o.temperature)
        else:
            best, value = _greatest(u, V, 1)[:, 0], V.amax(0)
            better = (value > shot.value)[:, None]
            shot = Plan(best.where(better, shot.controls), value.maximum(shot.value))
    found = shot if o.method == "random_shooting" else Plan(mu, V.amax(0))
    known = found.value.isfinite()[:, None]
    return found._replace(controls=found.controls.where(known, torch.nan))


def _greatest(u: Tensor, V: Tensor, count: int) -> Tensor:
    """Those of u (H, J, E, A) with the greatest values V (J, E): (H, count, E, A)."""
    H, _, E, A = u.shape
    best = V.topk(count, dim=0, sorted=False).indices
    return u.gather(1, best[None, ..., None].expand(H, -1, E, A))


def _weighted(u: Tensor, V: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """MPPI's mean and standard deviation (H, E, A) of u (H, J, E, A) with values V (J, E)."""
    finite = V.isfinite()
    least = V.where(finite, torch.inf).amin(0)
    V = V.where(finite, least)  # far below, and with a spread that is a number
    sd = V.std(0, correction=0).clamp(min=1e-6)
    w = ((V - V.amax(0)) / (temperature * sd)).where(finite, -torch.inf)
    w = w.softmax(0)[..., None]
    mu = (w * u).sum(1)
    return mu, (w * (u - mu.unsqueeze(1)).square()).sum(1).sqrt()
