"""The commands: the options of each, and what it does with them. They parse, call and print."""

import dataclasses
import os
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import xarray as xr
from jsonargparse import ArgumentParser, Namespace

from pyro_animacy import command_acting, command_simulate
from pyro_animacy.command import Command, Defaults, refuse_existing
from pyro_animacy.command_data import (
    DATA_HELP,
    DATA_OPTIONS,
    add_data_options,
    add_run,
    asked_for,
    data_options,
    files_named,
    fitted_to,
    own_under_another_name,
    read_as_the_run,
)
from pyro_animacy.criticism.animacy import score_animacy
from pyro_animacy.criticism.animacy_table import check_name, save_scores, scores_text
from pyro_animacy.criticism.contenders import common_heldout, comparable, compare_runs, run_names
from pyro_animacy.criticism.criticise import SECTIONS, criticise
from pyro_animacy.criticism.criticise_episodes import criticise_episodes
from pyro_animacy.criticism.future import compare_future, expanding
from pyro_animacy.criticism.ranking import ranking_text, save_ranking
from pyro_animacy.criticism.verdicts import doubt
from pyro_animacy.data.readers import read_trajectories
from pyro_animacy.data.windows import begun
from pyro_animacy.errors import ConfigError, DataError, RunError, how_many
from pyro_animacy.infer.config import parse_config
from pyro_animacy.infer.draws import save_draws
from pyro_animacy.infer.fit import fit, resume
from pyro_animacy.infer.predict import predict
from pyro_animacy.infer.predict_episodes import predict_episodes
from pyro_animacy.infer.presets import presets_of
from pyro_animacy.infer.recordings import read_data
from pyro_animacy.infer.run import SUMMARY, Run, check_kind
from pyro_animacy.infer.score import MOST_STEPS
from pyro_animacy.infer.settings import data_of_run, read_settings
from pyro_animacy.infer.summary import summarise, summary_text
from pyro_animacy.models import FAMILIES
from pyro_animacy.models.scene_config import REST_NEEDS

MANY_STEPS = 20_000  # to score them takes minutes
SCENE_DEFAULTS = {
    "draws": "100",
    "sections": ",".join(SECTIONS),
}  # of criticise


def _fit_parser(defaults: Defaults) -> ArgumentParser:
    config = defaults.fit
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
    parser.add_argument("recordings", nargs="*", type=str, default=[], help=DATA_HELP)
    parser.add_argument("--out", type=str, help="folder to write; must not exist")
    parser.add_argument("--overwrite", action="store_true", help="replace OUT if it is a run")
    parser.add_argument("--resume", type=str, metavar="RUN", help="go on with a stopped run")
    parser.add_argument(
        "--family", type=str, default=config.family,
        help=f"the model, also as --model NAME: {', '.join(FAMILIES)}",
    )  # fmt: skip
    parser.add_argument(
        "--preset", type=str, default="small",
        help=f"where the options below start from: {', '.join(presets_of(config.family))}",
    )  # fmt: skip
    parser.add_argument("--config", action="config", help="YAML file with any of these options")
    add_data_options(parser)
    parser.add_argument("--model", type=type(config.model), default=config.model)
    parser.add_argument("--train", type=type(config.train), default=config.train)
    return parser


def _sample_parser(_: Defaults) -> ArgumentParser:
    parser = ArgumentParser(
        exit_on_error=False,
        description=(
            "Draw from a fitted model and write an xarray.DataTree in ArviZ's schema as netCDF: "
            "'reconstruct' follows the recording, 'forecast' goes on from its first K frames, "
            "'generate' moves freely from its initial states. Of episodes: images or vectors, "
            "rewards; generated and forecast under the actions that were recorded. "
            "Example: pyro-animacy sample runs/tandem --mode forecast --context 25 --out draws.nc"
        ),
    )
    add_run(parser)
    parser.add_argument("--out", type=str, required=True, help="netCDF file to write")
    parser.add_argument("--mode", type=str, default="generate",
                        help="reconstruct, forecast or generate")  # fmt: skip
    parser.add_argument(
        "--draws", type=int | None, default=None,
        help="draws of each trajectory; null for 100, of an episode 10",
    )  # fmt: skip
    parser.add_argument("--context", type=int, metavar="K", help="frames given to a forecast")
    parser.add_argument(
        "--horizon",
        type=int,
        metavar="H",
        help="frames to draw; null for as many as the longest trajectory has left",
    )
    parser.add_argument(
        "--stride", type=int | None, default=None, metavar="N",
        help="forecast again from every Nth frame; null for once of each trajectory",
    )  # fmt: skip
    return parser


