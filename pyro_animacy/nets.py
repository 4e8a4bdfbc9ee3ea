"""Networks. Each returns a distribution, so that nobody slices a (mean, scale) tensor later.

One stack serves all: `Stack` is a multilayer perceptron, or, with ``experts > 1``, a mixture of
experts. Its skip connections hand the input (or the part of it named by ``repeat``) to every
layer again, as in the ControlVAE code (Yao et al. 2022).
"""

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from typing import Any, Literal

import torch
from pyro.distributions import Independent, Normal
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from pyro_animacy.errors import require
from pyro_animacy.resting import Policy, Rest

Activation = Literal["elu", "relu", "silu"]


def _in_place(function: Callable[..., Tensor], x: Tensor) -> Tensor:
    """Apply in place, since nobody else reads an affine map's output.

    Not to a view, whose gradient autograd would copy.
    """
    return function(x, inplace=not x._is_view())


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "elu": partial(_in_place, F.elu), "relu": partial(_in_place, F.relu), "silu": F.silu,
}  # fmt: skip


@dataclass(frozen=True)
class StackConfig:
    """Sizes of a network.

    Args:
        hidden: Units in each hidden layer.
        layers: Number of hidden layers; 0 is an affine map.
        activation: Nonlinearity after each hidden layer.
        repeat_input: Give the repeated input to every layer again, not only to the first.
        experts: Number of experts; 1 is a plain multilayer perceptron.
        blend: What the gate mixes: the experts' ``weights``, layer by layer, or their ``outputs``.
        gate_hidden: Units in each of the gate's two hidden layers.
        layer_norm: Normalise hidden activations (without learned gain) before each later layer.
    """

    hidden: int = 128
    layers: int = 2
    activation: Activation = "elu"
    repeat_input: bool = False
    experts: int = 1
    blend: Literal["weights", "outputs"] = "weights"
    gate_hidden: int = 64
    layer_norm: bool = False

    def __post_init__(self) -> None:
        """Check the sizes.

        Raises:
            ConfigError: If a size cannot be used; the message names it.
        """
        require(
            "a network's ",
            vars(self),
            ("hidden", self.hidden >= 1, "at least 1"),
            ("layers", self.layers >= 0, "0 or more"),
            ("experts", self.experts >= 1, "at least 1"),
            ("gate_hidden", self.gate_hidden >= 1, "at least 1"),
        )


class ExpertLinear(nn.Module):
    """E affine maps side by side: (..., E, in) or (..., in) to (..., E, out)."""

    def __init__(self, experts: int, inputs: int, outputs: int) -> None:
        super().__init__()
        bound = 1 / math.sqrt(inputs)
        self.weight = nn.Parameter(torch.empty(experts, inputs, outputs).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(experts, outputs).uniform_(-bound, bound))

    def forward(self, x: Tensor) -> Tensor:
        """Apply every expert to one input (..., E, in), where E may be 1 to share the input."""
        return (
            torch.einsum(
                "...ei,eio->...eo", x.expand(*x.shape[:-2], *self.bias.shape[:1], -1), self.weight
            )
            + self.bias
        )

    def blended(self, x: Tensor, gate: Tensor) -> Tensor:
        """The map with weights sum_e g_e W_e, for x (..., in) and gate (..., E).

        A blend of weights is linear in x, so it equals the blend of this layer's outputs:
        (sum_e g_e W_e) x = sum_e g_e (W_e x). No per-sample weight matrix is formed.
        """
        experts, inputs, outputs = self.weight.shape
        every = x @ self.weight.permute(1, 0, 2).reshape(inputs, experts * outputs)
        every = every.unflatten(-1, (experts, outputs)) + self.bias
        return (gate.unsqueeze(-2) @ every).squeeze(-2)


