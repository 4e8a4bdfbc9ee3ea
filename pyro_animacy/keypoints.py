"""Image networks of small bodies: pixels to the places of keypoints, and places back to pixels.

    encoder  p_k = softmax over cells of f_k(image)    K maps, one cell to 4 x 4 pixels
             u_k = sum_ij p_k(i, j) x_ij               the expected place of each: 2 K features
    decoder  (u_k, log s_k / s, g_k) = W (latent) + b         place, width and height of each bump
                                                              (s / e^3 <= s_k <= s e^3)
             m_k(i, j) = (1 + g_k) exp(-|x_ij - u_k|^2 / (2 s_k^2))
             image = patches of 4 x 4 pixels, V ReLU(C * m)   C a convolution of 3 x 3 cells

The encoder is a spatial softmax (Levine et al. 2016, End-to-End Training of Deep Visuomotor
Policies, JMLR; Finn et al. 2016, Deep Spatial Autoencoders, ICRA), the decoder renders Gaussian
bumps (Jakab et al. 2018, Unsupervised Learning of Object Landmarks, NeurIPS; Minderer et al. 2019,
NeurIPS), and makes pixels of cells by a sub-pixel convolution (Shi et al. 2016, CVPR).

For a body of a few pixels this is what a pixel loss can learn: convolutions must first find out
that it is a place that matters, these begin with one. x_ij is the middle of a cell, the picture
being [-1, 1] x [-1, 1]. A side that is no multiple of 4 has cells for the next one, and what is
over is cut off at its end.
"""

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from pyro_animacy.images import he_start

CELL = 4  # pixels a side
WIDTH = 0.25  # s, of a bump at the start: wide enough that its slope is felt across a quarter
SPREAD = math.sqrt(3)  # 1 / standard deviation of a place anywhere in [-1, 1]


def _middles(height: int, width: int) -> Iterable[Tensor]:
    """Middles of the cells, down (rows,) and across (columns,), in [-1, 1]."""
    for pixels in (height, width):
        cells = math.ceil(pixels / CELL)
        edge = 2 * CELL * cells / pixels - 1
        step = (edge + 1) / cells
        yield torch.linspace(-1 + step / 2, edge - step / 2, cells)


class KeypointEncoder(nn.Module):
    """Images (..., channels, height, width) to the places of keypoints (..., F).

    Args:
        height: Rows of an image.
        width: Columns of an image.
        channels: 3 for colour.
        keypoints: K.
        filters: Half the channels of the hidden layer.

    Attributes:
        features: F = 2 K, the size of the output: all across, then all down, each in standard
            deviations of a place anywhere in the picture.
    """

    rows: Tensor
    columns: Tensor

    def __init__(
        self, height: int, width: int, channels: int, keypoints: int, filters: int
    ) -> None:
        super().__init__()
        n = 2 * filters
        self.patches = nn.Conv2d(channels, n, 2 * CELL, stride=CELL, padding=CELL // 2)
        self.maps = nn.Conv2d(n, keypoints, 3, padding=1)
        he_start(self.patches, channels * (2 * CELL) ** 2, gain=2)
        he_start(self.maps, n * 3**2, gain=2)
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        rows, columns = _middles(height, width)
        self.register_buffer("rows", rows, persistent=False)
        self.register_buffer("columns", columns, persistent=False)
        self.beyond = 0, -width % CELL, 0, -height % CELL
        self.features = 2 * keypoints

    def forward(self, image: Tensor) -> Tensor:
        """Return u_k, (..., 2 K)."""
        x = F.pad(image.reshape(-1, *image.shape[-3:]), self.beyond)
        f = self.maps(F.relu(self.patches(x), inplace=True))
        p = f.flatten(2).softmax(-1).view(f.shape)
        u = torch.cat([p.sum(2) @ self.columns, p.sum(3) @ self.rows], -1)
        return (SPREAD * u).view(*image.shape[:-3], self.features)


class KeypointDecoder(nn.Module):
    """A latent (..., inputs) to the mean image (..., channels, height, width).

    Args:
        inputs: Size of the latent.
        height: Rows of an image.
        width: Columns of an image.
        channels: 3 for colour.
        keypoints: K.
        filters: A quarter of the channels of the hidden layer.
    """

    rows: Tensor
    columns: Tensor

    def __init__(
        self, inputs: int, height: int, width: int, channels: int, keypoints: int, filters: int
    ) -> None:
        super().__init__()
        n = 4 * filters
        self.size, self.keypoints = (channels, height, width), keypoints
        self.dense = nn.Linear(inputs, 4 * keypoints)
        self.cells = nn.Conv2d(keypoints, n, 3, padding=1)
        self.patches = nn.Linear(n, channels * CELL**2)
        he_start(self.dense, inputs, gain=0.25)  # places of half a picture's standard deviation
        he_start(self.cells, keypoints * 3**2, gain=2)
        he_start(self.patches, n, gain=1)
        self.cells.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        rows, columns = _middles(height, width)
        self.register_buffer("rows", rows[:, None], persistent=False)
        self.register_buffer("columns", columns[:, None], persistent=False)

    def bumps(self, latent: Tensor) -> Tensor:
        """m_k (N, K, rows, columns) of latents (N, inputs); channels last in memory."""
        across, down, log_s, g = self.dense(latent).view(-1, 4, 1, self.keypoints).unbind(1)
        narrow = math.sqrt(0.5) / WIDTH * log_s.clamp(-3, 3).neg().exp()
        x = ((self.columns - across) * narrow).square().neg().exp() * (1 + g)  # (N, columns, K)
        y = ((self.rows - down) * narrow).square().neg().exp()  # (N, rows, K)
        return (y[:, :, None] * x[:, None]).movedim(-1, 1)

    def forward(self, latent: Tensor) -> Tensor:
        """Return the mean image (..., channels, height, width)."""
        channels, height, width = self.size
        bumps = self.bumps(latent.reshape(-1, latent.shape[-1]))
        hidden = F.relu(self.cells(bumps), inplace=True)
        x = self.patches(hidden.movedim(1, -1)).unflatten(-1, (channels, CELL, CELL))
        image = x.permute(0, 3, 1, 4, 2, 5).flatten(4, 5).flatten(2, 3)
        return image[..., :height, :width].reshape(*latent.shape[:-1], *self.size)
