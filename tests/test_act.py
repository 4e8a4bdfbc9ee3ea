"""Learning to act: what a run holds, what stops and starts again, what fails, and the agent.

Point-v0, registered here, is a world of one number that closed forms are known of:

    x_{t+1} = x_t + 0.2 a_t,   o_t = (x_t, x_t - x_{t-1}),   r_{t+1} = -x_{t+1}^2,   x_0 ~ U(-1, 1)
"""

import contextlib
import dataclasses
import json
import math
import re
import shutil
import signal
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import xarray as xr
import yaml
from helpers import assert_logged, assert_same, metrics
from pyro.distributions import Normal
from scipy import stats

pytest.importorskip("gymnasium", reason="the rl extra is not installed")

import gymnasium

from pyro_animacy.acting import act as loop
from pyro_animacy.acting import replay
from pyro_animacy.acting.act import act, resume_acting
from pyro_animacy.acting.agent import Agent, AtRandom, Controls, Planned, play, returned
from pyro_animacy.acting.config import ACT_PRESETS, ActConfig, act_preset
from pyro_animacy.acting.environments.make import make
from pyro_animacy.acting.evaluate import Evaluation, Simulated, evaluate, standard_error
from pyro_animacy.acting.learner import Learner
from pyro_animacy.acting.planners import PlannerConfig, identity, plan
from pyro_animacy.acting.run import evaluation, load_agent, make_env, read_acting
from pyro_animacy.acting.simulator import TrueSimulator
from pyro_animacy.acting.video import video
from pyro_animacy.data.episode_windows import EpisodeWindows
from pyro_animacy.data.episodes import make_episodes, read_episodes
from pyro_animacy.errors import ConfigError, RunError
from pyro_animacy.infer import checkpoint
from pyro_animacy.infer.fit import alone_in
from pyro_animacy.infer.loop import Interrupted, stream
from pyro_animacy.infer.predict_episodes import predict_episodes
from pyro_animacy.infer.run import Run
from pyro_animacy.infer.settings import save_settings
from pyro_animacy.models.program import Memory, Overshooting
from pyro_animacy.models.world_model import Sight, WorldModel, WorldModelConfig, WorldModelGuide
from pyro_animacy.nets import StackConfig

DOUBLE = torch.float64
AGENTS = ("planet", "dreamer", "dreamerv2")  # those with a world model; test_tracking has the other
STEPS, PUSH = 6, 0.2  # of Point-v0
FRAMES = STEPS + 1


class Point(gymnasium.Env):
    """The world above; ``faults`` says what goes wrong, by the seed of an episode and the step."""

    metadata = {"render_modes": [], "render_fps": 10}  # noqa: RUF012
    faults: dict = {}  # noqa: RUF012

    def __init__(self, render_mode=None, discrete=False, ends=False):
        box = gymnasium.spaces.Box
        self.observation_space = box(-np.inf, np.inf, (2,), np.float32)
        self.action_space = gymnasium.spaces.Discrete(3) if discrete else box(-1.0, 1.0, (1,))
        self.discrete, self.ends = discrete, ends

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.x, self.t, self.seed = self.np_random.uniform(-1, 1), 0, seed
        self.end = int(self.np_random.integers(2, STEPS + 1))
        return np.array([self.x, 0], np.float32), {}

    def step(self, action):
        push = PUSH * (int(action) - 1 if self.discrete else float(action[0]))
        self.x += push
        seen, reward = np.array([self.x, push], np.float32), -(self.x**2)
        fault = self.faults.get((self.seed, self.t))
        if callable(fault):
            fault()
        elif fault is not None:
            place, value = fault
            seen[1], reward = (value, reward) if place == "observation" else (seen[1], value)
        self.t += 1
        return seen, reward, self.ends and self.t == self.end, False, {}


KINDS = {"Point-v0": {}, "Steps-v0": {"discrete": True}, "Short-v0": {"ends": True}}


@pytest.fixture(scope="module", autouse=True)
def registered():
    for name, options in KINDS.items():
        gymnasium.register(name, Point, max_episode_steps=STEPS, kwargs=options)
    yield
    for name in KINDS:
        del gymnasium.registry[name]


def options(agent="planet", **changes):
    return dataclasses.replace(act_preset("debug", agent), **changes)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A run of each agent in Point-v0, in one go. Read them; copy a folder to change it."""
    folder = tmp_path_factory.mktemp("runs")
    return {
        name: act("Point-v0", options(name), out=folder / name, progress=False) for name in AGENTS
    }


@pytest.fixture
def copied(runs, tmp_path):
    return shutil.copytree(runs["dreamer"], tmp_path / "copied")


def episodes_of(path):
    return [read_episodes(file) for file in sorted((path / "episodes").glob("*.npz"))]


def assert_same_acting(one, other):
    """Episodes, parameters, optimisers, counters and figures are the same bits."""
    both = [episodes_of(path) for path in (one, other)]
    assert len(both[0]) == len(both[1])
    for a, b in zip(*both, strict=True):
        xr.testing.assert_identical(a, b)
    for name in ("best.safetensors", "behaviour.safetensors"):
        assert (one / name).is_file() == (other / name).is_file()
        if (one / name).is_file():
            assert_same(*(checkpoint.load_weights(path / name) for path in (one, other)))
    states = [checkpoint.load_trainer(path / "trainer.pt", loop.STATE) for path in (one, other)]
    for state in states:
        del state["seconds"]
    assert_same(*states)
    assert metrics(one) == metrics(other)
    assert not [file for file in other.rglob(".*")]  # what a kill left is gone


def edited(path, section, **entries):
    """Write other options into a run's config.yaml, as by hand."""
    settings = yaml.safe_load((path / "config.yaml").read_text())
    settings[section] |= entries
    (path / "config.yaml").write_text(yaml.safe_dump(settings))


# --- what a run writes ---------------------------------------------------------------------------


@pytest.mark.parametrize("agent", AGENTS)
@pytest.mark.parametrize("preset", ACT_PRESETS["planet"])
def test_the_options_are_read_back(preset, agent, tmp_path):
    config = act_preset(preset, agent)
    train = dataclasses.replace(
        config.train, seed=7, overshooting=Overshooting(3, (1.0, 0.5, 0.25), observation=0.1)
    )
    behaviour = dataclasses.replace(config.behaviour, starts=5, reinforce=None)
    config = dataclasses.replace(
        config, train=train, behaviour=behaviour, action_repeat=3, collect="random"
    )
    acting = loop._acting("cartpole-swingup", config)
    save_settings(tmp_path, "world_model", config.model, config.train, acting=acting)
    assert read_acting(tmp_path) == ("cartpole-swingup", config)


