"""Soccer-v0: the simulated match of `pyro_animacy.data.soccer`, where player_1 is yours.

    observed (12,)    places of player_1, player_2 and the ball, then their velocities
    action a_t (3,)   push: share of the greatest force along x and y, |a| > 1 counts as 1;
                      kick: above 0, the ball is kicked along the push where it is within reach
    reward            r_{t+1} = (x_ball,t+1 - x_ball,t) / court + 1 (you scored) - 1 (they scored)

    s_t --a_t--> . . --> s_{t+1}, r_{t+1}, o_{t+1}      10 times a second; player_2 decides twice
                                                        in that time, by its script

The court counts from goal line to goal line, so that the ball's way from one to the other is worth
1. A goal counts once, until player_2 (or player_1) has the ball back in the field, as in the match.
What is not observed: how player_2's heading wanders, and that it leaves you the ball after a goal.
"""

from typing import Any

import gymnasium
import numpy as np
import numpy.typing as npt

from pyro_animacy.acting.environments.chase import Picture, paint_disc
from pyro_animacy.data.soccer import Command, Game, SoccerConfig
from pyro_animacy.errors import ConfigError

RATE = 10  # actions per second
_FASTEST = 5.0  # top speeds: what is observed of a velocity ends here; a kick gives some 2

# Okabe and Ito's palette, on grey.
_OUTSIDE = (150.0, 150.0, 150.0)
_FIELD = (235.0, 235.0, 235.0)
_GOALS = ((120.0, 190.0, 225.0), (240.0, 190.0, 130.0))  # player_1's on the left, in its colour
_BODIES = ((0.0, 114.0, 178.0), (213.0, 94.0, 0.0), (0.0, 0.0, 0.0))  # player_1, player_2, ball

DEFAULT = SoccerConfig()


class Soccer(gymnasium.Env):
    """The match for gymnasium.

    It never terminates; registered as ``pyro_animacy/Soccer-v0`` it is truncated after 200 steps.

    Args:
        render_mode: "rgb_array", or None.
        config: The constants; both physics and decision rate multiples of 10 Hz.

    Raises:
        ConfigError: If the rates do not fit.
        MissingExtra: If pymunk is not installed (at the first reset).
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": RATE}  # noqa: RUF012

    def __init__(self, render_mode: str | None = None, config: SoccerConfig = DEFAULT) -> None:
        c = config
        if c.decision_rate % RATE or c.physics_rate % c.decision_rate:
            raise ConfigError(
                f"soccer: physics at {c.physics_rate} Hz and decisions at {c.decision_rate} Hz; "
                f"the first must be a multiple of the second, and that of {RATE} Hz"
            )
        self.config, self.render_mode = config, render_mode
        self.game: Game | None = None
        bound = np.repeat(np.array([1.1, _FASTEST], np.float32), 6)
        # A contact pushes a body a little into a wall, hence not 1.
        self.observation_space = gymnasium.spaces.Box(-bound, bound, dtype=np.float32)
        self.action_space = gymnasium.spaces.Box(-1.0, 1.0, (3,), np.float32)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[npt.NDArray[np.float32], dict[str, Any]]:
        """Kick off: o_0 and no news."""
        super().reset(seed=seed)
        self.game = Game(self.np_random, self.config)
        return self._seen(), {}

    def step(
        self, action: npt.ArrayLike
    ) -> tuple[npt.NDArray[np.float32], float, bool, bool, dict[str, Any]]:
        """Push and kick by the action (3,): o_{t+1}, r_{t+1}, never terminated, not truncated."""
        c, game = self.config, self._running()
        command = _command(action, c)
        before, scorer = game.match.places()[-1].real, game.scorer
        goals = 0
        for _ in range(c.decision_rate // RATE):
            game.decide(self.np_random, command)
            for _ in range(c.physics_rate // c.decision_rate):
                game.advance()
            game.look()
            if game.scorer is not None and game.scorer != scorer:
                goals += 1 if game.scorer == 0 else -1
            scorer = game.scorer
        way = game.match.places()[-1].real - before
        return self._seen(), way / (c.width - 2 * c.margin) + goals, False, False, {}

    def render(self) -> Picture | None:
        """The picture of what is observed, (64, 64, 3), where that was asked for."""
        return picture(self._seen(), config=self.config) if self.render_mode else None

    def _running(self) -> Game:
        """The match, once it was kicked off."""
        if self.game is None:
            raise gymnasium.error.ResetNeeded("call reset() before step() or render()")
        return self.game

    def _seen(self) -> npt.NDArray[np.float32]:
        """Observation (12,): the court is [-1, 1]^2, a player's top speed is 1."""
        c, match = self.config, self._running().match
        places = np.array(match.places()).view(float).reshape(3, 2)
        velocities = np.array(match.velocities()).view(float) / c.top_speed
        seen = np.concatenate(((places / (c.width / 2, c.height / 2) - 1).ravel(), velocities))
        bound = self.observation_space.high
        return np.clip(seen.astype(np.float32), -bound, bound)


def _command(action: npt.ArrayLike, config: SoccerConfig) -> Command:
    """Push and kick of an action (3,); what is not finite is no push."""
    x, y, kick = np.nan_to_num(np.asarray(action, float), posinf=0.0, neginf=0.0)
    push = complex(x, y)
    length = abs(push)
    force = config.force * push / max(length, 1.0)
    return Command(force, push / length if kick > 0 and length > 0 else None)


def picture(observation: npt.ArrayLike, size: int = 64, config: SoccerConfig = DEFAULT) -> Picture:
    """Draw a vector observation, also one that was predicted.

    The court fills the picture, so it is stretched along y, and discs are too.

    Args:
        observation: o (12,); of places that are not finite nothing is drawn.
        size: Of the square picture in pixels.
        config: The constants.

    Returns:
        Pixels (size, size, 3); y points up.
    """
    c = config
    across, up = size / c.width, size / c.height
    pixels = np.full((size, size, 3), _OUTSIDE)
    low, high = (c.height - c.goal_mouth) / 2, (c.height + c.goal_mouth) / 2
    left, right = (0.0, c.margin), (c.width - c.margin, c.width)
    for (start, stop), (bottom, top), colour in (
        ((c.margin, c.width - c.margin), (c.margin, c.height - c.margin), _FIELD),
        (left, (low, high), _GOALS[0]),
        (right, (low, high), _GOALS[1]),
    ):
        rows = slice(round((c.height - top) * up), round((c.height - bottom) * up))
        pixels[rows, round(start * across) : round(stop * across)] = colour
    places = (np.asarray(observation, float)[:6].reshape(3, 2) + 1) / 2 * size
    radii = (c.player_radius, c.player_radius, c.ball_radius)
    for place, radius, colour in zip(places, radii, _BODIES, strict=True):  # the ball on top
        paint_disc(pixels, place, (radius * across, radius * up), colour)
    return pixels.round().astype(np.uint8)
