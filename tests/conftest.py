import pytest
import torch
from helpers import debug, recordings
from matplotlib.figure import Figure

from pyro_animacy.cli import main
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


@pytest.fixture
def undrawn(monkeypatch):
    """Leave figures blank, which takes half as long: for tests of what a report says."""
    monkeypatch.setattr(Figure, "draw", lambda *_: None)


@pytest.fixture
def refused(capfd):
    """Run the command line; it must exit with 2 and one line on stderr, which is returned."""

    def check(*arguments):
        capfd.readouterr()
        assert main([str(word) for word in arguments]) == 2
        out, err = capfd.readouterr()
        assert out == ""
        assert err.count("\n") == 1
        assert err.endswith("\n")
        assert err.startswith("pyro-animacy: ")
        assert "Traceback" not in err
        return err

    return check
