"""A run: a trained model with all that is known of how it came to be."""

import dataclasses
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import xarray as xr
from torch import nn

from pyro_animacy.data.schema import check_form
from pyro_animacy.data.trajectories import split
from pyro_animacy.errors import ConfigError, DataError, RunError, command_line, how_many
from pyro_animacy.infer.checkpoint import (
    BASELINES,
    WEIGHTS,
    EpisodeCard,
    ModelCard,
    folder,
    load_baselines,
    load_weights,
)
from pyro_animacy.infer.config import FitConfig, parse_config, parse_model
from pyro_animacy.infer.recordings import fingerprint, read_data
from pyro_animacy.infer.settings import data_of_run, read_settings
from pyro_animacy.models import FAMILIES
from pyro_animacy.models.linear_gaussian import EACH, LinearAutoregression
from pyro_animacy.models.program import MessengerGuide
from pyro_animacy.sets import body_types

METRICS, SUMMARY = "metrics.jsonl", "summary.json"
BEHAVIOUR = "behaviour.safetensors"  # of a run of `act`, its actor and critic
REFERENCE = "reference.npz"  # of a run of `act`, what it follows


@dataclasses.dataclass(repr=False)
class Run:
    """A trained model and its folder.

    Attributes:
        path: The folder.
        model: The model, a Pyro program.
        guide: Its guide.
        card: How the model was built: options, scale, bodies (`ModelCard`); of episodes, what
            there is to see (`EpisodeCard`).
        settings: ``config.yaml``: every option, the data's source, by what its held-out part is
            known again, versions and seed.
        summary: ``summary.json``; empty before the fit has ended, and of an older checkpoint.
        checkpoint: The step or episode of an older checkpoint that was loaded, or None.
        like: The card of the run as it was fitted, where the model is for other bodies (`on`).
    """

    path: Path
    model: Any
    guide: MessengerGuide
    card: Any
    settings: dict[str, Any]
    summary: dict[str, Any]
    checkpoint: int | None = None
    like: ModelCard | None = None

    def __repr__(self) -> str:
        of = "episodes" if self.data == "episodes" else _some(self.card.bodies)
        return f"<Run {self.path}{self._at}: {self.card.model} of {of} at {self.card.fps:g} Hz>"

    @classmethod
    def load(cls, path: str | Path, checkpoint: int | None = None) -> "Run":
        """Load a run from its folder.

        Args:
            path: The folder.
            checkpoint: The step (of `act`: episodes) of an older checkpoint, of a run with
                ``train.keep``; by default the best or last parameters.

        Raises:
            RunError: If the folder or the checkpoint is missing, or a file in it is missing,
                damaged, altered or of a later version.
        """
        path = Path(path)
        if not path.is_dir():
            raise RunError(f"{path}: no such run folder; give the folder that `fit --out` made")
        weights = folder(path, checkpoint) / WEIGHTS
        tensors, card = load_weights(weights)
        with torch.random.fork_rng(devices=[]):  # the parameters drawn are replaced below
            model, guide = build(card)
        try:
            nn.ModuleDict({"model": model, "guide": guide}).load_state_dict(tensors)
        except RuntimeError as error:
            first = " ".join(str(error).split())[:200]
            raise RunError(
                f"{weights}: does not fit the {card.model} it describes ({first})"
            ) from error
        return cls(
            path=path, model=model, guide=guide, card=card,
            settings=read_settings(path),
            summary=_read_summary(path / SUMMARY) if checkpoint is None else {},
            checkpoint=checkpoint,
        )  # fmt: skip

    def metrics(self) -> list[dict[str, Any]]:
        """The rows of ``metrics.jsonl``: loss terms, schedules and validation scores by step.

        Of an older checkpoint those up to it.

        Raises:
            RunError: If the file is damaged.
        """
        rows = read_metrics(self.path)
        if self.checkpoint is None:
            return rows
        return [r for r in rows if r.get("step", r.get("episode", 0) + 1) <= self.checkpoint]

    @property
    def name(self) -> str:
        """Of its folder, and of an older checkpoint which."""
        return f"{self.path.name}{self._at}"

    @property
    def _at(self) -> str:
        return "" if self.checkpoint is None else f" at {self.checkpoint}"

    @property
    def data(self) -> Literal["scenes", "episodes"]:
        """What the run's model is a model of."""
        return FAMILIES[self.card.model].data

    @property
    def config(self) -> FitConfig:
        """The options in ``config.yaml``, those it lacks at their defaults.

        Raises:
            ConfigError: If a name or a type is not that of an option.
        """
        return parse_config(self.settings)

    @property
    def parameters(self) -> int:
        """How many numbers the model and its guide have learned."""
        return sum(p.numel() for m in (self.model, self.guide) for p in m.parameters())

    def on(self, dataset: xr.Dataset) -> "Run":
        """This run with a model for the bodies of ``dataset``, where those may be any number.

        Only a set-structured model has no parameter that depends on their number; of any other,
        and where there are as many bodies of each type in the same order, the run itself is
        returned.

        Raises:
            ConfigError: If their number differs, and one is of no type that the model knows.
        """
        if self.card.config.get("structure") != "set":
            return self
        bodies = tuple(str(name) for name in dataset["body"].to_numpy())
        try:
            same = body_types(bodies, self.card.bodies) == body_types(self.card.bodies)
        except ConfigError:
            same = len(bodies) == len(self.card.bodies)
            if not same:
                raise
        if same:
            return self
        scale, axes = self.card.scale, len(self.card.axes)
        arena = {name: getattr(scale, name)[:axes] * len(bodies) for name in ("low", "high")}
        card = dataclasses.replace(
            self.card, bodies=bodies, scale=dataclasses.replace(scale, **arena)
        )
        model, guide = build(card, like=self.card)
        ours = {name: value for name, value in self.model.named_parameters()}
        model.load_state_dict(ours, strict=False)  # buffers are of the scene
        guide.load_state_dict(self.guide.state_dict())
        return dataclasses.replace(
            self, model=model, guide=guide, card=card, like=self.like or self.card
        )

    def baselines(self) -> dict[str, LinearAutoregression]:
        """Those that were fitted to the same frames; of other bodies (`on`) those of each body.

        Raises:
            RunError: If there are none, or the file is damaged.
        """
        found = load_baselines(self.path / BASELINES)
        if self.like is None:
            return found
        bodies = self.like.bodies
        types = body_types(self.card.bodies, bodies)
        first = [body_types(bodies).index(kind) for kind in range(max(types) + 1)]
        return {
            name: LinearAutoregression.each([one.alone(i, len(bodies)) for i in first], types)
            for name, one in found.items()
            if name.endswith(EACH)
        }

    def recordings(self, instead: str = "read them as for the fit") -> xr.Dataset:
        """All that the run was fitted to, read again; `heldout` gives the held-out part of it.

        Args:
            instead: What to do where the run does not say where they are, for the message.

        Raises:
            RunError: If it does not say, as one fitted in Python without ``data``, or is of `act`.
            DataError: If they cannot be read.
        """
        return read_data(self.card.model, data_of_run(self.path, self.settings, instead))

    def heldout(self, dataset: xr.Dataset) -> xr.Dataset:
        """The part of the run's own recordings that it was never trained on.

        Raises:
            RunError: If what these would hold out is not what the fit held out.
        """
        return self._split(dataset)[3]

    def fitted(self, dataset: xr.Dataset) -> xr.Dataset:
        """The part of the run's own recordings that it learned from, or stopped by.

        Raises:
            RunError: As `heldout`.
        """
        return self._split(dataset)[0]

    def _split(self, dataset: xr.Dataset) -> tuple[xr.Dataset, ...]:
        train = self.config.train
        divide = split_episodes if self.data == "episodes" else split_recordings
        parts = divide(dataset, train.heldout, train.validation, train.seed)
        # one more recording, or a longer one, and others are drawn, which it was trained on
        known = self.settings.get("heldout")
        if known is not None and known != fingerprint(parts[3]):
            raise RunError(
                f"{self.path}: its recordings have changed since the fit, or these are others, so "
                "what was held out is not known; give recordings that it was not fitted to, or fit "
                "again"
            )
        return parts


