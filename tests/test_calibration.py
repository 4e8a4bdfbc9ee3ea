"""Calibration and scores against closed forms, brute force and forecasts known to be right."""

import dataclasses
import itertools
import tracemalloc
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import xarray as xr
from helpers import debug, recordings
from scipy.special import ndtr
from scipy.stats import kstest, norm

from pyro_animacy import ConfigError, DataError, RunError, Scale, make_trajectories
from pyro_animacy.criticism.calibration import (
    _motions,
    calibrate,
    coverage,
    crps,
    energy_score,
    one_step,
    pit,
)
from pyro_animacy.criticism.calibration_plots import SHOWN
from pyro_animacy.criticism.calibration_section import _between, _coverage_finding, _paired, section
from pyro_animacy.criticism.forecast_scores import uniformity
from pyro_animacy.criticism.forecasts import (
    displacement_errors,
    forecast_all,
    frames_ahead,
    frames_left,
    rivals,
)
from pyro_animacy.criticism.together import correlation, finding, together
from pyro_animacy.criticism.wording import number
from pyro_animacy.infer.fit import fit
from pyro_animacy.infer.run import Run
from pyro_animacy.infer.score import scoring_windows
from pyro_animacy.nets import normal


@pytest.fixture(scope="module")
def calibration(tiny_run, tiny_data):
    return calibrate(tiny_run, tiny_data, draws=40, horizon=12, progress=False)


def rng(seed=0):
    return np.random.default_rng(seed)


# one step ahead


def test_pit_is_the_share_of_the_mixture_below():
    g = rng()
    mean, scale, x = g.normal(size=(5, 7, 2)), g.uniform(0.5, 2, (5, 7, 2)), g.normal(size=(7, 2))
    by_hand = np.mean([norm(m, s).cdf(x) for m, s in zip(mean, scale, strict=True)], 0)
    np.testing.assert_allclose(pit(mean, scale, x), by_hand, atol=1e-14)
    x[3] = np.nan
    assert np.isnan(pit(mean, scale, x)).sum() == 2


def test_pit_is_uniform_for_the_true_mixture():
    g = rng(1)
    z = g.normal(size=(400, 1000))  # what the forecast averages over; the truth has its own
    x = g.normal(size=1000) + 0.5 * g.normal(size=1000)
    u = pit(z, np.full_like(z, 0.5), x)
    assert kstest(u, "uniform").pvalue > 0.01
    assert uniformity(u).grade() == "right"


@pytest.mark.parametrize(
    ("mean", "scale", "direction"),
    [(0, 0.5, "too narrow"), (0, 2, "too wide"), (0.8, 1, "too high"), (-0.8, 1, "too low")],
)
def test_uniformity_says_what_is_wrong(mean, scale, direction):
    x = rng(2).normal(size=(1, 1000))
    found = uniformity(pit(np.full_like(x, mean), np.full_like(x, scale), x[0]))
    assert found.direction == direction
    assert found.grade() == "wrong"
    assert found.grade(chance=True) == "near"


def test_a_spread_wrong_by_a_quarter_is_the_border_of_right():
    u = (np.arange(100_000) + 0.5) / 100_000
    gaps = [uniformity(norm.cdf(norm.ppf(u) * r)).gap for r in (1.25, 1.5)]
    np.testing.assert_allclose(gaps, [0.053, 0.097], atol=2e-3)


def test_gap_is_the_kolmogorov_smirnov_distance():
    u = rng(3).beta(2, 3, (50, 20))
    found = uniformity(u)
    assert found.gap == pytest.approx(kstest(u.ravel(), "uniform").statistic, abs=1e-12)
    assert uniformity(np.append(u, np.nan)) == found
    assert uniformity(np.full(3, np.nan)).grade() == "undefined"


# further ahead


def test_intervals_of_the_true_distribution_cover_as_often_as_they_say():
    g = rng(4)
    x, y = g.normal(size=(79, 1000, 3, 2, 2)), g.normal(size=(1000, 3, 2, 2))
    found = coverage(x, y, (0.5, 0.8, 0.95))
    assert found.shape == (3, 3, 2)
    for share, level in zip(found, (0.5, 0.8, 0.95), strict=True):
        assert np.abs(share - level).max() < 4 * np.sqrt(level * (1 - level) / 2000)
        # pooled, without bias: a plain quantile of 79 draws would cover 0.93 instead of 0.95
        assert abs(share.mean() - level) < 3 * np.sqrt(level * (1 - level) / 12_000)


def test_coverage_is_that_of_plain_loops_and_skips_what_was_not_observed():
    g = rng(5)
    x, y = g.normal(size=(39, 30, 2, 2, 2)), g.normal(size=(30, 2, 2, 2))
    y[g.random(y.shape) < 0.2] = np.nan
    y[:, 1, 1] = np.nan
    found = coverage(x, y, (0.9,))[0]
    for t, b in itertools.product(range(2), range(2)):
        inside = []
        for n, d in itertools.product(range(30), range(2)):
            ordered = np.sort(x[:, n, t, b, d])  # p (m + 1) = 2: the second from either end
            if np.isfinite(y[n, t, b, d]):
                inside.append(ordered[1] <= y[n, t, b, d] <= ordered[-2])
        assert found[t, b] == pytest.approx(np.mean(inside)) if inside else np.isnan(found[t, b])


