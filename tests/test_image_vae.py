"""The image VAE beside plain PyTorch, and beside probabilistic PCA, whose evidence is known."""

import math
from types import SimpleNamespace

import pyro
import pytest
import torch
from pyro.infer import TraceMeanField_ELBO
from torch import nn
from torch.nn import functional as F  # noqa: N812

from pyro_animacy.data.episode_windows import EpisodeBatch
from pyro_animacy.errors import ConfigError, DataError
from pyro_animacy.infer.elbo import ScaledELBO
from pyro_animacy.models.image_vae import ImageVAE, ImageVAEConfig, ImageVAEGuide
from pyro_animacy.models.world_model import Sight
from pyro_animacy.nets import normal

DOUBLE = torch.float64


@pytest.fixture(autouse=True)
def _double():
    torch.set_default_dtype(DOUBLE)
    torch.manual_seed(0)
    yield
    torch.set_default_dtype(torch.float32)


def pair(shape=(3, 46, 46), **options):
    model = ImageVAE(ImageVAEConfig(**{"latent_size": 4} | options), Sight(shape))
    return model, ImageVAEGuide(model)


def batch_of(image, observed=None):
    """Images (T, B, 3, H, W) as a batch; all observed by default."""
    T, B = image.shape[:2]
    observed = torch.ones(T, B, dtype=torch.bool) if observed is None else observed
    return EpisodeBatch(image, torch.zeros(T, B, 0), None, None, observed)


def loss_and_gradients(elbo, model, guide, batch, seed=1):
    parameters = [*model.parameters(), *guide.parameters()]
    torch.manual_seed(seed)
    loss = elbo.differentiable_loss(model, guide, batch)
    return loss.detach(), torch.autograd.grad(loss, parameters)


@pytest.mark.parametrize(("image_scale", "count"), [(0.1, 4_348_547), (None, 4_348_548)])
def test_parameters_of_world_models(image_scale, count):
    model, guide = pair((3, 64, 64), latent_size=32, image_scale=image_scale)
    assert sum(p.numel() for m in (model, guide) for p in m.parameters()) == count


@pytest.mark.parametrize(("height", "width"), [(64, 64), (60, 80)])
def test_shapes(height, width):
    model, guide = pair((3, height, width), latent_size=32)
    image = torch.rand(2, 3, 3, height, width)
    sites = guide(batch_of(image))
    assert sites["latent"].shape == (2, 3, 32)
    assert sites["reconstruction"].shape == image.shape
    assert guide.reconstruct(image).shape == image.shape
    generated = model.generate(5)
    assert generated.shape == (5, 3, height, width)
    assert ((generated >= 0) & (generated <= 1)).all()
    assert guide.log_evidence(image, 2).shape == (2, 3)


def by_hand(model, guide, image, noise):
    """Minus the ELBO in plain PyTorch, the networks as functions of their weights."""
    h = image.flatten(0, 1)
    for layer in (guide.encoder.layers[i] for i in (0, 2, 4, 6)):
        h = F.conv2d(h, layer.weight, layer.bias, stride=2).relu()
    h = h.flatten(1)
    mu = h @ guide.mean.weight.T + guide.mean.bias
    log_variance = h @ guide.log_variance.weight.T + guide.log_variance.bias
    z = mu + noise.flatten(0, 1) * (log_variance / 2).exp()
    x = (z @ model.decoder.dense.weight.T + model.decoder.dense.bias)[..., None, None]
    for i in (0, 2, 4, 6):
        layer = model.decoder.layers[i]
        x = F.conv_transpose2d(x.relu() if i else x, layer.weight, layer.bias, stride=2)
    x = x.sigmoid()[..., 9:55, 9:55]
    sigma = model.log_scale.exp()
    if model.config.image_scale is None:
        sigma = sigma + 1 / 255 / math.sqrt(12)
    squares = ((image.flatten(0, 1) - x) ** 2).sum() / (2 * sigma**2)
    constant = image.numel() * (sigma.log() + math.log(2 * math.pi) / 2)
    kl = 0.5 * (mu**2 + log_variance.exp() - 1 - log_variance).sum()
    return squares + constant + kl


@pytest.mark.parametrize("image_scale", [math.sqrt(0.5), 0.05, None])
def test_loss_and_every_gradient_by_hand(image_scale):
    model, guide = pair(image_scale=image_scale)
    image = torch.rand(2, 2, 3, 46, 46)
    loss, gradients = loss_and_gradients(ScaledELBO(), model, guide, batch_of(image))
    torch.manual_seed(1)
    expected = by_hand(model, guide, image, torch.randn(2, 2, 4))
    torch.testing.assert_close(loss, expected, rtol=1e-10, atol=1e-8)
    parameters = [*model.parameters(), *guide.parameters()]
    for found, wanted in zip(gradients, torch.autograd.grad(expected, parameters), strict=True):
        assert wanted.abs().max() > 0
        torch.testing.assert_close(found, wanted, rtol=1e-8, atol=1e-8)
    pyros, _ = loss_and_gradients(TraceMeanField_ELBO(), model, guide, batch_of(image))
    torch.testing.assert_close(loss, pyros, rtol=1e-12, atol=1e-8)