@pytest.mark.parametrize("agent", AGENTS)
def test_the_files_of_a_run(runs, agent):
    path, c = runs[agent], options(agent)
    files = {"config.yaml", "metrics.jsonl", "best.safetensors", "trainer.pt", "episodes"}
    files |= {"behaviour.safetensors"} if c.dreams else set()
    assert {f.name for f in path.iterdir()} == files
    assert read_acting(path) == ("Point-v0", c)
    state = checkpoint.load_trainer(path / "trainer.pt", loop.STATE)
    assert (state["episodes"], state["step"]) == (4, 2 * c.updates)
    run = Run.load(path)
    assert run.card.sight[:1] + run.card.sight[3:6] == ((2,), 1, True, False)
    for part in ("model", "guide"):
        ours = getattr(run, part).state_dict()
        saved = {n: x for n, x in state["parameters"].items() if n.startswith(f"{part}.")}
        assert_same({f"{part}.{n}": x for n, x in ours.items()}, saved)
    if c.dreams:
        tensors, card = checkpoint.load_weights(path / "behaviour.safetensors")
        assert_same(tensors, state["behaviour"]["parameters"])
        assert card == run.card


@pytest.mark.parametrize("agent", AGENTS)
def test_the_log_says_what_the_episodes_hold(runs, agent):
    rows, episodes = metrics(runs[agent]), episodes_of(runs[agent])
    assert [row["episode"] for row in rows] == [0, 1, 2, 3]
    for n, (row, episode) in enumerate(zip(rows, episodes, strict=True)):
        assert row["return"] == float(episode["reward"].sum())
        assert row["frames"] == FRAMES * (n + 1)
        assert ("loss" in row) == (n >= 2)  # after the seed episodes
        assert ("evaluation_return" in row) == (n == 3)  # at 1 there was nothing to evaluate
        assert ("actor_loss" in row) == (n >= 2 and agent != "planet")
        np.testing.assert_array_equal(episode["length"], FRAMES)


def test_the_logged_terms_add_up_with_overshooting(tmp_path):
    """The KL is logged before beta_1 / D."""
    config = options(episodes=3)
    train = dataclasses.replace(config.train, overshooting=Overshooting(3, (0.9, 0.5, 0.25)))
    act("Point-v0", dataclasses.replace(config, train=train), out=tmp_path / "run", progress=False)
    row = metrics(tmp_path / "run")[-1]
    told = {"episode", "return", "frames", "loss", "kl", "evaluation_return", "evaluation_returns"}
    others = sum(value for name, value in row.items() if name not in told)
    assert row["loss"] == pytest.approx(0.9 / 3 * row["kl"] + others, rel=1e-5)
    assert row["kl"] > 0


@pytest.mark.parametrize("agent", AGENTS)
def test_the_evaluation_in_the_log_is_that_of_the_agent_that_was_saved(runs, agent):
    """No update follows the last one."""
    row, (name, c) = metrics(runs[agent])[-1], read_acting(runs[agent])
    loaded = load_agent(runs[agent], make_env(name, c))
    played = evaluation(
        lambda: make_env(name, c), lambda _: loaded, c.evaluation_episodes, seed=0, fps=10
    )
    assert row["evaluation_returns"] == returned(played).tolist()
    assert row["evaluation_return"] == np.mean(row["evaluation_returns"])


def test_seed_episodes_are_uniformly_random_actions_in_the_world_itself(runs):
    """By a loop on gymnasium's own environment, in the law at the head of this file."""
    for n, episode in enumerate(episodes_of(runs["planet"])[:2]):
        env, seed = gymnasium.make("Point-v0"), stream(0, n, 1)
        torch.manual_seed(seed)
        x = env.reset(seed=seed % 2**31)[0][0]
        for t in range(STEPS):
            action = torch.rand(1, 1) * 2 - 1
            assert episode["action"][0, t].item() == action.item()
            x, before = x + PUSH * action.item(), x
            seen = episode["observation"][0, t + 1]
            np.testing.assert_allclose(seen, [x, x - before], atol=1e-6)
            np.testing.assert_allclose(episode["reward"][0, t + 1], -(x**2), atol=1e-6)
        assert not episode["terminal"].any()


@pytest.mark.parametrize("agent", AGENTS)
def test_a_run_is_one_that_predictions_are_drawn_from(runs, agent):
    run = Run.load(runs[agent])
    files = sorted((runs[agent] / "episodes").glob("*.npz"))
    tree = predict_episodes(
        run, read_episodes(files), mode="forecast", context=3, horizon=4, draws=2, progress=False
    )
    assert tree["predictions"]["observation"].shape == (1, 2, 4, FRAMES, 2)
    assert np.isfinite(tree["predictions"]["reward"]).all()


def test_ends_are_modelled_where_episodes_end_by_themselves(tmp_path):
    path = act("Short-v0", options(seed_episodes=3), out=tmp_path / "run", progress=False)
    assert Run.load(path).card.sight.continuation
    lengths = set()
    for n, episode in enumerate(episodes_of(path)):
        env = make("Short-v0")
        env.reset(seed=stream(0, n, 1) % 2**31)
        ended = episode["terminal"][0].to_numpy()
        assert ended.nonzero()[0].tolist() == [env.unwrapped.end]  # the last frame, and no other
        assert episode.sizes["time"] == env.unwrapped.end + 1
        lengths.add(env.unwrapped.end)
    assert len(lengths) > 1


def test_updates_before_the_agent_collects_are_those_of_more_updates_there(tmp_path):
    """The first episode of the agent is the last here: all updates are on the seed episodes."""
    c = options(episodes=3, updates=5)
    split = dataclasses.replace(c, pretrain=3, updates=2)
    assert [split.updates_before(n) for n in (2, 3)] == [5, 7]
    paths = [
        act("Point-v0", each, out=tmp_path / name, progress=False)
        for name, each in (("one", c), ("other", split))
    ]
    assert_same_acting(*paths)


