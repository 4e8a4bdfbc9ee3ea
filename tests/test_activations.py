"""Activation checkpointing: the same loss and gradient, from less that is kept."""

import pytest
import torch
from torch.autograd.graph import saved_tensors_hooks
from variants import CONFIGS, SET, build, recording

from pyro_animacy import ScaledELBO
from pyro_animacy.infer.trainer import checkpoint_activations
from pyro_animacy.nets import StackConfig

WIDE = StackConfig(hidden=64, layers=3)


def loss_and_gradients(model, guide, batch):
    torch.manual_seed(2)
    kept = 0

    def pack(x):
        nonlocal kept
        kept += x.numel()
        return x

    with saved_tensors_hooks(pack, lambda x: x):
        loss = ScaledELBO(kl_weight=0.3)(model, guide)(batch)
    parameters = [*model.parameters(), *guide.parameters()]
    return loss, torch.autograd.grad(loss, parameters, allow_unused=True), kept


@pytest.mark.parametrize("name", [*CONFIGS, *SET])
def test_the_same_gradient_from_less(name):
    model, guide = build(name, prior=WIDE, posterior=WIDE, policy=WIDE)
    batch = recording(12, 3, missing=0.1)
    loss, gradients, kept = loss_and_gradients(model, guide, batch)
    for module in (model, guide):
        checkpoint_activations(module)
    again, same, fewer = loss_and_gradients(model, guide, batch)
    torch.testing.assert_close(again, loss, rtol=1e-12, atol=0)
    torch.testing.assert_close(same, gradients, rtol=1e-10, atol=1e-12)
    assert fewer < kept / 2
