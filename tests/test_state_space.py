"""The state-space models against their equations in plain PyTorch, and exact linear evidence."""

import math

import plain_pytorch
import pytest
import torch
from torch.distributions import MultivariateNormal, kl_divergence
from variants import (
    STATE_SPACE,
    assert_same_gradients,
    build,
    gradients,
    linear_recording,
    linear_state_space,
    recording,
    supply_noise,
)

from pyro_animacy import Batch, ConfigError, ScaledELBO, StateSpaceConfig, StateSpaceGuide
from pyro_animacy.infer.steps import follow
from pyro_animacy.models.program import Memory, Overshooting
from pyro_animacy.models.state_space import Dynamics

D = 6  # coordinates


def windows(model, T, B, missing=0.0):
    return recording(model.config.history + T, B, missing=missing)


def both(model, guide, batch, monkeypatch, **options):
    """Our loss, its terms, and the plain one, under the same draws."""
    T, B = len(batch.position) - model.config.history, batch.position.shape[1]
    noise = supply_noise(monkeypatch, T, B, 5, D)
    elbo = ScaledELBO(kl_weight=0.37, **options)
    torch.manual_seed(0)
    loss = elbo(model, guide)(batch)
    torch.manual_seed(0)
    seen = None if batch.observed.all() else batch.observed
    plain = plain_pytorch.state_space_loss(
        model, guide, batch.position, 0.37, seen, noise, options.get("kl_balance")
    )
    return loss, elbo.terms, plain


# The loss is the equations.


@pytest.mark.parametrize("missing", [0.0, 0.05])
@pytest.mark.parametrize("name", STATE_SPACE)
@pytest.mark.parametrize(("T", "B"), [(1, 1), (6, 4), (9, 5)])
def test_loss_is_the_algebra(monkeypatch, name, T, B, missing):
    """Every term, gamma^t, beta, the KL and the scales, and all gradients, to 1e-10."""
    model, guide = build(name)
    batch = windows(model, T, B, missing)
    loss, terms, plain = both(model, guide, batch, monkeypatch)
    torch.testing.assert_close(loss, plain["loss"], rtol=1e-10, atol=1e-10)
    for term, value in terms.items():
        torch.testing.assert_close(value, plain[term].detach(), rtol=1e-10, atol=1e-10)
    assert_same_gradients(gradients(loss, (model, guide)), gradients(plain["loss"], (model, guide)))


@pytest.mark.parametrize("alpha", [0.2, 0.8])
@pytest.mark.parametrize("missing", [0.0, 0.05])
@pytest.mark.parametrize("name", [name for name in STATE_SPACE if name != "deterministic"])
def test_balance_is_dreamers(monkeypatch, name, missing, alpha):
    """alpha KL(sg(q) || p) + (1 - alpha) KL(q || sg(p)), where no parameter of p moves q."""
    model, guide = build(name)
    batch = windows(model, 6, 4, missing)
    loss, _, plain = both(model, guide, batch, monkeypatch, kl_balance=alpha)
    torch.testing.assert_close(loss, plain["loss"], rtol=1e-10, atol=1e-10)
    assert_same_gradients(gradients(loss, (model, guide)), gradients(plain["loss"], (model, guide)))


# What public ports got wrong: each fault is built, and must show.


class PriorWithoutMemory(Dynamics):
    """The prior sees u_t alone."""

    def predict(self, memory, inputs):
        h, belief, _ = super().predict(memory, inputs)
        forgotten = torch.cat([torch.zeros_like(h), belief[..., self.memory_size :]], -1)
        return h, belief, self._prior(forgotten)


class PriorRolledOn(Dynamics):
    """The prior's sample is carried on, in place of the posterior's."""

    def forward(self, name, memory, inputs, evidence):
        _, _, prior = self.predict(memory, inputs)
        after = super().forward(name, memory, inputs, evidence)
        loc, scale = prior.base_dist.loc, prior.base_dist.scale
        return after._replace(latent=loc + scale * torch.randn_like(loc))


