"""The packed form of a layer's weight as a cache: built when the layer leaves training, dropped when the weight moves.

The weight (an ordinary Parameter with zeros in it) is the only truth. The cache is a set of non-persistent buffers, so
it is never saved, and it remembers the Parameter object, its version counter and its address::

    in-place change, optimizer step, load_state_dict, new Parameter  -> noticed in the next eager forward, packed anew
    train()                                                          -> dropped
    eval(), .to(), .half(), load_state_dict, deepcopy, unpickling    -> packed anew if the layer is in eval mode

Two changes cannot be seen: one through ``weight.data`` (autograd does not see it either) and any in-place change under
``torch.compile`` or in an exported program, which use the cache as it was when they were traced. Call ``pack()`` then.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from evoprune_kernels import _ext, _select, formats
from evoprune_kernels.formats import NM, Pattern
from evoprune_kernels.nn.masks import check_finite, check_pattern
from evoprune_kernels.nn.watch import version, watch
from evoprune_kernels.ops._linear import ACTIVATIONS, KERNEL_DTYPES
from evoprune_kernels.ops._op import Op
from evoprune_kernels.ops.prepare import Bound, bind, op_of, uses_triton
from evoprune_kernels.ops.w8a8_linear.reference import dequantize_tokens

#: device type -> dtypes of a weight that its kernels take
_DTYPES = {_select.CPU: KERNEL_DTYPES, _select.CUDA: (*KERNEL_DTYPES, torch.float16)}
#: a weight with a larger share of stored values is left dense: there is nothing to skip
MAX_DENSITY = 0.95
#: how the packed weight may be stored instead of in its own dtype: in bfloat16, as int8 with a scale a row, or so and
#: multiplied in integers with an input that is rounded to int8 as well, with a scale a token
STORED = ("bfloat16", "int8", "w8a8")


@dataclass(frozen=True)
class Plan:
    """How the packed weight is run: ``run(x, *buffers, bias, *tail, scale)``."""

    op: str
    run: Callable[..., Tensor]
    buffers: tuple[str, ...]
    scale: str | None  # the buffer of the scales, where the weight is quantised
    tail: tuple[int | str | list[int], ...]
    density: float
    nbytes: int
    impl: str | None = None  # "triton", or what the dispatcher chooses

    @property
    def all_buffers(self) -> tuple[str, ...]:
        """``buffers`` and ``scale``."""
        return (*self.buffers, self.scale) if self.scale else self.buffers


class PackedCache(nn.Module):
    """What the sparse layers share: the cache, its invalidation and the reason where it is not used."""

    pattern: Pattern
    activation: str
    #: one of STORED, or None: in the weight's own dtype
    stored: str | None
    #: qualified name in the model, for messages
    layer_name: str
    weight: Tensor
    in_features: int
    out_features: int

    def _init_cache(
        self, pattern: Pattern, activation: str | None, name: str | None, stored: str | None
    ) -> None:
        activation = activation or "none"
        if stored is not None and stored not in STORED:
            raise ValueError(f"expected stored in {STORED} or None, got {stored!r}")
        self.stored = stored
        if activation not in ACTIVATIONS:
            raise ValueError(f"expected activation in {ACTIVATIONS}, got {activation!r}")
        self.pattern = pattern
        self.activation = activation
        self.layer_name = name or f"{type(self).__name__}({self.in_features}, {self.out_features})"
        self._pinned: str | None = None  # why this layer is to stay dense
        self._failure: str | None = None  # why the last packing gave up
        self._fatal = False  # that reason is an error in eval mode, not a fallback
        self._plan: Plan | None = None
        self._packed_for: tuple[Any, ...] = ()

    # ---- what the kernel needs -------------------------------------------------------------------------------------
    def dense_weight(self) -> Tensor:
        """The weight as [out_features, in_features]."""
        return self.weight

    def pack(self) -> None:
        """Pack the weight for the kernel now; the next eval forward uses it.

        Raises:
            ValueError: if the weight holds NaN or breaks the pattern (layer, coordinates and counts are named).
            RuntimeError: if no kernel can run it here (dtype, device, no native library), with the reason.
        """
        self._drop()
        self._pinned = None
        if reason := self._unfit():
            self._failure = reason
            raise RuntimeError(f"{self.layer_name}: {reason}")
        self._build()

    def stay_dense(self, reason: str) -> None:
        """Use the dense weight from now on, and show ``reason``; ``pack()`` undoes it."""
        self._drop()
        self._pinned = reason

    @property
    def kernel(self) -> str | None:
        """The kernel that an eval forward uses, such as ``nm_linear [avx2]``, or None if it is dense."""
        if self._plan is None:
            return None
        forced = _select.FORCED.get(self._plan.op) == _select.REFERENCE
        on_gpu = self.weight.device.type == _select.CUDA
        native = _select.CUDA if on_gpu else _ext.isa_level()
        where = "reference" if forced else self._plan.impl or native
        return f"{self._plan.op} [{where}]" + (f" {self.stored}" if self.stored else "")

    @property
    def dense_reason(self) -> str | None:
        """Why an eval forward is dense, or None if it uses the kernel."""
        if self._plan is not None:
            return None
        if self.training and self._pinned is None:
            return "in training mode"
        return self._pinned or self._failure or "not packed yet"

    @property
    def packed_bytes(self) -> int | None:
        """Bytes of the packed weight, or None if it is dense."""
        return self._plan.nbytes if self._plan else None

    @property
    def stored_percent(self) -> int:
        """How much of the weight is stored by the packed form, zeros that fill it up included."""
        return round(100 * self._plan.density) if self._plan else 100

    def twin(
        self, pattern: Pattern | None = None, name: str | None = None, stored: str | None = None
    ) -> Any:
        """Another layer of this kind around the same Parameters, not packed yet."""
        layer = type(self).__new__(type(self))
        adopt(layer, self)
        name = name or self.layer_name
        layer._init_cache(pattern or self.pattern, self.activation, name, stored)
        return layer

    def clone_packed(self) -> Any:
        """A twin with the same Parameters whose packed weight lies at another address; to time cold weights."""
        assert self._plan is not None
        twin = type(self).__new__(type(self))
        twin.__dict__.update(self.__dict__)
        twin._buffers = dict(self._buffers)
        for name in self._plan.all_buffers:
            twin._buffers[name] = self._buffers[name].clone()  # type: ignore[union-attr]
        return twin

    def _impl(self) -> str | None:
        """``"triton"`` for a weight that its kernels multiply, else None: the native ones."""
        on_gpu = self.weight.device.type == _select.CUDA
        triton = on_gpu and uses_triton(self.pattern, w8a8=self.stored == "w8a8")
        return _select.TRITON if triton else None

    def _op(self, device: str, impl: str | None) -> Op | None:
        """The op that runs the packed weight; ``ValueError`` or None where there is none."""
        return op_of(self.pattern, w8a8=self.stored == "w8a8", device=device, impl=impl)

    def _bind(self, packed: formats.PackedWeight) -> Bound:
        return bind(packed, self.activation, w8a8=self.stored == "w8a8", impl=self._impl())

    def _unfit(self) -> str | None:
        """Why no kernel can run this layer, or None."""
        weight = self._parameters.get("weight")
        if weight is None:
            return (
                "weight is not a plain Parameter (parametrized, or pruned by torch.nn.utils.prune)"
            )
        if type(weight) not in (nn.Parameter, Tensor) or _is_wrapped(weight):
            return f"weight is a {type(weight).__name__}, which has no plain memory"
        device = weight.device.type
        if device not in _select.NATIVE:
            return f"the kernels run on 'cpu' and 'cuda', the weight is on {device!r}"
        if weight.dtype not in _DTYPES[device]:
            names = " or ".join(str(dtype)[6:] for dtype in _DTYPES[device])
            return f"the kernels on {device!r} take {names}, the weight is {str(weight.dtype)[6:]}"
        impl = self._impl()
        try:
            op = self._op(device, impl)
        except ValueError as error:
            return str(error)
        if op is None:
            return f"there is no linear op for the pattern {self.pattern}"
        if impl is None and _select.FORCED.get(op.name) != _select.REFERENCE:
            for name, why in op.reasons(device).items():
                return f"no {'CUDA' if name == _select.CUDA else 'C++'} kernel: {why}"
        return None

    def _build(self) -> None:
        """Check, pack, prepare, and store; an error leaves the layer without a cache and with the reason."""
        weight = self._parameters["weight"]
        assert weight is not None
        with torch.inference_mode(False), torch.no_grad():
            dense = self.dense_weight().detach()
            try:
                self._fatal = True
                check_finite(dense, self.layer_name)
                self._fatal = False
                if isinstance(self.pattern, NM):
                    check_pattern(dense != 0, self.pattern, self.layer_name, "weight")
                packed = self._stored(formats.pack(dense, self.pattern))
                bound = self._bind(packed)
            except ValueError as error:
                self._failure = str(error)
                raise
            density = packed.values.numel() / max(1, dense.numel())
        op = bound.op
        forced = _select.FORCED.get(op.name) == _select.REFERENCE
        buffers = {f"packed_{name}": tensor for name, tensor in bound.tensors.items()}
        names = tuple(buffers)
        if packed.scale is not None:
            buffers["packed_scale"] = packed.scale
        for name, tensor in buffers.items():
            self.register_buffer(name, tensor, persistent=False)
        self._plan = Plan(
            op=op.name,
            run=op.reference
            if forced and (bound.impl or not op.reasons(weight.device.type))
            else bound.run,
            buffers=names,
            scale=None if packed.scale is None else "packed_scale",
            tail=bound.tail,
            density=density,
            nbytes=sum(tensor.nbytes for tensor in buffers.values()),
            impl=bound.impl,
        )
        self._failure = None
        self._remember()

    def stored_weight(self) -> Tensor:
        """The weight [out_features, in_features] that the packed one stands for: itself, or as ``stored`` rounds it."""
        dense = self.dense_weight().detach()
        return (
            dense
            if self.stored is None
            else self._stored(formats.pack(dense, self.pattern)).unpack()
        )

    def stored_input(self, x: Tensor) -> Tensor:
        """x [..., in_features] as the packed weight meets it: itself, or as ``w8a8`` rounds it, in float64."""
        return dequantize_tokens(x) if self.stored == "w8a8" else x

    def _stored(self, packed: formats.PackedWeight) -> formats.PackedWeight:
        """``packed`` as this layer stores it; ``ValueError`` where it cannot be."""
        if self.stored is None:
            return packed
        return packed.to(torch.bfloat16) if self.stored == "bfloat16" else packed.quantize()

    def _run(self, plan: Plan, input: Tensor, bias: Tensor | None) -> Tensor:
        buffers = self._buffers
        packed = [buffers[name] for name in plan.buffers]
        scale = buffers[plan.scale] if plan.scale else None
        return plan.run(input, *packed, bias, *plan.tail, scale)

    def _refresh(self) -> None:
        """Pack if the layer is in eval mode and can; otherwise remember why not. Does not raise."""
        self._drop()
        if self.training or self._pinned is not None:
            return
        self._failure = self._unfit()
        if self._failure is not None:
            self._remember()
            return
        try:
            self._build()
        except ValueError:
            self._remember()  # the reason is kept; forward raises it if it is fatal
            return
        assert self._plan is not None
        if self._plan.density > MAX_DENSITY:
            density = self._plan.density
            self._drop()
            self._failure = f"{density:.0%} of the weights would be stored: nothing to skip"
            self._remember()

    def _remember(self) -> None:
        weight = self._parameters.get("weight")
        if weight is None or _is_wrapped(weight):
            return
        if weight.device.type in _select.NATIVE:
            watch(weight)
            self._packed_for = (weight, version(weight), weight.data_ptr())

    def _drop(self) -> None:
        if self._plan is not None:
            for name in self._plan.all_buffers:
                self._buffers.pop(name, None)
                self._non_persistent_buffers_set.discard(name)
        self._plan, self._failure, self._fatal, self._packed_for = None, None, False, ()

    def _sync(self) -> None:
        """Eager forwards only: pack anew if the weight is not the one that was packed."""
        weight = self._parameters.get("weight")
        key = self._packed_for
        if (
            not key
            or key[0] is not weight
            or key[1] != version(key[0])
            or key[2] != key[0].data_ptr()
        ):
            self._refresh()

    # ---- events that end a cache -------------------------------------------------------------------------------------
    def train(self, mode: bool = True) -> Any:
        super().train(mode)
        if mode:
            self._drop()
        elif self._plan is None:
            self._refresh()
        return self

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        self._drop()
        super()._apply(fn, recurse)
        self._refresh()
        return self

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self._refresh()

    def __getstate__(self) -> dict[str, Any]:
        state = super().__getstate__()
        plan = state["_plan"]
        if plan is not None:
            buffers, names = state["_buffers"], state["_non_persistent_buffers_set"]
            state["_buffers"] = {k: v for k, v in buffers.items() if k not in plan.all_buffers}
            state["_non_persistent_buffers_set"] = names - set(plan.all_buffers)
        state.update(_plan=None, _failure=None, _fatal=False, _packed_for=())
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._refresh()


def _is_wrapped(weight: Tensor) -> bool:
    """Whether ``weight`` is a tensor inside ``torch.func`` (vmap, grad), which has no memory of its own."""
    return torch._C._functorch.is_functorch_wrapped_tensor(weight)


_CACHE_FIELDS = {
    "pattern",
    "activation",
    "stored",
    "layer_name",
    "_pinned",
    "_failure",
    "_fatal",
    "_plan",
    "_packed_for",
}
_OWN_TABLES = {"_parameters", "_buffers", "_modules", "_non_persistent_buffers_set"}


def adopt(new: nn.Module, old: nn.Module) -> None:
    """Give ``new`` the Parameters, buffers, hooks and attributes of ``old``, without its packed cache.

    The tables of hooks are shared, so that a handle's ``remove()`` reaches the new layer.
    """
    for key, value in old.__getstate__().items():
        if key not in _CACHE_FIELDS:
            new.__dict__[key] = value.copy() if key in _OWN_TABLES else value


def zero_pruned(weight: Tensor, keep: Tensor) -> None:
    """Set ``weight`` to +0.0 in place where ``keep`` is False; nothing is written where all of that is zero already."""
    with torch.no_grad():
        if bool((weight.detach()[~keep] != 0).any()):
            weight.masked_fill_(~keep, 0.0)
