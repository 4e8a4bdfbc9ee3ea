"""Fitted to a linear-Gaussian process, state-space models come near its exact evidence, from below.

    x_{t+1} = A x_t + N(0, Q),    a_t = x_t + N(0, R),    s_{t+1} = s_t + a_t

a slowly turning velocity seen through noise: what is known of x is in all past displacements.
"""

import math

import pytest
import torch

from pyro_animacy import (
    Batch,
    Scale,
    ScaledELBO,
    StateSpaceConfig,
    StateSpaceGuide,
    StateSpaceModel,
)
from pyro_animacy.infer.steps import draw_steps, log_mean_exp
from pyro_animacy.infer.traced import Gradient, no_validation
from pyro_animacy.models.linear_state_space import LinearStateSpace
from pyro_animacy.nets import StackConfig

LINEAR = StackConfig(layers=0)
STEPS = 40


def process():
    """The oracle, in float64."""
    c, s = math.cos(0.3), math.sin(0.3)
    A = 0.9 * torch.tensor([[c, -s], [s, c]], dtype=torch.float64)
    eye = torch.eye(2, dtype=torch.float64)
    return LinearStateSpace(
        transition_matrix=A, transition_covariance=0.19 * eye, observation_matrix=eye,
        observation_covariance=0.5 * eye, initial_mean=torch.zeros(2).double(),
        initial_covariance=eye,
    )  # fmt: skip


def walks(size, seed):
    """Positions whose displacements the oracle drew, (STEPS + 1, size, 2), and these."""
    a = process().sample(size, STEPS, generator=torch.Generator().manual_seed(seed)).observation
    return torch.cat([torch.zeros(1, size, 2).double(), a.cumsum(0)]), a


def fitted(name, memory_size, updates, rate):
    """A model with affine networks, which see the position but no displacement beside it."""
    x = walks(512, seed=1)[0].float()
    edge = (float("inf"),) * 2
    scale = Scale((0.0, 0.0), 1.0, 8.0, 1.0, 0.0, tuple(-e for e in edge), edge)
    torch.manual_seed(0)
    config = StateSpaceConfig(
        history=1, memory_size=memory_size, latent_size=4, prior=LINEAR, posterior=LINEAR,
        policy=LINEAR, arena="open",
    )  # fmt: skip
    model = StateSpaceModel(config, scale=scale, bodies=1)
    guide = StateSpaceGuide(model)
    with torch.no_grad():  # affine maps of random weights would let a roll-out grow without end
        for module in (model.dynamics.prior, model.decoder.network, guide):
            for parameter in module.parameters():
                parameter *= 0.3
    gradient = Gradient(ScaledELBO(scale=1 / (64 * STEPS)), model, guide, traced=True)
    optimizer = torch.optim.Adam(gradient.parameters, lr=rate)
    draw = torch.Generator().manual_seed(2)
    with no_validation():
        for step in range(updates):
            optimizer.param_groups[0]["lr"] = rate * 0.5 * (1 + math.cos(math.pi * step / updates))
            some = x[:, torch.randint(x.shape[1], (64,), generator=draw)]
            gradient(Batch(some, torch.ones_like(some, dtype=torch.bool)))
            torch.nn.utils.clip_grad_norm_(gradient.parameters, 10.0)
            optimizer.step()
    return guide


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "memory_size", "updates", "rate"),
    [("stochastic", 0, 1500, 5e-3), ("rssm", 32, 1000, 4e-3)],
)
def test_fitted_models_come_within_a_fiftieth_of_a_nat(name, memory_size, updates, rate):
    guide = fitted(name, memory_size, updates, rate)
    x, a = walks(256, seed=7)
    exact = process().filter(a).log_evidence
    torch.manual_seed(3)
    batch = Batch(x.float(), torch.ones_like(x, dtype=torch.bool))
    steps = draw_steps(guide, batch, 256)
    gap = (log_mean_exp(steps.log_weight[..., 0]).double() - exact).mean(0)
    error = (gap.std() / len(gap) ** 0.5).item()
    assert gap.mean() > -0.02, f"{name}: {gap.mean():.4f} +- {error:.4f} nats a step"
    assert gap.mean() < 3 * error  # a bound of one model's evidence under another's truth
