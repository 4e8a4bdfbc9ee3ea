"""What ArviZ draws of our draws and comparisons, as they are: the schema is its own."""

import arviz_plots
import matplotlib.pyplot as plt
import pytest

from pyro_animacy import compare_runs, predict
from pyro_animacy.criticism.elpd import elpd

WIDTH = {"figure_kwargs": {"figsize": (4, 3)}, "backend": "matplotlib"}


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


def drawn():
    """The axes of the figure just made that hold anything."""
    return [axis for axis in plt.gcf().axes if axis.has_data()]


@pytest.mark.parametrize("kind", ["kde", "ecdf"])
def test_draws_beside_the_recording(tiny_run, tiny_data, kind):
    heldout = tiny_run.heldout(tiny_data)
    draws = predict(tiny_run, heldout, draws=6, horizon=10, progress=False)
    arviz_plots.plot_ppc_dist(draws, var_names="position", kind=kind, num_samples=6, **WIDTH)
    (axis,) = drawn()
    assert len(axis.lines) >= 6 + 1  # every draw, and the recording


def test_pareto_k_and_comparison(tiny_run, tiny_data):
    heldout = tiny_run.heldout(tiny_data)
    density = elpd(tiny_run, heldout, draws=32, progress=False)
    arviz_plots.plot_khat(density, **WIDTH)
    assert drawn()
    ranking = compare_runs([tiny_run], heldout, draws=32, forecast_draws=20, progress=False)
    arviz_plots.plot_compare(ranking.table, **WIDTH)
    labels = [label.get_text() for label in plt.gca().get_yticklabels()]
    assert tiny_run.path.name in labels
