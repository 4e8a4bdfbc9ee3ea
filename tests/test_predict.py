"""Draws against closed forms, and the labels they carry."""

import copy
import dataclasses
import sys

import arviz_stats
import numpy as np
import pytest
import torch
import xarray as xr
from helpers import chase, recordings

import pyro_animacy.infer.predict  # noqa: F401  the module, which the function's name hides
from pyro_animacy.data.schema import make_trajectories, pieces
from pyro_animacy.data.stored import Stored
from pyro_animacy.data.windows import Scale, whole
from pyro_animacy.errors import ConfigError, DataError, RunError
from pyro_animacy.infer.checkpoint import ModelCard
from pyro_animacy.infer.draws import save_draws
from pyro_animacy.infer.predict import predict
from pyro_animacy.infer.run import Run, build
from pyro_animacy.infer.steps import draw_steps
from pyro_animacy.models.control_vae import ControlVAEConfig
from pyro_animacy.nets import StackConfig

predict_module = sys.modules["pyro_animacy.infer.predict"]
MODES = ["reconstruct", "forecast", "generate"]
GROUP = {
    "reconstruct": "posterior_predictive",
    "forecast": "predictions",
    "generate": "posterior_predictive",
}
DIMS = ("chain", "draw", "trajectory", "time", "body", "space")


def draw(run, data, **options):
    return predict(run, data, progress=False, **options)


def ragged():
    """Three trajectories of 12, 9 and 12 frames, one of them with a frame that was not seen."""
    x = chase(12, 3, seed=5)
    x[1, 9:] = np.nan
    x[2, 1] = np.nan
    return make_trajectories(x, fps=10, body=["hunter", "prey"], units="m")


# --- labels --------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
def test_shapes_dims_and_groups(tiny_run, mode):
    """The third trajectory's second frame is missing: only a longer context can begin after it."""
    data = ragged()
    context = 4 if mode == "forecast" else 2
    tree = draw(tiny_run, data, mode=mode, draws=5, context=4)
    kept = [0, 1, 2] if mode == "forecast" else [0, 1]
    groups = {GROUP[mode], "observed_data", "constant_data"}
    of_reconstruction = {"posterior", "log_likelihood"} if mode == "reconstruct" else set()
    assert set(tree.children) == groups | of_reconstruction
    position = tree[GROUP[mode]]["position"]
    assert position.dims == DIMS
    assert position.shape == (1, 5, len(kept), 12, 2, 2)
    assert list(position["body"].values) == ["hunter", "prey"]
    assert list(position["space"].values) == ["x", "y"]
    assert list(position["trajectory"].values) == list(data["trajectory"].values[kept])
    np.testing.assert_allclose(position["time"], np.arange(12) / 10)
    assert position.attrs["units"] == "m"
    assert tree.attrs["mode"] == mode
    assert tree.attrs["context"] == context
    assert tree.attrs["fps"] == 10
    # The frames that were given are those of the recording, seen or not.
    recorded = data["position"].values[kept]
    given = np.broadcast_to(recorded[:, :context], (5, *recorded[:, :context].shape))
    np.testing.assert_allclose(position.values[0, :, :, :context], given, atol=1e-5)
    assert np.isfinite(position.values[0, :, :2, context:]).all() or mode == "reconstruct"
    observed = tree["observed_data"]["position"]
    assert observed.dims == DIMS[2:]
    np.testing.assert_array_equal(observed.values, recorded)  # NaN beyond the end
    np.testing.assert_array_equal(tree["constant_data"]["length"], [12, 9, 12][: len(kept)])
    if mode == "reconstruct":
        latent = tree["posterior"]["latent"]
        assert latent.dims == ("chain", "draw", "trajectory", "time", "latent_dim")
        assert latent.shape == (1, 5, 2, 10, 4)
        # z_t has the time of s_t, the state in which it is chosen.
        np.testing.assert_allclose(latent["time"], np.arange(1, 11) / 10)


