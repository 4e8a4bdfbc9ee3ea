"""Compare generated with recorded motion, with a statistic of your own: copy and edit.

Every statistic is a function of positions (..., time, body, space) and of the scene (rate, names,
arena); each that is in `STATISTICS` is compared body by body here, and shown in the report.
"""

import argparse

import numpy as np

from pyro_animacy import Run, criticise, predict
from pyro_animacy.criticism.aligned import align
from pyro_animacy.criticism.comparison import compare
from pyro_animacy.criticism.criticise import windows
from pyro_animacy.criticism.judgement import judge
from pyro_animacy.criticism.scene import Scene
from pyro_animacy.criticism.statistics import STATISTICS, Statistic


def from_centroid(position: np.ndarray, scene: Scene) -> np.ndarray:
    """How far each body is from the middle of all: (..., time, body)."""
    return np.linalg.norm(position - position.mean(-2, keepdims=True), axis=-1)


STATISTICS["from_centroid"] = Statistic(
    "distance from the centroid", from_centroid, "{units}", "how far a body is from the middle"
)


def main() -> None:
    """Compare, print and write the report."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("run", nargs="?", default="runs/demo", help="folder of a fit")
    options.add_argument("--out", default="report.html", help="report to write")
    options.add_argument("--draws", type=int, default=50)
    given = options.parse_args()

    run = Run.load(given.run)
    heldout = run.heldout(run.recordings())
    recorded = windows(heldout, run, most=30)
    generated = predict(run, recorded, mode="generate", draws=given.draws)
    for c in compare(*align(recorded, generated)):
        means = f"{c.observed_mean:9.3g} recorded {c.generated_mean:9.3g} generated {c.units:6}"
        print(f"{c.statistic.name:28}{c.body:14}{means} {judge(c).sentence}")
    print(f"wrote {criticise(run, heldout, out=given.out, draws=given.draws, most=30, new=False)}")


if __name__ == "__main__":
    main()
