"""Networks that multiply in bfloat16: near the loss and gradient of float32, densities exact."""

import pytest
import torch
from variants import build, recording

from pyro_animacy import ScaledELBO
from pyro_animacy.infer.traced import Gradient
from pyro_animacy.infer.trainer import mixed_precision
from pyro_animacy.nets import StackConfig

WIDE = StackConfig(hidden=64, layers=2)
NAMES = ["small", "closed_loop", "rssm", "set", "categorical"]


def both(name):
    """The same model in float32, and in mixed precision.

    Weights are small, so that a roll-out of 30 steps in closed loop stays near: one that runs away
    (to 10^7 with those of the start) multiplies the rounding of every step by those after it.
    """
    found = []
    for mixed in (False, True):
        model, guide = build(name, prior=WIDE, posterior=WIDE, policy=WIDE)
        model.float(), guide.float()
        with torch.no_grad():
            for p in {*model.parameters(), *guide.parameters()}:
                p.mul_(0.7)
        if mixed:
            mixed_precision(model), mixed_precision(guide)
        found.append((model, guide))
    return found


def of(model, guide, batch, *, traced, **options):
    """Loss, terms, and the gradient as one vector."""
    gradient = Gradient(ScaledELBO(**options), model, guide, traced=traced)
    torch.manual_seed(0)
    loss = gradient(batch).item()
    gradients = [p.grad for p in gradient.parameters if p.grad is not None]
    assert all(g.dtype == torch.float32 for g in gradients)
    terms = {name: term.item() for name, term in gradient.elbo.terms.items()}
    return loss, terms, torch.cat([g.flatten() for g in gradients])


def walk(frames, size, missing=0.1):
    batch = recording(frames, size, missing=missing)
    return type(batch)(batch.position.float(), batch.observed)


@pytest.mark.parametrize("traced", [False, True], ids=["program", "record"])
@pytest.mark.parametrize("name", NAMES)
def test_near_the_gradient_of_float32(name, traced):
    """Also over many steps, whose parts of a weight's gradient are added in float32."""
    batch = walk(34 if name == "closed_loop" else 18, 4)
    (loss, _, exact), (rounded, _, gradient) = (of(*m, batch, traced=traced) for m in both(name))
    assert 0 < abs(rounded - loss) < 0.01 * abs(loss)
    assert 0 < (gradient - exact).norm() < 0.05 * exact.norm()


def test_a_small_kl_is_not_lost():
    """In bfloat16 itself a KL of a few hundredths of a nat would be nothing."""
    batch, kls = walk(10, 32, missing=0.0), []
    for model, guide in both("small"):
        with torch.no_grad():
            for p in guide.parameters():
                p.mul_(0.2)
        kls.append(of(model, guide, batch, traced=False, free_nats=1e-3)[1]["latent"])
    exact, rounded = kls
    assert 0 < exact < 0.5 * batch.observed[:, :, 0].sum()
    assert rounded == pytest.approx(exact, rel=0.05)


def test_without_a_gradient_all_is_float32():
    batch = walk(12, 4)
    losses = []
    for model, guide in both("rssm"):
        torch.manual_seed(0)
        with torch.no_grad():
            losses.append(ScaledELBO().loss(model, guide, batch, score=True))
    assert losses[0] == losses[1]
