"""How well an agent does, beside no skill at all and search in the true simulator.

    score = (return - random) / (true simulator - random)

``random`` is the mean return of uniformly random actions, ``true simulator`` that of cross-entropy
search in the environment itself. All act in the same episodes: the same seeds, each its own copy.
"""

from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from pyro_animacy.acting.agent import AtRandom, Controls, returned
from pyro_animacy.acting.environments import gymnasium
from pyro_animacy.acting.environments.make import frames_per_second
from pyro_animacy.acting.planners import PlannerConfig, identity, plan
from pyro_animacy.acting.run import evaluation, load_agent, longest, make_env, read_acting
from pyro_animacy.acting.simulator import TrueSimulator
from pyro_animacy.acting.tracking import Tracker, tracking_error
from pyro_animacy.data.episodes import join_episodes
from pyro_animacy.errors import ConfigError, how_many, require
from pyro_animacy.infer.traced import no_validation
from pyro_animacy.progress import tqdm

# Of the search in the true simulator, where every candidate costs a step of the world.
SIMULATED = PlannerConfig(horizon=12, iterations=5, candidates=200, elites=20, warm_start=True)


class Simulated:
    """Cross-entropy search in the true simulator.

    Args:
        env: The environment that is acted in, one by itself.
        config: Options of the search.
    """

    def __init__(self, env: gymnasium.Env, config: PlannerConfig = SIMULATED) -> None:
        self.simulator, self.controls, self.config = TrueSimulator(env), Controls.of(env), config

    def begin(self, environments: int) -> None:
        """Forget the last plan."""
        self.start = torch.zeros(self.config.horizon, environments, self.controls.size)

    def __call__(self, observation: Tensor, *, explore: bool = False) -> Tensor:
        """Search from the world's present state on; what is observed is not needed."""
        belief = self.simulator.belief()
        found = plan(self.simulator, belief, identity, self.start, self.config)
        self.start = found.moved_on()
        return found.controls[0]


class Evaluation(NamedTuple):
    """Returns of single episodes, by who acted; the true simulator's may be missing."""

    agent: np.ndarray
    random: np.ndarray
    simulator: np.ndarray | None

    @property
    def score(self) -> float | None:
        """(agent - random) / (true simulator - random), of the means; NaN where those are equal."""
        if self.simulator is None:
            return None
        base = float(self.random.mean())
        reach = float(self.simulator.mean()) - base
        return (float(self.agent.mean()) - base) / reach if reach else float("nan")

    def text(self) -> str:
        """A table of means and their standard errors."""
        lines = [
            f"{'':16}{'return':>10}  standard error, of {how_many(len(self.agent), 'episode')}"
        ]
        for name, values in (
            ("agent", self.agent), ("random", self.random), ("true simulator", self.simulator)
        ):  # fmt: skip
            if values is not None:
                lines.append(f"{name:16}{values.mean():10.2f}  {standard_error(values):.2f}")
        if self.score is not None:
            lines.append(f"{'score':16}{self.score:10.2f}  0 is random, 1 the true simulator")
        return "\n".join(lines)


class Tracked(NamedTuple):
    """Of an agent that follows references: figures of single episodes, by who acted.

    ``prior`` is the same policy with z_t from its prior, which knows no reference.

    Attributes:
        errors: Tracking errors towards held-out references, see `tracking_error`.
        returns: Sums of rewards.
    """

    errors: dict[str, np.ndarray]
    returns: dict[str, np.ndarray]

    def text(self) -> str:
        """A table of means and their standard errors."""
        count = len(self.errors["agent"])
        lines = [f"{'':16}{'tracking error':>22}{'return':>22}   mean, standard error, of {count}"]
        for name in self.errors:
            both = self.errors[name], self.returns[name]
            lines.append(
                f"{name:16}" + "".join(f"{x.mean():14.4g}{standard_error(x):8.2g}" for x in both)
            )
        lines.append(
            "tracking error: mean square of the distance to the next frame of held-out reference "
            "motion, in\nstandard deviations of a feature; less is better. prior: the same policy, "
            "its latent drawn unled."
        )
        return "\n".join(lines)


