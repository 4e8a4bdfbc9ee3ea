"""Dreamer's behaviour beside enumeration, finite differences, Pyro's own ELBO, and closed forms."""

import copy
import dataclasses
import itertools
import math

import pyro
import pytest
import torch
from pyro import poutine
from pyro.distributions import Normal, Uniform
from pyro.infer import Trace_ELBO
from torch.nn import functional as F  # noqa: N812

from pyro_animacy.acting.behaviour import (
    Actor,
    Behaviour,
    BehaviourConfig,
    Critic,
    Dream,
    Returns,
    actor_loss,
    critic_loss,
    dream,
    lambda_returns,
    returns,
)
from pyro_animacy.errors import ConfigError
from pyro_animacy.models.program import Memory
from pyro_animacy.models.world_model import Sight, WorldModel, WorldModelConfig
from pyro_animacy.nets import StackConfig

DOUBLE = torch.float64
H, B, X, A = 4, 5, 3, 2
NET = StackConfig(hidden=6, layers=1)
NETS = dict.fromkeys(("prior", "posterior", "encoder", "decoder", "reward", "continuation"), NET)


def normal(*shape, seed=0, dtype=DOUBLE):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def world(
    memory_size=4, latent_size=3, seed=0, actions=A, continuation=False, spread=1.0, **options
):
    """A world model of double precision, its weights random and not small."""
    torch.manual_seed(seed)
    config = WorldModelConfig(memory_size, latent_size, **{**NETS, **options})
    sight = Sight((X,), (0.0,) * X, (1.0,) * X, actions, True, continuation, reward_spread=spread)
    model = WorldModel(config, sight).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.5)
    return model


def belief(model, size=B, seed=1):
    both = normal(size, model.memory_size + model.latent_size, seed=seed)
    return Memory(*both.split((model.memory_size, model.latent_size), -1))


def heads(model, seed=2, first_scale=0.5, discrete=False):
    """An actor and a critic of its memory, of double precision."""
    torch.manual_seed(seed)
    inputs, size = model.memory_size + model.latent_size, model.sight.actions
    actor = Actor(inputs, size, NET, discrete=discrete, first_scale=first_scale).double()
    return actor, Critic(inputs, NET).double()


def squashed(mean, scale):
    """An actor of one action whose density is tanh(N(mean, scale^2)), whatever it sees."""
    actor = Actor(1, 1, StackConfig(hidden=1, layers=0), first_scale=scale).double()
    with torch.no_grad():
        actor.network.layers[0].weight.zero_()
        actor.network.layers[0].bias.copy_(
            torch.tensor([5 * math.atanh(mean / 5), 0.0], dtype=DOUBLE)
        )
    return actor


class Still:
    """A world in which nothing happens."""

    def dynamics(self, name, memory, action, evidence):
        return memory


def seeded(call, seed=5):
    torch.manual_seed(seed)
    return call()


# --- returns -------------------------------------------------------------------------------------


def k_step(k, t, r, v, gamma):
    """V_N^k, equation 5: the rewards of k steps and the value there, cut off at the horizon."""
    end = min(t + k, len(r))
    total, discount = torch.zeros_like(r[0]), torch.ones_like(r[0])
    for n in range(t, end):
        total = total + discount * r[n]  # r[n] is r_{n+1}, met at m_{n+1}
        discount = discount * gamma[n]
    return total + discount * v[end]


def enumerated(r, v, gamma, lam):
    """V_lambda, equation 6: (1 - lambda) sum_{k=1}^{H-1} lambda^{k-1} V^k + lambda^{H-1} V^H."""
    steps = len(r)
    return torch.stack([
        (1 - lam) * sum(lam ** (k - 1) * k_step(k, t, r, v, gamma) for k in range(1, steps))
        + lam ** (steps - 1) * k_step(steps, t, r, v, gamma)
        for t in range(steps)
    ])  # fmt: skip


@pytest.mark.parametrize("lam", [0.0, 0.3, 0.95, 1.0])
@pytest.mark.parametrize("steps", [1, 2, 7])
def test_lambda_returns_are_those_of_the_enumeration(steps, lam):
    """Of k-step returns, with a discount of its own for every step."""
    r, v = normal(steps, B), normal(steps + 1, B, seed=1)
    gamma = normal(steps, B, seed=2).sigmoid()
    ours = lambda_returns(r, v, gamma, lam)
    torch.testing.assert_close(ours, enumerated(r, v, gamma, lam), rtol=1e-12, atol=1e-12)


