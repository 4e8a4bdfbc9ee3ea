"""What every training loop needs: an optimiser, streams of random numbers, signals, a board."""

import signal
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import torch
from torch import nn

from pyro_animacy.errors import AnimacyError, MissingExtra
from pyro_animacy.infer.config import UpdateConfig

BOARD = "tensorboard"  # folder of a run


class Interrupted(AnimacyError):  # noqa: N818
    """The fit was stopped by a signal after saving; ``signal`` is its number."""

    def __init__(self, message: str, signal_number: int) -> None:
        super().__init__(message)
        self.signal = signal_number


def make_optimizer(
    parameters: Iterable[nn.Parameter], options: UpdateConfig
) -> torch.optim.Optimizer:
    """The optimiser that the options name, with decoupled weight decay."""
    o, parameters = options, list(parameters)
    if o.optimizer == "radam":
        return torch.optim.RAdam(
            parameters, lr=o.learning_rate, weight_decay=o.weight_decay, eps=o.epsilon,
            decoupled_weight_decay=True,
        )  # fmt: skip
    return torch.optim.AdamW(
        parameters, lr=o.learning_rate, weight_decay=o.weight_decay, eps=o.epsilon, fused=True
    )


def stream(seed: int, step: int, rank: int = 0) -> int:
    """The seed of one step's random numbers, in one of several processes."""
    words = [seed, step + 8, rank] if rank else [seed, step + 8]
    return int(np.random.SeedSequence(words).generate_state(1)[0])


@contextmanager
def signals() -> Iterator[list[int]]:
    """Note SIGINT and SIGTERM instead of dying; the list holds what came."""
    caught: list[int] = []

    def note(number: int, _: FrameType | None) -> None:
        if caught:  # a second signal: the person means it
            raise KeyboardInterrupt
        caught.append(number)

    try:
        before = {s: signal.signal(s, note) for s in (signal.SIGINT, signal.SIGTERM)}
    except ValueError:  # not in the main thread, which alone receives signals
        before = {}
    try:
        yield caught
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def tensorboard(path: Path, wanted: bool) -> Iterator[Any]:
    """A TensorBoard writer into the run's folder, closed at the end; None if not wanted."""
    if not wanted:
        yield None
        return
    with summary_writer()(path / BOARD) as board:
        yield board


def summary_writer() -> Any:
    """The class of TensorBoard writers.

    Raises:
        MissingExtra: If TensorBoard is not installed.
    """
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise MissingExtra("train.tensorboard", "tensorboard") from None
    return SummaryWriter
