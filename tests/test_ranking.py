"""Which model is better: exact densities, paired errors, honest splits."""

import dataclasses
import re
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import xarray as xr
import yaml
from helpers import BODIES, chase, debug, metrics, recordings, table
from scipy.optimize import minimize_scalar
from variants import build

from pyro_animacy import Batch, ConfigError, Run, RunError, Scale, fit, make_trajectories, predict
from pyro_animacy.cli import main
from pyro_animacy.criticism import elpd as elpd_module
from pyro_animacy.criticism.contenders import (
    Ranking,
    common_heldout,
    comparable,
    compare_runs,
    run_names,
)
from pyro_animacy.criticism.elpd import compare_elpd, elpd, elpd_baselines, elpd_data
from pyro_animacy.criticism.forecasts import displacement_errors, forecast_all
from pyro_animacy.criticism.future import compare_future, expanding, leave_future_out, refits
from pyro_animacy.criticism.ranking import findings, ranking_text, save_ranking
from pyro_animacy.infer.checkpoint import ModelCard
from pyro_animacy.infer.recordings import fingerprint
from pyro_animacy.infer.run import split_recordings
from pyro_animacy.infer.score import independent_groups
from pyro_animacy.nets import StackConfig

LINEAR = StackConfig(hidden=1, layers=0)


def linear_run(dataset):
    """A run of affine networks, and log p(a_t | c_t) in its units with z integrated out.

    p(a | c) = N(M c + m, sigma_p^2 W W' + sigma^2 I).
    """
    model, guide = build("small", 2, latent_size=3, prior=LINEAR, posterior=LINEAR, policy=LINEAR,
                         policy_scale=0.5)  # fmt: skip
    network = model.step.policy.network.layers[0]
    W = network.weight[:, :3].detach()
    card = ModelCard(
        model="control_vae", config=dataclasses.asdict(model.config), scale=Scale.of(dataset),
        bodies=tuple(BODIES), axes=("x", "y"), fps=10.0, units="m",
    )  # fmt: skip
    covariance = model.config.latent_scale**2 * W @ W.T + 0.25 * torch.eye(4, dtype=W.dtype)

    def exact(position):
        x = (torch.as_tensor(position) - torch.tensor(card.scale.center * 2)) / card.scale.unit
        evidence = model.evidence(Batch(x, torch.ones_like(x) > 0))
        c = evidence.context
        mean = model.step.policy(c, model.step.prior.network(c)).base_dist.loc
        law = torch.distributions.MultivariateNormal(mean, covariance)
        return law.log_prob(evidence.shown).detach().numpy()

    return Run(Path("linear"), model, guide, card, {}, {}), exact


def pointwise(values, steps=10, k_hat=None):
    """ELPDData of given log densities."""
    coords = {
        "unit": [f"u{i}" for i in range(len(values))],
        "steps": ("unit", [steps] * len(values)),
    }
    array = xr.DataArray(np.asarray(values, float), coords, ("unit",))
    array.attrs = {"units": "nats", "monte_carlo_error": 0.0}
    return elpd_data(array, None if k_hat is None else array.copy(data=k_hat), 256)


@pytest.fixture(scope="module")
def other_run(tiny_data, tmp_path_factory):
    """Another model of the same recordings and split."""
    out = tmp_path_factory.mktemp("other") / "other"
    return fit(tiny_data, debug({"history": 3}, steps=80), out=out, progress=False)


# --- log densities ------------------------------------------------------------------------------


def test_elpd_of_a_linear_gaussian_model_is_the_exact_sum():
    """Within four of its own Monte Carlo errors, in data units, from the context on."""
    x = chase(frames=30, recordings=25, decimals=8)
    dataset = make_trajectories(x, fps=10, body=BODIES, units="m", resolution=0)
    run, exact = linear_run(dataset)
    result = elpd(run, dataset, context=8, draws=1000, progress=False)
    flat = x.reshape(25, 30, 4).transpose(1, 0, 2)
    history = run.card.config["history"]
    truth = exact(flat)[8 - history :] - 4 * np.log(run.card.scale.unit)
    assert result.elpd_i["steps"].to_numpy().tolist() == [22] * 25
    error = result.elpd_i.attrs["monte_carlo_error"]
    assert 0 < error < 0.02 * 550
    assert abs(result.elpd - truth.sum()) < 4 * error
    np.testing.assert_allclose(
        result.elpd_i.sel(unit=dataset["recording"].to_numpy()), truth.sum(0), atol=4 * error
    )
    assert result.elpd == pytest.approx(result.elpd_i.sum().item())


