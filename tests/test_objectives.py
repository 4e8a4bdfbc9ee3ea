"""The options of ScaledELBO (free nats, balance, overshooting) against algebra written by hand."""

import math
from contextlib import nullcontext

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from variants import build, recording, supply_noise

from pyro_animacy import Batch, ConfigError, ScaledELBO
from pyro_animacy.infer import elbo as elbo_module
from pyro_animacy.models.program import Overshooting

T, B, Z, G, K = 4, 3, 2, 2, 3
GAMMA = 0.8
WEIGHT = (GAMMA ** torch.arange(T, dtype=torch.float64))[:, None].expand(T, B)
SEEN = torch.tensor([[1, 1, 0], [1, 0, 0], [1, 1, 1], [0, 1, 0]]).bool()


@pytest.fixture(autouse=True)
def _float64():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


# Latents alone, without data: the loss is the KL term. Parameters are leaves of (T, B, ...).


class Normals:
    """Diagonal normals; a parameter is (mean, log scale), (T, B, 2, Z)."""

    shape = (2, Z)

    @staticmethod
    def distribution(x):
        return dist.Normal(x[..., 0, :], x[..., 1, :].exp()).to_event(1)

    @staticmethod
    def kl(q, p):
        """sum_i log(s_p / s_q) + (s_q^2 + (m_q - m_p)^2) / (2 s_p^2) - 1/2."""
        (m_q, l_q), (m_p, l_p) = q.unbind(-2), p.unbind(-2)
        square = (2 * l_q).exp() + (m_q - m_p) ** 2
        return (l_p - l_q + square / (2 * (2 * l_p).exp()) - 0.5).sum(-1)


class Categoricals:
    """Groups of one-hot variables; a parameter is the logits, (T, B, G, K)."""

    shape = (G, K)

    @staticmethod
    def distribution(x):
        return dist.OneHotCategoricalStraightThrough(logits=x).to_event(1)

    @staticmethod
    def kl(q, p):
        """sum_g sum_k q_gk log(q_gk / p_gk)."""
        q, p = q.exp() / q.exp().sum(-1, keepdim=True), p.exp() / p.exp().sum(-1, keepdim=True)
        return (q * (q / p).log()).sum((-1, -2))


class Scalars:
    """Normals without an event dimension."""

    shape = (2,)

    @staticmethod
    def distribution(x):
        return dist.Normal(x[..., 0], x[..., 1].exp())

    @staticmethod
    def kl(q, p):
        return Normals.kl(q[..., None], p[..., None])


def parameters(family, seed=0, spread=1.0):
    """Of posterior and prior, both leaves."""
    generator = torch.Generator().manual_seed(seed)
    q, p = torch.randn(2, T, B, *family.shape, generator=generator) * spread
    return q.requires_grad_(), p.requires_grad_()


class Answers(poutine.guide.GuideMessenger):
    """The posterior that the evidence of a site holds; its prior where there is none."""

    def _pyro_sample(self, msg):
        self.evidence = msg["infer"].get("evidence")
        super()._pyro_sample(msg)

    def get_posterior(self, name, prior):
        return prior if self.evidence is None else self.evidence


def latents(form, family, q, p, mask=None):
    """A program that declares the latents: one site a step, or one site under a time plate."""

    def declare(name, q, p, scale, mask):
        hidden = nullcontext() if mask is None else poutine.mask(mask=mask)
        with pyro.plate(f"{name}_trajectory", B, dim=-1), poutine.scale(scale=scale), hidden:
            evidence = {"evidence": family.distribution(q)}
            pyro.sample(name, family.distribution(p), infer=evidence)

    def program():
        if form == "plate":
            with pyro.plate("time", T, dim=-2):
                declare("latent", q, p, WEIGHT, mask)
            return
        for t in range(T):
            # a scale that is a tensor keeps the sites from being stacked
            scale = GAMMA**t if form == "stacked" else torch.tensor(GAMMA**t)
            declare(f"latent_{t}", q[t], p[t], scale, None if mask is None else mask[t])

    return program


def evaluate(program, **options):
    elbo = ScaledELBO(**options)
    loss = elbo.differentiable_loss(program, Answers(program))
    total = sum(elbo.terms.values(), torch.zeros(()))
    torch.testing.assert_close(total, loss.detach(), rtol=1e-12, atol=0)
    return loss


