"""A loss and its gradient as one flat list of tensor operations, written down once and run again.

A training step of a loop over time is thousands of small operations. Between them Pyro's handlers,
distributions, modules and autograd do work that is the same at every update. So it is done once:
the program runs while its operations and those of its gradient are recorded (`make_fx`), and later
updates run the record. Nothing is defined twice: the record is made of the program, for each shape
of batch. Random numbers are drawn by the same operations in the same order, so that the loss is
that of the program to the bit (but where large products are taken by oneDNN, `infer/onednn.py`: to
rounding); its gradient to rounding, since the record is then shortened by

    t(W), and W in bfloat16, at every step  ->  once
    sum_t A_t^T B_t, a weight's gradient    ->  [A_1; ...; A_T]^T [B_1; ...; B_T], one product
    likewise sum_t 1^T B_t, a bias's        ->  1^T [B_1; ...; B_T]

and where the parts of a weight's are large, so that to copy them costs more than to call, each
product is added to the sum of those before it, where it stands (`addmm_`).

On a GPU the list is captured as one CUDA graph, whose launch is one in place of thousands: there
the loop over time is bound by launches. Weights of the loss and the batch are copied to where the
graph reads them; the generator's state is read at each launch.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import reduce
from typing import Any, NamedTuple

import pyro
import torch
from torch import Tensor
from torch._guards import TracingContext, tracing
from torch._subclasses import FakeTensorMode
from torch.fx import Graph, GraphModule, Node
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.node import map_arg
from torch.nn import Module

from pyro_animacy.infer.elbo import ScaledELBO
from pyro_animacy.infer.native import call_natively
from pyro_animacy.infer.onednn import multiply_by_onednn, worth_asking
from pyro_animacy.models.program import all_seen

aten = torch.ops.aten
SMALL = 2**14  # numbers in a part up to which parts are put together


class Gradient:
    """Compute the loss of a batch, its terms, and the gradient of every parameter.

    Args:
        elbo: The loss.
        model: The model.
        guide: Its guide.
        traced: Record the operations at the first batch of each shape, and at the first of it that
            was not observed in full, and run the record.
    """

    def __init__(self, elbo: ScaledELBO, model: Module, guide: Module, *, traced: bool) -> None:
        self.elbo, self.bound, self.traced = elbo, elbo(model, guide), traced
        self.parameters = [p for p in self.bound.parameters() if p.requires_grad]
        self.records: dict[Any, tuple[Any, list[str]]] = {}

    def __call__(self, batch: Any) -> Tensor:
        """Return the loss; ``.grad`` of parameters and ``elbo.terms`` are those of the batch."""
        if not self.traced:
            loss = self.bound(batch)
            for parameter in self.parameters:
                parameter.grad = None
            loss.backward()
            return loss.detach()
        tensors = [x for x in batch if x is not None]
        # where all was seen, nothing is masked
        complete = all(bool(x.all()) for x in tensors if x.dtype == torch.bool)
        shapes = tuple(None if x is None else (x.shape, x.dtype, x.device) for x in batch)
        key = complete, shapes
        like = self.parameters[0]
        weights = [like.new_tensor(x) for x in (self.elbo.kl_weight, self.elbo.scale)]
        if key not in self.records:
            with all_seen(complete):
                found, terms_of = self._record(batch, weights, tensors)
            captured = (
                _Captured(found, self.parameters, weights, tensors) if like.is_cuda else found
            )
            self.records[key] = captured, terms_of
        record, names = self.records[key]
        with torch.no_grad():
            loss, terms, gradients = record(self.parameters, weights, tensors)
        for parameter, gradient in zip(self.parameters, gradients, strict=True):
            parameter.grad = None if gradient is None else _laid_out_as(parameter, gradient)
        self.elbo.terms = dict(zip(names, terms, strict=True))
        return loss

    def _record(
        self, batch: Any, weights: list[Tensor], tensors: list[Tensor]
    ) -> tuple[GraphModule, list[str]]:
        """The operations for batches like this one of these tensors, and the terms' names."""
        kind, names = type(batch), list[str]()
        kept = self.elbo.kl_weight, self.elbo.scale

        def step(parameters: list[Tensor], weights: list[Tensor], tensors: list[Tensor]) -> Any:
            self.elbo.kl_weight, self.elbo.scale = weights  # type: ignore[assignment]
            with torch.enable_grad():
                given = iter(tensors)
                loss = self.bound(kind(*(None if x is None else next(given) for x in batch)))
                gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
            names.extend(self.elbo.terms)
            # two parameters may have one gradient, which is then to be two tensors
            own = [
                g if g is None or all(g is not h for h in gradients[:i]) else g.clone()
                for i, g in enumerate(gradients)
            ]
            return loss.detach(), [*self.elbo.terms.values()], own

        gpu = [p.device for p in self.parameters[:1] if p.is_cuda]
        # What is drawn while recording is no draw of the training; and nothing can be checked.
        with torch.random.fork_rng(gpu), no_validation():
            try:
                record = _recorded(step, self.parameters, weights, tensors)
            finally:
                self.elbo.kl_weight, self.elbo.scale = kept
        _once(record.graph)
        record.graph.eliminate_dead_code()  # what nobody uses is not to count as a use
        results: Any = _output(record.graph).args[0]
        gradients = results[-len(self.parameters) :]
        _products_of_sums(record.graph, [g for g in gradients if g is not None])
        if worth_asking():
            multiply_by_onednn(record.graph)
        record.graph.eliminate_dead_code()
        call_natively(record.graph)
        record.recompile()
        return record, names


