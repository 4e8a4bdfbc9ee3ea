"""Is what a model is sure of as often right as it says? Its forecasts, and those of its baselines.

One step ahead a forecast is a density, and the share of it below what was recorded is uniform where
the density is right. Further ahead it is a set of draws: their central intervals should cover the
recording as often as they say. Calibration alone is cheap (always forecast the average), so the
scores say how sharp the forecasts are (Gneiting, Balabdaoui & Raftery, Probabilistic Forecasts,
Calibration and Sharpness, Journal of the Royal Statistical Society B 69, 2007).
"""

from collections.abc import Iterator

import numpy as np
import torch
import xarray as xr
from scipy.special import stdtrit

from pyro_animacy.criticism.aligned import data_units, motion_shown
from pyro_animacy.criticism.calibration_plots import (
    LEVELS,
    PANELS,
    in_band,
    named,
    plot_coverage,
    plot_pit,
    plot_scores,
    scores,
    tables,
    uniformities,
)
from pyro_animacy.criticism.forecast_scores import (
    NEAR,
    RIGHT,
    coverage,
    crps,
    energy_score,
    pit,
)
from pyro_animacy.criticism.forecasts import (
    MODEL,
    RECORDED,
    forecast_all,
    frames_ahead,
    frames_given,
    frames_left,
    rivals,
)
from pyro_animacy.criticism.section import Finding, Grade, Panel, Section, picture
from pyro_animacy.criticism.together import finding, together
from pyro_animacy.criticism.wording import number, percent, seconds
from pyro_animacy.data.windows import Scale, Windows, dequantised, evenly
from pyro_animacy.errors import ConfigError, how_many
from pyro_animacy.infer.run import Run, suited
from pyro_animacy.infer.score import (
    DEQUANTISE_HELDOUT,
    independent_groups,
    scoring_windows,
)
from pyro_animacy.infer.steps import window_steps
from pyro_animacy.models.control_vae import MOST_JOINT
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
    group = independent_groups(recorded.to_dataset(name="position"), each)
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
    windows = scoring_windows(dequantised(dataset, DEQUANTISE_HELDOUT), scale, history)
    which = torch.from_numpy(evenly(len(windows), STEPS))
    baselines = rivals(run)
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
            a = steps.shown[0]
            shares, normals = zip(*components(steps.policy), strict=True)
            loc, spread, share = (
                torch.cat(parts)[:, 0]
                for parts in ([n.loc for n in normals], [n.scale for n in normals], shares)
            )
            policies = {MODEL: (loc, spread, a, share)}
            made, each = steps.policy.sample()[:, 0], torch.arange(len(a))
            for _ in range(DRAWN):  # any of the draws: those of a filter are in an order
                one = made[torch.randint(len(made), (len(a),)), each]
                drawn.append(pit(*(x.cpu().double().numpy() for x in (loc, spread, one, share))))
            for name, baseline in baselines.items():
                policy, a = baseline.last_step(windows.batch(part))
                policies[name] = policy.mean[None], policy.stddev[None], a, torch.ones(())
            for name, tensors in policies.items():
                found[name].append(pit(*(x.cpu().double().numpy() for x in tensors)))
    shape = (-1, len(run.card.bodies), len(run.card.axes))
    values = {name: np.concatenate(parts).reshape(shape) for name, parts in found.items()}
    seconds = _motions(dataset, windows) / run.card.fps
    of_draws = [np.concatenate(drawn[i::DRAWN]).reshape(shape) for i in range(DRAWN)]
    return values, np.stack(of_draws), np.clip(seconds.round().astype(int), 1, len(which))


def _motions(dataset: xr.Dataset, windows: Windows) -> np.ndarray:
    """How many different steps (place and moment) of each body the windows show, (body,)."""
    trajectory, start = windows.index.numpy().T
    frame = start + windows.context
    bodies = np.moveaxis(dataset["position"].to_numpy()[trajectory, frame], 1, 0)
    shown = [motion_shown(dataset, trajectory, frame, at) for at in bodies]
    return np.array([motion.max() + 1 for motion in shown])


