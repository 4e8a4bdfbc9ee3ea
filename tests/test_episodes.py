"""Episodes: a hand-made one read entry by entry, and files that come back bit for bit."""

import numpy as np
import pytest
import torch
import xarray as xr

from pyro_animacy.data.episode_windows import EpisodeWindows
from pyro_animacy.data.episodes import check_episodes, make_episodes, read_episodes, save_episodes
from pyro_animacy.errors import DataError
from pyro_animacy.infer.recordings import read_data

LENGTH = np.array([6, 3, 2])
FRAMES = 6


def hand_made(**changes):
    """Frame t of episode i shows 10 i + t; its action is 100 i + t + 1, its reward 1000 i + t.

    Padding holds NaN, 255 and True, so that whatever is read of it shows.
    """
    i, t = np.arange(3)[:, None], np.arange(FRAMES)
    padding = t >= LENGTH[:, None]
    image = np.where(padding, 255, 10 * i + t).astype(np.uint8)
    image = np.broadcast_to(image[..., None, None, None], (3, FRAMES, 2, 4, 3)).copy()
    image[..., 1] += 50  # channels differ
    action = np.where(t >= LENGTH[:, None] - 1, np.nan, 100.0 * i + t + 1)
    terminal = np.zeros((3, FRAMES), bool)
    terminal[1, 2] = True  # the second episode ends by itself
    arrays = {
        "image": image,
        "observation": np.where(padding, np.nan, 10.0 * i + t)[..., None],
        "action": np.stack([action, -action], -1),
        "reward": np.where(padding, np.nan, np.where(t == 0, 0.0, 1000.0 * i + t)),
        "terminal": terminal | padding,
        "length": LENGTH,
        "fps": 12.5,
        "trajectory": ["a", "b", "c"],
        "control": ["left", "right"],
        "source": "by hand",
    } | changes
    return make_episodes(**{name: value for name, value in arrays.items() if value is not None})


def window(windows, episode, start):
    """The number of the window of an episode that begins at a frame."""
    return int((windows.index == torch.tensor([episode, start])).all(1).nonzero())


def test_alignment_in_the_middle_of_an_episode():
    windows = EpisodeWindows(hand_made(), 3)
    batch = windows.batch(torch.tensor([window(windows, 0, 0), window(windows, 0, 2)]))
    assert batch.observation.shape == (3, 2, 3, 2, 4)
    np.testing.assert_allclose(batch.observation[:, 0, 0, 0, 0] * 255, [0, 1, 2], atol=1e-5)
    np.testing.assert_allclose(batch.observation[:, 1, 0, 1, 3] * 255, [2, 3, 4], atol=1e-5)
    np.testing.assert_allclose(batch.observation[:, 1, 1, 1, 3] * 255, [52, 53, 54], atol=1e-5)
    # before the first frame nothing was done; before frame 2, what was done after frame 1
    assert batch.action[:, 0, 0].tolist() == [0, 1, 2]
    assert batch.action[:, 1].tolist() == [[2, -2], [3, -3], [4, -4]]
    assert batch.reward.T.tolist() == [[0, 1, 2], [2, 3, 4]]
    assert batch.continuation.T.tolist() == [[1, 1, 1], [1, 1, 1]]
    assert batch.observed.all()


def test_the_end_and_the_padding():
    windows = EpisodeWindows(hand_made(), 4)
    assert windows.index.tolist() == [[0, 0], [0, 1], [0, 2], [1, 0], [2, 0]]
    batch = windows.batch(torch.tensor([3, 4]))
    assert batch.observed.T.tolist() == [[True, True, True, False], [True, True, False, False]]
    np.testing.assert_allclose(batch.observation[:, 0, 0, 0, 0] * 255, [10, 11, 12, 0], atol=1e-5)
    assert batch.action[:, 0, 0].tolist() == [0, 101, 102, 0]
    assert batch.reward[:, 0].tolist() == [0, 1001, 1002, 0]
    assert batch.continuation[:, 0].tolist() == [1, 1, 0, 1]  # it ended
    assert batch.continuation[:, 1].tolist() == [1, 1, 1, 1]  # cut off
    assert all(torch.isfinite(x).all() for x in batch)


