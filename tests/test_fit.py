"""The training loop: schedules, stopping, what it saves, and the figures beside the model's."""

import dataclasses
import inspect
import json
import math
import re
import signal
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import xarray as xr
import yaml
from helpers import (
    assert_logged,
    assert_same,
    assert_same_run,
    chase,
    debug,
    metrics,
    recordings,
    table,
    validation,
)

from pyro_animacy.acting.config import act_preset
from pyro_animacy.cli import main
from pyro_animacy.command_data import DATA_OPTIONS
from pyro_animacy.criticism.verdicts import score_grade
from pyro_animacy.data.readers import read_trajectories
from pyro_animacy.data.schema import make_trajectories
from pyro_animacy.data.trajectories import split, split_at_gaps
from pyro_animacy.data.windows import dequantised
from pyro_animacy.errors import ConfigError, DataError, RunError
from pyro_animacy.infer import checkpoint
from pyro_animacy.infer.config import UpdateConfig, parse_config
from pyro_animacy.infer.fit import fit
from pyro_animacy.infer.loop import clip, make_optimizer, stream
from pyro_animacy.infer.presets import PRESETS, preset
from pyro_animacy.infer.recordings import HOW_READ
from pyro_animacy.infer.run import Run, suited
from pyro_animacy.infer.schedules import KLWeightConfig, learning_rate
from pyro_animacy.infer.score import scoring_windows
from pyro_animacy.infer.source import SceneSource
from pyro_animacy.infer.steps import window_steps
from pyro_animacy.infer.summary import describe_text, summarise, summary_text
from pyro_animacy.infer.trainer import Interrupted, Trainer
from pyro_animacy.models.program import Overshooting

# --- schedules -----------------------------------------------------------------------------------

PAPER = (0.009, 0.019125, 0.02925, 0.039375, 0.0495, 0.059625, 0.06975, 0.079875, 0.09)
SEED = (0.01, 0.02, 0.03, 0.04, 0.05, 0.06, 0.07, 0.08, 0.09, 0.1)
TABLES = {"paper": (PAPER, 500 * 8), "seed": (SEED, 500)}  # levels, updates a level


