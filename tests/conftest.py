import pytest
import torch
from helpers import debug, recordings

from pyro_animacy.infer.fit import fit

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tiny_data():
    """One recording of a chase of two bodies, 120 frames."""
    return recordings()


@pytest.fixture(scope="session")
def tiny_run(tiny_data, tmp_path_factory):
    """A run of the preset `debug` on `tiny_data`. Read it; copy its folder to change it."""
    out = tmp_path_factory.mktemp("tiny") / "run"
    return fit(tiny_data, debug(), out=out, progress=False)
