"""What a report says of the result of `calibration.calibrate`: findings by plain rules, figures."""

from collections.abc import Iterator

import numpy as np
import xarray as xr
from scipy.special import stdtrit

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
from pyro_animacy.criticism.forecast_scores import NEAR, RIGHT
from pyro_animacy.criticism.forecasts import MODEL
from pyro_animacy.criticism.section import Finding, Grade, Panel, Section, picture
from pyro_animacy.criticism.together import finding, together
from pyro_animacy.criticism.wording import number, percent, seconds
from pyro_animacy.errors import how_many
from pyro_animacy.models.control_vae import MOST_JOINT


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
    apart = calibration.attrs.get("pooled")  # steps of several bodies in one
    of_pairs = None if apart else finding(together(calibration), _linked(calibration))
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
    trials = calibration.attrs["trials"]
    if trials < 2:  # whatever the shares are
        alone = f"{said}, which {how_many(trials, 'stretch')} of motion cannot tell from chance."
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
    if off[at] <= 1.96 * sd[at] / np.sqrt(trials):  # a binomial share, each stretch one trial
        chance = f"{said}, which may be chance in {how_many(trials, 'stretch')} of motion."
        return Finding("near", chance)
    if off.max() <= NEAR:
        return Finding("near", f"{said}.")
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
