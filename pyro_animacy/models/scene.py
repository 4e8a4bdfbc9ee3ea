"""What every model of a scene of bodies shares: the known transition, and two drivers of a step.

A model declares one step, `advance` (z_t, and what is carried on) and `policy`:

    m_t = advance(c_t, m_{t-1})                     memory m_t = (h_t, z_t), z_t ~ p(z | h_t, c_t)
    a_t ~ pi(a | c_t, m_t)                          the displacement of every body
    s_{t+1} = s_t + a_t                             the known transition, no world model to train

- *closed loop* (`SceneModel.roll_out`) feeds the model's own state back, the training objective of
  ControlVAE (Yao et al. 2022), and what generates motion;
- *teacher forced* (`SceneModel.follow`) takes every step from the recording. With ``discount = 1``,
  ``kl_weight = 1`` and the policy likelihood it is a true bound on log p(recording).

`SceneModel.forward` is the program: either driver, then the observation of the recording.
"""

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import pyro
import torch
from pyro import poutine
from pyro.distributions import Normal, TorchDistribution
from torch import Tensor, nn

from pyro_animacy.data.windows import Batch, Scale, body_pairs
from pyro_animacy.errors import ConfigError, how_many
from pyro_animacy.models.densities import expected_cost, rebuilt
from pyro_animacy.models.program import (
    Evidence,
    Memory,
    Overshooting,
    all_true,
    declare_parameters,
    discounts,
    every_step,
    every_trajectory,
    no_memory,
)
from pyro_animacy.models.recorded import Recorded, some_of, spread
from pyro_animacy.models.scene_config import SceneConfig
from pyro_animacy.resting import Policy, components, free, observed

MEMORY_STEPS = 32  # where neither the options nor a fit's window says how many


class RollOut(NamedTuple):
    """The model's own motion, by t: s_{1..T}, a_{0..T-1}, their policies, and z_{0..T-1}."""

    state: list[Tensor]
    action: list[Tensor]
    policy: list[Policy]
    latent: list[Tensor]

    def stacked(self, start: Tensor) -> tuple[Tensor, Tensor, Policy]:
        """s_{0..T-1}, a_{0..T-1} and pi_{0..T-1} with time in front, given s_0."""
        state = torch.stack([start, *self.state[:-1]])
        return state, torch.stack(self.action), rebuilt(self.policy, torch.stack)


