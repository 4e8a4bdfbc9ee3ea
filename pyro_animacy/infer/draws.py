"""Draws as an `xarray.DataTree` in ArviZ's schema."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyro
import xarray as xr
from arviz_base import dict_to_dataset

from pyro_animacy.data.episodes import DIMS as EPISODE_DIMS
from pyro_animacy.data.netcdf import save_netcdf
from pyro_animacy.infer.checkpoint import write_atomically

SAMPLED = ("chain", "draw")
DIMS = (*SAMPLED, "trajectory", "time", "body", "space")
GROUP = {
    "reconstruct": "posterior_predictive",
    "generate": "posterior_predictive",
    "forecast": "predictions",
}


def draws_tree(
    position: npt.NDArray[np.float32],
    observed: xr.Dataset,
    *,
    mode: str,
    context: int,
    latent: npt.NDArray[np.float32] | None = None,
    log_likelihood: npt.NDArray[np.float32] | None = None,
    **attrs: Any,
) -> xr.DataTree:
    """Name the dims of draws and put them beside what was observed.

    Args:
        position: (draw, trajectory, time, body x space) in data units; the first ``context``
            frames are as recorded.
        observed: The recording at the same trajectories and times.
        mode: ``reconstruct``, ``forecast`` or ``generate``.
        context: Frames given.
        latent: (draw, trajectory, time - context, latent), z_t at the time of s_t.
        log_likelihood: (draw, trajectory, time - context, 1), nats of each displacement, at the
            time of the frame it leads to.
        **attrs: Further attributes of the tree.

    Returns:
        Groups ``posterior_predictive`` or ``predictions``, ``observed_data``, ``constant_data``,
        and ``posterior`` and ``log_likelihood`` where these are given. That of `position` has no
        dims of body and space, since it is of all coordinates together, and NaN in the frames
        given.
    """
    x = observed["position"]
    coords: dict[str, npt.NDArray] = {name: x[name].to_numpy() for name in DIMS[2:]}
    kept = {"fps": float(observed.attrs["fps"]), "units": str(observed.attrs.get("units", ""))}
    shape = (1, *position.shape[:3], x.sizes["body"], x.sizes["space"])
    about = {n: c for n, c in observed.coords.items() if c.dims in (("trajectory",), ("body",))}
    constant = {str(n): c for n, c in about.items() if n not in c.dims}
    where = {"position": list(DIMS[2:])}
    group = partial(_group, coords=coords, attrs=kept)
    groups = {
        GROUP[mode]: group({"position": position.reshape(shape)}, where, SAMPLED),
        "observed_data": group({"position": x.to_numpy()}, where),
        "constant_data": group(
            {n: c.to_numpy() for n, c in constant.items()},
            {n: [str(d) for d in c.dims] for n, c in constant.items()},
        ),
    }
    if latent is not None:
        times = coords["time"][context - 1 : context - 1 + latent.shape[2]]
        groups["posterior"] = _latents(latent, coords | {"time": times}, kept)
    if log_likelihood is not None:
        density = np.pad(log_likelihood[..., 0], ((0, 0), (0, 0), (context, 0)),
                         constant_values=np.nan)  # fmt: skip
        groups["log_likelihood"] = group(
            {"position": density[None]}, {"position": list(DIMS[2:4])}, SAMPLED
        )
    tree = xr.DataTree.from_dict(groups)
    for name, dataset in tree.children.items():
        if "position" in dataset and name != "log_likelihood":
            dataset["position"].attrs["units"] = kept["units"]
    tree.attrs = {"mode": mode, "context": context, **kept, **attrs}
    return tree


def episodes_tree(
    drawn: Mapping[str, npt.NDArray],
    observed: xr.Dataset,
    *,
    mode: str,
    context: int,
    latent: npt.NDArray[np.float32] | None = None,
    **attrs: Any,
) -> xr.DataTree:
    """Name the dims of draws of episodes and put them beside what was observed.

    Beyond the end of an episode images are 0 and all else is NaN; ``constant_data`` has its
    ``length``.

    Args:
        drawn: (draw, trajectory, time, ...) of `image` uint8 or `observation`, and of `reward`.
        observed: The episodes, at the same trajectories and times.
        mode: ``reconstruct``, ``forecast`` or ``generate``.
        context: Frames given; those of the draws are as recorded.
        latent: (draw, trajectory, time, latent), z_t at the time of frame t.
        **attrs: Further attributes of the tree.

    Returns:
        Groups as of `draws_tree`.
    """
    frames, fps = observed.sizes["time"], float(observed.attrs["fps"])
    coords: dict[str, npt.NDArray] = {
        "trajectory": observed["trajectory"].to_numpy(), "time": np.arange(frames) / fps
    }  # fmt: skip
    inside = np.arange(frames) < observed["length"].to_numpy()[:, None]
    dims = {name: list(EPISODE_DIMS[name]) for name in drawn}
    recorded = {name: _inside(observed[name].to_numpy(), inside) for name in drawn}
    sampled = {name: _inside(x, inside, 1)[None] for name, x in drawn.items()}
    group = partial(_group, coords=coords, attrs={"fps": fps})
    groups = {
        GROUP[mode]: group(sampled, dims, SAMPLED),
        "observed_data": group(recorded, dims),
        "constant_data": group(
            {"length": observed["length"].to_numpy()}, {"length": ["trajectory"]}
        ),
    }
    if latent is not None:
        groups["posterior"] = _latents(_inside(latent, inside, 1), coords, {"fps": fps})
    tree = xr.DataTree.from_dict(groups)
    for dataset in tree.children.values():
        for name in dataset.data_vars:
            if name == "image":  # most of a picture of a game is flat
                dataset[name].encoding = {"zlib": True, "complevel": 1}
    tree.attrs = {"mode": mode, "context": context, "fps": fps, **attrs}
    return tree


def _inside(x: npt.NDArray, inside: npt.NDArray[np.bool_], first: int = 0) -> npt.NDArray:
    """``x`` where inside (trajectory, time), which is its axis ``first`` and the next, else 0, NaN.

    Nothing is copied where all is inside.
    """
    if inside.all():
        return x
    kept = inside.reshape(*inside.shape, *[1] * (x.ndim - first - 2))
    return np.where(kept, x, x.dtype.type(0 if x.dtype.kind == "u" else np.nan))


def _latents(
    latent: npt.NDArray, coords: dict[str, npt.NDArray], attrs: dict[str, Any]
) -> xr.Dataset:
    """The group of z (draw, trajectory, time, latent)."""
    dims = {"latent": ["trajectory", "time", "latent_dim"]}
    return _group({"latent": latent[None]}, dims, SAMPLED, coords=coords, attrs=attrs)


def _group(
    data: dict[str, npt.NDArray],
    dims: dict[str, list[str]],
    sampled: tuple[str, ...] = (),
    *,
    coords: dict[str, npt.NDArray],
    attrs: dict[str, Any],
) -> xr.Dataset:
    """One group of the tree; the names of sampled dims come before ``dims``."""
    library = {"inference_library": "pyro", "inference_library_version": pyro.__version__}
    named: Any = {"dims": dims, "coords": coords}
    return dict_to_dataset(data, **named, sample_dims=list(sampled), attrs=attrs | library)


def save_draws(tree: xr.DataTree, path: str | Path) -> None:
    """Write draws as netCDF, to a temporary file that takes the place of ``path`` when complete.

    Raises:
        RunError: If the file cannot be written.
    """
    write_atomically(Path(path), lambda to: save_netcdf(tree, to))
