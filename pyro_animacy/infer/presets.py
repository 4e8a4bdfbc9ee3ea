"""Presets: options that belong together, for each model."""

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial

from pyro_animacy.errors import named
from pyro_animacy.infer.config import FitConfig, TrainConfig
from pyro_animacy.infer.schedules import KLWeightConfig
from pyro_animacy.models import family
from pyro_animacy.models.agent_control_vae import AgentControlVAEConfig
from pyro_animacy.models.control_vae import ControlVAEConfig
from pyro_animacy.models.image_vae import ImageVAEConfig
from pyro_animacy.models.state_space import StateSpaceConfig
from pyro_animacy.models.world_model import WorldModelConfig
from pyro_animacy.nets import StackConfig

Preset = Callable[[], FitConfig]


def _small() -> FitConfig:
    """Made for two cores: a true bound, teacher forced, on single steps."""
    net = StackConfig(hidden=128, layers=3)
    return FitConfig(
        model=ControlVAEConfig(history=4, rest=True, prior=net, posterior=net, policy=net),
        train=TrainConfig(steps=12_000),
    )


def _debug() -> FitConfig:
    """Seconds, to see that everything runs."""
    net = StackConfig(hidden=16, layers=1)
    return FitConfig(
        model=ControlVAEConfig(latent_size=4, prior=net, posterior=net, policy=net),
        train=TrainConfig(steps=40, batch_size=32, evaluate_every=20, score_draws=4),
    )


def _seed() -> FitConfig:
    """The plain form: positions alone, squared error, closed loop, beta 0.01 to 0.1."""
    net = StackConfig(hidden=128, layers=2)
    return FitConfig(
        model=ControlVAEConfig(
            history=1, latent_size=16, posterior_scale="prior", likelihood="squared_error",
            roll_out="closed_loop", policy_scale=0.05, action_cost=0.001, discount=0.95,
            structure="joint", prior=net, posterior=net, policy=net,
        ),
        train=TrainConfig(
            steps=5000, batch_size=64, window=24, schedule="constant", learning_rate=1e-3,
            clip_norm=1.0, weight_decay=0.0, ema_decay=0.0, symmetry="none", patience=None,
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
            roll_out="closed_loop", policy_scale=0.05, action_cost=0.001,
            action_cost_absolute=0.01, discount=0.95, structure="joint", prior=net, posterior=net,
            policy=experts,
        ),
        train=TrainConfig(
            steps=36_000, batch_size=512, window=24, optimizer="radam", schedule="constant",
            learning_rate=1e-5, clip_norm=1.0, weight_decay=0.0, ema_decay=0.0, symmetry="none",
            patience=None,
            kl_weight=KLWeightConfig(start=0.009, end=0.09, levels=9, every=500),
            steps_per_epoch=8,
        ),
    )  # fmt: skip


def _small_state_space(name: str, memory_size: int, latent_size: int) -> FitConfig:
    """Windows of 32 steps, from a cold start each; sizes for two cores."""
    net = StackConfig(hidden=128, layers=2)
    return FitConfig(
        family=name,
        model=StateSpaceConfig(
            history=4, rest=True, memory_size=memory_size, latent_size=latent_size,
            prior=net, posterior=net, policy=net,
        ),
        train=TrainConfig(steps=4000, batch_size=32, window=32),
    )  # fmt: skip


def _debug_state_space(name: str, memory_size: int, latent_size: int) -> FitConfig:
    """Seconds, to see that everything runs."""
    net = StackConfig(hidden=16, layers=1)
    return FitConfig(
        family=name,
        model=StateSpaceConfig(
            memory_size=memory_size // 8, latent_size=latent_size // 4,
            prior=net, posterior=net, policy=net,
        ),
        train=TrainConfig(steps=40, batch_size=16, window=6, evaluate_every=20, score_draws=4),
    )  # fmt: skip


def _state_space(name: str, memory_size: int, latent_size: int) -> dict[str, Preset]:
    return {
        "small": partial(_small_state_space, name, memory_size, latent_size),
        "debug": partial(_debug_state_space, name, memory_size, latent_size),
    }


def _image_vae() -> FitConfig:
    """World Models' V with a learned scale: passes PCA of as many components in minutes."""
    return FitConfig(
        family="image_vae",
        model=ImageVAEConfig(image_scale=None),
        train=TrainConfig(
            steps=2000, batch_size=16, schedule="constant", clip_norm=1000.0, weight_decay=0.0,
            evaluate_every=250,
        ),
    )  # fmt: skip


def _debug_image_vae() -> FitConfig:
    """Seconds, to see that everything runs."""
    return FitConfig(
        family="image_vae",
        model=ImageVAEConfig(latent_size=4),
        train=TrainConfig(steps=4, batch_size=4, evaluate_every=2),
    )


def _paper_image_vae() -> FitConfig:
    """Sum of squares, Adam 1e-4 and no clip, batches of 100, 0.5 free nats a dimension.

    The steps are World Models' 10 epochs if there are 100,000 frames to train on, about as many as
    theirs; of N frames, 10 epochs are N / 10 steps.
    """
    return FitConfig(
        family="image_vae",
        model=ImageVAEConfig(),
        train=TrainConfig(
            steps=10_000, batch_size=100, learning_rate=1e-4, schedule="constant",
            clip_norm=math.inf, weight_decay=0.0, free_nats=16.0, ema_decay=0.0, patience=None,
        ),
    )  # fmt: skip


