"""The command line: from arguments to a command, and from what goes wrong to one line."""

import argparse
import gc
import json
import os
import re
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from importlib.metadata import version
from itertools import zip_longest
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentError, ArgumentParser

from pyro_animacy import _first
from pyro_animacy.acting.config import act_preset, options_of
from pyro_animacy.command import Defaults
from pyro_animacy.commands import COMMANDS
from pyro_animacy.errors import AnimacyError, ConfigError, command_line, did_you_mean, named
from pyro_animacy.infer.parse import in_words
from pyro_animacy.infer.presets import preset
from pyro_animacy.infer.settings import CONFIG, read_settings
from pyro_animacy.infer.trainer import Interrupted


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code.

    0: done. 2: something given cannot be used, said in one line on stderr. 130, 143: stopped by
    SIGINT or SIGTERM, everything saved. 141: nobody reads what is printed.
    """
    if _first.command_line:
        gc.freeze()  # at the end to go through all that was loaded would take a second
        gc.enable()
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    sys.unraisablehook = _unraisable
    with suppress(AttributeError):  # a stream without an encoding has no need of it
        sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    try:
        with suppress(ValueError):  # only the main thread may; elsewhere signals do not come
            signal.signal(signal.SIGTERM, _terminated)
            if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:  # as `_first` left it
                signal.signal(signal.SIGINT, signal.default_int_handler)
        code = _run(arguments)
        if sys.stdout is not None:  # as where it was closed
            sys.stdout.flush()
        return code
    except BrokenPipeError:  # who read it has seen enough, as `head` has
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python flushes it again
        return 141
    except Interrupted as stop:
        print(f"pyro-animacy: {stop}", file=sys.stderr)
        return 128 + stop.signal
    except AnimacyError as error:
        return _refused(str(error))
    except OSError as error:
        if error.filename is None:  # not of a file, as where the reader of a pipe has ended
            raise
        mend = "change its permissions" if isinstance(error, PermissionError) else "give another"
        return _refused(f"{error.filename}: cannot be used ({error.strerror}); {mend}")
    except MemoryError:
        return _refused(
            "out of memory; give fewer bodies, a larger --downsample, shorter recordings, or fewer "
            "draws"
        )
    except KeyboardInterrupt as stop:
        print(f"pyro-animacy: stopped{_how_to_go_on(arguments)}", file=sys.stderr)
        return 143 if stop.args else 130


def _refused(why: str) -> int:
    print(f"pyro-animacy: {' '.join(why.split())}", file=sys.stderr)
    return 2


def _how_to_go_on(arguments: list[str]) -> str:
    """What to say of a fit stopped outside its training loop, which says so itself."""
    if arguments[:1] not in (["fit"], ["act"]):
        return ""
    given = dict(_options(arguments))
    for path in (Path(given[name]) for name in ("out", "resume") if name in given):
        if (path / CONFIG).is_file():
            return f"; go on with: {command_line(arguments[0], '--resume', path)}"
    return ""


def _options(arguments: list[str]) -> Iterator[tuple[str, str]]:
    """The options with a value: ``--name value`` or ``--name=value``."""
    for word, after in zip_longest(arguments, arguments[1:], fillvalue="--"):
        option, equals, value = word.partition("=")
        if word.startswith("--") and (equals or not after.startswith("--")):
            yield option.removeprefix("--"), value if equals else after


def _unraisable(error: Any) -> None:
    """Pass over what h5netcdf raises when it forgets a damaged file, which was named already."""
    if getattr(error.object, "__module__", None) != "h5netcdf.core":
        sys.__unraisablehook__(error)


def _terminated(number: int, _: Any) -> None:
    """Take SIGTERM as SIGINT is taken."""
    raise KeyboardInterrupt(number)


def _run(arguments: list[str]) -> int:
    if not arguments:
        raise ConfigError(f"no command given; choose one of {', '.join(COMMANDS)}")
    if not arguments[0].startswith("-"):
        named(f"command {arguments[0]!r}", arguments[0], COMMANDS)
    arguments = _model_named(arguments)
    defaults = _defaults(arguments)
    arguments = [_without_versions(word) for word in arguments]
    parser = _parser(defaults)
    try:
        chosen = parser.parse_args(arguments)
    except (ArgumentError, argparse.ArgumentError) as error:
        command = COMMANDS.get(arguments[0])
        said = _one_line(error, command.parser(defaults) if command else parser)
        of = f"{arguments[0]} " if command else ""
        see = " See" if said.endswith("?") else "; see"
        raise ConfigError(f"{said}{see} pyro-animacy {of}--help") from None
    except UnicodeDecodeError as error:  # which does not say of what
        given = [f"--{name} {value}" for name, value in _options(arguments)]
        files = " or ".join(word for word in given if Path(word.partition(" ")[2]).is_file())
        raise ConfigError(f"{files}: not text in UTF-8 ({error.reason}); save it so") from None
    if chosen.command in ("fit", "act"):
        resumed = chosen[chosen.command].resume
        if resumed and len(arguments) > (2 if "=" in arguments[1] else 3):
            raise ConfigError(
                "--resume takes data, options and folder from the run; give it alone (to train for "
                "longer than the run was to, fit anew, into another --out)"
            )
    if chosen.command == "act" and act_preset(chosen.act.preset, chosen.act.agent) != defaults.act:
        raise ConfigError(
            "a config file cannot name the preset or the agent; give --preset or --agent as an "
            "option"
        )
    if chosen.command == "fit" and preset(chosen.fit.preset, chosen.fit.family) != defaults.fit:
        raise ConfigError(
            "a config file cannot name the preset or the model; give --preset or --model as "
            "an option"
        )
    COMMANDS[chosen.command].run(chosen[chosen.command])
    return 0


def _parser(defaults: Defaults) -> ArgumentParser:
    parser = ArgumentParser(
        prog="pyro-animacy", usage="pyro-animacy COMMAND ...",
        exit_on_error=False, allow_abbrev=False,
        version=version("pyro-animacy"), description=(
            "Probabilistic programs for how a scene of moving bodies goes on: fit one to "
            "recordings, draw from it, see what it gets right and wrong."
        ),
    )  # fmt: skip
    commands = parser.add_subcommands(dest="command", required=True)
    for name, command in COMMANDS.items():
        options = command.parser(defaults)
        options.usage = f"pyro-animacy {name} {command.usage} [options]"  # all would be 80 lines
        commands.add_subcommand(name, options, help=command.help)
    return parser


def _model_named(arguments: list[str]) -> list[str]:
    """``--model NAME`` as ``--family NAME``, beside the options ``--model.NAME``."""
    return [
        word.replace("--model", "--family", 1)
        if word == "--model" or word.startswith("--model=")
        else word
        for word in arguments
    ]


def _defaults(arguments: list[str]) -> Defaults:
    """What is named on the command line (preset, model, agent) sets the defaults of the rest."""
    act = arguments[:1] == ["act"]
    named = {"preset": "small", "family": "control_vae", "agent": "planet"}
    for option, value in _options(arguments):
        if option in named:
            named[option] = value
        elif option == "config" and (settings := _settings_of(value)):
            named["family"] = settings.get("family", "control_vae")
            named["agent"] = settings.get("acting", named).get("agent", "planet")
    if act:
        return Defaults(preset(), act_preset(named["preset"], named["agent"]))
    return Defaults(preset(named["preset"], named["family"]), act_preset())


def _settings_of(word: str) -> dict[str, Any]:
    """What a run's own ``config.yaml``, given to --config, holds; empty for any other word."""
    option, _, path = word.rpartition("=")
    if option not in ("", "--config") or Path(path).name != CONFIG or not Path(path).is_file():
        return {}
    settings = read_settings(Path(path).parent)
    return settings if {"model", "train", "versions"} <= settings.keys() else {}


