"""The soccer simulator against closed forms of its mechanics and symmetries of its script."""

import math
import sys
from dataclasses import replace

import numpy as np
import pytest

from pyro_animacy.data.soccer import SoccerConfig, _decide, simulate_soccer
from pyro_animacy.data.soccer_court import Match
from pyro_animacy.errors import ConfigError, MissingExtra

pytest.importorskip("pymunk", reason="the soccer extra is not installed")

CONFIG = SoccerConfig()
EXACT = replace(CONFIG, resolution=0.0)
CORNERS = [200 + 200j, 200 + 500j]  # players out of the way


@pytest.fixture(scope="module")
def games():
    return simulate_soccer(30, 200, seed=1, config=EXACT)


# ---------------------------------------------------------------------------------- the schema


def test_schema_and_animate_labels():
    ds = simulate_soccer(3, 40, fps=20, seed=5)
    assert ds.position.dims == ("trajectory", "time", "body", "space")
    assert ds.position.shape == (3, 40, 3, 2)
    assert list(ds.body.values) == ["player_1", "player_2", "ball"]
    assert list(ds.animate.values) == [True, True, False]
    assert ds.attrs["fps"] == 20
    assert ds.attrs["units"] == "court units"
    assert len(set(ds.recording.values)) == 3
    np.testing.assert_allclose(ds.time.values, np.arange(40) / 20)


def test_positions_lie_on_the_stated_resolution():
    ds = simulate_soccer(2, 60)
    np.testing.assert_array_equal(ds.resolution.values, 0.1)
    steps = ds.position.values / 0.1
    np.testing.assert_allclose(steps, np.round(steps), atol=1e-6)
    exact = simulate_soccer(2, 60, config=EXACT)
    assert np.abs(ds.position.values - exact.position.values).max() <= 0.05 + 1e-9


def test_repeatable_by_seed():
    first, again, other = (simulate_soccer(2, 50, seed=s).position.values for s in (3, 3, 4))
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).max() > 10


def test_a_trajectory_does_not_depend_on_the_count():
    few, many = (simulate_soccer(n, 50, seed=2).position.values for n in (2, 5))
    np.testing.assert_array_equal(few, many[:2])
    assert all(np.abs(many[i] - many[j]).max() > 10 for i in range(5) for j in range(i))


def test_the_frame_rate_only_says_how_often_one_looks():
    slow = simulate_soccer(2, 41, fps=20).position.values
    fast = simulate_soccer(2, 40 * 3 + 1, fps=60).position.values
    np.testing.assert_array_equal(slow, fast[:, ::3])


# ------------------------------------------------------------------------------- the mechanics


def test_a_free_ball_obeys_the_damping_law():
    """v(t) = v0 d^t and x(t) - x0 = v0 (1 - d^t) / -ln d."""
    v0 = 300.0
    match = Match(CONFIG, [*CORNERS, 500 + 350j], complex(v0))
    for step in range(1, 241):
        match.advance([0j, 0j])
        t = step / CONFIG.physics_rate
        kept = CONFIG.damping**t
        assert match.velocities()[-1] == pytest.approx(complex(v0 * kept), rel=1e-9)
        rolled = (match.places()[-1] - (500 + 350j)).real
        expected = v0 * (1 - kept) / -math.log(CONFIG.damping)
        # The integrator is of first order: at most one step's way off.
        assert abs(rolled - expected) <= v0 / CONFIG.physics_rate


def test_only_contact_and_damping_change_the_balls_momentum(games):
    """Away from walls and players, displacements per frame shrink by exactly d^(1/fps)."""
    position = games.position.values
    ball = position[:, :, 2]
    gap = np.linalg.norm(position[:, :, :2] - ball[:, :, None], axis=-1).min(-1) - 50
    wall = np.minimum(ball - 100, [1400, 600] - ball).min(-1) - 20
    clear = (gap > 60) & (wall > 60)  # nothing comes that far and back within a frame
    free = clear[:, :-2] & clear[:, 1:-1] & clear[:, 2:]
    assert free.sum() > 500
    step = np.diff(ball, axis=1)
    kept = CONFIG.damping ** (1 / 20)
    np.testing.assert_allclose(step[:, 1:][free], kept * step[:, :-1][free], rtol=1e-9, atol=1e-9)


