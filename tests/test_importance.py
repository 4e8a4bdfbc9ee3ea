"""Importance weights and calibration of the guide: closed forms, brute force, known posteriors."""

import math

import numpy as np
import pytest
import torch
import xarray as xr
from arviz_stats.base import array_stats
from helpers import recordings
from scipy import stats
from variants import build, recording

from pyro_animacy import ConfigError, DataError
from pyro_animacy.criticism import importance
from pyro_animacy.criticism.importance import (
    Psis,
    guide_quality,
    iwae_curve,
    k_hat_threshold,
    psis,
    simulated_probability,
    vsbc,
)
from pyro_animacy.criticism.importance_plots import (
    findings,
    plot_iwae,
    plot_k_hat,
    plot_vsbc,
    section,
)
from pyro_animacy.criticism.wording import nats
from pyro_animacy.data.windows import dequantised, whole
from pyro_animacy.infer.steps import draw_steps
from pyro_animacy.nets import StackConfig

LINEAR = StackConfig(hidden=1, layers=0)
N = 1000


# The linear-Gaussian case: affine networks, so the posterior of z_t is known.


def linear_gaussian(width=1.0, shift=0.0, loading=1.0):
    """A model and its exact posterior as guide, `width` times as wide, `shift` deviations off."""
    model, guide = build(
        "small", 2, latent_size=3, prior=LINEAR, posterior=LINEAR, policy=LINEAR, policy_scale=0.2
    )
    scales = loading * torch.tensor([1.5, 0.7, 1.1], dtype=torch.float64)
    W = torch.linalg.qr(torch.randn(4, 3, dtype=torch.float64))[0] * scales
    precision = 1 / model.config.latent_scale**2 + (W**2).sum(0) / 0.2**2
    gain = (W / 0.2**2 / precision).T
    head = guide.residual.network.layers[0]
    C = model.context_size
    with torch.no_grad():
        model.step.policy.network.layers[0].weight[:, :3] = W
        origin, *slope = mean_of(model, torch.cat([torch.zeros(1, C), torch.eye(C)]).double())
        head.weight.zero_()
        head.weight[:3, C:] = gain
        head.weight[:3, :C] = -gain @ (torch.stack(slope) - origin).T
        head.bias[:3] = -gain @ origin + shift * precision.rsqrt()
        head.bias[3:] = (width * precision.rsqrt() / model.config.latent_scale).log()
    return model, guide, W


def mean_of(model, context):
    """Mean of a_t given c_t, the latent integrated out."""
    return model.step.policy(context, model.step.prior.network(context)).base_dist.loc


def weights(guide, draws, size=20):
    torch.manual_seed(0)
    return draw_steps(guide, recording(5, size, bodies=2), draws).log_weight[..., 0].numpy()


def simulated(guide):
    torch.manual_seed(0)
    return simulated_probability(guide, recording(3, N, bodies=2))[0].numpy()


def test_with_the_exact_posterior_every_estimate_is_the_evidence():
    model, guide, W = linear_gaussian()
    evidence = model.evidence(recording(5, 20, bodies=2))
    covariance = 0.3**2 * W @ W.T + 0.2**2 * torch.eye(4)
    exact = torch.distributions.MultivariateNormal(mean_of(model, evidence.context), covariance)
    truth = exact.log_prob(evidence.shown).detach().numpy()
    log_w = weights(guide, 64)
    result = psis(log_w)
    np.testing.assert_allclose(result.log_mean, truth, atol=1e-9)
    np.testing.assert_allclose(result.ess, 64, rtol=1e-9)
    np.testing.assert_allclose(result.standard_error, 0, atol=1e-6)
    assert (result.k_hat < 0.5).all()
    for bound in iwae_curve(log_w, [1, 4, 64])[0]:
        np.testing.assert_allclose(bound, truth, atol=1e-9)


