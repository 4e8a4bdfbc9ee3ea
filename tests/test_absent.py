"""Bodies of a set that come and go, against scenes of those alone that are there."""

from itertools import pairwise

import numpy as np
import pandas as pd
import pytest
import torch
from helpers import debug
from matplotlib.figure import Figure
from scipy.stats import multivariate_normal
from torch.distributions import kl_divergence
from variants import recording, scale_of

from pyro_animacy import (
    Batch,
    ControlVAE,
    ControlVAEConfig,
    ControlVAEGuide,
    DataError,
    RunError,
    Scale,
    ScaledELBO,
    Windows,
    fit,
    make_trajectories,
    predict,
    read_trajectories,
    sets,
)
from pyro_animacy.cli import main
from pyro_animacy.criticism.aligned import align
from pyro_animacy.criticism.alike import counted_as, pooled
from pyro_animacy.criticism.animacy import score_animacy
from pyro_animacy.criticism.animacy_table import by_body, save_scores
from pyro_animacy.criticism.calibration import calibrate
from pyro_animacy.criticism.comparison import compare
from pyro_animacy.criticism.contenders import compare_runs
from pyro_animacy.criticism.criticise import criticise
from pyro_animacy.criticism.elpd import elpd, elpd_baselines
from pyro_animacy.criticism.forecasts import rivals
from pyro_animacy.criticism.importance import guide_quality
from pyro_animacy.criticism.latent import latent_use
from pyro_animacy.criticism.style import body_legend
from pyro_animacy.criticism.traversal import traversal_gif, traversals
from pyro_animacy.data.readers import in_places
from pyro_animacy.data.schema import agents, person_of, pieces
from pyro_animacy.data.windows import begun, dequantised, of_those_given
from pyro_animacy.infer.score import (
    DEQUANTISE_HELDOUT,
    DEQUANTISE_TRAIN,
    fit_baselines,
    least_context,
    log_density,
    scoring_windows,
    suitable,
)
from pyro_animacy.infer.steps import draw_steps, follow
from pyro_animacy.infer.summary import summarise
from pyro_animacy.infer.traced import Gradient
from pyro_animacy.models.densities import expected_cost
from pyro_animacy.models.linear_gaussian import LinearAutoregression, Moments
from pyro_animacy.nets import StackConfig
from pyro_animacy.sets import body_types

NET = StackConfig(hidden=9, layers=2)
TYPES = (0, 1, 0, 2)
HISTORY = 3


def model_of(types, known=3, **options):
    """A set in float64, away from zero; its parameters do not depend on the bodies."""
    torch.manual_seed(0)
    config = ControlVAEConfig(
        history=HISTORY, latent_size=4, structure="set", prior=NET, posterior=NET, policy=NET,
        **options,
    )  # fmt: skip
    N = len(types)
    model = ControlVAE(config, scale=scale_of(N), bodies=N, types=types, known_types=known).double()
    guide = ControlVAEGuide(model).double()
    with torch.no_grad():
        for parameter in [*model.parameters(), *guide.parameters()]:
            parameter += 0.3 * torch.randn_like(parameter)
    return model, guide


def coming_and_going(frames=8, size=40, bodies=4, share=0.12):
    """Random walks; each body is absent at some frames, with other numbers in its place."""
    batch = recording(frames, size, bodies=bodies)
    generator = torch.Generator().manual_seed(4)
    there = torch.rand(frames, size, bodies, generator=generator) >= share
    there = there.repeat_interleave(2, -1)
    return Batch(torch.where(there, batch.position, 1e3), there)


def only(batch, bodies):
    """A scene of these bodies alone."""
    columns = [2 * i + axis for i in bodies for axis in range(2)]
    return Batch(batch.position[..., columns], batch.observed[..., columns])