class GuideWithoutMemory(StateSpaceGuide):
    """The guide does not see h_t."""

    def posterior(self, prior, evidence):
        H = self.model.memory_size
        belief = evidence.context
        belief = torch.cat([torch.zeros_like(belief[..., :H]), belief[..., H:]], -1)
        return super().posterior(prior, evidence._replace(context=belief))


FAULTS = {
    "prior without memory": (PriorWithoutMemory, None),
    "prior rolled on": (PriorRolledOn, None),
    "guide without memory": (None, GuideWithoutMemory),
}


def made(fault, **changes):
    """An rssm that looks back one frame, with a fault; or sound."""
    model, guide = build("rssm", history=1, **changes)
    dynamics, blind = FAULTS.get(fault, (None, None))
    if dynamics:
        model.dynamics.__class__ = dynamics
    if blind:
        guide.__class__ = blind
    return model, guide


def uses(model, guide, batch):
    """What of the past is used, as gradients' sizes.

    Of the last step's prior mean, and of how far its posterior is from it, by the first frame; and
    of the reconstruction, by the guide's parameters.
    """
    x = batch.position.clone().requires_grad_()
    torch.manual_seed(0)
    followed = follow(guide, Batch(x, batch.observed))
    p, q = (d.base_dist.loc[-1] for d in (followed.prior, followed.posterior))

    def by_first_frame(y):
        return torch.autograd.grad(y.sum(), x, retain_graph=True)[0][0].abs().max().item()

    pi = model.policy(followed.evidence.context, followed.memory)
    fit = gradients(pi.log_prob(followed.evidence.shown).sum(), [guide])
    learned = max(0.0 if g is None else g.abs().max().item() for g in fit)
    return {
        "prior without memory": by_first_frame(p),
        "guide without memory": by_first_frame(q - p),
        "prior rolled on": learned,
    }


@pytest.mark.parametrize("fault", [None, *FAULTS])
def test_the_memory_is_used_where_the_equations_have_it(monkeypatch, fault):
    """Sound, the loss is the plain one and nothing is cut; each fault changes it and cuts its path.

    Where the prior's sample is rolled on, the reconstruction teaches the guide nothing.
    """
    model, guide = made(fault)
    batch = windows(model, 6, 4)
    found = uses(model, guide, batch)
    for path, size in found.items():
        if path == fault:
            assert size < 1e-14
        else:
            assert size > 1e-9, path
    loss, _, plain = both(model, guide, batch, monkeypatch)
    difference = (loss - plain["loss"]).abs().item()
    assert difference > 1e-2 if fault else difference < 1e-10


# Steps that were not observed.


@pytest.mark.parametrize("name", ["rssm", "stochastic", "categorical", "categorical_stochastic"])
def test_an_unobserved_step_keeps_the_prior_and_rolls_on_its_sample(monkeypatch, name):
    model, guide = build(name, history=1)
    T, B = 8, 3
    batch = windows(model, T, B)
    batch.observed[3:5] = False
    noise = supply_noise(monkeypatch, T, B, 5, D)
    torch.manual_seed(0)
    followed = follow(guide, batch)
    unseen = ~followed.evidence.seen[:, 0, 0]
    assert unseen.nonzero().flatten().tolist() == [2, 3, 4]
    p, q = followed.prior.base_dist, followed.posterior.base_dist
    kl = kl_divergence(followed.posterior, followed.prior)
    assert (kl[~unseen] > 1e-9).all()
    if model.config.classes:
        torch.testing.assert_close(q.probs[unseen], p.probs[unseen], rtol=1e-14, atol=0)
        assert kl[unseen].abs().max() < 1e-14
    else:
        assert torch.equal(q.loc[unseen], p.loc[unseen])
        assert torch.equal(q.scale[unseen], p.scale[unseen])
        assert (kl[unseen] == 0).all()
        drawn = (p.loc + p.scale * noise["latent"])[unseen]
        assert torch.equal(followed.memory.latent[unseen], drawn)
    # what comes after starts from that sample, and from nothing of what was not observed
    memory = Memory(*(part[3] for part in followed.memory))
    h, _, prior = model.dynamics.predict(memory, followed.evidence.context[4])
    assert torch.equal(h, followed.memory.hidden[4])
    assert torch.equal(prior.log_prob(followed_value(model, followed, 4)),
                       followed.prior.log_prob(followed_value(model, followed))[4])  # fmt: skip
    assert (followed.evidence.context[3:5] == 0).all()


