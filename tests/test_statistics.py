"""Statistics of motion against closed forms and plain loops, and the measures that compare them."""

import math

import numpy as np
import pytest
import scipy.stats
import xarray as xr

from pyro_animacy.criticism.comparison import KEPT, align, compare, each_draw, share_lost
from pyro_animacy.criticism.statistics import (
    STATISTICS,
    Statistic,
    acceleration,
    inter_body_distance,
    posterior_predictive_p,
    speed,
    turning_angle,
    wasserstein,
)
from pyro_animacy.errors import RunError

FPS = 20.0


def circle(radius: float, omega: float, frames: int = 50, fps: float = FPS) -> np.ndarray:
    """One body on a circle: (time, 1, 2)."""
    angle = omega * np.arange(frames) / fps
    return radius * np.stack([np.cos(angle), np.sin(angle)], -1)[:, None]


def recording(position: np.ndarray, resolution: float = 0.0, units: str = "m") -> xr.Dataset:
    """(trajectory, time, body, 2) in the schema."""
    trajectories, frames, bodies, _ = position.shape
    names = [f"t{index}" for index in range(trajectories)]
    return xr.Dataset(
        {"position": (("trajectory", "time", "body", "space"), position)},
        {
            "trajectory": names,
            "time": np.arange(frames) / FPS,
            "body": [f"b{index}" for index in range(bodies)],
            "space": ["x", "y"],
            "resolution": ("trajectory", np.full(trajectories, resolution)),
        },
        {"fps": FPS, "units": units, "source": "test"},
    )


def tree(observed: xr.Dataset, draws: np.ndarray) -> xr.DataTree:
    """(chain, draw, trajectory, time, body, 2) beside the recording."""
    coords = {name: observed[name].values for name in ("trajectory", "time", "body", "space")}
    dims = ("chain", "draw", "trajectory", "time", "body", "space")
    return xr.DataTree.from_dict(
        {
            "posterior_predictive": xr.Dataset({"position": (dims, draws)}, coords),
            "observed_data": observed[["position"]],
        }
    )


@pytest.mark.parametrize(("radius", "omega"), [(2.0, 1.5), (0.3, -4.0)])
def test_circle(radius, omega):
    position = circle(radius, omega)
    half = omega / FPS / 2  # the chord of a step subtends twice this
    np.testing.assert_allclose(
        speed(position, FPS), 2 * radius * abs(math.sin(half)) * FPS, rtol=1e-12
    )
    np.testing.assert_allclose(
        acceleration(position, FPS), radius * (2 * math.sin(half) * FPS) ** 2, rtol=1e-9
    )
    np.testing.assert_allclose(turning_angle(position, FPS), omega / FPS, rtol=1e-9)


def test_circle_in_the_limit_of_many_frames():
    radius, omega, fps = 2.0, 1.5, 4000.0
    position = circle(radius, omega, frames=100, fps=fps)
    np.testing.assert_allclose(speed(position, fps), radius * abs(omega), rtol=1e-6)
    np.testing.assert_allclose(acceleration(position, fps), radius * omega**2, rtol=1e-4)


def test_straight_line():
    step = np.array([0.3, -0.4])
    position = (np.arange(10)[:, None] * step)[:, None]
    np.testing.assert_allclose(speed(position, FPS), 0.5 * FPS)
    np.testing.assert_allclose(acceleration(position, FPS), 0, atol=1e-9)
    np.testing.assert_allclose(turning_angle(position, FPS), 0, atol=1e-12)


def test_turning_back_is_pi_and_standing_still_has_no_angle():
    back = np.array([[0.0, 0], [1, 0], [0, 0], [0, 0], [0, 1], [0, 2], [0, 1]])[:, None]
    angle = turning_angle(back, FPS)[:, 0]
    np.testing.assert_array_equal(angle, [np.pi, np.nan, np.nan, 0.0, np.pi])
    # A cross product of -0.0 is where atan2 would answer -pi.
    minus_zero = np.array([[0.0, 0], [1, 0], [0, -0.0]])[:, None]
    for flip in ([1, 1], [1, -1], [-1, 1], [-1, -1]):
        assert turning_angle(minus_zero * flip, FPS).item() == np.pi


