"""Inert bodies: simulated ones of known law, scipy's densities, and reflections by hand."""

import math

import numpy as np
import pytest
from helpers import recordings
from scipy import optimize, stats

from pyro_animacy import make_trajectories
from pyro_animacy.data.windows import Scale
from pyro_animacy.models.inertial import (
    Inertia,
    fit_inertia,
    inertial_log_density,
    inertial_surprise,
)


def simulated(
    damping, restitution, sigma, frames=400, size=40, speed=2.0, box=10.0, seed=0, hits=(0, 1)
):
    """(size, frames, 1, 2) inert bodies in a box; a wall acts on where a body is expected.

    ``hits`` are the share of steps with an impulse, and how many times sigma it is.
    """
    rng = np.random.default_rng(seed)
    x = np.empty((size, frames, 1, 2))
    x[:, 0] = rng.uniform(0.2 * box, 0.8 * box, (size, 1, 2))
    v = rng.normal(scale=speed, size=(size, 1, 2))
    x[:, 1] = np.clip(x[:, 0] + v, 0, box)
    v = x[:, 1] - x[:, 0]
    for t in range(1, frames - 1):
        m = x[:, t] + damping * v
        wall = np.where(m > box, box, 0.0)
        hit = (m > box) | (m < 0)
        mean = np.where(hit, wall - restitution * (m - wall), m)
        scale = np.where(rng.random((size, 1, 1)) < hits[0], hits[1], 1) if hits[0] else 1
        x[:, t + 1] = mean + sigma * scale * rng.normal(size=m.shape)
        v = np.where(hit, -restitution * damping * v, x[:, t + 1] - x[:, t])
    return x


def law(
    damping=1.0, restitution=1.0, noise=0.1, rate=0.0, impulse=1.0,
    staying=0.0, stopping=0.0, rest=1e-6, low=-1e9, high=1e9,
):  # fmt: skip
    """The law of one body of one trajectory, by default never hit and never at rest."""
    wall = np.ones((1, 2))
    one = np.ones((1, 1))
    return Inertia(
        *(damping * one, np.array([restitution], float), noise * one),
        *(rate * one, impulse * one, staying * one, stopping * one, rest * one),
        *(low * wall, high * wall),
    )


ENOUGH = 0.015  # nats a step: the likelihood jumps where a body just reaches a wall


def path(*points):
    return np.array(points, float)[None, :, None]


def likelihood(x, inertia):
    return np.nansum(inertial_log_density(x, inertia), (0, 1))


@pytest.mark.parametrize("damping", [0.5, 0.9, 0.99])
def test_damping_and_noise_are_recovered(damping):
    x = simulated(damping, 1.0, 0.05, box=1e6, frames=1000, size=12)
    found = fit_inertia(x, 1e-6)
    # of an autoregression, asymptotically: its coefficient within sqrt((1 - rho^2) / n)
    error = math.sqrt((1 - damping**2) / (2 * 998))
    assert np.abs(found.damping - damping).max() < 4.5 * error + 5e-3
    assert np.abs(found.damping - damping).mean() < 2 * error + 1e-3
    spread = (1 - found.impulse_rate) * found.noise**2 + found.impulse_rate * found.impulse_scale**2
    np.testing.assert_allclose(spread**0.5, 0.05, rtol=0.1)


@pytest.mark.parametrize("rate", [0.02, 0.1, 0.3])
def test_impulses_are_recovered(rate):
    x = simulated(0.95, 1.0, 0.05, box=1e6, frames=1000, size=12, hits=(rate, 20))
    found = fit_inertia(x, 1e-6)
    n = 998 * 12  # of all bodies, in standard errors of the mean of as many
    rates = found.impulse_rate.mean()
    assert abs(rates - rate) < 4 * math.sqrt(rate * (1 - rate) / n) + 2e-3
    assert found.noise.mean() == pytest.approx(0.05, rel=4 / math.sqrt(4 * (1 - rate) * n))
    assert found.impulse_scale.mean() == pytest.approx(1.0, rel=4 / math.sqrt(4 * rate * n) + 0.01)
    np.testing.assert_allclose(found.damping, 0.95, atol=0.01)


