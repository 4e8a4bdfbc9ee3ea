"""Draws from a fitted model of episodes: what it makes of them, expects of them, and invents.

    reconstruct    z_0 .. z_{T-1} from the guide, which sees every frame          posterior
    forecast       z_0 .. z_{K-1} from the guide, the rest from the prior,        open loop
                   under the actions that were recorded
    generate       all z from the prior, under the actions that were recorded

The frames given are the mean of p(o | h, z) for each draw of the latents: a picture without the
white noise of sigma, which the tree's attribute ``observation_scale`` holds.

A model that acts (`AgentControlVAE`) begins at the first frame, and goes on in closed loop:

    reconstruct    z_t from the guide, which sees s_t of the roll-out and s~_{t+1}; a_t from the
                   policy: what it does to follow the recording
    forecast       from s~_{K-1}, z_t from the prior, a_t from the policy: what it would do
    generate       the same from s~_0

The next state is drawn, not its mean: its noise is the world's. With ``act="recorded"`` forecasts
and inventions take the recorded actions, as those of the others do.
"""

from collections.abc import Callable, Iterator
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
import xarray as xr
from torch import Tensor

from pyro_animacy.data.episode_windows import EpisodeBatch, EpisodeWindows
from pyro_animacy.errors import ConfigError, DataError, how_many, require
from pyro_animacy.infer.draws import episodes_tree
from pyro_animacy.infer.episodes import AT_ONCE, suited_episodes
from pyro_animacy.infer.predict import Mode, check_memory
from pyro_animacy.infer.run import Run
from pyro_animacy.models.agent_control_vae import AgentControlVAE, recorded
from pyro_animacy.models.image_vae import ImageVAE
from pyro_animacy.models.program import Memory
from pyro_animacy.models.world_model import WorldModel, WorldModelGuide
from pyro_animacy.progress import tqdm

Act = Literal["policy", "recorded"]
CONTEXT = 5  # frames given before a forecast, as in PlaNet's video predictions


def predict_episodes(
    run: Run,
    dataset: xr.Dataset,
    *,
    mode: Mode = "generate",
    draws: int = 10,
    context: int | None = None,
    horizon: int | None = None,
    act: Act | None = None,
    seed: int = 0,
    progress: bool = True,
) -> xr.DataTree:
    """Draw from a fitted model of episodes.

    - ``reconstruct``: latents from the guide, which sees every frame. Groups ``posterior`` (the
      latents) and ``posterior_predictive``.
    - ``forecast``: the first ``context`` frames are given, the next ``horizon`` are drawn with
      latents from the prior, under the recorded actions. Group ``predictions``. An image VAE knows
      no time, so it has none.
    - ``generate``: latents from the prior from the first frame on, under the recorded actions.
      Group ``posterior_predictive``.

    A model with a policy is given the first frame at least, and acts by that policy; `action` is
    then drawn too.

    The groups hold `image` (chain, draw, trajectory, time, height, width, channel) uint8, or
    `observation` (chain, draw, trajectory, time, feature), and `reward` where there are rewards;
    ``observed_data`` holds what was recorded.

    Args:
        run: The fitted run.
        dataset: Episodes.
        mode: What to draw.
        draws: Number of draws of each episode.
        context: Frames given before a forecast; 5 by default.
        horizon: Frames to draw, at most those recorded, which is the default.
        act: Who acts in forecasts and inventions: the model's ``policy``, which is the default
            where it has one, or the ``recorded`` actions.
        seed: Seeds all draws.
        progress: Show a progress bar.

    Raises:
        ConfigError: If an option cannot be used, or the draws would not fit in memory.
        DataError: If the episodes do not suit the model, or none is longer than the context.
    """
    dataset = suited_episodes(run.card, dataset)
    given = _given(run, mode, draws, context, horizon, act, seed)
    longest = int(dataset["length"].max())
    frames = longest if horizon is None else given + horizon
    if frames > longest:
        raise ConfigError(
            f"horizon is {horizon} after {how_many(given, 'frame')}; the longest episode has "
            f"{longest}, and draws go as far as actions were recorded"
        )
    usable = np.flatnonzero(dataset["length"].to_numpy() > given)
    if not len(usable):
        raise DataError(
            f"no episode is longer than the {how_many(given, 'frame')} of context; give fewer"
        )
    episodes = _cut(dataset.isel(trajectory=usable), frames)
    draw = _drawing(run, mode, act)
    made = _room(run, mode, draws, len(usable), frames)
    windows = EpisodeWindows(episodes, frames)
    parameter = next(run.guide.parameters())
    with torch.no_grad(), torch.random.fork_rng():
        torch.manual_seed(seed)
        for these, rows in _chunks(draws, len(usable), frames, progress):
            several = these.stop - these.start
            batch = windows.batch(torch.arange(rows.start, rows.stop))
            batch = repeated(batch.to(parameter.device, parameter.dtype), several)
            for name, values in draw(run, batch, mode, given).items():
                made[name][these, rows] = _by_draw(values, several)
    latent = made.pop("latent", None)
    for name, x in made.items():
        kept = given - (name == "action")  # that after the last frame given leads to one drawn
        x[:, :, :kept] = episodes[name].to_numpy()[:, :kept]
    acts = isinstance(run.model, AgentControlVAE)
    return episodes_tree(
        made, episodes, mode=mode, context=given, latent=latent, model=run.card.model,
        observation_scale=0.0 if acts else float(run.model.scale.detach()),  # of what is left out
    )  # fmt: skip


