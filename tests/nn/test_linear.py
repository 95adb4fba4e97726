"""SparseLinear: the same as nn.Linear while it trains, the packed weight in eval mode, never a stale one."""

from __future__ import annotations

import copy
import io
import pickle

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import evoprune_kernels as ek
from evoprune_kernels import _select
from evoprune_kernels.ops import OPS
from tests.tolerance import assert_accurate

OP_OF = {
    "2:4": "nm_linear",
    "1:4": "nm_linear",
    "block:16x16": "block_linear",
    "unstructured": "bitmask_linear",
}
PATTERNS = [pattern for pattern, op in OP_OF.items() if op in OPS]

pytestmark = pytest.mark.filterwarnings("ignore:a packed layer runs dense:UserWarning")


@pytest.fixture(autouse=True)
def _kernels(monkeypatch):
    """Where an op has no native kernel the same logic runs on its reference."""
    names = [op.name for op in OPS.values() if op.name.endswith("_linear") and op.reasons()]
    monkeypatch.setattr(_select, "FORCED", dict.fromkeys(names, _select.REFERENCE))


def make(pattern="2:4", inputs=64, outputs=48, bias=True, dtype=torch.float32, **options):
    linear = nn.Linear(inputs, outputs, bias=bias, dtype=dtype)
    sparsity = None if ":" in pattern and not pattern.startswith("block") else 0.75
    return ek.SparseLinear.from_linear(linear, pattern, sparsity=sparsity, **options)


def truth(layer, x):
    bias = None if layer.bias is None else layer.bias.double()
    return F.linear(x.double(), layer.weight.double(), bias)


def assert_runs_sparse(layer, x):
    assert layer.kernel is not None, layer.dense_reason
    with torch.no_grad():
        assert_accurate(layer(x), truth(layer, x), F.linear(x, layer.weight, layer.bias))


# ---- the layer as nn.Linear ---------------------------------------------------------------------------------------


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


# ---- the cache -----------------------------------------------------------------------------------------------------


def rotate(layer):
    """Another weight of the same pattern."""
    return layer.weight.detach().roll(4, dims=1) * 2


def in_place(layer):
    with torch.no_grad():
        layer.weight.copy_(rotate(layer))


def load(layer):
    layer.load_state_dict({"weight": rotate(layer), "bias": layer.bias.detach() + 1})


def assign(layer):
    layer.load_state_dict({"weight": rotate(layer), "bias": layer.bias.detach()}, assign=True)


def new_parameter(layer):
    layer.weight = nn.Parameter(rotate(layer))


def set_data(layer):
    layer.weight.data = rotate(layer)


def through_training(layer):
    layer.train()
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    layer(torch.randn(4, 64)).square().sum().backward()
    layer.weight.grad.mul_(layer.weight != 0)
    optimizer.step()
    layer.eval()


def step_in_eval_mode(layer):
    layer(torch.randn(4, 64)).square().sum().backward()
    layer.weight.grad.mul_(layer.weight != 0)
    torch.optim.AdamW(layer.parameters(), lr=0.1, fused=True, weight_decay=0).step()


CHANGES = [in_place, load, assign, new_parameter, set_data, through_training, step_in_eval_mode]


@pytest.mark.parametrize("change", CHANGES, ids=lambda f: f.__name__)
def test_never_a_stale_weight(change):
    layer, x = make().eval(), torch.randn(5, 64)
    with torch.no_grad():
        before = layer(x)
    change(layer)
    with torch.no_grad():
        assert not torch.equal(layer(x), before)
    assert_runs_sparse(layer, x)


@pytest.mark.parametrize(
    "copier", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))], ids=["deepcopy", "pickle"]
)
def test_copies_are_independent(copier):
    layer, x = make(activation="relu").eval(), torch.randn(5, 64)
    twin = copier(layer)
    assert twin.kernel == layer.kernel and twin.activation == "relu" and str(twin.pattern) == "2:4"
    with torch.no_grad():
        expected = layer(x)
        assert torch.equal(twin(x), expected)
        twin.weight.zero_()
        assert torch.equal(layer(x), expected)
        assert torch.equal(twin(x), F.relu(twin.bias).expand(5, -1))


def test_whole_module_torch_save():
    layer, file = make().eval(), io.BytesIO()
    torch.save(layer, file)
    file.seek(0)
    assert_runs_sparse(torch.load(file, weights_only=False), torch.randn(3, 64))


def test_dtype_conversions():
    layer = make().eval()
    assert_runs_sparse(layer.bfloat16(), torch.randn(3, 64).bfloat16())
    layer.half()
    assert layer.kernel is None and "float16" in layer.dense_reason
    x = torch.randn(3, 64).half()
    with torch.no_grad():
        assert torch.equal(layer(x), F.linear(x, layer.weight, layer.bias))
    assert_runs_sparse(layer.float(), torch.randn(3, 64))


def test_meta_device_is_dense_with_the_reason():
    layer = make().eval().to("meta")
    assert "'meta'" in layer.dense_reason and layer(torch.randn(2, 64, device="meta")).shape == (
        2,
        48,
    )


