"""The world model beside plain PyTorch, beside a linear-Gaussian agent, and in time."""

import math

import pytest
import torch
from plain_pytorch import gaussian_kl, gaussian_prior, mlp
from torch.nn import functional as F  # noqa: N812
from variants import assert_same_gradients, gradients

from pyro_animacy.data.episode_windows import EpisodeBatch
from pyro_animacy.errors import ConfigError
from pyro_animacy.infer.config import FitConfig, TrainConfig
from pyro_animacy.infer.elbo import ScaledELBO
from pyro_animacy.models.linear_state_space import LinearStateSpace
from pyro_animacy.models.program import Memory, Overshooting
from pyro_animacy.models.world_model import Sight, WorldModel, WorldModelConfig, WorldModelGuide
from pyro_animacy.nets import StackConfig

DOUBLE = torch.float64
T, B, X, A, Z, H = 5, 4, 3, 2, 6, 7
NET = StackConfig(hidden=8, layers=2)
SIGHT = Sight(
    (X,), (0.5, -1.0, 2.0), (1.5, 0.4, 3.0), actions=A, reward=True, continuation=True,
    reward_spread=0.3,
)  # fmt: skip


def pair(sight=SIGHT, seed=0, **options):
    nets = dict.fromkeys(
        ("prior", "posterior", "encoder", "decoder", "reward", "continuation"), NET
    )
    torch.manual_seed(seed)
    config = WorldModelConfig(**{"memory_size": H, "latent_size": Z, **nets, **options})
    model = WorldModel(config, sight)
    return model.double(), WorldModelGuide(model).double()


def batch_of(size=B, frames=T, seed=1):
    """A batch of random episodes; the second is padded from frame 3 on."""
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(frames, size, X, generator=g, dtype=DOUBLE)
    a = torch.randn(frames, size, A, generator=g, dtype=DOUBLE)
    r = torch.randn(frames, size, generator=g, dtype=DOUBLE)
    observed = torch.ones(frames, size, dtype=torch.bool)
    observed[3:, 1] = False
    c = torch.ones(frames, size, dtype=DOUBLE)
    c[2, 1] = c[-1, 0] = 0.0
    x, a, r = x * observed[..., None], a * observed[..., None], r * observed
    return EpisodeBatch(x, a, r, c, observed)


def supply(monkeypatch, noise):
    """torch's normals come from ``noise`` (T, B, Z), frame by frame; returns how to begin again."""
    at = [0]

    def take(shape, dtype, device):
        assert shape == noise.shape[1:]
        at[0] += 1
        return noise[at[0] - 1]

    monkeypatch.setattr("torch.distributions.normal._standard_normal", take)
    return lambda: at.__setitem__(0, 0)


def transition(dynamics, h, z, a):
    """h_t = GRU(h_{t-1}, elu(W (z_{t-1}, a_{t-1}))), by hand."""
    r = dynamics.recurrence
    x = F.elu(F.linear(torch.cat([z, a], -1), dynamics.embed.weight, dynamics.embed.bias))
    return torch.gru_cell(x, h, r.weight_ih, r.weight_hh, r.bias_ih, r.bias_hh)


def minus_log_normal(x, mean, scale):
    return ((x - mean) / scale) ** 2 / 2 + scale.log() + math.log(2 * math.pi) / 2


def heads(model, batch, h, z, t, unit):
    """Minus the log densities of observation, reward and continuation at frame t, each (B,)."""
    both = torch.cat([h, z], -1)
    mean, spread = model.mean, model.spread
    sigma = spread * (F.softplus(model.raw_scale) + 1e-3)
    o = minus_log_normal(batch.observation[t], mean + spread * mlp(model.decoder, both), sigma)
    mean = unit * mlp(model.reward, both)[:, 0]
    reward = minus_log_normal(batch.reward[t], mean, torch.tensor(unit, dtype=DOUBLE))
    logit, c = mlp(model.ends, both)[:, 0], batch.continuation[t]
    end = -(c * F.logsigmoid(logit) + (1 - c) * F.logsigmoid(-logit))
    return o.sum(-1), reward, end


def posterior(model, guide, batch, h, t):
    """p and q of z_t, each a mean and a standard deviation, by hand."""
    p = gaussian_prior(model.dynamics, h)
    seen = batch.observed[t][:, None]
    x = (batch.observation[t] - model.mean) / model.spread
    features = F.elu(mlp(guide.encoder, x))
    out = mlp(guide.residual.network, torch.cat([h, features], -1)) * seen
    shift, ratio = out.chunk(2, -1)
    return p, (p[0] + shift, p[1] * ratio.clamp(-7, 3).exp())


