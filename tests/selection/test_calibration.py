"""calibrate: sums against Python loops, every kind of layer, and nothing of the model is changed."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import evoprune_kernels as ek
from evoprune_kernels.selection import calibrate


class Conv1D(nn.Module):
    """As in transformers: the weight is [in, out]."""

    def __init__(self, nf, nx):
        super().__init__()
        self.nf, self.nx = nf, nx
        self.weight = nn.Parameter(torch.randn(nx, nf))

    def forward(self, x):
        return x @ self.weight


def sums_by_hand(rows):
    """``(squares, gram)`` of [samples, K] in Python floats."""
    rows = [[float(v) for v in row] for row in rows]
    k = range(len(rows[0]))
    gram = [[sum(row[i] * row[j] for row in rows) for j in k] for i in k]
    return [gram[j][j] for j in k], gram


def assert_sums(found, rows, tolerance=1e-5):
    squares, gram = sums_by_hand(rows)
    assert found.samples == len(rows)
    assert found.squares.tolist() == pytest.approx(squares, rel=tolerance, abs=tolerance)
    for ours, theirs in zip(found.gram.tolist(), gram, strict=True):
        assert ours == pytest.approx(theirs, rel=tolerance, abs=tolerance)


@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-5), (torch.float64, 1e-12)])
def test_linear_over_uneven_batches(dtype, tolerance):
    model = nn.Sequential(nn.Linear(5, 7), nn.ReLU(), nn.Linear(7, 3)).to(dtype)
    batches = [torch.randn(2, 3, 5, dtype=dtype), torch.randn(1, 5, dtype=dtype)]
    found = calibrate(model, iter(batches), gram=True, dtype=dtype)
    assert list(found) == ["0.weight", "2.weight"]
    rows = torch.cat([batch.reshape(-1, 5) for batch in batches])
    assert_sums(found["0.weight"], rows, tolerance)
    assert_sums(found["2.weight"], model[:2](rows).detach(), tolerance)
    assert (
        found["0.weight"].gram.dtype == dtype and found["0.weight"].squares.dtype == torch.float64
    )
    assert calibrate(model, batches, dtype=dtype)["0.weight"].gram is None


def test_sparse_linear_and_conv1d():
    model = nn.Sequential(
        ek.SparseLinear.from_linear(nn.Linear(8, 6), "2:4"), Conv1D(4, 6), nn.Linear(4, 2)
    )
    x = torch.randn(9, 8)
    found = calibrate(model, [x], gram=True)
    for i, name in enumerate(("0.weight", "1.weight", "2.weight")):
        assert_sums(found[name], model[:i](x).detach(), 1e-4)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"padding": 1, "stride": 2},
        {"padding": "same", "dilation": 2},
        {"padding": (2, 1), "padding_mode": "circular"},
    ],
    ids=str,
)
def test_conv2d_rows_are_what_the_weight_multiplies(options):
    """Summing (w . row)^2 over the rows gives the energy of the real output; so the rows are the real patches."""
    conv = nn.Conv2d(3, 4, (3, 2), bias=False, dtype=torch.float64, **options)
    x = torch.randn(2, 3, 7, 6, dtype=torch.float64)
    with torch.no_grad():
        output = conv(x)
    found = calibrate(nn.Sequential(conv), [x], gram=True, dtype=torch.float64)["0.weight"]
    assert found.samples == output.numel() // 4
    weight = conv.weight.detach().reshape(4, -1)
    torch.testing.assert_close(
        weight @ found.gram @ weight.t(), torch.einsum("bnhw,bmhw->nm", output, output)
    )
    torch.testing.assert_close(found.gram.diagonal(), found.squares)


def test_kwargs_mappings_and_forward():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(3, 3)

        def forward(self, x):
            return self.layer(input=x)

    model, x = Model(), torch.randn(4, 3)
    by_mapping = calibrate(model, [{"x": x}])["layer.weight"].squares
    by_forward = calibrate(model, [(x, 5)], forward=lambda m, b: m(b[0]))["layer.weight"].squares
    assert torch.equal(by_mapping, by_forward)
    assert by_mapping.tolist() == pytest.approx(sums_by_hand(x)[0], rel=1e-5)
    with pytest.raises(TypeError, match="got tuple: pass forward"):
        calibrate(model, [(x, 5)])


def test_tied_modules_are_summed_together_and_tied_embeddings_left_alone():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed = nn.Embedding(6, 4)
            self.a, self.b, self.head = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 6)
            self.b.weight = self.a.weight
            self.head.weight = self.embed.weight

        def forward(self, x):
            return self.head(self.b(F.relu(self.a(self.embed(x)))))

    model, x = Model(), torch.tensor([1, 2, 5])
    found = calibrate(model, [x], gram=True)
    assert list(found) == ["a.weight"]
    first = model.embed(x).detach()
    assert_sums(found["a.weight"], torch.cat([first, F.relu(model.a(first)).detach()]))


def state_of(model):
    hooks = sum(len(m._forward_pre_hooks) + len(m._forward_hooks) for m in model.modules())
    return hooks, [m.training for m in model.modules()]


def test_model_is_as_before_also_after_an_error():
    model = nn.Sequential(
        nn.Linear(3, 3), nn.BatchNorm1d(3), nn.Dropout(0.5), nn.Linear(3, 2)
    ).train()
    model[1].eval()  # differs from its parent
    model(torch.randn(4, 3)).sum().backward()
    before = state_of(model)
    grads = [p.grad.clone() for p in model.parameters()]
    buffers = [b.clone() for b in model.buffers()]
    once = calibrate(model, [torch.ones(4, 3)])["3.weight"].squares
    assert torch.equal(once, calibrate(model, [torch.ones(4, 3)])["3.weight"].squares)  # no dropout
    with pytest.raises(RuntimeError):
        calibrate(model, [torch.ones(4, 3), torch.ones(4, 5)])
    assert state_of(model) == before and before[1] == [True, True, False, True, True]
    assert all(torch.equal(p.grad, g) for p, g in zip(model.parameters(), grads, strict=True))
    assert all(torch.equal(b, old) for b, old in zip(model.buffers(), buffers, strict=True))


def test_errors_name_the_layer():
    x = torch.randn(4, 3)
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    with pytest.raises(ValueError, match=r"1\.weight: the batches never called"):
        calibrate(model, [x], forward=lambda m, b: m[0](b))
    assert list(calibrate(model, [x], forward=lambda m, b: m[0](b), exclude="1")) == ["0.weight"]
    with pytest.raises(ValueError, match=r"0\.weight: expected finite inputs"):
        calibrate(model, [x * float("nan")])
    with pytest.raises(ValueError, match="at least one calibration batch"):
        calibrate(model, [])
    with pytest.raises(ValueError, match=r"\['o'\] match no module"):
        calibrate(model, [x], exclude=["o"])
    with pytest.raises(TypeError, match="float16"):
        calibrate(model, [x], dtype=torch.float16)
    with pytest.raises(ValueError, match="no layer to prune in ReLU"):
        calibrate(nn.ReLU(), [x])
    with pytest.raises(ValueError, match=r"0\.weight: expected a Conv2d with groups=1, got 2"):
        calibrate(nn.Sequential(nn.Conv2d(2, 2, 1, groups=2)), [x])
    with pytest.raises(ValueError, match=r"0\.weight: Conv1d is not supported"):
        calibrate(nn.Sequential(nn.Conv1d(2, 2, 1)), [x])
    nn.utils.parametrizations.weight_norm(model[1])
    with pytest.raises(ValueError, match=r"1\.weight: expected a Parameter"):
        calibrate(model, [x])
    attention = nn.MultiheadAttention(4, 2)
    with pytest.raises(ValueError, match=r"out_proj\.weight: the batches never called"):
        calibrate(attention, [torch.randn(2, 4)], forward=lambda m, b: m(b, b, b))
