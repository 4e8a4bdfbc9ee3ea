"""Time of a training step beside the same maths by hand in plain PyTorch, interleaved in one run.

    .venv/bin/python scripts/bench.py [--pairs 40] [--threads 2]

Both take the seed's objective (closed loop, squared error) on the same networks, shapes and data,
after a check that their losses agree under the same draws. The plain loss is the oracle of the
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

from pyro_animacy import Batch, ControlVAE, ControlVAEConfig, ControlVAEGuide, Scale, ScaledELBO
from pyro_animacy.nets import StackConfig

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
import plain_pytorch

SIZES = {  # hidden, batch, steps T, latent, layers
    "small": (64, 64, 24, 8, 2),
    "medium": (128, 256, 24, 16, 2),
    "paper, plain network": (512, 512, 24, 64, 3),
}


def contenders(hidden: int, batch: int, T: int, latent: int, layers: int) -> list[Callable]:
    """A step of ours and one by hand, on networks with the same parameters."""
    net = StackConfig(hidden=hidden, layers=layers)
    config = ControlVAEConfig(
        history=1, latent_size=latent, posterior_scale="prior", likelihood="squared_error",
        roll_out="closed_loop", policy_scale=0.05, action_cost=0.001, discount=0.95,
        prior=net, posterior=net, policy=net,
    )  # fmt: skip
    scale = Scale((0.0, 0.0), 1.0, 10.0, 3.0, 0.01, (-40.0,) * 6, (40.0,) * 6)
    torch.manual_seed(0)
    model = ControlVAE(config, scale=scale, bodies=3)
    guide = ControlVAEGuide(model)
    x = torch.randn(T + 1, batch, 6).cumsum(0)
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
        lambda: step(lambda: plain_pytorch.loss(model, guide, x, 0.1)["loss"]),
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
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    pyro.enable_validation(False)
    print("| size | ours / plain PyTorch, median | quartiles | ours, ms |\n|---|---|---|---|")
    for name, size in SIZES.items():
        runs = contenders(*size)
        times = []
        for _ in range(max(4, arguments.pairs if size[0] < 512 else arguments.pairs // 5)):
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
