"""The report: self-contained, escaped, readable; its sentences follow from the numbers."""

import base64
import dataclasses
import io
import os
import re
import shutil
import sys
from html.parser import HTMLParser
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
import xarray as xr
from helpers import recordings
from matplotlib.figure import Figure
from PIL import Image
from scipy import stats
from test_statistics import FPS, recording, tree

from pyro_animacy.criticism import (
    animacy_plots,
    judgement,
    plots,
    style,
    verdicts,
    wording,
)
from pyro_animacy.criticism import criticise as criticism
from pyro_animacy.criticism import report as report_module
from pyro_animacy.criticism.aligned import align
from pyro_animacy.criticism.animacy import score_animacy
from pyro_animacy.criticism.animacy_table import by_body
from pyro_animacy.criticism.animation import animate, pace
from pyro_animacy.criticism.attempts import smaller_kl_weight
from pyro_animacy.criticism.checks import chance, checks
from pyro_animacy.criticism.comparison import compare
from pyro_animacy.criticism.criticise import SECTIONS, criticise, windows
from pyro_animacy.criticism.in_short import ENTRIES, NAMED, in_short
from pyro_animacy.criticism.report import with_named_bodies, write_report, write_sections
from pyro_animacy.criticism.section import Finding, Panel, Section, Table, embed
from pyro_animacy.criticism.statistics import STATISTICS
from pyro_animacy.data.schema import make_trajectories
from pyro_animacy.data.trajectories import split, split_at_gaps
from pyro_animacy.errors import ConfigError, DataError, RunError, how_many
from pyro_animacy.infer.config import parse_config
from pyro_animacy.infer.run import Run

