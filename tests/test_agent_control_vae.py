"""ControlVAE of an agent, with a learned transition: by hand, beside closed forms, and in use."""

import dataclasses
import math

import numpy as np
import pytest
import torch
import xarray as xr
from plain_pytorch import action_cost, gaussian_kl, mlp
from test_episode_runs import agent, film
from torch.nn import functional as F  # noqa: N812
from variants import assert_same_gradients, gradients

from pyro_animacy import (
    AgentControlVAE,
    AgentControlVAEConfig,
    AgentControlVAEGuide,
    ConfigError,
    DataError,
    Run,
    ScaledELBO,
    fit,
    preset,
    resume,
)
from pyro_animacy.cli import main
from pyro_animacy.data.episode_windows import EpisodeBatch, EpisodeWindows
from pyro_animacy.data.episodes import make_episodes, save_episodes
from pyro_animacy.infer.config import UpdateConfig
from pyro_animacy.infer.episodes import elbo_per_frame
from pyro_animacy.infer.loop import clip, groups, make_optimizer
from pyro_animacy.infer.predict_episodes import predict_episodes
from pyro_animacy.infer.run import split_episodes
from pyro_animacy.infer.schedules import KLWeightConfig
from pyro_animacy.infer.trainer import Trainer
from pyro_animacy.models.world_model import Sight
from pyro_animacy.nets import StackConfig

DOUBLE = torch.float64
T, B, S, A, Z = 6, 4, 3, 2, 5  # T steps, T + 1 frames
NET = StackConfig(hidden=8, layers=2)
UNIT = (0.5, 4.0)
SIGHT = Sight(
    (S,), (0.5, -1.0, 2.0), (1.5, 0.4, 3.0), actions=A, reward=True, continuation=True,
    action_spread=UNIT,
)  # fmt: skip
CLOSED = {
    "roll_out": "closed_loop", "policy_scale": 0.05, "discount": 0.9, "action_cost": 0.3,
    "action_cost_absolute": 0.2, "transition_steps": 4,
}  # fmt: skip
TIED = {"policy_scale": 0.2, "posterior_scale": "prior"}


def pair(sight=SIGHT, seed=0, net=NET, **options):
    nets = dict.fromkeys(("prior", "posterior", "policy", "transition"), net)
    torch.manual_seed(seed)
    model = AgentControlVAE(AgentControlVAEConfig(**{"latent_size": Z, **nets, **options}), sight)
    return model.double(), AgentControlVAEGuide(model).double()


def batch_of(frames=T + 1, size=B, seed=1):
    """A batch of random episodes; the second is padded from frame 4 on."""
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(frames, size, S, generator=g, dtype=DOUBLE)
    a = torch.randn(frames, size, A, generator=g, dtype=DOUBLE)
    observed = torch.ones(frames, size, dtype=torch.bool)
    observed[4:, 1] = False
    return EpisodeBatch(x * observed[..., None], a * observed[..., None], None, None, observed)


def supply(monkeypatch, steps=T, size=B, seed=3):
    """torch's normals come from a table: z_t, and a_t where it is drawn, by step."""
    g = torch.Generator().manual_seed(seed)
    noise = {
        n: torch.randn(steps, size, n, generator=g, dtype=DOUBLE) for n in (Z, A)
    }  # by the size of what is drawn
    at = dict.fromkeys(noise, 0)

    def take(shape, dtype, device):
        n = shape[-1]
        if len(shape) == 3:
            return noise[n][: shape[0]]
        at[n] += 1
        return noise[n][at[n] - 1]

    monkeypatch.setattr("torch.distributions.normal._standard_normal", take)
    return noise, lambda: at.update(dict.fromkeys(at, 0))


# --- by hand -------------------------------------------------------------------------------------


def minus_log_normal(x, mean, scale):
    return ((x - mean) ** 2 / scale**2 / 2 + scale.log() + math.log(2 * math.pi) / 2).sum(-1)


def viewed(model, s):
    return (s - model.mean) / model.spread


def moved(model, s, a):
    return s + model.spread * mlp(
        model.change, torch.cat([viewed(model, s), a / model.action_spread], -1)
    )


def sigma(model):
    return model.spread * (F.softplus(model.raw_scale) + 1e-3)


