"""The models, one file each: config, networks, model, guide, in that order."""

from collections.abc import Callable
from typing import NamedTuple

from pyro_animacy.models.control_vae import ControlVAE, ControlVAEConfig, ControlVAEGuide
from pyro_animacy.models.program import MessengerGuide


class Family(NamedTuple):
    """How to build a model: ``model(config, scale=, bodies=, axes=)`` and ``guide(model)``."""

    config: type
    model: Callable[..., ControlVAE]
    guide: Callable[[ControlVAE], MessengerGuide]


FAMILIES: dict[str, Family] = {
    "control_vae": Family(ControlVAEConfig, ControlVAE, ControlVAEGuide),
}
