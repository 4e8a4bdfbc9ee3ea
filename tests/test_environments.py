"""Chase and Soccer against an independent mechanics and symmetries; `make` against raw worlds."""

import cmath
import importlib
import importlib.util
import math
import os
import re
import sys

import numpy as np
import pytest
import torch

gymnasium = pytest.importorskip("gymnasium", reason="the rl extra is not installed")

from gymnasium.utils.env_checker import check_env  # noqa: E402

from pyro_animacy.acting import agent as acting  # noqa: E402
from pyro_animacy.acting.environments import chase, soccer  # noqa: E402
from pyro_animacy.acting.environments import make as making  # noqa: E402
from pyro_animacy.acting.environments.chase import Chase, ChaseConfig  # noqa: E402
from pyro_animacy.acting.environments.make import ActionRepeat, make, resized  # noqa: E402
from pyro_animacy.data.soccer import Command, Game, SoccerConfig  # noqa: E402
from pyro_animacy.errors import ConfigError, MissingExtra, RunError  # noqa: E402

CONFIG = ChaseConfig()
has_pymunk = pytest.mark.skipif(
    importlib.util.find_spec("pymunk") is None, reason="the soccer extra is not installed"
)
has_dm_control = pytest.mark.skipif(
    any(importlib.util.find_spec(x) is None for x in ("dm_control", "shimmy", "imageio")),
    reason="dm_control, shimmy or imageio is not installed",
)
OWN = ["Chase-v0", pytest.param("Soccer-v0", marks=has_pymunk)]


def states(seed, *shape, speed=300.0):
    """Random states of Chase (*shape, 9), also at walls."""
    rng = np.random.default_rng(seed)
    place = rng.uniform(-50, 750, (*shape, 4)).clip(35, 665)
    return torch.from_numpy(
        np.concatenate(
            [place, speed * rng.standard_normal((*shape, 4)), rng.normal(0, 0.5, (*shape, 1))], -1
        )
    )


def pushes(seed, *shape):
    return torch.from_numpy(np.random.default_rng(seed).uniform(-1, 1, (*shape, 2)))


# ------------------------------------------------------------------------------- Chase: mechanics


def by_hand(state, action, noise, c):
    """The equations of the docstring, body by body and coordinate by coordinate."""
    chaser, evader = complex(*state[0:2]), complex(*state[2:4])
    velocity = [complex(*state[4:6]), complex(*state[6:8])]
    theta = state[8]

    def short(u, r):
        return u * min(1, r / abs(u)) if u else u

    def boxed(p):
        low, high = c.radius, c.side - c.radius
        return complex(min(max(p.real, low), high), min(max(p.imag, low), high))

    headings = [cmath.exp(2j * math.pi * k / 16) for k in range(16)]
    worth = []
    for u in headings:
        p = boxed(evader + c.look_ahead * u)
        on = (u.conjugate() * velocity[1]).real
        worth.append(abs(p - chaser) + abs(p - evader) + 60 * on / c.evader_speed)
    weights = [math.exp((x - max(worth)) / 20) for x in worth]
    wanted = c.evader_speed * sum(w * u for w, u in zip(weights, headings, strict=True))
    wanted *= cmath.exp(1j * theta) / sum(weights)
    forces = [
        c.force * short(complex(*action), 1),
        short(c.mass * (wanted - velocity[1]) * 10, c.force),
    ]
    places, tops, h = [chaser, evader], [c.top_speed, c.evader_speed], 0.1 / c.substeps
    for _ in range(c.substeps):
        for b in (0, 1):
            v = short(c.damping**h * velocity[b] + h * forces[b] / c.mass, tops[b])
            x = places[b] + h * v
            places[b] = boxed(x)
            vx = v.real if places[b].real == x.real else 0.0
            vy = v.imag if places[b].imag == x.imag else 0.0
            velocity[b] = complex(vx, vy)
    k = math.exp(-0.1 / c.heading_time)
    theta = k * theta + c.heading_noise * math.sqrt(1 - k * k) * noise
    parts = [f(z) for z in (*places, *velocity) for f in (lambda z: z.real, lambda z: z.imag)]
    return [*parts, theta]


