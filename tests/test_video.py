"""The video: panels against the environments, draws against independent code, what they may see."""

import dataclasses

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

pytest.importorskip("gymnasium", reason="the rl extra is not installed")

from pyro_animacy.acting import film as filming
from pyro_animacy.acting import video as videos
from pyro_animacy.acting.act import act
from pyro_animacy.acting.config import act_preset
from pyro_animacy.acting.environments import chase
from pyro_animacy.acting.environments.make import make
from pyro_animacy.acting.film import BORDER, OPEN_LOOP, Film, Lines, Rewards
from pyro_animacy.acting.run import evaluation, load_agent
from pyro_animacy.acting.video import predict, reconstruct, video
from pyro_animacy.data.episode_windows import EpisodeBatch, EpisodeWindows
from pyro_animacy.data.episodes import make_episodes, read_episodes
from pyro_animacy.errors import ConfigError, RunError
from pyro_animacy.infer.predict_episodes import predict_episodes
from pyro_animacy.infer.run import Run
from pyro_animacy.models.program import Memory
from pyro_animacy.models.world_model import (
    Sight,
    WorldModel,
    WorldModelConfig,
    WorldModelGuide,
)
from pyro_animacy.nets import StackConfig

C, K = 3, 6  # context and open loop
PURPLE = [0xAA, 0x33, 0x77]


def made(tmp_path_factory, environment, **options):
    out = tmp_path_factory.mktemp("acting") / "run"
    config = dataclasses.replace(
        act_preset("debug", "dreamer"),
        episodes=2,
        seed_episodes=1,
        evaluation_episodes=1,
        **options,
    )
    return act(environment, config, out=out, progress=False)


@pytest.fixture(scope="module")
def vectors(tmp_path_factory):
    return made(tmp_path_factory, "Chase-v0")


@pytest.fixture(scope="module")
def pixels(tmp_path_factory):
    return made(tmp_path_factory, "Chase-v0", pixels=True)


@pytest.fixture(scope="module")
def pendulum(tmp_path_factory):
    return made(tmp_path_factory, "Pendulum-v1", action_repeat=5)


@pytest.fixture
def filmed(monkeypatch, tmp_path):
    """Film a run, of given episodes where there are: the frames before they go into a file."""

    def film(path, given=None, only=None, **options):
        kept = []

        def save(frames, to, fps, progress):
            kept.extend(frames[t]() for t in (range(len(frames)) if only is None else only))
            kept.append(len(frames))

        with monkeypatch.context() as patch:
            patch.setattr(videos, "_saving", lambda out: save)
            if given is not None:
                patch.setattr(videos, "evaluation", lambda *_, **__: given)
            options = {"open_loop": K, "context": C} | options
            video(path, tmp_path / "film.gif", progress=False, **options)
        assert only is None or max(only) == kept[-1] - 1  # the last frame is the last there is
        return np.stack(kept[:-1])

    return film


def panels(frames, side=None, wide=None, tall=None):
    """The three panels (T, height, width, 3) of frames (T, ...)."""
    wide, tall = wide or side, tall or side
    top, step = filming.TITLE + BORDER, wide + 2 * BORDER + filming.MARGIN
    lefts = [filming.MARGIN + BORDER + i * step for i in range(3)]
    return [frames[:, top : top + tall, x : x + wide] for x in lefts]


def stored(path, frames=None):
    """An episode of a run, its first frames."""
    episode = read_episodes(path / "episodes" / "000000.npz")
    frames = frames or episode.sizes["time"]
    episode = episode.isel(time=slice(frames))
    return episode.assign_coords(length=("trajectory", [frames]))


def whole(episode):
    return EpisodeWindows(episode, episode.sizes["time"]).batch(torch.tensor([0]))


# --- what is shown --------------------------------------------------------------------------------


def test_the_agent_plays_and_the_recorded_panel_is_what_the_environment_shows(vectors, filmed):
    before, some = torch.get_rng_state(), [0, 1, 60, 100, 101, 201]
    frames = filmed(vectors, only=some, episodes=2, seed=3)
    assert torch.equal(torch.get_rng_state(), before)
    assert frames.dtype == np.uint8
    assert frames.shape[1] % 2 == frames.shape[2] % 2 == 0
    agent = load_agent(vectors, make("Chase-v0"))
    played = evaluation(lambda: make("Chase-v0"), lambda _: agent, 2, seed=3, fps=10)
    seen = np.concatenate([episode["observation"].to_numpy()[0] for episode in played])
    recorded, *others = panels(frames, filming.SIDE)
    for panel, t in zip(recorded, some, strict=True):
        assert (panel == chase.picture(seen[t], filming.SIDE)).all()
    for panel in others:
        assert (panel != recorded).any((1, 2, 3)).all()


