"""Replay: every frame says which it is, so that windows can be counted; and a process killed."""

import multiprocessing
import time

import numpy as np
import pytest
import torch
import xarray as xr
from scipy import stats

from pyro_animacy.acting.replay import Replay, quantised
from pyro_animacy.data.episode_windows import EpisodeWindows
from pyro_animacy.data.episodes import make_episodes
from pyro_animacy.errors import ConfigError, DataError, RunError


def episode(n, frames, *, pixels=None, ended=False, **changes):
    """Episode ``n``: frame t shows (n, t), its action is 100 n + t + 1, its reward 1000 n + t.

    ``pixels`` is the side of random images beside it.
    """
    t = np.arange(frames)
    terminal = np.zeros((1, frames), bool)
    terminal[0, -1] = ended
    arrays = {
        "observation": np.stack([np.full(frames, n), t], -1)[None],
        "action": np.where(t < frames - 1, 100.0 * n + t + 1, np.nan)[None, :, None],
        "reward": np.where(t == 0, 0.0, 1000.0 * n + t)[None],
        "terminal": terminal,
        "fps": 10.0,
        "trajectory": [f"episode {n}"],
        "source": "by hand",
    }
    if pixels:
        rng = np.random.default_rng(n)
        arrays["image"] = rng.integers(0, 256, (1, frames, pixels, pixels, 3), np.uint8)
    return make_episodes(**arrays | changes)


def filled(folder, lengths, *, memory=2**30, **options):
    replay = Replay(folder, fps=10, memory=memory)
    for n, frames in enumerate(lengths):
        assert replay.add(episode(n, frames, **options)) == n
    return replay


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def equal(these, those):
    assert len(these) == len(those)
    for one, other in zip(these, those, strict=True):
        assert one.dtype == other.dtype
        assert torch.equal(one, other)
    return True


# --- on disk --------------------------------------------------------------------------------------


def test_episodes_come_back_bit_for_bit(tmp_path):
    lengths = [7, 3, 5]
    replay = filled(tmp_path / "new" / "replay", lengths, pixels=4)
    assert (len(replay), replay.frames) == (3, 15)
    for known in (replay, Replay(tmp_path / "new" / "replay", fps=10)):
        for n, found in enumerate(known.episodes()):
            expected = episode(n, lengths[n], pixels=4)
            xr.testing.assert_identical(found, expected)
            for name in expected.data_vars:
                assert found[name].to_numpy().tobytes() == expected[name].to_numpy().tobytes()
    names = sorted(path.name for path in (tmp_path / "new" / "replay").iterdir())
    assert names == ["000000.npz", "000001.npz", "000002.npz"]


def test_padding_is_cut_off(tmp_path):
    replay = Replay(tmp_path, fps=10)
    replay.add(episode(0, 9).assign_coords(length=("trajectory", [4])).drop_vars("terminal"))
    found = replay.read(0)
    assert found.sizes["time"] == replay.frames == 4
    assert "terminal" not in found


def test_all_as_one_dataset(tmp_path):
    replay = filled(tmp_path, [4, 6, 2])
    ds = replay.dataset()
    assert ds["length"].to_numpy().tolist() == [4, 6, 2]
    assert ds["trajectory"].to_numpy().tolist() == ["episode 0", "episode 1", "episode 2"]
    np.testing.assert_array_equal(ds["observation"][1], episode(1, 6)["observation"][0])
    np.testing.assert_array_equal(ds["reward"][2, :2], episode(2, 2)["reward"][0])


def test_forgotten_episodes_are_collected_again(tmp_path):
    replay = filled(tmp_path, [4, 6, 2, 5])
    assert replay.sample(50, 2, seeded(0)).observation[..., 0].max() == 3  # now in memory
    (tmp_path / ".000003.npz.abc").write_bytes(b"left by a kill")
    replay.truncate(2)
    assert (len(replay), replay.frames) == (2, 10)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["000000.npz", "000001.npz"]
    assert replay.add(episode(9, 8)) == 2
    batch = replay.sample(200, 2, seeded(0))
    assert batch.observation[..., 0].unique().tolist() == [0, 1, 9]
    assert equal(batch, Replay(tmp_path, fps=10).sample(200, 2, seeded(0)))
    with pytest.raises(RunError, match="has 3 episodes, and 4 are to be kept"):
        replay.truncate(4)
    replay.truncate(0)
    assert replay.add(episode(0, 3, pixels=4)) == 0  # of whatever kind, as the first is
    with pytest.raises(RunError, match="has 1 episode, and no number 1"):
        replay.read(1)


