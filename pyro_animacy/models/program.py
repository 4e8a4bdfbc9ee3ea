"""What every model here shares: its parameters shown to Pyro, and a guide that is a messenger."""

import weakref
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, NamedTuple

import pyro
import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin
from pyro.poutine import Trace
from pyro.poutine.guide import GuideMessenger
from pyro.poutine.indep_messenger import IndepMessenger
from pyro.poutine.messenger import Messenger
from pyro.poutine.runtime import effectful
from torch import Tensor, nn
from torch.distributions import constraints
from torch.fx.experimental.proxy_tensor import get_proxy_mode

from pyro_animacy.errors import ConfigError, require
from pyro_animacy.models.densities import stop_gradient


class Memory(NamedTuple):
    """m_t, what a model carries from step to step.

    Attributes:
        hidden: h_t (..., H), deterministic; H is 0 where a model has none.
        latent: z_t (..., Z), drawn; categorical groups side by side; Z is 0 where there is none.
    """

    hidden: Tensor
    latent: Tensor

    @classmethod
    def stacked(cls, memories: Sequence["Memory"]) -> "Memory":
        """Those of several steps, with time in front."""
        return cls(*(torch.stack(parts) for parts in zip(*memories, strict=True)))

    def at(self, index: Any) -> "Memory":
        """Those at an index, or a slice, of the first dimension."""
        return Memory(self.hidden[index], self.latent[index])


def no_memory(like: Tensor, shape: Sequence[int], hidden: int, latent: int) -> Memory:
    """The memory before the first step: zeros h (*shape, hidden) and z (*shape, latent)."""
    empty = like.new_zeros(*shape, hidden + latent)
    return Memory(*empty.split((hidden, latent), -1))


def discounts(discount: float, steps: int, like: Tensor) -> Tensor:
    """gamma^t (T, 1), the weights of steps t = 0 .. T - 1 in front of windows."""
    return discount ** torch.arange(steps, dtype=like.dtype, device=like.device)[:, None]


class Evidence(NamedTuple):
    """What a guide may look at, at one site.

    Attributes:
        context: What the prior was conditioned on, c_t (..., C).
        shown: What the recording shows of this step: in a scene the displacement s~_{t+1} - s_t
            (..., D), 0 where not observed.
        seen: Whether it shows anything, of each part of the latent: (..., 1), or where every body
            has a latent of its own (..., N).
        complete: Whether all is known to be seen, so that nothing need be masked.
    """

    context: Tensor
    shown: Tensor
    seen: Tensor
    complete: bool = False

    @property
    def mask(self) -> Tensor | None:
        """Whether the step shows anything, (..., parts); None where all do."""
        return None if self.complete else self.seen

    def at(self, t: int) -> "Evidence":
        """That of one step, of evidence with time in front."""
        return Evidence(self.context[t], self.shown[t], self.seen[t], self.complete)


@dataclass(frozen=True)
class Overshooting:
    """Options of overshooting: the bound also asks what was expected d = 2..D steps ahead.

        (1/D) sum_d beta_d KL( sg q(z_t) || p(z_t | z_{t-d}) )        sg (no gradient) for d > 1

    in place of the one-step KL (Hafner et al., Learning Latent Dynamics for Planning from Pixels,
    2019, equation 7). A step t < d has no term of distance d, so that for D > 1 the loss is a bound
    only up to the first D steps of a window. The gradient stops at the target q(z_t); the sample
    that is rolled on, from q(z_{t-d}), keeps its own.

    Args:
        distance: D; 1 is the plain bound.
        weights: beta_1, ..., beta_D; null for 1 each.
        observation: Weight, besides beta_d / D, of the log density of what was observed, expected
            d > 1 steps ahead.
        reward: Likewise of rewards, where the data has them.
    """

    distance: int = 1
    weights: tuple[float, ...] | None = None
    observation: float = 0.0
    reward: float = 0.0

    def __post_init__(self) -> None:
        """Check the values.

        Raises:
            ConfigError: If a value cannot be used; the message names it.
        """
        require(
            "overshooting.",
            vars(self),
            ("distance", self.distance >= 1, "at least 1"),
            ("observation", self.observation >= 0, "0 or more"),
            ("reward", self.reward >= 0, "0 or more"),
        )
        if self.weights is not None and (
            len(self.weights) != self.distance or min(self.weights) < 0
        ):
            raise ConfigError(
                f"overshooting.weights is {self.weights}; it must be {self.distance} numbers, one "
                "for each distance, none negative"
            )

    def weight(self, d: int) -> float:
        """beta_d / D."""
        return (1.0 if self.weights is None else self.weights[d - 1]) / self.distance


