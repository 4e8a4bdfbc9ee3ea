"""The schema and what is done to trajectories, against brute force."""

import itertools

import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st

from pyro_animacy.data.bodies import select_bodies
from pyro_animacy.data.resolution import decimal_grid, estimate_resolution
from pyro_animacy.data.schema import check_trajectories, make_trajectories
from pyro_animacy.data.trajectories import (
    downsample,
    join,
    split,
    split_at_gaps,
)
from pyro_animacy.data.windows import Scale
from pyro_animacy.errors import ConfigError, DataError
from pyro_animacy.sets import body_types


def walk(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=(*shape, 2)).cumsum(axis=1)


def scene(*bodies, trajectories=1, frames=20, seed=0, **parts):
    return make_trajectories(
        walk(trajectories, frames, len(bodies), seed=seed), fps=10, body=bodies, **parts
    )


def with_gaps(share, trajectories=4, frames=30, bodies=2, seed=0):
    position = walk(trajectories, frames, bodies, seed=seed)
    gone = np.random.default_rng(seed + 1).random((trajectories, frames, bodies)) < share
    position[gone] = np.nan
    return make_trajectories(
        position, fps=10, trajectory=list("abcd")[:trajectories], start=[0, 7, 11, 30]
    )


# --- building and checking ---------------------------------------------------------------------


def test_shapes_names_and_times():
    ds = make_trajectories(walk(1, 7, 2)[0].reshape(7, 4), fps=2.5)
    assert ds["position"].dims == ("trajectory", "time", "body", "space")
    assert ds["position"].shape == (1, 7, 2, 2)
    np.testing.assert_allclose(ds["time"], np.arange(7) / 2.5)
    assert list(ds["body"].values) == ["0", "1"]
    assert ds.attrs == {"fps": 2.5, "units": "unknown", "source": ""}


def test_length_is_up_to_the_last_observed_frame():
    position = walk(2, 9, 2)
    position[0, 6:] = np.nan
    position[0, 5, 0] = np.nan  # the other body is still there
    position[1, :2] = np.nan
    ds = make_trajectories(position, fps=1)
    assert ds["length"].values.tolist() == [6, 9]


@pytest.mark.parametrize("mapped", [False, True])
def test_what_pads_a_trajectory_beyond_its_length_is_not_looked_at(mapped, tmp_path):
    """Zeros there are as good as NaN: scale, resolution and complete windows are the same."""
    position, length = walk(3, 50, 1), np.array([50, 20, 10])
    position[np.arange(50) >= length[:, None]] = np.nan
    expected = make_trajectories(position, fps=10.0)
    padded = np.nan_to_num(position)
    if mapped:
        np.save(tmp_path / "x.npy", padded)
        padded = np.load(tmp_path / "x.npy", mmap_mode="r")
    found = make_trajectories(padded, fps=10.0, length=length)
    assert not np.asarray(padded)[1, 20:].any()  # the caller's own array is as it was
    xr.testing.assert_identical(found.compute() if mapped else found, expected)
    assert Scale.of(found) == Scale.of(expected)


def test_survives_netcdf(tmp_path):
    ds = scene(
        *("a", "ball"), trajectories=3, label=["x", "y", "y"], animate=[True, False], units="m"
    )
    ds.to_netcdf(tmp_path / "t.nc", engine="h5netcdf")
    back = xr.open_dataset(tmp_path / "t.nc", engine="h5netcdf").load()
    xr.testing.assert_identical(ds, check_trajectories(back))


def broken(**changes):
    position = walk(2, 5, 2)
    parts = {"fps": 10.0, "body": ["a", "b"], "trajectory": ["r", "s"]} | changes
    return lambda edit=None: make_trajectories(
        position if edit is None else edit(position), **parts
    )


def set_to(where, value):
    def edit(position):
        position[where] = value
        return position

    return edit