def test_lambda_returns_at_both_ends():
    """lambda 0 is one step, equation 4's r + gamma v; lambda 1 all of them and the last value."""
    r, v, gamma = normal(H, B), normal(H + 1, B, seed=1), normal(H, B, seed=2).sigmoid()
    one = lambda_returns(r, v, gamma, 0.0)
    torch.testing.assert_close(one, r + gamma * v[1:], rtol=1e-13, atol=0)
    every = lambda_returns(r, v, gamma, 1.0)
    for t in range(H):
        torch.testing.assert_close(every[t], k_step(H, t, r, v, gamma), rtol=1e-12, atol=1e-13)


def test_returns_of_the_imagined_rewards_alone_and_of_k_steps_are_special_cases():
    """Equations 4 and 5: V_R has no value after the horizon; V_N^k sees k rewards and a value."""
    r, v, gamma = normal(H, B), normal(H + 1, B, seed=1), normal(H, B, seed=2).sigmoid()
    V_R = lambda_returns(r, torch.zeros_like(v), torch.ones_like(gamma), 1.0)
    for t in range(H):
        torch.testing.assert_close(V_R[t], r[t:].sum(0), rtol=1e-12, atol=1e-13)
        for k in range(1, H - t + 1):
            part = slice(t, t + k)
            ours = lambda_returns(r[part], v[t : t + k + 1], gamma[part], 1.0)[0]
            torch.testing.assert_close(ours, k_step(k, t, r, v, gamma), rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("lam", [0.0, 0.5, 1.0])
def test_true_values_are_their_own_returns(lam):
    """Where v solves Bellman's equation, V_t = v_t whatever lambda."""
    v, gamma = normal(H + 1, B), normal(H, B, seed=2).sigmoid()
    r = v[:-1] - gamma * v[1:]
    torch.testing.assert_close(lambda_returns(r, v, gamma, lam), v[:-1], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("continuation", [False, True])
def test_returns_of_a_dream_step_by_step(continuation):
    """Rewards, values and discounts are those of the memories they belong to, weights likewise."""
    model = world(continuation=continuation)
    actor, critic = heads(model)
    config = BehaviourConfig(horizon=H, discount=0.9, return_lambda=0.7)
    dreamt = seeded(lambda: dream(model, actor, belief(model), H))
    worth = returns(model, critic, dreamt, config)
    at = [Memory(*(x[t] for x in dreamt.memory)) for t in range(H + 1)]
    r = torch.stack([model.rewarded(m).mean for m in at[1:]])
    gamma = torch.full_like(r, 0.9)
    if continuation:
        gamma = 0.9 * torch.stack([model.ends(torch.cat(m, -1))[..., 0].sigmoid() for m in at[1:]])
    v = torch.stack([critic(m).mean for m in at])
    torch.testing.assert_close(worth.value, enumerated(r, v, gamma, 0.7), rtol=1e-12, atol=1e-12)
    for t in range(H):
        expected = gamma[:t].prod(0)  # w_0 = 1: m_0 was met, whatever comes after it
        torch.testing.assert_close(worth.weight[t], expected, rtol=1e-12, atol=0)
    assert not worth.weight.requires_grad


def test_returns_do_not_depend_on_the_unit_of_the_rewards():
    """Rewards a hundred times as large, in a model that measured it: the same returns."""
    found = []
    for spread in (1.0, 100.0):
        model = world(reward_scale=None, spread=spread)
        dreamt = seeded(lambda model=model: dream(model, heads(model)[0], belief(model), H))
        assert model.rewarded(dreamt.memory).scale.eq(spread).all()
        found.append(returns(model, heads(model)[1], dreamt, BehaviourConfig(horizon=H)).value)
    torch.testing.assert_close(found[0], found[1], rtol=1e-12, atol=1e-12)


def test_a_dream_is_what_the_model_imagines_under_its_actions():
    """m_0 is the start, and with z drawn alike, m_{1..H} those of `WorldModel.imagine`."""
    model = world(latent_size=0)
    actor, _ = heads(model)
    start = belief(model)
    dreamt = seeded(lambda: dream(model, actor, start, H))
    expected = model.imagine(start, dreamt.action)
    torch.testing.assert_close(dreamt.memory.hidden[0], start.hidden, rtol=0, atol=0)
    torch.testing.assert_close(dreamt.memory.hidden[1:], expected.hidden, rtol=0, atol=0)
    for t in range(H):
        pi = actor(Memory(*(x[t] for x in dreamt.memory)))
        log_prob = pi.log_prob(dreamt.action[t])
        torch.testing.assert_close(dreamt.log_prob[t], log_prob, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(dreamt.entropy[t], -log_prob, rtol=1e-9, atol=1e-9)


# --- the gradient through the dynamics -----------------------------------------------------------


def linear_world():
    """m_{t+1} = F m_t + G a_t + N(0, sigma^2), r_t = c'm_t: (model, F, G, c)."""
    line = StackConfig(hidden=X, layers=0)
    model = world(0, X, prior=line, reward=line, least_scale=0.05)
    prior, reward = model.dynamics.prior.network.layers[0], model.reward.layers[0]
    with torch.no_grad():
        prior.weight[:X] *= 0.7
        prior.bias[:X] = 0.0
        prior.weight[X:] = 0.0  # the scale does not depend on where it is
        reward.bias.zero_()
    return model, prior.weight[:X, :X].detach(), prior.weight[:X, X:].detach(), reward.weight[0]


def test_the_gradient_through_a_linear_world_is_that_of_algebra():
    """d sum_t V_t / d a_k = sum_t sum_{n > max(t, k)} gamma^{n-t-1} c'F^{n-k-1} G, any noise."""
    model, matrix, push, c = linear_world()
    a = normal(H, B, A, seed=4).tanh().requires_grad_()
    step = iter(range(H))

    def actor(memory):  # what was decided beforehand
        return pyro.distributions.Delta(a[next(step)], event_dim=1)

    critic = Critic(X, StackConfig(hidden=X, layers=0)).double().requires_grad_(False)
    for parameter in critic.parameters():
        parameter.zero_()
    config = BehaviourConfig(horizon=H, discount=0.9, return_lambda=1.0)
    dreamt = seeded(lambda: dream(model, actor, belief(model), H))
    value = returns(model, critic, dreamt, config).value
    found = torch.autograd.grad(value.sum(), a)[0]
    for k in range(H):
        expected = sum(
            0.9 ** (n - t - 1) * c @ torch.linalg.matrix_power(matrix, n - k - 1) @ push
            for t in range(H) for n in range(max(t, k) + 1, H + 1)
        )  # fmt: skip
        torch.testing.assert_close(found[k], expected.expand(B, A), rtol=1e-11, atol=1e-12)


def finite_differences(loss, parameters, step=1e-5):
    """Central differences of ``loss()`` in every number of the parameters."""
    found = []
    for parameter in parameters:
        slope, flat = torch.zeros_like(parameter), parameter.data.view(-1)
        for i in range(len(flat)):
            at, ends = flat[i].item(), []
            for sign in (1, -1):
                flat[i] = at + sign * step
                ends.append(loss().item())
            flat[i] = at
            slope.view(-1)[i] = (ends[0] - ends[1]) / (2 * step)
        found.append(slope)
    return found


class Seeing:
    """An actor that at step k is shown memories of another dream."""

    def __init__(self, actor, memory):
        self.actor, self.memories = actor, [Memory(*parts) for parts in zip(*memory, strict=True)]
        self.step = 0

    def __call__(self, memory):
        self.step += 1
        return self.actor(self.memories[self.step - 1])


@pytest.mark.parametrize("entropy", [0.0, 0.3])
@pytest.mark.parametrize("linear", [True, False])
def test_gradients_of_the_imagined_return_by_finite_differences(linear, entropy):
    """Under the same draws. The actor sees m_t as a constant, so differences hold what it sees."""
    model = linear_world()[0] if linear else world(continuation=False)
    actor, critic = heads(model)
    config = BehaviourConfig(horizon=H, discount=0.9, return_lambda=0.8)
    start = belief(model)

    def loss(act, steps=H):
        dreamt = seeded(lambda: dream(model, act, start, steps))
        worth = returns(model, critic, dreamt, config)
        zero = torch.zeros_like(worth.value)
        return actor_loss(dreamt, worth, zero, reinforce=0.0, entropy=entropy), dreamt

    parameters = list(actor.parameters())
    ours, reference = loss(actor)
    gradients = torch.autograd.grad(ours, parameters)
    seen = Memory(*(x.detach() for x in reference.memory))
    expected = finite_differences(lambda: loss(Seeing(actor, seen))[0], parameters)
    for one, other in zip(gradients, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-8)
    # of one step nothing is held: the plain differences are the gradient
    gradients = torch.autograd.grad(loss(actor, 1)[0], parameters)
    expected = finite_differences(lambda: loss(actor, 1)[0], parameters)
    for one, other in zip(gradients, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-8)


# --- REINFORCE -----------------------------------------------------------------------------------


@pytest.mark.parametrize("baseline", ["none", "critic"])
def test_the_score_function_gradient_is_that_of_the_expected_return(baseline):
    """All 3^3 sequences of actions, each by its probability, in a world without chance.

    grad sum_a p(a) V_0(a), whatever the baseline.
    """
    steps, size, gamma = 3, 3, 0.9
    model = world(latent_size=0, actions=size)
    actor, critic = heads(model, discrete=True)
    with torch.no_grad():
        actor.network.layers[-1].weight.mul_(4)
    config = BehaviourConfig(horizon=steps, discount=gamma, return_lambda=1.0)
    start, parameters = belief(model, 1), list(actor.parameters())
    expected_return, found = 0.0, [torch.zeros_like(p) for p in parameters]
    for classes in itertools.product(range(size), repeat=steps):
        a = [F.one_hot(torch.tensor([k]), size).double() for k in classes]
        fixed = poutine.condition(dream, data={f"action_{k}": x for k, x in enumerate(a)})
        dreamt = fixed(model, actor, start, steps)
        torch.testing.assert_close(dreamt.action, torch.stack(a), rtol=0, atol=0)
        worth = returns(model, critic, dreamt, config)
        m = [Memory(*(x[t].detach() for x in dreamt.memory)) for t in range(steps + 1)]
        # by hand: probability of the sequence, and what it brings
        probability = math.prod(actor(m[t]).probs[0, classes[t]] for t in range(steps))
        r = [model.rewarded(m[t + 1]).mean[0] for t in range(steps)]
        V = sum(gamma**t * r[t] for t in range(steps)) + gamma**steps * critic(m[-1]).mean[0]
        expected_return = expected_return + probability * V.detach()
        b = torch.stack([critic(m[t]).mean for t in range(steps)])
        b = b.detach() if baseline == "critic" else torch.zeros_like(b)
        loss = actor_loss(dreamt, worth, b, reinforce=1.0, entropy=0.0)
        for total, g in zip(found, torch.autograd.grad(loss, parameters), strict=True):
            total += probability.detach() * g
    exact = torch.autograd.grad(expected_return, parameters)
    assert max(g.abs().max() for g in exact) > 1e-2
    for one, other in zip(found, exact, strict=True):
        torch.testing.assert_close(one, -other, rtol=1e-9, atol=1e-11)


def test_the_score_function_gradient_of_a_squashed_gaussian():
    """grad E V(a) = E grad log pi(a) V(a): by integration over a, and over what is before tanh."""
    actor, n = squashed(0.4, 0.7), 4001
    with torch.no_grad():
        actor.network.layers[0].weight.fill_(0.3)
    one = Memory(torch.ones(1, 1).double(), torch.zeros(1, 0).double())
    x = torch.linspace(-8, 8, n, dtype=DOUBLE)
    density = Normal(torch.zeros_like(x), 1.0).log_prob(x).exp() * (x[1] - x[0])

    def worth(a):
        return (2 * a).sin() + a

    before, parameters = actor(one).base_dist.base_dist, list(actor.parameters())
    a = (before.loc + before.scale * x[:, None]).tanh()  # (n, 1)
    expected = torch.autograd.grad((density * worth(a[:, 0])).sum(), parameters)
    before = actor(one).base_dist.base_dist
    a = (before.loc + before.scale * x[:, None]).tanh()  # with a gradient, as if it were drawn
    fixed = poutine.condition(dream, data={"action_0": a})
    start = Memory(*(part.expand(n, -1) for part in one))
    dreamt = fixed(Still(), actor, start, 1)
    V = Returns(worth(a[:, 0].detach())[None], n * density[None])
    loss = actor_loss(dreamt, V, torch.zeros(1, n).double(), reinforce=1.0, entropy=0.0)
    found = torch.autograd.grad(loss, parameters)
    for ours, other in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, -other, rtol=1e-6, atol=1e-8)


def test_the_score_of_saturated_actions_is_zero_in_the_mean():
    """E grad log pi(a) = 0, also where a in float32 rounds to 1, as many of these do."""
    n, actor = 200_000, squashed(0.4, 5.0).float()
    start = Memory(torch.ones(n, 1), torch.zeros(n, 0))
    dreamt = seeded(lambda: dream(Still(), actor, start, 1))
    assert (dreamt.action.abs() > 1 - 1e-6).float().mean() > 0.05
    bias = actor.network.layers[0].bias  # of the mean and of the scale before softplus
    (score,) = torch.autograd.grad(dreamt.log_prob.mean(), bias)
    # standard errors 1 / (5 sqrt n) and at most sqrt(2) / (5 sqrt n)
    assert score.abs().max() < 5 * math.sqrt(2 / n) / 5


@pytest.mark.parametrize("rho", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("eta", [0.0, 0.2])
def test_the_actors_loss_is_its_sum(rho, eta):
    """Term by term, and its gradients: those through log pi only where V is a constant."""
    V, w, b = normal(H, B), normal(H, B, seed=1).sigmoid(), normal(H, B, seed=2)
    log_pi, entropy = normal(H, B, seed=3), normal(H, B, seed=4)
    leaves = [x.requires_grad_() for x in (V, log_pi, entropy)]
    dreamt = Dream(Memory(V, V), V, log_pi, entropy)
    loss = actor_loss(dreamt, Returns(V, w), b, reinforce=rho, entropy=eta)
    by_hand = -sum(
        w[t, i].item() * (
            rho * log_pi[t, i].item() * (V[t, i] - b[t, i]).item() + (1 - rho) * V[t, i].item()
            + eta * entropy[t, i].item()
        )
        for t in range(H) for i in range(B)
    ) / B  # fmt: skip
    assert loss.item() == pytest.approx(by_hand, rel=1e-12)
    slopes = torch.autograd.grad(loss, leaves, allow_unused=True)
    expected = -w * (1 - rho) / B, -w * rho * (V - b) / B, -w * eta / B
    for one, other in zip(slopes, expected, strict=True):
        one = torch.zeros_like(other) if one is None else one
        torch.testing.assert_close(one, other.detach(), rtol=1e-12, atol=1e-15)


# --- control as inference ------------------------------------------------------------------------


def test_the_actors_loss_is_pyros_elbo():
    """Guide: the dream of the actor. Model: the dream of uniform actions, and what is hoped for.

    With weights of 1 (discount 1), eta times minus the ELBO is the loss at rho = 0, less the
    constant of the uniform density, and its gradient that of the loss, under the same draws.
    """
    eta, model = 0.3, world()
    actor, critic = heads(model)
    start = belief(model)
    config = BehaviourConfig(horizon=H, discount=1.0, return_lambda=0.8)

    def uniform(memory):
        one = torch.ones(len(memory.hidden), A, dtype=DOUBLE)
        return Uniform(-one, one).to_event(1)

    def guide():
        with pyro.plate("dreams", B):
            dream(model, actor, start, H)

    def hoping():
        with pyro.plate("dreams", B):
            worth = returns(model, critic, dream(model, uniform, start, H), config)
            assert (worth.weight == 1).all()
            pyro.factor("hoped", worth.value.sum(0) / eta)

    parameters = list(actor.parameters())
    elbo = seeded(lambda: Trace_ELBO().differentiable_loss(hoping, guide))
    dreamt = seeded(lambda: dream(model, actor, start, H))
    worth = returns(model, critic, dreamt, config)
    loss = actor_loss(dreamt, worth, torch.zeros_like(worth.value), reinforce=0.0, entropy=eta)
    constant = eta * H * A * math.log(2)
    torch.testing.assert_close(eta * elbo / B, loss + constant, rtol=1e-10, atol=1e-10)
    ours = torch.autograd.grad(loss, parameters)
    of_elbo = torch.autograd.grad(eta * elbo / B, parameters)
    assert all(g.abs().max() > 1e-4 for g in ours)
    for one, other in zip(ours, of_elbo, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-10)


def test_behaviour_learns_the_policy_that_inference_asks_for():
    """Of one step, pi*(a) = exp(V(a) / eta) / sum_b exp(V(b) / eta), the posterior over actions."""
    eta, size = 0.5, 3
    model = world(latent_size=0, actions=size)
    config = BehaviourConfig(
        horizon=1, discount=1e-9, entropy=eta, reinforce=1.0, actor_rate=3e-2, actor=NET, critic=NET
    )
    torch.manual_seed(0)
    behaviour = Behaviour(model, config, discrete=True).double()
    one = belief(model, 1)
    met = model.imagine(one, torch.eye(size).double()[None])
    with torch.no_grad():
        model.reward.layers[-1].weight.mul_(1 / model.rewarded(met).mean.std())
    posterior = (model.rewarded(met).mean[0] / eta).softmax(-1).detach()
    assert posterior.min() > 0.02
    start = Memory(*(x.expand(256, -1) for x in one))
    for step in range(300):
        behaviour.update(model, start, step)
    learned = behaviour.actor(one).probs[0].detach()
    torch.testing.assert_close(learned, posterior, rtol=0, atol=0.03)


# --- who learns from what ------------------------------------------------------------------------


def test_the_critics_loss_is_minus_the_log_density_of_the_returns():
    """Up to its constant; its gradient reaches neither the world model nor the actor."""
    model = world(continuation=True)
    actor, critic = heads(model)
    dreamt = seeded(lambda: dream(model, actor, belief(model), H))
    worth = returns(model, critic, dreamt, BehaviourConfig(discount=0.9))
    loss = critic_loss(critic, dreamt, worth)
    v = critic(Memory(*(x[:-1] for x in dreamt.memory)))
    minus = -(worth.weight * v.log_prob(worth.value)).sum(0).mean()
    constant = worth.weight.sum(0).mean() * math.log(2 * math.pi) / 2
    torch.testing.assert_close(loss, minus - constant, rtol=1e-12, atol=1e-12)
    others = [*model.parameters(), *actor.parameters()]
    assert all(g is None for g in torch.autograd.grad(loss, others, allow_unused=True,
                                                      retain_graph=True))  # fmt: skip
    slope = torch.autograd.grad(loss, critic.network.layers[-1].bias)[0]
    expected = (worth.weight * (v.mean - worth.value)).sum(0).mean()  # V is a constant
    torch.testing.assert_close(slope[0], expected, rtol=1e-12, atol=1e-12)


def numbers(module):
    return [x.detach().clone() for x in (*module.parameters(), *module.buffers())]


def same(one, other):
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("discrete", [False, True])
def test_an_update_is_one_step_of_each_loss_on_its_own_part(discrete):
    """Actor and critic move as by gradients of their own losses; the world model stays, without
    gradients, as does whatever the other one's loss reaches."""
    model = world(continuation=True)
    config = BehaviourConfig(
        horizon=H, reinforce=None, entropy=0.01, actor=NET, critic=NET, clip_norm=0.01,
        target_every=2,
    )  # fmt: skip
    torch.manual_seed(3)
    behaviour = Behaviour(model, config, discrete=discrete).double()
    for parameter in behaviour.target.parameters():  # as if it had been copied long ago
        parameter.mul_(0.7)
    assert behaviour.reinforce == float(discrete)
    other, start, before = copy.deepcopy(behaviour), belief(model), numbers(model)
    said = seeded(lambda: behaviour.update(model, start, 1))
    assert same(numbers(model), before)
    assert all(p.grad is None for p in (*model.parameters(), *behaviour.target.parameters()))
    # by hand, on the copy
    dreamt = seeded(lambda: dream(model, other.actor, start, H))
    worth = returns(model, other.target, dreamt, config)
    baseline = other.target(Memory(*(x[:-1] for x in dreamt.memory))).mean.detach()
    losses = (
        actor_loss(dreamt, worth, baseline, reinforce=float(discrete), entropy=0.01),
        critic_loss(other.critic, dreamt, worth),
    )
    assert said["actor_loss"] == pytest.approx(losses[0].item(), rel=1e-12)
    assert said["critic_loss"] == pytest.approx(losses[1].item(), rel=1e-12)
    assert said["imagined_return"] == pytest.approx(worth.value[0].mean().item(), rel=1e-12)
    for name, loss, rate in zip(("actor", "critic"), losses, (8e-5, 8e-5), strict=True):
        part, expected = getattr(behaviour, name), list(getattr(other, name).parameters())
        gradients = torch.autograd.grad(loss, expected, retain_graph=True)
        norm = math.sqrt(sum(g.square().sum().item() for g in gradients))
        assert norm > config.clip_norm
        for p, was, g in zip(part.parameters(), expected, gradients, strict=True):
            g = g * config.clip_norm / (norm + 1e-6)
            torch.testing.assert_close(p.grad, g, rtol=1e-9, atol=1e-15)
            # Adam's first step: m / (sqrt(v) + eps), both corrected
            torch.testing.assert_close(p, was - rate * g / (g.abs() + 1e-5), rtol=1e-9, atol=1e-13)


def test_the_critic_of_the_returns_is_copied_now_and_then():
    model = world()
    config = BehaviourConfig(horizon=2, target_every=3, critic_rate=1e-2, actor=NET, critic=NET)
    torch.manual_seed(3)
    behaviour = Behaviour(model, config, discrete=False).double()
    learning, copies = [], []
    for step in range(8):
        learning.append(numbers(behaviour.critic))  # as it is before the update
        behaviour.update(model, belief(model), step)
        copies.append(numbers(behaviour.target))
    for step in range(8):
        assert same(copies[step], learning[step - step % 3])
        assert not same(numbers(behaviour.critic), learning[step])
    assert same(numbers(behaviour.target), copies[-1])


def test_dreams_begin_at_some_of_the_beliefs():
    """Drawn without replacement, each as likely as another, hidden and latent of one belief."""
    model, found = world(), []

    config = BehaviourConfig(horizon=1, starts=3, actor=NET, critic=NET)
    torch.manual_seed(0)
    behaviour = Behaviour(model, config, discrete=False).double()
    behaviour.actor.register_forward_pre_hook(lambda _, given: found.append(given[0]))
    start = Memory(*(torch.arange(8.0).double()[:, None].expand(-1, n) for n in (4, 3)))
    for step in range(100):
        behaviour.update(model, start, step)
    seen = torch.stack([m.hidden[:, 0] for m in found])
    assert seen.shape == (100, 3)
    torch.testing.assert_close(seen, torch.stack([m.latent[:, 0] for m in found]), rtol=0, atol=0)
    assert all(len(row.unique()) == 3 for row in seen)
    counts = torch.bincount(seen.flatten().long(), minlength=8)
    assert (counts - 37.5).abs().max() < 5 * math.sqrt(100 * 3 / 8 * 5 / 8)


# --- the policy ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("mean", "scale"), [(0.0, 0.3), (0.8, 1.0), (-1.5, 2.0)])
def test_the_squashed_density_and_its_entropy(mean, scale):
    """log N(atanh a) - log(1 - a^2), which integrates to 1; the entropy by integration."""
    actor = squashed(mean, scale)
    sigma = torch.tensor(scale + 1e-4, dtype=DOUBLE)
    m = Memory(torch.zeros(1, 1).double(), torch.zeros(1, 0).double())
    x = torch.linspace(mean - 12 * sigma, mean + 12 * sigma, 200_001, dtype=DOUBLE)
    a = x.tanh()
    inner = (a.abs() < 1 - 1e-6).nonzero()[:, 0]
    log_p = Normal(mean, sigma).log_prob(x) - (4 * (x.exp() + (-x).exp()) ** -2).log()
    ours = actor(m).log_prob(a[inner, None])
    torch.testing.assert_close(ours, log_p[inner], rtol=1e-8, atol=1e-8)
    density = Normal(mean, sigma).log_prob(x).exp()  # of x, d a = (1 - a^2) d x
    torch.testing.assert_close(torch.trapezoid(density, x).item(), 1.0, rtol=1e-9, atol=0)
    entropy = -torch.trapezoid(density * log_p, x).item()

    n = 100_000
    everywhere = Memory(torch.zeros(n, 1).double(), torch.zeros(n, 0).double())
    drawn = seeded(lambda: dream(Still(), actor, everywhere, 1).entropy[0])
    error = drawn.std().item() / math.sqrt(n)
    assert abs(drawn.mean().item() - entropy) < 4 * error
    assert error < 0.02
    assert actor.best(m).item() == pytest.approx(math.tanh(mean), rel=1e-12)
    assert (seeded(lambda: actor(everywhere).sample()) < actor.best(m)).double().mean().item() == (
        pytest.approx(0.5, abs=0.01)
    )  # it is the median


def test_the_mean_is_held_and_the_scale_begins_where_it_is_told():
    """5 tanh(x / 5), and softplus(y + softplus^-1(first)): (5, first) at x = infinity, y = 0."""
    torch.manual_seed(0)
    actor = Actor(X, A, NET).double()
    with torch.no_grad():
        actor.network.layers[-1].weight.zero_()
        actor.network.layers[-1].bias.copy_(torch.tensor([1e4, -1e4, 0.0, 0.0]))
    before = actor(Memory(normal(B, X), torch.zeros(B, 0).double())).base_dist.base_dist
    held = torch.tensor([5.0, -5.0]).double().expand(B, A)
    torch.testing.assert_close(before.loc, held, rtol=1e-12, atol=0)
    torch.testing.assert_close(
        before.scale, torch.full((B, A), 5.0001, dtype=DOUBLE), rtol=1e-12, atol=0
    )


@pytest.mark.parametrize("rho", [0.0, 0.5, 1.0])
def test_actions_that_round_to_one_have_finite_losses_and_gradients(rho):
    """In single precision tanh(x) is 1 from x = 9 on, where the density has no value."""
    model = world().float()
    torch.manual_seed(0)
    actor = Actor(7, A, NET, first_scale=30.0)
    critic = Critic(7, NET)
    start = Memory(*(x.float().repeat(20, 1) for x in belief(model)))
    dreamt = dream(model, actor, start, H)
    assert (dreamt.action.abs() == 1).float().mean() > 0.5
    assert dreamt.log_prob.isfinite().all()
    assert dreamt.entropy.isfinite().all()
    worth = returns(model, critic, dreamt, BehaviourConfig())
    loss = actor_loss(dreamt, worth, torch.zeros(H, 100), reinforce=rho, entropy=0.1)
    assert loss.isfinite()
    assert all(g.isfinite().all() for g in torch.autograd.grad(loss, list(actor.parameters())))


def test_a_discrete_actor_takes_one_of_its_actions():
    """Draws are one-hot at their probabilities; the best is the likeliest; entropy by its sum."""
    n, size = 50_000, 4
    torch.manual_seed(0)
    actor = Actor(X, size, NET, discrete=True).double()
    m = Memory(normal(1, X), torch.zeros(1, 0).double())
    pi = actor(Memory(*(x.expand(n, -1) for x in m)))
    p = actor.network(m.hidden)[0].softmax(-1).detach()
    a = pi.sample()
    assert ((a == 0) | (a == 1)).all()
    assert (a.sum(-1) == 1).all()
    assert ((a.mean(0) - p).abs() < 4 * (p * (1 - p) / n).sqrt()).all()
    torch.testing.assert_close(actor.best(m)[0], F.one_hot(p.argmax(), size).double())
    torch.testing.assert_close(actor(m).entropy()[0], -(p * p.log()).sum(), rtol=1e-12, atol=0)
    assert len(p) == size


@pytest.mark.parametrize(
    ("name", "value", "wanted"),
    [
        ("horizon", 0, "at least 1"),
        ("starts", 0, "at least 1, or null"),
        ("discount", 0.0, r"in \(0, 1\]"),
        ("discount", 1.1, r"in \(0, 1\]"),
        ("return_lambda", -0.1, r"in \[0, 1\]"),
        ("reinforce", 2.0, r"in \[0, 1\], or null"),
        ("entropy", -1.0, "0 or more"),
        ("actor_rate", 0.0, "positive"),
        ("critic_rate", float("nan"), "positive"),
        ("clip_norm", 0.0, "positive"),
        ("target_every", 0, "at least 1"),
    ],
)
def test_what_cannot_be_used_is_named(name, value, wanted):
    with pytest.raises(ConfigError, match=rf"behaviour\.{name} is {value}; it must be {wanted}"):
        dataclasses.replace(BehaviourConfig(), **{name: value})
