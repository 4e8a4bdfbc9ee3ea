"""The toy scenes against brute force over whole scenes, and three models against the scenes."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats

from pyro_animacy.data import tasks
from pyro_animacy.data.tasks import DELAY, LENGTH, NOISE, branching, decisive_frame, recall
from pyro_animacy.data.windows import Scale, whole
from pyro_animacy.errors import ConfigError
from pyro_animacy.models.state_space import StateSpaceGuide, StateSpaceModel

sys.path.insert(0, str(Path(__file__).parents[1] / "scripts"))
import memory_tasks

KNOWS = ("side", "branches", "gaussian")
SIDES = (-1, 1)


def sides(scenes):
    return np.where(scenes["label"].values == "right", 1, -1)


def displacements(scenes):
    return np.diff(scenes["position"].values[:, :, 0], axis=1)


def law(frames, side, cued, delay=DELAY):
    """The mean of every displacement, written out anew."""
    mean = np.zeros((frames, 2))
    if cued:
        mean[0], mean[1] = (side * LENGTH, 0), (-side * LENGTH, 0)
    mean[delay + 2], mean[delay + 3] = (0, LENGTH), (side * LENGTH, 0)
    return mean


# --------------------------------------------------------------------------------- the scenes


@pytest.mark.parametrize("delay", [1, 7, 40])
def test_a_scene_is_its_law_plus_noise(delay):
    scenes = recall(400, seed=3, delay=delay)
    a = displacements(scenes)
    assert a.shape == (400, delay + 9, 2)
    means = np.stack([law(delay + 9, b, True, delay) for b in sides(scenes)])
    start = scenes["position"].values[:, 0, 0]
    for noise in (a - means, start):
        assert stats.kstest((noise / NOISE).ravel(), "norm").pvalue > 0.01
    assert stats.binomtest(int((sides(scenes) > 0).sum()), 400).pvalue > 0.01


def test_nothing_seen_after_the_cue_tells_the_side():
    """Neither where the body is at any later frame, nor how it moves."""
    scenes = recall(4000, seed=4)
    side, position = sides(scenes), scenes["position"].values[:, 2 : decisive_frame() + 1, 0]
    for shown in (position, np.diff(position, axis=1)):
        shown = shown.reshape(len(side), -1)
        by_side = stats.ttest_ind(shown[side > 0], shown[side < 0])
        assert by_side.pvalue.min() > 0.01 / shown.shape[1]


def test_branching_is_recall_without_its_cue():
    one, other = recall(50, seed=5), branching(50, seed=5)
    gap = displacements(one) - displacements(other)
    assert np.abs(gap[:, 2:]).max() < 1e-12
    np.testing.assert_allclose(gap[:, 0, 0], sides(one) * LENGTH, rtol=1e-12)
    np.testing.assert_array_equal(one["label"].values, other["label"].values)


def test_delays_are_drawn_scene_by_scene():
    """Each scene is one of its own delay, padded to the longest; each delay as often as others."""
    delays = (2, 5, 11)
    scenes = recall(900, seed=3, delay=delays)
    frames = scenes["length"].values
    found, counts = np.unique(frames - 10, return_counts=True)
    np.testing.assert_array_equal(found, delays)
    assert stats.chisquare(counts).pvalue > 0.01
    for i, side in enumerate(sides(scenes)):
        a = displacements(scenes)[i, : frames[i] - 1]
        assert np.isnan(scenes["position"].values[i, frames[i] :]).all()
        assert np.abs(a - law(len(a), side, True, frames[i] - 10)).max() < 6 * NOISE


@pytest.mark.parametrize(
    "options", [dict(trajectories=0), dict(seed=-1), dict(delay=0), dict(delay=(3, 0))]
)
def test_what_cannot_be_made_is_named(options):
    with pytest.raises(ConfigError, match=f"recall: {next(iter(options))} is"):
        recall(**({"trajectories": 2, "seed": 0} | options))


# -------------------------------------------------------------------------- the oracle values


@pytest.mark.parametrize(
    ("scene", "forgotten", "knows"),
    [(recall, 0, "side"), (recall, 2, "branches"), (branching, 0, "branches")],
)
def test_the_density_is_that_of_bayes_over_whole_scenes(scene, forgotten, knows):
    """p(a_t | a_{<t}) = sum_b p(b) p(a_{<=t} | b) / sum_b p(b) p(a_{<t} | b)."""
    scenes, t = scene(20, seed=6), decisive_frame()
    a = displacements(scenes)
    each = np.stack([
        stats.norm.logpdf(a, law(a.shape[1], b, scene is recall), NOISE).sum(-1) for b in SIDES
    ])  # fmt: skip
    upto = np.logaddexp.reduce(each[:, :, forgotten : t + 1].sum(-1))
    before = np.logaddexp.reduce(each[:, :, forgotten:t].sum(-1))
    found = tasks.log_density(a[:, t], knows, sides(scenes))
    np.testing.assert_allclose(found, upto - before, rtol=0, atol=1e-9)


@pytest.fixture(scope="module")
def plane():
    """A grid on which sums are integrals, its cell, and the law of the decisive displacement."""
    x, y = np.linspace(-6, 6, 4801), np.linspace(-0.5, 0.5, 201)
    points = np.stack(np.meshgrid(x, y, indexing="ij"), -1)
    p = np.mean([
        stats.multivariate_normal([b * LENGTH, 0], NOISE**2 * np.eye(2)).pdf(points) for b in SIDES
    ], axis=0)  # fmt: skip
    return points, (x[1] - x[0]) * (y[1] - y[0]), p


@pytest.mark.parametrize("knows", KNOWS)
def test_each_is_a_density(plane, knows):
    points, cell, _ = plane
    assert np.exp(tasks.log_density(points, knows)).sum() * cell == pytest.approx(1, abs=1e-7)


def test_expected_log_densities(plane):
    """Their closed forms: minus entropies, log 2 for the side, and the Gaussian of the moments."""
    points, cell, p = plane
    known = -np.log(2 * np.pi * np.e * NOISE**2)
    wide = -np.log(2 * np.pi * np.e * NOISE * np.hypot(LENGTH, NOISE))
    for knows, value in (("branches", known - np.log(2)), ("gaussian", wide)):
        found = (p * tasks.log_density(points, knows)).sum() * cell
        assert found == pytest.approx(value, abs=1e-7)
    right = np.exp(tasks.log_density(points, "side", 1))
    found = (right * tasks.log_density(points, "side", 1)).sum() * cell
    assert found == pytest.approx(known, abs=1e-7)


def test_no_gaussian_is_better(plane):
    """Of 40 others, some near; E log N(a) by summing over the plane."""
    points, cell, p = plane
    on = p > 1e-9
    best = (p * tasks.log_density(points, "gaussian"))[on].sum() * cell
    rng = np.random.default_rng(7)
    spread = np.diag([np.hypot(LENGTH, NOISE), NOISE])
    for size in np.geomspace(1e-3, 1, 40):
        root = spread @ (np.eye(2) + size * rng.normal(size=(2, 2)))
        other = stats.multivariate_normal(spread @ rng.normal(size=2) * size, root @ root.T)
        assert (p[on] * other.logpdf(points[on])).sum() * cell < best


def test_share_near_a_branch(plane):
    """Of the jumps 1 - exp(-9/2); of the best Gaussian's draws what its density puts there."""
    points, cell, p = plane
    near = tasks.near_a_branch(points)
    # a disc cut out of a grid is right to a share of its rim's cells
    assert (p * near).sum() * cell == pytest.approx(1 - np.exp(-4.5), abs=2e-4)
    wide = np.exp(tasks.log_density(points, "gaussian"))
    drawn = np.random.default_rng(8).normal(size=(400_000, 2)) * [np.hypot(LENGTH, NOISE), NOISE]
    share, error = tasks.near_a_branch(drawn).mean(), np.sqrt(0.1 * 0.9 / len(drawn))
    assert (wide * near).sum() * cell == pytest.approx(share, abs=4 * error)


