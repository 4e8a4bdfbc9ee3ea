"""What a model of episodes gets right, in numbers.

    bound           held-out ELBO beside the log density of probabilistic PCA
    pictures        squared error of reconstructions beside PCA and the mean frame
    latent          KL(q || p) of each dimension, and which are active
    open loop       squared error k frames ahead beside "the last frame stays"

`criticise_episodes` takes them all, `episodes_plots` puts them in figures and words. Squared errors
are per pixel, whose range is 1, or per feature in its standard deviations.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
import xarray as xr
from torch.distributions import kl_divergence

from pyro_animacy.data.episode_windows import EpisodeBatch, EpisodeWindows
from pyro_animacy.data.windows import consecutive, evenly
from pyro_animacy.errors import DataError
from pyro_animacy.infer.episodes import AT_ONCE
from pyro_animacy.infer.predict_episodes import predict_episodes
from pyro_animacy.infer.run import Run
from pyro_animacy.models.image_vae import ACTIVE, RESOLUTION, ImageVAE

DRAWS = 8  # of each forecast
PCA_FRAMES = 3000  # of the training part, at most
Array = npt.NDArray[np.float64]


class Principal(NamedTuple):
    """Principal components of frames, and the density that they stand for.

    Attributes:
        mean: The mean frame (D,).
        basis: Orthonormal columns (D, K).
        variance: Of each component (K,), the largest first.
        rest: Mean variance of a direction that is left over.
    """

    mean: npt.NDArray[np.float32]
    basis: npt.NDArray[np.float32]
    variance: Array
    rest: float


def principal_components(x: npt.NDArray[np.float32], count: int) -> Principal:
    """The ``count`` leading principal components of x (N, D), by the N x N matrix of products."""
    N, D = x.shape
    if not 0 < count < min(N, D):
        raise DataError(f"{count} principal components of {N} frames of {D} numbers")
    mean = x.mean(0)
    centred = x - mean
    total = float(np.square(centred).sum(dtype=np.float64)) / N
    values, vectors = np.linalg.eigh((centred @ centred.T).astype(np.float64))
    values, vectors = values[::-1][:count], vectors[:, ::-1][:, :count]
    basis = centred.T @ (vectors / np.sqrt(np.maximum(values, 1e-12))).astype(np.float32)
    variance = values / N
    rest = max((total - variance.sum()) / (D - count), RESOLUTION**2 / 12)
    return Principal(mean, basis, np.maximum(variance, rest), rest)


def projected(of: Principal, x: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Frames x (N, D) as the components give it back."""
    back = of.mean + ((x - of.mean) @ of.basis) @ of.basis.T
    return back.astype(np.float32)


def log_density(of: Principal, x: npt.NDArray[np.float32]) -> Array:
    """Log p(x) of probabilistic PCA (Tipping & Bishop 1999), its most likely fit: (N,) nats.

    p(x) = N(mean, U diag(variance - rest) U' + rest I)
    """
    centred = x - of.mean
    along = (centred @ of.basis).astype(np.float64) ** 2
    across = np.square(centred).sum(1, dtype=np.float64) - along.sum(1)
    D, K = of.basis.shape
    log_det = np.log(of.variance).sum() + (D - K) * np.log(of.rest)
    return -0.5 * (D * np.log(2 * np.pi) + log_det + (along / of.variance).sum(1)
                   + np.maximum(across, 0) / of.rest)  # fmt: skip


class Paired(NamedTuple):
    """A difference of two errors and its standard error, over episodes."""

    difference: float
    error: float


def paired(ours: Array, theirs: Array, episode: npt.NDArray[np.int64]) -> Paired:
    """Mean of ours - theirs (N,) and its standard error, whose units are episodes (N,), not frames.

    The standard error is NaN with fewer than two episodes.
    """
    each = [float((ours - theirs)[episode == e].mean()) for e in np.unique(episode)]
    error = np.std(each, ddof=1) / np.sqrt(len(each)) if len(each) > 1 else np.nan
    return Paired(float(np.mean(each)), float(error))


