"""ControlVAE for animacy: what the agents choose, and how the scene goes on.

    z_t ~ N(mu_p(c_t), sigma_p^2 I)                 prior: what the agents choose in this scene
    a_t ~ pi(a | c_t, z_t)                          policy: the displacement that carries it out
    s_{t+1} = s_t + a_t                             the known transition, no world model to train
    q(z_t | c_t, s~_{t+1}) = N(mu_p + mu_q, sigma_q^2 I)      guide: a residual around the prior

           c_t ----> z_t
            |         |                 s~ is the recording, s the model's own roll-out;
            +----+----+                 c_t holds s_t and the last displacements
                 v
    s_t -------> a_t ----> s_{t+1}

With sigma_q = sigma_p, KL(q || p) = |mu_q|^2 / (2 sigma_p^2).

Yao, Song, Chen & Liu, ControlVAE: Model-Based Learning of Generative Controllers for Physics-Based
Characters, ACM Transactions on Graphics 41(6), 2022, equations 2 to 9. The squared error with
roll-out in closed loop is their training; the policy likelihood, teacher forced, with
``discount = 1`` and ``kl_weight = 1`` is a true bound on log p(recording).
"""

import math
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import pyro
import torch
from pyro import poutine
from pyro.distributions import Independent, Normal
from torch import Tensor, nn

from pyro_animacy.data.windows import Batch, Scale, body_pairs
from pyro_animacy.errors import ConfigError
from pyro_animacy.models.program import MessengerGuide, declare_parameters
from pyro_animacy.nets import FixedScaleNormal, PolicyNormal, ResidualNormal, Stack, StackConfig


@dataclass(frozen=True)
class ControlVAEConfig:
    """Options of `ControlVAE`.

    Args:
        history: Frames the networks see: s_t and the ``history - 1`` displacements before it.
        latent_size: Size Z of the latent z_t.
        latent_scale: sigma_p, standard deviation of the prior.
        posterior_scale: ``prior`` ties sigma_q to sigma_p, as in the paper; ``learned`` lets the
            encoder give it, which tightens the bound.
        likelihood: ``squared_error`` of the next state under a sampled action, or the ``policy``
            density of the recorded displacement.
        roll_out: ``closed_loop`` feeds the model's own state back; ``teacher_forced`` takes every
            step from the recording.
        policy_scale: Fixed standard deviation of the policy in root-mean-square displacements, or
            null to learn it (the policy likelihood only).
        arena: Part of the known transition in free motion. ``recorded``: bodies stop where
            none was recorded beyond, as at a wall, of which recordings only show the near side;
            ``open``: it goes on.
        action_cost: w_a, weight of the expected squared action.
        discount: gamma, the weight of step t is gamma^t.
        prior: Sizes of the network mu_p.
        posterior: Sizes of the network mu_q.
        policy: Sizes of the network of pi.
    """

    history: int = 2
    latent_size: int = 16
    latent_scale: float = 0.3
    posterior_scale: Literal["prior", "learned"] = "learned"
    likelihood: Literal["squared_error", "policy"] = "policy"
    roll_out: Literal["closed_loop", "teacher_forced"] = "teacher_forced"
    policy_scale: float | None = None
    arena: Literal["recorded", "open"] = "recorded"
    action_cost: float = 0.0
    discount: float = 1.0
    prior: StackConfig = field(default_factory=StackConfig)
    posterior: StackConfig = field(default_factory=StackConfig)
    policy: StackConfig = field(default_factory=StackConfig)

    def __post_init__(self) -> None:
        """Check the values.

        Raises:
            ConfigError: If a value cannot be used; the message names it.
        """
        for name, good, wanted in (
            ("history", self.history >= 1, "at least 1"),
            ("latent_size", self.latent_size >= 1, "at least 1"),
            ("latent_scale", self.latent_scale > 0, "positive"),
            ("action_cost", self.action_cost >= 0, "not negative"),
            ("discount", 0 < self.discount <= 1, "in (0, 1]"),
            ("policy_scale", self.policy_scale is None or self.policy_scale > 0, "positive"),
        ):
            if not good:
                raise ConfigError(f"model.{name} is {getattr(self, name)}; expected it {wanted}")
        if self.likelihood == "squared_error" and self.policy_scale is None:
            raise ConfigError(
                "model.policy_scale must be given with the squared error, which would drive a "
                "learned scale to zero; the paper uses 0.05"
            )


class Step(nn.Module):
    """The step program, declared once: z_t given c_t, and the policy pi(. | c_t, z_t)."""

    def __init__(self, prior: nn.Module, policy: nn.Module) -> None:
        super().__init__()
        self.prior, self.policy = prior, policy

    def forward(self, name: str, context: Tensor, evidence: "Evidence | None") -> Independent:
        """Declare z_t at site ``name`` and return pi. Only a guide looks at the evidence."""
        z = pyro.sample(name, self.prior(context), infer={"evidence": evidence})
        return self.policy(context, z)


