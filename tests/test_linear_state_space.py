"""The filter and smoother against one joint normal over every state and observation."""

import math

import numpy as np
import pyro
import pytest
import torch
from pyro import poutine
from pyro.distributions import GaussianHMM, MultivariateNormal
from scipy.stats import multivariate_normal
from torch.func import functional_call

from pyro_animacy.errors import ConfigError, DataError
from pyro_animacy.models.linear_state_space import Belief, LinearStateSpace

T, B, X, O, U = 5, 3, 3, 2, 2  # noqa: E741
EXACT = {"rtol": 1e-9, "atol": 1e-10}


def covariance(size, rng, rank=None):
    L = rng.normal(size=(size, rank or size))
    return L @ L.T + (0 if rank else 0.1 * np.eye(size))


def matrices(seed=0, rank=None, control=True):
    """Matrices as tensors; with ``rank``, a transition noise and first state of that rank."""
    rng = np.random.default_rng(seed)
    numbers = {
        "transition_matrix": 0.6 * rng.normal(size=(X, X)),
        "transition_covariance": covariance(X, rng, rank),
        "observation_matrix": rng.normal(size=(O, X)),
        "observation_covariance": covariance(O, rng),
        "initial_mean": rng.normal(size=X),
        "initial_covariance": covariance(X, rng, rank),
        "offset": rng.normal(size=O),
    }
    if control:
        numbers["control_matrix"] = rng.normal(size=(X, U))
    return {name: torch.from_numpy(value) for name, value in numbers.items()}


def recording(seed=1, steps=T):
    """Observations, actions, and which coordinates were observed: a whole step was not, once."""
    rng = np.random.default_rng(seed)
    seen = rng.random((steps, B, O)) < 0.6
    seen[:2, 0] = [[True, False], [False, False]]
    o, u = rng.normal(size=(steps, B, O)), rng.normal(size=(steps, B, U))
    return torch.from_numpy(o), torch.from_numpy(u), torch.from_numpy(seen)


class Joint:
    """Mean and covariance of (x_1, ..., x_T, o_1, ..., o_T), from powers of A, for one trajectory.

    x_t = A^{t-1} x_1 + sum_{k<t} A^{t-1-k} (B u_k + q_k); no recursion is shared with the model.
    """

    def __init__(self, matrices, action, steps=T):
        m = {name: value.numpy() for name, value in matrices.items()}
        A, C, Q = m["transition_matrix"], m["observation_matrix"], m["transition_covariance"]
        power = [np.linalg.matrix_power(A, k) for k in range(steps)]
        F = np.block(
            [
                [power[t - k] if k <= t else np.zeros((X, X)) for k in range(steps)]
                for t in range(steps)
            ]
        )
        source = np.zeros((steps * X, steps * X))
        for t in range(steps):
            P = m["initial_covariance"] if t == 0 else Q
            source[t * X : (t + 1) * X, t * X : (t + 1) * X] = P
        drive = np.zeros((steps, X))
        drive[0] = m["initial_mean"]
        if action is not None:
            drive[1:] = action[: steps - 1] @ m["control_matrix"].T
        H = np.kron(np.eye(steps), C)
        x, xx = F @ drive.ravel(), F @ source @ F.T
        R = np.kron(np.eye(steps), m["observation_covariance"])
        self.steps = steps
        self.mean = np.concatenate([x, H @ x + np.tile(m["offset"], steps)])
        self.covariance = np.block([[xx, xx @ H.T], [H @ xx, H @ xx @ H.T + R]])

    def where(self, seen):
        """Rows of the observations that a mask (T, O) shows."""
        return self.steps * X + np.flatnonzero(seen)

    def given(self, o, seen):
        """Mean (T, X) and covariance (T, X, T, X) of all states given what was seen of o (T, O)."""
        x, y = np.arange(self.steps * X), self.where(seen)
        S, cross = self.covariance[np.ix_(y, y)], self.covariance[np.ix_(x, y)]
        gain = np.linalg.solve(S, cross.T).T if len(y) else cross
        mean = self.mean[x] + gain @ (o[seen] - self.mean[y])
        rest = self.covariance[np.ix_(x, x)] - gain @ cross.T
        return mean.reshape(-1, X), rest.reshape(self.steps, X, self.steps, X)

    def evidence(self, o, seen):
        y = self.where(seen)
        if not len(y):
            return 0.0
        return multivariate_normal(self.mean[y], self.covariance[np.ix_(y, y)]).logpdf(o[seen])


