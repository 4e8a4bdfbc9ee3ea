"""A set-structured ControlVAE: equivariant within a type, and one for any number of bodies."""

import dataclasses

import numpy as np
import pytest
import torch
from helpers import chase, debug
from variants import recording, scale_of

from pyro_animacy import Batch, ControlVAE, ControlVAEConfig, ControlVAEGuide, ScaledELBO, fit
from pyro_animacy.data.schema import make_trajectories
from pyro_animacy.errors import ConfigError
from pyro_animacy.infer.config import FitConfig, TrainConfig
from pyro_animacy.infer.predict import predict
from pyro_animacy.infer.run import Run
from pyro_animacy.infer.score import log_density
from pyro_animacy.infer.source import SceneSource
from pyro_animacy.infer.steps import draw_steps
from pyro_animacy.nets import StackConfig

NET = StackConfig(hidden=9, layers=2)


def model_of(types, seed=0, **options):
    """A set-structured model and guide in float64."""
    torch.manual_seed(seed)
    config = ControlVAEConfig(
        history=3, latent_size=4, structure="set", prior=NET, posterior=NET, policy=NET, **options
    )
    N = len(types)
    model = ControlVAE(config, scale=scale_of(N), bodies=N, types=types).double()
    guide = ControlVAEGuide(model).double()
    with torch.no_grad():  # away from zero, where any network is equivariant
        for parameter in [*model.parameters(), *guide.parameters()]:
            parameter += 0.3 * torch.randn_like(parameter)
    return model, guide


def moved(x, order):
    return x.unflatten(-1, (len(order), -1))[..., order, :].flatten(-2)


@pytest.mark.parametrize("order", [[1, 0, 2, 3], [2, 0, 1, 3], [1, 2, 0, 3]])
def test_to_reorder_bodies_of_a_type_reorders_everything(order):
    model, guide = model_of([0, 0, 0, 1])
    batch = recording(9, 5, bodies=4)
    other = Batch(*(moved(x, order) for x in batch))
    one, two = (model.evidence(b) for b in (batch, other))
    prior, prior_moved = (model.step.prior(e.context).base_dist.loc for e in (one, two))
    torch.testing.assert_close(moved(prior, order), prior_moved, rtol=1e-12, atol=1e-12)
    shift, shift_moved = (
        guide.posterior(model.step.prior(e.context), e).base_dist for e in (one, two)
    )
    for name in ("loc", "scale"):
        mine, theirs = getattr(shift, name), getattr(shift_moved, name)
        torch.testing.assert_close(moved(mine, order), theirs, rtol=1e-12, atol=1e-12)
    z = torch.randn_like(prior)
    pi = model.step.policy(one.context, z).base_dist
    pi_moved = model.step.policy(two.context, moved(z, order)).base_dist
    for name in ("loc", "scale"):
        mine, theirs = getattr(pi, name), getattr(pi_moved, name)
        torch.testing.assert_close(moved(mine, order), theirs, rtol=1e-12, atol=1e-12)


def test_the_layout_is_of_the_scale_and_the_types():
    """The scale's extent is 5 and its separation 3; types may be known that are not at hand."""
    model, _ = model_of([0, 1])
    layout = model.set_context.layout
    assert (layout.extent, layout.separation, layout.kinds) == (5, 3, 2)
    scale = scale_of(2)
    wider = ControlVAE(model.config, scale=scale, bodies=2, types=[0, 1], known_types=4)
    assert wider.set_context.layout.kinds == 4
    assert wider.step.policy.weight.shape[0] == 4


def test_to_exchange_bodies_of_two_types_is_another_scene():
    _, guide = model_of([0, 0, 1])
    batch = recording(9, 5, bodies=3)
    other = Batch(*(moved(x, [2, 1, 0]) for x in batch))
    torch.manual_seed(0)
    before = log_density(guide, batch, 1)[0]
    torch.manual_seed(0)
    assert not torch.allclose(before, log_density(guide, other, 1)[0], rtol=1e-3)


def test_the_bound_is_pyros_and_every_parameter_has_a_gradient():
    model, guide = model_of([0, 0, 1])
    batch = recording(8, 6, bodies=3, missing=0.05)
    loss = ScaledELBO()(model, guide)(batch)
    loss.backward()
    for module in (model, guide):
        for name, parameter in module.named_parameters():
            assert parameter.grad.abs().sum() > 0, name
    torch.manual_seed(1)
    steps = draw_steps(guide, batch, 2000)
    seen = steps.seen.any(-1)
    torch.manual_seed(2)
    mean = -torch.stack([ScaledELBO()(model, guide)(batch) for _ in range(300)])
    elbo = steps.log_weight.mean(0)[seen].sum()
    assert abs(mean.mean() - elbo) < 4 * mean.std() / 300**0.5 + 4 * 0.05 * mean.std()


NAMES = ["wolf_1", "wolf_2", "sheep_1"]


def scene(names, seed=0, frames=60):
    rng = np.random.default_rng(seed)
    pairs = [chase(frames=frames, recordings=6, seed=seed + i) for i in range(len(names))]
    x = np.stack([pair[:, :, 0] for pair in pairs], 2) + rng.normal(size=(1, 1, len(names), 2))
    return make_trajectories(x.round(3), fps=10, body=names, units="m", source="pack")


@pytest.fixture(scope="module")
def pack(tmp_path_factory):
    config = debug({"structure": "set", "latent_size": 3}, steps=20)
    return fit(scene(NAMES), config, out=tmp_path_factory.mktemp("set") / "run", progress=False)


