"""Statistics of motion against closed forms and plain loops, and the measures that compare them."""

import cmath
import inspect
import math
import textwrap
import tracemalloc
from dataclasses import replace

import numpy as np
import pytest
import scipy.stats
import xarray as xr

from pyro_animacy.criticism import comparison, judgement, statistics
from pyro_animacy.criticism.aligned import align, each_draw, share_lost
from pyro_animacy.criticism.comparison import (
    KEPT,
    _distance_p,
    compare,
    posterior_predictive_p,
)
from pyro_animacy.criticism.in_short import in_short
from pyro_animacy.criticism.statistics import (
    AT_EDGE,
    LAG,
    NEAR_BALL,
    ORDERED_PAIRS,
    PAIRS,
    STATISTICS,
    WINDOW,
    WITH_BALL,
    Scene,
    Statistic,
    acceleration,
    approach_rate,
    at_edge,
    curvature,
    heading_to_other,
    inter_body_distance,
    near_ball,
    speed,
    step_autocorrelation,
    straightness,
    turning_angle,
)
from pyro_animacy.errors import ConfigError, DataError, RunError

FPS = 20.0


def scene(bodies: int = 1, fps: float = FPS, side: float = 10.0, ball: bool = False) -> Scene:
    """Bodies in the square [0, side]^2; the last may be a ball."""
    names = [f"b{index}" for index in range(bodies)]
    moves = [True] * (bodies - ball) + [False] * ball
    size = np.full(2, side)
    return Scene(fps, tuple(names), tuple(moves), size, np.zeros(2), size)


def circle(radius: float, omega: float, frames: int = 50, fps: float = FPS) -> np.ndarray:
    """One body on a circle: (time, 1, 2)."""
    angle = omega * np.arange(frames) / fps
    return radius * np.stack([np.cos(angle), np.sin(angle)], -1)[:, None]