def followed_value(model, followed, t=slice(None)):
    """z_t as its site has it."""
    z, K = followed.memory.latent[t].detach(), model.config.classes
    return z.unflatten(-1, (-1, K)).round() if K else z


# Overshooting.

ASKED = Overshooting(distance=3, weights=(1.5, 0.5, 2.0), observation=0.7)


@pytest.mark.parametrize("name", ["rssm", "stochastic", "categorical", "deterministic"])
def test_distance_one_is_the_plain_bound_bit_for_bit(name):
    model, guide = build(name)
    batch = windows(model, 6, 4, missing=0.05)
    found = []
    for asked in (None, Overshooting()):
        torch.manual_seed(0)
        loss = ScaledELBO(overshooting=asked)(model, guide)(batch)
        found.append([loss, *gradients(loss, (model, guide))])
    for plain, one in zip(*found, strict=True):
        assert torch.equal(plain, one)


def brute_force(model, guide, evidence, followed, noise, asked, stop=True):
    """Both terms of overshooting by a double loop: every start, every distance from it.

    The start at t is m_t with z_t of the guide; each step on draws from the prior with the noise
    that belongs to the start.
    """
    dynamics, T = model.dynamics, len(evidence.seen)
    q_loc, q_scale = followed.posterior.base_dist.loc, followed.posterior.base_dist.scale
    latents, observations = torch.zeros(()).double(), torch.zeros(()).double()
    for start in range(T):
        h, z = followed.memory.hidden[start], followed.memory.latent[start]
        for d in range(1, asked.distance + 1):
            t = start + d
            if t >= T:
                break
            u, seen = evidence.context[t], evidence.seen[t, :, 0]
            h, belief = plain_pytorch.predicted(dynamics, h, z, u)
            p = plain_pytorch.gaussian_prior(dynamics, belief)
            z = p[0] + p[1] * noise["latent"][start]
            if d == 1:
                continue
            q = (q_loc[t].detach(), q_scale[t].detach()) if stop else (q_loc[t], q_scale[t])
            kl = plain_pytorch.gaussian_kl(q, p)
            weight = asked.weights[d - 1] / asked.distance
            latents = latents + weight * kl[seen].sum()
            log_pi = model.policy(u, Memory(h, z)).log_prob(evidence.shown[t])
            observations = observations - asked.observation * weight * log_pi[seen].sum()
    return latents, observations


@pytest.mark.parametrize("missing", [False, True])
@pytest.mark.parametrize("name", ["rssm", "rssm_history_3", "stochastic"])
def test_overshooting_is_the_double_loop(monkeypatch, name, missing):
    """Values and gradients of D = 3: one-step KL by beta_1 / D, those ahead by beta_d / D.

    The gradient reaches the guide through where the predictions start, and not through what they
    are compared with: without that stop it would be another.
    """
    model, guide = build(name, discount=1.0)
    T, B = 7, 4
    batch = windows(model, T, B)
    if missing:
        batch.observed[-2, :2] = False  # of two trajectories the last two steps
    noise = supply_noise(monkeypatch, T, B, 5, D)
    elbo = ScaledELBO(kl_weight=0.37, overshooting=ASKED)
    loss = elbo(model, guide)(batch)
    nodes = guide.trace.nodes
    for d in (2, 3):
        answered = nodes[f"latent_ahead_{d}"]["fn"].base_dist
        assert not answered.loc.requires_grad
        assert not answered.scale.requires_grad
        assert torch.equal(answered.loc[0], nodes[f"latent_{d}"]["fn"].base_dist.loc)

    noise["rewind"]()
    followed = follow(guide, batch)
    plain = plain_pytorch.state_space_loss(
        model, guide, batch.position, 0.37, batch.observed, noise
    )
    rest = plain["reconstruction"] + ASKED.weights[0] / 3 * plain["latent"]
    expected = []
    for stop in (True, False):
        latents, seen_ahead = brute_force(
            model, guide, followed.evidence, followed, noise, ASKED, stop
        )
        expected.append(rest + 0.37 * latents + seen_ahead)
    torch.testing.assert_close(elbo.terms["latent_ahead"], 0.37 * latents.detach())
    torch.testing.assert_close(elbo.terms["reconstruction_ahead"], seen_ahead.detach())
    torch.testing.assert_close(loss, expected[0], rtol=1e-11, atol=1e-10)
    found, stopped, pulled = (
        gradients(x, (model, guide)) for x in (loss, expected[0], expected[1])
    )
    assert_same_gradients(found, stopped)
    with pytest.raises(AssertionError):
        assert_same_gradients(found, pulled, 1e-3)


