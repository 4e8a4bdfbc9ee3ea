"""What every model of a scene owes, whatever its family and options."""

import dataclasses

import numpy as np
import pyro
import pytest
import torch
from helpers import assert_same_run, recordings
from pyro.infer import SVI, TraceMeanField_ELBO
from torch import nn
from variants import (
    CONFIGS,
    STATE_SPACE,
    assert_same_gradients,
    build,
    family_of,
    gradients,
    padded,
    recording,
    scale_of,
    supply_noise,
)

from pyro_animacy import (
    Batch,
    Run,
    ScaledELBO,
    criticise,
    fit,
    predict,
    preset,
    resume,
    score_animacy,
)
from pyro_animacy.infer import run as runs
from pyro_animacy.infer import trainer as loop
from pyro_animacy.infer.checkpoint import ModelCard, load_weights, save_weights
from pyro_animacy.infer.score import log_density

every = pytest.mark.parametrize("name", CONFIGS)
T, B, D = 5, 6, 6


def windows(model, size=B, missing=0.0):
    return recording(model.config.history + T, size, missing=missing)


def event_of(model):
    """Shape of z_t as its site has it; None where the model has no latent."""
    config = model.config
    if not config.latent_size:
        return None
    classes = getattr(config, "classes", None)
    return (config.latent_size, classes) if classes else (config.latent_size,)


@every
def test_sites(name):
    """Names and shapes: one latent a step, all at one site where steps are independent."""
    model, guide = build(name)
    guide(windows(model))
    trace, _ = guide.get_traces()
    sites = {n: s["value"] for n, s in trace.nodes.items() if s["type"] == "sample"}
    assert all(value.isfinite().all() for value in sites.values())
    closed_loop = model.config.roll_out == "closed_loop"
    expected, event = {"reconstruction": (T, B, D), "state": (T, B, D)}, event_of(model)
    if model.config.action_cost:
        expected["action_cost"] = (T, B, 0)
    if closed_loop:
        expected |= {f"action_{t}": (B, D) for t in range(T)}
    elif model.config.likelihood == "squared_error":
        expected["action"] = (T, B, D)
    if event and (closed_loop or name in STATE_SPACE):
        expected |= {f"latent_{t}": (B, *event) for t in range(T)}
    elif event:
        expected["latent"] = (T, B, *event)
    assert {n: tuple(value.shape) for n, value in sites.items()} == expected


@every
def test_sizes_are_those_of_the_draws(name):
    """What predict and the figures ask of a model: sizes of z_t and h_t, and whether it remembers.

    A model remembers if what it expects of a step depends on frames before the step's context.
    """
    model, guide = build(name)
    size = 64
    batch = windows(model, size)
    with guide:
        evidence, memory = model.follow(batch)
    assert memory.latent.shape == (T, size, model.latent_size)
    assert memory.hidden.shape == (T, size, model.memory_size)
    assert model.policy(evidence.context, memory).batch_shape == (T, size)
    other = batch.position.clone()
    other[0] += 30.0  # which only the first step's context has
    policies = []
    for x in (batch.position, other):
        with pytest.MonkeyPatch.context() as patch, guide:
            supply_noise(patch, T, size, 5, D)
            torch.manual_seed(0)
            evidence, memory = model.follow(Batch(x, batch.observed))
        policies.append(model.policy(evidence.context, memory).mean[1:])
    assert torch.equal(*policies) is not model.remembers


@every
def test_every_parameter_has_a_gradient(name):
    model, guide = build(name)
    ScaledELBO()(model, guide)(windows(model, 16)).backward()
    for module in (model, guide):
        for parameter_name, parameter in module.named_parameters():
            assert parameter.grad is not None, parameter_name
            assert parameter.grad.isfinite().all(), parameter_name
            assert parameter.grad.abs().max() > 0, parameter_name


@every
def test_equals_pyros_elbo(name):
    """At beta = 1 the scaled ELBO is TraceMeanField_ELBO on the same program and guide."""
    model, guide = build(name)
    batch = windows(model, missing=0.05)
    found = []
    for elbo in (ScaledELBO(), TraceMeanField_ELBO()):
        torch.manual_seed(3)
        loss = elbo.differentiable_loss(model, guide, batch)
        found.append((loss, gradients(loss, (model, guide))))
    (ours, of_ours), (pyros, of_pyros) = found
    assert ours != 0
    torch.testing.assert_close(ours, pyros, rtol=1e-12, atol=1e-12)
    assert_same_gradients(of_ours, of_pyros)


