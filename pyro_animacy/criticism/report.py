"""The report of a run: one HTML file with everything in it, to read, print or send.

It asks for nothing outside itself and runs no script: images are embedded, the page follows the
reader's light or dark setting, and whatever a data file called its bodies is escaped.
"""

from __future__ import annotations

import itertools
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import xarray as xr
from tqdm import tqdm

from pyro_animacy.criticism import plots
from pyro_animacy.criticism.animation import animate
from pyro_animacy.criticism.comparison import (
    DIMS,
    Comparison,
    align,
    compare,
    data_units,
    each_draw,
    share_lost,
)
from pyro_animacy.criticism.section import Image, embed, picture
from pyro_animacy.criticism.statistics import Statistic
from pyro_animacy.criticism.verdicts import (
    FEW_DRAWS,
    NEAR,
    RIGHT,
    Verdict,
    baseline_name,
    finite_baselines,
    in_short,
    judge,
    nats,
    number,
    probability,
    score_sentence,
)
from pyro_animacy.errors import RunError

SHOWN, PANELS = 4, 6  # trajectories shown in motion, panels a statistic
FOLDER = Path(__file__).parent


@dataclass(frozen=True)
class Row:
    """A line of the table of posterior predictive checks; `image` where it is drawn too."""

    comparison: Comparison
    verdict: Verdict
    image: Image | None


@dataclass(frozen=True)
class Check:
    """A statistic with its rows, and how many of its panels are left out for room."""

    statistic: Statistic
    rows: tuple[Row, ...]
    left_out: int


def write_report(
    path: Path | str,
    *,
    title: str,
    observed: xr.Dataset,
    generated: xr.DataTree,
    summary: Mapping[str, Any],
    metrics: Sequence[Mapping[str, Any]],
    reconstructed: xr.DataTree | None = None,
) -> Path:
    """Write the report of a run.

    Args:
        path: the HTML file; replaced only when the new one is complete.
        title: heading of the page.
        observed: held-out recording in the schema, `position` (trajectory, time, body, space).
        generated: draws, `posterior_predictive/position` (chain, draw, trajectory, time, body,
            space), of trajectories and frames in `observed`.
        summary: the run's figures: `heldout_nats_per_step`, `baselines`, `model`, `data`, ...; the
            sections of those that are absent say so.
        metrics: the training log, rows with `step` and the terms of the loss.
        reconstructed: draws of the model following the recording, alike.

    Returns:
        The path written.

    Raises:
        RunError: the draws do not belong to the recording, or the file cannot be written.
    """
    path = Path(path)
    observed, draws = align(observed, generated)
    followed = None if reconstructed is None else align(observed, reconstructed)[1]
    shown = plots.most_movement(observed, SHOWN)
    with tqdm(total=4 + len(shown), desc="report", unit="part") as bar:
        comparisons = compare(observed, draws)
        bar.update()
        checks = list(_checks(comparisons))
        bar.update()
        animations = []
        for name in shown:
            animations.append(_animation(observed, draws, name))
            bar.update()
        paths = _paths(observed, draws, shown, followed)
        bar.update()
        page = _template().render(
            title=title,
            in_short=in_short(comparisons, summary, metrics, share_lost(observed, draws)),
            facts=_facts(observed, draws, summary),
            animations=animations,
            paths=paths,
            followed=[] if followed is None else _following(observed, followed),
            units=data_units(observed),
            score=_score(summary),
            checks=checks,
            resolution=_resolution(observed),
            draws=len(comparisons[0].generated) if comparisons else 0,
            few_draws=FEW_DRAWS,
            thresholds=(RIGHT, NEAR),
            training=_training(metrics),
            settings=_settings(summary),
        )
        _write(path, page)
        bar.update()
    return path


def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(FOLDER),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["number"] = number
    environment.filters["nats"] = nats
    environment.filters["probability"] = probability
    return environment.get_template("report.html.jinja")


def _write(path: Path, page: str) -> None:
    """Write beside `path`, then rename: a report that is there is always whole."""
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(
            "w", encoding="utf-8", dir=path.parent, prefix=f".{path.name}.", delete=False
        ) as file:
            temporary = file.name
            file.write(page)
        os.chmod(temporary, 0o644)  # a temporary file is the owner's alone; a report is for sending
        os.replace(temporary, path)
    except OSError as error:
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)
        raise RunError(
            f"{path}: the report cannot be written there ({error.strerror}): choose another --out"
        ) from error


def _facts(
    observed: xr.Dataset, draws: xr.DataArray, summary: Mapping[str, Any]
) -> list[tuple[str, str]]:
    """The line under the title: what was compared with what."""
    count = draws.sizes["chain"] * draws.sizes["draw"]
    bodies = [plots.shorten(str(body), 18) for body in observed["body"].values]
    more = f" and {len(bodies) - 8} more" if len(bodies) > 8 else ""
    facts = [
        ("held-out windows", f"{observed.sizes['trajectory']:,}"),
        ("frames each", f"up to {observed.sizes['time']:,} at {observed.attrs['fps']:g} Hz"),
        ("bodies", ", ".join(bodies[:8]) + more),
        ("draws of each", f"{count:,}"),
    ]
    if summary.get("parameters") is not None:
        facts.append(("parameters", f"{summary['parameters']:,}"))
    if summary.get("train_seconds") is not None:
        steps = f" ({summary['steps']:,} steps)" if summary.get("steps") is not None else ""
        facts.append(("training", f"{number(summary['train_seconds'])} s{steps}"))
    return facts


