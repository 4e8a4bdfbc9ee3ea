"""Held-out log densities of several models on the same steps, as ArviZ's `ELPDData`.

The held-out log density of contender m on unit i is

    elpd_mi = sum over its steps t of  log p_m(a_t | c_t)

(Vehtari, Gelman & Gabry 2017, equation 1, for future data in place of left-out data). The
parameters are point estimates fitted without any held-out frame: leaving one held-out unit out
changes nothing in them, so the leave-one-out density of a unit is its density, and arviz_stats'
`ELPDData` and `compare` apply as they are. Pareto smoothing enters through the latent alone:
p_m(a_t | c_t) = E_r[ pi(a_t | c_t, z) p(z | c_t) / r(z) ] is a mean of importance weights.

A unit is a recording or, where there are few, a stretch of time of one: units are nearly
independent, steps are not. Of more than 5,000 steps so many are scored, evenly spaced, and sums
are over these. Every contender is scored on the same steps and on the same draw of
dequantisation noise, in nats in data units.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
import xarray as xr

from pyro_animacy.criticism.forecasts import rivals
from pyro_animacy.criticism.importance import Psis, k_hat_threshold, psis_of_parts
from pyro_animacy.data.windows import Windows, dequantised, evenly
from pyro_animacy.errors import ConfigError
from pyro_animacy.infer.run import Run, check_kind, suited
from pyro_animacy.infer.score import (
    DEQUANTISE_HELDOUT,
    independent_groups,
    of_baselines,
    scoring_windows,
)
from pyro_animacy.infer.steps import window_steps
from pyro_animacy.progress import tqdm

if TYPE_CHECKING:  # it takes long to load
    from arviz_stats.utils import ELPDData

Floats = npt.NDArray[np.float64]
MOST_STEPS = 5_000  # scored; of more, this many are taken evenly spaced
CHUNK = 65_536  # steps x draws at once
K_HAT_QUANTILE = 0.95  # of a unit's steps
FLOOR = -100.0  # nats below the best of a unit, beneath which stacking sees no difference


def elpd(
    run: Run,
    dataset: xr.Dataset,
    *,
    context: int | None = None,
    draws: int = 256,
    progress: bool = True,
) -> ELPDData:
    """Held-out log density of each unit under a run's model.

    z_t is drawn from both posterior and prior (the defensive mixture of `draw_steps`): no weight
    then exceeds twice the policy's density, whatever the guide has missed.

    Args:
        run: The fitted run.
        dataset: Recordings that it was not fitted to.
        context: Frames before the first step scored: the longest history of all contenders. By
            default the run's own.
        draws: S, draws of the latent at each step; at least 25.
        progress: Show a progress bar.

    Returns:
        ``elpd_i`` (unit,) in nats, data units, with the number of steps as coordinate ``steps``;
        ``pareto_k`` (unit,), the k-hat that 95 % of the unit's steps do not exceed (the largest of
        hundreds of steps is always large, and the sum hardly feels it); ``warning`` where one is
        above ``good_k``. ``elpd_i.attrs`` holds the Monte Carlo error of ``elpd``, of models
        whose latents remember a part of it, since particles share a past. ``p`` is NaN: nothing is
        averaged over parameters.

    Raises:
        ConfigError: If there are fewer than 25 draws, too few for a tail.
        DataError: If the recordings do not suit the model or are too short.
    """
    windows, which = _steps(run, dataset, context)
    found: list[Psis] = []
    seen: list[np.ndarray] = []
    with torch.random.fork_rng(), tqdm(
        total=len(which), desc=f"elpd {run.path.name}", unit="step", disable=not progress, delay=1
    ) as bar:  # fmt: skip
        torch.manual_seed(DEQUANTISE_HELDOUT)
        for part, steps in window_steps(
            run.guide, windows, which, draws, "defensive", chunk=CHUNK
        ):  # fmt: skip
            bar.update(len(part))
            found.append(psis_of_parts(steps.log_weight[:, -1].cpu().numpy()))
            seen.append(steps.seen[-1].sum(-1).cpu().numpy())
    smoothed = Psis(*(np.concatenate(parts) for parts in zip(*found, strict=True)))
    density = smoothed.log_mean - run.card.scale.log_jacobian(np.concatenate(seen))
    return _by_unit(density, dataset, windows, which, smoothed, draws)


def elpd_baselines(
    run: Run, dataset: xr.Dataset, *, context: int | None = None
) -> dict[str, ELPDData]:
    """Held-out log density of each unit under a run's baselines: exact, nothing is drawn.

    Args:
        run: The fitted run, whose recordings the baselines were fitted to.
        dataset: Recordings that it was not fitted to.
        context: As for `elpd`.

    Returns:
        Constant velocity and the autoregression of `rivals`, by name.

    Raises:
        RunError: If the run has no baselines.
        DataError: If the recordings do not suit the model or are too short.
    """
    windows, which = _steps(run, dataset, context)
    found = of_baselines(rivals(run, dataset), windows, which)
    return {
        name: _by_unit(density.numpy(), dataset, windows, which) for name, density in found.items()
    }


def _steps(run: Run, dataset: xr.Dataset, context: int | None) -> tuple[Windows, torch.Tensor]:
    """Windows of one step in the run's units, and which are scored: the same for every run."""
    check_kind(run.card, "scenes", run.path)
    context = context or run.card.config["history"]
    # The noise is drawn before the bodies are put in the run's order: each body has its own.
    noisy = suited(run.card, dequantised(dataset, DEQUANTISE_HELDOUT))
    windows = scoring_windows(noisy, run.card.scale, context, run.card.parts)
    return windows, torch.from_numpy(evenly(len(windows), MOST_STEPS))


