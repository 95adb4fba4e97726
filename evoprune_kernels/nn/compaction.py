"""``compact``: closed channels and blocks leave the model for good; what is left is plain and computes the same."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_leaves

from evoprune_kernels._check import check
from evoprune_kernels.nn.channels import NORMS, Analysis, Features, is_depthwise, pads_zeros
from evoprune_kernels.nn.conv import (
    GatedBlock,
    GatedConv2d,
    GatedLinear,
    _record_positions,
)
from evoprune_kernels.nn.gate_norm import unfuse_gate_norm_
from evoprune_kernels.nn.gates import freeze_gates, gates_of
from evoprune_kernels.nn.swap import paths, replace

#: largest difference of an output, as a share of its largest value, that counts as rounding
ROUNDING = {torch.float64: 1e-10, torch.float32: 1e-4, torch.bfloat16: 5e-2, torch.float16: 1e-2}
#: why closed channels stay although every layer around them is understood
NOT_ALONE = "open elsewhere in a sum or at a depthwise border, or carrying the constants of others"


@dataclass(frozen=True)
class CompactionReport:
    """What ``compact`` did.

    Attributes:
        removed: layer -> ``(output channels removed, output channels before)``.
        blocks: residual blocks whose branch was removed.
        kept: layer -> why closed channels stay in it.
        parameters, flops: ``(before, after)``; FLOPs of the example inputs, 2 a multiply-add, convolutions and linear
            layers. Before: dense, without the gates.
        error: largest difference of an output from the gated model's, as a share of the largest output.
    """

    removed: dict[str, tuple[int, int]] = field(default_factory=dict)
    blocks: tuple[str, ...] = ()
    kept: dict[str, str] = field(default_factory=dict)
    parameters: tuple[int, int] = (0, 0)
    flops: tuple[int, int] = (0, 0)
    error: float = 0.0

    def __str__(self) -> str:
        lines = [f"removed channels of {len(self.removed)} layers, {len(self.blocks)} blocks"]
        lines += [
            f"  {name}: {gone} of {channels}" for name, (gone, channels) in self.removed.items()
        ]
        lines += [f"  {name}: the branch" for name in self.blocks]
        for what, (before, after) in (("parameters", self.parameters), ("FLOPs", self.flops)):
            lines.append(f"{what}: {before:,} -> {after:,} ({after / max(before, 1):.0%})")
        lines += [f"closed but kept: {name}: {reason}" for name, reason in self.kept.items()]
        return "\n".join(lines)


class Compacted(NamedTuple):
    """A plain model and what was done to get it."""

    model: nn.Module
    report: CompactionReport


class Residual(nn.Module):
    """What is left of an open ``GatedBlock``: ``y = shortcut(x) + F(x)``."""

    def __init__(self, branch: nn.Module, shortcut: nn.Module) -> None:
        super().__init__()
        self.branch, self.shortcut = branch, shortcut

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, ...] -> the block's output."""
        return self.shortcut(x) + self.branch(x)


