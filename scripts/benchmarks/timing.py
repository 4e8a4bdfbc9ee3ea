"""Interleaved timing, its statistics, and what the machine itself can do."""

import random
import statistics
import time
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

WARM_UP = 2  # rounds that are not counted
SQUARE = 2048  # side of the matrices that the machine's rate is measured with


class Ratio(NamedTuple):
    """Ours over another's time: quartiles by rounds, and that of the fastest; theirs in seconds.

    On a machine with other work the fastest of either say more than the medians.
    """

    low: float
    median: float
    high: float
    fastest: float
    seconds: float


def interleaved(ways: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each way in each round; a round takes all in an order drawn anew."""
    order = list(ways)
    times: dict[str, list[float]] = {name: [] for name in ways}
    shuffle = random.Random(0)
    for index in range(WARM_UP + rounds):
        shuffle.shuffle(order)
        for name in order:
            began = time.perf_counter()
            ways[name]()
            if index >= WARM_UP:
                times[name].append(time.perf_counter() - began)
    return times


def compared(ours: list[float], theirs: list[float]) -> Ratio:
    """Ours over theirs, both in the order of their rounds."""
    ratios = [a / b for a, b in zip(ours, theirs, strict=True)]
    low, median, high = statistics.quantiles(ratios, n=4)
    return Ratio(low, median, high, min(ours) / min(theirs), statistics.median(theirs))


def square_product() -> Callable[[], Tensor]:
    """A large product of square matrices of float32: 2 x SQUARE^3 operations."""
    a, b = torch.randn(2, SQUARE, SQUARE)
    out = torch.empty_like(a)
    return lambda: torch.mm(a, b, out=out)


class _Products(TorchDispatchMode):
    """Counts the matrix products that are run, by operator, shapes and layouts."""

    def __init__(self) -> None:
        super().__init__()
        self.found: Counter = Counter()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        aten = torch.ops.aten
        products = aten.mm, aten.addmm, aten.bmm, aten.baddbmm
        if func.overloadpacket in products:
            layout = tuple((tuple(a.shape), a.stride()) for a in args)
            self.found[func, layout] += 1
        return func(*args, **(kwargs or {}))


def _drawn(size: tuple[int, ...], stride: tuple[int, ...]) -> Tensor:
    """A tensor of this layout, which may be expanded."""
    reach = 1 + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    return torch.randn(reach).as_strided(size, stride)


def products_alone(step: Callable[[], object]) -> tuple[Callable[[], None], int]:
    """The matrix products of a step without the rest of it, and their floating-point operations.

    Same shapes and layouts, on numbers drawn at random.
    """
    with FlopCounterMode(display=False) as counter, _Products() as products:
        step()
    made = []
    for (operator, layout), count in products.found.items():
        operands = [_drawn(size, stride) for size, stride in layout]
        made.append((operator, operands, count))

    def run() -> None:
        for operator, operands, count in made:
            for _ in range(count):
                operator(*operands)

    return run, counter.get_total_flops()
