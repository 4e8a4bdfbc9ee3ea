"""The image VAE, World Models' V: every frame on its own, as a code of 32 numbers.

    z ~ N(0, I)                            prior
    x ~ N(decoder(z), sigma^2 I)           the image, pixels in [0, 1]
    q(z | x) = N(mu(x), diag sigma_q(x)^2)       guide: two heads on one encoder

    z_t ----> x_t         over all frames t of all episodes, independently

    log p(x) = ELBO(x) + KL( q(z | x) || p(z | x) )
    ELBO(x)  = E_q log p(x | z) - KL( q(z | x) || p(z) )

Ha & Schmidhuber, Recurrent World Models Facilitate Policy Evolution, NeurIPS 2018, section 2.1 and
appendix A.1. Their reconstruction loss, the sum of squares over pixels, is -log p(x | z) with
sigma^2 = 1/2, less a constant. With that, 64 x 64 colour and 32 latent dimensions, model and guide
have the 4,348,547 parameters of theirs. Their code keeps the KL from falling under 0.5 nats per
dimension, 16 in all: that is `ScaledELBO`'s free nats, and no longer a bound.
"""

import math
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import pyro
import torch
from pyro.distributions import Independent
from torch import Tensor, nn

from pyro_animacy.data.episode_windows import EpisodeBatch
from pyro_animacy.errors import ConfigError, DataError, require
from pyro_animacy.images import ImageDecoder, ImageEncoder, PixelNormal
from pyro_animacy.models.program import MessengerGuide, declare_parameters
from pyro_animacy.models.world_model import Sight
from pyro_animacy.nets import normal

RESOLUTION = 1 / 255  # of a recorded pixel; no learned sigma falls below its standard deviation
ACTIVE = 0.01  # least variance of E[z | x] of an active dimension (Burda et al. 2016, section 5.2)


@dataclass(frozen=True)
class ImageVAEConfig:
    """Options of `ImageVAE`.

    Args:
        latent_size: Size Z of the code z.
        image_scale: sigma, standard deviation of a pixel, whose range is 1; null learns one number
            for all pixels. The square root of 1/2 is World Models' sum of squares.
    """

    latent_size: int = 32
    image_scale: float | None = math.sqrt(0.5)

    def __post_init__(self) -> None:
        """Check the values.

        Raises:
            ConfigError: If a value cannot be used; the message names it.
        """
        require(
            "model.",
            vars(self),
            ("latent_size", self.latent_size >= 1, "at least 1"),
            ("image_scale", self.image_scale is None or self.image_scale > 0, "positive, or null"),
        )


class Evidence(NamedTuple):
    """What the guide may look at: x (T, B, channels, H, W), and whether it was seen (T, B)."""

    image: Tensor
    seen: Tensor


class ImageVAE(nn.Module):
    """The model p(z, x) of every frame, a Pyro program: ``model(batch)`` declares it on episodes.

    Args:
        config: The options.
        sight: What there is to see: images.

    Attributes:
        latent_size: Numbers in the code z.
        given: First frames of a window that are conditioned on: none.

    Raises:
        ConfigError: If there are vectors in place of images, or images too small for the networks.
    """

    given: ClassVar[int] = 0
    log_scale: Tensor

    def __init__(self, config: ImageVAEConfig, sight: Sight) -> None:
        super().__init__()
        if not sight.image:
            raise ConfigError(
                "image_vae needs episodes with images, and these have vectors; take the model "
                "world_model"
            )
        self.config, self.sight, self.latent_size = config, sight, config.latent_size
        channels, height, width = sight.shape
        self.decoder = ImageDecoder(self.latent_size, height, width, channels, squash=True)
        if config.image_scale is None:
            self.log_scale = nn.Parameter(torch.tensor(0.1).log())
        else:
            scale = torch.tensor(config.image_scale).log()
            self.register_buffer("log_scale", scale, persistent=False)

    def forward(self, batch: EpisodeBatch, *, score: bool = False) -> None:
        """Declare the joint density of codes and images.

        Args:
            batch: Windows of episodes with images (T, B, channels, H, W).
            score: Makes no difference: this is the true bound in any case.

        Raises:
            DataError: If the batch holds no images of the model's size.
        """
        declare_parameters(self)
        image, seen = batch.observation, batch.observed
        T, B = seen.shape
        if image.shape[2:] != self.sight.shape:
            raise DataError(
                f"observations of a frame have shape {tuple(image.shape[2:])}; this model takes "
                f"images of channels, height, width {self.sight.shape}"
            )
        with pyro.plate("time", T, dim=-2), pyro.plate("trajectory", B, dim=-1):
            z = pyro.sample("latent", self.prior(T, B), infer={"evidence": Evidence(image, seen)})
            pyro.sample("reconstruction", self.image(z).mask(seen), obs=image)

    def prior(self, *batch: int) -> Independent:
        """p(z) = N(0, I) of ``batch`` and event shape (Z,)."""
        return normal(self.log_scale.new_zeros(*batch, self.latent_size), 1.0)

    def image(self, latent: Tensor) -> Independent:
        """p(x | z) of (..., channels, H, W), given z (..., Z)."""
        return PixelNormal(self.decoder(latent), self.scale)

    @property
    def scale(self) -> Tensor:
        """The standard deviation sigma of a pixel."""
        learned = self.config.image_scale is None
        return self.log_scale.exp() + (RESOLUTION / math.sqrt(12) if learned else 0.0)

    @torch.no_grad()
    def generate(self, count: int) -> Tensor:
        """Return the mean images of ``count`` draws of z from the prior, (count, channels, H, W).

        It takes the decoder only. The noise of sigma around the mean, which nobody wants to see,
        is left out.
        """
        return self.decoder(self.prior(count).sample())