def recording(
    position: np.ndarray, resolution: float = 0.0, units: str = "m", match: bool = False
) -> xr.Dataset:
    """(trajectory, time, body, 2) in the schema; of a `match`, scenes of the same moment."""
    trajectories, frames, bodies, _ = position.shape
    names = [f"t{index}" for index in range(trajectories)]
    return xr.Dataset(
        {"position": (("trajectory", "time", "body", "space"), position)},
        {
            "trajectory": names,
            "recording": ("trajectory", ["match"] * trajectories if match else names),
            "start": ("trajectory", [0] * trajectories),
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
        speed(position, scene()), 2 * radius * abs(math.sin(half)) * FPS, rtol=1e-12
    )
    np.testing.assert_allclose(
        acceleration(position, scene()), radius * (2 * math.sin(half) * FPS) ** 2, rtol=1e-9
    )
    np.testing.assert_allclose(turning_angle(position, scene()), omega / FPS, rtol=1e-9)
    bent = 2 * half / (2 * radius * abs(math.sin(half)))
    np.testing.assert_allclose(curvature(position, scene()), bent, rtol=1e-9)
    chord = abs(math.sin(round(WINDOW * FPS) * half) / (round(WINDOW * FPS) * math.sin(half)))
    np.testing.assert_allclose(straightness(position, scene()), chord, rtol=1e-9)
    turned = math.cos(omega / FPS * round(LAG * FPS))
    np.testing.assert_allclose(step_autocorrelation(position, scene()), turned, rtol=1e-9)


def test_circle_in_the_limit_of_many_frames():
    radius, omega, fps = 2.0, 1.5, 4000.0
    position = circle(radius, omega, frames=100, fps=fps)
    fine = scene(fps=fps)
    np.testing.assert_allclose(speed(position, fine), radius * abs(omega), rtol=1e-6)
    np.testing.assert_allclose(acceleration(position, fine), radius * omega**2, rtol=1e-4)
    np.testing.assert_allclose(curvature(position, fine), 1 / radius, rtol=1e-5)


def test_curvature_of_a_circle_misses_by_the_square_of_the_angle_over_24():
    for angle in (0.4, 0.2, 0.1):
        miss = curvature(circle(3.0, angle * FPS), scene()) * 3 - 1
        np.testing.assert_allclose(miss, angle**2 / 24, rtol=0.01)


def test_straight_line():
    step = np.array([0.3, -0.4])
    position = (np.arange(30)[:, None] * step)[:, None]
    np.testing.assert_allclose(speed(position, scene()), 0.5 * FPS)
    np.testing.assert_allclose(acceleration(position, scene()), 0, atol=1e-9)
    np.testing.assert_allclose(turning_angle(position, scene()), 0, atol=1e-12)
    np.testing.assert_allclose(curvature(position, scene()), 0, atol=1e-12)
    assert straightness(position, scene()).shape == (10, 1)
    np.testing.assert_allclose(straightness(position, scene()), 1)
    assert (straightness(position, scene()) <= 1).all()
    np.testing.assert_allclose(step_autocorrelation(position, scene()), 1)


def test_out_and_back_is_not_straight():
    there = np.minimum(np.arange(21.0), 20 - np.arange(21.0))
    position = np.stack([there, 0 * there], -1)[:, None]
    assert straightness(position, scene()).item() == 0
    np.testing.assert_allclose(step_autocorrelation(position, scene()), -1)


def test_turning_back_is_pi_and_standing_still_has_no_angle():
    back = np.array([[0.0, 0], [1, 0], [0, 0], [0, 0], [0, 1], [0, 2], [0, 1]])[:, None]
    angle = turning_angle(back, scene())[:, 0]
    np.testing.assert_array_equal(angle, [np.pi, np.nan, np.nan, 0.0, np.pi])
    np.testing.assert_array_equal(curvature(back, scene())[:, 0], angle)  # steps of length one
    # A cross product of -0.0 is where atan2 would answer -pi.
    minus_zero = np.array([[0.0, 0], [1, 0], [0, -0.0]])[:, None]
    for flip in ([1, 1], [1, -1], [-1, 1], [-1, -1]):
        assert turning_angle(minus_zero * flip, scene()).item() == np.pi


def test_a_body_that_never_moves_has_no_path_to_speak_of():
    still = np.ones((30, 2, 2))
    for function in (turning_angle, curvature, straightness, step_autocorrelation):
        assert np.isnan(function(still, scene(2))).all()
    assert np.isnan(heading_to_other(still, scene(2))).all()
    assert (approach_rate(still, scene(2)) == 0).all()


def test_a_perfect_chaser_has_angle_zero_and_one_that_flees_pi():
    rng = np.random.default_rng(20)
    prey = rng.normal(size=(40, 2)).cumsum(0)
    chaser, fugitive = prey[0] + 5, prey[0] - 5
    path = []
    for target in prey:
        path.append([chaser, target, fugitive])
        chaser = chaser + 0.1 * (target - chaser)
        fugitive = fugitive - 0.1 * (target - fugitive)
    angle = heading_to_other(np.array(path), scene(3))
    names = ORDERED_PAIRS.labels(scene(3))
    np.testing.assert_allclose(angle[:, names.index("b0 → b1")], 0, atol=1e-7)
    np.testing.assert_allclose(angle[:, names.index("b2 → b1")], np.pi)
    assert angle[:, names.index("b1 → b0")].min() > 1e-3


def test_bodies_that_know_nothing_of_each_other_head_at_right_angles_on_average():
    angle = heading_to_other(
        np.random.default_rng(21).normal(size=(20000, 2, 2, 2)).cumsum(1), scene(2)
    )
    error = math.pi / math.sqrt(12 * 20000)  # the angle is uniform on [0, pi]
    assert np.abs(angle.mean((0, 1)) - math.pi / 2).max() < 4 * error


def test_constant_approach():
    time = np.arange(10) / FPS
    first = np.stack([3 * time, 0 * time], -1)
    second = np.stack([10 - 2 * time, 0 * time], -1)
    np.testing.assert_allclose(approach_rate(np.stack([first, second], 1), scene(2)), 5)
    np.testing.assert_allclose(approach_rate(np.stack([first, second], 1)[::-1], scene(2)), -5)


def test_autocorrelation_of_steps_that_decay_geometrically():
    rng = np.random.default_rng(22)
    keep, lag = 0.9, round(LAG * FPS)
    step = np.zeros((2000, 400, 1, 2))
    step[:, 0] = rng.normal(size=(2000, 1, 2))
    for t in range(1, 400):
        step[:, t] = keep * step[:, t - 1] + math.sqrt(1 - keep**2) * rng.normal(size=(2000, 1, 2))
    rho = step_autocorrelation(step.cumsum(1), scene())
    assert rho.shape == (2000, 1, 1)
    assert rho.mean() == pytest.approx(keep**lag, abs=0.01)
    walk = step_autocorrelation(rng.normal(size=(2000, 200, 1, 2)).cumsum(1), scene())
    assert abs(walk.mean()) < 4 * walk.std() / math.sqrt(2000)


def test_near_the_ball_and_at_the_edge_to_the_millimetre():
    square, hair = scene(2, side=100.0, ball=True), 1e-9
    limit = NEAR_BALL * math.hypot(100, 100)
    body = np.array([[50 + limit - hair, 50], [50 + limit + hair, 50], [50, 50], [np.nan, 50]])
    ball = np.full((4, 2), 50.0)
    found = near_ball(np.stack([body, ball], 1), square)
    np.testing.assert_array_equal(found[:, 0], [1, 0, 1, np.nan])
    margin = AT_EDGE * 100
    places = [[margin - hair, 50], [margin + hair, 50], [50, 101], [50, 100 - margin - 1e-6]]
    one = scene(side=100.0)
    np.testing.assert_array_equal(at_edge(np.array(places)[:, None], one)[:, 0], [1, 0, 1, 0])


def test_a_corridor_has_edges_at_its_ends_only():
    corridor = Scene(FPS, ("b0",), (True,), *np.array([[10.0, 0], [0, 5], [10, 5]]))
    along = np.array([[0.0, 5], [5, 5], [10, 5]])[:, None]
    np.testing.assert_array_equal(at_edge(along, corridor)[:, 0], [1, 0, 1])
    point = Scene(FPS, ("b0",), (True,), *np.array([[0.0, 0], [5, 5], [5, 5]]))
    assert np.isnan(at_edge(along, point)).all()


def brute(name, x, scene):
    """A statistic by plain loops over complex positions (time, body), from its formula alone."""
    frames, bodies = x.shape
    fps, window, lag = scene.fps, max(2, round(WINDOW * scene.fps)), max(1, round(LAG * scene.fps))
    (left, bottom), (right, top) = scene.low, scene.high

    def turn(d, e):
        z = e * d.conjugate()
        if d == 0 or e == 0 or cmath.isnan(z):
            return math.nan
        return math.pi if z.imag == 0 and z.real < 0 else cmath.phase(z)

    def steps(i):
        return [x[t + 1, i] - x[t, i] for t in range(frames - 1)]

    def straight(t, i):
        path = sum(abs(d) for d in steps(i)[t : t + window])
        return abs(x[t + window, i] - x[t, i]) / path if path else math.nan

    def bend(t, i):
        d, e = steps(i)[t : t + 2]
        return turn(d, e) / ((abs(d) + abs(e)) / 2) if d and e else math.nan

    def rho(t, i):
        pairs = [*zip(steps(i), steps(i)[lag:], strict=False)]
        pairs = [(d, e) for d, e in pairs if not cmath.isnan(d * e)]
        size = math.sqrt(sum(abs(d) ** 2 for d, _ in pairs) * sum(abs(e) ** 2 for _, e in pairs))
        return sum((d * e.conjugate()).real for d, e in pairs) / size if size else math.nan

    def edge(t, i):
        z, margin = x[t, i], AT_EDGE * min(scene.extent)
        if cmath.isnan(z):
            return math.nan
        return min(z.real - left, right - z.real, z.imag - bottom, top - z.imag) <= margin

    def near(t, i, j):
        gap = abs(x[t, i] - x[t, j])
        return math.nan if math.isnan(gap) else gap <= NEAR_BALL * math.hypot(*scene.extent)

    each = [(i,) for i in range(bodies)]
    pairs = [(i, j) for i in range(bodies) for j in range(bodies) if i < j]
    arrows = [(i, j) for i in range(bodies) for j in range(bodies) if i != j]
    balls = [(i, j) for i, j in arrows if scene.animate[i] and not scene.animate[j]]
    length, groups, value = {
        "speed": (frames - 1, each, lambda t, i: abs(steps(i)[t]) * fps),
        "acceleration": (
            frames - 2,
            each,
            lambda t, i: abs(x[t + 2, i] - 2 * x[t + 1, i] + x[t, i]) * fps**2,
        ),
        "turning_angle": (frames - 2, each, lambda t, i: turn(*steps(i)[t : t + 2])),
        "curvature": (frames - 2, each, bend),
        "straightness": (frames - window, each, straight),
        "step_autocorrelation": (1, each, rho),
        "at_edge": (frames, each, edge),
        "inter_body_distance": (frames, pairs, lambda t, i, j: abs(x[t, i] - x[t, j])),
        "approach_rate": (
            frames - 1,
            pairs,
            lambda t, i, j: (abs(x[t, i] - x[t, j]) - abs(x[t + 1, i] - x[t + 1, j])) * fps,
        ),
        "heading_to_other": (
            frames - 1,
            arrows,
            lambda t, i, j: abs(turn(x[t, j] - x[t, i], x[t + 1, i] - x[t, i])),
        ),
        "near_ball": (frames, balls, near),
    }[name]
    found = [[value(t, *group) for group in groups] for t in range(max(0, length))]
    return np.array(found, float).reshape(max(0, length), len(groups))


@pytest.mark.parametrize("name", STATISTICS)
def test_against_plain_loops_on_a_thousand_random_scenes(name):
    """Some stand still, some are not observed, some are shorter than the window."""
    rng = np.random.default_rng(23)
    defined = 0
    for _ in range(1000):
        frames, bodies = rng.integers(1, 9), rng.integers(1, 4)
        position = rng.normal(scale=4, size=(frames, bodies, 2))
        if rng.random() < 0.4:  # on a coarse grid bodies rest, meet and turn right back
            position = position.round() / 2
        if rng.random() < 0.4:
            position[rng.random((frames, bodies)) < 0.1] = np.nan
        about = Scene(
            float(rng.choice([1.0, 2.0, 3.0])),
            tuple("abc"[:bodies]),
            tuple(rng.random(bodies) < 0.6),
            rng.uniform(4, 16, 2),
            rng.uniform(-8, -2, 2),
            rng.uniform(2, 8, 2),
        )
        found = STATISTICS[name].function(position, about)
        expected = brute(name, position[..., 0] + 1j * position[..., 1], about)
        assert found.shape == expected.shape
        assert found.shape[1] == len(STATISTICS[name].over.groups(about))
        np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-9)
        defined += np.isfinite(expected).sum()
    assert defined > 1000


