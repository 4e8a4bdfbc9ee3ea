"""What is learned by acting: a world model, of Dreamer actor and critic; or a ControlVAE."""

import dataclasses
import math
from pathlib import Path
from typing import Any, Literal

import torch
import xarray as xr
from torch import nn

from pyro_animacy.acting.agent import Acted, Agent, Controls, Planned, env_name
from pyro_animacy.acting.behaviour import Behaviour
from pyro_animacy.acting.config import ActConfig
from pyro_animacy.acting.environments import gymnasium
from pyro_animacy.acting.environments.make import frames_per_second
from pyro_animacy.acting.tracking import (
    References,
    Tracker,
    load_references,
    read_references,
    tracking_error,
)
from pyro_animacy.data.episode_windows import EpisodeBatch, EpisodeWindows
from pyro_animacy.errors import ConfigError, RunError
from pyro_animacy.infer import checkpoint
from pyro_animacy.infer.checkpoint import EpisodeCard, folder, load_weights
from pyro_animacy.infer.episodes import see
from pyro_animacy.infer.loop import (
    clip,
    diverged,
    fitting,
    groups,
    make_elbo,
    make_optimizer,
    stream,
    worth_tracing,
)
from pyro_animacy.infer.run import BEHAVIOUR, Run, build
from pyro_animacy.infer.traced import Gradient
from pyro_animacy.models.agent_control_vae import acted
from pyro_animacy.models.program import Memory


class Learner:
    """World model, guide and, of Dreamer, actor and critic: all that is learned.

    A kind of agent is a subclass, which `LEARNERS` names: it says what it needs before a run
    begins, what an update is, which agents act by it, and what an evaluation measures of them.

    Args:
        card: What the world model is of.
        config: The options.
        controls: What can be done.
        device: Where.
        path: The run's folder.
    """

    def __init__(
        self,
        card: EpisodeCard,
        config: ActConfig,
        controls: Controls,
        device: torch.device,
        path: Path,
    ) -> None:
        self.card, self.config, self.device = card, config, device
        o = config.train
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(stream(o.seed, -1))
            self.model, self.guide = build(card)
            self.behaviour = _behaviour(self.model, config, controls)
        self.modules = nn.ModuleDict({"model": self.model, "guide": self.guide}).to(device)
        if self.behaviour is not None:
            self.behaviour.to(device)
        self.optimizer = make_optimizer(groups(self.modules, o), o)
        traced = worth_tracing(o, config.updates_before(config.episodes - 1))
        self.gradient = Gradient(make_elbo(o), self.model, self.guide, traced=traced)
        self.agent, self.evaluated = self.agents(controls)

    def agents(self, controls: Controls) -> tuple[Any, Any]:
        """What collects by what is learned, and what is evaluated."""
        agent = _agent(self.guide, self.behaviour, self.config, controls)
        return agent, agent

    @staticmethod
    def references(env: gymnasium.Env, controls: Controls, config: ActConfig) -> xr.Dataset | None:
        """What is learned from besides the replay, to be kept with the run.

        Raises:
            ConfigError: If this kind of agent cannot act in the environment, or is given nothing.
            DataError: If what it is given is not of the environment.
        """
        return None

    @staticmethod
    def loaded(run: Run, config: ActConfig, controls: Controls) -> Any:
        """The agent that a run has learned.

        Raises:
            RunError: If a file is missing or damaged, or of other options.
        """
        with torch.random.fork_rng(devices=[]):  # the parameters drawn are replaced below
            behaviour = _behaviour(run.model, config, controls)
        if behaviour is not None:
            weights = folder(run.path, run.checkpoint) / BEHAVIOUR
            tensors, _ = load_weights(weights)
            with fitting(str(weights)):
                behaviour.load_state_dict(tensors)
        return _agent(run.guide, behaviour, config, controls)

    def measured(self, episodes: list[xr.Dataset]) -> dict[str, float]:
        """What an evaluation says of its episodes besides their returns."""
        return {}

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
        if wrong := clip(self.optimizer, loss, o):
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
        return followed.at(going)

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

    The unit of a state is its spread in the references.

    Args:
        card: What the model is of.
        config: The options.
        controls: What can be done.
        device: Where.
        path: The run's folder, which holds the references.
    """

    def __init__(
        self,
        card: EpisodeCard,
        config: ActConfig,
        controls: Controls,
        device: torch.device,
        path: Path,
    ) -> None:
        self.learned, self.heldout = load_references(path, config.train.seed)
        self.windows = EpisodeWindows(self.learned, config.train.window, "observation")
        shown = see(self.learned)
        sight = acted(card.sight)._replace(mean=shown.mean, spread=shown.spread)
        card = dataclasses.replace(card, sight=sight)
        super().__init__(card, config, controls, device, path)

    def agents(self, controls: Controls) -> tuple[Tracker, Tracker]:
        """Both follow references: one those that are learned from, the other those held out."""
        c, spread, steps = self.config, self.model.spread, self.config.train.window - 1
        return (
            Tracker(
                self.guide, References(self.learned, spread, steps), controls,
                prior_share=c.prior_share, exploration=c.exploration,
            ),
            Tracker(self.guide, References(self.heldout, spread, steps), controls),
        )  # fmt: skip

    @staticmethod
    def references(env: gymnasium.Env, controls: Controls, config: ActConfig) -> xr.Dataset:
        """The reference motion: see `Learner.references`."""
        if controls.discrete:
            raise ConfigError(
                f"{env_name(env)} has discrete actions, and the policy of control_vae is a "
                "Gaussian; choose another agent or environment"
            )
        shape: Any = env.observation_space.shape
        return read_references(config.reference, shape[0], frames_per_second(env))

    @staticmethod
    def loaded(run: Run, config: ActConfig, controls: Controls) -> Tracker:
        """The agent that follows what a run has held out."""
        heldout = load_references(run.path, config.train.seed)[1]
        references = References(heldout, run.model.spread, config.train.window - 1)
        return Tracker(run.guide, references, controls)

    def measured(self, episodes: list[xr.Dataset]) -> dict[str, float]:
        """How far they are from the references that are held out."""
        followed = self.evaluated.references
        errors = [tracking_error(episode, followed) for episode in episodes]
        return {"tracking_error": sum(errors) / len(errors)}

    def update(self, batch: EpisodeBatch, step: int) -> dict[str, float]:
        """One update of the transition, from windows of the replay, and one of all else.

        Raises:
            RunError: If a loss is not finite.
        """
        which = torch.randint(len(self.windows), (self.config.train.windows_each,))
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
        if wrong := clip(self.optimizer, loss, o):
            raise diverged(f"update {step}, {only}", wrong)
        self.optimizer.step()
        terms = elbo.logged()
        if only == "transition":
            del terms["kl"]
        return {"loss": loss.item(), **terms}


def _behaviour(model: Any, config: ActConfig, controls: Controls) -> Behaviour | None:
    """Actor and critic in a world model, as they begin; None where the agent plans."""
    if not config.dreams:
        return None
    return Behaviour(model, config.behaviour, discrete=controls.discrete)


def _agent(guide: Any, behaviour: Behaviour | None, config: ActConfig, controls: Controls) -> Agent:
    """The agent that acts by an actor, or where there is none by search."""
    choose: Any = (
        Acted(behaviour.actor)
        if behaviour is not None
        else Planned(guide.model, config.planner, controls)
    )
    return Agent(guide, choose, controls, bits=config.bits, exploration=config.exploration)


LEARNERS: dict[str, type[Learner]] = {
    "planet": Learner,
    "dreamer": Learner,
    "dreamerv2": Learner,
    "control_vae": TrackingLearner,
}