@pytest.mark.parametrize("restitution", [0.3, 0.8, 1.0])
def test_restitution_and_walls_are_recovered(restitution):
    x = simulated(0.995, restitution, 0.02, frames=60, size=400)
    found = fit_inertia(x, 1e-6)
    np.testing.assert_allclose(found.low, 0, atol=0.1)
    np.testing.assert_allclose(found.high, 10, atol=0.1)
    assert found.restitution[0] == pytest.approx(restitution, abs=0.05)


@pytest.mark.parametrize("hits", [(0, 1), (0.05, 10)], ids=["never_hit", "hit"])
def test_no_other_parameters_are_more_likely(hits):
    x = np.concatenate(
        [simulated(0.97, 0.6, s, size=4, seed=int(100 * s), hits=hits) for s in (0.05, 0.4)]
    )
    x[2, 50:60] = np.nan
    found = fit_inertia(x, 1e-6)
    best = likelihood(x, found).sum()
    for name in ("damping", "noise", "impulse_rate", "impulse_scale", "restitution"):
        values = getattr(found, name)
        for factor in (0.8, 0.9, 0.98, 0.999, 1.001, 1.02, 1.1, 1.2):
            other = likelihood(x, found._replace(**{name: values * factor})).sum()
            assert other < best + ENOUGH * 8 * 398
            # a hit may end beyond a wall, where little is known of restitution
            if factor in (0.8, 1.2) and name in (
                "damping",
                "noise",
                *["restitution"] * (not hits[0]),
            ):
                assert other < best


def test_away_from_walls_the_estimate_is_that_of_an_optimiser():
    """A still body at either end holds the walls away from the others."""
    x = simulated(0.9, 1.0, 0.1, box=1e6, frames=200, size=4, hits=(0.1, 15))
    x[0, 20] = np.nan
    posts = np.array([-1e7, 1e7])[:, None, None, None] * np.ones((2, 200, 1, 2))
    found = fit_inertia(np.concatenate([x, posts]), 1e-6)
    v = np.diff(x, axis=1)[:, :, 0]
    for i in range(4):
        past, now = v[i, :-1], v[i, 1:]
        both = np.isfinite(past).all(-1) & np.isfinite(now).all(-1)
        past, now = past[both], now[both]

        def loss(theta, past=past, now=now):
            rho, sigma, tau, eps = theta[0], *np.exp(theta[1:3]), 1 / (1 + math.exp(-theta[3]))
            error = now - rho * past
            calm, hit = (stats.norm.logpdf(error, scale=s).sum(-1) for s in (sigma, tau))
            return -np.logaddexp(math.log1p(-eps) + calm, math.log(eps) + hit).sum()

        other = optimize.minimize(loss, (0.8, -2.0, 0.5, -2.0), tol=1e-8)
        values = [f[i, 0] for f in (found.damping, found.noise, found.impulse_scale)]
        np.testing.assert_allclose(
            values, [other.x[0], *np.exp(other.x[1:3])], rtol=2e-3, err_msg=str(i)
        )
        rate = 1 / (1 + math.exp(-other.x[3]))
        assert found.impulse_rate[i, 0] == pytest.approx(rate, rel=5e-3)


def test_it_is_as_likely_as_a_general_optimiser_finds():
    x = simulated(0.95, 0.5, 0.1, frames=150, size=1, speed=3.0)
    found = fit_inertia(x, 1e-6)

    def loss(theta):
        rho, e, log_sigma = theta
        one = found._replace(
            damping=np.array([[rho]]), restitution=np.array([e]),
            noise=np.array([[math.exp(log_sigma)]]),
        )  # fmt: skip
        return -likelihood(x, one).item()

    start = (found.damping.item(), 0.5, math.log(0.2))
    bounds = [(0, 1), (0, 1), (-6, 2)]
    other = optimize.minimize(loss, start, method="Nelder-Mead", bounds=bounds)
    assert -likelihood(x, found).item() < other.fun + ENOUGH * 148