@pytest.mark.parametrize(
    ("make", "edit", "message"),
    [
        (broken(fps=None), None, "--fps"),
        (broken(fps=0.0), None, "positive"),
        (broken(fps=np.nan), None, "positive"),
        (broken(trajectory=["r", "r"]), None, "named 'r'"),
        (broken(body=["a", "a"]), None, "named 'a'"),
        (broken(body=["a"]), None, "`body` has 1 entries, .* needs 2"),
        (broken(label=["a"]), None, "`label` has 1 entries, .* needs 2"),
        (broken(), set_to((1, 3, 1, 0), np.inf), "'s', frame 3, body 'b'"),
        (broken(), set_to((slice(None), slice(None), 1), np.nan), "'b' is never observed"),
        (broken(), set_to((1, slice(1, None)), np.nan), "'s' has fewer than 2 frames"),
        (broken(), lambda p: np.ones_like(p), "no body moves"),
        (broken(), lambda p: p[..., :1], "positions has the shape .* it must be"),
        (broken(), lambda p: np.full(p.shape, "a"), "not real numbers"),
        (broken(), lambda p: [p[0].tolist(), p[1, :3].tolist()], "lists of unequal length"),
        (broken(fps="25 Hz"), None, "25 Hz frames per second"),
        (broken(animate=True), None, "`animate` has 1 entries, .* needs 2"),
    ],
)
def test_unusable_positions_are_named(make, edit, message):
    with pytest.raises(DataError, match=message) as error:
        make(edit)
    assert "\n" not in str(error.value)


def test_check_names_what_the_schema_lacks():
    ds = scene("a", "b")
    with pytest.raises(DataError, match="dimensions trajectory, time, agent, space; it must"):
        check_trajectories(ds.rename(body="agent"))
    with pytest.raises(DataError, match="start"):
        check_trajectories(ds.drop_vars("start"))
    with pytest.raises(DataError, match="--fps"):
        check_trajectories(ds.drop_attrs())


# --- bodies ------------------------------------------------------------------------------------


def test_named_bodies_come_in_the_order_asked_for():
    ds = scene("a", "b", "c", trajectories=2)
    chosen = select_bodies(ds, "c, a")
    np.testing.assert_array_equal(chosen["position"], ds["position"][:, :, [2, 0]])
    assert list(chosen["body"].values) == ["c", "a"]


def test_one_group_several_times_gives_every_choice_once():
    """In whatever order, and of bodies that a model takes as alike."""
    names = ["ant_1", "ball", "ant_7", "ant_3"]
    x = np.arange(96.0).reshape(12, 4, 2)
    ds = make_trajectories(x, fps=1, body=names, trajectory=["t"])
    both = select_bodies(ds, "ant x ant")
    pairs = [(0, 2), (0, 3), (2, 3)]
    assert list(both["trajectory"].values) == [f"{names[i]}+{names[j]}" for i, j in pairs]
    for found, pair in zip(both["position"].values, pairs, strict=True):
        np.testing.assert_array_equal(found, x[:, pair])
    assert list(both["body"].values) == ["ant_1", "ant_2"]
    three = select_bodies(ds, "ant x ball x ant x ant")
    assert list(three["trajectory"].values) == ["ant_1+ball+ant_7+ant_3"]
    assert list(three["body"].values) == ["ant_1", "ball", "ant_2", "ant_3"]
    assert body_types([str(name) for name in three["body"].values]) == (0, 1, 0, 0)
    with pytest.raises(DataError, match="each body once"):
        select_bodies(ds, "ball x ball")


def test_no_combination_has_a_body_twice():
    """Groups that overlap: home_1 is of the group home too."""
    ds = scene("home_1", "home_2", "ball", trajectories=1)
    chosen = select_bodies(ds, "home x home_1 x ball")
    assert chosen["trajectory"].values.tolist() == ["home_2+home_1+ball"]
    np.testing.assert_array_equal(chosen["position"][0], ds["position"][0][:, [1, 0, 2]])
    with pytest.raises(DataError, match="--bodies 'ball_1 x ball': the groups share their bodies"):
        select_bodies(scene("ball_1", "a", trajectories=1), "ball_1 x ball")


def test_groups_give_every_combination():
    names = ["home_1", "home_2", "away_1", "away_2", "away_3", "ball", "homeless"]
    ds = scene(*names, trajectories=2, label=["p", "q"], animate=[True] * 5 + [False, True])
    chosen = select_bodies(ds, "home x away x ball")
    expected = [
        (t, combination)
        for t in range(2)
        for combination in itertools.product((0, 1), (2, 3, 4), (5,))
    ]
    assert chosen.sizes["trajectory"] == len(expected) == 12
    for i, (t, combination) in enumerate(expected):
        one = chosen.isel(trajectory=i)
        np.testing.assert_array_equal(one["position"], ds["position"].values[t][:, combination])
        tag = "+".join(names[b] for b in combination)
        assert str(one["trajectory"].values) == f"{t}/{tag}"
        assert str(one["recording"].values) == str(t)
        assert str(one["label"].values) == "pq"[t]
    assert list(chosen["body"].values) == ["home", "away", "ball"]
    assert chosen["animate"].values.tolist() == [True, True, False]
    check_trajectories(chosen)


