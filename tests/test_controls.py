"""Control stimuli: inert twins obey physics, yoked bodies come from elsewhere, the rest stays."""

import math

import numpy as np
import pytest
from scipy import stats

from pyro_animacy import DataError, make_trajectories
from pyro_animacy.data.controls import inert_twins, yoked
from pyro_animacy.models.inertial import fit_inertia

FPS = 10.0
BODIES = ["hunter", "prey"]


def walks(size=5, frames=40, seed=0, resolution=0.0, **options):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(size, frames, 2, 2)).cumsum(1)
    return make_trajectories(x, fps=FPS, body=BODIES, resolution=resolution, **options)


def of(dataset, body):
    return dataset["position"].sel(body=body).to_numpy()


def path_length(x):
    return np.nansum(np.linalg.norm(np.diff(x, axis=1), axis=-1), axis=1)


def roomy(frames=40, size=5, span=1e5, seed=0):
    """Walks, and one long straight run that moves the walls far away from the others."""
    walked = walks(size, frames, seed)["position"].to_numpy()
    run = np.linspace(-span, span, frames)[:, None, None] * np.ones((2, 2))
    x = np.concatenate([walked, run[None]])
    return make_trajectories(x, fps=FPS, body=BODIES, resolution=0.0)


@pytest.mark.parametrize("damping", [0.5, 0.8, 1.0])
def test_a_twin_starts_there_and_is_as_fast_on_the_whole(damping):
    data = roomy()
    twins = inert_twins(data, ["prey"], damping=damping)
    before, after = of(data, "prey")[:5], of(twins, "prey")[:5]
    np.testing.assert_allclose(after[:, 0], before[:, 0], atol=1e-9)
    np.testing.assert_allclose(path_length(after), path_length(before), rtol=1e-9)
    np.testing.assert_array_equal(of(twins, "hunter"), of(data, "hunter"))


@pytest.mark.parametrize("damping", [0.5, 0.8, 1.0])
def test_a_twin_keeps_its_heading_and_loses_speed_as_damping_says(damping):
    a = np.diff(of(inert_twins(roomy(), ["prey"], damping=damping), "prey")[:5], axis=1)
    np.testing.assert_allclose(a[:, 1:], damping ** (1 / FPS) * a[:, :-1], rtol=1e-6)


@pytest.mark.parametrize("damping", [0.3, 0.8])
def test_the_inertial_fit_finds_the_damping_of_the_twins(damping):
    twins = inert_twins(roomy(), ["prey"], damping=damping)
    found = fit_inertia(twins["position"].to_numpy()[:, :, 1:], 1e-9)
    np.testing.assert_allclose(found.damping[:5], damping ** (1 / FPS), atol=1e-4)


def test_twins_stay_where_their_body_was():
    data = walks(20)
    twins = inert_twins(data, BODIES, damping=1.0)
    for body in BODIES:
        before, after = of(data, body), of(twins, body)
        assert (after >= before.min((0, 1)) - 1e-9).all()
        assert (after <= before.max((0, 1)) + 1e-9).all()
        assert not np.isclose(after[:, 1:], before[:, 1:]).any()


def test_walls_reflect_without_loss():
    """At constant speed, the displacements along an axis differ in sign only, off the walls."""
    a = np.diff(of(inert_twins(walks(20), ["prey"], damping=1.0), "prey"), axis=1)
    speed = np.median(np.abs(a), axis=1, keepdims=True)
    at_wall = ~np.isclose(np.abs(a), speed)
    assert (np.abs(a)[at_wall] < np.broadcast_to(speed, a.shape)[at_wall]).all()
    assert at_wall.mean() < 0.2
    assert (np.sign(a).min(1) < np.sign(a).max(1)).any()


