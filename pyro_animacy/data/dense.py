"""From the rows of a table to a dense array: scenes, and the bodies in them."""

from collections import defaultdict
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr

from pyro_animacy.data.bodies import PLACE, body_groups, body_stem, is_each, is_present
from pyro_animacy.data.cells import scatter
from pyro_animacy.data.frames import Frames, agreed_fps, extreme, frame_axis, timed_fps
from pyro_animacy.data.schema import VISIT, make_trajectories
from pyro_animacy.data.tables import Table
from pyro_animacy.data.values import Codes
from pyro_animacy.errors import DataError

SECONDS = ("visit_begin", "visit_end")
KINDS = 10  # of bodies, at most
SOME = 97  # one row in so many is looked at before all are


def table_dataset(
    table: Table, bodies: str | None, fps: float | None, pause: int = 1
) -> xr.Dataset:
    """Make the Dataset of a table.

    Only the bodies asked for are made dense: `each` of a pedestrian file with hundreds of ids
    over an hour never becomes an array of all ids over all frames. Of a table with an id, `each`
    and `present` are done here; any other choice is left to `select_bodies`.

    Args:
        table: the rows.
        bodies: which bodies are going to make up a scene; all by default. Of whoever is `present`
            the bodies of the result are places, which those of the table take in turn.
        fps: frames per second, if the table does not know it.
        pause: how many frames a pause is long of which only the end is known.

    Returns:
        Trajectories in the schema. Frames that have no row are NaN.

    Raises:
        DataError: where rows contradict one another or `fps`, or bodies differ between
            trajectories.
    """
    each, present = is_each(bodies), is_present(bodies)
    if each and table.body is not None:
        table = _body_by_body(table)
    elif bodies is not None and not (each or present):
        _, groups = body_groups(bodies, table.bodies, table.where)
        table = _keep_bodies(table, sorted({i for group in groups for i in group}))
    elif bodies is None:
        _same_bodies(table)
    frames = frame_axis(table, pause)
    table, frames = _drop_short(table, frames)
    taken: dict[str, list[Any]] = {}
    if present and table.body is not None:
        table, taken = _by_place(table, frames, pause)
    whole = each and table.body is not None
    ds = make_trajectories(
        scatter(table, frames),
        fps=agreed_fps(fps, table.fps, table.where)
        if table.fps
        else timed_fps(fps, frames.fps, table.clock, table.where),
        body=table.bodies,
        units=table.units,
        trajectory=table.trajectories,
        recording=table.recordings,
        start=_starts(table, frames) if whole else None,
        length=frames.count,
        label=table.label,
        resolution=table.resolution,
        animate=table.animate,
        source=table.where,
    )
    fps = float(ds.attrs["fps"])
    return ds.assign_coords(
        {
            name: (VISIT, np.array(x) / fps if name in SECONDS else np.array(x, object))
            for name, x in taken.items()
        }
    )


def _starts(table: Table, frames: Frames) -> Codes:
    """(trajectory,) first frame of each, counted from the first frame of its recording."""
    code = np.unique(table.recordings or table.trajectories, return_inverse=True)[1]
    first = frames.begin // frames.stride
    return first - extreme(np.minimum, first, code, int(code.max()) + 1)[code]


def _keep(table: Table, rows: npt.NDArray[np.bool_], **changes: object) -> Table:
    """The table with only these rows (a mask)."""
    return replace(
        table,
        row=np.asarray(table.row)[rows],
        trajectory=table.trajectory[rows],
        body=None if table.body is None else table.body[rows],
        frame=None if table.frame is None else table.frame[rows],
        time=None if table.time is None else table.time[rows],
        pairs=[(x[rows], y[rows]) for x, y in table.pairs],
        **changes,  # type: ignore[arg-type]
    )


def _keep_bodies(table: Table, kept: list[int]) -> Table:
    """The table with only these bodies."""
    bodies = [table.bodies[i] for i in kept]
    if table.body is None:
        animate = None if table.animate is None else [table.animate[i] for i in kept]
        pairs = [table.pairs[i] for i in kept]
        return replace(table, bodies=bodies, pairs=pairs, animate=animate)
    code = np.full(len(table.bodies), -1)
    code[kept] = np.arange(len(kept))
    body = code[table.body]
    rows = body >= 0
    table = replace(table, body=body, bodies=bodies)
    return table if rows.all() else _keep_trajectories(_keep(table, rows))


def _keep_trajectories(table: Table) -> Table:
    """Number the trajectories anew, without those that have no row."""
    kept, code = np.unique(table.trajectory, return_inverse=True)
    return replace(
        table,
        trajectory=code,
        trajectories=[table.trajectories[i] for i in kept],
        recordings=None if table.recordings is None else [table.recordings[i] for i in kept],
        label=None if table.label is None else [table.label[i] for i in kept],
    )