def test_crps_is_that_of_all_pairs():
    g = rng(6)
    for _ in range(1000):
        m = int(g.integers(2, 8))
        x, y = g.normal(size=(m, 1)), g.normal(size=1)
        pairs = [abs(a - b) for a, b in itertools.permutations(x[:, 0], 2)]
        expected = np.abs(x[:, 0] - y[0]).mean() - np.mean(pairs) / 2
        assert crps(x, y)[0] == pytest.approx(expected, abs=1e-12)


def test_crps_of_a_normal_is_its_closed_form():
    g = rng(7)
    y = g.normal(scale=2, size=1000)
    x = 0.3 + 1.5 * g.normal(size=(50, 1000))
    z = (y - 0.3) / 1.5  # Gneiting & Raftery 2007, equation 21 for N(mu, sigma^2)
    closed = 1.5 * (z * (2 * norm.cdf(z) - 1) + 2 * norm.pdf(z) - 1 / np.sqrt(np.pi))
    difference = crps(x, y) - closed
    assert abs(difference.mean()) < 3 * difference.std() / np.sqrt(1000)
    assert difference.std() < 0.2


def test_scores_are_least_for_the_true_distribution():
    g = rng(8)
    y = g.normal(size=(1000, 1, 1, 2))
    x = g.normal(size=(50, 1000, 1, 1, 2))
    for score in (crps, energy_score):
        true = score(x, y).mean()
        assert true < min(score(s * x + m, y).mean() for s, m in ((0.5, 0), (2, 0), (1, 0.7)))


def test_energy_score_of_one_coordinate_is_the_crps():
    g = rng(9)
    x, y = g.normal(size=(7, 20, 3, 1, 1)), g.normal(size=(20, 3, 1, 1))
    np.testing.assert_allclose(energy_score(x, y, lags=6), crps(x, y)[..., 0, 0], atol=1e-12)


def test_energy_score_is_that_of_the_pairs_it_says():
    g = rng(10)
    x, y = g.normal(size=(9, 4, 3, 2, 2)), g.normal(size=(4, 3, 2, 2))
    y[0, 0, 1] = np.nan
    y[1, 1] = np.nan
    found = energy_score(x, y, lags=2)
    for n, t in itertools.product(range(4), range(3)):
        seen = np.isfinite(y[n, t])
        far = [np.linalg.norm((x[i, n, t] - y[n, t])[seen]) for i in range(9)]
        apart = [
            np.linalg.norm((x[i, n, t] - x[(i + lag) % 9, n, t])[seen])
            for i in range(9)
            for lag in (1, 2)
        ]
        expected = np.mean(far) - np.mean(apart) / 2 if seen.any() else np.nan
        assert found[n, t] == pytest.approx(expected, nan_ok=True)


def test_energy_score_of_some_pairs_has_the_mean_of_all_pairs():
    g = rng(11)
    x, y = g.normal(size=(20, 1000, 1, 2, 2)), g.normal(size=(1000, 1, 2, 2))
    difference = energy_score(x, y, lags=3) - energy_score(x, y, lags=19)
    assert np.abs(difference).max() > 0
    assert abs(difference.mean()) < 3 * difference.std() / np.sqrt(1000)


def test_displacement_errors_are_those_of_plain_loops():
    g = rng(12)
    m, n, T, B, k = 6, 9, 5, 2, 4
    x, y = g.normal(size=(m, n, T, B, 2)), g.normal(size=(n, T, B, 2))
    y[0, 2, 0, 1] = np.nan
    y[1, :, 1] = np.nan
    y[2, :3, 0] = np.nan
    found = displacement_errors(x, y, k=k)
    for h in range(1, T + 1):
        rows = {name: [] for name in found}
        for i, b in itertools.product(range(n), range(B)):
            seen = [t for t in range(h) if np.isfinite(y[i, t, b]).all()]

            def off(path, t, i=i, b=b):
                return np.hypot(*(path[t, b] - y[i, t, b]))

            if seen:
                rows["ADE"].append(np.mean([off(x[:, i].mean(0), t) for t in seen]))
                each = [np.mean([off(x[d, i], t) for t in seen]) for d in range(k)]
                rows["minADE_k"].append(min(each))
            if h - 1 in seen:
                rows["FDE"].append(off(x[:, i].mean(0), h - 1))
                rows["minFDE_k"].append(min(off(x[d, i], h - 1) for d in range(k)))
        for name, values in rows.items():
            assert found[name][h - 1] == pytest.approx(np.mean(values)), name


