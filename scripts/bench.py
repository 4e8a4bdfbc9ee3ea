"""Speed beside others, on the same maths, shapes and data, interleaved in one run.

    .venv/bin/python scripts/bench.py [--quick] [--only NAME] [--markdown docs/performance.md]

Training steps beside plain PyTorch (eager, compiled, bf16), Pyro as one would first write it,
NumPyro, and the machine's own rate of matrix products; draws, reading a table and windows beside
what one would write. Ratios are ours over theirs: below 1 is faster. Before anything is timed,
every contender is checked to compute the same loss and gradient given the same noise, and the
command ends with an error if one does not. NumPyro needs the extra `bench`, torch.compile a C++
compiler: without them these rows are left out, and the table says so. What is compared, and how:
docs/performance.md.
"""

import argparse
import importlib.util
import json
import os
import platform
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import NamedTuple

import pyro
import torch
from benchmarks import data
from benchmarks.cases import CASES, Case, tiny
from benchmarks.timing import (
    SQUARE,
    Ratio,
    compared,
    interleaved,
    products_alone,
    square_product,
)
from benchmarks.training import (
    OURS_MIXED,
    compiler_found,
    contenders,
    first_seconds,
    verify,
    verify_exactly,
)

from pyro_animacy import preset

PRODUCTS, RATE = "its matrix products alone", "the machine's matrix products"
MARKERS = "<!-- bench -->", "<!-- /bench -->"
# What is aimed at, the largest ratio of ours to theirs.
TARGETS = {
    ("closed loop, small", "by hand"): 1.15,
    ("closed loop, medium", "by hand"): 1.05,
    ("closed loop, paper, plain network", "by hand"): 1.0,
    ("closed loop, paper, experts", "by hand"): 1.0,
    ("closed loop, small", "NumPyro"): 2.5,
    ("closed loop, medium", "NumPyro"): 1.1,
    ("closed loop, paper, plain network", "NumPyro"): 1.0,
    ("closed loop, paper, experts", "NumPyro"): 1.0,
    **{(case.name, "by hand"): 1.1 for case in CASES if "teacher forced" in case.name},
    **{(case.name, "NumPyro"): 1.5 for case in CASES if "teacher forced" in case.name},
    ("closed loop, paper, plain network", RATE): 1.25,
    ("closed loop, paper, plain network, bf16", "by hand"): 0.4,
    ("forecasts", "by hand"): 1.05,
    ("forecasts", "Predictive"): 0.2,
    ("CSV", "pandas.read_csv alone"): 1.3,
    ("windows, small", "the steps that take them"): 0.03,
    ("windows, seed", "the steps that take them"): 0.03,
}


class Row(NamedTuple):
    """A line of the table: ours (median, in seconds) beside another."""

    what: str
    against: str
    ratio: Ratio
    ours: float
    note: str


def training(case: Case, rounds: int, wanted: Callable[[str], bool]) -> Iterator[Row]:
    """A training step beside all contenders, and beside the machine's matrix products."""
    pyro.enable_validation(False)  # as the trainer does
    verify_exactly(case)
    ways = contenders(case, wanted)
    compiling = {way.name: first_seconds(way.step) for way in ways if way.compiled}
    differences = verify(case, ways)
    by_hand = next(way for way in ways if way.name == "by hand")
    alone, operations = products_alone(by_hand.step)
    timed: dict[str, Callable[[], object]] = {way.name: way.step for way in ways}
    timed |= {PRODUCTS: alone, RATE: square_product()}
    times = interleaved(timed, max(5, int(rounds * case.share)))
    ours, mixed = times.pop("ours"), times.pop(OURS_MIXED, None)
    per_second = 2 * SQUARE**3 / statistics.median(times[RATE])
    times[RATE] = [seconds * operations / (2 * SQUARE**3) for seconds in times[RATE]]
    for name, theirs in times.items():
        ratio = compared(ours, theirs)
        note = f"fraction {1 / ratio.median:.2f}"
        if name == RATE:
            note += f"; {operations / 1e9:.3g} GFLOP at {per_second / 1e9:.0f} GFLOP/s"
        if name in differences:
            note = "loss {:.0e}, gradient {:.0e}".format(*differences[name])
            if name in compiling:
                note += f"; compiled in {compiling[name]:.0f} s"
        yield Row(case.name, name, ratio, statistics.median(ours), note)
    if mixed is None:
        return
    note = "ours, loss {:.0e}, gradient {:.0e}".format(*differences[OURS_MIXED])
    for name, theirs in times.items():
        if name not in (PRODUCTS, RATE):
            ratio = compared(mixed, theirs)
            yield Row(f"{case.name}, bf16", name, ratio, statistics.median(mixed), note)