def test_against_loops_and_nan_stays_where_it_is():
    rng = np.random.default_rng(0)
    position = rng.normal(size=(2, 3, 9, 4, 2))
    position[1, 2, 4, 0] = np.nan
    fast, hard, turn, apart = (s.function(position, FPS) for s in STATISTICS.values())
    assert fast.shape == (2, 3, 8, 4)
    assert hard.shape == turn.shape == (2, 3, 7, 4)
    assert apart.shape == (2, 3, 9, 6)
    for place in np.ndindex(2, 3, 7, 4):
        *lead, time, body = place
        before, here, after = (position[(*lead, time + k, body)] for k in range(3))
        first, second = complex(*(here - before)), complex(*(after - here))
        np.testing.assert_allclose(fast[place], abs(first) * FPS)
        np.testing.assert_allclose(hard[place], abs(second - first) * FPS**2)
        ratio = second / first
        np.testing.assert_allclose(turn[place], math.atan2(ratio.imag, ratio.real))
    for *lead, time in np.ndindex(2, 3, 9):
        pairs = [(i, j) for i in range(4) for j in range(i + 1, 4)]
        for pair, (i, j) in enumerate(pairs):
            gap = position[(*lead, time, i)] - position[(*lead, time, j)]
            np.testing.assert_allclose(apart[(*lead, time, pair)], math.hypot(*gap))
    assert np.isnan(fast).sum() == 2
    assert np.isnan(hard).sum() == np.isnan(turn).sum() == 3


def test_one_body_has_no_pairs():
    assert inter_body_distance(np.zeros((5, 1, 2)), FPS).shape == (5, 0)
    assert STATISTICS["inter_body_distance"].labels(["a"]) == []
    assert STATISTICS["inter_body_distance"].labels(["a", "b", "c"]) == ["a – b", "a – c", "b – c"]


def test_tail_probability_against_enumeration():
    rng = np.random.default_rng(1)
    for _ in range(20):
        replicated = rng.integers(0, 5, size=rng.integers(1, 30)).astype(float)
        observed = float(rng.integers(-1, 6))
        count = sum(1 for value in replicated if value >= observed)
        assert posterior_predictive_p(observed, replicated) == count / len(replicated)
    assert posterior_predictive_p(1.0, np.array([np.nan, 2.0, 0.0])) == 0.5
    assert math.isnan(posterior_predictive_p(math.nan, np.ones(3)))
    assert math.isnan(posterior_predictive_p(1.0, np.full(3, np.nan)))


def test_wasserstein_against_scipy():
    rng = np.random.default_rng(2)
    for n, m in [(1, 1), (5, 5), (40, 17), (300, 1000)]:
        first, second = rng.normal(size=n), rng.normal(1, 3, size=m).round(1)
        expected = scipy.stats.wasserstein_distance(first, second)
        np.testing.assert_allclose(wasserstein(first, second), expected, rtol=1e-12, atol=1e-14)
        with_nan = np.append(first, [np.nan, np.inf])
        np.testing.assert_allclose(wasserstein(with_nan, second), expected, rtol=1e-12)
    assert math.isnan(wasserstein(np.array([np.nan]), np.ones(2)))


def test_comparison_against_direct_computation():
    rng = np.random.default_rng(3)
    position = rng.normal(size=(4, 12, 2, 2)).cumsum(1)
    position[2, 7:] = np.nan
    draws = rng.normal(size=(2, 5, 4, 12, 2, 2)).cumsum(3) * 1.3
    observed = recording(position)
    comparisons = compare(*align(observed, tree(observed, draws)))
    assert [(c.statistic.name, c.body) for c in comparisons] == [
        *(
            (name, body)
            for name in ("speed", "acceleration", "turning angle")
            for body in ("b0", "b1")
        ),
        ("inter-body distance", "b0 – b1"),
    ]
    assert [c.units for c in comparisons[::2]] == ["m/s", "m/s²", "rad", "m"]

    turning = comparisons[5]
    recorded = turning_angle(position, FPS)[..., 1]
    seen = np.isfinite(recorded)
    made = turning_angle(draws, FPS)[..., 1].reshape(10, *recorded.shape)[:, seen]
    assert turning.observed_mean == pytest.approx(np.abs(recorded[seen]).mean())
    assert turning.observed_sd == pytest.approx(np.abs(recorded[seen]).std())
    np.testing.assert_allclose(turning.generated_means, np.abs(made).mean(1))
    np.testing.assert_allclose(turning.generated_sds, np.abs(made).std(1))
    assert turning.p_mean == (np.abs(made).mean(1) >= turning.observed_mean).mean()
    distances = [scipy.stats.wasserstein_distance(draw, made.ravel()) for draw in made]
    expected = scipy.stats.wasserstein_distance(recorded[seen], made.ravel())
    assert turning.p_distance == (np.array(distances) >= expected).mean()
    assert turning.distance == pytest.approx(expected)
    assert turning.effect == pytest.approx(expected / recorded[seen].std())


