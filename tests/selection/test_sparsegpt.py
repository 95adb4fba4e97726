"""SparseGPT: against an oracle that solves for the optimum anew after every column, in fp64 and without Cholesky."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from evoprune_kernels import ops
from evoprune_kernels.selection import calibrate, sparsegpt_, sparsegpt_weight, wanda_masks
from tests.selection.test_calibration import Conv1D
from tests.tolerance import assert_accurate

DOUBLE = torch.float64


def correlated(samples, k, seed=0):
    """Inputs [samples, k] in fp64 that share a few causes, columns of unlike size."""
    generator = torch.Generator().manual_seed(seed)
    causes = torch.randn(samples, max(k // 3, 1), generator=generator, dtype=DOUBLE)
    mixed = causes @ torch.randn(causes.shape[1], k, generator=generator, dtype=DOUBLE)
    noise = torch.randn(samples, k, generator=generator, dtype=DOUBLE)
    return (mixed + 0.5 * noise) * torch.logspace(-0.5, 0.5, k, dtype=DOUBLE)


def hessian_by_hand(x, damping):
    h = 2 * x.t() @ x / len(x)
    return h + damping * h.diagonal().mean() * torch.eye(len(h), dtype=DOUBLE)


def optimum(weight, frozen, h):
    """The row that agrees with ``frozen`` on its columns and minimises (w - w0) h (w - w0)^T over the others."""
    f = len(frozen)
    moved = torch.linalg.solve(h[f:, f:], h[f:, :f] @ (frozen - weight[:f]))
    return torch.cat([frozen, weight[f:] - moved])


def oracle(weight, h, choose, span):
    """Column by column; ``choose(scores, first)`` gives the columns ``first``, ... as lists of bools."""
    n, k = weight.shape
    # what losing a column costs once all before it are frozen
    cost = torch.stack([torch.linalg.inv(h[c:, c:])[0, 0] for c in range(k)])
    current, mask = weight.clone(), torch.zeros(n, k, dtype=torch.bool)
    for j in range(k):
        if j % span == 0:
            scores = current[:, j : j + span] ** 2 / cost[j : j + span]
            mask[:, j : j + span] = torch.tensor(choose(scores.tolist(), j))
        for i in range(n):
            frozen = current[i, : j + 1].clone()
            frozen[j] *= mask[i, j]
            current[i] = optimum(weight[i], frozen, h)
    return current, mask


def best(scores, count):
    """Bools: the ``count`` highest of a flat list; ties: the first."""
    chosen = sorted(range(len(scores)), key=lambda i: (-scores[i], i))[:count]
    return [i in chosen for i in range(len(scores))]


def choose_share(kept):
    def choose(scores, first):
        n, width = len(scores), len(scores[0])
        count = round(kept * n * (first + width)) - round(kept * n * first)
        flat = best([s for row in scores for s in row], count)
        return [flat[i * width : (i + 1) * width] for i in range(n)]

    return choose


def check(found, weight, truth, mask):
    assert torch.equal(found[1], mask)
    torch.testing.assert_close(found[0], truth, rtol=1e-8, atol=1e-9)
    assert (found[0][~mask] == 0).all() and not found[0][~mask].signbit().any()


@pytest.mark.parametrize(
    "kept, block, k", [(0.5, 4, 12), (0.3, 5, 13), (0.6, 128, 11), (0.5, 1, 6)]
)
def test_shares_equal_the_oracle(kept, block, k):
    weight, x = torch.randn(5, k, dtype=DOUBLE), correlated(60, k)
    found = sparsegpt_weight(weight, x.t() @ x, 60, kept=kept, block=block, dtype=DOUBLE)
    h = hessian_by_hand(x, 0.01)
    check(found, weight, *oracle(weight, h, choose_share(kept), min(block, k)))
    assert int(found[1].sum()) == round(kept * 5 * k)


@pytest.mark.parametrize(
    "n, m, block, k", [(2, 4, 4, 12), (2, 4, 6, 14), (1, 3, 128, 11), (4, 8, 2, 17)]
)
def test_groups_equal_the_oracle(n, m, block, k):
    """The width of the block changes nothing but the order of sums; a tail keeps up to n as well."""
    weight, x = torch.randn(4, k, dtype=DOUBLE), correlated(50, k)
    found = sparsegpt_weight(weight, x.t() @ x, 50, pattern=f"{n}:{m}", block=block, dtype=DOUBLE)
    h = hessian_by_hand(x, 0.01)
    check(found, weight, *oracle(weight, h, lambda s, first: [best(row, n) for row in s], m))


def test_given_mask_equals_the_oracle():
    weight, x, mask = torch.randn(4, 9, dtype=DOUBLE), correlated(40, 9), torch.rand(4, 9) < 0.5
    found = sparsegpt_weight(weight, x.t() @ x, 40, mask=mask, block=2, dtype=DOUBLE)
    h = hessian_by_hand(x, 0.01)
    check(
        found, weight, *oracle(weight, h, lambda s, first: mask[:, first : first + 1].tolist(), 1)
    )


def test_a_pruned_prefix_gives_the_least_squares_optimum():
    """No column is kept before one that is pruned: then nothing was frozen too early, and no other weight is better."""
    weight, x = torch.randn(3, 10, dtype=DOUBLE), correlated(80, 10)
    mask = torch.arange(10).expand(3, 10) >= 4
    new, _ = sparsegpt_weight(weight, x.t() @ x, 80, mask=mask, damping=0.0, dtype=DOUBLE)
    best_fit = torch.linalg.lstsq(x[:, 4:], x @ weight.t()).solution.t()
    torch.testing.assert_close(new[:, 4:], best_fit, rtol=1e-7, atol=1e-9)


def test_a_mask_with_frozen_columns_is_no_better_than_least_squares():
    weight, x = torch.randn(1, 8, dtype=DOUBLE), correlated(60, 8)
    mask = torch.tensor([[1, 0, 1, 1, 0, 1, 0, 1]], dtype=torch.bool)
    new, _ = sparsegpt_weight(weight, x.t() @ x, 60, mask=mask, damping=0.0, dtype=DOUBLE)
    error = (x @ (new - weight).t()).norm()
    least = torch.linalg.lstsq(x[:, mask[0]], x @ weight.t()).solution
    masked_error = (x @ (weight * ~mask).t()).norm()
    assert (x[:, mask[0]] @ least - x @ weight.t()).norm() < error < masked_error
    assert new[0, 0] == weight[0, 0]  # frozen before anything was pruned


def test_float32_is_as_exact_as_torch():
    """On one mask; the baseline in the same dtype solves for the optimum directly."""
    weight, x = torch.randn(8, 96), correlated(400, 96)
    mask = torch.arange(96).expand(8, 96) >= 40
    gram = (x.t() @ x).float()
    new, _ = sparsegpt_weight(weight, gram, 400, mask=mask)
    h = hessian_by_hand(x, 0.01)
    frozen = torch.zeros(40, dtype=DOUBLE)
    truth = torch.stack([optimum(row, frozen, h) for row in weight.double()])
    same = torch.stack([optimum(row, frozen.float(), h.float()) for row in weight])
    assert_accurate(new, truth, same)


def test_independent_inputs_move_nothing_and_ties_keep_the_first():
    weight = torch.tensor([[1.0, -1.0, 1.0, 1.0], [1.0, 2.0, -2.0, 2.0]])
    new, mask = sparsegpt_weight(weight, 7 * torch.eye(4), 3, pattern="2:4")
    assert mask.int().tolist() == [[1, 1, 0, 0], [0, 1, 1, 0]]
    assert torch.equal(new, weight * mask)
    _, mask = sparsegpt_weight(weight, 7 * torch.eye(4), 3, kept=0.5)
    assert mask.int().tolist() == [[1, 0, 0, 0], [0, 1, 1, 1]]
    _, mask = sparsegpt_weight(
        weight, 7 * torch.eye(4), 3, kept=0.5, block=2
    )  # a share of each block
    assert mask.int().tolist() == [[1, 0, 0, 0], [0, 1, 1, 1]]


def test_dead_columns_become_zero_and_disturb_nothing():
    x = correlated(50, 9)
    x[:, [2, 7]] = 0.0
    weight = torch.randn(4, 9, dtype=DOUBLE)
    live = [0, 1, 3, 4, 5, 6, 8]
    mask = torch.rand(4, 9) < 0.6
    new, _ = sparsegpt_weight(weight, x.t() @ x, 50, mask=mask, damping=0.0, dtype=DOUBLE)
    assert (new[:, [2, 7]] == 0).all()
    part = x[:, live]
    alone, _ = sparsegpt_weight(
        weight[:, live], part.t() @ part, 50, mask=mask[:, live], damping=0.0, dtype=DOUBLE
    )
    torch.testing.assert_close(new[:, live], alone, rtol=1e-9, atol=1e-10)
    _, chosen = sparsegpt_weight(weight, x.t() @ x, 50, kept=5 / 9, dtype=DOUBLE)
    assert not chosen[:, [2, 7]].any()  # worth nothing
    new, _ = sparsegpt_weight(weight, torch.zeros(9, 9), 50, kept=0.5)
    assert (new == 0).all()


@pytest.mark.parametrize("pattern", ["2:4", "1:4", "2:4v16"])
def test_patterns_are_obeyed_and_arguments_unchanged(pattern):
    weight, x = torch.randn(20, 24).bfloat16(), correlated(60, 24).float()
    gram = x.t() @ x
    before = weight.clone(), gram.clone()
    new, mask = sparsegpt_weight(weight, gram, 60, pattern=pattern)
    assert torch.equal(weight, before[0]) and torch.equal(gram, before[1])
    assert new.dtype == torch.bfloat16 and torch.equal(new != 0, mask)
    assert (mask.view(20, 6, 4).sum(-1) == int(pattern[0])).all()
    if pattern.endswith("v16"):
        assert (mask[:16] == mask[0]).all() and (mask[16:] == mask[16]).all()


def output_error(x, weight, other):
    return (x @ (other - weight).t()).norm().item()


@pytest.mark.parametrize("pattern", [None, "2:4"])
def test_loses_less_than_wanda_and_magnitude_on_correlated_inputs(pattern):
    weight, x = torch.randn(24, 64, dtype=DOUBLE), correlated(500, 64)
    layer = nn.Linear(64, 24, bias=False, dtype=DOUBLE)
    with torch.no_grad():
        layer.weight.copy_(weight)
    how = {"pattern": pattern} if pattern else {"kept": 0.5}
    new, _ = sparsegpt_weight(weight, x.t() @ x, 500, dtype=DOUBLE, **how)
    wanda = weight * wanda_masks(layer, [x], **how)["weight"]
    by_size = ops.select_nm(weight.abs(), 2, 4) if pattern else ops.select_topk(weight.abs(), 0.5)
    errors = [output_error(x, weight, w) for w in (new, wanda, weight * by_size)]
    assert errors[0] < errors[1] < errors[2], errors


# ---- whole models ----
def inputs_of(batches):
    return [images for images, _ in batches]


@pytest.mark.parametrize("kept", [0.4, 0.3])
def test_digits_sparsegpt_then_wanda_then_random(digits, kept):
    """Error of the logits on data that was not used to calibrate."""
    model, batches = digits
    calibration, unseen = inputs_of(batches)[:3], inputs_of(batches)[3]
    compensated, scored, random = (copy.deepcopy(model) for _ in range(3))
    sparsegpt_(compensated, calibration, kept=kept, exclude=["4"])
    masks = wanda_masks(model, calibration, kept=kept, exclude=["4"])
    with torch.no_grad():
        for name, mask in masks.items():
            scored.get_parameter(name).mul_(mask)
            random.get_parameter(name).mul_(ops.select_topk(torch.rand(mask.shape), kept))
        errors = [(m(unseen) - model(unseen)).norm().item() for m in (compensated, scored, random)]
    assert errors[0] < errors[1] < errors[2], errors


def test_sequential_uses_the_inputs_of_the_pruned_model(digits):
    model, batches = copy.deepcopy(digits[0]), inputs_of(digits[1])
    dense = {k: v.clone() for k, v in model.state_dict().items()}
    masks = sparsegpt_(model, iter(batches), kept=0.3)
    by_hand = copy.deepcopy(digits[0])
    for i in (0, 2, 4):
        sums = calibrate(by_hand, batches, gram=True)[f"{i}.weight"]
        new, mask = sparsegpt_weight(dense[f"{i}.weight"], sums.gram, sums.samples, kept=0.3)
        assert torch.equal(mask, masks[f"{i}.weight"])
        with torch.no_grad():
            by_hand[i].weight.copy_(new)
        assert torch.equal(by_hand[i].weight, model[i].weight)
        assert torch.equal(model[i].bias, dense[f"{i}.bias"])
    at_once = copy.deepcopy(digits[0])
    sparsegpt_(at_once, batches, kept=0.3, sequential=False)
    sums = calibrate(digits[0], batches, gram=True)["4.weight"]
    new, _ = sparsegpt_weight(dense["4.weight"], sums.gram, sums.samples, kept=0.3)
    assert torch.equal(at_once[4].weight, new) and not torch.equal(new, model[4].weight)
    assert torch.equal(at_once[0].weight, model[0].weight)  # the first layer sees the same


def test_order_is_that_of_the_calls():
    class Backwards(nn.Module):
        def __init__(self):
            super().__init__()
            self.last, self.first = nn.Linear(6, 6), nn.Linear(6, 6)

        def forward(self, x):
            return self.last(self.first(x))

    model, x = Backwards(), torch.randn(40, 6)
    by_hand = copy.deepcopy(model)
    masks = sparsegpt_(model, [x], pattern="2:4")
    assert list(masks) == [
        "last.weight",
        "first.weight",
    ]  # named as the model is, pruned as it runs
    for name in ("first", "last"):
        layer = by_hand.get_submodule(name)
        sums = calibrate(by_hand, [x], gram=True)[f"{name}.weight"]
        new, _ = sparsegpt_weight(layer.weight, sums.gram, sums.samples, pattern="2:4")
        with torch.no_grad():
            layer.weight.copy_(new)
        assert torch.equal(model.get_submodule(name).weight, new)


def test_conv1d_and_conv2d():
    model, x = nn.Sequential(Conv1D(6, 8)), torch.randn(40, 8)
    dense = model[0].weight.detach().clone()
    masks = sparsegpt_(model, [x], pattern="2:4")
    new, mask = sparsegpt_weight(dense.t(), x.t() @ x, 40, pattern="2:4")
    assert torch.equal(model[0].weight.t(), new) and torch.equal(masks["0.weight"].t(), mask)
    conv = nn.Conv2d(2, 4, 3)
    mask = sparsegpt_(conv, [torch.randn(4, 2, 6, 6)], kept=0.5)["weight"]
    assert mask.shape == (4, 2, 3, 3) and int(mask.sum()) == 36
    assert torch.equal(conv.weight != 0, mask)


@pytest.mark.parametrize("sequential", [True, False])
def test_a_failure_leaves_every_weight_as_it_was(sequential):
    """The second layer has fewer samples than inputs that differ, so without damping its H is singular."""
    model = nn.Sequential(nn.Linear(2, 8), nn.Linear(8, 4))
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with pytest.raises(RuntimeError, match=r"1\.weight: .* damping=0\.0") as error:
        sparsegpt_(model, [torch.randn(6, 2)], kept=0.5, damping=0.0, sequential=sequential)
    assert "float32" in str(error.value)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    sparsegpt_(model, [torch.randn(6, 2)], kept=0.5, sequential=sequential)  # damping helps
    assert not torch.equal(model[0].weight, before["0.weight"])


@pytest.mark.parametrize(
    "options, message",
    [
        ({}, "got 0 of them"),
        ({"kept": 0.5, "pattern": "2:4"}, "got 2 of them"),
        ({"kept": 1.5}, "got 1.5"),
        ({"pattern": "unstructured"}, "n:m pattern, got 'unstructured'"),
        ({"mask": torch.ones(2, 3, dtype=torch.bool)}, r"mask of shape \(2, 4\)"),
        ({"kept": 0.5, "damping": -1.0}, "got -1.0"),
        ({"kept": 0.5, "block": 0}, "got 0"),
        ({"kept": 0.5, "samples": 0}, "samples >= 1, got 0"),
        ({"kept": 0.5, "gram": torch.eye(3)}, r"gram of shape \(4, 4\)"),
    ],
    ids=str,
)
def test_rejects(options, message):
    arguments = {"gram": torch.eye(4), "samples": 5} | options
    with pytest.raises(ValueError, match=message):
        sparsegpt_weight(torch.ones(2, 4), **arguments)
