"""Replay: whole episodes of an agent on disk, and windows of them as batches to train on.

    folder/  000000.npz   o_0 -a_0-> o_1 -a_1-> o_2 ... o_{L-1}         one episode a file, in the
             000001.npz   o_0 -a_0-> o_1 ...                            schema of `data.episodes`
             .000002.npz.x1y2     what a kill left of an episode being written: not listed,
                                  replaced when episode 2 is written again

An episode is written to a temporary file and renamed, so that a kill at any moment leaves whole
episodes and no gap. An episode of L frames has W = max(L - T, 0) + 1 windows of T frames; one
shorter than T has a single one, padded. Of all windows of all episodes each is as likely:

    P(episode n) = W_n / sum_m W_m,    P(first frame s | n) = 1 / W_n,  s = 0 ... W_n - 1

Images of b bits are PlaNet's (Hafner et al. 2019, Learning Latent Dynamics for Planning from
Pixels, appendix A), but for the 1/2 that the models of this package subtract themselves:

    x' = (floor(x / 2^(8 - b)) + u) / 2^b,    u ~ U(0, 1),    x in 0 ... 255

The noise makes a density of pixels one of the coarse values: without it, a density could grow
without bound about 2^b points.
"""

from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from pyro_animacy.data.episode_windows import EpisodeBatch, aligned, rows, tensors_of
from pyro_animacy.data.episodes import DAMAGED, DIMS, check_episodes, read_episodes, save_episodes
from pyro_animacy.errors import ConfigError, DataError, RunError, how_many, require
from pyro_animacy.infer.checkpoint import write_atomically


