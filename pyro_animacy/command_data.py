"""The recordings that a command is asked for: its data options, and what a run says of its own."""

import sys
from typing import Any, NamedTuple

import numpy as np
import xarray as xr
from jsonargparse import ArgumentParser, Namespace

from pyro_animacy.data.bodies import is_place
from pyro_animacy.data.episodes import episode_files, read_episodes
from pyro_animacy.data.metrica_csv import other_team
from pyro_animacy.data.readers import in_places
from pyro_animacy.data.windows import evenly
from pyro_animacy.errors import ConfigError, DataError, how_many
from pyro_animacy.infer.episodes import suited_episodes
from pyro_animacy.infer.recordings import REPLAY, absolute, files_read, fingerprint, read_data
from pyro_animacy.infer.run import Run, split_recordings

DATA_HELP = (
    "recordings: a file (CSV, csv.gz, parquet, netCDF, zarr, npz, npy, Metrica's tracking.txt), "
    "several files, or a folder of files of one kind; 'metrica' is the bundled sample. Of the "
    "models image_vae, world_model and agent_control_vae: episodes, netCDF or npz"
)
DATA_OPTIONS = {
    "bodies": (
        str,
        "bodies of a scene: 'home_1,away_3,ball' (these), 'home x away x ball' (every triple of "
        "one from each group, no body twice), 'ant x ant' (every pair of one group), 'each' "
        "(every body on its own) or 'present' (whoever is there: bodies come and go); all by "
        "default",
    ),
    "labels": (str, "only trajectories with these labels: 'chase,follow'"),
    "fps": (float, "frames per second of the recording, where the file does not say"),
    "downsample": (int, "keep every Nth frame"),
    "columns": (
        str,
        "columns with unusual names, as role=name: 'id=player_id,x=pos_x'; 'trajectory=game+play' "
        "is two together, 'x=left+width/2' the middle of a box, 'frame=1,id=2,x=3,y=5' of a file "
        "without names",
    ),
    "units": (str, "units of the coordinates, where the file does not say"),
    "resolution": (float, "smallest step the recording can show, in its units; else estimated"),
    "split_gaps": (
        bool,
        "false keeps frames in which a body is missing, masked in the loss (of a set that body "
        "alone), instead of cutting trajectories there",
    ),
}
NAMED = 4  # bodies in a message
SOME = 50  # episodes, that show what all of a run of `act` are like
OF_THE_RECORDING = ("labels", "resolution")  # not taken over from a run to other recordings


class Asked(NamedTuple):
    """The recordings that a command is asked for.

    Attributes:
        recordings: In the schema of the run's model.
        new: Whether the run was fitted to none of the files that they are from.
    """

    recordings: xr.Dataset
    new: bool


def asked_for(run: Run, chosen: Namespace) -> Asked:
    """The recordings asked for, less what the run was fitted to.

    Without DATA, and where DATA is the run's own, they are its held-out part. A run of `act` holds
    nothing out: its agent plays new episodes.
    """
    given = [f"--{name}" for name in DATA_OPTIONS if chosen[name] is not None]
    if chosen.recordings:
        return _of_data(run, chosen, given)
    if given:
        raise ConfigError(
            f"{given[0]} applies to DATA, and no DATA was given; the run's held-out part is read "
            "as it was for the fit"
        )
    if "acting" not in run.settings:
        return Asked(run.heldout(run.recordings(instead="give DATA")), new=False)
    from pyro_animacy.acting.evaluate import new_episodes  # takes the extra rl

    episodes = new_episodes(run.path, checkpoint=run.checkpoint)
    played = episodes.sizes["trajectory"]
    print(f"{run.path}: its agent has played {played} new episodes", file=sys.stderr)
    return Asked(episodes, new=True)


def _of_data(run: Run, chosen: Namespace, given: list[str]) -> Asked:
    """What of DATA the run was not fitted to; ``given`` are the options that DATA is read with."""
    own, acting = run.settings.get("data", {}), "acting" in run.settings
    data = data_options(chosen, own)
    source = str(run.path / REPLAY) if acting else own.get("source") or []
    files, learned = (files_named(run.card.model, of) for of in (data["source"], source))
    new = learned.isdisjoint(files)
    if new or acting:
        found = read_as_the_run(run, data, given)
        if run.data == "episodes":
            return Asked(suited_episodes(run.card, found), new=new)
        if (heldout := own_under_another_name(run, found)) is not None:
            said = "these are its own recordings under another name; their held-out part is used"
            print(f"{run.path}: {said}", file=sys.stderr)
            return Asked(heldout, new=False)
        return Asked(found, new=new)
    if learned != files:
        raise ConfigError(
            f"{run.path} was fitted to {min(learned & files)}; leave DATA out to use what it held "
            "out, or give other recordings"
        )
    data |= {"source": own["source"]}  # in the order that they were divided in
    if _present(data) == _present(own):
        heldout = run.heldout(read_data(run.card.model, data))
        print(f"{run.path}: its own recordings; their held-out part is used", file=sys.stderr)
        return Asked(heldout, new=False)
    fitted = run.fitted(run.recordings())
    found = read_data(run.card.model, data)
    unseen = ~np.isin(found["recording"], fitted["recording"])
    if not unseen.any():
        raise ConfigError(
            f"{run.path} was fitted to some of every recording in DATA; leave DATA and its options "
            "out to use what it held out"
        )
    count = f"{unseen.sum():,} of {how_many(len(unseen), 'trajectory')}"
    print(f"{run.path}: used are {count}, of recordings it was not fitted to", file=sys.stderr)
    return Asked(found.isel(trajectory=unseen), new=True)


