"""Planners beside closed forms, brute force in NumPy, Riccati's equation, the true simulator."""

import itertools

import numpy as np
import pytest
import torch

pytest.importorskip("gymnasium", reason="the rl extra is not installed")

from pyro_animacy.acting.agent import Controls, Planned
from pyro_animacy.acting.environments.make import make
from pyro_animacy.acting.planners import Plan, PlannerConfig, identity, plan
from pyro_animacy.acting.simulator import TrueSimulator
from pyro_animacy.errors import ConfigError
from pyro_animacy.models.program import Memory
from pyro_animacy.models.world_model import Sight, WorldModel, WorldModelConfig
from pyro_animacy.nets import StackConfig

DOUBLE = torch.float64
METHODS = ("cem", "mppi", "random_shooting")
H, E, A = 3, 4, 2


class Themselves:
    """What is imagined are the controls themselves."""

    def imagine(self, belief, controls):
        return controls


class Linear:
    """x_{t+1} = F x_t + G u_t without noise: (x_{t+1..t+H}, u)."""

    def __init__(self, F, G):
        self.F, self.G = F, G

    def imagine(self, belief, controls):
        x, states = belief, []
        for u in controls:
            x = x @ self.F.T + u @ self.G.T
            states.append(x)
        return torch.stack(states), controls


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=DOUBLE)


def apart(target):
    """-|u_t - target_t|^2 for target (H, E, A), a reward for each step."""
    return lambda u: -(u - target.unsqueeze(1)).square().sum(-1)


def world_model(latent_size=0):
    """h_t of 6 units, without z, so that nothing is drawn; 3 features, A actions, a reward."""
    net = StackConfig(hidden=8, layers=1)
    torch.manual_seed(0)
    config = WorldModelConfig(
        memory_size=6,
        latent_size=latent_size,
        encoder=net,
        decoder=net,
        reward=net,
        continuation=net,
    )
    return WorldModel(config, Sight((3,), (0.0,) * 3, (1.0,) * 3, A, reward=True)).double()


def searched(model, belief, objective, start, config, seed=0, **options):
    torch.manual_seed(seed)
    return plan(model, belief, objective, start, config, **options)


# --- known optima --------------------------------------------------------------------------------


def test_cem_finds_the_optimum_of_each_environment():
    """Of -|u - u*|^2 it is u*, cut off at the bound where it lies outside; none is another's."""
    target = 1.5 * normal(H, E, A)
    assert (target.abs() > 1).any()
    assert (target.abs() < 1).any()
    start = torch.zeros_like(target)
    config = PlannerConfig(horizon=H, iterations=40, candidates=400, elites=40)
    inside = searched(Themselves(), None, apart(target), start, config)
    torch.testing.assert_close(inside.controls, target.clamp(-1, 1), rtol=0, atol=1e-4)
    value = apart(target)(target.clamp(-1, 1).unsqueeze(1)).sum(0)[0]
    torch.testing.assert_close(inside.value, value, rtol=0, atol=1e-3)
    anywhere = searched(Themselves(), None, apart(target), start, config, bound=None)
    torch.testing.assert_close(anywhere.controls, target, rtol=0, atol=1e-4)


def test_cem_finds_the_optimum_of_a_quadratic_form():
    """Of -(1/2) u'M u + b'u over all steps at once, M u* = b, whatever the correlations."""
    root, b = normal(H * A, H * A, seed=1), normal(H * A, seed=2)
    M = root @ root.T / 4 + torch.eye(H * A, dtype=DOUBLE)
    best = torch.linalg.solve(M, b).reshape(H, 1, A)

    def objective(u):
        flat = u.permute(1, 2, 0, 3).flatten(2)  # (J, E, H A)
        value = flat @ b - ((flat @ M) * flat).sum(-1) / 2
        return value.expand(H, -1, -1) / H

    config = PlannerConfig(horizon=H, iterations=60, candidates=1000, elites=100)
    found = searched(Themselves(), None, objective, torch.zeros_like(best), config, bound=None)
    torch.testing.assert_close(found.controls, best, rtol=0, atol=2e-3)