class Recorded:
    """A function of tensors and its model's parameters, without gradient, as a record.

    What it gives is that of the function to the bit. It is recorded at the first call of each
    shape, whole functions such as a GRU's step as one operation. Parameters may change in place
    (as by `load_state_dict`), not be replaced by other tensors, nor autocast be switched.

    Args:
        function: Returns a tensor; all numbers but tensors are as they were at the first call.
    """

    def __init__(self, function: Callable[..., Tensor]) -> None:
        self.function = function
        self.records: dict[Any, GraphModule] = {}

    @torch.no_grad()
    def __call__(self, *given: Tensor) -> Tensor:
        """What the function gives."""
        key = tuple((x.shape, x.dtype, x.device) for x in given)
        if key not in self.records:
            gpu = [x.device for x in given[:1] if x.is_cuda]
            with torch.random.fork_rng(gpu), no_validation():
                # a bound method's own argument is not one of the record
                record = _recorded(lambda *x: self.function(*x), *given, pre_dispatch=True)
            call_natively(record.graph)
            record.recompile()
            self.records[key] = record
        return self.records[key](*given)


def _recorded(function: Callable, *given: Any, **options: Any) -> GraphModule:
    """The operations of a function, by `make_fx`.

    It notes the shape of every result as a tensor without contents, each in a mode of its own, to
    make which takes as long as all else. Where there is a mode already it takes that.
    """
    with tracing(TracingContext(FakeTensorMode())):
        return make_fx(function, **options)(*given)


def _laid_out_as(parameter: Tensor, gradient: Tensor) -> Tensor:
    """A gradient in its parameter's order in memory, in which fused optimisers read both."""
    if gradient.stride() == parameter.stride():
        return gradient
    return torch.empty_like(parameter).copy_(gradient)


class _Captured:
    """A record as a CUDA graph of the same arguments; what it returns is overwritten by the next.

    Args:
        record: The operations.
        parameters: Of the model, which the graph reads where they are.
        weights: Of the loss.
        tensors: Of a batch.
    """

    def __init__(
        self,
        record: GraphModule,
        parameters: list[Tensor],
        weights: list[Tensor],
        tensors: list[Tensor],
    ) -> None:
        self.inputs = [x.clone() for x in (*weights, *tensors)]
        given = self.inputs[: len(weights)], self.inputs[len(weights) :]
        device = self.inputs[0].device
        aside = torch.cuda.Stream(device)
        # what is drawn while capturing is no draw of the training
        with torch.no_grad(), torch.random.fork_rng([device]), torch.cuda.device(device):
            aside.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(aside):  # libraries set themselves up at their first calls
                for _ in range(3):
                    record(parameters, *given)
            torch.cuda.current_stream().wait_stream(aside)
            self.graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self.graph):
                self.outputs = record(parameters, *given)

    def __call__(self, _: list[Tensor], weights: list[Tensor], tensors: list[Tensor]) -> Any:
        for mine, given in zip(self.inputs, (*weights, *tensors), strict=True):
            mine.copy_(given)
        self.graph.replay()
        return self.outputs


@contextmanager
def no_validation() -> Iterator[None]:
    """Turn Pyro's and torch's checks of arguments off: they cost more than the step's own work."""
    distributions = torch.distributions.Distribution._validate_args
    with pyro.validation_enabled(False):
        try:
            yield
        finally:
            torch.distributions.Distribution.set_default_validate_args(distributions)


def _is(node: Any, operation: Any) -> bool:
    return isinstance(node, Node) and node.op == "call_function" and node.target == operation


def _is_cast_weight(node: Node) -> bool:
    """Whether it is a parameter in another precision, as autocast asks for at every call."""
    return _is(node, aten._to_copy.default) and node.args[0].op == "placeholder"  # type: ignore[union-attr]


def _small(node: Any) -> bool:
    return node.meta["val"].numel() <= SMALL


