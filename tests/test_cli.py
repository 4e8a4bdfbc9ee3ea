"""The command line: what works end to end, and what cannot be used, each in one line."""

import errno
import io
import json
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import xarray as xr
import yaml
from helpers import BODIES, assert_same_run, call, chase, command, debug, metrics, table

from pyro_animacy.cli import main
from pyro_animacy.commands import COMMANDS
from pyro_animacy.data.netcdf import save_netcdf
from pyro_animacy.data.readers import read_trajectories
from pyro_animacy.data.schema import make_trajectories
from pyro_animacy.data.soccer import simulate_soccer
from pyro_animacy.infer import checkpoint
from pyro_animacy.infer.fit import fit
from pyro_animacy.infer.run import Run
from pyro_animacy.infer.summary import SCORE_DRAWS

FIT = ["--fps", "10", "--preset", "debug"]


@pytest.fixture(scope="module")
def csv(tmp_path_factory):
    """Recordings as a file."""
    path = tmp_path_factory.mktemp("data") / "chase.csv"
    table(chase()).to_csv(path, index=False)
    return path


@pytest.fixture(scope="module")
def run(csv, tmp_path_factory):
    """A run folder made by the command line. Read it; copy it to change it."""
    path = tmp_path_factory.mktemp("cli") / "run"
    assert main(["fit", str(csv), *FIT, "--out", str(path)]) == 0
    return path


def files(path):
    return {str(f.relative_to(path)): f.read_bytes() for f in path.rglob("*") if f.is_file()}


# --- end to end ----------------------------------------------------------------------------------


def test_fit_prints_the_summary(csv, tmp_path, capsys):
    out = tmp_path / "run"
    assert main(["fit", str(csv), *FIT, "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    summary = json.loads((out / "summary.json").read_text())
    for name, value in summary["baselines"].items():
        assert re.search(rf"^  {name} +{re.escape(f'{value:.3f}')}$", printed, re.MULTILINE)
    assert f"{summary['heldout_nats_per_step']:.3f}" in printed
    assert summary["best_baseline"] in printed.split("best baseline")[1]
    assert f"pyro-animacy criticise {out}" in printed


@pytest.mark.parametrize(
    ("mode", "more", "group", "frames"),
    [
        ("reconstruct", [], "posterior_predictive", 24),
        ("forecast", ["--context", "5", "--horizon", "7"], "predictions", 12),
        ("generate", ["--horizon", "9"], "posterior_predictive", 11),
    ],
)
def test_sample(run, tmp_path, capsys, mode, more, group, frames):
    """By default on the frames that were held out."""
    out = tmp_path / "draws.nc"
    words = ["sample", str(run), "--mode", mode, "--draws", "3", *more, "--out", str(out)]
    assert main(words) == 0
    assert f"wrote {out}: " in capsys.readouterr().out
    with xr.open_datatree(out, engine="h5netcdf") as tree:
        assert tree[group]["position"].shape == (1, 3, 1, frames, 2, 2)
        observed = tree["observed_data"]["position"].values[0]
        np.testing.assert_array_equal(observed, chase()[0, 96 : 96 + frames])


def test_sample_forecasts_from_every_nth_frame(run, tmp_path, refused):
    out = tmp_path / "draws.nc"
    words = ["sample", str(run), "--mode", "forecast", "--stride", "4", "--draws", "3"]
    assert main([*words, "--context", "5", "--horizon", "7", "--out", str(out)]) == 0
    with xr.open_datatree(out, engine="h5netcdf") as tree:
        assert tree["predictions"]["position"].shape == (1, 3, 4, 12, 2, 2)  # of 24 frames
        assert tree["constant_data"]["start"].values.tolist() == [96, 100, 104, 108]
    assert "needs the mode forecast, and a horizon" in refused(*words, "--out", tmp_path / "d.nc")


def test_sample_takes_the_data_options_of_the_run(run, csv, tmp_path):
    """--fps was given to fit; sample on another file need not be told again."""
    table(chase(30, seed=8)).to_csv(tmp_path / "new.csv", index=False)
    out = tmp_path / "draws.nc"
    words = ["sample", str(run), str(tmp_path / "new.csv"), "--draws", "2", "--out", str(out)]
    assert main(words) == 0
    with xr.open_datatree(out, engine="h5netcdf") as tree:
        observed = tree["observed_data"]["position"].values
        np.testing.assert_array_equal(observed, chase(30, seed=8))


def test_sample_from_another_folder(csv, tmp_path, monkeypatch):
    """The run remembers where its recordings are, though the path given was relative."""
    monkeypatch.chdir(csv.parent)
    assert main(["fit", csv.name, *FIT, "--out", str(tmp_path / "run")]) == 0
    monkeypatch.chdir(tmp_path)
    assert main(["sample", "run", "--draws", "1", "--out", "draws.nc"]) == 0
    assert main(["fit", "--resume", "run"]) == 0


def test_criticise(run, tmp_path, capsys):
    out = tmp_path / "report.html"
    assert main(["criticise", str(run), "--draws", "4", "--windows", "2", "--out", str(out)]) == 0
    assert f"wrote {out}" in capsys.readouterr().out
    assert out.read_text().lstrip().lower().startswith("<!doctype html>")


def test_a_run_whose_held_out_part_begins_in_a_gap(tmp_path, capsys):
    """The last fifth, from frame 320, where one body is not seen until frame 346."""
    seen = table(chase(frames=400))
    seen.loc[(seen["id"] == "prey") & seen["frame"].between(310, 345), ["x", "y"]] = np.nan
    seen.to_csv(tmp_path / "gap.csv", index=False)
    run = str(tmp_path / "run")
    words = [*FIT, "--fps", "10", "--split_gaps", "false", "--train.steps", "2", "--out", run]
    assert main(["fit", str(tmp_path / "gap.csv"), *words]) == 0
    given = ["forecast", "--context", "7"]  # of which the last two have to be seen
    for mode, frames in ((["generate"], 54), (["reconstruct"], 54), (given, 59)):
        draws = str(tmp_path / f"{mode[0]}.nc")
        assert main(["sample", run, "--mode", *mode, "--draws", "2", "--out", draws]) == 0
        said = capsys.readouterr()
        assert f"'time': {frames}" in said.out
        assert "note: 1 trajectory of 1 drawn from a later frame on" in said.err
    report = ["--draws", "4", "--sections", "", "--out", str(tmp_path / "report.html")]
    assert main(["criticise", run, *report]) == 0


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--model.rest", "true"], False),
        (["--model.rest", "true", "--model.history", "1"], True),
        (["--model.rest", "false", "--model.history", "1"], False),
    ],
)
def test_fit_says_that_nobody_can_rest(csv, tmp_path, capsys, options, said):
    words = [*FIT, "--train.steps", "1", *options, "--out", str(tmp_path / "run")]
    assert main(["fit", str(csv), *words]) == 0
    assert ("note: model.rest has no effect" in capsys.readouterr().err) == said


