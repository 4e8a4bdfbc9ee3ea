"""What a command of ``pyro-animacy`` is, and what several of them do alike."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from jsonargparse import ArgumentParser, Namespace

from pyro_animacy.acting.config import ActConfig
from pyro_animacy.errors import RunError
from pyro_animacy.infer.config import FitConfig


class Defaults(NamedTuple):
    """Where options start from, by the preset that is named on the command line."""

    fit: FitConfig
    act: ActConfig


class Command(NamedTuple):
    """A command: how it is called, a line of help, its options, and what it does with them."""

    usage: str
    help: str
    parser: Callable[[Defaults], ArgumentParser]
    run: Callable[[Namespace], None]


def refuse_existing(path: str, overwrite: bool) -> None:
    """Find before the work, not after it, that OUT cannot be written."""
    if Path(path).exists() and not overwrite:
        raise RunError(f"--out {path}: exists; choose another, or give --overwrite to replace it")
    there = next(parent for parent in Path(path).absolute().parents if parent.exists())
    if not there.is_dir():
        raise RunError(f"--out {path}: its folder cannot be made, {there} is a file")
    if not os.access(there, os.W_OK):
        raise RunError(f"--out {path}: {there} may not be written; choose another")
