"""Presets named after a paper have its values: a table from the papers and their public code.

Each row is an option, by its path, and the published value. What the presets cannot have stands in
docs/acting.md, "The papers' values".
"""

import dataclasses
import math
import re
from functools import reduce
from pathlib import Path

import pytest

from pyro_animacy.acting.config import ActConfig, act_preset
from pyro_animacy.infer.parse import parsed
from pyro_animacy.infer.presets import preset

# Yao et al. 2022, appendix and public code
CONTROL_VAE = {
    "model.latent_size": 64, "model.latent_scale": 0.3, "model.posterior_scale": "prior",
    "model.policy_scale": 0.05, "model.roll_out": "closed_loop", "model.discount": 0.95,
    "model.likelihood": "squared_error", "model.action_cost": 0.001,
    "model.action_cost_absolute": 0.01,
    "model.prior.hidden": 512, "model.prior.layers": 3, "model.prior.activation": "elu",
    "model.prior.repeat_input": True, "model.posterior.hidden": 512, "model.posterior.layers": 3,
    "model.posterior.activation": "elu", "model.posterior.repeat_input": True,
    "model.policy.hidden": 512, "model.policy.layers": 3, "model.policy.activation": "elu",
    "model.policy.experts": 6, "model.policy.blend": "weights", "model.policy.gate_hidden": 64,
    "model.policy.repeat_input": True, "model.policy.layer_norm": True,
    "train.batch_size": 512, "train.window": 24, "train.optimizer": "radam",
    "train.learning_rate": 1e-5, "train.clip_norm": 1.0, "train.weight_decay": 0.0,
    "train.kl_weight.start": 0.009, "train.kl_weight.end": 0.09, "train.kl_weight.levels": 9,
    "train.kl_weight.every": 500, "train.steps_per_epoch": 8,
}  # fmt: skip
# the note: positions alone, beta from 0.01 to 0.1, a step every 500 epochs
SEED = {
    "model.history": 1, "model.latent_scale": 0.3, "model.posterior_scale": "prior",
    "model.likelihood": "squared_error", "model.roll_out": "closed_loop",
    "model.policy_scale": 0.05, "model.discount": 0.95, "train.window": 24,
    "train.kl_weight.start": 0.01, "train.kl_weight.end": 0.1, "train.kl_weight.every": 500,
    "train.steps_per_epoch": 1,
}  # fmt: skip
# Ha & Schmidhuber 2018; 0.5 nats of each of 32 dimensions
IMAGE_VAE = {
    "model.latent_size": 32, "model.image_scale": math.sqrt(0.5), "train.free_nats": 16.0,
    "train.learning_rate": 1e-4,
    "train.batch_size": 100, "train.steps": 10_000,  # 10 epochs of 10^5 windows
}  # fmt: skip
# Hafner et al. 2019, appendix A and public code
PLANET = {
    "model.memory_size": 200, "model.latent_size": 30, "model.filters": 32,
    "model.keypoints": None, "model.prior.hidden": 200, "model.posterior.hidden": 200,
    "model.prior.activation": "relu", "model.reward.hidden": 300, "model.reward.layers": 3,
    "model.reward.activation": "relu", "model.observation_scale": 1.0, "model.reward_scale": 1.0,
    "model.reward_weight": 10.0, "train.batch_size": 50, "train.window": 50,
    "train.learning_rate": 1e-3, "train.epsilon": 1e-4, "train.clip_norm": 1000.0,
    "train.weight_decay": 0.0, "train.free_nats": 3.0, "train.free_nats_of": "step",
    "train.kl_balance": None, "train.kl_weight.start": 1.0, "train.overshooting.distance": 1,
}  # fmt: skip
PLANET_ACTS = PLANET | {
    "agent": "planet", "pixels": True, "size": 64, "bits": 5, "action_repeat": None,
    "seed_episodes": 5, "updates": 100, "exploration": 0.3, "planner.method": "cem",
    "planner.horizon": 12, "planner.iterations": 10, "planner.candidates": 1000,
    "planner.elites": 100, "planner.warm_start": False,
}  # fmt: skip
# Hafner et al. 2020 and public code
DREAMER = {
    "agent": "dreamer", "pixels": True, "size": 64, "bits": 8, "action_repeat": 2,
    "seed_episodes": 5, "updates": 100, "exploration": 0.3,
    "model.memory_size": 200, "model.latent_size": 30, "model.classes": None,
    "model.reward.hidden": 400, "model.reward.layers": 2, "model.reward.activation": "elu",
    "model.reward_weight": 1.0, "model.observation_scale": 1.0,
    "train.batch_size": 50, "train.window": 50, "train.learning_rate": 6e-4,
    "train.clip_norm": 100.0, "train.free_nats": 3.0, "train.free_nats_of": "mean",
    "train.kl_balance": None, "train.kl_weight.start": 1.0,
    "behaviour.horizon": 15, "behaviour.discount": 0.99, "behaviour.return_lambda": 0.95,
    "behaviour.starts": None, "behaviour.reinforce": 0.0, "behaviour.entropy": 0.0,
    "behaviour.target_every": 1, "behaviour.actor_rate": 8e-5, "behaviour.critic_rate": 8e-5,
    "behaviour.actor.hidden": 400, "behaviour.actor.layers": 4, "behaviour.critic.hidden": 400,
    "behaviour.critic.layers": 3, "behaviour.actor.activation": "elu",
}  # fmt: skip
# Hafner et al. 2021 and public code, control
DREAMER_V2 = DREAMER | {
    "agent": "dreamerv2", "exploration": 0.0, "model.latent_size": 32, "model.classes": 32,
    "model.unimix": 0.0, "model.reward.layers": 4, "model.continuation.layers": 4,
    "model.memory_norm": True, "train.learning_rate": 3e-4, "train.weight_decay": 1e-6,
    "train.free_nats": 1.0, "train.kl_balance": 0.8, "behaviour.reinforce": None,
    "behaviour.entropy": 1e-4, "behaviour.target_every": 100, "behaviour.critic.layers": 4,
}  # fmt: skip
# The same with the learned transition; windows are of frames, of 24 steps
AGENT_CONTROL_VAE = {
    **{name: value for name, value in CONTROL_VAE.items() if name != "model.likelihood"},
    "model.transition.hidden": 512, "model.transition.layers": 4,
    "model.transition.activation": "elu", "model.transition_steps": 8, "train.window": 25,
    "train.transition_learning_rate": 2e-3, "train.transition_weight_decay": 1e-3,
}  # fmt: skip
# Public code: 8 updates of each sum
TRACKING = {
    **{name.replace("model.", "control_vae."): x for name, x in AGENT_CONTROL_VAE.items()},
    "agent": "control_vae", "pixels": False, "updates": 8, "prior_share": 0.4,
}  # fmt: skip
LAST = {"train.ema_decay": 0.0}  # of a fit: the parameters as the last update left them
SCENE = LAST | {"model.structure": "joint"}  # one latent of the whole scene
TABLES = {
    "control_vae paper": (lambda: preset("paper"), CONTROL_VAE | SCENE),
    "control_vae seed": (lambda: preset("seed"), SEED | SCENE),
    "image_vae paper": (lambda: preset("paper", "image_vae"), IMAGE_VAE | LAST),
    "world_model planet": (lambda: preset("planet", "world_model"), PLANET | LAST),
    "agent_control_vae paper": (
        lambda: preset("paper", "agent_control_vae"),
        AGENT_CONTROL_VAE | LAST,
    ),
    "act planet": (lambda: act_preset("paper", "planet"), PLANET_ACTS),
    "act dreamer": (lambda: act_preset("paper", "dreamer"), DREAMER),
    "act control_vae": (lambda: act_preset("paper", "control_vae"), TRACKING),
    "act dreamerv2": (lambda: act_preset("paper", "dreamerv2"), DREAMER_V2),
}


@pytest.mark.parametrize("name", TABLES)
def test_values_of_the_papers(name):
    make, table = TABLES[name]
    config = make()
    assert values(config, table) == table


def values(config, paths):
    """The options of these paths."""
    return {path: reduce(getattr, path.split("."), config) for path in paths}


def test_ataris_values_as_the_page_has_them():
    """docs/acting.md: of every option the preset's value, and that it can have Atari's."""
    page = (Path(__file__).parents[1] / "docs" / "acting.md").read_text()
    rows = re.findall(r"^\| `([a-z_.]+)` \| ([-e\d.]+) \| ([-e\d.]+) \|$", page, re.MULTILINE)
    atari, control = ({name: float(row[i]) for name, *row in rows} for i in (0, 1))
    assert atari["model.memory_size"] == 600
    assert len(rows) == 12
    preset = act_preset("paper", "dreamerv2")
    assert values(preset, control) == control
    options = dataclasses.asdict(preset)
    for name, value in atari.items():
        *inner, last = name.split(".")
        part = reduce(dict.__getitem__, inner, options)
        part[last] = type(part[last])(value)
    changed = parsed({"acting": options}, {"acting": ActConfig}).acting
    assert values(changed, atari) == atari
