"""Reading what a model is fitted to: recordings of moving bodies, or episodes."""

import zlib
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from pyro_animacy.data.episodes import FORMATS, episode_files, read_episodes, variables_of
from pyro_animacy.data.readers import files_of, read_trajectories
from pyro_animacy.data.stored import blocks, positions
from pyro_animacy.errors import ConfigError, DataError
from pyro_animacy.models import FAMILIES, family

HOW_READ = {  # the options of `read_trajectories`, by the types that a run's settings may hold
    "bodies": str,
    "labels": str,
    "fps": int | float,
    "downsample": int,
    "columns": dict,
    "units": str,
    "resolution": int | float,
    "minimum_frames": int,
    "split_gaps": bool,
}
REPLAY = "episodes"  # folder of those that a run of `act` has collected
SCENES, EPISODES = (
    [name for name, of in FAMILIES.items() if of.data == kind] for kind in ("scenes", "episodes")
)


def absolute(path: str | PathLike[str]) -> str:
    """A path by which a file is found from any folder; what is no file, such as "metrica", stays.

    So a run can be resumed and criticised from any folder, and knows its own recordings again.
    """
    return str(Path(path).resolve()) if Path(path).exists() else str(path)


def files_read(model: str, source: str | PathLike[str] | list[Any] | tuple[Any, ...]) -> list[Path]:
    """The files that recordings of a model are read from: of a folder those in it now."""
    paths = [Path(p) for p in ([source] if isinstance(source, str | PathLike) else source)]
    if family(model).data == "episodes":
        return episode_files(paths)
    folders = (files_of(p) if p.is_dir() and p.suffix != ".zarr" else [p] for p in paths)
    return [file for files in folders for file in files]


def fingerprint(part: xr.Dataset) -> list[float]:
    """Numbers that other recordings, or another part of them, would not have.

    How many trajectories, how many frames, and a sum over what they show; of positions to twelve
    digits, since the last ones depend on the order of the bodies.
    """
    if "position" in part:
        total = sum(float(np.nansum(np.abs(x))) for _, _, x in blocks(positions(part)))
    else:
        shown = part["image" if "image" in part else "observation"].to_numpy()
        total = zlib.crc32(np.ascontiguousarray(shown).data)
    return [part.sizes["trajectory"], int(part["length"].sum()), float(f"{total:.12g}")]


def read_data(model: str, data: dict[str, Any]) -> xr.Dataset:
    """Read what a model is of: scenes, or episodes.

    Raises:
        DataError: If it cannot be read, or is of the other kind; the message names the models.
    """
    files = episode_files(data["source"])
    holds = [(file, variables_of(file)) for file in files]
    episodes = [file for file, names in holds if names & {"image", "observation"}]
    scenes = [file for file, names in holds if "position" in names]
    if family(model).data == "scenes":
        if episodes and not scenes:
            raise DataError(
                f"{episodes[0]}: holds episodes, and {model} is a model of moving bodies; take "
                f"--model {' or --model '.join(EPISODES)}"
            )
        return read_trajectories(**data)
    for name in HOW_READ:
        if data.get(name) is not None:
            raise ConfigError(
                f"--{name} is of scenes of moving bodies, and {model} is a model of episodes; "
                "leave it out"
            )
    # a file that is named as episodes are and cannot be read: its reader says why
    other = [file for file in files if file in scenes or file.suffix not in FORMATS]
    if other and not episodes:
        raise DataError(
            f"{other[0]}: no episodes (a .nc or .npz file with `image` or `observation`), which "
            f"{model} is a model of; for moving bodies take --model {SCENES[0]}"
        )
    return read_episodes(files)
