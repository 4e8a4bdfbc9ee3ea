"""Recordings that are arrays already: npz and npy files, xarray, kloppy, the bundled sample."""

import sys
from collections import Counter
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import xarray as xr

from pyro_animacy.data.columns import find_columns
from pyro_animacy.data.dense import table_dataset
from pyro_animacy.data.frames import EVEN, agreed_fps, tidy, timed_fps, usual_step
from pyro_animacy.data.schema import DIMS, make_trajectories
from pyro_animacy.data.stored import HELD
from pyro_animacy.data.tables import make_table
from pyro_animacy.errors import DataError, MissingExtra

OPTIONAL = ("trajectory", "recording", "start", "length", "label", "resolution", "body", "animate")
ALSO = {  # what people call the dimensions
    **dict.fromkeys(("trial", "clip"), "trajectory"),
    "frame": "time",
    **dict.fromkeys(("individual", "individuals", "animal", "agent", "player", "track"), "body"),
    "keypoints": "keypoint",
    **dict.fromkeys(("axis", "coord", "xy"), "space"),
}


def metrica_sample() -> xr.Dataset:
    """The bundled real recording: 84 s of a football match, 22 players and the ball, at 25 Hz.

    From Metrica Sports' open sample data (MIT, see `metrica.LICENSE`), in metres on a pitch of
    105 x 68 with (0, 0) at the top left; NaN where the ball was not seen. It was made from their
    files by

        ds = read_trajectories("tracking.txt", split_gaps=False)
        np.savez_compressed("metrica.npz", position=ds.position.values[0].astype(np.float32),
                            body=ds.body.values.astype(str), fps=25.0, units="m",
                            resolution=ds.resolution.values[0], animate=ds.animate.values)

    Returns:
        One trajectory of 2,100 frames and 23 bodies.
    """
    with resources.as_file(resources.files("pyro_animacy.data") / "metrica.npz") as path:
        return read_npz(path, None, None)


def read_npz(path: Path, fps: float | None, columns: Mapping[str, str] | None) -> xr.Dataset:
    """Read an npz with `position` and optionally the other parts of the schema, or a bare npy.

    Args:
        path: the file. Nothing in it is ever unpickled.
        fps: frames per second, if the file does not say.
        columns: role to column, where it holds those of a table by unusual names.

    Returns:
        Trajectories in the schema.

    Raises:
        DataError: where the file is damaged, pickled, or has no positions.
    """
    where = path.name
    try:
        large = path.suffix.lower() == ".npy" and path.stat().st_size > HELD
        with path.open("rb") as file:  # numpy leaves a damaged file open
            loaded = np.load(
                path if large else file, mmap_mode="r" if large else None, allow_pickle=False
            )
            if isinstance(loaded, np.ndarray):
                parts = {"position": loaded}
            else:
                parts = {name: loaded[name] for name in loaded.files}
    except Exception as error:  # damaged archives raise errors of many kinds
        mend = "; save the array of positions alone" if "pickle" in str(error) else ""
        raise DataError(f"{where}: cannot be read as a numpy file: {_line(error)}{mend}") from None
    if "position" not in parts and len(parts) == 1:
        parts = {"position": next(iter(parts.values()))}
    if "position" not in parts:
        return _of_columns(parts, fps, columns, where)
    return _from_parts(parts, fps, where)


def _of_columns(
    parts: dict[str, npt.NDArray], fps: float | None, given: Mapping[str, str] | None, where: str
) -> xr.Dataset:
    """An npz of columns of a table, as TRex writes one for each animal."""
    sizes = Counter(len(values) for values in parts.values() if values.ndim == 1)
    size, several = max(sizes.items(), key=lambda item: item[1], default=(0, 0))
    if several < 2:
        there = ", ".join(parts) or "none"
        raise DataError(
            f"{where}: no array `position`; there are {there}. Save the positions by this name"
        )
    columns = {name: v for name, v in parts.items() if v.shape == (size,)}
    found = find_columns(list(columns), given, where)
    return table_dataset(make_table(pd.DataFrame(columns), found, where, 0), None, fps)