def test_displacement_errors_of_what_was_never_recorded_are_nan():
    found = displacement_errors(np.zeros((3, 2, 4, 1, 2)), np.full((2, 4, 1, 2), np.nan), k=3)
    assert all(np.isnan(values).all() for values in found.values())
    with pytest.raises(ConfigError, match="k is 4"):
        displacement_errors(np.zeros((3, 2, 4, 1, 2)), np.zeros((2, 4, 1, 2)), k=4)


@pytest.mark.parametrize("score", [crps, energy_score])
def test_scores_of_one_draw_are_refused_and_nan_is_kept(score):
    x, y = rng(13).normal(size=(4, 3, 2, 1, 2)), np.full((3, 2, 1, 2), np.nan)
    assert np.isnan(score(x, y)).all()
    assert np.isfinite(score(x, np.zeros_like(y))).all()
    assert score(np.zeros_like(x), np.zeros_like(y)).max() == 0
    with pytest.raises(ConfigError, match="at least 2"):
        score(x[:1], y)


def test_chunks_do_not_change_the_figures(monkeypatch):
    g = rng(14)
    x, y = g.normal(size=(30, 11, 4, 2, 2)).astype(np.float32), g.normal(size=(11, 4, 2, 2))
    whole = (
        crps(x, y),
        energy_score(x, y),
        coverage(x, y, (0.5,)),
        *displacement_errors(x, y).values(),
    )
    monkeypatch.setattr("pyro_animacy.criticism.arrays.CHUNK", 1)
    parts = (
        crps(x, y),
        energy_score(x, y),
        coverage(x, y, (0.5,)),
        *displacement_errors(x, y).values(),
    )
    for one, other in zip(whole, parts, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-12)


@pytest.mark.slow
def test_memory_stays_small_beside_a_large_input():
    g = rng(15)
    x = g.random((200, 100, 200, 3, 2), dtype=np.float32)
    y = g.random((100, 200, 3, 2))
    tracemalloc.start()
    crps(x, y), energy_score(x, y, lags=1), coverage(x, y, (0.5, 0.95)), displacement_errors(x, y)
    assert tracemalloc.get_traced_memory()[1] < 200e6
    tracemalloc.stop()


@pytest.mark.parametrize("resolution", [0.01, 0.0])
def test_bodies_at_rest_are_covered_as_often_as_intervals_say(
    tiny_run, tiny_data, monkeypatch, resolution
):
    """Where bodies stay with probability 0.6, and draws of the same law are in single precision."""
    g, names = rng(24), ["recorded", "model", *rivals(tiny_run, tiny_data)]
    given = g.uniform(-50, 50, (300, 2, 2)).round(2)

    def moved(*draws):
        steps = g.normal(size=(*draws, 300, 3, 2, 2))
        return given[:, None] + np.where(g.random(steps.shape) < 0.6, 0, steps)

    dims = ("draw", "trajectory", "time", "body", "space")
    found = {name: xr.DataArray(moved(199).astype(np.float32), dims=dims) for name in names}
    y = given[:, None] + (moved() - given[:, None]).round(2) if resolution else moved()
    found["recorded"] = xr.DataArray(y, dims=dims[1:], coords={
        "trajectory": np.arange(300), "time": [0.1, 0.2, 0.3], "body": ["hunter", "prey"],
        "space": ["x", "y"], "recording": ("trajectory", ["one"] * 300),
        "start": ("trajectory", np.arange(300)), "given": (("trajectory", "body", "space"), given),
        "resolution": ("trajectory", [resolution] * 300),
    })  # fmt: skip
    monkeypatch.setattr("pyro_animacy.criticism.calibration.forecast_all", lambda *_, **__: found)
    made = calibrate(tiny_run, tiny_data, draws=199, horizon=3, progress=False)
    for level, share in made["coverage"].mean(("model", "horizon", "body")).groupby("level"):
        assert abs(share.item() - level) < 4 * np.sqrt(level * (1 - level) / 3600)


# forecasts of runs


def test_all_contenders_forecast_the_same_windows(tiny_run, tiny_data):
    found = forecast_all(tiny_run, tiny_data, horizon=14, draws=5, progress=False)
    assert list(found)[:3] == ["recorded", "model", "constant_velocity"]
    recorded = tiny_data["position"].to_numpy()[0]
    assert found["recorded"].shape == (6, 14, 2, 2)
    for window, start in enumerate(range(0, 120, 20)):  # 6 frames of context and 14 ahead
        np.testing.assert_allclose(found["recorded"][window], recorded[start + 6 : start + 20])
    np.testing.assert_allclose(found["recorded"]["given"], recorded[5:120:20])
    for name in list(found)[1:]:
        assert found[name].dims == ("draw", "trajectory", "time", "body", "space")
        assert found[name].shape == (5, 6, 14, 2, 2)
        assert np.isfinite(found[name].to_numpy()).all()
        np.testing.assert_array_equal(found[name]["time"], np.arange(1, 15) / 10)
        # the first step is near the last frame given, in data units
        first = found[name].isel(time=0).to_numpy() - recorded[5:120:20]
        assert np.abs(first).max() < 2


