"""GateNorm2d and fuse_gate_norm_: the same function, gradients and state as the layers apart, and back."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from evoprune_kernels.nn import (
    GatedConv2d,
    GateNorm2d,
    compact,
    fuse_gate_norm_,
    gate_model_,
    gates_of,
    unfuse_gate_norm_,
)
from evoprune_kernels.nn.gate_norm import FusedReLU, UngatedConv2d
from tests.nn.gated_models import DenseNet, ResNet, mobilenet, vgg


def gated(build, dynamic=False):
    """Batch norms away from the identity, a third of the gates closed; dynamic ones by the sample."""
    torch.manual_seed(3)
    model = build()
    gate_model_(model, dynamic=dynamic)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                for tensor in (module.weight, module.bias, module.running_mean):
                    tensor.normal_()
                module.running_var.uniform_(0.5, 1.5)
        for gate in gates_of(model).values():
            if dynamic:
                gate.out_weight.normal_()
                gate.out_bias.fill_(0.3)
            else:
                gate.theta.uniform_(-1, 2)
    return model


def trained(model, x, steps=2):
    """Outputs of a few steps of SGD, and the gradients of the last."""
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    outputs = []
    for _ in range(steps):
        optimizer.zero_grad()
        outputs.append(model(x))
        outputs[-1].square().mean().backward()
        optimizer.step()
    return outputs, {name: p.grad for name, p in model.named_parameters()}


def chain(*more):
    return nn.Sequential(GatedConv2d(3, 6, 3), nn.BatchNorm2d(6), *more)


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("build", [ResNet, vgg, mobilenet])
def test_trains_as_the_layers_apart(build, dynamic):
    apart = gated(build, dynamic).double().train()
    fused = copy.deepcopy(apart)
    x = torch.randn(6, 3, 8, 8, dtype=torch.float64)
    report = fuse_gate_norm_(fused, x)
    assert report.fused and fused.training
    (want, want_grads), (got, got_grads) = trained(apart, x), trained(fused, x)
    torch.testing.assert_close(got, want)
    assert want_grads.keys() == got_grads.keys()
    torch.testing.assert_close(got_grads, want_grads)
    torch.testing.assert_close(fused.state_dict(), apart.state_dict())  # counters, statistics
    torch.testing.assert_close(fused.eval()(x), apart.eval()(x))


def test_what_is_fused():
    model = nn.Sequential(
        *(GatedConv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(inplace=True)),
        *(GatedConv2d(4, 5, 3), nn.BatchNorm2d(5), nn.ReLU6()),
        *(GatedConv2d(5, 4, 1), nn.ReLU()),
    )
    report = fuse_gate_norm_(model, torch.randn(2, 3, 9, 9))
    assert report.fused == {"0": ("1", "2"), "3": ("4",)}
    assert report.kept == {
        "3": "fused without a ReLU: what follows is not a ReLU: _5",
        "6": "what follows is not a BatchNorm2d: _7",
    }
    kinds = [type(m) for m in model]
    assert kinds[:3] == [UngatedConv2d, GateNorm2d, FusedReLU]
    assert kinds[3:] == [UngatedConv2d, GateNorm2d, nn.ReLU6, GatedConv2d, nn.ReLU]
    assert model[1].relu and not model[4].relu


def test_a_shared_relu_stays():
    model = gated(ResNet)
    report = fuse_gate_norm_(model, torch.randn(2, 3, 8, 8))
    block = model.layers[0]
    assert type(block.bn1) is GateNorm2d and not block.bn1.relu and type(block.relu) is nn.ReLU
    assert "called at several places" in report.kept["layers.0.conv1"]


def test_layers_used_twice_stay():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.norm = (
                GatedConv2d(3, 3, 1),
                GatedConv2d(3, 3, 1),
                nn.BatchNorm2d(3),
            )
            self.c = GatedConv2d(3, 3, 1)

        def forward(self, x):
            c = self.c(x)
            return self.norm(self.a(self.a(x))) + self.norm(self.b(x)) + c + F.relu(c)

    report = fuse_gate_norm_(model := Twice().eval(), torch.randn(2, 3, 4, 4))
    assert report.fused == {}
    assert report.kept == {
        "a": "torch.fx sees it called 2 times in a forward",
        "b": "the BatchNorm2d behind it is called at several places: norm",
        "c": "its output is used 2 times",
    }
    assert type(model.a) is GatedConv2d


def test_state_dicts_go_both_ways():
    apart = gated(vgg).eval()
    fused = gated(vgg).eval()
    keys = list(apart.state_dict())
    x = torch.randn(2, 3, 8, 8)
    fuse_gate_norm_(fused, x)
    assert list(fused.state_dict()) == keys
    with torch.no_grad():
        for parameter in apart.parameters():
            parameter.add_(0.1)
    assert not torch.equal(apart(x), fused(x))
    fused.load_state_dict(apart.state_dict(), strict=True)
    torch.testing.assert_close(fused(x), apart(x))
    vgg_again = gated(vgg).eval()
    vgg_again.load_state_dict(fused.state_dict(), strict=True)
    assert torch.equal(vgg_again(x), apart(x))


@pytest.mark.parametrize("build", [ResNet, vgg, mobilenet])
def test_unfuse_is_the_inverse(build):
    model = gated(build).eval()
    x = torch.randn(2, 3, 8, 8)
    before = model(x)
    kinds = [(name, type(m)) for name, m in model.named_modules()]
    parameters = [id(p) for p in model.parameters()]
    report = fuse_gate_norm_(model, x)
    assert unfuse_gate_norm_(model) == len(report.fused)
    assert [(name, type(m)) for name, m in model.named_modules()] == kinds
    assert [id(p) for p in model.parameters()] == parameters
    assert torch.equal(model(x), before)
    assert not any({"gates", "relu", "_sources"} & m.__dict__.keys() for m in model.modules())


@pytest.mark.parametrize("build", [ResNet, vgg, mobilenet])
def test_compact_takes_a_fused_model(build):
    model = gated(build).eval()
    x = torch.randn(2, 3, 8, 8)
    expected, want = compact(model, x)
    fuse_gate_norm_(model, x)
    small, report = compact(model, x)
    assert report.removed == want.removed and report.parameters == want.parameters
    assert torch.equal(small(x), expected(x))
    assert type(next(m for m in model.modules() if isinstance(m, GatedConv2d))) is UngatedConv2d


def test_copies_and_pickles_are_models_of_their_own():
    model = gated(vgg).train()
    x = torch.randn(4, 3, 8, 8)
    fuse_gate_norm_(model, x)
    model[0](x)  # gates with a graph lie about
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert other[1]._sources[0] is other[0] and other[0] is not model[0]
        torch.testing.assert_close(other.eval()(x), copy.deepcopy(model).eval()(x))


def test_compiles_as_one_graph():
    model = chain(nn.ReLU()).train()
    model[0].gate.theta.data[::2] = -1.0
    x = torch.randn(4, 3, 6, 6)
    fuse_gate_norm_(model, x)
    other = copy.deepcopy(model)
    compiled = torch.compile(other, backend="aot_eager", fullgraph=True)
    want, got = model(x), compiled(x)
    torch.testing.assert_close(got, want)
    want.square().sum().backward()
    got.square().sum().backward()
    for mine, theirs in zip(model.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(theirs.grad, mine.grad)
    torch.testing.assert_close(dict(other.named_buffers()), dict(model.named_buffers()))


def test_narrow_activations():
    model = gated(lambda: nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU()))
    x = torch.randn(4, 3, 6, 6)
    fuse_gate_norm_(model, x)
    with torch.autocast("cpu", torch.bfloat16):
        y = model(x)
    y.float().sum().backward()
    assert y.dtype == torch.bfloat16 and model[0].gate.theta.grad.isfinite().all()


# ---- GateNorm2d alone ----
@pytest.mark.parametrize("momentum", [0.1, None])
@pytest.mark.parametrize("track", [True, False])
@pytest.mark.parametrize("affine", [True, False])
def test_the_norm_is_torchs(momentum, track, affine):
    options = {"momentum": momentum, "track_running_stats": track, "affine": affine}
    mine, theirs = GateNorm2d(4, **options), nn.BatchNorm2d(4, **options)
    gates = torch.tensor([1.0, 0.0, 0.5, 1.0])
    for training in (True, True, False):
        x = torch.randn(3, 4, 5, 5)
        y = mine.train(training)(x, gates)
        torch.testing.assert_close(y, theirs.train(training)(x * gates.view(-1, 1, 1)))
    torch.testing.assert_close(mine.state_dict(), theirs.state_dict())


def test_gates_serve_once():
    model = chain().train()
    fuse_gate_norm_(model, torch.randn(2, 3, 6, 6))
    y = model(torch.randn(2, 3, 6, 6))
    with pytest.raises(RuntimeError, match="got no gates: expected them as an argument"):
        model[1](y)
    with pytest.raises(RuntimeError, match="got no gates"):
        GateNorm2d(6)(y)


class Branch(nn.Module):
    """Control flow that depends on data."""

    def __init__(self, inside=None):
        super().__init__()
        self.inside = inside or nn.Identity()

    def forward(self, x):
        return self.inside(x) if x.sum() > 0 else -x


def test_what_cannot_be_traced_stays_whole():
    inside = nn.Sequential(GatedConv2d(6, 6, 3), nn.BatchNorm2d(6))
    model = chain(Branch(), Branch(inside))
    report = fuse_gate_norm_(model, torch.randn(1, 3, 8, 8))
    assert report.fused == {"0": ("1",)}
    assert report.kept["3.inside.0"] == "torch.fx sees it called 0 times in a forward"


def test_errors_leave_the_model_as_it_was():
    with pytest.raises(
        ValueError, match="expected a model with GatedConv2d, got none in Sequential"
    ):
        fuse_gate_norm_(nn.Sequential(nn.Conv2d(3, 3, 1)), torch.zeros(1, 3, 2, 2))
    with pytest.raises(ValueError, match="model is itself a GatedConv2d"):
        fuse_gate_norm_(GatedConv2d(3, 3, 1), torch.zeros(1, 3, 2, 2))
    model = chain()
    with pytest.raises(RuntimeError):
        fuse_gate_norm_(model, torch.zeros(1, 7, 8, 8))
    assert [type(m) for m in model] == [GatedConv2d, nn.BatchNorm2d]

    with pytest.raises(ValueError, match=r"torch\.fx cannot trace Branch"):
        fuse_gate_norm_(Branch(chain()), torch.zeros(1, 3, 8, 8))
    with pytest.raises(ValueError, match="model is itself a GateNorm2d"):
        unfuse_gate_norm_(GateNorm2d(3))
    with pytest.raises(TypeError, match=r"expected an nn\.BatchNorm2d, got BatchNorm1d"):
        GateNorm2d.from_norm(nn.BatchNorm1d(3))


def test_a_model_that_has_nothing_to_fuse():
    model = DenseNet()
    gate_model_(model)
    report = fuse_gate_norm_(model, torch.randn(1, 3, 8, 8))
    assert report.fused == {} and set(report.kept) == {"a", "b", "c"}
