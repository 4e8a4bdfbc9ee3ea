"""The importance-weighted bound against algebra, Monte Carlo, and the scores it is a loss of."""

import dataclasses
import math
from itertools import pairwise

import pyro
import pyro.distributions as dist
import pytest
import torch
from helpers import recordings
from pyro.infer import SVI
from pyro.poutine.guide import GuideMessenger
from variants import assert_same_gradients, build, gradients, padded, recording

from pyro_animacy import ConfigError, ImportanceWeightedELBO, ScaledELBO, fit, preset
from pyro_animacy.infer.score import log_density
from pyro_animacy.infer.steps import draw_steps
from pyro_animacy.infer.traced import Gradient
from pyro_animacy.models.densities import log_prob_in_parts

T, B = 4, 6
# those whose steps are independent given the recording, and that have a density
INDEPENDENT = [
    *("small", "history_1", "tied_scale", "rest", "blended_weights", "memory", "set", "set_rest")
]
independent = pytest.mark.parametrize("name", INDEPENDENT)


def both(name, missing=0.05, **changes):
    """Model, guide and a batch."""
    model, guide = build(name, **changes)
    return model, guide, recording(model.config.history + T, B, missing=missing)


def same_noise(monkeypatch, model, K):
    """Whatever is drawn of z_t comes from one table, K draws of T + 3 steps."""
    noise = torch.randn(K, T + 3, B, model.latent_size, dtype=torch.float64)

    def take(shape, **_):
        return noise[:, : shape[1]] if len(shape) == 4 else noise[0, : shape[0]]

    monkeypatch.setattr("torch.distributions.normal._standard_normal", take)


@independent
@pytest.mark.parametrize("K", [1, 5])
def test_the_loss_is_the_score(monkeypatch, name, K):
    """What is trained on is the bound that is reported, on the same draws; its terms add up."""
    model, guide, batch = both(name)
    same_noise(monkeypatch, model, K)
    elbo = ImportanceWeightedELBO(K, scale=0.1)
    loss = elbo(model, guide)(batch)
    bound, mean = (x.sum() for x in log_density(guide, batch, K))
    assert loss.item() == pytest.approx(-0.1 * bound.item(), rel=1e-12)
    terms = elbo.terms
    assert sum(terms.values()).item() == pytest.approx(loss.item(), rel=1e-12)
    assert (terms["reconstruction"] + terms["latent"]).item() == pytest.approx(-0.1 * mean.item())
    assert terms["importance"] < 0 if K > 1 else terms["importance"].abs() < 1e-12


def test_weights_of_kl_and_steps(monkeypatch):
    """log (1/K) sum_k pi (p / q)^beta of each step, times gamma^t."""
    model, guide, batch = both("rest", discount=0.8)
    same_noise(monkeypatch, model, 5)
    loss = ImportanceWeightedELBO(5, kl_weight=0.3)(model, guide)(batch)
    steps = draw_steps(guide, batch, 5)
    log_w = steps.log_policy.sum(-1) + 0.3 * steps.log_ratio[..., 0]
    each = (log_w.exp().mean(0)).log()
    assert loss.item() == pytest.approx(-sum(0.8**t * each[t].sum().item() for t in range(T)))


def plain(model, guide, batch, K, beta):
    """The loss as autograd has it: q's own parameters through its density too."""
    with pyro.plate("draws", K, dim=-3):
        guide(batch)
    model_trace, guide_trace = guide.get_traces()
    p, q, seen = (
        model_trace.nodes["latent"], guide_trace.nodes["latent"],
        model_trace.nodes["reconstruction"],
    )  # fmt: skip
    z = p["value"]
    densities = (p["fn"], z), (q["fn"], z), (seen["fn"], seen["value"])
    log_p, log_q, log_x = (log_prob_in_parts(*of, model.parts) for of in densities)
    log_w = log_x + beta * (log_p - log_q)
    return -(seen["scale"] * (log_w.logsumexp(0) - math.log(K)).sum(-1)).sum()


