"""The models, one file each: config, networks, model, guide, in that order."""

from collections.abc import Callable
from typing import Any, NamedTuple

from pyro_animacy.errors import ConfigError
from pyro_animacy.models.control_vae import ControlVAE, ControlVAEConfig, ControlVAEGuide
from pyro_animacy.models.program import MessengerGuide
from pyro_animacy.models.state_space import StateSpaceConfig, StateSpaceGuide, StateSpaceModel


class Family(NamedTuple):
    """How to build a model: ``model(config, scale=, bodies=, axes=)`` and ``guide(model)``."""

    config: type
    model: Callable[..., Any]
    guide: Callable[[Any], MessengerGuide]


_STATE_SPACE = Family(StateSpaceConfig, StateSpaceModel, StateSpaceGuide)
FAMILIES: dict[str, Family] = {
    "control_vae": Family(ControlVAEConfig, ControlVAE, ControlVAEGuide),
    "deterministic": _STATE_SPACE,
    "stochastic": _STATE_SPACE,
    "rssm": _STATE_SPACE,
}


def family(name: str) -> Family:
    """Return the family of a model's name.

    Raises:
        ConfigError: If there is no such model.
    """
    if name not in FAMILIES:
        raise ConfigError(f"the model {name!r} does not exist; choose one of {', '.join(FAMILIES)}")
    return FAMILIES[name]
