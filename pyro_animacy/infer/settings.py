"""``config.yaml`` of a run: every option as it was chosen, and where its recordings are."""

import dataclasses
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml

from pyro_animacy.errors import RunError
from pyro_animacy.infer import checkpoint
from pyro_animacy.infer.parse import said
from pyro_animacy.infer.recordings import HOW_READ, REPLAY

CONFIG = "config.yaml"
PARTS = {"family": str, "model": dict, "train": dict, "data": dict, "acting": dict}


def save_settings(path: Path, name: str, model: Any, train: Any, **others: Any) -> None:
    """Write ``config.yaml``: the model's name and options, those of its updates, and others."""
    settings = {
        **{"data": {}, **others},
        "family": name,
        "model": dataclasses.asdict(model),
        "train": dataclasses.asdict(train),
        "versions": {
            name: version(name) for name in ("pyro-animacy", "pyro-ppl", "torch", "numpy")
        },
    }
    text = yaml.safe_dump(_plain(settings), sort_keys=False)
    checkpoint.write_atomically(path / CONFIG, lambda to: to.write_text(text))


def read_settings(path: Path) -> dict[str, Any]:
    """Read ``config.yaml`` of a run.

    Raises:
        RunError: If it is missing or cannot be read, or a part of it is of another kind.
    """
    file = path / CONFIG
    if not file.is_file():
        raise RunError(f"{file}: no such file; {path} is not the folder of a run")
    try:
        settings = yaml.safe_load(file.read_text())
    except OSError as error:
        raise checkpoint.locked(file, error) from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise RunError(f"{file}: not readable as YAML ({error})".replace("\n", " ")) from None
    if not isinstance(settings, dict) or not {"model", "train"} <= settings.keys():
        raise RunError(f"{file}: it must have the sections model and train of a fitted run")
    for name, kind in PARTS.items():
        if not isinstance(settings.get(name, kind()), kind):
            wanted = "options by name" if kind is dict else "the name of a model"
            raise RunError(f"{file}: {name} is {said(settings[name])}; it must be {wanted}")
    source = settings.get("data", {}).get("source")
    if not all(isinstance(name, str) for name in _listed(source)):
        raise RunError(
            f"{file}: data.source is {said(source)}; it must be a path, or a list of them"
        )
    return settings


def data_of_run(path: Path, settings: dict[str, Any], instead: str) -> dict[str, Any]:
    """How the recordings of a run were read: the arguments of `read_trajectories`.

    Args:
        path: The run's folder.
        settings: Its ``config.yaml``.
        instead: What to do where it does not say.

    Raises:
        RunError: If it does not say where they are, they are not there any more, or it names an
            option that there is not.
    """
    data = settings.get("data")
    if "acting" in settings:
        raise RunError(
            f"{path}: a run of `act`, which has learned from its own episodes; read_episodes reads "
            f"them from {path / REPLAY}"
        )
    if not isinstance(data, dict) or not data.get("source"):
        raise RunError(f"{path / CONFIG}: does not say where the recordings are; {instead}")
    files = map(Path, _listed(data["source"]))
    gone = [file for file in files if file.is_absolute() and not file.exists()]
    if gone:
        raise RunError(
            f"{path}: was fitted to {gone[0]}, where there is nothing now; if its recordings have "
            f"moved, correct data.source in {path / CONFIG}"
        )
    for name, kind in HOW_READ.items():
        value = data.get(name)
        if value is not None and not isinstance(value, kind):
            raise RunError(f"{path / CONFIG}: data.{name} is {value!r}, of a type it cannot have")
    if unknown := data.keys() - {"source", *HOW_READ}:
        raise RunError(
            f"{path / CONFIG}: data.{min(map(str, unknown))} is no option of how recordings are "
            f"read; delete it; there are {', '.join(HOW_READ)}"
        )
    return data


def _listed(source: Any) -> list[Any]:
    """What a source names, one by one."""
    return source if isinstance(source, list) else [source] if source else []


def _plain(value: Any) -> Any:
    """Turn tuples and paths into what YAML holds."""
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    return str(value) if isinstance(value, Path) else value