@pytest.mark.parametrize("name", STATISTICS)
def test_leading_axes_are_independent(name):
    position = np.random.default_rng(24).normal(size=(2, 3, 30, 4, 2)).cumsum(2)
    position[1, 2, 4, 0] = np.nan
    function, about = STATISTICS[name].function, scene(4, ball=True)
    found = function(position, about)
    for lead in np.ndindex(2, 3):
        np.testing.assert_array_equal(found[lead], function(position[lead], about))


def test_what_was_not_observed_touches_its_own_values_only():
    position = np.random.default_rng(25).normal(size=(60, 3, 2)).cumsum(0)
    about, w = scene(3, ball=True), round(WINDOW * FPS)
    whole = {name: s.function(position, about) for name, s in STATISTICS.items()}
    position[30, 0] = np.nan
    lost = {
        name: np.argwhere(np.isnan(s.function(position, about)) & np.isfinite(whole[name]))
        for name, s in STATISTICS.items()
    }
    expected = {
        "speed": [(t, 0) for t in (29, 30)],
        "acceleration": [(t, 0) for t in (28, 29, 30)],
        "turning_angle": [(t, 0) for t in (28, 29, 30)],
        "curvature": [(t, 0) for t in (28, 29, 30)],
        "straightness": [(t, 0) for t in range(30 - w, 31)],
        "step_autocorrelation": [],
        "at_edge": [(30, 0)],
        "inter_body_distance": [(30, pair) for pair in (0, 1)],
        "approach_rate": [(t, pair) for t in (29, 30) for pair in (0, 1)],
        # 0 -> 1 and 0 -> 2 need two frames of body 0; 1 -> 0 and 2 -> 0 where it was at t
        "heading_to_other": [(29, 0), (29, 1), *((30, arrow) for arrow in (0, 1, 2, 4))],
        "near_ball": [(30, 0)],
    }
    assert {name: [tuple(place) for place in places] for name, places in lost.items()} == expected


POWER = {"speed": 1, "acceleration": 1, "inter_body_distance": 1, "approach_rate": 1}
POWER |= {"curvature": -1}  # of a length; all others have none


