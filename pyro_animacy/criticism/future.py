"""Leave-future-out: a model refitted at several moments of a recording, scored on what came next.

Of a long recording one split in time says little: the scored part may be unlike the rest. With
origins tau_1 < ... < tau_N, the model is fitted to the frames before each, and scored to the next:

    elpd_LFO  =  sum_n  sum over steps t of block n of  log p(a_t | c_t, fitted before tau_n)

(Buerkner, Gabry & Vehtari 2020, section 2.1, with blocks of steps in place of M-step-ahead
predictions and exact refits in place of the importance-sampling approximation, which needs draws of
the parameters).
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import pandas as pd
import xarray as xr

from pyro_animacy.criticism.contenders import AUTOREGRESSION, TAKEN
from pyro_animacy.criticism.elpd import compare_elpd, elpd, elpd_baselines, elpd_data
from pyro_animacy.criticism.verdicts import baseline_name
from pyro_animacy.data.schema import pieces
from pyro_animacy.data.trajectories import FEW_RECORDINGS
from pyro_animacy.errors import ConfigError, DataError, RunError
from pyro_animacy.infer.config import FitConfig, parse_config
from pyro_animacy.infer.fit import fit, resume
from pyro_animacy.infer.recordings import fingerprint
from pyro_animacy.infer.run import Run
from pyro_animacy.infer.settings import CONFIG, read_settings

if TYPE_CHECKING:  # it takes long to load
    from arviz_stats.utils import ELPDData

FUTURE = 0.5  # share of the frames that lies after the first origin


def expanding(dataset: xr.Dataset, origins: int) -> list[tuple[xr.Dataset, xr.Dataset]]:
    """Cut recordings in time: what comes before each origin, and the block that comes after.

    The second half of a recording's frames makes N blocks of as many, from moment to moment of its
    own frame axis: in a recording with gaps, `split` would cut every unbroken stretch, so that what
    is known would go on after the block. The blocks share no frame and together are the second
    half. Steps are scored where their context lies in the block.

    Args:
        dataset: Recordings, fewer than five.
        origins: N.

    Returns:
        (before it, the block after it) of each origin, the earliest first.

    Raises:
        ConfigError: If there are no origins, or five recordings or more.
        DataError: If a block would be empty.
    """
    if origins < 1:
        raise ConfigError(f"leave-future-out at {origins} origins; expected at least 1")
    recordings = len(np.unique(dataset["recording"].to_numpy()))
    if recordings >= FEW_RECORDINGS:
        raise ConfigError(
            f"leave-future-out is for one to four long recordings; of {recordings}, whole ones are "
            "held out, which tells more: leave it out"
        )
    moments = _moments(dataset, np.linspace(1 - FUTURE, 1, origins + 1))
    return [
        (_between(dataset, dataset["start"].to_numpy(), tau), _between(dataset, tau, end))
        for tau, end in itertools.pairwise(moments)
    ]


def _moments(dataset: xr.Dataset, shares: npt.NDArray[np.float64]) -> npt.NDArray[np.int64]:
    """Frames of each trajectory's recording before which these shares of it lie.

    Args:
        dataset: Recordings.
        shares: (share,) of the different frames of a recording, from 0 to 1.

    Returns:
        (share, trajectory) frames on the recordings' axes.
    """
    recording, start = dataset["recording"].to_numpy(), dataset["start"].to_numpy()
    end = start + dataset["length"].to_numpy()
    found = np.zeros((len(shares), len(start)), np.int64)
    for name in np.unique(recording):
        own = recording == name
        frames = [np.arange(s, e) for s, e in zip(start[own], end[own], strict=True)]
        frame = np.unique(np.concatenate(frames))
        at = np.rint(shares * len(frame)).astype(int)
        found[:, own] = np.append(frame, frame[-1] + 1)[at, None]
    return found


def _between(
    dataset: xr.Dataset, first: npt.NDArray[np.int64], end: npt.NDArray[np.int64]
) -> xr.Dataset:
    """The frames from ``first`` to before ``end``, each (trajectory,) on the recordings' axes.

    Raises:
        DataError: If there is nothing.
    """
    start, length = dataset["start"].to_numpy(), dataset["length"].to_numpy()
    begin, last = (np.clip(at - start, 0, length) for at in (first, end))
    rows = np.flatnonzero(last - begin >= 2)
    if not len(rows):
        raise DataError(
            "leave-future-out: no trajectory of 2 frames is left before or after an origin; give "
            "longer recordings, or fewer origins"
        )
    return pieces(dataset, rows, begin[rows], last[rows])


def refits(
    config: FitConfig,
    dataset: xr.Dataset,
    *,
    origins: int,
    out: str | Path,
    progress: bool = True,
) -> list[tuple[Run, xr.Dataset]]:
    """Fit a model before each origin; fits that are there are taken, stopped ones go on.

    Args:
        config: Options; what is held out is the block after an origin, whatever the share.
        dataset: Recordings.
        origins: Number of refits.
        out: Folder of the fits, ``origin_1``, ``origin_2``, ...
        progress: Show progress bars.

    Returns:
        Each run, with the block after its origin.

    Raises:
        ConfigError: If the recordings cannot be cut so.
        RunError: If a fit of other options is in the folder.
    """
    found = []
    for n, (known, block) in enumerate(expanding(dataset, origins), 1):
        path = Path(out) / f"origin_{n}"
        if (path / CONFIG).is_file():
            settings = read_settings(path)
            if parse_config(settings) != config or settings.get("heldout") != fingerprint(block):
                raise RunError(
                    f"{path}: a fit with other options, or before another moment; choose another "
                    "--out"
                )
            run = resume(path, known, heldout=block, progress=progress)
        else:
            new = path.exists()
            run = fit(known, config, out=path, overwrite=new, heldout=block, progress=progress)
        found.append((run, block))
    return found


def leave_future_out(
    config: FitConfig,
    dataset: xr.Dataset,
    *,
    origins: int = 3,
    out: str | Path,
    context: int | None = None,
    draws: int = 256,
    progress: bool = True,
) -> dict[str, ELPDData]:
    """Log density of each next block under a model refitted before it, and under its baselines.

    Args:
        config: Options of the fits.
        dataset: Recordings, fewer than five.
        origins: N, the number of refits; each takes as long as the fit of a run.
        out: Folder of the fits; those already there are used.
        context: Frames before the first step scored in a block, as for `elpd`.
        draws: S, draws of the latent at each step.
        progress: Show progress bars.

    Returns:
        ``model``, ``constant_velocity`` and ``autoregression`` (refitted as well), summed as
        ELPDData over all blocks.

    Raises:
        ConfigError: If the recordings cannot be cut so.
        DataError: If a block is too short to score.
        RunError: If a fit of other options is in the folder.
    """
    parts: dict[str, list[ELPDData]] = {}
    for run, block in refits(config, dataset, origins=origins, out=out, progress=progress):
        velocity, autoregression = elpd_baselines(run, block, context=context).values()
        found = {
            "model": elpd(run, block, context=context, draws=draws, progress=progress),
            "constant_velocity": velocity,
            AUTOREGRESSION: autoregression,
        }
        for name, one in found.items():
            parts.setdefault(name, []).append(one)
    return {name: _joined(several) for name, several in parts.items()}


def _joined(parts: list[ELPDData]) -> ELPDData:
    """The blocks' units one after another."""
    values = xr.concat([part.elpd_i for part in parts], "unit", combine_attrs="drop")
    errors = [part.elpd_i.attrs["monte_carlo_error"] for part in parts]
    values.attrs = {"units": "nats", "monte_carlo_error": float(np.hypot.reduce(errors))}
    k_hat = None
    if parts[0].pareto_k is not None:
        k_hat = xr.concat([part.pareto_k for part in parts], "unit")
    return elpd_data(values, k_hat, parts[0].n_samples)