@pytest.mark.parametrize("rest", [False, True])
def test_a_step_is_that_of_a_scene_of_those_who_are_there(rest):
    """Prior, posterior, policy and densities of every step, body by body."""
    model, guide = model_of(TYPES, rest=rest)
    batch = coming_and_going()
    T, B = len(batch.position) - HISTORY, batch.position.shape[1]
    there = batch.observed.unflatten(-1, (-1, 2)).all(-1)
    followed = follow(guide, batch)
    z = torch.randn(T, B, 4 * model.parts, dtype=torch.float64)
    pi = model.policy(followed.evidence.context, followed.memory._replace(latent=z))
    log_pi = draw_steps(guide, batch, 2).log_policy
    patterns = 0
    for t in range(T):
        for b in range(B):
            known = there[t : t + HISTORY, b].all(0)
            assert followed.evidence.seen[t, b].equal(known & there[t + HISTORY, b])
            assert (log_pi[:, t, b, ~(known & there[t + HISTORY, b])] == 0).all()
            if not known.any() or b % 3:  # some are enough
                continue
            bodies = known.nonzero()[:, 0].tolist()
            patterns += len(bodies) < 4
            small, small_guide = model_of([TYPES[i] for i in bodies], rest=rest)
            small.load_state_dict({**small.state_dict(), **of_no_scene(model)})
            small_guide.load_state_dict(guide.state_dict())
            window = only(Batch(*(x[t : t + HISTORY + 1, b : b + 1] for x in batch)), bodies)
            one = follow(small_guide, window)

            own = z[t, b].view(4, -1)[bodies].reshape(1, 1, -1)
            policy = small.policy(one.evidence.context, one.memory._replace(latent=own))
            for k, i in enumerate(bodies):
                pairs = [
                    (followed.prior.mean, one.prior.mean),
                    (followed.posterior.mean, one.posterior.mean),
                    (followed.posterior.stddev, one.posterior.stddev),
                    (pi.mean, policy.mean),
                    (pi.variance, policy.variance),
                ]
                for mine, theirs in pairs:
                    alone = theirs[0, 0].unflatten(-1, (len(bodies), -1))[k]
                    of_body = mine[t, b].unflatten(-1, (4, -1))[i]
                    torch.testing.assert_close(of_body, alone, rtol=1e-11, atol=1e-11)
    assert patterns > 10


def of_no_scene(model):
    """The parameters and numbers that do not depend on how many bodies there are."""
    return {
        name: value
        for name, value in model.state_dict().items()
        if name not in ("view", "low", "high")
    }


def test_nothing_is_said_of_who_is_not_there():
    """Its prior is its posterior, and what stands in its place changes nothing."""
    model, guide = model_of(TYPES)
    batch = coming_and_going()
    followed = follow(guide, batch)
    kl = kl_divergence(followed.posterior.base_dist, followed.prior.base_dist)
    kl = kl.unflatten(-1, (4, -1)).sum(-1)
    assert (kl[~followed.evidence.seen] == 0).all()
    assert (kl[followed.evidence.seen] > 0).all()
    found = []
    for junk in (0.0, -7.0):
        other = Batch(torch.where(batch.observed, batch.position, junk), batch.observed)
        gradient = Gradient(ScaledELBO(), model, guide, traced=False)
        torch.manual_seed(1)
        loss = gradient(other)
        found.append([loss, *(p.grad.clone() for p in gradient.parameters)])
    torch.testing.assert_close(*found, rtol=1e-10, atol=1e-10)


def test_in_closed_loop_a_scene_goes_on_with_those_it_began_with():
    model, guide = model_of(TYPES, roll_out="closed_loop", discount=0.9)
    batch = coming_and_going()
    first = batch.observed[:HISTORY].unflatten(-1, (-1, 2)).all(-1).all(0)
    usable = first.any(-1)
    batch, first = Batch(*(x[:, usable] for x in batch)), first[usable]
    torch.manual_seed(1)
    guide(batch)
    site = guide.get_traces()[0].nodes["reconstruction"]
    each = site["fn"].base_dist.log_prob(site["value"]).unflatten(-1, (4, 2))
    there = batch.observed[HISTORY:].unflatten(-1, (4, 2)).all(-1).cumprod(0).bool()
    seen = (there & first)[..., None].expand(-1, -1, -1, 2)  # not of who was away in between
    assert (each[~seen] == 0).all()
    assert (each[seen] != 0).all()
    losses = []
    for junk in (0.0, 50.0):
        other = Batch(torch.where(batch.observed, batch.position, junk), batch.observed)
        torch.manual_seed(1)
        losses.append(ScaledELBO().differentiable_loss(model, guide, other))
    torch.testing.assert_close(*losses, rtol=1e-10, atol=1e-10)


def scenes(seed=0, clips=8, frames=30, bodies=4, share=0.06):
    """Walks that go on, of which each body is away now and then, and the last now and then alone.

    In no window of seven frames are all there.
    """
    random = np.random.default_rng(seed)
    move = random.normal(size=(clips, frames, bodies, 2))
    for t in range(1, frames):
        move[:, t] = 0.7 * move[:, t - 1] + 0.5 * move[:, t]
    x = move.cumsum(1)
    away = random.random((clips, frames, bodies)) < share
    away[:, 5::7, 0] = True
    x[away] = np.nan
    return make_trajectories(
        x, fps=10, body=["a_1", "b_1", "a_2", "ball"], units="m", resolution=0.01, source="walks"
    )


