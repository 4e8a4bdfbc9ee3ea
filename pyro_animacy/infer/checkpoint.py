"""A run on disk: weights that describe themselves, and the state to go on from.

- ``best.safetensors``: of a fit the averaged parameters with the best validation score, or without
  patience the last; of `act` the latest, not averaged. Its header holds what is needed to build the
  model again and a digest of the parameters.
- ``trainer.pt``: parameters, their average, optimiser and counters, loaded with
  ``weights_only=True``.
- ``baselines.safetensors``: the linear-Gaussian baselines, fitted to the same recordings.
- ``checkpoints/N/``: with ``train.keep``, the parameters as they were at the evaluation after step
  (of `act`: episode) N.

All are written to a temporary file and renamed, so that a kill at any moment leaves the last good
one. Nothing is ever unpickled.
"""

import dataclasses
import hashlib
import json
import os
import pickle
import shutil
import tempfile
import zipfile
from collections.abc import Callable, Mapping, Sequence, Set
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from pyro_animacy.data.windows import Scale
from pyro_animacy.errors import RunError
from pyro_animacy.models.linear_gaussian import LinearAutoregression
from pyro_animacy.models.world_model import Sight

FORMAT = 1
_UMASK = os.umask(0)
os.umask(_UMASK)
FILES = WEIGHTS, TRAINER, BASELINES = "best.safetensors", "trainer.pt", "baselines.safetensors"
KEPT = "checkpoints"  # folder of a run


@dataclasses.dataclass(frozen=True)
class ModelCard:
    """What is needed to build a model again before its parameters are loaded.

    Attributes:
        model: Name of the model.
        config: The model's options.
        scale: The length scale of its recordings.
        bodies: Names of the bodies.
        axes: Names of the axes.
        fps: Frames per second.
        units: Units of position.
        format: Version of this layout.
    """

    model: str
    config: dict[str, Any]
    scale: Scale
    bodies: tuple[str, ...]
    axes: tuple[str, ...]
    fps: float
    units: str
    format: int = FORMAT

    @property
    def parts(self) -> int:
        """Into how many parts that count by themselves a step falls: the bodies of a set."""
        return parts_of(self.config, self.bodies)


def parts_of(config: Mapping[str, Any], bodies: Sequence[str]) -> int:
    """Into how many parts that count by themselves a step falls: the bodies of a set."""
    return len(bodies) if config.get("structure") == "set" else 1


@dataclasses.dataclass(frozen=True)
class EpisodeCard:
    """What is needed to build a model of episodes again before its parameters are loaded.

    Attributes:
        model: Name of the model.
        config: The model's options.
        sight: What there is to see in the episodes.
        fps: Frames per second.
        format: Version of this layout.
    """

    model: str
    config: dict[str, Any]
    sight: Sight
    fps: float
    format: int = FORMAT


STATE = {
    "parameters", "average", "optimizer", "step", "best", "stale", "seconds", "recordings",
}  # fmt: skip


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Write a file beside ``path`` and rename it, so that ``path`` is old or new, never half.

    Raises:
        RunError: If it cannot be written (a full disk, a missing permission); ``path`` stays.
    """
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        os.close(handle)
        temporary = Path(name)
        write(temporary)
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.chmod(0o666 & ~_UMASK)  # mkstemp lets only the owner read
        temporary.replace(path)
    except (OSError, RuntimeError, safetensors.SafetensorError) as error:
        if temporary is not None:
            temporary.unlink(missing_ok=True)
        number = getattr(error, "errno", None)
        said = os.strerror(number) if number else error  # without the temporary file's name
        raise RunError(
            f"{path}: cannot be written ({said}); free some space or choose another folder. "
            "What was saved before is kept"
        ) from error


def save_weights(path: Path, state: dict[str, Tensor], card: ModelCard | EpisodeCard) -> None:
    """Write parameters and the model's card as safetensors."""
    tensors = {name: value.detach().cpu().contiguous() for name, value in state.items()}
    _save(path, tensors, json.dumps(dataclasses.asdict(card)))


def load_weights(path: Path) -> tuple[dict[str, Tensor], ModelCard | EpisodeCard]:
    """Read parameters and the model's card.

    Raises:
        RunError: If the file is missing, cut short, altered, or of a later version.
    """
    tensors, described = _read(path)
    try:
        fields = json.loads(described)
        if fields["format"] > FORMAT:
            raise RunError(
                f"{path}: written by a later version (format {fields['format']}, this one reads "
                f"{FORMAT}); upgrade pyro-animacy"
            )
        card: ModelCard | EpisodeCard
        if "sight" in fields:
            fields["sight"] = Sight(*(_tuple(v) for v in fields["sight"]))
            card = EpisodeCard(**fields)
        else:
            fields["scale"] = Scale(**{k: _tuple(v) for k, v in fields["scale"].items()})
            card = ModelCard(**{k: _tuple(v) for k, v in fields.items()})
    except (KeyError, TypeError, ValueError) as error:
        raise RunError(f"{path}: not the weights of a pyro-animacy model ({error!r})") from error
    return tensors, card