def test_pixels_are_enlarged_as_they_are(pixels, filmed):
    episode = stored(pixels, 20)
    frames = filmed(pixels, [episode])
    recorded = panels(frames, 192)[0]
    shown = recorded.reshape(20, 64, 3, 64, 3, 3)
    assert (shown == episode["image"].to_numpy()[0][:, :, None, :, None]).all()


def test_a_world_with_a_picture_of_its_own_is_shown_by_it(pendulum, filmed, monkeypatch):
    frames = filmed(pendulum, only=[0, 1, 2, 3, 40], seed=1)
    wide, tall = filming.CURVES
    recorded = panels(frames, wide=wide, tall=tall)[0]
    env = make("Pendulum-v1", action_repeat=5, render=True)
    agent = load_agent(pendulum, env)
    (episode,) = evaluation(
        lambda: make("Pendulum-v1", action_repeat=5), lambda _: agent, 1, seed=1, fps=6
    )
    assert episode.sizes["time"] == 41
    env.reset(seed=int(videos.stream(1, 0, 2) % 2**31))
    for t, action in enumerate(episode["action"].to_numpy()[0][:4]):
        drawn = ImageOps.pad(
            Image.fromarray(env.render()), (wide, tall), Image.Resampling.BOX, color="white"
        )
        assert (recorded[t] == np.asarray(drawn)).all()
        env.step(action)
    env.close()


def test_where_nothing_can_be_drawn_lines_will_do(pendulum, filmed, monkeypatch):
    def blind(environment, config, *, render=False):
        if render:
            raise RunError("no pictures here")
        return make(environment, action_repeat=config.action_repeat)

    monkeypatch.setattr(videos, "make_env", blind)
    episode = stored(pendulum, 20)
    frames = filmed(pendulum, [episode])
    wide, tall = filming.CURVES
    o = episode["observation"].to_numpy()[0]
    lines = Lines(o, None, "black", part=C + K, seen=0, fps=episode.attrs["fps"])
    for t in (0, 19):
        assert (panels(frames, wide=wide, tall=tall)[0][t] == lines(t)).all()


# --- what the model makes of it -------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["vectors", "pixels"])
def test_draws_are_those_of_predict_episodes(kind, request):
    path = request.getfixturevalue(kind)
    run, episode = Run.load(path), stored(path, C + K)
    name = "image" if kind == "pixels" else "observation"
    for mode, call in (
        ("reconstruct", lambda: reconstruct(run.guide, whole(episode), draws=4)),
        ("forecast", lambda: predict(run.guide, whole(episode), C, K, draws=4)),
    ):
        tree = predict_episodes(
            run, episode, mode=mode, draws=4, context=C, seed=11, progress=False
        )
        group = tree["predictions" if mode == "forecast" else "posterior_predictive"]
        with torch.no_grad(), torch.random.fork_rng():
            torch.manual_seed(11)
            found = call()
        first = C if mode == "forecast" else 1  # what was given is the recording, there
        shown = group[name].to_numpy()[0, :, 0, first:].astype(float)
        ours = found.observation[:, first:].astype(float)
        assert ours.shape == ((1, *shown.shape[1:]) if kind == "pixels" else shown.shape)
        # a pixel between two values may be rounded to either
        np.testing.assert_allclose(ours, shown[: len(ours)], rtol=1e-4,
                                   atol=1 if kind == "pixels" else 1e-5)  # fmt: skip
        reward = group["reward"].to_numpy()[0, :, 0, first:]
        np.testing.assert_allclose(found.reward[:, first:], reward, rtol=1e-4, atol=1e-5)


def certain(seed=0):
    """A world model without chance, of vectors (2,) and one control, and its guide."""
    net = StackConfig(hidden=8, layers=1)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        config = WorldModelConfig(
            memory_size=6, latent_size=0, prior=net, posterior=net, encoder=net, decoder=net,
            reward=net, continuation=net,
        )  # fmt: skip
        model = WorldModel(config, Sight((2,), (0.5, -0.5), (1.0, 2.0), 1, True, False))
        guide = WorldModelGuide(model)
    return model, guide


def invented(frames, seed=0):
    rng = np.random.default_rng(seed)
    reward = rng.normal(size=(1, frames))
    reward[:, 0] = 0
    return make_episodes(
        observation=rng.normal(size=(1, frames, 2)), action=rng.normal(size=(1, frames, 1)),
        reward=reward, fps=10.0,
    )  # fmt: skip