CASES = {
    "plain": {"control": False, "missing": False},
    "actions": {"control": True, "missing": False},
    "missing": {"control": True, "missing": True},
    "singular": {"control": True, "missing": True, "rank": 1},
}


@pytest.fixture(params=CASES, ids=str)
def case(request):
    """Matrices, the model, its arguments, and the joint normals, one for each trajectory."""
    options = dict(CASES[request.param])
    missing = options.pop("missing")
    m = matrices(**options)
    o, u, seen = recording()
    u = u if options["control"] else None
    seen = seen if missing else torch.ones_like(seen)
    joints = [Joint(m, None if u is None else u[:, b].numpy()) for b in range(B)]
    hidden = torch.where(seen, o, math.nan)  # what was not observed must not be looked at
    return LinearStateSpace(**m), (hidden, u, seen), joints


def each(case):
    """Trajectory, its joint normal, observations and mask in numpy."""
    _, (o, _, seen), joints = case
    for b, joint in enumerate(joints):
        yield b, joint, o[:, b].numpy(), seen[:, b].numpy()


def close(value, expected):
    np.testing.assert_allclose(value.numpy(), expected, **EXACT)


def test_filter_is_conditioning_the_joint(case):
    model, arguments, _ = case
    result = model.filter(*arguments)
    for b, joint, o, seen in each(case):
        before = 0.0
        for t in range(T):
            until = seen & (np.arange(T) <= t)[:, None]
            past = seen & (np.arange(T) < t)[:, None]
            for belief, known in ((result.filtered, until), (result.predicted, past)):
                mean, cov = joint.given(o, known)
                close(belief.mean[t, b], mean[t])
                close(belief.covariance[t, b], cov[t, :, t])
            now = joint.evidence(o, until)
            close(result.log_evidence[t, b], now - before)
            before = now


def test_smooth_is_conditioning_the_joint(case):
    model, arguments, _ = case
    latent, cross = model.smooth(*arguments)
    for b, joint, o, seen in each(case):
        mean, cov = joint.given(o, seen)
        close(latent.mean[:, b], mean)
        for t in range(T):
            close(latent.covariance[t, b], cov[t, :, t])
        for t in range(T - 1):
            close(cross[t, b], cov[t + 1, :, t])


def test_smoothing_does_not_depend_on_units():
    """As found: a part whose numbers are small was taken for known without noise."""
    m = matrices(control=False)
    o, _, seen = recording()
    plain = LinearStateSpace(**m).smooth(o, None, seen)[0]
    by = torch.logspace(0, -9, X, dtype=torch.float64)
    scaled = {
        **m,
        "transition_matrix": by[:, None] * m["transition_matrix"] / by,
        "transition_covariance": by[:, None] * m["transition_covariance"] * by,
        "observation_matrix": m["observation_matrix"] / by,
        "initial_mean": by * m["initial_mean"],
        "initial_covariance": by[:, None] * m["initial_covariance"] * by,
    }
    latent = LinearStateSpace(**scaled).smooth(o, None, seen)[0]
    torch.testing.assert_close(latent.mean / by, plain.mean, rtol=1e-6, atol=1e-6)
    each = by[:, None] * by
    torch.testing.assert_close(latent.covariance / each, plain.covariance, rtol=1e-6, atol=1e-6)


def test_log_evidence_is_that_of_the_joint(case):
    model, arguments, _ = case
    value = model.log_evidence(*arguments)
    for b, joint, o, seen in each(case):
        close(value[b], joint.evidence(o, seen))