class Evidence(NamedTuple):
    """What the guide may look at: c_t (..., C), s~_{t+1} - s_t (..., D), and whether it was seen.

    Unseen coordinates of the displacement are 0; ``seen`` (...) is false where all are.
    """

    context: Tensor
    displacement: Tensor
    seen: Tensor


class RollOut(NamedTuple):
    """The model's own motion: states s_{1..T}, actions a_{0..T-1} and their policies, each by t."""

    state: list[Tensor]
    action: list[Tensor]
    policy: list[Independent]

    def stacked(self, start: Tensor) -> tuple[Tensor, Tensor, Independent]:
        """s_{0..T-1}, a_{0..T-1} and pi_{0..T-1} with time in front, given s_0."""
        loc = torch.stack([pi.base_dist.loc for pi in self.policy])
        scale = torch.stack([pi.base_dist.scale for pi in self.policy])
        state = torch.stack([start, *self.state[:-1]])
        return state, torch.stack(self.action), Normal(loc, scale).to_event(1)


class ControlVAE(nn.Module):
    """The model p(z, a, s | s_0), a Pyro program: ``model(batch)`` declares it on recordings.

    Args:
        config: The options.
        scale: The length scale of the recordings; sets the networks' input units and the floor of
            a learned policy scale, the standard deviation of the resolution's uniform noise.
        bodies: Number of bodies.
        axes: Number of axes.
    """

    view: Tensor
    low: Tensor
    high: Tensor

    def __init__(
        self, config: ControlVAEConfig, *, scale: Scale, bodies: int, axes: int = 2
    ) -> None:
        super().__init__()
        self.config = config
        self.state_size = D = bodies * axes
        self.register_buffer("view", _view(bodies, axes, scale))
        self.register_buffer("low", torch.tensor(scale.low))
        self.register_buffer("high", torch.tensor(scale.high))
        viewed = self.view.shape[1]
        self.context_size = C = viewed + (config.history - 1) * D
        Z = config.latent_size
        inertia = torch.zeros(D, C)
        if config.history > 1:  # constant velocity: a_t = a_{t-1}, the newest displacement in c_t
            inertia[:, viewed : viewed + D] = torch.eye(D)
        prior = FixedScaleNormal(Stack(C, Z, config.prior), config.latent_scale)
        policy = PolicyNormal(
            C, Z, D, config.policy, scale=config.policy_scale,
            floor=max(scale.resolution / math.sqrt(12), 1e-4), mean_init=inertia,
        )  # fmt: skip
        self.step = Step(prior, policy)

    def forward(self, batch: Batch, *, score: bool = False) -> None:
        """Declare the joint density of latents, actions and the recording.

        Args:
            batch: Windows of ``history + T`` frames.
            score: Declare the true bound whatever the options: teacher forced, policy likelihood,
                no discount and no action cost.
        """
        declare_parameters(self)
        config = self.config
        closed_loop = config.roll_out == "closed_loop" and not score
        squared_error = config.likelihood == "squared_error" and not score
        gamma = 1.0 if score else config.discount
        state, target, seen, actions = self.recorded(batch)
        T, B, _ = state.shape
        discount = gamma ** torch.arange(T, dtype=state.dtype, device=state.device)[:, None]
        time, trajectory = pyro.plate("time", T, dim=-2), pyro.plate("trajectory", B, dim=-1)

        if closed_loop:
            with trajectory:
                rolled = self.roll_out(state[0], [a[0] for a in actions], T, (target, seen))
            state, action, pi = rolled.stacked(state[0])
        else:
            evidence = self.evidence(batch)
            seen = seen & evidence.seen[..., None]
            with time, trajectory, poutine.scale(scale=discount):
                pi = self.step("latent", evidence.context, evidence)
                # with the policy likelihood the action is what was recorded
                action = pyro.sample("action", pi) if squared_error else evidence.displacement

        mu, sigma = pi.base_dist.loc, pi.base_dist.scale
        with time, trajectory, poutine.scale(scale=discount):
            # -log N(s~ - s; a, 1/2) = |s~ - (s + a)|^2 + constant
            fits = Normal(action, math.sqrt(0.5)) if squared_error else Normal(mu, sigma)
            displacement = (target - state) * seen
            pyro.sample("reconstruction", fits.mask(seen).to_event(1), obs=displacement)
            # p(s_{t+1} | s_t, a_t) is a Dirac delta
            pyro.deterministic("state", state + action, 1)
            if config.action_cost and not score:
                expected = (mu**2 + sigma**2).sum(-1) * seen.any(-1)  # E|a_t|^2 under pi
                pyro.factor("action_cost", -config.action_cost * expected)

    def roll_out(
        self,
        state: Tensor,
        actions: list[Tensor],
        steps: int,
        recording: tuple[Tensor, Tensor] | None = None,
    ) -> RollOut:
        """Run the step program in closed loop: s_{t+1} = s_t + a_t, a_t ~ pi, z_t ~ p or a guide.

        Without a recording the motion is free, and ends at the walls of the arena.

        Args:
            state: s_0 (..., D).
            actions: The ``history - 1`` displacements before it, newest first, each (..., D).
            steps: Number of steps T.
            recording: s~_{1..T} and whether it was seen, each (T, ..., D), for a guide to look at.
        """
        history = self.config.history
        gamma = 1.0 if recording is None else self.config.discount
        walls = recording is None and self.config.arena == "recorded"
        # A body that starts beyond a wall is in another arena, where that wall does not stand.
        low = self.low.where(state >= self.low, -torch.inf)
        high = self.high.where(state <= self.high, torch.inf)
        rolled = RollOut([], [], [])
        s = state
        for t in range(steps):
            c, evidence = self.context(s, actions), None
            if recording is not None:
                target, seen = recording[0][t], recording[1][t]
                evidence = Evidence(c, (target - s) * seen, seen.any(-1))
            with poutine.scale(scale=gamma**t):
                pi = self.step(f"latent_{t}", c, evidence)
                a = pyro.sample(f"action_{t}", pi)
            if walls:  # the displacement that the walls leave
                a = (s + a).clamp(low, high) - s
            s = s + a
            actions = [a, *actions][: history - 1]
            rolled.state.append(s)
            rolled.action.append(a)
            rolled.policy.append(pi)
        return rolled

    def context(self, state: Tensor, actions: list[Tensor]) -> Tensor:
        """c_t (..., C): s_t, the differences between bodies, and the last displacements.

        Args:
            state: s_t (..., D).
            actions: The ``history - 1`` displacements before it, newest first, each (..., D).
        """
        return torch.cat([state @ self.view, *actions], -1)

    def recorded(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor, list[Tensor]]:
        """Unpack a batch of ``history + T`` frames.

        Returns:
            s~_{0..T-1} (T, B, D); s~_{1..T} (T, B, D); whether each coordinate of s~_{1..T} was
            observed; and the displacements before each s~_t, newest first, each (T, B, D).
        """
        k = self.config.history
        x, observed = batch
        moves = x[1:] - x[:-1]
        T = len(x) - k
        return x[k - 1 : -1], x[k:], observed[k:], [moves[i : i + T] for i in range(k - 2, -1, -1)]

    def evidence(self, batch: Batch) -> Evidence:
        """What the recording shows at every step, teacher forced: tensors of (T, B, ...).

        A step is seen where its context was recorded in full and some of its next coordinates.
        """
        k = self.config.history
        state, target, seen, actions = self.recorded(batch)
        complete = batch.observed.all(-1)[:-1].unfold(0, k, 1).all(-1)
        seen = seen & complete[..., None]
        return Evidence(self.context(state, actions), (target - state) * seen, seen.any(-1))


