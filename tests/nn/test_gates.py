"""ChannelGate: the threshold and its gradients, statistics by value, the static decision, saving."""

from __future__ import annotations

import copy
import io
import math

import pytest
import torch
from torch import nn

from evoprune_kernels.nn import (
    ChannelGate,
    GatedConv2d,
    collect_statistics,
    freeze_gates,
    gate_statistics,
    gates_of,
    hard_gate,
    reset_gate_statistics,
)
from evoprune_kernels.nn.gates import apply_gates

LOGITS = [-3.0, -0.5, -0.0, 0.0, 0.25, 7.0]


def sigmoid(z):
    return 1 / (1 + math.exp(-z))


def of_sign(channels=1, columns=1):
    """A dynamic gate that opens where the pooled first channel is above zero."""
    gate = ChannelGate(channels, columns, hidden=2)
    with torch.no_grad():
        gate.hidden_weight.zero_()
        gate.hidden_weight[0, 0], gate.hidden_weight[1, 0] = 1.0, -1.0
        gate.hidden_bias.zero_()
        gate.out_weight.copy_(torch.tensor([1.0, -1.0]).expand(channels, 2))
        gate.out_bias.zero_()
    return gate


# ---- the threshold ----
@pytest.mark.parametrize("ste", ["sigmoid", "identity"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_forward_is_exactly_zero_or_one(ste, dtype):
    gates = hard_gate(torch.tensor(LOGITS, dtype=dtype), ste)
    assert gates.dtype == dtype and gates.tolist() == [0, 0, 0, 0, 1, 1]


def test_the_gradient_is_the_closed_form():
    upstream = [1.0, -2.0, 0.5, 3.0, -1.0, 10.0]
    for ste in ("sigmoid", "identity"):
        z = torch.tensor(LOGITS, dtype=torch.float64, requires_grad=True)
        hard_gate(z, ste).backward(torch.tensor(upstream, dtype=torch.float64))
        for got, logit, dg in zip(z.grad.tolist(), LOGITS, upstream, strict=True):
            p = sigmoid(logit)
            want = dg * p * (1 - p) if ste == "sigmoid" else dg
            assert got == pytest.approx(want, rel=1e-13)


def test_the_gradient_is_that_of_the_surrogate_by_finite_differences():
    """The straight-through surrogate is L(g + p(z) - p(z0)): its slope at z0 is what backward must return."""
    x = torch.randn(3, 4, 5, dtype=torch.float64)
    z0 = torch.tensor([-1.0, 0.3, 2.0, -0.2], dtype=torch.float64)
    hard = (torch.sigmoid(z0) > 0.5).double()

    def loss(gates):
        return apply_gates(x, gates).sin().square().sum() + apply_gates(x, gates).sum()

    def surrogate(z):
        return loss(hard + torch.sigmoid(z) - torch.sigmoid(z0))

    z = z0.clone().requires_grad_()
    loss(hard_gate(z)).backward()
    step = 1e-6
    for i in range(4):
        shift = torch.zeros(4, dtype=torch.float64)
        shift[i] = step
        slope = (surrogate(z0 + shift) - surrogate(z0 - shift)) / (2 * step)
        # an open gate moves smoothly; at a closed one only dgates is defined, as sum of dy * x
        if hard[i] == 1:
            assert z.grad[i].item() == pytest.approx(slope.item(), rel=1e-6)
        else:
            p = sigmoid(z0[i].item())
            want = x[:, i].sum().item() * p * (1 - p)  # dL/dy = 1 at y = 0
            assert z.grad[i].item() == pytest.approx(want, rel=1e-12)


@pytest.mark.parametrize("per_sample", [False, True])
def test_gradcheck_of_the_soft_gate(per_sample):
    x = torch.randn(2, 3, 2, 2, dtype=torch.float64, requires_grad=True)
    z = torch.randn(2, 3, dtype=torch.float64) if per_sample else torch.randn(3).double()
    torch.autograd.gradcheck(lambda x, z: apply_gates(x, z.sigmoid()), (x, z.requires_grad_()))


def test_nan_is_noticed():
    assert hard_gate(torch.tensor([float("nan"), 1.0])).isnan().tolist() == [True, False]


def test_unknown_ste():
    with pytest.raises(ValueError, match=r"expected ste in \('sigmoid', 'identity'\), got 'tanh'"):
        hard_gate(torch.zeros(1), "tanh")
    with pytest.raises(ValueError, match="got 'tanh'"):
        ChannelGate(2, ste="tanh")


def test_one_gate_for_all_channels_sums_their_gradients():
    x, dy = torch.randn(2, 3, 4), torch.randn(2, 3, 4)
    for shape in [(1,), (2, 1)]:
        gate = torch.ones(shape, requires_grad=True)
        y = apply_gates(x, gate)
        assert torch.equal(y, x)
        y.backward(dy)
        want = (x.double() * dy.double()).sum((1, 2))
        want = want.sum().view(1) if shape == (1,) else want.view(2, 1)
        torch.testing.assert_close(gate.grad.double(), want, rtol=1e-5, atol=1e-5)


# ---- the module ----
def test_open_at_the_start():
    x = torch.randn(5, 3, 4, 4) * 100
    assert ChannelGate(7)(x).tolist() == [1.0] * 7
    assert ChannelGate(7, 3)(x).tolist() == [[1.0] * 7] * 5
    assert ChannelGate(2, init=-1.0)(x).tolist() == [0.0, 0.0]


def test_dynamic_logits_by_value():
    gate, x = ChannelGate(2, 3, hidden=4).double(), torch.randn(5, 3, 3, 2, dtype=torch.float64)
    with torch.no_grad():
        gate.out_weight.normal_()
    got = gate.logits(x)
    for b in range(5):
        pooled = [sum(x[b, c].flatten().tolist()) / 6 for c in range(3)]
        hidden = [
            max(
                0.0,
                gate.hidden_bias[h].item()
                + sum(gate.hidden_weight[h, c].item() * pooled[c] for c in range(3)),
            )
            for h in range(4)
        ]
        for c in range(2):
            want = gate.out_bias[c].item()
            want += sum(gate.out_weight[c, h].item() * hidden[h] for h in range(4))
            assert got[b, c].item() == pytest.approx(want, rel=1e-12)


def test_dynamic_gates_follow_the_sample_and_train():
    gate = of_sign(2)
    x = torch.tensor([1.0, -1.0, 3.0]).view(3, 1, 1, 1).expand(3, 1, 2, 2)
    gates = gate(x)
    assert gates.tolist() == [[1, 1], [0, 0], [1, 1]]
    gates.sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in gate.parameters())


def test_dynamic_gates_refuse_another_input():
    with pytest.raises(ValueError, match=r"expected x of shape \[B, 3, ...\], got \(2, 4, 5, 5\)"):
        ChannelGate(2, 3)(torch.zeros(2, 4, 5, 5))


def test_gates_are_not_rounded_under_autocast():
    gate, x = ChannelGate(2, 3), torch.randn(2, 3, 4, 4)
    with torch.autocast("cpu", torch.bfloat16):
        assert gate(x.bfloat16()).dtype == torch.float32


@pytest.mark.parametrize("sizes", [{"channels": 0}, {"channels": 2, "in_channels": 0}])
def test_impossible_sizes(sizes):
    with pytest.raises(ValueError, match=r"expected (in_)?channels >= 1, got 0"):
        ChannelGate(**sizes)


# ---- statistics ----
def test_statistics_by_value():
    gate = of_sign()
    for values in ([1.0, -1.0, 1.0], [-1.0, -1.0], [2.0]):
        gate(torch.tensor(values).view(-1, 1))
    assert (gate.opened.tolist(), gate.seen.item()) == ([3], 6)
    assert gate.open_share().tolist() == [0.5]
    gate.reset_statistics()
    assert (gate.opened.tolist(), gate.seen.item()) == ([0], 0)
    with pytest.raises(RuntimeError, match="expected counted samples, got 0"):
        gate.open_share()


def test_static_gates_count_samples_over_the_epoch():
    gate = ChannelGate(2)
    gate(torch.zeros(3, 2))
    with torch.no_grad():
        gate.theta[1] = -1.0
    gate(torch.zeros(1, 2))
    assert gate.open_share().tolist() == [1.0, 0.75]


def test_eval_mode_counts_only_when_asked():
    model = nn.Sequential(GatedConv2d(1, 2, 1), GatedConv2d(2, 3, 1)).eval()
    model(torch.zeros(2, 1, 3, 3))
    assert model[0].gate.seen == 0
    with collect_statistics(model):
        model(torch.zeros(4, 1, 3, 3))
    model(torch.zeros(2, 1, 3, 3))
    assert {k: v.tolist() for k, v in gate_statistics(model).items()} == {"0": [1, 1], "1": [1] * 3}
    assert model[0].gate.seen == 4 and list(gates_of(model)) == ["0", "1"]
    reset_gate_statistics(model)
    assert model[1].gate.seen == 0


def test_mean_gates_and_their_gradient():
    gate = of_sign()
    with pytest.raises(RuntimeError, match="no mean before a forward"):
        gate.mean_gates()
    gate(torch.tensor([[1.0], [-1.0], [5.0], [1.0]]))
    mean = gate.mean_gates()
    assert mean.tolist() == [0.75]
    mean.sum().backward()
    # z = x here, so dW2[0] = mean over samples of p (1 - p) relu(x)
    want = sum(sigmoid(v) * (1 - sigmoid(v)) * v for v in (1.0, 5.0, 1.0)) / 4
    assert gate.out_weight.grad[0, 0].item() == pytest.approx(want, rel=1e-5)
    gate(torch.zeros(0, 1))
    with pytest.raises(ValueError, match="1 sample or more, got 0"):
        gate.mean_gates()


# ---- the static decision ----
def test_freeze_by_majority_ties_closed():
    for values, want in [([1.0, 1.0, -1.0], True), ([1.0, -1.0], False), ([-1.0], False)]:
        gate = of_sign()
        gate(torch.tensor(values).view(-1, 1))
        assert gate.freeze().tolist() == [want]
        assert gate(torch.tensor([[1.0], [-1.0]])).tolist() == [float(want)]
        gate.unfreeze()
        assert gate(torch.tensor([[1.0], [-1.0]])).tolist() == [[1.0], [0.0]]


def test_freeze_static_by_the_present_logit():
    gate = ChannelGate(6)
    with torch.no_grad():
        gate.theta.copy_(torch.tensor(LOGITS))
    assert gate.freeze().tolist() == [False] * 4 + [True] * 2
    assert not gate(torch.zeros(1, 6)).requires_grad


def test_freeze_needs_counts_and_freezes_all_or_none():
    model = nn.Sequential(GatedConv2d(1, 2, 1), GatedConv2d(2, 3, 1, dynamic=True))
    with pytest.raises(RuntimeError, match="1: expected counted samples, got 0"):
        freeze_gates(model)
    assert model[0].gate.decision is None
    model(torch.zeros(2, 1, 2, 2))
    assert {k: v.tolist() for k, v in freeze_gates(model).items()} == {
        "0": [True] * 2,
        "1": [True] * 3,
    }


def test_freeze_gates_keeps_what_is_decided():
    layer = GatedConv2d(1, 2, 1)
    layer.gate.freeze(torch.tensor([False, True]))
    assert freeze_gates(layer)[""].tolist() == [False, True]


def test_freeze_a_given_decision():
    gate, decision = ChannelGate(2), torch.tensor([False, True])
    gate.freeze(decision)
    decision[0] = True
    assert gate(torch.zeros(1, 2)).tolist() == [0.0, 1.0]
    with pytest.raises(TypeError, match=r"expected decision of dtype torch.bool, got torch.int64"):
        gate.freeze(torch.tensor([0, 1]))
    with pytest.raises(ValueError, match=r"expected decision of shape \(2,\), got \(3,\)"):
        gate.freeze(torch.ones(3, dtype=torch.bool))


# ---- saving ----
@pytest.mark.parametrize("in_channels", [None, 2])
def test_state_dict_round_trip_frozen_and_not(in_channels):
    gate, x = ChannelGate(2, in_channels), torch.randn(3, 2)
    gate(x)
    gate.freeze(torch.tensor([True, False]))
    other = ChannelGate(2, in_channels)
    other.load_state_dict(gate.state_dict())
    assert other.decision.tolist() == [True, False] and other.seen == 3
    assert other(x).tolist() == [1.0, 0.0]
    gate.unfreeze()
    other.load_state_dict(gate.state_dict())
    assert other.decision is None
    assert all(
        torch.equal(a, b) for a, b in zip(gate.parameters(), other.parameters(), strict=True)
    )


def test_a_checkpoint_of_the_other_kind_is_refused():
    with pytest.raises(RuntimeError, match=r"Missing key.*hidden_weight[\s\S]*Unexpected.*theta"):
        ChannelGate(2, 3).load_state_dict(ChannelGate(2).state_dict())


def test_copies_and_pickles_after_a_forward():
    gate = of_sign()
    gate(torch.ones(2, 1)).sum()
    assert copy.deepcopy(gate).last is None and gate.last is not None
    file = io.BytesIO()
    torch.save(gate, file)
    file.seek(0)
    assert torch.load(file, weights_only=False)(-torch.ones(1, 1)).tolist() == [[0.0]]


def test_repr():
    gate = ChannelGate(4)
    assert repr(gate) == "ChannelGate(4, static, ste=sigmoid)"
    gate.freeze(torch.arange(4) > 2)
    assert repr(gate) == "ChannelGate(4, static, ste=sigmoid, frozen, 1 open)"
    assert (
        repr(ChannelGate(4, 2, ste="identity"))
        == "ChannelGate(4, dynamic, in_channels=2, ste=identity)"
    )