@pytest.mark.parametrize("name", ["rssm", "stochastic"])
def test_padding_changes_nothing_ahead_either(monkeypatch, name):
    model, guide = build(name)
    T, B = 6, 5
    batch = windows(model, T, B, missing=0.03)
    noise = supply_noise(monkeypatch, T + 3, B, 5, D)
    nothing = torch.zeros(3, B, D)
    padded = Batch(
        torch.cat([batch.position, nothing + 5.0]), torch.cat([batch.observed, nothing > 0])
    )
    found = []
    for one in (batch, padded):
        noise["rewind"]()
        elbo = ScaledELBO(overshooting=ASKED)
        loss = elbo(model, guide)(one)
        found.append((loss, gradients(loss, (model, guide))))
    assert elbo.terms["latent_ahead"] > 1e-3
    (short, of_short), (long, of_long) = found
    torch.testing.assert_close(long, short, rtol=1e-12, atol=1e-12)
    assert_same_gradients(of_long, of_short, 1e-11)


@pytest.mark.parametrize(("T", "distance"), [(9, 4), (9, 2), (5, 20)])
def test_the_cost_is_linear(monkeypatch, T, distance):
    """T transitions to follow the recording, and one batched one for each distance: not T D."""
    model, guide = build("rssm")
    calls = []
    predict = Dynamics.predict

    def counted(self, memory, inputs):
        calls.append(tuple(memory.hidden.shape[:-1]))
        return predict(self, memory, inputs)

    monkeypatch.setattr(Dynamics, "predict", counted)
    ScaledELBO(overshooting=Overshooting(distance))(model, guide)(windows(model, T, 3))
    reached = min(distance, T - 1)
    assert calls == [(3,)] * T + [(T - d, 3) for d in range(1, reached + 1)]


def test_models_that_cannot_overshoot_say_so():
    asked = ScaledELBO(overshooting=Overshooting(2))
    for name, said in (
        ("small", "latents remember"),
        ("rssm_closed_loop", "teacher_forced"),
        ("rssm_history_3", "discount: 1"),
    ):  # as found: gamma^t was left out
        model, guide = build(name)
        with pytest.raises(ConfigError, match=f"train.overshooting needs.*{said}"):
            asked(model, guide)(windows(model, 4, 2))


def one_distance(d):
    """All weight on the distance d: the bound on the d-step density."""
    return Overshooting(d, weights=(0.0,) * (d - 1) + (float(d),))


def marginals(oracle, steps):
    """Covariances of x_1, ..., x_steps, whose means are 0."""
    A, Q, P = oracle.transition_matrix, oracle.transition_covariance, oracle.initial_covariance
    covariances = [P]
    while len(covariances) < steps:
        covariances.append(A @ covariances[-1] @ A.T + Q)
    return covariances


