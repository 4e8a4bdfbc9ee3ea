"""A policy with a state of rest: its density, its draws and its moments."""

import numpy as np
import pyro
import pytest
import torch
from scipy import integrate, stats
from variants import build, recording

from pyro_animacy.infer.steps import draw_steps
from pyro_animacy.models.densities import expected_cost, log_prob_in_parts, rebuilt
from pyro_animacy.models.program import Overshooting
from pyro_animacy.resting import (
    MOVING,
    STAYING,
    Rest,
    RestingNormal,
    chosen,
    components,
    free,
    observed,
)

N, D = 2, 4


def policy(*shape, seed=0, dtype=torch.float64):
    """Two bodies in the plane, with probabilities of rest from near 0 to near 1."""
    draw = torch.Generator().manual_seed(seed)

    def normal(*size):
        return torch.randn(*size, generator=draw, dtype=dtype)

    loc, logits = normal(*shape, D), 2 * normal(*shape, N)
    return RestingNormal(
        loc, 0.3 + normal(*shape, D).exp(), logits, torch.tensor([0.1, 0.2] * N, dtype=dtype)
    )


def by_hand(pi, a, seen):
    """Densities of scipy, body by body."""
    found = np.ones(a.shape[:-1])
    rho = 1 / (1 + np.exp(-pi.rest_logits.numpy()))
    for i in range(N):
        moves, rests = 1 - rho[..., i], rho[..., i]
        for j in (2 * i, 2 * i + 1):
            x, used = a[..., j].numpy(), seen[..., j].numpy()
            moving = stats.norm.pdf(x, pi.loc[..., j], pi.scale[..., j])
            moves = moves * np.where(used, moving, 1)
            rests = rests * np.where(used, stats.norm.pdf(x, 0, pi.rest_scale[..., j]), 1)
        found = found * (moves + rests)
    return np.log(found)


def test_density_by_hand():
    torch.manual_seed(0)
    pi = policy(50)
    a = torch.cat([pi.sample()[:25], 0.1 * policy(25, seed=1).loc])
    every = torch.ones_like(a, dtype=torch.bool)
    np.testing.assert_allclose(pi.log_prob(a), by_hand(pi, a, every), rtol=1e-12, atol=1e-12)
    seen = torch.rand(a.shape, generator=torch.Generator().manual_seed(2)) < 0.5
    assert (seen.unflatten(-1, (N, 2)).sum(-1) == 1).any()  # a body of which one coordinate is seen
    np.testing.assert_allclose(
        observed(pi, seen).log_prob(a), by_hand(pi, a, seen), rtol=1e-12, atol=1e-12
    )
    each = log_prob_in_parts(observed(pi, seen), a, N)
    torch.testing.assert_close(each.sum(-1), observed(pi, seen).log_prob(a))


def test_what_was_not_seen_is_exactly_nothing():
    """Neither the density nor a gradient depends on a body that was not seen."""
    pi = policy(7, dtype=torch.float32)
    parts = [x.detach().requires_grad_() for x in (pi.loc, pi.scale, pi.rest_logits)]
    pi = RestingNormal(*parts, pi.rest_scale)
    seen = torch.zeros(7, D, dtype=torch.bool)
    seen[:, :2] = True
    a = torch.full((7, D), 0.05)
    each = log_prob_in_parts(observed(pi, seen), a, N)
    assert (each[:, 1] == 0).all()
    for gradient, half in zip(torch.autograd.grad(each.sum(), parts), (2, 2, 1), strict=True):
        assert (gradient[:, half:] == 0).all()
        assert (gradient[:, :half] != 0).all()


def test_density_integrates_to_one():
    pi = RestingNormal(*(torch.tensor(x) for x in ([0.7, -0.4], [0.5, 0.3], [0.4], [0.1, 0.2])))

    def density(y, x):
        return pi.log_prob(torch.tensor([x, y])).exp().item()

    total, _ = integrate.dblquad(density, -3, 4, -3, 3, epsabs=1e-4)
    assert total == pytest.approx(1, abs=1e-3)


def test_nobody_rests_where_the_probability_is_zero():
    pi, a = policy(9), policy(9, seed=3).loc
    never = RestingNormal(pi.loc, pi.scale, torch.full((9, N), -80.0).double(), pi.rest_scale)
    plain = torch.distributions.Normal(pi.loc, pi.scale)
    torch.testing.assert_close(never.log_prob(a), plain.log_prob(a).sum(-1))
    torch.testing.assert_close(never.mean, pi.loc)
    torch.testing.assert_close(never.variance, pi.scale**2)
    assert (free(never).sample((100,)) != 0).all()


