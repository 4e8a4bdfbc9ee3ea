"""Two scripted players and a ball: a simulated game whose animate bodies are known.

Each player runs to the place from where the ball lies before the goal, dribbles, and shoots when it
stands right, with a heading that wanders (an Ornstein-Uhlenbeck process) so that no two games are
alike. After a goal the scorer walks back and leaves the ball to the other until that one touched
it. Positions are complex numbers inside the script: rotation is a product, distance is `abs`. The
court and its mechanics are in `soccer_court`.
"""

from __future__ import annotations

import cmath
import math
from dataclasses import dataclass

import numpy as np
import xarray as xr

from pyro_animacy.data.schema import make_trajectories
from pyro_animacy.data.soccer_court import WALL, Match, SoccerConfig
from pyro_animacy.errors import ConfigError, require
from pyro_animacy.progress import tqdm

BODIES = ("player_1", "player_2", "ball")


def simulate_soccer(
    trajectories: int,
    frames: int,
    *,
    fps: float = 20,
    seed: int = 0,
    config: SoccerConfig | None = None,
) -> xr.Dataset:
    """Simulate games of two scripted players and a ball.

    Trajectory i depends on `seed` and i only, not on how many are asked for, and `fps` only says
    how often the same game is looked at.

    Args:
        trajectories: Number of games; each is a recording of its own.
        frames: Frames in each game.
        fps: Frames per second; must divide `config.physics_rate`.
        seed: Seed of the whole set, at least 0.
        config: The game's constants; the defaults of `SoccerConfig` if None.

    Returns:
        A Dataset in the package's schema: `position` (trajectory, time, body, space) in court
        units, bodies player_1, player_2 and ball, and `animate` (True, True, False) along body.

    Raises:
        ConfigError: a value cannot be used.
        MissingExtra: pymunk is not installed.
    """
    config = config or SoccerConfig()
    _check(trajectories, frames, fps, seed, config)
    position = np.empty((trajectories, frames, len(BODIES), 2))
    for i in tqdm(range(trajectories), desc="soccer", unit="game", delay=2):
        generator = np.random.default_rng(np.random.SeedSequence((seed, i)))
        position[i] = _play(generator, frames, round(config.physics_rate / fps), config)
    if config.resolution:
        position = np.round(position / config.resolution) * config.resolution
    names = [f"soccer_{seed}_{i}" for i in range(trajectories)]
    return make_trajectories(
        position,
        fps=float(fps),
        body=list(BODIES),
        units="court units",
        trajectory=names,
        recording=names,
        resolution=np.full(trajectories, config.resolution),
        animate=[True, True, False],
        source=f"soccer simulator, seed {seed}",
    )


def _check(trajectories: int, frames: int, fps: float, seed: int, config: SoccerConfig) -> None:
    """Raise ConfigError for what cannot be simulated, naming the option."""
    c = config
    require(
        "",
        {"trajectories": trajectories, "frames": frames, "seed": seed},
        ("trajectories", trajectories >= 1, "at least 1"),
        ("frames", frames >= 2, "at least 2"),
        ("seed", seed >= 0, "0 or more"),
    )
    for name, rate in (("fps", fps), ("decision_rate", c.decision_rate)):
        if not rate > 0 or c.physics_rate % rate:
            raise ConfigError(
                f"{name}: {rate} does not divide the physics rate of {c.physics_rate} Hz; "
                "give a divisor of it, such as 20"
            )
    may_be_zero = {"force", "kick", "reach", "heading_noise", "resolution"}
    require(
        "",
        vars(c),
        *(
            (
                name,
                0 < x < math.inf or (x == 0 and name in may_be_zero),
                "finite, and 0 or more" if name in may_be_zero else "finite and positive",
            )
            for name, x in vars(c).items()
        ),
    )
    require("", vars(c), ("damping", c.damping <= 1, "in (0, 1], a share of the velocity"))
    if 2 * (c.kick / c.ball_mass + c.top_speed) / c.physics_rate > 2 * WALL:
        raise ConfigError(
            f"kick: {c.kick} makes the ball so fast that it passes through walls; "
            "give a smaller kick or a higher physics_rate"
        )
    gap = _start_gap(c)
    if c.width / 2 - c.margin <= 3 * gap or c.height - 2 * c.margin <= max(2 * gap, c.goal_mouth):
        raise ConfigError(
            f"width, height: a court of {c.width} x {c.height} has no room for players and goals; "
            "make it larger, or radii, margin and goal_mouth smaller"
        )


