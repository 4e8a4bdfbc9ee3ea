"""The command line: from arguments to a command, and from what goes wrong to one line."""

import argparse
import json
import re
import signal
import sys
from collections.abc import Sequence
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentError, ArgumentParser

from pyro_animacy.acting.config import act_preset
from pyro_animacy.command import Defaults
from pyro_animacy.commands import COMMANDS
from pyro_animacy.errors import AnimacyError, ConfigError
from pyro_animacy.infer.presets import preset
from pyro_animacy.infer.run import CONFIG, read_settings
from pyro_animacy.infer.trainer import Interrupted


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code.

    0: done. 2: something given cannot be used, said in one line on stderr. 130, 143: stopped by
    SIGINT or SIGTERM, everything saved.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    with suppress(ValueError):  # only the main thread may; elsewhere signals do not come
        signal.signal(signal.SIGTERM, _terminated)
    try:
        return _run(arguments)
    except Interrupted as stop:
        print(f"pyro-animacy: {stop}", file=sys.stderr)
        return 128 + stop.signal
    except AnimacyError as error:
        print(f"pyro-animacy: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except MemoryError:
        print("pyro-animacy: out of memory; use fewer draws or less data", file=sys.stderr)
        return 2
    except KeyboardInterrupt as stop:
        print(f"pyro-animacy: stopped{_how_to_go_on(arguments)}", file=sys.stderr)
        return 143 if stop.args else 130


def _how_to_go_on(arguments: list[str]) -> str:
    """What to say of a fit stopped outside its training loop, which says so itself."""
    for option in ("--out", "--resume"):
        if arguments[:1] in (["fit"], ["act"]) and option in arguments[:-1]:
            path = Path(arguments[arguments.index(option) + 1])
            if (path / CONFIG).is_file():
                return f"; go on with: pyro-animacy {arguments[0]} --resume {path}"
    return ""


def _terminated(number: int, _: Any) -> None:
    """Take SIGTERM as SIGINT is taken."""
    raise KeyboardInterrupt(number)


def _run(arguments: list[str]) -> int:
    arguments = _model_named(arguments)
    defaults = _defaults(arguments)
    arguments = [_without_versions(word) for word in arguments]
    parser = _parser(defaults)
    try:
        chosen = parser.parse_args(arguments)
    except (ArgumentError, argparse.ArgumentError) as error:
        of = f"{arguments[0]} " if arguments and arguments[0] in COMMANDS else ""
        raise ConfigError(f"{_one_line(error)}; see pyro-animacy {of}--help") from None
    if chosen.command in ("fit", "act"):
        resumed = chosen[chosen.command].resume
        if resumed and len(arguments) > (2 if "=" in arguments[1] else 3):
            raise ConfigError("--resume takes data, options and folder from the run; give it alone")
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
        prog="pyro-animacy", exit_on_error=False, allow_abbrev=False,
        version=version("pyro-animacy"), description=(
            "Probabilistic programs for how a scene of moving bodies goes on: fit one to "
            "recordings, draw from it, see what it gets right and wrong."
        ),
    )  # fmt: skip
    commands = parser.add_subcommands(dest="command", required=True)
    for name, command in COMMANDS.items():
        commands.add_subcommand(name, command.parser(defaults), help=command.help)
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
    for index, word in enumerate(arguments):
        option, equals, value = word.removeprefix("--").partition("=")
        if word.startswith("--") and option in named and (equals or index + 1 < len(arguments)):
            named[option] = value if equals else arguments[index + 1]
        elif settings := _settings_of(word):
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
    kept = {name: settings[name] for name in ("family", "model", "train") if name in settings}
    if acting := settings.get("acting"):
        del kept["family"]  # every agent's is world_model
        kept |= {name: value for name, value in acting.items() if name != "environment"}
    else:
        print(
            f"{path}: model and train are used, not data; give its options again", file=sys.stderr
        )
    options = json.dumps(kept)
    return f"{option}={options}" if option else options


def _one_line(error: Exception) -> str:
    text = " ".join(str(error).split())
    union = re.match(
        r'Parser key "(.+?)": Does not validate .*Subtypes: \[(.+?)\] .*Given value: (.*)', text
    )
    if union:
        kinds = re.findall(r"class '(\w+)'", union[2])
        wanted = " or ".join("null" if kind == "NoneType" else kind for kind in kinds)
        text = f"--{union[1]} {union[3]}: expected {wanted}"
    return text.rstrip(".").replace("sample.out", "--out").replace("simulate.out", "--out")


if __name__ == "__main__":
    sys.exit(main())
