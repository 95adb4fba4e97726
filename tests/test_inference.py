"""optimize_for_inference: what it detects, keeps and reports. Times are given by the tests, not by a clock."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn

import evoprune_kernels as ek
from evoprune_kernels import inference
from evoprune_kernels.formats import NM, Block, Unstructured
from evoprune_kernels.inference import candidates, trace, tune
from evoprune_kernels.inference.tune import DENSE, Effort
from evoprune_kernels.measure import CONTROL_SUFFIX, Measurement, Ratio
from tests.nn.layers import make, use_references


@pytest.fixture(autouse=True)
def _kernels(monkeypatch):
    use_references(monkeypatch)


def seconds(dense, sparse, names):
    """A measurement of three rounds without noise."""
    samples = {DENSE: (dense,) * 3, DENSE + CONTROL_SUFFIX: (dense,) * 3}
    return Measurement({**samples, **dict.fromkeys(names, (sparse,) * 3)})


@pytest.fixture
def timed(monkeypatch):
    """Sparse layers take ``timed["layer"]`` of the dense time, the whole model ``timed["model"]``."""
    given = {"layer": 0.5, "model": 0.6, "calls": 0}

    def time_layer(seen, checked, effort):
        given["calls"] += 1
        return seconds(1e-3, 1e-3 * given["layer"], checked)

    def interleave(contenders, **options):
        for call in contenders.values():
            call()
        return seconds(1e-2, 1e-2 * given["model"], ["sparse"])

    monkeypatch.setattr(tune, "time_layer", time_layer)
    monkeypatch.setattr(inference.measure, "interleave", interleave)
    return given


def pruned(pattern="2:4", sparsity=None):
    """Plain layers with zeros in them, as an optimizer leaves them; the last one dense."""
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64), nn.Linear(64, 32))
    ek.convert(model, pattern, filter=["0", "2"], sparsity=sparsity)
    return ek.export(model)


def state(model):
    return {name: (id(m), type(m)) for name, m in model.named_modules()}


# ---- which patterns fit ----


def weight_of(pattern, sparsity=None):
    return make(pattern, inputs=128, outputs=64).weight.detach()


@pytest.mark.parametrize(
    "pattern, tokens, expected",
    [
        ("2:4", 1, [NM(2, 4), Unstructured()]),
        ("2:4", 128, [NM(2, 4)]),
        ("2:4v16", 128, [NM(2, 4, 16), NM(2, 4), Block(16, 1)]),
        ("1:4", 128, [NM(1, 4), NM(2, 4), Unstructured()]),
        ("block:16x16", 128, [Block(16, 16), Block(16, 1), Unstructured()]),
        ("unstructured", 128, [Unstructured()]),
    ],
)
def test_candidates_follow_the_zeros(pattern, tokens, expected):
    assert candidates.candidates(weight_of(pattern), tokens, None, None) == (expected, None)


def test_candidates_that_are_asked_for():
    weight = weight_of("2:4")
    assert candidates.candidates(weight, 1, [NM(1, 4), NM(2, 4)], None) == ([NM(2, 4)], None)
    assert candidates.candidates(weight, 1, [NM(1, 4)], None) == (
        [],
        "its zeros (50%) do not fit 1:4",
    )
    assert candidates.candidates(weight, 128, None, Unstructured())[0] == [NM(2, 4), Unstructured()]


def test_a_dense_weight_has_no_candidate():
    found, reason = candidates.candidates(torch.randn(16, 16), 1, None, None)
    assert found == [] and reason == "its weight has no zeros to skip (100% are kept)"


# ---- the decision ----


@pytest.mark.parametrize("kind", ["plain", "sparse"])
def test_winners_are_swapped_and_reported(timed, kind):
    model, x = pruned(), torch.randn(8, 64)
    if kind == "sparse":
        ek.convert(model, "2:4", filter=["0", "2"])
    names = {name: id(p) for name, p in model.named_parameters()}
    with torch.no_grad():
        expected = ek.export(model, inplace=False)(x)
    report = ek.optimize_for_inference(model, x)
    assert report.swapped == ["0", "2"] and not model.training and report.reverted is None
    assert {name: id(p) for name, p in model.named_parameters()} == names
    assert [type(model[i]) for i in (0, 2, 3)] == [ek.SparseLinear, ek.SparseLinear, nn.Linear]
    assert model[0].kernel and model[0].layer_name == "0"
    with torch.no_grad():
        assert torch.allclose(model(x), expected, atol=1e-5)
    first, second, last = report.layers
    assert first.shape == (64, 64) and first.calls == {8: 1} and first.pattern == "2:4"
    assert first.speedup == Ratio(2, 2, 2) and first.dense_us == 1000 and first.sparse_us == 500
    assert 0 < first.max_error < 1e-6 and first.measured_as is None and second.measured_as == "0"
    assert timed["calls"] == 1
    assert "no zeros" in last.reason and not last.sparse
    assert report.model.speedup.median == pytest.approx(1 / 0.6)


def test_report_prints_and_is_json(timed, tmp_path):
    report = ek.optimize_for_inference(pruned(), torch.randn(8, 64))
    text = str(report)
    assert "2 of 3 layers run sparse" in text and "2.00x (2.00..2.00)" in text
    assert "its weight has no zeros to skip" in text and "whole model: 10.000 -> 6.000 ms" in text
    data = json.loads(report.to_json(tmp_path / "report.json"))
    assert json.loads((tmp_path / "report.json").read_text()) == data
    assert data["swapped"] == ["0", "2"] and data["layers"][0]["shape"] == [64, 64]
    assert data["layers"][0]["calls"] == {"8": 1} and data["machine"]["torch"] == torch.__version__


@pytest.mark.parametrize("kind", ["plain", "sparse"])
def test_losers_stay_dense_with_the_reason(timed, kind):
    timed["layer"] = 0.97
    model = pruned()
    if kind == "sparse":
        ek.convert(model, "2:4", filter=["0", "2"])
    before = state(model)
    report = ek.optimize_for_inference(model, torch.randn(8, 64))
    assert report.swapped == [] and report.model is None and state(model) == before
    assert "2:4 gives 1.03x (1.03..1.03), less than 1.05x" in report.layers[0].reason
    if kind == "sparse":
        assert model[0].kernel is None and "less than 1.05x" in repr(model[0])


def test_a_win_within_the_noise_is_no_win(monkeypatch):
    rounds = []

    def time_layer(seen, checked, effort):
        rounds.append(effort.rounds)
        noisy = {DENSE: (1.0, 1.0, 1.0), DENSE + CONTROL_SUFFIX: (1.3, 1.3, 1.3)}
        return Measurement({**noisy, **dict.fromkeys(checked, (0.9, 0.9, 0.9))})

    monkeypatch.setattr(tune, "time_layer", time_layer)
    report = ek.optimize_for_inference(pruned(), torch.randn(8, 64))
    assert (
        report.swapped == []
        and "within the noise (dense against itself strays 30%)" in report.layers[0].reason
    )
    assert rounds == [15, 30]  # a second, longer look before it is given up


def test_a_win_in_the_median_only_is_no_win(monkeypatch):
    def time_layer(seen, checked, effort):
        steady = {DENSE: (1.0,) * 5, DENSE + CONTROL_SUFFIX: (1.0,) * 5}
        return Measurement({**steady, **dict.fromkeys(checked, (1.2, 1.2, 0.8, 0.8, 0.8))})

    monkeypatch.setattr(tune, "time_layer", time_layer)
    report = ek.optimize_for_inference(pruned(), torch.randn(8, 64))
    assert "not surely 1.05x" in report.layers[0].reason


def test_a_slower_whole_model_is_put_back(timed):
    timed["model"] = 1.1
    model = pruned()
    before = state(model)
    report = ek.optimize_for_inference(model, torch.randn(8, 64))
    assert state(model) == before and report.swapped == []
    assert "not faster as a whole, 0.91x" in report.reverted and "put back to dense" in str(report)
    assert "whole model" in report.layers[0].reason


def test_wrong_outputs_are_put_back(timed, monkeypatch):
    monkeypatch.setattr(trace, "difference", lambda a, b: 0.25)
    report = ek.optimize_for_inference(pruned(), torch.randn(8, 64))
    assert "outputs differ by 2.5e-01" in report.reverted and report.swapped == []


def test_a_wrong_kernel_is_not_used(timed, monkeypatch):
    broken = ek.SparseLinear.forward
    monkeypatch.setattr(ek.SparseLinear, "forward", lambda self, x: broken(self, x) * 1.001)
    report = ek.optimize_for_inference(pruned(), torch.randn(8, 64))
    assert report.swapped == [] and "is off by" in report.layers[0].reason


def test_patterns_that_are_asked_for(timed):
    report = ek.optimize_for_inference(pruned(), torch.randn(1, 64), patterns=["unstructured"])
    assert [layer.pattern for layer in report.layers] == ["unstructured", "unstructured", None]


# ---- inputs and models ----


class Branches(nn.Module):
    def __init__(self):
        super().__init__()
        self.used, self.twice, self.unused = make(), make(inputs=48, outputs=48), make()

    def forward(self, x, *, scale=1.0):
        y = self.twice(self.used(x))
        return {"first": y, "last": (self.twice(y[:1]) * scale, torch.arange(3))}


@pytest.mark.parametrize("form", ["tensor", "tuple", "dict"])
def test_calls_are_counted(timed, form):
    x = torch.randn(2, 3, 64)
    inputs = {"tensor": x, "tuple": (x,), "dict": {"x": x, "scale": 2.0}}[form]
    report = ek.optimize_for_inference(Branches(), inputs)
    calls = {layer.name: layer.calls for layer in report.layers}
    assert calls == {"used": {6: 1}, "twice": {6: 1, 3: 1}, "unused": {}}
    assert report.layers[2].reason == "not called with any token by the example inputs"


def test_a_fused_activation_stays(timed):
    model, x = nn.Sequential(make(activation="relu")), torch.randn(4, 64)
    with torch.no_grad():
        expected = model(x)
    report = ek.optimize_for_inference(model, x)
    assert report.swapped == ["0"] and model[0].activation == "relu"
    with torch.no_grad():
        assert torch.allclose(model(x), expected, atol=1e-5)


def test_unsuited_layers_have_a_reason(timed):
    class Special(nn.Linear):
        pass

    model = nn.Sequential(Special(64, 64), nn.Linear(64, 64)).double()
    report = ek.optimize_for_inference(model, torch.randn(2, 64).double())
    assert "Special is a subclass" in report.layers[0].reason
    assert "torch.float64" in report.layers[1].reason


@pytest.mark.parametrize(
    "arguments, error, message",
    [
        ({"min_speedup": 0}, ValueError, "got 0"),
        ({"patterns": ["2-4"]}, ValueError, "2-4"),
        ({"example_inputs": 3}, TypeError, "got int"),
        ({"example_inputs": torch.randn(2, 60)}, RuntimeError, "60"),
        ({"nan": True}, ValueError, r"^2: weight holds 1 NaN"),
    ],
)
def test_errors_leave_the_model_as_it_was(timed, arguments, error, message):
    model = pruned()
    ek.convert(model, "2:4", filter="0")
    before = state(model)
    if arguments.pop("nan", False):
        with torch.no_grad():
            model[2].weight[0, 0] = float("nan")
    with pytest.raises(error, match=message):
        ek.optimize_for_inference(model, **{"example_inputs": torch.randn(2, 64), **arguments})
    assert state(model) == before


# ---- the timing itself, once with the real clock; only its form is checked ----


@pytest.mark.parametrize("tokens", [1, 100])
def test_a_real_measurement(tokens):
    model, x = pruned(), torch.randn(tokens, 64)
    report = ek.optimize_for_inference(model, x, rounds=5, max_seconds=0.2)
    layer = report.layers[0]
    assert layer.dense_us > 0 and layer.sparse_us > 0 and set(layer.tried) >= {"2:4"}
    assert layer.sparse == isinstance(model[0], ek.SparseLinear)
    assert (layer.reason is None) == (layer.kernel is not None)


def test_copies_exceed_the_cache_or_are_the_model():
    effort = Effort(rounds=1, max_seconds=1, cache_bytes=32 << 20, model_bytes=1 << 30)
    assert tune._copies(4 << 20, 4 << 20, effort) == 16  # 64 MiB
    assert tune._copies(2 << 20, 4 << 20, effort) == 32  # the sparse form as well
    small = Effort(rounds=1, max_seconds=1, cache_bytes=32 << 20, model_bytes=12 << 20)
    assert tune._copies(4 << 20, 4 << 20, small) == 3 == tune._copies(2 << 20, 4 << 20, small)
    assert tune._copies(1 << 30, 1 << 30, effort) == 1


# ---- where it runs ----


def test_every_measurement_waits_for_the_devices_of_the_model(monkeypatch):
    """A device that is not the CPU is given by the test; its wait must be in every sample, of layers and model."""
    devices, waits, samples = [], [], []
    interleave = inference.measure.interleave

    def synchronizer(*found):
        devices.append(found)
        return lambda: waits.append(1)

    def spy(contenders, *, synchronize=None, **options):
        before = len(waits)
        result = interleave(contenders, synchronize=synchronize, **options)
        count = sum(map(len, result.samples.values()))
        samples.append((synchronize, count, len(waits) - before, len(contenders)))
        return result

    monkeypatch.setattr(inference.measure, "synchronizer", synchronizer)
    monkeypatch.setattr(inference.measure, "interleave", spy)
    model = pruned()
    ek.optimize_for_inference(model, torch.randn(8, 64), min_speedup=1e-9, rounds=2)
    assert devices == [(torch.device("cpu"),)]
    assert len(samples) >= 1
    for synchronize, count, waited, contenders in samples:
        assert synchronize is not None and waited == 2 * (count + contenders)  # and the warm-up's


def test_the_whole_model_is_timed_to_the_end_of_its_work():
    model, waits = pruned().eval(), []
    effort = Effort(2, 1.0, 1, 1, lambda: waits.append(1))
    layers, _ = trace.layers_of(model)
    x = torch.randn(4, 64)
    report = inference._time_model(model, layers, {}, lambda: model(x), effort)
    assert report.max_difference == 0
    assert len(waits) == 2 * 3 * (
        2 + 1
    )  # dense, dense again and sparse: two rounds and the warm-up


def test_inputs_on_another_device_are_refused_with_both():
    model = pruned()
    before = state(model)
    with pytest.raises(ValueError, match="example_inputs are on meta, the model is on cpu"):
        ek.optimize_for_inference(model, {"input": torch.randn(8, 64, device="meta")})
    assert state(model) == before


@pytest.mark.parametrize("on_meta", [(False,), (True, False)])
def test_one_input_beside_the_model_is_enough(on_meta):
    inputs = [torch.zeros(1, device="meta" if meta else "cpu") for meta in on_meta]
    model = nn.Linear(1, 1)
    assert trace.devices_of(model, (inputs, "text", 3)) == [torch.device("cpu")]
    assert trace.devices_of(nn.ReLU(), inputs) == list(dict.fromkeys(x.device for x in inputs))


def test_random_inputs_leave_the_generator_of_torch_alone():
    seen = trace.layers_of(pruned())[0][0]
    before = torch.get_rng_state()
    first, second = (tune._random_input(seen, 3) for _ in range(2))
    assert torch.equal(first, second) and first.shape == (3, 64)
    assert torch.equal(torch.get_rng_state(), before)