def complete_in(x, start, frames):
    return np.isfinite(x[start : start + frames]).all((0, 2))


@pytest.mark.parametrize("complete", [False, True])
def test_windows_are_of_whoever_is_there(complete):
    data = scenes()
    scale, frames, context = Scale.of(data), 6, 4
    windows = Windows(data, frames=frames, context=context, scale=scale, complete=complete, parts=4)
    assert windows.partial
    expected = []
    for i, x in enumerate(data["position"].to_numpy()):
        for start in range(len(x) - frames + 1):
            whole = complete_in(x, start, frames)
            begun_with = complete_in(x, start, context) & np.isfinite(x[start + context]).any(-1)
            if (whole if complete else begun_with).any():
                expected.append((i, start))
    assert windows.index.tolist() == [list(place) for place in expected]
    which = torch.arange(len(windows))
    for batch in (windows.batch(which), windows.batch(which, torch.Generator().manual_seed(0))):
        for b, (i, start) in enumerate(expected):
            x = data["position"].to_numpy()[i]
            shown = np.isfinite(x[start : start + frames])
            if complete:  # nothing is asked of the others, who are heard
                shown[context:] &= complete_in(x, start, frames)[:, None]
            np.testing.assert_array_equal(batch.observed[:, b], shown.reshape(frames, -1))


def test_where_all_are_there_nothing_changes():
    data = scenes(share=0.0).isel(body=[1, 2, 3])
    scale = Scale.of(data)
    one, other = (
        Windows(data, frames=6, context=4, scale=scale, complete=True, parts=n) for n in (1, 3)
    )
    assert not other.partial
    assert one.index.equal(other.index)


def test_baselines_are_of_each_body_by_itself_and_pooled_over_those_alike():
    """Against least squares of one body after the other, and scipy's density of each."""
    data, types = scenes(), (0, 1, 0, 2)
    scale = Scale.of(data)
    fits = fit_baselines(data, scale, HISTORY, types)
    kinds = "constant_velocity", *(f"ar{k}" for k in range(1, 6))
    assert set(fits) == {f"{kind}_each" for kind in kinds}
    windows = scoring_windows(dequantised(data, DEQUANTISE_TRAIN), scale, HISTORY, 4)
    batch = windows.batch(torch.arange(len(windows)))
    assert not batch.observed.all(-1).all(0).any()  # of no window are all there
    x = batch.position.double().numpy().reshape(len(batch.position), -1, 4, 2)
    seen = batch.observed.numpy().reshape(x.shape).all((0, 3))
    a = np.diff(x, axis=0)
    for k in (1, 3):
        model, expected = fits[f"ar{k}_each"], np.zeros(len(windows))
        for kind in range(3):
            bodies = [i for i, of in enumerate(types) if of == kind]
            rows = [(b, i) for i in bodies for b in np.flatnonzero(seen[:, i])]
            past = a[-2 : -k - 2 : -1]  # newest first
            X = np.array([[1, *past[:, b, i].ravel()] for b, i in rows])
            y = np.array([a[-1, b, i] for b, i in rows])
            A = np.linalg.lstsq(X, y, rcond=None)[0]
            error = y - X @ A
            density = multivariate_normal(np.zeros(2), error.T @ error / len(y)).logpdf(error)
            np.add.at(expected, [b for b, _ in rows], density)
        np.testing.assert_allclose(model(batch), expected, rtol=1e-6, atol=1e-6)


def test_the_joint_baseline_of_bodies_apart_is_that_of_each():
    """With blocks it is the special case of a joint autoregression, also where it moves on."""
    data = scenes(share=0.0).isel(body=[1, 2])
    scale = Scale.of(data)
    windows = scoring_windows(data, scale, HISTORY)
    alone = Moments.of(2, windows, [], [[0], [1]])
    each = LinearAutoregression.each([LinearAutoregression.fit(2, m) for m in alone], (0, 1))
    batch = windows.batch(torch.arange(9))
    parts = []
    for i in range(2):
        mine = LinearAutoregression.fit(2, Moments.of(2, windows, [], [[i]])[0])
        parts.append(mine(only(batch, [i])))
    torch.testing.assert_close(each(batch), sum(parts))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    config = debug({"structure": "set", "history": 2}, score_draws=1024)
    out = tmp_path_factory.mktemp("absent") / "run"
    return fit(scenes(clips=10), config, out=out, progress=False)


