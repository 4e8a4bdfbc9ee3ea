"""Two processes fit one model as one would: by gloo, on this machine, a thread each."""

import dataclasses
import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
from datetime import timedelta

import numpy as np
import pytest
import torch
import torch.distributed as dist
from helpers import BODIES, chase, command, debug, metrics, recordings, table

from pyro_animacy.data.schema import make_trajectories
from pyro_animacy.errors import ConfigError, RunError
from pyro_animacy.infer import checkpoint, distributed
from pyro_animacy.infer import trainer as loop
from pyro_animacy.infer.distributed import ALONE, LostProcess, Processes, join
from pyro_animacy.infer.fit import fit, resume
from pyro_animacy.infer.presets import preset
from pyro_animacy.infer.run import Run
from pyro_animacy.infer.trainer import Interrupted, Trainer
from pyro_animacy.models.program import Overshooting

EXACT = dict(
    batch_size=7, window=4, steps=12, evaluate_every=12, patience=None, clip_norm=0.5,
    validation=0.2, learning_rate=0.01,
)  # fmt: skip
CLOSED = dict(
    history=1, likelihood="squared_error", roll_out="closed_loop", policy_scale=0.05,
    action_cost=0.01, discount=0.9,
)  # fmt: skip
RSSM = preset("debug", "rssm")
OVERSHOOTING = {"overshooting": Overshooting(2, observation=0.5)}
CONFIGS = {
    "teacher_forced": debug(**EXACT),
    "closed_loop": debug(CLOSED, **EXACT),
    "free_nats": debug(**EXACT, free_nats=0.3, kl_balance=0.8),
    "rssm": dataclasses.replace(
        RSSM,
        model=dataclasses.replace(RSSM.model, memory_steps=None),
        train=dataclasses.replace(RSSM.train, **EXACT, **OVERSHOOTING),
    ),
}
STOP = 5  # the step in the middle of which a run is stopped or killed


def gappy():
    """A chase out of sight now and then, so that shares differ in how many steps they show."""
    x = chase(frames=40, recordings=6)
    x[:, 9::10] = np.nan
    x[:3, 21:29, 1] = np.nan
    return make_trajectories(x, fps=10, body=BODIES, units="m", source="chase")


class KnownNoise(Trainer):
    """In float64, every draw looked up by its place in the joined batch: nothing is left to chance.

    Whatever the number of processes, this is one and the same run.
    """

    def __init__(self, config, path, processes=ALONE):
        path.mkdir(exist_ok=True)
        super().__init__(gappy(), config, path, progress=False, processes=processes)
        self.modules.double()
        self.average.double()
        self.source.batches, self.source.validate = self._as_recorded, lambda _: 0.0
        self.seen = []

    def _as_recorded(self, draws):
        for which, _ in draws:
            batch = self.source.windows.batch(which).to(self.device, torch.float64)
            self.seen.append(int(batch.observed[-self.source.steps :].any(-1).sum()))
            yield batch, self.seen[-1]

    def _noise(self, shape, dtype, device):
        *front, size, last = shape
        assert size == len(self.processes.share(torch.arange(self.source.batch_size)))
        generator = torch.Generator().manual_seed(self.step)
        whole = torch.randn(
            self.source.batch_size, *front, last, generator=generator, dtype=torch.float64
        )
        return self.processes.share(whole).movedim(0, -2)

    def train(self):
        """As `Trainer.train`; returns the parameters."""
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("torch.distributions.normal._standard_normal", self._noise)
            super().train()
        return [p.detach() for p in self.modules.parameters()]

    def stopped(self, stop=True):
        """Train until a signal comes in the middle of a step; returns the step it ended with."""
        with pytest.MonkeyPatch.context() as patch:
            if stop:
                at_step(patch, STOP, lambda: signal.raise_signal(signal.SIGTERM))
            with pytest.raises(Interrupted, match="all is saved"):
                self.train()
        return self.step

    def going_on(self):
        self.load(checkpoint.load_trainer(self.path / "trainer.pt"))
        return self


def at_step(patch, step, act):
    """Call `act` in the middle of an update."""
    rate = loop.learning_rate

    def acting(now, *rest):
        if now == step:
            act()
        return rate(now, *rest)

    patch.setattr(loop, "learning_rate", acting)


def one_gradient(trainer):
    """The gradient of the first batch, before it is clipped, its terms, and the steps seen."""
    with pytest.MonkeyPatch.context() as patch:
        found = []
        patch.setattr(
            torch.nn.utils, "clip_grad_norm_",
            lambda parameters, _: found.extend(p.grad for p in parameters) or torch.ones(()),
        )  # fmt: skip
        trainer.options = dataclasses.replace(trainer.options, steps=1)
        trainer.train()
    found = [torch.zeros(()) if g is None else g.clone() for g in found]
    return {"gradient": found, "row": trainer.rows[0], "seen": trainer.seen}


# --- what the two processes do -------------------------------------------------------------------


