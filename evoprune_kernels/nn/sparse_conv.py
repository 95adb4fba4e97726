"""``SparseConv2d``: what ``SparseLinear`` is to ``nn.Linear``, for ``nn.Conv2d``.

The weight [N, C, kh, kw] is the matrix ``weight.reshape(N, -1)`` [N, C * kh * kw]; a pattern runs along its rows, as
the optimizers prune it (``prunable_groups(convolutions=True)``)::

    2:4          groups of 4 of (c, i, j), j fastest
    2:4v16       the same places in 16 output channels
    block:16xC   16 output channels, C neighbours of (c, i, j)
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from evoprune_kernels import _select, formats
from evoprune_kernels.formats import Pattern
from evoprune_kernels.nn.linear import SparseForward
from evoprune_kernels.nn.masks import layer_pattern
from evoprune_kernels.nn.packed import Plan, adopt
from evoprune_kernels.ops._conv import ConvSizes, Pair, check_input, unfold
from evoprune_kernels.ops._op import Op
from evoprune_kernels.ops.prepare import Bound
from evoprune_kernels.ops.prepare_conv import bind_conv, conv_op_of


class SparseConv2d(SparseForward, nn.Conv2d):
    """A convolution with a pruned weight: ``y = activation(conv2d(x, W) + b)``.

    Dense ``nn.Conv2d`` while it trains (in training mode, or while gradients are enabled and the input or a parameter
    requires them); the packed kernel in eval mode under ``torch.no_grad()`` or ``torch.inference_mode()``. Where the
    kernel cannot run, the layer is dense and says why (``dense_reason``, repr): groups, a padding mode other than
    zeros, a pattern without a convolution kernel (unstructured; n:m other than 1:4, 2:4 and n:mv16).

    Args:
        in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, padding_mode, device, dtype: as
            for ``nn.Conv2d``.
        pattern: ``"n:m"`` or ``"block:RxC"``, along ``weight.reshape(N, -1)``.
        activation: fused into the kernel: ``"relu"``, ``"gelu"``, ``"gelu_tanh"``, ``"silu"`` or None.
        stored: ``"bfloat16"``, ``"int8"`` or None, as for ``SparseLinear``.

    Raises:
        ValueError: for an unknown pattern or activation, or ``stored="w8a8"``; in forward for a wrong number of
            channels or NaN in the weight.
        TypeError: in forward for an input of another dtype than the weight's (outside autocast).

    Notes:
        ``state_dict`` is that of ``nn.Conv2d``. The output lies in memory as the input does (contiguous or channels
        last). On a GPU the columns of the input are unfolded (a 1x1 convolution of stride 1 only turns its input to
        channels last) and multiplied by the linear kernels; that path was never timed.

    Example:
        >>> import torch
        >>> import evoprune_kernels as ek
        >>> conv = torch.nn.Conv2d(8, 4, 3, padding=1)
        >>> layer = ek.SparseConv2d.from_conv(conv, pattern="2:4").eval()
        >>> x = torch.ones(1, 8, 5, 5)
        >>> with torch.no_grad():
        ...     torch.allclose(layer(x), conv(x), atol=1e-5)
        True
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Pair,
        stride: Pair = 1,
        padding: Pair | str = 0,
        dilation: Pair = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: str = "zeros",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        pattern: str | Pattern = "2:4",
        activation: str | None = None,
        stored: str | None = None,
    ) -> None:
        parsed = layer_pattern(pattern, None)
        sizes: dict[str, Any] = {"stride": stride, "padding": padding, "dilation": dilation}
        rest: dict[str, Any] = {"padding_mode": padding_mode, "device": device, "dtype": dtype}
        kernel: Any = kernel_size
        nn.Conv2d.__init__(
            self, in_channels, out_channels, kernel, groups=groups, bias=bias, **sizes, **rest
        )
        self._init_cache(parsed, activation, None, stored)

    def _init_cache(
        self, pattern: Pattern, activation: str | None, name: str | None, stored: str | None
    ) -> None:
        if stored == "w8a8":
            raise ValueError("expected stored in ('bfloat16', 'int8') or None, got 'w8a8'")
        super()._init_cache(pattern, activation, name, stored)

    @classmethod
    def from_conv(
        cls,
        conv: nn.Conv2d,
        pattern: str | Pattern = "2:4",
        mask: Tensor | None = None,
        *,
        sparsity: float | None = None,
        bn: nn.BatchNorm2d | None = None,
        activation: str | None = None,
        stored: str | None = None,
        name: str | None = None,
    ) -> SparseConv2d:
        """A sparse layer with the same Parameter objects, whose pruned weights are set to zero in place.

        Args:
            conv: an ``nn.Conv2d``; its weight [N, C, kh, kw] is changed in place where it is pruned (not with ``bn``).
            pattern: ``"n:m"`` or ``"block:RxC"``.
            mask: bool [N, C, kh, kw] or [N, C * kh * kw], True = keep. None: by magnitude for n:m, and for the others
                if ``sparsity`` is given; else the zeros that the weight has.
            sparsity: fraction 0-1 to remove.
            bn: a batch norm behind ``conv``, both in eval mode: the layer gets new Parameters with its statistics
                folded in (``torch.nn.utils.fuse_conv_bn_eval``), and ``conv`` and ``bn`` are left as they are.
            activation: fused into the kernel.
            stored: ``"bfloat16"``, ``"int8"`` or None, see the class.
            name: of the layer, for messages.

        Raises:
            ValueError, TypeError: as ``choose_mask``; nothing is changed then. ValueError: for ``bn`` in training mode.

        Example:
            >>> import torch
            >>> import evoprune_kernels as ek
            >>> conv, bn = torch.nn.Conv2d(4, 4, 1).eval(), torch.nn.BatchNorm2d(4).eval()
            >>> ek.SparseConv2d.from_conv(conv, "2:4", bn=bn, activation="relu").activation
            'relu'
        """
        if bn is not None:
            conv = folded(conv, bn)
        given = {"activation": activation, "stored": stored, "name": name}
        layer = cls.share(conv, pattern, sparsity=sparsity, **given)
        layer._prune(None if mask is None else mask.reshape(mask.shape[0], -1), sparsity)
        return layer

    @classmethod
    def _expect(cls, dense: nn.Module) -> None:
        if not isinstance(dense, nn.Conv2d) or isinstance(dense, nn.LazyConv2d):
            raise TypeError(f"expected an nn.Conv2d, got {type(dense).__name__}")

    def _as_stored(self, keep: Tensor) -> Tensor:
        return keep.view(self.weight.shape)

    def to_dense(self) -> nn.Conv2d:
        """The ``nn.Conv2d`` with the same Parameters, hooks and attributes. ``ValueError`` with a fused activation."""
        self._refuse_activation()
        conv = nn.Conv2d.__new__(nn.Conv2d)
        adopt(conv, self)
        return conv

    @property
    def in_features(self) -> int:  # type: ignore[override]
        """Columns of the weight as a matrix."""
        return self.in_channels // self.groups * self.kernel_size[0] * self.kernel_size[1]

    @property
    def out_features(self) -> int:  # type: ignore[override]
        """Channels of the output."""
        return self.out_channels

    def dense_weight(self) -> Tensor:
        """The weight as [N, C * kh * kw]."""
        return self.weight.reshape(self.weight.shape[0], -1)

    def sizes(self) -> ConvSizes:
        """The sizes as the ops take them; ``ValueError`` for padding that differs between two sides."""
        padding: Any = self.padding
        if padding == "valid":
            padding = 0
        elif padding == "same":
            reach = [d * (k - 1) for d, k in zip(self.dilation, self.kernel_size, strict=True)]
            if any(r % 2 for r in reach):
                raise ValueError(f"padding 'same' of a kernel {self.kernel_size} is uneven")
            padding = [r // 2 for r in reach]
        return ConvSizes.of(
            self.out_channels,
            self.in_channels,
            self.kernel_size,
            self.stride,
            padding,
            self.dilation,
        )

    # ---- what the cache asks ---------------------------------------------------------------------------------------
    def _op(self, device: str, impl: str | None) -> Op | None:
        return conv_op_of(self.pattern) if device == _select.CPU else super()._op(device, impl)

    def _bind(self, packed: formats.PackedWeight) -> Bound:
        if packed.values.device.type != _select.CPU:
            return super()._bind(packed)
        return bind_conv(packed, self.sizes(), self.activation)

    def _unfit(self) -> str | None:
        if self.groups != 1:
            return f"the kernels take groups=1, got {self.groups}"
        if self.padding_mode != "zeros":
            return f"the kernels pad with zeros, got padding_mode={self.padding_mode!r}"
        try:
            self.sizes()
        except ValueError as error:
            return str(error)
        return super()._unfit()

    def _run(self, plan: Plan, input: Tensor, bias: Tensor | None) -> Tensor:
        x = input if input.dim() == 4 else input.unsqueeze(0)
        on_cpu = input.device.type == _select.CPU
        y = super()._run(plan, x, bias) if on_cpu else self._run_unfolded(plan, x, bias)
        return y if input.dim() == 4 else y.squeeze(0)

    def _run_unfolded(self, plan: Plan, x: Tensor, bias: Tensor | None) -> Tensor:
        """With the linear kernels of another device: x [B, C, H, W]; y is channels last."""
        sizes = self.sizes()
        check_input(x, sizes)
        rows, columns = sizes.output(x.shape[2], x.shape[3])
        pointwise = sizes.kernel_size == [1, 1] and sizes.padding == [0, 0]
        if pointwise:
            step_h, step_w = sizes.stride
            tokens = x[:, :, ::step_h, ::step_w].permute(0, 2, 3, 1).contiguous()
        else:
            tokens = unfold(x, sizes).contiguous()
        y = super()._run(plan, tokens, bias)
        return y.view(x.shape[0], rows, columns, self.out_channels).permute(0, 3, 1, 2)

    def _dense_linear(self, input: Tensor) -> Tensor:
        return self._conv_forward(input, self.weight, self._parameters["bias"])

    def _check_input(self, input: Tensor, dtype: torch.dtype | None) -> None:
        if input.dim() not in (3, 4) or input.shape[-3] != self.in_channels:
            raise ValueError(
                f"{self.layer_name}: expected an input of shape [B, {self.in_channels}, H, W] or "
                f"[{self.in_channels}, H, W], got {list(input.shape)}"
            )
        if dtype is not None and input.dtype != dtype:
            raise TypeError(
                f"{self.layer_name}: expected an input of dtype {dtype} (the weight's), got {input.dtype}"
            )

    def extra_repr(self) -> str:
        return f"{nn.Conv2d.extra_repr(self)}, {self._describe()}"


def folded(conv: nn.Conv2d, bn: nn.BatchNorm2d) -> nn.Conv2d:
    """A copy of ``conv`` with ``bn`` folded into new Parameters. ``ValueError`` unless both are in eval mode.

    Example:
        >>> import torch
        >>> conv, bn = torch.nn.Conv2d(2, 2, 1).eval(), torch.nn.BatchNorm2d(2).eval()
        >>> x = torch.ones(1, 2, 1, 1)
        >>> torch.allclose(folded(conv, bn)(x), bn(conv(x)))
        True
    """
    if conv.training or bn.training:
        raise ValueError("expected conv and bn in eval mode, got one that is training")
    if bn.running_mean is None or bn.running_var is None:
        raise ValueError("expected a bn with running statistics, got one without")
    return fuse_conv_bn_eval(conv, bn)