@pytest.mark.parametrize(("mode", "horizon", "frames"), [
    ("forecast", 3, 8), ("forecast", 30, 35), ("generate", 3, 5), ("generate", 30, 32),
    ("reconstruct", 3, 5), ("reconstruct", 30, 12),
])  # fmt: skip
def test_horizon(tiny_run, mode, horizon, frames):
    """Free motion may go on beyond the recording; a reconstruction ends with it."""
    tree = draw(tiny_run, ragged(), mode=mode, draws=2, context=5, horizon=horizon)
    position = tree[GROUP[mode]]["position"]
    assert position.sizes["time"] == frames
    assert tree["observed_data"].sizes["time"] == frames
    np.testing.assert_allclose(position["time"], np.arange(frames) / 10)
    if frames > 12:
        assert np.isfinite(position.isel(time=-1)).all()
        assert np.isnan(tree["observed_data"]["position"].isel(time=slice(12, None))).all()


def test_sliding_forecasts_are_those_of_the_windows_cut_by_hand(tiny_run):
    data, K, H, stride = ragged(), 4, 3, 2
    asked = {"mode": "forecast", "draws": 3, "context": K, "horizon": H}
    tree = draw(tiny_run, data, stride=stride, **asked)
    found, seen = tree["predictions"]["position"], tree["observed_data"]["position"]
    x, length = data["position"].values, data["length"].values
    windows = [
        (i, f) for i, n in enumerate(length) for f in range(0, n - K - H + 1, stride)
        if np.isfinite(x[i, f + K - 2 : f + K]).all()  # its history
    ]  # fmt: skip
    assert len(windows) > 4
    np.testing.assert_array_equal(seen, [x[i, f : f + K + H] for i, f in windows])
    about = tree["constant_data"]
    assert about["start"].values.tolist() == [f for _, f in windows]
    assert about["recording"].values.tolist() == [data["recording"].values[i] for i, _ in windows]
    rows, begin = np.transpose(windows)
    by_hand = draw(tiny_run, pieces(data, rows, begin, begin + K + H), **asked)
    np.testing.assert_array_equal(found, by_hand["predictions"]["position"])


@pytest.mark.parametrize("mode", MODES)
def test_seed(tiny_run, mode):
    def positions(seed):
        tree = draw(tiny_run, ragged(), mode=mode, draws=4, seed=seed)
        return tree[GROUP[mode]]["position"].values

    torch.manual_seed(5)
    state = torch.get_rng_state()
    first = positions(1)
    torch.manual_seed(6)  # draws depend on their own seed alone,
    again, other = positions(1), positions(2)
    np.testing.assert_array_equal(first, again)
    free = slice(2, 9)
    # A few agree where they stand at a wall.
    assert (first[0, :, :, free] != other[0, :, :, free]).mean() > 0.9
    assert (first[0, 0, :, free] != first[0, 1, :, free]).mean() > 0.9
    torch.manual_seed(5)
    positions(1)
    assert torch.equal(torch.get_rng_state(), state)  # and leave torch's where it was


@pytest.mark.parametrize("mode", MODES)
def test_netcdf_round_trip(tiny_run, tmp_path, mode):
    tree = draw(tiny_run, recordings(frames=12, recordings=3), mode=mode, draws=3)
    save_draws(tree, str(tmp_path / "draws.nc"))
    with xr.open_datatree(tmp_path / "draws.nc", engine="h5netcdf") as back:
        assert back.attrs == tree.attrs
        assert set(back.children) == set(tree.children)
        for name, group in tree.children.items():
            xr.testing.assert_equal(back[name].to_dataset(), group.to_dataset())
            assert back[name].attrs == group.attrs
            for variable in group.data_vars:
                assert back[name][variable].dims == group[variable].dims
                if group[variable].dtype.kind == "f":
                    assert back[name][variable].dtype == group[variable].dtype
                assert back[name][variable].attrs == group[variable].attrs


