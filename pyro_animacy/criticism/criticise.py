"""Criticise a run: generate, compare with the recording, measure, and write the report."""

import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from pyro_animacy.criticism import (
    animacy_plots,
    calibration_section,
    importance_plots,
    latent_plots,
)
from pyro_animacy.criticism.alike import counted_as, pooled
from pyro_animacy.criticism.animacy import FEW_BODIES, score_animacy
from pyro_animacy.criticism.calibration import calibrate
from pyro_animacy.criticism.importance import guide_quality
from pyro_animacy.criticism.latent import latent_use
from pyro_animacy.criticism.report import with_named_bodies, write_report
from pyro_animacy.criticism.section import Finding, Section
from pyro_animacy.criticism.traversal import traversals
from pyro_animacy.criticism.verdicts import doubt
from pyro_animacy.data.schema import pieces
from pyro_animacy.data.stored import Integers
from pyro_animacy.data.windows import begun, consecutive, evenly, of_those_given
from pyro_animacy.errors import AnimacyError, ConfigError, DataError, command_line
from pyro_animacy.infer import checkpoint
from pyro_animacy.infer.predict import predict
from pyro_animacy.infer.run import Run, suited
from pyro_animacy.infer.summary import summarise
from pyro_animacy.progress import tqdm

SECONDS = 8.0  # of each window compared
PARTS = "{l_bar}{bar}| {n_fmt}/{total_fmt} [{elapsed}]"  # of different lengths
STEPS = 2000  # all scored for animacy; where there are more, those of
SCORED = 20  # windows
SLOWER = 4  # a model with a memory is run on from past frames at every step: so many times fewer


def _told(run: Run) -> dict[str, Any]:
    """The summary of a run, with its options."""
    return {**run.summary, "model": run.card.config, "train": run.settings["train"]}


def _stopped(run: Run) -> dict[str, Any]:
    """Of a run whose fit has not ended, how far it came and how it goes on, as `stopped`."""
    file = run.path / checkpoint.TRAINER
    if run.summary or run.checkpoint is not None or not file.is_file():
        return {}
    return {
        "stopped": {
            "step": checkpoint.load_trainer(file)["step"],
            "of": run.config.train.steps,
            "resume": command_line("fit", "--resume", run.path),
        }
    }


def _guide(run: Run, dataset: xr.Dataset, seed: int, progress: bool) -> Section:
    return importance_plots.section(guide_quality(run, dataset, seed=seed, progress=progress))


def _calibration(run: Run, dataset: xr.Dataset, seed: int, progress: bool) -> Section:
    found = calibrate(run, dataset, seed=seed, progress=progress)
    return calibration_section.section(with_named_bodies(pooled(found, counted_as(dataset))))


def _latent(run: Run, dataset: xr.Dataset, seed: int, progress: bool) -> Section:
    use = latent_use(run, dataset, seed=seed, progress=progress)
    return latent_plots.section(use, traversals(run, dataset, use), _told(run))


