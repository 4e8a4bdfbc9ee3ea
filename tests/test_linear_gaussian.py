"""The baselines against numpy's least squares, scipy's density, and data they made."""

import numpy as np
import pytest
import torch
from scipy.stats import multivariate_normal

from pyro_animacy import LinearAutoregression, Scale, Windows, make_trajectories
from pyro_animacy.models import linear_gaussian
from pyro_animacy.models.linear_gaussian import Moments


def walk(frames=400, trajectories=3, seed=0, A=None):
    """AR(1) displacements of two bodies."""
    rng = np.random.default_rng(seed)
    A = np.diag([0.9, 0.5, -0.3, 0.1]) if A is None else A
    a = np.zeros((trajectories, frames, 4))
    for t in range(1, frames):
        noise = rng.normal(size=(trajectories, 4)) @ np.diag([1, 2, 0.5, 1])
        a[:, t] = a[:, t - 1] @ A.T + noise + 0.1
    return make_trajectories(a.cumsum(1).reshape(trajectories, frames, 2, 2), fps=10, resolution=0)


def windows(dataset, context=6):
    scale = Scale.of(dataset)
    return Windows(dataset, frames=context + 1, context=context, scale=scale, complete=True), scale


def rows(dataset, scale, order, context=6):
    """Design and target by plain loops over the recording."""
    X, Y = [], []
    for x in dataset["position"].to_numpy():
        a = np.diff(((x - scale.center) / scale.unit).reshape(len(x), -1), axis=0)
        for t in range(context - 1, len(a)):
            X.append(np.concatenate([[1.0], *(a[t - j] for j in range(1, order + 1))]))
            Y.append(a[t])
    return np.array(X), np.array(Y)


