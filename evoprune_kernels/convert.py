"""``convert`` swaps a model's linear layers for sparse ones in place; ``export`` swaps them back.

Both first plan everything (every mask, every new layer) and only then touch the model, so that an error leaves it as it
was. Parameters stay the same objects under the same names: optimizers, checkpoints and ties are not disturbed.
"""

from __future__ import annotations

import copy
import fnmatch
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from evoprune_kernels.formats import NM, Block, Pattern
from evoprune_kernels.nn.conv1d import is_conv1d
from evoprune_kernels.nn.masks import choose_mask, layer_pattern
from evoprune_kernels.nn.packed import MAX_DENSITY, zero_pruned
from evoprune_kernels.nn.swap import (
    Sparse,
    dense_view,
    is_linear,
    is_sparse,
    paths,
    replace,
    share,
    weight_of,
    why_not,
)

Filter = Callable[[str, nn.Module], bool] | str | Iterable[str]
Masks = Mapping[str, Tensor] | Mapping[Tensor, Tensor] | Mapping[nn.Parameter, Tensor]


@dataclass(frozen=True)
class Swapped:
    """One layer that is sparse now."""

    name: str
    kind: str
    shape: tuple[int, int]
    pattern: str
    density: float

    def __str__(self) -> str:
        rows, columns = self.shape
        return f"{self.kind} {rows}x{columns} -> {self.pattern}, density {self.density:.2f}"


@dataclass(frozen=True)
class ConversionReport:
    """What ``convert`` did: ``swapped`` layers by name, and ``skipped`` ones with the reason.

    Example:
        >>> import torch, evoprune_kernels as ek
        >>> model = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.Embedding(4, 8))
        >>> print(ek.convert(model, "2:4"))
        swapped 1 layer, 64 of 96 weights in matrices
          0: Linear 8x8 -> 2:4, density 0.50
        not swapped: 1
          1: Embedding is not a linear layer
    """

    swapped: dict[str, Swapped] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)
    total_weights: int = 0
    swapped_weights: int = 0

    def __str__(self) -> str:
        count = f"{len(self.swapped)} layer{'s' * (len(self.swapped) != 1)}"
        share = f"{self.swapped_weights:,} of {self.total_weights:,} weights in matrices"
        lines = [f"swapped {count}, {share}"]
        lines += [f"  {name}: {layer}" for name, layer in self.swapped.items()]
        if self.skipped:
            lines.append(f"not swapped: {len(self.skipped)}")
            lines += [f"  {name}: {reason}" for name, reason in self.skipped.items()]
        return "\n".join(lines)


def convert(
    model: nn.Module,
    pattern: str | Pattern = "2:4",
    filter: Filter | None = None,
    masks: Masks | None = None,
    sparsity: float | None = None,
    stored: str | None = None,
) -> ConversionReport:
    """Swap the linear layers of ``model`` (``nn.Linear``, transformers' ``Conv1D``) for sparse ones, in place.

    Args:
        model: changed in place; its pruned weights become zero.
        pattern: ``"n:m"``, ``"block:RxC"`` or ``"unstructured"``.
        filter: which layers: a function ``(name, module) -> bool``, or one or several globs over the qualified names
            (``"encoder.*"``). None takes all.
        masks: layer name, weight name or Parameter -> bool mask of the weight's shape, True = keep (``opt.masks()``
            fits). Layers without one are then left alone. None: by magnitude, or the weight's own zeros, see
            ``SparseLinear.from_linear``.
        sparsity: fraction 0-1 to remove (block, unstructured).
        stored: how the packed weights are stored: ``"bfloat16"``, ``"int8"``, ``"w8a8"`` or None, see
            ``SparseLinear``.

    Returns:
        What was swapped and what was not, with the reasons; print it.

    Raises:
        ValueError: for NaN in a weight, a mask that does not fit, a name in ``masks`` or a glob that matches nothing,
            or a ``model`` that is itself a layer. Every message names the layer; the model is then unchanged.

    Notes:
        Tied weights stay tied; a weight tied to something that is not swapped (an embedding) is left alone. In eval
        mode the layers are packed at once.

    Example:
        >>> import torch, evoprune_kernels as ek
        >>> model = torch.nn.Sequential(torch.nn.Linear(16, 16), torch.nn.ReLU(), torch.nn.Linear(16, 4))
        >>> report = ek.convert(model, "2:4", filter=lambda name, module: module.out_features > 4)
        >>> list(report.swapped), report.skipped
        (['0'], {'2': 'excluded by filter'})
    """
    parsed = layer_pattern(pattern, sparsity)
    if is_linear(model) or is_sparse(model):
        raise ValueError(
            f"model is itself a {type(model).__name__}: convert swaps layers inside a model, use "
            "SparseLinear.from_linear for one layer"
        )
    where = paths(model)
    modules = {names[0]: model.get_submodule(names[0]) for names in where.values()}
    chosen = _chooser(filter, [name for name, module in modules.items() if is_linear(module)])
    given = _Masks(masks, modules)
    plans: dict[str, _Plan] = {}
    skipped: dict[str, str] = {}
    for name, module in modules.items():
        if not _holds_matrix(module):
            continue
        reason = _why_not(name, module, parsed, chosen)
        if reason is None and not given.covers(name, module):
            reason = "no mask was given for it"
        if reason is None:
            plans[name] = _Plan(name, module, where[id(module)])
        else:
            skipped[name] = reason
    _drop_tied(modules, plans, skipped)
    _choose_masks(plans, skipped, parsed, given, sparsity)
    for plan in plans.values():
        plan.layer = share(plan.module, parsed, sparsity=sparsity, stored=stored, name=plan.name)
    for plan in plans.values():  # from here on nothing can fail
        zero_pruned(plan.layer.weight, plan.keep.t() if plan.transposed else plan.keep)
    for plan in plans.values():
        plan.install(model)
        plan.layer._refresh()
    return _report(modules, plans, {name: skipped[name] for name in modules if name in skipped})


