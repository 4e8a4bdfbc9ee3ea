"""From a Dataset of trajectories to batches of tensors: scale, windows by index, dequantisation."""

from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from pyro_animacy.errors import DataError

Symmetry = Literal["none", "reflect", "rotate"]


@dataclass(frozen=True)
class Scale:
    """The one length scale of a recording; the same for both axes, so that geometry is kept.

    Models work in units of ``unit``; every figure that a person sees is in data units.

    Args:
        center: Mean position, one number an axis (data units).
        unit: Root mean square displacement of a coordinate per frame (data units).
        extent: Spread of positions around the centre, in units of ``unit``.
        separation: Spread of the differences between bodies, in units of ``unit``.
        resolution: Smallest common step of the recordings, in units of ``unit``.
        low: Least value of each coordinate (D), from the centre, in units of ``unit``: one arena
            for all bodies, whichever was recorded there.
        high: Greatest value, likewise.
    """

    center: tuple[float, ...]
    unit: float
    extent: float
    separation: float
    resolution: float
    low: tuple[float, ...]
    high: tuple[float, ...]

    @classmethod
    def of(cls, dataset: xr.Dataset) -> "Scale":
        """Measure the scale of the recordings in ``dataset``.

        Raises:
            DataError: If nothing moves, or a body is never observed.
        """
        x = dataset["position"].to_numpy()
        for index, body in enumerate(dataset["body"].to_numpy()):
            if not np.isfinite(x[:, :, index]).all(-1).any():
                raise DataError(
                    f"body {body} is not observed in the part of the recordings that is fitted; "
                    "leave it out by --bodies, or give longer recordings"
                )
        with np.errstate(invalid="ignore"):
            unit = float(np.sqrt(np.nanmean(np.diff(x, axis=1) ** 2)))
        if not unit > 0:
            raise DataError("no body moves in these recordings; a model of motion needs some")
        center = np.nanmean(x, axis=(0, 1, 2))
        from_center = (x - center) / unit
        extent = float(np.sqrt(np.nanmean(from_center**2)))
        apart = [np.square(x[:, :, i] - x[:, :, j]) for i, j in body_pairs(x.shape[2])]
        together = sum(np.isfinite(a).sum() for a in apart)
        separation = float(np.sqrt(sum(np.nansum(a) for a in apart) / max(together, 1)))
        return cls(
            center=tuple(float(c) for c in center),
            unit=unit,
            extent=extent or 1.0,
            separation=separation / unit or 1.0,
            resolution=float(dataset["resolution"].min()) / unit,
            low=tuple(np.nanmin(from_center, axis=(0, 1, 2)).tolist()) * x.shape[2],
            high=tuple(np.nanmax(from_center, axis=(0, 1, 2)).tolist()) * x.shape[2],
        )


def body_pairs(bodies: int) -> list[tuple[int, int]]:
    """Every pair (i, j) of bodies with i < j."""
    return [(i, j) for i in range(bodies) for j in range(i + 1, bodies)]


class Batch(NamedTuple):
    """A batch of windows in model units, time first.

    Attributes:
        position: (frames, B, D) coordinates of all bodies, D = bodies x axes; 0 where not observed.
        observed: (frames, B, D) true where a coordinate was recorded.
    """

    position: Tensor
    observed: Tensor

    def to(self, device: torch.device, dtype: torch.dtype | None = None) -> "Batch":
        """Move to a device, and change the type of the positions if one is given."""
        return Batch(self.position.to(device, dtype), self.observed.to(device))


