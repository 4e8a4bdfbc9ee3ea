"""What the latent carries, against closed forms, quadrature and a roll-out written out."""

import io
import json
import math
from unittest import mock

import numpy as np
import pytest
import torch
import xarray as xr
from helpers import BODIES, chase
from PIL import Image
from variants import build, scale_of

from pyro_animacy import ConfigError, DataError, Run, make_trajectories
from pyro_animacy.criticism import latent, latent_plots
from pyro_animacy.criticism.latent import (
    activity,
    elbo_surgery,
    kl_to_prior,
    latent_use,
    training_path,
)
from pyro_animacy.criticism.latent_plots import section
from pyro_animacy.criticism.section import Image as Embedded
from pyro_animacy.criticism.traversal import (
    Traversal,
    policy_spread,
    traversal_gif,
    traversals,
    traverse,
)
from pyro_animacy.data.windows import Windows, dequantised, whole
from pyro_animacy.infer.checkpoint import ModelCard
from pyro_animacy.infer.score import DEQUANTISE_HELDOUT, log_density
from pyro_animacy.infer.steps import draw_steps
from pyro_animacy.nets import StackConfig

AFFINE = StackConfig(layers=0)


def run_of(name, bodies=3, path=None, **changes):
    """A run, never trained, of a variant."""
    model, guide = build(name, bodies, **changes)
    names = tuple(f"body{i}" for i in range(bodies))
    config = {"history": model.config.history}
    card = ModelCard("control_vae", config, scale_of(bodies), names, ("x", "y"), 10.0, "m")
    return Run(path, model, guide, card, {}, {})


def start_of(run, seed=0):
    """A state and the displacements before it, in data units."""
    rng = np.random.default_rng(seed)
    shape = (len(run.card.bodies), 2)
    return rng.normal(size=shape), rng.normal(size=(run.model.config.history - 1, *shape))


@pytest.fixture(scope="module")
def heldout(tiny_run, tiny_data):
    return tiny_run.heldout(tiny_data)


@pytest.fixture(scope="module")
def use(tiny_run, heldout):
    return latent_use(tiny_run, heldout, progress=False)


# The plain measures


def test_kl_is_that_of_torch():
    rng = np.random.default_rng(0)
    m, s = rng.normal(size=1000), rng.lognormal(size=1000)
    normal = torch.distributions.Normal
    expected = torch.distributions.kl_divergence(
        normal(torch.tensor(m), torch.tensor(s)), normal(0.0, 1.0)
    )
    np.testing.assert_allclose(kl_to_prior(m, s), expected, rtol=1e-12, atol=1e-14)


def test_activity_is_the_variance_of_the_posterior_mean_over_steps():
    n = np.arange(1000)
    mean = np.stack([np.where(n % 2, 0.2, -0.2), np.full(1000, 3.0), 0.05 * np.sin(n)], 1)
    np.testing.assert_allclose(activity(mean), [0.04, 0, 0.00125], atol=1e-5)
    assert list(activity(mean) > latent.ACTIVE) == [True, False, False]


def test_activity_of_one_step_is_not_a_number():
    assert np.isnan(activity(np.ones((1, 3)))).all()


def test_posteriors_that_are_all_the_same_tell_nothing_of_the_step():
    s = elbo_surgery(np.full((500, 3), 0.7), np.full((500, 3), 0.4))
    assert s.information == pytest.approx(0, abs=1e-12)
    assert s.marginal_kl == pytest.approx(3 * kl_to_prior(np.array(0.7), np.array(0.4)))
    assert not s.at_bound


def test_posteriors_far_apart_tell_log_n_and_say_that_this_is_the_bound():
    m = 1000.0 * np.arange(200)[:, None]
    s = elbo_surgery(m, np.ones_like(m))
    assert s.information == pytest.approx(math.log(200), abs=1e-12)
    assert s.at_bound


def test_the_information_never_exceeds_log_n_draw_by_draw():
    rng = np.random.default_rng(0)
    m = 3 * rng.normal(size=(50, 4))
    for seed in range(50):
        assert elbo_surgery(m, np.full_like(m, 0.1), seed=seed).information <= math.log(50) + 1e-12


