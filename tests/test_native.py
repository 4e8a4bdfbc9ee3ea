"""Torch's bindings beside the operators whose place they take."""

import pytest
import torch
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn import functional as F  # noqa: N812

from pyro_animacy.infer.native import _BINDINGS, call_natively


def step(x, weight):
    """Slices from either end and of any dimension, and what is written in place."""
    parts = x[:, -3:], x[1:3], x[..., 1:6:2], x[-2:, :, 1], x[:, :, -4:-1].transpose(0, 1)
    y = F.elu(F.linear(x[0], weight), inplace=True)
    last, *_ = y.split(2, -1)
    z = torch.cat([y, last], -1).sigmoid_().logsumexp(-1).add_(1)
    drawn = torch.empty(3, 2).normal_()
    where = torch.where(y > 0, y, y.new_zeros(()))
    sums = where.sum(), where.sum(0, keepdim=True), where.unsqueeze(0).expand(2, -1, -1).mean(0)
    return [*parts, z, drawn, *sums, y.view(2, -1).pow(2), 2 - y, y.clamp(-1, 1).exp().log()]


@pytest.mark.parametrize("whole", [False, True], ids=["parts", "functions"])
def test_bindings_give_what_operators_give(whole):
    """To the bit; functions such as the affine map are whole when recorded before dispatch."""
    torch.manual_seed(0)
    x, weight = torch.randn(4, 5, 6), torch.randn(4, 6)
    with torch.no_grad():
        record = make_fx(step, pre_dispatch=whole)(x, weight)
        torch.manual_seed(1)
        expected = record(x, weight)
        call_natively(record.graph)
        record.recompile()
        torch.manual_seed(1)
        found = record(x, weight)
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one, other)
        assert one.stride() == other.stride()
    left = {node.target for node in record.graph.nodes}
    assert not left & {*_BINDINGS, torch.ops.aten.slice.Tensor}
