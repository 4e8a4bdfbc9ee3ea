"""A run that was stopped, killed or cut short goes on to the result it would have had."""

import dataclasses
import errno
import resource
import shutil
import signal
import subprocess
import time
from contextlib import contextmanager

import numpy as np
import pytest
import torch
import yaml
from helpers import (
    assert_same,
    assert_same_run,
    baseline_tensors,
    chase,
    command,
    debug,
    metrics,
    table,
)

from pyro_animacy.cli import main
from pyro_animacy.data.readers import read_trajectories
from pyro_animacy.errors import AnimacyError, RunError
from pyro_animacy.infer import checkpoint
from pyro_animacy.infer import trainer as loop
from pyro_animacy.infer.fit import fit, resume
from pyro_animacy.infer.run import Run
from pyro_animacy.infer.schedules import KLWeightConfig
from pyro_animacy.infer.summary import summarise
from pyro_animacy.infer.trainer import Interrupted, Trainer

KL_WEIGHT = KLWeightConfig(start=0.01, end=0.1, levels=5, every=9)
CONFIGS = {
    # Stops early, at step 60; at 40 and 50 its patience is partly spent.
    "teacher_forced": debug(
        steps=300,
        evaluate_every=10,
        patience=3,
        learning_rate=0.01,
        validation=0.3,
        symmetry="none",
    ),
    "closed_loop": debug(
        dict(
            history=1,
            likelihood="squared_error",
            roll_out="closed_loop",
            posterior_scale="prior",
            policy_scale=0.05,
            action_cost=0.001,
            discount=0.95,
        ),
        steps=50,
        evaluate_every=20,
        window=3,
        optimizer="radam",
        patience=None,
        kl_weight=KL_WEIGHT,
        symmetry="none",
    ),
}


class Killed(BaseException):
    """Stands for SIGKILL: nothing in the code under test may catch it."""


def at_step(monkeypatch, step, act):
    """Call `act` in the middle of an update."""
    rate = loop.learning_rate

    def acting(now, *rest):
        if now == step:
            act()
        return rate(now, *rest)

    monkeypatch.setattr(loop, "learning_rate", acting)


def killed():
    raise Killed


def trainer(data, config, path):
    path.mkdir(exist_ok=True)
    return Trainer(data, config, path, progress=False)


def again(data, config, path):
    """A new trainer that goes on where the folder says."""
    new = trainer(data, config, path)
    if (path / "trainer.pt").is_file():
        new.load(checkpoint.load_trainer(path / "trainer.pt"))
    return new


@pytest.fixture(scope="module", params=CONFIGS)
def uninterrupted(request, tiny_data, tmp_path_factory):
    """A configuration and the folder of its run, trained in one go."""
    config, path = CONFIGS[request.param], tmp_path_factory.mktemp("whole") / "run"
    whole = trainer(tiny_data, config, path)
    whole.train()
    assert 50 <= whole.step < 300
    return config, path


# --- stopped in process --------------------------------------------------------------------------


@pytest.mark.parametrize("step", [0, 19, 20, 33, 49])
def test_stopped_by_a_signal(uninterrupted, tiny_data, tmp_path, monkeypatch, step):
    config, whole = uninterrupted
    number = signal.SIGINT if step == 20 else signal.SIGTERM
    path = tmp_path / "run"
    before = signal.getsignal(number)
    with monkeypatch.context() as patch:
        at_step(patch, step, lambda: signal.raise_signal(number))
        with pytest.raises(Interrupted, match=f"fit --resume {path}") as stop:
            trainer(tiny_data, config, path).train()
    assert stop.value.signal == number
    assert signal.getsignal(number) is before
    saved = checkpoint.load_trainer(path / "trainer.pt")
    assert saved["step"] == step + 1  # the step was finished
    again(tiny_data, config, path).train()
    assert_same_run(whole, path)