def compact(model: nn.Module, example_inputs: Any) -> Compacted:
    """A copy of a gated model without gates and without what they close.

    Args:
        model: with gates; unchanged. Gates that are not frozen decide as ``ChannelGate.freeze`` does.
        example_inputs: a tensor or a tuple of arguments: to trace shapes, and to compare the outputs on.

    Returns:
        ``(model, report)``: plain layers in eval mode, with Parameters of their own, and what was removed.

    Raises:
        ValueError: if the model has no gate, or cannot be traced by ``torch.fx`` (control flow that depends on data).
        RuntimeError: if dynamic gates have counted nothing, or the outputs differ by more than rounding: then nothing
            is returned.

    Notes:
        A closed channel is 0 before a batch norm and a constant k behind it and its activation. k goes into the next
        layer's bias; where that convolution pads with zeros, its border would differ: there one of the closed channels
        stays and carries the constants of all, ``W[:, c0] += sum_c W[:, c] k_c / k_c0``. Channels that meet in a
        residual sum leave only together; one with k != 0 stays where a depthwise convolution pads it with zeros. A
        layer keeps one channel at least. Whatever is not understood (concatenation, grouped convolutions, products of
        tensors, layers that are called twice) keeps its channels, and the report says so.

        Compare again on your own data: the check sees the example inputs only. In training mode batch norms use other
        statistics, so that fine-tuning starts from the same function in eval mode, not in training mode.

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
    args = example_inputs if isinstance(example_inputs, tuple) else (example_inputs,)
    gated = copy.deepcopy(model).eval()
    unfuse_gate_norm_(gated)
    freeze_gates(gated)
    holder = nn.Sequential(copy.deepcopy(gated))
    dense_parameters, dense_flops = _costs(holder[0], args)
    blocks = _strip(holder)
    plain = holder[0]
    before_gates = sum(p.numel() for gate in gates_of(gated).values() for p in gate.parameters())
    traced = _trace(plain, args)
    removed, kept = _remove(plain, Analysis(traced))
    error = _compare(gated, plain, args)
    parameters, flops = _costs(plain, args)
    report = CompactionReport(
        removed,
        tuple(blocks),
        kept,
        (dense_parameters - before_gates, parameters),
        (dense_flops, flops),
        error,
    )
    return Compacted(plain, report)


# ---- gates out ----
def _strip(holder: nn.Sequential) -> list[str]:
    """Plain layers with zeros where gates are closed, in place; the names of closed blocks."""
    closed = []
    every = sorted(paths(holder).values(), key=lambda names: max(n.count(".") for n in names))
    for names in reversed(every):  # what is inside comes first, so that names stay true
        module = holder.get_submodule(names[0])
        new: nn.Module
        if isinstance(module, GatedConv2d | GatedLinear):
            assert module.gate.decision is not None
            new = module.to_dense()
            _close(new, module.gate.decision)
        elif isinstance(module, GatedBlock):
            assert module.gate.decision is not None
            is_open = bool(module.gate.decision.all())
            new = Residual(module.branch, module.shortcut) if is_open else module.shortcut
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
    return sorted(closed)


def _close(layer: nn.Module, decision: Tensor) -> None:
    """Zero filters and biases, in place: exactly what a closed gate gives."""
    with torch.no_grad():
        for parameter in layer._parameters.values():
            if parameter is not None:
                parameter[~decision.to(parameter.device)] = 0.0


# ---- trace ----
class _Tracer(fx.Tracer):
    """Modules of torch and every module with Parameters of its own are leaves."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        own = any(p is not None for p in m._parameters.values())
        return own or super().is_leaf_module(m, module_qualified_name)


class _Shapes(fx.Interpreter):
    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        if isinstance(result, Tensor):
            n.meta["shape"] = tuple(result.shape)
        return result


def _trace(model: nn.Module, args: tuple[Any, ...]) -> fx.GraphModule:
    root = nn.Sequential(model) if isinstance(model, nn.Conv2d | nn.Linear) else model
    try:
        traced = fx.GraphModule(root, _Tracer().trace(root))
    except Exception as error:
        raise ValueError(f"torch.fx cannot trace {type(model).__name__}: {error}") from error
    with torch.no_grad():
        _Shapes(traced).run(*args)
    return traced


# ---- channels out ----
def _remove(
    model: nn.Module, analysis: Analysis
) -> tuple[dict[str, tuple[int, int]], dict[str, str]]:
    """Shrink the layers of ``model`` in place; ``(removed, kept)`` of the report."""
    keep = analysis.keep()
    layers = [
        (str(node.target), analysis.modules[str(node.target)], node)
        for node in analysis.traced.graph.nodes
        if node.op == "call_module" and node in analysis.features
    ]
    for group, mask in keep.items():
        if not bool(mask.any()):  # a layer needs a channel
            keep[group][0] = True
    carriers = {
        name: _carrier(analysis, keep, analysis.features[node.args[0]])
        for name, module, node in layers
        if type(module) is nn.Conv2d and module.groups == 1 and pads_zeros(module)
        and node.args[0] in analysis.features
    }  # fmt: skip
    removed, kept = {}, {}
    for name, module, node in layers:
        x, y = analysis.features.get(node.args[0]), analysis.features[node]
        if x is None or not isinstance(module, (nn.Conv2d, nn.Linear, *NORMS)):
            continue
        inside, outside = (_features(analysis, keep, f) for f in (x, y))
        if isinstance(module, nn.Linear) and x.last != y.last:  # its input features are not x
            inside = torch.ones(module.in_features, dtype=torch.bool, device=inside.device)
        if isinstance(module, nn.Conv2d | nn.Linear):
            reason = analysis.pinned.get(analysis.find(y.group))
            stay = int((y.fixed & outside).sum())
            if stay and reason:
                kept[name] = f"{stay} channels: {reason}"
            elif stay:
                kept[name] = f"{stay} channels: {NOT_ALONE}"
            if not bool(outside.all()):
                removed[name] = (int((~outside).sum()), outside.numel())
        if inside.all() and outside.all():
            continue
        with torch.no_grad():
            if isinstance(module, NORMS):
                _index(module, outside, "weight", "bias", "running_mean", "running_var")
                module.num_features = int(outside.sum())
            else:
                _shrink(module, inside, outside, x, carriers.get(name))
    return removed, kept


def _features(analysis: Analysis, keep: dict[int, Tensor], x: Features) -> Tensor:
    return keep[analysis.find(x.group)].repeat_interleave(x.repeat)


