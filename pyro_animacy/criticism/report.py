"""The report of a run: one HTML file with everything in it, to read, print or send.

It asks for nothing outside itself and runs no script: images are embedded, the page follows the
reader's light or dark setting, and whatever a data file called its bodies is escaped.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import jinja2
import numpy as np
import xarray as xr
from markupsafe import Markup, escape

from pyro_animacy.criticism import plots
from pyro_animacy.criticism.aligned import DIMS, align, data_units, each_draw, share_lost
from pyro_animacy.criticism.alike import counted_as, groups
from pyro_animacy.criticism.animation import animate
from pyro_animacy.criticism.checks import chance, checks
from pyro_animacy.criticism.comparison import compare
from pyro_animacy.criticism.in_short import in_short
from pyro_animacy.criticism.judgement import FEW_DRAWS, NEAR, NEAR_MEAN, RIGHT, TAIL
from pyro_animacy.criticism.section import (
    Finding,
    Image,
    Panel,
    Section,
    Table,
    embed,
    picture,
)
from pyro_animacy.criticism.style import shorten
from pyro_animacy.criticism.verdicts import baseline_name, finite_baselines, score_grade
from pyro_animacy.criticism.wording import (
    body_name,
    nats,
    number,
    per_unit,
    percent,
    probability,
    seconds,
    with_error,
)
from pyro_animacy.errors import how_many
from pyro_animacy.infer.checkpoint import write_atomically
from pyro_animacy.progress import tqdm

SHOWN = 4  # trajectories shown in motion
FOLDER = Path(__file__).parent
Labelled = TypeVar("Labelled", xr.Dataset, xr.DataArray)
GRADES = {"right": "Right", "near": "Close", "wrong": "Wrong", "undefined": "Not known"}


def write_report(
    path: Path | str,
    *,
    title: str,
    observed: xr.Dataset,
    generated: xr.DataTree,
    summary: Mapping[str, Any],
    metrics: Sequence[Mapping[str, Any]],
    reconstructed: xr.DataTree | None = None,
    sections: Sequence[Section] = (),
    progress: bool = True,
) -> Path:
    """Write the report of a run.

    Args:
        path: the HTML file; replaced only when the new one is complete.
        title: heading of the page.
        observed: held-out recording in the schema, `position` (trajectory, time, body, space).
        generated: draws, `posterior_predictive/position` (chain, draw, trajectory, time, body,
            space), of trajectories and frames in `observed`.
        summary: the run's figures: `heldout_nats_per_step`, `baselines`, ..., and options: `model`,
            `train`, `data`; the sections of those that are absent say so.
        metrics: the training log, rows with `step` and the terms of the loss.
        reconstructed: draws of the model following the recording, alike.
        sections: of other instruments, in their order; their findings are merged into the summary.
        progress: show a progress bar.

    Returns:
        The path written.

    Raises:
        RunError: the draws do not belong to the recording, or the file cannot be written.
    """
    path = Path(path)
    aligned, draws = align(observed, generated)
    followed = None if reconstructed is None else align(aligned, reconstructed)[1]
    followed = None if followed is None else with_named_bodies(followed)
    observed, draws = with_named_bodies(aligned), with_named_bodies(draws)
    shown = plots.most_movement(observed, SHOWN)
    total = 4 + len(shown)
    with tqdm(total=total, desc="report", unit="part", disable=not progress, delay=1) as bar:
        comparisons = compare(observed, draws, progress=False)
        bar.update()
        checked = list(checks(comparisons))
        bar.update()
        animations = []
        for name in shown:
            animations.append(_animation(observed, draws, name))
            bar.update()
        paths = _paths(observed, draws, shown, followed)
        bar.update()
        page = _template().render(
            title=title,
            subject="a model of moving bodies has learned their motion",
            motion=True,
            places=len({*counted_as(observed)}) < observed.sizes["body"],
            in_short=in_short(comparisons, summary, metrics, share_lost(observed, draws), sections),
            facts=_facts(observed, draws, summary),
            animations=animations,
            paths=paths,
            following=[] if followed is None else [_following(observed, followed)],
            sections=[_score(summary), *sections],
            checks=checked,
            fps=float(observed.attrs["fps"]),
            chance=chance(comparisons),
            resolution=_resolution(observed),
            draws=len(comparisons[0].generated) if comparisons else 0,
            few_draws=FEW_DRAWS,
            limits={"right": RIGHT, "near": NEAR, "tail": TAIL, "mean": percent(NEAR_MEAN)},
            training=_training(
                metrics,
                "nats per step and the model's own unit of length",
                "frames kept out of training, in data units",
            ),
            settings=_settings(summary),
        )
        write_atomically(path, lambda to: to.write_text(page, encoding="utf-8"))
        bar.update()
    return path


def write_sections(
    path: Path | str,
    *,
    title: str,
    subject: str,
    facts: Sequence[tuple[str, str]],
    sections: Sequence[Section],
    summary: Mapping[str, Any],
    metrics: Sequence[Mapping[str, Any]],
) -> Path:
    """Write the report of a run that is not of moving bodies: its sections, training, settings.

    Args:
        path: the HTML file; replaced only when the new one is complete.
        title: heading of the page.
        subject: what the page says how well; a clause, such as "a model has learned images".
        facts: names and values of the line under the title.
        sections: in their order; their findings make up the summary.
        summary: the run's figures, for the settings.
        metrics: the training log, rows with `step` and the terms of the loss.

    Returns:
        The path written.

    Raises:
        RunError: the file cannot be written.
    """
    told = in_short(
        [], {name: summary.get(name) for name in ("train", "steps")}, metrics, 0.0, sections
    )
    findings = [finding for section in sections for finding in section.findings]
    unknown = [finding for finding in findings if finding.grade == "undefined"]
    if all(finding.grade != "wrong" for finding in findings):
        said = "Nothing that these figures can see"
        said += f", but {len(unknown)} of {len(findings)} findings are not known" if unknown else ""
        told = dataclasses.replace(told, wrong=(f"{said}.",))
    page = _template().render(
        title=title,
        subject=subject,
        motion=False,
        in_short=told,
        facts=facts,
        sections=sections,
        training=_training(metrics, "nats per frame", "episodes kept out of training"),
        settings=_settings(summary),
    )
    path = Path(path)
    write_atomically(path, lambda to: to.write_text(page, encoding="utf-8"))
    return path


def with_named_bodies(data: Labelled) -> Labelled:
    """Bodies that a file only numbers, "0", are called "body 0", unless another is."""
    names = [str(name) for name in data["body"].values]
    said = {name: body_name(name) for name in names if body_name(name) not in names}
    return data.assign_coords(body=[said.get(n, n) for n in names])


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
    environment.filters["options"] = _options
    environment.filters["per_unit"] = per_unit
    environment.globals["words"] = GRADES
    return environment.get_template("report.html.jinja")


def _options(text: str) -> Markup:
    """Text whose options of the command line are set as code, which does not break in a line."""
    return Markup(re.sub(r"(--[\w.]+)", r"<code>\1</code>", str(escape(text))))


def _facts(
    observed: xr.Dataset, draws: xr.DataArray, summary: Mapping[str, Any]
) -> list[tuple[str, str]]:
    """The line under the title: what was compared with what."""
    count = draws.sizes["chain"] * draws.sizes["draw"]
    bodies = [shorten(str(body), 18) for body in observed["body"].values]
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
        steps = how_many(summary["steps"], "step") if summary.get("steps") is not None else ""
        if steps and summary.get("batch_size") is not None:
            steps += f" of {how_many(summary['batch_size'], 'window')}"
        steps = f" ({steps})" if steps else ""
        facts.append(("training", f"{seconds(summary['train_seconds'])}{steps}"))
    if stopped := summary.get("stopped"):
        facts.append(("training", f"stopped at step {stopped['step']:,} of {stopped['of']:,}"))
    return facts


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
    recordings = how_many(len(shown), "recording")
    alt = f"Paths of the bodies in {recordings}, beside the paths the model generates."
    return picture(figure, alt)


def _following(observed: xr.Dataset, followed: xr.DataArray) -> Table:
    """Root mean square distance of the reconstruction from the recording, of each body."""
    recorded = observed["position"].transpose(*DIMS).values
    total, count = np.zeros(recorded.shape[2]), np.zeros(recorded.shape[2])
    for position in each_draw(observed, followed):
        square = ((position - recorded) ** 2).sum(-1)
        total += np.nansum(square, axis=(0, 1))
        count += np.isfinite(square).sum((0, 1))
    of = groups(counted_as(observed))
    total, count = (np.array([x[bodies].sum() for bodies in of.values()]) for x in (total, count))
    error = np.sqrt(total / np.where(count > 0, count, np.nan))
    names = list(of)
    return Table(
        "Following the recording: distance of the reconstruction from it",
        ("body", f"root mean square ({data_units(observed)})"),
        [(name, number(value)) for name, value in zip(names, error.tolist(), strict=True)],
    )


def _score(summary: Mapping[str, Any]) -> Section:
    """The held-out score beside the baselines; no figure where nothing was scored."""
    own, baselines = summary.get("heldout_nats_per_step"), finite_baselines(summary)
    grade, sentence = score_grade(summary)
    error, elbo = summary.get("heldout_standard_error"), summary.get("heldout_elbo_per_step")
    if own is None and not baselines:
        return Section("score", "Score on held-out frames", "", [Finding(grade, sentence)])
    panels = []
    if own is not None and baselines:
        caption = "Held-out score of the model and the baselines; more is better."
        if summary.get("gain_standard_error") is not None:
            caption += (
                " Bar: two standard errors of the difference from the best baseline; if it reaches "
                "that baseline, the two cannot be told apart."
            )
        panels.append(Panel(picture(plots.plot_scores(summary), sentence), caption))
    said = nats(own) if own is None or error is None else with_error(own, error)
    rows = [("this model", said, "")]
    for key, value in baselines.items():
        rows.append((baseline_name(key), nats(value), "" if own is None else nats(own - value)))
    if elbo is not None:
        rows.append(("this model's lower bound (ELBO)", nats(elbo), ""))
    caption = "Log density of the next displacement, in nats per step"
    caption += " (± standard error)" if error is not None else ""
    density = _sentence(str(summary.get("score_density") or ""))
    density += " " if density else ""
    return Section(
        key="score",
        title="Score on held-out frames",
        intro="How probable does the model find what happened next? At each frame that was held "
        "out, it is asked for the density of the next step, before it sees it. Baselines are "
        "simple rules that any model should beat. A nat per step more means that the model gave "
        "what happened next 2.7 times the density.",
        findings=[Finding(grade, sentence)],
        panels=panels,
        tables=[Table(caption, ("", "nats per step", "this model is ahead by"), rows)],
        note="Every score is of the same frames, in the same units; differences mean something, "
        f"the numbers themselves depend on the units. {density}The model's score is a lower "
        "bound by importance sampling; its ELBO is the looser bound of a single sample.",
    )


def _sentence(text: str) -> str:
    """Words as a sentence: a capital first, a full stop last."""
    return f"{text[:1].upper()}{text[1:].rstrip('.')}." if text else ""


def _training(metrics: Sequence[Mapping[str, Any]], units: str, validation: str) -> Section:
    """The curves of a run's log, in ``units``; ``validation`` is what those scores are of."""
    terms = plots.terms_shown(metrics)
    if not terms:
        return Section("training", "Training", "No training log was given.")
    last = {key.replace("_", " "): values[-1] for key, (_, values) in terms.items()}
    ends = [f"{name} ends at {number(value)}" for name, value in last.items()]
    scored = "validation_nats_per_step" in terms
    of = f" The validation score is of {validation}." if scored else ""
    image = picture(plots.plot_loss_terms(metrics), f"Training curves: {'; '.join(ends)}.")
    return Section(
        key="training",
        title="Training",
        intro="How each term of the loss fell, or the score rose, during training. One hopes for "
        "curves that have levelled off, and a validation score that does not fall at the end.",
        panels=[Panel(image, "Terms of the loss as trained.")],
        note=f"In {units}.{of} The spikes at the start may leave a panel.",
    )