def policy_of(model, s, z):
    """Mean and standard deviation of a_t, in the data's units."""
    pi, x, unit = model.acts, viewed(model, s), model.action_spread
    out = mlp(pi.network, torch.cat([z, x], -1))
    affine = F.linear(x, pi.affine.weight, pi.affine.bias)
    if pi.scale is not None:
        return (out + affine) * unit, pi.scale * unit
    mean, raw = out.chunk(2, -1)
    return (mean + affine) * unit, (F.softplus(raw) + 1e-3) * unit


def choose(model, guide, s, target, seen):
    """p and q of z_t, each a mean and a standard deviation."""
    x = viewed(model, s)
    mu, sigma_p = (
        mlp(model.chooses.network, x),
        torch.tensor(model.config.latent_scale, dtype=DOUBLE),
    )
    out = mlp(guide.residual.network, torch.cat([x, (target - s) / model.spread], -1)) * seen
    if model.config.posterior_scale == "prior":
        return (mu, sigma_p), (mu + out, sigma_p)
    shift, ratio = out.chunk(2, -1)
    return (mu, sigma_p), (mu + shift, sigma_p * ratio.clamp(-7, 3).exp())


def teacher_forced(model, guide, batch, noise):
    terms = dict.fromkeys(("action", "reconstruction", "latent"), 0.0)
    x, a = batch.observation, batch.action
    for t in range(len(x) - 1):
        seen = batch.observed[t + 1]
        p, q = choose(model, guide, x[t], x[t + 1], seen[:, None])
        mean, scale = policy_of(model, x[t], q[0] + q[1] * noise[Z][t])
        terms["action"] += (minus_log_normal(a[t + 1], mean, scale) * seen).sum()
        after = moved(model, x[t], a[t + 1])
        terms["reconstruction"] += (minus_log_normal(x[t + 1], after, sigma(model)) * seen).sum()
        terms["latent"] += gaussian_kl(q, p).sum()
    return terms


def closed_loop(model, guide, batch, noise):
    """Algorithm 1: the policy's sum, whose transition is a constant, and the transition's own."""
    c = model.config
    # another model of the same parameters, of which nobody asks the gradient
    frozen, _ = pair(**CLOSED)
    frozen.load_state_dict(model.state_dict())
    terms = dict.fromkeys(("reconstruction", "action_cost", "latent", "transition"), 0.0)
    x, a = batch.observation, batch.action
    s = r = x[0]
    for t in range(len(x) - 1):
        seen, weight = batch.observed[t + 1], c.discount**t
        p, q = choose(model, guide, s, x[t + 1], seen[:, None])
        mean, scale = policy_of(model, s, q[0] + q[1] * noise[Z][t])
        s = moved(frozen, s, mean + scale * noise[A][t])
        # |.|^2 in spreads, with the constant of N(0, 1/2) in the data's units
        error = (((x[t + 1] - s) / model.spread) ** 2 + math.log(math.pi) / 2).sum(-1)
        error = error + model.spread.log().sum()
        expected = action_cost(c, *(x / model.action_spread for x in (mean, scale)))
        terms["reconstruction"] += weight * (error * seen).sum()
        terms["action_cost"] += weight * (expected * seen).sum()
        terms["latent"] += weight * gaussian_kl(q, p).sum()
        r = moved(model, r if t % c.transition_steps else x[t], a[t + 1])
        terms["transition"] += (minus_log_normal(x[t + 1], r, sigma(model)) * seen).sum()
    return terms


BY_HAND = {
    "teacher forced": ({}, teacher_forced),
    "teacher forced, scales given": (TIED, teacher_forced),
    "closed loop": (CLOSED, closed_loop),
}


