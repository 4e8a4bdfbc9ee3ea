"""Criticise a run of a model of episodes: draw, compare with the recording, write the report."""

from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from pyro_animacy.criticism import episodes_sections as drawn
from pyro_animacy.criticism.episodes import active, latent_use, open_loop, pictures, windows
from pyro_animacy.criticism.forecasts import frames_left
from pyro_animacy.criticism.report import write_sections
from pyro_animacy.criticism.section import Section
from pyro_animacy.criticism.wording import seconds
from pyro_animacy.errors import how_many, require
from pyro_animacy.infer.episodes import heldout_bound, suited_episodes
from pyro_animacy.infer.predict_episodes import CONTEXT
from pyro_animacy.infer.run import Run
from pyro_animacy.models.image_vae import ImageVAE
from pyro_animacy.progress import tqdm

FRAMES = 50  # of a window, as in PlaNet's video predictions


def criticise_episodes(
    run: Run,
    dataset: xr.Dataset,
    *,
    out: str | Path,
    fitted: xr.Dataset | None = None,
    most: int = 50,
    frames: int | None = None,
    seed: int = 0,
    new: bool = True,
    progress: bool = True,
) -> Path:
    """Write a report that shows what a fitted model gets right and wrong of episodes.

    Args:
        run: The fitted run, of a model of episodes.
        dataset: Episodes that the model was not fitted to.
        out: The HTML file to write.
        fitted: What it was fitted to, for principal components and the mean reward.
        most: Windows at most; of more, this many are taken evenly spaced.
        frames: Frames in a window; by default 50, or as many as the episodes have that hold half of
            all frames, if these are fewer.
        seed: Seeds the draws.
        new: Measure the bound on ``dataset``; otherwise the report shows the one that
            ``summary.json`` holds, of the run's own held-out episodes.
        progress: Show a progress bar.

    Returns:
        The path of the report.

    Raises:
        ConfigError: If an option cannot be used.
        DataError: If the episodes do not suit the model.
        RunError: If the report cannot be written.
    """
    dataset = suited_episodes(run.card, dataset)
    images = isinstance(run.model, ImageVAE)
    least = 1 if images else 2
    frames = max(least, min(FRAMES, frames_left(dataset, 0))) if frames is None else frames
    require(
        "",
        {"windows": most, "frames": frames},
        ("windows", most >= 1, "at least 1"),
        ("frames", frames >= least, f"at least {least}"),
    )
    cut, episode = windows(dataset, frames, most)
    sight, summary = run.card.sight, run.summary
    sections: list[Section] = []
    Z, found = run.model.latent_size, None
    total = 2 + sight.image + (Z > 0) + (not images)
    with tqdm(total=total, unit="part", disable=not progress) as bar:
        bar.set_description("criticise: bound")
        if new or not summary:
            summary = summary | heldout_bound(run, dataset)
        if sight.image:
            _next(bar, "pictures")
            found = pictures(run, cut, episode, fitted, seed)
            sections.append(drawn.pictures_section(found))
        if not images:
            _next(bar, "open loop")
            mean = _mean_reward(fitted) if sight.reward and fitted is not None else None
            ahead = open_loop(run, cut, episode, min(CONTEXT, frames - 1), mean, seed)
            sections.append(drawn.open_loop_section(ahead, sight))
        if Z:
            _next(bar, "latent")
            use = latent_use(run, cut, seed)
            sections.append(drawn.latent_section(use, active(use)))
        _next(bar, "page")
        bound = drawn.bound_section(summary, found if images else None)
        page = _write(run, out, dataset, cut, [bound, *sections], summary)
        bar.update()
    return page


def _next(bar: Any, part: str) -> None:
    bar.update()
    bar.set_description(f"criticise: {part}")


def _write(
    run: Run, out: str | Path, dataset: xr.Dataset, cut: xr.Dataset, sections: list[Section],
    summary: dict[str, Any],
) -> Path:  # fmt: skip
    source = Path(str(dataset.attrs.get("source") or "episodes")).name
    short = int((dataset["length"] < cut.sizes["time"]).sum())
    unseen = f" ({how_many(short, 'episode')} shorter, not looked at)" if short else ""
    facts = [
        ("episodes", f"{dataset.sizes['trajectory']:,}"),
        ("windows", f"{cut.sizes['trajectory']:,} of {cut.sizes['time']:,} frames{unseen}"),
        ("rate", f"{run.card.fps:g} Hz"),
        ("parameters", f"{run.parameters:,}"),
    ]
    if summary.get("train_seconds") is not None:
        spent = f"{seconds(summary['train_seconds'])} ({how_many(summary['steps'], 'step')})"
        facts.append(("training", spent))
    what = "images" if run.card.sight.image else "what was observed"
    return write_sections(
        out,
        title=f"{run.name}: {run.card.model} on {source}",
        subject=f"a model has learned {what}, frame by frame"
        if isinstance(run.model, ImageVAE)
        else f"a model of {what} has learned how an episode goes on",
        facts=facts,
        sections=sections,
        summary={**summary, "model": run.card.config, "train": run.settings["train"]},
        metrics=run.metrics(),
    )


def _mean_reward(fitted: xr.Dataset) -> float:
    """Mean over what the actions of the fitted episodes led to."""
    frame = np.arange(fitted.sizes["time"])
    met = (frame > 0) & (frame < fitted["length"].to_numpy()[:, None])
    return float(fitted["reward"].to_numpy()[met].mean())
