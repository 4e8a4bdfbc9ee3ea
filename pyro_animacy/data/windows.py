"""From a Dataset of trajectories to batches of tensors: scale, windows by index, dequantisation."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from pyro_animacy.data import stored
from pyro_animacy.data.schema import pieces
from pyro_animacy.data.stored import Floats, Integers, Stored, blocks, positions
from pyro_animacy.errors import DataError

Symmetry = Literal["none", "reflect", "rotate"]
COARSEST = 0.1  # what rounding may take of a step


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

    def log_jacobian(self, coordinates: Any) -> Any:
        """What a log density in model units is above one in data units: D log unit.

        Args:
            coordinates: D, of what the density is of; a number, an array or a tensor.
        """
        return coordinates * math.log(self.unit)

    @classmethod
    def of(cls, dataset: xr.Dataset, parts: int = 1) -> "Scale":
        """Measure the scale of the recordings in ``dataset``.

        Args:
            dataset: Recordings.
            parts: `SceneModel.parts`; of several, one may be missing throughout.

        Raises:
            DataError: If nothing moves, or a body is never observed, or places are so far from
                each other that steps are lost in single precision, which models work in.
        """
        position = positions(dataset)
        low, high = stored.extremes(position)
        unseen = np.isnan(low).any(-1).all(0)
        if unseen.any() and parts == 1:
            raise DataError(
                f"body {dataset['body'].to_numpy()[unseen][0]} is not observed in the part of the "
                "recordings that is fitted; leave it out by --bodies, or give longer recordings"
            )
        unit = float(np.sqrt(_mean(position, lambda x: [np.diff(x, axis=1) ** 2])))
        if not unit > 0:
            raise DataError("no body moves in these recordings; a model of motion needs some")
        center = _mean(position, lambda x: [x], (0, 1, 2))
        extent = float(np.sqrt(_mean(position, lambda x: [((x - center) / unit) ** 2]))) or 1.0
        if extent * np.finfo(np.float32).eps > COARSEST:
            raise DataError(
                f"positions are {extent * unit:.3g} from their common centre and steps {unit:.3g} "
                "(root mean squares), too short to be told in single precision; where the "
                "recordings are of several sites, subtract each site's origin, or fit them apart"
            )
        bodies = position.shape[2]
        pairs = body_pairs(bodies)
        apart = _mean(position, lambda x: (np.square(x[:, :, i] - x[:, :, j]) for i, j in pairs))
        return cls(
            center=tuple(float(c) for c in center),
            unit=unit,
            extent=extent,
            separation=float(np.sqrt(apart)) / unit or 1.0,
            resolution=float(dataset["resolution"].min()) / unit,
            low=tuple(((np.fmin.reduce(low, (0, 1)) - center) / unit).tolist()) * bodies,
            high=tuple(((np.fmax.reduce(high, (0, 1)) - center) / unit).tolist()) * bodies,
        )


def _mean(
    position: Floats | Stored,
    parts: Callable[[Floats], Iterable[Floats]],
    axis: tuple[int, ...] | None = None,
) -> Floats:
    """The mean of what is observed of functions of the positions, block by block.

    The displacements from one block of a long trajectory to the next are left out.
    """
    total, count = np.zeros(()), np.zeros((), int)
    for _, _, x in blocks(position):
        for part in parts(x):
            total = total + np.nansum(part, axis=axis)
            count = count + np.count_nonzero(~np.isnan(part), axis=axis)
    return total / np.maximum(count, 1)


def body_pairs(bodies: int) -> list[tuple[int, int]]:
    """Every pair (i, j) of bodies with i < j."""
    return [(i, j) for i in range(bodies) for j in range(i + 1, bodies)]


def longest_seen(dataset: xr.Dataset, parts: int = 1) -> int:
    """For how many frames in a row all bodies, or those of a part, are observed, at most."""
    _, begin, end = _runs_of_parts(dataset, parts)
    return int((end - begin).max(initial=0))


def _runs_of_parts(dataset: xr.Dataset, parts: int) -> tuple[Integers, Integers, Integers]:
    """(run,) trajectory, first frame and the frame after the last, in which a part is observed."""
    complete, _ = stored.observed(positions(dataset), parts)
    row, begin, end = stored.runs(np.concatenate(np.moveaxis(complete, -1, 0)))
    return row % len(complete), begin, end


def begun(dataset: xr.Dataset, frames: int, after: int = 0, parts: int = 1) -> xr.Dataset:
    """Trajectories that a model can go on from: all bodies are observed in ``frames`` in a row.

    Of several ``parts`` that count by themselves, the bodies of one are enough. One that is not
    split at its gaps may begin in one. It is cut where the first such frames are, or ``after``
    frames before them; a trajectory that has none stays as it is.
    """
    row, first, end = _runs_of_parts(dataset, parts)
    first, none = np.maximum(first, after), dataset.sizes["time"]
    enough = end - first >= frames
    begin = np.full(dataset.sizes["trajectory"], none)
    np.minimum.at(begin, row[enough], first[enough] - after)  # of several the first
    begin[begin == none] = 0
    if not begin.any():
        return dataset
    return pieces(dataset, np.arange(len(begin)), begin, dataset["length"].to_numpy())


def come_and_go(dataset: xr.Dataset) -> bool:
    """Whether at some frame some bodies are observed, and some are not."""
    return not np.array_equal(*stored.observed(positions(dataset)))


def of_those_given(dataset: xr.Dataset, given: slice, parts: int) -> xr.Dataset:
    """Trajectories of those bodies that are observed in full in the frames ``given``.

    Of several ``parts`` that count by themselves the others are left out, not observed; and so are
    those who were once away, from there on: in their place may be others. Where there is one part,
    nothing is.
    """
    if parts == 1:
        return dataset
    x = dataset["position"].to_numpy()
    there, _ = stored.observed(x, parts)
    begin, end, _ = given.indices(x.shape[1])
    known = there[:, begin:end].all(1, keepdims=True)
    there[:, :end] = True  # of the rest, up to where one is first away
    known = known & np.logical_and.accumulate(there, axis=1)
    each = known.repeat(x.shape[2] // parts, 2)[..., None]
    return dataset.assign(position=dataset["position"].copy(data=np.where(each, x, np.nan)))


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

    Where a step falls in ``parts``, each of as many bodies, that of one part is enough: bodies may
    come and go.

    Args:
        dataset: Recordings in the schema of `pyro_animacy.data.schema`.
        frames: Frames in a window: the context and the steps to predict.
        context: Frames that must be complete before the first prediction.
        scale: The model's scale.
        symmetry: Draw each window under a random motion that leaves the law of motion as it is:
            ``reflect`` mirrors either axis about the centre, ``rotate`` turns by any angle as well.
        complete: Keep only windows observed in full. Of several parts one is enough; of those that
            are not, nothing is shown after the context, so that nothing is asked of them.
        parts: Into how many parts a step falls that count by themselves, `SceneModel.parts`.

    Attributes:
        partial: Whether windows may lack a part.

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
        parts: int = 1,
    ) -> None:
        x = positions(dataset)
        self.stored = x if isinstance(x, Stored) else Stored.of(x)
        self.bodies, self.axes = map(int, x.shape[2:])
        self.coordinates = self.bodies * self.axes
        self.frames, self.context, self.symmetry = frames, context, symmetry
        self.complete, self.scale, self.parts = complete, scale, parts
        self.partial = parts > 1 and come_and_go(dataset)
        self.resolution = (dataset["resolution"].to_numpy() / scale.unit).astype(np.float32)
        # Runs of windows that start one frame after another: their trajectories, how many windows
        # there are up to the last of each, and what of a window's number makes its first frame.
        self._row, begin, end = stored.runs(self._valid(x, dataset["length"].to_numpy()))
        last = (end - begin).cumsum()
        self._end, self._shift = torch.from_numpy(last), end - last
        if not len(self):
            raise DataError(
                f"no trajectory has {context + 1} frames observed in a row ("
                f"{'all bodies are seen together' if parts == 1 else 'a body is seen'} for at most "
                f"{longest_seen(dataset, parts)}); use longer recordings, fewer bodies (--bodies), "
                "where it was given a smaller --downsample, or a smaller --model.history"
            )

    def _valid(self, position: Floats | Stored, length: Integers) -> np.ndarray:
        """Where windows begin, (trajectory, time)."""
        parts = self.parts if self.partial else None
        complete, some = map(torch.from_numpy, stored.observed(position, parts))
        need = self.frames if self.complete else self.context
        if complete.shape[1] < need:
            return np.zeros((len(position), 0), bool)
        complete = complete.unfold(1, need, 1).all(-1)
        if not self.complete:
            complete = complete[:, :-1] & some[:, self.context :]
        valid = complete.any(2) if self.partial else complete
        if self.complete:
            return valid.numpy()
        last = torch.from_numpy(length - self.frames).clamp(min=0)
        valid &= torch.arange(valid.shape[1]) <= last[:, None]
        return valid.numpy()

    def __len__(self) -> int:
        return int(self._end[-1]) if len(self._end) else 0

    def places(self, which: Tensor) -> tuple[Integers, Integers]:
        """The trajectory and the frame at which the windows ``which`` (B,) begin, each (B,)."""
        run = torch.bucketize(which.contiguous(), self._end, right=True).numpy()
        return self._row[run], self._shift[run] + which.numpy()

    @property
    def index(self) -> Tensor:
        """The (trajectory, frame) at which each window begins, (W, 2)."""
        return torch.from_numpy(np.stack(self.places(torch.arange(len(self))), 1))

    def stretches(self, trajectory: Integers, start: Integers, frames: int) -> Tensor:
        """``frames`` of trajectories (..., B), from ``start`` (..., B) on, in model units.

        Returns:
            (..., frames, B, D): NaN where not observed, and beyond the ends.
        """
        D, B = self.coordinates, start.shape[-1]
        x = self.stored.read(trajectory, start, frames).reshape(*start.shape[:-1], frames, B * D)
        # All windows as one row: NumPy and torch are slow over short last axes.
        x -= np.tile(self.scale.center, B * self.bodies)
        return torch.from_numpy(x.astype(np.float32)).div_(self.scale.unit).unflatten(-1, (B, D))

    def batch(self, which: Tensor, generator: torch.Generator | None = None) -> Batch:
        """Return the windows ``which`` (B,).

        With a ``generator``, positions are dequantised by uniform noise of their recording's
        resolution, and drawn under the symmetry; without, they are as recorded.
        """
        if generator is not None:
            return Batch(*(part[0] for part in self.batches(which[None], [generator])))
        return _seen(self._shown(self.stretches(*self.places(which), self.frames)))

    def batches(self, which: Tensor, generators: Sequence[torch.Generator]) -> Batch:
        """The batches of every row of ``which`` (K, B), each drawn by a generator of its own.

        To the bit those that `batch` gives one by one, (K, frames, B, D). What a batch takes is
        mostly the calls, which are slow between steps that leave nothing of them in the cache.
        """
        trajectory, start = self.places(which)
        x = self._shown(self.stretches(trajectory, start, self.frames))
        rows = x.flatten(-2)  # torch is slow over short last axes
        # Sixteen random bits for the noise of each coordinate, the two mirrors, and the angle: as
        # many as float32 has below the resolution of a recording.
        needed = [rows[0].numel(), 2 * which.shape[1], which.shape[1]]
        bits = torch.empty(len(which), -(-sum(needed) // 4), dtype=torch.int64)
        for row, generator in zip(bits, generators, strict=True):
            row.random_(-(2**63), None, generator=generator)
        uniform = bits.view(torch.int16)[:, : sum(needed)].float()  # from -2^15 to 2^15
        noise, mirror, angle = uniform.split(needed, -1)
        width = torch.from_numpy(self.resolution[trajectory][..., None])
        rows.addcmul_(noise.view_as(rows), _repeated(width, self.coordinates), value=2**-16)
        if self.symmetry != "none" and self.axes == 2:
            mirror = mirror.add_(0.5).sign_().unflatten(-1, (-1, 2))
            rows *= _repeated(mirror, self.bodies)
            if self.symmetry == "rotate":
                angle = angle.mul_(2**-15 * torch.pi)[..., None]
                turn = _repeated(torch.complex(angle.cos(), angle.sin()), self.bodies)
                points = rows.numpy().view(np.complex64)  # torch's threads would round otherwise
                points *= turn.numpy()
        return _seen(x)

    def _shown(self, x: Tensor) -> Tensor:
        """What is shown of windows (..., frames, B, D), in place; see ``complete``."""
        if self.complete and self.partial:
            each = x.unflatten(-1, (self.parts, -1))
            lacking = each.isnan().any(-1, keepdim=True).any(-4, keepdim=True)
            each[..., self.context :, :, :, :].masked_fill_(lacking, torch.nan)
        return x

    def draw(self, size: int, generator: torch.Generator) -> Batch:
        """Return ``size`` windows drawn at random, with replacement."""
        return self.batch(torch.randint(len(self), (size,), generator=generator), generator)


def _repeated(x: Tensor, times: int) -> Tensor:
    """Repeat each window's numbers: x (K, B, n) to (K, 1, B x times x n), each window's together.

    By NumPy, in a tenth of the time that torch takes.
    """
    return torch.from_numpy(x.numpy().repeat(times, axis=1)).flatten(1)[:, None]


def _seen(x: Tensor) -> Batch:
    """Positions that are NaN where not observed, in place."""
    seen = ~np.isnan(x.numpy())  # in a fifth of the time that torch takes
    return Batch(x if seen.all() else x.nan_to_num_(0.0), torch.from_numpy(seen))


def evenly(count: int, most: int) -> Integers:
    """Numbers of ``most`` of ``count`` things, evenly spaced from the first to the last; or all."""
    return np.linspace(0, count - 1, min(count, most)).round().astype(np.int64)


def consecutive(
    length: Integers, frames: int, *, every: int | None = None, least: int = 1
) -> tuple[Integers, Integers, Integers]:
    """Windows one after another through trajectories, for `pieces`: rows, begin, end, each (W,).

    The last of a trajectory ends with it, and is shorter where the frames do not go up.

    Args:
        length: Frames of each trajectory.
        frames: Of a window.
        every: From the start of one to that of the next; ``frames`` by default.
        least: Shorter windows are left out.

    Returns:
        Of each window its trajectory, its first frame, and the frame after its last.
    """
    every = every or frames
    counts = -(-length // every)
    rows = np.repeat(np.arange(len(length)), counts)
    begin = (np.arange(len(rows)) - np.repeat(counts.cumsum() - counts, counts)) * every
    end = np.minimum(begin + frames, length[rows])
    kept = end - begin >= least
    return rows[kept], begin[kept], end[kept]


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
    x, width = positions(dataset), dataset["resolution"].to_numpy()
    noisy: Floats | Stored
    if isinstance(x, Stored) and x.noise is None:  # the same noise, drawn where it is read
        place = np.arange(len(x)) * int(np.prod(x.shape[1:]))
        noisy = replace(x, noise=stored.Noise(seed, width, place))
    else:
        noise = np.random.default_rng(seed).uniform(-0.5, 0.5, x.shape)
        noisy = x + width[:, None, None, None] * noise
    return dataset.assign(position=dataset["position"].copy(data=noisy))