def build(
    card: ModelCard | EpisodeCard, like: ModelCard | None = None
) -> tuple[Any, MessengerGuide]:
    """Build the model and guide that a card describes, with fresh parameters.

    Args:
        card: What to build.
        like: The card whose bodies a set-structured model was fitted to, where those of ``card``
            are others.

    Raises:
        ConfigError: If torch makes new parameters in another type than float32.
        RunError: If this version knows no such model or its options differ.
    """
    if (default := torch.get_default_dtype()) != torch.float32:
        raise ConfigError(
            f"torch's default type is {default}, and runs are in float32: "
            "torch.set_default_dtype(torch.float32). A model of your own may be .double(), with "
            "batches likewise"
        )
    if card.model not in FAMILIES:
        raise RunError(
            f"the run's model is {card.model!r}; this version knows {', '.join(FAMILIES)}"
        )
    family = FAMILIES[card.model]
    of = "episodes" if isinstance(card, EpisodeCard) else "scenes"
    if family.data != of:
        raise RunError(f"the run's model {card.model} is one of {family.data}, its card of {of}")
    try:
        config = parse_model(card.model, card.config)
    except ConfigError as error:
        raise RunError(f"the run's model options are not those of this version ({error})") from None
    if isinstance(card, EpisodeCard):
        model = family.model(config, card.sight)
    else:
        scene = {"scale": card.scale, "bodies": len(card.bodies), "axes": len(card.axes)}
        if getattr(config, "structure", "joint") == "set":
            like = like or card
            types = body_types(card.bodies, like.bodies)
            scene |= {"types": types, "known_types": max(body_types(like.bodies)) + 1}
        model = family.model(config, **scene)
    return model, family.guide(model)


