"""What is done to trajectories before training: cut at gaps, downsampled, split, joined.

All functions take and give a Dataset of the schema in `schema`, never change their input, and
keep `recording`, `start` and `length` right, so that they can be applied one after another.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import xarray as xr

from pyro_animacy.data.schema import (
    VISIT,
    Integers,
    assemble,
    like,
    no_duplicates,
    pieces,
    shortened,
    visits,
)
from pyro_animacy.data.stored import (
    Floats,
    Stored,
    joined,
    mapping,
    observed,
    positions,
    runs,
    sharing,
)
from pyro_animacy.errors import ConfigError, DataError, how_many

FEW_RECORDINGS = 5  # with fewer, a part of each is held out, not some of them


def split_at_gaps(ds: xr.Dataset, minimum_frames: int = 2, *, copy: bool = True) -> xr.Dataset:
    """Make a trajectory of every run of frames in which all bodies are observed.

    Args:
        ds: trajectories in the schema.
        minimum_frames: shorter runs are dropped.
        copy: if False, a Dataset without a gap or padding is returned as it is.

    Returns:
        A new Dataset without gaps. `start` follows; a trajectory cut in several is named
        `name@frame`, with the frame of the recording on which the piece begins.

    Raises:
        DataError: where no run is long enough.
    """
    complete, _ = observed(positions(ds))
    complete &= np.arange(ds.sizes["time"]) < ds["length"].values[:, None]
    if not copy and complete.all() and ds.sizes["time"] >= max(minimum_frames, 2):
        return ds
    rows, begin, end = runs(complete)
    keep = end - begin >= max(minimum_frames, 2)
    if not keep.any():
        longest = int((end - begin).max(initial=0))
        raise DataError(
            f"{ds.attrs.get('source') or 'trajectories'}: no run of {max(minimum_frames, 2)} frames"
            f" in which all bodies are observed (the longest has {longest}); choose other "
            "--bodies, or --bodies present, of whoever is there, or each for one-body trajectories"
        )
    return pieces(ds, rows[keep], begin[keep], end[keep])


def seen_together(ds: xr.Dataset) -> str:
    """Which bodies are seen together in how many frames, of a recording with substitutes, say.

    Of the bodies in the order of how often they are seen, so many first ones that bodies times
    frames in which all of them are seen is largest.
    """
    seen = np.isfinite(ds["position"].values).all(-1)  # (trajectory, time, body)
    order = np.argsort(-seen.sum((0, 1)), kind="stable")
    together = np.logical_and.accumulate(seen[:, :, order], axis=2).sum((0, 1))
    kept = 1 + int((together * np.arange(1, len(order) + 1)).argmax())
    frames, names = int(together[kept - 1]), ds["body"].values.astype(str)
    plain = not any("," in name or " x " in name for name in names)
    if not 2 <= kept < len(names) or frames < 2 or not plain:
        return ""
    best = ",".join(names[np.sort(order[:kept])])
    return f"; {kept} bodies are seen together in {how_many(frames, 'frame')}: --bodies {best!r}"


def downsample(ds: xr.Dataset, every: int) -> xr.Dataset:
    """Keep the frames of each recording whose number is a multiple of `every`.

    Counting on the recording's own frame axis keeps overlapping trajectories in step with one
    another; up to `every` - 1 frames at the start of a trajectory are lost by it.

    Args:
        ds: trajectories in the schema.
        every: 1 keeps all.

    Returns:
        A new Dataset with fps / every; `resolution` stays, since a longer step is not coarser.

    Raises:
        ConfigError: if `every` is below 1, or no whole number.
        DataError: if fewer than 2 frames would be left everywhere.
    """
    if every < 1 or every != int(every):
        raise ConfigError(
            f"--downsample {every}: it must be a whole number from 1 on; 2 keeps every second frame"
        )
    if every == 1:
        return ds
    start, length = ds["start"].values, ds["length"].values
    first = (-start) % every
    kept = -(-(length - first) // every)
    rows = np.flatnonzero(kept >= 2)
    if not len(rows):
        raise DataError(
            f"{ds.attrs.get('source') or 'trajectories'}: --downsample {every} leaves no "
            f"trajectory with 2 frames (the longest has {length.max()}); use a smaller one"
        )
    values = positions(ds)
    position = np.full((len(rows), kept[rows].max(), *values.shape[2:]), np.nan)
    for out, i in zip(position, rows, strict=True):
        own = np.asarray(values[i : i + 1])[0]  # of recordings in a file one after another is read
        out[: kept[i]] = own[first[i] : length[i] : every]
    ds = ds.assign_attrs(fps=float(ds.attrs["fps"]) / every)
    new = like(ds, rows, position, ds["trajectory"].values[rows])
    return new.assign_coords(
        start=("trajectory", (start + first)[rows] // every), length=("trajectory", kept[rows])
    )


def split(ds: xr.Dataset, heldout: float = 0.2, seed: int = 0) -> tuple[xr.Dataset, xr.Dataset]:
    """Split into a training and a held-out part that share no frame of any recording.

    From five recordings on, whole recordings are held out, drawn by `seed`. With fewer, time is
    cut: within each recording the frame intervals [start, start + length) of its trajectories are
    merged where they overlap, and the last share of each merged interval is held out of every
    trajectory there. Splitting the training part again keeps both properties.

    Args:
        ds: trajectories in the schema.
        heldout: share of the recordings, or of the frames, to hold out; between 0 and 1.
        seed: of the draw of recordings.

    Returns:
        Training part, held-out part.

    Raises:
        ConfigError: if `heldout` is not between 0 and 1.
        DataError: if a part would be empty.
    """
    if not 0 < heldout < 1:
        raise ConfigError(f"heldout {heldout}: expected a share between 0 and 1")
    recordings, code = np.unique(ds["recording"].values.astype(str), return_inverse=True)
    start, length = ds["start"].values, ds["length"].values
    if len(recordings) >= FEW_RECORDINGS:
        order = np.random.default_rng(seed).permutation(len(recordings))
        out = np.isin(code, order[: max(1, round(heldout * len(recordings)))])
        cut = np.where(out, 0, length)
    else:
        cut = np.clip(_cut_frames(code, start, start + length, heldout) - start, 0, length)
    parts = []
    for begin, end, name in ((0 * cut, cut, "training"), (cut, length, "held-out")):
        rows = np.flatnonzero(end - begin >= 2)
        if not len(rows):
            raise DataError(
                f"{ds.attrs.get('source') or 'trajectories'}: no trajectory of 2 "
                f"frames is left in the {name} part; give more frames, or another --train.heldout"
            )
        parts.append(pieces(ds, rows, begin[rows], end[rows]))
    return parts[0], parts[1]


def _cut_frames(code: Integers, start: Integers, end: Integers, heldout: float) -> Integers:
    """The frame at which each trajectory is cut: that of the merged interval it lies in.

    Args:
        code: (trajectory,) number of the recording.
        start: (trajectory,) first frame.
        end: (trajectory,) frame after the last.
        heldout: share of each merged interval after the cut.

    Returns:
        (trajectory,) frames on the recordings' axes.
    """
    cut = np.zeros_like(start)
    for recording in np.unique(code):
        own = np.flatnonzero(code == recording)
        own = own[np.argsort(start[own], kind="stable")]
        reach = np.maximum.accumulate(end[own])
        new = np.r_[True, start[own][1:] >= reach[:-1]]  # starts after all before it have ended
        group = np.cumsum(new) - 1
        first = start[own][new]
        last = reach[np.r_[np.flatnonzero(new)[1:] - 1, len(own) - 1]]
        cut[own] = (last - np.maximum(1, np.rint((last - first) * heldout)).astype(int))[group]
    return cut


def join(parts: Sequence[xr.Dataset], source: str = "") -> xr.Dataset:
    """Put Datasets of the same bodies one after another along `trajectory`.

    Args:
        parts: Datasets in the schema, with the same bodies (in any order), fps and units;
            "unknown" units agree with all.
        source: of the result.

    Returns:
        One Dataset, padded to the longest.

    Raises:
        DataError: where bodies, fps or units differ, naming the part.
    """
    first = parts[0]
    bodies = first["body"].values
    for part in parts[1:]:
        here, there = part.attrs.get("source"), first.attrs.get("source")
        if set(part["body"].values) != set(bodies):
            raise DataError(
                f"{here}: bodies {shortened(part['body'].values)}, but {there} has "
                f"{shortened(bodies)}; choose common ones with --bodies, or --bodies each"
            )
        if not np.isclose(part.attrs["fps"], first.attrs["fps"], rtol=1e-2):
            raise DataError(
                f"{here}: {part.attrs['fps']:g} frames per second, but {there} has "
                f"{first.attrs['fps']:g}; read them separately, or downsample one"
            )
    known = [p for p in parts if p.attrs["units"] != "unknown"] or [first]
    for part in known:
        if part.attrs["units"] != known[0].attrs["units"]:
            raise DataError(
                f"{part.attrs['source']}: positions in {part.attrs['units']}, but "
                f"{known[0].attrs['source']} has {known[0].attrs['units']}; read them separately"
            )
    if len(parts) == 1:
        return first.assign_attrs(source=source or first.attrs["source"])
    aligned = [p.sel(body=bodies) for p in parts]
    values = [positions(p) for p in aligned]
    position: Floats | Stored
    if any(isinstance(x, Stored) and mapping(x.frames) is None for x in values):
        position = joined([sharing(x) for x in values])
    else:
        frames, row = max(x.shape[1] for x in values), 0
        position = np.full((sum(map(len, values)), frames, len(bodies), 2), np.nan)
        for x in values:
            position[row : row + len(x), : x.shape[1]] = x
            row += len(x)
    out = assemble(
        position,
        fps=first.attrs["fps"],
        body=bodies,
        attrs={"units": known[0].attrs["units"], "source": source or first.attrs["source"]},
        trajectory=_stacked(aligned, "trajectory"),
        recording=_stacked(aligned, "recording"),
        start=_stacked(aligned, "start"),
        length=_stacked(aligned, "length"),
        resolution=_stacked(aligned, "resolution"),
    )
    if all("label" in p.coords for p in aligned):
        out = out.assign_coords(label=("trajectory", _stacked(aligned, "label")))
    if "animate" in first.coords:
        out = out.assign_coords(animate=("body", first["animate"].values))
    taken = [visits(p) for p in aligned]
    if all(taken):
        joint = {n: (VISIT, np.concatenate([of[n][1] for of in taken])) for n in taken[0]}
        out = out.assign_coords(joint)
    no_duplicates(out["trajectory"].values, "trajectory", out.attrs["source"])
    return out


def _stacked(parts: Sequence[xr.Dataset], name: str) -> npt.NDArray:
    """One coordinate of all parts, one after another."""
    return np.concatenate([p[name].values for p in parts])
