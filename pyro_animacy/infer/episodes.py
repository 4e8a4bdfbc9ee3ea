"""Episodes as the training loop sees them; held-out figures of the models of episodes."""

import dataclasses
import math
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import xarray as xr

from pyro_animacy.data.episode_windows import EpisodeBatch, EpisodeWindows
from pyro_animacy.data.episodes import check_episodes
from pyro_animacy.data.windows import evenly
from pyro_animacy.errors import DataError, how_many
from pyro_animacy.infer.checkpoint import EpisodeCard
from pyro_animacy.infer.config import FitConfig
from pyro_animacy.infer.elbo import ScaledELBO
from pyro_animacy.infer.recordings import fingerprint
from pyro_animacy.infer.run import Run, check_kind, split_episodes
from pyro_animacy.infer.source import Draw
from pyro_animacy.infer.summary import known
from pyro_animacy.models import family
from pyro_animacy.models.agent_control_vae import AgentControlVAEConfig, acted
from pyro_animacy.models.program import MessengerGuide
from pyro_animacy.models.world_model import Sight

VALIDATION_WINDOWS, HELDOUT_WINDOWS = 256, 2048  # at most
AT_ONCE = 2048  # frames in the networks at once


class EpisodeSource:
    """Episodes of an agent, or images alone, split by episode.

    Args:
        dataset: In the schema of `pyro_animacy.data.episodes`.
        config: The options of the fit.

    Raises:
        ConfigError: If the model is of images, or of vectors and actions, and there are none.
        DataError: If there are too few episodes to train on, to validate and to hold out, or too
            short ones.
    """

    def __init__(self, dataset: xr.Dataset, config: FitConfig) -> None:
        options, self.dataset = config.train, check_episodes(dataset)
        parts = split_episodes(dataset, options.heldout, options.validation, options.seed)
        _, self.fit_part, self.validation_part, self.heldout_part = parts
        self.windows = EpisodeWindows(self.fit_part, options.window)
        self.batch_size = options.windows_each
        self.validation = EpisodeWindows(self.validation_part, options.window)
        sight = see(self.fit_part)
        model: Any = family(config.family).model
        self.given = model.given
        for name, part in zip(("training", "validation", "held-out"), parts[1:], strict=True):
            if (longest := int(part["length"].max())) <= self.given:
                raise DataError(
                    f"the longest of the {name} episodes has {how_many(longest, 'frame')}, and "
                    f"{config.family} needs at least {self.given + 1}; give longer episodes"
                )
        if isinstance(config.model, AgentControlVAEConfig):
            sight = acted(sight)
        self.card = EpisodeCard(
            model=config.family, config=dataclasses.asdict(config.model), sight=sight,
            fps=float(dataset.attrs.get("fps", 1.0)),
        )  # fmt: skip

    def batches(self, draws: Iterable[Draw]) -> Iterator[tuple[EpisodeBatch, int]]:
        """Batches of windows, and the frames observed in them less those given; without noise."""
        for which, _ in draws:
            batch = self.windows.batch(which)
            yield batch, int(batch.observed[self.given :].sum())

    def validate(self, guide: MessengerGuide) -> float:
        """The evidence lower bound of the validation part, nats per frame."""
        return elbo_per_frame(guide, self.validation)[0]

    def fingerprint(self) -> list[float]:
        """Windows of the parts, and what these are."""
        parts = (self.fit_part, self.validation_part, self.heldout_part)
        each = (number for part in parts for number in fingerprint(part))
        return [len(self.windows), len(self.validation), *each]

    def describe(self) -> str:
        """What was read, in one line."""
        data, sight = self.dataset, self.card.sight
        what = " x ".join(map(str, sight.shape[1:])) + " images" if sight.image else "vectors"
        with_ = [how_many(sight.actions, "control")] if sight.actions else []
        with_ += ["rewards"] * sight.reward
        return (
            f"read {how_many(data.sizes['trajectory'], 'episode')} of {what}"
            f"{' with ' + ' and '.join(with_) if with_ else ''}: {int(data['length'].sum()):,} "
            f"frames at {self.card.fps:g} Hz"
        )

    def begin(self, path: Path, progress: bool) -> None:
        """Nothing: no baseline is fitted to episodes."""

    def conclude(self, run: Run, progress: bool) -> dict[str, Any]:
        """The bound on the held-out episodes, and what they are."""
        return heldout_bound(run, self.heldout_part) | {
            "parameters": run.parameters,
            "data": {
                "source": str(self.dataset.attrs.get("source", "")),
                "episodes": self.dataset.sizes["trajectory"],
                "frames": int(self.dataset["length"].sum()),
                "heldout_episodes": self.heldout_part.sizes["trajectory"],
                "fps": run.card.fps,
            },
        }