def test_with_the_exact_posterior_p_is_uniform():
    p = simulated(linear_gaussian()[1])
    assert all(stats.kstest(x, "uniform").pvalue > 0.01 for x in p.T)
    found = vsbc(p)
    assert (np.abs(found.bias) < 3.5 / math.sqrt(12 * N)).all()
    assert (np.abs(found.spread - 1) < 3.5 * math.sqrt(0.8 / N)).all()
    assert (found.asymmetry_p > 0.01).all()


@pytest.mark.parametrize("loading", [0.0, 0.02])
def test_the_prior_is_a_good_guide_where_the_likelihood_is_flat(loading):
    _, guide, _ = linear_gaussian(loading=loading)
    with torch.no_grad():  # q = p
        for parameter in guide.parameters():
            parameter.zero_()
    result = psis(weights(guide, 1000))
    assert (result.k_hat < 0.5).all()
    assert np.median(result.ess) > 800


def test_a_narrow_guide_has_heavy_weights_and_a_u_shaped_p():
    _, guide, _ = linear_gaussian(width=0.3)
    result = psis(weights(guide, 1000))
    assert np.median(result.k_hat) > 0.8
    assert (result.k_hat > 0.7).mean() > 0.8
    found = vsbc(p := simulated(guide))
    # p = Phi(x / width), x ~ N(0, 1): its variance is arcsin(s^2 / (1 + s^2)) / (2 pi), s = 1/width
    expected = 12 * math.asin(0.3**-2 / (1 + 0.3**-2)) / (2 * math.pi)
    np.testing.assert_allclose(found.spread, expected, rtol=0.06)
    counts = np.stack([np.histogram(x, np.linspace(0, 1, 11))[0] for x in p.T])
    assert (counts[:, [0, -1]].min(1) > 2 * counts[:, 2:-2].max(1)).all()
    assert (found.asymmetry_p > 0.01).all()


def test_a_wide_guide_has_light_weights_and_a_hump_of_p():
    _, guide, _ = linear_gaussian(width=2.0)
    assert (psis(weights(guide, 1000)).k_hat < 0.5).all()
    expected = 12 * math.asin(0.25 / 1.25) / (2 * math.pi)
    np.testing.assert_allclose(vsbc(simulated(guide)).spread, expected, rtol=0.15)


def test_a_biased_guide_has_an_asymmetric_p():
    found = vsbc(simulated(linear_gaussian(shift=0.5)[1]))
    # q lies half a deviation too high: p = Phi(x - 1/2), with mean Phi(-1/2 / sqrt 2)
    expected = stats.norm.cdf(-0.5 / math.sqrt(2)) - 0.5
    np.testing.assert_allclose(found.bias, expected, atol=3.5 / math.sqrt(12 * N))
    assert (found.asymmetry_p < 0.01).all()


# On plain arrays.


@pytest.mark.parametrize("shape", [0.2, 0.5, 0.7, 1.0])
def test_k_hat_is_the_shape_of_generalised_pareto_weights(shape):
    w = 1 + stats.genpareto(shape).rvs((40_000, 4), random_state=1)
    result = psis(np.log(w))
    np.testing.assert_allclose(result.k_hat, shape, atol=0.12)
    arviz = array_stats.pareto_khat(w.T, chain_axis=None, r_eff=1, tail="right")
    np.testing.assert_allclose(result.k_hat, arviz, rtol=1e-6)


def test_log_mean_keeps_the_level_of_the_weights():
    w = 1 + stats.genpareto(0.3).rvs((5000, 50), random_state=2)
    result = psis(np.log(w))
    truth = math.log(1 + 1 / 0.7)
    assert (np.abs(result.log_mean - truth) < 4.5 * result.standard_error).all()
    for moved, kept in zip(psis(np.log(w) - 3000), result, strict=True):
        offset = -3000 if kept is result.log_mean else 0
        np.testing.assert_allclose(moved, kept + offset, rtol=1e-9, atol=1e-9)


