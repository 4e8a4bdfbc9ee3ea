"""State-space models: latents that remember, on bodies in a scene.

    h_t = GRU(h_{t-1}, z_{t-1}, u_t)                deterministic path
    z_t ~ p(z | h_t, u_t)                           stochastic path: the prior
    a_t ~ pi(a | u_t, h_t, z_t)                     observation model: the displacement
    s_{t+1} = s_t + a_t                             the known transition
    q(z_t | h_t, u_t, a~_t)                         guide: sees h_t and what was observed

    h_{t-1} -------> h_t -------> h_{t+1}           u_t is what is known before step t, with an
       |     ______^  |     ______^                 arrow into h_t: in a scene the context c_t, of
       v    /         v    /                        an agent its last action. The sample of the
    z_{t-1}          z_t                            *posterior* is rolled on; at a step that was
       |              |                             not observed, that of the prior.
       v              v
    a_{t-1}          a_t

Three models by which paths there are (Hafner et al., Learning Latent Dynamics for Planning from
Pixels, 2019, figure 2): ``deterministic`` has h alone (a), ``stochastic`` z alone,
z_t ~ p(z | z_{t-1}, u_t) (b), ``rssm``, the recurrent state-space model, both (c). Latents are
Gaussian, or one-hot (Hafner et al., Mastering Atari with Discrete World Models, 2021). The bound is
the paper's equation 3, here with u_t in place of its actions,

    ELBO = E_q sum_t [ log pi(a~_t | u_t, h_t, z_t) - KL( q(z_t | .) || p(z_t | h_t, u_t) ) ]

and latent overshooting (its equation 7) adds sites that roll the prior d steps from q(z_{t-d}).
"""

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import pyro
import torch
from pyro import poutine
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from pyro_animacy.data.windows import Scale
from pyro_animacy.errors import ConfigError, require
from pyro_animacy.models.categorical import categorical
from pyro_animacy.models.densities import rebuilt
from pyro_animacy.models.program import Evidence, Memory, MessengerGuide, Overshooting
from pyro_animacy.models.scene import SceneModel
from pyro_animacy.models.scene_config import SceneConfig
from pyro_animacy.nets import (
    ACTIVATIONS,
    LearnedNormal,
    NormalisedGRUCell,
    PolicyNormal,
    ResidualNormal,
    Stack,
    StackConfig,
)
from pyro_animacy.resting import Policy, observed


@dataclass(frozen=True)
class DynamicsConfig:
    """Sizes of `Dynamics`: the paths that a state-space model has.

    Args:
        memory_size: H, units of the deterministic path; 0 for none (``stochastic``).
        latent_size: Z, size of the stochastic path; 0 for none (``deterministic``).
        classes: K: the latent is ``latent_size`` one-hot variables of K classes instead of
            ``latent_size`` Gaussians; null for Gaussians.
        unimix: Share of the uniform distribution in the probabilities of classes (Hafner et al.,
            Mastering Diverse Domains through World Models, 2023), so that no KL is infinite.
        least_scale: Least standard deviation of the prior.
        memory_norm: Whether the GRU has layer norm, as DreamerV2's (`NormalisedGRUCell`).
        prior: Sizes of the network of p(z_t | h_t); its activation is also that of the layer before
            the GRU.
        posterior: Sizes of the network of q(z_t | h_t, o_t).
    """

    memory_size: int = 200
    latent_size: int = 30
    classes: int | None = None
    unimix: float = 0.01
    least_scale: float = 0.1
    memory_norm: bool = False
    prior: StackConfig = field(default_factory=lambda: StackConfig(hidden=200, layers=1))
    posterior: StackConfig = field(default_factory=lambda: StackConfig(hidden=200, layers=1))

    def __post_init__(self) -> None:
        """Check the values.

        Raises:
            ConfigError: If a value cannot be used; the message names it.
        """
        require(
            "model.",
            vars(self),
            ("memory_size", self.memory_size >= 0, "0 or more"),
            ("latent_size", self.latent_size >= 0, "0 or more"),
            ("classes", self.classes is None or self.classes >= 2, "at least 2, or null"),
            ("unimix", 0 <= self.unimix < 1, "in [0, 1)"),
            ("least_scale", self.least_scale > 0, "positive"),
        )
        if not self.memory_size and not self.latent_size:
            raise ConfigError(
                "model.memory_size and model.latent_size are both 0; a state-space model needs a "
                "deterministic path, a stochastic path or both"
            )


