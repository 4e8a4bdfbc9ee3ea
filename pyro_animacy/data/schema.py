"""The schema of recorded motion: one `xarray.Dataset`, how it is made and how it is checked.

`position(trajectory, time, body, space)` holds coordinates in data units; NaN means not observed,
and also pads trajectories shorter than the longest. Coordinates along `trajectory`:

- `recording`: the independent recording it is cut from. Several triples of players, or several
  runs of frames, of one match share it.
- `start`, `length`: its first frame on its recording's own frame axis, and its number of frames.
- `resolution`: the smallest step that the recording can show, in data units; 0 if none is known.
- `label` (optional): what it shows.

`animate(body)` (optional) says which bodies move themselves. Where bodies are places that others
take in turn, `visit_person(visit)`, `visit_place`, `visit_recording`, `visit_begin` and `visit_end`
(optional) say who was where: the first and the last frame in seconds, on the recording's own frame
axis. Attributes: `fps`, `units`, `source`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr

from pyro_animacy.data.resolution import estimate_resolution
from pyro_animacy.data.stored import Stored, extremes, mapping, observed, positions
from pyro_animacy.errors import DataError, how_many

DIMS = ("trajectory", "time", "body", "space")
VISIT = "visit"  # the dimension of who took which place when
Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]
Names = Sequence[str] | npt.NDArray[np.object_]  # plain strings, or a coordinate of a Dataset


def make_trajectories(
    position: npt.ArrayLike,
    *,
    fps: float | None,
    body: Sequence[str] | None = None,
    units: str = "unknown",
    trajectory: Sequence[str] | None = None,
    recording: Sequence[str] | None = None,
    start: npt.ArrayLike | None = None,
    length: npt.ArrayLike | None = None,
    label: Sequence[str] | None = None,
    resolution: npt.ArrayLike | None = None,
    animate: Sequence[bool] | None = None,
    source: str = "",
) -> xr.Dataset:
    """Label an array of positions with the schema of this module, and check it.

    Args:
        position: (trajectory, time, body, 2), (time, body, 2) or (time, 2 x body) coordinates;
            NaN where not observed and after a trajectory's last frame.
        fps: frames per second.
        body: names of the bodies; "0", "1", ... by default.
        units: of the coordinates.
        trajectory: unique names; "0", "1", ... by default.
        recording: independent recording of each trajectory; its own by default.
        start: first frame of each on its recording's frame axis; 0 by default.
        length: number of frames of each; up to its last observed frame by default.
        label: one for each trajectory.
        resolution: smallest step in data units, one or one for each trajectory; by default
            estimated, see `estimate_resolution`.
        animate: for each body, whether it moves itself.
        source: where the data come from, for reports and messages.

    Returns:
        The Dataset. An array that is already float64 is not copied, and one that lies in a file
        mapped for reading stays there (`stored.Stored`).

    Raises:
        DataError: where the positions are not usable, see `check_trajectories`.
    """
    where = source or "positions"
    values = _four_dimensional(position, where)
    names = [str(i) for i in range(len(values))] if trajectory is None else list(trajectory)
    recordings = names if recording is None else list(recording)
    bodies = [str(i) for i in range(values.shape[2])] if body is None else list(body)
    entries = {"trajectory": names, "recording": recordings, "label": label}
    _check_counts(entries, len(values), where)
    _check_counts({"body": bodies, "animate": animate}, values.shape[2], where)
    _check_numbers({"start": start, "length": length, "resolution": resolution}, len(values), where)
    if length is None:
        length = last_observed(values)
    else:
        values = _until(values, np.broadcast_to(np.asarray(length), len(values)))
    if resolution is None:
        resolution = estimate_resolution(values, recordings)
    ds = assemble(
        values,
        fps=_usable_fps(fps, where),
        body=bodies,
        trajectory=names,
        recording=recordings,
        start=0 if start is None else start,
        length=length,
        resolution=resolution,
        attrs={"units": units, "source": source},
    )
    if label is not None:
        ds = ds.assign_coords(label=("trajectory", np.array([str(x) for x in label], object)))
    if animate is not None:
        ds = ds.assign_coords(animate=("body", np.asarray(animate, bool)))
    return check_trajectories(ds)


def _check_counts(entries: Mapping[str, Any], wanted: int, where: str) -> None:
    """Raise DataError where a list has not as many entries as the positions have."""
    for what, given in entries.items():
        if given is not None and np.size(given) != wanted:
            raise DataError(
                f"{where}: `{what}` has {np.size(given)} entries, and `position` needs {wanted}; "
                "give one for each"
            )


def _check_numbers(entries: Mapping[str, Any], count: int, where: str) -> None:
    """Raise DataError where an entry is not one number, or one for each trajectory, >= 0."""
    for what, given in entries.items():
        found = np.asarray(0 if given is None else given)
        if found.dtype.kind not in "iuf" or found.shape not in ((), (count,)):
            raise DataError(
                f"{where}: `{what}` must be one number, or one for each of the {count} trajectories"
            )
        if not (np.isfinite(found) & (found >= 0)).all():
            raise DataError(f"{where}: `{what}` must be 0 or more, got {found.min()}")


def check_trajectories(ds: xr.Dataset) -> xr.Dataset:
    """Check that a Dataset follows the schema and that there is motion in it.

    Args:
        ds: the Dataset.

    Returns:
        The same Dataset.

    Raises:
        DataError: for missing dimensions or fps, infinite values, a body that is never observed,
            no body that moves, a trajectory of fewer than 2 frames, names that are not unique.
    """
    where = check_form(ds)
    if ds.sizes["trajectory"] == 0 or ds.sizes["body"] == 0:
        what = "bodies" if ds.sizes["trajectory"] else "trajectories"
        raise DataError(f"{where}: there are no {what} in it, so there is no motion to learn from")
    _check_values(ds, where)
    return ds


def check_form(ds: xr.Dataset) -> str:
    """Check that a Dataset follows the schema, without a look at its values.

    Args:
        ds: the Dataset.

    Returns:
        What to call it.

    Raises:
        DataError: for missing dimensions, coordinates or fps, names that are not unique.
    """
    where = str(ds.attrs.get("source") or "trajectories")
    if "position" not in ds or tuple(ds["position"].dims) != DIMS:
        there = "there is no variable `position`"
        if "position" in ds:
            there = f"`position` has the dimensions {', '.join(map(str, ds['position'].dims))}"
        raise DataError(f"{where}: {there}; it must have {', '.join(DIMS)}, in this order")
    if ds.sizes["space"] != 2:
        raise DataError(
            f"{where}: `space` has {how_many(ds.sizes['space'], 'coordinate')}; motion is in a "
            "plane, so it must have two, x and y"
        )
    _usable_fps(ds.attrs.get("fps"), where)
    missing = {"recording", "start", "length", "resolution"} - set(map(str, ds.coords))
    if missing:
        raise DataError(
            f"{where}: no coordinate {', '.join(sorted(missing))}; build it with make_trajectories"
        )
    for dim in ("trajectory", "body"):
        no_duplicates(ds[dim].values, dim, where)
    return where


def _check_values(ds: xr.Dataset, where: str) -> None:
    """Raise DataError unless the values are finite or NaN, long enough, and something moves."""
    values, names = positions(ds), ds["trajectory"].values
    low, high = extremes(values)
    infinite = (np.isinf(low) | np.isinf(high)).any((1, 2))
    if infinite.any():
        i = int(infinite.argmax())
        t, b, _ = np.argwhere(np.isinf(values[i : i + 1]))[0, 1:]
        raise DataError(
            f"{where}: infinite value in trajectory {names[i]!r}, frame {t}, "
            f"body {ds['body'].values[b]!r}; leave the cell empty where a body was not observed"
        )
    beyond = (ds["length"].values > values.shape[1]) | (ds["start"].values < 0)
    if beyond.any():
        raise DataError(
            f"{where}: trajectory {names[beyond][0]!r}: `length` is more than the "
            f"{values.shape[1]} frames of the array, or `start` is below 0; count both in frames "
            "(of the first N frames, ds.isel(time=slice(N)).assign_coords(length="
            "ds.length.clip(max=N)))"
        )
    short = ds["length"].values < 2
    if short.any():
        raise DataError(
            f"{where}: trajectory {names[short][0]!r} has fewer than 2 frames; motion needs two"
        )
    unseen = np.isnan(low).any(-1).all(0)
    if unseen.any():
        raise DataError(
            f"{where}: body {ds['body'].values[unseen][0]!r} is never observed (all its positions "
            "are missing); leave it out with --bodies"
        )
    if not (high > low).any():
        raise DataError(f"{where}: no body moves; there is no motion to learn from")


def shortened(names: Names) -> str:
    """The names for a message: the first dozen, and how many more."""
    text = ", ".join(" ".join(str(n).split()) for n in names[:12])  # a message is one line
    return text + (f" and {len(names) - 12} more" if len(names) > 12 else "")


def _four_dimensional(position: npt.ArrayLike, where: str) -> Floats | Stored:
    """`position` as float64 (trajectory, time, body, 2); what is mapped stays in its file."""
    try:
        values: npt.NDArray[Any] = np.asarray(position)
    except ValueError:
        raise DataError(
            f"{where}: positions are lists of unequal length; pad shorter ones with NaN"
        ) from None
    kept = values.dtype in (np.float32, np.float64) and values.flags.c_contiguous
    kept = kept and mapping(values) is not None
    try:
        values = values if kept else values.astype(np.float64, casting="same_kind", copy=False)
    except (TypeError, ValueError):
        raise DataError(f"{where}: positions are not real numbers but {values.dtype}") from None
    if values.ndim == 2 and values.shape[1] % 2 == 0 and values.size:
        values = values.reshape(len(values), -1, 2)
    if values.ndim == 3:
        values = values[None]
    if values.ndim != 4 or values.shape[-1] != 2 or not values.size:
        raise DataError(
            f"{where}: the array of positions has the shape {np.shape(position)}; it must be "
            "(time, 2 x bodies), (time, bodies, 2) or (trajectory, time, bodies, 2)"
        )
    return Stored.of(values) if kept else values


def _until(position: Floats | Stored, length: Integers) -> Floats | Stored:
    """The positions, with NaN in place of whatever pads a trajectory beyond its length."""
    if isinstance(position, Stored):
        return replace(position, length=np.minimum(position.length, length))
    beyond = np.arange(position.shape[1]) >= length[:, None]
    if np.isnan(position[beyond]).all():
        return position
    return np.where(beyond[..., None, None], np.nan, position)


def _usable_fps(fps: float | None, where: str) -> float:
    """The frame rate, or an error that names the option."""
    if fps is None:
        raise DataError(f"{where}: frames per second are not known; give them with --fps")
    try:
        rate = float(fps)
    except (TypeError, ValueError):
        rate = np.nan
    if not (np.isfinite(rate) and rate > 0):
        raise DataError(f"{where}: {fps} frames per second; expected a positive number (--fps)")
    return rate


def no_duplicates(names: npt.NDArray, dim: str, where: str) -> None:
    """Raise DataError where a name is used twice."""
    unique, count = np.unique(names.astype(str), return_counts=True)
    if (count > 1).any():
        name = str(unique[count > 1][0])
        raise DataError(f"{where}: two {dim} entries are named {name!r}; rename one")


def last_observed(position: Floats | Stored) -> Integers:
    """(trajectory,) number of frames up to the last in which any body is observed."""
    seen = observed(position)[1]
    return np.where(seen.any(1), position.shape[1] - seen[:, ::-1].argmax(1), 0)


def assemble(
    position: Floats | Stored,
    *,
    fps: float,
    body: Names,
    trajectory: Names,
    recording: Names,
    start: npt.ArrayLike,
    length: npt.ArrayLike,
    resolution: npt.ArrayLike,
    attrs: dict[str, str],
) -> xr.Dataset:
    """The Dataset of these parts, unchecked; arguments as for `make_trajectories`."""
    count, frames = position.shape[:2]

    def along(values: npt.ArrayLike, kind: type) -> tuple[str, npt.NDArray]:
        return "trajectory", np.broadcast_to(np.asarray(values, kind), (count,)).copy()

    return xr.Dataset(
        {"position": (DIMS, position)},
        coords={
            "trajectory": np.array([str(name) for name in trajectory], object),
            "time": np.arange(frames) / fps,
            "body": np.array([str(name) for name in body], object),
            "space": np.array(["x", "y"], object),
            "recording": along([str(name) for name in recording], object),
            "start": along(start, np.int64),
            "length": along(length, np.int64),
            "resolution": along(resolution, np.float64),
        },
        attrs={"fps": float(fps), **attrs},
    )


def agents(ds: xr.Dataset) -> npt.NDArray[np.bool_]:
    """Which bodies move themselves: `animate` where it is known, else all but one named "ball"."""
    if "animate" in ds.coords:
        return ds["animate"].values.astype(bool)
    return np.array([str(body).lower() != "ball" for body in ds["body"].values])


def like(
    ds: xr.Dataset,
    rows: Integers,
    position: Floats | Stored,
    trajectory: Names,
    body: Names | None = None,
) -> xr.Dataset:
    """New positions for the trajectories `rows` of `ds`, with what is known about these.

    Args:
        ds: trajectories in the schema.
        rows: (new trajectories,) which of `ds` each comes from.
        position: (new trajectories, time, body, 2).
        trajectory: new names.
        body: new bodies; those of `ds` by default, and only then is `animate` kept.

    Returns:
        A Dataset of the schema.
    """
    out = assemble(
        position,
        fps=ds.attrs["fps"],
        body=ds["body"].values if body is None else body,
        trajectory=trajectory,
        recording=ds["recording"].values[rows],
        start=ds["start"].values[rows],
        length=ds["length"].values[rows],
        resolution=ds["resolution"].values[rows],
        attrs={name: ds.attrs.get(name, "") for name in ("units", "source")},
    )
    if "label" in ds.coords:
        out = out.assign_coords(label=("trajectory", ds["label"].values[rows]))
    if "animate" in ds.coords and body is None:
        out = out.assign_coords(animate=("body", ds["animate"].values))
    return out.assign_coords(visits(ds))


def visits(ds: xr.Dataset) -> dict[str, tuple[str, npt.NDArray]]:
    """The coordinates that say who took which place when; none where there are no places."""
    return {str(n): (VISIT, c.values) for n, c in ds.coords.items() if c.dims == (VISIT,)}


def person_of(ds: xr.Dataset) -> npt.NDArray[np.object_]:
    """Who is in each place at each frame, (trajectory, time, body); "" where that is nobody.

    Args:
        ds: recordings of places (`--bodies present`), or what was computed of them.
    """
    found = np.full([ds.sizes[d] for d in DIMS[:3]], "", object)
    recording, bodies = ds["recording"].values.astype(str), [*map(str, ds["body"].values)]
    moment = (ds["start"].values[:, None] + np.arange(ds.sizes["time"])) / float(ds.attrs["fps"])
    half, taken = 0.5 / float(ds.attrs["fps"]), visits(ds)
    columns = "person", "place", "recording", "begin", "end"
    each = zip(*(taken[f"visit_{name}"][1] for name in columns), strict=True)
    for person, place, of, begin, end in each:
        for row in np.flatnonzero(recording == str(of)):
            there = (moment[row] > begin - half) & (moment[row] < end + half)
            found[row, there, bodies.index(str(place))] = person
    return found


def pieces(ds: xr.Dataset, rows: Integers, begin: Integers, end: Integers) -> xr.Dataset:
    """Cut pieces out of trajectories.

    Args:
        ds: trajectories in the schema.
        rows: (piece,) which trajectory each is cut from.
        begin: (piece,) its first frame, counted on the trajectory.
        end: (piece,) the frame after its last.

    Returns:
        A Dataset of the pieces, padded to the longest; `start` and `length` follow. Where a
        trajectory gives several pieces they are named `name@frame`, with their `start`.
    """
    values, whole = positions(ds), ds["trajectory"].values[rows]
    if isinstance(values, Stored):
        position: Floats | Stored = values.pieces(rows, begin, end)
    else:
        position = np.full((len(rows), int((end - begin).max()), *values.shape[2:]), np.nan)
        for out, i, b, e in zip(position, rows, begin, end, strict=True):
            out[: e - b] = values[i, b:e]
    start = ds["start"].values[rows] + begin
    several = np.bincount(rows)[rows] > 1
    names = [f"{n}@{s}" if many else n for n, s, many in zip(whole, start, several, strict=True)]
    return like(ds, rows, position, names).assign_coords(
        start=("trajectory", start), length=("trajectory", end - begin)
    )
