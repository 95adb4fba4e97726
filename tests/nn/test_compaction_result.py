"""What ``compact`` returns is an ordinary module: memory formats, autocast, export, copies, checkpoints; its report."""

from __future__ import annotations

import copy
import io
import json
import pickle

import pytest
import torch
from torch import nn

from evoprune_kernels.nn import GatedBlock, GatedConv2d, collect_statistics, compact, gate_model_
from tests.nn.compacted import assert_same, compacted, trained
from tests.nn.gated_models import DenseLayers, ResNet, inverted, resnext
from tests.tolerance import assert_accurate

MODELS = [ResNet, DenseLayers, inverted, resnext]
X = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def gated(build, **options):
    torch.manual_seed(0)
    model = build()
    gate_model_(model, **options)
    return trained(model)


@pytest.mark.parametrize("build", MODELS)
def test_channels_last(build):
    model = gated(build).to(memory_format=torch.channels_last)
    x = X.to(memory_format=torch.channels_last)
    small, report = compacted(model, x)
    assert report.removed
    convs = [m for m in small.modules() if isinstance(m, nn.Conv2d)]
    assert all(c.weight.is_contiguous(memory_format=torch.channels_last) for c in convs)
    assert_same(model, small, torch.cat([x, x]).to(memory_format=torch.channels_last))
    assert_same(model, small, X[:, :, :6])
    seen = {}
    for name, m in (("gated", model), ("small", small)):
        layer = next(c for c in m.modules() if isinstance(c, nn.Conv2d))
        layer.register_forward_hook(lambda _, i, y, name=name: seen.update({name: y}))
        m(x)
    assert all(y.is_contiguous(memory_format=torch.channels_last) for y in seen.values())


@pytest.mark.parametrize("build", MODELS)
def test_autocast(build):
    model = gated(build)
    with torch.autocast("cpu", torch.bfloat16):
        small, report = compacted(model, X)  # compared in float32 all the same
        assert report.error < 1e-5
        with torch.no_grad():
            want, got = model(X), small(X)
    assert got.dtype == want.dtype == torch.bfloat16
    with torch.no_grad():
        assert_accurate(got, copy.deepcopy(model).double()(X.double()), want)


def test_a_model_in_bfloat16():
    model = gated(resnext).bfloat16()
    small, report = compacted(model, X.bfloat16())
    assert {p.dtype for p in small.parameters()} == {torch.bfloat16} and report.removed
    with torch.no_grad():
        truth = copy.deepcopy(model).double()(X.double())
        assert_accurate(small(X.bfloat16()), truth, model(X.bfloat16()))


def test_dynamic_gates_are_decided_and_gone():
    torch.manual_seed(0)
    model = ResNet()
    gate_model_(model, dynamic=True, gate_init=0.0)
    model.eval()
    with collect_statistics(model):
        model(torch.randn(16, 3, 8, 8))
    small, report = compacted(model, X)
    assert report.removed
    frozen = copy.deepcopy(model)
    for module in frozen.modules():
        if isinstance(module, GatedConv2d):
            module.gate.freeze()
    assert_same(frozen, small, X)


def block():
    return GatedBlock(nn.Sequential(GatedConv2d(4, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, 4, 1)))


@pytest.fixture
def blocks():
    model = trained(nn.Sequential(nn.Conv2d(3, 4, 1), block(), block(), nn.Conv2d(4, 2, 1)), 0.4)
    model[1].gate.freeze(torch.tensor([True]))
    model[2].gate.freeze(torch.tensor([False]))
    return model


def test_the_class_is_the_model_s_own(blocks):
    model = gated(ResNet)
    small, _ = compacted(model, X)
    assert type(small) is ResNet and small.forward.__func__ is ResNet.forward
    modules = {type(m).__module__ for m in small.modules()} - {ResNet.__module__}
    assert all(name.startswith("torch.nn.modules.") for name in modules)
    assert not any("gate" in name for name in small.state_dict())
    assert not any({"gate", "positions"} & set(vars(m)) for m in small.modules())
    small, report = compacted(blocks, X)
    assert [type(m).__name__ for m in small] == ["Conv2d", "Residual", "Identity", "Conv2d"]
    assert report.blocks == ("2",) and not small.training


