"""Contenders on the same held-out recordings: their log densities and forecasts, side by side."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import xarray as xr

from pyro_animacy.criticism.elpd import compare_elpd, elpd, elpd_baselines
from pyro_animacy.criticism.forecasts import (
    MODEL,
    RECORDED,
    displacement_errors,
    forecast_all,
    frames_ahead,
    frames_given,
    frames_left,
)
from pyro_animacy.criticism.verdicts import baseline_name
from pyro_animacy.data.schema import pieces
from pyro_animacy.data.trajectories import split_at_gaps
from pyro_animacy.errors import ConfigError, how_many
from pyro_animacy.infer.run import Run, check_kind, suited
from pyro_animacy.infer.score import BASELINE_ORDERS, least_context
from pyro_animacy.models.linear_gaussian import EACH

if TYPE_CHECKING:  # it takes long to load
    from arviz_stats.utils import ELPDData

SECONDS = (1.0, 2.0, 4.0)  # horizons of the forecast table; see `frames_ahead`
BEST_OF = 20  # draws of which minADE and minFDE take the best
AUTOREGRESSION = "autoregression"  # of leave-future-out, where its order may change
TAKEN = {  # not for runs: the tables have these already
    *("steps", AUTOREGRESSION),
    *(baseline_name(f"constant_velocity{of}") for of in ("", EACH)),
    *(baseline_name(f"ar{k}{of}") for k in BASELINE_ORDERS for of in ("", EACH)),
}


@dataclass(frozen=True)
class Ranking:
    """How contenders compare on the same held-out recordings.

    Attributes:
        table: By log density, best first; see `compare_elpd`.
        elpds: ELPDData of each contender, of the same units.
        forecasts: A row a contender and horizon: ``contender``, ``seconds`` (those of the whole
            frames nearest to what was asked for, or to 1, 2 and 4 s; of 1, 2 and 4 frames where
            there is less than one a second), ``ADE``, ``FDE``, ``minADE_20``, ``minFDE_20`` in data
            units; no rows where no horizon fits.
        runs: Names of the runs among the contenders; the others are baselines of the first.
        units: Of positions, for people to read.
        future: As ``table``, by leave-future-out; None where it was not asked for.
        squared: Names of the runs trained on the squared error, not on the density.
        windows: Number of windows forecast.
    """

    table: pd.DataFrame
    elpds: Mapping[str, ELPDData]
    forecasts: pd.DataFrame
    runs: tuple[str, ...]
    units: str
    future: pd.DataFrame | None = None
    squared: tuple[str, ...] = ()
    windows: int = 0

    @property
    def pointwise(self) -> pd.DataFrame:
        """Log density (nats) and k-hat of each contender in each unit, with its steps."""
        first = next(iter(self.elpds.values())).elpd_i
        columns = {"steps": first["steps"].to_numpy()}
        for name, one in self.elpds.items():
            columns[name] = one.elpd_i.to_numpy()
            if one.pareto_k is not None:
                columns[f"k-hat {name}"] = one.pareto_k.to_numpy()
        return pd.DataFrame(columns, index=pd.Index(first["unit"].to_numpy(), name="unit"))


def compare_runs(
    runs: Sequence[Run],
    dataset: xr.Dataset,
    *,
    draws: int = 256,
    forecast_draws: int = 100,
    windows: int = 100,
    horizons: Sequence[float] | None = None,
    seed: int = 0,
    progress: bool = True,
) -> Ranking:
    """Rank runs, constant velocity and an autoregression on recordings none was fitted to.

    A run trained on the squared error was not trained on the density that ranks it here, that of
    its policy with its fixed scale: the forecasts are the fairer measure of it.

    Args:
        runs: One or more; the baselines are those of the first.
        dataset: Recordings that no run was fitted to, such as `common_heldout`.
        draws: S, draws of the latent at each step for the log density.
        forecast_draws: Draws of each forecast, at least 20.
        windows: Windows forecast at most.
        horizons: Seconds ahead at which forecasts are compared; by default 1, 2 and 4, as far as
            recordings go on for so long.
        seed: Seeds the forecasts.
        progress: Show progress bars.

    Raises:
        ConfigError: If the runs cannot be compared with each other, or an option cannot be used.
        DataError: If the recordings do not suit the runs or are too short.
        RunError: If the first run has no baselines.
    """
    names = run_names(runs)
    comparable(runs)
    given = frames_given(runs, dataset)
    whole = dataset
    if min(run.card.parts for run in runs) == 1:
        # Where bodies go missing, runs of different histories would be given different windows.
        whole = split_at_gaps(dataset, given + 1)
    ahead = _horizons(horizons, whole, given)
    context = least_context(*(run.card.config["history"] for run in runs))
    elpds = {
        name: elpd(run, dataset, context=context, draws=draws, progress=progress)
        for name, run in zip(names, runs, strict=True)
    }
    baselines = elpd_baselines(runs[0], dataset, context=context)
    elpds |= {baseline_name(name): one for name, one in baselines.items()}
    forecasts, count = _forecasts(
        dict(zip(names, runs, strict=True)), whole, given, ahead, forecast_draws, windows, seed,
        progress,
    )  # fmt: skip
    units = next((run.card.units for run in runs if run.card.units != "unknown"), "data units")
    squared = [run.card.config["likelihood"] == "squared_error" for run in runs]
    return Ranking(
        compare_elpd(elpds), elpds, forecasts, names, units, windows=count,
        squared=tuple(name for name, one in zip(names, squared, strict=True) if one),
    )  # fmt: skip


def run_names(runs: Sequence[Run]) -> tuple[str, ...]:
    """The runs' folders, by as many of their last parts as tell them and the baselines apart.

    Raises:
        ConfigError: If there are none, or two are the same folder.
    """
    if not runs:
        raise ConfigError("no runs given; give the folder of at least one fit")
    parts = [run.path.resolve().parts for run in runs]
    for i, one in enumerate(parts):
        if one in parts[:i]:
            raise ConfigError(f"{runs[i].path}: given twice; give each run once")
    longest = max(len(one) for one in parts)
    names = (["/".join(one[-n:]) for one in parts] for n in range(1, longest + 1))
    return tuple(next(some for some in names if len({*some} - TAKEN) == len(some)))


def comparable(runs: Sequence[Run]) -> None:
    """Check that the runs describe the same kind of scene.

    Raises:
        ConfigError: If one is of a model of episodes, or the number of bodies, the rate or the
            units differ; the message names them.
    """
    for run in runs:
        check_kind(run.card, "scenes", run.path)
    first = runs[0]
    for run in runs[1:]:
        one, other = first.card, run.card
        what = ""
        if len(one.bodies) != len(other.bodies):
            what = f"{how_many(len(other.bodies), 'body')}, {first.path} of {len(one.bodies)}"
        elif abs(one.fps - other.fps) > 0.01 * one.fps:
            what = f"{other.fps:g} frames a second, {first.path} of {one.fps:g}"
        elif one.units != other.units and "unknown" not in (one.units, other.units):
            what = f"recordings in {other.units}, {first.path} in {one.units}"
        if what:
            raise ConfigError(
                f"{run.path} is a model of {what}: only models of the same bodies, rate and units "
                "can be compared"
            )


def common_heldout(runs: Sequence[Run], recordings: Sequence[xr.Dataset]) -> xr.Dataset:
    """The frames that every run held out of its recordings, which must be the same for all.

    Args:
        runs: The runs.
        recordings: Of each run, its own, read as for its fit.

    Raises:
        ConfigError: If the recordings differ, or no frames were held out by all.
    """
    comparable(runs)
    parts = [run.heldout(own) for run, own in zip(runs, recordings, strict=True)]
    common = parts[0]
    for run, other in zip(runs[1:], parts[1:], strict=True):
        elsewhere = (
            f"{runs[0].path} and {run.path} were fitted to different recordings; give some that "
            "none was fitted to: --recordings FILE"
        )
        if set(common["body"].to_numpy()) != set(other["body"].to_numpy()):
            raise ConfigError(elsewhere)
        other = other.sel(body=common["body"].to_numpy())
        names = common["trajectory"].to_numpy()
        there = pd.Index(other["trajectory"].to_numpy()).get_indexer(names)
        rows = np.flatnonzero(there >= 0)
        start = common["start"].to_numpy()[rows], other["start"].to_numpy()[there[rows]]
        length = common["length"].to_numpy()[rows], other["length"].to_numpy()[there[rows]]
        first = np.maximum(*start)
        last = np.minimum(start[0] + length[0], start[1] + length[1])
        some = last - first >= 2
        if not some.any():
            raise ConfigError(
                f"{runs[0].path} and {run.path} held out no frame in common; give recordings that "
                "none was fitted to: --recordings FILE"
            )
        mine, theirs = (
            pieces(part, which[some], (first - begin)[some], (last - begin)[some])
            for part, which, begin in ((common, rows, start[0]), (other, there[rows], start[1]))
        )
        # The positions alone: rates that were estimated differ in the last digits of the times.
        x, y = (part["position"].to_numpy() for part in (mine, theirs))
        if not np.array_equal(x, y, equal_nan=True):
            raise ConfigError(elsewhere)
        finest, other_finest = (float(part["resolution"].min()) for part in (mine, theirs))
        if not np.isclose(finest, other_finest, rtol=0.01):
            raise ConfigError(
                f"{runs[0].path} and {run.path} take other resolutions for the recordings' "
                f"({finest:g} and {other_finest:g}), so that their densities are of different "
                "data; fit again with the same --resolution"
            )
        common = mine
    return common


def _horizons(asked: Sequence[float] | None, dataset: xr.Dataset, context: int) -> list[int]:
    """Frames ahead: those of SECONDS that fit, or all that were asked for.

    Raises:
        ConfigError: If one that was asked for does not fit, or is not above 0.
    """
    fps, left = float(dataset.attrs["fps"]), frames_left(dataset, context)
    if asked is None:
        return frames_ahead(SECONDS, fps, left)
    said = f"horizons are {', '.join(f'{s:g}' for s in asked) or 'none'}"
    if not asked or not all(0 < s < math.inf for s in asked):
        raise ConfigError(f"{said}; give seconds, each above 0")
    found = sorted({max(1, round(s * fps)) for s in asked})
    if found[-1] > left:
        raise ConfigError(
            f"{said} s; half of all frames are of recordings that go on for no more than "
            f"{max(left, 0) / fps:.3g} s after the {how_many(context, 'frame')} that are given: "
            "ask for less"
        )
    return found


def _forecasts(
    runs: Mapping[str, Run], dataset: xr.Dataset, context: int, horizons: Sequence[int],
    draws: int, most: int, seed: int, progress: bool,
) -> tuple[pd.DataFrame, int]:  # fmt: skip
    """Errors at each horizon, of every run and baseline; and of how many windows."""
    columns = ["contender", "seconds", "ADE", "FDE", f"minADE_{BEST_OF}", f"minFDE_{BEST_OF}"]
    if not horizons:
        return pd.DataFrame(columns=columns), 0
    fps = float(dataset.attrs["fps"])
    rows: list[list[object]] = []
    for i, (name, run) in enumerate(runs.items()):
        found = forecast_all(
            run, suited(run.card, dataset), context=context, horizon=horizons[-1],
            draws=draws, most=most, seed=seed, baselines=i == 0, progress=progress,
        )  # fmt: skip
        recorded = found[RECORDED].to_numpy()
        for key, position in found.items():
            if key == RECORDED:
                continue
            errors = displacement_errors(position.to_numpy(), recorded, BEST_OF).values()
            contender = name if key == MODEL else baseline_name(key)
            for h in horizons:
                here = [float(error[h - 1]) for error in errors]  # ADE, FDE and their best of k
                rows.append([contender, h / fps, *here])
    rows.sort(key=lambda row: row[0] not in runs)  # the runs first, then the baselines
    return pd.DataFrame(rows, columns=columns), len(recorded)