class Windows:
    """Every window of ``frames`` consecutive frames, drawn by index, never stored.

    A window starts where its first ``context`` frames are observed in full and at least one
    coordinate of the next frame is. A trajectory shorter than the window gives one window, padded
    with missing frames; one too short for a single step gives none.

    Args:
        dataset: Recordings in the schema of `trajectories`.
        frames: Frames in a window: the context and the steps to predict.
        context: Frames that must be complete before the first prediction.
        scale: The model's scale.
        symmetry: Draw each window under a random motion that leaves the law of motion as it is:
            ``reflect`` mirrors either axis about the centre, ``rotate`` turns by any angle as well.
        complete: Keep only windows observed in full.

    Raises:
        DataError: If no trajectory is long enough for one step.
    """

    def __init__(
        self,
        dataset: xr.Dataset,
        *,
        frames: int,
        context: int,
        scale: Scale,
        symmetry: Symmetry = "none",
        complete: bool = False,
    ) -> None:
        x = (dataset["position"].to_numpy() - np.asarray(scale.center)) / scale.unit
        self.bodies, self.axes = x.shape[2:]
        self.frames, self.context, self.symmetry = frames, context, symmetry
        self.complete = complete
        x = x.reshape(*x.shape[:2], -1).astype(np.float32)
        if x.shape[1] < frames:
            x = np.pad(x, ((0, 0), (0, frames - x.shape[1]), (0, 0)), constant_values=np.nan)
        self.position = torch.from_numpy(x)
        resolution = dataset["resolution"].to_numpy() / scale.unit
        self.resolution = torch.from_numpy(resolution.astype(np.float32))
        self.index = self._starts(torch.as_tensor(dataset["length"].to_numpy()))
        if not len(self.index):
            longest = int(dataset["length"].max())
            raise DataError(
                f"no trajectory has {context + 1} frames observed in a row (the longest has "
                f"{longest} frames); use longer recordings, a smaller --downsample or a smaller "
                "--model.history"
            )

    def _starts(self, length: Tensor) -> Tensor:
        """The (trajectory, frame) at which each window begins, (W, 2)."""
        seen = ~self.position.isnan()
        if self.complete:
            return seen.all(-1).unfold(1, self.frames, 1).all(-1).nonzero()
        complete = seen.all(-1).unfold(1, self.context, 1).all(-1)[:, :-1]
        valid = complete & seen.any(-1)[:, self.context :]
        start = torch.arange(valid.shape[1])
        valid &= start <= (length - self.frames).clamp(min=0)[:, None]
        return valid.nonzero()

    def __len__(self) -> int:
        return len(self.index)

    def batch(self, which: Tensor, generator: torch.Generator | None = None) -> Batch:
        """Return the windows ``which`` (B,).

        With a ``generator``, positions are dequantised by uniform noise of their recording's
        resolution, and drawn under the symmetry; without, they are as recorded.
        """
        trajectory, start = self.index[which].unbind(1)
        frame = start + torch.arange(self.frames)[:, None]
        x = self.position[trajectory, frame]
        if generator is not None:
            noise = torch.rand(x.shape, generator=generator) - 0.5
            x = x + noise * self.resolution[trajectory][:, None]
            x = self._moved(x, generator)
        observed = ~x.isnan()
        return Batch(x.nan_to_num(0.0), observed)

    def draw(self, size: int, generator: torch.Generator) -> Batch:
        """Return ``size`` windows drawn at random, with replacement."""
        return self.batch(torch.randint(len(self), (size,), generator=generator), generator)

    def _moved(self, x: Tensor, generator: torch.Generator) -> Tensor:
        if self.symmetry == "none" or self.axes != 2:
            return x
        size = x.shape[1]
        turn = torch.diag_embed(torch.randint(2, (size, 2), generator=generator) * 2.0 - 1)
        if self.symmetry == "rotate":
            angle = torch.rand(size, generator=generator) * (2 * torch.pi)
            c, s = angle.cos(), angle.sin()
            turn = turn @ torch.stack([c, -s, s, c], -1).view(size, 2, 2)
        points = x.unflatten(-1, (self.bodies, self.axes))
        return (points @ turn).flatten(-2)


def whole(dataset: xr.Dataset, scale: Scale) -> Batch:
    """Every trajectory from its first frame, in model units: one batch of (time, trajectory, D)."""
    x = (dataset["position"].to_numpy() - np.asarray(scale.center)) / scale.unit
    x = torch.from_numpy(x.reshape(*x.shape[:2], -1).astype(np.float32)).transpose(0, 1)
    return Batch(x.nan_to_num(0.0), ~x.isnan())


def dequantised(dataset: xr.Dataset, seed: int) -> xr.Dataset:
    """Return the recordings with one fixed draw of uniform noise as wide as their resolution.

    Scores are taken on such a draw, the same for the model and for every baseline: below the
    resolution of a recording a density means nothing, and a body at rest would reward a model
    without end for shrinking its scale.
    """
    x = dataset["position"]
    width = dataset["resolution"].to_numpy()[:, None, None, None]
    noise = np.random.default_rng(seed).uniform(-0.5, 0.5, x.shape)
    return dataset.assign(position=x.copy(data=x.to_numpy() + width * noise))