@pytest.mark.parametrize("agent", ["planet", "dreamer"])
def test_older_checkpoints_are_what_a_run_that_ended_there_has(tmp_path, agent):
    c = options(agent, episodes=6, evaluate_every=1)
    c = dataclasses.replace(c, train=dataclasses.replace(c.train, keep=2))
    path = act("Point-v0", c, out=tmp_path / "run", progress=False)
    assert checkpoint.kept(path) == [5, 6]
    there = act(
        "Point-v0", dataclasses.replace(c, episodes=5), out=tmp_path / "short", progress=False
    )
    for name in ("best.safetensors", "behaviour.safetensors")[: 1 + c.dreams]:
        older, ended = (
            checkpoint.load_weights(folder / name) for folder in (path / "checkpoints/5", there)
        )
        assert_same(older, ended)
    older, ended = evaluate(path, episodes=2, checkpoint=5), evaluate(there, episodes=2)
    np.testing.assert_array_equal(older.agent, ended.agent)
    with pytest.raises(RunError, match=r"has no checkpoint 4; it has 5, 6$"):
        evaluate(path, episodes=2, checkpoint=4)
    act("Point-v0", options(), out=path, overwrite=True, progress=False)
    assert not (path / "checkpoints").exists()


def test_tensorboard_has_the_numbers_of_the_log(tmp_path):
    pytest.importorskip("tensorboard", reason="the tensorboard extra is not installed")
    c = options()
    c = dataclasses.replace(c, train=dataclasses.replace(c.train, tensorboard=True))
    path = act("Point-v0", c, out=tmp_path / "run", progress=False)
    rows = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    assert_logged(path, rows, "episode")


def test_collecting_at_random_never_asks_the_agent(tmp_path):
    path = act("Point-v0", options(collect="random"), out=tmp_path / "run", progress=False)
    torch.manual_seed(stream(0, 3, 1))
    expected = torch.rand(STEPS, 1) * 2 - 1
    np.testing.assert_array_equal(episodes_of(path)[3]["action"][0, :STEPS], expected)


# --- the same again ------------------------------------------------------------------------------


@pytest.mark.parametrize("agent", AGENTS)
def test_the_same_seed_gives_the_same_run(runs, tmp_path, agent):
    torch.manual_seed(123)
    before = torch.get_rng_state()
    again = act("Point-v0", options(agent), out=tmp_path / "run", progress=False)
    assert_same_acting(runs[agent], again)
    assert torch.equal(torch.get_rng_state(), before)  # nor does it touch the caller's draws


def test_another_seed_gives_another_run(runs, tmp_path):
    c = options("dreamer")
    c = dataclasses.replace(c, train=dataclasses.replace(c.train, seed=1))
    path = act("Point-v0", c, out=tmp_path / "run", progress=False)
    for one, other in zip(episodes_of(runs["dreamer"]), episodes_of(path), strict=True):
        assert not np.isclose(one["observation"], other["observation"]).all(1).any()
    ours, others = (Run.load(p).model.state_dict() for p in (runs["dreamer"], path))
    weights = [n for n in ours if n.endswith("weight")]
    assert not any(torch.equal(ours[n], others[n]) for n in weights)


@pytest.mark.slow
def test_updates_that_are_recorded_go_on_to_the_same_run(tmp_path, monkeypatch):
    """Of many updates one is written down and run again: after a stop, the same record."""
    monkeypatch.setattr("pyro_animacy.infer.loop.TRACED_FROM", 1)
    whole = act("Point-v0", options("dreamer"), out=tmp_path / "whole", progress=False)
    path = tmp_path / "run"
    stopped(
        monkeypatch, ("update", 3), interrupt,
        lambda: act("Point-v0", options("dreamer"), out=path, progress=False),
    )  # fmt: skip
    resume_acting(path, progress=False)
    assert_same_acting(whole, path)


# --- stopped and killed --------------------------------------------------------------------------


class Killed(BaseException):
    """Stands for SIGKILL: nothing in the code under test may catch it."""


def kill():
    raise Killed


def interrupt():
    signal.raise_signal(signal.SIGINT)


def terminate():
    signal.raise_signal(signal.SIGTERM)


def at(patch, moment, do):
    """Do something in the middle of an update, of an episode's step, or of an evaluation's."""
    kind, n = moment[:2]
    if kind == "update":
        real = Learner.update

        def update(self, batch, step):
            if step == n:
                do()
            return real(self, batch, step)

        patch.setattr(Learner, "update", update)
    else:
        seed = stream(0, n, {"episode": 1, "evaluation": 2}[kind]) % 2**31
        patch.setitem(Point.faults, (seed, moment[2]), do)


def stopped(monkeypatch, moment, do, run):
    """Run until something is done at a moment that stops it; returns what was raised."""
    with monkeypatch.context() as patch:
        at(patch, moment, do)
        with pytest.raises((Interrupted, Killed)) as stop:
            run()
    return stop.value


MOMENTS = [
    *(("episode", 1, 2), ("update", 0), ("update", 1), ("episode", 2, 0)),
    *(("update", 2), ("episode", 3, STEPS - 1), ("evaluation", 1, 3)),
]


@pytest.mark.parametrize("do", [interrupt, kill])
def test_stopped_again_and_again(runs, tmp_path, monkeypatch, do):
    """In seed episodes, updates, episodes, their last step, an evaluation: each time it goes on."""
    path = tmp_path / "run"
    monkeypatch.setattr(loop, "SAVE_EVERY", 0.0)
    stopped(
        monkeypatch, MOMENTS[0], do,
        lambda: act("Point-v0", options("dreamer"), out=path, progress=False),
    )  # fmt: skip
    for moment in MOMENTS[1:]:
        stopped(monkeypatch, moment, do, lambda: resume_acting(path, progress=False))
    resume_acting(path, progress=False)
    assert_same_acting(runs["dreamer"], path)
    resume_acting(path, progress=False)  # a finished run goes on to itself
    assert_same_acting(runs["dreamer"], path)


def test_what_a_signal_leaves(tmp_path, monkeypatch):
    path, handlers = tmp_path / "run", [signal.getsignal(s) for s in (2, 15)]
    stop = stopped(
        monkeypatch, ("update", 1), terminate,
        lambda: act("Point-v0", options("dreamer"), out=path, progress=False),
    )  # fmt: skip
    assert stop.signal == signal.SIGTERM
    assert str(stop).endswith(f"all is saved. Go on with: pyro-animacy act --resume {path}")
    assert [signal.getsignal(s) for s in (2, 15)] == handlers
    state = checkpoint.load_trainer(path / "trainer.pt", loop.STATE)
    assert (state["episodes"], state["step"], len(state["terms"])) == (2, 2, 2)  # it was finished