def test_windows_longer_than_every_episode():
    windows = EpisodeWindows(hand_made(), 9, modality="observation")
    assert len(windows) == 3
    batch = windows.batch(torch.arange(3))
    assert batch.observation.shape == (9, 3, 1)
    assert batch.observation[:, 0, 0].tolist() == [0, 1, 2, 3, 4, 5, 0, 0, 0]
    assert batch.observed.sum(0).tolist() == LENGTH.tolist()


def test_images_stay_bytes_and_are_not_copied():
    ds = hand_made()
    windows = EpisodeWindows(ds, 2)
    assert windows.observation.dtype == torch.uint8
    assert windows.observation.data_ptr() == ds["image"].to_numpy().ctypes.data


def test_draws_are_uniform_and_repeatable():
    windows = EpisodeWindows(hand_made(), 2)
    one, again = (windows.draw(7, torch.Generator().manual_seed(3)) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(one, again, strict=True))
    first = windows.draw(8000, torch.Generator().manual_seed(0)).observation[0, :, 0, 0, 0] * 255
    counts = first.round().long().bincount()
    assert counts[counts > 0].numel() == len(windows) == 8
    assert (counts[counts > 0] - 1000).abs().max() < 4 * 30  # sd 29.6


def test_without_actions_rewards_and_ends():
    bare = hand_made(action=None, control=None, reward=None, terminal=None, observation=None)
    batch = EpisodeWindows(bare, 3).batch(torch.arange(2))
    assert batch.action.shape == (3, 2, 0)
    assert batch.reward is batch.continuation is None
    moved = batch.to(torch.device("cpu"), torch.float64)
    assert moved.observation.dtype == moved.action.dtype == torch.float64
    assert moved.observed.dtype == torch.bool


def test_a_batch_moves_as_a_whole():
    batch = EpisodeWindows(hand_made(), 3).batch(torch.arange(2))
    moved = batch.to(torch.device("cpu"), torch.float64)
    for one, other in zip(batch, moved, strict=True):
        assert other.dtype == (torch.bool if one.dtype == torch.bool else torch.float64)
        assert torch.equal(one.double(), other.double())


@pytest.mark.parametrize("suffix", ["nc", "npz"])
def test_round_trip_bit_for_bit(tmp_path, suffix):
    rng = np.random.default_rng(0)
    ds = hand_made(
        image=rng.integers(0, 256, (3, FRAMES, 2, 4, 3), np.uint8),
        observation=rng.normal(size=(3, FRAMES, 5)).astype(np.float32),
    )
    save_episodes(ds, path := tmp_path / f"e.{suffix}")
    back = read_episodes(path)
    xr.testing.assert_identical(back, ds)
    for name in ds.data_vars:
        assert back[name].dtype == ds[name].dtype
        assert back[name].to_numpy().tobytes() == ds[name].to_numpy().tobytes()


def test_files_are_compressed(tmp_path):
    image = np.zeros((1, 50, 64, 64, 3), np.uint8)
    for name in ("e.nc", "e.npz"):
        save_episodes(make_episodes(image=image), tmp_path / name)
        assert (tmp_path / name).stat().st_size < image.nbytes / 20


def test_several_files_follow_one_another(tmp_path):
    one = hand_made()
    two = hand_made().isel(time=slice(0, 3), trajectory=[1, 2])
    save_episodes(one, tmp_path / "one.nc")
    save_episodes(two, tmp_path / "two.npz")
    both = read_episodes([tmp_path / "one.nc", tmp_path / "two.npz"])
    assert both["length"].to_numpy().tolist() == [6, 3, 2, 3, 2]
    assert both.sizes["time"] == 6
    names = both["trajectory"].to_numpy().tolist()
    assert names == ["one_0/a", "one_0/b", "one_0/c", "two_1/b", "two_1/c"]
    batch = EpisodeWindows(both, 4).batch(torch.tensor([3, 5]))  # the same episode, twice
    for tensor in batch:
        assert torch.equal(tensor[:, 0], tensor[:, 1])


