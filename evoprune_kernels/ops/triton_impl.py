"""Device functions that the Triton kernels share; the counterparts of csrc/select and csrc/cuda/epilogue.cuh."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

TYPES = {torch.float32: tl.float32, torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}
#: dtypes that the kernels without arithmetic take
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
LOWEST = tl.constexpr(-(2**31))


def architecture() -> int:
    """Compute capability times ten that a launch compiles for; that of an A100 in Triton's interpreter."""
    if triton.knobs.runtime.interpret:
        return 80
    return int(triton.runtime.driver.active.get_current_target().arch)


@triton.jit
def order_key(x):
    """fp32 -> int32 in the order of the ranks: -0.0 equals +0.0, NaN is below -inf (``_rank.ordered_keys``)."""
    bits = x.to(tl.int32, bitcast=True)
    key = tl.where(bits < 0, LOWEST - bits, bits)
    return tl.where(x != x, LOWEST, key)


@triton.jit
def nm_index(meta_ptr, at, place, inside, BITS: tl.constexpr):
    """The index in its group that meta stores for ``place`` of the row whose meta starts at byte ``at``."""
    bit = place * BITS
    byte = at + (bit >> 3)
    shift = (bit & 7).to(tl.int32)
    word = tl.load(meta_ptr + byte, mask=inside, other=0).to(tl.int32)
    if 8 % BITS != 0:  # an index may run into the next byte
        crosses = inside & (shift + BITS > 8)
        word |= tl.load(meta_ptr + byte + 1, mask=crosses, other=0).to(tl.int32) << 8
    return (word >> shift) & ((1 << BITS) - 1)


@triton.jit
def activate(z, ACTIVATION: tl.constexpr):
    """``act(z)`` in fp32; names as in ``ops/_linear.py``."""
    if ACTIVATION == "relu":
        z = tl.where(z < 0, 0.0, z)  # NaN stays
    elif ACTIVATION == "gelu":
        z = 0.5 * z * (1.0 + tl.erf(z * 0.7071067811865476))
    elif ACTIVATION == "gelu_tanh":
        u = 0.7978845608028654 * (z + 0.044715 * z * z * z)
        z = z - z / (tl.exp(2.0 * u) + 1.0)  # 0.5 z (1 + tanh u)
    elif ACTIVATION == "silu":
        z = z / (1.0 + tl.exp(-z))
    return z


@triton.jit
def store_outputs(
    y_ptr, bias_ptr, scale_ptr, acc, token, output, M, N,
    HAS_BIAS: tl.constexpr, HAS_SCALE: tl.constexpr, ACTIVATION: tl.constexpr,
):  # fmt: skip
    """``y[token, output] = act(scale * acc + bias)``; acc [tokens, outputs] in fp32."""
    exists = output < N
    if HAS_SCALE:
        acc = acc * tl.load(scale_ptr + output, mask=exists, other=0.0)[None, :]
    if HAS_BIAS:
        acc = acc + tl.load(bias_ptr + output, mask=exists, other=0.0).to(tl.float32)[None, :]
    at = token.to(tl.int64)[:, None] * N + output[None, :]
    inside = (token < M)[:, None] & exists[None, :]
    tl.store(y_ptr + at, activate(acc, ACTIVATION).to(y_ptr.dtype.element_ty), mask=inside)


# ---- optimizer steps: see ops/_step_table.py ----
FIELDS = tl.constexpr(11)
STEP = tl.constexpr(7)
NUMEL = tl.constexpr(8)
FIRST_CHUNK = tl.constexpr(9)
INDEX = tl.constexpr(10)
SEED = tl.constexpr(10)  # of the last row


@triton.jit
def find_tensor(table_ptr, chunk, count):
    """The row of the tensor that owns ``chunk``: the last one whose first chunk is not beyond it."""
    low, high = chunk * 0, chunk * 0 + count - 1
    while low < high:
        middle = (low + high + 1) // 2
        takes = tl.load(table_ptr + middle * FIELDS + FIRST_CHUNK) <= chunk
        low = tl.where(takes, middle, low)
        high = tl.where(takes, high, middle - 1)
    return low


@triton.jit
def tensor_at(row_ptr, FIELD: tl.constexpr, T: tl.constexpr, ALIGNED: tl.constexpr):
    """The pointer to elements of T that a row of the table holds."""
    address = tl.load(row_ptr + FIELD)
    if ALIGNED:
        address = tl.multiple_of(address, 16)
    return address.to(tl.pointer_type(T))


@triton.jit
def number_at(table_ptr, count, PLACE: tl.constexpr):
    """A double of the table's last row."""
    return tl.load(table_ptr + count * FIELDS + PLACE).to(tl.float64, bitcast=True)


@triton.jit
def power(base, exponent):
    """``base ** exponent`` in fp64, exponent a whole number below 2**31, by squaring."""
    result = base * 0.0 + 1.0
    for _ in range(31):
        result = tl.where((exponent & 1) == 1, result * base, result)
        base = base * base
        exponent = exponent >> 1
    return result


