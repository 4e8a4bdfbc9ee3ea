"""The ControlVAE against algebra by hand, Pyro's own ELBO, and exact linear-Gaussian evidence."""

import itertools
import math

import plain_pytorch
import pyro
import pytest
import torch
from pyro import poutine
from pyro.distributions import Independent, Normal
from pyro.infer import SVI
from variants import (
    PLAIN,
    assert_same_gradients,
    build,
    config,
    gradients,
    recording,
    supply_noise,
)

from pyro_animacy import Batch, ConfigError, ControlVAEConfig, ScaledELBO
from pyro_animacy.infer.score import log_density
from pyro_animacy.nets import StackConfig


@pytest.mark.parametrize("missing", [0.0, 0.05])
@pytest.mark.parametrize("name", PLAIN)
@pytest.mark.parametrize(("T", "B", "bodies"), [(1, 1, 1), (6, 4, 2), (9, 5, 3)])
def test_loss_is_the_algebra(monkeypatch, name, T, B, bodies, missing):
    """Every term, gamma^t, beta, the KL and the scales, and all gradients, to 1e-10."""
    model, guide = build(name, bodies)
    batch = recording(model.config.history + T, B, bodies, missing=missing)
    elbo, beta = ScaledELBO(kl_weight=0.37), 0.37
    noise = supply_noise(monkeypatch, T, B, 5, 2 * bodies)
    loss = elbo(model, guide)(batch)
    seen = batch.observed if missing else None
    plain = plain_pytorch.loss(model, guide, batch.position, beta, seen, noise)
    torch.testing.assert_close(loss, plain["loss"], rtol=1e-10, atol=1e-10)
    for term, value in elbo.terms.items():
        torch.testing.assert_close(value, plain[term].detach(), rtol=1e-10, atol=1e-10)
    assert_same_gradients(gradients(loss, (model, guide)), gradients(plain["loss"], (model, guide)))


def test_kl_identity():
    """With sigma_q = sigma_p, KL(q || p) = |mu_q|^2 / (2 sigma_p^2)."""
    model, guide = build("tied_scale")
    batch = recording(9, 4)
    elbo = ScaledELBO()
    elbo(model, guide)(batch)
    evidence = model.evidence(batch)
    mu_q = guide.residual.network(torch.cat([evidence.context, evidence.shown], -1))
    expected = (mu_q**2).sum() / (2 * model.config.latent_scale**2)
    torch.testing.assert_close(elbo.terms["latent"], expected.detach(), rtol=1e-12, atol=0)


@pytest.mark.parametrize("options", [
    {}, {"likelihood": "squared_error", "policy_scale": 0.3}, {"roll_out": "closed_loop"},
])  # fmt: skip
def test_action_cost_is_that_of_the_policy(options):
    """E|a|^2 and E|a| under pi, by closed form and Monte Carlo, for any likelihood and driver."""
    weights = {"action_cost": 0.7, "action_cost_absolute": 0.4}
    model, guide = build("small", 2, discount=0.9, **weights, **options)
    batch, elbo = recording(model.config.history + 3, 4, bodies=2), ScaledELBO()
    torch.manual_seed(3)
    elbo(model, guide)(batch)
    torch.manual_seed(3)
    guide(batch)
    trace = guide.get_traces()[0]
    closed = model.config.roll_out == "closed_loop"
    if closed:
        pis = [trace.nodes[f"action_{t}"]["fn"] for t in range(3)]
    else:
        z = trace.nodes["latent"]["value"]
        pi = model.step.policy(model.evidence(batch).context, z).base_dist
        pis = [Independent(Normal(*x), 1) for x in zip(pi.loc, pi.scale, strict=True)]
    closed_form = []
    for pi in pis:
        m, s, standard = pi.mean, pi.stddev, Normal(0.0, 1.0)
        folded = 2 * s * standard.log_prob(m / s).exp() + m * (2 * standard.cdf(m / s) - 1)
        closed_form.append(0.7 * (m**2 + s**2).sum(-1) + 0.4 * folded.sum(-1))
    weighted = sum(0.9**t * x.sum() for t, x in enumerate(closed_form))
    torch.testing.assert_close(elbo.terms["action_cost"], weighted.detach(), rtol=1e-10, atol=0)
    for pi, expected in zip(pis, closed_form, strict=True):
        a = pi.sample((100_000,))
        costs = 0.7 * a.square().sum(-1) + 0.4 * a.abs().sum(-1)
        error = costs.std(0) / math.sqrt(len(costs))
        assert ((costs.mean(0) - expected).abs() < 5 * error).all()


