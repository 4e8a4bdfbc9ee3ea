"""How the cost of a training step, of data and of memory grows: a figure and a table.

    .venv/bin/python scripts/growth.py [--only steps] [--figure PNG] [--markdown PAGE]

One number at a time is changed in a step of 64 units, 64 windows, 24 steps, three bodies and a
latent of 8, taken as the trainer takes it: recorded up to windows of 64 steps, as a program beyond.
Every point is a process of its own, on `--threads` threads (2 by default): the median time of at
least five repetitions; of memory, the most that was resident in one, less what it was before
anything was built. `exponent` is k of cost ~ size^k between the last two points: 1 is linear.
"""

import argparse
import json
import math
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib.pyplot as plt
import pyro
import torch
from bench import write_between
from benchmarks.cases import Case, closed_loop, teacher_forced
from benchmarks.data import walks
from benchmarks.first_pyro import LEAST_RATE
from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter
from torch import nn

from pyro_animacy import Scale, ScaledELBO, Windows
from pyro_animacy.infer.loop import TRACED_TO
from pyro_animacy.infer.traced import Gradient
from pyro_animacy.infer.trainer import checkpoint_activations

MARKERS = "<!-- growth -->", "<!-- /growth -->"
LEAST_SECONDS, LEAST_TIMES = 2.0, 5
COLOURS = ("#0072B2", "#D55E00", "#009E73")


class Curve(NamedTuple):
    """What is changed, from where to where, and which lines there are."""

    name: str
    unit: str  # what the number counts
    sizes: tuple[int, ...]
    lines: tuple[str, ...]
    measure: str  # "ms" or "MB"


LOOPS = "closed loop", "teacher forced"
CURVES = (
    Curve("steps", "steps of a window, T", (8, 16, 32, 64, 128), LOOPS, "ms"),
    Curve("windows", "windows of a batch, B", (16, 64, 256, 1024), LOOPS, "ms"),
    Curve("bodies", "bodies", (1, 2, 4, 8, 16), LOOPS, "ms"),
    Curve("latent", "size of the latent", (4, 16, 64, 256), LOOPS, "ms"),
    Curve(
        "data", "frames of three bodies", (10**4, 10**5, 10**6, 4 * 10**6),
        ("to find scale and windows", "a batch of 64"), "ms",
    ),
    Curve(
        "memory", "steps, T (256 windows, 128 units)", (125, 250, 500, 1000),
        ("closed loop", "activations checkpointed"), "MB",
    ),
)  # fmt: skip


def step_of(line: str, size: dict[str, int]) -> Callable[[], object]:
    """A training step, of some sizes that differ."""
    sizes = {"hidden": 64, "latent": 8, "windows": 64, "steps": 24, "bodies": 3} | size
    config_of = teacher_forced if line == "teacher forced" else closed_loop
    config = config_of(sizes["hidden"], sizes["latent"], 2)
    case = Case(line, config, sizes["windows"], sizes["steps"], bodies=sizes["bodies"])
    model, guide = case.build()
    batch, modules = case.recording(), nn.ModuleList([model, guide])
    if line == "activations checkpointed":
        checkpoint_activations(modules)
    gradient = Gradient(
        ScaledELBO(kl_weight=case.kl_weight), model, guide, traced=case.steps <= TRACED_TO
    )
    optimizer = torch.optim.AdamW(modules.parameters(), lr=LEAST_RATE, fused=True)

    def step() -> None:
        gradient(batch)
        optimizer.step()

    return step