def test_draws_that_cannot_be_written(tiny_run, tmp_path):
    tree = draw(tiny_run, ragged(), draws=1)
    (tmp_path / "file").touch()
    with pytest.raises(RunError, match="cannot be written"):
        save_draws(tree, str(tmp_path / "file" / "draws.nc"))
    save_draws(tree, str(tmp_path / "new" / "draws.nc"))  # a folder is made
    assert (tmp_path / "new" / "draws.nc").is_file()


# --- closed forms --------------------------------------------------------------------------------


class Linear:
    """A ControlVAE whose laws are linear and Gaussian, with the numbers that say so.

        a_t = R c_t + b + W z_t + sigma e_t,        z_t ~ N(m, sigma_p^2 I),
        q(z_t) = N(m + r, (h sigma_p)^2 I)

    A network with relu units is linear where they come in pairs: relu(u) - relu(-u) = u.
    """

    history, D, Z = 2, 4, 3

    def __init__(
        self, roll_out="teacher_forced", sigma=0.4, sigma_p=0.5, arena="open", likelihood="policy"
    ):
        rng = np.random.default_rng(0)
        D, Z = self.D, self.Z
        self.sigma, self.sigma_p, self.h = sigma, sigma_p, 0.6
        self.R = rng.normal(size=(D, D + 2 + D)) * 0.3
        self.b, self.W = rng.normal(size=D) * 0.2, rng.normal(size=(D, Z))
        self.m, self.r = rng.normal(size=Z), rng.normal(size=Z)
        self.scale = Scale(
            center=(40.0, -7.0), unit=2.5, extent=6.0, separation=3.0, resolution=0.0,
            low=(-4.0, -4.0, -4.0, -4.0), high=(4.0, 4.0, 4.0, 4.0),
        )  # fmt: skip
        net = StackConfig(hidden=2 * Z, layers=1, activation="relu")
        config = ControlVAEConfig(
            history=2, latent_size=Z, latent_scale=sigma_p, roll_out=roll_out, arena=arena,
            policy_scale=sigma, likelihood=likelihood, prior=net, posterior=net, policy=net,
        )  # fmt: skip
        card = ModelCard(
            "control_vae", dataclasses.asdict(config), self.scale, ("0", "1"), ("x", "y"), 10.0, "m"
        )
        model, guide = build(card)
        with torch.no_grad():
            for module in (model, guide):
                for parameter in module.parameters():
                    parameter.zero_()
            policy = model.step.policy
            eye = torch.eye(Z)
            first, last = policy.network.layers
            first.weight[:, :Z] = torch.cat([eye, -eye])  # the input is (z, c)
            last.weight[:] = torch.tensor(np.hstack([self.W, -self.W]))
            policy.affine.weight[:] = torch.tensor(self.R)
            policy.affine.bias[:] = torch.tensor(self.b)
            model.step.prior.network.layers[-1].bias[:] = torch.tensor(self.m)
            shift = np.concatenate([self.r, np.full(Z, np.log(self.h))])
            guide.residual.network.layers[-1].bias[:] = torch.tensor(shift)
        settings = {"train": {"importance_samples": 1}}
        self.run = Run(None, model, guide, card, settings, {})

    def to_model(self, x):
        """(..., body, space) in data units as (..., D) in model units."""
        flat = x.reshape(*x.shape[:-2], self.D)
        return (flat - np.tile(self.scale.center, 2)) / self.scale.unit

    def step(self, posterior=False):
        """Mean map F, f and noise covariance Q of y = (s, a): y' = F y + f + N(0, Q)."""
        D = self.D
        view = np.vstack([np.eye(D) / 6.0, np.hstack([np.eye(2), -np.eye(2)]) / 3.0])
        A, B = self.R[:, : D + 2] @ view, self.R[:, D + 2 :]
        mean = self.b + self.W @ (self.m + posterior * self.r)
        spread = self.sigma_p * (self.h if posterior else 1)
        V = spread**2 * self.W @ self.W.T + self.sigma**2 * np.eye(D)
        F = np.block([[np.eye(D) + A, B], [A, B]])
        return F, np.concatenate([mean, mean]), np.block([[V, V], [V, V]])

    def moments(self, state, action, steps, posterior=False):
        """Mean and covariance of s_t, t = 1..steps, in model units."""
        F, f, Q = self.step(posterior)
        mean, cov = np.concatenate([state, action]), np.zeros_like(Q)
        for _ in range(steps):
            mean, cov = F @ mean + f, F @ cov @ F.T + Q
            yield mean[: self.D], cov[: self.D, : self.D]


