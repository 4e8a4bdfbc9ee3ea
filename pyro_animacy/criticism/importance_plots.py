"""What `importance` measured, in figures and words."""

import numpy as np
import scipy
import xarray as xr
from matplotlib.figure import Figure

from pyro_animacy.criticism.importance import Array, k_hat_threshold, vsbc
from pyro_animacy.criticism.section import Finding, Grade, Panel, Section, picture
from pyro_animacy.criticism.style import (
    BODY_COLOURS,
    GENERATED,
    QUIET,
    WIDTH,
    styled,
)
from pyro_animacy.criticism.wording import counted, nats, percent
from pyro_animacy.errors import how_many

CARRIES = 0.01  # nats of KL per step from which a latent dimension carries anything
PANELS = 6  # dimensions drawn, those of most KL
ENOUGH = 100  # simulated steps without which their histogram says nothing
LARGER = "Train longer, or a larger posterior network (--model.posterior.hidden)."


def _finite(values: xr.DataArray) -> Array:
    """The values that are not NaN, flat."""
    flat = values.to_numpy().ravel()
    return flat[~np.isnan(flat)]


def plot_k_hat(quality: xr.Dataset) -> Figure:
    """Histograms of k-hat of `guide_quality`: of single steps above, of whole stretches below."""
    edges = np.linspace(-0.5, 1.5, 41)
    rows = {"k_hat_step": "single steps", "k_hat": "whole stretches"}
    limit = k_hat_threshold(quality.attrs["draws"])
    with styled():
        figure = Figure(figsize=(WIDTH, 3.6), layout="constrained")
        both = figure.subplots(2, 1, sharex=True)
        for axis, (name, title) in zip(both, rows.items(), strict=True):
            k_hat = _finite(quality[name])
            axis.hist(k_hat.clip(edges[0], edges[-1]), edges, color=GENERATED)
            axis.axvline(limit, color=BODY_COLOURS[1], lw=1.2, ls="--")
            below = counted(int((k_hat < limit).sum()), len(k_hat), title)
            axis.set_title(f"{below} below {limit:.2f}", loc="left")
            axis.set(ylabel="count", xlim=edges[[0, -1]])
        axis.set_xticks((-0.5, 0, 0.5, 1, 1.5), ("≤ −0.5", "0", "0.5", "1", "≥ 1.5"))
        axis.set_xlabel("Pareto k-hat of the importance weights")
    return figure


def plot_iwae(quality: xr.Dataset) -> Figure:
    """ELBO to IWAE_K of `guide_quality`, mean over steps, two Monte Carlo standard errors."""
    sizes = quality["K"].to_numpy()
    bound = quality["iwae"].mean(("trajectory", "time")).to_numpy()
    # All draws are one group, whose error has to come from its weights.
    parts = [*quality["iwae_error"][:-1], quality["log_density_error"]]
    error = [2 * float(np.sqrt((part**2).sum()) / part.count()) for part in parts]
    smoothed = float(quality["log_density"].mean())
    with styled():
        figure = Figure(figsize=(WIDTH, 2.6), layout="constrained")
        axis = figure.subplots()
        axis.errorbar(sizes, bound, error, color=GENERATED, marker="o", ms=4, capsize=3)
        axis.plot(sizes[-1], smoothed, "D", mfc="none", color=BODY_COLOURS[1], ms=8, label="PSIS")
        axis.set_xscale("log", base=2)
        axis.set_xticks(sizes, [str(size) for size in sizes])
        axis.set(xlabel="draws K of the bound (1: the ELBO)", ylabel="nats per step")
        axis.set_title("Bound on the log density of a step", loc="left")
        axis.legend(loc="lower right")
    return figure


