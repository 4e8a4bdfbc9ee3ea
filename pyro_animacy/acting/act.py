"""Learn by acting: collect episodes, fit the world model to them, act by it, and so on.

    seed episodes at random
    pretrain updates, as below
    repeat                                                            n = number of the episode
        C times:  a batch of windows from the replay
                  one update of the world model          (scaled ELBO, as in `fit`)
                  one update of actor and critic         (dreamer, dreamerv2)
        an episode by the agent, with exploration, into the replay
        now and then: episodes without exploration, the evaluation

The world model is the program `pyro_animacy.models.world_model`, fitted by the same loss as any
other; so a run of this loop is a run like those of `fit`: `Run.load`, `sample` and `criticise` take
it. Every random number of update k is drawn from a stream seeded by (seed, k), of episode n by
(seed, n): a run that was stopped or killed goes on to the result it would have had.

Hafner et al., Learning Latent Dynamics for Planning from Pixels, 2019, algorithm 1; Dream to
Control, 2020, algorithm 1.
"""

import dataclasses
import json
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import torch

from pyro_animacy.acting.agent import AtRandom, Controls, WorldError, play, returned
from pyro_animacy.acting.config import ActConfig, model_option
from pyro_animacy.acting.environments.make import frames_per_second
from pyro_animacy.acting.learner import LEARNERS, Learner
from pyro_animacy.acting.replay import Replay
from pyro_animacy.acting.run import check_env, evaluation, make_env, read_acting
from pyro_animacy.data.episodes import save_episodes
from pyro_animacy.errors import RunError, command_line
from pyro_animacy.infer import checkpoint
from pyro_animacy.infer.checkpoint import EpisodeCard
from pyro_animacy.infer.episodes import see
from pyro_animacy.infer.fit import alone_in, new_folder
from pyro_animacy.infer.loop import SAVE_EVERY, Interrupted, signals, stream, tensorboard
from pyro_animacy.infer.recordings import REPLAY, absolute
from pyro_animacy.infer.run import METRICS, REFERENCE, pick_device, read_metrics
from pyro_animacy.infer.settings import save_settings
from pyro_animacy.infer.traced import no_validation
from pyro_animacy.progress import tqdm

STATE = {"step", "seconds", "episodes", "terms"}


