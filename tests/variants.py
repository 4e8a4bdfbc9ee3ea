"""Small models of every kind, for the tests that all of them must pass."""

import math

import torch

from pyro_animacy import Batch, ControlVAEConfig, Scale, StateSpaceConfig
from pyro_animacy.models import FAMILIES
from pyro_animacy.models.linear_state_space import LinearStateSpace
from pyro_animacy.nets import StackConfig

NET = StackConfig(hidden=7, layers=2)
EXPERTS = StackConfig(hidden=6, layers=2, repeat_input=True, experts=3, layer_norm=True)
SQUARED = {"likelihood": "squared_error", "policy_scale": 0.05}

CONTROL_VAE = {
    "small": {},
    "history_1": {"history": 1},
    "history_4": {"history": 4},
    "closed_loop": {"roll_out": "closed_loop", "discount": 0.9},
    "tied_scale": {"posterior_scale": "prior"},
    "squared_error": {**SQUARED, "action_cost": 0.01, "discount": 0.95},
    "seed": {
        **SQUARED, "history": 1, "posterior_scale": "prior", "roll_out": "closed_loop",
        "action_cost": 0.1, "discount": 0.95,
    },
    "action_cost": {"roll_out": "closed_loop", "action_cost": 0.1, "action_cost_absolute": 0.2},
    "rest": {"rest": True},
    "rest_action_cost": {
        "rest": True, "discount": 0.9, "action_cost": 0.1, "action_cost_absolute": 0.2,
    },
    "rest_closed_loop": {"rest": True, "roll_out": "closed_loop"},  # nobody rests
    "rest_history_1": {"rest": True, "history": 1},  # nor here
    "blended_weights": {"policy": EXPERTS},
    "blended_outputs": {
        "policy": StackConfig(hidden=6, layers=2, experts=3, blend="outputs"),
        "prior": StackConfig(hidden=6, layers=3, repeat_input=True),
    },
    "memory": {"memory_size": 4},
    "memory_closed_loop": {"memory_size": 4, "roll_out": "closed_loop", "discount": 0.9},
    "memory_squared_error": {**SQUARED, "memory_size": 4, "action_cost": 0.01, "discount": 0.95},
}  # fmt: skip
PLAIN = [name for name in CONTROL_VAE if not name.startswith("blended")]  # multilayer perceptrons
STATE_SPACE = {
    "rssm": {},
    "rssm_history_3": {"history": 3, "discount": 0.9},
    "rssm_squared_error": {**SQUARED, "history": 1, "action_cost": 0.01},
    "rssm_closed_loop": {
        "roll_out": "closed_loop", "discount": 0.9, "action_cost": 0.1, "action_cost_absolute": 0.2,
    },
    "rssm_rest": {"rest": True, "discount": 0.9},
    "rssm_norm": {"memory_norm": True},
    "deterministic": {"latent_size": 0},
    "deterministic_rest": {"latent_size": 0, "rest": True},
    "stochastic": {"memory_size": 0},
    "categorical": {"latent_size": 3, "classes": 4},
    "categorical_stochastic": {"latent_size": 3, "classes": 4, "memory_size": 0},
    "categorical_closed_loop": {
        **SQUARED, "latent_size": 3, "classes": 4, "roll_out": "closed_loop", "history": 1,
    },
}  # fmt: skip
CONFIGS = {**CONTROL_VAE, **STATE_SPACE}
SET = {
    "set": {"structure": "set"},
    "set_rest": {"structure": "set", "rest": True},
}  # a latent for every body, whose sites have other shapes


def scale_of(bodies: int) -> Scale:
    low, high = (-40.0,) * 2 * bodies, (40.0,) * 2 * bodies
    return Scale((0.0, 0.0), 1.0, 5.0, 3.0, 0.01, low, high)


def family_of(name: str) -> str:
    """The family that builds a variant; all state-space models are built alike."""
    return "rssm" if name in STATE_SPACE else "control_vae"


def config(name: str, **changes) -> ControlVAEConfig | StateSpaceConfig:
    options = {"latent_size": 5, "prior": NET, "posterior": NET, "policy": NET}
    if name in STATE_SPACE:
        options["memory_size"] = 4
    return FAMILIES[family_of(name)].config(**{**options, **(CONFIGS | SET)[name], **changes})


def build(name: str, bodies: int = 3, seed: int = 0, **changes):
    """A model and guide in float64."""
    torch.manual_seed(seed)
    family = FAMILIES[family_of(name)]
    model = family.model(config(name, **changes), scale=scale_of(bodies), bodies=bodies)
    return model.double(), family.guide(model).double()