def test_baselines_are_those_of_the_score(tiny_run, tiny_data):
    """The same steps, noise and densities as the held-out score of the run's summary."""
    heldout = tiny_run.heldout(tiny_data)
    found = elpd_baselines(tiny_run, heldout)
    assert next(iter(found)) == "constant_velocity"
    for name, one in found.items():
        steps = one.elpd_i["steps"].sum().item()
        assert steps == tiny_run.summary["score_steps"]
        assert one.elpd / steps == pytest.approx(tiny_run.summary["baselines"][name], abs=1e-6)
        assert one.pareto_k is None


def test_elpd_is_not_below_the_iwae_of_the_score(tiny_run, tiny_data):
    """Both estimate the same density; the bound with 4 draws is the lower one."""
    one = elpd(tiny_run, tiny_run.heldout(tiny_data), draws=512, progress=False)
    per_step = one.elpd / one.elpd_i["steps"].sum().item()
    assert per_step > tiny_run.summary["heldout_nats_per_step"] - 0.05
    assert per_step < tiny_run.summary["heldout_nats_per_step"] + 0.5


def test_bodies_in_another_order_give_the_same_density(tiny_run, tiny_data):
    """Each body keeps its dequantisation noise, whatever order a run has the bodies in."""
    heldout = tiny_run.heldout(tiny_data)
    card = dataclasses.replace(tiny_run.card, bodies=tuple(BODIES[::-1]))
    swapped = dataclasses.replace(tiny_run, card=card)

    def shown(windows):
        return windows.batch(torch.arange(len(windows))).position

    one, other = (shown(elpd_module._steps(run, heldout, None)[0]) for run in (tiny_run, swapped))
    assert not torch.equal(one, other)
    assert torch.equal(one, other[..., [2, 3, 0, 1]])


def test_too_few_draws_are_refused(tiny_run, tiny_data):
    with pytest.raises(ConfigError, match="25"):
        elpd(tiny_run, tiny_run.heldout(tiny_data), draws=10, progress=False)


def test_units_are_numbered_in_order_and_hold_every_step():
    dataset = recordings(frames=100, recordings=3)
    index = np.array([(i, t) for i in range(3) for t in range(90)])
    member = independent_groups(dataset, index)
    assert member.tolist() == sorted(member.tolist())
    assert np.bincount(member).min() > 0
    assert len(np.unique(member)) == 21
    assert all(len(set(index[member == g, 0])) == 1 for g in range(21))


# --- the table ----------------------------------------------------------------------------------


def test_errors_are_paired():
    """dse = sqrt(n Var(d)) of the differences, far below that of unpaired sums."""
    rng = np.random.default_rng(0)
    level = rng.normal(scale=100, size=30)
    rows = {"a": level + rng.normal(3, 1, 30), "b": level, "c": level - 8}
    ranked = compare_elpd({name: pointwise(row) for name, row in rows.items()})
    assert ranked.index.tolist() == ["a", "b", "c"]
    for name in "bc":
        d = rows["a"] - rows[name]
        assert ranked.loc[name, "elpd_diff"] == pytest.approx(d.sum())
        error = np.sqrt(30 * d.var(ddof=1))
        assert ranked.loc[name, "dse"] == pytest.approx(error)
        assert ranked.loc[name, "dse_per_step"] == pytest.approx(error / 300)
    assert ranked.loc["b", "se"] == pytest.approx(np.sqrt(30 * level.var(ddof=1)))


