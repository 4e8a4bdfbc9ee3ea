"""`make`: one door to the project's own worlds, gymnasium's and dm_control's.

    Chase-v0, Soccer-v0                the project's own
    Pendulum-v1, CarRacing-v3, ...     any id of gymnasium
    cartpole-swingup, walker-walk ...  domain-task of the DeepMind Control Suite, by way of shimmy

Whatever the world, what comes out has the same spaces, by gymnasium's own wrappers:

    world -> [-1, 1]^A -> the action k times, rewards summed -> vector, float32 (F,)
                                                             -> or pixels, uint8 (size, size, 3)

Pictures are drawn once per k steps, where somebody looks. Discrete actions stay discrete.

dm_control chooses how it draws once, when it is imported, and without a screen its choice is wrong
or fails. So it is imported without any, which needs no graphics library at all, and its drawing
module is loaded anew, with MUJOCO_GL as it is set or by what is installed, when pixels are asked
for. Tassa et al., DeepMind Control Suite, 2018.
"""

import contextlib
import ctypes
import importlib
import os
import re
import sys
import warnings
from collections.abc import Iterator
from typing import Any

import gymnasium
import numpy as np
import numpy.typing as npt
from gymnasium import wrappers
from gymnasium.spaces import Box, Discrete
from PIL import Image

from pyro_animacy.acting.environments import EPISODE
from pyro_animacy.errors import ConfigError, MissingExtra, RunError, did_you_mean, require

# Hafner et al., Learning Latent Dynamics for Planning from Pixels, 2019, section 5: tasks, and by
# their domain how often an action is repeated.
PAPER_TASKS = (
    *("cartpole-swingup", "reacher-easy", "cheetah-run"),
    *("finger-spin", "ball_in_cup-catch", "walker-walk"),
)
PAPER_REPEAT = {
    **{"cartpole": 8, "reacher": 4, "cheetah": 4},
    **{"finger": 2, "ball_in_cup": 4, "walker": 2},
}
_GL = {"egl": "libEGL.so.1", "osmesa": "libOSMesa.so.8"}  # what draws without a screen, in Linux


def make(
    name: str,
    *,
    pixels: bool = False,
    size: int = 64,
    action_repeat: int | None = 1,
    render: bool = False,
) -> gymnasium.Env:
    """A world to act in.

    Args:
        name: Of the project's own, an id of gymnasium, or domain-task of dm_control.
        pixels: Observe pictures, not vectors: what ``render()`` gives, or what is observed where
            that is a picture already, averaged over areas to ``size`` (not keeping proportions).
        size: Height and width of the pictures.
        action_repeat: How many steps of the world an action lasts; None: as PlaNet's paper has it
            for dm_control's `PAPER_REPEAT`, 1 for all others.
        render: ``render()`` gives pictures (as large as the world draws them), also where vectors
            are observed.

    Returns:
        The environment. ``metadata["render_fps"]`` is the rate of its steps, as far as known.

    Raises:
        ConfigError: If the name is not known (the message has the nearest), a number cannot be
            used, or the world has no such observations or actions.
        MissingExtra: If a library is missing.
        RunError: If the environment raises as it is made, or nothing can be drawn.
    """
    if action_repeat is None:
        domain = name.removeprefix("dm_control/").partition("-")[0]
        action_repeat = PAPER_REPEAT.get(domain, 1) if _dm_control_id(name) else 1
    require(
        "",
        {"size": size, "action_repeat": action_repeat},
        ("size", size >= 1, "at least 1"),
        ("action_repeat", action_repeat >= 1, "at least 1"),
    )
    os.environ.setdefault("SDL_VIDEODRIVER", "dummy")
    os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "1")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of SWIG's types, old ids, bounds in float32: not ours
        env = _world(name, pixels or render, size if pixels else None)
        if render or (pixels and not _is_image(env.observation_space)):
            _draw_once(env, name)
        env = ActionRepeat(_scaled_actions(env, name), action_repeat)
        return _pixels(env, size) if pixels else _vector(env, name)