def test_standard_error_is_the_spread_of_repeated_estimates():
    log_w = np.random.default_rng(0).normal(scale=0.7, size=(400, N))
    result = psis(log_w)
    assert result.standard_error.mean() == pytest.approx(result.log_mean.std(), rel=0.08)
    covered = np.abs(result.log_mean - 0.7**2 / 2) < 1.96 * result.standard_error
    assert covered.mean() == pytest.approx(0.95, abs=0.03)
    # and of k-hat below 0.5 the plain estimates, unsmoothed, are hardly other ones
    plain = np.log(np.exp(log_w).mean(0))
    assert np.abs(plain - result.log_mean).max() < 0.1


def test_effective_sample_size_is_that_of_the_weights():
    log_w = np.random.default_rng(0).normal(scale=0.3, size=(1000, 20))
    w = np.exp(log_w)
    np.testing.assert_allclose(psis(log_w).ess, w.sum(0) ** 2 / (w**2).sum(0), rtol=0.01)


def test_weights_without_a_tail_have_a_stated_k_hat():
    log_w = np.random.default_rng(0).normal(size=(100, 4))
    log_w[:, 0] = -7.0
    log_w[:, 1] *= 1e5
    log_w[3, 2] = np.nan
    result = psis(log_w)
    assert result.k_hat[0] == -np.inf
    assert result.ess[0] == pytest.approx(100)
    assert result.log_mean[0] == pytest.approx(-7)
    assert result.k_hat[1] == np.inf
    assert result.ess[1] == pytest.approx(1)
    assert result.log_mean[1] == pytest.approx(log_w[:, 1].max() - math.log(100))
    assert all(np.isnan(values[2]) for values in result)
    assert all(np.isfinite(values[3]) for values in result)


def test_equal_weights_in_the_tail_are_left_as_they_are():
    log_w = np.repeat([[0.0, -1.0]], [20, 44], 1)[0] + np.array([[0.0], [1e5], [-1e12]])
    moved = log_w + 1e-5 * np.random.default_rng(0).normal(size=log_w.shape)  # rounding
    for result in (psis(log_w, axis=1), psis(moved, axis=1)):
        assert result.k_hat.tolist() == [-np.inf, np.inf, np.inf]
        w = np.exp(log_w[0])
        np.testing.assert_allclose(result.ess, w.sum() ** 2 / (w**2).sum(), rtol=1e-3)
        np.testing.assert_allclose(result.log_mean - log_w[:, 0], math.log(w.mean()), atol=1e-3)
    # min(S / 5, 3 sqrt S) are the tail: of S = 64 it is 12, of S = 400 it is 60
    for S, M in ((64, 12), (400, 60)):
        lower = -1 - stats.expon.rvs(size=(S, 2), random_state=0)
        lower[:M, 0] = lower[: M - 1, 1] = 0
        assert np.isfinite(psis(lower).k_hat).tolist() == [False, True]


def test_draws_are_on_the_axis_that_is_named():
    log_w = np.random.default_rng(0).normal(size=(3, 100, 2))
    result = psis(log_w, axis=1)
    for i in range(3):
        for j in range(2):
            alone = psis(log_w[i, :, j])
            assert isinstance(alone, Psis)
            assert [values[i, j] for values in result] == pytest.approx([float(x) for x in alone])


def test_too_few_draws_are_named():
    with pytest.raises(ConfigError, match="at least 25"):
        psis(np.zeros(24))
    with pytest.raises(ConfigError, match="K of IWAE is 11"):
        iwae_curve(np.zeros(10), [11])


def test_threshold():
    assert k_hat_threshold(100) == pytest.approx(0.5)
    assert k_hat_threshold(10_000) == 0.7


def test_iwae_is_the_mean_over_disjoint_groups():
    log_w = np.random.default_rng(0).normal(size=(23, 2))
    bound, error = iwae_curve(log_w, [1, 5, 23])
    np.testing.assert_allclose(bound[0], log_w.mean(0))
    np.testing.assert_allclose(error[0], stats.sem(log_w))
    for j in range(2):
        groups = [log_w[i : i + 5, j] for i in (0, 5, 10, 15)]
        each = [math.log(sum(math.exp(x) for x in group) / 5) for group in groups]
        assert bound[1, j] == pytest.approx(np.mean(each))
        assert error[1, j] == pytest.approx(stats.sem(each))
        assert bound[2, j] == pytest.approx(math.log(np.exp(log_w[:, j]).mean()))
    assert np.isnan(error[2]).all()


