"""Options of an agent that learns by acting, and presets of them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Literal

from pyro_animacy.acting.behaviour import BehaviourConfig
from pyro_animacy.acting.planners import PlannerConfig
from pyro_animacy.errors import ConfigError, named, require
from pyro_animacy.images import LEAST
from pyro_animacy.infer.config import FitConfig, TrainConfig, UpdateConfig
from pyro_animacy.infer.presets import preset
from pyro_animacy.infer.schedules import KLWeightConfig
from pyro_animacy.models.agent_control_vae import AgentControlVAEConfig
from pyro_animacy.models.world_model import WorldModelConfig
from pyro_animacy.nets import StackConfig

Kind = Literal["planet", "dreamer", "dreamerv2", "control_vae"]
AGENTS: tuple[Kind, ...] = ("planet", "dreamer", "dreamerv2", "control_vae")
LEARNED = {"model": "world_model", "control_vae": "agent_control_vae"}  # by the option it is set by


def _tracking(**options: Any) -> AgentControlVAEConfig:
    """What `control_vae` learns: in closed loop, with the paper's scales."""
    return AgentControlVAEConfig(
        roll_out="closed_loop", policy_scale=0.05, posterior_scale="prior", **options
    )


@dataclass(frozen=True)
class ActConfig:
    """Options of an agent that learns by acting.

    Args:
        agent: ``planet`` plans by search in what the world model imagines; ``dreamer`` and
            ``dreamerv2`` learn an actor and a critic in it; what tells the two apart is options of
            ``model``, ``train`` and ``behaviour``, which `act_preset` sets. ``control_vae`` learns
            to follow ``reference``, see `pyro_animacy.acting.tracking`.
        pixels: Whether the agent sees images in place of vectors.
        size: Height and width of the images.
        bits: Bits of an image's values, below which there is noise; 8 for all, without noise.
        action_repeat: Times that an action is repeated; null for PlaNet's number, or 1 where it
            has none.
        episodes: Episodes collected in all, with those at the start.
        seed_episodes: Episodes at the start, of uniformly random actions.
        pretrain: Updates on these, before the agent collects any.
        updates: Updates before each later episode.
        collect: How later episodes are collected: by the ``agent``, or at ``random``, to see what
            its own choices are worth.
        exploration: Standard deviation of the noise added to the actions it collects with, in
            [-1, 1]; of discrete actions the probability of a uniformly random one.
        evaluate_every: Episodes from one evaluation to the next.
        evaluation_episodes: Episodes of each evaluation, without exploration.
        replay_memory: Bytes of episodes held in memory; all are on disk.
        reference: Of ``control_vae``, the file or folder of the reference motion: episodes whose
            states are to be followed. Rewards and actions in them are not looked at.
        prior_share: Of ``control_vae``, how often it collects with z_t from the prior, not from the
            posterior towards the reference; 0.4 in the paper's code.
        control_vae: Options of the model of ``control_vae``.
        model: Options of the world model, of all others.
        train: Options of its updates.
        planner: Options of the search, of ``planet``.
        behaviour: Options of actor and critic, of ``dreamer`` and ``dreamerv2``.
    """

    agent: Kind = "planet"
    pixels: bool = False
    size: int = 64
    bits: int = 5
    action_repeat: int | None = None
    episodes: int = 60
    seed_episodes: int = 5
    pretrain: int = 0
    updates: int = 100
    collect: Literal["agent", "random"] = "agent"
    exploration: float = 0.3
    evaluate_every: int = 10
    evaluation_episodes: int = 10
    replay_memory: int = 2**31
    reference: str | None = None
    prior_share: float = 0.4
    control_vae: AgentControlVAEConfig = field(default_factory=_tracking)
    model: WorldModelConfig = field(default_factory=WorldModelConfig)
    train: UpdateConfig = field(default_factory=UpdateConfig)
    planner: PlannerConfig = field(default_factory=PlannerConfig)
    behaviour: BehaviourConfig = field(default_factory=BehaviourConfig)

    def __post_init__(self) -> None:
        """Check the values.

        Raises:
            ConfigError: If a value cannot be used; the message names it.
        """
        convolutions = self.pixels and not self.model.keypoints
        require(
            "",
            vars(self),
            ("agent", self.agent in AGENTS, f"one of {', '.join(AGENTS)}"),
            ("size", self.size >= 1, "at least 1"),
            (
                "size",
                self.size >= LEAST or not convolutions,
                f"at least {LEAST} for convolutions; smaller images take model.keypoints",
            ),
            ("bits", 1 <= self.bits <= 8, "from 1 to 8"),
            ("action_repeat", (self.action_repeat or 1) >= 1, "at least 1, or null"),
            ("seed_episodes", self.seed_episodes >= 1, "at least 1"),
            ("episodes", self.episodes > self.seed_episodes, "more than seed_episodes"),
            ("pretrain", self.pretrain >= 0, "0 or more"),
            ("updates", self.updates >= 1, "at least 1"),
            ("exploration", self.exploration >= 0, "0 or more"),
            ("evaluate_every", self.evaluate_every >= 1, "at least 1"),
            ("evaluation_episodes", self.evaluation_episodes >= 1, "at least 1"),
            ("replay_memory", self.replay_memory >= 0, "0 or more"),
            ("prior_share", 0 <= self.prior_share <= 1, "in [0, 1]"),
        )
        o = self.train  # whether the model has them, and its windows are long enough for it
        FitConfig(
            *self.learned,
            TrainConfig(
                window=o.window, overshooting=o.overshooting,
                transition_learning_rate=o.transition_learning_rate,
                transition_weight_decay=o.transition_weight_decay,
            ),
        )  # fmt: skip
        if self.agent == "control_vae":
            self._check_following()
        elif self.model.latent_size == 0:
            raise ConfigError(
                "model.latent_size is 0, and without a latent nothing that is observed reaches the "
                "model: the agent would be blind; it must be at least 1"
            )
        elif self.dreams and o.window < 2:
            raise ConfigError(
                "train.window is 1, and the last frame of an episode is nothing to dream from: "
                "give 2 or more, such as --train.window 16"
            )
        elif self.reference is not None:
            raise ConfigError(
                f"reference is of control_vae; {self.agent} follows none: leave it out"
            )

    def _check_following(self) -> None:
        if self.pixels:
            raise ConfigError("control_vae sees vectors; leave pixels out, or choose another agent")
        if self.control_vae.roll_out != "closed_loop":
            raise ConfigError(
                f"control_vae.roll_out is {self.control_vae.roll_out}; it must be closed_loop, "
                "which is how it learns to follow a reference"
            )

    @property
    def learned(self) -> tuple[str, Any]:
        """Name and options of the model that is learned."""
        option = model_option(self.agent)
        return LEARNED[option], getattr(self, option)

    def updates_before(self, episode: int) -> int:
        """How many updates there are before an episode that is not a seed episode is collected."""
        return self.pretrain + self.updates * (episode - self.seed_episodes + 1)

    @property
    def dreams(self) -> bool:
        """Whether the agent has an actor that learns in what the model imagines."""
        return self.agent in ("dreamer", "dreamerv2")