class ControlVAEGuide(MessengerGuide):
    """q(z_t | c_t, s~_{t+1}) = N(mu_p + mu_q, sigma_q^2 I), in the model's own run.

    It answers each z_t that comes with evidence by a residual around the prior just declared, and
    leaves every other site (the actions, steps that were not recorded) to its prior.

    Args:
        model: The model; its parameters are shared, not registered again.
    """

    def __init__(self, model: ControlVAE) -> None:
        super().__init__(model)
        config = model.config
        Z, learned = config.latent_size, config.posterior_scale == "learned"
        inputs = model.context_size + model.state_size
        network = Stack(inputs, 2 * Z if learned else Z, config.posterior)
        self.residual = ResidualNormal(network, learn_scale=learned)

    def posterior(self, prior: Independent, evidence: Evidence) -> Independent:
        """Return N(mu_p + mu_q(c_t, s~_{t+1} - s_t), sigma_q^2 I)."""
        x = torch.cat([evidence.context, evidence.displacement], -1)
        return self.residual(prior, x, evidence.seen)


def _view(bodies: int, axes: int, scale: Scale) -> Tensor:
    """Linear map (D, D + pairs x axes) from s_t to what the networks see of it, of order one.

    Positions in units of their extent, and the differences between bodies in units of theirs:
    a chase happens at a scale that the size of the arena would hide.
    """
    here = torch.eye(bodies * axes) / scale.extent
    columns = [here]
    for i, j in body_pairs(bodies):
        difference = here[:, i * axes : (i + 1) * axes] - here[:, j * axes : (j + 1) * axes]
        columns.append(difference * (scale.extent / scale.separation))
    return torch.cat(columns, 1)
