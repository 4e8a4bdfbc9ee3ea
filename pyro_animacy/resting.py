"""A Gaussian policy with a state of rest.

    r_i ~ Bernoulli(rho_i)                                           does body i rest?
    a_i ~ N(0, tau_i^2 I) if r_i, N(mu_i, diag sigma_i^2) if not

r_i is summed out:

    pi(a) = prod_i [ rho_i N(a_i; 0, tau_i^2 I) + (1 - rho_i) N(a_i; mu_i, diag sigma_i^2) ]

A body that a person holds still, or an animal that waits, takes steps of exactly zero. Recordings
are dequantised by their resolution, and tau_i is what that leaves of such a step. A network that is
to say so by a mean of zero and a small scale says it seldom in free motion.
"""

import math
from functools import cached_property
from typing import ClassVar, TypeAlias

import torch
from pyro.distributions import Independent, Normal, TorchDistribution
from torch import Tensor
from torch.distributions import constraints
from torch.nn import functional as F  # noqa: N812


class RestingNormal(TorchDistribution):
    """pi(a) of bodies that rest or move, over a (..., D), body after body.

    Args:
        loc: mu (..., D).
        scale: sigma (..., D).
        rest_logits: log(rho / (1 - rho)) of each body, (..., N).
        rest_scale: tau (..., D).
        seen: Whether each coordinate is looked at, (..., D); `log_prob` is the marginal density of
            these. All by default.
    """

    arg_constraints: ClassVar = {
        "loc": constraints.real_vector,
        "scale": constraints.independent(constraints.positive, 1),
        "rest_logits": constraints.real_vector,
        "rest_scale": constraints.independent(constraints.positive, 1),
    }
    support = constraints.real_vector

    def __init__(
        self,
        loc: Tensor,
        scale: Tensor,
        rest_logits: Tensor,
        rest_scale: Tensor,
        seen: Tensor | None = None,
        validate_args: bool | None = None,
    ) -> None:
        self.bodies = N = rest_logits.shape[-1]
        self.axes = loc.shape[-1] // N
        parts = loc, scale, rest_scale, rest_logits
        batch = torch.broadcast_shapes(*(x.shape[:-1] for x in parts))
        self.loc, self.scale, self.rest_scale, self.rest_logits = (
            x.expand(*batch, x.shape[-1]) for x in parts
        )
        self.seen = seen
        super().__init__(batch, loc.shape[-1:], validate_args=validate_args)

    def observed(self, seen: Tensor) -> "RestingNormal":
        """The density of the coordinates in ``seen`` (..., D)."""
        return RestingNormal(self.loc, self.scale, self.rest_logits, self.rest_scale, seen)

    def log_prob(self, value: Tensor) -> Tensor:
        """Log pi(a) (...), of the coordinates that are looked at."""
        return self.log_prob_of_bodies(value).sum(-1)

    def log_prob_of_bodies(self, value: Tensor) -> Tensor:
        """Log pi of each body's displacement (..., N), of the coordinates that are looked at."""
        moves = Normal(self.loc, self.scale).log_prob(value)
        rests = Normal(torch.zeros_like(self.loc), self.rest_scale).log_prob(value)
        if self.seen is not None:
            moves, rests = moves * self.seen, rests * self.seen
        moves, rests = (x.unflatten(-1, (self.bodies, self.axes)).sum(-1) for x in (moves, rests))
        found = torch.logaddexp(
            F.logsigmoid(-self.rest_logits) + moves, F.logsigmoid(self.rest_logits) + rests
        )
        if self.seen is None:
            return found
        # exactly 0, and without a gradient, where nothing of a body was seen
        some = self.seen.unflatten(-1, (self.bodies, self.axes)).any(-1)
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
        return RestingNormal(loc, scale, logits, still, self.seen, validate_args=False)

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
        square = (1 - self.rest) * (self.loc**2 + self.scale**2) + self.rest * self.rest_scale**2
        return square - self.mean**2

    def likelier(self, eps: Tensor | float) -> Tensor:
        """The action (..., D) ``eps`` scales from the mean of whichever state is likelier."""
        rests = self._each(self.rest_logits > 0)
        return torch.where(rests, self.rest_scale * eps, self.loc + self.scale * eps)

    def _each(self, of_bodies: Tensor) -> Tensor:
        """Of each body (..., N), for each of its coordinates (..., D)."""
        return of_bodies.repeat_interleave(self.axes, -1)


Policy: TypeAlias = Independent | RestingNormal  # pi(. | c, z), of the displacements of all


def observed(pi: Policy, seen: Tensor) -> TorchDistribution:
    """The density of the coordinates of an action that were seen, (..., D)."""
    if isinstance(pi, RestingNormal):
        return pi.observed(seen)
    return Normal(pi.base_dist.loc, pi.base_dist.scale).mask(seen).to_event(1)


def log_prob_of_bodies(pi: Policy, action: Tensor, seen: Tensor, axes: int) -> Tensor:
    """Log pi of each body's displacement (..., N), of the coordinates that were seen (..., D)."""
    if isinstance(pi, RestingNormal):
        return pi.observed(seen).log_prob_of_bodies(action)
    return (pi.base_dist.log_prob(action) * seen).unflatten(-1, (-1, axes)).sum(-1)


def likelier(pi: Policy, eps: Tensor | float) -> Tensor:
    """The value ``eps`` standard deviations from the mean, of the likelier of two states."""
    if isinstance(pi, RestingNormal):
        return pi.likelier(eps)
    return pi.base_dist.loc + pi.base_dist.scale * eps


def components(pi: Policy) -> list[tuple[Tensor, Normal]]:
    """The density of each coordinate of an action by itself, as shares (..., D) of normals."""
    if isinstance(pi, RestingNormal):
        still = Normal(torch.zeros_like(pi.loc), pi.rest_scale)
        return [(1 - pi.rest, Normal(pi.loc, pi.scale)), (pi.rest, still)]
    return [(torch.ones_like(pi.base_dist.loc), pi.base_dist)]


def at_rest(floor: float, count: int) -> Tensor:
    """Where training begins: tau = 3 floors, of so many bodies or kinds, before softplus."""
    return torch.full((count,), math.log(math.expm1(2 * floor)))
