"""The same objective in NumPyro on JAX, its update compiled by XLA.

Two programs of the closed loop. `SeparateGuide` is what a NumPyro user writes: model and guide each
scan over time, so that the guide runs the roll-out too. `OneScan` is the least XLA can be given:
the noise is the latent variable (a non-centred program, whose guide is its prior) and one scan
makes roll-out and terms. Teacher forced there is no scan, and only the first.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import optax
import torch
from jax import lax, random
from numpyro import distributions as dist
from numpyro import handlers
from numpyro.contrib.control_flow import scan
from numpyro.infer import SVI, TraceMeanField_ELBO

from benchmarks.cases import Noise
from benchmarks.first_pyro import LEAST_RATE
from benchmarks.plain import PlainControlVAE

Arrays = Mapping[str, jax.Array]
Layers = list[tuple[jax.Array, jax.Array]]


def to_jax(named: Mapping[str, torch.Tensor]) -> dict[str, jax.Array]:
    """Tensors by name as arrays; weights of affine maps as (in, out)."""
    arrays = {name: value.detach().numpy() for name, value in named.items()}
    return {name: jnp.array(_turned(name, value)) for name, value in arrays.items()}


def to_torch(named: Arrays) -> dict[str, torch.Tensor]:
    """What `to_jax` was given."""
    arrays = {name: np.array(value) for name, value in named.items()}
    return {name: torch.from_numpy(_turned(name, value).copy()) for name, value in arrays.items()}


def _turned(name: str, value: np.ndarray) -> np.ndarray:
    return value.T if name.endswith("weight") and value.ndim == 2 else value


class NumPyroControlVAE:
    """The ControlVAE's networks in JAX, and what its NumPyro programs share.

    Args:
        plain: Networks, whose parameters are copied.
        x: Positions (history + T, B, D).
        kl_weight: beta.
    """

    def __init__(self, plain: PlainControlVAE, x: torch.Tensor, kl_weight: float) -> None:
        self.config, self.kl_weight, self.floor = plain.config, kl_weight, plain.floor
        self.policy_scale = plain.policy_scale
        self.view, self.x = jnp.array(plain.view.numpy()), jnp.array(x.numpy())
        self.initial = to_jax(dict(plain.named_parameters()))
        self.repeat = {
            name: getattr(getattr(plain, name), "repeat", 0)
            for name in ("prior", "posterior", "policy")
        }
        T = len(x) - plain.config.history
        self.weight = (plain.config.discount ** jnp.arange(T))[:, None]
        optimizer = numpyro.optim.optax_to_numpyro(optax.adamw(LEAST_RATE))
        self.svi = SVI(self.model, self.guide, optimizer, TraceMeanField_ELBO())
        self.state = jax.jit(self.svi.init)(random.key(0), self.x)
        self.update = jax.jit(self.svi.update, donate_argnums=0)

    def step(self) -> None:
        """One update, to its end."""
        self.state, loss = self.update(self.state, self.x)
        jax.block_until_ready((self.state, loss))

    def gradients(self) -> tuple[float, dict[str, torch.Tensor], Noise]:
        """Loss and gradient at a random key, and the noise that this key made."""
        key = random.key(7)

        def loss(parameters: dict) -> jax.Array:
            return TraceMeanField_ELBO().loss(key, parameters, self.model, self.guide, self.x)

        parameters = {"networks": self.initial}
        value, gradient = jax.jit(jax.value_and_grad(loss))(parameters)

        def drawn(parameters: dict) -> tuple[jax.Array, jax.Array]:
            _, guide_key = random.split(key)  # as the ELBO splits it
            program = handlers.substitute(handlers.seed(self.guide, guide_key), data=parameters)
            return self.noise_of(handlers.trace(program).get_trace(self.x))

        noise = Noise(*(torch.from_numpy(np.array(n)) for n in jax.jit(drawn)(parameters)))
        return float(value), to_torch(gradient["networks"]), noise

    def noise_of(self, trace: Mapping[str, Any]) -> tuple[jax.Array, jax.Array]:
        """Standard normals behind a trace of the guide."""

        def standard(name: str) -> jax.Array:
            if name not in trace:
                return jnp.zeros((len(self.weight), *self.x.shape[1:]))
            normal = trace[name]["fn"].base_dist
            return (trace[name]["value"] - normal.loc) / normal.scale

        return standard("latent"), standard("action")

    def model(self, x: jax.Array) -> None:
        """The model."""
        raise NotImplementedError

    def guide(self, x: jax.Array) -> None:
        """The guide."""
        raise NotImplementedError

    def networks(self) -> dict[str, Callable[[jax.Array], jax.Array]]:
        """The networks with the parameters of the site ``networks``."""
        p = numpyro.param("networks", self.initial)
        found = {name: self._network(p, name) for name in self.repeat}
        return found | {"affine": lambda x: x @ p["affine.weight"] + p["affine.bias"]}

    def _network(self, p: Arrays, name: str) -> Callable[[jax.Array], jax.Array]:
        repeat = self.repeat[name]
        if f"{name}.gate.0.weight" in p:
            gate, experts = _layers(p, f"{name}.gate."), _layers(p, f"{name}.layers.")
            return lambda x: _experts(x, gate, experts, repeat)
        layers = _layers(p, f"{name}.")
        return lambda x: _perceptron(x, layers, repeat)

    def begin(self, x: jax.Array) -> tuple[jax.Array, list[jax.Array]]:
        """s_0 and the displacements before it, newest first."""
        k = self.config.history
        return x[k - 1], [x[k - 1 - i] - x[k - 2 - i] for i in range(k - 1)]

    def context(self, s: jax.Array, past: list[jax.Array]) -> jax.Array:
        """c_t."""
        return jnp.concatenate([s @ self.view, *past], -1)


class SeparateGuide(NumPyroControlVAE):
    """Model and guide as two programs; the guide's draws are replayed in the model."""

    def _closed(self, x: jax.Array, guided: bool) -> tuple[jax.Array, jax.Array]:
        """Declare z_t and a_t along the roll-out; returns s_{1..T} and the policy's means."""
        cfg, nets = self.config, self.networks()

        def step(carry: tuple, target: jax.Array) -> tuple:
            s, past = carry
            c = self.context(s, past)
            loc = nets["prior"](c)
            if guided:
                loc = loc + nets["posterior"](jnp.concatenate([c, target - s], -1))
            z = numpyro.sample("latent", dist.Normal(loc, cfg.latent_scale).to_event(1))
            mu = nets["policy"](jnp.concatenate([z, c], -1)) + nets["affine"](c)
            a = numpyro.sample("action", dist.Normal(mu, self.policy_scale).to_event(1))
            s = s + a
            return (s, [a, *past][: cfg.history - 1]), (s, mu)

        with handlers.scale(scale=self.kl_weight * self.weight):
            _, rolled = scan(step, self.begin(x), x[cfg.history :])
        return rolled

    def _teacher_forced(self, x: jax.Array, guided: bool) -> None:
        cfg, nets = self.config, self.networks()
        k, moves = cfg.history, jnp.diff(x, axis=0)
        past = [moves[i : len(x) - k + i] for i in range(k - 2, -1, -1)]
        c, shown = self.context(x[k - 1 : -1], past), moves[k - 1 :]
        loc, scale = nets["prior"](c), jnp.array(cfg.latent_scale)
        if guided:
            mu_q, ratio = jnp.split(nets["posterior"](jnp.concatenate([c, shown], -1)), 2, -1)
            loc, scale = loc + mu_q, scale * jnp.exp(ratio.clip(-7, 3))
        T, B, _ = shown.shape
        with numpyro.plate("time", T, dim=-2), numpyro.plate("trajectory", B, dim=-1):
            with handlers.scale(scale=self.kl_weight):
                z = numpyro.sample("latent", dist.Normal(loc, scale).to_event(1))
            if not guided:
                mean, raw = jnp.split(nets["policy"](jnp.concatenate([z, c], -1)), 2, -1)
                pi = dist.Normal(mean + nets["affine"](c), jax.nn.softplus(raw) + self.floor)
                numpyro.sample("action", pi.to_event(1), obs=shown)

    def model(self, x: jax.Array) -> None:
        """p(z, a, s~)."""
        cfg = self.config
        if cfg.roll_out == "teacher_forced":
            return self._teacher_forced(x, guided=False)
        states, mu = self._closed(x, guided=False)
        with handlers.scale(scale=self.weight):
            seen = dist.Normal(states, math.sqrt(0.5)).to_event(1)
            numpyro.sample("recorded", seen, obs=x[cfg.history :])
            expected = (mu**2 + self.policy_scale**2).sum(-1)
            numpyro.factor("cost", -cfg.action_cost * expected)
        return None

    def guide(self, x: jax.Array) -> None:
        """q(z, a)."""
        closed = self.config.roll_out == "closed_loop"
        (self._closed if closed else self._teacher_forced)(x, guided=True)


