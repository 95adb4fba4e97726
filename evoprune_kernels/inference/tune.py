"""One layer: check each sparse form against float64, then time it against the dense layer.

Weights are cold in a model: between two uses of a layer all the others pass through the caches. So the timed calls go
round over copies of the layer, as many as together exceed the last-level cache twice, but not more bytes than the
model's linear layers have in that form (a model that fits in the cache is timed as one).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from evoprune_kernels import measure
from evoprune_kernels.formats import Pattern
from evoprune_kernels.inference.trace import Seen
from evoprune_kernels.measure import Measurement
from evoprune_kernels.nn.packed import adopt
from evoprune_kernels.nn.sparse_conv import SparseConv2d
from evoprune_kernels.nn.swap import Sparse, dense_view, is_sparse, share, weight_of
from evoprune_kernels.ops._linear import activate

#: largest error of a kernel: twice that of torch in the same dtype, plus this share of the largest true value
FLOOR = {torch.float32: 2e-6, torch.float16: 2e-3, torch.bfloat16: 8e-3}
#: at most this many different token counts of a layer are timed, those with the most work
MAX_TOKEN_COUNTS = 4
#: seconds that one timed sample takes at least; more where waiting for a device is part of it
MIN_SAMPLE = 2e-4
MIN_DEVICE_SAMPLE = 2e-3
MAX_COPIES = 64
#: the copies of a layer are to exceed the last-level cache this many times
COLD_FACTOR = 2
#: with more tokens arithmetic decides, not where the weights lie
FEW_TOKENS = 64
DENSE = "dense"


@dataclass(frozen=True)
class Effort:
    """How much time goes into each measurement."""

    rounds: int
    max_seconds: float
    cache_bytes: int  # of the last-level cache
    model_bytes: int  # bytes of all linear weights of the model
    synchronize: Callable[[], object] | None = None  # waits for the model's device; None: the CPU


@dataclass(frozen=True)
class Checked:
    """A sparse form of a layer that gives the right results."""

    layer: Sparse
    error: float
    dense_error: float


def dense_form(module: nn.Module) -> nn.Module:
    """The dense layer that does what ``module`` does, with the same Parameters."""
    if not is_sparse(module):
        return module
    if module.activation == "none":
        return module.to_dense()
    twin: Sparse = module.twin()
    twin.eval().stay_dense("the dense contender")
    return twin


def sparse_form(seen: Seen, pattern: Pattern, stored: str | None = None) -> Sparse | str:
    """The layer packed as ``pattern``, its values ``stored`` so, or why it cannot be."""
    module = seen.module
    layer: Sparse
    if is_sparse(module):
        layer = module.twin(pattern, seen.name, stored)
    elif seen.tail is not None:
        conv, act = seen.tail.convolution(), seen.tail.activation
        layer = SparseConv2d.share(conv, pattern, activation=act, stored=stored, name=seen.name)
    else:
        layer = share(module, pattern, stored=stored, name=seen.name)
    layer.eval()
    return layer if layer.kernel is not None else str(layer.dense_reason)


def check(seen: Seen, layer: Sparse) -> Checked | str:
    """The tolerance law on the recorded input: ``error <= 2 * error(torch, same dtype) + floor``, or what is wrong.

    A weight stored narrower is held to that law with the weight as it is stored, and with the input as it is rounded
    where that is; the error that is reported is against both as they were.
    """
    weight = dense_view(layer)
    assert seen.sample is not None
    dtype = weight.dtype
    x = seen.sample.to(dtype)
    bias = layer._parameters.get("bias")
    wide = None if bias is None else bias.double()

    def errors(x: Tensor, weight: Tensor, sparse: Tensor) -> tuple[float, float]:
        truth = _activate(_product(layer, x.double(), weight.double(), wide), layer)
        dense = _activate(_product(layer, x.to(dtype), weight.to(dtype), bias), layer)
        finite = truth.isfinite()
        scale = float(truth[finite].abs().max()) if bool(finite.any()) else 0.0
        return _error(sparse, truth, finite) / (scale or 1.0), _error(dense, truth, finite) / (
            scale or 1.0
        )

    with torch.no_grad(), torch.autocast(weight.device.type, enabled=False):
        sparse = layer.forward(x)
        found, dense_error = errors(layer.stored_input(x), layer.stored_weight(), sparse)
        error = found if layer.stored is None else errors(x, weight, sparse)[0]
    bound = 2 * dense_error + FLOOR[dtype]
    if not found <= bound:
        return f"{layer.kernel} is off by {found:.1e} of the largest value, {bound:.1e} is allowed"
    return Checked(layer, error, dense_error)


def time_layer(seen: Seen, checked: dict[str, Checked], effort: Effort) -> Measurement:
    """Seconds of all calls of one run of the model, per round: dense, dense again (A/A), and each sparse form."""
    weight = weight_of(seen.module)
    work = sorted(seen.calls.items(), key=lambda item: -item[0] * item[1])[:MAX_TOKEN_COUNTS]
    plain = seen.tail.dense() if seen.tail is not None else dense_form(seen.module)
    count = _copies(weight.nbytes, weight.nbytes, effort)
    layers = {DENSE: _Copies([_copy_dense(plain) for _ in range(count)], weight.nbytes)}
    for name, form in checked.items():
        nbytes = form.layer.packed_bytes or 1
        count = _copies(nbytes, weight.nbytes, effort)
        layers[name] = _Copies([form.layer.clone_packed() for _ in range(count)], nbytes)
    totals: dict[str, list[float]] = {}
    with torch.no_grad():
        for tokens, calls in work:
            few = tokens <= FEW_TOKENS
            result = _time_tokens(layers, _random_input(seen, tokens), few, effort)
            for name, samples in result.samples.items():
                before = totals.get(name, [0.0] * len(samples))
                totals[name] = [a + calls * b for a, b in zip(before, samples, strict=False)]
    return Measurement({name: tuple(samples) for name, samples in totals.items()})


def _time_tokens(layers: dict[str, _Copies], x: Tensor, few: bool, effort: Effort) -> Measurement:
    """Interleaved rounds over the copies. What fits in the cache is swept once, untimed, before each timed sweep."""
    contenders = measure.add_control({name: each.rotate(x) for name, each in layers.items()}, DENSE)
    calls, before = dict.fromkeys(contenders, 1), {}
    if few:
        for name in contenders:
            copies = layers[name.removesuffix(measure.CONTROL_SUFFIX)]
            if copies.nbytes < effort.cache_bytes:
                calls[name] = len(copies.layers)
                before[name] = copies.sweep(x)
    return measure.interleave(
        contenders,
        rounds=effort.rounds,
        calls=calls,
        min_sample=MIN_DEVICE_SAMPLE if effort.synchronize else MIN_SAMPLE,
        max_seconds=effort.max_seconds,
        before=before,
        synchronize=effort.synchronize,
    )


def _random_input(seen: Seen, tokens: int) -> Tensor:
    weight = dense_view(seen.module)
    generator = torch.Generator().manual_seed(0)
    if tokens in seen.inputs:
        shape, memory_format = seen.inputs[tokens]
        image = torch.randn(shape, generator=generator).to(weight)
        return image.contiguous(memory_format=memory_format)
    return torch.randn(tokens, weight.shape[1], generator=generator).to(weight)


def _copies(nbytes: int, dense_bytes: int, effort: Effort) -> int:
    """How many copies of ``nbytes`` go round for a weight of ``dense_bytes``."""
    whole_model = effort.model_bytes * nbytes / max(1, dense_bytes)
    wanted = min(COLD_FACTOR * effort.cache_bytes, whole_model)
    return max(1, min(MAX_COPIES, math.ceil(wanted / max(1, nbytes))))


def _copy_dense(module: nn.Module) -> nn.Module:
    """The layer with a weight of its own, at another address."""
    copied: nn.Module
    if type(module) is nn.Sequential:  # a convolution and its activation
        return nn.Sequential(_copy_dense(module[0]), module[1])
    if is_sparse(module):
        sparse: Sparse = module.twin()
        sparse.eval().stay_dense("the dense contender")
        copied = sparse
    else:
        copied = type(module).__new__(type(module))
        adopt(copied, module)
    weight = weight_of(module)
    copied._parameters["weight"] = nn.Parameter(weight.detach().clone(), weight.requires_grad)
    return copied


class _Copies:
    """Copies of one layer, called in turn."""

    def __init__(self, layers: Sequence[nn.Module], nbytes: int) -> None:
        self.layers, self.nbytes = layers, nbytes * len(layers)

    def rotate(self, x: Tensor) -> Callable[[], object]:
        """A call without arguments that takes the next copy each time."""
        turn = itertools.cycle([layer.forward for layer in self.layers])
        return lambda: next(turn)(x)

    def sweep(self, x: Tensor) -> Callable[[], object]:
        """A call that takes every copy once."""
        forwards = [layer.forward for layer in self.layers]
        return lambda: [forward(x) for forward in forwards]


def _product(layer: Sparse, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """``x W^T + b`` of a linear layer, or the convolution, with a dense weight [N, K]."""
    if not isinstance(layer, SparseConv2d):
        return F.linear(x, weight, bias)
    return layer._conv_forward(x, weight.reshape(layer.weight.shape), bias)


def _activate(y: Tensor, layer: Sparse) -> Tensor:
    return activate(y, layer.activation)


def _error(y: Tensor, truth: Tensor, finite: Tensor) -> float:
    gap = (y.double() - truth)[finite].abs()
    return float(gap.nan_to_num(nan=torch.inf).max()) if gap.numel() else 0.0
