"""Products of matrices by oneDNN, where the library that torch asks leaves half of them undone.

Torch multiplies in float32 by MKL, which on processors of AMD does without AVX-512: 215 GFLOP/s on
two of them, where oneDNN, which comes with torch too, reaches 475. Torch asks it only in lower
precision, or where a network is compiled; so its operator is called as `torch.compile` does.

    x W^T + b,    g W    and    g^T x,        a layer, and its gradients to its input and its weight

take 0.4 to 0.8 of the time where they are large; small ones take longer, and stay as they are.
Results agree to the rounding of float32.
"""

from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.fx import Graph, Node

aten = torch.ops.aten
LEAST = 2**22  # multiplications in a product from which on it is worth the call


@cache
def worth_asking() -> bool:
    """Whether this processor is one that MKL has no AVX-512 for, and oneDNN is there."""
    if not torch.backends.mkldnn.is_available() or not hasattr(
        torch.ops.mkldnn, "_linear_pointwise"
    ):
        return False
    try:
        processor = Path("/proc/cpuinfo").read_text()
    except OSError:  # no Linux
        return False
    wide = "AVX512" in torch.backends.cpu.get_cpu_capability()
    return wide and torch.backends.mkl.is_available() and "AuthenticAMD" in processor


def multiply_by_onednn(graph: Graph) -> None:
    """Replace large products in float32 on the CPU.

    These are ``mm(a, b)``, ``addmm(bias, a, b)`` and what is added to a sum, ``addmm_(sum, a, b)``.
    """
    for node in list(graph.nodes):
        if node.op != "call_function" or node.kwargs or "val" not in node.meta:
            continue
        if node.target is aten.mm.default:
            added, (a, b) = None, node.args
        elif node.target in (aten.addmm.default, aten.addmm_.default):
            added, a, b = node.args
        else:
            continue
        if _worth(node.meta["val"], *(x and x.meta.get("val") for x in (a, b, added))):
            _replace(graph, node, a, b, added)


def _worth(out: Tensor, a: Tensor | None, b: Tensor | None, added: Tensor | None) -> bool:
    """Whether it is large and plain, and its factors lie in memory as oneDNN takes them.

    Of a factor that is a slice of a matrix it has no fast product.
    """
    if a is None or b is None:
        return False
    plain = out.dtype == torch.float32 and out.device.type == "cpu"
    dense = all(x.is_contiguous() or x.t().is_contiguous() for x in (a, b))
    fits = added is None or added.shape in (out.shape, out.shape[1:])
    return plain and dense and fits and out.numel() * a.shape[1] >= LEAST


def _replace(graph: Graph, node: Node, a: Any, b: Any, added: Any) -> None:
    """``linear(a, b^T)`` + ``added``, with b^T as it was before it was transposed."""
    linear = torch.ops.mkldnn._linear_pointwise
    with graph.inserting_before(node):
        of_t = b.op == "call_function" and b.target is aten.t.default
        weight = b.args[0] if of_t else graph.call_function(aten.t.default, (b,))
        if added is None or added.meta["val"].ndim == 1:  # a bias
            new = graph.call_function(linear.default, (a, weight, added, "none", [], ""))
        else:
            new = graph.call_function(linear.binary, (a, added, weight, None, "add"))
    new.meta = node.meta
    node.replace_all_uses_with(new)
    graph.erase_node(node)