class Acting:
    """The loop and its state: what was learned, updates done, their terms, episodes collected.

    Args:
        environment: Name of the environment, see `make`.
        config: The options.
        path: The run's folder.
        progress: Show progress bars.
    """

    def __init__(self, environment: str, config: ActConfig, path: Path, *, progress: bool) -> None:
        self.environment, self.config, self.path, self.progress = (
            environment, config, path, progress
        )  # fmt: skip
        self.device = pick_device(config.train.device)
        self.env = make_env(environment, config)
        self.controls = Controls.of(self.env)
        self.fps = frames_per_second(self.env)
        self.replay = Replay(path / REPLAY, fps=self.fps, memory=config.replay_memory)
        self.step, self.began = 0, time.monotonic()
        self.saved = self.began
        self.terms: list[dict[str, float]] = []  # of the updates since the last episode
        self.rows: list[dict[str, Any]] = []
        self.caught: list[int] = []
        self.learner: Learner | None = None

    def run(self) -> None:
        """Go on from the present state to the last episode.

        Raises:
            RunError: If the loss is not finite, or the environment fails; what was saved is kept.
            Interrupted: After a signal, when all is saved.
        """
        c = self.config
        gpu = [self.device] if self.device.type == "cuda" else []
        bar = tqdm(total=c.episodes, initial=len(self.replay), desc="act", unit="episode",
                   disable=not self.progress)  # fmt: skip
        with (
            tensorboard(self.path, c.train.tensorboard) as board,
            signals() as self.caught,
            torch.random.fork_rng(gpu),
            no_validation(),
            closing(self.env),
            bar,
        ):
            while len(self.replay) < c.episodes:
                n = len(self.replay)
                row = self.turn(n, bar)
                row["seconds"] = self.spent()
                self.rows.append(row)
                self.terms = []
                if board is not None:
                    for name, value in row.items():
                        if isinstance(value, int | float):
                            board.add_scalar(name, value, n)
                if self.learner is not None:
                    self._save_if_due(n + 1, at_once="evaluation_return" in row)
        self.save(len(self.replay))

    def turn(self, n: int, bar: Any) -> dict[str, Any]:
        """Learn what is due, collect episode ``n``, evaluate now and then; returns what to log."""
        c, row = self.config, dict[str, Any](episode=n)
        if n >= c.seed_episodes:
            row |= self.learn(n, bar)
        try:
            row |= self.collect(n)
            bar.update()
            evaluate = (n + 1) % c.evaluate_every == 0 or n + 1 == c.episodes
            if evaluate and self.learner is not None:
                row |= self.evaluate(n)
                checkpoint.keep(self.path, n + 1, c.train.keep, self.learner.save_weights)
                shown = "tracking_error" if "tracking_error" in row else "evaluation_return"
                bar.set_postfix({shown: f"{row[shown]:.3g}"})
        except WorldError as error:
            self.save(n)
            raise RunError(
                f"{error}. All before episode {n} is saved; when the environment is mended, go on "
                f"with: {command_line('act', '--resume', self.path)}"
            ) from error
        return row

    def learn(self, n: int, bar: Any) -> dict[str, float]:
        """The updates due before episode ``n``; returns the mean of their terms."""
        learner, c = self.learner or self.begin(), self.config
        due = c.updates_before(n)
        bar.set_description("act: learn")
        while self.step < due:
            generator = torch.Generator().manual_seed(stream(c.train.seed, self.step))
            size, frames = c.train.windows_each, c.train.window
            batch = self.replay.sample(size, frames, generator, bits=c.bits)
            torch.manual_seed(stream(c.train.seed, self.step) + 1)
            self.terms.append(learner.update(batch, self.step))
            self.step += 1
            self._stop_if_asked(n)
            self._save_if_due(n)
        terms = self.terms
        return {name: sum(each[name] for each in terms) / len(terms) for name in terms[-1]}

    def begin(self) -> Learner:
        """Build what is to be learned, by what the seed episodes show."""
        episodes = self.replay.dataset(self.config.seed_episodes)
        sight = see(episodes)
        check_env(self.env, sight)
        name, model = self.config.learned
        card = EpisodeCard(
            model=name, config=dataclasses.asdict(model), fps=self.fps,
            sight=sight._replace(continuation=bool(episodes["terminal"].any())),
        )  # fmt: skip
        kind = LEARNERS[self.config.agent]
        self.learner = kind(card, self.config, self.controls, self.device, self.path)
        return self.learner

    def collect(self, n: int) -> dict[str, float]:
        """Episode ``n``, into the replay."""
        c = self.config
        at_random = n < c.seed_episodes or c.collect == "random" or self.learner is None
        agent: Any = AtRandom(self.controls) if at_random else self.learner.agent  # type: ignore[union-attr]
        seed = stream(c.train.seed, n, 1)
        torch.manual_seed(seed)
        (episode,) = play(
            [self.env], agent, [seed % 2**31], explore=True, fps=self.fps,
            each_step=lambda: self._stop_if_asked(n),
        )  # fmt: skip
        self.replay.add(episode)
        return {"return": float(returned([episode])[0]), "frames": self.replay.frames}

    def evaluate(self, n: int) -> dict[str, Any]:
        """Episodes without exploration, on the same seeds at every evaluation."""
        assert self.learner is not None
        c, agent = self.config, self.learner.evaluated
        episodes = evaluation(
            lambda: make_env(self.environment, c), lambda _: agent, c.evaluation_episodes,
            seed=c.train.seed, fps=self.fps, each_step=lambda: self._stop_if_asked(n),
        )  # fmt: skip
        values = returned(episodes)
        row = {"evaluation_return": float(values.mean()), "evaluation_returns": values.tolist()}
        return row | self.learner.measured(episodes)

    def _stop_if_asked(self, n: int) -> None:
        """After a signal, save and stop; episode ``n``, which is not there yet, is done again."""
        if self.caught:
            self.save(n)
            raise Interrupted(
                f"stopped at episode {n} of {self.config.episodes}; all is saved. Go on with: "
                f"{command_line('act', '--resume', self.path)}",
                self.caught[0],
            )

    def _save_if_due(self, episodes: int, *, at_once: bool = False) -> None:
        if at_once or time.monotonic() - self.saved >= SAVE_EVERY:
            self.save(episodes)

    def spent(self) -> float:
        """Seconds since the run began, less those it was stopped."""
        return round(time.monotonic() - self.began, 2)

    def save(self, episodes: int) -> None:
        """Write everything needed to go on, with so many episodes collected."""
        state: dict[str, Any] = {
            "format": checkpoint.FORMAT,
            "step": self.step, "seconds": self.spent(), "episodes": episodes, "terms": self.terms,
        }  # fmt: skip
        if self.learner is not None:
            state |= self.learner.state()
        text = "".join(json.dumps(row) + "\n" for row in self.rows)
        checkpoint.write_atomically(self.path / METRICS, lambda to: to.write_text(text))
        if self.learner is not None:
            self.learner.save_weights(self.path)
        checkpoint.save_trainer(self.path / checkpoint.TRAINER, state)
        self.saved = time.monotonic()

    def load(self, state: dict[str, Any]) -> None:
        """Take up what `save` wrote; episodes collected after it are collected again.

        Raises:
            RunError: If it is of another model, or of another environment.
        """
        self.step, self.terms = state["step"], state["terms"]
        self.began = time.monotonic() - state["seconds"]
        self.replay.truncate(state["episodes"])
        rows = read_metrics(self.path, "episode")
        self.rows = [row for row in rows if row["episode"] < state["episodes"]]
        if "parameters" in state:
            self.begin().load(state)


