"""``SparseLinear``: a drop-in for ``nn.Linear`` that trains dense and runs its packed weight in eval mode."""

from __future__ import annotations

import warnings
from typing import Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from evoprune_kernels.formats import Pattern
from evoprune_kernels.nn.masks import choose_mask, layer_pattern
from evoprune_kernels.nn.packed import PackedCache, adopt, zero_pruned
from evoprune_kernels.ops._linear import activate

_GRAD_HINT = (
    "a packed layer runs dense because gradients are enabled and its input or weight requires them; "
    "use torch.no_grad() or torch.inference_mode() for the sparse kernel"
)


class SparseForward(PackedCache):
    """What every sparse layer does: it is made around a dense one, pruned, and runs the packed weight."""

    @classmethod
    def share(
        cls,
        dense: nn.Module,
        pattern: str | Pattern,
        *,
        sparsity: float | None = None,
        activation: str | None = None,
        stored: str | None = None,
        name: str | None = None,
    ) -> Self:
        """A sparse layer around the Parameters, hooks and attributes of ``dense``; nothing is pruned or packed."""
        cls._expect(dense)
        parsed = layer_pattern(pattern, sparsity)
        layer = cls.__new__(cls)
        adopt(layer, dense)
        layer._init_cache(parsed, activation, name, stored)
        return layer

    @classmethod
    def _expect(cls, dense: nn.Module) -> None:
        """``TypeError`` for a layer that this one cannot stand for."""
        raise NotImplementedError

    def _as_stored(self, keep: Tensor) -> Tensor:
        """A mask [out_features, in_features] in the shape of the weight."""
        return keep

    def _prune(self, mask: Tensor | None, sparsity: float | None) -> None:
        """Zero the weight in place by ``choose_mask``, and pack it; ``mask`` is [out_features, in_features]."""
        keep = choose_mask(
            self.dense_weight(), self.pattern, mask=mask, sparsity=sparsity, name=self.layer_name
        )
        zero_pruned(self.weight, self._as_stored(keep))
        self._refresh()

    def forward(self, input: Tensor) -> Tensor:
        """``y = activation(x W^T + b)``: x [..., in_features] -> y [..., out_features]."""
        parameters = self._parameters
        weight, bias = parameters.get("weight"), parameters.get("bias")
        if weight is None or self.training or self._wants_grad(input, weight, bias):
            return self._dense(input)
        compiling = torch.compiler.is_compiling()
        if not compiling:
            self._sync()
        plan = self._plan
        if plan is None:
            if self._fatal:
                raise ValueError(self._failure)
            return self._dense(input)
        if torch.is_autocast_enabled(weight.device.type):
            return self._autocast(input, weight.dtype, bias)
        self._check_input(input, weight.dtype)
        if compiling:
            return self._run(plan, input, bias)
        with (
            torch._C._AutoDispatchBelowAutograd()
        ):  # no gradient is wanted: saves the op's Python autograd layer
            return self._run(plan, input, bias)

    def _wants_grad(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
        if not torch.is_grad_enabled():
            return False
        if input.requires_grad or weight.requires_grad or (bias is not None and bias.requires_grad):
            if self._plan is not None and not torch.compiler.is_compiling():
                warnings.warn(_GRAD_HINT, stacklevel=4)
            return True
        return False

    def _autocast(self, input: Tensor, dtype: torch.dtype, bias: Tensor | None) -> Tensor:
        """As F.linear: any float input is taken and the result has autocast's dtype; the kernel keeps the weight's."""
        device = input.device.type
        target = torch.get_autocast_dtype(device)
        if input.dtype.is_floating_point and input.dtype != torch.float64:
            input = input.to(dtype)
        self._check_input(input, dtype)
        plan = self._plan
        assert plan is not None
        with torch.autocast(device, enabled=False):
            output = self._run(plan, input, bias)
        return output.to(target)

    def _dense(self, input: Tensor) -> Tensor:
        on_cpu = input.device.type == "cpu"  # F.linear tells of a wrong dtype elsewhere
        plain = on_cpu and not torch.is_autocast_enabled("cpu")
        self._check_input(input, self.weight.dtype if plain else None)
        return activate(self._dense_linear(input), self.activation)

    def _dense_linear(self, input: Tensor) -> Tensor:
        return F.linear(input, self.weight, self._parameters["bias"])

    def _check_input(self, input: Tensor, dtype: torch.dtype | None) -> None:
        if input.dim() == 0 or input.shape[-1] != self.in_features:
            raise ValueError(
                f"{self.layer_name}: expected an input of shape [..., {self.in_features}], got {list(input.shape)}"
            )
        if dtype is not None and input.dtype != dtype:
            raise TypeError(
                f"{self.layer_name}: expected an input of dtype {dtype} (the weight's), got {input.dtype}"
            )

    def _refuse_activation(self) -> None:
        if self.activation != "none":
            raise ValueError(
                f"{self.layer_name}: a plain layer has no activation, this one has {self.activation!r}"
            )

    def _describe(self) -> str:
        parts = [f"pattern={self.pattern}"]
        weight = self._parameters.get("weight")
        if weight is not None and weight.device.type != "meta":
            parts.append(f"density={int(weight.count_nonzero()) / max(1, weight.numel()):.2f}")
        if self.activation != "none":
            parts.append(f"activation={self.activation}")
        if self.stored:
            parts.append(f"stored={self.stored}")
        kernel = self.kernel
        parts.append(f"kernel={kernel}" if kernel else f"kernel=dense ({self.dense_reason})")
        return ", ".join(parts)


class SparseLinear(SparseForward, nn.Linear):
    """A linear layer with a pruned weight: ``y = activation(x W^T + b)``.

    Dense ``F.linear`` while it trains (in training mode, or while gradients are enabled and the input or a parameter
    requires them), so that it is exactly ``nn.Linear`` there; the packed kernel in eval mode under ``torch.no_grad()``
    or ``torch.inference_mode()``. Where the kernel cannot run, the layer is dense and says why
    (``dense_reason``, repr).

    Args:
        in_features, out_features, bias, device, dtype: as for ``nn.Linear``.
        pattern: ``"n:m"``, ``"block:RxC"`` or ``"unstructured"``.
        activation: fused into the kernel: ``"relu"``, ``"gelu"``, ``"gelu_tanh"``, ``"silu"`` or None.
        stored: how the packed weight is stored: ``"bfloat16"``, ``"int8"`` (a scale a row, see
            ``PackedWeight.quantize``) or None for the weight's own dtype. Fewer bytes are faster at few tokens and
            less exact; the Parameter, and so training, is not touched. ``"w8a8"`` is ``"int8"`` with an input that is
            rounded to int8 as well, with a scale a token, and integer arithmetic (``ops.w8a8_linear``; for blocks
            whose rows are a multiple of 16, ``n:mv16`` and ``2:4``): the fastest and the least exact.

    Raises:
        ValueError: for an unknown pattern or activation; in forward for a wrong ``in_features`` or NaN in the weight.
        TypeError: in forward for an input of another dtype than the weight's (outside autocast).

    Notes:
        ``state_dict`` is that of ``nn.Linear``: ``weight`` and ``bias``. The packed weight is a cache, see
        ``evoprune_kernels.nn.packed`` for when it is rebuilt. Pruned places are skipped, so a NaN or an infinity in the
        input does not spread through them. Results are independent of the number of threads.

    Example:
        >>> import torch
        >>> import evoprune_kernels as ek
        >>> linear = torch.nn.Linear(8, 4)
        >>> layer = ek.SparseLinear.from_linear(linear, pattern="2:4").eval()
        >>> layer.weight is linear.weight
        True
        >>> with torch.no_grad():
        ...     torch.allclose(layer(torch.ones(3, 8)), linear(torch.ones(3, 8)), atol=1e-5)
        True
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        pattern: str | Pattern = "2:4",
        activation: str | None = None,
        stored: str | None = None,
    ) -> None:
        parsed = layer_pattern(pattern, None)
        nn.Linear.__init__(self, in_features, out_features, bias, device, dtype)
        self._init_cache(parsed, activation, None, stored)

    @classmethod
    def from_linear(
        cls,
        linear: nn.Linear,
        pattern: str | Pattern = "2:4",
        mask: Tensor | None = None,
        *,
        sparsity: float | None = None,
        activation: str | None = None,
        stored: str | None = None,
        name: str | None = None,
    ) -> SparseLinear:
        """A sparse layer with the same Parameter objects, whose pruned weights are set to zero in place.

        Args:
            linear: an ``nn.Linear``; its weight [N, K] is changed in place where it is pruned.
            pattern: ``"n:m"``, ``"block:RxC"`` or ``"unstructured"``.
            mask: bool [N, K], True = keep. None: by magnitude for n:m, and for the others if ``sparsity`` is given;
                else the zeros that the weight has.
            sparsity: fraction 0-1 to remove.
            activation: fused into the kernel.
            stored: ``"bfloat16"``, ``"int8"``, ``"w8a8"`` or None, see the class.
            name: of the layer, for messages.

        Raises:
            ValueError, TypeError: as ``choose_mask``; nothing is changed then.

        Example:
            >>> import torch
            >>> import evoprune_kernels as ek
            >>> layer = ek.SparseLinear.from_linear(torch.nn.Linear(64, 32), "block:16x16", sparsity=0.5)
            >>> layer.weight.count_nonzero().item()
            1024
        """
        given = {"activation": activation, "stored": stored, "name": name}
        layer = cls.share(linear, pattern, sparsity=sparsity, **given)
        layer._prune(mask, sparsity)
        return layer

    @classmethod
    def _expect(cls, dense: nn.Module) -> None:
        if not isinstance(dense, nn.Linear) or isinstance(dense, nn.LazyLinear):
            raise TypeError(f"expected an nn.Linear, got {type(dense).__name__}")

    def to_dense(self) -> nn.Linear:
        """The ``nn.Linear`` with the same Parameters, hooks and attributes. ``ValueError`` with a fused activation."""
        self._refuse_activation()
        linear = nn.Linear.__new__(nn.Linear)
        adopt(linear, self)
        return linear

    def extra_repr(self) -> str:
        return f"{nn.Linear.extra_repr(self)}, {self._describe()}"