def forecasts(rounds: int) -> Iterator[Row]:
    """Draws of forecasts, with the checks of arguments that everybody has by default."""
    pyro.enable_validation(True)
    motion = data.Motion()
    motion.check()
    times = interleaved(motion.ways(), max(4, rounds // 8))
    ours = times.pop("ours")
    rate = motion.trajectory_steps / statistics.median(ours)
    for name, theirs in times.items():
        note = f"ours: {rate:.3g} trajectory-steps/s"
        yield Row("forecasts", name, compared(ours, theirs), statistics.median(ours), note)


def csv(rows: int) -> Iterator[Row]:
    """A long table read."""
    with tempfile.TemporaryDirectory() as folder:
        times = interleaved(data.csv(Path(folder), rows), 4)
    ours = times.pop("ours")
    for name, theirs in times.items():
        note = f"{rows:.0e} rows, ours: {rows / statistics.median(ours):.3g} rows/s"
        yield Row("CSV", name, compared(ours, theirs), statistics.median(ours), note)


def windows(name: str, rounds: int) -> Iterator[Row]:
    """Batches of a preset's windows beside its training steps."""
    pyro.enable_validation(False)
    ways, size = data.windows(preset(name))
    times = interleaved(ways, rounds)
    ours = times.pop("ours")
    for against, theirs in times.items():
        note = f"{size / statistics.median(ours):.3g} windows/s"
        yield Row(
            f"windows, {name}", against, compared(ours, theirs), statistics.median(ours), note
        )


def measured(options: argparse.Namespace) -> Iterator[Row]:
    """All rows asked for."""
    rounds = 10 if options.quick else options.rounds

    def wanted(contender: str) -> bool:
        slow = options.quick and "compiled" in contender
        return not slow and (contender == "by hand" or options.against in contender)

    for case in CASES:
        if options.only in case.name and not (options.quick and "paper" in case.name):
            yield from training(case, rounds, wanted)
    if options.only in "forecasts":
        yield from forecasts(rounds)
    if options.only in "CSV":
        yield from csv(options.csv_rows or (10**6 if options.quick else 10**7))
    for name in ("small", "seed"):
        if options.only in f"windows, {name}":
            yield from windows(name, rounds)


def check(options: argparse.Namespace) -> None:
    """Verify on small networks that all compute the same; no timing."""
    pyro.enable_validation(False)
    for case in CASES:
        if options.only not in case.name:
            continue
        few = tiny(case)
        verify_exactly(few)
        ways = contenders(few, lambda name: name == "by hand" or options.against in name)
        for name, (loss, gradient) in verify(few, ways).items():
            print(f"{case.name}: {name}: loss {loss:.1e}, gradient {gradient:.1e}", flush=True)
    if options.only in "forecasts":
        data.Motion(draws=3, steps=12).check()
        print("forecasts: the same motion")


COLUMNS = (
    "", "ours beside", "ratio", "quartiles", "of the fastest", "aim", "theirs, ms", "ours, ms", "",
)  # fmt: skip
HEADER = "| " + " | ".join(COLUMNS) + " |\n" + "|---" * len(COLUMNS) + "|"


def line(row: Row) -> str:
    """A row in Markdown."""
    low, median, high, fastest, theirs = row.ratio
    aim = TARGETS.get((row.what, row.against))
    numbers = f"**{median:.3f}** | {low:.3f} to {high:.3f} | {fastest:.3f}"
    numbers += f" | {'' if aim is None else aim}"
    times = f"{theirs * 1e3:.4g} | {row.ours * 1e3:.4g}"
    return f"| {row.what} | {row.against} | {numbers} | {times} | {row.note} |"


def machine(threads: int) -> dict[str, str | int]:
    """What the figures were measured on; no name of it."""
    found: dict[str, str | int] = {
        "processors": os.cpu_count() or 0, "threads": threads, "architecture": platform.machine(),
        "vector instructions": torch.backends.cpu.get_cpu_capability(),
        "python": platform.python_version(),
    }  # fmt: skip
    for package in ("torch", "pyro-ppl", "jax", "numpyro", "pandas"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found


def reserved(quick: bool, load: float) -> list[str]:
    """What could not be compared here, and whether the figures are to be trusted."""
    found = []
    if load > 0.3 * (os.cpu_count() or 1):
        found.append(f"The machine had other work to do (load {load:.1f}): measure again.")
    if quick:
        found.append("--quick leaves out the paper's sizes and torch.compile.")
    elif not compiler_found():
        found.append("torch.compile is left out: no C++ compiler was found.")
    if not importlib.util.find_spec("numpyro"):
        found.append("NumPyro is left out: it needs the extra `bench`.")
    return found


def limit_threads(threads: int) -> None:
    """Give torch and XLA the same number of threads.

    XLA has no setting of its own for them: it makes one for each processor that the process may run
    on, or as many as NPROC says. So the process is bound to as many processors, where the system
    can do that, before either library makes its threads.
    """
    os.environ["NPROC"] = os.environ["PJRT_NPROC"] = str(threads)
    if hasattr(os, "sched_setaffinity"):
        may = sorted(os.sched_getaffinity(0))
        if threads > len(may):
            sys.exit(f"--threads {threads}: this machine has {len(may)} processors")
        os.sched_setaffinity(0, may[:threads])
    torch.set_num_threads(threads)


def write_between(markers: tuple[str, str], path: Path, text: str) -> None:
    """Put a table between the markers of a page, or make a new page of it."""
    begin, end = markers
    if path.is_file():
        page = path.read_text(encoding="utf-8")
        if begin not in page or end not in page:
            sys.exit(f"{path} has no lines {begin} and {end} to put the table between")
        head, tail = page.split(begin)[0], page.split(end)[1]
        text = f"{head}{begin}\n{text}{end}{tail}"
    path.write_text(text, encoding="utf-8")


def main() -> None:
    """Check, measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="under three minutes; fewer, smaller")
    parser.add_argument("--check", action="store_true", help="only that all compute the same")
    parser.add_argument("--only", default="", help="rows whose name has this in it")
    parser.add_argument("--against", default="", help="contenders whose name has this in it")
    parser.add_argument("--rounds", type=int, default=40, help="interleaved rounds of small steps")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--csv-rows", type=int, help="10^7 by default, 10^6 with --quick")
    parser.add_argument("--out", type=Path, help="write the figures as JSON")
    parser.add_argument("--markdown", type=Path, help=f"write the table, between {MARKERS[0]}")
    options = parser.parse_args()
    limit_threads(options.threads)
    if options.check:
        return check(options)
    load = os.getloadavg()[0]  # before this run adds to it
    print(HEADER)
    rows = []
    with tempfile.TemporaryDirectory() as cache:
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = cache  # what compiling takes the first time
        for row in measured(options):
            rows.append(row)
            print(line(row), flush=True)
    about, missing = machine(options.threads), reserved(options.quick, load)
    words = ", ".join(f"{name} {value}" for name, value in about.items())
    print("\n" + "\n".join([words + ".", *missing]))
    if options.out:
        found = [{**row._asdict(), "ratio": row.ratio._asdict()} for row in rows]
        text = json.dumps({"machine": about, "reserved": missing, "rows": found}, indent=1)
        options.out.write_text(text + "\n", encoding="utf-8")
    if options.markdown:
        table = "\n".join([HEADER, *map(line, rows), "", words + ".", *missing])
        write_between(MARKERS, options.markdown, table + "\n")
    return None


if __name__ == "__main__":
    main()
