"""Networks on sets against loops over bodies, smaller sets, and the networks of one body."""

import itertools

import pytest
import torch
from pyro.infer import TraceMeanField_ELBO
from torch.nn import functional as F  # noqa: N812
from variants import EXPERTS, NET, build, config, recording, scale_of

from pyro_animacy import ConfigError, ScaledELBO
from pyro_animacy.criticism.importance import psis
from pyro_animacy.infer.steps import draw_steps, log_mean_exp
from pyro_animacy.models.control_vae import ControlVAE, ControlVAEGuide
from pyro_animacy.nets import PolicyNormal, Stack, StackConfig
from pyro_animacy.sets import EachBody, SetContext, SetLayout, SetPolicy, body_types

TYPES = (0, 1, 0, 2, 1, 0)
Z = 3


def close(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-12)


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def layout_of(types, history=3, **changes):
    scale = scale_of(len(types))
    lengths = {"extent": scale.extent, "separation": scale.separation}
    return SetLayout(tuple(types), 2, history, **lengths, **changes)


def networks_of(types, config=NET, scale=None):
    """What ControlVAE has on a set: the context, mu_p, mu_q with its scale, and the policy."""
    torch.manual_seed(4)
    layout = layout_of(types)
    context = SetContext(layout, config.hidden, config.activation).double()
    C = context.size
    return (
        context,
        EachBody([C], [Z], config).double(),
        EachBody([C, 2], [Z, Z], config).double(),
        SetPolicy(layout, C, Z, config, scale=scale, floor=0.01).double(),
    )


def context_of(context, state, actions):
    """c (..., N * C) of states (..., N, 2) and displacements (k-1, ..., N, 2)."""
    return context(state.flatten(-2), list(actions.flatten(-2)))


def answers(networks, state, actions, move, latent):
    """All that the three networks give: a list of (..., N, size)."""
    context, mean, residual, policy = networks
    N = state.shape[-2]
    c = context_of(context, state, actions)
    pi = policy(c, latent.flatten(-2)).base_dist
    out = residual(c, move.flatten(-2)).chunk(2, -1)
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


@pytest.mark.parametrize("activation", ["elu", "silu"])
@pytest.mark.parametrize("history", [1, 3])
@pytest.mark.parametrize("types", [(0,), (0, 0), TYPES])
def test_context_is_the_equation(types, history, activation):
    """Body by body, message by message, with p_j - p_i spelt out."""
    N, M = len(types), 7
    torch.manual_seed(3)
    context = SetContext(layout_of(types, history), M, activation).double()
    state, actions = noise(6, N, 2), noise(history - 1, 6, N, 2, seed=1)
    c = context_of(context, state, actions)
    assert c.shape == (6, N * context.size)
    c = c.unflatten(-1, (N, -1))
    phi = {"elu": F.elu, "silu": F.silu}[activation]
    scale, net = scale_of(N), context.messages

    def y(b, i):
        e = torch.eye(max(types) + 1).double()[types[i]]
        return torch.cat([state[b, i] / scale.extent, *actions[:, b, i], e])

    for b, i in itertools.product(range(6), range(N)):
        others = [j for j in range(N) if j != i]
        heard = torch.zeros(M, dtype=torch.float64)
        for j in others:
            apart = (state[b, j] - state[b, i]) / scale.separation
            A, B, C = net.mine.weight, net.theirs.weight, net.between.weight
            first = A @ y(b, i) + net.mine.bias + B @ y(b, j) + C @ apart
            heard = heard + phi(first) / len(others)
        close(c[b, i], torch.cat([y(b, i), heard]))


@pytest.mark.parametrize("config", [NET, EXPERTS, StackConfig(hidden=5, activation="silu")])
@pytest.mark.parametrize("inputs", [[4], [3, 4]])
def test_each_body_has_the_same_network(inputs, config):
    N, outputs = 3, [2, 1]
    torch.manual_seed(3)
    net = EachBody(inputs, outputs, config).double()
    parts = [noise(6, N, size, seed=i) for i, size in enumerate(inputs)]
    out = net(*(part.flatten(-2) for part in parts))
    halves = [part.unflatten(-1, (N, -1)) for part in out.split([N * size for size in outputs], -1)]
    for b, i in itertools.product(range(6), range(N)):
        alone = net.network(torch.cat([part[b, i] for part in parts]))
        close(torch.cat([half[b, i] for half in halves]), alone)


@pytest.mark.parametrize("config", [NET, EXPERTS])
def test_equivariant_within_a_type(config):
    """To reorder bodies of a type reorders every answer; to swap types does not."""
    networks, data = networks_of(TYPES, config), scene(6)
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
    one, many = networks_of((0, 1, 2)), networks_of(TYPES)
    for a, b in zip(one, many, strict=True):
        sizes = {name: value.shape for name, value in b.state_dict().items()}
        assert {name: value.shape for name, value in a.state_dict().items()} == sizes
        a.load_state_dict(b.state_dict())