def data_for(frames, trajectories=1, seed=2):
    """Positions about where `Linear` puts its centre."""
    x = chase(frames, trajectories, seed=seed) * 2 + np.array([40.0, -7.0])
    return make_trajectories(x, fps=10, body=["0", "1"], units="m", resolution=0.0)


def assert_moments(sample, mean, cov):
    """The sample (n, D) has these moments, within five standard errors."""
    n = len(sample)
    error = np.sqrt(np.diag(cov) / n)
    assert (np.abs(sample.mean(0) - mean) < 5 * error).all()
    error = np.sqrt((np.outer(np.diag(cov), np.diag(cov)) + cov**2) / n)
    assert (np.abs(np.cov(sample.T) - cov) < 5 * error).all()


@pytest.mark.parametrize(("mode", "context"), [("forecast", 5), ("generate", 2)])
def test_forecast_of_a_linear_gaussian_model(mode, context):
    """Mean and covariance of every horizon, in closed form."""
    linear, data = Linear(), data_for(8)
    tree = draw(linear.run, data, mode=mode, draws=20_000, context=context, horizon=6)
    x = linear.to_model(tree[GROUP[mode]]["position"].values[0, :, 0])
    given = linear.to_model(data["position"].values[0, :context])
    state, action = given[-1], given[-1] - given[-2]
    for t, (mean, cov) in enumerate(linear.moments(state, action, 6)):
        assert_moments(x[:, context + t], mean, cov)


def test_reconstruction_in_closed_loop():
    """The same recursion with z from the guide; here the residual is a constant shift."""
    linear, data = Linear("closed_loop"), data_for(8)
    tree = draw(linear.run, data, mode="reconstruct", draws=20_000)
    x = linear.to_model(tree["posterior_predictive"]["position"].values[0, :, 0])
    given = linear.to_model(data["position"].values[0, :2])
    moments = linear.moments(given[1], given[1] - given[0], 6, posterior=True)
    for t, (mean, cov) in enumerate(moments):
        assert_moments(x[:, 2 + t], mean, cov)
    z = tree["posterior"]["latent"].values[0, :, 0]
    for t in range(6):
        spread = (linear.h * linear.sigma_p) ** 2
        assert_moments(z[:, t], linear.m + linear.r, spread * np.eye(3))


def test_reconstruction_step_by_step():
    """Teacher forced, every step answers the recorded state."""
    linear, data = Linear(), data_for(8)
    tree = draw(linear.run, data, mode="reconstruct", draws=20_000)
    x = linear.to_model(tree["posterior_predictive"]["position"].values[0, :, 0])
    recorded = linear.to_model(data["position"].values[0])
    for t in range(1, 7):
        state, action = recorded[t], recorded[t] - recorded[t - 1]
        ((mean, cov),) = linear.moments(state, action, 1, posterior=True)
        assert_moments(x[:, t + 1], mean, cov)