def test_predict_is_conditioning_the_joint(case):
    """From the belief after two steps, and what it says of o too."""
    model, (o, u, seen), _ = case
    start = 1
    filtered = model.filter(o, u, seen).filtered
    belief = Belief(filtered.mean[start], filtered.covariance[start])
    later = None if u is None else u[start : T - 1]
    ahead = model.predict(belief, T - 1 - start, later)
    C, R = model.observation_matrix.numpy(), model.observation_covariance.numpy()
    for b, joint, x, mask in each(case):
        mean, cov = joint.given(x, mask & (np.arange(T) <= start)[:, None])
        for j in range(T - 1 - start):
            m, P = mean[start + 1 + j], cov[start + 1 + j, :, start + 1 + j]
            close(ahead.latent.mean[j, b], m)
            close(ahead.latent.covariance[j, b], P)
            close(ahead.observation.mean[j, b], C @ m + model.offset.numpy())
            close(ahead.observation.covariance[j, b], C @ P @ C.T + R)


def test_the_program_declares_the_evidence(case):
    model, arguments, _ = case
    with pyro.validation_enabled():
        trace = poutine.trace(model).get_trace(*arguments)
        trace.compute_log_prob()
    site = trace.nodes["observation"]
    assert {f.name: f.dim for f in site["cond_indep_stack"]} == {"time": -2, "trajectory": -1}
    assert torch.equal(site["log_prob"], trace.nodes["_RETURN"]["value"])
    close(site["log_prob"].sum(0), model.log_evidence(*arguments).numpy())


def hmm(m, action):
    """Pyro's own model of the same recording.

    Its states begin one transition before the first observation: here the identity, and each of
    the two has half of P_1.
    """
    A, Q = m["transition_matrix"], m["transition_covariance"]
    eye = torch.eye(X).to(A)
    moved = torch.zeros(B, T, X).to(A)
    if action is not None:
        moved[:, 1:] = (action[:-1] @ m["control_matrix"].T).transpose(0, 1)
    first = m["initial_covariance"] / 2
    transitions = torch.stack([eye] + [A.T] * (T - 1))
    noises = torch.stack([first] + [Q] * (T - 1))
    return GaussianHMM(
        MultivariateNormal(m["initial_mean"].expand(B, X), first),
        transitions,
        MultivariateNormal(moved, noises),
        m["observation_matrix"].T,
        MultivariateNormal(m["offset"], m["observation_covariance"]),
    )


@pytest.mark.parametrize("control", [False, True])
def test_evidence_and_last_belief_are_those_of_pyro_hmm(control):
    m = matrices(control=control)
    o, u, _ = recording()
    u = u if control else None
    model, reference = LinearStateSpace(**m), hmm(m, u)
    value = o.transpose(0, 1)
    close(model.log_evidence(o, u), reference.log_prob(value).numpy())
    last, expected = model.filter(o, u).filtered, reference.filter(value)
    close(last.mean[-1], expected.loc.numpy())
    close(last.covariance[-1], expected.covariance_matrix.numpy())


def test_nan_means_not_observed():
    m = matrices()
    o, u, seen = recording()
    model = LinearStateSpace(**m)
    hidden = torch.where(seen, o, math.nan)
    assert torch.equal(model.log_evidence(hidden, u), model.log_evidence(o, u, seen))


def test_padding_changes_nothing():
    """Neither evidence, to the bit, nor beliefs nor gradients, whatever the padding holds."""
    m = matrices()
    o, u, seen = recording()
    longer = torch.full((3, B, O), math.nan).double()
    padded = torch.cat([o, longer]), torch.cat([u, torch.ones(3, B, U).double()])
    mask = torch.cat([seen, torch.zeros(3, B, O, dtype=torch.bool)])
    results, gradients = [], []
    for arguments in ((o, u, seen), (*padded, mask)):
        leaves = {name: value.clone().requires_grad_() for name, value in m.items()}
        model = LinearStateSpace(**leaves)
        evidence = model.filter(*arguments).log_evidence
        results.append((evidence.detach(), model.smooth(*arguments)))
        evidence.sum().backward()
        gradients.append([leaf.grad for leaf in leaves.values()])
    assert torch.equal(results[0][0], results[1][0][:T])
    assert not results[1][0][T:].any()
    for one, other in zip(results[0][1].latent, results[1][1].latent, strict=True):
        torch.testing.assert_close(one, other[:T], rtol=1e-10, atol=1e-12)
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