def test_away_from_walls_the_density_is_a_contaminated_gaussian():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(3, 20, 2, 2)).cumsum(1)
    rho, sigma, tau = (rng.uniform(*between, (3, 2)) for between in ((0.5, 1), (0.5, 2), (2, 4)))
    eps, wall = rng.uniform(0, 0.5, (3, 2)), np.full((2, 2), 1e6)
    eps[0] = 0.0
    never = np.zeros((3, 2))
    inertia = Inertia(rho, np.ones(2), sigma, eps, tau, never, never, never + 1e-6, -wall, wall)
    a = np.diff(x, axis=1)
    calm, hit = (
        stats.norm.pdf(a[:, 1:], rho[:, None, :, None] * a[:, :-1], s[:, None, :, None]).prod(-1)
        for s in (sigma, tau)
    )
    by_hand = np.log((1 - eps)[:, None] * calm + eps[:, None] * hit)
    np.testing.assert_allclose(inertial_log_density(x, inertia), by_hand, rtol=1e-12)


def test_steps_between_impulses_are_as_expected_as_if_there_were_none():
    """A body that is hit once in a while is no less an inert body in between."""
    hit = simulated(0.98, 1.0, 0.01, box=1e6, size=1, hits=(0.03, 300))
    calm = simulated(0.98, 1.0, 0.01, box=1e6, size=1)
    for x, least in ((hit, 0.85), (calm, 0.95)):
        density = inertial_log_density(x, fit_inertia(x, 1e-6))
        known = 2 * stats.norm.logpdf(0, scale=0.01) - 1  # the mean of a Gaussian's own draws
        assert np.mean(np.abs(density - known) < 3) > least
        assert np.median(density) == pytest.approx(known, abs=0.6)


def test_a_wall_gives_back_the_share_of_what_lies_beyond_it():
    # v = (2, 1), damping 1/2, wall at x = 3: m = (2, 1) + (1, 0.5); then v = (1, 0.5), m_x = 4
    x = path((0, 0), (2, 1), (3, 1.5), (2.5, 2.0), (2.25, 2.5))
    inertia = law(damping=1.0, restitution=0.5, noise=0.2, high=3.0)
    density = inertial_log_density(x, inertia)[0, :, 0]
    norm = stats.norm(scale=0.2)
    # 1: v = (2, 1), m = (4, 2): 1 beyond, so expected at 3 - 0.5; v_x becomes -1
    assert density[0] == pytest.approx(norm.logpdf([3 - 2.5, 1.5 - 2.0]).sum())
    # 2: v = (-1, 0.5) from (3, 1.5)
    assert density[1] == pytest.approx(norm.logpdf([2.5 - 2.0, 2.0 - 2.0]).sum())
    # 3: v = (-0.5, 0.5), seen, from (2.5, 2)
    assert density[2] == pytest.approx(norm.logpdf([2.25 - 2.0, 2.5 - 2.5]).sum())


@pytest.mark.parametrize("mirrored", [False, True])
def test_low_and_high_walls_are_alike(mirrored):
    x = simulated(0.98, 0.7, 0.1, size=5)
    y = -x if mirrored else x[..., ::-1]
    a, b = fit_inertia(x, 1e-6), fit_inertia(y, 1e-6)
    np.testing.assert_allclose(a.damping, b.damping, atol=1e-9)
    np.testing.assert_allclose(
        inertial_log_density(x, a), inertial_log_density(y, b), rtol=1e-6, atol=1e-6
    )


def resting(staying, stopping, sigma=0.5, frames=600, size=30, rest=0.01, seed=0):
    """(size, frames, 1, 2) bodies that lie still, are hit, move on, and come to a stop."""
    rng = np.random.default_rng(seed)
    x, a = np.zeros((size, frames, 1, 2)), np.ones((size, 1, 2))
    still = np.zeros((size, 1, 1), bool)
    for t in range(frames - 1):
        still = rng.random(still.shape) < np.where(still, staying, stopping)
        noise = rng.normal(size=a.shape)
        a = np.where(still, rest * noise, 0.9 * a + sigma * noise)
        x[:, t + 1] = x[:, t] + a
    return x


