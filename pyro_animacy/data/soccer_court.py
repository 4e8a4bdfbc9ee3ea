"""The court of simulated soccer, and what moves on it by the laws of mechanics alone.

The court is a box of 1500 x 700 court units. Walls stand 100 inside its edge, so play happens in
[100, 1400] x [100, 600]. Behind each goal mouth, 200 wide, lies a goal 100 deep with a back wall:
nothing ever leaves the court and nothing is ever put back by hand, so a trajectory has no jumps.
A goal's floor slopes towards the court, so that the ball rolls out again; players cannot enter.

    y
    ^    +---------------------------+ 600
    | +--+                           +--+ 450
    | |                                 |         player_1 attacks the right goal,
    | +--+                           +--+ 250     player_2 the left one
    |    +---------------------------+ 100
    +-0-100------------------------1400-1500-> x

Motion is rigid-body motion by pymunk, with its damping law v(t) = v(0) damping^t: `damping` is the
share of its velocity that a free body still has after one second. With 0.2, a ball kicked from
rest at 900 units/s comes to rest 900 / -ln(0.2) = 559 units away.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from pyro_animacy.errors import MissingExtra

_GOAL_LINE = 0b10  # collision category of the lines that stop players and let the ball pass
WALL = 20.0  # half the thickness of a wall: more than the ball covers in one physics step
_SLOPE = 400.0  # court units/s^2, of a goal's floor


@dataclass(frozen=True)
class SoccerConfig:
    """The game's constants, in court units, seconds and mass units.

    Attributes:
        width: Court, along x, from goal to goal.
        height: Court, along y.
        margin: Distance of the walls from the court's edge; also the depth of a goal.
        goal_mouth: Width of a goal.
        player_radius: Radius of a player.
        ball_radius: Radius of the ball.
        player_mass: Mass of a player.
        ball_mass: Mass of the ball.
        force: Largest force with which a player can push itself.
        top_speed: Largest speed of a player; a kicked ball may be faster.
        kick: Impulse of a kick (mass x velocity).
        reach: Largest gap between player and ball across which a player can kick.
        damping: Share of its velocity that a free body keeps over one second.
        physics_rate: Physics steps per second.
        decision_rate: Times per second at which the players decide; divides `physics_rate`.
        heading_noise: Standard deviation of the wandering of a player's heading, in radians.
        heading_time: Correlation time of that wandering, in seconds.
        resolution: Recorded positions are rounded to multiples of this, as a tracker would;
            0 leaves them as simulated. A free ball is deterministic, so without a resolution the
            density of its motion has no upper bound.
    """

    width: float = 1500.0
    height: float = 700.0
    margin: float = 100.0
    goal_mouth: float = 200.0
    player_radius: float = 30.0
    ball_radius: float = 20.0
    player_mass: float = 2.0
    ball_mass: float = 1.0
    force: float = 2000.0
    top_speed: float = 500.0
    kick: float = 900.0
    reach: float = 5.0
    damping: float = 0.2
    physics_rate: int = 120
    decision_rate: int = 20
    heading_noise: float = 0.35
    heading_time: float = 0.5
    resolution: float = 0.1


class Match:
    """The bodies and walls of one game in a pymunk space, and the one step that moves them."""

    def __init__(self, config: SoccerConfig, places: list[complex], throw: complex) -> None:
        """Put player_1, player_2 and the ball at `places`, the ball with velocity `throw`."""
        try:
            import pymunk
        except ImportError as error:
            raise MissingExtra("the soccer simulator", "soccer") from error
        self.config = config
        self.space = pymunk.Space()
        self.space.damping = config.damping
        ball_passes = pymunk.ShapeFilter(mask=pymunk.ShapeFilter.ALL_MASKS() ^ _GOAL_LINE)
        self.bodies: list[Any] = []
        for k, place in enumerate(places):
            is_ball = k == len(places) - 1
            mass = config.ball_mass if is_ball else config.player_mass
            # Spin is not observed and there is no friction: an infinite moment leaves it out.
            body = pymunk.Body(mass, float("inf"))
            body.position = place.real, place.imag
            shape = pymunk.Circle(body, config.ball_radius if is_ball else config.player_radius)
            shape.elasticity = 1.0 if is_ball else 0.3  # of two shapes in contact: the product
            if is_ball:
                shape.filter = ball_passes
            self.space.add(body, shape)
            self.bodies.append(body)
        body.velocity = throw.real, throw.imag
        self._build_walls(pymunk)

    def _build_walls(self, pymunk: Any) -> None:
        """One closed line around field and goals, and one line across each mouth for players."""
        c, w = self.config, WALL
        # Lines lie outwards by the wall's half thickness: its inner face is the named edge.
        left, right = c.margin - w, c.width - c.margin + w
        low, high = c.margin - w, c.height - c.margin + w
        back_left, back_right = -w, c.width + w
        post_low = (c.height - c.goal_mouth) / 2 - w
        post_high = (c.height + c.goal_mouth) / 2 + w
        corners = [
            *[(left, low), (right, low)],
            *[(right, post_low), (back_right, post_low)],
            *[(back_right, post_high), (right, post_high)],
            *[(right, high), (left, high)],
            *[(left, post_high), (back_left, post_high)],
            *[(back_left, post_low), (left, post_low)],
        ]
        walls = list(zip(corners, corners[1:] + corners[:1], strict=True))
        mouths = [((x, post_low), (x, post_high)) for x in (left, right)]
        for start, end in walls + mouths:
            wall = pymunk.Segment(self.space.static_body, start, end, w)
            wall.elasticity = 0.7
            if (start, end) in mouths:
                wall.filter = pymunk.ShapeFilter(categories=_GOAL_LINE)
            self.space.add(wall)

    def places(self) -> list[complex]:
        """Centres of player_1, player_2 and the ball."""
        return [complex(*body.position) for body in self.bodies]

    def velocities(self) -> list[complex]:
        """Velocities of player_1, player_2 and the ball, in court units per second."""
        return [complex(*body.velocity) for body in self.bodies]

    def kick(self, direction: complex) -> None:
        """Give the ball the impulse of one kick along a unit vector."""
        impulse = self.config.kick * direction
        self.bodies[-1].apply_impulse_at_local_point((impulse.real, impulse.imag))

    def advance(self, forces: list[complex]) -> None:
        """One physics step under the players' forces, then the limit on their speed."""
        c, ball = self.config, self.bodies[-1]
        for body, force in zip(self.bodies, forces, strict=False):
            body.force = force.real, force.imag
        x = ball.position.x
        if not c.margin <= x <= c.width - c.margin:
            ball.force = math.copysign(_SLOPE * c.ball_mass, c.width / 2 - x), 0.0
        self.space.step(1 / c.physics_rate)
        for body in self.bodies[:-1]:
            speed = body.velocity.length
            if speed > c.top_speed:
                body.velocity = body.velocity * (c.top_speed / speed)
