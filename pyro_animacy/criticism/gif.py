"""Frames as a GIF: one palette for all, so that colours hold still, and a delay that viewers keep.

Frames are arrays (height, width, 3) of red, green and blue, 0 to 255.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
from matplotlib.colors import to_rgb
from PIL import Image

Pixels = npt.NDArray[np.uint8]


def rgb(colour: str) -> Pixels:
    """A colour (3,) from 0 to 255."""
    return np.round(255 * np.array(to_rgb(colour))).astype(np.uint8)


def delay(seconds: float) -> int:
    """Milliseconds of a frame: viewers count hundredths of a second, and slow those below two."""
    return max(20, 10 * round(100 * seconds))


def save_gif(
    to: Path | BinaryIO,
    frames: Iterable[Pixels],
    some: Sequence[Pixels],
    milliseconds: int,
    *,
    colours: int = 256,
    kept: Sequence[str] = (),
) -> None:
    """Write a looping GIF.

    Args:
        to: File to write.
        frames: All frames, each taken once.
        some: Frames that show all colours, for the palette.
        milliseconds: Each frame is shown, of `delay`.
        colours: Of the palette, at most 256; fewer make a smaller file.
        kept: Colours that it must have, besides white, black and the 32 most common.
    """
    palette = _palette(some, colours, kept)
    images = (
        Image.fromarray(frame).quantize(palette=palette, dither=Image.Dither.NONE)
        for frame in frames
    )
    next(images).save(
        to, format="GIF", save_all=True, append_images=images, duration=milliseconds, loop=0,
        optimize=False,
    )  # fmt: skip


def _palette(frames: Sequence[Pixels], colours: int, kept: Sequence[str]) -> Image.Image:
    """A picture with the colours that suit some frames: what is plain stays as it is."""
    sheet = Image.fromarray(np.concatenate(frames))
    counted: Any = sheet.getcolors(2**24)
    common = [colour for _, colour in sorted(counted, reverse=True)[:32]]
    others = np.array(sheet.quantize(256, Image.Quantize.FASTOCTREE).getpalette(), int)
    wanted = [*map(rgb, ("white", "black", *kept)), *common, *others.reshape(-1, 3)]
    chosen = np.array(wanted[:1], int)
    for colour in wanted:
        # PIL looks a colour up by 6 bits a channel: it would take a neighbour for the wanted one.
        if abs(chosen - colour).max(-1).min() >= 8:
            chosen = np.concatenate([chosen, [colour]])
    palette = Image.new("P", (1, 1))
    palette.putpalette(chosen[:colours].astype(np.uint8).ravel().tolist())
    return palette