def test_iwae_rises_to_the_log_evidence():
    log_w = np.random.default_rng(0).normal(size=(256, N))
    bound = iwae_curve(log_w, [1, 2, 8, 64, 256])[0].mean(1)
    assert (np.diff(bound) > 0).all()
    assert bound[0] == pytest.approx(0, abs=0.01)
    assert 0.48 < bound[-1] < 0.5


@pytest.mark.parametrize("a", [0.5, 3.0])
def test_asymmetry_p_is_calibrated_under_symmetry(a):
    """Of 1,000 symmetric samples 5 % have a p-value below 0.05, and 1 % below 0.01."""
    p = stats.beta(a, a).rvs((400, N), random_state=0)
    found = vsbc(p)
    for level in (0.01, 0.05, 0.2):
        error = math.sqrt(level * (1 - level) / N)
        share = (found.asymmetry_p < level).mean()
        assert -0.2 * level - 3 * error < share - level < 3 * error


def test_distance_is_that_of_the_distribution_functions():
    p = np.random.default_rng(0).beta(2, 1, size=50)
    grid = np.concatenate([p, 1 - p])
    below = (p <= grid[:, None]).mean(1), (1 - p <= grid[:, None]).mean(1)
    expected = np.abs(below[0] - below[1]).max()
    assert vsbc(p[:, None]).distance[0] == pytest.approx(expected)


# On a run.


def gappy(bodies_gone=True):
    data = recordings(frames=60, recordings=3, seed=3)
    x = data["position"].to_numpy().copy()
    if bodies_gone:
        x[0, 20:23] = np.nan  # a gap
        x[1, 30, 1] = np.nan  # one body alone
    return data.assign(position=(data["position"].dims, x))


@pytest.fixture(scope="module")
def quality(tiny_run):
    return guide_quality(tiny_run, gappy(), draws=64, progress=False)


def test_quality_names_its_axes(quality, tiny_run):
    history = tiny_run.model.config.history
    assert dict(quality["k_hat_step"].sizes) == {"trajectory": 6, "time": 50}
    assert quality["iwae"].dims == ("K", "trajectory", "time")
    assert quality["K"].to_numpy().tolist() == [1, 2, 4, 8, 16, 64]
    assert quality["vsbc"].shape == (int(quality["steps"].sum()), 4)
    assert quality["vsbc"].min() >= 0
    assert quality["vsbc"].max() <= 1
    # 60 frames: steps 0 to 57, in stretches of 50 and 8
    gap = np.flatnonzero(np.isnan(quality["k_hat_step"][0]))
    np.testing.assert_array_equal(gap, np.arange(20 - history, 23))
    alone = np.flatnonzero(np.isnan(quality["k_hat_step"][2]))
    np.testing.assert_array_equal(alone, [30 - history + 1, 30 - history + 2])
    assert quality["steps"].to_numpy().tolist() == [45, 8, 48, 8, 50, 8]
    np.testing.assert_allclose(quality["iwae"][0], quality["elbo"])


