"""``gate_model_``: every convolution of a model gets a gate, in place."""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from torch import nn
from torch.nn.utils import parametrize

from evoprune_kernels._check import check
from evoprune_kernels.nn.conv import GatedConv2d
from evoprune_kernels.nn.swap import paths, replace

Where = Callable[[str, nn.Conv2d], bool] | str | Iterable[str]


@dataclass(frozen=True)
class GatingReport:
    """What ``gate_model_`` did: the channels of every ``gated`` layer by name, and ``skipped`` ones with the reason.

    Example:
        >>> print(GatingReport({"0": 8}, {"1": "excluded by where"}))
        gated 1 convolution, 8 channels
          0: 8
        not gated: 1
          1: excluded by where
    """

    gated: dict[str, int] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        layers = f"{len(self.gated)} convolution{'s' * (len(self.gated) != 1)}"
        lines = [f"gated {layers}, {sum(self.gated.values())} channels"]
        lines += [f"  {name}: {channels}" for name, channels in self.gated.items()]
        if self.skipped:
            lines.append(f"not gated: {len(self.skipped)}")
            lines += [f"  {name}: {reason}" for name, reason in self.skipped.items()]
        return "\n".join(lines)


def gate_model_(model: nn.Module, where: Where | None = None, **gate_options: Any) -> GatingReport:
    """Put a ``GatedConv2d`` in the place of every ``nn.Conv2d`` of ``model``, in place.

    Args:
        model: a ResNet, a VGG, a MobileNet, anything with ``nn.Conv2d``; Parameters stay the same objects.
        where: which convolutions: a function ``(name, conv) -> bool``, or one or several globs over the qualified
            names (``"layer*.conv1"``). None takes all.
        gate_options: ``dynamic``, ``hidden``, ``ste``, ``gate_init``, ``skip_closed``, see ``GatedConv2d``.

    Returns:
        What was gated and what was not, with the reasons; print it.

    Raises:
        ValueError: for a glob that matches no convolution, an impossible option, or a ``model`` that is itself one.
        TypeError: for an unknown option. The model is unchanged after any error.

    Notes:
        A depthwise convolution (``groups == in_channels > 1``, one output a channel or more) has no channels of its
        own: its input and output channels leave with those of the convolution before it, whose gate decides. It is
        skipped. A layer that stands at several places is one layer, with one gate. The optimizer does not know the new
        Parameters: make it after this call, or add them.

    Example:
        >>> model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3, groups=8), nn.Conv2d(8, 4, 1))
        >>> print(gate_model_(model))
        gated 2 convolutions, 12 channels
          0: 8
          3: 4
        not gated: 1
          2: depthwise: its channels follow the gate of the convolution before it
    """
    if isinstance(model, nn.Conv2d):
        raise ValueError(
            f"model is itself a {type(model).__name__}: gate_model_ replaces layers inside a model, use "
            "GatedConv2d.from_conv for one layer"
        )
    where_of = paths(model)
    modules = {names[0]: model.get_submodule(names[0]) for names in where_of.values()}
    convs = {name: module for name, module in modules.items() if isinstance(module, nn.Conv2d)}
    chosen = _chooser(where, list(convs))
    planned: dict[str, GatedConv2d] = {}
    skipped: dict[str, str] = {}
    for name, conv in convs.items():
        reason = _why_not(conv) or (None if chosen(name, conv) else "excluded by where")
        if reason is None:
            planned[name] = GatedConv2d.from_conv(conv, **gate_options)
        else:
            skipped[name] = reason
    for name, layer in planned.items():  # from here on nothing can fail
        for path in where_of[id(convs[name])]:
            replace(model, path, layer)
    return GatingReport({name: layer.out_channels for name, layer in planned.items()}, skipped)


def _why_not(conv: nn.Conv2d) -> str | None:
    """Why a convolution gets no gate, or None."""
    if isinstance(conv, GatedConv2d):
        return "already gated"
    if parametrize.is_parametrized(conv):
        return "parametrized: call torch.nn.utils.parametrize.remove_parametrizations first"
    if type(conv) is not nn.Conv2d:
        return f"{type(conv).__name__} is a subclass of nn.Conv2d, its forward may differ"
    if conv._parameters.get("weight") is None:
        return "weight is not a Parameter (torch.nn.utils.prune or weight_norm): remove that first"
    if "forward" in conv.__dict__:
        return "its forward is replaced on the instance (a hook of another library)"
    if conv.groups == conv.in_channels > 1:
        return "depthwise: its channels follow the gate of the convolution before it"
    return None


def _chooser(where: Where | None, names: list[str]) -> Callable[[str, nn.Conv2d], bool]:
    if where is None:
        return lambda name, conv: True
    if callable(where):
        return where
    globs = [where] if isinstance(where, str) else list(where)
    for glob in globs:
        check(
            bool(fnmatch.filter(names, glob)),
            f"where: no convolution matches {glob!r}; there are {names[:8]}",
        )
    return lambda name, conv: any(fnmatch.fnmatchcase(name, glob) for glob in globs)
