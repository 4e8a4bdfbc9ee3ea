"""The scaled evidence lower bound: one loss for every model.

    ELBO = sum_t gamma^t { E_q log p(x_t | z_t) - beta KL( q(z_t) || p(z_t) ) }

``gamma^t`` reaches the traces by `pyro.poutine.scale` inside the model; ``beta`` is `kl_weight`.
With beta = 1 this is `pyro.infer.TraceMeanField_ELBO`; it adds the weight, the named terms and
speed: latent sites that repeat over time are stacked and scored in one call instead of T.
"""

from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch
from pyro import poutine
from pyro.distributions import Independent, Normal
from pyro.distributions.util import scale_and_mask
from pyro.infer import TraceMeanField_ELBO
from pyro.infer.util import torch_item
from pyro.poutine import Trace
from pyro.poutine.guide import GuideMessenger
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
        terms: After each evaluation, the terms of that loss by site name less any time index, as
            detached scalars whose sum is the loss: minus the log density of observed sites and
            factors, and ``kl_weight`` times the KL of latent sites.

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
        if not isinstance(messenger, GuideMessenger):
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
        terms: defaultdict[str, list[Tensor]] = defaultdict(list)
        latents: defaultdict[str, list[tuple[dict, dict]]] = defaultdict(list)
        for name, site in model_trace.nodes.items():
            if site["type"] != "sample" or site["infer"].get("_deterministic"):
                continue
            if site["is_observed"]:
                terms[_stem(name)].append(-_log_prob(site).sum())
                continue
            posterior = guide_trace.nodes[name]
            if not posterior["fn"].has_rsample:
                raise NotImplementedError(f"site {name}: ScaledELBO needs reparameterised draws")
            if posterior["fn"] is not site["fn"]:
                latents[_stem(name)].append((posterior, site))
        for stem, pairs in latents.items():
            terms[stem].append(self.kl_weight * _total_kl(pairs))
        for name, site in guide_trace.nodes.items():  # auxiliary draws of the guide
            if site["type"] == "sample" and name not in model_trace.nodes:
                terms[_stem(name)].append(self.kl_weight * _log_prob(site).sum())
        totals = {name: self.scale * torch.stack(parts).sum() for name, parts in terms.items()}
        for name, total in totals.items():
            part = total.detach() / self.num_particles
            self.terms[name] = self.terms[name] + part if name in self.terms else part
        loss = torch.stack([*totals.values()]).sum() if totals else torch.zeros(())
        return loss.detach(), loss


def _stem(name: str) -> str:
    """The name of a site without its time index: ``latent_12`` is ``latent``."""
    stem, _, index = name.rpartition("_")
    return stem if index.isdigit() and stem else name


def _log_prob(site: dict) -> Tensor:
    """Density of an observed site or factor, scaled and masked, of its batch shape."""
    log_prob = site["fn"].log_prob(site["value"], *site["args"], **site["kwargs"])
    return scale_and_mask(log_prob, site["scale"], site["mask"])


def _total_kl(pairs: list[tuple[dict, dict]]) -> Tensor:
    """Sum over sites of scale x KL(q || p); in one call where all are normal and of one shape."""
    sites = [q for q, _ in pairs]
    if all(q["mask"] is None and isinstance(q["scale"], (int, float)) for q in sites):
        q, p = _stacked([q["fn"] for q in sites]), _stacked([p["fn"] for _, p in pairs])
        if q is not None and p is not None:
            kl = kl_divergence(q, p).reshape(len(pairs), -1).sum(1)
            return kl @ kl.new_tensor([q["scale"] for q in sites])
    return sum((_kl(q, p).sum() for q, p in pairs), torch.zeros(()))


def _kl(posterior: dict, prior: dict) -> Tensor:
    """KL(q || p) of one site, analytic where there is a formula, else by its one draw."""
    q, p = posterior["fn"], prior["fn"]
    try:
        kl = kl_divergence(q, p)
    except NotImplementedError:
        value = posterior["value"]
        kl = q.log_prob(value) - p.log_prob(value)
    # The guide's scale, as TraceMeanField_ELBO; under a messenger guide both sites carry the same.
    return scale_and_mask(kl, posterior["scale"], posterior["mask"])


def _stacked(normals: list[Distribution]) -> Independent | None:
    """One normal with a new leading axis over those given; None where they differ in kind."""
    shape, event_dim = normals[0].batch_shape, len(normals[0].event_shape)
    bases = [_normal(d, event_dim) for d in normals if d.batch_shape == shape]
    found = [base for base in bases if base is not None]
    if len(found) < len(normals):
        return None
    loc, scale = torch.stack([d.loc for d in found]), torch.stack([d.scale for d in found])
    return Normal(loc, scale).to_event(event_dim)


def _normal(d: Distribution, event_dim: int) -> Normal | None:
    """The plain normal under ``event_dim`` event dimensions, if that is what ``d`` is."""
    base = d.base_dist if isinstance(d, Independent) else d
    dims = d.reinterpreted_batch_ndims if isinstance(d, Independent) else 0
    return base if type(base) is Normal and dims == event_dim else None