def test_a_baseline_without_noise_goes_straight_on(tiny_run, tiny_data, monkeypatch):
    monkeypatch.setattr(torch, "randn_like", torch.zeros_like)
    found = forecast_all(tiny_run, tiny_data, horizon=14, draws=2, progress=False)
    x = tiny_data["position"].to_numpy()[0]
    velocity = x[5] - x[4]
    expected = x[5] + np.arange(1, 15)[:, None, None] * velocity
    np.testing.assert_allclose(found["constant_velocity"][0, 0], expected, atol=1e-4)


def test_seeds_repeat_a_forecast_and_leave_torchs_generator_alone(tiny_run, tiny_data):
    state = torch.get_rng_state()
    one, two, other = (
        forecast_all(tiny_run, tiny_data, horizon=5, draws=3, seed=s, progress=False)
        for s in (0, 0, 1)
    )
    assert torch.equal(state, torch.get_rng_state())
    for name in list(one)[1:]:
        assert one[name].equals(two[name])
        assert not one[name].equals(other[name])


def test_windows_without_a_complete_context_are_left_out(tiny_run, tiny_data):
    gappy = tiny_data.copy(deep=True)
    gappy["position"][0, 23, 1] = np.nan
    found = forecast_all(tiny_run, gappy, horizon=14, draws=2, progress=False)
    assert found["recorded"].sizes["trajectory"] == 5
    few = forecast_all(tiny_run, tiny_data, horizon=14, draws=2, most=2, progress=False)
    assert few["recorded"]["start"].values.tolist() == [0, 100]


def test_bad_options_are_named(tiny_run, tiny_data, tmp_path):
    for options, match in (
        ({"context": 1}, "context is 1"),
        ({"horizon": 0}, "horizon is 0"),
        ({"draws": 0}, "draws is 0"),
        ({"most": 0}, "windows is 0"),
    ):
        with pytest.raises(ConfigError, match=match):
            forecast_all(tiny_run, tiny_data, **{"horizon": 5, **options}, progress=False)
    with pytest.raises(ConfigError, match="draws is 38; 95 % intervals need at least 39"):
        calibrate(tiny_run, tiny_data, draws=38, progress=False)
    with pytest.raises(DataError, match="frames observed in full"):
        forecast_all(tiny_run, recordings(frames=6), horizon=5, progress=False)
    bare = Run(tmp_path, tiny_run.model, tiny_run.guide, tiny_run.card, tiny_run.settings, {})
    with pytest.raises(RunError, match="no such file"):
        forecast_all(bare, tiny_data, horizon=5, progress=False)


@pytest.mark.parametrize("best", ["constant_velocity", "ar2"])
def test_the_autoregression_of_best_score_is_the_rival(tiny_run, tiny_data, best):
    """As found where much was missing: AR(5), fitted to nine steps, stood for all of them."""
    scores = {"constant_velocity": -2.0, "ar1": -3.0, "ar2": -2.5, "ar3": -9.0, "ar5": -1e22}
    scores[best] = -1.0
    summary = {"baselines": scores, "best_baseline": best}
    found = (rivals(dataclasses.replace(tiny_run, summary=x), tiny_data) for x in (summary, {}))
    assert [*map(list, found)] == [["constant_velocity", "ar2"], ["constant_velocity", "ar5"]]


def test_calibration_has_every_contender_and_horizon(calibration, tiny_data):
    assert calibration["pit"].dims == ("model", "step", "body", "space")
    assert calibration.sizes["horizon"] == 12
    np.testing.assert_allclose(calibration["horizon"], np.arange(1, 13) / 10)
    assert calibration["pit"].min() >= 0
    assert calibration["pit"].max() <= 1
    assert calibration["independent"].values.tolist() == [11, 11]  # 114 steps at 10 a second
    assert np.isfinite(calibration["crps"]).all()


def test_the_best_baseline_is_calibrated_on_what_it_was_fitted_to(calibration):
    """Gaussian increments with a linear law: AR(k) is nearly the truth, so its PIT is uniform."""
    best = calibration["model"].values[-1]
    for body, space in itertools.product(calibration["body"].values, ("x", "y")):
        u = calibration["pit"].sel(model=best, body=body, space=space).values
        assert uniformity(u).gap < 0.12  # 1.36 / sqrt(114) = 0.127


def test_the_section_can_be_read_alone(calibration):
    found = section(calibration)
    assert found.key == "calibration"
    assert len(found.panels) == 3
    assert all(f.sentence.endswith(".") and "nan" not in f.sentence for f in found.findings)
    assert all(len(row) == len(t.head) for t in found.tables for row in t.rows)


