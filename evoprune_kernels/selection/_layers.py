"""The layers that a calibrated selection can prune, each seen as one matrix, and what is kept of each.

What a layer computes is a product of its weight matrix with rows of inputs, whichever way the weight is stored::

    layer                     weight as stored    matrix [N, K]              input rows [samples, K]
    nn.Linear, SparseLinear   [N, K]              the weight                 x.reshape(-1, K)
    Conv1D (transformers)     [K, N]              its transpose              x.reshape(-1, K)
    nn.Conv2d, groups = 1     [N, C, h, w]        weight.reshape(N, C*h*w)   the patches of the padded image
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase

from torch import Tensor, nn
from torch.nn import functional as F

from evoprune_kernels._check import check
from evoprune_kernels.formats import NM, parse_pattern

#: what is kept of a layer: a share in (0, 1], or an n:m pattern
Target = float | NM


@dataclass(frozen=True)
class Layer:
    """One weight and the modules that multiply by it (more than one where it is tied)."""

    name: str
    weight: nn.Parameter
    modules: tuple[nn.Module, ...]

    @property
    def transposed(self) -> bool:
        """Whether the weight is stored [K, N]."""
        return is_conv1d(self.modules[0])

    def matrix(self) -> Tensor:
        """The weight as [N, K], detached; a view where the memory allows it."""
        weight = self.weight.detach()
        return weight.t() if self.transposed else weight.flatten(1)

    def shaped(self, matrix: Tensor) -> Tensor:
        """A matrix [N, K] (a mask, a new weight) in the shape in which the weight is stored."""
        return (matrix.t() if self.transposed else matrix).reshape(self.weight.shape)

    @property
    def columns(self) -> int:
        """K, the inputs of one output."""
        return self.weight.shape[0] if self.transposed else self.weight[0].numel()

    def input_rows(self, module: nn.Module, input: Tensor) -> Tensor:
        """What the matrix is multiplied by: [samples, K]."""
        if isinstance(module, nn.Conv2d):
            # torch keeps the padding of every mode, "same" included, in the order that F.pad takes
            mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
            images = input if input.dim() == 4 else input[None]
            padded = F.pad(images, module._reversed_padding_repeated_twice, mode=mode)
            patches = F.unfold(
                padded, module.kernel_size, dilation=module.dilation, stride=module.stride
            )
            return patches.transpose(1, 2).reshape(-1, self.columns)
        return input.reshape(-1, self.columns)


def is_conv1d(module: nn.Module) -> bool:
    """Whether this is transformers' ``Conv1D``, a linear layer whose weight is stored [in, out], or our sparse one.

    Told by its name and fields: transformers is not imported, and ``nn`` lies above. ``optim`` asks it, too.
    """
    kind = type(module).__name__
    return kind in ("Conv1D", "SparseConv1D") and hasattr(module, "nf") and hasattr(module, "nx")


def find_layers(model: nn.Module, exclude: Iterable[str] = ()) -> dict[str, Layer]:
    """The layers of ``model`` by the name of their weight Parameter, in the order of ``named_modules``.

    Args:
        model: any module, a layer itself included.
        exclude: names of modules or parameters to leave out; shell wildcards are allowed (``"*.head"``).

    Raises:
        ValueError: for a convolution other than ``nn.Conv2d`` with groups=1 or a weight that is not a Parameter, unless
            it is excluded (the message names it); for an exclusion that matches nothing; if no layer is left.

    Notes:
        Modules of other kinds (embeddings, norms, recurrent layers) are left alone, and so is a weight that is tied to
        one of them.
    """
    excluded = [exclude] if isinstance(exclude, str) else list(exclude)
    used: set[str] = set()
    users: dict[int, list[tuple[str, nn.Module]]] = {}
    dense: set[int] = set()
    for module_name, module in model.named_modules():
        name = f"{module_name}.weight" if module_name else "weight"
        parts = module_name.split(".")
        names = [name, *(".".join(parts[: i + 1]) for i in range(len(parts)))]
        matched = {e for e in excluded if any(fnmatchcase(n, e) for n in names)}
        used |= matched
        takes = not matched and _is_layer(name, module)
        for own, parameter in module.named_parameters(recurse=False):
            if takes and own == "weight":
                users.setdefault(id(parameter), []).append((name, module))
            else:
                dense.add(id(parameter))
    unused = [e for e in excluded if e not in used]
    check(not unused, f"exclude={unused} match no module or weight of the model")
    layers = {}
    for key, found in users.items():
        modules = tuple(module for _, module in found)
        weight = modules[0]._parameters["weight"]
        if key not in dense and weight is not None:
            layers[found[0][0]] = Layer(found[0][0], weight, modules)
    check(bool(layers), f"no layer to prune in {type(model).__name__}: expected a linear or Conv2d")
    return layers


def _is_layer(name: str, module: nn.Module) -> bool:
    """Whether this module can be pruned; ``ValueError`` if it ought to be and cannot."""
    if isinstance(module, nn.modules.conv._ConvNd) and not isinstance(module, nn.Conv2d):
        raise ValueError(f"{name}: {type(module).__name__} is not supported: exclude it")
    if isinstance(module, nn.Conv2d) and module.groups != 1:
        raise ValueError(
            f"{name}: expected a Conv2d with groups=1, got {module.groups}: exclude it"
        )
    if not (isinstance(module, nn.Linear | nn.Conv2d) or is_conv1d(module)):
        return False
    weight = module._parameters.get("weight")
    if weight is None:
        raise ValueError(
            f"{name}: expected a Parameter, got one that is computed (a parametrization, torch.nn.utils.prune): "
            "remove that first, or exclude it"
        )
    if isinstance(weight, nn.UninitializedParameter) or weight.device.type == "meta":
        raise ValueError(f"{name}: the weight has no values yet: initialise it, or exclude it")
    return True


def choose_targets(
    layers: Mapping[str, Layer],
    kept: float | Mapping[str, float] | None,
    pattern: str | NM | None,
) -> dict[str, Target]:
    """What is kept of each layer: one share for all, a share for each that is named, or an n:m pattern.

    Raises:
        ValueError: unless exactly one of ``kept`` and ``pattern`` is given, for a share outside (0, 1] (a budget may
            also give a layer 0), for a pattern that is not n:m, and for a name in ``kept`` that is no layer.
    """
    check(
        (kept is None) != (pattern is None),
        f"expected one of kept and pattern, got kept={kept}, pattern={pattern}",
    )
    if pattern is not None:
        parsed = parse_pattern(pattern)
        if not isinstance(parsed, NM):
            raise ValueError(f"expected an n:m pattern, got {str(parsed)!r}; use kept for others")
        return dict.fromkeys(layers, parsed)
    assert kept is not None
    shares = dict(kept) if isinstance(kept, Mapping) else dict.fromkeys(layers, float(kept))
    unknown = sorted(set(shares) - set(layers))
    check(not unknown, f"kept names {unknown}: expected names of {sorted(layers)}")
    lowest = 0.0 if isinstance(kept, Mapping) else math.ulp(0.0)
    for name, share in shares.items():
        check(lowest <= share <= 1.0, f"{name}: expected kept between 0 and 1, got {share}")
    return {name: float(shares[name]) for name in layers if name in shares}


def check_weight(layer: Layer) -> None:
    """Raise ``ValueError`` naming the layer if its weight holds NaN or an infinity."""
    bad = int((~layer.weight.detach().isfinite()).sum())
    check(bad == 0, f"{layer.name}: expected finite weights, got {bad} NaN or infinite")