def keep(path: Path, number: int, most: int, save: Callable[[Path], object]) -> None:
    """Save the parameters of now in ``checkpoints/<number>/`` too, and delete the oldest.

    Args:
        path: The run's folder.
        number: The step or episode that they are of.
        most: How many are kept; 0 for none.
        save: Writes them into a folder.
    """
    if not most:
        return
    save(path / KEPT / str(number))
    for old in kept(path)[:-most]:
        shutil.rmtree(path / KEPT / str(old), ignore_errors=True)


def kept(path: Path) -> list[int]:
    """The steps or episodes of which a run has older checkpoints, in order."""
    return sorted(int(one.name) for one in (path / KEPT).glob("*") if one.name.isdecimal())


def folder(path: Path, checkpoint: int | None) -> Path:
    """Where a run's parameters are: its own folder, or that of an older checkpoint.

    Raises:
        RunError: If there is no such checkpoint; the message names those there are.
    """
    if checkpoint is None:
        return path
    if checkpoint not in (there := kept(path)):
        has = f"it has {', '.join(map(str, there))}" if there else "it has none (--train.keep 0)"
        raise RunError(f"{path}: has no checkpoint {checkpoint}; {has}")
    return path / KEPT / str(checkpoint)


def save_baselines(path: Path, baselines: dict[str, LinearAutoregression]) -> None:
    """Write the baselines' coefficients and covariances."""
    tensors = {
        f"{name}.{part}": value.contiguous()
        for name, baseline in baselines.items()
        for part, value in baseline.state_dict().items()
    }
    _save(path, tensors, "")


def load_baselines(path: Path) -> dict[str, LinearAutoregression]:
    """Read the baselines.

    Raises:
        RunError: If the file is missing, cut short or altered.
    """
    tensors, _ = _read(path)
    names = sorted(
        {key.split(".")[0] for key in tensors}, key=lambda n: ("each" in n, n.startswith("ar"), n)
    )
    return {
        name: LinearAutoregression(tensors[f"{name}.coefficients"], tensors[f"{name}.covariance"])
        for name in names
    }


def _save(path: Path, tensors: dict[str, Tensor], card: str) -> None:
    """Write tensors and a card with a digest of both.

    In one entry of the header: safetensors writes several in an order that changes.
    """
    header = {"pyro_animacy": json.dumps({"card": card, "sha256": _digest(tensors, card)})}
    write_atomically(path, lambda to: safetensors.torch.save_file(tensors, to, metadata=header))


def _read(path: Path) -> tuple[dict[str, Tensor], str]:
    """Read the tensors and the card of a file, and check that they are as written."""
    if not path.is_file():
        raise RunError(
            f"{path}: no such file; is this the folder of a finished run? If it was stopped, go "
            f"on with --resume {path.parent}"
        )
    try:
        path.open("rb").close()  # safetensors says of what may not be read that there is none
        with safetensors.safe_open(path, framework="pt") as file:
            header = json.loads((file.metadata() or {}).get("pyro_animacy", "{}"))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except PermissionError as error:
        raise locked(path, error) from None
    except (safetensors.SafetensorError, OSError, ValueError) as error:
        raise RunError(f"{path}: damaged ({error}); fit again") from error
    card = str(header.get("card", "")) if isinstance(header, dict) else ""
    if not isinstance(header, dict) or header.get("sha256") != _digest(tensors, card):
        raise RunError(f"{path}: altered since it was written (digest differs); fit again")
    return tensors, card


def save_trainer(path: Path, state: dict[str, Any]) -> None:
    """Write the state to go on from: tensors, numbers, strings and containers of them."""
    write_atomically(path, lambda to: torch.save(state, to))


def load_trainer(path: Path, names: Set[str] = STATE) -> dict[str, Any]:
    """Read the state to go on from, without unpickling.

    Args:
        path: The file.
        names: What it must hold.

    Raises:
        RunError: If the file is missing or damaged.
    """
    if not path.is_file():
        raise RunError(f"{path}: no such file; there is nothing to resume in {path.parent}")
    try:
        with zipfile.ZipFile(path) as archive:  # torch.load does not look at the checksums
            if archive.testzip() is not None:
                raise zipfile.BadZipFile
        state = torch.load(path, map_location="cpu", weights_only=True)
    except PermissionError as error:
        raise locked(path, error) from None
    except (RuntimeError, OSError, EOFError, ValueError, KeyError, NotImplementedError,
            zipfile.BadZipFile, pickle.UnpicklingError) as error:  # fmt: skip
        # Not torch's own message, which advises to unpickle.
        raise RunError(f"{path}: damaged or altered, cannot resume; fit again") from error
    if not isinstance(state, dict) or state.get("format") != FORMAT or not state.keys() >= names:
        raise RunError(f"{path}: not a trainer state this version can resume; fit again")
    return state


def locked(path: Path, error: OSError) -> RunError:
    """The error to raise of a run's file that may not be read."""
    return RunError(f"{path}: cannot be read ({error.strerror}); make it readable")


def _digest(tensors: dict[str, Tensor], card: str) -> str:
    digest = hashlib.sha256(card.encode())
    for name in sorted(tensors):
        digest.update(f"{name}{tuple(tensors[name].shape)}{tensors[name].dtype}".encode())
        digest.update(tensors[name].numpy().tobytes())
    return digest.hexdigest()


def _tuple(value: Any) -> Any:
    """A list from JSON as the tuple it was."""
    return tuple(value) if isinstance(value, list) else value
