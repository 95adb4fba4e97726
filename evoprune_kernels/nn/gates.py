"""``ChannelGate``: binary gates that are learned, counted over an epoch and frozen to a static decision.

::

    static    z = theta                                [C]      the same for every sample
    dynamic   z = W2 relu(W1 GAP(x) + b1) + b2         [B, C]   a small network looks at the sample

    p = sigmoid(z)    g = 1 if p > 0.5 else 0          what the forward multiplies by
    backward          dL/dz = dL/dg * p (1 - p)        "sigmoid"
                      dL/dz = dL/dg                    "identity"
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from evoprune_kernels import ops
from evoprune_kernels._check import check, check_dtype, check_shape

#: how the gradient passes the threshold (straight-through estimators)
STE = ("sigmoid", "identity")


def hard_gate(logits: Tensor, ste: str = "sigmoid") -> Tensor:
    """Logits to binary gates, with a straight-through gradient.

    ``g = 1 if sigmoid(z) > 0.5 else 0``; backward: ``dz = dg * p (1 - p)`` (``"sigmoid"``) or ``dz = dg``

    Args:
        logits: any shape, a float dtype.
        ste: ``"sigmoid"`` or ``"identity"``.

    Returns:
        Exactly 0 or 1, in the shape and dtype of ``logits``; NaN where a logit is NaN, so that it is noticed.

    Raises:
        ValueError: for another ``ste``.

    Notes:
        A tie, p = 0.5, is closed. An infinite logit gives NaN under ``"identity"``.

    Source:
        Bengio et al., "Estimating or Propagating Gradients Through Stochastic Neurons", arXiv 1308.3432.

    Example:
        >>> import torch
        >>> hard_gate(torch.tensor([-1.0, 0.0, 2.0]))
        tensor([0., 0., 1.])
    """
    check(ste in STE, f"expected ste in {STE}, got {ste!r}")
    p = torch.sigmoid(logits)
    soft = p if ste == "sigmoid" else logits
    return (p > 0.5).to(p.dtype) + (soft - soft.detach())  # the difference is an exact 0


def apply_gates(x: Tensor, gates: Tensor) -> Tensor:
    """``ops.channel_gate`` with gates [C] or [B, C], or [1] or [B, 1] for all channels together.

    Args:
        x: [B, C, ...], a float dtype.
        gates: a float dtype; one that is not the dtype of x is read as float32.

    Returns:
        ``y[b, c, ...] = x[b, c, ...] * g`` in the dtype and memory format of x.

    Example:
        >>> import torch
        >>> apply_gates(torch.ones(1, 2, 3), torch.tensor([0.0]))
        tensor([[[0., 0., 0.],
                 [0., 0., 0.]]])
    """
    if gates.dtype != x.dtype:
        gates = gates.float()
    if gates.shape[-1] == 1 and x.shape[1] != 1:
        gates = gates.expand(*gates.shape[:-1], x.shape[1]).contiguous()
    return ops.channel_gate(x, gates)


class ChannelGate(nn.Module):
    """Binary gates of ``channels`` channels, or of a whole layer (``channels=1``).

    ``g = hard_gate(theta)`` or, dynamic, ``g = hard_gate(W2 relu(W1 GAP(x) + b1) + b2)``

    Args:
        channels: number of gates C.
        in_channels: of the input that dynamic gates look at; None: static gates.
        hidden: width of the small network of dynamic gates.
        ste: ``"sigmoid"`` or ``"identity"``, see ``hard_gate``.
        init: logit at the start, for every channel and every sample (W2 starts at 0); 2.0 opens all.

    Attributes:
        last: gates of the last forward, [C] or [B, C], with their graph: what the losses of ``gate_losses`` read.
        opened, seen: counters, int64 [C] and []: samples for which a channel was open, and all samples, since
            ``reset_statistics``. Saved in the state_dict.
        decision: bool [C] once frozen, else None. Saved in the state_dict.

    Raises:
        ValueError: for sizes below 1 or another ``ste``.

    Notes:
        Counted: every forward in training mode, and in eval mode inside ``collect_statistics``. Reentrant activation
        checkpointing runs the forward without a graph, so that ``last`` has no gradient: use
        ``use_reentrant=False``. A forward that is recomputed is counted twice. Under ``DistributedDataParallel`` each
        rank counts its own samples, and its default ``broadcast_buffers=True`` overwrites them with those of rank 0.
        The gates are computed in their own dtype under autocast too. Weight decay pulls a static logit to 0, where
        the gate closes: give these Parameters none.

    Source:
        Zhi et al., "Learning a Consensus Sub-Network with Polarization Regularization and One Pass Training",
        arXiv 2302.10798.

    Example:
        >>> import torch
        >>> gate = ChannelGate(3)
        >>> with torch.no_grad():
        ...     _ = gate.theta.copy_(torch.tensor([1.0, -1.0, 0.5]))
        >>> gate(torch.zeros(4, 3, 2, 2)).detach(), gate.open_share()
        (tensor([1., 0., 1.]), tensor([1., 0., 1.], dtype=torch.float64))
    """

    opened: Tensor
    seen: Tensor
    decision: Tensor | None

    def __init__(
        self,
        channels: int,
        in_channels: int | None = None,
        *,
        hidden: int = 16,
        ste: str = "sigmoid",
        init: float = 2.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check(channels >= 1, f"expected channels >= 1, got {channels}")
        check(ste in STE, f"expected ste in {STE}, got {ste!r}")
        self.channels, self.in_channels, self.ste, self.init = channels, in_channels, ste, init
        self.counts_in_eval = False
        self.last: Tensor | None = None
        new: dict[str, Any] = {"device": device, "dtype": dtype}
        if in_channels is None:
            self.theta = nn.Parameter(torch.empty(channels, **new))
        else:
            check(in_channels >= 1, f"expected in_channels >= 1, got {in_channels}")
            check(hidden >= 1, f"expected hidden >= 1, got {hidden}")
            self.hidden_weight = nn.Parameter(torch.empty(hidden, in_channels, **new))
            self.hidden_bias = nn.Parameter(torch.empty(hidden, **new))
            self.out_weight = nn.Parameter(torch.empty(channels, hidden, **new))
            self.out_bias = nn.Parameter(torch.empty(channels, **new))
        self.register_buffer("opened", torch.zeros(channels, dtype=torch.int64, device=device))
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64, device=device))
        self.register_buffer("decision", None)
        self.reset_parameters()

    @property
    def dynamic(self) -> bool:
        """Whether the gates look at the sample."""
        return self.in_channels is not None

    def reset_parameters(self) -> None:
        """Every logit to ``init``; W1 as ``nn.Linear`` does."""
        with torch.no_grad():
            if not self.dynamic:
                self.theta.fill_(self.init)
                return
            bound = self.hidden_weight.shape[1] ** -0.5
            self.hidden_weight.uniform_(-bound, bound)
            self.hidden_bias.uniform_(-bound, bound)
            self.out_weight.zero_()
            self.out_bias.fill_(self.init)

    def logits(self, x: Tensor) -> Tensor:
        """``z`` before the sigmoid: [C], or [B, C] for dynamic gates; ``x`` is [B, C_in, ...]."""
        if not self.dynamic:
            return self.theta
        check(
            x.dim() >= 2 and x.shape[1] == self.in_channels,
            f"expected x of shape [B, {self.in_channels}, ...], got {tuple(x.shape)}",
        )
        with torch.autocast(x.device.type, enabled=False):
            dtype = self.hidden_weight.dtype
            pooled = x.flatten(2).mean(2, dtype=dtype) if x.dim() > 2 else x.to(dtype)
            hidden = F.relu(F.linear(pooled, self.hidden_weight, self.hidden_bias))
            return F.linear(hidden, self.out_weight, self.out_bias)

    def forward(self, x: Tensor) -> Tensor:
        """The gates for ``x`` [B, C_in, ...]: [C], or [B, C] for dynamic gates that are not frozen."""
        if self.decision is not None:
            gates = self._frozen()
        else:
            gates = hard_gate(self.logits(x), self.ste)
        if self.training or self.counts_in_eval:
            self._count(gates.detach() != 0, x.shape[0])
        self.last = gates
        return gates

    def mean_gates(self) -> Tensor:
        """``gbar``: gates averaged over the last batch, [C], differentiable.

        Raises:
            RuntimeError: for dynamic gates before the first forward.
            ValueError: if the last batch was empty.
        """
        if self.decision is not None:
            return self._frozen()
        if not self.dynamic:
            return hard_gate(self.theta, self.ste)
        if self.last is None:
            raise RuntimeError("dynamic gates have no mean before a forward: run the model first")
        check(self.last.shape[0] > 0, "expected a last batch of 1 sample or more, got 0")
        return self.last.mean(0)

    # ---- statistics ----
    def _count(self, is_open: Tensor, samples: int) -> None:
        with torch.no_grad():
            open_samples = is_open.sum(0) if is_open.dim() == 2 else is_open.long() * samples
            self.opened.add_(open_samples)
            self.seen.add_(samples)

    def open_share(self) -> Tensor:
        """Share of the counted samples for which each channel was open: float64 [C]; ``RuntimeError`` if none was."""
        if int(self.seen) == 0:
            raise RuntimeError("expected counted samples, got 0: run the model in training mode")
        return self.opened.double() / self.seen.double()

    def reset_statistics(self) -> None:
        """Both counters to 0, at the start of an epoch."""
        self.opened.zero_()
        self.seen.zero_()

    # ---- the static decision ----
    def freeze(self, decision: Tensor | None = None) -> Tensor:
        """Decide for good: the gates are ``decision`` from here on, and without a gradient.

        ``decision[c] = sigmoid(theta[c]) > 0.5``; dynamic gates: ``open_share()[c] > 0.5``

        Args:
            decision: bool [C], True = open; None decides as above.

        Returns:
            bool [C], a copy.

        Raises:
            RuntimeError: for dynamic gates that have counted nothing.
            TypeError, ValueError: for a given decision of another dtype or shape.

        Notes:
            A tie (a share of exactly one half) is closed. Static gates decide by their present logits, which is what
            the forward does; their counters also hold what they were earlier in the epoch.

        Example:
            >>> ChannelGate(2).freeze()
            tensor([True, True])
        """
        if decision is None:
            if self.dynamic:
                decision = self.open_share() > 0.5
            else:
                decision = torch.sigmoid(self.theta.detach()) > 0.5
        check_dtype(decision, (torch.bool,), "decision")
        check_shape(decision, (self.channels,), "decision")
        self.decision = decision.to(self.opened.device, copy=True)
        return decision.clone()

    def unfreeze(self) -> None:
        """Back to learned gates."""
        self.decision = None

    def _frozen(self) -> Tensor:
        assert self.decision is not None
        return self.decision.to(next(self.parameters()).dtype)

    # ---- saving ----
    def __getstate__(self) -> dict[str, Any]:
        """``last`` belongs to a graph, which can be neither copied nor pickled."""
        return {**self.__dict__, "last": None}

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        """A checkpoint without any key of a gate (of a plain layer) leaves the gate as it is."""
        if not any(key.startswith(prefix) for key in state_dict):
            return
        decision = state_dict.get(prefix + "decision")
        if decision is None:
            self.decision = None
        elif self.decision is None:
            self.decision = torch.ones_like(self.opened, dtype=torch.bool)
        super()._load_from_state_dict(state_dict, prefix, *args)

    def extra_repr(self) -> str:
        kind = f"dynamic, in_channels={self.in_channels}" if self.dynamic else "static"
        frozen = "" if self.decision is None else f", frozen, {int(self.decision.sum())} open"
        return f"{self.channels}, {kind}, ste={self.ste}{frozen}"


# ---- all gates of a model ----
def gates_of(model: nn.Module) -> dict[str, ChannelGate]:
    """Every gate of a model by the name of the layer that it belongs to, in the model's order.

    Example:
        >>> from evoprune_kernels.nn import GatedConv2d
        >>> list(gates_of(nn.Sequential(GatedConv2d(3, 4, 3), nn.ReLU())))
        ['0']
    """
    found = {}
    for name, module in model.named_modules():
        if isinstance(module, ChannelGate):
            layer, _, own = name.rpartition(".")
            found[layer if own == "gate" else name] = module
    return found


def gate_statistics(model: nn.Module) -> dict[str, Tensor]:
    """``open_share`` of every gate: layer name -> float64 [C]; ``RuntimeError`` if one has counted nothing."""
    return {name: gate.open_share() for name, gate in gates_of(model).items()}


def reset_gate_statistics(model: nn.Module) -> None:
    """Every counter of a model to 0, at the start of an epoch."""
    for gate in gates_of(model).values():
        gate.reset_statistics()


@contextmanager
def collect_statistics(model: nn.Module) -> Iterator[None]:
    """Count from 0, in eval mode as well, inside the ``with``: one pass over the data decides.

    Example:
        >>> import torch
        >>> from evoprune_kernels.nn import GatedConv2d
        >>> layer = GatedConv2d(1, 2, 3, dynamic=True).eval()
        >>> with collect_statistics(layer):
        ...     _ = layer(torch.ones(5, 1, 4, 4))
        >>> int(layer.gate.seen), freeze_gates(layer)
        (5, {'': tensor([True, True])})
    """
    gates = list(gates_of(model).values())
    before = [gate.counts_in_eval for gate in gates]
    for gate in gates:
        gate.reset_statistics()
        gate.counts_in_eval = True
    try:
        yield
    finally:
        for gate, counted in zip(gates, before, strict=True):
            gate.counts_in_eval = counted


def freeze_gates(model: nn.Module) -> dict[str, Tensor]:
    """``ChannelGate.freeze`` for every gate that is not frozen; the decisions of all: layer name -> bool [C].

    Raises:
        RuntimeError: if dynamic gates have counted nothing; no gate is frozen then.
    """
    gates = gates_of(model)
    for name, gate in gates.items():
        if gate.decision is None and gate.dynamic and int(gate.seen) == 0:
            raise RuntimeError(f"{name}: expected counted samples, got 0: see collect_statistics")
    return {name: gate.freeze(gate.decision) for name, gate in gates.items()}
