"""Every recorded step under a model: draws of z_t, and what each says of the next displacement.

With draws z_k of a proposal r, and c_t what is known before step t,

    log p(a_t | c_t)  =  log E_r [ pi(a_t | c_t, z) p(z | c_t) / r(z) ]

and the same with one body's displacement in place of all: pi is a product over bodies given z_t.
Where each body has a latent of its own and they choose independently, so is the density, and draws
of z_t are weighted body by body, in `SceneModel.parts`.

Where no latent is carried on, steps are independent given the recorded states, and all are looked
at in one batch. Where z_{t-1} bears on z_t, c_t includes a draw of the past given the recording up
to it: K particles are moved by the guide, weighted by w_k = pi p / q and resampled at every step
(a particle filter), so that the mean of the weights of step t estimates p(a_t | a_{<t}), and their
product without bias p(a_{1:T}) (Maddison et al., Filtering Variational Objectives, 2017; Naesseth
et al., Variational Sequential Monte Carlo, 2018). With independent steps that is IWAE step by step.
"""

import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, Literal, NamedTuple

import torch
import xarray as xr
from pyro.distributions import Independent, Normal
from torch import Tensor

from pyro_animacy.data.windows import Batch, Scale, Windows, whole
from pyro_animacy.errors import ConfigError
from pyro_animacy.models.densities import PARAMETERS, base, family_of, log_prob_in_parts, rebuilt
from pyro_animacy.models.program import Evidence, Memory, MessengerGuide
from pyro_animacy.models.recorded import some_of, spread
from pyro_animacy.models.scene import SceneModel
from pyro_animacy.resting import Policy, RestingNormal, observed

Proposal = Literal["posterior", "prior", "defensive"]
PARTICLES_HELD = 1_048_576  # draws x steps of stretches looked at together


class Steps(NamedTuple):
    """Draws of z_t at every step of a batch, teacher forced.

    Attributes:
        prior: p(z_t | c_t), over the Z dimensions of the latent (or its groups), (T, B, Z); or
            (K, T, B, Z) where each draw has a past of its own.
        posterior: q(z_t | c_t, s~_{t+1}), likewise.
        latent: z_t drawn from the proposal r, (K, T, B, Z).
        log_ratio: log p(z_t | c_t) - log r(z_t) of each independent part, (K, T, B, parts).
        policy: pi(. | c_t, z_t), over (K, T, B, D), in model units.
        log_policy: log pi of each body's recorded displacement, (K, T, B, bodies); of the
            coordinates that were observed.
        shown: The recorded displacements, (T, B, D), 0 where not observed.
        seen: Whether each coordinate of the displacement was observed, and its context in full,
            (T, B, D).
    """

    prior: Any
    posterior: Any
    latent: Tensor
    log_ratio: Tensor
    policy: Policy
    log_policy: Tensor
    shown: Tensor
    seen: Tensor

    @property
    def log_weight(self) -> Tensor:
        """Log weight, pi(a_t | c_t, z) p(z | c_t) / r(z), of each part (K, T, B, parts)."""
        parts = self.log_ratio.shape[-1]
        return self.log_ratio + self.log_policy.unflatten(-1, (parts, -1)).sum(-1)

    @property
    def kl(self) -> Tensor:
        """KL(q(z_t | c_t, s~_{t+1}) || p(z_t | c_t)) of each latent dimension, (T, B, Z) nats."""
        kl = torch.distributions.kl_divergence(self.posterior, self.prior)
        return kl.mean(0) if kl.dim() == 4 else kl

    def latent_seen(self) -> Tensor:
        """Whether the guide saw anything of each latent dimension, (T, B, Z)."""
        parts = self.log_ratio.shape[-1]
        return spread(some_of(self.seen, parts), self.prior.batch_shape[-1])