class ImageVAEGuide(MessengerGuide):
    """q(z | x) = N(mu(x), diag sigma_q(x)^2), from two heads, mean and log variance.

    It is not a residual around the prior, which is the same for every image; a frame that was not
    seen keeps the prior.

    Args:
        model: The model; its parameters are shared, not registered again.
    """

    def __init__(self, model: ImageVAE) -> None:
        super().__init__(model)
        channels, height, width = model.sight.shape
        self.encoder = ImageEncoder(height, width, channels)
        self.mean = nn.Linear(self.encoder.features, model.latent_size)
        self.log_variance = nn.Linear(self.encoder.features, model.latent_size)

    def posterior(self, prior: Independent, evidence: Evidence) -> Independent:
        """Return q(z | x), and the prior N(0, I) where the image was not seen."""
        q, seen = self.encode(evidence.image).base_dist, evidence.seen[..., None]
        # by `where`: nothing of an unseen image comes through, not even a gradient
        return normal(torch.where(seen, q.loc, 0.0), torch.where(seen, q.scale, 1.0))

    def encode(self, image: Tensor) -> Independent:
        """q(z | x) of (..., Z), given images x (..., channels, H, W); e^-7 <= sigma_q <= e^3."""
        h = self.encoder(image)
        return normal(self.mean(h), (0.5 * self.log_variance(h).clamp(-14, 6)).exp())

    @torch.no_grad()
    def reconstruct(self, image: Tensor) -> Tensor:
        """Encode, sample z from q(z | x), decode: the mean image of that z, shaped as ``image``."""
        model: ImageVAE = self.model  # type: ignore[assignment]
        return model.decoder(self.encode(image).rsample())

    @torch.no_grad()
    def log_evidence(self, image: Tensor, draws: int) -> Tensor:
        """Lower bound on log p(x) of each image, by importance sampling.

            IWAE_K = E log (1/K) sum_k  p(x | z_k) p(z_k) / q(z_k | x),   z_k ~ q

        (Burda, Grosse & Salakhutdinov 2016, equation 8): the ELBO for K = 1, nondecreasing in K,
        exact in the limit. One draw is decoded at a time.

        Args:
            image: (..., channels, H, W).
            draws: K.

        Returns:
            Shape (...), nats of all pixels together.
        """
        model: ImageVAE = self.model  # type: ignore[assignment]
        q, p = self.encode(image), model.prior()
        log_weight = []
        for _ in range(draws):
            z = q.rsample()
            log_ratio = p.log_prob(z) - q.log_prob(z)
            log_weight.append(log_ratio + model.image(z).log_prob(image))
        return torch.stack(log_weight).logsumexp(0) - math.log(draws)

    @torch.no_grad()
    def active_dimensions(self, image: Tensor) -> Tensor:
        """Which dimensions of z are in use: Var_x E[z | x] > 0.01 (Burda et al. 2016).

        Args:
            image: (N, channels, H, W) images of different scenes, at least 2.

        Returns:
            (Z,) bool.
        """
        return self.encode(image).base_dist.loc.var(0) > ACTIVE
