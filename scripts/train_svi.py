"""Train the bare model and guide with Pyro's own SVI: copy and edit.

The model and the guide are Pyro programs; `ScaledELBO` is a Pyro loss whose `kl_weight` may change
between steps. This is the loop to start from for a model, schedule or objective of your own;
`pyro_animacy.fit` adds validation, checkpoints, baselines and the held-out score.
"""

import argparse

import pyro
import torch
from pyro.infer import SVI
from pyro.optim import ClippedAdam
from tqdm import trange

from pyro_animacy import (
    ControlVAE,
    ControlVAEConfig,
    ControlVAEGuide,
    Scale,
    ScaledELBO,
    Windows,
    read_trajectories,
)

HISTORY, T, BATCH = 4, 8, 64  # frames the model sees, steps in a window, windows in a batch


def main() -> None:
    """Train on the bundled recording, and print the terms of the loss."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--steps", type=int, default=300)
    steps = options.parse_args().steps
    pyro.set_rng_seed(0)
    draw = torch.Generator().manual_seed(0)

    trajectories = read_trajectories("metrica", bodies="home x away x ball", downsample=2)
    scale = Scale.of(trajectories)
    windows = Windows(trajectories, frames=HISTORY + T, context=HISTORY, scale=scale)

    model = ControlVAE(ControlVAEConfig(history=HISTORY), scale=scale, bodies=3)
    guide = ControlVAEGuide(model)
    elbo = ScaledELBO(scale=1 / (BATCH * T))  # a loss in nats per step
    svi = SVI(model, guide, ClippedAdam({"lr": 1e-3, "clip_norm": 10.0}), loss=elbo)

    with trange(steps) as bar:
        for step in bar:
            elbo.kl_weight = min(1.0, 0.1 + step / (0.5 * steps))  # beta, annealed to a true bound
            loss = svi.step(windows.draw(BATCH, draw))
            if step % 20 == 0 or step == steps - 1:
                terms = {name: f"{value.item():.2f}" for name, value in elbo.terms.items()}
                bar.set_postfix({"beta": f"{elbo.kl_weight:.2f}", **terms})
    print(f"loss {loss:.3f} nats per step after {steps} steps, in the model's unit of length")


if __name__ == "__main__":
    main()