@torch.no_grad()
def draw_steps(
    guide: MessengerGuide,
    batch: Batch,
    draws: int,
    proposal: Proposal = "posterior",
    axes: int = 2,
    heard: Batch | None = None,
) -> Steps:
    """Draw z_t at every step of a batch from the recorded context.

    Args:
        guide: The guide, bound to its model.
        batch: Windows of ``history + T`` frames; a model that remembers knows nothing before them.
        draws: K, the number of draws.
        proposal: r. ``posterior``: the guide's q, the sharpest for the joint displacement.
            ``prior``: p, for predictions that have not seen it. ``defensive``: draws from both,
            weighted by their mixture r = (q + p) / 2, so that no weight exceeds 2 pi: for a part
            of the displacement, of which q knows too much (Owen & Zhou 2000, section 3).
        axes: Coordinates of each body.
        heard: Of a set, what each body hears of the others, as of `SceneModel.evidence`.
    """
    model: SceneModel = guide.model  # type: ignore[assignment]
    if model.latent_remembered:
        drawn = _filtered(guide, batch, draws, proposal)
    else:
        drawn = _independent(guide, batch, draws, proposal, heard)
    of = model.recorded(batch)
    seen = of.seen
    shown = (of.target - of.state) * seen
    bodies = seen.shape[-1] // axes
    log_policy = log_prob_in_parts(observed(drawn.policy, seen), shown, bodies)
    return Steps(*drawn, log_policy=log_policy, shown=shown, seen=seen)


class Followed(NamedTuple):
    """A model run along a recording by its guide, one draw of the latents.

    Attributes:
        evidence: What each step showed, tensors of (T, B, ...).
        memory: m_t, likewise.
        prior: p(z_t | .), batch shape (T, B); None where the model has no latent.
        posterior: q(z_t | .), likewise.
        known: What the guide saw of the past of each step, (T, B, ...).
    """

    evidence: Evidence
    memory: Memory
    prior: Any
    posterior: Any
    known: Any


def follow(guide: MessengerGuide, batch: Batch, heard: Batch | None = None) -> Followed:
    """Run the guide's model along a recording, teacher forced."""
    model: SceneModel = guide.model  # type: ignore[assignment]
    with guide:
        evidence, memory = model.follow(batch, heard=heard)
    nodes = guide.trace.nodes
    if not model.latent_size:
        return Followed(evidence, memory, None, None, None)
    if "latent" in nodes:
        site = nodes["latent"]
        p, q, known = site["infer"]["prior"], site["fn"], site["infer"]["evidence"].context
        _scorable(p, q)
        return Followed(evidence, memory, p, q, known)
    sites = [nodes[f"latent_{t}"] for t in range(len(evidence.seen))]
    _scorable(sites[0]["infer"]["prior"], sites[0]["fn"])
    p, q = (
        rebuilt(of, torch.stack)
        for of in ([s["infer"]["prior"] for s in sites], [s["fn"] for s in sites])
    )
    known = torch.stack([s["infer"]["evidence"].context for s in sites])
    return Followed(evidence, memory, p, q, known)


def _scorable(prior: Any, posterior: Any) -> None:
    """Raise ConfigError where the densities of a latent are of families not known here."""
    for what, density in (("prior", prior), ("posterior", posterior)):
        if type(base(density)[0]) not in PARAMETERS:
            raise ConfigError(
                f"the {what} of the latent is {family_of(density)}; models of scenes are scored "
                f"with {', '.join(of.__name__ for of in PARAMETERS if of is not RestingNormal)}"
            )


def needs_gaussian_latent(model: SceneModel) -> None:
    """Raise ConfigError where a model has no latent, or one of classes."""
    if not model.latent_size:
        raise ConfigError("the model has no latent variable")
    if getattr(model.config, "classes", None):
        raise ConfigError("the latent variable is not Gaussian but of classes")


class _Drawn(NamedTuple):
    prior: Any
    posterior: Any
    latent: Tensor
    log_ratio: Tensor
    policy: Policy


def _proposed(p: Independent, q: Independent, draws: int, proposal: Proposal) -> Tensor:
    """Draws of r, (draws, ...)."""
    if proposal == "defensive":
        half = draws // 2
        return torch.cat([q.rsample((half,)), p.rsample((draws - half,))])
    r = q if proposal == "posterior" else p
    return r.rsample((draws,))  # `sample` would refuse scales that are not numbers


