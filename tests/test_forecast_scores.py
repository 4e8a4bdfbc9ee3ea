"""Scores of forecasts take lists, and refuse by name what does not fit or cannot be right."""

import numpy as np
import pytest
from scipy import stats

from pyro_animacy import ConfigError, DataError
from pyro_animacy.criticism.forecast_scores import (
    coverage,
    crps,
    ecdf_difference,
    energy_score,
    pit,
    uniformity,
)

DRAWS = np.random.default_rng(0).normal(size=(39, 5, 4, 3, 2))
RECORDED = np.random.default_rng(1).normal(size=(5, 4, 3, 2))
SCORES = {
    "coverage": lambda x, y: coverage(x, y, [0.5, 0.95]),
    "crps": crps,
    "energy_score": energy_score,
    "pit": lambda x, y: pit(x, np.ones(np.shape(x)), y),
}


@pytest.mark.parametrize("name", SCORES)
def test_lists_score_as_arrays_do(name):
    score = SCORES[name]
    expected = score(DRAWS, RECORDED)
    assert np.isfinite(expected).all()
    np.testing.assert_array_equal(score(DRAWS.tolist(), RECORDED.tolist()), expected)
    whole = np.rint(10 * DRAWS), np.rint(10 * RECORDED)
    np.testing.assert_array_equal(score(*(x.astype(int) for x in whole)), score(*whole))


def test_small_lists_score_as_by_hand():
    assert crps([[1], [3]], [2]) == pytest.approx([1 - 2 / 2])
    far, apart = np.mean([5, 0]), 5
    assert energy_score([[[[[3, 4]]]], [[[[0, 0]]]]], [[[[0, 0]]]]) == far - apart / 2
    assert pit([0, 1], [1, 2], 1) == pytest.approx((stats.norm.cdf(1) + 0.5) / 2)
    assert coverage([[[[[x]]]] for x in range(3)], [[[[1]]]], 0.5) == 1
    assert uniformity([0.5]).gap == 0.5
    assert ecdf_difference([0.25])[24] == 0.75


@pytest.mark.parametrize("name", SCORES)
@pytest.mark.parametrize(
    ("draws", "recorded"),
    [
        (DRAWS, RECORDED[:4]),
        (DRAWS, RECORDED[:, :3]),
        (DRAWS, RECORDED[..., :1]),  # would broadcast
        (DRAWS[:, :1], RECORDED),  # likewise
        (DRAWS[0], RECORDED),
        (DRAWS[:0], RECORDED),
        (RECORDED, DRAWS),
        (1.0, RECORDED),
    ],
)
def test_shapes_that_do_not_fit_are_refused_by_name(name, draws, recorded):
    with pytest.raises(DataError, match=r"shapes do not fit: .* and recorded"):
        SCORES[name](draws, recorded)


@pytest.mark.parametrize("name", ["coverage", "energy_score"])
def test_scores_of_scenes_need_their_dimensions(name):
    with pytest.raises(DataError, match=r"expected \(trajectory, time, body, space\) recorded"):
        SCORES[name](DRAWS[..., 0], RECORDED[..., 0])


@pytest.mark.parametrize("name", SCORES)
@pytest.mark.parametrize("wrong", [["a"], [None], [[1.0, 2.0], [3.0]]])
def test_what_is_no_number_is_refused_by_name(name, wrong):
    with pytest.raises(DataError, match=r"recorded (holds values of type|is ragged)"):
        SCORES[name](DRAWS, wrong)


def test_a_scale_must_fit_and_not_be_negative():
    with pytest.raises(DataError, match=r"mean \(3,\), scale \(2,\)"):
        pit([0, 0, 0], [1, 1], 0)
    with pytest.raises(DataError, match="scale has -1"):
        pit([0, 0], [1, -1], 0)
    assert np.isnan(pit([0, 0], [1, np.nan], 0))


@pytest.mark.parametrize(("level", "fewest"), [(0.5, 3), (0.8, 9), (0.9, 19), (0.95, 39)])
def test_intervals_need_the_draws_to_be_right(level, fewest):
    """With the fewest, the interval ends at the least and the greatest draw and is right.

    Of m draws and what was recorded, all alike, the latter is neither the least nor the greatest
    with probability (m - 1) / (m + 1).
    """
    assert (fewest - 1) / (fewest + 1) == pytest.approx(level)
    g = np.random.default_rng(2)
    x, y = g.normal(size=(fewest, 1000, 1, 1, 1)), g.normal(size=(1000, 1, 1, 1))
    share = coverage(x, y, [level]).item()
    assert share == ((x.min(0) <= y) & (y <= x.max(0))).mean()
    assert abs(share - level) < 3.5 * np.sqrt(level * (1 - level) / 1000)
    with pytest.raises(ConfigError, match=f"draws is {fewest - 1}; .* need at least {fewest}"):
        coverage(x[1:], y, [0.1, level])


@pytest.mark.parametrize("levels", [[], [0.0], [0.5, 1.0], [95], [np.nan], [[0.5]]])
def test_levels_that_are_none_are_refused(levels):
    with pytest.raises(ConfigError, match="levels is"):
        coverage(DRAWS, RECORDED, levels)


def test_an_energy_score_of_no_pairs_is_refused():
    with pytest.raises(ConfigError, match="lags is 0"):
        energy_score(DRAWS, RECORDED, lags=0)


@pytest.mark.parametrize("values", [[0.5, 1.5], [-0.1], [np.nan, 3]])
def test_only_shares_can_be_uniform(values):
    with pytest.raises(DataError, match="expected shares, from 0 to 1"):
        uniformity(values)
