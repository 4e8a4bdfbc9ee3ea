"""How alive a motion looks: what its bodies chose, and what no inert body would have done.

For every step of every body, in nats, at the time of s_t from which the step is taken; c_t is the
past of the scene, c^i_t that of body i alone:

- control information, KL(p(z_t | c_t, a_t) || p(z_t | c_t)): what the agents chose beyond what the
  scene made likely. The latent is one for the scene; of one body's motion by itself,
  KL(p(z_t | c_t, a^i_t) || p(z_t | c_t)), it is the body's choice. Both are of the model's own
  posterior: the guide only proposes the draws that are weighted.
- surprise, -log p_inert(a^i_t | c^i_t): under the best inertial body, `models.inertial`.
- evidence for an agent, log p_agent(a^i_t | c_t) + surprise: the log likelihood ratio of the step,
  each side with its fitted parameters. p_agent is the model's density of the body's step; for a
  body that is no agent (a ball), of its step in the place of an agent, the two having changed
  places, since a model that knows a ball and its players also foresees how they kick it.
- interaction, log p(a^i_t | c_t) - log p(a^i_t | c^i_t): what the others' past says of the step. In
  the second density the others are averaged over, log (1/M) sum_m p(a^i_t | c^i_t, others of m), as
  they were at the M moments elsewhere in the recordings when the body's own past was most like this
  (`surrogates`). The mean is the transfer entropy from the others to the body (Schreiber, Measuring
  information transfer, Physical Review Letters 85(2), 2000, equation 4), as far as the model is
  good and those moments are alike; it is more where they are not, or M is small. Of bodies that
  ignore each other it is 0, or less where the model errs.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
import xarray as xr
from scipy.special import logsumexp
from torch import Tensor

from pyro_animacy.criticism.importance import FEWEST, psis
from pyro_animacy.criticism.surrogates import like_moments
from pyro_animacy.data.schema import agents, visits
from pyro_animacy.data.windows import Batch, Windows, dequantised, evenly
from pyro_animacy.errors import ConfigError, DataError
from pyro_animacy.infer.run import Run, suited
from pyro_animacy.infer.score import DEQUANTISE_HELDOUT
from pyro_animacy.infer.steps import draw_steps
from pyro_animacy.models.inertial import inertial_surprise
from pyro_animacy.progress import tqdm

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]
DIMS = ("trajectory", "time", "body")
AT_ONCE = 16_384  # draws x steps in the networks at once, of up to so many bodies;
FEW_BODIES = 3  # of more, each of which is scored by itself, that many times fewer
REMEMBERED = 16  # frames before its history that a model with a memory is shown of each past
PARTICLES = 32  # of a filter, at least: a density given few of them is too low
MEASURES = {
    "control_information": "what the agents of the scene chose",
    "choice": "what the body's motion by itself tells of the latent",
    "surprise": "surprise under inert physics",
    "evidence": "evidence for an agent",
    "evidence_standard_error": "Monte Carlo standard error of the evidence (PSIS)",
    "k_hat": "Pareto k-hat of the importance weights of the evidence",
    "interaction": "what the others' past says of the body's step",
}


def score_animacy(
    run: Run,
    dataset: xr.Dataset,
    *,
    draws: int = 128,
    surrogates: int = 32,
    only: npt.NDArray[np.bool_] | None = None,
    steps: int | None = None,
    seed: int = 0,
    progress: bool = True,
) -> xr.Dataset:
    """Score how alive each body looks at each step, under a run whose bodies are agents.

    All densities are per data unit, of the same fixed draw of dequantisation noise as the held-out
    score.

    Args:
        run: The fitted run.
        dataset: Recordings of the same kind of scene. ``animate(body)`` says which bodies are
            agents; without it all are but one called "ball".
        draws: K, importance draws of the latent for each step.
        surrogates: M, moments elsewhere, the most like this, that the interaction takes the others
            from: of other recordings or, where there are few, of other times of the same one.
        only: Which steps to score, (trajectory, time), where all would take long; an inert body is
            fitted to the whole trajectory even so.
        steps: At most so many of these, evenly spaced; all by default. Inert bodies are then
            fitted to the trajectories that these are of.
        seed: Seeds all draws.
        progress: Show a progress bar.

    Returns:
        Variables MEASURES in nats, (trajectory, time, body), ``control_information`` (trajectory,
        time); NaN where a step, or the frames that its densities look back on, was not observed.
        There is no ``interaction`` of a single body.

    Raises:
        ConfigError: If there are too few draws or surrogates.
        DataError: If the recordings do not suit the model, or hold no step.
    """
    if draws < FEWEST:
        raise ConfigError(f"draws is {draws}; k-hat and its standard error need at least {FEWEST}")
    if steps is not None and steps < 1:
        raise ConfigError(f"steps is {steps}; it must be at least 1")
    data, linked = _prepared(run, dataset), {}
    inert = data
    if steps is not None:
        only = _evenly_spaced(run, data, only, steps)
        inert = data.isel(trajectory=only.any(1))
    if data.sizes["body"] > 1:
        linked["interaction"] = interaction(
            run, dataset, draws=draws, surrogates=surrogates, only=only, seed=seed,
            progress=progress,
        )  # fmt: skip
    animate = agents(data)
    result = _each_step(
        run, data, lambda windows, which, _: _of_agents(run, windows.batch(which), animate, draws),
        draws=draws, only=only, seed=seed, progress=progress,
    )  # fmt: skip
    result["surprise"] = inertial_surprise(inert, run.card.scale).reindex_like(result["evidence"])
    if only is not None:
        result["surprise"] = result["surprise"].where(xr.DataArray(only, dims=DIMS[:2]))
    result["evidence"] -= run.card.scale.log_jacobian(data.sizes["space"])
    result["evidence"] += result["surprise"]
    result = result.assign(linked)
    result = result[[name for name in MEASURES if name in result]].assign_coords(visits(data))
    for variable, measure in result.items():
        measure.attrs = {"long_name": MEASURES[str(variable)], "units": "nats"}
    result["k_hat"].attrs.update(units="1", draws=draws)
    return result


def interaction(
    run: Run,
    dataset: xr.Dataset,
    *,
    draws: int = 128,
    surrogates: int = 32,
    only: npt.NDArray[np.bool_] | None = None,
    seed: int = 0,
    progress: bool = True,
) -> xr.DataArray:
    """The interaction alone: log p(a^i_t | c_t) - log (1/M) sum_m p(a^i_t | c^i_t, others of m).

    Args:
        run: As for `score_animacy`, like the others.
        dataset: Likewise.
        draws: Likewise.
        surrogates: Likewise.
        only: Likewise.
        seed: Likewise.
        progress: Likewise.

    Returns:
        (trajectory, time, body) nats.

    Raises:
        ConfigError: If there are no surrogates, or only one body.
        DataError: As `score_animacy`.
    """
    if surrogates < 1:
        raise ConfigError(f"surrogates is {surrogates}; it must be at least 1")
    data = _prepared(run, dataset)
    if data.sizes["body"] < 2:
        raise ConfigError("one body alone has no interaction; give scenes of two or more")

    def measure(windows: Windows, which: Tensor, elsewhere: Tensor) -> dict[str, Floats]:
        return {"interaction": _interaction(run, windows, which, elsewhere, draws)}

    return _each_step(
        run, data, measure, draws=draws, surrogates=surrogates, only=only, seed=seed,
        progress=progress,
    )["interaction"]  # fmt: skip


def _prepared(run: Run, dataset: xr.Dataset) -> xr.Dataset:
    """The recordings as every density here takes them: the run's bodies, the held-out noise."""
    return dequantised(suited(run.card, dataset), DEQUANTISE_HELDOUT)


