"""``GateNorm2d``: a batch norm that multiplies by the gates of the convolution before it, and applies the ReLU behind.

::

    before   GatedConv2d        conv, gates: g * c    BatchNorm2d   norm(g * c)            ReLU      relu(..)
    fused    UngatedConv2d      conv alone            GateNorm2d    relu(norm(g * c))      Identity
                       `-- gates of this forward --------^

The layers keep their places and their Parameters, so that a state_dict of either model loads into the other.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from evoprune_kernels import ops
from evoprune_kernels._check import check, check_dim
from evoprune_kernels.nn.conv import GatedConv2d
from evoprune_kernels.nn.packed import adopt
from evoprune_kernels.nn.swap import paths, replace


class UngatedConv2d(GatedConv2d):
    """A ``GatedConv2d`` whose output is not multiplied yet: the ``GateNorm2d`` behind it takes ``gates``.

    Made by ``fuse_gate_norm_``; ``gate`` works as before: it learns, counts and freezes.

    Attributes:
        gates: those of the last forward until the norm has taken them, else None.

    Example:
        >>> import torch
        >>> layer = UngatedConv2d.from_gated(GatedConv2d(3, 2, 1, gate_init=-1.0))
        >>> layer(torch.ones(1, 3, 4, 4)).ne(0).all().item(), layer.gates.tolist()
        (True, [0.0, 0.0])
    """

    gates: Tensor | None

    @classmethod
    def from_gated(cls, conv: GatedConv2d) -> UngatedConv2d:
        """The same Parameters, gate, hooks and mode; ``TypeError`` for anything but a ``GatedConv2d``."""
        if type(conv) is not GatedConv2d:
            raise TypeError(f"expected a GatedConv2d, got {type(conv).__name__}")
        layer = cls.__new__(cls)
        adopt(layer, conv)
        layer.gates = None
        return layer

    def to_gated(self) -> GatedConv2d:
        """The layer that this one was made from."""
        conv = GatedConv2d.__new__(GatedConv2d)
        adopt(conv, self)
        del conv.__dict__["gates"]
        return conv

    def to_dense(self) -> nn.Conv2d:
        """As ``GatedConv2d.to_dense``."""
        return self.to_gated().to_dense()

    def forward(self, input: Tensor) -> Tensor:
        """[B, C_in, H, W] -> the output without gates."""
        check_dim(input, 4, "the input of a fused convolution")
        gates = self.gate(input)
        output = self.convolve(input, gates)
        self.gates = gates if gates.dtype == output.dtype else gates.float()
        return output

    def __getstate__(self) -> dict[str, Any]:
        """``gates`` belong to a graph, which can be neither copied nor pickled."""
        return {**super().__getstate__(), "gates": None}


class GateNorm2d(nn.BatchNorm2d):
    """A batch norm of gated channels, with the ReLU behind it if wanted, by ``ops.gate_norm``.

    ``y = relu(batch_norm(g * x))``

    Args:
        num_features, eps, momentum, affine, track_running_stats, device, dtype: as for ``nn.BatchNorm2d``.
        relu: a ReLU behind the norm.

    Raises:
        ValueError: in the forward, for gates that do not fit, or one value a channel in training.

    Notes:
        The running statistics, ``momentum=None`` and the modes are those of ``nn.BatchNorm2d``, and so are the keys of
        the state_dict. Memory is walked over twice forward and twice backward, where gate, norm and ReLU apart take
        several walks each.

    Example:
        >>> import torch
        >>> norm = GateNorm2d(2, relu=True)
        >>> y = norm(torch.randn(4, 2, 5, 5), torch.tensor([1.0, 0.0]))
        >>> bool((y[:, 0] >= 0).all()), y[:, 1].abs().max().item()
        (True, 0.0)
    """

    relu: bool

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        device: Any = None,
        dtype: Any = None,
        *,
        relu: bool = False,
    ) -> None:
        super().__init__(num_features, eps, momentum, affine, track_running_stats, device, dtype)
        self.relu = relu
        self._sources: tuple[UngatedConv2d, ...] = ()  # in a tuple, so that it is no submodule

    @classmethod
    def from_norm(
        cls, norm: nn.BatchNorm2d, conv: UngatedConv2d | None = None, *, relu: bool = False
    ) -> GateNorm2d:
        """A layer with the Parameters, buffers, hooks and mode of ``norm``.

        Args:
            norm: an ``nn.BatchNorm2d``, no subclass of it.
            conv: whose gates it takes when it gets none.
            relu: a ReLU behind the norm.

        Raises:
            TypeError: for anything else than an ``nn.BatchNorm2d``.

        Example:
            >>> norm = nn.BatchNorm2d(4)
            >>> GateNorm2d.from_norm(norm, relu=True).weight is norm.weight
            True
        """
        if type(norm) is not nn.BatchNorm2d:
            raise TypeError(f"expected an nn.BatchNorm2d, got {type(norm).__name__}")
        layer = cls.__new__(cls)
        adopt(layer, norm)
        layer.relu = relu
        layer._sources = () if conv is None else (conv,)
        return layer

    def to_norm(self) -> nn.BatchNorm2d:
        """The plain norm with the same Parameters; gates and ReLU are left out."""
        norm = nn.BatchNorm2d.__new__(nn.BatchNorm2d)
        adopt(norm, self)
        del norm.__dict__["relu"], norm.__dict__["_sources"]
        return norm

    def forward(self, input: Tensor, gates: Tensor | None = None) -> Tensor:
        """[B, C, H, W] and gates [C] or [B, C] -> [B, C, H, W].

        Args:
            input: without gates.
            gates: None: those that the convolution before has computed in this forward; they serve once.

        Raises:
            RuntimeError: if there are none.
        """
        self._check_input_dim(input)
        if gates is None:
            gates = self._take()
        batch = self.training or self.running_mean is None
        return ops.gate_norm(
            input,
            gates,
            self.weight,
            self.bias,
            self.running_mean if not batch or self._tracks() else None,
            self.running_var if not batch or self._tracks() else None,
            training=batch,
            momentum=self._share(),
            eps=self.eps,
            relu=self.relu,
        )

    def _tracks(self) -> bool:
        return self.training and self.track_running_stats

    def _share(self) -> float:
        """How much the batch counts in the running statistics; advances the count of batches."""
        if not self._tracks() or self.num_batches_tracked is None:
            return 0.0 if self.momentum is None else self.momentum
        self.num_batches_tracked.add_(1)
        if self.momentum is None:
            return 1.0 / float(self.num_batches_tracked)
        return self.momentum

    def _take(self) -> Tensor:
        gates = self._sources[0].gates if self._sources else None
        if gates is None:
            raise RuntimeError(
                "GateNorm2d got no gates: expected them as an argument, or a forward of the fused convolution before"
            )
        self._sources[0].gates = None
        return gates

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, relu={self.relu}"


class FusedReLU(nn.Identity):
    """Stands where the ReLU was that a ``GateNorm2d`` has taken over; holds it for ``unfuse_gate_norm_``."""

    def __init__(self, relu: nn.ReLU) -> None:
        super().__init__()
        self._held = (relu,)
        self.train(relu.training)

    @property
    def held(self) -> nn.ReLU:
        """The layer that stood here, in the mode of this one."""
        return self._held[0].train(self.training)


def unfuse_gate_norm_(model: nn.Module) -> int:
    """The inverse of ``fuse_gate_norm_``, in place: gated convolutions, batch norms and ReLUs as they were.

    Args:
        model: any; Parameters stay the same objects. ``compact`` does this to its own copy.

    Returns:
        How many batch norms were put back.

    Raises:
        ValueError: if ``model`` is itself a fused layer.

    Example:
        >>> import torch
        >>> from evoprune_kernels.nn import fuse_gate_norm_
        >>> model = nn.Sequential(GatedConv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU())
        >>> _ = fuse_gate_norm_(model, torch.randn(1, 3, 8, 8))
        >>> unfuse_gate_norm_(model), [type(layer).__name__ for layer in model]
        (1, ['GatedConv2d', 'BatchNorm2d', 'ReLU'])
    """
    fused = (UngatedConv2d, GateNorm2d, FusedReLU)
    check(not isinstance(model, fused), f"model is itself a {type(model).__name__}")
    norms = 0
    for names in paths(model).values():
        module = model.get_submodule(names[0])
        new: nn.Module
        if isinstance(module, UngatedConv2d):
            new = module.to_gated()
        elif isinstance(module, GateNorm2d):
            if not module._sources:  # made by hand: it gets its gates from the caller
                continue
            new = module.to_norm()
            norms += 1
        elif isinstance(module, FusedReLU):
            new = module.held
        else:
            continue
        for path in names:
            replace(model, path, new)
    return norms
