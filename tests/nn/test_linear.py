"""SparseLinear as nn.Linear: what it computes, where it stays dense, what it refuses."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import evoprune_kernels as ek
from tests.nn.layers import PATTERNS, assert_runs_sparse, make, truth
from tests.tolerance import assert_accurate

pytestmark = pytest.mark.filterwarnings("ignore:a packed layer runs dense:UserWarning")


def test_from_linear_keeps_parameters_and_prunes_them():
    linear = nn.Linear(64, 48)
    weight, bias, before = linear.weight, linear.bias, linear.weight.detach().clone()
    layer = ek.SparseLinear.from_linear(linear, "2:4")
    assert layer.weight is weight and layer.bias is bias and isinstance(layer, nn.Linear)
    keep = ek.ops.select_nm(before.abs(), 2, 4)
    assert torch.equal(layer.weight, before * keep)
    assert layer.state_dict().keys() == linear.state_dict().keys()


def test_a_weight_that_obeys_the_pattern_is_not_written():
    linear = nn.Linear(64, 48)
    with torch.no_grad():
        linear.weight.mul_(ek.ops.select_nm(torch.rand(48, 64), 2, 4))
    version, before = linear.weight._version, linear.weight.detach().clone()
    layer = ek.SparseLinear.from_linear(linear, "2:4")
    assert linear.weight._version == version and torch.equal(layer.weight, before)


def test_given_mask():
    linear = nn.Linear(8, 4)
    before = linear.weight.detach().clone()
    mask = torch.tensor([1, 0, 0, 1, 0, 1, 1, 0], dtype=torch.bool).expand(4, 8)
    layer = ek.SparseLinear.from_linear(linear, "2:4", mask)
    assert torch.equal(layer.weight, before * mask)


def test_trains_exactly_as_nn_linear():
    layer = make()
    plain = nn.Linear(64, 48)
    plain.load_state_dict(layer.state_dict())
    x, y = torch.randn(8, 64, requires_grad=True), torch.randn(8, 64, requires_grad=True)
    with torch.no_grad():
        y.copy_(x)
    layer(x).square().sum().backward()
    plain(y).square().sum().backward()
    for ours, theirs in [(x, y), (layer.weight, plain.weight), (layer.bias, plain.bias)]:
        assert torch.equal(ours.grad, theirs.grad)
    layer.eval()
    assert torch.equal(layer(x), plain(y))  # gradients are enabled: dense
    layer(x).sum().backward()


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("shape", [(64,), (3, 64), (2, 5, 64), (0, 64), (130, 64)], ids=str)
def test_eval_runs_the_kernel(pattern, dtype, shape):
    layer = make(pattern, dtype=dtype).eval()
    assert_runs_sparse(layer, torch.randn(shape, dtype=dtype))


@pytest.mark.parametrize("pattern", PATTERNS)
def test_odd_sizes_and_no_bias(pattern):
    layer = make(pattern, inputs=61, outputs=35, bias=False).eval()
    assert_runs_sparse(layer, torch.randn(7, 61))
    assert_runs_sparse(layer, torch.randn(61, 7).t())


@pytest.mark.parametrize(
    "activation, function", [("relu", F.relu), ("gelu", F.gelu), ("silu", F.silu)]
)
def test_fused_activation(activation, function):
    layer = make(activation=activation)
    x = torch.randn(9, 64)
    dense = function(F.linear(x, layer.weight, layer.bias))
    assert torch.equal(layer(x), dense)
    with torch.no_grad():
        assert_accurate(layer.eval()(x), function(truth(layer, x)), dense)


def test_repr_tells_pattern_density_and_kernel():
    layer = make()
    assert "pattern=2:4, density=0.50, kernel=dense (in training mode)" in repr(layer)
    assert "kernel=nm_linear [" in repr(layer.eval())
    assert "in_features=64, out_features=48, bias=True" in repr(layer)
    layer.stay_dense("slower here")
    assert "kernel=dense (slower here)" in repr(layer)


# ---- where it is dense, and errors ----


def test_weight_off_the_pattern_is_dense_in_forward_and_an_error_in_pack():
    layer = make()
    with torch.no_grad():
        layer.weight[3, 8:12] = torch.tensor([1.0, 2.0, 0.0, 3.0])
        layer.weight[5, 0:4] = 1.0
    layer.eval()
    x = torch.randn(2, 64)
    with torch.no_grad():
        assert torch.equal(layer(x), F.linear(x, layer.weight, layer.bias))
    assert "2 of 768 groups keep more than 2" in layer.dense_reason
    layer.layer_name = "decoder.fc1"
    with pytest.raises(
        ValueError, match=r"decoder.fc1: weight does not obey 2:4.*first at \[3, 8:12\] keeps 3"
    ):
        layer.pack()


def test_a_dense_weight_is_not_run_as_sparse():
    layer = ek.SparseLinear(64, 48, pattern="4:4").eval()
    assert layer.kernel is None and "nothing to skip" in layer.dense_reason


def test_nan_is_an_error_naming_the_layer():
    layer = make(name="encoder.0").eval()
    with torch.no_grad():
        layer.weight[2, 7] = float("nan")
        with pytest.raises(
            ValueError, match=r"encoder.0: weight holds 1 NaN, the first at \[2, 7\]"
        ):
            layer(torch.randn(1, 64))
    with pytest.raises(ValueError, match=r"encoder\.0"):
        layer.pack()
    with torch.no_grad():
        layer.weight[2, 7] = 0
    assert_runs_sparse(layer, torch.randn(1, 64))


@pytest.mark.parametrize("mode", ["train", "eval"])
def test_input_errors_name_the_layer_and_both_values(mode):
    layer = make(name="encoder.0")
    layer.train(mode == "train")
    with torch.no_grad():
        with pytest.raises(
            ValueError, match=r"encoder.0: expected an input of shape \[..., 64\], got \[2, 60\]"
        ):
            layer(torch.randn(2, 60))
        with pytest.raises(ValueError, match=r"\[..., 64\], got \[\]"):
            layer(torch.tensor(1.0))
        with pytest.raises(
            TypeError, match=r"encoder.0: .*torch.float32 \(the weight's\), got torch.bfloat16"
        ):
            layer(torch.randn(2, 64).bfloat16())


@pytest.mark.parametrize(
    "arguments, error, message",
    [
        ({"pattern": "2-4"}, ValueError, "2-4"),
        ({"pattern": "channel"}, ValueError, "channel"),
        ({"pattern": "2:4", "sparsity": 0.75}, ValueError, "sparsity 0.5, got sparsity=0.75"),
        ({"pattern": "block:16x16", "sparsity": 1.5}, ValueError, "got 1.5"),
        ({"activation": "tanh"}, ValueError, "tanh"),
        ({"mask": torch.ones(48, 64)}, TypeError, "encoder.0: .*torch.bool, got torch.float32"),
        (
            {"mask": torch.ones(48, 60, dtype=torch.bool)},
            ValueError,
            r"encoder.0: .*\(48, 64\), got \(48, 60\)",
        ),
        (
            {"mask": torch.ones(48, 64, dtype=torch.bool)},
            ValueError,
            r"encoder.0: .*first at \[0, 0:4\] keeps 4",
        ),
        (
            {"pattern": "block:16x16", "mask": torch.rand(48, 64) > 0.5},
            ValueError,
            r"encoder.0: .*kept in part",
        ),
    ],
)
def test_bad_arguments_change_nothing(arguments, error, message):
    linear = nn.Linear(64, 48)
    before = linear.weight.detach().clone()
    with pytest.raises(error, match=message):
        ek.SparseLinear.from_linear(linear, name="encoder.0", **arguments)
    assert torch.equal(linear.weight, before)


def test_only_linear_is_taken():
    with pytest.raises(TypeError, match="Conv2d"):
        ek.SparseLinear.from_linear(nn.Conv2d(1, 1, 1))
