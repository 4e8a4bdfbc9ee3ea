"""The models, one file each: config, networks, model, guide, in that order."""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

from pyro_animacy.errors import named
from pyro_animacy.models.agent_control_vae import (
    AgentControlVAE,
    AgentControlVAEConfig,
    AgentControlVAEGuide,
)
from pyro_animacy.models.control_vae import ControlVAE, ControlVAEConfig, ControlVAEGuide
from pyro_animacy.models.image_vae import ImageVAE, ImageVAEConfig, ImageVAEGuide
from pyro_animacy.models.program import MessengerGuide
from pyro_animacy.models.state_space import StateSpaceConfig, StateSpaceGuide, StateSpaceModel
from pyro_animacy.models.world_model import WorldModel, WorldModelConfig, WorldModelGuide


class Family(NamedTuple):
    """How to build a model.

    Attributes:
        config: Type of its options.
        model: ``model(config, scale=, bodies=, axes=)`` of scenes, ``model(config, sight)`` of
            episodes.
        guide: ``guide(model)``.
        data: What it is a model of.
    """

    config: type
    model: Callable[..., Any]
    guide: Callable[[Any], MessengerGuide]
    data: Literal["scenes", "episodes"] = "scenes"


_STATE_SPACE = Family(StateSpaceConfig, StateSpaceModel, StateSpaceGuide)
FAMILIES: dict[str, Family] = {
    "control_vae": Family(ControlVAEConfig, ControlVAE, ControlVAEGuide),
    "deterministic": _STATE_SPACE,
    "stochastic": _STATE_SPACE,
    "rssm": _STATE_SPACE,
    "image_vae": Family(ImageVAEConfig, ImageVAE, ImageVAEGuide, "episodes"),
    "world_model": Family(WorldModelConfig, WorldModel, WorldModelGuide, "episodes"),
    "agent_control_vae": Family(
        AgentControlVAEConfig, AgentControlVAE, AgentControlVAEGuide, "episodes"
    ),
}


def family(name: str) -> Family:
    """Return the family of a model's name.

    Raises:
        ConfigError: If there is no such model.
    """
    return named(f"model {name!r}", name, FAMILIES)