def _criticise_parser(_: Defaults) -> ArgumentParser:
    parser = ArgumentParser(
        exit_on_error=False,
        description=(
            "Write a report, one HTML file: recorded and generated motion side by side, scores "
            "beside the baselines, posterior predictive checks of speed, acceleration, turning "
            "angle, distance and more, the quality of the guide, the calibration of forecasts, "
            "what the latent variable does, and evidence that bodies are agents. "
            "Example: pyro-animacy criticise runs/tandem --out report.html"
        ),
    )
    add_run(parser)
    parser.add_argument("--out", type=str, default="report.html", help="HTML file to write")
    parser.add_argument(
        "--sections", type=str, default=",".join(SECTIONS),
        help="which further measures to take; '' takes none (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument("--draws", type=int, default=100, help="motions generated of each window")
    parser.add_argument("--windows", type=int, default=50, help="windows compared at most")
    parser.add_argument("--frames", type=int, help="frames in a window; null for 8 seconds")
    return parser


def _score_parser(_: Defaults) -> ArgumentParser:
    parser = ArgumentParser(
        exit_on_error=False,
        description=(
            "Score how alive each body looks at each step, in nats: the evidence that it is an "
            "agent rather than an inert body, the interaction with the others, control information "
            "and surprise. Prints the means; writes a table of one row a body and step (.csv), or "
            "arrays (.nc). Example: pyro-animacy score runs/tandem --out scores.csv"
        ),
    )
    add_run(parser)
    parser.add_argument("--out", type=str, required=True, help="file to write: .csv or .nc")
    parser.add_argument(
        "--draws", type=int, default=128,
        help="importance draws of each step, at least 25; fewer are faster",
    )  # fmt: skip
    parser.add_argument(
        "--surrogates", type=int, default=32,
        help="moments elsewhere that the interaction takes the others from; fewer inflate it",
    )  # fmt: skip
    parser.add_argument(
        "--steps", type=int | None, default=None,
        help="score at most so many steps, evenly spaced; default: all",
    )  # fmt: skip
    return parser


def _compare_parser(_: Defaults) -> ArgumentParser:
    parser = ArgumentParser(
        exit_on_error=False,
        description=(
            "Rank fitted models, constant velocity and an autoregression on recordings that none "
            "was fitted to: held-out log density with paired errors, and forecast errors at "
            "several horizons. "
            "Example: pyro-animacy compare runs/one runs/two --out compared"
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
    parser.add_argument(
        "--horizons", nargs="+", type=float, default=None, metavar="S",
        help="seconds ahead at which forecasts are compared; default: 1 2 4 (frames, below one a "
        "second), as far as recordings go on",
    )  # fmt: skip
    parser.add_argument("--seed", type=int, default=0, help="seed of the forecasts")
    parser.add_argument(
        "--leave-future-out", type=int | None, default=None, metavar="N",
        help="also fit each run's model again at N moments of its one to four recordings, or of "
        "--recordings, and score what comes next; takes N fits of each run, kept in OUT",
    )  # fmt: skip
    add_data_options(parser)
    return parser


def _fit(chosen: Namespace) -> None:
    if chosen.resume is not None:
        stopped = Path(chosen.resume)
        settings = read_settings(stopped)
        model = settings.get("family", "control_vae")
        data = data_of_run(stopped, settings, "go on in Python: resume(RUN, recordings)")
        ended = (stopped / SUMMARY).is_file()
        run = resume(stopped, read_data(model, data))
        if ended:
            print(f"note: {stopped} had ended already; these are its figures", file=sys.stderr)
    else:
        if not chosen.recordings:
            raise ConfigError("no recordings given; try: pyro-animacy fit DATA --out RUN")
        if chosen.out is None:
            raise ConfigError("--out is missing; give the folder to write, such as --out runs/one")
        data = data_options(chosen, {})
        config = parse_config(chosen.as_dict())
        refuse_existing(chosen.out, chosen.overwrite)
        if getattr(config.model, "rest", False) and not config.model.rests:
            print(f"note: model.rest has no effect: it is for {REST_NEEDS}", file=sys.stderr)
        recordings = read_data(config.family, data)
        run = fit(recordings, config, out=chosen.out, overwrite=chosen.overwrite, data=data)
    if os.environ.get("RANK", "0") == "0":  # of several processes under torchrun the first tells
        print(summary_text(run))


def _sample(chosen: Namespace) -> None:
    if Path(chosen.out).suffix not in ("", ".nc"):
        raise ConfigError(f"--out {chosen.out}: draws are netCDF; end its name in .nc")
    refuse_existing(chosen.out, chosen.overwrite)
    if chosen.context is not None and chosen.mode != "forecast":
        raise ConfigError("--context is the frames given to --mode forecast; leave it out")
    run = Run.load(chosen.run, chosen.checkpoint)
    some = {} if chosen.draws is None else {"draws": chosen.draws}
    draw = predict_episodes if run.data == "episodes" else predict
    recordings = asked_for(run, chosen).recordings
    if run.data == "scenes":
        run = run.on(recordings)
        if chosen.stride is None:
            recordings = _begun(run, recordings, chosen.context)
        else:
            some["stride"] = chosen.stride
    elif chosen.stride is not None:
        raise ConfigError(f"--stride is of models of scenes; {run.card.model} is of episodes")
    draws = draw(
        run, recordings, mode=chosen.mode, context=chosen.context,
        horizon=chosen.horizon, seed=chosen.seed, **some,
    )  # fmt: skip
    save_draws(draws, chosen.out)
    groups = ", ".join(f"{name} {dict(group.sizes)}" for name, group in draws.children.items())
    print(f"wrote {chosen.out}: {groups}")


def _begun(run: Run, recordings: xr.Dataset, context: int | None) -> xr.Dataset:
    """Trajectories from where the model has what it looks back on; says which were cut."""
    history = run.card.config["history"]
    after = max(0, (context or 0) - history)
    found = begun(recordings, history, after=after, parts=run.card.parts)
    if found is not recordings:
        later = int((found["start"].values != recordings["start"].values).sum())
        print(
            f"note: {how_many(later, 'trajectory')} of {len(found['trajectory'])} drawn from a "
            f"later frame on, where {'all bodies are' if run.card.parts == 1 else 'a body is'} "
            "observed",
            file=sys.stderr,
        )
    return found


def _criticise(chosen: Namespace) -> None:
    if Path(chosen.out).suffix not in ("", ".html", ".htm"):
        raise ConfigError(f"--out {chosen.out}: a report is a web page; end its name in .html")
    refuse_existing(chosen.out, chosen.overwrite)
    run = Run.load(chosen.run, chosen.checkpoint)
    recordings, new = asked_for(run, chosen)
    if run.data == "episodes":
        _criticise_episodes(run, recordings, new, chosen)
        return
    sections = [name.strip() for name in chosen.sections.split(",") if name.strip()]
    run = run.on(recordings)
    out = criticise(
        run, recordings, out=chosen.out, draws=chosen.draws, most=chosen.windows,
        frames=chosen.frames, sections=sections, seed=chosen.seed, new=new,
    )  # fmt: skip
    print(f"wrote {out}")


def _criticise_episodes(run: Run, episodes: xr.Dataset, new: bool, chosen: Namespace) -> None:
    for name, default in SCENE_DEFAULTS.items():
        if str(chosen[name]) != default:
            raise ConfigError(f"--{name} is of models of scenes; {run.card.model} is of episodes")
    if "acting" in run.settings and not new:
        raise ConfigError(
            f"{run.path} has learned from episodes in DATA; leave DATA out to have its agent play "
            "new ones"
        )
    out = criticise_episodes(
        run, episodes, out=chosen.out, fitted=fitted_to(run), most=chosen.windows,
        frames=chosen.frames, seed=chosen.seed, new=new,
    )  # fmt: skip
    print(f"wrote {out}")


def _score(chosen: Namespace) -> None:
    check_name(chosen.out)
    refuse_existing(chosen.out, chosen.overwrite)
    run = Run.load(chosen.run, chosen.checkpoint)
    check_kind(run.card, "scenes", run.path)
    recordings, new = asked_for(run, chosen)
    ours = run.on(recordings)
    if chosen.steps is None and (frames := int(recordings["length"].sum())) > MANY_STEPS:
        print(
            f"up to {frames:,} steps are scored; --steps {MANY_STEPS} takes so many, evenly spaced",
            file=sys.stderr,
        )
    scores = score_animacy(
        ours, recordings, draws=chosen.draws, surrogates=chosen.surrogates, steps=chosen.steps,
        seed=chosen.seed,
    )  # fmt: skip
    steps, told = save_scores(scores, chosen.out), run.summary
    print(scores_text(scores))
    if new or not told:
        with suppress(DataError, RunError):  # baselines take longer recordings, or were removed
            told = summarise(ours, recordings, most=chosen.steps or MOST_STEPS)
    if why := doubt(told):
        print(f"note: {why}")
    of = "the recordings given" if new else "the run's held-out part"
    print(f"wrote {chosen.out}: {how_many(steps, 'row')}, one a body and step, of {of}")


def _compare(chosen: Namespace) -> None:
    if chosen.leave_future_out is not None and chosen.out is None:
        raise ConfigError("--leave-future-out keeps its fits: give --out, the folder to write")
    if chosen.out is not None and Path(chosen.out).suffix in (".csv", ".html", ".json", ".png"):
        raise ConfigError(f"--out {chosen.out}: a folder is written; give its name")
    if chosen.out is not None:  # fits kept there by a comparison that was stopped are used
        refuse_existing(str(Path(chosen.out) / "compare.csv"), chosen.overwrite)
    runs = [Run.load(path) for path in chosen.runs]
    names = run_names(runs)
    if not chosen.recordings:
        comparable(runs)
    whole, heldout = _recordings_of_all(runs, chosen)
    runs = [run.on(heldout) for run in runs]
    if chosen.leave_future_out is not None:
        expanding(whole, chosen.leave_future_out)  # what cannot be cut is said before the work
    ranking = compare_runs(
        runs, heldout, draws=chosen.draws, horizons=chosen.horizons, seed=chosen.seed
    )
    if chosen.leave_future_out is not None:
        N, seconds = chosen.leave_future_out, [r.summary.get("train_seconds") or 0 for r in runs]
        print(f"{N * len(runs)} fits, about {N * sum(seconds):.0f} s in all", file=sys.stderr)
        configs = {name: run.config for name, run in zip(names, runs, strict=True)}
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
            raise ConfigError(
                f"{given[0]} applies to --recordings, and none were given; the runs' held-out "
                "parts are read as they were for the fits"
            )
        instead = "give others, which no run was fitted to: --recordings FILE"
        sources = [data_of_run(run.path, run.settings, instead) for run in runs]
        first = read_trajectories(**sources[0])
        own = [first if data == sources[0] else read_trajectories(**data) for data in sources]
        return first, common_heldout(runs, own)
    data = data_options(chosen, runs[0].settings.get("data", {}))
    for run in runs:
        source = run.settings.get("data", {}).get("source") or []
        learned, files = (files_named(run.card.model, of) for of in (source, data["source"]))
        if not learned.isdisjoint(files):
            raise ConfigError(
                f"--recordings: {run.path} was fitted to {min(learned & files)}; leave the option "
                "out to compare on what all runs held out, or give others"
            )
    given = [f"--{name}" for name in DATA_OPTIONS if chosen[name] is not None]
    recordings = read_as_the_run(runs[0], data, given)
    for run in runs:
        if own_under_another_name(run, recordings) is not None:
            raise ConfigError(
                f"--recordings: {run.path} was fitted to these, under another name; leave the "
                "option out to compare on what all runs held out, or give others"
            )
    return recordings, recordings


COMMANDS = {
    "fit": Command(
        "(DATA ... --out RUN | --resume RUN)",
        "fit a model to recordings and score it on held-out frames", _fit_parser, _fit,
    ),
    "sample": Command(
        "RUN [DATA ...] --out DRAWS", "draw from a fitted model", _sample_parser, _sample
    ),
    "criticise": Command(
        "RUN [DATA ...] --out REPORT",
        "write a report on what a fitted model gets right", _criticise_parser, _criticise,
    ),
    "score": Command(
        "RUN [DATA ...] --out SCORES",
        "score how alive each body looks, step by step", _score_parser, _score,
    ),
    "compare": Command(
        "RUN ... [--recordings DATA ...] [--out FOLDER]",
        "rank fitted models on held-out recordings", _compare_parser, _compare,
    ),
    **command_simulate.COMMANDS,
    **command_acting.COMMANDS,
}  # fmt: skip