def _checks(comparisons: Sequence[Comparison]) -> Iterator[Check]:
    """The comparisons by statistic; of many bodies, the worst PANELS are drawn."""
    for _, group in itertools.groupby(comparisons, key=lambda c: c.statistic.name):
        members = list(group)
        worst = sorted(members, key=lambda c: -np.nan_to_num(c.effect, nan=-1, posinf=1e9))
        drawn = {c.body for c in worst[:PANELS] if c.observed.size or _has_values(c)}
        rows = tuple(
            Row(c, judge(c), _statistic_image(c) if c.body in drawn else None) for c in members
        )
        yield Check(members[0].statistic, rows, len(members) - len(drawn))


def _has_values(comparison: Comparison) -> bool:
    return any(values.size for values in comparison.generated)


def _statistic_image(comparison: Comparison) -> Image:
    alt = (
        f"Distribution of {comparison.statistic.name} of {comparison.body}: recorded mean "
        f"{number(comparison.observed_mean)} {comparison.units}, generated "
        f"{number(comparison.generated_mean)} {comparison.units}."
    )
    return picture(plots.plot_statistic(comparison), alt)


def _animation(observed: xr.Dataset, draws: xr.DataArray, name: str) -> tuple[str, Image]:
    label = ""
    if "label" in observed.coords:
        label = f" ({observed['label'].sel(trajectory=name).item()})"
    alt = f"Animation of {name}: the recorded bodies on the left, a generated run on the right."
    return f"{name}{label}", embed(animate(observed, draws, name), "gif", alt)


def _paths(
    observed: xr.Dataset, draws: xr.DataArray, shown: list[str], followed: xr.DataArray | None
) -> Image | None:
    if not shown:
        return None
    figure = plots.plot_paths(observed, draws, shown, reconstructed=followed)
    alt = f"Paths of the bodies in {len(shown)} recordings, beside the paths the model generates."
    return picture(figure, alt)


def _following(observed: xr.Dataset, followed: xr.DataArray) -> list[tuple[str, float]]:
    """Root mean square distance of the reconstruction from the recording, of each body."""
    recorded = observed["position"].transpose(*DIMS).values
    total, count = np.zeros(recorded.shape[2]), np.zeros(recorded.shape[2])
    for position in each_draw(observed, followed):
        square = ((position - recorded) ** 2).sum(-1)
        total += np.nansum(square, axis=(0, 1))
        count += np.isfinite(square).sum((0, 1))
    error = np.sqrt(total / np.where(count > 0, count, np.nan))
    return list(zip(map(str, observed["body"].values), error.tolist(), strict=True))


def _score(summary: Mapping[str, Any]) -> dict[str, Any]:
    """Figure and table of the held-out score; no figure where nothing was scored."""
    own, baselines = summary.get("heldout_nats_per_step"), finite_baselines(summary)
    sentence = score_sentence(summary)[1]
    image = None
    if own is not None and baselines:
        image = picture(plots.plot_scores(summary), sentence)
    rows = [
        (baseline_name(key), value, None if own is None else own - value)
        for key, value in baselines.items()
    ]
    return {
        "image": image,
        "own": own,
        "elbo": summary.get("heldout_elbo_per_step"),
        "error": summary.get("heldout_standard_error"),
        "rows": rows,
        "sentence": sentence,
        "density": _sentence(str(summary.get("score_density") or "")),
    }


def _sentence(text: str) -> str:
    """Words as a sentence: a capital first, a full stop last."""
    return f"{text[:1].upper()}{text[1:].rstrip('.')}." if text else ""


def _training(metrics: Sequence[Mapping[str, Any]]) -> Image | None:
    terms = plots.terms_shown(metrics)
    if not terms:
        return None
    last = {key.replace("_", " "): values[-1] for key, (_, values) in terms.items()}
    ends = [f"{name} ends at {number(value)}" for name, value in last.items()]
    alt = f"Training curves: {'; '.join(ends)}."
    return picture(plots.plot_loss_terms(metrics), alt)


def _resolution(observed: xr.Dataset) -> str | None:
    """The step that draws were rounded to, in words; None where it is none to speak of."""
    if "resolution" not in observed.coords:
        return None
    steps = observed["resolution"].values.astype(float)
    least = 1e-6 * np.nanstd(observed["position"].values)  # finer than that is only digits
    steps = steps[np.isfinite(steps) & (steps > least)]
    if not steps.size:
        return None
    low, high = f"{steps.min():.4g}", f"{steps.max():.4g}"
    return f"{low if low == high else f'{low} to {high}'} {data_units(observed)}"


def _settings(summary: Mapping[str, Any]) -> list[tuple[str, list[tuple[str, str]]]]:
    """Everything else the summary holds, as tables: model, data, run."""
    told = {"baselines", "score_density", "model", "data"}
    tables = [(name, _flat(summary[name])) for name in ("model", "data") if summary.get(name)]
    rest = {key: value for key, value in summary.items() if key not in told}
    return [(name, rows) for name, rows in [*tables, ("run", _flat(rest))] if rows]


def _flat(settings: Any, prefix: str = "") -> list[tuple[str, str]]:
    """Nested settings as (dotted name, value) lines."""
    if not isinstance(settings, Mapping):
        return [(prefix or "value", _said(settings))]
    rows = []
    for key, value in settings.items():
        rows += _flat(value, f"{prefix}.{key}" if prefix else str(key))
    return rows


def _said(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, (list, tuple)):
        shown = ", ".join(_said(item) for item in value[:12])
        return f"{shown}, and {len(value) - 12} more" if len(value) > 12 else shown
    return str(value)