def in_two(work, folder, timeout=300):
    """Call ``work(processes, folder)`` in two processes; returns their exit codes."""
    spawn = multiprocessing.get_context("spawn")
    both = [spawn.Process(target=_process, args=(work, rank, folder)) for rank in range(2)]
    for one in both:
        one.start()
    for one in both:
        one.join(timeout)
        if one.is_alive():
            one.kill()
            one.join()
            pytest.fail("a process hangs")
    return [one.exitcode for one in both]


def _process(work, rank, folder):
    torch.set_num_threads(1)
    meeting = f"file://{folder / 'meeting'}"
    dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=2)
    work(join("cpu"), folder)


def noted(patch):
    """Lists that fill with every draw of windows, and with the seed that each update ran under."""
    draws, seeds, draw, update = [], [], loop.Trainer._drawn, loop.Trainer._update

    def drawing(self, step):
        which, generator = draw(self, step)
        draws.append((which, generator.get_state()))
        return which, generator

    def updating(self, *arguments):
        loss = update(self, *arguments)
        seeds.append(torch.initial_seed())
        return loss

    patch.setattr(loop.Trainer, "_drawn", drawing)
    patch.setattr(loop.Trainer, "_update", updating)
    return draws, seeds


def what_two_do(processes, folder):
    """Everything that the tests below look at, saved by each process for itself."""
    found = {}
    for name, config in CONFIGS.items():
        found[name] = one_gradient(KnownNoise(config, folder / name, processes))
    config = CONFIGS["closed_loop"]
    found["whole"] = KnownNoise(config, folder / "whole", processes).train()
    stopped = KnownNoise(config, folder / "two_then_one", processes)
    found["stopped"] = stopped.stopped(not processes.first)  # the signal comes to the second
    found["one_then_two"] = (
        KnownNoise(config, folder / "one_then_two", processes).going_on().train()
    )

    with pytest.MonkeyPatch.context() as patch:
        draws, seeds, scores = *noted(patch), iter((3.0, 2.0, 1.0))
        patch.setattr(loop.SceneSource, "validate", lambda *_: next(scores))
        if not processes.first:
            patch.setattr(loop.SceneSource, "validate", lambda *_: pytest.fail("not the first"))
            patch.setattr(checkpoint, "write_atomically", lambda *_: pytest.fail("not the first"))
        run = fit(recordings(), FITTED, out=folder / "fitted", progress=False)
    drawn, states = zip(*draws[: len(seeds)], strict=True)  # some are drawn ahead
    found |= {"drawn": [*drawn], "noises": [*zip(seeds, states, strict=True)]}
    found["summary"] = json.dumps(run.summary)
    found["best"] = {**run.model.state_dict(), **run.guide.state_dict()}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(distributed, "WORKING", timedelta(seconds=2))
        impatient = join("cpu")
    if processes.first:  # and the second hangs
        with pytest.raises(LostProcess, match="cannot be reached"):
            impatient.total(1)
    torch.save(found, folder / f"{processes.rank}.pt")