def _small(agent: Kind) -> ActConfig:
    """Sizes for two cores, on vectors; minutes."""
    net = StackConfig(hidden=64, layers=2)
    two = agent == "dreamerv2"
    return ActConfig(
        agent=agent, episodes=50, evaluation_episodes=5,
        model=WorldModelConfig(
            memory_size=64, latent_size=8, classes=8 if two else None, observation_scale=0.1,
            reward_scale=None, reward_weight=10.0, prior=StackConfig(64, 1),
            posterior=StackConfig(64, 1), encoder=StackConfig(64, 1), decoder=net, reward=net,
            continuation=net,
        ),
        train=UpdateConfig(
            batch_size=32, window=24, learning_rate=1e-3, clip_norm=100.0, weight_decay=0.0,
            free_nats=1.0, free_nats_of="mean", kl_balance=0.8 if two else None,
        ),
        planner=PlannerConfig(
            horizon=8, iterations=5, candidates=200, elites=20, warm_start=True
        ),
        behaviour=BehaviourConfig(
            starts=256, discount=0.95, actor_rate=1e-3, critic_rate=1e-3, actor=net, critic=net,
            reinforce=None if two else 0.0, entropy=0.02, target_every=20 if two else 1,
        ),
    )  # fmt: skip


def _pixels(agent: Kind) -> ActConfig:
    """`_small`, from images of a few small bodies, by keypoints.

    With sigma = 1 a frame tells a place to a part of a pixel, about as exactly as the prior can
    soon foresee it. What is known more exactly is told by the posterior at every frame, and the
    prior learns how bodies move much later. The KL weight rises, since at first a body is not
    worth the nats of its place.
    """
    small = _small(agent)
    return replace(
        small, pixels=True, episodes=100, seed_episodes=40, pretrain=1500,
        model=replace(
            small.model, keypoints=16, filters=8, observation_scale=1.0,
            latent_size=16 if small.model.classes is None else small.model.latent_size,
        ),
        train=replace(
            small.train, batch_size=16, window=16, learning_rate=3e-3,
            kl_weight=KLWeightConfig(start=0.1, end=1.0, levels=10, every=60),
        ),
    )  # fmt: skip


