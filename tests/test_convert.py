"""convert and export: what is swapped, what is not and why, and that an error leaves the model as it was."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, prune

import evoprune_kernels as ek
from evoprune_kernels.nn import SparseConv1D


class Conv1D(nn.Module):
    """As in transformers: a linear layer with a transposed weight."""

    def __init__(self, nf, nx):
        super().__init__()
        self.nf, self.nx = nf, nx
        self.weight = nn.Parameter(torch.randn(nx, nf))
        self.bias = nn.Parameter(torch.randn(nf))

    def forward(self, x):
        return torch.addmm(self.bias, x.view(-1, x.size(-1)), self.weight).view(
            *x.shape[:-1], self.nf
        )


def mlp():
    return nn.Sequential(
        nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 64), nn.Linear(64, 16, bias=False)
    )


def snapshot(model):
    modules = {name: (id(m), type(m)) for name, m in model.named_modules()}
    weights = {name: (id(p), p.detach().clone()) for name, p in model.named_parameters()}
    return modules, weights


def assert_unchanged(model, before):
    modules, weights = snapshot(model)
    assert modules == before[0]
    for name, (identity, value) in weights.items():
        assert identity == before[1][name][0]
        assert torch.equal(value.nan_to_num(), before[1][name][1].nan_to_num())


def test_swaps_in_place_and_keeps_parameters_names_and_mode():
    model = mlp().eval()
    names = {name: id(p) for name, p in model.named_parameters()}
    report = ek.convert(model, "2:4")
    assert {name: id(p) for name, p in model.named_parameters()} == names
    assert list(report.swapped) == ["0", "2", "3"] and not report.skipped
    assert all(isinstance(model[i], ek.SparseLinear) and not model[i].training for i in (0, 2, 3))
    assert report.swapped["2"].shape == (64, 64) and report.swapped["2"].density == 0.5
    assert report.total_weights == report.swapped_weights == 32 * 64 + 64 * 64 + 64 * 16


@pytest.mark.parametrize(
    "pattern, sparsity", [("2:4", None), ("block:16x16", 0.5), ("unstructured", 0.9)]
)
def test_outputs_equal_the_masked_dense_model(pattern, sparsity):
    model, x = mlp().eval(), torch.randn(4, 32)
    ek.convert(model, pattern, sparsity=sparsity)
    dense = mlp().eval()
    dense.load_state_dict(model.state_dict())
    density = 1 - (0.5 if sparsity is None else sparsity)
    assert dense[2].weight.count_nonzero().item() == round(64 * 64 * density)
    with torch.no_grad():
        assert torch.allclose(model(x), dense(x), atol=1e-5)
    assert torch.equal(model.train()(x), dense(x))


@pytest.mark.parametrize(
    "filter",
    [lambda name, module: name != "2", ["0", "[3-9]"], "[03]"],
    ids=["function", "globs", "glob"],
)
def test_filter(filter):
    model = mlp()
    report = ek.convert(model, "2:4", filter=filter)
    assert list(report.swapped) == ["0", "3"] and report.skipped == {"2": "excluded by filter"}
    assert type(model[2]) is nn.Linear


@pytest.mark.parametrize("key", ["2", "2.weight", "parameter"])
def test_masks_say_what_is_pruned(key):
    model = mlp()
    before = model[2].weight.detach().clone()
    mask = ek.ops.select_nm(torch.rand(64, 64), 2, 4)
    report = ek.convert(model, "2:4", masks={model[2].weight if key == "parameter" else key: mask})
    assert list(report.swapped) == ["2"] and report.skipped["0"] == "no mask was given for it"
    assert torch.equal(model[2].weight, before * mask)


def test_zeros_that_are_there_are_the_mask_of_blocks():
    model = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 64))
    with torch.no_grad():
        model[0].weight[:32, 16:] = 0
    before = model[0].weight.detach().clone()
    report = ek.convert(model, "block:16x16")
    assert torch.equal(model[0].weight, before) and report.swapped["0"].density == 0.625
    assert report.skipped["1"] == "its weight is 100% dense: give sparsity or masks"


def test_what_is_not_swapped_and_why():
    class Special(nn.Linear):
        pass

    model = nn.ModuleDict(
        {
            "embedding": nn.Embedding(10, 32),
            "conv": nn.Conv2d(3, 4, 3),
            "subclass": Special(32, 32),
            "float64": nn.Linear(32, 32).double(),
            "small": nn.Linear(3, 8),
            "meta": nn.Linear(32, 32, device="meta"),
            "parametrized": parametrizations.weight_norm(nn.Linear(32, 32)),
            "pruned": prune.l1_unstructured(nn.Linear(32, 32), "weight", 0.5),
            "attention": nn.MultiheadAttention(32, 4),
            "norm": nn.LayerNorm(32),
            "replaced": nn.Linear(32, 32),
            "good": nn.Linear(32, 32),
        }
    )
    model["replaced"].forward = lambda x: x
    report = ek.convert(model, "2:4")
    assert list(report.swapped) == ["good"]
    expected = {
        "embedding": "Embedding is not a linear layer",
        "conv": "Conv2d is not",
        "subclass": "Special is a subclass",
        "float64": "torch.float64",
        "small": "8x3 is smaller than the 1x4 of 2:4",
        "meta": "no values",
        "parametrized": "remove_parametrizations",
        "pruned": "torch.nn.utils.prune",
        "attention.out_proj": "NonDynamicallyQuantizableLinear is a subclass",
        "replaced": "forward is replaced",
    }
    for name, reason in expected.items():
        assert reason in report.skipped[name], (name, report.skipped[name])
    assert "norm" not in report.skipped and "attention" in report.skipped
    assert ek.convert(model, "2:4").skipped["good"] == "already a SparseLinear (2:4)"
    for name in expected:
        assert f"  {name}: " in str(report)


# ---- ties and sharing ----


def test_tied_linears_get_one_mask_and_stay_tied():
    model = nn.Sequential(nn.Linear(32, 32), nn.Linear(32, 32))
    model[1].weight = model[0].weight
    report = ek.convert(model.eval(), "2:4")
    assert list(report.swapped) == ["0", "1"] and model[1].weight is model[0].weight
    assert report.swapped_weights == 32 * 32
    assert model[0].kernel == model[1].kernel


def test_weight_tied_to_an_embedding_is_left_alone():
    model = nn.ModuleDict(
        {"embed": nn.Embedding(16, 32), "body": nn.Linear(32, 32), "head": nn.Linear(32, 16)}
    )
    model["head"].weight = model["embed"].weight
    before = model["embed"].weight.detach().clone()
    report = ek.convert(model, "2:4")
    assert list(report.swapped) == ["body"] and "tied to 'embed'" in report.skipped["head"]
    assert (
        torch.equal(model["embed"].weight, before) and model["head"].weight is model["embed"].weight
    )


def test_weight_tied_to_a_filtered_layer_is_left_alone():
    model = nn.Sequential(nn.Linear(32, 32), nn.Linear(32, 32))
    model[1].weight = model[0].weight
    report = ek.convert(model, "2:4", filter="0")
    assert not report.swapped and "tied to '1'" in report.skipped["0"]


def test_tied_bias_does_not_matter():
    model = nn.Sequential(nn.Linear(32, 32), nn.Linear(32, 32))
    model[1].bias = model[0].bias
    assert len(ek.convert(model, "2:4").swapped) == 2 and model[1].bias is model[0].bias


def test_shared_module_is_swapped_everywhere():
    model = nn.Module()
    model.first = nn.Linear(32, 32)
    model.inner = nn.Sequential(model.first, nn.ReLU())
    report = ek.convert(model, "2:4")
    assert list(report.swapped) == ["first"] and model.inner[0] is model.first
    assert isinstance(model.first, ek.SparseLinear)


def test_hooks_move_along_and_can_be_removed():
    model, seen = mlp(), []
    handle = model[0].register_forward_hook(lambda module, args, output: seen.append(type(module)))
    ek.convert(model, "2:4")
    model(torch.randn(1, 32))
    assert seen == [ek.SparseLinear]
    handle.remove()
    model(torch.randn(1, 32))
    assert len(seen) == 1


# ---- Conv1D ----


def test_conv1d():
    model, x = nn.Sequential(Conv1D(48, 32), Conv1D(32, 48)).eval(), torch.randn(2, 5, 32)
    weight = model[0].weight
    report = ek.convert(model, "2:4")
    assert report.swapped["0"].kind == "Conv1D" and report.swapped["0"].shape == (48, 32)
    assert (
        isinstance(model[0], SparseConv1D)
        and model[0].weight is weight
        and weight.shape == (32, 48)
    )
    assert (weight.t().reshape(48, 8, 4) != 0).sum(-1).eq(2).all()
    dense = nn.Sequential(Conv1D(48, 32), Conv1D(32, 48))
    dense.load_state_dict(model.state_dict())
    with torch.no_grad():
        assert torch.allclose(model(x), dense(x), atol=1e-4)
    assert torch.equal(model.train()(x), dense(x))
    assert "nf=48, nx=32, pattern=2:4" in repr(model[0])
    twin = copy.deepcopy(model)
    assert type(ek.export(twin)[0]) is Conv1D and torch.equal(twin(x), dense(x))


def test_conv1d_mask_has_the_shape_of_its_weight():
    model = nn.Sequential(Conv1D(48, 32))
    before = model[0].weight.detach().clone()
    mask = ek.ops.select_nm(torch.rand(48, 32), 2, 4).t()
    ek.convert(model, "2:4", masks={"0": mask})
    assert torch.equal(model[0].weight, before * mask)


# ---- export ----


def test_export_gives_the_plain_model_back():
    model, x = mlp().eval(), torch.randn(3, 32)
    types = [type(m) for m in model]
    ek.convert(model, "2:4")
    parameters = [id(p) for p in model.parameters()]
    plain = ek.export(model)
    assert plain is model and [type(m) for m in model] == types
    assert [id(p) for p in model.parameters()] == parameters
    assert not list(model.buffers()) and set(vars(model[0])) == set(vars(nn.Linear(1, 1)))
    model(x)


def test_export_of_a_copy_and_of_one_layer():
    model = mlp()
    ek.convert(model, "2:4")
    plain = ek.export(model, inplace=False)
    assert type(plain[0]) is nn.Linear and type(model[0]) is ek.SparseLinear
    assert torch.equal(plain[0].weight, model[0].weight) and plain[0].weight is not model[0].weight
    assert type(ek.export(model[0])) is nn.Linear


def test_export_refuses_a_fused_activation_and_changes_nothing():
    model = mlp()
    ek.convert(model, "2:4")
    model[3] = ek.SparseLinear.from_linear(nn.Linear(64, 16), activation="gelu", name="3")
    before = snapshot(model)
    with pytest.raises(ValueError, match=r"3: .*'gelu'"):
        ek.export(model)
    assert_unchanged(model, before)


# ---- errors ----


def nan_weight(model):
    with torch.no_grad():
        model[2].weight[5, 6] = float("nan")
    return {}


CASES = {
    "nan": (nan_weight, ValueError, r"2: weight holds 1 NaN, the first at \[5, 6\]"),
    "pattern": (lambda m: {"pattern": "4:2"}, ValueError, "4:2"),
    "channel": (lambda m: {"pattern": "channel"}, ValueError, "channel"),
    "sparsity": (
        lambda m: {"pattern": "2:4", "sparsity": 0.9},
        ValueError,
        "sparsity 0.5, got sparsity=0.9",
    ),
    "glob": (lambda m: {"filter": "layers.*"}, ValueError, r"'layers\.\*'.*\['0', '2', '3'\]"),
    "mask-name": (lambda m: {"masks": {"7": torch.ones(2, 2)}}, ValueError, "'7'"),
    "mask-shape": (
        lambda m: {"masks": {"0": torch.zeros(64, 32).bool(), "3": torch.zeros(16, 60).bool()}},
        ValueError,
        r"3: expected a mask of shape \(16, 64\), got \(16, 60\)",
    ),
    "mask-dtype": (
        lambda m: {"masks": {"3": torch.zeros(16, 64)}},
        TypeError,
        r"3: .*torch.bool, got torch.float32",
    ),
    "mask-pattern": (
        lambda m: {"masks": {"3": torch.ones(16, 64).bool()}},
        ValueError,
        r"3: mask does not obey 2:4: 256 of 256 groups",
    ),
}


@pytest.mark.parametrize("case", CASES, ids=str)
def test_an_error_names_the_layer_and_converts_nothing(case):
    arrange, error, message = CASES[case]
    model = mlp().eval()
    arguments = arrange(model)
    before = snapshot(model)
    with pytest.raises(error, match=message):
        ek.convert(model, **{"pattern": "2:4", **arguments})
    assert_unchanged(model, before)


def test_a_bare_layer_is_refused_with_the_way_to_do_it():
    with pytest.raises(ValueError, match=r"SparseLinear\.from_linear"):
        ek.convert(nn.Linear(8, 8))
