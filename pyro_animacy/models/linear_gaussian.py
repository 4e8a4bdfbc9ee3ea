"""Linear-Gaussian autoregression of the displacement: the baseline. Read this model first.

    a_t ~ N( b + sum_{j=1..k} A_j a_{t-j}, Sigma ),        s_{t+1} = s_t + a_t

with a full Sigma over all bodies' coordinates, fitted by maximum likelihood, which is least squares
(Luetkepohl, New Introduction to Multiple Time Series Analysis, 2005, section 3.2 and 3.4).
Constant velocity is the special case k = 1, b = 0, A_1 = I.

Of bodies each by itself, one A and one Sigma for all that are alike, it is the same with blocks
(`LinearAutoregression.each`): what a set of bodies is compared with, of which some may be absent.
"""

from collections.abc import Sequence
from typing import NamedTuple

import pyro
import torch
from pyro.distributions import MultivariateNormal
from torch import Tensor, nn

from pyro_animacy.data.windows import Batch, Windows, evenly
from pyro_animacy.progress import tqdm

MOST_WINDOWS = 2**20  # used in a fit
EACH = "_each"  # behind the name of a baseline of every body by itself


class Moments(NamedTuple):
    """Sums over windows, with X = (1, a_{t-1}, ..., a_{t-k}); a lower order's are its corners.

    Attributes:
        X_X: X^T X, (1 + k D, 1 + k D).
        X_a: X^T a_t, (1 + k D, D).
        a_a: a_t^T a_t, (D, D).
        number: Of the windows.
    """

    X_X: Tensor
    X_a: Tensor
    a_a: Tensor
    number: int

    @classmethod
    def of(
        cls,
        order: int,
        windows: Windows,
        scenes: Sequence[Sequence[int]] | None = None,
        alike: Sequence[Sequence[int]] = (),
        *,
        chunk: int = 65_536,
        progress: bool = False,
    ) -> list["Moments"]:
        """Those of windows of one step whose context is ``order + 1`` frames or more.

        They are accumulated over chunks, in float64, so that memory does not grow with the data. If
        there are more than 2^20 windows, that many are taken, evenly spaced.

        Args:
            order: k.
            windows: Complete windows.
            scenes: Bodies that are taken together; by default all.
            alike: Bodies that are alike, of which every one is taken by itself, where it was
                observed.
            chunk: How many windows are looked at together.
            progress: Show a progress bar.

        Returns:
            Those of ``scenes``, and then of ``alike``.
        """
        scenes = [range(windows.bodies)] if scenes is None else scenes
        chosen = torch.from_numpy(evenly(len(windows), MOST_WINDOWS))
        sums, numbers = [torch.zeros(())] * len([*scenes, *alike]), [0] * len([*scenes, *alike])
        parts = chosen.split(chunk)
        for which in tqdm(parts, "baselines", unit="part", disable=not progress, delay=1):
            x, seen = (part.unflatten(-1, (-1, windows.axes)) for part in windows.batch(which))
            moves = x.double().diff(dim=0)  # (frames, windows, bodies, axes)
            for i, some in enumerate(scenes):
                both = torch.cat(_design(moves[:, :, [*some]].flatten(2), order), 1)
                sums[i], numbers[i] = sums[i] + both.T @ both, numbers[i] + len(both)
            for i, some in enumerate(alike, len(scenes)):
                known = seen[:, :, [*some]].all(-1).all(0)
                both = torch.cat(_design(moves[:, :, [*some]][:, known], order), 1)
                sums[i], numbers[i] = sums[i] + both.T @ both, numbers[i] + len(both)
        return [cls.cut(x, order, number) for x, number in zip(sums, numbers, strict=True)]

    @classmethod
    def cut(cls, both: Tensor, order: int, number: int) -> "Moments":
        """Those in (X, a_t)^T (X, a_t), (1 + (k + 1) D, 1 + (k + 1) D)."""
        at = 1 + (len(both) - 1) * order // (order + 1)
        return cls(both[:at, :at], both[:at, at:], both[at:, at:], number)