# --------------------------------------------------------------------------------- the models


def test_the_step_that_is_scored_is_the_decisive_one(tmp_path):
    """Of a model without latents its density is known at once: no draws, no windows."""
    scenes, t = recall(9, seed=9), decisive_frame()
    scale = Scale.of(scenes)
    config = memory_tasks.options(memory_tasks.Task("recall"), "deterministic", scale.unit).model
    torch.manual_seed(0)
    model = StateSpaceModel(config, scale=scale, bodies=1)
    run = type("Run", (), {})()
    run.guide, run.model = StateSpaceGuide(model), model
    run.card = type("Card", (), {"scale": scale, "config": {"history": config.history}})()
    found = memory_tasks.decisive_log_density(run, scenes, t, draws=2)
    with torch.no_grad():
        evidence, memory = model.follow(whole(scenes, scale))
        pi = model.policy(evidence.context, memory)
    step = t - config.history + 1
    a = displacements(scenes)[:, t] / scale.unit
    by_hand = stats.norm.logpdf(a, pi.base_dist.loc[step], pi.base_dist.scale[step]).sum(-1)
    np.testing.assert_allclose(found, by_hand - 2 * np.log(scale.unit), rtol=1e-4)


@pytest.fixture(scope="module")
def asked(tmp_path_factory):
    """What a model expects of the decisive step: smaller tasks than those of the page's figure."""
    runs = tmp_path_factory.mktemp("memory_tasks")

    def ask(name, model):
        task = memory_tasks.Task(name, delay=10 if name == "recall" else 2)
        run = memory_tasks.fitted(task, model, runs, updates=memory_tasks.UPDATES // 2)
        return memory_tasks.outcome(run, task, draws=25)

    return ask


def above(outcome, knows):
    """By how much the scenes' mean log density is above the exact value, and its error (paired)."""
    gap = outcome.log_density - tasks.log_density(outcome.came, knows, outcome.side)
    return gap.mean(), gap.std() / np.sqrt(len(gap))


@pytest.mark.slow
@pytest.mark.parametrize("model", ["deterministic", "rssm"])
def test_a_deterministic_path_recalls(asked, model):
    """Nothing without the cue can do better on average than the density of two branches."""
    found = asked("recall", model)
    assert found.right_side > 0.95
    gain, error = above(found, "branches")
    assert gain > 4 * error


@pytest.mark.slow
def test_without_one_the_cue_is_lost(asked):
    found = asked("recall", "stochastic")
    assert 0.4 < found.right_side < 0.6
    gain, error = above(found, "branches")
    assert gain < 4 * error


@pytest.mark.slow
@pytest.mark.parametrize("model", ["stochastic", "rssm"])
def test_a_stochastic_path_branches(asked, model):
    """Both branches with near their probability, little between, and a density to match."""
    found = asked("branching", model)
    assert found.near_a_branch > 0.85
    assert 0.35 < (found.drawn[..., 0] < 0).mean() < 0.65
    gain, _ = above(found, "gaussian")
    assert gain > 1.5


@pytest.mark.slow
def test_without_one_there_is_a_single_place(asked):
    found = asked("branching", "deterministic")
    assert found.near_a_branch < 0.05
    assert np.abs(found.drawn[..., 0]).max() < LENGTH
    gain, error = above(found, "gaussian")
    assert gain < 4 * error
