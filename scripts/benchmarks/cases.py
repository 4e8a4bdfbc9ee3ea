"""The training steps that are timed: models, their sizes, one batch of data, and its noise."""

import dataclasses
import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple
from unittest import mock

import torch
from torch import Tensor

from pyro_animacy import (
    Batch,
    ControlVAE,
    ControlVAEConfig,
    ControlVAEGuide,
    Scale,
    StateSpaceConfig,
    StateSpaceGuide,
    StateSpaceModel,
    preset,
)
from pyro_animacy.models.program import MessengerGuide
from pyro_animacy.models.scene import SceneModel
from pyro_animacy.nets import StackConfig


class Noise(NamedTuple):
    """Standard normals of every step: ``latent`` (T, B, Z) and ``action`` (T, B, D)."""

    latent: Tensor
    action: Tensor


@dataclasses.dataclass(frozen=True)
class Case:
    """A training step to be timed.

    Args:
        name: What the table calls it.
        config: The model's options.
        batch: Trajectories B.
        steps: T.
        share: Of the rounds asked for, so that large steps do not take all the time.
        bodies: How many move in the plane.
    """

    name: str
    config: ControlVAEConfig | StateSpaceConfig
    batch: int
    steps: int
    share: float = 1.0
    bodies: int = 3

    @property
    def kl_weight(self) -> float:
        """beta: 1 for the true bound, 0.1 for the objective of the paper."""
        return 1.0 if self.config.likelihood == "policy" else 0.1

    def build(self) -> tuple[SceneModel, MessengerGuide]:
        """The model of the bodies in a plane, and its guide; always the same parameters."""
        D, bodies = 2 * self.bodies, self.bodies
        scale = Scale((0.0, 0.0), 1.0, 10.0, 3.0, 0.01, (-40.0,) * D, (40.0,) * D)
        torch.manual_seed(0)
        if isinstance(self.config, ControlVAEConfig):
            joint = dataclasses.replace(self.config, structure="joint")
            model = ControlVAE(joint, scale=scale, bodies=bodies)
            return model, ControlVAEGuide(model)
        state_space = StateSpaceModel(self.config, scale=scale, bodies=bodies)
        return state_space, StateSpaceGuide(state_space)

    def recording(self) -> Batch:
        """Random walks of the bodies, all observed: (history + T, B, D)."""
        generator = torch.Generator().manual_seed(1)
        frames = self.config.history + self.steps
        x = torch.randn(frames, self.batch, 2 * self.bodies, generator=generator).cumsum(0)
        return Batch(x, torch.ones_like(x, dtype=torch.bool))

    def noise(self) -> Noise:
        """A draw of the noise of a step, by torch's own generator."""
        T, B, Z = self.steps, self.batch, self.config.latent_size
        return Noise(torch.randn(T, B, Z), torch.randn(T, B, 2 * self.bodies))


def closed_loop(hidden: int, latent: int, layers: int) -> ControlVAEConfig:
    """The seed's model: squared error, roll-out of its own states, latent scale tied."""
    net = StackConfig(hidden=hidden, layers=layers)
    return ControlVAEConfig(
        history=1, latent_size=latent, posterior_scale="prior", likelihood="squared_error",
        roll_out="closed_loop", policy_scale=0.05, action_cost=0.001, discount=0.95,
        prior=net, posterior=net, policy=net,
    )  # fmt: skip


def teacher_forced(hidden: int, latent: int, layers: int) -> ControlVAEConfig:
    """The default model: the true bound on the recorded displacements, all scales learned."""
    net = StackConfig(hidden=hidden, layers=layers)
    return ControlVAEConfig(latent_size=latent, prior=net, posterior=net, policy=net)


def experts(teacher_forced: bool) -> ControlVAEConfig:
    """The paper's mixture of experts, as the preset ``paper`` has it; or its true bound.

    Without the absolute action cost, which the other ways to write the loss do not have.
    """
    config: ControlVAEConfig = preset("paper").model
    if not teacher_forced:
        return dataclasses.replace(config, action_cost_absolute=0.0)
    return ControlVAEConfig(
        history=config.history, latent_size=config.latent_size,
        prior=config.prior, posterior=config.posterior, policy=config.policy,
    )  # fmt: skip


def rssm(hidden: int, latent: int) -> StateSpaceConfig:
    """The recurrent state-space model, its networks as wide as its memory."""
    net = StackConfig(hidden=hidden, layers=1)
    return StateSpaceConfig(
        memory_size=hidden, latent_size=latent, prior=net, posterior=net, policy=net
    )


RSSM = Case("rssm, PlaNet's sizes", rssm(200, 30), 50, 50)
CASES = (
    Case("closed loop, small", closed_loop(64, 8, 2), 64, 24),
    Case("closed loop, medium", closed_loop(128, 16, 2), 256, 24),
    Case("closed loop, paper, plain network", closed_loop(512, 64, 3), 512, 24, 0.2),
    Case("closed loop, paper, experts", experts(teacher_forced=False), 512, 24, 0.1),
    Case("teacher forced, small", teacher_forced(64, 8, 2), 64, 24),
    Case("teacher forced, medium", teacher_forced(128, 16, 2), 256, 24),
    Case("teacher forced, paper, plain network", teacher_forced(512, 64, 3), 512, 24, 0.2),
    Case("teacher forced, paper, experts", experts(teacher_forced=True), 512, 24, 0.1),
    RSSM,
)


def tiny(case: Case) -> Case:
    """The same model with few units, windows and steps, for a test of equality."""

    def smaller(net: StackConfig) -> StackConfig:
        return dataclasses.replace(
            net, hidden=9, gate_hidden=8, experts=min(net.experts, 3), layers=min(net.layers, 2)
        )

    config = case.config
    memory: dict[str, Any] = {} if isinstance(config, ControlVAEConfig) else {"memory_size": 9}
    return dataclasses.replace(
        case, batch=4, steps=3, config=dataclasses.replace(
            config, latent_size=5, prior=smaller(config.prior), policy=smaller(config.policy),
            posterior=smaller(config.posterior), **memory,
        ),
    )  # fmt: skip


@contextmanager
def given(noise: Noise) -> Iterator[None]:
    """Let the normal draws of torch's and Pyro's distributions be this noise, step by step.

    A site drawn for all steps at once takes as many numbers as it has elements.
    """
    queues = {n.shape[-1]: n.flatten() for n in noise}
    if len(queues) < 2:
        raise SystemExit("latents and actions of one size cannot be told apart by their draws")

    def take(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
        size, queue = math.prod(shape), queues[shape[-1]]
        queues[shape[-1]] = queue[size:]
        return queue[:size].view(shape).to(device, dtype)

    with mock.patch("torch.distributions.normal._standard_normal", take):
        yield
