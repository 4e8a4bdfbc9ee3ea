"""Draws as an `xarray.DataTree` in ArviZ's schema."""

from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr
from arviz_base import dict_to_dataset

from pyro_animacy.infer.checkpoint import write_atomically

DIMS = ("chain", "draw", "trajectory", "time", "body", "space")
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
        **attrs: Further attributes of the tree.

    Returns:
        Groups ``posterior_predictive`` or ``predictions``, ``observed_data``, ``constant_data``,
        and ``posterior`` where there are latents.
    """
    x = observed["position"]
    coords: dict[str, npt.NDArray] = {name: x[name].to_numpy() for name in DIMS[2:]}
    kept = {"fps": float(observed.attrs["fps"]), "units": str(observed.attrs.get("units", ""))}
    library = {"inference_library": "pyro", "inference_library_version": version("pyro-ppl")}
    shape = (1, *position.shape[:3], x.sizes["body"], x.sizes["space"])
    about = {n: c for n, c in observed.coords.items() if c.dims in (("trajectory",), ("body",))}
    constant = {str(n): c for n, c in about.items() if n not in c.dims}

    def group(data: dict, dims: dict, sampled: bool, **others: npt.NDArray) -> xr.Dataset:
        sample_dims = ["chain", "draw"] if sampled else []
        return dict_to_dataset(
            data, dims=dims, coords=coords | others, sample_dims=sample_dims, attrs=kept | library
        )

    where = {"position": list(DIMS[2:])}
    groups = {
        GROUP[mode]: group({"position": position.reshape(shape)}, where, True),
        "observed_data": group({"position": x.to_numpy()}, where, False),
        "constant_data": group(
            {n: c.to_numpy() for n, c in constant.items()},
            {n: [str(d) for d in c.dims] for n, c in constant.items()},
            False,
        ),
    }
    if latent is not None:
        dims = {"latent": ["trajectory", "time", "latent_dim"]}
        times = coords["time"][context - 1 : context - 1 + latent.shape[2]]
        groups["posterior"] = group({"latent": latent[None]}, dims, True, time=times)
    tree = xr.DataTree.from_dict(groups)
    for dataset in tree.children.values():
        if "position" in dataset:
            dataset["position"].attrs["units"] = kept["units"]
    tree.attrs = {"mode": mode, "context": context, **kept, **attrs}
    return tree


def save_draws(tree: xr.DataTree, path: str | Path) -> None:
    """Write draws as netCDF, to a temporary file that takes the place of ``path`` when complete.

    Raises:
        RunError: If the file cannot be written.
    """
    write_atomically(Path(path), lambda to: tree.to_netcdf(to, engine="h5netcdf"))