def test_a_score_adds_up_those_who_are_there(run):
    heldout = run.heldout(scenes(clips=10))
    history, scale = run.model.config.history, run.card.scale
    noisy = dequantised(heldout, DEQUANTISE_HELDOUT)
    windows = scoring_windows(noisy, scale, history, 4)
    batch = windows.batch(torch.arange(len(windows)))
    x = noisy["position"].to_numpy()
    frames = least_context(history) + 1
    present = [complete_in(x[i], start, frames) for i, start in windows.index.tolist()]
    assert run.summary["score_steps"] == len(present)
    last = Batch(*(part[-history - 1 :] for part in batch))
    torch.manual_seed(0)
    bound, _ = log_density(run.guide, last, 4096)
    per_step = bound[0].double().numpy() - scale.log_jacobian(2 * np.sum(present, 1))
    assert run.summary["heldout_nats_per_step"] == pytest.approx(per_step.mean(), abs=0.05)
    for name, baseline in run.baselines().items():
        density = baseline(batch).numpy() - scale.log_jacobian(2 * np.sum(present, 1))
        assert run.summary["baselines"][name] == pytest.approx(density.mean(), abs=1e-4)
    elpds = {"model": elpd(run, heldout, context=None, draws=4096, progress=False)}
    elpds |= elpd_baselines(run, heldout)
    for found in elpds.values():
        assert int(found.elpd_i["steps"].sum()) >= len(present)


@pytest.mark.parametrize("mode", ["forecast", "generate", "reconstruct"])
def test_draws_are_of_those_who_are_there(run, mode):
    data = begun(run.heldout(scenes(clips=10)), 2, parts=4)
    draws = predict(run, data, mode=mode, draws=3, horizon=5, progress=False)
    group = "predictions" if mode == "forecast" else "posterior_predictive"
    x = draws[group]["position"].isel(chain=0).to_numpy()
    recorded = data["position"].to_numpy()
    for i, one in enumerate(recorded):
        if mode == "reconstruct":
            for t in range(2, x.shape[2]):
                np.testing.assert_array_equal(
                    np.isfinite(x[:, i, t]).all((0, 2)), complete_in(one, t - 2, 2)
                )
        else:
            there = complete_in(one, 0, 2)
            np.testing.assert_array_equal(np.isfinite(x[:, i, 2:]).all((0, 1, 3)), there)
            assert np.isnan(x[:, i, 2:, ~there]).all()


def test_every_instrument_serves_bodies_that_come_and_go(run):
    """Numbers are given of those who are there, and of nobody else."""
    heldout = run.heldout(scenes(clips=10))
    options = {"seed": 0, "progress": False}
    found = calibrate(run, heldout, draws=40, horizon=4, **options)
    known = np.isfinite(found["pit"]).all("space")
    assert (known == known.isel(model=0)).all()
    assert 0 < known.mean() < 1
    assert (np.isfinite(found["pit_drawn"]).all(["draw", "space"]) == known.isel(model=0)).all()
    assert np.isfinite(found["crps"]).any("trajectory").isel(body=slice(1, None)).all()
    quality = guide_quality(run, heldout, draws=32, **options)
    assert np.isfinite(quality["kl"]).all()
    assert 0 < np.isnan(quality["vsbc"]).mean() < 1
    use = latent_use(run, heldout, draws=2, **options)
    seen = np.isfinite(use["kl"]).to_numpy()
    each = seen.reshape(*seen.shape[:2], 4, -1)
    assert (each.all(-1) == each.any(-1)).all()
    x = heldout["position"].to_numpy()
    there = np.isfinite(x).all(-1)
    steps = there[:, :-2] & there[:, 1:-1] & there[:, 2:]
    np.testing.assert_array_equal(each[:, 1:-1].any(-1), steps)
    for traversal in traversals(run, heldout, use.assign(activity=use["activity"] * 0 + 1)):
        gone = ~np.isfinite(traversal.past[-2:]).all((0, 2))
        assert np.isnan(traversal.paths[:, :, gone]).all()
        assert np.isfinite(traversal.paths[:, :, ~gone]).all()
        assert (traversal.reach[gone] == 0).all()
        assert traversal_gif(traversal)[:3] == b"GIF"
    scores = score_animacy(run, heldout, draws=32, surrogates=4, **options)
    assert (np.isfinite(scores["choice"].to_numpy()[:, 1:-1]) == steps).all()


def test_who_is_not_given_is_not_asked_after():
    data = scenes()
    kept = of_those_given(data, slice(2, 5), 4)["position"].to_numpy()
    x = data["position"].to_numpy()
    for one, other in zip(x, kept, strict=True):
        there = complete_in(one, 2, 3)
        assert np.isnan(other[:, ~there]).all()
        for i in np.flatnonzero(there):
            away = np.isnan(one[5:, i]).any(-1)
            until = 5 + int(away.argmax()) if away.any() else len(one)
            np.testing.assert_array_equal(one[:until, i], other[:until, i])
            assert np.isnan(other[until:, i]).all()  # who is there later may be another
    assert of_those_given(data, slice(2, 5), 1) is data


