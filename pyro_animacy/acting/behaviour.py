r"""Dreamer's behaviour: an actor and a critic that learn from what a world model imagines.

    a_t ~ pi(a | m_t)                               actor: a Pyro policy
    m_{t+1} ~ p(m | m_t, a_t)                       the world model's prior, no observation
    v(m_t)                                          critic: N(v, 1) of the return

      a_0        a_1            a_{H-1}             m_0 is a posterior of the recorded episodes,
     ^   \      ^   \          ^   \                r_t the reward met at m_t, gamma_t the discount
    m_0 --> m_1 ---> m_2 ... ---> m_H               times the probability that it goes on there
            r_1      r_2          r_H

    V_t = r_{t+1} + gamma_{t+1} [ (1 - lambda) v(m_{t+1}) + lambda V_{t+1} ],     V_H = v(m_H)
    w_t = gamma_1 ... gamma_t                       so that what may never be met weighs less

    critic    sum_t w_t 1/2 | v(m_t) - sg(V_t) |^2
    actor     - sum_t w_t { rho log pi(a_t) sg(V_t - v(m_t)) + (1 - rho) V_t + eta H[pi(. | m_t)] }

with sg() a stop of the gradient. Dreamer has rho = 0 and eta = 0: the gradient of V_t through the
dynamics. DreamerV2 has rho = 1 for discrete actions (REINFORCE, the critic its baseline), and a
critic inside V_t that is copied now and then.

It is control as inference. Let actions have a uniform prior, and let what was hoped for be observed
with likelihood exp(sum_t w_t V_t / eta); then with the actor for a guide

    ELBO = E_pi[ sum_t w_t V_t ] / eta - sum_t KL( pi(. | m_t) || uniform )

whose maximum, at rho = 0 and w = 1, is the minimum of the loss above (tests/test_behaviour.py). Of
its gradient one path is left out, as in the papers: what an action changes in what the actor sees
later, since m_t is a constant to it.

Hafner et al., Dream to Control, 2020, equations 4 to 8; Mastering Atari with Discrete World Models,
2021, equations 3 to 6; Levine, Reinforcement Learning and Control as Probabilistic Inference, 2018.
"""

import math
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import pyro
import torch
from pyro.distributions import Normal, TransformedDistribution
from pyro.distributions.transforms import TanhTransform
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from pyro_animacy.errors import require
from pyro_animacy.models.categorical import OneHot
from pyro_animacy.models.program import Memory
from pyro_animacy.models.world_model import WorldModel
from pyro_animacy.nets import Stack, StackConfig


@dataclass(frozen=True)
class BehaviourConfig:
    """Options of actor and critic; the values are Dreamer's.

    Args:
        horizon: H, steps imagined.
        starts: Beliefs that dreams begin at, drawn of those of a batch; null for all, as in the
            papers.
        discount: gamma.
        return_lambda: lambda of the returns, in [0, 1].
        reinforce: rho, the share of the score-function gradient; null is 1 for discrete actions
            and 0 for continuous ones, as in DreamerV2.
        entropy: eta, weight of the policy's entropy.
        actor_rate: Learning rate of the actor.
        critic_rate: Learning rate of the critic.
        clip_norm: Largest norm of either gradient.
        target_every: Updates after which the critic inside the returns is copied from the one
            that learns; 1 is always, as in Dreamer.
        actor: Sizes of the actor's network.
        critic: Sizes of the critic's.
    """

    horizon: int = 15
    starts: int | None = None
    discount: float = 0.99
    return_lambda: float = 0.95
    reinforce: float | None = 0.0
    entropy: float = 0.0
    actor_rate: float = 8e-5
    critic_rate: float = 8e-5
    clip_norm: float = 100.0
    target_every: int = 1
    actor: StackConfig = field(default_factory=lambda: StackConfig(hidden=400, layers=4))
    critic: StackConfig = field(default_factory=lambda: StackConfig(hidden=400, layers=3))

    def __post_init__(self) -> None:
        """Check the values.

        Raises:
            ConfigError: If a value cannot be used; the message names it.
        """
        rho = self.reinforce
        require(
            "behaviour.",
            vars(self),
            ("horizon", self.horizon >= 1, "at least 1"),
            ("starts", self.starts is None or self.starts >= 1, "at least 1, or null"),
            ("discount", 0 < self.discount <= 1, "in (0, 1]"),
            ("return_lambda", 0 <= self.return_lambda <= 1, "in [0, 1]"),
            ("reinforce", rho is None or 0 <= rho <= 1, "in [0, 1], or null"),
            ("entropy", self.entropy >= 0, "0 or more"),
            ("actor_rate", self.actor_rate > 0, "positive"),
            ("critic_rate", self.critic_rate > 0, "positive"),
            ("clip_norm", self.clip_norm > 0, "positive"),
            ("target_every", self.target_every >= 1, "at least 1"),
        )