def test_action_cost_moves_the_policy_under_the_policy_likelihood():
    """It is no constant there: it penalises the policy's mean and scale."""
    costs = []
    for factor in (1.0, 1.5):
        model, guide = build("small", 2, action_cost=1.0)
        with torch.no_grad():
            for parameter in model.step.policy.parameters():
                parameter.mul_(factor)
        elbo = ScaledELBO()
        torch.manual_seed(3)
        elbo(model, guide)(recording(6, 4, bodies=2))
        costs.append(elbo.terms["action_cost"].item())
    assert costs[1] > 1.3 * costs[0]


def test_two_models_share_nothing_under_svi():
    """Names agree between two models; their parameters must not, through a global store."""
    batch = recording(8, 4)
    first, other = build("small", seed=0), build("small", seed=1)
    before = [p.clone() for m in other for p in m.parameters()]
    SVI(*first, pyro.optim.Adam({"lr": 1e-2}), loss=ScaledELBO()).step(batch)
    SVI(*other, pyro.optim.Adam({"lr": 1e-2}), loss=ScaledELBO()).evaluate_loss(batch)
    after = [p for m in other for p in m.parameters()]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


# The linear-Gaussian case: p(a | c) = N(A c + b + W mu_p(c), sigma_p^2 W W' + s^2 I), exactly.

LINEAR = StackConfig(hidden=1, layers=0)


def linear(orthogonal: bool, posterior_scale: str, Z: int = 3, sigma: float = 0.2):
    """A ControlVAE of affine networks; its policy's loading W has orthogonal columns if asked."""
    model, guide = build(
        "small", 2, latent_size=Z, prior=LINEAR, posterior=LINEAR, policy=LINEAR,
        policy_scale=sigma, posterior_scale=posterior_scale,
    )  # fmt: skip
    W = torch.randn(4, Z, dtype=torch.float64)
    if orthogonal:
        W = torch.linalg.qr(W)[0] * torch.tensor([1.5, 0.7, 1.1], dtype=torch.float64)
    with torch.no_grad():
        model.step.policy.network.layers[0].weight[:, :Z] = W
    return model, guide, W


def moments(model, W, c):
    """Mean and covariance of the displacement given its context, the latent integrated out."""
    cfg, policy = model.config, model.step.policy
    net = policy.network.layers[0]
    mu_p = model.step.prior.network(c)
    mean = policy.affine(c) + c @ net.weight[:, W.shape[1] :].T + net.bias + mu_p @ W.T
    eye = torch.eye(len(W), dtype=W.dtype)
    return mean, cfg.latent_scale**2 * W @ W.T + cfg.policy_scale**2 * eye, mu_p


def test_optimal_residual_reaches_the_exact_evidence():
    """With q the exact posterior, every draw's log weight is log p(a | c)."""
    model, guide, W = linear(orthogonal=True, posterior_scale="learned")
    cfg = model.config
    batch = recording(9, 4, bodies=2)
    evidence = model.evidence(batch)
    mean, covariance, _ = moments(model, W, evidence.context)
    exact = torch.distributions.MultivariateNormal(mean, covariance)
    # Posterior: precision I / sigma_p^2 + W'W / s^2, diagonal; mean shift = gain (a - mean).
    precision = 1 / cfg.latent_scale**2 + (W**2).sum(0) / cfg.policy_scale**2
    gain = (W / cfg.policy_scale**2 / precision).T
    C, Z = evidence.context.shape[-1], W.shape[1]
    head = guide.residual.network.layers[0]
    slope = torch.autograd.functional.jacobian(
        lambda c: moments(model, W, c)[0], torch.zeros(C, dtype=W.dtype)
    )
    with torch.no_grad():
        head.weight.zero_()
        head.weight[:Z, C:] = gain
        head.weight[:Z, :C] = -gain @ slope
        head.bias[:Z] = -gain @ moments(model, W, torch.zeros(C, dtype=W.dtype))[0]
        head.bias[Z:] = (precision.rsqrt() / cfg.latent_scale).log()
    iwae, elbo = log_density(guide, batch, draws=3)
    expected = exact.log_prob(evidence.shown).detach()
    torch.testing.assert_close(elbo, expected, rtol=0, atol=1e-9)
    torch.testing.assert_close(iwae, expected, rtol=0, atol=1e-9)


def test_iwae_rises_to_the_exact_evidence():
    """Far from the posterior, IWAE grows with K and ends at the evidence, never above it."""
    model, guide, W = linear(orthogonal=False, posterior_scale="prior", sigma=0.4)
    with torch.no_grad():
        guide.residual.network.layers[0].weight.mul_(0.1)
    start = recording(3, 40, bodies=2)
    mean, covariance, _ = moments(model, W, model.evidence(start).context)
    torch.manual_seed(0)
    step = torch.distributions.MultivariateNormal(mean, covariance).sample()  # the model's own
    x = torch.cat([start.position[:2], start.position[1:2] + step])
    batch = Batch(x, torch.ones_like(x, dtype=torch.bool))
    exact = torch.distributions.MultivariateNormal(mean, covariance)
    evidence = model.evidence(batch)
    truth = exact.log_prob(evidence.shown).mean().item()
    batch = Batch(*(v.repeat(1, 25, 1) for v in batch))
    bounds = [log_density(guide, batch, K)[0].mean().item() for K in (1, 4, 16, 64, 4096)]
    assert all(b > a for a, b in itertools.pairwise(bounds)), bounds
    assert bounds[-1] == pytest.approx(truth, abs=0.02)
    assert max(bounds) < truth + 0.02