def test_gradient_of_the_evidence():
    """Of every matrix, covariances by way of a factor, against finite differences."""
    m = matrices()
    o, u, seen = recording()
    model = LinearStateSpace(**m)
    factored = [name for name in m if name.endswith("covariance")]
    names = list(m)
    start = [torch.linalg.cholesky(v) if n in factored else v.clone() for n, v in m.items()]

    def evidence(*values):
        given = dict(zip(names, values, strict=True))
        given |= {name: given[name] @ given[name].T for name in factored}
        result = functional_call(model, given, (o, u, seen))
        return result.sum(0)

    assert torch.autograd.gradcheck(evidence, [v.requires_grad_() for v in start])


def errors_of_moments(draws, mean, cov):
    """Errors of the sample moments (N, D) in their own standard errors, for normal draws."""
    N = len(draws)
    by_mean = (draws.mean(0) - mean) / np.sqrt(np.diag(cov) / N)
    variance = np.outer(np.diag(cov), np.diag(cov)) + cov**2
    by_cov = (np.cov(draws.T) - cov) / np.sqrt(variance / N)
    return np.concatenate([by_mean, by_cov[np.triu_indices(len(cov))]])


def assert_standard(errors):
    """As large as they should be and no larger: the largest of n standard normals, n < 1000."""
    assert np.abs(errors).max() < 4.5
    assert 0.6 < np.sqrt((errors**2).mean()) < 1.5  # the errors of one draw are correlated


@pytest.mark.parametrize("size", [1_000, 100_000])
def test_sample_has_the_joint_moments_at_the_promised_rate(size):
    m = matrices()
    action = recording()[1][:, :1]
    joint = Joint(m, action[:, 0].numpy())
    model, generator = LinearStateSpace(**m), torch.Generator().manual_seed(size)
    path = model.sample(size, T, action.expand(T, size, U), generator)
    both = [x.transpose(0, 1).flatten(1).numpy() for x in path]
    assert_standard(errors_of_moments(np.concatenate(both, 1), joint.mean, joint.covariance))


@pytest.mark.parametrize("draws", [1_000, 100_000])
def test_posterior_sample_has_the_smoothed_moments_at_the_promised_rate(draws):
    m = matrices()
    o, u, seen = recording()
    model, generator = LinearStateSpace(**m), torch.Generator().manual_seed(draws)
    paths = model.posterior_sample(o, u, seen, draws=draws, generator=generator)
    assert paths.shape == (draws, T, B, X)
    for b in range(B):
        joint = Joint(m, u[:, b].numpy())
        mean, cov = joint.given(o[:, b].numpy(), seen[:, b].numpy())
        flat = paths[:, :, b].flatten(1).numpy()
        assert_standard(errors_of_moments(flat, mean.ravel(), cov.reshape(T * X, T * X)))


def test_posterior_sample_keeps_what_is_certain():
    """Without noise but at the first state, a path is that state moved on, in every draw."""
    m = matrices()
    m["transition_covariance"] = torch.zeros(X, X).double()
    o, u, seen = recording()
    paths = LinearStateSpace(**m).posterior_sample(o, u, seen, draws=20)
    A, moved = m["transition_matrix"], u @ m["control_matrix"].T
    for t in range(T - 1):
        torch.testing.assert_close(paths[:, t + 1], paths[:, t] @ A.T + moved[t])
    assert paths[:, 0].std(0).min() > 1e-3