def test_a_folder_is_its_files_by_name(tmp_path):
    for name in ("b.nc", "a.npz", ".half.npz"):
        save_episodes(hand_made(), tmp_path / name)
    (tmp_path / "notes.txt").write_text("of the day")
    files = [tmp_path / "a.npz", tmp_path / "b.nc"]
    xr.testing.assert_identical(read_episodes(tmp_path), read_episodes(files))
    (tmp_path / "none").mkdir()
    with pytest.raises(DataError, match=r"none: expected episodes in a file named \.nc or \.npz"):
        read_episodes(tmp_path / "none")


def test_files_that_do_not_go_together(tmp_path):
    save_episodes(hand_made(), tmp_path / "one.nc")
    for changes, said in (
        ({"fps": 25.0}, "fps is 25.0, but 12.5"),
        ({"reward": None}, "variables"),
        ({"image": np.zeros((3, FRAMES, 3, 4, 3), np.uint8)}, "shape of `image`"),
        ({"control": ["right", "left"]}, "order of controls"),
    ):
        save_episodes(hand_made(**changes), tmp_path / "two.nc")
        with pytest.raises(DataError, match=f"two.nc: .*{said}"):
            read_episodes([tmp_path / "one.nc", tmp_path / "two.nc"])


def test_what_cannot_be_read(tmp_path):
    (tmp_path / "text.nc").write_text("no")
    (tmp_path / "text.npz").write_text("no")
    (tmp_path / "empty.npz").write_bytes(b"")
    np.savez(tmp_path / "other.npz", position=np.zeros(3))
    xr.Dataset({"position": ("time", [1.0])}).to_netcdf(tmp_path / "other.nc", engine="h5netcdf")
    np.savez(tmp_path / "objects.npz", image=np.array([None]), allow_pickle=True)
    np.savez(tmp_path / "fps.npz", observation=np.zeros((1, 3, 1), np.float32), fps=np.ones(2))
    names = "text.nc", "text.npz", "empty.npz", "other.npz", "other.nc", "objects.npz", "fps.npz"
    for name in names:
        with pytest.raises(DataError, match=f"{name}: cannot be read as episodes"):
            read_episodes(tmp_path / name)
    np.save(tmp_path / "array.npy", np.zeros(3))
    (tmp_path / "array.npy").rename(tmp_path / "array.npz")
    with pytest.raises(DataError, match=r"array.npz: cannot be read"):
        read_data("world_model", {"source": str(tmp_path / "array.npz")})
    with pytest.raises(DataError, match="there is no such file"):
        read_episodes(tmp_path / "none.nc")
    with pytest.raises(DataError, match=r"named \.nc or \.npz"):
        read_episodes(tmp_path / "frames.mp4")
    with pytest.raises(DataError, match="no files"):
        read_episodes([])


@pytest.mark.parametrize(("suffix", "stride"), [("nc", 101), ("npz", 23)])
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # of h5netcdf
def test_a_damaged_byte_is_read_or_named(suffix, stride, tmp_path):
    """Every so many bytes one is inverted: the file is refused by its name, or read."""
    rng, sound = np.random.default_rng(0), tmp_path / f"sound.{suffix}"
    arrays = rng.normal(size=(3, 6, 2)), rng.normal(size=(3, 6, 1))
    save_episodes(make_episodes(observation=arrays[0], action=arrays[1], fps=5), sound)
    whole, refused = sound.read_bytes(), []
    for at in range(0, min(len(whole), 8000), stride):
        file = tmp_path / f"{at}.{suffix}"  # HDF5 keeps those open that it fails to read
        file.write_bytes(whole[:at] + bytes([whole[at] ^ 255]) + whole[at + 1 :])
        try:
            read_data("world_model", {"source": str(file)})
        except DataError as error:
            refused.append(file.name in str(error))
    assert all(refused)
    assert len(refused) > 30