def _output(graph: Graph) -> Node:
    return next(node for node in reversed(graph.nodes) if node.op == "output")


def _once(graph: Graph) -> None:
    """Drop what does nothing without autograd, and repeated looks at the same tensor."""
    found: dict[tuple, Node] = {}
    for node in list(graph.nodes):
        if _is(node, aten.detach.default) or _is(node, aten.alias.default):
            same = node.args[0]
        elif _is(node, aten.t.default) and _is(node.args[0], aten.t.default):
            same = node.args[0].args[0]
        elif _is(node, aten.t.default) or node.op == "get_attr" or _is_cast_weight(node):
            same = found.setdefault((node.target, *node.args, str(node.kwargs)), node)
        else:
            continue
        if same is not node:
            node.replace_all_uses_with(same)
            graph.erase_node(node)


def _parts(total: Node) -> Iterator[Node]:
    """What is added up to make ``total``, each sum on the way being used for nothing else."""
    todo = [total]
    while todo:
        node = todo.pop()
        plain = _is(node, aten.add.Tensor) and not node.kwargs
        two = len(node.all_input_nodes) == 2
        if plain and two and (node is total or len(node.users) == 1):
            todo.extend(node.all_input_nodes)
        else:
            yield node


class _Product(NamedTuple):
    """A part of a gradient: A^T B, or a sum over rows, 1^T B.

    Attributes:
        kind: What parts that can be put together agree in.
        place: The operation that makes it.
        left: A; None for a sum over rows.
        right: B.
        outer: A view that is made of it, and its arguments.
    """

    kind: tuple
    place: Any
    left: Any
    right: Any
    outer: tuple = ()


def _product(part: Any) -> _Product | None:
    """The part as a product of which nothing else is asked; None if it is something else."""
    wrapped = part.target in (aten.t.default, aten.view.default)
    node: Any = part.args[0] if wrapped else part
    if part.op != "call_function" or len(node.users) != 1 or len(part.users) != 1:
        return None
    outer = (part.target, *part.args[1:]) if wrapped else ()
    if _is(node, aten.mm.default) and _is(node.args[0], aten.t.default):
        A, B = node.args[0].args[0], node.args[1]
        if part.target is aten.t.default:  # (A^T B)^T = B^T A
            return _Product((aten.mm, "flipped"), node, B, A)
        return _Product((aten.mm, str(outer)), node, A, B, outer)
    if _is(node, aten.sum.dim_IntList) and node.args[1] == [0] and _small(node.args[0]):
        kind = (aten.sum, str(outer), str(node.args[1:]))
        return _Product(kind, node, None, node.args[0], outer)
    return None


def _products_of_sums(graph: Graph, totals: list[Node]) -> None:
    """Rewrite the gradients that are sums over time, as the top of this file has it."""
    position = {node: i for i, node in enumerate(graph.nodes)}
    end = _output(graph)
    joined: dict[tuple[Any, ...], Node] = {}

    def call(operation: Any, *arguments: Any) -> Node:
        node = graph.call_function(operation, arguments)
        node.meta["val"] = operation(*map_arg(arguments, lambda given: given.meta["val"]))
        return node

    def join(*parts: Any) -> Node:
        if parts not in joined:
            joined[parts] = call(aten.cat.default, [*parts])
        return joined[parts]

    def in_place(products: list[_Product]) -> Node:
        found = None
        for product in products:
            with graph.inserting_before(product.place):
                A, B = call(aten.t.default, product.left), product.right
                found = (
                    call(aten.addmm_.default, found, A, B) if found else call(aten.mm.default, A, B)
                )
        return found  # type: ignore[return-value]

    def put_together(products: list[_Product]) -> Node:
        _, places, lefts, rights, _ = zip(*products, strict=True)
        if lefts[0] is None:
            return call(aten.sum.dim_IntList, join(*rights), *places[0].args[1:])
        return call(aten.mm.default, call(aten.t.default, join(*lefts)), join(*rights))

    for total in totals:
        alike: defaultdict[tuple, list[_Product]] = defaultdict(list)
        sums = []
        for part in sorted(_parts(total), key=position.__getitem__):
            if (product := _product(part)) is None:
                sums.append(part)
            else:
                alike[product.kind].append(product)
        if not any(len(products) > 1 for products in alike.values()):
            continue
        for first, *more in alike.values():
            large = first.left is not None and not _small(first.right)
            found = in_place([first, *more]) if large else None
            with graph.inserting_before(end):
                found = found or put_together([first, *more])
                sums.append(call(first.outer[0], found, *first.outer[1:]) if first.outer else found)
        with graph.inserting_before(end):
            rewritten = reduce(lambda a, b: call(aten.add.Tensor, a, b), sums)
        total.replace_all_uses_with(rewritten, delete_user_cb=lambda user: user is end)
