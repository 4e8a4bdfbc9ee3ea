"""Time of a training step beside the same maths by hand in plain PyTorch, interleaved in one run.

    .venv/bin/python scripts/bench.py [--pairs 40] [--threads 2]

Both take the same objective on the same networks, shapes and data, after a check that their losses
agree under the same draws: the ControlVAE that of the seed (closed loop, squared error), the
recurrent state-space model its bound, teacher forced. The plain losses are the oracles of the
tests, `tests/plain_pytorch.py`. Ratios are ours over theirs, so below 1 is faster.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pyro
import torch

from pyro_animacy import (
    Batch,
    ControlVAE,
    ControlVAEConfig,
    ControlVAEGuide,
    Scale,
    ScaledELBO,
    StateSpaceConfig,
    StateSpaceGuide,
    StateSpaceModel,
)
from pyro_animacy.models.program import MessengerGuide
from pyro_animacy.models.scene import SceneModel
from pyro_animacy.nets import StackConfig

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
import plain_pytorch

SCALE = Scale((0.0, 0.0), 1.0, 10.0, 3.0, 0.01, (-40.0,) * 6, (40.0,) * 6)
Pair = tuple[SceneModel, MessengerGuide]


def control_vae(hidden: int, latent: int, layers: int) -> Pair:
    """The seed's model."""
    net = StackConfig(hidden=hidden, layers=layers)
    config = ControlVAEConfig(
        history=1, latent_size=latent, posterior_scale="prior", likelihood="squared_error",
        roll_out="closed_loop", policy_scale=0.05, action_cost=0.001, discount=0.95,
        prior=net, posterior=net, policy=net,
    )  # fmt: skip
    model = ControlVAE(config, scale=SCALE, bodies=3)
    return model, ControlVAEGuide(model)


def rssm(hidden: int, latent: int) -> Pair:
    """The recurrent state-space model, its networks as wide as its memory."""
    net = StackConfig(hidden=hidden, layers=1)
    config = StateSpaceConfig(
        memory_size=hidden, latent_size=latent, prior=net, posterior=net, policy=net
    )
    model = StateSpaceModel(config, scale=SCALE, bodies=3)
    return model, StateSpaceGuide(model)


CASES = {  # model, its plain loss, batch, steps T, share of the pairs
    "ControlVAE, small": (lambda: control_vae(64, 8, 2), plain_pytorch.loss, 64, 24, 1.0),
    "ControlVAE, medium": (lambda: control_vae(128, 16, 2), plain_pytorch.loss, 256, 24, 1.0),
    "ControlVAE, paper, plain network": (
        lambda: control_vae(512, 64, 3), plain_pytorch.loss, 512, 24, 0.2,
    ),
    "rssm, PlaNet's sizes": (
        lambda: rssm(200, 30), plain_pytorch.state_space_loss, 50, 50, 1.0,
    ),
}  # fmt: skip


def contenders(make: Callable[[], Pair], plain_loss: Callable, batch: int, T: int) -> list:
    """A step of ours and one by hand, on networks with the same parameters."""
    torch.manual_seed(0)
    model, guide = make()
    x = torch.randn(T + model.config.history, batch, 6).cumsum(0)
    recording = Batch(x, torch.ones_like(x, dtype=torch.bool))
    optimizer = torch.optim.AdamW([*model.parameters(), *guide.parameters()], lr=0.0, fused=True)
    bound = ScaledELBO(kl_weight=0.1)(model, guide)

    def step(loss_of: Callable[[], torch.Tensor]) -> float:
        torch.manual_seed(1)
        loss = loss_of()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss.item()

    steps = [
        lambda: step(lambda: bound(recording)),
        lambda: step(lambda: plain_loss(model, guide, x, 0.1)["loss"]),
    ]
    ours, plain = (run() for run in steps)
    if abs(ours - plain) > 1e-4 * abs(plain):
        raise SystemExit(f"the losses differ: {ours} and {plain}")
    return steps


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=40, help="interleaved pairs a size")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--only", default="", help="cases whose name has this in it")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    pyro.enable_validation(False)
    print("| model | ours / plain PyTorch, median | quartiles | ours, ms |\n|---|---|---|---|")
    for name, (*case, share) in CASES.items():
        if arguments.only not in name:
            continue
        runs = contenders(*case)
        times = []
        for _ in range(max(4, int(arguments.pairs * share))):
            pair = []
            for run in runs:
                began = time.perf_counter()
                run()
                pair.append(time.perf_counter() - began)
            times.append(pair)
        ratios = [a / b for a, b in times[2:]]
        low, middle, high = statistics.quantiles(ratios, n=4)
        ours = statistics.median(a for a, _ in times[2:]) * 1e3
        print(f"| {name} | {middle:.3f} | {low:.3f} to {high:.3f} | {ours:.1f} |", flush=True)


if __name__ == "__main__":
    main()
