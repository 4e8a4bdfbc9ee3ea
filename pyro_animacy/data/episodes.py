"""Episodes: what an agent, or only a camera, recorded; how they are made, checked, read, written.

A Dataset with dimensions `trajectory`, `time` and, each where it is there:

- `image` (trajectory, time, height, width, channel) uint8, and/or
- `observation` (trajectory, time, feature) float: positions, joint angles, ...
- `action` (trajectory, time, control) float: what was done after frame t; the last is not used.
- `reward` (trajectory, time) float: received on arriving at frame t; 0 at the first.
- `terminal` (trajectory, time) bool: the episode ended by itself at frame t, its last. An episode
  that was only cut off has none.

`length` (trajectory) is the number of frames of each; what lies beyond it is padding, not data.
Attributes: `fps`, `source`.

Time, in the Dataset and in a batch of `episode_windows`:

    Dataset        x_0 --a_0--> x_1 --a_1--> x_2 --a_2--> x_3         action[t] leads from t
                                r_1          r_2          r_3  end    reward[t] is met at t

    batch            x_0          x_1          x_2          x_3       observation[t]
                     0            a_0          a_1          a_2       action[t] led to t
                     0            r_1          r_2          r_3       reward[t]
                     1            1            1            0         continuation[t]

so that a recurrent model reads entry t of all tensors at once: h_t = f(h_{t-1}, z_{t-1}, a_{t-1}),
then x_t, r_t and whether it goes on. A window that begins inside an episode has the true a_{t-1}
and r_t at its first frame.
"""

import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal
from zipfile import BadZipFile

import numpy as np
import numpy.typing as npt
import xarray as xr

from pyro_animacy.data.netcdf import save_netcdf
from pyro_animacy.errors import DataError, did_you_mean

DIMS = {
    "image": ("trajectory", "time", "height", "width", "channel"),
    "observation": ("trajectory", "time", "feature"),
    "action": ("trajectory", "time", "control"),
    "reward": ("trajectory", "time"),
    "terminal": ("trajectory", "time"),
}
KINDS = {"image": "u", "observation": "f", "action": "f", "reward": "f", "terminal": "b"}
Format = Literal["netcdf", "npz"]
FORMATS: dict[str, Format] = {".nc": "netcdf", ".npz": "npz"}
# What the libraries raise for a file that is cut short, altered or of another kind.
DAMAGED = (
    OSError, EOFError, TypeError, ValueError, KeyError, RuntimeError, BadZipFile, zlib.error,
)  # fmt: skip


def make_episodes(
    *,
    image: npt.ArrayLike | None = None,
    observation: npt.ArrayLike | None = None,
    action: npt.ArrayLike | None = None,
    reward: npt.ArrayLike | None = None,
    terminal: npt.ArrayLike | None = None,
    length: npt.ArrayLike | None = None,
    fps: float = 1.0,
    trajectory: Sequence[str] | None = None,
    control: Sequence[str] | None = None,
    source: str = "",
) -> xr.Dataset:
    """Label arrays with the schema of this module, and check them.

    Args:
        image: (trajectory, time, height, width, channel) uint8.
        observation: (trajectory, time, feature); images, observations or both must be there.
        action: (trajectory, time, control), taken after frame t.
        reward: (trajectory, time), received on arriving at frame t.
        terminal: (trajectory, time), true where an episode ended by itself.
        length: Frames of each trajectory; all by default.
        fps: Frames per second.
        trajectory: Unique names; "0", "1", ... by default.
        control: Names of the controls.
        source: Where the data come from, for reports and messages.

    Returns:
        The Dataset. Arrays that are float32, uint8 or bool already are not copied.

    Raises:
        DataError: Where the arrays do not fit the schema or each other, see `check_episodes`.
    """
    where = source or "episodes"
    if image is None and observation is None:
        raise DataError(f"{where}: neither `image` nor `observation`; give one of them")
    given = {
        "image": image,
        "observation": observation,
        "action": action,
        "reward": reward,
        "terminal": terminal,
    }
    arrays = {name: _typed(name, x, where) for name, x in given.items() if x is not None}
    for name, array in arrays.items():
        if array.ndim != len(DIMS[name]):
            one_hot = "; of discrete actions give one-hot vectors" if name == "action" else ""
            raise DataError(
                f"{where}: `{name}` has shape {array.shape}; expected ({', '.join(DIMS[name])})"
                f"{one_hot}"
            )
    shapes = {name: array.shape[:2] for name, array in arrays.items()}
    if len(set(shapes.values())) > 1:
        raise DataError(f"{where}: trajectories x frames differ between variables: {shapes}")
    count, frames = next(iter(shapes.values()))
    lengths = np.full(count, frames) if length is None else np.asarray(length)
    names = [str(i) for i in range(count)] if trajectory is None else [str(n) for n in trajectory]
    for what, shape in (("length", lengths.shape), ("trajectory", (len(names),))):
        if shape != (count,):
            raise DataError(f"{where}: {shape} {what} entries for {count} trajectories")
    coords: dict[str, Any] = {
        "trajectory": np.array(names, object),
        "length": ("trajectory", lengths),
    }
    if control is not None and "action" in arrays:
        if len(control) != arrays["action"].shape[2]:
            raise DataError(
                f"{where}: {len(control)} names for {arrays['action'].shape[2]} controls"
            )
        coords["control"] = np.array(list(control), object)
    variables = {name: (DIMS[name], array) for name, array in arrays.items()}
    attrs = {"fps": fps, "source": source}
    return check_episodes(xr.Dataset(variables, coords, attrs))


