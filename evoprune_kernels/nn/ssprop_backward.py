"""The two autograd functions of ssProp: a dense forward, a backward that computes some output channels only.

::

    dY [B, N, ...]   s_c = sum |dY[:, c]|    idx = top k of s      (a constant factor from the mean: the same order)
    dX = dY[:, idx] * W[idx]                 dW[idx] = dY[:, idx] * X, else 0       db[idx] = sum dY[:, idx], else 0

which is the dense backward of ``dY`` with the other channels set to zero, at ``k / N`` of its multiplications.
Source: ssProp, arXiv 2408.12561.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.nn import functional as F

from evoprune_kernels.nn.filter_rows import scatter_filters, select_filters
from evoprune_kernels.ops.gather_channels import OP as gather_channels
from evoprune_kernels.ops.topk_channels import topk_abs_channels

_NO_SECOND_DERIVATIVE = (
    "the channel-sparse backward of ssProp cannot be differentiated again: for second derivatives set kept=1 or call "
    "eval(), where the layer is plain torch"
)


@dataclass(frozen=True)
class Geometry:
    """How a convolution slides, as integers."""

    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int


def _choose(grad: Tensor, kept: int, chosen: Tensor | None) -> Tensor:
    return topk_abs_channels(grad, kept) if chosen is None else chosen


def select_channels(tensor: Tensor, index: Tensor) -> Tensor:
    """``tensor[:, index]`` of [B, C, H, W] in its memory format."""
    return gather_channels(tensor, index)


class _Refuse(Function):
    """Hands gradients through; whoever differentiates them is told that it cannot be done."""

    @staticmethod
    def forward(sources: int, *tensors: Tensor | None) -> tuple[Tensor | None, ...]:
        return tuple(None if t is None else t.clone() for t in tensors[sources:])

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> Any:
        raise RuntimeError(_NO_SECOND_DERIVATIVE)


def _once(
    sources: tuple[Tensor, ...], grads: tuple[Tensor | None, ...]
) -> tuple[Tensor | None, ...]:
    """``grads``, tied to what they depend on if autograd records this backward (``create_graph=True``)."""
    if torch.is_grad_enabled() and not torch.compiler.is_compiling():
        return _Refuse.apply(len(sources), *sources, *grads)
    return grads


class SparseBackwardConv2d(Function):
    """``y = conv2d(x, W, b)``; backward for ``kept`` output channels, see the module."""

    @staticmethod
    def forward(
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        chosen: Tensor | None,
        geometry: Geometry,
        kept: int,
        weight_only: bool,
    ) -> Tensor:
        g = geometry
        return F.conv2d(x, weight, bias, g.stride, g.padding, g.dilation, g.groups)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, weight, bias, chosen, ctx.geometry, ctx.kept, ctx.weight_only = inputs
        ctx.save_for_backward(x, weight, bias, chosen)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        x, weight, bias, chosen = ctx.saved_tensors
        needs = tuple(ctx.needs_input_grad[:3])
        with torch.no_grad():
            index = _choose(grad, ctx.kept, chosen)
            if not ctx.weight_only:
                grads = _conv2d_some(grad, x, weight, bias, index, ctx.geometry, needs)
            else:
                dx, _, _ = _conv2d_all(grad, x, weight, ctx.geometry, (needs[0], False, False))
                rest = (False, *needs[1:])
                _, dw, db = _conv2d_some(grad, x, weight, bias, index, ctx.geometry, rest)
                grads = (dx, dw, db)
        return (*_once((grad, x, weight), grads), None, None, None, None)


Grads = tuple[Tensor | None, Tensor | None, Tensor | None]
Needs = tuple[bool, ...]


def _conv2d_all(grad: Tensor, x: Tensor, weight: Tensor, g: Geometry, needs: Needs) -> Grads:
    """The gradients of input, weight and bias that are needed, by the library."""
    if not any(needs):
        return None, None, None
    sizes, unused = [weight.shape[0]], [0] * len(g.stride)
    return torch.ops.aten.convolution_backward(
        grad,
        x,
        weight,
        sizes,
        g.stride,
        g.padding,
        g.dilation,
        False,
        unused,
        g.groups,
        list(needs),
    )


def _conv2d_some(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    index: Tensor,
    g: Geometry,
    needs: Needs,
) -> Grads:
    """The same for the output channels ``index``; zero where no chosen channel contributes."""
    if not any(needs):
        return None, None, None
    depthwise = compacts(g.groups, weight) and g.groups > 1
    if not compacts(g.groups, weight):
        masked = torch.zeros_like(grad).index_copy_(1, index, select_channels(grad, index))
        return _conv2d_all(masked, x, weight, g, needs)
    source = x
    if depthwise:
        g = Geometry(g.stride, g.padding, g.dilation, index.numel())
        source = select_channels(x, index)
    dx, dw, db = _conv2d_all(
        select_channels(grad, index), source, select_filters(weight, index), g, needs
    )
    if dx is not None and depthwise:
        dx = torch.zeros_like(x).index_copy_(1, index, dx)
    if dw is not None:
        dw = scatter_filters(dw, index, weight)
    if db is not None:
        assert bias is not None
        db = scatter_filters(db, index, bias)
    return dx, dw, db


def compacts(groups: int, weight: Tensor) -> bool:
    """Whether a convolution with this weight [N, C / groups, kh, kw] is computed for the chosen channels alone.

    So are the ungrouped one and the depthwise one (N = C = groups). Chosen channels do not fall evenly on the groups of
    another one.
    """
    return groups == 1 or (weight.shape[1] == 1 and groups == weight.shape[0])


class SparseBackwardLinear(Function):
    """``y = x W^T + b``; backward for ``kept`` output features, see the module."""

    @staticmethod
    def forward(
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        chosen: Tensor | None,
        kept: int,
        weight_only: bool,
    ) -> Tensor:
        return F.linear(x, weight, bias)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, weight, bias, chosen, ctx.kept, ctx.weight_only = inputs
        ctx.save_for_backward(x, weight, bias, chosen)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        x, weight, bias, chosen = ctx.saved_tensors
        need_x, need_w, need_b = ctx.needs_input_grad[:3]
        dx = dw = db = None
        # the dtypes were settled by the forward; an autocast around backward() does not change them
        with torch.no_grad(), torch.autocast(grad.device.type, enabled=False):
            flat = grad.reshape(-1, grad.shape[-1])
            index = _choose(flat, ctx.kept, chosen)
            some = flat.index_select(1, index)
            if need_x and ctx.weight_only:
                dx = (flat @ weight).view(x.shape)
            elif need_x:
                dx = (some @ select_filters(weight, index)).view(x.shape)
            if need_w:
                dw = scatter_filters(some.t() @ x.reshape(-1, x.shape[-1]), index, weight)
            if need_b:
                db = scatter_filters(some.sum(0), index, bias)
        return (*_once((grad, x, weight), (dx, dw, db)), None, None, None)