class ActionRepeat(gymnasium.Wrapper, gymnasium.utils.RecordConstructorArgs):
    """An action lasts several steps of the world; their rewards are summed; it stops at an end.

    Args:
        env: The world.
        repeat: k, how many steps an action lasts.
    """

    def __init__(self, env: gymnasium.Env, repeat: int) -> None:
        gymnasium.utils.RecordConstructorArgs.__init__(self, repeat=repeat)
        super().__init__(env)
        self.repeat = repeat
        if rate := env.metadata.get("render_fps"):
            self.metadata = {**env.metadata, "render_fps": rate / repeat}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Step k times, or to the end: the last observation, the sum of the rewards."""
        total = 0.0
        for _ in range(self.repeat):
            seen, reward, terminated, truncated, info = self.env.step(action)
            total += float(reward)
            if terminated or truncated:
                break
        return seen, total, terminated, truncated, info


def frames_per_second(env: gymnasium.Env) -> float:
    """How often the agent acts: the environment's rate, less repetition; 1 where none is known."""
    rate = env.metadata.get("render_fps")
    return float(rate) if rate else 1.0


def raised(name: str, where: str, error: Exception) -> str:
    """What to say of an environment that fails."""
    return f"{name}: the environment raised {type(error).__name__} {where} ({error})"


# ---------------------------------------------------------------------------------- the wrappers


def _scaled_actions(env: gymnasium.Env, name: str) -> gymnasium.Env:
    """The world with actions from -1 to 1, float32; discrete ones as they are."""
    space = env.action_space
    if isinstance(space, Discrete) and space.start == 0:
        return env
    numbers = isinstance(space, Box) and np.issubdtype(space.dtype, np.floating)
    if not (numbers and space.is_bounded() and len(space.shape) == 1):
        raise ConfigError(
            f"{name}: its actions are {space}; they must be Discrete from 0 on, or a Box (A,) of "
            "floating-point numbers with bounds"
        )
    low, high = np.float64(space.low), np.float64(space.high)

    def scaled(action: npt.NDArray[np.float32]) -> npt.NDArray[np.floating]:
        inside = ((high - low) / 2 * action + (high + low) / 2).clip(low, high)
        return inside.astype(space.dtype)  # what was rounded past a bound is no action of the world

    return wrappers.TransformAction(env, scaled, Box(-1.0, 1.0, space.shape, np.float32))


def _vector(env: gymnasium.Env, name: str) -> gymnasium.Env:
    """The world with one flat vector of float32 as observation."""
    space = env.observation_space
    if _is_image(space):
        raise ConfigError(f"{name} is observed in pictures only; give --pixels true")
    if space.shape is not None and len(space.shape) == 3:
        raise ConfigError(
            f"{name}: its observations are {space.dtype} of shape {space.shape}; pictures are "
            "uint8 of (height, width, 3), so wrap the environment (gymnasium.wrappers."
            "TransformObservation), or flatten what is no picture (FlattenObservation)"
        )
    env = wrappers.FlattenObservation(env)
    if not isinstance(env.observation_space, Box):
        raise ConfigError(f"{name}: its observations, {env.observation_space}, make no vector")
    return wrappers.DtypeObservation(env, np.float32)


def _pixels(env: gymnasium.Env, size: int) -> gymnasium.Env:
    """The world with a picture as observation."""
    if not _is_image(env.observation_space):
        env = wrappers.AddRenderObservation(env, render_only=True)
    space = Box(0, 255, (size, size, 3), np.uint8)
    return wrappers.TransformObservation(env, lambda picture: resized(picture, size), space)


def _is_image(space: gymnasium.Space) -> bool:
    """Whether a space is one of pictures (height, width, 3)."""
    return space.dtype == np.uint8 and space.shape is not None and space.shape[2:] == (3,)


def resized(picture: npt.NDArray[np.uint8], size: int) -> npt.NDArray[np.uint8]:
    """A picture (height, width, 3) averaged over areas to (size, size, 3)."""
    if picture.shape == (size, size, 3):
        return picture
    return np.asarray(Image.fromarray(picture).resize((size, size), Image.Resampling.BOX))


# ------------------------------------------------------------------------------------ the worlds


def _world(name: str, rendering: bool, size: int | None) -> gymnasium.Env:
    """The world of a name as it comes, told to draw where it shall."""
    of_dm_control = _dm_control_id(name)
    options: dict[str, Any] = {"render_mode": "rgb_array"} if rendering else {}
    if of_dm_control:
        _import_dm_control(name, rendering)
        if rendering:  # drawn at the size asked for, as the paper has it: a little faster
            pictured = {"height": size, "width": size} if size else {}
            options["render_kwargs"] = {"camera_id": 0, **pictured}
    known = f"pyro_animacy/{name}" if name in EPISODE else of_dm_control or name
    try:
        env = _made(known, options)
    except gymnasium.error.DependencyNotInstalled as error:
        raise MissingExtra(name, "rl", error) from error
    except gymnasium.error.Error as error:
        raise ConfigError(f"there is no environment {name!r}; {_nearest(name)}") from error
    except Exception as error:  # of any kind: it comes from the environment
        raise RunError(raised(name, "as it was made", error)) from error
    if of_dm_control:
        env.metadata = {**env.metadata, "render_fps": 1 / env.unwrapped.dt}
    return env


