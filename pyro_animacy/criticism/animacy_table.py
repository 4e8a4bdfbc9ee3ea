"""Scores of `animacy` as tables: the mean of each body, and every step in a file."""

from pathlib import Path

import numpy as np
import pandas as pd
import xarray as xr

from pyro_animacy.criticism.alike import counted_as, groups
from pyro_animacy.criticism.animacy import DIMS, MEASURES
from pyro_animacy.criticism.wording import body_name
from pyro_animacy.data.netcdf import save_netcdf
from pyro_animacy.data.schema import VISIT, person_of
from pyro_animacy.errors import ConfigError
from pyro_animacy.infer.checkpoint import write_atomically
from pyro_animacy.infer.score import mean_and_error


def by_body(scores: xr.Dataset) -> pd.DataFrame:
    """Mean of each measure over the steps of each body, and its standard error; of places, of all.

    The standard error is over what is independent: recordings, or stretches of time; see
    `infer.score.independent_groups`.

    Args:
        scores: Of `score_animacy`.

    Returns:
        A row a body; each measure's column is followed by its ``_error``.
    """
    names = [n for n in ("choice", "surprise", "evidence", "interaction") if n in scores]
    rows: dict[str, dict[str, float]] = {}
    for body, several in groups(counted_as(scores)).items():
        rows[body] = {}
        for name in names:
            values = scores[name].isel(body=several).transpose(*DIMS).to_numpy()
            index = np.argwhere(np.isfinite(values))
            mean, error = mean_and_error(values[tuple(index.T)], scores, index[:, :2])
            rows[body] |= {name: mean, f"{name}_error": error}
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("body")


def scores_text(scores: xr.Dataset) -> str:
    """The means of each body, for people to read."""
    table = by_body(scores)
    names = [str(name) for name in table if not str(name).endswith("_error")]
    lines = ["nats per step, mean +- standard error" + "".join(f"{name:>20}" for name in names)]
    for body, row in table.iterrows():
        cells = (f"{row[name]:.3f} +- {row[f'{name}_error']:.3f}" for name in names)
        lines.append(f"  {body_name(body):<35}" + "".join(f"{cell:>20}" for cell in cells))
    if table.isna().any(axis=None):
        lines.append("nan: too few steps; an error needs two recordings, or two stretches of time")
    return "\n".join(lines)


def save_scores(scores: xr.Dataset, path: str | Path) -> int:
    """Write the scores: ``.nc`` as they are, ``.csv`` as a long table of one row a body and step.

    Columns of the table: trajectory, label (where there are any), body, person (where bodies are
    places that others take in turn), frame (on the axis of the recording as it was read, which
    downsampling thins), time (that frame in seconds), and the measures.

    Returns:
        The number of steps written, counted by body.

    Raises:
        ConfigError: If the name ends otherwise.
        RunError: If the file cannot be written.
    """
    path = check_name(path)
    if path.suffix == ".nc":
        write_atomically(path, lambda to: save_netcdf(scores, to))
        return int(scores["evidence"].notnull().sum())
    names = [name for name in MEASURES if name in scores]
    frame = scores["start"] + xr.DataArray(np.arange(scores.sizes["time"]), dims="time")
    wide = scores.assign(frame=frame)
    if persons := ["person"] if VISIT in scores.dims else []:
        wide = wide.assign(person=(DIMS, person_of(scores))).drop_dims(VISIT)
    wide = wide.reset_coords()
    labels = ["label"] if "label" in wide else []
    table = wide.to_dataframe(dim_order=list(DIMS)).reset_index().dropna(subset=["evidence"])
    table["time"] = table["frame"] / float(scores.attrs["fps"])
    table = table[["trajectory", *labels, "body", *persons, "frame", "time", *names]]
    write_atomically(path, lambda to: table.to_csv(to, index=False, float_format="%.6g"))
    return len(table)


def check_name(path: str | Path) -> Path:
    """The path of a file of scores, if its name ends as one.

    Raises:
        ConfigError: If it does not end in .csv or .nc.
    """
    if Path(path).suffix not in (".nc", ".csv"):
        raise ConfigError(f"--out {path}: expected a name that ends in .csv or .nc")
    return Path(path)
