"""The ControlVAE's loss written by hand in plain PyTorch: no Pyro, no class of the package.

The oracle of the loss and its gradients, and what step times are compared with. It reads only the
weights of the networks.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812


def mlp(stack, x: Tensor) -> Tensor:
    """A plain multilayer perceptron from the weights of a stack."""
    *hidden, last = stack.layers
    for layer in hidden:
        x = F.elu(F.linear(x, layer.weight, layer.bias))
    return F.linear(x, last.weight, last.bias)


def loss(
    model, guide, x: Tensor, kl_weight: float, seen: Tensor | None = None, noise: dict | None = None
) -> dict:
    """Terms of the loss summed over time and trajectories, for positions x (frames, B, D).

    Closed loop or teacher forced, squared error or policy likelihood, as the model's config says;
    ``seen`` (frames, B, D) marks observed coordinates; None where all are. The
    squared error carries the constant of its normal density, D/2 log(pi) a step. ``noise`` gives
    standard normals ``latent`` (T, B, Z) and ``action`` (T, B, D); drawn if absent.
    """

    def standard_normal(name: str, like: Tensor) -> Tensor:
        return torch.randn_like(like) if noise is None else noise[name][t]

    cfg = model.config
    k, gamma, sigma_p = cfg.history, cfg.discount, cfg.latent_scale
    T = len(x) - k
    prior, policy = model.step.prior.network, model.step.policy
    closed = cfg.roll_out == "closed_loop"
    rec = kl = act = x.new_zeros(())
    s = x[k - 1]
    past = [x[k - 1 - i] - x[k - 2 - i] for i in range(k - 1)]
    for t in range(T):
        f = k - 1 + t
        ok = None if seen is None else seen[f + 1]
        if not closed:
            s = x[f]
            past = [x[f - i] - x[f - 1 - i] for i in range(k - 1)]
            if ok is not None:
                ok = ok & seen[f - k + 1 : f + 1].all(0).all(-1, keepdim=True)
        c = torch.cat([s @ model.view, *past], -1)
        mu_p = mlp(prior, c)
        d = x[f + 1] - s if ok is None else torch.where(ok, x[f + 1] - s, 0.0)
        out = mlp(guide.residual.network, torch.cat([c, d], -1))
        if ok is not None:
            out = out * ok.any(-1, keepdim=True)
        if cfg.posterior_scale == "learned":
            mu_q, ratio = out.chunk(2, -1)
            ratio = ratio.clamp(-7, 3)
            z = mu_p + mu_q + sigma_p * ratio.exp() * standard_normal("latent", mu_q)
            kl_t = (mu_q**2 / (2 * sigma_p**2) + ((2 * ratio).exp() - 1) / 2 - ratio).sum()
        else:
            mu_q = out
            z = mu_p + mu_q + sigma_p * standard_normal("latent", mu_q)
            kl_t = (mu_q**2).sum() / (2 * sigma_p**2)
        out = mlp(policy.network, torch.cat([z, c], -1))
        affine = F.linear(c, policy.affine.weight, policy.affine.bias)
        if cfg.policy_scale is None:
            mu, raw = out.chunk(2, -1)
            sigma = F.softplus(raw) + policy.floor
        else:
            mu, sigma = out, cfg.policy_scale * torch.ones_like(out)
        mu = mu + affine
        w = gamma**t
        kl = kl + w * kl_t
        if closed or cfg.likelihood == "squared_error":
            a = mu + sigma * standard_normal("action", mu)
        if cfg.likelihood == "squared_error":
            error = (x[f + 1] - (s + a)) ** 2 + 0.5 * math.log(math.pi)
        else:
            error = ((x[f + 1] - s - mu) / sigma) ** 2 / 2 + sigma.log() + math.log(2 * math.pi) / 2
        rec = rec + w * (error if ok is None else torch.where(ok, error, 0.0)).sum()
        if cfg.action_cost:
            cost = (mu**2 + sigma**2).sum(-1)
            act = act + w * cfg.action_cost * (cost if ok is None else cost * ok.any(-1)).sum()
        if closed:
            s = s + a
            past = [a, *past][: k - 1]
    terms = {"reconstruction": rec, "latent": kl_weight * kl, "action_cost": act}
    return {"loss": sum(terms.values()), **terms}
