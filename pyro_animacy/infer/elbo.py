"""The scaled evidence lower bound: one loss for every model.

    ELBO = sum_t gamma^t { E_q log p(x_t | z_t) - beta KL( q(z_t) || p(z_t) ) }

``gamma^t`` reaches the traces by `pyro.poutine.scale` inside the model; ``beta`` is `kl_weight`.
With beta = 1 this is `pyro.infer.TraceMeanField_ELBO`; it adds the weight, the named terms and
speed: sites that repeat over time are stacked and scored in one call instead of T.
"""

from collections.abc import Callable
from typing import Any

import torch
from pyro import poutine
from pyro.distributions import Independent
from pyro.distributions.util import scale_and_mask
from pyro.infer import TraceMeanField_ELBO
from pyro.infer.util import torch_item
from pyro.poutine import Trace
from pyro.poutine.util import prune_subsample_sites
from torch import Tensor
from torch.distributions import Distribution, kl_divergence

from pyro_animacy.errors import ConfigError


class ScaledELBO(TraceMeanField_ELBO):
    """Evidence lower bound with a weight on the KL terms and named terms.

    A latent site whose posterior *is* its prior (the same object, as a messenger guide returns
    it) has KL = 0 and costs nothing. Sites named ``name_0, name_1, ...`` are one term ``name``.

    Args:
        kl_weight: beta, the weight of every KL term; may be set between steps (annealing).
        scale: A constant factor of the whole loss; 1 / (trajectories x steps) gives nats a step.
        **options: Those of `pyro.infer.TraceMeanField_ELBO` (``num_particles``, ...).

    Attributes:
        terms: After each evaluation, the terms of that loss by site name, as detached scalars
            whose sum is the loss: minus the log density of each observed site or factor, and
            ``kl_weight`` times the KL of each latent site, under its site's stem.

    Raises:
        ConfigError: If ``kl_weight`` is negative or ``scale`` is not positive.
    """

    def __init__(self, kl_weight: float = 1.0, scale: float = 1.0, **options: Any) -> None:
        super().__init__(**options)
        if not kl_weight >= 0:
            raise ConfigError(f"kl_weight is {kl_weight}; expected a number that is not negative")
        if not scale > 0:
            raise ConfigError(f"scale is {scale}; expected a positive number")
        self.kl_weight = kl_weight
        self.scale = scale
        self.terms: dict[str, Tensor] = {}

    def _get_trace(
        self, model: Callable, guide: Callable, args: tuple, kwargs: dict
    ) -> tuple[Trace, Trace]:
        messenger = poutine.unwrap(guide)
        if not isinstance(messenger, poutine.messenger.Messenger):
            return super()._get_trace(model, guide, args, kwargs)
        guide(*args, **kwargs)  # one run makes both traces; densities are left to be scored stacked
        model_trace, guide_trace = messenger.get_traces()
        return prune_subsample_sites(model_trace), guide_trace

    def differentiable_loss(
        self, model: Callable, guide: Callable, *args: Any, **kwargs: Any
    ) -> Tensor:
        """Return the loss, ``-scale * ELBO``, as a tensor to be differentiated."""
        self.terms = {}
        losses = [
            self._differentiable_loss_particle(*traces)[1]
            for traces in self._get_traces(model, guide, args, kwargs)
        ]
        return sum(losses) / self.num_particles

    def loss_and_grads(self, model: Callable, guide: Callable, *args: Any, **kwargs: Any) -> float:
        """Return the loss after adding its gradients to the parameters (what `SVI` calls)."""
        loss = self.differentiable_loss(model, guide, *args, **kwargs)
        if loss.requires_grad:
            loss.backward(retain_graph=self.retain_graph)
        return torch_item(loss)

    def loss(self, model: Callable, guide: Callable, *args: Any, **kwargs: Any) -> float:
        """Return the loss without gradients."""
        with torch.no_grad():
            return torch_item(self.differentiable_loss(model, guide, *args, **kwargs))

    def _differentiable_loss_particle(
        self, model_trace: Trace, guide_trace: Trace
    ) -> tuple[Any, Tensor]:
        terms: dict[str, Tensor] = {}
        repeated: dict[str, list[tuple[dict, dict]]] = {}
        for name, site in model_trace.nodes.items():
            if site["type"] != "sample":
                continue
            if site["is_observed"]:
                terms[name] = -self.scale * _log_prob(site).sum()
                continue
            posterior = guide_trace.nodes[name]
            if posterior["fn"] is not site["fn"]:
                repeated.setdefault(_stem(name), []).append((posterior, site))
        for stem, pairs in repeated.items():
            terms[stem] = self.scale * self.kl_weight * _total_kl(pairs)
        for name, term in terms.items():
            part = term.detach() / self.num_particles
            self.terms[name] = self.terms[name] + part if name in self.terms else part
        loss = torch.stack(list(terms.values())).sum()
        return loss.detach(), loss


def _stem(name: str) -> str:
    """The name of a site without its time index: ``latent_12`` is ``latent``."""
    stem, _, index = name.rpartition("_")
    return stem if index.isdigit() and stem else name


def _log_prob(site: dict) -> Tensor:
    """log p of an observed site or factor, scaled and masked, of its batch shape."""
    log_prob = site["fn"].log_prob(site["value"], *site["args"], **site["kwargs"])
    return scale_and_mask(log_prob, site["scale"], site["mask"])


def _total_kl(pairs: list[tuple[dict, dict]]) -> Tensor:
    """Sum over sites of scale x KL(q || p); in one call where all are of one family and shape."""
    posteriors, priors = [q for q, _ in pairs], [p for _, p in pairs]
    plain = all(q["mask"] is None for q in posteriors)
    if len(pairs) > 1 and plain:
        q = _stacked([site["fn"] for site in posteriors])
        p = _stacked([site["fn"] for site in priors])
        if q is not None and p is not None:
            kl = kl_divergence(q, p).flatten(1).sum(1)
            scales = [site["scale"] for site in posteriors]
            if all(isinstance(scale, (int, float)) for scale in scales):
                return (kl * kl.new_tensor(scales)).sum()
            return sum(k * s for k, s in zip(kl, scales, strict=True))
    return sum(_kl(q, p).sum() for q, p in pairs)


def _kl(posterior: dict, prior: dict) -> Tensor:
    """KL(q || p) of one site, analytic where there is a formula, else by its one draw."""
    q, p = posterior["fn"], prior["fn"]
    try:
        kl = kl_divergence(q, p)
    except NotImplementedError:
        value = posterior["value"]
        kl = q.log_prob(value) - p.log_prob(value)
    # The guide's scale: model and guide share their sites under a messenger guide, and
    # TraceMeanField_ELBO takes the guide's where they differ.
    return scale_and_mask(kl, posterior["scale"], posterior["mask"])


def _stacked(distributions: list[Distribution]) -> Distribution | None:
    """One distribution with a new leading axis over those given; None where they differ in kind."""
    first = distributions[0]
    if any(type(d) is not type(first) or d.batch_shape != first.batch_shape for d in distributions):
        return None
    if isinstance(first, Independent):
        bases = _stacked([d.base_dist for d in distributions])
        return bases and Independent(bases, first.reinterpreted_batch_ndims)
    names = [n for n in first.arg_constraints if n in vars(first)]
    if len(names) != len(first.arg_constraints):
        return None  # a family with alternative parameters (logits, probs): scored site by site
    parameters = {n: torch.stack([getattr(d, n) for d in distributions]) for n in names}
    return type(first)(**parameters)
