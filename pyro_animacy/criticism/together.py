"""Do bodies move together within a step, beyond what their past says, and does the model know?

    u_ti = F(a_ti | c_t)                          the share of the forecast of one coordinate below
    r_ij = mean over axes of corr_t { Phi^{-1}(u_ti), Phi^{-1}(u_tj) }             what was recorded

where forecasts are calibrated, the numbers Phi^{-1}(u_ti) are standard normal, and two bodies' are
independent if the past explains all that links them. The same of steps drawn from the model is
r'_ij. In a model whose bodies choose and move independently it is 0; in one with a latent of the
whole scene it is what the latent makes of it. What neither past nor model explains is r_ij - r'_ij:
touch, a push, a camera that shakes. Of the mean over axes, which turning the picture does not
change, one axis may hide what another shows.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import xarray as xr
from scipy.special import ndtri

from pyro_animacy.criticism.forecasts import MODEL
from pyro_animacy.criticism.section import Finding
from pyro_animacy.data.windows import body_pairs

RIGHT, NEAR = 0.1, 0.3  # differences of correlations; that of 0.3 is 0.05 nats an axis and step
EDGE = 1e-6  # shares are kept so far from 0 and 1


class Together(NamedTuple):
    """Two bodies, and how their steps go together.

    Attributes:
        bodies: Their names.
        recorded: r_ij.
        drawn: r'_ij, of steps drawn from the model.
        error: The standard error of their difference where both are of chance, in so many
            independent steps, axes and draws.
    """

    bodies: tuple[str, str]
    recorded: float
    drawn: float
    error: float

    @property
    def off(self) -> float:
        """|r_ij - r'_ij|."""
        return abs(self.recorded - self.drawn)


def together(calibration: xr.Dataset) -> list[Together]:
    """Every pair of bodies; those that differ from the model beyond chance first, most first.

    Args:
        calibration: Of `calibrate`: ``pit`` of what was recorded, ``pit_drawn`` of the model.
    """
    dims = ("step", "body", "space")
    recorded = calibration["pit"].sel(model=MODEL).transpose(*dims).values
    drawn = calibration["pit_drawn"].transpose("draw", *dims).values
    names, steps = [*map(str, calibration["body"].values)], calibration["independent"].values
    seen, found = np.isfinite(recorded).all(-1), []
    for i, j in body_pairs(len(names)):
        r = correlation(recorded[:, i], recorded[:, j])
        made = float(np.mean([correlation(of[:, i], of[:, j]) for of in drawn]))
        both = (seen[:, i] & seen[:, j]).sum()
        shared = both / max(seen[:, i].sum(), seen[:, j].sum(), 1)  # of the steps of either
        trials = max(min(steps[i], steps[j]) * shared, EDGE) * calibration.sizes["space"]
        # steps drawn from the model are independent given the past, however near in time
        trials_drawn = max(both * len(drawn), EDGE) * calibration.sizes["space"]
        error = math.hypot(trials**-0.5, trials_drawn**-0.5)
        found.append(Together((names[i], names[j]), r, made, error))
    limits = _limit(len(found))
    return sorted(
        found, key=lambda pair: (math.isnan(pair.off), pair.off <= limits * pair.error, -pair.off)
    )


def _limit(pairs: int) -> float:
    """Standard errors that none of so many pairs exceeds by chance, 95 times in 100."""
    return float(-ndtri(0.025 / max(1, pairs)))


def correlation(one: np.ndarray, other: np.ndarray) -> float:
    """The correlation r of two bodies.

    Args:
        one: u (step, axis), shares in (0, 1) of the forecast below; NaN where not observed.
        other: Likewise, of the same steps.

    Returns:
        Mean over axes of the correlation of their normal scores; NaN of less than three steps.
    """
    both = np.isfinite(one).all(1) & np.isfinite(other).all(1)
    if both.sum() < 3:
        return math.nan
    axes = (ndtri(u[both].clip(EDGE, 1 - EDGE)).T for u in (one, other))
    with np.errstate(invalid="ignore", divide="ignore"):
        return float(np.mean([np.corrcoef(*pair)[0, 1] for pair in zip(*axes, strict=True)]))


def finding(pairs: list[Together], mend: str) -> Finding | None:
    """What the pair that differs most says; None of a single body.

    Args:
        pairs: Of `together`.
        mend: What to try where the model does not know.
    """
    if not pairs:
        return None
    pair = pairs[0]
    first, second = pair.bodies
    if math.isnan(pair.off):
        return Finding("undefined", "Whether bodies move together within a step is not known.")
    chance = pair.off <= _limit(len(pairs)) * pair.error
    enough = 2 * pair.error <= NEAR  # steps to tell a pair apart that is off by so much
    figures = f"correlated by {_figure(pair.recorded)}, in steps drawn from the model by "
    figures += _figure(pair.drawn) + ("" if len(pairs) == 1 else ", the pair that differs most")
    good = f"a difference of {RIGHT:g} or less is good"
    if pair.off <= RIGHT or (chance and enough and pair.off <= NEAR):
        more = "" if pair.off <= RIGHT else ", and this one may be chance"
        return Finding(
            "right",
            "Within a step bodies move together as much as the model says (what the past of "
            f"{first} and {second} leaves open is {figures}; {good}{more}).",
        )
    said = (
        f"Within a step {first} and {second} move together otherwise than the model says (what "
        f"their past leaves open is {figures}; {good})"
    )
    if chance:
        return Finding("near", f"{said}, which may be chance.")
    return Finding("near" if pair.off <= NEAR else "wrong", f"{said}.", mend)


def _figure(correlation: float) -> str:
    return f"{correlation:+.2f}".replace("-", "−")