def test_densities_are_per_data_unit_of_the_coordinates_seen(tiny_run):
    """By hand: the policy's normal densities in metres, of the coordinates that were observed."""
    data = gappy().isel(time=slice(0, 52)).assign_coords(length=("trajectory", [52] * 3))
    quality = guide_quality(tiny_run, data, draws=64, seed=5, progress=False)
    data = dequantised(data, importance.DEQUANTISE_HELDOUT)
    batch = whole(data, tiny_run.card.scale)
    torch.manual_seed(5)
    drawn = draw_steps(tiny_run.guide, batch, 64)
    unit = tiny_run.card.scale.unit
    x = data["position"].to_numpy().reshape(3, 52, 4).transpose(1, 0, 2)
    pi = stats.norm(drawn.policy.mean.numpy() * unit, drawn.policy.stddev.numpy() * unit)
    each = np.nansum(pi.logpdf(x[2:] - x[1:-1]), -1).mean(0) + drawn.log_ratio[..., 0].numpy().mean(
        0
    )
    seen = drawn.seen.any(-1).numpy()
    expected = np.where(seen, each, np.nan).T
    np.testing.assert_allclose(quality["elbo"], expected, rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(quality["kl"], drawn.kl[torch.tensor(seen)].mean(0), rtol=1e-4)
    joint = np.nansum(np.where(seen, drawn.log_weight[..., 0].numpy(), 0), 1)
    np.testing.assert_allclose(quality["k_hat"], psis(joint).k_hat, rtol=1e-2)


def test_quality_is_repeatable_and_leaves_the_random_state(tiny_run, quality):
    torch.manual_seed(11)
    expected = torch.rand(3)
    torch.manual_seed(11)
    again = guide_quality(tiny_run, gappy(), draws=64, progress=False)
    assert torch.equal(torch.rand(3), expected)
    xr.testing.assert_identical(again, quality)


def test_the_number_of_steps_is_limited(tiny_run):
    few = guide_quality(tiny_run, gappy(False), draws=64, most=70, progress=False)
    assert int(few["steps"].sum()) <= 70
    one = guide_quality(tiny_run, gappy(False), draws=64, most=1, progress=False)
    assert one.sizes["trajectory"] == 1


def test_what_cannot_be_measured_is_named(tiny_run):
    with pytest.raises(ConfigError, match="draws is 10"):
        guide_quality(tiny_run, gappy(), draws=10, progress=False)
    with pytest.raises(ConfigError, match="most is 0"):
        guide_quality(tiny_run, gappy(), most=0, progress=False)
    short = gappy(False).isel(time=slice(0, 2)).assign_coords(length=("trajectory", [2] * 3))
    with pytest.raises(DataError, match=r"longest trajectory has 2 frames; .* of 2 needs 3$"):
        guide_quality(tiny_run, short, progress=False)
    data = gappy(False)
    holes = data["position"].where(np.arange(60)[None, :, None, None] % 2 == 0)
    with pytest.raises(DataError, match="observed in full"):
        guide_quality(tiny_run, data.assign(position=holes), progress=False)


# The section.


def measured(width=1.0, shift=0.0, carries=1.0, simulated=2000, posterior_scale="prior"):
    """What `guide_quality` would return of a guide N(shift, width^2) of N(0, 1), evidence 1."""
    rng = np.random.default_rng(0)
    x = shift + width * rng.normal(size=(256, 20, 10))
    log_w = stats.norm.logpdf(x) - stats.norm.logpdf(x, shift, width)
    each, joint, (iwae, error) = psis(log_w), psis(log_w.sum(-1)), iwae_curve(log_w, [1, 4, 256])
    p = stats.norm.cdf((rng.normal(size=(simulated, 2)) - shift) / width)
    step, curve = ("trajectory", "time"), ("K", "trajectory", "time")
    return xr.Dataset(
        {
            "k_hat_step": (step, each.k_hat), "elbo": (step, log_w.mean(0)),
            "log_density": (step, each.log_mean),
            "log_density_error": (step, each.standard_error),
            "k_hat": ("trajectory", joint.k_hat), "steps": ("trajectory", [10] * 20),
            "iwae": (curve, iwae), "iwae_error": (curve, error),
            "kl": ("latent_dim", [carries, 0.0]), "vsbc": (("sample", "latent_dim"), p),
        },
        coords={"K": [1, 4, 256]},
        attrs={"draws": 256, "trained": 1, "units": "m", "posterior_scale": posterior_scale},
    )  # fmt: skip


def test_findings_of_known_guides():
    def grades(**options):
        return [finding.grade for finding in findings(measured(**options))]

    assert grades() == ["right"] * 5
    assert grades(width=0.3) == ["wrong", "wrong", "undefined", "right", "wrong"]
    assert grades(shift=1.0)[3] == "wrong"
    assert grades(width=0.85)[4] == "right"
    assert grades(width=0.75)[4] == "near"
    assert grades(width=1.6)[4] == "wrong"
    assert grades(carries=0.001)[3:] == ["undefined"] * 2
    assert grades(simulated=50)[3:] == ["undefined"] * 2


def test_findings_say_which_way_the_guide_is_off():
    narrow = findings(measured(width=0.4))[4].sentence
    assert "too narrow" in narrow
    assert "too wide" in findings(measured(width=1.6))[4].sentence
    assert "too high" in findings(measured(shift=1.0))[3].sentence
    assert "too low" in findings(measured(shift=-1.0))[3].sentence


def test_weights_that_are_wrong_are_said_to_be_and_one_limit_of_k_hat_is_named():
    data = measured(width=0.3)
    said = findings(data)[0].sentence
    share = (data["k_hat_step"].to_numpy() >= k_hat_threshold(256)).mean()
    assert f"weights of {100 * share:.0f}\u00a0% of 200 steps cannot" in said
    assert f"k-hat is at or above {k_hat_threshold(256):.2f}, the most" in said
    assert "weights of all 200 steps can be" in findings(measured())[0].sentence
    for text in (section(data).intro, said, findings(data)[2].sentence):
        assert "0.5 " not in text
        assert "0.7" not in text


def test_the_bound_is_said_to_be_of_other_steps_and_draws_than_the_score():
    data = measured()
    data["iwae"][:, 0, 0] = np.nan  # a step that was not observed
    found = findings(data)[1]
    assert found.sentence.startswith("Of 199 steps the training bound (ELBO) is 0.00 nats per step")
    assert found.more.endswith("they are of all steps, with its own number of draws.")


def test_the_bound_is_the_one_that_was_trained_on():
    """Of a run trained on several draws, theirs: what it loses is less than the ELBO does."""
    data = measured(width=2.0)
    elbo = findings(data)[1]
    data.attrs["trained"] = 4
    found = findings(data)[1]
    single, bound, best = (float(data["iwae"].sel(K=K).mean()) for K in (1, 4, 256))
    assert f"it is {nats(single)}) is {nats(bound)} nats per step" in found.sentence
    assert f"the guide costs it is about {nats(best - bound)} nats" in found.sentence
    assert (elbo.grade, found.grade) == ("wrong", "right")


def test_a_learned_posterior_scale_is_not_proposed_to_a_run_that_has_one():
    tied, learned = (
        findings(measured(width=0.3, posterior_scale=scale))[0].attempt
        for scale in ("prior", "learned")
    )
    assert "--model.posterior_scale learned" in tied
    assert "posterior_scale" not in learned
    assert "--model.posterior.hidden" in learned


def test_section_of_a_run(quality):
    made = section(quality)
    assert (made.key, made.title) == ("guide", "Is the guide good?")
    assert len(made.panels) == 3
    assert all(len(finding.sentence) > 30 for finding in made.findings)


def test_figures_show_the_numbers():
    data = measured(width=0.5)
    steps = plot_k_hat(data).axes[0]
    assert sum(bar.get_height() for bar in steps.patches) == 200
    curve, *_, smoothed = plot_iwae(data).axes[0].lines
    np.testing.assert_allclose(curve.get_ydata(), data["iwae"].mean(("trajectory", "time")))
    np.testing.assert_allclose(smoothed.get_ydata(), data["log_density"].mean())
    panel = plot_vsbc(data).axes[0]
    assert panel.get_title("left") == "z 0: KL 1"
    assert sum(bar.get_height() for bar in panel.patches[:20]) == 2000


def test_a_perfectly_symmetric_sample_is_not_called_asymmetric():
    assert vsbc(np.full((200, 1), 0.5)).asymmetry_p == pytest.approx(1)
