"""Products of a record by oneDNN: the same, and only where they are large and plain."""

import pytest
import torch
from torch.fx.experimental.proxy_tensor import make_fx
from variants import build, recording

from pyro_animacy import Batch, ScaledELBO
from pyro_animacy.infer import onednn, traced
from pyro_animacy.infer.traced import Gradient
from pyro_animacy.nets import StackConfig

if not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
    pytest.skip("torch was built without oneDNN", allow_module_level=True)

LINEAR = torch.ops.mkldnn._linear_pointwise


def products(function, *given):
    """The function recorded and rewritten, and how many of its products are oneDNN's."""
    record = make_fx(function)(*given)
    onednn.multiply_by_onednn(record.graph)
    record.recompile()
    return record, count(record.graph)


def count(graph, operations=(LINEAR.default, LINEAR.binary)):
    return sum(node.target in operations for node in graph.nodes)


def normal(*shape, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(len(shape)), dtype=dtype)


def layer(x, W, b, g):
    """A layer, and its gradients to its input and its weight."""
    return torch.addmm(b, x, W.t()), g.mm(W), g.t().mm(x)


@pytest.mark.parametrize(
    ("rows", "width", "dtype", "found"),
    [
        (256, 128, torch.float32, 3),
        (255, 128, torch.float32, 0),  # too small to be worth it
        (256, 128, torch.float64, 0),
    ],
)
def test_a_layer_and_its_gradients(rows, width, dtype, found):
    given = [normal(*size, dtype=dtype) for size in ((rows, width), (width,) * 2, (width,))]
    given.append(normal(rows, width, dtype=dtype).flip(0))
    record, asked = products(layer, *given)
    assert asked == found
    for ours, expected in zip(record(*given), layer(*given), strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-4)


def test_a_slice_of_a_matrix_is_left():
    """Of it oneDNN has no fast product."""
    x, W = normal(512, 96), normal(128, 128)
    record, asked = products(lambda x, W: x.mm(W[:, :96].t()), x, W)
    assert asked == 0
    assert torch.equal(record(x, W), x.mm(W[:, :96].t()))


@pytest.mark.parametrize(
    ("of", "found"), [(lambda b: b, 1), (lambda b: b[0], 1), (lambda b: b[:1], 0)]
)
def test_what_is_added(of, found):
    """A sum so far, or a bias; what would be repeated otherwise is left."""
    x, W, b = normal(256, 128), normal(128, 128), of(normal(256, 128))
    record, asked = products(torch.addmm, b, x, W)  # W as it stands, not transposed
    assert asked == found
    torch.testing.assert_close(record(b, x, W), torch.addmm(b, x, W), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["small", "closed_loop", "set", "rssm"])
def test_a_training_step_is_the_same(name, monkeypatch):
    """With every product by oneDNN, as on a processor that gains by it, and with none."""
    wide = StackConfig(hidden=16, layers=2)
    model, guide = build(name, prior=wide, posterior=wide, policy=wide)
    model.float(), guide.float()
    batch = Batch(*(x.float() if x.is_floating_point() else x for x in recording(8, 12)))
    found, asked = [], []
    monkeypatch.setattr(onednn, "LEAST", 1)
    monkeypatch.setattr(traced, "SMALL", 0)  # so that gradients are added up where they stand
    rewrite = onednn.multiply_by_onednn

    def noted(graph):
        rewrite(graph)
        asked.append(count(graph))
        assert (name in ("closed_loop", "rssm")) == bool(count(graph, [LINEAR.binary]))

    monkeypatch.setattr(traced, "multiply_by_onednn", noted)
    for worth in (False, True):
        monkeypatch.setattr(traced, "worth_asking", lambda worth=worth: worth)
        gradient = Gradient(ScaledELBO(), model, guide, traced=True)
        torch.manual_seed(0)
        loss = gradient(batch)
        found.append([loss, *(p.grad for p in gradient.parameters if p.grad is not None)])
    assert len(asked) == 1
    assert asked[0] > 5
    for plain, ours in zip(*found, strict=True):
        torch.testing.assert_close(ours, plain, rtol=1e-3, atol=1e-4 * float(plain.abs().max() + 1))