def plot_vsbc(quality: xr.Dataset) -> Figure:
    """Histograms of p = Q(z <= z*) of `guide_quality`, for the latent dimensions of most KL."""
    kl = quality["kl"].to_numpy()
    order = np.argsort(-kl)[: min(PANELS, np.isfinite(kl).sum())]
    simulated = [p[~np.isnan(p)] for p in quality["vsbc"].to_numpy().T]
    N = len(simulated[order[0]])
    bins = int(np.clip(N // 25, 4, 20))
    columns = min(3, len(order))
    rows = -(-len(order) // columns)
    with styled():
        figure = Figure(figsize=(WIDTH, 0.5 + 1.4 * rows), layout="constrained")
        grid = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
        for axis in grid.flat[len(order) :]:
            axis.set_visible(False)
        for axis, j in zip(grid.flat, order, strict=False):
            axis.hist(simulated[j], np.linspace(0, 1, bins + 1), color=GENERATED)
            low, high = scipy.stats.binom.ppf((0.025, 0.975), len(simulated[j]), 1 / bins)
            axis.axhspan(low, high, color=QUIET, alpha=0.45, lw=0)
            axis.set_title(f"z {j}: KL {quality['kl'][j]:.2g}", loc="left")
            axis.set_xticks((0, 0.5, 1), ("0", "½", "1"))
            axis.set_yticks([])
        figure.supxlabel("p: share of the guide below the true z", fontsize=9)
        figure.supylabel("simulated steps", fontsize=9)
    return figure


def findings(quality: xr.Dataset) -> tuple[Finding, ...]:
    """What `guide_quality` says: on weights, bound, joint weights, centre and width, in turn."""
    return _weights(quality), _gap(quality), _jointly(quality), *_simulated(quality)


def section(quality: xr.Dataset) -> Section:
    """The report's section on the guide, of what `guide_quality` measured."""
    draws, steps = quality.attrs["draws"], int(quality["steps"].max())
    units = quality.attrs["units"]
    known = "" if units == "data units" else f"({units}) "
    weights, bound, _, centre, width = found = findings(quality)
    both: Grade = centre.grade if centre.grade == "wrong" else width.grade
    panels = (
        (plot_k_hat(quality), "Histograms of k-hat, of steps and of stretches", weights.grade,
         "Tail of the importance weights. Left of the dashed line is good: there "
         f"{draws} draws are enough."),
        (plot_iwae(quality), "The bound against the number of draws", bound.grade,
         "The bound rises with the draws to the log density; a flat line is good. Bars, mostly "
         "hidden by the points, are two standard errors from the finite number of draws; the "
         "diamond is the estimate from smoothed weights."),
        (plot_vsbc(quality), "Histograms of p for each latent dimension", both,
         "Simulated steps, for the latent dimensions that carry most (KL in nats per step). Flat "
         "is good: 95 % of the bars should then end in the grey band."),
    )  # fmt: skip
    return Section(
        key="guide",
        title="Is the guide good?",
        intro="The guide is the approximate posterior: from a recorded step it says which latent z "
        "may have led to it. Draws of the guide are weighted by how much likelier the model finds "
        "them than the guide does; if the guide is the exact posterior, these importance weights "
        "are all equal. k-hat measures how heavy their tail is: below "
        f"{k_hat_threshold(draws):.2f} their average over {draws} draws can be relied on, above it "
        "a few draws outweigh all others. The weights of a whole "
        "stretch are products of those of its steps, so its k-hat is necessarily worse the longer "
        f"it is (here up to {how_many(steps, 'step')}); the held-out score weights step by step. "
        "Last, steps are simulated from the model, so that z is known: the share p of the guide "
        "below it should be anywhere from 0 to 1 equally often. Heaps at both ends mean that the "
        "guide is too narrow, a hump in the middle that it is too wide, a slope that it is off to "
        "one side.",
        findings=found,
        panels=[Panel(picture(figure, alt), text, grade) for figure, alt, grade, text in panels],
        note=f"Pareto-smoothed importance sampling (PSIS) with {draws} draws a step; the limit "
        "of k-hat for S draws is min(1 − 1 / log10 S, 0.7) (Vehtari et al. 2024). IWAE: Burda et "
        "al. 2016. Simulation-based calibration: Yao et al. 2018. Densities are per data unit "
        f"{known}of each coordinate.",
    )


def _graded(value: float, right: float, near: float) -> Grade:
    return "right" if value <= right else "near" if value <= near else "wrong"


def _weights(quality: xr.Dataset) -> Finding:
    """How many steps have weights that can be relied on, by one limit of k-hat."""
    k_hat, draws = _finite(quality["k_hat_step"]), quality.attrs["draws"]
    limit = k_hat_threshold(draws)
    good = int((k_hat < limit).sum())
    grade = _graded(1 - good / len(k_hat), 0.05, 0.2)
    if grade == "right":
        said = f"The importance weights of {counted(good, len(k_hat), 'steps')} can be relied on"
        said += f": k-hat is below {limit:.2f}, the most that {draws} draws allow"
    else:
        bad = counted(len(k_hat) - good, len(k_hat), "steps")
        said = f"The importance weights of {bad} cannot be relied on"
        said += f": k-hat is at or above {limit:.2f}, the most that {draws} draws allow"
    tied = quality.attrs["posterior_scale"] == "prior"
    more = " And --model.posterior_scale learned, as it is tied to the prior's." if tied else ""
    return Finding(
        grade,
        f"{said} (right: unreliable in at most {percent(0.05)} of steps; near: {percent(0.2)}).",
        "" if grade == "right" else f"{LARGER}{more}",
    )


def _gap(quality: xr.Dataset) -> Finding:
    """What the bound that was trained on loses to the guide, beside that of many draws."""
    trained, all_draws = quality["iwae"].sel(K=quality.attrs["trained"]), quality["iwae"][-1]
    K, bound, best = quality.attrs["trained"], float(trained.mean()), float(all_draws.mean())
    usual = float((all_draws - trained).median())
    grade = _graded(best - bound, 0.1, 0.5)
    name, what = "ELBO", "the guide's KL divergence from the exact posterior is"
    if K > 1:
        single = float(quality["iwae"].sel(K=1).mean())
        name = f"of {K} draws; of single ones, the ELBO, it is {nats(single)}"
        what = "what the guide costs it is"
    return Finding(
        grade,
        f"Of {int(trained.count()):,} steps the training bound ({name}) is {nats(bound)} nats per "
        f"step, and {nats(best)} with all {quality.attrs['draws']} draws (IWAE): {what} "
        f"about {nats(best - bound)} nats per step or more (right: at "
        "most 0.1; near: 0.5).",
        "" if grade == "right" else f"{LARGER} Compare models by the importance-weighted score, "
        "not by the ELBO.",
        f"In half of the steps it is {nats(usual)} or less. The score's bounds differ: they are of "
        "all steps, with its own number of draws.",
    )  # fmt: skip


def _jointly(quality: xr.Dataset) -> Finding:
    """Of weights of whole stretches: not graded where bad, as nothing here is computed of them."""
    k_hat = _finite(quality["k_hat"])
    good = int((k_hat < k_hat_threshold(quality.attrs["draws"])).sum())
    return Finding(
        "right" if good >= 0.95 * len(k_hat) else "undefined",
        f"Weights of all steps of a stretch together can be relied on in "
        f"{counted(good, len(k_hat), 'stretches')}; no score here uses them, as each step is "
        "weighted by itself.",
    )


def _simulated(quality: xr.Dataset) -> tuple[Finding, Finding]:
    """Findings on the centre and on the width of the guide, of dimensions that carry anything."""
    N, active = quality.sizes["sample"], np.flatnonzero(quality["kl"].to_numpy() >= CARRIES)
    if N < ENOUGH or not len(active):
        few = f"{how_many(N, 'step')} could be simulated, and {ENOUGH} are needed"
        why = few if N < ENOUGH else f"no latent dimension carries {CARRIES} nats per step"
        names = ("centre", "width")
        first, second = (Finding("undefined", f"The guide's {n} is unknown: {why}.") for n in names)
        return first, second
    found = vsbc(quality["vsbc"].to_numpy()[:, active])
    off = np.where(found.asymmetry_p < 0.01 / len(active), np.abs(found.bias), 0)
    factor = np.exp(np.abs(np.log(np.maximum(found.spread, 1e-9))))
    j, i = int(off.argmax()), int(factor.argmax())
    centred, wide = _graded(off[j], 0.05, 0.1), _graded(factor[i], 1.25, 1.6)
    side = "too low" if found.bias[j] > 0 else "too high"
    shape = ", so the guide is too " + ("narrow" if found.spread[i] > 1 else "wide")
    shape = "" if wide == "right" else shape
    most = f"by {off[j]:.2f}, the guide lying {side}, in z {active[j]}" if off[j] else "by chance"
    among = f"of the {len(active)} latent dimensions that carry" if len(active) > 1 else (
        "of the one latent dimension that carries"
    )  # fmt: skip
    return Finding(
        centred,
        f"The guide's centre, {among} {CARRIES} nats per step or more: the mean of p, the share of "
        f"the guide below the true z, differs from 1/2 at most {most} (right: 0.05; near: 0.1; "
        "counted where p is asymmetric with a p-value below 0.01 over their number).",
        "" if centred == "right" else LARGER,
    ), Finding(
        wide,
        f"The guide's width: the share p of the guide below the true z has {found.spread[i]:.2f} "
        f"times the variance of a uniform p in z {active[i]}, the dimension furthest from "
        f"1{shape} (right: within a factor of 1.25; near: 1.6).",
        "" if wide == "right" else LARGER,
    )  # fmt: skip
