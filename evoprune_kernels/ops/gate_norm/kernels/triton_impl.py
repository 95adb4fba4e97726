"""``gate_norm`` and its backward in Triton, NCHW and channels_last: two passes over memory each way.

``u = gate * x``, 0 where the gate is 0; ``xhat = (u - mean) / sqrt(var + eps)``; ``y = relu(xhat * weight + bias)``

::

    an entity         what has one gate and one channel for all its places, a tile of ACROSS entities x ALONG places
      planes          NCHW: a plane; places follow each other                grid (tiles of planes, parts of a plane)
      rows            channels_last: a channel; places are rows of channels  grid (groups * parts, tiles of channels)

    forward           statistics (training)   parts [rows, 2, C]: mean and squares of u, a part of its places each
                      combine                 mean, var [C], the parts in their order, merged as Chan et al. do
                      norm                    y
    backward          sums                    parts [rows, k, C]: dz, dz xhat | dz x, x, xhat x, for the gates
                      channel_gate_sums       the parts in their order
                      grad                    dx = gate * factor * (dz - sum dz / n - xhat * sum dz xhat / n)

Bound by memory. Training reads x twice and writes y once, backward reads x and dy twice and writes dx once. fp32 sums,
in an order that depends on the shape alone. Closed planes are read for the gradient of their gate only.
Source: Ioffe and Szegedy, "Batch Normalization", ICML 2015; Chan, Golub and LeVeque, "Updating Formulae and a Pairwise
Algorithm for Computing Sample Variances", 1979.
"""

from __future__ import annotations

import triton
import triton.language as tl


# ---- entities and places ----
@triton.jit
def entities_of(
    channels, length, planes, count, part,
    IN_ROWS: tl.constexpr, PER_SAMPLE: tl.constexpr, ACROSS: tl.constexpr,
):  # fmt: skip
    """Of the program, [ACROSS]: channel, whether it exists, place of its gate, first element; part, row of parts."""
    if IN_ROWS:
        group = tl.program_id(0) // count
        channel = tl.program_id(1) * ACROSS + tl.arange(0, ACROSS)
        exists = channel < channels
        gate = group * channels + channel if PER_SAMPLE else channel
        first = group.to(tl.int64) * length * channels + channel
        begin = tl.program_id(0) % count * part
        row = channel * 0 + tl.program_id(0)
    else:
        plane = tl.program_id(0) * ACROSS + tl.arange(0, ACROSS)
        exists = plane < planes
        sample = plane // channels
        channel = plane - sample * channels
        gate = plane if PER_SAMPLE else channel
        first = plane.to(tl.int64) * length
        begin = tl.program_id(1) * part
        row = sample * count + tl.program_id(1)
    return channel, exists, gate, first, begin, row.to(tl.int64)


@triton.jit
def across(value, IN_ROWS: tl.constexpr):
    """[ACROSS] as a view that meets a tile."""
    return value[None, :] if IN_ROWS else value[:, None]


@triton.jit
def places_at(first, start, channels, IN_ROWS: tl.constexpr, ALONG: tl.constexpr):
    """Of a tile that begins at place ``start``: places, and where their elements are."""
    if IN_ROWS:
        place = start + tl.arange(0, ALONG)[:, None]
        at = first[None, :] + place.to(tl.int64) * channels
    else:
        place = start + tl.arange(0, ALONG)[None, :]
        at = first[:, None] + place
    return place, at


@triton.jit
def gated(x, gate):
    return tl.where(gate == 0.0, 0.0, x * gate)


@triton.jit
def read_of(inside, gate, IN_ROWS: tl.constexpr):
    """What is read where closed elements are not needed: in rows all, for a vector holds open and closed ones."""
    return inside if IN_ROWS else inside & (gate != 0.0)


@triton.jit
def terms_of(weight_ptr, bias_ptr, mean_ptr, var_ptr, channel, exists, eps, IN_ROWS: tl.constexpr):
    """Mean, 1 / std, weight and bias of the channels, as views that meet a tile."""
    mean = tl.load(mean_ptr + channel, mask=exists, other=0.0).to(tl.float32)
    var = tl.load(var_ptr + channel, mask=exists, other=1.0).to(tl.float32)
    inverse = tl.div_rn(mean * 0.0 + 1.0, tl.sqrt_rn(var + eps))
    weight, bias = tl.full(channel.shape, 1.0, tl.float32), tl.zeros(channel.shape, tl.float32)
    if weight_ptr is not None:
        weight = tl.load(weight_ptr + channel, mask=exists, other=0.0).to(tl.float32)
    if bias_ptr is not None:
        bias = tl.load(bias_ptr + channel, mask=exists, other=0.0).to(tl.float32)
    return across(mean, IN_ROWS), across(inverse, IN_ROWS), across(weight, IN_ROWS), across(bias, IN_ROWS)  # fmt: skip


