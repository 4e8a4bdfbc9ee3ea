"""Convolutional networks of images: pixels to features, and a latent back to pixels.

World Models' (Ha & Schmidhuber 2018, appendix A.1), which PlaNet and Dreamer took over:

    encoder  3 x 64 x 64 -> 32 x 31 x 31 -> 64 x 14 x 14 -> 128 x 6 x 6 -> 256 x 2 x 2 = 1024
             kernels of 4, stride 2, ReLU after each
    decoder  latent -> dense 1024 x 1 x 1 -> 128 x 5 x 5 -> 64 x 13 x 13 -> 32 x 30 x 30
             -> 3 x 64 x 64, kernels of 5, 5, 6, 6, stride 2, ReLU between

These are of 32 filters; a network of fewer has all channels in proportion, but those of colour.

The convolutions keep channels last in memory, which takes a third less time on a CPU.

From a grid of g cells in place of the one, the decoder gives 16 g + 48 pixels. For another size it
takes the smallest grid that reaches it, and what is over is cut off evenly on both sides: 60 x 80
is 64 x 80, from a grid of 1 x 2, less two rows at the top and two at the bottom.

Weights begin so that signals keep their size from layer to layer (He et al. 2015, Delving Deep into
Rectifiers, ICCV, equation 10). torch's own start counts a transposed convolution's outputs for its
inputs, and a decoder begins with nearly the same picture for every latent.
"""

import math
from typing import Any

import torch
from pyro.distributions import Independent, Normal
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from pyro_animacy.errors import ConfigError

LEAST = 46  # pixels a side: below, the encoder's last convolution has nothing left


def check_size(height: int, width: int) -> None:
    """Check that images of this size go through encoder and decoder.

    Raises:
        ConfigError: If a side is shorter than 46 pixels.
    """
    for name, value in (("height", height), ("width", width)):
        if value < LEAST:
            raise ConfigError(
                f"{name} of the images is {value}; it must be at least {LEAST} pixels, since four "
                "convolutions of stride 2 leave nothing of less: 64 x 64 is usual"
            )


class ImageEncoder(nn.Module):
    """Four convolutions: images (..., channels, height, width) to features (..., F).

    Args:
        height: Rows of an image.
        width: Columns of an image.
        channels: 3 for colour.
        filters: n, channels of the first convolution; each later one has twice as many.

    Attributes:
        features: F, the size of the output: 32 n for 64 x 64.

    Raises:
        ConfigError: If the images are too small.
    """

    def __init__(
        self, height: int = 64, width: int = 64, channels: int = 3, filters: int = 32
    ) -> None:
        super().__init__()
        check_size(height, width)
        n = filters
        self.layers = nn.Sequential(
            nn.Conv2d(channels, n, 4, stride=2), nn.ReLU(inplace=True),
            nn.Conv2d(n, 2 * n, 4, stride=2), nn.ReLU(inplace=True),
            nn.Conv2d(2 * n, 4 * n, 4, stride=2), nn.ReLU(inplace=True),
            nn.Conv2d(4 * n, 8 * n, 4, stride=2), nn.ReLU(inplace=True),
        )  # fmt: skip
        for layer in self.layers:
            if isinstance(layer, nn.Conv2d):
                he_start(layer, layer.in_channels * math.prod(layer.kernel_size), gain=2)
        self.layers.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        for _ in range(4):
            height, width = (height - 4) // 2 + 1, (width - 4) // 2 + 1
        self.features = 8 * n * height * width

    def forward(self, image: Tensor) -> Tensor:
        """Return the features (..., F)."""
        batch = image.shape[:-3]
        return self.layers(image.reshape(-1, *image.shape[-3:])).reshape(*batch, self.features)


