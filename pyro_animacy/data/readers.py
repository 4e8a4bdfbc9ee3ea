"""From what a person has, files or objects of other libraries, to trajectories."""

import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from pyro_animacy.data import arrays, tables
from pyro_animacy.data.arrays import metrica_sample
from pyro_animacy.data.bodies import body_stem, is_each, is_many, is_present, select_bodies
from pyro_animacy.data.columns import ROLES
from pyro_animacy.data.dense import table_dataset
from pyro_animacy.data.epts import read_epts
from pyro_animacy.data.metrica_csv import is_team, of_matches, read_teams
from pyro_animacy.data.schema import check_trajectories, shortened
from pyro_animacy.data.stored import observed, positions
from pyro_animacy.data.text import read_text_table
from pyro_animacy.data.trajectories import downsample as every_nth
from pyro_animacy.data.trajectories import join, seen_together, split_at_gaps
from pyro_animacy.errors import ConfigError, DataError, how_many

__all__ = ["metrica_sample", "read_trajectories"]

MOST = 0.95  # of the frames: where fewer are kept it is said
LONGEST_PAUSE = 10_000  # frames; a pause has a place in the array
TEXT = (".csv", ".txt", ".tsv", ".dat")
KINDS = {
    **dict.fromkeys(TEXT, "table"),
    **dict.fromkeys((".parquet", ".pq"), "parquet"),
    **dict.fromkeys((".nc", ".nc4", ".netcdf"), "netCDF"),
    **dict.fromkeys((".npz", ".npy"), "numpy"),
    ".zarr": "zarr",
}


@dataclass(frozen=True)
class _Options:
    """What `read_trajectories` was asked for."""

    bodies: str | None
    labels: str | None
    fps: float | None
    downsample: int
    columns: Mapping[str, str] | None
    minimum_frames: int
    split_gaps: bool

    @property
    def pause(self) -> int:
        """Frames between periods where nothing says how many: one of those that are kept is."""
        return max(1, int(min(self.downsample, LONGEST_PAUSE)))


