"""Is the guide good? Importance weights and simulation-based calibration of q(z_t | c_t, s~_{t+1}).

With z_s drawn from the guide, the log weights

    log w_s = log pi(a_t | c_t, z_s) + log p(z_s | c_t) - log q(z_s | c_t, s~_{t+1})

are all log p(a_t | c_t) where q is the exact posterior. Their tail says how far it is from that
(Pareto k-hat), their mean bounds the evidence (ELBO, IWAE), and simulated steps say in which
direction each latent dimension is off (VSBC).
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import scipy
import torch
import xarray as xr
from numpy.typing import ArrayLike, NDArray
from scipy.special import logsumexp
from torch import Tensor

from pyro_animacy.criticism.aligned import data_units
from pyro_animacy.data.schema import pieces
from pyro_animacy.data.windows import Batch, consecutive, dequantised, evenly
from pyro_animacy.errors import ConfigError, DataError
from pyro_animacy.infer.run import Run, check_kind, suited
from pyro_animacy.infer.score import DEQUANTISE_HELDOUT
from pyro_animacy.infer.steps import draw_steps, follow, needs_gaussian_latent, trajectory_batches
from pyro_animacy.models.program import Evidence, MessengerGuide
from pyro_animacy.models.scene import SceneModel
from pyro_animacy.progress import tqdm

Array = NDArray[np.float64]

FEWEST = 25  # draws: a fifth of them is the tail, to which psislw fits with at least 5
EQUAL = 1e-3  # nats by which log weights may differ and be equal: single precision gives 1e-5
STRETCH = 50  # steps weighted together, at most
AT_ONCE = 65_536  # draws x steps in the networks at once


class Psis(NamedTuple):
    """Pareto-smoothed importance sampling, each of the shape of the weights less the draws.

    Attributes:
        k_hat: Shape of the generalised Pareto distribution fitted to the largest weights.
        ess: Effective sample size, 1 / sum_s w~_s^2, of the normalised smoothed weights w~.
        log_mean: Log of the mean of the smoothed weights: an estimate of the log evidence.
        standard_error: Of ``log_mean``.
    """

    k_hat: Array
    ess: Array
    log_mean: Array
    standard_error: Array


def psis(log_weight: ArrayLike, axis: int = 0) -> Psis:
    """Pareto-smoothed importance sampling (Vehtari, Simpson, Gelman, Yao & Gabry 2024, JMLR 25).

    The tail is fitted and smoothed by `arviz_stats`' ``psislw``, which takes minus the log weights
    and returns them normalised. By the delta method log_mean has the variance
    sum_s w~_s^2 - 1/S; it holds where k-hat is below 0.5, and is roughly right up to 0.7.

    Three kinds of weights have no tail to fit, and none is smoothed. Where the largest min(S / 5,
    3 sqrt S) are equal (log weights within 0.001), the weights have a bound that many draws reach:
    k-hat is -inf, the limit of the shape of such a tail. The exact posterior makes all equal, with
    an effective sample size of S. Where floating point does not hold the tail, k-hat is inf: the
    largest weight exceeds nearly all others by too much, or the log weights are so large (beyond
    8,000 nats) that in single precision others become equal. Where a log weight is not finite, all
    results are NaN.

    Args:
        log_weight: Log weights of S draws, at least 25; unnormalised.
        axis: The axis of the draws.

    Raises:
        ConfigError: If there are fewer than 25 draws.
    """
    from arviz_stats.base import array_stats  # here: it takes long to load

    log_w = np.moveaxis(np.asarray(log_weight, np.float64), axis, -1)
    S = log_w.shape[-1]
    if S < FEWEST:
        raise ConfigError(f"draws is {S}; the tail of importance weights needs at least {FEWEST}")
    finite = np.asarray(np.isfinite(log_w).all(-1))
    log_w = np.where(finite[..., None], log_w, np.nan)
    M = min(S // 5, math.isqrt(9 * S))  # the tail, as psislw takes it
    largest = log_w.max(-1)
    equal = largest - np.partition(log_w, -M)[..., -M] < EQUAL
    told_apart = np.abs(largest) < EQUAL / np.finfo(np.float32).eps
    k_hat = np.where(equal, np.where(told_apart, -np.inf, np.inf), np.nan)
    smooth = log_w - logsumexp(log_w, -1, keepdims=True)
    fit = finite & ~equal
    if fit.any():
        with np.errstate(all="ignore"):
            smoothed, shape = array_stats.psislw(-log_w[fit], axis=-1)
        held = np.isfinite(smoothed).all(-1)
        k_hat[fit] = np.where(held, shape, np.inf)
        smooth[fit] = np.where(held[:, None], smoothed, smooth[fit])
    # psislw loses the level of the weights; the least is never in the tail, so it still has it.
    least = log_w.argmin(-1)[..., None]
    level = np.take_along_axis(log_w - smooth, least, -1)[..., 0]
    square = np.exp(logsumexp(2 * smooth, -1))
    error = np.sqrt(np.maximum(square - 1 / S, 0))
    return Psis(k_hat, 1 / square, level - math.log(S), error)


def psis_of_parts(log_weight: ArrayLike) -> Psis:
    """`psis` of a density that is a product of parts, each with weights of its own.

    Args:
        log_weight: (S, ..., parts).

    Returns:
        Of the whole, (...): the log densities add up; k-hat is the largest of the parts, the
        effective sample size the least.
    """
    each = psis(log_weight)
    error = np.linalg.norm(each.standard_error, axis=-1)
    return Psis(each.k_hat.max(-1), each.ess.min(-1), each.log_mean.sum(-1), error)


def k_hat_threshold(draws: int) -> float:
    """Greatest k-hat at which S draws suffice, min(1 - 1 / log10 S, 0.7) (Vehtari et al. 2024)."""
    return min(1 - 1 / math.log10(draws), 0.7)


def iwae_curve(log_weight: ArrayLike, sizes: Sequence[int]) -> tuple[Array, Array]:
    """IWAE_K = E log (1/K) sum_k w_k (Burda, Grosse & Salakhutdinov 2016, equation 8), by K.

    The mean over the disjoint groups of K among the S draws, each an unbiased estimate. In
    expectation IWAE_K does not fall with K and ends at the log evidence; K = 1 is the ELBO.

    Args:
        log_weight: (S, ...) log weights.
        sizes: Values of K, each from 1 to S.

    Returns:
        IWAE_K and its Monte Carlo standard error, each (len(sizes), ...); the error is NaN where
        there is only one group.

    Raises:
        ConfigError: If a K is not from 1 to S.
    """
    log_w = np.asarray(log_weight, np.float64)
    bounds, errors = [], []
    for K in sizes:
        if not 1 <= K <= len(log_w):
            raise ConfigError(f"K of IWAE is {K}; expected 1 to the number of draws, {len(log_w)}")
        G = len(log_w) // K
        group = logsumexp(log_w[: G * K].reshape(G, K, *log_w.shape[1:]), 1) - math.log(K)
        bounds.append(group.mean(0))
        spread = group.std(0, ddof=1) if G > 1 else np.full(group.shape[1:], np.nan)
        errors.append(spread / math.sqrt(G))
    return np.stack(bounds), np.stack(errors)


class Vsbc(NamedTuple):
    """How p = Q(z <= z*) is spread in each latent dimension, each (Z,).

    Attributes:
        bias: Mean of p less 1/2: positive where q lies too low.
        spread: Variance of p over that of the uniform, 1/12: above 1 where q is too narrow (p
            heaps up at 0 and 1), below 1 where it is too wide.
        distance: Kolmogorov-Smirnov distance between p and 1 - p.
        asymmetry_p: p-value of that distance, if p is symmetric about 1/2.
    """

    bias: Array
    spread: Array
    distance: Array
    asymmetry_p: Array


def vsbc(probability: ArrayLike) -> Vsbc:
    """Variational simulation-based calibration (Yao, Vehtari, Simpson & Gelman 2018, section 3.2).

    If q is the exact posterior, p is uniform; if q has the right centre, p is symmetric about 1/2.
    The distance is that of `scipy.stats.ks_2samp`. Its p-value would be too small, as p and 1 - p
    are not independent samples: under symmetry N distance is the greatest |S_n| of a random walk
    of N steps, so sqrt(N) distance -> sup |Brownian motion on (0, 1)| (Butler 1969, Ann. Math.
    Stat. 40).

    Args:
        probability: (N, Z) values of p, of N independent simulations; NaN where there was none.
    """
    p = np.asarray(probability, np.float64)
    each = [x[~np.isnan(x)] for x in p.T]
    distance = np.array([scipy.stats.ks_2samp(x, 1 - x, method="asymp").statistic for x in each])
    count = np.array([*map(len, each)])
    # P(sup |W| > x) = 4 sum_n (-1)^n P(N(0, 1) > (2n + 1) x), by reflection.
    n = np.arange(50)
    x = np.maximum(np.sqrt(count) * distance, 0.1)[:, None]  # below, 1; the series ends too soon
    tails = scipy.stats.norm.sf((2 * n + 1) * x)
    asymmetry = np.clip(4 * ((-1.0) ** n * tails).sum(-1), 0, 1)
    bias, spread = (np.array([f(x) for x in each]) for f in (np.mean, np.var))
    return Vsbc(bias - 0.5, 12 * spread, distance, asymmetry)


@torch.no_grad()
def simulated_probability(guide: MessengerGuide, batch: Batch) -> Tensor:
    """Simulate a step from each recorded one and ask the guide for its latent: p = Q(z <= z*).

    z* ~ p(z | c) and a ~ pi(a | c, z*); p is the normal distribution function of
    q(z | c, a) at z*, in each dimension. c includes the memory of the past, where there is one.

    Args:
        guide: The guide, bound to its model.
        batch: Windows of ``history + T`` frames.

    Returns:
        p (T, B, Z); of a body of a set that is not there it means nothing.

    Raises:
        ConfigError: If the model has no Gaussian latent.
    """
    model: SceneModel = guide.model  # type: ignore[assignment]
    needs_gaussian_latent(model)
    followed = follow(guide, batch)
    prior = followed.prior
    z = prior.sample()
    a = model.policy(followed.evidence.context, followed.memory._replace(latent=z)).sample()
    seen = torch.ones(*a.shape[:-1], 1, dtype=torch.bool, device=a.device)
    return guide.posterior(prior, Evidence(followed.known, a, seen)).base_dist.cdf(z)


def guide_quality(
    run: Run,
    dataset: xr.Dataset,
    *,
    draws: int = 256,
    most: int = 1000,
    seed: int = 0,
    progress: bool = True,
) -> xr.Dataset:
    """Measure a run's guide on recordings, teacher forced: every step from its recorded context.

    Trajectories are cut into stretches of 50 steps, of which some are taken evenly spaced. As in
    the held-out score, recordings are dequantised and densities are per data unit.

    Args:
        run: The fitted run.
        dataset: Recordings, best those it was not fitted to.
        draws: S, draws of the guide at each step; at least 25.
        most: Steps looked at, at most (at least one stretch).
        seed: Seeds the draws and the simulated steps.
        progress: Show a progress bar.

    Returns:
        By step (trajectory, time), NaN where not observed: ``k_hat_step``, ``ess_step``, ``elbo``,
        ``log_density`` (PSIS) and its ``log_density_error``. By stretch (trajectory), of the
        joint weights: ``k_hat``, ``ess``, ``steps``. ``iwae`` and ``iwae_error`` (K, trajectory,
        time); ``kl`` (latent_dim), nats per step; ``vsbc`` (sample, latent_dim), p = Q(z <= z*)
        of one simulated step from each recorded context. Densities are in nats.

    Raises:
        ConfigError: If ``draws`` or ``most`` is too small, or the model has no Gaussian latent or
            one that it carries from step to step.
        DataError: If the recordings do not suit the model, or none of them is long enough.
    """
    if draws < FEWEST or most < 1:
        raise ConfigError(
            f"draws is {draws} and most is {most}; expected at least {FEWEST} draws and 1 step"
        )
    check_kind(run.card, "scenes", run.path)
    needs_gaussian_latent(run.model)
    if run.model.latent_remembered:
        raise ConfigError(
            "the model carries its latents from step to step, and these measures are of steps that "
            "are independent; its scores are those of a particle filter"
        )
    history, scale = run.model.config.history, run.card.scale
    cut = _stretches(dequantised(suited(run.card, dataset), DEQUANTISE_HELDOUT), history, most)
    trained = min(run.config.importance_samples, draws // 4)
    powers = (2**i for i in range(int(math.log2(draws / 4)) + 1))  # 4 groups or more
    sizes = sorted({*powers, trained, draws})
    parameter = next(run.guide.parameters())
    chunks = list(trajectory_batches(cut, scale, max(1, AT_ONCE // draws)))
    parts: list[dict[str, Any]] = []
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        for _, batch in tqdm(chunks, disable=not progress, delay=1, desc="guide"):
            batch = batch.to(parameter.device, parameter.dtype)
            parts.append(_measured(run, batch, draws, sizes))
    along = {"iwae": 1, "iwae_error": 1}
    joined = {
        name: np.concatenate([part[name] for part in parts], axis=along.get(name, 0))
        for name in parts[0]
    }
    if not len(joined["vsbc"]):
        raise DataError(
            f"no step of these recordings follows {history} frames observed in full, which the "
            "model needs; use recordings with fewer gaps"
        )
    # NaN of a body that is never there
    joined["kl"] = np.ma.filled(np.ma.masked_invalid(joined["kl"]).mean(0), np.nan)
    step, curve = ("trajectory", "time"), ("K", "trajectory", "time")
    dims = {"k_hat": step[:1], "ess": step[:1], "steps": step[:1], "kl": ("latent_dim",),
            "vsbc": ("sample", "latent_dim"), "iwae": curve, "iwae_error": curve}  # fmt: skip
    return xr.Dataset(
        {name: (dims.get(name, step), value) for name, value in joined.items()},
        coords={
            "trajectory": cut["trajectory"].to_numpy(), "K": sizes,
            "time": cut["time"].to_numpy()[history - 1 : -1],
        },
        attrs={
            "draws": draws, "trained": trained, "units": data_units(dataset),
            "posterior_scale": run.card.config.get("posterior_scale", "learned"),
        },
    )  # fmt: skip


def _stretches(dataset: xr.Dataset, history: int, most: int) -> xr.Dataset:
    """Stretches of at most 50 steps with their history before them; ``most`` steps in all."""
    length = dataset["length"].to_numpy()
    rows, begin, end = consecutive(length, history + STRETCH, every=STRETCH, least=history + 1)
    if not len(rows):
        raise DataError(
            f"the longest trajectory has {int(length.max())} frames; the model's history of "
            f"{history} needs {history + 1}"
        )
    share = min(1.0, most / (end - begin - history).sum())
    chosen = evenly(len(rows), max(1, int(share * len(rows))))
    return pieces(dataset, rows[chosen], begin[chosen], end[chosen])


def _measured(run: Run, batch: Batch, draws: int, sizes: list[int]) -> dict[str, Any]:
    """What `guide_quality` returns, of one batch; ``kl`` (steps, latent_dim) of the seen steps."""
    drawn = draw_steps(run.guide, batch, draws)
    seen = drawn.seen.any(-1)
    jacobian = run.card.scale.log_jacobian(drawn.seen.sum(-1))
    weight = drawn.log_weight.double() - (jacobian / drawn.log_weight.shape[-1])[..., None]
    weight = weight.masked_fill(~seen[..., None], torch.nan)
    log_w = weight.transpose(1, 2).cpu().numpy()  # (S, trajectory, time, parts)
    each = psis_of_parts(log_w)
    joint = psis_of_parts(np.where(np.isnan(log_w).all(2), np.nan, np.nansum(log_w, 2)))
    iwae, error = iwae_curve(log_w, sizes)
    iwae, error = iwae.sum(-1), np.linalg.norm(error, axis=-1)
    simulated = simulated_probability(run.guide, batch)
    unseen = ~drawn.latent_seen()
    vsbc, kl = (
        x.masked_fill(unseen, torch.nan)[seen].double().cpu().numpy() for x in (simulated, drawn.kl)
    )
    return {
        "k_hat_step": each.k_hat, "ess_step": each.ess, "elbo": log_w.mean(0).sum(-1),
        "log_density": each.log_mean, "log_density_error": each.standard_error,
        "k_hat": joint.k_hat, "ess": joint.ess, "steps": seen.sum(0).cpu().numpy(),
        "iwae": iwae, "iwae_error": error, "kl": kl, "vsbc": vsbc,
    }  # fmt: skip
