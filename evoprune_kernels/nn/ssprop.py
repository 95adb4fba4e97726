"""ssProp: layers whose forward is dense and whose backward computes the output channels with the largest gradient.

``SSPropConv2d`` and ``SSPropLinear`` are ``nn.Conv2d`` and ``nn.Linear`` but for their gradients. The arithmetic is in
``ssprop_backward.py``; ``ssprop_model.py`` puts them into a model, ``ssprop_schedule.py`` changes their share.
"""

from __future__ import annotations

from typing import Any, Literal, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from evoprune_kernels._check import check
from evoprune_kernels.nn.packed import adopt
from evoprune_kernels.nn.ssprop_backward import (
    Geometry,
    SparseBackwardConv2d,
    SparseBackwardLinear,
    compacts,
)
from evoprune_kernels.ops.topk_channels import topk_channels
from evoprune_kernels.selection.random import random_scores

Layer = TypeVar("Layer", bound="SSPropLayer")
#: far above the rounding error of ``kept * N``, far below a channel
_ROUNDING = 1e-6


def check_kept(kept: float, name: str = "kept") -> None:
    """Raise ``ValueError`` unless ``kept`` is a share in (0, 1]."""
    check(0.0 < kept <= 1.0, f"expected {name} in (0, 1], got {kept}")


