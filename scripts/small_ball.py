"""Are small bodies seen by a world model of pixels, and foreseen? docs/acting.md, "A small ball".

    .venv/bin/python scripts/small_ball.py RUN [--figure small_ball.png]

Takes a run of `act Chase-v0 --pixels true`, plays new episodes by its agent, and measures in its
pictures how much of each body is there, and how far it is from where it was:

    x = b + W (c_chaser - b, c_evader - b)         x a pixel, b the background's colour, c a body's
    contrast = mean of W over the recorded body's pixels     1: as recorded, 0: nothing
    place    = mean of pixels weighted by W, where W > 0.35

in reconstructions, and 5 and 12 steps ahead in one draw of what is imagined under the actions that
were taken, beside bodies that stay where they are.
"""

import argparse
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import numpy.typing as npt
import torch

from pyro_animacy.acting.environments.chase import BACKGROUND, CHASER, EVADER
from pyro_animacy.acting.evaluate import new_episodes
from pyro_animacy.data.episode_windows import EpisodeWindows
from pyro_animacy.infer.run import Run
from pyro_animacy.infer.traced import no_validation
from pyro_animacy.models.program import Memory

BODIES = {"chaser": CHASER, "evader": EVADER}
EPISODES, SEED = 4, 77
GIVEN, AHEAD = 20, (5, 12)
THERE = 0.35  # of a colour, below which a pixel counts as none of a body's
Array = npt.NDArray[np.float64]


def shares(images: Array) -> Array:
    """W (..., body, height, width): how much of each body's colour is in pixels (..., 3, H, W)."""
    b = np.array(BACKGROUND) / 255
    colours = np.array([np.array(colour) / 255 - b for colour in BODIES.values()])
    return np.einsum("...chw,ck->...khw", images - b[:, None, None], np.linalg.pinv(colours))


def places(images: Array) -> Array:
    """(..., body, 2) in pixels; the middle of the picture where nothing of a body is there."""
    w = shares(images)
    w = np.where(w > THERE, w, 0.0)
    row, column = np.indices(images.shape[-2:])
    total = w.sum((-1, -2))
    found = np.stack([(w * axis).sum((-1, -2)) for axis in (column, row)], -1)
    middle = np.array(images.shape[-1:-3:-1]) / 2
    return np.where(total[..., None] > 0, found / np.maximum(total, 1e-9)[..., None], middle)


def contrast(seen: Array, made: Array) -> Array:
    """Of each body, as at the top of this file."""
    body = shares(seen) > 0.5
    return (shares(made) * body).sum((0, 1, 3, 4)) / body.sum((0, 1, 3, 4))


def apart(one: Array, other: Array) -> Array:
    """Mean distance of each body between pictures (..., 3, H, W), in pixels."""
    distance = np.linalg.norm(places(one) - places(other), axis=-1)
    return distance.reshape(-1, len(BODIES)).mean(0)


def main() -> None:
    """Measure, print, draw."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--figure", type=Path)
    options = parser.parse_args()
    run = Run.load(options.run)
    windows = EpisodeWindows(new_episodes(run.path, episodes=EPISODES, seed=SEED), 2 * GIVEN)
    batch = windows.batch(torch.arange(0, len(windows), GIVEN // 2))
    torch.manual_seed(0)
    with torch.no_grad(), no_validation():
        with run.guide:
            path = run.model.follow(batch)
        now = Memory(*(part[GIVEN - 1] for part in path))
        ahead = run.model.imagine(now, batch.action[GIVEN:])
        made, imagined = (
            run.model.observation(m).base_dist.loc.double().numpy() for m in (path, ahead)
        )
    seen = batch.observation.double().numpy()
    rows = {
        "contrast": contrast(seen, made),
        "reconstructed, px off": apart(seen[GIVEN // 2 :], made[GIVEN // 2 :]),
    }
    for k in AHEAD:
        rows[f"{k} steps ahead, px off"] = apart(seen[GIVEN + k - 1], imagined[k - 1])
        rows[f"{k} steps later, had it stayed"] = apart(seen[GIVEN + k - 1], seen[GIVEN - 1])
    for name, values in rows.items():
        print(
            f"{name:30}" + "".join(f"{b:>9} {v:.2f}" for b, v in zip(BODIES, values, strict=True))
        )
    if options.figure:
        draw(seen[:, 0], made[:, 0], imagined[:, 0], options.figure)


def draw(seen: Array, made: Array, imagined: Array, file: Path) -> None:
    """Frames as recorded, as reconstructed, and as foreseen from the frame before the line."""
    frames = [*range(4, GIVEN, 5), *range(GIVEN, 2 * GIVEN, 3)]
    foreseen = np.concatenate([np.full_like(made[:GIVEN], np.nan), imagined])
    lines = {"recorded": seen, "reconstructed": made, "foreseen": foreseen}
    fig, axes = plt.subplots(3, len(frames), figsize=(9, 2.9), layout="constrained")
    for line, (name, images) in zip(axes, lines.items(), strict=True):
        for ax, frame in zip(line, frames, strict=True):
            ax.set_xticks([])
            ax.set_yticks([])
            if np.isnan(images[frame]).any():
                ax.set_axis_off()
                continue
            ax.imshow(np.moveaxis(images[frame], 0, -1).clip(0, 1))
        line[0].set_ylabel(name, fontsize=8)
    for ax, frame in zip(axes[0], frames, strict=True):
        ax.set_title(f"{(frame - GIVEN + 1) / 10:+.1f} s", fontsize=8)
    # the first cells of the last line are empty, and so is their label
    axes[2][frames.index(GIVEN)].set_ylabel("foreseen", fontsize=8)
    fig.savefig(file, dpi=130)


if __name__ == "__main__":
    main()
