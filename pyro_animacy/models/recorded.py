"""What a batch of windows shows of each step, teacher forced: of all bodies, or of each by itself.

Given the recorded states, a step of a model of the whole scene is one part; that of a set falls
into parts (..., P), one a body, each of which counts where it was seen, whoever else was.
"""

from typing import NamedTuple

from torch import Tensor

from pyro_animacy.data.windows import Batch


def spread(of_parts: Tensor, size: int) -> Tensor:
    """What is of each part (..., P), for each of ``size`` numbers, part after part (..., size)."""
    return of_parts.repeat_interleave(size // of_parts.shape[-1], -1)


def some_of(seen: Tensor, parts: int) -> Tensor:
    """Whether any coordinate of each part was seen: (..., D) as (..., parts)."""
    return seen.unflatten(-1, (parts, -1)).any(-1)


def known(observed: Tensor, history: int, parts: int) -> Tensor:
    """Whether the context that ends with each frame but the first ones is complete.

    Args:
        observed: Whether each coordinate was observed, (frames, ..., D).
        history: Frames in a context.
        parts: P.

    Returns:
        (frames - history + 1, ..., P).
    """
    there = observed.unflatten(-1, (parts, -1)).all(-1)
    return there.unfold(0, history, 1).all(-1)


class Recorded(NamedTuple):
    """The steps of a batch of ``history + T`` frames.

    Attributes:
        state: s~_{0..T-1}, (T, B, D); 0 where not observed.
        target: s~_{1..T}, likewise.
        actions: The ``history - 1`` displacements before each s~_t, newest first, (T, B, D) each.
        observed: Whether each coordinate of s~_{1..T} was observed, (T, B, D).
        known: Whether the context of each part was recorded in full, (T, B, P).
    """

    state: Tensor
    target: Tensor
    actions: list[Tensor]
    observed: Tensor
    known: Tensor

    @classmethod
    def of(cls, batch: Batch, history: int, parts: int) -> "Recorded":
        """Unpack a batch."""
        x, observed = batch
        k, T, moves = history, len(x) - history, x[1:] - x[:-1]
        before = [moves[i : i + T] for i in range(k - 2, -1, -1)]
        return cls(x[k - 1 : -1], x[k:], before, observed[k:], known(observed[:-1], k, parts))

    @property
    def seen(self) -> Tensor:
        """Whether each coordinate of s~_{t+1} was observed, after a complete context, (T, B, D)."""
        return self.observed & spread(self.known, self.observed.shape[-1])

    @property
    def followed(self) -> Tensor:
        """Whether a roll-out from the first context is to follow each coordinate, (T, B, D).

        As far as it was observed; but of a set, a body that was once away is not followed any more:
        in its place may be another.
        """
        D, parts = self.observed.shape[-1], self.known.shape[-1]
        if parts == 1:
            return self.observed
        there = self.observed.unflatten(-1, (parts, -1)).all(-1)
        return self.observed & spread(self.known[0] & there.cumprod(0).bool(), D)
