"""Animacy scores: closed forms of affine networks, exchanges by hand, and which steps have them."""

import dataclasses
import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import xarray as xr
from scipy import stats
from scipy.special import logsumexp
from torch.distributions import MultivariateNormal, kl_divergence
from variants import config

from pyro_animacy import ConfigError, DataError, Run, RunError, Scale, make_trajectories
from pyro_animacy.criticism import animacy, surrogates
from pyro_animacy.criticism.animacy import interaction, score_animacy
from pyro_animacy.criticism.animacy_table import by_body, save_scores
from pyro_animacy.data.windows import Batch, Windows, evenly, whole
from pyro_animacy.infer.checkpoint import ModelCard
from pyro_animacy.infer.run import build
from pyro_animacy.nets import StackConfig

LINEAR = StackConfig(hidden=1, layers=0)
SIGMA, SIGMA_P, Z, UNIT, FPS = 0.5, 0.6, 3, 2.0, 10.0
CENTER = np.array([30.0, -10.0])
PAIR, GAME = ("hunter", "prey"), ("player_1", "player_2", "ball")


def affine_run(bodies=PAIR, history=2, unit=UNIT, seed=0):
    """A run of affine networks with random weights; its guide is not the exact posterior."""
    torch.manual_seed(seed)
    D = 2 * len(bodies)
    center = tuple(CENTER * unit / UNIT)
    scale = Scale(center, unit, 3.0, 2.0, 0.0, (-40.0,) * D, (40.0,) * D)
    options = config(
        "small", latent_size=Z, latent_scale=SIGMA_P, policy_scale=SIGMA, history=history,
        prior=LINEAR, posterior=LINEAR, policy=LINEAR,
    )  # fmt: skip
    card = ModelCard(
        "control_vae", dataclasses.asdict(options), scale, bodies, ("x", "y"), FPS, "m"
    )
    model, guide = build(card)
    run = Run(Path("run"), model.double(), guide.double(), card, {}, {})
    with torch.no_grad():
        guide.residual.network.layers[0].weight *= 0.3
    return run


def walks(bodies=PAIR, size=3, frames=12, seed=1, scale=1.0, resolution=0.0, **options):
    """Random walks about the centre, with steps of about the size of the policy's noise."""
    rng = np.random.default_rng(seed)
    x = CENTER + UNIT * 0.4 * rng.normal(size=(size, frames, len(bodies), 2)).cumsum(1)
    return make_trajectories(
        scale * x, fps=FPS, body=bodies, units="m", resolution=scale * resolution, **options
    )


def in_model_units(run, dataset):
    batch = whole(dataset, run.card.scale)
    return Batch(batch.position.double(), batch.observed)


def law(run, batch):
    """p(a_t | c_t) of every step, exactly: displacement, mean (T, B, D); loading W, covariance."""
    model = run.model
    W = model.step.policy.network.layers[0].weight[:, :Z].detach()
    evidence = model.evidence(batch)
    mu = model.step.prior.network(evidence.context)
    mean = model.step.policy(evidence.context, mu).base_dist.loc.detach()
    return evidence.shown, mean, W, SIGMA_P**2 * W @ W.T + SIGMA**2 * torch.eye(len(W))


def marginal(run, batch, i):
    """Log p(a^i_t | c_t), (trajectory, step), in data units."""
    a, mean, _, covariance = law(run, batch)
    own = slice(2 * i, 2 * i + 2)
    density = MultivariateNormal(mean[..., own], covariance[own, own]).log_prob(a[..., own])
    return density.T.numpy() - 2 * math.log(run.card.scale.unit)


def steps(scores, name, history=2):
    """(trajectory, step, ...) without the frames that no step is taken from."""
    return scores[name].to_numpy()[:, history - 1 : -1]


@pytest.fixture(scope="module")
def scored():
    run, data = affine_run(), walks()
    return run, data, score_animacy(run, data, draws=3000, surrogates=1, progress=False)