@pytest.mark.parametrize("chunk", [500_000, 10_000_000])
def test_a_guide_trained_on_many_draws_reconstructs_by_the_posterior(monkeypatch, chunk):
    """One of K, chosen by weight, is of the exact posterior as K grows, whatever the guide."""
    monkeypatch.setattr(predict_module, "CHUNK", chunk)
    linear, data = Linear(sigma=1.0), data_for(8, trajectories=2)
    linear.run.guide.residual.network.layers[-1].bias.data.zero_()  # the prior: no posterior
    data["position"][0, 5, 1, 0] = np.nan  # of the step to it three coordinates are seen
    linear.run.settings = {"train": {"importance_samples": 256}}
    tree = draw(linear.run, data, mode="reconstruct", draws=1000)
    z = tree["posterior"]["latent"].values[0].astype(float)
    recorded = linear.to_model(data["position"].values)
    view = np.vstack([np.eye(4) / 6.0, np.hstack([np.eye(2), -np.eye(2)]) / 3.0])
    for i, t in np.ndindex(2, 6):  # the step from frame t + 1
        before, s, after = recorded[i, t : t + 3]
        seen = np.isfinite(after)
        if not np.isfinite([before, s]).all():
            assert np.isnan(z[:, i, t]).all()
            continue
        mean = linear.R @ np.concatenate([view @ s, s - before]) + linear.b + linear.W @ linear.m
        W, error = linear.W[seen], (after - s - mean)[seen]
        cov = np.linalg.inv(np.eye(3) / linear.sigma_p**2 + W.T @ W / linear.sigma**2)
        assert_moments(z[:, i, t], linear.m + cov @ W.T @ error / linear.sigma**2, cov)


def test_the_draws_of_each_body_of_a_set_are_chosen_by_its_own_weights():
    """Their mean is that of many draws of the guide under the weights of that body."""
    linear, data = Linear(sigma=1.0), data_for(5, trajectories=2)
    config = linear.run.card.config | {"structure": "set"}
    card = dataclasses.replace(linear.run.card, config=config)
    torch.manual_seed(0)
    run = Run(None, *build(card), card, {"train": {"importance_samples": 64}}, {})
    for parameter in run.guide.residual.network.network.layers[-1].parameters():
        parameter.data *= 0.3  # not so far from the posterior that its draws do not reach it
    tree = draw(run, data, mode="reconstruct", draws=4000)
    found = tree["posterior"]["latent"].values[0].reshape(4000, 2, 3, 2, 3)
    steps = draw_steps(run.guide, whole(data, card.scale), 40_000)
    w = steps.log_weight.softmax(0)[..., None]  # (draw, time, trajectory, body, 1)
    expected = (w * steps.latent.unflatten(-1, (2, 3))).sum(0).transpose(0, 1).numpy()
    by_guide = steps.posterior.loc.unflatten(-1, (2, 3)).transpose(0, 1).numpy()
    error = np.abs(found.mean(0) - expected)
    assert error.max() < 0.05
    assert np.abs(by_guide - expected).max() > 0.1