@pytest.mark.parametrize(
    ("proposal", "persistence"), [("exact", 1.0), ("rough", 1.0), ("exact", 0.15)]
)
@pytest.mark.parametrize("distance", [1, 2, 3])
def test_the_d_step_bound_is_below_the_exact_multistep_evidence(proposal, persistence, distance):
    """log p_d(o) >= E log p(z_t | z_{t-1}) + ...: Jensen's inequality, and never the reverse.

    The first d steps have no step d before them: what is expected of them is their marginal. Where
    little persists, the guide is nearly the posterior and the bound nearly the evidence.
    """
    model, guide, oracle = linear_state_space(proposal, persistence=persistence)
    T, recordings, copies, runs = 6, 4, 50, 30
    batch = linear_recording(oracle, T, recordings)
    exact = oracle.multistep_evidence(batch.position.diff(dim=0), distance).sum().item()
    repeated = Batch(*(x.repeat(1, copies, 1) for x in batch))
    elbo = ScaledELBO(overshooting=one_distance(distance) if distance > 1 else None)
    first = marginals(oracle, distance) if distance > 1 else []
    torch.manual_seed(0)
    found = []
    with torch.no_grad():
        for _ in range(runs):
            bound = -elbo(model, guide)(repeated)
            for t, covariance in enumerate(first):
                q = guide.trace.nodes[f"latent_{t}"]["fn"].base_dist
                q = MultivariateNormal(q.loc, q.scale.square().diag_embed())
                bound = bound - kl_divergence(q, MultivariateNormal(0 * q.loc, covariance)).sum()
            found.append(bound.item() / copies)
    values = torch.tensor(found)
    error = values.std().item() / math.sqrt(runs)
    assert error < 0.5
    assert values.mean().item() <= exact + 4 * error
    if persistence < 1:
        assert values.mean().item() > exact - 0.05 * recordings * T


@pytest.mark.parametrize("distance", [2, 3])
def test_the_open_loop_costs_the_spread_of_what_it_expects(distance):
    """E KL(q || N(A z, Q)) over z d-1 steps ahead is KL(q || N(A^d z_0, Q)) + tr(Q^-1 A S A') / 2.

    S is the covariance of d - 1 steps: exact for a linear model, so the sites' KL must have it as
    their mean.
    """
    model, guide, oracle = linear_state_space()
    T, copies = 5, 20_000
    batch = Batch(*(x.repeat(1, copies, 1) for x in linear_recording(oracle, T, 1)))
    torch.manual_seed(0)
    with torch.no_grad():
        ScaledELBO(overshooting=one_distance(distance))(model, guide)(batch)
    A, Q = oracle.transition_matrix, oracle.transition_covariance
    site = guide.trace.nodes[f"latent_ahead_{distance}"]
    start = torch.stack([guide.trace.nodes[f"latent_{t}"]["value"] for t in range(T - distance)])
    expected = start @ torch.linalg.matrix_power(A, distance).T
    q, p = site["fn"], site["infer"]["prior"]
    from_mean = type(p.base_dist)(expected, Q.diag().sqrt()).to_event(1)
    S = sum(
        (torch.linalg.matrix_power(A, j) @ Q @ torch.linalg.matrix_power(A, j).T
         for j in range(distance - 1)), torch.zeros_like(Q)
    )  # fmt: skip
    spread = (torch.linalg.inv(Q) @ A @ S @ A.T).trace() / 2
    excess = kl_divergence(q, p) - kl_divergence(q, from_mean)
    error = excess.std(1) / math.sqrt(copies)
    assert (error < 0.1 * spread).all()
    assert ((excess.mean(1) - spread).abs() < 4.5 * error).all()


# Options.


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"memory_size": -1}, "model.memory_size is -1"),
        ({"memory_size": 0, "latent_size": 0}, "both 0"),
        ({"classes": 1}, "model.classes is 1"),
        ({"unimix": 1.0}, "model.unimix is 1.0"),
        ({"least_scale": 0.0}, "model.least_scale is 0.0"),
        ({"history": 0}, "model.history is 0"),
    ],
)
def test_options_that_cannot_be_used_are_named(change, named):
    with pytest.raises(ConfigError, match=named):
        StateSpaceConfig(**change)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"distance": 0}, "overshooting.distance is 0"),
        ({"distance": 2, "weights": (1.0,)}, "overshooting.weights.*2 numbers"),
        ({"distance": 2, "weights": (1.0, -1.0)}, "overshooting.weights.*negative"),
        ({"observation": -1.0}, "overshooting.observation is -1.0"),
    ],
)
def test_overshooting_that_cannot_be_used_is_named(change, named):
    with pytest.raises(ConfigError, match=named):
        Overshooting(**change)
