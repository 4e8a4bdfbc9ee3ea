"""Area under the ROC curve: pairs counted by hand, closed forms, and coverage of its interval."""

import math

import numpy as np
import pytest
from scipy import stats

from pyro_animacy import ConfigError, DataError
from pyro_animacy.criticism.discrimination import auc, auc_interval

RNG = np.random.default_rng


def test_auc_is_the_share_of_pairs_in_order():
    rng = RNG(0)
    high, low = rng.integers(0, 5, 30), rng.integers(0, 4, 20)  # with ties
    pairs = (high[:, None] > low) + 0.5 * (high[:, None] == low)
    assert auc(high, low) == pytest.approx(pairs.mean(), abs=1e-12)
    assert auc(low, high) == pytest.approx(1 - pairs.mean(), abs=1e-12)


def test_scores_that_never_overlap_are_told_apart_perfectly():
    assert auc([3, 4], [1, 2]) == 1
    assert auc([1, 2], [3, 4]) == 0
    assert auc([1, 1], [1, 1]) == 0.5


def test_auc_of_one_distribution_is_a_half():
    rng = RNG(1)
    # its standard deviation is sqrt((n + m + 1) / (12 n m))
    error = math.sqrt(2001 / 12e6)
    assert auc(rng.normal(size=1000), rng.normal(size=1000)) == pytest.approx(0.5, abs=3.5 * error)


@pytest.mark.parametrize(("shift", "spread"), [(0.5, 1.0), (1.0, 2.0), (-1.0, 0.5)])
def test_auc_of_two_gaussians_has_a_closed_form(shift, spread):
    rng = RNG(2)
    truth = stats.norm.cdf(shift / math.hypot(1, spread))
    found = auc(rng.normal(shift, spread, 1000), rng.normal(size=1000))
    assert found == pytest.approx(truth, abs=3.5 * 0.5 / math.sqrt(1000))


def test_auc_does_not_depend_on_the_scale_of_the_scores():
    rng = RNG(3)
    a, b = rng.normal(1, 1, 50), rng.normal(size=60)
    assert auc(np.exp(a), np.exp(b)) == auc(a, b)


def test_the_interval_covers_the_truth():
    rng, truth = RNG(4), stats.norm.cdf(1 / math.sqrt(2))
    found = [
        auc_interval(rng.normal(1, 1, 40), rng.normal(size=40), resamples=60) for _ in range(30)
    ]
    covered = np.mean([one.low <= truth <= one.high for one in found])
    assert covered > 0.95 - 3.5 * math.sqrt(0.95 * 0.05 / 30)
    spread = np.std([one.value for one in found])
    width = np.mean([one.high - one.low for one in found])
    assert width == pytest.approx(2 * 1.96 * spread, rel=0.45)


def test_the_interval_says_whether_chance_is_ruled_out():
    rng = RNG(5)
    for shift in (0, 2):
        found = auc_interval(rng.normal(shift, 1, 50), rng.normal(size=50), resamples=200)
        assert found.at_chance == (shift == 0)


def test_the_interval_is_repeatable_and_leaves_the_global_generator_alone():
    rng = RNG(6)
    a, b = rng.normal(1, 1, 20), rng.normal(size=20)
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    found = [auc_interval(a, b, resamples=100, seed=seed) for seed in (1, 1, 2)]
    assert found[0] == found[1] != found[2]
    np.testing.assert_array_equal(np.random.get_state()[1], before)  # noqa: NPY002


def test_scores_that_are_not_defined_are_left_out():
    found = auc_interval([1, 2, np.nan], [0, np.nan, 1.5, np.nan], resamples=50)
    assert found.value == auc([1, 2], [0, 1.5])
    assert (found.positives, found.negatives) == (2, 2)


def test_one_score_of_a_kind_has_no_interval():
    found = auc_interval([1.0], [0.0, 2.0])
    assert found.value == 0.5
    assert np.isnan([found.low, found.high]).all()
    assert found.at_chance


def test_chance_is_ruled_out_by_an_interval_only():
    """Of two scores either order is as likely; the area is 1 or 0 all the same."""
    assert auc_interval([0.2], [0.1]).at_chance
    assert auc_interval([0.1], [0.2]).at_chance


@pytest.mark.parametrize("scores", [[], [np.nan]])
def test_no_score_at_all_is_an_error(scores):
    with pytest.raises(DataError, match="no finite score"):
        auc(scores, [1.0])


def test_all_scores_alike_are_at_chance():
    found = auc_interval([1.0] * 5, [1.0] * 5, resamples=50)
    assert (found.value, found.low, found.high) == (0.5, 0.5, 0.5)
    assert found.at_chance


@pytest.mark.parametrize(("first", "second"), [([1, 2], [1]), ([1, np.nan, 3], [1, 3]), ([1], [])])
def test_pairs_must_be_as_many(first, second):
    said = f"{len(first)} positive and {len(second)} negative scores; paired"
    with pytest.raises(DataError, match=said):
        auc_interval(first, second, paired=True)


@pytest.mark.parametrize("scores", ["high", ["a", "b"], [[1, 2], [3]], [None]])
def test_what_is_no_score_is_refused(scores):
    for found in (auc, auc_interval):
        with pytest.raises(DataError, match=r"a score (holds|is ragged)"):
            found(scores, [1.0])


def test_no_resamples_give_no_interval():
    with pytest.raises(ConfigError, match="resamples is 0"):
        auc_interval([1, 2], [0, 1], resamples=0)
