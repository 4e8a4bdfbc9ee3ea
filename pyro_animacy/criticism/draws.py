"""Draws as an `xarray.DataTree` in ArviZ's schema."""

from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr

from pyro_animacy.errors import RunError

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
    kept = {"fps": float(observed.attrs["fps"]), "units": str(observed.attrs.get("units", ""))}
    position_attrs = {"units": kept["units"]}
    coords = {name: x[name].to_numpy() for name in DIMS[2:]}
    shape = (1, *position.shape[:3], x.sizes["body"], x.sizes["space"])
    draws = xr.Dataset(
        {"position": (DIMS, position.reshape(shape), position_attrs)},
        coords={"chain": [0], "draw": np.arange(len(position)), **coords},
        attrs=kept,
    )
    about = {n: c for n, c in observed.coords.items() if c.dims in (("trajectory",), ("body",))}
    groups = {
        GROUP[mode]: draws,
        "observed_data": xr.Dataset(
            {"position": (DIMS[2:], x.to_numpy(), position_attrs)}, coords=coords, attrs=kept
        ),
        "constant_data": xr.Dataset(
            {n: (c.dims, c.to_numpy()) for n, c in about.items() if n not in c.dims},
            coords={n: coords[n] for n in ("trajectory", "body")},
        ),
    }
    if latent is not None:
        times = coords["time"][context - 1 : context - 1 + latent.shape[2]]
        groups["posterior"] = xr.Dataset(
            {"latent": (("chain", "draw", "trajectory", "time", "latent_dim"), latent[None])},
            coords={
                "chain": [0], "draw": np.arange(len(latent)), "trajectory": coords["trajectory"],
                "time": times, "latent_dim": np.arange(latent.shape[-1]),
            },
        )  # fmt: skip
    tree = xr.DataTree.from_dict(groups)
    tree.attrs = {"mode": mode, "context": context, **kept, **attrs}
    return tree


def save_draws(tree: xr.DataTree, path: str) -> None:
    """Write draws as netCDF.

    Raises:
        RunError: If the file cannot be written.
    """
    try:
        tree.to_netcdf(path, engine="h5netcdf")
    except OSError as error:
        raise RunError(f"{path}: cannot be written ({error.strerror or error})") from None