def right(seed=16, windows=60):
    """A calibration whose model is right; its baselines are one too wide, one much worse."""
    g = rng(seed)
    names, ahead = ["model", "constant_velocity", "ar5"], np.arange(1, 11) / 5
    noise = g.normal(size=(windows, 10, 2)) * 0.05
    growth = np.stack([base * ahead[:, None] + noise for base in (1.0, 1.5, 1.1)])
    return xr.Dataset(
        {
            "pit": (("model", "step", "body", "space"), g.random((3, 1000, 2, 2))),
            "pit_drawn": (("draw", "step", "body", "space"), g.random((8, 1000, 2, 2))),
            "coverage": (
                ("model", "level", "horizon", "body"),
                np.broadcast_to(np.array([0.5, 0.8, 0.95])[:, None, None], (3, 3, 10, 2)).copy(),
            ),
            "crps": (("model", "trajectory", "horizon", "body"), growth + noise * 0.1),
            "energy_score": (("model", "trajectory", "horizon"), growth.mean(-1) * 2),
        },
        coords={
            "model": names, "level": [0.5, 0.8, 0.95], "horizon": ahead, "body": ["cat", "mouse"],
            "space": ["x", "y"], "independent": ("body", [300, 300]),
            "group": ("trajectory", np.arange(windows) % 20),
        },
        attrs={
            "units": "m", "draws": 100, "policy_scale": "fixed", "roll_out": "teacher_forced",
            "parts": 1, "latent_size": 4, "trials": min(windows, 20),
        },
    )  # fmt: skip


def test_a_model_that_is_right_is_said_to_be():
    grades = [f.grade for f in section(right()).findings]
    assert grades == ["right"] * 5  # one a score, both baselines in it


@pytest.mark.parametrize(
    ("fps", "times"),
    [
        (0.2, ["5", "10", "20", "40"]),  # below one a second, frames
        (1.5, ["0.667", "1.33", "2", "4", "8"]),
        (15.0001, ["0.533", "1", "2", "4", "8"]),  # a rate that was estimated
    ],
)
def test_the_times_of_the_tables_are_those_of_frames(fps, times):
    """Each once, and what stands below it is of that frame."""
    frames = frames_ahead(SHOWN, fps, 10_000)
    found = right()
    found = found.isel(horizon=np.zeros(frames[-1], int))
    found = found.assign_coords(horizon=np.arange(1, frames[-1] + 1) / fps)
    found["energy_score"] = found["energy_score"] * 0 + found["horizon"] * fps
    shown = section(found)
    for table in shown.tables[1:]:
        assert list(table.head) == ["model", *(f"{t}\u00a0s" for t in times)]
    assert shown.tables[-1].rows[0][1:] == [number(h) for h in frames]
    assert f"up to {times[-1]}\u00a0s," in shown.intro


def test_a_slow_recording_is_forecast_some_frames_ahead(tiny_run, tiny_data):
    slow = dataclasses.replace(tiny_run, card=dataclasses.replace(tiny_run.card, fps=0.2))
    data = tiny_data.assign_coords(time=tiny_data["time"] * 50).assign_attrs(fps=0.2)
    found = calibrate(slow, data, draws=40, most=4, progress=False)
    assert found["horizon"].values.tolist() == [5, 10, 15, 20]


def test_a_small_difference_of_coverage_that_chance_gives_is_called_chance():
    """As found: 90 in place of 95 % in 20 stretches, where the true process had 93."""
    found = right()
    chance = 1.96 * np.sqrt(0.95 * 0.05 / 20)
    for off, said in ((0.9 * chance, "which may be chance"), (1.2 * chance, "overconfident")):
        found["coverage"].loc[{"model": "model"}] = np.array([0.5, 0.8, 0.95 - off])[:, None, None]
        [finding] = [f for f in section(found).findings if "intervals cover" in f.sentence]
        assert ("may be chance" in finding.sentence) == (off < chance)
        assert said in finding.sentence


def test_findings_name_what_is_wrong():
    wrong = right()
    wrong["pit"].loc[{"model": "model", "body": "mouse"}] = rng(17).beta(0.4, 0.4, (1000, 2))
    wrong["coverage"].loc[{"model": "model"}] -= 0.15
    wrong["crps"].loc[{"model": "ar5", "horizon": slice(0, 0.7)}] -= 1.0
    said = {f.sentence: f.grade for f in section(wrong).findings}
    text = " ".join(said).replace("\u00a0", " ")
    assert "the spread is right for cat" in text
    assert "forecasts of mouse are too narrow" in text
    assert "95 % intervals cover 80 % of positions 2 s ahead" in text
    assert "overconfident" in text
    assert "AR(5) is better between 0.2 and 0.6 s ahead" in text
    assert list(said.values()).count("wrong") == 2


def normal_scores(correlation, steps=20_000, seed=3):
    """Shares below of two bodies on two axes, whose normal scores have this correlation."""
    mean, covariance = np.zeros(2), [[1, correlation], [correlation, 1]]
    return ndtr(rng(seed).multivariate_normal(mean, covariance, (steps, 2))).swapaxes(1, 2)


