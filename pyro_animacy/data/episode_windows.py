"""Windows of episodes as batches of tensors; the schema and the times are `data.episodes`'."""

from typing import Literal, NamedTuple

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from pyro_animacy.data.episodes import KINDS, check_episodes
from pyro_animacy.errors import DataError


class EpisodeBatch(NamedTuple):
    """A batch of windows of episodes, time first; 0 where not observed.

    Attributes:
        observation: (T, B, channel, height, width) images in [0, 1], or (T, B, feature).
        action: (T, B, A) the action before frame t; zeros at an episode's first frame. A is 0
            where no actions were recorded.
        reward: (T, B) received on arriving at frame t, or None.
        continuation: (T, B) 0 where the episode ended by itself at frame t, else 1; or None.
        observed: (T, B) false in the padding.
    """

    observation: Tensor
    action: Tensor
    reward: Tensor | None
    continuation: Tensor | None
    observed: Tensor

    def to(self, device: torch.device, dtype: torch.dtype | None = None) -> "EpisodeBatch":
        """Move to a device, and change the type of all but ``observed`` if one is given."""
        x, action, reward, continuation, observed = self
        return EpisodeBatch(
            x.to(device, dtype),
            action.to(device, dtype),
            None if reward is None else reward.to(device, dtype),
            None if continuation is None else continuation.to(device, dtype),
            observed.to(device),
        )


class EpisodeWindows:
    """Every window of ``frames`` consecutive frames of the episodes, by index, never stored.

    An episode shorter than the window gives one, padded. Images stay uint8 until a batch is made.

    Args:
        dataset: Episodes.
        frames: Frames T in a window.
        modality: ``image`` or ``observation``; by default images where there are any.

    Raises:
        DataError: If the episodes are not in the schema, or lack the modality.
    """

    def __init__(
        self,
        dataset: xr.Dataset,
        frames: int,
        modality: Literal["image", "observation"] | None = None,
    ) -> None:
        check_episodes(dataset)
        self.arrays = tensors_of(dataset, modality)
        self.observation = self.arrays["observation"]
        if frames < 1:
            raise DataError(f"windows of {frames} frames; expected at least 1")
        self.frames = frames
        self.length = torch.from_numpy(dataset["length"].to_numpy().astype(np.int64))
        count = (self.length - frames).clamp(min=0) + 1  # windows of each episode
        self.index = torch.cat([
            torch.stack([torch.full((int(n),), i), torch.arange(int(n))], 1)
            for i, n in enumerate(count)
        ])  # fmt: skip

    def __len__(self) -> int:
        return len(self.index)

    def batch(self, which: Tensor) -> EpisodeBatch:
        """Return the windows ``which`` (B,)."""
        trajectory, start = self.index[which].unbind(1)
        frame = start + torch.arange(self.frames)[:, None]
        length = self.length[trajectory]
        here, before = rows(frame, length)
        read = {
            name: x[trajectory, before if name == "action" else here]
            for name, x in self.arrays.items()
        }
        return aligned(read, frame, length)

    def draw(self, size: int, generator: torch.Generator) -> EpisodeBatch:
        """Return ``size`` windows drawn at random, with replacement."""
        return self.batch(torch.randint(len(self), (size,), generator=generator))


def tensors_of(
    dataset: xr.Dataset, modality: Literal["image", "observation"] | None = None
) -> dict[str, Tensor]:
    """What windows are cut from: the ``observation``, and what there is of the other variables.

    Args:
        dataset: Episodes.
        modality: What is observed, as for `EpisodeWindows`.

    Returns:
        Tensors (trajectory, time, ...) that share the Dataset's memory.

    Raises:
        DataError: If the episodes lack the modality.
    """
    seen = modality or ("image" if "image" in dataset else "observation")
    if seen not in dataset:
        raise DataError(f"{dataset.attrs.get('source') or 'episodes'}: no `{seen}`")
    tensors = {"observation": _tensor(dataset, seen)}
    for name in ("action", "reward", "terminal"):
        if name in dataset:
            tensors[name] = _tensor(dataset, name)
    return tensors


def rows(frame: Tensor, length: Tensor) -> tuple[Tensor, Tensor]:
    """The rows of episodes of ``length`` (B,) that a batch's frames (T, B) are read from.

    Padding and what is before the first frame have a row too, the last and the first: `aligned`
    puts zeros there.

    Returns:
        (T, B) of the frame itself, and (T, B) of the action before it.
    """
    return frame.minimum(length - 1), (frame - 1).clamp(min=0).minimum(length - 1)


def aligned(read: dict[str, Tensor], frame: Tensor, length: Tensor) -> EpisodeBatch:
    """The batch of what was read at `rows`.

    Args:
        read: Of each variable, entries (T, B, ...). Images are uint8 with channels last, or
            floating-point as the batch has them.
        frame: (T, B) frames of the episodes.
        length: (B,) frames that each episode has.
    """
    observed = frame < length
    x = read["observation"]
    if x.dtype == torch.uint8:
        x = x.movedim(-1, 2).float().div_(255)
    action = read.get("action", x.new_zeros(*frame.shape, 0))
    reward, terminal = read.get("reward"), read.get("terminal")
    return EpisodeBatch(
        _where(observed, x),
        _where(observed & (frame > 0), action),  # before the first frame nothing was done
        None if reward is None else _where(observed, reward),
        None if terminal is None else 1 - (terminal & observed).float(),
        observed,
    )


def _tensor(dataset: xr.Dataset, name: str) -> Tensor:
    array = dataset[name].to_numpy()
    return torch.from_numpy(array if KINDS[name] in "ub" else array.astype(np.float32, copy=False))


def _where(kept: Tensor, x: Tensor) -> Tensor:
    """``x`` where ``kept`` (T, B), else 0: padding may hold anything, NaN too."""
    if kept.all():  # most batches of images have no padding, and are large
        return x
    return torch.where(kept.reshape(*kept.shape, *[1] * (x.dim() - 2)), x, 0)