# --- windows --------------------------------------------------------------------------------------


def test_alignment(tmp_path):
    replay = Replay(tmp_path, fps=10)
    replay.add(episode(3, 3, ended=True))
    batch = replay.sample(1, 5, seeded(0))
    assert batch.observation[:, 0].tolist() == [[3, 0], [3, 1], [3, 2], [0, 0], [0, 0]]
    assert batch.action[:, 0, 0].tolist() == [0, 301, 302, 0, 0]
    assert batch.reward[:, 0].tolist() == [0, 3001, 3002, 0, 0]
    assert batch.continuation[:, 0].tolist() == [1, 1, 0, 1, 1]
    assert batch.observed[:, 0].tolist() == [True, True, True, False, False]
    replay.truncate(0)
    replay.add(episode(3, 9))
    for seed in range(5):
        batch = replay.sample(1, 4, seeded(seed))
        start = int(batch.observation[0, 0, 1])
        assert batch.observation[:, 0, 1].tolist() == [start + k for k in range(4)]
        before = [300.0 + start + k for k in range(4)]
        assert batch.action[:, 0, 0].tolist() == ([0.0] if start == 0 else before[:1]) + before[1:]


@pytest.mark.parametrize("pixels", [None, 4])
@pytest.mark.parametrize("frames", [1, 4, 30])
def test_batches_are_those_of_windows_of_the_dataset(tmp_path, frames, pixels):
    replay = filled(tmp_path, [5, 9, 3, 14, 1], pixels=pixels, ended=True)
    windows = EpisodeWindows(replay.dataset(), frames)
    for seed in range(3):
        found = replay.sample(16, frames, seeded(seed))
        assert equal(found, windows.draw(16, seeded(seed)))
        assert found.observation.stride() == windows.draw(16, seeded(seed)).observation.stride()


def test_each_window_is_as_likely(tmp_path):
    lengths, frames, per_window = [5, 9, 3, 14, 7], 4, 400
    replay = filled(tmp_path, lengths)
    windows = [(n, s) for n, length in enumerate(lengths) for s in range(max(length - 3, 1))]
    assert len(windows) == 2 + 6 + 1 + 11 + 4
    batch = replay.sample(per_window * len(windows), frames, seeded(1))
    drawn = [tuple(first) for first in batch.observation[0].int().tolist()]
    count = [drawn.count(window) for window in windows]
    assert sum(count) == len(drawn)
    assert stats.chisquare(count).pvalue > 0.01
    # the same test finds windows out that are drawn by episode first
    by_episode = np.concatenate([np.full(n, 1 / n / 5) for n in (2, 6, 1, 11, 4)])
    expected = np.random.default_rng(0).multinomial(len(drawn), by_episode)
    assert stats.chisquare(expected).pvalue < 1e-9


# --- memory ---------------------------------------------------------------------------------------


def test_bounded_memory_changes_no_batch(tmp_path, monkeypatch):
    lengths = [6, 8, 10, 12] * 5
    whole = filled(tmp_path, lengths, pixels=6, ended=True)
    per_frame = 6 * 6 * 3 + 4 + 4 + 1  # image, action, reward, terminal
    most, held, reads = 3 * 12 * per_frame, [], []
    bounded = Replay(tmp_path, fps=10, memory=most)
    read = bounded.read

    def counted(n):
        reads.append(n)
        held.append(bounded.held)
        return read(n)

    monkeypatch.setattr(bounded, "read", counted)
    for seed in range(20):
        for options in ({}, {"bits": 5}):
            one, other = (r.sample(8, 5, seeded(seed), **options) for r in (whole, bounded))
            assert equal(one, other)
            held.append(bounded.held)
    assert whole.held == sum(lengths) * per_frame
    assert max(held) <= most
    assert np.mean(held[5:]) > most / 2  # and it is made use of
    assert 40 * 4 < len(reads) < 40 * 8
    nothing = Replay(tmp_path, fps=10, memory=0)
    assert equal(nothing.sample(8, 5, seeded(0)), whole.sample(8, 5, seeded(0)))
    assert nothing.held == 0


def test_what_was_used_last_is_kept(tmp_path, monkeypatch):
    replay = filled(tmp_path, [4, 4, 4])
    per_episode = 4 * (2 * 4 + 4 + 4 + 1)
    replay = Replay(tmp_path, fps=10, memory=2 * per_episode)
    reads, read = [], replay.read
    monkeypatch.setattr(replay, "read", lambda n: reads.append(n) or read(n))
    for n in (0, 1, 0, 2, 0, 1):
        monkeypatch.setattr(replay, "_draw", lambda *_, n=n: (torch.tensor([n]), torch.tensor([0])))
        assert replay.sample(1, 4, seeded(0)).observation[0, 0, 0] == n
    assert reads == [0, 1, 2, 1]