def test_unobserved_steps_go_on_from_the_models_own_state(monkeypatch):
    """In closed loop a gap is bridged by the roll-out: nothing of the recording enters there."""
    model, guide = build("closed_loop")
    T, B = 8, 3
    batch = recording(3 + T - 1, B)
    T = len(batch.position) - model.config.history
    batch.observed[4:7] = False
    supply_noise(monkeypatch, T, B, 5, 6)
    with poutine.trace() as traced:
        guide(batch)
    del traced
    model_trace, guide_trace = guide.get_traces()
    first = 4 - model.config.history
    for t in range(first, first + 3):
        p, q = model_trace.nodes[f"latent_{t}"]["fn"], guide_trace.nodes[f"latent_{t}"]["fn"]
        torch.testing.assert_close(p.base_dist.loc, q.base_dist.loc)
        torch.testing.assert_close(p.base_dist.scale, q.base_dist.scale)


def test_the_context_is_positions_differences_and_displacements():
    """Over the extent 5, over the separation 3, as they are; the newest displacement first."""
    model, _ = build("history_4")
    s, *past = torch.randn(4, 2, 6, dtype=torch.float64)
    body = s.unflatten(-1, (3, 2))
    apart = [body[:, i] - body[:, j] for i, j in ((0, 1), (0, 2), (1, 2))]
    expected = torch.cat([s / 5, *(d / 3 for d in apart), *past], -1)
    torch.testing.assert_close(model.context(s, past), expected, rtol=1e-6, atol=1e-6)


def test_free_motion_starts_at_constant_velocity():
    """Before training, with a silent network, the policy's mean is the last displacement."""
    model, _ = build("small")
    with torch.no_grad():
        for parameter in model.step.policy.network.parameters():
            parameter.zero_()
    s, a = torch.randn(2, 4, 6, dtype=torch.float64)
    pi = model.step.policy(model.context(s, [a]), torch.zeros(4, 5, dtype=torch.float64))
    torch.testing.assert_close(pi.base_dist.loc, a)


def test_free_motion_ends_at_the_walls():
    model, _ = build("small")
    s = torch.full((64, 6), 39.5, dtype=torch.float64)
    with torch.no_grad():
        torch.manual_seed(0)
        walled = torch.stack(model.roll_out(s, [torch.ones_like(s)], 60).state)
        torch.manual_seed(0)
        open_model, _ = build("small", arena="open")
        opened = torch.stack(open_model.roll_out(s, [torch.ones_like(s)], 60).state)
    assert walled.abs().max() <= 40
    assert opened.abs().max() > 40


def test_a_displacement_is_what_the_walls_leave_of_it():
    """Also for bodies that start at a wall, as at the frame by which it is known."""
    model, _ = build("small")
    s = torch.tensor([40.0, -40.0, 0.0, 40.0, -40.0, 0.0], dtype=torch.float64).expand(64, 6)
    with torch.no_grad():
        torch.manual_seed(0)
        rolled = model.roll_out(s, [torch.ones_like(s)], 20)
    path = torch.stack([s, *rolled.state])
    assert path.abs().max() == 40
    torch.testing.assert_close(torch.stack(rolled.action), path.diff(dim=0))


def test_a_body_that_starts_beyond_a_wall_does_not_meet_it():
    """It is in another arena: neither thrown back, nor held where it started."""
    model, _ = build("small")
    s = torch.full((64, 6), 60.0, dtype=torch.float64)
    with torch.no_grad():
        path = torch.stack([s, *model.roll_out(s, [torch.zeros_like(s)], 20).state])
    assert path.max() > 60
    assert path.min() >= -40  # the walls it started between still stand
    assert path.diff(dim=0)[0].abs().max() < 15  # not the 20 to the wall at once


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"history": 0}, "history"),
        ({"latent_scale": 0.0}, "latent_scale"),
        ({"discount": 1.5}, "discount"),
        ({"action_cost": -1.0}, "action_cost"),
        ({"action_cost_absolute": -1.0}, "action_cost_absolute"),
        ({"likelihood": "squared_error"}, "policy_scale"),
    ],
)
def test_options_that_cannot_be_used_are_named(change, named):
    with pytest.raises(ConfigError, match=named):
        ControlVAEConfig(**change)


def test_the_floor_is_the_resolutions_deviation():
    model, _ = build("small")
    assert model.step.policy.floor == pytest.approx(0.01 / math.sqrt(12))
    assert config("small").policy_scale is None