def test_cem_approaches_the_linear_quadratic_regulator():
    """Cost and controls of finite-horizon Riccati: P = Q + F'P F - F'P G (R + G'P G)^-1 G'P F."""
    steps, F = 8, torch.tensor([[1.0, 0.3], [0.0, 0.9]], dtype=DOUBLE)
    G, Q = torch.tensor([[0.0], [0.5]], dtype=DOUBLE), torch.diag(torch.tensor([1.0, 0.1]).double())
    R, x = torch.tensor([[0.2]], dtype=DOUBLE), torch.tensor([[1.0, 0.0], [-0.5, 1.5]]).double()
    P, gains = Q, []  # P_H = Q: what is imagined are x_{1..H}
    for _ in range(steps):
        gain = torch.linalg.solve(R + G.T @ P @ G, G.T @ P @ F)
        gains.append(gain)
        P = Q + F.T @ P @ (F - G @ gain)
    least = ((x @ (P - Q)) * x).sum(-1)  # x_0 itself costs nothing here
    best, state = [], x
    for gain in reversed(gains):
        best.append(-state @ gain.T)
        state = state @ F.T + best[-1] @ G.T

    def objective(imagined):
        states, u = imagined
        return -((states @ Q) * states).sum(-1) - ((u @ R) * u).sum(-1)

    start = torch.zeros(steps, 2, 1).double()
    config = PlannerConfig(horizon=steps, iterations=50, candidates=1000, elites=250)
    found = searched(Linear(F, G), x, objective, start, config, bound=None)
    u = torch.stack(best)
    torch.testing.assert_close(found.controls, u, rtol=0, atol=5e-3)
    cost = -objective(Linear(F, G).imagine(x, found.controls.unsqueeze(1))).sum(0)[0]
    assert (cost >= least - 1e-9).all()  # nothing is below Riccati's
    torch.testing.assert_close(cost, least, rtol=1e-4, atol=0)
    of_best = -objective(Linear(F, G).imagine(x, u.unsqueeze(1))).sum(0)[0]
    torch.testing.assert_close(of_best, least, rtol=1e-10, atol=0)


# --- brute force ---------------------------------------------------------------------------------


def brute_force(method, objective, start, config, bound, seed=0):
    """The search in NumPy, one environment and one candidate at a time, on the same draws."""
    torch.manual_seed(seed)
    steps, environments, size = start.shape
    mu, sigma = start.numpy().copy(), np.ones(start.shape)
    shot, most = mu.copy(), np.full(environments, -np.inf)
    for _ in range(config.iterations):
        shape = steps, config.candidates, environments, size
        u = mu[:, None] + sigma[:, None] * torch.randn(shape, dtype=DOUBLE).numpy()
        u = np.clip(u, -bound, bound)
        V = objective(torch.from_numpy(u)).numpy().sum(0)
        for e in range(environments):
            order = sorted(
                range(config.candidates),
                key=lambda j: V[j, e] if np.isfinite(V[j, e]) else -np.inf,
            )
            good = [j for j in order if np.isfinite(V[j, e])]
            if method == "cem":
                best = np.stack([u[:, j, e] for j in order[-config.elites :]])
                mu[:, e] = best.mean(0)
                sigma[:, e] = np.sqrt(((best - best.mean(0)) ** 2).mean(0))
                most[e] = V[order[-1], e]
            elif method == "mppi":
                v = np.array([V[j, e] for j in good])
                # those that are not numbers count among the spread as the worst number
                filled = np.concatenate([v, np.full(len(order) - len(good), v.min())])
                w = np.exp((v - v.max()) / (config.temperature * filled.std()))
                w /= w.sum()
                mu[:, e] = sum(w[i] * u[:, j, e] for i, j in enumerate(good))
                spread = sum(w[i] * (u[:, j, e] - mu[:, e]) ** 2 for i, j in enumerate(good))
                sigma[:, e] = np.sqrt(spread)
                most[e] = v.max()
            elif V[good[-1], e] > most[e]:
                most[e], shot[:, e] = V[good[-1], e], u[:, good[-1], e]
    return (shot if method == "random_shooting" else mu), most


