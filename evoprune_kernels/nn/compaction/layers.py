"""The rules of modules: what a convolution, a linear layer, a norm, an activation or a pool makes of its features."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx, nn

from evoprune_kernels.nn.compaction.graph import Features, Graph, Layer, Unknown

ACTIVATIONS = (
    nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.SELU, nn.CELU, nn.SiLU, nn.GELU, nn.Hardswish, nn.Hardsigmoid,
    nn.Hardtanh, nn.Mish, nn.Sigmoid, nn.LogSigmoid, nn.Tanh, nn.Softplus, nn.Softsign,
)  # fmt: skip
#: what is nothing in eval mode
NOTHING = (nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.AlphaDropout)
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)
#: pools that keep a constant as it is; upsampling does as well
POOLS = (nn.MaxPool2d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d)
UPSAMPLES = (nn.Upsample, nn.UpsamplingNearest2d, nn.UpsamplingBilinear2d)


def module_rule(graph: Graph, node: fx.Node) -> None:
    """The features of a ``call_module`` node; ``Unknown`` if no rule covers it."""
    name, module = str(node.target), graph.modules[str(node.target)]
    if name in graph.why_not:
        raise Unknown(graph.why_not[name])
    source = node.args[0] if len(node.args) == 1 and not node.kwargs else None
    if not isinstance(source, fx.Node) or source not in graph.features:
        raise Unknown("")
    x = graph.features[source]
    dims = len(source.meta["shape"])
    if type(module) is nn.Linear:
        _linear(graph, node, module, source)
    elif type(module) in ACTIVATIONS or (type(module) is nn.PReLU and module.num_parameters == 1):
        graph.carry(node, source, module(x.value.clone()))
    elif type(module) in NOTHING:
        graph.carry(node, source, x.value, view=True)
    elif x.last or dims not in (2, 4):
        raise Unknown("")
    elif type(module) is nn.Conv2d and dims == 4:
        _conv(graph, node, module, source)
    elif type(module) in NORMS:
        _norm(graph, node, module, source)
    elif type(module) in (*POOLS, *UPSAMPLES) and not getattr(module, "return_indices", False):
        graph.carry(node, source, x.value)
    elif type(module) is nn.AvgPool2d:
        average(graph, node, source, vars(module))
    elif type(module) is nn.ZeroPad2d:
        graph.carry(node, source, x.value, x.fixed & (x.value == 0))
    elif type(module) is nn.Flatten:
        flatten(graph, node, source)
    else:
        raise Unknown("")


def average(graph: Graph, node: fx.Node, source: fx.Node, options: dict[str, Any]) -> None:
    """An average pool: a constant stays, but 0 alone where padding or another divisor counts."""
    x = graph.features[source]
    counts = options.get("count_include_pad", True) and options.get("padding", 0) not in (0, (0, 0))
    plain = not counts and not options.get("ceil_mode") and not options.get("divisor_override")
    graph.carry(node, source, x.value, x.fixed if plain else x.fixed & (x.value == 0))


def flatten(graph: Graph, node: fx.Node, source: fx.Node) -> None:
    """[B, C, ...] -> [B, C * ...]."""
    x, before, after = graph.features[source], source.meta["shape"], node.meta.get("shape")
    if after is None or len(after) != 2 or after[0] != before[0] or x.last or before[1] == 0:
        raise Unknown("it does not flatten everything but the batch")
    times = after[1] // before[1]
    slots, fixed, value = (t.repeat_interleave(times) for t in (x.slots, x.fixed, x.value))
    y = Features(slots, fixed, value)
    graph.put(node, y, lambda live: [(source, live.view(-1, times).any(1))])
    graph.share(node, source)


def _norm(graph: Graph, node: fx.Node, norm: nn.Module, source: fx.Node) -> None:
    x = graph.features[source]
    shape = (1, -1, 1, 1) if type(norm) is nn.BatchNorm2d else (1, -1)
    if getattr(norm, "running_mean", None) is None:
        raise Unknown("it has no running statistics")
    if len(source.meta["shape"]) != len(shape):
        raise Unknown("")
    graph.carry(node, source, norm(x.value.view(shape)).flatten())
    graph.norms.append((norm, graph.features[node]))


def _linear(graph: Graph, node: fx.Node, linear: nn.Linear, source: fx.Node) -> None:
    x = graph.features[source]
    last = len(source.meta["shape"]) > 2
    own = x.last == last  # else its columns are another dim than the features of x
    if not own:
        graph.pin(source, f"they are not the input features of {graph.describe(node)}")
    weight = linear.weight.detach()
    steady = x.fixed if own else torch.zeros(weight.shape[1], dtype=torch.bool)
    value = x.value if own else torch.zeros(weight.shape[1], dtype=weight.dtype)
    fixed, constant = _outputs(weight, linear.bias, 1, steady, value)
    y = Features(graph.slots.new(len(fixed)), fixed, constant, last)
    reads = weight != 0

    def back(live: Tensor) -> list[tuple[fx.Node, Tensor]]:
        return [(source, (reads & live[:, None]).any(0) if own else torch.ones_like(x.fixed))]

    graph.put(node, y, back)
    graph.layers.append(Layer(str(node.target), linear, x if own else None, y, fixed))


def _conv(graph: Graph, node: fx.Node, conv: nn.Conv2d, source: fx.Node) -> None:
    x, weight = graph.features[source], conv.weight.detach()
    empty = Features(x.slots, x.fixed, x.value)
    layer = Layer(str(node.target), conv, x, empty, x.fixed)
    steady = x.fixed & (x.value == 0) if layer.pads_zeros else x.fixed
    fixed, value = _outputs(weight, conv.bias, conv.groups, steady, x.value)
    each = conv.out_channels // conv.groups
    slots = x.slots.repeat_interleave(each) if layer.tied else graph.slots.new(conv.out_channels)
    reads = (weight != 0).flatten(2).any(2).view(conv.groups, each, -1)

    def back(live: Tensor) -> list[tuple[fx.Node, Tensor]]:
        return [(source, (reads & live.view(conv.groups, each, 1)).any(1).flatten())]

    layer.y = graph.put(node, Features(slots, fixed, value), back)
    layer.closed = fixed
    graph.layers.append(layer)


def _outputs(
    weight: Tensor, bias: Tensor | None, groups: int, steady: Tensor, value: Tensor
) -> tuple[Tensor, Tensor]:
    """Which outputs read nothing but ``steady`` inputs, and what they are: bool [N], [N]."""
    taps = weight.flatten(2) if weight.dim() > 2 else weight.unsqueeze(2)  # [N, K of a group, taps]
    taps = taps.view(groups, weight.shape[0] // groups, *taps.shape[1:])
    steady = steady.to(weight.device).view(groups, 1, -1)
    known = torch.where(steady, value.to(weight.device).view(groups, 1, -1), 0.0).double()
    fixed = (steady | (taps == 0).all(3)).all(2).flatten()
    constant = (taps.double().sum(3) * known).sum(2).flatten()
    if bias is not None:
        constant = constant + bias.detach().double()
    return fixed, constant.to(weight.dtype)
