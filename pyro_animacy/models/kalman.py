"""The filter and the smoother of a linear-Gaussian state-space model, step by step.

    x_{t+1} ~ N(A x_t + shift_t, Q)             motion
    o_t ~ N(C x_t + d, R)                       emission

The filter is Kalman's in Joseph's form, the smoother that of Rauch, Tung & Striebel (Särkkä,
Bayesian Filtering and Smoothing, 2013, theorems 4.2 and 8.2). What they are the inference of is
`pyro_animacy.models.linear_state_space`.

A coordinate that was not observed is left out exactly: its row of C is zero, its error is zero, and
its noise is by itself with variance 1 / (2 pi), where a normal's density at its mean is 1.
"""

import math
from typing import NamedTuple

import torch
from pyro.distributions import MultivariateNormal
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor


class Motion(NamedTuple):
    """A and Q, each (X, X)."""

    matrix: Tensor
    covariance: Tensor


class Emission(NamedTuple):
    """C (O, X), d (O,) and R (O, O)."""

    matrix: Tensor
    offset: Tensor
    covariance: Tensor

    def of(self, seen: Tensor) -> tuple[Tensor, Tensor]:
        """C (..., O, X) and R (..., O, O), in which coordinates that were not seen say nothing.

        A normal of variance 1 / (2 pi) has the density 1 at its mean.
        """
        both = seen[..., :, None] & seen[..., None, :]
        alone = torch.diag_embed((~seen).to(self.offset) / (2 * math.pi))
        C = torch.where(seen[..., None], self.matrix, 0)
        return C, torch.where(both, self.covariance, 0) + alone


class Belief(NamedTuple):
    """Gaussian beliefs, one for each leading index.

    Attributes:
        mean: (..., X).
        covariance: (..., X, X).
    """

    mean: Tensor
    covariance: Tensor


class Filtered(NamedTuple):
    """What the forward pass gives.

    Attributes:
        filtered: p(x_t | o_{<=t}): mean (T, B, X), covariance (T, B, X, X).
        predicted: p(x_t | o_{<t}), likewise; at the first step N(m_1, P_1).
        log_evidence: log p(o_t | o_{<t}), (T, B) nats; 0 where nothing was observed.
    """

    filtered: Belief
    predicted: Belief
    log_evidence: Tensor


class Smoothed(NamedTuple):
    """What the backward pass gives.

    Attributes:
        latent: p(x_t | o_{1:T}): mean (T, B, X), covariance (T, B, X, X).
        cross_covariance: Cov(x_{t+1}, x_t | o_{1:T}), (T - 1, B, X, X); rows are x_{t+1}.
    """

    latent: Belief
    cross_covariance: Tensor


def advance(belief: Belief, motion: Motion, shift: Tensor) -> Belief:
    """p(x_{t+1}) from p(x_t) and the shift B u_t (..., X)."""
    A, Q = motion
    x, P = belief
    return Belief(x @ A.T + shift, symmetric(A @ P @ A.T + Q))


def update(belief: Belief, emission: Emission, observation: Tensor, seen: Tensor) -> Belief:
    """p(x_t | o_t) from p(x_t), in Joseph's form: a sum of squares stays positive.

    Args:
        belief: p(x_t).
        emission: Of o_t.
        observation: o_t (..., O).
        seen: Which coordinates of it were observed, (..., O).
    """
    x, P = belief
    C, R = emission.of(seen)
    e = torch.where(seen, observation - apply(C, x) - emission.offset, 0)
    S = torch.linalg.cholesky(symmetric(C @ P @ C.mT + R))
    K = torch.cholesky_solve(C @ P, S).mT
    left = torch.eye(P.shape[-1]).to(P) - K @ C
    return Belief(x + apply(K, e), symmetric(left @ P @ left.mT + K @ R @ K.mT))


def predictive(belief: Belief, emission: Emission, seen: Tensor) -> TorchDistributionMixin:
    """The density of o_t (..., O) under p(x_t); 0 is the value of what was not seen."""
    C, R = emission.of(seen)
    mean = torch.where(seen, apply(C, belief.mean) + emission.offset, 0)
    S = torch.linalg.cholesky(symmetric(C @ belief.covariance @ C.mT + R))
    return MultivariateNormal(mean, scale_tril=S).mask(seen.any(-1))


def backward(result: Filtered, motion: Motion) -> tuple[Tensor, Tensor]:
    """G_t, V_t (T - 1, B, X, X) of x_t given x_{t+1} and o_{<=t}.

    That is N(x_{t|t} + G_t (x_{t+1} - x_{t+1|t}), V_t), with V_t in Joseph's form. The
    pseudo-inverse also serves where a part of the state is known without noise; it is of the
    correlations, so that no part is taken for known because its units are large.
    """
    A, Q = motion
    P, P_ahead = result.filtered.covariance[:-1], result.predicted.covariance[1:]
    size = P_ahead.diagonal(dim1=-2, dim2=-1).sqrt()
    size = size.where(size > 0, 1.0)
    each = size[..., :, None] * size[..., None, :]
    G = P @ A.T @ (torch.linalg.pinv(P_ahead / each, hermitian=True) / each)
    left = torch.eye(len(A)).to(P) - G @ A
    return G, symmetric(left @ P @ left.mT + G @ Q @ G.mT)


def smooth(result: Filtered, motion: Motion) -> Smoothed:
    """Beliefs about x_t given the whole recording, from what the filter gives."""
    (x, P), (x_ahead, _) = result.filtered, result.predicted
    G, V = backward(result, motion)
    belief = Belief(x[-1], P[-1])
    smoothed, cross = [belief], []
    for t in reversed(range(len(G))):
        later = belief
        mean = x[t] + apply(G[t], later.mean - x_ahead[t + 1])
        belief = Belief(mean, symmetric(V[t] + G[t] @ later.covariance @ G[t].mT))
        smoothed.append(belief)
        cross.append(later.covariance @ G[t].mT)
    return Smoothed(stack(smoothed[::-1]), torch.stack(cross[::-1]) if cross else V)


def apply(matrix: Tensor, vector: Tensor) -> Tensor:
    """Matrix (..., N, M) times vector (..., M)."""
    return (matrix @ vector[..., None])[..., 0]


def symmetric(matrix: Tensor) -> Tensor:
    """The matrix without the asymmetry of rounding errors."""
    return (matrix + matrix.mT) / 2


def factor(covariance: Tensor) -> Tensor:
    """L with L L' = the covariance, which may be singular."""
    values, vectors = torch.linalg.eigh(covariance)
    return vectors * values.clamp(min=0).sqrt()[..., None, :]


def stack(beliefs: list[Belief]) -> Belief:
    """Beliefs of successive steps as one, time first."""
    means, covariances = zip(*beliefs, strict=True)
    return Belief(torch.stack(means), torch.stack(covariances))