def assert_levels(train, steps, levels, every):
    """The KL weight of each of so many updates; the last level is reached, and used as long."""
    found = [train.kl_weight(step // train.steps_per_epoch) for step in range(steps)]
    expected = [levels[min(step // every, len(levels) - 1)] for step in range(steps)]
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-15)
    assert steps >= every * len(levels)


@pytest.mark.parametrize("name", TABLES)
def test_kl_weight_of_every_update(name):
    train = preset(name).train
    assert_levels(train, train.steps, *TABLES[name])


def test_kl_weight_of_every_update_by_acting():
    """Of `act` there are as many updates as episodes leave room for."""
    config = act_preset("paper", "control_vae")
    assert_levels(config.train, config.updates_before(config.episodes - 1), *TABLES["paper"])


def test_geometric_kl_weight():
    """0.01 x 1.122^k after 500 k epochs, up to 0.0891 from epoch 9,500 on (2-D soccer)."""
    table = [
        0.01, 0.01122, 0.01258884, 0.01412467848, 0.01584788925456, 0.01778133174361632,
    ]  # fmt: skip
    beta = KLWeightConfig(0.01, 0.01 * 1.122**19, levels=20, shape="geometric")
    for epoch in range(3000):
        assert beta(epoch) == pytest.approx(table[epoch // 500], rel=1e-14)
    assert beta(9499) == pytest.approx(0.01 * 1.122**18, rel=1e-14)
    assert beta(9500) == beta(10**6) == pytest.approx(0.01 * 1.122**19, rel=1e-14)
    assert beta(9500) == pytest.approx(0.1, rel=0.11)
    assert KLWeightConfig(0.3, 0.3, shape="geometric")(7) == 0.3
    with pytest.raises(ConfigError, match="no factor leads from 0"):
        KLWeightConfig(0.0, 0.1, levels=3, shape="geometric")


@pytest.mark.parametrize("name", TABLES)
def test_kl_weight_as_logged(name, tiny_data, tmp_path):
    """Train across the edge of every level: a run is put a few updates before it and goes on."""
    levels, every = TABLES[name]
    own = preset(name).train
    tiny = debug(kl_weight=own.kl_weight, steps_per_epoch=own.steps_per_epoch, patience=None)
    fresh = Trainer(tiny_data, tiny, tmp_path, progress=False)
    fresh.save()
    state = checkpoint.load_trainer(tmp_path / "trainer.pt")
    for level in range(1, len(levels)):
        edge = every * level
        steps = dataclasses.replace(
            tiny, train=dataclasses.replace(tiny.train, steps=edge + 1, evaluate_every=10**6)
        )
        near = Trainer(tiny_data, steps, tmp_path, progress=False)
        near.load({**state, "step": edge - 2})
        near.train()
        logged = {row["step"]: row["kl_weight"] for row in metrics(tmp_path)[-2:]}
        # Row n is of the update with index n - 1, the last of the level below.
        assert logged == {
            edge: pytest.approx(levels[level - 1], abs=1e-15),
            edge + 1: pytest.approx(levels[level], abs=1e-15),
        }


def test_the_logged_terms_add_up(tiny_data, tmp_path):
    """loss = reconstruction + beta KL + action cost, in the same units."""
    closed = dict(
        history=1, likelihood="squared_error", roll_out="closed_loop", policy_scale=0.05,
        action_cost=0.1,
    )  # fmt: skip
    config = debug(closed, window=3, kl_weight=KLWeightConfig(0.2, 0.8, 3, 10))
    fit(tiny_data, config, out=tmp_path / "run", progress=False)
    rows = metrics(tmp_path / "run")
    assert [row["step"] for row in rows] == [10, 20, 30, 40]
    for row in rows:
        total = row["reconstruction"] + row["kl_weight"] * row["kl"] + row["action_cost"]
        assert row["loss"] == pytest.approx(total, rel=1e-5)
        assert row["action_cost"] > 0
        assert row["kl"] > 0


def test_the_logged_terms_add_up_with_overshooting(tiny_data, tmp_path):
    """beta_1 / D is a weight too: the KL is logged before it, as without overshooting."""
    config = preset("debug", "rssm")
    asked = Overshooting(2, (0.6, 0.3))
    train = dataclasses.replace(
        config.train,
        steps=2,
        evaluate_every=1,
        overshooting=asked,
        kl_weight=KLWeightConfig(0.4, 0.4),
    )
    fit(tiny_data, dataclasses.replace(config, train=train), out=tmp_path / "run", progress=False)
    for row in metrics(tmp_path / "run"):
        kl = 0.4 * 0.6 / 2 * row["kl"]
        assert row["loss"] == pytest.approx(
            row["reconstruction"] + kl + row["latent_ahead"], rel=1e-5
        )
        assert row["kl"] > 0


@pytest.mark.parametrize("schedule", ["constant", "cosine"])
def test_learning_rate(schedule, tiny_data, tmp_path):
    fit(tiny_data, debug(schedule=schedule), out=tmp_path / "run", progress=False)
    logged = {row["step"]: row["learning_rate"] for row in metrics(tmp_path / "run")}
    for n, rate in logged.items():
        half = (1 + math.cos(math.pi * (n - 1) / 40)) / 2
        assert rate == pytest.approx(1e-3 if schedule == "constant" else 1e-5 + 0.99e-3 * half)
    assert learning_rate(40, 40, 1.0, "cosine") == pytest.approx(0.01)
    assert learning_rate(0, 40, 1.0, "cosine") == 1.0


def test_tensorboard_has_the_numbers_of_the_log(tiny_data, tmp_path):
    pytest.importorskip("tensorboard", reason="the tensorboard extra is not installed")
    path = fit(tiny_data, debug(tensorboard=True), out=tmp_path / "run", progress=False).path
    rows = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    assert_logged(path, rows, "step")


def test_clipping_bounds_the_update(tiny_data, tmp_path):
    """With plain gradients of norm one at most, RAdam's first steps are lr x gradient."""
    config = debug(
        optimizer="radam", steps=1, clip_norm=1e-3, learning_rate=1.0, schedule="constant",
        weight_decay=0.0,
    )  # fmt: skip
    trainer = Trainer(tiny_data, config, tmp_path, progress=False)
    before = [p.detach().clone() for p in trainer.modules.parameters()]
    trainer.train()
    moved = [p - b for p, b in zip(trainer.modules.parameters(), before, strict=True)]
    norm = torch.cat([m.flatten() for m in moved]).norm().item()
    assert norm == pytest.approx(1e-3, rel=1e-3)  # the gradient itself is far longer


@pytest.mark.parametrize("name", ["adam", "radam"])
def test_weight_decay_is_decoupled(name):
    """Without a gradient a parameter shrinks by lr x decay, and by nothing else."""
    p = torch.nn.Parameter(torch.tensor([2.0, -3.0]))
    options = UpdateConfig(optimizer=name, learning_rate=0.1, weight_decay=0.5, epsilon=0.25)
    optimizer = make_optimizer([p], options)
    for _ in range(10):  # RAdam's first steps would not show it
        p.grad = torch.zeros(2)
        optimizer.step()
    torch.testing.assert_close(p.detach(), torch.tensor([2.0, -3.0]) * (1 - 0.1 * 0.5) ** 10)
    assert optimizer.param_groups[0]["eps"] == 0.25


@pytest.mark.parametrize("loss", [1.0, math.nan, math.inf])
@pytest.mark.parametrize("gradient", [1.0, math.nan, math.inf])
def test_a_loss_or_a_gradient_that_is_no_number_is_noticed(loss, gradient):
    first, p = torch.nn.Parameter(torch.ones(1)), torch.nn.Parameter(torch.ones(2))
    first.grad, p.grad = torch.ones(1), torch.tensor([0.5, gradient])
    options = UpdateConfig(clip_norm=1e9)
    optimizer = make_optimizer([{"params": [first]}, {"params": [p]}], options)
    wrong = clip(optimizer, torch.tensor(loss), options)
    assert bool(wrong) is not (math.isfinite(loss) and math.isfinite(gradient))


# --- the average ---------------------------------------------------------------------------------


@pytest.mark.parametrize("decay", [0.0, 0.5, 0.995])
def test_what_is_saved_is_the_moving_average(decay, tiny_data, tmp_path):
    """Written as one sum: m_N = sum_n w_n theta_n, where theta_0 is what training began with."""
    N = 12
    config = debug(steps=N, evaluate_every=N, patience=None, ema_decay=decay, learning_rate=0.01)
    trainer = Trainer(tiny_data, config, tmp_path, progress=False)
    theta, update = [], trainer.optimizer.step

    def values():
        return {name: p.detach().double() for name, p in trainer.modules.named_parameters()}

    def noted():
        update()
        theta.append(values())

    theta.append(values())
    trainer.optimizer.step = noted
    trainer.train()
    d = np.array([min(decay, (1 + n) / (10 + n)) for n in range(N)])
    weights = [np.prod(d), *((1 - d[n]) * np.prod(d[n + 1 :]) for n in range(N))]
    assert sum(weights) == pytest.approx(1)
    saved, _ = checkpoint.load_weights(tmp_path / "best.safetensors")
    for name in theta[0]:
        expected = sum(w * of[name] for w, of in zip(weights, theta, strict=True))
        torch.testing.assert_close(saved[name].double(), expected, rtol=1e-5, atol=1e-6)
        if not decay:  # to the bit
            assert torch.equal(saved[name].double(), theta[-1][name])
    trainer.modules.load_state_dict(saved)
    torch.manual_seed(stream(0, -2))
    assert trainer.source.validate(trainer.guide) == trainer.last  # and what was validated


# --- the validation score ------------------------------------------------------------------------


def test_validation_is_the_importance_weighted_density_in_data_units(tiny_data, tmp_path):
    """Of K = 8, on the validation part with its own draw of noise; each time by the same draws."""
    config = debug(steps=20, evaluate_every=10, patience=None, learning_rate=1e-30, weight_decay=0)
    run = fit(tiny_data, config, out=tmp_path / "run", progress=False)
    steps, scores = validation(tmp_path / "run")
    assert steps == [10, 20]
    assert scores[0] == scores[1]  # nothing was learned
    train = split(tiny_data, 0.2, seed=0)[0]
    part = dequantised(split(train, config.train.validation, seed=1)[1], 0)
    windows = scoring_windows(part, run.card.scale, config.model.history)
    torch.manual_seed(stream(0, -2))
    with torch.no_grad():
        parts = window_steps(run.guide, windows, torch.arange(len(windows)), 8)
        w = torch.cat([s.log_weight[:, 0, :, 0] for _, s in parts], 1).double()
    expected = w.exp().mean(0).log().mean().item() - 4 * math.log(run.card.scale.unit)
    assert scores[-1] == pytest.approx(expected, abs=1e-5)


def test_a_held_out_part_that_is_given_is_scored_and_the_rest_fitted_to_in_whole(
    tiny_data, tmp_path
):
    other = recordings(frames=50, seed=3)
    source = Trainer(tiny_data, debug(), tmp_path, progress=False, heldout=other).source
    xr.testing.assert_identical(source.heldout_part, other)
    parts = source.fit_part, source.validation_part
    assert [(p["start"].item(), p["length"].item()) for p in parts] == [(0, 108), (108, 12)]
    with pytest.raises(ConfigError, match="holds episodes out itself"):
        Trainer(tiny_data, preset("debug", "image_vae"), tmp_path, progress=False, heldout=other)


def test_validation_frames_choose_the_parameters_and_no_more(tiny_data, tmp_path):
    """Without patience, which keeps the last parameters, they change nothing but their score."""
    config = debug(patience=None, steps=20)
    x = tiny_data["position"].values.copy()
    x[:, 90:96] += np.linspace(0, 50, 6)[:, None, None]
    other = make_trajectories(
        x, fps=10, body=list(tiny_data["body"].values), resolution=tiny_data["resolution"].values
    )
    one, two = (
        fit(data, config, out=tmp_path / name, progress=False)
        for name, data in (("one", tiny_data), ("two", other))
    )
    assert one.card.scale == two.card.scale
    assert_same(one.model.state_dict(), two.model.state_dict())
    assert_same(one.guide.state_dict(), two.guide.state_dict())
    ours, theirs = (validation(tmp_path / name)[1][-1] for name in ("one", "two"))
    assert theirs < ours - 1


# --- stopping early ------------------------------------------------------------------------------


def overfitting(**train):
    """Options under which the validation score falls again: few windows, large steps."""
    options = dict(
        steps=300,
        evaluate_every=10,
        learning_rate=0.01,
        schedule="constant",
        symmetry="none",
        validation=0.3,
    )
    return debug(**{**options, **train})


@pytest.fixture(scope="module")
def few():
    return recordings(frames=120)


def test_patience_and_the_best_parameters(few, tmp_path):
    run = fit(few, overfitting(patience=3), out=tmp_path / "early", progress=False)
    steps, scores = validation(tmp_path / "early")
    best = int(np.argmax(scores))
    assert 0 < best < len(scores) - 1  # else this shows nothing
    assert len(scores) - 1 - best == 3
    assert run.summary["steps"] == steps[-1] < 300
    # Every update draws its numbers by its index, so a run of that length ends in those parameters.
    short = overfitting(patience=None, steps=steps[best])
    last = fit(few, short, out=tmp_path / "short", progress=False)
    assert_same(run.model.state_dict(), last.model.state_dict())
    assert_same(run.guide.state_dict(), last.guide.state_dict())
    assert min(scores[1:best], default=scores[0]) < scores[0]  # a better score after worse ones


def test_no_patience_keeps_the_last(few, tmp_path):
    run = fit(few, overfitting(patience=None, steps=100), out=tmp_path / "run", progress=False)
    steps, scores = validation(tmp_path / "run")
    assert steps == list(range(10, 101, 10))
    assert int(np.argmax(scores)) < len(scores) - 1
    saved = checkpoint.load_trainer(tmp_path / "run" / "trainer.pt")["average"]
    tensors, _ = checkpoint.load_weights(tmp_path / "run" / "best.safetensors")
    assert_same(saved, tensors)
    assert run.summary["steps"] == 100


# --- what a fit leaves ---------------------------------------------------------------------------


def test_older_checkpoints_are_what_a_run_that_ended_there_has(tiny_data, tmp_path):
    steps = {"evaluate_every": 10, "patience": None, "schedule": "constant"}
    path = fit(
        tiny_data, debug(steps=40, keep=2, **steps), out=tmp_path / "run", progress=False
    ).path
    ended = fit(tiny_data, debug(steps=30, **steps), out=tmp_path / "short", progress=False)
    assert sorted(f.name for f in (path / "checkpoints").iterdir()) == ["30", "40"]
    older = Run.load(path, checkpoint=30)
    assert_same(older.model.state_dict(), ended.model.state_dict())
    assert_same(older.guide.state_dict(), ended.guide.state_dict())
    assert older.checkpoint == 30
    assert older.name == f"{path.name} at 30"
    assert [row["step"] for row in older.metrics()][-1] == 30 < Run.load(path).metrics()[-1]["step"]
    assert not older.summary
    with pytest.raises(RunError, match=r"has no checkpoint 10; it has 30, 40$"):
        Run.load(path, checkpoint=10)
    with pytest.raises(RunError, match=r"it has none \(--train.keep 0\)$"):
        Run.load(ended.path, checkpoint=30)


def test_older_checkpoints_on_the_command_line(tiny_data, tmp_path):
    config = debug(steps=20, keep=1, evaluate_every=10)
    run = fit(tiny_data, config, out=tmp_path / "run", progress=False)
    file, out = tmp_path / "scene.nc", tmp_path / "draws.nc"
    tiny_data.to_netcdf(file)
    words = ["sample", str(run.path), str(file), "--draws", "2", "--out", str(out)]
    assert main([*words, "--checkpoint", "20"]) == 0
    assert main([*words, "--overwrite", "--checkpoint", "10"]) == 2


def test_same_seed_same_run_whatever_was_drawn_before(tiny_data, tiny_run, tmp_path):
    torch.manual_seed(99)
    before = torch.get_rng_state()
    handlers = [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)]
    fit(tiny_data, debug(), out=tmp_path / "run", progress=False)
    assert_same_run(tiny_run.path, tmp_path / "run")
    # and nothing is left behind
    assert torch.equal(before, torch.get_rng_state())
    assert handlers == [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)]
    with pytest.raises(ValueError, match="scale"):
        torch.distributions.Normal(0.0, -1.0)


def test_another_seed_is_another_run(tiny_data, tiny_run, tmp_path):
    other = fit(tiny_data, debug(seed=1), out=tmp_path / "run", progress=False)
    ours, theirs = (r.model.step.policy.affine.weight for r in (tiny_run, other))
    assert not torch.allclose(ours, theirs)


def test_fit_from_a_thread(tiny_data, tiny_run, tmp_path):
    """Only the main thread may set handlers for signals; another trains without."""
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(1) as pool:
        pool.submit(fit, tiny_data, debug(), out=tmp_path / "run", progress=False).result()
    assert_same_run(tiny_run.path, tmp_path / "run")


@pytest.mark.parametrize("name", PRESETS["control_vae"])
def test_config_round_trip(name, tiny_data, tmp_path, monkeypatch):
    """config.yaml is written before training and holds every option."""
    monkeypatch.setattr(Trainer, "train", lambda _: (_ for _ in ()).throw(Interrupted("", 15)))
    config = preset(name)
    with pytest.raises(Interrupted):
        fit(tiny_data, config, out=tmp_path / "run", data={"source": "x", "fps": 10})
    settings = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert parse_config(settings) == config
    assert settings["data"] == {"source": "x", "fps": 10}
    assert settings["versions"]["torch"] == torch.__version__
    assert settings["train"]["seed"] == config.train.seed


def test_config_file_on_the_command_line(tiny_data, tiny_run, tmp_path):
    """A file with the sections of a run's config.yaml gives that run."""
    settings = yaml.safe_load((tiny_run.path / "config.yaml").read_text())
    sections = {name: settings[name] for name in ("model", "train")}
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(sections))
    # The id keeps its place in the file: the bodies are in the order of their names.
    table(chase()).drop(columns="clip").to_csv(tmp_path / "chase.csv", index=False)
    words = ["fit", str(tmp_path / "chase.csv"), "--fps", "10", "--config"]
    assert main([*words, str(tmp_path / "c.yaml"), "--out", str(tmp_path / "run")]) == 0
    assert metrics(tmp_path / "run") == metrics(tiny_run.path)
    # Options after the file win; the rest stays.
    more = ["--train.steps", "20", "--model.latent_size=3", "--out", str(tmp_path / "other")]
    assert main([*words, str(tmp_path / "c.yaml"), *more]) == 0
    found = parse_config(yaml.safe_load((tmp_path / "other" / "config.yaml").read_text()))
    assert found == debug({"latent_size": 3}, steps=20)


@pytest.mark.parametrize("name", PRESETS["control_vae"])
def test_preset_on_the_command_line(name, tmp_path, monkeypatch):
    """Nested options start from the preset named, wherever it stands."""
    given = SimpleNamespace()

    def taken(dataset, config, **_):
        given.config = config
        raise RunError("enough")

    monkeypatch.setattr("pyro_animacy.commands.fit", taken)
    table(chase()).to_csv(tmp_path / "chase.csv", index=False)
    words = ["fit", "--train.steps", "7", str(tmp_path / "chase.csv"), "--fps", "10"]
    words += ["--out", str(tmp_path / "run"), "--model.prior.hidden", "24"]
    assert main([*words, "--preset", name]) == main([*words, f"--preset={name}"]) == 2
    expected = preset(name)
    prior = dataclasses.replace(expected.model.prior, hidden=24)
    assert given.config == dataclasses.replace(
        expected,
        model=dataclasses.replace(expected.model, prior=prior),
        train=dataclasses.replace(expected.train, steps=7),
    )


@pytest.mark.parametrize(
    ("section", "entry"),
    [
        ("train", {"steps": 0}),
        ("train", {"stepps": 3}),
        ("train", {"steps": "many"}),
        ("train", {"heldout": 1.0}),
        ("train", {"learning_rate": -1.0}),
        ("train", {"optimizer": "sgd"}),
        ("model", {"history": 0}),
        ("model", {"likelihood": "squared_error"}),  # without policy_scale
        ("model", {"prior": {"hidden": "wide"}}),
        ("model", {"discount": 1.5}),
    ],
)
def test_values_that_cannot_be_used(section, entry):
    name = next(iter(entry))
    name = "policy_scale" if name == "likelihood" else name
    with pytest.raises(ConfigError, match=name):
        parse_config({section: entry})


# --- the summary and the baselines ---------------------------------------------------------------


def baselines_by_hand(train, heldout, history):
    """Mean log density of each baseline, with numpy alone.

    Both parts carry one fixed draw of uniform noise as wide as the resolution. The first step
    scored has all the past that any of the models looks at.
    """
    first = max(history, 6)

    def moves(part, seed):
        x = part["position"].values
        noise = np.random.default_rng(seed).uniform(-0.5, 0.5, x.shape)
        x = x + noise * part["resolution"].values[:, None, None, None]
        for scene, length in zip(x, part["length"].values, strict=True):
            yield np.diff(scene[:length].reshape(length, -1), axis=0)

    def design(part, seed, order):
        rows, next_ = [], []
        for a in moves(part, seed):
            for t in range(first - 1, len(a)):
                rows.append(np.concatenate([[1.0], *(a[t - j] for j in range(1, order + 1))]))
                next_.append(a[t])
        return np.array(rows), np.array(next_)

    def density(errors, sigma):
        sign, logdet = np.linalg.slogdet(2 * np.pi * sigma)
        assert sign == 1
        return -0.5 * (logdet + np.einsum("ni,ij,nj->n", errors, np.linalg.inv(sigma), errors))

    found = {}
    for name in ("constant_velocity", *(f"ar{k}" for k in range(1, 6))):
        order = 1 if name == "constant_velocity" else int(name[2:])
        (X, a), (Y, b) = design(train, 1, order), design(heldout, 2, order)
        D = a.shape[1]
        B = np.vstack([np.zeros(D), np.eye(D)])
        if name != "constant_velocity":
            B = np.linalg.lstsq(X, a, rcond=None)[0]
        e = a - X @ B
        found[name] = density(b - Y @ B, e.T @ e / len(e)).mean()
    return found, len(b)


DATA = {
    "one recording": recordings(),
    "recordings of unlike length": make_trajectories(
        np.where(
            np.arange(50)[:, None, None] < np.array([50, 33, 41, 50, 20, 47])[:, None, None, None],
            chase(50, 6, seed=3, decimals=1) * 7 + 100,
            np.nan,
        ),
        fps=10,
        resolution=[0.7, 0.7, 0.1, 0.7, 1.4, 0.7],
    ),
}


@pytest.mark.parametrize("name", DATA)
@pytest.mark.parametrize("history", [2, 8])
def test_summary_and_baselines(name, history, tmp_path):
    data = DATA[name]
    run = fit(data, debug({"history": history}, seed=4), out=tmp_path / "run", progress=False)
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary == run.summary
    assert {
        *("heldout_nats_per_step", "heldout_elbo_per_step", "baselines", "best_baseline"),
        *("train_seconds", "steps", "batch_size", "parameters", "data"),
    } <= summary.keys()
    train, heldout = split(data, 0.2, seed=4)
    expected, steps = baselines_by_hand(train, heldout, history)
    assert list(summary["baselines"]) == list(expected)
    # Positions pass through single precision on the way.
    assert summary["baselines"] == pytest.approx(expected, abs=2e-4)
    assert summary["best_baseline"] == max(expected, key=expected.get)
    assert summary["score_steps"] == steps
    assert summary["heldout_nats_per_step"] > summary["heldout_elbo_per_step"]
    assert summary["steps"] == 40
    modules = (run.model, run.guide)
    assert summary["parameters"] == sum(p.numel() for m in modules for p in m.parameters())
    assert summary["data"]["frames"] == int(data["length"].sum())
    assert summary["data"]["heldout_frames"] == int(heldout["length"].sum())
    np.testing.assert_array_equal(run.heldout(data)["position"], heldout["position"])


def test_a_squared_error_run_says_which_density_it_is_scored_by(tiny_data, tmp_path):
    model = dict(likelihood="squared_error", policy_scale=0.05)
    run = fit(tiny_data, debug(model), out=tmp_path / "run", progress=False)
    assert "trained on the squared error, not on this density" in run.summary["score_density"]


def test_heldout_frames_leave_no_trace_in_the_model(tiny_data, tiny_run, tmp_path):
    """Other held-out frames, same parameters, same scale."""
    x = tiny_data["position"].values.copy()
    x[:, 96:] = x[:, 95:96] + 5 * (x[:, 96:] - x[:, 95:96])
    other = make_trajectories(
        x, fps=10, body=list(tiny_data["body"].values), resolution=tiny_data["resolution"].values
    )
    run = fit(other, debug(), out=tmp_path / "run", progress=False)
    assert_same(run.model.state_dict(), tiny_run.model.state_dict())
    assert metrics(tmp_path / "run") == metrics(tiny_run.path)
    ours, theirs = (r.summary["baselines"]["ar1"] for r in (tiny_run, run))
    assert theirs < ours - 1


def test_windows_longer_than_a_trajectory(tmp_path):
    """Trajectories shorter than the window are padded and masked; the run is like any other."""
    data = recordings(frames=14, recordings=8)
    closed = dict(history=1, likelihood="squared_error", roll_out="closed_loop", policy_scale=0.05)
    run = fit(data, debug(closed, window=24), out=tmp_path / "run", progress=False)
    assert run.summary["score_steps"] > 0
    losses = [row["loss"] for row in metrics(tmp_path / "run")]
    assert np.isfinite(losses).all()


def test_overwrite(tiny_data, tiny_run, tmp_path):
    path = tmp_path / "run"
    fit(tiny_data, debug(steps=20), out=path, progress=False)
    (path / "report.html").write_text("of the run before")
    (path / "tensorboard").mkdir()
    events = path / "tensorboard" / "events.out.tfevents.1"
    events.write_text("of the run before")

    def files():
        return {f.name: f.read_bytes() for f in path.rglob("*") if f.is_file()}

    before = files()
    with pytest.raises(RunError, match="exists"):
        fit(tiny_data, debug(), out=path, progress=False)
    assert files() == before
    # Data or options that cannot be used are found before anything is deleted.
    for data, config in (
        (recordings(frames=8), debug()),
        (tiny_data, debug(device="nonsense")),
    ):
        with pytest.raises(Exception, match=r"frames|device"):
            fit(data, config, out=path, overwrite=True, progress=False)
        assert files() == before
    fit(tiny_data, debug(), out=path, overwrite=True, progress=False)
    assert_same_run(tiny_run.path, path)
    assert (path / "report.html").read_text() == "of the run before"  # what is not ours stays
    assert not events.exists()  # which TensorBoard would draw with those of the new run


def test_folders_that_are_no_runs_are_not_overwritten(tiny_data, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    (tmp_path / "file").write_text("years of work")
    for name in ("mine", "file"):
        with pytest.raises(RunError, match=f"{name}: .*not the folder of a run"):
            fit(tiny_data, debug(), out=tmp_path / name, overwrite=True, progress=False)
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "years of work"
    assert (tmp_path / "file").read_text() == "years of work"
    (tmp_path / "empty").mkdir()
    fit(tiny_data, debug(), out=tmp_path / "empty", overwrite=True, progress=False)


@pytest.mark.parametrize("unread", [chase(), table(chase()), "chase.csv"])
def test_recordings_that_were_not_read_are_refused(tmp_path, unread):
    with pytest.raises(DataError, match=rf"a {type(unread).__name__}; .*read_trajectories\("):
        fit(unread, debug(), out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_run_reads_its_recordings_again(tmp_path, tiny_run):
    """As for the fit, with every option that was given; or says that it does not know them."""
    table(chase(240)).to_csv(tmp_path / "chase.csv", index=False)
    options = {"fps": 10, "downsample": 2, "minimum_frames": 5, "units": "m", "split_gaps": False}
    data = {"source": str(tmp_path / "chase.csv"), **options}
    own = read_trajectories(**data)
    run = fit(own, debug(steps=1), out=tmp_path / "run", data=data, progress=False)
    xr.testing.assert_identical(run.recordings(), own)
    with pytest.raises(RunError, match="does not say where the recordings are; read them as for"):
        tiny_run.recordings()


def test_the_order_of_the_bodies_changes_no_score(tiny_run, tiny_data):
    """As found: the baselines were read as of the bodies in the order they were given."""
    heldout = tiny_run.heldout(tiny_data)
    for order in ([0, 1], [1, 0]):
        found = summarise(tiny_run, heldout.isel(body=order), progress=False)
        for name in ("heldout_nats_per_step", "baselines", "gain_standard_error"):
            assert found[name] == tiny_run.summary[name]
    with pytest.raises(DataError, match=r"have 1 body .* the run's model has 2"):
        summarise(tiny_run, heldout.isel(body=[0]), progress=False)


def test_an_error_that_is_not_known_is_null(tmp_path):
    """Of the one step that seven frames held out give: no NaN, which is not JSON, and no +-."""
    run = fit(recordings(frames=280), debug(steps=1, heldout=0.025), out=tmp_path / "run",
              progress=False)  # fmt: skip

    def refuse(word):
        raise AssertionError(word)

    text = (run.path / "summary.json").read_text()
    summary = json.loads(text, parse_constant=refuse)
    assert summary["score_steps"] == 1
    assert summary["heldout_standard_error"] is summary["gain_standard_error"] is None
    assert summary == Run.load(run.path).summary
    said = summary_text(run)
    assert "+-" not in said
    assert "nan" not in said
    assert score_grade(summary)[0] == "undefined"


@pytest.mark.parametrize(("frames", "count"), [(120, 1), (30, 6)])
def test_what_was_held_out_is_that_of_the_fit_or_refused(tmp_path, tiny_data, frames, count):
    """By time and by recording: of the same recordings alone, in whatever order of the bodies."""
    own = recordings(frames=frames, recordings=count)
    run = fit(own, debug(steps=1), out=tmp_path / "run", progress=False)
    heldout = split(own, 0.2, seed=run.config.train.seed)[1]
    in_order = own.isel(body=[1, 0])
    noise = np.random.default_rng(0).uniform(-1e-3, 1e-3, own["position"].shape)
    for asked in (run, Run.load(run.path)):
        xr.testing.assert_identical(asked.heldout(own), heldout)
        xr.testing.assert_identical(asked.heldout(in_order), heldout.isel(body=[1, 0]))
        assert asked.fitted(own).sizes["trajectory"] == max(1, count - 1)
        for other in (
            own.isel(trajectory=[0] if count == 1 else slice(1, None)).isel(time=slice(0, -1)),
            recordings(frames=frames, recordings=count, seed=1),
            recordings(frames=frames, recordings=count + 5),
            own.assign(position=own["position"] + noise),
        ):
            for part in (asked.heldout, asked.fitted):
                with pytest.raises(RunError, match=r"run: its recordings have changed since the"):
                    part(shortened(other))


def shortened(dataset):
    """With the lengths that the array has."""
    frames = np.minimum(dataset["length"], dataset.sizes["time"])
    return dataset.assign_coords(length=("trajectory", frames.to_numpy()))


def test_how_recordings_were_read_is_kept_in_full():
    of_reader = list(inspect.signature(read_trajectories).parameters)
    assert list(HOW_READ) == of_reader[1:]
    assert set(DATA_OPTIONS) < set(HOW_READ)


def test_a_run_is_printed_in_one_line(tiny_run):
    said = f"<Run {tiny_run.path}: control_vae of hunter, prey at 10 Hz>"
    assert repr(tiny_run) == str(tiny_run) == said


def test_a_run_loaded_is_the_run_returned(tiny_run):
    loaded = Run.load(tiny_run.path)
    assert_same(loaded.model.state_dict(), tiny_run.model.state_dict())
    assert_same(loaded.guide.state_dict(), tiny_run.guide.state_dict())
    assert (loaded.card, loaded.settings) == (tiny_run.card, tiny_run.settings)
    rows = [{k: v for k, v in row.items() if k != "seconds"} for row in loaded.metrics()]
    assert rows == metrics(tiny_run.path)


def test_the_name_of_a_preset_is_no_config(tiny_data, tmp_path):
    with pytest.raises(ConfigError, match="must be a FitConfig, such as preset"):
        fit(tiny_data, "debug", out=tmp_path / "run", progress=False)


@pytest.mark.parametrize("name", ["rssm", "world_model"])
def test_what_a_preset_leaves_open_stays_open(name):
    """So that its parts go with others' parts."""
    config = preset("debug", name)
    if name == "rssm":
        shorter = dataclasses.replace(config, train=dataclasses.replace(config.train, window=4))
        assert shorter.model.memory_steps is None
    else:
        dataclasses.replace(config, train=preset("debug", "image_vae").train)


def test_a_body_that_never_moves_is_named():
    x = np.random.default_rng(0).normal(size=(2, 30, 3, 2)).cumsum(1)
    assert "never moves" not in describe_text(make_trajectories(x, fps=10))
    x[:, :, 1] = 4.0
    x[0, 10:20, 2] = np.nan
    said = describe_text(make_trajectories(x, fps=10, body=["a", "post", "b"]))
    assert said.endswith("; never moves: post (leave out by --bodies)")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda d: d[["position"]].drop_vars(["length", "start"]), "build it with make_traj"),
        (lambda d: d.drop_attrs(), "fps"),
        (lambda d: d.transpose("time", "trajectory", "body", "space"), "in this order"),
        (lambda d: d.isel(body=[]), "no bodies"),
    ],
)
def test_a_dataset_out_of_the_schema_is_refused_in_words(change, says, tiny_data, tiny_run):
    """By a fit, and by a run that is asked about it."""
    with pytest.raises(DataError, match=says):
        SceneSource(change(tiny_data), debug())
    with pytest.raises(DataError, match="0 bodies" if says == "no bodies" else says):
        suited(tiny_run.card, change(tiny_data))


@pytest.mark.parametrize("recordings", [1, 5, 6])
def test_too_short_recordings_are_told_how_many_frames_they_need(recordings):
    """It is the least with which a fit can begin, but that parts are rounded to whole frames."""

    def needed(frames):
        x = np.random.default_rng(0).normal(size=(recordings, frames, 2, 2)).cumsum(1)
        try:
            SceneSource(make_trajectories(x, fps=10), preset("small"))
        except DataError as error:
            return int(re.search(r"about (\d+) frames in a row", str(error))[1])
        return None

    said = needed(5)  # with less there is nothing to train on, which another message says
    assert said == {1: 82, 5: 65, 6: 7}[recordings]
    assert needed(said + 1) is None
    assert needed(said - 2) == said


def test_what_was_read_agrees_in_number():
    x = np.random.default_rng(0).normal(size=(2, 30, 2, 2)).cumsum(1)
    one, two = (describe_text(make_trajectories(x[:n, :, :n], fps=10)) for n in (1, 2))
    assert one.startswith("read 1 trajectory of 1 recording: 1 body (0), 3 s at 10 Hz")
    assert two.startswith("read 2 trajectories of 2 recordings: 2 bodies (0, 1), 6 s at 10 Hz")


def test_seconds_that_trajectories_share_are_counted_once():
    """As scenes of one match do; of three trajectories of one recording and one of another."""
    x = np.random.default_rng(0).normal(size=(4, 30, 1, 2)).cumsum(1)
    ds = make_trajectories(x, fps=10, recording=["a", "a", "a", "b"], start=[0, 10, 50, 0])
    assert "1 body (0), 10 s (12 s over all trajectories) at 10 Hz" in describe_text(ds)


def test_a_fit_that_stopped_early_says_so(tiny_run):
    """Fewer updates than were asked for look like a mistake."""
    assert "; 40 updates in " in summary_text(tiny_run)
    early = dataclasses.replace(tiny_run, summary={**tiny_run.summary, "steps": 20})
    assert "; 20 updates of 40 (stopped early) in " in summary_text(early)


def test_recordings_in_pieces_are_told_of_their_gaps():
    """More frames of the same would not help."""
    x = np.random.default_rng(0).normal(size=(1, 600, 2, 2)).cumsum(1)
    whole = make_trajectories(x[:, :20], fps=10)
    with pytest.raises(DataError, match=r"about 82 frames in a row(?!.*pieces)"):
        SceneSource(whole, preset("small"))
    x[:, ::13, 1] = np.nan
    with pytest.raises(DataError, match=r"pieces of at most 12 frames, .* --split_gaps false"):
        SceneSource(split_at_gaps(make_trajectories(x, fps=10)), preset("small"))
    x[:, ::3, 0] = np.nan  # and are left whole, by --split_gaps false: 600 frames are no help
    for config in (preset("small"), debug(model={"history": 8})):
        with pytest.raises(
            DataError, match=r"for at most 2\b.*, where it was given,? a smaller --d"
        ):
            SceneSource(make_trajectories(x, fps=10), config)