def _typed(name: str, value: npt.ArrayLike, where: str) -> npt.NDArray:
    """The array in the type that the schema has for ``name``: uint8, float32 or bool."""
    try:
        array = np.asarray(value)
    except ValueError:
        raise DataError(
            f"{where}: `{name}` is of lists of unequal length; pad shorter ones, and give `length`"
        ) from None
    kind = KINDS[name]
    if kind == "f" and array.dtype.kind in "iuf":
        return array.astype(np.float32, copy=False)
    most = {"u": 255, "b": 1}.get(kind, 0)  # as other libraries store them
    if array.dtype.kind in "iu" and most and array.size and 0 <= array.min() <= array.max() <= most:
        return array.astype(np.uint8 if kind == "u" else bool, copy=False)
    if array.dtype.kind != kind or (kind == "u" and array.dtype != np.uint8):
        wanted = {"u": "uint8, 0 to 255", "f": "numbers", "b": "bool"}[kind]
        raise DataError(f"{where}: `{name}` is {array.dtype}; expected {wanted}")
    return array


def check_episodes(ds: xr.Dataset) -> xr.Dataset:
    """Check that a Dataset follows the schema; returns it, with images and ends in their types.

    Raises:
        DataError: For dimensions, types, lengths or values that do not: the message names them.
    """
    where = ds.attrs.get("source") or "episodes"
    if "image" not in ds and "observation" not in ds:
        raise DataError(
            f"{where}: no `image` and no `observation`, but {', '.join(map(str, ds.data_vars))}; "
            "these are no episodes of an agent or a camera"
        )
    for name in (name for name in DIMS if name in ds):
        if ds[name].dims != DIMS[name]:
            raise DataError(f"{where}: `{name}` has dims {ds[name].dims}; expected {DIMS[name]}")
        array = ds[name].to_numpy()
        if (typed := _typed(name, array, where)) is not array and KINDS[name] != "f":
            ds = ds.assign({name: ds[name].copy(data=typed)})
    fps = ds.attrs.get("fps")
    if not isinstance(fps, int | float | np.number) or not 0 < float(fps) < np.inf:
        raise DataError(f"{where}: attribute fps is {fps!r}; expected frames per second above 0")
    if "length" not in ds.coords or ds["length"].dims != ("trajectory",):
        raise DataError(f"{where}: no coordinate `length` (trajectory); give the frames of each")
    length = ds["length"].to_numpy()
    if length.dtype.kind not in "iu" or not ((length >= 1) & (length <= ds.sizes["time"])).all():
        raise DataError(f"{where}: `length` must be whole numbers from 1 to {ds.sizes['time']}")
    if len(set(ds["trajectory"].to_numpy().tolist())) < ds.sizes["trajectory"]:
        raise DataError(f"{where}: names of trajectories are not unique")
    _check_values(ds, length, where)
    return ds