def test_a_step_is_the_equations():
    state, action = states(0, 200), 1.5 * pushes(1, 200)
    noise = torch.from_numpy(np.random.default_rng(2).standard_normal(200))
    after = chase.step(state, action, noise)
    expected = [
        by_hand(*row, CONFIG)
        for row in zip(state.tolist(), action.tolist(), noise.tolist(), strict=True)
    ]
    np.testing.assert_allclose(after, expected, rtol=1e-9, atol=1e-9)


def test_a_batch_is_a_loop():
    state, action = states(3, 1, 5), pushes(4, 7, 5)
    after = chase.step(state, action, torch.zeros(()))
    assert after.shape == (7, 5, 9)
    for i in range(7):
        for j in range(5):
            one = chase.step(state[0, j], action[i, j], torch.zeros(()))
            torch.testing.assert_close(after[i, j], one, rtol=1e-12, atol=1e-9)
            assert one.shape == (9,)
    single = chase.step(state.float(), action, torch.zeros(()))
    assert single.dtype == torch.float32
    torch.testing.assert_close(single.double(), after, rtol=1e-3, atol=0.05)


@pytest.mark.parametrize("turn", ["mirror", "quarter", "transpose"])
def test_the_law_has_the_boxs_symmetries(turn):
    matrix = {
        "mirror": [[-1.0, 0], [0, 1]],
        "quarter": [[0.0, -1], [1, 0]],
        "transpose": [[0.0, 1], [1, 0]],
    }
    m = torch.tensor(matrix[turn], dtype=torch.float64)
    sign = torch.linalg.det(m).item()  # a reflection turns headings round

    def turned(state):
        place = (state[..., :4].unflatten(-1, (2, 2)) - 350) @ m.T + 350
        velocity = state[..., 4:8].unflatten(-1, (2, 2)) @ m.T
        return torch.cat((place.flatten(-2), velocity.flatten(-2), sign * state[..., 8:]), -1)

    state, action, noise = states(5, 300), pushes(6, 300), torch.linspace(-2, 2, 300)
    after = turned(chase.step(state, action, noise))
    torch.testing.assert_close(
        chase.step(turned(state), action @ m.T, sign * noise), after, rtol=1e-9, atol=1e-6
    )


def test_a_free_chaser_only_loses_speed_as_damping_says():
    state = states(7, 50, speed=50.0)
    state[:, 0:2] = 350.0  # 0.5 s at 500 units/s do not lead to a wall
    moving, none = state[:, 4:6], torch.zeros(50, 2)
    for t in range(1, 6):
        state = chase.step(state, none, torch.zeros(()))
        torch.testing.assert_close(state[:, 4:6], moving * CONFIG.damping ** (t / 10))


def test_full_force_gives_its_acceleration_up_to_the_top_speed():
    config = ChaseConfig(damping=1.0, side=5000.0)
    state = states(8, 1)[0]
    state[:2], state[4:6] = 1000.0, 0.0
    for t in range(1, 8):
        state = chase.step(state, torch.tensor([3.0, 4.0]), torch.zeros(()), config)
        speed = min(config.force / config.mass * t / 10, config.top_speed)
        torch.testing.assert_close(state[4:6], speed * torch.tensor([0.6, 0.8]).to(state))


def test_walls_and_speeds_hold():
    """10,000 steps, of pushes that keep to a direction for long and so drive into walls."""
    state, push = states(9, 100), torch.zeros(100, 2)
    rng = torch.Generator().manual_seed(0)
    touched = 0
    for t in range(100):
        if t % 20 == 0:
            push = 3 * torch.randn(100, 2, generator=rng)
        state = chase.step(state, push, torch.randn(100, generator=rng))
        place, speed = state[:, :4], state[:, 4:8].unflatten(-1, (2, 2)).norm(dim=-1)
        assert (place >= 35).all()
        assert (place <= 665).all()
        assert (speed <= torch.tensor([500.0, 375.0]).double() * (1 + 1e-9)).all()
        touched += int((place == 35).sum() + (place == 665).sum())
    assert touched > 1000


def test_what_is_no_number_is_no_push():
    state = states(10, 1)[0]
    bad = torch.tensor([math.nan, math.inf])
    expected = chase.step(state, torch.zeros(2), torch.zeros(()))
    torch.testing.assert_close(chase.step(state, bad, torch.zeros(())), expected)


# ----------------------------------------------------------------------------- Chase: environment