@pytest.mark.parametrize(("name", "own"), [
    ("choice", slice(0, 2)), ("choice", slice(2, 4)), ("control_information", slice(0, 4)),
])  # fmt: skip
def test_what_was_chosen_is_the_exact_divergence_of_the_posterior(scored, name, own):
    """Given one body's displacement, or those of all."""
    run, data, scores = scored
    a, mean, W, _ = law(run, in_model_units(run, data))
    prior = MultivariateNormal(torch.zeros(Z).double(), SIGMA_P**2 * torch.eye(Z).double())
    precision = torch.eye(Z) / SIGMA_P**2 + W[own].T @ W[own] / SIGMA**2
    shift = (a - mean)[..., own] @ W[own] / SIGMA**2 @ precision.inverse()
    posterior = MultivariateNormal(shift, precision_matrix=precision)
    exact = kl_divergence(posterior, prior).T.numpy()
    found = steps(scores, name)
    found = found[..., own.start // 2] if name == "choice" else found
    assert exact.std() > 0.05
    np.testing.assert_allclose(found, exact, atol=0.1, rtol=0.1)
    assert np.corrcoef(found.ravel(), exact.ravel())[0, 1] > 0.99


def test_evidence_is_the_density_of_an_agent_and_the_surprise(scored):
    run, data, scores = scored
    batch = in_model_units(run, data)
    for i in range(2):
        left = steps(scores, "evidence")[..., i] - steps(scores, "surprise")[..., i]
        error = steps(scores, "evidence_standard_error")[..., i]
        assert (error < 0.1).all()
        assert (np.abs(left - marginal(run, batch, i)) < 4.5 * error + 1e-4).all()
    assert (scores["k_hat"].to_numpy()[:, 1:-1] < 0.7).all()


def test_evidence_of_one_step_by_hand():
    """One body speeds up, which no inert one does: damping 1, and no wall on the way."""
    run = affine_run(("fish",))
    x = CENTER + UNIT * np.array([[0.0, 0], [1, 1], [2.5, 2.2]])[None, :, None]
    data = make_trajectories(x, fps=FPS, body=["fish"], units="m", resolution=0.0)
    gained = UNIT * np.array([0.5, 0.2])
    surprise = -stats.norm.logpdf(gained, scale=np.sqrt((gained**2).mean())).sum()
    scores = score_animacy(run, data, draws=2000, progress=False)
    assert scores["surprise"].to_numpy()[0, 1, 0] == pytest.approx(surprise)
    left = (scores["evidence"] - scores["surprise"]).to_numpy()[0, 1, 0]
    exact = marginal(run, in_model_units(run, data), 0)[0, 0]
    error = scores["evidence_standard_error"].to_numpy()[0, 1, 0]
    assert left == pytest.approx(exact, abs=4.5 * error + 1e-4)


def test_nothing_but_surprise_depends_on_the_unit_of_length():
    one = score_animacy(affine_run(), walks(resolution=0.01), draws=100, progress=False)
    run = affine_run(unit=100 * UNIT)
    other = score_animacy(run, walks(resolution=0.01, scale=100.0), draws=100, progress=False)
    for name in one:
        expected = one[name] + (2 * math.log(100) if name == "surprise" else 0)
        np.testing.assert_allclose(other[name], expected, rtol=1e-3, atol=2e-3, err_msg=name)


@pytest.mark.parametrize("how", ["by its name", "by animate"])
def test_a_body_that_is_no_agent_is_scored_in_the_places_of_the_agents(how):
    names = GAME if how == "by its name" else ("a", "b", "c")
    run = affine_run(names)
    extra = {} if how == "by its name" else {"animate": [True, True, False]}
    data = walks(names, **extra)
    scores = score_animacy(run, data, draws=2000, surrogates=1, progress=False)
    places = []
    for j in range(2):
        order = [0, 1, 2]
        order[2], order[j] = j, 2
        x = in_model_units(run, data.isel(body=order))
        places.append(marginal(run, x, j))
    agent = logsumexp(places, axis=0) - math.log(2)
    left = (steps(scores, "evidence") - steps(scores, "surprise"))[..., 2]
    error = steps(scores, "evidence_standard_error")[..., 2]
    assert (np.abs(left - agent) < 4.5 * error + 1e-4).all()
    # and not in its own, as the agents are
    batch = in_model_units(run, data)
    assert np.abs(left - marginal(run, batch, 2)).max() > 0.2
    own = (steps(scores, "evidence") - steps(scores, "surprise"))[..., 0]
    error = steps(scores, "evidence_standard_error")[..., 0]
    assert (np.abs(own - marginal(run, batch, 0)) < 4.5 * error + 1e-4).all()


def test_where_no_body_is_an_agent_each_is_scored_in_its_own_place():
    run, data = affine_run(), walks()
    still = data.assign_coords(animate=("body", [False, False]))
    one, other = (score_animacy(run, d, draws=50, progress=False) for d in (data, still))
    np.testing.assert_array_equal(one["evidence"], other["evidence"])


def test_bodies_are_taken_by_name_not_by_order():
    run, data = affine_run(GAME), walks(GAME)
    one = score_animacy(run, data, draws=50, progress=False)
    other = score_animacy(run, data.isel(body=[2, 0, 1]), draws=50, progress=False)
    xr.testing.assert_allclose(one["choice"], other["choice"].sel(body=list(GAME)))


# Interaction: body 1 follows body 0, body 0 walks at random.

PULL = 0.7


def followers(size=300, together=0.0, seed=0):
    """One step of many pairs: a^1 = PULL (s^0 - s^1) + noise, a^0 noise; and the model of it."""
    rng = np.random.default_rng(seed)
    s = rng.normal(size=(size, 2, 2))
    s[:, 1] = together * s[:, 0] + math.sqrt(1 - together**2) * s[:, 1]
    a = SIGMA * rng.normal(size=s.shape)
    a[:, 1] += PULL * (s[:, 0] - s[:, 1])
    x = CENTER + UNIT * np.stack([s, s + a], 1)
    data = make_trajectories(x, fps=FPS, body=PAIR, units="m", resolution=0.0)
    run = affine_run(history=1)
    with torch.no_grad():
        for parameter in (*run.model.parameters(), *run.guide.parameters()):
            parameter.zero_()
        affine = run.model.step.policy.affine.weight  # of (s^0, s^1) / extent, and more
        for axis in range(2):
            affine[2 + axis, axis], affine[2 + axis, 2 + axis] = 3.0 * PULL, -3.0 * PULL
    return run, data, s, a


def transfer_entropy(variance):
    """Of a^1 = PULL s^0 + ... + noise, two axes, where s^0 has this variance given s^1."""
    return math.log(1 + PULL**2 * variance / SIGMA**2)


def test_interaction_is_the_transfer_entropy_from_the_leader_to_the_follower():
    run, data, s, a = followers()
    found = interaction(run, data, draws=50, surrogates=100, progress=False).to_numpy()[:, 0]
    np.testing.assert_allclose(found[:, 0], 0, atol=1e-6)
    mean, error = found[:, 1].mean(), found[:, 1].std() / math.sqrt(len(found))
    assert mean == pytest.approx(transfer_entropy(1.0), abs=3.5 * error)
    # step by step, against the Gaussian that the leader's place averages out to
    wide = math.hypot(SIGMA, PULL)
    alone = stats.norm.logpdf(a[:, 1], -PULL * s[:, 1], wide).sum(-1)
    exact = stats.norm.logpdf(a[:, 1], PULL * (s[:, 0] - s[:, 1]), SIGMA).sum(-1) - alone
    assert np.median(np.abs(found[:, 1] - exact)) < 0.15
    assert np.corrcoef(found[:, 1], exact)[0, 1] > 0.97


@pytest.mark.parametrize("together", [0.6, 0.9])
def test_interaction_is_the_transfer_entropy_where_pasts_hang_together(together):
    """As found: of moments drawn at random it was 1.5 nats where 0.4 are right.

    The leader is looked for where the follower was when it was about here; the more moments there
    are, the nearer.
    """
    run, data, *_ = followers(together=together, size=2000)
    found = interaction(run, data, draws=50, surrogates=50, progress=False).to_numpy()[:, 0]
    error = found[:, 1].std() / math.sqrt(len(found))
    assert found[:, 1].mean() == pytest.approx(
        transfer_entropy(1 - together**2), abs=3.5 * error + 0.02
    )
    np.testing.assert_allclose(found[:, 0], 0, atol=1e-6)


def test_few_surrogates_overstate_the_interaction():
    run, data, *_ = followers(size=200)
    few, many = (
        interaction(run, data, draws=50, surrogates=m, progress=False).to_numpy()[:, 0, 1].mean()
        for m in (2, 50)
    )
    assert few > many + 0.2


def test_bodies_that_ignore_each_other_do_not_interact():
    """Their latent dimensions are their own: only Monte Carlo error is left."""
    run, data = affine_run(history=1), walks(size=30)
    with torch.no_grad():
        run.model.step.prior.network.layers[0].weight.zero_()
        policy = run.model.step.policy
        policy.network.layers[0].weight[:, Z:] = 0
        mask = torch.zeros_like(policy.affine.weight)
        for i in range(2):
            mask[2 * i : 2 * i + 2, 2 * i : 2 * i + 2] = 1
        policy.affine.weight.normal_().mul_(mask)
    found = interaction(run, data, draws=400, surrogates=4, progress=False).to_numpy()[:, :-1]
    error = found.std((0, 1)) / math.sqrt(found[..., 0].size)
    assert (np.abs(found.mean((0, 1))) < 3.5 * error + 0.01).all()
    assert found.std() < 0.2


@pytest.mark.parametrize("recordings", [1, 3, 8])
@pytest.mark.parametrize("pool", [10**6, 20])
def test_the_others_are_found_where_the_own_past_was_most_alike(recordings, pool, monkeypatch):
    """By hand: in other recordings, or of few in the same one, a tenth of its frames away."""
    monkeypatch.setattr(surrogates, "POOL", pool)
    monkeypatch.setattr(surrogates, "AT_ONCE", 40)
    history, frames = 3, 12
    data = walks(size=8, frames=frames, recording=[str(i % recordings) for i in range(8)])
    data = data.assign_coords(start=("trajectory", np.arange(8) // recordings * frames))
    scale = affine_run(history=history).card.scale
    windows = Windows(data, frames=history + 1, context=history, scale=scale)
    x = windows.batch(torch.arange(len(windows))).position[:history].numpy()
    row, start = windows.index.numpy().T
    of, when = row % recordings, data["start"].values[row] + start
    looked = evenly(len(windows), pool)
    apart = {n: math.ceil(0.1 * (np.ptp(when[looked][of[looked] == n]) + 1)) for n in set(of)}
    scored = np.arange(2, len(windows), 3)
    chosen = surrogates.like_moments(data, windows, scored, 7, history).numpy()
    assert chosen.shape == (2, 7, len(scored))
    for i in range(2):
        own = x[..., 2 * i : 2 * i + 2]
        moves = np.diff(own, axis=0)
        wide = np.sqrt(own[-1, looked].var(0).mean())
        fast = np.sqrt(np.square(moves[:, looked]).mean() * (history - 1))
        for k, t in enumerate(scored):
            far = [np.sum(((own[-1, w] - own[-1, t]) / wide) ** 2)
                   + np.sum(((moves[:, w] - moves[:, t]) / fast) ** 2) for w in looked]  # fmt: skip
            later = [of[w] == of[t] and abs(when[w] - when[t]) >= apart[of[t]] for w in looked]
            good = later if recordings < 5 else [of[w] != of[t] for w in looked]
            if sum(good) < 7:
                good = [a or b for a, b in zip(good, later, strict=True)]
            order = [looked[n] for n in np.argsort(far) if good[n]][:7]
            assert chosen[i, :, k].tolist() == order + [-1] * (7 - len(order))


def test_a_lone_step_has_no_interaction():
    run = affine_run()
    scores = score_animacy(run, walks(size=1, frames=3), draws=50, progress=False)
    assert scores["choice"].notnull().sum() == 2
    assert scores["interaction"].isnull().all()


def test_one_body_has_no_interaction():
    run, data = affine_run(("fish",)), walks(("fish",))
    assert "interaction" not in score_animacy(run, data, draws=50, progress=False)
    with pytest.raises(ConfigError, match="one body"):
        interaction(run, data, progress=False)


# Which steps have a score.


@pytest.mark.parametrize("history", [1, 2, 3])
def test_scores_are_where_the_step_and_what_they_look_back_on_were_observed(history):
    data = walks(size=4, frames=14)
    x = data["position"].to_numpy().copy()
    x[0, 6, 1, 0] = np.nan
    x[1, 5, 0] = np.nan
    x[2, 9:] = np.nan
    x[3, 13, 0] = np.nan  # the last frame of one body
    data = data.assign(position=(data["position"].dims, x))
    data = data.assign_coords(length=("trajectory", [14, 14, 9, 14]))
    scores = score_animacy(affine_run(history=history), data, draws=30, progress=False)
    seen = np.isfinite(x).all(-1)
    for i in range(4):
        for t in range(14):
            past = t - history + 1 >= 0 and t < 13 and seen[i, t - history + 1 : t + 1].all()
            both = past and seen[i, t + 1].all()
            assert np.isfinite(scores["control_information"][i, t]) == both
            for b in range(2):
                step = past and seen[i, t + 1, b]
                inert = 0 < t < 13 and seen[i, t - 1 : t + 2, b].all()
                at = {"trajectory": i, "time": t, "body": b}
                for name in ("choice", "k_hat", "evidence_standard_error", "interaction"):
                    assert (not np.isnan(scores[name][at])) == step, (name, at)
                assert np.isfinite(scores["surprise"][at]) == inert
                assert np.isfinite(scores["evidence"][at]) == (step and inert)


def test_scores_are_at_the_frame_that_the_step_is_taken_from():
    data = walks(size=1, frames=20)
    x = np.cumsum(np.full((1, 20, 2, 2), 0.1), 1) + CENTER
    x[0, 12:, 1] += 40.0
    data = data.assign(position=(data["position"].dims, x))
    scores = score_animacy(affine_run(), data, draws=50, progress=False)
    density = (scores["surprise"] - scores["evidence"]).sel(body="prey")
    assert density.argmax("time") in (11, 12)  # of an agent the jump is unlikely, and what follows
    for name in ("choice", "surprise"):
        assert (scores[name].sel(body="prey")[0, 10] < scores[name].sel(body="prey")[0, 11]).all()
    assert scores["control_information"][0, 11] > 10 * scores["control_information"][0, 10]
    np.testing.assert_array_equal(scores["time"], data["time"])


@pytest.mark.parametrize("at_once", [1, 650])
def test_scores_do_not_depend_on_how_many_steps_are_looked_at_at_once(at_once, monkeypatch):
    run, data = affine_run(), walks(size=1, frames=7)
    whole = score_animacy(run, data, draws=50, progress=False)
    monkeypatch.setattr(animacy, "AT_ONCE", at_once)
    parts = score_animacy(run, data, draws=50, progress=False)
    xr.testing.assert_allclose(whole["surprise"], parts["surprise"])
    error = sum(of["evidence_standard_error"] ** 2 for of in (whole, parts)) ** 0.5
    assert (np.abs(whole["evidence"] - parts["evidence"]) < 5 * error).sum() == 10
    for name in whole:
        np.testing.assert_array_equal(whole[name].isnull(), parts[name].isnull())


def test_the_same_seed_gives_the_same_scores_and_leaves_the_generators_alone(tiny_run, tiny_data):
    data = tiny_data.isel(time=slice(0, 40)).assign_coords(length=("trajectory", [40]))
    state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    options = {"draws": 30, "surrogates": 2, "progress": False}
    a, b = (score_animacy(tiny_run, data, seed=3, **options) for _ in range(2))
    other = score_animacy(tiny_run, data, seed=4, **options)
    assert torch.equal(torch.get_rng_state(), state)
    np.testing.assert_array_equal(np.random.get_state()[1], numpy_state)  # noqa: NPY002
    xr.testing.assert_identical(a, b)
    for name in ("choice", "evidence", "interaction"):
        assert np.isfinite(a[name]).sum() == 2 * (40 - tiny_run.card.config["history"])
        assert not np.allclose(a[name], other[name], equal_nan=True)
    xr.testing.assert_identical(a["surprise"], other["surprise"])
    assert a["evidence"].attrs == {"long_name": "evidence for an agent", "units": "nats"}


@pytest.mark.parametrize(
    ("options", "message"), [({"draws": 24}, "draws is 24"), ({"surrogates": 0}, "surrogates is 0")]
)
def test_too_few_draws_are_an_error(options, message):
    with pytest.raises(ConfigError, match=message):
        score_animacy(affine_run(), walks(), progress=False, **options)


def test_recordings_too_short_for_a_step_are_an_error():
    with pytest.raises(DataError, match="observed in a row"):
        score_animacy(affine_run(history=3), walks(frames=3), progress=False)


def test_some_steps_are_scored_against_the_inert_body_of_the_whole_trajectory():
    run, data = affine_run(), walks(size=2, frames=30)
    only = np.zeros((2, 30), bool)
    only[1, 10:15] = True
    whole, some = (
        score_animacy(run, data, draws=400, only=o, progress=False) for o in (None, only)
    )
    for name in ("surprise", "evidence", "interaction", "control_information"):
        assert (some[name].notnull() == xr.DataArray(only, dims=some[name].dims[:2])).all(), name
    xr.testing.assert_equal(some["surprise"], whole["surprise"].where(some["surprise"].notnull()))
    error = np.hypot(some["evidence_standard_error"], whole["evidence_standard_error"])
    assert not (np.abs(some["evidence"] - whole["evidence"]) > 4.5 * error + 1e-4).any()
    with pytest.raises(DataError, match="no step that was to be scored"):
        score_animacy(run, data, draws=30, only=np.zeros_like(only), progress=False)
    few = score_animacy(run, data, draws=30, only=only, steps=3, progress=False)
    chosen = few["interaction"].notnull().any("body")
    assert np.argwhere(chosen.values).tolist() == [[1, 10], [1, 12], [1, 14]]
    for name in ("surprise", "evidence", "interaction", "control_information"):
        assert (few[name].notnull() == chosen).all(), name
    with pytest.raises(ConfigError, match="steps is 0"):
        score_animacy(run, data, steps=0)


# Files.


def labelled():
    data = walks(label=["chase", "play", "chase"], start=[0, 5, 100])
    return score_animacy(affine_run(), data, draws=30, progress=False)


def test_a_table_has_a_row_for_each_body_and_step(tmp_path):
    scores = labelled()
    written = save_scores(scores, tmp_path / "scores.csv")
    table = pd.read_csv(tmp_path / "scores.csv", dtype={"trajectory": str})
    assert list(table) == [
        "trajectory", "label", "body", "frame", "time", "control_information", "choice",
        "surprise", "evidence", "evidence_standard_error", "k_hat", "interaction",
    ]  # fmt: skip
    assert written == len(table) == int(scores["evidence"].notnull().sum()) == 3 * 10 * 2
    for row in table.sample(20, random_state=0).to_dict("records"):
        at = {"trajectory": row["trajectory"], "body": row["body"]}
        one = scores.sel(at)
        one = one.isel(time=row["frame"] - one["start"].item())
        for name in table.columns[5:]:
            assert row[name] == pytest.approx(one[name].item(), rel=1e-5, abs=1e-9)
        assert row["label"] == one["label"].item()
        assert row["time"] == pytest.approx(row["frame"] / FPS)


def test_a_table_without_labels_or_others_has_no_such_columns(tmp_path):
    scores = score_animacy(affine_run(("fish",)), walks(("fish",)), draws=30, progress=False)
    save_scores(scores, tmp_path / "scores.csv")
    columns = pd.read_csv(tmp_path / "scores.csv").columns
    assert not {"label", "interaction"} & set(columns)


def test_netcdf_gives_the_scores_back(tmp_path):
    scores = labelled()
    assert save_scores(scores, tmp_path / "scores.nc") == 60
    with xr.open_dataset(tmp_path / "scores.nc", engine="h5netcdf") as found:
        xr.testing.assert_equal(found.load(), scores)
        assert found["evidence"].attrs["units"] == "nats"
        assert found.attrs["fps"] == FPS


def test_a_file_of_another_kind_is_an_error(tmp_path):
    with pytest.raises(ConfigError, match=r"\.csv or \.nc"):
        save_scores(labelled(), tmp_path / "scores.xlsx")


@pytest.mark.parametrize("suffix", [".csv", ".nc"])
def test_a_file_that_cannot_be_written_is_an_error(tmp_path, suffix):
    (tmp_path / "file").touch()
    with pytest.raises(RunError, match="cannot be written"):
        save_scores(labelled(), tmp_path / "file" / f"scores{suffix}")


def test_the_table_by_body_has_means_over_defined_steps():
    scores = labelled()
    table = by_body(scores)
    assert list(table.index) == list(PAIR)
    for name in ("choice", "surprise", "evidence", "interaction"):
        for body in PAIR:
            values = scores[name].sel(body=body).to_numpy()
            assert table.loc[body, name] == pytest.approx(np.nanmean(values))
            assert table.loc[body, f"{name}_error"] > 0
    empty = by_body(scores.where(scores["body"] != "prey"))
    assert empty.loc["prey"].isna().all()
    assert empty.loc["hunter"].notna().all()