def act(
    environment: str,
    config: ActConfig,
    *,
    out: str | Path,
    overwrite: bool = False,
    progress: bool = True,
) -> Path:
    """Learn to act in an environment, and save the run.

    Args:
        environment: Its name, see `pyro_animacy.acting.environments.make`.
        config: The options, see `act_preset`.
        out: Folder to write: ``config.yaml``, ``metrics.jsonl``, ``best.safetensors`` (the
            model that is learned), ``behaviour.safetensors`` (of Dreamer's, actor and critic),
            ``reference.npz`` (of ``control_vae``), ``trainer.pt``, ``episodes/``; with
            ``train.keep`` ``checkpoints/``, by the episodes there were.
        overwrite: Replace a folder that exists.
        progress: Show progress bars.

    Returns:
        The folder.

    Raises:
        ConfigError: If the environment does not exist, or cannot be acted in, or images are too
            small; if there is no reference to follow.
        DataError: If the reference is not of the environment.
        RunError: If ``out`` exists or cannot be written, the loss stops being a number, or the
            environment fails.
        Interrupted: If SIGINT or SIGTERM came; everything is saved and `resume_acting` goes on.
    """
    path = Path(out)
    with closing(make_env(environment, config)) as env:  # fail now, before anything is written
        references = LEARNERS[config.agent].references(env, Controls.of(env), config)
    pick_device(config.train.device)
    with new_folder(path, overwrite):
        save_settings(path, *config.learned, config.train, acting=_acting(environment, config))
        if references is not None:
            checkpoint.write_atomically(
                path / REFERENCE, lambda to: save_episodes(references, to, form="npz")
            )
        Acting(environment, config, path, progress=progress).run()
    return path


def resume_acting(path: str | Path, *, progress: bool = True) -> Path:
    """Go on with a run of `act` that was stopped or killed, to the result it would have had.

    Raises:
        RunError: If there is nothing to resume, the environment is not the run's, or another
            process is at work on the run.
    """
    path = Path(path)
    environment, config = read_acting(path)
    with alone_in(path):
        loop = Acting(environment, config, path, progress=progress)
        if (path / checkpoint.TRAINER).is_file():
            loop.load(checkpoint.load_trainer(path / checkpoint.TRAINER, STATE))
        else:
            loop.replay.truncate(0)
        loop.run()
    return path


def _acting(environment: str, config: ActConfig) -> dict[str, Any]:
    """What ``config.yaml`` holds beside the model that is learned and its updates."""
    elsewhere, options = (model_option(config.agent), "train"), dataclasses.asdict(config)
    if config.reference is not None:
        options["reference"] = absolute(config.reference)
    return {"environment": environment} | {
        name: value for name, value in options.items() if name not in elsewhere
    }