SUMMARY = {
    "heldout_nats_per_step": 3.5,
    "heldout_elbo_per_step": 3.25,
    "baselines": {"constant_velocity": 1.0, "ar1": 2.0, "ar2": 2.5},
    "best_baseline": "ar2",
    "gain_standard_error": 0.1,
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
        self.ids, self.details = [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.tags.append(tag)
        if tag not in self.VOID:
            self.open.append(tag)
        if "id" in attrs:
            self.ids.append(attrs["id"])
        if tag == "details":
            self.details.append("open" in attrs)
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
    return checked(path)


def checked(path):
    """The page of a report, after what holds of every one."""
    page = Page(path.read_text(encoding="utf-8"))
    assert not page.open
    ids = page.ids
    assert len(set(ids)) == len(ids)
    assert {link[1:] for link in page.links if link.startswith("#")} <= set(ids)
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
        "3.50 nats per step against 2.50 for AR(2)",
        "Scored by the policy likelihood.",
        "Motion, as recorded in ",
        "Speed Right every body",
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


@pytest.mark.parametrize(
    ("fps", "straight", "lag"), [(0.2, "10", "5"), (15.0, "1", "0.533"), (20.0, "1", "0.5")]
)
def test_descriptions_say_how_long_the_frames_are(tmp_path, fps, straight, lag):
    """At any rate that of the frames that are taken, not of those that were wanted."""
    observed, generated = scene(trajectories=1)
    observed = observed.assign_coords(time=np.arange(20) / fps).assign_attrs(fps=fps)
    draws = generated["posterior_predictive"]["position"].values
    page = page_of(tmp_path, observed, tree(observed, draws))
    said = page.words.replace("\u00a0", " ")
    assert f"the ends of {straight} s of path" in said
    assert f"keeps for {lag} s, 1 is all" in said


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
    with pytest.raises(RunError, match="cannot be written"):
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
    assert judgement.judge(comparison_of()).grade == "right"
    fast, slow = judgement.judge(comparison_of(1.5)), judgement.judge(comparison_of(0.4))
    assert fast.grade == slow.grade == "wrong"
    assert fast.sentence.startswith("too fast (mean 4")
    assert fast.sentence.endswith("\u00a0% larger)")
    assert slow.sentence.startswith("too slow (mean 0.38")
    assert judgement.judge(comparison_of(1.12)).grade == "near"


def never_rests():
    """Comparisons of a body that moves at all times and a recorded one that stops every third."""
    step = np.random.default_rng(9).normal(1, 0.05, size=(4, 60, 1, 2))
    still = np.where(np.arange(60)[:, None, None] % 3 == 0, 0.0, step)
    observed = recording(still.cumsum(1))
    made = np.random.default_rng(10).normal(0.9, 0.05, size=(1, 25, 4, 60, 1, 2)).cumsum(3)
    return compare(*align(observed, tree(observed, made)))


def test_a_body_that_never_rests_where_the_recorded_often_does_is_told_so():
    verdict = judgement.judge(never_rests()[0])
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
    assert fast.effect < judgement.NEAR
    assert judgement.judge(fast).grade == "wrong"


@pytest.mark.parametrize(("clips", "grade"), [(4, "wrong"), (9, "near"), (100, "wrong")])
def test_a_mean_that_is_off_as_recordings_differ_may_be_chance(clips, grade):
    """Clips of their own tempos, of which those held out happen to be fast; a few tell nothing.

    Of fewer than five their spread is not known, and of many such a difference is none of chance.
    """
    rng = np.random.default_rng(12)
    tempo = np.exp(0.5 * stats.norm.ppf((np.arange(clips) + 0.5) / clips))[:, None, None, None]
    observed = recording((tempo * rng.normal(size=(clips, 40, 1, 2))).cumsum(1))
    made = rng.normal(size=(1, 25, clips, 40, 1, 2)).cumsum(3) * 0.8
    speed = compare(*align(observed, tree(observed, made)))[0]
    verdict = judgement.judge(speed)
    assert verdict.grade == grade
    assert ("9 recordings differ as much among themselves" in verdict.sentence) == (clips == 9)
    size = np.linalg.norm(np.diff(observed["position"].values[:, :, 0], axis=1), axis=-1) * FPS
    assert speed.observed_mean == pytest.approx(size.mean())
    if clips > 4:
        by_clip = size.mean(1).std(ddof=1) / np.sqrt(clips)
        assert speed.between.error == pytest.approx(by_clip)
        np.testing.assert_allclose(np.sort(speed.between.means), np.sort(size.mean(1)))


def test_one_recording_unlike_the_others_excuses_nothing():
    """As found: four slow clips and a very fast one made any mean a matter of chance."""
    rng = np.random.default_rng(12)
    tempo = np.array([1.0, 1.0, 1.0, 1.0, 20.0])[:, None, None, None]
    observed = recording((tempo * rng.normal(size=(5, 40, 1, 2))).cumsum(1))
    made = rng.normal(size=(1, 25, 5, 40, 1, 2)).cumsum(3) * 0.3
    assert judgement.judge(compare(*align(observed, tree(observed, made)))[0]).grade == "wrong"
    observed["position"][1:] = np.nan  # of the others nothing is known
    lone = compare(*align(observed, tree(observed, made)))[0]
    assert not len(lone.between.means)
    assert np.isnan(lone.between.error)


def test_score_sentences():
    def said(score, error=0.1):
        return verdicts.score_grade(
            {**SUMMARY, "heldout_nats_per_step": score, "gain_standard_error": error}
        )

    assert said(3.5)[0] == "right"
    assert "(+1.00\u00a0±\u00a00.10 nats per step, 2.72 times the density)" in said(3.5)[1]
    for score in (3.5, 2.0):  # as found: what nobody knew the error of was called certain
        assert said(score, error=None)[0] == "undefined"
        assert f"{score:.2f} nats per step against 2.50 for AR(2)" in said(score, error=None)[1]
    assert said(2.0)[0] == "wrong"
    assert "against 2.50 for AR(2) (−0.50 nats per step)" in said(2.0)[1]
    assert said(2.6)[0] == "near"
    assert "+0.10\u00a0±\u00a00.10 (standard error)" in said(2.6)[1]
    assert said(float("nan"))[0] == "wrong"
    assert said(None)[0] == "undefined"
    assert verdicts.score_grade({"heldout_nats_per_step": 1.0})[0] == "undefined"


@pytest.mark.parametrize("bodies", [1, 2, 23])
def test_how_far_below_a_baseline_is_foreign_goes_by_the_bodies(bodies):
    """As found: 23 bodies, 53 nats a step below on the run's own frames, after few updates."""
    for far, foreign in ((0.9, False), (1.1, True)):
        score = 2.5 - far * verdicts.FOREIGN * bodies
        data = {"bodies": [f"b{i}" for i in range(bodies)]}
        summary = {**SUMMARY, "heldout_nats_per_step": score, "data": data}
        grade, sentence = verdicts.score_grade(summary)
        assert grade == "wrong"
        assert ("nothing like" in sentence) == foreign


def test_the_bar_of_the_score_is_of_the_difference_from_the_best_baseline():
    """As found: clearly better, but the bar of its own error covered all baselines."""
    errors = {"heldout_standard_error": 3.0, "gain_standard_error": 0.25}
    axis = plots.plot_scores({**SUMMARY, **errors}).axes[0]
    bars = [segment for lines in axis.collections for segment in lines.get_segments()]
    np.testing.assert_allclose(bars, [[[3.0, 3], [4.0, 3]]])
    unknown = {"heldout_standard_error": 3.0, "gain_standard_error": None}
    assert not plots.plot_scores({**SUMMARY, **unknown}).axes[0].collections


def test_a_model_no_better_than_a_baseline_is_doubted():
    def said(score, error=0.1):
        summary = {"heldout_nats_per_step": score, "gain_standard_error": error}
        return verdicts.doubt({**SUMMARY, **summary})

    assert said(3.5) == said(None) == verdicts.doubt({"heldout_nats_per_step": 1.0}) == ""
    assert said(2.0).startswith("the model predicts steps no better than AR(2), so these say")
    for error in (0.1, 2.0, None):  # level, and not to be told
        assert "not clearly better than AR(2)" in said(2.6, error)
    assert said(float("nan"))


def test_level_is_said_only_of_a_small_error_and_other_recordings_are_named():
    def said(score, error):
        summary = {"heldout_nats_per_step": score, "gain_standard_error": error}
        return verdicts.score_grade({**SUMMARY, **summary})

    assert said(2.4, 0.4)[0] == "near"
    assert said(2.4, 0.6)[0] == "undefined"
    grade, sentence = said(-265_351_288.0, 476_699_586.0)
    assert grade == "wrong"
    assert "nothing like what the run has learned" in sentence
    assert "−2.65e+08 nats" in sentence
    assert said(2.5 - 2 * verdicts.FOREIGN - 1, 40.0)[0] == "wrong"
    told = in_short([], {**SUMMARY, "heldout_nats_per_step": -1e6}, [])
    assert "or a new fit on these" in told.attempt[0]


def test_few_draws_leave_a_difference_not_known():
    few, one, enough = (judgement.judge(comparison_of(2.0, draws=n)) for n in (19, 1, 20))
    assert few.grade == one.grade == "undefined"
    assert few.sentence.startswith("too fast")
    assert few.sentence.endswith("; 19 draws are too few to tell")
    assert one.sentence.endswith("; 1 draw is too few to tell")
    assert enough.grade == "wrong"
    told = in_short(compare(*align(*scene(scale=3.0, draws=1))), {}, [])
    assert not any("Motion" in sentence for sentence in (*told.near, *told.wrong))
    assert any(sentence.startswith("More draws") for sentence in told.attempt)


@pytest.mark.parametrize("case", ["unobserved", "one frame"])
def test_what_cannot_be_seen_is_not_said_to_be_right(tmp_path, case):
    observed, generated = scene(frames=1 if case == "one frame" else 8)
    if case == "unobserved":
        observed["position"][:] = np.nan
    else:  # the first frame is given to the model
        draws = generated["posterior_predictive"]["position"]
        draws[:] = observed["position"].values
    resolution = ("trajectory", np.full(3, 0.01))
    observed = observed.assign_coords(resolution=resolution)
    words = page_of(tmp_path, observed, generated, summary={}, metrics=[]).words
    said = {
        "unobserved": "Not known: no statistic",
        "one frame": "of motion are not known",
    }
    assert said[case] in words
    assert "nothing in these figures asks for a change" not in words


def test_what_to_try_next():
    def attempts(summary=SUMMARY, metrics=(), scale=1.0):
        observed, generated = scene(seed=3, scale=scale)  # of 19 checks, one in 20 is off by chance
        comparisons = compare(*align(observed, generated))
        return " ".join(in_short(comparisons, summary, list(metrics)).attempt)

    rising = [{"step": i, "validation_nats_per_step": i} for i in range(8)]
    falling = [{"step": i, "validation_nats_per_step": -abs(i - 2)} for i in range(8)]
    assert "nothing in these figures asks for a change" in attempts()
    assert "do not say what would mend the speed, acceleration" in attempts(scale=0.5)
    longer = "Longer training (--train.steps) is likely to help"
    slowly = [*rising, {"step": 8, "validation_nats_per_step": 7.01}]
    for log in (rising, rising[:2], slowly):
        assert longer in attempts(metrics=log)
    assert "there is one validation score" in attempts(metrics=rising[:1])
    for log in (falling, [*rising, {"step": 8, "validation_nats_per_step": 7}]):
        assert longer not in attempts(metrics=log)
    assert "best at step 2 and fell after it" in attempts(metrics=falling)
    noise = [{**row, "validation_nats_per_step": 1e-3 * row["validation_nats_per_step"]}
             for row in falling]  # fmt: skip
    assert "fell after it" not in attempts(metrics=noise)
    assert "A smaller KL weight" in attempts(metrics=[{"step": 1, "kl": 1e-4}])
    found = [Finding("wrong", "The guide is bad.", "Train longer, or a larger posterior network.")]
    for log, given in ((rising, True), (falling, False)):  # by heart already
        tried = in_short([], SUMMARY, log, sections=[Section("guide", "Guide", "", found)]).attempt
        assert any(sentence.startswith("Train longer") for sentence in tried) == given
    seed = {**SUMMARY, "model": {"history": 1, "likelihood": "squared_error"}}
    assert "--model.history 2" in attempts(seed, scale=2.0)
    assert "--model.history 2" not in attempts(seed)
    assert "--model.likelihood policy" in attempts(seed)
    assert "overfitting" not in attempts(seed, metrics=falling)  # of a score it was not trained on
    assert "bodies drift apart" in attempts(scale=3.0)
    assert "until it beats the best baseline" in attempts({**SUMMARY, "heldout_nats_per_step": 0.0})


@pytest.mark.parametrize(("model", "said"), [
    ({"rest": False}, "(--model.rest true):"),
    ({"rest": True, "roll_out": "closed_loop"}, "(--model.rest true) has no effect"),
    ({"rest": False, "policy_scale": 0.05}, "(--model.rest true, which is for training"),
    ({"rest": True, "history": 1}, "(--model.rest true) has no effect"),
    ({"rest": True}, None),
])  # fmt: skip
def test_a_state_of_rest_is_named_where_there_is_none(model, said):
    model = {"roll_out": "teacher_forced", "policy_scale": None, "likelihood": "policy", **model}
    found = " ".join(in_short(never_rests(), {**SUMMARY, "model": model}, []).attempt)
    assert said in found if said else "--model.rest" not in found


@pytest.mark.parametrize(
    ("steps", "train"),
    [
        (4000, {}),
        (36_000, {"steps_per_epoch": 8, "kl_weight": {"end": 0.09}}),
        (2, {}),
        (17, {"steps_per_epoch": 8}),
        (95, {}),
    ],
)
def test_the_advised_kl_weight_reaches_its_end_by_the_last_step(steps, train):
    """As `fit` reads the options; and it starts at a hundredth, whatever the run's length."""
    summary = {**SUMMARY, "steps": steps, "train": train}
    observed, generated = scene()
    comparisons = compare(*align(observed, generated))
    told = in_short(comparisons, summary, [{"step": steps, "kl": 1e-4}])
    [advice] = [sentence for sentence in told.attempt if "KL weight" in sentence]
    given = dict(re.findall(r"--train\.kl_weight\.(\w+) ([\d.]+)", advice))
    options = {name: float(value) if "." in value else int(value) for name, value in given.items()}
    weight = parse_config({"train": {"kl_weight": options}}).train.kl_weight
    end = train.get("kl_weight", {}).get("end", 1.0)
    assert weight(0) == pytest.approx(end / 100)
    assert weight((steps - 1) // train.get("steps_per_epoch", 1)) == pytest.approx(end)
    if steps > 1000:  # and stays there for as long
        assert weight(steps // 2 // train.get("steps_per_epoch", 1)) == pytest.approx(end)


def test_a_smaller_kl_weight_is_advised_once():
    summary = {**SUMMARY, "steps": 4000}
    advice = smaller_kl_weight(summary)
    found = Section("latent", "Latent", "", [Finding("wrong", "Posterior collapse.", f"{advice}.")])
    told = in_short([], summary, [{"step": 4000, "kl": 1e-4}], sections=[found])
    assert sum("KL weight" in sentence for sentence in told.attempt) == 1


def test_the_log_of_a_run_that_acts_is_drawn_by_episode(tmp_path):
    """Its rows have no step; and a page without curves has no note on them."""
    metrics = [{"episode": n, "loss": 3.0 - n, "kl": 1.0 + n} for n in range(2)]
    assert verdicts.series(metrics, "kl") == ([0.0, 1.0], [1.0, 2.0])
    assert plots.plot_loss_terms(metrics).axes[-1].get_xlabel() == "episode"
    assert plots.plot_loss_terms(METRICS).axes[-1].get_xlabel() == "training step"
    options = {"title": "A run", "subject": "a model acts", "facts": [], "sections": []}
    for log, drawn in ((metrics, True), ([], False)):
        path = write_sections(tmp_path / "r.html", summary={}, metrics=log, **options)
        words = checked(path).words
        assert ("No training log was given" in words) != drawn
        assert ("nats per frame" in words) == drawn
        assert "validation score is of" not in words


def test_the_page_states_the_limits_that_are_used(tmp_path, monkeypatch):
    monkeypatch.setattr("pyro_animacy.criticism.report.TAIL", 0.01)
    monkeypatch.setattr("pyro_animacy.criticism.report.NEAR_MEAN", 0.4)
    words = page_of(tmp_path, *scene(trajectories=1, frames=8)).words
    assert "p(mean) at least 0.01 and p(W₁) at least 0.02 (chance)" in words
    assert "a mean off by more than 40 %" in words  # of words, spaces are all alike


PIXEL = embed(style.png(plots.plot_loss_terms([])), "png", "a figure")


def section(key="calibration", grade="wrong", title="Is it calibrated?", count=1, **options):
    """A section with some findings of one grade."""
    findings = [
        Finding(
            grade, f"{key} {grade} {i} (right: at most 0.1; near: 0.5).", f"Do {i}.", "More of it."
        )
        for i in range(count)
    ]
    return Section(key, title, "An intro.", findings, **options)


def test_any_section_is_drawn(tmp_path):
    observed, generated = scene(trajectories=1, frames=12)
    table = Table("A table", ("body", "value <m>"), [("b0", "1.5"), ("b1", "2.5")])
    parts = [
        section(panels=[Panel(PIXEL, "A caption", "near")], tables=[table], note="A note."),
        Section("empty", "An empty one", ""),
        section("other", "undefined"),
    ]
    page = page_of(tmp_path, observed, generated, sections=parts)
    assert {"calibration", "empty", "other", "score", "checks"} <= set(page.ids)
    for words in (
        "Wrong calibration wrong 0 (right: at most 0.1; near: 0.5). More of it. Try: Do 0.",
        "A caption Close",
        "Not known other undefined 0",
        "A table body value <m> b0 1.5 b1 2.5",
        "A note.",
    ):
        assert words in page.words, words
    assert page.words.index("A table") < page.words.index("An empty one")


def test_the_summary_leads_with_what_matters_and_stays_short():
    found = compare(*align(*scene(scale=2.0)))
    keys = ("latent", "guide", "calibration", "a", "b", "c", "d")
    parts = [section(key, "wrong", key.title(), count=3) for key in keys]
    told = in_short(found, {**SUMMARY, "heldout_nats_per_step": 0.0}, [], 0.5, parts)
    assert "not finite" in told.wrong[0]
    assert "A simple baseline" in told.wrong[1]
    assert told.wrong[2:4] == ("guide wrong 0.", "calibration wrong 0.")  # no criteria, no more
    assert told.where["guide wrong 0."] == ("guide", "Guide (2 more)")
    assert told.wrong[4].startswith("Motion, wrong in ")
    assert told.where[told.wrong[4]][0] == "checks"
    assert len(told.wrong) == ENTRIES
    assert told.wrong[5] == "And 5 more below."  # latent, a, b, c, d
    assert "Do 0." in told.attempt
    assert len(set(told.attempt)) == len(told.attempt) <= ENTRIES
    assert not any("undefined" in s for s in (*told.right, *told.near))


def test_the_summary_does_not_cut_the_names_of_bodies():
    """Where they have full stops in them, as in Player No. 7."""
    said = "One step ahead, forecasts of Player No. 7 are too narrow."
    part = Section("calibration", "Is it calibrated?", "", [Finding("wrong", said)])
    assert in_short([], {}, [], sections=[part]).wrong == (said,)


def test_the_motion_takes_one_sentence_a_list():
    found = compare(*align(*scene(scale=2.0)))
    told = in_short(found, {}, [])
    [sentence] = [s for s in told.wrong if s.startswith("Motion")]
    wrong = [c for c in found if judgement.judge(c).grade == "wrong"]
    assert f"wrong in {len(wrong)} of {len(found)} checks" in sentence
    assert "speed of every body (too fast)" in sentence
    names = {c.statistic.name for c in wrong}
    assert len(names) > NAMED
    assert f"; and {len(names) - NAMED} more below." in sentence
    assert sum(name in sentence for name in names) >= NAMED


def test_a_statistic_is_open_where_a_body_is_wrong(tmp_path):
    observed, generated = scene(seed=3, trajectories=2, frames=12, scale=2.0)
    found = list(checks(compare(*align(observed, generated))))
    off = [any(row.verdict.grade == "wrong" for row in check.rows) for check in found]
    assert [check.open for check in found] == off
    assert set(off) == {True, False}
    page = page_of(tmp_path, observed, generated)
    assert page.details == [False, *off, False, False, False]  # words used; model, data, run
    assert "Speed Wrong every body" in page.words


def test_bodies_that_are_only_numbered_are_called_bodies(tmp_path):
    observed, generated = scene(trajectories=1, frames=12, scale=2.0)
    draws = generated["posterior_predictive"]["position"].values
    observed = observed.assign_coords(body=["0", "1"])
    page = page_of(tmp_path, observed, tree(observed, draws), reconstructed=tree(observed, draws))
    assert "body 0, body 1" in page.words
    assert "body 0 – body 1" in page.words
    assert any("speed of body 1" in image["alt"] for image in page.images)


def test_chance_is_as_large_as_said():
    """Of an exact model, the share of checks beyond a tail probability: 5 to 10 %, as said."""
    n = 500  # bodies that move apart from each other: as many checks
    walks = np.random.default_rng(12).normal(size=(101, 1, 20, n, 2)).cumsum(2)
    observed = recording(walks[0])
    pair = align(observed, tree(observed, walks[None, 1:]))
    found = compare(*pair, {"speed": STATISTICS["speed"]}, progress=False)
    outside = np.mean([not judgement.within_chance(c) for c in found])
    error = 3 * np.sqrt(0.08 * 0.92 / n)
    assert 0.05 - error < outside < 0.1 + error
    assert f"about {0.05 * n:.0f} to {0.1 * n:.0f} of these {n}" in chance(found)
    assert "about 0 to 1 of these 10" in chance(found[:10])
    assert "hardly one of these 4" in chance(found[:4])
    assert chance(compare(*align(*scene(draws=5)))) == ""
    assert chance([]) == ""


@pytest.mark.slow
def test_criticise_reports_every_section(tiny_run, tiny_data, tmp_path, capfd, monkeypatch):
    monkeypatch.setitem(sys.modules, "ipykernel", sys)  # a notebook shows bars, a pipe does not
    heldout = tiny_run.heldout(tiny_data)
    out = criticise(tiny_run, heldout, out=tmp_path / "r.html", draws=20, most=2, new=False)
    page = checked(out)
    assert [key for key in page.ids if key in SECTIONS] == list(SECTIONS)
    for title, _ in SECTIONS.values():
        assert title in page.words
    assert "Not known Nothing can be said of this here" not in page.words
    bars = [line for line in capfd.readouterr().err.split("\r") if "|" in line]
    ends = [bar.split(":")[0].strip() for bar in bars if "7/7" in bar]
    assert set(ends) == {"criticise"}  # those of its parts come and go


def test_a_report_says_of_a_run_that_was_stopped_how_it_goes_on(tiny_run, tiny_data, tmp_path):
    path = shutil.copytree(tiny_run.path, tmp_path / "run")
    (path / "summary.json").unlink()  # it is written when the fit has ended
    log = (path / "metrics.jsonl").read_text().splitlines(keepends=True)
    (path / "metrics.jsonl").write_text("".join(log[:-1]))
    trainer = torch.load(path / "trainer.pt", weights_only=True)
    torch.save(trainer | {"step": 23}, path / "trainer.pt")
    heldout = tiny_run.heldout(tiny_data)
    for run, said in ((Run.load(path), True), (tiny_run, False)):
        out = criticise(run, heldout, out=tmp_path / "r.html", draws=2, most=1, sections=())
        words = checked(out).words
        assert ("stopped at step 23 of 40" in words) == said
        assert (f"pyro-animacy fit --resume {path}" in words) == said
        assert ("Longer training" in words) != said


def test_windows_are_named_by_the_frame_that_they_begin_with(tiny_run, tiny_data):
    """Also where they are cut from a piece of a recording, which its own first frame names."""
    x = tiny_data["position"].values.copy()
    x[0, [15, 16]] = np.nan
    cut = split_at_gaps(make_trajectories(x, fps=10, body=tiny_data["body"].values))
    assert list(cut["trajectory"].values) == ["0@0", "0@17"]
    shown = windows(cut, tiny_run, frames=40)
    assert list(shown["trajectory"].values) == ["0@17", "0@57"]
    np.testing.assert_array_equal(shown["position"][1], x[0, 57:97])
    heldout = windows(split(cut, heldout=0.2)[1], tiny_run, frames=20)
    assert list(heldout["trajectory"].values) == [f"0@{n}" for n in heldout["start"].values]
    assert heldout["start"].values[0] > 17
    assert list(windows(tiny_data, tiny_run, frames=120)["trajectory"].values) == ["0"]


def test_what_cannot_be_measured_says_why(tiny_run, tiny_data, tmp_path, monkeypatch):
    def fails(*_):
        raise DataError("these are too short.")

    monkeypatch.setitem(criticism.SECTIONS, "guide", ("Is the guide good?", fails))
    options = {"draws": 3, "most": 1, "new": False, "progress": False}
    heldout = tiny_run.heldout(tiny_data)
    out = criticise(tiny_run, heldout, out=tmp_path / "r.html", sections=["guide"], **options)
    page = checked(out)
    assert "Not known Nothing can be said of this here: these are too short." in page.words
    assert "latent" not in page.ids
    with pytest.raises(ConfigError, match="section 'gide' does not exist; choose from guide, cal"):
        criticise(tiny_run, heldout, out=tmp_path / "r.html", sections=["gide"], **options)


def test_evidence_of_a_report_is_that_of_whole_trajectories_as_of_score(tiny_run):
    data = recordings(frames=200, seed=4)  # two and a half windows
    report = criticism._animacy(tiny_run, data, 0, False)
    table = by_body(score_animacy(tiny_run, data, progress=False))
    said = [[wording.with_error(row[n], row[f"{n}_error"])
             for n in ("evidence", "interaction", "choice", "surprise")]
            for _, row in table.iterrows()]  # fmt: skip
    assert [list(row[1:]) for row in report.tables[0].rows] == said
    assert len(report.panels) == 3  # two windows in motion


@pytest.mark.parametrize("ahead", [-1.0, 1.0])
def test_findings_on_bodies_are_not_known_of_a_model_that_a_baseline_beats(tiny_run, ahead):
    run = dataclasses.replace(tiny_run, summary={**SUMMARY, "heldout_nats_per_step": 2.5 + ahead})
    section = criticism._animacy(run, recordings(frames=60), 0, False)
    evidence, interaction, reliable = section.findings
    known = [f.grade != "undefined" for f in (evidence, interaction)]
    assert known == [ahead > 0] * 2
    for finding in (evidence, interaction):
        assert ("no better than AR(2), so these say nothing" in finding.sentence) == (ahead < 0)
    assert reliable.grade != "undefined"


def test_of_long_recordings_a_report_scores_some_steps_of_whole_trajectories(tiny_run, monkeypatch):
    data, found = recordings(frames=400, seed=4), []
    monkeypatch.setattr(criticism, "STEPS", 300)
    monkeypatch.setattr(criticism, "SCORED", 2)  # of five windows of 80 frames
    monkeypatch.setattr(
        criticism, "score_animacy", lambda *a, **o: found.append(score_animacy(*a, **o)) or found[0]
    )
    criticism._animacy(tiny_run, data, 0, False)
    frames = np.flatnonzero(found[0]["evidence"].notnull().all("body").to_numpy()[0])
    history = tiny_run.card.config["history"]
    assert frames.tolist() == [*range(history - 1 or 1, 80), *range(320, 399)]
    whole = score_animacy(tiny_run, data, draws=30, surrogates=1, progress=False)["surprise"]
    np.testing.assert_array_equal(found[0]["surprise"][0, frames], whole[0, frames])


@pytest.mark.parametrize(
    ("bodies", "remembers", "fewer"), [(1, False, 1), (5, False, 1), (23, False, 7), (6, True, 8)]
)
def test_of_many_bodies_a_report_scores_fewer_steps(bodies, remembers, fewer):
    """Each body is scored by itself, so that a step takes as many times as long."""
    of = SimpleNamespace(
        model=SimpleNamespace(remembers=remembers), card=SimpleNamespace(bodies=("a",) * bodies)
    )
    assert criticism._times_fewer(of) == fewer


@pytest.mark.slow
@pytest.mark.parametrize("case", ["short", "still", "gaps"])
def test_odd_recordings_give_a_report_of_all_sections(tiny_run, tmp_path, case):
    history = tiny_run.card.config["history"]
    walk = np.random.default_rng(13).normal(scale=0.1, size=(1, 40, 2, 2)).cumsum(1)
    if case == "short":
        walk = walk[:, : history + 1]
    elif case == "still":
        walk[:, :, 0] = walk[:, :1, 0]
    else:
        walk[:, 10:30, 0] = np.nan
    data = make_trajectories(walk, fps=10, body=["hunter", "prey"], units="m", source="odd")
    out = criticise(
        tiny_run, data, out=tmp_path / "r.html", draws=4, most=2, new=False, progress=False
    )
    page = checked(out)
    assert [key for key in page.ids if key in SECTIONS] == list(SECTIONS)


def test_numbered_bodies_are_named_but_none_as_another_is():
    names = ["0", "1", "body 1", "ball"]
    named = with_named_bodies(xr.DataArray(np.zeros(4), {"body": names}, ("body",)))
    assert named["body"].values.tolist() == ["body 0", "1", "body 1", "ball"]


PLAYERS = [f"{team}_{i}" for team in ("home", "away") for i in range(11)]


@pytest.mark.parametrize(
    ("bodies", "said", "looks"),
    [
        (["0", "1"], ["body 0", "body 1"], [0, 1]),
        (["_a", "b"], [" _a", "b"], [0, 1]),
        ([*PLAYERS[:2], "ball"], ["home_0", "home_1", "ball"], [0, 1, 2]),
        # too many to tell apart: by type, in the order of the types' names
        ([*PLAYERS, "ball"], ["home (11)", "away (11)", "ball"], [2] * 11 + [0] * 11 + [1]),
        (PLAYERS[:10], PLAYERS[:8], [0, 1, 2, 3, 4, 5, 6, 0, 1, 2]),
        ([*"abcdefghij"], [*"abcdefgh"], [0, 1, 2, 3, 4, 5, 6, 0, 1, 2]),
    ],
)
def test_bodies_in_the_legend(bodies, said, looks):
    assert [style.BODY_COLOURS.index(colour) for colour, _ in style.body_looks(bodies)] == looks
    figure = Figure()
    style.body_legend(figure, bodies)
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == said
    more = legend.get_title().get_text()
    assert more == ("and 2 more" if len(bodies) == 10 else "")
    if len(said) == len(bodies) or len(bodies) == 10:  # one by one, told apart by the marker
        assert len({*style.body_looks(bodies)}) == len(bodies)


def test_differences_counts_and_units_as_said():
    assert wording.plus_minus(-1.04, 0.0851) == "−1.04\u00a0±\u00a00.09"
    assert wording.plus_minus(0.0156, 0.0021) == "+0.02\u00a0±\u00a00.002"
    assert [wording.times(ratio) for ratio in (0.5, 1.3, 2.0)] == [
        "0.5 times as large", "30\u00a0% larger", "2 times as large"
    ]  # fmt: skip
    assert wording.nats(-265_351_288.0) == "−2.65e+08"
    assert [wording.seconds(s) for s in (0.96, 4.0, 120.0)] == [
        "0.96\u00a0s", "4\u00a0s", "120\u00a0s"
    ]  # fmt: skip
    assert [wording.counted(n, 26, "steps") for n in (0, 13, 26)] == [
        "none of the 26 steps", "13 of 26 steps", "all 26 steps"
    ]  # fmt: skip
    assert wording.counted(1998, 2000, "steps") == "1,998 of 2,000 steps"
    assert wording.counted(1000, 2000, "steps") == "50\u00a0% of 2,000 steps"
    assert wording.counted(0, 1, "whole stretches") == "none of 1 whole stretch"
    assert wording.counted(1, 1, "single steps") == "all of 1 single step"
    assert [how_many(n, "body") for n in (0, 1, 2000)] == ["0 bodies", "1 body", "2,000 bodies"]
    assert [how_many(n, "stretch") for n in (1, 2)] == ["1 stretch", "2 stretches"]
    assert [how_many(n, "display") for n in (1, 4)] == ["1 display", "4 displays"]
    assert [how_many(n, "frame") for n in (1, 2)] == ["1 frame", "2 frames"]
    units = ("rad/data units", "data units/s", "rad/m")
    assert [wording.per_unit(u) for u in units] == [
        "rad per data unit", "data units per s", "rad/m"
    ]  # fmt: skip
    assert [wording.tick(x) for x in (-2.5, 12.05, -4e8)] == ["−2.5", "12.05", "−4.00e+08"]
    assert wording.signed(-2.5) == "−2.5"


def test_settings_are_said_as_options_are_typed():
    tables = report_module._settings({"model": {"arena": None, "heads": [1, 2], "on": True}})
    assert tables == [("model", [("arena", "null"), ("heads", "1, 2"), ("on", "true")])]


def test_numbers_as_said():
    said = {0.0: "0", 1234567.0: "1,234,567", -0.01234: "−0.0123", 1e-7: "1.00e−07", 99.96: "100"}
    assert {value: wording.number(value) for value in said} == said
    assert wording.number(float("nan")) == wording.number(None) == "–"
    assert wording.number(float("-inf")) == "−∞"
    assert [wording.probability(p, 100) for p in (0.0, 0.5, 1.0)] == ["<0.01", "0.50", ">0.99"]
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
    low, high = style.view(recorded, np.array([1e9, np.nan]), np.array([[1e9, -1e9]]))
    np.testing.assert_allclose(high - low, (high - low)[0])
    assert (low <= 0).all()
    assert (high >= [4, 2]).all()
    assert (high - low)[0] < 10
    low, high = style.view(np.full((3, 1, 2), np.nan))
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
    assert all(Image.open(io.BytesIO(style.png(figure))).width <= 4.5 * 144 for figure in figures)
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


@pytest.mark.parametrize("resting", [0, 0.6])
def test_bodies_at_rest_leave_the_rest_of_a_density_to_be_seen(resting):
    def speeds(rest):
        moving = stats.gamma(3).ppf((np.arange(2000) + 0.5) / 2000)
        return np.sort(np.concatenate([np.zeros(int(2000 * rest / (1 - rest))), moving]))

    comparison = next(c for c in compare(*align(*scene())) if c.statistic.name == "speed")
    comparison = dataclasses.replace(
        comparison, observed=speeds(resting), generated=(speeds(resting / 2),) * 3
    )
    above = plots.plot_statistic(comparison).axes[0]
    labels = [line.get_label() for line in above.lines]
    top = above.get_ylim()[1]
    highest = stats.gamma(3).pdf(2) * (1 - resting / 2)  # the density is highest at 2
    assert highest < top < 1.5 * highest
    cut = [", 30\u00a0% cut off", ", 60\u00a0% cut off"] if resting else ["", ""]
    assert labels == [f"generated{cut[0]}", f"recorded{cut[1]}"]


@pytest.mark.parametrize(("draws", "limit"), [(100, "0.50"), (1000, "0.67"), (10**6, "0.70")])
def test_the_limit_of_k_hat_is_said_with_the_draws_that_it_is_of(draws, limit):
    """min(1 - 1 / log10 S, 0.7): by hand, as in the section on the guide."""
    scores = xr.Dataset({"k_hat": ("step", [0.1] * 9 + [0.6])})
    scores["evidence_standard_error"] = "step", np.full(10, 0.2)
    scores["k_hat"].attrs["draws"] = draws
    sentence = animacy_plots._reliable(scores).sentence
    assert f"{limit}, the most that {draws} draws allow" in sentence
    assert ("1 of 10 steps" in sentence) == (float(limit) < 0.6)


@pytest.mark.parametrize(
    ("bodies", "animate", "value", "said"),
    [
        (["a", "0"], True, -1.0, "a and body 0 coast as inert bodies do"),
        (["a"], True, -1.0, "a coasts as an inert body would"),
        (["a", "b"], False, 1.0, "a and b are no agents, and a value above 0 does not make them"),
        (["a"], False, 1.0, "a is no agent, and a value above 0 does not make it one"),
    ],
)
def test_what_is_said_of_bodies_agrees_with_their_number(bodies, animate, value, said):
    table = pd.DataFrame({"evidence": value, "evidence_error": 0.1}, index=bodies)
    finding = animacy_plots._agency(table, np.full(len(bodies), animate), "")
    assert finding.grade == "near"
    assert said in finding.sentence


def animacy_table(**columns):
    errors = {f"{name}_error": 0.01 for name in columns}
    return pd.DataFrame(columns | errors, index=["wolf", "sheep"])


def test_slight_evidence_and_slight_interaction_are_not_praised():
    """As found: beads in a spring trap had evidence of 0.02 nats, a prey that ignores 0.02."""
    both = np.ones(2, bool)
    slight = animacy_plots._agency(animacy_table(evidence=[0.5, 0.04]), both, "")
    assert slight.grade == "near"
    assert "that of sheep is above 0, but slight: a force towards a place" in slight.sentence
    assert animacy_plots._agency(animacy_table(evidence=[0.5, 0.4]), both, "").grade == "right"
    [found] = animacy_plots._interplay(animacy_table(interaction=[1.66, 0.04]), "")
    assert found.grade == "near"
    assert "uses the others' past for wolf only" in found.sentence
    [found] = animacy_plots._interplay(animacy_table(interaction=[0.06, 0.04]), "")
    assert "or the model has not learned it" in found.sentence
    [found] = animacy_plots._interplay(animacy_table(interaction=[1.66, 0.4]), "")
    assert found.grade == "right"