def _each_step(
    run: Run,
    dataset: xr.Dataset,
    measure: Callable[[Windows, Tensor, Tensor], dict[str, Floats]],
    *,
    draws: int,
    only: npt.NDArray[np.bool_] | None,
    seed: int,
    progress: bool,
    surrogates: int = 0,
) -> xr.Dataset:
    """Measure every step with its past, and those of so many moments elsewhere, some at a time.

    The recordings are `_prepared`, the steps all or ``only`` some. ``measure`` takes the
    windows, some of them, and the moments (body, M, step) of `like_moments`; it gives arrays
    (step,) or (step, body), and the result has them at (trajectory, time) or (trajectory, time,
    body), NaN where there is no step.
    """
    windows, row, last = _windows(run, dataset)
    shape = tuple(dataset.sizes[d] for d in DIMS)
    found: dict[str, Floats] = {}
    scored = torch.arange(len(windows))
    if only is not None:
        scored = scored[torch.from_numpy(only[row, last])]
    if not len(scored):
        raise DataError("no step that was to be scored was observed with its past")
    bodies = dataset.sizes["body"]
    others = torch.empty((bodies, 0, len(scored)), dtype=torch.int64)
    if surrogates:
        history = run.model.config.history
        others = like_moments(dataset, windows, scored.numpy(), surrogates, history)
    desc = "evidence" if bodies == 1 else "evidence, 2 of 2"
    with torch.random.fork_rng(), tqdm(
        total=len(scored), desc="interaction, 1 of 2" if surrogates else desc, unit="step",
        disable=not progress, delay=1,
    ) as bar:  # fmt: skip
        torch.manual_seed(seed)
        few = max(1, AT_ONCE // (draws * max(1, bodies // FEW_BODIES)))
        for which, elsewhere in zip(scored.split(few), others.split(few, 2), strict=True):
            at = which.numpy()  # NumPy takes a tensor of one number for a number
            for name, values in measure(windows, which, elsewhere).items():
                whole = found.setdefault(name, np.full(shape[: values.ndim + 1], np.nan))
                whole[row[at], last[at]] = values
            bar.update(len(which))
    coords = dataset.drop_dims("space").coords
    named = {name: (DIMS[: values.ndim], values) for name, values in found.items()}
    return xr.Dataset(named, coords=coords, attrs=dataset.attrs)


def _windows(run: Run, dataset: xr.Dataset) -> tuple[Windows, Integers, Integers]:
    """Every step with its past; and of each, its trajectory and the frame it is taken from."""
    model = run.model
    past = model.config.history + model.remembers * min(REMEMBERED, model.memory_steps - 1)
    windows = Windows(
        dataset, frames=past + 1, context=past, scale=run.card.scale, parts=run.card.parts
    )
    row, start = windows.index.numpy().T
    return windows, row, start + past - 1


def _evenly_spaced(
    run: Run, dataset: xr.Dataset, only: npt.NDArray[np.bool_] | None, steps: int
) -> npt.NDArray[np.bool_]:
    """So many of the steps that can be scored, of ``only`` some, (trajectory, time)."""
    _, row, last = _windows(run, dataset)
    at = np.arange(len(row)) if only is None else np.flatnonzero(only[row, last])
    at = at[evenly(len(at), steps)]
    some = np.zeros((dataset.sizes["trajectory"], dataset.sizes["time"]), bool)
    some[row[at], last[at]] = True
    return some


class _Drawn(NamedTuple):
    """The last step of each window: of K draws of z, the log weights of each body's displacement.

    Attributes:
        log_ratio: log p(z) - log r(z) of each independent part, (K, B, parts).
        log_policy: log pi of each body's displacement, (K, B, bodies).
        seen: Whether the body's displacement was observed, (B, bodies).
    """

    log_ratio: Floats
    log_policy: Floats
    seen: npt.NDArray[np.bool_]

    @property
    def log_weight(self) -> Floats:
        """Log w_k of each body, (K, B, bodies)."""
        return self.log_ratio + self.log_policy

    def log_density(self) -> Floats:
        """Log (1/K) sum_k w_k of each body, (B, bodies); NaN where it was not observed."""
        values = logsumexp(self.log_weight, axis=0)
        return np.where(self.seen, values - math.log(len(self.log_ratio)), np.nan)


def _draw(run: Run, batch: Batch, draws: int, heard: Batch | None = None) -> _Drawn:
    """Draw z for the last step of each window, from the mixture of prior and guide."""
    axes = len(run.card.axes)
    parameter = next(run.guide.parameters(), run.model.view)
    batch = batch.to(parameter.device, parameter.dtype)
    heard = heard and heard.to(parameter.device, parameter.dtype)
    steps = draw_steps(run.guide, batch, draws, "defensive", axes, heard)
    seen = steps.seen[-1].unflatten(-1, (-1, axes)).all(-1).cpu().numpy()
    log_ratio, log_policy = (
        x[:, -1].double().cpu().numpy() for x in (steps.log_ratio, steps.log_policy)
    )
    return _Drawn(log_ratio, log_policy, seen)


def _of_agents(
    run: Run, batch: Batch, animate: npt.NDArray[np.bool_], draws: int
) -> dict[str, Floats]:
    """Each body as an agent: its measures (B, bodies), and the scene's control information (B,)."""
    own = _draw(run, batch, draws)
    choice = _told_of_latent(own.log_ratio, own.log_policy)
    count = own.log_ratio.shape[-1]  # one part, or each body by itself, and then these add up
    of_parts = own.log_policy.reshape(*own.log_policy.shape[:-1], count, -1).sum(-1)
    control = _told_of_latent(own.log_ratio, of_parts).sum(-1)  # nothing of who is not there
    shape = own.seen.shape
    log_p, error, k_hat = (np.full(shape, np.nan) for _ in range(3))
    for i in range(len(animate)):
        if animate[i] or not animate.any():
            places = [(own, i)]
        else:  # in the place of each agent, which takes its own
            pairs = [(i, int(j)) for j in np.flatnonzero(animate)]
            places = [(_draw(run, _exchanged(batch, pair, run), draws), pair[1]) for pair in pairs]
        seen = own.seen[:, i]
        parts = [psis(drawn.log_weight[:, seen, j]) for drawn, j in places]
        each = np.stack([part.log_mean for part in parts])
        log_p[seen, i] = logsumexp(each, axis=0) - math.log(len(each))
        share = np.exp(each - logsumexp(each, axis=0))
        errors = np.stack([part.standard_error for part in parts])
        error[seen, i] = np.sqrt(((share * errors) ** 2).sum(0))
        k_hat[seen, i] = np.max([part.k_hat for part in parts], axis=0)
    return {
        "control_information": np.where(own.seen.all(-1) | (count > 1), control, np.nan),
        "choice": np.where(own.seen, choice, np.nan),
        "evidence": log_p, "evidence_standard_error": error, "k_hat": k_hat,
    }  # fmt: skip


def _told_of_latent(log_ratio: Floats, log_pi: Floats) -> Floats:
    """KL(p(z | c, a) || p(z | c)) = E log pi(a | c, z) - log p(a | c), by draws of r in front.

    The expectation is over p(z | c, a), by weights pi p / r that are normalised; a may be one
    body's displacement, or that of all.
    """
    log_weight = log_ratio + log_pi
    log_sum = logsumexp(log_weight, axis=0)
    expected = (np.exp(log_weight - log_sum) * log_pi).sum(0)
    return expected - (log_sum - math.log(len(log_weight)))


def _exchanged(batch: Batch, pair: tuple[int, int], run: Run) -> Batch:
    """The scene with two bodies in each other's place."""
    order = np.arange(len(run.card.bodies))
    order[list(pair)] = order[list(pair)[::-1]]

    def moved(x: Tensor) -> Tensor:
        return x.unflatten(-1, (len(order), -1))[..., order, :].flatten(-2)

    return Batch(moved(batch.position), moved(batch.observed))


def _interaction(
    run: Run, windows: Windows, which: Tensor, elsewhere: Tensor, draws: int
) -> Floats:
    """Log p(a^i | c) - log (1/M) sum_m p(a^i | c^i, others of m), (B, bodies).

    M is how many moments there are; NaN where there is none. The draws of the second density are
    shared out among them: it is one mean over both.

    Args:
        run: The run.
        windows: Every step with its past.
        which: (B,) windows.
        elsewhere: (bodies, M, B) those in which each body finds the others; -1 are none.
        draws: K.
    """
    N, M, _ = elsewhere.shape
    fewest = PARTICLES if run.model.latent_remembered else 2
    axes, each = len(run.card.axes), max(fewest, draws // M)
    batch = windows.batch(which)
    result = _draw(run, batch, draws).log_density()
    alone = np.empty((M, *result.shape))
    for m in range(M):
        found = windows.batch(elsewhere[:, m].flatten().clamp(min=0))
        scenes = Batch(*(x.unflatten(1, (N, -1)) for x in found))  # (frames, N, B, D), i's others
        if run.model.parts > 1:  # every body by itself hears others: all bodies at once
            heard = Batch(*(x.transpose(1, 2) for x in scenes))
            alone[m] = _draw(run, batch, each, heard).log_density()
            continue
        for i in range(N):
            mine = torch.zeros(batch.position.shape[-1], dtype=torch.bool)
            mine[i * axes : (i + 1) * axes] = True
            pairs = zip(batch, scenes, strict=True)
            mixed = Batch(*(own.where(mine, other[:, i]) for own, other in pairs))
            alone[m, :, i] = _draw(run, mixed, each).log_density()[:, i]
    there = (elsewhere >= 0).permute(1, 2, 0).numpy()
    alone[~there] = -np.inf
    with np.errstate(divide="ignore", invalid="ignore"):
        return result - (logsumexp(alone, axis=0) - np.log(there.sum(0)))