class Stack(nn.Module):
    """A multilayer perceptron, or a gated mixture of them: (..., inputs) to (..., outputs).

    Args:
        inputs: Size of the input.
        outputs: Size of the output.
        config: Sizes.
        repeat: Size of the leading part of the input that every layer sees again when
            ``repeat_input`` is set; the whole input by default. The policy repeats the latent.
    """

    def __init__(
        self, inputs: int, outputs: int, config: StackConfig, repeat: int | None = None
    ) -> None:
        super().__init__()
        self.config = config
        self.repeat = (inputs if repeat is None else repeat) if config.repeat_input else 0
        sizes = [inputs] + [config.hidden + self.repeat] * config.layers
        widths = [config.hidden] * config.layers + [outputs]
        self.gate: nn.Module | None
        self.layers = nn.ModuleList()
        if config.experts == 1:
            self.gate = None
            for i, o in zip(sizes, widths, strict=True):
                self.layers.append(nn.Linear(i, o))
        else:
            size = config.gate_hidden
            self.gate = nn.Sequential(
                nn.Linear(inputs, size), nn.ELU(), nn.Linear(size, size), nn.ELU(),
                nn.Linear(size, config.experts), nn.Softmax(-1),
            )  # fmt: skip
            for i, o in zip(sizes, widths, strict=True):
                self.layers.append(ExpertLinear(config.experts, i, o))

    def forward(self, x: Tensor, also: Tensor | None = None) -> Tensor:
        """Map x (..., inputs) to (..., outputs); or x and, after it, what else is of the input.

        That may have fewer leading axes than x, such as no draws.
        """
        shape = x.shape[:-1]
        if also is not None:
            each, plain = also.shape[:-1], not (self.gate or self.repeat)
            if plain and 0 < len(each) < len(shape) and shape[-len(each) :] == each:
                return self._shared(x, also).view(*shape, -1)
            x = torch.cat([x, also.expand(*shape, -1)], -1)
        # once for all layers, whose outputs are then no views
        out = self._flat(x.flatten(0, -2) if x.dim() > 2 else x)
        return out.view(*shape, out.shape[-1])

    def _flat(self, x: Tensor) -> Tensor:
        if self.gate is None:
            return self._run(x, _affine)
        gate = self.gate(x)
        if self.config.blend == "weights":
            return self._run(x, lambda layer, h: layer.blended(h, gate))
        every = self._run(x.unsqueeze(-2), lambda layer, h: layer(h))
        return (gate.unsqueeze(-2) @ every).squeeze(-2)

    def _shared(self, x: Tensor, c: Tensor) -> Tensor:
        """Of many x for each c: the first layer is W x + (V c + b), the latter computed once."""
        first: Any = self.layers[0]
        W, V = first.weight.split([x.shape[-1], c.shape[-1]], -1)
        known = F.linear(c.flatten(0, -2), V, first.bias)
        h = F.linear(x.flatten(0, -2), W).view(-1, *known.shape) + known
        return self._run(h, lambda f, h: h if f is first else _affine(f, h.flatten(0, -2)))

    def _run(self, x: Tensor, apply: Callable[[Any, Tensor], Tensor]) -> Tensor:
        activation = ACTIVATIONS[self.config.activation]
        h = x
        for index, layer in enumerate(self.layers):
            if index:
                h = activation(h)
                if self.config.layer_norm:
                    h = F.layer_norm(h, h.shape[-1:])
                if self.repeat:
                    again = x[..., : self.repeat]
                    h = torch.cat([again.expand(*h.shape[:-1], -1), h], -1)
            h = apply(layer, h)
        return h


def _affine(layer: nn.Linear, x: Tensor) -> Tensor:
    """What the layer does; to call a module costs about half as much again at these sizes."""
    return F.linear(x, layer.weight, layer.bias)


class NormalisedGRUCell(nn.Module):
    """A GRU with layer norm, as in DreamerV2's code (Hafner et al. 2021).

        r, c, u = LayerNorm(W [x, h])
        h' = v tanh(sigmoid(r) c) + (1 - v) h,   v = sigmoid(u - 1)

    The -1 makes it remember where training begins.

    Args:
        input_size: Size of x.
        hidden_size: H, size of h.
    """

    def __init__(self, input_size: int, hidden_size: int) -> None:
        super().__init__()
        self.linear = nn.Linear(input_size + hidden_size, 3 * hidden_size, bias=False)
        self.norm = nn.LayerNorm(3 * hidden_size, eps=1e-3)

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        """The next h (B, H), of x (B, input_size) and h (B, H)."""
        r, c, u = self.norm(self.linear(torch.cat([x, h], -1))).chunk(3, -1)
        v = (u - 1).sigmoid()
        return v * (r.sigmoid() * c).tanh() + (1 - v) * h


def positive(raw: Tensor) -> Tensor:
    """Softplus of half an output: put together first, for torch's takes 3 to 10 times as long."""
    return F.softplus(raw.contiguous())


def normal(loc: Tensor, scale: Tensor | float) -> Independent:
    """N(loc, diag(scale^2)) over the last axis of ``loc`` (..., size)."""
    if not isinstance(scale, Tensor):
        scale = _constant(scale, loc.dtype, loc.device)
    return Normal(loc, scale).to_event(1)


@cache
def _constant(value: float, dtype: torch.dtype, device: torch.device) -> Tensor:
    """A number as a tensor, made once: in a loop over time to make it costs as much as a layer."""
    with torch.inference_mode(False):  # it outlives the mode of whoever asks first
        return torch.tensor(value, dtype=dtype, device=device)


def constant(network: nn.Module) -> nn.Module:
    """The network with its present parameters as constants: a gradient goes through, not into it.

    A copy that shares their memory, and may recompute its activations as the network does.
    """
    return copy.deepcopy(network, {id(p): p.detach() for p in network.parameters()})