def read_trajectories(
    source: Any,
    *,
    bodies: str | Sequence[str] | None = None,
    labels: str | None = None,
    fps: float | None = None,
    downsample: int = 1,
    columns: Mapping[str, str] | None = None,
    units: str | None = None,
    resolution: float | None = None,
    minimum_frames: int = 2,
    split_gaps: bool = True,
) -> xr.Dataset:
    """Read recorded motion into the schema of `pyro_animacy.data.schema`.

    Files: CSV and other delimited text, plain or gzipped (long or wide; headerless ETH/UCY and
    MOTChallenge), parquet, netCDF, zarr, npz, npy, and Metrica's team files and EPTS
    `tracking.txt`. Several files, or a folder of files of one kind, are read as one recording each.
    Objects: DataFrame, xarray Dataset (this schema or `movement`'s), numpy array, kloppy
    TrackingDataset. Where a table has boxes and no x and y, positions are the middles of the boxes.

    Args:
        source: path, paths, folder or object; "metrica" for the bundled sample.
        bodies: which bodies make up a scene: "home_1,away_3,ball", "home x away x ball" (every
            triple of one from each group, no body twice), "ant x ant" (every pair of one group),
            "each" (every body on its own, of the recording it comes from) or "present" (whoever is
            there: bodies come and go, and of a table with ids the scene has places,
            body_place_1, body_place_2, ..., which they take in turn); a list of names is these
            bodies; all by default.
        labels: only trajectories with one of these labels: "chase,follow"; all by default.
        fps: frames per second of the recording, where it does not say.
        downsample: keep every Nth frame.
        columns: role to column of a table, where the names are unusual; the roles are
            trajectory, id, frame, time, x, y, label; "game+play" is two columns together,
            "left+width/2" a sum, as of a box, and "1", "2", ... are those of a file without names.
        units: of the coordinates, where the recording does not say.
        resolution: smallest step the recording can show, in its units; estimated by default.
        minimum_frames: shorter runs of frames are dropped.
        split_gaps: make a trajectory of every run of frames in which all bodies of the scene are
            observed. If False, or of "present" bodies, what is not observed stays in as NaN.

    Returns:
        The trajectories.

    Raises:
        DataError: for data that cannot be used, naming file and row.
        ConfigError: for options that cannot be used.
    """
    if resolution is not None and not (np.isfinite(resolution) and resolution >= 0):
        raise ConfigError(
            f"--resolution {resolution}: it must be 0 or more, in the units of the positions"
        )
    if isinstance(columns, str):
        raise ConfigError(
            f"columns is {columns!r}; in Python it is a dict of role to column, such as "
            '{"x": "pos_x", "y": "pos_y"}'
        )
    for role, name in (columns or {}).items():
        if role not in (*ROLES, "body"):
            raise ConfigError(f"--columns {role}={name}: the roles are {', '.join(ROLES)}")
    if bodies is not None and not isinstance(bodies, str):
        bodies = ",".join(map(str, bodies))
    options = _Options(bodies, labels, fps, downsample, columns, minimum_frames, split_gaps)
    items = list(of_matches(_items(source)))
    _no_file_twice(items)
    parts, checked = map(list, zip(*(_read_one(item, options) for item in items), strict=True))
    if len(parts) > 1:
        names = _distinct_names(items)
        parts = [_prefixed(part, name) for part, name in zip(parts, names, strict=True)]
    if is_present(bodies):
        parts = _of_the_same_places(parts)
    ds = join(parts, _source_name(source))
    if labels is not None:
        _all_labelled(parts)
        ds = _labelled(ds, labels)
    if units is not None:
        ds = ds.assign_attrs(units=units)
    if resolution is not None:
        ds = ds.assign_coords(
            resolution=("trajectory", np.full(ds.sizes["trajectory"], float(resolution)))
        )
    return ds if checked == [True] and labels is None else check_trajectories(ds)


def in_places(part: xr.Dataset, places: Sequence[str]) -> xr.Dataset:
    """A recording of whoever is present with these places, which nobody may take."""
    return part.drop_vars("animate", errors="ignore").reindex(body=[*places])


def _of_the_same_places(parts: list[xr.Dataset]) -> list[xr.Dataset]:
    """Recordings with the places that any of them has, which nobody takes in the others."""
    names = {str(name) for part in parts for name in part["body"].values}
    places = sorted(names, key=lambda name: (body_stem(name), len(name), name))
    if all(len(places) == part.sizes["body"] for part in parts):
        return parts
    return [in_places(part, places) for part in parts]


def _no_file_twice(items: Iterable[Any]) -> None:
    """Raise DataError for a file that is given twice, whatever it is called."""
    seen = set()
    for path in (item.resolve() for item in items if isinstance(item, Path)):
        if path in seen:
            raise DataError(f"{path.name}: given twice; leave one out")
        seen.add(path)


def _all_labelled(parts: list[xr.Dataset]) -> None:
    """Raise DataError for the first part that has no labels."""
    for part in parts:
        if "label" not in part.coords:
            raise DataError(
                f"{part.attrs.get('source') or 'trajectories'}: has no labels; leave --labels out, "
                "or name their column by --columns label=NAME"
            )


def _labelled(ds: xr.Dataset, labels: str) -> xr.Dataset:
    """The trajectories with one of the labels, given as "chase,follow"."""
    where = ds.attrs.get("source") or "trajectories"
    wanted = [name.strip() for name in labels.split(",")]
    have = sorted(set(ds["label"].values.astype(str)))
    missing = [name for name in wanted if name not in have]
    if missing:
        raise DataError(
            f"{where}: no trajectory is labelled {missing[0]!r}; there are {shortened(have)}"
        )
    return ds.isel(trajectory=np.flatnonzero(np.isin(ds["label"].values.astype(str), wanted)))