class Actor(nn.Module):
    """pi(a | m): squashed Gaussian in [-1, 1]^A, or one-hot over A discrete actions.

    The mean before tanh is 5 tanh(x / 5), and the standard deviation begins at ``first_scale``, so
    that actions are spread over all of the range at first, as in Dreamer.

    Args:
        inputs: Numbers in m.
        actions: A.
        discrete: Whether one of A actions is taken, rather than A numbers.
        config: Sizes of the network.
        first_scale: Standard deviation before tanh, at first.
    """

    def __init__(
        self,
        inputs: int,
        actions: int,
        config: StackConfig,
        *,
        discrete: bool = False,
        first_scale: float = 5.0,
    ) -> None:
        super().__init__()
        self.discrete = discrete
        self.network = Stack(inputs, actions if discrete else 2 * actions, config)
        self.raw_first = math.log(math.expm1(first_scale))

    def forward(self, memory: Memory) -> Any:
        """Return pi(. | m) of batch shape (...) and event shape (A,)."""
        out = self.network(torch.cat(memory, -1))
        if self.discrete:
            return OneHot(logits=out)
        mean, raw = out.chunk(2, -1)
        scale = F.softplus(raw + self.raw_first) + 1e-4
        before = Normal(5 * torch.tanh(mean / 5), scale)
        return TransformedDistribution(before, TanhTransform(cache_size=1)).to_event(1)

    def best(self, memory: Memory) -> Tensor:
        """The action (..., A) without noise: the squashed mean, or the likeliest one."""
        pi = self(memory)
        if self.discrete:
            return F.one_hot(pi.logits.argmax(-1), pi.logits.shape[-1]).to(pi.logits)
        return torch.tanh(pi.base_dist.base_dist.loc)


class Critic(nn.Module):
    """N(v(m), 1), the return expected from m on.

    Args:
        inputs: Numbers in m.
        config: Sizes of the network.
    """

    def __init__(self, inputs: int, config: StackConfig) -> None:
        super().__init__()
        self.network = Stack(inputs, 1, config)

    def forward(self, memory: Memory) -> Normal:
        """Return the distribution, of batch shape (...)."""
        return Normal(self.network(torch.cat(memory, -1))[..., 0], 1.0)


class Dream(NamedTuple):
    """What was imagined.

    Attributes:
        memory: m_{0..H}, tensors of (H + 1, B, ...).
        action: a_{0..H-1} (H, B, A).
        log_prob: log pi(a_t | m_t) (H, B), of a_t as a constant.
        entropy: H[pi(. | m_t)] (H, B), by its formula or by its one draw.
    """

    memory: Memory
    action: Tensor
    log_prob: Tensor
    entropy: Tensor