def section(calibration: xr.Dataset) -> Section:
    """What a report says of the result of `calibrate`."""
    units, draws = calibration.attrs["units"], calibration.attrs["draws"]
    last = float(calibration["horizon"][-1])
    captions = (
        (plot_pit, "One step ahead. A curve that stays in the grey band is as good as can be told. "
         "First above, then below the line: too narrow; first below, then above: too wide; all "
         "above or all below: to one side."),
        (plot_coverage, "Further ahead. A line below the dashed one: overconfident; above it: too "
         "cautious."),
        (plot_scores, "How far off, sharpness included: less is better. A model should stay below "
         "both baselines."),
    )  # fmt: skip
    ahead, covered = list(_one_step_findings(calibration)), _coverage_finding(calibration)
    of_pairs = finding(together(calibration), _linked(calibration))
    beside = [_beside(*pair, units) for pair in scores(calibration)]
    grades = [_worst(ahead), covered.grade, _worst(beside)]
    return Section(
        key="calibration",
        title="Is the model calibrated?",
        intro=(
            "A calibrated model is right as often as it says: 95 % of its 95 % intervals hold what "
            "happened. One step ahead, the recorded step is looked up in the forecast: it should "
            "lie below any point of it as often as the forecast says. Further ahead, up to "
            f"{seconds(last)}, {draws} forecasts of each window are compared with where the bodies "
            "went, beside those of two simple models from the same frames."
        ),
        findings=[*ahead, *([of_pairs] if of_pairs else []), covered, *beside],
        panels=[
            Panel(picture(plot(calibration), caption), caption, grade)
            for (plot, caption), grade in zip(captions, grades, strict=True)
        ],
        tables=list(tables(calibration)),
        note=(
            "A gap is the largest difference between the recorded share of steps below a point of "
            "the forecast and the share that it promised. Gaps and differences in coverage up to "
            f"{RIGHT:g} are right, up to {NEAR:g} near: one step ahead that is a normal spread "
            "wrong by a quarter, or by a half. One whose curve stays in the grey band may be "
            "chance, and is not called wrong. Bodies move together within a step where the shares "
            "of their forecasts below the recorded step, as normal scores, are correlated; beside "
            "that stands the correlation in steps drawn from the model. CRPS "
            "(continuous ranked probability score) is the mean over bodies and axes of the "
            "distance of the forecast from the recording, less half that of two forecasts from "
            "each other; the energy score is the same of all bodies at once (Gneiting & Raftery "
            "2007). A model is called better where the 95 % interval of the mean difference, by "
            "Student's t over nearly independent stretches of the recordings, leaves out 0: a "
            "baseline at more than one horizon in twenty, this model at more than half."
        ),
    )


def _worst(findings: list[Finding]) -> Grade:
    grades, order = [f.grade for f in findings], ("wrong", "near", "right")
    return next((grade for grade in order if grade in grades), "undefined")


def _one_step_findings(calibration: xr.Dataset) -> Iterator[Finding]:
    """One of the bodies that are right, one of each that is not."""
    found, right, others = uniformities(calibration), [], []
    for body, by_axis in found.items():
        axis, worst = max(by_axis.items(), key=lambda item: np.nan_to_num(item[1].gap, nan=-1))
        chance = in_band(calibration, body, axis)
        grade = worst.grade(chance)
        if grade == "right":
            right.append((body, worst.gap))
        else:
            others.append((body, axis, worst, grade, chance))
    if right:
        names = "every body" if len(right) == len(found) else ", ".join(b for b, _ in right)
        gap = max(gap for _, gap in right)
        yield Finding(
            "right",
            f"One step ahead, the spread is right for {names} (recorded and promised shares "
            f"differ by {_gap(gap)} at most; {RIGHT:g} or less is good).",
        )
    for body, axis, worst, grade, chance in sorted(others, key=lambda o: -o[2].gap)[:PANELS]:
        if grade == "undefined":
            yield Finding(
                grade,
                f"One step ahead, nothing can be said about {body}: no step of it was recorded.",
            )
            continue
        yield Finding(
            grade,
            f"One step ahead, forecasts of {body} are {worst.direction}: the share of steps "
            f"recorded below a point of the forecast differs by up to {_gap(worst.gap)} from the "
            f"share promised, along {axis} ({RIGHT:g} or less is good)"
            + (", which may be chance." if chance else "."),
            _wider(calibration) if grade == "wrong" else "",
        )  # fmt: skip