def test_the_default_is_the_sum_of_squares():
    """-log N(x; m, 1/2) = |x - m|^2 + a constant: World Models' reconstruction loss."""
    model, _ = pair()
    z, x = torch.randn(4), torch.rand(2, 3, 46, 46)
    fits = -model.image(z).log_prob(x)
    squares = ((x - model.decoder(z)) ** 2).sum((1, 2, 3))
    torch.testing.assert_close(fits[0] - fits[1], squares[0] - squares[1])


@pytest.mark.parametrize(("head", "log_scale"), [(-99, -7), (-13, -6.5), (5, 2.5), (99, 3)])
def test_the_scale_of_the_posterior_is_bounded(head, log_scale):
    _, guide = pair()
    with torch.no_grad():
        guide.log_variance.weight.zero_()
        guide.log_variance.bias.fill_(head)
    scale = guide.encode(torch.rand(2, 3, 46, 46)).base_dist.scale
    torch.testing.assert_close(scale.log(), torch.full((2, 4), float(log_scale)))


def test_padding_changes_neither_loss_nor_gradient():
    model, guide = pair(image_scale=None)
    image = torch.rand(2, 2, 3, 46, 46)
    alone = loss_and_gradients(ScaledELBO(), model, guide, batch_of(image))
    padded = torch.cat([image, torch.full_like(image, 1e3)])  # the same noise comes first
    observed = torch.tensor([[True] * 2] * 2 + [[False] * 2] * 2)
    beside = loss_and_gradients(ScaledELBO(), model, guide, batch_of(padded, observed))
    torch.testing.assert_close(alone[0], beside[0], rtol=1e-12, atol=1e-10)
    for one, other in zip(alone[1], beside[1], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)
    unseen = batch_of(image, torch.zeros(2, 2, dtype=torch.bool))
    loss, gradients = loss_and_gradients(ScaledELBO(), model, guide, unseen)
    assert loss == 0
    assert not any(gradient.any() for gradient in gradients)


def test_frames_are_independent():
    """However a batch is cut into time and trajectories, the loss is the same."""
    model, guide = pair()
    image = torch.rand(2, 3, 3, 46, 46)
    losses = [
        loss_and_gradients(ScaledELBO(), model, guide, batch_of(x))[0]
        for x in (image, image.reshape(6, 1, 3, 46, 46), image.reshape(1, 6, 3, 46, 46))
    ]
    torch.testing.assert_close(losses[0], losses[1], rtol=1e-12, atol=1e-9)
    torch.testing.assert_close(losses[0], losses[2], rtol=1e-12, atol=1e-9)


def test_generation_never_calls_the_encoder():
    model, guide = pair()

    def refuse(*_):
        raise AssertionError("the encoder was called")

    for network in (guide.encoder, guide.mean, guide.log_variance):
        network.register_forward_pre_hook(refuse)
    torch.manual_seed(5)
    generated = model.generate(3)
    torch.manual_seed(5)
    torch.testing.assert_close(generated, model.decoder(torch.randn(3, 4)))
    with pytest.raises(AssertionError, match="encoder"):
        guide.reconstruct(generated)


def test_reconstruction_samples_the_posterior():
    model, guide = pair()
    image = torch.rand(2, 3, 46, 46)
    q = guide.encode(image).base_dist
    torch.manual_seed(7)
    found = guide.reconstruct(image)
    torch.manual_seed(7)
    torch.testing.assert_close(found, model.decoder(q.loc + q.scale * torch.randn(2, 4)))


# ----------------------------------------------------------------------- probabilistic PCA


class Linear(nn.Module):
    """A decoder W z + b, with orthogonal columns, so that p(z | x) is a diagonal Gaussian."""

    def __init__(self, lengths=(3.0, 2.0, 1.0, 0.5), side=46):
        super().__init__()
        columns = torch.linalg.qr(torch.randn(side * side, len(lengths)))[0]
        self.weight = columns * torch.tensor(lengths)
        self.bias = torch.full((side * side,), 0.4)
        self.side = side

    def forward(self, z):
        return (z @ self.weight.T + self.bias).unflatten(-1, (1, self.side, self.side))


