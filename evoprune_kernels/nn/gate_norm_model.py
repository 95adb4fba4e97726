"""``fuse_gate_norm_``: finds gated convolution -> batch norm -> ReLU in a model and makes each chain one op."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from torch import nn

from evoprune_kernels._check import check
from evoprune_kernels.nn.calls import Calls
from evoprune_kernels.nn.compaction.verify import compare
from evoprune_kernels.nn.conv import GatedConv2d
from evoprune_kernels.nn.gate_norm import FusedReLU, GateNorm2d, UngatedConv2d
from evoprune_kernels.nn.swap import paths, replace


@dataclass(frozen=True)
class FusionReport:
    """What ``fuse_gate_norm_`` did.

    Attributes:
        fused: gated convolution -> the layers that follow it and are now one op: the norm, and the ReLU if it is in.
        kept: gated convolution -> why it is not fused; a fused one -> why its ReLU is not.

    Example:
        >>> print(FusionReport({"0": ("1", "2")}, {"3": "what follows is not a BatchNorm2d: relu"}))
        fused 1 gated convolution
          0: 1, 2
        not fused:
          3: what follows is not a BatchNorm2d: relu
    """

    fused: dict[str, tuple[str, ...]] = field(default_factory=dict)
    kept: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        lines = [f"fused {len(self.fused)} gated convolution{'s' * (len(self.fused) != 1)}"]
        lines += [f"  {name}: {', '.join(layers)}" for name, layers in self.fused.items()]
        if self.kept:
            lines += ["not fused:", *(f"  {name}: {why}" for name, why in self.kept.items())]
        return "\n".join(lines)


class _Chain(NamedTuple):
    conv: str
    norm: str
    relu: str | None


def fuse_gate_norm_(model: nn.Module, example_inputs: Any) -> FusionReport:
    """Make every gated convolution -> batch norm [-> ReLU] of a model one op, in place.

    Args:
        model: with ``GatedConv2d`` layers; any mode, which stays. Parameters stay the same objects, and a state_dict
            of the model as it was still loads.
        example_inputs: a tensor or a tuple of arguments, to compare the outputs on in eval mode.

    Returns:
        What was fused and what was not, with the reasons; print it.

    Raises:
        ValueError: if the model has no ``GatedConv2d``, is itself one, or cannot be traced by ``torch.fx``.
        RuntimeError: if the outputs differ by more than rounding. The model is unchanged after any error.

    Notes:
        Fused is a ``GatedConv2d`` whose only use is an ``nn.BatchNorm2d``; both are called once in a forward. A ReLU
        goes in if it is an ``nn.ReLU`` module that is called there only: one that a block uses at several places, or
        ``F.relu``, stays a walk over memory of its own. Hooks of the convolution then see its output without gates.
        ``unfuse_gate_norm_`` undoes it all. See ``GateNorm2d``.

    Example:
        >>> import torch
        >>> model = nn.Sequential(GatedConv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU())
        >>> print(fuse_gate_norm_(model, torch.randn(1, 3, 8, 8)))
        fused 1 gated convolution
          0: 1, 2
    """
    check(
        not isinstance(model, GatedConv2d),
        f"model is itself a {type(model).__name__}: fuse_gate_norm_ replaces layers inside a model",
    )
    convs = [name for name, m in model.named_modules() if type(m) is GatedConv2d]
    check(len(convs) > 0, f"expected a model with GatedConv2d, got none in {type(model).__name__}")
    args = example_inputs if isinstance(example_inputs, tuple) else (example_inputs,)
    chains, kept = _find(model, convs)
    before = copy.deepcopy(model).eval()
    after = copy.deepcopy(before)
    _fuse(after, chains)
    compare(before, after, args, "fused")
    _fuse(model, chains)
    fused = {c.conv: (c.norm, *([c.relu] if c.relu else [])) for c in chains}
    return FusionReport(fused, kept)


def _find(model: nn.Module, convs: list[str]) -> tuple[list[_Chain], dict[str, str]]:
    """The chains, and what is not fused with the reason; by the first name of every module."""
    calls = Calls(model)
    chains, kept = [], {}
    for name in convs:
        if calls.times[name] != 1:
            kept[name] = f"torch.fx sees it called {calls.times[name]} times in a forward"
            continue
        norm, why = calls.follower(name, nn.BatchNorm2d)
        if norm is None:
            kept[name] = why
            continue
        relu, why = calls.follower(norm, nn.ReLU)
        if relu is None:
            kept[name] = f"fused without a ReLU: {why}"
        chains.append(_Chain(name, norm, relu))
    return chains, kept


def _fuse(model: nn.Module, chains: list[_Chain]) -> None:
    """Replace the layers; nothing here can fail."""
    where_of = paths(model)

    def put(name: str, new: nn.Module) -> None:
        for path in where_of[id(model.get_submodule(name))]:
            replace(model, path, new)

    for chain in chains:
        gated, norm = model.get_submodule(chain.conv), model.get_submodule(chain.norm)
        assert isinstance(gated, GatedConv2d) and isinstance(norm, nn.BatchNorm2d)
        conv = UngatedConv2d.from_gated(gated)
        put(chain.norm, GateNorm2d.from_norm(norm, conv, relu=chain.relu is not None))
        put(chain.conv, conv)
        if chain.relu is not None:
            relu = model.get_submodule(chain.relu)
            assert isinstance(relu, nn.ReLU)
            put(chain.relu, FusedReLU(relu))
