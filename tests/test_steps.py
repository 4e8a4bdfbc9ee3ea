"""Draws of the latent at every step: closed forms of affine networks, and the weights by hand."""

import math

import numpy as np
import pytest
import torch
from helpers import recordings
from scipy import stats
from torch.distributions import MultivariateNormal
from variants import build, recording

from pyro_animacy.data.windows import Scale, evenly
from pyro_animacy.infer.score import bounds
from pyro_animacy.infer.steps import draw_steps, log_mean_exp, trajectory_batches
from pyro_animacy.nets import StackConfig

LINEAR = StackConfig(hidden=1, layers=0)
SIGMA, K = 0.5, 8000


def affine(bodies=2, **changes):
    """A model of affine networks with random weights, and a guide that is not its posterior."""
    options = {"prior": LINEAR, "posterior": LINEAR, "policy": LINEAR, "policy_scale": SIGMA}
    model, guide = build("small", bodies, latent_size=3, **{**options, **changes})
    with torch.no_grad():
        guide.residual.network.layers[0].weight *= 0.3
    return model, guide


def walks(frames, size, bodies=2):
    """Random walks with steps of about the size of the policy's noise."""
    batch = recording(frames, size, bodies)
    return batch._replace(position=0.3 * batch.position)


def exact(model, evidence):
    """Mean (T, B, D) and covariance (D, D) of p(a_t | c_t): the latent integrated out."""
    W = model.step.policy.network.layers[0].weight[:, : model.config.latent_size]
    mu = model.step.prior.network(evidence.context)
    mean = model.step.policy(evidence.context, mu).base_dist.loc
    noise = SIGMA**2 * torch.eye(len(W), dtype=W.dtype)
    return mean.detach(), (model.config.latent_scale**2 * W @ W.T + noise).detach()


def drawn(guide, batch, draws=K, proposal="defensive"):
    torch.manual_seed(0)
    return draw_steps(guide, batch, draws, proposal)


def assert_within_monte_carlo_error(log_weight, truth):
    w = (log_weight - truth).exp()
    error = w.std(0) / math.sqrt(len(w))
    assert (error < 0.05).all()
    assert ((w.mean(0) - 1).abs() < 4.5 * error).all()


@pytest.mark.parametrize("proposal", ["defensive", "posterior", "prior"])
def test_every_proposal_estimates_the_exact_evidence(proposal):
    model, guide = affine()
    batch = walks(5, 6)
    evidence = model.evidence(batch)
    mean, covariance = exact(model, evidence)
    truth = MultivariateNormal(mean, covariance).log_prob(evidence.shown)
    log_weight = drawn(guide, batch, proposal=proposal).log_weight[..., 0]
    assert_within_monte_carlo_error(log_weight, truth)


@pytest.mark.parametrize("proposal", ["defensive", "posterior"])
def test_the_density_of_one_body_is_its_gaussian_marginal(proposal):
    model, guide = affine(bodies=3)
    batch = walks(5, 6, bodies=3)
    steps = drawn(guide, batch, proposal=proposal)
    evidence = model.evidence(batch)
    mean, covariance = exact(model, evidence)
    for i in range(3):
        own = slice(2 * i, 2 * i + 2)
        marginal = MultivariateNormal(mean[..., own], covariance[own, own])
        truth = marginal.log_prob(evidence.shown[..., own])
        assert_within_monte_carlo_error(steps.log_ratio[..., 0] + steps.log_policy[..., i], truth)


