"""Param groups of a model: the weights of linear layers (and convolutions) are pruned, nothing else is."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from fnmatch import fnmatchcase
from typing import Any

from torch import nn

from evoprune_kernels._check import check
from evoprune_kernels.optim.config import PruneConfig
from evoprune_kernels.selection._layers import is_conv1d


def prunable_groups(
    model: nn.Module,
    prune: PruneConfig,
    exclude: Iterable[str] = (),
    convolutions: bool = False,
) -> list[dict[str, Any]]:
    """Param groups: the weights of linear layers with ``prune``, and all other parameters with ``prune=None``.

    Args:
        model: any module.
        prune: how the first group is pruned.
        exclude: names of modules or parameters that stay dense; shell wildcards are allowed (``"*.head"``).
        convolutions: prune the weights of ``nn.Conv1d``, ``Conv2d`` and ``Conv3d`` as well, as matrices
            [out, in * kernel].

    Returns:
        Groups of ``(name, parameter)`` pairs, as ``model.named_parameters()`` gives them, that every torch optimizer
        takes: ``nn.Linear`` weights, then those of transformers' ``Conv1D`` (``transposed``), then the rest. Parameters
        that do not require a gradient are left out; an empty group is not returned.

    Raises:
        ValueError: if a name in ``exclude`` matches nothing, or no weight is left to prune.

    Notes:
        A weight that is tied to something else than a linear layer (an embedding) stays dense.

    Example:
        >>> import torch, evoprune_kernels as ek
        >>> model = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> groups = ek.optim.prunable_groups(model, ek.PruneConfig("2:4", start=10), exclude=["2"])
        >>> [[name for name, _ in group["params"]] for group in groups]
        [['0.weight'], ['0.bias', '2.weight', '2.bias']]
        >>> optimizer = ek.optim.AdamW(groups, lr=1e-3)
    """
    excluded = _Excluded(exclude)
    kinds: dict[int, set[str]] = {}
    for module_name, module in model.named_modules():
        for name, param in module.named_parameters(recurse=False):
            full = f"{module_name}.{name}" if module_name else name
            kind = "dense"
            if not excluded(module_name, full) and name == "weight":
                kind = _kind(module, convolutions)
            kinds.setdefault(id(param), set()).add(kind)
    excluded.check_all_used()
    members: dict[str, list[tuple[str, nn.Parameter]]] = {"linear": [], "conv1d": [], "dense": []}
    for name, param in model.named_parameters():
        if param.requires_grad:
            kind = kinds[id(param)].pop() if len(kinds[id(param)]) == 1 else "dense"
            members[kind].append((name, param))
    check(
        bool(members["linear"] or members["conv1d"]),
        f"no weight to prune in {type(model).__name__}: expected a trainable linear layer that is not excluded",
    )
    configs = {
        "linear": prune,
        "conv1d": dataclasses.replace(prune, transposed=True),
        "dense": None,
    }
    return [{"params": found, "prune": configs[kind]} for kind, found in members.items() if found]


def _kind(module: nn.Module, convolutions: bool) -> str:
    if isinstance(module, nn.Linear):
        return "linear"
    if convolutions and isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d):
        return "linear"
    return "conv1d" if is_conv1d(module) else "dense"


class _Excluded:
    """Tells whether a name is excluded, and remembers which exclusions matched."""

    def __init__(self, names: Iterable[str]) -> None:
        self.names = [names] if isinstance(names, str) else list(names)
        self.used: set[str] = set()

    def __call__(self, module_name: str, full_name: str) -> bool:
        parents = module_name.split(".")
        prefixes = [".".join(parents[: i + 1]) for i in range(len(parents))]
        found = [n for n in self.names if any(fnmatchcase(x, n) for x in (*prefixes, full_name))]
        self.used.update(found)
        return bool(found)

    def check_all_used(self) -> None:
        """Raise ``ValueError`` if an exclusion matched nothing: a typing error would prune what should stay."""
        unused = [name for name in self.names if name not in self.used]
        check(not unused, f"exclude={unused} match no module or parameter of the model")
