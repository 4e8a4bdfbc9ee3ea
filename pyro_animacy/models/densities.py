"""Densities: their parameters, joined or cut from the gradient, and what an action costs."""

import math
from collections.abc import Callable
from typing import Any

from pyro.distributions import (
    Independent,
    Normal,
    OneHotCategorical,
    OneHotCategoricalStraightThrough,
)
from torch import Tensor
from torch.distributions import Distribution

from pyro_animacy.models.categorical import OneHot
from pyro_animacy.resting import RestingNormal

# The families that can be stacked, compared and cut from the gradient, and their parameters.
PARAMETERS: dict[type, tuple[str, ...]] = {
    Normal: ("loc", "scale"),
    OneHotCategorical: ("logits",),
    OneHotCategoricalStraightThrough: ("logits",),
    OneHot: ("logits",),
    RestingNormal: ("loc", "scale", "rest_logits", "rest_scale"),
}


def stop_gradient(d: Distribution) -> Distribution | None:
    """sg(d), the same distribution as a constant; None where its family is not known here."""
    return rebuilt([d], lambda parameter: parameter[0].detach())


def rebuilt(alike: list[Distribution], join: Callable[[list[Tensor]], Tensor]) -> Any:
    """One distribution whose parameters are those of the given ones, joined.

    None where they differ in family or shape, or the family is not known here.
    """
    bases, dims = zip(*map(base, alike), strict=True)
    first = bases[0]
    names = PARAMETERS.get(type(first))
    if names is None or any(
        type(b) is not type(first) or b.batch_shape != first.batch_shape or n != dims[0]
        or b.event_shape != first.event_shape
        for b, n in zip(bases, dims, strict=True)
    ):  # fmt: skip
        return None
    parameters = {name: join([getattr(b, name) for b in bases]) for name in names}
    return type(first)(**parameters).to_event(dims[0])


def log_prob_in_parts(d: Any, value: Tensor, parts: int) -> Tensor:
    """Log density of each of so many equal parts of an event that are independent of each other.

    Args:
        d: Any density, of which there is one part; or over (..., D), of independent numbers or of
            bodies.
        value: (..., D), body after body.
        parts: Their number.

    Returns:
        (..., parts), whose sum over the last dimension is `log_prob`.
    """
    if parts == 1:
        return d.log_prob(value)[..., None]
    each = d.log_prob_of_bodies if isinstance(d, RestingNormal) else d.base_dist.log_prob
    return each(value).unflatten(-1, (parts, -1)).sum(-1)


def expected_cost(
    mu: Tensor, sigma: Tensor, squared: float, absolute: float, share: Tensor | float = 1.0
) -> Tensor:
    """The expected cost (...) of an action a ~ N(mu, diag sigma^2) of (..., D).

        w_2 E sum_i a_i^2 + w_1 E sum_i |a_i|,      E a_i^2 = mu_i^2 + sigma_i^2,
        E |a_i| = sigma_i sqrt(2 / pi) exp(-mu_i^2 / 2 sigma_i^2) + mu_i erf(mu_i / sigma_i sqrt 2)

    the second the mean of a folded normal (Leone, Nelson & Nottingham, The Folded Normal
    Distribution, Technometrics 3, 1961).

    Args:
        mu: (..., D).
        sigma: (..., D), or as broadcasts to it.
        squared: w_2.
        absolute: w_1.
        share: Of each coordinate, where this normal is one of a mixture.
    """
    cost = squared * (share * (mu**2 + sigma**2)).sum(-1)
    if absolute:
        x = mu / (math.sqrt(2) * sigma)
        folded = math.sqrt(2 / math.pi) * sigma * (-(x**2)).exp() + mu * x.erf()
        cost = cost + absolute * (share * folded).sum(-1)
    return cost


def base(d: Distribution) -> tuple[Any, int]:
    """What lies under `Independent`, and how many of its batch dimensions are event dimensions."""
    inner: Any = d
    dims = 0
    while isinstance(inner, Independent):
        inner, dims = inner.base_dist, dims + inner.reinterpreted_batch_ndims
    return inner, dims


def family_of(d: Distribution) -> str:
    """What a message calls a density: the family of what lies under `Independent`."""
    return type(base(d)[0]).__name__