def test_a_motion_that_several_windows_share_counts_once():
    """Three scenes of one ball: it moved once, and each draw shows one of its three."""
    rng = np.random.default_rng(12)
    players, ball = rng.normal(size=(2, 3, 15, 1, 2)).cumsum(2)
    ball[1:] = ball[0]
    observed = recording(np.concatenate([players, ball], 2))
    draws = rng.normal(size=(1, 6, 3, 15, 2, 2)).cumsum(3)
    comparisons = {
        (c.statistic.name, c.body): c for c in compare(*align(observed, tree(observed, draws)))
    }
    counts = [comparisons["speed", body].motions for body in ("b0", "b1")]
    assert [*counts, comparisons["inter-body distance", "b0 – b1"].motions] == [3, 1, 3]
    made = speed(draws, FPS)[0, ..., 1]
    expected = [made[draw, draw % 3].mean() for draw in range(6)]
    np.testing.assert_allclose(comparisons["speed", "b1"].generated_means, expected)
    assert comparisons["speed", "b1"].observed.size == 14


def test_thinned_draws_keep_the_distribution():
    rng = np.random.default_rng(4)
    position = rng.gamma(2.0, size=(3, 2000, 1, 2)).cumsum(1)
    draws = rng.gamma(2.2, size=(1, 4, 3, 2000, 1, 2)).cumsum(3)
    observed = recording(position)
    fast = compare(*align(observed, tree(observed, draws)))[0]
    assert all(values.size == KEPT for values in fast.generated)
    whole = scipy.stats.wasserstein_distance(
        speed(position, FPS).ravel(), speed(draws, FPS).ravel()
    )
    assert fast.distance == pytest.approx(whole, rel=0.01)


def test_draws_are_seen_as_the_recording_was():
    position = np.zeros((1, 6, 1, 2))
    position[0, 4] = np.nan
    observed = recording(position, resolution=0.5)
    wobble = np.random.default_rng(5).uniform(-0.24, 0.24, size=(1, 3, 1, 6, 1, 2))
    pair = align(observed, tree(observed, wobble + np.array([1.0, 2.5])))
    for seen in each_draw(*pair):
        assert np.isnan(seen[0, 4]).all()
        np.testing.assert_array_equal(seen[0, [0, 1, 2, 3, 5], 0], np.tile([1.0, 2.5], (5, 1)))
    still = {c.statistic.name: c for c in compare(*pair)}
    assert still["speed"].distance == 0
    assert still["speed"].effect == 0
    assert still["turning angle"].observed.size == 0
    assert math.isnan(still["turning angle"].distance)
    without = align(recording(position), tree(observed, wobble))
    assert compare(*without)[0].effect == math.inf


def test_share_of_generated_positions_that_are_lost():
    position = np.zeros((1, 6, 2, 2))
    position[0, 4, 0] = np.nan
    draws = np.zeros((1, 2, 1, 6, 2, 2))
    draws[0, 0, 0, 3:] = np.inf
    observed = recording(position)
    assert share_lost(*align(observed, tree(observed, draws))) == pytest.approx(5 / 22)


def test_anyone_may_add_a_statistic():
    position = np.random.default_rng(6).normal(size=(2, 5, 2, 2))
    observed = recording(position, units="unknown")
    height = Statistic("height", lambda where, fps: where[..., 1], "{units}", "the y coordinate")
    first, second = compare(
        *align(observed, tree(observed, position[None, None])), {"height": height}
    )
    assert (first.body, second.body, first.units) == ("b0", "b1", "data units")
    assert first.observed_mean == pytest.approx(position[:, :, 0, 1].mean())
    assert first.distance == 0


def test_align_selects_and_refuses():
    position = np.random.default_rng(7).normal(size=(4, 8, 2, 2))
    observed = recording(position)
    part = observed.isel(trajectory=[3, 1], time=slice(2, 6), body=[1])
    draws = part["position"].values[None, None]
    cut, generated = align(observed, tree(part, draws))
    np.testing.assert_array_equal(cut["position"].values, draws[0, 0])
    np.testing.assert_array_equal(generated.values, draws)
    with pytest.raises(RunError, match="draws hold no posterior_predictive/position"):
        align(observed, xr.DataTree())
    with pytest.raises(RunError, match="draws of trajectory 't3', which is not in the recording"):
        align(observed.isel(trajectory=[0, 1]), tree(part, draws))
    with pytest.raises(RunError, match="4 frames do not fit the recording's 3"):
        align(observed.isel(time=slice(3)), tree(part, draws))


def test_a_shape_that_mean_and_spread_do_not_show_is_more_than_chance():
    """A recording at two speeds, draws of the same mean and spread that are even: p(W1) sees it."""
    rng = np.random.default_rng(8)
    two = 10 + 2 * rng.choice([-1.0, 1.0], size=(1, 400, 1))
    even = 10 + 2 * rng.normal(size=(1, 40, 1, 400, 1))
    step, steps = (np.stack([along, 0 * along], -1) for along in (two, even))
    observed = recording(step.cumsum(1))
    fast = compare(*align(observed, tree(observed, steps.cumsum(3))))[0]
    assert fast.effect < 0.6
    assert 0.05 < fast.p_mean < 0.95
    assert fast.p_distance == 0
