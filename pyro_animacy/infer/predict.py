"""Draws from a fitted model: the posterior of a recording, forecasts, and free generation.

Each runs the model's own step program; the draws are a batch axis, so that all are drawn at once.
"""

import os
from collections.abc import Iterator
from typing import Literal, NamedTuple

import numpy as np
import torch
import xarray as xr
from torch.distributions import Categorical

from pyro_animacy.data import stored
from pyro_animacy.data.bodies import is_place
from pyro_animacy.data.schema import pieces
from pyro_animacy.data.windows import Batch, consecutive, of_those_given, whole
from pyro_animacy.errors import ConfigError, DataError, RunError, how_many, require
from pyro_animacy.infer.draws import draws_tree
from pyro_animacy.infer.run import Run, suited
from pyro_animacy.infer.steps import draw_steps
from pyro_animacy.infer.traced import no_validation
from pyro_animacy.models.densities import rebuilt
from pyro_animacy.models.recorded import known, spread
from pyro_animacy.progress import tqdm
from pyro_animacy.resting import Policy, free

Mode = Literal["reconstruct", "forecast", "generate"]
LAYERS_HELD = 6  # layers of activations alive at a time, measured generously
MEMORY_SHARE = 0.5  # of the memory that is free, the most that draws may take
CHUNK = 131_072  # trajectories x frames x draws run at once


class Drawn(NamedTuple):
    """Draws of T steps, draws x trajectories side by side.

    Attributes:
        state: s_1..s_T, (T, B, D), model units.
        latent: z_0..z_{T-1}, (T, B, Z), where they are kept.
        log_likelihood: Of the recorded displacements, (T, B, 1), data units.
    """

    state: torch.Tensor
    latent: torch.Tensor | None = None
    log_likelihood: torch.Tensor | None = None


