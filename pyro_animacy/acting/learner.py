"""What is learned by acting: a world model, of Dreamer actor and critic; or a ControlVAE."""

import math
from pathlib import Path
from typing import Any, Literal

import torch
import xarray as xr
from torch import nn

from pyro_animacy.acting.agent import Acted, Agent, Controls, Planned
from pyro_animacy.acting.behaviour import Behaviour
from pyro_animacy.acting.config import ActConfig
from pyro_animacy.acting.run import BEHAVIOUR, fitting
from pyro_animacy.acting.tracking import References, Tracker
from pyro_animacy.data.episode_windows import EpisodeBatch, EpisodeWindows
from pyro_animacy.errors import RunError
from pyro_animacy.infer import checkpoint
from pyro_animacy.infer.checkpoint import EpisodeCard
from pyro_animacy.infer.loop import (
    clip,
    diverged,
    groups,
    make_elbo,
    make_optimizer,
    stream,
    worth_tracing,
)
from pyro_animacy.infer.run import build
from pyro_animacy.infer.traced import Gradient
from pyro_animacy.models.program import Memory


class Learner:
    """World model, guide and, of Dreamer, actor and critic: all that is learned.

    Args:
        card: What the world model is of.
        config: The options.
        controls: What can be done.
        device: Where.
    """

    def __init__(
        self, card: EpisodeCard, config: ActConfig, controls: Controls, device: torch.device
    ) -> None:
        self.card, self.config, self.device = card, config, device
        o = config.train
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(stream(o.seed, -1))
            self.model, self.guide = build(card)
            dreams = config.dreams
            self.behaviour = (
                Behaviour(self.model, config.behaviour, discrete=controls.discrete)
                if dreams
                else None
            )
        self.modules = nn.ModuleDict({"model": self.model, "guide": self.guide}).to(device)
        if self.behaviour is not None:
            self.behaviour.to(device)
        self.optimizer = make_optimizer(groups(self.modules, o), o)
        traced = worth_tracing(o, config.updates_before(config.episodes - 1))
        self.gradient = Gradient(make_elbo(o), self.model, self.guide, traced=traced)
        self.agent = self.acts(controls)

    def acts(self, controls: Controls) -> Any:
        """The agent that acts by what is learned."""
        choose = (
            Acted(self.behaviour.actor)
            if self.behaviour is not None
            else Planned(self.model, self.config.planner, controls)
        )
        return Agent(
            self.guide, choose, controls, bits=self.config.bits,
            exploration=self.config.exploration,
        )  # fmt: skip

    def update(self, batch: EpisodeBatch, step: int) -> dict[str, float]:
        """One update of everything from a batch of windows; returns the terms of the losses.

        Raises:
            RunError: If a loss is not finite.
        """
        o, elbo = self.config.train, self.gradient.elbo
        batch = batch.to(self.device)
        elbo.kl_weight = o.kl_weight(step // o.steps_per_epoch)
        elbo.scale = 1 / max(int(batch.observed.sum()), 1)
        loss = self.gradient(batch)
        if wrong := clip(self.modules.parameters(), loss, o):
            raise diverged(f"update {step}", wrong)
        self.optimizer.step()
        row = {"loss": loss.item(), **elbo.logged()}
        if self.behaviour is not None:
            found = self.behaviour.update(self.model, self.beliefs(batch), step)
            if not all(map(math.isfinite, found.values())):
                said = ", ".join(f"{name} {value:.4g}" for name, value in found.items())
                raise RunError(
                    f"update {step}: actor and critic have diverged ({said}); lower "
                    "behaviour.actor_rate, behaviour.critic_rate or behaviour.clip_norm"
                )
            row |= found
        return row

    @torch.no_grad()
    def beliefs(self, batch: EpisodeBatch) -> Memory:
        """m_t ~ q(. | o, a) of every observed frame at which a batch goes on, (frames, ...)."""
        with self.guide:
            followed = self.model.follow(batch)
        going = batch.observed
        if batch.continuation is not None:  # after an end there is nothing to act in
            going = going & batch.continuation.bool()
        return Memory(*(x[going] for x in followed))

    def state(self) -> dict[str, Any]:
        """Parameters and optimisers, to go on from."""
        state = {
            "parameters": self.modules.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }
        if self.behaviour is not None:
            state["behaviour"] = {
                "parameters": self.behaviour.state_dict(),
                "optimizers": [o.state_dict() for o in self.behaviour.optimizers],
            }
        return state

    def load(self, state: dict[str, Any]) -> None:
        """Take up what `state` returned.

        Raises:
            RunError: If it is of another model, actor or critic.
        """
        with fitting("the saved state"):
            self.modules.load_state_dict(state["parameters"])
            self.optimizer.load_state_dict(state["optimizer"])
            if self.behaviour is not None:
                self.behaviour.load_state_dict(state["behaviour"]["parameters"])
                for optimizer, saved in zip(
                    self.behaviour.optimizers, state["behaviour"]["optimizers"], strict=True
                ):
                    optimizer.load_state_dict(saved)

    def save_weights(self, path: Path) -> None:
        """Write the world model as `Run.load` reads it, and actor and critic beside it."""
        checkpoint.save_weights(path / checkpoint.WEIGHTS, self.modules.state_dict(), self.card)
        if self.behaviour is not None:
            checkpoint.save_weights(path / BEHAVIOUR, self.behaviour.state_dict(), self.card)


class TrackingLearner(Learner):
    """Prior, policy, guide and transition, learned by turns: see `acting.tracking`.

    Args:
        card: What the model is of.
        config: The options.
        controls: What can be done.
        device: Where.
        references: Episodes to learn from.
    """

    def __init__(
        self,
        card: EpisodeCard,
        config: ActConfig,
        controls: Controls,
        device: torch.device,
        references: xr.Dataset,
    ) -> None:
        self.references = references
        self.windows = EpisodeWindows(references, config.train.window, "observation")
        super().__init__(card, config, controls, device)

    def acts(self, controls: Controls) -> Tracker:
        """The agent, which collects by following the references that it learns from."""
        c = self.config
        references = References(self.references, self.model.spread, c.train.window - 1)
        return Tracker(
            self.guide, references, controls, prior_share=c.prior_share, exploration=c.exploration
        )

    def update(self, batch: EpisodeBatch, step: int) -> dict[str, float]:
        """One update of the transition, from windows of the replay, and one of all else.

        Raises:
            RunError: If a loss is not finite.
        """
        which = torch.randint(len(self.windows), (self.config.train.batch_size,))
        row = self._turn("transition", batch, step)
        other = self._turn("policy", self.windows.batch(which), step)
        return row | other | {"loss": row["loss"] + other["loss"]}

    def _turn(
        self, only: Literal["policy", "transition"], batch: EpisodeBatch, step: int
    ) -> dict[str, float]:
        """One update by one of the two sums, in nats a step."""
        o, elbo = self.config.train, self.gradient.elbo
        batch = batch.to(self.device)
        elbo.kl_weight = o.kl_weight(step // o.steps_per_epoch)
        elbo.scale = 1 / max(int(batch.observed[1:].sum()), 1)
        self.optimizer.zero_grad()  # to none: what this sum says nothing of does not move
        loss = elbo.differentiable_loss(self.model, self.guide, batch, only=only)
        loss.backward()
        if wrong := clip(self.modules.parameters(), loss, o):
            raise diverged(f"update {step}, {only}", wrong)
        self.optimizer.step()
        terms = elbo.logged()
        if only == "transition":
            del terms["kl"]
        return {"loss": loss.item(), **terms}