def test_draws_have_the_moments_and_distribution_functions():
    torch.manual_seed(0)
    pi, n = policy(3), 100_000
    a = pi.sample((n,))
    assert a.shape == (n, 3, D)
    error = (pi.variance / n).sqrt()
    assert ((a.mean(0) - pi.mean).abs() < 4 * error).all()
    torch.testing.assert_close(a.var(0), pi.variance, rtol=0.05, atol=0)
    x = a[0]
    below = sum(share * of.cdf(x) for share, of in components(pi))
    assert ((a < x).double().mean(0) - below).abs().max() < 4 * 0.5 / n**0.5
    both = (a.abs() < 4 * pi.rest_scale).unflatten(-1, (N, 2)).double()
    together = both.prod(-1).mean(0) - both.mean(0).prod(-1)
    assert (together[(pi.rest_logits.abs() < 1)] > 0.02).all()  # a body rests in x and y at once


def test_the_expected_cost_is_that_of_draws():
    torch.manual_seed(1)
    pi, n = policy(4), 200_000
    a = pi.sample((n,))
    cost = 0.3 * (a**2).sum(-1) + 0.7 * a.abs().sum(-1)
    found = sum(expected_cost(of.loc, of.scale, 0.3, 0.7, share) for share, of in components(pi))
    assert ((cost.mean(0) - found).abs() < 4 * cost.std(0) / n**0.5).all()


def test_it_is_a_pyro_distribution():
    """It can be a site under plates, expanded, and joined like the other families."""
    pi = policy(5)
    with pyro.plate("body", 5):
        assert pyro.sample("a", pi).shape == (5, D)
    a = torch.zeros(2, 5, D, dtype=torch.float64)
    wide = pi.expand(torch.Size((2, 5)))
    torch.testing.assert_close(wide.log_prob(a), pi.log_prob(a[0]).expand(2, 5))
    joined = rebuilt([pi, policy(5, seed=4)], torch.stack)
    torch.testing.assert_close(joined.log_prob(a)[0], pi.log_prob(a[0]))
    assert rebuilt([observed(pi, torch.ones(5, D, dtype=torch.bool))], torch.stack) is None
    with pytest.raises(ValueError, match="shape"):
        RestingNormal(pi.loc, pi.scale, pi.rest_logits, pi.rest_scale, validate_args=True).log_prob(
            torch.zeros(5, 1, dtype=torch.float64)
        )


def test_variance_where_nearly_nobody_rests():
    """Single precision: the difference of two squares would lose a small scale beside a mean."""
    parts = [torch.tensor(x) for x in ([2.0, -3.0], [2e-4, 3e-4], [-16.0], [1e-3, 1e-3])]
    pi, exact = RestingNormal(*parts), RestingNormal(*(x.double() for x in parts))
    torch.testing.assert_close(pi.variance.double(), exact.variance, rtol=1e-5, atol=0)


def test_in_free_motion_a_body_at_rest_stays_where_it_is():
    """Together in all its coordinates, as often as the policy says, by draws or by chances."""
    torch.manual_seed(3)
    pi, n = policy(3), 50_000
    rho, error = pi.rest_logits.sigmoid(), 4 * 0.5 / n**0.5
    eps = torch.randn(n, 3, D + N, dtype=torch.float64)
    for a in (free(pi).sample((n,)), chosen(pi, eps)):
        still = (a == 0).unflatten(-1, (N, 2))
        assert torch.equal(still[..., 0], still[..., 1])
        assert ((still[..., 0].double().mean(0) - rho).abs() < error).all()
        moving = a.masked_fill(a == 0, torch.nan)
        torch.testing.assert_close(moving.nanmean(0), pi.loc, rtol=0, atol=0.15)
    middle = chosen(pi, torch.zeros(3, D + N, dtype=torch.float64))
    rests = (pi.rest_logits > 0).repeat_interleave(2, -1)
    assert 0 < rests.double().mean() < 1
    torch.testing.assert_close(middle, torch.where(rests, 0.0, pi.loc))
    plain = torch.distributions.Normal(pi.loc, pi.scale)
    gaussian = torch.distributions.Independent(plain, 1)
    assert free(gaussian) is gaussian
    torch.testing.assert_close(chosen(gaussian, eps[..., :D]), pi.loc + pi.scale * eps[..., :D])


def told_to_rest(name, odds):
    """A variant whose every body rests with these log odds, whatever it sees."""
    model, guide = build(name)
    pi = getattr(model, "decoder", None) or model.step.policy
    with torch.no_grad():
        for parameter in pi.network.parameters():
            parameter.zero_()
        last = [p for p in pi.network.parameters() if p.dim() == 1][-1]
        last[-1 if name == "set_rest" else slice(-3, None)] = odds - MOVING
        pi.rest.kappa.zero_()
    return model, guide


RESTING = pytest.mark.parametrize("name", ["rest", "rssm_rest", "deterministic_rest", "set_rest"])


