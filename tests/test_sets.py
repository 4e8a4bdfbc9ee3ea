"""Networks on sets against loops over bodies, smaller sets, and the networks of one body."""

import itertools
from dataclasses import replace

import pytest
import torch
from pyro.infer import TraceMeanField_ELBO
from torch.nn import functional as F  # noqa: N812
from variants import EXPERTS, NET, build, recording, scale_of

from pyro_animacy import ConfigError, ScaledELBO
from pyro_animacy.criticism.importance import psis
from pyro_animacy.infer.steps import draw_steps, log_mean_exp
from pyro_animacy.models.control_vae import Step
from pyro_animacy.nets import FixedScaleNormal, PolicyNormal, ResidualNormal, Stack, StackConfig
from pyro_animacy.sets import (
    SetLayout,
    SetMean,
    SetNetwork,
    SetPolicy,
    SetResidual,
    body_types,
)

TYPES = (0, 1, 0, 2, 1, 0)
Z = 3


def close(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-12)


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def layout_of(types, history=3, **changes):
    scale = scale_of(len(types))
    nearness = scale.extent / scale.separation
    return SetLayout(tuple(types), history=history, nearness=nearness, **changes)


def network(types, own=0, config=NET, outputs=4, **changes):
    torch.manual_seed(3)
    return SetNetwork(layout_of(types, **changes), outputs, config, besides=own).double()


def context_of(state, actions):
    """ControlVAE's context of states (..., N, 2) and displacements (k-1, ..., N, 2)."""
    model, _ = build("small", state.shape[-2], history=len(actions) + 1)
    return model.context(state.flatten(-2), list(actions.flatten(-2)))


def trio(types, config=NET, learn_scale=True, scale=None):
    """The three networks of ControlVAE on a set."""
    torch.manual_seed(4)
    layout = layout_of(types)
    return (
        SetMean(layout, Z, config).double(),
        SetResidual(layout, Z, config, learn_scale=learn_scale).double(),
        SetPolicy(layout, Z, config, scale=scale, floor=0.01).double(),
    )


def answers(networks, state, actions, move, latent):
    """All that the three networks give: a list of (..., N, size)."""
    mean, residual, policy = networks
    N = state.shape[-2]
    c = context_of(state, actions)
    pi = policy(c, latent.flatten(-2)).base_dist
    out = residual(torch.cat([c, move.flatten(-2)], -1)).chunk(residual.parts, -1)
    return [x.unflatten(-1, (N, -1)) for x in (mean(c), *out, pi.loc, pi.scale.expand_as(pi.loc))]


def scene(N, B=5):
    return 3 * noise(B, N, 2), noise(2, B, N, 2, seed=1), noise(B, N, 2, seed=2), noise(B, N, Z)


def test_body_types():
    """A number after letters tells bodies of one type apart; a bare number says nothing."""
    names = ["home_9", "away_1", "home_10", "ball", "dog3", "dog 12", "3", "12", "home", "x_1_2"]
    kind = dict(zip(names, body_types(names), strict=True))
    assert sorted(set(kind.values())) == list(range(7))
    assert kind["home_9"] == kind["home_10"] == kind["home"]
    assert kind["dog3"] == kind["dog 12"]
    apart = ["home", "away_1", "ball", "dog3", "3", "12", "x_1_2"]
    assert len({kind[name] for name in apart}) == 7
    assert body_types(["big_triangle", "little_triangle"]) == (0, 1)
    assert body_types(["0", "1"]) == (0, 1)
    for few in (names[::-1], names[1:], [n for n in names if n != "home_9"]):  # order, number
        wanted = [kind[name] for name in few]
        assert list(body_types(few)) == wanted
    for bad in ([], ["a", "a"]):
        with pytest.raises(ConfigError, match="each name once"):
            body_types(bad)


@pytest.mark.parametrize("changes", [
    {"types": ()}, {"types": (0, -1)}, {"axes": 0}, {"history": 0}, {"nearness": 0.0},
    {"known_types": 1},
])  # fmt: skip
def test_layout_is_checked(changes):
    with pytest.raises(ConfigError, match=next(iter(changes))):
        replace(SetLayout((0, 1)), **changes)


@pytest.mark.parametrize("history", [1, 2, 4])
@pytest.mark.parametrize("N", [1, 2, 5])
def test_tokens_are_of_the_context(N, history):
    """A token is the position over the extent and the displacements, newest first."""
    state, actions = noise(7, N, 2), noise(history - 1, 7, N, 2, seed=1)
    layout = layout_of(range(N), history)
    c = context_of(state, actions)
    assert c.shape[-1] == layout.context_size
    unit = torch.tensor(1 / scale_of(N).extent).double()  # ControlVAE's view is made in float32
    expected = torch.cat([state * unit, *actions], -1)
    close(layout.tokens(c), expected)
    with pytest.raises(ConfigError, match="context of"):
        layout.tokens(c[..., 1:])