@pytest.mark.parametrize("likelihood", ["policy", "squared_error"])
@pytest.mark.parametrize("roll_out", ["teacher_forced", "closed_loop"])
def test_the_log_likelihood_is_that_of_the_recorded_displacement(roll_out, likelihood):
    """Of each draw of z (and of s, in closed loop) by its law, written out; per data unit."""
    linear, data = Linear(roll_out, likelihood=likelihood), data_for(8, trajectories=2)
    data["position"][0, 4, 1, 0] = np.nan  # one coordinate of four
    data["position"][1, 7:] = np.nan
    tree = draw(linear.run, data, mode="reconstruct", draws=3, seed=1)
    found = tree["log_likelihood"]["position"]
    assert found.dims == ("chain", "draw", "trajectory", "time")
    drawn = linear.to_model(tree["posterior_predictive"]["position"].values[0])
    z = tree["posterior"]["latent"].values[0].astype(float)  # (draw, trajectory, step, Z)
    recorded = linear.to_model(data["position"].values)
    expected = np.full((3, 2, 8), np.nan)
    view = np.vstack([np.eye(4) / 6.0, np.hstack([np.eye(2), -np.eye(2)]) / 3.0])
    for k, i, t in np.ndindex(3, 2, 6):  # the step from frame t + 1
        path = recorded[i] if roll_out == "teacher_forced" else drawn[k, i]
        s, before = path[t + 1], path[t]
        mean = linear.R @ np.concatenate([view @ s, s - before]) + linear.b + linear.W @ z[k, i, t]
        spread = linear.sigma
        if likelihood == "squared_error":
            mean, spread = drawn[k, i, t + 2] - s, np.sqrt(0.5)
        error = (recorded[i, t + 2] - s - mean) / spread
        seen = np.isfinite(recorded[i, t + 2])
        each = -0.5 * error**2 - np.log(spread * np.sqrt(2 * np.pi)) - np.log(linear.scale.unit)
        if seen.any() and np.isfinite(path[t : t + 2]).all():
            expected[k, i, t + 2] = each[seen].sum()
    assert np.isfinite(expected).sum() == 3 * (9 if roll_out == "teacher_forced" else 11)
    np.testing.assert_allclose(found.values[0], expected, rtol=2e-5, atol=2e-4)


def test_the_reconstruction_of_what_is_observed_is_read_by_arviz(tiny_run):
    """PSIS-LOO over the frames that have a density, as `arviz_stats` takes it from the tree."""
    tree = draw(tiny_run, recordings(frames=12), mode="reconstruct", draws=100)
    kept = tree.isel(time=slice(tree.attrs["context"], None))
    found = arviz_stats.loo(kept, var_name="position", reff=1.0)
    density = kept["log_likelihood"]["position"].values[0].reshape(100, -1).astype(float)
    exact = -np.log(np.exp(-density).mean(0))  # without smoothing of the weights
    assert found.n_data_points == density.shape[1]
    np.testing.assert_allclose(found.elpd, exact.sum(), rtol=0.05)


def test_nothing_is_reconstructed_after_frames_that_were_not_seen(tiny_run):
    """With a history of 2 a step needs the two frames before it; other draws are as they were."""
    x = chase(12, 3, seed=5)
    whole = draw(tiny_run, make_trajectories(x, fps=10, body=["hunter", "prey"]), mode=MODES[0])
    x[0, 9:] = np.nan
    x[1, 5, 1] = np.nan  # one body in one frame
    data = make_trajectories(x, fps=10, body=["hunter", "prey"])
    tree = draw(tiny_run, data, mode="reconstruct")
    seen = np.ones((3, 12), bool)
    seen[0, 9:] = seen[1, 5] = False
    known = seen[:, :-2] & seen[:, 1:-1]  # of steps to frames 2 on
    same = known & seen[:, 2:]
    for found, before in (
        [t["posterior_predictive"]["position"].values[0, :, :, 2:] for t in (tree, whole)],
        [t["posterior"]["latent"].values[0] for t in (tree, whole)],
    ):
        assert np.isnan(found[:, ~known]).all()
        assert np.isfinite(found[:, known]).all()
        np.testing.assert_array_equal(found[:, same], before[:, same])


@pytest.mark.parametrize("chunk", [1, 7, 10_000])
@pytest.mark.parametrize("mode", MODES)
def test_every_draw_goes_to_its_own_trajectory(monkeypatch, mode, chunk):
    """Without noise each trajectory has one continuation, however the draws are cut in chunks."""
    monkeypatch.setattr(predict_module, "CHUNK", chunk)
    linear, data = Linear(sigma=1e-7, sigma_p=1e-7), data_for(9, 3)
    context = 4 if mode == "forecast" else 2
    tree = draw(linear.run, data, mode=mode, draws=5, context=context)
    x = linear.to_model(tree[GROUP[mode]]["position"].values[0])
    recorded = linear.to_model(data["position"].values)
    for i in range(3):
        expected = recorded[i].copy()
        if mode == "reconstruct":
            for t in range(1, 8):
                y = recorded[i, t], recorded[i, t] - recorded[i, t - 1]
                ((expected[t + 1], _),) = linear.moments(*y, 1, posterior=True)
        else:
            y = expected[context - 1], expected[context - 1] - expected[context - 2]
            expected[context:] = [mean for mean, _ in linear.moments(*y, 9 - context)]
        np.testing.assert_allclose(x[:, i], np.broadcast_to(expected, (5, 9, 4)), atol=1e-4)