def _log_ratio(p: Independent, q: Independent, z: Tensor, proposal: Proposal, parts: int) -> Tensor:
    """Log p(z) - log r(z) of each part, for draws in front, (draws, ..., parts)."""
    log_p, log_q = (log_prob_in_parts(of, z, parts) for of in (p, q))
    if proposal == "defensive":
        half = len(z) // 2
        share = torch.tensor([half / len(z), 1 - half / len(z)]).log()
        return log_p - torch.logaddexp(share[0] + log_q, share[1] + log_p)
    return log_p - (log_q if proposal == "posterior" else log_p)


def _independent(
    guide: MessengerGuide, batch: Batch, draws: int, proposal: Proposal, heard: Batch | None
) -> _Drawn:
    """All steps in one batch: no latent is carried from one to the next."""
    model: SceneModel = guide.model  # type: ignore[assignment]
    evidence, memory, p, q, _ = follow(guide, batch, heard)
    if not model.latent_size:
        pi = model.policy(evidence.context, memory)
        nothing = Normal(memory.latent, torch.ones_like(memory.latent))
        latent = memory.latent.expand(draws, *memory.latent.shape)
        return _Drawn(
            nothing, nothing, latent, latent.sum(-1, keepdim=True),
            rebuilt([pi], lambda parameter: parameter[0].expand(draws, *parameter[0].shape)),
        )  # fmt: skip
    z = _proposed(p, q, draws, proposal)
    ratio = _log_ratio(p, q, z, proposal, model.parts)
    pi = model.policy(evidence.context, Memory(memory.hidden.expand(draws, -1, -1, -1), z))
    return _Drawn(p.base_dist, q.base_dist, z, ratio, pi)


