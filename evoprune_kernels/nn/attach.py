"""A gate on a plain layer: given, taken away, and what ``print`` says of it."""

from __future__ import annotations

from typing import Any

from torch import nn

from evoprune_kernels.nn.gates import ChannelGate
from evoprune_kernels.nn.skipping import cannot_skip


def options(given: dict[str, Any]) -> dict[str, Any]:
    """The options of a gate under the names of ``ChannelGate``; ``TypeError`` for an unknown one."""
    known = {name: name for name in ("dynamic", "hidden", "ste", "skip_closed")}
    known["gate_init"] = "init"
    if unknown := sorted(set(given) - set(known)):
        raise TypeError(f"expected gate options in {tuple(known)}, got {unknown[0]!r}")
    return {"dynamic": False, **{known[name]: value for name, value in given.items()}}


def attach(
    layer: nn.Conv2d | nn.Linear,
    outputs: int,
    inputs: int,
    dynamic: bool,
    skip_closed: bool = False,
    **options: Any,
) -> None:
    """Give a layer its gate, on its weight's device, in its dtype and mode."""
    weight = layer.weight
    source = inputs if dynamic else None
    gate = ChannelGate(outputs, source, device=weight.device, dtype=weight.dtype, **options)
    layer.gate = gate.train(layer.training)
    layer.positions = 0  # type: ignore[assignment]
    layer.skip_closed = skip_closed  # type: ignore[assignment]


def detach(layer: nn.Conv2d | nn.Linear) -> None:
    """Take away what ``attach`` gave."""
    del layer._modules["gate"]
    for name in ("positions", "skip_closed"):
        layer.__dict__.pop(name, None)


def gate_repr(layer: nn.Conv2d | nn.Linear) -> str:
    """What ``print`` says of a gate; a layer that cannot skip says why."""
    assert isinstance(layer.gate, ChannelGate)
    text = f"gate={'dynamic' if layer.gate.dynamic else 'static'}"
    if layer.skip_closed:
        reason = cannot_skip(layer)
        text += ", skip_closed=True" + (f" (computes all: {reason})" if reason else "")
    return text
