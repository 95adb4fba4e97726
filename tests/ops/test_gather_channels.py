"""gather_channels and scatter_channels: literal values, loops over channels, gradients, bad input, opcheck."""

from __future__ import annotations

import pytest
import torch

from evoprune_kernels import ops
from evoprune_kernels.ops.gather_channels.cases import CASES, SCATTER_CASES
from tests.tolerance import assert_accurate


def by_hand(x, index):
    """One channel after the other, in Python."""
    return torch.stack([x[:, c] for c in index.tolist()], 1) if len(index) else x[:, :0]


def sums_by_hand(x, index, channels):
    """One channel after the other, in Python, added in the order of the index."""
    y = torch.zeros(x.shape[0], channels, *x.shape[2:], dtype=x.dtype)
    for k, c in enumerate(index.tolist()):
        y[:, c] = y[:, c] + x[:, k]
    return y


def is_laid_out_as(y, x):
    """Strides of an empty tensor of y's shape in the memory format of x."""
    last = x.dim() == 4 and not x.is_contiguous()
    wanted = torch.channels_last if last else torch.contiguous_format
    return y.numel() == 0 or y.stride() == torch.empty(y.shape, memory_format=wanted).stride()


def test_literal():
    x = torch.arange(12.0).view(2, 3, 2)
    index = torch.tensor([2, 0])
    y = ops.gather_channels(x, index)
    assert y.tolist() == [[[4, 5], [0, 1]], [[10, 11], [6, 7]]]
    back = ops.scatter_channels(y, index, 4)
    assert back[0].tolist() == [[0, 1], [0, 0], [4, 5], [0, 0]]
    twice = ops.scatter_channels(y, torch.tensor([1, 1]), 2)
    assert twice[1].tolist() == [[0, 0], [16, 18]]


every_implementation = pytest.mark.parametrize("impl", [None, "reference"])


@every_implementation
@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
def test_gather_matches_the_loop(case, impl):
    x, index = case.args()
    y = ops.gather_channels(x, index, impl=impl)
    assert torch.equal(y, by_hand(x, index)) and is_laid_out_as(y, x)


@every_implementation
@pytest.mark.parametrize("case", SCATTER_CASES, ids=lambda c: c.name)
def test_scatter_matches_the_loop(case, impl):
    x, index, channels = case.args()
    y = ops.scatter_channels(x, index, channels, impl=impl)
    wanted = sums_by_hand(x.double(), index, channels)
    assert_accurate(y, wanted, sums_by_hand(x, index, channels))
    if len(set(index.tolist())) == len(index):  # nothing is added: the same values
        assert torch.equal(y, sums_by_hand(x, index, channels))
    assert is_laid_out_as(y, x)


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
def test_gradients_match_autograd_of_the_loop(case):
    x, index = case.args()
    x.requires_grad_()
    y = ops.gather_channels(x, index)
    grad = torch.randn(y.shape, generator=torch.Generator().manual_seed(1)).to(y.dtype)
    (ours,) = torch.autograd.grad(y, x, grad)
    wanted = sums_by_hand(grad.double(), index, x.shape[1])
    assert_accurate(ours, wanted, sums_by_hand(grad, index, x.shape[1]))


def test_special_values_go_through():
    x = torch.tensor([[float("nan")], [float("-inf")], [-0.0]]).view(1, 3, 1)
    index = torch.tensor([2, 0, 1])
    y = ops.gather_channels(x, index)
    assert y[0, 0].signbit() and y[0, 1].isnan() and y[0, 2] == -float("inf")
    back = ops.scatter_channels(y, index, 3)
    assert back[0, 0].isnan() and back[0, 1] == -float("inf") and back[0, 2] == 0


@pytest.mark.parametrize("dtype", [torch.int64, torch.int16, torch.bool, torch.complex128])
@pytest.mark.parametrize("shape", [(1, 4), (1, 4, 3, 2)])
def test_other_dtypes(dtype, shape):
    x = torch.arange(torch.Size(shape).numel()).view(shape).to(dtype)
    for form in (torch.contiguous_format, torch.channels_last)[: 1 + (x.dim() == 4)]:
        y = ops.gather_channels(x.contiguous(memory_format=form), torch.tensor([1, 2]))
        assert torch.equal(y, x[:, 1:3])
        back = ops.scatter_channels(y, torch.tensor([2, 0]), 3)
        assert torch.equal(back, torch.stack([x[:, 2], x[:, 1] * 0, x[:, 1]], 1))


