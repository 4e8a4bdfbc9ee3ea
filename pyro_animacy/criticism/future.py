"""Leave-future-out: a model refitted at several moments of a recording, scored on what came next.

Of a long recording one split in time says little: the scored part may be unlike the rest. With
origins tau_1 < ... < tau_N, the model is fitted to the frames before each, and scored to the next:

    elpd_LFO  =  sum_n  sum over steps t of block n of  log p(a_t | c_t, fitted before tau_n)

(Buerkner, Gabry & Vehtari 2020, section 2.1, with blocks of steps in place of M-step-ahead
predictions and exact refits in place of the importance-sampling approximation, which needs draws of
the parameters).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import xarray as xr

from pyro_animacy.criticism.contenders import AUTOREGRESSION, TAKEN
from pyro_animacy.criticism.elpd import compare_elpd, elpd, elpd_baselines, elpd_data
from pyro_animacy.criticism.verdicts import baseline_name
from pyro_animacy.data.trajectories import FEW_RECORDINGS, split
from pyro_animacy.errors import ConfigError, RunError
from pyro_animacy.infer.config import FitConfig, parse_config
from pyro_animacy.infer.fit import fit, resume
from pyro_animacy.infer.run import Run
from pyro_animacy.infer.settings import CONFIG, read_settings

if TYPE_CHECKING:  # it takes long to load
    from arviz_stats.utils import ELPDData

FUTURE = 0.5  # share of the frames that lies after the first origin


def expanding(dataset: xr.Dataset, origins: int) -> list[tuple[xr.Dataset, float]]:
    """Cut recordings in time: what is known up to the end of each block, and the block's share.

    The second half of the frames makes N blocks of the same length. `split` holds exactly the last
    share of each Dataset out, which is block n; what is before it ends where block n - 1 ends. So
    the blocks share no frame, together are the second half, and none is in the part that its own
    model is fitted to. Steps are scored where their context lies in the block.

    Args:
        dataset: Recordings, fewer than five, which `split` cuts in time.
        origins: N.

    Returns:
        (Dataset, share held out) of each origin, the earliest first.

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
    known, block = [], FUTURE / origins
    for n in reversed(range(origins)):
        share = block / (1 - FUTURE + block * (n + 1))
        known.append((dataset, share))
        dataset = split(dataset, share)[0]
    return known[::-1]


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
        config: Options; the share held out is set by the origins.
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
    for n, (known, share) in enumerate(expanding(dataset, origins), 1):
        here = dataclasses.replace(config, train=dataclasses.replace(config.train, heldout=share))
        path = Path(out) / f"origin_{n}"
        if (path / CONFIG).is_file():
            if parse_config(read_settings(path)) != here:
                raise RunError(f"{path}: a fit with other options; choose another --out")
            run = resume(path, known, progress=progress)
        else:
            run = fit(known, here, out=path, overwrite=path.exists(), progress=progress)
        found.append((run, run.heldout(known)))
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