def _check_values(ds: xr.Dataset, length: npt.NDArray, where: str) -> None:
    """Raise DataError for numbers that are not finite, a first reward, an early end."""
    frame = np.arange(ds.sizes["time"])
    inside = frame < length[:, None]
    for name in ("observation", "action", "reward"):
        if name in ds:
            # the last action was not taken: whatever stands there is not read
            read = frame < length[:, None] - 1 if name == "action" else inside
            _check_finite(ds[name], read, where)
    if "reward" in ds and ds["reward"].to_numpy()[:, 0].any():
        raise DataError(
            f"{where}: `reward` is not 0 at the first frame; the reward of an action belongs to "
            "the frame it leads to, shift it by one"
        )
    if "terminal" in ds and (ds["terminal"].to_numpy() & (frame < length[:, None] - 1)).any():
        raise DataError(f"{where}: `terminal` before the last frame; cut the trajectory there")


def _check_finite(values: xr.DataArray, read: npt.NDArray[np.bool_], where: str) -> None:
    """Raise DataError for the first number that is ``read`` (trajectory, time) and not finite."""
    x = values.to_numpy()
    bad = ~np.isfinite(x) & read.reshape(*read.shape, *[1] * (x.ndim - 2))
    if not bad.any():
        return
    i, t, *at = np.argwhere(bad)[0]
    value, of = x[i, t][tuple(at)], f", {values.dims[2]} {at[0]}" if at else ""
    known = np.isfinite(x[i].reshape(len(x[i]), -1)).any(1).nonzero()[0]
    padded = len(known) and t > known[-1] and np.isnan(value)
    hint = "; if this is padding, give `length`" if padded else ""
    name = str(values["trajectory"].values[i])
    raise DataError(
        f"{where}: `{values.name}` is {value} in trajectory {name!r}, frame {t}{of}; it must be "
        f"finite{hint}"
    )


def file_format(path: str | Path) -> Format:
    """The format of a file of episodes, by its name: ``.nc`` or ``.npz``.

    Raises:
        DataError: For any other name.
    """
    suffix = Path(path).suffix
    if suffix not in FORMATS:
        raise DataError(f"{path}: expected episodes in a file named .nc or .npz")
    return FORMATS[suffix]


def save_episodes(ds: xr.Dataset, path: str | Path, form: Format | None = None) -> None:
    """Write episodes, compressed without loss.

    Args:
        ds: Episodes.
        path: File, ``.nc`` (netCDF) or ``.npz`` (numpy's).
        form: The format, where the name of the file does not say.

    Raises:
        DataError: If neither says, or these are no episodes.
    """
    check_episodes(ds)
    path, form = Path(path), form or file_format(path)
    variables = [str(name) for name in ds.data_vars]
    if form == "netcdf":
        packed = {name: {"zlib": True, "complevel": 4} for name in variables}
        save_netcdf(ds, path, encoding=packed)
        return
    arrays = {name: ds[name].to_numpy() for name in variables}
    for name in ("trajectory", "control", "length"):
        if name in ds.coords:
            values = ds[name].to_numpy()
            arrays[name] = values.astype(str) if values.dtype.kind not in "iu" else values
    with path.open("wb") as file:
        np.savez_compressed(file, allow_pickle=False, **arrays, **ds.attrs)


def variables_of(path: str | Path) -> set[str]:
    """Names of the arrays in a ``.nc`` or ``.npz`` file; none where it is no such file."""
    path = Path(path)
    if path.suffix not in FORMATS or not path.is_file():
        return set()
    try:
        if FORMATS[path.suffix] == "netcdf":
            with xr.open_dataset(path, engine="h5netcdf") as ds:
                return set(map(str, ds.data_vars))
        with np.load(path, allow_pickle=False) as stored:
            return set(stored.files)
    except DAMAGED:  # its reader says so
        return set()


def episode_files(paths: str | Path | Sequence[str | Path]) -> list[Path]:
    """The files that paths name: of a folder its ``.nc`` and ``.npz`` files, by their names.

    A folder without any stays as it is, for whoever reads it to refuse.
    """
    files: list[Path] = []
    for path in map(Path, [paths] if isinstance(paths, str | Path) else paths):
        held = sorted(path.iterdir()) if path.is_dir() else []
        held = [f for f in held if f.suffix in FORMATS and not f.name.startswith(".")]
        files += held or [path]
    return files


