"""Categorical latents: G groups, each one of K classes, as one-hot vectors.

    z = (z_1, ..., z_G),    z_g ~ Categorical(p_g),    p_g = (1 - u) softmax(logits_g) + u / K

A draw is discrete, so its gradient is the straight-through one (Bengio, Leonard & Courville 2013):
the value is the one-hot draw, the gradient that of the probabilities,

    z = one_hot(k) + p - sg(p),        dz / dlogits = dp / dlogits,

as in DreamerV2 (Hafner et al. 2021, section 2, algorithm 1). With u > 0 (DreamerV3, Hafner et al.
2023: 0.01) no class has less than u / K, so KL(q || p) is at most G log(K / u).

Groups are independent: KL is the sum of the groups' KLs, which torch has in closed form.
"""

import math

import torch
from pyro.distributions import Independent, OneHotCategoricalStraightThrough
from torch import Tensor

from pyro_animacy.errors import ConfigError, require


class OneHot(OneHotCategoricalStraightThrough):
    """As its base, but drawn without inspecting the values of the probabilities or of the draw.

    `torch.multinomial` and `torch.nn.functional.one_hot` inspect them as a check, for which a GPU
    has to wait, and which a recorded step cannot do.
    """

    def sample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:  # noqa: B008
        """Draw one-hot vectors (*sample_shape, ..., K); a single draw is that of multinomial.

        Of K independent exponential times with rates p_k, the k-th is the first to end with
        probability p_k.
        """
        p = self.probs.expand(self._extended_shape(sample_shape)).detach()
        waited = torch.empty_like(p, memory_format=torch.contiguous_format).exponential_()
        k = (p / waited).argmax(-1, keepdim=True)
        return (k == torch.arange(p.shape[-1], device=p.device)).to(p)


def categorical(logits: Tensor, unimix: float = 0.0) -> Independent:
    """Return the distribution of G one-hot groups of K classes, with straight-through draws.

    Args:
        logits: (..., G, K), unnormalised log probabilities.
        unimix: u, share of the uniform distribution mixed into each group's probabilities. At 0
            a prior's class whose probability underflows (in float32 some 100 nats below the
            largest) makes the KL infinite.

    Returns:
        The distribution, of batch shape (...) and event shape (G, K).

    Raises:
        ConfigError: If ``unimix`` is not in [0, 1), or ``logits`` has no axis of groups.
    """
    require("", {"unimix": unimix}, ("unimix", 0 <= unimix < 1, "in [0, 1)"))
    if logits.dim() < 2:
        raise ConfigError(
            f"logits of a categorical latent have shape {tuple(logits.shape)}; it must be "
            "(..., groups, classes)"
        )
    if unimix:  # in logs, so that small probabilities keep their digits and gradients
        log_p = logits.log_softmax(-1) + math.log1p(-unimix)
        logits = torch.logaddexp(log_p, log_p.new_tensor(math.log(unimix / logits.shape[-1])))
    return OneHot(logits=logits).to_event(1)
