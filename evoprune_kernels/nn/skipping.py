"""Closed channels are not computed: which channels are open, their filters, and their way back into zeros.

::

    open = channels whose gate is not 0 for some sample of the batch
    y[:, open] = conv(x, W[open] * g[open], b[open] * g[open])      gates [C]: the product is moved into the filters
    y[:, open] = conv(x, W[open], b[open]) * g[:, open]             gates [B, C]
    y[:, c] = 0                                                     every other channel

Autograd of this composition is the skipped backward: dX from open filters, dW and db of open filters, 0 for the others.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from evoprune_kernels.nn.filter_rows import select_filters
from evoprune_kernels.nn.gates import gates_of
from evoprune_kernels.ops.gather_channels import SCATTER

#: Skip only where at least so many channels are closed, and so large a share of them. Convolutions compute channels in
#: vectors of 8 (fewer closed ones save nothing), and gathering filters and scattering the output must cost less than
#: the closed filters: ``python -m bench gate_skip``, the rows of single layers.
LEAST_CLOSED = 8
LEAST_SHARE = 1 / 8


def cannot_skip(layer: nn.Module) -> str | None:
    """Why a layer computes closed channels although ``skip_closed`` is set, or None."""
    groups = getattr(layer, "groups", 1)
    return f"needs groups=1, got {groups}" if groups != 1 else None


def is_traced(gates: Tensor) -> bool:
    """Whether what runs now has no values to look at, or may not depend on them.

    ``torch.compile``, ``torch.export``, ``torch.jit.trace``, meta and fake tensors, the capture of a CUDA graph.
    """
    if torch.compiler.is_compiling() or torch.jit.is_tracing():
        return True
    if gates.is_meta or type(gates) is not Tensor:
        return True
    return gates.is_cuda and torch.cuda.is_current_stream_capturing()


def open_channels(gates: Tensor) -> Tensor | None:
    """Indices of the channels to compute, int64 [K], ascending; None: all of them.

    Args:
        gates: [C] or [B, C]. NaN is open, so that it is noticed.

    Notes:
        None where fewer than ``LEAST_CLOSED`` or ``LEAST_SHARE`` are closed, and where ``is_traced``. One filter at
        least: if no gate is open, channel 0. Waits for the device.

    Example:
        >>> open_channels(torch.cat([torch.zeros(2, 8), torch.eye(2)], 1))
        tensor([8, 9])
    """
    if is_traced(gates):
        return None
    is_open = gates.detach() != 0
    if is_open.dim() == 2:
        is_open = is_open.any(0)
    index = is_open.nonzero().flatten()
    channels = is_open.shape[0]
    if channels - index.shape[0] < max(1, LEAST_CLOSED, LEAST_SHARE * channels):
        return None
    return index if index.shape[0] else index.new_zeros(1)


def is_closed(gates: Tensor) -> bool:
    """Whether a block's gate [1] or [B, 1] is closed for the whole batch; False where ``is_traced``."""
    return not is_traced(gates) and not bool((gates.detach() != 0).any())


def is_known(branch: nn.Module) -> bool:
    """Whether the losses know a branch from an earlier forward: its positions, and its dynamic gates."""
    gates = gates_of(branch).values()
    layers = (m for m in branch.modules() if isinstance(m, nn.Conv2d | nn.Linear))
    return all(getattr(layer, "positions", 0) for layer in layers) and not any(
        gate.dynamic and gate.decision is None and gate.last is None for gate in gates
    )


def forget_graphs(branch: nn.Module) -> None:
    """The last gates of a branch that is not run are those of an earlier batch, whose graph is gone: values alone."""
    for gate in gates_of(branch).values():
        gate.last = None if gate.last is None else gate.last.detach()


def moved(gates: Tensor) -> Tensor | None:
    """The gates that are moved into the filters: those that all samples share."""
    return gates if gates.dim() == 1 else None


def some(gates: Tensor, index: Tensor | None) -> Tensor:
    """The gates [C] or [B, C] of the channels ``index``."""
    return gates if index is None else gates.index_select(-1, index)


def filters(
    layer: nn.Conv2d | nn.Linear, index: Tensor | None, gates: Tensor | None = None
) -> tuple[Tensor, Tensor | None]:
    """Weight and bias of the channels ``index`` (None: all), times ``gates`` [C] (None: as they are)."""
    weight, bias = layer.weight, layer.bias
    if index is not None:
        weight = select_filters(weight, index)
        bias = None if bias is None else bias.index_select(0, index)
    if gates is not None:
        factors = some(gates, index).to(weight.dtype)
        weight = weight * factors.view(-1, *[1] * (weight.dim() - 1))
        bias = None if bias is None else bias * factors
    return weight, bias


def spread(y: Tensor, index: Tensor | None, channels: int) -> Tensor:
    """``y`` [B, K, ...] of the channels ``index`` as [B, channels, ...], zeros elsewhere."""
    return y if index is None else SCATTER(y, index, channels)