class SSPropLayer(nn.Module):
    """What both layers share: how many channels the backward keeps, and which."""

    weight: Tensor
    weight_only: bool
    random: bool
    seed: int
    #: number of the layer in its model, so that layers with one seed draw apart
    number: int
    #: forwards so far that drew random channels
    draws: int
    _kept: float

    def _init_ssprop(
        self, kept: float, weight_only: bool, random: bool, seed: int, number: int = 0
    ) -> None:
        self.kept = kept
        self.weight_only, self.random, self.seed = weight_only, random, seed
        self.number, self.draws = number, 0

    @property
    def kept(self) -> float:
        """Share of the output channels whose gradient is computed, in (0, 1]; may be set at any time."""
        return self._kept

    @kept.setter
    def kept(self, share: float) -> None:
        check_kept(share)
        self._kept = float(share)

    @property
    def kept_channels(self) -> int:
        """``max(int(kept * N), 1)`` of the N output channels; 0.57 of 100 is 57, though 0.57 * 100 < 57 in floats."""
        return max(int(self._kept * self.weight.shape[0] + _ROUNDING), 1)

    @property
    def reason(self) -> str | None:
        """Why the backward does the work of the dense one, or None if it is computed for the kept channels alone."""
        if not self.training:
            return "in eval mode"
        if self.kept_channels >= self.weight.shape[0]:
            return "every channel is kept"
        return self._not_compacted()

    def _not_compacted(self) -> str | None:
        return None

    def _sparse_backward(self) -> bool:
        return (
            self.training and torch.is_grad_enabled() and self.kept_channels < self.weight.shape[0]
        )

    def _draw(self) -> Tensor | None:
        """The random channels of this forward, or None: the backward chooses by its gradient."""
        if not self.random:
            return None
        channels, device = self.weight.shape[0], self.weight.device
        scores = random_scores(
            (channels,), seed=self.seed, tensor=self.number, draw=self.draws, device=device
        )
        self.draws += 1
        return topk_channels(scores, self.kept_channels)

    def _operands(self, input: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Input, weight and bias, cast where autocast is on, as it would for the dense layer."""
        weight, bias = self.weight, self._parameters["bias"]
        device = input.device.type
        if not torch.is_autocast_enabled(device):
            return input, weight, bias
        dtype = torch.get_autocast_dtype(device)
        return (
            _cast(input, dtype),
            _cast(weight, dtype),
            None if bias is None else _cast(bias, dtype),
        )

    def _describe(self) -> str:
        parts = [f"kept={self._kept:g}"]
        if self.weight_only:
            parts.append("weight_only=True")
        if self.random:
            parts.append(f"random=True, seed={self.seed}")
        if reason := self._not_compacted():
            parts.append(f"dense work ({reason})")
        return ", ".join(parts)


def _cast(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    eligible = tensor.is_floating_point() and tensor.dtype != torch.float64
    return tensor.to(dtype) if eligible else tensor


class SSPropConv2d(SSPropLayer, nn.Conv2d):
    """An ``nn.Conv2d`` whose backward computes the gradients of some output channels only.

    ``dX, dW, db = conv2d_backward(dY with all but the top max(int(kept * N), 1) channels of mean |dY| set to 0)``

    Args:
        in_channels, out_channels, kernel_size, ...: as for ``nn.Conv2d``.
        kept: share of the output channels, in (0, 1]; may be set later (``layer.kept = 0.5``, ``SSPropSchedule``).
        weight_only: only dW and db are sparse; dX is dense.
        random: keep random channels (drawn in each forward from ``seed``) in place of those with the largest gradient.
        seed: of the random channels.

    Raises:
        ValueError: for ``kept`` outside (0, 1].
        RuntimeError: from a second derivative through the layer (``create_graph=True`` and a backward of that).

    Notes:
        Ties: the lowest channel wins; scores are sums in fp32 (fp64 for fp64) and compared as fp32. A channel with NaN
        or infinity in dY is kept first, so that it shows. Nothing is rescaled. In eval mode, with gradients disabled,
        or with every channel kept the layer is ``nn.Conv2d`` to the bit. Channels are chosen within the whole output,
        over the batch; an ungrouped and a depthwise convolution (in_channels = out_channels = groups) are computed for
        these alone, with any other ``groups`` dY is masked and the work stays that of the dense backward (``reason``).
        ``state_dict`` is that of ``nn.Conv2d``.

    Source: ssProp, arXiv 2408.12561.

    Example:
        >>> import torch
        >>> from evoprune_kernels.nn import SSPropConv2d
        >>> conv = SSPropConv2d(3, 10, kernel_size=3, padding=1, kept=0.2)
        >>> conv(torch.randn(2, 3, 8, 8)).square().sum().backward()
        >>> int(conv.bias.grad.count_nonzero()), conv.reason
        (2, None)
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        stride: int | tuple[int, int] = 1,
        padding: str | int | tuple[int, int] = 0,
        dilation: int | tuple[int, int] = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: Literal["zeros", "reflect", "replicate", "circular"] = "zeros",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        kept: float = 0.2,
        weight_only: bool = False,
        random: bool = False,
        seed: int = 0,
    ) -> None:
        check_kept(kept)
        nn.Conv2d.__init__(
            self, in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias,
            padding_mode, device, dtype,
        )  # fmt: skip
        self._init_ssprop(kept, weight_only, random, seed)

    @classmethod
    def from_conv(cls, conv: nn.Conv2d, **options: Any) -> SSPropConv2d:
        """The layer with the same Parameter objects, hooks and attributes.

        Args:
            conv: an ``nn.Conv2d``; it is not changed.
            options: ``kept``, ``weight_only``, ``random``, ``seed``, as for the class.

        Raises:
            TypeError: for a subclass of ``nn.Conv2d`` or another module, and for a weight that is no Parameter.
            ValueError: for ``kept`` outside (0, 1].
        """
        return make(cls, conv, nn.Conv2d, **options)

    def forward(self, input: Tensor) -> Tensor:
        """``y = conv2d(x)``: x [B, C, H, W] or [C, H, W], as ``nn.Conv2d``."""
        if not self._sparse_backward():
            return nn.Conv2d.forward(self, input)
        if input.dim() == 3:
            return self._sparse(input.unsqueeze(0)).squeeze(0)
        return self._sparse(input)

    def _sparse(self, input: Tensor) -> Tensor:
        x, weight, bias = self._operands(input)
        padding = self.padding
        if isinstance(padding, str) or self.padding_mode != "zeros":
            mode = "constant" if self.padding_mode == "zeros" else self.padding_mode
            sides = self._reversed_padding_repeated_twice
            if any(sides):
                x = F.pad(x, sides, mode=mode)
            padding = (0, 0)
        geometry = Geometry(self.stride, padding, self.dilation, self.groups)
        return SparseBackwardConv2d.apply(
            x, weight, bias, self._draw(), geometry, self.kept_channels, self.weight_only
        )

    def _not_compacted(self) -> str | None:
        if compacts(self.groups, self.weight):
            return None
        return f"groups={self.groups}: the chosen channels do not fall evenly on the groups, dY is masked"

    def extra_repr(self) -> str:
        return f"{nn.Conv2d.extra_repr(self)}, {self._describe()}"


