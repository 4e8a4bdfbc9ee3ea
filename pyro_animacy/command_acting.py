"""The commands of agents that act: ``act``, ``evaluate``, ``video``, ``direct``.

What they call needs gymnasium, an extra: so it is imported where it is called.
"""

from pathlib import Path

from jsonargparse import ArgumentParser, Namespace

from pyro_animacy.acting.config import ACT_PRESETS, ActConfig
from pyro_animacy.command import Command, Defaults
from pyro_animacy.errors import ConfigError
from pyro_animacy.infer.config import parsed

ENVIRONMENTS = (
    "Chase-v0, Soccer-v0, an environment of gymnasium (Pendulum-v1, CarRacing-v3) or a task of "
    "dm_control (cartpole-swingup, cheetah-run)"
)


def _act_parser(defaults: Defaults) -> ArgumentParser:
    parser = ArgumentParser(
        exit_on_error=False,
        description=(
            "Learn to act: collect episodes, fit the world model to them, act by it. Writes a run "
            "that sample and criticise take too. "
            "Example: pyro-animacy act Chase-v0 --agent dreamer --out runs/chase"
        ),
    )
    parser.add_argument("environment", nargs="?", type=str, help=ENVIRONMENTS)
    parser.add_argument("--out", type=str, help="folder to write; must not exist")
    parser.add_argument("--overwrite", action="store_true", help="replace OUT if it is a run")
    parser.add_argument("--resume", type=str, metavar="RUN", help="go on with a stopped run")
    parser.add_argument(
        "--preset", type=str, default="small",
        help=f"where the options below start from: {', '.join(ACT_PRESETS)} (default: small)",
    )  # fmt: skip
    parser.add_argument("--config", action="config", help="YAML file with any of these options")
    parser.add_class_arguments(ActConfig, None, default=defaults.act)
    return parser


def _act(chosen: Namespace) -> None:
    from pyro_animacy.acting.act import act, resume_acting

    if chosen.resume is not None:
        path = resume_acting(chosen.resume)
    else:
        if chosen.environment is None:
            raise ConfigError(f"no environment given; choose {ENVIRONMENTS}")
        if chosen.out is None:
            raise ConfigError("--out is missing; give the folder to write, such as --out runs/one")
        options = chosen.as_dict()
        options = {name: options[name] for name in ActConfig.__dataclass_fields__}
        config = parsed({"acting": options}, {"acting": ActConfig}).acting
        path = act(chosen.environment, config, out=chosen.out, overwrite=chosen.overwrite)
    print(_learned(path))


def _learned(path: Path) -> str:
    """What an agent's log says of it, in a few lines."""
    import json

    from pyro_animacy.infer.run import METRICS

    rows = [json.loads(line) for line in (path / METRICS).read_text().splitlines()]
    lines = [f"wrote {path}: {len(rows)} episodes, {rows[-1]['frames']} frames"]
    for row in rows:
        if "evaluation_return" in row:
            lines.append(
                f"  after {row['episode'] + 1:4} episodes, {row['seconds']:6.0f} s: mean return "
                f"{row['evaluation_return']:.2f}"
            )
    return "\n".join([*lines, f"compare it with: pyro-animacy evaluate {path}"])


def _evaluate_parser(_: Defaults) -> ArgumentParser:
    parser = ArgumentParser(
        exit_on_error=False,
        description=(
            "Returns of an agent beside random actions and beside search in the true simulator, "
            "the most that planning could reach; all in the same episodes, without exploration."
        ),
    )
    parser.add_argument("run", type=str, help="folder of `act`")
    parser.add_argument("--episodes", type=int, default=20, help="episodes that each plays")
    parser.add_argument("--seed", type=int, default=1, help="seed of the episodes")
    parser.add_argument(
        "--simulator", type=bool, default=True,
        help="also search in the true simulator, which may take minutes (default: true)",
    )  # fmt: skip
    return parser


def _evaluate(chosen: Namespace) -> None:
    from pyro_animacy.acting.evaluate import evaluate

    if chosen.episodes < 1:
        raise ConfigError(f"--episodes is {chosen.episodes}; expected at least 1")
    found = evaluate(
        chosen.run, episodes=chosen.episodes, seed=chosen.seed, simulator=chosen.simulator
    )
    print(found.text())


COMMANDS = {
    "act": Command("learn to act in an environment", _act_parser, _act),
    "evaluate": Command(
        "returns of an agent, and what they are worth", _evaluate_parser, _evaluate
    ),
}
