"""Scale, windows and dequantisation against brute force."""

import numpy as np
import pytest
import torch

from pyro_animacy import DataError, Scale, Windows, make_trajectories
from pyro_animacy.data.windows import begun, consecutive, dequantised, whole


def ragged(seed=0, gaps=False):
    """Three trajectories of 12, 9 and 3 frames of two bodies, with gaps if asked."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(3, 12, 2, 2)).cumsum(1) * 3 + 50
    x[1, 9:] = np.nan
    x[2, 3:] = np.nan
    if gaps:
        x[0, 5, 1] = np.nan
        x[1, 2] = np.nan
    return make_trajectories(x, fps=10, length=[12, 9, 3], resolution=[0.1, 0.0, 0.5])


def starts_by_hand(dataset, frames, context, complete):
    x = dataset["position"].to_numpy().reshape(3, 12, -1)
    found = []
    for i, length in enumerate(dataset["length"].to_numpy()):
        for s in range(max(length - frames, 0) + 1):
            part = np.full((frames, 4), np.nan)
            piece = x[i, s : min(s + frames, length)]
            part[: len(piece)] = piece
            seen = np.isfinite(part)
            good = seen.all() if complete else seen[:context].all() and seen[context].any()
            if good:
                found.append((i, s))
    return found


@pytest.mark.parametrize("gaps", [False, True])
@pytest.mark.parametrize("complete", [False, True])
@pytest.mark.parametrize(("frames", "context"), [(2, 1), (4, 2), (7, 3), (14, 2)])
def test_windows_by_brute_force(frames, context, complete, gaps):
    dataset = ragged(gaps=gaps)
    scale = Scale.of(dataset)
    expected = starts_by_hand(dataset, frames, context, complete)
    options = {"frames": frames, "context": context, "scale": scale, "complete": complete}
    if not expected:
        with pytest.raises(DataError, match="frames observed in a row"):
            Windows(dataset, **options)
        return
    windows = Windows(dataset, **options)
    assert [tuple(row) for row in windows.index.tolist()] == expected
    batch = windows.batch(torch.arange(len(windows)))
    x = dataset["position"].to_numpy().reshape(3, 12, -1)
    for b, (i, s) in enumerate(expected):
        piece = x[i, s : s + frames]
        raw = batch.position[: len(piece), b].numpy() * scale.unit + np.tile(scale.center, 2)
        seen = np.isfinite(piece)
        np.testing.assert_array_equal(batch.observed[: len(piece), b].numpy(), seen)
        np.testing.assert_allclose(raw[seen], piece[seen], rtol=1e-5)
        assert not batch.observed[len(piece) :, b].any()


@pytest.mark.parametrize("frames", [1, 2, 3, 9])
def test_trajectories_begin_where_all_is_seen(frames):
    dataset = ragged(gaps=True)
    dataset["position"][0, :2, 0] = np.nan  # the next gap is in frame 5
    found = begun(dataset, frames)
    x, seen = dataset["position"].values, np.isfinite(dataset["position"].values).all((2, 3))
    for i, name in enumerate(dataset["trajectory"].values):
        good = (s for s in range(12) if s + frames <= 12 and seen[i, s : s + frames].all())
        s = next(good, 0)
        one, length = found.sel(trajectory=name), int(dataset["length"][i])
        assert (int(one["start"]), int(one["length"])) == (s, length - s)
        np.testing.assert_array_equal(one["position"].values[: length - s], x[i, s:length])
    assert begun(ragged(), frames).identical(ragged())


def test_what_is_given_besides_may_have_gaps():
    """The last two of six given frames are seen, though not the fourth: nothing is cut."""
    dataset = ragged()
    dataset["position"][0, 3, 0] = np.nan
    assert begun(dataset, 2, after=4).identical(dataset)
    dataset["position"][0, 4, 0] = np.nan  # nor the fifth: one frame later they are
    assert begun(dataset, 2, after=4)["start"].values.tolist() == [1, 0, 0]


def test_scale_is_measured():
    dataset = ragged()
    scale = Scale.of(dataset)
    x = dataset["position"].to_numpy()
    assert scale.unit == pytest.approx(np.sqrt(np.nanmean(np.diff(x, axis=1) ** 2)))
    spread = np.sqrt(np.nanmean((x - scale.center) ** 2))
    assert scale.extent * scale.unit == pytest.approx(spread)
    apart = np.sqrt(np.nanmean((x[:, :, 0] - x[:, :, 1]) ** 2))
    assert scale.separation * scale.unit == pytest.approx(apart)
    batch = whole(dataset, scale)
    low, high = torch.tensor(scale.low), torch.tensor(scale.high)
    inside = (batch.position >= low - 1e-4) & (batch.position <= high + 1e-4)
    assert (inside | ~batch.observed).all()


@pytest.mark.parametrize("factor", [0.01, 1000.0])
def test_model_units_do_not_depend_on_the_datas(factor):
    dataset = ragged()
    scaled = dataset.assign(position=dataset["position"] * factor + 7)
    first, second = whole(dataset, Scale.of(dataset)), whole(scaled, Scale.of(scaled))
    torch.testing.assert_close(first.position, second.position, rtol=1e-4, atol=1e-4)


def test_dequantisation_is_uniform_and_as_wide_as_the_resolution():
    dataset = ragged()
    scale = Scale.of(dataset)
    windows = Windows(dataset, frames=3, context=2, scale=scale)
    which = (windows.index[:, 0] == 0).nonzero()[:1, 0].repeat(4000)
    noisy = windows.batch(which, torch.Generator().manual_seed(0)).position
    noise = (noisy - windows.batch(which).position) * scale.unit / 0.1
    assert noise.abs().max() <= 0.5 + 1e-3
    assert noise.mean().item() == pytest.approx(0, abs=0.01)
    assert noise.var().item() == pytest.approx(1 / 12, rel=0.03)
    fixed = dequantised(dataset, 3)["position"] - dataset["position"]
    width = np.nanmax(np.abs(fixed.to_numpy()), axis=(1, 2, 3))
    assert (width <= np.array([0.05, 0.0, 0.25]) + 1e-12).all()
    assert width[0] > 0.04
    assert dequantised(dataset, 3)["position"].equals(dequantised(dataset, 3)["position"])


@pytest.mark.parametrize("symmetry", ["reflect", "rotate"])
def test_symmetries_keep_distances_and_the_centre(symmetry):
    dataset = ragged().assign_coords(resolution=("trajectory", np.zeros(3)))
    scale = Scale.of(dataset)
    windows = Windows(dataset, frames=3, context=2, scale=scale, symmetry=symmetry)
    which = torch.zeros(50, dtype=torch.long)
    plain = windows.batch(which).position.unflatten(-1, (2, 2))
    moved = windows.batch(which, torch.Generator().manual_seed(0)).position.unflatten(-1, (2, 2))
    torch.testing.assert_close(moved.norm(dim=-1), plain.norm(dim=-1), rtol=1e-4, atol=1e-4)
    apart = [(x[:, :, 0] - x[:, :, 1]).norm(dim=-1) for x in (moved, plain)]
    torch.testing.assert_close(*apart, rtol=1e-4, atol=1e-4)
    images = {tuple(v) for v in moved[0, :, 0].mul(100).round().tolist()}
    assert len(images) == 4 if symmetry == "reflect" else len(images) > 35


def test_the_same_generator_gives_the_same_batch():
    windows = Windows(ragged(), frames=4, context=2, scale=Scale.of(ragged()), symmetry="rotate")
    draws = [windows.draw(8, torch.Generator().manual_seed(4)).position for _ in range(2)]
    assert torch.equal(*draws)


@pytest.mark.parametrize("symmetry", ["none", "reflect", "rotate"])
def test_batches_drawn_together_are_to_the_bit_those_drawn_one_by_one(symmetry):
    windows = Windows(ragged(), frames=4, context=2, scale=Scale.of(ragged()), symmetry=symmetry)
    which = torch.randint(len(windows), (5, 7), generator=torch.Generator().manual_seed(0))
    together = windows.batches(which, [torch.Generator().manual_seed(k) for k in range(5)])
    for k, one in enumerate(which):
        alone = windows.batch(one, torch.Generator().manual_seed(k))
        assert torch.equal(together.position[k], alone.position)
        assert torch.equal(together.observed[k], alone.observed)


def test_large_batches_drawn_together_are_the_same_on_two_threads():
    """Where how many numbers a thread has depends on how many batches there are."""
    x = np.random.default_rng(0).normal(size=(20, 60, 3, 2)).cumsum(1)
    recordings = make_trajectories(x, fps=10.0)
    windows = Windows(
        recordings, frames=25, context=2, scale=Scale.of(recordings), symmetry="rotate"
    )
    which = torch.randint(len(windows), (13, 50), generator=torch.Generator().manual_seed(0))
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        together = windows.batches(which, [torch.Generator().manual_seed(k) for k in range(13)])
    finally:
        torch.set_num_threads(threads)
    for k, one in enumerate(which):
        alone = windows.batch(one, torch.Generator().manual_seed(k))
        assert torch.equal(together.position[k], alone.position)


def test_nothing_that_moves_is_refused():
    still = ragged()
    still = still.assign(position=still["position"] * 0 + 1)
    with pytest.raises(DataError, match="no body moves"):
        Scale.of(still)


def test_sites_too_far_apart_for_single_precision_are_refused():
    """Recordings in one map frame, 1e6 apart: in float32 steps of 0.05 are 0 or whole there."""
    x = np.random.default_rng(0).normal(scale=0.05, size=(2, 200, 1, 2)).cumsum(1)
    x += np.array([4e6, 5e6])[:, None, None, None]
    both = make_trajectories(x, fps=10, resolution=0)
    with pytest.raises(DataError, match=r"5e\+05 from their common centre and steps 0\.05.*origin"):
        Scale.of(both)
    one = both.isel(trajectory=[0])
    scale = Scale.of(one)
    kept = whole(one, scale).position[:, 0].diff(dim=0) * scale.unit
    np.testing.assert_allclose(kept, np.diff(x[0, :, 0], axis=0), atol=1e-6)


@pytest.mark.parametrize(("frames", "every", "least"), [(4, None, 1), (4, None, 3), (7, 5, 3)])
def test_consecutive_windows_go_through_every_trajectory(frames, every, least):
    """As counted one by one, of trajectories shorter, as long and longer than a window."""
    length = np.array([1, 4, 9, 12, 3, 0])
    expected = [
        (row, begin, min(begin + frames, n))
        for row, n in enumerate(length)
        for begin in range(0, n, every or frames)
        if min(begin + frames, n) - begin >= least
    ]
    found = consecutive(length, frames, every=every, least=least)
    assert [*zip(*map(np.ndarray.tolist, found), strict=True)] == expected
