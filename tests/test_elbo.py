"""ScaledELBO beside Pyro's TraceMeanField_ELBO on programs and guides of other kinds."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import TraceMeanField_ELBO
from pyro.infer.autoguide import AutoMultivariateNormal, AutoNormal, AutoNormalMessenger

from pyro_animacy import ConfigError, ScaledELBO

DATA = torch.tensor([0.3, -1.2, 0.8], dtype=torch.float64)


@pytest.fixture(autouse=True)
def _fresh():
    pyro.clear_param_store()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)
    pyro.clear_param_store()


def chain(scale=1.0):
    """A chain of scalars, z_0, z_1, z_2, each seen once; sites of batch shape ()."""
    z = torch.zeros(())
    for t, x in enumerate(DATA):
        with poutine.scale(scale=scale):
            z = pyro.sample(f"z_{t}", dist.Normal(0.9 * z, 0.5))
            pyro.sample(f"x_{t}", dist.Normal(z, 0.3), obs=x)


def positive():
    """A latent without an analytic KL against its normal posterior, and a plate."""
    rate = pyro.sample("rate", dist.Gamma(2.0, 3.0))
    with pyro.plate("data", 3):
        y = pyro.sample("y", dist.Normal(0.0, rate))
        pyro.sample("x", dist.Normal(y, 1.0), obs=DATA)


def named_alike():
    """Latent ``x_0`` and ``x_1`` beside an observed ``x``."""
    a = pyro.sample("x_0", dist.Normal(0.0, 1.0))
    b = pyro.sample("x_1", dist.Normal(a, 1.0))
    pyro.sample("x", dist.Normal(a + b, 1.0), obs=DATA[0])


def scaled_by_tensors():
    with pyro.plate("data", 3):
        for t in range(2):
            with poutine.scale(scale=torch.tensor([1.0, 2.0, 4.0]) * (t + 1)):
                pyro.sample(f"z_{t}", dist.Normal(DATA, 1.0))


@pytest.mark.parametrize("guide_type", [AutoNormal, AutoMultivariateNormal, AutoNormalMessenger])
@pytest.mark.parametrize("model", [chain, positive, named_alike, scaled_by_tensors])
def test_equals_pyro_at_beta_one(model, guide_type):
    if model is positive and guide_type is AutoNormalMessenger:
        pytest.skip("Pyro's own ELBO does not take this pair")
    guide = guide_type(model)
    guide()
    values = []
    for elbo in (ScaledELBO(), TraceMeanField_ELBO()):
        for parameter in guide.parameters():
            parameter.grad = None
        torch.manual_seed(0)
        loss = elbo.differentiable_loss(model, guide)
        loss.backward()
        grads = [p.grad.clone() for p in guide.parameters() if p.grad is not None]
        values.append((loss.detach(), grads))
    torch.testing.assert_close(values[0][0], values[1][0], rtol=1e-12, atol=1e-12)
    for a, b in zip(values[0][1], values[1][1], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


class Steady(poutine.guide.GuideMessenger):
    """Each z_t shifted from its prior by a given amount, with the prior's scale."""

    def get_posterior(self, name, prior):
        return dist.Normal(prior.loc + 0.25, prior.scale)


@pytest.mark.parametrize("beta", [0.0, 0.1, 1.0, 3.0])
@pytest.mark.parametrize("gamma", [0.5, 1.0])
def test_kl_weight_and_discount_by_hand(beta, gamma):
    """KL of a shift by 0.25 at scale 0.5 is 1/8; beta weighs it, the discount weighs both."""
    elbo = ScaledELBO(kl_weight=beta, scale=0.2)
    elbo.loss(chain, Steady(chain), scale=gamma)
    assert elbo.terms["z"].item() == pytest.approx(0.2 * beta * gamma * 3 / 8, rel=1e-12)


def test_terms_add_up_and_particles_are_a_mean():
    guide = Steady(chain)
    torch.manual_seed(0)
    singles = [ScaledELBO(kl_weight=0.3).loss(chain, guide) for _ in range(4)]
    torch.manual_seed(0)
    elbo = ScaledELBO(kl_weight=0.3, num_particles=4)
    loss = elbo.loss(chain, guide)
    assert loss == pytest.approx(sum(singles) / 4, rel=1e-12)
    assert sum(v.item() for v in elbo.terms.values()) == pytest.approx(loss, rel=1e-12)


def test_auxiliary_draws_of_the_guide_belong_to_the_kl():
    """log q of a draw that the model does not have is weighted by beta, as the latents are."""
    guide = AutoMultivariateNormal(chain)
    guide()
    losses, seen = [], []
    for beta in (0.0, 0.3, 1.0):
        torch.manual_seed(0)
        elbo = ScaledELBO(kl_weight=beta)
        losses.append(elbo.loss(chain, guide))
        seen.append(elbo.terms["x"].item())
    assert losses[0] == pytest.approx(seen[0], rel=1e-12)
    assert losses[1] - seen[1] == pytest.approx(0.3 * (losses[2] - seen[2]), rel=1e-12)
    assert abs(losses[2] - seen[2]) > 0.1


@pytest.mark.parametrize("number", [float, torch.tensor])  # by which sites can be stacked, or not
def test_the_kl_has_the_scale_and_mask_of_the_guide(number):
    """Where those of model and guide differ, as Pyro's own ELBO has it."""

    def program(scale, hidden, loc, seen):
        with pyro.plate("data", 3), poutine.scale(scale=scale), poutine.mask(mask=hidden > DATA):
            pyro.sample("z", dist.Normal(loc, 1.0))
            if seen:
                pyro.sample("x", dist.Normal(DATA, 1.0), obs=DATA + 1)

    def model():
        program(number(2.0), 0.5, 0.0, True)

    def guide():
        program(number(3.0), 0.0, DATA, False)

    losses = [elbo.loss(model, guide) for elbo in (ScaledELBO(), TraceMeanField_ELBO())]
    assert losses[0] == pytest.approx(losses[1], rel=1e-12)
    assert losses[0] == pytest.approx(3 * DATA[1].item() ** 2 / 2 + 2 * 2 * 1.4189385332046727)


def test_only_a_number_at_the_end_is_an_index_of_time():
    def model():
        for name in ("left_paw", "right_paw", "ear_0", "ear_1"):
            pyro.sample(name, dist.Normal(0.0, 1.0))

    elbo = ScaledELBO()
    elbo.loss(model, Steady(model))
    assert set(elbo.terms) == {"left_paw", "right_paw", "ear"}


def test_a_site_left_to_its_prior_costs_nothing():
    class Prior(poutine.guide.GuideMessenger):
        def get_posterior(self, name, prior):
            return prior

    elbo = ScaledELBO()
    elbo.loss(chain, Prior(chain))
    assert set(elbo.terms) == {"x"}


def test_draws_that_are_not_reparameterised_are_refused():
    def coin():
        pyro.sample("z", dist.Bernoulli(0.5))

    class Guess(poutine.guide.GuideMessenger):
        def get_posterior(self, name, prior):
            return dist.Bernoulli(torch.tensor(0.4))

    with pytest.raises(ConfigError, match=r"site z: .*no reparameterised draws"):
        ScaledELBO().loss(coin, Guess(coin))


def test_bad_weights_are_named():
    with pytest.raises(ConfigError, match="kl_weight"):
        ScaledELBO(kl_weight=-1.0)
    with pytest.raises(ConfigError, match="scale"):
        ScaledELBO(scale=0.0)
