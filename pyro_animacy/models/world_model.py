"""The world model of an agent: what it sees, what it is rewarded with, and whether it goes on.

    h_t = GRU(h_{t-1}, z_{t-1}, a_{t-1})            deterministic path
    z_t ~ p(z | h_t)                                stochastic path: the prior
    o_t ~ N(decoder(h_t, z_t), sigma^2 I)           observation: an image or a vector
    r_t ~ N(s reward(h_t, z_t), s^2)                where the data has rewards; s is their unit
    c_t ~ Bernoulli(continuation(h_t, z_t))         where the data says that episodes ended
    q(z_t | h_t, o_t)                               guide: sees h_t and the encoded observation

    a_{t-1} ----+            a_t -----+
                v                     v             a_{t-1} is the action *before* frame t; all of
    h_{t-1} -> h_t ------> h_{t+1}                  entry t of a batch is known at frame t
       |     ^  |        ^
       v    /   v       /                           the sample of the *posterior* is rolled on; at
    z_{t-1}    z_t ----+                            a frame that was not observed, the prior's

The dynamics are those of `pyro_animacy.models.state_space`: ``memory_size`` 0 gives PlaNet's
stochastic model, ``classes`` one-hot latents. With ``latent_size`` 0 the actions alone decide h_t:
nothing that is observed enters it, and the model foresees the mean of all episodes under these
actions. (PlaNet's deterministic model, figure 2a, infers its state from what it sees.) The bound:

    ELBO = E_q sum_t [ log p(o_t|h_t,z_t) + w_r log p(r_t|h_t,z_t) + log p(c_t|h_t,z_t)
                       - KL( q(z_t|h_t,o_t) || p(z_t|h_t) ) ]

Hafner et al., Learning Latent Dynamics for Planning from Pixels, 2019, equation 3 and appendix A;
Dream to Control, 2020; Mastering Atari with Discrete World Models, 2021.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, ClassVar, NamedTuple

import pyro
import torch
from pyro import poutine
from pyro.distributions import Bernoulli, Independent, Normal
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from pyro_animacy.data.episode_windows import EpisodeBatch
from pyro_animacy.errors import ConfigError, require
from pyro_animacy.images import ImageDecoder, ImageEncoder, PixelNormal
from pyro_animacy.keypoints import KeypointDecoder, KeypointEncoder
from pyro_animacy.models.program import (
    Evidence,
    Memory,
    Overshooting,
    all_true,
    declare_parameters,
    every_trajectory,
    no_memory,
)
from pyro_animacy.models.state_space import Ahead, Dynamics, DynamicsConfig, DynamicsGuide
from pyro_animacy.nets import ACTIVATIONS, Stack, StackConfig

ROWS = 2**10  # imagined rewards that are computed in one call
LEAST_SCALE = 1e-3  # learned sigmas are above, in standard deviations or in ranges of a pixel


@dataclass(frozen=True)
class WorldModelConfig(DynamicsConfig):
    """Options of a `WorldModel`, besides the sizes of its dynamics.

    Args:
        observation_scale: sigma, the standard deviation of an observation about its mean: in
            ranges of a pixel, or standard deviations of each feature of a vector; null learns one
            number for all. 1 for images is PlaNet's sum of squares.
        reward_scale: s, the standard deviation of a reward about its mean, and the unit of its
            network's output; null for the standard deviation of the rewards in the data. 1 in
            the papers, whose rewards are all of that size.
        reward_weight: w_r, weight of the log density of the reward.
        filters: Channels of the image networks' widest pictures, see `pyro_animacy.images`; 32 in
            the papers. The work grows with its square. With keypoints there are several times as
            many channels.
        keypoints: Number of keypoints that images are seen and drawn by, see
            `pyro_animacy.keypoints`, for bodies of a few pixels and images of any size; null for
            the papers' convolutions, of 46 pixels a side or more.
        encoder: Sizes of the network that a vector goes through before the guide sees it.
        decoder: Sizes of the network of a vector's mean.
        reward: Sizes of the network of the reward's mean.
        continuation: Sizes of the network of the continuation's logit.
    """

    observation_scale: float | None = None
    reward_scale: float | None = 1.0
    reward_weight: float = 1.0
    filters: int = 32
    keypoints: int | None = None
    encoder: StackConfig = field(default_factory=lambda: StackConfig(hidden=200, layers=1))
    decoder: StackConfig = field(default_factory=lambda: StackConfig(hidden=200, layers=2))
    reward: StackConfig = field(default_factory=lambda: StackConfig(hidden=200, layers=2))
    continuation: StackConfig = field(default_factory=lambda: StackConfig(hidden=200, layers=2))

    def __post_init__(self) -> None:
        """Check the values.

        Raises:
            ConfigError: If a value cannot be used; the message names it.
        """
        super().__post_init__()
        sigma_o, sigma_r, K = self.observation_scale, self.reward_scale, self.keypoints
        require(
            "model.",
            vars(self),
            ("observation_scale", sigma_o is None or sigma_o > 0, "positive, or null"),
            ("reward_scale", sigma_r is None or sigma_r > 0, "positive, or null"),
            ("filters", self.filters >= 1, "at least 1"),
            ("keypoints", K is None or K >= 1, "at least 1, or null for none"),
            ("reward_weight", self.reward_weight >= 0, "0 or more"),
        )


class Sight(NamedTuple):
    """What there is to see in episodes.

    Attributes:
        shape: Of an observation: (channel, height, width), or (feature,).
        mean: Mean of each feature of a vector, or of each channel of images from -1/2 to 1/2; empty
            for 0.
        spread: Standard deviation of each, positive; empty for 1.
        actions: Number of controls; 0 where nothing is done.
        reward: Whether there are rewards.
        continuation: Whether episodes say that they ended.
        reward_spread: Standard deviation of the rewards, positive.
        action_spread: Standard deviation of each control, positive; empty for 1.
    """

    shape: tuple[int, ...]
    mean: tuple[float, ...] = ()
    spread: tuple[float, ...] = ()
    actions: int = 0
    reward: bool = False
    continuation: bool = False
    reward_spread: float = 1.0
    action_spread: tuple[float, ...] = ()

    @property
    def image(self) -> bool:
        """Whether observations are images."""
        return len(self.shape) == 3


class WorldModel(nn.Module):
    """The model p(z, o, r, c | a), a Pyro program: ``model(batch)`` declares it on episodes.

    Args:
        config: The options.
        sight: What there is to see.

    Attributes:
        given: First frames of a window that are conditioned on: none.
    """

    given: ClassVar[int] = 0
    mean: Tensor
    spread: Tensor

    def __init__(self, config: WorldModelConfig, sight: Sight) -> None:
        super().__init__()
        self.config, self.sight = config, sight
        self.dynamics = Dynamics(config, sight.actions, direct=False)
        self.memory_size, self.latent_size = self.dynamics.memory_size, self.dynamics.latent_size
        features = self.memory_size + self.latent_size
        each = (-1, 1, 1) if sight.image and sight.mean else (-1,)  # channel, or feature
        self.register_buffer("mean", torch.tensor(sight.mean or (0.0,)).view(each))
        self.register_buffer("spread", torch.tensor(sight.spread or (1.0,)).view(each))
        self.decoder: nn.Module
        if sight.image:
            channels, height, width = sight.shape
            points, n = config.keypoints, config.filters
            self.decoder = (
                KeypointDecoder(features, height, width, channels, points, n)
                if points
                else ImageDecoder(features, height, width, channels, filters=n)
            )
        else:
            self.decoder = Stack(features, sight.shape[0], config.decoder)
        self.raw_scale: nn.Parameter | None = None
        if config.observation_scale is None:
            self.raw_scale = nn.Parameter(torch.tensor(math.log(math.expm1(0.3))))
        self.reward = Stack(features, 1, config.reward) if sight.reward else None
        self.reward_scale = config.reward_scale or sight.reward_spread
        self.ends = Stack(features, 1, config.continuation) if sight.continuation else None

    @property
    def scale(self) -> Tensor:
        """sigma, in the units of `WorldModelConfig.observation_scale`."""
        if self.raw_scale is None:
            return self.spread.new_tensor(self.config.observation_scale)
        return F.softplus(self.raw_scale) + LEAST_SCALE

    def observation(self, memory: Memory) -> Independent:
        """p(o_t | h_t, z_t), batch shape (...), event shape that of an observation."""
        made = self.decoder(torch.cat(memory, -1))
        if self.sight.image:  # pixels from 0 to 1
            return PixelNormal(torch.addcmul(self.mean + 0.5, self.spread, made), self.scale)
        return Normal(self.mean + self.spread * made, self.spread * self.scale).to_event(1)

    def rewarded(self, memory: Memory) -> Normal:
        """p(r_t | h_t, z_t), batch shape (...)."""
        return Normal(self.expected_reward(memory), self.reward_scale)

    def expected_reward(self, memory: Memory) -> Tensor:
        """The mean of p(r_t | h_t, z_t), (...)."""
        if self.reward is None:
            raise ConfigError("the model was fitted to episodes without rewards")
        return self.reward_scale * self.reward(torch.cat(memory, -1))[..., 0]

    def continues(self, memory: Memory) -> Bernoulli:
        """p(c_t | h_t, z_t), batch shape (...)."""
        if self.ends is None:
            raise ConfigError("the model was fitted to episodes that do not say that they ended")
        return Bernoulli(logits=self.ends(torch.cat(memory, -1))[..., 0])

    def start(self, shape: Sequence[int]) -> Memory:
        """The memory before the first frame, zeros: h (*shape, H) and z (*shape, Z)."""
        return no_memory(self.spread, shape, self.memory_size, self.latent_size)

    def forward(
        self, batch: EpisodeBatch, *, score: bool = False, overshooting: Overshooting | None = None
    ) -> None:
        """Declare the joint density of latents, observations, rewards and continuations.

        Args:
            batch: Windows of T frames.
            score: Declare the true bound: a reward's weight is 1, and nothing is overshot.
            overshooting: Also declare what is expected of frames further ahead.
        """
        declare_parameters(self)
        memory = self.follow(batch)
        self._observe(batch, memory, "", 1.0, 1.0 if score else self.config.reward_weight)
        if overshooting is None or score:
            return
        seen = batch.observed
        for d, ahead in self.dynamics.overshoot(memory, batch.action, seen, overshooting):
            later: Any = EpisodeBatch(*(None if x is None else x[d:] for x in batch))  # type: ignore[arg-type]
            beta, o = overshooting.weight(d), overshooting
            self._observe(later, ahead, f"_ahead_{d}", beta * o.observation, beta * o.reward)

    def _observe(
        self, batch: EpisodeBatch, memory: Memory, ahead: str, weight: float, reward_weight: float
    ) -> None:
        """Declare what the frames show, given m_t of each (T, B, ...), if its weight is not 0."""
        T, B = batch.observed.shape
        sites: list[tuple[str, Any, Tensor | None, float]] = [
            ("reconstruction", self.observation, batch.observation, weight)
        ]
        if self.reward is not None:
            sites.append(("reward", self.rewarded, batch.reward, reward_weight))
        if self.ends is not None:
            sites.append(("continuation", self.continues, batch.continuation, weight))
        with (
            pyro.plate(f"time_observed{ahead}", T, dim=-2),
            pyro.plate(f"trajectory_observed{ahead}", B, dim=-1),
            poutine.mask(mask=batch.observed),
        ):
            for name, density, value, w in sites:
                if w:
                    with poutine.scale(scale=w):
                        pyro.sample(name + ahead, density(memory), obs=value)

    def follow(self, batch: EpisodeBatch) -> Memory:
        """Declare z_t at every frame; returns m_t, tensors of (T, B, ...)."""
        T, B = batch.observed.shape
        memory, followed = self.start((B,)), []
        seen = batch.observed[..., None]
        evidence = Evidence(batch.action, batch.observation, seen, all_true(seen))
        with every_trajectory("latent_trajectory", B):
            for t in range(T):
                now = evidence.at(t)
                memory = self.dynamics(f"latent_{t}", memory, now.context, now)
                followed.append(memory)
        return Memory.stacked(followed)

    def imagine(self, memory: Memory, actions: Tensor) -> Memory:
        """Roll the prior on from m_t under actions a_{t..t+H-1} (H, ..., A): m_{t+1..t+H}.

        Where actions have more leading batch dimensions than m_t, as a planner's candidates for
        each environment have, all of them begin at m_t.
        """
        imagined = zip(*self._imagined(memory, actions), strict=True)
        return Memory(*(torch.stack(parts).unflatten(1, actions.shape[1:-1]) for parts in imagined))

    def imagined_rewards(self, memory: Memory, actions: Tensor) -> Tensor:
        """Means of the rewards r_{t+1..t+H} (H, ...) along the path of `imagine`.

        Where episodes end, each is weighted by the probability c_{t+1} ... c_{t+k-1} that it is
        reached. A few steps are taken in one call, as many as the processor's cache holds: for a
        planner's thousand candidates all steps at once take over half as long again.
        """
        each = max(1, ROWS // actions[0, ..., 0].numel())
        steps, rewards, goes_on = self._imagined(memory, actions), [], []
        while some := [*islice(steps, each)]:
            together = (torch.cat(parts) for parts in zip(*some, strict=True))
            met = Memory(*together) if each > 1 else some[0]
            rewards.append(self.expected_reward(met))
            if self.ends is not None:
                goes_on.append(self.continues(met).mean)
        r = torch.cat(rewards).view(actions.shape[:-1])
        if not goes_on:
            return r
        c = torch.cat(goes_on).view_as(r)
        return r * torch.cat([torch.ones_like(c[:1]), c[:-1]]).cumprod(0)

    def _imagined(self, memory: Memory, actions: Tensor) -> Iterator[Memory]:
        """m_{t+1}, m_{t+2}, ..., all batch dimensions in one: tensors of (N, ...)."""
        batch = actions.shape[1:-1]
        memory = Memory(*(x.expand(*batch, -1).flatten(0, -2) for x in memory))
        for k, action in enumerate(actions.flatten(1, -2)):
            memory = self.dynamics(f"imagined_{k}", memory, action, None)
            yield memory


class WorldModelGuide(DynamicsGuide):
    """q(z_t | h_t, o_t), with the encoder of observations.

    Args:
        model: The model; its parameters are shared, not registered again.
    """

    def __init__(self, model: WorldModel) -> None:
        shape, config = model.sight.shape, model.config
        if model.sight.image:
            channels, height, width = shape
            encoder: nn.Module = (
                KeypointEncoder(height, width, channels, config.keypoints, config.filters)
                if config.keypoints
                else ImageEncoder(height, width, channels, config.filters)
            )
            super().__init__(model, encoder.features)  # type: ignore[arg-type]
        else:
            encoder = Stack(shape[0], config.encoder.hidden, config.encoder)
            super().__init__(model, config.encoder.hidden)
        self.encoder = encoder

    def posterior(self, prior: Independent, evidence: Evidence | Ahead) -> Independent:
        """Return q(z_t | h_t, o_t)."""
        if isinstance(evidence, Ahead):
            return super().posterior(prior, evidence)
        return super().posterior(prior, evidence._replace(shown=self.encode(evidence.shown)))

    def encode(self, observation: Tensor) -> Tensor:
        """Features (..., E) of observations (..., *shape)."""
        model: WorldModel = self.model  # type: ignore[assignment]
        if model.sight.image:
            return self.encoder((observation - (model.mean + 0.5)) / model.spread)
        features = self.encoder((observation - model.mean) / model.spread)
        return ACTIVATIONS[model.config.encoder.activation](features)