@pytest.mark.parametrize("config", [NET, EXPERTS, StackConfig(hidden=5, activation="silu")])
@pytest.mark.parametrize("own", [0, 3])
@pytest.mark.parametrize("types", [(0,), (0, 0), TYPES])
def test_network_is_the_equation(types, own, config):
    """Body by body, message by message, with p_j - p_i spelt out."""
    N = len(types)
    net = network(types, own, config)
    x, u = noise(6, N, 6), noise(6, N, own, seed=1) if own else None
    phi = {"elu": F.elu, "silu": F.silu}[config.activation]

    def y(b, i):
        e = torch.eye(max(types) + 1).double()[types[i]]
        return torch.cat([x[b, i], e])

    out = net(x, u)
    for b, i in itertools.product(range(6), range(N)):
        others = [j for j in range(N) if j != i]
        heard = torch.zeros(config.hidden, dtype=torch.float64)
        for j in others:
            apart = (x[b, j, :2] - x[b, i, :2]) * (5.0 / 3.0)
            A, B, C = net.mine.weight, net.theirs.weight, net.between.weight
            first = A @ y(b, i) + net.mine.bias + B @ y(b, j) + C @ apart
            heard = heard + phi(first) / len(others)
        besides = [u[b, i]] if own else []
        close(out[b, i], net.network(torch.cat([*besides, y(b, i), heard])))


@pytest.mark.parametrize("config", [NET, EXPERTS])
def test_equivariant_within_a_type(config):
    """To reorder bodies of a type reorders every answer; to swap types does not."""
    networks, data = trio(TYPES, config), scene(6)
    before = answers(networks, *data)
    within = [[2, 1, 0, 3, 4, 5], [5, 4, 0, 3, 1, 2]]
    for order in within:
        after = answers(networks, *(x[..., order, :] for x in data))
        for a, b in zip(before, after, strict=True):
            close(b, a[..., order, :])
    across = [1, 0, 2, 3, 4, 5]
    after = answers(networks, *(x[..., across, :] for x in data))
    for a, b in zip(before, after, strict=True):
        # every body's answer differs, by far more than the 1e-12 of the reordered
        assert ((b - a[..., across, :]).abs().amax((0, -1)) > 1e-8).all()


def test_parameters_do_not_depend_on_the_number():
    one, many = trio((0, 1, 2)), trio(TYPES)
    for a, b in zip(one, many, strict=True):
        sizes = {name: value.shape for name, value in b.state_dict().items()}
        assert {name: value.shape for name, value in a.state_dict().items()} == sizes
        a.load_state_dict(b.state_dict())


def test_what_each_body_sees():
    """Every body sees all that was, and of the step itself its own latent or its own move alone."""
    networks, (state, actions, move, latent) = trio(TYPES), scene(6, B=1)
    every = answers(networks, state, actions, move, latent)

    def sees(which, variable):
        def body_sums(v):
            parts = {"state": state, "actions": actions, "move": move, "latent": latent}
            return every_sum(answers(networks, *{**parts, variable: v}.values())[which])

        def every_sum(out):
            return out[0].sum(-1)

        value = {"state": state, "actions": actions, "move": move, "latent": latent}[variable]
        jacobian = torch.autograd.functional.jacobian(body_sums, value)
        return jacobian.transpose(1, -2).flatten(2).abs().amax(-1) > 0

    mean, mu_q, log_ratio, loc, scale = range(len(every))
    for which in (mean, mu_q, log_ratio, loc, scale):
        assert sees(which, "state").all()
        assert sees(which, "actions").all()
        own, nothing = torch.eye(6, dtype=torch.bool), torch.zeros(6, 6, dtype=torch.bool)
        assert torch.equal(sees(which, "move"), own if which in (mu_q, log_ratio) else nothing)
        assert torch.equal(sees(which, "latent"), own if which in (loc, scale) else nothing)


def merged(stack, own, size):
    """A plain Stack equal to the set's g where nobody else is and there is one type.

    Input (u, x, e = 1, message = 0): the type's column joins the bias, the message's are dropped.
    """
    plain = Stack(own + size, stack.layers[-1].out_features, stack.config).double()
    state = stack.state_dict()
    first = state["layers.0.weight"]
    state["layers.0.bias"] = state["layers.0.bias"] + first[:, own + size]
    state["layers.0.weight"] = first[:, : own + size]
    plain.load_state_dict(state)
    return plain


@pytest.mark.parametrize("scale", [None, 0.05])
def test_one_body_is_the_plain_networks(scale):
    """With one body the set networks are `Stack` and `PolicyNormal`."""
    mean, residual, policy = trio((0,), scale=scale)
    state, actions, move, latent = (x.flatten(-2) for x in scene(1))
    c = torch.cat([state / 5.0, *actions], -1)
    close(mean(c), merged(mean.network.network, 0, 6)(c))
    x, reordered = torch.cat([c, move], -1), torch.cat([move, c], -1)
    close(residual(x), merged(residual.network.network, 2, 6)(reordered))
    plain = PolicyNormal(
        6, Z, 2, NET, scale=scale, floor=0.01, mean_init=policy.weight[0].detach().T
    ).double()
    plain.network = merged(policy.network.network, Z, 6)
    close(policy(c, latent).log_prob(move), plain(c, latent).log_prob(move))


