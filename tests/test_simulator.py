"""The true simulator against the world itself."""

import importlib.util

import numpy as np
import pytest
import torch

gymnasium = pytest.importorskip("gymnasium", reason="the rl extra is not installed")

from pyro_animacy.acting.environments.chase import Chase, ChaseConfig  # noqa: E402
from pyro_animacy.acting.environments.make import ActionRepeat, make  # noqa: E402
from pyro_animacy.acting.planners import identity  # noqa: E402
from pyro_animacy.acting.simulator import TrueSimulator  # noqa: E402
from pyro_animacy.errors import ConfigError  # noqa: E402

has_pymunk = pytest.mark.skipif(
    importlib.util.find_spec("pymunk") is None, reason="the soccer extra is not installed"
)
has_dm_control = pytest.mark.skipif(
    any(importlib.util.find_spec(x) is None for x in ("dm_control", "shimmy", "imageio")),
    reason="dm_control, shimmy or imageio is not installed",
)


def controls(horizon, candidates, environments, size, seed=0):
    generator = torch.Generator().manual_seed(seed)
    shape = (horizon, candidates, environments, size)
    return torch.rand(shape, generator=generator, dtype=torch.float64) * 2 - 1


def stepped(env, actions):
    """Rewards (H,) of actions (H, A) in the world itself."""
    return [env.step(action)[1] for action in actions.numpy()]


def test_chase_imagines_what_it_does_without_noise():
    """theta goes on from where it is, and back to 0; the action is repeated."""
    for repeat in (1, 3):
        env = ActionRepeat(Chase(config=ChaseConfig(heading_noise=0.0)), repeat)
        env.reset(seed=0)
        env.unwrapped.state[8] = 0.6
        simulator, actions = TrueSimulator(env), controls(12, 5, 1, 2)
        belief = simulator.belief()
        imagined = simulator.imagine(belief, actions)
        assert imagined.shape == (12, 5, 1)
        for j in range(5):
            env.unwrapped.state = belief[0].clone()
            np.testing.assert_allclose(imagined[:, j, 0], stepped(env, actions[:, j, 0]), 1e-9)
        assert identity(imagined) is imagined


def test_the_mean_heading_is_what_chase_imagines():
    """With noise in the world, one step's reward does not depend on it, and later ones do."""
    env = make("Chase-v0")
    env.reset(seed=1)
    simulator, actions = TrueSimulator(env), controls(8, 1, 1, 2)
    imagined = simulator.imagine(simulator.belief(), actions)[:, 0, 0]
    seen = np.array(stepped(env, actions[:, 0, 0]))
    assert imagined[0] == pytest.approx(seen[0], rel=1e-9)
    assert abs(imagined.numpy() - seen)[1:].max() > 1e-6


def test_several_worlds_at_once():
    envs = [make("Chase-v0") for _ in range(3)]
    for seed, env in enumerate(envs):
        env.reset(seed=seed)
    simulators = [TrueSimulator(env) for env in envs]
    beliefs, actions = [each.belief() for each in simulators], controls(6, 4, 3, 2)
    together = simulators[0].imagine(torch.cat(beliefs), actions)
    for e in range(3):
        alone = simulators[e].imagine(beliefs[e], actions[:, :, e : e + 1])
        torch.testing.assert_close(together[:, :, e : e + 1], alone, rtol=1e-12, atol=1e-12)
    single = simulators[0].imagine(torch.cat(beliefs), actions.float())
    assert single.dtype == torch.float32
    torch.testing.assert_close(single.double(), together, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("Chase-v0", {}),
        ("Pendulum-v1", {"action_repeat": 2}),
        ("Pendulum-v1", {"pixels": True}),
        pytest.param("Soccer-v0", {}, marks=has_pymunk),
        pytest.param("cartpole-swingup", {}, marks=has_dm_control),
    ],
)
def test_planning_leaves_the_episode_as_it_was(name, options):
    """Bit for bit, whatever was imagined in between."""

    def episode(planning):
        env = make(name, **options)
        env.action_space.seed(0)
        seen = [np.ravel(env.reset(seed=2)[0])]
        simulator = TrueSimulator(env)
        for t in range(12):
            if planning:
                actions = controls(3, 4, 1, env.action_space.shape[0], seed=t)
                simulator.imagine(simulator.belief(), actions)
            o, r, *_ = env.step(env.action_space.sample())
            seen.append(np.append(np.ravel(o), r))
        return np.concatenate(seen)

    np.testing.assert_array_equal(episode(True), episode(False))


@pytest.mark.parametrize(
    ("name", "tolerance"),
    [
        ("Pendulum-v1", 0.0),
        # The copy of a contact lacks what separates bodies that overlap, a millionth of the way.
        pytest.param("Soccer-v0", 1e-5, marks=has_pymunk),
        pytest.param("cartpole-swingup", 0.0, marks=has_dm_control),
    ],
)
def test_copies_do_what_the_world_does(name, tolerance):
    env = make(name, action_repeat=2)
    env.reset(seed=3)
    for _ in range(5):
        env.step(env.action_space.sample())
    simulator, actions = TrueSimulator(env), controls(8, 6, 1, env.action_space.shape[0])
    belief = simulator.belief()
    imagined = simulator.imagine(belief, actions)
    last = stepped(env, actions[:, -1, 0])
    np.testing.assert_allclose(imagined[:, -1, 0], last, rtol=0, atol=tolerance)
    again = simulator.imagine(belief, actions.flip(1)).flip(1)  # the belief is not used up
    torch.testing.assert_close(again, imagined, rtol=0, atol=0)


def test_nothing_comes_after_an_end():
    env = make("Pendulum-v1")
    env.reset(seed=0)
    for _ in range(196):
        env.step(np.zeros(1, np.float32))
    simulator = TrueSimulator(env)
    imagined = simulator.imagine(simulator.belief(), controls(9, 3, 1, 1))
    assert (imagined[:4] < 0).all()
    assert (imagined[4:] == 0).all()


def test_nothing_is_drawn_in_imagination(monkeypatch):
    env = make("Pendulum-v1", pixels=True)
    env.reset(seed=0)
    simulator = TrueSimulator(env)
    monkeypatch.setattr(type(env.unwrapped), "render", lambda _: pytest.fail("drawn"))
    simulator.imagine(simulator.belief(), controls(3, 3, 1, 1))


def test_what_cannot_be_simulated_is_named():
    with pytest.raises(ConfigError, match=r"continuous actions; these are Discrete\(2\)"):
        TrueSimulator(make("CartPole-v1"))
    simulator = TrueSimulator(make("Pendulum-v1"))
    with pytest.raises(ConfigError, match="2 environments"):
        simulator.imagine(None, controls(3, 3, 2, 1))


@pytest.mark.slow
def test_a_world_that_cannot_be_copied_is_refused():
    pytest.importorskip("Box2D", reason="the rl extra is not installed")
    with pytest.raises(ConfigError, match="CarRacing: a copy of it starts anew"):
        TrueSimulator(make("CarRacing-v3", pixels=True))