@dataclass(frozen=True)
class Pictures:
    """Held-out frames as recorded, given back, and invented.

    Attributes:
        recorded: (N, height, width, channel) uint8, evenly chosen.
        reconstructed: Of the same frames, z sampled from q.
        generated: Frames of z from the prior; empty for a model of time.
        errors: Mean squared error by frame (M,), of ``model``, ``mean frame`` and PCA.
        episode: Which episode each of the M frames is of.
        components: K of PCA; 0 where there was nothing to fit it to.
        density: log p of the M frames by PCA, and the bound of an image VAE, ``model``: nats.
    """

    recorded: npt.NDArray[np.uint8]
    reconstructed: npt.NDArray[np.uint8]
    generated: npt.NDArray[np.uint8]
    errors: dict[str, Array]
    episode: npt.NDArray[np.int64]
    components: int
    density: dict[str, Array]


@dataclass(frozen=True)
class OpenLoop:
    """Forecasts beside what was recorded: k = 1..H frames after the context.

    Attributes:
        errors: Mean squared error (window, H) of ``open loop`` (the mean of the draws),
            ``last frame stays``, ``reconstruction``, and ``other actions`` where there are actions.
        reward: Likewise (window, H) of rewards, of ``open loop``, ``mean reward`` (if known) and
            ``reconstruction``; empty without rewards.
        episode: Which episode each window is of.
        context: Frames given.
        fps: Frames per second.
        recorded: One window (T, ...).
        reconstructed: Of the same window.
        predicted: Draws of it (draw, T, ...).
    """

    errors: dict[str, Array]
    reward: dict[str, Array]
    episode: npt.NDArray[np.int64]
    context: int
    fps: float
    recorded: npt.NDArray
    reconstructed: npt.NDArray
    predicted: npt.NDArray


def windows(dataset: xr.Dataset, frames: int, most: int) -> tuple[xr.Dataset, npt.NDArray]:
    """At most ``most`` whole windows of ``frames`` each, evenly chosen, as episodes of their own.

    The reward met at a window's first frame is of an action before it, and is left out.

    Returns:
        The windows, and which episode (W,) each is of.

    Raises:
        DataError: If no episode is so long.
    """
    rows, begin, _ = consecutive(dataset["length"].to_numpy(), frames, least=frames)
    if not len(rows):
        raise DataError(f"no episode has {frames} frames; give a smaller --frames")
    picked, parts = evenly(len(rows), most), []
    for i, start in zip(rows[picked], begin[picked], strict=True):
        part = dataset.isel(trajectory=[i], time=slice(start, start + frames))
        name = f"{part['trajectory'].item()}, frame {start}"
        part = part.assign_coords(trajectory=[name], length=("trajectory", [frames]))
        parts.append(part.drop_vars("time", errors="ignore"))
    joined = xr.concat(parts, "trajectory")
    if "reward" in joined:
        joined["reward"] = joined["reward"].where(np.arange(frames) > 0, np.float32(0))
    return joined, rows[picked]


