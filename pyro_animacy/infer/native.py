"""The calls of a record by torch's own bindings, which parse arguments faster than operators do.

``torch.ops.aten.cat.default`` and ``torch.cat`` are the same operation: they take the same
arguments and dispatch alike, but the first reads them by the operator's schema at every call. Of
small tensors that is most of a call: 1.5 to 5 microseconds in place of 0.7 to 1.6.
"""

import operator
from types import BuiltinFunctionType, MethodDescriptorType
from typing import Any

import torch
from torch import Tensor
from torch.fx import Graph, Node
from torch.nn import functional as F  # noqa: N812

aten = torch.ops.aten
# Functions of torch, of its networks, or methods of tensors: those that steps are made of.
_NAMES = (
    "add", "add_", "addmm", "addmm_", "all", "any", "argmax", "bitwise_and", "bmm", "cat", "chunk",
    "clamp", "clone", "contiguous", "copy_", "div", "dot", "elu_", "empty", "eq", "exp", "expand",
    "flatten", "ge", "gru_cell", "le", "linear", "log", "logaddexp", "logical_and_", "logsumexp",
    "mm", "mul", "mul_", "neg", "normal_", "permute", "pow", "relu", "relu_", "scalar_tensor",
    "select", "sigmoid", "sigmoid_", "softplus", "squeeze", "stack", "sub", "sum", "t", "tanh",
    "tanh_", "transpose", "unbind", "unsafe_split", "unsqueeze", "view", "where",
)  # fmt: skip


def _binding(name: str) -> Any:
    """The function or method of this name, if it is a binding itself and no code of Python's."""
    found = (getattr(place, name, None) for place in (torch, F, Tensor))
    return next(
        (f for f in found if isinstance(f, BuiltinFunctionType | MethodDescriptorType)), None
    )


_BINDINGS = {
    getattr(packet, overload): binding
    for packet, binding in ((getattr(aten, name), _binding(name)) for name in _NAMES)
    for overload in packet.overloads()
    if binding is not None
}


def call_natively(graph: Graph) -> None:
    """Replace operators by the bindings of the same name.

    The last thing to be done to a graph: what a binding writes to is no longer to be seen in it.
    """
    for node in graph.nodes:
        if node.op != "call_function":
            continue
        if node.target is aten.slice.Tensor:
            _index(node)
            continue
        binding = _BINDINGS.get(node.target)
        if isinstance(binding, MethodDescriptorType):
            node.op, node.target = "call_method", binding.__name__
        elif binding is not None:
            node.target = binding


def _index(node: Node) -> None:
    """A slice along one dimension as an index, x[:, a:b]."""
    x: Any = node.args[0]
    given: list[Any] = [*node.args, *(None, 0, None, None, 1)[len(node.args) :]]
    dim, start, end, step = given[1:]
    if dim < 0:
        dim += x.meta["val"].dim()
    whole = (slice(None),) * dim
    node.target, node.args = operator.getitem, (x, (*whole, slice(start, end, step)))
