"""A run of `act` read back: its environment, its options, and the agent that has learned there."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import xarray as xr

from pyro_animacy.acting.agent import Agent, Controls, env_name, play
from pyro_animacy.acting.config import ActConfig, options_of
from pyro_animacy.acting.environments import gymnasium
from pyro_animacy.acting.environments.make import make
from pyro_animacy.acting.learner import LEARNERS
from pyro_animacy.acting.tracking import Tracker
from pyro_animacy.errors import RunError
from pyro_animacy.infer.loop import stream
from pyro_animacy.infer.parse import parsed
from pyro_animacy.infer.run import Run
from pyro_animacy.infer.settings import read_settings
from pyro_animacy.models.world_model import Sight


def make_env(environment: str, config: ActConfig, *, render: bool = False) -> gymnasium.Env:
    """The environment as the agent of these options sees it."""
    c = config
    return make(
        environment, pixels=c.pixels, size=c.size, action_repeat=c.action_repeat, render=render
    )


def read_acting(path: Path) -> tuple[str, ActConfig]:
    """The environment and the options of a run of `act`.

    Raises:
        RunError: If the folder is not that of such a run.
    """
    settings = read_settings(path)
    acting = settings.get("acting")
    if not isinstance(acting, dict) or "environment" not in acting:
        raise RunError(
            f"{path}: a run of `fit`, whose model has not learned to act; give one of `act`"
        )
    config = parsed({"acting": options_of(settings)}, {"acting": ActConfig}).acting
    return str(acting["environment"]), config


def load_agent(path: Path, env: gymnasium.Env, checkpoint: int | None = None) -> Agent | Tracker:
    """The agent that a run has learned, to act in an environment.

    Args:
        path: The run's folder.
        env: The environment.
        checkpoint: The episodes of an older checkpoint; by default as it was saved last.

    Raises:
        RunError: If the folder is not that of a run of `act`, the checkpoint or a file is missing
            or damaged, or the environment is another.
    """
    _, config = read_acting(path)
    run, controls = Run.load(path, checkpoint), Controls.of(env)
    check_env(env, run.card.sight)
    return LEARNERS[config.agent].loaded(run, config, controls)


def check_env(env: gymnasium.Env, sight: Sight) -> None:
    """Raise RunError if an environment is not the one a world model was fitted in."""
    shape: tuple[int, ...] = env.observation_space.shape or ()
    shape = (shape[-1], *shape[:-1]) if len(shape) == 3 else shape
    for what, has, wanted in (
        ("shows observations of shape", shape, tuple(sight.shape)),
        ("has controls:", Controls.of(env).size, sight.actions),
    ):
        if has != wanted:
            raise RunError(
                f"{env_name(env)} {what} {has}, and the run's world model is of {wanted}: it was "
                "fitted in another environment"
            )


def evaluation(
    make_env: Callable[[], gymnasium.Env],
    agent_of: Callable[[gymnasium.Env], Any],
    episodes: int,
    *,
    seed: int,
    fps: float,
    each_step: Callable[[], object] | None = None,
    alone: bool = False,
) -> list[xr.Dataset]:
    """Episodes without exploration.

    Args:
        make_env: Makes an environment.
        agent_of: Gives what acts in environments like this one.
        episodes: How many.
        seed: It and the number of an episode decide how that begins.
        fps: Frames per second.
        each_step: Called after every step; may raise to stop.
        alone: One after the other, as a search in the world itself has to be; by default side by
            side, so that networks run in one batch.
    """
    seeds = [stream(seed, i, 2) % 2**31 for i in range(episodes)]
    played = []
    with torch.random.fork_rng():
        torch.manual_seed(stream(seed, 0, 3))
        for some in [[s] for s in seeds] if alone else [seeds]:
            envs = [make_env() for _ in some]
            try:
                played += play(envs, agent_of(envs[0]), some, fps=fps, each_step=each_step)
            finally:
                for env in envs:
                    env.close()
    return played


def longest(env: gymnasium.Env) -> int | None:
    """Actions in the longest episode, each repeated as often as it is; None where none is known."""
    limit = env.spec.max_episode_steps if env.spec else None
    return math.ceil(limit / env.get_wrapper_attr("repeat")) if limit else None
