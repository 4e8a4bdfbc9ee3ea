"""The held-out score: log density of what the bodies did next, beside the baselines.

For each recorded step with its context, log p(a_t | c_t) is bounded from below by

    IWAE_K = E log (1/K) sum_k  pi(a_t | c_t, z_k) p(z_k | c_t) / q(z_k | c_t, s~_{t+1}),   z_k ~ q

(Burda, Grosse & Salakhutdinov 2016), nondecreasing in K and exact in the limit; K = 1 is the ELBO.
Summed over steps it bounds the log density of the recording; where latents are carried from step to
step, c_t includes them, drawn by a particle filter (`infer.steps`). All models are scored on the
same steps, on the same draw of dequantisation noise, in nats per step of the joint displacement in
data units.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import numpy.typing as npt
import torch
import xarray as xr
from torch import Tensor

from pyro_animacy.data.windows import Batch, Scale, Windows, dequantised, evenly
from pyro_animacy.errors import RunError
from pyro_animacy.infer.steps import Steps, draw_steps, log_mean_exp, window_steps
from pyro_animacy.models.linear_gaussian import EACH, LinearAutoregression, Moments
from pyro_animacy.models.program import MessengerGuide
from pyro_animacy.models.scene import SceneModel
from pyro_animacy.progress import tqdm

BASELINE_ORDERS = (1, 2, 3, 4, 5)
DEQUANTISE_TRAIN, DEQUANTISE_HELDOUT = 1, 2  # seeds of the fixed draws of noise
FEWEST = 5  # groups whose spread says how far off their mean may be
GROUPS = 20  # stretches of time, at least, of fewer recordings
CHUNK = 65_536  # windows that the baselines score together
MOST_STEPS = 50_000


def log_density(guide: MessengerGuide, batch: Batch, draws: int) -> tuple[Tensor, Tensor]:
    """Bounds on log p(a_t | c_t) of every step of a batch, in model units.

    Args:
        guide: The guide, bound to its model.
        batch: Windows; a model that remembers knows nothing before them.
        draws: K, the number of importance samples.

    Returns:
        IWAE_K and the ELBO (the mean of the log weights), each (T, B).
    """
    return bounds(draw_steps(guide, batch, draws))


def bounds(steps: Steps) -> tuple[Tensor, Tensor]:
    """IWAE_K and the ELBO of the joint displacement of each step, each (T, B)."""
    log_w = steps.log_weight
    return log_mean_exp(log_w).sum(-1), log_w.mean(0).sum(-1)


@dataclass(frozen=True)
class Score:
    """Held-out log density in nats per step of the joint displacement, data units.

    Attributes:
        model: IWAE, mean over steps.
        elbo: ELBO, mean over the same steps; where latents remember, the mean log weight of the
            filter's particles, whose past is resampled.
        standard_error: Of ``model``, over recordings or, where there are few, stretches of time.
        baselines: Mean log density of each baseline on the same steps.
        gain_standard_error: Of the mean difference from the best baseline, paired by step.
        steps: Number of steps scored.
        bodies: How many bodies are there in a step, in the mean.
    """

    model: float
    elbo: float
    standard_error: float
    baselines: dict[str, float]
    gain_standard_error: float
    steps: int
    bodies: float

    @property
    def best_baseline(self) -> str:
        """Name of the baseline with the highest score."""
        return max(self.baselines, key=lambda name: self.baselines[name])


def least_context(*history: int) -> int:
    """Frames before a step that models of these histories and every baseline look back on."""
    return max(*history, max(BASELINE_ORDERS) + 1)


def scoring_windows(dataset: xr.Dataset, scale: Scale, history: int, parts: int = 1) -> Windows:
    """Complete windows of one step whose context serves the model and every baseline alike.

    Of ``parts`` that count by themselves, as the bodies of a set, the step of those is shown that
    are complete in a window.
    """
    context = least_context(history)
    return Windows(
        dataset, frames=context + 1, context=context, scale=scale, complete=True, parts=parts
    )


def fit_baselines(
    train: xr.Dataset,
    scale: Scale,
    history: int,
    types: Sequence[int] = (),
    *,
    progress: bool = False,
) -> dict[str, LinearAutoregression]:
    """Fit constant velocity and AR(1)..AR(5) to the training recordings, dequantised.

    Args:
        train: Recordings.
        scale: The model's scale.
        history: Frames in the model's context.
        types: Of each body of a set, which is compared with baselines of every body by itself
            too, one for all that are alike (``..._each``): those of the joint displacement learn
            many bodies by heart. Where bodies are absent at times, these are all there are.
        progress: Show a progress bar.
    """
    noisy = dequantised(train, DEQUANTISE_TRAIN)
    windows = scoring_windows(noisy, scale, history, max(1, len(types)))
    alike = [[i for i, of in enumerate(types) if of == kind] for kind in sorted({*types})]
    joint = [] if windows.partial else [range(windows.bodies)]
    everybody = [[*range(windows.bodies)]] if types else []
    most = max(BASELINE_ORDERS)
    moments = Moments.of(most, windows, joint, [*alike, *everybody], progress=progress)
    fits = {"constant_velocity": LinearAutoregression.constant_velocity} | {
        f"ar{order}": partial(LinearAutoregression.fit, order) for order in BASELINE_ORDERS
    }
    found = {name: fit(moments[0]) for name, fit in fits.items() if joint}
    if types:
        *kinds, of_all = moments[len(joint) :]
        each = [kind if kind.number else of_all for kind in kinds]  # of one that is not there
        found |= {
            f"{name}{EACH}": LinearAutoregression.each([*map(fit, each)], types)
            for name, fit in fits.items()
        }
    return found


def suitable(
    baselines: dict[str, LinearAutoregression], partial: bool
) -> dict[str, LinearAutoregression]:
    """The baselines that can be asked about scenes: of each body, where bodies come and go.

    Raises:
        RunError: If there is none.
    """
    found = {name: one for name, one in baselines.items() if name.endswith(EACH) or not partial}
    if not found:
        raise RunError(
            "the run's baselines are of all its bodies together, and here are others, or not all "
            "of them; fit it again (a set of bodies has baselines of each body too)"
        )
    return found


def of_baselines(
    baselines: dict[str, LinearAutoregression], windows: Windows, which: Tensor
) -> dict[str, Tensor]:
    """Log density of the step of each of these windows (W,) under every baseline, in data units."""
    found: dict[str, list[Tensor]] = {name: [] for name in baselines}
    for part in which.split(CHUNK):
        batch = windows.batch(part)
        jacobian = windows.scale.log_jacobian(batch.observed[-1].sum(-1).double())
        for name, baseline in baselines.items():
            found[name].append(baseline(batch) - jacobian)
    return {name: torch.cat(densities) for name, densities in found.items()}


def score(
    guide: MessengerGuide,
    heldout: xr.Dataset,
    *,
    scale: Scale,
    history: int,
    baselines: dict[str, LinearAutoregression],
    draws: int = 64,
    most: int = MOST_STEPS,
    progress: bool = False,
) -> Score:
    """Score the model and the baselines on the held-out recordings.

    Args:
        guide: The guide, bound to its model.
        heldout: Recordings the model has not seen.
        scale: The model's scale.
        history: Frames in the model's context.
        baselines: Those of `fit_baselines`.
        draws: K of IWAE.
        most: Steps scored at most; of more, this many are taken evenly spaced.
        progress: Show a progress bar.
    """
    scenes: SceneModel = guide.model  # type: ignore[assignment]
    noisy = dequantised(heldout, DEQUANTISE_HELDOUT)
    windows = scoring_windows(noisy, scale, history, scenes.parts)
    baselines = suitable(baselines, windows.partial)
    which = torch.from_numpy(evenly(len(windows), most))
    found: list[Tensor] = []
    seen = 0
    with torch.random.fork_rng(), tqdm(
        total=len(which), desc="score", unit="step", disable=not progress, delay=1
    ) as bar:  # fmt: skip
        torch.manual_seed(DEQUANTISE_HELDOUT)
        for part, steps in window_steps(guide, windows, which, draws):
            jacobian = scale.log_jacobian(steps.seen[-1].sum(-1).double())
            found.append(torch.stack([x[-1] - jacobian for x in bounds(steps)], 1).double().cpu())
            seen += int(steps.seen[-1].sum())
            bar.update(len(part))
    both, rivals = torch.cat(found), of_baselines(baselines, windows, which)
    best = max(rivals.values(), key=lambda values: values.mean())
    index = np.stack(windows.places(which), 1)
    model, standard_error = mean_and_error(both[:, 0].numpy(), heldout, index)
    return Score(
        model=model,
        elbo=both[:, 1].mean().item(),
        standard_error=standard_error,
        baselines={name: values.mean().item() for name, values in rivals.items()},
        gain_standard_error=mean_and_error((both[:, 0] - best).numpy(), heldout, index)[1],
        steps=len(which),
        bodies=seen / (len(which) * windows.axes),
    )


def independent_groups(
    dataset: xr.Dataset, index: npt.NDArray[np.int64], fewest: int = FEWEST
) -> npt.NDArray[np.int64]:
    """Number of the group of each step, such that steps of different groups are nearly independent.

    A group is a recording or, where there are fewer than ``fewest``, a stretch of time of one, so
    that there are GROUPS: all trajectories cut from the same frames of a recording are in one
    group. Stretches are of as many of the different frames at which there is a step, so that none
    is empty, as in a pause. Those of one recording may be more alike than recordings are.

    Args:
        dataset: Recordings.
        index: (step, 2) trajectory and first frame of each step's window.
        fewest: Recordings that are enough.

    Returns:
        (step,) numbers from 0, in the order of recording and time.
    """
    trajectory, start = index.T
    _, recording = np.unique(dataset["recording"].to_numpy()[trajectory], return_inverse=True)
    frame = dataset["start"].to_numpy()[trajectory] + start
    end = int(frame.max()) + 1
    moments, moment = np.unique(recording * end + frame, return_inverse=True)
    frames = np.bincount(moments // end)  # of each recording
    pieces = 1 if len(frames) >= fewest else -(-GROUPS // len(frames))
    rank = moment - (frames.cumsum() - frames)[recording]
    stretch = rank * pieces // frames[recording]
    return np.unique(recording * pieces + stretch, return_inverse=True)[1]


def mean_and_error(
    values: npt.NDArray[np.float64], dataset: xr.Dataset, index: npt.NDArray[np.int64]
) -> tuple[float, float]:
    """Mean over dependent steps and its standard error, by the spread of the sums over groups.

    Of three or four recordings, the greater of the spreads over stretches and over recordings.

    Args:
        values: (step,) one a step.
        dataset: Recordings; see `independent_groups`.
        index: (step, 2) trajectory and frame of each.

    Returns:
        Mean and standard error; NaN where there are no steps, or too few groups of them.
    """
    if not len(values):
        return math.nan, math.nan
    mean, group = float(values.mean()), independent_groups(dataset, index)
    if group.max() + 1 < FEWEST:  # two standard errors of less would be no 95 % interval by far
        return mean, math.nan
    recording = independent_groups(dataset, index, 1)
    kinds = [group, recording] if 2 < recording.max() + 1 < FEWEST else [group]

    def error(of: npt.NDArray[np.int64]) -> float:
        G, totals = int(of.max()) + 1, np.bincount(of, weights=values - mean)
        return float(np.sqrt(np.square(totals).sum() * G / (G - 1)) / len(values))

    return mean, max(map(error, kinds))
