"""ssProp: the backward against a dense backward of dY in which an oracle has set channels to zero."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from evoprune_kernels.nn import SSPropConv2d, SSPropLinear
from evoprune_kernels.nn.ssprop_backward import select_channels
from evoprune_kernels.ops.topk_channels.reference import channel_scores
from tests.tolerance import FLOOR, assert_accurate

#: name -> (options of the layer, shape of the input)
CONVS = {
    "plain": ({"in_channels": 3, "out_channels": 10, "kernel_size": 3}, (2, 3, 7, 9)),
    "one-by-one": ({"in_channels": 5, "out_channels": 7, "kernel_size": 1}, (3, 5, 4, 4)),
    "strided": ({"in_channels": 4, "out_channels": 9, "kernel_size": 3, "stride": (2, 3)}, (2, 4, 11, 10)),
    "padded": ({"in_channels": 4, "out_channels": 6, "kernel_size": (3, 5), "padding": (1, 2)}, (2, 4, 6, 6)),
    "dilated": ({"in_channels": 3, "out_channels": 5, "kernel_size": 3, "dilation": 2, "padding": 2}, (1, 3, 8, 8)),
    "valid": ({"in_channels": 3, "out_channels": 5, "kernel_size": 3, "padding": "valid"}, (1, 3, 8, 8)),
    "same": ({"in_channels": 3, "out_channels": 5, "kernel_size": (4, 3), "padding": "same"}, (1, 3, 8, 8)),
    "reflect": ({"in_channels": 3, "out_channels": 6, "kernel_size": 3, "padding": 1, "padding_mode": "reflect"},
                (2, 3, 6, 6)),
    "circular": ({"in_channels": 3, "out_channels": 6, "kernel_size": 3, "padding": "same",
                  "padding_mode": "circular"}, (2, 3, 6, 6)),
    "replicate": ({"in_channels": 3, "out_channels": 6, "kernel_size": 3, "padding": (0, 2),
                   "padding_mode": "replicate"}, (2, 3, 6, 6)),
    "grouped": ({"in_channels": 6, "out_channels": 9, "kernel_size": 3, "groups": 3, "padding": 1}, (2, 6, 5, 5)),
    "depthwise": ({"in_channels": 7, "out_channels": 7, "kernel_size": 3, "groups": 7, "stride": 2}, (2, 7, 9, 9)),
    "multiplier": ({"in_channels": 4, "out_channels": 8, "kernel_size": 3, "groups": 4}, (2, 4, 5, 5)),
    "no-bias": ({"in_channels": 3, "out_channels": 8, "kernel_size": 3, "bias": False}, (2, 3, 6, 6)),
    "unbatched": ({"in_channels": 3, "out_channels": 8, "kernel_size": 3}, (3, 6, 6)),
    "one-channel": ({"in_channels": 2, "out_channels": 1, "kernel_size": 2}, (2, 2, 3, 3)),
    "no-images": ({"in_channels": 2, "out_channels": 4, "kernel_size": 2}, (0, 2, 3, 3)),
}  # fmt: skip
conv_cases = pytest.mark.parametrize("name", CONVS)
shares = pytest.mark.parametrize("kept", [0.01, 0.2, 0.6])


def oracle_channels(grad, kept, channel_dim):
    """Scores by a loop in Python floats (fp64), the lowest index first among equals."""
    rows = grad.movedim(channel_dim, 0).double()
    scores = [sum(abs(v) for v in row.reshape(-1).tolist()) for row in rows]
    order = sorted(range(len(scores)), key=lambda c: (-scores[c], c))
    return sorted(order[: max(int(kept * len(scores)), 1)])


def masked(grad, channels, channel_dim):
    """``grad`` where only ``channels`` are not zero."""
    keep = torch.zeros(grad.shape[channel_dim])
    keep[channels] = 1
    shape = [1] * grad.dim()
    shape[channel_dim] = -1
    return grad * keep.to(grad).view(shape)


def gradients(layer, x, grad):
    """The gradients of input, weight and bias for this dY."""
    x = x.clone().requires_grad_()
    wanted = [x, *layer.parameters()]
    return torch.autograd.grad(layer(x), wanted, grad)


def conv_pair(name, dtype, seed=0, **options):
    """A dense convolution, ours around copies of its Parameters, an input and a dY whose channels differ in size."""
    torch.manual_seed(seed)
    arguments, shape = CONVS[name]
    dense = nn.Conv2d(**arguments, dtype=dtype)
    ours = SSPropConv2d.from_conv(copy.deepcopy(dense), **options)
    x = torch.randn(shape, dtype=dtype)
    y = dense(x)
    sizes = torch.rand(y.shape[-3], 1, 1, dtype=dtype) + 0.1
    return dense, ours, x, torch.randn_like(y) * sizes


@shares
@conv_cases
def test_conv_is_the_dense_backward_of_a_masked_gradient(name, kept):
    dense, ours, x, grad = conv_pair(name, torch.float64, kept=kept)
    channels = oracle_channels(grad, kept, -3)
    expected = gradients(dense, x, masked(grad, channels, -3))
    actual = gradients(ours, x, grad)
    assert torch.equal(ours(x), dense(x))
    for a, e in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, e, rtol=1e-12, atol=1e-12)
    dropped = [c for c in range(dense.out_channels) if c not in channels]
    assert all(not g[dropped].any() for g in actual[1:])


@conv_cases
def test_conv_in_fp32_is_as_accurate_as_torch(name):
    dense, ours, x, grad = conv_pair(name, torch.float32, kept=0.5)
    hole = masked(grad, oracle_channels(grad, 0.5, -3), -3)
    same_dtype = gradients(dense, x, hole)
    truth = gradients(copy.deepcopy(dense).double(), x.double(), hole.double())
    for a, t, s in zip(gradients(ours, x, grad), truth, same_dtype, strict=True):
        assert_accurate(a, t, s)


@pytest.mark.parametrize("kept", [0.1, 0.5])
@pytest.mark.parametrize("shape", [(5, 6), (2, 3, 6), (6,), (0, 6)])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_linear_is_the_dense_backward_of_a_masked_gradient(shape, kept, bias, dtype):
    torch.manual_seed(1)
    dense = nn.Linear(6, 11, bias=bias, dtype=dtype)
    ours = SSPropLinear.from_linear(copy.deepcopy(dense), kept=kept)
    x, grad = torch.randn(shape, dtype=dtype), torch.randn(*shape[:-1], 11, dtype=dtype)
    hole = masked(grad, oracle_channels(grad, kept, -1), -1)
    truth = gradients(copy.deepcopy(dense).double(), x.double(), hole.double())
    for a, t, s in zip(gradients(ours, x, grad), truth, gradients(dense, x, hole), strict=True):
        assert_accurate(a, t, s)


@pytest.mark.parametrize("name", ["plain", "grouped", "depthwise"])
def test_weight_only_leaves_the_input_gradient_dense(name):
    dense, ours, x, grad = conv_pair(name, torch.float64, kept=0.4, weight_only=True)
    hole = masked(grad, oracle_channels(grad, 0.4, -3), -3)
    expected = [gradients(dense, x, grad)[0], *gradients(dense, x, hole)[1:]]
    for a, e in zip(gradients(ours, x, grad), expected, strict=True):
        torch.testing.assert_close(a, e, rtol=1e-12, atol=1e-12)


def test_weight_only_linear():
    torch.manual_seed(2)
    dense = nn.Linear(6, 10, dtype=torch.float64)
    ours = SSPropLinear.from_linear(copy.deepcopy(dense), kept=0.3, weight_only=True)
    x, grad = torch.randn(4, 6, dtype=torch.float64), torch.randn(4, 10, dtype=torch.float64)
    hole = masked(grad, oracle_channels(grad, 0.3, -1), -1)
    expected = [gradients(dense, x, grad)[0], *gradients(dense, x, hole)[1:]]
    for a, e in zip(gradients(ours, x, grad), expected, strict=True):
        torch.testing.assert_close(a, e, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("state", ["kept=1", "eval"])
@conv_cases
def test_dense_states_are_torch_to_the_bit(name, state):
    dense, ours, x, grad = conv_pair(name, torch.float32, kept=1.0 if state == "kept=1" else 0.2)
    if state == "eval":
        ours.eval()
    for a, e in zip(gradients(ours, x, grad), gradients(dense, x, grad), strict=True):
        assert torch.equal(a, e)
    assert ours.reason is not None


@pytest.mark.parametrize("name", ["plain", "grouped", "depthwise"])
def test_the_sparse_path_with_every_channel_is_the_dense_backward(name):
    """kept = 1 never gets there; the arithmetic must agree all the same."""
    dense, ours, x, grad = conv_pair(name, torch.float64)
    ours._sparse_backward = lambda: True
    ours.kept = 1.0
    for a, e in zip(gradients(ours, x, grad), gradients(dense, x, grad), strict=True):
        torch.testing.assert_close(a, e, rtol=1e-12, atol=1e-12)


def test_reason_tells_of_masking():
    assert SSPropConv2d(6, 9, 3, groups=3).reason.startswith("groups=3")
    assert SSPropConv2d(4, 8, 3, groups=4).reason.startswith("groups=4")
    assert SSPropConv2d(7, 7, 3, groups=7).reason is None
    assert SSPropLinear(4, 8, kept=1.0).reason == "every channel is kept"
    assert "groups=3: the chosen channels do not" in repr(SSPropConv2d(6, 9, 3, groups=3))


def test_ties_go_to_the_lowest_channel():
    layer = SSPropLinear(3, 6, kept=0.5)
    grad = torch.tensor([[2.0, -7.0, 3.0, 3.0, -3.0, 3.0]])
    _, _, db = gradients(layer, torch.ones(1, 3), grad)
    assert db.tolist() == [0, -7, 3, 3, 0, 0]


@pytest.mark.parametrize(
    "channels, kept, expected",
    [(10, 0.2, 2), (3, 0.2, 1), (7, 0.6, 4), (64, 0.999, 63), (100, 0.57, 57), (10, 0.1 + 0.1 + 0.1, 3)],
)  # fmt: skip
def test_kept_channels_is_the_papers_count(channels, kept, expected):
    assert SSPropLinear(1, channels, kept=kept).kept_channels == expected


@pytest.mark.parametrize("special", [float("nan"), float("inf"), float("-inf")])
def test_a_channel_that_is_not_finite_is_kept(special):
    grad = torch.tensor([[5.0, 6.0, special, 7.0]])
    _, dw, db = gradients(SSPropLinear(2, 4, kept=0.25), torch.ones(1, 2), grad)
    assert not db[2].isfinite() and not dw[2].isfinite().any()
    assert db[[0, 1, 3]].tolist() == [0, 0, 0]


def test_scores_of_half_precision_are_summed_in_fp32():
    grad = torch.full((300, 2), 1.0, dtype=torch.bfloat16)
    grad[0, 1] = 2.0  # 300 and 301: the same number in bfloat16
    assert channel_scores(grad).tolist() == [300.0, 301.0]


@pytest.mark.parametrize("needed", range(8))
def test_only_needed_gradients_are_computed(needed):
    dense, ours, x, grad = conv_pair("plain", torch.float64, kept=0.3)
    hole = masked(grad, oracle_channels(grad, 0.3, -3), -3)
    full = gradients(dense, x, hole)
    x = x.clone()
    tensors = [x, ours.weight, ours.bias]
    for i, tensor in enumerate(tensors):
        tensor.requires_grad_(bool(needed >> i & 1))
    y = ours(x)
    assert y.requires_grad == bool(needed)
    if needed:
        y.backward(grad)
    for i, (tensor, expected) in enumerate(zip(tensors, full, strict=True)):
        if needed >> i & 1:
            torch.testing.assert_close(tensor.grad, expected, rtol=1e-12, atol=1e-12)
        else:
            assert tensor.grad is None


def test_no_grad_and_inference_mode():
    _, ours, x, _ = conv_pair("plain", torch.float32, random=True)
    for context in (torch.no_grad(), torch.inference_mode()):
        with context:
            y = ours(x)
        assert not y.requires_grad and torch.equal(y, nn.Conv2d.forward(ours, x))
    assert ours.draws == 0


@pytest.mark.parametrize("name", ["plain", "strided", "depthwise", "grouped"])
def test_channels_last(name):
    dense, ours, x, grad = conv_pair(name, torch.float32, kept=0.5)
    hole = masked(grad, oracle_channels(grad, 0.5, -3), -3)
    truth = gradients(copy.deepcopy(dense).double(), x.double(), hole.double())
    same = gradients(dense, x, hole)
    last = {"memory_format": torch.channels_last}
    actual = gradients(ours.to(**last), x.contiguous(**last), grad.contiguous(**last))
    assert actual[0].is_contiguous(**last)
    for a, t, s in zip(actual, truth, same, strict=True):
        assert_accurate(a, t, s)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_select_channels_keeps_the_layout(layout):
    x = torch.randn(2, 6, 3, 5).contiguous(memory_format=layout)
    for source in (x, x[:, :, ::2]):
        chosen = select_channels(source, torch.tensor([1, 2, 5]))
        assert torch.equal(chosen, torch.stack([source[:, c] for c in (1, 2, 5)], 1))
    assert select_channels(x, torch.tensor([1, 2])).is_contiguous(memory_format=layout)


@pytest.mark.parametrize("kind", ["conv", "linear"])
def test_bf16_autocast(kind):
    """Output and chosen channels as the dense layer's; gradients in the dtype of the Parameters."""
    torch.manual_seed(3)
    if kind == "conv":
        dense, x, dim = nn.Conv2d(4, 8, 3), torch.randn(2, 4, 6, 6), 1
        ours = SSPropConv2d.from_conv(copy.deepcopy(dense), kept=0.5)
    else:
        dense, x, dim = nn.Linear(16, 8), torch.randn(4, 16), 1
        ours = SSPropLinear.from_linear(copy.deepcopy(dense), kept=0.5)
    with torch.autocast("cpu", torch.bfloat16):
        y, expected = ours(x), dense(x)
    assert y.dtype == torch.bfloat16 and torch.equal(y, expected)
    grad = torch.randn(y.shape).to(torch.bfloat16)
    channels = oracle_channels(grad, 0.5, dim)
    y.backward(grad)
    expected.backward(masked(grad, channels, dim))
    for a, e in zip(ours.parameters(), dense.parameters(), strict=True):
        assert a.grad.dtype == torch.float32
        scale = e.grad.abs().max()
        assert (a.grad - e.grad).abs().max() <= 2 * FLOOR[torch.bfloat16] * scale


