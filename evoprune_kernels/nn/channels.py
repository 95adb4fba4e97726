"""Which channels of a traced model are constant, and which must leave together: the analysis behind ``compact``.

Every tensor of the graph is described by its features (dim 1; the last one behind a linear layer): a feature is *fixed*
where it has the same value at every position of every sample, whatever the input. A convolution whose filter is all
zero starts one; batch norms, activations and pools carry it on::

    conv (filter c closed)  0    ->  batch norm  beta - mean * gamma / std    ->  ReLU  max(0, that)

Tensors whose channels must stay alike (through batch norms, activations, pools, sums) are one *group*. A channel can be
removed where it is fixed in every tensor of its group. An operation that is not known here *pins* the groups that it
touches: nothing is removed from them, which is always right.
"""

from __future__ import annotations

import operator
from collections import Counter
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

ACTIVATIONS = (
    nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.SiLU, nn.GELU, nn.Hardswish, nn.Hardsigmoid, nn.Hardtanh, nn.Mish,
    nn.Sigmoid, nn.Tanh, nn.Softplus, nn.Identity, nn.Dropout, nn.Dropout2d,
)  # fmt: skip
FUNCTIONS = (
    F.relu, F.relu6, F.leaky_relu, F.elu, F.silu, F.gelu, F.hardswish, F.hardsigmoid, torch.relu, torch.sigmoid,
    torch.tanh,
)  # fmt: skip
METHODS = ("relu", "relu_", "sigmoid", "tanh", "contiguous", "clone", "detach")
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)
SUMS = (operator.add, operator.iadd, torch.add)
#: pools that keep a constant as it is
POOLS = (nn.MaxPool2d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d)
POOL_FUNCTIONS = (F.adaptive_avg_pool2d, F.adaptive_max_pool2d, F.max_pool2d, torch.max_pool2d)


@dataclass
class Features:
    """Dim 1 of a tensor, or its last one: group, features a channel (after a flatten), what is fixed, and at what."""

    group: int
    repeat: int
    fixed: Tensor  # bool [C * repeat]
    value: Tensor  # [C * repeat], read where fixed
    last: bool = False  # the last dim of [B, ..., K]

    @property
    def channels(self) -> int:
        """C."""
        return self.fixed.numel() // self.repeat


def pads_zeros(conv: nn.Conv2d) -> bool:
    """Whether the border of the input meets zeros, so that a constant input does not give a constant output."""
    return conv.padding_mode == "zeros" and any(
        p != 0 for p in conv._reversed_padding_repeated_twice
    )


def is_depthwise(conv: nn.Conv2d) -> bool:
    """One input and one output channel a group."""
    return conv.groups == conv.in_channels == conv.out_channels > 1