class SceneModel(nn.Module):
    """The model p(z, a, s | s_0), a Pyro program: ``model(batch)`` declares it on recordings.

    Args:
        config: The options.
        scale: The length scale of the recordings; sets the networks' input units and the floor of
            a learned policy scale, the standard deviation of the resolution's uniform noise.
        bodies: Number of bodies.
        axes: Number of axes.

    Attributes:
        latent_size: Numbers in z_t; 0 where the model has no latent.
        memory_size: Numbers in h_t; 0 where the model has no memory.
        memory_steps: Past steps that scores and forecasts show to a model that remembers.
        parts: Into how many equal parts, of independent bodies and their latents, a step falls
            given the recorded states.
    """

    view: Tensor
    low: Tensor
    high: Tensor
    latent_size: int
    memory_size: int = 0
    parts: int = 1

    def __init__(self, config: SceneConfig, *, scale: Scale, bodies: int, axes: int = 2) -> None:
        super().__init__()
        self.config = config
        self.state_size = D = bodies * axes
        self.register_buffer("view", _view(bodies, axes, scale))
        self.register_buffer("low", torch.tensor(scale.low))
        self.register_buffer("high", torch.tensor(scale.high))
        self.context_size = self.view.shape[1] + (config.history - 1) * D
        self.latent_size = config.latent_size
        self.memory_steps = config.memory_steps or MEMORY_STEPS
        # below the resolution of a recording a density means nothing
        self.least_scale = max(scale.resolution / math.sqrt(12), 1e-4)

    @property
    def latent_remembered(self) -> bool:
        """As of the options."""
        return self.config.latent_remembered

    @property
    def remembers(self) -> bool:
        """As of the options."""
        return self.config.remembers

    def advance(
        self, name: str, context: Tensor, memory: Memory, evidence: Evidence | None
    ) -> Memory:
        """Declare z_t at site ``name``, and return m_t = (h_t, z_t).

        Args:
            name: Of the site.
            context: c_t (..., C).
            memory: m_{t-1}.
            evidence: What a guide may look at; the model itself does not.
        """
        raise NotImplementedError

    def policy(self, context: Tensor, memory: Memory) -> Policy:
        """Return pi(. | c_t, m_t), a diagonal Gaussian over a_t (..., D), or one that may rest."""
        raise NotImplementedError

    def observation(
        self, policy: Policy, action: Tensor, seen: Tensor, *, score: bool = False
    ) -> TorchDistribution:
        """The density of the recorded displacement s~_{t+1} - s_t, where it was seen.

        pi itself, or with the squared error, -log N(s~ - s; a, 1/2) = |s~ - (s + a)|^2 + constant.

        Args:
            policy: pi(. | c_t, m_t).
            action: a_t (..., D), as drawn.
            seen: Whether each coordinate was observed, (..., D).
            score: pi, whatever the options.
        """
        if self.config.likelihood == "squared_error" and not score:
            return Normal(action, math.sqrt(0.5)).mask(seen).to_event(1)
        return observed(policy, seen)

    def start(self, shape: Sequence[int]) -> Memory:
        """The memory before the first step, zeros: h (*shape, H) and z (*shape, Z)."""
        return no_memory(self.view, shape, self.memory_size, self.latent_size)

    def overshoot(
        self, evidence: Evidence, memory: Memory, seen: Tensor, options: Overshooting
    ) -> None:
        """Declare what is expected of steps further ahead, if the model's latents remember."""
        raise ConfigError(
            "train.overshooting needs a model whose latents remember (rssm, stochastic)"
        )

    def forward(
        self, batch: Batch, *, score: bool = False, overshooting: Overshooting | None = None
    ) -> None:
        """Declare the joint density of latents, actions and the recording.

            site             its term of the loss, by gamma^t
            latent[_t]       KL(q(z_t) || p(z_t))
            reconstruction   -log pi(s~_{t+1} - s_t | c_t, m_t)               policy
                             -log N(s~_{t+1}; s_t + a_t, I/2), a_t ~ pi       squared_error
            action_cost      w_a E |a_t|^2 + w_1 E |a_t|_1,  a_t ~ pi

        Teacher forced s_t is the recorded s~_t; in closed loop it is the model's own.

        Args:
            batch: Windows of ``history + T`` frames.
            score: Declare the true bound whatever the options: teacher forced, policy likelihood,
                no discount and no action cost.
            overshooting: Also declare what is expected of steps further ahead (teacher forced).
        """
        declare_parameters(self)
        config = self.config
        closed_loop = config.roll_out == "closed_loop" and not score
        squared_error = config.likelihood == "squared_error" and not score
        if overshooting is not None and (closed_loop or config.discount < 1):
            raise ConfigError(
                "train.overshooting needs model.roll_out: teacher_forced, and model.discount: 1"
            )
        gamma = 1.0 if score else config.discount
        of = self.recorded(batch)
        state, target = of.state, of.target
        T, B, _ = state.shape
        discount = discounts(gamma, T, state)
        time, trajectory = pyro.plate("time", T, dim=-2), every_trajectory("trajectory", B)

        if closed_loop:
            seen, first = of.followed, [a[0] for a in of.actions]
            with trajectory:
                rolled = self.roll_out(state[0], first, T, (target, seen), of.known[0])
            state, action, pi = rolled.stacked(state[0])
        else:
            evidence, memory = self.follow(batch, gamma)
            seen = of.seen
            if overshooting is not None:
                self.overshoot(evidence, memory, seen, overshooting)
            pi = self.policy(evidence.context, memory)
            with time, trajectory, poutine.scale(scale=discount):
                # with the policy likelihood the action is what was recorded
                action = pyro.sample("action", pi) if squared_error else evidence.shown

        with time, trajectory, poutine.scale(scale=discount):
            displacement = (target - state) * seen
            fits = self.observation(pi, action, seen, score=score)
            pyro.sample("reconstruction", fits, obs=displacement)
            # p(s_{t+1} | s_t, a_t) is a Dirac delta
            pyro.deterministic("state", state + action, 1)
            weights = config.action_cost, config.action_cost_absolute
            if any(weights) and not score:
                parts = (
                    [x.unflatten(-1, (self.parts, -1)) for x in (of.loc, of.scale, share)]
                    for share, of in components(pi)
                )
                cost = sum(expected_cost(mu, sigma, *weights, share=s) for mu, sigma, s in parts)
                pyro.factor("action_cost", -(cost * some_of(seen, self.parts)).sum(-1))

    def follow(
        self, batch: Batch, discount: float = 1.0, heard: Batch | None = None
    ) -> tuple[Evidence, Memory]:
        """Run the step program teacher forced: declare z_t at every recorded step.

        In a loop, or where a step depends on its context alone, of all steps at one site.

        Args:
            batch: Windows of ``history + T`` frames.
            discount: gamma, which scales site t by gamma^t.
            heard: As of `evidence`.

        Returns:
            What each step showed, tensors of (T, B, ...), and m_t, likewise.
        """
        evidence = self.evidence(batch, heard)
        T, B, _ = evidence.seen.shape
        if not self.remembers:
            with every_step(T, B), poutine.scale(scale=discounts(discount, T, evidence.context)):
                return evidence, self.advance(
                    "latent", evidence.context, self.start((T, B)), evidence
                )
        memory, followed = self.start((B,)), []
        with every_trajectory("latent_trajectory", B):
            for t in range(T):
                now = evidence.at(t)
                with poutine.scale(scale=discount**t):
                    memory = self.advance(f"latent_{t}", now.context, memory, now)
                followed.append(memory)
        return evidence, Memory.stacked(followed)

    def roll_out(
        self,
        state: Tensor,
        actions: list[Tensor],
        steps: int,
        recording: tuple[Tensor, Tensor] | None = None,
        here: Tensor | None = None,
    ) -> RollOut:
        """Run the step program in closed loop: s_{t+1} = s_t + a_t, a_t ~ pi, z_t ~ p or a guide.

        Without a recording the motion is free, and ends at the walls of the arena.

        Args:
            state: s_0 (..., D).
            actions: The ``history - 1`` displacements before it, newest first, each (..., D).
            steps: Number of steps T.
            recording: s~_{1..T} and whether it was seen, each (T, ..., D), for a guide to look at.
            here: Which bodies of a set are there, (..., N); all by default. The others are not
                heard, and what is drawn of them means nothing.
        """
        found = RollOut([], [], [], [])
        for step in self.rolling(state, actions, steps, recording, here):
            for kept, one in zip(found, step, strict=True):
                kept.append(one)
        return found

    def rolling(
        self,
        state: Tensor,
        actions: list[Tensor],
        steps: int,
        recording: tuple[Tensor, Tensor] | None = None,
        here: Tensor | None = None,
        memory: Memory | None = None,
    ) -> Iterator[tuple[Tensor, Tensor, Policy, Tensor]]:
        """Run `roll_out` step by step, yielding s_{t+1}, a_t, its policy and z_t.

        The caller keeps what it needs. ``memory`` is m before the first step, that of `start` by
        default; all else is as in `roll_out`.
        """
        history = self.config.history
        gamma = 1.0 if recording is None else self.config.discount
        walled = recording is None and self.config.arena == "recorded"
        walls = self.walls(state) if walled else None
        recorded = recording and (*recording, some_of(recording[1], self.parts))
        complete = recording is not None and all_true(recording[1])
        here = None if here is None or all_true(here) else here
        s, m = state, memory or self.start(state.shape[:-1])
        for t in range(steps):
            c, evidence = self.context(s, actions, here), None
            if recorded is not None:
                target, seen, some = (x[t] for x in recorded)
                shown = target - s
                evidence = Evidence(c, shown if complete else shown * seen, some, complete)
            with poutine.scale(scale=gamma**t):
                m = self.advance(f"latent_{t}", c, m, evidence)
                pi = self.policy(c, m)
                a = pyro.sample(f"action_{t}", free(pi) if recording is None else pi)
            if walls is not None:  # the displacement that the walls leave
                a = (s + a).clamp(*walls) - s
            s = s + a
            actions = [a, *actions][: history - 1]
            yield s, a, pi, m.latent

    def walls(self, state: Tensor) -> tuple[Tensor, Tensor]:
        """The walls of free motion from s_0 (..., D): least and greatest coordinates, (..., D).

        Infinite in an open arena; and where a body starts beyond a wall, since it is in another
        arena then, where that wall does not stand.
        """
        walled = self.config.arena == "recorded"
        low = self.low.where((state >= self.low) & walled, -torch.inf)
        high = self.high.where((state <= self.high) & walled, torch.inf)
        return low, high

    def context(
        self,
        state: Tensor,
        actions: list[Tensor],
        here: Tensor | None = None,
        heard: tuple[Tensor, list[Tensor]] | None = None,
    ) -> Tensor:
        """c_t (..., C): s_t, the differences between bodies, and the last displacements.

        Args:
            state: s_t (..., D).
            actions: The ``history - 1`` displacements before it, newest first, each (..., D).
            here: Which bodies of a set are there, (..., N); all by default.
            heard: Of each body of a set another scene (..., N, D), its state and displacements, in
                which it hears the others.
        """
        return torch.cat([state @ self.view, *actions], -1)

    def inertia(self, inputs: int) -> Tensor:
        """Constant velocity, a_t = a_{t-1}: weights (D, inputs) of inputs that begin with c_t."""
        D, viewed = self.state_size, self.view.shape[1]
        weight = torch.zeros(D, inputs)
        if self.config.history > 1:  # the newest displacement in c_t
            weight[:, viewed : viewed + D] = torch.eye(D)
        return weight

    def recorded(self, batch: Batch) -> Recorded:
        """What a batch of ``history + T`` frames shows of each step, in the model's parts.

        Raises:
            ConfigError: If the batch is not of this model.
        """
        (frames, *_, D), k = batch.position.shape, self.config.history
        if frames <= k or self.state_size != D:
            raise ConfigError(
                f"the batch has {how_many(frames, 'frame')} of {how_many(D, 'coordinate')}; this "
                f"model looks back on {k}, so that a step needs {k + 1}, of {self.state_size}"
            )
        if batch.position.dtype != self.view.dtype:
            raise ConfigError(
                f"the batch is {batch.position.dtype} and the model {self.view.dtype}; "
                "batch.to(device, dtype) changes the one, model.to(dtype) the other"
            )
        return Recorded.of(batch, self.config.history, self.parts)

    def evidence(self, batch: Batch, heard: Batch | None = None) -> Evidence:
        """What the recording shows at every step, teacher forced: tensors of (T, B, ...).

        A step, or the part of it that is of one body of a set, is seen where its context was
        recorded in full, and at least one coordinate of what follows. A context that was not
        recorded in full is 0, and others do not hear of it.

        Args:
            batch: Windows of ``history + T`` frames.
            heard: Of a set, other windows for each body, (frames, B, N, D): what it hears of the
                others is taken from these, all else from ``batch``.
        """
        of = self.recorded(batch)
        here, others = of.known, None
        if heard is not None:
            elsewhere = self.recorded(heard)
            here, others = elsewhere.known, (elsewhere.state, elsewhere.actions)
        context = self.context(of.state, of.actions, None if all_true(here) else here, others)
        if not all_true(of.known):
            context = context * spread(of.known, self.context_size)
        seen = of.seen
        some = some_of(seen, self.parts)
        return Evidence(context, (of.target - of.state) * seen, some, all_true(some))


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