def _items(source: Any) -> list[Any]:
    """The recordings of a source: paths or objects."""
    if isinstance(source, list | tuple):
        if not source:
            raise DataError("no files given")
        return [item for one in source for item in _items(one)]
    if not isinstance(source, str | PathLike):
        return [source]
    path = Path(source)
    if not path.exists():
        if str(source) == "metrica":
            return [metrica_sample()]
        raise DataError(f"{source}: no such file or folder")
    if path.is_dir() and path.suffix != ".zarr":
        return _folder(path)
    return [path]


def files_of(folder: Path) -> list[Path]:
    """The recordings in a folder, by their names; what only goes with them is left aside."""
    return sorted(
        p
        for p in folder.iterdir()
        if _kind(p) and not re.match(r"\.|readme|licen[cs]e|.*raweventsdata", p.name, re.IGNORECASE)
    )


def _folder(folder: Path) -> list[Any]:
    """The files of a folder, which must be of one kind."""
    files = files_of(folder)
    if not files:
        inside = "; folders in it are not looked into: name one of them"
        raise DataError(
            f"{folder.name}: no files of trajectories in this folder; expected {', '.join(KINDS)}"
            + inside * any(p.is_dir() for p in folder.iterdir())
        )
    kinds = {str(_kind(p)): p.name for p in files}
    if len(kinds) > 1:
        both = ", ".join(f"{kind} ({name})" for kind, name in kinds.items())
        raise DataError(f"{folder.name}: files of several kinds: {both}; name those to read")
    return list(files)


def _kind(path: Path) -> str | None:
    """The kind of a file by its name, None if it is no kind that can be read."""
    name = path.name.lower()
    suffix = Path(name.removesuffix(".gz")).suffix
    kind = KINDS.get(suffix)
    return None if name.endswith(".gz") and kind != "table" else kind


def _source_name(source: Any) -> str:
    """What to call a source in reports, several files by their folder; "" for its first part."""
    if isinstance(source, str | PathLike):
        return Path(source).name
    several = source if isinstance(source, list | tuple) and len(source) > 1 else []
    folders = {Path(x).resolve().parent.name for x in several if isinstance(x, str | PathLike)}
    return folders.pop() if len(folders) == 1 else ""


def _distinct_names(items: Iterable[Any]) -> list[str]:
    """A name for each of several recordings: the file's stem, or the path where stems repeat."""
    stems = [
        item.name.split(".")[0] if isinstance(item, Path) else str(i)
        for i, item in enumerate(items)
    ]
    if len(set(stems)) == len(stems):
        return stems
    return [str(item) if isinstance(item, Path) else str(i) for i, item in enumerate(items)]


def _prefixed(part: xr.Dataset, name: str) -> xr.Dataset:
    """The part with trajectories and recordings named after it."""

    def named(entry: str) -> str:
        own = part.attrs["source"].split(".")[0]
        rest = entry.removeprefix(own) if entry == own or entry.startswith(own + "@") else None
        return name + (f"/{entry}" if rest is None else rest)

    return part.assign_coords(
        {
            along: (part[along].dims, np.array([named(str(e)) for e in part[along].values], object))
            for along in ("trajectory", "recording", "visit_recording")
            if along in part.coords
        }
    )