def test_autocast_around_backward_does_not_change_dtypes():
    layer = SSPropLinear(4, 6)
    y = layer(torch.randn(3, 4))
    with torch.autocast("cpu", torch.bfloat16):
        y.sum().backward()
    assert layer.weight.grad.dtype == torch.float32


@pytest.mark.parametrize(
    "layer, shape", [(SSPropConv2d(2, 5, 3), (1, 2, 5, 5)), (SSPropLinear(3, 5), (2, 3))]
)
def test_a_second_derivative_is_refused(layer, shape):
    x = torch.randn(shape, requires_grad=True)
    (dx,) = torch.autograd.grad(layer(x).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match=r"cannot be differentiated again.*kept=1"):
        dx.sum().backward()
    (dx,) = torch.autograd.grad(layer(x).sum(), x, create_graph=True)  # by the weight alone
    with pytest.raises(RuntimeError, match="cannot be differentiated again"):
        dx.sum().backward()
    layer.kept = 1.0
    (dx,) = torch.autograd.grad(layer(x).square().sum(), x, create_graph=True)
    dx.sum().backward()


def test_three_layers_against_masking_by_hand():
    torch.manual_seed(4)
    conv, hidden, head = (
        SSPropConv2d(2, 5, 3, kept=0.4, dtype=torch.float64),
        SSPropLinear(5, 6, kept=0.5, dtype=torch.float64),
        SSPropLinear(6, 4, kept=0.5, dtype=torch.float64),
    )
    x = torch.randn(3, 2, 5, 5, dtype=torch.float64, requires_grad=True)
    a = conv(x)
    pooled = a.relu().mean((2, 3))
    b = hidden(pooled)
    h = b.relu()
    head(h).square().sum().backward()
    with torch.no_grad():
        d_head = 2 * head(h)
        d_head = masked(d_head, oracle_channels(d_head, 0.5, 1), 1)
        d_b = (d_head @ head.weight) * (b > 0)
        d_b = masked(d_b, oracle_channels(d_b, 0.5, 1), 1)
        d_a = ((d_b @ hidden.weight)[:, :, None, None] / 9).expand_as(a) * (a > 0)
        d_a = masked(d_a, oracle_channels(d_a, 0.4, 1), 1)
    expected = {
        head.weight: d_head.t() @ h,
        head.bias: d_head.sum(0),
        hidden.weight: d_b.t() @ pooled,
        hidden.bias: d_b.sum(0),
        conv.weight: torch.nn.grad.conv2d_weight(x, conv.weight.shape, d_a),
        conv.bias: d_a.sum((0, 2, 3)),
        x: F.conv_transpose2d(d_a, conv.weight),
    }
    for tensor, value in expected.items():
        torch.testing.assert_close(tensor.grad, value, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("kind", ["conv", "depthwise", "linear"])
@pytest.mark.parametrize("options", [{}, {"weight_only": True}, {"random": True}])
def test_compiles_without_graph_breaks(kind, options):
    torch._dynamo.reset()
    layer, shape = {
        "conv": (SSPropConv2d(3, 8, 3, kept=0.5, **options), (2, 3, 6, 6)),
        "depthwise": (SSPropConv2d(4, 4, 3, groups=4, kept=0.5, **options), (2, 4, 6, 6)),
        "linear": (SSPropLinear(5, 8, kept=0.5, **options), (4, 5)),
    }[kind]
    compiled = copy.deepcopy(layer)
    run = torch.compile(compiled, fullgraph=True, backend="aot_eager")
    for step in range(3):
        x = torch.randn(shape, generator=torch.Generator().manual_seed(step))
        grad = torch.randn(layer(x).shape, generator=torch.Generator().manual_seed(9))
        layer.draws = step
        for a, e in zip(gradients(run, x, grad), gradients(layer, x, grad), strict=True):
            torch.testing.assert_close(a, e)


def test_functional_gradient():
    dense, ours, x, grad = conv_pair("plain", torch.float64, kept=0.3)
    actual = torch.func.grad(lambda x: (ours(x) * grad).sum())(x)
    expected = gradients(dense, x, masked(grad, oracle_channels(grad, 0.3, -3), -3))[0]
    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-12)


