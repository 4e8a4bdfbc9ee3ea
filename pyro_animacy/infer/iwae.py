"""The importance-weighted bound: several draws of each step's latent, for a tighter one.

    IWAE_K = sum_t gamma^t E log (1/K) sum_k w_tk,        z_tk ~ q,
    w_tk = p(x_t | z_tk) { p(z_tk) / q(z_tk) }^beta

(Burda, Grosse & Salakhutdinov, Importance Weighted Autoencoders, 2016). With beta = 1 it lies
between the ELBO, K = 1, and log p(x), and rises with K: it asks of the guide to reach what the
model explains, not to be it. A draw that explains the step badly costs next to nothing beside one
that explains it well; under the ELBO of K draws it is one K-th of the loss, so that all z have to
explain what a few do.

The draws are a plate around the program, which is otherwise as it was: priors and posteriors are
computed once, and only what sees z is computed K times. Where a step is of independent parts (each
body of a set with its own latent, which the site's ``infer={"parts": P}`` says), each part has
weights of its own, and the bound is the sum of theirs.

The guide is a residual around the prior, z_k = mu_p + r_k with r_k ~ N(mu_q, sigma_q^2), so that
mu_p has no part in p / q, and the gradient to it is that of log p(x | z). The gradient to what r_k
is drawn from is doubly reparameterised (Tucker, Lawson, Gu & Maddison, Doubly Reparameterized
Gradient Estimators for Monte Carlo Objectives, 2019): without it its signal falls with K. With
w~_k = w_k / sum_j w_j,

    d/dq E log (1/K) sum_k w_k  =  E sum_k { (1 - beta) w~_k + beta w~_k^2 }
                                          (d log w_k / dr_k) (dr_k / dq),

where in d log w_k / dr_k the parameters of q are constant.
"""

from collections.abc import Callable
from typing import Any, cast

import pyro
import torch
from pyro import poutine
from pyro.distributions import Normal
from pyro.distributions.util import scale_and_mask
from pyro.poutine import Trace
from pyro.poutine.guide import GuideMessenger
from pyro.poutine.messenger import Messenger
from torch import Tensor

from pyro_animacy.errors import ConfigError, require
from pyro_animacy.infer.elbo import ScaledELBO, declared, differ
from pyro_animacy.infer.steps import log_mean_exp
from pyro_animacy.models.densities import base, family_of, log_prob_in_parts

DRAWS = -3  # their dimension, in front of time and trajectory