def _paper(agent: Kind) -> ActConfig:
    """The values of the papers, as far as the models here have them.

    What they have not is listed in docs/acting.md, "The papers' values".
    """
    planet = preset("planet", "world_model")
    if agent == "planet":
        return ActConfig(
            agent=agent, pixels=True, episodes=1000, updates=100, evaluate_every=50,
            model=planet.model, train=_updates(planet.train),
        )  # fmt: skip
    head = StackConfig(hidden=400, layers=2)
    deep = StackConfig(hidden=400, layers=4)
    net = StackConfig(hidden=200, layers=1)
    two = agent == "dreamerv2"
    return ActConfig(
        agent=agent, pixels=True, episodes=1000, updates=100, evaluate_every=50,
        bits=8, action_repeat=2, exploration=0.0 if two else 0.3,
        model=WorldModelConfig(
            memory_size=200, latent_size=32 if two else 30, classes=32 if two else None,
            unimix=0.0, observation_scale=1.0, memory_norm=two, prior=net, posterior=net,
            reward=deep if two else head, continuation=deep if two else head,
        ),
        train=UpdateConfig(
            batch_size=50, window=50, learning_rate=3e-4 if two else 6e-4, epsilon=1e-5,
            clip_norm=100.0, weight_decay=1e-6 if two else 0.0, free_nats=1.0 if two else 3.0,
            free_nats_of="mean", kl_balance=0.8 if two else None,
        ),
        behaviour=BehaviourConfig(
            clip_norm=1500.0,  # 100 of a mean over the horizon, where here there is the sum
            reinforce=None if two else 0.0, entropy=1e-4 if two else 0.0,
            target_every=100 if two else 1, actor=deep,
            critic=deep if two else StackConfig(hidden=400, layers=3),
        ),
    )  # fmt: skip


def _debug(agent: Kind) -> ActConfig:
    """Seconds, to see that everything runs."""
    net, two = StackConfig(hidden=8, layers=1), agent == "dreamerv2"
    return ActConfig(
        agent=agent, episodes=4, seed_episodes=2, updates=2, evaluate_every=2,
        evaluation_episodes=2,
        model=WorldModelConfig(
            memory_size=8, latent_size=4, classes=4 if two else None, prior=net,
            posterior=net, encoder=net, decoder=net, reward=net, continuation=net,
        ),
        train=UpdateConfig(batch_size=4, window=6, kl_balance=0.8 if two else None),
        planner=PlannerConfig(horizon=3, iterations=2, candidates=8, elites=4),
        behaviour=BehaviourConfig(
            horizon=3, actor=net, critic=net, reinforce=None if two else 0.0,
            entropy=1e-4 if two else 0.0, target_every=2 if two else 1,
        ),
    )  # fmt: skip