def test_copies_pickles_and_checkpoints(blocks, tmp_path):
    for model in (gated(inverted), blocks):
        small, _ = compacted(model, X)
        again = pickle.loads(pickle.dumps(small))
        assert_same(small, copy.deepcopy(small), X)
        assert_same(small, again, X)
        for parameter in again.parameters():
            torch.nn.init.zeros_(parameter)
        again.load_state_dict(copy.deepcopy(small.state_dict()), strict=True)
        assert torch.equal(again(X), small(X))
        torch.save(small, tmp_path / "model.pt")
        assert torch.equal(torch.load(tmp_path / "model.pt", weights_only=False)(X), small(X))


def test_it_compacts_again():
    small, _ = compacted(gated(DenseLayers), X)
    model = copy.deepcopy(small)
    gate_model_(model, where="convs.*")
    trained(model, 0.5, seed=3)
    smaller, report = compacted(model, X)
    assert report.parameters[1] < report.parameters[0] == sum(p.numel() for p in small.parameters())
    assert_same(model, smaller, X)


def test_it_exports_and_trains(blocks):
    for model in (gated(DenseLayers), gated(resnext), blocks):
        small, _ = compacted(model, X)
        program = torch.export.export(small, (X,))
        torch.testing.assert_close(program.module()(X), small(X))
        small.train()(X).square().mean().backward()
        assert all(p.grad is not None for p in small.parameters())


@pytest.mark.parametrize("build", MODELS)
@pytest.mark.parametrize("dynamo", [False, pytest.param(True, marks=pytest.mark.slow)])
@pytest.mark.filterwarnings("ignore")
def test_onnx(build, dynamo, tmp_path):
    pytest.importorskip("onnx")
    runtime = pytest.importorskip("onnxruntime")
    if dynamo:
        pytest.importorskip("onnxscript")
    model = gated(build)
    small, _ = compacted(model, X)
    path = tmp_path / "model.onnx"
    torch.onnx.export(small, (X,), str(path), input_names=["x"], dynamo=dynamo)
    session = runtime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (got,) = session.run(None, {"x": X.numpy()})
    with torch.no_grad():
        want = model(X)
    assert want.std() > 0
    assert (torch.from_numpy(got) - want).abs().max() <= 1e-4 * want.abs().max()


def test_latency_is_measured_and_told():
    model = gated(resnext)
    _, report = compact(model, X, rounds=4)
    timed = report.latency
    assert timed.before.rounds == timed.after.rounds == 4
    assert timed.before.min > 0 and timed.after.p20 <= timed.after.median <= timed.after.p80
    assert timed.speedup.p20 <= timed.speedup.median <= timed.speedup.p80
    assert timed.threads == torch.get_num_threads() and timed.noise >= 0
    line = next(line for line in str(report).splitlines() if line.startswith("latency: "))
    assert f"{1e3 * timed.before.median:.3g} ms" in line and str(timed.speedup) in line
    assert json.loads(json.dumps(report.to_dict()))["latency"]["before"]["rounds"] == 4
    assert "latency: not measured" in str(compacted(model, X).report)
    with pytest.raises(ValueError, match="expected rounds >= 0, got -1"):
        compact(model, X, rounds=-1)


def test_the_dense_side_of_the_measurement_has_every_gate_open(monkeypatch, blocks):
    from evoprune_kernels.nn import compaction

    sides = []
    monkeypatch.setattr(compaction, "latency", lambda *sides_: sides.append(sides_))
    small, report = compact(blocks, X, rounds=7)
    dense, after, args, rounds = sides[0]
    assert after is small and rounds == 7 and torch.equal(args[0], X)
    assert (
        sum(p.numel() for p in dense.parameters())
        == report.parameters[0]
        == 16 + 2 * (222 + 28) + 10
    )
    opened = copy.deepcopy(blocks)
    for module in opened.modules():
        if hasattr(module, "gate"):
            module.gate.freeze(torch.ones(module.gate.channels, dtype=torch.bool))
    with torch.no_grad():
        torch.testing.assert_close(dense(X), opened(X))


def test_a_saved_report_reads_back():
    _, report = compacted(gated(resnext), X)
    buffer = io.BytesIO(pickle.dumps(report))
    assert pickle.load(buffer) == report