def test_a_collision_is_newtons():
    """Head on, no damping: momentum is kept, and velocities follow from the restitution 0.3."""
    config = replace(CONFIG, damping=1.0)
    match = Match(config, [700 + 350j, 200 + 500j, 500 + 350j], 200 + 0j)
    for _ in range(150):
        match.advance([0j, 0j])
    player, _, ball = (v.real for v in match.velocities())
    m, n, e, v = config.ball_mass, config.player_mass, 0.3, 200.0
    assert ball == pytest.approx((m - e * n) / (m + n) * v, rel=1e-6)
    assert player == pytest.approx((1 + e) * m / (m + n) * v, rel=1e-6)


def test_a_kick_gives_its_impulse():
    match = Match(CONFIG, [*CORNERS, 700 + 350j], 10 + 20j)
    match.kick(1j)
    assert match.velocities()[-1] == pytest.approx(10 + 20j + 900j / CONFIG.ball_mass)


def test_force_accelerates_a_player_up_to_its_top_speed():
    config = replace(CONFIG, damping=1.0)
    match = Match(config, [200 + 200j, 200 + 500j, 700 + 350j], 0j)
    for step in range(1, 121):
        match.advance([complex(config.force), 0j])
        expected = min(config.force / config.player_mass * step / 120, config.top_speed)
        assert match.velocities()[0] == pytest.approx(complex(expected), rel=1e-9)


def test_the_top_speed_is_respected_in_play():
    strong = replace(EXACT, force=20000.0)
    position = simulate_soccer(5, 600, fps=120, config=strong).position.values
    speed = np.linalg.norm(np.diff(position[:, :, :2], axis=1), axis=-1) * 120
    # Displacement also holds the solver's correction of overlaps, a few units/s and rare.
    assert np.quantile(speed, 0.99) <= strong.top_speed * (1 + 1e-6)
    assert speed.max() <= 1.1 * strong.top_speed


def test_everything_stays_in_the_court(games):
    """Players in the field, the ball in field or goals; overlap at most a physics step's way."""
    position = games.position.values
    overlap = 16.0
    players, ball = position[:, :, :2], position[:, :, 2]
    assert np.all(players >= 100 + 30 - overlap)
    assert np.all(players <= np.array([1400, 600]) - 30 + overlap)
    assert np.all(ball >= np.array([0, 100]) + 20 - overlap)
    assert np.all(ball <= np.array([1500, 600]) - 20 + overlap)
    in_goal = (ball[..., 0] < 100) | (ball[..., 0] > 1400)
    assert np.all(np.abs(ball[in_goal, 1] - 350) <= 100 - 20 + overlap)


def test_nothing_jumps(games):
    step = np.linalg.norm(np.diff(games.position.values, axis=1), axis=-1) * 20
    assert step[..., :2].max() <= 1.1 * CONFIG.top_speed
    assert step[..., 2].max() <= 2 * (CONFIG.kick / CONFIG.ball_mass + CONFIG.top_speed)


# ---------------------------------------------------------------------------------- the script


def test_players_chase_a_ball_that_is_far(games):
    position = games.position.values
    for player in (0, 1):
        to_ball = position[:, :-1, 2] - position[:, :-1, player]
        distance = np.linalg.norm(to_ball, axis=-1)
        run = np.diff(position[:, :, player], axis=1) * 20
        approach = (run * to_ball).sum(-1) / distance
        assert approach[distance > 250].mean() > 100
        assert distance.min(axis=1).max() < 120  # each gets to the ball in every game


