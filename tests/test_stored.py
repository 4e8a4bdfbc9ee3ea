"""Recordings that stay in their file: the same numbers as from memory, read in small parts."""

import json
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch

from pyro_animacy import Scale, Windows, make_trajectories
from pyro_animacy.data import arrays, stored
from pyro_animacy.data.readers import read_trajectories
from pyro_animacy.data.stored import Noise, Stored, blocks, extremes, observed, runs
from pyro_animacy.data.trajectories import split
from pyro_animacy.data.windows import dequantised
from pyro_animacy.infer.recordings import fingerprint
from pyro_animacy.infer.score import fit_baselines


def walks(trajectories=7, frames=90, gaps=True):
    """Random walks of three bodies (trajectory, time, body, 2), float32, of ragged lengths."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(trajectories, frames, 3, 2)).cumsum(1).astype(np.float32)
    if gaps:
        x[1, 40:42, 2] = np.nan
        x[2, 60:] = np.nan
        x[3, 17, 0, 0] = np.nan
    return x


def in_file(x, folder):
    """The same, mapped."""
    np.save(folder / "walks.npy", x)
    return np.load(folder / "walks.npy", mmap_mode="r")


def same(one, other):
    np.testing.assert_array_equal(np.asarray(one), np.asarray(other), strict=True)


KEYS = [
    np.s_[:],
    np.s_[2:5, 10:30],
    np.s_[::-1, 5:],
    np.s_[[4, 0, 4]],
    np.s_[:, :-1],
    np.s_[:, :, [2, 0]],
    np.s_[:, 3:9, 1:],
    np.s_[-1],
    np.s_[3, 4, 1],
    np.s_[..., 0],
    np.s_[:, ::7],
    np.s_[:, 90:],
    np.s_[[1, 2], [3, 4]],
    np.s_[:, :, :, 1],
]


@pytest.mark.parametrize("key", KEYS, ids=str)
def test_each_trajectory_may_have_bodies_of_its_own(key):
    """As scenes of one match do: others of the same array, also some twice."""
    x = walks().astype(float)
    body = np.random.default_rng(3).integers(x.shape[2], size=(len(x), 4))
    own = np.take_along_axis(x, body[:, None, :, None], 2)
    shared = replace(Stored.of(x), body=body)
    assert shared.shape == own.shape
    same(shared[key], own[key])
    rows, begin = np.array([[3, 0], [1, 1]]), np.array([[2, 5], [0, 30]])
    read = shared.read(rows, begin, 8)
    assert read.shape == (2, 8, 2, 4, 2)
    same(read[1, :, 1], own[1, 30:38])


@pytest.mark.parametrize("key", KEYS, ids=str)
def test_indexed_as_an_array(key, tmp_path):
    x = walks()
    whole = Stored.of(in_file(x, tmp_path))
    same(whole[key], x.astype(float)[key])
    noisy = replace(whole, noise=Noise(5, np.arange(7) / 10, np.arange(7) * 90 * 6))
    noise = np.random.default_rng(5).uniform(-0.5, 0.5, x.shape)
    expected = x + np.arange(7)[:, None, None, None] / 10 * noise
    same(noisy[key], expected[key])
    assert isinstance(whole[1:, 3:], Stored)
    assert isinstance(whole[:, :, [1]][[0, 2]], Stored)
    same(whole[1:, 3:][2:, 1:4, 1:][:, :, [1, 0]], x.astype(float)[3:, 4:7, [2, 1]])
    same(noisy[1:, 3:][[2, 1], 1:4], expected[1:, 3:][[2, 1], 1:4])


def test_computing_with_it_loads_it(tmp_path):
    x = walks()
    memory, file = (make_trajectories(a, fps=10)["position"] for a in (x, in_file(x, tmp_path)))
    assert isinstance(file.data, Stored)
    assert not isinstance(memory.data, Stored)
    assert file.dtype == memory.dtype
    other = make_trajectories(in_file(x, tmp_path), fps=10)["position"]
    for like in (memory, other):
        assert file.equals(like)
    assert not file.equals(other + 1)
    same(file - file.isel(time=0), memory - memory.isel(time=0))
    same(file.mean("time"), memory.mean("time"))
    same(-file / 2.0, -memory / 2.0)
    same(2.0 * file, 2.0 * memory)
    same(file.diff("time"), memory.diff("time"))
    same(file.transpose("time", ...), memory.transpose("time", ...))
    same(np.nanmax(a=file.data, axis=1), np.nanmax(memory.data, axis=1))
    same(np.concatenate([file.data, file.data]), np.concatenate([x, x]).astype(float))


def test_what_can_be_written_to_is_taken_into_memory(tmp_path):
    """Pages that are let go of would lose what was written to a private copy."""
    in_file(walks(), tmp_path)
    for mode in ("c", "r+"):
        x = np.load(tmp_path / "walks.npy", mmap_mode=mode)
        assert not isinstance(make_trajectories(x, fps=10)["position"].data, Stored)
        x.setflags(write=False)  # what was written before is there all the same
        assert not isinstance(make_trajectories(x, fps=10)["position"].data, Stored)


@pytest.mark.parametrize("wide", [13, 1024])
@pytest.mark.parametrize("block", [1, 100, 1300, 10**6])
def test_blocks_make_up_the_whole(block, wide, monkeypatch, tmp_path):
    """However small they are: every position comes once, and so do the figures of all of them."""
    monkeypatch.setattr(stored, "BLOCK", block)
    monkeypatch.setattr(stored, "WIDE", wide)  # of two frames, or more than there are
    x = walks()
    for position in (x.astype(float), Stored.of(in_file(x, tmp_path))):
        found = np.zeros_like(x, float)
        for rows, times, part in blocks(position):
            assert part.size <= max(block, 6)
            found[rows, times] += part
        same(found, x.astype(float))
        low, high = extremes(position)
        same(low, np.nanmin(x, 1).astype(float))
        same(high, np.nanmax(x, 1).astype(float))
        complete, some = observed(position)
        same(complete, np.isfinite(x).all((2, 3)))
        same(some, np.isfinite(x).any((2, 3)))


def test_runs_by_brute_force():
    mask = np.random.default_rng(1).random((20, 30)) < 0.6
    found = np.zeros_like(mask)
    for row, begin, end in zip(*runs(mask), strict=True):
        assert not found[row, max(0, begin - 1) : end].any()  # apart from the one before
        found[row, begin:end] = True
    same(found, mask)


@pytest.mark.parametrize("trajectories", [2, 7])
@pytest.mark.parametrize("bodies", [None, "2,0"])
@pytest.mark.parametrize("gaps", [False, True])
def test_a_file_gives_the_same_bits_as_memory(trajectories, bodies, gaps, monkeypatch, tmp_path):
    """Split by time (two trajectories) or by recording (seven): scale, windows, baselines."""
    np.save(tmp_path / "walks.npy", walks(max(trajectories, 4), gaps=gaps)[-trajectories:])
    parts = {}
    for held in (0, 10**9):
        monkeypatch.setattr(arrays, "HELD", held)
        ds = read_trajectories(tmp_path / "walks.npy", fps=10, resolution=0.01, bodies=bodies)
        assert isinstance(ds["position"].data, Stored) == (held == 0)
        parts[held] = [ds, *split(ds, 0.3)]
    for file, memory in zip(parts[0], parts[10**9], strict=True):
        assert file.identical(memory)
        assert fingerprint(file) == fingerprint(memory)
        assert dequantised(file, 3).identical(dequantised(memory, 3))
        scale = Scale.of(file)
        assert scale == Scale.of(memory)
        for options in ({"symmetry": "rotate"}, {"complete": True}):
            one, other = (
                Windows(d, frames=9, context=3, scale=scale, **options) for d in (file, memory)
            )
            assert torch.equal(one.index, other.index)
            draws = (w.draw(50, torch.Generator().manual_seed(1)) for w in (one, other))
            for a, b in zip(*draws, strict=True):
                assert torch.equal(a, b)
        fits = zip(*(fit_baselines(d, scale, 2).values() for d in (file, memory)), strict=True)
        for a, b in fits:
            assert torch.equal(a.coefficients, b.coefficients)
            assert torch.equal(a.covariance, b.covariance)


FITS = """
import json, sys
from pathlib import Path
from pyro_animacy.cli import main
from pyro_animacy.data import arrays, resolution, stored
folder, read, sizes = Path(sys.argv[1]), stored.Stored.read, []
stored.BLOCK = resolution.SAMPLE = resolution.MOST = 2**13
def watched(self, rows, begin, frames):
    found = read(self, rows, begin, frames)
    if len(rows) <= stored.ROWS and stored.mapping(self.frames) is not None:
        sizes.append(found.size)
    return found
stored.Stored.read = watched
for held in (0, 10**9):
    arrays.HELD = held
    assert bool(sizes) == (held > 0)  # the first fit reads from the file, the second does not
    before = len(sizes)
    options = ["--fps", "10", "--preset", "debug", "--train.steps", "2", "--train.window", "3"]
    out = str(folder / str(held))
    assert main(["fit", str(folder / "walks.npy"), *options, "--out", out]) == 0
assert len(sizes) == before
print(json.dumps(max(sizes)))
"""


def test_a_fit_reads_a_file_in_small_parts_and_finds_the_same(tmp_path):
    x = walks(6, 4000, gaps=False)
    in_file(x, tmp_path)
    done = subprocess.run(
        [sys.executable, "-c", FITS, str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    largest = json.loads(done.stdout.splitlines()[-1])
    assert largest <= 2**13 < x.size / 16
    found = [json.loads((tmp_path / run / "summary.json").read_text()) for run in ("0", str(10**9))]
    for summary in found:
        del summary["train_seconds"]
    assert found[0] == found[1]
    weights = [(tmp_path / run / "best.safetensors").read_bytes() for run in ("0", str(10**9))]
    assert weights[0] == weights[1]
