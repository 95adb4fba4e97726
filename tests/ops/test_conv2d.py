"""nm_conv2d and block_conv2d: torch's convolution in fp64, every ISA level and thread count, both memory orders."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from evoprune_kernels import formats, ops
from evoprune_kernels.formats import NMWeight
from evoprune_kernels.ops._conv import ConvSizes
from evoprune_kernels.ops.nm_conv2d.cases import SHAPES, ConvCase, conv_case
from evoprune_kernels.ops.prepare_conv import bind_conv, conv_op_of
from tests.ops.linears import ACTIVATE
from tests.tolerance import assert_accurate

PATTERNS = (
    "2:4",
    "1:4",
    "2:4v16",
    "block:16x16",
    "block:32x32",
    "block:16x1",
    "block:8x8",
    "block:4x3",
    "block:2x2",
    "block:1x16",
)
FORMATS = (torch.contiguous_format, torch.channels_last)
#: more than one panel of every width, several images in one panel
LARGE = ConvCase((3, 4, 13, 15), 40, 3, padding=1)


def oracle(x, weight, bias, activation, sizes, dtype):
    """torch's convolution with the masked dense weight [N, K]."""
    weight = weight.to(dtype).view(sizes.out_channels, sizes.in_channels, *sizes.kernel_size)
    bias = None if bias is None else bias.to(dtype)
    y = F.conv2d(x.to(dtype), weight, bias, sizes.stride, sizes.padding, sizes.dilation)
    return ACTIVATE[activation](y)


def call(x, packed, bias, activation, sizes, layout="cpu", impl=None):
    bound = bind_conv(packed, sizes, activation)
    tensors, tail = bound.tensors.values(), bound.tail
    if layout == "canonical":
        tensors, tail = packed.tensors().values(), (*tail[:-1], "canonical")
    return bound.op(x, *tensors, bias, *tail, packed.scale, impl=impl)


def hold(shape, pattern, memory_format, *, impl=None, layout="cpu", **kwargs):
    """One case against the oracle; the output is stored as torch stores it."""
    x, packed, bias, activation = conv_case(shape, pattern, **kwargs).args()
    x, sizes = x.contiguous(memory_format=memory_format), shape.sizes()
    weight = packed.unpack()
    y = call(x, packed, bias, activation, sizes, layout, impl)
    same = oracle(x, weight, bias, activation, sizes, x.dtype)
    assert_accurate(y, oracle(x, weight, bias, activation, sizes, torch.float64), same)
    assert y.is_contiguous(memory_format=memory_format) or y.numel() == 0


@pytest.mark.parametrize("memory_format", FORMATS, ids=["nchw", "nhwc"])
@pytest.mark.parametrize("pattern", PATTERNS)
def test_matches_torch(pattern, memory_format, isa, threads):
    for shape in SHAPES:
        hold(shape, pattern, memory_format)


@pytest.mark.parametrize("memory_format", FORMATS, ids=["nchw", "nhwc"])
@pytest.mark.parametrize("pattern", PATTERNS)
def test_reference_matches_torch(pattern, memory_format):
    for shape in SHAPES:
        for layout in ("cpu", "canonical"):
            hold(shape, pattern, memory_format, impl="reference", layout=layout)


@pytest.mark.parametrize("activation", ACTIVATE)
@pytest.mark.parametrize("pattern", ["2:4", "2:4v16", "block:16x16", "block:4x3"])
def test_bias_and_activation(pattern, activation, isa):
    for dtype in (torch.float32, torch.bfloat16):
        for memory_format in FORMATS:
            for bias in (True, False):
                hold(LARGE, pattern, memory_format, dtype=dtype, bias=bias, activation=activation)
                pointwise = ConvCase((2, 24, 5, 7), 20, 1)
                hold(
                    pointwise, pattern, memory_format, dtype=dtype, bias=bias, activation=activation
                )


@pytest.mark.parametrize("pattern", ["2:4", "2:4v16", "block:16x16"])
def test_canonical_tensors(pattern):
    for memory_format in FORMATS:
        hold(LARGE, pattern, memory_format, layout="canonical")


@pytest.mark.parametrize("pattern", ["2:4", "2:4v16", "block:16x16"])
def test_weights_stored_narrower(pattern, isa):
    x, packed, bias, _ = conv_case(LARGE, pattern).args()
    sizes = LARGE.sizes()
    for stored in (packed.to(torch.bfloat16), packed.quantize()):
        weight = stored.unpack().float()
        y = call(x, stored, bias, "relu", sizes)
        same = oracle(x, weight, bias, "relu", sizes, torch.float32)
        assert_accurate(y, oracle(x, weight, bias, "relu", sizes, torch.float64), same)


@pytest.mark.parametrize("pattern", ["2:4", "2:4v16", "block:16x16", "block:4x3"])
def test_threads_do_not_change_a_bit(pattern):
    """Few panels (their products are shared out) and many (each thread fills its own)."""
    before = torch.get_num_threads()
    for shape in (
        ConvCase((1, 8, 7, 7), 48, 3, padding=1),
        ConvCase((4, 8, 14, 14), 48, 3, padding=1),
    ):
        x, packed, bias, _ = conv_case(shape, pattern).args()
        results = []
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            results.append(call(x, packed, bias, "gelu", shape.sizes()))
        torch.set_num_threads(before)
        assert torch.equal(results[0], results[1]) and torch.equal(results[0], results[2])


