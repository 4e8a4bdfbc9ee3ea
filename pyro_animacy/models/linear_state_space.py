"""The linear-Gaussian state-space model, whose every posterior is known: the family's oracle.

    x_1 ~ N(m_1, P_1)
    x_{t+1} = A x_t + B u_t + N(0, Q)           u_t: the action taken after o_t, if there are any
    o_t = C x_t + d + N(0, R)

           u_1         u_2
            |           |
    x_1 ----+---> x_2 --+---> x_3 --->          latent
     |             |           |
     v             v           v
    o_1           o_2         o_3               observation

Filter and smoother are those of `pyro_animacy.models.kalman`; draws of the whole path given the
observations run the same two passes (Carter & Kohn, On Gibbs sampling for state space models,
Biometrika 81, 1994). A recurrent state-space model with these densities has this evidence and these
posteriors, so what bounds or approximates them is measured here.
"""

from typing import NamedTuple

import pyro
import torch
from torch import Tensor, nn

from pyro_animacy.errors import ConfigError, DataError
from pyro_animacy.models.kalman import (
    Belief,
    Emission,
    Filtered,
    Motion,
    Smoothed,
    advance,
    apply,
    backward,
    factor,
    predictive,
    smooth,
    stack,
    symmetric,
    update,
)


class Ahead(NamedTuple):
    """What comes 1, 2, ..., ``steps`` steps after a belief.

    Attributes:
        latent: p(x_{t+j} | what the belief knows): mean (steps, ..., X) and covariance.
        observation: Likewise of o_{t+j}: mean (steps, ..., O) and covariance (steps, ..., O, O).
    """

    latent: Belief
    observation: Belief


class Path(NamedTuple):
    """Draws of the process.

    Attributes:
        latent: x_t, (T, B, X).
        observation: o_t, (T, B, O).
    """

    latent: Tensor
    observation: Tensor