def read_episodes(paths: str | Path | Sequence[str | Path]) -> xr.Dataset:
    """Read episodes from one or several files, one after another along `trajectory`.

    Args:
        paths: netCDF (``.nc``) or ``.npz`` files in this schema, or folders of them.

    Returns:
        The Dataset; shorter episodes are padded.

    Raises:
        DataError: For a file that cannot be read, or is not in the schema, or does not go with the
            others; the message names it.
    """
    files = episode_files(paths)
    if not files:
        raise DataError("no files of episodes are given")
    parts = [_read(file) for file in files]
    return parts[0] if len(parts) == 1 else join_episodes(parts, files)


def _read(path: Path) -> xr.Dataset:
    form = file_format(path)
    if not path.is_file():
        raise DataError(f"{path}: there is no such file")
    try:
        if form == "netcdf":
            ds = xr.load_dataset(path, engine="h5netcdf")
        else:
            # opened here: numpy leaves a file open that it cannot read
            with path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
                arrays = {name: stored[name] for name in stored.files}
            arrays["source"] = str(arrays.get("source", path.name))
            arrays["fps"] = float(arrays.get("fps", 1.0))
            known = [*DIMS, "length", "trajectory", "control", "fps", "source"]
            if unknown := sorted(arrays.keys() - set(known)):
                meant = " ".join(filter(None, (did_you_mean(name, known) for name in unknown)))
                raise DataError(
                    f"unknown arrays {', '.join(unknown)}; "
                    f"{meant or 'expected ' + ', '.join(known)}"
                )
            ds = make_episodes(**arrays)
        return check_episodes(ds)
    except (*DAMAGED, DataError) as error:
        raise DataError(f"{path}: cannot be read as episodes ({error})") from error


def _controls(ds: xr.Dataset) -> list[str] | None:
    """Names of the controls, None where they have none."""
    return ds["control"].to_numpy().tolist() if "control" in ds.coords else None


def join_episodes(parts: Sequence[xr.Dataset], files: Sequence[Path]) -> xr.Dataset:
    """Concatenate along trajectory, padding time with zeros.

    Args:
        parts: Episodes.
        files: What to call each part in messages, and its trajectories where names are given twice.

    Raises:
        DataError: For a part that does not go with the first.
    """
    first, frames = parts[0], max(part.sizes["time"] for part in parts)
    for part, file in zip(parts, files, strict=True):
        for what, has, wanted in (
            ("fps", part.attrs["fps"], first.attrs["fps"]),
            ("variables", sorted(map(str, part.data_vars)), sorted(map(str, first.data_vars))),
            ("the order of controls", _controls(part), _controls(first)),
            *(
                (f"the shape of `{name}`", part[name].shape[2:], first[name].shape[2:])
                for name in first.data_vars
                if name in part
            ),
        ):
            if has != wanted:
                raise DataError(
                    f"{file}: {what} is {has}, but {wanted} in {files[0]}; read them apart"
                )
    names = [name for part in parts for name in part["trajectory"].to_numpy().tolist()]
    if len(set(names)) < len(names):  # the same seed twice, say: the file tells them apart
        names = [
            f"{file.stem}_{i}/{name}"
            for i, (part, file) in enumerate(zip(parts, files, strict=True))
            for name in part["trajectory"].to_numpy().tolist()
        ]

    def all_of(name: str) -> npt.NDArray:
        arrays = [part[name].to_numpy() for part in parts]
        return np.concatenate([
            np.pad(a, [(0, 0), (0, frames - a.shape[1]), *[(0, 0)] * (a.ndim - 2)]) for a in arrays
        ])  # fmt: skip

    return make_episodes(
        **{str(name): all_of(str(name)) for name in first.data_vars},
        length=np.concatenate([part["length"].to_numpy() for part in parts]),
        fps=float(first.attrs["fps"]),
        trajectory=names,
        control=_controls(first),
        source=" ".join(dict.fromkeys(str(part.attrs.get("source", "")) for part in parts)),
    )