def export(model: nn.Module, *, inplace: bool = True) -> nn.Module:
    """Swap every sparse layer of ``model`` back for the plain one, with the same Parameters (zeros included).

    Args:
        model: a model or one sparse layer.
        inplace: False works on a deep copy.

    Returns:
        ``model``, or the copy; for a sparse layer itself, the plain layer.

    Raises:
        ValueError: if a layer has a fused activation, which a plain layer cannot hold. Nothing is changed then.

    Example:
        >>> import torch, evoprune_kernels as ek
        >>> model = torch.nn.Sequential(torch.nn.Linear(16, 16))
        >>> _ = ek.convert(model, "2:4")
        >>> ek.export(model)
        Sequential(
          (0): Linear(in_features=16, out_features=16, bias=True)
        )
    """
    if not inplace:
        model = copy.deepcopy(model)
    if is_sparse(model):
        return model.to_dense()
    plain = []
    for names in paths(model).values():
        module = model.get_submodule(names[0])
        if is_sparse(module):
            plain.append((names, module.to_dense()))
    for names, dense in plain:
        for name in names:
            replace(model, name, dense)
    return model


class _Plan:
    """One layer to be swapped."""

    def __init__(self, name: str, module: nn.Module, paths: list[str]) -> None:
        self.name, self.module, self.paths = name, module, paths
        self.transposed = is_conv1d(module)
        self.keep: Tensor  # [N, K]
        self.layer: Sparse

    @property
    def weight(self) -> Tensor:
        """The weight as [N, K]."""
        return dense_view(self.module)

    def install(self, model: nn.Module) -> None:
        """Put the new layer wherever the old one was."""
        for path in self.paths:
            replace(model, path, self.layer)


class _Masks:
    """The masks a user gave, looked up by layer name, weight name or Parameter."""

    def __init__(self, masks: Masks | None, modules: Mapping[str, nn.Module]) -> None:
        self.given = masks is not None
        self.by_name = {k: v for k, v in (masks or {}).items() if isinstance(k, str)}
        self.by_weight = {id(k): v for k, v in (masks or {}).items() if not isinstance(k, str)}
        known = {name for name, module in modules.items() if is_linear(module)}
        known |= {f"{name}.weight" for name in known}
        if unknown := sorted(set(self.by_name) - known):
            raise ValueError(
                f"masks: no linear layer is named {unknown[0]!r}; there are {sorted(known)[:8]}"
            )

    def of(self, name: str, module: nn.Module) -> Tensor | None:
        """The mask of a layer, or None."""
        for key in (name, f"{name}.weight"):
            if key in self.by_name:
                return self.by_name[key]
        return self.by_weight.get(id(module._parameters.get("weight")))

    def covers(self, name: str, module: nn.Module) -> bool:
        """Whether the layer is to be pruned at all."""
        return not self.given or self.of(name, module) is not None


