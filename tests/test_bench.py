"""The benchmark compares like with like: every contender computes the same, and refuses if not."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import pyro
import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "scripts"))
import bench  # noqa: E402
from benchmarks import data, timing  # noqa: E402
from benchmarks.cases import CASES, tiny  # noqa: E402
from benchmarks.plain import PlainControlVAE  # noqa: E402
from benchmarks.training import compiler_found, contenders, verify, verify_exactly  # noqa: E402

CLOSED, TEACHER_FORCED = [
    [case for case in CASES if case.name.startswith(kind)] for kind in ("closed", "teacher")
]
LIKE_NO_OTHER = [CLOSED[0], CLOSED[3], TEACHER_FORCED[0], TEACHER_FORCED[3], CASES[-1]]


@pytest.fixture(autouse=True)
def checks_on_again():
    yield
    pyro.enable_validation(True)
    pyro.clear_param_store()


def named(cases):
    return pytest.mark.parametrize("case", cases, ids=lambda case: case.name)


@named(LIKE_NO_OTHER)
def test_every_contender_computes_the_same(case):
    case = tiny(case)
    verify_exactly(case)
    ways = contenders(case, lambda name: not name.startswith("NumPyro") and "compiled" not in name)
    found = verify(case, ways)
    assert found.keys() >= {"ours", "by hand"}
    assert (len(found) == 5) == (case.name != CASES[-1].name)


@named([CLOSED[0], TEACHER_FORCED[0]])
def test_more_bodies_are_of_one_network_too(case):
    verify_exactly(dataclasses.replace(tiny(case), bodies=5))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@named([CLOSED[0], CLOSED[3], TEACHER_FORCED[0], TEACHER_FORCED[3]])
def test_numpyro_computes_the_same(case):
    pytest.importorskip("numpyro")
    pytest.importorskip("optax")
    case = tiny(case)
    found = verify(
        case, contenders(case, lambda name: name == "by hand" or name.startswith("NumPyro"))
    )
    assert ("NumPyro, one scan" in found) == (case.config.roll_out == "closed_loop")
    assert "NumPyro" in found


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_the_compiled_loss_is_the_same():
    if not compiler_found():
        pytest.skip("torch.compile needs a C++ compiler")
    case = tiny(TEACHER_FORCED[0])
    ways = contenders(case, lambda name: name in ("by hand", "by hand, compiled"))
    assert ways[-1].compiled
    verify(case, ways)


@pytest.mark.parametrize("what", ["kl", "loss", "gradient"])
def test_another_loss_is_refused(monkeypatch, what):
    """A hundredth more of the KL weight, a constant a thousandth as large, or a cut gradient."""
    case, forward = tiny(CLOSED[0]), PlainControlVAE.forward

    def other(self, x, noise, kl_weight):
        loss = forward(self, x, noise, kl_weight * (1.01 if what == "kl" else 1))
        if what == "gradient":
            return loss + 0.01 * (loss - loss.detach())
        return loss * (1.001 if what == "loss" else 1)

    monkeypatch.setattr(PlainControlVAE, "forward", other)
    ways = contenders(case, lambda name: name == "by hand")
    with pytest.raises(SystemExit, match="closed loop, small: ours does not compute"):
        verify(case, ways)


def test_operations_are_those_of_the_products():
    """Of y = W x: 2 B i o forwards, as many for W's gradient and for x's."""
    B, i, o = 8, 5, 7
    layer, x = torch.nn.Linear(i, o), torch.randn(B, i, requires_grad=True)
    alone, operations = timing.products_alone(lambda: layer(x).square().sum().backward())
    assert operations == 3 * 2 * B * i * o
    with timing.FlopCounterMode(display=False) as counter:
        alone()
    assert counter.get_total_flops() == operations


def test_rounds_are_complete_and_their_order_changes():
    taken = []
    ways = {name: lambda name=name: taken.append(name) for name in "abc"}
    times = timing.interleaved(ways, 20)
    rounds = [tuple(taken[i : i + 3]) for i in range(0, len(taken), 3)]
    assert {len(t) for t in times.values()} == {20}
    assert all(sorted(r) == ["a", "b", "c"] for r in rounds)
    assert len(set(rounds)) == 6


def test_quartiles_are_of_the_ratio_by_rounds():
    found = timing.compared([1.0, 4.0, 3.0, 8.0, 5.0], [1.0, 2.0, 1.0, 2.0, 1.0])
    assert found == (1.5, 3.0, 4.5, 1.0, 1.0)


def test_draws_are_the_same_motion():
    data.Motion(draws=3, steps=12).check()


def test_draws_of_another_motion_are_refused(monkeypatch):
    motion = data.Motion(draws=2, steps=12)
    motion.plain.floor = 0.5
    with pytest.raises(SystemExit, match="ours does not draw the motion by hand"):
        motion.check()


def test_the_reader_gives_back_what_was_written(tmp_path):
    ways = data.csv(tmp_path, 3_000)
    assert ways["ours"]().sizes == {"trajectory": 10, "time": 100, "body": 3, "space": 2}
    assert len(ways["pandas.read_csv alone"]()) == 3_000


def test_windows_are_those_of_the_preset():
    ways, size = data.windows(bench.preset("seed"))
    found = ways["ours"]()
    assert {batch.position.shape for batch in found} == {(25, 64, 6)}
    assert size == 64 * len(found)
    ways["the steps that take them"]()


def test_the_table_goes_between_the_markers(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- bench -->\nold\n<!-- /bench -->\nafter\n")
    for _ in range(2):
        bench.write_between(bench.MARKERS, page, "new\n")
        text = "before\n<!-- bench -->\nnew\n<!-- /bench -->\nafter\n"
        assert page.read_text() == text
    with pytest.raises(SystemExit, match="no lines <!-- growth --> and"):
        bench.write_between(("<!-- growth -->", "<!-- /growth -->"), page, "new\n")
    assert page.read_text() == text


def script(*arguments):
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, ROOT / "scripts/bench.py", "--threads", "1", *map(str, arguments)],
        env=environment, capture_output=True, text=True, timeout=240,
    )  # fmt: skip


@pytest.mark.slow
def test_the_command_prints_and_writes_its_table(tmp_path):
    out, page = tmp_path / "bench.json", tmp_path / "bench.md"
    done = script(
        "--quick", "--only", "teacher forced, small", "--against", "Pyro, first",
        "--out", out, "--markdown", page,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(out.read_text())
    rows = {row["against"]: row for row in found["rows"]}
    assert rows.keys() == {"by hand", "Pyro, first written", bench.PRODUCTS, bench.RATE}
    for row in rows.values():
        assert 0 < row["ratio"]["low"] <= row["ratio"]["median"] <= row["ratio"]["high"]
    assert found["machine"]["threads"] == 1
    table = page.read_text()
    assert table.splitlines()[:4] == done.stdout.splitlines()[:4]
    assert any("torch.compile" in sentence for sentence in found["reserved"])


def test_the_command_checks_without_timing():
    done = script("--check", "--only", "rssm")
    assert done.returncode == 0, done.stderr[-2000:]
    assert [line.split(": ")[1] for line in done.stdout.splitlines()] == ["ours", "by hand"]
