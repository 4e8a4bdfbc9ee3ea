"""The commands of agents that act: ``act``, ``evaluate``, ``video``, ``direct``.

What the first three call needs gymnasium, of the extra rl: so it is imported where it is called.
"""

from pathlib import Path

from jsonargparse import ArgumentParser, Namespace

from pyro_animacy.acting.config import ACT_PRESETS, ActConfig
from pyro_animacy.acting.direct import DirectConfig, direct, save, summary_text
from pyro_animacy.command import Command, Defaults, refuse_existing
from pyro_animacy.command_data import add_checkpoint, add_run, asked_for
from pyro_animacy.errors import ConfigError, command_line, how_many
from pyro_animacy.infer.parse import parsed
from pyro_animacy.infer.run import Run, check_kind, read_metrics

ENVIRONMENTS = (
    "Chase-v0, Soccer-v0, an environment of gymnasium (Pendulum-v1, CarRacing-v3) or a task of "
    "dm_control (cartpole-swingup, cheetah-run)"
)


def _act_parser(defaults: Defaults) -> ArgumentParser:
    parser = ArgumentParser(
        exit_on_error=False,
        description=(
            "Learn to act: collect episodes, fit the world model to them, act by it; or, with "
            "--agent control_vae --reference EPISODES, learn to follow reference motion. Writes a "
            "run that sample and criticise take too. "
            "Example: pyro-animacy act Chase-v0 --agent dreamer --out runs/chase"
        ),
    )
    parser.add_argument("environment", nargs="?", type=str, help=ENVIRONMENTS)
    parser.add_argument("--out", type=str, help="folder to write; must not exist")
    parser.add_argument("--overwrite", action="store_true", help="replace OUT if it is a run")
    parser.add_argument("--resume", type=str, metavar="RUN", help="go on with a stopped run")
    parser.add_argument(
        "--preset", type=str, default="small",
        help=f"where the options below start from: {', '.join(ACT_PRESETS[defaults.act.agent])}",
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
    rows = read_metrics(path)
    frames = f", {how_many(rows[-1]['frames'], 'frame')}" if rows else ""
    lines = [f"wrote {path}: {how_many(len(rows), 'episode')}{frames}"]
    for row in rows:
        if "evaluation_return" in row:
            lines.append(
                f"  after episode {row['episode'] + 1:4}, {row['seconds']:6.0f} s: mean return "
                f"{row['evaluation_return']:.2f}"
                + (
                    f", tracking error {row['tracking_error']:.4g}"
                    if "tracking_error" in row
                    else ""
                )
            )
    return "\n".join([*lines, f"compare it with: {command_line('evaluate', path)}"])


def _evaluate_parser(_: Defaults) -> ArgumentParser:
    parser = ArgumentParser(
        exit_on_error=False,
        description=(
            "Returns of an agent beside random actions and beside cross-entropy search in the true "
            "simulator; all in the same episodes, without exploration. Of control_vae also how far "
            "it is from held-out references. "
            "Example: pyro-animacy evaluate runs/chase --episodes 20"
        ),
    )
    parser.add_argument("run", type=str, help="folder of `act`")
    add_checkpoint(parser)
    parser.add_argument("--episodes", type=int, default=20, help="episodes that each plays")
    parser.add_argument("--seed", type=int, default=1, help="seed of the episodes")
    parser.add_argument(
        "--simulator", type=bool, default=True,
        help="of continuous actions also search in the true simulator, which may take minutes",
    )  # fmt: skip
    return parser


def _evaluate(chosen: Namespace) -> None:
    from pyro_animacy.acting.evaluate import evaluate

    found = evaluate(
        chosen.run, episodes=chosen.episodes, seed=chosen.seed, simulator=chosen.simulator,
        checkpoint=chosen.checkpoint,
    )  # fmt: skip
    print(found.text())


def _video_parser(_: Defaults) -> ArgumentParser:
    parser = ArgumentParser(
        exit_on_error=False,
        description=(
            "Let an agent play, and show side by side what was recorded, what its world model "
            "makes of it, and what that predicts without seeing it. "
            "Example: pyro-animacy video runs/chase --open-loop 25 --out chase.gif"
        ),
    )
    parser.add_argument("run", type=str, help="folder of `act`")
    add_checkpoint(parser)
    parser.add_argument("--out", type=str, required=True, help="GIF or MP4 file to write")
    parser.add_argument("--overwrite", action="store_true", help="replace OUT if it exists")
    parser.add_argument(
        "--open_loop", "--open-loop", type=int, default=25, metavar="K",
        help="frames that are predicted without seeing any",
    )  # fmt: skip
    parser.add_argument("--context", type=int, default=5, help="frames seen before them")
    parser.add_argument("--episodes", type=int, default=1, help="episodes, one after the other")
    parser.add_argument("--seed", type=int, default=0, help="seed of the episodes")
    return parser


def _video(chosen: Namespace) -> None:
    from pyro_animacy.acting.video import video

    refuse_existing(chosen.out, chosen.overwrite)
    out = video(
        chosen.run, chosen.out, open_loop=chosen.open_loop, context=chosen.context,
        episodes=chosen.episodes, seed=chosen.seed, checkpoint=chosen.checkpoint,
    )  # fmt: skip
    print(f"wrote {out}")


def _direct_parser(_: Defaults) -> ArgumentParser:
    parser = ArgumentParser(
        exit_on_error=False,
        description=(
            "Make displays in which one body pursues a goal and all else goes on as the run moves: "
            "chase, flee, follow or guard, with a chosen subtlety. Writes OUT/displays.nc and "
            "OUT/displays.gif. Example: pyro-animacy direct runs/chase "
            "--objective 'chase:big_triangle->little_triangle' --subtlety 30 --out displays"
        ),
    )
    add_run(parser)
    parser.add_argument("--out", type=str, required=True, help="folder to write")
    parser.add_argument(
        "--objective", type=str, required=True, metavar="NAME:A->B",
        help="chase, flee, follow or guard, and which body pursues which",
    )  # fmt: skip
    parser.add_argument(
        "--subtlety", type=float, default=0.0,
        help="degrees within which A's heading deviates from the straight one",
    )  # fmt: skip
    parser.add_argument("--frames", type=int, default=200, help="frames of each display")
    parser.add_argument("--displays", type=int, default=8, help="number of displays")
    parser.add_class_arguments(DirectConfig, "direct")
    return parser


def _direct(chosen: Namespace) -> None:
    for name in ("displays.nc", "displays.gif"):
        refuse_existing(str(Path(chosen.out) / name), chosen.overwrite)
    run = Run.load(chosen.run, chosen.checkpoint)
    check_kind(run.card, "scenes", run.path)
    recordings = asked_for(run, chosen).recordings
    options = parsed({"direct": chosen.direct.as_dict()}, {"direct": DirectConfig}).direct
    displays = direct(
        run, objective=chosen.objective, subtlety=chosen.subtlety, frames=chosen.frames,
        displays=chosen.displays, seed=chosen.seed, recordings=recordings, config=options,
    )  # fmt: skip
    files = save(displays, chosen.out, overwrite=chosen.overwrite)
    print(summary_text(run, displays, seed=chosen.seed))
    print(f"wrote {' and '.join(map(str, files))}")


COMMANDS = {
    "act": Command(
        "(ENVIRONMENT --out RUN | --resume RUN)",
        "learn to act in an environment", _act_parser, _act,
    ),
    "evaluate": Command(
        "RUN", "returns of an agent, and their worth", _evaluate_parser, _evaluate
    ),
    "video": Command(
        "RUN --out VIDEO", "what an agent saw, and what it expected", _video_parser, _video
    ),
    "direct": Command(
        "RUN [DATA ...] --objective NAME:A->B --out FOLDER",
        "displays in which a body pursues a goal", _direct_parser, _direct,
    ),
}  # fmt: skip
