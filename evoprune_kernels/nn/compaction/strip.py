"""Gates out of a model, and the graph of what is left."""

from __future__ import annotations

import inspect
import operator
from typing import Any

import torch
from torch import Tensor, fx, nn

from evoprune_kernels.nn.conv import GatedBlock, GatedConv2d, GatedLinear, _record_positions
from evoprune_kernels.nn.swap import paths, replace


class Residual(nn.Module):
    """What is left of an open ``GatedBlock``: ``y = shortcut(x) + F(x)``."""

    def __init__(self, branch: nn.Module, shortcut: nn.Module) -> None:
        super().__init__()
        self.branch, self.shortcut = branch, shortcut

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, ...] -> the block's output."""
        return self.shortcut(x) + self.branch(x)


def strip(model: nn.Module, *, dense: bool = False) -> tuple[nn.Module, list[str], set[int]]:
    """Plain layers, in place of the gated ones of ``model``, whose gates are frozen.

    Args:
        dense: as if every gate were open; otherwise zeros where gates are closed, and no closed branches.

    Returns:
        The model (another object where the root itself has a gate), the names of closed blocks, and the ``id`` of
        every layer that had a gate.
    """
    holder, closed, gated = nn.Sequential(model), [], set()
    every = sorted(paths(holder).values(), key=lambda names: max(n.count(".") for n in names))
    for names in reversed(every):  # what is inside comes first, so that names stay true
        module = holder.get_submodule(names[0])
        new: nn.Module
        if isinstance(module, GatedConv2d | GatedLinear):
            assert module.gate.decision is not None
            new = module.to_dense()
            if not dense:
                _close(new, module.gate.decision)
            gated.add(id(new))
        elif isinstance(module, GatedBlock):
            assert module.gate.decision is not None
            is_open = dense or bool(module.gate.decision.all())
            new = Residual(module.branch, module.shortcut) if is_open else module.shortcut
            new.train(module.training)
            if not is_open:
                closed.append(names[0].partition(".")[2])
        else:
            continue
        for path in names:
            replace(holder, path, new)
    for module in holder.modules():
        for key, hook in list(module._forward_hooks.items()):
            if hook is _record_positions:
                del module._forward_hooks[key]
                module.__dict__.pop("positions", None)
    return holder[0], sorted(closed), gated


def _close(layer: nn.Module, decision: Tensor) -> None:
    """Zero filters and biases, in place: exactly what a closed gate gives."""
    with torch.no_grad():
        for parameter in layer._parameters.values():
            if parameter is not None:
                parameter[~decision.to(parameter.device)] = 0.0


class _Proxy(fx.Proxy):
    """``x += y`` stays a change in place: torch.fx would write ``x + y``, and miss that others read x."""

    def __iadd__(self, other: Any) -> fx.Proxy:
        return self.tracer.create_proxy("call_function", operator.iadd, (self, other), {})

    def __isub__(self, other: Any) -> fx.Proxy:
        return self.tracer.create_proxy("call_function", operator.isub, (self, other), {})

    def __imul__(self, other: Any) -> fx.Proxy:
        return self.tracer.create_proxy("call_function", operator.imul, (self, other), {})

    def __itruediv__(self, other: Any) -> fx.Proxy:
        return self.tracer.create_proxy("call_function", operator.itruediv, (self, other), {})


class Tracer(fx.Tracer):
    """Leaves: modules of torch, those with Parameters of their own and no gate inside, and what cannot be traced."""

    def __init__(self, gated: set[int]) -> None:
        super().__init__()
        self._gated = gated
        self.opaque: dict[str, str] = {}

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _Proxy(node, self)

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        own = any(p is not None for p in m._parameters.values())
        gates = any(id(child) in self._gated for child in m.modules() if child is not m)
        return (own and not gates) or super().is_leaf_module(m, module_qualified_name)

    def call_module(self, m: nn.Module, forward: Any, args: Any, kwargs: Any) -> Any:
        before, stack = len(self.graph.nodes), self.module_stack.copy()
        try:
            return super().call_module(m, forward, args, kwargs)
        except Exception as error:
            for node in reversed(list(self.graph.nodes)[before:]):
                self.graph.erase_node(node)
            self.module_stack = stack
            name = self.path_of_module(m)
            reason = str(error).partition("\n")[0]
            self.opaque[name] = f"torch.fx cannot trace {type(m).__name__} {name}: {reason}"
            return self.create_proxy("call_module", name, args, kwargs)


class _Shapes(fx.Interpreter):
    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        if isinstance(result, Tensor):
            n.meta["shape"] = tuple(result.shape)
        return result


def trace(
    model: nn.Module, args: tuple[Any, ...], gated: set[int]
) -> tuple[fx.GraphModule, dict[str, str]]:
    """The graph of a forward with ``args``, its shapes in ``node.meta``, and modules that stay whole -> why.

    Raises:
        ValueError: if ``model`` itself cannot be traced.
    """
    root = nn.Sequential(model) if isinstance(model, nn.Conv2d | nn.Linear) else model
    tracer = Tracer(gated)
    try:
        given = inspect.signature(root.forward).bind(*args).arguments
        defaults = {
            name: parameter.default
            for name, parameter in inspect.signature(root.forward).parameters.items()
            if name not in given and parameter.default is not parameter.empty
        }
        traced = fx.GraphModule(root, tracer.trace(root, concrete_args=defaults or None))
    except Exception as error:
        raise ValueError(f"torch.fx cannot trace {type(model).__name__}: {error}") from error
    with torch.no_grad():
        _Shapes(traced).run(*args)
    return traced, tracer.opaque
