"""SparseLinear under autocast, inference mode, torch.func, torch.compile and torch.export."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from tests.nn.layers import PATTERNS, assert_runs_sparse, make, rotate, truth
from tests.tolerance import assert_accurate

pytestmark = pytest.mark.filterwarnings("ignore:a packed layer runs dense:UserWarning")


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
    assert_runs_sparse(layer, x)


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