# --- images of fewer bits ---------------------------------------------------------------------


def test_quantised_by_hand():
    image = torch.tensor([0, 7, 8, 100, 255], dtype=torch.uint8)
    floor = torch.tensor([0, 0, 1, 12, 31]) / 32
    for given in (image, image.float() / 255):
        found = quantised(given, 5, seeded(0))
        assert found.dtype == torch.float32
        assert ((found >= floor) & (found < floor + 1 / 32)).all()
    assert torch.equal(quantised(image, 8), image.float() / 255)
    assert torch.equal(quantised(image.float() / 255, 8), image.float() / 255)
    assert torch.equal(quantised(image, 1, seeded(0)) >= 0.5, image >= 128)
    for bits in (0, 9, 5.5):
        with pytest.raises(ConfigError, match=f"is {bits}; it must be from 1 to 8"):
            quantised(image, bits)


@pytest.mark.parametrize("bits", [1, 5, 7])
def test_noise_is_uniform_and_never_reaches_the_next_value(bits):
    value = torch.arange(256, dtype=torch.uint8).repeat(20000)
    found = quantised(value, bits, seeded(0))
    assert found.max() < 1  # 0.2 million at the highest value: plain rounding would reach 1
    coarse = torch.div(value, 2 ** (8 - bits), rounding_mode="floor")
    assert torch.equal((found * 2**bits).floor().to(torch.uint8), coarse)
    noise = (found * 2**bits - coarse)[::97]
    assert stats.kstest(noise.numpy(), "uniform").pvalue > 0.01
    pairs = noise[: len(noise) // 2 * 2].reshape(-1, 2).T
    assert abs(np.corrcoef(pairs.numpy())[0, 1]) < 4 / np.sqrt(pairs.shape[1])


def test_five_bits_in_a_batch(tmp_path):
    replay = filled(tmp_path, [5, 9, 3], pixels=4)
    plain = replay.sample(20, 4, seeded(0))
    five, again = (replay.sample(20, 4, seeded(0), bits=5) for _ in range(2))
    assert equal(five, again)
    for one, other in zip(plain[1:], five[1:], strict=True):  # all but what is observed
        assert torch.equal(one, other)
    byte = (plain.observation * 255).round()
    low = (byte / 8).floor() / 32
    inside = (five.observation >= low) & (five.observation < low + 1 / 32)
    observed = plain.observed[..., None, None, None].expand_as(inside)
    assert inside[observed].all()
    assert five.observation.shape == (4, 20, 3, 4, 4)
    assert not five.observation[~observed].any()  # the padding has no noise
    assert (~observed).any()


# --- what can go wrong ----------------------------------------------------------------------------


def add_for_ever(folder, ready):
    """What the process does that is killed: it goes on where another was."""
    replay = Replay(folder, fps=10)
    while True:
        replay.add(whole(len(replay)))
        ready.set()


def whole(n):
    return episode(n, 20 + n % 7, pixels=32)


def test_killed_at_any_moment(tmp_path):
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["pyro_animacy.acting.replay", "scipy.stats", "pytest"])
    rng = np.random.default_rng(0)
    kills, temporary = 8, 0
    for kill in range(kills):
        ready = context.Event()
        process = context.Process(target=add_for_ever, args=(tmp_path, ready))
        process.start()
        try:
            assert ready.wait(60)
            if kill % 2:
                time.sleep(rng.uniform(0, 0.1))
            else:  # while a file is being written
                deadline = time.monotonic() + 60
                while not list(tmp_path.glob(".*")):
                    assert time.monotonic() < deadline
        finally:
            process.kill()
            process.join()
        assert process.exitcode == -9
        temporary += len(list(tmp_path.glob(".*")))
        replay = Replay(tmp_path, fps=10)
        for n, found in enumerate(replay.episodes()):
            xr.testing.assert_identical(found, whole(n))
    assert len(replay) >= kills
    assert temporary > 0  # a kill did come in the middle
    replay.add(whole(len(replay)))
    assert not list(tmp_path.glob(".*"))
    assert len(list(tmp_path.iterdir())) == len(replay)


def test_another_that_is_being_written_is_left_alone(tmp_path):
    replay = filled(tmp_path, [4])
    (tmp_path / ".000001.npz.abc").write_bytes(b"half")
    Replay(tmp_path, fps=10).sample(2, 2, seeded(0))
    assert (tmp_path / ".000001.npz.abc").exists()
    replay.add(episode(1, 4))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["000000.npz", "000001.npz"]


