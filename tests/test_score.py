"""The held-out score: independent of units, fair to the baselines, honest in its error."""

import math

import numpy as np
import pytest
import torch
from pyro import poutine
from scipy import stats

from pyro_animacy import (
    Batch,
    ControlVAE,
    ControlVAEConfig,
    ControlVAEGuide,
    Scale,
    make_trajectories,
)
from pyro_animacy.infer.schedules import KLWeightConfig, learning_rate
from pyro_animacy.infer.score import (
    bounds,
    fit_baselines,
    independent_groups,
    log_density,
    mean_and_error,
    score,
    scoring_windows,
)
from pyro_animacy.infer.steps import window_steps
from pyro_animacy.models.program import declare_parameters
from pyro_animacy.nets import StackConfig


def chase(frames=300, trajectories=6, seed=0):
    """A leader on a noisy path and a follower that closes in on it."""
    rng = np.random.default_rng(seed)
    x = np.zeros((trajectories, frames, 2, 2))
    v = rng.normal(size=(trajectories, 2))
    for t in range(1, frames):
        v = 0.9 * v + 0.4 * rng.normal(size=v.shape)
        x[:, t, 0] = x[:, t - 1, 0] + v
        x[:, t, 1] = x[:, t - 1, 1] + 0.2 * (x[:, t - 1, 0] - x[:, t - 1, 1])
        x[:, t, 1] += 0.1 * rng.normal(size=v.shape)
    return make_trajectories(x, fps=10, resolution=0)


def untrained(scale, seed=0, **options):
    net = StackConfig(hidden=8, layers=1)
    config = ControlVAEConfig(latent_size=3, prior=net, posterior=net, policy=net, **options)
    torch.manual_seed(seed)
    return ControlVAEGuide(ControlVAE(config, scale=scale, bodies=2))


def scores(dataset, factor=1.0):
    dataset = dataset.assign(position=dataset["position"] * factor)
    train, heldout = dataset.isel(trajectory=slice(0, 4)), dataset.isel(trajectory=slice(4, 6))
    scale = Scale.of(train)
    guide = untrained(scale)
    baselines = fit_baselines(train, scale, 2)
    return score(guide, heldout, scale=scale, history=2, baselines=baselines, draws=16), guide


def test_a_change_of_units_shifts_every_score_by_the_jacobian():
    """x -> 100 x: each log density falls by D log 100, D = 4, the model's and the baselines'."""
    one, _ = scores(chase())
    hundred, _ = scores(chase(), 100.0)
    shift = -4 * math.log(100)
    assert hundred.model - one.model == pytest.approx(shift, abs=0.02)
    assert hundred.elbo - one.elbo == pytest.approx(shift, abs=0.02)
    for name, value in one.baselines.items():
        assert hundred.baselines[name] - value == pytest.approx(shift, abs=1e-3), name


def test_baselines_are_those_of_numpy():
    """Held-out mean log density of AR(k) recomputed with numpy alone."""
    dataset = chase()
    result, _ = scores(dataset)
    moves = np.diff(dataset["position"].to_numpy().reshape(6, 300, 4), axis=1)

    def design(part, k):
        X = [[np.r_[1.0, a[t - k : t][::-1].ravel()] for t in range(5, 299)] for a in part]
        return np.concatenate(X), part[:, 5:].reshape(-1, 4)

    for k in range(1, 6):
        X, Y = design(moves[:4], k)
        B = np.linalg.lstsq(X, Y, rcond=None)[0]
        S = np.cov((Y - X @ B).T, bias=True)
        S += np.outer((Y - X @ B).mean(0), (Y - X @ B).mean(0))
        X, Y = design(moves[4:], k)
        e = Y - X @ B
        density = -0.5 * (
            np.einsum("ni,ij,nj->n", e, np.linalg.inv(S), e) + np.linalg.slogdet(2 * np.pi * S)[1]
        )
        assert result.baselines[f"ar{k}"] == pytest.approx(density.mean(), abs=1e-3)
    assert result.best_baseline == max(result.baselines, key=result.baselines.get)
    assert result.steps == 2 * 294