def _carrier(analysis: Analysis, keep: dict[int, Tensor], x: Features) -> int | None:
    """The fixed channel that stays to carry the constants of those that leave; None if they are all 0."""
    mask = keep[analysis.find(x.group)]
    size = x.value.abs().double()
    gone = torch.where(mask, torch.zeros_like(size), size)
    if not bool((gone > 0).any()):
        return None
    staying = torch.where(mask & x.fixed, size, torch.zeros_like(size))
    best = int(staying.argmax())
    if float(staying[best]) < 0.5 * float(gone.max()):
        best = int(gone.argmax())
        mask[best] = True
    return best


def _shrink(
    module: nn.Conv2d | nn.Linear,
    inside: Tensor,
    outside: Tensor,
    x: Features,
    carrier: int | None,
) -> None:
    """Rows ``outside`` and columns ``inside`` of a layer; constants of the columns that leave stay in it."""
    if bool(inside.all()):
        _index(module, outside, "weight", "bias")
        _set_sizes(module, inside, outside)
        return
    weight = module.weight.detach().double()
    last = weight.dim() == 4 and not weight.is_contiguous()
    gone = ~inside
    if isinstance(module, nn.Conv2d) and is_depthwise(module):
        _index(module, outside, "weight", "bias")
        _set_sizes(module, inside, outside)
        module.groups = module.in_channels
        return
    value = torch.where(gone, x.value.double(), torch.zeros_like(x.value, dtype=torch.float64))
    if carrier is not None:
        ratio = value / x.value[carrier].double()
        weight[:, carrier] += torch.einsum("nc...,c->n...", weight, ratio)
        value = torch.zeros_like(value)
    constant = weight.flatten(2).sum(2) @ value if weight.dim() > 2 else weight @ value
    dtype, learned = module.weight.dtype, module.weight.requires_grad
    if bool((constant != 0).any()):
        bias = constant if module.bias is None else module.bias.detach().double() + constant
        module.bias = nn.Parameter(bias.to(dtype), requires_grad=learned)
    module.weight = nn.Parameter(weight[:, inside].to(dtype), requires_grad=learned)
    _index(module, outside, "weight", "bias")
    if last:
        module.weight.data = module.weight.data.to(memory_format=torch.channels_last)
    _set_sizes(module, inside, outside)


def _set_sizes(module: nn.Conv2d | nn.Linear, inside: Tensor, outside: Tensor) -> None:
    if isinstance(module, nn.Conv2d):
        module.in_channels, module.out_channels = int(inside.sum()), int(outside.sum())
    else:
        module.in_features, module.out_features = int(inside.sum()), int(outside.sum())


def _index(module: nn.Module, keep: Tensor, *names: str) -> None:
    for name in names:
        tensor = getattr(module, name)
        if tensor is None:
            continue
        shorter: Tensor = tensor.detach()[keep].clone()
        if isinstance(tensor, nn.Parameter):
            shorter = nn.Parameter(shorter, requires_grad=tensor.requires_grad)
        setattr(module, name, shorter)


# ---- check and count ----
def _compare(
    gated: nn.Module, plain: nn.Module, args: tuple[Any, ...], what: str = "compacted"
) -> float:
    """Largest difference as a share of the largest output; ``RuntimeError`` above rounding."""
    with torch.no_grad():
        want, got = tree_leaves(gated(*args)), tree_leaves(plain(*args))
    worst = 0.0
    for a, b in zip(want, got, strict=True):
        if not isinstance(a, Tensor) or not a.is_floating_point() or a.numel() == 0:
            continue
        check(
            a.shape == b.shape,
            f"expected an output of shape {tuple(a.shape)}, got {tuple(b.shape)}",
        )
        scale = max(float(a.abs().max()), 1e-30)
        error = float((a.double() - b.double()).abs().max()) / scale
        if not error <= ROUNDING[a.dtype]:
            raise RuntimeError(
                f"the {what} model differs from the gated one by {error:.1e} of its largest output {scale:.3g}, "
                f"rounding would be at most {ROUNDING[a.dtype]:.0e}"
            )
        worst = max(worst, error)
    return worst


def _costs(model: nn.Module, args: tuple[Any, ...]) -> tuple[int, int]:
    """Parameters, and FLOPs of convolutions and linear layers in one forward."""
    total = 0

    def count(module: nn.Module, inputs: Any, output: Tensor) -> None:
        nonlocal total
        total += 2 * output.numel() * module.weight[0].numel()  # type: ignore[union-attr,operator,index]

    layers = [m for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    handles = [layer.register_forward_hook(count) for layer in layers]
    try:
        with torch.no_grad():
            model(*args)
    finally:
        for handle in handles:
            handle.remove()
    return sum(p.numel() for p in model.parameters()), total