def compare_future(
    configs: Mapping[str, FitConfig],
    dataset: xr.Dataset,
    *,
    origins: int = 3,
    out: str | Path,
    progress: bool = True,
) -> pd.DataFrame:
    """Rank models by leave-future-out, beside the baselines refitted in the same way.

    Args:
        configs: Options of each model, by name; it is refitted in ``out``/name.
        dataset: Recordings, fewer than five.
        origins: N, the number of refits of each.
        out: Folder of the fits.
        progress: Show progress bars.

    Returns:
        The table of `compare_elpd`.

    Raises:
        ConfigError: If the recordings cannot be cut so, or a model has the name of a baseline.
        DataError: If a block is too short to score.
        RunError: If a fit of other options is in the folder.
    """
    if taken := TAKEN.intersection(configs):
        raise ConfigError(
            f"a model is called {min(taken)!r}, which the tables have already, as of a baseline; "
            "give it another name"
        )
    expanding(dataset, origins)  # fail now, not after the first fits
    context = max(config.model.history for config in configs.values())
    found: dict[str, ELPDData] = {}
    baselines: dict[str, ELPDData] = {}
    for name, config in configs.items():
        here = leave_future_out(
            config, dataset, origins=origins, out=Path(out) / name, context=context,
            progress=progress,
        )  # fmt: skip
        found[name] = here.pop("model")
        baselines = baselines or {baseline_name(key): one for key, one in here.items()}
    return compare_elpd(found | baselines)
