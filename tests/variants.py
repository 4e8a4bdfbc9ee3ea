"""Small models of every kind, for the tests that all of them must pass."""

import torch

from pyro_animacy import Batch, ControlVAE, ControlVAEConfig, ControlVAEGuide, Scale
from pyro_animacy.nets import StackConfig

NET = StackConfig(hidden=7, layers=2)
EXPERTS = StackConfig(hidden=6, layers=2, repeat_input=True, experts=3, layer_norm=True)
SQUARED = {"likelihood": "squared_error", "policy_scale": 0.05}

CONFIGS = {
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
    "action_cost": {"roll_out": "closed_loop", "action_cost": 0.1},
    "blended_weights": {"policy": EXPERTS},
    "blended_outputs": {
        "policy": StackConfig(hidden=6, layers=2, experts=3, blend="outputs"),
        "prior": StackConfig(hidden=6, layers=3, repeat_input=True),
    },
}  # fmt: skip
PLAIN = [name for name in CONFIGS if not name.startswith("blended")]  # multilayer perceptrons


def scale_of(bodies: int) -> Scale:
    low, high = (-40.0,) * 2 * bodies, (40.0,) * 2 * bodies
    return Scale((0.0, 0.0), 1.0, 5.0, 3.0, 0.01, low, high)


def config(name: str, **changes) -> ControlVAEConfig:
    options = {"latent_size": 5, "prior": NET, "posterior": NET, "policy": NET, **CONFIGS[name]}
    return ControlVAEConfig(**{**options, **changes})


def build(name: str, bodies: int = 3, seed: int = 0, **changes):
    """A model and guide in float64."""
    torch.manual_seed(seed)
    model = ControlVAE(config(name, **changes), scale=scale_of(bodies), bodies=bodies)
    return model.double(), ControlVAEGuide(model).double()


def recording(
    frames: int, size: int, bodies: int = 3, seed: int = 1, missing: float = 0.0
) -> Batch:
    """Random walks, with a share of coordinates not observed."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(frames, size, 2 * bodies, generator=generator, dtype=torch.float64).cumsum(0)
    observed = torch.rand(x.shape, generator=generator) >= missing
    return Batch(torch.where(observed, x, 0.0), observed)


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
