"""Every recorded step under a model: draws of z_t, and what each says of the next displacement.

Given the recorded states the steps are independent, so all are looked at in one batch. With draws
z_k of a proposal r,

    log p(a_t | c_t)  =  log E_r [ pi(a_t | c_t, z) p(z | c_t) / r(z) ]

and the same with one body's displacement in place of all: pi is a product over bodies given z_t.
"""

import math
from collections.abc import Iterator
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import pyro
import torch
import xarray as xr
from pyro import poutine
from pyro.distributions import Independent, Normal
from torch import Tensor

from pyro_animacy.data.windows import Batch, Scale, whole
from pyro_animacy.models.control_vae import ControlVAE
from pyro_animacy.models.program import MessengerGuide

Proposal = Literal["posterior", "prior", "defensive"]


class Steps(NamedTuple):
    """Draws of z_t at every step of a batch, teacher forced.

    Attributes:
        prior: p(z_t | c_t), Normal of (T, B, Z).
        posterior: q(z_t | c_t, s~_{t+1}), likewise.
        latent: z_t drawn from the proposal r, (K, T, B, Z).
        log_ratio: log p(z_t | c_t) - log r(z_t), (K, T, B).
        policy: pi(. | c_t, z_t), Normal of (K, T, B, D), in model units.
        log_policy: log pi of each body's recorded displacement, (K, T, B, bodies); of the
            coordinates that were observed.
        seen: Whether each coordinate of the displacement was observed, and its context in full,
            (T, B, D).
    """

    prior: Normal
    posterior: Normal
    latent: Tensor
    log_ratio: Tensor
    policy: Normal
    log_policy: Tensor
    seen: Tensor

    @property
    def log_weight(self) -> Tensor:
        """Log weight, pi(a_t | c_t, z) p(z | c_t) / r(z), of the joint displacement (K, T, B)."""
        return self.log_ratio + self.log_policy.sum(-1)

    @property
    def kl(self) -> Tensor:
        """KL(q(z_t | c_t, s~_{t+1}) || p(z_t | c_t)) of each latent dimension, (T, B, Z) nats."""
        return torch.distributions.kl_divergence(self.posterior, self.prior)


@torch.no_grad()
def draw_steps(
    guide: MessengerGuide, batch: Batch, draws: int, proposal: Proposal = "posterior", axes: int = 2
) -> Steps:
    """Draw z_t at every step of a batch from the recorded context.

    Args:
        guide: The guide, bound to its model.
        batch: Windows of ``history + T`` frames.
        draws: K, the number of draws.
        proposal: r. ``posterior``: the guide's q, the sharpest for the joint displacement.
            ``prior``: p, for predictions that have not seen it. ``defensive``: draws from both,
            weighted by their mixture r = (q + p) / 2, so that no weight exceeds 2 pi: for a part
            of the displacement, of which q knows too much (Owen & Zhou 2000, section 3).
        axes: Coordinates of each body.
    """
    model: ControlVAE = guide.model  # type: ignore[assignment]
    guide(batch, score=True)
    model_trace, guide_trace = guide.get_traces()  # type: ignore[operator]
    p, q = (trace.nodes["latent"]["fn"] for trace in (model_trace, guide_trace))
    if proposal == "defensive":
        half = draws // 2
        z = torch.cat([q.rsample((half,)), p.rsample((draws - half,))])
        share = torch.tensor([half / draws, 1 - half / draws]).log()
        log_r = torch.logaddexp(share[0] + q.log_prob(z), share[1] + p.log_prob(z))
    else:
        r = q if proposal == "posterior" else p
        z = r.rsample((draws,))  # `sample` would refuse scales that are not numbers
        log_r = r.log_prob(z)
    with pyro.plate("draws", draws, dim=-3):
        declared = poutine.trace(poutine.condition(model, {"latent": z}))
        pi = declared.get_trace(batch, score=True).nodes["reconstruction"]
    each = pi["fn"].base_dist.log_prob(pi["value"])  # 0 where not observed
    evidence = model.evidence(batch)
    observed = model.recorded(batch)[2] & evidence.seen[..., None]
    return Steps(
        prior=_normal(p), posterior=_normal(q), latent=z, log_ratio=p.log_prob(z) - log_r,
        policy=pi["fn"].base_dist.base_dist,
        log_policy=each.unflatten(-1, (-1, axes)).sum(-1), seen=observed,
    )  # fmt: skip


def _normal(distribution: Independent) -> Normal:
    return distribution.base_dist


def log_mean_exp(log_weight: Tensor) -> Tensor:
    """Log of the mean, (1/K) sum_k w_k over the first dimension."""
    return log_weight.logsumexp(0) - math.log(len(log_weight))


def evenly(count: int, most: int) -> npt.NDArray[np.int64]:
    """Numbers of ``most`` of ``count`` things, evenly spaced from the first to the last; or all."""
    return np.linspace(0, count - 1, min(count, most)).round().astype(np.int64)


def trajectory_batches(
    dataset: xr.Dataset, scale: Scale, size: int = 16_384
) -> Iterator[tuple[slice, Batch]]:
    """Whole trajectories from their first frames, some at a time: their rows, and their batch.

    Args:
        dataset: Recordings; dequantise them first for densities.
        scale: The model's scale.
        size: Trajectories x frames in a batch at most, unless one trajectory has more.
    """
    several = max(1, size // dataset.sizes["time"])
    for first in range(0, dataset.sizes["trajectory"], several):
        rows = slice(first, min(first + several, dataset.sizes["trajectory"]))
        yield rows, whole(dataset.isel(trajectory=rows), scale)
