"""What ``compact`` knows of every tensor in a traced model: which features are constant, and which leave together.

The features of a tensor lie in dim 1 (in the last dim behind a linear layer). A feature is *fixed* where it has the
same value at every position of every sample, whatever the input; a convolution whose filter is all zero starts one,
batch norms, activations and pools carry it on::

    conv (filter c closed)  0    ->  batch norm  beta - mean * gamma / std    ->  ReLU  max(0, that)

It is *needed* unless whatever reads it gives the same without it: multiplied by a fixed 0, or read by closed filters.

Every feature has a *slot*. Operations that keep features apart from each other hand the slots on; sums and products
unite the slots of what meets; a concatenation sets the slots of its sources side by side::

    a  [0 1 2]     b  [3 4]     cat  [0 1 2 3 4]     flatten of 2 positions each  [0 0 1 1 2 2 3 3 4 4]

A slot can leave if each of its features is fixed or not needed, in every tensor. An operation without a rule *pins* the
slots that it touches: nothing is removed from them, which is always right.
"""

from __future__ import annotations

import operator
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor, fx, nn

#: live features of a node -> what it needs of each of its sources: bool tensors
Back = Callable[[Tensor], list[tuple[fx.Node, Tensor]]]
IN_PLACE = (operator.iadd, operator.imul, operator.isub, operator.itruediv, operator.setitem)


class Unknown(Exception):
    """A node that no rule covers; the message says why."""


@dataclass
class Features:
    """The features of one tensor."""

    slots: Tensor  # int64 [F]
    fixed: Tensor  # bool [F]
    value: Tensor  # [F], read where fixed
    last: bool = False  # the last dim of [B, ..., F], else dim 1


@dataclass
class Layer:
    """A convolution or a linear layer; ``x`` is None where its columns are not the features of its input."""

    name: str
    module: nn.Conv2d | nn.Linear
    x: Features | None
    y: Features
    closed: Tensor  # bool [outputs], constant whatever the input

    #: of the convolution before it is cut; a linear layer has 1
    groups: int = field(init=False)
    #: depthwise: an output leaves with its input
    tied: bool = field(init=False)

    def __post_init__(self) -> None:
        conv = self.module if isinstance(self.module, nn.Conv2d) else None
        self.groups = 1 if conv is None else conv.groups
        self.tied = conv is not None and conv.groups == conv.in_channels > 1

    @property
    def pads_zeros(self) -> bool:
        """Whether the border of the input meets zeros, so that a constant input gives no constant output."""
        conv = self.module
        if not isinstance(conv, nn.Conv2d) or conv.padding_mode != "zeros":
            return False
        return any(p != 0 for p in conv._reversed_padding_repeated_twice)


class Slots:
    """Union-find over features that leave together."""

    def __init__(self) -> None:
        self._parent: list[int] = []

    def __len__(self) -> int:
        return len(self._parent)

    def new(self, count: int) -> Tensor:
        """``count`` slots, int64."""
        first = len(self._parent)
        self._parent.extend(range(first, first + count))
        return torch.arange(first, first + count)

    def find(self, slot: int) -> int:
        """The slot that stands for all that were united with this one."""
        while self._parent[slot] != slot:
            self._parent[slot] = self._parent[self._parent[slot]]
            slot = self._parent[slot]
        return slot

    def unite(self, a: Tensor, b: Tensor) -> None:
        """``a[i]`` and ``b[i]`` leave together."""
        for s, t in zip(a.tolist(), b.tolist(), strict=True):
            low, high = sorted((self.find(s), self.find(t)))
            self._parent[high] = low

    def roots(self, slots: Tensor) -> Tensor:
        """``find`` of every slot, int64."""
        return torch.tensor([self.find(s) for s in slots.tolist()], dtype=torch.int64)


