"""``GatedConv2d``, ``GatedLinear`` and ``GatedBlock``: plain layers times binary gates that are learned.

"Gated" is channel gating: a gate of 0 closes an output channel. (In-painting calls another thing a gated convolution.)
A closed channel is 0 BEFORE a batch norm behind the layer; behind it, it is the constant that the norm makes of 0.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from evoprune_kernels._check import check
from evoprune_kernels.nn import skipping
from evoprune_kernels.nn.attach import attach, detach, gate_repr, options
from evoprune_kernels.nn.gates import ChannelGate, apply_gates
from evoprune_kernels.nn.packed import adopt
from evoprune_kernels.nn.skipping import cannot_skip, open_channels, some

#: what a budget can be counted in
COUNTED = ("parameters", "flops")


class GatedConv2d(nn.Conv2d):
    """A convolution with a gate on every output channel.

    ``y[b, c] = g[c] * conv(x)[b, c]``, or ``g[b, c] * ...`` for dynamic gates

    Args:
        in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, padding_mode, device, dtype:
            as for ``nn.Conv2d``.
        dynamic: gates of each sample, from a small network over the pooled input, instead of one logit a channel.
        hidden: width of that network.
        ste: ``"sigmoid"`` or ``"identity"``, see ``hard_gate``.
        gate_init: logit at the start; 2.0 opens every gate.
        skip_closed: do not compute channels that are closed for the whole batch, in forward and backward.

    Attributes:
        gate: the ``ChannelGate``.
        positions: output positions of one sample in the last forward, for FLOPs; 0 before.

    Raises:
        ValueError: as ``nn.Conv2d``, and for another ``ste``.

    Notes:
        With all gates open, bitwise the dense convolution. The bias is gated too. The gate's gradient is one reduction
        of ``dy * conv(x)`` over the positions, and does not vanish where the gate is closed, so that it can open again.
        A checkpoint of a plain ``nn.Conv2d`` loads with ``strict=True``; the gate then stays as it is.

        ``skip_closed`` gives the same values and gradients to rounding, but one: the gate of a skipped channel gets 0
        from the loss of the task, because that needs the convolution that was saved. Such a gate can only be opened
        again by ``budget_loss`` and ``polarization_loss``, or by hand. Everything is computed, and closed gates have
        their gradient, where fewer than 8 channels or an eighth of them are closed (``skipping.LEAST_CLOSED`` and
        ``LEAST_SHARE``: skipping would be slower), with groups > 1 (``print`` says so), and while compiling, exporting
        or tracing (sizes would depend on data). Where all gates are closed the first channel is computed. On a GPU
        every forward waits for the gates. NaN or infinity in x may show in a closed channel.

    Source:
        Zhi et al., arXiv 2302.10798.

    Example:
        >>> import torch
        >>> layer = GatedConv2d(3, 4, kernel_size=3, padding=1)
        >>> _ = layer.gate.freeze(torch.tensor([True, False, True, True]))
        >>> layer(torch.randn(2, 3, 8, 8))[:, 1].abs().max().item()
        0.0
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
        padding_mode: str = "zeros",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        dynamic: bool = False,
        hidden: int = 16,
        ste: str = "sigmoid",
        gate_init: float = 2.0,
        skip_closed: bool = False,
    ) -> None:
        super().__init__(
            in_channels,
            out_channels,
            kernel_size,  # type: ignore[arg-type]
            stride,  # type: ignore[arg-type]
            padding,  # type: ignore[arg-type]
            dilation,  # type: ignore[arg-type]
            groups,
            bias,
            padding_mode,  # type: ignore[arg-type]
            device,
            dtype,
        )
        given = {"hidden": hidden, "ste": ste, "init": gate_init}
        attach(self, out_channels, in_channels, dynamic, skip_closed, **given)

    gate: ChannelGate
    positions: int
    skip_closed: bool = False

    @classmethod
    def from_conv(cls, conv: nn.Conv2d, **gate_options: Any) -> GatedConv2d:
        """A gated layer with the Parameter objects, hooks and mode of ``conv``.

        Args:
            conv: an ``nn.Conv2d``, no subclass of it: another forward would be lost.
            gate_options: ``dynamic``, ``hidden``, ``ste``, ``gate_init``, ``skip_closed``.

        Raises:
            TypeError: for anything else than an ``nn.Conv2d``, or an unknown option.

        Example:
            >>> conv = nn.Conv2d(3, 8, 1)
            >>> GatedConv2d.from_conv(conv).weight is conv.weight
            True
        """
        if type(conv) is not nn.Conv2d:
            raise TypeError(f"expected an nn.Conv2d, got {type(conv).__name__}")
        layer = cls.__new__(cls)
        adopt(layer, conv)
        attach(layer, conv.out_channels, conv.in_channels, **options(gate_options))
        return layer

    def to_dense(self) -> nn.Conv2d:
        """The plain convolution with the same Parameters; the gate is left out, closed channels are open again."""
        conv = nn.Conv2d.__new__(nn.Conv2d)
        adopt(conv, self)
        detach(conv)
        return conv

    def forward(self, input: Tensor) -> Tensor:
        """[B, C_in, H, W] or [C_in, H, W] -> the gated output."""
        if input.dim() == 3:
            return self.forward(input.unsqueeze(0)).squeeze(0)
        if not self.skip_closed or cannot_skip(self):
            output = super().forward(input)
            self.positions = output.shape[2] * output.shape[3]
            return apply_gates(output, self.gate(input))
        gates = self.gate(input)
        index = open_channels(gates)
        output = self._conv_forward(input, *skipping.filters(self, index, skipping.moved(gates)))
        self.positions = output.shape[2] * output.shape[3]
        if gates.dim() == 2:
            output = apply_gates(output, some(gates, index))
        return skipping.spread(output, index, self.out_channels)

    def convolve(self, input: Tensor, gates: Tensor | None = None) -> Tensor:
        """The output before its gates, bias included, for whoever applies the gates together with what follows.

        Args:
            input: [B, C_in, H, W] or [C_in, H, W].
            gates: of this batch, ``self.gate(input)``, [C] or [B, C]; None: static and frozen gates are looked up,
                dynamic ones are not computed a second time.

        Returns:
            [B, C, H, W] or [C, H, W]. With ``skip_closed``, channels that ``forward`` would skip are 0; none for
            dynamic gates that were not given.

        Example:
            >>> import torch
            >>> layer, x = GatedConv2d(3, 4, 3), torch.randn(2, 3, 8, 8)
            >>> torch.equal(layer.convolve(x), layer.to_dense()(x))
            True
        """
        if input.dim() == 3:
            return self.convolve(input.unsqueeze(0), gates).squeeze(0)
        index = None
        if self.skip_closed and not cannot_skip(self):
            if gates is None and not (self.gate.dynamic and self.gate.decision is None):
                gates = self.gate.mean_gates()
            index = None if gates is None else open_channels(gates)
        output = self._conv_forward(input, *skipping.filters(self, index))
        self.positions = output.shape[2] * output.shape[3]
        return skipping.spread(output, index, self.out_channels)

    def cost(self, by: str = "parameters") -> float:
        """What one channel costs: its parameters, or the FLOPs (2 a multiply-add) of a sample in the last forward.

        Raises:
            RuntimeError: for FLOPs before the first forward.
        """
        return _cost(self, self.positions, by)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, {gate_repr(self)}"