class ImageDecoder(nn.Module):
    """A dense layer and four transposed convolutions: (..., inputs) to (..., channels, H, W).

    Args:
        inputs: Size of the latent.
        height: Rows H of an image.
        width: Columns W of an image.
        channels: 3 for colour.
        squash: End in a sigmoid, for the mean of pixels in [0, 1]; otherwise the output is any
            number, as PlaNet has it for pixels in [-1/2, 1/2].
        filters: n, channels before the last convolution; each earlier one has twice as many.

    Raises:
        ConfigError: If the images are too small for the encoder.
    """

    def __init__(
        self,
        inputs: int,
        height: int = 64,
        width: int = 64,
        channels: int = 3,
        *,
        squash: bool = False,
        filters: int = 32,
    ) -> None:
        super().__init__()
        check_size(height, width)
        self.size = height, width
        self.grid = tuple(math.ceil(max(side - 48, 1) / 16) for side in self.size)
        n = filters
        self.cells = 32 * n
        self.dense = nn.Linear(inputs, self.cells * math.prod(self.grid))
        self.layers = nn.Sequential(
            nn.ConvTranspose2d(self.cells, 4 * n, 5, stride=2), nn.ReLU(inplace=True),
            nn.ConvTranspose2d(4 * n, 2 * n, 5, stride=2), nn.ReLU(inplace=True),
            nn.ConvTranspose2d(2 * n, n, 6, stride=2), nn.ReLU(inplace=True),
            nn.ConvTranspose2d(n, channels, 6, stride=2),
            nn.Sigmoid() if squash else nn.Identity(),
        )  # fmt: skip
        he_start(self.dense, inputs, gain=1)
        sides: tuple[float, ...] = self.grid
        for layer in self.layers:
            if isinstance(layer, nn.ConvTranspose2d):
                reach = [k / 2 for k in layer.kernel_size]  # cells a side that reach one output
                cells = math.prod(map(min, sides, reach))
                he_start(
                    layer, layer.in_channels * cells, gain=1 if layer is self.layers[-2] else 2
                )
                sides = (math.inf, math.inf)  # from here on there are more cells than reach
        self.layers.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def forward(self, latent: Tensor) -> Tensor:
        """Return the mean image (..., channels, H, W)."""
        batch, (height, width) = latent.shape[:-1], self.size
        cells = self.dense(latent).reshape(-1, self.cells, *self.grid)
        image = self.layers(cells)
        top, left = (image.shape[-2] - height) // 2, (image.shape[-1] - width) // 2
        image = image[..., top : top + height, left : left + width]
        return image.reshape(*batch, *image.shape[1:])


class PixelNormal(Independent):
    """N(mean, sigma^2 I) of images, with one sigma for all N pixels and channels.

        log p(x) = -|x - mean|^2 / (2 sigma^2) - N (log sigma + log(2 pi) / 2)

    The same density as a Normal's, where each pixel would have its own quotient and logarithm: of
    small networks these take longer than the networks.

    Args:
        mean: (..., channels, height, width).
        scale: sigma, a number or a tensor without dimensions.
    """

    def __init__(self, mean: Tensor, scale: Tensor | float) -> None:
        self.scale = torch.as_tensor(scale, dtype=mean.dtype, device=mean.device)
        super().__init__(Normal(mean, self.scale), 3)

    def expand(self, batch_shape: Any, _instance: Any = None) -> "PixelNormal":
        """The same for more images at once."""
        mean = self.base_dist.loc.expand(*batch_shape, *self.event_shape)
        return PixelNormal(mean, self.scale)

    def log_prob(self, value: Tensor) -> Tensor:
        """Log density of images (..., channels, height, width): of the batch shape."""
        if self._validate_args:
            self._validate_sample(value)
        mean, x = torch.broadcast_tensors(self.base_dist.loc, value)
        square = F.mse_loss(x, mean, reduction="none").flatten(-3).sum(-1)
        at_mean = math.prod(self.event_shape) * (self.scale.log() + math.log(2 * math.pi) / 2)
        return -0.5 * square / self.scale**2 - at_mean


def he_start(layer: nn.Linear | nn.Conv2d | nn.ConvTranspose2d, inputs: float, gain: float) -> None:
    """Weights of variance ``gain / inputs``: 2 before a ReLU, which halves the square. No bias."""
    nn.init.normal_(layer.weight, 0.0, math.sqrt(gain / inputs))
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
