"""Options as people write them, on the command line and in YAML, and what is said of wrong ones."""

import dataclasses
import re
from collections.abc import Iterator, Mapping
from typing import Any, get_args, get_type_hints

from jsonargparse import ArgumentError, ArgumentParser

from pyro_animacy.errors import ConfigError


def parsed(settings: Mapping[str, Any], kinds: Mapping[str, type]) -> Any:
    """The parts of settings as the dataclasses ``kinds`` has for them, checked.

    Raises:
        ConfigError: If a name or a type is not that of an option, or one is left empty; the message
            names it.
    """
    parser = ArgumentParser(exit_on_error=False)
    chosen = {part: settings[part] for part in kinds if part in settings}
    for part, kind in kinds.items():
        parser.add_argument(f"--{part}", type=kind, default=kind())
        if part in chosen:
            _check_given(part, kind, chosen[part])
    try:
        return parser.instantiate(parser.parse_object(chosen))
    except ArgumentError as error:
        raise ConfigError(f"config.yaml: {in_words(error)}") from None


def in_words(error: Exception, before: str = "") -> str:
    """What jsonargparse says of an option, in one line and without Python's types.

    Args:
        error: What it raised.
        before: What stands before the name of an option, such as ``--``.
    """
    text = " ".join(str(error).split()).rstrip(".")
    text = re.sub(r"Group '(\w+)' does not accept option '(\S+)'", r"\1.\2 is no option", text)
    found = re.match(
        r'Parser key "(.+?)": '
        r"(?:Does not validate .*Subtypes: \[(.+)\] Errors: .*Given|Expected an? (.+?)\. Got) "
        r"value: (.*)",
        text,
    )
    if not found:
        return re.sub('^Parser key "(.+?)": ', rf"{before}\1: ", text)
    name, several, one, value = found.groups()
    return f"{before}{name} is {value}; it must be {' or '.join(_kinds(several or one))}"


KINDS = {  # one, and several
    "int": ("a whole number", "whole numbers"),
    "float": ("a number", "numbers"),
    "bool": ("true or false", "true or false"),
    "str": ("text", "texts"),
    "NoneType": ("null", "null"),
}


def _kinds(types: str) -> Iterator[str]:
    """Types as Python prints them, in the words of a person who writes values: null, adam."""
    for name, literal, list_of in re.findall(
        r"<class '(\w+)'>|Literal\[(.+?)\]|tuple\[(\w+), \.\.\.\]", types
    ):
        if literal:
            yield from (choice.strip("'\"") for choice in literal.split(", "))
        else:
            yield f"a list of {KINDS[list_of][1]}" if list_of else KINDS.get(name, (name,))[0]


def said(value: Any) -> str:
    """What a file holds, in a message."""
    return "empty" if value is None else repr(value)


def _check_given(name: str, kind: Any, value: Any) -> None:
    """Raise ConfigError for a section that is no mapping, or a value left empty.

    The parser takes the first for one of defaults, in place of a preset's, and the second for good.
    """
    if dataclasses.is_dataclass(kind):
        if not isinstance(value, Mapping):
            raise ConfigError(
                f"{name} is {said(value)}; leave it out, or give options in it by name"
            )
        for option, inner in get_type_hints(kind).items():
            if option in value:
                _check_given(f"{name}.{option}", inner, value[option])
    elif value is None and type(None) not in get_args(kind):
        raise ConfigError(f"{name} is empty; leave it out, or give a value")
