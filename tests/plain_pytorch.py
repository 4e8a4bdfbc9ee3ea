"""The losses written by hand in plain PyTorch: no Pyro, no class of the package.

The oracles of the losses and their gradients, and what step times are compared with. They read only
the weights of the networks. `loss` is that of a ControlVAE, `state_space_loss` that of a
state-space model.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812


def mlp(stack, x: Tensor) -> Tensor:
    """A plain multilayer perceptron from the weights of a stack."""
    *hidden, last = stack.layers
    for layer in hidden:
        x = F.elu(F.linear(x, layer.weight, layer.bias))
    return F.linear(x, last.weight, last.bias)


def action_cost(cfg, mu: Tensor, sigma: Tensor) -> Tensor:
    """Expected cost of a normal action: E|a| is 2 s phi(m / s) + m (2 Phi(m / s) - 1)."""
    squared, x, standard = (mu**2 + sigma**2).sum(-1), mu / sigma, torch.distributions.Normal(0, 1)
    absolute = 2 * sigma * standard.log_prob(x).exp() + mu * (2 * torch.special.ndtr(x) - 1)
    return cfg.action_cost * squared + cfg.action_cost_absolute * absolute.sum(-1)


def rested(policy, raw: Tensor, last: Tensor) -> tuple[Tensor, Tensor]:
    """rho (..., D) and tau (D) of a policy that may rest, from its network's last outputs."""
    axes = last.shape[-1] // raw.shape[-1]
    tau = torch.log1p(policy.rest.raw_scale.exp()) + policy.floor
    length = last.unflatten(-1, (-1, axes)).norm(dim=-1)
    raw = raw + policy.rest.kappa * torch.exp(-((length / tau) ** 4) / 256)
    rho = 1 / (1 + torch.exp(5 - raw))
    return rho.repeat_interleave(axes, -1), tau.repeat_interleave(axes)


def resting_error(shown, mu, sigma, rho, tau, bodies: int, ok: Tensor | None) -> Tensor:
    """-log (rho N(0, tau) + (1 - rho) N(mu, sigma)), products over a body: (..., N)."""

    def product(mean, scale) -> Tensor:
        density = (-(((shown - mean) / scale) ** 2) / 2).exp() / (scale * math.sqrt(2 * math.pi))
        density = density if ok is None else torch.where(ok, density, 1.0)
        return density.unflatten(-1, (bodies, -1)).prod(-1)

    of_body = rho.unflatten(-1, (bodies, -1))[..., 0]
    both = of_body * product(torch.zeros_like(mu), tau) + (1 - of_body) * product(mu, sigma)
    return -both.log()