@pytest.mark.parametrize("name", BY_HAND)
def test_loss_and_gradients_by_hand(name, monkeypatch):
    """Every term and every gradient, under the same noise; no parameter is left without one."""
    options, by_hand = BY_HAND[name]
    model, guide = pair(**options)
    batch = batch_of()
    noise, _ = supply(monkeypatch)
    expected = by_hand(model, guide, batch, noise)
    total = sum(expected.values())
    of_hand = gradients(total, (model, guide))
    elbo = ScaledELBO()
    loss = elbo.differentiable_loss(model, guide, batch)
    assert elbo.terms.keys() == expected.keys()
    for term, value in expected.items():
        torch.testing.assert_close(elbo.terms[term], value.detach(), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(loss, total, rtol=1e-10, atol=1e-10)
    of_ours = gradients(loss, (model, guide))
    assert all(g is not None and g.abs().max() > 0 for g in of_ours)
    assert_same_gradients(of_ours, of_hand)


def test_a_score_is_the_bound_whatever_was_trained(monkeypatch):
    model, guide = pair(**CLOSED)
    batch = batch_of()
    noise, _ = supply(monkeypatch)
    expected = sum(teacher_forced(model, guide, batch, noise).values())
    assert ScaledELBO().loss(model, guide, batch, score=True) == pytest.approx(expected.item())


def test_each_sum_of_algorithm_1_moves_its_own_part():
    """The closed loop leaves the transition alone; its own site moves it, and nothing else."""
    model, guide = pair(**CLOSED)
    torch.manual_seed(0)
    guide(batch_of())
    trace, _ = guide.get_traces()
    names = [name for name, _ in model.named_parameters()]
    world = {name for name in names if name.startswith(("change", "raw_scale"))}
    assert len(world) == 7
    for site, theirs in (("reconstruction", set(names) - world), ("transition", world)):
        node = trace.nodes[site]
        loss = -node["fn"].log_prob(node["value"]).sum()
        found = zip(names, gradients(loss, (model,)), strict=True)
        assert {name for name, g in found if g is not None and g.abs().max() > 0} == theirs


@pytest.mark.parametrize("options", [{}, CLOSED])
def test_padding_changes_nothing(options, monkeypatch):
    """Frames beyond the end, whatever they hold, leave loss and gradients alone."""
    model, guide = pair(**options)
    batch = batch_of()
    junk = torch.where(batch.observed, 0.0, 17.0)[..., None]
    more = EpisodeBatch(
        torch.cat([batch.observation + junk, torch.full((2, B, S), 9.0).double()]),
        torch.cat([batch.action + junk, torch.full((2, B, A), 5.0).double()]),
        None, None,
        torch.cat([batch.observed, torch.zeros(2, B, dtype=torch.bool)]),
    )  # fmt: skip
    _, rewind = supply(monkeypatch, steps=T + 2)
    found = []
    for one in (batch, more):
        rewind()
        loss = ScaledELBO().differentiable_loss(model, guide, one)
        found.append((loss, gradients(loss, (model, guide))))
    (loss, expected), (again, of_again) = found
    assert loss.abs() > 1
    torch.testing.assert_close(again, loss, rtol=1e-12, atol=1e-12)
    assert_same_gradients(of_again, expected)


def test_controls_in_other_units_are_the_same_model():
    """With controls c times as large, and so their spread, the bound loses log c a control."""
    factor, batch = 1024.0, batch_of()
    losses = []
    for c in (1.0, factor):
        model, guide = pair(SIGHT._replace(action_spread=tuple(c * u for u in UNIT)))
        torch.manual_seed(0)
        scaled = batch._replace(action=c * batch.action)
        losses.append(ScaledELBO().loss(model, guide, scaled))
    steps = int(batch.observed[1:].sum())
    assert losses[1] - losses[0] == pytest.approx(A * steps * math.log(factor), rel=1e-9)


@torch.no_grad()
def test_the_bound_of_episodes_is_a_ratio_and_its_error_is_over_them():
    """Nats of all over frames of all; the error is that of a ratio, from what each episode adds."""
    model, guide = pair()
    rng, lengths = np.random.default_rng(0), [4, 9, 6, 12]
    x, a = rng.normal(size=(4, 12, S)), rng.normal(size=(4, 12, A))
    x[1] *= 5.0
    for i, n in enumerate(lengths):
        x[i, n:], a[i, n:] = np.nan, np.nan
    windows = EpisodeWindows(make_episodes(observation=x, action=a, length=lengths), 12)
    mean, error = elbo_per_frame(guide, windows)
    lone = np.pad(x[:1], ((0, 4), (0, 0), (0, 0)))  # as found: made the error 0, were they counted
    more = make_episodes(
        observation=np.concatenate([x, lone]), action=np.pad(a, ((0, 5), (0, 0), (0, 0))),
        length=[*lengths, 1, 1, 1, 1, 1],
    )  # fmt: skip
    again = elbo_per_frame(guide, EpisodeWindows(more, 12))
    assert again == pytest.approx((mean, error), rel=1e-9)
    torch.manual_seed(0)
    nats, frames = [], [n - 1 for n in lengths]  # the first is given
    for i in range(4):
        batch = windows.batch(torch.tensor([i])).to(torch.device("cpu"), DOUBLE)
        nats.append(-ScaledELBO().loss(model, guide, batch, score=True))
    assert mean == pytest.approx(sum(nats) / sum(frames), rel=1e-12)
    squares = sum((y - mean * n) ** 2 for y, n in zip(nats, frames, strict=True))
    assert error == pytest.approx(math.sqrt(4 / 3 * squares) / sum(frames), rel=1e-12)


@torch.no_grad()
@pytest.mark.parametrize("free", [False, True])
def test_next_states_are_drawn_from_the_transition(free):
    """Under given actions, or the policy's: standard normal about the mean, of the state before."""
    model, _ = pair()
    torch.manual_seed(0)
    n = 4000
    s, a = torch.randn(n, S, dtype=DOUBLE), torch.randn(3, n, A, dtype=DOUBLE)
    if free:
        rolled = model.roll_out(s, 3)
        states, a = torch.stack(rolled.state), torch.stack(rolled.action)
    else:
        states = model.imagine(s, a)
    before = torch.cat([s[None], states[:-1]])
    noise = (states - moved(model, before, a)) / sigma(model)
    assert (noise.mean(1).abs() < 5 / math.sqrt(n)).all()
    assert ((noise.std(1) - 1).abs() < 5 / math.sqrt(2 * n)).all()


# --- the linear special case ---------------------------------------------------------------------


def linear_agent():
    """Every network affine: p(a_t, s_{t+1} | s_t) is a product of two Gaussians."""
    line = StackConfig(hidden=1, layers=0)
    model, guide = pair(net=line, policy_scale=0.8, latent_scale=0.5)
    with torch.no_grad():
        head = guide.residual.network.layers[0]
        head.weight.mul_(0.1)
        head.bias[Z:] = 0.3  # wider than the prior, so that no weight is without bound
    return model, guide


def exact_log_density(model, x, a):
    """log p(a_t | s_t) and log p(s_{t+1} | s_t, a_t), written out, for one episode: two (T,)."""
    W, u, sd = model.acts.network.layers[0], model.action_spread, sigma(model)
    of_z, of_x = W.weight[:, :Z], W.weight[:, Z:] + model.acts.affine.weight
    mu = mlp(model.chooses.network, viewed(model, x[:-1]))
    mean = (mu @ of_z.T + viewed(model, x[:-1]) @ of_x.T + W.bias + model.acts.affine.bias) * u
    covariance = model.config.latent_scale**2 * of_z @ of_z.T
    covariance = covariance + model.acts.scale**2 * torch.eye(A, dtype=DOUBLE)
    covariance = u[:, None] * covariance * u
    act = torch.distributions.MultivariateNormal(mean, covariance).log_prob(a)
    return act, -minus_log_normal(x[1:], moved(model, x[:-1], a), sd)


@torch.no_grad()
def test_importance_weighted_bound_approaches_the_exact_density():
    """Episodes by the schema, actions as they are taken; the weights' mean is the density.

    So many draws are side by side as copies of an episode. The bound of one draw is below, of many
    it closes in, and the mean weight never leaves the exact value by more than its Monte Carlo
    error; with actions one frame late it is another number.
    """
    model, guide = linear_agent()
    g, frames, draws = torch.Generator().manual_seed(7), 5, 60_000
    x = torch.randn(frames, S, generator=g).double() * model.spread + model.mean
    a = torch.randn(frames, A, generator=g).double() * model.action_spread
    ds = make_episodes(observation=x.numpy()[None], action=a.numpy()[None])
    batch = EpisodeWindows(ds, frames).batch(torch.zeros(1, dtype=torch.long))
    batch = batch.to(torch.device("cpu"), DOUBLE)
    seen = batch.observed.expand(-1, draws)
    wide = EpisodeBatch(
        batch.observation.expand(-1, draws, -1),
        batch.action.expand(-1, draws, -1),
        None,
        None,
        seen,
    )
    x, a = x.float().double(), a.float().double()
    act, world = exact_log_density(model, x, a[:-1])
    torch.manual_seed(0)
    guide(wide)
    trace, of_guide = guide.get_traces()
    weight = -of_guide.nodes["latent"]["fn"].log_prob(of_guide.nodes["latent"]["value"])
    for site in ("latent", "action", "reconstruction"):
        weight = weight + trace.nodes[site]["fn"].log_prob(trace.nodes[site]["value"])
    exact = act + world
    relative = (weight - exact[:, None]).exp()  # (steps, draws), of mean 1
    error = relative.std(1) / math.sqrt(draws)
    assert error.max() < 0.05
    assert ((relative.mean(1) - 1).abs() < 4 * error).all()
    bounds = [
        (weight.unflatten(1, (-1, K)).logsumexp(2) - math.log(K)).sum(0).mean()
        for K in (1, 10, 1000)
    ]
    assert bounds[0] < bounds[1] < bounds[2] < exact.sum() + 4 * error.max()
    assert bounds[2] > exact.sum() - 0.1
    assert bounds[0] < exact.sum() - 0.1
    late = sum(part.sum() for part in exact_log_density(model, x, a.roll(1, 0)[:-1]))
    assert (late - exact.sum()).abs() > 1


# --- a pendulum ----------------------------------------------------------------------------------


def pendulum(episodes=60, frames=40, seed=0):
    """A damped pendulum (angle, speed), pushed to and fro by an agent of two minds.

    At each frame it takes one of the two pushes +-1 around a restoring one, at even odds.
    """
    rng = np.random.default_rng(seed)
    x, a = np.zeros((episodes, frames, 2)), np.zeros((episodes, frames, 1))
    x[:, 0] = rng.normal(size=(episodes, 2))
    for t in range(frames):
        angle, speed = x[:, t].T
        push = rng.choice([-1.0, 1.0], episodes)
        a[:, t, 0] = 2 * push - 0.5 * angle + 0.1 * rng.normal(size=episodes)
        if t + 1 < frames:
            faster = speed + 0.2 * (-3 * np.sin(angle) - 0.4 * speed + 1.5 * a[:, t, 0])
            x[:, t + 1, 1] = faster + 0.01 * rng.normal(size=episodes)
            x[:, t + 1, 0] = angle + 0.2 * faster + 0.01 * rng.normal(size=episodes)
    return make_episodes(observation=x, action=a, fps=5, source="pendulum")


def small(steps=400, **options):
    net = StackConfig(hidden=32, layers=2)
    config = preset("small", "agent_control_vae")
    nets = dict.fromkeys(("prior", "posterior", "policy", "transition"), net)
    return dataclasses.replace(
        config,
        model=dataclasses.replace(config.model, latent_size=4, **nets, **options),
        train=dataclasses.replace(
            config.train,
            steps=steps,
            learning_rate=5e-3,
            evaluate_every=steps,
            patience=None,
            kl_weight=KLWeightConfig(start=0.01, end=1.0, levels=20, every=steps // 40),
        ),
    )


@pytest.fixture(scope="module")
def swung(tmp_path_factory):
    """The pendulum, and a run of it, teacher forced."""
    data = pendulum()
    return data, fit(data, small(), out=tmp_path_factory.mktemp("swung") / "run", progress=False)


@pytest.mark.slow
@torch.no_grad()
def test_the_learned_transition_beats_the_identity(swung):
    """s' = s + a means nothing here: nothing learned is s' = s, with its most likely scale."""
    data, run = swung
    held = EpisodeWindows(run.heldout(data), 17)
    found, error = elbo_per_frame(run.guide, held)
    batch = held.batch(torch.arange(len(held)))
    x = batch.observation.double()
    step = x[1:] - x[:-1]
    identity = -0.5 * (torch.log(2 * math.pi * step.square().mean((0, 1))) + 1).sum()
    elbo = ScaledELBO(scale=1 / int(batch.observed[1:].sum()))
    torch.manual_seed(0)
    elbo.loss(run.model, run.guide, batch, score=True)
    world, act = -elbo.terms["reconstruction"], -elbo.terms["action"] - elbo.terms["latent"]
    assert elbo.terms["latent"] > 0.3  # z says which of its two minds the agent is in
    assert world > identity + 3
    assert found > act + identity + 3 - error


@pytest.mark.slow
def test_in_closed_loop_it_stays_near_the_recording(swung):
    """Guided, its policy steers the pendulum along; free, it goes its own ways."""
    data, run = swung
    held = run.heldout(data)
    x, unit = held["observation"].to_numpy(), np.array(run.card.sight.spread)
    away = {}
    for mode, group in (
        ("reconstruct", "posterior_predictive"),
        ("generate", "posterior_predictive"),
    ):
        tree = predict_episodes(run, held, mode=mode, draws=5, progress=False)
        drawn = tree[group]["observation"].to_numpy()[0]
        assert np.array_equal(drawn[:, :, 0], np.broadcast_to(x[:, 0], drawn[:, :, 0].shape))
        away[mode] = float(np.mean(((drawn - x) / unit)[:, :, 1:] ** 2))
    assert away["reconstruct"] < 0.1
    assert away["generate"] > 5 * away["reconstruct"]


@pytest.mark.slow
def test_under_the_recorded_actions_it_foresees_the_recording(swung):
    """The learned transition alone: forecasts that follow what was done, and not what was not."""
    data, run = swung
    held = run.heldout(data).isel(time=slice(0, 15))
    held = held.assign_coords(length=held["length"].clip(max=15))

    def forecast(dataset, **options):
        tree = predict_episodes(
            run, dataset, mode="forecast", context=3, draws=2, progress=False, **options
        )
        return tree["predictions"]["observation"].to_numpy()[0]

    x, unit = held["observation"].to_numpy(), np.array(run.card.sight.spread)
    told = forecast(held, act="recorded")
    stays = np.mean(((x[:, 2:3] - x)[:, 3:] / unit) ** 2)
    assert np.mean((((told - x) / unit) ** 2)[:, :, 3:]) < stays / 5
    later, acted = held.copy(deep=True), held.copy(deep=True)
    later["observation"][:, 3:] += 3.0
    np.testing.assert_array_equal(forecast(later, act="recorded"), told)
    acted["action"][:, 6] += 2.0  # taken after frame 6: seen first in frame 7
    changed = forecast(acted, act="recorded") != told
    assert not changed[:, :, :7].any()
    assert changed[:, :, 7].all()
    acted["action"][:, 2] += 2.0  # by the policy, no recorded action counts after the context
    np.testing.assert_array_equal(forecast(acted), forecast(held))


@pytest.mark.slow
def test_closed_loop_trains_both_parts(tmp_path):
    """Steps of Algorithm 1: the transition is learned, and the policy tracks by it."""
    data = pendulum()
    config = small(roll_out="closed_loop", policy_scale=0.05, discount=0.95, transition_steps=4)
    weight = dataclasses.replace(config.train.kl_weight, end=0.02)
    train = dataclasses.replace(config.train, kl_weight=weight, steps=300)
    run = fit(data, dataclasses.replace(config, train=train), out=tmp_path / "run", progress=False)
    held = run.heldout(data)
    tree = predict_episodes(run, held, mode="reconstruct", draws=3, progress=False)
    drawn = tree["posterior_predictive"]["observation"].to_numpy()[0]
    away = (drawn - held["observation"].to_numpy()) / np.array(run.card.sight.spread)
    assert np.mean(away**2) < 0.2
    rows = run.metrics()
    assert rows[-1]["transition"] < rows[0]["transition"] - 1


# --- runs ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp("agent") / "agent.npz"
    save_episodes(agent(), path)
    return path


@pytest.fixture(scope="module")
def run(file, tmp_path_factory):
    """A run by the command line."""
    out = tmp_path_factory.mktemp("runs") / "agent"
    command = ["fit", str(file), "--model", "agent_control_vae", "--preset", "debug"]
    assert main([*command, "--out", str(out)]) == 0
    return Run.load(out)


def test_a_loaded_run_is_the_same_model(run, file, tmp_path):
    """What is loaded has the held-out bound of summary.json; rewards and ends are not needed."""
    assert not run.card.sight.reward
    assert not run.card.sight.continuation
    data = agent()
    done = np.arange(14) < run_fit_part(run, data)["length"].to_numpy()[:, None] - 1
    spread = run_fit_part(run, data)["action"].to_numpy()[done].astype(float).std(0)
    assert run.card.sight.action_spread == pytest.approx(spread, rel=1e-6)
    frames = run.settings["train"]["window"]
    found = elbo_per_frame(run.guide, EpisodeWindows(run.heldout(data), frames), most=2048)[0]
    assert found == run.summary["heldout_elbo_per_frame"]
    bare = data.drop_vars(["reward", "terminal"])
    predict_episodes(run, bare, draws=1, progress=False)
    again = resume(run.path, data, progress=False)  # ended already: nothing moves
    assert all(torch.equal(a, b) for a, b in zip(
        again.model.parameters(), run.model.parameters(), strict=True
    ))  # fmt: skip


def run_fit_part(run, data):
    train = run.settings["train"]
    return split_episodes(data, train["heldout"], train["validation"], train["seed"])[1]


@torch.no_grad()
def test_the_bound_is_per_step(run):
    """The frame that is given does not count: by hand, of the loss of one whole window."""
    data = agent().isel(trajectory=[0])
    windows = EpisodeWindows(data, 14)
    batch = windows.batch(torch.arange(1))
    torch.manual_seed(0)
    loss = ScaledELBO().loss(run.model, run.guide, batch, score=True)
    assert elbo_per_frame(run.guide, windows)[0] == pytest.approx(-loss / 13, rel=1e-6)


@pytest.mark.parametrize(
    ("mode", "more", "group", "frames", "given"),
    [
        ("reconstruct", [], "posterior_predictive", 14, 1),
        ("generate", ["--horizon", "6"], "posterior_predictive", 7, 1),
        ("forecast", ["--context", "4", "--horizon", "3"], "predictions", 7, 4),
    ],
)
def test_sample(mode, more, group, frames, given, run, file, tmp_path):
    out = tmp_path / "draws.nc"
    command = ["sample", str(run.path), str(file), "--mode", mode, "--draws", "3"]
    assert main([*command, *more, "--out", str(out)]) == 0
    tree = xr.open_datatree(out, engine="h5netcdf").load()
    held = run.heldout(agent()).isel(time=slice(0, frames))
    x, a = (tree[group][name].to_numpy()[0] for name in ("observation", "action"))
    N = held.sizes["trajectory"]
    assert x.shape == (3, N, frames, 3)
    assert a.shape == (3, N, frames, 1)
    length = held["length"].to_numpy().clip(max=frames)[:, None]
    time = np.arange(frames)
    np.testing.assert_array_equal(np.isnan(x).any((0, -1)), time >= length)
    np.testing.assert_array_equal(np.isnan(a).any((0, -1)), time >= length - 1)
    for drawn, name, kept in ((x, "observation", given), (a, "action", given - 1)):
        recorded = held[name].to_numpy()[:, :kept]
        np.testing.assert_array_equal(drawn[:, :, :kept], np.stack([recorded] * 3))
    after = held["action"].to_numpy()[:, given - 1]
    assert (a[:, :, given - 1] != after).all()  # the first that the policy takes
    assert ("posterior" in tree) == (mode == "reconstruct")
    if mode == "reconstruct":
        z = tree["posterior"]["latent"].to_numpy()[0]
        assert z.shape == (3, N, frames, 4)
        np.testing.assert_array_equal(np.isnan(z).any((0, -1)), time >= length - 1)


def test_criticise(run, file, tmp_path):
    out = tmp_path / "report.html"
    command = ["criticise", str(run.path), str(file), "--frames", "8", "--windows", "4"]
    assert main([*command, "--out", str(out)]) == 0
    page = out.read_text()
    for section in ("bound", "forecast", "latent"):
        assert f'<section id="{section}">' in page
    assert "the actions: given those of another window" in page


def test_the_transition_has_a_rate_and_a_decay_of_its_own(tmp_path):
    """The first update of Adam moves every parameter by its learning rate, after the decay."""
    rate, own, decay = 1e-3, 4e-3, 0.5
    config = preset("debug", "agent_control_vae")
    train = dataclasses.replace(
        config.train, steps=1, schedule="constant", learning_rate=rate, weight_decay=0.0,
        transition_learning_rate=own, transition_weight_decay=decay, epsilon=1e-30,
    )  # fmt: skip
    trainer = Trainer(
        agent(), dataclasses.replace(config, train=train), tmp_path, progress=False
    )  # fmt: skip
    before = {name: p.detach().clone() for name, p in trainer.modules.named_parameters()}
    trainer.train()
    for name, after in trainer.modules.named_parameters():
        transition = name.startswith("model.change") or name == "model.raw_scale"
        step = own if transition else rate
        kept = before[name] * (1 - own * decay) if transition else before[name]
        moved = after.grad != 0
        assert moved.any()
        found, expected = (after - kept)[moved], -step * after.grad[moved].sign()
        torch.testing.assert_close(found, expected, rtol=2e-3, atol=1e-6)


def test_each_of_the_two_sums_is_clipped_by_itself():
    """In a fit both are one loss; a transition that is far off must not slow the policy."""
    options = UpdateConfig(clip_norm=0.1)
    model, guide = pair(roll_out="closed_loop", policy_scale=0.05)
    modules = torch.nn.ModuleDict({"model": model, "guide": guide})
    optimizer = make_optimizer(groups(modules, options), options)
    taken = {}
    for only in (None, "policy", "transition"):
        torch.manual_seed(0)
        optimizer.zero_grad()
        loss = ScaledELBO().differentiable_loss(model, guide, batch_of(), only=only)
        loss.backward()
        assert clip(optimizer, loss, options) == ""
        taken[only] = {n: p.grad for n, p in modules.named_parameters() if p.grad is not None}
    assert not set(taken["policy"]) & set(taken["transition"])
    for part in ("policy", "transition"):
        norm = torch.stack([g.norm() for g in taken[part].values()]).norm()
        assert norm.item() == pytest.approx(0.1, rel=1e-4)
    together = taken["policy"] | taken["transition"]
    assert together.keys() == taken[None].keys()
    for name, gradient in together.items():
        torch.testing.assert_close(taken[None][name], gradient, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("option", ["transition_learning_rate", "transition_weight_decay"])
def test_no_other_model_has_a_transition_of_its_own(option):
    train = dataclasses.replace(preset().train, **{option: 1e-3})
    with pytest.raises(ConfigError, match=f"{option} is 0.001; control_vae has no transition"):
        dataclasses.replace(preset(), train=train)
    with pytest.raises(ConfigError, match=option):
        dataclasses.replace(train, **{option: -1.0})


# --- what cannot be used -------------------------------------------------------------------------


def test_images_and_episodes_without_actions_are_refused(refused, tmp_path):
    save_episodes(film(), tmp_path / "film.npz")
    save_episodes(agent().drop_vars("action"), tmp_path / "idle.npz")
    command = ("fit", "--model", "agent_control_vae", "--preset", "debug", "--out", tmp_path / "r")
    assert "these episodes have images" in refused(*command, tmp_path / "film.npz")
    assert "`action`" in refused(*command, tmp_path / "idle.npz")
    save_episodes(agent(frames=14).isel(time=slice(0, 1)).assign_coords(
        length=("trajectory", np.ones(8, int))), tmp_path / "still.npz")  # fmt: skip
    assert "at least 2" in refused(*command, tmp_path / "still.npz")
    save_episodes(agent(), tmp_path / "agent.npz")
    said = refused(*command, "--train.window", "1", tmp_path / "agent.npz")
    assert "--train.window 17" in said
    assert not (tmp_path / "r").exists()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"latent_size": 0}, "latent_size is 0"),
        ({"latent_scale": 0.0}, "latent_scale"),
        ({"policy_scale": -1.0}, "policy_scale"),
        ({"transition_steps": 0}, "transition_steps"),
        ({"roll_out": "closed_loop"}, "policy_scale must be given"),
        ({"discount": 0.9}, "closed_loop"),
        ({"action_cost": 0.1}, "closed_loop"),
        ({"action_cost_absolute": 0.1}, "closed_loop"),
        ({"roll_out": "closed_loop", "policy_scale": 0.05, "action_cost": -1.0}, "action_cost"),
        ({"roll_out": "closed_loop", "policy_scale": 0.05, "discount": 1.5}, "discount"),
    ],
)
def test_options_that_cannot_be_used(options, words):
    with pytest.raises(ConfigError, match=words):
        pair(**options)


def test_what_cannot_be_asked(run):
    with pytest.raises(ConfigError, match="choose policy or recorded"):
        predict_episodes(run, agent(), act="nobody", progress=False)
    _, guide = pair()
    with pytest.raises(DataError, match="1 frame"):
        guide(batch_of(frames=1, size=B))