def _small_tracking() -> ActConfig:
    """Sizes for two cores; minutes."""
    net = StackConfig(hidden=64, layers=2)
    return ActConfig(
        agent="control_vae", episodes=50, evaluation_episodes=5, exploration=0.1,
        control_vae=_tracking(
            action_cost=0.001, discount=0.95, prior=net, posterior=net, policy=net,
            transition=StackConfig(hidden=128, layers=2),
        ),
        train=UpdateConfig(
            batch_size=64, window=17, learning_rate=1e-3, transition_learning_rate=2e-3,
            clip_norm=1.0, weight_decay=0.0,
            kl_weight=KLWeightConfig(start=0.009, end=0.09, levels=9, every=400),
        ),
    )  # fmt: skip


def _paper_tracking() -> ActConfig:
    """The values of ControlVAE's paper, see docs/models/agent_control_vae.md.

    An episode of 8 updates is an epoch: 500 of each level of beta, of which there are 9, after the
    5 at random.
    """
    paper = preset("paper", "agent_control_vae")
    return ActConfig(
        agent="control_vae", episodes=4505, updates=8, evaluate_every=50, exploration=0.0,
        control_vae=paper.model, train=_updates(paper.train),
    )  # fmt: skip


def _debug_tracking() -> ActConfig:
    """Seconds, to see that everything runs."""
    net = StackConfig(hidden=8, layers=1)
    return ActConfig(
        agent="control_vae", episodes=4, seed_episodes=2, updates=2, evaluate_every=2,
        evaluation_episodes=2, train=UpdateConfig(batch_size=4, window=6),
        control_vae=_tracking(latent_size=4, prior=net, posterior=net, policy=net, transition=net),
    )  # fmt: skip


def _updates(train: UpdateConfig) -> UpdateConfig:
    """Options of updates alone, of a fit's."""
    names = UpdateConfig.__dataclass_fields__
    return UpdateConfig(**{name: getattr(train, name) for name in names})


def options_of(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Options of an `ActConfig` by name, from what ``config.yaml`` of a run of `act` holds."""
    options = {name: value for name, value in settings["acting"].items() if name != "environment"}
    return options | {
        model_option(options.get("agent")): settings["model"], "train": settings["train"],
    }  # fmt: skip


def model_option(agent: str | None) -> str:
    """Name of the option that holds those of the model that an agent learns."""
    return "control_vae" if agent == "control_vae" else "model"


def _of_a_world_model(agent: Kind) -> dict[str, Callable[[], ActConfig]]:
    named = {"small": _small, "pixels": _pixels, "paper": _paper, "debug": _debug}
    return {name: partial(make, agent) for name, make in named.items()}


ACT_PRESETS: dict[str, dict[str, Callable[[], ActConfig]]] = {
    "planet": _of_a_world_model("planet"),
    "dreamer": _of_a_world_model("dreamer"),
    "dreamerv2": _of_a_world_model("dreamerv2"),
    "control_vae": {
        "small": _small_tracking,
        "paper": _paper_tracking,
        "debug": _debug_tracking,
    },
}


def act_preset(name: str = "small", agent: str = "planet") -> ActConfig:
    """Return the options of a preset of an agent.

    Args:
        name: ``small``, ``paper`` or ``debug``; of an agent with a world model also ``pixels``.
        agent: ``planet``, ``dreamer``, ``dreamerv2`` or ``control_vae``.

    Raises:
        ConfigError: If there is no such preset or agent.
    """
    presets = named(f"agent {agent!r}", agent, ACT_PRESETS)
    return named(f"preset {name!r} of {agent}", name, presets)()