def test_many_threads_give_the_same():
    """More rows and samples than one thread takes."""
    x, index = torch.randn(9, 40, 33, 31), torch.arange(1, 40, 3)
    last = x.contiguous(memory_format=torch.channels_last)
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        for given in (x, last, x.flatten(1)[:, :4000].reshape(9000, 4)):
            some = index if given.dim() == 4 else torch.tensor([0, 3])
            y = ops.gather_channels(given, some)
            assert torch.equal(y, by_hand(given, some))
            back = ops.scatter_channels(y, some, given.shape[1])
            assert torch.equal(back, sums_by_hand(y, some, given.shape[1]))
    finally:
        torch.set_num_threads(before)


def test_non_contiguous():
    x = torch.randn(4, 6, 5, 7)[:, ::2, :, 1:]
    index = torch.tensor([2, 1])
    y = ops.gather_channels(x, index)
    assert torch.equal(y, by_hand(x, index)) and y.is_contiguous()
    back = ops.scatter_channels(x, torch.tensor([3, 0, 2]), 5)
    assert torch.equal(back, sums_by_hand(x, torch.tensor([3, 0, 2]), 5)) and back.is_contiguous()
    strided = torch.tensor([0, 9, 2, 9])[::2]
    assert torch.equal(ops.gather_channels(x, strided), by_hand(x, strided))


def test_gradcheck():
    x = torch.randn(2, 4, 3, dtype=torch.float64, requires_grad=True)
    index = torch.tensor([3, 1, 3])
    assert torch.autograd.gradcheck(lambda t: ops.gather_channels(t, index), (x,))
    assert torch.autograd.gradgradcheck(lambda t: ops.gather_channels(t, index).sin(), (x,))
    some = torch.randn(2, 3, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda t: ops.scatter_channels(t, index, 4), (some,))


@pytest.mark.parametrize("last", [False, True])
def test_opcheck(last):
    form = torch.channels_last if last else torch.contiguous_format
    x = torch.randn(2, 5, 3, 4).contiguous(memory_format=form).requires_grad_()
    index = torch.tensor([4, 0, 2])
    torch.library.opcheck(torch.ops.evoprune.gather_channels.default, (x, index))
    some = torch.randn(2, 3, 3, 4).contiguous(memory_format=form).requires_grad_()
    torch.library.opcheck(torch.ops.evoprune.scatter_channels.default, (some, index, 5))


X = torch.zeros(2, 3, 4)


@pytest.mark.parametrize(
    "x, index, error, message",
    [
        (torch.zeros(3), torch.tensor([0]), ValueError, r"2 dimensions or more, got 1"),
        (X, torch.tensor([[0]]), ValueError, r"index of 1 dimension, got 2"),
        (X, torch.tensor([0], dtype=torch.int32), TypeError, r"torch.int64.*torch.int32"),
        (X, torch.tensor([0, -1]), ValueError, r"index in \[0, 3\), got -1 to 0"),
        (X, torch.tensor([3, 1]), ValueError, r"index in \[0, 3\), got 1 to 3"),
        (X, torch.zeros(1, device="meta", dtype=torch.int64), ValueError, r"index on meta, x on cpu"),
    ],
)  # fmt: skip
def test_bad_input(x, index, error, message):
    with pytest.raises(error, match=message):
        ops.gather_channels(x, index)


def test_the_op_itself_refuses_a_bad_index():
    for index, message in (([3], "got 3"), ([-1], "got -1")):
        with pytest.raises((RuntimeError, IndexError), match=message):
            ops.gather_channels.OP(X, torch.tensor(index))
        with pytest.raises((RuntimeError, IndexError), match=message):
            ops.gather_channels.SCATTER(X[:, :1], torch.tensor(index), 3)


def test_bad_input_of_scatter():
    with pytest.raises(ValueError, match=r"expected index \[3\], got \[2\]"):
        ops.scatter_channels(X, torch.tensor([0, 1]), 3)
    with pytest.raises(ValueError, match=r"index in \[0, 2\), got 0 to 2"):
        ops.scatter_channels(X, torch.tensor([0, 1, 2]), 2)