def test_the_ball_is_played(games):
    ball = games.position.values[:, :, 2]
    speed = np.linalg.norm(np.diff(ball, axis=1), axis=-1) * 20
    kicks = (np.diff(speed, axis=1) > 300).sum(1)
    assert np.median(kicks) >= 3
    three_seconds = np.lib.stride_tricks.sliding_window_view(speed, 60, axis=1).mean(-1)
    assert np.quantile(three_seconds, 0.01) > 15  # never stuck for long
    assert (ball[..., 0] > 1400).any()
    assert (ball[..., 0] < 100).any()


def test_both_players_follow_the_same_script_in_a_mirror():
    """Mirrored in the middle line with players exchanged, decisions are mirrored."""
    rng = np.random.default_rng(0)

    def mirror(place):
        return complex(CONFIG.width - place.real, place.imag)

    kicks = 0
    for _ in range(300):
        x, y = rng.uniform(130, 1370, 3), rng.uniform(130, 570, 3)
        places = [complex(a, b) for a, b in zip(x, y, strict=True)]
        places[0] = places[2] + 53 * np.exp(1j * rng.uniform(0, 2 * np.pi))
        velocities = [complex(a, b) for a, b in rng.normal(0, 5, (3, 2))]
        run, kick = _decide(0, places, velocities, False, CONFIG)
        others = [mirror(places[1]), mirror(places[0]), mirror(places[2])]
        back = [-velocities[i].conjugate() for i in (1, 0, 2)]
        mirrored_run, mirrored_kick = _decide(1, others, back, False, CONFIG)
        assert mirrored_run == pytest.approx(-run.conjugate(), abs=1e-6)
        assert (kick is None) == (mirrored_kick is None)
        if kick is not None:
            kicks += 1
            assert mirrored_kick == pytest.approx(-kick.conjugate(), abs=1e-9)
            assert abs(kick) == pytest.approx(1)
    assert kicks > 10


def test_an_aligned_player_near_the_goal_shoots_at_it():
    ball = 1200 + 400j
    aim = (1400 + 350j - ball) / abs(1400 + 350j - ball)
    at_rest = [0j, 0j, 0j]
    _, kick = _decide(0, [ball - 53 * aim, 300 + 300j, ball], at_rest, False, CONFIG)
    assert kick == pytest.approx(aim)
    _, far = _decide(0, [ball - 60 * aim, 300 + 300j, ball], at_rest, False, CONFIG)
    assert far is None  # out of reach
    run, scored = _decide(0, [ball - 53 * aim, 300 + 300j, ball], at_rest, True, CONFIG)
    assert scored is None
    assert run.real < 0


# ---------------------------------------------------------------------------------- the errors


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"fps": 50}, "fps: 50"),
        ({"fps": 0}, "fps: 0"),
        ({"fps": math.nan}, "fps: nan"),
        ({"trajectories": 0}, "trajectories is 0; it must be"),
        ({"frames": 1}, "frames is 1; it must be"),
        ({"seed": -1}, "seed is -1; it must be"),
        ({"config": replace(CONFIG, decision_rate=7)}, "decision_rate: 7"),
        ({"config": replace(CONFIG, damping=1.5)}, "damping is 1.5; it must be"),
        ({"config": replace(CONFIG, damping=0.0)}, "damping is 0.0; it must be"),
        ({"config": replace(CONFIG, player_mass=-1.0)}, "player_mass is -1.0; it must be"),
        ({"config": replace(CONFIG, force=math.inf)}, "force is inf; it must be"),
        ({"config": replace(CONFIG, kick=1e5)}, "kick: 100000"),
        ({"config": replace(CONFIG, height=300.0)}, "no room"),
        ({"config": replace(CONFIG, player_radius=200.0)}, "no room"),
    ],
)
def test_unusable_values_are_named(arguments, words):
    with pytest.raises(ConfigError, match=words) as caught:
        simulate_soccer(**{"trajectories": 1, "frames": 5, **arguments})
    assert "\n" not in str(caught.value)


def test_a_missing_pymunk_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "pymunk", None)
    with pytest.raises(MissingExtra, match=r'pip install "pyro-animacy\[soccer\]"'):
        simulate_soccer(1, 5)
