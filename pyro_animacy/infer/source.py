"""What a model is trained on: splits, batches, a validation score, and the figures at the end.

The training loop knows recordings only through a `Source`, one for each kind of data.
"""

import math
from collections.abc import Iterable, Iterator
from dataclasses import asdict, replace
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
import xarray as xr

from pyro_animacy.data.schema import check_trajectories
from pyro_animacy.data.trajectories import FEW_RECORDINGS
from pyro_animacy.data.windows import (
    Batch,
    Scale,
    Windows,
    come_and_go,
    dequantised,
    evenly,
    longest_seen,
)
from pyro_animacy.errors import DataError, how_many
from pyro_animacy.infer import checkpoint
from pyro_animacy.infer.checkpoint import ModelCard, parts_of
from pyro_animacy.infer.config import BATCH, FitConfig, TrainConfig
from pyro_animacy.infer.recordings import EPISODES, fingerprint
from pyro_animacy.infer.run import Run, split_recordings
from pyro_animacy.infer.score import bounds, fit_baselines, least_context, scoring_windows
from pyro_animacy.infer.steps import window_steps
from pyro_animacy.infer.summary import describe, describe_text, summarise
from pyro_animacy.models.control_vae import MOST_JOINT, ControlVAEConfig
from pyro_animacy.models.program import MessengerGuide
from pyro_animacy.sets import body_types

VALIDATION_STEPS, VALIDATION_DRAWS = 4096, 8
LEAST_BATCH = 8
AHEAD = 2**20  # coordinates of batches that are drawn together: some 20 MB, and calls cost nothing

Draw = tuple[torch.Tensor, torch.Generator]  # numbers of windows (B,), and what their noise is of


class Source(Protocol):
    """Recordings as the training loop sees them.

    Attributes:
        card: What is needed to build the model.
        windows: Those that are trained on.
        batch_size: How many of them are in a batch.
        heldout_part: What is never trained on.
    """

    card: Any
    windows: Any
    batch_size: int
    heldout_part: xr.Dataset

    def batches(self, draws: Iterable[Draw]) -> Iterator[tuple[Any, int]]:
        """Each draw's batch of windows, and the number of steps observed in it.

        Several draws may be taken before the first batch is given.
        """

    def validate(self, guide: MessengerGuide) -> float:
        """The score of the validation part, in nats per step: the larger the better."""

    def fingerprint(self) -> list[float]:
        """Numbers that other recordings, or another split of them, would not have."""

    def describe(self) -> str:
        """What was read, in one line."""

    def begin(self, path: Path, progress: bool) -> None:
        """Write to the run's folder what it is compared with, so that it can be at any time."""

    def conclude(self, run: Run, progress: bool) -> dict[str, Any]:
        """The figures of ``summary.json``, of the held-out part, when the fit has ended."""


