"""ControlVAE that learns by acting: each part by hand, and a mass that follows reference motion.

Mass-v0, registered here, is linear:    v' = 0.95 v + 0.2 a,   x' = x + 0.1 v',   o = (x, v)
"""

import dataclasses
import json
import signal

import numpy as np
import pytest
import torch
import xarray as xr
from helpers import assert_same

pytest.importorskip("gymnasium", reason="the rl extra is not installed")

import gymnasium

from pyro_animacy.acting import act as loop
from pyro_animacy.acting.act import act, resume_acting
from pyro_animacy.acting.agent import Controls
from pyro_animacy.acting.config import ActConfig, act_preset
from pyro_animacy.acting.evaluate import evaluate, new_episodes
from pyro_animacy.acting.learner import TrackingLearner
from pyro_animacy.acting.run import evaluation, load_agent, make_env, read_acting
from pyro_animacy.acting.tracking import (
    REFERENCE,
    Following,
    References,
    Tracker,
    load_references,
    read_references,
    tracking_error,
)
from pyro_animacy.acting.video import video
from pyro_animacy.cli import main
from pyro_animacy.data.episode_windows import EpisodeWindows
from pyro_animacy.data.episodes import make_episodes, read_episodes, save_episodes
from pyro_animacy.errors import ConfigError, DataError
from pyro_animacy.infer import checkpoint
from pyro_animacy.infer.checkpoint import EpisodeCard
from pyro_animacy.infer.elbo import ScaledELBO
from pyro_animacy.infer.loop import Interrupted
from pyro_animacy.infer.recordings import REPLAY
from pyro_animacy.infer.run import Run
from pyro_animacy.models.agent_control_vae import AgentControlVAE, AgentControlVAEGuide
from pyro_animacy.models.world_model import Sight
from pyro_animacy.nets import StackConfig

STEPS = 40
DOUBLE = torch.float64


def after(s, a):
    """The mass."""
    v = 0.95 * s[..., 1] + 0.2 * a
    return np.stack([s[..., 0] + 0.1 * v, v], -1)


class Mass(gymnasium.Env):
    metadata = {"render_modes": [], "render_fps": 10}  # noqa: RUF012

    def __init__(self, render_mode=None):
        self.observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (2,), np.float32)
        self.action_space = gymnasium.spaces.Box(-1.0, 1.0, (1,))

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.s = self.np_random.uniform(-1, 1, 2)
        return self.s.astype(np.float32), {}

    def step(self, action):
        self.s = after(self.s, float(action[0]))
        return self.s.astype(np.float32), -float(self.s[0] ** 2), False, False, {}


@pytest.fixture(scope="module", autouse=True)
def registered():
    gymnasium.register("Mass-v0", Mass, max_episode_steps=STEPS)
    yield
    del gymnasium.registry["Mass-v0"]


def swaying(episodes, seed=0, frames=STEPS + 1, fps=10):
    """Reference motion: masses pushed to and fro, each at its own rate."""
    g = np.random.default_rng(seed)
    s, rate, phase = (
        g.uniform(-1, 1, (episodes, 2)),
        g.uniform(0.2, 0.5, episodes),
        g.uniform(0, 6.3, episodes),
    )
    states = [s]
    for t in range(frames - 1):
        states.append(after(states[-1], 0.8 * np.sin(rate * t + phase)))
    return make_episodes(observation=np.stack(states, 1).astype(np.float32), fps=fps)


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp("references") / "swaying.nc"
    save_episodes(swaying(20), path)
    return path


def options(file, **changes):
    return dataclasses.replace(act_preset("debug", "control_vae"), reference=str(file), **changes)


@pytest.fixture(scope="module")
def run(file, tmp_path_factory):
    """A run of seconds. Read it."""
    out = tmp_path_factory.mktemp("runs") / "run"
    return act("Mass-v0", options(file), out=out, progress=False)


# --- reference motion ----------------------------------------------------------------------------


