"""The true simulator as something to plan with: what any model's plans are measured by.

A planner hands ``imagine`` a belief and candidates, and an objective turns what is imagined into
rewards. Here nothing is imagined: what comes back *is* the rewards, the objective is `identity`.

    controls a_{t..t+H-1} (H, J, E, A)          H steps ahead, J candidates, E environments
    belief s_t  --imagine-->  r_{t+1..t+H} (H, J, E)

- Chase-v0's dynamics is a pure function, called once a step for all candidates, with the mean of
  the evader's heading for its future: e = 0. Candidates are not cut off where the episode is.
- Any other world is copied (`copy.deepcopy`) for every candidate and stepped, one after the other.
  The copies hold its random generator too: the planner knows the noise to come, where there is
  any, which makes this an upper bound in the strict sense. After an end there is no reward.
"""

import copy
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyro_animacy.acting.agent import WorldError, env_name
from pyro_animacy.acting.environments import chase, gymnasium
from pyro_animacy.acting.environments.make import ActionRepeat, raised
from pyro_animacy.errors import ConfigError

# What copies of a world share: what does not change, and what pictures are drawn with.
_SHARED = (
    *("observation_space", "action_space", "_observation_space", "_action_space"),
    *("spec", "_cached_spec", "screen", "surf", "clock", "viewer"),
)


class TrueSimulator:
    """The world itself, imagined on. It never changes the world, nor its random state.

    Args:
        env: The environment, as `pyro_animacy.acting.environments.make.make` gives it.

    Raises:
        ConfigError: If actions are not continuous, or a copy of the world does not hold its state.
        WorldError: By `imagine`, if a copy of the world raises.
    """

    def __init__(self, env: gymnasium.Env) -> None:
        if not isinstance(env.action_space, gymnasium.spaces.Box):
            raise ConfigError(
                f"the true simulator plans continuous actions; these are {env.action_space}"
            )
        self.env = _acted_on(env)
        world = env.unwrapped
        self.chase = world if isinstance(world, chase.Chase) else None
        # EzPickle makes a new world in place of a copy; shimmy hands it a copy of dm_control's.
        of_shimmy = type(world).__module__.startswith("shimmy")
        if isinstance(world, gymnasium.utils.EzPickle) and not of_shimmy:
            raise ConfigError(
                f"{type(world).__name__}: a copy of it starts anew (its state is in a library "
                "that cannot copy it), so it cannot be planned with; choose another environment"
            )

    def belief(self) -> Any:
        """All of the world's present state: of Chase-v0 s_t (1, 9), of any other a copy of it."""
        return self.chase.state[None].clone() if self.chase else _copied(self.env)

    def imagine(self, belief: Any, controls: Tensor) -> Tensor:
        """What the world gives for candidates.

        Args:
            belief: As `belief` gives it; for Chase-v0 states (E, 9) of any number of worlds.
            controls: a_{t..t+H-1} (H, J, E, A), in [-1, 1]; E is 1 except for Chase-v0.

        Returns:
            Rewards r_{t+1..t+H} (H, J, E), of the controls' kind.
        """
        with torch.no_grad():
            if self.chase:
                return self._chased(belief, controls)
        if controls.shape[2] != 1:
            raise ConfigError(f"{controls.shape[2]} environments: a world is simulated by itself")
        rewards = np.zeros(controls.shape[:3])
        actions = controls.detach().cpu().numpy()
        for j in range(controls.shape[1]):
            rewards[:, j, 0] = _replayed(_copied(belief), actions[:, j, 0])
        return torch.as_tensor(rewards, dtype=controls.dtype, device=controls.device)

    def _chased(self, state: Tensor, controls: Tensor) -> Tensor:
        """Rewards (H, J, E) in Chase-v0 from states (E, 9)."""
        assert self.chase is not None
        config, repeat = self.chase.config, getattr(self.env, "repeat", 1)
        state, mean = state.to(controls), controls.new_zeros(())
        rewards = controls.new_zeros(controls.shape[:3])
        for t, action in enumerate(controls):
            for _ in range(repeat):
                state = chase.step(state, action, mean, config)
                rewards[t] += chase.reward(state, config)
        return rewards


def _layers(env: gymnasium.Env) -> list[gymnasium.Env]:
    """The world and its wrappers, the outermost first."""
    layers = [env]
    while isinstance(layers[-1], gymnasium.Wrapper):
        layers.append(layers[-1].env)
    return layers


def _acted_on(env: gymnasium.Env) -> gymnasium.Env:
    """The world with its actions scaled and repeated, without what only changes how it is seen."""
    return next((each for each in _layers(env) if isinstance(each, ActionRepeat)), env)


def _copied(env: gymnasium.Env) -> gymnasium.Env:
    """A copy of the world and its wrappers, which shares what `_SHARED` names."""
    shared = [vars(each).get(name) for each in _layers(env) for name in _SHARED]
    return copy.deepcopy(env, {id(each): each for each in shared if each is not None})


def _replayed(env: gymnasium.Env, actions: np.ndarray) -> np.ndarray:
    """Rewards (H,) of actions (H, A) in a world that may be used up; 0 after its end."""
    rewards = np.zeros(len(actions))
    for t, action in enumerate(actions):
        try:
            _, rewards[t], terminated, truncated, _ = env.step(action)
        except Exception as error:
            where = "in a copy, in which the true simulator searches"
            raise WorldError(raised(env_name(env), where, error)) from error
        if terminated or truncated:
            break
    return rewards
