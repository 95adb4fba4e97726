"""SparseConv2d: drop-in for nn.Conv2d, masks, folding, fallbacks with their reasons, the path of other devices."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import evoprune_kernels as ek
from evoprune_kernels.nn.sparse_conv import SparseConv2d, folded
from evoprune_kernels.ops.prepare import bind

PATTERNS = ("2:4", "2:4v16", "block:16x16")


def layer_and_truth(pattern="2:4", activation=None, **sizes):
    conv = nn.Conv2d(16, 32, 3, **sizes)
    sparsity = 0.5 if pattern.startswith("block") else None
    layer = SparseConv2d.from_conv(conv, pattern, sparsity=sparsity, activation=activation)
    return layer.eval(), conv


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize(
    "sizes",
    [{"padding": 1}, {"stride": 2}, {"padding": "same", "dilation": 2}, {"padding": "valid"}],
)
def test_matches_the_dense_layer(pattern, sizes):
    layer, conv = layer_and_truth(pattern, **sizes)
    assert layer.weight is conv.weight and layer.kernel is not None
    assert float((layer.weight != 0).float().mean()) == 0.5
    x = torch.randn(2, 16, 9, 7)
    with torch.no_grad():
        torch.testing.assert_close(layer(x), conv(x))
        torch.testing.assert_close(layer(x[0]), conv(x[0]))  # without a batch


def test_the_pattern_runs_along_the_flattened_weight():
    layer, _ = layer_and_truth("2:4")
    groups = (layer.weight != 0).reshape(32, -1, 4).sum(-1)
    assert groups.unique().tolist() == [2]


def test_masks_as_the_optimizer_makes_them():
    conv = nn.Conv2d(8, 16, 3)
    prune = ek.PruneConfig("2:4", importance="magnitude", start=1, end=1)
    groups = ek.optim.prunable_groups(nn.Sequential(conv), prune, convolutions=True)
    optimizer = ek.optim.AdamW(groups, lr=1e-3)
    for _ in range(2):
        optimizer.zero_grad()
        conv(torch.randn(2, 8, 6, 6)).square().mean().backward()
        optimizer.step()
    before = conv.weight.detach().clone()
    layer = SparseConv2d.from_conv(conv, "2:4").eval()
    assert torch.equal(layer.weight, before) and layer.kernel is not None


def test_a_given_mask():
    keep = torch.zeros(16, 16, 1, 1, dtype=torch.bool)
    keep[:, :8] = True
    conv = nn.Conv2d(16, 16, 1)
    layer = SparseConv2d.from_conv(conv, "block:16x8", keep).eval()
    assert torch.equal(layer.weight != 0, keep) and layer.stored_percent == 50
    with pytest.raises(ValueError, match="does not obey 2:4"):
        SparseConv2d.from_conv(nn.Conv2d(16, 16, 1), "2:4", keep)


def test_training_is_that_of_the_dense_layer():
    layer, conv = layer_and_truth(padding=1, activation="relu")
    layer.train()
    x = torch.randn(2, 16, 5, 5)
    layer(x).sum().backward()
    grad, conv.weight.grad = conv.weight.grad, None
    F.relu(conv(x)).sum().backward()
    assert torch.equal(grad, conv.weight.grad)


def test_state_dict_is_that_of_the_dense_layer():
    layer, conv = layer_and_truth()
    fresh = SparseConv2d(16, 32, 3, pattern="2:4").eval()
    fresh.load_state_dict(conv.state_dict())
    x = torch.randn(1, 16, 6, 6)
    with torch.no_grad():
        assert torch.equal(fresh(x), layer(x))
        for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
            assert other.kernel is not None and torch.equal(other(x), layer(x))
        assert torch.equal(layer.to_dense()(x), conv(x))
    assert set(layer.state_dict()) == {"weight", "bias"}


def test_a_changed_weight_is_packed_anew():
    layer, conv = layer_and_truth()
    x = torch.randn(1, 16, 6, 6)
    with torch.no_grad():
        before = layer(x)
        layer.weight.mul_(2)
        torch.testing.assert_close(layer(x), conv(x))
        assert not torch.equal(layer(x), before)


@pytest.mark.parametrize(
    "activation, act", [(None, nn.Identity()), ("relu", nn.ReLU()), ("silu", nn.SiLU())]
)
def test_batch_norm_is_folded(activation, act):
    conv, bn = nn.Conv2d(16, 32, 3, bias=False), nn.BatchNorm2d(32)
    with torch.no_grad():
        for each in (bn.weight, bn.running_var):
            each.uniform_(0.5, 2)
        bn.bias.normal_(), bn.running_mean.normal_()
    model = nn.Sequential(conv, bn, act).eval()
    dense = copy.deepcopy(model).double()
    SparseConv2d.from_conv(conv, "2:4")  # prunes conv in place
    layer = SparseConv2d.from_conv(conv, "2:4", bn=bn, activation=activation).eval()
    dense[0].weight.data.copy_(conv.weight)
    x = torch.randn(2, 16, 7, 7)
    with torch.no_grad():
        torch.testing.assert_close(layer(x), dense(x.double()).float())
    assert layer.weight is not conv.weight and conv.bias is None


def test_folding_needs_statistics_and_eval():
    conv = nn.Conv2d(4, 4, 1).eval()
    with pytest.raises(ValueError, match="eval mode"):
        folded(conv, nn.BatchNorm2d(4))
    with pytest.raises(ValueError, match="running statistics"):
        folded(conv, nn.BatchNorm2d(4, track_running_stats=False).eval())


@pytest.mark.parametrize(
    "sizes, pattern, reason",
    [
        ({"groups": 2}, "2:4", "groups=1, got 2"),
        ({"padding": 1, "padding_mode": "reflect"}, "2:4", "padding_mode='reflect'"),
        ({"padding": "same", "dilation": (1, 1), "kernel_size": 2}, "2:4", "uneven"),
        ({}, "unstructured", "no convolution op for the pattern unstructured"),
        ({}, "2:8", "take 1:4, 2:4 and n:mv16, got 2:8"),
        ({"dtype": torch.float64}, "2:4", "take float32 or bfloat16, the weight is float64"),
    ],
)
def test_what_stays_dense_says_why(sizes, pattern, reason):
    conv = nn.Conv2d(16, 32, **{"kernel_size": 3, **sizes})
    layer = SparseConv2d.from_conv(conv, pattern).eval()
    assert layer.kernel is None and reason in layer.dense_reason and reason in repr(layer)
    x = torch.randn(1, 16, 6, 6, dtype=conv.weight.dtype)
    with torch.no_grad():
        assert torch.equal(layer(x), conv(x))


def test_refusals():
    layer, _ = layer_and_truth()
    with torch.no_grad():
        with pytest.raises(ValueError, match=r"\[B, 16, H, W\].*got \[1, 8, 5, 5\]"):
            layer(torch.zeros(1, 8, 5, 5))
        with pytest.raises(TypeError, match=r"float32 .*got torch\.bfloat16"):
            layer(torch.zeros(1, 16, 5, 5).bfloat16())
    with pytest.raises(ValueError, match="got 'w8a8'"):
        SparseConv2d(16, 16, 1, stored="w8a8")
    with pytest.raises(TypeError, match=r"nn\.Conv2d, got Linear"):
        SparseConv2d.from_conv(nn.Linear(4, 4))


def test_autocast_and_bfloat16():
    layer, conv = layer_and_truth(padding=1)
    x = torch.randn(1, 16, 6, 6)
    with torch.no_grad():
        expected = conv(x)
        with torch.autocast("cpu", torch.bfloat16):
            y = layer(x)
        assert y.dtype == torch.bfloat16
        torch.testing.assert_close(y.float(), expected, rtol=2e-2, atol=2e-2)
        y = layer.bfloat16()(x.bfloat16())
    assert layer.kernel is not None and y.dtype == torch.bfloat16
    torch.testing.assert_close(y.float(), expected, rtol=3e-2, atol=3e-2)


@pytest.mark.parametrize(
    "sizes", [{"padding": 1}, {"stride": 2, "dilation": 2}, {"kernel_size": 1, "stride": 2}]
)
@pytest.mark.parametrize("pattern", PATTERNS)
def test_unfolded_columns_times_a_linear_kernel(pattern, sizes, monkeypatch):
    """What runs on a GPU, with the CPU's linear kernels in the place of the GPU's."""
    conv = nn.Conv2d(16, 32, **{"kernel_size": 3, **sizes})
    sparsity = 0.5 if pattern.startswith("block") else None
    monkeypatch.setattr(SparseConv2d, "_bind", lambda self, packed: bind(packed, self.activation))
    layer = SparseConv2d.from_conv(conv, pattern, sparsity=sparsity).eval()
    x = torch.randn(2, 16, 9, 7)
    with torch.no_grad():
        y = layer._run_unfolded(layer._plan, x, layer.bias)
        torch.testing.assert_close(y, conv(x))


def test_compiles():
    layer, conv = layer_and_truth(padding=1, activation="relu")
    x = torch.randn(2, 16, 9, 7)
    with torch.no_grad():
        compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
        torch.testing.assert_close(compiled(x), F.relu(conv(x)))