@pytest.mark.parametrize("every", [0.0, 1e9])  # seconds between checkpoints
@pytest.mark.parametrize("step", [3, 27, 44])
def test_killed(uninterrupted, tiny_data, tmp_path, monkeypatch, step, every):
    config, whole = uninterrupted
    path = tmp_path / "run"
    monkeypatch.setattr(loop, "SAVE_EVERY", every)
    with monkeypatch.context() as patch:
        at_step(patch, step, killed)
        with pytest.raises(Killed):
            trainer(tiny_data, config, path).train()
    evaluated = step // config.train.evaluate_every * config.train.evaluate_every
    if evaluated or not every:  # else it starts again
        saved = checkpoint.load_trainer(path / "trainer.pt")
        assert saved["step"] == (evaluated if every else step)
    again(tiny_data, config, path).train()
    assert_same_run(whole, path)


def test_the_kl_weight_does_not_start_again(tiny_data, tmp_path, monkeypatch):
    config, path = CONFIGS["closed_loop"], tmp_path / "run"
    with monkeypatch.context() as patch:
        at_step(patch, 31, lambda: signal.raise_signal(signal.SIGTERM))
        with pytest.raises(Interrupted):
            trainer(tiny_data, config, path).train()
    again(tiny_data, config, path).train()
    logged = {row["step"]: row["kl_weight"] for row in metrics(path)}
    # Row n is of update n - 1; five levels, one every nine updates.
    levels = [0.01, 0.0325, 0.055, 0.0775, 0.1]
    expected = {n: levels[min((n - 1) // 9, 4)] for n in (10, 20, 30, 40, 50)}
    assert logged == pytest.approx(expected, abs=1e-12)


def test_the_seconds_go_on(tiny_data, tmp_path):
    """What a run took is the sum over its parts."""
    config = debug(steps=20, evaluate_every=10)
    first = trainer(tiny_data, config, tmp_path)
    first.save()
    state = checkpoint.load_trainer(tmp_path / "trainer.pt")
    later = trainer(tiny_data, config, tmp_path)
    later.load({**state, "seconds": 1000.0})
    later.train()
    assert 1000 < later.seconds < 1300
    assert all(1000 < row["seconds"] < 1300 for row in later.rows)


def test_a_second_signal_does_not_wait(tiny_data, tmp_path, monkeypatch):
    def twice():
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    at_step(monkeypatch, 30, twice)
    with pytest.raises(KeyboardInterrupt):
        trainer(tiny_data, debug(), tmp_path / "run").train()
    assert checkpoint.load_trainer(tmp_path / "run" / "trainer.pt")["step"] == 20


# --- killed at any write -------------------------------------------------------------------------


@contextmanager
def killed_at_write(patch, number, renamed):
    """Kill at the `number`-th file that is written: half written, or just renamed."""
    real, count = checkpoint.write_atomically, 0

    def write(path, writer):
        nonlocal count
        count += 1
        if count == number and not renamed:
            (path.parent / f".{path.name}.half").write_bytes(b"half")
            raise Killed
        real(path, writer)
        if count == number:
            raise Killed

    with patch.context() as here:
        here.setattr(checkpoint, "write_atomically", write)
        yield


WRITES = [
    *("config.yaml", "baselines.safetensors"),
    *("best.safetensors", "metrics.jsonl", "trainer.pt"),
    *("best.safetensors", "metrics.jsonl", "trainer.pt"),
    "summary.json",
]


def test_the_writes_of_a_fit(tiny_data, tmp_path, monkeypatch):
    """The list of this section is all there is, in this order: best, then log, then state."""
    written, real = [], checkpoint.write_atomically
    monkeypatch.setattr(
        checkpoint, "write_atomically", lambda p, w: (written.append(p.name), real(p, w))
    )
    fit(tiny_data, debug(), out=tmp_path / "run", progress=False)
    assert written == WRITES


@pytest.mark.parametrize("renamed", [False, True])
@pytest.mark.parametrize("number", range(1, len(WRITES) + 1))
def test_killed_at_any_write(tiny_data, tiny_run, tmp_path, monkeypatch, number, renamed):
    path = tmp_path / "run"
    with killed_at_write(monkeypatch, number, renamed), pytest.raises(Killed):
        fit(tiny_data, debug(), out=path, progress=False)
    if (path / "config.yaml").is_file():
        resume(path, tiny_data, progress=False)
    else:  # nothing was begun: the same command, and leave to replace the folder
        fit(tiny_data, debug(), out=path, overwrite=True, progress=False)
    assert_same_run(tiny_run.path, path)


# --- stopped and killed in a process of its own --------------------------------------------------


@pytest.fixture(scope="module")
def long_run(tmp_path_factory):
    """Recordings, options of a fit of some seconds, and the folder of the run in one go."""
    folder = tmp_path_factory.mktemp("long")
    table(chase()).to_csv(folder / "chase.csv", index=False)
    options = ["--fps", "10", "--preset", "debug", "--train.steps", "400"]
    options += ["--train.evaluate_every", "20", "--train.patience", "null"]
    words = ["fit", str(folder / "chase.csv"), *options]
    assert main([*words, "--out", str(folder / "whole")]) == 0
    return words, folder / "whole"


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGKILL, -9)]
)
def test_process_stopped_in_mid_training(long_run, tmp_path, capfd, number, code):
    words, whole = long_run
    path = tmp_path / "run"
    arguments, environment = command(*words, "--out", path)
    process = subprocess.Popen(
        arguments, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        deadline = time.monotonic() + 60
        while not (path / "trainer.pt").exists():
            assert process.poll() is None, process.stderr.read()
            assert time.monotonic() < deadline
            time.sleep(0.005)
        process.send_signal(number)
        _, errors = process.communicate(timeout=30)
    finally:
        process.kill()
    assert process.returncode == code
    last = errors.splitlines()[-1] if errors else ""
    assert "Traceback" not in errors
    if number != signal.SIGKILL:
        assert last.startswith("pyro-animacy: stopped at step ")
        assert last.endswith(f"pyro-animacy fit --resume {path}")
    step = checkpoint.load_trainer(path / "trainer.pt")["step"]
    assert 20 <= step < 400
    assert not (path / "summary.json").exists()
    stopped = Run.load(path)  # can be looked at as it is
    assert summarise(stopped, stopped.heldout(stopped.recordings()))["best_baseline"]
    assert main(["fit", "--resume", str(path)]) == 0
    assert "held-out log density" in capfd.readouterr().out
    assert_same_run(whole, path)


# --- numbers that are none, and full disks -------------------------------------------------------


def test_nan_stops_the_run_and_keeps_the_last_checkpoint(tiny_data, tmp_path, monkeypatch):
    path = tmp_path / "run"
    new = trainer(tiny_data, debug(steps=60), path)

    def poison():
        with torch.no_grad():
            next(new.modules.parameters()).view(-1)[0] = torch.nan

    at_step(monkeypatch, 30, poison)
    with pytest.raises(RunError, match=f"step 30: the loss is nan.*learning_rate.*{path}"):
        new.train()
    saved = checkpoint.load_trainer(path / "trainer.pt")
    assert saved["step"] == 20
    tensors, _ = checkpoint.load_weights(path / "best.safetensors")
    for state in (saved["parameters"], saved["average"], tensors):
        assert all(tensor.isfinite().all() for tensor in state.values())
    assert_same(saved["average"], tensors)


@pytest.mark.parametrize("patience", [5, None])
def test_parameters_that_score_nan_are_not_saved(tiny_data, tmp_path, patience):
    """The loss is looked at before the update; a bad update shows in the validation score."""
    config = debug(learning_rate=1e30, evaluate_every=1, patience=patience)
    with pytest.raises(RunError, match=r"step 1: the validation score is .*nothing was saved"):
        trainer(tiny_data, config, tmp_path / "run").train()
    assert list((tmp_path / "run").iterdir()) == []


def test_diverging_from_the_command_line(tmp_path, capsys):
    table(chase()).to_csv(tmp_path / "chase.csv", index=False)
    words = ["--fps", "10", "--preset", "debug", "--train.learning_rate", "1e30"]
    out = str(tmp_path / "run")
    assert main(["fit", str(tmp_path / "chase.csv"), "--out", out, *words]) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert "the loss is nan" in last
    assert "train.learning_rate" in last


def files(path):
    return {file.name: file.read_bytes() for file in path.iterdir()}


@pytest.mark.parametrize("name", ["best.safetensors", "metrics.jsonl", "trainer.pt"])
def test_disk_full(uninterrupted, tiny_data, tmp_path, monkeypatch, name):
    """The second time the file is written, half of it gets onto the disk."""
    config, whole = uninterrupted
    path, real = tmp_path / "run", checkpoint.write_atomically
    before = {}

    def write(target, writer):
        def half(to):
            writer(to)
            to.write_bytes(to.read_bytes()[: to.stat().st_size // 2])
            raise OSError(errno.ENOSPC, "No space left on device")

        if target.name == name and target.exists():
            before.update(files(path))
            real(target, half)
        real(target, writer)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "write_atomically", write)
        with pytest.raises(RunError, match=f"{name}: cannot be written.*No space left"):
            trainer(tiny_data, config, path).train()
    assert files(path) == before  # byte for byte, and no temporary file beside them
    again(tiny_data, config, path).train()  # space was made
    assert_same_run(whole, path)


@pytest.mark.parametrize("name", ["best.safetensors", "trainer.pt"])
def test_the_real_writers_without_space(tiny_run, tmp_path, name):
    """A limit on the size of files makes the libraries' own writers fail in the middle."""
    path = tmp_path / name
    shutil.copy(tiny_run.path / name, path)
    tensors, card = checkpoint.load_weights(tiny_run.path / "best.safetensors")
    state = checkpoint.load_trainer(tiny_run.path / "trainer.pt")
    save = {
        "best.safetensors": lambda: checkpoint.save_weights(path, tensors, card),
        "trainer.pt": lambda: checkpoint.save_trainer(path, state),
    }[name]
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, hard))
    try:
        with pytest.raises(RunError, match=f"{name}: cannot be written"):
            save()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert files(tmp_path) == {name: (tiny_run.path / name).read_bytes()}


