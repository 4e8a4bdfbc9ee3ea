"""Criticise a run: generate, compare with the recording, and write the report."""

from pathlib import Path

import numpy as np
import xarray as xr

from pyro_animacy.criticism.report import write_report
from pyro_animacy.data.schema import pieces
from pyro_animacy.errors import ConfigError, DataError
from pyro_animacy.infer.predict import predict
from pyro_animacy.infer.run import Run, suited
from pyro_animacy.infer.summary import summarise

SECONDS = 8.0  # of each window compared


def criticise(
    run: Run,
    dataset: xr.Dataset,
    *,
    out: str | Path,
    draws: int = 100,
    most: int = 50,
    frames: int | None = None,
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
        seed: Seeds the draws.
        new: Score the model and the baselines on ``dataset``; otherwise the report shows the
            scores that ``summary.json`` holds, of the run's own held-out frames.
        progress: Show progress bars.

    Returns:
        The path of the report.

    Raises:
        DataError: If the recordings do not suit the model.
        RunError: If the report cannot be written.
    """
    dataset = suited(run.card, dataset)
    observed = windows(dataset, run, frames=frames, most=most)
    summary = run.summary
    if new or not summary:
        summary = summarise(run, dataset, progress=progress)
    generated = predict(run, observed, mode="generate", draws=draws, seed=seed, progress=progress)
    followed = predict(run, observed, mode="reconstruct", draws=2, seed=seed, progress=False)
    source = Path(str(dataset.attrs.get("source") or "recording")).name
    return write_report(
        out,
        title=f"{run.path.name}: {run.card.model} on {source}",
        observed=observed,
        generated=generated,
        summary={**summary, "model": run.card.config},
        metrics=run.metrics(),
        reconstructed=followed,
    )


def windows(
    dataset: xr.Dataset, run: Run, *, frames: int | None = None, most: int = 50
) -> xr.Dataset:
    """Cut trajectories into consecutive windows of ``frames``, at most ``most`` of them.

    Raises:
        ConfigError: If ``frames`` is too small for the model, or ``most`` is not positive.
        DataError: If no trajectory is long enough for one step.
    """
    if most < 1:
        raise ConfigError(f"windows is {most}; expected at least 1")
    history = run.card.config["history"]
    length = dataset["length"].to_numpy()
    if frames is None:
        frames = min(max(round(SECONDS * run.card.fps), 10), int(length.max()))
    if frames < history + 1:
        raise ConfigError(f"frames is {frames}; the model needs {history} and one more to generate")
    counts = np.maximum(length // frames, 1)
    rows = np.repeat(np.arange(len(length)), counts)
    begin = np.concatenate([np.arange(n) * frames for n in counts])
    end = np.minimum(begin + frames, length[rows])
    fit = np.flatnonzero(end - begin > history)
    # A trajectory of less than half a window serves only where there are no others.
    full = fit[(end - begin)[fit] >= frames / 2]
    fit = full if len(full) else fit
    if not len(fit):
        raise DataError(
            f"the longest trajectory has {int(length.max())} frames; the model's history of "
            f"{history} needs more"
        )
    chosen = fit[np.linspace(0, len(fit) - 1, min(most, len(fit))).round().astype(int)]
    return pieces(dataset, rows[chosen], begin[chosen], end[chosen])
