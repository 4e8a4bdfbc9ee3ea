"""Which model is better? Several runs and baselines, ranked on the same held-out recordings.

Two measures: the held-out log density of each next displacement (`elpd`), paired between
contenders, and the displacement errors of forecasts (`contenders`). Here they become figures,
tables and sentences.
"""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from pyro_animacy.criticism.contenders import BEST_OF, Ranking
from pyro_animacy.criticism.elpd import compare_elpd
from pyro_animacy.criticism.section import Finding, Grade, Table
from pyro_animacy.criticism.style import (
    BODY_COLOURS,
    BODY_MARKERS,
    QUIET,
    WIDTH,
    png,
    shorten,
    styled,
)
from pyro_animacy.criticism.wording import (
    brief,
    nats,
    number,
    percent,
    seconds,
    tick,
    with_error,
)
from pyro_animacy.errors import how_many
from pyro_animacy.infer.checkpoint import write_atomically

CLEAR = 2.0  # standard errors from which a difference is more than chance
SMALL = 4.0  # nats up to which a difference is small whatever its error (Sivula et al. 2020)
FEW_UNITS = 10  # below this, standard errors are rough
NAME = 22  # characters of a contender's name in a figure
MANY = 11  # contenders; of more, the best may be best by chance
TITLES = {
    "ADE": "mean up to then (ADE)",
    "FDE": "at that time (FDE)",
    "minADE": f"closest of {BEST_OF}: minADE",
    "minFDE": f"closest of {BEST_OF}: minFDE",
}


def plot_ranking(table: pd.DataFrame, runs: Sequence[str] = ()) -> Figure:
    """How far each contender is below the best, in nats per step, with twice the paired error.

    arviz_plots' ``plot_compare`` shows each contender's own error, which is mostly that of units
    hard for all; here the bar is that of the difference.

    Args:
        table: From `compare_elpd`.
        runs: Names to show in colour; the others are baselines, in grey.
    """
    with styled():
        figure = Figure(figsize=(WIDTH, 0.9 + 0.32 * max(2, len(table))), layout="constrained")
        axis = figure.subplots()
        for row, (name, line) in enumerate(table.iloc[::-1].iterrows()):
            below, error = -line["diff_per_step"], 2 * line["dse_per_step"]
            own = name in runs
            axis.errorbar(
                below, row, xerr=error if error > 0 else None, fmt="D" if own else "o",
                color=BODY_COLOURS[1] if own else QUIET,
            )  # fmt: skip
            best = line["rank"] == 0
            text = nats(line["elpd_per_step"]) if best else _difference(line)
            axis.annotate(
                text, (below, row), xytext=(0, 6), textcoords="offset points",
                ha="right" if best else "center", fontweight="bold" if best else "normal",
                fontsize=8,
            )  # fmt: skip
        axis.axvline(0, color=QUIET, lw=0.8, ls=":")
        axis.set_yticks(range(len(table)), [shorten(str(name), NAME) for name in table.index[::-1]])
        axis.set_ylim(-0.5, len(table) - 0.3)
        axis.margins(x=0.16)
        axis.grid(axis="y", visible=False)
        axis.xaxis.set_major_locator(MaxNLocator(4))
        axis.xaxis.set_major_formatter(tick)
        axis.set_xlabel(
            "log density relative to the best (nats per step)\n± standard error; bar: two of them"
        )
    return figure


def _difference(line: pd.Series) -> str:
    """How far a contender is from the best, and the standard error where there is one."""
    below, error = -line["diff_per_step"], line["dse_per_step"]
    return with_error(below, error) if error > 0 else nats(below)


