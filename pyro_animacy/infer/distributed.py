"""Several processes that fit one model: what they tell each other.

Every process holds the whole model and takes a share of each batch. The loss is that of the joined
batch, a sum over its windows divided by the steps observed in all of them, so with S_r the share of
process r

    gradient = sum_r  d/d(parameters)  loss(S_r),    loss(S_r) = sum of S_r / steps of all shares.

Having added up these gradients, every process takes the same step, and the parameters stay equal.
What one process can do for all (score, save, show progress) the first does alone.

Why a sum in the loop and not `torch.nn.parallel.DistributedDataParallel`: that takes the mean over
processes as if all had observed as many steps, and wraps the model. The sum is one call that can be
read where it happens, it is the gradient of one process to rounding, and costs a single process
nothing. What DistributedDataParallel would add is to send while the backward pass still runs.
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from pyro_animacy.errors import RunError

# A process that ends closes its connections, which the others notice at once. These are for one
# that hangs, or whose machine is gone.
WORKING = timedelta(minutes=10)  # all do the same work, and none should be so late
WAITING = timedelta(hours=12)  # the first scores, which may take long


class LostProcess(RunError):  # noqa: N818
    """Another process of the fit ended, or cannot be reached any more."""


@dataclass(frozen=True)
class Processes:
    """The processes that fit together, as one of them sees them; by default it is alone.

    Attributes:
        rank: Which of them this is.
        size: How many there are.
        working: Their `torch.distributed` group for what all do at the same time.
        waiting: Their group for waiting until the first has done what it does alone.
    """

    rank: int = 0
    size: int = 1
    working: Any = None
    waiting: Any = None

    @property
    def first(self) -> bool:
        """Whether this is the one that scores, saves and shows progress."""
        return self.rank == 0

    def device(self, name: str) -> str:
        """The device of this process: its own GPU of the machine where ``cuda`` is asked for."""
        own = self.size > 1 and name == "cuda"
        return f"cuda:{os.environ.get('LOCAL_RANK', self.rank)}" if own else name

    def share(self, of: Tensor) -> Tensor:
        """This process's part of what all hold, along the first dimension: every size-th."""
        return of if self.size == 1 else of[self.rank :: self.size]

    def total(self, number: int) -> int:
        """The sum of a number over the processes.

        Raises:
            LostProcess: If another process is gone.
        """
        if self.size == 1:
            return number
        total = torch.tensor(number)
        with _reaching():
            dist.all_reduce(total, group=self.working)
        return int(total)

    def add_up(self, modules: nn.Module, terms: Sequence[Tensor]) -> None:
        """Replace the gradients of ``modules`` and every term by the sums over the processes.

        A parameter without a gradient counts as 0: the loss of one share may not depend on it.

        Raises:
            LostProcess: If another process is gone.
        """
        if self.size == 1:
            return
        parameters = [p for p in modules.parameters() if p.requires_grad]
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
        tensors = [*gradients, *terms]
        joined = torch.cat([tensor.flatten() for tensor in tensors])
        with _reaching():
            dist.all_reduce(joined, group=self.working)
        sums = joined.split([tensor.numel() for tensor in tensors])
        for tensor, total in zip(tensors, sums, strict=True):
            tensor.copy_(total.view_as(tensor))
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient

    def from_first(self, number: int) -> int:
        """The first process's number; the others wait until it comes.

        Raises:
            LostProcess: If another process is gone.
        """
        if self.size == 1:
            return number
        told = torch.tensor(number)
        with _reaching():
            dist.broadcast(told, src=0, group=self.waiting)
        return int(told)


ALONE = Processes()


def join(device: str) -> Processes:
    """Meet the other processes that ``torchrun`` started; without it, this one is alone.

    A process group that the caller has made is used as it is. One made here is kept until the
    process ends, for the next fit.

    Args:
        device: Where to train: on CPU they talk by gloo, on GPUs by nccl.

    Raises:
        RunError: If they do not find each other.
    """
    met = dist.is_available() and dist.is_initialized()
    if not met and os.environ.get("WORLD_SIZE", "1") == "1":
        return ALONE
    backend = "cpu:gloo,cuda:nccl" if device.startswith("cuda") else "gloo"
    try:
        if not met:
            dist.init_process_group(backend, timeout=WORKING)
        return Processes(
            dist.get_rank(), dist.get_world_size(),
            working=dist.new_group(backend=backend, timeout=WORKING),
            waiting=dist.new_group(backend="gloo", timeout=WAITING),
        )  # fmt: skip
    except (RuntimeError, ValueError) as error:
        first = str(error).splitlines()[0]
        raise RunError(
            f"WORLD_SIZE is {os.environ.get('WORLD_SIZE')}, and the processes do not find each "
            f"other ({first}); start all of them by torchrun, or unset WORLD_SIZE to fit with one"
        ) from None


@contextmanager
def _reaching() -> Iterator[None]:
    """Say of what goes wrong between processes that one of them is gone."""
    try:
        yield
    except RuntimeError as error:
        raise LostProcess(
            "another process of this fit ended or cannot be reached; its own message, if it left "
            "one, says why"
        ) from error