@pytest.mark.parametrize(
    ("recorded", "drawn", "independent", "grade", "said"),
    [
        (0.4, 0.4, 10_000, "right", "as much as the model says"),
        (0.42, 0.0, 10_000, "wrong", "otherwise than the model says"),
        (
            -0.42,
            0.42,
            10_000,
            "wrong",
            "correlated by −0.42, in steps drawn from the model by +0.42",
        ),
        (0.2, 0.0, 10_000, "near", "leaves open is correlated by +0.20"),
        (0.2, 0.0, 30, "right", "may be chance"),
        (0.2, 0.0, 8, "near", "may be chance"),  # of fewer steps no better is said
        (0.42, 0.0, 8, "near", "may be chance"),
    ],
)
def test_bodies_that_move_together(recorded, drawn, independent, grade, said):
    """Of the correlation that a Gaussian copula has; all its other shares are uniform."""
    of = right().isel(step=np.zeros(20_000, int)).copy(deep=True)
    of = of.assign_coords(independent=("body", [independent] * 2))
    of["pit"].loc[{"model": "model"}] = normal_scores(recorded)
    of["pit_drawn"][:] = normal_scores(drawn, seed=4)
    (pair,) = together(of)
    assert pair.bodies == ("cat", "mouse")
    assert (pair.recorded, pair.drawn) == pytest.approx((recorded, drawn), abs=0.015)
    assert pair.error == pytest.approx((2 * independent) ** -0.5, rel=0.1)
    for attrs, mend in (
        ({"parts": 1}, "--model.latent_size"), ({"parts": 2}, "--model.structure joint"),
        ({"parts": 1, "latent_size": 0}, "--model control_vae"),
    ):  # fmt: skip
        findings = section(of.assign_attrs(attrs)).findings
        (found,) = (f for f in findings if "Within a step" in f.sentence)
        assert found.grade == grade
        assert said in found.sentence
        assert bool(found.attempt) == (grade != "right" and "chance" not in said)
        assert mend in found.attempt or not found.attempt


def several(bodies, independent, steps=2000):
    """Bodies that are as the model says, each of so many independent steps; as of `calibrate`."""
    g, names = rng(5), [f"b{i}" for i in range(bodies)]
    shape = (steps, bodies, 2)
    return xr.Dataset(
        {
            "pit": (("model", "step", "body", "space"), g.random((1, *shape))),
            "pit_drawn": (("draw", "step", "body", "space"), g.random((8, *shape))),
        },
        coords={"model": ["model"], "body": names, "independent": ("body", independent)},
    )


def test_the_pair_that_is_beyond_chance_leads():
    """Not the one that differs most, of whose steps few are independent, as a ball seen briefly."""
    of = several(3, [1000, 1000, 12])
    covariance = [[1, 0.35, 0.45], [0.35, 1, 0], [0.45, 0, 1]]
    scores = rng(6).multivariate_normal(np.zeros(3), covariance, (2000, 2))
    of["pit"][0] = ndtr(scores).swapaxes(1, 2)
    pairs = together(of)
    assert [pair.bodies for pair in pairs[:2]] == [("b0", "b1"), ("b0", "b2")]
    assert pairs[0].off < pairs[1].off
    assert finding(pairs, "mend").attempt == "mend"


@pytest.mark.parametrize("seed", range(8))
def test_two_bodies_that_were_seldom_there_together(seed):
    """Three steps of both, of a thousand of each, are no sign of anything."""
    of = several(2, [50, 50])
    of["pit"][:] = rng(seed).random(of["pit"].shape)
    absent = np.ones((2000, 2), bool)
    absent[:1001, 0], absent[998:, 1] = False, False
    of = of.where(~xr.DataArray(absent, dims=("step", "body")))
    assert finding(together(of), "mend").grade in ("near", "right", "undefined")
    assert "mend" not in (finding(together(of), "mend").attempt or "")


def test_many_bodies_that_are_right_are_not_called_wrong():
    """The largest of 253 correlations is large by chance; the model's own is told from nothing."""
    of = several(23, [60] * 23, steps=240)
    pairs = together(of)
    assert len(pairs) == 253
    assert max(abs(pair.drawn) for pair in pairs) < 5 * (8 * 240 * 2) ** -0.5
    assert finding(pairs, "mend").grade == "right"
    assert "the pair that differs most" in finding(pairs, "mend").sentence
    assert finding(together(of.isel(body=[0])), "mend") is None
    of["pit"][:] = np.nan
    assert finding(together(of), "mend").grade == "undefined"