def plot_forecasts(forecasts: pd.DataFrame, runs: Sequence[str], units: str) -> Figure:
    """Displacement errors by horizon, a panel a measure, a line a contender.

    Args:
        forecasts: Of a `Ranking`.
        runs: Names of the runs, in colour; baselines are grey.
        units: Of positions.
    """
    measures = [c for c in forecasts.columns if c not in ("contender", "seconds")]
    with styled():
        figure = Figure(figsize=(WIDTH, 4.4), layout="constrained")
        grid: np.ndarray = figure.subplots(2, 2, sharex=True)
        for axis, measure in zip(grid.flat, measures, strict=True):
            _forecast_panel(axis, forecasts, measure, runs)
        for axis in grid[:, 0]:
            axis.set_ylabel(f"error ({units})")
        for axis in grid[1]:
            axis.set_xlabel("seconds ahead")
            axis.set_xticks(sorted(forecasts["seconds"].unique()))
            axis.xaxis.set_major_formatter(lambda s, _: brief(s))
        handles, labels = grid[0, 0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=2, handlelength=2)
    return figure


def _forecast_panel(axis: Axes, forecasts: pd.DataFrame, measure: str, runs: Sequence[str]) -> None:
    """One measure of every contender."""
    baselines = 0
    for name, rows in forecasts.groupby("contender", sort=False):
        if name in runs:
            i = list(runs).index(str(name))
            look: dict[str, Any] = {"color": BODY_COLOURS[(1 - i) % len(BODY_COLOURS)], "ls": "-",
                    "marker": BODY_MARKERS[i % len(BODY_MARKERS)]}  # fmt: skip
        else:
            look = {"color": QUIET, "ls": ("--", ":")[baselines % 2], "marker": "x+"[baselines % 2]}
            baselines += 1
        axis.plot(rows["seconds"], rows[measure], ms=5, label=shorten(str(name), NAME), **look)
    axis.set_title(TITLES[measure.removesuffix(f"_{BEST_OF}")], loc="left")
    axis.set_ylim(bottom=0)


LEGEND = (
    "log density: of each next displacement of all bodies, in nats per step; more is better, and "
    "one nat is a factor of 2.7",
    "error: standard error of the difference from the best; a difference under twice that may be "
    "chance",
    "weight: share in the mixture of all contenders that predicts best",
    "ADE, FDE: mean distance of the forecast from the recorded path up to, and at, so many seconds "
    "ahead; minADE, minFDE: of the closest of 20 draws; less is better. The baselines go on "
    "without walls",
)


def findings(ranking: Ranking) -> list[Finding]:
    """What the ranking says, in sentences: log densities, forecasts, and what to trust."""
    found = [_against_baselines(ranking), *_between_runs(ranking)]
    if len(ranking.forecasts):
        found.append(_forecast_finding(ranking))
    return found + _reliability(ranking)


def _tables(ranking: Ranking) -> list[Table]:
    """The tables of a ranking as text."""
    title = "Held-out log density, nats per step of all bodies"
    tables = [_ranking_table(ranking.table, title)]
    if ranking.future is not None:
        title = (
            "Leave-future-out: refitted before each stretch of time and scored on it, nats per step"
        )
        tables.append(_ranking_table(ranking.future, title))
    if len(ranking.forecasts):
        rows = [[str(line.iloc[0]), brief(line.iloc[1]), *map(number, line.iloc[2:])]
                for _, line in ranking.forecasts.iterrows()]  # fmt: skip
        head = ["contender", "seconds", *ranking.forecasts.columns[2:]]
        tables.append(Table(f"Displacement errors of forecasts ({ranking.units})", head, rows))
    return tables


def _ranking_table(table: pd.DataFrame, caption: str) -> Table:
    rows = [[str(name), nats(line["elpd_per_step"]), number(line["diff_per_step"]),
             number(line["dse_per_step"]), f"{line['weight']:.2f}"]
            for name, line in table.iterrows()]  # fmt: skip
    return Table(caption, ["contender", "log density", "below the best", "error", "weight"], rows)


def _pair(ranking: Ranking, one: str, other: str) -> tuple[float, float, bool]:
    """How far ``one`` is above ``other`` per step, its standard error, and whether clearly."""
    worse = compare_elpd({name: ranking.elpds[name] for name in (one, other)}).iloc[1]
    sign = 1 if worse.name == other else -1
    clear = worse["elpd_diff"] > max(CLEAR * worse["dse"], SMALL)  # false where dse is NaN
    return sign * worse["diff_per_step"], worse["dse_per_step"], bool(clear)


