r"""ControlVAE learned by acting: Algorithm 1 of Yao et al. 2022.

    given references s~, episodes of states to be followed; seed episodes at random
    repeat
        transition  sum_t log N(s_{t+1}; omega, diag sigma^2), of windows of the replay, from every
                    K-th of their states under their actions (maximum likelihood, open loop)
        policy      sum_t gamma^t { |s~_{t+1} - s_{t+1}|^2 + w_a E|a_t|^2 + beta KL_t }, of windows
                    of references: closed loop from s_0 = s~_0 through omega, which is a constant
                    (the paper's equations 2 to 9; both sums are those of the model's program)
        collect     an episode in the environment, into the replay:
                    z_t ~ q(. | s_t, s~_{t+1}), now and then ~ p(. | s_t);  a_t ~ pi(. | s_t, z_t)

    reference   ... s~_j --> s~_{j+1} --> s~_{j+2} ...       j nearest to s_0, and again at its end
                       \          |            \
    environment         s_0 --a_0--> s_1 --a_1--> s_2 ...    what the policy makes of it

The paper sets its simulator to a state of the reference; environments of gymnasium begin where they
begin. So an episode follows a reference from the frame that is nearest to the state it is in. Its
public code draws s_0 of the policy's windows from the replay; here it is s~_0, as in its equation.

Yao, Song, Chen & Liu, ControlVAE: Model-Based Learning of Generative Controllers for Physics-Based
Characters, ACM Transactions on Graphics 41(6), 2022, Algorithm 1.
"""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import xarray as xr
from torch import Tensor

from pyro_animacy.acting.agent import Controls, finite
from pyro_animacy.data.episodes import read_episodes
from pyro_animacy.errors import ConfigError, DataError, how_many
from pyro_animacy.infer.recordings import REPLAY
from pyro_animacy.infer.run import REFERENCE
from pyro_animacy.models.agent_control_vae import AgentControlVAE, AgentControlVAEGuide
from pyro_animacy.models.program import Evidence

HELDOUT = 0.2  # share of the references that are followed in evaluations alone


class References:
    """Reference motion, to be followed from the frame that is nearest to a state.

    Args:
        dataset: Episodes with `observation`.
        spread: (F,) the unit in which states are near.
        steps: At least so many go on from the frame, or as many as its episode has.
    """

    def __init__(self, dataset: xr.Dataset, spread: Tensor, steps: int) -> None:
        length = torch.from_numpy(dataset["length"].to_numpy().astype(np.int64))
        x = torch.from_numpy(dataset["observation"].to_numpy().astype(np.float32))
        self.states = torch.cat([one[:n] for one, n in zip(x, length, strict=True)])
        left = torch.cat([torch.arange(n - 1, -1, -1) for n in length])  # frames that follow
        self.last = left == 0
        most = torch.cat([torch.full((n,), min(steps, n - 1)) for n in length.tolist()])
        self.begins = (left >= most).nonzero()[:, 0]  # frames that one may begin to follow at
        self.spread = spread.cpu()

    def nearest(self, state: Tensor) -> Tensor:
        """The frame (E,) nearest to states (E, F), of those that are gone on from."""
        between = torch.cdist(state / self.spread, self.states[self.begins] / self.spread)
        return self.begins[between.argmin(1)]


class Following:
    """Where each of several episodes is in the references it follows: s~_{t+1}, step by step."""

    def __init__(self, references: References) -> None:
        self.references = references
        self.frame: Tensor | None = None

    def __call__(self, state: Tensor) -> Tensor:
        """s~_{t+1} (E, F), given s_t (E, F): of the next frame, of a new reference at an end."""
        r = self.references
        if self.frame is None:
            self.frame = r.nearest(state)
        elif (ended := r.last[self.frame]).any():
            self.frame = torch.where(ended, r.nearest(state), self.frame)
        self.frame = self.frame + 1
        return r.states[self.frame]


def tracking_error(episode: xr.Dataset, references: References) -> float:
    """Mean over steps and features of |s_{t+1} - s~_{t+1}|^2 of an episode, in squared spreads.

    What an agent that follows the references was asked for, whoever acted.
    """
    states = torch.from_numpy(episode["observation"].to_numpy()[0].astype(np.float32))
    follow = Following(references)
    targets = torch.cat([follow(state[None]) for state in states[:-1]])
    return float(((states[1:] - targets) / references.spread).square().mean())


