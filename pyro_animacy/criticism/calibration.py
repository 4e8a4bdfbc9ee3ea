"""Is what a model is sure of as often right as it says? Its forecasts, and those of its baselines.

One step ahead a forecast is a density, and the share of it below what was recorded is uniform where
the density is right. Further ahead it is a set of draws: their central intervals should cover the
recording as often as they say. Calibration alone is cheap (always forecast the average), so the
scores say how sharp the forecasts are (Gneiting, Balabdaoui & Raftery, Probabilistic Forecasts,
Calibration and Sharpness, Journal of the Royal Statistical Society B 69, 2007).
"""

import numpy as np
import torch
import xarray as xr

from pyro_animacy.criticism.aligned import data_units, motion_shown
from pyro_animacy.criticism.calibration_plots import LEVELS
from pyro_animacy.criticism.forecast_scores import coverage, crps, energy_score, pit
from pyro_animacy.criticism.forecasts import (
    MODEL,
    RECORDED,
    forecast_all,
    frames_ahead,
    frames_given,
    frames_left,
    rivals,
)
from pyro_animacy.data.windows import Scale, Windows, dequantised, evenly
from pyro_animacy.errors import ConfigError
from pyro_animacy.infer.run import Run, suited
from pyro_animacy.infer.score import (
    DEQUANTISE_HELDOUT,
    GROUPS,
    independent_groups,
    scoring_windows,
)
from pyro_animacy.infer.steps import window_steps
from pyro_animacy.progress import tqdm
from pyro_animacy.resting import components

SECONDS = 4.0  # forecast by default; see `frames_ahead`
STEPS = 4_000  # looked at one step ahead, at most
DRAWN = 8  # steps drawn from the model in place of each recorded one
AT_ONCE = 65_536  # steps x draws run at once
FEWEST = round(2 / (1 - LEVELS[-1])) - 1  # draws, with the ends of the widest interval among them


def calibrate(
    run: Run,
    dataset: xr.Dataset,
    *,
    draws: int = 200,
    horizon: int | None = None,
    most: int = 200,
    seed: int = 0,
    progress: bool = True,
) -> xr.Dataset:
    """Forecast recordings by the model and its baselines, and see how right each was.

    One step ahead, the latents are drawn from the prior, given the recorded past; on steps and on
    dequantised recordings as the held-out score. Further ahead by `forecast_all`; for coverage the
    draws are rounded to the recordings' resolution, and they and the recordings dequantised.

    Args:
        run: The fitted run, with its baselines.
        dataset: Recordings that the model was not fitted to.
        draws: Draws of each step and of each forecast; at least 39, without which 95 % intervals
            of draws cover less even where the forecast is right.
        horizon: Frames forecast; by default 4 seconds (below one frame a second 4 frames), or
            what `frames_left` gives.
        most: Windows forecast at most.
        seed: Seeds the draws.
        progress: Show progress bars.

    Returns:
        With a dim ``model`` (``model`` and the baselines) and ``horizon`` in seconds:
        ``pit`` (model, step, body, space), and ``pit_drawn`` (draw, step, body, space) of steps
        drawn from the model in place of the recorded one; ``coverage`` (model, level, horizon,
        body); ``crps`` (model, trajectory, horizon, body), mean over the axes, and ``energy_score``
        (model, trajectory, horizon), both in data units. The coordinate ``independent`` (body)
        says how many of the steps are nearly independent; windows of another ``group``
        (trajectory) are.

    Raises:
        ConfigError: If an option cannot be used.
        DataError: If the recordings do not suit the model, or none is long enough.
        RunError: If the run has no baselines.
    """
    dataset = suited(run.card, dataset)
    if draws < FEWEST:
        raise ConfigError(
            f"draws is {draws}; {100 * LEVELS[-1]:.0f} % intervals need at least {FEWEST}"
        )
    context = frames_given([run], dataset)
    if horizon is None:
        left = max(1, frames_left(dataset, context))
        [horizon] = frames_ahead([SECONDS], run.card.fps, left) or [left]
    steps, drawn, independent = one_step(run, dataset, draws, seed, progress)
    forecasts = forecast_all(
        run, dataset, context=context, horizon=horizon, draws=draws, most=most, seed=seed,
        progress=progress,
    )  # fmt: skip
    recorded = forecasts[RECORDED]
    y, names = recorded.to_numpy(), list(steps)
    given, noise = recorded["given"].to_numpy()[:, None], np.random.default_rng(seed)
    grid = _grid(recorded, run.card.scale, forecasts[MODEL].dtype)
    [happened] = _untied(y[None].copy(), given, grid, noise)
    found: dict[str, list[np.ndarray]] = {"coverage": [], "crps": [], "energy_score": []}
    for name in tqdm(names, desc="calibrate", unit="model", disable=not progress, delay=1):
        x = forecasts[name].to_numpy()
        found["crps"].append(crps(x, y).mean(-1))
        found["energy_score"].append(energy_score(x, y))
        found["coverage"].append(coverage(_untied(x, given, grid, noise), happened, LEVELS))
    each = np.stack([np.arange(len(y)), np.zeros(len(y), int)], 1)
    of = recorded.to_dataset(name="position")
    group, trial = independent_groups(of, each), independent_groups(of, each, GROUPS)
    return xr.Dataset(
        {
            "pit": (("model", "step", "body", "space"), np.stack(list(steps.values()))),
            "pit_drawn": (("draw", "step", "body", "space"), drawn),
            "coverage": (("model", "level", "horizon", "body"), np.stack(found["coverage"])),
            "crps": (("model", "trajectory", "horizon", "body"), np.stack(found["crps"])),
            "energy_score": (("model", "trajectory", "horizon"), np.stack(found["energy_score"])),
        },
        coords={
            "model": names, "level": list(LEVELS), "horizon": recorded["time"].to_numpy(),
            **{name: recorded[name].to_numpy() for name in ("trajectory", "body", "space")},
            "independent": ("body", independent), "group": ("trajectory", group),
        },
        attrs={
            "units": data_units(dataset), "draws": draws, "roll_out": run.card.config["roll_out"],
            "policy_scale": "learned" if run.card.config["policy_scale"] is None else "fixed",
            "parts": run.model.parts, "latent_size": run.model.latent_size,
            "trials": int(trial.max()) + 1,
        },
    )  # fmt: skip