@pytest.mark.parametrize("rounds", [1, 3])
@pytest.mark.parametrize("method", METHODS)
def test_every_round_is_that_of_brute_force(method, rounds):
    """mu of one round; of three, sigma too, which draws the candidates of the next."""
    config = PlannerConfig(method, H, rounds, candidates=30, elites=7, temperature=0.3)
    start, target = 0.4 * normal(H, E, A, seed=3), normal(H, E, A, seed=4)
    found = searched(Themselves(), None, apart(target), start, config, bound=0.9)
    controls, value = brute_force(method, apart(target), start, config, 0.9)
    np.testing.assert_allclose(found.controls, controls, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(found.value, value, rtol=1e-12)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("method", METHODS)
def test_values_that_are_not_finite_are_the_worst(method, bad):
    """A third of the candidates, at a step of their own: brute force leaves them out."""
    config = PlannerConfig(method, H, 2, candidates=60, elites=6)
    start, target = torch.zeros(H, E, A).double(), normal(H, E, A, seed=5)

    def objective(u):
        return apart(target)(u).where(u[..., 0] < 1.1, bad)  # at any one of three steps

    found = searched(Themselves(), None, objective, start, config, bound=3.0)
    controls, value = brute_force(method, objective, start, config, 3.0)
    np.testing.assert_allclose(found.controls, controls, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(found.value, value, rtol=1e-12)
    assert found.value.isfinite().all()


@pytest.mark.parametrize("method", METHODS)
def test_where_nothing_is_finite_there_is_no_plan(method):
    """A model that has diverged in one environment says so there, and only there."""
    config = PlannerConfig(method, H, 2, candidates=20, elites=5)
    start, target = torch.zeros(H, E, A).double(), normal(H, E, A, seed=5)
    where = torch.arange(E) == 1
    plain = searched(Themselves(), None, apart(target), start, config)
    found = searched(
        Themselves(), None, lambda u: apart(target)(u).where(~where, torch.nan), start, config
    )
    assert found.controls[:, 1].isnan().all()
    torch.testing.assert_close(found.controls[:, ~where], plain.controls[:, ~where], rtol=0, atol=0)


def test_random_shooting_returns_the_best_of_all_its_candidates():
    config = PlannerConfig("random_shooting", H, 4, candidates=25)
    start, target = torch.zeros(H, E, A).double(), normal(H, E, A, seed=6)
    seen = []

    def objective(u):
        seen.append(u)
        return apart(target)(u)

    found = searched(Themselves(), None, objective, start, config)
    every = torch.cat(seen, 1)
    assert every.shape == (H, 100, E, A)
    value, best = apart(target)(every).sum(0).max(0)
    torch.testing.assert_close(found.value, value, rtol=0, atol=0)
    for e in range(E):
        torch.testing.assert_close(found.controls[:, e], every[:, best[e], e], rtol=0, atol=0)


@pytest.mark.parametrize("method", METHODS)
def test_one_candidate_and_equal_candidates(method):
    """Weights of equal values are equal, and the mean of one candidate is that one."""
    start = torch.zeros(H, E, A).double()

    def flat(u):
        return torch.zeros(u.shape[:3], dtype=DOUBLE)

    few = PlannerConfig(method, H, 1, candidates=2, elites=2)
    mean = searched(Themselves(), None, flat, start, few, bound=None).controls
    torch.manual_seed(0)
    u = torch.randn(H, 2, E, A, dtype=DOUBLE)
    if method == "random_shooting":
        assert all(any(torch.equal(mean[:, e], u[:, j, e]) for j in range(2)) for e in range(E))
    else:
        torch.testing.assert_close(mean, u.mean(1), rtol=1e-12, atol=1e-12)
    if method != "cem":
        one = PlannerConfig(method, H, 1, candidates=1)
        assert searched(Themselves(), None, flat, start, one).controls.isfinite().all()


# --- a plan and its options ----------------------------------------------------------------------


def test_a_plan_moved_on_begins_one_step_later():
    controls = normal(H, E, A)
    moved = Plan(controls, torch.zeros(E)).moved_on()
    np.testing.assert_array_equal(moved[:-1], controls[1:])
    np.testing.assert_array_equal(moved[-1], np.zeros((E, A)))


@pytest.mark.parametrize("warm", [True, False])
def test_a_warm_start_is_the_last_plan_moved_on(warm):
    """Of the agent's second search at each belief; without it, zeros again."""
    model, belief = world_model(), Memory(normal(E, 6), torch.zeros(E, 0).double())
    config = PlannerConfig(horizon=H, iterations=2, candidates=40, elites=4, warm_start=warm)

    def rewards(m):
        return model.rewarded(m).mean

    planned, found = Planned(model, config, Controls(A, discrete=False)), []
    planned.begin(E)
    start = torch.zeros(H, E, A).double()
    for seed in range(3):
        torch.manual_seed(seed)
        found.append(planned(belief, explore=False))
        expected = searched(model, belief, rewards, start, config, seed)
        torch.testing.assert_close(found[-1], expected.controls[0], rtol=0, atol=1e-12)
        start = expected.moved_on() if warm else start
    planned.begin(E)
    torch.manual_seed(0)
    torch.testing.assert_close(planned(belief, explore=False), found[0], rtol=0, atol=0)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"horizon": 0}, "planner.horizon is 0"),
        ({"iterations": 0}, "planner.iterations is 0"),
        ({"candidates": 0, "method": "mppi"}, "planner.candidates is 0"),
        ({"elites": 1}, "planner.elites is 1 of 1000 candidates; it must be 2 or more"),
        ({"candidates": 50}, "planner.elites is 100 of 50 candidates"),
        ({"temperature": 0.0}, "planner.temperature is 0.0; it must be positive"),
        ({"temperature": float("nan")}, "planner.temperature is nan"),
    ],
)
def test_what_cannot_be_used_is_named(options, said):
    with pytest.raises(ConfigError, match=said):
        PlannerConfig(**options)
    PlannerConfig(method="mppi", candidates=50)  # elites are of `cem` alone