def _gap(gap: float) -> str:
    """To a hundredth, or to as many digits as show on which side of RIGHT it is."""
    said = (f"{gap:.{digits}f}" for digits in range(2, 20))
    return next(text for text in said if (float(text) <= RIGHT) == (gap <= RIGHT))


def _wider(calibration: xr.Dataset) -> str:
    """What may mend the spread of a step, by the scale that the run's policy has."""
    if calibration.attrs["policy_scale"] == "learned":
        return "A larger policy network (--model.policy.hidden)."
    return "A policy scale that is learned (--model.likelihood policy --model.policy_scale null)."


def _linked(calibration: xr.Dataset) -> str:
    """What may let a model know that bodies move together within a step, by what it is."""
    if calibration.attrs["parts"] > 1:  # a set, whose bodies choose independently
        few = calibration.sizes["body"] <= MOST_JOINT
        return "A latent of the whole scene (--model.structure joint)." if few else ""
    if not calibration.attrs["latent_size"]:
        return "A model with a latent of the whole scene (--model control_vae)."
    return "A larger latent (--model.latent_size) or more training (--train.steps)."


def _coverage_finding(calibration: xr.Dataset) -> Finding:
    """Of all bodies and axes at the last horizon; the worst level decides the grade."""
    shares = calibration["coverage"].sel(model=MODEL).isel(horizon=-1)
    ahead, mean = float(shares["horizon"]), shares.mean("body").values
    off = np.abs(mean - LEVELS)
    if not np.isfinite(off).all():
        return Finding("undefined", f"Coverage {seconds(ahead)} ahead: nothing was recorded then.")
    sd = np.sqrt(np.array(LEVELS) * (1 - np.array(LEVELS)))
    at = int((off / sd).argmax())  # the level that is furthest beyond chance
    most, *others = zip(reversed(LEVELS), reversed(mean), strict=True)
    said = f"{percent(most[0])} intervals cover {percent(most[1])} of positions {seconds(ahead)} "
    said += "ahead, " + " and ".join(
        f"{percent(level)} intervals {percent(share)}" for level, share in others
    )
    groups = int(calibration["group"].max()) + 1
    if groups < 2:  # one trial, whatever the shares are
        alone = f"{said}, which {how_many(groups, 'stretch')} of motion cannot tell from chance."
        return Finding("undefined", alone)
    if off.max() <= RIGHT:
        return Finding("right", f"{said}, as they should.")
    low = mean[at] < LEVELS[at]
    said += f": {'overconfident' if low else 'too cautious'}"
    if shares.sizes["body"] > 1:
        of_body = shares.isel(level=at)
        signed = of_body.values if low else -of_body.values
        body = str(of_body["body"].values[np.nanargmin(signed)])
        said += f", most for {body} ({percent(float(of_body.sel(body=body)))} inside "
        said += f"{percent(LEVELS[at])} intervals)"
    if off.max() <= NEAR:
        return Finding("near", f"{said}.")
    if off[at] <= 1.96 * sd[at] / np.sqrt(groups):  # a binomial share, each group one trial
        chance = f"{said}, which may be chance in {how_many(groups, 'stretch')} of motion."
        return Finding("near", chance)
    attempt = "A longer --model.history"
    if calibration.attrs["roll_out"] != "closed_loop":
        attempt += ", or closed-loop training (--model.roll_out closed_loop)"
    attempt += ", if one step ahead is right: then what is missing is how errors build up."
    return Finding("wrong", f"{said}.", attempt if low else "")