def test_the_nearest_frame_is_that_of_brute_force():
    """In spreads, among the frames that 5 steps follow, in episodes of unequal length."""
    data = swaying(6, frames=12)
    data = data.assign_coords(length=("trajectory", [12, 9, 12, 4, 7, 12]))
    spread, g = torch.tensor([0.3, 2.0]), torch.Generator().manual_seed(1)
    references, x = References(data, spread, 5), data["observation"].to_numpy()
    for state in torch.randn(20, 1, 2, generator=g):
        found = {}
        for i, n in enumerate(data["length"].to_numpy()):
            for t in range(max(1, n - 5)):  # of a shorter one its first frame alone
                found[i, t] = float((((x[i, t] - state[0].numpy()) / spread.numpy()) ** 2).sum())
        i, t = min(found, key=found.get)
        np.testing.assert_array_equal(references.states[references.nearest(state)[0]], x[i, t])


def test_a_reference_is_followed_to_its_end_and_then_the_nearest():
    data = make_episodes(observation=[[[0.0], [1.0], [2.0]], [[10.0], [11.0], [12.0]]])
    follow = Following(References(data, torch.ones(1), 1))
    seen = torch.tensor([[[0.4], [10.9]], [[9.0], [9.0]], [[11.0], [0.0]]])
    targets = [follow(state)[:, 0].tolist() for state in seen]
    # the second begins at 11, which 12 follows, and then is nearest to 10; the first ends at 2
    assert targets == [[1.0, 12.0], [2.0, 11.0], [12.0, 12.0]]


def test_the_tracking_error_of_what_is_the_reference_and_of_what_stays_away():
    data = swaying(3)
    spread = torch.tensor([0.5, 0.25])
    references = References(data, spread, STEPS)
    one = data.isel(trajectory=[1])
    assert tracking_error(one, references) == 0
    beside = one.assign(observation=one["observation"] + np.float32([0.05, 0.0]))
    assert tracking_error(beside, references) == pytest.approx((0.05 / 0.5) ** 2 / 2, rel=1e-4)


def test_held_out_references_are_not_learned_from(run):
    learned, heldout = load_references(run, 0)
    assert (learned.sizes["trajectory"], heldout.sizes["trajectory"]) == (16, 4)
    both = np.concatenate([learned["observation"], heldout["observation"]])
    assert len(np.unique(both[:, 0], axis=0)) == 20
    np.testing.assert_array_equal(
        np.sort(both[:, 0, 0]), np.sort(swaying(20)["observation"][:, 0, 0])
    )


# --- an update -----------------------------------------------------------------------------------


def learner(file, window=6):
    """Of two states and one control, in float64, and a batch of the replay's kind."""
    c = options(file)
    net = StackConfig(hidden=8, layers=1)
    c = dataclasses.replace(
        c,
        train=dataclasses.replace(
            c.train, window=window, learning_rate=1e-2, transition_learning_rate=2e-3
        ),
        control_vae=dataclasses.replace(
            c.control_vae, action_cost=0.3, discount=0.9,
            prior=net, posterior=net, policy=net, transition=net,
        ),
    )  # fmt: skip
    sight = Sight((2,), (0.1, -0.2), (0.5, 0.3), actions=1, action_spread=(0.6,))
    card = EpisodeCard("agent_control_vae", dataclasses.asdict(c.control_vae), sight, fps=10.0)
    save_episodes(swaying(5), file.parent / REFERENCE, form="npz")  # as in the folder of a run
    learning = TrackingLearner(card, c, Controls(1, False), torch.device("cpu"), file.parent)
    learning.modules.double()
    g = np.random.default_rng(3)
    replay = swaying(5, seed=2).assign(
        action=(("trajectory", "time", "control"), g.uniform(-1, 1, (5, STEPS + 1, 1)))
    )
    batch = EpisodeWindows(replay, window).batch(torch.arange(0, 40, 10)).to("cpu", DOUBLE)
    return learning, batch