def test_headings_are_uniform():
    x = np.zeros((1000, 3, 1, 2))
    x[:, 1, 0] = 1
    x[0, 2], x[1, 2] = 1e3, -1e3  # far walls
    twins = inert_twins(make_trajectories(x, fps=FPS, resolution=0.0), ["0"])
    a = np.diff(twins["position"].to_numpy()[2:, :, 0], axis=1)[:, 0]
    angle = np.arctan2(a[:, 1], a[:, 0]) / (2 * np.pi) % 1
    assert stats.kstest(angle, "uniform").pvalue > 0.01


def test_a_twin_is_unobserved_where_its_body_was():
    data = walks()
    x = data["position"].to_numpy().copy()
    x[0, :7, 1] = np.nan
    x[1, 10:13, 1] = np.nan
    x[2, 20, 1, 0] = np.nan  # one coordinate
    x[3, :, 1] = np.nan
    x[4, :5, 1, 1] = np.nan
    twins = inert_twins(data.assign(position=(data["position"].dims, x)), ["prey"])
    after = twins["position"].to_numpy()
    np.testing.assert_array_equal(np.isnan(after), np.isnan(x))
    np.testing.assert_allclose(after[0, 7, 1], x[0, 7, 1], rtol=1e-9)
    assert after[2, 20, 1, 1] != x[2, 20, 1, 1]


def test_a_twin_seen_late_in_a_long_recording_moves():
    x = np.random.default_rng(0).normal(size=(1, 9000, 2, 2)).cumsum(1)
    x[0, :8900, 1] = np.nan
    data = make_trajectories(x, fps=FPS, body=BODIES, resolution=0.0)
    twin = of(inert_twins(data, ["prey"], damping=0.5), "prey")[:, 8900:]
    assert path_length(twin) > 0.5 * path_length(x[:, 8900:, 1])


@pytest.mark.parametrize("offset", [0.0, 0.37])
def test_twins_are_recorded_on_the_grid_of_their_body(offset):
    data = walks(resolution=0.25)
    x = np.rint(data["position"].to_numpy() / 0.25) * 0.25 + offset
    data = data.assign(position=(data["position"].dims, x))
    twin, before = of(inert_twins(data, ["prey"]), "prey"), of(data, "prey")
    np.testing.assert_array_equal(twin[:, 0], before[:, 0])
    steps = (twin - offset) / 0.25
    np.testing.assert_allclose(steps, np.rint(steps), atol=1e-9)
    assert (twin >= before.min((0, 1)) - 1e-9).all()
    assert (twin <= before.max((0, 1)) + 1e-9).all()


def test_directions_depend_on_the_seed_and_the_trajectory_alone():
    data = roomy()
    one = of(inert_twins(data, ["prey"], seed=3), "prey")
    np.testing.assert_array_equal(one, of(inert_twins(data, ["prey"], seed=3), "prey"))
    assert not np.isclose(one[:, 1], of(inert_twins(data, ["prey"], seed=4), "prey")[:, 1]).any()
    both = of(inert_twins(data, BODIES, seed=3), "prey")
    np.testing.assert_array_equal(one, both)
    fewer = inert_twins(
        data.isel(trajectory=[0, 1, 5]).isel(trajectory=[0, 1, 2]), ["prey"], seed=3
    )
    np.testing.assert_allclose(of(fewer, "prey")[:2], one[:2], rtol=1e-9)


def test_a_still_body_has_a_still_twin():
    x = walks()["position"].to_numpy().copy()
    x[:, :, 1] = [3.0, 4.0]
    data = make_trajectories(x, fps=FPS, body=BODIES, resolution=0.0)
    np.testing.assert_array_equal(of(inert_twins(data, ["prey"]), "prey"), x[:, :, 1])


def test_the_recordings_that_were_given_stay_as_they_are():
    data = walks(label=["a"] * 5)
    before = data.copy(deep=True)
    inert_twins(data, ["prey"])
    yoked(data, "prey")
    assert data.identical(before)


@pytest.mark.parametrize("damping", [0.0, 1.5, -1, math.nan])
def test_a_damping_that_is_no_share_is_an_error(damping):
    with pytest.raises(DataError, match="damping"):
        inert_twins(walks(), ["prey"], damping=damping)