@every
@pytest.mark.parametrize("options", [{}, {"free_nats": 0.9, "kl_balance": 0.8}])
def test_padding_and_what_was_not_observed_change_nothing(monkeypatch, name, options):
    """Missing frames at the end, or any value under the mask, leave loss and gradient alone."""
    model, guide = build(name)
    batch = windows(model, missing=0.05)
    noise = supply_noise(monkeypatch, T + 3, B, 5, D)
    changed = padded(batch)
    if model.config.roll_out == "closed_loop":
        # its first state is taken from the recording, so there the mask cannot hide a value
        k = model.config.history
        changed.position[:k] = batch.position[:k]
    found = []
    for one in (batch, changed):
        noise["rewind"]()
        torch.manual_seed(0)  # classes are drawn step by step
        loss = ScaledELBO(**options)(model, guide)(one)
        found.append((loss, gradients(loss, (model, guide))))
    (loss, expected), (again, of_again) = found
    assert loss.abs() > 1
    torch.testing.assert_close(again, loss, rtol=1e-12, atol=1e-12)
    assert_same_gradients(of_again, expected, 1e-11)


@every
def test_saved_and_loaded_it_is_the_same_model(name, tmp_path):
    """The same seed gives the same loss and score, also of a model built from its file."""
    model, guide = build(name)
    batch = windows(model)
    card = ModelCard(
        model=family_of(name), config=dataclasses.asdict(model.config), scale=scale_of(3),
        bodies=("a", "b", "c"), axes=("x", "y"), fps=10.0, units="m",
    )  # fmt: skip
    both = nn.ModuleDict({"model": model, "guide": guide})
    save_weights(tmp_path / "weights.safetensors", both.state_dict(), card)
    tensors, found = load_weights(tmp_path / "weights.safetensors")
    assert found == dataclasses.replace(card, config=found.config)
    other = nn.ModuleDict(dict(zip(("model", "guide"), runs.build(found), strict=True))).double()
    other.load_state_dict(tensors)
    assert other["model"].config == model.config
    results = []
    for one in (both, both, other):
        torch.manual_seed(0)
        loss = ScaledELBO()(one["model"], one["guide"])(batch)
        results.append((loss.item(), *log_density(one["guide"], batch, 3)))
    for loss, *bounds in results[1:]:
        assert loss == results[0][0]
        assert all(torch.equal(a, b) for a, b in zip(bounds, results[0][1:], strict=True))


