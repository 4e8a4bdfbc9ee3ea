"""Positions that stay in a file: which of its frames a trajectory is, read where asked for.

    file         frame 0 . . . . . . . . . . . . . . . . . . . . N - 1     (N, bodies, 2), mapped
                           |--------------|     |--------|
    trajectory             0: first 3           1: first 14
                              length 8             length 5, and NaN up to the longest

To cut, split or choose trajectories is to choose other numbers: nothing is read. A `Stored` stands
in a Dataset in place of an array (xarray's duck arrays); to compute with it loads it.

What a process has read of a mapped file counts as its memory until it lets go of it, although the
kernel keeps the same pages for the next who asks; so every read ends with letting go.
"""

import mmap
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import xarray as xr

HELD = 2**28  # bytes from which on positions stay where they are: in a file, or in other scenes
BLOCK = 2**18  # coordinates that are looked at together, with what is computed of them in cache
WIDE = 1024  # coordinates that are compared at once
ROWS = 128  # stretches that are read before pages are let go: each maps up to 2 MB

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]


class Noise(NamedTuple):
    """Uniform noise: every coordinate has its place in the stream of one random generator."""

    seed: int
    width: Floats  # (trajectory,)
    place: Integers  # (trajectory,) of the first coordinate of the first frame

    def drawn(self, rows: Integers, begin: Integers, shape: tuple[int, ...]) -> Floats:
        """Of ``shape`` (rows, frames, body, 2), what `numpy.random.default_rng` draws there."""
        bits, now, out = np.random.PCG64(self.seed), 0, np.empty(shape)
        draw, each = np.random.Generator(bits), shape[2] * shape[3]
        for row, place in zip(out, (self.place[rows] + begin * each).tolist(), strict=True):
            bits.advance(place - now)
            draw.random(out=row)
            now = place + row.size
        return self.width[rows, None, None, None] * (out - 0.5)