def test_the_score_is_of_one_step_whatever_the_training_objective():
    """Squared error in closed loop changes training; the score stays the policy's density."""
    dataset = chase()
    scale = Scale.of(dataset)
    both = []
    for options in (
        {
            "roll_out": "closed_loop",
            "likelihood": "squared_error",
            "discount": 0.5,
            "action_cost": 1.0,
        },
        {},
    ):
        guide = untrained(scale, policy_scale=0.4, **options)
        torch.manual_seed(1)
        batch = torch.randn(4, 5, 4).cumsum(0)
        both.append(log_density(guide, Batch(batch, torch.ones_like(batch) > 0), 8))
    for first, second in zip(*both, strict=True):
        torch.testing.assert_close(first, second)


@pytest.mark.parametrize(("steps", "known"), [(0, False), (1, False), (4, False), (5, True)])
def test_of_a_handful_of_steps_no_error_is_known(steps, known):
    """Which a verdict would be given on: the mean is, and nothing says whether it is chance."""
    dataset = make_trajectories(np.arange(18.0).reshape(1, 9, 1, 2), fps=1, resolution=0)
    index = np.array([(0, t) for t in range(steps)], dtype=int).reshape(-1, 2)
    mean, error = mean_and_error(np.arange(steps, dtype=float), dataset, index)
    assert math.isnan(mean) == (steps == 0)
    assert math.isnan(error) == (not known)


def test_standard_error_counts_groups_not_steps():
    """Values that repeat within a recording carry one observation each."""
    rng = np.random.default_rng(0)
    R, n = 400, 30
    dataset = make_trajectories(rng.normal(size=(R, n, 1, 2)).cumsum(1), fps=1, resolution=0)
    index = np.array([(i, t) for i in range(R) for t in range(n)])
    level = rng.normal(size=R)
    values = np.repeat(level, n)
    expected = level.mean(), level.std(ddof=1) / math.sqrt(R)
    assert mean_and_error(values, dataset, index) == pytest.approx(expected, rel=1e-6)


