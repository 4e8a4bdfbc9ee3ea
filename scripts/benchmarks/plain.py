"""The same losses written by hand in plain PyTorch, as one would who wants them fast.

No Pyro, and no class of the package: its weights only, which both share. All noise is drawn in one
call, what need not wait for the next step is computed for all steps at once after the loop, and the
mixture of experts is one batched product a layer.
"""

import itertools
import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from benchmarks.cases import Noise
from pyro_animacy.models.control_vae import ControlVAE, ControlVAEConfig, ControlVAEGuide
from pyro_animacy.nets import Stack


class Repeating(nn.Module):
    """A multilayer perceptron whose every layer sees the first ``repeat`` inputs again."""

    def __init__(self, layers: Iterable[nn.Module], repeat: int) -> None:
        super().__init__()
        self.layers, self.repeat = nn.ModuleList(layers), repeat

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., inputs) to (..., outputs)."""
        first, *rest = self.layers
        again, h = x[..., : self.repeat], first(x)
        for layer in rest:
            h = layer(torch.cat([again, F.elu(h)], -1))
        return h


class Experts(nn.Module):
    """A mixture of experts, their weights blended by a gate: sum_e g_e (W_e x + b_e) a layer.

    One batched product, an expert each, whose outputs are blended: faster than one product with all
    W_e beside or above one another, and no weight of its own for each row of the batch.
    """

    gate: nn.Module

    def __init__(self, gate: nn.Module, layers: Iterable[Any], repeat: int) -> None:
        super().__init__()
        self.gate, self.layers, self.repeat = gate, nn.ModuleList(layers), repeat

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., inputs) to (..., outputs)."""
        batch, x = x.shape[:-1], x.flatten(0, -2)
        gate, again, h = self.gate(x), x[..., : self.repeat], x
        layers: Any = self.layers
        for i, layer in enumerate(layers):
            if i:
                h = F.elu(h)
                h = torch.cat([again, F.layer_norm(h, h.shape[-1:])], -1)
            every = h.expand(gate.shape[-1], *h.shape)
            every = torch.baddbmm(layer.bias[:, None], every, layer.weight)
            h = torch.einsum("be,ebo->bo", gate, every)
        return h.unflatten(0, batch)


def network(stack: Stack) -> nn.Module:
    """A plain module with the parameters of a stack."""
    if stack.gate is not None:
        return Experts(stack.gate, stack.layers, stack.repeat)
    if stack.repeat:
        return Repeating(stack.layers, stack.repeat)
    alternating = itertools.chain.from_iterable((layer, nn.ELU()) for layer in stack.layers)
    return nn.Sequential(*list(alternating)[:-1])


class PlainControlVAE(nn.Module):
    """The networks of a ControlVAE, sharing its parameters, and its two losses."""

    view: Tensor

    def __init__(self, model: ControlVAE, guide: ControlVAEGuide) -> None:
        super().__init__()
        prior: Any = model.step.prior
        policy: Any = model.step.policy
        residual: Any = guide.residual
        self.prior, self.posterior = network(prior.network), network(residual.network)
        self.policy, self.affine = network(policy.network), policy.affine
        self.register_buffer("view", model.view)
        self.config: ControlVAEConfig = model.config
        self.floor = model.least_scale
        self.policy_scale = model.config.policy_scale or 0.0  # fixed, or the policy's own

    def forward(self, x: Tensor, noise: Noise, kl_weight: float) -> Tensor:
        """The loss of positions x (history + T, B, D)."""
        closed = self.config.roll_out == "closed_loop"
        return (self.closed_loop if closed else self.teacher_forced)(x, noise, kl_weight)

    def closed_loop(self, x: Tensor, noise: Noise, kl_weight: float) -> Tensor:
        """sum_t gamma^t { |s~_{t+1} - s_{t+1}|^2 + beta KL_t + w_a E|a_t|^2 } and constants."""
        cfg = self.config
        k, sigma_p, sigma = cfg.history, cfg.latent_scale, self.policy_scale
        T, B, D = len(x) - k, x.shape[1], x.shape[2]
        s, past = x[k - 1], [x[k - 1 - i] - x[k - 2 - i] for i in range(k - 1)]
        states, residuals, means = [], [], []
        for t in range(T):
            c = torch.cat([s @ self.view, *past], -1)
            mu_q = self.posterior(torch.cat([c, x[k + t] - s], -1))
            z = self.prior(c) + mu_q + sigma_p * noise.latent[t]
            mu = self.policy(torch.cat([z, c], -1)) + self.affine(c)
            a = mu + sigma * noise.action[t]
            s, past = s + a, [a, *past][: k - 1]
            states.append(s)
            residuals.append(mu_q)
            means.append(mu)
        weight = cfg.discount ** torch.arange(T, dtype=x.dtype)
        mu_q, mu = torch.stack(residuals), torch.stack(means)
        error = (x[k:] - torch.stack(states)).square().sum((1, 2)) + B * D / 2 * math.log(math.pi)
        kl = mu_q.square().sum((1, 2)) / (2 * sigma_p**2)
        cost = mu.square().sum((1, 2)) + B * D * sigma**2
        return weight @ (error + kl_weight * kl + cfg.action_cost * cost)

    def teacher_forced(self, x: Tensor, noise: Noise, kl_weight: float) -> Tensor:
        """-sum_t { log pi(a~_t | c_t, z_t) - beta KL_t }, all steps at once."""
        cfg = self.config
        k, sigma_p = cfg.history, cfg.latent_scale
        moves = x.diff(dim=0)
        past = [moves[i : len(x) - k + i] for i in range(k - 2, -1, -1)]
        c, a = torch.cat([x[k - 1 : -1] @ self.view, *past], -1), moves[k - 1 :]
        mu_q, ratio = self.posterior(torch.cat([c, a], -1)).chunk(2, -1)
        ratio = ratio.clamp(-7, 3)
        width = ratio.exp()
        z = self.prior(c) + mu_q + sigma_p * width * noise.latent
        mean, raw = self.policy(torch.cat([z, c], -1)).chunk(2, -1)
        sigma = F.softplus(raw) + self.floor
        kl = (mu_q / sigma_p).square() / 2 + (width.square() - 1) / 2 - ratio
        error = ((a - mean - self.affine(c)) / sigma).square() / 2 + sigma.log()
        return error.sum() + a.numel() / 2 * math.log(2 * math.pi) + kl_weight * kl.sum()
