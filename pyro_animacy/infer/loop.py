"""What every training loop needs: loss and optimiser of its options, random numbers, signals."""

import signal
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pyro_animacy.errors import AnimacyError, MissingExtra, RunError
from pyro_animacy.infer.config import UpdateConfig
from pyro_animacy.infer.elbo import ScaledELBO
from pyro_animacy.models.agent_control_vae import AgentControlVAE

BOARD = "tensorboard"  # folder of a run
SAVE_EVERY = 30.0  # seconds
# Updates from which it is worth the seconds to record one, and the longest loop that is recorded.
TRACED_FROM, TRACED_TO = 500, 64


class Interrupted(AnimacyError):  # noqa: N818
    """The fit was stopped by a signal after saving; ``signal`` is its number."""

    def __init__(self, message: str, signal_number: int) -> None:
        super().__init__(message)
        self.signal = signal_number


def make_elbo(options: UpdateConfig) -> ScaledELBO:
    """The loss that the options name; its KL weight and scale are set at every update."""
    o = options
    return ScaledELBO(
        free_nats=o.free_nats, free_nats_of=o.free_nats_of, kl_balance=o.kl_balance,
        overshooting=o.overshooting if o.overshooting.distance > 1 else None,
    )  # fmt: skip


def worth_tracing(options: UpdateConfig, updates: int) -> bool:
    """Whether an update is to be recorded, of so many in all.

    By the options alone: a run that is resumed takes the same steps, to the last digit.
    """
    return updates >= TRACED_FROM and options.window <= TRACED_TO


def clip(optimizer: torch.optim.Optimizer, loss: Tensor, options: UpdateConfig) -> str:
    """Clip the gradient of a loss, of each of the optimiser's `groups` by itself.

    Returns:
        What is wrong where loss or gradient is not finite, else "".
    """
    norm = torch.stack([
        nn.utils.clip_grad_norm_(group["params"], options.clip_norm)
        for group in optimizer.param_groups
    ]).max()  # fmt: skip
    if torch.isfinite(loss) and torch.isfinite(norm):
        return ""
    return f"the loss is {loss.item():.4g} and its gradient's norm {norm.item():.4g}"


def diverged(where: str, what: str, kept: str = "") -> RunError:
    """The error to raise where training went astray, and what to do.

    Args:
        where: The update.
        what: What is not a number.
        kept: What is on the disk.
    """
    mend = "lower train.learning_rate or train.clip_norm"
    return RunError(f"{where}: {what}; {mend}" + (f" ({kept})" if kept else ""))


@contextmanager
def fitting(what: str) -> Iterator[None]:
    """Raise RunError where parameters that are loaded are of another model than the options."""
    try:
        yield
    except (RuntimeError, ValueError, KeyError) as error:
        first = " ".join(str(error).split())[:200]
        raise RunError(
            f"{what}: does not fit the options in config.yaml ({first}); undo what was "
            "changed there, or start a new run"
        ) from None


def groups(modules: nn.ModuleDict, options: UpdateConfig) -> list[dict[str, Any]]:
    """All parameters; those of a learned transition by themselves, since no term moves both.

    Args:
        modules: The ``model`` and the rest of what is learned.
        options: The options.
    """
    o, model, parameters = options, modules["model"], list(modules.parameters())
    if not isinstance(model, AgentControlVAE):
        return [{"params": parameters}]
    own = model.transition_parameters()
    apart = {id(p) for p in own}
    decay = o.weight_decay if o.transition_weight_decay is None else o.transition_weight_decay
    rate = o.transition_learning_rate or o.learning_rate
    return [
        {"params": [p for p in parameters if id(p) not in apart]},
        {"params": own, "lr": rate, "weight_decay": decay},
    ]


def make_optimizer(parameters: Iterable[Any], options: UpdateConfig) -> torch.optim.Optimizer:
    """The optimiser that the options name, with decoupled weight decay.

    Args:
        parameters: What it moves; or groups of it as torch has them, to give rates of their own.
        options: The options.
    """
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
