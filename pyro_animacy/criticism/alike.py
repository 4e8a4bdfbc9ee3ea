"""Places that bodies take in turn are nobody: what is said of them is said of all of a kind."""

import numpy as np
import xarray as xr

from pyro_animacy.data.bodies import body_stem, is_place


def counted_as(dataset: xr.Dataset | xr.DataArray) -> list[str]:
    """What each body counts as where figures are of bodies: a place as its kind, others by name."""
    names = [str(body) for body in dataset["body"].values]
    return [body_stem(name) if is_place(name) else name for name in names]


def groups(kinds: list[str]) -> dict[str, list[int]]:
    """The bodies that count as each, in the order in which they come."""
    found: dict[str, list[int]] = {}
    for i, kind in enumerate(kinds):
        found.setdefault(kind, []).append(i)
    return found


def pooled(calibration: xr.Dataset, kinds: list[str]) -> xr.Dataset:
    """What `calibrate` found, of all bodies that count as one together.

    Steps of several bodies become steps of one, NaN where another has more; scores and shares
    inside are means over those who are there.
    """
    of = groups(kinds)
    if len(of) == len(kinds):
        return calibration
    parts = [calibration.isel(body=bodies) for bodies in of.values()]
    steps = [
        part[["pit", "pit_drawn"]].stack(one=("step", "body")).drop_vars(["one", "step", "body"])
        for part in parts
    ]
    most = max(part.sizes["one"] for part in steps)
    padded = [part.pad(one=(0, most - part.sizes["one"]), constant_values=np.nan) for part in steps]
    means = [part[["crps", "coverage"]].mean("body", skipna=True) for part in parts]
    found = xr.merge([
        xr.concat(padded, "body").rename(one="step"), xr.concat(means, "body"),
        calibration[["energy_score"]],
    ], compat="override")  # fmt: skip
    independent = [int(part["independent"].sum()) for part in parts]
    found = found.assign_coords(body=list(of), independent=("body", independent))
    return found.transpose(
        *("model", "draw", "level", "step", "trajectory", "horizon", "body", "space")
    ).assign_attrs(calibration.attrs | {"pooled": True})