@dataclass(frozen=True, eq=False, repr=False)
class Stored(np.lib.mixins.NDArrayOperatorsMixin):
    """Positions (trajectory, time, body, 2) in float64, read out of an array of frames.

    Args:
        frames: (N, bodies, 2) in float32 or float64; mapped, or in memory.
        first: (trajectory,) the first of its frames.
        length: (trajectory,) how many are its own.
        time: Size of the dimension of that name.
        body: Which bodies of the array, (bodies,), or of each trajectory (trajectory, bodies); all
            by default.
        noise: To be added.
    """

    frames: npt.NDArray[Any]
    first: Integers
    length: Integers
    time: int
    body: Integers | None = None
    noise: Noise | None = None

    ndim, dtype = 4, np.dtype(np.float64)

    @classmethod
    def of(cls, values: npt.NDArray) -> "Stored":
        """All of an array (trajectory, time, body, 2)."""
        n, time = values.shape[:2]
        first, length = np.arange(n) * time, np.full(n, time)
        return cls(values.reshape(n * time, *values.shape[2:]), first, length, time)

    @property
    def shape(self) -> tuple[int, ...]:
        """(trajectory, time, body, 2)."""
        bodies = self.frames.shape[1] if self.body is None else self.body.shape[-1]
        return len(self.first), self.time, bodies, 2

    @property
    def bodies(self) -> Integers:
        """Which bodies of the array each trajectory has, (trajectory, bodies)."""
        count, _, bodies, _ = self.shape
        return np.broadcast_to(
            np.arange(bodies) if self.body is None else self.body, (count, bodies)
        )

    def __len__(self) -> int:
        return len(self.first)

    def read(self, rows: Integers, begin: Integers, frames: int) -> Floats:
        """So many frames of trajectories ``rows`` (..., k), from ``begin`` (..., k) on.

        Returns:
            (..., frames, k, body, 2), a new array, NaN beyond the end: in memory, too, each frame
            has all trajectories next to each other, as models take them.
        """
        mapped = mapping(self.frames)
        if mapped is not None and rows.size > ROWS:
            axis = int(np.argmax(rows.shape))
            each = max(1, ROWS * rows.shape[axis] // rows.size)
            cuts = np.arange(each, rows.shape[axis], each)
            parts = zip(np.split(rows, cuts, axis), np.split(begin, cuts, axis), strict=True)
            read = [self.read(*part, frames) for part in parts]
            return np.concatenate(read, axis if axis < rows.ndim - 1 else -3)
        frame = (self.first[rows] + begin)[..., None, :] + np.arange(frames)[:, None]
        left = self.length[rows] - begin
        ended = left.min(initial=frames) < frames
        if ended:
            beyond = left[..., None, :] <= np.arange(frames)[:, None]
            frame[beyond] = 0
        if self.body is None:
            x = self.frames.take(frame, axis=0, mode="clip")  # none is; it is the fastest
        else:
            body = self.body if self.body.ndim == 1 else self.body[rows][..., None, :, :]
            place = frame[..., None] * self.frames.shape[1] + body
            x = self.frames.reshape(-1, 2).take(place, axis=0, mode="clip")
        if mapped is not None and hasattr(mapped, "madvise"):  # not on Windows
            mapped.madvise(mmap.MADV_DONTNEED)
        x = x.astype(np.float64, copy=False)
        if ended:
            x[beyond] = np.nan
        if self.noise is None:
            return x
        noise = self.noise.drawn(rows.ravel(), begin.ravel(), (rows.size, frames, *x.shape[-2:]))
        return x + noise.reshape(*rows.shape, *noise.shape[1:]).swapaxes(-4, -3)

    def pieces(self, rows: Integers, begin: Integers, end: Integers) -> "Stored":
        """Pieces of trajectories, as `schema.pieces`; nothing is read."""
        noise, each = self.noise, 2 * self.shape[2]
        return replace(
            self,
            first=self.first[rows] + begin,
            length=np.minimum(end, self.length[rows]) - begin,
            time=int((end - begin).max(initial=0)),
            noise=noise and Noise(noise.seed, noise.width[rows], noise.place[rows] + begin * each),
            body=self.body[rows] if self.body is not None and self.body.ndim == 2 else self.body,
        )

    def __getitem__(self, key: Any) -> Any:
        """Index as an array: trajectories, a stretch of time, or bodies are chosen unread."""
        key = key if isinstance(key, tuple) else (key,)
        key = key[:-1] if key[-1] is Ellipsis else key  # as xarray asks
        rows, times, body, space = key + (slice(None),) * (4 - len(key))
        if isinstance(rows, int | np.integer):
            return np.asarray(self[np.array([rows])])[(0, *key[1:])]
        lists = [k for k in (rows, times, body, space) if not isinstance(k, slice)]
        begin, end, step = times.indices(self.time) if isinstance(times, slice) else (0, 0, 0)
        if step != 1 or len(lists) > 1 or any(np.ndim(k) != 1 or k is space for k in lists):
            return np.asarray(self)[key]
        picked, every = np.arange(len(self))[rows], np.arange(self.shape[2])
        of = self.pieces(picked, np.full(len(picked), begin), np.full(len(picked), max(begin, end)))
        if not np.array_equal(every[body], every):
            if self.noise:  # its places are those of all bodies
                return np.asarray(of)[:, :, body]
            of = replace(of, body=(every if of.body is None else of.body)[..., body])
        return of if space == slice(None) else np.asarray(of)[..., space]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> npt.NDArray:
        """Load all."""
        every = np.arange(len(self))[:, None]  # each of its own, so that its frames are together
        whole = self.read(every, np.zeros_like(every), self.time)
        return whole[:, :, 0].astype(dtype, copy=False)

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, **options: Any) -> Any:
        """Compute with what is loaded."""
        return getattr(ufunc, method)(*_loaded(inputs), **options)

    def __array_function__(self, function: Any, _: Any, inputs: Any, options: Any) -> Any:
        """Compute with what is loaded."""
        return function(*_loaded(inputs), **_loaded(options))

    def astype(self, dtype: Any, **options: Any) -> npt.NDArray:
        """Load all, as another type."""
        return np.asarray(self).astype(dtype, **options)

    def ravel(self, *order: Any) -> npt.NDArray:
        """Load all, in one row."""
        return np.asarray(self).ravel(*order)

    def transpose(self, *axes: Any) -> npt.NDArray:
        """Load all, its axes in another order."""
        return np.asarray(self).transpose(*axes)


def sharing(values: Floats | Stored) -> Stored:
    """Positions as `Stored` without noise, whose places are those of the bodies that it was of."""
    if isinstance(values, Stored) and values.noise is None:
        return values
    return Stored.of(np.asarray(values))