def test_each_body_is_of_its_recording_from_first_to_last_observed_frame():
    position = walk(1, 12, 3)
    position[0, :3, 0] = np.nan
    position[0, 9:, 1] = np.nan
    position[0, 5, 1] = np.nan
    position[0, 1:, 2] = np.nan  # one frame: dropped
    chosen = select_bodies(make_trajectories(position, fps=10, start=[100]), "each")
    assert chosen["trajectory"].values.tolist() == ["0", "1"]
    assert chosen["recording"].values.tolist() == ["0", "0"]
    assert chosen["start"].values.tolist() == [103, 100]
    assert chosen["length"].values.tolist() == [9, 9]
    np.testing.assert_array_equal(chosen["position"][0, :, 0], position[0, 3:, 0])
    np.testing.assert_array_equal(chosen["position"][1, :, 0], position[0, :9, 1])


def test_unknown_bodies_are_answered_with_those_there_are():
    ds = scene(*(f"p_{i}" for i in range(30)))
    with pytest.raises(DataError, match=r"no body 'ball'; there are p_0, .* and 18 more"):
        select_bodies(ds, "p_1,ball")
    with pytest.raises(DataError, match="no body 'q'"):
        select_bodies(ds, "p x q")
    with pytest.raises(ConfigError, match="twice"):
        select_bodies(ds, "p_1,p_1")


# --- gaps and downsampling ---------------------------------------------------------------------


@pytest.mark.parametrize("minimum", [2, 5])
@pytest.mark.parametrize("share", [0.05, 0.3])
def test_runs_without_gaps_are_those_of_a_plain_loop(share, minimum):
    ds = with_gaps(share)
    expected = []
    for i, rows in enumerate(ds["position"].values):
        run = []
        for t, frame in enumerate([*rows, np.full((2, 2), np.nan)]):
            if not np.isnan(frame).any():
                run.append(t)
                continue
            if len(run) >= minimum:
                expected.append((i, run[0] + int(ds["start"][i]), rows[run]))
            run = []
    pieces = split_at_gaps(ds, minimum)
    assert pieces.sizes["trajectory"] == len(expected)
    for piece, (i, start, rows) in zip(range(len(expected)), expected, strict=True):
        one = pieces.isel(trajectory=piece)
        assert str(one["recording"].values) == "abcd"[i]
        assert int(one["start"]) == start
        assert int(one["length"]) == len(rows)
        np.testing.assert_array_equal(one["position"][: len(rows)], rows)
        assert np.isnan(one["position"][len(rows) :]).all()
    check_trajectories(pieces)


def test_padding_is_no_gap_and_no_piece():
    ds = scene("a", trajectories=2)
    assert split_at_gaps(ds)["trajectory"].values.tolist() == ["0", "1"]
    with pytest.raises(DataError, match="longest has 20"):
        split_at_gaps(ds, 21)


@given(every=st.integers(1, 7), seed=st.integers(0, 20))
@settings(deadline=None, max_examples=30, derandomize=True)
def test_downsampling_keeps_the_frames_whose_number_divides(every, seed):
    rng = np.random.default_rng(seed)
    position, start = walk(3, 25, 1, seed=seed), rng.integers(0, 20, 3)
    position[1, 17:] = np.nan
    ds = make_trajectories(position, fps=21, start=start)
    small = downsample(ds, every)
    assert small.attrs["fps"] == 21 / every
    for one in small.transpose("trajectory", ...)["position"]:
        i = int(one["trajectory"].values)
        frames = [t for t in range(int(ds["length"][i])) if (start[i] + t) % every == 0]
        assert int(one["length"]) == len(frames)
        assert int(one["start"]) * every == start[i] + frames[0]
        np.testing.assert_array_equal(one.values[: len(frames)], position[i, frames])
    np.testing.assert_array_equal(small["resolution"], ds["resolution"])


def test_downsampling_to_nothing_is_refused():
    with pytest.raises(DataError, match="longest has 20"):
        downsample(scene("a"), 20)
    with pytest.raises(ConfigError, match="whole number from 1 on"):
        downsample(scene("a"), 0)