def gradients(learning, batch, **only):
    learning.modules.zero_grad()
    torch.manual_seed(7)
    elbo = ScaledELBO(kl_weight=0.3)
    loss = elbo.differentiable_loss(learning.model, learning.guide, batch, **only)
    loss.backward()
    named = learning.modules.named_parameters()
    return loss.item(), {n: p.grad.clone() for n, p in named if p.grad is not None}


def test_the_two_sums_are_those_of_the_models_closed_loop(file):
    """Their losses add up to it, and each has the gradient of its own part and no other's."""
    learning, batch = learner(file)
    whole, every = gradients(learning, batch)
    policy, one = gradients(learning, batch, only="policy")
    transition, other = gradients(learning, batch, only="transition")
    assert whole == pytest.approx(policy + transition, rel=1e-12)
    assert not one.keys() & other.keys()
    assert_same(one | other, every)
    its = {"model.raw_scale"} | {n for n in every if n.startswith("model.change")}
    assert other.keys() == its
    without = batch._replace(action=batch.action[..., :0])  # references have no actions
    assert gradients(learning, without, only="policy")[0] == policy


def test_an_update_is_a_step_of_each_sum(file):
    """The transition's on the replay, at its own rate, then the policy's through what that left."""
    learning, batch = learner(file)
    twin, _ = learner(file)
    learning.windows.batch = lambda which: batch  # in place of references, to know what is drawn
    torch.manual_seed(5)
    row = learning.update(batch, 0)
    torch.manual_seed(5)
    torch.randint(len(twin.windows), (twin.config.train.batch_size,))
    losses = {}
    for only, rate in (("transition", 2e-3), ("policy", 1e-2)):
        named = {n: p for n, p in twin.modules.named_parameters()}
        elbo = ScaledELBO(scale=1 / int(batch.observed[1:].sum()))
        loss = elbo.differentiable_loss(twin.model, twin.guide, batch, only=only)
        found = torch.autograd.grad(loss, [*named.values()], allow_unused=True)
        norm = torch.stack([g.square().sum() for g in found if g is not None]).sum().sqrt()
        with torch.no_grad():
            for p, g in zip(named.values(), found, strict=True):
                if g is not None:  # Adam's first step, after decoupled weight decay
                    g = g * min(1.0, twin.config.train.clip_norm / (norm + 1e-6))
                    p.mul_(1 - rate * twin.config.train.weight_decay)
                    p.sub_(rate * g / (g.abs() + twin.config.train.epsilon))
        losses[only] = loss.item()
    assert row["loss"] == pytest.approx(sum(losses.values()), rel=1e-10)
    assert row["transition"] == pytest.approx(losses["transition"], rel=1e-10)
    for p, q in zip(learning.modules.parameters(), twin.modules.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-8, atol=1e-10)


# --- the agent -----------------------------------------------------------------------------------


def agent(**how):
    sight = Sight((2,), (0.1, -0.2), (0.5, 0.3), actions=1, action_spread=(0.3,))
    torch.manual_seed(0)
    model = AgentControlVAE(act_preset("debug", "control_vae").control_vae, sight)
    references = References(swaying(4), model.spread, 5)
    return Tracker(AgentControlVAEGuide(model), references, Controls(1, False), **how)


def test_it_acts_by_the_means_of_posterior_and_policy():
    it, s = agent(), torch.tensor([[0.1, 0.2], [-0.5, 0.4]])
    it.begin(2)
    action = it(s)
    target = Following(it.references)(s)
    x = torch.cat([it.model.view(s), (target - s) / it.model.spread], -1)
    with torch.no_grad():
        z = it.model.prior(s).mean + it.guide.residual.network(x)
        expected = it.model.policy(s, z).mean.clamp(-1, 1)
    torch.testing.assert_close(action, expected)
    it.begin(2)
    assert torch.equal(it(s), action)  # no chance in it