@pytest.mark.parametrize("snr", [0.1, 1.0, 4.0])
def test_a_gaussian_channel_carries_half_log_one_plus_snr(snr):
    """m ~ N(0, snr), r = m + N(0, 1), twice: and r ~ N(0, 1 + snr) is so far from N(0, 1)."""
    m = np.sqrt(snr) * np.random.default_rng(1).normal(size=(2000, 2))
    s = elbo_surgery(m, np.ones_like(m))
    assert s.information == pytest.approx(math.log(1 + snr), abs=4 * s.standard_error)
    assert s.marginal_kl == pytest.approx(snr - math.log(1 + snr), abs=0.1 * snr + 0.05)
    assert s.rate == pytest.approx(s.information + s.marginal_kl)
    assert not s.at_bound


def test_an_aggregate_posterior_that_is_the_prior_loses_nothing():
    """m ~ N(0, 0.75), s^2 = 0.25: q(r) = N(0, 1), and all of the rate is information."""
    m = math.sqrt(0.75) * np.random.default_rng(2).normal(size=(2000, 2))
    s = elbo_surgery(m, np.full_like(m, 0.5))
    assert abs(s.marginal_kl) < 4 * s.standard_error
    assert s.information == pytest.approx(2 * math.log(2), rel=0.05)


def test_the_information_is_that_of_quadrature_over_many_draws():
    rng = np.random.default_rng(3)
    m, s = rng.normal(size=(12, 1)), rng.uniform(0.3, 1.0, size=(12, 1))
    r = np.linspace(-8, 8, 20_001)
    q = np.exp(-0.5 * ((r - m) / s) ** 2) / (s * math.sqrt(2 * math.pi))
    terms = np.where(q > 0, q * np.log(np.where(q > 0, q, 1) / np.maximum(q.mean(0), 1e-300)), 0)
    exact = np.trapezoid(terms, r, axis=1).mean()
    found = [elbo_surgery(m, s, seed=seed) for seed in range(1000)]
    values = np.array([one.information for one in found])
    assert values.mean() == pytest.approx(exact, abs=4 * values.std() / math.sqrt(1000))
    # steps differ as well as draws, so the error given is no smaller than the spread seen
    assert values.std() < 1.1 * np.mean([one.standard_error for one in found])


def test_chunks_do_not_change_the_information(monkeypatch):
    rng = np.random.default_rng(4)
    m, s = rng.normal(size=(300, 3)), rng.uniform(0.3, 1.0, size=(300, 3))
    at_once = elbo_surgery(m, s)
    monkeypatch.setattr(latent, "CHUNK", 7 * m.size)
    assert elbo_surgery(m, s).information == pytest.approx(at_once.information, abs=1e-12)


def test_of_more_steps_some_are_drawn_at_random():
    rng = np.random.default_rng(4)
    m, s = rng.normal(size=(300, 3)), rng.uniform(0.3, 1.0, size=(300, 3))
    part = [elbo_surgery(m, s, steps=100, seed=seed) for seed in range(100)]
    assert {one.steps for one in part} == {100}
    rates = np.array([one.rate for one in part])
    assert rates.std() > 0
    assert rates.mean() == pytest.approx(elbo_surgery(m, s).rate, abs=0.4 * rates.std())


# Every recorded step


def test_rate_and_distortion_sum_to_minus_the_elbo_of_the_score(tiny_run, heldout):
    """The rate is analytic here and sampled there: they agree within Monte Carlo error."""
    use = latent_use(tiny_run, heldout, draws=512, progress=False)
    noisy = dequantised(heldout, DEQUANTISE_HELDOUT)
    windows = Windows(noisy, frames=3, context=2, scale=tiny_run.card.scale)
    batch = windows.batch(torch.arange(len(windows)))
    torch.manual_seed(1)
    elbo = log_density(tiny_run.guide, batch, 512)[1].double()
    weights = draw_steps(tiny_run.guide, batch, 512).log_weight.double()
    error = (2 * weights.var(0).sum() / 512).sqrt().item() / len(windows)
    minus = (use["kl"].sum("latent_dim") + use["distortion"]).mean().item()
    assert use["distortion"].notnull().sum() == len(windows)
    to_data = -4 * math.log(tiny_run.card.scale.unit)
    assert -minus == pytest.approx(elbo.mean().item() + to_data, abs=4 * error + 1e-5)


