"""The errors a person can mend. The command line prints them as one line and exits with 2."""

from collections.abc import Mapping
from typing import Any


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