def _without_versions(word: str) -> str:
    """A run's own ``config.yaml`` as the options in it: model and train, and those of an agent."""
    if not (settings := _settings_of(word)):
        return word
    option, _, path = word.rpartition("=")
    kept: dict[str, Any] = {
        name: settings[name] for name in ("family", "model", "train") if name in settings
    }
    if "acting" in settings:
        kept = options_of(settings)
    else:
        print(
            f"{path}: model and train are used, not data; give its options again", file=sys.stderr
        )
    options = json.dumps(kept)
    return f"{option}={options}" if option else options


def _one_line(error: Exception, parser: ArgumentParser) -> str:
    """What argparse says, with the names that the person gives.

    Args:
        error: What it raised.
        parser: Of the command; of all where none was named.
    """
    text = in_words(error, before="--")
    begin, required, names = text.partition("are required: ")
    if required:
        # argparse names them "command.name", and with them positional ones that may be left out
        missing = {name.partition(".")[2] for name in names.split(", ")}
        asked = [action for action in parser._actions if action.dest in missing]
        shown = [
            action.option_strings[0] if action.option_strings else action.dest.upper()
            for action in asked
            if action.nargs != "*"
        ]
        return f"{begin}{required}{', '.join(shown)}"
    if found := re.match(r"argument (\S+): expected", text):
        return f"{found[1].replace('--family', '--model')}: its value is missing"
    found = re.match(
        r"unrecognized arguments: ([^\s=]+)|Subcommand '\w+' does not accept option '(\S+)'", text
    )
    if not found:
        return text
    word, in_file = found.groups()
    if word and not word.startswith("-"):
        return f"{word} is one word too many; give all files together, before the options"
    known = [*parser._option_string_actions]
    if in_file:
        known = [option.lstrip("-") for option in known]
    meant = did_you_mean(word or in_file, known)
    return f"there is no option {word or in_file}" + (f"; {meant}" if meant else "")


if __name__ == "__main__":
    sys.exit(main())
