"""The commands `act` and `evaluate`: what works end to end, what cannot be used, and processes."""

import dataclasses
import json
import re
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
import xarray as xr
import yaml
from helpers import assert_same, command, metrics

pytest.importorskip("gymnasium", reason="the rl extra is not installed")

from pyro_animacy.acting.act import STATE, act
from pyro_animacy.acting.config import act_preset
from pyro_animacy.acting.evaluate import SIMULATED, Simulated, evaluate, new_episodes
from pyro_animacy.acting.run import read_acting
from pyro_animacy.cli import main
from pyro_animacy.command_data import fitted_to
from pyro_animacy.criticism.episodes import open_loop, windows
from pyro_animacy.data.episodes import read_episodes, save_episodes
from pyro_animacy.errors import RunError
from pyro_animacy.infer import checkpoint
from pyro_animacy.infer.run import Run

# Ten steps of the world to an action: episodes of eleven frames.
ACT = ["act", "Chase-v0", "--preset", "debug", "--action_repeat", "10"]
CONFIG = dataclasses.replace(act_preset("debug"), action_repeat=10)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run folder made by the command line. Read it; copy it to change it."""
    path = tmp_path_factory.mktemp("cli") / "run"
    assert main([*ACT, "--out", str(path)]) == 0
    return path


@pytest.fixture
def copied(run, tmp_path):
    return shutil.copytree(run, tmp_path / "copied")


def files(path):
    return {str(f.relative_to(path)): f.read_bytes() for f in path.rglob("*") if f.is_file()}


def assert_same_acting(one, other):
    """Episodes, parameters, optimisers, counters and figures are the same bits."""
    both = [sorted((path / "episodes").iterdir()) for path in (one, other)]
    assert [file.name for file in both[0]] == [file.name for file in both[1]]
    for a, b in zip(*both, strict=True):
        xr.testing.assert_identical(read_episodes(a), read_episodes(b))
    assert_same(*(checkpoint.load_weights(p / "best.safetensors") for p in (one, other)))
    states = [checkpoint.load_trainer(p / "trainer.pt", STATE) for p in (one, other)]
    for state in states:
        del state["seconds"]
    assert_same(*states)
    assert metrics(one) == metrics(other)


# --- end to end ----------------------------------------------------------------------------------


def test_the_command_is_the_function(run, tmp_path):
    assert read_acting(run) == ("Chase-v0", CONFIG)
    path = act("Chase-v0", CONFIG, out=tmp_path / "run", progress=False)
    assert_same_acting(run, path)


def test_act_prints_what_was_learned(copied, capsys):
    """Of a run that is finished, going on prints it again and changes nothing."""
    before = files(copied)
    assert main(["act", "--resume", str(copied)]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed[0] == f"wrote {copied}: 4 episodes, 44 frames"
    value = metrics(copied)[-1]["evaluation_return"]
    assert re.fullmatch(rf"  after episode +4, +\d+ s: mean return {value:.2f}", printed[1])
    assert printed[2] == f"compare it with: pyro-animacy evaluate {copied}"
    after = files(copied)
    assert after.keys() == before.keys()
    assert {n for n in after if after[n] != before[n]} <= {"trainer.pt", "metrics.jsonl"}
    (copied / "metrics.jsonl").unlink()
    assert main(["act", "--resume", str(copied)]) == 0
    assert capsys.readouterr().out.startswith(f"wrote {copied}: 0 episodes\n")


def test_evaluate_prints_what_the_function_returns(run, monkeypatch, capsys):
    few = dataclasses.replace(SIMULATED, horizon=4, iterations=2, candidates=20, elites=5)
    monkeypatch.setattr(Simulated.__init__, "__defaults__", (few,))
    assert main(["evaluate", str(run), "--episodes", "2", "--seed", "3"]) == 0
    printed = capsys.readouterr().out
    found = evaluate(run, episodes=2, seed=3, progress=False)
    assert printed == found.text() + "\n"
    for name, values in zip(("agent", "random", "true simulator"), found, strict=True):
        assert re.search(rf"^{name} +{values.mean():.2f}  ", printed, re.MULTILINE)
    assert found.simulator.mean() > found.random.mean()
    assert main(["evaluate", str(run), "--episodes", "2", "--seed", "3", "--simulator=no"]) == 0
    assert capsys.readouterr().out.splitlines() == printed.splitlines()[:3]


@pytest.mark.parametrize("name", ["act", "evaluate"])
def test_help(capsys, name):
    with pytest.raises(SystemExit) as left:
        main([name, "--help"])
    assert left.value.code == 0
    printed = capsys.readouterr().out
    assert "usage: " in printed
    for option in {"act": ["--resume", "--planner.elites"], "evaluate": ["--simulator"]}[name]:
        assert option in printed


def test_options_from_a_file(tmp_path):
    """Nested as in config.yaml; an option beside the file goes before it."""
    path, out = tmp_path / "options.yaml", tmp_path / "run"
    chosen = {"episodes": 3, "exploration": 0.5, "planner": {"horizon": 2}, "train": {"seed": 5}}
    path.write_text(yaml.safe_dump(chosen))
    words = [*ACT, "--config", str(path), "--exploration", "0.1", "--out", str(out)]
    assert main(words) == 0
    expected = dataclasses.replace(
        CONFIG,
        episodes=3,
        exploration=0.1,
        planner=dataclasses.replace(CONFIG.planner, horizon=2),
        train=dataclasses.replace(CONFIG.train, seed=5),
    )
    assert read_acting(out) == ("Chase-v0", expected)
    assert len(metrics(out)) == 3


@pytest.mark.parametrize("agent", ["dreamer", "dreamerv2"])
def test_the_agent_chooses_the_defaults(tmp_path, agent):
    out = tmp_path / "run"
    words = [*ACT, "--agent", agent, "--episodes", "3", "--updates", "1", "--out", str(out)]
    assert main(words) == 0
    expected = dataclasses.replace(
        act_preset("debug", agent), action_repeat=10, episodes=3, updates=1
    )
    assert read_acting(out) == ("Chase-v0", expected)
    assert (out / "behaviour.safetensors").is_file()


@pytest.mark.slow
def test_sample_takes_the_run_and_its_episodes_and_criticise_does_not(run, tmp_path, capsys):
    episodes = [str(file) for file in sorted((run / "episodes").iterdir())]
    draws, page = tmp_path / "draws.nc", tmp_path / "page.html"
    words = ["sample", str(run), *episodes, "--mode", "forecast", "--context", "4"]
    assert main([*words, "--draws", "3", "--out", str(draws)]) == 0
    with xr.open_datatree(draws, engine="h5netcdf") as tree:
        assert tree["predictions"]["observation"].shape == (1, 3, 4, 11, 8)
        # controls do not draw themselves; what was seen is as it was recorded
        seen = tree["observed_data"]["observation"].values[0]
        np.testing.assert_array_equal(seen, read_episodes(episodes[0])["observation"][0])
    assert main(["criticise", str(run), *episodes, "--out", str(page)]) != 0
    assert "leave DATA out" in capsys.readouterr().err
    assert not page.exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    "words",
    [
        ["act", "Chase-v0", "--out", "{out}"],
        ["act", "--resume", "{run}"],
        ["evaluate", "{run}"],
        ["video", "{run}", "--out", "{out}.gif"],
        ["criticise", "{run}", "--out", "{out}.html"],
    ],
)
def test_without_the_extra_a_sentence_says_what_to_install(run, tmp_path, words):
    """In a process in which gymnasium cannot be imported."""
    code = "import sys; sys.modules['gymnasium'] = None; from pyro_animacy.cli import main; "
    words = [word.format(run=run, out=tmp_path / "out") for word in words]
    done = subprocess.run(
        [sys.executable, "-c", f"{code} sys.exit(main({words!r}))"],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 2
    said = r'pyro-animacy: .* needs the extra rl, .*gymnasium.*: pip install "pyro-animacy\[rl\]"\n'
    assert re.fullmatch(said, done.stderr)
    assert not list(tmp_path.iterdir())


def test_criticise_is_of_episodes_that_the_run_has_not_learned_from(run, tmp_path, capsys):
    """Those that its agent plays now, or of another run of that environment."""
    page = tmp_path / "page.html"
    assert main(["criticise", str(run), "--out", str(page)]) == 0
    assert "its agent has played 10 new episodes" in capsys.readouterr().err
    assert "by their mean" in page.read_text()
    parameters = Run.load(run).parameters
    assert parameters > 1000
    assert f"<dt>parameters</dt><dd>{parameters:,}</dd>" in page.read_text()
    new = new_episodes(run, episodes=3, seed=5)
    assert new.sizes["trajectory"] == 3
    learned = read_episodes(run / "episodes")
    for one in new["observation"].to_numpy():
        assert not (one == learned["observation"].to_numpy()).all((1, 2)).any()
    save_episodes(new, tmp_path / "new.nc")
    words = ["criticise", str(run), str(tmp_path / "new.nc"), "--out", str(page), "--overwrite"]
    assert main(words) == 0


def test_the_recordings_of_the_run_are_its_episodes(run, refused):
    """Which it has learned from; it holds nothing out."""
    with pytest.raises(
        RunError, match=rf"its own episodes; read_episodes reads .*{run / 'episodes'}"
    ):
        Run.load(run).recordings()
    assert "a run of `act`" in refused("fit", "--resume", run)
    assert repr(Run.load(run)) == f"<Run {run}: world_model of episodes at 1 Hz>"


def test_the_mean_reward_is_that_of_the_episodes_learned_from(run):
    learned = read_episodes(run / "episodes")
    fitted = fitted_to(Run.load(run))
    xr.testing.assert_identical(fitted, learned)  # so few that they are all
    loops = [open_loop(Run.load(run), *windows(learned, 8, 4), 4, mean, 0) for mean in (None, 0.25)]
    assert "mean reward" not in loops[0].reward
    r = windows(learned, 8, 4)[0]["reward"].to_numpy()[:, 4:].astype(float)
    np.testing.assert_allclose(loops[1].reward["mean reward"], (0.25 - r) ** 2)


# --- what is there already -----------------------------------------------------------------------


def test_overwrite_replaces_the_episodes(copied):
    """Other options, an agent without an actor; what is not of a run stays."""
    (copied / "notes.txt").write_text("mine")
    (copied / "behaviour.safetensors").write_bytes(b"of a dreamer before")
    words = [*ACT, "--episodes", "3", "--train.seed", "1", "--out", str(copied), "--overwrite"]
    assert main(words) == 0
    assert [f.name for f in sorted((copied / "episodes").iterdir())] == [
        f"00000{n}.npz" for n in range(3)
    ]
    assert len(metrics(copied)) == 3
    assert not (copied / "behaviour.safetensors").exists()
    assert (copied / "notes.txt").read_text() == "mine"
    assert checkpoint.load_trainer(copied / "trainer.pt", STATE)["episodes"] == 3


def test_a_fit_in_its_place_leaves_nothing_of_it(copied, tmp_path, refused):
    """Its episodes are not those of the new run; but a fit to them must not delete them."""
    fit = ["fit", copied / "episodes", "--model", "world_model", "--preset", "debug"]
    before = files(copied)
    assert "--overwrite would delete the episodes" in refused(*fit, "--out", copied, "--overwrite")
    assert files(copied) == before
    shutil.copytree(copied / "episodes", tmp_path / "kept")
    (copied / "behaviour.safetensors").write_bytes(b"of a dreamer before")
    fit[1] = tmp_path / "kept"
    words = [*fit, "--train.steps", "2", "--out", copied, "--overwrite"]
    assert main([str(word) for word in words]) == 0
    assert not (copied / "episodes").exists()
    assert not (copied / "behaviour.safetensors").exists()


def test_out_that_exists(copied, tmp_path, refused):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    before = files(tmp_path)
    assert "--overwrite" in refused(*ACT, "--out", copied)
    for out in (tmp_path / "mine", tmp_path / "mine" / "thesis.txt"):
        assert str(out) in refused(*ACT, "--out", out, "--overwrite")
    for wrong in (["--train.device", "abacus"], ["--pixels", "true", "--size", "20"]):
        refused(*ACT, *wrong, "--out", copied, "--overwrite")
    assert files(tmp_path) == before


# --- what cannot be used -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ([], "no environment given; choose Chase-v0, Soccer-v0"),
        (["Chase-v0"], "--out is missing; give the folder to write"),
        (["Chase-v0", "Soccer-v0", "--out", "o"], "Soccer-v0"),
        (["Tag-v0", "--out", "o"], "there is no environment 'Tag-v0'"),
        (["Chase-v1", "--out", "o"], "there is no environment 'Chase-v1'; did you mean Chase-v0"),
        (
            ["Chase-v0", "--out", "o", "--agent", "sac"],
            "agent 'sac' does not exist; choose one of planet",
        ),
        (
            ["Chase-v0", "--out", "o", "--preset", "huge"],
            "preset 'huge' of planet does not exist; .*small",
        ),
        (["Chase-v0", "--out", "o", "--episodes", "5"], "episodes is 5; .*more than seed_episodes"),
        (["Chase-v0", "--out", "o", "--updates", "many"], "updates.*many"),
        (["Chase-v0", "--out", "o", "--episodess", "9"], "--episodess; did you mean --episodes"),
        (["Chase-v0", "--out", "o", "--model.unimx", "9"], "model.unimx"),
        (["Chase-v0", "--out", "o", "--planner.elites", "900"], r"planner.elites is 900 of \d+"),
        (
            ["Chase-v0", "--out", "o", "--behaviour.return_lambda", "2"],
            "behaviour.return_lambda is 2",
        ),
        (["Chase-v0", "--out", "o", "--train.seed", "-1"], "train.seed is -1"),
        (["Chase-v0", "--out", "o", "--collect", "later"], "collect.*later"),
        (["Chase-v0", "--out", "o", "--config", "nowhere.yaml"], "nowhere.yaml"),
        (["CarRacing-v3", "--out", "o"], "CarRacing-v3 is observed in pictures only"),
        (["Chase-v0", "--out", "a_file/o"], "a_file/o: cannot be made"),
        (["--resume", "nowhere"], "nowhere/config.yaml: no such file"),
        (["--resume", "nowhere", "--episodes", "9"], "--resume takes .*; give it alone .*anew"),
        (["Chase-v0", "--resume", "nowhere"], "--resume takes .*; give it alone"),
    ],
)
def test_words_that_make_no_command(tmp_path, monkeypatch, refused, words, says):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a_file").touch()
    assert re.search(says, refused("act", *words))
    assert [path.name for path in tmp_path.iterdir()] == ["a_file"]


CONFIGS = {
    "episodess: 3": "episodess",
    "planner: {depth: 3}": "planner.depth",
    "train: {window: long}": "train.window",
    "episodes: 1": "episodes is 1",
    "[1, 2]": "config",
    "agent: dreamer": "--agent",
    "preset: paper": "--preset",
    "train:\nepisodes: 4": "train is empty",
    "planner: 3": "planner is 3",
}


@pytest.mark.parametrize("text", CONFIGS)
def test_config_files_that_cannot_be_used(tmp_path, refused, text):
    (tmp_path / "c.yaml").write_text(text)
    out = tmp_path / "run"
    assert CONFIGS[text] in refused(*ACT, "--config", tmp_path / "c.yaml", "--out", out)
    assert not out.exists()


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--episodes", "0"], "episodes is 0; it must be at least 1"),
        (["--episodes", "few"], "episodes.*few"),
        (["--seed", "-1"], "seed is -1; it must be 0 or more"),
        (["--simulator", "maybe"], "simulator.*maybe"),
        (["--candidates", "9"], "candidates"),
    ],
)
def test_options_of_evaluate(run, refused, options, says):
    assert re.search(says, refused("evaluate", run, *options))


def test_runs_that_cannot_be_used(copied, tiny_run, tmp_path, refused):
    learned = "a run of `fit`, whose model has not learned to act"
    for words in (["evaluate", tiny_run.path], ["act", "--resume", tiny_run.path]):
        assert learned in refused(*words)
    assert "nowhere" in refused("evaluate", tmp_path / "nowhere")
    settings = yaml.safe_load((copied / "config.yaml").read_text())
    for change, says in (
        ({"environment": "Pendulum-v1"}, "another environment"),
        ({"environment": "Tag-v0"}, "there is no environment 'Tag-v0'"),
        ({"episodes": "some"}, "acting.episodes"),
        ({"futures": 1}, "acting.futures"),
        ({"planner": None}, "acting.planner is empty"),
        ({"planner": 3}, "acting.planner is 3"),
    ):
        changed = {**settings, "acting": settings["acting"] | change}
        (copied / "config.yaml").write_text(yaml.safe_dump(changed))
        assert says in refused("evaluate", copied)
        assert says in refused("act", "--resume", copied)
    for change in (3, None):
        (copied / "config.yaml").write_text(yaml.safe_dump(settings | {"acting": change}))
        out = ["--config", copied / "config.yaml", "--out", tmp_path / "out"]
        for words in (["evaluate", copied], ["act", "--resume", copied], ["act", "Chase-v0", *out]):
            assert "must be options by name" in refused(*words)
    (copied / "config.yaml").write_text(yaml.safe_dump(settings))
    (copied / "best.safetensors").write_bytes(b"\xff\x00 not what it was")
    assert "best.safetensors: damaged" in refused("evaluate", copied)


# --- as a process of its own ---------------------------------------------------------------------


@pytest.fixture(scope="module")
def long_run(tmp_path_factory):
    """The words of a run of some seconds, and its folder in one go."""
    words = [*ACT, "--agent", "dreamerv2", "--episodes", "8", "--updates", "8"]
    path = tmp_path_factory.mktemp("long") / "whole"
    assert main([*words, "--out", str(path)]) == 0
    return words, path


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "code", "episode"),
    [
        (signal.SIGTERM, 143, 1),  # in the seed episodes, or in the first updates
        (signal.SIGINT, 130, 4),
        (signal.SIGKILL, -9, 2),
        (signal.SIGKILL, -9, 6),
    ],
)
def test_process_stopped(long_run, tmp_path, capfd, number, code, episode):
    """As soon as an episode is there: in updates, in other episodes, in evaluations."""
    words, whole = long_run
    path = tmp_path / "run"
    arguments, environment = command(*words, "--out", path)
    process = subprocess.Popen(
        arguments, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        deadline = time.monotonic() + 120
        while not (path / "episodes" / f"{episode:06}.npz").exists():
            assert process.poll() is None, process.stderr.read()
            assert time.monotonic() < deadline
            time.sleep(0.002)
        process.send_signal(number)
        _, errors = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == code
    assert "Traceback" not in errors
    if number != signal.SIGKILL:
        last = errors.splitlines()[-1]
        assert last.startswith("pyro-animacy: stopped at episode ")
        assert last.endswith(f"of 8; all is saved. Go on with: pyro-animacy act --resume {path}")
        saved = torch.load(path / "trainer.pt", weights_only=True)["episodes"]
        assert len(metrics(path)) == saved
    assert len(list((path / "episodes").glob("*.npz"))) < 8
    capfd.readouterr()
    assert main(["act", "--resume", str(path)]) == 0
    printed = capfd.readouterr().out
    assert printed.startswith(f"wrote {path}: 8 episodes, 88 frames\n")
    assert printed.count("mean return") == len(
        [row for row in map(json.loads, (path / "metrics.jsonl").read_text().splitlines())
         if "evaluation_return" in row]
    )  # fmt: skip
    assert_same_acting(whole, path)
