"""Fit a model to recordings: train it, score it, save the run; or go on with a run.

Under `torchrun` the processes fit one model together; the first of them writes.
"""

import fcntl
import json
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from os import PathLike
from pathlib import Path
from typing import Any

import xarray as xr

from pyro_animacy.errors import ConfigError, RunError
from pyro_animacy.infer import checkpoint
from pyro_animacy.infer.config import FitConfig, parse_config
from pyro_animacy.infer.distributed import join
from pyro_animacy.infer.loop import BOARD
from pyro_animacy.infer.presets import preset
from pyro_animacy.infer.recordings import REPLAY, absolute, files_read, fingerprint
from pyro_animacy.infer.run import BEHAVIOUR, METRICS, REFERENCE, SUMMARY, Run
from pyro_animacy.infer.settings import CONFIG, read_settings, save_settings
from pyro_animacy.infer.trainer import Trainer


def fit(
    dataset: xr.Dataset,
    config: FitConfig | None = None,
    *,
    out: str | Path,
    overwrite: bool = False,
    data: dict[str, Any] | None = None,
    heldout: xr.Dataset | None = None,
    progress: bool = True,
) -> Run:
    """Fit a model to recordings, score it on held-out frames, and save the run.

    Args:
        dataset: Recordings in the schema of `pyro_animacy.data.schema`, or for a model of
            episodes in that of `pyro_animacy.data.episodes`.
        config: Options; the preset ``small`` by default.
        out: Folder to write: ``config.yaml``, ``baselines.safetensors``, ``metrics.jsonl``,
            ``best.safetensors``, ``trainer.pt``, ``summary.json``; with ``train.keep``
            ``checkpoints/``.
        overwrite: Replace a folder that exists.
        data: Where the recordings come from, kept in ``config.yaml`` so that they can be read
            again (`Run.recordings`): the arguments of `read_trajectories`.
        heldout: What to score the run on, of moving bodies; by default the share
            ``train.heldout`` of ``dataset``, which otherwise is fitted to in whole.
        progress: Say what was read, and show a progress bar.

    Returns:
        The run, with the best parameters loaded.

    Raises:
        DataError: If the recordings have not been read, or do not suit the model.
        RunError: If ``out`` exists, cannot be written, or the loss stops being a number; if
            another process of the fit ended (`LostProcess`).
        Interrupted: If SIGINT or SIGTERM came; everything is saved and `resume` goes on.
    """
    config = preset() if config is None else config
    if not isinstance(config, FitConfig):
        raise ConfigError(f"config is {config!r}; it must be a FitConfig, such as preset('small')")
    path, found_again = Path(out), _found_again(config.family, data)
    processes = join(config.train.device)
    trainer = Trainer(
        dataset, config, path, progress=progress, processes=processes, heldout=heldout
    )
    if not processes.first:
        return _finish(trainer)
    if _within(found_again, path / REPLAY):
        raise RunError(
            f"{path}: --overwrite would delete the episodes that are fitted to; choose another "
            "--out"
        )
    with new_folder(path, overwrite):
        save_settings(
            path, config.family, config.model, config.train, data=found_again,
            heldout=fingerprint(trainer.source.heldout_part),
        )  # fmt: skip
        if trainer.progress:
            print(trainer.source.describe(), file=sys.stderr)
        return _finish(trainer)


def resume(
    path: str | Path,
    dataset: xr.Dataset,
    *,
    heldout: xr.Dataset | None = None,
    progress: bool = True,
) -> Run:
    """Go on with a run that was stopped or killed, to the result it would have had.

    With another number of processes than before it goes on as well, under other noise.

    Args:
        path: The run's folder.
        dataset: The same recordings as before.
        heldout: Likewise, where it was given.
        progress: Show a progress bar.

    Raises:
        RunError: If there is nothing to resume, the recordings are not the same, or another
            process is at work on the run.
    """
    path = Path(path)
    config = parse_config(read_settings(path))
    processes = join(config.train.device)
    with alone_in(path) if processes.first else nullcontext():
        trainer = Trainer(
            dataset, config, path, progress=progress, processes=processes, heldout=heldout
        )
        if (path / checkpoint.TRAINER).is_file():
            trainer.load(checkpoint.load_trainer(path / checkpoint.TRAINER))
        return _finish(trainer)


