"""The report: self-contained, escaped, readable; its sentences follow from the numbers."""

import base64
import io
import os
from html.parser import HTMLParser

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image
from test_statistics import FPS, recording, tree

from pyro_animacy.criticism import plots, verdicts
from pyro_animacy.criticism.animation import animate, pace
from pyro_animacy.criticism.comparison import align, compare
from pyro_animacy.criticism.report import write_report
from pyro_animacy.errors import RunError

SUMMARY = {
    "heldout_nats_per_step": 3.5,
    "heldout_elbo_per_step": 3.25,
    "baselines": {"constant_velocity": 1.0, "ar1": 2.0, "ar2": 2.5},
    "best_baseline": "ar2",
    "train_seconds": 61.2,
    "steps": 1500,
    "parameters": 43210,
    "data": {"bodies": ["b0", "b1"], "windows": {"train": 90}},
    "model": {"history": 2, "likelihood": "policy"},
    "score_density": "Scored by the policy likelihood.",
}
METRICS = [
    {"step": step, "loss": 5 - step / 100, "kl": 1.0, "kl_weight": 0.1, "action_cost": None}
    for step in range(0, 200, 10)
]


class Page(HTMLParser):
    """What a browser would find in the file."""

    VOID = ("meta", "img", "br", "link", "source", "input", "hr")

    def __init__(self, text):
        super().__init__()
        self.images, self.links, self.tags, self.open, self.text = [], [], [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.tags.append(tag)
        if tag not in self.VOID:
            self.open.append(tag)
        if tag == "img":
            self.images.append(attrs)
        self.links += [attrs[key] for key in ("src", "href", "srcset", "action") if key in attrs]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" not in self.open:
            self.text.append(data)

    @property
    def words(self):
        return " ".join(" ".join(self.text).split())


def scene(seed=0, trajectories=3, frames=20, bodies=2, draws=25, scale=1.0):
    rng = np.random.default_rng(seed)
    shape = (trajectories, frames, bodies, 2)
    observed = recording(rng.normal(size=shape).cumsum(1))
    generated = scale * rng.normal(size=(1, draws, *shape)).cumsum(3)
    return observed, tree(observed, generated)


def page_of(tmp_path, observed, generated, **options):
    arguments = {"title": "A run", "summary": SUMMARY, "metrics": METRICS, **options}
    path = write_report(
        tmp_path / "report.html", observed=observed, generated=generated, **arguments
    )
    assert os.listdir(tmp_path) == ["report.html"]
    page = Page(path.read_text(encoding="utf-8"))
    assert not page.open
    assert "script" not in page.tags
    assert all(link.startswith(("data:image/", "#")) for link in page.links)
    assert all(image["alt"].strip() for image in page.images)
    assert "nan" not in page.words.lower().split()
    return page


def test_report_holds_everything(tmp_path):
    observed, generated = scene()
    page = page_of(tmp_path, observed, generated, reconstructed=generated)
    kinds = [image["src"].split(";")[0] for image in page.images]
    assert kinds.count("data:image/gif") == 3
    checks = 6 * 2 + 2 + 2  # of 2 bodies, of their pair, of one towards the other
    assert kinds.count("data:image/png") == 1 + 1 + checks + 1  # paths, scores, checks, terms
    for image in page.images:
        data = base64.b64decode(image["src"].split(",")[1], validate=True)
        Image.open(io.BytesIO(data)).verify()
    for words in (
        "3.50 nats per step against 2.50 of AR(2)",
        "Scored by the policy likelihood.",
        "Speed: as recorded for every body.",
        "Following the recording",
        "windows.train",
        "1,500 steps",
    ):
        assert words in page.words, words
    style = (tmp_path / "report.html").read_text(encoding="utf-8").split("<style>")[1]
    assert "prefers-color-scheme: dark" in style
    assert "@media print" in style
    assert "url(" not in style
    assert "@import" not in style


def test_hostile_names_are_escaped(tmp_path):
    hostile = '<script>alert(1)</script>"><img src=http://x/>$x_$'
    observed, generated = scene(trajectories=1, frames=6)
    bodies = [hostile, "b $\\frac{$"]  # matplotlib reads dollars as mathematics
    observed = observed.assign_coords(body=bodies, trajectory=[hostile])
    observed = observed.assign_coords(label=("trajectory", [hostile]))
    observed.attrs["units"] = "<b>$m"
    draws = generated["posterior_predictive"]["position"].values
    page = page_of(
        tmp_path,
        observed,
        tree(observed, draws),
        title=hostile,
        summary={"model": {hostile: hostile}, "data": {"name": "<svg onload=x>"}},
    )
    assert hostile in page.words
    assert "svg" not in page.tags


@pytest.mark.parametrize("case", ["still", "missing", "runaway", "infinite", "single", "short"])
def test_odd_scenes(tmp_path, case):
    observed, generated = scene(frames=8)
    recorded = observed["position"].values
    draws = generated["posterior_predictive"]["position"].values
    if case == "still":
        recorded[:] = recorded[:, :1]
    elif case == "missing":
        recorded[:, :, 0] = np.nan
        recorded[1] = np.nan
        recorded[2, 3:5] = np.nan
    elif case == "runaway":
        draws *= 1e6
    elif case == "infinite":
        draws[..., 4:, :, :] = np.inf
    elif case == "single":
        recorded, draws = recorded[:1, :, :1], draws[:, :1, :1, :, :1]
    elif case == "short":
        recorded, draws = recorded[:, :1], draws[:, :, :, :1]
    observed = recording(recorded)
    page = page_of(tmp_path, observed, tree(observed, draws), summary={}, metrics=[])
    assert "The model was not scored" in page.words
    assert "No training log was given." in page.words
    assert ("50.0 % of the generated positions are not finite" in page.words) == (
        case == "infinite"
    )
    if case == "single":
        assert "1 draw is too few" in page.words
        assert "More draws" in page.words


def test_failed_write_leaves_the_old_report(tmp_path, monkeypatch):
    observed, generated = scene(trajectories=1, frames=5)
    (tmp_path / "report.html").write_text("old")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(RunError, match="cannot be written there"):
        page_of(tmp_path, observed, generated)
    assert (tmp_path / "report.html").read_text() == "old"
    assert os.listdir(tmp_path) == ["report.html"]


def comparison_of(scale=1.0, shift=0.0, draws=25):
    rng = np.random.default_rng(8)
    observed = recording(rng.normal(size=(5, 40, 1, 2)).cumsum(1))
    made = scale * rng.normal(size=(1, draws, 5, 40, 1, 2)).cumsum(3)
    made += shift * np.arange(40)[:, None, None]
    return compare(*align(observed, tree(observed, made)))[0]


def test_verdicts_follow_the_numbers():
    assert verdicts.judge(comparison_of()).grade == "right"
    fast, slow = verdicts.judge(comparison_of(1.5)), verdicts.judge(comparison_of(0.4))
    assert fast.grade == slow.grade == "wrong"
    assert fast.sentence.startswith("too fast (mean 4")
    assert fast.sentence.endswith("\u00a0% larger)")
    assert slow.sentence.startswith("too slow (mean 0.38")
    assert verdicts.judge(comparison_of(1.12)).grade == "near"


def test_a_body_that_never_rests_where_the_recorded_often_does_is_told_so():
    step = np.random.default_rng(9).normal(1, 0.05, size=(4, 60, 1, 2))
    still = np.where(np.arange(60)[:, None, None] % 3 == 0, 0.0, step)
    observed = recording(still.cumsum(1))
    made = np.random.default_rng(10).normal(0.9, 0.05, size=(1, 25, 4, 60, 1, 2)).cumsum(3)
    verdict = verdicts.judge(compare(*align(observed, tree(observed, made)))[0])
    assert verdict.grade == "wrong"
    assert verdict.sentence.endswith(
        " and too seldom at rest (0\u00a0% of frames, recorded 32\u00a0%)"
    )


def test_a_mean_far_off_is_wrong_though_a_long_tail_hides_it():
    rng = np.random.default_rng(11)
    kicks = np.where(rng.random((3, 400, 1, 2)) < 0.01, 40.0, rng.random((3, 400, 1, 2)))
    observed = recording(kicks.cumsum(1))
    made = rng.random((1, 25, 3, 400, 1, 2)).cumsum(3)
    fast = compare(*align(observed, tree(observed, made)))[0]
    assert fast.effect < verdicts.NEAR
    assert verdicts.judge(fast).grade == "wrong"


def test_score_sentences():
    def said(score, error=None):
        return verdicts.score_sentence(
            {**SUMMARY, "heldout_nats_per_step": score, "gain_standard_error": error}
        )

    assert said(3.5)[0] is True
    assert "(+1.00 nats per step, 2.72 times the density)" in said(3.5)[1]
    assert said(2.0)[0] is False
    assert "against 2.50 of AR(2) (−0.50 nats per step)" in said(2.0)[1]
    assert said(2.6, error=0.1)[0] is None
    assert said(float("nan"))[0] is False
    assert said(None)[0] is None


def test_what_to_try_next():
    def attempts(summary=SUMMARY, metrics=(), scale=1.0):
        observed, generated = scene(seed=3, scale=scale)  # of 19 checks, one in 20 is off by chance
        comparisons = compare(*align(observed, generated))
        return " ".join(verdicts.in_short(comparisons, summary, list(metrics)).attempt)

    rising = [{"step": i, "validation_nats_per_step": i} for i in range(8)]
    falling = [{"step": i, "validation_nats_per_step": -abs(i - 2)} for i in range(8)]
    assert "nothing in these figures asks for a change" in attempts()
    assert "do not say what would mend the speed, acceleration" in attempts(scale=0.5)
    assert "still rising" in attempts(metrics=rising)
    assert "best at step 2 and fell after it" in attempts(metrics=falling)
    assert "A smaller KL weight" in attempts(metrics=[{"step": 1, "kl": 1e-4}])
    seed = {**SUMMARY, "model": {"history": 1, "likelihood": "squared_error"}}
    assert "history = 2" in attempts(seed, scale=2.0)
    assert "history = 2" not in attempts(seed)
    assert "policy likelihood" in attempts(seed)
    assert "overfitting" not in attempts(seed, metrics=falling)  # of a score it was not trained on
    assert "bodies drift apart" in attempts(scale=3.0)
    assert "until it beats the baseline" in attempts({**SUMMARY, "heldout_nats_per_step": 0.0})


def test_numbers_as_said():
    said = {0.0: "0", 1234567.0: "1,234,567", -0.01234: "−0.0123", 1e-7: "1.00e−07", 99.96: "100"}
    assert {value: verdicts.number(value) for value in said} == said
    assert verdicts.number(float("nan")) == verdicts.number(None) == "–"
    assert verdicts.number(float("-inf")) == "−∞"
    assert [verdicts.probability(p, 100) for p in (0.0, 0.5, 1.0)] == ["<0.01", "0.50", ">0.99"]
    assert verdicts.baseline_name("ar3") == "AR(3)"
    assert verdicts.baseline_name("constant_velocity") == "constant velocity"


def test_animation_plays_at_the_pace_it_says():
    observed, draws = align(*scene(frames=70, trajectories=1))
    film = Image.open(io.BytesIO(animate(observed, draws, "t0")))
    play = pace(70, FPS)
    assert film.n_frames == len(play.frames)
    assert film.info["duration"] == play.delay
    assert film.info["loop"] == 0
    assert play.delay == pytest.approx(1000 / FPS)
    assert play.tempo == pytest.approx(1)
    for length, fps in [(2, 30.0), (10, 20.0), (5000, 25.0), (100, 240.0)]:
        play = pace(length, fps)
        seconds = len(play.frames) * play.delay / 1000
        assert 1.8 <= seconds <= 8.8, (length, fps)
        assert play.tempo * seconds == pytest.approx(length / fps, rel=0.03 if length > 99 else 0.2)


def test_film_shows_the_bodies_where_they_are():
    """The centre of the marker's pixels in a frame goes where the position says."""
    path = np.linspace(0, 1, 30)
    position = np.stack([path, path], -1)[None, :, None]
    observed = recording(position)
    observed, draws = align(observed, tree(observed, position[None, None]))
    film = Image.open(io.BytesIO(animate(observed, draws, "t0")))
    centres = []
    for frame in (0, 29):
        film.seek(frame)
        pixels = np.asarray(film.convert("RGB")).astype(int)[: int(film.height * 0.85)]
        blue = np.abs(pixels - [0, 0x72, 0xB2]).sum(-1) < 24
        rows, columns = np.nonzero(blue[:, : film.width // 2])
        edge = columns > np.quantile(columns, 0.5)  # the marker leads its trail
        centres.append((columns[edge].mean(), rows[edge].mean()))
    (x0, y0), (x1, y1) = centres
    assert x1 - x0 > 0.3 * film.width / 2
    assert y0 - y1 > 0.3 * film.width / 2


def test_windows_with_most_movement():
    position = np.zeros((4, 10, 2, 2))
    position[1] += np.arange(10)[:, None, None]  # both bodies
    position[2, :, 0] += 1.5 * np.arange(10)[:, None]  # one body only
    position[3] = np.nan
    assert plots.most_movement(recording(position), 3) == ["t1", "t2", "t0"]


def test_windows_of_the_same_moment_come_after_one_of_each():
    position = np.arange(4.0)[:, None, None, None] * np.arange(10)[:, None, None] + np.zeros(2)
    scenes = recording(position).assign_coords(
        recording=("trajectory", ["match"] * 4), start=("trajectory", [0, 50, 50, 50])
    )
    assert plots.most_movement(scenes, 4) == ["t3", "t0", "t2", "t1"]


def test_view_is_square_and_bounded():
    recorded = np.array([[[0.0, 0], [4, 2]]])
    low, high = plots.view(recorded, np.array([1e9, np.nan]), np.array([[1e9, -1e9]]))
    np.testing.assert_allclose(high - low, (high - low)[0])
    assert (low <= 0).all()
    assert (high >= [4, 2]).all()
    assert (high - low)[0] < 10
    low, high = plots.view(np.full((3, 1, 2), np.nan))
    assert (high > low).all()


def test_figures_leave_matplotlib_alone():
    import matplotlib as mpl

    before = dict(mpl.rcParams)
    observed, draws = align(*scene())
    figures = [
        plots.plot_loss_terms(METRICS),
        plots.plot_loss_terms([]),
        plots.plot_scores(SUMMARY),
        plots.plot_scores({}),
        plots.plot_statistic(compare(observed, draws)[0]),
        plots.plot_paths(observed, draws, ["t0", "t2"], reconstructed=draws),
    ]
    assert all(isinstance(figure, Figure) for figure in figures)
    assert all(Image.open(io.BytesIO(plots.png(figure))).width <= 4.5 * 144 for figure in figures)
    assert dict(mpl.rcParams) == before


def test_curves_drawn_are_the_distributions():
    comparison = compare(*align(*scene()))[0]
    above, below = plots.plot_statistic(comparison).axes
    recorded = next(line for line in above.lines if line.get_label() == "recorded")
    edges, density = recorded.get_data()
    inside = (comparison.observed >= edges[0]) & (comparison.observed <= edges[-1])
    area = (density[:-1] * np.diff(edges)).sum()
    assert area == pytest.approx(inside.mean())
    grid, share = next(line for line in below.lines if line.get_label() == "recorded").get_data()
    brute = [(comparison.observed <= point).mean() for point in grid]
    np.testing.assert_allclose(share, brute)
