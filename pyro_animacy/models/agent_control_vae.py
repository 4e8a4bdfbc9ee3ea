"""ControlVAE of an agent: what it chooses, what it does, and what comes of it, which is learned.

    z_t ~ N(mu_p(s_t), sigma_p^2 I)                     prior: what the agent chooses
    a_t ~ pi(a | s_t, z_t)                              policy: the action that carries it out
    s_{t+1} ~ N(s_t + omega(s_t, a_t), diag sigma^2)    learned transition: it gives the change
    q(z_t | s_t, s~_{t+1}) = N(mu_p + mu_q, sigma_q^2 I)     guide: a residual around the prior

    s_t ----+--> z_t             s~, a~ are the recording, s, a the model's own roll-out;
     |      |     |              s is the vector that an agent observes, and s_0 is given.
     |      +-----+--> a_t       Rewards and ends of episodes are not modelled.
     |                  |
     +------------------+--> s_{t+1}

Teacher forced, every step from the recording, the program is a true bound:

    log p(s~_{1..T}, a~_{0..T-1} | s~_0)
        >= E_q sum_t [ log pi(a~_t | s~_t, z_t) + log p(s~_{t+1} | s~_t, a~_t) - KL(q || p) ]

In closed loop it is what the paper's Algorithm 1 minimises (`pyro_animacy.acting.tracking` collects
as it does): two parts by two sums, each of which leaves the other's parameters alone (K is
``transition_steps``, and k its last multiple up to t):

    policy       sum_t gamma^t { |s~_{t+1} - s_{t+1}|^2 + w_a E|a_t|^2 + w_1 E|a_t|_1 + beta KL_t },
                 a_t ~ pi, s_{t+1} = s_t + omega(s_t, a_t) from s_0 = s~_0, with omega a constant
    transition   - sum_t log N(s~_{t+1}; what omega makes of s~_k under a~_k .. a~_t, diag sigma^2)

The paper's transition has the L1 norm, a Laplace density; here it is the Gaussian, whose sigma is
then that of the bound, by which every run is scored. In scenes (`pyro_animacy.models.control_vae`)
no action is recorded, so there a learned transition could say nothing that the policy cannot:
p(s_{t+1} | s_t, z_t) depends on the two composed alone.

Yao, Song, Chen & Liu, ControlVAE: Model-Based Learning of Generative Controllers for Physics-Based
Characters, ACM Transactions on Graphics 41(6), 2022, equations 2 to 9 and Algorithm 1.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import ClassVar, Literal, NamedTuple

import pyro
import torch
from pyro import poutine
from pyro.distributions import Independent, Normal
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from pyro_animacy.data.episode_windows import EpisodeBatch
from pyro_animacy.errors import ConfigError, DataError, require
from pyro_animacy.models.densities import expected_cost
from pyro_animacy.models.program import (
    Evidence,
    MessengerGuide,
    all_true,
    declare_parameters,
    discounts,
    every_trajectory,
)
from pyro_animacy.models.scene import RollOut
from pyro_animacy.models.world_model import LEAST_SCALE, Sight
from pyro_animacy.nets import (
    FixedScaleNormal,
    PolicyNormal,
    ResidualNormal,
    Stack,
    StackConfig,
    constant,
    normal,
)

Transition = Callable[[Tensor, Tensor], Tensor]  # s_{t+1} of s_t and a_t


@dataclass(frozen=True)
class AgentControlVAEConfig:
    """Options of `AgentControlVAE`.

    Args:
        latent_size: Size Z of the latent z_t.
        latent_scale: sigma_p, standard deviation of the prior.
        posterior_scale: ``prior`` ties sigma_q to sigma_p, as in the paper; ``learned`` lets the
            encoder give it, which tightens the bound.
        policy_scale: Fixed standard deviation of the policy, in those of each control, or null to
            learn it (teacher forced only).
        roll_out: ``teacher_forced`` takes every step from the recording, a true bound;
            ``closed_loop`` feeds the model's own state back, as the paper's Algorithm 1.
        transition_steps: K, recorded actions over which the transition is rolled on from a recorded
            state while it is trained; of ``closed_loop``.
        action_cost: w_a, weight of the expected squared action; of ``closed_loop``.
        action_cost_absolute: w_1, weight of the expected absolute action, summed over controls;
            of ``closed_loop``.
        discount: gamma, the weight of step t is gamma^t; of ``closed_loop``.
        prior: Sizes of the network mu_p.
        posterior: Sizes of the network mu_q.
        policy: Sizes of the network of pi.
        transition: Sizes of the network omega; the paper's has 4 layers of 512.
    """

    latent_size: int = 16
    latent_scale: float = 0.3
    posterior_scale: Literal["prior", "learned"] = "learned"
    policy_scale: float | None = None
    roll_out: Literal["teacher_forced", "closed_loop"] = "teacher_forced"
    transition_steps: int = 8
    action_cost: float = 0.0
    action_cost_absolute: float = 0.0
    discount: float = 1.0
    prior: StackConfig = field(default_factory=StackConfig)
    posterior: StackConfig = field(default_factory=StackConfig)
    policy: StackConfig = field(default_factory=StackConfig)
    transition: StackConfig = field(default_factory=StackConfig)

    def __post_init__(self) -> None:
        """Check the values.

        Raises:
            ConfigError: If a value cannot be used; the message names it.
        """
        sigma = self.policy_scale
        require(
            "model.",
            vars(self),
            ("latent_size", self.latent_size >= 1, "at least 1"),
            ("latent_scale", self.latent_scale > 0, "positive"),
            ("policy_scale", sigma is None or sigma > 0, "positive, or null"),
            ("transition_steps", self.transition_steps >= 1, "at least 1"),
            ("action_cost", self.action_cost >= 0, "0 or more"),
            ("action_cost_absolute", self.action_cost_absolute >= 0, "0 or more"),
            ("discount", 0 < self.discount <= 1, "in (0, 1]"),
        )
        if self.roll_out == "closed_loop" and self.policy_scale is None:
            raise ConfigError(
                "model.policy_scale must be given with model.roll_out closed_loop, whose squared "
                "error would drive a learned scale to zero; the paper uses 0.05"
            )
        others = self.action_cost, self.action_cost_absolute, 1 - self.discount
        if self.roll_out == "teacher_forced" and any(others):
            raise ConfigError(
                "model.action_cost, model.action_cost_absolute and model.discount are of "
                "model.roll_out closed_loop; teacher forced, the actions are the recorded ones, "
                "and every step counts alike"
            )


class Steps(NamedTuple):
    """What was recorded, by step: T of them in a window of T + 1 frames.

    Attributes:
        state: s~_{0..T-1} (T, B, F).
        action: a~_{0..T-1} (T, B, A); a~_t leads from s~_t to s~_{t+1}.
        target: s~_{1..T} (T, B, F).
        seen: Whether both states are there, (T, B).
    """

    state: Tensor
    action: Tensor
    target: Tensor
    seen: Tensor


class AgentControlVAE(nn.Module):
    """The model p(z, a, s | s_0), a Pyro program: ``model(batch)`` declares it on episodes.

    Args:
        config: The options.
        sight: What there is to see: vectors, and actions, whose spread is the unit that networks
            see and give them in.

    Attributes:
        latent_size: Numbers in z_t.
        given: First frames of a window that are conditioned on: the bound is of the others.

    Raises:
        ConfigError: If there are images in place of vectors, or no actions.
    """

    given: ClassVar[int] = 1
    mean: Tensor
    spread: Tensor
    action_spread: Tensor

    def __init__(self, config: AgentControlVAEConfig, sight: Sight) -> None:
        super().__init__()
        self.config, self.sight = config, acted(sight)
        self.latent_size = Z = config.latent_size
        (S,), A = sight.shape, sight.actions
        self.register_buffer("mean", torch.tensor(sight.mean))
        self.register_buffer("spread", torch.tensor(sight.spread))
        self.register_buffer("action_spread", torch.tensor(sight.action_spread or (1.0,) * A))
        self.chooses = FixedScaleNormal(Stack(S, Z, config.prior), config.latent_scale)
        self.acts = PolicyNormal(
            S, Z, A, config.policy, scale=config.policy_scale, floor=LEAST_SCALE,
            mean_init=torch.zeros(A, S),
        )  # fmt: skip
        self.change = Stack(S + A, S, config.transition)
        self.raw_scale = nn.Parameter(torch.full((S,), math.log(math.expm1(0.3))))

    @property
    def scale(self) -> Tensor:
        """Sigma (F,), of the next state, in standard deviations of each feature."""
        return F.softplus(self.raw_scale) + LEAST_SCALE

    def view(self, state: Tensor) -> Tensor:
        """The state (..., F) as networks see it, of mean 0 and spread 1 in the data."""
        return (state - self.mean) / self.spread

    def prior(self, state: Tensor) -> Independent:
        """p(z_t | s_t) of (..., Z), given s_t (..., F)."""
        return self.chooses(self.view(state))

    def policy(self, state: Tensor, latent: Tensor) -> Independent:
        """pi(. | s_t, z_t), a diagonal Gaussian over a_t (..., A) in the data's units."""
        pi = self.acts(self.view(state), latent).base_dist
        return normal(pi.loc * self.action_spread, pi.scale * self.action_spread)

    def after(self, state: Tensor, action: Tensor) -> Tensor:
        """The mean of s_{t+1} (..., F), s_t + omega(s_t, a_t)."""
        return self._moved(self.change, state, action)

    def transition(self, state: Tensor, action: Tensor) -> Independent:
        """p(s_{t+1} | s_t, a_t), a diagonal Gaussian over (..., F) in the data's units."""
        return normal(self.after(state, action), self.spread * self.scale)

    def transition_parameters(self) -> list[nn.Parameter]:
        """Those of omega and sigma, which a term of their own alone moves."""
        return [*self.change.parameters(), self.raw_scale]

    def forward(
        self,
        batch: EpisodeBatch,
        *,
        score: bool = False,
        only: Literal["policy", "transition"] | None = None,
    ) -> None:
        """Declare the joint density of latents, actions and states.

        Args:
            batch: Windows of T + 1 frames.
            score: Declare the true bound whatever the options: teacher forced.
            only: Of Algorithm 1, declare one of its two sums alone, where each has its own windows
                (`pyro_animacy.acting.tracking`). The policy's asks for no actions.

        Raises:
            DataError: If windows have a single frame.
        """
        declare_parameters(self)
        steps = recorded(batch)
        if score or self.config.roll_out == "teacher_forced":
            self._bound(steps)
            return
        if only != "transition":
            self._track(steps)
        if only != "policy":
            self._open_loop(steps)

    def _bound(self, steps: Steps) -> None:
        """Every step from the recording; given that, they are independent."""
        state, action, target, seen = steps
        T, B = seen.shape
        evidence = Evidence(state, target - state, seen[..., None], all_true(seen))
        with pyro.plate("time", T, dim=-2), pyro.plate("trajectory", B, dim=-1):
            z = pyro.sample("latent", self.prior(state), infer={"evidence": evidence})
            with poutine.mask(mask=seen):
                pyro.sample("action", self.policy(state, z), obs=action)
                pyro.sample("reconstruction", self.transition(state, action), obs=target)

    def _track(self, steps: Steps) -> None:
        """The policy's term: a roll-out through the transition's mean, which learns nothing.

        States and actions are in units of their spreads. The squared error is -log N(.; 1/2 I), so
        that its constant is that of a density.
        """
        state, _, target, seen = steps
        T, B = seen.shape
        weights = self.config.action_cost, self.config.action_cost_absolute
        change = constant(self.change)
        with every_trajectory("trajectory", B):
            rolled = self.roll_out(
                state[0], T, (target, seen), transition=lambda s, a: self._moved(change, s, a)
            )
        _, _, pi = rolled.stacked(state[0])
        with (
            pyro.plate("time", T, dim=-2),
            every_trajectory("trajectory", B),
            poutine.scale(scale=discounts(self.config.discount, T, state)),
            poutine.mask(mask=seen),
        ):
            fits = Normal(torch.stack(rolled.state), self.spread * math.sqrt(0.5))
            pyro.sample("reconstruction", fits.to_event(1), obs=target)
            if any(weights):
                mu, sigma = (x / self.action_spread for x in (pi.base_dist.loc, pi.base_dist.scale))
                pyro.factor("action_cost", -expected_cost(mu, sigma, *weights))

    def _open_loop(self, steps: Steps) -> None:
        """The transition's own term: from every K-th recorded state, under the recorded actions."""
        state, action, target, seen = steps
        T, B = seen.shape
        K, s, means = self.config.transition_steps, state[0], []
        for t in range(T):
            s = self.after(s if t % K else state[t], action[t])
            means.append(s)
        with (
            pyro.plate("time_open_loop", T, dim=-2),
            every_trajectory("trajectory", B),
            poutine.mask(mask=seen),
        ):
            density = normal(torch.stack(means), self.spread * self.scale)
            pyro.sample("transition", density, obs=target)

    def roll_out(
        self,
        state: Tensor,
        steps: int,
        recording: tuple[Tensor, Tensor] | None = None,
        transition: Transition | None = None,
    ) -> RollOut:
        """Act in closed loop: a_t ~ pi, z_t from the prior, or by a guide after a recording.

        Args:
            state: s_0 (..., F).
            steps: Number of steps T.
            recording: s~_{1..T} (T, ..., F) and whether each was seen (T, ...), for a guide to look
                at; None where the agent is free.
            transition: What s_t and a_t lead to; by default s_{t+1} is drawn.
        """
        follow, gamma = transition or self._draw, self.config.discount
        complete = recording is not None and all_true(recording[1])
        rolled = RollOut([], [], [], [])
        s = state
        for t in range(steps):
            evidence = None
            if recording is not None:
                target, seen = (x[t] for x in recording)
                evidence = Evidence(s, target - s, seen[..., None], complete)
            with poutine.scale(scale=gamma**t):
                z = pyro.sample(f"latent_{t}", self.prior(s), infer={"evidence": evidence})
            pi = self.policy(s, z)
            a = pyro.sample(f"action_{t}", pi)
            s = follow(s, a)
            for part, value in zip(rolled, (s, a, pi, z), strict=True):
                part.append(value)
        return rolled

    def imagine(self, state: Tensor, actions: Tensor) -> Tensor:
        """Draw s_{1..H} (H, ..., F) from s_0 (..., F) on, under actions a_{0..H-1} (H, ..., A)."""
        states = [state]
        for action in actions:
            states.append(self._draw(states[-1], action))
        return torch.stack(states[1:])

    def _draw(self, state: Tensor, action: Tensor) -> Tensor:
        return self.transition(state, action).rsample()

    def _moved(self, change: nn.Module, state: Tensor, action: Tensor) -> Tensor:
        x = torch.cat([self.view(state), action / self.action_spread], -1)
        return state + self.spread * change(x)


