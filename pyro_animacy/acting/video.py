"""A video of an agent, and of what its world model sees and foresees, frame by frame.

    recorded        o_t                                              what the environment showed
    reconstructed   o ~ p(o | m_t),  m_t ~ q(m | m_{t-1}, a_{t-1}, o_t)       sees every frame
    predicted       o ~ p(o | m_t),  m_t from q while t - s < C, then under the actions recorded
                    m_t ~ p(m | m_{t-1}, a_{t-1})                    open loop, K frames

    t - s     0   1  ..  C-1 |  C  ..  C+K-1 |  0   1  ..              s = 0, C + K, 2 (C + K), ...
              context, seen  |  open loop    |  context, seen
    m_{s-1} = 0: the model remembers nothing from before s, as at the first frame of a window that
    it was fitted to; the action a_{s-1} it is told, as there.

Of images the first draw of m is shown. Vectors of the project's own worlds are drawn as those draw
themselves, several draws laid over each other; of other vectors the features are lines over time,
with a band that holds 90 % of the draws. All draws are of the means of o and r, without the noise
sigma about them.
"""

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from subprocess import CalledProcessError
from typing import Any, NamedTuple

import numpy.typing as npt
import torch
import xarray as xr
from matplotlib.animation import FFMpegWriter
from matplotlib.figure import Figure
from torch import Tensor

from pyro_animacy.acting.agent import Agent
from pyro_animacy.acting.config import ActConfig
from pyro_animacy.acting.environments import chase, gymnasium, soccer
from pyro_animacy.acting.environments.make import frames_per_second
from pyro_animacy.acting.film import (
    DPI,
    OPEN_LOOP,
    Film,
    Lines,
    Panel,
    Rewards,
    enlarged,
    fitted,
    inches,
    overlaid,
)
from pyro_animacy.acting.replay import quantised
from pyro_animacy.acting.run import evaluation, load_agent, make_env, read_acting
from pyro_animacy.criticism.gif import Pixels, delay, save_gif
from pyro_animacy.criticism.style import GENERATED, RECORDED
from pyro_animacy.data.episode_windows import EpisodeBatch, EpisodeWindows
from pyro_animacy.data.windows import evenly
from pyro_animacy.errors import ConfigError, MissingExtra, RunError, command_line, require
from pyro_animacy.infer.checkpoint import write_atomically
from pyro_animacy.infer.loop import stream
from pyro_animacy.infer.predict_episodes import CONTEXT, followed, pixels, repeated
from pyro_animacy.infer.traced import no_validation
from pyro_animacy.models.program import Memory
from pyro_animacy.models.world_model import WorldModel, WorldModelGuide
from pyro_animacy.progress import tqdm

DRAWS = 20
PICTURES: dict[str, Callable[..., Pixels]] = {
    "Chase-v0": chase.picture, "Soccer-v0": soccer.picture,
}  # fmt: skip


class Draws(NamedTuple):
    """What the model makes of an episode of T frames.

    Attributes:
        observation: (draws, T, feature) means of p(o_t | m_t), or (1, T, height, width, 3) uint8.
        reward: (draws, T) means of p(r_t | m_t).
    """

    observation: npt.NDArray
    reward: npt.NDArray


class Played(NamedTuple):
    """An episode, and what it looked like: frames (T) as rendered, where they were."""

    episode: xr.Dataset
    rendered: Sequence[Pixels] | None