# --- resolution --------------------------------------------------------------------------------


def clicks(step, frames=400, seed=0, still=0.5):
    """A mouse: whole steps, mostly 0."""
    rng = np.random.default_rng(seed)
    moved = rng.integers(-4, 5, (frames, 1, 2)) * (rng.random((frames, 1, 2)) > still)
    return moved.cumsum(axis=0) * step


def test_the_smallest_step_of_each_recording_is_found():
    position = np.stack([clicks(0.5), clicks(3.0, seed=1)])
    np.testing.assert_allclose(estimate_resolution(position), [0.5, 3.0])
    # two trajectories of one recording share theirs
    np.testing.assert_allclose(estimate_resolution(position, ["a", "a"]), [0.5, 0.5])


def test_a_recording_without_a_common_step_takes_the_pooled_one():
    smooth = np.round(walk(1, 400, 1, seed=3) * 100, 1)
    position = np.concatenate([np.stack([clicks(3.0, seed=s) for s in range(9)]), smooth])
    np.testing.assert_allclose(estimate_resolution(position), 3.0)


def test_short_recordings_of_several_scales_are_no_finer_than_any_that_is_known():
    """Together they have no common step: that of a decimal would be, of a drawing, far too fine."""
    scaled = [np.round(clicks(step, seed=s), 2) for s, step in enumerate((3.91, 5.3, 7.17, 4.79))]
    smooth = [np.round(walk(1, 400, 1, seed=s)[0] * 1e4, 2) for s in range(300)]
    position = np.stack(scaled + smooth)
    together = estimate_resolution(position, ["all"] * len(position))
    np.testing.assert_allclose(together, 0.01)
    expected = [3.91, 5.3, 7.17, 4.79, *[3.91] * 300]
    np.testing.assert_allclose(estimate_resolution(position), expected)


def test_resolution_of_many_short_recordings():
    """So many that only some frames of each are looked at, and still enough."""
    steps = np.random.default_rng(0).normal(0, 8, (2000, 100, 3, 2)).round()
    grid = np.where(np.arange(2000) % 2, 0.2, 0.05)
    position = steps.cumsum(1) * grid[:, None, None, None]
    np.testing.assert_allclose(estimate_resolution(position), grid)


@pytest.mark.parametrize("decimals", [0, 2, 5, 9])
def test_the_decimals_are_the_last_resort(decimals):
    position = np.round(walk(1, 500, 1) * 1e3, decimals)
    np.testing.assert_allclose(estimate_resolution(position), 10.0**-decimals)


def test_full_precision_has_no_known_resolution():
    assert estimate_resolution(walk(1, 500, 1)) == 0


def test_single_precision_still_shows_its_decimals():
    position = np.round(walk(1, 500, 1) * 10, 2).astype(np.float32).astype(float)
    assert decimal_grid(position) == 0.01


@pytest.mark.parametrize("seed", range(6))
def test_a_smooth_walk_has_the_resolution_of_its_grid(seed):
    """A fish alone at 25 Hz: some 40 units a step, so that 2 % of its steps are any one of them."""
    steps = np.random.default_rng(seed).normal(0, 40, (1, 1500, 1, 2)).round()
    assert estimate_resolution(steps.cumsum(1) * 0.01) == pytest.approx(0.01)


def test_a_rock_does_not_make_the_others_coarse():
    """As found: half of all steps are its zeros, of a file with four decimals."""
    moving = np.round(walk(5, 400, 1) * 10, 4)
    rock = np.full_like(moving, 3.25)
    position = np.concatenate([moving, rock], 2)
    np.testing.assert_allclose(estimate_resolution(position), 1e-4)
    track = np.stack([moving[..., 0], np.full_like(moving[..., 0], 3.25)], -1)
    np.testing.assert_allclose(estimate_resolution(track), 1e-4)
    position[0, 200:, 1] += 1.0  # it is moved once, so it can move: its rest is rest
    assert (estimate_resolution(position) > 1e-3).all()


def test_a_coincidence_of_long_steps_is_no_resolution():
    position = np.round(walk(1, 200, 1) * 1e3, 1)
    position[0, 50:56] = position[0, 49] + 5000.0 * np.arange(1, 7)[:, None, None]
    assert estimate_resolution(position) == pytest.approx(0.1)