def _made(known: str, options: dict[str, Any]) -> gymnasium.Env:
    """By gymnasium, and not told to draw where it takes no ``render_mode``: it may be a picture."""
    try:
        return gymnasium.make(known, disable_env_checker=True, **options)
    except TypeError as error:
        if "'render_mode'" not in str(error):
            raise
    options = {name: value for name, value in options.items() if name != "render_mode"}
    return gymnasium.make(known, disable_env_checker=True, **options)


def _draw_once(env: gymnasium.Env, name: str) -> None:
    """Draw a picture, to find out now whether that can be done."""
    try:
        env.reset()
    except Exception as error:
        raise RunError(raised(name, "at reset", error)) from error
    try:
        drawn = env.render()
    except NotImplementedError:
        drawn = None
    except Exception as error:  # of any kind: it comes from graphics libraries
        raise RunError(_no_pictures(name, error)) from error
    if not isinstance(drawn, np.ndarray):
        raise RunError(f"{name} draws no pictures; observe its vectors")


def _no_pictures(name: str, error: Exception) -> str:
    """What to do where nothing can be drawn."""
    return (
        f"{name}: no pictures can be drawn here ({type(error).__name__}: {error}). Without a "
        "screen, MuJoCo draws by EGL (MUJOCO_GL=egl, Debian package libegl1) or in software by "
        "OSMesa (MUJOCO_GL=osmesa, package libosmesa6); from vectors it runs without either"
    ).replace("\n", " ")


def _dm_control_id(name: str) -> str | None:
    """The id that shimmy gives a task of dm_control, or None if the name is none of those."""
    task = name.removeprefix("dm_control/")
    if task != name:
        return name if re.search(r"-v\d+$", name) else f"{name}-v0"
    return f"dm_control/{task}-v0" if re.fullmatch(r"\w+-(?!v\d)\w+", task) else None


def _import_dm_control(name: str, rendering: bool) -> None:
    """Import dm_control, without what draws unless that is asked for, and register its tasks.

    Raises:
        MissingExtra: If it or what it needs is missing.
    """
    chosen = os.environ.get("MUJOCO_GL")
    try:
        with _mujoco_gl("disabled"):
            importlib.import_module("shimmy")  # registers, if dm_control can be imported
            module = importlib.import_module("dm_control._render")
    except ImportError as error:
        raise MissingExtra(name, "rl", error) from error
    if not rendering or module.BACKEND != "off":
        return
    try:
        with _mujoco_gl(chosen or _screenless()):
            importlib.reload(module)
    except Exception as error:  # of any kind: it comes from graphics libraries
        with _mujoco_gl("disabled"):
            importlib.reload(module)
        raise RunError(_no_pictures(name, error)) from error


@contextlib.contextmanager
def _mujoco_gl(value: str) -> Iterator[None]:
    """Set the variable by which dm_control chooses how to draw, for the time of an import."""
    before = os.environ.get("MUJOCO_GL")
    os.environ["MUJOCO_GL"] = value
    try:
        yield
    finally:
        del os.environ["MUJOCO_GL"]
        if before is not None:
            os.environ["MUJOCO_GL"] = before


def _screenless() -> str:
    """What can draw without a screen: the first whose library is there."""
    if sys.platform != "linux":
        return "glfw"
    for backend, library in _GL.items():
        try:
            ctypes.CDLL(library)
        except OSError:
            continue
        return backend
    raise OSError(f"neither {' nor '.join(_GL.values())} is installed")


def _nearest(name: str) -> str:
    """The names like one that is not known, as words of a message."""
    ids = [re.sub(r"^dm_control/(\w+-\w+)-v0$", r"\1", each) for each in gymnasium.registry]
    return did_you_mean(name, (*PAPER_TASKS, *ids, *EPISODE)) or (
        f"there are {', '.join(EPISODE)}, gymnasium's, and dm_control's as cartpole-swingup"
    )