def _from_parts(parts: dict[str, npt.NDArray], fps: float | None, where: str) -> xr.Dataset:
    """Build the Dataset of arrays named as in the schema."""
    found = _rate(parts.get("fps"), where)
    try:
        units = str(parts.get("units", "unknown"))
        chosen: dict[str, Any] = {n: parts[n].tolist() for n in OPTIONAL if n in parts}
    except (TypeError, ValueError) as error:
        raise DataError(f"{where}: a part beside `position` cannot be used: {error}") from None
    for name in ("trajectory", "recording", "label", "body"):
        if name in chosen:
            chosen[name] = [str(n) for n in np.ravel(chosen[name])]
    if "animate" in chosen and parts["animate"].dtype.kind not in "biu":
        raise DataError(f"{where}: `animate` is {parts['animate'].dtype}; expected true or false")
    return from_array(
        parts["position"], fps=agreed_fps(fps, found, where), units=units, source=where, **chosen
    )


def _rate(fps: Any, where: str) -> float | None:
    """Frames per second as a file has them, None where it does not say."""
    try:
        found = None if fps is None else float(fps)
    except (TypeError, ValueError):
        raise DataError(f"{where}: fps is {fps!r}; expected a number") from None
    if found is not None and not 0 < found < np.inf:
        raise DataError(f"{where}: fps is {found}; expected a positive number")
    return found


def from_array(position: npt.ArrayLike, *, source: str = "array", **parts: Any) -> xr.Dataset:
    """An array as trajectories; a lone trajectory is named after its source.

    Args:
        position: (time, 2 x bodies), (time, bodies, 2) or (trajectory, time, bodies, 2).
        source: file or object.
        **parts: as for `make_trajectories`.

    Returns:
        Trajectories in the schema.

    Raises:
        DataError: where the array does not fit.
    """
    if len(np.shape(position)) == 3 and np.shape(position)[0] < np.shape(position)[1]:
        frames, bodies = np.shape(position)[:2]
        print(f"{source}: read as {frames} frames of {bodies} bodies", file=sys.stderr)
    if len(np.shape(position)) < 4 and "trajectory" not in parts:
        parts["trajectory"] = [source.split(".")[0]]
    return make_trajectories(position, source=source, **parts)


def read_xarray_file(path: Path, fps: float | None) -> xr.Dataset:
    """Read a netCDF file or a zarr store in this package's or `movement`'s layout.

    Args:
        path: the file or store.
        fps: frames per second, if it does not say.

    Returns:
        Trajectories in the schema.

    Raises:
        DataError: where it cannot be read or has another layout.
    """
    try:
        if path.suffix == ".zarr":
            with xr.open_zarr(path) as opened:
                ds = opened.load()
        else:
            with xr.open_dataset(path, engine="h5netcdf") as opened:
                ds = opened.load()
    except ImportError:
        raise MissingExtra(f"reading {path.name}", "zarr") from None
    except Exception as error:  # damaged files raise errors of many kinds
        kind = "a zarr store" if path.suffix == ".zarr" else "netCDF"
        raise DataError(f"{path.name}: cannot be read as {kind}: {_line(error)}") from None
    return from_xarray(ds, fps, path.name)


