"""Directed displays: the cost, the imagination, the goals, and what comes of them."""

import math

import numpy as np
import pytest
import torch
import xarray as xr
from helpers import debug, recordings
from pyro import poutine
from pyro.distributions import Normal
from torch.distributions import kl_divergence
from variants import build, recording

from pyro_animacy import ConfigError, DataError, RunError, fit, read_trajectories
from pyro_animacy.acting.direct import (
    DirectConfig,
    Directed,
    direct,
    nats_per_step,
    save,
    summary_text,
)
from pyro_animacy.acting.goals import Goal, goal_of, heading_error
from pyro_animacy.acting.planners import PlannerConfig, plan

BODIES = 3
QUICK = PlannerConfig(
    method="mppi", horizon=3, iterations=2, candidates=32, temperature=1.0, warm_start=True
)
OPTIONS = DirectConfig(planner=QUICK)


def made(run, data, **changes):
    options = {
        "objective": "chase:hunter->prey", "frames": 20, "displays": 3, "config": OPTIONS,
        "recordings": data, "progress": False,
    }  # fmt: skip
    return direct(run, **{**options, **changes})


# The cost.


@pytest.mark.parametrize("name", ["small", "rssm"])
def test_the_cost_is_the_kl_and_the_difference_of_log_densities(name):
    """Of the density around the z_t that a control leads to, as wide as the prior."""
    model, _ = build(name, BODIES)
    directed = Directed(model)
    belief = directed.begin(recording(model.config.history, 50, BODIES).position)
    u = torch.randn(50, 5, dtype=torch.float64)
    with torch.no_grad():
        z = directed.step(belief, u).memory.latent
        context = model.context(belief.state, list(belief.moves))
        trace = poutine.trace(model.advance).get_trace("latent", context, belief.memory, None)
    p = trace.nodes["latent"]["fn"]
    cost, mean = u.square().sum(-1) / 2, p.base_dist.loc
    led = Normal(z, p.base_dist.scale).to_event(1)
    torch.testing.assert_close(kl_divergence(led, p), cost, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(p.log_prob(mean) - p.log_prob(z), cost, rtol=1e-10, atol=1e-10)


def test_what_a_display_says_it_cost_is_the_kl_of_its_draws(tiny_run, tiny_data):
    """Without a plan (weight without end) only the narrowed chance of the mover costs anything."""
    noise, weight = 0.4, 1e9
    narrow = kl_divergence(Normal(0.0, noise), Normal(0.0, 1.0)).item()
    led = [
        made(tiny_run, tiny_data, config=DirectConfig(weight=weight, noise=n, planner=QUICK))["kl"]
        for n in (1.0, noise)
    ]
    np.testing.assert_allclose((led[1] - led[0]).mean(), 2 * narrow, atol=0.2)
    assert led[0].min() >= 0


# What is imagined.


class Means(poutine.messenger.Messenger):
    """Actions are the policy's means."""

    def _pyro_sample(self, msg):
        if msg["name"].startswith("action"):
            msg["value"], msg["done"] = msg["fn"].base_dist.loc, True


@pytest.mark.parametrize("means", [False, True])
@pytest.mark.parametrize("arena", ["open", "recorded"])
@pytest.mark.parametrize(
    "name", ["small", "history_1", "history_4", "memory", "set", "rssm", "stochastic"]
)
def test_imagined_is_the_models_own_roll_out(name, arena, means):
    """What `SceneModel.roll_out` drew, standardised, gives the same motion as controls."""
    H, J, E = 6, 4, 3
    model, _ = build(name, BODIES, arena=arena)
    frames = recording(model.config.history, E, BODIES).position
    frames[-1, 0, 0], frames[-1, 1, 1] = 39.9, 60.0  # at a wall, and beyond one
    s, moves = frames[-1].expand(J, E, -1), frames.diff(dim=0).unsqueeze(1).expand(-1, J, -1, -1)
    torch.manual_seed(2)
    with torch.no_grad(), Means() if means else poutine.trace():
        trace = poutine.trace(model.roll_out).get_trace(s, [*moves.flip(0)], H)

    def standardised(site):
        nodes = [trace.nodes[f"{site}_{t}"] for t in range(H)]
        densities = [node["fn"].base_dist for node in nodes]
        return torch.stack(
            [(n["value"] - p.loc) / p.scale for n, p in zip(nodes, densities, strict=True)]
        )

    eps = standardised("latent")
    if not means:
        eps = torch.cat([eps, standardised("action")], -1)
    directed = Directed(model)
    with torch.no_grad():
        imagined = directed.imagine(directed.begin(frames), eps)
    position = torch.stack([s, *trace.nodes["_RETURN"]["value"].state]).unflatten(-1, (BODIES, 2))
    torch.testing.assert_close(imagined.position, position[:-1], rtol=0, atol=1e-10)
    torch.testing.assert_close(imagined.moves, position.diff(dim=0), rtol=0, atol=1e-10)


@pytest.mark.parametrize("weight", [0.01, 1.0, 100.0])
@pytest.mark.parametrize("method", ["cem", "mppi"])
def test_with_nothing_to_gain_the_plan_stays_at_the_prior(method, weight):
    """The mean of what is cheapest of N(0, I) is 0, whatever a nat costs."""
    model, _ = build("small", BODIES)
    x = recording(2, 40, BODIES).position
    torch.manual_seed(3)
    directed, zeros = Directed(model), torch.zeros(2, 40, 5, dtype=torch.float64)
    options = PlannerConfig(
        method=method, horizon=2, iterations=4, candidates=512, elites=64, temperature=1.0
    )
    belief = directed.begin(x)
    found = plan(
        directed, belief, lambda i: -weight * i.controls.square().sum(-1) / 2, zeros, options,
        bound=None,
    )  # fmt: skip
    assert found.controls.square().mean().sqrt() < 0.15  # N(0, I) has 1
    assert found.controls.mean().abs() < 0.02


def test_a_chase_is_solved_where_it_is_linear():
    """a_t = c u_t after a body far off: u points at it, and is as long as one scalar problem says.

    max_m  (c m)^2 / ((c m)^2 + w^2) / 2 - weight m^2 / 2
    """
    reach, weight, E = 0.5, 0.25, 6
    far = 1e6
    angle = torch.linspace(0, 2 * math.pi, E + 1, dtype=torch.float64)[:-1]
    towards = torch.stack([angle.cos(), angle.sin()], -1)
    start = torch.stack([torch.zeros_like(towards), far * towards], 1)  # (E, 2 bodies, 2)

    class Linear:
        def imagine(self, belief, controls):
            a = torch.stack([reach * controls, torch.zeros_like(controls)], -2)
            x = belief + a.cumsum(0) - a
            return x, a, controls

    goal = Goal("chase", 0, 1, speed=1.0, distance=1.0)

    def value(imagined):
        x, a, u = imagined
        return goal.reward(x, a, torch.zeros(())) - weight * u.square().sum(-1) / 2

    torch.manual_seed(0)
    options = PlannerConfig(horizon=2, iterations=30, candidates=400, elites=40)
    found = plan(Linear(), start, value, torch.zeros(2, E, 2, dtype=torch.float64), options)
    grid = torch.linspace(0, 1, 1_000_001, dtype=torch.float64)
    fast = (reach * grid).square()
    best = grid[(fast / (fast + 0.25**2) / 2 - weight * grid.square() / 2).argmax()]
    expected = (best * towards).expand(2, E, 2)
    torch.testing.assert_close(found.controls, expected, rtol=0, atol=2e-3)


# Goals.


def brute(position, mover, target, speed):
    """Mean heading error of a chaser by atan2, a step at a time."""
    out = np.full(len(position) - 1, np.nan)
    for t in range(len(out)):
        v = position[t + 1, mover] - position[t, mover]
        g = position[t, target] - position[t, mover]
        if math.hypot(*v) < 0.25 * speed or math.hypot(*g) < speed:
            continue
        difference = math.degrees(math.atan2(v[1], v[0]) - math.atan2(g[1], g[0]))
        out[t] = min(abs(difference + turn) for turn in (-720, -360, 0, 360, 720))
    return out


@pytest.mark.parametrize(("mover", "target"), [(0, 1), (2, 0)])
def test_heading_error_is_the_angle(mover, target):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(4, 60, 3, 2)).cumsum(1)
    goal = Goal("chase", mover, target, speed=1.2, distance=1.0)
    expected = np.stack([brute(one, mover, target, 1.2) for one in x])
    assert 0.02 < np.isnan(expected).mean() < 0.5
    np.testing.assert_allclose(heading_error(x, goal), expected, atol=1e-9)
    away = heading_error(x, goal._replace(name="flee"))
    np.testing.assert_allclose(away, 180 - expected, atol=1e-9)