def standard_error(values: np.ndarray) -> float:
    """Of a mean; NaN with one value."""
    return float(values.std(ddof=1) / np.sqrt(len(values))) if len(values) > 1 else float("nan")


def evaluate(
    path: str | Path,
    *,
    episodes: int = 20,
    seed: int = 1,
    simulator: bool = True,
    checkpoint: int | None = None,
    progress: bool = True,
) -> Evaluation | Tracked:
    """Play episodes with the agent of a run, at random, and by search in the true simulator.

    Of ``control_vae``, which follows held-out references: with z_t from its prior in place of the
    search, and beside returns how far each is from the references.

    Args:
        path: The run's folder.
        episodes: How many each plays.
        seed: Of the episodes. Evaluations during `act` have the seed of the run.
        simulator: Also search in the true simulator, which may take minutes; not of
            ``control_vae``, nor among discrete actions.
        checkpoint: The episodes of an older checkpoint of the agent.
        progress: Show a progress bar.

    Raises:
        RunError: If the folder is not that of a run of `act`, or its environment is another now.
        ConfigError: If a number cannot be used, or the environment cannot be simulated.
    """
    require(
        "",
        {"episodes": episodes, "seed": seed},
        ("episodes", episodes >= 1, "at least 1"),
        ("seed", seed >= 0, "0 or more"),
    )
    environment, config = read_acting(Path(path))
    returns, errors = dict[str, np.ndarray](), dict[str, np.ndarray]()
    with closing(make_env(environment, config)) as probe:
        agent, controls, fps = (
            load_agent(Path(path), probe, checkpoint), Controls.of(probe), frames_per_second(probe)
        )  # fmt: skip
        limit = longest(probe)
        actors: dict[str, Any] = {"agent": lambda _: agent}
        if isinstance(agent, Tracker):
            free = Tracker(agent.guide, agent.references, controls, led=False)
            actors["prior"] = lambda _: free
        actors["random"] = lambda _: AtRandom(controls)
        if simulator and not isinstance(agent, Tracker) and not controls.discrete:
            _check_simulated(probe)
            actors["true simulator"] = Simulated
    for name, of in actors.items():
        alone = of is Simulated
        with (
            no_validation(),
            tqdm(
                total=limit and limit * (episodes if alone else 1),
                desc=name,
                unit="step",
                disable=not progress,
                delay=2,
            ) as bar,
        ):
            played = evaluation(
                lambda: make_env(environment, config), of, episodes, seed=seed, fps=fps,
                each_step=bar.update, alone=alone,
            )  # fmt: skip
        returns[name] = returned(played)
        if isinstance(agent, Tracker):
            errors[name] = np.array([tracking_error(one, agent.references) for one in played])
    if errors:
        return Tracked(errors, returns)
    return Evaluation(returns["agent"], returns["random"], returns.get("true simulator"))


def new_episodes(
    path: str | Path, *, episodes: int = 10, seed: int = 1, checkpoint: int | None = None
) -> xr.Dataset:
    """Episodes that the agent of a run plays without exploration, and has not learned from.

    Args:
        path: The run's folder.
        episodes: How many.
        seed: Decides how they begin.
        checkpoint: The episodes of an older checkpoint of the agent.

    Raises:
        RunError: If the folder is not that of a run of `act`, or its environment is another now.
    """
    environment, config = read_acting(Path(path))
    with closing(make_env(environment, config)) as probe:
        agent, fps = load_agent(Path(path), probe, checkpoint), frames_per_second(probe)
    with no_validation():
        played = evaluation(
            lambda: make_env(environment, config), lambda _: agent, episodes, seed=seed, fps=fps
        )
    names = [Path(f"{seed}_{i}") for i in range(episodes)]
    return join_episodes(
        [one.assign_coords(trajectory=[str(n)]) for one, n in zip(played, names, strict=True)],
        names,
    )


def _check_simulated(env: gymnasium.Env) -> None:
    """Say now, not after minutes, that an environment cannot be searched in."""
    try:
        TrueSimulator(env)
    except ConfigError as error:
        raise ConfigError(f"{error}; or evaluate without it: --simulator false") from error