FITTED = debug(steps=60, evaluate_every=5, patience=2, batch_size=9)


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """A folder of runs by two processes, and what each of them found."""
    folder = tmp_path_factory.mktemp("two")
    KnownNoise(CONFIGS["closed_loop"], folder / "one_then_two").stopped()
    assert in_two(what_two_do, folder) == [0, 0]
    found = [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]
    return folder, found


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The parameters and the log of the closed-loop run by one process, in one go."""
    one = KnownNoise(CONFIGS["closed_loop"], tmp_path_factory.mktemp("one"))
    return one.train(), one.path


def assert_close(these, those):
    assert len(these) == len(those)
    for one, other in zip(these, those, strict=True):
        torch.testing.assert_close(one, other.expand_as(one), rtol=1e-10, atol=1e-10)


# --- one run, whatever the number of processes ---------------------------------------------------


@pytest.mark.parametrize("name", CONFIGS)
def test_gradient_of_the_joined_batch(two, name, tmp_path):
    """Added up, the shares' gradients are that of the joined batch, and so are the loss's terms."""
    one = one_gradient(KnownNoise(CONFIGS[name], tmp_path))
    shares = [found[name] for found in two[1]]
    assert sum(share["seen"][0] for share in shares) == one["seen"][0]
    per_window = [share["seen"][0] / n for share, n in zip(shares, (4, 3), strict=True)]
    assert per_window[0] != per_window[1]  # or a mean of their losses would do as well
    assert max(g.abs().max() for g in one["gradient"]) > 1e-3
    for share in shares:
        assert_close(share["gradient"], one["gradient"])
        for term in one["row"].keys() - {"seconds", "validation_nats_per_step"}:
            assert share["row"][term] == pytest.approx(one["row"][term], rel=1e-10, abs=1e-12)


def test_whole_run(two, alone):
    folder, found = two
    parameters, path = alone
    for one in found:
        assert_close(one["whole"], parameters)
    for ours, theirs in zip(metrics(folder / "whole"), metrics(path), strict=True):
        assert ours == pytest.approx(theirs, rel=1e-8)


def test_resumed_by_another_number_of_processes(two, alone):
    folder, found = two
    assert [one["stopped"] for one in found] == [STOP + 1, STOP + 1]  # both ended with one step
    copy = folder / "copy"
    shutil.copytree(folder / "two_then_one", copy)
    assert_close(KnownNoise(CONFIGS["closed_loop"], copy).going_on().train(), alone[0])
    for one in found:
        assert_close(one["one_then_two"], alone[0])


# --- a fit by two --------------------------------------------------------------------------------


def test_fit_by_two(two):
    """One run in one folder, that the first process wrote; the parameters are equal to the bit."""
    folder, (first, second) = two
    run = Run.load(folder / "fitted")
    assert run.summary["steps"] == len(first["drawn"]) == len(second["drawn"]) == 15  # patience
    assert run.metrics()[-1]["step"] == run.summary["steps"]
    assert first["summary"] == second["summary"] == json.dumps(run.summary)
    ours = {**run.model.state_dict(), **run.guide.state_dict()}
    for name, value in ours.items():
        assert torch.equal(value, first["best"][name])
        assert torch.equal(value, second["best"][name])


def test_parameters_stay_equal(two):
    """To the bit, after updates from different shares."""
    first, second = two[1]
    for name in ("whole", "one_then_two"):
        for one, other in zip(first[name], second[name], strict=True):
            assert torch.equal(one, other)


def test_shares_and_noise(two, tmp_path, monkeypatch):
    """Together they take the windows that one takes; their noise differs, at every step."""
    first, second = two[1]
    draws, _ = noted(monkeypatch)
    fit(recordings(), FITTED, out=tmp_path / "run", progress=False)
    drawn = [which for which, _ in draws]
    for one, other, whole in zip(first["drawn"], second["drawn"], drawn[:15], strict=True):
        assert torch.equal(whole[::2], one)
        assert torch.equal(whole[1::2], other)
    seeds = [seed for seed, _ in first["noises"] + second["noises"]]
    assert len(set(seeds)) == len(seeds)
    for (_, one), (_, other) in zip(first["noises"], second["noises"], strict=True):
        assert not torch.equal(one, other)


# --- what goes wrong -----------------------------------------------------------------------------


def one_is_killed(processes, folder):
    """The second process is killed in the middle of a step; the first says so."""
    with pytest.MonkeyPatch.context() as patch:
        if not processes.first:
            at_step(patch, STOP, lambda: os.kill(os.getpid(), signal.SIGKILL))
        with pytest.raises(LostProcess) as lost:
            fit(recordings(), KILLED, out=folder / "run", progress=False)
    (folder / "message").write_text(str(lost.value))


KILLED = debug(steps=20, evaluate_every=20, patience=None)


def test_a_killed_process_ends_the_fit(tmp_path):
    """At once, with a clear message, and with nothing lost: one process goes on from there."""
    assert in_two(one_is_killed, tmp_path) == [0, -signal.SIGKILL]
    path = tmp_path / "run"
    message = (tmp_path / "message").read_text()
    assert message.startswith(f"step {STOP} of 20: another process of this fit ended")
    assert message.endswith(f"pyro-animacy fit --resume {path}")
    assert checkpoint.load_trainer(path / "trainer.pt")["step"] == STOP
    assert resume(path, recordings(), progress=False).summary["steps"] == 20


def test_fewer_windows_than_processes(tmp_path):
    with pytest.raises(ConfigError, match=r"batch_size is 3, the batch of all 4 processes"):
        Trainer(
            recordings(), debug(batch_size=3), tmp_path, progress=False,
            processes=Processes(rank=1, size=4),
        )  # fmt: skip


@pytest.mark.parametrize("size", ["2", "two"])
def test_processes_that_do_not_find_each_other(monkeypatch, size):
    monkeypatch.setenv("WORLD_SIZE", size)
    for name in ("RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(RunError, match=rf"WORLD_SIZE is {size}.*by torchrun"):
        join("cpu")


def test_one_gpu_for_each_process(monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "3")
    assert Processes(rank=11, size=16).device("cuda") == "cuda:3"
    assert Processes(rank=11, size=16).device("cuda:0") == "cuda:0"
    assert Processes(rank=11, size=16).device("cpu") == "cpu"
    assert ALONE.device("cuda") == "cuda"


@pytest.mark.slow
def test_torchrun(tmp_path):
    """The command line under torchrun: one run, that the command line then reads."""
    data, out = tmp_path / "chase.csv", tmp_path / "run"
    table(chase(frames=120)).to_csv(data, index=False)
    words, environment = command(
        "fit", data, "--out", out, "--preset", "debug", "--fps", 10, "--train.batch_size", 8
    )
    start = ["torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [sys.executable, "-m", *start, *words[1:]],
        env=environment, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("read 1 trajectory of 1 recording") == 1
    run = Run.load(out)
    assert run.summary["steps"] == preset("debug").train.steps
    assert [row["step"] for row in run.metrics()][-1] == run.summary["steps"]