@pytest.mark.parametrize("share", [0.0, 0.4, 1.0])
def test_how_often_it_collects_with_the_prior(share):
    """Where posterior and prior are far apart, a draw tells which it is of."""
    it = agent(prior_share=share)
    with torch.no_grad():
        for p in it.guide.residual.network.parameters():
            p.zero_()
        list(it.guide.residual.network.parameters())[-1].fill_(100.0)
    seen = []
    it.model.policy = lambda s, z: (seen.append(z), AgentControlVAE.policy(it.model, s, z))[1]
    it.begin(4000)
    it(torch.zeros(4000, 2), explore=True)
    prior = (seen[0] < 50).all(-1).float().mean().item()
    assert prior == pytest.approx(share, abs=0.03)
    it.begin(10)
    it(torch.zeros(10, 2))  # without exploring it always follows
    assert (seen[1] > 50).all()


def greedy(references):
    """The best that one step can do: a = argmin |s' - s~'| in spreads, cut at its bounds."""
    follow, unit = Following(references), references.spread.numpy()

    class Greedy:
        def begin(self, environments):
            follow.frame = None

        def __call__(self, observation, *, explore=False):
            target, s = follow(observation).numpy(), observation.numpy()
            free, push = after(s, 0.0) / unit, np.array([0.02, 0.2]) / unit
            a = ((target / unit - free) * push).sum(-1) / (push**2).sum()
            return torch.from_numpy(a.clip(-1, 1)[:, None]).float()

    return Greedy()


@pytest.mark.slow
def test_it_learns_to_follow_what_it_has_not_seen(file, tmp_path):
    """Far nearer to held-out references than its prior or random actions, and about as near as the
    best that can be done looking one step ahead; it looks 16 ahead.
    """
    c = dataclasses.replace(
        act_preset("small", "control_vae"), reference=str(file), episodes=20, updates=20,
        evaluate_every=20,
    )  # fmt: skip
    path = act("Mass-v0", c, out=tmp_path / "run", progress=False)
    found = evaluate(path, episodes=10, progress=False).errors
    assert list(found) == ["agent", "prior", "random"]
    references = load_agent(path, make_env("Mass-v0", c)).references
    played = evaluation(
        lambda: make_env("Mass-v0", c), lambda _: greedy(references), 10, seed=1, fps=10
    )
    best = np.mean([tracking_error(one, references) for one in played])
    assert found["agent"].mean() < 0.25 * found["prior"].mean()
    assert found["agent"].mean() < 0.25 * found["random"].mean()
    assert found["agent"].mean() < 1.3 * best


# --- a run ---------------------------------------------------------------------------------------


def test_a_run_and_what_reads_it(run, file, tmp_path, capsys):
    assert read_acting(run) == ("Mass-v0", options(file))
    loaded = Run.load(run)
    assert (loaded.card.model, loaded.card.fps) == ("agent_control_vae", 10.0)
    learned, heldout = load_references(run, 0)
    np.testing.assert_allclose(
        loaded.card.sight.spread, learned["observation"].std(("trajectory", "time")), rtol=1e-5
    )
    row = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
    env, c = make_env("Mass-v0", options(file)), options(file)
    played = evaluation(
        lambda: make_env("Mass-v0", c), lambda _: load_agent(run, env), 2, seed=0, fps=10
    )
    references = References(heldout, loaded.model.spread, c.train.window - 1)
    expected = np.mean([tracking_error(one, references) for one in played])
    assert row["tracking_error"] == pytest.approx(expected, rel=1e-12)
    assert main(["evaluate", str(run), "--episodes", "2"]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in printed[1:4]] == ["agent", "prior", "random"]
    assert main(["sample", str(run), "--draws", "2", "--out", str(tmp_path / "draws.nc")]) == 0
    assert new_episodes(run, episodes=2).sizes["trajectory"] == 2


def test_a_video_is_refused_before_its_world_is_made(run, tmp_path, monkeypatch):
    monkeypatch.setattr("pyro_animacy.acting.video._watched", lambda *_: pytest.fail("was made"))
    with pytest.raises(ConfigError, match=f"what a world model makes.*evaluate {run}$"):
        video(run, tmp_path / "run.gif", open_loop=5)