def _said(gain: float, error: float) -> str:
    if np.isnan(error):
        return f"{number(abs(gain))} nats per step, of one stretch of time, so it may be chance"
    return f"{number(abs(gain))} nats per step (standard error {number(error)})"


def _against_baselines(ranking: Ranking) -> Finding:
    """The best run against the best baseline: which is better, and whether clearly."""
    order = [str(name) for name in ranking.table.index]
    run = next(name for name in order if name in ranking.runs)
    rival = next(name for name in order if name not in ranking.runs)
    gain, error, clear = _pair(ranking, run, rival)
    if np.isnan(error):
        return Finding("undefined", (
            f"{run} is {number(abs(gain))} nats per step {'above' if gain > 0 else 'below'} the "
            f"best baseline, {rival}; there is one stretch of time, so nothing says whether that "
            "is chance."
        ))  # fmt: skip
    if not clear:
        return Finding("near", (
            f"{run} cannot be told apart from the best baseline, {rival}: the difference is "
            f"{_said(gain, error)}."
        ), "Fit for longer, or hold out more recordings to see a smaller difference.")  # fmt: skip
    if gain > 0:
        sentence = f"{run} is clearly better than the best baseline, {rival}, by "
        return Finding("right", f"{sentence}{_said(gain, error)}.")
    return Finding("wrong", (
        f"{run} is clearly worse than the baseline {rival}, by {_said(gain, error)}."
    ), _mended(run in ranking.squared))  # fmt: skip


def _mended(squared: bool) -> str:
    """What to try where a run is worse than a baseline."""
    policy = "with --model.likelihood policy, or " if squared else ""
    return f"Fit {policy}for longer (--train.steps); look at the calibration."


def _between_runs(ranking: Ranking) -> list[Finding]:
    """The best run against each of the others."""
    best, *others = [str(name) for name in ranking.table.index if name in ranking.runs]
    found = []
    for other in others:
        gain, error, clear = _pair(ranking, best, other)
        if clear:
            grade: Grade = "right"
            sentence = f"{best} predicts clearly better than {other}, by {_said(gain, error)}."
        else:
            grade = "undefined"
            sentence = f"{best} and {other} cannot be told apart: they differ by "
            sentence += f"{_said(gain, error)}."
        found.append(Finding(grade, sentence))
    return found


def _forecast_finding(ranking: Ranking) -> Finding:
    """Whether a run is closer than every baseline, by the mean of the draws, at each horizon.

    Right: by 5 % or more at every horizon; wrong: further off by 5 % or more at the longest. Of
    fewer than 10 windows nothing is said.
    """
    error = ranking.forecasts.pivot(index="seconds", columns="contender", values="FDE")
    run = error[list(ranking.runs)].min(axis=1)
    rival = error.drop(columns=list(ranking.runs)).min(axis=1)
    last = float(error.index[-1])
    if not (np.isfinite(run).all() and (rival > 0).all()):
        return Finding("undefined", f"Forecasts {seconds(last)} ahead cannot be compared.")
    ratio = run / rival
    worse = [seconds(s) for s in error.index[ratio > 1]]
    sentence = (
        f"Forecasts of the closest run are {number(run[last])} {ranking.units} off after "
        f"{seconds(last)}, those of the closest baseline {number(rival[last])}, on average of "
        f"{how_many(ranking.windows, 'window')}"
    )
    sentence += f"; the baseline is closer after {', '.join(worse)}." if worse else "."
    if ranking.windows < FEW_UNITS:
        return Finding("undefined", f"{sentence[:-1]}: too few to tell from chance.")
    if ratio[last] > 1.05:
        return Finding(
            "wrong",
            sentence,
            "Train on longer windows (--train.window) "
            "in closed loop (--model.roll_out closed_loop), if it was not.",
        )
    return Finding("right" if (ratio <= 0.95).all() else "near", sentence)