def _by_unit(
    log_density: Floats,
    dataset: xr.Dataset,
    windows: Windows,
    which: torch.Tensor,
    smoothed: Psis | None = None,
    draws: int = 1,
) -> ELPDData:
    """Sum log densities (step,) over units."""
    index = np.stack(windows.places(which), 1)
    member = independent_groups(dataset, index)
    steps = np.bincount(member)
    predicted = index + np.array([0, windows.context])
    coords = {"unit": _unit_names(dataset, predicted, member), "steps": ("unit", steps)}
    values = xr.DataArray(np.bincount(member, log_density), coords, ("unit",), name="elpd_i")
    error = 0.0 if smoothed is None else np.sqrt(np.square(smoothed.standard_error).sum())
    values.attrs = {"units": "nats", "monte_carlo_error": float(error)}
    largest = None
    if smoothed is not None:
        each = [np.quantile(smoothed.k_hat[member == i], K_HAT_QUANTILE, method="higher")
                for i in range(len(steps))]  # fmt: skip
        largest = xr.DataArray(np.array(each), coords, ("unit",), name="pareto_k")
    return elpd_data(values, largest, draws)


def elpd_data(values: xr.DataArray, k_hat: xr.DataArray | None, draws: int) -> ELPDData:
    """ELPDData of log densities (unit,): their sum, and its standard error sqrt(n Var elpd_i)."""
    from arviz_stats.utils import ELPDData

    n = len(values)
    good = k_hat_threshold(draws) if k_hat is not None else 0.7
    return ELPDData(
        kind="loo", elpd=float(values.sum()), p=np.nan, n_samples=draws, n_data_points=n,
        se=float(np.sqrt(n * values.var(ddof=1))) if n > 1 else np.nan, scale="log", good_k=good,
        warning=k_hat is not None and bool((k_hat > good).any()), elpd_i=values, pareto_k=k_hat,
    )  # fmt: skip