class Analysis:
    """The features of every tensor in ``traced``, a model in eval mode whose nodes carry ``meta["shape"]``.

    Attributes:
        features: node -> ``Features``.
        pinned: group -> why nothing may leave it.
    """

    def __init__(self, traced: fx.GraphModule) -> None:
        self.traced = traced
        self.modules = dict(traced.named_modules(remove_duplicate=False))
        self.features: dict[fx.Node, Features] = {}
        self.pinned: dict[int, str] = {}
        self._parent: list[int] = []
        self._shared = _shared_modules(traced)
        self._like = next(traced.parameters(), torch.zeros(0)).detach()
        with torch.no_grad():
            for node in traced.graph.nodes:
                self._visit(node)

    # ---- groups ----
    def find(self, group: int) -> int:
        """The representative of a group."""
        while self._parent[group] != group:
            group = self._parent[group]
        return group

    def _union(self, a: int, b: int) -> int:
        a, b = sorted((self.find(a), self.find(b)))
        self._parent[b] = a
        if b in self.pinned:
            self.pinned.setdefault(a, self.pinned[b])
        return a

    def _pin(self, node: fx.Node, reason: str) -> None:
        if node in self.features:
            self.pinned.setdefault(self.find(self.features[node].group), reason)

    def _new(
        self,
        node: fx.Node,
        fixed: Tensor | None = None,
        value: Tensor | None = None,
        last: bool = False,
    ) -> None:
        shape = node.meta.get("shape")
        if shape is None or len(shape) < 2:
            return
        self._parent.append(len(self._parent))
        if fixed is None or value is None:
            value = self._like.new_zeros(shape[1])
            fixed = torch.zeros_like(value, dtype=torch.bool)
        self.features[node] = Features(len(self._parent) - 1, 1, fixed, value, last)

    def _same(self, node: fx.Node, source: fx.Node, fixed: Tensor, value: Tensor) -> None:
        x = self.features[source]
        self.features[node] = Features(x.group, x.repeat, fixed, value, x.last)

    def keep(self) -> dict[int, Tensor]:
        """Group -> bool [C]: what is not fixed everywhere in the group; everything where it is pinned."""
        keep: dict[int, Tensor] = {}
        for x in self.features.values():
            group = self.find(x.group)
            live = ~x.fixed.view(-1, x.repeat).all(1)
            if group in self.pinned:
                live = torch.ones_like(live)
            keep[group] = keep[group] | live if group in keep else live
        return keep

    # ---- one node ----
    def _visit(self, node: fx.Node) -> None:
        inputs = [n for n in node.all_input_nodes if n in self.features]
        if node.op == "call_module":
            known = self._module(node, self.modules[str(node.target)], inputs)
        elif node.op in ("call_function", "call_method"):
            known = self._function(node, inputs)
        else:  # placeholder, get_attr, output
            known = False
        if known:
            return
        what = {"placeholder": "an input", "output": "the output"}.get(node.op, str(node.target))
        for source in inputs:
            self._pin(source, f"it reaches {what} ({node.name})" if node.op != "output" else what)
        self._new(node)
        self._pin(node, f"it comes from {what} ({node.name})")

    def _module(self, node: fx.Node, module: nn.Module, inputs: list[fx.Node]) -> bool:
        if len(inputs) != 1 or str(node.target) in self._shared or len(node.args) != 1:
            return False
        source, x = inputs[0], self.features[inputs[0]]
        dims = len(source.meta["shape"])
        if type(module) is nn.Linear:
            if x.last != (dims > 2):
                self._pin(source, f"its features are not the input of {node.target}")
            self._new(node, *_fixed_rows(module), last=dims > 2)
            return True
        if type(module) in ACTIVATIONS:
            self._same(node, source, x.fixed, module(x.value.clone()))
            return True
        if x.last:
            return False
        if type(module) is nn.Conv2d and x.repeat == 1 and dims == 4:
            return self._conv(node, module, source)
        if type(module) in NORMS:
            shape = (1, -1, 1, 1) if type(module) is nn.BatchNorm2d else (1, -1)
            if module.running_mean is None or dims != len(shape):
                return False
            self._same(node, source, x.fixed, module(x.value.view(shape)).flatten())
            return True
        if type(module) in POOLS and getattr(module, "return_indices", False) is False:
            self._same(node, source, x.fixed, x.value)
            return True
        if type(module) is nn.AvgPool2d:
            plain = module.padding in (0, (0, 0)) and not module.ceil_mode
            self._same(node, source, x.fixed if plain else x.fixed & (x.value == 0), x.value)
            return True
        if type(module) is nn.Flatten:
            return self._flatten(node, source)
        return False

    def _conv(self, node: fx.Node, conv: nn.Conv2d, source: fx.Node) -> bool:
        x = self.features[source]
        fixed, value = _fixed_rows(conv)
        if conv.groups == 1:
            self._new(node, fixed, value)
            return True
        if not is_depthwise(conv):
            return False
        inner = x.fixed & (x.value == 0) if pads_zeros(conv) else x.fixed
        through = x.value * conv.weight.sum((1, 2, 3)) + value
        self._same(node, source, fixed | inner, torch.where(fixed, value, through))
        return True

    def _function(self, node: fx.Node, inputs: list[fx.Node]) -> bool:
        target: Any = node.target
        if target in ("size", "dim") or target is getattr:
            return self._size(node)
        if target in SUMS and len(inputs) == 2 and not node.kwargs:
            return self._sum(node, *inputs)
        if len(inputs) != 1 or not node.args or node.args[0] is not inputs[0]:
            return False
        source, x = inputs[0], self.features[inputs[0]]
        if target in FUNCTIONS or target in METHODS:
            run = target if callable(target) else getattr(torch.Tensor, str(target))
            value = run(x.value.clone(), *node.args[1:], **node.kwargs)
            self._same(node, source, x.fixed, value)
            return True
        if x.last:
            return False
        if target in POOL_FUNCTIONS and not node.kwargs.get("return_indices", False):
            self._same(node, source, x.fixed, x.value)
            return True
        if target in ("mean", torch.mean) and x.repeat == 1:
            return self._mean(node, source)
        if target in ("flatten", torch.flatten, "view", "reshape", torch.reshape):
            return self._flatten(node, source)
        return False

    def _size(self, node: fx.Node) -> bool:
        """The batch size may be read; any other size could be the number of channels."""
        if node.target == "dim" or (node.target == "size" and node.args[1:] == (0,)):
            return True
        if node.target is getattr and node.args[1] == "shape":
            reads = [user.target is operator.getitem and user.args[1] == 0 for user in node.users]
            return all(reads)
        return False

    def _sum(self, node: fx.Node, a: fx.Node, b: fx.Node) -> bool:
        x, y = self.features[a], self.features[b]
        if a.meta["shape"] != b.meta["shape"] or len(node.args) != 2:
            return False
        if (x.repeat, x.last) != (y.repeat, y.last):
            return False
        group = self._union(x.group, y.group)
        both = x.fixed & y.fixed
        self.features[node] = Features(group, x.repeat, both, x.value + y.value, x.last)
        return True

    def _mean(self, node: fx.Node, source: fx.Node) -> bool:
        dims = node.kwargs.get("dim", node.args[1] if len(node.args) > 1 else None)
        before, after = source.meta["shape"], node.meta.get("shape")
        if dims is None or len(before) != 4 or after is None or len(after) not in (2, 4):
            return False
        dims = (dims,) if isinstance(dims, int) else dims
        every = (
            {d % 4 for d in dims if isinstance(d, int)} if isinstance(dims, tuple | list) else {}
        )
        if every != {2, 3}:
            return False
        x = self.features[source]
        self._same(node, source, x.fixed, x.value)
        return True

    def _flatten(self, node: fx.Node, source: fx.Node) -> bool:
        """[B, C, ...] -> [B, C * ...], written so that it holds for fewer channels too."""
        x, before, after = self.features[source], source.meta["shape"], node.meta.get("shape")
        if after is None or len(after) != 2 or after[0] != before[0]:
            return False
        last = node.args[-1] if node.args else None
        last = last[-1] if isinstance(last, tuple | list) else last
        if node.target in ("view", "reshape", torch.reshape) and last != -1:
            return False
        times = after[1] // before[1] if before[1] else 1
        self.features[node] = Features(
            x.group,
            x.repeat * times,
            x.fixed.repeat_interleave(times),
            x.value.repeat_interleave(times),
        )
        return True


def _fixed_rows(module: nn.Conv2d | nn.Linear) -> tuple[Tensor, Tensor]:
    """Outputs whose weights are all zero, and what they are then."""
    weight = module.weight.detach()
    fixed = (weight == 0).flatten(1).all(1)
    bias = weight.new_zeros(weight.shape[0]) if module.bias is None else module.bias.detach()
    return fixed, bias.clone()


def _shared_modules(traced: fx.GraphModule) -> set[str]:
    """Modules that are called at several places, whose Parameters others use, or that are read without a call."""
    modules = dict(traced.named_modules(remove_duplicate=False))
    nodes = list(traced.graph.nodes)
    calls = Counter(id(modules[str(n.target)]) for n in nodes if n.op == "call_module")
    owners = Counter(
        id(p) for m in modules.values() for p in m._parameters.values() if p is not None
    )
    read = {str(n.target).rpartition(".")[0] for n in nodes if n.op == "get_attr"}
    return {
        name
        for name, module in modules.items()
        if (calls[id(module)] > 1 and (module._parameters or module._buffers))
        or name in read
        or any(owners[id(p)] > 1 for p in module._parameters.values() if p is not None)
    }