@dataclass(frozen=True)
class Command:
    """What someone else wants of player_1, in place of its script.

    Attributes:
        force: Its push, at most `SoccerConfig.force`.
        kick: Direction of a kick (a unit vector), made where the ball is within reach, or None.
    """

    force: complex
    kick: complex | None


class Game:
    """A match and what its players have in mind: their wandering headings, and who just scored.

    Args:
        generator: Source of the starting places and of the wandering headings.
        config: The game's constants.
    """

    def __init__(self, generator: np.random.Generator, config: SoccerConfig) -> None:
        self.config = config
        self.match = Match(config, *_start(generator, config))
        self.heading = config.heading_noise * generator.standard_normal(2)
        self.scorer: int | None = None
        self.forces = [0j, 0j]

    def decide(self, generator: np.random.Generator, command: Command | None = None) -> None:
        """Let both players decide and kick; player_1 by the command, where there is one."""
        c = self.config
        places, velocities = self.match.places(), self.match.velocities()
        self.look()
        for k in (0, 1):
            run, kick = _decide(k, places, velocities, k == self.scorer, c)
            wander = cmath.exp(1j * self.heading[k])
            self.forces[k] = _push(run * wander, velocities[k], c)
            if k == 0 and command is not None:
                near = _gap(places[0], places[-1], c) <= c.reach
                self.forces[0], kick, wander = command.force, command.kick if near else None, 1
            if kick is not None:
                self.match.kick(kick * wander)
        # The exact discretisation of d theta = -theta dt / tau + sigma sqrt(2 / tau) dW.
        keep = math.exp(-1 / (c.decision_rate * c.heading_time))
        spread = c.heading_noise * math.sqrt(1 - keep**2)
        self.heading = keep * self.heading + spread * generator.standard_normal(2)

    def advance(self) -> None:
        """One physics step under the forces decided on."""
        self.match.advance(self.forces)

    def look(self) -> None:
        """See whether there is a goal, or whether one no longer stands."""
        self.scorer = _who_scored(self.scorer, self.match.places(), self.config)


def _play(
    generator: np.random.Generator, frames: int, stride: int, config: SoccerConfig
) -> np.ndarray:
    """Play one game.

    Args:
        generator: Source of the starting places and of the wandering headings.
        frames: Frames to record.
        stride: Physics steps from one frame to the next.
        config: The game's constants.

    Returns:
        Positions, shape (frames, 3, 2), in court units; frame 0 is the start.
    """
    game = Game(generator, config)
    steps_per_decision = config.physics_rate // config.decision_rate
    recorded = []
    for step in range((frames - 1) * stride + 1):
        if step % steps_per_decision == 0:
            game.decide(generator)
        if step % stride == 0:
            recorded.append(game.match.places())
        game.advance()
    return np.array(recorded).view(float).reshape(frames, len(BODIES), 2)


def _start(generator: np.random.Generator, config: SoccerConfig) -> tuple[list[complex], complex]:
    """Places at kick-off, each player in its own half and the ball between; the ball's velocity."""
    c, gap = config, _start_gap(config)
    y = generator.uniform(c.margin + gap, c.height - c.margin - gap, size=3)
    x = generator.uniform(c.margin + gap, c.width / 2 - 2 * gap, size=2)
    ball = c.width / 2 + generator.uniform(-gap / 2, gap / 2)
    # The ball is thrown in: lying still it would give exact zeros, which no density describes.
    throw = c.top_speed / 4 * complex(*generator.standard_normal(2))
    return [complex(x[0], y[0]), complex(c.width - x[1], y[1]), complex(ball, y[2])], throw


def _start_gap(config: SoccerConfig) -> float:
    """Distance between bodies, and from walls, at which nothing touches at kick-off."""
    return config.player_radius + config.ball_radius + 20


