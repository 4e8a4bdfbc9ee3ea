"""Keypoints: places by symmetry and by a supervised fit, bumps and patches by their formulas."""

import pytest
import torch
from torch.nn import functional as F  # noqa: N812

from pyro_animacy import ScaledELBO
from pyro_animacy.data.episode_windows import EpisodeBatch
from pyro_animacy.keypoints import SPREAD, WIDTH, KeypointDecoder, KeypointEncoder
from pyro_animacy.models.world_model import Sight, WorldModel, WorldModelConfig, WorldModelGuide
from pyro_animacy.nets import StackConfig

K, N = 5, 3
SIZES = [(64, 64), (60, 80), (46, 47), (20, 27), (3, 5)]


def encoder(height=64, width=64, filters=4):
    torch.manual_seed(0)
    return KeypointEncoder(height, width, 3, K, filters).double()


def decoder(height=64, width=64, inputs=6):
    torch.manual_seed(0)
    return KeypointDecoder(inputs, height, width, 3, K, 2).double()


def disc(row, column, size=64, colour=(1.0, -2.0, 0.5)):
    """A soft disc in a picture that is 0 elsewhere."""
    y, x = torch.meshgrid(*2 * [torch.arange(size, dtype=torch.float64)], indexing="ij")
    cover = (3.5 - ((y - row) ** 2 + (x - column) ** 2).sqrt()).clamp(0, 1)
    return torch.tensor(colour, dtype=torch.float64)[:, None, None] * cover


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_shapes(height, width):
    see, draw = encoder(height, width), decoder(height, width)
    image = draw(torch.randn(2, N, 6, dtype=torch.float64))
    assert image.shape == (2, N, 3, height, width)
    assert see(image).shape == (2, N, see.features) == (2, N, 2 * K)
    assert see(image[0, 0]).shape == (2 * K,)
    assert draw(torch.zeros(6).double()).shape == (3, height, width)
    assert see(draw(torch.zeros(0, 6).double())).shape == (0, 2 * K)


def of_brightness(size):
    """An encoder of one map, of brightness, so steep that it is where a disc is."""
    see = encoder(size, size)
    with torch.no_grad():
        for layer in (see.patches, see.maps):
            layer.weight.zero_()
            layer.bias.zero_()
        see.patches.weight[0] = 1.0
        see.maps.weight[:, 0, 1, 1] = 100.0
    return see


@pytest.mark.parametrize("size", [64, 50, 45])
def test_a_cell_is_where_its_pixels_are(size):
    """Also of a picture that ends within a cell: its right and lower edges are still at 1."""
    see = of_brightness(size)
    for cell in (2, 5, 9):
        middle = 4 * cell + 1.5  # of pixels 4 cell to 4 cell + 3
        found = see(disc(middle, middle, size, (1.0, 1.0, 1.0))).detach() / SPREAD
        assert found == pytest.approx(2 * (4 * cell + 2) / size - 1, abs=1e-6)


def test_a_bump_is_in_the_middle_of_its_pixels():
    """The place (0, 0) is between the two middle pixels, (1, 1) the lower right corner."""
    see = of_brightness(64)
    for place in (4, 20, 31.5, 50):
        found = see(disc(place, 31.5, colour=(1.0, 1.0, 1.0))).detach() / SPREAD
        across, down = found[:K], found[K:]
        assert across == pytest.approx(0, abs=1e-6)
        assert down == pytest.approx(2 * (place + 0.5) / 64 - 1, abs=0.07)  # within half a cell