@pytest.mark.parametrize(
    ("name", "beta", "changes"),
    [
        ("small", 1.0, {}),
        ("small", 0.3, {}),
        ("rest", 1.0, {"discount": 0.8}),
        ("set", 1.0, {"latent_size": 2}),
    ],
)
def test_the_gradient_has_the_mean_of_the_plain_one(name, beta, changes):
    """Doubly reparameterised it has the same mean; less variance in the guide, no more elsewhere.

    As found: where all of z_k was, not the residual alone, the prior's noise was 30 times as large.
    """
    model, guide, batch = both(name, **changes)
    N, K, elbo = 300, 4, ImportanceWeightedELBO(4, kl_weight=beta)
    modules = model.step.prior, model.step.policy, guide
    sizes = [sum(p.numel() for p in module.parameters()) for module in modules]
    found = torch.zeros(2, N, sum(sizes), dtype=torch.float64)
    for n in range(N):
        for way in range(2):
            torch.manual_seed(n)
            loss = plain(model, guide, batch, K, beta) if way else elbo(model, guide)(batch)
            found[way, n] = torch.cat([g.flatten() for g in gradients(loss, modules)])
    along = torch.randn(sum(sizes), dtype=torch.float64)
    each = zip(found.split(sizes, -1), along.split(sizes), (1.01, 1.01, 0.95), strict=True)
    for (ours, theirs), direction, most in each:
        difference = (ours - theirs) @ direction
        assert difference.mean().abs() <= 4 * difference.std() / N**0.5 + 1e-9
        assert (ours.var(0).sum() / theirs.var(0).sum()).sqrt() < most
    assert difference.std() > 1e-3 * (theirs @ direction).std()  # in the guide they do differ


def test_a_guide_that_is_the_prior_where_something_was_seen():
    """Its gradient is the plain one there: p / q is no part of the weights."""
    model, guide, batch = both("small", missing=0.0)
    with torch.no_grad():
        for parameter in [*guide.residual.parameters()][-2:]:
            parameter.zero_()
    found = []
    for loss in (
        lambda: ImportanceWeightedELBO(4)(model, guide)(batch),
        lambda: plain(model, guide, batch, 4, 1.0),
    ):
        torch.manual_seed(0)
        found.append(gradients(loss(), [model]))
    assert_same_gradients(*found, 1e-8)


class Exact(GuideMessenger):
    """q(z | x) of z ~ N(0, 1), x ~ N(w z, s^2), from parameters of its own."""

    def __init__(self, model, loc, scale):
        super().__init__(model)
        self.loc, self.scale = loc, scale

    def get_posterior(self, name, prior):
        return dist.Normal(self.loc, self.scale).to_event(prior.event_dim)


def test_exact_guide():
    """Any draws give the evidence itself, and no gradient to the guide."""
    torch.manual_seed(0)
    w, s = torch.tensor(0.7, dtype=torch.float64), torch.tensor(0.5, dtype=torch.float64)
    x = torch.randn(T, B, 1, dtype=torch.float64)

    def model():
        with pyro.plate("time", T, dim=-2), pyro.plate("trajectory", B, dim=-1):
            z = pyro.sample("latent", dist.Normal(torch.zeros_like(x), 1.0).to_event(1))
            pyro.sample("reconstruction", dist.Normal(w * z, s).to_event(1), obs=x)

    precision = 1 + w**2 / s**2
    loc = ((w / s**2) * x / precision).requires_grad_()
    scale = precision.rsqrt().expand_as(x).clone().requires_grad_()
    loss = ImportanceWeightedELBO(7).differentiable_loss(model, Exact(model, loc, scale))
    evidence = -dist.Normal(0.0, (w**2 + s**2).sqrt()).log_prob(x).sum()
    torch.testing.assert_close(loss, evidence)
    for of_guide in torch.autograd.grad(loss, (loc, scale)):
        assert of_guide.abs().max() < 1e-12


@independent
def test_padding_and_what_was_not_observed_change_nothing(monkeypatch, name):
    model, guide, batch = both(name)
    same_noise(monkeypatch, model, 3)
    found = []
    for one in (batch, padded(batch)):
        loss = ImportanceWeightedELBO(3)(model, guide)(one)
        found.append((loss, gradients(loss, (model, guide))))
    (loss, expected), (again, of_again) = found
    assert loss.abs() > 1
    torch.testing.assert_close(again, loss, rtol=1e-12, atol=1e-12)
    assert_same_gradients(of_again, expected, 1e-11)


@independent
def test_every_parameter_has_a_gradient_and_the_record_the_same(name):
    model, guide, batch = both(name)
    elbo, found = ImportanceWeightedELBO(3, scale=0.1), []
    parameters = [*model.parameters(), *guide.parameters()]
    for traced in (False, True):
        gradient = Gradient(elbo, model, guide, traced=traced)
        torch.manual_seed(0)
        found.append((gradient(batch), [p.grad.clone() for p in parameters], dict(elbo.terms)))
    (loss, plainly, terms), (recorded, again, of_record) = found
    assert torch.equal(loss, recorded)
    assert of_record == terms
    assert all(g.isfinite().all() and g.abs().max() > 0 for g in plainly)
    assert_same_gradients(again, plainly, 1e-11)


