"""Which batch norm and activation stand behind a convolution, so that a sparse one can take them over.

The model is traced with ``torch.fx``; inside of what cannot be traced (control flow that depends on data), neighbours
in an ``nn.Sequential`` are looked at, and the report says so. A module is taken over only where that cannot be seen
from outside: it is called once, its input is used by nothing else, it has one name and no hooks.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from torch import Tensor, nn

from evoprune_kernels.nn.calls import Calls
from evoprune_kernels.nn.sparse_conv import folded
from evoprune_kernels.nn.swap import paths
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


def tails(model: nn.Module) -> tuple[dict[str, Tail], dict[str, str]]:
    """What follows the convolutions: ``(name -> tail, what torch.fx cannot look into -> why)``.

    Only convolutions that something follows are named; the model itself is called ``""``.

    Example:
        >>> model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU()).eval()
        >>> {name: str(tail) for name, tail in tails(model)[0].items()}
        {'0': 'BatchNorm2d + ReLU'}
    """
    single = {names[0] for names in paths(model).values() if len(names) == 1}
    chains: list[tuple[str, list[str]]] = []
    try:
        calls = Calls(model)
    except ValueError as error:
        untraced = {"": str(error)}
    else:
        untraced = calls.opaque
        chains += _chains_of_calls(calls)
    for name in untraced:
        chains += _chains_of_sequentials(model.get_submodule(name), name)
    found = {}
    for name, followers in chains:
        conv = model.get_submodule(name)
        if type(conv) is nn.Conv2d and name in single and not _hooked(conv):
            chain = [(n, model.get_submodule(n)) for n in followers if n in single]
            tail = _tail(conv, chain if len(chain) == len(followers) else chain[:0])
            if tail.modules:
                found[name] = tail
    return found, untraced


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


#: a convolution's name, and the names of up to two modules that follow it
Chains = Iterator[tuple[str, list[str]]]


def _chains_of_calls(calls: Calls) -> Chains:
    for name, times in calls.times.items():
        followers: list[str] = []
        last: str | None = name if times == 1 else None
        while last is not None and len(followers) < 2:
            last, _ = calls.follower(last)
            followers += [last] if last is not None else []
        yield name, followers


def _chains_of_sequentials(model: nn.Module, prefix: str = "") -> Chains:
    for name, module in model.named_modules(prefix=prefix):
        if type(module) is nn.Sequential:
            children = [f"{name}.{child}" if name else child for child in module._modules]
            for i, child in enumerate(children):
                yield child, children[i + 1 : i + 3]