@pytest.mark.parametrize("structure", ["joint", "set"])
def test_steps_drawn_from_the_model_are_calibrated(tiny_run, tiny_data, tmp_path, structure):
    """And of a set independent of each other."""
    run = tiny_run
    if structure == "set":
        of_set = debug({"structure": "set"}, steps=20)
        run = fit(tiny_data, of_set, out=tmp_path / "run", progress=False)
    found = calibrate(run, tiny_data, draws=200, most=4, progress=False)
    assert found["pit_drawn"].dims == ("draw", "step", "body", "space")
    for share in np.moveaxis(found["pit_drawn"].values, 1, -1).reshape(8, 4, -1)[0]:
        assert kstest(share, "uniform").pvalue > 0.001
    (pair,) = together(found)
    if structure == "set":
        assert abs(pair.drawn) < 4 * found["pit_drawn"][..., 0, 0].size ** -0.5


def test_draws_may_be_in_an_order(tiny_run, tiny_data, monkeypatch):
    """As those of a particle filter are: a step is drawn from any, of all bodies at once."""

    def ordered(guide, windows, which, draws, *_, **__):
        loc = torch.linspace(-3, 3, draws)[:, None, None, None].expand(draws, 1, len(which), 4)
        shown = torch.zeros(1, len(which), 4)
        yield which, SimpleNamespace(policy=normal(loc, 0.1), shown=shown, seen=shown == 0)

    monkeypatch.setattr("pyro_animacy.criticism.calibration.window_steps", ordered)
    _, drawn, _ = one_step(tiny_run, tiny_data, 100, 0, progress=False)
    assert kstest(drawn[..., 0, 0].ravel(), "uniform").pvalue > 0.001
    assert correlation(drawn[0, :, 0], drawn[0, :, 1]) > 0.9  # what one z moves, it moves together


@pytest.mark.parametrize(
    ("power", "independent", "grade", "chance"),
    [
        (1.2, 100, "near", True),  # a gap of 0.08, as the figure's grey band has it
        (1.2, 10_000, "near", False),
        (2.0, 5, "near", True),  # of 0.25
        (2.0, 300, "wrong", False),
    ],
)
def test_a_curve_in_the_band_of_the_figure_may_be_chance(power, independent, grade, chance):
    low = right().assign_coords(independent=("body", [independent] * 2))
    low["pit"].loc[{"model": "model", "body": "mouse"}] **= 1 / power
    found = next(f for f in section(low).findings if "mouse are too low" in f.sentence)
    assert found.grade == grade
    assert found.sentence.endswith(", which may be chance.") == chance
    said = {row[2] for row in section(low).tables[0].rows if row[0].startswith("mouse")}
    assert said == {"may be chance" if chance else "too low"}


@pytest.mark.parametrize("independent", [1, 2])
def test_one_or_two_steps_are_never_beyond_chance(independent):
    low = right().isel(step=slice(0, 12)).assign_coords(independent=("body", [independent] * 2))
    low["pit"][:] = rng(3).beta(4, 4, low["pit"].shape)
    grades = {f.grade for f in section(low).findings if "one step" in f.sentence.lower()}
    said = [f for f in section(low).findings if f.grade == "wrong" and "forecasts" in f.sentence]
    assert "wrong" not in grades
    assert not [f for f in said if "too wide" in f.sentence]


def test_a_gap_is_said_to_as_many_digits_as_its_grade_needs():
    """One of 0.052 is not right, so it is not said to be 0.05 where 0.05 is good."""
    low = right()
    u = ((np.arange(1000) + 0.5) / 1000) ** (1 / 1.15)
    low["pit"].loc[{"model": "model", "body": "mouse"}] = u[:, None]
    found = next(f for f in section(low).findings if "mouse" in f.sentence and f.grade == "near")
    assert "differs by up to 0.052 from" in found.sentence


def test_what_to_try_is_not_what_the_run_has():
    wrong = right()
    wrong["pit"].loc[{"model": "model"}] = rng(17).beta(0.4, 0.4, (1000, 2, 2))
    wrong["coverage"].loc[{"model": "model"}] -= 0.3
    said = " ".join(f.attempt for f in section(wrong).findings)
    assert "--model.policy_scale null" in said
    assert "--model.roll_out closed_loop" in said
    has = wrong.assign_attrs(policy_scale="learned", roll_out="closed_loop")
    said = " ".join(f.attempt for f in section(has).findings)
    assert "policy_scale" not in said
    assert "roll_out" not in said
    assert "--model.policy.hidden" in said


def test_one_body_is_not_said_to_be_the_worst_of_all():
    wrong = right()
    wrong["coverage"].loc[{"model": "model"}] = 1.0
    wrong["coverage"].loc[{"model": "model", "level": 0.5, "body": "mouse"}] = 0.9
    both = next(f.sentence for f in section(wrong).findings if "intervals cover" in f.sentence)
    assert "too cautious, most for cat (100\u00a0% inside 50\u00a0% intervals)" in both
    alone = section(wrong.isel(body=[0])).findings
    alone = next(f.sentence for f in alone if "intervals cover" in f.sentence)
    assert "too cautious" in alone
    assert "most for" not in alone