def test_a_model_against_itself_differs_by_nothing():
    one = pointwise(np.random.default_rng(0).normal(-500, 50, 20))
    ranked = compare_elpd({"one": one, "same": one})
    assert (ranked["elpd_diff"] == 0).all()
    assert (ranked["dse"] == 0).all()
    assert ranked["weight"].sum() == pytest.approx(1)


def test_stacking_weights_are_the_optimum():
    """Two models, the best mixture found by a search in one dimension."""
    rng = np.random.default_rng(1)
    a, b = rng.normal(-900, 1, (2, 40))
    ranked = compare_elpd({"a": pointwise(a), "b": pointwise(b)})

    def loss(w):
        return -np.logaddexp(np.log(w) + a, np.log1p(-w) + b).sum()

    best = minimize_scalar(loss, bounds=(1e-6, 1 - 1e-6), method="bounded").x
    assert ranked.loc["a", "weight"] == pytest.approx(best, abs=2e-3)


@pytest.mark.parametrize("level", [-1e5, -800.0, 0.0, 800.0, 1e5])
def test_no_density_underflows(level):
    rng = np.random.default_rng(2)
    rows = level + rng.normal(scale=2000, size=(4, 20))
    ranked = compare_elpd({str(i): pointwise(row) for i, row in enumerate(rows)})
    assert np.isfinite(ranked["weight"]).all()
    assert ranked["weight"].sum() == pytest.approx(1)
    np.testing.assert_allclose(ranked["elpd"], np.sort(rows.sum(1))[::-1])


def test_one_unit_gives_no_error():
    ranked = compare_elpd({"a": pointwise([-1.0]), "b": pointwise([-3.0])})
    assert ranked.loc["b", "elpd_diff"] == 2
    assert np.isnan(ranked.loc["b", "dse"])


def test_other_units_are_refused():
    with pytest.raises(ConfigError, match="other steps"):
        compare_elpd({"a": pointwise([1.0, 2.0]), "b": pointwise([1.0, 2.0, 3.0])})


def test_the_model_that_made_the_recordings_ranks_first(tiny_run, other_run, tiny_data):
    """Recordings generated by one run, scored under both."""
    start = tiny_data.isel(time=slice(0, 3)).assign_coords(length=("trajectory", [3]))
    runs = [tiny_run, other_run]
    for truth in runs:
        made = predict(truth, start, draws=400, horizon=30, seed=3, progress=False)
        x = made["posterior_predictive"]["position"].isel(chain=0, trajectory=0).to_numpy()
        made = make_trajectories(x, fps=10, body=BODIES, units="m", resolution=0)
        scored = {
            str(run.path): elpd(run, made, context=6, draws=64, progress=False) for run in runs
        }
        ranked = compare_elpd(scored)
        assert ranked.index[0] == str(truth.path)
        assert ranked["elpd_diff"].iloc[1] > 2 * ranked["dse"].iloc[1]


# --- runs ---------------------------------------------------------------------------------------


def fitted_to(run, dataset, **train):
    """A run as if it had been fitted to other recordings, or had held out others."""
    train = run.settings["train"] | train
    shares = (train[name] for name in ("heldout", "validation", "seed"))
    heldout = fingerprint(split_recordings(dataset, *shares)[3])
    settings = {**run.settings, "train": train, "heldout": heldout}
    return dataclasses.replace(run, settings=settings)


def test_the_common_held_out_part_is_in_no_training_part(tiny_run, tiny_data, tmp_path):
    """Of runs that held out 20 % and 40 % it is the last 20 %, and the order does not matter."""
    more = dataclasses.replace(fitted_to(tiny_run, tiny_data, heldout=0.4), path=tmp_path)
    for runs in ([tiny_run, tiny_run], [tiny_run, more], [more, tiny_run]):
        common = common_heldout(runs, [tiny_data, tiny_data])
        xr.testing.assert_equal(common, tiny_run.heldout(tiny_data))


def test_a_rate_that_was_estimated_makes_no_other_recording(tiny_run, tiny_data):
    """Of one file, at 10 Hz as was given, and at a rate measured from its times."""
    fps = 10.0001
    estimated = tiny_data.assign_coords(time=np.arange(120) / fps).assign_attrs(fps=fps)
    common = common_heldout([tiny_run, tiny_run], [tiny_data, estimated])
    xr.testing.assert_equal(common, tiny_run.heldout(tiny_data))