def _world_model() -> FitConfig:
    """Sizes for two cores, on vectors; images take longer."""
    return FitConfig(
        family="world_model",
        model=WorldModelConfig(memory_size=128, latent_size=16),
        train=TrainConfig(steps=2000, batch_size=32, window=32),
    )


def _debug_world_model() -> FitConfig:
    """Seconds, to see that everything runs."""
    net = StackConfig(hidden=16, layers=1)
    return FitConfig(
        family="world_model",
        model=WorldModelConfig(
            memory_size=12, latent_size=4, prior=net, posterior=net, encoder=net, decoder=net,
            reward=net, continuation=net,
        ),
        train=TrainConfig(steps=10, batch_size=4, window=6, evaluate_every=5),
    )  # fmt: skip


def _planet() -> FitConfig:
    """PlaNet's values (Hafner et al. 2019, appendix A): pixels, 50 windows of 50 frames."""
    net = StackConfig(hidden=200, layers=1, activation="relu")
    head = StackConfig(hidden=300, layers=3, activation="relu")
    return FitConfig(
        family="world_model",
        model=WorldModelConfig(
            memory_size=200, latent_size=30, prior=net, posterior=net, reward=head,
            observation_scale=1.0, reward_weight=10.0,
        ),
        train=TrainConfig(
            steps=100_000, batch_size=50, window=50, schedule="constant", learning_rate=1e-3,
            epsilon=1e-4, clip_norm=1000.0, weight_decay=0.0, free_nats=3.0, ema_decay=0.0,
            patience=None,
        ),
    )  # fmt: skip


def _agent_control_vae() -> FitConfig:
    """Made for two cores: windows of 16 steps, and the true bound after the first 1,000 updates.

    At beta = 1 from the start, z stays unused: a policy as wide as the actions is found first.
    """
    return FitConfig(
        family="agent_control_vae",
        model=AgentControlVAEConfig(),
        train=TrainConfig(
            steps=4000, batch_size=32, window=17,
            kl_weight=KLWeightConfig(start=0.01, end=1.0, levels=20, every=50),
        ),
    )  # fmt: skip


def _paper_agent_control_vae() -> FitConfig:
    """The paper's Algorithm 1 and the values of its code: see docs/models/agent_control_vae.md."""
    paper = _paper()
    scene: ControlVAEConfig = paper.model
    return FitConfig(
        family="agent_control_vae",
        model=AgentControlVAEConfig(
            latent_size=64, posterior_scale="prior", roll_out="closed_loop", policy_scale=0.05,
            transition_steps=8, action_cost=0.001, action_cost_absolute=0.01, discount=0.95,
            prior=scene.prior, posterior=scene.posterior, policy=scene.policy,
            transition=StackConfig(hidden=512, layers=4),
        ),
        train=replace(
            paper.train, window=25, symmetry=None, score_draws=None,
            transition_learning_rate=2e-3, transition_weight_decay=1e-3,
        ),
    )  # fmt: skip


def _debug_agent_control_vae() -> FitConfig:
    """Seconds, to see that everything runs."""
    net = StackConfig(hidden=16, layers=1)
    return FitConfig(
        family="agent_control_vae",
        model=AgentControlVAEConfig(
            latent_size=4, prior=net, posterior=net, policy=net, transition=net
        ),
        train=TrainConfig(steps=10, batch_size=4, window=6, evaluate_every=5),
    )


PRESETS: dict[str, dict[str, Preset]] = {
    "control_vae": {"small": _small, "seed": _seed, "paper": _paper, "debug": _debug},
    "deterministic": _state_space("deterministic", memory_size=128, latent_size=0),
    "stochastic": _state_space("stochastic", memory_size=0, latent_size=16),
    "rssm": _state_space("rssm", memory_size=128, latent_size=16),
    "image_vae": {"small": _image_vae, "paper": _paper_image_vae, "debug": _debug_image_vae},
    "world_model": {"small": _world_model, "planet": _planet, "debug": _debug_world_model},
    "agent_control_vae": {
        "small": _agent_control_vae,
        "paper": _paper_agent_control_vae,
        "debug": _debug_agent_control_vae,
    },
}


def presets_of(model: str) -> dict[str, Preset]:
    """The presets of a model by name; of one that has none, ``small``: all options at defaults."""
    return PRESETS.get(model) or {"small": partial(_defaults, model)}


def _defaults(model: str) -> FitConfig:
    config = family(model).config()
    several = getattr(config, "remembers", True)  # of episodes all do
    return FitConfig(model, config, TrainConfig(window=32 if several else 1))


def preset(name: str = "small", model: str = "control_vae") -> FitConfig:
    """Return the options of a preset of a model: ``small`` or ``debug``; some have more.

    Args:
        name: Of the preset.
        model: Name of the model, one of `pyro_animacy.models.FAMILIES`.

    Raises:
        ConfigError: If there is no such preset or model.
    """
    family(model)
    return named(f"preset {name!r} of {model}", name, presets_of(model))()
