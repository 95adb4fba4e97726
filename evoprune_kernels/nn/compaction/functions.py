"""The rules of functions and methods: pointwise ones, sums, products, concatenations, pools and changes of shape."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx
from torch.nn import functional as F

from evoprune_kernels.nn.compaction.graph import Features, Graph, Unknown
from evoprune_kernels.nn.compaction.layers import average, flatten

POINTWISE = (
    F.relu, F.relu_, F.relu6, F.leaky_relu, F.elu, F.selu, F.celu, F.silu, F.gelu, F.mish, F.hardswish, F.hardsigmoid,
    F.hardtanh, F.sigmoid, F.tanh, F.logsigmoid, F.softplus, F.softsign, torch.relu, torch.relu_, torch.sigmoid,
    torch.tanh, torch.clamp, torch.abs, torch.square, torch.neg, operator.neg,
)  # fmt: skip
POINTWISE_METHODS = (
    "relu", "relu_", "sigmoid", "sigmoid_", "tanh", "tanh_", "clamp", "clamp_", "abs", "square", "neg",
)  # fmt: skip
#: methods that give the same values
SAME = ("contiguous", "detach", "clone")
ADD, SUB, MUL, DIV = torch.add, torch.sub, torch.mul, torch.true_divide
BINARY: dict[Any, Callable[[Any, Any], Any]] = {
    operator.add: ADD, operator.iadd: ADD, torch.add: ADD, "add": ADD, "add_": ADD,
    operator.sub: SUB, operator.isub: SUB, torch.sub: SUB, "sub": SUB, "sub_": SUB,
    operator.mul: MUL, operator.imul: MUL, torch.mul: MUL, "mul": MUL, "mul_": MUL,
    operator.truediv: DIV, operator.itruediv: DIV, torch.div: DIV, "div": DIV, "div_": DIV,
}  # fmt: skip
CONCATENATIONS = (torch.cat, torch.concat, torch.concatenate)
#: pools that keep a constant as it is
POOLS = (F.adaptive_avg_pool2d, F.adaptive_max_pool2d, F.max_pool2d, torch.max_pool2d)
AVERAGE = (
    "kernel_size",
    "stride",
    "padding",
    "ceil_mode",
    "count_include_pad",
    "divisor_override",
)
VIEWS = ("view", "reshape", torch.reshape)
FLATTENS = ("flatten", torch.flatten)


def function_rule(graph: Graph, node: fx.Node) -> None:
    """The features of a ``call_function`` or ``call_method`` node; ``Unknown`` if no rule covers it."""
    target: Any = node.target
    if _size(graph, node):
        return
    if target in BINARY:
        _binary(graph, node, BINARY[target])
        return
    if target in CONCATENATIONS:
        _concatenate(graph, node)
        return
    source = node.args[0] if node.args else None
    if not isinstance(source, fx.Node) or source not in graph.features:
        raise Unknown("")
    if target == "expand_as":
        _expand(graph, node, source)
    elif target in VIEWS:
        _view(graph, node, source)
    elif any(
        n is not source and (n not in graph.sizes or graph.reads_features(n))
        for n in node.all_input_nodes
    ):
        raise Unknown("it reads other tensors")
    elif target in POINTWISE or target in POINTWISE_METHODS:
        run = target if callable(target) else getattr(Tensor, str(target))
        value = graph.features[source].value.clone()
        graph.carry(node, source, run(value, *node.args[1:], **node.kwargs))
    elif target in SAME:
        graph.carry(node, source, graph.features[source].value, view=True)
    else:
        _shape(graph, node, source)


def _shape(graph: Graph, node: fx.Node, source: fx.Node) -> None:
    """Functions of one tensor that pool it or change its shape."""
    target: Any = node.target
    x, dims = graph.features[source], len(source.meta["shape"])
    if target is F.dropout:
        if node.kwargs.get("training", (*node.args, True, True)[2]) is not False:
            raise Unknown("it is random in eval mode too")
        graph.carry(node, source, x.value, view=True)
    elif x.last:
        raise Unknown("")
    elif target in (*POOLS, F.interpolate) and dims == 4 and not node.kwargs.get("return_indices"):
        graph.carry(node, source, x.value)
    elif target is F.avg_pool2d and dims == 4:
        average(
            graph,
            node,
            source,
            dict(zip(AVERAGE, node.args[1:], strict=False)) | dict(node.kwargs),
        )
    elif target is F.pad and dims == 4 and node.kwargs.get("mode", "constant") == "constant":
        if len(node.args) != 2 or len(node.args[1]) > 4 or node.kwargs.get("value"):  # type: ignore[arg-type]
            raise Unknown("it pads with other values than 0, or channels")
        graph.carry(node, source, x.value, x.fixed & (x.value == 0))
    elif target in ("mean", torch.mean):
        _mean(graph, node, source)
    elif target in FLATTENS:
        flatten(graph, node, source)
    elif target in ("squeeze", "unsqueeze", torch.squeeze, torch.unsqueeze):
        longer = dims + (target in ("unsqueeze", torch.unsqueeze))
        dim = node.kwargs.get("dim", (*node.args, None)[1])
        if not isinstance(dim, int) or dim % longer < 2:
            raise Unknown("")
        graph.carry(node, source, x.value, view=True)
    else:
        raise Unknown("")


def _size(graph: Graph, node: fx.Node) -> bool:
    """Whether ``node`` reads a shape; where its number of features goes is looked at by what reads it."""
    source: Any = node.args[0] if node.args else None
    if not isinstance(source, fx.Node):
        return False
    if node.target is operator.getitem and source in graph.sizes:
        tensor, dims = graph.sizes[source]
        index = node.args[1]
        if len(node.all_input_nodes) > 1 or not isinstance(index, int | slice):
            return False
        chosen = dims[index]
        graph.sizes[node] = tensor, (chosen,) if isinstance(chosen, int) else chosen
        return True
    if source not in graph.features:
        return False
    every = tuple(range(len(source.meta["shape"])))
    if node.target == "size":
        dim = node.kwargs.get("dim", (*node.args, None)[1])
        if isinstance(dim, fx.Node):
            return False
        graph.sizes[node] = source, every if dim is None else (every[dim],)  # type: ignore[index]
        return True
    if node.target is getattr and node.args[1] == "shape":
        graph.sizes[node] = source, every
        return True
    return node.target in ("dim", "ndimension") or (
        node.target is getattr and node.args[1] in ("ndim", "dtype", "device")
    )


def _binary(graph: Graph, node: fx.Node, run: Callable[[Any, Any], Any]) -> None:
    """Sums and products with a number, or of two tensors: what meets leaves together."""
    if len(node.args) != 2 or node.kwargs:
        raise Unknown("")
    a, b = node.args
    first = a if isinstance(a, fx.Node) else b
    if not isinstance(first, fx.Node) or first not in graph.features:
        raise Unknown("")
    x = graph.features[first]
    if isinstance(a, int | float) or isinstance(b, int | float):
        value = run(*(x.value if argument is first else argument for argument in (a, b)))
        graph.carry(node, first, value)
        return
    if not isinstance(b, fx.Node) or b not in graph.features:
        raise Unknown("the other one is no tensor with features")
    y = graph.features[b]
    if len(x.slots) != len(y.slots) or graph.axis(first) != graph.axis(b) or x.last != y.last:
        raise Unknown("their features differ")
    if len(first.meta["shape"]) != len(b.meta["shape"]):
        raise Unknown("their dims differ")
    graph.slots.unite(x.slots, y.slots)
    fixed, value = x.fixed & y.fixed, run(x.value, y.value)
    if run is MUL:  # 0 times anything
        zero = (x.fixed & (x.value == 0)) | (y.fixed & (y.value == 0))
        fixed, value = fixed | zero, torch.where(zero, 0.0, value)
    other = b
    graph.put(
        node,
        Features(x.slots, fixed, value, x.last),
        lambda live: [(first, live), (other, live)],
    )
    if graph.mutates(node):
        graph.share(node, first)


def _concatenate(graph: Graph, node: fx.Node) -> None:
    """Along the features: the slots of the sources side by side."""
    sources: Any = node.args[0] if node.args else node.kwargs.get("tensors")
    dim: Any = node.kwargs.get("dim", node.args[1] if len(node.args) > 1 else 0)
    if not isinstance(sources, list | tuple) or not isinstance(dim, int):
        raise Unknown("")
    if any(not isinstance(s, fx.Node) or s not in graph.features for s in sources):
        raise Unknown("not all of them are tensors with features")
    parts = [graph.features[s] for s in sources]
    shape = node.meta["shape"]
    if {graph.axis(s) for s in sources} != {dim % len(shape)} or len({x.last for x in parts}) > 1:
        raise Unknown("not along the features")
    y = Features(
        torch.cat([x.slots for x in parts]),
        torch.cat([x.fixed for x in parts]),
        torch.cat([x.value for x in parts]),
        parts[0].last,
    )
    lengths = [len(x.slots) for x in parts]
    graph.put(node, y, lambda live: list(zip(sources, live.split(lengths), strict=True)))


def _expand(graph: Graph, node: fx.Node, source: fx.Node) -> None:
    """[B, C, 1, 1] -> the shape of another tensor with C features."""
    other = node.args[1]
    if not isinstance(other, fx.Node) or other not in graph.features:
        raise Unknown("")
    x, y = graph.features[source], graph.features[other]
    same = len(x.slots) == len(y.slots) and x.last == y.last
    if not same or graph.axis(source) != graph.axis(other):
        raise Unknown("their features differ")
    graph.slots.unite(x.slots, y.slots)
    graph.put(
        node,
        Features(x.slots, x.fixed, x.value, x.last),
        lambda live: [(source, live), (other, torch.zeros_like(live))],
    )
    graph.share(node, source)


def _mean(graph: Graph, node: fx.Node, source: fx.Node) -> None:
    """Over both dims of the image."""
    dim: Any = node.kwargs.get("dim", node.args[1] if len(node.args) > 1 else None)
    dims = (dim,) if isinstance(dim, int) else dim
    if not isinstance(dims, tuple | list) or len(source.meta["shape"]) != 4:
        raise Unknown("not over height and width")
    if {d % 4 for d in dims if isinstance(d, int)} != {2, 3}:
        raise Unknown("not over height and width")
    graph.carry(node, source, graph.features[source].value)


def _view(graph: Graph, node: fx.Node, source: fx.Node) -> None:
    """A flatten, or dims behind the features that change, written so that it holds for fewer features too."""
    x, before, after = graph.features[source], source.meta["shape"], node.meta.get("shape")
    given: Any = node.args[1:] or node.kwargs.get("shape", ())
    shape = given[0] if len(given) == 1 and isinstance(given[0], tuple | list) else given
    if x.last or after is None or len(after) < 2 or len(shape) != len(after):
        raise Unknown("")
    if before[0] != after[0] or before[0] == 0:
        raise Unknown("it changes the batch")
    for i, size in enumerate(shape):
        if isinstance(size, fx.Node) and (size not in graph.sizes or len(graph.sizes[size][1]) > 1):
            raise Unknown("its shape is computed")
        if isinstance(size, fx.Node) and i != 1 and graph.reads_features(size):
            raise Unknown("it moves the features")
    if shape[1] == -1 and len(after) == 2:
        flatten(graph, node, source)
        return
    if before[1] != after[1]:
        raise Unknown("it moves the features")
    if isinstance(shape[1], fx.Node) and graph.reads_features(shape[1]):
        like = graph.sizes[shape[1]][0]
        graph.slots.unite(x.slots, graph.features[like].slots)  # as many have to be left in both
    elif shape[1] != -1:
        raise Unknown("it is written for this number of features")
    graph.carry(node, source, x.value, view=True)
