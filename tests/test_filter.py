"""Steps of models whose latents remember: a particle filter, against the exact linear filter."""

import math

import numpy as np
import pytest
import torch
from helpers import chase
from torch.distributions import MultivariateNormal, Normal
from variants import build, linear_recording, linear_state_space, recording, scale_of

from pyro_animacy import Batch, make_trajectories
from pyro_animacy.infer import steps as steps_module
from pyro_animacy.infer.score import log_density, scoring_windows
from pyro_animacy.infer.steps import draw_steps, follow, log_mean_exp, window_steps
from pyro_animacy.models.densities import PARAMETERS, base

T = 5
PROPOSALS = ["posterior", "prior", "defensive"]


def filtered(oracle, model, batch):
    """The exact filter of what the batch shows."""
    evidence = model.evidence(batch)
    return oracle.filter(evidence.shown, observed=model.recorded(batch).seen)


def gapped(oracle, bodies=1):
    """Three trajectories: whole, with a frame missing, with a coordinate missing."""
    batch = linear_recording(oracle, T, 3)
    if bodies == 1:
        batch.observed[3, 1] = False
        batch.observed[4, 2, 0] = False
    return batch._replace(position=batch.position * batch.observed)


def copied(batch, copies):
    """Each trajectory many times: (copies x B) side by side, for independent runs of the filter."""
    return Batch(*(x.repeat(1, copies, 1) for x in batch))


def estimates(guide, batch, draws, copies, proposal="posterior"):
    """Log of the mean weight of each step, (T, copies, B)."""
    torch.manual_seed(0)
    steps = draw_steps(guide, copied(batch, copies), draws, proposal)
    return log_mean_exp(steps.log_weight[..., 0]).unflatten(1, (copies, -1))


# The evidence of a whole recording.


@pytest.mark.parametrize(("proposal", "draws"), [("exact", 8), ("rough", 16), ("wide", 32)])
def test_the_product_of_the_mean_weights_is_the_evidence_without_bias(proposal, draws):
    """E prod_t (1/K) sum_k w_tk = p(a_{1:T}), for any K and any guide, also where frames miss."""
    model, guide, oracle = linear_state_space(proposal)
    batch = gapped(oracle)
    truth = filtered(oracle, model, batch).log_evidence
    assert ((truth == 0).sum(0) == torch.tensor([0, 2, 1])).all()
    found = estimates(guide, batch, draws, 2000)
    for t, b in (truth == 0).nonzero().tolist():  # nothing seen, nothing weighed
        assert found[t, :, b].abs().max() < 1e-12
    w = (found.sum(0) - truth.sum(0)).exp()
    error = w.std(0) / math.sqrt(len(w))
    assert (error < 0.05).all()
    assert ((w.mean(0) - 1).abs() < 4.5 * error).all()
    below = w.log().mean(0)
    assert (below < 4.5 * w.log().std(0) / math.sqrt(len(w))).all()


@pytest.mark.parametrize("proposal", ["exact", "rough", "wide"])
def test_the_gap_shrinks_like_one_over_the_number_of_particles(proposal):
    """E log of the estimate is below the evidence by a gap of order 1/K.

    As E w = 1, the gap is E [w - 1 - log w], whose every term is positive.
    """
    model, guide, oracle = linear_state_space(proposal)
    batch = linear_recording(oracle, T, 2)
    truth = filtered(oracle, model, batch).log_evidence.sum(0)
    numbers = [16, 32, 64, 128]
    gaps = []
    for K in numbers:
        w = (estimates(guide, batch, K, 800).sum(0) - truth).exp()
        gaps.append((w - 1 - w.log()).mean().item())
    slope = np.polyfit(np.log(numbers), np.log(gaps), 1)[0]
    assert -1.3 < slope < -0.8, gaps
    assert gaps[-1] < 0.2


# Single steps, given the past.


