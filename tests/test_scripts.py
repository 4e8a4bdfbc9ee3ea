"""The programs to copy: each runs, and what it makes is what it says."""

import json
import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import chase, debug, table
from matplotlib import pyplot
from PIL import Image

from pyro_animacy import Run, preset, read_trajectories
from pyro_animacy.infer.fit import fit

ROOT = Path(__file__).resolve().parents[1]
SCRIPTS = ROOT / "scripts"


def program(name, *arguments, folder):
    """Run a script from a folder of its own; what it printed on stdout."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "error"}
    done = subprocess.run(
        [sys.executable, SCRIPTS / name, *map(str, arguments)],
        cwd=folder, env=environment, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run on three bodies of the bundled recording."""
    data = {"source": "metrica", "bodies": "home_1,away_3,ball", "downsample": 2}
    out = tmp_path_factory.mktemp("run") / "demo"
    return fit(read_trajectories(**data), preset("debug"), out=out, data=data, progress=False)


def test_all_trials_of_agents_have_options_that_can_be_used():
    trials = list(runpy.run_path(str(SCRIPTS / "acting_table.py"))["trials"]())
    assert len({each.folder for each in trials}) == len(trials) > 20


def test_svi_lowers_the_loss(tmp_path):
    def loss(steps):
        line = program("train_svi.py", "--steps", steps, folder=tmp_path).splitlines()[-1]
        return float(line.split()[1])

    assert loss(60) < loss(1) - 0.5


def test_forecasts_are_drawn(tmp_path, run):
    out = tmp_path / "forecasts.png"
    said = program("posterior_predictive.py", run.path, "--out", out, "--draws", 4, folder=tmp_path)
    assert "'draw': 4" in said
    assert [line.split(":")[0] for line in said.splitlines()[:3]] == [
        "reconstruct", "generate", "forecast",
    ]  # fmt: skip
    with Image.open(out) as picture:
        shades = picture.convert("RGB").getcolors(picture.width * picture.height)
    colours = {colour for _, colour in shades}
    assert {(0, 0x72, 0xB2), (0xD5, 0x5E, 0), (0, 0x9E, 0x73), (0, 0, 0)} <= colours


@pytest.fixture(scope="module")
def chase_run(tmp_path_factory):
    """A run on a short chase of two bodies."""
    folder = tmp_path_factory.mktemp("chase")
    table(chase()).to_csv(folder / "chase.csv", index=False)
    data = {"source": str(folder / "chase.csv"), "fps": 10}
    return fit(read_trajectories(**data), debug(), out=folder / "run", data=data, progress=False)


def test_axes_of_forecasts_say_units_as_the_report_does(tmp_path, monkeypatch, chase_run):
    monkeypatch.setattr(
        sys, "argv", ["posterior_predictive.py", str(chase_run.path), "--draws", "2"]
    )
    monkeypatch.chdir(tmp_path)
    runpy.run_path(str(SCRIPTS / "posterior_predictive.py"), run_name="__main__")
    assert pyplot.gca().get_xlabel() == "x (data units)"
    pyplot.close("all")


def test_forecasts_are_of_each_moment_once(tmp_path):
    """The ball is seen in two held-out stretches, by as many scenes as there are players."""
    data = {"source": "metrica", "bodies": "home x ball", "downsample": 2}
    run = fit(
        read_trajectories(**data), preset("debug"), out=tmp_path / "run", data=data, progress=False
    )
    said = program("posterior_predictive.py", run.path, "--draws", 2, folder=tmp_path)
    assert [line.count("'trajectory': 2,") for line in said.splitlines()[:3]] == [1, 1, 1]


def test_a_statistic_of_ones_own_is_compared_and_reported(tmp_path, chase_run):
    out = tmp_path / "report.html"
    said = program("criticise.py", chase_run.path, "--out", out, "--draws", 3, folder=tmp_path)
    rows = [line for line in said.splitlines() if line.startswith("distance from the centroid")]
    assert [row.split()[4] for row in rows] == ["hunter", "prey"]
    assert "Distance from the centroid" in out.read_text(encoding="utf-8")


def test_the_demo_says_the_figures_of_its_run(tmp_path, run):
    """The last lines of scripts/demo, on a finished run."""
    text = (SCRIPTS / "demo").read_text()
    code = text.split("<<'PYTHON'\n")[1].split("\nPYTHON")[0]
    said = subprocess.run(
        [sys.executable, "-", run.path], input=code, cwd=tmp_path,
        capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    summary = json.loads((Run.load(run.path).path / "summary.json").read_text())
    for value in (summary["heldout_nats_per_step"], summary["baselines"][summary["best_baseline"]]):
        assert f"{value:.2f}" in said
    assert str(run.path / "report.html") in said


@pytest.mark.slow
def test_the_animacy_score_is_validated_on_a_page(tmp_path):
    """Every table that needs no recordings, and a word on those that do."""
    page = tmp_path / "page.md"
    program("validate_animacy.py", tmp_path / "none", "--out", page, "--runs", tmp_path / "runs",
            "--preset", "debug", "--games", 8, folder=tmp_path)  # fmt: skip
    text = page.read_text()
    rows = {line.split("|")[1].strip(): line for line in text.splitlines() if "|" in line}
    for name in ("ball", "inert twins", "player_1", "player_2"):
        assert any(character.isdigit() for character in rows[name])
    assert text.count("Left out: the recordings were not there") == 2