def returns(policy, episodes=4):
    """Mean return, and mean speed of the evader."""
    env, rng = make("Chase-v0"), np.random.default_rng(0)
    total, speed = 0.0, []
    for seed in range(episodes):
        seen, _ = env.reset(seed=seed)
        over = False
        while not over:
            seen, reward, terminated, over, _ = env.step(policy(seen, rng))
            assert not terminated
            total += reward
            speed.append(500 * np.linalg.norm(seen[6:8]))
    assert len(speed) == 100 * episodes
    return total / episodes, np.mean(speed)


def test_pursuit_pays_and_the_evader_runs():
    pursuit, fast = returns(lambda seen, _: (seen[2:4] - seen[:2]) * 100)
    random, slow = returns(lambda _, rng: rng.uniform(-1, 1, 2))
    assert pursuit > 30 > 10 > random
    assert fast > slow > 100  # it does not sit in a corner


def test_reward_is_its_equation():
    env = Chase()
    env.reset(seed=3)
    for action in pushes(11, 50).numpy():
        seen, reward, *_ = env.step(action)
        gap = 350 * np.linalg.norm(seen[:2] - seen[2:4])
        assert reward == pytest.approx(math.exp(-gap / 150), rel=1e-4)
        assert 0 < reward <= 1


def test_the_start_is_apart():
    env = Chase()
    for seed in range(50):
        seen, _ = env.reset(seed=seed)
        assert 350 * np.linalg.norm(seen[:2] - seen[2:4]) >= 200 * (1 - 1e-6)


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("name", OWN)
def test_gymnasiums_own_check(name):
    check_env(gymnasium.make(f"pyro_animacy/{name}", render_mode="rgb_array").unwrapped)


@pytest.mark.parametrize("name", OWN)
def test_repeatable_by_seed(name):
    def episode(seed):
        env = make(name)
        env.action_space.seed(0)
        seen = [env.reset(seed=seed)[0]]
        while True:
            o, r, _, over, _ = env.step(env.action_space.sample())
            seen.append(np.append(o, r))
            if over:
                return np.concatenate(seen)

    first, again, other = episode(5), episode(5), episode(6)
    np.testing.assert_array_equal(first, again)
    assert abs(first - other).max() > 0.1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"force": 0.0}, "chase.force is 0.0"),
        ({"side": math.nan}, "chase.side is nan"),
        ({"damping": 1.5}, "chase.damping is 1.5"),
        ({"side": 300.0}, "no room"),
    ],
)
def test_unusable_values_are_named(arguments, words):
    with pytest.raises(ConfigError, match=words):
        ChaseConfig(**arguments)


# ----------------------------------------------------------------------------------- the pictures


def weight(pixels, background):
    """How far each pixel is from the background, (height, width)."""
    return abs(pixels.astype(float) - background).sum(-1)


@pytest.mark.parametrize("body", [0, 1])
def test_a_body_is_drawn_where_it_is(body):
    """Area and centre of gravity of a disc, the other being nowhere."""
    rng = np.random.default_rng(body)
    for _ in range(20):
        seen = np.full(8, np.nan)
        seen[2 * body : 2 * body + 2] = rng.uniform(-0.9, 0.9, 2)
        pixels = weight(chase.picture(seen), chase.BACKGROUND)
        colour = (chase.CHASER, chase.EVADER)[body]
        cover = pixels / weight(np.array(colour), chase.BACKGROUND)
        assert cover.sum() == pytest.approx(math.pi * 3.2**2, rel=0.03)
        x = (cover.sum(0) * (np.arange(64) + 0.5)).sum() / cover.sum()
        y = (cover.sum(1) * (63.5 - np.arange(64))).sum() / cover.sum()
        np.testing.assert_allclose([x, y], (seen[2 * body : 2 * body + 2] + 1) * 32, atol=0.05)


def test_pictures_of_what_is_nowhere():
    for seen in (np.full(8, np.nan), np.full(8, np.inf), np.full(8, 1e300)):
        assert not weight(chase.picture(seen), chase.BACKGROUND).any()
    empty = soccer.picture(np.full(12, np.nan), 128)
    assert empty.shape == (128, 128, 3)
    assert len(np.unique(empty.reshape(-1, 3), axis=0)) == 4  # outside, field, two goals


