"""The same objective in Pyro as one would first write it: a guide that runs the roll-out again."""

import copy
import math

import pyro
import torch
from pyro import poutine
from pyro.distributions import Normal
from pyro.infer import SVI, TraceMeanField_ELBO
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from benchmarks.plain import PlainControlVAE

LEAST_RATE = 1e-8  # so small that all contenders stay where they were compared


class FirstPyro:
    """Model and guide as two programs, trained by `SVI` with `TraceMeanField_ELBO`.

    beta scales the latents in model and guide, since Pyro takes the scale of an analytic KL from
    the guide and that of the density from the model.

    Args:
        plain: Networks, which are copied.
        kl_weight: beta.
    """

    def __init__(self, plain: PlainControlVAE, kl_weight: float) -> None:
        pyro.clear_param_store()
        self.nets, self.kl_weight = copy.deepcopy(plain), kl_weight
        closed = plain.config.roll_out == "closed_loop"
        model, guide = (
            (self.closed_model, self.closed_guide) if closed else (self.model, self.guide)
        )
        optimizer = pyro.optim.AdamW({"lr": LEAST_RATE})
        self.svi = SVI(model, guide, optimizer, loss=TraceMeanField_ELBO())

    def gradients(self, x: Tensor) -> tuple[float, dict[str, Tensor]]:
        """The loss, and its gradient by name of parameter."""
        for parameter in self.nets.parameters():
            parameter.grad = None
        loss = self.svi.loss_and_grads(self.svi.model, self.svi.guide, x)
        found = {}
        for name, parameter in pyro.get_param_store().named_parameters():
            found[name.removeprefix("nets$$$")] = parameter.grad.clone()
            parameter.grad = None
        return loss, found

    def closed_model(self, x: Tensor) -> None:
        """s_{t+1} = s_t + a_t of the model's own states, and the recording around them."""
        nets = pyro.module("nets", self.nets)
        cfg = nets.config
        k = cfg.history
        s, past = x[k - 1], [x[k - 1 - i] - x[k - 2 - i] for i in range(k - 1)]
        with pyro.plate("trajectory", x.shape[1]):
            for t in pyro.markov(range(len(x) - k)):
                c = torch.cat([s @ nets.view, *past], -1)
                with poutine.scale(scale=cfg.discount**t):
                    with poutine.scale(scale=self.kl_weight):
                        prior = Normal(nets.prior(c), cfg.latent_scale).to_event(1)
                        z = pyro.sample(f"latent_{t}", prior)
                    mu = nets.policy(torch.cat([z, c], -1)) + nets.affine(c)
                    a = pyro.sample(f"action_{t}", Normal(mu, cfg.policy_scale).to_event(1))
                    s, past = s + a, [a, *past][: k - 1]
                    seen = Normal(s, math.sqrt(0.5)).to_event(1)
                    pyro.sample(f"recorded_{t}", seen, obs=x[k + t])
                    expected = (mu**2 + cfg.policy_scale**2).sum(-1)
                    pyro.factor(f"cost_{t}", -cfg.action_cost * expected)

    def closed_guide(self, x: Tensor) -> None:
        """The residual around the prior, along its own roll-out."""
        nets = pyro.module("nets", self.nets)
        cfg = nets.config
        k = cfg.history
        s, past = x[k - 1], [x[k - 1 - i] - x[k - 2 - i] for i in range(k - 1)]
        with pyro.plate("trajectory", x.shape[1]):
            for t in pyro.markov(range(len(x) - k)):
                c = torch.cat([s @ nets.view, *past], -1)
                with poutine.scale(scale=cfg.discount**t):
                    mu_q = nets.posterior(torch.cat([c, x[k + t] - s], -1))
                    with poutine.scale(scale=self.kl_weight):
                        q = Normal(nets.prior(c) + mu_q, cfg.latent_scale).to_event(1)
                        z = pyro.sample(f"latent_{t}", q)
                    mu = nets.policy(torch.cat([z, c], -1)) + nets.affine(c)
                    a = pyro.sample(f"action_{t}", Normal(mu, cfg.policy_scale).to_event(1))
                    s, past = s + a, [a, *past][: k - 1]

    def model(self, x: Tensor) -> None:
        """p(z_t | c_t) and pi(a_t | c_t, z_t), all recorded steps in two plates."""
        nets = pyro.module("nets", self.nets)
        c, a = self._recorded(x)
        T, B, _ = a.shape
        with pyro.plate("time", T, dim=-2), pyro.plate("trajectory", B, dim=-1):
            with poutine.scale(scale=self.kl_weight):
                prior = Normal(nets.prior(c), nets.config.latent_scale).to_event(1)
                z = pyro.sample("latent", prior)
            mean, raw = nets.policy(torch.cat([z, c], -1)).chunk(2, -1)
            policy = Normal(mean + nets.affine(c), F.softplus(raw) + nets.floor)
            pyro.sample("action", policy.to_event(1), obs=a)

    def guide(self, x: Tensor) -> None:
        """q(z_t | c_t, a_t), a residual around the prior."""
        nets = pyro.module("nets", self.nets)
        c, a = self._recorded(x)
        T, B, _ = a.shape
        with (
            pyro.plate("time", T, dim=-2),
            pyro.plate("trajectory", B, dim=-1),
            poutine.scale(scale=self.kl_weight),
        ):
            mu_q, ratio = nets.posterior(torch.cat([c, a], -1)).chunk(2, -1)
            scale = nets.config.latent_scale * ratio.clamp(-7, 3).exp()
            pyro.sample("latent", Normal(nets.prior(c) + mu_q, scale).to_event(1))

    def _recorded(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """c_t and a_t of every recorded step, (T, B, ...)."""
        k, moves = self.nets.config.history, x.diff(dim=0)
        past = [moves[i : len(x) - k + i] for i in range(k - 2, -1, -1)]
        return torch.cat([x[k - 1 : -1] @ self.nets.view, *past], -1), moves[k - 1 :]
