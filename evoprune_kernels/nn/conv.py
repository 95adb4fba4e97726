"""``GatedConv2d``, ``GatedLinear`` and ``GatedBlock``: plain layers times binary gates that are learned.

"Gated" is channel gating: a gate of 0 closes an output channel. (In-painting calls another thing a gated convolution.)
A closed channel is 0 BEFORE a batch norm behind the layer; behind it, it is the constant that the norm makes of 0.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from evoprune_kernels._check import check
from evoprune_kernels.nn.gates import ChannelGate, apply_gates
from evoprune_kernels.nn.packed import adopt

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

    Attributes:
        gate: the ``ChannelGate``.
        positions: output positions of one sample in the last forward, for FLOPs; 0 before.

    Raises:
        ValueError: as ``nn.Conv2d``, and for another ``ste``.

    Notes:
        With all gates open, bitwise the dense convolution. The bias is gated too. The gate's gradient is one reduction
        of ``dy * conv(x)`` over the positions, and does not vanish where the gate is closed, so that it can open again.
        A checkpoint of a plain ``nn.Conv2d`` loads with ``strict=True``; the gate then stays as it is.

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
        _attach(self, out_channels, in_channels, dynamic, hidden=hidden, ste=ste, init=gate_init)

    gate: ChannelGate
    positions: int

    @classmethod
    def from_conv(cls, conv: nn.Conv2d, **gate_options: Any) -> GatedConv2d:
        """A gated layer with the Parameter objects, hooks and mode of ``conv``.

        Args:
            conv: an ``nn.Conv2d``, no subclass of it: another forward would be lost.
            gate_options: ``dynamic``, ``hidden``, ``ste``, ``gate_init``.

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
        _attach(layer, conv.out_channels, conv.in_channels, **_options(gate_options))
        return layer

    def to_dense(self) -> nn.Conv2d:
        """The plain convolution with the same Parameters; the gate is left out, closed channels are open again."""
        conv = nn.Conv2d.__new__(nn.Conv2d)
        adopt(conv, self)
        del conv._modules["gate"], conv.__dict__["positions"]
        return conv

    def forward(self, input: Tensor) -> Tensor:
        """[B, C_in, H, W] or [C_in, H, W] -> the gated output."""
        if input.dim() == 3:
            return self.forward(input.unsqueeze(0)).squeeze(0)
        output = super().forward(input)
        self.positions = output.shape[2] * output.shape[3]
        return apply_gates(output, self.gate(input))

    def cost(self, by: str = "parameters") -> float:
        """What one channel costs: its parameters, or the FLOPs (2 a multiply-add) of a sample in the last forward.

        Raises:
            RuntimeError: for FLOPs before the first forward.
        """
        return _cost(self, self.positions, by)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, gate={'dynamic' if self.gate.dynamic else 'static'}"


class GatedLinear(nn.Linear):
    """A linear layer with a gate on every output feature, such as the intermediate dimension of an FFN.

    ``y[..., n] = g[n] * (x W^T + b)[..., n]``, or ``g[b, n] * ...`` for dynamic gates

    Args:
        in_features, out_features, bias, device, dtype: as for ``nn.Linear``.
        dynamic: gates of each sample: the input [B, ..., K] is averaged over everything between.
        hidden, ste, gate_init: as for ``GatedConv2d``.

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
    ) -> None:
        super().__init__(in_features, out_features, bias, device, dtype)
        _attach(self, out_features, in_features, dynamic, hidden=hidden, ste=ste, init=gate_init)

    gate: ChannelGate
    positions: int

    @classmethod
    def from_linear(cls, linear: nn.Linear, **gate_options: Any) -> GatedLinear:
        """A gated layer with the Parameter objects, hooks and mode of ``linear``; see ``GatedConv2d.from_conv``."""
        if type(linear) is not nn.Linear:
            raise TypeError(f"expected an nn.Linear, got {type(linear).__name__}")
        layer = cls.__new__(cls)
        adopt(layer, linear)
        _attach(layer, linear.out_features, linear.in_features, **_options(gate_options))
        return layer

    def to_dense(self) -> nn.Linear:
        """The plain layer with the same Parameters; the gate is left out."""
        linear = nn.Linear.__new__(nn.Linear)
        adopt(linear, self)
        del linear._modules["gate"], linear.__dict__["positions"]
        return linear

    def forward(self, input: Tensor) -> Tensor:
        """[B, ..., K] or [K] -> the gated output."""
        if input.dim() == 1:
            return self.forward(input.unsqueeze(0)).squeeze(0)
        output = super().forward(input)
        tokens = self.positions = math.prod(output.shape[1:-1])
        pooled = input.flatten(1, -2).transpose(1, 2) if input.dim() > 2 else input
        gates = self.gate(pooled)
        if gates.dim() == 2:  # of each sample: one row a token
            gates = gates.unsqueeze(1).expand(-1, tokens, -1).reshape(-1, self.out_features)
        flat = output.reshape(-1, self.out_features)
        return apply_gates(flat, gates).view(output.shape)

    def cost(self, by: str = "parameters") -> float:
        """What one feature costs; see ``GatedConv2d.cost``."""
        return _cost(self, self.positions, by)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, gate={'dynamic' if self.gate.dynamic else 'static'}"


class GatedBlock(nn.Module):
    """A residual block whose branch has one gate (a layer gate).

    ``y = shortcut(x) + g * F(x)``

    Args:
        branch: F; may hold gated layers itself.
        shortcut: None is the identity.
        in_channels: of x [B, C, ...], for dynamic gates; None: one logit.
        hidden, ste, gate_init: as for ``GatedConv2d``.

    Notes:
        The activation behind the sum, if any, stands outside. Convolutions and linear layers in the branch record
        how many positions they have, for FLOPs.

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
    ) -> None:
        super().__init__()
        self.branch = branch
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
        return self.shortcut(x) + apply_gates(self.branch(x), self.gate(x))


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


def _options(given: dict[str, Any]) -> dict[str, Any]:
    """The options of a gate under the names of ``ChannelGate``; ``TypeError`` for an unknown one."""
    known = {"dynamic": "dynamic", "hidden": "hidden", "ste": "ste", "gate_init": "init"}
    if unknown := sorted(set(given) - set(known)):
        raise TypeError(f"expected gate options in {tuple(known)}, got {unknown[0]!r}")
    return {"dynamic": False, **{known[name]: value for name, value in given.items()}}


def _attach(
    layer: nn.Conv2d | nn.Linear, outputs: int, inputs: int, dynamic: bool, **options: Any
) -> None:
    """Give a layer its gate, on its weight's device, in its dtype and mode."""
    weight = layer.weight
    source = inputs if dynamic else None
    gate = ChannelGate(outputs, source, device=weight.device, dtype=weight.dtype, **options)
    layer.gate = gate.train(layer.training)
    layer.positions = 0  # type: ignore[assignment]