def _drawing(run: Run, mode: Mode, act: Act | None) -> Callable[..., dict[str, Tensor]]:
    """The function that draws from the run's model."""
    if isinstance(run.model, AgentControlVAE):
        return _draw_followed if act == "recorded" and mode != "reconstruct" else _draw_acts
    return _draw_images if isinstance(run.model, ImageVAE) else _draw_world


def _room(
    run: Run, mode: Mode, draws: int, trajectories: int, frames: int
) -> dict[str, npt.NDArray]:
    """Arrays for what is drawn, by name, each (draw, trajectory, time, ...)."""
    sight = run.card.sight
    wanted: dict[str, tuple[tuple[int, ...], npt.DTypeLike]] = {}
    if sight.image:
        wanted["image"] = (*sight.shape[1:], sight.shape[0]), np.uint8
    else:
        wanted["observation"] = sight.shape, np.float32
    if sight.reward and not isinstance(run.model, ImageVAE):
        wanted["reward"] = (), np.float32
    if isinstance(run.model, AgentControlVAE):
        wanted["action"] = (sight.actions,), np.float32
    if mode == "reconstruct" and run.model.latent_size:
        wanted["latent"] = (run.model.latent_size,), np.float32
    each = sum(int(np.prod(shape)) * np.dtype(kind).itemsize for shape, kind in wanted.values())
    check_memory(draws * trajectories * frames * each, draws, trajectories, frames)
    size = draws, trajectories, frames
    return {name: np.empty((*size, *shape), kind) for name, (shape, kind) in wanted.items()}


def _given(
    run: Run, mode: Mode, draws: int, context: int | None, horizon: int | None,
    act: Act | None, seed: int,
) -> int:  # fmt: skip
    """Frames given, after a look at the options."""
    if mode not in ("reconstruct", "forecast", "generate"):
        raise ConfigError(f"mode is {mode!r}; choose reconstruct, forecast or generate")
    if mode == "forecast" and isinstance(run.model, ImageVAE):
        raise ConfigError(
            "an image VAE takes every frame by itself and has no time to forecast; choose "
            "reconstruct or generate, or fit a world_model"
        )
    if act not in (None, "policy", "recorded"):
        raise ConfigError(f"act is {act!r}; choose policy or recorded")
    if act == "policy" and not isinstance(run.model, AgentControlVAE):
        raise ConfigError(
            f"act is 'policy', and {run.card.model} has none: its draws are under the recorded "
            "actions; leave it out, or fit an agent_control_vae"
        )
    context = CONTEXT if context is None else context
    require(
        "",
        {"draws": draws, "context": context, "horizon": horizon, "seed": seed},
        ("draws", draws >= 1, "at least 1"),
        ("context", context >= 1, "at least 1"),
        ("horizon", horizon is None or horizon >= 1, "at least 1"),
        ("seed", 0 <= seed < 2**63, "from 0 to 2^63 - 1"),
    )
    return context if mode == "forecast" else run.model.given


def _draw_images(run: Run, batch: EpisodeBatch, mode: Mode, _: int) -> dict[str, Tensor]:
    """Z ~ q(z | x) or z ~ p(z) of every frame by itself, decoded."""
    if mode == "generate":
        z = run.model.prior(*batch.observed.shape).sample()
        return {"image": pixels(run.model.decoder(z))}
    guide: Any = run.guide
    z = guide.encode(batch.observation).sample()
    return {"image": pixels(run.model.decoder(z)), "latent": z}


def _draw_world(run: Run, batch: EpisodeBatch, mode: Mode, context: int) -> dict[str, Tensor]:
    """Follow the frames given by the guide, all of them to reconstruct, and roll the prior on."""
    model, sight = run.model, run.card.sight
    guide: Any = run.guide
    path = followed(guide, batch, len(batch.observed) if mode == "reconstruct" else context)
    mean = model.observation(path).base_dist.loc
    drawn = {"image": pixels(mean)} if sight.image else {"observation": mean}
    if sight.reward:
        drawn["reward"] = model.rewarded(path).loc
    if mode == "reconstruct" and model.latent_size:
        drawn["latent"] = path.latent
    return drawn


