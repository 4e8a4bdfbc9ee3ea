"""Every Python block of the documentation runs, page by page, as it stands but for sizes.

A page's blocks are run in order, in one namespace, in an empty folder that holds the runs and files
it speaks of. `SMALL` makes sizes smaller by replacing words, each of which must be there.
"""

import dataclasses
import re
from pathlib import Path

import pytest
from test_episode_runs import agent

from pyro_animacy import fit, preset, read_trajectories
from pyro_animacy.criticism.statistics import STATISTICS
from pyro_animacy.data.episodes import save_episodes

ROOT = Path(__file__).parents[1]
PYTHON = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
PAGES = {
    str(path.relative_to(ROOT)): PYTHON.findall(path.read_text())
    for path in (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")))
}
SMALL = {
    "README.md": {
        "home x away x ball": "home_1,away_3,ball", 'preset("small")': 'preset("debug")',
        "range(200)": "range(3)",
    },
    "docs/acting.md": {
        'act_preset("small", "dreamer")': 'act_preset("debug", "dreamer")',
        "max_episode_steps=200": "max_episode_steps=10",
    },
    "docs/pyro.md": {"steps=2000": "steps=5"},
    "docs/models/image_vae.md": {
        "episodes=20, frames=200": "episodes=2, frames=5", "range(2000)": "range(2)",
    },
}  # fmt: skip
NEEDS = {
    "docs/acting.md": "gymnasium", "docs/models/image_vae.md": "gymnasium",
    "docs/criticism.md": "arviz_plots",
}  # fmt: skip
MINE = """
import gymnasium, numpy

class Mine(gymnasium.Env):
    observation_space = gymnasium.spaces.Box(-1.0, 1.0, (3,), numpy.float32)
    action_space = gymnasium.spaces.Box(-1.0, 1.0, (1,))

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return self.observation_space.sample(), {}

    def step(self, action):
        return self.observation_space.sample(), float(action[0]), False, False, {}
"""


def prepare(page):
    """Write what a page takes for granted into the working folder."""
    if page == "docs/criticism.md":
        data = {"source": "metrica", "bodies": "home_1,away_3,ball", "downsample": 4}
        fit(read_trajectories(**data), preset("debug"), out="runs/demo", data=data, progress=False)
    if page == "docs/models/set.md":
        config = preset("debug")
        config = dataclasses.replace(
            config, model=dataclasses.replace(config.model, structure="set")
        )
        match = read_trajectories("metrica", bodies="home_1,away_3,ball", downsample=2)
        fit(match, config, out="runs/match", progress=False)
    if page == "docs/models/world_model.md":
        episodes = agent(12, 20)
        save_episodes(episodes, "episodes.nc")
        fit(episodes, preset("debug", "world_model"), out="runs/agent", progress=False)
    if page == "docs/acting.md":
        from pyro_animacy.acting.act import act
        from pyro_animacy.acting.config import act_preset

        Path("mine.py").write_text(MINE)
        config = dataclasses.replace(act_preset("debug", "dreamer"), action_repeat=10)
        act("Chase-v0", config, out="runs/chase", progress=False)


@pytest.fixture
def statistics():
    """What a page adds to the statistics goes with it."""
    kept = dict(STATISTICS)
    yield
    STATISTICS.clear()
    STATISTICS.update(kept)


@pytest.mark.slow
@pytest.mark.usefixtures("statistics")
@pytest.mark.parametrize("page", [page for page, blocks in PAGES.items() if blocks])
def test_its_blocks_run(page, tmp_path, monkeypatch):
    if page in NEEDS:
        pytest.importorskip(NEEDS[page])
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    prepare(page)
    smaller, namespace = dict(SMALL.get(page, {})), {"__name__": "page"}
    for number, block in enumerate(PAGES[page], 1):
        for words, fewer in SMALL.get(page, {}).items():
            if words in block:
                block = block.replace(words, fewer)
                smaller.pop(words, None)
        exec(compile(block, f"{page}, block {number}", "exec"), namespace)
    assert not smaller, "words that SMALL replaces are no longer on the page"


def test_pages_that_have_blocks_are_found():
    assert {"README.md", *SMALL} <= {page for page, blocks in PAGES.items() if blocks}


@pytest.mark.parametrize("page", PAGES)
def test_python_is_in_blocks_that_are_run(page):
    """Not indented, where nobody runs it."""
    text = PYTHON.sub("", (ROOT / page).read_text())
    assert not re.findall(r"^    (?:from \w\S* import |import \w)", text, re.MULTILINE)