class SceneSource:
    """Recordings of moving bodies.

    Args:
        dataset: In the schema of `pyro_animacy.data.schema`.
        config: The options of the fit.
        heldout: What is never trained on, where it is no part of ``dataset``.

    Raises:
        DataError: If they are not in the schema, or a part is too short to train on or to score.
    """

    def __init__(
        self, dataset: xr.Dataset, config: FitConfig, heldout: xr.Dataset | None = None
    ) -> None:
        if "position" not in dataset:
            raise DataError(
                f"{config.family} is a model of moving bodies, and these recordings have no "
                f"position; of episodes take the model {' or '.join(EPISODES)}"
            )
        options, self.dataset = config.train, check_trajectories(dataset)
        history, self.steps = config.model.history, options.window
        needed, cut = _frames_needed(dataset, options, history), _if_cut(dataset, history)
        try:
            out = options.heldout if heldout is None else check_trajectories(heldout)
            parts = split_recordings(dataset, out, options.validation, options.seed)
        except DataError as error:
            raise DataError(f"{error} (a fit needs about {needed} frames in a row){cut}") from None
        self.train_part, self.fit_part, self.validation_part, self.heldout_part = parts
        model = config.model
        if config.remembers and model.memory_steps is None:
            model = replace(model, memory_steps=options.window)
        bodies = tuple(str(b) for b in dataset["body"].to_numpy())
        if isinstance(model, ControlVAEConfig):
            model = model.structured(len(bodies))
        count = parts_of(asdict(model), bodies)
        together = longest_seen(self.fit_part)
        if count == 1 and together <= history and come_and_go(self.fit_part):
            raise DataError(
                f"this model needs all {len(bodies)} bodies at once, and they are seen together "
                f"for at most {how_many(together, 'frame')} in a row, {history + 1} being needed; "
                "take --model.structure set of control_vae, which serves bodies that come and go, "
                "choose bodies by --bodies or, where it was given, a smaller --downsample"
            )
        scale = Scale.of(self.fit_part, count)
        self.card = ModelCard(
            model=config.family,
            config=asdict(model),
            scale=scale,
            bodies=bodies,
            axes=tuple(str(a) for a in dataset["space"].to_numpy()),
            fps=float(dataset.attrs["fps"]),
            units=str(dataset.attrs.get("units", "unknown")),
        )
        self.windows = Windows(
            self.fit_part, frames=history + options.window, context=history, scale=scale,
            symmetry=options.symmetry or "rotate", parts=self.card.parts,
        )  # fmt: skip
        self.batch_size = options.batch_size or _windows_of(model, len(bodies))
        each = self.batch_size * self.windows.frames * self.windows.coordinates
        self.ahead = max(1, AHEAD // each)
        check = dequantised(self.validation_part, 0)
        mend = f"give recordings of about {needed} frames in a row{cut}"
        self.validation = _enough("validation", check, self.card, mend)
        # Fail now, not after training.
        _enough("held-out", self.heldout_part, self.card, mend)

    def batches(self, draws: Iterable[Draw]) -> Iterator[tuple[Batch, int]]:
        """Batches of windows, dequantised and under the symmetry; their steps observed."""
        left = iter(draws)
        while some := list(islice(left, self.ahead)):
            which, generators = zip(*some, strict=True)
            position, observed = self.windows.batches(torch.stack(which), generators)
            steps = observed[:, -self.steps :].any(-1).sum((1, 2)).tolist()
            yield from zip(map(Batch, position, observed), steps, strict=True)

    def validate(self, guide: MessengerGuide) -> float:
        """The importance-weighted log density of the next displacement, data units."""
        which = torch.from_numpy(evenly(len(self.validation), VALIDATION_STEPS))
        steps = window_steps(guide, self.validation, which, VALIDATION_DRAWS)
        jacobian = self.card.scale.log_jacobian
        found = [(bounds(of)[0] - jacobian(of.seen.sum(-1).double()))[-1] for _, of in steps]
        return torch.cat(found).double().mean().item()

    def fingerprint(self) -> list[float]:
        """Windows, the scale they were measured to have, and what the parts are."""
        scale = self.card.scale
        return [len(self.windows), scale.unit, scale.extent, scale.separation, *self._parts]

    @cached_property
    def _parts(self) -> list[float]:
        """Every checkpoint asks for them, and reads the recordings once."""
        parts = (self.fit_part, self.validation_part, self.heldout_part)
        return [number for part in parts for number in fingerprint(part)]

    def describe(self) -> str:
        """What was read, in one line: a wrong rate or wrong units show in the speed."""
        return describe_text(self.dataset)

    def begin(self, path: Path, progress: bool) -> None:
        """Fit the baselines to the recordings that the model may learn from."""
        if not (path / checkpoint.BASELINES).is_file():  # as where a fit goes on
            card = self.card
            types = body_types(card.bodies) if card.parts > 1 else ()
            baselines = fit_baselines(
                self.train_part, card.scale, card.config["history"], types, progress=progress
            )
            checkpoint.save_baselines(path / checkpoint.BASELINES, baselines)

    def conclude(self, run: Run, progress: bool) -> dict[str, Any]:
        """Score the model and its baselines on the held-out part."""
        frames = int(self.heldout_part["length"].sum())
        return summarise(run, self.heldout_part, progress=progress) | {
            "data": {**describe(self.dataset), "heldout_frames": frames}
        }


def _windows_of(model: Any, bodies: int) -> int:
    """Windows in a batch that take as long as 512 of three bodies: a set has N^2 messages."""
    if getattr(model, "structure", "joint") != "set":
        return BATCH
    as_long = round(BATCH * (MOST_JOINT / bodies) ** 2)
    return min(BATCH, max(LEAST_BATCH, as_long))


def _frames_needed(dataset: xr.Dataset, options: TrainConfig, history: int) -> int:
    """About how many frames in a row a recording must have for a step to score in every part."""
    recordings, left, shares = len(np.unique(dataset["recording"])), 1.0, [1.0]
    for heldout in (options.heldout, options.validation):  # as `split` does, twice
        if recordings < FEW_RECORDINGS:
            shares.append(left * heldout)
            left -= left * heldout
        else:
            recordings -= max(1, round(heldout * recordings))
    return math.ceil((least_context(history) + 0.5) / min(shares))  # a part is of whole frames


def _if_cut(dataset: xr.Dataset, history: int) -> str:
    """What else helps where recordings are in pieces, since more of the same would not."""
    if not (dataset["start"] > 0).any():
        return ""
    longest = int(dataset["length"].max())
    over = "--split_gaps false goes on over gaps, " if longest > least_context(history) else ""
    return (
        f"; they are in pieces of at most {longest} frames, since not all bodies were observed: "
        f"{over}--bodies chooses bodies, each by itself, or present, of whoever is there"
    )


def _enough(part: str, dataset: xr.Dataset, card: ModelCard, mend: str) -> Windows:
    """The scoring windows of a part, or DataError naming the part that is too short."""
    history = card.config["history"]
    try:
        return scoring_windows(dataset, card.scale, history, card.parts)
    except DataError:
        least = least_context(history)
        who = "all bodies are" if card.parts == 1 else "a body is"
        raise DataError(
            f"the {part} part is too short to score: {who} observed for at most "
            f"{longest_seen(dataset, card.parts)} frames in a row, and a step to score takes "
            f"{least + 1} (the model and the baselines look back {least}); {mend}; or, where it "
            f"was given, a smaller --downsample, or a larger --train.{part.replace('-', '')}"
        ) from None
