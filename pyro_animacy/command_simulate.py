"""The command ``simulate``: recordings made by a simulator."""

from pathlib import Path

from jsonargparse import ArgumentParser, Namespace

from pyro_animacy.command import Command, Defaults, refuse_existing
from pyro_animacy.data.carracing import simulate_carracing
from pyro_animacy.data.episodes import file_format, save_episodes
from pyro_animacy.data.netcdf import save_netcdf
from pyro_animacy.data.soccer import simulate_soccer
from pyro_animacy.errors import ConfigError, how_many, named
from pyro_animacy.infer.checkpoint import write_atomically


def _simulate_parser(_: Defaults) -> ArgumentParser:
    parser = ArgumentParser(
        exit_on_error=False,
        description=(
            "Make recordings with a simulator, as netCDF. "
            "Example: pyro-animacy simulate soccer --trajectories 200 --out soccer.nc"
        ),
    )
    parser.add_argument(
        "simulator", type=str,
        help="soccer: two scripted players and a ball; carracing: images of a scripted driver",
    )  # fmt: skip
    parser.add_argument("--trajectories", type=int, default=100, help="number of games, episodes")
    parser.add_argument("--frames", type=int, default=200, help="frames of each")
    parser.add_argument(
        "--fps",
        type=float | None,
        default=None,
        help="frames per second; null for 20 of soccer, 25 of carracing",
    )
    parser.add_argument(
        "--size", type=str | None, default=None,
        help="of carracing, height x width of its images; null for 64x64",
    )  # fmt: skip
    parser.add_argument("--seed", type=int, default=0, help="seed of the whole set")
    parser.add_argument("--out", type=str, required=True, help="netCDF file to write")
    parser.add_argument("--overwrite", action="store_true", help="replace OUT if it exists")
    return parser


def _simulate(chosen: Namespace) -> None:
    simulate = named(f"simulator {chosen.simulator!r}", chosen.simulator, SIMULATORS)
    refuse_existing(chosen.out, chosen.overwrite)
    print(f"wrote {chosen.out}: {simulate(chosen)}")


def _simulate_soccer(chosen: Namespace) -> str:
    if chosen.size is not None:
        raise ConfigError("--size is of images; soccer records positions, leave it out")
    if Path(chosen.out).suffix not in ("", ".nc"):
        raise ConfigError(f"--out {chosen.out}: games are netCDF; end its name in .nc")
    fps = 20.0 if chosen.fps is None else chosen.fps
    games = simulate_soccer(chosen.trajectories, chosen.frames, fps=fps, seed=chosen.seed)
    write_atomically(Path(chosen.out), lambda to: save_netcdf(games, to))
    return f"{how_many(chosen.trajectories, 'game')} of {how_many(chosen.frames, 'frame')}"


def _simulate_carracing(chosen: Namespace) -> str:
    size, form = _size(chosen.size or "64x64"), file_format(chosen.out)
    fps = 25.0 if chosen.fps is None else chosen.fps
    episodes = simulate_carracing(chosen.trajectories, chosen.frames, size, chosen.seed, fps=fps)
    write_atomically(Path(chosen.out), lambda to: save_episodes(episodes, to, form))
    frames = int(episodes["length"].sum())
    made = f"{how_many(chosen.trajectories, 'episode')}, {how_many(frames, 'frame')}"
    return f"{made} of {size[0]} x {size[1]} pixels"


def _size(text: str) -> tuple[int, int]:
    """Height and width in ``64x64``."""
    height, _, width = text.partition("x")
    if not (height.isdecimal() and width.isdecimal()):
        raise ConfigError(f"--size is {text}; it must be height x width in pixels, such as 60x80")
    return int(height), int(width)


SIMULATORS = {"soccer": _simulate_soccer, "carracing": _simulate_carracing}
COMMANDS = {
    "simulate": Command(
        "SIMULATOR --out FILE", "make recordings with a simulator", _simulate_parser, _simulate
    ),
}