def _body_by_body(table: Table) -> Table:
    """Every (trajectory, id) as a trajectory with one body, of the recording it comes from."""
    assert table.body is not None
    pair = table.trajectory.astype(np.int64) * len(table.bodies) + table.body
    kept, code = np.unique(pair, return_inverse=True)
    scene, body = np.divmod(kept, len(table.bodies))
    alone = len(table.trajectories) == 1
    return replace(
        table,
        trajectory=code,
        trajectories=[
            table.bodies[b] if alone else f"{table.trajectories[s]}/{table.bodies[b]}"
            for s, b in zip(scene, body, strict=True)
        ],
        recordings=[table.trajectories[s] for s in scene],
        body=np.zeros_like(code),
        bodies=["body"],
        label=None if table.label is None else [table.label[s] for s in scene],
    )


def _by_place(table: Table, frames: Frames, pause: int) -> tuple[Table, dict[str, list[Any]]]:
    """The bodies of each trajectory in as few places as there are of their kind at a time.

    A place is free for the next once it was empty for as many frames as a pause is long: then some
    frame that is kept shows that it is another body. Bodies are of a kind where their names differ
    by a number; those that are bare numbers are of one, and so are all where that would make more
    than ten.

    Returns:
        The table, and who was where in which frames, `visit_person` and so on of the schema.
    """
    assert table.body is not None
    pair = table.trajectory.astype(np.int64) * len(table.bodies) + table.body
    kept, code = np.unique(pair, return_inverse=True)
    at = frames.index(table.trajectory, slice(None))
    first, last = (extreme(f, at, code, len(kept)) for f in (np.minimum, np.maximum))
    scene, body = np.divmod(kept, len(table.bodies))
    stems = [body_stem(name) for name in table.bodies]
    kinds = ["body" if _is_number(stem) else stem for stem in stems]
    if len({*kinds}) > KINDS:  # they do not say which are alike
        kinds = ["body"] * len(kinds)
    ends: defaultdict[tuple[int, str], list[int]] = defaultdict(list)  # the last frame of each
    place: list[tuple[str, int]] = [("", 0)] * len(kept)
    for i in np.argsort(first, kind="stable").tolist():
        kind = kinds[body[i]]
        taken = ends[int(scene[i]), kind]
        free = next((k for k, end in enumerate(taken) if end + pause < first[i]), len(taken))
        taken[free : free + 1] = [int(last[i])]
        place[i] = kind, free
    names = sorted({*place})
    alone = {name for name, kind in zip(table.bodies, kinds, strict=True) if kinds.count(kind) == 1}
    alone &= {*kinds}  # such as a ball, whose place nobody else takes
    number = {of: k for k, of in enumerate(names)}
    called = [kind if kind in alone else f"{kind}{PLACE}{k + 1}" for kind, k in names]
    recordings = table.recordings or table.trajectories
    visits: dict[str, list[Any]] = {
        "visit_person": [table.bodies[i] for i in body],
        "visit_place": [called[number[of]] for of in place],
        "visit_recording": [recordings[i] for i in scene],
        "visit_begin": first.tolist(),
        "visit_end": last.tolist(),
    }
    rows = np.array([number[of] for of in place])[code]
    return replace(table, body=rows, bodies=called, animate=None), visits


def _is_number(name: str) -> bool:
    try:
        float(name)
    except ValueError:
        return False
    return True


def _same_bodies(table: Table) -> None:
    """Raise DataError where a trajectory lacks a body that another has."""
    if table.body is None or len(table.trajectories) == 1:
        return
    seen = np.zeros((len(table.trajectories), len(table.bodies)), bool)
    for step in (SOME, 1):  # some rows most often show all
        seen[table.trajectory[::step], table.body[::step]] = True
        if seen.all():
            return
    worst = int(seen.sum(1).argmin())
    lacking = int(seen[worst].argmin())
    raise DataError(
        f"{table.where}: trajectory {table.trajectories[worst]!r} has no body "
        f"{table.bodies[lacking]!r}, which others have; choose common ones with --bodies, or "
        "--bodies each for one-body trajectories"
    )


def _drop_short(table: Table, frames: Frames) -> tuple[Table, Frames]:
    """Without trajectories of a single frame; DataError where no other is left."""
    long = frames.count >= 2
    if long.all():
        return table, frames
    if not long.any():
        raise DataError(f"{table.where}: there is only one frame; motion needs two")
    rows = long[table.trajectory]
    kept = _keep_trajectories(_keep(table, rows))
    return kept, replace(
        frames, number=frames.number[rows], begin=frames.begin[long], count=frames.count[long]
    )
