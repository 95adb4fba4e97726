"""``compact``: closed channels and blocks leave the model for good; what is left is plain and computes the same.

::

    strip.py      gates out, zeros where they are closed; the graph of torch.fx
    graph.py      features, slots and pins      layers.py, functions.py   the rules of its nodes
    choose.py     which slots leave             shrink.py                 the layers are cut
    verify.py     equality, costs, time         report.py                 what is told
"""

from __future__ import annotations

import contextlib
import copy
from typing import Any, NamedTuple

import torch
from torch import fx, nn

from evoprune_kernels._check import check
from evoprune_kernels.nn.compaction.functions import function_rule
from evoprune_kernels.nn.compaction.graph import Graph, Unknown
from evoprune_kernels.nn.compaction.layers import module_rule
from evoprune_kernels.nn.compaction.report import CompactionReport, Latency
from evoprune_kernels.nn.compaction.shrink import remove
from evoprune_kernels.nn.compaction.strip import Residual, strip, trace
from evoprune_kernels.nn.compaction.verify import ROUNDING, compare, costs, latency
from evoprune_kernels.nn.gate_norm import unfuse_gate_norm_
from evoprune_kernels.nn.gates import freeze_gates, gates_of


class Compacted(NamedTuple):
    """A plain model and what was done to get it."""

    model: nn.Module
    report: CompactionReport


def compact(model: nn.Module, example_inputs: Any, *, rounds: int = 25) -> Compacted:
    """A copy of a gated model without gates and without what they close.

    Args:
        model: with gates; unchanged. Gates that are not frozen decide as ``ChannelGate.freeze`` does.
        example_inputs: a tensor or a tuple of arguments: to trace shapes, to compare the outputs on, and to time.
        rounds: of the latency measurement, dense against compacted; it ends after ten seconds. 0 measures nothing.

    Returns:
        ``(model, report)``: a module of the class of ``model`` (its own forward, no ``GraphModule``) with plain layers
        in eval mode and Parameters of its own, and what was removed. An open ``GatedBlock`` becomes a ``Residual``,
        a closed one its shortcut.

    Raises:
        ValueError: if the model has no gate, ``rounds < 0``, or ``torch.fx`` cannot trace its own forward (control flow
            that depends on data; a module inside with such a forward keeps its channels).
        RuntimeError: if dynamic gates have counted nothing, or the outputs differ by more than rounding: then nothing
            is returned.

    Notes:
        A closed channel is 0 before a batch norm and a constant k behind it and its activation. k goes into the next
        layer's bias; where that convolution pads with zeros, its border would differ: there one of the closed channels
        stays in each group and carries the constants of all, ``W[:, c0] += sum_c W[:, c] k_c / k_c0``. A depthwise
        convolution loses a channel with the one before it; where it pads a k other than 0 with zeros, the channel
        stays. Channels that meet in a sum or a product leave only together. A grouped convolution keeps as many
        channels in each group as the group that needs most; groups that need none leave. What only closed channels
        read leaves as well. A layer keeps one channel at least. An operation that is not known (norms over channels,
        attention, transposes, splits, layers that are called twice) keeps its channels, and ``report.kept`` names it.

        Compare again on your own data: the check sees the example inputs only, without autocast. In training mode batch
        norms use other statistics, so that fine-tuning starts from the same function in eval mode, not in training
        mode.

    Example:
        >>> import torch
        >>> from evoprune_kernels.nn import GatedConv2d
        >>> model = nn.Sequential(GatedConv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 1)).eval()
        >>> _ = model[0].gate.freeze(torch.arange(8) < 5)
        >>> small, report = compact(model, torch.randn(2, 3, 6, 6))
        >>> small[0].out_channels, small[3].in_channels, report.removed
        (5, 5, {'0': (3, 8)})
    """
    check(
        len(gates_of(model)) > 0, f"expected a model with gates, got none in {type(model).__name__}"
    )
    check(rounds >= 0, f"expected rounds >= 0, got {rounds}")
    args = example_inputs if isinstance(example_inputs, tuple) else (example_inputs,)
    gated = copy.deepcopy(model).eval()
    unfuse_gate_norm_(gated)
    freeze_gates(gated)
    dense, _, _ = strip(copy.deepcopy(gated), dense=True)
    plain, blocks, had_gates = strip(copy.deepcopy(gated))
    with _full_precision():
        traced, opaque = trace(plain, args, had_gates)
        graph = analyse(traced)
        removed, kept = remove(graph)
        error = compare(gated, plain, args)
        before, after = costs(dense, args), costs(plain, args)
        timed = latency(dense, plain, args, rounds) if rounds else None
    inside = {name for name, module in plain.named_modules() if id(module) in had_gates}
    for name in sorted(inside - {layer.name for layer in graph.layers}):
        kept[name] = next(
            (why for whole, why in opaque.items() if name.startswith(whole + ".")),
            "it is called more than once, or out of reach of the trace",
        )
    parameters, flops = ((before[i], after[i]) for i in (0, 1))
    report = CompactionReport(removed, tuple(blocks), kept, parameters, flops, error, timed)
    return Compacted(plain, report)


def analyse(traced: fx.GraphModule) -> Graph:
    """The features of every tensor of ``traced``, whose nodes carry ``meta["shape"]``."""
    graph = Graph(traced)
    with torch.no_grad():
        for node in traced.graph.nodes:
            try:
                _rule(graph, node)
            except Unknown as why:
                graph.unknown(node, str(why))
    return graph


def _rule(graph: Graph, node: fx.Node) -> None:
    source = node.args[0] if node.args else None
    if isinstance(source, fx.Node) and graph.mutates(node) and graph.read_later(node, source):
        raise Unknown("it changes in place what is read later")
    if node.op == "call_module":
        module_rule(graph, node)
    elif node.op in ("call_function", "call_method"):
        function_rule(graph, node)
    else:  # placeholder, get_attr, output
        raise Unknown("")


@contextlib.contextmanager
def _full_precision() -> Any:
    """No autocast, whose rounding would hide an error, whatever the caller has switched on."""
    with contextlib.ExitStack() as stack:
        for device in ("cpu", "cuda"):
            if torch.is_autocast_enabled(device):
                stack.enter_context(torch.autocast(device, enabled=False))
        yield


__all__ = ["ROUNDING", "Compacted", "CompactionReport", "Latency", "Residual", "compact"]