def test_a_kill_among_many_updates_costs_those_since_the_last_checkpoint(tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "SAVE_EVERY", 0.0)
    path = tmp_path / "run"
    stopped(
        monkeypatch, ("update", 3), kill,
        lambda: act("Point-v0", options(pretrain=4), out=path, progress=False),
    )  # fmt: skip
    state = checkpoint.load_trainer(path / "trainer.pt", loop.STATE)
    assert (state["episodes"], state["step"], len(state["terms"])) == (2, 3, 3)


@pytest.mark.slow
@pytest.mark.parametrize("moment", MOMENTS, ids=str)
@pytest.mark.parametrize("every", [0.0, 1e9])  # seconds between checkpoints
@pytest.mark.parametrize("do", [interrupt, kill])
@pytest.mark.parametrize("agent", ["planet", "dreamerv2"])
def test_stopped_once(runs, tmp_path, monkeypatch, agent, do, every, moment):
    path = tmp_path / "run"
    monkeypatch.setattr(loop, "SAVE_EVERY", every)
    stopped(
        monkeypatch, moment, do,
        lambda: act("Point-v0", options(agent), out=path, progress=False),
    )  # fmt: skip
    resume_acting(path, progress=False)
    assert_same_acting(runs[agent], path)


SAVED = ["metrics.jsonl", "best.safetensors", "behaviour.safetensors", "trainer.pt"]
WRITES = [
    *("config.yaml", "000000.npz", "000001.npz"),
    *(*SAVED, *SAVED, "000002.npz", *SAVED),  # after each of two updates, and the episode
    *(*SAVED, *SAVED, "000003.npz", *SAVED, *SAVED),
]


@contextlib.contextmanager
def writing(patch, write):
    """Have every file of a run written by ``write(real, path, writer)``."""
    real = checkpoint.write_atomically
    with patch.context() as here:
        here.setattr(loop, "SAVE_EVERY", 0.0)
        for module in (checkpoint, replay):
            here.setattr(module, "write_atomically", lambda p, w: write(real, p, w))
        yield


def test_the_writes_of_a_run(tmp_path, monkeypatch):
    """The list above is all there is, in this order: episode, log, weights, then state."""
    written = []
    with writing(monkeypatch, lambda real, p, w: (written.append(p.name), real(p, w))):
        act("Point-v0", options("dreamer"), out=tmp_path / "run", progress=False)
    assert written == WRITES


@pytest.mark.slow
@pytest.mark.parametrize("renamed", [False, True])
@pytest.mark.parametrize("number", range(len(WRITES)))
def test_killed_at_any_write(runs, tmp_path, monkeypatch, number, renamed):
    """Half written, or just renamed."""
    path, count = tmp_path / "run", iter(range(len(WRITES)))

    def write(real, to, writer):
        now = next(count)
        if now == number and not renamed:
            to.parent.mkdir(exist_ok=True)
            (to.parent / f".{to.name}.half").write_bytes(b"half")
            raise Killed
        real(to, writer)
        if now == number:
            raise Killed

    with writing(monkeypatch, write), pytest.raises(Killed):
        act("Point-v0", options("dreamer"), out=path, progress=False)
    if (path / "config.yaml").is_file():
        resume_acting(path, progress=False)
    else:  # nothing was begun: the same command, and leave to replace the folder
        act("Point-v0", options("dreamer"), out=path, overwrite=True, progress=False)
    for left in path.glob(".*.half"):  # of the run's own files they are few and small
        left.unlink()
    assert_same_acting(runs["dreamer"], path)


# --- worlds that fail ----------------------------------------------------------------------------


def wheel():
    raise ValueError("the wheel came off")


@pytest.mark.parametrize(
    ("fault", "says"),
    [
        (wheel, r"the environment raised ValueError at step 3 \(the wheel came off\)"),
        (("reward", math.nan), "the reward of step 3 is nan; it must be a number"),
        (("reward", -math.inf), "the reward of step 3 is -inf; it must be a number"),
        (
            ("observation", math.nan),
            "the observation of step 3 is not finite in 1 of 2 places; it must be numbers",
        ),
    ],
)
def test_what_a_world_must_not_do(monkeypatch, fault, says):
    """The message is all; nothing is said of saving, for nothing is saved here."""
    monkeypatch.setitem(Point.faults, (7, 3), fault)
    env = make("Point-v0")
    with pytest.raises(RunError, match=f"^Point-v0: {says}$"):
        play([env], AtRandom(Controls.of(env)), [7])
    assert play([env], AtRandom(Controls.of(env)), [8])[0].sizes["time"] == FRAMES


def test_a_world_that_is_not_as_it_says(monkeypatch):
    step = Point.step
    monkeypatch.setattr(Point, "step", lambda *given: (np.zeros(3, "f4"), *step(*given)[1:]))
    with pytest.raises(
        RunError, match=r"step 0 has the shape \(3,\), and its .* \(2,\); they must"
    ):
        play([make("Point-v0")], AtRandom(Controls(1, False)), [0])


def test_no_world_is_searched_after_its_end(monkeypatch):
    """Episodes of several lengths; a world that is acted in once more is an error, also a copy."""
    step, after = Point.step, []

    def strict(world, action):
        if world.t >= world.end:
            after.append(world.t)
        return step(world, action)

    monkeypatch.setattr(Point, "step", strict)
    small = PlannerConfig(horizon=3, iterations=2, candidates=6, elites=2)
    played = evaluation(
        lambda: make("Short-v0"), lambda env: Simulated(env, small), 4, seed=0, fps=1, alone=True
    )
    assert len({one.sizes["time"] for one in played}) > 1
    assert not after


def test_a_world_that_fails_in_a_search(monkeypatch):
    env = make("Point-v0")
    env.reset(seed=7)
    monkeypatch.setitem(Point.faults, (7, 1), wheel)
    says = r"^Point-v0: the environment raised ValueError in a copy, .* searches \(the wheel"
    with pytest.raises(RunError, match=says):
        TrueSimulator(env).imagine(TrueSimulator(env).belief(), torch.zeros(2, 1, 1, 1))