def joined(parts: list[Stored]) -> Stored:
    """Positions one after another, as `trajectories.join`; their frames become one array."""
    columns, time = max(p.frames.shape[1] for p in parts), max(p.time for p in parts)
    frames = np.full((sum(len(p.frames) for p in parts), columns, 2), np.nan)
    first, body, begin = [], [], 0
    for p in parts:
        frames[begin : begin + len(p.frames), : p.frames.shape[1]] = p.frames
        first.append(p.first + begin)
        body.append(p.bodies)
        begin += len(p.frames)
    length = np.concatenate([p.length for p in parts])
    return Stored(frames, np.concatenate(first), length, time, np.concatenate(body))


def _loaded(given: Any) -> Any:
    """Arguments of a function, arrays in place of what is stored."""
    if isinstance(given, tuple | list):
        return type(given)(_loaded(one) for one in given)
    if isinstance(given, dict):
        return {name: _loaded(one) for name, one in given.items()}
    return np.asarray(given) if isinstance(given, Stored) else given


def mapping(values: Any) -> mmap.mmap | None:
    """The file that an array is mapped from, if it is, for reading alone.

    What was written to a private copy would be lost when its pages are let go.
    """
    while isinstance(values, np.ndarray):
        values = values.base
    return values if isinstance(values, mmap.mmap) and memoryview(values).readonly else None


def positions(dataset: xr.Dataset) -> Floats | Stored:
    """The positions of a Dataset: an array, or where they are stored."""
    data = dataset["position"].data
    return data if isinstance(data, Stored) else dataset["position"].to_numpy()


def blocks(position: Floats | Stored) -> Iterator[tuple[slice, slice, Floats]]:
    """Look at all positions (trajectory, time, body, 2), of a small recording at once.

    Yields:
        Some trajectories, some frames, and their positions.
    """
    n, time = position.shape[:2]
    frame = position.frames if isinstance(position, Stored) else position[0]
    each = max(1, int(np.prod(frame.shape[1:])))
    several, frames = max(1, BLOCK // max(1, each * time)), max(1, BLOCK // each)
    for i in range(0, n, several):
        for t in range(0, time, frames):
            rows, times = slice(i, min(i + several, n)), slice(t, min(t + frames, time))
            yield rows, times, np.asarray(position[rows, times])


def extremes(position: Floats | Stored) -> tuple[Floats, Floats]:
    """The least and the greatest of each coordinate, each (trajectory, body, 2)."""
    low, high = np.full((2, len(position), *position.shape[2:]), np.nan)
    for rows, _, x in blocks(position):
        along = np.ascontiguousarray(np.moveaxis(_candidates(x), 1, -1))  # ten times as fast
        # fmin/fmax pass over NaN without the warnings of nanmin on an empty slice
        low[rows] = np.fmin(low[rows], np.fmin.reduce(along, axis=-1))
        high[rows] = np.fmax(high[rows], np.fmax.reduce(along, axis=-1))
    return low, high


def _candidates(x: Floats) -> Floats:
    """Of (trajectory, time, body, 2), fewer frames with the same extremes if there are many.

    A loop over the few coordinates of a frame costs more than it computes; so those of many frames
    are compared at once with those of as many others.
    """
    n, time = x.shape[:2]
    several = WIDE // max(1, int(np.prod(x.shape[2:])))
    if several < 2 or time < 16 * several:
        return x
    end = time // several * several
    stretches = x[:, :end].reshape(n, time // several, -1)
    found = [f.reduce(stretches, axis=1) for f in (np.fmin, np.fmax)]
    return np.concatenate([*(f.reshape(n, several, *x.shape[2:]) for f in found), x[:, end:]], 1)


def observed(position: Floats | Stored, parts: int | None = None) -> tuple[Bools, Bools]:
    """Whether every and whether any coordinate of a frame is recorded, each (trajectory, time).

    Args:
        position: (trajectory, time, body, 2).
        parts: Say so of each of so many parts, of as many bodies: (trajectory, time, parts).
    """
    shape = position.shape[:2] if parts is None else (*position.shape[:2], parts)
    complete, some = (np.ones(shape, bool) for _ in range(2))
    for rows, times, x in blocks(position):
        if (missing := np.isnan(x)).any():
            missing = missing.reshape(*x.shape[:2], *shape[2:], -1)
            complete[rows, times] = ~missing.any(-1)
            some[rows, times] = ~missing.all(-1)
    return complete, some


def runs(mask: Bools) -> tuple[Integers, Integers, Integers]:
    """(run,) trajectory, first frame, and the frame after the last, of each run of true entries."""
    padded = np.pad(mask, ((0, 0), (1, 1)))
    row, edge = np.nonzero(padded[:, 1:] ^ padded[:, :-1])  # begins and ends in turn
    return row[::2], edge[::2], edge[1::2]