def test_places_move_with_the_picture():
    """By one cell: the same maps, each a cell further on."""
    see = encoder()
    here, there = see(disc(24, 20)), see(disc(28, 32))
    step = SPREAD * 2 / 16
    moved = there - here
    p = torch.softmax(see.maps(F.relu(see.patches(disc(24, 20)[None]))).flatten(2), -1)[0]
    share = 1 - 16**2 * p[:, 0]  # less what every empty cell has, such as the first: that stays
    torch.testing.assert_close(moved[:K], 3 * step * share, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(moved[K:], step * share, rtol=1e-9, atol=1e-9)


def test_the_start_knows_where_bodies_are():
    """Linear in random keypoints: places of two discs, by least squares on held-out pictures."""
    torch.manual_seed(1)
    see = KeypointEncoder(64, 64, 3, 16, 8).double()
    places = torch.rand(300, 4, dtype=torch.float64) * 48 + 8
    pictures = torch.stack([disc(*p[:2]) + disc(*p[2:], colour=(-2.0, 0.5, 1.0)) for p in places])
    with torch.no_grad():
        known = F.pad(see(pictures), (0, 1), value=1.0)
    weights = torch.linalg.lstsq(known[:200], places[:200]).solution
    left = places[200:] - known[200:] @ weights
    assert (left.var(0) / places.var(0)).max() < 0.2


def test_bumps_by_their_formula():
    draw, latent = decoder(60, 80), torch.randn(N, 6, dtype=torch.float64)
    across, down, log_s, g = draw.dense(latent).view(N, 4, K).unbind(1)
    found = draw.bumps(latent)
    assert found.shape == (N, K, 15, 20)
    for i, j in ((0, 0), (7, 3), (14, 19)):
        y, x = 2 * (i + 0.5) / 15 - 1, 2 * (j + 0.5) / 20 - 1
        square = ((x - across) ** 2 + (y - down) ** 2) / (WIDTH * log_s.exp()) ** 2
        torch.testing.assert_close(found[:, :, i, j], (1 + g) * torch.exp(-square / 2))


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_pixels_are_a_sub_pixel_convolution(height, width):
    """As torch's own pixel shuffle puts them in place, cut to the size."""
    draw, latent = decoder(height, width), torch.randn(N, 6, dtype=torch.float64)
    weight = draw.patches.weight[:, :, None, None]
    hidden = draw.cells(draw.bumps(latent)).relu()
    whole = F.pixel_shuffle(F.conv2d(hidden, weight, draw.patches.bias), 4)
    torch.testing.assert_close(draw(latent), whole[..., :height, :width])


def test_every_pixel_is_seen():
    """Also of a side that is no multiple of a cell."""
    see = encoder(46, 47)
    image = torch.rand(3, 46, 47, dtype=torch.float64, requires_grad=True)
    see(image).square().sum().backward()
    assert (image.grad.abs().sum(0) != 0).all()


def test_a_world_model_of_keypoints():
    """Every parameter is trained, and a frame that was not observed changes nothing.

    The pictures may be smaller than those that the convolutions take.
    """
    torch.manual_seed(0)
    net = StackConfig(hidden=8, layers=1)
    config = WorldModelConfig(
        memory_size=4, latent_size=3, keypoints=K, filters=2, prior=net, posterior=net, reward=net
    )
    model = WorldModel(config, Sight((3, 20, 27), actions=2, reward=True)).double()
    guide = WorldModelGuide(model).double()
    image = torch.rand(4, 2, 3, 20, 27, dtype=torch.float64)
    action, reward = torch.randn(4, 2, 2).double(), torch.randn(4, 2).double()
    seen = torch.ones(4, 2, dtype=torch.bool)
    seen[2, 1] = False
    found = []
    for there in (image, image.where(seen[..., None, None, None], 0.3)):
        torch.manual_seed(1)
        batch = EpisodeBatch(there, action, reward, None, seen)
        loss = ScaledELBO().differentiable_loss(model, guide, batch)
        parameters = [p for m in (model, guide) for p in m.parameters()]
        found.append((loss, torch.autograd.grad(loss, parameters)))
    assert torch.equal(found[0][0], found[1][0])
    for one, other in zip(found[0][1], found[1][1], strict=True):
        assert one.abs().max() > 0
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)
