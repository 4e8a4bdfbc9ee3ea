"""The errors a person can mend. The command line prints them as one line and exits with 2."""


class AnimacyError(Exception):
    """Something the user gave cannot be used; the message says what, where and how to mend it."""


class DataError(AnimacyError):
    """A recording cannot be read as trajectories."""


class ConfigError(AnimacyError):
    """An option has a value that cannot be used."""


class RunError(AnimacyError):
    """A run folder, a checkpoint or a file of draws cannot be used."""