_ALL_SEEN = ContextVar("all_seen", default=False)


@contextmanager
def all_seen(known: bool) -> Iterator[None]:
    """Within, a step that is traced is one of batches in which all was seen, if that is known."""
    token = _ALL_SEEN.set(known)
    try:
        yield
    finally:
        _ALL_SEEN.reset(token)


def all_true(mask: Tensor) -> bool:
    """Whether all are true.

    While a step is being traced, no value of a tensor is known: see `all_seen`.
    """
    return _ALL_SEEN.get() if get_proxy_mode() is not None else bool(mask.all())


def every_trajectory(name: str, trajectories: int) -> IndepMessenger:
    """A plate over the last batch dimension, for the many sites of a loop over time.

    It declares the same independence as `pyro.plate`, but neither subsamples nor broadcasts the
    densities, which have the plate's size already: together these cost more than a small network.
    """
    return IndepMessenger(name, trajectories, -1)


@contextmanager
def every_step(steps: int, trajectories: int) -> Iterator[None]:
    """Plates over time and trajectories, of a latent that is declared at all steps at once."""
    with (
        pyro.plate("latent_time", steps, dim=-2),
        pyro.plate("latent_trajectory", trajectories, dim=-1),
    ):
        yield


def declare_parameters(module: nn.Module) -> None:
    """Show a module's parameters to Pyro's handlers, so that `pyro.infer.SVI` finds them.

    What `pyro.module` does, without the global parameter store: two models never share a parameter
    merely because their names agree, and nothing outlives its model.
    """
    for name, parameter in module.named_parameters():
        parameter.unconstrained = weakref.ref(parameter)  # type: ignore[attr-defined]
        effectful(lambda *_, value=parameter, **__: value, type="param")(
            name, parameter, constraint=constraints.real, name=name
        )


class MessengerGuide(GuideMessenger, nn.Module):
    """A guide that answers each latent site of a model with a posterior, in the model's own run.

    The model hands a site what the guide may look at by ``infer={"evidence": ...}``; a site
    without evidence keeps its prior, and then its KL is zero. Running the guide therefore gives
    the traces of model and guide at once, and the model's prior network is evaluated once.

    Args:
        model: The model; it is not registered as a submodule.
    """

    trace: Trace

    def __init__(self, model: nn.Module) -> None:
        nn.Module.__init__(self)
        GuideMessenger.__init__(self, model)
        self._evidence: Any = None
        self._prior_held = False

    def __call__(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """Run the model under this guide; returns the value of every sample site by name."""
        return GuideMessenger.__call__(self, *args, **kwargs)

    def __enter__(self) -> Any:
        entered = super().__enter__()
        declare_parameters(self)
        return entered

    def _pyro_sample(self, msg: dict) -> None:
        # not by nn.Module.__setattr__, which would check at every site whether it is a parameter
        self.__dict__["_evidence"] = msg["infer"].get("evidence")
        super()._pyro_sample(msg)

    def get_posterior(self, name: str, prior: TorchDistributionMixin) -> TorchDistributionMixin:
        """Return the posterior of the site ``name`` whose prior the model has just declared."""
        if self._evidence is None:
            return prior
        held = stop_gradient(prior) if self._prior_held else None
        return self.posterior(prior if held is None else held, self._evidence)

    @contextmanager
    def prior_held(self) -> Iterator[None]:
        """Within, what `posterior` shifts is the prior as a constant, sg(p).

        The values are the same. The prior's parameters then learn nothing by the posterior or by
        what is drawn from it, only by a KL in which the prior stands itself.
        """
        self._prior_held = True
        try:
            yield
        finally:
            self._prior_held = False

    @abstractmethod
    def posterior(self, prior: TorchDistributionMixin, evidence: Any) -> TorchDistributionMixin:
        """Return q(. | evidence) for a site with this prior."""


class HeldResidual(Messenger):
    """An intervention: z_t = mu_p + sigma_p eps with eps given; other sites take their mean.

    What a model declares goes on from there without chance.

    Args:
        eps: (..., Z), of every site whose name begins with ``latent``, which is Gaussian.
    """

    def __init__(self, eps: Tensor) -> None:
        super().__init__()
        self.eps = eps

    def _pyro_sample(self, msg: dict) -> None:
        latent, fn = msg["name"].startswith("latent"), msg["fn"]
        msg["value"] = fn.base_dist.loc + fn.base_dist.scale * self.eps if latent else fn.mean
        msg["done"] = True
