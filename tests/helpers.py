"""Small recordings, small runs, and ways to compare them."""

import dataclasses
import json
import os
import subprocess
import sys

import numpy as np
import pandas as pd
import torch

from pyro_animacy.data.schema import make_trajectories
from pyro_animacy.infer.checkpoint import load_baselines, load_trainer, load_weights
from pyro_animacy.infer.presets import preset

BODIES = ["hunter", "prey"]


def chase(frames=120, recordings=1, seed=0, decimals=3):
    """(recording, frame, 2, 2): one body walks at random, held near the origin; one follows it."""
    rng = np.random.default_rng(seed)
    x = np.zeros((recordings, frames, 2, 2))
    x[:, 0] = rng.normal(size=(recordings, 2, 2))
    v = np.zeros((recordings, 2, 2))
    for t in range(1, frames):
        hunter, prey = x[:, t - 1, 0], x[:, t - 1, 1]
        pull = np.stack([0.1 * (prey - hunter), -0.02 * prey], 1)
        v = 0.8 * v + pull + rng.normal(scale=0.1, size=v.shape)
        x[:, t] = x[:, t - 1] + v
    return x.round(decimals)


def recordings(**options):
    """`chase` in the schema, at 10 frames a second."""
    return make_trajectories(chase(**options), fps=10, body=BODIES, units="m", source="chase")


def table(position, bodies=BODIES):
    """Rows of clip, frame, id, x, y."""
    rows = [
        (f"clip{i}", t, bodies[b], *point)
        for i, clip in enumerate(position)
        for t, scene in enumerate(clip)
        for b, point in enumerate(scene)
    ]
    return pd.DataFrame(rows, columns=["clip", "frame", "id", "x", "y"])


def assert_logged(path, rows, clock):
    """The events of a run, as TensorBoard reads them, are the numbers in its log, in float32."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(path / "tensorboard")).Reload()
    names = {name for row in rows for name, value in row.items() if not isinstance(value, list)}
    assert set(events.Tags()["scalars"]) == names
    for name in names:
        ours = [(row[clock], float(np.float32(row[name]))) for row in rows if name in row]
        assert [(event.step, event.value) for event in events.Scalars(name)] == ours


def debug(model=None, **train):
    """The preset `debug` with other options of training, and of the model where given."""
    config = preset("debug")
    return dataclasses.replace(
        config,
        model=dataclasses.replace(config.model, **(model or {})),
        train=dataclasses.replace(config.train, **train),
    )


def metrics(path):
    """The rows of metrics.jsonl less `seconds`, which no two runs share."""
    rows = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in row.items() if name != "seconds"} for row in rows]


def validation(path):
    """The steps of the evaluations and their scores."""
    rows = [row for row in metrics(path) if "validation_nats_per_step" in row]
    return [row["step"] for row in rows], [row["validation_nats_per_step"] for row in rows]


def command(*arguments):
    """The command line and environment of a process of its own, on one thread."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    return [sys.executable, "-m", "pyro_animacy.cli", *map(str, arguments)], environment


def call(*arguments, timeout=120, largest_file=None):
    """Run the command line in a process of its own, to its end.

    ``largest_file``, in units of 1,024 bytes, is set by a shell: a function to be run between fork
    and exec would have Python fork, of which libraries with threads warn.
    """
    words, environment = command(*arguments)
    if largest_file is not None:
        words = ["bash", "-c", f'ulimit -f {largest_file}; exec "$@"', "limited", *words]
    return subprocess.run(words, env=environment, capture_output=True, text=True, timeout=timeout)


def assert_same(a, b):
    """Two nested states are equal, tensors bit for bit."""
    if isinstance(a, torch.Tensor):
        assert torch.equal(a, b)
    elif isinstance(a, dict):
        assert a.keys() == b.keys()
        for name in a:
            assert_same(a[name], b[name])
    elif isinstance(a, list | tuple):
        assert len(a) == len(b)
        for one, other in zip(a, b, strict=True):
            assert_same(one, other)
    else:
        assert a == b


def baseline_tensors(path):
    """The numbers of the baselines that a file holds."""
    return {name: baseline.state_dict() for name, baseline in load_baselines(path).items()}


def assert_same_run(one, other):
    """Two run folders hold the same parameters, optimiser, counters and figures, bit for bit."""
    for name, load in (("best", load_weights), ("baselines", baseline_tensors)):
        both = [path / f"{name}.safetensors" for path in (one, other)]
        assert both[0].is_file() == both[1].is_file()
        if both[0].is_file():
            assert_same(load(both[0]), load(both[1]))
    states = [load_trainer(path / "trainer.pt") for path in (one, other)]
    for state in states:
        del state["seconds"]
    assert_same(*states)
    assert metrics(one) == metrics(other)
    summaries = [path / "summary.json" for path in (one, other)]
    assert summaries[0].is_file() == summaries[1].is_file()
    if summaries[0].is_file():
        read = [json.loads(path.read_text()) for path in summaries]
        for summary in read:
            del summary["train_seconds"]
        assert read[0] == read[1]