def test_a_strided_input():
    x, packed, bias, _ = conv_case(LARGE, "2:4").args()
    wide = torch.stack([x, torch.full_like(x, float("nan"))], -1)[..., 0]
    assert not wide.is_contiguous()
    y, expected = (call(each, packed, bias, "none", LARGE.sizes()) for each in (wide, x))
    assert torch.equal(y, expected)


@pytest.mark.parametrize("pattern", ["2:4", "block:16x16"])
def test_pruned_places_are_not_read(pattern, isa):
    """A NaN reaches the outputs whose kept weights see it, and no others."""
    shape = ConvCase((1, 16, 6, 6), 32, 3, padding=1)
    x, packed, _, _ = conv_case(shape, pattern).args()
    x[0, 3, 2, 2] = float("nan")
    y = call(x, packed, None, "none", shape.sizes())
    kept = packed.unpack().view(32, 16, 3, 3) != 0
    for i in range(3):
        for j in range(3):
            assert torch.equal(y[0, :, 3 - i, 3 - j].isnan(), kept[:, 3, i, j])
    assert not y[:, :, 4:].isnan().any()


def test_no_output_channel():
    packed = ops.nm_pack(torch.zeros(0, 36), 2, 4)
    for impl in ("cpu", "reference"):
        y = ops.nm_conv2d(torch.zeros(2, 4, 5, 5), packed, kernel_size=3, impl=impl)
        assert y.shape == (2, 0, 3, 3)


def test_literal():
    packed = ops.nm_pack(torch.tensor([[0.0, 1.0, 0.0, 10.0]]), 2, 4)  # one channel, a 2x2 kernel
    x = torch.arange(9.0).view(1, 1, 3, 3)
    y = ops.nm_conv2d(x, packed, torch.tensor([0.5]), kernel_size=2)
    assert y.tolist() == [[[[41.5, 52.5], [74.5, 85.5]]]]


@pytest.mark.parametrize(
    "change, error, match",
    [
        ({"x": torch.zeros(4, 5, 5)}, ValueError, "4 dimensions, got 3"),
        ({"x": torch.zeros(1, 3, 5, 5)}, ValueError, r"shape \(8, 27\), got \(8, 36\)"),
        (
            {"x": torch.zeros(1, 4, 2, 5)},
            ValueError,
            r"as large as the kernel \[3, 3\].* got \[2, 5\]",
        ),
        ({"x": torch.zeros(1, 4, 5, 5).double()}, TypeError, "float32, got torch.float64"),
        ({"bias": torch.zeros(7)}, ValueError, r"bias of shape \(8,\), got \(7,\)"),
        ({"activation": "tanh"}, ValueError, "got 'tanh'"),
        ({"stride": 0}, ValueError, r"stride of at least 1, got \[0, 0\]"),
        ({"padding": (1, 2, 3)}, ValueError, r"padding of one number or two, got \[1, 2, 3\]"),
    ],
)
def test_refusals(change, error, match):
    arguments = {
        "x": torch.zeros(1, 4, 5, 5),
        "packed": ops.nm_pack(torch.zeros(8, 36), 2, 4),
        "kernel_size": 3,
        **change,
    }
    with pytest.raises(error, match=match):
        ops.nm_conv2d(**arguments)


def test_the_kernel_refuses_what_it_cannot_read():
    x, packed, bias, _ = conv_case(LARGE, "block:16x16").args()
    sizes = LARGE.sizes()
    bound = bind_conv(packed, sizes, "none")
    values, row_ptr, columns = bound.tensors.values()
    columns = columns.clone()
    columns[0] = 1000
    with pytest.raises(RuntimeError, match=r"within 0 to 32, got .* 1000"):
        bound.op(x, values, row_ptr, columns, bias, *bound.tail, impl="cpu")
    other = NMWeight.pack(torch.zeros(40, 36), 2, 8)
    with pytest.raises(RuntimeError, match="takes 1:4, 2:4 and n:mv16, got 2:8"):
        ops.nm_conv2d(x, other, kernel_size=3, impl="cpu")
    shared = conv_case(LARGE, "2:4v16").args()[1]
    bound = bind_conv(shared, sizes, "none")
    values, columns = bound.tensors.values()
    with pytest.raises(RuntimeError, match="columns within 0 to 35, got 77"):
        bound.op(x, values, torch.full_like(columns, 77), bias, *bound.tail, impl="cpu")


@pytest.mark.parametrize(
    "pattern, match", [("unstructured", "no convolution op"), ("2:8", "got 2:8")]
)
def test_patterns_without_a_kernel(pattern, match):
    with pytest.raises(ValueError, match=match):
        conv_op_of(formats.parse_pattern(pattern))


@pytest.mark.parametrize("memory_format", FORMATS, ids=["nchw", "nhwc"])
@pytest.mark.parametrize("pattern", ["2:4", "2:4v16", "block:16x16"])
def test_opcheck(pattern, memory_format):
    shape = ConvCase((2, 8, 6, 6), 16, 3, stride=2, padding=1)
    x, packed, bias, _ = conv_case(shape, pattern).args()
    bound = bind_conv(packed, shape.sizes(), "relu")
    arguments = (
        x.contiguous(memory_format=memory_format),
        *bound.tensors.values(),
        bias,
        *bound.tail,
    )
    torch.library.opcheck(bound.op.overload, arguments)


def test_a_layer_without_columns_is_refused():
    with pytest.raises(ValueError, match="in_channels >= 1, got 4 and 0"):
        ConvSizes.of(4, 0, 1)
