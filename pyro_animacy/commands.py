"""The commands: the options of each, and what it does with them. They parse, call and print."""

import dataclasses
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import xarray as xr
from jsonargparse import ArgumentParser, Namespace

from pyro_animacy.criticism.animacy import check_name, save_scores, score_animacy, scores_text
from pyro_animacy.criticism.criticise import SECTIONS, criticise
from pyro_animacy.criticism.criticise_episodes import criticise_episodes
from pyro_animacy.criticism.draws import save_draws
from pyro_animacy.criticism.future import compare_future, expanding
from pyro_animacy.criticism.ranking import (
    common_heldout,
    compare_runs,
    ranking_text,
    run_names,
    save_ranking,
)
from pyro_animacy.data.carracing import simulate_carracing
from pyro_animacy.data.episodes import file_format, read_episodes, save_episodes, variables_of
from pyro_animacy.data.readers import read_trajectories
from pyro_animacy.data.soccer import simulate_soccer
from pyro_animacy.errors import ConfigError, DataError, RunError
from pyro_animacy.infer.checkpoint import EpisodeCard, write_atomically
from pyro_animacy.infer.config import FitConfig, parse_config
from pyro_animacy.infer.episodes import suited_episodes
from pyro_animacy.infer.fit import fit, resume
from pyro_animacy.infer.predict import predict
from pyro_animacy.infer.predict_episodes import predict_episodes
from pyro_animacy.infer.presets import PRESETS
from pyro_animacy.infer.run import CONFIG, Run, read_settings
from pyro_animacy.infer.summary import summary_text
from pyro_animacy.models import FAMILIES, family

DATA_OPTIONS = {
    "bodies": (
        str,
        "bodies of a scene: 'home_1,away_3,ball' (these), 'home x away x ball' (every triple of "
        "one from each group) or 'each' (every body on its own); all by default",
    ),
    "labels": (str, "only trajectories with these labels: 'chase,follow'"),
    "fps": (float, "frames per second of the recording, where the file does not say"),
    "downsample": (int, "keep every Nth frame"),
    "columns": (str, "columns with unusual names, as role=name: 'id=player_id,x=pos_x'"),
    "units": (str, "units of the coordinates, where the file does not say"),
    "resolution": (float, "smallest step the recording can show, in its units; else estimated"),
    "split_gaps": (
        bool,
        "false keeps frames in which a body is missing, masked in the loss, instead of cutting "
        "trajectories there",
    ),
}
OF_THE_RECORDING = ("labels", "resolution")  # not taken over from a run to other recordings
DATA_HELP = (
    "recordings: a file (CSV, csv.gz, parquet, netCDF, zarr, npz, npy, Metrica's tracking.txt), "
    "several files, or a folder of files of one kind; 'metrica' is the bundled sample. Of the "
    "models image_vae and world_model: episodes, netCDF or npz"
)
SCENES, EPISODES = (
    [name for name, of in FAMILIES.items() if of.data == kind] for kind in ("scenes", "episodes")
)
OF_SCENES = {"draws": "100", "sections": ",".join(SECTIONS)}  # of criticise, and their defaults


def _fit_parser(config: FitConfig) -> ArgumentParser:
    parser = ArgumentParser(
        exit_on_error=False,
        description=(
            "Fit a model to recordings. Prints and writes OUT/summary.json: held-out log density "
            "in nats per time step of the joint displacement, in data units, beside constant "
            "velocity and linear-Gaussian AR(1)..AR(5) on the same frames; of a model of episodes "
            "the held-out evidence lower bound. "
            "Example: pyro-animacy fit tandem.csv --fps 30 --downsample 6 --out runs/tandem"
        ),
    )
    parser.add_argument("recordings", nargs="*", type=str, help=DATA_HELP)
    parser.add_argument("--out", type=str, help="folder to write; must not exist")
    parser.add_argument("--overwrite", action="store_true", help="replace OUT if it is a run")
    parser.add_argument("--resume", type=str, metavar="RUN", help="go on with a stopped run")
    parser.add_argument(
        "--family", type=str, default=config.family,
        help=f"the model, also as --model NAME: {', '.join(FAMILIES)} (default: control_vae)",
    )  # fmt: skip
    parser.add_argument(
        "--preset", type=str, default="small",
        help=f"where the options below start from: {', '.join(PRESETS[config.family])} "
        "(default: small)",
    )  # fmt: skip
    parser.add_argument("--config", action="config", help="YAML file with any of these options")
    _add_data_options(parser)
    parser.add_argument("--model", type=type(config.model), default=config.model)
    parser.add_argument("--train", type=type(config.train), default=config.train)
    return parser


