"""Forecasts of a model and of its baselines from the same frames, and their displacement errors."""

from collections.abc import Sequence

import numpy as np
import torch
import xarray as xr

from pyro_animacy.criticism.arrays import CHUNK, chunks
from pyro_animacy.criticism.forecast_scores import matched
from pyro_animacy.criticism.verdicts import finite_baselines
from pyro_animacy.data.schema import pieces
from pyro_animacy.data.stored import observed, positions
from pyro_animacy.data.windows import come_and_go, consecutive, evenly, of_those_given, whole
from pyro_animacy.errors import DataError, require
from pyro_animacy.infer.draws import DIMS
from pyro_animacy.infer.predict import predict
from pyro_animacy.infer.run import Run, suited
from pyro_animacy.infer.score import least_context, suitable
from pyro_animacy.models.linear_gaussian import EACH, LinearAutoregression
from pyro_animacy.progress import tqdm

RECORDED, MODEL = "recorded", "model"  # names in the dict of forecasts, beside the baselines'


def forecast_all(
    run: Run,
    dataset: xr.Dataset,
    *,
    context: int | None = None,
    horizon: int,
    draws: int = 200,
    most: int = 200,
    seed: int = 0,
    baselines: bool = True,
    progress: bool = True,
) -> dict[str, xr.DataArray]:
    """Forecasts of the run's model, of constant velocity and of an autoregression.

    Trajectories are cut into consecutive windows of ``context + horizon`` frames, of which those
    whose context was observed in full are taken: the same for all runs. All contenders
    start from the same frames of the same windows: the model sees its history, AR(k) the last k
    displacements. The baselines move on without walls.

    Args:
        run: The fitted run, with its baselines.
        dataset: Recordings that the model was not fitted to.
        context: Frames given; by default those of `frames_given`.
        horizon: Frames forecast.
        draws: Draws of each window.
        most: Windows at most; of more, this many are taken evenly spaced.
        seed: Seeds each contender's draws.
        baselines: Forecast by the run's baselines too.
        progress: Show progress bars.

    Returns:
        ``recorded`` (trajectory, time, body, space), and ``model``, ``constant_velocity`` and one
        of ``ar1`` to ``ar5`` (that with the best held-out score) (draw, trajectory, time, body,
        space): the forecast frames alone, without the context. ``time`` is in seconds after the
        last frame given; positions are in data units. ``recorded`` also says which ``recording``
        and ``start`` each window is cut from, its ``resolution``, and where the bodies were in the
        last frame ``given`` (trajectory, body, space).
        Windows shorter than the horizon are NaN in ``recorded`` beyond their end, and are taken
        only where there are no others.

    Raises:
        ConfigError: If an option cannot be used, or the draws would not fit in memory.
        DataError: If the recordings do not suit the model, or none is long enough.
        RunError: If the run has no baselines, where they are asked for.
    """
    dataset = suited(run.card, dataset)
    others = rivals(run, dataset) if baselines else {}
    history = run.card.config["history"]
    if context is None:
        context = frames_given([run], dataset)
    needed = max([history, *(baseline.history for baseline in others.values())])
    asked = {"context": context, "horizon": horizon, "draws": draws, "windows": most}
    require(
        "",
        asked,
        ("context", context >= needed, f"at least {needed}"),
        ("horizon", horizon >= 1, "at least 1"),
        ("draws", draws >= 1, "at least 1"),
        ("windows", most >= 1, "at least 1"),
    )
    shown = _cut(dataset, context, horizon, most, run.card.parts)
    shown = of_those_given(shown, slice(context), run.card.parts)
    tree = predict(
        run, shown, mode="forecast", draws=draws, context=context, horizon=horizon, seed=seed,
        progress=progress,
    )  # fmt: skip
    fps = float(dataset.attrs["fps"])
    ahead = {"time": np.arange(1, horizon + 1) / fps}
    future = slice(context, None)
    model = tree["predictions"]["position"].isel(chain=0, time=future, drop=True)
    recorded = tree["observed_data"]["position"].isel(time=future)
    about = "recording", "start", "resolution"
    of = {name: ("trajectory", shown[name].to_numpy()) for name in about}
    last = shown["position"].isel(time=context - 1).to_numpy()
    recorded = recorded.assign_coords(of)
    recorded = recorded.assign_coords(given=(("trajectory", "body", "space"), last))
    found = {RECORDED: recorded.transpose(*DIMS[2:]), MODEL: model.transpose("draw", *DIMS[2:])}
    given = shown.isel(time=slice(context - needed, context))
    for name, baseline in others.items():
        position = _roll_on(baseline, given, run, horizon, draws, model.dtype, seed, progress)
        found[name] = found[MODEL].copy(data=position)
    attrs = {"units": str(dataset.attrs.get("units", "")), "fps": fps, "context": context}
    return {name: x.assign_coords(ahead).assign_attrs(attrs) for name, x in found.items()}


