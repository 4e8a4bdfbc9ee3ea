"""CarRacing: repeatable, really the environment's frames, driven along the road."""

import sys

import numpy as np
import pytest

from pyro_animacy.cli import main
from pyro_animacy.data import carracing
from pyro_animacy.data.carracing import _bearing, _environment, _resized, simulate_carracing
from pyro_animacy.data.episodes import check_episodes, read_episodes
from pyro_animacy.errors import ConfigError, MissingExtra

pytest.importorskip("gymnasium", reason="the rl extra is not installed")


@pytest.fixture(scope="module")
def short():
    return simulate_carracing(2, 16, seed=4, fps=12.5, progress=False)


def test_schema(short):
    check_episodes(short)
    assert short["image"].shape == (2, 16, 64, 64, 3)
    assert short["control"].to_numpy().tolist() == ["steering", "gas", "brake"]
    assert short.attrs["fps"] == 12.5
    assert not short["terminal"].to_numpy().any()  # cut off, not ended
    action = short["action"].to_numpy()
    assert (abs(action[..., 0]) <= 1).all()
    assert ((action[..., 1:] >= 0) & (action[..., 1:] <= 1)).all()
    assert not action[:, -1].any()


def test_repeatable_by_seed_and_episode(short):
    again = simulate_carracing(1, 16, seed=4, fps=12.5, progress=False)
    other = simulate_carracing(1, 16, seed=5, fps=12.5, progress=False)
    for name in ("image", "action", "reward"):
        np.testing.assert_array_equal(again[name], short[name][:1])
    assert (other["image"].to_numpy() != again["image"].to_numpy()).mean() > 0.1


def test_frames_are_the_environments(short):
    """Frames, rewards and their alignment again, by the recorded actions in the environment."""
    env = _environment()
    rng = np.random.default_rng(np.random.SeedSequence((4, 1)))
    carracing._Driver(rng, 0.08)  # draws a temper first
    seen, _ = env.reset(seed=int(rng.integers(2**31)))
    for _ in range(50):
        seen, *_ = env.step(np.zeros(3, np.float32))
    episode = short.isel(trajectory=1)
    np.testing.assert_array_equal(episode["image"][0], _resized(seen, (64, 64)))
    for t in range(15):
        reward = 0.0
        for _ in range(4):
            seen, r, *_ = env.step(episode["action"].to_numpy()[t])
            reward += r
        np.testing.assert_array_equal(episode["image"][t + 1], _resized(seen, (64, 64)))
        assert float(episode["reward"][t + 1]) == pytest.approx(reward, abs=1e-5)
    env.close()


def test_frames_move_and_the_bar_is_off(short):
    image = short["image"].to_numpy().astype(int)
    assert (abs(np.diff(image[:, -4:], axis=1)).mean((2, 3, 4)) > 1).all()
    assert image[:, :, -1].max(-1).min() > 60  # the indicator bar is black


def test_resizing_averages_areas():
    seen = np.zeros((96, 96, 3), np.uint8)
    seen[:84] = np.random.default_rng(0).integers(0, 256, (84, 96, 3))
    seen[84:] = 255
    blocks = seen[:84].reshape(42, 2, 48, 2, 3).mean((1, 3))
    np.testing.assert_allclose(_resized(seen, (42, 48)), blocks, atol=1.0)  # rounded twice
    assert _resized(seen, (60, 80)).shape == (60, 80, 3)


def painted(slope=0.0, offset=0.0):
    """Grass with a grey road up from the car, which leans by ``slope`` columns a row."""
    seen = np.full((96, 96, 3), (100, 204, 100), np.uint8)
    for row in range(84):
        centre = 47.5 + offset + slope * (66 - row)
        seen[row, round(max(centre - 10, 0)) : round(max(centre + 10, 0))] = 105
    return seen


@pytest.mark.parametrize("slope", [-0.6, -0.2, 0.0, 0.2, 0.6])
def test_the_driver_sees_where_the_road_goes(slope):
    assert _bearing(painted(slope), 9.0) == pytest.approx(np.arctan(slope), abs=0.05)


def test_the_driver_off_the_road():
    assert _bearing(painted(offset=35), 0.0) > 0.8  # finds it beside the car
    assert _bearing(painted(offset=-35), 0.0) < -0.8
    assert _bearing(np.full((96, 96, 3), (100, 204, 100), np.uint8), 0.25) == 0.25


@pytest.mark.slow
def test_the_driver_follows_the_road():
    """Most of the time it is on the road, and it drives over new tiles of it."""
    ds = simulate_carracing(4, 100, seed=1, progress=False)
    beside = ds["image"].to_numpy()[:, :, 44:56, 28:37].astype(int)  # about the car
    grey = (abs(beside[..., 1] - beside[..., 0]) < 40).mean((2, 3)) > 0.5
    assert grey.mean() > 0.75
    assert (ds["reward"].sum("time") > 30).all()  # some 3.5 a tile, less 0.2 a frame


def test_command(tmp_path, capsys):
    out = tmp_path / "cars.npz"
    words = ["simulate", "carracing", "--trajectories", "2", "--frames", "4", "--size", "20x30"]
    assert main([*words, "--fps", "10", "--seed", "3", "--out", str(out)]) == 0
    assert "2 episodes, 8 frames of 20 x 30 pixels" in capsys.readouterr().out
    expected = simulate_carracing(2, 4, (20, 30), 3, fps=10, progress=False)
    np.testing.assert_array_equal(read_episodes(out)["image"], expected["image"])


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["carracing", "--size", "64"], "--size is 64; it must be height x width"),
        (["carracing", "--size", "0x64"], "size is (0, 64); it must be at least one pixel"),
        (["carracing", "--fps", "20"], "fps: 20.0 does not divide the 50 steps"),
        (["carracing", "--frames", "1"], "frames is 1; it must be at least 2"),
        (["carracing", "--seed", "-1"], "seed is -1; it must be 0 or more"),
        (["carracing", "--trajectories", "0"], "trajectories is 0; it must be at least 1"),
        (["carracing", "--out", "cars.mp4"], "named .nc or .npz"),
        (["soccer", "--size", "64x64"], "--size is of images"),
    ],
)
def test_options_that_cannot_be_used(words, said, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    out = [] if "--out" in words else ["--out", "o.nc"]
    assert main(["simulate", *words, *out]) == 2
    assert said in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_missing_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "gymnasium", None)
    with pytest.raises(MissingExtra, match=r'pip install "pyro-animacy\[rl\]"'):
        simulate_carracing(1, 2, progress=False)
    monkeypatch.undo()
    with pytest.raises(ConfigError, match="fps"):
        simulate_carracing(1, 2, fps=0, progress=False)
