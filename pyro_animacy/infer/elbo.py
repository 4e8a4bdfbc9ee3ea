"""The scaled evidence lower bound: one loss for every model.

    ELBO = sum_t gamma^t { E_q log p(x_t | z_t) - beta KL_t },        KL_t = KL( q(z_t) || p(z_t) )

``gamma^t`` reaches the traces by `pyro.poutine.scale` inside the model; ``beta`` is `kl_weight`.
With beta = 1 this is `pyro.infer.TraceMeanField_ELBO`; it adds the weight, the named terms and
speed: latent sites that repeat over time are stacked and scored in one call instead of T.

Three options change the KL term. With b the trajectory and sg() a stop of the gradient:

    balance alpha       KL_tb  ->  alpha KL( sg(q) || p ) + (1 - alpha) KL( q || sg(p) )
    free nats F, step   sum_tb gamma^t KL_tb  ->  sum_tb gamma^t max( KL_tb, F )
    free nats F, mean   sum_tb gamma^t KL_tb  ->  W max( sum_tb gamma^t KL_tb / W, F ),
                                                  W = sum_tb gamma^t
    overshooting        KL_tb  ->  beta_1 / D KL_tb
                                   + sum_{d=2..D} beta_d / D  KL( sg(q(z_t)) || p(z_t | z_{t-d}) ),
                        the sum by sites that the model declares itself

Free nats a step are PlaNet's (Hafner et al. 2019), of the mean Dreamer's (Hafner et al. 2020);
balance is DreamerV2's (Hafner et al. 2021, algorithm 2), overshooting PlaNet's (equation 7). Both
sums of the free nats run over the elements that the evidence spoke of: see `ScaledELBO`.

Where q is a residual around p, sg(p) under balance is also what the guide shifts
(`MessengerGuide.prior_held`): alpha's part alone moves the parameters of p, as in DreamerV2.
"""

from collections import defaultdict
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any, Literal, NamedTuple

import torch
from pyro import poutine
from pyro.distributions.util import scale_and_mask
from pyro.infer import TraceMeanField_ELBO
from pyro.infer.util import torch_item
from pyro.poutine import Trace
from pyro.poutine.guide import GuideMessenger
from pyro.poutine.util import prune_subsample_sites
from torch import Tensor
from torch.distributions import Distribution, kl_divergence

from pyro_animacy.errors import ConfigError, require
from pyro_animacy.models.densities import PARAMETERS, base, family_of, rebuilt, stop_gradient
from pyro_animacy.models.program import MessengerGuide, Overshooting


