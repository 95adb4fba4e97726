"""Gates behind the batch norm while they are learned; in front of it once they are decided.

::

    in front   norm(g * conv(x))    in training the norm divides by the spread: it makes the same of g as of 1, and
                                    the gradient of an open static gate is 0 whatever the channel is worth
    behind     g * norm(conv(x))    the gradient is sum(dy * norm(conv(x))): what the channel is worth

``settle_gates_`` makes a plain ``GatedConv2d`` of the second that computes the same: a closed channel's filter, and
the scale and shift of its norm, become 0.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from evoprune_kernels.nn.calls import Calls
from evoprune_kernels.nn.conv import GatedConv2d
from evoprune_kernels.nn.gates import apply_gates


class _GatedBehind(GatedConv2d):
    """Computes its gates and leaves it to the norm behind it to multiply by them."""

    def forward(self, input: Tensor) -> Tensor:
        """[B, C_in, H, W] -> the output without gates; the gates are in ``gate.last``."""
        output = nn.Conv2d.forward(self, input)
        self.positions = output.shape[2] * output.shape[3]
        self.gate(input)
        return output


class _Multiply:
    """Forward hook of a norm: times the gates of the convolution in front of it (an object, so that copies follow)."""

    def __init__(self, conv: _GatedBehind) -> None:
        self.conv = conv

    def __call__(self, norm: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> Tensor:
        gates = self.conv.gate.last
        if gates is None:
            raise RuntimeError("the norm ran without the convolution in front of it")
        return apply_gates(output, gates)


def norms_behind(model: nn.Module, names: Iterable[str]) -> tuple[dict[str, str], dict[str, str]]:
    """Which batch norm follows each of these convolutions: ``(layer -> norm, layer -> why there is none)``."""
    convs = list(names)
    try:
        calls = Calls(model)
    except ValueError as error:
        return {}, dict.fromkeys(convs, str(error))
    found, missing = {}, {}
    for name in convs:
        norm, why = None, f"torch.fx sees it called {calls.times[name]} times in a forward"
        if calls.times[name] == 1:
            norm, why = calls.follower(name, nn.BatchNorm2d)
        if norm is None:
            missing[name] = why
        else:
            found[name] = norm
    return found, missing


def gates_behind_norms_(model: nn.Module) -> dict[str, str]:
    """From here on gates multiply what the batch norm behind their convolution gives, in place.

    ``y = g * norm(conv(x))`` instead of ``norm(g * conv(x))``

    Args:
        model: with ``GatedConv2d`` layers.

    Returns:
        layer -> why its gate stays where it is; empty where all moved.

    Notes:
        The state_dict keeps its names. Call ``settle_gates_`` before ``compact``.

    Example:
        >>> import torch
        >>> model = nn.Sequential(GatedConv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), GatedConv2d(4, 2, 3))
        >>> gates_behind_norms_(model)
        {'3': 'what follows is not a BatchNorm2d: output'}
    """
    gated = [name for name, module in model.named_modules() if isinstance(module, GatedConv2d)]
    found, missing = norms_behind(model, gated)
    for name, norm in found.items():
        conv = model.get_submodule(name)
        conv.__class__ = _GatedBehind
        assert isinstance(conv, _GatedBehind)
        model.get_submodule(norm).register_forward_hook(_Multiply(conv))
    return missing


@torch.no_grad()
def settle_gates_(model: nn.Module) -> None:
    """Frozen gates back in front of their norms, in place; the model computes what it did.

    Raises:
        RuntimeError: if a gate behind a norm is not frozen; the model is then unchanged.

    Notes:
        The filters of closed channels, and what their norms make of them, become 0.
    """
    hooks = [
        (norm, key, hook.conv)
        for norm in model.modules()
        for key, hook in norm._forward_hooks.items()
        if isinstance(hook, _Multiply)
    ]
    for _, _, conv in hooks:
        if conv.gate.decision is None:
            raise RuntimeError("expected frozen gates behind every norm: call freeze_gates first")
    for norm, key, conv in hooks:
        del norm._forward_hooks[key]
        conv.__class__ = GatedConv2d  # type: ignore[assignment]
        assert conv.gate.decision is not None
        closed = ~conv.gate.decision
        for tensor in (conv.weight, conv.bias, norm.weight, norm.bias, norm.running_mean):
            if isinstance(tensor, Tensor):
                tensor[closed.to(tensor.device)] = 0.0