class SSPropLinear(SSPropLayer, nn.Linear):
    """An ``nn.Linear`` whose backward computes the gradients of some output features only.

    ``dX, dW, db = linear_backward(dY with all but the top max(int(kept * N), 1) features of mean |dY| set to 0)``

    Args:
        in_features, out_features, bias, device, dtype: as for ``nn.Linear``.
        kept, weight_only, random, seed: as for ``SSPropConv2d``; a channel is an output feature.

    Raises:
        ValueError: for ``kept`` outside (0, 1].
        RuntimeError: from a second derivative through the layer.

    Notes:
        Features are chosen over all rows (tokens) of the input. Else as for ``SSPropConv2d``.

    Source: ssProp, arXiv 2408.12561.

    Example:
        >>> import torch
        >>> from evoprune_kernels.nn import SSPropLinear
        >>> layer = SSPropLinear(4, 3, kept=0.4)  # int(0.4 * 3) = 1
        >>> (layer(torch.ones(2, 4)) * torch.tensor([1.0, -5.0, 5.0])).sum().backward()
        >>> layer.weight.grad[:, 0]  # a tie: the lowest wins
        tensor([  0., -10.,   0.])
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        kept: float = 0.2,
        weight_only: bool = False,
        random: bool = False,
        seed: int = 0,
    ) -> None:
        check_kept(kept)
        nn.Linear.__init__(self, in_features, out_features, bias, device, dtype)
        self._init_ssprop(kept, weight_only, random, seed)

    @classmethod
    def from_linear(cls, linear: nn.Linear, **options: Any) -> SSPropLinear:
        """The layer with the same Parameter objects, hooks and attributes; see ``SSPropConv2d.from_conv``."""
        return make(cls, linear, nn.Linear, **options)

    def forward(self, input: Tensor) -> Tensor:
        """``y = x W^T + b``: x [..., in_features] -> y [..., out_features]."""
        if not self._sparse_backward():
            return nn.Linear.forward(self, input)
        x, weight, bias = self._operands(input)
        return SparseBackwardLinear.apply(
            x, weight, bias, self._draw(), self.kept_channels, self.weight_only
        )

    def extra_repr(self) -> str:
        return f"{nn.Linear.extra_repr(self)}, {self._describe()}"


def make(
    cls: type[Layer],
    old: nn.Module,
    plain: type[nn.Module],
    *,
    kept: float = 0.2,
    weight_only: bool = False,
    random: bool = False,
    seed: int = 0,
    number: int = 0,
) -> Layer:
    """The layer ``cls`` around the Parameters of ``old``, which must be a plain ``plain``."""
    check_kept(kept)
    if reason := why_not(old, plain):
        raise TypeError(f"expected a plain nn.{plain.__name__}: {reason}")
    new = cls.__new__(cls)
    adopt(new, old)
    new._init_ssprop(kept, weight_only, random, seed, number)
    return new


def why_not(module: nn.Module, plain: type[nn.Module]) -> str | None:
    """Why a module cannot be swapped, or None."""
    kind = type(module).__name__
    if isinstance(module, SSPropLayer):
        return f"{kind} is a ssProp layer already"
    if type(module) is not plain:
        return f"{kind} is not nn.{plain.__name__} itself, its forward may differ"
    if module._parameters.get("weight") is None:
        return "weight is not a Parameter (torch.nn.utils.prune or weight_norm): remove that first"
    if "forward" in module.__dict__:
        return "its forward is replaced on the instance (a hook of another library)"
    return None