class LinearAutoregression(nn.Module):
    """AR(k) of the joint displacement, a Pyro program like the others.

    Attributes:
        coefficients: (1 + k D, D), the intercept b over the transposed A_1, ..., A_k.
        covariance: (D, D), Sigma.
    """

    coefficients: Tensor
    covariance: Tensor

    def __init__(self, coefficients: Tensor, covariance: Tensor) -> None:
        super().__init__()
        self.register_buffer("coefficients", coefficients)
        self.register_buffer("covariance", covariance)
        self.history = 1 + (len(coefficients) - 1) // len(covariance)

    @classmethod
    def fit(cls, order: int, moments: Moments) -> "LinearAutoregression":
        """Fit AR(``order``), of windows of that order or more."""
        X_X, X_a, a_a, N = moments
        size = 1 + order * len(a_a)
        X_X, X_a = X_X[:size, :size], X_a[:size]
        # A body that never moves makes the Gram matrix singular: the least-norm solution is used.
        coefficients = torch.linalg.lstsq(X_X, X_a, driver="gelsd").solution
        return cls(coefficients, _positive((a_a - coefficients.T @ X_a) / N))

    @classmethod
    def constant_velocity(cls, moments: Moments) -> "LinearAutoregression":
        """Fit Sigma of a_t ~ N(a_{t-1}, Sigma)."""
        X_X, X_a, a_a, N = moments
        D = len(a_a)
        coefficients = torch.cat([torch.zeros(1, D), torch.eye(D)]).double()
        before, across = X_X[1 : 1 + D, 1 : 1 + D], X_a[1 : 1 + D]
        return cls(coefficients, _positive((a_a - across - across.T + before) / N))

    @classmethod
    def each(
        cls, alone: Sequence["LinearAutoregression"], types: Sequence[int]
    ) -> "LinearAutoregression":
        """Bodies that move each by itself: that of one body for each type, as blocks.

        Args:
            alone: Of one body of each type.
            types: Of each body of the scene.
        """
        size = len(alone[0].covariance)
        N, k = len(types), alone[0].history - 1
        coefficients = torch.zeros(1 + k * N * size, N * size).double()
        lags = coefficients[1:].view(k, N, size, N, size)  # from body and axis to body and axis
        covariance = torch.zeros(N, size, N, size).double()
        for i, of in enumerate(types):
            b, A = alone[of].coefficients[0], alone[of].coefficients[1:]
            coefficients[0].view(N, size)[i] = b
            lags[:, i, :, i] = A.view(k, size, size)
            covariance[i, :, i] = alone[of].covariance
        return cls(coefficients, covariance.view(N * size, N * size))

    def alone(self, body: int, bodies: int) -> "LinearAutoregression":
        """That of one of so many bodies, each of which moves by itself."""
        size, k = len(self.covariance) // bodies, self.history - 1
        own = slice(body * size, (body + 1) * size)
        lags = self.coefficients[1:].view(k, bodies, size, -1)[:, body, :, own].flatten(0, 1)
        coefficients = torch.cat([self.coefficients[:1, own], lags])
        return LinearAutoregression(coefficients, self.covariance[own, own])

    def forward(self, batch: Batch) -> Tensor:
        """Declare the last step of each window (frames, B, D); returns log p(a_t | past), (B,).

        Where only some bodies were observed it is the marginal density of these, which must not
        depend on the others' past (`each`).
        """
        policy, a = self.last_step(batch)
        with pyro.plate("trajectory", len(a)):
            seen = batch.observed[-1]
            if seen.all():
                pyro.sample("action", policy, obs=a)
                return policy.log_prob(a)
            log_prob = _marginal(policy, a, seen)
            pyro.factor("action", log_prob)
            return log_prob

    def last_step(self, batch: Batch) -> tuple[MultivariateNormal, Tensor]:
        """p(a_t | past) of the last step of each window (frames, B, D), and the a_t recorded."""
        X, a = _design(batch.position.double().diff(dim=0), self.history - 1)
        return MultivariateNormal(X @ self.coefficients, self.covariance), a

    @torch.no_grad()
    def roll_out(self, state: Tensor, actions: Sequence[Tensor], steps: int, draws: int) -> Tensor:
        """Draw s_{1..T} from torch's global generator: free motion, no walls.

        Args:
            state: s_0 (B, D).
            actions: The k displacements before it, newest first, each (B, D).
            steps: Number of steps T.
            draws: Number of draws of each.

        Returns:
            (draws, T, B, D) in float64, in model units as the arguments.
        """
        b, A = self.coefficients[0].double(), self.coefficients[1:].double()
        factor = torch.linalg.cholesky(self.covariance.double())
        past = torch.cat([a.double() for a in actions], -1).expand(draws, -1, -1)
        s = state.double().expand(draws, -1, -1)
        rolled = s.new_empty(draws, steps, *state.shape)
        for t in range(steps):
            a = b + past @ A + torch.randn_like(s) @ factor.T
            s = s + a
            past = torch.cat([a, past], -1)[..., : len(A)]  # newest first, k of them
            rolled[:, t] = s
        return rolled


def _marginal(policy: MultivariateNormal, a: Tensor, seen: Tensor) -> Tensor:
    """Log density (B,) of the coordinates of a (B, D) that were seen (B, D)."""
    found = torch.empty(len(a), dtype=a.dtype, device=a.device)
    patterns, owner = seen.unique(dim=0, return_inverse=True)
    for i, some in enumerate(patterns):
        rows = (owner == i).nonzero()[:, 0]
        mean, covariance = policy.loc[rows][:, some], policy.covariance_matrix[0][some][:, some]
        found[rows] = MultivariateNormal(mean, covariance).log_prob(a[rows][:, some])
    return found


def _design(moves: Tensor, order: int) -> tuple[Tensor, Tensor]:
    """X = (1, a_{t-1}, ..., a_{t-k}) (B, 1 + k D) and a_t (B, D), of displacements up to a_t."""
    past = [moves[-1 - j] for j in range(1, order + 1)]
    return torch.cat([torch.ones_like(moves[-1][:, :1]), *past], 1), moves[-1]


def _positive(covariance: Tensor) -> Tensor:
    """The covariance with rounding errors removed, so that it has a Cholesky factor."""
    symmetric = (covariance + covariance.T) / 2
    least = 1e-10 * symmetric.diagonal().mean().clamp(min=1e-12)
    values, vectors = torch.linalg.eigh(symmetric)
    return vectors @ torch.diag(values.clamp(min=least)) @ vectors.T
