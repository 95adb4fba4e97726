"""Which batch norm and activation stand behind a convolution, so that a sparse one can take them over.

The model is traced with ``torch.fx``; where that fails (control flow that depends on data), neighbours in an
``nn.Sequential`` are looked at. A module is taken over only where that cannot be seen from outside: it is called once,
its input is used by nothing else, it has one name and no hooks.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

from torch import Tensor, fx, nn

from evoprune_kernels.nn.sparse_conv import folded
from evoprune_kernels.nn.swap import is_sparse, paths
from evoprune_kernels.ops._linear import activate


class Activation(nn.Module):
    """One of the activations that the kernels have, as a module."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name

    def forward(self, input: Tensor) -> Tensor:
        """``act(input)``."""
        return activate(input, self.name)


def activation_name(module: nn.Module) -> str | None:
    """The name that the kernels know an activation module by, or None."""
    if type(module) is nn.GELU:
        return "gelu" if module.approximate == "none" else "gelu_tanh"
    return {nn.ReLU: "relu", nn.SiLU: "silu"}.get(type(module))


@dataclass(frozen=True)
class Tail:
    """What follows one convolution."""

    conv: nn.Conv2d
    norm: nn.BatchNorm2d | None
    activation: str | None
    #: name -> module, of those that are taken over, and what stands there then
    modules: dict[str, nn.Module]
    stand_ins: dict[str, nn.Module] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.stand_ins.update({name: nn.Identity() for name in self.modules})

    def __str__(self) -> str:
        return " + ".join(type(module).__name__ for module in self.modules.values())

    def convolution(self) -> nn.Conv2d:
        """The convolution with the batch norm folded in: a copy, or itself where there is none."""
        return self.conv if self.norm is None else folded(self.conv, self.norm)

    def dense(self) -> nn.Module:
        """What a sparse layer is measured against: the folded convolution, then the activation."""
        conv = self.convolution()
        return conv if self.activation is None else nn.Sequential(conv, Activation(self.activation))


def tails(model: nn.Module) -> dict[str, Tail]:
    """Name of a convolution -> what follows it; only those that something follows.

    Example:
        >>> model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU()).eval()
        >>> {name: str(tail) for name, tail in tails(model).items()}
        {'0': 'BatchNorm2d + ReLU'}
    """
    single = {names[0] for names in paths(model).values() if len(names) == 1}
    try:
        graph = _Tracer().trace(model)
    except Exception:  # any code of the model runs here, on stand-ins for tensors
        chains = _chains_of_sequentials(model)
    else:
        chains = _chains_of_graph(graph)
    found = {}
    for name, followers in chains:
        conv = model.get_submodule(name)
        if type(conv) is nn.Conv2d and name in single and not _hooked(conv):
            chain = [(n, model.get_submodule(n)) for n in followers if n in single]
            tail = _tail(conv, chain if len(chain) == len(followers) else chain[:0])
            if tail.modules:
                found[name] = tail
    return found


def _tail(conv: nn.Conv2d, chain: list[tuple[str, nn.Module]]) -> Tail:
    """The part of ``chain`` that can be taken over: a batch norm, then an activation."""
    norm, activation = None, None
    modules: dict[str, nn.Module] = {}
    for name, module in chain:
        if _hooked(module):
            break
        if type(module) is nn.BatchNorm2d and not modules:
            if module.running_mean is None or module.training:
                break
            norm = module
        elif (known := activation_name(module)) is not None:
            activation = known
        else:
            break
        modules[name] = module
        if activation is not None:
            break
    return Tail(conv, norm, activation, modules)


def _hooked(module: nn.Module) -> bool:
    return bool(module._forward_hooks or module._forward_pre_hooks) or "forward" in module.__dict__


class _Tracer(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return is_sparse(m) or super().is_leaf_module(m, module_qualified_name)


#: a convolution's name, and the names of up to two modules that follow it
Chains = Iterator[tuple[str, list[str]]]


def _chains_of_graph(graph: fx.Graph) -> Chains:
    modules = [node for node in graph.nodes if node.op == "call_module"]
    calls = Counter(str(node.target) for node in modules)

    def once(node: fx.Node) -> bool:
        single = node.op == "call_module" and calls[str(node.target)] == 1
        return single and len(node.args) == 1 and not node.kwargs

    for node in filter(once, modules):
        followers: list[str] = []
        last = node
        while len(followers) < 2 and len(last.users) == 1:
            last = next(iter(last.users))
            if not once(last):
                break
            followers.append(str(last.target))
        yield str(node.target), followers


def _chains_of_sequentials(model: nn.Module) -> Chains:
    for name, module in model.named_modules():
        if type(module) is nn.Sequential:
            children = [f"{name}.{child}" if name else child for child in module._modules]
            for i, child in enumerate(children):
                yield child, children[i + 1 : i + 3]