def by_hand(kl_of, q, p, seen, free, of, alpha):
    """The KL term, written out from the docstring of the module, element by element."""
    if alpha is None:
        kl = kl_of(q, p)
    else:
        kl = alpha * kl_of(q.detach(), p) + (1 - alpha) * kl_of(q, p.detach())
    total, weights = torch.zeros(()), torch.zeros(())
    for t in range(len(seen)):
        for b in range(seen.shape[1]):
            if seen[t, b]:
                clipped = of == "step" and kl[t, b] < free
                total = total + WEIGHT[t, b] * (free if clipped else kl[t, b])
                weights = weights + WEIGHT[t, b]
    if of == "mean" and free and total / weights < free:
        return weights * free + 0 * (q.sum() + p.sum())
    return total + 0 * (q.sum() + p.sum())


def gradients(loss, q, p):
    return torch.autograd.grad(loss, (q, p))


FORMS = ["stacked", "sites", "plate"]
FAMILIES = [Normals, Scalars, Categoricals]


@pytest.mark.parametrize("alpha", [None, 0.8])
@pytest.mark.parametrize("of", ["step", "mean"])
@pytest.mark.parametrize("share", [0.0, 0.6, 1.4])
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("form", FORMS)
def test_the_term_is_the_algebra(form, family, share, of, alpha):
    """Value and gradients, with free nats below and above the mean KL, which clips some steps."""
    q, p = parameters(family)
    kl = family.kl(q, p)
    free = share * ((WEIGHT * kl).sum() / WEIGHT.sum()).item()
    assert not share or (kl < free).any()
    options = {"free_nats": free, "free_nats_of": of, "kl_balance": alpha}
    loss = evaluate(latents(form, family, q, p), kl_weight=0.7, scale=0.1, **options)
    everywhere = torch.ones(T, B).bool()
    plain = 0.07 * by_hand(family.kl, q, p, everywhere, free, of, alpha)
    torch.testing.assert_close(loss, plain, rtol=1e-12, atol=1e-13)
    for ours, expected in zip(gradients(loss, q, p), gradients(plain, q, p), strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("alpha", [None, 0.8])
@pytest.mark.parametrize("of", ["step", "mean"])
@pytest.mark.parametrize("share", [0.6, 1.4])
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("way", ["mask", "prior"])
def test_what_was_not_seen_is_not_charged(way, form, family, share, of, alpha):
    """Elements that are masked, or whose posterior has the prior's numbers, count for nothing."""
    q, p = parameters(family)
    around = SEEN.reshape(T, B, *[1] * len(family.shape))
    free = share * ((WEIGHT * family.kl(q, p))[SEEN].sum() / WEIGHT[SEEN].sum()).item()
    if way == "mask":
        program = latents(form, family, q, p, mask=SEEN)
    else:
        answer = q.where(around, family_parameter(family, p))
        program = latents(form, family, answer, p)
    options = {"free_nats": free, "free_nats_of": of, "kl_balance": alpha}
    loss = evaluate(program, **options)
    plain = by_hand(family.kl, q, p, SEEN, free, of, alpha)
    torch.testing.assert_close(loss, plain, rtol=1e-12, atol=1e-13)
    for ours, expected in zip(gradients(loss, q, p), gradients(plain, q, p), strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-11, atol=1e-13)


def family_parameter(family, p):
    """The prior's parameter as a guide finds it: the logits of a categorical are normalised."""
    return p.log_softmax(-1) if family is Categoricals else p


@pytest.mark.parametrize("seed", range(5))
def test_normalising_logits_again_shows_no_evidence(seed):
    """In float32 the logits that are normalised anew differ by rounding; that is unseen."""
    logits = 20 * torch.randn(T, B, 32, 32, generator=torch.Generator().manual_seed(seed)).float()
    prior = Categoricals.distribution(logits)
    again = Categoricals.distribution(prior.base_dist.logits + 0.0)
    assert not torch.equal(again.base_dist.logits, prior.base_dist.logits)
    shift = 1e-3 * logits * SEEN[..., None, None]
    shifted = Categoricals.distribution(prior.base_dist.logits + shift)
    for posterior, seen in ((again, 0 * SEEN), (shifted, SEEN)):

        def program(posterior=posterior):
            with pyro.plate("time", T, dim=-2), pyro.plate("trajectory", B, dim=-1):
                pyro.sample("latent", prior, infer={"evidence": posterior})

        loss = evaluate(program, free_nats=100.0)
        torch.testing.assert_close(loss.item(), 100.0 * seen.sum().item(), rtol=1e-6, atol=1e-3)


def test_a_family_without_a_formula_has_free_nats_on_its_draw():
    """log q - log p at the draw, clipped; masked out or left to its prior it charges nothing."""

    def program(mask):
        with poutine.mask(mask=mask):
            posterior = dist.LogNormal(torch.tensor([0.1, 0.2]), 0.3).to_event(1)
            pyro.sample("latent", dist.Gamma(torch.tensor([2.0, 3.0]), 1.0).to_event(1),
                        infer={"evidence": posterior})  # fmt: skip

    guide = Answers(program)

    def unmoved():
        law = (dist.LogNormal(torch.tensor([0.1, 0.2]), 0.3).to_event(1) for _ in range(2))
        pyro.sample("latent", next(law), infer={"evidence": next(law)})

    assert ScaledELBO(free_nats=1000.0).loss(unmoved, Answers(unmoved)) == 0
    for free, mask in ((0.0, True), (1000.0, True), (1000.0, False)):
        torch.manual_seed(0)
        loss = ScaledELBO(free_nats=free).differentiable_loss(program, guide, mask)
        model, posterior = (trace.nodes["latent"] for trace in guide.get_traces())
        z = posterior["value"]
        one_draw = posterior["fn"].log_prob(z) - model["fn"].log_prob(z)
        expected = mask * max(one_draw.item(), free) if free else one_draw.item()
        assert loss.item() == pytest.approx(expected, rel=1e-12)


# Free nats.


@pytest.mark.parametrize("form", FORMS)
def test_before_and_after_the_mean_agree_where_all_steps_do(form):
    """With one KL everywhere the two are one; else, by Jensen, before the mean is never less."""
    one_q, one_p = torch.randn(2, *Normals.shape, generator=torch.Generator().manual_seed(1))
    q, p = (x.expand(T, B, *Normals.shape).clone().requires_grad_() for x in (one_q, one_p))
    kl = Normals.kl(one_q, one_p).item()
    for free in (0.5 * kl, 2 * kl):
        both = [
            evaluate(latents(form, Normals, q, p), free_nats=free, free_nats_of=of)
            for of in ("step", "mean")
        ]
        expected = WEIGHT.sum().item() * max(kl, free)
        assert [x.item() for x in both] == pytest.approx([expected] * 2, rel=1e-12)
    q, p = parameters(Normals)
    kl = Normals.kl(q, p)
    for free in (kl.min().item() * 1.01, kl.mean().item(), kl.max().item() * 0.99):
        step, mean = (
            evaluate(latents(form, Normals, q, p), free_nats=free, free_nats_of=of).item()
            for of in ("step", "mean")
        )
        assert step > mean


@pytest.mark.parametrize("of", ["step", "mean"])
@pytest.mark.parametrize("alpha", [None, 0.8])
@pytest.mark.parametrize("family", FAMILIES)
def test_where_the_clip_is_active_nothing_pulls(family, alpha, of):
    """Above every KL the gradient is exactly zero; below every KL it is that without free nats."""
    q, p = parameters(family)
    kl = family.kl(q, p)
    program = latents("stacked", family, q, p)
    options = {"kl_balance": alpha, "free_nats_of": of}
    above = evaluate(program, free_nats=kl.max().item() * 1.01, **options)
    for gradient in gradients(above, q, p):
        assert (gradient == 0).all()
    below = evaluate(program, free_nats=kl.min().item() * 0.99, **options)
    none = evaluate(program, **options)
    assert torch.equal(below, none)
    for a, b in zip(gradients(below, q, p), gradients(none, q, p), strict=True):
        assert torch.equal(a, b)


def test_each_step_is_clipped_by_itself():
    """The gradient of a step whose KL is under the free nats is zero, of another the plain one."""
    q, p = parameters(Normals)
    kl = Normals.kl(q, p)
    free = kl.median().item()
    program = latents("stacked", Normals, q, p)
    clipped = gradients(evaluate(program, free_nats=free), q, p)
    plain = gradients(evaluate(program), q, p)
    for a, b in zip(clipped, plain, strict=True):
        assert (a[kl < free] == 0).all()
        assert torch.equal(a[kl > free], b[kl > free])


def test_dimensions_are_summed_before_the_clip():
    """Two dimensions of 0.6 nats each are 1.2 nats, above one free nat; not 0.6 twice below it."""
    shift = math.sqrt(1.2)
    q = torch.tensor([[shift, shift], [0.0, 0.0]]).expand(T, B, 2, 2)
    loss = evaluate(latents("plate", Normals, q, torch.zeros(T, B, 2, 2)), free_nats=1.0)
    assert loss.item() == pytest.approx(1.2 * WEIGHT.sum().item(), rel=1e-12)


def test_particles_each_have_their_mean():
    q, p = parameters(Normals)
    program = latents("stacked", Normals, q, p)
    options = {"free_nats": 1.2, "free_nats_of": "mean"}
    one, four = (evaluate(program, num_particles=n, **options) for n in (1, 4))
    torch.testing.assert_close(one, four, rtol=1e-12, atol=0)


# Balance.


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("form", FORMS)
def test_balance_shares_the_gradient_and_keeps_the_value(form, family):
    """alpha of the plain gradient goes to the prior's parameters, the rest to the posterior's."""
    q, p = parameters(family)
    program = latents(form, family, q, p)
    plain = evaluate(program)
    of_q, of_p = gradients(plain, q, p)
    for alpha in (0.2, 0.5, 0.8):
        balanced = evaluate(program, kl_balance=alpha)
        torch.testing.assert_close(balanced, plain, rtol=1e-12, atol=0)
        to_q, to_p = gradients(balanced, q, p)
        torch.testing.assert_close(to_q, (1 - alpha) * of_q, rtol=1e-11, atol=1e-14)
        torch.testing.assert_close(to_p, alpha * of_p, rtol=1e-11, atol=1e-14)


def test_a_family_that_cannot_be_balanced_is_named():
    def program():
        pyro.sample("y", dist.Gamma(2.0, 1.0), infer={"evidence": dist.Gamma(3.0, 1.0)})

    with pytest.raises(ConfigError, match=r"kl_balance.*site y.*Gamma.*None"):
        evaluate(program, kl_balance=0.8)


# Overshooting: the model's own sites.


def ahead(calls, q, p):
    """A program that declares a site two and one three steps ahead, if it is asked to."""
    weights = {2: 0.5 / 3, 3: 0.25 / 3}  # beta_d / D

    def program(**options):
        calls.append(options)
        latents("stacked", Normals, q, p)()
        for d, weight in weights.items() if options else ():
            time = pyro.plate(f"time_{d}", T - d, dim=-2)
            with time, pyro.plate(f"ahead_{d}", B, dim=-1), poutine.scale(scale=weight):
                evidence = {"evidence": Normals.distribution(q[d:].detach())}
                prior = Normals.distribution(p[:-d] + 0.1 * d)
                pyro.sample(f"latent_ahead_{d}", prior, infer=evidence)

    expected = sum(
        weight * Normals.kl(q[d:].detach(), p[:-d] + 0.1 * d).sum() for d, weight in weights.items()
    )
    return program, expected


def test_overshooting_is_one_more_term():
    """beta_1 / D on the KL, beta_d / D by the site's scale, no gradient to the posterior."""
    q, p = parameters(Normals)
    calls = []
    program, expected = ahead(calls, q, p)
    asked = Overshooting(distance=3, weights=(2.0, 0.5, 0.25))
    elbo = ScaledELBO(kl_weight=0.7, overshooting=asked)
    loss = elbo.differentiable_loss(program, Answers(program))
    assert calls == [{"overshooting": asked}]
    assert set(elbo.terms) == {"latent", "latent_ahead"}
    torch.testing.assert_close(elbo.terms["latent_ahead"], 0.7 * expected.detach())
    one_step = by_hand(Normals.kl, q, p, torch.ones(T, B).bool(), 0.0, "step", None)
    assert elbo.logged()["kl"] == pytest.approx(one_step.item(), rel=1e-12)
    plain = 0.7 * (2 / 3 * one_step + expected)
    torch.testing.assert_close(loss, plain, rtol=1e-12, atol=0)
    for ours, theirs in zip(gradients(loss, q, p), gradients(plain, q, p), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-11, atol=1e-13)


def test_overshooting_reaches_a_guide_that_is_a_function():
    """Both are called with the keyword, and neither where there is no overshooting."""
    calls = []

    def model(x, **options):
        calls.append(("model", options))
        pyro.sample("z", dist.Normal(0.0, 1.0))

    def guide(x, **options):
        calls.append(("guide", options))
        pyro.sample("z", dist.Normal(x, 1.0))

    asked = Overshooting()
    for overshooting, keywords in ((None, {}), (asked, {"overshooting": asked})):
        calls.clear()
        elbo = ScaledELBO(overshooting=overshooting)
        loss = elbo.loss(model, guide, torch.tensor(0.5))
        assert loss == pytest.approx(0.125)
        assert sorted(calls) == [("guide", keywords), ("model", keywords)]


@pytest.mark.parametrize("options", [
    {"free_nats": 5.0}, {"free_nats": 5.0, "free_nats_of": "mean"}, {"kl_balance": 0.8},
])  # fmt: skip
def test_free_nats_and_balance_leave_overshooting_alone(options):
    q, p = parameters(Normals)
    program, expected = ahead([], q, p)
    elbo = ScaledELBO(overshooting=Overshooting(), **options)
    loss = elbo.differentiable_loss(program, Answers(program))
    torch.testing.assert_close(elbo.terms["latent_ahead"], expected.detach(), rtol=1e-12, atol=0)
    alone = evaluate(latents("stacked", Normals, q, p), **options)
    difference = torch.autograd.grad(loss - alone, p)[0]
    torch.testing.assert_close(
        difference, torch.autograd.grad(expected, p)[0], rtol=1e-9, atol=1e-12
    )


# Speed: steps are scored in one call.


@pytest.mark.parametrize("mask", [None, SEEN])
@pytest.mark.parametrize("family", FAMILIES)
def test_steps_are_scored_in_one_call(monkeypatch, family, mask):
    calls = []

    def counted(q, p):
        calls.append(q.batch_shape)
        return torch.distributions.kl_divergence(q, p)

    monkeypatch.setattr(elbo_module, "kl_divergence", counted)
    q, p = parameters(family)
    program = latents("stacked", family, q, p, mask=mask)
    for options, expected in (({}, 1), ({"free_nats": 1.0}, 1), ({"kl_balance": 0.8}, 2)):
        calls.clear()
        evaluate(program, **options)
        assert calls == [(T, B)] * expected


# The ControlVAE under the options.

MODELS = ["closed_loop", "small", "seed", "tied_scale"]
OPTIONS = [
    {},
    {"free_nats": 0.9},
    {"free_nats": 0.9, "free_nats_of": "mean"},
    {"free_nats": 50.0, "free_nats_of": "mean"},
    {"kl_balance": 0.8},
    {"kl_balance": 0.8, "free_nats": 0.9},
]


def of_modules(loss, modules):
    found = [x for m in modules for x in m.parameters()]
    return torch.autograd.grad(loss, found, allow_unused=True, materialize_grads=True)


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("name", MODELS)
def test_control_vae_by_hand(name, options):
    """The loss and its gradients from the densities of the two traces, to 1e-10."""
    model, guide = build(name)
    batch = recording(model.config.history + T, B, missing=0.15)
    torch.manual_seed(0)
    loss = ScaledELBO(kl_weight=0.3, **options)(model, guide)(batch)
    torch.manual_seed(0)
    with guide.prior_held() if "kl_balance" in options else nullcontext():
        guide(batch)
    p, q = guide.get_traces()
    observed = [s for s in p.nodes.values() if s["type"] == "sample" and s["is_observed"]]
    p.compute_log_prob(lambda name, site: site["is_observed"])
    rest = -sum(site["log_prob_sum"] for site in observed)
    names = [f"latent_{t}" for t in range(T)] if "latent_0" in p.nodes else ["latent"]
    moments = [
        torch.stack([
            torch.stack([d.base_dist.loc, d.base_dist.scale.log()], -2)
            for d in (trace.nodes[n]["fn"] for n in names)
        ]).reshape(T, B, 2, -1)
        for trace in (q, p)
    ]  # fmt: skip
    gamma = model.config.discount
    weight = (gamma ** torch.arange(T))[:, None].expand(T, B)
    free, of, alpha = (options.get(k) for k in ("free_nats", "free_nats_of", "kl_balance"))
    seen = batch.observed[model.config.history :].any(-1)
    if name in ("small", "tied_scale"):
        seen = model.evidence(batch).seen
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(globals(), "WEIGHT", weight)
        term = by_hand(Normals.kl, *moments, seen, free or 0.0, of or "step", alpha)
    expected = rest + 0.3 * term
    torch.testing.assert_close(loss, expected, rtol=1e-11, atol=1e-11)
    pairs = zip(*(of_modules(x, (model, guide)) for x in (loss, expected)), strict=True)
    for ours, theirs in pairs:
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("alpha", [0.2, 0.8])
def test_balance_moves_each_by_its_share(alpha):
    """Of KL = |m_q - m_p|^2 / 2 sigma^2 the prior has alpha of the slope, the posterior the rest.

    As with two networks that share nothing (DreamerV2), although here q is a shift of p.
    """
    model, guide = build("tied_scale")
    batch = recording(model.config.history + T, B)
    losses = []
    for weight in (1.0, 0.0):
        torch.manual_seed(0)
        elbo = ScaledELBO(kl_weight=weight, kl_balance=alpha)
        losses.append(elbo(model, guide)(batch))
    last = [net.layers[-1].bias for net in (model.step.prior.network, guide.residual.network)]
    found = torch.autograd.grad(losses[0] - losses[1], last)
    shift = [trace.nodes["latent"]["fn"].base_dist.loc for trace in guide.get_traces()]
    slope = (shift[1] - shift[0]).sum((0, 1)) / model.config.latent_scale**2
    torch.testing.assert_close(found[0], -alpha * slope, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(found[1], (1 - alpha) * slope, rtol=1e-9, atol=1e-9)


def test_held_prior_is_let_go():
    """A plain loss after a balanced one has the plain gradient, of a guide that both used."""
    model, guide = build("small")
    batch = recording(model.config.history + T, B)
    found = []
    for alpha in (None, 0.8, None):
        torch.manual_seed(0)
        loss = ScaledELBO(kl_balance=alpha)(model, guide)(batch)
        found.append([loss, *of_modules(loss, (model, guide))])
    torch.testing.assert_close(found[2], found[0], rtol=0, atol=0)
    torch.testing.assert_close(found[1][0], found[0][0], rtol=1e-12, atol=0)


@pytest.mark.parametrize("of", ["step", "mean"])
@pytest.mark.parametrize("name", MODELS)
def test_all_nats_free_is_no_kl(name, of):
    """With more free nats than any step has, the gradient is that of the rest of the loss."""
    model, guide = build(name)
    batch = recording(model.config.history + T, B)
    results = []
    for options in ({"kl_weight": 0.0}, {"free_nats": 1e4, "free_nats_of": of}):
        torch.manual_seed(0)
        results.append(of_modules(ScaledELBO(**options)(model, guide)(batch), (model, guide)))
    for none, free in zip(*results, strict=True):
        torch.testing.assert_close(free, none, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("options", OPTIONS[1:])
@pytest.mark.parametrize("name", MODELS)
def test_padding_changes_nothing(monkeypatch, name, options):
    """Frames after the end of a recording leave the loss and its gradients alone."""
    model, guide = build(name)
    batch = recording(model.config.history + T, B, missing=0.15)
    noise = supply_noise(monkeypatch, T + 3, B, 5, 6)
    nothing = torch.zeros(3, B, 6)
    padded = Batch(
        torch.cat([batch.position, nothing + 5.0]), torch.cat([batch.observed, nothing > 0])
    )
    results = []
    for one in (batch, padded):
        noise["rewind"]()
        loss = ScaledELBO(**options)(model, guide)(one)
        results.append([loss, *of_modules(loss, (model, guide))])
    for short, long in zip(*results, strict=True):
        torch.testing.assert_close(long, short, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize(("change", "named"), [
    ({"free_nats": -1.0}, "free_nats is -1.0"),
    ({"free_nats": math.nan}, "free_nats is nan"),
    ({"free_nats_of": "sum"}, "free_nats_of is sum.*step or mean"),
    ({"kl_balance": 0.0}, "kl_balance is 0.0"),
    ({"kl_balance": 1.0}, "kl_balance is 1.0"),
])  # fmt: skip
def test_options_that_cannot_be_used_are_named(change, named):
    with pytest.raises(ConfigError, match=named):
        ScaledELBO(**change)