def test_motion_ends_at_the_walls():
    """In the arena `recorded` a step goes as far as the wall; in the arena `open` it goes on."""
    data = data_for(3)
    options = dict(mode="generate", draws=200, horizon=40)
    inside, outside = (
        Linear(arena=arena).to_model(
            draw(Linear(arena=arena).run, data, **options)["posterior_predictive"][
                "position"
            ].values[0, :, 0]
        )
        for arena in ("recorded", "open")
    )
    assert (np.abs(inside[:, 2:]) <= 4 + 1e-5).all()
    assert (np.abs(outside[:, 2:]) > 4).mean() > 0.2
    # Until it first touches a wall, a motion is the same in both.
    free = (np.abs(outside[:, 2:]) < 4).all(-1).cumprod(1).astype(bool)
    assert 100 < free.sum() < free.size / 2
    np.testing.assert_allclose(inside[:, 2:][free], outside[:, 2:][free], atol=1e-5)


def test_generated_motion_stays_where_bodies_were_recorded(tiny_data, tiny_run):
    """The walls are those of the frames that the model was fitted to, one box for all bodies."""
    tree = draw(tiny_run, tiny_run.heldout(tiny_data), draws=50, horizon=300)
    x = tree["posterior_predictive"]["position"].values[0, :, 0, 2:]
    fitted = tiny_data["position"].values[0, :86]  # 0.8 x 0.9 of 120 frames
    low, high = fitted.min((0, 1)), fitted.max((0, 1))
    assert (x >= low - 1e-4).all()
    assert (x <= high + 1e-4).all()
    assert ((x < low + 1e-4) | (x > high - 1e-4)).any()


def test_far_from_the_origin_nothing_is_rounded_away():
    """Map coordinates: steps of centimetres, 5000 km from the origin."""
    linear = Linear(sigma=1e-3, sigma_p=1e-3)
    far = dataclasses.replace(linear.scale, center=(5e6, 5e6), unit=0.01)
    run = dataclasses.replace(linear.run, card=dataclasses.replace(linear.run.card, scale=far))
    linear.scale = far
    x = chase(6, seed=2) * 0.01 + 5e6
    data = make_trajectories(x, fps=10, body=["0", "1"], resolution=0.0)
    position = draw(run, data, draws=3)["posterior_predictive"]["position"].values[0, :, 0]
    given = linear.to_model(data["position"].values[0, :2])
    mean, _ = next(linear.moments(given[1], given[1] - given[0], 1))
    np.testing.assert_allclose(
        linear.to_model(position[:, 2]), np.broadcast_to(mean, (3, 4)), atol=0.02
    )