# --- what is on disk -----------------------------------------------------------------------------


@pytest.fixture
def copied(tiny_run, tmp_path):
    """A copy of the run's folder, to be damaged."""
    return shutil.copytree(tiny_run.path, tmp_path / "copied")


def test_weights_come_back_bit_for_bit(tiny_run, tmp_path):
    tensors, card = checkpoint.load_weights(tiny_run.path / "best.safetensors")
    checkpoint.save_weights(tmp_path / "w.safetensors", tensors, card)
    back, back_card = checkpoint.load_weights(tmp_path / "w.safetensors")
    assert_same(tensors, back)
    assert back_card == card == tiny_run.card
    modules = {f"model.{n}": t for n, t in tiny_run.model.state_dict().items()}
    modules |= {f"guide.{n}": t for n, t in tiny_run.guide.state_dict().items()}
    assert_same(modules, back)


def test_other_recordings_are_refused(tiny_data, copied):
    moved = tiny_data.assign(position=tiny_data["position"] * 1.5)
    with pytest.raises(RunError, match="the recordings are not those of this run"):
        resume(copied, moved, progress=False)


def test_a_finished_run_resumes_to_itself(tiny_data, tiny_run, copied):
    resume(copied, tiny_data, progress=False)
    assert_same_run(tiny_run.path, copied)