def test_a_world_that_fails(runs, tmp_path, monkeypatch):
    """In the last episode: all before it is kept, and a mended world goes on."""
    path = tmp_path / "run"
    says = (
        r"^Point-v0: the environment raised ValueError at step 3 \(the wheel came off\)\. "
        f"All before episode 3 is saved; .*pyro-animacy act --resume {path}$"
    )
    with monkeypatch.context() as patch:
        at(patch, ("episode", 3, 3), wheel)
        with pytest.raises(RunError, match=says):
            act("Point-v0", options("planet"), out=path, progress=False)
        kept = episodes_of(path)
        assert checkpoint.load_trainer(path / "trainer.pt", loop.STATE)["step"] == 4
        with pytest.raises(RunError, match=says):  # as long as it is not mended
            resume_acting(path, progress=False)
    for one, other in zip(kept, episodes_of(runs["planet"])[:3], strict=True):
        xr.testing.assert_identical(one, other)
    resume_acting(path, progress=False)
    assert_same_acting(runs["planet"], path)


@pytest.mark.parametrize("moment", [("episode", 0, 0), ("evaluation", 0, STEPS - 1)], ids=str)
def test_a_world_that_fails_at_the_start_and_in_an_evaluation(runs, tmp_path, monkeypatch, moment):
    path = tmp_path / "run"
    with monkeypatch.context() as patch:
        at(patch, moment, wheel)
        with pytest.raises(RunError, match=f"ValueError at step {moment[2]} .*act --resume"):
            act("Point-v0", options("dreamer"), out=path, progress=False)
    resume_acting(path, progress=False)
    assert_same_acting(runs["dreamer"], path)


def test_a_world_that_fails_at_its_reset(monkeypatch):
    monkeypatch.setattr(Point, "reset", lambda *_, **__: wheel())
    with pytest.raises(RunError, match=r"raised ValueError at reset \(the wheel came off\)$"):
        play([make("Point-v0")], AtRandom(Controls(1, False)), [0])


# --- what cannot be used -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("another", "says"),
    [
        ("Chase-v0", r"shows observations of shape \(8,\), and the run's world model is of \(2,\)"),
        ("Steps-v0", "has controls: 3, and the run's world model is of 1"),
    ],
)
@pytest.mark.parametrize("command", [evaluate, resume_acting, video])
def test_a_checkpoint_of_another_environment(copied, tmp_path, another, says, command):
    edited(copied, "acting", environment=another)
    given = {"out": tmp_path / "v.gif", "open_loop": 2} if command is video else {}
    with pytest.raises(RunError, match=f"{says}: it was fitted in another environment"):
        command(copied, progress=False, **given)


def test_a_checkpoint_of_an_environment_at_another_rate(copied):
    edited(copied, "acting", action_repeat=2)
    with pytest.raises(RunError, match="10 frames a second, and this run 5; it is of another"):
        resume_acting(copied, progress=False)


@pytest.mark.parametrize("command", [evaluate, resume_acting])
def test_a_checkpoint_of_other_networks(copied, command):
    """Options that were changed by hand in config.yaml."""
    edited(copied, "acting", behaviour={"actor": {"hidden": 9, "layers": 1}})
    with pytest.raises(RunError, match=r"does not fit the options in config\.yaml"):
        command(copied, progress=False)


@pytest.mark.parametrize("damage", [b"", b"\xff\x00 not what it was", None])
def test_damaged_behaviour(copied, damage):
    file = copied / "behaviour.safetensors"
    good = bytearray(file.read_bytes())
    good[len(good) // 2] ^= 1
    file.write_bytes(bytes(good) if damage is None else damage)
    with pytest.raises(RunError, match=rf"{file}: (damaged|altered)"):
        evaluate(copied, progress=False)
    file.unlink()
    with pytest.raises(RunError, match=f"{file}: no such file"):
        evaluate(copied, progress=False)


@pytest.mark.parametrize("text", ["{", "[]\n", "{}\n", "\x00"])
def test_damaged_metrics(copied, text):
    (copied / "metrics.jsonl").write_text(text)
    with pytest.raises(RunError, match=r"metrics\.jsonl: damaged; delete it"):
        resume_acting(copied, progress=False)
    (copied / "metrics.jsonl").unlink()
    resume_acting(copied, progress=False)


@pytest.mark.parametrize("missing", ["step", "episodes", "terms"])
def test_damaged_trainer_state(copied, missing):
    state = checkpoint.load_trainer(copied / "trainer.pt", loop.STATE)
    checkpoint.save_trainer(
        copied / "trainer.pt", {name: x for name, x in state.items() if name != missing}
    )
    with pytest.raises(RunError, match=r"trainer\.pt: not a trainer state"):
        resume_acting(copied, progress=False)
    (copied / "trainer.pt").write_bytes(b"")
    with pytest.raises(RunError, match=r"trainer\.pt: damaged"):
        resume_acting(copied, progress=False)


@pytest.mark.parametrize("command", [evaluate, resume_acting])
def test_runs_that_have_not_learned_to_act(tiny_run, tmp_path, command):
    with pytest.raises(RunError, match="a run of `fit`, whose model has not learned to act"):
        command(tiny_run.path, progress=False)
    with pytest.raises(RunError, match=r"config\.yaml: no such file"):
        command(tmp_path, progress=False)


def test_a_loss_that_is_no_number(tmp_path):
    """Nothing but the episodes is written, and the message says what to lower."""
    c = options("planet", updates=50)
    c = dataclasses.replace(c, train=dataclasses.replace(c.train, learning_rate=1e9))
    with pytest.raises(RunError, match=r"^update \d+: the loss is .*lower train\.learning_rate"):
        act("Point-v0", c, out=tmp_path / "run", progress=False)
    files = {str(f.relative_to(tmp_path / "run")) for f in (tmp_path / "run").rglob("*")}
    assert files == {"config.yaml", "episodes", "episodes/000000.npz", "episodes/000001.npz"}


def test_an_actor_that_diverges(tmp_path):
    c = options("dreamer", updates=50)
    c = dataclasses.replace(c, behaviour=dataclasses.replace(c.behaviour, critic_rate=1e30))
    with pytest.raises(RunError, match=r"^update \d+: actor and critic have diverged .*critic_"):
        act("Point-v0", c, out=tmp_path / "run", progress=False)


def test_images_that_no_model_takes_are_refused():
    with pytest.raises(ConfigError, match=r"^size is 20; it must be at least 46 for convolutions"):
        dataclasses.replace(options("planet"), pixels=True, size=20)
    with pytest.raises(ConfigError, match=r"^size is 0; it must be at least 1$"):
        dataclasses.replace(options("planet"), size=0)


def test_small_images_by_keypoints(tmp_path):
    """Convolutions alone need 46 pixels."""
    c = options("planet")
    points = dataclasses.replace(c.model, keypoints=2, filters=1)
    c = dataclasses.replace(c, pixels=True, size=18, model=points)
    path = act("Chase-v0", c, out=tmp_path / "run", progress=False)
    assert Run.load(path).card.sight.shape == (3, 18, 18)
    assert video(path, tmp_path / "film.gif", open_loop=2, context=1, progress=False).is_file()


def test_what_cannot_be_used_is_found_before_a_run_is_replaced(copied):
    before = {f: f.read_bytes() for f in copied.rglob("*") if f.is_file()}
    c = options("planet")
    c = dataclasses.replace(c, train=dataclasses.replace(c.train, device="abacus"))
    with pytest.raises(RunError, match=r"train\.device is 'abacus'"):
        act("Chase-v0", c, out=copied, overwrite=True, progress=False)
    assert {f: f.read_bytes() for f in copied.rglob("*") if f.is_file()} == before


def test_a_run_that_another_process_is_at_work_on(copied):
    before = {f: f.read_bytes() for f in copied.rglob("*") if f.is_file()}
    busy = pytest.raises(RunError, match="another process is at work on this run; wait")
    with alone_in(copied):
        with busy:
            resume_acting(copied, progress=False)
        with busy:
            act("Point-v0", options("dreamer"), out=copied, overwrite=True, progress=False)
    assert {f: f.read_bytes() for f in copied.rglob("*") if f.is_file()} == before


def test_episodes_that_cannot_be_deleted_are_not_taken_for_new_ones(copied, tmp_path):
    """A folder of episodes that is a link, to where there is room."""
    shutil.move(copied / "episodes", tmp_path / "elsewhere")
    (copied / "episodes").symlink_to(tmp_path / "elsewhere")
    resume_acting(copied, progress=False)
    with pytest.raises(RunError, match=r"cannot be made \(.* symbolic link\); choose another"):
        act("Point-v0", options("planet"), out=copied, overwrite=True, progress=False)
    assert len(list((tmp_path / "elsewhere").iterdir())) == 4


# --- what the agent believes ---------------------------------------------------------------------


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=DOUBLE)