def walkers(frames=40, seed=0):
    """300 smooth walkers in metres: some 5 cm a frame along each coordinate, of either sign."""
    rng = np.random.default_rng(seed)
    speed = rng.normal(scale=0.05, size=(300, 1, 1, 2))
    turns = 0.003 * rng.normal(size=(300, frames, 1, 2)).cumsum(axis=1)
    return rng.uniform(0, 10, (300, 1, 1, 2)) + (speed + turns).cumsum(axis=1)


def between_annotations(decimals):
    """Walkers seen every 10 frames, to a millimetre, and interpolated linearly in between."""
    seen, frame = np.round(walkers(5) * [1, 1.3], 3), np.arange(40) / 10
    whole = frame.astype(int)
    part = (frame - whole)[:, None, None]
    return np.round(seen[:, whole] * (1 - part) + seen[:, whole + 1] * part, decimals)


@pytest.mark.parametrize("recording", [None, ["street"] * 300])
def test_short_walks_show_their_grid(recording):
    smooth = estimate_resolution(np.round(walkers(), 2), recording)
    np.testing.assert_allclose(np.median(smooth), 0.01)
    assert smooth.max() < 0.05
    straight = estimate_resolution(between_annotations(3), recording)
    # on its own, one in twenty has too few frames: 8.5 mm a frame is 8, 9, 8, 9, ...
    np.testing.assert_allclose(np.quantile(straight, 1 if recording else 0.9), 0.001)
    assert straight.max() < 0.01
    assert np.median(estimate_resolution(between_annotations(9), recording)) <= 0.0001


def test_a_step_that_repeats_says_nothing_about_the_grid():
    # constant velocities of 60 mm and 7 m; one walker changes by a millimetre at every frame
    frame = np.arange(400.0)
    slow = np.round(np.stack([0.06 * frame, 7 * frame], -1)[:, None], 3)
    assert estimate_resolution(slow[None]) == pytest.approx(0.01)  # the decimals
    # a thirtieth in 9 decimals is 0.033333333 or ...334: the rounding is no change of velocity
    rounded = np.round(np.stack([frame / 30, 7 * frame / 30], -1)[:, None], 9)
    assert estimate_resolution(rounded[None]) == pytest.approx(1e-9, abs=0, rel=1e-6)
    fine = np.stack([np.cumsum(0.001 * (frame % 30)), 7 * frame], -1)[:, None]
    assert estimate_resolution(np.round(fine, 3)[None]) == pytest.approx(0.001)


# --- splitting ---------------------------------------------------------------------------------


def frames_of(ds):
    """The (recording, frame) pairs of a Dataset."""
    return {
        (str(r), f)
        for r, s, n in zip(*(ds[k].values for k in ("recording", "start", "length")), strict=True)
        for f in range(s, s + n)
    }


def test_many_recordings_are_held_out_whole():
    names = [f"r{i // 2}" for i in range(24)]
    ds = scene("a", trajectories=24, recording=names)
    train, held = split(ds, 0.25, seed=1)
    assert len(set(held["recording"].values)) == 3
    assert not set(held["recording"].values) & set(train["recording"].values)
    assert train.sizes["trajectory"] + held.sizes["trajectory"] == 24
    xr.testing.assert_identical(held, split(ds, 0.25, seed=1)[1])
    assert set(split(ds, 0.25, seed=2)[1]["recording"].values) != set(held["recording"].values)


def test_few_recordings_are_cut_in_time():
    ds = make_trajectories(walk(1, 100, 2), fps=10, start=[40])
    train, held = split(ds, 0.2)
    np.testing.assert_array_equal(train["position"], ds["position"][:, :80])
    np.testing.assert_array_equal(held["position"], ds["position"][:, 80:])
    assert (int(train["start"][0]), int(held["start"][0])) == (40, 120)
    assert (int(train["length"][0]), int(held["length"][0])) == (80, 20)


