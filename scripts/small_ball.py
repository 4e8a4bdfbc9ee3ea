"""Is a small body seen by a world model of pixels? It is a matter of sigma: docs/acting.md.

    .venv/bin/python scripts/small_ball.py RUN [--updates 1000] [--figure small_ball.png]

Fits the world model of a run of `act Chase-v0 --pixels true` to its episodes anew, once with
sigma = 1, PlaNet's sum of squares, and once with sigma = 0.1 of a pixel's range, and measures in
reconstructions of new episodes, played by the run's agent, how much of each body is there:

    contrast = mean over the body's pixels of (x - b) . (c - b) / |c - b|^2

with x the reconstruction, c the body's colour and b the background's: 1 is a body as recorded, 0 is
none. The body's pixels are those of the recorded image that are nearest to c.
"""

import argparse
import dataclasses
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import numpy.typing as npt
import torch
from tqdm import trange

from pyro_animacy.acting.act import EPISODES
from pyro_animacy.acting.agent import Controls
from pyro_animacy.acting.environments.chase import BACKGROUND, CHASER, EVADER
from pyro_animacy.acting.learner import Learner
from pyro_animacy.acting.replay import Replay
from pyro_animacy.acting.run import (
    evaluation,
    frames_per_second,
    load_agent,
    make_env,
    read_acting,
)
from pyro_animacy.data.episode_windows import EpisodeWindows
from pyro_animacy.infer.run import Run
from pyro_animacy.infer.traced import no_validation
from pyro_animacy.models.program import Memory

SIGMAS = (1.0, 0.1)
BODIES = {"chaser": CHASER, "evader": EVADER}
Images = npt.NDArray[np.float64]  # (frame, height, width, 3), from 0 to 1


def main() -> None:
    """Fit, measure, draw."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--updates", type=int, default=1000)
    parser.add_argument("--figure", type=Path)
    options = parser.parse_args()
    environment, config = read_acting(options.run)
    env = make_env(environment, config)
    replay = Replay(options.run / EPISODES, fps=frames_per_second(env))
    agent, card = load_agent(options.run, env), Run.load(options.run).card
    with no_validation():
        (episode,) = evaluation(
            lambda: make_env(environment, config), lambda _: agent, 1, seed=77, fps=replay.fps
        )
    batch = EpisodeWindows(episode, int(episode["length"][0])).batch(torch.zeros(1).long())
    seen, made = _images(batch.observation), {}
    for sigma in SIGMAS:
        model = dataclasses.replace(config.model, observation_scale=sigma)
        learner = Learner(
            dataclasses.replace(card, config=dataclasses.asdict(model)),
            dataclasses.replace(config, agent="planet", model=model),
            Controls.of(env), torch.device("cpu"),
        )  # fmt: skip
        generator, train = torch.Generator().manual_seed(0), config.train
        torch.manual_seed(0)
        with no_validation():
            for step in trange(options.updates, desc=f"sigma {sigma:g}"):
                windows = replay.sample(train.batch_size, train.window, generator, bits=config.bits)
                learner.update(windows, step)
            with torch.no_grad(), learner.guide:
                path = learner.model.follow(batch)
                made[sigma] = _images(learner.model.observation(Memory(*path)).mean)
        found = {name: contrast(seen, made[sigma], colour) for name, colour in BODIES.items()}
        print(f"sigma {sigma:g}: " + ", ".join(f"{n} {c:.2f}" for n, c in found.items()))
    if options.figure:
        draw(seen, made, options.figure)


def _images(x: torch.Tensor) -> Images:
    """(T, 1, 3, H, W) as (T, H, W, 3)."""
    return x[:, 0].movedim(1, -1).double().numpy()


def contrast(seen: Images, made: Images, colour: tuple[float, float, float]) -> float:
    """How much of a body is there, as at the top of this file."""
    c, b = np.array(colour) / 255, np.array(BACKGROUND) / 255
    others = [b, *(np.array(other) / 255 for other in BODIES.values() if other != colour)]
    nearest = np.square(seen - c).sum(-1)
    body = np.all([nearest < np.square(seen - other).sum(-1) for other in others], 0)
    return float(((made[body] - b) @ (c - b)).mean() / np.square(c - b).sum())


def draw(seen: Images, made: dict[float, Images], file: Path) -> None:
    """Recorded frames above the reconstructions of the two."""
    frames = np.linspace(5, len(seen) - 1, 8).astype(int)
    rows = {"recorded": seen, **{f"$\\sigma$ = {sigma:g}": x for sigma, x in made.items()}}
    fig, axes = plt.subplots(len(rows), len(frames), figsize=(8, 3.2), layout="constrained")
    for line, (name, images) in zip(axes, rows.items(), strict=True):
        for ax, frame in zip(line, frames, strict=True):
            ax.imshow(images[frame].clip(0, 1))
            ax.set_xticks([])
            ax.set_yticks([])
        line[0].set_ylabel(name, fontsize=9)
    fig.savefig(file, dpi=130)


if __name__ == "__main__":
    main()