@pytest.mark.parametrize("name", STATISTICS)
def test_scaling_laws(name):
    position, about = np.random.default_rng(26).normal(5, 3, (50, 30, 3, 2)), scene(3, ball=True)
    function, by = STATISTICS[name].function, 7.0
    larger = replace(about, extent=by * about.extent, high=by * about.high)  # low is 0
    expected = by ** POWER.get(name, 0) * function(position, about)
    np.testing.assert_allclose(function(by * position, larger), expected, rtol=1e-9)


@pytest.mark.parametrize("name", STATISTICS)
def test_where_the_scene_lies_and_how_it_is_turned_make_no_difference(name):
    position, about = np.random.default_rng(27).normal(5, 3, (50, 30, 3, 2)), scene(3, ball=True)
    function, shift, angle = STATISTICS[name].function, np.array([20.0, -3.0]), 0.7
    moved = replace(about, low=about.low + shift, high=about.high + shift)
    expected = function(position, about)
    np.testing.assert_allclose(function(position + shift, moved), expected, atol=1e-9)
    mirrored = function(position * [1, -1], about)
    if name == "at_edge":  # the only one that knows of axes
        assert not np.array_equal(mirrored, expected)
        return
    spun = position @ np.array(
        [[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]]
    )
    np.testing.assert_allclose(function(spun, about), expected, atol=1e-8)
    sign = -1 if name in ("turning_angle", "curvature") else 1
    np.testing.assert_allclose(mirrored, sign * expected, atol=1e-9)


@pytest.mark.parametrize("name", sorted(set(STATISTICS) - {"heading_to_other"}))
def test_played_backwards(name):
    position, about = np.random.default_rng(28).normal(5, 3, (50, 30, 3, 2)), scene(3, ball=True)
    function = STATISTICS[name].function
    sign = -1 if name in ("turning_angle", "curvature", "approach_rate") else 1
    backwards = function(position[:, ::-1], about)[:, ::-1]
    np.testing.assert_allclose(sign * backwards, function(position, about), atol=1e-9)


def test_groups_of_bodies_and_their_names():
    three = scene(3, ball=True)
    assert inter_body_distance(np.zeros((5, 1, 2)), scene()).shape == (5, 0)
    assert [over.labels(scene()) for over in (PAIRS, ORDERED_PAIRS, WITH_BALL)] == [[], [], []]
    assert PAIRS.labels(three) == ["b0 – b1", "b0 – b2", "b1 – b2"]
    assert ORDERED_PAIRS.labels(three) == [
        "b0 → b1", "b0 → b2", "b1 → b0", "b1 → b2", "b2 → b0", "b2 → b1",
    ]  # fmt: skip
    assert WITH_BALL.labels(three) == ["b0 – b2", "b1 – b2"]
    assert WITH_BALL.labels(scene(3)) == []


def test_the_scene_of_a_recording():
    position = np.random.default_rng(29).normal(size=(3, 9, 3, 2))
    position[0, 0, 0, 0] = np.nan  # its y does not count either
    position[0, 0, 0, 1] = 100.0
    position[..., 2, :] *= 9
    observed = recording(position).assign_coords(body=["a", "b", "Ball"])
    about = Scene.of(observed)
    assert (about.fps, about.bodies, about.animate) == (
        FPS,
        ("a", "b", "Ball"),
        (True, True, False),
    )
    players = position[:, :, :2].reshape(3, 18, 2)
    players[0, 0] = players[0, 1]
    every = players.reshape(-1, 2)
    np.testing.assert_array_equal(about.extent, every.max(0) - every.min(0))
    for row in range(3):
        others = np.delete(players, row, axis=0).reshape(-1, 2)
        np.testing.assert_array_equal(about.low[row], others.min(0))
        np.testing.assert_array_equal(about.high[row], others.max(0))
    np.testing.assert_array_equal(about.part(slice(1, 3)).low, about.low[1:])
    told = Scene.of(observed.assign_coords(animate=("body", [False, True, True])))
    assert told.animate == (False, True, True)
    nobody = Scene.of(observed.assign_coords(animate=("body", [False] * 3)))
    np.testing.assert_allclose(nobody.extent[0], np.ptp(position[..., 2, 0]))
    unseen = Scene.of(recording(np.full((2, 3, 1, 2), np.nan)))
    assert np.isnan([unseen.extent, *unseen.low, *unseen.high]).all()
    alone = Scene.of(recording(position[1:2]))
    assert np.isfinite(alone.extent).all()
    assert np.isnan(at_edge(position[1:2], alone)).all()
    assert np.isfinite(near_ball(position[1:2], replace(alone, animate=(True, True, False)))).all()


@pytest.mark.parametrize("trajectories", [3, 10])
def test_recordings_from_the_model_itself_are_at_the_edge_as_often_as_its_draws(trajectories):
    """On average over 1,000 recordings of walks; not so in a box around the recording itself."""
    rng = np.random.default_rng(40)
    observed = recording(np.empty((trajectories, 15, 1, 2)))
    gain, biased = [], []
    for _ in range(1000):
        walks = rng.normal(size=(2, trajectories, 15, 1, 2)).cumsum(2)
        observed["position"].values[:] = walks[0]  # a Dataset takes longer to make than to use
        about = Scene.of(observed)
        whole = replace(about, low=about.low.min(0), high=about.high.max(0))
        for found, box in ((gain, about), (biased, whole)):
            own, other = at_edge(walks, box).mean((1, 2, 3))
            found.append(own - other)
    z, z_biased = (np.mean(x) / np.std(x) * math.sqrt(1000) for x in (gain, biased))
    assert abs(z) < 4
    assert z_biased < -6


def test_every_statistic_is_explained():
    for statistic in STATISTICS.values():
        assert inspect.getdoc(statistic.function)
        assert statistic.units.format(units="m")
        assert len({statistic.more, statistic.less, "too large", "too small"}) == 4, statistic.name


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