def rivals(run: Run, dataset: xr.Dataset) -> dict[str, LinearAutoregression]:
    """Constant velocity and the autoregression that scored best on the run's held-out frames.

    Of a run that was not scored, AR(5).

    Args:
        run: The fitted run.
        dataset: What they are to be asked about.

    Raises:
        RunError: If the run has no such baselines.
    """
    partial = run.card.parts > 1 and come_and_go(dataset)
    baselines = suitable(run.baselines(), partial)
    scores = finite_baselines(run.summary)
    unscored = sorted(baselines, key=lambda name: (not name.endswith(EACH), name), reverse=True)

    def best(autoregression: bool) -> str:
        in_turn = (name for name in [*scores, *unscored] if name in baselines)
        return next(name for name in in_turn if name.startswith("ar") == autoregression)

    return {name: baselines[name] for name in (best(False), best(True))}


def frames_given(runs: Sequence[Run], dataset: xr.Dataset) -> int:
    """Frames given before a forecast: what every run and every AR that can be fitted need.

    To a model that remembers its ``memory_steps`` more, as far as they are no more than half of
    what the trajectories that hold half of all frames have.
    """
    least = least_context(*(run.model.config.history for run in runs))
    models = [run.model for run in runs]
    wanted = [m.config.history + m.memory_steps for m in models if m.remembers]
    return max(least, min(max(wanted, default=0), frames_left(dataset, 0) // 2))


def frames_ahead(seconds: Sequence[float], fps: float, most: int) -> list[int]:
    """How many frames ahead are nearest to these times, each once, where they are at most ``most``.

    Below one frame a second so many frames are taken instead of so many seconds.
    """
    frames = {max(1, round(s * max(fps, 1.0))) for s in seconds}
    return [h for h in sorted(frames) if h <= most]


def frames_left(dataset: xr.Dataset, context: int) -> int:
    """Frames after the context that the trajectories holding half of all frames have, at least.

    The longest trajectory may be the only one of its length: a horizon as long as that would leave
    all others out.
    """
    longest_first = np.sort(dataset["length"].to_numpy())[::-1]
    shared = longest_first.cumsum()
    return int(longest_first[np.searchsorted(shared, shared[-1] / 2)]) - context


def _cut(dataset: xr.Dataset, context: int, horizon: int, most: int, parts: int) -> xr.Dataset:
    """Consecutive windows whose context was observed in full, of one of several parts at least.

    Raises:
        DataError: If there is none.
    """
    frames, length = context + horizon, dataset["length"].to_numpy()
    rows, begin, end = consecutive(length, frames, least=context + 1)
    seen, _ = observed(positions(dataset), parts)
    some = seen[rows[:, None], begin[:, None] + np.arange(context)].all(1).any(-1)
    rows, begin, end = rows[some], begin[some], end[some]
    if not len(rows):
        raise DataError(
            f"no trajectory has {context} frames observed in full and goes on after them (the "
            f"longest has {int(length.max())} frames); give recordings that are longer or have "
            "fewer gaps"
        )
    full = np.flatnonzero(end - begin == frames)
    full = full if len(full) else np.arange(len(rows))
    chosen = full[evenly(len(full), most)]
    return pieces(dataset, rows[chosen], begin[chosen], end[chosen])


def _roll_on(
    baseline: LinearAutoregression,
    given: xr.Dataset,
    run: Run,
    horizon: int,
    draws: int,
    dtype: np.dtype,
    seed: int,
    progress: bool,
) -> np.ndarray:
    """Draws (draw, trajectory, time, body, space) in data units after the frames ``given``."""
    scale, shape = run.card.scale, given["position"].shape
    x, seen = whole(given, scale)
    absent = ~seen.all(0).numpy()  # (trajectory, D)
    moves = x.diff(dim=0).flip(0)[: baseline.history - 1]  # newest first
    position = np.empty((draws, shape[0], horizon, *shape[2:]), dtype)
    several = max(1, CHUNK // max(1, position[0].size))
    with torch.random.fork_rng(), tqdm(
        total=draws, desc="forecast", unit="draw", disable=not progress, delay=1
    ) as bar:  # fmt: skip
        torch.manual_seed(seed)
        for first in range(0, draws, several):
            part = position[first : first + several]
            rolled = baseline.roll_out(x[-1], list(moves), horizon, len(part))
            rolled = rolled.transpose(1, 2)  # (draw, trajectory, time, D)
            rolled.numpy()[:, absent[:, None].repeat(horizon, 1)] = np.nan
            part[:] = rolled.reshape(part.shape).numpy() * scale.unit + scale.center
            bar.update(len(part))
    return position


def displacement_errors(
    position: np.ndarray, recorded: np.ndarray, k: int = 20
) -> dict[str, np.ndarray]:
    """Displacement errors by horizon, as forecasts of pedestrians are reported.

    With e_h = |x_h - y_h| the distance of a body from where it went, h frames ahead:

    - ``ADE``: mean of e_1..e_h of the mean of the draws, which stands for the single forecast;
    - ``FDE``: e_h of the same;
    - ``minADE_k``, ``minFDE_k``: the least of the first k draws, of the mean of e_1..e_h and of
      e_h (best of k: Gupta et al., Social GAN, CVPR 2018, section 4.1).

    The best draw is chosen for each body by itself, the *marginal* error of most of the field. To
    choose one for all bodies of a scene gives larger, *joint* errors (Weng et al., Joint Metrics
    Matter, ICCV 2023), as the code of Social GAN does.

    Args:
        position: Forecasts (draw, trajectory, time, body, space).
        recorded: Where the bodies went (trajectory, time, body, space), NaN where not observed.
        k: How many draws the best is chosen of.

    Returns:
        Arrays (time,) in data units: means over the trajectories and bodies observed at h (of FDE)
        or at any of 1..h (of ADE); NaN where there is none.

    Raises:
        ConfigError: If there are fewer than ``k`` draws.
        DataError: If the shapes do not match.
    """
    recorded, position = matched(recorded, position=position)
    S = len(position)
    require("", {"k": k}, ("k", 1 <= k <= S, f"from 1 to the number of draws, {S}"))
    names = ("ADE", "FDE", "minADE_k", "minFDE_k")
    T = recorded.shape[1]
    total, count = np.zeros((4, T)), np.zeros((4, T))
    for rows, draws in chunks(position):
        y = recorded[rows].astype(float)
        seen = np.isfinite(y).all(-1)  # (n, T, B)
        so_far = seen.cumsum(1)
        with np.errstate(invalid="ignore", over="ignore"):
            paths = np.concatenate([draws.mean(0)[None], draws[:k]])
            e = np.where(seen, np.sqrt(((paths - y) ** 2).sum(-1)), 0.0)
            mean = e.cumsum(2) / np.maximum(so_far, 1)
        values = mean[0], e[0], mean[1:].min(0), e[1:].min(0)
        for which, (value, known) in enumerate(zip(values, (so_far > 0, seen) * 2, strict=True)):
            total[which] += np.where(known, value, 0).sum((0, 2))
            count[which] += known.sum((0, 2))
    errors = total / np.where(count > 0, count, np.nan)
    return dict(zip(names, errors, strict=True))