def loss(
    model, guide, x: Tensor, kl_weight: float, seen: Tensor | None = None, noise: dict | None = None
) -> dict:
    """Terms of the loss summed over time and trajectories, for positions x (frames, B, D).

    Closed loop or teacher forced, squared error or policy likelihood, as the model's config says;
    ``seen`` (frames, B, D) marks observed coordinates; None where all are. The
    squared error carries the constant of its normal density, D/2 log(pi) a step. ``noise`` gives
    standard normals ``latent`` (T, B, Z) and ``action`` (T, B, D); drawn if absent.
    """

    def standard_normal(name: str, like: Tensor) -> Tensor:
        return torch.randn_like(like) if noise is None else noise[name][t]

    cfg = model.config
    k, gamma, sigma_p = cfg.history, cfg.discount, cfg.latent_scale
    T = len(x) - k
    prior, policy = model.step.prior.network, model.step.policy
    closed = cfg.roll_out == "closed_loop"
    rec = kl = act = x.new_zeros(())
    s = x[k - 1]
    past = [x[k - 1 - i] - x[k - 2 - i] for i in range(k - 1)]
    h = x.new_zeros(x.shape[1], cfg.memory_size)
    for t in range(T):
        f = k - 1 + t
        ok = None if seen is None else seen[f + 1]
        complete = None
        if not closed:
            s = x[f]
            past = [x[f - i] - x[f - 1 - i] for i in range(k - 1)]
            if ok is not None:
                complete = seen[f - k + 1 : f + 1].all(0).all(-1, keepdim=True)
                ok = ok & complete
        c = torch.cat([s @ model.view, *past], -1)
        if cfg.memory_size:
            g = model.recurrence
            c = c if complete is None else torch.where(complete, c, 0.0)
            h = torch.gru_cell(c, h, g.weight_ih_l0, g.weight_hh_l0, g.bias_ih_l0, g.bias_hh_l0)
            c = torch.cat([c, h], -1)
        mu_p = mlp(prior, c)
        d = x[f + 1] - s if ok is None else torch.where(ok, x[f + 1] - s, 0.0)
        out = mlp(guide.residual.network, torch.cat([c, d], -1))
        if ok is not None:
            out = out * ok.any(-1, keepdim=True)
        if cfg.posterior_scale == "learned":
            mu_q, ratio = out.chunk(2, -1)
            ratio = ratio.clamp(-7, 3)
            z = mu_p + mu_q + sigma_p * ratio.exp() * standard_normal("latent", mu_q)
            kl_t = (mu_q**2 / (2 * sigma_p**2) + ((2 * ratio).exp() - 1) / 2 - ratio).sum()
        else:
            mu_q = out
            z = mu_p + mu_q + sigma_p * standard_normal("latent", mu_q)
            kl_t = (mu_q**2).sum() / (2 * sigma_p**2)
        out = mlp(policy.network, torch.cat([z, c], -1))
        affine = F.linear(c, policy.affine.weight, policy.affine.bias)
        if cfg.policy_scale is None:
            mu, raw, rest = out.tensor_split((affine.shape[-1], 2 * affine.shape[-1]), -1)
            sigma = F.softplus(raw) + policy.floor
        else:
            mu, sigma = out, cfg.policy_scale * torch.ones_like(out)
        mu = mu + affine
        w = gamma**t
        kl = kl + w * kl_t
        if closed or cfg.likelihood == "squared_error":
            a = mu + sigma * standard_normal("action", mu)
        if cfg.likelihood == "squared_error":
            error = (x[f + 1] - (s + a)) ** 2 + 0.5 * math.log(math.pi)
        else:
            error = ((x[f + 1] - s - mu) / sigma) ** 2 / 2 + sigma.log() + math.log(2 * math.pi) / 2
        resting = cfg.rest and cfg.policy_scale is None and not closed and k > 1
        if resting:
            rho, tau = rested(policy, rest, past[0])
            error = resting_error(x[f + 1] - s, mu, sigma, rho, tau, rest.shape[-1], ok)
            rec = rec + w * error.sum()
        else:
            rec = rec + w * (error if ok is None else torch.where(ok, error, 0.0)).sum()
        if cfg.action_cost or cfg.action_cost_absolute:
            cost = action_cost(cfg, mu, sigma)
            if resting:  # of each coordinate a share
                one = [action_cost(cfg, m[..., None], v[..., None])
                       for m, v in ((mu, sigma), (0 * mu, tau.expand_as(mu)))]  # fmt: skip
                cost = ((1 - rho) * one[0] + rho * one[1]).sum(-1)
            act = act + w * (cost if ok is None else cost * ok.any(-1)).sum()
        if closed:
            s = s + a
            past = [a, *past][: k - 1]
    terms = {"reconstruction": rec, "latent": kl_weight * kl, "action_cost": act}
    return {"loss": sum(terms.values()), **terms}