def test_train_drops_the_cache_and_nothing_of_it_is_saved():
    layer = make().eval()
    packed = [name for name, _ in layer.named_buffers()]
    assert packed and layer.packed_bytes > 0
    assert set(layer.state_dict()) == {"weight", "bias"}
    layer.train()
    assert not list(layer.named_buffers()) and layer.packed_bytes is None


def test_tied_weights():
    first = make(inputs=64, outputs=64).eval()
    second = ek.SparseLinear.from_linear(nn.Linear(64, 64), "2:4").eval()
    second.weight = first.weight
    x = torch.randn(2, 64)
    with torch.no_grad():
        first.weight.mul_(3)
    for layer in (first, second):
        assert_runs_sparse(layer, x)


# ---- where it is dense, and errors -----------------------------------------------------------------------------------


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
    assert_runs_sparse_after_forward(layer)


def assert_runs_sparse_after_forward(layer):
    with torch.no_grad():
        layer(torch.randn(1, 64))
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


# ---- modes and compilers ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("given", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("mode", ["train", "eval"])
def test_autocast_takes_any_float_and_gives_its_dtype(given, mode):
    layer, x = make(), torch.randn(4, 64).to(given)
    layer.train(mode == "train")
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        y = layer(x)
        dense = F.linear(x, layer.weight, layer.bias)
    assert_accurate(y, truth(layer, x), dense)


def test_inference_mode_and_a_layer_made_inside_it():
    layer, x = make().eval(), torch.randn(4, 64)
    with torch.inference_mode():
        inside = make().eval()
        assert_accurate(layer(x), truth(layer, x), F.linear(x, layer.weight, layer.bias))
        assert_accurate(inside(x), truth(inside, x), F.linear(x, inside.weight, inside.bias))
    assert_runs_sparse(layer, x)
    assert_runs_sparse(inside, x)


def test_frozen_weight_and_gradient_of_the_input():
    layer = make().eval().requires_grad_(False)
    x = torch.randn(3, 64)
    assert_accurate(
        layer(x), truth(layer, x), F.linear(x, layer.weight, layer.bias)
    )  # sparse, grad mode on
    x.requires_grad_()
    layer(x).sum().backward()
    assert torch.allclose(x.grad, layer.weight.sum(0).expand(3, -1), atol=1e-5)


def test_gradients_enabled_in_eval_mode_warn_that_it_is_dense():
    layer = make().eval()
    with pytest.warns(UserWarning, match=r"torch\.no_grad"):
        layer(torch.randn(1, 64))


def test_functional_call():
    layer, x = make().eval(), torch.randn(3, 64)
    other = {"weight": rotate(layer), "bias": layer.bias.detach()}
    with torch.no_grad():
        y = torch.func.functional_call(layer, other, (x,))
    assert torch.allclose(y, F.linear(x, other["weight"], other["bias"]), atol=1e-5)
    assert_runs_sparse_after_forward(layer)


def test_torch_func_grad_and_vmap():
    layer, x = make().eval(), torch.randn(3, 64)
    grad = torch.func.grad(lambda v: layer(v).sum())(x)
    assert torch.allclose(grad, layer.weight.sum(0).expand(3, -1), atol=1e-5)
    with torch.no_grad():
        assert torch.allclose(
            torch.vmap(layer)(x), F.linear(x, layer.weight, layer.bias), atol=1e-5
        )


class TwoLayers(nn.Module):
    def __init__(self, pattern="2:4"):
        super().__init__()
        self.up, self.down = make(pattern), make(pattern, inputs=48, outputs=64)

    def forward(self, x):
        return x + self.down(F.relu(self.up(x)))


@pytest.mark.parametrize("pattern", PATTERNS)
def test_compile_fullgraph(pattern):
    torch.compiler.reset()
    model, x = TwoLayers(pattern).eval(), torch.randn(5, 64)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    with torch.no_grad():
        expected = model(x)
        assert torch.equal(compiled(x), expected)
        assert torch.equal(compiled(x[:2]), model(x[:2]))


def test_compile_in_training():
    torch.compiler.reset()
    model, x = TwoLayers(), torch.randn(5, 64)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    compiled(x).sum().backward()
    compiled_grad = model.up.weight.grad.clone()
    model.zero_grad()
    model(x).sum().backward()
    assert torch.allclose(compiled_grad, model.up.weight.grad, atol=1e-6)


@pytest.mark.slow
def test_compile_with_inductor():
    torch.compiler.reset()
    model, x = TwoLayers().eval(), torch.randn(5, 64)
    with torch.no_grad():
        y = torch.compile(model, fullgraph=True)(x)
        assert torch.allclose(y, model(x), atol=1e-5)


@pytest.mark.parametrize("pattern", PATTERNS)
def test_export_and_run(pattern):
    model, x = TwoLayers(pattern).eval(), torch.randn(5, 64)
    with torch.no_grad():
        program = torch.export.export(
            model, (x,), dynamic_shapes=({0: torch.export.Dim("tokens", min=2)},)
        )
        targets = {str(node.target) for node in program.graph.nodes}
        assert any(f"{name}_linear" in t for t in targets for name in ("nm", "block", "bitmask"))
        assert torch.equal(program.module()(torch.cat([x, x])), model(torch.cat([x, x])))