def see(dataset: xr.Dataset) -> Sight:
    """What there is to see in episodes; colours, features, rewards and controls are measured."""
    seen = np.arange(dataset.sizes["time"]) < dataset["length"].to_numpy()[:, None]
    if "image" in dataset:
        size = dataset["image"].sizes
        shape: tuple[int, ...] = size["channel"], size["height"], size["width"]
        count = np.zeros((shape[0], 256))
        for image, there in zip(dataset["image"].to_numpy(), seen, strict=True):
            for channel, of in enumerate(np.moveaxis(image[there], -1, 0)):
                count[channel] += np.bincount(of.ravel(), minlength=256)
        level, share = np.arange(256) / 255 - 0.5, count / count.sum(1, keepdims=True)
        mean = share @ level
        std = np.sqrt((share * (level - mean[:, None]) ** 2).sum(1))
        std = np.where(std > 0, std.clip(min=1 / 255), 1.0)  # below, there is only noise
    else:
        x = dataset["observation"].to_numpy()[seen]
        shape = (x.shape[1],)
        mean, std = x.mean(0, dtype=np.float64), _spread(x)
    return Sight(
        shape, tuple(mean.tolist()), tuple(std.tolist()),
        actions=dataset.sizes.get("control", 0) if "action" in dataset else 0,
        reward="reward" in dataset, continuation="terminal" in dataset,
        reward_spread=_reward_spread(dataset, seen), action_spread=_action_spread(dataset),
    )  # fmt: skip


def _spread(x: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """Standard deviation of n numbers (n, ...); 1 where they differ by no more than rounding."""
    if not len(x):
        return np.ones(x.shape[1:])
    differ = np.ptp(x, 0) > 1e-6 * np.abs(x).max(0)
    return np.where(differ, x.std(0, dtype=np.float64), 1.0)


def _reward_spread(dataset: xr.Dataset, seen: npt.NDArray[np.bool_]) -> float:
    """Of the rewards met, all but the 0 before anything was done."""
    if "reward" not in dataset:
        return 1.0
    return float(_spread(dataset["reward"].to_numpy()[:, 1:][seen[:, 1:]]))


def _action_spread(dataset: xr.Dataset) -> tuple[float, ...]:
    """Of each control, over what was done."""
    if "action" not in dataset:
        return ()
    done = np.arange(dataset.sizes["time"]) < dataset["length"].to_numpy()[:, None] - 1
    return tuple(_spread(dataset["action"].to_numpy()[done]).tolist())


def suited_episodes(card: EpisodeCard, dataset: xr.Dataset) -> xr.Dataset:
    """The episodes, if a run's model can be asked about them.

    Raises:
        ConfigError: If the model is one of scenes.
        DataError: If what there is to see, the controls or the rate are not the model's, or it was
            fitted to rewards or ends that they do not have.
    """
    check_kind(card, "episodes")
    check_episodes(dataset)
    here, there = see(dataset), card.sight
    fps = float(dataset.attrs["fps"])
    for what, has, wanted in (
        ("observations of shape", here.shape, there.shape),
        ("controls:", here.actions, there.actions),
    ):
        if has != wanted:
            raise DataError(f"the episodes have {what} {has}, the run's model {wanted}")
    for what, has, wanted in (
        ("reward", here.reward, there.reward),
        ("terminal", here.continuation, there.continuation),
    ):
        if wanted and not has:
            raise DataError(f"the episodes have no `{what}`, which the run's model was fitted to")
    if abs(fps - card.fps) > 0.01 * card.fps:
        raise DataError(
            f"the episodes have {fps:g} frames a second, the run's model was fitted at {card.fps:g}"
        )
    return dataset


def heldout_bound(run: Run, dataset: xr.Dataset) -> dict[str, float | None]:
    """The evidence lower bound of episodes that a run was not fitted to, for its summary.

    Returns:
        ``heldout_elbo_per_frame`` in nats, and its ``heldout_standard_error``, None of one episode.
    """
    windows = EpisodeWindows(dataset, run.config.train.window)
    elbo, error = elbo_per_frame(run.guide, windows, most=HELDOUT_WINDOWS)
    return {"heldout_elbo_per_frame": elbo, "heldout_standard_error": known(error)}


@torch.no_grad()
def elbo_per_frame(
    guide: MessengerGuide, windows: EpisodeWindows, most: int = VALIDATION_WINDOWS
) -> tuple[float, float]:
    """The evidence lower bound of windows evenly spread, nats per frame, and its standard error.

    The standard error is over episodes, NaN with one. Frames that are given do not count.
    A density of pixels is per range of a pixel, as the models have it.
    """
    which = torch.from_numpy(evenly(len(windows), most))
    parameter = next(guide.parameters())
    model: Any = guide.model
    found = []  # of each episode: windows of one are alike, so the episodes are what is sampled
    with torch.random.fork_rng([parameter.device] if parameter.is_cuda else []):
        torch.manual_seed(0)
        for episode in windows.index[which, 0].unique():
            total, seen = 0.0, 0
            these = which[windows.index[which, 0] == episode]
            for part in these.split(max(1, AT_ONCE // windows.frames)):
                batch = windows.batch(part).to(parameter.device, parameter.dtype)
                total -= ScaledELBO().loss(model, guide, batch, score=True)
                seen += int(batch.observed[model.given :].sum())
            if seen:  # one too short has no frame that counts
                found.append((total, seen))
    if not found:
        return math.nan, math.nan
    values, frames = np.array(found).T
    mean = values.sum() / frames.sum()
    if len(values) < 2:
        return float(mean), math.nan
    spread = np.square(values - mean * frames).sum() * len(values) / (len(values) - 1)
    return float(mean), float(np.sqrt(spread) / frames.sum())
