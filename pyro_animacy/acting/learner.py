"""What is learned by acting: the world model and, of Dreamer, actor and critic."""

import math
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pyro_animacy.acting.agent import Acted, Agent, Controls, Planned
from pyro_animacy.acting.behaviour import Behaviour
from pyro_animacy.acting.config import ActConfig
from pyro_animacy.acting.run import BEHAVIOUR, fitting
from pyro_animacy.data.episode_windows import EpisodeBatch
from pyro_animacy.errors import RunError
from pyro_animacy.infer import checkpoint
from pyro_animacy.infer.checkpoint import EpisodeCard
from pyro_animacy.infer.loop import (
    clip,
    diverged,
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
        self.optimizer = make_optimizer(self.modules.parameters(), o)
        traced = worth_tracing(o, config.updates_before(config.episodes - 1))
        self.gradient = Gradient(make_elbo(o), self.model, self.guide, traced=traced)
        choose = (
            Acted(self.behaviour.actor)
            if self.behaviour is not None
            else Planned(self.model, config.planner, controls)
        )
        self.agent = Agent(
            self.guide, choose, controls, bits=config.bits, exploration=config.exploration
        )

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