@pytest.fixture
def pca():
    """Model and guide with a linear decoder, its exact posterior, images of it, log p(x)."""
    sigma = 0.2
    model, guide = pair((1, 46, 46), image_scale=sigma)
    model.decoder = Linear()
    W, b = model.decoder.weight, model.decoder.bias
    image = model.image(torch.randn(6, 4)).sample()
    D, x = len(W), image.flatten(1) - b
    M = W.T @ W + sigma**2 * torch.eye(4)  # Tipping & Bishop 1999, equation 7
    inside = (x @ W) @ torch.linalg.inv(M)
    distance = (x.square().sum(1) - (inside * (x @ W)).sum(1)) / sigma**2
    log_det = torch.logdet(M) + (D - 4) * math.log(sigma**2)
    evidence = -0.5 * (D * math.log(2 * math.pi) + log_det + distance)
    variance = sigma**2 / M.diagonal()

    def encode(image, shift=0.0, stretch=1.0):
        mean = (image.flatten(-3) - b) @ W / M.diagonal()
        return normal(mean + shift, stretch * variance.sqrt().expand_as(mean))

    guide.encode = encode
    return SimpleNamespace(model=model, guide=guide, image=image, evidence=evidence,
                           encode=encode, variance=variance)  # fmt: skip


def test_evidence_of_probabilistic_pca(pca):
    """With the exact posterior every importance weight is p(x), so one draw says it all."""
    for draws in (1, 5):
        found = pca.guide.log_evidence(pca.image, draws)
        torch.testing.assert_close(found, pca.evidence, rtol=1e-11, atol=1e-7)


def test_evidence_is_elbo_plus_divergence(pca):
    """log p(x) = ELBO + KL(q(z | x) || p(z | x)), for a q that is off, over 4000 draws."""
    pca.guide.encode = lambda image: pca.encode(image, shift=0.02, stretch=1.5)
    batch = batch_of(pca.image[:2].expand(1000, -1, -1, -1, -1))
    elbo = -sum(ScaledELBO(scale=1 / 4000).loss(pca.model, pca.guide, batch) for _ in range(4))
    kl = 0.5 * (1.5**2 - 1 - math.log(1.5**2) + 0.02**2 / pca.variance).sum()
    # log p(x, z) of one draw: 1.5^2 chi^2_4 / 2, of standard deviation 3.2; of the mean, 0.07
    assert elbo == pytest.approx((pca.evidence[:2] - kl).sum().item(), abs=0.25)


@pytest.mark.parametrize("draws", [1, 32])
def test_importance_bound_closes_from_below_at_its_rate(pca, draws):
    """log p(x) - IWAE_K is KL(q || p) at K = 1 and Var(w) / 2 K for large K (Domke & Sheldon 2018).

    The mean weight m over p(x) is 1 on average, so m - 1 - log m has the gap as its mean, and less
    noise than log m.
    """
    stretch = 1.3
    pca.guide.encode = lambda image: pca.encode(image, stretch=stretch)
    found = pca.guide.log_evidence(pca.image[:1].expand(1000, -1, -1, -1), draws)
    log_m = found - pca.evidence[0]
    gap = (log_m.exp() - 1 - log_m).mean().item()
    kl = 4 * 0.5 * (stretch**2 - 1 - math.log(stretch**2))
    variance = (stretch**2 / math.sqrt(2 * stretch**2 - 1)) ** 4 - 1  # of p / q under q
    assert gap == pytest.approx(kl if draws == 1 else variance / 2 / draws, rel=0.15)


def test_active_dimensions(pca):
    """Means spread evenly over [-s, s] have variance s^2 / 3 (n + 1) / (n - 1): 0.0134, 0.0034."""
    pca.guide.encode = lambda image: normal(
        torch.stack([torch.linspace(-s, s, len(image)) for s in (1.0, 0.2, 0.1, 0.0)], 1), 0.1
    )
    found = pca.guide.active_dimensions(torch.zeros(200, 1, 46, 46))
    assert found.tolist() == [True, True, False, False]


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"latent_size": 0}, "latent_size is 0"),
        ({"image_scale": 0.0}, "image_scale is 0.0"),
        ({"shape": (3, 40, 46)}, "height of the images is 40"),
        ({"shape": (7,)}, "these have vectors"),
    ],
)
def test_what_cannot_be_used(options, named):
    with pytest.raises(ConfigError, match=named):
        pair(**options)


def test_images_of_another_size_are_named():
    _, guide = pair()
    for shape in ((3, 60, 80), (7,)):
        with pytest.raises(DataError, match=r"shape \(.*takes images of .*\(3, 46, 46\)"):
            guide(batch_of(torch.rand(1, 2, *shape)))


def test_pyro_sees_every_parameter():
    model, guide = pair(image_scale=None)
    with pyro.poutine.trace(param_only=True) as seen:
        guide(batch_of(torch.rand(1, 1, 3, 46, 46)))
    values = {id(site["value"]) for site in seen.trace.nodes.values() if site["type"] == "param"}
    assert values == {id(p) for m in (model, guide) for p in m.parameters()}