class ScaledELBO(TraceMeanField_ELBO):
    """Evidence lower bound with a weight on the KL terms, their options, and named terms.

    A latent site whose posterior *is* its prior (the same object, as a messenger guide returns
    it) has KL = 0 and costs nothing. Sites named ``name_0, name_1, ...`` are one term ``name``.

    Free nats are charged, and means taken, only where the evidence was seen: an element is left
    out where the site's mask is false, or where every parameter of its posterior equals the
    prior's to rounding, as a guide leaves it that saw nothing. (Of families other than normals
    and one-hot categoricals: where the KL is exactly 0.) So padding changes neither loss nor
    gradient. Where the clip is active the gradient of the KL is zero.

    Free nats and balance apply to each latent term but overshooting's, the sites ``..._ahead_2``,
    ``..._ahead_3``, ..., whose posterior is a constant already.

    Args:
        kl_weight: beta, the weight of every KL term; may be set between steps (annealing).
        scale: A constant factor of the whole loss; 1 / (trajectories x steps) gives nats a step.
        free_nats: F, nats below which the KL of a step, summed over latent dimensions, is not
            lowered any further; 0 is none.
        free_nats_of: What is held at F: each ``step`` of each trajectory, or the ``mean`` over
            the steps and trajectories of a term (and of one particle), weighted by their scales.
        kl_balance: alpha, the share of the gradient that moves the prior towards the posterior;
            the value stays KL(q || p). A `MessengerGuide` then shifts a constant prior, so that the
            prior learns by that share of the KL and by nothing else. None is the plain gradient.
            For normal and one-hot categorical latents.
        overshooting: If not None, the KL terms are weighted by beta_1 / D, and model and guide are
            called with the keyword ``overshooting`` and this object, for the model to declare
            sites that predict further ahead (``latent_ahead_2`` for two steps, ...), scaled by
            beta_d / D. They make one more term, ``latent_ahead``.
        **options: Those of `pyro.infer.TraceMeanField_ELBO` (``num_particles``, ...).

    Attributes:
        terms: After each evaluation, the terms of that loss by site name less any time index, as
            detached scalars whose sum is the loss: minus the log density of observed sites and
            factors, and ``kl_weight`` times the KL of latent sites, after the options.

    Raises:
        ConfigError: If ``kl_weight`` or ``free_nats`` is negative, ``scale`` is not positive,
            ``free_nats_of`` is neither word, or ``kl_balance`` is not between 0 and 1; when
            evaluated, if a latent to be balanced is of a family that cannot be.
    """

    def __init__(
        self,
        kl_weight: float = 1.0,
        scale: float = 1.0,
        *,
        free_nats: float = 0.0,
        free_nats_of: Literal["step", "mean"] = "step",
        kl_balance: float | None = None,
        overshooting: Overshooting | None = None,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        self.kl_weight = kl_weight
        self.scale = scale
        self.free_nats = free_nats
        self.free_nats_of = free_nats_of
        self.kl_balance = kl_balance
        require(
            "",
            vars(self),
            ("kl_weight", kl_weight >= 0, "0 or more"),
            ("scale", scale > 0, "positive"),
            ("free_nats", free_nats >= 0, "0 or more"),
            ("free_nats_of", free_nats_of in ("step", "mean"), "step or mean"),
            ("kl_balance", kl_balance is None or 0 < kl_balance < 1, "in (0, 1), or None"),
        )
        self.overshooting = overshooting
        self.terms: dict[str, Tensor] = {}

    def _get_trace(
        self, model: Callable, guide: Callable, args: tuple, kwargs: dict
    ) -> tuple[Trace, Trace]:
        messenger = poutine.unwrap(guide)
        if not isinstance(messenger, GuideMessenger):
            return super()._get_trace(model, guide, args, kwargs)
        if model is not messenger.model:
            raise ConfigError(
                "a messenger guide runs the model that it was made for, and this is another, or "
                "stands under handlers of its own: make a guide for it, or put the handlers around "
                "the guide"
            )
        held = self.kl_balance is not None and isinstance(messenger, MessengerGuide)
        with messenger.prior_held() if held else nullcontext():
            guide(*args, **kwargs)  # one run makes both traces; densities are scored stacked, later
        model_trace, guide_trace = messenger.get_traces()
        return prune_subsample_sites(model_trace), guide_trace

    def differentiable_loss(
        self, model: Callable, guide: Callable, *args: Any, **kwargs: Any
    ) -> Tensor:
        """Return the loss, ``-scale * ELBO``, as a tensor to be differentiated."""
        self.terms = {}
        if self.overshooting is not None:
            kwargs = {**kwargs, "overshooting": self.overshooting}
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

    def logged(self) -> dict[str, float]:
        """The terms as numbers, for a log: that of the latent as ``kl``, before its weight."""
        terms = {name: value.item() for name, value in self.terms.items()}
        kl, weight = terms.pop("latent", 0.0), self.kl_weight * self._distance_weight("latent")
        return {"kl": kl / weight if weight else 0.0, **terms}

    def _differentiable_loss_particle(
        self, model_trace: Trace, guide_trace: Trace
    ) -> tuple[Any, Tensor]:
        terms: defaultdict[str, list[Tensor]] = defaultdict(list)
        latents: defaultdict[str, list[tuple[dict, dict]]] = defaultdict(list)
        for site in declared(model_trace):
            name = site["name"]
            if site["is_observed"]:
                terms[_stem(name)].append(-_log_prob(site).sum())
                continue
            posterior = guide_trace.nodes[name]
            if not posterior["fn"].has_rsample:
                raise ConfigError(
                    f"site {name}: its posterior, {family_of(posterior['fn'])}, has no "
                    "reparameterised draws, which ScaledELBO needs; sum it out in the "
                    "model's density"
                )
            if posterior["fn"] is not site["fn"]:
                latents[_stem(name)].append((posterior, site))
        for stem, pairs in latents.items():
            weight = self.kl_weight * self._distance_weight(stem)
            terms[stem].append(weight * self._total_kl(stem, pairs))
        for name, site in guide_trace.nodes.items():  # auxiliary draws of the guide
            if site["type"] == "sample" and name not in model_trace.nodes:
                terms[_stem(name)].append(self.kl_weight * _log_prob(site).sum())
        totals = {name: self.scale * torch.stack(parts).sum() for name, parts in terms.items()}
        for name, total in totals.items():
            part = total.detach() / self.num_particles
            self.terms[name] = self.terms[name] + part if name in self.terms else part
        loss = torch.stack([*totals.values()]).sum() if totals else torch.zeros(())
        return loss.detach(), loss

    def _distance_weight(self, stem: str) -> float:
        """beta_1 / D of overshooting; the sites further ahead carry their own weights."""
        if self.overshooting is None or stem.endswith("_ahead"):
            return 1.0
        return self.overshooting.weight(1)

    def _total_kl(self, stem: str, pairs: list[tuple[dict, dict]]) -> Tensor:
        """Sum of scale x KL(q || p) over the sites of a term, with its free nats and balance."""
        plain = stem.endswith("_ahead")  # overshooting: its posterior is a constant already
        F, alpha = (0.0, None) if plain else (self.free_nats, self.kl_balance)
        total = floor = torch.zeros(())
        for sites in _joined(pairs):
            kl = sites.kl() if alpha is None else sites.balanced_kl(alpha)
            if F:
                least = F * sites.seen(kl)
                kl = kl.clamp(min=least) if self.free_nats_of == "step" else kl
                floor = floor + sites.weighted_sum(least)
            total = total + sites.weighted_sum(kl)
        # W max(mean, F) = max(W mean, W F), where W is the sum of the scales of what was seen
        return total.clamp(min=floor) if F and self.free_nats_of == "mean" else total


def declared(trace: Trace) -> list[dict]:
    """The sample sites of a model, observed and latent, less those that are deterministic."""
    nodes = trace.nodes.values()
    return [s for s in nodes if s["type"] == "sample" and not s["infer"].get("_deterministic")]


def _stem(name: str) -> str:
    """The name of a site without its time index: ``latent_12`` is ``latent``."""
    stem, _, index = name.rpartition("_")
    return stem if index.isdigit() and stem else name


def differ(posterior: Distribution, prior: Distribution) -> Tensor | None:
    """Where a posterior is not its prior, of batch shape: where a guide saw the evidence.

    None where their families differ, or are not known here.
    """
    q, p = base(posterior)[0], base(prior)[0]
    names = PARAMETERS.get(type(q))
    if names is None or names != PARAMETERS.get(type(p)):
        return None
    different, batch = [], torch.broadcast_shapes(posterior.batch_shape, prior.batch_shape)
    for name in names:
        one = getattr(q, name)
        other = getattr(p, name).to(one)
        # To rounding: a categorical normalises its logits again when it is built of another's.
        rounding = 8 * torch.finfo(one.dtype).eps
        equal = one.isclose(other, rtol=rounding, atol=rounding)
        different.append(~equal.reshape(*batch, -1).all(-1))
    return torch.stack(different).any(0)


def _log_prob(site: dict) -> Tensor:
    """Density of an observed site or factor, scaled and masked, of its batch shape."""
    log_prob = site["fn"].log_prob(site["value"], *site["args"], **site["kwargs"])
    return scale_and_mask(log_prob, site["scale"], site["mask"])


class _Sites(NamedTuple):
    """Latent sites scored in one call: a single one, or those of a term stacked in front.

    ``scale`` is then a list of numbers, one a site, and ``mask`` stacked alike.
    """

    name: str
    posterior: Distribution
    prior: Distribution
    value: Tensor
    # The guide's, as TraceMeanField_ELBO; under a messenger guide both sites carry the same.
    scale: Any
    mask: Any

    def kl(self) -> Tensor:
        """KL(q || p) of batch shape, analytic where there is a formula, else by its one draw."""
        q, p, z = self.posterior, self.prior, self.value
        try:
            return kl_divergence(q, p)
        except NotImplementedError:
            return q.log_prob(z) - p.log_prob(z)

    def balanced_kl(self, alpha: float) -> Tensor:
        """KL(q || p) whose gradient is alpha's share to p and the rest to q."""
        q, p = self.posterior, self.prior
        fixed_q, fixed_p = stop_gradient(q), stop_gradient(p)
        if fixed_q is None or fixed_p is None:
            raise ConfigError(
                f"kl_balance: the posterior of site {self.name} is {q} and its prior {p}; "
                "they must be normals or one-hot categoricals. Set kl_balance to None"
            )
        return alpha * kl_divergence(fixed_q, p) + (1 - alpha) * kl_divergence(q, fixed_p)

    def seen(self, kl: Tensor) -> Tensor:
        """1 where the posterior is not the prior, 0 where it is: of the shape and type of KL."""
        seen = differ(self.posterior, self.prior)
        return (kl != 0 if seen is None else seen).to(kl)

    def weighted_sum(self, x: Tensor) -> Tensor:
        """Sum of x, of the shape of KL, by the sites' scales, less what is masked."""
        if not isinstance(self.scale, list):
            return scale_and_mask(x, self.scale, self.mask).sum()
        x = x if self.mask is None else x.where(self.mask, 0.0)
        return x.reshape(len(self.scale), -1).sum(1) @ x.new_tensor(self.scale)


def _joined(pairs: list[tuple[dict, dict]]) -> list[_Sites]:
    """The sites of one term, stacked into one where their families and shapes agree."""
    sites, scales = [q for q, _ in pairs], [q["scale"] for q, _ in pairs]
    masks = [q["mask"] for q in sites]
    masked = all(
        torch.is_tensor(q["mask"]) and q["mask"].shape == q["fn"].batch_shape for q in sites
    )
    if all(isinstance(scale, int | float) for scale in scales) and (
        masked or all(mask is None for mask in masks)
    ):
        q = rebuilt([q["fn"] for q in sites], torch.stack)
        p = rebuilt([p["fn"] for _, p in pairs], torch.stack)
        if q is not None and p is not None:
            mask = torch.stack(masks) if masked else None
            # a draw is asked for only where there is no formula, which these families have
            return [_Sites(sites[0]["name"], q, p, torch.empty(0), scales, mask)]
    return [
        _Sites(q["name"], q["fn"], p["fn"], q["value"], q["scale"], q["mask"]) for q, p in pairs
    ]
