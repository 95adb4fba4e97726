"""The packed weight of SparseLinear is never a stale one, never saved, and follows every conversion."""

from __future__ import annotations

import copy
import io
import pickle

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import evoprune_kernels as ek
from tests.nn.layers import assert_runs_sparse, make, rotate

pytestmark = pytest.mark.filterwarnings("ignore:a packed layer runs dense:UserWarning")


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