def read_metrics(path: Path, count: str | None = None) -> list[dict[str, Any]]:
    """Read the rows of ``metrics.jsonl`` of a run; none where there is no such file.

    Args:
        path: The run's folder.
        count: A whole number that every row must hold, such as ``step``.

    Raises:
        RunError: If it is damaged.
    """
    rows = _json_objects(path / METRICS, lines=True)
    if rows is None or not all(count is None or isinstance(row.get(count), int) for row in rows):
        raise RunError(f"{path / METRICS}: damaged; delete it to go on without the log")
    return rows


def _read_summary(file: Path) -> dict[str, Any]:
    found = _json_objects(file)
    if found is None:
        raise RunError(
            f"{file}: damaged; delete it, and go on with: "
            f"{command_line('fit', '--resume', file.parent)}"
        )
    return found[0] if found else {}


def _json_objects(file: Path, *, lines: bool = False) -> list[dict[str, Any]] | None:
    """The JSON object in a file, or in each line; [] where there is no file, None if damaged."""
    if not file.is_file():
        return []
    try:
        text = file.read_text()
        found = [json.loads(part) for part in (text.splitlines() if lines else [text])]
    except ValueError:
        return None
    return found if all(isinstance(x, dict) for x in found) else None


def split_recordings(
    dataset: xr.Dataset, heldout: float | xr.Dataset, validation: float, seed: int
) -> tuple[xr.Dataset, xr.Dataset, xr.Dataset, xr.Dataset]:
    """Split recordings into training, of it fitting and validation, and held-out parts.

    By recording, or by time where there are fewer than five; see `data.trajectories.split`. What is
    held out is a share of them, or recordings that are given, and then all others are for training.

    Returns:
        Train, fit, validation, held out; fit and validation together are train.
    """
    if isinstance(heldout, xr.Dataset):
        train, out = dataset, heldout
    else:
        train, out = split(dataset, heldout, seed=seed)
    fitting, check = split(train, validation, seed=seed + 1)
    return train, fitting, check, out