def pictures(run: Run, cut: xr.Dataset, episode: npt.NDArray, fitted: xr.Dataset | None,
             seed: int) -> Pictures:  # fmt: skip
    """Reconstruct the frames of windows, and compare with principal components of training frames.

    Args:
        run: A run on images.
        cut: From `windows`.
        episode: Which episode each window is of.
        fitted: What the run was fitted to; None where it is not known.
        seed: Seeds the draws.
    """
    options: dict[str, Any] = {"draws": 1, "seed": seed, "progress": False}
    made = predict_episodes(run, cut, mode="reconstruct", **options)
    x = _frames(cut["image"].to_numpy())
    back = _frames(_image(made, "posterior_predictive")[0])
    errors = {"model": _squares(back, x)}
    density: dict[str, Array] = {}
    K = 0
    if fitted is not None:
        frames = training_frames(fitted)
        Z = run.model.latent_size
        K = min(Z, len(frames) - 1)
        of = principal_components(frames, K) if K else None
        flat = x.reshape(len(x), -1)
        mean = frames.mean(0)
        errors["mean frame"] = _squares(np.broadcast_to(mean, flat.shape), flat)
        if of is not None:
            errors["PCA"] = _squares(projected(of, flat), flat)
            density["PCA"] = log_density(of, flat)
    shown = evenly(len(x), 8)
    generated = np.empty((0, *x.shape[1:]), np.uint8)
    if isinstance(run.model, ImageVAE):
        guide: Any = run.guide
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            bound = [
                guide.log_evidence(part, 1)
                for part in torch.from_numpy(x).movedim(-1, 1).split(AT_ONCE // 4)
            ]
            density["model"] = torch.cat(bound).double().numpy()
            generated = np.asarray(run.model.generate(16).movedim(1, -1).mul(255).round().byte())
    return Pictures(
        recorded=_bytes(x[shown]), reconstructed=_bytes(back[shown]), generated=generated,
        errors=errors, episode=np.repeat(episode, cut.sizes["time"]), components=K,
        density=density,
    )  # fmt: skip


def training_frames(fitted: xr.Dataset) -> npt.NDArray[np.float32]:
    """At most `PCA_FRAMES` frames of episodes, evenly chosen: (N, D), pixels in [0, 1]."""
    inside = np.arange(fitted.sizes["time"]) < fitted["length"].to_numpy()[:, None]
    i, t = np.nonzero(inside)
    chosen = evenly(len(i), PCA_FRAMES)
    image = fitted["image"].to_numpy()[i[chosen], t[chosen]]
    return image.reshape(len(chosen), -1).astype(np.float32) / np.float32(255)


@torch.no_grad()
def latent_use(run: Run, cut: xr.Dataset, seed: int) -> xr.Dataset:
    """KL(q || p) of each dimension at each frame, and how far its posterior mean moves.

    Returns:
        ``kl`` (trajectory, time, latent_dim) nats; ``activity`` (latent_dim), the variance over
        frames of the posterior mean, in prior variances around the prior mean (Burda et al. 2016);
        NaN for classes.
    """
    of, T = EpisodeWindows(cut, cut.sizes["time"]), cut.sizes["time"]
    kl, moved = [], []
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for part in torch.arange(len(of)).split(max(1, AT_ONCE // (4 * T))):
            q, p = zip(*_answers(run.guide, of.batch(part)), strict=True)
            each = [kl_divergence(*both) for both in zip(q, p, strict=True)]
            kl.append(torch.stack(each).flatten(0, -3))
            if hasattr(q[0], "loc"):
                away = [(a.loc - b.loc) / b.scale for a, b in zip(q, p, strict=True)]
                moved.append(torch.stack(away).flatten(0, -3))
    found = torch.cat(kl, 1)
    activity = torch.full((found.shape[-1],), torch.nan)
    if moved:
        activity = torch.cat(moved, 1).flatten(0, 1).var(0)
    return xr.Dataset({
        "kl": (("trajectory", "time", "latent_dim"), found.transpose(0, 1).numpy()),
        "activity": ("latent_dim", activity.numpy()),
    })  # fmt: skip


def _answers(guide: Any, batch: EpisodeBatch) -> list[tuple[Any, Any]]:
    """Posteriors and priors of z_t in the order of time; one of all where they are independent."""
    guide(batch)
    priors, posteriors = guide.get_traces()
    every = [f"latent_{t}" for t in range(len(batch.observed))]
    steps = [name for name in every if name in posteriors.nodes] or ["latent"]
    return [(posteriors.nodes[n]["fn"].base_dist, priors.nodes[n]["fn"].base_dist) for n in steps]


def active(use: xr.Dataset) -> npt.NDArray[np.bool_]:
    """Which dimensions of `latent_use` say something; of classes, those with KL over 0.01."""
    moved, kl = use["activity"].to_numpy(), use["kl"].mean(("trajectory", "time")).to_numpy()
    return np.where(np.isnan(moved), kl, moved) > ACTIVE


def open_loop(run: Run, cut: xr.Dataset, episode: npt.NDArray, context: int,
              mean_reward: float | None, seed: int) -> OpenLoop:  # fmt: skip
    """Forecast windows after ``context`` frames, and compare with simple rules.

    Args:
        run: A run of a model of time.
        cut: From `windows`.
        episode: Which episode each window is of.
        context: Frames given.
        mean_reward: What a rule without a model would say of every reward; None if not known.
        seed: Seeds the draws.
    """
    options: dict[str, Any] = {"act": "recorded", "seed": seed, "progress": False}
    ahead = predict_episodes(run, cut, mode="forecast", draws=DRAWS, context=context, **options)
    back = predict_episodes(run, cut, mode="reconstruct", draws=1, **options)
    name = "image" if run.card.sight.image else "observation"
    unit = 255.0 if run.card.sight.image else np.array(run.card.sight.spread)
    x = cut[name].to_numpy()
    predicted, followed = (
        tree[group][name].to_numpy()[0]
        for tree, group in ((ahead, "predictions"), (back, "posterior_predictive"))
    )

    def error(y: npt.NDArray) -> Array:
        square = ((y.astype(np.float64) - x[:, context:]) / unit) ** 2
        return square.mean(tuple(range(2, square.ndim)))

    errors = {
        "open loop": error(predicted[:, :, context:].mean(0)),
        "last frame stays": error(x[:, context - 1 : context]),
        "reconstruction": error(followed[0][:, context:]),
    }
    if run.card.sight.actions and len(x) > 1:
        action = cut["action"].to_numpy().copy()
        action[:, context - 1 :] = np.roll(action[:, context - 1 :], 1, axis=0)
        other = cut.assign(action=(cut["action"].dims, action))
        told = predict_episodes(
            run, other, mode="forecast", draws=DRAWS, context=context, **options
        )
        astray = told["predictions"][name].to_numpy()[0][:, :, context:]
        errors["other actions"] = error(astray.mean(0))
    reward: dict[str, Array] = {}
    if run.card.sight.reward:
        r = cut["reward"].to_numpy()[:, context:].astype(np.float64)
        of_ahead = ahead["predictions"]["reward"].to_numpy()[0][:, :, context:].mean(0)
        of_back = back["posterior_predictive"]["reward"].to_numpy()[0, 0][:, context:]
        reward = {"open loop": (of_ahead - r) ** 2, "reconstruction": (of_back - r) ** 2}
        if mean_reward is not None:
            reward["mean reward"] = (mean_reward - r) ** 2
    shown = int(np.argsort(errors["last frame stays"].mean(1))[len(x) // 2])  # a middling one
    return OpenLoop(
        errors=errors, reward=reward, episode=episode, context=context, fps=run.card.fps,
        recorded=x[shown], reconstructed=followed[0][shown], predicted=predicted[:, shown],
    )  # fmt: skip


def _image(tree: xr.DataTree, group: str) -> npt.NDArray[np.uint8]:
    """Draws (draw, trajectory, time, height, width, channel) of the first chain."""
    return tree[group]["image"].to_numpy()[0]


def _frames(image: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    """Images (trajectory, time, ...) as (frames, ...), pixels in [0, 1]."""
    return image.reshape(-1, *image.shape[2:]).astype(np.float32) / np.float32(255)


def _bytes(image: npt.NDArray[np.float32]) -> npt.NDArray[np.uint8]:
    return (255 * image).round().astype(np.uint8)


def _squares(y: npt.NDArray[np.float32], x: npt.NDArray[np.float32]) -> Array:
    """Mean squared error of each frame (N,)."""
    square: npt.NDArray = np.square(y - x).reshape(len(x), -1)
    return square.mean(1, dtype=np.float64)