def _resolution(observed: xr.Dataset) -> str | None:
    """The step that draws were rounded to, in words; None where it is none to speak of."""
    if "resolution" not in observed.coords:
        return None
    if not np.isfinite(observed["position"].values).any():
        return None
    steps = observed["resolution"].values.astype(float)
    least = 1e-6 * np.nanstd(observed["position"].values)  # finer than that is only digits
    steps = steps[np.isfinite(steps) & (steps > least)]
    if not steps.size:
        return None
    low, high = f"{steps.min():.4g}", f"{steps.max():.4g}"
    return f"{low if low == high else f'{low} to {high}'} {data_units(observed)}"


def _settings(summary: Mapping[str, Any]) -> list[tuple[str, list[tuple[str, str]]]]:
    """Everything else the summary holds, as tables: model, training, data, run."""
    told = {"baselines", "score_density", "model", "train", "data"}
    tables = [
        (name, _flat(summary[name])) for name in ("model", "train", "data") if summary.get(name)
    ]
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
    if value is None or isinstance(value, bool):  # as in options
        return "null" if value is None else str(value).lower()
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, (list, tuple)):
        shown = ", ".join(_said(item) for item in value[:12])
        return f"{shown}, and {len(value) - 12} more" if len(value) > 12 else shown
    return str(value)
