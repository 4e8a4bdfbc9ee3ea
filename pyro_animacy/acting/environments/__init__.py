"""Worlds to act in, as gymnasium has them; importing this registers ``pyro_animacy/Chase-v0`` & co.

chase.py   Chase-v0: a chaser and an evader, the dynamics one pure function of tensors
soccer.py  Soccer-v0: the simulated match of `pyro_animacy.data.soccer`, one player yours
make.py    `make`: these, gymnasium's and dm_control's, all with the same two kinds of spaces

All that acts takes gymnasium from here, so that where it is missing one sentence says so.
"""

from pyro_animacy.errors import MissingExtra

EPISODE = {"Chase-v0": 100, "Soccer-v0": 200}  # the project's own, and the steps of an episode

try:
    import gymnasium as gymnasium
except ImportError as error:
    raise MissingExtra("acting in environments", "rl", error) from error

for _name, _steps in EPISODE.items():
    _class = _name.removesuffix("-v0")
    gymnasium.register(
        id=f"pyro_animacy/{_name}",
        entry_point=f"{__name__}.{_class.lower()}:{_class}",
        max_episode_steps=_steps,
    )