def _beside(name: str, values: xr.DataArray, units: str) -> Finding:
    """The model's score beside all baselines', (model, trajectory, horizon); the worst grades."""
    own = values.sel(model=MODEL)
    said = f"The {name} of forecasts, averaged over the horizons up to "
    said += (
        f"{seconds(float(own['horizon'][-1]))}, is {number(float(own.mean()))} {units} for this "
    )
    said += "model"
    against: list[tuple[Grade, str]] = []
    order: tuple[Grade, ...] = ("wrong", "undefined", "near", "right")
    for model in values["model"].values[1:]:
        grade, how = _against(own, values.sel(model=model), named(model))
        mean = number(float(values.sel(model=model).mean()))
        against.append((grade, f"{mean} for {named(model)} ({how})"))
    worst = min((grade for grade, _ in against), key=order.index)
    return Finding(worst, f"{said}, {', '.join(text for _, text in against)}; less is better.")


def _against(own: xr.DataArray, rival: xr.DataArray, name: str) -> tuple[Grade, str]:
    """A model's score beside that of one baseline: the grade, and how they differ."""
    ahead = own["horizon"].values
    gain, error, groups = _paired(rival - own)
    with np.errstate(invalid="ignore"):
        loses, wins, behind = gain < -error, gain > error, gain < 0
    if not np.isfinite(gain).any():
        return "undefined", "nothing was recorded, or a forecast is not finite"
    if loses.mean() > 0.05:  # of so many horizons, that share by chance
        grade: Grade = "wrong" if loses.mean() > 0.5 else "near"
        return grade, f"{name} is better {_between(ahead, loses)}"
    if wins.mean() > 0.5:
        return "right", "this model is better"
    how = f"no difference that {how_many(groups, 'stretch')} of motion can tell from chance"
    how += f"; that of {name} is lower {_between(ahead, behind)}" if behind.any() else ""
    return "near" if groups > 1 else "undefined", how


def _between(ahead: np.ndarray, chosen: np.ndarray) -> str:
    """The horizons that are chosen, as stretches; where there are over two, how many they are."""
    edge = np.flatnonzero(np.diff(np.pad(chosen.astype(int), 1)))
    stretches = list(zip(edge[::2], edge[1::2] - 1, strict=True))
    if len(stretches) > 2:
        return f"at {chosen.sum()} of {len(ahead)} horizons"
    return (
        " and ".join(
            f"{ahead[i]:.3g} s" if i == j else f"between {ahead[i]:.3g} and {ahead[j]:.3g} s"
            for i, j in stretches
        )
        + " ahead"
    )


def _paired(difference: xr.DataArray) -> tuple[np.ndarray, np.ndarray, int]:
    """Mean over windows at each horizon, half its 95 % interval, and how many groups gave it.

    By the spread of the sums over the groups that windows fall in, and Student's t. A group in
    which nothing was recorded at a horizon tells nothing of it.
    """
    d, group = difference.transpose("trajectory", "horizon").values, difference["group"].values
    count = np.isfinite(d).sum(0)
    mean = np.nansum(d, 0) / np.where(count > 0, count, np.nan)
    totals, seen = (np.zeros((int(group.max()) + 1, d.shape[1])) for _ in range(2))
    np.add.at(totals, group, np.nan_to_num(d - mean))
    np.add.at(seen, group, np.isfinite(d))
    G = (seen > 0).sum(0)
    spare = np.where(G > 1, G - 1.0, np.nan)  # degrees of freedom
    error = np.sqrt((totals**2).sum(0) * G / spare) / np.maximum(count, 1)
    return mean, stdtrit(spare, 0.975) * error, int(G.max())