def _grid(recorded: xr.DataArray, scale: Scale, dtype: np.dtype) -> np.ndarray:
    """The resolution of each window, (trajectory, 1, 1, 1), but no less than rounding errors.

    Draws are in single precision in model units, then of the type ``dtype`` in data units.
    """
    center = np.array(scale.center)
    far = np.abs(recorded["given"].to_numpy() - center).max((1, 2))
    errors = np.finfo(np.float32).eps * far + np.finfo(dtype).eps * np.abs(center).max()
    return np.fmax(recorded["resolution"].to_numpy(), 8 * errors)[:, None, None, None]


def _untied(
    position: np.ndarray, given: np.ndarray, grid: np.ndarray, noise: np.random.Generator
) -> np.ndarray:
    """Positions as recorded and dequantised, from where the bodies were last given; in place.

    A body at rest stays where it is, in forecasts as in the recording, so both ends of an interval
    may meet there. Ties make it cover more often than it says, and rounding errors less often;
    noise breaks them by chance.

    Args:
        position: (draw, trajectory, time, body, space), which is overwritten.
        given: Where the bodies were, (trajectory, 1, body, space).
        grid: See `_grid`.
        noise: Draws the noise.
    """
    with np.errstate(invalid="ignore", over="ignore"):
        for draw in position:  # so that what is in double precision is small
            steps = np.rint((draw - given) / grid) + noise.uniform(-0.5, 0.5, draw.shape)
            draw[:] = steps * grid
    return position


def one_step(
    run: Run, dataset: xr.Dataset, draws: int, seed: int, progress: bool
) -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray]:
    """PIT of the model and its baselines on the same steps, each (step, body, space).

    Also that of steps drawn from the model, of all bodies together, (draw, step, body, space); and
    how many of the steps are nearly independent, for each body: one a second of motion, each motion
    counted once however many trajectories show it, as scenes that share bodies do.
    """
    scale, history = run.card.scale, run.card.config["history"]
    noisy = dequantised(dataset, DEQUANTISE_HELDOUT)
    windows = scoring_windows(noisy, scale, history, run.card.parts)
    which = torch.from_numpy(evenly(len(windows), STEPS))
    baselines = rivals(run, dataset)
    found: dict[str, list[np.ndarray]] = {name: [] for name in (MODEL, *baselines)}
    drawn: list[np.ndarray] = []
    with torch.random.fork_rng(), tqdm(
        total=len(which), desc="one step", unit="step", disable=not progress, delay=1
    ) as bar:  # fmt: skip
        torch.manual_seed(seed)
        for part, steps in window_steps(
            run.guide, windows, which, draws, "prior", chunk=AT_ONCE
        ):  # fmt: skip
            bar.update(len(part))
            a = steps.shown[0].where(steps.seen[0], torch.nan)
            shares, normals = zip(*components(steps.policy), strict=True)
            loc, spread, share = (
                _numbers(torch.cat(parts)[:, 0])
                for parts in ([n.loc for n in normals], [n.scale for n in normals], shares)
            )
            found[MODEL].append(pit(loc, spread, _numbers(a), share))
            made = steps.policy.sample()[:, 0]
            any_of = torch.randint(len(made), (DRAWN, len(a)))  # those of a filter are in an order
            some = _numbers(made[any_of, torch.arange(len(a))])
            unseen = ~steps.seen[0].cpu().numpy()
            some[:, unseen] = np.nan
            drawn.append(np.stack([pit(loc, spread, one, share) for one in some]))
            batch = windows.batch(part)
            for name, baseline in baselines.items():
                policy, a = baseline.last_step(batch)
                a = a.where(batch.observed[-1], torch.nan)
                forecast = policy.mean[None], policy.stddev[None], a
                found[name].append(pit(*map(_numbers, forecast)))
    shape = (-1, len(run.card.bodies), len(run.card.axes))
    values = {name: np.concatenate(parts).reshape(shape) for name, parts in found.items()}
    seconds = _motions(dataset, windows) / run.card.fps
    of_draws = np.concatenate(drawn, 1).reshape(DRAWN, *shape)
    return values, of_draws, np.clip(seconds.round().astype(int), 1, len(which))


def _numbers(x: torch.Tensor) -> np.ndarray:
    return x.cpu().double().numpy()


def _motions(dataset: xr.Dataset, windows: Windows) -> np.ndarray:
    """How many different steps (place and moment) of each body the windows show, (body,)."""
    trajectory, start = windows.index.numpy().T
    frame = start + windows.context
    bodies = np.moveaxis(dataset["position"].to_numpy()[trajectory, frame], 1, 0)
    shown = [motion_shown(dataset, trajectory, frame, at) for at in bodies]
    return np.array([motion.max() + 1 for motion in shown])
