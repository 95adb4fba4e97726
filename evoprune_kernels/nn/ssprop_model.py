"""``ssprop_model_``: ssProp in every convolution and linear layer of a model, with one call."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

from torch import nn

from evoprune_kernels._check import check
from evoprune_kernels.nn.ssprop import (
    SSPropConv2d,
    SSPropLayer,
    SSPropLinear,
    check_kept,
    make,
    why_not,
)
from evoprune_kernels.nn.swap import paths, replace


@dataclass(frozen=True)
class SSPropReport:
    """What ``ssprop_model_`` did: the ``swapped`` layers' names, and the ``skipped`` ones with the reason."""

    swapped: list[str] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        lines = [f"ssProp in {len(self.swapped)} layer{'s' * (len(self.swapped) != 1)}"]
        return "\n".join(lines + [f"  not in {name}: {why}" for name, why in self.skipped.items()])


def ssprop_model_(
    model: nn.Module,
    kept: float = 0.2,
    *,
    exclude: str | Iterable[str] = (),
    weight_only: bool = False,
    random: bool = False,
    seed: int = 0,
) -> SSPropReport:
    """Swap every ``nn.Conv2d`` and ``nn.Linear`` inside ``model`` for its ssProp layer, in place.

    Args:
        model: changed in place; Parameters, hooks and names stay, so optimizers and checkpoints fit.
        kept, weight_only, random, seed: as for ``SSPropConv2d``; each layer draws its own channels.
        exclude: one or several globs over qualified names (``"head"``, ``"layer4.*"``) of layers to leave alone.

    Returns:
        What was swapped and what was not, with the reasons; print it.

    Raises:
        ValueError: for ``kept`` outside (0, 1], a glob that matches no Conv2d or Linear, or a ``model`` that is itself
            one; the model is then unchanged.

    Notes:
        A module that is used under several names stays one module. The last layer's channels are the classes: excluding
        the head is common.

    Example:
        >>> import torch
        >>> from evoprune_kernels.nn import ssprop_model_
        >>> model = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.Flatten(), torch.nn.Linear(8, 2))
        >>> print(ssprop_model_(model, kept=0.5, exclude="2"))
        ssProp in 1 layer
          not in 2: excluded
    """
    check_kept(kept)
    check(
        not isinstance(model, nn.Conv2d | nn.Linear),
        f"model is itself a {type(model).__name__}: use from_conv or from_linear for one layer",
    )
    where = paths(model)
    layers = {names[0]: model.get_submodule(names[0]) for names in where.values()}
    layers = {n: m for n, m in layers.items() if isinstance(m, nn.Conv2d | nn.Linear)}
    globs = [exclude] if isinstance(exclude, str) else list(exclude)
    every = [name for module in layers.values() for name in where[id(module)]]
    for glob in globs:
        check(
            any(fnmatchcase(name, glob) for name in every),
            f"exclude {glob!r} matches no Conv2d or Linear of the model, which has {every}",
        )
    plan: dict[str, SSPropLayer] = {}
    skipped: dict[str, str] = {}
    options: dict[str, Any] = {
        "kept": kept, "weight_only": weight_only, "random": random, "seed": seed
    }  # fmt: skip
    for number, (name, module) in enumerate(layers.items()):
        plain: type[nn.Module] = nn.Conv2d if isinstance(module, nn.Conv2d) else nn.Linear
        if any(fnmatchcase(alias, glob) for alias in where[id(module)] for glob in globs):
            skipped[name] = "excluded"
        elif reason := why_not(module, plain):
            skipped[name] = reason
        else:
            cls = SSPropConv2d if plain is nn.Conv2d else SSPropLinear
            plan[name] = make(cls, module, plain, **options, number=number)
    for name, layer in plan.items():
        for alias in where[id(layers[name])]:
            replace(model, alias, layer)
    return SSPropReport(list(plan), skipped)