def test_from_conv_shares_everything():
    conv = nn.Conv2d(3, 4, 3, padding="same", padding_mode="circular")
    seen = []
    conv.register_forward_hook(lambda *_: seen.append(1))
    ours = SSPropConv2d.from_conv(conv, kept=0.5)
    assert ours.weight is conv.weight and ours.bias is conv.bias
    assert list(ours.state_dict()) == ["weight", "bias"]
    ours(torch.randn(1, 3, 5, 5))
    assert seen == [1] and type(conv) is nn.Conv2d
    nn.Conv2d(3, 4, 3).load_state_dict(ours.state_dict())
    SSPropConv2d(3, 4, 3).load_state_dict(conv.state_dict())


def test_errors_name_both_values():
    with pytest.raises(ValueError, match=r"expected kept in \(0, 1\], got 0"):
        SSPropConv2d(3, 4, 3, kept=0)
    layer = SSPropLinear(3, 4)
    with pytest.raises(ValueError, match=r"expected kept in \(0, 1\], got 1.5"):
        layer.kept = 1.5
    assert layer.kept == 0.2
    with pytest.raises(TypeError, match=r"plain nn.Conv2d: Linear is not nn.Conv2d itself"):
        SSPropConv2d.from_conv(nn.Linear(3, 4))
    with pytest.raises(TypeError, match="NonDynamicallyQuantizableLinear is not"):
        SSPropLinear.from_linear(nn.MultiheadAttention(4, 2).out_proj)
    with pytest.raises(TypeError, match="a ssProp layer already"):
        SSPropLinear.from_linear(layer)
    with pytest.raises(ValueError, match=r"got nan"):
        layer.kept = float("nan")