@pytest.mark.parametrize("values", [["a"], [None], [[1, 2], [3]], [1j]])
def test_samples_that_are_no_numbers_are_refused_by_name(values):
    said = r"replicated_summaries (holds values of type|is ragged)"
    with pytest.raises(DataError, match=said):
        posterior_predictive_p(1.0, values)
    with pytest.raises(DataError, match="position"):
        speed(values, scene())


@pytest.mark.parametrize("name", STATISTICS)
def test_a_statistic_takes_lists_and_refuses_positions_of_other_bodies(name):
    position, about = np.random.default_rng(42).normal(5, 3, (30, 3, 2)), scene(3, ball=True)
    function = STATISTICS[name].function
    np.testing.assert_array_equal(function(position.tolist(), about), function(position, about))
    for wrong in (position[:, :2], position[..., :1], position[0], 1.0):
        with pytest.raises(DataError, match=r"position has the shape .* \(\.\.\., time, 3, 2\)"):
            function(wrong, about)


def test_comparison_against_direct_computation():
    rng = np.random.default_rng(3)
    position = rng.normal(size=(4, 12, 2, 2)).cumsum(1)
    position[2, 7:] = np.nan
    draws = rng.normal(size=(2, 5, 4, 12, 2, 2)).cumsum(3) * 1.3
    observed = recording(position)
    comparisons = compare(*align(observed, tree(observed, draws)))
    assert [(c.statistic.name, c.body) for c in comparisons] == [
        (s.name, body) for s in STATISTICS.values() for body in s.over.labels(scene(2))
    ]
    units = {c.statistic.name: c.units for c in comparisons}
    assert units["acceleration"] == "m/s²"
    assert units["curvature"] == "rad/m"

    turning = comparisons[5]
    recorded = turning_angle(position, scene(2))[..., 1]
    seen = np.isfinite(recorded)
    made = turning_angle(draws, scene(2))[..., 1].reshape(10, *recorded.shape)[:, seen]
    assert turning.observed_mean == pytest.approx(np.abs(recorded[seen]).mean())
    assert turning.observed_sd == pytest.approx(np.abs(recorded[seen]).std())
    np.testing.assert_allclose(turning.generated_means, np.abs(made).mean(1))
    np.testing.assert_allclose(turning.generated_sds, np.abs(made).std(1))
    least = (np.abs(made).mean(1) >= turning.observed_mean).mean()
    assert turning.p_mean == min(least, 1 - least)  # no two means are equal
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
    observed = recording(np.concatenate([players, ball], 2), match=True)
    draws = rng.normal(size=(1, 6, 3, 15, 2, 2)).cumsum(3)
    comparisons = {
        (c.statistic.name, c.body): c for c in compare(*align(observed, tree(observed, draws)))
    }
    counts = [comparisons["speed", body].motions for body in ("b0", "b1")]
    assert [*counts, comparisons["inter-body distance", "b0 – b1"].motions] == [3, 1, 3]
    made = speed(draws, scene(2))[0, ..., 1]
    expected = [made[draw, draw % 3].mean() for draw in range(6)]
    np.testing.assert_allclose(comparisons["speed", "b1"].generated_means, expected)
    assert comparisons["speed", "b1"].observed.size == 14


def test_bodies_at_rest_in_the_same_place_are_motions_of_their_own():
    """One of ten moves; of another recording or another moment, those at rest are nine others."""
    position = np.full((10, 50, 1, 2), 5.0)
    position[0] = np.random.default_rng(13).normal(size=(50, 1, 2)).cumsum(0)
    own = recording(position)
    later = recording(position, match=True).assign_coords(start=("trajectory", np.arange(10) * 50))
    for observed in (own, later, own.drop_vars(["recording", "start"])):
        draws = tree(observed, np.repeat(position[None, None], 3, 1))
        found = compare(*align(observed, draws), {"v": STATISTICS["speed"]})[0]
        assert found.motions == 10
        assert found.observed_mean == pytest.approx(speed(position, scene(1)).mean())
    observed["position"][3:] = np.nan
    assert compare(*align(observed, draws), {"v": STATISTICS["speed"]})[0].motions == 3