def test_soccers_bodies_are_drawn_where_they_are():
    empty = soccer.picture(np.full(12, np.nan)).astype(float)
    for body, radius in enumerate((30, 30, 20)):
        seen = np.full(12, np.nan)
        seen[2 * body : 2 * body + 2] = 0.31, -0.17
        cover = weight(soccer.picture(seen), empty)
        cover /= weight(np.array(soccer._BODIES[body]), soccer._FIELD)
        area = math.pi * radius**2 * (64 / 1500) * (64 / 700)
        assert cover.sum() == pytest.approx(area, rel=0.25)  # some are less than 2 pixels wide
        x = (cover.sum(0) * (np.arange(64) + 0.5)).sum() / cover.sum()
        y = (cover.sum(1) * (63.5 - np.arange(64))).sum() / cover.sum()
        np.testing.assert_allclose([x, y], [1.31 * 32, 0.83 * 32], atol=0.2)


@pytest.mark.parametrize("name", OWN)
def test_rendering_draws_what_is_observed(name):
    draw = {"Chase-v0": chase.picture, "Soccer-v0": soccer.picture}[name]
    env, seer = make(name, render=True), make(name, pixels=True)
    seen, _ = env.reset(seed=1)
    picture, _ = seer.reset(seed=1)
    for _ in range(5):
        np.testing.assert_array_equal(env.render(), draw(seen))
        np.testing.assert_array_equal(picture, draw(seen))
        action = env.action_space.sample()
        seen, picture = env.step(action)[0], seer.step(action)[0]


# ----------------------------------------------------------------------------------------- Soccer


@pytest.fixture
def match():
    pytest.importorskip("pymunk", reason="the soccer extra is not installed")
    env = soccer.Soccer()
    env.reset(seed=0)
    return env


def put(env, *places, velocity=0j):
    """Place player_1, player_2 and the ball, the latter moving."""
    bodies = env.game.match.bodies
    for body, place in zip(bodies, places, strict=True):
        body.position, body.velocity = (place.real, place.imag), (0, 0)
    bodies[-1].velocity = velocity.real, velocity.imag


def test_soccer_pays_the_balls_way_and_goals(match):
    idle = np.zeros(3)
    put(match, 200 + 200j, 200 + 500j, 800 + 350j, velocity=500 + 0j)
    for _ in range(5):  # nobody is near the ball
        before = match.game.match.places()[-1].real
        _, reward, *_ = match.step(idle)
        after = match.game.match.places()[-1].real
        assert reward == pytest.approx((after - before) / 1300, rel=1e-9)
        assert reward > 0
    put(match, 200 + 200j, 1200 + 500j, 1350 + 350j, velocity=800 + 0j)
    assert match.step(idle)[1] > 1
    assert match.step(idle)[1] < 0.5  # once
    put(match, 200 + 200j, 1200 + 500j, 150 + 350j, velocity=-800 + 0j)
    assert match.step(idle)[1] < -1


def test_kicks_are_within_reach_along_the_push(match):
    for gap, kicked in ((3, True), (50, False)):
        put(match, 700 + 350j, 1300 + 500j, 700 + (50 + gap) * 1j + 350j)
        seen, *_ = match.step([0.3, 0.4, 1.0])
        ball = 500 * seen[10:12]
        # After a tenth of a second: the impulse, damped; 1.2 physics steps of it are not.
        expected = 900 * np.array([0.6, 0.8]) * 0.2**0.1 if kicked else np.zeros(2)
        np.testing.assert_allclose(ball, expected, rtol=0.03, atol=1e-6)
    put(match, 700 + 350j, 1300 + 500j, 750 + 403j)
    assert not match.step([0.0, 0.0, 1.0])[0][10:12].any()  # no push, no direction
    put(match, 700 + 350j, 1300 + 500j, 700 + 403j)
    assert not match.step([0.5, -0.5, -1.0])[0][10:12].any()  # not asked for


def test_player_2_decides_as_in_the_simulator():
    """Up to the first contact with what player_1 changed: same forces as in the scripted game."""
    pytest.importorskip("pymunk", reason="the soccer extra is not installed")
    config = SoccerConfig()
    for seed in range(5):
        rng, twin = np.random.default_rng(seed), np.random.default_rng(seed)
        mine, scripted = Game(rng, config), Game(twin, config)
        for _ in range(3):
            mine.decide(rng, Command(1000 + 0j, None))
            scripted.decide(twin)
            assert mine.forces[0] == 1000
            assert mine.forces[1] == scripted.forces[1]
            for _ in range(6):
                mine.advance()
                scripted.advance()