@pytest.mark.parametrize(("activation", "function"), [("relu", F.relu), ("silu", F.silu)])
def test_the_layers_before_the_memory_and_the_guide_have_the_activation_of_their_networks(
    activation, function
):
    """PlaNet's is ReLU throughout."""
    net = StackConfig(hidden=7, layers=1, activation=activation)
    model, guide = pair(prior=net, encoder=net)
    g = torch.Generator().manual_seed(5)
    h, z, a = (torch.randn(B, n, generator=g, dtype=DOUBLE) for n in (H, Z, A))
    r, embed = model.dynamics.recurrence, model.dynamics.embed
    x = function(embed(torch.cat([z, a], -1)))
    expected = torch.gru_cell(x, h, r.weight_ih, r.weight_hh, r.bias_ih, r.bias_hh)
    torch.testing.assert_close(model.dynamics.predict(Memory(h, z), a)[0], expected)
    o = batch_of().observation[0]
    hidden = function(guide.encoder.layers[0]((o - model.mean) / model.spread))
    torch.testing.assert_close(guide.encode(o), function(guide.encoder.layers[1](hidden)))


def test_without_a_latent_nothing_that_is_seen_enters_the_memory():
    """So that planning with it is blind; and that overshooting asks nothing new of it."""
    model, guide = pair(latent_size=0)
    one = batch_of()
    other = one._replace(observation=one.observation + 1)
    with guide:
        first, second = model.follow(one), model.follow(other)
    assert torch.equal(first.hidden, second.hidden)
    train = TrainConfig(window=8, overshooting=Overshooting(3))
    with pytest.raises(ConfigError, match="latent_size 0 none is ever seen: all are predicted in"):
        FitConfig("world_model", WorldModelConfig(latent_size=0), train)


def by_hand(model, guide, batch, noise, reward_weight=1.0, unit=1.0):
    """Terms of minus the bound, summed over frames and episodes, in plain PyTorch."""
    frames, size = batch.observed.shape
    h, z = torch.zeros(size, H, dtype=DOUBLE), torch.zeros(size, Z, dtype=DOUBLE)
    terms = dict.fromkeys(("reconstruction", "reward", "continuation", "latent"), 0.0)
    for t in range(frames):
        h = transition(model.dynamics, h, z, batch.action[t])
        p, q = posterior(model, guide, batch, h, t)
        z = q[0] + q[1] * noise[t]
        seen = batch.observed[t]
        o, r, c = heads(model, batch, h, z, t, unit)
        terms["reconstruction"] += (o * seen).sum()
        terms["reward"] += reward_weight * (r * seen).sum()
        terms["continuation"] += (c * seen).sum()
        terms["latent"] += gaussian_kl(q, p).sum()
    return terms


def noise_of(frames=T, size=B, seed=3):
    return torch.randn(frames, size, Z, generator=torch.Generator().manual_seed(seed), dtype=DOUBLE)