def test_fit_says_what_it_read(csv, tmp_path, capsys):
    """A wrong rate shows in the speed, which is a tenth at a tenth of the rate."""
    speeds = []
    for rate in ("10", "1"):
        words = [*FIT, "--fps", rate, "--train.steps", "1", "--out", str(tmp_path / rate)]
        assert main(["fit", str(csv), *words]) == 0
        said = capsys.readouterr().err
        assert "read 1 trajectory of 1 recording: 2 bodies (hunter, prey)" in said
        assert "data units/s, resolution 0.001 data units\n" in said
        speeds.append(float(re.search(r"moving body (\S+) data units/s", said)[1]))
    assert speeds[0] == pytest.approx(10 * speeds[1], rel=0.02)


def test_score(run, tmp_path, capfd, refused):
    """The means are printed, a row a body and step written; what cannot be used is refused."""
    out = tmp_path / "scores.csv"
    assert main(["score", str(run), "--out", str(out), "--draws", "32", "--surrogates", "2"]) == 0
    said = capfd.readouterr().out
    assert "of the run's held-out part" in said
    assert {"choice", "surprise", "evidence", "interaction"} <= set(said.splitlines()[0].split())
    assert re.search("note: the model predicts steps no.* better than AR.*, so these say", said)
    rows = pd.read_csv(out)
    assert set(rows["body"]) == {"hunter", "prey"}
    assert np.isfinite(rows["evidence"]).all()
    for wrong, words in (
        (["--out", str(out)], "--overwrite"),
        (["--out", str(tmp_path / "scores.txt")], ".csv or .nc"),
        (["--out", str(tmp_path / "a.nc"), "--draws", "2"], "at least 25"),
        (["--out", str(tmp_path / "a.nc"), "--surrogates", "0"], "surrogates is 0"),
    ):
        assert words in refused("score", run, *wrong)
    assert not (tmp_path / "a.nc").exists()


def test_score_of_a_checkpoint(csv, tmp_path, capfd):
    """Doubted by its own score where that can be had, of an unfinished fit too."""
    run, out = tmp_path / "run", tmp_path / "scores.csv"
    kept = ["--model.structure", "set", "--train.keep", "1"]
    assert main(["fit", str(csv), *FIT, *kept, "--out", str(run)]) == 0
    for name, frames, bodies in (("one", 40, ["prey"]), ("short", 6, BODIES)):
        position = chase(frames, seed=1)[:, :, : len(bodies)]
        table(position, bodies).to_csv(tmp_path / f"{name}.csv", index=False)
    unfinished = shutil.copytree(run, tmp_path / "unfinished")
    (unfinished / "summary.json").unlink()
    bare = shutil.copytree(unfinished, tmp_path / "bare")
    (bare / "baselines.safetensors").unlink()
    for words, doubted, bodies in (
        ([run, "--checkpoint", "40"], True, 2),
        ([run, tmp_path / "short.csv"], True, 2),  # by the score of the fit
        ([run, tmp_path / "one.csv", "--checkpoint", "40"], True, 1),  # by baselines of each body
        ([run, tmp_path / "short.csv", "--checkpoint", "40"], False, 2),
        ([unfinished], True, 2),
        ([bare], False, 2),
    ):
        few = ["--draws", "25", "--surrogates", "1", "--overwrite", "--out", str(out)]
        assert main(["score", *map(str, words), *few]) == 0
        assert ("note: the model predicts" in capfd.readouterr().out) == doubted
        assert len(set(pd.read_csv(out)["body"])) == bodies


@pytest.fixture(scope="module")
def labelled(tmp_path_factory):
    """Clips of two labels, and a run fitted to those of one."""
    folder = tmp_path_factory.mktemp("labelled")
    rows = table(chase(40, recordings=12))
    number = rows["clip"].str.removeprefix("clip").astype(int)
    rows["label"] = np.where(number < 8, "chase", "fight")
    rows.to_csv(folder / "clips.csv", index=False)
    words = [*FIT, "--labels", "chase", "--out", str(folder / "run")]
    assert main(["fit", str(folder / "clips.csv"), *words]) == 0
    return folder / "clips.csv", folder / "run"


@pytest.mark.parametrize(
    ("options", "kept"), [(["--labels", "fight"], {"fight"}), ([], {"chase", "fight"})]
)
def test_other_clips_of_its_own_file_are_used_less_what_was_fitted(
    labelled, tmp_path, capsys, options, kept
):
    csv, run = labelled
    out = tmp_path / "draws.nc"
    words = ["--fps", "10", "--draws", "1", "--horizon", "3", "--out", str(out)]
    assert main(["sample", str(run), str(csv), *options, *words]) == 0
    assert "it was not fitted to" in capsys.readouterr().err
    drawn = xr.open_datatree(out)["constant_data"]
    assert set(drawn["label"].values) == kept
    train = Run.load(run).fitted(read_trajectories(csv, fps=10, labels="chase"))
    assert not set(drawn["trajectory"].values) & set(train["trajectory"].values)