def test_the_reward_is_its_equation():
    rng = np.random.default_rng(1)
    s, a = rng.normal(size=(2, 200, 2, 2)) * 3
    delta = rng.uniform(-3, 3, 200)
    goal = Goal("chase", 0, 1, speed=0.8, distance=1.0)
    given = (torch.from_numpy(x) for x in (s, a, delta))
    for i, found in enumerate(goal.reward(*given).tolist()):
        v, g = a[i, 0], s[i, 1] - s[i, 0]
        error = math.atan2(v[1], v[0]) - math.atan2(g[1], g[0]) - delta[i]
        near = math.hypot(*g) / math.sqrt(g @ g + 0.8**2)
        moving = v @ v / (v @ v + 0.2**2)
        assert found == pytest.approx(moving * near * (math.cos(error) - 0.5), abs=1e-12)


def test_at_rest_and_on_arrival_nothing_is_gained_or_lost():
    s = torch.tensor([[[0.0, 0.0], [3.0, 0.0]], [[1.0, 1.0], [1.0, 1.0]]], requires_grad=True)
    a = torch.tensor([[[0.0, 0.0], [1.0, 0.0]], [[1.0, 0.0], [0.0, 1.0]]])
    reward = Goal("chase", 0, 1, 1.0, 1.0).reward(s, a, torch.zeros(2))
    assert reward.abs().max() == 0