def _holds_matrix(module: nn.Module) -> bool:
    own = module._parameters.values()
    return is_linear(module) or any(p is not None and p.dim() >= 2 for p in own)


def _chooser(filter: Filter | None, names: list[str]) -> Callable[[str, nn.Module], bool]:
    if filter is None:
        return lambda name, module: True
    if callable(filter):
        return filter
    globs = [filter] if isinstance(filter, str) else list(filter)
    for glob in globs:
        if not fnmatch.filter(names, glob):
            raise ValueError(f"filter: no linear layer matches {glob!r}; there are {names[:8]}")
    return lambda name, module: any(fnmatch.fnmatchcase(name, glob) for glob in globs)


def _why_not(
    name: str, module: nn.Module, pattern: Pattern, chosen: Callable[[str, nn.Module], bool]
) -> str | None:
    """Why a module with a matrix is not swapped, or None."""
    if is_sparse(module):
        return f"already a {type(module).__name__} ({module.pattern})"
    reason = why_not(module) or _too_small(module, pattern)
    return reason or (None if chosen(name, module) else "excluded by filter")


def _too_small(module: nn.Module, pattern: Pattern) -> str | None:
    rows, columns = dense_view(module).shape
    need = (1, 1)
    if isinstance(pattern, NM):
        need = (1, pattern.m)
    if isinstance(pattern, Block):
        need = (pattern.rows, pattern.columns)
    if rows < need[0] or columns < need[1]:
        return f"shape {rows}x{columns} is smaller than the {need[0]}x{need[1]} of {pattern}"
    return None


def _drop_tied(
    modules: Mapping[str, nn.Module], plans: dict[str, _Plan], skipped: dict[str, str]
) -> None:
    """Leave a weight alone that is tied to one that is not swapped, or that is tied the other way round."""
    users: dict[int, list[str]] = {}
    for name, module in modules.items():
        for parameter in module._parameters.values():
            if parameter is not None:
                users.setdefault(id(parameter), []).append(name)
    for name, plan in list(plans.items()):
        names = users[id(weight_of(plan.module))]
        alike = [n for n in names if n in plans and plans[n].transposed == plan.transposed]
        if len(alike) < len(names):
            other = next(n for n in names if n not in alike)
            skipped[name] = f"its weight is tied to {other!r}, which does not take the same mask"
    for name in set(plans) & set(skipped):
        del plans[name]


def _choose_masks(
    plans: dict[str, _Plan],
    skipped: dict[str, str],
    pattern: Pattern,
    given: _Masks,
    sparsity: float | None,
) -> None:
    """Every plan's mask, one for each weight however often it is tied; drops layers without a zero."""
    chosen: dict[int, Tensor] = {}
    for name, plan in list(plans.items()):
        weight = weight_of(plan.module)
        mask = given.of(name, plan.module)
        if mask is not None and mask.dim() == 2 and plan.transposed:
            mask = mask.t()
        if mask is not None or id(weight) not in chosen:
            keep = choose_mask(plan.weight, pattern, mask=mask, sparsity=sparsity, name=name)
            if id(weight) in chosen and not torch.equal(keep, chosen[id(weight)]):
                raise ValueError(
                    f"{name}: its weight is tied, but its mask is not that of the other layer"
                )
            chosen[id(weight)] = keep
        plan.keep = chosen[id(weight)]
        density = float(plan.keep.float().mean())
        if density > MAX_DENSITY and sparsity is None and not given.given:
            skipped[name] = f"its weight is {density:.0%} dense: give sparsity or masks"
            del plans[name]


def _report(
    modules: Mapping[str, nn.Module], plans: Mapping[str, _Plan], skipped: dict[str, str]
) -> ConversionReport:
    swapped = {}
    for name, plan in plans.items():
        kind = type(plan.module).__name__
        shape = (plan.weight.shape[0], plan.weight.shape[1])
        density = float(plan.keep.float().mean())
        pattern = str(plan.layer.pattern)
        swapped[name] = Swapped(name, kind, shape, pattern, density)
    matrices = {
        id(p): p.numel()
        for module in modules.values()
        for p in module._parameters.values()
        if p is not None and p.dim() >= 2
    }
    done = {id(weight_of(plan.module)): weight_of(plan.module).numel() for plan in plans.values()}
    return ConversionReport(swapped, skipped, sum(matrices.values()), sum(done.values()))