def followed(guide: WorldModelGuide, batch: EpisodeBatch, seen: int) -> Memory:
    """A draw of m_0 .. m_{T-1}: by the guide while frames are seen, then by the prior (open loop).

    Args:
        guide: Of a world model.
        batch: (T, B, ...); what it observed is looked at in the first frames alone.
        seen: How many of them; the others are under the recorded actions.
    """
    model: WorldModel = guide.model  # type: ignore[assignment]
    T, B = batch.action.shape[:2]
    parts, memory = [], model.start((B,))
    if seen:
        with guide:
            parts.append(model.follow(EpisodeBatch(*_first(batch, seen))))
        memory = parts[0].at(-1)
    if seen < T:
        parts.append(model.imagine(memory, batch.action[seen:]))
    return Memory(*(torch.cat(both) for both in zip(*parts, strict=True)))


def _draw_acts(run: Run, batch: EpisodeBatch, mode: Mode, context: int) -> dict[str, Tensor]:
    """Act on from the last frame given, by the guide's latents to reconstruct, else the prior's."""
    state, action, target, seen = recorded(batch)
    k = context - 1
    steps, follow = len(seen) - k, (target, seen) if mode == "reconstruct" else None
    with run.guide:
        rolled = run.model.roll_out(state[k], steps, follow)
    path = torch.cat([state[: k + 1], torch.stack(rolled.state)])
    done = torch.cat([action[:k], torch.stack(rolled.action)])
    drawn = {"observation": path, "action": _of_steps(done, seen)}
    if mode == "reconstruct":
        drawn["latent"] = _of_steps(torch.stack(rolled.latent), seen)
    return drawn


def _draw_followed(run: Run, batch: EpisodeBatch, _: Mode, context: int) -> dict[str, Tensor]:
    """Go on from the last frame given under the recorded actions."""
    steps = recorded(batch)
    k = context - 1
    ahead = run.model.imagine(steps.state[k], steps.action[k:])
    path = torch.cat([steps.state[: k + 1], ahead])
    return {"observation": path, "action": _of_steps(steps.action, steps.seen)}


def _of_steps(x: Tensor, seen: Tensor) -> Tensor:
    """What is of T steps (T, B, ...) at the T + 1 frames: NaN at an episode's last, and beyond."""
    kept = torch.where(seen[..., None], x, torch.nan)
    return torch.cat([kept, torch.full_like(x[:1], torch.nan)])


def _first(batch: EpisodeBatch, frames: int) -> list[Any]:
    return [None if x is None else x[:frames] for x in batch]


def repeated(batch: EpisodeBatch, draws: int) -> EpisodeBatch:
    """The batch ``draws`` times over, side by side.

    A view where B is 1: twenty copies of an episode of images would be a gigabyte.
    """
    parts: list[Any] = [
        None if x is None else x.unsqueeze(1).expand(-1, draws, *x.shape[1:]).flatten(1, 2)
        for x in batch
    ]
    return EpisodeBatch(*parts)


def _by_draw(x: Tensor, several: int) -> npt.NDArray:
    """(time, draws x trajectories, ...) as (draws, trajectories, time, ...)."""
    return x.unflatten(1, (several, -1)).movedim(0, 2).cpu().numpy()


def pixels(image: Tensor) -> Tensor:
    """Images (..., channels, height, width) of [0, 1] as uint8 (..., height, width, channels)."""
    return (255 * image.clamp(0, 1)).round().to(torch.uint8).movedim(-3, -1)


def _cut(dataset: xr.Dataset, frames: int) -> xr.Dataset:
    """The first ``frames`` of each episode; one that goes on did not end there by itself."""
    kept = dataset.isel(time=slice(0, frames))
    return kept.assign_coords(length=kept["length"].clip(max=frames))


def _chunks(
    draws: int, trajectories: int, frames: int, progress: bool
) -> Iterator[tuple[slice, slice]]:
    """Slices of draws and of trajectories whose frames are in the networks at once."""
    rows = min(trajectories, max(1, AT_ONCE // frames))
    several = min(draws, max(1, AT_ONCE // (frames * rows)))
    total = draws * trajectories
    with tqdm(total=total, desc="sample", unit="episode", disable=not progress, delay=1) as bar:
        for row in range(0, trajectories, rows):
            part = slice(row, min(row + rows, trajectories))
            for first in range(0, draws, several):
                these = slice(first, min(first + several, draws))
                yield these, part
                bar.update((these.stop - these.start) * (part.stop - part.start))