def test_soccer_rates_must_fit():
    with pytest.raises(ConfigError, match="decisions at 15 Hz"):
        soccer.Soccer(config=SoccerConfig(decision_rate=15))
    if importlib.util.find_spec("pymunk"):
        with pytest.raises(gymnasium.error.ResetNeeded):
            soccer.Soccer().step(np.zeros(3))


# ------------------------------------------------------------------------------------------- make


@pytest.mark.parametrize(
    ("name", "features", "controls"),
    [
        ("Chase-v0", 8, 2),
        ("pyro_animacy/Chase-v0", 8, 2),
        pytest.param("Soccer-v0", 12, 3, marks=has_pymunk),
        ("Pendulum-v1", 3, 1),
        ("CartPole-v1", 4, None),
        pytest.param("cartpole-swingup", 5, 1, marks=has_dm_control),
        pytest.param("dm_control/reacher-easy", 6, 2, marks=has_dm_control),
    ],
)
def test_spaces(name, features, controls):
    env = make(name)
    seen, _ = env.reset(seed=0)
    assert env.observation_space.shape == (features,)
    assert env.observation_space.dtype == seen.dtype == np.float32
    space = env.action_space
    if controls is None:
        assert isinstance(space, gymnasium.spaces.Discrete)
    else:
        assert space == gymnasium.spaces.Box(-1.0, 1.0, (controls,), np.float32)
    for _ in range(3):
        seen, reward, *_ = env.step(space.sample())
        assert env.observation_space.contains(seen)
        assert isinstance(reward, float)
    env.close()


def test_actions_are_rescaled_and_repeated():
    """Pendulum's torque goes to 2; k = 3 is three steps of the raw world, rewards summed."""
    env, raw = make("Pendulum-v1", action_repeat=3), gymnasium.make("Pendulum-v1")
    env.reset(seed=0)
    raw.reset(seed=0)
    assert env.metadata["render_fps"] == raw.metadata["render_fps"] / 3
    for action in (-1.0, 0.25, 1.0):
        seen, reward, *_ = env.step(np.array([action], np.float32))
        steps = [raw.step(np.array([2 * action], np.float32)) for _ in range(3)]
        np.testing.assert_array_equal(seen, steps[-1][0])
        assert reward == pytest.approx(sum(step[1] for step in steps), rel=1e-12)


def bare(monkeypatch, **options):
    """Register Bare-v0 with the options; `make` makes it."""
    spec = gymnasium.envs.registration.EnvSpec("Bare-v0", Bare, kwargs=options)
    monkeypatch.setitem(gymnasium.registry, "Bare-v0", spec)


@pytest.mark.parametrize("kind", [np.float32, np.float64])
@pytest.mark.parametrize(("low", "high"), [(-0.1, 0.3), (2e-7, 4e4), (-3.0, -1.0), (0.7, 0.7)])
def test_the_greatest_actions_are_within_the_worlds_bounds(low, high, kind, monkeypatch):
    """However they round; and what is between is the line through both bounds."""
    space = gymnasium.spaces.Box(kind(low), kind(high), (1,), kind)
    bare(monkeypatch, actions=space)
    env, given = make("Bare-v0"), []
    monkeypatch.setattr(env.unwrapped, "step", lambda a: (given.append(a), Bare.step(env, a))[1])
    env.reset(seed=0)
    for action in (-1.0, 1.0, 0.25):
        env.step(np.array([action], np.float32))
    assert all(space.contains(action) for action in given)
    line = [low, high, low + 0.625 * (high - low)]
    assert np.concatenate(given) == pytest.approx(line, rel=1e-6, abs=1e-6 * (high - low))


@pytest.mark.parametrize(
    "space",
    [
        gymnasium.spaces.Box(0, 5, (2,), np.int64),
        gymnasium.spaces.Box(-np.inf, np.inf, (2,)),
        gymnasium.spaces.Box(-1.0, 1.0, (2, 2)),
        gymnasium.spaces.Discrete(3, start=1),
        gymnasium.spaces.MultiDiscrete([2, 3]),
    ],
)
def test_actions_that_cannot_be_taken(space, monkeypatch):
    bare(monkeypatch, actions=space)
    with pytest.raises(ConfigError, match=f"^Bare-v0: its actions are {re.escape(str(space))}; "):
        make("Bare-v0")