def test_errors_are_of_sums_over_stretches_of_time():
    """Of the score, and of its gain step by step over the best baseline: by loops.

    Two recordings of 294 steps each make twenty stretches of time, ten of each.
    """
    dataset = chase()
    result, guide = scores(dataset)
    scale, train = Scale.of(dataset.isel(trajectory=slice(0, 4))), dataset.isel(trajectory=slice(4))
    windows = scoring_windows(dataset.isel(trajectory=slice(4, 6)), scale, 2)
    which = torch.arange(len(windows))
    torch.manual_seed(2)
    ours = torch.cat([bounds(s)[0][-1] for _, s in window_steps(guide, windows, which, 16)])
    baseline = fit_baselines(train, scale, 2)[result.best_baseline]
    gain = ours - baseline(windows.batch(which))
    n = len(which) // 2
    for values, found in (
        (ours, result.standard_error), (gain, result.gain_standard_error),
    ):  # fmt: skip
        x = values.double().numpy() - values.double().numpy().mean()
        sums = np.zeros((2, 10))
        for i in range(2):
            for t in range(n):
                sums[i, t * 10 // n] += x[i * n + t]
        expected = math.sqrt((sums**2).sum() * 20 / 19) / (2 * n)
        assert found == pytest.approx(expected, rel=1e-5)


def test_a_recording_cut_in_two_is_in_the_same_stretches():
    """Trajectories are placed by their first frame on the recording's own axis."""
    rng = np.random.default_rng(1)
    n, cut = 400, 150
    x, values = rng.normal(size=(n, 1, 2)).cumsum(0), rng.normal(size=n).cumsum()
    whole = make_trajectories(x, fps=1, resolution=0)
    parts = np.full((2, n - cut, 1, 2), np.nan)
    parts[0, :cut], parts[1] = x[:cut], x[cut:]
    pieces = make_trajectories(
        parts, fps=1, recording=["match"] * 2, start=[0, cut], length=[cut, n - cut], resolution=0
    )
    one = np.array([(0, t) for t in range(n)])
    two = np.array([(0, t) if t < cut else (1, t - cut) for t in range(n)])
    assert mean_and_error(values, pieces, two) == mean_and_error(values, whole, one)


def test_a_long_pause_leaves_as_many_stretches():
    """Of two pieces with a pause between them, whose steps are independent: 20 groups.

    Then the mean of what has none is beyond two standard errors in 2 P(t_19 > 2) = 6 % of repeats;
    with the 2 groups that stretches of the pause leave, in 30 %.
    """
    rng, n = np.random.default_rng(2), 750
    x = rng.normal(size=(2, n, 1, 2)).cumsum(1)
    dataset = make_trajectories(
        x, fps=25, recording=["match"] * 2, start=[0, n + 45_000], resolution=0
    )
    index = np.array([(i, t) for i in range(2) for t in range(n)])
    group = independent_groups(dataset, index)
    assert np.bincount(group).tolist() == [2 * n // 20] * 20
    found = [mean_and_error(rng.normal(size=2 * n), dataset, index) for _ in range(200)]
    beyond = np.mean([abs(mean) > 2 * error for mean, error in found])
    expected = 2 * stats.t.sf(2, 19)
    assert abs(beyond - expected) < 4 * math.sqrt(expected * (1 - expected) / 200)


@pytest.mark.parametrize(("recordings", "least"), [(4, 0.8), (6, 0.9), (12, 0.95)])
def test_clips_that_differ_are_not_taken_for_more_than_they_are(recordings, least):
    """As found: of four clips of which one is unlike the others, stretches gave half the error.

    Its mean square over many samples of so many clips is the variance of their mean, or more.
    """
    rng, n = np.random.default_rng(4), 60
    x = rng.normal(size=(recordings, n, 1, 2)).cumsum(1)
    dataset = make_trajectories(x, fps=1, resolution=0)
    index = np.array([(i, t) for i in range(recordings) for t in range(n)])
    found = []
    for _ in range(400):
        level = rng.normal(size=(recordings, 1))
        values = (level + rng.normal(size=(recordings, n))).ravel()
        found.append(mean_and_error(values, dataset, index)[1])
    truth = math.sqrt((1 + 1 / n) / recordings)
    assert least < np.sqrt(np.mean(np.square(found))) / truth < 1.3


def test_a_score_leaves_the_stream_of_chance_alone():
    dataset = chase(frames=40)
    scale = Scale.of(dataset)
    guide, baselines = untrained(scale), fit_baselines(dataset, scale, 2)
    before = torch.get_rng_state()
    score(guide, dataset, scale=scale, history=2, baselines=baselines, draws=2)
    assert torch.equal(torch.get_rng_state(), before)


def test_trajectories_of_the_same_frames_are_one_group():
    """A hundred copies of one recording do not shrink the error."""
    rng = np.random.default_rng(0)
    n, copies = 400, 100
    x = np.repeat(rng.normal(size=(1, n, 1, 2)).cumsum(1), copies, 0)
    dataset = make_trajectories(x, fps=1, recording=["match"] * copies, resolution=0)
    values = rng.normal(size=n)
    one = np.array([(0, t) for t in range(n)])
    many = np.array([(i, t) for i in range(copies) for t in range(n)])
    assert mean_and_error(np.tile(values, copies), dataset, many) == pytest.approx(
        mean_and_error(values, dataset, one)
    )


def test_kl_weight_is_the_papers_table():
    levels = [0.009, 0.019125, 0.02925, 0.039375, 0.0495, 0.059625, 0.06975, 0.079875, 0.09]
    beta = KLWeightConfig(start=0.009, end=0.09, levels=9, every=500)
    assert [beta(500 * k) for k in range(9)] == pytest.approx(levels, abs=1e-15)
    assert [beta(500 * k + 499) for k in range(9)] == pytest.approx(levels, abs=1e-15)
    assert beta(10**6) == pytest.approx(0.09)


def test_learning_rate():
    assert learning_rate(7, 10, 0.1, "constant") == 0.1
    assert learning_rate(0, 10, 0.1, "cosine") == pytest.approx(0.1)
    assert learning_rate(5, 10, 0.1, "cosine") == pytest.approx(0.1 * 0.505)
    assert learning_rate(10, 10, 0.1, "cosine") == pytest.approx(0.001)


def test_parameters_are_declared_once_each():
    guide = untrained(Scale.of(chase()))
    with poutine.trace(param_only=True) as captured:
        declare_parameters(guide)
    names = [n for n, _ in guide.named_parameters()]
    assert list(captured.trace.nodes) == names
