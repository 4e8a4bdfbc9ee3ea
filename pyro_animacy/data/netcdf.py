"""netCDF files on disk."""

from pathlib import Path
from typing import Any

import xarray as xr


def save_netcdf(data: xr.Dataset | xr.DataTree, path: str | Path, **options: Any) -> None:
    """Write a netCDF file, by way of memory: HDF5 crashes the process where its disk is full.

    Args:
        data: What to write.
        path: The file.
        **options: Of `xarray.Dataset.to_netcdf`.

    Raises:
        OSError: If it cannot be written, as on a full disk; a part of it may be there.
    """
    Path(path).write_bytes(data.to_netcdf(engine="h5netcdf", **options))