@given(seed=st.integers(0, 200), recordings=st.integers(1, 7), share=st.floats(0.1, 0.5))
@settings(deadline=None, max_examples=60, derandomize=True)
def test_no_frame_of_a_recording_is_on_both_sides_even_when_split_again(seed, recordings, share):
    rng = np.random.default_rng(seed)
    count = 12
    length, start = rng.integers(2, 40, count), rng.integers(0, 60, count)
    position = walk(count, 40, 1, seed=seed)
    position[np.arange(40) >= length[:, None]] = np.nan
    ds = make_trajectories(
        position,
        fps=10,
        recording=[f"r{i}" for i in rng.integers(0, recordings, count)],
        start=start,
        length=length,
    )
    try:
        train, held = split(ds, share, seed)
        train, valid = split(train, share, seed)
    except DataError as error:
        assert "is left in" in str(error)  # noqa: PT017
        return
    parts = [frames_of(part) for part in (train, valid, held)]
    for one, other in itertools.combinations(parts, 2):
        assert not one & other
    whole = frames_of(ds)
    assert all(part <= whole for part in parts)
    for part in (train, valid, held):  # start and length still point at the frames they hold
        for one in part.transpose("trajectory", ...)["position"]:
            i = int(str(one["trajectory"].values).split("@")[0])
            first, n = int(one["start"]) - start[i], int(one["length"])
            np.testing.assert_array_equal(one.values[:n], position[i, first : first + n])


def test_triples_of_one_match_are_cut_at_the_same_frame():
    names = [f"home_{i}" for i in range(3)] + [f"away_{i}" for i in range(3)] + ["ball"]
    position = walk(1, 200, 7)
    position[0, 80:100, 6] = np.nan  # two runs of frames with the ball
    position[0, 20:30, 0] = np.nan  # one triple's first run is shorter
    ds = split_at_gaps(
        select_bodies(make_trajectories(position, fps=10, body=names), "home x away x ball")
    )
    train, held = split(ds, 0.2)
    assert not frames_of(train) & frames_of(held)
    assert set(held["start"].values) == {64, 180}
    assert set((held["start"] + held["length"]).values) == {80, 200}


def test_shares_that_leave_nothing_are_refused():
    with pytest.raises(ConfigError, match="between 0 and 1"):
        split(scene("a"), 1.0)
    with pytest.raises(DataError, match="held-out part"):
        split(scene("a", frames=5), 0.2)


def test_join_pads_and_aligns_bodies():
    one, two = scene("a", "b", frames=5), scene("b", "a", frames=8, seed=1)
    two = two.assign_coords(trajectory=["z"])
    both = join([one, two], "both")
    assert both["position"].shape == (2, 8, 2, 2)
    np.testing.assert_array_equal(both["position"][1], two["position"][0][:, ::-1])
    assert np.isnan(both["position"][0, 5:]).all()
    with pytest.raises(DataError, match="--bodies"):
        join([one, scene("a", "c")])


def test_join_of_the_same_trajectories_names_their_source():
    ds = scene("a", source="once.nc")
    with pytest.raises(DataError, match=r"^once\.nc: two trajectory entries are named "):
        join([ds, ds])


def test_join_of_units_that_differ_is_refused():
    def part(name, units):
        return scene("a", units=units, source=f"{name}.csv", trajectory=[name])

    with pytest.raises(DataError, match=r"c.csv: positions in px, but b.csv has m"):
        join([part("a", "unknown"), part("b", "m"), part("c", "px")])
    assert join([part("a", "unknown"), part("b", "m")]).attrs["units"] == "m"
    assert join([part("a", "unknown"), part("b", "unknown")]).attrs["units"] == "unknown"


@pytest.mark.parametrize("block", [64, 2**17])
def test_trajectories_of_recordings_by_turns(block, monkeypatch):
    """A recording's resolution is the same whichever of the others lie between its trajectories.

    Two are mice, of which one rests; the walks of the third rest too, and show no common step.
    """
    monkeypatch.setattr("pyro_animacy.data.resolution.BLOCK", block)
    rng, frames = np.random.default_rng(0), 900
    rests = (rng.random((2, frames, 1, 1)) > 0.3) * rng.normal(size=(2, frames, 1, 2))
    position = {
        "a": np.stack([clicks(1e-4, frames, s) for s in (0, 1)]),
        "b": np.stack([clicks(3.0, frames, s, still=0) for s in (2, 3)]),
        "c": rests.cumsum(axis=1).round(6),
    }
    position["a"][0, 40:60] = np.nan
    moved = np.abs(np.diff(position["c"], axis=1))
    moved = np.sort(moved[moved > 0])
    turns = [("b", 1), ("a", 0), ("c", 1), ("a", 1), ("b", 0), ("c", 0)]
    found = estimate_resolution(
        np.stack([position[name][i] for name, i in turns]), [name for name, _ in turns]
    )
    wanted = {"a": 1e-4, "b": 3.0, "c": moved[len(moved) // 100]}
    np.testing.assert_allclose(found, [wanted[name] for name, _ in turns])