def test_a_gap(tmp_path):
    filled(tmp_path, [4, 4, 4])
    (tmp_path / "000001.npz").unlink()
    (tmp_path / "notes.npz").write_text("not an episode's name")
    with pytest.raises(RunError, match=r"000001.npz: is missing.*put it back"):
        Replay(tmp_path, fps=10)


def test_damaged_files_are_named(tmp_path):
    filled(tmp_path, [4, 4], pixels=6)
    path = tmp_path / "000001.npz"
    good = path.read_bytes()
    for bad in (b"", b"no", good[:-30], good[: len(good) // 2]):
        path.write_bytes(bad)
        with pytest.raises(RunError, match=r"000001.npz: cannot be read .*put it back"):
            Replay(tmp_path, fps=10)
    # inside an array: found when it is read
    where = good.index(b"image.npy") + 60
    path.write_bytes(
        good[:where] + bytes(255 - b for b in good[where : where + 9]) + good[where + 9 :]
    )
    replay = Replay(tmp_path, fps=10)
    assert len(replay) == 2
    replay.read(0)
    for ask in (lambda: replay.read(1), replay.dataset, lambda: replay.sample(9, 2, seeded(0))):
        with pytest.raises(RunError, match=r"000001.npz: cannot be read .*put it back"):
            ask()


def test_every_altered_byte_is_found_or_changes_nothing(tmp_path):
    replay = filled(tmp_path, [3], pixels=2)
    path = tmp_path / "000000.npz"
    good, expected = path.read_bytes(), replay.read(0)
    found = 0
    for i in range(0, len(good), 5):
        path.write_bytes(good[:i] + bytes([good[i] ^ 1]) + good[i + 1 :])
        try:
            xr.testing.assert_identical(Replay(tmp_path, fps=10).read(0), expected)
        except RunError:
            found += 1
    assert found > len(good) / 10


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (lambda: episode(1, 4, fps=20.0), "has 20.0 frames a second, the replay 10"),
        (lambda: episode(1, 4, pixels=4), "another environment"),
        (lambda: episode(1, 4, observation=np.zeros((1, 4, 5))), "another environment"),
        (lambda: episode(1, 4).drop_vars("reward"), "another environment"),
        (lambda: episode(1, 4).assign(state=("time", np.zeros(4))), "has state, which is not kept"),
        (lambda: episode(1, 4).assign_attrs(seed=1), "has seed, which is not kept"),
        (lambda: episode(1, 4, action=np.zeros((1, 4, 2))), "another environment"),
        (lambda: xr.concat([episode(1, 4), episode(2, 4)], "trajectory"), "2 trajectories"),
        (lambda: episode(1, 4).assign(reward=np.nan * episode(1, 4)["reward"]), "must be finite"),
    ],
)  # fmt: skip
def test_episodes_that_do_not_belong(tmp_path, wrong, said):
    replay = Replay(tmp_path, fps=10)
    replay.add(episode(0, 4))
    for known in (replay, Replay(tmp_path, fps=10)):
        with pytest.raises(DataError, match=said):
            known.add(wrong())
        assert len(known) == 1
    assert len(list(tmp_path.iterdir())) == 1


def test_a_full_disk_loses_nothing(tmp_path, monkeypatch):
    replay = filled(tmp_path, [4])

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez_compressed", full)
    with pytest.raises(RunError, match=r"000001.npz: cannot be written .*No space"):
        replay.add(episode(1, 4))
    monkeypatch.undo()
    assert len(list(tmp_path.iterdir())) == len(replay) == 1
    assert replay.add(episode(1, 4)) == 1


def test_values_that_cannot_be_used(tmp_path):
    for options, said in (({"fps": 0}, "fps is 0"), ({"fps": 1, "memory": -1}, "memory is -1")):
        with pytest.raises(ConfigError, match=said):
            Replay(tmp_path, **options)
    replay = Replay(tmp_path, fps=10)
    for ask in (lambda: replay.sample(1, 1, seeded(0)), replay.dataset):
        with pytest.raises(RunError, match="has no episodes yet"):
            ask()
    assert list(replay.episodes()) == []
    replay.add(episode(0, 4))
    for size, frames, said in ((0, 1, "batch_size is 0"), (1, 0, "frames is 0")):
        with pytest.raises(ConfigError, match=said):
            replay.sample(size, frames, seeded(0))
    with pytest.raises(RunError, match=r"000000.npz: has 10 frames a second, and this run 20"):
        Replay(tmp_path, fps=20)