@pytest.mark.parametrize("distance", [1, 2, 3, 7])
def test_multistep_evidence_is_that_of_interleaved_chains(distance):
    """Each chain built from its own A^d and Q_d, from p(x_t | x_{t-d}) as PlaNet writes it."""
    m = matrices()
    o, u, seen = recording()
    d, A, Bu = distance, m["transition_matrix"], u @ m["control_matrix"].T
    power = [torch.linalg.matrix_power(A, k) for k in range(d + T)]
    far = m | {
        "transition_matrix": power[d],
        "transition_covariance": sum(P @ m["transition_covariance"] @ P.T for P in power[:d]),
    }
    expected = torch.zeros(T, B).double()
    for r in range(min(d, T)):
        first = (power[r] @ m["initial_covariance"] @ power[r].T) + sum(
            (P @ m["transition_covariance"] @ P.T for P in power[:r]), torch.zeros(X, X).double()
        )
        for b in range(B):
            mean = power[r] @ m["initial_mean"]
            mean = mean + sum((power[r - 1 - k] @ Bu[k, b] for k in range(r)), mean * 0)
            moved = [
                sum(power[d - 1 - k] @ Bu[t + k, b] for k in range(d)) if t + d < T else mean * 0
                for t in range(r, T, d)
            ]
            chain = far | {"initial_mean": mean, "initial_covariance": first}
            chain["control_matrix"] = torch.eye(X).double()
            model = LinearStateSpace(**chain)
            every = slice(r, None, d)
            result = model(o[every, b, None], torch.stack(moved)[:, None], seen[every, b, None])
            expected[every, b] = result[:, 0]
    value = LinearStateSpace(**m).multistep_evidence(o, distance, u, seen)
    close(value, expected.numpy())


def test_looking_back_farther_costs_evidence_by_the_divergence():
    """E log p - E log p_d = KL(p || p_d) >= 0, in closed form, and its estimate agrees."""
    m = matrices(control=False)
    joint = Joint(m, None)
    y = joint.where(np.ones((T, O), bool))
    mean, S = joint.mean[y], joint.covariance[np.ix_(y, y)]
    step = np.arange(T * O) // O
    S_d = np.where((step[:, None] - step) % 2 == 0, S, 0)
    divergence = (
        np.trace(np.linalg.solve(S_d, S))
        - T * O
        + np.linalg.slogdet(S_d)[1]
        - np.linalg.slogdet(S)[1]
    ) / 2
    N, rng = 20_000, np.random.default_rng(0)
    o = torch.from_numpy(rng.multivariate_normal(mean, S, N).reshape(N, T, O)).transpose(0, 1)
    model = LinearStateSpace(**m)
    lost = (model.log_evidence(o) - model.multistep_evidence(o, 2).sum(0)).numpy()
    assert divergence > 0.1
    assert abs(lost.mean() - divergence) < 4 * lost.std() / math.sqrt(N)


def test_random_walk_in_noise_by_hand():
    """The local-level model with unit variances settles where P = (P + 1) / (P + 2)."""
    one = torch.ones(1, 1).double()
    model = LinearStateSpace(
        transition_matrix=one,
        transition_covariance=one,
        observation_matrix=one,
        observation_covariance=one,
        initial_mean=torch.zeros(1).double(),
        initial_covariance=one,
    )
    o = torch.linspace(-1, 1, 60).double().view(60, 1, 1)
    variance = model.filter(o).filtered.covariance[-1, 0, 0, 0]
    close(variance, (math.sqrt(5) - 1) / 2)


def test_stays_a_covariance_where_it_is_nearly_singular():
    """Seen to 1e-4, unknown to 1e4 at first, where P - K C P would lose all its digits."""
    model = LinearStateSpace(
        transition_matrix=torch.tensor([[1.0, 1], [0, 1]]).double(),
        transition_covariance=1e-10 * torch.eye(2).double(),
        observation_matrix=torch.tensor([[1.0, 0]]).double(),
        observation_covariance=torch.tensor([[1e-8]]).double(),
        initial_mean=torch.zeros(2).double(),
        initial_covariance=1e8 * torch.eye(2).double(),
    )
    path = model.sample(1, 2000, generator=torch.Generator().manual_seed(0))
    latent = model.smooth(path.observation).latent
    for P in (latent.covariance, model.filter(path.observation).filtered.covariance):
        assert torch.equal(P, P.mT)
        assert torch.linalg.eigvalsh(P).min() > 0
    spread = latent.covariance.diagonal(dim1=-2, dim2=-1).sqrt()
    standard = ((path.latent - latent.mean) / spread)[1:]
    assert 0.8 < float(standard.square().mean()) < 1.2