class AgentControlVAEGuide(MessengerGuide):
    """q(z_t | s_t, s~_{t+1}) = N(mu_p + mu_q, sigma_q^2 I), in the model's own run.

    It sees states and no actions, as in the paper, so it can also follow recordings without any.
    Every other site (actions in closed loop, steps that were not recorded) keeps its prior.

    Args:
        model: The model; its parameters are shared, not registered again.
    """

    def __init__(self, model: AgentControlVAE) -> None:
        super().__init__(model)
        config, (S,) = model.config, model.sight.shape
        Z, learned = config.latent_size, config.posterior_scale == "learned"
        self.residual = ResidualNormal(
            Stack(2 * S, 2 * Z if learned else Z, config.posterior), learn_scale=learned
        )

    def posterior(self, prior: Independent, evidence: Evidence) -> Independent:
        """Return N(mu_p + mu_q(s_t, s~_{t+1} - s_t), sigma_q^2 I)."""
        model: AgentControlVAE = self.model  # type: ignore[assignment]
        x = torch.cat([model.view(evidence.context), evidence.shown / model.spread], -1)
        return self.residual(prior, x, seen=evidence.mask)


def acted(sight: Sight) -> Sight:
    """What the model sees of it: vectors and actions, neither rewards nor ends.

    Raises:
        ConfigError: If there are images in place of vectors, or no actions.
    """
    if sight.image:
        raise ConfigError(
            "agent_control_vae needs `observation`, vectors such as positions and velocities, and "
            "these episodes have images; leave `image` out, or take the model world_model"
        )
    if not sight.actions:
        raise ConfigError(
            "agent_control_vae needs episodes with `action`, what the agent did, and these have "
            "none; take the model world_model, or record the actions"
        )
    return sight._replace(reward=False, continuation=False)


def recorded(batch: EpisodeBatch) -> Steps:
    """Unpack windows of T + 1 frames; entry t + 1 of a batch has the action that led there, a_t.

    Raises:
        DataError: If they have a single frame.
    """
    x, seen = batch.observation, batch.observed
    if len(x) < 2:
        raise DataError("windows of 1 frame hold no step; give 2 or more, by --train.window")
    return Steps(x[:-1], batch.action[1:], x[1:], seen[:-1] & seen[1:])
