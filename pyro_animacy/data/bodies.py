"""The choice of the bodies that make up a scene."""

import itertools
import re
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import xarray as xr

from pyro_animacy.data.schema import last_observed, like, pieces, shortened
from pyro_animacy.data.stored import HELD, Floats, Stored, positions, sharing
from pyro_animacy.errors import ConfigError, DataError

GROUPS = r"\s+x\s+"  # between the groups of a choice of bodies
PLACE = "_place_"  # in the name of a place that bodies take in turn, home_place_3
# a number at the end, after a letter: home_1, home 12, dog3
_NUMBERED = re.compile(rf"(?<=[^\W\d_])({PLACE}|[\s_.#-]*)\d+$")


def body_stem(name: str) -> str:
    """The name of a body without the number after its letters: home of home_1, or home_place_1."""
    return _NUMBERED.sub("", str(name).strip())


def is_place(name: str) -> bool:
    """Whether a body is a place that others take in turn."""
    return PLACE in name


def is_present(bodies: str | None) -> bool:
    """Whether a scene is whoever is there, so that bodies come and go."""
    return bodies is not None and bodies.strip() == "present"


def is_each(bodies: str | None) -> bool:
    """Whether every body is to be a scene of its own."""
    return bodies is not None and bodies.strip() == "each"


def is_many(bodies: str | None) -> bool:
    """Whether a choice makes several scenes of one recording."""
    return is_each(bodies) or bool(re.search(GROUPS, bodies or ""))


def select_bodies(ds: xr.Dataset, bodies: str) -> xr.Dataset:
    """Choose the bodies that make up a scene.

    Args:
        ds: trajectories in the schema.
        bodies: one of

            - `"home_1,away_3,ball"`: these bodies, in this order, as one scene;
            - `"home x away x ball"`: every combination of one from each group, no body twice. A
              group is the body of that name, or all whose names begin with it and an underscore.
              The bodies of the result are named after the groups, the trajectories after the
              members; all keep the `recording` they are cut from. Of `"ant x ant"`, one group
              several times, each choice is made once, in whatever order, and its bodies are named
              ant_1 and ant_2;
            - `"each"`: every body a one-body trajectory of its own, from its first to its last
              observed frame. It keeps the `recording` it is cut from and its place on that
              recording's frames, so that `split` holds out whole recordings, or cuts all bodies of
              a recording at the same frame.

    Returns:
        A new Dataset.

    Raises:
        DataError: for a body or group that is not there, naming those that are, or groups of
            which no combination is of different bodies.
        ConfigError: for a body named twice.
    """
    names = [str(b) for b in ds["body"].values]
    if is_each(bodies):
        return _each_body(ds, names)
    where = str(ds.attrs.get("source") or "trajectories")
    tokens, groups = body_groups(bodies, names, where)
    pairs = itertools.combinations(range(len(groups)), 2)
    alike = [(i, j) for i, j in pairs if groups[i] == groups[j]]  # one choice in two orders
    combined = [
        row
        for row in itertools.product(*groups)
        if len({*row}) == len(row) and all(row[i] < row[j] for i, j in alike)
    ]
    if not combined:
        raise DataError(
            f"{where}: --bodies {bodies!r}: the groups share their bodies, and a scene has each "
            "body once; give groups of others"
        )
    if all(len(group) == 1 for group in groups):
        chosen = ds.isel(body=[group[0] for group in groups])
        return chosen.assign_coords(body=np.array(tokens, object))
    members = np.array(combined, np.int64)
    tags = ["+".join(names[b] for b in row) for row in members]
    count, frames = ds.sizes["trajectory"], ds.sizes["time"]
    values, rows = positions(ds), np.repeat(np.arange(count), len(members))
    position: Floats | Stored
    if not isinstance(values, Stored) and 16 * frames * members.size * count <= HELD:
        position = np.empty((len(rows), frames, len(tokens), 2))
        for j, chosen in enumerate(members):
            position[j :: len(members)] = values[:, :, chosen]
    else:  # they share their frames
        of = sharing(values)
        shared = of.pieces(rows, np.zeros_like(rows), np.full_like(rows, frames))
        position = replace(shared, body=of.bodies[:, members].reshape(-1, len(tokens)))
    out = like(ds, rows, position, _member_names(ds, tags), body=tokens)
    if "animate" in ds.coords:
        kinds = [{bool(k) for k in ds["animate"].values[group]} for group in groups]
        if all(len(kind) == 1 for kind in kinds):
            out = out.assign_coords(animate=("body", [kind.pop() for kind in kinds]))
    return out


def body_groups(bodies: str, names: Sequence[str], where: str) -> tuple[list[str], list[list[int]]]:
    """Read a choice of bodies: the tokens of it, and the indices of the bodies each stands for.

    Args:
        bodies: "a,b,c" (each token one body) or "a x b" (each token a group); see `select_bodies`.
        names: of all bodies.
        where: what to name in a message.

    Returns:
        Tokens, those of a group given several times numbered, and for each the indices into
        `names`.

    Raises:
        DataError: for a token without a body.
        ConfigError: for a body given twice.
    """
    parts = re.split(GROUPS, bodies.strip())
    grouped = len(parts) > 1
    tokens = [t.strip() for t in (parts if grouped else bodies.split(","))]
    called = [
        f"{t}_{tokens[: i + 1].count(t)}" if grouped and tokens.count(t) > 1 else t
        for i, t in enumerate(tokens)
    ]
    if len(set(called)) < len(called):
        raise ConfigError(f"--bodies {bodies!r}: a body is named twice; name each once")
    groups = []
    for token in tokens:
        begin = token + "_" if grouped else token
        group = [i for i, n in enumerate(names) if n == token or (grouped and n.startswith(begin))]
        if not group:
            raise DataError(
                f"{where}: --bodies {bodies!r}: no body {token!r}; there are {shortened(names)}"
            )
        groups.append(group)
    return called, groups


def _each_body(ds: xr.Dataset, names: list[str]) -> xr.Dataset:
    """Every body of every trajectory as a one-body trajectory, trimmed to its observed frames."""
    count, frames = ds.sizes["trajectory"], ds.sizes["time"]
    position = ds["position"].values.transpose(0, 2, 1, 3).reshape(-1, frames, 1, 2)
    whole = like(
        ds, np.repeat(np.arange(count), len(names)), position, _member_names(ds, names), ["body"]
    )
    end = last_observed(position)
    begin = frames - last_observed(position[:, ::-1])
    keep = np.flatnonzero(end - begin >= 2)
    if not len(keep):
        where = ds.attrs.get("source") or "trajectories"
        raise DataError(f"{where}: no body is observed in two frames; motion needs two")
    return pieces(whole, keep, begin[keep], end[keep])


def _member_names(ds: xr.Dataset, members: Sequence[str]) -> list[str]:
    """Names for the product of trajectories and members; a lone trajectory is not mentioned."""
    names = ds["trajectory"].values
    return list(members) if len(names) == 1 else [f"{n}/{m}" for n in names for m in members]