@pytest.mark.parametrize("name", ["best.safetensors", "baselines.safetensors", "trainer.pt"])
def test_every_altered_byte_is_noticed(tiny_run, tmp_path, name):
    """One bit is turned over, all through the file: an error, or the same contents."""
    load = {
        "best.safetensors": checkpoint.load_weights,
        "baselines.safetensors": baseline_tensors,
        "trainer.pt": checkpoint.load_trainer,
    }[name]
    good = (tiny_run.path / name).read_bytes()
    contents, path = load(tiny_run.path / name), tmp_path / name
    refused = 0
    places = np.unique(np.linspace(0, len(good) - 1, 200).astype(int))
    for place in places:
        bad = bytearray(good)
        bad[place] ^= 1
        path.write_bytes(bad)
        try:
            found = load(path)
        except RunError as error:
            assert str(path) in str(error)  # noqa: PT017
            refused += 1
        else:
            assert_same(contents, found)
    assert refused > 0.5 * len(places)


@pytest.mark.parametrize("name", ["best.safetensors", "baselines.safetensors", "trainer.pt"])
@pytest.mark.parametrize("keep", [0, 0.1, 0.5, 0.9, 0.999])
def test_truncated(tiny_run, tmp_path, name, keep):
    good = (tiny_run.path / name).read_bytes()
    path = tmp_path / name
    path.write_bytes(good[: int(keep * len(good))])
    load = {"best": checkpoint.load_weights, "baselines": checkpoint.load_baselines}
    with pytest.raises(RunError, match=name):
        load.get(name.split(".")[0], checkpoint.load_trainer)(path)


