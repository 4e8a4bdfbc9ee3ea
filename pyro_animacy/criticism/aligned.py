"""A recording and draws of it: on the same frames, as the recording would have shown them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import numpy as np
import xarray as xr

from pyro_animacy.errors import DataError, RunError

DIMS = ("trajectory", "time", "body", "space")


def align(observed: xr.Dataset, draws: xr.DataTree) -> tuple[xr.Dataset, xr.DataArray]:
    """The recording and the draws of it on the same trajectories, frames and bodies.

    Args:
        observed: recording in the schema, `position` (trajectory, time, body, space).
        draws: tree with `posterior_predictive/position` (chain, draw, trajectory, time, body,
            space), of some or all of these trajectories and of consecutive frames.

    Returns:
        The recording cut to what was generated, and the generated positions, still on disk if the
        draws were opened from there.

    Raises:
        DataError: the recording has no positions or no frame rate, or is none.
        RunError: the draws hold no positions, or positions of something not in the recording, or
            the same one twice.
    """
    if not isinstance(observed, xr.Dataset):
        raise DataError(f"the recording is a {type(observed).__name__}; expected an xarray Dataset")
    if "position" not in observed or "fps" not in observed.attrs:
        raise DataError(
            "the recording has no variable `position` or no attribute `fps`: "
            "make it with read_trajectories or make_trajectories"
        )
    if not isinstance(draws, xr.DataTree):
        raise RunError(
            f"draws are a {type(draws).__name__}; expected an xarray DataTree that holds "
            "posterior_predictive/position: make it with --mode generate"
        )
    if "posterior_predictive" not in draws or "position" not in draws["posterior_predictive"]:
        raise RunError(
            "draws hold no posterior_predictive/position: make them with --mode generate"
        )
    generated = draws["posterior_predictive"]["position"]
    if set(generated.dims) != {"chain", "draw", *DIMS}:
        raise RunError(
            f"draws of position have the dimensions {', '.join(map(str, generated.dims))}; "
            f"expected chain, draw, {', '.join(DIMS)}: make them with --mode generate"
        )
    generated = generated.transpose("chain", "draw", *DIMS)
    for name in ("chain", "draw", "trajectory", "time", "body"):
        if not generated.sizes[name]:
            raise RunError(f"draws hold no {name} at all: make them with --mode generate")
    for name in ("trajectory", "body", "space"):
        recorded, made = set(observed[name].values.tolist()), generated[name].values.tolist()
        absent = [value for value in made if value not in recorded]
        if absent:
            raise RunError(
                f"draws of {name} {absent[0]!r}, which is not in the recording: "
                "criticise them against the recording they were made from"
            )
        value, times = Counter(made).most_common(1)[0]
        if times > 1:
            raise RunError(
                f"draws hold {name} {value!r} {times} times, but it is one: keep one of them"
            )
    cut = observed.sel({name: generated[name].values for name in ("trajectory", "body", "space")})
    return cut.isel(time=_frames(observed, generated)), generated


def _frames(observed: xr.Dataset, generated: xr.DataArray) -> np.ndarray:
    """Numbers of the recorded frames that were generated, from their times."""
    fps, time, recorded = float(observed.attrs["fps"]), generated["time"].values, observed["time"]
    if not np.issubdtype(time.dtype, np.number) or not np.isfinite(time).all():
        raise RunError(
            f"times of the draws begin with {', '.join(map(str, time[:3]))}; expected seconds: "
            "make them with --mode generate"
        )
    passed = (time - float(recorded[0])) * fps  # frames since the recording's first
    frame = np.rint(passed).astype(int)
    if frame.min() < 0 or frame.max() >= recorded.size:
        raise RunError(
            f"times of the draws, {time.min():g} to {time.max():g} s, are not within those of the "
            f"recording, {float(recorded[0]):g} to {float(recorded[-1]):g} s: criticise them "
            "against the recording they were made from"
        )
    if (np.diff(frame) != 1).any() or np.abs(passed - frame).max() > 0.25:
        raise RunError(
            f"times of the draws begin with {', '.join(f'{t:g}' for t in time[:3])} s, which are "
            f"not consecutive frames of a recording at {fps:g} Hz: criticise them against the "
            "recording they were made from"
        )
    return frame


def each_draw(observed: xr.Dataset, generated: xr.DataArray) -> Iterator[np.ndarray]:
    """One draw after the other as the recording would have shown it, so only one is in memory.

    What the recording did not observe is NaN in the draw too, so that both are summarised over the
    same frames. Draws are rounded to the recording's `resolution`: no motion below it could have
    been recorded, and without the rounding a body that stands still would never do so in a draw.
    The grid goes through the first recorded place of each body, not through 0: places at k + 1/2,
    as the middles of pixels are, would be rounded to even k (10.5, 11.5, 12.5 to 10, 12, 12).

    Args:
        observed: recording from `align`.
        generated: (chain, draw, trajectory, time, body, space) from `align`.

    Yields:
        (trajectory, time, body, space).
    """
    recorded = observed["position"].transpose(*DIMS).values
    unseen = ~np.isfinite(recorded)
    first = np.take_along_axis(recorded, (~unseen).argmax(1)[:, None], 1)
    step = np.zeros(unseen.shape[0])
    if "resolution" in observed.coords:
        step = np.nan_to_num(observed["resolution"].values.astype(float))
    coarse = step > 0
    grid, origin = step[coarse, None, None, None], first[coarse]
    for position in _read(generated):
        if coarse.all():
            position = _on_grid(position, origin, grid)
        elif coarse.any():
            position[coarse] = _on_grid(position[coarse], origin, grid)
        position[unseen | ~np.isfinite(position)] = np.nan
        yield position


def _on_grid(position: np.ndarray, origin: np.ndarray, grid: np.ndarray) -> np.ndarray:
    """The nearest points of a grid through ``origin``."""
    return origin + np.rint((position - origin) / grid) * grid


def _read(generated: xr.DataArray) -> Iterator[np.ndarray]:
    """A copy of each draw, in double precision."""
    for chain, draw in np.ndindex(generated.sizes["chain"], generated.sizes["draw"]):
        yield generated.isel(chain=chain, draw=draw).values.astype(float)


def share_lost(observed: xr.Dataset, generated: xr.DataArray) -> float:
    """Share of the generated positions that are not finite, of those whose recording was seen.

    Args:
        observed: recording from `align`.
        generated: (chain, draw, trajectory, time, body, space) from `align`.
    """
    seen = np.isfinite(observed["position"].transpose(*DIMS).values)
    kept = [int((np.isfinite(position) & seen).sum()) for position in _read(generated)]
    return 1 - sum(kept) / (int(seen.sum()) * len(kept)) if seen.any() and kept else 0.0


def motion_shown(
    dataset: xr.Dataset, trajectory: np.ndarray, begin: np.ndarray | int, shown: np.ndarray
) -> np.ndarray:
    """Which motion each row shows: the same places at the same moment of a recording are one.

    The places alone do not tell, as bodies at rest are in the same at other times too.

    Args:
        dataset: recordings; a trajectory that does not say of which it is, is one of its own.
        trajectory: (row,) number of the trajectory that each row is of.
        begin: frame of it with which the row begins, (row,) or one for all.
        shown: (row, ...) positions.

    Returns:
        (row,) numbers from 0; -1 where nothing was observed.
    """
    recording = recording_of(dataset)
    none = np.zeros(len(recording))
    start = dataset["start"].to_numpy() if "start" in dataset.coords else none
    places = shown.reshape(len(shown), -1)
    key = np.column_stack([recording[trajectory], start[trajectory] + begin, places])
    seen, motion = np.isfinite(places).any(1), np.full(len(shown), -1)
    as_bytes = key[seen].view(f"V{key[0].nbytes}")[:, 0]  # in which NaN equals NaN
    motion[seen] = np.unique(as_bytes, return_inverse=True)[1]
    return motion


def recording_of(dataset: xr.Dataset) -> np.ndarray:
    """Number of the recording of each trajectory; one that does not say which is one of its own."""
    of = dataset["recording" if "recording" in dataset.coords else "trajectory"].to_numpy()
    return np.unique(of, return_inverse=True)[1]


def data_units(observed: xr.Dataset) -> str:
    """The recording's units, in words where they are not known."""
    units = str(observed.attrs.get("units", "unknown"))
    return "data units" if units in ("", "unknown") else units
