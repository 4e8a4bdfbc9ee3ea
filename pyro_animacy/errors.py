"""The errors a person can mend. The command line prints them as one line and exits with 2."""

import difflib
import shlex
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")


class AnimacyError(Exception):
    """Something the user gave cannot be used; the message says what, where and how to mend it."""


class DataError(AnimacyError):
    """A recording cannot be read as trajectories."""


class ConfigError(AnimacyError):
    """An option has a value that cannot be used."""


class MissingExtra(AnimacyError):  # noqa: N818
    """A package that is not part of the plain installation is needed.

    Args:
        what: What needs it.
        extra: The extra of pyro-animacy that installs it.
        error: What was raised where it was imported.
    """

    def __init__(self, what: str, extra: str, error: Exception | None = None) -> None:
        why = f" ({error})" if error else ""
        super().__init__(
            f"{what} needs the extra {extra}, which is not installed{why}; install it with: "
            f'pip install "pyro-animacy[{extra}]"'
        )


class RunError(AnimacyError):
    """A run folder, a checkpoint or a file of draws cannot be used."""


def require(prefix: str, values: Mapping[str, Any], *checks: tuple[str, Any, str]) -> None:
    """Check the values of options.

    Args:
        prefix: What stands before their names, such as ``train.``.
        values: By name; of a dataclass its ``vars``.
        *checks: Of each the name, whether its value is good, and what it must be: "positive".

    Raises:
        ConfigError: For the first that is not good: "train.epsilon is 0; it must be positive".
    """
    for name, good, wanted in checks:
        if not good:
            raise ConfigError(f"{prefix}{name} is {values[name]}; it must be {wanted}")


def named(what: str, name: str, among: Mapping[str, T]) -> T:
    """What a person chose by its name.

    Args:
        what: What it would be, with its name: ``preset 'huge'``.
        name: The name.
        among: All there are, by name.

    Raises:
        ConfigError: If there is none of this name; the message has the nearest, and all there are.
    """
    if name in among:
        return among[name]
    meant = did_you_mean(name, among)
    choose = f"{meant} Choose" if meant else "choose"
    raise ConfigError(f"{what} does not exist; {choose} one of {', '.join(among)}")


def did_you_mean(name: str, among: Iterable[str]) -> str:
    """The names like one that does not exist, as a question; empty where none is like it."""
    known = {each.lower(): each for each in among}
    near = difflib.get_close_matches(name.lower(), known, 2, 0.65)
    return f"did you mean {' or '.join(known[each] for each in near)}?" if near else ""


def how_many(count: int, noun: str) -> str:
    """How many there are of a thing, by its name in the singular: 1 body, 2,000 bodies."""
    if count == 1:
        return f"1 {noun}"
    ies = noun.endswith("y") and noun[-2:-1] not in "aeiou"  # bodies, but displays
    return f"{count:,} {noun[:-1]}ies" if ies else f"{count:,} {noun}{'e' * noun.endswith('ch')}s"


def command_line(*words: str | Path) -> str:
    """A command as it is typed: names with blanks are quoted."""
    return shlex.join(["pyro-animacy", *map(str, words)])