@pytest.mark.parametrize(
    ("reward_weight", "reward_scale", "unit"), [(1.0, 1.0, 1.0), (10.0, None, 0.3), (1.0, 2.0, 2.0)]
)
def test_loss_and_gradients_by_hand(monkeypatch, reward_weight, reward_scale, unit):
    """Every term and every gradient, reward and continuation among them, under the same noise."""
    model, guide = pair(reward_weight=reward_weight, reward_scale=reward_scale)
    batch, noise = batch_of(), noise_of()
    expected = by_hand(model, guide, batch, noise, reward_weight, unit)
    total = sum(expected.values())
    of_hand = gradients(total, (model, guide))
    supply(monkeypatch, noise)
    elbo = ScaledELBO()
    loss = elbo.differentiable_loss(model, guide, batch)
    for name, value in expected.items():
        torch.testing.assert_close(elbo.terms[name], value, rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(loss, total, rtol=1e-11, atol=1e-11)
    of_ours = gradients(loss, (model, guide))
    assert all(g is not None and g.abs().max() > 0 for g in of_ours)
    assert_same_gradients(of_ours, of_hand)


def test_score_is_the_true_bound(monkeypatch):
    """A score has rewards at weight 1 and nothing overshot, whatever the training has."""
    model, guide = pair(reward_weight=10.0)
    batch, noise = batch_of(), noise_of()
    expected = sum(by_hand(model, guide, batch, noise).values())
    supply(monkeypatch, noise)
    options = Overshooting(3, None, 1.0, 1.0)
    loss = ScaledELBO(overshooting=None).loss(model, guide, batch, score=True, overshooting=options)
    assert loss == pytest.approx(expected.item(), rel=1e-11)


def test_padding_changes_nothing(monkeypatch):
    """Frames beyond the end, whatever they hold, leave loss and gradients alone."""
    model, guide = pair()
    batch = batch_of()
    junk = torch.where(batch.observed, 0.0, 17.0)
    more = EpisodeBatch(
        torch.cat([batch.observation + junk[..., None], torch.full((2, B, X), 9.0).double()]),
        torch.cat([batch.action, torch.full((2, B, A), 5.0).double()]),
        torch.cat([batch.reward + junk, torch.full((2, B), -4.0).double()]),
        torch.cat([batch.continuation, torch.ones(2, B).double()]),
        torch.cat([batch.observed, torch.zeros(2, B, dtype=torch.bool)]),
    )
    rewind = supply(monkeypatch, noise_of(T + 2))
    found = []
    for one in (batch, more):
        rewind()
        loss = ScaledELBO().differentiable_loss(model, guide, one)
        found.append((loss, gradients(loss, (model, guide))))
    (loss, expected), (again, of_again) = found
    torch.testing.assert_close(again, loss, rtol=1e-12, atol=1e-12)
    assert_same_gradients(of_again, expected)


def test_overshooting_of_observations_and_rewards(monkeypatch):
    """The terms d = 2..3 frames ahead, rolled by hand from every posterior draw at once."""
    model, guide = pair()
    batch, noise = batch_of(), noise_of()
    ahead = {d: noise_of(T - d, seed=10 + d) for d in range(1, 4)}
    options = Overshooting(3, (1.0, 0.5, 2.0), observation=0.3, reward=0.7)
    # by hand
    h, z = torch.zeros(B, H, dtype=DOUBLE), torch.zeros(B, Z, dtype=DOUBLE)
    memory, q = [], []
    for t in range(T):
        h = transition(model.dynamics, h, z, batch.action[t])
        _, answer = posterior(model, guide, batch, h, t)
        z = answer[0] + answer[1] * noise[t]
        memory.append((h, z))
        q.append(tuple(x.detach() for x in answer))
    expected = dict.fromkeys(("latent", "reconstruction", "reward", "continuation"), 0.0)
    expected = {f"{name}_ahead": value for name, value in expected.items()}
    for first in range(T - 1):
        h, z = memory[first]
        for d in range(1, min(3, T - 1 - first) + 1):
            t, beta = first + d, (1.0, 0.5, 2.0)[d - 1] / 3
            h = transition(model.dynamics, h, z, batch.action[t])
            p = gaussian_prior(model.dynamics, h)
            z = p[0] + p[1] * ahead[d][t - d]
            if d > 1:
                seen = batch.observed[t]
                o, r, c = heads(model, batch, h, z, t, 1.0)
                kl = gaussian_kl(q[t], p)
                expected["latent_ahead"] += beta * (kl * seen).sum()
                expected["reconstruction_ahead"] += 0.3 * beta * (o * seen).sum()
                expected["continuation_ahead"] += 0.3 * beta * (c * seen).sum()
                expected["reward_ahead"] += 0.7 * beta * (r * seen).sum()
    # the program's draws, in its order: z_t, then of each d the site with a KL and the open loop
    order = [*noise, ahead[1], *(x for d in (2, 3) for x in (torch.zeros_like(ahead[d]), ahead[d]))]
    draws = iter(order)

    def take(shape, dtype, device):
        value = next(draws)
        assert shape == value.shape
        return value

    monkeypatch.setattr("torch.distributions.normal._standard_normal", take)
    elbo = ScaledELBO(overshooting=options)
    loss = elbo.differentiable_loss(model, guide, batch)
    for name, value in expected.items():
        torch.testing.assert_close(elbo.terms[name], value, rtol=1e-11, atol=1e-11)
    plain = sum(by_hand(model, guide, batch, noise).values())
    kl = by_hand(model, guide, batch, noise)["latent"]
    total = plain - kl + kl / 3 + sum(expected.values())
    torch.testing.assert_close(loss, total, rtol=1e-11, atol=1e-11)


def test_imagine_is_the_dynamics_stepped_by_hand(monkeypatch):
    model, _ = pair()
    actions, noise = torch.randn(4, B, A).double(), noise_of(4)
    memory = Memory(torch.randn(B, H).double(), torch.randn(B, Z).double())
    supply(monkeypatch, noise)
    imagined = model.imagine(memory, actions)
    h, z = memory
    for k in range(4):
        h = transition(model.dynamics, h, z, actions[k])
        mean, scale = gaussian_prior(model.dynamics, h)
        z = mean + scale * noise[k]
        torch.testing.assert_close(imagined.hidden[k], h, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(imagined.latent[k], z, rtol=1e-12, atol=1e-12)


# --- a linear-Gaussian agent ---------------------------------------------------------------------


def linear_agent():
    """x_{t+1} = A x_t + B a_t + N(0, Q), seen with noise R, as a world model without h.

    z_t is the state; the guide is the exact p(z_t | z_{t-1}, a_{t-1}, o_t), diagonal as the noises.
    """
    size, noise = 2, 0.3
    line = StackConfig(hidden=size, layers=0)
    sight = Sight((size,), (0.0,) * size, (1.0,) * size, actions=1)
    model, guide = pair(
        sight, memory_size=0, latent_size=size, prior=line, posterior=line, decoder=line,
        encoder=line, observation_scale=noise, least_scale=0.05,
    )  # fmt: skip
    matrix = torch.tensor([[0.9, 0.2], [-0.1, 0.8]], dtype=DOUBLE)
    push = torch.tensor([[1.0], [-0.6]], dtype=DOUBLE)
    spread = torch.tensor([0.4, 0.3], dtype=DOUBLE)
    posterior = (spread**-2 + noise**-2).rsqrt()
    gain = posterior**2 / noise**2
    prior, head = model.dynamics.prior.network.layers[0], guide.residual.network.layers[0]
    encoder, offset = guide.encoder.layers[0], 30.0  # so far up, the encoder's ELU is a line
    with torch.no_grad():
        for parameter in (*model.parameters(), *guide.parameters()):
            parameter.zero_()
        prior.weight[:size] = torch.cat([matrix, push], 1)
        prior.bias[size:] = (spread - 0.05).expm1().log()
        model.decoder.layers[0].weight.copy_(torch.eye(size))
        encoder.weight.copy_(torch.eye(size))
        encoder.bias.fill_(offset)
        head.weight[:size] = torch.cat([-gain.diag() @ matrix, -gain.diag() @ push, gain.diag()], 1)
        head.bias[:size] = -gain * offset
        head.bias[size:] = (posterior / spread).log()
    eye = torch.eye(size, dtype=DOUBLE)
    oracle = LinearStateSpace(
        transition_matrix=matrix, transition_covariance=spread.square().diag(),
        observation_matrix=eye, observation_covariance=noise**2 * eye,
        initial_mean=torch.zeros_like(spread), initial_covariance=spread.square().diag(),
        control_matrix=push,
    )  # fmt: skip
    return model, guide, oracle


def weighed(guide, batch):
    """log p(z, o) - log q(z) of each episode of the batch, one draw of z each: (B,)."""
    guide(batch)
    traces = guide.get_traces()
    total = 0.0
    for sign, trace in zip((1, -1), traces, strict=True):
        for name, site in trace.nodes.items():
            if site["type"] == "sample" and (sign > 0 or name.startswith("latent_")):
                density = site["fn"].log_prob(site["value"])
                total = total + sign * (density.sum(0) if density.dim() == 2 else density)
    return total


@pytest.mark.parametrize("late", [0, 1])
def test_actions_reach_the_state_at_their_frame(late):
    """The mean of the importance weights is the evidence that Kalman's filter gives, exactly.

    The batch holds at entry t the action before frame t; one frame late, it is the evidence of
    another agent, far less probable.
    """
    _, guide, oracle = linear_agent()
    frames, draws = 4, 20_000
    g = torch.Generator().manual_seed(2)
    action = 2 * torch.randn(frames, 1, 1, generator=g, dtype=DOUBLE)  # row t: taken after frame t
    o = oracle.sample(1, frames, action, generator=g).observation
    before = torch.cat([torch.zeros(1 + late, 1, 1, dtype=DOUBLE), action])[:frames]
    seen = torch.ones(frames, draws, dtype=torch.bool)
    batch = EpisodeBatch(o.expand(-1, draws, -1), before.expand(-1, draws, -1), None, None, seen)
    torch.manual_seed(0)
    weight = weighed(guide, batch)
    assert weight.shape == (draws,)
    evidence = oracle.log_evidence(o, before.roll(-1, 0)).item()
    relative = (weight - evidence).exp()
    error = relative.std().item() / math.sqrt(draws)
    assert error < 0.03
    assert abs(relative.mean().item() - 1) < 4 * error
    true = oracle.log_evidence(o, action).item()
    assert (evidence == pytest.approx(true)) if late == 0 else (evidence < true - 5)


def test_bound_is_below_the_evidence():
    """With a guide that sees only the past and the frame, the bound is close from below."""
    _, guide, oracle = linear_agent()
    g = torch.Generator().manual_seed(4)
    frames, size = 6, 400
    action = torch.randn(frames, size, 1, generator=g, dtype=DOUBLE)
    o = oracle.sample(size, frames, action, generator=g).observation
    before = torch.cat([torch.zeros(1, size, 1, dtype=DOUBLE), action[:-1]])
    batch = EpisodeBatch(o, before, None, None, torch.ones(frames, size, dtype=torch.bool))
    torch.manual_seed(0)
    gap = oracle.log_evidence(o, action) - weighed(guide, batch)
    assert gap.mean().item() - 3 * gap.std().item() / size**0.5 > 0
    assert gap.mean().item() / frames < 0.2


# --- shapes, options -----------------------------------------------------------------------------


@pytest.mark.parametrize("options", [
    {}, {"latent_size": 0}, {"memory_size": 0}, {"latent_size": 3, "classes": 4},
])  # fmt: skip
def test_kinds_of_dynamics(options):
    """Each kind trains all its parameters, and a frame not observed keeps the prior's density."""
    model, guide = pair(**options)
    ScaledELBO().differentiable_loss(model, guide, batch_of()).backward()
    for module in (model, guide):
        for name, parameter in module.named_parameters():
            if options.get("latent_size") == 0 and name.startswith("encoder"):
                continue  # without latents nothing is recognised
            assert parameter.grad is not None, name
            assert parameter.grad.abs().max() > 0, name


@pytest.mark.slow
def test_images():
    sight = Sight((3, 64, 64), actions=A, reward=True)
    model, guide = pair(sight)
    batch = batch_of(2, 3)
    image = torch.rand(3, 2, 3, 64, 64, dtype=DOUBLE)
    seen = torch.ones(3, 2, dtype=torch.bool)
    batch = EpisodeBatch(image, batch.action, batch.reward, None, seen)
    loss = ScaledELBO().differentiable_loss(model, guide, batch)
    loss.backward()
    assert all(p.grad is not None for m in (model, guide) for p in m.parameters())
    memory = model.follow(batch)
    assert model.observation(memory).event_shape == (3, 64, 64)
    # the mean of a network that gives 0 is in the middle of the range of a pixel
    last = model.decoder.layers[-2]
    with torch.no_grad():
        last.weight.zero_()
        last.bias.zero_()
    assert (model.observation(memory).base_dist.loc == 0.5).all()
    # or, where it was measured, each channel's mean; what the encoder sees has mean 0, spread 1
    measured = Sight((3, 64, 64), (-0.25, 0.0, 0.25), (0.125, 0.25, 0.5), A, reward=True)
    model = WorldModel(model.config, measured).double()
    with torch.no_grad():
        last = model.decoder.layers[-2]
        last.weight.zero_()
        last.bias.fill_(2.0)
    expected = torch.tensor([0.25 + 2 * 0.125, 0.5 + 2 * 0.25, 0.75 + 2 * 0.5])
    found = model.observation(memory).base_dist
    torch.testing.assert_close(found.loc[0, 0, :, 7, 9], expected.double())
    assert (found.scale == model.scale).all()  # sigma stays in ranges of a pixel
    guide = WorldModelGuide(model).double()
    mean, spread = (torch.tensor(x)[:, None, None] for x in ((0.25, 0.5, 0.75), measured.spread))
    by_hand = (image - mean) / spread
    torch.testing.assert_close(guide.encode(image), guide.encoder(by_hand))


def test_what_the_data_lack_cannot_be_asked():
    model, _ = pair(Sight((X,), SIGHT.mean, SIGHT.spread, actions=A))
    memory = model.start((B,))
    for ask, word in ((model.rewarded, "rewards"), (model.continues, "ended")):
        with pytest.raises(ConfigError, match=word):
            ask(memory)


@pytest.mark.parametrize(("option", "value"), [
    ("observation_scale", 0.0), ("reward_scale", -1.0), ("reward_weight", -1.0),
    ("memory_size", -1), ("keypoints", 0),
])  # fmt: skip
def test_options_are_checked(option, value):
    with pytest.raises(ConfigError, match=rf"model\.{option} is {value}"):
        WorldModelConfig(**{option: value})
