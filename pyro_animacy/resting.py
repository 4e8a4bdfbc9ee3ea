"""A Gaussian policy with a state of rest.

    r_i ~ Bernoulli(rho_i)                                           does body i rest?
    a_i ~ N(0, tau_i^2 I) if r_i, N(mu_i, diag sigma_i^2) if not

r_i is summed out:

    pi(a) = prod_i [ rho_i N(a_i; 0, tau_i^2 I) + (1 - rho_i) N(a_i; mu_i, diag sigma_i^2) ]

A body that a person holds still, or an animal that waits, takes steps of exactly zero. Recordings
are dequantised by their resolution, and tau_i, a parameter, is fitted to what that makes of such
steps; in free motion, where nothing is recorded, a body at rest stays where it is (`free`). A
Gaussian policy can say as much of one step by a mean of zero and a small scale, but what it draws
drifts, and what has drifted does not look at rest any more.
"""

import math
from functools import cached_property
from typing import ClassVar, TypeAlias

import torch
from pyro.distributions import Independent, Normal, TorchDistribution
from torch import Tensor, distributions, nn
from torch.distributions import constraints
from torch.nn import functional as F  # noqa: N812

from pyro_animacy.errors import ConfigError


class RestingNormal(TorchDistribution):
    """pi(a) of bodies that rest or move, over a (..., D), body after body.

    Args:
        loc: mu (..., D).
        scale: sigma (..., D).
        rest_logits: log(rho / (1 - rho)) of each body, (..., N).
        rest_scale: tau (..., D).
    """

    arg_constraints: ClassVar = {
        "loc": constraints.real_vector,
        "scale": constraints.independent(constraints.positive, 1),
        "rest_logits": constraints.real_vector,
        "rest_scale": constraints.independent(constraints.positive, 1),
    }
    support = constraints.real_vector
    seen: Tensor | None = None  # which coordinates the density is of, (..., D); None is all

    def __init__(
        self,
        loc: Tensor,
        scale: Tensor,
        rest_logits: Tensor,
        rest_scale: Tensor,
        validate_args: bool | None = None,
    ) -> None:
        self.bodies = N = rest_logits.shape[-1]
        self.axes = loc.shape[-1] // N
        parts = loc, scale, rest_scale, rest_logits
        batch = torch.broadcast_shapes(*(x.shape[:-1] for x in parts))
        self.loc, self.scale, self.rest_scale, self.rest_logits = (
            x.expand(*batch, x.shape[-1]) for x in parts
        )
        super().__init__(batch, loc.shape[-1:], validate_args=validate_args)

    def log_prob(self, value: Tensor) -> Tensor:
        """Log pi(a) (...)."""
        if self._validate_args:
            self._validate_sample(value)
        return self.log_prob_of_bodies(value).sum(-1)

    def log_prob_of_bodies(self, value: Tensor) -> Tensor:
        """Log pi of each body's displacement (..., N), 0 where nothing of a body was seen."""
        seen = self.seen
        moves = Normal(self.loc, self.scale).log_prob(value)
        rests = Normal(torch.zeros_like(self.loc), self.rest_scale).log_prob(value)
        if seen is not None:
            moves, rests = moves * seen, rests * seen
        moves, rests = (x.unflatten(-1, (self.bodies, self.axes)).sum(-1) for x in (moves, rests))
        found = torch.logaddexp(
            F.logsigmoid(-self.rest_logits) + moves, F.logsigmoid(self.rest_logits) + rests
        )
        if seen is None:
            return found
        # exactly 0, and without a gradient, where nothing of a body was seen
        some = seen.unflatten(-1, (self.bodies, self.axes)).any(-1)
        return found.masked_fill(~some, 0.0)

    def sample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:  # noqa: B008
        """Draw a (*sample_shape, ..., D); no gradient goes through the choice to rest."""
        shape = self._extended_shape(sample_shape)
        with torch.no_grad():
            eps = torch.randn(shape, dtype=self.loc.dtype, device=self.loc.device)
            uniform = torch.rand_like(eps[..., : self.bodies])
            rests = self._each(uniform < self.rest_logits.sigmoid())
            return torch.where(rests, self.rest_scale * eps, self.loc + self.scale * eps)

    def expand(
        self, batch_shape: torch.Size, _instance: "RestingNormal | None" = None
    ) -> "RestingNormal":
        """The same for a larger batch."""
        loc, scale, logits, still = (
            x.expand(*batch_shape, x.shape[-1])
            for x in (self.loc, self.scale, self.rest_logits, self.rest_scale)
        )
        return RestingNormal(loc, scale, logits, still, validate_args=False)

    @cached_property
    def rest(self) -> Tensor:
        """Rho of each coordinate's body (..., D)."""
        return self._each(self.rest_logits.sigmoid())

    @property
    def mean(self) -> Tensor:
        """E a (..., D)."""
        return (1 - self.rest) * self.loc

    @property
    def variance(self) -> Tensor:
        """Var a (..., D)."""
        rho = self.rest
        within = (1 - rho) * self.scale**2 + rho * self.rest_scale**2
        return within + rho * (1 - rho) * self.loc**2

    def _each(self, of_bodies: Tensor) -> Tensor:
        """Of each body (..., N), for each of its coordinates (..., D)."""
        return of_bodies.repeat_interleave(self.axes, -1)


