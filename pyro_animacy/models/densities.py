"""The parameters of densities: joined over several alike, or cut from the gradient."""

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

# The families that can be stacked, compared and cut from the gradient, and their parameters.
PARAMETERS: dict[type, tuple[str, ...]] = {
    Normal: ("loc", "scale"),
    OneHotCategorical: ("logits",),
    OneHotCategoricalStraightThrough: ("logits",),
    OneHot: ("logits",),
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


def base(d: Distribution) -> tuple[Distribution, int]:
    """What lies under `Independent`, and how many of its batch dimensions are event dimensions."""
    inner: Any = d
    dims = 0
    while isinstance(inner, Independent):
        inner, dims = inner.base_dist, dims + inner.reinterpreted_batch_ndims
    return inner, dims