def test_thinned_draws_keep_the_distribution():
    rng = np.random.default_rng(4)
    position = rng.gamma(2.0, size=(3, 2000, 1, 2)).cumsum(1)
    draws = rng.gamma(2.2, size=(1, 4, 3, 2000, 1, 2)).cumsum(3)
    observed = recording(position)
    fast = compare(*align(observed, tree(observed, draws)))[0]
    assert all(values.size == KEPT for values in fast.generated)
    whole = scipy.stats.wasserstein_distance(
        speed(position, scene()).ravel(), speed(draws, scene()).ravel()
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


@pytest.mark.parametrize("resolution", [[1.0, 1.0], [1.0, 0.0]])
def test_recorded_places_between_the_points_of_a_grid_through_0_are_left(resolution):
    """Pixels whose middles are given, k + 1/2, are where they are in the frames given to a draw."""
    position = np.random.default_rng(6).integers(-2, 3, size=(2, 30, 2, 2)).cumsum(1) + 0.5
    position[0, 0, 1] = np.nan
    observed = recording(position).assign_coords(resolution=("trajectory", resolution))
    wobble = np.random.default_rng(7).uniform(-0.4, 0.4, size=(3, *position.shape))
    wobble[:, np.array(resolution) == 0] = 0
    for seen in each_draw(*align(observed, tree(observed, (position + wobble)[None]))):
        np.testing.assert_array_equal(seen, position)


def test_share_of_generated_positions_that_are_lost():
    position = np.zeros((1, 6, 2, 2))
    position[0, 4, 0] = np.nan
    draws = np.zeros((1, 2, 1, 6, 2, 2))
    draws[0, 0, 0, 3:] = np.inf
    observed = recording(position)
    assert share_lost(*align(observed, tree(observed, draws))) == pytest.approx(5 / 22)


def test_anyone_may_add_a_statistic():
    """As the module's own words say, which are run here."""
    said = "\n".join(x for x in statistics.__doc__.splitlines() if not x or x.startswith("    "))
    names = {"STATISTICS": {}, "Statistic": Statistic}
    exec(textwrap.dedent(said), names)
    assert list(names["STATISTICS"]) == ["height"]
    position = np.random.default_rng(6).normal(size=(2, 5, 2, 2))
    observed = recording(position, units="unknown")
    first, second = compare(
        *align(observed, tree(observed, position[None, None])), names["STATISTICS"]
    )
    assert (first.body, second.body, first.units) == ("b0", "b1", "data units")
    assert first.observed_mean == pytest.approx(position[:, :, 0, 1].mean())
    assert first.distance == 0


def test_a_statistic_of_triples_is_grouped_by_its_bodies():
    """Area of a triangle; two windows that share two of three bodies are two motions."""
    triples = statistics.Over("triple", lambda s: [(0, 1, 2)] if len(s.bodies) == 3 else [], "/")

    def area(position, scene):
        a, b = (position[..., i, :] - position[..., 0, :] for i in (1, 2))
        return np.abs(a[..., 0] * b[..., 1] - a[..., 1] * b[..., 0])[..., None] / 2

    position = np.random.default_rng(30).normal(size=(2, 5, 3, 2))
    position[1, :, :2] = position[0, :, :2]
    observed = recording(position, match=True)
    added = {"area": Statistic("area", area, "{units}²", "of the triangle", triples)}
    (found,) = compare(*align(observed, tree(observed, position[None, None])), added)
    assert (found.body, found.units, found.motions) == ("b0/b1/b2", "m²", 2)


@pytest.mark.parametrize(
    "function",
    [
        lambda position, scene: position[..., 0, 0],
        lambda position, scene: position[..., :1, 0],
        lambda position, scene: position[:1, ..., 0],
    ],
)
def test_a_statistic_of_the_wrong_shape_is_named(function):
    position = np.random.default_rng(31).normal(size=(3, 5, 2, 2))
    observed = recording(position)
    wrong = {"odd": Statistic("odd", function, "", "wrong")}
    with pytest.raises(ConfigError, match=r"statistic 'odd' gives .* one value for each body"):
        compare(*align(observed, tree(observed, position[None, None])), wrong)


def test_blocks_make_no_difference(monkeypatch):
    rng = np.random.default_rng(32)
    position = rng.normal(size=(7, 30, 3, 2)).cumsum(1)
    observed = recording(position)
    pair = align(observed, tree(observed, rng.normal(size=(2, 3, 7, 30, 3, 2)).cumsum(3)))
    whole = compare(*pair)
    monkeypatch.setattr(comparison, "BLOCK", 2 * 30 * 3 * 2)
    for one, other in zip(whole, compare(*pair), strict=True):
        np.testing.assert_array_equal(one.generated, other.generated)


def test_shares_of_frames_are_compared_by_cohens_h():
    rng = np.random.default_rng(33)
    observed = recording(rng.uniform(0, 100, size=(4, 500, 1, 2)))
    inner = rng.uniform(5, 95, size=(1, 30, 4, 500, 1, 2))
    edge = next(
        c
        for c in compare(*align(observed, tree(observed, inner)))
        if c.statistic.name == "time at the edge"
    )
    p, q = edge.observed_mean, edge.generated_mean
    assert p == pytest.approx(1 - 0.9**2, abs=0.02)
    assert edge.distance == pytest.approx(abs(p - q), abs=1e-3)
    assert edge.effect == pytest.approx(2 * abs(math.asin(p**0.5) - math.asin(q**0.5)))
    verdict = judgement.judge(edge)
    assert verdict.grade == "wrong"
    assert verdict.sentence.startswith("too seldom at the edge (")
    # Close shares: h is their difference in standard deviations, as of any other statistic.
    middle = recording(rng.uniform(0, 100, size=(4, 500, 1, 2)))
    also = rng.uniform(0, 100, size=(1, 30, 4, 500, 1, 2))
    also = compare(*align(middle, tree(middle, also)), {"edge": STATISTICS["at_edge"]})[0]
    assert also.effect == pytest.approx(
        abs(also.observed_mean - also.generated_mean) / also.observed.std(), rel=0.05
    )
    assert judgement.judge(also).grade == "right"


def test_a_share_that_was_never_recorded_is_wrong_only_where_it_is_seen():
    """Never near the ball in the recording; in the draws in one frame of 1,000, or of 10."""
    position = np.zeros((1, 1000, 2, 2))
    position[0, :, 0, 0] = 50 + np.arange(1000)
    observed = recording(position).assign_coords(body=["a", "ball"])
    for every, grade in ((1000, "right"), (10, "wrong")):
        draws = np.tile(position, (1, 25, 1, 1, 1, 1))
        draws[..., ::every, 0, 0] = 0
        near = compare(*align(observed, tree(observed, draws)), {"n": STATISTICS["near_ball"]})[0]
        assert near.observed_mean == 0
        assert judgement.judge(near).grade == grade


@pytest.mark.parametrize("near", [0.0, 1.0])
def test_a_share_that_most_draws_have_too_is_within_chance(near):
    """Near the ball in no frame, as 60 draws of 100, or in every one; the others differ in 30 %."""
    position = np.zeros((1, 40, 2, 2))
    position[..., 0] = np.arange(40)[:, None]
    position[:, :, 0, 1] = 50 * (1 - near)
    observed = recording(position).assign_coords(body=["a", "ball"])
    draws = np.tile(position, (1, 100, 1, 1, 1, 1))
    draws[:, 60:, :, :12, 0, 1] = 50 * near
    found = compare(*align(observed, tree(observed, draws)), {"n": STATISTICS["near_ball"]})[0]
    assert (found.observed_mean, found.p_mean) == (near, 0.6)
    assert found.effect > 0.3
    verdict = judgement.judge(found)
    assert verdict.grade == "near"
    assert verdict.sentence.endswith("which may be chance")


def test_one_recorded_value_is_judged_by_its_tails():
    rng = np.random.default_rng(34)
    walk = rng.normal(size=(1, 60, 1, 2)).cumsum(1)
    steady = np.arange(60.0)[:, None, None] * np.ones(2)
    one = {"rho": STATISTICS["step_autocorrelation"]}

    def judged(position, draws=40):
        observed = recording(position)
        made = tree(observed, rng.normal(size=(1, draws, 1, 60, 1, 2)).cumsum(3))
        return judgement.judge(compare(*align(observed, made), one)[0])

    assert judged(walk) == judgement.Verdict("right", "as recorded, within chance")
    wrong = judged(steady[None])
    assert wrong.grade == "wrong"
    assert wrong.sentence.startswith("loses its velocity too soon (")
    assert wrong.sentence.endswith(", recorded 1.00)")
    assert judged(walk, draws=3).grade == "undefined"


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
    with pytest.raises(
        RunError, match=r"0\.1 to 0\.25 s, are not within .* recording, 0 to 0\.1 s"
    ):
        align(observed.isel(time=slice(3)), tree(part, draws))


def test_a_part_of_a_recording_is_aligned_by_its_own_times():
    position = np.random.default_rng(41).normal(size=(4, 8, 2, 2))
    observed = recording(position)
    part = observed.isel(time=slice(2, 8))
    last = part.isel(time=slice(3, None))
    for whole in (observed, part, last):
        cut, _ = align(whole, tree(last, last["position"].values[None, None]))
        np.testing.assert_array_equal(cut["position"].values, position[:, 5:])
    with pytest.raises(RunError, match="are not within those of the recording"):
        align(last, tree(part, part["position"].values[None, None]))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda ds: ds.drop_vars("position"), "hold no posterior_predictive/position"),
        (lambda ds: ds.isel(chain=0), "have the dimensions draw, trajectory, time, body, space; "),
        (lambda ds: ds.isel(draw=slice(0)), "hold no draw at all"),
        (lambda ds: ds.isel(trajectory=slice(0)), "hold no trajectory at all"),
        (lambda ds: ds.isel(body=slice(0)), "hold no body at all"),
        (lambda ds: ds.isel(time=slice(0)), "hold no time at all"),
        (lambda ds: ds.assign_coords(time=ds.time + 9), "9 to 9.35 s, .* recording, 0 to 0.35 s"),
        (lambda ds: ds.assign_coords(time=ds.time + 0.1), "0.1 to 0.45 s, are not within"),
        (lambda ds: ds.assign_coords(time=ds.time - 0.1), "-0.1 to 0.25 s, are not within"),
        (lambda ds: ds.assign_coords(time=ds.time * np.nan), "begin with nan, nan, nan; expected"),
        (
            lambda ds: ds.assign_coords(time=list("abcdefgh")),
            "begin with a, b, c; expected seconds",
        ),
        (lambda ds: ds.isel(time=slice(0, None, 2)), "begin with 0, 0.1, 0.2 s, which are not"),
        (lambda ds: ds.isel(time=slice(None, None, -1)), "not consecutive frames of a recording"),
        (lambda ds: ds.isel(trajectory=[0, 1, 1]), "hold trajectory 't1' 2 times"),
        (lambda ds: ds.isel(body=[0, 0, 0]), "hold body 'b0' 3 times"),
        (lambda ds: ds.drop_vars("trajectory"), "draws of trajectory 0, which is not in the rec"),
        (lambda ds: ds.assign_coords(body=["b0", "x"]), "draws of body 'x', which is not in the"),
        (lambda ds: ds.assign_coords(space=["x", "z"]), "draws of space 'z', which is not in the"),
    ],
)
def test_draws_that_do_not_fit_are_refused_by_name(change, said):
    position = np.random.default_rng(35).normal(size=(4, 8, 2, 2))
    observed = recording(position)
    draws = change(tree(observed, position[None, None])["posterior_predictive"].to_dataset())
    with pytest.raises(RunError, match=said):
        align(observed, xr.DataTree.from_dict({"posterior_predictive": draws}))


