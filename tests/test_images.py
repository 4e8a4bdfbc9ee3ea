"""The convolutional networks: sizes by their arithmetic, and the crop by hand."""

import pytest
import torch
from pyro.distributions import Normal
from torch import nn

from pyro_animacy.errors import ConfigError
from pyro_animacy.images import ImageDecoder, ImageEncoder, PixelNormal

SIZES = [
    (64, 64, 1024, (1, 1)),
    (60, 80, 768, (1, 2)),
    (46, 47, 256, (1, 1)),
    (65, 81, 1536, (2, 3)),
]


@pytest.mark.parametrize(("height", "width", "features", "grid"), SIZES)
def test_shapes(height, width, features, grid):
    encoder, decoder = ImageEncoder(height, width), ImageDecoder(5, height, width)
    assert encoder.features == features
    assert decoder.grid == grid
    image = decoder(torch.randn(4, 2, 5))
    assert image.shape == (4, 2, 3, height, width)
    assert encoder(image).shape == (4, 2, features)
    assert encoder(image[0, 0]).shape == (features,)


def test_parameters_of_world_models():
    """Counted by hand: sum of kernel^2 x in x out + out."""
    encoder, decoder = ImageEncoder(), ImageDecoder(32)
    convolutions = [(4, 3, 32), (4, 32, 64), (4, 64, 128), (4, 128, 256)]
    back = [(5, 1024, 128), (5, 128, 64), (6, 64, 32), (6, 32, 3)]

    def count(sizes):
        return sum(k * k * i * o + o for k, i, o in sizes)

    assert sum(p.numel() for p in encoder.parameters()) == count(convolutions) == 690_144
    assert sum(p.numel() for p in decoder.parameters()) == count(back) + 32 * 1024 + 1024


def test_sixty_by_eighty_is_the_middle_of_sixty_four_by_eighty():
    torch.manual_seed(0)
    whole, cut = ImageDecoder(5, 64, 80, squash=True), ImageDecoder(5, 60, 80, squash=True)
    cut.load_state_dict(whole.state_dict())
    z = torch.randn(3, 5)
    assert torch.equal(cut(z), whole(z)[..., 2:62, :])


def test_every_pixel_is_seen_and_reached():
    """64 x 64: no row of the input is lost by the strides, and each pixel depends on z."""
    torch.manual_seed(0)
    image = torch.rand(1, 3, 62, 62, dtype=torch.float64, requires_grad=True)
    encoder = ImageEncoder(62, 62).double()
    for layer in encoder.layers:
        if isinstance(layer, nn.Conv2d):
            nn.init.constant_(layer.weight, 0.01)  # nothing cancels, no unit is off
    encoder(image).sum().backward()
    assert (image.grad != 0).all()
    decoder = ImageDecoder(4).double()
    assert (decoder(torch.zeros(4).double()) != decoder(torch.ones(4).double())).all()


def test_squash_is_a_sigmoid():
    torch.manual_seed(0)
    plain, squashed = ImageDecoder(4), ImageDecoder(4, squash=True)
    squashed.load_state_dict(plain.state_dict())
    z = torch.randn(2, 4)
    torch.testing.assert_close(squashed(z), plain(z).sigmoid())


@pytest.mark.parametrize("network", [ImageEncoder, lambda h, w: ImageDecoder(3, h, w)])
@pytest.mark.parametrize(("height", "width", "named"), [(45, 64, "height"), (64, 8, "width")])
def test_small_images_are_refused(network, height, width, named):
    with pytest.raises(ConfigError, match=f"{named} of the images is"):
        network(height, width)


def test_signals_keep_their_size_at_the_start():
    """A ReLU halves the square, weights double it; edges, which fewer cells reach, lower it."""
    torch.manual_seed(0)
    decoder = ImageDecoder(32)
    h = decoder.dense(torch.randn(200, 32)).reshape(-1, 1024, 1, 1)
    assert h.square().mean().item() == pytest.approx(1, abs=0.1)
    for layer in decoder.layers[:6]:
        h = layer(h)
        if isinstance(layer, nn.ReLU):
            assert 0.35 < h.square().mean().item() < 1.2


@pytest.mark.parametrize("draws", [(), (4,)], ids=["as_many", "draws_of_each"])
def test_pixels_have_the_density_of_normals(draws):
    """Value, and gradient of mean and sigma, with draws of a mean in front of the images too."""
    generator = torch.Generator().manual_seed(0)

    def random(*shape):
        return torch.rand(*shape, generator=generator, dtype=torch.float64)

    image, found = random(2, 3, 5, 4), []
    start = random(*draws, 2, 3, 5, 4), random(()) + 0.1
    for build in (PixelNormal, lambda mean, scale: Normal(mean, scale).to_event(3)):
        parameters = [p.clone().requires_grad_() for p in start]
        density = build(*parameters).log_prob(image)
        assert density.shape == (*draws, 2)
        weighted = (density * density.new_tensor([1.0, -2.0])).sum()
        found.append((density, torch.autograd.grad(weighted, parameters)))
    torch.testing.assert_close(*found, rtol=1e-12, atol=1e-12)
    once = PixelNormal(start[0].flatten(0, -4)[0], start[1])
    torch.testing.assert_close(
        once.expand((7, 2)).log_prob(image), once.log_prob(image).expand(7, 2)
    )