def video(
    path: str | Path,
    out: str | Path,
    *,
    open_loop: int,
    context: int = CONTEXT,
    episodes: int = 1,
    seed: int = 0,
    checkpoint: int | None = None,
    progress: bool = True,
) -> Path:
    """Let a run's agent play, and film it: recorded, reconstructed, predicted side by side.

    Args:
        path: Folder of a run of `act`.
        out: File to write, ``.gif``, or ``.mp4`` where ffmpeg is installed.
        open_loop: K, frames predicted without seeing any.
        context: C, frames seen before.
        episodes: Episodes played, one after another.
        seed: Of the episodes and of all draws; that of the run for those it was evaluated on.
        checkpoint: The episodes of an older checkpoint of the agent.
        progress: Show progress bars.

    Returns:
        The file.

    Raises:
        ConfigError: If an option cannot be used, or no episode is as long as C + K.
        RunError: If the folder is not that of a run of `act`, the environment fails, ffmpeg is
            missing or fails, or the file cannot be written.
    """
    path, out = Path(path), Path(out)
    save = _saving(out)
    given = {"open_loop": open_loop, "context": context, "episodes": episodes, "seed": seed}
    require(
        "",
        given,
        ("open_loop", open_loop >= 1, "at least 1"),
        ("context", context >= 1, "at least 1"),
        ("episodes", episodes >= 1, "at least 1"),
        ("seed", seed >= 0, "0 or more"),
    )
    with torch.random.fork_rng(devices=[]), torch.no_grad(), no_validation():
        environment, config = read_acting(path)
        if config.agent == "control_vae":
            raise ConfigError(
                f"{path}: its agent is {config.agent}, and a video shows what a world model makes "
                f"of what it sees; see how it follows by: {command_line('evaluate', path)}"
            )
        envs = [_watched(environment, config) for _ in range(episodes)]
        agent = load_agent(path, envs[0], checkpoint)
        assert isinstance(agent, Agent)
        played = _played(envs, agent, seed, progress)
        longest = max(each.episode.sizes["time"] for each in played)
        if context + open_loop > longest:
            raise ConfigError(
                f"context is {context} and open_loop {open_loop}, {context + open_loop} frames "
                f"together; the longest episode played has {longest}: lower one of them"
            )
        frames: list[Callable[[], Pixels]] = []
        for i, each in enumerate(played):
            torch.manual_seed(stream(seed, i, 4))
            heading = f"episode {i + 1} of {episodes}, " if episodes > 1 else ""
            film = _film(environment, agent, each, context, open_loop, heading)
            frames += [partial(film.frame, t) for t in range(len(film))]
    fps = float(played[0].episode.attrs["fps"])
    write_atomically(out, lambda to: save(frames, to, fps, progress))
    return out


def _played(envs: list[Any], agent: Agent, seed: int, progress: bool) -> list[Played]:
    """Episodes of the agent without exploration, one in each environment."""
    with tqdm(desc="play", unit="step", disable=not progress) as bar:
        found = evaluation(
            iter(envs).__next__, lambda _: agent, len(envs), seed=seed,
            fps=frames_per_second(envs[0]), each_step=bar.update,
        )  # fmt: skip
    kept = gymnasium.wrappers.RenderCollection
    rendered = [env.render() if isinstance(env, kept) else None for env in envs]
    return [Played(*each) for each in zip(found, rendered, strict=True)]


def _watched(environment: str, config: ActConfig) -> Any:
    """The environment; where only its own drawing shows what happens, that is kept."""
    if config.pixels or environment in PICTURES:
        return make_env(environment, config)
    try:
        return gymnasium.wrappers.RenderCollection(make_env(environment, config, render=True))
    except (
        RunError,
        MissingExtra,
    ):  # nothing can be drawn here, or of this environment: lines will do
        return make_env(environment, config)


# ----------------------------------------------------------------------- what the model makes of it


def reconstruct(guide: WorldModelGuide, batch: EpisodeBatch, draws: int = DRAWS) -> Draws:
    """Follow every frame under the guide.

    Args:
        guide: Of the world model.
        batch: One episode, (T, 1, ...).
        draws: Number of draws of m_0..m_{T-1}.
    """
    path = followed(guide, repeated(batch, draws), len(batch.observed))
    return _draws(guide, path, draws, len(batch.observed))


def predict(
    guide: WorldModelGuide, batch: EpisodeBatch, context: int, open_loop: int, draws: int = DRAWS
) -> Draws:
    """Follow C frames under the guide, roll the prior on for K, and so on: the head of this file.

    Args:
        guide: Of the world model.
        batch: One episode, (T, 1, ...).
        context: C.
        open_loop: K.
        draws: Number of draws.
    """
    parts = _parts(batch, context + open_loop)
    parts = parts._replace(observation=parts.observation[:context])  # no copies of the others
    path = followed(guide, repeated(parts, draws), context)
    return _draws(guide, path, draws, len(batch.observed))