@triton.jit
def draw(table_ptr, count, row_ptr, first, CHUNK: tl.constexpr, SEEDED: tl.constexpr):
    """Both random words of the elements ``first`` .. ``first + CHUNK`` of a tensor, as csrc/core/philox.h draws them.

    Philox gives the words of two elements, so it is evaluated once a pair. Without a seed: 0.
    """
    if SEEDED:
        pair = first // 2 + tl.arange(0, CHUNK // 2)
        step = tl.load(tensor_at(row_ptr, STEP, tl.float32, False)).to(tl.uint32)
        even_a, even_b, odd_a, odd_b = tl.philox(
            tl.load(table_ptr + count * FIELDS + SEED),
            pair.to(tl.uint32), (pair >> 32).to(tl.uint32), tl.load(row_ptr + INDEX).to(tl.uint32), step,
        )  # fmt: skip
        a, b = tl.interleave(even_a, odd_a), tl.interleave(even_b, odd_b)
    else:
        a = tl.zeros((CHUNK,), tl.uint32)
        b = a
    return a, b


@triton.jit
def rounded(x, T: tl.constexpr, random, HALF: tl.constexpr, SEEDED: tl.constexpr):
    """fp32 -> T to nearest even; with a seed to bf16, up with the probability of what is cut off; NaN stays."""
    if SEEDED and T.is_bf16():
        bits = x.to(tl.uint32, bitcast=True)
        up = (bits + ((random >> (16 * HALF)) & 0xFFFF)) >> 16
        result = tl.where(x != x, (bits >> 16) | 0x40, up).to(tl.uint16).to(T, bitcast=True)
    else:
        result = x.to(T)
    return result


@triton.jit
def average(state, value, factor, FROM_STATE: tl.constexpr):
    """``state + alpha * (value - state)`` as ``torch.lerp``: ``factor`` is alpha below 0.5, else alpha - 1."""
    return (state if FROM_STATE else value) + factor * (value - state)


@triton.jit
def importance_value(weight, gradient, RULE: tl.constexpr):
    """What a rule averages; the rules are ``importance.KERNEL_RULES``."""
    if RULE == "evolution":
        value = weight
    elif RULE == "evolution_abs":
        value = tl.abs(weight)
    elif RULE == "taylor":
        value = tl.abs(weight * gradient)
    else:
        tl.static_assert(RULE == "movement")
        value = -(weight * gradient)
    return value


@triton.jit
def get_gradient(grad_ptr, at, inside, sign, scale_ptr, HAS_SCALE: tl.constexpr):
    """The gradient: unscaled, also in memory, and negated to maximize."""
    g = tl.load(grad_ptr + at, mask=inside, other=0.0).to(tl.float32)
    if HAS_SCALE:
        g = tl.div_rn(g, tl.load(scale_ptr).to(tl.float32))
        tl.store(grad_ptr + at, g.to(grad_ptr.dtype.element_ty), mask=inside)
    return g * sign


@triton.jit
def get_mask(row_ptr, at, inside, ALIGNED: tl.constexpr):
    """Whether a weight is kept."""
    mask_ptr = tensor_at(row_ptr, 6, tl.int8, ALIGNED)
    return tl.load(mask_ptr + at, mask=inside, other=0) != 0


@triton.jit
def decay_masked(
    row_ptr, at, inside, old, gradient, sparse_decay, MASKS: tl.constexpr, ALIGNED: tl.constexpr
):
    """What the moments see of the gradient: masked weights decay towards zero, where masks say so."""
    if MASKS == "decay":
        kept = get_mask(row_ptr, at, inside, ALIGNED)
        gradient = tl.where(kept, gradient, gradient + sparse_decay * old)
    return gradient


@triton.jit
def put_weight(
    row_ptr, param_ptr, lr_ptr, at, inside, old, new, gradient, factor, random,
    TENSOR_LR: tl.constexpr, MASKS: tl.constexpr, RULE: tl.constexpr, SEEN: tl.constexpr,
    FROM_STATE: tl.constexpr, ALIGNED: tl.constexpr, SEEDED: tl.constexpr,
):  # fmt: skip
    """Stores the new weight, +0.0 where masks prune it, and advances the importance of the weight that it has SEEN.

    With an lr of 0 the importance stays; of a number the launcher knows it (``_step.moving_rule``).
    """
    updated = rounded(new, param_ptr.dtype.element_ty, random, 0, SEEDED)
    stored = updated
    if MASKS == "zero":
        stored = tl.where(get_mask(row_ptr, at, inside, ALIGNED), updated, 0.0)
    stored = stored.to(param_ptr.dtype.element_ty)
    tl.store(param_ptr + at, stored, mask=inside)
    if RULE != "none":
        moving = inside
        if TENSOR_LR:
            moving = tl.where(tl.load(lr_ptr).to(tl.float64) != 0, inside, False)
        state_ptr = tensor_at(row_ptr, 5, tl.float32, ALIGNED) + at
        state = tl.load(state_ptr, mask=moving, other=0.0)
        if SEEN == "before":
            weight = old
        elif SEEN == "updated":
            weight = updated.to(tl.float32)
        else:
            tl.static_assert(SEEN == "stored")
            weight = stored.to(tl.float32)
        value = importance_value(weight, gradient, RULE)
        tl.store(state_ptr, average(state, value, factor, FROM_STATE), mask=moving)