def _filtered(guide: MessengerGuide, batch: Batch, draws: int, proposal: Proposal) -> _Drawn:
    """A particle filter moved by the guide, resampled at every step; r is asked aside from it."""
    model: SceneModel = guide.model  # type: ignore[assignment]
    evidence = model.evidence(batch)
    seen = model.recorded(batch).seen
    T, B, _ = seen.shape
    m, found = model.start((draws, B)), []
    for t in range(T):
        now = evidence.at(t)
        with guide:
            m = model.advance("latent", now.context, m, now)
        node = guide.trace.nodes["latent"]
        p, q, z = node["infer"]["prior"], node["fn"], node["value"]
        _scorable(p, q)
        pi = model.policy(now.context, m)
        log_pi = observed(pi, seen[t]).log_prob(now.shown)
        log_w = p.log_prob(z) - q.log_prob(z) + log_pi
        asked = m
        if proposal != "posterior":
            half = {"prior": 0, "defensive": draws // 2}[proposal]
            z = torch.cat([q.rsample()[:half], p.rsample()[half:]])
            asked = m._replace(latent=z.flatten(2))
            pi = model.policy(now.context, asked)
        ratio = _log_ratio(p, q, z, proposal, 1)
        found.append((p.base_dist, q.base_dist, asked.latent, ratio, pi))
        ancestors = _systematic(log_w)[..., None]
        m = Memory(*(x.gather(0, ancestors.expand_as(x)) for x in m))
    priors, posteriors, latents, ratios, policies = map(list, zip(*found, strict=True))
    join = partial(torch.stack, dim=1)
    return _Drawn(
        rebuilt(priors, join), rebuilt(posteriors, join), join(latents), join(ratios),
        rebuilt(policies, join),
    )  # fmt: skip


def _systematic(log_weight: Tensor) -> Tensor:
    """Ancestors (K, B) of systematic resampling (Carpenter, Clifford & Fearnhead 1999)."""
    K = len(log_weight)
    above = log_weight.double().softmax(0).cumsum(0).T.contiguous()
    offset = torch.rand(len(above), 1, dtype=above.dtype, device=above.device)
    places = (torch.arange(K, device=above.device) + offset) / K
    return torch.searchsorted(above, places).clamp(max=K - 1).T


def window_steps(
    guide: MessengerGuide,
    windows: Windows,
    which: Tensor,
    draws: int,
    proposal: Proposal = "posterior",
    *,
    chunk: int = 65_536,
) -> Iterator[tuple[Tensor, Steps]]:
    """The step that each window ends with, (K, 1, B), some windows at a time.

    Args:
        guide: The guide, bound to its model.
        windows: Windows of one step after their context.
        which: Their numbers, in rising order.
        draws: K.
        proposal: As for `draw_steps`.
        chunk: Draws x steps looked at together, at most, where steps are independent.

    Yields:
        The numbers of the windows, in the order of ``which``, and their steps. A model that
        remembers is shown more of the trajectory than the window: where there are as many, half
        to all of its ``memory_steps`` before the step.
    """
    model: SceneModel = guide.model  # type: ignore[assignment]
    parameter = next(guide.parameters(), model.view)
    history = model.config.history
    if not model.remembers:
        for part in which.split(max(1, chunk // draws)):
            batch = Batch(*(x[-history - 1 :] for x in windows.batch(part)))
            batch = batch.to(parameter.device, parameter.dtype)
            yield part, draw_steps(guide, batch, draws, proposal, windows.axes)
        return
    # Trajectories are cut into stretches of half the memory, each after as much burn-in.
    memory = model.memory_steps
    new = max(1, memory // 2)
    trajectory, start = map(torch.from_numpy, windows.places(which))
    step = start + windows.context - history
    first = (step // new * new - (memory - new)).clamp(min=0)
    stretches, at = torch.stack([trajectory, first], 1).unique(dim=0, return_inverse=True)
    for some in torch.arange(len(stretches)).split(max(1, PARTICLES_HELD // (draws * memory))):
        inside = (at >= some[0]) & (at <= some[-1])
        row, begin = stretches[some].unbind(1)
        x = windows.stretches(row.numpy(), begin.numpy(), history + memory)
        batch = Batch(x.nan_to_num(0.0), ~x.isnan())
        steps = draw_steps(
            guide, batch.to(parameter.device, parameter.dtype), draws, proposal, windows.axes
        )
        yield which[inside], _picked(steps, (step - first)[inside], at[inside] - some[0])


def _picked(steps: Steps, t: Tensor, b: Tensor) -> Steps:
    """The steps (t, b) of a grid (T, B), as (1, B)."""

    def of_draws(x: Tensor) -> Tensor:
        return x[:, t, b][:, None]

    def of_steps(x: Tensor) -> Tensor:
        return x[t, b][None]

    def of(pick: Callable[[Tensor], Tensor], d: Any) -> Any:
        return rebuilt([d], lambda parameter: pick(parameter[0]))

    of_prior = of_draws if len(steps.prior.batch_shape) == 4 else of_steps
    return Steps(
        prior=of(of_prior, steps.prior), posterior=of(of_prior, steps.posterior),
        latent=of_draws(steps.latent), log_ratio=of_draws(steps.log_ratio),
        policy=of(of_draws, steps.policy), log_policy=of_draws(steps.log_policy),
        shown=of_steps(steps.shown), seen=of_steps(steps.seen),
    )  # fmt: skip


def log_mean_exp(log_weight: Tensor) -> Tensor:
    """Log of the mean, (1/K) sum_k w_k over the first dimension."""
    return log_weight.logsumexp(0) - math.log(len(log_weight))


def trajectory_batches(
    dataset: xr.Dataset, scale: Scale, size: int = 16_384
) -> Iterator[tuple[slice, Batch]]:
    """Whole trajectories from their first frames, some at a time: their rows, and their batch.

    Args:
        dataset: Recordings; dequantise them first for densities.
        scale: The model's scale.
        size: Trajectories x frames in a batch at most, unless one trajectory has more.
    """
    several = max(1, size // dataset.sizes["time"])
    for first in range(0, dataset.sizes["trajectory"], several):
        rows = slice(first, min(first + several, dataset.sizes["trajectory"]))
        yield rows, whole(dataset.isel(trajectory=rows), scale)