def test_policy_starts_at_constant_velocity():
    networks, (state, actions, move, latent) = trio(TYPES), scene(6)
    policy = networks[2]
    for parameter in policy.network.parameters():
        parameter.data.zero_()
    *_, loc, scale = answers(networks, state, actions, move, latent)
    close(loc, actions[0])
    close(scale, torch.full_like(scale, F.softplus(torch.zeros(()).double()) + 0.01))
    # each type has an affine map of its own
    policy.weight.data[2] *= 2
    policy.bias.data[1] += 0.5
    *_, loc, _ = answers(networks, state, actions, move, latent)
    factor = torch.tensor([1.0, 1, 1, 2, 1, 1])[:, None]
    close(loc, actions[0] * factor + 0.5 * torch.tensor([0.0, 1, 0, 0, 1, 0])[:, None])


def test_latents_may_have_more_draws_than_contexts():
    policy = trio(TYPES)[2]
    state, actions, _, _ = scene(6)
    c, z = context_of(state, actions), noise(4, 5, 6 * Z, seed=8)
    out, one = policy(c, z).base_dist, policy(c.expand(4, 5, -1), z).base_dist
    assert policy(c, z).batch_shape == (4, 5)
    close(out.loc, one.loc)
    close(out.scale, one.scale)


@pytest.mark.parametrize("learned", [True, False])
def test_in_control_vae(learned):
    """In place of its networks they give Pyro's own ELBO, the same for bodies in another order."""
    types, order = (0, 1, 0), [2, 1, 0]
    posterior = "learned" if learned else "prior"
    model, guide = build("small", 3, history=3, latent_size=3 * Z, posterior_scale=posterior)
    mean, residual, policy = trio(types, learn_scale=learned)
    model.step = Step(FixedScaleNormal(mean, 0.3), policy)
    guide.residual = ResidualNormal(residual, learn_scale=learned)
    batch = recording(3 + 4, 5, 3)
    torch.manual_seed(3)
    ours = ScaledELBO()(model, guide)(batch)
    torch.manual_seed(3)
    close(ours, TraceMeanField_ELBO().differentiable_loss(model, guide, batch))
    swapped = batch._replace(
        position=batch.position.unflatten(-1, (3, 2))[..., order, :].flatten(-2)
    )
    terms = []
    for data in (batch, swapped):  # the posterior of each body moves with it
        guide(data)
        site = guide.get_traces()[1].nodes["latent"]["fn"].base_dist
        terms.append([x.unflatten(-1, (3, Z)) for x in (site.loc, site.scale.expand_as(site.loc))])
    for a, b in zip(*terms, strict=True):
        close(b, a[..., order, :])


@pytest.mark.parametrize("scenes", [1, 3, 1000])
def test_many_draws_are_taken_some_scenes_at_a_time(scenes, monkeypatch):
    """Without a gradient they take the memory of so many, and are the same."""
    net, made, given = network(TYPES, own=2), [], []
    tokens, u = noise(4, 5, len(TYPES), 6), noise(7, 4, 5, len(TYPES), 2, seed=1)
    expected = net(tokens, u).detach()
    activation, pairs = net.activation, len(TYPES) ** 2 * NET.hidden

    def noted(x):
        made.append(x.numel() // pairs)
        return activation(x)

    net.activation = noted
    net.network.register_forward_pre_hook(lambda _, x: given.append(len(x[0])))
    monkeypatch.setattr("pyro_animacy.sets.AT_ONCE", scenes * pairs)
    with torch.no_grad():
        close(net(tokens, u), expected)
    assert max(made) == min(scenes, 20)
    assert sum(made) == 20  # of the past alone: as many for any number of draws
    assert sum(given) == 7
    assert max(given) == {1: 1, 3: 1, 1000: 7}[scenes]


@pytest.mark.parametrize("name", ["set", "set_rest"])
def test_a_step_is_a_product_over_bodies(name):
    """What a body does at a step says nothing of another's, and densities multiply."""
    model, guide = build(name, 3, latent_size=1)
    batch = recording(model.config.history + 1, 4, 3)
    moved = batch._replace(position=batch.position.clone())
    moved.position[-1, :, :2] += 0.7  # of the first body, in the last frame
    found = []
    for one in (batch, moved):
        torch.manual_seed(0)
        found.append(draw_steps(guide, one, 20_000).log_weight)
    before, after = found
    assert before.shape == (20_000, 1, 4, 3)
    assert torch.equal(before[..., 1:], after[..., 1:])
    assert (before[..., 0] != after[..., 0]).all()
    # by weights of all bodies together, which need the more draws
    together = log_mean_exp(before.sum(-1))
    error = psis(before.sum(-1).numpy()).standard_error
    difference = (log_mean_exp(before).sum(-1) - together).abs().numpy()
    assert (difference < 4 * error + 1e-3).all()
    assert error.max() < 0.05
