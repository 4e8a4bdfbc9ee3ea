"""An agent: it keeps a belief of where it is, and chooses what to do.

    m_t ~ q(. | m_{t-1}, a_{t-1}, o_t)              the guide, one step of the world model's program
    a_t = choose(m_t)                               a plan's first action, or the actor's

`play` lets it act in several environments at once, so that search and networks run in one batch,
and returns what happened as episodes.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
import xarray as xr
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from pyro_animacy.acting.behaviour import Actor
from pyro_animacy.acting.environments import gymnasium
from pyro_animacy.acting.environments.make import raised
from pyro_animacy.acting.planners import PlannerConfig, identity, plan
from pyro_animacy.acting.replay import quantised
from pyro_animacy.data.episodes import make_episodes
from pyro_animacy.errors import ConfigError, RunError
from pyro_animacy.infer.traced import Recorded
from pyro_animacy.models.program import Evidence, Memory
from pyro_animacy.models.world_model import WorldModel, WorldModelGuide

LONGEST = 100_000  # steps of an episode: one without an end would go on for ever, and say nothing


class WorldError(RunError):
    """An environment raised, gave what is not finite or of another shape, or has no end."""


class Controls(NamedTuple):
    """What can be done: ``size`` numbers in [-1, 1], or one of ``size`` discrete actions."""

    size: int
    discrete: bool

    @classmethod
    def of(cls, env: gymnasium.Env) -> "Controls":
        """Those of an environment.

        Raises:
            ConfigError: If its actions are neither a vector of numbers nor discrete from 0 on.
        """
        space: Any = env.action_space
        if isinstance(space, gymnasium.spaces.Discrete) and space.start == 0:
            return cls(int(space.n), True)
        if isinstance(space, gymnasium.spaces.Box) and len(space.shape) == 1:
            return cls(space.shape[0], False)
        raise ConfigError(
            f"actions of {env_name(env)} are {space}; they must be a vector of numbers, or "
            "Discrete from 0 on"
        )

    def random(self, environments: int) -> Tensor:
        """Uniformly random actions (E, A)."""
        if self.discrete:
            return F.one_hot(torch.randint(self.size, (environments,)), self.size).float()
        return torch.rand(environments, self.size) * 2 - 1

    def explored(self, action: Tensor, noise: float) -> Tensor:
        """Actions (E, A) with noise: N(0, noise^2), clipped; of discrete ones now and then any."""
        if not noise:
            return action
        if self.discrete:
            other = (torch.rand(len(action), 1) < noise).to(action.device)
            return torch.where(other, self.random(len(action)).to(action), action)
        return (action + noise * torch.randn_like(action)).clamp(-1, 1)

    def given(self, action: Tensor) -> Any:
        """An action (A,) as the environment takes it."""
        return int(action.argmax()) if self.discrete else action.numpy().astype(np.float32)


class Choose(Protocol):
    """What an agent would do, given its belief."""

    def begin(self, environments: int) -> None:
        """Forget what was chosen before."""
        ...

    def __call__(self, memory: Memory, *, explore: bool) -> Tensor:
        """Actions (E, A) in E environments."""
        ...


class Planned:
    """The first action of the plan of greatest expected reward, in what the model imagines.

    Args:
        model: The world model.
        config: Options of the search.
        controls: What can be done; of discrete actions candidates are preferences, and the
            greatest is taken.
    """

    def __init__(self, model: WorldModel, config: PlannerConfig, controls: Controls) -> None:
        self.model, self.config, self.controls = model, config, controls
        self.start = torch.zeros(0)
        self.rewards = Recorded(self._imagined)

    def begin(self, environments: int) -> None:
        """Forget the last plan."""
        self.start = self.model.spread.new_zeros(
            self.config.horizon, environments, self.controls.size
        )

    def imagine(self, belief: Memory, controls: Tensor) -> Tensor:
        """Expected rewards (H, J, E) under candidates (H, J, E, A)."""
        return self.rewards(*belief, self._actions(controls))

    def _imagined(self, hidden: Tensor, latent: Tensor, actions: Tensor) -> Tensor:
        return self.model.imagined_rewards(Memory(hidden, latent), actions)

    def __call__(self, memory: Memory, *, explore: bool) -> Tensor:
        """Search from the belief on."""
        found = plan(
            self, memory, identity, self.start, self.config,
            bound=None if self.controls.discrete else 1.0,  # preferences that are cut would tie
        )  # fmt: skip
        if self.config.warm_start:
            self.start = found.moved_on()
        return self._actions(found.controls[0])

    def _actions(self, controls: Tensor) -> Tensor:
        if not self.controls.discrete:
            return controls
        chosen = F.one_hot(controls.argmax(-1), self.controls.size).to(controls)
        return chosen.where(controls.isfinite(), torch.nan)  # no plan is no action either


class Acted:
    """What the actor does: its best action, or a draw where it explores.

    Args:
        actor: The actor.
    """

    def __init__(self, actor: Actor) -> None:
        self.actor = actor

    def begin(self, environments: int) -> None:
        """Nothing: the actor remembers nothing."""

    def __call__(self, memory: Memory, *, explore: bool) -> Tensor:
        """Act upon the belief."""
        return self.actor(memory).sample() if explore else self.actor.best(memory)


class Agent:
    """A belief and what is chosen by it.

    Args:
        guide: The guide of a world model.
        choose: What it would do.
        controls: What can be done.
        bits: Bits of an image's values.
        exploration: Noise of its actions where it explores, see `Controls.explored`.
    """

    def __init__(
        self,
        guide: WorldModelGuide,
        choose: Choose,
        controls: Controls,
        *,
        bits: int = 8,
        exploration: float = 0.0,
    ) -> None:
        self.guide, self.choose, self.controls = guide, choose, controls
        self.bits, self.exploration = bits, exploration
        self.model: WorldModel = guide.model  # type: ignore[assignment]

    def begin(self, environments: int) -> None:
        """Forget everything, in so many environments."""
        self.memory = self.model.start((environments,))
        self.action = self.model.spread.new_zeros(environments, self.controls.size)
        self.choose.begin(environments)

    @torch.no_grad()
    def __call__(self, observation: Tensor, *, explore: bool = False) -> Tensor:
        """Take in o_t and choose a_t.

        Args:
            observation: (E, ...) float vectors, or uint8 images (E, height, width, 3).
            explore: Add noise, for episodes to learn from.

        Returns:
            (E, A) on the CPU.
        """
        device = self.model.spread.device
        if observation.dtype == torch.uint8:
            observation = quantised(observation, self.bits).movedim(-1, 1)
        seen = torch.ones(len(observation), 1, dtype=torch.bool, device=device)
        evidence = Evidence(self.action, observation.to(device), seen, complete=True)
        with self.guide:
            self.memory = self.model.dynamics("latent", self.memory, self.action, evidence)
        action = self.choose(self.memory, explore=explore)
        if explore:
            action = self.controls.explored(action, self.exploration)
        self.action = finite(action)
        return action.cpu()


def finite(action: Tensor) -> Tensor:
    """An agent's action, which is to be a number; else RunError."""
    if not torch.isfinite(action).all():
        raise RunError(
            "the agent's action is not a number: its world model has diverged; lower "
            "train.learning_rate or train.clip_norm"
        )
    return action