def world(latent_size=0, classes=None, guide=WorldModelGuide):
    """A world model of double precision, its weights random and not small, and its guide."""
    net = StackConfig(hidden=6, layers=1)
    nets = ("prior", "posterior", "encoder", "decoder", "reward", "continuation")
    torch.manual_seed(0)
    config = WorldModelConfig(5, latent_size, classes, **dict.fromkeys(nets, net))
    model = WorldModel(config, Sight((2,), (0.3, 0.1), (0.7, 0.2), 1, reward=True))
    guide = guide(model)
    with torch.no_grad():
        for parameter in (*model.parameters(), *guide.parameters()):
            parameter.mul_(1.5)
    return model.double(), guide.double()


class Recorded:
    """Actions (T, E, A) that were recorded, one after the other."""

    def __init__(self, actions):
        self.actions = actions

    def begin(self, environments):
        self.coming = iter(self.actions)

    def __call__(self, memory, *, explore):
        return next(self.coming)


@pytest.mark.parametrize(("latent_size", "classes"), [(0, None), (3, None), (2, 4)])
def test_the_belief_is_that_of_the_program(latent_size, classes):
    """Step by step as by `follow` under the guide on the whole window, on the same draws."""
    model, guide = world(latent_size, classes)
    rng = np.random.default_rng(0)
    T, E = 9, 3
    seen, action = rng.normal(size=(E, T, 2)), rng.uniform(-1, 1, (E, T, 1))
    data = make_episodes(observation=seen, action=action, reward=np.zeros((E, T)), fps=1)
    batch = EpisodeWindows(data, T).batch(torch.arange(E)).to(torch.device("cpu"), DOUBLE)
    torch.manual_seed(1)
    with guide, torch.no_grad():
        expected = model.follow(batch)
    assert expected.hidden.std() > 0.05
    # a_t of the episode is the action before frame t + 1 of the batch
    taken = [*batch.action[1:], torch.zeros(E, 1).double()]
    agent = Agent(guide, Recorded(taken), Controls(1, False))
    torch.manual_seed(1)
    agent.begin(E)
    for t in range(T):
        agent(batch.observation[t])
        for ours, theirs in zip(agent.memory, expected, strict=True):
            torch.testing.assert_close(ours, theirs[t], rtol=0, atol=1e-10)


class Sure(WorldModelGuide):
    """A guide that draws nothing: z_t is the mean of q(z_t | h_t, o_t)."""

    def posterior(self, prior, evidence):
        return Normal(super().posterior(prior, evidence).mean, 1e-12).to_event(1)


class Linear:
    """Actions that are a function of the belief."""

    def begin(self, environments):
        self.weights = normal(8, 1)

    def __call__(self, memory, *, explore):
        return torch.tanh(torch.cat(memory, -1) @ self.weights)


def test_several_worlds_at_once_are_each_by_itself():
    """Their episodes end at different times, and the others go on."""
    agent = Agent(world(3, guide=Sure)[1], Linear(), Controls(1, False))
    seeds = [0, 1, 2, 3]
    together = play([make("Short-v0") for _ in seeds], agent, seeds)
    assert len({episode.sizes["time"] for episode in together}) > 1
    for seed, episode in zip(seeds, together, strict=True):
        (alone,) = play([make("Short-v0")], agent, [seed])
        xr.testing.assert_allclose(alone, episode, rtol=0, atol=1e-6)
    assert np.std([float(e["action"][0, 0, 0]) for e in together]) > 0.01  # they are not alike


def test_the_belief_is_forgotten_at_the_start_of_an_episode():
    agent = Agent(world(3, guide=Sure)[1], Linear(), Controls(1, False))
    first, again = (play([make("Point-v0")], agent, [5])[0] for _ in range(2))
    xr.testing.assert_allclose(first, again, rtol=0, atol=1e-6)


# --- what can be done ----------------------------------------------------------------------------