def recording(
    frames: int, size: int, bodies: int = 3, seed: int = 1, missing: float = 0.0
) -> Batch:
    """Random walks, with a share of coordinates not observed."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(frames, size, 2 * bodies, generator=generator, dtype=torch.float64).cumsum(0)
    observed = torch.rand(x.shape, generator=generator) >= missing
    return Batch(torch.where(observed, x, 0.0), observed)


def padded(batch: Batch) -> Batch:
    """The same recording: other values where nothing was observed, and three frames of nothing."""
    junk = torch.where(batch.observed, batch.position, 17.0)
    nothing = torch.zeros_like(batch.position[:1]).expand(3, -1, -1)
    return Batch(torch.cat([junk, nothing + 5.0]), torch.cat([batch.observed, nothing > 0]))


def supply_noise(monkeypatch, T: int, B: int, Z: int, D: int, seed: int = 5) -> dict:
    """Make torch's normals come from a fixed table: the latent and the action noise of step t.

    Whether sites are drawn step by step or all at once, step t then sees the same noise.
    """
    assert Z != D
    generator = torch.Generator().manual_seed(seed)
    noise = {
        "latent": torch.randn(T, B, Z, generator=generator, dtype=torch.float64),
        "action": torch.randn(T, B, D, generator=generator, dtype=torch.float64),
    }
    at = {Z: ["latent", 0], D: ["action", 0]}

    def take(shape, dtype, device):
        name, t = at[shape[-1]]
        if len(shape) == 3:
            return noise[name][: shape[0]]
        at[shape[-1]][1] += 1
        return noise[name][t]

    monkeypatch.setattr("torch.distributions.normal._standard_normal", take)
    noise["rewind"] = lambda: [entry.__setitem__(1, 0) for entry in at.values()]
    return noise


def gradients(loss, modules):
    """Of a loss, for every parameter; None where it does not depend on one."""
    parameters = [p for m in modules for p in m.parameters()]
    return torch.autograd.grad(loss, parameters, allow_unused=True, retain_graph=True)


def assert_same_gradients(first, second, tolerance=1e-10):
    for a, b in zip(first, second, strict=True):
        if a is None or b is None:
            assert a is None or a.abs().max() == 0
            assert b is None or b.abs().max() == 0
        else:
            torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


def linear_state_space(
    proposal: str = "exact", bodies: int = 1, noise: float = 0.6, persistence: float = 1.0
):
    """A stochastic model that is a linear-Gaussian one of displacements, its guide, and the oracle.

    Its context has no weight; the columns of the loading are orthogonal, so that q(z_t | z_{t-1},
    a~_t) is diagonal and the ``exact`` guide gives it. A ``wide`` guide sees nothing and is wider
    than the prior; a ``rough`` one moves half as far as it should.
    """
    linear, Z, D = StackConfig(hidden=1, layers=0), 2, 2 * bodies
    model, guide = build(
        "stochastic", bodies, history=1, latent_size=Z, prior=linear, posterior=linear,
        policy=linear, policy_scale=noise,
    )  # fmt: skip
    A = persistence * torch.tensor([[0.8, 0.3], [-0.2, 0.9]], dtype=torch.float64)
    deviation = torch.tensor([0.5, 0.8], dtype=torch.float64)
    generator = torch.Generator().manual_seed(2)
    square = torch.randn(D, D, generator=generator, dtype=torch.float64)
    C = torch.linalg.qr(square)[0][:, :Z] * torch.tensor([1.3, 0.8], dtype=torch.float64)
    offset = torch.linspace(-0.4, 0.7, D, dtype=torch.float64)
    posterior = (deviation**-2 + (C**2).sum(0) / noise**2).rsqrt()
    gain = posterior[:, None] ** 2 * C.T / noise**2
    prior, head = model.dynamics.prior.network.layers[0], guide.residual.network.layers[0]
    emission = model.decoder.network.layers[0]
    with torch.no_grad():
        for layer in (prior, head, emission):
            layer.weight.zero_()
            layer.bias.zero_()
        prior.weight[:Z, :Z] = A
        prior.bias[Z:] = (deviation - model.config.least_scale).expm1().log()
        emission.weight[:, :Z] = C
        emission.bias.copy_(offset)
        if proposal == "wide":
            head.bias[Z:] = math.log(1.5)
        else:
            gain = gain if proposal == "exact" else 0.5 * gain
            head.weight[:Z, :Z] = -gain @ C @ A
            head.weight[:Z, -D:] = gain
            head.bias[:Z] = -gain @ offset
            head.bias[Z:] = (posterior / deviation).log()
    oracle = LinearStateSpace(
        transition_matrix=A, transition_covariance=deviation.square().diag(),
        observation_matrix=C, observation_covariance=noise**2 * torch.eye(D, dtype=A.dtype),
        initial_mean=torch.zeros_like(deviation), initial_covariance=deviation.square().diag(),
        offset=offset,
    )  # fmt: skip
    return model, guide, oracle


def linear_recording(oracle: LinearStateSpace, steps: int, size: int, seed: int = 4) -> Batch:
    """Positions whose displacements are draws of the oracle; all observed."""
    a = oracle.sample(size, steps, generator=torch.Generator().manual_seed(seed)).observation
    x = torch.cat([torch.zeros_like(a[:1]), a.cumsum(0)])
    return Batch(x, torch.ones_like(x, dtype=torch.bool))