def _reliability(ranking: Ranking) -> list[Finding]:
    """Whether the densities and their errors can be trusted."""
    found = []
    n = len(ranking.pointwise)
    if 1 < n < FEW_UNITS:
        found.append(Finding("undefined", (
            f"The errors are rough: they come from {n} recordings or stretches of time."
        ), "Hold out more, or cut in time more often by leave-future-out."))  # fmt: skip
    for name, one in ranking.elpds.items():
        if one.warning and one.pareto_k is not None:
            bad = int((one.pareto_k > one.good_k).sum())
            error = one.elpd_i.attrs["monte_carlo_error"] / one.elpd_i["steps"].sum().item()
            found.append(Finding("near", (
                f"The density of {name} is estimated poorly in {bad} of {how_many(n, 'stretch')} "
                "of time, where the largest importance weights dominate (k-hat above "
                f"{one.good_k:.2f} in more than {percent(0.05)} of steps): the random error is at "
                f"least {number(error)} nats per step, and it is more likely too low than too high."
            ), "More draws of the latent variable."))  # fmt: skip
    found += [Finding("undefined", (
        f"{name} was trained on the squared error with a fixed scale, not on the density that "
        "ranks it here: its forecasts are the fairer measure of it."
    )) for name in ranking.squared]  # fmt: skip
    if len(ranking.elpds) > MANY:
        found.append(Finding("undefined", (
            f"Of {len(ranking.elpds)} contenders the best may be best by chance."
        )))  # fmt: skip
    return found


def ranking_text(ranking: Ranking) -> str:
    """The tables for people to read in a terminal."""
    lines = []
    for table in _tables(ranking):
        widths = [max(len(str(row[i])) for row in (table.head, *table.rows))
                  for i in range(len(table.head))]  # fmt: skip
        lines.append(table.caption)
        for row in (table.head, *table.rows):
            cells = [str(cell).rjust(width) for cell, width in zip(row, widths, strict=True)]
            lines.append("  " + "  ".join([str(row[0]).ljust(widths[0]), *cells[1:]]))
    lines += [*LEGEND, ""]
    for finding in findings(ranking):
        attempt = f" Try: {finding.attempt}" if finding.attempt else ""
        lines.append(f"{finding.sentence}{attempt}")
    return "\n".join(lines)


def save_ranking(ranking: Ranking, out: str | Path) -> list[Path]:
    """Write the tables and figures of a ranking into a folder.

    Args:
        ranking: From `compare_runs`.
        out: The folder; made where it is missing. ``compare.csv`` (the ranking), ``pointwise.csv``
            (a row a unit), ``forecasts.csv``, ``compare.png``, ``forecasts.png`` and, where it was
            asked for, ``future.csv``.

    Returns:
        The files written.

    Raises:
        RunError: If they cannot be written.
    """
    folder = Path(out)
    tables = {"compare": ranking.table, "pointwise": ranking.pointwise,
              "forecasts": ranking.forecasts.set_index("contender")}  # fmt: skip
    figures = {"compare": plot_ranking(ranking.table, ranking.runs)}
    if len(ranking.forecasts):
        figures["forecasts"] = plot_forecasts(ranking.forecasts, ranking.runs, ranking.units)
    if ranking.future is not None:
        tables["future"] = ranking.future
    files = {f"{name}.csv": partial(_write_table, table) for name, table in tables.items()}
    files |= {f"{name}.png": partial(_write_figure, figure) for name, figure in figures.items()}
    for name, write in files.items():
        write_atomically(folder / name, write)
    return [folder / name for name in files]


def _write_table(table: pd.DataFrame, path: Path) -> None:
    table.to_csv(path, index_label=str(table.index.name or "contender"))


def _write_figure(figure: Figure, path: Path) -> None:
    path.write_bytes(png(figure))