@pytest.mark.parametrize("missing", ["step", "optimizer", "recordings"])
def test_incomplete_trainer_state(tiny_data, copied, missing):
    state = checkpoint.load_trainer(copied / "trainer.pt")
    del state[missing]
    checkpoint.save_trainer(copied / "trainer.pt", state)
    with pytest.raises(RunError, match=r"trainer\.pt: not a trainer state"):
        resume(copied, tiny_data, progress=False)


def test_nothing_is_unpickled(tiny_data, copied, tmp_path):
    """A trainer state that would run code when unpickled is refused, and the code does not run."""
    import os
    import pickle

    class Attack:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "attacked"),)

    for write in (
        lambda p: p.write_bytes(pickle.dumps(Attack())),
        lambda p: torch.save({"format": 1, "parameters": Attack()}, p),
    ):
        write(copied / "trainer.pt")
        with pytest.raises(RunError, match=r"trainer\.pt: damaged") as refused:
            resume(copied, tiny_data, progress=False)
        assert "weights_only" not in str(refused.value)  # torch's own advice is to unpickle
        assert not (tmp_path / "attacked").exists()


def test_without_trainer_state_the_run_starts_again(tiny_data, tiny_run, copied):
    """Killed before the first checkpoint there is none; every number is drawn again."""
    (copied / "trainer.pt").unlink()
    resume(copied, tiny_data, progress=False)
    assert_same_run(tiny_run.path, copied)


@pytest.mark.parametrize("text", ["", "{", "[1", '"text', "\x00"])
def test_damaged_summary(copied, text):
    (copied / "summary.json").write_text(text)
    with pytest.raises(RunError, match=r"summary\.json: damaged"):
        Run.load(copied)


@pytest.mark.parametrize("text", ["{", "[]\n", "{}\n", "\x00"])
def test_damaged_metrics(tiny_data, copied, text):
    (copied / "metrics.jsonl").write_text(text)
    with pytest.raises(RunError, match=r"metrics\.jsonl: damaged"):
        resume(copied, tiny_data, progress=False)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"format": 99}, "later version"),
        ({"model": "other"}, "the run's model is 'other'"),
        ({"config": {"histories": 2}}, "options are not those of this version"),
        ({"bodies": ("one",)}, "does not fit the control_vae"),
    ],
)
def test_another_model_or_version(copied, change, says):
    path = copied / "best.safetensors"
    tensors, card = checkpoint.load_weights(path)
    checkpoint.save_weights(path, tensors, dataclasses.replace(card, **change))
    with pytest.raises(RunError, match=says):
        Run.load(copied)


def test_config_of_a_run_edited_by_hand(tiny_data, copied):
    settings = yaml.safe_load((copied / "config.yaml").read_text())
    for section, entry in (("train", {"steps": "many"}), ("model", {"histories": 2})):
        text = yaml.safe_dump({**settings, section: {**settings[section], **entry}})
        (copied / "config.yaml").write_text(text)
        with pytest.raises(AnimacyError, match=f"{section}.{next(iter(entry))}"):
            resume(copied, tiny_data, progress=False)


def test_reading_the_recordings_again_gives_the_same_run(tiny_run, tmp_path):
    """From a file in any order of its rows, as from the array."""
    rows = table(chase()).drop(columns="clip").sample(frac=1, random_state=1)
    rows.to_csv(tmp_path / "chase.csv", index=False)
    data = read_trajectories(tmp_path / "chase.csv", fps=10)
    run = fit(data, debug(), out=tmp_path / "run", progress=False)
    assert_same(run.model.state_dict(), tiny_run.model.state_dict())
    assert metrics(tmp_path / "run") == metrics(tiny_run.path)