class ImportanceWeightedELBO(ScaledELBO):
    """IWAE_K of a model whose steps are independent given the recording, under a messenger guide.

    Args:
        importance_samples: K.
        kl_weight: beta.
        scale: A constant factor of the whole loss; 1 / (trajectories x steps) gives nats a step.

    Attributes:
        terms: As of `ScaledELBO`, by the mean of the draws: minus the log density of what was
            observed, ``latent``, beta (log q - log p), and ``importance``, what the weights gain
            over the mean, 0 or less. Their sum is the loss.

    Raises:
        ConfigError: If ``importance_samples`` is less than 1.
    """

    def __init__(self, importance_samples: int, kl_weight: float = 1.0, scale: float = 1.0) -> None:
        super().__init__(kl_weight, scale)
        self.importance_samples = importance_samples
        require("", vars(self), ("importance_samples", importance_samples >= 1, "at least 1"))

    def _get_trace(
        self, model: Callable, guide: Callable, args: tuple, kwargs: dict
    ) -> tuple[Trace, Trace]:
        if not isinstance(poutine.unwrap(guide), GuideMessenger):
            raise ConfigError(
                "importance_samples are of a messenger guide, which answers in the model's own "
                "run; of others take pyro.infer.RenyiELBO(alpha=0)"
            )
        plate = pyro.plate("importance_samples", self.importance_samples, dim=DRAWS)
        with plate, _Residuals() as residuals:
            traces = super()._get_trace(model, guide, args, kwargs)
        self._residuals = residuals.drawn
        return traces

    def _differentiable_loss_particle(
        self, model_trace: Trace, guide_trace: Trace
    ) -> tuple[Any, Tensor]:
        beta = self.kl_weight
        sites = declared(model_trace)
        observed = [site for site in sites if site["is_observed"]]
        latents = [site for site in sites if not site["is_observed"]]
        if [site["name"] for site in latents] != [*self._residuals] or len(latents) != 1:
            found = ", ".join(f"{site['name']} ~ {family_of(site['fn'])}" for site in latents)
            raise ConfigError(
                "importance_samples are of one latent, with a normal prior and a normal posterior; "
                f"here are {found or 'none'}: take ScaledELBO (train.importance_samples 1)"
            )
        (site,), (r,) = latents, self._residuals.values()
        posterior, gamma = guide_trace.nodes[site["name"]]["fn"], observed[0]["scale"]
        P = site["infer"].get("parts", 1)
        seen = cast(Tensor, differ(posterior, site["fn"]))[..., None]
        log_x = torch.stack([_log_prob(one["fn"], one, P) for one in observed]).sum(0)
        log_p, log_q = (_log_prob(d, site, P) for d in (site["fn"], _held(posterior, site["fn"])))
        log_ratio = log_p - log_q
        if log_x.shape != log_ratio.shape:
            raise ConfigError(
                "importance_samples: the latents of all steps must be one site, independent given "
                "the recording, so that each is weighted by itself; take ScaledELBO"
            )
        log_ratio = log_ratio.where(seen, 0.0)
        log_w = log_x + beta * log_ratio  # (K, T, B, P)
        bound = log_mean_exp(log_w)
        # the gradient that reaches r_k has been weighted by w~_k once
        again = (1 - beta + beta * log_w.detach().softmax(0)).where(seen, 1.0)
        if r.requires_grad:
            r.register_hook(lambda d: (d.unflatten(-1, (P, -1)) * again[..., None]).flatten(-2))
        parts = {
            "reconstruction": -log_x.mean(0),
            "latent": -beta * log_ratio.mean(0),
            "importance": log_w.mean(0) - bound,
        }
        self.terms = {name: self._total(part.detach(), gamma) for name, part in parts.items()}
        loss = self._total(-bound, gamma)
        return loss.detach(), loss

    def _total(self, each: Tensor, gamma: Any) -> Tensor:
        """Sum over steps and trajectories, each by its scale gamma^t."""
        return self.scale * scale_and_mask(each.sum(-1), gamma).sum()


class _Residuals(Messenger):
    """Draws z = mu_p + r of normal latents under a messenger guide, with r kept by itself."""

    def __init__(self) -> None:
        super().__init__()
        self.drawn: dict[str, Tensor] = {}

    def _pyro_post_sample(self, msg: dict) -> None:
        if msg["is_observed"] or "prior" not in msg["infer"]:
            return
        prior, posterior = base(msg["infer"]["prior"])[0], base(msg["fn"])[0]
        if isinstance(prior, Normal) and isinstance(posterior, Normal):
            r = self.drawn[msg["name"]] = msg["value"] - prior.loc
            msg["value"] = prior.loc + r


def _held(posterior: Any, prior: Any) -> Any:
    """N(mu_p + sg(mu_q), sg(sigma_q^2))."""
    q, mu = base(posterior)[0], base(prior)[0].loc
    return Normal(mu + (q.loc - mu).detach(), q.scale.detach()).to_event(posterior.event_dim)


def _log_prob(density: Any, site: dict, parts: int) -> Tensor:
    """Density of each part at the value of a site, not scaled, 0 where it is masked."""
    mask = site["mask"] if not isinstance(site["mask"], Tensor) else site["mask"][..., None]
    return scale_and_mask(log_prob_in_parts(density, site["value"], parts), mask=mask)