@pytest.mark.parametrize("asked", PROPOSALS)
@pytest.mark.parametrize("proposal", ["exact", "rough"])
def test_each_step_is_that_of_the_exact_filter(proposal, asked):
    """(1/K) sum_k w_tk is p(a_t | a_{<t}), whichever proposal is asked for."""
    model, guide, oracle = linear_state_space(proposal)
    batch = gapped(oracle)
    truth = filtered(oracle, model, batch).log_evidence
    found = estimates(guide, batch, 2000, 30, asked)
    error = found.std(1) / math.sqrt(found.shape[1])
    assert (error < 0.02).all()
    # a logarithm of a mean is low by half its variance
    assert ((found.mean(1) - truth).abs() < 4.5 * error + found.var(1) + 1e-7).all()


@pytest.mark.parametrize("asked", PROPOSALS)
def test_each_body_has_its_marginal(asked):
    """The density of one body's displacement given the past of all is a marginal of the filter's.

    As far as q, which knows the other body too, reaches: its weights are not bounded.
    """
    model, guide, oracle = linear_state_space("rough", bodies=2)
    batch = gapped(oracle, bodies=2)
    mean, P = filtered(oracle, model, batch).predicted
    C, R = oracle.observation_matrix, oracle.observation_covariance
    mean, S = mean @ C.T + oracle.offset, C @ P @ C.T + R
    torch.manual_seed(0)
    steps = draw_steps(guide, copied(batch, 30), 1500, asked)
    shown = model.evidence(batch).shown
    for i in range(2):
        own = slice(2 * i, 2 * i + 2)
        truth = MultivariateNormal(mean[..., own], S[..., own, own]).log_prob(shown[..., own])
        log_weight = steps.log_ratio[..., 0] + steps.log_policy[..., i]
        found = log_mean_exp(log_weight).unflatten(1, (30, -1))
        error = found.std(1) / math.sqrt(30)
        assert (error < 0.05).all()
        assert ((found.mean(1) - truth).abs() < 4.5 * error + found.var(1)).all()


def test_the_past_bears_on_the_step():
    """What the filter gives is nearer the truth than single steps without their past."""
    model, guide, oracle = linear_state_space()
    batch = linear_recording(oracle, T, 64)
    truth = filtered(oracle, model, batch).log_evidence[-1].mean()
    whole = log_density(guide, batch, 500)[0][-1].mean()
    alone = log_density(guide, Batch(*(x[-2:] for x in batch)), 500)[0][-1].mean()
    assert abs(whole - truth) < 0.01
    assert alone < truth - 0.1


# By hand.


def shared_noise(monkeypatch, steps, *shape):
    """Torch's normals come from a table, one row a call, reshaped to what is asked."""
    generator = torch.Generator().manual_seed(6)
    table = torch.randn(steps, *shape, generator=generator, dtype=torch.float64)
    at = {"t": 0}

    def take(shape, dtype, device):
        at["t"] += 1
        return table[at["t"] - 1].reshape(shape)

    monkeypatch.setattr("torch.distributions.normal._standard_normal", take)
    return table, at


@pytest.mark.parametrize("name", ["rssm", "rssm_history_3", "stochastic", "rssm_squared_error"])
def test_one_particle_is_the_density_of_the_programs(monkeypatch, name):
    """K = 1: log p(a, z) - log q(z), from the traces of model and guide under the same draws."""
    model, guide = build(name)
    batch = recording(model.config.history + T, 4)
    batch.observed[-2, 0] = False
    _, at = shared_noise(monkeypatch, T, 4, 5)
    steps = draw_steps(guide, batch, 1)
    at["t"] = 0
    guide(batch, score=True)
    p, q = guide.get_traces()
    for trace in (p, q):
        trace.compute_log_prob()
    by_hand = p.nodes["reconstruction"]["log_prob"] + torch.stack(
        [p.nodes[f"latent_{t}"]["log_prob"] - q.nodes[f"latent_{t}"]["log_prob"] for t in range(T)]
    )
    (found,) = steps.log_weight[..., 0]
    torch.testing.assert_close(found, by_hand.detach(), rtol=1e-11, atol=1e-11)


