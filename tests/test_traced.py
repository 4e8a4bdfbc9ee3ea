"""Recorded steps against the programs they are recorded from."""

from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any, NamedTuple

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn
from variants import CONFIGS, SET, build, recording

from pyro_animacy import ScaledELBO
from pyro_animacy.data.episode_windows import EpisodeBatch
from pyro_animacy.infer import traced
from pyro_animacy.infer.traced import Gradient, Recorded
from pyro_animacy.infer.trainer import mixed_precision
from pyro_animacy.models.image_vae import ImageVAE, ImageVAEConfig, ImageVAEGuide
from pyro_animacy.models.program import Memory, declare_parameters
from pyro_animacy.models.world_model import Sight, WorldModel, WorldModelConfig, WorldModelGuide
from pyro_animacy.nets import StackConfig

SMALL_NET = StackConfig(hidden=5, layers=1)


def of(gradient, batch, seed):
    """Loss, terms and gradients of a batch under the noise of a seed."""
    torch.manual_seed(seed)
    loss = gradient(batch)
    terms = {name: term.clone() for name, term in gradient.elbo.terms.items()}
    return (
        loss.clone(),
        terms,
        [p.grad if p.grad is None else p.grad.clone() for p in gradient.parameters],
    )


def both(name, **options):
    model, guide = build(name)
    return [Gradient(ScaledELBO(**options), model, guide, traced=way) for way in (False, True)]