# ------------------------------------------------------------------------------------- reading


def passers_by(seed=0, frames=200):
    """Pedestrians who come and go, (frame, id, x, y); frames go in steps of 10."""
    random = np.random.default_rng(seed)
    rows, walking, number = [], {}, 0
    for t in range(frames):
        if random.random() < 0.3:
            number += 1
            walking[number] = random.normal(size=2), random.normal(size=2), random.integers(3, 30)
        for who, (x, v, left) in list(walking.items()):
            rows.append((10 * t, who, *(x + v * 0.1).round(3)))
            walking[who] = x + v * 0.1, v + 0.05 * random.normal(size=2), left - 1
            if left == 1:
                del walking[who]
    return pd.DataFrame(rows, columns=["frame", "id", "x", "y"])


@pytest.mark.parametrize("downsample", [1, 3])
def test_whoever_is_present_takes_a_place(downsample):
    """All positions are there at their frames, and a place is empty between two bodies."""
    table = passers_by()
    data = read_trajectories(table, bodies="present", fps=2.5, downsample=downsample)
    x = data["position"].to_numpy()[0]
    of = np.full(x.shape[:2], 0)
    frames = (table["frame"] - table["frame"].min()) // 10
    kept = table.assign(frame=frames)[frames % downsample == 0]
    for frame, who, *place in kept.itertuples(index=False):
        t = frame // downsample
        (body,) = np.flatnonzero((x[t] == place).all(-1))
        of[t, body] = who
    assert np.isfinite(x).all(-1).sum() == len(kept)
    persons = person_of(data)[0]
    np.testing.assert_array_equal(persons[of > 0], of[of > 0].astype(str))
    for owners in of.T:
        for one, two in pairwise(owners):
            assert one == two or 0 in (one, two)
    most = table.groupby("frame").size().max()
    assert most <= x.shape[1] <= most + 4  # places are taken again
    assert data["body"].to_numpy().tolist() == [f"body_place_{i + 1}" for i in range(x.shape[1])]
    assert data.sizes["trajectory"] == 1


def test_places_are_of_a_kind_and_of_all_recordings(tmp_path):
    """Of two files with other numbers of bodies, those who are not there are not observed."""
    one = passers_by(1)
    two = passers_by(2).query("id < 9")
    one["id"] = ["ped_" + str(i) if i % 3 else "bike" + str(i) for i in one["id"]]
    two["id"] = "ped_" + two["id"].astype(str)
    for name, table in (("one", one), ("two", two)):
        table.to_csv(tmp_path / f"{name}.csv", index=False)
    data = read_trajectories(tmp_path, bodies="present", fps=2.5)
    names = data["body"].to_numpy().tolist()
    bikes = [name for name in names if name.startswith("bike")]
    assert names == [
        *(f"bike_place_{i + 1}" for i in range(len(bikes))),
        *(f"ped_place_{i + 1}" for i in range(len(names) - len(bikes))),
    ]
    second = data.sel(trajectory="two")["position"].to_numpy()
    assert np.isnan(second[:, : len(bikes)]).all()
    assert np.isfinite(data["position"].to_numpy()).all(-1).sum() == len(one) + len(two)
    cut = pieces(data, np.array([1, 0]), np.array([20, 30]), np.array([60, 90]))
    shown = zip((two, one), (20, 30), person_of(cut), cut["position"].to_numpy(), strict=True)
    for table, begin, persons, x in shown:
        number = (table["frame"] - table["frame"].min()) // 10 - begin
        for t, body in zip(*np.nonzero(np.isfinite(x).all(-1)), strict=True):
            (who,) = table["id"][(number == t) & (table["x"] == x[t, body, 0])]
            assert who == persons[t, body]


def test_pedestrians_are_fitted_from_a_file(tmp_path):
    path = tmp_path / "crossing.txt"
    passers_by(frames=400).to_csv(path, sep="\t", header=False, index=False)
    data = read_trajectories(path, bodies="present", fps=2.5)
    run = fit(data, debug({"history": 2}), out=tmp_path / "run", progress=False)
    assert run.card.config["structure"] == "set"
    assert np.isfinite(run.summary["heldout_nats_per_step"])
    assert all(name.endswith("_each") for name in run.summary["baselines"])


