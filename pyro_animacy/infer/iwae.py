"""The importance-weighted bound: several draws of each step's latent, for a tighter one.

    IWAE_K = sum_t gamma^t E log (1/K) sum_k w_tk,        z_tk ~ q,
    w_tk = p(x_t | z_tk) { p(z_tk) / q(z_tk) }^beta

(Burda, Grosse & Salakhutdinov, Importance Weighted Autoencoders, 2016). With beta = 1 it lies
between the ELBO, K = 1, and log p(x), and rises with K: it asks of the guide to reach what the
model explains, not to be it. A draw that explains the step badly costs next to nothing beside one
that explains it well; under the ELBO its share is 1 / K of the loss, so that what is explained by
few z has to be explained by all.

The draws are a plate around the program, which is otherwise as it was: priors and posteriors are
computed once, and only what sees z is computed K times. The gradient of what q is drawn from is
doubly reparameterised (Tucker, Lawson, Gu & Maddison, Doubly Reparameterized Gradient Estimators
for Monte Carlo Objectives, 2019): without it its signal falls with K. With w~_k = w_k / sum_j w_j,

    d/dq E log (1/K) sum_k w_k  =  E sum_k { (1 - beta) w~_k + beta w~_k^2 }
                                          (d log w_k / dz_k) (dz_k / dq),

where in d log w_k / dz_k the parameters of q are constant.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import pyro
import torch
from pyro.distributions.util import scale_and_mask
from pyro.poutine import Trace
from torch import Tensor

from pyro_animacy.errors import ConfigError, require
from pyro_animacy.infer.elbo import ScaledELBO, differ
from pyro_animacy.models.densities import stop_gradient

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
        with pyro.plate("importance_samples", self.importance_samples, dim=DRAWS):
            return super()._get_trace(model, guide, args, kwargs)

    def _differentiable_loss_particle(
        self, model_trace: Trace, guide_trace: Trace
    ) -> tuple[Any, Tensor]:
        K, beta = self.importance_samples, self.kl_weight
        log_p, log_ratio, drawn = [], [], []  # of x_t given z_tk; of p(z_tk) / q(z_tk): (K, T, B)
        gamma: Any = 1.0
        for name, site in model_trace.nodes.items():
            if site["type"] != "sample" or site["infer"].get("_deterministic"):
                continue
            gamma = site["scale"]
            if site["is_observed"]:
                log_p.append(_log_prob(site["fn"], site))
                continue
            posterior = guide_trace.nodes[name]["fn"]
            q, seen = stop_gradient(posterior), differ(posterior, site["fn"])
            if q is None or seen is None or not posterior.has_rsample:
                raise ConfigError(f"site {name}: its posterior is {posterior}; it must be normal")
            ratio = _log_prob(site["fn"], site) - _log_prob(q, site)
            log_ratio.append(ratio.where(seen, 0.0))  # 0 it is where q = p, its gradient is not
            drawn.append((site["value"], posterior.event_dim))
        if len({each.shape for each in (*log_p, *log_ratio)}) > 1:
            raise ConfigError(
                "importance_samples: the steps are not independent given the recording, so that "
                "each could be weighted by itself; take ScaledELBO"
            )
        reconstruction, latent = -torch.stack(log_p).sum(0), -beta * torch.stack(log_ratio).sum(0)
        log_w = -(reconstruction + latent)
        bound = log_w.logsumexp(0) - math.log(K)
        # the gradient that reaches z_k has been weighted by w~_k once
        again = 1 - beta + beta * log_w.detach().softmax(0)
        for z, dims in drawn:
            if z.requires_grad:
                z.register_hook(partial(torch.mul, again[(..., *[None] * dims)]))
        parts = {
            "reconstruction": reconstruction.mean(0),
            "latent": latent.mean(0),
            "importance": log_w.mean(0) - bound,
        }
        self.terms = {name: self._total(part.detach(), gamma) for name, part in parts.items()}
        loss = self._total(-bound, gamma)
        return loss.detach(), loss

    def _total(self, each: Tensor, gamma: Any) -> Tensor:
        """Sum over steps and trajectories, each by its scale gamma^t."""
        return self.scale * scale_and_mask(each, gamma).sum()


def _log_prob(density: Any, site: dict) -> Tensor:
    """Density at the value of a site, not scaled, 0 where it is masked."""
    return scale_and_mask(density.log_prob(site["value"]), mask=site["mask"])