def test_svi_takes_it():
    model, guide, batch = both("small")
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 1e-2}), loss=ImportanceWeightedELBO(3))
    losses = [svi.step(batch) for _ in range(30)]
    assert sum(losses[-5:]) < sum(losses[:5])


def test_more_draws_are_a_tighter_bound():
    """From the ELBO up: in the mean over noise, to within its error."""
    model, guide, batch = both("small")
    means = []
    for K in (1, 4, 64):
        torch.manual_seed(0)
        elbo = ImportanceWeightedELBO(K)
        drawn = torch.tensor([elbo.loss(model, guide, batch) for _ in range(200)])
        means.append((drawn.mean(), drawn.std() / 200**0.5))
    for (looser, error), (tighter, other) in pairwise(means):
        assert tighter < looser - 4 * (error + other)
    torch.manual_seed(0)
    analytic = torch.tensor([ScaledELBO().loss(model, guide, batch) for _ in range(200)])
    error = means[0][1] + analytic.std() / 200**0.5
    assert means[0][0] == pytest.approx(analytic.mean().item(), abs=4 * error.item())


def test_a_fit(tmp_path):
    config = preset("debug")
    train = dataclasses.replace(config.train, importance_samples=3)
    run = fit(
        recordings(), dataclasses.replace(config, train=train), out=tmp_path / "run", progress=False
    )
    assert all(row["importance"] < 0 for row in run.metrics())
    row = run.metrics()[-1]
    parts = row["reconstruction"] + row["kl"] * row["kl_weight"] + row["importance"]
    assert parts == pytest.approx(row["loss"], rel=1e-5)


def test_refused():
    with pytest.raises(ConfigError, match="importance_samples is 0"):
        ImportanceWeightedELBO(0)

    def model():  # one latent of all steps
        with pyro.plate("trajectory", B, dim=-1):
            z = pyro.sample("latent", dist.Normal(0.0, 1.0))
            with pyro.plate("time", T, dim=-2):
                pyro.sample("reconstruction", dist.Normal(z, 1.0), obs=torch.zeros(T, B))

    with pytest.raises(ConfigError, match="must be one site, independent given"):
        ImportanceWeightedELBO(3).loss(model, Exact(model, torch.zeros(B), torch.ones(B)))
    model, guide, batch = both("squared_error", action_cost=0.0)
    with pytest.raises(ConfigError, match=r"of one latent.*latent ~ .*action ~ "):
        ImportanceWeightedELBO(3)(model, guide)(batch)
    for family, of_model, of_train, words in (
        ("control_vae", {"roll_out": "closed_loop"}, {}, "independent"),
        ("control_vae", {"likelihood": "squared_error", "policy_scale": 0.1}, {}, "independent"),
        ("rssm", {}, {}, "independent"),
        ("image_vae", {}, {}, "independent"),
        ("control_vae", {}, {"kl_balance": 0.8}, "no KL"),
        ("control_vae", {}, {"free_nats": 1.0}, "no KL"),
        ("control_vae", {}, {"importance_samples": 0}, "train.importance_samples is 0"),
    ):
        config = preset("debug", family)
        with pytest.raises(ConfigError, match=words):
            dataclasses.replace(
                config, model=dataclasses.replace(config.model, **of_model),
                train=dataclasses.replace(config.train, **{"importance_samples": 3, **of_train}),
            )  # fmt: skip


@pytest.mark.parametrize(
    ("K", "family", "of_model", "of_train"),
    [
        (4, "control_vae", {}, {}),
        (4, "control_vae", {"memory_size": 4}, {"window": 4}),
        (4, "control_vae", {"structure": "joint"}, {}),
        (1, "control_vae", {"roll_out": "closed_loop"}, {}),
        (1, "control_vae", {"likelihood": "squared_error", "policy_scale": 0.1}, {}),
        (1, "control_vae", {"action_cost": 0.1}, {}),
        (1, "control_vae", {}, {"free_nats": 1.0}),
        (1, "control_vae", {}, {"kl_balance": 0.8}),
        (1, "control_vae", {}, {"importance_samples": 1}),
        (3, "control_vae", {"structure": "set"}, {"importance_samples": 3}),
        (1, "rssm", {}, {}),
    ],
)
def test_what_is_trained_on_where_nobody_says(tmp_path, K, family, of_model, of_train):
    config = preset("debug", family)
    config = dataclasses.replace(
        config, model=dataclasses.replace(config.model, **of_model),
        train=dataclasses.replace(config.train, **{"steps": 2, **of_train}),
    )  # fmt: skip
    run = fit(recordings(), config, out=tmp_path / "run", progress=False)
    assert run.config.importance_samples == K
    assert ("importance" in run.metrics()[-1]) == (K > 1)