@pytest.mark.parametrize("draws", [None, {}, "draws.nc", xr.Dataset()])
def test_what_is_no_tree_of_draws_is_refused_by_name(draws):
    observed = recording(np.zeros((1, 3, 1, 2)))
    with pytest.raises(RunError, match=f"draws are a {type(draws).__name__}; expected .* DataTree"):
        align(observed, draws)
    with pytest.raises(DataError, match="the recording is a NoneType"):
        align(None, tree(observed, np.zeros((1, 1, 1, 3, 1, 2))))


def test_a_recording_without_positions_or_frame_rate_is_refused():
    position = np.zeros((1, 3, 1, 2))
    observed = recording(position)
    draws = tree(observed, position[None, None])
    for broken in (observed.drop_vars("position"), observed.drop_attrs()):
        with pytest.raises(DataError, match="no variable `position` or no attribute `fps`"):
            align(broken, draws)


def test_dimensions_and_axes_may_come_in_any_order():
    rng = np.random.default_rng(36)
    observed = recording(rng.normal(size=(3, 9, 2, 2)).cumsum(1))
    draws = tree(observed, rng.normal(size=(2, 3, 3, 9, 2, 2)).cumsum(3))
    made = draws["posterior_predictive"].to_dataset()
    turned = made.isel(space=[1, 0], body=[1, 0]).transpose("space", "time", ...)
    shuffled = xr.DataTree.from_dict({"posterior_predictive": turned})
    plain = {(c.statistic.name, c.body): c for c in compare(*align(observed, draws))}
    for c in compare(*align(observed.transpose("space", ...), shuffled)):
        if c.statistic.name in ("speed", "turning angle", "time at the edge"):
            other = plain[c.statistic.name, c.body]
            np.testing.assert_allclose(c.generated_means, other.generated_means)
            assert c.observed_mean == pytest.approx(other.observed_mean)