def dream(model: WorldModel, actor: Any, start: Memory, horizon: int) -> Dream:
    """Declare what follows m_0 when the actor acts: sites ``action_k`` and ``imagined_k``.

    The actor sees m_t as a constant: its gradient is through its actions alone.

    Args:
        model: The world model.
        actor: Gives pi(. | m), a distribution of event shape (A,).
        start: m_0, tensors of (B, ...).
        horizon: H.
    """
    memories, actions, log_probs, entropies = [start], [], [], []
    for k in range(horizon):
        memory = memories[-1]
        pi = actor(Memory(*(x.detach() for x in memory)))
        a = pyro.sample(f"action_{k}", pi)
        memories.append(model.dynamics(f"imagined_{k}", memory, a, None))
        actions.append(a)
        entropies.append(_entropy(pi, a))  # first: pi still knows what a was before tanh
        log_probs.append(_log_prob(pi, a))
    stacked = Memory.stacked(memories)
    return Dream(stacked, *map(torch.stack, (actions, log_probs, entropies)))


def _log_prob(pi: Any, action: Tensor) -> Tensor:
    """Log pi(a) of the action as a constant.

    Of a squashed one by what was drawn before tanh, which an action that rounds to 1 does not tell.
    """
    squashed = getattr(pi, "base_dist", None)
    if not isinstance(squashed, TransformedDistribution):
        return pi.log_prob(action.detach())
    (squash,) = squashed.transforms
    x = squash.inv(action).detach()
    return (squashed.base_dist.log_prob(x) - squash.log_abs_det_jacobian(x, action)).sum(-1)


def _entropy(pi: Any, action: Tensor) -> Tensor:
    """H[pi], where there is no formula by a draw, with its gradient through the draw."""
    try:
        return pi.entropy()
    except NotImplementedError:
        return -pi.log_prob(action)


def lambda_returns(reward: Tensor, value: Tensor, discount: Tensor, return_lambda: float) -> Tensor:
    """V_{0..H-1} (H, ...), of equation 6 of Dream to Control in its recursive form.

        V_t = r_{t+1} + gamma_{t+1} [ (1 - lambda) v_{t+1} + lambda V_{t+1} ],   V_H = v_H

    The paper's two others are cases of it: V_R, the sum of imagined rewards (equation 4), has
    lambda = 1, v = 0 and gamma = 1; V_N^k of step t, k rewards and the value after them (equation
    5), is V_0 of what there is from t to t + k, at lambda = 1.

    Args:
        reward: r_{1..H} (H, ...).
        value: v_{0..H} (H + 1, ...); v_0 is not used.
        discount: gamma_{1..H} (H, ...).
        return_lambda: lambda.
    """
    V, returns = value[-1], []
    for r, v, gamma in zip(*(x.flip(0) for x in (reward, value[1:], discount)), strict=True):
        V = r + gamma * ((1 - return_lambda) * v + return_lambda * V)
        returns.append(V)
    return torch.stack(returns[::-1])


class Returns(NamedTuple):
    """What a dream is worth: V_{0..H-1} and the weights w_{0..H-1}, each (H, B)."""

    value: Tensor
    weight: Tensor


def returns(model: WorldModel, critic: Critic, dreamt: Dream, config: BehaviourConfig) -> Returns:
    """V_t and w_t of a dream; V_t has a gradient through what was imagined, w_t has none.

    V_t is in units of the model's ``reward_scale``, so that neither eta nor the learning rates have
    to know how large an environment's rewards are.
    """
    met = dreamt.memory.at(slice(1, None))
    reward = model.rewarded(met).mean / model.reward_scale
    discount = torch.full_like(reward, config.discount)
    if model.ends is not None:
        discount = discount * model.continues(met).mean
    V = lambda_returns(reward, critic(dreamt.memory).mean, discount, config.return_lambda)
    weight = torch.cat([torch.ones_like(discount[:1]), discount[:-1]]).cumprod(0).detach()
    return Returns(V, weight)