def test_every_part_begins_anew_with_the_action_before_it():
    model, guide = certain()
    frames = 2 * (C + K) + 2  # the last part is shorter than its context
    episode = invented(frames)
    with torch.no_grad():
        found = predict(guide, whole(episode), C, K, draws=2)
        for s in range(0, frames, C + K):
            length = min(C + K, frames - s)
            windows = EpisodeWindows(episode, length)
            (which,) = (windows.index == torch.tensor([0, s])).all(1).nonzero()
            window = windows.batch(which)
            with guide:
                seen = model.follow(EpisodeBatch(*(None if x is None else x[:C] for x in window)))
            path = seen
            if length > C:
                ahead = model.imagine(Memory(*(x[-1] for x in seen)), window.action[C:])
                path = Memory(*map(torch.cat, zip(seen, ahead, strict=True)))
            mean, reward = model.observation(path).base_dist.loc, model.rewarded(path).loc
            for draw in range(2):
                here = slice(s, s + length)
                np.testing.assert_allclose(found.observation[draw, here], mean[:, 0], atol=1e-6)
                np.testing.assert_allclose(found.reward[draw, here], reward[:, 0], atol=1e-6)
    assert found.observation.shape == (2, frames, 2)
    assert found.reward.shape == (2, frames)


@pytest.mark.parametrize("kind", ["vectors", "pixels"])
def test_the_predicted_panel_sees_the_context_and_nothing_else(kind, request, filmed):
    path = request.getfixturevalue(kind)
    episode = stored(path, C + K + 2)
    name = "image" if kind == "pixels" else "observation"
    side = 192 if kind == "pixels" else filming.SIDE
    given = np.arange(episode.sizes["time"]) % (C + K) < C

    def altered(which):
        other = episode.copy(deep=True)
        other[name][0, which] = other[name][0, which].to_numpy()[::-1]
        return panels(filmed(path, [other]), side)

    recorded, reconstructed, predicted = panels(filmed(path, [episode]), side)
    later = altered(~given)
    assert (later[0][~given] != recorded[~given]).any((1, 2, 3)).all()
    assert (later[1] != reconstructed).any()
    assert (later[2] == predicted).all()
    earlier = altered(given)
    assert (earlier[2][~given] != predicted[~given]).any((1, 2, 3)).all()


# --- how it is shown ------------------------------------------------------------------------------


def impulse(at, frames=40):
    """A film whose recorded reward has a peak at one frame."""
    recorded = np.zeros(frames)
    recorded[at] = 1.0
    draws = np.full((4, frames), -0.5)
    blank = [lambda t: np.full((200, 210, 3), 230, np.uint8)] * 3
    return Film(blank, Rewards(recorded, draws, draws), context=C, open_loop=K, fps=10.0)


def test_border_and_words_turn_at_the_switch():
    film = impulse(20)
    for t in range(len(film)):
        frame, ahead = film.frame(t), t % (C + K) - C + 1
        right = film.left[2] - 2
        assert ([*frame[film.top + 50, right]] == PURPLE) == (ahead > 0)
        assert [*frame[film.top + 50, film.left[1] - 2]] == [255] * 3
        words = film.words(t)[2]
        expected = f"open loop, {ahead} of {K} ahead" if ahead > 0 else f"sees frame {C + ahead}"
        assert words.startswith(expected)
    assert [*filming.rgb(OPEN_LOOP)] == PURPLE
    assert film.words(0)[0] == "0.0 s\nreward –"  # none is met at the first frame
    assert film.words(20)[0] == "2.0 s\nreward 1.00"
    assert film.words(1)[2] == f"sees frame 2 of {C}\nreward −0.50"


@pytest.mark.parametrize("at", [7, 23, 38])
def test_the_bar_stands_where_the_rewards_are_drawn(at):
    film = impulse(at)
    strip = film.frame(0)[film.rows].astype(int)
    dark = (strip.max(-1) < 90) & (np.arange(strip.shape[1]) > film.columns[0] + 1)
    top = np.flatnonzero(dark.any(1))[0]
    assert abs(np.flatnonzero(dark[top]).mean() - film.columns[at]) <= 1
    bar = film.frame(at)[film.rows, film.columns[at]]
    assert (bar == 0).all()


def test_lines_show_the_features_that_move_most_and_a_bar_at_the_frame():
    frames = 45
    recorded = np.zeros((frames, 6))
    recorded[:, 1:5] = np.linspace(0, 1, frames)[:, None]
    recorded[25, 3] = 9.0  # in the second of three parts
    draws = np.stack([recorded - 1, recorded + 1])
    lines = Lines(recorded, draws, OPEN_LOOP, part=20, seen=5, fps=10)
    assert [*lines.features] == [1, 2, 3, 4]
    columns = []
    for t in range(20, 39):
        columns.append(np.flatnonzero((lines(t) != lines(t + 1)).any((0, 2)))[0])
    assert (np.diff(columns) > 0).all()
    alone = Lines(recorded[:, 3:4], None, "black", part=20, seen=0, fps=10)
    sheet = alone(39).astype(int)
    dark = (sheet[60:150].max(-1) < 90).sum(0)  # the peak's two flanks; bar and axis besides
    dark[columns[0] - 2 + np.array([0, 1])] = 0
    peak = [x for x in np.flatnonzero(dark) if 10 < dark[x] < 90]
    left = np.flatnonzero((alone(20) != alone(39)).any((0, 2)))[0]
    right = np.flatnonzero((alone(39) != alone(38)).any((0, 2)))[-1]
    assert abs(np.mean(peak) - (left + (right - left) * 5 / 19)) <= 2


