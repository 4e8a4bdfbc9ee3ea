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

In closed loop it is the paper's Algorithm 1, which trains the two parts by two sums, each of which
leaves the other's parameters alone (K is ``transition_steps``, and k its last multiple up to t):

    policy       sum_t gamma^t { |s~_{t+1} - s_{t+1}|^2 + w_a E|a_t|^2 + beta KL_t },
                 a_t ~ pi, s_{t+1} = s_t + omega(s_t, a_t) from s_0 = s~_0, with omega a constant
    transition   - sum_t log N(s~_{t+1}; what omega makes of s~_k under a~_k .. a~_t, diag sigma^2)

The paper's transition has the L1 norm, a Laplace density; here it is the Gaussian, whose sigma is
then that of the bound, by which every run is scored. In scenes (`pyro_animacy.models.control_vae`)
no action is recorded, so there a learned transition could say nothing that the policy cannot:
p(s_{t+1} | s_t, z_t) depends on the two composed alone.

Yao, Song, Chen & Liu, ControlVAE: Model-Based Learning of Generative Controllers for Physics-Based
Characters, ACM Transactions on Graphics 41(6), 2022, equations 2 to 9 and Algorithm 1.
"""

import copy
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
from pyro_animacy.models.program import (
    Evidence,
    MessengerGuide,
    all_true,
    declare_parameters,
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
            ``closed_loop`` feeds the model's own state back, the paper's Algorithm 1.
        transition_steps: K, recorded actions over which the transition is rolled on from a recorded
            state while it is trained; of ``closed_loop``.
        action_cost: w_a, weight of the expected squared action; of ``closed_loop``.
        discount: gamma, the weight of step t is gamma^t; of ``closed_loop``.
        action_spread: Standard deviation of each control, the unit in which networks see and give
            it; null measures it in the training part, and is 1 without one.
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
    discount: float = 1.0
    action_spread: tuple[float, ...] | None = None
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
            ("discount", 0 < self.discount <= 1, "in (0, 1]"),
            ("action_spread", min(self.action_spread or (1.0,)) > 0, "positive"),
        )
        if self.roll_out == "closed_loop" and self.policy_scale is None:
            raise ConfigError(
                "model.policy_scale must be given with model.roll_out closed_loop, whose squared "
                "error would drive a learned scale to zero; the paper uses 0.05"
            )
        if self.roll_out == "teacher_forced" and (self.action_cost or self.discount != 1):
            raise ConfigError(
                "model.action_cost and model.discount are of model.roll_out closed_loop; teacher "
                "forced, the actions are the recorded ones, and every step counts alike"
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
        sight: What there is to see: vectors, and actions.

    Attributes:
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
        unit = config.action_spread or (1.0,) * A
        if len(unit) != A:
            raise ConfigError(f"model.action_spread has {len(unit)} numbers for {A} controls")
        self.register_buffer("mean", torch.tensor(sight.mean))
        self.register_buffer("spread", torch.tensor(sight.spread))
        self.register_buffer("action_spread", torch.tensor(unit))
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

    def forward(self, batch: EpisodeBatch, *, score: bool = False) -> None:
        """Declare the joint density of latents, actions and states.

        Args:
            batch: Windows of T + 1 frames.
            score: Declare the true bound whatever the options: teacher forced.

        Raises:
            DataError: If windows have a single frame.
        """
        declare_parameters(self)
        steps = recorded(batch)
        if score or self.config.roll_out == "teacher_forced":
            self._bound(steps)
        else:
            self._track(steps)
            self._open_loop(steps)

    def _bound(self, steps: Steps) -> None:
        """Every step from the recording; given that, they are independent."""
        state, action, target, seen = steps
        T, B = seen.shape
        evidence = Evidence(state, target - state, seen, all_true(seen))
        with pyro.plate("time", T, dim=-2), pyro.plate("trajectory", B, dim=-1):
            z = pyro.sample("latent", self.prior(state), infer={"evidence": evidence})
            with poutine.mask(mask=seen):
                pyro.sample("action", self.policy(state, z), obs=action)
                pyro.sample("reconstruction", self.transition(state, action), obs=target)

    def _track(self, steps: Steps) -> None:
        """The policy's term: a roll-out through the transition's mean, which learns nothing by it.

        The squared error is that of states in their spreads, as -log N(.; 1/2 I), so that its
        constant is a density's; the action is in its spreads too.
        """
        state, _, target, seen = steps
        (T, B), gamma, cost = seen.shape, self.config.discount, self.config.action_cost
        change = constant(self.change)
        with every_trajectory("trajectory", B):
            rolled = self.roll_out(
                state[0], T, (target, seen), transition=lambda s, a: self._moved(change, s, a)
            )
        _, _, pi = rolled.stacked(state[0])
        discount = gamma ** torch.arange(T, dtype=state.dtype, device=state.device)[:, None]
        with (
            pyro.plate("time", T, dim=-2),
            every_trajectory("trajectory", B),
            poutine.scale(scale=discount),
            poutine.mask(mask=seen),
        ):
            fits = Normal(torch.stack(rolled.state), self.spread * math.sqrt(0.5))
            pyro.sample("reconstruction", fits.to_event(1), obs=target)
            if cost:
                loc, scale = pi.base_dist.loc, pi.base_dist.scale
                expected = ((loc**2 + scale**2) / self.action_spread**2).sum(-1)  # E|a_t|^2
                pyro.factor("action_cost", -cost * expected)

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
                evidence = Evidence(s, target - s, seen, complete)
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

    It sees states and no action, as in the paper: so it also follows recordings without any. Every
    other site (actions in closed loop, steps that were not recorded) keeps its prior.

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
        return self.residual(prior, x, evidence.mask)


def acted(sight: Sight) -> Sight:
    """What the model sees of it: vectors and actions, no rewards and no ends.

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


def constant(network: nn.Module) -> nn.Module:
    """The network with its present parameters as constants: a gradient goes through, not into it.

    A copy that shares their memory, so that it also may recompute its activations.
    """
    return copy.deepcopy(network, {id(p): p.detach() for p in network.parameters()})