def test_recordings_drawn_by_other_seeds_share_what_both_held_out(tiny_run):
    """Of twenty recordings each run holds four out; common are those in both."""
    dataset = recordings(recordings=20, frames=30)
    runs = [fitted_to(tiny_run, dataset, seed=seed, heldout=0.5) for seed in (0, 1)]
    parts = [set(run.heldout(dataset)["recording"].to_numpy()) for run in runs]
    common = common_heldout(runs, [dataset, dataset])
    assert set(common["recording"].to_numpy()) == parts[0] & parts[1] != parts[0]


def test_runs_of_different_recordings_have_nothing_in_common(tiny_run, tiny_data):
    renamed = tiny_data.assign_coords(trajectory=["x"])
    for other, message in (
        (recordings(seed=5), r"different recordings.*--recordings FILE"),
        (tiny_data.assign_coords(body=["a", "b"]), r"different recordings.*--recordings FILE"),
        (renamed, "no frame in common"),
    ):
        with pytest.raises(ConfigError, match=message):
            common_heldout([tiny_run, fitted_to(tiny_run, other)], [tiny_data, other])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"bodies": ("a", "b", "c")}, "3 bodies, .* of 2"),
        ({"fps": 25.0}, "25 frames a second, .* of 10"),
        ({"units": "px"}, "recordings in px, .* in m"),
    ],
)
def test_models_of_other_scenes_are_refused(tiny_run, change, message):
    card = dataclasses.replace(tiny_run.card, **change)
    with pytest.raises(ConfigError, match=message):
        comparable([tiny_run, dataclasses.replace(tiny_run, card=card)])


def test_names_are_as_short_as_tells_runs_apart(tiny_run):
    def names(*paths):
        return run_names([dataclasses.replace(tiny_run, path=Path(p)) for p in paths])

    assert names("/a/one", "/a/two") == ("one", "two")
    assert names("/a/one", "/b/one") == ("a/one", "b/one")
    for taken in ("constant velocity", "AR(1)", "autoregression", "steps"):
        assert names("/a/one", f"/a/{taken}") == ("a/one", f"a/{taken}")
    with pytest.raises(ConfigError, match="given twice"):
        names("/a/one", "/a/../a/one")
    with pytest.raises(ConfigError, match="no runs"):
        names()


@pytest.fixture(scope="module")
def ranking(tiny_run, other_run, tiny_data):
    return compare_runs(
        [tiny_run, other_run], tiny_run.heldout(tiny_data), draws=64, forecast_draws=25,
        progress=False,
    )  # fmt: skip


def test_every_contender_is_in_every_table(ranking, tiny_run, tiny_data):
    names = {*ranking.runs, "constant velocity"}
    autoregression = (set(ranking.table.index) - names).pop()
    assert autoregression.startswith("AR(")
    assert set(ranking.table.index) == set(ranking.forecasts["contender"])
    assert ranking.pointwise[list(ranking.table.index)].sum().to_numpy() == pytest.approx(
        ranking.table["elpd"].to_numpy()
    )
    assert ranking.forecasts["seconds"].unique().tolist() == [1.0]  # 18 frames are left, at 10 Hz
    found = forecast_all(tiny_run, tiny_run.heldout(tiny_data), context=6, horizon=10, draws=25,
                         most=100, progress=False)  # fmt: skip
    errors = displacement_errors(found["model"].to_numpy(), found["recorded"].to_numpy(), 20)
    row = ranking.forecasts.set_index("contender").loc[ranking.runs[0]]
    assert row["ADE":].tolist() == pytest.approx([error[-1] for error in errors.values()])