def test_kl_and_residual_are_those_of_the_trajectories_run_whole(tiny_run, heldout, use):
    batch = whole(dequantised(heldout, DEQUANTISE_HELDOUT), tiny_run.card.scale)
    steps = draw_steps(tiny_run.guide, batch, 1)
    shift = (steps.posterior.loc - steps.prior.loc) / steps.prior.scale
    for name, expected in (("kl", steps.kl), ("residual_mean", shift)):
        found = use[name].to_numpy()
        assert np.isnan(found[:, 0]).all()  # no history yet
        assert np.isnan(found[:, -1]).all()  # and nothing after
        np.testing.assert_allclose(found[:, 1:-1].swapaxes(0, 1), expected, rtol=1e-3, atol=1e-5)
    assert use["kl"].dims == ("trajectory", "time", "latent_dim")


def test_steps_are_scored_where_their_context_and_some_of_their_next_frame_were_seen(tiny_run):
    x = chase(frames=40, seed=3)
    rng = np.random.default_rng(0)
    x[0, rng.random(40) < 0.15, 0] = np.nan
    x[0, rng.random(40) < 0.1] = np.nan
    data = make_trajectories(x, fps=10, body=BODIES, units="m")
    use = latent_use(tiny_run, data, progress=False)
    seen = np.isfinite(data["position"].to_numpy()[0])
    expected = [
        1 <= t < 39 and seen[t - 1 : t + 1].all() and seen[t + 1].any()
        for t in range(data.sizes["time"])
    ]
    assert 0 < sum(expected) < 38
    np.testing.assert_array_equal(use["distortion"].notnull().to_numpy()[0], expected)
    np.testing.assert_array_equal(use["kl"].notnull().all("latent_dim").to_numpy()[0], expected)
    assert section(use, [], {}).findings


def test_the_same_seed_gives_the_same_and_torch_is_left_as_it_was(tiny_run, heldout, use):
    state = torch.random.get_rng_state()
    xr.testing.assert_identical(latent_use(tiny_run, heldout, progress=False), use)
    assert torch.equal(state, torch.random.get_rng_state())


def test_of_many_frames_some_trajectories_are_looked_at(tiny_run):
    data = make_trajectories(chase(frames=20, recordings=9), fps=10, body=BODIES, units="m")
    assert latent_use(tiny_run, data, most=60, progress=False).sizes["trajectory"] == 3
    short = latent_use(tiny_run, data, most=12, progress=False)
    assert dict(short.sizes) | {"training_step": 0} == {
        "trajectory": 1, "time": 12, "latent_dim": 4, "training_step": 0
    }  # fmt: skip


def test_training_is_converted_to_data_units_and_by_medians(tmp_path):
    rows = [{"step": i, "kl": 2.0, "reconstruction": 5.0, "kl_weight": 1.0} for i in range(1, 100)]
    rows[-1] = {"step": 100, "kl": 0.0, "reconstruction": 5.0, "kl_weight": 0.0}  # not logged there
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    run = run_of("small", path=tmp_path)
    object.__setattr__(run.card.scale, "unit", 3.0)
    step, rate, distortion = training_path(run, 10)
    assert len(step) <= 10
    assert (np.diff(step) > 0).all()
    np.testing.assert_allclose(rate, 2.0)
    np.testing.assert_allclose(distortion, 5 + 6 * math.log(3))
    for other in ("squared_error", "closed_loop"):
        assert len(training_path(run_of(other, path=tmp_path))[0]) == 0


# Traversals


@pytest.mark.parametrize("name", ["small", "history_1", "history_4", "blended_weights"])
def test_held_at_zero_the_path_is_the_roll_out_of_means_written_out(name):
    run = run_of(name, arena="open")
    model = run.model
    start, past = start_of(run)
    found = traverse(run, start, past, 2, np.array([0.0, 1.5]), 6)
    for value, path in zip((0.0, 1.5), found, strict=True):
        s = torch.tensor(start.reshape(1, -1))
        actions = [torch.tensor(a.reshape(1, -1)) for a in past]
        expected = [start]
        with torch.no_grad():
            for _ in range(6):
                c = model.context(s, actions)
                z = model.step.prior(c).mean.clone()
                z[:, 2] += value * model.config.latent_scale
                a = model.step.policy(c, z).mean
                s, actions = s + a, [a, *actions][: len(past)]
                expected.append(s.numpy().reshape(3, 2))
        np.testing.assert_allclose(path, expected, rtol=1e-12, atol=1e-12)