# ---- forward ----
@triton.jit
def merged(n, mean, squares, more, mean_too, squares_too):
    """Count, mean and sum of squared differences of two sets of values."""
    share = more / (n + more)
    difference = mean_too - mean
    squares = squares + squares_too + difference * difference * n * share
    return n + more, mean + difference * share, squares


@triton.jit
def gate_norm_statistics_kernel(
    x_ptr, gates_ptr, parts_ptr, channels, length, planes, count, part,
    IN_ROWS: tl.constexpr, PER_SAMPLE: tl.constexpr, ACROSS: tl.constexpr, ALONG: tl.constexpr,
):  # fmt: skip
    channel, exists, index, first, begin, row = entities_of(
        channels, length, planes, count, part, IN_ROWS, PER_SAMPLE, ACROSS
    )
    AXIS: tl.constexpr = 0 if IN_ROWS else 1
    gate = across(tl.load(gates_ptr + index, mask=exists, other=0.0).to(tl.float32), IN_ROWS)
    n, mean, squares = 0.0, tl.zeros((ACROSS,), tl.float32), tl.zeros((ACROSS,), tl.float32)
    for start in range(begin, tl.minimum(begin + part, length), ALONG):
        place, at = places_at(first, start, channels, IN_ROWS, ALONG)
        inside = across(exists, IN_ROWS) & (place < length)
        x = tl.load(x_ptr + at, mask=read_of(inside, gate, IN_ROWS), other=0.0).to(tl.float32)
        u = gated(x, gate)
        more = tl.minimum(length - start, ALONG).to(tl.float32)
        of_tile = tl.sum(u, AXIS) / more
        rest = tl.where(inside, u - across(of_tile, IN_ROWS), 0.0)
        n, mean, squares = merged(n, mean, squares, more, of_tile, tl.sum(rest * rest, AXIS))
    parts_ptr += row * (2 * channels) + channel
    tl.store(parts_ptr, mean, mask=exists)
    tl.store(parts_ptr + channels, squares, mask=exists)