def _who_scored(scorer: int | None, places: list[complex], config: SoccerConfig) -> int | None:
    """Index of the player who scored and must leave the ball to the other, or None.

    A goal stands until the other player has the ball within reach, back in the field.
    """
    ball = places[-1]
    if ball.real > config.width - config.margin:
        return 0
    if ball.real < config.margin:
        return 1
    if scorer is not None and _gap(places[1 - scorer], ball, config) <= config.reach:
        return None
    return scorer


def _gap(player: complex, ball: complex, config: SoccerConfig) -> float:
    """Distance between the surfaces of a player and the ball."""
    return abs(ball - player) - config.player_radius - config.ball_radius


def _at_wall(ball: complex, config: SoccerConfig) -> bool:
    """Whether a player does not fit between the ball and some wall or goal line."""
    c, room = config, config.margin + 2 * config.player_radius + config.ball_radius
    return not (room < ball.real < c.width - room and room < ball.imag < c.height - room)


def _decide(
    k: int, places: list[complex], velocities: list[complex], scored: bool, config: SoccerConfig
) -> tuple[complex, complex | None]:
    """What player k wants: a velocity, and a kick's direction (a unit vector) or None.

    Args:
        k: 0 attacks the right goal, 1 the left.
        places: Centres of both players and the ball.
        velocities: Their velocities.
        scored: The player has just scored and leaves the ball to the other.
        config: The game's constants.
    """
    c, me, other = config, places[k], places[1 - k]
    middle = 1j * c.height / 2
    goals = [c.margin + middle, c.width - c.margin + middle]
    own, target = goals[k], goals[1 - k]
    if scored:
        return _towards(own + (target - own) / 4, me, c), None
    # Run to where the ball will be, not to where it is.
    lead = min(abs(places[-1] - me) / c.top_speed, 0.5)
    ball = places[-1] + lead * velocities[-1]
    forward = _unit(target - ball)
    contact = c.player_radius + c.ball_radius
    ahead, aside = _resolve(me - ball, forward)
    within = _gap(me, places[-1], c) <= c.reach
    if _at_wall(places[-1], c) and ahead > -contact / 2:  # no room behind it: drag it away sideways
        away = _unit(places[-1] - me)
        side = cmath.exp(1j * math.copysign(math.pi / 3, _resolve(forward, away)[1]))
        return away * c.top_speed, away * side if within else None
    if ahead > -abs(aside):  # beside or before the ball: go round it, on the nearer side
        side = 1j * forward * math.copysign(1.6 * contact, aside)
        return _towards(ball - forward * contact + side * (ahead > -contact), me, c), None
    aligned = -ahead > 0.8 * abs(me - ball)
    pressed = abs(other - ball) < 3 * contact
    near = abs(target - ball) < c.width / 4
    kick = _unit(target - places[-1]) if aligned and within and (near or pressed) else None
    return _unit(ball - me) * c.top_speed, kick


def _towards(spot: complex, me: complex, config: SoccerConfig) -> complex:
    """Velocity that takes a player to a spot, slowing down close to it; spots in walls are moved.

    The brake is v = sqrt(2 a d): what the largest force can still stop within the distance left.
    """
    c, reach = config, config.margin + config.player_radius
    x = min(max(spot.real, reach), c.width - reach)
    y = min(max(spot.imag, reach), c.height - reach)
    way = complex(x, y) - me
    brake = math.sqrt(2 * c.force / c.player_mass * abs(way))
    return _unit(way) * min(c.top_speed, brake)


def _push(wanted: complex, velocity: complex, config: SoccerConfig) -> complex:
    """Force towards a wanted velocity, at most the player's force."""
    force = (wanted - velocity) * config.player_mass * config.decision_rate
    return force if abs(force) <= config.force else _unit(force) * config.force


def _unit(vector: complex) -> complex:
    """A vector over its length; 0 stays 0."""
    return vector / abs(vector) if vector else 0j


def _resolve(vector: complex, forward: complex) -> tuple[float, float]:
    """Components of a vector along a unit vector and to the left of it."""
    turned = vector * forward.conjugate()
    return turned.real, turned.imag