class OneScan(NumPyroControlVAE):
    """Noise as the latent variable, and one `jax.lax.scan` for the roll-out and all its terms."""

    def _noise(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        T, B, D = len(self.weight), x.shape[1], x.shape[2]
        sizes = {"latent": (T, B, self.config.latent_size), "action": (T, B, D)}
        drawn = {
            name: numpyro.sample(name, dist.Normal(0, 1).expand(size).to_event(3))
            for name, size in sizes.items()
        }
        return drawn["latent"], drawn["action"]

    def noise_of(self, trace: Mapping[str, Any]) -> tuple[jax.Array, jax.Array]:
        """The latent variables themselves."""
        return trace["latent"]["value"], trace["action"]["value"]

    def guide(self, x: jax.Array) -> None:
        """The prior of the noise."""
        self._noise(x)
        self.networks()

    def model(self, x: jax.Array) -> None:
        """The noise, and the terms as one factor."""
        cfg, nets, (eps_z, eps_a) = self.config, self.networks(), self._noise(x)

        def step(carry: tuple, now: tuple) -> tuple:
            (s, past), (target, noise_z, noise_a) = carry, now
            c = self.context(s, past)
            mu_q = nets["posterior"](jnp.concatenate([c, target - s], -1))
            z = nets["prior"](c) + mu_q + cfg.latent_scale * noise_z
            mu = nets["policy"](jnp.concatenate([z, c], -1)) + nets["affine"](c)
            a = mu + self.policy_scale * noise_a
            s = s + a
            return (s, [a, *past][: cfg.history - 1]), (s, mu, mu_q)

        target = x[cfg.history :]
        _, (states, mu, mu_q) = lax.scan(step, self.begin(x), (target, eps_z, eps_a))
        log_p = dist.Normal(states, math.sqrt(0.5)).to_event(1).log_prob(target)
        kl = (mu_q**2).sum(-1) / (2 * cfg.latent_scale**2)
        cost = cfg.action_cost * (mu**2 + self.policy_scale**2).sum(-1)
        numpyro.factor("terms", (self.weight * (log_p - self.kl_weight * kl - cost)).sum())


def _layers(p: Arrays, prefix: str) -> Layers:
    """(weight, bias) of the layers whose names begin so, in order."""
    own = [n for n in p if n.startswith(prefix) and n.endswith(".weight")]
    own.sort(key=lambda name: int(name.split(".")[-2]))
    return [(p[name], p[name.removesuffix("weight") + "bias"]) for name in own]


def _perceptron(x: jax.Array, layers: Layers, repeat: int = 0) -> jax.Array:
    h = x
    for i, (weight, bias) in enumerate(layers):
        if i:
            h = jax.nn.elu(h)
            h = jnp.concatenate([x[..., :repeat], h], -1) if repeat else h
        h = h @ weight + bias
    return h


def _experts(x: jax.Array, gate: Layers, layers: Layers, repeat: int) -> jax.Array:
    g, h = jax.nn.softmax(_perceptron(x, gate)), x
    for i, (weight, bias) in enumerate(layers):
        if i:
            h = jax.nn.standardize(jax.nn.elu(h), epsilon=1e-5)
            h = jnp.concatenate([x[..., :repeat], h], -1)
        outer = (g[..., None] * h[..., None, :]).reshape(*h.shape[:-1], -1)
        h = outer @ weight.reshape(-1, weight.shape[-1]) + g @ bias
    return h
