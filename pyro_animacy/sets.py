"""Networks on a set of bodies: one network for every body, and the others as its context.

    m_ij  = phi(A x_i + B x_j + C (p_j - p_i)),       x_i with the type e_i       what j is to i
    c_i   = (x_i, mean_{j != i} m_ij), of all j that are there                    what i may know
    out_i = g(u_i, c_i)                                         the same g for every body

    x_1 ---+---> c_1 --> g --> out_1    x_i  token: position and last displacements; and the type
           | m_12 ^      ^ u_1          u_i  what a network has besides: the latent, the next move
           | m_21 v      v u_2          p_i  position, in units of the bodies' separation
    x_2 ---+---> c_2 --> g --> out_2

Bodies of one type are exchangeable: to reorder them reorders the outputs. No parameter depends on
the number of bodies N, so one model serves any number. The cost is O(N^2) additions: messages have
one hidden layer, whose affine part needs no pairs, and whose next layer is the first of g, because
a mean and a linear map commute. Messages are of the past alone: they are computed once a step, for
all networks and every draw of u.

Battaglia et al., Interaction Networks for Learning about Objects, Relations and Physics, NeurIPS
2016 (messages of pairs); Zaheer et al., Deep Sets, NeurIPS 2017 (pooling that ignores order).

`SetContext` is the context c_t of a `ControlVAE` on a set, and `EachBody` and `SetPolicy` stand
where it has networks on flat vectors. In them each body has a latent of its own, and z_t is these,
body after body. What others have done enters, not what they do at the same step: given the past,
bodies choose and move independently, so that the density of a step, its posterior and its bounds
are those of each body.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from pyro_animacy.data.bodies import body_stem
from pyro_animacy.errors import ConfigError
from pyro_animacy.nets import ACTIVATIONS, Stack, StackConfig, normal, positive
from pyro_animacy.resting import Policy, Rest

AT_ONCE = 2**22  # without a gradient: numbers in messages, N^2 M a scene, or into g; 16 MB


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


@dataclass(frozen=True)
class SetLayout:
    """Which bodies there are, and how they are seen.

    Args:
        types: Type of each body, as of `body_types`.
        axes: Numbers in a position.
        history: Frames in the context: s_t and the ``history - 1`` displacements before it.
        extent: Of the positions.
        separation: Of the bodies.
        known_types: Number of types that the networks know, where the bodies at hand are not of
            all of them; null for those at hand.
    """

    types: tuple[int, ...]
    axes: int
    history: int
    extent: float
    separation: float
    known_types: int | None = None

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

    def tokens(self, state: Tensor, actions: Sequence[Tensor]) -> Tensor:
        """Return x (..., N, F), positions in units of the extent.

        Args:
            state: s_t (..., N * axes).
            actions: The ``history - 1`` displacements before it, newest first, each likewise.
        """
        parts = [state / self.extent, *actions]
        return torch.cat([part.unflatten(-1, (self.bodies, self.axes)) for part in parts], -1)


class SetContext(nn.Module):
    """c_i = (x_i, e_i, mean_{j != i} m_ij), what every network knows of body i and those around it.

    Args:
        layout: The bodies; their number enters no parameter.
        messages: M, numbers in a message.
        activation: phi.

    Attributes:
        size: C, numbers in the context of one body.
    """

    kind: Tensor

    def __init__(self, layout: SetLayout, messages: int, activation: str) -> None:
        super().__init__()
        self.layout = layout
        kind = F.one_hot(torch.tensor(layout.types), layout.kinds).float()
        self.register_buffer("kind", kind, persistent=False)  # the scene's, not the network's
        self.messages = SetMessages(layout, messages, activation)
        self.size = layout.token_size + layout.kinds + messages

    def forward(
        self,
        state: Tensor,
        actions: Sequence[Tensor],
        here: Tensor | None = None,
        heard: tuple[Tensor, Sequence[Tensor]] | None = None,
    ) -> Tensor:
        """Return c (..., N * C), body after body, of what `SetLayout.tokens` takes.

        Args:
            state: s_t.
            actions: Displacements before it.
            here: Where it is false, (..., N), a body is not there: nobody hears it, and what is
                given of it means nothing. None is nowhere.
            heard: Of each body another scene (..., N, N * axes), its state and displacements, in
                which it hears the others; ``here`` is then of these, (..., N, N).
        """
        x = self._known(state, actions)
        senders = x if heard is None else self._known(*heard)
        return torch.cat([x, self.messages(x, senders, here)], -1).flatten(-2)

    def _known(self, state: Tensor, actions: Sequence[Tensor]) -> Tensor:
        """Tokens with their types, (..., N, F + types)."""
        x = self.layout.tokens(state, actions)
        return torch.cat([x, self.kind.to(x).expand(*x.shape[:-1], -1)], -1)


class SetMessages(nn.Module):
    """mean_{j != i} m_ij, the first of the equations at the top of this file.

    Args:
        layout: The bodies.
        size: M, numbers in a message.
        activation: phi.
    """

    def __init__(self, layout: SetLayout, size: int, activation: str) -> None:
        super().__init__()
        self.axes, self.nearness = layout.axes, layout.extent / layout.separation
        self.activation = ACTIVATIONS[activation]
        self.mine = nn.Linear(layout.token_size + layout.kinds, size)
        self.theirs = nn.Linear(layout.token_size + layout.kinds, size, bias=False)
        self.between = nn.Linear(layout.axes, size, bias=False)

    def forward(self, x: Tensor, senders: Tensor, here: Tensor | None = None) -> Tensor:
        """Map tokens with their types (..., N, F + types) to (..., N, M), 0 for a lone body.

        Args:
            x: Of those who hear.
            senders: Of those who are heard: the same ones most often, or of each who hears others
                (..., N, N, F + types).
            here: Whether each sender is there, (..., N) or (..., N, N); all by default.
        """
        scenes = max(1, AT_ONCE // (x.shape[-2] ** 2 * self.theirs.out_features))
        batch = x.shape[:-2]
        if torch.is_grad_enabled() or batch.numel() <= scenes:
            return self._heard(x, senders, here)
        given = [x, senders]
        if here is not None:
            given.append(here.expand(*batch, *here.shape[len(batch) :]))
        parts = (of.flatten(0, len(batch) - 1).split(scenes) for of in given)
        return torch.cat([*map(self._heard, *parts)]).view(*x.shape[:-1], -1)

    def _heard(self, x: Tensor, senders: Tensor, here: Tensor | None = None) -> Tensor:
        N, axes = x.shape[-2], self.axes
        near = self.between(x[..., :axes] * self.nearness)
        theirs = near if senders is x else self.between(senders[..., :axes] * self.nearness)
        receiver, sender = self.mine(x) - near, self.theirs(senders) + theirs
        shared = senders.dim() == x.dim()  # by all who hear
        if shared:
            sender = sender.unsqueeze(-3)
        m = self.activation(receiver.unsqueeze(-2) + sender)  # (..., i, j, M)
        weight = 1 - torch.eye(N, dtype=x.dtype, device=x.device)
        if here is not None:
            weight = weight * (here.unsqueeze(-2) if shared else here)
        weight = weight / weight.sum(-1, keepdim=True).clamp(min=1)
        return torch.einsum("...ij,...ijm->...im", weight, m)


class EachBody(nn.Module):
    """out_i = g(u_i, c_i), the same g for every body, from flat vectors to flat vectors.

    A flat vector has its numbers body after body, (..., N * size).

    Args:
        inputs: Sizes of one body's input: of c, or of two parts, such as z and c.
        outputs: Sizes of one body's parts of the output.
        config: Sizes of g, a `Stack`.
        repeat: Size of what g repeats to every layer if so configured, as of `Stack`.
    """

    def __init__(
        self,
        inputs: Sequence[int],
        outputs: Sequence[int],
        config: StackConfig,
        repeat: int | None = None,
    ) -> None:
        super().__init__()
        self.inputs, self.outputs = inputs, [*outputs]
        self.network = Stack(sum(inputs), sum(outputs), config, repeat=repeat)

    def forward(self, *parts: Tensor) -> Tensor:
        """Map flat parts of the input to the flat parts of the output, one after the other.

        The last may have fewer leading axes than the first, such as no draws.
        """
        sizes = zip(parts, self.inputs, strict=True)
        each = [part.unflatten(-1, (-1, size)) for part, size in sizes]
        out = self._outputs(*each).split(self.outputs, -1)
        return torch.cat([part.flatten(-2) for part in out], -1)

    def _outputs(self, x: Tensor, *also: Tensor) -> Tensor:
        """Of some draws or scenes at a time where there is no gradient."""
        rows = x.shape[1:-1].numel() * self.network.config.hidden
        some = max(1, AT_ONCE // max(1, rows))
        if torch.is_grad_enabled() or len(x) <= some:
            return self.network(x, *also)
        parts = [x.split(some)]
        for part in also:
            if part.dim() == x.dim():
                parts.append(part.expand(len(x), *part.shape[1:]).split(some))
            else:
                parts.append((part,) * len(parts[0]))
        return torch.cat([self.network(*part) for part in zip(*parts, strict=True)])


class SetPolicy(nn.Module):
    """pi(a | c, z) = prod_i N(mu_i(c, z), diag sigma_i(c, z)^2), a `PolicyNormal` of a set.

    With ``resting``, every body may rest instead; tau and kappa are of each type.

    The mean is an affine map of the body's own token, one for each type, that starts at constant
    velocity, plus the network; mu_i and sigma_i depend on z through the body's own z_i.

    Args:
        layout: The bodies.
        context_size: C, numbers in the context of one body, its token first.
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
        context_size: int,
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
        sizes = [layout.axes, layout.axes, int(resting)] if scale is None else [layout.axes]
        self.sizes = [layout.bodies * size for size in sizes]
        self.network = EachBody([latent_size, context_size], sizes, config, repeat=latent_size)
        inertia = torch.zeros(layout.token_size, layout.axes)
        if layout.history > 1:  # a_t = a_{t-1}, the newest displacement in the token
            inertia[layout.axes : 2 * layout.axes] = torch.eye(layout.axes)
        self.weight = nn.Parameter(inertia.repeat(layout.kinds, 1, 1))
        self.bias = nn.Parameter(torch.zeros(layout.kinds, layout.axes))
        if resting:
            self.rest = Rest(self.types, layout.kinds, layout.axes, floor)

    def forward(self, context: Tensor, latent: Tensor) -> Policy:
        """Return pi(. | c, z), event shape (N * axes,), for c (..., N * C) and z (..., N * Z)."""
        layout = self.layout
        x = context.unflatten(-1, (layout.bodies, -1))[..., : layout.token_size]
        affine = torch.einsum("...nf,nfa->...na", x, self.weight[self.types])
        affine = (affine + self.bias[self.types]).flatten(-2)
        mean, *more = self.network(latent, context).split(self.sizes, -1)
        if self.scale is not None:
            return normal(mean + affine, self.scale)
        raw, rest = more
        mean, scale = mean + affine, positive(raw) + self.floor
        if not rest.shape[-1]:
            return normal(mean, scale)
        last = x[..., layout.axes : 2 * layout.axes]  # the newest displacement
        return self.rest(mean, scale, rest, last.flatten(-2))