def test_in_an_affine_model_the_displacement_is_affine_in_the_value():
    run = run_of("small", prior=AFFINE, policy=AFFINE, arena="open")
    start, past = start_of(run)
    values = np.linspace(-2.5, 2.5, 11)
    paths = traverse(run, start, past, 1, values, 8)
    assert np.abs(np.diff(paths[:, 1:], axis=0)).min() > 1e-6
    np.testing.assert_allclose(np.diff(paths, n=2, axis=0), 0, atol=1e-11)
    weight = run.model.step.policy.network.layers[0].weight[:6, 1].detach().numpy()  # of z_1
    slope = np.diff(paths[:, 1], axis=0)[0].reshape(-1) / 0.5
    np.testing.assert_allclose(slope, 0.3 * weight, atol=1e-12)
    bent = traverse(run_of("small", arena="open"), start, past, 1, values, 8)
    assert np.abs(np.diff(bent, n=2, axis=0)).max() > 1e-6


def test_a_path_ends_at_the_walls_of_the_arena():
    start, past = np.full((3, 2), 39.9), np.full((1, 3, 2), 5.0)
    free = traverse(run_of("small", arena="open"), start, past, 0, np.zeros(1), 5)
    held = traverse(run_of("small"), start, past, 0, np.zeros(1), 5)
    assert free.max() > 45
    assert held.max() == pytest.approx(40, abs=1e-12)


def test_a_path_does_not_depend_on_the_units():
    run = run_of("small", arena="open")
    start, past = start_of(run)
    one = traverse(run, start, past, 0, np.array([-1.0, 1.0]), 4)
    object.__setattr__(run.card.scale, "unit", 7.0)
    object.__setattr__(run.card.scale, "center", (3.0, -2.0))
    moved = traverse(run, start * 7 + [3, -2], past * 7, 0, np.array([-1.0, 1.0]), 4)
    np.testing.assert_allclose(moved, one * 7 + [3, -2], rtol=1e-11)


def test_the_spread_is_the_standard_deviation_of_the_policy():
    run = run_of("small")
    start, past = start_of(run)
    found = policy_spread(run, start, past, 3, np.array([2.0]))
    c = run.model.context(torch.tensor(start.reshape(-1)), [torch.tensor(past.reshape(-1))])
    z = run.model.step.prior(c).mean.clone()
    z[3] += 2 * 0.3
    variance = run.model.step.policy(c, z).variance.reshape(3, 2).mean(-1)
    np.testing.assert_allclose(found[0], variance.sqrt().detach(), rtol=1e-12)


def test_what_cannot_be_traversed_is_said():
    run = run_of("small")
    start, past = start_of(run)
    one = np.zeros(1)
    with pytest.raises(ConfigError, match="dimensions 0 to 4"):
        traverse(run, start, past, 5, one, 3)
    with pytest.raises(ConfigError, match="at least 1"):
        traverse(run, start, past, 0, one, 0)
    with pytest.raises(DataError, match="past_actions has shape"):
        traverse(run, start, past[:0], 0, one, 3)
    with pytest.raises(DataError, match="must be observed"):
        traverse(run, start * np.nan, past, 0, one, 3)
    with pytest.raises(ConfigError, match="draws is 0"):
        latent_use(run, xr.Dataset(), draws=0)


def test_a_traversal_begins_at_a_recorded_state_and_takes_the_active_dimensions_with_most_kl(
    tiny_run, heldout, use
):
    kl = np.nanmean(use["kl"].to_numpy(), axis=(0, 1))
    order = [int(dim) for dim in np.argsort(-kl)]
    use = use.assign(activity=("latent_dim", [1.0] * 4))
    found = traversals(tiny_run, heldout, use, dims=3)
    assert [t.dim for t in found] == order[:3]
    use["activity"][order[0]] = 0.005  # not active, whatever its KL
    use["activity"][order[2:]] = np.nan
    assert [t.dim for t in traversals(tiny_run, heldout, use)] == order[1:2]
    recorded = heldout["position"].to_numpy().reshape(-1, 4)
    for t in found:
        assert t.paths.shape[1:] == (11, 2, 2)  # one second at 10 frames, and the start
        np.testing.assert_allclose(t.past[-1], t.paths[0, 0], atol=1e-5)
        assert (np.abs(recorded - t.past[-1].reshape(-1)).max(1) == 0).any()
        assert (t.reach >= 0).all()
        assert (t.widening >= 1).all()