class Replay:
    """Episodes of an agent in a folder; what is there already is taken up.

    Only one process may add to a folder. Others see the episodes that were there when they opened
    it.

    Args:
        folder: Where the files are; made when the first episode is added.
        fps: Frames per second of all episodes.
        memory: Bytes of episodes that are kept between batches. The least recently used are let go
            and read again when they are asked for; batches are the same.

    Raises:
        ConfigError: If ``memory`` is negative or ``fps`` not above 0.
        RunError: If a file is missing before others, cannot be read, or is of another rate.
    """

    def __init__(self, folder: str | Path, *, fps: float, memory: int = 2 * 1024**3) -> None:
        require(
            "",
            {"fps": fps, "memory": memory},
            ("fps", fps > 0, "positive"),
            ("memory", memory >= 0, "0 bytes or more"),
        )
        self.folder, self.fps, self.memory = Path(folder), float(fps), memory
        self._kind: dict[str, tuple[int, ...]] | None = None  # known once an episode was seen
        self._held: OrderedDict[int, dict[str, Tensor]] = OrderedDict()
        names = (path.stem for path in self.folder.glob("*.npz"))
        numbers = sorted(int(name) for name in names if name.isdecimal())
        for n, found in enumerate(numbers):
            if n != found:
                raise RunError(
                    f"{self._path(n)}: is missing, and there are later episodes; put it back from "
                    "a copy, or start the run anew in another folder"
                )
        self._lengths = [self._length(n) for n in range(len(numbers))]

    def __len__(self) -> int:
        return len(self._lengths)

    @property
    def frames(self) -> int:
        """Frames of all episodes."""
        return sum(self._lengths)

    @property
    def held(self) -> int:
        """Bytes of episodes in memory."""
        return sum(map(_size, self._held.values()))

    def add(self, episode: xr.Dataset) -> int:
        """Write an episode; when this returns, it is on the disk.

        Args:
            episode: One trajectory in the schema of `data.episodes`; padding is cut off.

        Returns:
            Its number.

        Raises:
            DataError: If it is not one episode, or not of the kind of those before it.
            RunError: If it cannot be written; the replay is as it was.
        """
        n = len(self)
        episode = self._suited(episode)
        path = self._path(n)
        self._clean(n)
        write_atomically(path, lambda to: save_episodes(episode, to, form="npz"))
        self._lengths.append(episode.sizes["time"])
        self._kind = _kind(episode)
        return n

    def read(self, n: int) -> xr.Dataset:
        """Episode ``n``, from the disk.

        Raises:
            RunError: If there is none, or its file is damaged.
        """
        if not 0 <= n < len(self):
            raise RunError(
                f"{self.folder}: has {how_many(len(self), 'episode')}, and no number {n}"
            )
        with _whole(self._path(n)):
            return read_episodes(self._path(n))

    def episodes(self) -> Iterator[xr.Dataset]:
        """Every episode in turn, from the disk."""
        return map(self.read, range(len(self)))

    def dataset(self, first: int | None = None) -> xr.Dataset:
        """Episodes as one Dataset, padded to the longest, as a fit and its criticism take it.

        Args:
            first: Only so many, the first; all by default.

        Raises:
            RunError: If there are none, or a file is damaged.
        """
        self._some()
        with _whole(self.folder):
            return read_episodes([self._path(n) for n in range(len(self))[:first]])

    def truncate(self, n: int) -> None:
        """Forget the episodes from ``n`` on: their files are deleted.

        A run that goes on from a checkpoint collects them again.

        Raises:
            RunError: If there are fewer than ``n``, or a file cannot be deleted.
        """
        if not 0 <= n <= len(self):
            raise RunError(
                f"{self.folder}: has {how_many(len(self), 'episode')}, and {n} are to be kept; put "
                "the files that are missing back from a copy, or start the run anew in another "
                "folder"
            )
        try:
            while len(self) > n:  # the last first, so that a kill leaves no gap
                last = len(self) - 1
                self._path(last).unlink()
                self._held.pop(last, None)
                self._lengths.pop()
                self._clean(last + 1)
            self._clean(n)
        except OSError as error:
            raise RunError(
                f"{self.folder}: an episode cannot be deleted ({error}); make the folder writable"
            ) from error

    def sample(
        self,
        batch_size: int,
        frames: int,
        generator: torch.Generator,
        *,
        bits: int = 8,
    ) -> EpisodeBatch:
        """Draw windows, with replacement; the same of the same generator and episodes.

        Args:
            batch_size: Windows B.
            frames: Frames T of each.
            generator: Where chance comes from, on the CPU: windows, then noise of images.
            bits: Bits of an image's values, see `quantised`.

        Returns:
            Tensors (T, B, ...), as `EpisodeWindows` has them.

        Raises:
            ConfigError: If a value cannot be used.
            RunError: If there are no episodes, or a file is damaged.
        """
        episode, start = self._draw(batch_size, frames, generator)
        frame = start + torch.arange(frames)[:, None]
        length = torch.tensor(self._lengths)[episode]
        here, before = rows(frame, length)
        windows: list[dict[str, Tensor]] = [{}] * batch_size
        # What is in memory first, before reading others takes its place.
        for n in sorted(set(episode.tolist()), key=lambda n: n not in self._held):
            arrays = self._arrays(n)
            for i in (episode == n).nonzero()[:, 0].tolist():
                windows[i] = {
                    name: array[(before if name == "action" else here)[:, i]]
                    for name, array in arrays.items()
                }
        read = {name: torch.stack([w[name] for w in windows], 1) for name in windows[0]}
        if read["observation"].dtype == torch.uint8:
            read["observation"] = quantised(read["observation"], bits, generator).movedim(-1, 2)
        return aligned(read, frame, length)

    def _draw(
        self, batch_size: int, frames: int, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """Episode (B,) and first frame (B,) of windows."""
        require(
            "",
            {"batch_size": batch_size, "frames": frames},
            ("batch_size", batch_size >= 1, "at least 1"),
            ("frames", frames >= 1, "at least 1"),
        )
        self._some()
        count = (torch.tensor(self._lengths) - frames).clamp(min=0) + 1
        after = count.cumsum(0)  # windows of the episodes so far
        which = torch.randint(int(after[-1]), (batch_size,), generator=generator)
        episode = torch.searchsorted(after, which, right=True)
        return episode, which - (after - count)[episode]

    def _arrays(self, n: int) -> dict[str, Tensor]:
        """The tensors (L, ...) of episode ``n``, from memory or the disk."""
        if n in self._held:
            self._held.move_to_end(n)
            return self._held[n]
        arrays = {name: x[0] for name, x in tensors_of(self.read(n)).items()}
        room, held = self.memory - _size(arrays), self.held
        while self._held and held > room:
            held -= _size(self._held.popitem(last=False)[1])
        if room >= 0:
            self._held[n] = arrays
        return arrays

    def _suited(self, episode: xr.Dataset) -> xr.Dataset:
        """The episode without padding; DataError if it does not belong."""
        check_episodes(episode)
        where = f"{self.folder}: the new episode"
        if episode.sizes["trajectory"] != 1:
            raise DataError(
                f"{where} is {episode.sizes['trajectory']} trajectories; add one by one"
            )
        if float(episode.attrs["fps"]) != self.fps:
            raise DataError(
                f"{where} has {episode.attrs['fps']} frames a second, the replay {self.fps:g}"
            )
        unknown = {*episode.data_vars, *episode.attrs} - {*DIMS, "fps", "source"}
        if unknown:
            raise DataError(
                f"{where} has {', '.join(sorted(map(str, unknown)))}, which is not kept in a file "
                "of episodes; leave it out"
            )
        episode = episode.isel(time=slice(int(episode["length"][0])))
        if self._kind is None and len(self):
            self._kind = _kind(self.read(0))
        has = _kind(episode)
        if len(self) and has != self._kind:
            raise DataError(
                f"{where} has {has}, those before it {self._kind}; it is of another environment, "
                "or pictures of another size: choose another folder"
            )
        return episode

    def _some(self) -> None:
        """RunError where there are no episodes."""
        if not len(self):
            raise RunError(f"{self.folder}: has no episodes yet; add some first")

    def _path(self, n: int) -> Path:
        return self.folder / f"{n:06}.npz"

    def _clean(self, n: int) -> None:
        """Delete what kills have left of episode ``n``, and of no other: one may be in writing."""
        for path in self.folder.glob(f".{self._path(n).name}.*"):
            path.unlink(missing_ok=True)

    def _length(self, n: int) -> int:
        """Frames of an episode on the disk, without reading what it shows; checks its rate."""
        path = self._path(n)
        with (
            _whole(path),
            path.open("rb") as file,
            np.load(file, allow_pickle=False) as stored,
        ):
            length, fps = int(stored["length"].item()), float(stored["fps"])
        if fps != self.fps:
            raise RunError(
                f"{path}: has {fps:g} frames a second, and this run {self.fps:g}; it is of another "
                "environment: choose another folder"
            )
        return length


def quantised(image: Tensor, bits: int, generator: torch.Generator | None = None) -> Tensor:
    """Images of ``bits`` bits with noise below the last, as a model is shown them.

    Args:
        image: (...) uint8, or floating-point in [0, 1], steps of 1/255.
        bits: From 1 to 8. 8 is image / 255 without noise; PlaNet has 5.
        generator: Where the noise comes from; torch's own by default.

    Returns:
        (...) float32: in [0, 1) with noise, in [0, 1] without.

    Raises:
        ConfigError: If ``bits`` cannot be used.
    """
    if bits not in range(1, 9):
        raise ConfigError(
            f"bits of an image is {bits}; it must be from 1 to 8: 5 as PlaNet, or 8 for all"
        )
    if image.dtype != torch.uint8:
        image = (image * 255).round().to(torch.uint8)
    if bits == 8:
        return image.float().div_(255)
    # Below 2^bits float32 has steps of 2^(bits - 24): noise nearer to 1 would round to the next
    # value, and above the last to 1.
    noise = torch.empty(image.shape, device=image.device)
    noise.uniform_(0, 1 - 2.0 ** (bits - 24), generator=generator)
    return noise.add_(image >> (8 - bits)).mul_(2.0**-bits)


@contextmanager
def _whole(path: Path) -> Iterator[None]:
    """Raise RunError where the file is not."""
    try:
        yield
    except (*DAMAGED, DataError) as error:
        what = str(error) if isinstance(error, DataError) else f"{path}: cannot be read ({error})"
        raise RunError(
            f"{what}; put it back from a copy, or start the run anew in another folder"
        ) from error


def _kind(episode: xr.Dataset) -> dict[str, tuple[int, ...]]:
    """Variables of an episode and the shape of one frame's."""
    return {str(name): episode[name].shape[2:] for name in sorted(map(str, episode.data_vars))}


def _size(arrays: dict[str, Tensor]) -> int:
    """Bytes."""
    return sum(x.nbytes for x in arrays.values())