def from_xarray(ds: xr.Dataset, fps: float | None, file: str | None = None) -> xr.Dataset:
    """A Dataset in this package's or `movement`'s layout as checked trajectories.

    `movement` has dims time, space, individual(s), keypoint(s); every keypoint becomes a body,
    named `individual_keypoint` where there are several of both. Variables x and y are a position.

    Args:
        ds: the Dataset.
        fps: frames per second, if neither its times nor its attributes say.
        file: it was read from; named in messages.

    Returns:
        Trajectories in the schema. Frames that its times leave out are NaN.

    Raises:
        DataError: where the layout is another, or its times contradict its attributes or `fps`.
    """
    where = file or str(ds.attrs.get("source") or "Dataset")
    if "position" not in ds and {"x", "y"} <= {*ds.data_vars}:
        ds = ds.assign(position=xr.concat([ds["x"], ds["y"]], pd.Index(["x", "y"], name="space")))
    if "position" not in ds:
        there = ", ".join(map(str, ds.data_vars)) or "none"
        raise DataError(f"{where}: no variable `position`, nor x and y; there are {there}")
    ds = _x_before_y(_by_our_names(ds))
    position = ds["position"]
    who = [d for d in ("body", "keypoint") if d in position.dims]
    dims = {"time", *who, "space"}
    if not who or {*position.dims} - {"trajectory"} != dims or position.sizes["space"] != 2:
        sizes = ", ".join(f"{d} ({n})" for d, n in position.sizes.items())
        raise DataError(
            f"{where}: the dimensions of `position` are {sizes}; expected {', '.join(DIMS)} (2), "
            "or time, space (2), individuals, keypoints; give them these names, and select two axes"
        )
    several = "trajectory" in position.dims
    own = _rate(ds.attrs.get("fps"), where)
    frame, found, clock = _frames(ds, own, where)
    parts = {name: ds[name].values for name in OPTIONAL if several and name in ds.coords}
    size = int(frame.max(initial=-1)) + 1
    if {"start", "length"} & {*parts} and (size > len(frame) or own not in (None, found)):
        raise DataError(
            f"{where}: its times contradict `start`, `length` and the attribute fps, which count "
            "all frames; take every Nth frame by --downsample, and cut pieces out with their "
            "`start` and `length`"
        )
    labels = [[str(n) for n in position[d].values] for d in who]
    more = [names for names in labels if len(names) > 1] or labels[:1]
    body = more[0] if len(more) == 1 else [f"{i}_{k}" for i in labels[0] for k in labels[1]]
    values = position.transpose(*DIMS[:several], "time", *who, "space").values
    values = values.reshape(*values.shape[: 1 + several], len(body), 2)
    if size > len(frame):
        placed = np.full((*values.shape[:-3], size, len(body), 2), np.nan)
        placed[..., frame, :, :] = values
        values = placed
    parts |= {"position": values, "body": np.array(body)}
    if "units" in ds.attrs:
        parts["units"] = ds.attrs["units"]
    return _from_parts(parts, timed_fps(fps, found, clock, where), where)


def _by_our_names(ds: xr.Dataset) -> xr.Dataset:
    """The same with its dimensions as they are called here; a coordinate of that name stays."""
    for name in map(str, ds["position"].dims):
        ours = ALSO.get(name)
        if ours is None:
            continue
        if ours in ds.variables and ds[ours].dims == (name,):  # the times of frames
            ds = ds.swap_dims({name: ours})
        else:
            ds = ds.drop_vars(ours, errors="ignore").rename({name: ours})
    return ds


def _x_before_y(ds: Any) -> Any:
    """The same with its axes in this order, if that is what they are called."""
    named = "space" in ds.coords and sorted(map(str, ds["space"].values)) == ["x", "y"]
    return ds.sel(space=["x", "y"]) if named else ds


def _seconds(ds: xr.Dataset, where: str) -> npt.NDArray[np.float64] | None:
    """The times of the frames from the first on, None where there are none, or no two."""
    if "time" not in ds.coords or ds.sizes["time"] < 2:
        return None
    time = ds["time"].values
    if time.dtype.kind not in "iufmM":
        raise DataError(f"{where}: time is {time.dtype}; expected seconds, dates or frame numbers")
    time = time - time[0]
    if time.dtype.kind == "m":
        time = time / np.timedelta64(1, "s")
    return time.astype(np.float64)


def _frames(
    ds: xr.Dataset, fps: float | None, where: str
) -> tuple[npt.NDArray[np.int64], float | None, str | None]:
    """Which frame each entry of time is, frame rate, and clock as for `timed_fps`.

    The usual step is one frame, and frames left out are gaps. Times are frame numbers where
    `time_unit` says so, or where nothing does, steps are whole numbers and not `fps` a second; else
    they are seconds.
    """
    time = _seconds(ds, where)
    if time is None:
        return np.arange(ds.sizes["time"]), fps, None
    step = np.diff(time)
    usual = usual_step(step)
    frames = step / usual
    fits = (np.rint(frames) >= 1) & (np.abs(frames - np.rint(frames)) <= EVEN)
    if not fits.all():
        i = int(fits.argmin())
        most = f", and steps are {usual:g} most often" if usual < np.inf else ""
        raise DataError(
            f"{where}: entry {i + 1} of time is {step[i]:g} after the one before{most}; resample "
            "to even steps, or if every entry is the next frame, leave time out"
        )
    dated = ds["time"].dtype.kind in "mM"
    unit = "seconds" if dated else ds.attrs.get("time_unit")
    clock = None
    if unit != "frames" and fps is not None and abs(usual * fps - 1) <= 0.01:
        rate: float | None = fps  # which has more digits
    elif unit == "frames" or (unit is None and usual.is_integer()):
        rate = None if fps is None else fps / usual
    else:
        rate, clock = tidy(1 / usual, where), None if unit else "time"
    return np.append(0, np.rint(frames).cumsum()).astype(np.int64), rate, clock