def _unit_names(
    dataset: xr.Dataset, index: npt.NDArray[np.int64], member: npt.NDArray[np.int64]
) -> list[str]:
    """The recording of each unit and, where several units are of one, the frames it predicts.

    Args:
        dataset: Recordings.
        index: (step, 2) trajectory and predicted frame.
        member: (step,) number of its unit.
    """
    recording = dataset["recording"].to_numpy()[index[:, 0]].astype(str)
    frame = dataset["start"].to_numpy()[index[:, 0]] + index[:, 1]
    _, first = np.unique(member, return_index=True)
    names = recording[first]
    once = np.array([np.sum(names == name) == 1 for name in names])
    low, high = np.full(len(names), np.iinfo(np.int64).max), np.zeros(len(names), np.int64)
    np.minimum.at(low, member, frame)
    np.maximum.at(high, member, frame)
    return [n if alone else f"{n}, frames {a} to {b}"
            for n, alone, a, b in zip(names, once, low, high, strict=True)]  # fmt: skip


def compare_elpd(elpds: Mapping[str, ELPDData]) -> pd.DataFrame:
    """Rank contenders by held-out log density, with paired errors and stacking weights.

    arviz_stats' ``compare``: with d_i = elpd_best,i - elpd_mi over n units, ``elpd_diff`` is
    sum d_i and ``dse`` is sqrt(n Var d_i) (Vehtari et al. 2017, equation 24), by n - 1 as units may
    be few. The weights maximise
    sum_i log sum_m w_m exp(elpd_mi) (stacking; Yao et al. 2018, equation 3). They do not change
    when a constant is added to a unit of all contenders: each unit is shifted by its best, and
    what is more than 100 nats below it is held there, so that no density underflows.

    Args:
        elpds: By the contenders' names; of the same units.

    Returns:
        A row a contender, best first: ``rank``, ``elpd``, ``elpd_diff`` (0 for the best, else
        positive), ``dse``, ``se``, ``weight``, ``warning``, in nats; and per step
        ``elpd_per_step``, ``diff_per_step``, ``dse_per_step``. Errors of one unit are NaN.

    Raises:
        ConfigError: If the units differ.
    """
    from arviz_stats import compare

    first = next(iter(elpds.values()))
    for name, other in elpds.items():
        if not other.elpd_i.coords.to_dataset().identical(first.elpd_i.coords.to_dataset()):
            raise ConfigError(f"{name}: scored on other steps than {next(iter(elpds))}")
    if len(elpds) == 1:
        columns = {"rank": 0, "elpd": first.elpd, "elpd_diff": 0.0, "dse": 0.0, "se": first.se,
                   "weight": 1.0, "warning": first.warning}  # fmt: skip
        table = pd.DataFrame(columns, index=list(elpds))
    else:
        rows = np.stack([e.elpd_i.to_numpy() for e in elpds.values()])
        shifted = np.maximum(rows - rows.max(0), FLOOR)
        bounded = {name: elpd_data(first.elpd_i.copy(data=row), None, 1)
                   for name, row in zip(elpds, shifted, strict=True)}  # fmt: skip
        with warnings.catch_warnings():
            # Of more than eleven contenders the best may be best by chance; the section says so.
            warnings.simplefilter("ignore", UserWarning)
            warnings.simplefilter("ignore", DeprecationWarning)  # of pandas, in arviz_stats 0.8
            table = compare(dict(elpds), method="pseudo-bma")
            weight = compare(bounded, method="stacking")["weight"].clip(lower=0)
        table = table.assign(weight=weight / weight.sum())
        n = len(first.elpd_i)  # arviz_stats divides by it, and not by n - 1
        table["dse"] *= np.sqrt(n / (n - 1)) if n > 1 else np.where(table["rank"] > 0, np.nan, 1)
    steps = int(first.elpd_i["steps"].sum())
    for name, column in (("elpd", "elpd"), ("diff", "elpd_diff"), ("dse", "dse")):
        table[f"{name}_per_step"] = table[column] / steps
    return table[["rank", "elpd", "elpd_diff", "dse", "se", "weight", "warning",
                  "elpd_per_step", "diff_per_step", "dse_per_step"]]  # fmt: skip