def test_random_actions():
    """Uniform in [-1, 1], and on the classes."""
    torch.manual_seed(0)
    actions = Controls(2, False).random(20_000)
    for feature in actions.T:
        assert stats.kstest(feature, stats.uniform(-1, 2).cdf).pvalue > 0.01
    assert abs(np.corrcoef(actions.T)[0, 1]) < 0.03
    actions = Controls(3, True).random(30_000)
    assert torch.equal(actions.sum(1), torch.ones(30_000))
    assert torch.equal(actions, actions.round())
    assert stats.chisquare(actions.sum(0)).pvalue > 0.01


def test_noise_of_numbers():
    """N(a, noise^2), clipped: its share at the bounds by the normal distribution."""
    torch.manual_seed(0)
    n, noise = 40_000, 0.5
    found = Controls(2, False).explored(torch.tensor([0.0, 0.4]).expand(n, 2), noise)
    for centre, values in zip((0.0, 0.4), found.T.numpy(), strict=True):
        law = stats.norm(centre, noise)
        assert values.min() == -1
        assert values.max() == 1
        for share, p in ((values == 1, law.sf(1)), (values == -1, law.cdf(-1))):
            assert abs(share.mean() - p) < 4 * math.sqrt(p * (1 - p) / n)
        inside = values[abs(values) < 1]
        cut = stats.truncnorm((-1 - centre) / noise, (1 - centre) / noise, centre, noise)
        assert stats.kstest(inside, cut.cdf).pvalue > 0.01


def test_noise_of_discrete_actions():
    """With probability e any of n: another one with e (n - 1) / n."""
    torch.manual_seed(0)
    n, noise = 40_000, 0.3
    action = torch.eye(3)[torch.ones(n, dtype=torch.long)]
    found = Controls(3, True).explored(action, noise)
    assert torch.equal(found.sum(1), torch.ones(n))
    for k, p in ((0, noise / 3), (2, noise / 3)):
        assert abs(found[:, k].mean() - p) < 4 * math.sqrt(p * (1 - p) / n)


def test_without_noise_nothing_is_drawn():
    before = torch.get_rng_state()
    action = torch.rand(4, 2, generator=torch.Generator().manual_seed(0))
    assert Controls(2, False).explored(action, 0.0) is action
    assert torch.equal(torch.get_rng_state(), before)


def test_controls_of_environments():
    for name, expected in (
        ("Point-v0", Controls(1, False)),
        ("Steps-v0", Controls(3, True)),
        ("Chase-v0", Controls(2, False)),
        ("CartPole-v1", Controls(2, True)),
    ):
        env = make(name)
        controls = Controls.of(env)
        assert controls == expected
        for action in controls.random(5):
            assert env.action_space.contains(controls.given(action))
    spaces = gymnasium.spaces
    for space in (spaces.MultiBinary(2), spaces.Box(-1, 1, (2, 2)), spaces.Discrete(3, start=1)):
        with pytest.raises(
            ConfigError, match="they must be a vector of numbers, or Discrete from 0"
        ):
            Controls.of(SimpleNamespace(action_space=space, spec=None))


def test_discrete_actions_of_a_plan_that_is_none():
    """One-hot vectors of NaN would look like an action."""
    toy = Toy(True)
    toy.imagined_rewards = lambda _, actions: actions[..., 0] * torch.nan
    planned = Planned(toy, PlannerConfig("cem", 3, 2, 20, 5), Controls(3, True))
    planned.begin(2)
    assert planned(Memory(torch.zeros(2, 0), torch.zeros(2, 1)), explore=False).isnan().all()


# --- PlaNet where its model is right -------------------------------------------------------------


class Toy:
    """Point-v0 in place of a world model: z is x, which is observed."""

    spread = torch.ones(1)

    def __init__(self, discrete):
        self.push = PUSH * torch.tensor([[-1.0], [0.0], [1.0]] if discrete else [[1.0]])

    def start(self, shape):
        return Memory(torch.zeros(*shape, 0), torch.zeros(*shape, 1))

    def dynamics(self, name, memory, action, evidence):
        return Memory(memory.hidden, evidence.shown[:, :1])

    def imagined_rewards(self, memory, actions):
        x = memory.latent + (actions @ self.push).cumsum(0)
        return -(x[..., 0] ** 2)


class SeesAll(contextlib.nullcontext):
    """The guide of `Toy`."""

    def __init__(self, model):
        super().__init__()
        self.model = model


SEARCH = PlannerConfig(horizon=6, iterations=12, candidates=400, elites=40)


@pytest.mark.parametrize("discrete", [False, True])
def test_a_planned_action_is_the_best_one(discrete):
    """-x^2 is greatest when every step goes as far towards 0 as it can and not beyond."""
    x = torch.tensor([[-0.93], [-0.33], [-0.07], [0.0], [0.04], [0.47], [1.0]])
    controls = Controls(3 if discrete else 1, discrete)
    planned = Planned(Toy(discrete), SEARCH, controls)
    torch.manual_seed(0)
    planned.begin(len(x))
    action = planned(Memory(torch.zeros(len(x), 0), x), explore=False)
    moved = action @ Toy(discrete).push
    if discrete:
        best = PUSH * torch.where(x.abs() > PUSH / 2, -x.sign(), 0.0)
        torch.testing.assert_close(moved, best)
    else:
        torch.testing.assert_close(moved, (-x).clamp(-PUSH, PUSH), rtol=0, atol=0.02)


def optimum(x, lattice=False):
    """The greatest return from x in Point-v0."""
    total = 0.0
    for _ in range(STEPS):
        x -= (PUSH * np.sign(x) * (abs(x) > PUSH / 2)) if lattice else np.clip(x, -PUSH, PUSH)
        total -= x**2
    return total


@pytest.mark.parametrize("name", ["Point-v0", "Steps-v0"])
def test_planet_does_what_can_be_done_where_its_model_is_right(name):
    """Episodes of the agent, from observations; random actions are far from it."""
    envs = [make(name) for _ in range(6)]
    discrete, seeds = name == "Steps-v0", range(6)
    controls, toy = Controls.of(envs[0]), Toy(discrete)
    torch.manual_seed(0)
    agent = Agent(SeesAll(toy), Planned(toy, SEARCH, controls), controls)
    found = play(envs, agent, seeds)
    best = [optimum(float(e["observation"][0, 0, 0]), lattice=discrete) for e in found]
    np.testing.assert_allclose(returned(found), best, atol=0.01)
    random = returned(play(envs, AtRandom(controls), seeds))
    assert random.mean() < np.mean(best) - 0.2