def test_a_model_of_the_whole_scene_needs_all_of_them(tmp_path):
    data = read_trajectories(passers_by(), bodies="present", fps=2.5)
    with pytest.raises(DataError, match=r"needs all \d+ bodies at once.*--model.structure set"):
        fit(data, debug({"structure": "joint"}), out=tmp_path / "run", progress=False)


def test_runs_are_compared_on_those_who_are_there(run, tmp_path):
    data = scenes(clips=10)
    config = debug({"structure": "set", "history": 3}, score_draws=8)
    other = fit(data, config, out=tmp_path / "other", progress=False)
    found = compare_runs([run, other], run.heldout(data), draws=32, progress=False)
    assert len(found.runs) == 2
    assert {*found.runs} < {*found.table.index}
    assert found.windows > 0
    assert np.isfinite(found.forecasts["ADE"]).all()


def test_what_is_heard_of_others_is_that_of_other_scenes():
    """All bodies at once, each in a scene of its own, as each alone among the others of that."""
    model, _guide = model_of(TYPES)
    batch, elsewhere = coming_and_going(), coming_and_going(share=0.2)
    others = [Batch(*(x.roll(i + 1, 1) for x in elsewhere)) for i in range(4)]
    heard = Batch(*(torch.stack(of, 2) for of in zip(*others, strict=True)))
    context = model.evidence(batch, heard=heard).context
    with torch.no_grad(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(sets, "AT_ONCE", 50)  # in several parts
        torch.testing.assert_close(model.evidence(batch, heard=heard).context, context)
    each = context.unflatten(-1, (4, -1))
    for i, other in enumerate(others):
        mine = torch.zeros(8, dtype=torch.bool)
        mine[2 * i : 2 * i + 2] = True
        mixed = Batch(*(own.where(mine, x) for own, x in zip(batch, other, strict=True)))
        alone = model.evidence(mixed).context.unflatten(-1, (4, -1))[..., i, :]
        torch.testing.assert_close(each[..., i, :], alone, rtol=1e-12, atol=1e-12)


def test_joint_baselines_are_not_asked_about_those_who_come_and_go(tmp_path):
    """A run whose own recordings have all, on others in which some are away, and the reverse."""
    whole, some = (
        scenes(share=0.0, clips=10).isel(body=[1, 2, 3]),
        scenes(seed=1).isel(body=[1, 2, 3]),
    )
    for name, own, other in (("whole", whole, some), ("some", some, whole)):
        config = debug({"structure": "set", "history": 2}, score_draws=8)
        run = fit(own, config, out=tmp_path / name, progress=False)
        joint = {"ar1", "ar2", "ar3", "ar4", "ar5", "constant_velocity"}
        each = {f"{kind}_each" for kind in joint}
        assert set(run.summary["baselines"]) == (each | joint if own is whole else each)
        found = summarise(run, other, progress=False)
        assert set(found["baselines"]) == each
        assert all(kind in each for kind in rivals(run, other))
        calibrate(run, other, draws=40, horizon=3, progress=False)


def test_a_run_of_a_joint_baseline_alone_says_so():
    with pytest.raises(RunError, match="of all its bodies together"):
        suitable({"ar1": None}, partial=True)
    assert suitable({"ar1": None}, partial=False) == {"ar1": None}


def test_who_is_heard_does_not_depend_on_what_is_scored():
    """Not on who stays to the next frame, nor on how far the baselines look back."""
    data, (_, guide) = scenes(), model_of(TYPES)
    model, scale = guide.model, Scale.of(data)
    windows = scoring_windows(data, scale, HISTORY, 4)
    which = torch.arange(len(windows))
    row, start = windows.places(which)
    whole = windows.stretches(row, start, windows.frames)
    whole = Batch(whole.nan_to_num(0.0).double(), ~whole.isnan())
    shown = windows.batch(which).to(torch.device("cpu"), torch.float64)
    one, other = (Batch(*(x[-HISTORY - 1 :] for x in of)) for of in (shown, whole))
    torch.testing.assert_close(model.evidence(one).context, model.evidence(other).context)
    assert model.recorded(one).seen.sum() < model.recorded(other).seen.sum()


def test_the_cost_of_an_action_is_of_those_who_are_there():
    model, guide = model_of((0, 0, 0), action_cost=0.7, action_cost_absolute=0.3)
    batch = recording(8, 5, bodies=3)
    batch.observed[..., 2:] = False
    guide(batch)
    nodes = guide.get_traces()[0].nodes
    evidence, z = model.evidence(batch), nodes["latent"]["value"]
    pi = model.policy(evidence.context, model.start((5,))._replace(latent=z))
    expected = expected_cost(pi.mean[..., :2], pi.stddev[..., :2], 0.7, 0.3)
    torch.testing.assert_close(-nodes["action_cost"]["fn"].log_factor, expected)


def test_a_kind_that_is_not_there_in_training_is_taken_for_any(tmp_path):
    """Its baselines are those of all bodies together."""
    x = scenes(share=0.0, clips=10)["position"].to_numpy().copy()
    x[:8, :, 3] = np.nan
    names = ["a_1", "a_2", "a_3", "bike_1"]
    data = make_trajectories(x, fps=10, body=names, resolution=0.01)
    scale = Scale.of(data.isel(trajectory=slice(8)), 4)
    fits = fit_baselines(data.isel(trajectory=slice(8)), scale, HISTORY, (0, 0, 0, 1))
    for one in fits.values():
        blocks = one.covariance.view(4, 2, 4, 2)
        torch.testing.assert_close(blocks[3, :, 3], blocks[0, :, 0])


@pytest.mark.parametrize(
    "names",
    [
        [str(-i) for i in range(1, 26)],
        [str(i + 0.5) for i in range(25)],
        [f"s{i}_7" for i in range(25)],
        [f"{7919 * i:x}q" for i in range(1, 26)],
    ],
    ids=["negative", "half", "inner", "hexadecimal"],
)
def test_ids_of_any_sort_make_few_places(names):
    table = passers_by(frames=80)
    table = table[table["id"] <= 25].assign(id=lambda t: [names[i - 1] for i in t["id"]])
    data = read_trajectories(table, bodies="present", fps=2.5)
    assert data.sizes["body"] <= table.groupby("frame").size().max() + 4
    assert data["body"].to_numpy()[0] == "body_place_1"


def test_another_number_of_places_is_drawn(run, tmp_path):
    """From the command line, of recordings in which more, or fewer, are there at a time."""
    path = tmp_path / "run"
    data = read_trajectories(passers_by(), bodies="present", fps=2.5)
    fit(data, debug({"history": 2}), out=path, progress=False, data={"bodies": "present"})
    for seed, frames in ((3, 60), (4, 300)):
        file = tmp_path / f"{seed}.csv"
        passers_by(seed, frames).to_csv(file, index=False)
        out = tmp_path / f"{seed}.nc"
        options = ["--bodies", "present", "--fps", "2.5", "--draws", "2", "--out", str(out)]
        assert main(["sample", str(path), str(file), *options]) == 0
        assert out.is_file()


@pytest.fixture(scope="module")
def passing(tmp_path_factory):
    """A run of places, and what it held out."""
    data = read_trajectories(passers_by(frames=400), bodies="present", fps=2.5)
    out = tmp_path_factory.mktemp("passing") / "run"
    run = fit(data, debug({"history": 2}), out=out, progress=False)
    return run, run.heldout(data)


def test_what_is_said_of_places_is_said_of_all_of_a_kind(passing, tmp_path):
    run, heldout = passing
    assert set(counted_as(heldout)) == {"body"}
    found = calibrate(run, heldout, draws=40, horizon=3, progress=False)
    whole = pooled(found, counted_as(heldout))
    assert whole["body"].to_numpy().tolist() == ["body"]
    for name in ("pit", "pit_drawn"):
        one, all_of_it = whole[name].to_numpy(), found[name].to_numpy()
        np.testing.assert_array_equal(
            np.sort(one[np.isfinite(one)]), np.sort(all_of_it[np.isfinite(all_of_it)])
        )
    np.testing.assert_array_equal(whole["energy_score"], found["energy_score"])
    np.testing.assert_allclose(whole["crps"].isel(body=0), found["crps"].mean("body"))
    assert int(whole["independent"][0]) == int(found["independent"].sum())
    assert pooled(found, [*map(str, found["body"].values)]) is found
    two = pooled(found, ["bike", *["ped"] * (found.sizes["body"] - 1)])
    assert two["body"].to_numpy().tolist() == ["bike", "ped"]
    for i, part in enumerate((slice(0, 1), slice(1, None))):
        values = two["pit"].isel(body=i).to_numpy()
        expected = found["pit"].isel(body=part).to_numpy()
        assert np.isfinite(values).sum() == np.isfinite(expected).sum()
    scores = score_animacy(run, heldout, draws=32, surrogates=4, progress=False)
    rows = save_scores(scores, tmp_path / "scores.csv")
    written = pd.read_csv(tmp_path / "scores.csv")
    assert len(written) == rows
    assert written["person"].notna().all()
    assert written["person"].nunique() > heldout.sizes["body"]
    save_scores(scores, tmp_path / "scores.nc")
    table = by_body(scores)
    assert table.index.tolist() == ["body"]
    assert table["choice"].item() == pytest.approx(float(scores["choice"].mean()))


def test_a_report_of_places_is_of_their_kinds(passing, tmp_path):
    run, heldout = passing
    path = criticise(run, heldout, out=tmp_path / "report.html", draws=20, progress=False)
    page = path.read_text()
    assert "Traceback" not in page
    observed = of_those_given(heldout, slice(2), run.card.parts)
    made = predict(run, observed, mode="generate", draws=3, progress=False)
    comparisons = compare(*align(observed, made), progress=False)
    kinds = {one.body for one in comparisons}
    assert kinds <= {"body", "body – body", "body → body"}
    speed = next(one for one in comparisons if one.statistic.name == "speed")
    x = observed["position"].to_numpy()
    expected = np.linalg.norm(np.diff(x, axis=1), axis=-1) * 2.5
    expected = expected[np.isfinite(expected)]
    assert len(speed.observed) == len(expected)
    assert speed.observed_mean == pytest.approx(expected.mean())


def test_baselines_serve_another_number_of_bodies(passing):
    """Each body's are the same ones; a scene's density is the sum, however many places it has."""
    run, heldout = passing
    wider = in_places(heldout, [f"body_place_{i + 1}" for i in range(heldout.sizes["body"] + 3)])
    other = run.on(wider)
    assert other is not run
    scale = run.card.scale
    one, two = (
        scoring_windows(of, scale, 2, of.sizes["body"]).batch(torch.arange(20))
        for of in (heldout, wider)
    )
    for name, baseline in run.baselines().items():
        torch.testing.assert_close(baseline(one), other.baselines()[name](two))
    found = summarise(other, wider, progress=False)
    mine = summarise(run, heldout, progress=False)
    assert found["baselines"] == pytest.approx(mine["baselines"], rel=0.02)  # of other noise
    assert found["score_bodies"] == pytest.approx(mine["score_bodies"])
    x = heldout["position"].to_numpy()[0]
    there = [complete_in(x, t, 7).sum() for t in range(len(x) - 6)]
    assert mine["score_bodies"] == pytest.approx(np.mean([n for n in there if n]))


def test_a_run_is_criticised_and_compared_on_another_day(passing, tmp_path, capsys):
    """With another number of people there at a time, more and fewer."""
    run, _ = passing
    for seed, frames in ((7, 60), (8, 500)):
        file = tmp_path / f"{seed}.csv"
        passers_by(seed, frames).to_csv(file, index=False)
        options = [str(file), "--bodies", "present", "--fps", "2.5"]
        out = str(tmp_path / f"{seed}.html")
        words = ["criticise", str(run.path), *options, "--sections", "calibration", "--draws", "20"]
        assert main([*words, "--out", out]) == 0
        words = ["compare", str(run.path), "--draws", "32", "--recordings", *options]
        assert main(words) == 0
        said = capsys.readouterr()
        assert "each body" in said.out


def test_what_happened_is_of_those_who_were_given(passing):
    """Who takes a place later is another, and nothing that was forecast."""
    run, heldout = passing
    draws = predict(run, heldout, mode="forecast", draws=2, horizon=40, progress=False)
    shown = draws["observed_data"]["position"].to_numpy()[0]
    x = heldout["position"].to_numpy()[0, : len(shown)]
    given = complete_in(x, 0, 2)
    there = np.isfinite(x).all(-1)
    followed = given & np.vstack([there[:2] | True, np.logical_and.accumulate(there[2:], axis=0)])
    np.testing.assert_array_equal(np.isfinite(shown).all(-1), followed & there)
    assert (there & ~followed).any()


def test_a_body_whose_place_nobody_takes_keeps_its_name():
    table = passers_by(frames=60)
    table["id"] = ["ball" if i == 1 else f"ped_{i}" for i in table["id"]]
    data = read_trajectories(table, bodies="present", fps=2.5)
    names = data["body"].to_numpy().tolist()
    assert names[0] == "ball"
    assert all(name.startswith("ped_place_") for name in names[1:])
    assert agents(data).tolist() == [False] + [True] * (len(names) - 1)
    assert body_types(["ped_place_3", "ped_7"]) == (0, 0)


def test_a_legend_does_not_name_places():
    figure = Figure()
    body_legend(figure, [f"body_place_{i + 1}" for i in range(9)])
    (legend,) = figure.legends
    assert legend.get_title().get_text() == "9 places"
    assert not legend.get_texts()
    body_legend(figure, ["ball", *(f"body_place_{i + 1}" for i in range(3))])
    assert [text.get_text() for text in figure.legends[1].get_texts()] == ["ball"]
    assert figure.legends[1].get_title().get_text() == "and 3 more"
