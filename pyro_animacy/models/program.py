"""What every model here shares: its parameters shown to Pyro, and a guide that is a messenger."""

import weakref
from abc import abstractmethod
from typing import Any

from pyro.distributions.torch_distribution import TorchDistributionMixin
from pyro.poutine import Trace
from pyro.poutine.guide import GuideMessenger
from pyro.poutine.runtime import effectful
from torch import Tensor, nn
from torch.distributions import constraints


def declare_parameters(module: nn.Module) -> None:
    """Show a module's parameters to Pyro's handlers, so that `pyro.infer.SVI` finds them.

    What `pyro.module` does, less the global parameter store: two models never share a parameter
    because their names agree, and nothing is kept when a model goes.
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

    def __call__(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """Run the model under this guide; returns the value of every sample site by name."""
        return GuideMessenger.__call__(self, *args, **kwargs)

    def __enter__(self) -> Any:
        entered = super().__enter__()
        declare_parameters(self)
        return entered

    def _pyro_sample(self, msg: dict) -> None:
        self._evidence = msg["infer"].get("evidence")
        super()._pyro_sample(msg)

    def get_posterior(self, name: str, prior: TorchDistributionMixin) -> TorchDistributionMixin:
        """Return the posterior of the site ``name`` whose prior the model has just declared."""
        return prior if self._evidence is None else self.posterior(prior, self._evidence)

    @abstractmethod
    def posterior(self, prior: TorchDistributionMixin, evidence: Any) -> TorchDistributionMixin:
        """Return q(. | evidence) for a site with this prior."""