class Graph:
    """``traced``, a model in eval mode whose nodes carry ``meta["shape"]``; the rules fill in the rest, node by node.

    Attributes:
        features: node -> ``Features``; nodes without features are not tensors, or have one dim.
        layers: convolutions and linear layers, and ``norms`` with their features, in order.
        sizes: node -> (the tensor whose shape it reads, the dims that it holds).
    """

    def __init__(self, traced: fx.GraphModule) -> None:
        self.traced = traced
        self.modules = dict(traced.named_modules(remove_duplicate=False))
        self.slots = Slots()
        self.features: dict[fx.Node, Features] = {}
        self.layers: list[Layer] = []
        self.norms: list[tuple[nn.Module, Features]] = []
        self.sizes: dict[fx.Node, tuple[fx.Node, tuple[int, ...]]] = {}
        self.why_not = _why_not(traced)
        self._back: dict[fx.Node, Back] = {}
        self._pins: list[tuple[Tensor, str]] = []
        self._memory: dict[fx.Node, fx.Node] = {}  # node -> what it may share memory with
        self._order = {node: i for i, node in enumerate(traced.graph.nodes)}
        self._like = next((p for p in traced.parameters() if p.is_floating_point()), torch.zeros(0))

    # ---- what the rules say ----
    def put(self, node: fx.Node, y: Features, back: Back) -> Features:
        """The features of ``node``, and what it needs of its sources."""
        self.features[node], self._back[node] = y, back
        return y

    def carry(
        self,
        node: fx.Node,
        source: fx.Node,
        value: Tensor,
        fixed: Tensor | None = None,
        *,
        view: bool = False,
    ) -> None:
        """One feature of ``source`` is one of ``node``; ``view``: perhaps in the same memory."""
        x = self.features[source]
        y = Features(x.slots, x.fixed if fixed is None else fixed, value, x.last)
        self.put(node, y, lambda live: [(source, live)])
        if view or self.mutates(node):
            self.share(node, source)

    def share(self, node: fx.Node, source: fx.Node) -> None:
        """``node`` may lie in the memory of ``source``."""
        node, source = self._owner(node), self._owner(source)
        if node is not source:
            self._memory[node] = source

    def fresh(self, node: fx.Node, like: Tensor | None = None) -> Features | None:
        """New slots for the features in dim 1 of ``node``, none of them fixed; None where it has no dim 1."""
        shape = node.meta.get("shape")
        if shape is None or len(shape) < 2:
            return None
        value = torch.zeros(shape[1], dtype=self._like.dtype, device=self._like.device)
        fixed = torch.zeros_like(value, dtype=torch.bool)
        self.features[node] = Features(self.slots.new(shape[1]), fixed, value)
        return self.features[node]

    def pin(self, node: fx.Node, reason: str) -> None:
        """Nothing may leave ``node``."""
        if node in self.features:
            self._pins.append((self.features[node].slots, reason))

    def unknown(self, node: fx.Node, why: str) -> None:
        """Pin what ``node`` reads and gives, and believe no constant in memory that it may write."""
        sources = [n for n in node.all_input_nodes if n in self.features]
        if node.op == "output":
            reach = come = "the output"
        else:
            what = self.describe(node) + (f": {why}" if why else "")
            reach, come = f"it reaches {what}", f"it comes from {what}"
        for source in sources:
            self.pin(source, reach)
            for x in (self.features[n] for n in self._sharers(source) if n in self.features):
                x.fixed = torch.zeros_like(x.fixed)
        for size in node.all_input_nodes:
            if size in self.sizes and self.reads_features(size):
                self.pin(self.sizes[size][0], f"their number reaches {self.describe(node)}")
        for read in node.all_input_nodes:  # it may give a view, or what it has changed
            self.share(node, read)
        self.fresh(node)
        self.pin(node, come)

    def describe(self, node: fx.Node) -> str:
        """A node for people: what it is, and its name in the model or in the graph."""
        if node.op == "call_module":
            return f"{type(self.modules[str(node.target)]).__name__} {node.target}"
        if node.op == "placeholder":
            return f"the input {node.name}"
        if node.op == "get_attr":
            return f"the tensor {node.target}"
        return f"{getattr(node.target, '__name__', node.target)} ({node.name})"

    # ---- shapes and memory ----
    def axis(self, node: fx.Node) -> int:
        """The dim of the features."""
        return len(node.meta["shape"]) - 1 if self.features[node].last else 1

    def reads_features(self, size: fx.Node) -> bool:
        """Whether a node of ``sizes`` holds the number of features, which changes when some leave."""
        source, dims = self.sizes[size]
        return source in self.features and self.axis(source) in dims

    def mutates(self, node: fx.Node) -> bool:
        """Whether a node writes into its first input."""
        if node.op == "call_module":
            return bool(getattr(self.modules[str(node.target)], "inplace", False))
        if node.op == "call_method":
            return str(node.target).endswith("_")
        flags = (node.kwargs.get("inplace"), *node.args[1:])
        return node.target in IN_PLACE or any(flag is True for flag in flags)

    def read_later(self, node: fx.Node, source: fx.Node) -> bool:
        """Whether the memory of ``source`` is read behind ``node`` by another way than through ``node``."""
        users = {user for other in self._sharers(source) for user in other.users}
        return any(self._order[user] > self._order[node] for user in users)

    def _owner(self, node: fx.Node) -> fx.Node:
        while node in self._memory:
            node = self._memory[node]
        return node

    def _sharers(self, source: fx.Node) -> list[fx.Node]:
        owner = self._owner(source)
        return [node for node in self._order if self._owner(node) is owner]

    # ---- the result ----
    def needed(self) -> dict[fx.Node, Tensor]:
        """Node -> bool [F]: whether anything that is read depends on the feature."""
        need = {node: torch.zeros_like(x.fixed) for node, x in self.features.items()}
        for node in reversed(self.traced.graph.nodes):
            if node in self._back:
                for source, used in self._back[node](need[node] & ~self.features[node].fixed):
                    need[source] = need[source] | used
                continue
            for source in node.all_input_nodes:
                if source in need:
                    need[source] = torch.ones_like(need[source])
        return need

    def stay(self) -> dict[int, str]:
        """Slots that must stay, the ones that stand for others -> why; the first reason of the graph wins."""
        stay: dict[int, str] = {}
        for slots, reason in self._pins:
            for root in self.slots.roots(slots).tolist():
                stay.setdefault(root, reason)
        need = self.needed()
        for node, x in self.features.items():
            live = (need[node] & ~x.fixed).cpu()
            for root in self.slots.roots(x.slots[live]).tolist():
                stay.setdefault(root, f"not constant in {self.describe(node)}")
        return stay


def _why_not(traced: fx.GraphModule) -> dict[str, str]:
    """Modules whose tensors may not be cut -> why."""
    modules = dict(traced.named_modules(remove_duplicate=False))
    nodes = list(traced.graph.nodes)
    calls = Counter(id(modules[str(n.target)]) for n in nodes if n.op == "call_module")
    owners: Counter[int] = Counter()
    for module in {id(m): m for m in modules.values()}.values():
        owners.update({id(p) for p in module._parameters.values() if p is not None})
    read = {str(n.target).rpartition(".")[0] for n in nodes if n.op == "get_attr"}
    found = {}
    for name, module in modules.items():
        if calls[id(module)] > 1 and (module._parameters or module._buffers):
            found[name] = "it is called more than once"
        elif name and name in read:
            found[name] = "its tensors are read from outside"
        elif any(owners[id(p)] > 1 for p in module._parameters.values() if p is not None):
            found[name] = "it shares a Parameter with another layer"
        elif module._forward_hooks or module._forward_pre_hooks or "forward" in module.__dict__:
            found[name] = "its forward is hooked or replaced"
    return found