def own_under_another_name(run: Run, found: xr.Dataset) -> xr.Dataset | None:
    """What a run held out of recordings that turn out to be its own; None of any others."""
    train, known = run.config.train, run.settings.get("heldout")
    try:
        heldout = split_recordings(found, train.heldout, train.validation, train.seed)[3]
    except DataError:  # too short to be
        return None
    # written in another format, the same positions are so by some digits
    if known is None or not np.allclose(known, fingerprint(heldout), rtol=1e-7, atol=0):
        return None
    return heldout


def files_named(model: str, source: str | list[str]) -> set[str]:
    """What a source names, of a folder its files, of a team's file both teams'.

    However a file is named, it is the same.
    """
    named = files_read(model, source)
    beside = (other_team(file) for file in named)
    return {absolute(file) for file in (*named, *beside) if file is not None}


def fitted_to(run: Run) -> xr.Dataset | None:
    """What a run of a model of episodes learned from; None where it does not say.

    Of a run of `act` so many of its episodes, evenly chosen, as tell what they are like.
    """
    if (run.path / REPLAY).is_dir():
        files = episode_files(run.path / REPLAY)
        return read_episodes([files[i] for i in evenly(len(files), SOME)])
    if not run.settings.get("data"):
        return None
    return run.fitted(run.recordings())


def read_as_the_run(run: Run, data: dict[str, Any], given: list[str]) -> xr.Dataset:
    """Read other recordings with the run's options, which a message must not take for the user's.

    Recordings at the model's rate already, as those that `direct` writes, are not downsampled
    unless that was ``given``.

    Raises:
        DataError: As `read_trajectories`.
    """
    taken = [f"--{name}" for name in DATA_OPTIONS if data.get(name) is not None]
    taken = [name for name in taken if name not in given]
    every = data.get("downsample") if "--downsample" in taken else None
    try:
        found = _of_the_runs_places(run, read_data(run.card.model, data))
        if every and every > 1 and np.isclose(found.attrs["fps"] * every, run.card.fps, rtol=0.01):
            print(
                f"{run.path}: its --downsample {every} is not taken over, since the recordings "
                f"have the model's {run.card.fps:g} frames a second already",
                file=sys.stderr,
            )
            found = _of_the_runs_places(run, read_data(run.card.model, data | {"downsample": 1}))
        _say_by_place(run, found)
        return found
    except DataError as error:
        if not taken:
            raise
        raise DataError(
            f"{error} ({', '.join(taken)} {'is' if len(taken) == 1 else 'are'} taken over from the "
            "run: give what is right for these recordings)"
        ) from None


def _of_the_runs_places(run: Run, found: xr.Dataset) -> xr.Dataset:
    """Whoever is present in the places that the run has, if it has as many."""
    places = [*run.card.bodies] if run.data == "scenes" else []
    if any(map(is_place, places)) and {*map(str, found["body"].values)} < {*places}:
        return in_places(found, places)
    return found


def _say_by_place(run: Run, found: xr.Dataset) -> None:
    """Say which body stands for which where they have other names than the run's."""
    if run.data != "scenes":
        return
    theirs, ours = [str(body) for body in found["body"].values], run.card.bodies
    if len(theirs) == len(ours) and {*theirs} != {*ours}:
        pairs = [f"{a} as {b}" for a, b in zip(theirs, ours, strict=True) if a != b]
        said = ", ".join(pairs[:NAMED]) + (", ..." if len(pairs) > NAMED else "")
        print(
            f"{run.path}: bodies are taken by their place, {said}; --bodies gives another order",
            file=sys.stderr,
        )


def _present(data: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in data.items() if value is not None}


def data_options(chosen: Namespace, default: dict[str, Any]) -> dict[str, Any]:
    """Arguments of `read_trajectories` from the options given, else from those of the run."""
    keep = [name for name in DATA_OPTIONS if name not in OF_THE_RECORDING]
    data = {name: value for name, value in default.items() if name in keep}
    given = {name: chosen[name] for name in DATA_OPTIONS if chosen[name] is not None}
    if "columns" in given:
        given["columns"] = _columns(given["columns"])
    paths = [absolute(path) for path in chosen.recordings]
    return {"source": paths[0] if len(paths) == 1 else paths, **data, **given}


def _columns(text: str) -> dict[str, str]:
    pairs = [pair.split("=", 1) for pair in text.split(",")]
    if any(len(pair) != 2 or not all(pair) for pair in pairs):
        raise ConfigError(
            f"--columns {text!r}: it must be role=name, such as 'id=player_id,x=pos_x'"
        )
    return {role.strip(): name.strip() for role, name in pairs}


def add_run(parser: ArgumentParser) -> None:
    """What every command that draws from a run takes."""
    parser.add_argument("run", type=str, help="folder of a fit")
    default = "what the fit held out, or of a run of `act` new episodes of its agent"
    text = f"{DATA_HELP}; where none are given, {default}"
    parser.add_argument("recordings", nargs="*", type=str, default=[], help=text)
    add_checkpoint(parser)
    parser.add_argument("--seed", type=int, default=0, help="seed of the draws")
    parser.add_argument("--overwrite", action="store_true", help="replace OUT if it exists")
    add_data_options(parser)


def add_checkpoint(parser: ArgumentParser) -> None:
    """Which of a run's checkpoints to load."""
    parser.add_argument(
        "--checkpoint", type=int | None, default=None, metavar="N",
        help="step (of `act`: episodes) of an older checkpoint, of a run with --train.keep",
    )  # fmt: skip


def add_data_options(parser: ArgumentParser) -> None:
    """The options of how recordings are read."""
    for name, (kind, text) in DATA_OPTIONS.items():
        parser.add_argument(f"--{name}", type=kind | None, default=None, help=text)
