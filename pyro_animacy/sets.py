"""Networks on a set of bodies: one network for every body, and the others as its context.

    m_ij  = phi(A x_i + B x_j + C (p_j - p_i)),       x_i with the type e_i       what j is to i
    out_i = g(u_i, x_i, mean_{j != i} m_ij)                             the same g for every body

    x_1 ---+-------> g ----> out_1    x_i  token: position and last displacements; and the type
           |  m_12 --^                u_i  what a network has besides: the latent, the next move
           |  m_21 --v                p_i  position, in units of the bodies' separation
    x_2 ---+-------> g ----> out_2

Bodies of one type are exchangeable: to reorder them reorders the outputs. No parameter depends on
the number of bodies N, so one model serves any number. The cost is O(N^2) additions: messages have
one hidden layer, whose affine part needs no pairs, and whose next layer is the first of g, because
a mean and a linear map commute. Messages are of the past alone, the same for every draw of u.

Battaglia et al., Interaction Networks for Learning about Objects, Relations and Physics, NeurIPS
2016 (messages of pairs); Zaheer et al., Deep Sets, NeurIPS 2017 (pooling that ignores order).

`SetMean`, `SetResidual` and `SetPolicy` stand where `ControlVAE` has a `Stack` on flat vectors. In
them each body has a latent of its own, and z_t is these, body after body. What others have done
enters, not what they do at the same step: given the past, bodies choose and move independently, so
that the density of a step, its posterior and its bounds are those of each body.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from pyro_animacy.errors import ConfigError, require
from pyro_animacy.nets import ACTIVATIONS, Stack, StackConfig, normal, positive
from pyro_animacy.resting import Policy, Rest

AT_ONCE = 2**22  # without a gradient: numbers in messages, N^2 M a scene, or into g; 16 MB
# a number at the end, after a letter: home_1, home 12, dog3
_NUMBERED = re.compile(r"(?<=[^\W\d_])[\s_.#-]*\d+$")


def body_types(names: Sequence[str], known: Sequence[str] | None = None) -> tuple[int, ...]:
    """Return the type of each body: bodies that differ only by a number after letters are alike.

    ``home_1`` and ``home_9`` are of one type. Names that are bare numbers say nothing of likeness
    (``0`` and ``1`` may be leader and follower), so each is a type of its own: to take two bodies
    of one kind for two kinds costs data, the reverse costs the difference between them.

    Types are numbered in the order of the sorted names, so that the order of the bodies, or how
    many there are of a type, changes no number.

    Args:
        names: Names of the bodies, each once.
        known: Names of the bodies whose types count; these by default.

    Raises:
        ConfigError: If there is no name, one is given twice, or one is of no known type.
    """
    names = [str(name).strip() for name in names]
    if not names or len(set(names)) < len(names):
        raise ConfigError(f"bodies are named {names}; there must be at least one, each name once")
    stems = [*map(body_stem, names)]
    kinds = sorted({*map(body_stem, names if known is None else known)})
    if strange := sorted(set(stems) - set(kinds)):
        raise ConfigError(
            f"body {strange[0]} is like none of those the model knows ({', '.join(kinds)}); rename "
            "it after the kind it is of, as home_3"
        )
    return tuple(kinds.index(stem) for stem in stems)


def body_stem(name: str) -> str:
    """The name of a body without the number after its letters: home of home_1."""
    return _NUMBERED.sub("", str(name).strip())


@dataclass(frozen=True)
class SetLayout:
    """Where the bodies are in the flat vectors of `ControlVAE`, and what of them a network sees.

    Args:
        types: Type of each body, as of `body_types`.
        axes: Numbers in a position.
        history: Frames in the context: s_t and the ``history - 1`` displacements before it.
        nearness: What turns positions in units of their extent into units of the bodies'
            separation: extent / separation.
        known_types: Number of types that the networks know, where the bodies at hand are not of
            all of them; null for those at hand.
    """

    types: tuple[int, ...]
    axes: int = 2
    history: int = 1
    nearness: float = 1.0
    known_types: int | None = None

    def __post_init__(self) -> None:
        """Check the values.

        Raises:
            ConfigError: If a value cannot be used; the message names it.
        """
        require(
            "the set's ",
            vars(self),
            ("types", self.types and min(self.types) >= 0, "one number from 0 for each body"),
            ("axes", self.axes >= 1, "at least 1"),
            ("history", self.history >= 1, "at least 1"),
            ("nearness", 0 < self.nearness < math.inf, "positive and finite"),
            (
                "known_types",
                not self.types or max(self.types) < self.kinds,
                "as many as in types",
            ),
        )

    @property
    def bodies(self) -> int:
        """N, the number of bodies."""
        return len(self.types)

    @property
    def kinds(self) -> int:
        """Number of types."""
        return max(self.types) + 1 if self.known_types is None else self.known_types

    @property
    def token_size(self) -> int:
        """F, numbers in a token: position and last displacements of one body."""
        return self.axes * self.history

    @property
    def context_size(self) -> int:
        """C, numbers in the flat context: positions, their differences by pair, displacements."""
        N = self.bodies
        return self.axes * (N + N * (N - 1) // 2 + (self.history - 1) * N)

    def split(self, flat: Tensor) -> Tensor:
        """(..., N * size), body after body, to (..., N, size)."""
        return flat.unflatten(-1, (self.bodies, -1))

    def tokens(self, context: Tensor) -> Tensor:
        """What the context (..., C) holds of each body: (..., N, F), newest displacement first.

        The differences between bodies are left out; messages form them again.
        """
        if context.shape[-1] != self.context_size:
            raise ConfigError(
                f"a context of {context.shape[-1]} numbers; it must be {self.context_size}, for "
                f"{self.bodies} bodies, {self.axes} axes and a history of {self.history}"
            )
        D = self.bodies * self.axes
        moves = context[..., self.context_size - (self.history - 1) * D :].split(D, -1)
        parts = [context[..., :D], *moves[: self.history - 1]]
        return torch.cat([self.split(part) for part in parts], -1)


class SetNetwork(nn.Module):
    """out_i = g(u_i, x_i, mean_{j != i} m_ij), the equations at the top of this file.

    Args:
        layout: Types of the bodies; its number of bodies enters no parameter.
        outputs: Size O of the output of each body.
        config: Sizes of g, a `Stack`; messages have its activation and ``hidden`` units.
        besides: Size of u_i, which g repeats to every layer if so configured.
    """

    kind: Tensor

    def __init__(
        self, layout: SetLayout, outputs: int, config: StackConfig, *, besides: int = 0
    ) -> None:
        super().__init__()
        self.axes, self.nearness = layout.axes, layout.nearness
        kind = F.one_hot(torch.tensor(layout.types), layout.kinds).float()
        self.register_buffer("kind", kind, persistent=False)  # the scene's, not the network's
        size, M = layout.token_size + layout.kinds, config.hidden
        self.activation = ACTIVATIONS[config.activation]
        self.mine = nn.Linear(size, M)
        self.theirs = nn.Linear(size, M, bias=False)
        self.between = nn.Linear(layout.axes, M, bias=False)
        self.network = Stack(besides + size + M, outputs, config, repeat=besides or None)

    def forward(self, tokens: Tensor, besides: Tensor | None = None) -> Tensor:
        """Map tokens (..., N, F) to (..., N, O).

        Args:
            tokens: x, the first ``axes`` numbers of each a position.
            besides: u (..., N, besides). It may have more leading axes than the tokens, such as
                draws.
        """
        x = torch.cat([tokens, self.kind.expand(*tokens.shape[:-1], -1)], -1)
        scenes = max(1, AT_ONCE // (len(self.kind) ** 2 * self.theirs.out_features))
        if torch.is_grad_enabled() or x.shape[:-2].numel() <= scenes:
            heard = self._heard(x)
        else:
            parts = map(self._heard, x.flatten(0, -3).split(scenes))
            heard = torch.cat([*parts]).view(*x.shape[:-1], -1)
        u = x[..., :0] if besides is None else besides
        return self._outputs(*_alike(u, torch.cat([x, heard], -1)))

    def _outputs(self, u: Tensor, known: Tensor) -> Tensor:
        """G, of some draws or scenes at a time where there is no gradient."""
        if torch.is_grad_enabled():
            return self.network(torch.cat([u, known], -1))
        some = max(1, AT_ONCE // known[0].numel())
        parts = zip(u.split(some), known.split(some), strict=True)
        return torch.cat([self.network(torch.cat(part, -1)) for part in parts])

    def _heard(self, x: Tensor) -> Tensor:
        """Mean message of the others (..., N, M), 0 where there are none."""
        N, near = x.shape[-2], self.between(x[..., : self.axes] * self.nearness)
        receiver, sender = self.mine(x) - near, self.theirs(x) + near
        m = self.activation(receiver.unsqueeze(-2) + sender.unsqueeze(-3))  # (..., i, j, M)
        weight = 1 - torch.eye(N, dtype=x.dtype, device=x.device)
        weight = weight / weight.sum(-1, keepdim=True).clamp(min=1)
        return torch.einsum("...ij,...ijm->...im", weight, m)


class SetMean(nn.Module):
    """mu_p(c_t): the mean of each body's latent, from its token and the others'.

    Args:
        layout: The bodies in the context.
        latent_size: Z, numbers in the latent of one body.
        config: Sizes.
    """

    def __init__(self, layout: SetLayout, latent_size: int, config: StackConfig) -> None:
        super().__init__()
        self.layout = layout
        self.network = SetNetwork(layout, latent_size, config)

    def forward(self, context: Tensor) -> Tensor:
        """Map c_t (..., C) to (..., N * Z), body after body."""
        return self.network(self.layout.tokens(context)).flatten(-2)


class SetResidual(nn.Module):
    """mu_q(c_t, s~_{t+1} - s_t), and with ``learn_scale`` log(sigma_q / sigma_p) after it.

    A body's residual sees its own displacement only: the others' say nothing of its latent.

    Args:
        layout: The bodies in the context.
        latent_size: Z, numbers in the latent of one body.
        config: Sizes.
        learn_scale: Give the log ratio of the scales too.
    """

    def __init__(
        self, layout: SetLayout, latent_size: int, config: StackConfig, *, learn_scale: bool
    ) -> None:
        super().__init__()
        self.layout = layout
        self.parts = 2 if learn_scale else 1
        self.network = SetNetwork(layout, self.parts * latent_size, config, besides=layout.axes)

    def forward(self, x: Tensor) -> Tensor:
        """Map x = (c_t, displacement) (..., C + D) to (..., N * Z), or (..., 2 * N * Z)."""
        context, move = x.split(
            [self.layout.context_size, self.layout.bodies * self.layout.axes], -1
        )
        out = self.network(self.layout.tokens(context), self.layout.split(move))
        return torch.cat([part.flatten(-2) for part in out.chunk(self.parts, -1)], -1)


class SetPolicy(nn.Module):
    """pi(a | c, z) = prod_i N(mu_i(c, z), diag sigma_i(c, z)^2), a `PolicyNormal` of a set.

    With ``resting``, every body may rest instead; tau and kappa are of each type.

    The mean is an affine map of the body's own token, one for each type, that starts at constant
    velocity, plus the network; mu_i and sigma_i depend on z through the body's own z_i.

    Args:
        layout: The bodies in the context.
        latent_size: Z, numbers in the latent of one body.
        config: Sizes of the network.
        scale: A fixed standard deviation, or None to learn it.
        floor: The least standard deviation when it is learned.
        resting: Whether bodies may rest. Only with a learned scale.
    """

    types: Tensor

    def __init__(
        self,
        layout: SetLayout,
        latent_size: int,
        config: StackConfig,
        *,
        scale: float | None,
        floor: float,
        resting: bool = False,
    ) -> None:
        super().__init__()
        self.layout, self.scale, self.floor = layout, scale, floor
        self.register_buffer("types", torch.tensor(layout.types), persistent=False)
        self.sizes = [layout.axes, layout.axes, int(resting)]
        outputs = layout.axes if scale is not None else sum(self.sizes)
        self.network = SetNetwork(layout, outputs, config, besides=latent_size)
        inertia = torch.zeros(layout.token_size, layout.axes)
        if layout.history > 1:  # a_t = a_{t-1}, the newest displacement in the token
            inertia[layout.axes : 2 * layout.axes] = torch.eye(layout.axes)
        self.weight = nn.Parameter(inertia.repeat(layout.kinds, 1, 1))
        self.bias = nn.Parameter(torch.zeros(layout.kinds, layout.axes))
        if resting:
            self.rest = Rest(self.types, layout.kinds, layout.axes, floor)

    def forward(self, context: Tensor, latent: Tensor) -> Policy:
        """Return pi(. | c, z), event shape (N * axes,), for c (..., C) and z (..., N * Z)."""
        x = self.layout.tokens(context)
        affine = torch.einsum("...nf,nfa->...na", x, self.weight[self.types])
        affine = affine + self.bias[self.types]
        out = self.network(x, self.layout.split(latent))
        if self.scale is not None:
            return normal((out + affine).flatten(-2), self.scale)
        mean, raw, rest = out.split(self.sizes, -1)
        mean, scale = (mean + affine).flatten(-2), (positive(raw) + self.floor).flatten(-2)
        if not rest.shape[-1]:
            return normal(mean, scale)
        last = x[..., self.layout.axes : 2 * self.layout.axes]  # the newest displacement
        return self.rest(mean, scale, rest.flatten(-2), last.flatten(-2))


def _alike(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """Each as often as the other asks by its leading axes, and not copied for it."""
    shape = torch.broadcast_shapes(first.shape[:-1], second.shape[:-1])
    return first.expand(*shape, -1), second.expand(*shape, -1)