@pytest.mark.parametrize(("staying", "stopping"), [(0.9, 0.05), (0.6, 0.4), (0.98, 0.01)])
def test_a_state_of_rest_is_recovered(staying, stopping):
    x = resting(staying, stopping)
    found = fit_inertia(x, 0.01 / math.sqrt(2))
    n = 600 * 30
    at_rest = stopping / (1 + stopping - staying)
    for name, p, steps in (("staying", staying, at_rest), ("stopping", stopping, 1 - at_rest)):
        # mean of estimates from each body's own steps, of which few may be at rest
        error = 4 * math.sqrt(p * (1 - p) / (n * steps)) + 0.02
        assert getattr(found, name).mean() == pytest.approx(p, abs=error), name
    moving = fit_inertia(x, 1e-9)  # the same, told that nothing is so slow as to be at rest
    assert (likelihood(x, found) > likelihood(x, moving) - 1).all()
    np.testing.assert_allclose(found.damping.mean(), 0.9, atol=0.03)
    spread = (1 - found.impulse_rate) * found.noise**2 + found.impulse_rate * found.impulse_scale**2
    assert np.sqrt(spread.mean()) == pytest.approx(0.5, rel=0.05)


def test_the_density_of_a_body_that_may_rest_is_a_mixture():
    """Of what it does by its last displacement, by hand."""
    x = path((0, 0), (1, 0), (1.01, 0), (1.01, 0.01), (2, 0))
    inertia = law(
        damping=0.5, noise=0.3, rate=0.2, impulse=2.0, staying=0.9, stopping=0.1, rest=0.02
    )
    density = inertial_log_density(x, inertia)[0, :, 0]
    a = np.diff(x[0, :, 0], axis=0)
    for t, phi in enumerate((0.1, 0.9, 0.9)):
        rests, calm, hit = (
            stats.norm.pdf(a[t + 1], mean, scale).prod()
            for mean, scale in ((0, 0.02), (0.5 * a[t], 0.3), (0.5 * a[t], 2.0))
        )
        by_hand = math.log(phi * rests + (1 - phi) * (0.8 * calm + 0.2 * hit))
        assert density[t] == pytest.approx(by_hand)


def test_lying_still_surprises_no_more_than_rest_should():
    """A body held still for most of the time, and moved by leaps: only leaps surprise."""
    rng = np.random.default_rng(3)
    a = np.where(rng.random((1, 400, 1, 1)) < 0.1, rng.normal(size=(1, 400, 1, 2)), 0.0)
    x = a.cumsum(1) + rng.uniform(-0.005, 0.005, a.shape)
    floor = 0.01 / math.sqrt(12)
    density = inertial_log_density(x, fit_inertia(x, floor))[0, :, 0]
    still = (a[0, 2:, 0] == 0).all(-1)
    bound = 2 * stats.norm.logpdf(0, scale=math.sqrt(2) * floor)
    assert np.median(density[still]) > bound - 1.2  # of a Gaussian's own draws 1, and log(0.9)
    assert np.median(density[~still]) < bound - 5


def test_density_is_not_defined_around_what_was_not_observed():
    x = simulated(0.9, 1.0, 0.1, size=2, box=1e6, frames=30)
    whole = inertial_log_density(x, law())
    x[0, 10, 0, 1] = np.nan
    density = inertial_log_density(x, law())
    missing = np.zeros((2, 28, 1), bool)
    missing[0, 8:11] = True  # steps 8 -> 10, with 10 last, in the middle and first
    np.testing.assert_array_equal(np.isnan(density), missing)
    np.testing.assert_array_equal(density[~missing], whole[~missing])