# --- the file -------------------------------------------------------------------------------------


def test_gif(vectors, filmed, tmp_path, monkeypatch):
    given, out = [stored(vectors, C + K)], tmp_path / "new" / "video.gif"
    frames = filmed(vectors, given)
    assert (filmed(vectors, given) == frames).all()  # the same seed, the same film
    monkeypatch.setattr(videos, "evaluation", lambda *_, **__: given)
    assert video(vectors, out, open_loop=K, context=C, progress=False) == out
    with Image.open(out) as image:
        assert image.n_frames == len(frames) == C + K
        assert image.info["loop"] == 0
        for t, frame in enumerate(frames):
            image.seek(t)
            assert image.info["duration"] == 100
            shown = np.asarray(image.convert("RGB")).astype(int)
            assert abs(shown - frame).mean() < 0.5
            plain = [(frame == colour).all(-1) for colour in ([255] * 3, [235] * 3, PURPLE)]
            assert (shown == frame)[np.any(plain, 0)].all()
    assert [path.name for path in out.parent.iterdir()] == ["video.gif"]


def stub(folder, monkeypatch, script):
    folder.mkdir()
    program = folder / "ffmpeg"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")


def test_mp4_hands_every_pixel_to_ffmpeg(vectors, filmed, tmp_path, monkeypatch):
    given, out = [stored(vectors, C + K)], tmp_path / "video.mp4"
    frames = filmed(vectors, given)
    monkeypatch.setattr(videos, "evaluation", lambda *_, **__: given)
    stub(tmp_path / "bin", monkeypatch,
         'for last; do :; done; echo "$@" > "$0.words"; cat > "$last"')  # fmt: skip
    video(vectors, out, open_loop=K, context=C, progress=False)
    sent = np.frombuffer(out.read_bytes(), np.uint8).reshape(*frames.shape[:3], 4)
    assert (sent[..., :3] == frames).all()
    words = (tmp_path / "bin" / "ffmpeg.words").read_text()
    height, width = frames.shape[1:3]
    assert f"-s {width}x{height} " in words
    assert "-framerate 10.0 " in words
    assert "-f mp4" in words


def test_ffmpeg_that_fails_leaves_nothing(vectors, tmp_path, monkeypatch):
    given = [stored(vectors, C + K)]
    monkeypatch.setattr(videos, "evaluation", lambda *_, **__: given)
    stub(tmp_path / "bin", monkeypatch, "cat > /dev/null; echo no such codec >&2; exit 1")
    folder = tmp_path / "out"
    with pytest.raises(RunError, match="ffmpeg failed: no such codec"):
        video(vectors, folder / "video.mp4", open_loop=K, context=C, progress=False)
    assert not list(folder.iterdir())


# --- what cannot be filmed ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"open_loop": 0}, "open_loop is 0; it must be at least 1"),
        ({"context": 0}, "context is 0"),
        ({"episodes": 0}, "episodes is 0"),
        ({"seed": -1}, "seed is -1"),
        ({"out": "video.avi"}, r"video.avi: a video is a GIF or MP4; end its name in"),
        ({"out": "video"}, "a GIF or MP4"),
    ],
)
def test_options_that_cannot_be_used(options, said, tmp_path):
    out = tmp_path / options.pop("out", "video.gif")
    with pytest.raises(ConfigError, match=said):
        video(tmp_path / "no run", out, **({"open_loop": K} | options), progress=False)


def test_a_prediction_longer_than_the_episode(vectors, filmed):
    short = stored(vectors, 8)
    assert len(filmed(vectors, [short], only=[7], open_loop=5)) == 1
    said = "context is 3 and open_loop 6, 9 frames together; the longest episode played has 8"
    with pytest.raises(ConfigError, match=said):
        filmed(vectors, [short])
    assert len(filmed(vectors, [short, stored(vectors, 9)], only=[0, 16], episodes=2)) == 2


def test_runs_of_fit_and_folders_of_nothing(tiny_run, tmp_path, monkeypatch):
    for path, said in ((tiny_run.path, "a run of `fit`"), (tmp_path, "not the folder of a run")):
        with pytest.raises(RunError, match=said):
            video(path, tmp_path / "video.gif", open_loop=K, progress=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(RunError, match="Debian package ffmpeg"):
        video(tmp_path, tmp_path / "video.mp4", open_loop=K, progress=False)
    assert not list(tmp_path.glob("*"))