def predict(
    run: Run,
    dataset: xr.Dataset,
    *,
    mode: Mode = "generate",
    draws: int = 100,
    context: int | None = None,
    horizon: int | None = None,
    stride: int | None = None,
    seed: int = 0,
    progress: bool = True,
) -> xr.DataTree:
    """Draw from a fitted model.

    - ``reconstruct``: z_t from the guide, which sees the recording; in closed loop or step by step
      as the model was trained, and where that was on K draws, one of K, chosen by weight. One that
      remembers follows the whole recording, however long. Step by step there is nothing to draw,
      NaN, where the frames before were not observed in full.
      Groups ``posterior`` (the latents), ``posterior_predictive`` and ``log_likelihood``: of each
      recorded displacement under each draw, in nats per frame (data units), at the time of the
      frame it leads to. It is log pi(s~_{t+1} - s_t | c_t, z_t), or with the squared error that of
      N(s_{t+1}, I/2), in model units, about the state that was drawn; over the coordinates that
      were observed, NaN where none was.
    - ``forecast``: the first ``context`` frames are given, the next ``horizon`` are drawn with z_t
      from the prior. With a ``stride`` each trajectory is forecast again and again, from a window
      of ``context + horizon`` frames at every ``stride``-th frame; each is a trajectory of the
      result, whose ``start`` says where. Group ``predictions``.
    - ``generate``: free motion from each trajectory's initial state, for as many frames as were
      recorded or for ``horizon``. Group ``posterior_predictive``.

    All hold ``position`` (chain, draw, trajectory, time, body, space) in data units;
    ``observed_data`` holds the recording at the same times, NaN beyond its end; of places that
    bodies take in turn, in forecasts and free motion of those who were there at its beginning.

    Args:
        run: The fitted run.
        dataset: Recordings of the bodies the model was fitted to.
        mode: What to draw.
        draws: Number of draws for each trajectory.
        context: Frames given before a forecast; at least the model's history, its default.
        horizon: Frames to draw; by default as many as the longest trajectory has left.
        stride: Frames from one forecast to the next; by default each trajectory has one.
        seed: Seeds all draws.
        progress: Show a progress bar.

    Raises:
        ConfigError: If an option cannot be used, or the draws would not fit in memory; or the run
            is of episodes, from which `predict_episodes` draws.
        DataError: If the recordings do not suit the model, none has the context observed, or with
            a stride none is as long as context and horizon.
        RunError: If a position that is drawn is not a finite number.
    """
    dataset = suited(run.card, dataset)
    history = run.card.config["history"]
    context, horizon = _asked(mode, draws, context, horizon, stride, seed, history, dataset)
    if stride is not None:
        dataset = _sliding(dataset, context + horizon, stride)
    scale = run.card.scale
    origin = np.tile(scale.center, len(run.card.bodies))
    # Seven digits are enough unless the origin is far off, as in map coordinates.
    dtype = np.dtype(np.float32 if np.abs(origin).max() < 1e4 * scale.unit else np.float64)
    usable = _usable(dataset, context, history, run.model.parts)
    trajectories, frames = len(usable), context + horizon
    reconstruct = mode == "reconstruct"
    sizes = {"latent": run.model.latent_size, "log_likelihood": 1} if reconstruct else {}
    per_frame = dtype.itemsize * run.model.state_size + 4 * sum(sizes.values())
    each = run.config.importance_samples if reconstruct else 1  # of which one is kept
    several = min(draws, max(1, CHUNK // (trajectories * frames * each)))  # draws run at once
    size = draws * trajectories * frames * per_frame
    if reconstruct:  # all frames go through the networks at once
        size += several * each * trajectories * frames * 4 * LAYERS_HELD * _width(run)
    check_memory(size, draws, trajectories, frames)
    observed = _first_frames(dataset.isel(trajectory=usable), frames)
    position = np.empty((draws, trajectories, frames, run.model.state_size), dtype)
    kept = {
        name: np.empty((draws, trajectories, horizon, of), np.float32)
        for name, of in sizes.items() if of
    }  # fmt: skip
    recording = whole(observed, scale)
    position[:, :, :context] = _by_draw(_given(recording, context), 1)
    with torch.no_grad(), torch.random.fork_rng(), no_validation():
        torch.manual_seed(seed)
        for part in _chunks(draws, several, progress):
            these = part.stop - part.start
            if reconstruct:
                drawn = _reconstruct(run, recording, these, each)
            else:
                drawn = _roll_on(run, recording, these, context, horizon)
            position[part, :, context:] = _by_draw(drawn.state, these)
            for name, values in kept.items():
                values[part] = _by_draw(getattr(drawn, name), these)
    rows = position.reshape(draws * trajectories, -1)  # NumPy is slow over a short last axis
    rows *= scale.unit
    rows += np.tile(origin.astype(dtype), frames)
    if not reconstruct and any(map(is_place, run.card.bodies)):  # who comes later is another
        observed = of_those_given(observed, slice(context - history, context), run.card.parts)
    return draws_tree(position, observed, mode=mode, context=context, model=run.card.model, **kept)


def _asked(
    mode: str, draws: int, context: int | None, horizon: int | None, stride: int | None, seed: int,
    history: int, dataset: xr.Dataset,
) -> tuple[int, int]:  # fmt: skip
    """Frames that are given and frames to draw.

    Raises:
        ConfigError: For an option that cannot be used.
        DataError: If no trajectory is as long as what is to be given.
    """
    longest = int(dataset["length"].max())
    context = history if context is None else context
    if mode not in ("reconstruct", "forecast", "generate"):
        raise ConfigError(f"mode is {mode!r}; choose reconstruct, forecast or generate")
    require(
        "",
        {"draws": draws, "horizon": horizon, "stride": stride, "seed": seed},
        ("draws", draws >= 1, "at least 1"),
        ("horizon", horizon is None or horizon >= 1, "at least 1"),
        ("stride", stride is None or stride >= 1, "at least 1"),
        ("seed", 0 <= seed < 2**63, "from 0 to 2^63 - 1"),
    )
    if stride is not None and (mode != "forecast" or horizon is None):
        raise ConfigError("stride is of forecasts: it needs the mode forecast, and a horizon")
    if context < history:
        raise ConfigError(
            f"context is {how_many(context, 'frame')}; the model's history needs {history}"
        )
    if mode != "forecast":
        context = history
    horizon = longest - context if horizon is None else horizon
    if mode == "reconstruct":
        horizon = min(horizon, longest - context)
    if horizon < 1:
        raise ConfigError(
            f"nothing to draw: the longest trajectory has {longest} frames and {context} are "
            "context; give a smaller --context or a --horizon"
        )
    if longest < context:
        raise DataError(
            f"the longest trajectory has {how_many(longest, 'frame')}, and {context} are to be "
            "given: take a smaller --context, or longer recordings"
        )
    return context, horizon


def _width(run: Run) -> int:
    """Numbers that the widest layer of the networks holds for one step."""
    networks = [*run.model.parameters(), *run.guide.parameters()]
    return max(weight[..., 0].numel() for weight in networks if weight.dim() > 1)


def _by_draw(x: torch.Tensor, several: int) -> np.ndarray:
    """(time, draws x trajectories, size) as (draws, trajectories, time, size)."""
    return x.unflatten(1, (several, -1)).permute(1, 2, 0, 3).cpu().numpy()


def _roll_on(run: Run, recording: Batch, draws: int, context: int, horizon: int) -> Drawn:
    """What the step program alone makes of the context.

    A model that remembers follows the context by its guide first.
    """
    history, memory = run.card.config["history"], None
    reach = history + (run.model.memory_steps if run.model.remembers else 0)
    batch = _repeated(recording, draws, slice(max(0, context - reach), context))
    if run.model.remembers and context > history:
        with run.guide:
            followed = run.model.follow(batch)[1]
        memory = followed.at(-1)
    x = batch.position[-history:]
    here = known(batch.observed[-history:], history, run.model.parts)[0]
    newest_first = [*x.diff(dim=0).flip(0)]
    rolling = run.model.rolling(x[-1], newest_first, horizon, here=here, memory=memory)
    states = _finite(run, torch.stack([s for s, *_ in rolling]))
    return Drawn(states.masked_fill(~spread(here, states.shape[-1]), torch.nan))


def _finite(run: Run, states: torch.Tensor) -> torch.Tensor:
    """The states, once it is asked whether all are numbers: in place of Pyro's checks at sites."""
    if not states.isfinite().all():
        raise RunError(
            f"{run.path}: the model draws positions that are not finite numbers; fit it again, "
            "with a lower train.learning_rate"
        )
    return states


def _repeated(recording: Batch, draws: int, frames: slice = slice(None)) -> Batch:
    """A recording's frames for so many draws, one draw of all trajectories after another."""
    return Batch(*(x[frames].repeat(1, draws, 1) for x in recording))


def _given(batch: Batch, context: int) -> torch.Tensor:
    """The first frames as recorded, NaN where they were not."""
    return batch.position[:context].masked_fill(~batch.observed[:context], torch.nan)


def _reconstruct(run: Run, recording: Batch, draws: int, importance_samples: int) -> Drawn:
    """What the guide makes of each step.

    As the model was trained: in closed loop the model follows the recording from its own states,
    teacher forced it answers each recorded state with one step.
    """
    model, batch = run.model, _repeated(recording, draws)
    of = model.recorded(batch)
    s, target, seen, there = of.state, of.target, of.seen, of.known
    if run.card.config["roll_out"] == "closed_loop":
        with run.guide:
            first = [a[0] for a in of.actions]
            rolled = model.roll_out(s[0], first, len(s), (target, of.observed), there[0])
        s, a, pi = rolled.stacked(s[0])
        z, there = torch.stack(rolled.latent), there[:1].expand_as(there)
        seen = of.followed & spread(there, s.shape[-1])
    else:
        if importance_samples > 1:
            pi, z = _chosen(run, recording, draws, importance_samples)
        else:
            with run.guide:
                evidence, memory = model.follow(batch)
            pi, z = model.policy(evidence.context, memory), memory.latent
        a = free(pi)()
    states = _finite(run, s + a)
    density = model.observation(pi, a, seen).log_prob((target - s).masked_fill(~seen, 0))
    density = density - run.card.scale.log_jacobian(seen.sum(-1))
    density = density.masked_fill(~seen.any(-1), torch.nan)
    states, z = (x.masked_fill(~spread(there, x.shape[-1]), torch.nan) for x in (states, z))
    return Drawn(states, z, density[..., None])


def _chosen(run: Run, recording: Batch, draws: int, K: int) -> tuple[Policy, torch.Tensor]:
    """One of K draws of z_t by the guide, chosen by weight, and pi(. | c_t, z_t): over (T, B).

    For this a guide stands that was trained on the bound of K draws: the bound is below the ELBO of
    what is chosen so, where that of a single draw may be far below it (Cremer, Morris & Duvenaud,
    Reinterpreting Importance-Weighted Autoencoders, 2017). Each independent part of the scene is
    chosen by itself.
    """
    steps = draw_steps(run.guide, recording, draws * K, axes=len(run.card.axes))
    weights = steps.log_weight.unflatten(0, (draws, K)).movedim(1, -1)
    chosen = Categorical(logits=weights.nan_to_num()).sample()  # (draws, T, B, parts); `_finite`
    parts = chosen.shape[-1]

    def of_chosen(x: torch.Tensor) -> torch.Tensor:
        """(draws x K, T, B, parts x n) as (T, draws x B, parts x n)."""
        each = x.unflatten(0, (draws, K)).unflatten(-1, (parts, -1))
        kept = each.take_along_dim(chosen[:, None, ..., None], 1)[:, 0]
        return kept.flatten(-2).transpose(0, 1).flatten(1, 2)

    pi = rebuilt([steps.policy], lambda parameter: of_chosen(parameter[0]))
    return pi, of_chosen(steps.latent)


def _usable(dataset: xr.Dataset, context: int, history: int, parts: int) -> np.ndarray:
    """The trajectories whose context's last ``history`` frames were observed in full.

    Those of one body of a set are enough.

    Raises:
        DataError: If there is none.
    """
    given = dataset["position"].to_numpy()[:, context - history : context]
    known = stored.observed(given, parts)[0].all(1)
    usable = known.any(-1) & (given.shape[1] == history)
    if not usable.any():
        raise DataError(
            f"no trajectory has its frames {context - history + 1} to {context} observed in full; "
            "begin them where all bodies are observed (pyro_animacy.data.windows.begun), or give "
            "other recordings" + (" or a smaller --context" if context > history else "")
        )
    return np.flatnonzero(usable)


def _sliding(dataset: xr.Dataset, frames: int, stride: int) -> xr.Dataset:
    """Windows of so many frames, from every ``stride``-th frame of each trajectory.

    Raises:
        ConfigError: If they would not fit in memory.
        DataError: If no trajectory is as long.
    """
    length = dataset["length"].to_numpy()
    if length.max() < frames:
        raise DataError(
            f"the longest trajectory has {how_many(int(length.max()), 'frame')}, and context and "
            f"horizon are {frames}: take a smaller --context or --horizon, or longer recordings"
        )
    rows, begin, end = consecutive(length, frames, every=stride, least=frames)
    size = 8 * len(rows) * frames * dataset.sizes["body"] * dataset.sizes["space"]
    check_memory(size, 1, len(rows), frames)
    return pieces(dataset, rows, begin, end)


def _first_frames(dataset: xr.Dataset, frames: int) -> xr.Dataset:
    """The first ``frames`` of each trajectory, NaN beyond its end."""
    kept = dataset.isel(time=slice(0, frames))
    kept = kept.pad(time=(0, frames - kept.sizes["time"]), constant_values=np.nan)
    return kept.assign_coords(
        time=np.arange(frames) / float(dataset.attrs["fps"]),
        length=kept["length"].clip(max=frames),
    )


def check_memory(size: int, draws: int, trajectories: int, frames: int) -> None:
    """Raise ConfigError if arrays of ``size`` bytes would not fit."""
    free = _free_memory()
    if size > MEMORY_SHARE * free:
        raise ConfigError(
            f"{how_many(draws, 'draw')} of {how_many(trajectories, 'trajectory')} of "
            f"{how_many(frames, 'frame')} take {size / 2**30:.1f} GiB, more than half of the "
            f"{free / 2**30:.1f} GiB that are free; ask for fewer --draws, a shorter --horizon, or "
            "fewer bodies or recordings"
        )


def _free_memory() -> float:
    """Bytes of memory that can be had without swapping."""
    try:
        with open("/proc/meminfo") as file:
            fields = dict(line.split(":", 1) for line in file)
        return float(fields["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError):  # not Linux: what is free for sure is not told, so take a half
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2


def _chunks(draws: int, several: int, progress: bool) -> Iterator[slice]:
    """Slices of the draws, ``several`` at once."""
    with tqdm(total=draws, desc="sample", unit="draw", disable=not progress, delay=1) as bar:
        for first in range(0, draws, several):
            part = slice(first, min(first + several, draws))
            yield part
            bar.update(part.stop - part.start)