class AtRandom:
    """Uniformly random actions: what every agent begins with, and is compared with."""

    def __init__(self, controls: Controls) -> None:
        self.controls, self.environments = controls, 0

    def begin(self, environments: int) -> None:
        """Note how many environments there are."""
        self.environments = environments

    def __call__(self, observation: Tensor, *, explore: bool = False) -> Tensor:
        """Look at nothing."""
        return self.controls.random(self.environments)


def play(
    envs: Sequence[gymnasium.Env],
    agent: Any,
    seeds: Sequence[int],
    *,
    explore: bool = False,
    fps: float = 1.0,
    each_step: Callable[[], object] | None = None,
) -> list[xr.Dataset]:
    """Let an agent act for one episode in each of several environments.

    Args:
        envs: The environments.
        agent: `Agent`, `AtRandom` or alike: ``begin(E)``, then called with observations (E, ...).
        seeds: Of the environments, one each; what the agent draws is of torch's generator.
        explore: Whether it is to explore.
        fps: Frames per second, for the episodes.
        each_step: Called after every step; may raise to stop.

    Returns:
        The episodes, in the schema of `pyro_animacy.data.episodes`, ends included.

    Raises:
        WorldError: If an environment raises, gives a reward or an observation that is not finite,
            an observation that is not of its space's shape, or an episode has no end.
        RunError: If the agent's action is not a number.
    """
    controls = Controls.of(envs[0])
    agent.begin(len(envs))
    logs = [_Log(env, seed) for env, seed in zip(envs, seeds, strict=True)]
    while not all(log.over for log in logs):
        seen = torch.from_numpy(np.stack([log.observations[-1] for log in logs]))
        actions = agent(seen, explore=explore)
        for log, action in zip(logs, actions, strict=True):
            if not log.over:
                log.step(controls.given(action), action.numpy())
        if each_step is not None:
            each_step()
    return [log.episode(fps) for log in logs]