def test_where_nothing_is_carried_on_it_is_iwae_step_by_step(monkeypatch):
    """With no weight on z_{t-1} the filter gives, for the same draws, IWAE_K of every step."""
    model, guide = build("stochastic")
    Z, K, B = 5, 7, 4
    with torch.no_grad():  # what prior and guide see begins with z_{t-1}
        model.dynamics.prior.network.layers[0].weight[:, :Z] = 0
        guide.residual.network.layers[0].weight[:, :Z] = 0
    batch = recording(model.config.history + T, B)
    noise, at = shared_noise(monkeypatch, T, K, B, Z)
    found, _ = log_density(guide, batch, K)
    at["t"] = 0
    evidence = model.evidence(batch)
    c = torch.cat([torch.zeros(T, B, Z, dtype=torch.float64), evidence.context], -1)
    p = model.dynamics.prior(c).base_dist
    shift, ratio = guide.residual.network(torch.cat([c, evidence.shown], -1)).chunk(2, -1)
    q = Normal(p.loc + shift, p.scale * ratio.exp())
    z = q.loc + q.scale * noise.transpose(0, 1)
    context = evidence.context.expand(K, T, B, -1)
    pi = model.decoder(context, z)
    w = pi.log_prob(evidence.shown) + (p.log_prob(z) - q.log_prob(z)).sum(-1)
    expected = w.exp().mean(0).log()
    torch.testing.assert_close(found, expected.detach(), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(("asked", "of_q"), [("posterior", 7), ("prior", 0), ("defensive", 3)])
def test_draws_come_from_the_proposal_asked_for(asked, of_q):
    """A guide that moves every latent far from its prior shows which of seven draws are its own."""
    model, guide = build("rssm")
    with torch.no_grad():
        guide.residual.network.layers[-1].bias[:5] += 50.0
    torch.manual_seed(0)
    steps = draw_steps(guide, recording(model.config.history + T, 4), 7, asked)
    far = ((steps.latent - steps.prior.loc) / steps.prior.scale).abs().amax(-1) > 20
    assert (far.sum(0) == of_q).all()


def test_the_kl_is_the_mean_over_the_pasts_of_the_draws():
    """Each particle has a prior and a posterior of its own."""
    model, guide = build("rssm")
    torch.manual_seed(0)
    steps = draw_steps(guide, recording(model.config.history + T, 4), 7)
    p, q = steps.prior, steps.posterior
    each = (p.scale / q.scale).log() + (q.scale**2 + (q.loc - p.loc) ** 2) / (2 * p.scale**2) - 0.5
    assert each.std(0).max() > 1e-3
    torch.testing.assert_close(steps.kl, each.sum(0) / 7)


@pytest.mark.parametrize("K", [1, 5, 64])
def test_resampling_is_systematic(K):
    """Each particle has floor(K w) or ceil(K w) descendants, and K w of them on average."""
    generator = torch.Generator().manual_seed(0)
    log_w = 2 * torch.randn(K, 1, generator=generator, dtype=torch.float64).expand(K, 5000)
    torch.manual_seed(1)
    ancestors = steps_module._systematic(log_w)
    assert (ancestors.diff(dim=0) >= 0).all()
    counts = (ancestors[..., None] == torch.arange(K)).sum(0).double()  # (5000, K)
    expected = K * log_w[:, 0].softmax(0)
    assert ((counts - expected).abs() < 1).all()
    error = (counts.std(0) / math.sqrt(len(counts))).clamp(min=1e-12)
    assert ((counts.mean(0) - expected).abs() < 4.5 * error).all()


# The steps that windows end with.

REMEMBERING = ["rssm", "stochastic", "categorical", "deterministic", "memory"]


def clips():
    """Three recordings of 25 frames; the second misses some early on."""
    x = chase(frames=25, recordings=3)
    x[1, 4:6, 0] = np.nan
    return make_trajectories(x, fps=10, body=["hunter", "prey"], units="m", source="chase")


def windows_of(name, **changes):
    model, guide = build(name, bodies=2, **changes)
    windows = scoring_windows(clips(), scale_of(2), model.config.history)
    return model, guide, windows


def of_step(steps):
    """Every array of `Steps`, by name."""
    found = {}
    for name, value in steps._asdict().items():
        if isinstance(value, torch.Tensor):
            found[name] = value
        else:
            inner, _ = base(value)
            found |= {f"{name}.{part}": getattr(inner, part) for part in PARAMETERS[type(inner)]}
    return found


@pytest.mark.parametrize("asked", PROPOSALS)
@pytest.mark.parametrize("name", [name for name in REMEMBERING if name != "memory"])
def test_windows_have_the_steps_of_whole_trajectories(name, asked):
    """Step (t, b) of `draw_steps` of whole trajectories, under the same draws."""
    model, guide, windows = windows_of(name)
    rows = [0, 1]
    inside = torch.isin(windows.index[:, 0], torch.tensor(rows)).nonzero().flatten()
    which = torch.cat([inside[2:-1:3], inside[-1:]])
    last = windows.index[which][:, 1].max().item() + windows.frames
    assert last == 25
    x = windows.stretches(np.array(rows), np.zeros(2, int), clips().sizes["time"]).double()
    torch.manual_seed(0)
    whole = of_step(draw_steps(guide, Batch(x.nan_to_num(0.0), ~x.isnan()), 3, asked))
    torch.manual_seed(0)
    ((part, steps),) = window_steps(guide, windows, which, 3, asked)
    assert torch.equal(part, which)
    for name_of, found in of_step(steps).items():
        for i, (b, start) in enumerate(windows.index[which].tolist()):
            t = start + windows.frames - 1 - model.config.history
            of_whole = whole[name_of]
            has_draws = len(of_whole) == 3
            expected = of_whole[:, t, b] if has_draws else of_whole[t, b]
            mine = found[:, 0, i] if has_draws else found[0, i]
            assert torch.equal(mine, expected), name_of


@pytest.mark.parametrize("name", ["memory", "deterministic"])
@pytest.mark.parametrize("memory_steps", [2, 5, 8])
def test_a_step_is_shown_half_to_all_of_its_memory(name, memory_steps):
    """What is known of step t follows from the frames of its stretch alone."""
    model, guide, windows = windows_of(name, memory_steps=memory_steps)

    def known(steps):
        """What no draw bears on: the prior, or the policy where there is no latent."""
        return steps.prior.loc if name == "memory" else steps.policy.mean[0]

    which = torch.arange(len(windows))
    found = torch.cat([known(steps)[0] for _, steps in window_steps(guide, windows, which, 1)])
    new, history = memory_steps // 2, model.config.history
    for i, (b, start) in enumerate(windows.index.tolist()):
        t = start + windows.context - history
        first = max(0, t // new * new - (memory_steps - new))
        assert t < memory_steps or memory_steps - new <= t - first < memory_steps
        x = windows.stretches(np.array([b]), np.array([first]), t + history + 1 - first)
        x = x.double()
        alone = draw_steps(guide, Batch(x.nan_to_num(0.0), ~x.isnan()), 1)
        torch.testing.assert_close(found[i], known(alone)[-1, 0])


@pytest.mark.parametrize(("held", "count"), [(1, 3), (130, 2), (10**6, 1)])
@pytest.mark.parametrize("name", [*REMEMBERING, "small"])
def test_every_window_comes_once_and_in_order(monkeypatch, name, held, count):
    """However many trajectories are held at once, each part shows its windows' last step."""
    monkeypatch.setattr(steps_module, "PARTICLES_HELD", held)
    _, guide, windows = windows_of(name)
    which = torch.arange(1, len(windows), 2)
    parts = list(window_steps(guide, windows, which, 2))
    assert torch.equal(torch.cat([part for part, _ in parts]), which)
    assert len(parts) == (count if name in REMEMBERING else 1)
    for part, steps in parts:
        x = windows.batch(part).position.double()
        torch.testing.assert_close(steps.shown[0], x[-1] - x[-2], rtol=0, atol=1e-12)
        assert steps.seen.all()
        assert steps.log_weight.isfinite().all()


def test_following_is_one_draw_of_the_filter(monkeypatch):
    """`follow` and a filter of one particle see the same priors, posteriors and memories."""
    model, guide = build("rssm")
    batch = recording(model.config.history + T, 4)
    _, at = shared_noise(monkeypatch, T, 4, 5)
    steps = draw_steps(guide, batch, 1)
    at["t"] = 0
    followed = follow(guide, batch)
    for one, other in ((steps.prior, followed.prior), (steps.posterior, followed.posterior)):
        torch.testing.assert_close(one.loc[0], other.base_dist.loc.detach())
        torch.testing.assert_close(one.scale[0], other.base_dist.scale.detach())
    torch.testing.assert_close(steps.latent[0], followed.memory.latent.detach())