def from_kloppy(dataset: Any, fps: float | None, pause: int = 1) -> xr.Dataset:
    """A kloppy TrackingDataset: players named by team and order of shirts, as in EPTS files.

    Frames are placed by their `frame_id`, so that a dataset loaded with a `sample_rate` has a
    lower frame rate, and frames left out are gaps. So is the change of periods.

    Args:
        dataset: the TrackingDataset; normalised coordinates become metres.
        fps: must agree with its own, if given.
        pause: how many frames without a body are put between periods.

    Returns:
        Trajectories in the schema.

    Raises:
        DataError: where it has no positions, or frames do not go in even steps.
    """
    frames, metadata = dataset.records, dataset.metadata
    seen = {p for frame in frames for p, data in frame.players_data.items() if data.coordinates}
    bodies, players = [], []
    for side, team in zip(("home", "away"), metadata.teams, strict=False):
        own = sorted((p for p in team.players if p in seen), key=lambda p: p.jersey_no)
        bodies += [f"{side}_{n}" for n in range(1, len(own) + 1)]
        players += own
    place = {player: i for i, player in enumerate(players)}
    index, stride = _kloppy_frames(frames, pause)
    position = np.full((max(index, default=-1) + 1, len(players) + 1, 2), np.nan)
    for i, frame in zip(index, frames, strict=True):
        row = position[i]
        for player, data in frame.players_data.items():
            if data.coordinates is not None:
                row[place[player]] = data.coordinates.x, data.coordinates.y
        if frame.ball_coordinates is not None:
            row[-1] = frame.ball_coordinates.x, frame.ball_coordinates.y
    pitch, units = metadata.pitch_dimensions, "unknown"
    if metadata.coordinate_system.normalized and pitch.pitch_length and pitch.pitch_width:
        position *= (pitch.pitch_length, pitch.pitch_width)
        units = "m"
    return from_array(
        position,
        fps=agreed_fps(fps, float(metadata.frame_rate) / stride, "kloppy dataset"),
        body=[*bodies, "ball"],
        units=units,
        animate=[True] * len(bodies) + [False],
        source="kloppy dataset",
    )


def _kloppy_frames(frames: Any, pause: int) -> tuple[list[int], int]:
    """Where on the frame axis each frame is, and the commonest step of `frame_id`.

    Some providers count on from one period to the next, others begin again; here a period begins
    a ``pause`` after the last one's end, so that no run of frames goes across.
    """
    periods: dict[Any, list[int]] = {}
    for frame in frames:
        periods.setdefault(frame.period and frame.period.id, []).append(int(frame.frame_id))
    steps = [step for ids in periods.values() for step in np.diff(sorted(ids)).tolist()]
    value, count = np.unique(steps, return_counts=True)
    if (value == 0).any():
        raise DataError(
            "kloppy dataset: two frames of a period have the same frame_id; keep one of them"
        )
    stride = int(value[count.argmax()]) if len(value) else 1
    first = {period: min(ids) for period, ids in periods.items()}
    offset, begin = {}, 0
    for period, ids in periods.items():
        offset[period] = begin
        begin += (max(ids) - min(ids)) // stride + 1 + pause
    index = []
    for frame in frames:
        period = frame.period and frame.period.id
        place, between = divmod(int(frame.frame_id) - first[period], stride)
        if between:
            raise DataError(
                f"kloppy dataset: frame {frame.frame_id} lies between others; frames go in steps "
                f"of {stride}; leave such frames out"
            )
        index.append(offset[period] + place)
    return index, stride


def _line(error: Exception) -> str:
    """The first line of an error's message, or its kind."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
