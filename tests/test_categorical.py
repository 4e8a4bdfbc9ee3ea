"""Categorical latents against enumeration of every joint configuration, and their definition."""

import itertools
import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from torch.distributions import kl_divergence

from pyro_animacy import ConfigError, ScaledELBO
from pyro_animacy.models.categorical import categorical

G, K = 3, 4


@pytest.fixture(autouse=True)
def _float64():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def logits(*batch, seed=0, spread=1.5):
    generator = torch.Generator().manual_seed(seed)
    return spread * torch.randn(*batch, G, K, generator=generator)


def configurations():
    """All K^G joint values, (K^G, G, K)."""
    classes = torch.tensor(list(itertools.product(range(K), repeat=G)))
    return torch.nn.functional.one_hot(classes, K).to(torch.get_default_dtype())


def probabilities(x, unimix=0.0):
    """By the definition: (1 - u) softmax + u / K."""
    return (1 - unimix) * x.exp() / x.exp().sum(-1, keepdim=True) + unimix / K


@pytest.mark.parametrize("unimix", [0.0, 0.01, 0.5])
def test_density_of_every_configuration(unimix):
    """log p(z) = sum_g log p_g(z_g), and the K^G of them sum to one."""
    x, every = logits(5), configurations()
    d = categorical(x, unimix)
    assert (d.batch_shape, d.event_shape) == ((5,), (G, K))
    joint = d.log_prob(every[:, None])
    expected = (every[:, None] * probabilities(x, unimix).log()).sum((-1, -2))
    torch.testing.assert_close(joint, expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(joint.exp().sum(0), torch.ones(5), rtol=1e-12, atol=0)


@pytest.mark.parametrize("unimix", [0.0, 0.01])
def test_kl_is_that_of_the_enumeration(unimix):
    """Value and gradients of sum_z q(z) (log q(z) - log p(z)) over all configurations."""
    a, b = (logits(5, seed=s).requires_grad_() for s in (1, 2))
    q, p = categorical(a, unimix), categorical(b, unimix)
    every = configurations()[:, None]
    log_q, log_p = ((every * probabilities(x, unimix).log()).sum((-1, -2)) for x in (a, b))
    brute = (log_q.exp() * (log_q - log_p)).sum(0)
    kl = kl_divergence(q, p)
    assert kl.shape == (5,)
    torch.testing.assert_close(kl, brute, rtol=1e-12, atol=1e-13)
    for ours, expected in zip(
        torch.autograd.grad(kl.sum(), (a, b)), torch.autograd.grad(brute.sum(), (a, b)), strict=True
    ):
        torch.testing.assert_close(ours, expected, rtol=1e-10, atol=1e-13)


def test_kl_to_itself_is_zero():
    q = categorical(logits(5))
    assert (kl_divergence(q, q) == 0).all()


@pytest.mark.parametrize("unimix", [0.0, 0.3])
def test_a_draw_is_one_hot_and_its_gradient_that_of_the_probabilities(unimix):
    """For any f, d f(z) / d logits is the gradient of f at the draw through p(logits)."""
    x = logits(7).requires_grad_()
    torch.manual_seed(0)
    z = categorical(x, unimix).rsample()
    assert ((z == 0) | (z == 1)).all()
    assert (z.sum(-1) == 1).all()
    c = torch.randn(7, G, K)

    def f(z):
        return (z * c + (z * c).sum((-1, -2), keepdim=True) ** 3 / 10).sum()

    value = z.detach().requires_grad_()
    at_draw = torch.autograd.grad(f(value), value)[0]
    expected = torch.autograd.grad((probabilities(x, unimix) * at_draw).sum(), x)[0]
    torch.testing.assert_close(torch.autograd.grad(f(z), x)[0], expected, rtol=1e-11, atol=1e-13)


def test_frequencies_of_draws():
    """Every joint configuration is drawn at its probability, within 5 standard errors."""
    n, every = 200_000, configurations()
    d = categorical(logits(spread=0.7), 0.1)
    torch.manual_seed(0)
    z = d.rsample((n,))
    place = K ** torch.arange(G - 1, -1, -1)  # configurations run through the last group first
    index = (z.argmax(-1) * place).sum(-1)
    frequency = torch.bincount(index, minlength=len(every)) / n
    p = d.log_prob(every).exp()
    error = (frequency - p).abs() / (p * (1 - p) / n).sqrt()
    assert error.max() < 5
    assert error.mean() < 1.2  # sqrt(2 / pi) = 0.8 for standard normal errors


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_uniform_share_bounds_the_kl(dtype):
    """No class has less than u / K, at any logits: KL <= G log(K / u), with finite gradients."""
    u = 0.01
    one = torch.nn.functional.one_hot(torch.arange(G) % K, K).to(dtype)
    a, b = (1e4 * one).requires_grad_(), (1e4 * one.roll(1, -1)).requires_grad_()
    q, p = categorical(a, u), categorical(b, u)
    assert p.base_dist.probs.min().item() == pytest.approx(u / K, rel=1e-5)
    kl = kl_divergence(q, p)
    assert G * math.log(K / u) * 0.9 < kl.item() < G * math.log(K / u)
    assert all(g.isfinite().all() for g in torch.autograd.grad(kl, (a, b)))
    # without it, one class of the prior has no probability where the posterior has all of it
    assert kl_divergence(categorical(a), categorical(b)).item() == math.inf


def test_under_the_elbo_in_one_call_a_term():
    """Steps of (B,) and event (G, K); the KL by enumeration, the draw's gradient to the logits."""
    T, B = 3, 2
    a, b = (logits(T, B, seed=s).requires_grad_() for s in (3, 4))
    c = torch.randn(T, B, G, K)

    class Guide(poutine.guide.GuideMessenger):
        def get_posterior(self, name, prior):
            return categorical(a[int(name.rpartition("_")[2])])

    draws = []

    def model():
        for t in range(T):
            with pyro.plate(f"trajectory_{t}", B), poutine.scale(scale=0.5**t):
                z = pyro.sample(f"latent_{t}", categorical(b[t]))
                draws.append(z)
                pyro.sample(f"x_{t}", dist.Normal((z * c[t]).sum((-1, -2)), 1.0), obs=torch.ones(B))

    elbo = ScaledELBO(kl_weight=0.7)
    loss = elbo.differentiable_loss(model, Guide(model))
    every = configurations()[:, None, None]
    log_q, log_p = ((every * probabilities(x).log()).sum((-1, -2)) for x in (a, b))
    weight = 0.5 ** torch.arange(T)[:, None]
    kl = 0.7 * (weight * (log_q.exp() * (log_q - log_p)).sum(0)).sum()
    torch.testing.assert_close(elbo.terms["latent"], kl.detach(), rtol=1e-12, atol=0)

    z = torch.stack(draws).detach() + probabilities(a) - probabilities(a).detach()
    e = 1 - (z * c).sum((-1, -2))
    fit = (weight * (e**2 / 2 + math.log(2 * math.pi) / 2)).sum()
    torch.testing.assert_close(loss, kl + fit, rtol=1e-12, atol=0)
    for ours, expected in zip(
        torch.autograd.grad(loss, (a, b)), torch.autograd.grad(kl + fit, (a, b)), strict=True
    ):
        torch.testing.assert_close(ours, expected, rtol=1e-10, atol=1e-13)


def test_what_cannot_be_used_is_named():
    for unimix in (-0.1, 1.0):
        with pytest.raises(ConfigError, match="unimix"):
            categorical(logits(), unimix)
    with pytest.raises(ConfigError, match="groups, classes"):
        categorical(torch.zeros(K))