def predicted(dynamics, h: Tensor, z: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
    """h_t and what the prior sees of it, (h_t, u_t), or (z_{t-1}, u_t) without a memory."""
    belief = torch.cat([z, u], -1)
    if not dynamics.memory_size:
        return h, belief
    r = dynamics.recurrence
    x = F.elu(F.linear(belief, dynamics.embed.weight, dynamics.embed.bias))
    if dynamics.config.memory_norm:
        h = normalised_gru(r, x, h)
    else:
        h = torch.gru_cell(x, h, r.weight_ih, r.weight_hh, r.bias_ih, r.bias_hh)
    return h, torch.cat([h, u], -1)


def normalised_gru(r, x: Tensor, h: Tensor) -> Tensor:
    """DreamerV2's cell: one layer norm over the parts of reset, candidate and update together."""
    parts = torch.cat([x, h], -1) @ r.linear.weight.mT
    parts = parts - parts.mean(-1, keepdim=True)
    parts = parts / (parts.square().mean(-1, keepdim=True) + 1e-3).sqrt()
    reset, candidate, update = (parts * r.norm.weight + r.norm.bias).split(h.shape[-1], -1)
    update = 1 / (1 + torch.exp(1 - update))
    return h + update * (torch.tanh(candidate / (1 + torch.exp(-reset))) - h)


def gaussian_prior(dynamics, belief: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of p(z_t | h_t, u_t)."""
    mean, raw = mlp(dynamics.prior.network, belief).chunk(2, -1)
    return mean, F.softplus(raw) + dynamics.config.least_scale


def gaussian_kl(q: tuple[Tensor, Tensor], p: tuple[Tensor, Tensor]) -> Tensor:
    """KL of diagonal normals, summed over the last axis."""
    (m, s), (mu, sigma) = q, p
    return ((sigma / s).log() + (s**2 + (m - mu) ** 2) / (2 * sigma**2) - 0.5).sum(-1)


def mixed(logits: Tensor, unimix: float) -> Tensor:
    """Probabilities of classes (..., G, K) with a share of the uniform distribution."""
    return (1 - unimix) * logits.softmax(-1) + unimix / logits.shape[-1]


def state_space_loss(
    model,
    guide,
    x: Tensor,
    kl_weight: float,
    seen: Tensor | None = None,
    noise: dict | None = None,
    kl_balance: float | None = None,
) -> dict:
    """Terms of the loss of a state-space model; arguments and terms as of `loss`.

    What need not wait for the next step (teacher forced: policy and KL) is computed once for all.
    Classes are drawn by `torch.multinomial`, step by step. With ``kl_balance`` the KL
    is DreamerV2's (Hafner et al. 2021, algorithm 2), of a posterior whose parameters are its own.
    """

    def standard_normal(name: str, like: Tensor, t: int) -> Tensor:
        return torch.randn_like(like) if noise is None else noise[name][t]

    cfg, dynamics = model.config, model.dynamics
    k, Z, K = cfg.history, cfg.latent_size, cfg.classes
    T, B = len(x) - k, x.shape[1]
    closed = cfg.roll_out == "closed_loop"
    squared = cfg.likelihood == "squared_error"

    def decode(c: Tensor, h: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        pi, known = model.decoder, torch.cat([c, h], -1)
        out = mlp(pi.network, torch.cat([z, known], -1))
        straight = F.linear(known, pi.affine.weight, pi.affine.bias)
        if cfg.policy_scale is not None:
            return out + straight, cfg.policy_scale * torch.ones_like(out)
        mean, raw, rest = out.tensor_split((straight.shape[-1], 2 * straight.shape[-1]), -1)
        moves = mean + straight, F.softplus(raw) + pi.floor
        return (*moves, rest) if rest.shape[-1] else moves

    h, z = x.new_zeros(B, cfg.memory_size), x.new_zeros(B, Z * (K or 1))
    s, past = x[k - 1], [x[k - 1 - i] - x[k - 2 - i] for i in range(k - 1)]
    held: dict[str, list[Tensor]] = {
        name: [] for name in ("c", "h", "z", "q", "p", "s", "a", "ok", "d")
    }
    policies = []
    for t in range(T):
        f = k - 1 + t
        ok = torch.ones_like(x[f], dtype=torch.bool) if seen is None else seen[f + 1]
        complete = None
        if not closed:
            s, past = x[f], [x[f - i] - x[f - 1 - i] for i in range(k - 1)]
            if seen is not None:
                complete = seen[f - k + 1 : f + 1].all(0).all(-1, keepdim=True)
                ok = ok & complete
        c = torch.cat([s @ model.view, *past], -1)
        c = c if complete is None else torch.where(complete, c, 0.0)
        any_seen = None if seen is None else ok.any(-1, keepdim=True)
        d = x[f + 1] - s if seen is None else torch.where(ok, x[f + 1] - s, 0.0)
        h, belief = predicted(dynamics, h, z, c)
        q = p = ()
        if Z:
            shown = torch.cat([belief, d], -1)
            if K:
                p = mixed(mlp(dynamics.prior, belief).unflatten(-1, (Z, K)), cfg.unimix)
                about = p if kl_balance is None else p.detach()
                shift = mlp(guide.residual, shown).unflatten(-1, (Z, K))
                q = mixed(about.log() + shift, cfg.unimix)
                if any_seen is not None:
                    q = torch.where(any_seen[..., None], q, about)
                drawn = torch.multinomial(q.detach().reshape(-1, K), 1).reshape(B, Z)
                z = (F.one_hot(drawn, K) + q - q.detach()).flatten(-2)
            else:
                p = gaussian_prior(dynamics, belief)
                shift, ratio = mlp(guide.residual.network, shown).chunk(2, -1)
                if any_seen is not None:
                    shift, ratio = shift * any_seen, ratio * any_seen
                about = p if kl_balance is None else [x.detach() for x in p]
                q = about[0] + shift, about[1] * ratio.clamp(-7, 3).exp()
                z = q[0] + q[1] * standard_normal("latent", q[0], t)
                p, q = torch.cat(p, -1), torch.cat(q, -1)
            held["p"].append(p)
            held["q"].append(q)
        if closed:
            policies.append(decode(c, h, z))
            a = policies[-1][0] + policies[-1][1] * standard_normal("action", s, t)
            held["a"].append(a)
        last = past[0] if past else torch.zeros_like(s)
        for name, value in (("c", c), ("h", h), ("z", z), ("s", s), ("ok", ok), ("d", last)):
            held[name].append(value)
        if closed:
            s, past = s + a, [a, *past][: k - 1]

    of = {name: torch.stack(values) for name, values in held.items() if values}
    w = cfg.discount ** torch.arange(T, dtype=x.dtype)[:, None]

    def divergence(q: Tensor, p: Tensor) -> Tensor:
        if K:
            return (w * (q * (q.log() - p.log())).sum((-1, -2))).sum()
        return (w * gaussian_kl(q.chunk(2, -1), p.chunk(2, -1))).sum()

    kl = x.new_zeros(())
    if Z and kl_balance is None:
        kl = divergence(of["q"], of["p"])
    elif Z:
        q, p = of["q"], of["p"]
        kl = kl_balance * divergence(q.detach(), p) + (1 - kl_balance) * divergence(q, p.detach())
    if closed:
        mu, sigma = (torch.stack(part) for part in zip(*policies, strict=True))
    else:
        mu, sigma, *rest = decode(of["c"], of["h"], of["z"])
    shown, ok = x[k:] - of["s"], of["ok"]
    if squared:
        a = of["a"] if closed else mu + sigma * standard_normal("action", mu, slice(T))
        error = (shown - a) ** 2 + 0.5 * math.log(math.pi)
    else:
        error = ((shown - mu) / sigma) ** 2 / 2 + sigma.log() + math.log(2 * math.pi) / 2
    if not closed and rest:
        rho, tau = rested(model.decoder, rest[0], of["d"])
        rec = (w * resting_error(shown, mu, sigma, rho, tau, len(rest[0][0, 0]), ok).sum(-1)).sum()
    else:
        rec = (w * (error if seen is None else torch.where(ok, error, 0.0)).sum(-1)).sum()
    act = (w * action_cost(cfg, mu, sigma) * ok.any(-1)).sum()
    terms = {"reconstruction": rec, "latent": kl_weight * kl, "action_cost": act}
    return {"loss": sum(terms.values()), **terms}