# --- what it is worth ----------------------------------------------------------------------------


def test_score():
    values = Evaluation(np.array([3.0, 5.0]), np.array([1.0, 3.0]), np.array([10.0, 8.0]))
    assert values.score == (4 - 2) / (9 - 2)
    assert re.search(r"score +0\.29  0 is random", values.text())
    assert re.search(r"agent +4\.00  1\.00\n", values.text())
    assert values._replace(simulator=None).score is None
    assert "score" not in values._replace(simulator=None).text()
    assert math.isnan(values._replace(simulator=values.random).score)
    rng = np.random.default_rng(0)
    x = rng.normal(size=13)
    assert standard_error(x) == pytest.approx(stats.sem(x), rel=1e-12)
    assert math.isnan(standard_error(x[:1]))


def test_search_in_the_simulator_is_a_loop_of_plans():
    """One world, by hand; and it does what can be done, as PlaNet above."""
    config = PlannerConfig(horizon=4, iterations=6, candidates=40, elites=8, warm_start=True)
    env, seed = make("Point-v0"), 11
    torch.manual_seed(0)
    (episode,) = play([env], Simulated(env, config), [seed])
    other = make("Point-v0")
    seen, start = other.reset(seed=seed)[0], torch.zeros(4, 1, 1)
    simulator, total = TrueSimulator(other), 0.0
    torch.manual_seed(0)
    for t in range(STEPS):
        np.testing.assert_array_equal(episode["observation"][0, t], seen)
        found = plan(simulator, simulator.belief(), identity, start, config)
        seen, reward, *_ = other.step(found.controls[0, 0].numpy())
        start, total = found.moved_on(), total + reward
    assert returned([episode])[0] == pytest.approx(total, rel=1e-6)
    assert total == pytest.approx(optimum(float(episode["observation"][0, 0, 0])), abs=0.02)


@pytest.mark.parametrize(("repeat", "actions"), [(1, 6), (2, 3), (4, 2)])
def test_the_bar_of_an_evaluation_ends_full(tmp_path, monkeypatch, repeat, actions):
    """Of actions, not of the world's steps: those are ``repeat`` times as many, or fewer."""
    path = act(
        "Point-v0", options(action_repeat=repeat, train=dataclasses.replace(
            options().train, window=2)), out=tmp_path / "run", progress=False,
    )  # fmt: skip
    bars = []

    class Bar(contextlib.nullcontext):
        def __init__(self, total, **_):
            super().__init__(self)
            self.total, self.n = total, 0
            bars.append(self)

        def update(self):
            self.n += 1

    monkeypatch.setattr("pyro_animacy.acting.evaluate.tqdm", Bar)
    evaluate(path, episodes=2, simulator=False)
    assert [(bar.n, bar.total) for bar in bars] == [(actions, actions)] * 2


def test_evaluate_plays_the_same_episodes_with_each(runs, monkeypatch):
    """Returns of random actions by a loop on the world itself; search with a smaller budget."""
    small = PlannerConfig(horizon=3, iterations=4, candidates=20, elites=4, warm_start=True)
    monkeypatch.setattr(Simulated.__init__, "__defaults__", (small,))
    torch.manual_seed(8)
    found = evaluate(runs["dreamer"], episodes=3, seed=4, progress=False)
    drawn = torch.rand(3)  # the caller's generator is left as it was
    torch.manual_seed(8)
    assert torch.equal(drawn, torch.rand(3))
    again = evaluate(runs["dreamer"], episodes=3, seed=4, simulator=False, progress=False)
    np.testing.assert_array_equal(found.agent, again.agent)
    np.testing.assert_array_equal(found.random, again.random)
    assert again.simulator is None
    envs, total, best = [gymnasium.make("Point-v0") for _ in range(3)], np.zeros(3), []
    for i, env in enumerate(envs):
        best.append(optimum(float(env.reset(seed=stream(4, i, 2) % 2**31)[0][0])))
    torch.manual_seed(stream(4, 0, 3))
    for _ in range(STEPS):
        for i, action in enumerate(torch.rand(3, 1) * 2 - 1):
            total[i] += envs[i].step(action.numpy())[1]
    np.testing.assert_allclose(found.random, total, rtol=1e-5)
    for values in found:  # nobody does better than the best
        assert (values <= np.array(best) + 1e-6).all()
    assert (found.simulator > found.random).all()


@pytest.mark.parametrize(
    ("given", "says"), [({"episodes": 0}, "episodes is 0"), ({"seed": -1}, "seed is -1")]
)
def test_numbers_that_cannot_be_evaluated(runs, given, says):
    with pytest.raises(ConfigError, match=says):
        evaluate(runs["planet"], progress=False, **given)


def test_cartpole_by_discrete_actions(tmp_path):
    """DreamerV2 from end to end; its episodes end by themselves, so ends are modelled."""
    path = act("CartPole-v1", options("dreamerv2"), out=tmp_path / "run", progress=False)
    assert Run.load(path).card.sight.continuation
    for episode in episodes_of(path):
        action = episode["action"][0, :-1].to_numpy()
        assert (np.sort(action, 1) == [0, 1]).all()
        assert episode["terminal"][0, -1]
    assert {"continuation", "policy_entropy"} <= metrics(path)[-1].keys()
    found = evaluate(path, episodes=2, simulator=False, progress=False)
    assert (found.agent >= 1).all()
    again = evaluate(path, episodes=2, progress=False)  # as the run says when it ends
    assert again.simulator is None
    np.testing.assert_array_equal(again.agent, found.agent)


def test_the_presets_are_checked():
    for name, agent, says in (("huge", "planet", "preset 'huge'"), ("small", "sac", "'sac'")):
        with pytest.raises(ConfigError, match=says):
            act_preset(name, agent)
    for changes in ({"episodes": 5}, {"bits": 9}, {"exploration": -0.1}, {"evaluate_every": 0}):
        with pytest.raises(ConfigError, match=f"^{next(iter(changes))} is"):
            ActConfig(**changes)
    blind = dataclasses.replace(act_preset("debug").model, latent_size=0)
    with pytest.raises(ConfigError, match=r"latent_size is 0, .* would be blind"):
        dataclasses.replace(act_preset("debug"), model=blind)
    short = dataclasses.replace(act_preset("debug").train, window=1)
    with pytest.raises(ConfigError, match=r"window is 1, .* nothing to dream from"):
        options("dreamer", train=short)
