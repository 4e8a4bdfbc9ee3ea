"""ControlVAE for animacy: what the agents choose, and how the scene goes on.

    z_t ~ N(mu_p(c_t), sigma_p^2 I)                 prior: what the agents choose in this scene
    a_t ~ pi(a | c_t, z_t)                          policy: the displacement that carries it out
    s_{t+1} = s_t + a_t                             the known transition, no world model to train
    q(z_t | c_t, s~_{t+1}) = N(mu_p + mu_q, sigma_q^2 I)      guide: a residual around the prior

           c_t ----> z_t
            |         |                 s~ is the recording, s the model's own roll-out;
            +----+----+                 c_t holds s_t and the last displacements, and with
                 v                      ``memory_size`` h_t = GRU(h_{t-1}, c_t), the past
    s_t -------> a_t ----> s_{t+1}

With sigma_q = sigma_p, KL(q || p) = |mu_q|^2 / (2 sigma_p^2).

Yao, Song, Chen & Liu, ControlVAE: Model-Based Learning of Generative Controllers for Physics-Based
Characters, ACM Transactions on Graphics 41(6), 2022, equations 2 to 9. The squared error with
roll-out in closed loop is their training; the policy likelihood, teacher forced, with
``discount = 1`` and ``kl_weight = 1`` is a true bound on log p(recording). Both drivers and the
terms of the loss are those of all models of scenes: `pyro_animacy.models.scene`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import pyro
import torch
from pyro import poutine
from pyro.distributions import Independent
from torch import Tensor, nn

from pyro_animacy.data.windows import Batch, Scale
from pyro_animacy.errors import ConfigError, require
from pyro_animacy.models.program import (
    Evidence,
    Memory,
    MessengerGuide,
    discounts,
    every_step,
)
from pyro_animacy.models.scene import SceneModel
from pyro_animacy.models.scene_config import SceneConfig
from pyro_animacy.nets import FixedScaleNormal, PolicyNormal, ResidualNormal, Stack, StackConfig
from pyro_animacy.resting import Policy
from pyro_animacy.sets import EachBody, SetContext, SetLayout, SetPolicy

MOST_JOINT = 3  # bodies that one network takes together, where the options do not say


@dataclass(frozen=True)
class ControlVAEConfig(SceneConfig):
    """Options of `ControlVAE`, besides those of every `SceneConfig`.

    Args:
        latent_scale: sigma_p, standard deviation of the prior.
        posterior_scale: ``prior`` ties sigma_q to sigma_p, as in the paper; ``learned`` lets the
            encoder give it, which tightens the bound.
        structure: ``joint``: one latent and one network for the whole scene. ``set``: a latent of
            ``latent_size`` for each body, which chooses and moves independently of what the others
            do at the same step, and one network for all of them, with the others' past as its
            context (`pyro_animacy.sets`), so that bodies whose names differ by a number alone are
            exchangeable, and the model serves any number of them. Null is ``set`` for more than
            three bodies, where ``memory_size`` is 0: one network of all of them learns the few
            frames there are by heart.
        memory_size: Units H of a GRU over the past, which every network sees beside c_t; 0 for
            none. It looks back without limit, where ``history`` looks back a few frames; train it
            on windows of several steps (``train.window``).
        prior: Sizes of the network mu_p.
        posterior: Sizes of the network mu_q.
        policy: Sizes of the network of pi.
    """

    latent_scale: float = 0.3
    posterior_scale: Literal["prior", "learned"] = "learned"
    structure: Literal["joint", "set"] | None = None
    memory_size: int = 0
    prior: StackConfig = field(default_factory=StackConfig)
    posterior: StackConfig = field(default_factory=StackConfig)
    policy: StackConfig = field(default_factory=StackConfig)

    def __post_init__(self) -> None:
        """Check the values.

        Raises:
            ConfigError: If a value cannot be used; the message names it.
        """
        super().__post_init__()
        require(
            "model.",
            vars(self),
            ("latent_size", self.latent_size >= 1, "at least 1"),
            ("latent_scale", self.latent_scale > 0, "positive"),
            ("memory_size", self.memory_size >= 0, "0 or more"),
        )
        if self.structure == "set" and self.memory_size:
            raise ConfigError(
                "model.memory_size is of the whole scene; with model.structure set leave it 0, and "
                "look back by model.history"
            )

    @property
    def latent_remembered(self) -> bool:
        """z_t bears on nothing after its own step."""
        return False

    def structured(self, bodies: int) -> "ControlVAEConfig":
        """These options with a structure, the one for so many bodies where none was chosen."""
        if self.structure is not None:
            return self
        several = bodies > MOST_JOINT and not self.memory_size
        return replace(self, structure="set" if several else "joint")


class Step(nn.Module):
    """The step program, declared once: z_t given c_t, and the policy pi(. | c_t, z_t)."""

    def __init__(self, prior: nn.Module, policy: nn.Module, parts: int = 1) -> None:
        super().__init__()
        self.prior, self.policy, self.parts = prior, policy, parts

    def forward(self, name: str, context: Tensor, evidence: Evidence | None) -> Tensor:
        """Declare z_t at site ``name``. Only a guide looks at the evidence."""
        infer = {"evidence": evidence, "parts": self.parts}
        return pyro.sample(name, self.prior(context), infer=infer)


class ControlVAE(SceneModel):
    """The model p(z, a, s | s_0), a Pyro program: ``model(batch)`` declares it on recordings.

    Args:
        config: The options.
        scale: The length scale of the recordings; sets the networks' input units and the floor of
            a learned policy scale, the standard deviation of the resolution's uniform noise.
        bodies: Number of bodies.
        axes: Number of axes.
        types: Which bodies are alike, as `pyro_animacy.sets.body_types` says; all differ by
            default. Only the structure ``set`` asks.
        known_types: Number of types, where the bodies at hand are not of all of them.
    """

    config: ControlVAEConfig

    def __init__(
        self,
        config: ControlVAEConfig,
        *,
        scale: Scale,
        bodies: int,
        axes: int = 2,
        types: Sequence[int] | None = None,
        known_types: int | None = None,
    ) -> None:
        config = config.structured(bodies)
        super().__init__(config, scale=scale, bodies=bodies, axes=axes)
        self.memory_size = H = config.memory_size
        self.recurrence = nn.GRU(self.context_size, H) if H else None
        Z, D, C = config.latent_size, self.state_size, self.context_size + H
        fixed, floor = config.policy_scale, self.least_scale
        self.set_context: SetContext | None = None
        mean: nn.Module
        policy: nn.Module
        if config.structure == "set":
            layout = SetLayout(
                tuple(range(bodies) if types is None else types), axes, config.history,
                scale.extent, scale.separation, known_types,
            )  # fmt: skip
            net = config.prior
            self.set_context = SetContext(layout, net.hidden, net.activation)
            C = self.set_context.size
            self.latent_size, self.context_size, self.parts = bodies * Z, bodies * C, bodies
            mean = EachBody([C], [Z], net)
            policy = SetPolicy(
                layout, C, Z, config.policy, scale=fixed, floor=floor, resting=config.rests
            )
        else:
            mean = Stack(C, Z, config.prior)
            policy = PolicyNormal(
                C, Z, D, config.policy, scale=fixed, floor=floor, mean_init=self.inertia(C),
                resting=bodies if config.rests else 0,
            )  # fmt: skip
        self.step = Step(FixedScaleNormal(mean, config.latent_scale), policy, self.parts)

    def context(
        self,
        state: Tensor,
        actions: list[Tensor],
        here: Tensor | None = None,
        heard: tuple[Tensor, list[Tensor]] | None = None,
    ) -> Tensor:
        """c_t (..., C), as of `SceneModel`, or what each body of a set knows, body after body."""
        if self.set_context is None:
            return super().context(state, actions)
        return self.set_context(state, actions, here, heard)

    def advance(
        self, name: str, context: Tensor, memory: Memory, evidence: Evidence | None
    ) -> Memory:
        """Declare z_t ~ p(z | c_t, h_t) at site ``name``, with h_t = GRU(h_{t-1}, c_t)."""
        hidden = self._remembered(context[None], memory.hidden)[0]
        return self._choose(name, context, hidden, evidence)

    def policy(self, context: Tensor, memory: Memory) -> Policy:
        """Return pi(. | c_t, h_t, z_t)."""
        return self.step.policy(_beside(context, memory.hidden), memory.latent)

    def follow(
        self, batch: Batch, discount: float = 1.0, heard: Batch | None = None
    ) -> tuple[Evidence, Memory]:
        """As `SceneModel.follow`; also with a memory all steps at one site.

        Given the recording h_t is known, since it depends on the recorded states alone.
        """
        if self.recurrence is None:
            return super().follow(batch, discount, heard)
        evidence = self.evidence(batch, heard)
        T, B, _ = evidence.seen.shape
        hidden = self._remembered(evidence.context, self.start((B,)).hidden)
        with every_step(T, B), poutine.scale(scale=discounts(discount, T, hidden)):
            return evidence, self._choose("latent", evidence.context, hidden, evidence)

    def _choose(
        self, name: str, context: Tensor, hidden: Tensor, evidence: Evidence | None
    ) -> Memory:
        known = _beside(context, hidden)
        evidence = evidence and evidence._replace(context=known)
        return Memory(hidden, self.step(name, known, evidence))

    def _remembered(self, contexts: Tensor, hidden: Tensor) -> Tensor:
        """h_{1..T} (T, ..., H) for c_{1..T} (T, ..., C) and h_0 (..., H)."""
        if self.recurrence is None:
            return hidden.expand(*contexts.shape[:-1], 0)
        T, *batch, C = contexts.shape
        flat = hidden.expand(*batch, -1).reshape(1, -1, self.memory_size)
        after, _ = self.recurrence(contexts.reshape(T, -1, C), flat)
        return after.reshape(T, *batch, self.memory_size)


class ControlVAEGuide(MessengerGuide):
    """q(z_t | c_t, s~_{t+1}) = N(mu_p + mu_q, sigma_q^2 I), in the model's own run.

    It answers each z_t that comes with evidence with a residual around the prior just declared, and
    leaves every other site (the actions, steps that were not recorded) to its prior.

    Args:
        model: The model; its parameters are shared, not registered again.
    """

    def __init__(self, model: ControlVAE) -> None:
        super().__init__(model)
        config = model.config
        Z, learned = config.latent_size, config.posterior_scale == "learned"
        outputs = [Z, Z] if learned else [Z]
        network: nn.Module
        if (of_set := model.set_context) is not None:
            network = EachBody([of_set.size, of_set.layout.axes], outputs, config.posterior)
        else:
            inputs = model.context_size + config.memory_size + model.state_size
            network = Stack(inputs, sum(outputs), config.posterior)
        self.residual = ResidualNormal(network, learn_scale=learned)

    def posterior(self, prior: Independent, evidence: Evidence) -> Independent:
        """Return N(mu_p + mu_q(c_t, s~_{t+1} - s_t), sigma_q^2 I)."""
        return self.residual(prior, evidence.context, evidence.shown, seen=evidence.mask)


def _beside(context: Tensor, hidden: Tensor) -> Tensor:
    """(c_t, h_t), the context repeated for as many memories as there are."""
    if not hidden.shape[-1]:
        return context
    return torch.cat([context.expand(*hidden.shape[:-1], -1), hidden], -1)