@pytest.mark.parametrize("case", ["some nan", "all nan", "infinite", "unseen", "one", "one frame"])
def test_poor_draws_and_recordings_give_a_reduced_result(case):
    rng = np.random.default_rng(37)
    position = rng.normal(size=(3, 30, 2, 2)).cumsum(1)
    draws = rng.normal(size=(1, 4, 3, 30, 2, 2)).cumsum(3)
    if case == "some nan":
        draws[:, 1] = np.nan
        draws[:, 2, :, 20:] = np.nan
    elif case == "all nan":
        draws[:] = np.nan
    elif case == "infinite":
        draws[:] = -np.inf
    elif case == "unseen":
        position[:] = np.nan
    elif case == "one":
        position, draws = position[:1, :, :1], draws[:, :1, :1, :, :1]
    elif case == "one frame":
        position, draws = position[:, :1], rng.normal(size=(1, 40, 3, 1, 2, 2))
    observed = recording(position)
    pair = align(observed, tree(observed, draws))
    found = compare(*pair)
    grades = {(c.statistic.name, c.body): judgement.judge(c).grade for c in found}
    lost = {"some nan": 0.25 + 0.25 / 3, "all nan": 1, "infinite": 1}.get(case, 0)
    assert share_lost(*pair) == pytest.approx(lost)
    if case in ("all nan", "infinite", "unseen"):
        assert set(grades.values()) == {"undefined"}
    elif case == "some nan":
        fast = found[0]
        assert np.isnan(fast.generated_means).tolist() == [False, True, False, False]
        assert fast.p_mean in (0, 1 / 3)
        assert fast.generated[2].size == 3 * 19
    elif case == "one":
        assert {body for _, body in grades} == {"b0"}
        assert all(len(c.generated) == 1 for c in found)
    elif case == "one frame":
        defined = {name for (name, _), grade in grades.items() if grade != "undefined"}
        assert defined == {"time at the edge", "inter-body distance"}
    words = in_short(found, {}, [], share_lost(*pair))
    assert "nan" not in " ".join((*words.right, *words.near, *words.wrong, *words.attempt)).lower()


def test_draws_on_disk_are_read_one_at_a_time(tmp_path, monkeypatch):
    monkeypatch.setattr(comparison, "ALL_KEPT", 1)
    rng = np.random.default_rng(38)
    observed = recording(rng.normal(size=(40, 100, 2, 2)).cumsum(1))
    draws = tree(observed, rng.normal(size=(1, 120, 40, 100, 2, 2)).astype(np.float32))
    draws.to_netcdf(tmp_path / "draws.nc", engine="h5netcdf")
    size = draws["posterior_predictive"]["position"].nbytes
    fast = {"speed": STATISTICS["speed"]}
    expected = compare(*align(observed, draws), fast)
    with xr.open_datatree(tmp_path / "draws.nc", engine="h5netcdf") as lazy:
        tracemalloc.start()
        found = compare(*align(observed, lazy), fast, progress=False)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < 0.5 * size
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one.generated, other.generated)


def test_fewer_values_are_kept_of_very_many(monkeypatch):
    rng = np.random.default_rng(39)
    observed = recording(rng.normal(size=(3, 800, 1, 2)).cumsum(1))
    pair = align(observed, tree(observed, rng.normal(size=(1, 3, 3, 800, 1, 2)).cumsum(3)))
    full = compare(*pair)[0]
    monkeypatch.setattr(comparison, "ALL_KEPT", 1)
    few = compare(*pair)[0]
    assert {values.size for values in few.generated} == {comparison.LEAST_KEPT}
    assert few.distance == pytest.approx(full.distance, rel=0.05, abs=0.05)
    np.testing.assert_array_equal(few.generated_means, full.generated_means)


def test_a_shape_that_mean_and_spread_do_not_show_is_more_than_chance():
    """A recording at two speeds, draws of the same mean and spread that are even: p(W1) sees it."""
    rng = np.random.default_rng(8)
    two = 10 + 2 * rng.choice([-1.0, 1.0], size=(1, 400, 1))
    even = 10 + 2 * rng.normal(size=(1, 40, 1, 400, 1))
    step, steps = (np.stack([along, 0 * along], -1) for along in (two, even))
    observed = recording(step.cumsum(1))
    fast = compare(*align(observed, tree(observed, steps.cumsum(3))))[0]
    assert fast.effect < 0.6
    assert fast.p_mean > 0.05
    assert fast.p_distance == 0


@pytest.mark.parametrize("draws", [1, 5])
def test_a_recording_of_the_true_model_lies_furthest_as_often_as_any_draw(draws):
    """Recording and draws are alike, so P(p = 0) = 1 / (draws + 1)."""
    generator, first = np.random.default_rng(0), 0
    for _ in range(1000):
        centre = generator.normal(0, 0.3, draws + 1)
        own, *others = np.sort(generator.normal(centre[:, None], 1, (draws + 1, 60)))
        first += _distance_p(own, others, np.concatenate(others)) == 0
    share = 1 / (draws + 1)
    assert abs(first / 1000 - share) < 3 * np.sqrt(share * (1 - share) / 1000)