def test_of_many_windows_some_are_taken_evenly(monkeypatch):
    dataset = walk()
    w, scale = windows(dataset)
    monkeypatch.setattr(linear_gaussian, "MOST_WINDOWS", 500)
    model = LinearAutoregression.fit(2, *Moments.of(2, w, chunk=100))
    X, Y = rows(dataset, scale, 2)
    some = np.linspace(0, len(X) - 1, 500).round().astype(int)
    B = np.linalg.lstsq(X[some], Y[some], rcond=None)[0]
    np.testing.assert_allclose(model.coefficients.numpy(), B, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("order", [1, 3, 5])
def test_fit_is_least_squares(order):
    dataset = walk()
    w, scale = windows(dataset)
    model = LinearAutoregression.fit(order, *Moments.of(5, w, chunk=100))  # a lower one of them
    X, Y = rows(dataset, scale, order)
    coefficients = np.linalg.lstsq(X, Y, rcond=None)[0]
    residual = Y - X @ coefficients
    np.testing.assert_allclose(model.coefficients.numpy(), coefficients, atol=1e-5)
    covariance = residual.T @ residual / len(Y)
    np.testing.assert_allclose(model.covariance.numpy(), covariance, atol=1e-5)
    density = model(w.batch(torch.arange(len(w)))).numpy()
    expected = [
        multivariate_normal(x @ coefficients, covariance).logpdf(y)
        for x, y in zip(X, Y, strict=True)
    ]
    np.testing.assert_allclose(density, expected, atol=1e-3)


def test_constant_velocity_is_its_special_case():
    dataset = walk()
    w, scale = windows(dataset)
    model = LinearAutoregression.constant_velocity(*Moments.of(3, w, chunk=77))
    X, Y = rows(dataset, scale, 1)
    e = Y - X[:, 1:]
    np.testing.assert_allclose(model.covariance.numpy(), e.T @ e / len(e), atol=1e-5)
    assert torch.equal(model.coefficients[1:], torch.eye(4).double())


def test_recovers_what_made_the_data():
    A = np.array([[0.6, 0.2, 0, 0], [-0.2, 0.6, 0, 0], [0.3, 0, 0.4, 0], [0, 0.3, 0, 0.4]])
    w, _ = windows(walk(6000, 4, A=A))
    model = LinearAutoregression.fit(1, *Moments.of(1, w))
    deviation = np.array([1, 2, 0.5, 1])  # of the noise; no more than that of the regressors
    standard_error = deviation[:, None] / deviation / np.sqrt(4 * 6000)
    assert (np.abs(model.coefficients[1:].T.numpy() - A) < 5 * standard_error).all()


def test_a_body_at_rest_leaves_the_density_finite():
    dataset = walk()
    still = dataset["position"].copy()
    still[:, :, 1] = 3.0
    w, _ = windows(dataset.assign(position=still))
    for model in (
        LinearAutoregression.fit(5, *Moments.of(5, w)),
        LinearAutoregression.constant_velocity(*Moments.of(1, w)),
    ):
        assert model(w.batch(torch.arange(50))).isfinite().all()


def test_roll_out_has_the_mean_and_covariance_of_the_closed_form():
    """k = 1: a_t = b + A a_{t-1} + e, so x_t = (s_t, a_t) is a linear recursion."""
    A = np.array([[0.6, 0.2], [-0.3, 0.5]])
    b, Sigma = np.array([0.1, -0.2]), np.array([[1.0, 0.3], [0.3, 0.5]])
    coefficients = torch.from_numpy(np.vstack([b, A.T]))
    model = LinearAutoregression(coefficients, torch.from_numpy(Sigma))
    state = torch.tensor([[0.0, 1.0], [5.0, -2.0]]).double()
    last = torch.tensor([[1.0, 0.5], [-1.0, 2.0]]).double()
    torch.manual_seed(0)
    m, T = 4000, 6
    rolled = model.roll_out(state, [last], T, m).numpy()
    assert rolled.shape == (m, T, 2, 2)
    F = np.block([[np.eye(2), A], [np.zeros((2, 2)), A]])  # (s, a) -> (s + A a, A a)
    for row in range(2):
        mean = np.concatenate([state[row].numpy(), last[row].numpy()])
        covariance = np.zeros((4, 4))
        for t in range(T):
            mean = F @ mean + np.concatenate([b, b])
            covariance = F @ covariance @ F.T + np.kron(np.ones((2, 2)), Sigma)
            drawn, expected = rolled[:, t, row], covariance[:2, :2]
            deviation = np.sqrt(np.diag(expected))
            assert (np.abs(drawn.mean(0) - mean[:2]) < 4 * deviation / np.sqrt(m)).all()
            error = 4 * np.sqrt(2 / m) * np.outer(deviation, deviation)
            assert (np.abs(np.cov(drawn.T) - expected) < error).all()


def test_roll_out_goes_on_from_the_last_k_displacements(monkeypatch):
    dataset = walk()
    w, scale = windows(dataset)
    model = LinearAutoregression.fit(3, *Moments.of(3, w))
    x = ((dataset["position"].to_numpy() - scale.center) / scale.unit).reshape(3, 400, 4)[:, :9]
    a = np.diff(x, axis=1)
    monkeypatch.setattr(torch, "randn_like", torch.zeros_like)
    newest_first = [torch.from_numpy(a[:, -1 - j]) for j in range(3)]
    rolled = model.roll_out(torch.from_numpy(x[:, -1]), newest_first, 5, 1)[0].numpy()
    b, *blocks = np.split(model.coefficients.numpy(), [1, 5, 9])
    for t in range(5):
        move = b + sum(a[:, -1 - j] @ blocks[j] for j in range(3))
        a = np.concatenate([a, move[:, None]], 1)
        np.testing.assert_allclose(rolled[t], x[:, -1] + a[:, 8:].sum(1), atol=1e-9)


def test_last_step_is_the_density_that_forward_scores():
    w, _ = windows(walk())
    batch = w.batch(torch.arange(20))
    model = LinearAutoregression.fit(2, *Moments.of(2, w))
    policy, a = model.last_step(batch)
    assert torch.equal(policy.log_prob(a), model(batch))