def test_what_each_body_sees():
    """Every body sees all that was, and of the step itself its own latent or its own move alone."""
    networks, (state, actions, move, latent) = networks_of(TYPES), scene(6, B=1)
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


def merged(stack, before, after=0, size=6):
    """A plain Stack equal to the set's g where nobody else is and there is one type.

    Input (before, x, e = 1, message = 0, after): the type's column joins the bias, the message's
    are dropped.
    """
    first = stack.layers[0].weight
    of_type, last = before + size, first.shape[1] - after
    kept = [*range(of_type), *range(last, last + after)]
    plain = Stack(len(kept), stack.layers[-1].out_features, stack.config).double()
    state = stack.state_dict()
    state["layers.0.bias"] = state["layers.0.bias"] + first[:, of_type]
    state["layers.0.weight"] = first[:, kept]
    plain.load_state_dict(state)
    return plain


@pytest.mark.parametrize("scale", [None, 0.05])
def test_one_body_is_the_plain_networks(scale):
    """With one body the set networks are `Stack` and `PolicyNormal`."""
    context, mean, residual, policy = networks_of((0,), scale=scale)
    state, actions, move, latent = (x.flatten(-2) for x in scene(1))
    c, known = torch.cat([state / 5.0, *actions], -1), context(state, list(actions))
    close(mean(known), merged(mean.network, 0)(c))
    close(residual(known, move), merged(residual.network, 0, 2)(torch.cat([c, move], -1)))
    plain = PolicyNormal(
        6, Z, 2, NET, scale=scale, floor=0.01, mean_init=policy.weight[0].detach().T
    ).double()
    plain.network = merged(policy.network.network, Z)
    close(policy(known, latent).log_prob(move), plain(c, latent).log_prob(move))


def test_policy_starts_at_constant_velocity():
    networks, (state, actions, move, latent) = networks_of(TYPES), scene(6)
    policy = networks[-1]
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
    context, *_, policy = networks_of(TYPES)
    state, actions, _, _ = scene(6)
    c, z = context_of(context, state, actions), noise(4, 5, 6 * Z, seed=8)
    out, one = policy(c, z).base_dist, policy(c.expand(4, 5, -1), z).base_dist
    assert policy(c, z).batch_shape == (4, 5)
    close(out.loc, one.loc)
    close(out.scale, one.scale)


@pytest.mark.parametrize("learned", [True, False])
def test_in_control_vae(learned):
    """They give Pyro's own ELBO, and the same posteriors for bodies in another order."""
    order, posterior = [2, 1, 0], "learned" if learned else "prior"
    options = config("set", history=3, latent_size=Z, posterior_scale=posterior)
    torch.manual_seed(0)
    model = ControlVAE(options, scale=scale_of(3), bodies=3, types=(0, 1, 0)).double()
    guide = ControlVAEGuide(model).double()
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
def test_many_scenes_and_draws_are_taken_some_at_a_time(scenes, monkeypatch):
    """Without a gradient they take the memory of so many, and are the same."""
    (context, *_, policy), made, given = networks_of(TYPES), [], []
    state, actions = noise(4, 5, 6, 2), noise(2, 4, 5, 6, 2, seed=1)
    z = noise(7, 4, 5, 6 * Z, seed=2)
    c = context_of(context, state, actions)
    expected = policy(c, z).base_dist
    phi, pairs = context.messages.activation, len(TYPES) ** 2 * NET.hidden

    def noted(x):
        made.append(x.numel() // pairs)
        return phi(x)

    context.messages.activation = noted
    policy.network.network.register_forward_pre_hook(lambda _, x: given.append(len(x[0])))
    monkeypatch.setattr("pyro_animacy.sets.AT_ONCE", scenes * pairs)
    with torch.no_grad():
        close(context_of(context, state, actions), c.detach())
        found = policy(c, z).base_dist
        one = policy(c.expand(7, -1, -1, -1), z).base_dist
    for name in ("loc", "scale"):
        close(getattr(found, name), getattr(expected, name).detach())
        close(getattr(one, name), getattr(expected, name).detach())
    assert max(made) == min(scenes, 20)
    assert sum(made) == 20
    assert sum(given) == 14
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
        found.append(draw_steps(guide, one, 40_000).log_weight)
    before, after = found
    assert before.shape == (40_000, 1, 4, 3)
    assert torch.equal(before[..., 1:], after[..., 1:])
    assert (before[..., 0] != after[..., 0]).all()
    # by weights of all bodies together, which need the more draws
    together = log_mean_exp(before.sum(-1))
    error = psis(before.sum(-1).numpy()).standard_error
    difference = (log_mean_exp(before).sum(-1) - together).abs().numpy()
    assert (difference < 4 * error + 1e-3).all()
    assert error.max() < 0.05