@triton.jit
def gate_norm_combine_kernel(
    parts_ptr, mean_ptr, var_ptr, rows, channels, count, length, part,
    PARTS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Of ``rows`` parts; part ``row % count`` of what has ``length`` places."""
    channel = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    exists = channel < channels
    zeros = tl.zeros((PARTS, COLUMNS), tl.float32)
    n, mean, squares = 0.0, tl.zeros((COLUMNS,), tl.float32), tl.zeros((COLUMNS,), tl.float32)
    for start in range(0, rows, PARTS):
        row = start + tl.arange(0, PARTS)
        places = tl.where(row < rows, tl.minimum(part, length - row % count * part), 0).to(
            tl.float32
        )
        inside = (row < rows)[:, None] & exists[None, :]
        at = row.to(tl.int64)[:, None] * (2 * channels) + channel[None, :]
        of_part = tl.load(parts_ptr + at, mask=inside, other=0.0)
        more = tl.sum(places, 0)
        of_tile = tl.sum(of_part * places[:, None], 0) / more
        rest = of_part - of_tile[None, :]
        found = tl.load(parts_ptr + at + channels, mask=inside, other=0.0)
        found += tl.where(inside, rest * rest * places[:, None], zeros)
        n, mean, squares = merged(n, mean, squares, more, of_tile, tl.sum(found, 0))
    tl.store(mean_ptr + channel, mean, mask=exists)
    tl.store(var_ptr + channel, squares / n, mask=exists)


@triton.jit
def gate_norm_kernel(
    x_ptr, gates_ptr, weight_ptr, bias_ptr, mean_ptr, var_ptr, y_ptr,
    channels, length, planes, count, part, eps, RELU: tl.constexpr,
    IN_ROWS: tl.constexpr, PER_SAMPLE: tl.constexpr, ACROSS: tl.constexpr, ALONG: tl.constexpr,
):  # fmt: skip
    channel, exists, index, first, begin, _ = entities_of(
        channels, length, planes, count, part, IN_ROWS, PER_SAMPLE, ACROSS
    )
    gate = across(tl.load(gates_ptr + index, mask=exists, other=0.0).to(tl.float32), IN_ROWS)
    mean, inverse, weight, bias = terms_of(
        weight_ptr, bias_ptr, mean_ptr, var_ptr, channel, exists, eps, IN_ROWS
    )
    for start in range(begin, tl.minimum(begin + part, length), ALONG):
        place, at = places_at(first, start, channels, IN_ROWS, ALONG)
        inside = across(exists, IN_ROWS) & (place < length)
        x = tl.load(x_ptr + at, mask=read_of(inside, gate, IN_ROWS), other=0.0).to(tl.float32)
        y = (gated(x, gate) - mean) * inverse * weight + bias
        if RELU:
            y = tl.where(y < 0.0, 0.0, y)  # NaN stays
        tl.store(y_ptr + at, y.to(y_ptr.dtype.element_ty), mask=inside)


# ---- backward ----
@triton.jit
def through_relu(grad, xhat, weight, bias, RELU: tl.constexpr):
    """The gradient of what is before the ReLU."""
    if RELU:
        grad = tl.where(xhat * weight + bias <= 0.0, 0.0, grad)
    return grad


@triton.jit
def gate_norm_sums_kernel(
    grad_ptr, x_ptr, gates_ptr, weight_ptr, bias_ptr, mean_ptr, var_ptr, parts_ptr, gate_parts_ptr,
    channels, length, planes, count, part, eps, RELU: tl.constexpr, GATES_TOO: tl.constexpr,
    IN_ROWS: tl.constexpr, PER_SAMPLE: tl.constexpr, ACROSS: tl.constexpr, ALONG: tl.constexpr,
):  # fmt: skip
    channel, exists, index, first, begin, row = entities_of(
        channels, length, planes, count, part, IN_ROWS, PER_SAMPLE, ACROSS
    )
    AXIS: tl.constexpr = 0 if IN_ROWS else 1
    gate = across(tl.load(gates_ptr + index, mask=exists, other=0.0).to(tl.float32), IN_ROWS)
    mean, inverse, weight, bias = terms_of(
        weight_ptr, bias_ptr, mean_ptr, var_ptr, channel, exists, eps, IN_ROWS
    )
    zeros = tl.zeros((ALONG, ACROSS) if IN_ROWS else (ACROSS, ALONG), tl.float32)
    of_dz, of_dz_xhat, of_dz_x, of_x, of_xhat_x = zeros, zeros, zeros, zeros, zeros
    for start in range(begin, tl.minimum(begin + part, length), ALONG):
        place, at = places_at(first, start, channels, IN_ROWS, ALONG)
        inside = across(exists, IN_ROWS) & (place < length)
        read = inside if GATES_TOO else read_of(inside, gate, IN_ROWS)
        x = tl.load(x_ptr + at, mask=read, other=0.0).to(tl.float32)
        xhat = (gated(x, gate) - mean) * inverse
        grad = tl.load(grad_ptr + at, mask=inside, other=0.0).to(tl.float32)
        dz = through_relu(grad, xhat, weight, bias, RELU)
        of_dz += dz
        of_dz_xhat += dz * xhat
        if GATES_TOO:
            of_dz_x += dz * x
            of_x += x
            of_xhat_x += xhat * x
    parts_ptr += row * (2 * channels) + channel
    tl.store(parts_ptr, tl.sum(of_dz, AXIS), mask=exists)
    tl.store(parts_ptr + channels, tl.sum(of_dz_xhat, AXIS), mask=exists)
    if GATES_TOO:
        gate_parts_ptr += row * (3 * channels) + channel
        tl.store(gate_parts_ptr, tl.sum(of_dz_x, AXIS), mask=exists)
        tl.store(gate_parts_ptr + channels, tl.sum(of_x, AXIS), mask=exists)
        tl.store(gate_parts_ptr + 2 * channels, tl.sum(of_xhat_x, AXIS), mask=exists)


@triton.jit
def gate_norm_grad_kernel(
    grad_ptr, x_ptr, gates_ptr, weight_ptr, bias_ptr, mean_ptr, var_ptr, sums_ptr, dx_ptr,
    channels, length, planes, count, part, eps, share, RELU: tl.constexpr, TRAINING: tl.constexpr,
    IN_ROWS: tl.constexpr, PER_SAMPLE: tl.constexpr, ACROSS: tl.constexpr, ALONG: tl.constexpr,
):  # fmt: skip
    """``share`` is 1 / n."""
    channel, exists, index, first, begin, _ = entities_of(
        channels, length, planes, count, part, IN_ROWS, PER_SAMPLE, ACROSS
    )
    gate = across(tl.load(gates_ptr + index, mask=exists, other=0.0).to(tl.float32), IN_ROWS)
    mean, inverse, weight, bias = terms_of(
        weight_ptr, bias_ptr, mean_ptr, var_ptr, channel, exists, eps, IN_ROWS
    )
    if TRAINING:
        of_dz = across(tl.load(sums_ptr + channel, mask=exists, other=0.0) * share, IN_ROWS)
        sums_ptr += channels
        of_dz_xhat = across(tl.load(sums_ptr + channel, mask=exists, other=0.0) * share, IN_ROWS)
    for start in range(begin, tl.minimum(begin + part, length), ALONG):
        place, at = places_at(first, start, channels, IN_ROWS, ALONG)
        inside = across(exists, IN_ROWS) & (place < length)
        read = read_of(inside, gate, IN_ROWS)
        x = tl.load(x_ptr + at, mask=read, other=0.0).to(tl.float32)
        xhat = (gated(x, gate) - mean) * inverse
        grad = tl.load(grad_ptr + at, mask=read, other=0.0).to(tl.float32)
        du = through_relu(grad, xhat, weight, bias, RELU)
        if TRAINING:
            du = du - of_dz - xhat * of_dz_xhat
        dx = gated(du * (inverse * weight), gate)
        tl.store(dx_ptr + at, dx.to(dx_ptr.dtype.element_ty), mask=inside)