def test_an_environment_that_raises_is_named(monkeypatch):
    def fail(self, **_):
        raise ValueError("no such maze")

    with monkeypatch.context() as patch:
        patch.setattr(Bare, "__init__", fail)
        bare(monkeypatch)
        with pytest.raises(
            RunError, match=r"^Bare-v0: .* ValueError as it was made \(no such maze"
        ):
            make("Bare-v0")
    monkeypatch.setattr(Bare, "reset", fail)
    with pytest.raises(RunError, match=r"^Bare-v0: .* ValueError at reset \(no such maze\)"):
        make("Bare-v0", render=True)


def test_an_episode_without_an_end_is_no_episode(monkeypatch):
    bare(monkeypatch)
    monkeypatch.setattr(acting, "LONGEST", 7)
    env = make("Bare-v0")
    with pytest.raises(acting.WorldError, match=r"not ended after 7 steps; .*max_episode_steps"):
        acting.play([env], acting.AtRandom(acting.Controls.of(env)), [0])


def test_repeating_stops_at_an_end():
    env, raw = make("CartPole-v1", action_repeat=7), gymnasium.make("CartPole-v1")
    for each in (env, raw):
        each.reset(seed=0)
    lasted, over = 0, False
    while not over:
        _, _, over, *_ = raw.step(1)
        lasted += 1
    assert lasted % 7  # it ends within a repetition
    total, over = 0.0, False
    while not over:
        _, reward, over, *_ = env.step(1)
        total += reward
    assert total == lasted  # 1 a step


@pytest.mark.parametrize(
    ("name", "asked", "repeat"),
    [
        ("cartpole-swingup", None, 8),
        ("reacher-easy", None, 4),
        ("cheetah-run", None, 4),
        ("finger-spin", None, 2),
        ("ball_in_cup-catch", None, 4),  # 6 in the first release of the paper's code
        ("dm_control/walker-walk", None, 2),
        ("Pendulum-v1", None, 1),
        ("cartpole-swingup", 3, 3),
        ("humanoid-run", None, 1),
    ],
)
def test_the_papers_repeats(name, asked, repeat, monkeypatch):
    monkeypatch.setattr(making, "_world", lambda *_: gymnasium.make("Pendulum-v1"))
    env = make(name, action_repeat=asked)
    while not isinstance(env, ActionRepeat):
        env = env.env
    assert env.repeat == repeat


def test_pixels_of_a_world_with_a_screen():
    env = make("Pendulum-v1", pixels=True, size=50)
    picture, _ = env.reset(seed=0)
    assert env.observation_space == gymnasium.spaces.Box(0, 255, (50, 50, 3), np.uint8)
    large = env.render()
    assert large.shape == (500, 500, 3)
    blocks = large.reshape(50, 10, 50, 10, 3).mean((1, 3))
    np.testing.assert_allclose(picture, blocks, atol=1)
    moved = env.step(np.array([1.0], np.float32))[0]
    assert moved.dtype == np.uint8
    assert (moved != picture).any()
    assert resized(picture, 50) is picture
    env.close()


@pytest.mark.slow
def test_pixels_that_are_observed_already():
    pytest.importorskip("Box2D", reason="the rl extra is not installed")
    env = make("CarRacing-v3", pixels=True, size=48, action_repeat=4)
    picture, _ = env.reset(seed=0)
    assert picture.shape == (48, 48, 3)
    assert env.action_space.shape == (3,)
    assert env.metadata["render_fps"] == 12.5
    env.close()
    with pytest.raises(ConfigError, match="pictures only; give --pixels true"):
        make("CarRacing-v3")


class Bare(gymnasium.Env):
    """Gymnasium's interface and no more: no ``render_mode``, nothing drawn."""

    def __init__(self, shape=(2,), dtype=np.float32, actions=None):
        self.action_space = actions or gymnasium.spaces.Box(-1.0, 1.0, (1,))
        self.observation_space = gymnasium.spaces.Box(0, 255, shape, dtype)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return self.observation_space.sample(), {}

    def step(self, action):
        return self.observation_space.sample(), 0.0, False, False, {}