def _found_again(model: str, data: dict[str, Any] | None) -> dict[str, Any]:
    """How recordings are read, with paths by which they are found from any folder.

    Of a folder its files, since what is put there later was not fitted to.
    """
    source = (data or {}).get("source")
    if not isinstance(source, str | PathLike | list | tuple):
        return data or {}
    files = [absolute(file) for file in files_read(model, source)]
    return {**(data or {}), "source": files[0] if len(files) == 1 else files}


def _within(data: dict[str, Any], folder: Path) -> bool:
    """Whether recordings are in a folder."""
    source = data.get("source", [])
    files = [source] if isinstance(source, str) else source
    return any(Path(file).is_relative_to(folder.resolve()) for file in files)


def _finish(trainer: Trainer) -> Run:
    if trainer.processes.first:
        trainer.source.begin(trainer.path, trainer.progress)
    trainer.train()
    if trainer.processes.first:
        run = Run.load(trainer.path)
        summary = trainer.source.conclude(run, trainer.progress) | {
            "train_seconds": round(trainer.seconds, 2),
            "steps": trainer.step,
            "batch_size": trainer.source.batch_size,
        }
        text = json.dumps(summary, indent=2) + "\n"
        checkpoint.write_atomically(run.path / SUMMARY, lambda to: to.write_text(text))
    trainer.processes.from_first(trainer.step)  # the others load what the first has written
    return Run.load(trainer.path)


@contextmanager
def alone_in(path: Path) -> Iterator[None]:
    """Keep other processes of this machine from writing a run while this one does.

    The lock is on the folder itself: it ends with the process, however that ends, and leaves
    nothing behind. A file system without locks is left unguarded.

    Raises:
        RunError: If another process has it.
    """
    handle = os.open(path, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RunError(
                f"{path}: another process is at work on this run; wait until it has ended, or stop "
                "it first"
            ) from None
        except OSError:
            pass
        yield
    finally:
        os.close(handle)


@contextmanager
def new_folder(path: Path, overwrite: bool) -> Iterator[None]:
    """Make the folder of a run, or empty one of the files of a run, and be alone in it.

    Raises:
        RunError: If it exists and is not to be overwritten, is no run's, cannot be made, or another
            process is at work on it.
    """
    if path.exists() and not overwrite:
        raise RunError(f"{path}: exists; choose another --out, or give --overwrite to replace it")
    if path.is_file():
        raise RunError(f"{path}: a file, not the folder of a run; choose another --out")
    # A kill while the first file was written leaves its temporary file alone.
    others = path.exists() and any(not p.name.startswith(f".{CONFIG}.") for p in path.iterdir())
    if others and not (path / CONFIG).is_file():
        raise RunError(f"{path}: not the folder of a run, so it is not overwritten; choose another")
    with ExitStack() as stack:
        try:
            path.mkdir(parents=True, exist_ok=True)
            stack.enter_context(alone_in(path))
            for name in (checkpoint.KEPT, REPLAY):
                if (path / name).exists():
                    shutil.rmtree(path / name)
            for name in (*checkpoint.FILES, METRICS, SUMMARY, BEHAVIOUR, REFERENCE):
                (path / name).unlink(missing_ok=True)  # what else is there stays
            for events in (path / BOARD).glob("events.out.tfevents.*"):
                events.unlink()  # or TensorBoard draws both runs as one
            (path / CONFIG).unlink(missing_ok=True)  # last: until then it is the folder of a run
        except OSError as error:
            why = error.strerror or error
            raise RunError(f"{path}: cannot be made ({why}); choose another --out") from None
        yield