def test_the_bounds_are_the_log_of_the_mean_weight_and_the_mean_of_its_log():
    _, guide = affine()
    steps = drawn(guide, recording(5, 6, bodies=2), 7, "posterior")
    w = steps.log_ratio[..., 0] + steps.log_policy.sum(-1)
    iwae, elbo = bounds(steps)
    torch.testing.assert_close(iwae, w.exp().mean(0).log(), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(elbo, w.sum(0) / 7, rtol=1e-12, atol=1e-12)
    assert (iwae > elbo + 1e-6).all()


def test_draws_of_the_prior_have_no_weight():
    _, guide = affine()
    steps = drawn(guide, recording(5, 6, bodies=2), 10, "prior")
    assert torch.equal(steps.log_ratio, torch.zeros(10, 3, 6, 1, dtype=torch.float64))


@pytest.mark.parametrize("draws", [2, 7, 64])
def test_defensive_draws_are_weighted_by_the_mixture_they_come_from(draws):
    _, guide = affine()
    steps = drawn(guide, recording(5, 6, bodies=2), draws)
    p, q = (d.log_prob(steps.latent).sum(-1).exp() for d in (steps.prior, steps.posterior))
    half = draws // 2 / draws
    by_hand = (p / (half * q + (1 - half) * p)).log()
    torch.testing.assert_close(steps.log_ratio[..., 0], by_hand, rtol=0, atol=1e-6)
    assert (steps.log_ratio <= -math.log(1 - half) + 1e-6).all()


def test_half_of_the_defensive_draws_come_from_each():
    _, guide = affine()
    with torch.no_grad():
        guide.residual.network.layers[0].bias[:3] += 5.0
    steps = drawn(guide, recording(3, 4, bodies=2), 2000)
    for z, law in ((steps.latent[:1000], steps.posterior), (steps.latent[1000:], steps.prior)):
        standard = ((z - law.loc) / law.scale).detach()
        assert stats.kstest(standard.flatten(), "norm").pvalue > 0.01


def test_what_was_not_observed_adds_nothing():
    _, guide = affine(bodies=3)
    batch = recording(6, 40, missing=0.05)
    steps = drawn(guide, batch, 5)
    seen = batch.observed[2:] & batch.observed.all(-1).unfold(0, 2, 1).all(-1)[:-1, :, None]
    assert 0.1 < seen.double().mean() < 0.9
    assert torch.equal(steps.seen, seen)
    a = (batch.position[2:] - batch.position[1:-1]).numpy()
    each = stats.norm.logpdf(a, steps.policy.mean.detach().numpy(), SIGMA) * seen.numpy()
    by_body = each.reshape(5, 4, 40, 3, 2).sum(-1)
    np.testing.assert_allclose(steps.log_policy.numpy(), by_body, rtol=1e-9, atol=1e-12)
    # nothing seen at all: q is the prior and every weight is 1
    blind = ~seen.any(-1)
    assert blind.any()
    assert steps.log_weight[:, blind].abs().max() < 1e-6
    assert steps.kl[blind].abs().max() == 0


def test_kl_is_that_of_two_gaussians():
    _, guide = affine()
    steps = drawn(guide, recording(5, 6, bodies=2), 2)
    shift, ratio = steps.posterior.loc - steps.prior.loc, steps.posterior.scale / 0.3
    by_hand = -ratio.log() + (ratio**2 + (shift / 0.3) ** 2 - 1) / 2
    torch.testing.assert_close(steps.kl, by_hand)


@pytest.mark.parametrize("axes", [1, 2, 4])
def test_axes_say_how_many_coordinates_a_body_has(axes):
    _, guide = affine()
    batch = recording(5, 6, bodies=2)
    torch.manual_seed(0)
    steps = draw_steps(guide, batch, 3, axes=axes)
    assert steps.log_policy.shape == (3, 3, 6, 4 // axes)
    torch.testing.assert_close(
        steps.log_policy.sum(-1), drawn(guide, batch, 3, "posterior").log_policy.sum(-1)
    )


def test_a_squared_error_model_is_scored_by_its_policy_in_teacher_forced_steps():
    """Whatever it was trained for, the steps are those of the true bound."""
    _, one = affine()
    _, other = affine(
        likelihood="squared_error", roll_out="closed_loop", action_cost=0.1, discount=0.9
    )
    other.load_state_dict(one.state_dict())
    other.model.load_state_dict(one.model.state_dict())
    batch = recording(5, 6, bodies=2)
    a, b = drawn(one, batch, 4), drawn(other, batch, 4)
    assert torch.equal(a.log_weight, b.log_weight)


def test_log_mean_exp_does_not_overflow():
    x = torch.tensor([[1000.0, -1000.0], [1000.0, -1001.0]], dtype=torch.float64)
    expected = [1000.0, -1000.0 + math.log((1 + math.exp(-1)) / 2)]
    np.testing.assert_allclose(log_mean_exp(x), expected, rtol=1e-12)


@pytest.mark.parametrize("size", [1, 250, 10_000])
def test_batches_hold_every_trajectory_once(size):
    dataset = recordings(recordings=5)
    scale = Scale.of(dataset)
    parts = list(trajectory_batches(dataset, scale, size))
    rows = np.concatenate([np.arange(5)[rows] for rows, _ in parts])
    np.testing.assert_array_equal(rows, np.arange(5))
    assert all(batch.position.shape[1] == rows.stop - rows.start for rows, batch in parts)
    joined = torch.cat([batch.position for _, batch in parts], 1).numpy() * scale.unit
    position = dataset["position"].to_numpy() - np.array(scale.center)
    np.testing.assert_allclose(joined, position.reshape(5, 120, 4).swapaxes(0, 1), atol=1e-4)


@pytest.mark.parametrize(("count", "most"), [(7, 3), (3, 7), (1, 1), (16_777_220, 5)])
def test_evenly_spaced_numbers_stay_in_range(count, most):
    """Also where single precision would round the last one up."""
    found = evenly(count, most)
    assert len(found) == len(set(found)) == min(count, most)
    assert found[0] == 0
    assert found[-1] == (count - 1 if most > 1 else 0)