def test_a_run_serves_other_numbers_of_bodies(pack):
    run = Run.load(pack.path)
    for names in (["wolf_7"], ["sheep_1", "wolf_1", "sheep_2", "wolf_2", "wolf_9"]):
        recordings = scene(names, seed=3)
        here = run.on(recordings)
        assert here.card.bodies == tuple(names)
        for wall in ("low", "high"):  # one box for all bodies
            theirs, ours = (
                getattr(m, wall).unflatten(-1, (-1, 2)) for m in (here.model, run.model)
            )
            assert torch.equal(theirs, ours[:1].expand(len(names), 2))
            assert torch.equal(ours, ours[:1].expand(3, 2))
            assert (ours != 0).all()
        theirs = dict(here.model.named_parameters())
        assert all(torch.equal(p, theirs[name]) for name, p in run.model.named_parameters())
        tree = predict(here, recordings, mode="forecast", draws=3, horizon=5, progress=False)
        position = tree["predictions"]["position"]
        assert position.sizes["body"] == len(names)
        assert np.isfinite(position.isel(time=slice(2, None))).all()
    assert run.on(scene(["wolf_5", "wolf_6", "sheep_9"])) is run
    assert run.on(scene(["0", "1", "2"])) is run  # nothing is known of these but their number
    swapped = run.on(scene(["sheep_9", "wolf_5", "wolf_6"]))
    assert swapped.model.set_context.layout.types == (0, 1, 1)


def test_a_lone_body_far_away_changes_what_the_others_do_only_by_its_messages(pack):
    """With the messages' weights at zero, N bodies are N scenes of one."""
    run = Run.load(pack.path)
    with torch.no_grad():
        for module in (run.model, run.guide):
            for name, parameter in module.named_parameters():
                if name.endswith(("mine.weight", "mine.bias", "theirs.weight", "between.weight")):
                    parameter.zero_()
    together = scene(["wolf_1", "wolf_2"], seed=5)
    both = run.on(together)
    for i in range(2):
        alone = together.isel(body=[i])
        single = run.on(alone)
        contexts = [
            r.model.evidence(Batch(x, torch.isfinite(x))).context
            for r, x in ((both, _flat(both, together)), (single, _flat(single, alone)))
        ]
        means = [
            r.model.step.prior(c).base_dist.loc
            for r, c in zip((both, single), contexts, strict=True)
        ]
        torch.testing.assert_close(means[0][..., 3 * i : 3 * i + 3], means[1])


def _flat(run, dataset):
    scale = run.card.scale
    x = (dataset["position"].to_numpy() - np.asarray(scale.center)) / scale.unit
    return torch.from_numpy(x.reshape(*x.shape[:2], -1).astype(np.float32)).transpose(0, 1)


def test_bodies_of_no_known_type_and_joint_models(pack, tiny_run):
    with pytest.raises(ConfigError, match=r"goat.*sheep, wolf"):
        Run.load(pack.path).on(scene(["goat_1", "wolf_1"]))
    assert tiny_run.on(scene(NAMES)) is tiny_run
    with pytest.raises(ConfigError, match="memory_size"):
        ControlVAEConfig(structure="set", memory_size=4)


def test_latents_are_told_apart_by_body(pack):
    config = dataclasses.asdict(pack.model.config)
    assert config["latent_size"] == 3
    assert pack.model.latent_size == 9
    tree = predict(pack, scene(NAMES), mode="reconstruct", draws=2, progress=False)
    assert tree["posterior"]["latent"].sizes["latent_dim"] == 9


def test_more_than_three_bodies_are_a_set_where_nothing_else_is_asked(tmp_path):
    open_ = ControlVAEConfig(prior=NET, posterior=NET, policy=NET)
    for bodies, structure in ((1, "joint"), (3, "joint"), (4, "set"), (23, "set")):
        assert open_.structured(bodies).structure == structure
        model = ControlVAE(open_, scale=scale_of(bodies), bodies=bodies)
        assert (model.set_context is not None) is (structure == "set")
        for chosen in ("joint", "set"):
            config = dataclasses.replace(open_, structure=chosen)
            assert config.structured(bodies) is config
    assert dataclasses.replace(open_, memory_size=4).structured(9).structure == "joint"
    names = ["wolf_1", "wolf_2", "sheep_1", "sheep_2"]
    run = fit(scene(names), debug(steps=20), out=tmp_path / "run", progress=False)
    again = Run.load(run.path)
    assert again.config.model.structure is None  # as it was asked
    assert again.card.config["structure"] == "set"  # as it is, of other bodies too
    assert again.on(scene(["wolf_5", "sheep_9"])).model.set_context.layout.types == (1, 0)


@pytest.mark.parametrize(
    ("bodies", "options", "windows"),
    [
        (1, {}, 512), (3, {}, 512), (4, {}, 288), (6, {}, 128), (30, {}, 8),
        (3, {"structure": "set"}, 512), (6, {"structure": "joint"}, 512),
        (6, {"memory_size": 4}, 512),
    ],
)  # fmt: skip
def test_windows_in_a_batch_of_a_set_take_as_long_as_those_of_three_bodies(
    bodies, options, windows
):
    names = [f"wolf_{i}" for i in range(bodies)]
    of = scene(names, frames=30)
    model = ControlVAEConfig(**options)
    window = 4 if "memory_size" in options else 1
    config = FitConfig(model=model, train=TrainConfig(window=window))
    assert SceneSource(of, config).batch_size == windows
    asked = dataclasses.replace(config, train=TrainConfig(window=window, batch_size=17))
    assert SceneSource(of, asked).batch_size == 17