class FixedScaleNormal(nn.Module):
    """N(f(x), scale^2 I): the mean is a network, the standard deviation is given."""

    def __init__(self, network: nn.Module, scale: float) -> None:
        super().__init__()
        self.network = network
        self.scale = scale

    def forward(self, x: Tensor) -> Independent:
        """Return the distribution with batch shape (...) and event shape (size,)."""
        return normal(self.network(x), self.scale)


class LearnedNormal(nn.Module):
    """N(f(x), sigma(x)^2 I): mean and standard deviation are the halves of a network's output.

    Args:
        network: Gives the mean, and the standard deviation before softplus.
        floor: Added to it, the least standard deviation.
    """

    def __init__(self, network: nn.Module, floor: float) -> None:
        super().__init__()
        self.network, self.floor = network, floor

    def forward(self, x: Tensor) -> Independent:
        """Return the distribution with batch shape (...) and event shape (size,)."""
        mean, raw = self.network(x).chunk(2, -1)
        return normal(mean, positive(raw) + self.floor)


class ResidualNormal(nn.Module):
    """q = N(mu_p + mu_q(x), sigma_q^2): a posterior as a shift of the prior it is given.

    Args:
        network: Gives mu_q, and with ``learn_scale`` also log(sigma_q / sigma_p).
        learn_scale: Learn sigma_q; otherwise sigma_q = sigma_p.
    """

    def __init__(self, network: nn.Module, *, learn_scale: bool) -> None:
        super().__init__()
        self.network = network
        self.learn_scale = learn_scale

    def forward(self, prior: Independent, *x: Tensor, seen: Tensor | None = None) -> Independent:
        """Return q (..., size), given what the network takes.

        Where ``seen`` (..., parts) is false, q is the prior in that part of z; None is nowhere.
        """
        mu_p, sigma_p = prior.base_dist.loc, prior.base_dist.scale
        out = self.network(*x).chunk(1 + self.learn_scale, -1)
        if seen is not None:
            seen = seen.repeat_interleave(mu_p.shape[-1] // seen.shape[-1], -1)
            out = tuple(part * seen for part in out)
        if not self.learn_scale:
            return normal(mu_p + out[0], sigma_p)
        mu_q, log_ratio = out
        return normal(mu_p + mu_q, sigma_p * log_ratio.clamp(-7, 3).exp())


class PolicyNormal(nn.Module):
    """pi(a|c, z) = N(mu(c, z), diag sigma(c, z)^2), the paper's diagonal Gaussian policy.

    With ``resting`` bodies, each may rest instead (`pyro_animacy.resting`), as the network says
    and the last displacement, which is where ``mean_init`` finds it.

    The mean is an affine map of the context plus a network of (z, c). The affine map starts where
    ``mean_init`` puts it (constant velocity, where the context holds the last displacement), so
    that a linear autoregression is nested in the policy and is where its training begins.

    Args:
        context_size: Size C of the context c.
        latent_size: Size Z of the latent z, which every layer sees again if so configured.
        action_size: Size D of the action a.
        config: Sizes of the network.
        scale: A fixed standard deviation, or None to learn it.
        floor: The least standard deviation when it is learned.
        mean_init: Initial weight (D, C) of the affine map.
        resting: Bodies N that may rest; 0 for none. Only with a learned scale.
    """

    last: Tensor

    def __init__(
        self,
        context_size: int,
        latent_size: int,
        action_size: int,
        config: StackConfig,
        *,
        scale: float | None,
        floor: float,
        mean_init: Tensor,
        resting: int = 0,
    ) -> None:
        super().__init__()
        self.sizes = [action_size, action_size, resting]
        outputs = action_size if scale is not None else sum(self.sizes)
        self.network = Stack(latent_size + context_size, outputs, config, repeat=latent_size)
        self.affine = nn.Linear(context_size, action_size)
        with torch.no_grad():
            self.affine.weight.copy_(mean_init)
            self.affine.bias.zero_()
        self.scale, self.floor = scale, floor
        if resting:
            kinds = torch.arange(resting)
            self.rest = Rest(kinds, resting, action_size // resting, floor)
            self.register_buffer("last", mean_init.clone(), persistent=False)

    def forward(self, context: Tensor, latent: Tensor) -> Policy:
        """Return pi(. | context, latent): batch shape (...), event shape (action_size,)."""
        out = self.network(latent, context)
        if self.scale is not None:
            return normal(out + self.affine(context), self.scale)
        mean, raw, rest = out.split(self.sizes, -1)
        mean, scale = mean + self.affine(context), positive(raw) + self.floor
        if not rest.shape[-1]:
            return normal(mean, scale)
        return self.rest(mean, scale, rest, F.linear(context, self.last))