def test_whole_numbers_are_images_and_ends_where_they_can_be():
    """As other libraries store them: pictures as int64, ends as 0 and 1."""
    plain = hand_made()
    as_numbers = {name: plain[name].to_numpy().astype(np.int64) for name in ("image", "terminal")}
    assert hand_made(**as_numbers).identical(plain)
    stored = plain.assign({name: (plain[name].dims, x) for name, x in as_numbers.items()})
    assert check_episodes(stored).identical(plain)


def test_unknown_arrays_are_told_what_they_may_be(tmp_path):
    np.savez(tmp_path / "a.npz", observation=np.zeros((1, 3, 2)), rewards=np.zeros((1, 3)))
    with pytest.raises(DataError, match=r"unknown arrays rewards; did you mean reward\?"):
        read_episodes(tmp_path / "a.npz")
    np.savez(tmp_path / "a.npz", observation=np.zeros((1, 3, 2)), foo=np.zeros((1, 3)))
    with pytest.raises(DataError, match=r"unknown arrays foo; expected image, observation, action"):
        read_episodes(tmp_path / "a.npz")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"image": None, "observation": None}, "neither `image` nor `observation`"),
        ({"image": np.zeros((3, FRAMES, 2, 4, 3))}, "`image` is float64; expected uint8"),
        ({"image": np.zeros((3, FRAMES, 2, 4), np.uint8)}, r"`image` has shape \(3, 6, 2, 4\)"),
        ({"terminal": np.zeros((3, FRAMES))}, "`terminal` is float64; expected bool"),
        ({"reward": np.zeros((3, 5))}, "differ between variables"),
        ({"reward": np.ones((3, FRAMES))}, "`reward` is not 0 at the first frame"),
        ({"reward": np.where(np.ones((3, 1)) * np.arange(FRAMES) > 0, np.inf, 0)},
         "`reward` is inf in trajectory 'a', frame 1; it must be finite"),
        ({"observation": np.full((3, FRAMES, 1), np.nan)},
         "`observation` is nan in trajectory 'a', frame 0, feature 0; it must be finite$"),
        ({"length": None},
         "`observation` is nan in trajectory 'b', frame 3, feature 0; .*padding, give `length`"),
        ({"action": np.zeros((3, FRAMES))}, "of discrete actions give one-hot vectors"),
        ({"image": np.full((3, FRAMES, 2, 4, 3), 256)}, "`image` is int64; expected uint8"),
        ({"terminal": np.ones((3, FRAMES), bool)}, "`terminal` before the last frame"),
        ({"length": [6, 3]}, "length entries for 3"),
        ({"length": [6, 3, 0]}, "whole numbers from 1 to 6"),
        ({"length": [7, 3, 1]}, "whole numbers from 1 to 6"),
        ({"length": [1.5, 3, 1]}, "whole numbers from 1 to 6"),
        ({"trajectory": ["a", "a", "b"]}, "not unique"),
        ({"control": ["left"]}, "1 names for 2 controls"),
        ({"fps": 0.0}, "fps is 0.0"),
        ({"reward": [[0.0], [0.0, 1.0], [0.0]]}, "`reward` is of lists of unequal length"),
    ],
)  # fmt: skip
def test_what_is_not_an_episode(changes, said):
    with pytest.raises(DataError, match=said):
        hand_made(**changes)


def test_a_dataset_of_another_kind():
    with pytest.raises(DataError, match="no `image` and no `observation`, but position"):
        check_episodes(xr.Dataset({"position": ("time", [1.0])}))
    turned = hand_made()[["image"]].transpose("time", "trajectory", ...)
    with pytest.raises(DataError, match="`image` has dims"):
        check_episodes(turned)
    with pytest.raises(DataError, match="no `image`"):
        EpisodeWindows(hand_made(image=None), 2, modality="image")
    with pytest.raises(DataError, match="windows of 0 frames"):
        EpisodeWindows(hand_made(), 0)
