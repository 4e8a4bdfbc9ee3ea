"""Options of a fit."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from pyro_animacy.data.windows import Symmetry
from pyro_animacy.errors import ConfigError, require
from pyro_animacy.infer.parse import parsed
from pyro_animacy.infer.schedules import KLWeightConfig
from pyro_animacy.models import family
from pyro_animacy.models.agent_control_vae import AgentControlVAEConfig
from pyro_animacy.models.control_vae import ControlVAEConfig
from pyro_animacy.models.program import Overshooting
from pyro_animacy.models.scene_config import SceneConfig
from pyro_animacy.models.state_space import DynamicsConfig
from pyro_animacy.models.world_model import WorldModelConfig

BATCH = 512  # windows, where the options do not say
IMPORTANCE_SAMPLES = 4  # likewise, of steps that are weighted each by itself


@dataclass(frozen=True)
class UpdateConfig:
    """Options of one update of a model, of whatever loop.

    Args:
        batch_size: Windows in a batch, of all processes together. Null is 512; of a set of N > 3
            bodies 512 (3 / N)^2 and at least 8, which take about as long.
        window: Steps T predicted in each window of recordings, which has history + T frames; of
            episodes, the frames of each window.
        optimizer: ``adam`` (with decoupled weight decay) or ``radam``.
        learning_rate: Its largest value.
        epsilon: Added to the root of the second moment.
        weight_decay: Decoupled weight decay.
        transition_learning_rate: That of a learned transition (`agent_control_vae`), under the same
            schedule; null for ``learning_rate``.
        transition_weight_decay: Likewise; null for ``weight_decay``.
        clip_norm: Largest norm of the gradient.
        kl_weight: beta over epochs.
        free_nats: Nats of KL a step, summed over the latent's dimensions, that cost nothing.
        free_nats_of: Clip the KL of each ``step`` (PlaNet), or the ``mean`` over all (Dreamer).
        kl_balance: alpha of alpha KL(sg(q) || p) + (1 - alpha) KL(q || sg(p)), which moves the
            prior faster than the posterior (DreamerV2: 0.8), and by the KL alone; null for the
            plain KL.
        overshooting: What is asked of steps further ahead, of state-space models.
        steps_per_epoch: Updates that make an epoch, the unit of the KL weight's schedule.
        seed: Seeds the split, the initial parameters, the batches and all noise.
        device: Where to train, as torch names it.
        tensorboard: Also write the metrics for TensorBoard (extra ``tensorboard``).
        keep: Older checkpoints kept, the parameters as they were at the last so many evaluations
            (``checkpoints/<step or episode>/``, see `Run.load`); 0 for none.
    """

    batch_size: int | None = None
    window: int = 1
    optimizer: Literal["adam", "radam"] = "adam"
    learning_rate: float = 1e-3
    epsilon: float = 1e-8
    weight_decay: float = 1e-4
    transition_learning_rate: float | None = None
    transition_weight_decay: float | None = None
    clip_norm: float = 10.0
    kl_weight: KLWeightConfig = field(default_factory=KLWeightConfig)
    free_nats: float = 0.0
    free_nats_of: Literal["step", "mean"] = "step"
    kl_balance: float | None = None
    overshooting: Overshooting = field(default_factory=Overshooting)
    steps_per_epoch: int = 1
    seed: int = 0
    device: str = "cpu"
    tensorboard: bool = False
    keep: int = 0

    def __post_init__(self) -> None:
        """Check the values.

        Raises:
            ConfigError: If a value cannot be used; the message names it.
        """
        alpha = self.kl_balance
        rate, decay = self.transition_learning_rate, self.transition_weight_decay
        require(
            "train.",
            vars(self),
            ("batch_size", self.batch_size is None or self.batch_size >= 1, "at least 1, or null"),
            ("window", self.window >= 1, "at least 1"),
            ("learning_rate", self.learning_rate > 0, "positive"),
            ("epsilon", self.epsilon > 0, "positive"),
            ("weight_decay", self.weight_decay >= 0, "0 or more"),
            ("transition_learning_rate", rate is None or rate > 0, "positive, or null"),
            ("transition_weight_decay", decay is None or decay >= 0, "0 or more, or null"),
            ("clip_norm", self.clip_norm > 0, "positive"),
            ("free_nats", self.free_nats >= 0, "0 or more"),
            ("kl_balance", alpha is None or 0 < alpha < 1, "in (0, 1), or null"),
            ("steps_per_epoch", self.steps_per_epoch >= 1, "at least 1"),
            ("seed", self.seed >= 0, "0 or more"),
            ("keep", self.keep >= 0, "0 or more"),
        )

    @property
    def windows_each(self) -> int:
        """Windows in a batch, where the model has no say in it."""
        return self.batch_size or BATCH


@dataclass(frozen=True)
class TrainConfig(UpdateConfig):
    """Options of the training loop, besides those of its updates.

    Args:
        steps: Updates in all.
        schedule: Of the learning rate: ``constant``, or ``cosine`` down to 1 % of its largest value
            at the last step.
        ema_decay: Of the exponential moving average of the parameters over updates, which is what
            is validated, saved and scored; 0 for the parameters as the last update left them.
            After n updates it is (1 + n) / (10 + n) at most.
        symmetry: Motions of the plane that leave the law of motion as it is: training windows are
            drawn under them. ``rotate``: turn and mirror about the centre; what remains is what
            the bodies do to each other. ``reflect``: mirror only, where the axes differ (a court's
            walls). ``none``: where its ends differ too (who attacks which goal). Of scenes; null
            is ``rotate``.
        heldout: Share of the recordings (or of each recording's frames) never trained on.
        validation: Share of the rest that early stopping looks at.
        evaluate_every: Updates between evaluations on the validation part.
        patience: Evaluations without a better validation score before stopping; the best
            parameters are kept. Null: never stop, and keep the last.
        importance_samples: K of the bound that is trained on: 1 is the ELBO, more are the tighter
            importance-weighted bound (`ImportanceWeightedELBO`). Of steps that are independent
            given the recording: `control_vae`, teacher forced, with the policy likelihood and no
            action cost. Null is 4 there where the KL has no options (free nats, balance), and 1
            everywhere else.
        score_draws: K of the importance-weighted held-out score. Of scenes; null is 64.
        checkpoint_activations: Keep no hidden activations for the backward pass, compute them again
            there: less memory for long windows, in about 1.3 times the time.
        precision: ``bf16-mixed`` takes products of matrices within feedforward networks, and their
            gradients, in bfloat16: faster for networks of some 512 units on a processor that
            multiplies in it, slower for small ones. States, densities, sums and parameters stay in
            float32, and scores are of float32 wholly.
    """

    steps: int = 4000
    schedule: Literal["constant", "cosine"] = "cosine"
    ema_decay: float = 0.995
    symmetry: Symmetry | None = None
    heldout: float = 0.2
    validation: float = 0.1
    evaluate_every: int = 250
    patience: int | None = 6
    importance_samples: int | None = None
    score_draws: int | None = None
    checkpoint_activations: bool = False
    precision: Literal["float32", "bf16-mixed"] = "float32"

    def __post_init__(self) -> None:
        """Check the values.

        Raises:
            ConfigError: If a value cannot be used; the message names it.
        """
        super().__post_init__()
        patience, draws, K = self.patience, self.score_draws, self.importance_samples
        require(
            "train.",
            vars(self),
            ("steps", self.steps >= 1, "at least 1"),
            ("ema_decay", 0 <= self.ema_decay < 1, "in [0, 1)"),
            ("heldout", 0 < self.heldout < 1, "in (0, 1)"),
            ("validation", 0 < self.validation < 1, "in (0, 1)"),
            ("evaluate_every", self.evaluate_every >= 1, "at least 1"),
            ("importance_samples", K is None or K >= 1, "at least 1, or null"),
            (
                "patience",
                patience is None or patience >= 1,
                "at least 1, or null to never stop",
            ),
            ("score_draws", draws is None or draws >= 1, "at least 1, or null"),
        )


@dataclass(frozen=True)
class FitConfig:
    """Options of a fit.

    Args:
        family: Name of the model, one of `pyro_animacy.models.FAMILIES`.
        model: Options of the model, of the type that its family has.
        train: Options of the training loop.
    """

    family: str = "control_vae"
    model: Any = field(default_factory=ControlVAEConfig)
    train: TrainConfig = field(default_factory=TrainConfig)

    def __post_init__(self) -> None:
        """Check that the options are those of the family.

        Raises:
            ConfigError: If there is no such family, or the options are of another.
        """
        if not isinstance(self.model, family(self.family).config):
            raise ConfigError(
                f"the options are {type(self.model).__name__}; the model {self.family} takes "
                f"{family(self.family).config.__name__}"
            )
        for name, without in (("deterministic", "latent_size"), ("stochastic", "memory_size")):
            if self.family == name and getattr(self.model, without):
                raise ConfigError(
                    f"model.{without} is {getattr(self.model, without)}, and {name} is the model "
                    "without it; take the model rssm, which has both"
                )
        self._check_of_scenes()
        self._check_transition()
        self._check_window()
        self._check_overshooting()
        self._check_importance()

    def _check_of_scenes(self) -> None:
        if family(self.family).data == "scenes":
            return
        for name in ("symmetry", "score_draws"):
            if (value := getattr(self.train, name)) is not None:
                raise ConfigError(
                    f"train.{name} is {value}; it is of models of scenes, and {self.family} is one "
                    "of episodes: leave it out"
                )

    def _check_transition(self) -> None:
        if isinstance(self.model, AgentControlVAEConfig):
            return
        for name in ("transition_learning_rate", "transition_weight_decay"):
            if (value := getattr(self.train, name)) is not None:
                raise ConfigError(
                    f"train.{name} is {value}; {self.family} has no transition with a term of its "
                    "own, as agent_control_vae has: leave it out"
                )

    @property
    def remembers(self) -> bool:
        """Whether the model is of scenes and looks back further than its history."""
        return isinstance(self.model, SceneConfig) and self.model.remembers

    def _check_window(self) -> None:
        """Raise ConfigError for a window too short for the model, or for its memory."""
        model, window = self.model, self.train.window
        if isinstance(model, AgentControlVAEConfig) and window < 2:
            raise ConfigError(
                "train.window is 1, a frame without a step; agent_control_vae learns from 2 frames "
                "or more: give --train.window 17, say, for 16 steps"
            )
        if not self.remembers:
            return
        if window < 2:
            raise ConfigError(
                "train.window is 1; a model that remembers learns nothing from single steps: give "
                "as many as it should look back, such as --train.window 32"
            )
        if model.memory_steps is not None and model.memory_steps > window:
            raise ConfigError(
                f"model.memory_steps is {model.memory_steps} and train.window {window}; a memory "
                "of more steps than it is trained on has not learned what it does: leave "
                "memory_steps out, or give a longer window"
            )

    def _check_overshooting(self) -> None:
        model, distance = self.model, self.train.overshooting.distance
        if distance == 1:
            return
        if isinstance(model, WorldModelConfig) and not model.latent_size:
            raise ConfigError(
                "train.overshooting asks what was expected of frames before they were seen, and "
                "with model.latent_size 0 none is ever seen: all are predicted in open loop "
                "already; leave it out, or give a latent_size"
            )
        remembers = isinstance(model, DynamicsConfig) and model.latent_size > 0
        if not remembers or getattr(model, "roll_out", "teacher_forced") != "teacher_forced":
            raise ConfigError(
                "train.overshooting needs a model whose latents remember (rssm, stochastic, "
                "world_model), teacher forced"
            )
        if (gamma := getattr(model, "discount", 1.0)) < 1:
            raise ConfigError(
                f"model.discount is {gamma}, and train.overshooting needs 1: its terms are of "
                "windows, in which no step counts less"
            )
        if self.train.window <= distance:
            raise ConfigError(
                f"train.overshooting.distance is {distance} and train.window {self.train.window}; "
                "the window must be longer, or no step is so far ahead"
            )

    @property
    def importance_samples(self) -> int:
        """K of the bound that is trained on; 1 is the ELBO."""
        several = self._independent and self._without_kl_options
        return self.train.importance_samples or (IMPORTANCE_SAMPLES if several else 1)

    @property
    def _independent(self) -> bool:
        """Whether steps are independent given the recording, and their loss is of a density."""
        model = self.model
        return (
            isinstance(model, SceneConfig)
            and model.latent_size > 0
            and not model.latent_remembered
            and (model.roll_out, model.likelihood) == ("teacher_forced", "policy")
            and not (model.action_cost or model.action_cost_absolute)
        )

    @property
    def _without_kl_options(self) -> bool:
        return not self.train.free_nats and self.train.kl_balance is None

    def _check_importance(self) -> None:
        if (K := self.train.importance_samples or 1) == 1:
            return
        if not self._independent:
            raise ConfigError(
                f"train.importance_samples is {K}; only steps that are independent given the "
                "recording are weighted each by itself, as those of control_vae: teacher forced, "
                "with the policy likelihood and no action cost. Leave it out"
            )
        if not self._without_kl_options:
            raise ConfigError(
                f"train.importance_samples is {K}, and that bound has no KL to balance or to leave "
                "free; set it to 1, or leave out free_nats and kl_balance"
            )


def parse_config(settings: Mapping[str, Any]) -> FitConfig:
    """Return the options that ``config.yaml`` of a run holds, checked for names and types.

    Raises:
        ConfigError: If a name or a type is not that of an option; the message names it.
    """
    name = settings.get("family", "control_vae")
    read = parsed(settings, {"model": family(name).config, "train": TrainConfig})
    return FitConfig(name, read.model, read.train)


def parse_model(name: str, options: Mapping[str, Any]) -> Any:
    """Return the options of a model, checked for names and types; of how it is trained, nothing.

    Raises:
        ConfigError: As `parse_config`.
    """
    return parsed({"model": options}, {"model": family(name).config}).model
