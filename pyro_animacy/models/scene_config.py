"""Options that all models of scenes have, and what these say of a model before it is built."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from pyro_animacy.errors import ConfigError, require

REST_NEEDS = "training teacher forced, with a learned scale and a history of 2 or more"


@dataclass(frozen=True)
class SceneConfig:
    """Options that all models of scenes have.

    Args:
        history: Frames the networks see: s_t and the ``history - 1`` displacements before it.
        latent_size: Size Z of the latent z_t.
        memory_steps: The most steps before the one in question that scores and forecasts show to a
            model that remembers; null for as many as it is trained on (``train.window``). What its
            memory is to do after more steps it has never learned.
        likelihood: ``squared_error`` of the next state under a sampled action, or the ``policy``
            density of the recorded displacement.
        roll_out: ``closed_loop`` feeds the model's own state back; ``teacher_forced`` takes every
            step from the recording.
        policy_scale: Fixed standard deviation of the policy in root-mean-square displacements, or
            null to learn it (the policy likelihood only).
        rest: Whether the policy has a state of rest besides: every body moves by the Gaussian, or
            stays where it is (`pyro_animacy.resting`). Teacher forced, with a learned scale, and
            where the networks see the last displacement; otherwise nobody rests.
        arena: Part of the known transition in free motion. ``recorded``: bodies stop, as at a
            wall, where nothing was recorded beyond; ``open``: they go on.
        action_cost: w_a, weight of the expected squared action.
        action_cost_absolute: Weight of the expected absolute action, summed over coordinates.
        discount: gamma, the weight of step t is gamma^t.
    """

    history: int = 2
    latent_size: int = 16
    memory_steps: int | None = None
    likelihood: Literal["squared_error", "policy"] = "policy"
    roll_out: Literal["closed_loop", "teacher_forced"] = "teacher_forced"
    policy_scale: float | None = None
    rest: bool = False
    arena: Literal["recorded", "open"] = "recorded"
    action_cost: float = 0.0
    action_cost_absolute: float = 0.0
    discount: float = 1.0

    def __post_init__(self) -> None:
        """Check the values.

        Raises:
            ConfigError: If a value cannot be used; the message names it.
        """
        sigma = self.policy_scale
        require(
            "model.",
            vars(self),
            ("history", self.history >= 1, "at least 1"),
            ("memory_steps", self.memory_steps is None or self.memory_steps >= 2, "at least 2"),
            ("action_cost", self.action_cost >= 0, "0 or more"),
            ("action_cost_absolute", self.action_cost_absolute >= 0, "0 or more"),
            ("discount", 0 < self.discount <= 1, "in (0, 1]"),
            ("policy_scale", sigma is None or sigma > 0, "positive, or null"),
        )
        if self.likelihood == "squared_error" and self.policy_scale is None:
            raise ConfigError(
                "model.policy_scale must be given with the squared error, which would drive a "
                "learned scale to zero; the paper uses 0.05"
            )

    @property
    def latent_remembered(self) -> bool:
        """Whether z_{t-1} bears on later steps; if not, these are independent given the recording.

        So it may be with any model; one whose steps are independent says so.
        """
        return self.latent_size > 0

    @property
    def remembers(self) -> bool:
        """Whether more of the past bears on a step than the context c_t."""
        return self.latent_remembered or getattr(self, "memory_size", 0) > 0

    @property
    def rests(self) -> bool:
        """Whether bodies may rest."""
        return self.rest and allows_rest(vars(self))


def allows_rest(options: Mapping[str, Any]) -> bool:
    """Whether the options of a model have what a state of rest needs, `REST_NEEDS`.

    No gradient reaches a roll-out through the choice to rest; and whether a body has just rested is
    told by its last displacement.
    """
    learned = options.get("roll_out") == "teacher_forced" and options.get("policy_scale") is None
    return learned and options.get("history", 2) > 1