def _sample_parser(_: FitConfig) -> ArgumentParser:
    parser = ArgumentParser(
        exit_on_error=False,
        description=(
            "Draw from a fitted model and write an xarray.DataTree in ArviZ's schema as netCDF: "
            "'reconstruct' follows the recording, 'forecast' goes on from its first K frames, "
            "'generate' moves freely from its initial states. Of episodes: images or vectors, "
            "rewards; generated and forecast under the actions that were recorded."
        ),
    )
    _add_run(parser)
    parser.add_argument("--out", type=str, required=True, help="netCDF file to write")
    parser.add_argument("--mode", type=str, default="generate",
                        help="reconstruct, forecast or generate (default)")  # fmt: skip
    parser.add_argument(
        "--draws", type=int | None, default=None,
        help="draws of each trajectory (default: 100; of an episode 10)",
    )  # fmt: skip
    parser.add_argument("--context", type=int, metavar="K", help="frames given to a forecast")
    parser.add_argument("--horizon", type=int, metavar="H", help="frames to draw")
    return parser


def _criticise_parser(_: FitConfig) -> ArgumentParser:
    parser = ArgumentParser(
        exit_on_error=False,
        description=(
            "Write a report, one HTML file: recorded and generated motion side by side, scores "
            "beside the baselines, posterior predictive checks of speed, acceleration, turning "
            "angle, distance and more, the quality of the guide, the calibration of forecasts, "
            "what the latent variable does, and evidence that bodies are agents."
        ),
    )
    _add_run(parser)
    parser.add_argument("--out", type=str, default="report.html", help="HTML file to write")
    parser.add_argument(
        "--sections", type=str, default=",".join(SECTIONS),
        help="which further measures to take; '' takes none (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument("--draws", type=int, default=100, help="motions generated of each window")
    parser.add_argument("--windows", type=int, default=50, help="windows compared at most")
    parser.add_argument("--frames", type=int, help="frames in a window (default: 8 seconds)")
    return parser


def _score_parser(_: FitConfig) -> ArgumentParser:
    parser = ArgumentParser(
        exit_on_error=False,
        description=(
            "Score how alive each body looks at each step, in nats: the evidence that it is an "
            "agent rather than an inert body, the interaction with the others, control information "
            "and surprise. Prints the means; writes a table of one row a body and step (.csv), or "
            "arrays (.nc). Example: pyro-animacy score runs/tandem --out scores.csv"
        ),
    )
    _add_run(parser)
    parser.add_argument("--out", type=str, required=True, help="file to write: .csv or .nc")
    parser.add_argument(
        "--draws", type=int, default=128,
        help="importance draws of each step, at least 25; fewer are faster",
    )  # fmt: skip
    parser.add_argument(
        "--surrogates", type=int, default=32,
        help="pasts of the others that the interaction averages over; fewer inflate it",
    )  # fmt: skip
    return parser


def _compare_parser(_: FitConfig) -> ArgumentParser:
    parser = ArgumentParser(
        exit_on_error=False,
        description=(
            "Rank fitted models, constant velocity and an autoregression on recordings that none "
            "was fitted to: held-out log density with paired errors, and forecast errors 1, 2 and "
            "4 seconds ahead. Example: pyro-animacy compare runs/one runs/two --out compared"
        ),
    )
    parser.add_argument("runs", nargs="+", type=str, help="folders of fits")
    parser.add_argument(
        "--recordings", nargs="+", type=str, default=[],
        help="recordings that no run was fitted to, as for fit; default: what all held out",
    )  # fmt: skip
    parser.add_argument(
        "--out", type=str | None, default=None,
        help="folder to write: compare.csv, pointwise.csv, forecasts.csv and figures",
    )  # fmt: skip
    parser.add_argument("--overwrite", action="store_true", help="replace what OUT holds of these")
    parser.add_argument("--draws", type=int, default=256, help="draws of the latent at each step")
    parser.add_argument("--seed", type=int, default=0, help="seed of the forecasts")
    parser.add_argument(
        "--leave-future-out", type=int | None, default=None, metavar="N",
        help="also fit each run's model again at N moments of its one to four recordings, or of "
        "--recordings, and score what comes next; takes N fits of each run, kept in OUT",
    )  # fmt: skip
    _add_data_options(parser)
    return parser


def _simulate_parser(_: FitConfig) -> ArgumentParser:
    parser = ArgumentParser(
        exit_on_error=False, description="Make recordings with a simulator, as netCDF."
    )
    parser.add_argument(
        "simulator", type=str,
        help="soccer: two scripted players and a ball; carracing: images of a scripted driver",
    )  # fmt: skip
    parser.add_argument("--trajectories", type=int, default=100, help="number of games, episodes")
    parser.add_argument("--frames", type=int, default=200, help="frames of each")
    parser.add_argument(
        "--fps", type=float | None, default=None, help="frames per second: soccer 20, carracing 25"
    )
    parser.add_argument(
        "--size", type=str | None, default=None,
        help="carracing: height and width of its images, 64x64 where none is given",
    )  # fmt: skip
    parser.add_argument("--seed", type=int, default=0, help="seed of the whole set")
    parser.add_argument("--out", type=str, required=True, help="netCDF file to write")
    parser.add_argument("--overwrite", action="store_true", help="replace OUT if it exists")
    return parser


def _add_run(parser: ArgumentParser) -> None:
    """What every command that draws from a run takes."""
    parser.add_argument("run", type=str, help="folder of a fit")
    parser.add_argument("recordings", nargs="*", type=str, help=f"{DATA_HELP}; default: held-out")
    parser.add_argument("--seed", type=int, default=0, help="seed of the draws")
    parser.add_argument("--overwrite", action="store_true", help="replace OUT if it exists")
    _add_data_options(parser)


def _add_data_options(parser: ArgumentParser) -> None:
    for name, (kind, text) in DATA_OPTIONS.items():
        parser.add_argument(f"--{name}", type=kind | None, default=None, help=text)


def _fit(chosen: Namespace) -> None:
    if chosen.resume is not None:
        stopped = Path(chosen.resume)
        settings = read_settings(stopped)
        model = settings.get("family", "control_vae")
        run = resume(stopped, _read(model, _data_of_run(stopped, settings)))
    else:
        if not chosen.recordings:
            raise ConfigError("no recordings given; try: pyro-animacy fit DATA --out RUN")
        if chosen.out is None:
            raise ConfigError("--out is missing; give the folder to write, such as --out runs/one")
        data = _data(chosen, {})
        config = parse_config(chosen.as_dict())
        _refuse_existing(chosen.out, chosen.overwrite)
        recordings = _read(config.family, data)
        run = fit(recordings, config, out=chosen.out, overwrite=chosen.overwrite, data=data)
    print(summary_text(run))


def _sample(chosen: Namespace) -> None:
    _refuse_existing(chosen.out, chosen.overwrite)
    if chosen.context is not None and chosen.mode != "forecast":
        raise ConfigError("--context is the frames given to --mode forecast; leave it out")
    run = Run.load(chosen.run)
    some = {} if chosen.draws is None else {"draws": chosen.draws}
    draw = predict_episodes if isinstance(run.card, EpisodeCard) else predict
    draws = draw(
        run, _recordings(run, chosen)[0], mode=chosen.mode, context=chosen.context,
        horizon=chosen.horizon, seed=chosen.seed, **some,
    )  # fmt: skip
    save_draws(draws, chosen.out)
    groups = ", ".join(f"{name} {dict(group.sizes)}" for name, group in draws.children.items())
    print(f"wrote {chosen.out}: {groups}")


def _criticise(chosen: Namespace) -> None:
    if Path(chosen.out).suffix not in ("", ".html", ".htm"):
        raise ConfigError(f"--out {chosen.out}: a report is a web page; end its name in .html")
    _refuse_existing(chosen.out, chosen.overwrite)
    run = Run.load(chosen.run)
    recordings, new = _recordings(run, chosen)
    if isinstance(run.card, EpisodeCard):
        _criticise_episodes(run, recordings, new, chosen)
        return
    sections = [name.strip() for name in chosen.sections.split(",") if name.strip()]
    out = criticise(
        run, recordings, out=chosen.out, draws=chosen.draws, most=chosen.windows,
        frames=chosen.frames, sections=sections, seed=chosen.seed, new=new,
    )  # fmt: skip
    print(f"wrote {out}")


def _criticise_episodes(run: Run, episodes: xr.Dataset, new: bool, chosen: Namespace) -> None:
    for name, default in OF_SCENES.items():
        if str(chosen[name]) != default:
            raise ConfigError(f"--{name} is of models of scenes; {run.card.model} is of episodes")
    fitted = None
    if run.settings.get("data"):
        data = _data_of_run(run.path, run.settings)
        fitted = run.fitted(_read(run.card.model, data))
    out = criticise_episodes(
        run, episodes, out=chosen.out, fitted=fitted, most=chosen.windows, frames=chosen.frames,
        seed=chosen.seed, new=new,
    )  # fmt: skip
    print(f"wrote {out}")


def _score(chosen: Namespace) -> None:
    check_name(chosen.out)
    _refuse_existing(chosen.out, chosen.overwrite)
    run = Run.load(chosen.run)
    _refuse_episodes(run, "score")
    recordings, new = _recordings(run, chosen)
    scores = score_animacy(
        run, recordings, draws=chosen.draws, surrogates=chosen.surrogates, seed=chosen.seed
    )
    steps = save_scores(scores, chosen.out)
    print(scores_text(scores))
    of = "the recordings given" if new else "the run's held-out part"
    print(f"wrote {chosen.out}: {steps} rows, one a body and step, of {of}")


def _compare(chosen: Namespace) -> None:
    if chosen.leave_future_out is not None and chosen.out is None:
        raise ConfigError("--leave-future-out keeps its fits: give --out, the folder to write")
    if chosen.out is not None and Path(chosen.out).suffix in (".csv", ".html", ".json", ".png"):
        raise ConfigError(f"--out {chosen.out}: a folder is written; give its name")
    if chosen.out is not None:  # fits kept there by a comparison that was stopped are used
        _refuse_existing(str(Path(chosen.out) / "compare.csv"), chosen.overwrite)
    runs = [Run.load(path) for path in chosen.runs]
    for run in runs:
        _refuse_episodes(run, "compare")
    names = run_names(runs)
    whole, heldout = _recordings_of_all(runs, chosen)
    if chosen.leave_future_out is not None:
        expanding(whole, chosen.leave_future_out)  # what cannot be cut is said before the work
    ranking = compare_runs(runs, heldout, draws=chosen.draws, seed=chosen.seed)
    if chosen.leave_future_out is not None:
        N, seconds = chosen.leave_future_out, [r.summary.get("train_seconds") or 0 for r in runs]
        print(f"{N * len(runs)} fits, about {N * sum(seconds):.0f} s in all", file=sys.stderr)
        configs = {name: parse_config(run.settings) for name, run in zip(names, runs, strict=True)}
        future = compare_future(configs, whole, origins=N, out=Path(chosen.out) / "future")
        ranking = dataclasses.replace(ranking, future=future)
    print(ranking_text(ranking))
    if chosen.out is not None:
        files = save_ranking(ranking, chosen.out)
        print(f"wrote {', '.join(str(file) for file in files)}")


def _recordings_of_all(runs: list[Run], chosen: Namespace) -> tuple[Any, Any]:
    """The recordings that several runs are compared on: in whole, and what no run was fitted to."""
    if not chosen.recordings:
        given = [f"--{name}" for name in DATA_OPTIONS if chosen[name] is not None]
        if given:
            raise ConfigError(f"{given[0]} is of --recordings; the runs' own are read as for fit")
        sources = [_data_of_run(run.path, run.settings) for run in runs]
        first = read_trajectories(**sources[0])
        own = [first if data == sources[0] else read_trajectories(**data) for data in sources]
        return first, common_heldout(runs, own)
    data = _data(chosen, runs[0].settings.get("data", {}))
    for run in runs:
        if data["source"] == run.settings.get("data", {}).get("source"):
            raise ConfigError(
                f"--recordings: {run.path} was fitted to them; leave the option out to compare on "
                "what all runs held out, or give others"
            )
    recordings = _read(runs[0].card.model, data)
    return recordings, recordings


def _simulate(chosen: Namespace) -> None:
    if chosen.simulator not in SIMULATORS:
        raise ConfigError(
            f"simulator {chosen.simulator!r} does not exist; choose {' or '.join(SIMULATORS)}"
        )
    _refuse_existing(chosen.out, chosen.overwrite)
    print(f"wrote {chosen.out}: {SIMULATORS[chosen.simulator](chosen)}")


def _simulate_soccer(chosen: Namespace) -> str:
    if chosen.size is not None:
        raise ConfigError("--size is of images; soccer records positions, leave it out")
    fps = 20.0 if chosen.fps is None else chosen.fps
    games = simulate_soccer(chosen.trajectories, chosen.frames, fps=fps, seed=chosen.seed)
    write_atomically(Path(chosen.out), lambda to: games.to_netcdf(to, engine="h5netcdf"))
    return f"{chosen.trajectories} games of {chosen.frames} frames"


def _simulate_carracing(chosen: Namespace) -> str:
    size, form = _size(chosen.size or "64x64"), file_format(chosen.out)
    fps = 25.0 if chosen.fps is None else chosen.fps
    episodes = simulate_carracing(chosen.trajectories, chosen.frames, size, chosen.seed, fps=fps)
    write_atomically(Path(chosen.out), lambda to: save_episodes(episodes, to, form))
    frames = int(episodes["length"].sum())
    return f"{chosen.trajectories} episodes, {frames} frames of {size[0]} x {size[1]} pixels"


def _size(text: str) -> tuple[int, int]:
    """Height and width in ``64x64``."""
    height, _, width = text.partition("x")
    if not (height.isdecimal() and width.isdecimal()):
        raise ConfigError(f"--size {text}: expected height x width in pixels, such as 60x80")
    return int(height), int(width)


SIMULATORS = {"soccer": _simulate_soccer, "carracing": _simulate_carracing}


def _refuse_episodes(run: Run, command: str) -> None:
    """Say of a command of scenes that it is none for this run."""
    if isinstance(run.card, EpisodeCard):
        raise ConfigError(
            f"{run.path}: its model {run.card.model} is of episodes, and `{command}` is of scenes "
            "of moving bodies; `criticise` is of both"
        )


def _read(model: str, data: dict[str, Any]) -> xr.Dataset:
    """Read what a model is of: scenes, or episodes.

    Raises:
        DataError: If it cannot be read, or is of the other kind; the message names the models.
    """
    source = data["source"]
    files = [source] if isinstance(source, str) else source
    holds = [(file, variables_of(file)) for file in files]
    episodes = [file for file, names in holds if names & {"image", "observation"}]
    scenes = [file for file, names in holds if "position" in names]
    if family(model).data == "scenes":
        if episodes and not scenes:
            raise DataError(
                f"{episodes[0]}: holds episodes, and {model} is a model of moving bodies; take "
                f"--model {' or --model '.join(EPISODES)}"
            )
        return read_trajectories(**data)
    for name in DATA_OPTIONS:
        if data.get(name) is not None:
            raise ConfigError(
                f"--{name} is of scenes of moving bodies, and {model} is a model of episodes; "
                "leave it out"
            )
    other = [file for file in files if file in scenes or not _maybe_episodes(file)]
    if other and not episodes:
        raise DataError(
            f"{other[0]}: no episodes (a .nc or .npz file with `image` or `observation`), which "
            f"{model} is a model of; for moving bodies take --model {SCENES[0]}"
        )
    return read_episodes(source)


def _maybe_episodes(file: str) -> bool:
    """Whether a file is named as episodes are; if it cannot be read, its reader says why."""
    return Path(file).suffix in (".nc", ".npz")


def _recordings(run: Run, chosen: Namespace) -> tuple[xr.Dataset, bool]:
    """The recordings asked for, less what the run was fitted to, and whether they are new to it.

    Without DATA, and where DATA is the run's own, they are its held-out part.
    """
    own = run.settings.get("data", {})
    given = [f"--{name}" for name in DATA_OPTIONS if chosen[name] is not None]
    if not chosen.recordings:
        if given:
            raise ConfigError(
                f"{given[0]} is of DATA, which was not given: the run's own held-out part is read "
                "as it was for fit"
            )
        data = _data_of_run(run.path, run.settings)
        return run.heldout(_read(run.card.model, data)), False
    data = _data(chosen, own)
    if isinstance(run.card, EpisodeCard):
        return _episodes(run, data, own)
    if not own or data["source"] != own.get("source"):
        return _read_as_the_run(run, data, given), True
    if _present(data) == _present(own):
        print(f"{run.path}: its own recordings; their held-out part is used", file=sys.stderr)
        return run.heldout(read_trajectories(**data)), False
    fitted = run.fitted(read_trajectories(**_data_of_run(run.path, run.settings)))
    found = read_trajectories(**data)
    unseen = ~np.isin(found["recording"], fitted["recording"])
    if not unseen.any():
        raise ConfigError(
            f"{run.path} was fitted to some of every recording in DATA; leave DATA and its options "
            "out to use what it held out"
        )
    count = f"{unseen.sum():,} of {len(unseen):,} trajectories"
    print(f"{run.path}: {count} are used, of recordings it was not fitted to", file=sys.stderr)
    return found.isel(trajectory=unseen), True


def _episodes(run: Run, data: dict[str, Any], own: dict[str, Any]) -> tuple[xr.Dataset, bool]:
    """Episodes asked for, and whether they are new to the run."""
    given, known = (
        {x} if isinstance(x, str) else set(x or ()) for x in (data["source"], own.get("source"))
    )
    if given != known and given & known:
        raise ConfigError(
            f"{run.path} was fitted to {sorted(given & known)[0]}; leave DATA out to use what it "
            "held out, or give other episodes"
        )
    episodes = _read(run.card.model, data)
    if given != known:
        return suited_episodes(run.card, episodes), True
    print(f"{run.path}: its own recordings; their held-out part is used", file=sys.stderr)
    return run.heldout(episodes), False


def _read_as_the_run(run: Run, data: dict[str, Any], given: list[str]) -> xr.Dataset:
    """Read other recordings with the run's options, which a message must not take for the user's.

    Raises:
        DataError: As `read_trajectories`.
    """
    taken = [f"--{name}" for name in DATA_OPTIONS if data.get(name) is not None]
    taken = [name for name in taken if name not in given]
    try:
        return _read(run.card.model, data)
    except DataError as error:
        if not taken:
            raise
        raise DataError(
            f"{error} ({', '.join(taken)} {'is' if len(taken) == 1 else 'are'} taken over from the "
            "run: give what is right for these recordings)"
        ) from None


def _present(data: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in data.items() if value is not None}


def _data(chosen: Namespace, default: dict[str, Any]) -> dict[str, Any]:
    """Arguments of `read_trajectories` from the options given, else from those of the run."""
    keep = [name for name in DATA_OPTIONS if name not in OF_THE_RECORDING]
    data = {name: value for name, value in default.items() if name in keep}
    given = {name: chosen[name] for name in DATA_OPTIONS if chosen[name] is not None}
    if "columns" in given:
        given["columns"] = _columns(given["columns"])
    # Absolute, so that the run can be resumed and criticised from any folder.
    paths = [str(Path(p).resolve()) if Path(p).exists() else p for p in chosen.recordings]
    return {"source": paths[0] if len(paths) == 1 else paths, **data, **given}


def _data_of_run(path: Path, settings: dict[str, Any] | None = None) -> dict[str, Any]:
    data = (settings or read_settings(path)).get("data")
    if not isinstance(data, dict) or not data.get("source"):
        raise RunError(f"{path / CONFIG}: does not say where the recordings are; give DATA")
    for name, (kind, _) in DATA_OPTIONS.items():
        value = data.get(name)
        kinds = {"columns": (dict,), "fps": (int, float), "resolution": (int, float)}
        if value is not None and not isinstance(value, kinds.get(name, (kind,))):
            raise RunError(f"{path / CONFIG}: data.{name} is {value!r}, of a type it cannot have")
    known = {"source", *DATA_OPTIONS}
    return {name: value for name, value in data.items() if name in known}


def _columns(text: str) -> dict[str, str]:
    pairs = [pair.split("=", 1) for pair in text.split(",")]
    if any(len(pair) != 2 or not all(pair) for pair in pairs):
        raise ConfigError(f"--columns {text!r}; expected role=name, such as 'id=player_id,x=pos_x'")
    return {role.strip(): name.strip() for role, name in pairs}


def _refuse_existing(path: str, overwrite: bool) -> None:
    """Find before the work, not after it, that OUT cannot be written."""
    if Path(path).exists() and not overwrite:
        raise RunError(f"--out {path}: exists; choose another, or give --overwrite to replace it")
    there = next(parent for parent in Path(path).absolute().parents if parent.exists())
    if not there.is_dir():
        raise RunError(f"--out {path}: its folder cannot be made, {there} is a file")
    if not os.access(there, os.W_OK):
        raise RunError(f"--out {path}: {there} may not be written; choose another")


class Command(NamedTuple):
    """A command of ``pyro-animacy``: one line of help, its options, and what it does."""

    help: str
    parser: Callable[[FitConfig], ArgumentParser]
    run: Callable[[Namespace], None]


COMMANDS = {
    "fit": Command("fit a model to recordings and score it on held-out frames", _fit_parser, _fit),
    "sample": Command("draw from a fitted model", _sample_parser, _sample),
    "criticise": Command(
        "write a report on what a fitted model gets right", _criticise_parser, _criticise
    ),
    "score": Command("score how alive each body looks, step by step", _score_parser, _score),
    "compare": Command("rank fitted models on held-out recordings", _compare_parser, _compare),
    "simulate": Command("make recordings with a simulator", _simulate_parser, _simulate),
}