class LinearStateSpace(nn.Module):
    """A Pyro program like the others, in the precision of the matrices that it is built from.

    The matrices are buffers; those that require gradients get them. Actions are an array (T, B, U)
    whose row t is u_t, taken after o_t, so that its last row changes nothing; without actions u_t
    is 0. Of a batch whose row t is the action *before* frame t, give ``batch.action.roll(-1, 0)``.

    Args:
        transition_matrix: A, (X, X).
        transition_covariance: Q, (X, X), positive semi-definite.
        observation_matrix: C, (O, X).
        observation_covariance: R, (O, O), positive definite.
        initial_mean: m_1, (X,).
        initial_covariance: P_1, (X, X), positive semi-definite.
        control_matrix: B, (X, U); none: no actions.
        offset: d, (O,); none: 0.

    Raises:
        ConfigError: If shapes or types do not agree, or a covariance matrix is not one.
    """

    transition_matrix: Tensor
    transition_covariance: Tensor
    observation_matrix: Tensor
    observation_covariance: Tensor
    initial_mean: Tensor
    initial_covariance: Tensor
    control_matrix: Tensor
    offset: Tensor

    def __init__(
        self,
        *,
        transition_matrix: Tensor,
        transition_covariance: Tensor,
        observation_matrix: Tensor,
        observation_covariance: Tensor,
        initial_mean: Tensor,
        initial_covariance: Tensor,
        control_matrix: Tensor | None = None,
        offset: Tensor | None = None,
    ) -> None:
        super().__init__()
        C = observation_matrix
        if C.ndim != 2:
            raise ConfigError(f"observation_matrix has shape {tuple(C.shape)}; it must be (O, X)")
        O, X = C.shape  # noqa: E741
        B = C.new_zeros(X, 0) if control_matrix is None else control_matrix
        U = B.shape[-1] if B.ndim else 0
        for name, value, shape in (
            ("transition_matrix", transition_matrix, (X, X)),
            ("transition_covariance", transition_covariance, (X, X)),
            ("observation_matrix", C, (O, X)),
            ("observation_covariance", observation_covariance, (O, O)),
            ("initial_mean", initial_mean, (X,)),
            ("initial_covariance", initial_covariance, (X, X)),
            ("control_matrix", B, (X, U)),
            ("offset", C.new_zeros(O) if offset is None else offset, (O,)),
        ):
            _check_matrix(name, value, shape, C.dtype)
            self.register_buffer(name, value)
        for name in ("transition_covariance", "initial_covariance", "observation_covariance"):
            _check_covariance(name, getattr(self, name), positive=name.startswith("observation"))

    @property
    def motion(self) -> Motion:
        """A and Q."""
        return Motion(self.transition_matrix, self.transition_covariance)

    @property
    def emission(self) -> Emission:
        """C, d and R."""
        return Emission(self.observation_matrix, self.offset, self.observation_covariance)

    def forward(
        self, observation: Tensor, action: Tensor | None = None, observed: Tensor | None = None
    ) -> Tensor:
        """Declare every o_t at one site ``observation``, with its exact density given the past.

        The site is there to score a recording. To draw, use `sample`, `posterior_sample` or
        `predict`: with the site unconditioned, each o_t is drawn given the *recorded* past, and
        where it was not observed the draw means nothing.

        Args:
            observation: o_{1:T}, (T, B, O).
            action: u_{1:T}, (T, B, U).
            observed: (T, B, O) bool, which coordinates count; by default those that are not NaN.

        Returns:
            log p(o_t | o_{<t}), (T, B) nats.

        Raises:
            DataError: If shapes do not agree, or a value that counts is not finite.
        """
        o, seen = self._observations(observation, observed)
        result = self.filter(observation, action, observed)
        density = predictive(result.predicted, self.emission, seen)
        with pyro.plate("time", len(o), dim=-2), pyro.plate("trajectory", o.shape[1], dim=-1):
            pyro.sample("observation", density, obs=o)
        return result.log_evidence

    def filter(
        self, observation: Tensor, action: Tensor | None = None, observed: Tensor | None = None
    ) -> Filtered:
        """Beliefs about x_t given o_{<=t} and given o_{<t}; arguments as of `forward`."""
        o, seen = self._observations(observation, observed)
        shift = self._shift(action, o.shape[:2])
        X, batch = len(self.initial_mean), o.shape[1]
        belief = Belief(
            self.initial_mean.expand(batch, X), self.initial_covariance.expand(batch, X, X)
        )
        predicted, filtered = [], []
        for t in range(len(o)):
            predicted.append(belief)
            belief = update(belief, self.emission, o[t], seen[t])
            filtered.append(belief)
            belief = advance(belief, self.motion, shift[t])
        before, after = stack(predicted), stack(filtered)
        return Filtered(after, before, predictive(before, self.emission, seen).log_prob(o))

    def log_evidence(
        self, observation: Tensor, action: Tensor | None = None, observed: Tensor | None = None
    ) -> Tensor:
        """Return log p(o_{1:T}), (B,) nats; arguments as of `forward`."""
        return self.filter(observation, action, observed).log_evidence.sum(0)

    def smooth(
        self, observation: Tensor, action: Tensor | None = None, observed: Tensor | None = None
    ) -> Smoothed:
        """Beliefs about x_t given the whole recording o_{1:T}; arguments as of `forward`."""
        return smooth(self.filter(observation, action, observed), self.motion)

    @torch.no_grad()
    def posterior_sample(
        self,
        observation: Tensor,
        action: Tensor | None = None,
        observed: Tensor | None = None,
        *,
        draws: int = 1,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Draw whole paths x_{1:T} given o_{1:T}: filter forwards, sample backwards.

        Args:
            observation: As of `forward`.
            action: As of `forward`.
            observed: As of `forward`.
            draws: Number of paths of each trajectory.
            generator: Where random numbers come from; by default torch's own.

        Returns:
            (draws, T, B, X).
        """
        result = self.filter(observation, action, observed)
        (x, P), (x_ahead, _) = result.filtered, result.predicted
        G, V = backward(result, self.motion)
        noise = apply(factor(torch.cat([V, P[-1:]])), _randn(x.expand(draws, *x.shape), generator))
        path = [x[-1] + noise[:, -1]]
        for t in reversed(range(len(G))):
            path.append(x[t] + apply(G[t], path[-1] - x_ahead[t + 1]) + noise[:, t])
        return torch.stack(path[::-1], 1)

    @torch.no_grad()
    def sample(
        self,
        size: int,
        steps: int,
        action: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Path:
        """Draw ``size`` trajectories of ``steps`` steps, given their actions (steps, size, U)."""
        shift = self._shift(action, (steps, size))
        w = _randn(shift, generator)
        x = [self.initial_mean + w[0] @ factor(self.initial_covariance).T]
        q = w[1:] @ factor(self.transition_covariance).T
        for t in range(steps - 1):
            x.append(x[-1] @ self.transition_matrix.T + shift[t] + q[t])
        latent = torch.stack(x)
        mean = latent @ self.observation_matrix.T + self.offset
        noise = _randn(mean, generator) @ factor(self.observation_covariance).T
        return Path(latent, mean + noise)

    def predict(self, belief: Belief, steps: int, action: Tensor | None = None) -> Ahead:
        """p(x_{t+j}) and p(o_{t+j}), j = 1..steps, from a belief about x_t.

        Args:
            belief: Such as one of `filter`'s: mean (..., X), covariance (..., X, X).
            steps: How far ahead, at least 1.
            action: u_t, ..., u_{t+steps-1}, (steps, ..., U).

        Returns:
            Marginal moments of each step ahead.
        """
        shift = self._shift(action, (steps, *belief.mean.shape[:-1]))
        beliefs = []
        for t in range(steps):
            belief = advance(belief, self.motion, shift[t])
            beliefs.append(belief)
        latent, C = stack(beliefs), self.observation_matrix
        covariance = symmetric(C @ latent.covariance @ C.T + self.observation_covariance)
        return Ahead(latent, Belief(latent.mean @ C.T + self.offset, covariance))

    def multistep_evidence(
        self,
        observation: Tensor,
        distance: int,
        action: Tensor | None = None,
        observed: Tensor | None = None,
    ) -> Tensor:
        """PlaNet's multi-step density log p_d(o_{1:T}), exactly.

            p_d(o_{1:T}) = int prod_t p(x_t | x_{t-d}) p(o_t | x_t) dx_{1:T}

        (Hafner et al., Learning Latent Dynamics for Planning from Pixels, 2019, equations 5 and 6),
        where the first d states have their marginal p(x_t). These are d interleaved chains, each
        with the law of every d-th state, so p_d(o_{1:T}) is the product over them of the evidence
        of every d-th observation: one filter that leaves out the others.

        Args:
            observation: As of `forward`.
            distance: d, at least 1; with 1 it is the evidence itself.
            action: As of `forward`.
            observed: As of `forward`.

        Returns:
            log p(o_t | o_{t-d}, o_{t-2d}, ...), (T, B) nats.
        """
        if distance < 1:
            raise ConfigError(f"distance is {distance}; it must be at least 1")
        o, seen = self._observations(observation, observed)
        steps, batch, _ = o.shape
        shift = torch.arange(steps, device=o.device)[:, None] % distance
        chain = shift == torch.arange(distance, device=o.device)  # (T, d)
        seen = (seen[:, None] & chain[:, :, None, None]).flatten(1, 2)
        u = None if action is None else action.repeat(1, distance, 1)
        evidence = self.filter(o.repeat(1, distance, 1), u, seen).log_evidence
        return evidence.view(steps, distance, batch).sum(1)

    def _observations(self, observation: Tensor, observed: Tensor | None) -> tuple[Tensor, Tensor]:
        """Check o (T, B, O): it with 0 where not observed, and what was observed (T, B, O)."""
        O = len(self.offset)  # noqa: E741
        if observation.ndim != 3 or observation.shape[-1] != O or not len(observation):
            raise DataError(
                f"observation has shape {tuple(observation.shape)}; it must be (T, B, {O}), T >= 1"
            )
        seen = ~observation.isnan() if observed is None else observed
        if seen.shape != observation.shape or seen.dtype != torch.bool:
            raise DataError(
                f"observed is {seen.dtype} of shape {tuple(seen.shape)}; it must be bool of the "
                f"observation's shape {tuple(observation.shape)}"
            )
        o = torch.where(seen, observation, 0).to(self.offset)
        _check_finite("observation", o, "mark what is missing as not observed")
        return o, seen

    def _shift(self, action: Tensor | None, shape: tuple[int, ...]) -> Tensor:
        """B u_t, (*shape, X); the shape begins with the number of steps."""
        if shape[0] < 1:
            raise ConfigError(f"steps is {shape[0]}; it must be at least 1")
        X, U = self.control_matrix.shape
        if action is None:
            return self.offset.new_zeros(*shape, X)
        if action.shape != (*shape, U) or not U:
            raise DataError(
                f"action has shape {tuple(action.shape)}; it must be "
                + (str((*shape, U)) if U else "none, for the model has no control_matrix")
            )
        _check_finite("action", action, "where a trajectory is padded, fill in 0")
        return action.to(self.offset) @ self.control_matrix.T


def _randn(like: Tensor, generator: torch.Generator | None) -> Tensor:
    return torch.randn(like.shape, dtype=like.dtype, device=like.device, generator=generator)


def _check_finite(name: str, value: Tensor, mend: str) -> None:
    if not value.isfinite().all():
        t, b, *_ = (int(i) for i in (~value.isfinite()).nonzero()[0])
        raise DataError(f"{name} is not finite at step {t} of trajectory {b}; {mend}")


def _check_matrix(name: str, value: Tensor, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    if tuple(value.shape) != shape:
        raise ConfigError(f"{name} has shape {tuple(value.shape)}; it must be {shape}")
    if value.dtype != dtype or not dtype.is_floating_point:
        raise ConfigError(
            f"{name} is {value.dtype}; it must be the one floating type of all matrices"
        )
    if not value.isfinite().all():
        raise ConfigError(f"{name} is not finite; it must be numbers")


def _check_covariance(name: str, value: Tensor, positive: bool) -> None:
    matrix = value.detach()
    if not torch.allclose(matrix, matrix.T):
        raise ConfigError(f"{name} is not symmetric; it must be a covariance")
    values = torch.linalg.eigvalsh(matrix)
    tolerance = 10 * len(matrix) * torch.finfo(matrix.dtype).eps * float(values.abs().max())
    if values[0] < -tolerance or (positive and values[0] <= 0):
        wanted = "positive definite" if positive else "positive semi-definite"
        raise ConfigError(f"{name} has the eigenvalue {float(values[0]):.3g}; it must be {wanted}")