def test_horizons_that_are_asked_for(tiny_run):
    """Those of the longest do not depend on the others; none is left out unsaid."""
    data, few = recordings(frames=40, seed=3), {"draws": 64, "forecast_draws": 25}
    own = [
        compare_runs([tiny_run], data, horizons=seconds, progress=False, **few).forecasts
        for seconds in ([2.5, 0.52], [2.5])
    ]
    assert own[0]["seconds"].unique().tolist() == [0.5, 2.5]  # frames nearest, at 10 Hz
    last = own[0][own[0]["seconds"] == 2.5].reset_index(drop=True)
    pd.testing.assert_frame_equal(last, own[1])
    for seconds, says in (
        ([1, 3.5], r"horizons are 1, 3\.5 s; half of all frames.* no more than 3\.4 s after the 6"),
        ([0.0], "horizons are 0; give seconds, each above 0"),
        ([np.nan], "give seconds"),
        ([], "horizons are none; give seconds"),
    ):
        with pytest.raises(ConfigError, match=says):
            compare_runs([tiny_run], data, horizons=seconds, progress=False)


@pytest.mark.parametrize(("fps", "said"), [(0.2, ["5", "10", "20"]), (15.0001, ["1", "2", "4"])])
def test_horizons_are_said_as_what_they_are(tiny_run, fps, said):
    """Of whole frames; of 1, 2 and 4 where there is less than one a second."""
    data = recordings(frames=90, seed=3)
    data = data.assign_coords(time=np.arange(90) / fps).assign_attrs(fps=fps)
    run = dataclasses.replace(tiny_run, card=dataclasses.replace(tiny_run.card, fps=fps))
    few = {"draws": 25, "forecast_draws": 20, "windows": 3, "progress": False}
    ranking = compare_runs([run], data, **few)
    own = ranking.forecasts[ranking.forecasts["contender"] == "run"]
    frames = (own["seconds"] * fps).to_numpy()
    np.testing.assert_allclose(frames, frames.round())
    table = ranking_text(ranking).split("Displacement errors")[1]
    assert re.findall(r"^  run +(\S+)", table, re.MULTILINE) == said
    assert f"off after {said[-1]}\u00a0s," in " ".join(f.sentence for f in findings(ranking))


def test_a_gross_tracking_error_is_scored_and_told_by_k_hat(tiny_run, tiny_data):
    """So far off that in single precision the log weights of half of the draws are equal."""
    position = tiny_data["position"].copy(deep=True)
    position[0, 60, 0, 0] = 1e7
    found = elpd(tiny_run, tiny_data.assign(position=position), draws=64, progress=False)
    assert -np.inf < found.elpd < -1e20
    assert (found.pareto_k == np.inf).sum() == 1
    assert found.warning


def test_a_run_called_as_a_baseline_is_a_contender_beside_it(tiny_run, tiny_data, tmp_path):
    path = tmp_path / "constant velocity"
    shutil.copytree(tiny_run.path, path)
    options = {"draws": 32, "forecast_draws": 20, "progress": False}
    found = compare_runs([Run.load(path)], tiny_run.heldout(tiny_data), **options)
    name = f"{tmp_path.name}/constant velocity"
    assert found.runs == (name,)
    assert {name, "constant velocity"} < set(found.table.index)
    assert len(found.table) == len(found.forecasts) == 3
    with pytest.raises(ConfigError, match="called 'constant velocity', which the tab"):
        compare_future({"constant velocity": debug()}, tiny_data, out=tmp_path)


def test_only_the_first_run_needs_baselines(tiny_run, other_run, tiny_data, tmp_path):
    bare = dataclasses.replace(other_run, path=tmp_path / "bare")
    options = {"draws": 32, "forecast_draws": 20, "progress": False}
    heldout = tiny_run.heldout(tiny_data)
    found = compare_runs([tiny_run, bare], heldout, **options)
    assert "bare" in found.table.index
    assert len(found.forecasts) == 4  # one horizon of two runs and two baselines
    with pytest.raises(RunError, match="no such file"):
        compare_runs([bare, tiny_run], heldout, **options)


def test_a_run_of_the_squared_error_is_named(ranking):
    assert ranking.squared == ()
    said = findings(dataclasses.replace(ranking, squared=("other",)))[-1].sentence
    assert said.startswith("other was trained on the squared error")