def data_of(line: str, frames: int) -> Callable[[], object]:
    """Windows of a recording found, or a batch of them drawn."""
    dataset = walks(10, frames // 10)

    def found() -> Windows:
        return Windows(dataset, frames=26, context=2, scale=Scale.of(dataset))

    if line != "a batch of 64":
        return found
    windows, generator = found(), torch.Generator().manual_seed(0)
    return lambda: windows.draw(64, generator)


def resident() -> float:
    """The most memory that was resident so far, MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def point(curve: str, line: str, size: int) -> dict[str, float]:
    """Milliseconds and MB of one point, measured in this process."""
    pyro.enable_validation(False)
    before = resident()
    if curve == "data":
        run = data_of(line, size)
    elif curve == "memory":
        run = step_of(line, {"hidden": 128, "latent": 16, "windows": 256, "steps": size})
    else:
        run = step_of(line, {curve: size})
    run()  # it records, and allocates
    times: list[float] = []
    while curve != "memory" and (sum(times) < LEAST_SECONDS or len(times) < LEAST_TIMES):
        began = time.perf_counter()
        run()
        times.append(time.perf_counter() - began)
    return {"ms": 1e3 * statistics.median(times or [math.nan]), "MB": resident() - before}


def measured(curve: Curve, line: str, threads: int) -> list[float]:
    """The points of a line, each in a process of its own."""
    found = []
    for size in curve.sizes:
        words = ["--point", curve.name, line, str(size), "--threads", str(threads)]
        done = subprocess.run(
            [sys.executable, __file__, *words], check=True, capture_output=True, text=True
        )
        found.append(json.loads(done.stdout)[curve.measure])
        print(f"{curve.name} {size:,}, {line}: {found[-1]:.4g} {curve.measure}", flush=True)
    return found


def exponent(sizes: tuple[int, ...], costs: list[float]) -> float:
    """Return k of cost ~ size^k between the last two."""
    return math.log(costs[-1] / costs[-2]) / math.log(sizes[-1] / sizes[-2])


def table(found: dict[str, dict[str, list[float]]]) -> str:
    """All lines in Markdown."""
    rows = ["| of | cost of | from | to | exponent |", "|---|---|---|---|---|"]
    for curve in CURVES:
        for line, costs in found.get(curve.name, {}).items():
            ends = (
                f"{size:,}: {cost:.3g} {curve.measure}"
                for size, cost in ((curve.sizes[i], costs[i]) for i in (0, -1))
            )
            grows = exponent(curve.sizes, costs)
            rows.append(f"| {curve.unit} | {line} | {' | '.join(ends)} | {grows:.2f} |")
    return "\n".join(rows) + "\n"


def short(size: int) -> str:
    """A size on an axis."""
    return f"{size:,}" if size < 10**5 else f"{size / 10**6:g} M"


def draw(found: dict[str, dict[str, list[float]]], path: Path) -> None:
    """One panel for each number that is changed, both axes logarithmic, beside a linear growth."""
    curves = [curve for curve in CURVES if curve.name in found]
    columns = min(3, len(curves))
    rows = -(-len(curves) // columns)
    figure, axes = plt.subplots(
        rows, columns, figsize=(3.7 * columns, 3.1 * rows), layout="constrained", squeeze=False
    )
    for ax in axes.flat[len(curves) :]:
        ax.remove()
    for ax, curve in zip(axes.flat, curves, strict=False):
        for colour, (line, costs) in zip(COLOURS, found[curve.name].items(), strict=False):
            ax.loglog(curve.sizes, costs, "o-", color=colour, label=line, markersize=4)
        last = max(costs[-1] for costs in found[curve.name].values())
        linear = [last * size / curve.sizes[-1] for size in curve.sizes]
        ax.loglog(curve.sizes, linear, ":", color="0.5", label="linear", zorder=0)
        ax.set_xlabel(curve.unit)
        what = "time, ms" if curve.name == "data" else "a training step, ms"
        ax.set_ylabel("memory of a step, MB" if curve.measure == "MB" else what)
        ax.set_xticks(curve.sizes, [short(size) for size in curve.sizes])
        ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        ax.yaxis.set_major_formatter(StrMethodFormatter("{x:,g}"))
        for axis in (ax.xaxis, ax.yaxis):
            axis.set_minor_formatter(NullFormatter())
        ax.legend(fontsize=8, frameon=False)
        ax.grid(which="both", alpha=0.2)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def main() -> None:
    """Measure, draw and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", choices=[curve.name for curve in CURVES], help="one curve")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--figure", type=Path, help="write the curves")
    parser.add_argument("--markdown", type=Path, help=f"write the table, between {MARKERS[0]}")
    parser.add_argument("--point", nargs=3, help=argparse.SUPPRESS)
    options: Any = parser.parse_args()
    if options.only and options.markdown:
        parser.error("--markdown takes the whole table: leave --only out")
    torch.set_num_threads(options.threads)
    if options.point:
        curve, line, size = options.point
        print(json.dumps(point(curve, line, int(size))))
        return
    found = {
        curve.name: {line: measured(curve, line, options.threads) for line in curve.lines}
        for curve in CURVES
        if options.only in (None, curve.name)
    }
    text = table(found)
    print("\n" + text)
    if options.figure:
        draw(found, options.figure)
    if options.markdown:
        write_between(MARKERS, options.markdown, text)


if __name__ == "__main__":
    main()