def test_a_body_is_one_name_or_several_and_numbers_are_names():
    data = walks()
    one = inert_twins(data, ["prey"])
    for name in ("prey", ("prey",), ["prey", "prey"], np.array(["prey"]), iter(["prey"])):
        assert inert_twins(data, name).identical(one)
    numbered = data.assign_coords(body=["0", "1"])
    for name in (1, [1], "1", np.int64(1), np.array([1]), range(1, 2)):
        assert inert_twins(numbered, name).identical(inert_twins(numbered, ["1"]))
    assert yoked(numbered, 1).identical(yoked(numbered, "1"))
    assert inert_twins(data, []).identical(data)


def test_a_body_that_is_not_there_is_named():
    with pytest.raises(DataError, match=r"'ball'.*hunter, prey"):
        inert_twins(walks(), ["prey", "ball"])
    for control in (inert_twins, yoked):
        with pytest.raises(DataError, match=r"'ball'.*hunter, prey"):
            control(walks(), "ball")


def clips(size=24, seed=0):
    """Clips of two labels, three to a recording, of many lengths; positions say where from."""
    rng = np.random.default_rng(seed)
    length = rng.integers(5, 60, size)
    x = np.full((size, 60, 2, 2), np.nan)
    for i, n in enumerate(length):
        x[i, :n] = i + np.linspace(0, 0.5, n)[:, None, None]
        x[i, :n, 1] += 1000
    return make_trajectories(
        x, fps=FPS, body=BODIES, length=length, resolution=np.linspace(0.1, 0.2, size),
        recording=[str(i // 3) for i in range(size)],
        label=["chase" if i // 3 % 2 else "play" for i in range(size)],
    )  # fmt: skip


def partners(data, swapped):
    return np.floor(of(swapped, "prey")[:, 0, 0] - 1000).astype(int)


@pytest.mark.parametrize("seed", range(5))
def test_a_yoked_body_is_that_of_a_clip_of_the_same_label_and_near_length(seed):
    data = clips()
    swapped = yoked(data, "prey", seed=seed)
    other = partners(data, swapped)
    label, recording = data["label"].to_numpy(), data["recording"].to_numpy()
    length = data["length"].to_numpy()
    assert (label[other] == label).all()
    assert (recording[other] != recording).all()
    for i, j in enumerate(other):
        could = np.flatnonzero((label == label[i]) & (recording != recording[i]))
        gaps = np.sort(np.abs(length[could] - length[i]))
        assert abs(length[j] - length[i]) <= gaps[4]
        n = min(length[i], length[j])
        assert swapped["length"].to_numpy()[i] == n
        np.testing.assert_array_equal(of(swapped, "prey")[i, :n], of(data, "prey")[j, :n])
        np.testing.assert_array_equal(of(swapped, "hunter")[i, :n], of(data, "hunter")[i, :n])
        assert np.isnan(swapped["position"].to_numpy()[i, n:]).all()
    coarser = np.maximum(data["resolution"].to_numpy(), data["resolution"].to_numpy()[other])
    np.testing.assert_array_equal(swapped["resolution"], coarser)


def test_the_choice_of_partners_depends_on_the_seed():
    data = clips()
    found = [tuple(partners(data, yoked(data, "prey", seed=s))) for s in (0, 0, 1)]
    assert found[0] == found[1] != found[2]


def test_clips_without_a_partner_are_left_out():
    x = walks(4)["position"].to_numpy()
    data = make_trajectories(x, fps=FPS, body=BODIES, label=["a", "a", "b", "a"], resolution=0.0)
    assert list(yoked(data, "prey")["trajectory"].to_numpy()) == ["0", "1", "3"]


def test_without_labels_all_clips_are_alike():
    assert yoked(walks(3), "prey").sizes["trajectory"] == 3


def test_one_recording_has_no_one_to_yoke_to():
    with pytest.raises(DataError, match="no two recordings"):
        yoked(walks(3, recording=["a"] * 3), "prey")