@every
def test_svi_takes_the_step_of_the_loop(name):
    """`pyro.infer.SVI` and a plain torch loop on ELBOModule move the parameters alike."""
    ways = []
    for use_svi in (True, False):
        model, guide = build(name)
        batch = windows(model)
        elbo = ScaledELBO(kl_weight=0.1, scale=1 / 24)
        parameters = [*model.parameters(), *guide.parameters()]
        if use_svi:
            svi = SVI(model, guide, pyro.optim.Adam({"lr": 1e-2}), loss=elbo)
        else:
            optimizer, bound = torch.optim.Adam(parameters, lr=1e-2), elbo(model, guide)
        losses = []
        for step in range(3):
            torch.manual_seed(step)
            if use_svi:
                losses.append(svi.step(batch))
            else:
                optimizer.zero_grad()
                loss = bound(batch)
                loss.backward()
                optimizer.step()
                losses.append(loss.item())
        ways.append((losses, parameters))
    assert ways[0][0] == pytest.approx(ways[1][0], rel=1e-12)
    for a, b in zip(ways[0][1], ways[1][1], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


@every
@pytest.mark.parametrize("shape", [(4,), (3, 4)])
def test_free_motion(name, shape):
    """`roll_out` gives T of everything, any batch shape, and the states are sums of the actions."""
    model, _ = build(name, arena="open")
    k = model.config.history
    start = torch.randn(*shape, D, dtype=torch.float64)
    before = [torch.randn(*shape, D, dtype=torch.float64) for _ in range(k - 1)]
    rolled = model.roll_out(start, before, T)
    assert [len(part) for part in rolled] == [T] * 4
    state, action, policy = rolled.stacked(start)
    assert state.shape == action.shape == (T, *shape, D)
    assert (policy.batch_shape, policy.event_shape) == ((T, *shape), (D,))
    assert torch.stack(rolled.latent).shape == (T, *shape, model.latent_size)
    torch.testing.assert_close(torch.stack(rolled.state), start + action.cumsum(0))


# Runs of each family: trained, resumed, drawn from.

DEBUG = {
    **{name: (name, {}) for name in ("control_vae", "deterministic", "stochastic", "rssm")},
    "control_vae, memory": ("control_vae", {"memory_size": 8}),  # window as of the others
    "control_vae, memory, closed loop": (
        "control_vae", {"memory_size": 8, "roll_out": "closed_loop"},
    ),
    "control_vae, set": ("control_vae", {"structure": "set", "latent_size": 2}),
    "rssm, classes": ("rssm", {"latent_size": 3, "classes": 4}),
    "rssm, closed loop": ("rssm", {"roll_out": "closed_loop"}),
}  # fmt: skip
STEPS, TRAJECTORIES, FRAMES, CONTEXT, DRAWS = 6, 2, 14, 6, 3


def tiny(name):
    family, changes = DEBUG[name]
    config = preset("debug", family)
    return dataclasses.replace(
        config,
        model=dataclasses.replace(config.model, **changes),
        train=dataclasses.replace(
            config.train,
            steps=STEPS,
            evaluate_every=2,
            batch_size=8,
            window=6 if "memory" in name else config.train.window,
        ),
    )


@pytest.fixture(scope="module", params=DEBUG)
def fitted(request, tiny_data, tmp_path_factory):
    """The name of a tiny configuration, and its run."""
    out = tmp_path_factory.mktemp("contract") / "run"
    return request.param, fit(tiny_data, tiny(request.param), out=out, progress=False)


@pytest.fixture(scope="module")
def clips():
    return recordings(frames=FRAMES, recordings=TRAJECTORIES, seed=3)


def drawn(run, clips, mode, **options):
    return predict(run, clips, mode=mode, draws=DRAWS, progress=False, **options)


def test_a_killed_run_resumes_to_the_same_bits(fitted, tiny_data, tmp_path, monkeypatch):
    name, run = fitted
    rate = loop.learning_rate

    def killed(step, *rest):
        if step == 5:
            raise KeyboardInterrupt
        return rate(step, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "learning_rate", killed)
        with pytest.raises(KeyboardInterrupt):
            fit(tiny_data, tiny(name), out=tmp_path / "run", progress=False)
    resume(tmp_path / "run", tiny_data, progress=False)
    assert_same_run(run.path, tmp_path / "run")


def test_a_run_is_the_one_in_its_folder(fitted):
    """What `fit` returns and what its folder holds are the same model, with a finite score."""
    _, run = fitted
    batch = recording(9, 4, bodies=2)
    batch = Batch(batch.position.float(), batch.observed)
    found = []
    for one in (run, Run.load(run.path)):
        torch.manual_seed(0)
        found.append(log_density(one.guide, batch, 3)[0])
    assert torch.equal(*found)
    assert found[0].isfinite().all()


def test_reconstruction(fitted, clips):
    _, run = fitted
    tree = drawn(run, clips, "reconstruct")
    k, size = run.card.config["history"], run.model.latent_size
    position = tree["posterior_predictive/position"]
    assert position.shape == (1, DRAWS, TRAJECTORIES, FRAMES, 2, 2)
    assert np.isfinite(position).all()
    given = clips["position"].transpose("trajectory", "time", "body", "space").to_numpy()[:, :k]
    np.testing.assert_allclose(position[0, :, :, :k], np.stack([given] * DRAWS), atol=1e-5)
    if size:
        latent = tree["posterior/latent"]
        assert latent.shape == (1, DRAWS, TRAJECTORIES, FRAMES - k, size)
        assert np.isfinite(latent).all()
        if run.card.config.get("classes"):
            groups = latent.to_numpy().reshape(-1, run.card.config["classes"])
            np.testing.assert_allclose(np.sort(groups)[:, -1], 1, atol=1e-6)
            np.testing.assert_allclose(np.sort(groups)[:, :-1], 0, atol=1e-6)
    else:
        assert "posterior" not in tree.children


def test_generation_and_forecast(fitted, clips):
    """Free motion of the length asked for; a forecast keeps its context, and knows what is in it.

    The frames before the last ``history`` of the context bear on it only where the model remembers.
    """
    _, run = fitted
    tree = drawn(run, clips, "generate", horizon=9)
    k = run.card.config["history"]
    assert tree["posterior_predictive/position"].shape == (1, DRAWS, TRAJECTORIES, k + 9, 2, 2)
    moved = clips.copy(deep=True)
    moved["position"][:, :2] += 0.3
    assert k <= CONTEXT - 2
    forecasts = []
    for data in (clips, moved):
        x = drawn(run, data, "forecast", context=CONTEXT, horizon=5)["predictions/position"]
        assert x.shape == (1, DRAWS, TRAJECTORIES, CONTEXT + 5, 2, 2)
        assert np.isfinite(x).all()
        given = data["position"].to_numpy()[:, :CONTEXT]
        np.testing.assert_allclose(x[0, 0, :, :CONTEXT], given, atol=1e-5)
        forecasts.append(x.to_numpy()[..., CONTEXT:, :, :])
    assert np.array_equal(*forecasts) is not run.model.remembers


@pytest.mark.slow
@pytest.mark.usefixtures("undrawn")
def test_a_report_says_of_every_section_what_it_can(fitted, tmp_path):
    """No instrument stops the report; one that cannot measure a model says why in its place."""
    name, run = fitted
    clips = recordings(frames=40, recordings=3, seed=5)
    page = criticise(
        run, clips, out=tmp_path / "report.html", draws=20, most=3, frames=20, progress=False
    ).read_text()
    silent = page.count("Nothing can be said of this here")
    carried = name.startswith(("rssm", "stochastic"))
    expected = {"deterministic": 2, "rssm, classes": 2}.get(name, int(carried))
    assert silent == expected
    scores = score_animacy(run, clips, draws=32, surrogates=1, progress=False)
    assert np.isfinite(scores["evidence"]).any()