Policy: TypeAlias = Independent | RestingNormal  # pi(. | c, z), of the displacements of all


class _Observed(RestingNormal):
    """The marginal density of the coordinates that were seen."""

    def __init__(self, pi: RestingNormal, seen: Tensor | None) -> None:
        super().__init__(pi.loc, pi.scale, pi.rest_logits, pi.rest_scale, validate_args=False)
        self.seen = seen

    def expand(
        self, batch_shape: torch.Size, _instance: RestingNormal | None = None
    ) -> "_Observed":
        return _Observed(super().expand(batch_shape), self.seen)


def gaussian(pi: Policy) -> Normal:
    """The normal of each coordinate (..., D) of a policy without a state of rest.

    Raises:
        ConfigError: If it is none: scores, calibration, costs and planning take it for one.
    """
    inner = pi.base_dist if isinstance(pi, distributions.Independent) else pi
    if not isinstance(inner, distributions.Normal):  # Pyro's or torch's own
        raise ConfigError(
            f"the policy is {type(inner).__name__}; it must be Normal(mu, sigma).to_event(1) or a "
            "RestingNormal"
        )
    return inner


def observed(pi: Policy, seen: Tensor) -> TorchDistribution:
    """The density of the coordinates of an action that were seen, (..., D)."""
    if isinstance(pi, RestingNormal):
        return _Observed(pi, seen)
    return gaussian(pi).mask(seen).to_event(1)


def free(pi: Policy) -> Policy:
    """The policy of free motion, in which a body at rest stays where it is; it has no density."""
    if not isinstance(pi, RestingNormal):
        return pi
    nothing = torch.zeros_like(pi.rest_scale)
    return RestingNormal(pi.loc, pi.scale, pi.rest_logits, nothing, validate_args=False)


def chosen(pi: Policy, eps: Tensor) -> Tensor:
    """The action (..., D) of free motion that these chances lead to.

    Args:
        pi: The policy.
        eps: Standard normal numbers: D, and one more for each body that may rest, which does where
            Phi(eps) < rho.
    """
    if isinstance(pi, RestingNormal):
        noise, choice = eps.split([pi.loc.shape[-1], pi.bodies], -1)
        rests = torch.special.ndtr(choice).repeat_interleave(pi.axes, -1) < pi.rest
        return (pi.loc + pi.scale * noise).masked_fill(rests, 0.0)
    normal = gaussian(pi)
    return normal.loc + normal.scale * eps


def components(pi: Policy) -> list[tuple[Tensor, Normal]]:
    """The density of each coordinate of an action by itself, as shares (..., D) of normals."""
    if isinstance(pi, RestingNormal):
        still = Normal(torch.zeros_like(pi.loc), pi.rest_scale)
        return [(1 - pi.rest, Normal(pi.loc, pi.scale)), (pi.rest, still)]
    normal = gaussian(pi)
    return [(torch.ones_like(normal.loc), normal)]


MOVING, STAYING = -5.0, 8.0  # log odds of rest, and what rest adds to them, where training begins
WIDTH = 4.0  # of what passes for rest, in tau


class Rest(nn.Module):
    """rho_i and tau_i of a policy with a state of rest, given the last displacement d_i.

        log(rho_i / (1 - rho_i)) = -5 + f_i(c, z) + kappa_i exp(-(|d_i| / 4 tau_i)^4)

    f is a network's. It sees displacements in units of a typical one, in which the resolution of a
    recording is some thousandth: whether a body has just rested, it would learn slowly or never.
    The fourth power makes the kernel flat below some 2 tau: d_i at rest is blurred by the
    resolution in training and exactly zero in free motion, and both have to count as rest alike.

    Args:
        kinds: Of each body, a number from 0; tau and kappa are of a kind.
        count: Number of kinds.
        axes: Coordinates of each body.
        floor: The least tau.
    """

    kinds: Tensor

    def __init__(self, kinds: Tensor, count: int, axes: int, floor: float) -> None:
        super().__init__()
        self.register_buffer("kinds", kinds, persistent=False)
        self.axes, self.floor = axes, floor
        self.raw_scale = nn.Parameter(torch.full((count,), math.log(math.expm1(2 * floor))))
        self.kappa = nn.Parameter(torch.full((count,), STAYING))

    def forward(self, loc: Tensor, scale: Tensor, odds: Tensor, last: Tensor) -> RestingNormal:
        """The policy, of mu and sigma (..., D), f (..., N) and the last displacements (..., D)."""
        tau = (F.softplus(self.raw_scale) + self.floor)[self.kinds]
        square = last.unflatten(-1, (-1, self.axes)).square().sum(-1)
        rested = (-(square / (WIDTH * tau) ** 2).square()).exp()
        odds = MOVING + odds + self.kappa[self.kinds] * rested
        return RestingNormal(loc, scale, odds, tau.repeat_interleave(self.axes))