@RESTING
def test_bodies_rest_in_free_motion_as_often_as_the_policy_says(name):
    """However long it goes on: what is at rest has not drifted."""
    model, _ = told_to_rest(name, 1.0)
    batch, steps = recording(model.config.history + 1, 40), 60
    of = model.recorded(batch)
    torch.manual_seed(0)
    with torch.no_grad():
        rolled = model.roll_out(of.state[0], [a[0] for a in of.actions], steps)
    still = (torch.stack(rolled.action) == 0).unflatten(-1, (3, 2)).all(-1).double()
    expected, error = 1 / (1 + np.exp(-1.0)), 4 * 0.5 / (40 * 3 * 20) ** 0.5
    for part in still.split(20):
        assert part.mean().item() == pytest.approx(expected, abs=error)


@RESTING
def test_a_body_that_rested_goes_on_resting(name):
    """The odds gain kappa for a body at rest, next to nothing for one that moves."""
    model, _ = told_to_rest(name, -3.0)
    pi = getattr(model, "decoder", None) or model.step.policy
    with torch.no_grad():
        pi.rest.kappa.fill_(5.0)
        state = torch.zeros(2, 6, dtype=torch.float64)
        moves = torch.tensor([[0.0] * 4 + [1.0] * 2, [1.0] * 6]).double()
        c = model.context(state, [moves] + [torch.ones_like(moves)] * (model.config.history - 2))
        odds = model.policy(c, model.start((2,))).rest_logits
    expected = torch.tensor([[2.0, 2.0, -3.0], [-3.0] * 3]).double()
    torch.testing.assert_close(odds, expected, rtol=0, atol=1e-6)


def test_a_step_blurred_by_the_resolution_counts_as_rest():
    """Training sees it dequantised, free motion exactly zero: the odds are nearly the same."""
    rest = Rest(torch.zeros(1, dtype=torch.long), 1, axes=2, floor=0.1).double()
    tau = (torch.nn.functional.softplus(rest.raw_scale) + rest.floor).item()
    last = tau * torch.randn(10_000, 2, generator=torch.Generator().manual_seed(0)).double()
    with torch.no_grad():
        pi = rest(last, torch.ones_like(last), torch.zeros(10_000, 1), last)
        odds = pi.rest_logits - MOVING
    assert odds.mean().item() / STAYING == pytest.approx(1.0, abs=0.05)


@RESTING
def test_the_score_is_the_density_of_what_was_seen(name):
    """Of every body, given its latent draws, under a policy known by hand."""
    model, guide = told_to_rest(name, 0.5)
    batch = recording(model.config.history + 5, 30, missing=0.1)
    steps = draw_steps(guide, batch, 3)
    seen, a = steps.seen, steps.shown
    assert (seen.unflatten(-1, (3, 2)).sum(-1) == 1).any()
    pi = steps.policy
    rho = 1 / (1 + np.exp(-0.5))
    x, used = a.numpy(), seen.numpy()
    moves = np.where(used, stats.norm.pdf(x, pi.loc.detach(), pi.scale.detach()), 1)
    rests = np.where(used, stats.norm.pdf(x, 0, pi.rest_scale.detach()), 1)
    by_body = [p.reshape(*p.shape[:-1], 3, 2).prod(-1) for p in (moves, rests)]
    expected = np.log((1 - rho) * by_body[0] + rho * by_body[1])
    np.testing.assert_allclose(steps.log_policy, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", ["rssm", "rssm_rest"])
def test_overshooting_scores_what_was_seen(name):
    """Steps further ahead, too, are scored in the coordinates that were observed alone."""
    model, guide = build(name, discount=1.0)
    batch = recording(model.config.history + 5, 20, missing=0.1)
    guide(batch, overshooting=Overshooting(distance=3, observation=1.0))
    trace, _ = guide.get_traces()
    seen = model.recorded(batch).seen.numpy()
    for d in (2, 3):
        site = trace.nodes[f"reconstruction_ahead_{d}"]
        fn, a = site["fn"], site["value"]
        pi = fn if name == "rssm_rest" else fn.base_dist.base_dist
        parts = [x.detach().numpy() for x in (pi.loc, pi.scale)]
        expected = (
            np.where(seen[d:], stats.norm.pdf(a, *parts), 1).reshape(*a.shape[:-1], 3, 2).prod(-1)
        )
        if name == "rssm_rest":
            rho = pi.rest_logits.sigmoid().detach().numpy()
            still = stats.norm.pdf(a, 0, pi.rest_scale.detach())
            still = np.where(seen[d:], still, 1).reshape(*a.shape[:-1], 3, 2).prod(-1)
            expected = rho * still + (1 - rho) * expected
        expected = np.log(expected).sum(-1)
        np.testing.assert_allclose(fn.log_prob(a).detach(), expected, rtol=1e-9, atol=1e-10)