def test_its_own_files_are_known_however_they_are_given(tmp_path, capfd, refused):
    """A folder, its files, in whatever order: their held-out part. Some of them: none is new."""
    folder, run = tmp_path / "clips", tmp_path / "run"
    folder.mkdir()
    (folder / "README").write_text("clips")
    for n in range(3):
        table(chase(40, recordings=3, seed=n)).to_csv(folder / f"{n}.csv", index=False)
    files = [str(folder / f"{n}.csv") for n in range(3)]
    assert main(["fit", *files, *FIT, "--out", str(run)]) == 0
    drawn = []
    for n, given in enumerate(([], files, files[::-1], [str(folder)])):
        out = tmp_path / f"{n}.nc"
        words = ["sample", str(run), *given, "--draws", "1", "--horizon", "3", "--out", str(out)]
        capfd.readouterr()
        assert main([*words, *(["--fps", "10"] if given else [])]) == 0
        assert ("held-out part is used" in capfd.readouterr().err) == bool(given)
        drawn.append(xr.load_dataset(out, group="observed_data", engine="h5netcdf"))
        xr.testing.assert_equal(drawn[n], drawn[0])
    for given in (files[:1], [*files, shutil.copy(files[0], tmp_path / "new.csv")]):
        said = refused("sample", run, *given, "--fps", "10", "--out", tmp_path / "d.nc")
        assert "was fitted to" in said
        assert "0.csv; leave DATA out" in said
    folder.rename(tmp_path / "moved")
    said = refused("sample", run, "--out", tmp_path / "d.nc")
    assert f"was fitted to {files[0]}, where there is nothing now" in said
    assert f"correct data.source in {run / 'config.yaml'}" in said


def test_a_relative_path_is_the_file_that_it_was(tmp_path, monkeypatch, refused):
    """Of a run that was fitted in Python to "tandem.csv", from whatever folder it is asked."""
    monkeypatch.chdir(tmp_path)
    table(chase()).to_csv("tandem.csv", index=False)
    data = {"source": "tandem.csv", "fps": 10}
    run = fit(read_trajectories(**data), debug(steps=1), out="run", data=data, progress=False)
    assert run.settings["data"]["source"] == str(tmp_path / "tandem.csv")
    settings = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    settings["data"]["source"] = "tandem.csv"  # as earlier versions wrote it
    (tmp_path / "old").mkdir()
    shutil.copytree("run", "old/run")
    (tmp_path / "old" / "run" / "config.yaml").write_text(yaml.safe_dump(settings))
    said = "to some of every recording in DATA"
    for name in ("run", "old/run"):
        words = "sample", name, "tandem.csv", "--resolution", "0.5", "--out", "draws.nc"
        assert said in refused(*words)


def test_options_of_data_that_is_not_given(run, csv, tmp_path, refused):
    out = ["--out", tmp_path / "draws.nc"]
    assert "--bodies applies to DATA, and no DATA was given" in refused(
        "sample", run, "--bodies", "each", *out
    )
    assert "--labels applies to DATA" in refused("score", run, "--labels", "nosuch", *out)
    # a part of its one recording was held out, by time: no other choice of it is unseen
    assert "fitted to some of every recording" in refused(
        "sample", run, csv, "--fps", "10", "--resolution", "0.5", *out
    )
    copied = shutil.copy(csv, tmp_path / "other.nc.csv")
    assert "--downsample is taken over" not in refused("sample", run, copied, "--labels", "x", *out)


@pytest.mark.parametrize(("fps", "kept"), [(10, 1), (20, 2)])
def test_the_runs_downsample_is_for_recordings_at_another_rate(run, tmp_path, capsys, fps, kept):
    """Those that say they have the model's rate, as displays of `direct` do, are taken whole."""
    copied, new, out = (tmp_path / name for name in ("run", "new.nc", "draws.nc"))
    shutil.copytree(run, copied)
    settings = yaml.safe_load((copied / "config.yaml").read_text())
    settings["data"] = {"source": settings["data"]["source"], "downsample": 2}
    (copied / "config.yaml").write_text(yaml.safe_dump(settings))
    save_netcdf(make_trajectories(chase(60, seed=8), fps=fps, body=BODIES), new)
    assert main(["sample", str(copied), str(new), "--draws", "1", "--out", str(out)]) == 0
    with xr.open_datatree(out, engine="h5netcdf") as tree:
        observed = tree["observed_data"]["position"].values
        np.testing.assert_array_equal(observed, chase(60, seed=8)[:, ::kept])
    assert ("--downsample 2 is not taken over" in capsys.readouterr().err) == (kept == 1)
    assert main(["compare", str(copied), "--recordings", str(new), "--draws", "25"]) == 0


@pytest.mark.parametrize("name", ["metrics.jsonl", "summary.json"])
@pytest.mark.parametrize("text", ["{half", "[1]", "[]", "3"])
def test_damaged_logs_and_figures_are_refused(run, tmp_path, refused, name, text):
    copied = shutil.copytree(run, tmp_path / "run")
    (copied / name).write_text(text)
    assert f"{name}: damaged" in refused("criticise", copied, "--out", tmp_path / "r.html")


