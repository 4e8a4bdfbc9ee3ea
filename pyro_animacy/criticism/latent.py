"""Does the latent variable do work? What z_t carries of each step, and what it does to the motion.

Everything is said of the standardised residual, in which the conditional prior is N(0, I):

    r = (z - mu_p) / sigma_p,    q(r | step n) = N(m_n, s_n^2),    m = (mu_q - mu_p) / sigma_p,
                                                                   s = sigma_q / sigma_p

A KL divergence is the same in r as in z.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
import xarray as xr
from scipy.special import logsumexp

from pyro_animacy.criticism.aligned import data_units
from pyro_animacy.data.windows import Windows, dequantised, evenly
from pyro_animacy.errors import ConfigError
from pyro_animacy.infer.run import Run, check_kind, suited
from pyro_animacy.infer.score import DEQUANTISE_HELDOUT
from pyro_animacy.infer.steps import needs_gaussian_latent, window_steps
from pyro_animacy.progress import tqdm

ACTIVE = 0.01  # variance of a posterior mean above which a dimension is active
NEIGHBOURS = 10  # steps sharing a draw, below which the aggregate posterior is known too coarsely
CHUNK = 2_000_000  # numbers of a block of pairs of steps
Array = npt.NDArray[np.floating]


def kl_to_prior(mean: Array, spread: Array) -> Array:
    """KL(N(m, s^2) || N(0, 1)) = (m^2 + s^2 - 1) / 2 - log s of each entry, nats.

    Kingma & Welling, Auto-encoding variational Bayes, 2014, appendix B.

    Args:
        mean: m, any shape.
        spread: s, of the same shape, positive.
    """
    return 0.5 * (mean**2 + spread**2 - 1) - np.log(spread)


def activity(mean: Array) -> Array:
    """Var_n(m_n) of each dimension: how far the posterior mean moves from step to step.

    Burda, Grosse & Salakhutdinov, Importance weighted autoencoders, 2016, section 5: dimension u is
    active where A_u = Var_x(E_q[z_u]) > 0.01. With a conditional prior the mean moves even where
    the posterior is that prior; the mean of the residual r does not.

    Args:
        mean: m (step, latent_dim), prior standard deviations; NaN where nothing was seen.

    Returns:
        (latent_dim,), prior variances; NaN for a single step.
    """
    known = np.ma.masked_invalid(mean)
    return np.where(known.count(0) > 1, np.ma.filled(known.var(0), np.nan), np.nan)


@dataclass(frozen=True)
class Surgery:
    """The rate in its two parts, from `elbo_surgery`, in nats per step.

    Attributes:
        rate: mean KL of the posteriors from the prior, of the steps looked at.
        information: I_q(n; r), mutual information of step and latent.
        marginal_kl: KL(q(r) || N(0, I)) of the aggregate posterior, rate - information.
        standard_error: Monte Carlo standard error of ``information``.
        steps: N, how many steps were looked at.
    """

    rate: float
    information: float
    marginal_kl: float
    standard_error: float
    steps: int

    @property
    def at_bound(self) -> bool:
        """Whether the information is so near log N that it may be more: N exp(-I) < 10.

        N exp(-I) is about how many steps could have given the same draw.
        """
        return self.steps * math.exp(-self.information) < NEIGHBOURS


def elbo_surgery(mean: Array, spread: Array, *, steps: int = 2_000, seed: int = 0) -> Surgery:
    """Split the rate into what tells steps apart and what is lost to the aggregate posterior.

        E_n KL(q(r | n) || N(0, I)) = I_q(n; r) + KL(q(r) || N(0, I)),    q(r) = E_n q(r | n)

    Hoffman & Johnson, ELBO surgery, 2016, section 2. With one draw r_n ~ q(r | n) of each of N
    steps, I = E_n [log q(r_n | n) - log (1/N) sum_k q(r_n | k)]; no term exceeds log N.

    Args:
        mean: m (step, latent_dim), prior standard deviations.
        spread: s, of the same shape, positive.
        steps: N at most; of more steps, some drawn at random.
        seed: of the steps and of the draws.

    Returns:
        The parts; the standard error is NaN for a single step.
    """
    N, random = min(steps, len(mean)), np.random.default_rng(seed)
    chosen = np.sort(random.choice(len(mean), N, replace=False))
    mean, spread = mean[chosen], spread[chosen]
    noise = random.standard_normal(mean.shape)
    r, log_s = mean + spread * noise, np.log(spread).sum(1)
    own = -0.5 * (noise**2).sum(1) - log_s  # log q(r_n | n), but for the constant of both terms
    ratio = np.empty(N)
    size = max(1, CHUNK // mean.size)
    for first in range(0, N, size):
        rows = slice(first, first + size)
        z = (r[rows, None] - mean) / spread  # (rows, N, latent_dim)
        aggregate = logsumexp(-0.5 * (z**2).sum(-1) - log_s, axis=1) - math.log(N)
        ratio[rows] = own[rows] - aggregate
    rate, information = float(kl_to_prior(mean, spread).sum(1).mean()), float(ratio.mean())
    error = float(ratio.std(ddof=1) / math.sqrt(N)) if N > 1 else math.nan
    return Surgery(rate, information, rate - information, error, N)


def training_path(
    run: Run, points: int = 40, coordinates: float | None = None
) -> tuple[Array, Array, Array]:
    """Rate and distortion of the batches that a run was trained on, as far as it logged both.

    The log holds them in model units: D in data units is D + (coordinates observed) log unit. It is
    noisy, and fastest at the start: medians over blocks of rows that lengthen geometrically. Rows
    of KL weight 0 have no KL in the log, and are left out.

    Args:
        run: the fitted run.
        points: blocks at most.
        coordinates: observed in a step, in the mean; all by default.

    Returns:
        Step, rate and distortion, each (point,), nats per step, data units. Empty unless the
        training bound is one on the recordings' density: the policy likelihood, teacher forced,
        without discount, free nats or overshooting.
    """
    config, card = run.model.config, run.card
    bound = (config.likelihood, config.roll_out, config.discount) == ("policy", "teacher_forced", 1)
    train = run.settings.get("train", {})
    bound &= not train.get("free_nats") and train.get("overshooting", {}).get("distance", 1) == 1
    rows = [row for row in run.metrics() if row["kl_weight"] > 0] if bound else []
    if not rows:
        return np.empty(0), np.empty(0), np.empty(0)
    logged = np.array([[row["step"], row["kl"], row["reconstruction"]] for row in rows])
    ends = np.unique(np.geomspace(1, len(rows), points).astype(int))[:-1]
    step, rate, distortion = np.array([np.median(b, axis=0) for b in np.split(logged, ends)]).T
    coordinates = coordinates or len(card.bodies) * len(card.axes)
    return step, rate, distortion + card.scale.log_jacobian(coordinates)


def latent_use(
    run: Run,
    dataset: xr.Dataset,
    *,
    draws: int = 16,
    most: int = 100_000,
    seed: int = 0,
    progress: bool = True,
) -> xr.Dataset:
    """What the latent carries at every recorded step, teacher forced.

    Rate R = E KL(q || p) and distortion D = -E_q log pi of the recorded displacement, so that
    ELBO = -(R + D): Alemi et al., Fixing a broken ELBO, 2018, section 2.

    Args:
        run: the fitted run.
        dataset: recordings, held-out ones, in the schema; dequantised here as for the score.
        draws: draws of z_t at each step, for the distortion.
        most: frames looked at at most; of more, trajectories evenly spread, their first frames.
        seed: of all draws.
        progress: show a progress bar.

    Returns:
        ``kl``, ``residual_mean``, ``residual_scale`` (trajectory, time, latent_dim), ``distortion``
        (trajectory, time) at the time of s_t, NaN where no step was recorded; distortion in nats of
        the coordinates observed, data units. ``activity`` (latent_dim). ``information``,
        ``marginal_kl``, ``surgery_rate``, ``surgery_error``, ``surgery_steps``: `elbo_surgery`.
        ``training_rate``, ``training_distortion`` (training_step): `training_path`.

    Raises:
        ConfigError: if ``draws`` or ``most`` is below 1, or the model has no Gaussian latent.
        DataError: if the recordings do not suit the model or hold no step.
    """
    if min(draws, most) < 1:
        raise ConfigError(f"draws is {draws}, most is {most}; expected at least 1 of each")
    check_kind(run.card, "scenes", run.path)
    needs_gaussian_latent(run.model)
    dataset = _at_most(suited(run.card, dataset), most)
    scale, history = run.card.scale, run.model.config.history
    noisy = dequantised(dataset, DEQUANTISE_HELDOUT)
    windows = Windows(noisy, frames=history + 1, context=history, scale=scale, parts=run.card.parts)
    per_step = _per_step(run, windows, draws, seed, progress)
    trajectory, start = windows.index.numpy().T

    def grid(values: npt.NDArray) -> npt.NDArray[np.float32]:
        shape = (dataset.sizes["trajectory"], dataset.sizes["time"], *values.shape[1:])
        out = np.full(shape, np.nan, np.float32)
        out[trajectory, start + history - 1] = values
        return out

    def of_seen(values: npt.NDArray) -> npt.NDArray[np.float32]:
        return grid(np.where(seen, values, np.nan))  # of those bodies of a set that were there

    mean, spread, distortion, seen = per_step
    where, each = ("trajectory", "time"), ("trajectory", "time", "latent_dim")
    surgery = elbo_surgery(mean, spread, seed=seed)
    there = np.isfinite(dataset["position"].to_numpy()[trajectory, start + history])
    step, rates, distortions = training_path(run, coordinates=float(there.sum((1, 2)).mean()))
    return xr.Dataset(
        {
            "kl": (each, of_seen(kl_to_prior(mean, spread)), {"units": "nats"}),
            "residual_mean": (each, of_seen(mean), {"units": "prior standard deviations"}),
            "residual_scale": (each, of_seen(spread), {"units": "prior standard deviations"}),
            "distortion": (where, grid(distortion), {"units": "nats"}),
            "activity": ("latent_dim", activity(np.where(seen, mean, np.nan))),
            "information": surgery.information, "marginal_kl": surgery.marginal_kl,
            "surgery_rate": surgery.rate, "surgery_error": surgery.standard_error,
            "surgery_steps": surgery.steps,
            "training_rate": ("training_step", rates),
            "training_distortion": ("training_step", distortions),
        },
        coords={
            **{name: dataset[name] for name in where},
            "latent_dim": np.arange(mean.shape[1]), "training_step": step,
        },
        attrs={
            "fps": float(dataset.attrs["fps"]), "units": data_units(dataset), "draws": draws,
            "trained": run.config.importance_samples,
        },
    )  # fmt: skip


def kl_per_step(use: xr.Dataset) -> Array:
    """Mean KL of each latent dimension (latent_dim,), nats per step; 0 of who was not there.

    Args:
        use: from `latent_use`.
    """
    each = use["kl"].fillna(0).where(use["distortion"].notnull())
    return each.mean(("trajectory", "time")).to_numpy()


def _at_most(dataset: xr.Dataset, most: int) -> xr.Dataset:
    """Trajectories evenly spread, together of at most ``most`` frames, padding counted."""
    dataset = dataset.isel(time=slice(0, most))
    several = max(1, most // dataset.sizes["time"])
    return dataset.isel(trajectory=evenly(dataset.sizes["trajectory"], several))


def _per_step(run: Run, windows: Windows, draws: int, seed: int, progress: bool) -> list[Array]:
    """Residual mean and scale (step, Z), distortion (step,) in data units, and what was seen.

    The last, (step, Z), is whether the guide saw anything of what each dimension is of.
    """
    which = torch.arange(len(windows))
    parts: list[tuple[torch.Tensor, ...]] = []
    with torch.random.fork_rng(), tqdm(
        total=len(which), desc="latent", unit="step", disable=not progress, delay=1
    ) as bar:  # fmt: skip
        torch.manual_seed(seed)
        for part, drawn in window_steps(run.guide, windows, which, draws):
            bar.update(len(part))
            p, q = drawn.prior, drawn.posterior
            jacobian = run.card.scale.log_jacobian(drawn.seen.sum(-1))
            distortion = jacobian - drawn.log_policy.sum(-1).mean(0)
            residual = (q.loc - p.loc) / p.scale, q.scale / p.scale
            # where each draw has a past of its own, that of one draw
            residual = tuple(x[0] if x.dim() == 4 else x for x in residual)
            parts.append((*(x.double() for x in (*residual, distortion)), drawn.latent_seen()))
    return [torch.cat(part, 1)[0].cpu().numpy() for part in zip(*parts, strict=True)]