# --- models to plan with -------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_plans_in_the_true_simulator_beat_doing_nothing(method):
    """Three chases at once: the reward of each plan in the world it was made for."""
    simulators = []
    for seed in range(3):
        env = make("Chase-v0")
        env.reset(seed=seed)
        simulators.append(TrueSimulator(env))
    belief = torch.cat([each.belief() for each in simulators])
    start = torch.zeros(12, 3, 2, dtype=DOUBLE)
    config = PlannerConfig(method, 12, 6, candidates=100, elites=10, temperature=0.3)
    found = searched(simulators[0], belief, identity, start, config)
    for e, simulator in enumerate(simulators):
        both = torch.stack([found.controls[:, e], start[:, e]], 1).unsqueeze(2)
        planned, idle = simulator.imagine(belief[e : e + 1], both).sum(0)[:, 0]
        assert planned > 1.3 * idle


def test_a_world_model_imagines_every_candidate_from_its_own_belief():
    """(H, J, E, A) at once, and one after the other; without z nothing is drawn."""
    model, J = world_model(), 5
    belief = Memory(normal(E, 6), torch.zeros(E, 0).double())
    controls = normal(H, J, E, A, seed=8)
    together = model.imagine(belief, controls)
    assert together.hidden.shape == (H, J, E, 6)
    assert together.latent.shape == (H, J, E, 0)
    for j, e in itertools.product(range(J), range(E)):
        one = model.imagine(Memory(*(x[e : e + 1] for x in belief)), controls[:, j, e : e + 1])
        torch.testing.assert_close(together.hidden[:, j, e], one.hidden[:, 0], rtol=0, atol=1e-14)

    def rewards(m):
        return model.rewarded(m).mean

    expected = model.imagined_rewards(belief, controls)
    torch.testing.assert_close(expected, rewards(together), rtol=0, atol=1e-14)
    options = PlannerConfig(horizon=H, iterations=30, candidates=200, elites=20)
    found = searched(model, belief, rewards, torch.zeros(H, E, A).double(), options)
    reached = rewards(model.imagine(belief, found.controls)).sum(0)
    assert (reached >= rewards(together).sum(0).amax(0) - 1e-6).all()  # better than any at random
    torch.testing.assert_close(reached, found.value, rtol=0, atol=1e-3)


@pytest.mark.parametrize("rows", [1, 2 * 5 * E, 10**6])
def test_rewards_on_the_way_are_those_of_what_is_imagined(monkeypatch, rows):
    """However many steps are asked about in one call: one, two of the three, or all."""
    monkeypatch.setattr("pyro_animacy.models.world_model.ROWS", rows)
    model = world_model(latent_size=2)
    belief, controls = Memory(normal(E, 6), normal(E, 2, seed=1)), normal(H, 5, E, A, seed=8)
    torch.manual_seed(0)
    expected = model.rewarded(model.imagine(belief, controls)).mean
    torch.manual_seed(0)
    found = model.imagined_rewards(belief, controls)
    assert found.shape == (H, 5, E)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-14)