def test_a_gap_at_a_wall_ends_the_bounce():
    x = path((0, 0), (2, 0), (np.nan, np.nan), (2, 0), (1, 0), (0, 0))
    density = inertial_log_density(x, law(noise=0.2, high=3.0))[0, :, 0]
    np.testing.assert_array_equal(np.isnan(density), [True, True, True, False])
    assert density[3] == pytest.approx(2 * stats.norm.logpdf(0, scale=0.2))


def test_an_inert_body_has_no_engine():
    """One that speeds up by a fifth at every frame keeps all of its velocity, and no more."""
    x = 1.2 ** np.arange(20.0)[None, :, None, None] * np.ones(2)
    found = fit_inertia(x, 1e-6)
    np.testing.assert_array_equal(found.damping, 1)
    assert found.noise[0, 0] > 0.01


def test_a_still_body_has_the_least_noise():
    x = np.full((2, 20, 1, 2), 3.0)
    x[1] += np.arange(20)[:, None, None]
    found = fit_inertia(x, np.array([[0.01], [0.02]]))
    np.testing.assert_allclose(found.noise[:, 0], [0.01, 0.02])
    np.testing.assert_array_equal(found.damping, 1)
    density = inertial_log_density(x, found)
    np.testing.assert_allclose(density[0], 2 * stats.norm.logpdf(0, scale=0.01))


@pytest.mark.parametrize("frames", [1, 2])
def test_too_few_frames_give_no_step(frames):
    x = np.zeros((3, frames, 2, 2))
    found = fit_inertia(x, 0.1)
    assert np.isnan(found.noise).all()
    assert inertial_log_density(x, found).shape == (3, 0, 2)


def test_a_trajectory_that_was_not_observed_takes_nothing_from_the_others():
    x = simulated(0.9, 0.5, 0.1, size=3)
    with_gap = np.concatenate([x, np.full((1, *x.shape[1:]), np.nan)])
    a, b = fit_inertia(x, 1e-6), fit_inertia(with_gap, 1e-6)
    np.testing.assert_array_equal(a.damping, b.damping[:3])
    np.testing.assert_array_equal(a.restitution, b.restitution)
    assert np.isnan(b.noise[3]).all()
    assert np.isnan(inertial_log_density(with_gap, b)[3]).all()


def test_surprise_is_at_the_frame_that_the_step_is_taken_from():
    """A body that turns at frame 7 surprises there and nowhere else."""
    turn = np.concatenate([np.tile([1.0, 0.0], (7, 1)), np.tile([0.0, 1.0], (7, 1))])
    x = np.concatenate([np.zeros((1, 2)), turn.cumsum(0)])
    x = np.stack([x, x[::-1] * [1, -1]], 1)  # the other turns at frame 7 too
    dataset = make_trajectories(x, fps=10, resolution=0.0)
    surprise = inertial_surprise(dataset, Scale.of(dataset))
    assert surprise.dims == ("trajectory", "time", "body")
    assert np.isnan(surprise[:, [0, -1]]).all()
    np.testing.assert_array_equal(surprise.argmax("time"), 7)
    others = np.delete(surprise.to_numpy()[0], [0, 7, 14], axis=0)
    assert np.ptp(others) < 1e-9


def test_noise_is_no_less_than_the_resolution():
    x = np.arange(40.0).reshape(2, 20, 1, 1) * np.ones(2)
    dataset = make_trajectories(x, fps=10, resolution=[0.5, 0.0])
    surprise = inertial_surprise(dataset, Scale.of(dataset)).to_numpy()[:, 1:-1]
    unit = Scale.of(dataset).unit
    for row, sigma in enumerate((0.5 / math.sqrt(12), 1e-4 * unit)):
        np.testing.assert_allclose(surprise[row], -2 * stats.norm.logpdf(0, scale=sigma))


def test_surprise_per_data_unit_moves_by_the_log_of_the_unit():
    dataset = recordings()
    scaled = dataset.assign(position=100 * dataset["position"])
    scaled = scaled.assign_coords(resolution=100 * dataset["resolution"])
    one, other = (inertial_surprise(d, Scale.of(d)) for d in (dataset, scaled))
    np.testing.assert_allclose(other, one + 2 * math.log(100), rtol=1e-9)