class Tracker:
    """The agent: it follows references, z_t by the guide, a_t by the policy.

    Args:
        guide: Of an `AgentControlVAE`.
        references: What is followed.
        controls: What can be done.
        prior_share: How often z_t is drawn from the prior where it explores.
        exploration: Noise of its actions where it explores, see `Controls.explored`.
        led: False for the prior alone: always z_t ~ p(. | s_t).
    """

    def __init__(
        self,
        guide: Any,
        references: References,
        controls: Controls,
        *,
        prior_share: float = 0.0,
        exploration: float = 0.0,
        led: bool = True,
    ) -> None:
        self.guide: AgentControlVAEGuide = guide
        self.model: AgentControlVAE = guide.model
        self.references, self.controls = references, controls
        self.prior_share, self.exploration, self.led = prior_share, exploration, led

    def begin(self, environments: int) -> None:
        """Follow nothing yet."""
        self.following = Following(self.references)

    @torch.no_grad()
    def __call__(self, observation: Tensor, *, explore: bool = False) -> Tensor:
        """Choose a_t (E, A) at s_t (E, F); without exploring by the means of q and pi."""
        target = self.following(observation).to(self.model.spread)
        s = observation.to(self.model.spread)
        p = self.model.prior(s)
        seen = torch.ones(len(s), 1, dtype=torch.bool, device=s.device)
        q = self.guide.posterior(p, Evidence(s, target - s, seen, complete=True))
        z = q.sample() if explore else q.mean
        if explore or not self.led:
            free = torch.rand(len(s), 1) < (self.prior_share if self.led else 1.0)
            z = torch.where(free.to(s.device), p.sample(), z)
        pi = self.model.policy(s, z)
        a = (pi.sample() if explore else pi.mean).cpu()
        if explore:
            a = self.controls.explored(a, self.exploration)
        return finite(a).clamp(-1, 1)


# ------------------------------------------------------------------------------ reference motion


def read_references(source: str | None, features: int, fps: float) -> xr.Dataset:
    """Read reference motion that an environment can be asked to follow.

    Args:
        source: File or folder of episodes, or the folder of a run of `act`.
        features: Numbers that the environment shows.
        fps: How often the agent acts.

    Raises:
        ConfigError: If there is no source.
        DataError: If it cannot be read, or is not of such an environment.
    """
    if source is None:
        raise ConfigError(
            "control_vae follows reference motion; give --reference EPISODES, a file or folder of "
            "episodes of this environment, such as those in the folder of another run of act"
        )
    if not Path(source).exists():
        raise DataError(f"{source}: no such file or folder")
    episodes = Path(source) / REPLAY  # those of a run of `act`, given by its folder
    found = read_episodes(episodes if episodes.is_dir() else source)
    if "observation" not in found:
        raise DataError(f"{source}: has no `observation`; references are vectors to be followed")
    for what, has, wanted in (
        ("numbers in an observation", found.sizes["feature"], features),
        ("frames a second", float(found.attrs["fps"]), fps),
    ):
        if abs(has - wanted) > 0.01 * wanted:
            raise DataError(
                f"{source}: has {has:g} {what}, and the environment {wanted:g}; give episodes of "
                "this environment, under the same --action_repeat"
            )
    kept = found["length"].to_numpy() > 1
    if kept.sum() < 2:
        raise DataError(
            f"{source}: has {how_many(kept.sum(), 'episode')} of 2 frames or more; it must have 2, "
            "one to learn from and one to be evaluated on"
        )
    return found[["observation"]].isel(trajectory=kept)


def load_references(path: Path, seed: int) -> tuple[xr.Dataset, xr.Dataset]:
    """What a run of control_vae learns to follow, and what it is evaluated on, by episodes.

    Args:
        path: The run's folder.
        seed: That of the run, which decides which are held out.
    """
    found = read_episodes(path / REFERENCE)
    order: npt.NDArray = np.random.default_rng(seed).permutation(found.sizes["trajectory"])
    out = max(1, round(HELDOUT * len(order)))
    learned, heldout = (found.isel(trajectory=np.sort(part)) for part in (order[out:], order[:out]))
    return learned, heldout
