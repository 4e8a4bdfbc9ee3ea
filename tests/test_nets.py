"""Networks against the same maths written out per sample."""

import pytest
import torch
from torch.nn import functional as F  # noqa: N812
from torch.utils._python_dispatch import TorchDispatchMode

from pyro_animacy.nets import FixedScaleNormal, Stack, StackConfig


def by_hand(stack, x, weight_of):
    """One sample x (inputs,) through the layers, whose weights (in, out) and biases are given."""
    h = x
    for index in range(len(stack.layers)):
        if index:
            h = F.elu(h)
            if stack.config.layer_norm:
                h = (h - h.mean()) / (h.var(unbiased=False) + 1e-5).sqrt()
            if stack.repeat:
                h = torch.cat([x[: stack.repeat], h])
        weight, bias = weight_of(stack.layers[index])
        h = h @ weight + bias
    return h


@pytest.mark.parametrize("layer_norm", [False, True])
@pytest.mark.parametrize("repeat_input", [False, True])
@pytest.mark.parametrize("experts", [1, 3])
@pytest.mark.parametrize("blend", ["weights", "outputs"])
@pytest.mark.parametrize("layers", [0, 1, 3])
def test_stack(layers, blend, experts, repeat_input, layer_norm):
    """Blended weights: each sample has its own matrix, the gate's mean of the experts' matrices."""
    torch.manual_seed(0)
    config = StackConfig(6, layers, "elu", repeat_input, experts, blend, 4, layer_norm)
    stack = Stack(5, 4, config, repeat=2).double()
    x = torch.randn(2, 3, 5, dtype=torch.float64)
    for index in [(0, 0), (1, 2)]:
        if experts == 1:
            expected = by_hand(stack, x[index], lambda f: (f.weight.T, f.bias))
        else:
            g = stack.gate(x[index])
            assert g.sum().item() == pytest.approx(1)
            if blend == "weights":
                expected = by_hand(
                    stack,
                    x[index],
                    lambda f, g=g: (torch.tensordot(g, f.weight, 1), g @ f.bias),
                )
            else:
                each = [
                    by_hand(stack, x[index], lambda f, e=e: (f.weight[e], f.bias[e]))
                    for e in range(experts)
                ]
                expected = g @ torch.stack(each)
        torch.testing.assert_close(stack(x)[index], expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("config", [
    StackConfig(6, 2), StackConfig(6, 0), StackConfig(6, 3, layer_norm=True),
    StackConfig(6, 2, repeat_input=True), StackConfig(6, 2, experts=3),
])  # fmt: skip
@pytest.mark.parametrize("shape", [(), (4,), (2, 4)])
def test_what_draws_share_is_as_if_repeated(shape, config):
    """The same values and gradients, also to what is shared."""
    torch.manual_seed(0)
    stack = Stack(5, 4, config, repeat=2).double()
    x, c = torch.randn(7, *shape, 2).double(), torch.randn(*shape, 3).double()
    inputs = [x.requires_grad_(), c.requires_grad_(), *stack.parameters()]
    one, other = stack(x, c), stack(torch.cat([x, c.expand(7, *shape, 3)], -1))
    torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)
    found = [torch.autograd.grad(out.square().sum(), inputs) for out in (one, other)]
    torch.testing.assert_close(*found, rtol=1e-11, atol=1e-11)


def test_scored_first_in_inference_mode_it_is_trained_after():
    """A scale that is given is one tensor for all who ask, whatever mode the first was in."""
    torch.manual_seed(0)
    prior, x = FixedScaleNormal(torch.nn.Linear(2, 3), 0.0625), torch.randn(4, 2)
    with torch.inference_mode():
        scored = prior(x).log_prob(torch.zeros(3))
    found = prior(x).log_prob(torch.zeros(3))
    found.sum().backward()
    torch.testing.assert_close(found, scored)
    assert prior.network.weight.grad.abs().min() > 0


def test_no_hidden_layer_is_affine():
    stack = Stack(3, 2, StackConfig(layers=0)).double()
    x, y = torch.randn(2, 4, 3, dtype=torch.float64)
    middle = (stack(x) + stack(y)) / 2
    torch.testing.assert_close(stack((x + y) / 2), middle, rtol=1e-12, atol=1e-12)


class Copies(TorchDispatchMode):
    """Counts copies of tensors."""

    def __init__(self):
        super().__init__()
        self.found = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.found += func.overloadpacket in (torch.ops.aten.copy_, torch.ops.aten.as_strided)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("experts", [1, 3])
@pytest.mark.parametrize("shape", [(7,), (4, 7), (2, 4, 7)])
def test_activations_in_place_copy_no_gradient(shape, experts):
    """As autograd does where a view is written to; the gradient is that of rows one by one."""
    torch.manual_seed(0)
    stack = Stack(5, 4, StackConfig(6, 2, experts=experts)).double()
    x = torch.randn(*shape, 5, dtype=torch.float64)
    with Copies() as copies:
        found = torch.autograd.grad(stack(x).square().sum(), stack.parameters())
    assert copies.found == 0
    rows = sum(stack(row).square().sum() for row in x.flatten(0, -2))
    expected = torch.autograd.grad(rows, stack.parameters())
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