def actor_loss(
    dreamt: Dream, worth: Returns, baseline: Tensor, *, reinforce: float, entropy: float
) -> Tensor:
    """The actor's loss, the mean over the batch of the sum at the top of this file.

    Args:
        dreamt: What was imagined.
        worth: Its returns and weights.
        baseline: v(m_{0..H-1}) (H, B).
        reinforce: rho.
        entropy: eta.
    """
    V, w = worth
    gain = entropy * dreamt.entropy if entropy else torch.zeros_like(V)
    if reinforce:
        gain = gain + reinforce * dreamt.log_prob * (V - baseline).detach()
    if reinforce < 1:
        gain = gain + (1 - reinforce) * V
    return -(w * gain).sum(0).mean()


def critic_loss(critic: Critic, dreamt: Dream, worth: Returns) -> Tensor:
    """The critic's loss, the mean over the batch of the sum at the top of this file."""
    V, w = worth
    seen = Memory(*(x[:-1].detach() for x in dreamt.memory))
    return (w * 0.5 * (critic(seen).mean - V.detach()).square()).sum(0).mean()


class Behaviour(nn.Module):
    """Actor, critic and its copy in the returns, with their optimisers.

    Args:
        model: The world model, whose parameters are not touched.
        config: The options.
        discrete: Whether actions are discrete.
    """

    def __init__(self, model: WorldModel, config: BehaviourConfig, *, discrete: bool) -> None:
        super().__init__()
        inputs, A = model.memory_size + model.latent_size, model.sight.actions
        self.config = config
        rho = config.reinforce
        self.reinforce = float(discrete) if rho is None else rho
        self.actor = Actor(inputs, A, config.actor, discrete=discrete)
        self.critic = Critic(inputs, config.critic)
        self.target = Critic(inputs, config.critic).requires_grad_(False)
        self.target.load_state_dict(self.critic.state_dict())
        self.optimizers = [
            torch.optim.AdamW(part.parameters(), lr=rate, weight_decay=0.0, eps=1e-5)
            for part, rate in ((self.actor, config.actor_rate), (self.critic, config.critic_rate))
        ]

    def update(self, model: WorldModel, start: Memory, step: int) -> dict[str, float]:
        """One update of both from a dream; returns what they say of it.

        Args:
            model: The world model.
            start: m_0 (B, ...), without a gradient.
            step: Number of the update, which decides when the critic is copied.
        """
        c = self.config
        if step % c.target_every == 0:
            self.target.load_state_dict(self.critic.state_dict())
        if c.starts is not None:
            some = torch.randperm(len(start.hidden))[: c.starts].to(start.hidden.device)
            start = start.at(some)
        dreamt = dream(model, self.actor, start, c.horizon)
        worth = returns(model, self.target, dreamt, c)
        with torch.no_grad():
            baseline = self.target(dreamt.memory.at(slice(-1))).mean
        losses = (
            actor_loss(dreamt, worth, baseline, reinforce=self.reinforce, entropy=c.entropy),
            critic_loss(self.critic, dreamt, worth),
        )
        norms = [
            _graded(part, loss, c.clip_norm)
            for part, loss in zip((self.actor, self.critic), losses, strict=True)
        ]
        if torch.isfinite(torch.stack([*losses, *norms])).all():  # or else nothing is moved
            for optimizer in self.optimizers:
                optimizer.step()
        return {
            "actor_loss": losses[0].item(),
            "critic_loss": losses[1].item(),
            "actor_gradient": norms[0].item(),
            "critic_gradient": norms[1].item(),
            "imagined_return": worth.value[0].mean().item() * model.reward_scale,
            "policy_entropy": dreamt.entropy.mean().item(),
        }


def _graded(part: nn.Module, loss: Tensor, clip_norm: float) -> Tensor:
    """Give a part its gradient of a loss, clipped; returns the norm that it had."""
    parameters = list(part.parameters())
    gradients = torch.autograd.grad(loss, parameters)
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = gradient
    return nn.utils.clip_grad_norm_(parameters, clip_norm)