def spun(bodies=6, reach=1.0, widening=1.0):
    """Paths whose ends lie `reach` apart, of length 10."""
    rng = np.random.default_rng(0)
    values = np.linspace(-2.5, 2.5, 17)
    way = np.linspace(0, 1, 26)
    paths = np.zeros((17, 26, bodies, 2)) + 20 * rng.normal(size=(bodies, 2))
    paths[..., 0] += 10 * way[:, None]
    paths[..., 1] += (values / 5)[:, None, None] * reach * way[:, None] ** 2
    past = paths[0, :1] - np.stack([np.linspace(9, 0, 26), np.zeros(26)], -1)[:, None]
    spread = np.repeat(np.geomspace(1, widening, 17)[:, None], bodies, 1)
    names = tuple(f"player {i}" for i in range(bodies))
    return Traversal(4, values, past, paths, spread, names, 25.0, "m")


def test_the_gif_sweeps_there_and_back_and_is_small():
    data = traversal_gif(spun(bodies=9, reach=6.0, widening=2.0))
    pixels = np.asarray(Image.open(io.BytesIO(data)).convert("L"))
    assert (pixels[:, : pixels.shape[1] // 20] < 250).any()  # no empty margin beside the panels
    assert len(data) < 400_000
    with Image.open(io.BytesIO(data)) as image:
        assert image.n_frames == 32
        assert image.info["loop"] == 0
        frames = []
        for index in range(32):
            image.seek(index)
            frames.append(np.asarray(image.convert("RGB")).astype(int))
    assert np.array_equal(frames[3], frames[29])
    assert not np.array_equal(frames[0], frames[16])


def test_a_traversal_of_one_body_that_stands_still_is_drawn():
    still = spun(bodies=1, reach=0.0)
    still.paths[:] = still.paths[0, 0]
    still.past[:] = np.nan
    assert traversal_gif(still)


# Words


def use_of(kl, activity, information=1.0, marginal=0.0, steps=2000, training=0):
    """A `latent_use` of given figures, of one trajectory."""
    kl = np.broadcast_to(np.asarray(kl, float), (1, 50, len(kl)))
    return xr.Dataset(
        {
            "kl": (("trajectory", "time", "latent_dim"), kl),
            "distortion": (("trajectory", "time"), np.full((1, 50), 3.0)),
            "activity": ("latent_dim", np.asarray(activity, float)),
            "information": information, "marginal_kl": marginal,
            "surgery_rate": information + marginal, "surgery_error": 0.01, "surgery_steps": steps,
            "training_rate": ("training_step", np.linspace(0, 2, training)),
            "training_distortion": ("training_step", np.linspace(9, 3, training)),
        },
        attrs={"units": "m", "fps": 10.0},
    )  # fmt: skip


def words(use, *traversals):
    nothing = Embedded("data:", "")
    with mock.patch.multiple(latent_plots, picture=lambda *_: nothing, traversal_gif=lambda _: b""):
        return [(found.grade, found.sentence) for found in section(use, traversals, {}).findings]


def test_active_dimensions_are_counted_with_what_they_carry():
    found = section(use_of([2.0, 1.0, 0.001], [1, 1, 0.001], training=12), [spun(2)], {})
    assert found.key == "latent"
    assert found.findings[0].grade == "right"
    assert found.findings[0].sentence.startswith(
        "2 of 3 dimensions are active; they carry 3.00 of the 3.00 nats per step"
    )
    assert "ELBO of −6.00" in found.panels[1].caption
    assert [panel.image.source[:14] for panel in found.panels] == [
        "data:image/png", "data:image/png", "data:image/gif"
    ]  # fmt: skip
    assert "Traversals are shown of 1 of 2 active dimensions" in found.panels[0].caption
    none = section(use_of([2.0], [0.001]), [], {})
    assert "No dimension is known to be active, so no traversal" in none.panels[0].caption


def test_idle_dimensions_are_counted_among_those_that_are_not_active():
    found = section(use_of([2.0, 0.001, 0.001, 0.5], [1, 1, 0.001, 0.001]), [], {}).findings[0]
    assert found.sentence.startswith("2 of 4 dimensions are active")
    assert "at under 0.01 nats each: 1 of the others" in found.more


def test_a_latent_without_an_active_dimension_is_not_praised():
    """As found: 16 dimensions of 0.03 nats together, whose decoder would turn the path."""
    use = use_of([0.002] * 16, [0.005] * 16, information=0.032)
    found = words(use, spun(2))
    assert [grade for grade, _ in found] == ["wrong", "undefined", "undefined"]
    assert found[0][1].startswith(
        "None of the 16 dimensions is active: the latent carries 0.03 nats"
    )
    assert "latent_size" not in found[0][1]
    assert section(use, [], {}).findings[0].attempt
    assert found[2][1].startswith("No dimension is active, so this does not show it at work: ")
    assert "dimension 4 says where" in found[2][1]
    one = use_of([0.002] * 16, [0.005] * 15 + [0.02], information=0.032)
    assert [grade for grade, _ in words(one, spun(2))] == ["near", "undefined", "right"]
    collapsed = words(use_of([0.001], [0.0]), spun(2))
    assert [grade for grade, _ in collapsed] == ["wrong", "undefined"]
    assert words(use_of([0.002] * 16, [0.0] * 16), spun(2, 0.1))[2][0] == "wrong"


@pytest.mark.parametrize(("kl", "grade"), [(0.09, "near"), (0.11, "right")])
def test_a_latent_that_carries_little_is_close_only(kl, grade):
    found = section(use_of([kl], [1]), [], {}).findings[0]
    assert found.grade == grade
    assert bool(found.attempt) == ("does little" in found.sentence) == (grade == "near")


def test_posterior_collapse_is_named():
    grade, sentence = words(use_of([0.001, 0.002], [0, 0]))[0]
    assert grade == "wrong"
    assert sentence.startswith("Posterior collapse")
    assert section(use_of([0.001, 0.002], [0, 0]), [], {}).findings[0].attempt


def test_a_latent_that_is_not_needed_is_not_called_wrong():
    """As found: of linear-Gaussian motion, foreseen as well as it can be."""
    ahead = {"heldout_nats_per_step": 3.0, "baselines": {"ar2": 1.0}, "gain_standard_error": 0.1}
    found = section(use_of([0.001, 0.002], [0, 0]), [], ahead).findings[0]
    assert found.grade == "near"
    assert "enough where one step ahead it is calibrated" in found.sentence


@pytest.mark.parametrize(("lost", "grade"), [(0.05, "right"), (0.3, "near"), (2.0, "wrong")])
def test_the_loss_to_the_aggregate_posterior_is_graded_by_its_share(lost, grade):
    assert words(use_of([1.0 + lost], [1], marginal=lost))[1][0] == grade


def test_a_loss_that_its_error_hides_is_not_called_right():
    """As found: 0.01 of 0.03 nats, which should be under 10 %, were right by the error alone."""
    grade, sentence = words(use_of([0.03], [1], information=0.02, marginal=0.01))[1]
    assert grade == "undefined"
    assert "; 0.01 are the divergence of the posterior over all steps together" in sentence
    assert sentence.endswith("from the prior: of under 0.1 nats, neither says much.")
    noisy = use_of([0.2], [1], information=0.12, marginal=0.08).assign(surgery_error=0.05)
    grade, sentence = words(noisy)[1]
    assert grade == "near"
    assert "from the prior, which may be chance and should be under 10" in sentence
    assert words(noisy.assign(surgery_error=0.03))[1][0] == "wrong"


def test_information_at_its_bound_is_not_graded():
    grade, sentence = words(use_of([9.0], [1], information=7.0, marginal=2.0))[1]
    assert grade == "undefined"
    assert "at least 7.00" in sentence
    assert "log 2,000 = 7.60" in sentence


@pytest.mark.parametrize(
    ("reach", "widening", "grade", "said"),
    [
        (1.0, 1.0, "right", "dimension 4 says where to go"),
        (0.1, 1.0, "wrong", "No dimension with a traversal"),
        (0.1, 5.0, "right", "dimension 4 says how sure"),
    ],
)
def test_what_a_traversal_turns_is_said(reach, widening, grade, said):
    found = words(use_of([1.0], [1]), spun(2, reach, widening))[2]
    assert found[0] == grade
    assert said in found[1]


def test_one_recorded_step_is_said_to_be_too_few(tiny_run):
    data = make_trajectories(chase(frames=3), fps=10, body=BODIES, units="m")
    use = latent_use(tiny_run, data, progress=False)
    assert [grade for grade, _ in words(use)] == ["undefined", "undefined"]
    assert traversals(tiny_run, data, use) == []  # whether one is active is not known


def test_the_section_of_a_run_is_whole(tiny_run, heldout, use):
    drawn = traversals(tiny_run, heldout, use)
    found = section(use, drawn, {})
    assert len(found.panels) == 2 + len(drawn) == 2 + min(3, (use["activity"] > 0.01).sum())
    assert all(finding.sentence.endswith(".") for finding in found.findings)
    assert use["training_rate"].size > 0