def _animacy(run: Run, dataset: xr.Dataset, seed: int, progress: bool) -> Section:
    """Trajectories are whole, as of `score`, since an inert body is fitted to each."""
    fewer = _times_fewer(run)
    rows, begin, end = _places(dataset, run, most=max(1, SCORED // fewer))
    observed, length, only = _cut(dataset, rows, begin, end), dataset["length"].to_numpy(), None
    if length.sum() > STEPS // fewer:
        kept, rows = np.unique(rows, return_inverse=True)
        dataset = pieces(dataset, kept, np.zeros_like(kept), length[kept])
        only = np.zeros((len(kept), dataset.sizes["time"]), bool)
        for row, first, last in zip(rows, begin, end, strict=True):
            only[row, first:last] = True
    scores = score_animacy(run, dataset, only=only, seed=seed, progress=progress)
    shown = zip(observed["trajectory"].to_numpy(), rows, begin, end, strict=True)
    courses = {name: scores.isel(trajectory=i, time=slice(b, e)) for name, i, b, e in shown}
    return animacy_plots.section(scores, observed, courses, doubt(run.summary))


def _times_fewer(run: Run) -> int:
    """By how much fewer steps are scored for animacy than of a few bodies without a memory."""
    slower = SLOWER if run.model.remembers else 1
    return slower * max(1, len(run.card.bodies) // FEW_BODIES)


SECTIONS: dict[str, tuple[str, Callable[[Run, xr.Dataset, int, bool], Section]]] = {
    "guide": ("Is the guide good?", _guide),
    "calibration": ("Is the model calibrated?", _calibration),
    "latent": ("Does the latent variable do work?", _latent),
    "animacy": ("How alive does the motion look?", _animacy),
}


def criticise(
    run: Run,
    dataset: xr.Dataset,
    *,
    out: str | Path,
    draws: int = 100,
    most: int = 50,
    frames: int | None = None,
    sections: Sequence[str] = tuple(SECTIONS),
    seed: int = 0,
    new: bool = True,
    progress: bool = True,
) -> Path:
    """Write a report that shows what a fitted model gets right and wrong of recordings.

    The recordings are cut into windows. From the first frames of each, the model generates freely;
    statistics of the generated motion are compared with those recorded.

    Args:
        run: The fitted run.
        dataset: Recordings that the model was not fitted to.
        out: The HTML file to write.
        draws: Motions generated for each window.
        most: Windows at most; of more, this many are taken evenly spaced.
        frames: Frames in a window; by default 8 seconds, or the longest trajectory if shorter.
        sections: Which further instruments to use, of guide, calibration, latent and animacy. One
            that cannot measure these recordings says why in its place.
        seed: Seeds the draws.
        new: Score the model and the baselines on ``dataset``; otherwise the report shows the
            scores that ``summary.json`` holds, of the run's own held-out frames.
        progress: Show a progress bar.

    Returns:
        The path of the report.

    Raises:
        ConfigError: If an option cannot be used.
        DataError: If the recordings do not suit the model.
        RunError: If the report cannot be written.
    """
    if unknown := [name for name in sections if name not in SECTIONS]:
        raise ConfigError(
            f"section {unknown[0]!r} does not exist; choose from {', '.join(SECTIONS)}"
        )
    dataset = suited(run.card, dataset)
    history, bodies = run.card.config["history"], run.card.parts
    dataset = begun(dataset, history, parts=bodies)
    observed = _cut(dataset, *_places(dataset, run, frames=frames, most=most))
    observed = of_those_given(observed, slice(history), bodies)
    source = Path(str(dataset.attrs.get("source") or "recording")).name
    metrics = run.metrics()  # damaged ones fail now, not after minutes
    stopped = _stopped(run)
    parts, start = 3 + len(sections), "criticise: score"
    with tqdm(total=parts, desc=start, disable=not progress, bar_format=PARTS) as bar:
        if new or not run.summary:  # of these recordings, as the sections are
            run = replace(run, summary=summarise(run, dataset, progress=progress))
        bar.update()
        bar.set_description("criticise: motion")
        made = predict(run, observed, mode="generate", draws=draws, seed=seed, progress=progress)
        followed = predict(run, observed, mode="reconstruct", draws=2, seed=seed, progress=progress)
        bar.update()
        found = []
        for name in sections:
            bar.set_description(f"criticise: {name}")
            found.append(_section(name, run, dataset, seed, progress))
            bar.update()
        bar.set_description("criticise: page")
        page = write_report(
            out,
            title=f"{run.name}: {run.card.model} on {source}",
            observed=observed,
            generated=made,
            summary=_told(run) | stopped,
            metrics=metrics,
            reconstructed=followed,
            sections=found,
            progress=progress,
        )
        bar.update()
    return page


def _section(name: str, run: Run, dataset: xr.Dataset, seed: int, progress: bool) -> Section:
    """What an instrument says, or that it can say nothing of these recordings, and why."""
    title, measure = SECTIONS[name]
    try:
        return measure(run, dataset, seed, progress)
    except AnimacyError as error:
        why = f"Nothing can be said of this here: {str(error).rstrip('.')}."
        return Section(name, title, "", [Finding("undefined", why)])


def windows(
    dataset: xr.Dataset, run: Run, *, frames: int | None = None, most: int = 50
) -> xr.Dataset:
    """Cut trajectories into consecutive windows of ``frames``, at most ``most`` of them.

    The first begins where all that the model looks back on is observed. They are named
    `name@frame`, by the frame of the recording that each begins with.

    Raises:
        ConfigError: If ``frames`` is too small for the model, or ``most`` is not positive.
        DataError: If no trajectory is long enough for one step.
    """
    dataset = begun(dataset, run.card.config["history"], parts=run.card.parts)
    return _cut(dataset, *_places(dataset, run, frames=frames, most=most))


def _cut(dataset: xr.Dataset, rows: Integers, begin: Integers, end: Integers) -> xr.Dataset:
    """Pieces, each named by its own first frame, not by that of the trajectory it is cut from."""
    cut = pieces(dataset, rows, begin, end)
    shown = zip(cut["trajectory"].values.astype(str), cut["start"].values.tolist(), strict=True)
    names = [_window_name(name, start) for name, start in shown]
    if len(set(names)) < len(names):  # a file's own names may end like those of pieces
        return cut
    return cut.assign_coords(trajectory=np.array(names, object))


def _window_name(name: str, start: int) -> str:
    """`home_1@952` of `home_1@562@952` or, where only one window was cut, `home_1@562`."""
    whole = name
    while (found := re.fullmatch(r"(.+)@(\d+)", whole)) and int(found[2]) <= start:
        whole = found[1]
    return f"{whole}@{start}" if start or whole != name else name


def _places(
    dataset: xr.Dataset, run: Run, *, frames: int | None = None, most: int = 50
) -> tuple[Integers, Integers, Integers]:
    """Where `windows` cuts: the trajectory of each window, its first frame, that after its last."""
    if most < 1:
        raise ConfigError(f"windows is {most}; it must be at least 1")
    history = run.card.config["history"]
    length = dataset["length"].to_numpy()
    if frames is None:
        frames = min(max(round(SECONDS * run.card.fps), 10), int(length.max()))
    if frames < history + 1:
        raise ConfigError(f"frames is {frames}; the model needs {history} and one more to generate")
    rows, begin, end = consecutive(length, frames, least=history + 1)
    fit = np.flatnonzero((end - begin == frames) | (begin == 0))
    # A trajectory of less than half a window serves only where there are no others.
    full = fit[(end - begin)[fit] >= frames / 2]
    fit = full if len(full) else fit
    if not len(fit):
        raise DataError(
            f"the longest trajectory has {int(length.max())} frames; the model's history of "
            f"{history} needs {history + 1}"
        )
    chosen = fit[evenly(len(fit), most)]
    return rows[chosen], begin[chosen], end[chosen]