def test_where_a_follower_and_a_guard_would_go():
    s = torch.tensor([[0.0, 0.0], [10.0, 0.0], [10.0, 4.0], [-50.0, 0.0]], dtype=torch.float64)
    a = torch.tensor([[0.0, 0.0], [0.0, 1e6], [0.0, 0.0], [0.0, 0.0]], dtype=torch.float64)
    follow, guard = (Goal(name, 0, 1, speed=1.0, distance=3.0) for name in ("follow", "guard"))
    torch.testing.assert_close(follow.aim(s, a), torch.tensor([10.0, 1e6 - 3.0]).double())
    torch.testing.assert_close(follow.aim(s, 0 * a), torch.tensor([10.0, 0.0]).double())
    torch.testing.assert_close(guard.aim(s, a), torch.tensor([10.0, 2.0]).double())  # not body 3
    many = guard.aim(s.expand(5, 2, 4, 2), a.expand(5, 2, 4, 2))
    torch.testing.assert_close(many, torch.tensor([10.0, 2.0]).double().expand(5, 2, 2))


def test_a_goal_knows_what_is_typical(tiny_run, tiny_data):
    goal = goal_of("follow:prey->hunter", tiny_run.card, tiny_data)
    x = tiny_data["position"].values[0]
    speed = math.sqrt(np.mean(np.sum(np.diff(x[:, 1], axis=0) ** 2, -1)))
    unit = tiny_run.card.scale.unit
    assert (goal.name, goal.mover, goal.target) == ("follow", 1, 0)
    assert goal.speed * unit == pytest.approx(speed)
    assert goal.distance * unit == pytest.approx(np.median(np.hypot(*(x[:, 0] - x[:, 1]).T)))