def _read_one(item: Any, options: _Options) -> tuple[xr.Dataset, bool]:
    """One recording, with the bodies, the rate and the runs of frames asked for.

    Returns:
        Its trajectories, and whether they are all that was read, and so have been checked.
    """
    table, chosen = _table(item, options), options.bodies
    if table is not None:
        if options.labels is not None and table.unlabelled is not None:
            raise DataError(
                f"{table.where}: the label of trajectory {table.unlabelled!r} changes or is missing"
                " in some rows; --labels needs one label for each trajectory"
            )
        ds, own = table_dataset(table, options.bodies, options.fps, options.pause), True
        if table.body is not None and (is_each(chosen) or is_present(chosen)):
            chosen = None  # which is done
        del table  # its rows would otherwise stay in memory beside the array
    else:
        ds, own = _dataset(item, options), False  # it may be the user's array
    if is_present(chosen):
        chosen = None
    if chosen is not None and not is_many(chosen):
        ds, own = select_bodies(ds, chosen), False
    cut = every_nth(ds, options.downsample)
    if chosen is not None and is_many(chosen):  # now that there are fewer frames
        cut, own = select_bodies(cut, chosen), False
    if options.split_gaps and not is_present(options.bodies):
        whole = cut
        try:
            cut = split_at_gaps(whole, options.minimum_frames, copy=not own)
            _say_left_out(whole, cut)
        except DataError as error:
            mend = "; or a smaller --downsample" if options.downsample > 1 else ""
            together = "" if is_many(options.bodies) else seen_together(cut)
            raise DataError(f"{error}{mend}{together}") from None
    return cut, cut is ds and options.bodies is None


def _say_left_out(whole: xr.Dataset, cut: xr.Dataset) -> None:
    """Say how much is left out since not all bodies of a scene were observed, where it is much."""
    if cut is whole or whole.sizes["body"] == 1:
        return
    frames, kept = int(observed(positions(whole))[1].sum()), int(cut["length"].sum())
    recordings, left = (len(np.unique(ds["recording"])) for ds in (whole, cut))
    if kept < MOST * frames:
        said = f"{1 - kept / frames:.0%} of the frames are left out"
        if left < recordings:
            said += f", among them {how_many(recordings - left, 'recording')} of {recordings}"
        print(
            f"{whole.attrs['source']}: {said}, since not all {whole.sizes['body']} bodies of a "
            "scene were observed; choose others by --bodies, or --bodies present, of whoever is "
            "there",
            file=sys.stderr,
        )


def _table(item: Any, options: _Options) -> tables.Table | None:
    """The rows of a recording that is a table; None if it is something else."""
    if isinstance(item, pd.DataFrame):
        return tables.from_dataframe(item, options.columns)
    if not isinstance(item, Path):
        return None
    kind = _kind(item)
    if kind == "parquet":
        return tables.read_parquet(item, options.columns)
    if kind == "table":
        if is_team(item):
            return read_teams(item, options.pause)
        if item.suffix == ".txt" and re.match(rb"\d+:", _head(item)):
            return read_epts(item, options.pause)
        return read_text_table(item, options.columns)
    return None


def _head(path: Path) -> bytes:
    """The first bytes of a file."""
    try:
        with path.open("rb") as file:
            return file.read(64).removeprefix(b"\xef\xbb\xbf")
    except OSError as error:
        raise DataError(f"{path.name}: cannot be read: {error.strerror}") from None


def _dataset(item: Any, options: _Options) -> xr.Dataset:
    """A recording that is no table."""
    fps = options.fps
    if isinstance(item, Path):
        kind = _kind(item)
        if kind == "numpy":
            return arrays.read_npz(item, fps, options.columns)
        if kind in ("netCDF", "zarr"):
            return arrays.read_xarray_file(item, fps)
        raise DataError(f"{item.name}: not a kind that can be read; expected {', '.join(KINDS)}")
    if isinstance(item, xr.DataArray):
        item = item.to_dataset(name="position")
    if isinstance(item, xr.Dataset):
        return arrays.from_xarray(item, fps)
    if isinstance(item, np.ndarray):
        return arrays.from_array(item, fps=fps)
    if hasattr(item, "records") and hasattr(item, "metadata"):
        return arrays.from_kloppy(item, fps, options.pause)
    raise DataError(
        f"{type(item).__name__}: expected a path, DataFrame, xarray Dataset, numpy array or "
        "kloppy TrackingDataset"
    )