@pytest.fixture
def locked(monkeypatch):
    """Keep a file or a folder from being opened, as its permissions do for all but root."""

    def lock(path):
        def refusing(real):
            def call(opened, *args, **options):
                if path in (Path(opened), *Path(opened).parents):
                    raise PermissionError(errno.EACCES, "Permission denied", str(opened))
                return real(opened, *args, **options)

            return call

        for module, name in ((io, "open"), (Path, "open"), (Path, "iterdir")):
            monkeypatch.setattr(module, name, refusing(getattr(module, name)))

    return lock


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("run/summary.json", ["score", "run", "--out", "s.csv"]),
        ("run/metrics.jsonl", ["criticise", "run", "--out", "r.html"]),
        ("run/config.yaml", ["score", "run", "--out", "s.csv"]),
        ("run/best.safetensors", ["score", "run", "--out", "s.csv"]),
        ("run/trainer.pt", ["fit", "--resume", "run"]),
        ("run", ["score", "run", "--out", "s.csv"]),
        ("clips", ["fit", "clips", "--out", "new"]),
        ("clips", ["score", "run", "clips", "--out", "s.csv"]),
    ],
)
def test_what_may_not_be_read_is_named(run, tmp_path, monkeypatch, refused, locked, name, words):
    """As found: tracebacks, and files that were said to be missing, or damaged and to fit again."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(run, "run")
    Path("clips").mkdir()
    before = files(tmp_path)
    locked(tmp_path / name)
    locked(Path(name))
    said = refused(*words)
    assert f"{name}" in said
    assert re.search("Permission denied.*; (make it readable|change its permissions)$", said)
    monkeypatch.undo()
    assert files(tmp_path) == before


@pytest.mark.parametrize("option", ["--config", "--train"])
def test_options_that_are_no_text_are_named(csv, tmp_path, refused, option):
    bad = tmp_path / "bad.yaml"
    bad.write_bytes(b"\xff\xfe\x00")
    words = ["fit", csv, *FIT, option, bad, "--out", tmp_path / "out"]
    assert f"{option} {bad}: not text in UTF-8 (invalid start byte)" in refused(*words)
    assert not (tmp_path / "out").exists()


def test_names_of_reports_and_folders(run, tmp_path, refused):
    assert "end its name in .html" in refused("criticise", run, "--out", tmp_path / "r.pdf")
    assert "a folder is written" in refused("compare", run, "--out", tmp_path / "c.csv")
    refused("score", run, "--out", tmp_path / "deep" / "x.csv", "--draws", "3")
    assert not (tmp_path / "deep").exists()


def test_simulate_soccer(tmp_path):
    out = tmp_path / "games.nc"
    words = ["simulate", "soccer", "--trajectories", "3", "--frames", "40", "--fps", "30"]
    assert main([*words, "--seed", "6", "--out", str(out)]) == 0
    games = simulate_soccer(3, 40, fps=30, seed=6)
    back = read_trajectories(out)
    xr.testing.assert_equal(back, games)
    assert back["animate"].values.tolist() == [True, True, False]
    for name in ("fps", "units"):
        assert back.attrs[name] == games.attrs[name]


def test_resume_by_the_command_line(run, tmp_path):
    copied = shutil.copytree(run, tmp_path / "run")
    assert main(["fit", "--resume", str(copied)]) == 0
    assert_same_run(run, copied)


def test_unsorted_rows(run, csv, tmp_path):
    rows = pd.read_csv(csv).sample(frac=1, random_state=3)
    rows.to_csv(tmp_path / "chase.csv", index=False)
    out = tmp_path / "run"
    assert main(["fit", str(tmp_path / "chase.csv"), *FIT, "--out", str(out)]) == 0
    assert_same_run(run, out)


@pytest.mark.parametrize("name", [None, *COMMANDS])
def test_help(capsys, name):
    """Every command has an example; none says that what may be left out is required."""
    with pytest.raises(SystemExit) as left:
        main([*([name] if name else []), "--help"])
    assert left.value.code == 0
    said = " ".join(capsys.readouterr().out.split()).replace("pyro- animacy", "pyro-animacy")
    assert f"usage: pyro-animacy {name or 'COMMAND'} " in said
    if name:
        assert f"Example: pyro-animacy {name} " in said
        assert not re.search(r"recordings recordings: .*\(required.* options:", said)


def test_names_with_blanks_are_quoted_in_what_to_type_next(csv, tmp_path, capsys):
    out = tmp_path / "one run"
    assert main(["fit", str(csv), *FIT, "--out", str(out)]) == 0
    said = capsys.readouterr()
    assert f"next: pyro-animacy criticise '{out}' --out report.html" in said.out
    assert "\r" not in said.err  # no progress bar where nobody looks


def test_names_that_the_terminal_cannot_show(run, tmp_path, monkeypatch):
    """They are written with escapes: what was done is not lost for the sake of its name."""
    out = tmp_path / "läufe.nc"
    shown = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr("sys.stdout", shown)
    assert main(["sample", str(run), "--draws", "1", "--out", str(out)]) == 0
    shown.flush()
    assert rb"l\xe4ufe.nc" in shown.buffer.getvalue()


def test_signal_outside_training(run, monkeypatch, capsys):
    """SIGINT where there is nothing to save yet; what is there already can be resumed."""
    before = signal.signal(signal.SIGINT, signal.SIG_DFL)  # as while everything was loaded

    def interrupted(*_, **__):
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr("pyro_animacy.infer.recordings.read_trajectories", interrupted)
    try:
        for out, says in (
            (["--out", "nowhere"], ""),
            (["--out", str(run)], f"; go on with: pyro-animacy fit --resume {run}"),
            ([f"--out={run}"], f"; go on with: pyro-animacy fit --resume {run}"),
        ):
            assert main(["fit", "x.csv", *out, "--overwrite"]) == 130
            assert capsys.readouterr().err == f"pyro-animacy: stopped{says}\n"
    finally:
        signal.signal(signal.SIGINT, before)


BY_SCRIPT = "sys.argv[0] = 'bin/pyro-animacy'; from pyro_animacy.cli import main; sys.exit(main())"
AS_MODULE = "sys.argv[0] = '-m'; sys.orig_argv.append('pyro_animacy'); import pyro_animacy"


def sigint_is_caught(pid):
    caught = re.search(r"SigCgt:\s*(\w+)", Path(f"/proc/{pid}/status").read_text())[1]
    return int(caught, 16) >> (signal.SIGINT - 1) & 1


@pytest.mark.parametrize(("end", "code"), [("| true; exit ${PIPESTATUS[0]}", 141), (">&-", 0)])
def test_nobody_reads_what_is_printed(end, code):
    """As where `head` has seen enough, or a program is started without a stdout."""
    program = "from pyro_animacy import cli; cli._run = lambda _: print('read') or 0"
    words = [sys.executable, "-c", f"{program}; raise SystemExit(cli.main(['fit']))"]
    line = f"{shlex.join(words)} {end}"
    done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, check=False)
    assert done.returncode == code
    assert "Traceback" not in done.stderr


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="a process's signals, of Linux")
@pytest.mark.parametrize("start", [BY_SCRIPT, AS_MODULE], ids=["script", "module"])
def test_ctrl_c_while_everything_is_loaded(start):
    """It ends by the signal, of which a shell makes 130, without a word."""
    began = "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); print()"
    process = subprocess.Popen(
        [sys.executable, "-u", "-c", f"{began}; {start}"], text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    process.stdout.readline()
    while sigint_is_caught(process.pid):  # until the package begins to load
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (-signal.SIGINT, "")


def test_ctrl_c_in_a_program_that_imports_the_package():
    """Its own handler stays."""
    call = "import signal; before = signal.getsignal(signal.SIGINT); import pyro_animacy; "
    call += "assert signal.getsignal(signal.SIGINT) is before"
    subprocess.run([sys.executable, "-c", call], check=True)


def test_what_takes_long_to_load_is_loaded_where_it_is_needed():
    """Garbage is left for when all is loaded, of the command line alone."""
    call = (
        "import gc, sys; sys.argv[0] = {!r}; import pyro_animacy.cli; assert gc.isenabled() is {}; "
    )
    call += "assert not {{'scipy.stats', 'arviz_stats'}} & sys.modules.keys()"
    for name, collected in (("program", True), ("bin/pyro-animacy", False)):
        subprocess.run([sys.executable, "-c", call.format(name, collected)], check=True)
    start = f"import gc, sys; {BY_SCRIPT.replace('sys.exit(main())', 'main([])')}"
    subprocess.run([sys.executable, "-c", f"{start}; assert gc.isenabled()"], check=True)


# --- recordings that cannot be used --------------------------------------------------------------


def rows(**changes):
    """The table of a chase with some columns set."""
    return table(chase()).assign(**changes)


def cell(row, column, value):
    """The table of a chase with one cell set; `row` is counted as in the file, header first."""
    found = table(chase()).astype({column: object})
    found.loc[row - 2, column] = value
    return found


def nothing_seen(body):
    found = table(chase())
    found.loc[found["id"] == body, ["x", "y"]] = np.nan
    return found


TABLES = {
    "no rows": (rows()[:0], "no rows"),
    "one frame": (rows()[:2], "only one frame"),
    "nothing moves": (rows(x=1.5, y=2.0), "no body moves"),
    "not a number": (cell(9, "x", "far"), r"row 9, column 'x': 'far' is not a number"),
    "infinite": (cell(31, "frame", "inf"), r"row 31, column 'frame': infinite"),
    "half a frame": (cell(12, "frame", 5.5), "row 12, column 'frame': 5.5"),
    "no id": (cell(14, "id", None), "row 14: no 'id'"),
    "twice": (pd.concat([rows(), rows()[4:5].assign(x=99)]), r"row 242: .*'hunter', frame 2"),
    "never seen": (nothing_seen("prey"), "body 'prey' is never observed"),
    "no positions": (rows().drop(columns="x"), "no columns x and y"),
    "no frames": (rows().drop(columns="frame"), "no frame or time column"),
    "too short": (rows()[:6], "frames"),
}


@pytest.mark.parametrize("name", TABLES)
def test_tables_that_cannot_be_used(name, tmp_path, refused):
    data, says = TABLES[name]
    data.to_csv(tmp_path / "bad.csv", index=False)
    error = refused("fit", tmp_path / "bad.csv", *FIT, "--out", tmp_path / "run")
    assert re.search(says, error)
    assert "bad.csv" in error
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "the file is empty"),
        (b"\n\n", "blank"),
        (b"\x00\x01\x02\x03", "not a text file"),
        (b'id,frame,x,y\n"a,0,1,2\n', "cannot be read"),
    ],
)
def test_files_that_are_no_tables(content, says, tmp_path, refused):
    (tmp_path / "bad.csv").write_bytes(content)
    error = refused("fit", tmp_path / "bad.csv", *FIT, "--out", tmp_path / "run")
    assert "bad.csv" in error
    assert says in error


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ([], "frames per second.*--fps"),
        (["--fps", "0"], "0.* frames per second"),
        (["--fps", "ten"], "fps.*ten"),
        ([*FIT, "--columns", "id=nope"], "no column 'nope'.*clip, frame, id, x, y"),
        ([*FIT, "--columns", "who=id"], "who=id: the roles are"),
        ([*FIT, "--columns", "id"], "id': it must be role=name"),
        ([*FIT, "--bodies", "cat"], "no body 'cat'; there are hunter, prey"),
        ([*FIT, "--labels", "chase"], "has no labels"),
        ([*FIT, "--downsample", "0"], "--downsample 0"),
        ([*FIT, "--downsample", "90"], "frames"),
        ([*FIT, "--resolution", "-1"], "--resolution -1"),
        (
            ["--fps", "10", "--preset", "huge"],
            "'huge' of control_vae does not exist; .*seed, paper, debug",
        ),
        ([*FIT, "--train.steps", "0"], "train.steps is 0"),
        ([*FIT, "--train.steps", "many"], "--train.steps is many; it must be a whole number;"),
        (
            [*FIT, "--train.overshooting.weights", "x"],
            "weights is x; it must be a list of numbers or null;",
        ),
        ([*FIT, "--train.stepps", "3"], "no option --train.stepps; did you mean --train.steps"),
        ([*FIT, "--stepps=3"], "there is no option --stepps; did you mean --train.steps"),
        ([*FIT, "--epochs", "3"], "there is no option --epochs; see pyro-animacy fit --help"),
        ([*FIT, "more.csv"], "more.csv is one word too many; give all files together"),
        ([*FIT, "--train.keep"], "--train.keep: its value is missing; see"),
        ([*FIT, "--model"], "--model: its value is missing; see"),
        (
            [*FIT, "--model", "rsm"],
            "'rsm' does not exist; did you mean rssm. Choose one of control",
        ),
        ([*FIT, "--train.kl_weight.start", "0.01"], "0.01 .* give --train.kl_weight.levels too"),
        ([*FIT, "--train.kl_weight.end", "0.5"], "give --train.kl_weight.levels too"),
        (
            [*FIT, "--model.likelihood", "gamma"],
            "likelihood is gamma; it must be squared_error or policy;",
        ),
        ([*FIT, "--train.device", "abacus"], "train.device is 'abacus'"),
        ([*FIT, "--config", "nowhere.yaml"], "nowhere.yaml"),
    ],
)
def test_options_of_fit(csv, tmp_path, refused, options, says):
    error = refused("fit", csv, *options, "--out", tmp_path / "run")
    assert re.search(says, error)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ([], "no command given; choose one of fit, sample"),
        (["train"], "command 'train' does not exist; choose one of fit, sample"),
        (["smaple", "r"], r"'smaple' does not exist; did you mean sample\? Choose one of fit"),
        (["--fit"], "there is no option --fit; see pyro-animacy --help"),
        (["fit"], "no recordings given"),
        (["fit", "a.csv"], "--out is missing"),
        (["fit", "nowhere.csv", "--out", "o"], "nowhere.csv: no such file"),
        (["fit", "--resume", "nowhere"], "nowhere"),
        (["fit", "a.csv", "--resume", "nowhere"], "--resume"),
        (["sample", "nowhere", "--out", "o.nc"], "nowhere: no such run folder"),
        (["sample", "nowhere", "--out", "o.csv"], "o.csv: draws are netCDF; end its name in .nc"),
        (["sample", "sample.out"], "required: --out; see pyro-animacy sample"),
        (["score"], "required: RUN, --out; see"),
        (["video"], "required: RUN, --out; see"),
        (["direct", "nowhere", "--out", "o"], "required: --objective; see"),
        (["compare"], "required: RUNS; see"),
        (
            ["sample", "r", "--draws", "x", "--out", "sample.out"],
            "--draws is x; it must be a whole number or null;",
        ),
        (["sample", "r", "--seed", "x", "--out", "o"], "--seed is x; it must be a whole number;"),
        (["criticise", "nowhere"], "nowhere: no such run folder"),
        (["simulate", "tennis", "--out", "o.nc"], "'tennis' does not exist; choose one of soccer"),
        (["simulate", "soccer", "--trajectories", "0", "--out", "o.nc"], "trajectories"),
        (["simulate", "soccer", "--frames", "x", "--out", "o.nc"], "frames"),
        (["simulate", "soccer", "--out", "s.csv"], "s.csv: games are netCDF; end its name in .nc"),
        (["simulate", "soccer", "--out", "a_file/o.nc"], "a_file/o.nc: its folder cannot be made"),
    ],
)
def test_words_that_make_no_command(tmp_path, monkeypatch, refused, words, says):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a_file").touch()
    assert re.search(says, refused(*words))
    assert [path.name for path in tmp_path.iterdir()] == ["a_file"]


CONFIGS = {
    "model: {histories: 2}": "model.histories",
    "train: {steps: many}": "train.steps",
    "train: {kl_weight: {start: low}}": "train.kl_weight.start",
    "model: {prior: {width: 3}}": "model.prior.width",
    "trian: {steps: 3}": "trian",
    "model: [1, 2": "config",
    "[1, 2]": "config",
    "train: {steps: -3}": "train.steps is -3",
    "model: {likelihood: squared_error}": "model.policy_scale",
    "train:\nmodel: {}": "train is empty",  # not: the defaults in place of the preset
    "model: []": "model is []",
    "model: {prior: }": "model.prior is empty",
    "train: {steps: }": "train.steps is empty",
}


@pytest.mark.parametrize("text", CONFIGS)
def test_config_files_that_cannot_be_used(csv, tmp_path, refused, text):
    (tmp_path / "c.yaml").write_text(text)
    error = refused("fit", csv, *FIT, "--config", tmp_path / "c.yaml", "--out", tmp_path / "run")
    assert CONFIGS[text] in error
    assert not (tmp_path / "run").exists()


def test_a_config_file_cannot_name_the_preset(csv, tmp_path, refused):
    (tmp_path / "c.yaml").write_text("preset: seed")
    out = ["--out", tmp_path / "run"]
    assert "--preset" in refused("fit", csv, "--fps", 10, "--config", tmp_path / "c.yaml", *out)


# --- what is there already -----------------------------------------------------------------------


def test_out_that_exists(run, csv, tmp_path, refused):
    copied = shutil.copytree(run, tmp_path / "run")
    draws = tmp_path / "draws.nc"
    draws.write_text("drawn before")
    before = files(tmp_path)
    for words in (
        ["fit", csv, *FIT, "--out", copied],
        ["fit", csv, *FIT, "--out", draws],
        ["sample", run, "--out", draws],
        ["simulate", "soccer", "--out", draws],
    ):
        error = refused(*words)
        assert str(words[-1]) in error
        assert "--overwrite" in error
        assert files(tmp_path) == before
    # Nor is a folder or file that is no run, whatever is said.
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    before = files(tmp_path)
    for out in (tmp_path / "mine", draws, csv):
        assert str(out) in refused("fit", csv, *FIT, "--out", out, "--overwrite")
        assert files(tmp_path) == before
    # Nor is a run deleted for recordings or options that turn out not to be usable.
    for words in ([csv], [csv, *FIT, "--train.steps", "0"], ["nowhere.csv", *FIT]):
        refused("fit", *words, "--out", copied, "--overwrite")
        assert files(tmp_path) == before


def test_overwrite(run, csv, tmp_path):
    copied = shutil.copytree(run, tmp_path / "run")
    words = ["fit", str(csv), *FIT, "--train.steps", "20", "--overwrite", "--out", str(copied)]
    assert main(words) == 0
    assert [row["step"] for row in metrics(copied)] == [10, 20]
    for words in (["sample", str(run), "--draws", "1"], ["simulate", "soccer", "--frames", "9"]):
        out = tmp_path / "out.nc"
        out.write_text("of before")
        assert main([*words, "--out", str(out), "--overwrite"]) == 0
        assert out.read_bytes()[1:4] == b"HDF"


def test_a_run_that_another_process_is_at_work_on(csv, tmp_path, refused):
    """It is let alone; after a kill nothing is in the way."""
    path, words = tmp_path / "run", ["fit", csv, *FIT, "--train.patience", "null"]
    arguments, environment = command(*words, "--train.steps", "100000", "--out", path)
    process = subprocess.Popen(arguments, env=environment, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 60
        while not (path / "trainer.pt").exists():
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.01)
        for again in (["fit", "--resume", path], [*words, "--out", path, "--overwrite"]):
            assert f"{path}: another process is at work on this run; wait" in refused(*again)
        assert process.poll() is None
    finally:
        process.kill()
        process.wait()
    assert main([*map(str, words), "--train.steps", "20", "--out", str(path), "--overwrite"]) == 0


# --- runs that cannot be used --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--mode", "dream"], "mode is 'dream'; choose reconstruct, forecast or generate"),
        (["--draws", "0"], "draws is 0"),
        (["--draws", "few"], "draws.*few"),
        (["--mode", "forecast", "--context", "24"], "24 frames and 24 are context"),
        (["--mode", "forecast", "--context", "99", "--horizon", "2"], "--context"),
        (["--mode", "forecast", "--context", "1"], "context is 1 frame;.*history needs 2"),
        (["--horizon", "0"], "horizon is 0; it must be at least 1"),
        (
            ["--draws", "1000000000000"],
            r"take [\d.]+ GiB, more than half of",
        ),
        (
            ["--horizon", "1000000000000"],
            r"take [\d.]+ GiB, more than half of",
        ),
        (["--seed", "-1"], "seed is -1"),
    ],
)
def test_options_of_sample(run, tmp_path, refused, options, says):
    assert re.search(says, refused("sample", run, *options, "--out", tmp_path / "draws.nc"))
    assert not (tmp_path / "draws.nc").exists()


@pytest.mark.parametrize("command", ["sample", "criticise"])
def test_recordings_of_something_else(run, tmp_path, refused, command):
    one = table(chase(40)[:, :, :1], ["prey"])
    one.to_csv(tmp_path / "one.csv", index=False)
    table(chase(40)).to_csv(tmp_path / "two.csv", index=False)
    out = ["--out", tmp_path / "out"]
    assert "1 body (prey)" in refused(command, run, tmp_path / "one.csv", *out)
    assert "25 frames a second" in refused(command, run, tmp_path / "two.csv", "--fps", 25, *out)
    assert not (tmp_path / "out").exists()


def half(content):
    return content[: len(content) // 2]


def flipped(content):
    """A bit altered here and there: a single one may lie in the padding between tensors."""
    damaged = bytearray(content)
    for place in range(1, 10):
        damaged[len(content) * place // 10] ^= 1
    return bytes(damaged)


def junk(_):
    return b"\xff\x00 not what it was"


DAMAGES = [half, flipped, junk, lambda _: b""]


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("command", ["sample", "criticise"])
def test_damaged_weights(run, tmp_path, refused, damage, command):
    copied = shutil.copytree(run, tmp_path / "run")
    weights = copied / "best.safetensors"
    weights.write_bytes(damage(weights.read_bytes()))
    before = files(copied)
    assert str(weights) in refused(command, copied, "--out", tmp_path / "out")
    assert files(copied) == before


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_trainer_state(run, tmp_path, refused, damage):
    copied = shutil.copytree(run, tmp_path / "run")
    (copied / "trainer.pt").write_bytes(damage((copied / "trainer.pt").read_bytes()))
    before = files(copied)
    assert str(copied / "trainer.pt") in refused("fit", "--resume", copied)
    assert files(copied) == before


@pytest.mark.parametrize("name", ["summary.json", "config.yaml"])
@pytest.mark.parametrize("damage", [half, junk])
def test_damaged_text(run, tmp_path, refused, name, damage):
    copied = shutil.copytree(run, tmp_path / "run")
    (copied / name).write_bytes(damage((copied / name).read_bytes()))
    assert str(copied / name) in refused("sample", copied, "--out", tmp_path / "out.nc")


@pytest.mark.parametrize("name", ["best.safetensors", "config.yaml"])
def test_missing_files_of_a_run(run, tmp_path, refused, name):
    copied = shutil.copytree(run, tmp_path / "run")
    (copied / name).unlink()
    assert str(copied / name) in refused("sample", copied, "--out", tmp_path / "out.nc")


def edit_card(path, **changes):
    """Write the weights again with a card that says something else."""
    tensors, card = checkpoint._read(path)
    checkpoint._save(path, tensors, json.dumps(json.loads(card) | changes))


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"format": 99}, "written by a later version .*upgrade"),
        ({"model": "other"}, "model is 'other'; this version knows control_vae"),
        ({"config": {}}, "does not fit the control_vae"),
        ({"config": {"future": 1}}, "not those of this version"),
        ({"scale": {}}, "not the weights of a pyro-animacy model"),
        ({"new": 1}, "not the weights of a pyro-animacy model"),
    ],
)
def test_runs_of_another_model_or_version(run, tmp_path, refused, changes, says):
    copied = shutil.copytree(run, tmp_path / "run")
    edit_card(copied / "best.safetensors", **changes)
    assert re.search(says, refused("sample", copied, "--out", tmp_path / "out.nc"))


def test_a_trainer_state_of_a_later_version(run, tmp_path, refused):
    copied = shutil.copytree(run, tmp_path / "run")
    state = checkpoint.load_trainer(copied / "trainer.pt")
    torch.save({**state, "format": 99}, copied / "trainer.pt")
    assert str(copied / "trainer.pt") in refused("fit", "--resume", copied)


@pytest.mark.parametrize(
    ("section", "entry", "says"),
    [
        ("data", {"fps": "ten"}, "data.fps is 'ten'"),
        ("data", {"columns": [1]}, "data.columns"),
        ("data", {"downsampel": 2}, "data.downsampel is no option of how recordings are read"),
        ("data", {"source": None}, "does not say where the recordings are"),
        ("data", {"source": "nowhere.csv"}, "nowhere.csv: no such file"),
        ("train", {"heldout": "some"}, "train.heldout is some; it must be a number"),
        ("train", {"futures": 1}, "train.futures"),
    ],
)
def test_config_of_a_run_edited_by_hand(run, tmp_path, refused, section, entry, says):
    copied = shutil.copytree(run, tmp_path / "run")
    settings = yaml.safe_load((copied / "config.yaml").read_text())
    settings[section].update(entry)
    (copied / "config.yaml").write_text(yaml.safe_dump(settings))
    assert says in refused("sample", copied, "--out", tmp_path / "out.nc")
    assert says in refused("fit", "--resume", copied)


def test_a_run_that_does_not_say_where_its_recordings_are(run, tmp_path, refused):
    """What each command takes instead."""
    copied = shutil.copytree(run, tmp_path / "run")
    settings = yaml.safe_load((copied / "config.yaml").read_text())
    (copied / "config.yaml").write_text(yaml.safe_dump(settings | {"data": {}}))
    assert "; give DATA" in refused("sample", copied, "--out", tmp_path / "out.nc")
    assert "--recordings FILE" in refused("compare", copied)
    assert "; go on in Python: resume(RUN, recordings)" in refused("fit", "--resume", copied)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"model": 3}, "model is 3; it must be options by name"),
        ({"model": None}, "model is empty"),
        ({"train": None}, "train is empty"),
        ({"train": []}, "train is []"),
        ({"data": None}, "data is empty"),
        ({"data": "chase.csv"}, "data is 'chase.csv'"),
        ({"data": {"source": 3}}, "data.source is 3; it must be a path"),
        ({"data": {"source": ["chase.csv", 3]}}, "data.source is ['chase.csv', 3]"),
        ({"family": []}, "family is []; it must be the name of a model"),
        ({"acting": 3}, "acting is 3"),
        ({"acting": None}, "acting is empty"),
    ],
)
def test_parts_of_a_config_that_are_of_another_kind(run, csv, tmp_path, refused, change, says):
    """Also where other recordings are given; --resume must not go on with defaults."""
    copied = shutil.copytree(run, tmp_path / "run")
    config = copied / "config.yaml"
    config.write_text(yaml.safe_dump(yaml.safe_load(config.read_text()) | change))
    before = files(copied)
    out = ["--out", tmp_path / "out"]
    for words in (
        ["sample", copied, *out],
        ["sample", copied, csv, *out],
        ["criticise", copied, csv, *out],
        ["fit", "--resume", copied],
        ["fit", csv, "--config", config, *out],
    ):
        assert f"{config}: {says}" in refused(*words)
    assert files(copied) == before
    assert not (tmp_path / "out").exists()


def test_an_option_that_a_config_lacks_has_its_default(run, tmp_path):
    copied = shutil.copytree(run, tmp_path / "run")
    settings = yaml.safe_load((copied / "config.yaml").read_text())
    assert settings["train"].pop("score_draws") != SCORE_DRAWS
    (copied / "config.yaml").write_text(yaml.safe_dump(settings))
    assert main(["fit", "--resume", str(copied)]) == 0
    said = Run.load(copied).summary["score_density"]
    assert f"(K = {SCORE_DRAWS})" in said


def test_the_recordings_of_a_run_have_changed(csv, tmp_path, refused):
    moved = shutil.copy(csv, tmp_path / "chase.csv")
    assert main(["fit", str(moved), *FIT, "--out", str(tmp_path / "run")]) == 0
    table(chase(seed=1)).to_csv(moved, index=False)
    assert "not those of this run" in refused("fit", "--resume", tmp_path / "run")


def test_files_put_into_the_folder_of_a_fit_are_new_to_it(tmp_path, capfd, refused):
    """As found: with one more of them another was said to be held out, which was trained on."""
    folder, run, out = tmp_path / "clips", tmp_path / "run", tmp_path / "scores.csv"
    folder.mkdir()
    for n in range(6):
        table(chase(30, seed=n)).to_csv(folder / f"s{n}.csv", index=False)
    assert main(["fit", str(folder), *FIT, "--out", str(run)]) == 0
    assert json.loads((run / "summary.json").read_text())["data"]["source"] == "clips"
    score = ["--draws", "25", "--surrogates", "1", "--overwrite", "--out", str(out)]

    def scored(*data):
        assert main(["score", str(run), *map(str, data), *score]) == 0
        return set(pd.read_csv(out)["trajectory"])

    heldout = scored()
    new = shutil.copy(shutil.copy(folder / "s0.csv", tmp_path / "a_new.csv"), folder)
    assert scored() == heldout
    assert scored(new) == {"clip0"}
    assert "of the recordings given" in capfd.readouterr().out
    assert "s0.csv; leave DATA out" in refused("score", run, folder, *score)
    assert main(["fit", "--resume", str(run)]) == 0
    for n in range(6):  # each is another's now
        table(chase(30, seed=n + 1)).to_csv(folder / f"s{n}.csv", index=False)
    before = out.read_bytes()
    for words in ("score", run, *score), ("sample", run, *map(str, sorted(folder.glob("s*")))):
        more = () if words[0] == "score" else ("--out", tmp_path / "draws.nc")
        assert "its recordings have changed since the fit" in refused(*words, *more)
    assert "its recordings have changed since the fit" in refused("compare", run)
    assert out.read_bytes() == before


# --- as a process of its own ---------------------------------------------------------------------


def test_refusals_of_the_program(csv, run, tmp_path):
    """Nothing but the line reaches stderr: no warning, no traceback, no progress bar."""
    bad = tmp_path / "bad.csv"
    cell(9, "x", "far").to_csv(bad, index=False)
    weights = shutil.copytree(run, tmp_path / "run") / "best.safetensors"
    weights.write_bytes(half(weights.read_bytes()))
    damaged = tmp_path / "damaged.nc"
    whole = read_trajectories(csv, fps=10)
    whole.to_netcdf(damaged, engine="h5netcdf")
    damaged.write_bytes(damaged.read_bytes()[:400] + b"no" + damaged.read_bytes()[402:])
    for words, says in (
        (["fit", bad, *FIT, "--out", tmp_path / "new"], "bad.csv: row 9, column 'x'"),
        (["fit", damaged, *FIT, "--out", tmp_path / "new"], "damaged.nc: cannot be read as netCDF"),
        (["sample", weights.parent, "--out", tmp_path / "o.nc"], f"{weights}: damaged"),
    ):
        done = call(*words)
        assert done.returncode == 2
        assert done.stdout == ""
        assert done.stderr.count("\n") == 1
        assert says in done.stderr
    assert not (tmp_path / "new").exists()


def test_no_space_for_a_checkpoint(csv, tmp_path):
    """A limit on the size of files stands for a full disk; the run goes on when there is space."""
    out = tmp_path / "run"
    done = call("fit", csv, *FIT, "--out", out, largest_file=6)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    last = done.stderr.splitlines()[-1]
    assert re.match(rf"pyro-animacy: {out}/\S+: cannot be written", last)
    assert not [f for f in out.iterdir() if f.name.startswith(".")]
    assert main(["fit", "--resume", str(out)]) == 0
    assert Run.load(out).summary["steps"] == 40


@pytest.mark.parametrize("command", ["sample", "simulate"])
def test_no_space_for_netcdf(run, tmp_path, command):
    """One line, and no crash of HDF5 when it forgets the file."""
    out = tmp_path / "out.nc"
    given = [run] if command == "sample" else ["soccer", "--trajectories", "20"]
    done = call(command, *given, "--out", out, largest_file=20)
    said = f"pyro-animacy: {out}: cannot be written (File too large); free some space"
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert done.stderr.startswith(said)
    assert not list(tmp_path.iterdir())