# --- what cannot be drawn ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"mode": "dream"}, "mode is 'dream'; choose reconstruct, forecast or generate"),
        ({"draws": 0}, "draws is 0"),
        ({"mode": "forecast", "context": 1}, "context is 1 frame; the model's history needs 2"),
        ({"mode": "forecast", "context": 12}, "12 frames and 12 are context"),
        ({"mode": "forecast", "context": 99}, "12 frames and 99 are context"),
        ({"horizon": 0}, "horizon is 0; it must be at least 1"),
        ({"stride": 2, "horizon": 3}, "stride is of forecasts"),
        ({"stride": 2, "mode": "forecast"}, "it needs the mode forecast, and a horizon"),
        ({"stride": 0, "mode": "forecast", "horizon": 3}, "stride is 0; it must be at least 1"),
        ({"seed": -1}, "seed is -1"),
        ({"seed": 2**70}, "seed is "),
    ],
)
def test_options_that_cannot_be_used(tiny_run, options, says):
    with pytest.raises(ConfigError, match=says):
        draw(tiny_run, ragged(), **options)


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (make_trajectories(chase()[..., :1, :], fps=10), "1 body .* has 2"),
        (make_trajectories(chase(), fps=25), "25 frames a second.* fitted at 10"),
    ],
)
def test_recordings_of_something_else(tiny_run, data, says):
    with pytest.raises(DataError, match=says):
        draw(tiny_run, data)


def test_no_trajectory_is_as_long_as_a_sliding_forecast(tiny_run):
    with pytest.raises(DataError, match="has 12 frames, and context and horizon are 13"):
        draw(tiny_run, ragged(), mode="forecast", context=4, horizon=9, stride=1)


def test_no_trajectory_has_the_context(tiny_run):
    x = chase(9, 2)
    x[:, 3] = np.nan
    data = make_trajectories(x, fps=10)
    with pytest.raises(DataError, match="frames 3 to 4 observed in full"):
        draw(tiny_run, data, mode="forecast", context=4)


@pytest.mark.parametrize(
    ("options", "gib"),
    [
        ({"draws": 10**9}, 10**9 * 12 * 4 * 4 / 2**30),
        ({"horizon": 10**12}, (10**12 + 2) * 4 * 4 / 2**30),
        ({"mode": "reconstruct", "draws": 10**9}, 10**9 * 12 * (4 + 4 + 1) * 4 / 2**30),
    ],
)
def test_draws_that_do_not_fit_in_memory(tiny_run, monkeypatch, options, gib):
    """Refused with the size, and before anything of that size is asked for."""
    data = recordings(frames=12)
    monkeypatch.setattr(predict_module, "_free_memory", lambda: 3 * 2**30)

    empty = np.empty

    def asked(*given, **options):
        assert np.prod(given[0]) < 1000, "memory was asked for"
        return empty(*given, **options)

    monkeypatch.setattr(np, "empty", asked)
    monkeypatch.setattr(xr.Dataset, "pad", lambda *_, **__: asked(10**9))
    options = {"draws": 1, **options}
    with pytest.raises(
        ConfigError, match=r"take ([\d.]+) GiB, more than half of the 3\.0 GiB"
    ) as refused:
        draw(tiny_run, data, **options)
    size = float(str(refused.value).split(" take ")[1].split()[0])
    assert size == pytest.approx(gib, rel=0.01)


@pytest.mark.parametrize("mode", MODES)
def test_draws_of_what_lies_in_a_file_or_in_other_scenes(tiny_run, mode):
    data = ragged()
    stored = data.assign(position=data["position"].copy(data=Stored.of(data["position"].values)))
    one, other = (draw(tiny_run, of, mode=mode, draws=3) for of in (data, stored))
    for group in one.groups:
        xr.testing.assert_equal(one[group].to_dataset(), other[group].to_dataset())


@pytest.mark.parametrize("mode", MODES)
def test_draws_that_are_no_numbers_are_an_error(tiny_run, mode):
    run = dataclasses.replace(tiny_run, model=copy.deepcopy(tiny_run.model))
    with torch.no_grad():
        for parameter in run.model.parameters():
            parameter.fill_(torch.nan)
    run = dataclasses.replace(run, guide=type(tiny_run.guide)(run.model))
    with pytest.raises(RunError, match="not finite numbers"):
        draw(run, ragged(), mode=mode, draws=2)


def test_free_memory_is_measured():
    free = predict_module._free_memory()
    with open("/proc/meminfo") as file:
        total = float(file.readline().split()[1]) * 1024
    assert 0 < free < total