def assert_same(one, other, batch, seed=0):
    torch.testing.assert_close(of(one, batch, seed), of(other, batch, seed), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("small", [0, 2**14], ids=["added_where_they_stand", "put_together"])
@pytest.mark.parametrize("name", [*CONFIGS, *SET])
def test_the_record_is_the_program(name, small, monkeypatch):
    """Other noise, other data, other masks and another weight than when it was recorded."""
    monkeypatch.setattr(traced, "SMALL", small)
    program, record = both(name, kl_weight=0.3, scale=0.1)
    for i, missing in enumerate((0.0, 0.2, 0.0)):
        batch = recording(9, 4, seed=i, missing=missing)
        for way in (program, record):
            way.elbo.kl_weight, way.elbo.scale = 0.3 + 0.2 * i, 0.1 / (i + 1)
        assert_same(record, program, batch, seed=i)
        assert record.elbo.kl_weight == 0.3 + 0.2 * i
        with torch.no_grad():  # as an optimiser does, in place
            for p in program.parameters:
                p.mul_(0.97)
    assert len(record.records) == 2  # where all was seen, nothing is masked


class Two(nn.Module):
    """x ~ N(a + b, 1): autograd gives both parameters one tensor for their gradient."""

    def __init__(self):
        super().__init__()
        self.a, self.b = (nn.Parameter(torch.full((3,), value)) for value in (0.5, -2.0))

    def forward(self, batch):
        declare_parameters(self)
        with pyro.plate("rows", len(batch.x)):
            pyro.sample("x", dist.Normal(self.a + self.b, 1.0).to_event(1), obs=batch.x)


class Rows(NamedTuple):
    x: torch.Tensor


def test_parameters_of_one_gradient_are_clipped_once():
    model, clipped = Two(), []
    guide = nn.Module()
    guide.forward = lambda batch: None
    for way in (False, True):
        gradient = Gradient(ScaledELBO(), model, guide, traced=way)
        gradient(Rows(torch.arange(6.0).view(2, 3)))
        nn.utils.clip_grad_norm_(gradient.parameters, 0.1)
        clipped.append(torch.stack([p.grad for p in gradient.parameters]))
    assert clipped[0].norm() == pytest.approx(0.1, rel=1e-4)
    torch.testing.assert_close(*clipped)


def test_another_shape_is_recorded_anew():
    program, record = both("rssm")
    for frames in (6, 8, 6):
        batch = recording(frames, 3)
        torch.testing.assert_close(
            of(record, batch, 0), of(program, batch, 0), rtol=1e-10, atol=1e-12
        )
    assert len(record.records) == 2


@pytest.mark.parametrize(
    "options",
    [dict(free_nats=0.4), dict(free_nats=0.4, free_nats_of="mean"), dict(kl_balance=0.8)],
    ids=str,
)
@pytest.mark.parametrize("name", ["rssm", "categorical"])
def test_options_of_the_loss(name, options):
    program, record = both(name, **options)
    batch = recording(7, 3, missing=0.1)
    assert_same(record, program, batch)


def test_sums_over_time_become_single_products(monkeypatch):
    """The gradients of weights are no longer made of a product for every step of time."""
    T, recorded = 20, []
    for rewritten in (True, False):
        if not rewritten:
            monkeypatch.setattr(traced, "_products_of_sums", lambda *_: None)
        _, record = both("closed_loop")
        record(recording(T, 3))
        ((graph, _),) = record.records.values()
        recorded.append(sum(n.target is torch.mm for n in graph.graph.nodes))
    weights = sum(p.dim() == 2 for p in record.parameters)
    fewer, all_products = recorded
    assert all_products - fewer > (T / 2) * weights


@pytest.mark.parametrize("rewards", [False, True])
def test_batches_of_episodes(rewards):
    """Of which some tensors are not there."""
    torch.manual_seed(0)
    T, B = 6, 3
    model = WorldModel(
        WorldModelConfig(memory_size=4, latent_size=2, encoder=SMALL_NET, decoder=SMALL_NET),
        Sight((2,), (0.0, 0.0), (1.0, 1.0), actions=1, reward=rewards),
    ).double()  # fmt: skip
    guide = WorldModelGuide(model).double()
    program, record = (Gradient(ScaledELBO(), model, guide, traced=way) for way in (False, True))
    observed = torch.ones(T, B, dtype=torch.bool)
    observed[4:, 1] = False
    batch = EpisodeBatch(
        observation=torch.randn(T, B, 2, dtype=torch.float64),
        action=torch.randn(T, B, 1, dtype=torch.float64),
        reward=torch.randn(T, B, dtype=torch.float64) if rewards else None,
        continuation=None, observed=observed,
    )  # fmt: skip
    for seed in (0, 1):
        assert_same(record, program, batch, seed)


@pytest.mark.parametrize(
    ("sizes", "mixed"),
    [
        (dict(memory_size=4, latent_size=2), False),
        (dict(memory_size=4, latent_size=2), True),
        (dict(memory_size=0, latent_size=3), False),
        (dict(memory_size=4, latent_size=0), False),
        (dict(memory_size=4, latent_size=2, classes=3), False),
    ],
    ids=["rssm", "rssm, mixed", "stochastic", "deterministic", "categorical"],
)
def test_recorded_rewards_are_those_imagined(sizes, mixed):
    """Other noise, beliefs and candidates than when recorded, and weights moved in place."""
    torch.manual_seed(0)
    sight = Sight((2,), (0.0, 0.0), (1.0, 1.0), actions=1, reward=True, continuation=True)
    model = WorldModel(WorldModelConfig(**sizes, reward=SMALL_NET), sight)
    if mixed:
        mixed_precision(model)
    record = Recorded(lambda h, z, u: model.imagined_rewards(Memory(h, z), u))
    for seed, candidates in enumerate((5, 5, 7, 5)):
        torch.manual_seed(seed)
        belief = Memory(torch.randn(3, model.memory_size), torch.randn(3, model.latent_size))
        u = torch.randn(4, candidates, 3, 1)
        torch.manual_seed(seed)
        found = record(*belief, u)
        torch.manual_seed(seed)
        with torch.no_grad():
            assert torch.equal(found, model.imagined_rewards(belief, u))
            for p in model.parameters():
                p.mul_(0.97)
    assert len(record.records) == 2


@pytest.mark.parametrize("family", ["world_model", "keypoints", "image_vae"])
def test_a_fused_optimiser_moves_convolutions_as_the_program_does(family):
    """Kernels have channels last; a fused optimiser reads numbers in their order in memory."""
    T, B = 3, 2
    moved = []
    for way in (False, True):
        torch.manual_seed(0)
        if family == "image_vae":
            model: Any = ImageVAE(ImageVAEConfig(latent_size=2), Sight((3, 46, 46)))
            guide: Any = ImageVAEGuide(model)
        else:
            nets = dict.fromkeys(("prior", "posterior", "reward"), SMALL_NET)
            points = 3 if family == "keypoints" else None
            config = WorldModelConfig(
                memory_size=4, latent_size=2, filters=2, keypoints=points, **nets
            )
            model = WorldModel(config, Sight((3, 46, 46), actions=1))
            guide = WorldModelGuide(model)
        modules = torch.nn.ModuleList([model, guide])
        gradient = Gradient(ScaledELBO(scale=1e-3), model, guide, traced=way)
        optimizer = torch.optim.AdamW(modules.parameters(), lr=1e-3, fused=True)
        for step in range(2):
            image = torch.rand(T, B, 46, 46, 3, generator=torch.Generator().manual_seed(step))
            seen = torch.ones(T, B, dtype=torch.bool)
            batch = EpisodeBatch(image.movedim(-1, 2), torch.zeros(T, B, 1), None, None, seen)
            torch.manual_seed(step)
            gradient(batch)
            optimizer.step()
        moved.append([p.detach().clone() for p in modules.parameters()])
    kernels = [p for p in moved[0] if p.dim() == 4 and p.shape[1] > 1]
    assert any(not p.is_contiguous() for p in kernels)
    torch.testing.assert_close(moved[1], moved[0], rtol=0, atol=2e-5)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize("name", ["small", "closed_loop", "rssm", "categorical"])
def test_a_captured_record_is_the_program(name):
    program, captured = both(name)
    for way in (program, captured):
        for module in (way.bound.model, way.bound.guide):
            module.cuda()
    for seed in range(3):
        batch = recording(9, 4, seed=seed).to(torch.device("cuda"))
        assert_same(captured, program, batch, seed)
        with torch.no_grad():
            for p in program.parameters:
                p.mul_(0.97)


def test_a_capture_reads_what_it_is_given(monkeypatch):
    """Without a GPU: what a replay would do is done by hand, on the buffers that it would read."""
    program, record = both("closed_loop")
    stream = SimpleNamespace(wait_stream=lambda _: None)
    for attribute, value in {
        "Stream": lambda _: stream,
        "current_stream": lambda: stream,
        "stream": lambda _: nullcontext(),
        "device": lambda _: nullcontext(),
        "graph": lambda _: nullcontext(),
        "CUDAGraph": SimpleNamespace,
    }.items():
        monkeypatch.setattr(torch.cuda, attribute, value)
    monkeypatch.setattr(torch.random, "fork_rng", lambda _: nullcontext())
    record(recording(9, 4, seed=5))
    ((key, (found, names)),) = record.records.items()
    weights = [torch.ones((), dtype=torch.float64) for _ in range(2)]
    captured = traced._Captured(found, record.parameters, weights, list(recording(9, 4, seed=6)))

    def replay():
        with torch.no_grad():
            inputs = captured.inputs[:2], captured.inputs[2:]
            captured.outputs = found(record.parameters, *inputs)

    captured.graph.replay = replay
    record.records[key] = captured, names
    for seed in range(3):
        assert_same(record, program, recording(9, 4, seed=seed), seed)