# Displays.


def test_a_display_depends_on_its_seed_and_nothing_else(tiny_run, tiny_data):
    torch.manual_seed(11)
    first, state = made(tiny_run, tiny_data, seed=4, subtlety=30), torch.get_rng_state()
    torch.manual_seed(12)
    again, other = (made(tiny_run, tiny_data, seed=s, subtlety=30) for s in (4, 5))
    xr.testing.assert_identical(first, again)
    assert not np.allclose(first["position"], other["position"])
    torch.manual_seed(11)
    assert torch.equal(state, torch.get_rng_state())  # the caller's random numbers are its own


def test_a_display_begins_as_recorded_and_says_what_it_is(tiny_run, tiny_data):
    display = made(tiny_run, tiny_data, subtlety=45)
    assert display["position"].dims == ("trajectory", "time", "body", "space")
    assert dict(display.sizes) == {"trajectory": 3, "time": 20, "body": 2, "space": 2}
    assert (display.attrs["fps"], display.attrs["units"]) == (10, "m")
    assert set(display["label"].values) == {"chase:hunter->prey"}
    assert (display["subtlety"] == 45).all()
    recorded = tiny_data["position"].values.reshape(-1, 4)
    for start in display["position"].values[:, 0].reshape(-1, 4):
        assert np.abs(recorded - start).sum(1).min() < 1e-5
    unit = tiny_run.card.scale.unit
    goal = goal_of("chase:hunter->prey", tiny_run.card, tiny_data)
    measured = heading_error(display["position"].values / unit, goal)
    np.testing.assert_allclose(display["heading_error"].values[:, :-1], measured, atol=1e-2)
    assert display[["heading_error", "deviation", "kl"]].isel(time=-1).to_array().isnull().all()


def test_deviations_are_uniform_and_held_for_170_ms(tiny_run, tiny_data):
    display = made(tiny_run, tiny_data, subtlety=90, displays=300, frames=13)
    delta = display["deviation"].values[:, :-1]
    assert (delta[:, 0::2] == delta[:, 1::2]).all()  # two frames at 10 Hz
    assert np.abs(delta).max() <= 90
    share = np.histogram(delta[:, ::2], 6, (-90, 90))[0] / delta[:, ::2].size
    np.testing.assert_allclose(share, 1 / 6, atol=0.03)


def test_who_is_directed_goes_there(tiny_run, tiny_data):
    """A weightless goal is pursued, by the body that was named and no other; fleeing is away."""
    config = DirectConfig(weight=0.01, noise=0.3, planner=QUICK)
    seen = {}
    for objective in ("chase:hunter->prey", "flee:hunter->prey", "chase:prey->hunter"):
        x = made(tiny_run, tiny_data, objective=objective, displays=8, config=config)
        seen[objective] = float(x["heading_error"].mean())
    assert max(seen.values()) < 35, seen  # 90 by chance


def test_a_display_can_be_saved_read_and_scored(tiny_run, tiny_data, tmp_path):
    display = made(tiny_run, tiny_data, subtlety=15)
    arrays, film = save(display, tmp_path / "out")
    assert film.read_bytes()[:6] == b"GIF89a"
    again = read_trajectories(arrays)
    np.testing.assert_array_equal(again["position"].values, display["position"].values)
    np.testing.assert_array_equal(again["label"].values, display["label"].values)
    with pytest.raises(RunError, match=r"displays\.nc: exists"):
        save(display, tmp_path / "out")
    text = summary_text(tiny_run, display)
    error = float(display["heading_error"].mean())
    assert f"{error:.1f} degrees (asked for 7.5, half the subtlety)" in text
    assert f"{nats_per_step(tiny_run, display).mean():.2f} nats per step" in text