def test_one_step():
    m = matrices()
    o, u, seen = (x[:1] for x in recording())
    model = LinearStateSpace(**m)
    latent, cross = model.smooth(o, u, seen)
    assert cross.shape == (0, B, X, X)
    for one, other in zip(latent, model.filter(o, u, seen).filtered, strict=True):
        assert torch.equal(one, other)
    assert model.posterior_sample(o, u, seen, draws=2).shape == (2, 1, B, X)
    assert model.sample(4, 1).observation.shape == (1, 4, O)


def test_float32_is_kept():
    single = {name: value.float() for name, value in matrices().items()}
    o, u, seen = recording()
    value = LinearStateSpace(**single).log_evidence(o, u, seen)
    assert value.dtype == torch.float32
    unseen = ~seen.any(-1)
    assert unseen.any()
    assert not LinearStateSpace(**single)(o, u, seen)[unseen].any()
    exact = LinearStateSpace(**matrices()).log_evidence(o, u, seen)
    torch.testing.assert_close(value.double(), exact, rtol=1e-4, atol=1e-4)


def test_draws_repeat_with_their_generator():
    model = LinearStateSpace(**matrices())
    one, other = (model.sample(3, 4, generator=torch.Generator().manual_seed(5)) for _ in "ab")
    assert torch.equal(one.latent, other.latent)
    assert torch.equal(one.observation, other.observation)


@pytest.mark.parametrize(
    ("name", "change", "words"),
    [
        ("initial_mean", lambda v: v[:-1], r"initial_mean has shape \(2,\); it must be \(3,\)"),
        ("control_matrix", lambda v: v.T, r"control_matrix .*expected \(3, 3\)|control_matrix"),
        ("offset", lambda v: v.float(), "offset is torch.float32"),
        ("transition_matrix", lambda v: v * math.nan, "transition_matrix is not finite"),
        ("transition_covariance", lambda v: -v, "positive semi-definite"),
        ("observation_covariance", lambda v: 0 * v, "positive definite"),
        ("initial_covariance", lambda v: v + torch.eye(X).roll(1, 0), "not symmetric"),
        ("observation_matrix", lambda v: v[0], "observation_matrix has shape"),
    ],
)
def test_matrices_that_cannot_be_used(name, change, words):
    m = matrices()
    with pytest.raises(ConfigError, match=words):
        LinearStateSpace(**m | {name: change(m[name])})


def test_recordings_that_cannot_be_used():
    model = LinearStateSpace(**matrices())
    o, u, seen = recording()
    with pytest.raises(DataError, match=r"must be \(T, B, 2\)"):
        model.filter(o[..., :1], u)
    with pytest.raises(DataError, match="observation is not finite at step 2 of trajectory 1"):
        model.filter(
            o.index_put((torch.tensor(2), torch.tensor(1)), torch.tensor(math.inf).double()), u
        )
    with pytest.raises(DataError, match=r"observed is torch\.float64"):
        model.filter(o, u, seen.double())
    with pytest.raises(DataError, match=r"action has shape \(4, 3, 2\); it must be \(5, 3, 2\)"):
        model.filter(o, u[:-1])
    with pytest.raises(DataError, match="action is not finite at step 0 of trajectory 0"):
        model.filter(o, u * math.nan)
    with pytest.raises(DataError, match="no control_matrix"):
        LinearStateSpace(**matrices(control=False)).filter(o, u)
    with pytest.raises(ConfigError, match="distance is 0"):
        model.multistep_evidence(o, 0, u)
    with pytest.raises(ConfigError, match="steps is 0"):
        model.sample(2, 0)