def test_the_grade_of_a_score_allows_for_chance():
    few = right(windows=2).assign_coords(group=("trajectory", [0, 0]))
    said = [f for f in section(few).findings if "score" in f.sentence]
    assert {f.grade for f in said} == {"undefined"}
    assert "1 stretch of motion" in said[0].sentence


def test_the_coverage_of_one_stretch_of_motion_is_not_graded():
    """Of exact forecasts of one window 12 % were called wrong, as one miss of two was enough."""
    alone = right(windows=1).isel(body=[0])
    g, last, found = rng(23), {"model": "model", "horizon": 2.0}, []
    for _ in range(100):
        x, y = g.normal(size=(199, 1, 1, 1, 2)), g.normal(size=(1, 1, 1, 2))
        alone["coverage"].loc[last] = coverage(x, y, (0.5, 0.8, 0.95))[:, 0]
        found.append(_coverage_finding(alone))
    assert {f.grade for f in found} == {"undefined"}
    assert "1 stretch of motion cannot tell" in found[0].sentence


def test_what_was_not_recorded_is_said_not_to_be():
    blank = right()
    for name in ("pit", "coverage", "crps", "energy_score"):
        blank[name][:] = np.nan
    found = section(blank)
    assert {f.grade for f in found.findings} == {"undefined"}


def test_one_short_window_is_enough_for_a_section(tiny_run):
    found = calibrate(tiny_run, recordings(frames=9, seed=3), draws=39, progress=False)
    assert found.sizes["horizon"] == 3
    assert {f.grade for f in section(found).findings} >= {"undefined"}


def test_bodies_at_rest_or_missing_are_no_error(tiny_run, tiny_data):
    still = tiny_data.copy(deep=True)
    still["position"][:] = still["position"][:, :1].values
    still["position"][0, 60:, 1] = np.nan
    found = calibrate(tiny_run, still, draws=39, horizon=10, most=5, progress=False)
    assert len(section(found).panels) == 3
    assert np.isfinite(found["crps"].sel(body="hunter")).any()


def test_a_step_that_scenes_share_counts_once_and_one_at_rest_at_every_moment():
    """Two scenes of one match, one of them twice: of the same ball, and of two players at rest."""
    x = rng(22).normal(size=(2, 61, 2, 2)).cumsum(1)
    x[1, :, 1] = x[0, :, 1]
    x[:, :, 0] = [[[5.0, 5.0]], [[6.0, 5.0]]]
    match = make_trajectories(x, fps=10, recording=["match"] * 2, resolution=0.01)
    scenes = match.isel(trajectory=[0, 1, 1])
    windows = scoring_windows(scenes, Scale.of(scenes), 1)
    assert _motions(scenes, windows).tolist() == [2 * 55, 55]  # six frames come before a step


def test_figures_are_pictures(calibration):
    for panel in section(calibration).panels:
        assert panel.image.source.startswith("data:image/png;base64,")
        assert panel.image.alt


def test_horizons_are_named_only_where_they_are_meant():
    ahead, at = np.arange(1, 11) / 5, np.zeros((3, 10), bool)
    at[0, 2:5], at[1, [0, 9]], at[2, ::3] = True, True, True
    assert [_between(ahead, one) for one in at] == [
        "between 0.6 and 1 s ahead",
        "0.2 s and 2 s ahead",
        "at 4 of 10 horizons",
    ]


def test_groups_in_which_nothing_was_recorded_add_no_certainty():
    """The 95 % interval of the mean of 3 groups among 20 leaves out the truth 5 times in 100."""
    g = rng(20)
    values = np.full((20, 1000), np.nan)
    values[:3] = g.normal(size=(3, 1000))
    group = {"group": ("trajectory", np.arange(20))}
    mean, error, groups = _paired(
        xr.DataArray(values, dims=("trajectory", "horizon"), coords=group)
    )
    missed = (np.abs(mean) > error).mean()
    assert abs(missed - 0.05) < 3 * np.sqrt(0.05 * 0.95 / 1000)
    assert groups == 3
    values[1:] = np.nan
    alone = xr.DataArray(values, dims=("trajectory", "horizon"), coords=group)
    assert np.isnan(_paired(alone)[1]).all()


def test_one_long_trajectory_does_not_leave_the_others_out(tiny_run):
    """The horizon is one that trajectories with half of all frames have."""
    x = np.full((21, 40, 2, 2), np.nan)
    for row, length in zip(x, [14] * 20 + [40], strict=True):
        row[:length] = np.cumsum(rng(21).normal(size=(length, 2, 2)), 0)
    dataset = make_trajectories(x, fps=10, body=["hunter", "prey"], units="m", resolution=0.01)
    assert frames_left(dataset, 6) == 8
    assert frames_left(dataset.isel(trajectory=[20]), 6) == 34
    found = calibrate(tiny_run, dataset, draws=39, progress=False)
    assert found.sizes["horizon"] == 8
    assert found.sizes["trajectory"] >= 21