class Dynamics(nn.Module):
    """p(h_t, z_t | h_{t-1}, z_{t-1}, u_t): the transition of every state-space model.

    Args:
        config: The sizes.
        inputs: Size U of u_t.
        direct: Whether prior and posterior see u_t beside h_t. That conditions on nothing new,
            since h_t is a function of u_t; but what must be exact, such as a distance in a scene,
            need not pass through the GRU's saturating units.
    """

    def __init__(self, config: DynamicsConfig, inputs: int, *, direct: bool) -> None:
        super().__init__()
        self.config, self.direct = config, direct
        H, Z, K = config.memory_size, config.latent_size, config.classes
        self.latent_size = Z * (K or 1)
        self.memory_size = H
        self.embed = nn.Linear(self.latent_size + inputs, H) if H else None
        cell = NormalisedGRUCell if config.memory_norm else nn.GRUCell
        self.recurrence = cell(H, H) if H else None
        self.belief_size = H + inputs * direct if H else self.latent_size + inputs
        self.prior: nn.Module | None = None
        if K and Z:
            self.prior = Stack(self.belief_size, Z * K, config.prior)
        elif Z:
            self.prior = LearnedNormal(
                Stack(self.belief_size, 2 * Z, config.prior), floor=config.least_scale
            )

    def predict(self, memory: Memory, inputs: Tensor) -> tuple[Tensor, Tensor, Any]:
        """h_t (..., H), what the prior sees of it (..., belief), and p(z_t | .), None without z.

        Args:
            memory: (h_{t-1}, z_{t-1}).
            inputs: u_t (..., U).
        """
        h, z = memory
        u = inputs.expand(*h.shape[:-1], -1)
        belief = torch.cat([z, u], -1)
        embed, gru = self.embed, self.recurrence
        if embed is not None and gru is not None:  # as functions: a module's call costs more
            x = F.linear(belief.flatten(0, -2), embed.weight, embed.bias)
            x = ACTIVATIONS[self.config.prior.activation](x)
            before = h.flatten(0, -2)
            if isinstance(gru, nn.GRUCell):
                weights = gru.weight_ih, gru.weight_hh, gru.bias_ih, gru.bias_hh
                h = torch.gru_cell(x, before, *weights).view(h.shape)
            else:
                h = gru(x, before).view(h.shape)
            belief = torch.cat([h, u], -1) if self.direct else h
        return h, belief, self._prior(belief)

    def _prior(self, belief: Tensor) -> Any:
        if self.prior is None:
            return None
        if self.config.classes is None:
            return self.prior(belief)
        logits = self.prior(belief).unflatten(-1, (-1, self.config.classes))
        return categorical(logits, self.config.unimix)

    def forward(
        self, name: str, memory: Memory, inputs: Tensor, evidence: Evidence | None
    ) -> Memory:
        """Declare z_t at site ``name`` and return (h_t, z_t). Only a guide sees the evidence."""
        h, belief, prior = self.predict(memory, inputs)
        if prior is None:
            return Memory(h, memory.latent)
        evidence = evidence and evidence._replace(context=belief)
        z = pyro.sample(name, prior, infer={"evidence": evidence})
        return Memory(h, z.flatten(-2) if self.config.classes else z)

    def overshoot(
        self, memory: Memory, inputs: Tensor, seen: Tensor, options: Overshooting
    ) -> list[tuple[int, Memory]]:
        """Roll the prior from the posterior of every step at once, and declare what it expects.

        Site ``latent_ahead_d`` has the prior p(z_t | h, z rolled d steps from q(z_{t-d})); a guide
        answers it with q(z_t), its gradient stopped, so that the site's KL is that of latent
        overshooting with weight beta_d / D. One batched step for each d: cost O(T D).

        Args:
            memory: m_t of every step, tensors of (T, B, ...), sampled from the posterior.
            inputs: u_t, (T, B, U).
            seen: Whether each step was observed, (T, B).
            options: Distance and weights.

        Returns:
            For d = 2..D, d and the memory rolled d steps, of the steps t = d..T-1: (T-d, B, ...).
        """
        ahead, rolled = memory, []
        T, B = seen.shape
        for d in range(1, min(options.distance, T - 1) + 1):
            ahead = ahead.at(slice(-1))
            h, _, prior = self.predict(ahead, inputs[d:])
            z = ahead.latent
            if prior is not None:
                with (
                    pyro.plate(f"time_ahead_{d}", T - d, dim=-2),
                    pyro.plate(f"trajectory_ahead_{d}", B, dim=-1),
                ):
                    beta = options.weight(d)
                    if d > 1 and beta:
                        with poutine.scale(scale=beta), poutine.mask(mask=seen[d:]):
                            looked = {"evidence": Ahead(range(d, T))}
                            pyro.sample(f"latent_ahead_{d}", prior, infer=looked)
                    z = pyro.sample(f"open_loop_{d}", prior)
                    z = z.flatten(-2) if self.config.classes else z
            ahead = Memory(h, z)
            if d > 1:
                rolled.append((d, ahead))
        return rolled


class Ahead(NamedTuple):
    """Evidence of an overshooting site: the guide's own answers at these steps."""

    steps: range