def test_an_environment_of_ones_own_needs_only_the_interface(monkeypatch):
    picture = {"shape": (64, 64, 3), "dtype": np.uint8}
    for name, options in (("Bare-v0", {}), ("Picture-v0", picture)):
        spec = gymnasium.envs.registration.EnvSpec(name, Bare, kwargs=options)
        monkeypatch.setitem(gymnasium.registry, name, spec)
    assert make("Bare-v0").reset(seed=0)[0].shape == (2,)
    assert make("Picture-v0", pixels=True).reset(seed=0)[0].shape == (64, 64, 3)
    for name, options in (
        ("Bare-v0", {"pixels": True}), ("Bare-v0", {"render": True}),
        ("Picture-v0", {"pixels": True, "render": True}),
    ):  # fmt: skip
        with pytest.raises(RunError, match=f"^{name} draws no pictures"):
            make(name, **options)


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("Chase-v1", {}, "no environment 'Chase-v1'; did you mean Chase-v0"),
        ("pendulum-v1", {}, "did you mean Pendulum-v1"),
        ("cartpole_swingup", {}, "cartpole-swingup"),
        ("qqqqqq", {}, "there are Chase-v0, Soccer-v0, gymnasium's"),
        ("Chase-v0", {"size": 0}, "size is 0; it must be at least 1"),
        ("Chase-v0", {"action_repeat": 0}, "action_repeat is 0; it must be at least 1"),
    ],
)
def test_what_cannot_be_made_is_named(name, options, words):
    with pytest.raises(ConfigError, match=words) as caught:
        make(name, **options)
    assert "\n" not in str(caught.value)


def test_missing_libraries_are_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "shimmy", None)
    with pytest.raises(MissingExtra, match=r"cartpole-swingup needs the extra rl, .*shimmy"):
        make("cartpole-swingup")
    monkeypatch.setitem(sys.modules, "gymnasium", None)
    monkeypatch.delitem(sys.modules, "pyro_animacy.acting.environments")
    with pytest.raises(MissingExtra, match=r'pip install "pyro-animacy\[rl\]"'):
        importlib.import_module("pyro_animacy.acting.environments")


# ------------------------------------------------------------------------------------- dm_control


@has_dm_control
def test_dm_control_is_itself():
    """The observations in their order, in float32, and the rewards, of dm_control without gym."""
    chosen = os.environ.get("MUJOCO_GL")
    env = make("cartpole-swingup", action_repeat=None)
    assert os.environ.get("MUJOCO_GL") == chosen
    suite = importlib.import_module("dm_control.suite")
    raw = suite.load("cartpole", "swingup", task_kwargs={"random": np.random.RandomState(4)})
    seen, _ = env.reset(seed=4)
    now = raw.reset()
    assert env.metadata["render_fps"] == pytest.approx(100 / 8)
    for action in np.linspace(-1, 1, 9, dtype=np.float32):
        np.testing.assert_array_equal(
            seen, np.concatenate(list(now.observation.values())).astype(np.float32)
        )
        total = 0.0
        for _ in range(8):
            now = raw.step(np.array([action]))
            total += now.reward
        seen, reward, *_ = env.step(np.array([action]))
        assert reward == pytest.approx(total, rel=1e-6)


@has_dm_control
def test_a_task_that_dm_control_lacks():
    with pytest.raises(ConfigError, match="did you mean cartpole-swingup"):
        make("cartpole-swingupp")


@has_dm_control
def test_dm_control_from_pixels():
    try:
        env = make("cartpole-swingup", pixels=True, action_repeat=8)
    except (RunError, MissingExtra):
        pytest.skip("no graphics library that draws without a screen")
    picture, _ = env.reset(seed=0)
    assert picture.shape == (64, 64, 3)
    assert picture.std() > 5
    for _ in range(5):
        moved, *_ = env.step(np.array([1.0], np.float32))
    assert (moved != picture).mean() > 0.001
    env.close()


@has_dm_control
def test_without_graphics_vectors_still_come(monkeypatch):
    make("cartpole-swingup")  # imported, if it was not
    render = sys.modules["dm_control._render"]
    monkeypatch.setattr(render, "Renderer", render.Renderer)  # put back after it was reloaded
    monkeypatch.setattr(render, "BACKEND", "off")
    monkeypatch.setattr(making, "_GL", {"egl": "libNone.so.1"})
    monkeypatch.delenv("MUJOCO_GL", raising=False)
    with pytest.raises(RunError, match=r"libNone.*MUJOCO_GL=egl.*libosmesa6"):
        make("cartpole-swingup", pixels=True)
    assert "MUJOCO_GL" not in os.environ
    make("cartpole-swingup").reset(seed=0)
