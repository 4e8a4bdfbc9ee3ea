"""Options of a fit, and the presets."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from jsonargparse import ArgumentError, ArgumentParser

from pyro_animacy.data.windows import Symmetry
from pyro_animacy.errors import ConfigError
from pyro_animacy.infer.schedules import KLWeightConfig
from pyro_animacy.models.control_vae import ControlVAEConfig
from pyro_animacy.nets import StackConfig


@dataclass(frozen=True)
class TrainConfig:
    """Options of the training loop.

    Args:
        steps: Updates in all.
        batch_size: Windows in a batch.
        window: Steps T predicted in each window (its frames are history + T).
        optimizer: ``adam`` (with decoupled weight decay) or ``radam``.
        learning_rate: Its largest value.
        schedule: ``constant``, or ``cosine`` down to 1 % of it at the last step.
        weight_decay: Decoupled weight decay.
        clip_norm: Largest norm of the gradient.
        kl_weight: beta over epochs.
        steps_per_epoch: Updates that make an epoch, the unit of the KL weight's schedule.
        symmetry: Motions of the plane that leave the law of motion as it is: training windows are
            drawn under them. ``rotate``: turn and mirror about the centre; what remains is what
            the bodies do to each other. ``reflect``: mirror only, where the axes differ (a court's
            walls). ``none``: where its ends differ too (who attacks which goal).
        heldout: Share of the recordings (or of each recording's frames) never trained on.
        validation: Share of the rest that early stopping looks at.
        evaluate_every: Updates between evaluations on the validation part.
        patience: Evaluations without a better validation score before stopping; the best
            parameters are kept. Null: never stop, and keep the last.
        score_draws: K of the importance-weighted held-out score.
        seed: Seeds the split, the initial parameters, the batches and all noise.
        device: Where to train, as torch names it.
        tensorboard: Also write the metrics for TensorBoard (extra ``tensorboard``).
    """

    steps: int = 4000
    batch_size: int = 512
    window: int = 1
    optimizer: Literal["adam", "radam"] = "adam"
    learning_rate: float = 1e-3
    schedule: Literal["constant", "cosine"] = "cosine"
    weight_decay: float = 1e-4
    clip_norm: float = 10.0
    kl_weight: KLWeightConfig = field(default_factory=KLWeightConfig)
    steps_per_epoch: int = 1
    symmetry: Symmetry = "rotate"
    heldout: float = 0.2
    validation: float = 0.1
    evaluate_every: int = 250
    patience: int | None = 6
    score_draws: int = 64
    seed: int = 0
    device: str = "cpu"
    tensorboard: bool = False

    def __post_init__(self) -> None:
        """Check the values.

        Raises:
            ConfigError: If a value cannot be used; the message names it.
        """
        for name in ("steps", "batch_size", "window", "steps_per_epoch", "evaluate_every",
                     "score_draws"):  # fmt: skip
            if getattr(self, name) < 1:
                raise ConfigError(f"train.{name} is {getattr(self, name)}; expected at least 1")
        for name in ("learning_rate", "clip_norm"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"train.{name} is {getattr(self, name)}; expected it positive")
        for name in ("heldout", "validation"):
            if not 0 < getattr(self, name) < 1:
                raise ConfigError(f"train.{name} is {getattr(self, name)}; expected it in (0, 1)")
        if self.seed < 0:
            raise ConfigError(f"train.seed is {self.seed}; expected it not negative")
        if not self.weight_decay >= 0:
            raise ConfigError(f"train.weight_decay is {self.weight_decay}; expected 0 or more")
        if self.patience is not None and self.patience < 1:
            raise ConfigError(
                f"train.patience is {self.patience}; expected at least 1, or null to never stop"
            )


@dataclass(frozen=True)
class FitConfig:
    """Options of a fit.

    Args:
        model: Options of the model.
        train: Options of the training loop.
    """

    model: ControlVAEConfig = field(default_factory=ControlVAEConfig)
    train: TrainConfig = field(default_factory=TrainConfig)


def _small() -> FitConfig:
    """Made for two cores: the true bound, teacher forced, on single steps."""
    net = StackConfig(hidden=128, layers=3)
    return FitConfig(model=ControlVAEConfig(history=4, prior=net, posterior=net, policy=net))


def _debug() -> FitConfig:
    """Seconds, to see that everything runs."""
    net = StackConfig(hidden=16, layers=1)
    return FitConfig(
        model=ControlVAEConfig(latent_size=4, prior=net, posterior=net, policy=net),
        train=TrainConfig(steps=40, batch_size=32, evaluate_every=20, score_draws=4),
    )


def _seed() -> FitConfig:
    """The note: positions alone, squared error, closed loop, beta 0.01 to 0.1."""
    net = StackConfig(hidden=128, layers=2)
    return FitConfig(
        model=ControlVAEConfig(
            history=1, latent_size=16, posterior_scale="prior", likelihood="squared_error",
            roll_out="closed_loop", policy_scale=0.05, action_cost=0.001, discount=0.95,
            prior=net, posterior=net, policy=net,
        ),
        train=TrainConfig(
            steps=5000, batch_size=64, window=24, schedule="constant", learning_rate=1e-3,
            clip_norm=1.0, weight_decay=0.0, symmetry="none", patience=None,
            kl_weight=KLWeightConfig(start=0.01, end=0.1, levels=10, every=500),
        ),
    )  # fmt: skip


def _paper() -> FitConfig:
    """The paper's sizes, mixture of experts and beta table (Yao et al. 2022 and its code)."""
    net = StackConfig(hidden=512, layers=3, repeat_input=True)
    experts = StackConfig(
        hidden=512, layers=3, repeat_input=True, experts=6, blend="weights", layer_norm=True
    )
    return FitConfig(
        model=ControlVAEConfig(
            history=2, latent_size=64, posterior_scale="prior", likelihood="squared_error",
            roll_out="closed_loop", policy_scale=0.05, action_cost=0.001, discount=0.95,
            prior=net, posterior=net, policy=experts,
        ),
        train=TrainConfig(
            steps=36_000, batch_size=512, window=24, optimizer="radam", schedule="constant",
            learning_rate=1e-5, clip_norm=1.0, weight_decay=0.0, symmetry="none", patience=None,
            kl_weight=KLWeightConfig(start=0.009, end=0.09, levels=9, every=500),
            steps_per_epoch=8,
        ),
    )  # fmt: skip


PRESETS = {"small": _small, "seed": _seed, "paper": _paper, "debug": _debug}


def preset(name: str = "small") -> FitConfig:
    """Return the options of a preset: ``small``, ``seed``, ``paper`` or ``debug``.

    Raises:
        ConfigError: If there is no such preset.
    """
    if name not in PRESETS:
        raise ConfigError(f"preset {name!r} does not exist; choose one of {', '.join(PRESETS)}")
    return PRESETS[name]()


def parse_config(settings: Mapping[str, Any]) -> FitConfig:
    """Return the options that ``config.yaml`` of a run holds, checked for names and types.

    Raises:
        ConfigError: If a name or a type is not that of an option; the message names it.
    """
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--fit", type=FitConfig)
    chosen = {name: settings[name] for name in ("model", "train") if name in settings}
    try:
        return parser.instantiate(parser.parse_object({"fit": chosen})).fit
    except ArgumentError as error:
        raise ConfigError(f"config.yaml: {' '.join(str(error).split())}") from None