def split_episodes(
    dataset: xr.Dataset, heldout: float, validation: float, seed: int
) -> tuple[xr.Dataset, xr.Dataset, xr.Dataset, xr.Dataset]:
    """Split episodes as `split_recordings` does: train, fit, validation, held out.

    Raises:
        DataError: If there are fewer than three.
    """
    N = dataset.sizes["trajectory"]
    if N < 3:
        raise DataError(
            f"the recordings are {how_many(N, 'episode')}; at least 3 are needed: to train on, to "
            "validate, to hold out"
        )
    order = np.random.default_rng(seed).permutation(N)
    out = min(max(1, round(heldout * N)), N - 2)
    check = min(max(1, round(validation * (N - out))), N - out - 1)
    parts = order[out:], order[out + check :], order[out : out + check], order[:out]
    train, fit, valid, held = (dataset.isel(trajectory=np.sort(part)) for part in parts)
    return train, fit, valid, held


def check_kind(
    card: ModelCard | EpisodeCard, data: Literal["scenes", "episodes"], path: Path | None = None
) -> None:
    """Check that a model is one of scenes, or one of episodes, as what is asked of it needs.

    Args:
        card: The model's.
        data: What it is to be a model of.
        path: The run's folder, for the message.

    Raises:
        ConfigError: If it is of the other.
    """
    has = FAMILIES[card.model].data
    if has == data:
        return
    kinds = {"scenes": "moving bodies", "episodes": "episodes"}
    instead = {
        "scenes": "for moving bodies there are `predict` and `criticise`",
        "episodes": (
            "for episodes there are `sample` and `criticise`, in Python `predict_episodes` and "
            "`criticise_episodes`"
        ),
    }
    raise ConfigError(
        f"{'' if path is None else f'{path}: '}{card.model} is a model of {kinds[has]}, and this "
        f"works on models of {kinds[data]} only; {instead[has]}"
    )


def suited(card: ModelCard, dataset: xr.Dataset) -> xr.Dataset:
    """The recordings with their bodies in the model's order.

    Bodies of other names are taken in the order they have: the same kind of scene, recorded of
    others.

    Raises:
        ConfigError: If the model is one of episodes.
        DataError: If there are no positions, the number of bodies, the rate or the units are not
            the model's, or the times are not at that rate.
    """
    check_kind(card, "scenes")
    if "position" not in dataset:
        raise DataError(
            f"these recordings have no `position`, and {card.model} is a model of moving bodies"
        )
    check_form(dataset)
    bodies = tuple(str(b) for b in dataset["body"].to_numpy())
    if len(bodies) != len(card.bodies):
        raise DataError(
            f"the recordings have {how_many(len(bodies), 'body')} ({_some(bodies)}), the run's "
            f"model has {len(card.bodies)} ({_some(card.bodies)}); choose them with --bodies"
        )
    fps = float(dataset.attrs["fps"])
    if abs(fps - card.fps) > 0.01 * card.fps:
        raise DataError(
            f"the recordings have {fps:g} frames a second, the run's model was fitted at "
            f"{card.fps:g}; use --downsample or --fps so that they agree"
        )
    steps = np.diff(dataset["time"].to_numpy()) * fps
    if len(steps) and not np.allclose(steps, 1, atol=0.01):
        raise DataError(
            f"the recordings' times are {steps[0] / fps:g} s apart, which is not {fps:g} frames a "
            "second; use `downsample` of pyro_animacy.data.trajectories, not a slice of time"
        )
    units = str(dataset.attrs.get("units", "unknown"))
    if "unknown" not in (units, card.units) and units != card.units:
        raise DataError(
            f"the recordings are in {units}, the run's model was fitted in {card.units}; convert "
            "them, or correct --units"
        )
    reordered = bodies != card.bodies and set(bodies) == set(card.bodies)
    return dataset.sel(body=list(card.bodies)) if reordered else dataset


def pick_device(name: str) -> torch.device:
    """Return the device, or raise RunError if it cannot be had."""
    try:
        device = torch.device(name)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        first = str(error).splitlines()[0]
        raise RunError(f"train.device is {name!r}, which cannot be used here ({first})") from None
    return device


def _some(names: Iterable[str]) -> str:
    names = list(names)
    return ", ".join(names[:6]) + (", ..." if len(names) > 6 else "")