def _parts(batch: EpisodeBatch, frames: int) -> EpisodeBatch:
    """An episode (T, 1, ...) cut into S parts side by side, (frames, S, ...), the last padded."""
    T = len(batch.observed)
    S = -(-T // frames)

    def cut(x: Tensor | None) -> Tensor | None:
        if x is None:
            return None
        padded = torch.cat([x, x.new_zeros(S * frames - T, *x.shape[1:])])
        return padded.unflatten(0, (S, frames)).squeeze(2).transpose(0, 1)

    return EpisodeBatch(*map(cut, batch))  # type: ignore[arg-type]


def _draws(guide: WorldModelGuide, path: Memory, draws: int, frames: int) -> Draws:
    """What a path (L, draws x S, ...) of S parts shows, in the first ``frames`` of S L."""
    model: WorldModel = guide.model  # type: ignore[assignment]
    path = Memory(*(
        x.unflatten(1, (draws, -1)).permute(1, 2, 0, 3).flatten(1, 2)[:, :frames] for x in path
    ))  # fmt: skip
    reward = model.rewarded(path).loc.cpu().numpy()
    if not model.sight.image:
        return Draws(model.observation(path).base_dist.loc.cpu().numpy(), reward)
    image = model.observation(path.at(slice(1))).base_dist.loc
    return Draws(pixels(image).cpu().numpy(), reward)


def _film(
    environment: str, agent: Agent, played: Played, context: int, open_loop: int, heading: str
) -> Film:
    """What one episode shows."""
    episode, rendered = played
    batch = EpisodeWindows(episode, episode.sizes["time"]).batch(torch.tensor([0]))
    if "image" in episode:  # as the agent sees it
        seen = quantised(batch.observation, agent.bits)
        batch = batch._replace(observation=seen)
    batch = batch.to(agent.model.spread.device)
    again = reconstruct(agent.guide, batch)
    ahead = predict(agent.guide, batch, context, open_loop)
    fps = float(episode.attrs["fps"])
    panels: list[Panel]
    if "image" in episode:
        panels = [
            enlarged(x) for x in (
                episode["image"].to_numpy()[0], again.observation[0], ahead.observation[0],
            )
        ]  # fmt: skip
    elif environment in PICTURES:
        picture, o = PICTURES[environment], episode["observation"].to_numpy()
        panels = [overlaid(picture, x) for x in (o, again.observation, ahead.observation)]
    else:
        o = episode["observation"].to_numpy()[0]
        part: Any = {"part": context + open_loop, "fps": fps}
        panels = [
            Lines(o, None, RECORDED, seen=0, **part) if rendered is None else fitted(rendered),
            Lines(o, again.observation, GENERATED, seen=0, **part),
            Lines(o, ahead.observation, OPEN_LOOP, seen=context, **part),
        ]
    reward = Rewards(episode["reward"].to_numpy()[0], again.reward, ahead.reward)
    return Film(panels, reward, context=context, open_loop=open_loop, fps=fps, heading=heading)


# ------------------------------------------------------------------------------------ the file

Frames = Sequence[Callable[[], Pixels]]  # each is drawn when it is called
Save = Callable[[Frames, Path, float, bool], None]


def _saving(out: Path) -> Save:
    """What writes frames to a file of this name: ``save(frames, path, fps, progress)``.

    Raises:
        ConfigError: If the name ends in neither .gif nor .mp4.
        RunError: If ffmpeg, which writes MP4, is not installed.
    """
    if out.suffix == ".gif":
        return _save_gif
    if out.suffix != ".mp4":
        raise ConfigError(f"--out {out}: a video is a GIF or MP4; end its name in .gif or .mp4")
    if not FFMpegWriter.isAvailable():
        raise RunError(
            f"{out}: MP4 is written by ffmpeg, which is not installed (Debian package ffmpeg); "
            "install it, or end the name in .gif, which needs nothing more"
        )
    return _save_mp4


def _save_gif(frames: Frames, path: Path, fps: float, progress: bool) -> None:
    some = [frames[i]() for i in evenly(len(frames), 8)]
    drawn = (frame() for frame in _counted(frames, progress))
    save_gif(path, drawn, some, delay(1 / fps), kept=[OPEN_LOOP])


def _save_mp4(frames: Frames, path: Path, fps: float, progress: bool) -> None:
    """Write an MP4, by matplotlib's way to ffmpeg."""
    first = frames[0]()
    figure = Figure(figsize=inches(first.shape[1], first.shape[0]), dpi=DPI)
    picture = figure.figimage(first)
    rate: Any = fps  # declared a whole number, and only written down for ffmpeg
    writer = FFMpegWriter(fps=rate, codec="h264", extra_args=["-f", "mp4"])
    try:
        with writer.saving(figure, str(path), DPI):
            for frame in _counted(frames, progress):
                picture.set_data(frame())
                writer.grab_frame()
    except CalledProcessError as error:
        said = str(error.stderr or "").strip().splitlines()
        raise OSError(f"ffmpeg failed: {said[-1] if said else error}") from error


def _counted(frames: Frames, progress: bool) -> Iterable[Callable[[], Pixels]]:
    return tqdm(frames, desc="draw", unit="frame", disable=not progress)