class _Log:
    """One environment, and what has happened in it."""

    def __init__(self, env: gymnasium.Env, seed: int) -> None:
        self.env, self.where = env, "reset"
        observation, _ = self._run(lambda: env.reset(seed=seed))
        self.observations = [self._checked(observation)]
        self.actions: list[Any] = []
        self.rewards = [0.0]
        self.over = self.terminal = False

    def step(self, given: Any, action: Any) -> None:
        self.where = f"step {len(self.actions)}"
        observation, reward, terminal, truncated, _ = self._run(lambda: self.env.step(given))
        if not np.isfinite(reward):
            raise WorldError(
                f"{env_name(self.env)}: the reward of {self.where} is {reward}; it must be a number"
            )
        self.observations.append(self._checked(observation))
        self.actions.append(action)
        self.rewards.append(float(reward))
        self.terminal, self.over = bool(terminal), bool(terminal or truncated)
        if not self.over and len(self.actions) == LONGEST:
            raise WorldError(
                f"{env_name(self.env)}: an episode has not ended after {LONGEST:,} steps; give the "
                "environment a time limit: gymnasium.register(..., max_episode_steps=1000)"
            )

    def episode(self, fps: float) -> xr.Dataset:
        seen = np.stack(self.observations)[None]
        terminal = np.zeros((1, len(self.rewards)), bool)
        terminal[0, -1] = self.terminal
        pixels = seen.dtype == np.uint8
        return make_episodes(
            image=seen if pixels else None,
            observation=None if pixels else seen,
            action=np.stack([*self.actions, np.zeros_like(self.actions[0])])[None],
            reward=np.array(self.rewards, np.float32)[None],
            terminal=terminal,
            fps=fps,
            source=env_name(self.env),
        )

    def _run(self, call: Callable[[], Any]) -> Any:
        try:
            return call()
        except Exception as error:
            raise WorldError(raised(env_name(self.env), f"at {self.where}", error)) from error

    def _checked(self, observation: Any) -> Any:
        array = np.asarray(observation)
        if array.shape != self.env.observation_space.shape:
            raise WorldError(
                f"{env_name(self.env)}: the observation of {self.where} has the shape "
                f"{array.shape}, and its observation_space {self.env.observation_space.shape}; "
                "they must agree"
            )
        if array.dtype != np.uint8:
            array = array.astype(np.float32)
            if not np.isfinite(array).all():
                raise WorldError(
                    f"{env_name(self.env)}: the observation of {self.where} is not finite in "
                    f"{int((~np.isfinite(array)).sum())} of {array.size} places; it must be numbers"
                )
        return array


def env_name(env: gymnasium.Env) -> str:
    """What an environment is called."""
    return env.spec.id if env.spec is not None else str(env)


def returned(episodes: Sequence[xr.Dataset]) -> np.ndarray:
    """Sum of the rewards of each episode."""
    return np.array([float(episode["reward"].sum()) for episode in episodes])