def test_nats_per_step_are_those_of_the_held_out_score(tiny_run, tiny_data):
    heldout = tiny_run.heldout(tiny_data)
    draws = tiny_run.settings["train"]["score_draws"]
    found = nats_per_step(tiny_run, heldout, draws=draws)
    assert found.mean() == pytest.approx(tiny_run.summary["heldout_nats_per_step"], abs=0.3)


# What is refused.


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"objective": "hug:hunter->prey"}, "chase, flee, follow, guard"),
        ({"objective": "chase"}, "name:A->B"),
        ({"objective": "chase:hunter->ball"}, "no body 'ball'; choose of hunter, prey"),
        ({"objective": "chase:prey->prey"}, "cannot chase itself"),
        ({"objective": "guard:hunter->prey"}, "third body"),
        ({"subtlety": -1.0}, "subtlety is -1"),
        ({"subtlety": 181.0}, "from 0 to 180"),
        ({"frames": 6}, "frames is 6; it must be at least 7"),
        ({"displays": 0}, "displays is 0"),
        ({"seed": -1}, "seed is -1"),
    ],
)
def test_what_cannot_be_asked_is_named(tiny_run, tiny_data, changes, named):
    with pytest.raises(ConfigError, match=named):
        made(tiny_run, tiny_data, **changes)


@pytest.mark.parametrize("change", [{"weight": -1.0}, {"noise": 0.0}, {"steer": "mean"}])
def test_options_that_cannot_be_used_are_named(change):
    with pytest.raises(ConfigError, match=f"direct.{next(iter(change))}"):
        DirectConfig(**change)


@pytest.mark.parametrize(
    ("name", "named"), [("deterministic", "no latent"), ("categorical", "of classes")]
)
def test_a_model_without_a_gaussian_latent_is_refused(name, named):
    with pytest.raises(ConfigError, match=named):
        Directed(build(name)[0])


def test_a_body_that_rests_cannot_be_directed(tiny_run, tiny_data):
    still = tiny_data.copy(deep=True)
    still["position"][:, :, 0] = 1.0
    with pytest.raises(DataError, match="hunter does not move"):
        made(tiny_run, still)


@pytest.mark.slow
def test_measured_subtlety_follows_the_requested(tmp_path):
    """A run fitted to many chases: correlation over displays, as the docs claim of recordings."""
    data = recordings(recordings=20)
    config = debug({"history": 3}, steps=1500, batch_size=64)
    run = fit(data, config, out=tmp_path / "run", progress=False)
    requested = (0, 30, 60, 90, 120)
    found = [
        made(
            run, data, subtlety=subtlety, displays=6, frames=100, seed=seed, config=DirectConfig()
        )["heading_error"].mean("time")
        for seed, subtlety in enumerate(requested)
    ]
    r = np.corrcoef(np.repeat(requested, 6), np.concatenate(found))[0, 1]
    assert r >= 0.9


def test_displays_of_a_policy_that_rests(tiny_data, tmp_path):
    """They are scored like recordings, at their resolution: rest is no spike of the density."""
    run = fit(tiny_data, debug({"rest": True, "history": 2}), out=tmp_path / "run", progress=False)
    with torch.no_grad():
        run.model.step.policy.network.layers[-1].bias[-2] = 30.0  # the hunter does not move
    found = made(run, tiny_data, config=DirectConfig(planner=QUICK, weight=1e9))
    still = (np.diff(found["position"], axis=1) == 0).all(-1)
    assert still[..., 0].mean() > 0.9
    assert found["resolution"].values == pytest.approx(float(tiny_data["resolution"].median()))
    scored = nats_per_step(run, found)
    finer = found.assign_coords(resolution=("trajectory", np.zeros(3)))
    assert np.isfinite(scored).all()
    assert (scored < nats_per_step(run, finer)).all()