@pytest.mark.slow
def test_a_run_is_criticised(run, tmp_path):
    assert main(["criticise", str(run), "--out", str(tmp_path / "report.html")]) == 0
    assert "agent_control_vae" in (tmp_path / "report.html").read_text()


def test_a_run_that_was_stopped_goes_on_to_the_same(run, file, tmp_path, monkeypatch):
    path, real = tmp_path / "run", TrackingLearner.update

    def update(self, batch, step):
        if step == 1:
            signal.raise_signal(signal.SIGINT)
        return real(self, batch, step)

    with monkeypatch.context() as patch:
        patch.setattr(TrackingLearner, "update", update)
        with pytest.raises(Interrupted):
            act("Mass-v0", options(file), out=path, progress=False)
    resume_acting(path, progress=False)
    states = [checkpoint.load_trainer(p / "trainer.pt", loop.STATE) for p in (run, path)]
    for state in states:
        del state["seconds"]
    assert_same(*states)
    both = [read_episodes(p / "episodes")["observation"] for p in (run, path)]
    np.testing.assert_array_equal(*both)


def test_its_options_are_read_from_its_config(run, file, tmp_path):
    out = tmp_path / "again"
    words = ["act", "Mass-v0", "--config", str(run / "config.yaml"), "--updates", "1"]
    assert main([*words, "--out", str(out)]) == 0
    assert read_acting(out) == ("Mass-v0", options(file, updates=1))


@pytest.mark.parametrize(
    ("made", "says"),
    [
        ({"episodes": 1}, "has 1 episode of 2 frames or more; it must have 2"),
        ({"episodes": 3, "fps": 20}, "has 20 frames a second, and the environment 10"),
    ],
)
def test_references_that_cannot_be_followed(made, says, tmp_path):
    save_episodes(swaying(**made), tmp_path / "some.nc")
    with pytest.raises(DataError, match=says):
        act("Mass-v0", options(tmp_path / "some.nc"), out=tmp_path / "run", progress=False)
    assert not (tmp_path / "run").exists()


def test_references_of_another_environment(file, tmp_path):
    with pytest.raises(DataError, match="has 2 numbers in an observation, and the environment 3"):
        act("Pendulum-v1", options(file), out=tmp_path / "run", progress=False)
    with pytest.raises(ConfigError, match="discrete actions, and the policy of control_vae is"):
        act("CartPole-v1", options(file), out=tmp_path / "run", progress=False)
    missing = dataclasses.replace(options(file), reference=None)
    with pytest.raises(ConfigError, match="give --reference EPISODES"):
        act("Mass-v0", missing, out=tmp_path / "run", progress=False)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"pixels": True}, "control_vae sees vectors"),
        ({"agent": "planet"}, "reference is of control_vae; planet follows none"),
        ({"prior_share": 1.5}, r"prior_share is 1.5; it must be in \[0, 1\]"),
    ],
)
def test_options_that_cannot_be_used(changes, says):
    with pytest.raises(ConfigError, match=says):
        options("some.nc", **changes)


def test_presets():
    with pytest.raises(ConfigError, match=r"'pixels' of control_vae .*one of small, paper, debug"):
        act_preset("pixels", "control_vae")
    for name in ("small", "paper", "debug"):
        assert isinstance(act_preset(name, "control_vae"), ActConfig)


def test_the_folder_of_a_run_is_a_reference_too(run):
    whole = read_references(str(run), 2, 10.0)
    xr.testing.assert_equal(whole, read_references(str(run / REPLAY), 2, 10.0))
    with pytest.raises(DataError, match="nowhere: no such file or folder"):
        read_references("nowhere", 2, 10.0)


def test_a_run_names_its_reference_from_any_folder(file, tmp_path, monkeypatch):
    monkeypatch.chdir(file.parent)
    out = act("Mass-v0", options(file.name), out=tmp_path / "run", progress=False)
    assert read_acting(out)[1].reference == str(file.resolve())