def test_the_text_names_the_best_first_and_has_every_finding(ranking):
    text = ranking_text(ranking)
    assert text.splitlines()[2].split("  ")[1] == ranking.table.index[0]
    for finding in findings(ranking):
        assert finding.sentence in text
        assert finding.attempt in text


def test_a_ranking_that_cannot_be_written_leaves_the_old_files(ranking, tmp_path, monkeypatch):
    (tmp_path / "compare.csv").write_text("old")

    def full(self, path, **_):
        path.write_text("half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pd.DataFrame, "to_csv", full)
    with pytest.raises(RunError, match=r"compare\.csv: cannot be written"):
        save_ranking(ranking, tmp_path)
    assert (tmp_path / "compare.csv").read_text() == "old"
    assert [file.name for file in tmp_path.iterdir()] == ["compare.csv"]


def judged(model, baseline):
    """The first finding where a run and a baseline have these log densities."""
    elpds = {"run": pointwise(model), "AR(5)": pointwise(baseline)}
    empty = pd.DataFrame(columns=["contender", "seconds", "ADE", "FDE", "a", "b"])
    return findings(Ranking(compare_elpd(elpds), elpds, empty, ("run",), "m"))


def test_a_baseline_that_is_closer_is_named(ranking):
    """At the longest horizon it makes the finding wrong, before it nearly right."""
    head = list(ranking.forecasts.columns)
    for run, grade in (((1, 2), "right"), ((4, 2), "near"), ((1, 9), "wrong")):
        rows = [["run", s, 0, error, 0, 0] for s, error in zip((1.0, 2.0), run, strict=True)]
        rows += [["AR(5)", s, 0, 3, 0, 0] for s in (1.0, 2.0)]
        elpds = {"run": pointwise([2.0, 3.0]), "AR(5)": pointwise([1.0, 1.0])}
        table = pd.DataFrame(rows, columns=head)
        one = Ranking(compare_elpd(elpds), elpds, table, ("run",), "m", windows=10)
        said = next(f for f in findings(one) if f.sentence.startswith("Forecasts"))
        assert said.grade == grade
        assert ("closer after" in said.sentence) == (grade != "right")
        few = findings(dataclasses.replace(one, windows=9))
        said = next(f for f in few if f.sentence.startswith("Forecasts"))
        assert said.grade == "undefined"


def test_findings_follow_the_stated_criterion():
    noise = np.random.default_rng(0).normal(scale=1, size=20)
    assert judged(noise + 5, 0 * noise)[0].grade == "right"
    assert judged(0 * noise, noise + 5)[0].grade == "wrong"
    assert judged(noise - noise.mean() + 0.1, 0 * noise)[0].grade == "near"
    assert judged(0.1 + 1e-3 * noise, 0 * noise)[0].grade == "near"  # sure, but 2 nats in all
    assert judged([3.0], [1.0])[0].grade == "undefined"
    assert any("rough" in f.sentence for f in judged(noise[:5], 0 * noise[:5]))


def test_frames_that_were_not_observed_are_not_scored(tiny_run, tiny_data):
    heldout = recordings(frames=80, seed=3)
    heldout["position"][0, 40, 1] = np.nan
    found = compare_runs([tiny_run], heldout, draws=32, forecast_draws=20, progress=False)
    assert found.pointwise["steps"].sum() == 80 - 6 - 7  # the windows of 7 frames that hold it
    assert np.isfinite(found.forecasts[["ADE", "FDE"]].to_numpy()).all()


# --- leave-future-out ---------------------------------------------------------------------------


@pytest.mark.parametrize("origins", [1, 2, 3, 5])
def test_blocks_partition_the_future_and_are_never_trained_on(origins):
    """Each frame carries its own number as position; numbers are followed through the cuts."""
    x = np.arange(2 * 101, dtype=float).reshape(2, 101, 1, 1) + np.zeros((1, 1, 2, 2))
    dataset = make_trajectories(x, fps=10, body=BODIES, resolution=0)

    def frames(part):
        return {float(v) for v in part["position"].to_numpy()[..., 0, 0].ravel() if v == v}

    scored, earliest = set(), set()
    for train, block in expanding(dataset, origins):
        assert max(v % 101 for v in frames(train)) < min(v % 101 for v in frames(block))
        assert not scored & frames(block)
        earliest = frames(train) if not scored else earliest
        assert frames(train) == earliest | scored  # training expands over the earlier blocks
        scored |= frames(block)
    assert scored | earliest == frames(dataset)
    assert not scored & earliest
    assert abs(len(scored) - 101) <= 2


@pytest.mark.parametrize("origins", [1, 3])
def test_no_frame_of_what_is_fitted_comes_after_an_origin(origins):
    """Of two scenes of a match with a pause, and one of another match, each on its own axis."""
    dataset = make_trajectories(
        np.random.default_rng(0).normal(size=(4, 300, 1, 2)), fps=10,
        recording=["match", "match", "match", "other"], start=[180, 200, 562, 0],
        length=[299, 250, 290, 100], resolution=0,
    )  # fmt: skip
    for n, (train, block) in enumerate(expanding(dataset, origins)):
        assert set(block["recording"].to_numpy()) == {"match", "other"}
        for name, frames in (
            ("match", [*range(180, 479), *range(562, 852)]),
            ("other", range(100)),
        ):
            parts = [part.isel(trajectory=part["recording"] == name) for part in (train, block)]
            starts = [part["start"].to_numpy() for part in parts]
            ends = [s + part["length"].to_numpy() for s, part in zip(starts, parts, strict=True)]
            # of the second half of the frames, a share for each origin
            edges = [round(len(frames) * (1 + k / origins) / 2) for k in (n, n + 1)]
            assert starts[0].min() == frames[0]
            assert ends[0].max() == frames[edges[0] - 1] + 1
            assert starts[1].min() == frames[edges[0]]
            assert ends[1].max() == frames[edges[1] - 1] + 1


def test_leave_future_out_needs_few_recordings():
    with pytest.raises(ConfigError, match="one to four"):
        expanding(recordings(recordings=6), 2)
    with pytest.raises(ConfigError, match="at least 1"):
        expanding(recordings(), 0)


@pytest.mark.slow
def test_leave_future_out_sums_the_blocks_and_keeps_its_fits(tmp_path):
    dataset, config = recordings(frames=240), debug(steps=20)
    one = leave_future_out(config, dataset, origins=2, out=tmp_path, draws=32, progress=False)
    runs = refits(config, dataset, origins=2, out=tmp_path, progress=False)
    parts = [elpd(run, block, draws=32, progress=False) for run, block in runs]
    assert [block["start"].item() for _, block in runs] == [120, 180]
    assert one["model"].elpd == pytest.approx(sum(part.elpd for part in parts))
    assert one["model"].elpd_i["steps"].sum() == 2 * (60 - 6)
    assert set(one) == {"model", "constant_velocity", "autoregression"}
    before = metrics(tmp_path / "origin_1")
    again = leave_future_out(config, dataset, origins=2, out=tmp_path, draws=32, progress=False)
    assert metrics(tmp_path / "origin_1") == before
    assert again["model"].elpd == pytest.approx(one["model"].elpd)
    with pytest.raises(RunError, match="other options"):
        refits(debug(steps=21), dataset, origins=2, out=tmp_path, progress=False)
    with pytest.raises(RunError, match="before another moment"):
        refits(config, dataset, origins=3, out=tmp_path, progress=False)


# --- the command line ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Two runs of the same file, made by the command line, and the file."""
    path = tmp_path_factory.mktemp("compare")
    table(chase(240)).to_csv(path / "chase.csv", index=False)
    for name, steps in (("one", 20), ("two", 40)):
        words = ["fit", str(path / "chase.csv"), "--fps", "10", "--preset", "debug",
                 "--train.steps", str(steps), "--out", str(path / name)]  # fmt: skip
        assert main(words) == 0
    return path


def test_compare_prints_and_writes(folders, tmp_path, capsys):
    out = tmp_path / "compared"
    runs = [str(folders / "one"), str(folders / "two")]
    words = ["compare", *runs, "--draws", "32", "--out", str(out)]
    assert main(words) == 0
    printed = capsys.readouterr().out
    written = pd.read_csv(out / "compare.csv", index_col="contender")
    assert {"one", "two", "constant velocity"} < set(written.index)
    for name in written.index:
        assert f"  {name} " in printed
    names = {f.name for f in out.iterdir()}
    assert names == {"compare.csv", "compare.png", "forecasts.csv", "forecasts.png",
                     "pointwise.csv"}  # fmt: skip
    assert main(words) == 2
    assert "--overwrite" in capsys.readouterr().err


@pytest.mark.slow
def test_compare_leaves_the_future_out(folders, tmp_path, capsys):
    out = tmp_path / "compared"
    words = ["compare", str(folders / "one"), "--draws", "32", "--out", str(out)]
    assert main([*words, "--leave-future-out", "1"]) == 0
    assert "Leave-future-out" in capsys.readouterr().out
    assert set(pd.read_csv(out / "future.csv")["contender"]) == {
        "one", "constant velocity", "autoregression"
    }  # fmt: skip
    assert (out / "future" / "one" / "origin_1" / "summary.json").is_file()
    assert main([*words, "--overwrite", "--leave-future-out", "1"]) == 0  # its fits are used


def test_compare_on_other_recordings(folders, tmp_path, capsys):
    table(chase(60, seed=8)).to_csv(tmp_path / "new.csv", index=False)
    words = ["compare", str(folders / "one"), "--draws", "32"]
    assert main([*words, "--recordings", str(tmp_path / "new.csv")]) == 0
    assert "one" in capsys.readouterr().out


def test_a_runs_own_recordings_are_known_under_another_name(folders, tmp_path, capsys):
    """Also with other frame numbers: what it was fitted to is not scored as if it were new."""
    own = pd.read_csv(folders / "chase.csv")
    own.assign(frame=own["frame"] + 700).to_csv(tmp_path / "copy.csv", index=False)
    run, copy = str(folders / "one"), str(tmp_path / "copy.csv")
    assert main(["compare", run, "--draws", "32", "--recordings", copy]) == 2
    assert "was fitted to these, under another name" in capsys.readouterr().err
    assert main(["score", run, copy, "--steps", "9", "--out", str(tmp_path / "scores.csv")]) == 0
    said = capsys.readouterr()
    assert "its own recordings under another name; their held-out part is used" in said.err
    assert "of the run's held-out part" in said.out


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["{one}", "{one}"], "given twice"),
        (["{none}"], "no such run folder"),
        (["{one}", "--recordings", "{csv}"], "chase.csv; leave the option out"),
        (["{both}", "--recordings", "{csv}"], "chase.csv; leave the option out"),
        (["{both}", "--recordings", "{csv}", "{new}"], "chase.csv; leave the option out"),
        (["{one}", "--bodies", "a"], "--bodies applies to --recordings"),
        (["{one}", "--leave-future-out", "2"], "give --out"),
        (["{one}", "--draws", "3"], "at least 25"),
        (["{bare}"], "baselines.safetensors: no such file"),
        (["{damaged}"], "best.safetensors"),
    ],
)
def test_compare_refuses_in_one_line(folders, tmp_path, capfd, more, message):
    places = {"one": folders / "one", "none": folders / "none", "csv": folders / "chase.csv"}
    places |= {"new": tmp_path / "new.csv", "both": tmp_path / "both"}
    settings = yaml.safe_load((folders / "one" / "config.yaml").read_text())
    settings["data"]["source"] = [str(places["csv"]), str(tmp_path / "other.csv")]
    shutil.copytree(folders / "one", places["both"])
    (places["both"] / "config.yaml").write_text(yaml.safe_dump(settings))
    for name, file in (("bare", "baselines.safetensors"), ("damaged", "best.safetensors")):
        places[name] = shutil.copytree(folders / "one", tmp_path / name)
        (places[name] / file).unlink()
    (places["damaged"] / "best.safetensors").write_bytes(b"\0" * 100)
    capfd.readouterr()
    assert main(["compare", *(word.format(**places) for word in more)]) == 2
    out, err = capfd.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert message in err