class DynamicsGuide(MessengerGuide):
    """q(z_t | h_t, o_t): the prior shifted by what was observed, in the model's own run.

    A residual around the prior's mean and log scale, or around its logits. A step that was not
    observed keeps its prior.

    Args:
        model: The model; its ``dynamics`` says what the prior sees.
        shown: Size of what the evidence shows of a step.
    """

    def __init__(self, model: nn.Module, shown: int) -> None:
        super().__init__(model)
        dynamics: Dynamics = model.dynamics  # type: ignore[assignment]
        config = dynamics.config
        self.classes, self.unimix = config.classes, config.unimix
        inputs, Z = dynamics.belief_size + shown, config.latent_size
        self.residual: nn.Module | None = None
        if self.classes and Z:
            self.residual = Stack(inputs, Z * self.classes, config.posterior)
        elif Z:
            network = Stack(inputs, 2 * Z, config.posterior)
            self.residual = ResidualNormal(network, learn_scale=True)

    def posterior(
        self, prior: TorchDistributionMixin, evidence: Evidence | Ahead
    ) -> TorchDistributionMixin:
        """Return q(z_t | h_t, o_t), or of a site ahead the same again, its gradient stopped."""
        if isinstance(evidence, Ahead):
            return self._answered(evidence.steps)
        assert self.residual is not None
        belief, shown, _, _ = evidence
        x = torch.cat([belief, shown.expand(*belief.shape[:-1], -1)], -1)
        if self.classes is None:
            return self.residual(prior, x, seen=evidence.mask)
        shift = self.residual(x).unflatten(-1, (-1, self.classes))
        unmoved = prior.base_dist.logits
        moved = categorical(unmoved + shift, self.unimix).base_dist.logits
        # mixing in the uniform distribution once more would move a step that was not observed
        if (seen := evidence.mask) is not None:
            moved = moved.where(seen[..., None], unmoved)
        return categorical(moved)

    def _answered(self, steps: range) -> TorchDistributionMixin:
        """The posteriors of some steps as one, (steps, B), detached."""
        answers = [self.trace.nodes[f"latent_{t}"]["fn"] for t in steps]
        return rebuilt(answers, lambda parameters: torch.stack(parameters).detach())


@dataclass(frozen=True)
class StateSpaceConfig(DynamicsConfig, SceneConfig):
    """Options of a state-space model of a scene: its sizes, and those of every `SceneConfig`.

    Args:
        policy: Sizes of the network of pi(a_t | u_t, h_t, z_t).
    """

    memory_size: int = 128
    latent_size: int = 16
    policy: StackConfig = field(default_factory=StackConfig)

    def __post_init__(self) -> None:
        """Check the values.

        Raises:
            ConfigError: If a value cannot be used; the message names it.
        """
        DynamicsConfig.__post_init__(self)
        SceneConfig.__post_init__(self)


class StateSpaceModel(SceneModel):
    """A state-space model of a scene, a Pyro program: ``model(batch)`` declares it on recordings.

    Args:
        config: The options.
        scale: The length scale of the recordings.
        bodies: Number of bodies.
        axes: Number of axes.
    """

    config: StateSpaceConfig

    def __init__(
        self, config: StateSpaceConfig, *, scale: Scale, bodies: int, axes: int = 2
    ) -> None:
        super().__init__(config, scale=scale, bodies=bodies, axes=axes)
        self.dynamics = Dynamics(config, self.context_size, direct=True)
        self.memory_size, self.latent_size = self.dynamics.memory_size, self.dynamics.latent_size
        known = self.context_size + self.memory_size
        self.decoder = PolicyNormal(
            known, self.latent_size, self.state_size, config.policy, scale=config.policy_scale,
            floor=self.least_scale, mean_init=self.inertia(known),
            resting=bodies if config.rests else 0,
        )  # fmt: skip

    def advance(
        self, name: str, context: Tensor, memory: Memory, evidence: Evidence | None
    ) -> Memory:
        """Declare z_t ~ p(z | h_t, c_t) at site ``name``; h_t = GRU(h_{t-1}, z_{t-1}, c_t)."""
        return self.dynamics(name, memory, context, evidence)

    def policy(self, context: Tensor, memory: Memory) -> Policy:
        """Return pi(. | c_t, h_t, z_t)."""
        c = context.expand(*memory.hidden.shape[:-1], -1)
        return self.decoder(torch.cat([c, memory.hidden], -1), memory.latent)

    def overshoot(
        self, evidence: Evidence, memory: Memory, seen: Tensor, options: Overshooting
    ) -> None:
        """Declare what is expected of steps up to D ahead: latents, and displacements if asked."""
        context, shown, some = evidence.context, evidence.shown, evidence.seen[..., 0]
        ahead = self.dynamics.overshoot(memory, context, some, options)
        for d, rolled in ahead:
            if not options.observation * options.weight(d):
                continue
            pi = self.policy(context[d:], rolled)
            with (
                pyro.plate(f"time_seen_{d}", len(context) - d, dim=-2),
                pyro.plate(f"trajectory_seen_{d}", some.shape[1], dim=-1),
                poutine.scale(scale=options.observation * options.weight(d)),
            ):
                pyro.sample(f"reconstruction_ahead_{d}", observed(pi, seen[d:]), obs=shown[d:])


class StateSpaceGuide(DynamicsGuide):
    """q(z_t | h_t, c_t, a~_t) of a state-space model of a scene."""

    def __init__(self, model: StateSpaceModel) -> None:
        super().__init__(model, model.state_size)