class GatedLinear(nn.Linear):
    """A linear layer with a gate on every output feature, such as the intermediate dimension of an FFN.

    ``y[..., n] = g[n] * (x W^T + b)[..., n]``, or ``g[b, n] * ...`` for dynamic gates

    Args:
        in_features, out_features, bias, device, dtype: as for ``nn.Linear``.
        dynamic: gates of each sample: the input [B, ..., K] is averaged over everything between.
        hidden, ste, gate_init, skip_closed: as for ``GatedConv2d``.

    Notes:
        The gate stands before the activation: with one that maps 0 to 0 (ReLU, GELU, SiLU) a closed feature adds
        nothing to the layer behind. A checkpoint of ``nn.Linear`` loads with ``strict=True``.

    Source:
        Zhi et al., arXiv 2302.10798, for channels; here for features.

    Example:
        >>> import torch
        >>> layer = GatedLinear(4, 8)
        >>> _ = layer.gate.freeze(torch.arange(8) < 3)
        >>> (layer(torch.randn(2, 5, 4)) != 0).any(0).any(0).tolist()
        [True, True, True, False, False, False, False, False]
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        dynamic: bool = False,
        hidden: int = 16,
        ste: str = "sigmoid",
        gate_init: float = 2.0,
        skip_closed: bool = False,
    ) -> None:
        super().__init__(in_features, out_features, bias, device, dtype)
        given = {"hidden": hidden, "ste": ste, "init": gate_init}
        attach(self, out_features, in_features, dynamic, skip_closed, **given)

    gate: ChannelGate
    positions: int
    skip_closed: bool = False

    @classmethod
    def from_linear(cls, linear: nn.Linear, **gate_options: Any) -> GatedLinear:
        """A gated layer with the Parameter objects, hooks and mode of ``linear``; see ``GatedConv2d.from_conv``."""
        if type(linear) is not nn.Linear:
            raise TypeError(f"expected an nn.Linear, got {type(linear).__name__}")
        layer = cls.__new__(cls)
        adopt(layer, linear)
        attach(layer, linear.out_features, linear.in_features, **options(gate_options))
        return layer

    def to_dense(self) -> nn.Linear:
        """The plain layer with the same Parameters; the gate is left out."""
        linear = nn.Linear.__new__(nn.Linear)
        adopt(linear, self)
        detach(linear)
        return linear

    def forward(self, input: Tensor) -> Tensor:
        """[B, ..., K] or [K] -> the gated output."""
        if input.dim() == 1:
            return self.forward(input.unsqueeze(0)).squeeze(0)
        pooled = input.flatten(1, -2).transpose(1, 2) if input.dim() > 2 else input
        if not self.skip_closed:
            output = super().forward(input)
            return self._gated(output, self.gate(pooled), None)
        gates = self.gate(pooled)
        index = open_channels(gates)
        output = F.linear(input, *skipping.filters(self, index, skipping.moved(gates)))
        return self._gated(output, None if gates.dim() == 1 else some(gates, index), index)

    def _gated(self, output: Tensor, gates: Tensor | None, index: Tensor | None) -> Tensor:
        """Features [B, ..., K] times gates [K] or [B, K], to their places."""
        tokens = self.positions = math.prod(output.shape[1:-1])
        flat = output.reshape(-1, output.shape[-1])
        if gates is not None and gates.dim() == 2:  # of each sample: one row a token
            gates = gates.unsqueeze(1).expand(-1, tokens, -1).reshape(flat.shape)
        if gates is not None:
            flat = apply_gates(flat, gates)
        flat = skipping.spread(flat, index, self.out_features)
        return flat.view(*output.shape[:-1], self.out_features)

    def cost(self, by: str = "parameters") -> float:
        """What one feature costs; see ``GatedConv2d.cost``."""
        return _cost(self, self.positions, by)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, {gate_repr(self)}"


class GatedBlock(nn.Module):
    """A residual block whose branch has one gate (a layer gate).

    ``y = shortcut(x) + g * F(x)``

    Args:
        branch: F; may hold gated layers itself.
        shortcut: None is the identity.
        in_channels: of x [B, C, ...], for dynamic gates; None: one logit.
        hidden, ste, gate_init: as for ``GatedConv2d``.
        skip_closed: do not run the branch where the gate is closed for the whole batch.

    Notes:
        The activation behind the sum, if any, stands outside. Convolutions and linear layers in the branch record
        how many positions they have, for FLOPs.

        A skipped branch leaves no trace. Its Parameters get no gradient (None, so that an optimizer passes them over,
        where zeros would still decay them; ``DistributedDataParallel`` needs ``find_unused_parameters=True``). Its
        batch norms do not see the batch: running statistics stay. Its forward hooks are not called, gates inside count
        nothing, and y has the shape and dtype of the shortcut. The block's gate gets no gradient from the loss of the
        task, so that only ``budget_loss``, ``polarization_loss`` or a hand can open it again. A branch whose sizes or
        gates the losses do not know yet is run once; all are run while compiling, exporting or tracing.

    Source:
        Zhi et al., arXiv 2302.10798.

    Example:
        >>> import torch
        >>> block = GatedBlock(nn.Conv2d(3, 3, 3, padding=1))
        >>> _ = block.gate.freeze(torch.tensor([False]))
        >>> x = torch.randn(2, 3, 5, 5)
        >>> torch.equal(block(x), x)
        True
    """

    def __init__(
        self,
        branch: nn.Module,
        shortcut: nn.Module | None = None,
        in_channels: int | None = None,
        *,
        hidden: int = 16,
        ste: str = "sigmoid",
        gate_init: float = 2.0,
        skip_closed: bool = False,
    ) -> None:
        super().__init__()
        self.branch = branch
        self.skip_closed = skip_closed
        self.shortcut = nn.Identity() if shortcut is None else shortcut
        first = next(branch.parameters(), torch.empty(0))
        self.gate = ChannelGate(
            1,
            in_channels,
            hidden=hidden,
            ste=ste,
            init=gate_init,
            device=first.device,
            dtype=first.dtype,
        )
        for module in branch.modules():
            if isinstance(module, nn.Conv2d | nn.Linear) and not hasattr(module, "gate"):
                module.register_forward_hook(_record_positions)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, ...] -> the block's output."""
        if not self.skip_closed:
            return self.shortcut(x) + apply_gates(self.branch(x), self.gate(x))
        gates = self.gate(x)
        if skipping.is_closed(gates) and skipping.is_known(self.branch):
            skipping.forget_graphs(self.branch)
            return self.shortcut(x).clone()  # as a sum is: never x itself
        return self.shortcut(x) + apply_gates(self.branch(x), gates)

    def extra_repr(self) -> str:
        return "skip_closed=True" if self.skip_closed else ""


def _record_positions(module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
    """Forward hook: output positions of one sample."""
    if isinstance(module, nn.Conv2d):
        module.positions = output.shape[-2] * output.shape[-1]  # type: ignore[assignment]
    else:
        module.positions = math.prod(output.shape[1:-1])  # type: ignore[assignment]


def channel_cost(module: nn.Conv2d | nn.Linear, by: str) -> float:
    """What one output channel of a layer costs; ``RuntimeError`` for FLOPs before the first forward."""
    return _cost(module, int(getattr(module, "positions", 0)), by)


def _cost(module: nn.Conv2d | nn.Linear, positions: int, by: str) -> float:
    check(by in COUNTED, f"expected by in {COUNTED}, got {by!r}")
    weights = module.weight[0].numel()
    if by == "parameters":
        return float(weights + (module.bias is not None))
    if positions == 0:
        raise RuntimeError(
            f"{type(module).__name__}({module.extra_repr()}) has seen no forward: FLOPs need its output size, run the "
            "model once"
        )
    return 2.0 * weights * positions
