"""Pyro probabilistic programs for how a scene of moving bodies goes on.

Read recordings, fit a model, draw from it, criticise it:

    from pyro_animacy import criticise, fit, predict, preset, read_trajectories

    trajectories = read_trajectories("tandem.csv", fps=30, downsample=6)
    run = fit(trajectories, preset("small"), out="runs/tandem")
    heldout = run.heldout(trajectories)
    draws = predict(run, heldout, mode="generate", draws=100)
    criticise(run, heldout, out="report.html")
"""

from pyro_animacy import _first  # noqa: F401  before anything loads torch
from pyro_animacy.criticism.animacy import score_animacy
from pyro_animacy.criticism.contenders import common_heldout, compare_runs
from pyro_animacy.criticism.criticise import criticise
from pyro_animacy.criticism.criticise_episodes import criticise_episodes
from pyro_animacy.data.carracing import simulate_carracing
from pyro_animacy.data.controls import inert_twins, yoked
from pyro_animacy.data.episode_windows import EpisodeBatch, EpisodeWindows
from pyro_animacy.data.episodes import make_episodes, read_episodes
from pyro_animacy.data.readers import metrica_sample, read_trajectories
from pyro_animacy.data.schema import make_trajectories
from pyro_animacy.data.soccer import simulate_soccer
from pyro_animacy.data.windows import Batch, Scale, Windows
from pyro_animacy.errors import AnimacyError, ConfigError, DataError, RunError
from pyro_animacy.infer.config import FitConfig, TrainConfig
from pyro_animacy.infer.draws import draws_tree, save_draws
from pyro_animacy.infer.elbo import ScaledELBO
from pyro_animacy.infer.fit import fit, resume
from pyro_animacy.infer.iwae import ImportanceWeightedELBO
from pyro_animacy.infer.predict import predict
from pyro_animacy.infer.predict_episodes import predict_episodes
from pyro_animacy.infer.presets import preset
from pyro_animacy.infer.run import Run
from pyro_animacy.infer.trainer import Interrupted
from pyro_animacy.models.agent_control_vae import (
    AgentControlVAE,
    AgentControlVAEConfig,
    AgentControlVAEGuide,
)
from pyro_animacy.models.control_vae import ControlVAE, ControlVAEConfig, ControlVAEGuide
from pyro_animacy.models.image_vae import ImageVAE, ImageVAEConfig, ImageVAEGuide
from pyro_animacy.models.linear_gaussian import LinearAutoregression
from pyro_animacy.models.linear_state_space import LinearStateSpace
from pyro_animacy.models.program import Overshooting
from pyro_animacy.models.state_space import StateSpaceConfig, StateSpaceGuide, StateSpaceModel
from pyro_animacy.models.world_model import WorldModel, WorldModelConfig, WorldModelGuide

__all__ = [
    "AgentControlVAE",
    "AgentControlVAEConfig",
    "AgentControlVAEGuide",
    "AnimacyError",
    "Batch",
    "ConfigError",
    "ControlVAE",
    "ControlVAEConfig",
    "ControlVAEGuide",
    "DataError",
    "EpisodeBatch",
    "EpisodeWindows",
    "FitConfig",
    "ImageVAE",
    "ImageVAEConfig",
    "ImageVAEGuide",
    "ImportanceWeightedELBO",
    "Interrupted",
    "LinearAutoregression",
    "LinearStateSpace",
    "Overshooting",
    "Run",
    "RunError",
    "Scale",
    "ScaledELBO",
    "StateSpaceConfig",
    "StateSpaceGuide",
    "StateSpaceModel",
    "TrainConfig",
    "Windows",
    "WorldModel",
    "WorldModelConfig",
    "WorldModelGuide",
    "common_heldout",
    "compare_runs",
    "criticise",
    "criticise_episodes",
    "draws_tree",
    "fit",
    "inert_twins",
    "make_episodes",
    "make_trajectories",
    "metrica_sample",
    "predict",
    "predict_episodes",
    "preset",
    "read_episodes",
    "read_trajectories",
    "resume",
    "save_draws",
    "score_animacy",
    "simulate_carracing",
    "simulate_soccer",
    "yoked",
]
