"""Scores -> masks of a group: the n:m ramp, global scope, transposed and many-dimensional weights, late parameters."""

from __future__ import annotations

import pytest
import torch

import evoprune_kernels as ek
from evoprune_kernels import PruneConfig
from evoprune_kernels.optim._selection import as_matrix, select_nm_ramp


def nm_ramp_by_hand(scores, n, m, kept):
    """Every group: what it loses under n:m; the groups that lose least are pruned."""
    rows, columns = scores.shape
    groups = []
    for r in range(rows):
        for start in range(0, columns, m):
            entries = sorted(
                range(start, min(start + m, columns)), key=lambda c: (-scores[r, c], c)
            )
            groups.append((r, entries[:n], entries[n:]))
    lost = [sum(float(scores[r, c]) for c in gone) for r, _, gone in groups]
    share = (kept - n / m) / (1 - n / m)
    dense = set(
        sorted(range(len(groups)), key=lambda i: (-lost[i], i))[: round(share * len(groups))]
    )
    mask = torch.ones(rows, columns, dtype=torch.bool)
    for i, (r, _, gone) in enumerate(groups):
        if i not in dense:
            mask[r, gone] = False
    return mask


@pytest.mark.parametrize("shape", [(8, 32), (5, 30), (3, 3), (1, 4), (0, 4), (4, 0)])
@pytest.mark.parametrize("kept", [0.5, 0.6, 0.875, 1.0])
def test_nm_ramp(shape, kept):
    scores = torch.randint(0, 6, shape).float()
    assert torch.equal(select_nm_ramp(scores, 2, 4, kept), nm_ramp_by_hand(scores, 2, 4, kept))


def test_shared_rows_keep_the_same_columns():
    """2:4v16: the mask of the sums over 16 rows, the last strip of fewer rows; a ramp keeps whole strips dense."""
    w = torch.nn.Parameter(torch.randn(40, 32))
    sums = torch.stack([part.detach().abs().sum(0) for part in w.split(16)])
    optimizer = prune_now([w], magnitude("2:4v16", start=1))
    expected = ek.ops.select_nm(sums, 2, 4).repeat_interleave(16, 0)[:40]
    assert torch.equal(optimizer.masks()[w], expected)
    assert torch.equal(ek.ops.select_nm(w.detach().abs(), 2, 4, shared=16), expected)
    assert optimizer.sparsity_report()["sparsity"] == 0.5
    assert ek.ops.nm_pack(w.detach(), 2, 4, shared=16).meta.shape == (3, 4)


def test_nm_ramp_that_keeps_all():
    assert select_nm_ramp(torch.rand(3, 8), 4, 4, 1.0).all()


def magnitude(pattern, sparsity=None, **kwargs):
    return PruneConfig(pattern, sparsity, "magnitude", **kwargs)


def prune_now(params, config, optimizer_class=ek.optim.SGD):
    """One step of lr 1e-9 and zero gradients, so only the mask acts."""
    optimizer = optimizer_class(params, lr=1e-9, prune=config)
    for group in optimizer.param_groups:
        for p in group["params"]:
            p.grad = torch.zeros_like(p)
    optimizer.step()
    return optimizer


def test_ramp_of_two_of_four_grows_to_the_pattern():
    torch.manual_seed(0)
    w = torch.nn.Parameter(torch.randn(16, 64))
    optimizer = ek.optim.SGD([w], lr=1e-6, prune=magnitude("2:4", start=1, end=9, every=2))
    seen = []
    for _ in range(10):
        w.grad = torch.zeros_like(w)
        optimizer.step()
        zeros = (w == 0).view(16, 16, 4).sum(-1)
        assert set(zeros.unique().tolist()) <= {0, 2}
        seen.append(float((w == 0).float().mean()))
    assert seen == sorted(seen) and seen[0] == 0.0 and seen[-1] == 0.5 and 0 < seen[4] < 0.5


def test_global_scope_ranks_over_the_group():
    torch.manual_seed(0)
    small, large = (
        torch.nn.Parameter(torch.randn(8, 8) * 0.1),
        torch.nn.Parameter(torch.randn(4, 16)),
    )
    values = torch.cat([small.detach().flatten(), large.detach().flatten()]).abs()
    threshold = values.sort(descending=True).values[31]
    prune_now([small, large], magnitude("unstructured", 0.75, scope="global"))
    kept = torch.cat([small.detach().flatten(), large.detach().flatten()]) != 0
    assert torch.equal(kept, values >= threshold)
    assert int(kept.sum()) == 32 and (small == 0).float().mean() > 0.9


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_convolutions_are_seen_as_matrices(memory_format):
    torch.manual_seed(0)
    w = torch.nn.Parameter(torch.randn(8, 4, 3, 3).contiguous(memory_format=memory_format))
    expected = ek.ops.select_nm(w.detach().abs().reshape(8, 36), 2, 4).view(8, 4, 3, 3)
    optimizer = prune_now([w], magnitude("2:4"))
    assert torch.equal(w != 0, expected)
    assert optimizer.state[w]["mask"].stride() == w.stride()
    assert as_matrix(torch.zeros(0, 3, 3)).shape == (0, 0)


def test_transposed_weights_follow_the_pattern_of_the_transpose():
    w = torch.nn.Parameter(torch.randn(16, 8))
    expected = ek.ops.select_nm(w.detach().abs().t().contiguous(), 2, 4).t()
    prune_now([w], magnitude("2:4", transposed=True))
    assert torch.equal(w != 0, expected)


def test_channel_removes_whole_rows():
    w = torch.nn.Parameter(torch.randn(10, 7))
    sums = w.detach().abs().sum(1)
    prune_now([w], magnitude("channel", 0.3))
    gone = (w == 0).all(1)
    assert int(gone.sum()) == 3 and sums[gone].max() < sums[~gone].min()
    assert not (w[~gone] == 0).any()


def test_empty_and_tiny_weights():
    for shape in [(0, 4), (4, 0), (1, 3), (5, 3), (6, 3, 1)]:
        for config in (
            magnitude("2:4"),
            magnitude("unstructured", 0.5),
            magnitude("block:4x2", 0.5),
        ):
            prune_now([torch.nn.Parameter(torch.randn(shape))], config)


def test_nan_and_infinity_in_weights_do_not_crash():
    w = torch.nn.Parameter(torch.tensor([[float("nan"), 1.0, float("inf"), 2.0]]))
    prune_now([w], magnitude("2:4"))
    assert w[0, 0] == 0 and w[0, 1] == 0 and w[0, 3] != 0


def test_importance_that_was_never_gathered_falls_back_to_the_magnitude():
    """Zero gradients from the start give a Taylor score of 0 everywhere: no reason to drop the large weights."""
    w = torch.nn.Parameter(torch.tensor([[4.0, 3.0, 2.0, 1.0, 1.0, 2.0, 3.0, 4.0]]))
    prune_now([w], PruneConfig("2:4", importance="taylor"))
    torch.testing.assert_close(w.detach(), torch.tensor([[4.0, 3.0, 0, 0, 0, 0, 3.0, 4.0]]))


def test_a_parameter_whose_first_gradient_comes_after_the_freeze_is_masked_at_once():
    early, late = torch.nn.Parameter(torch.randn(4, 8)), torch.nn.Parameter(torch.randn(4, 8))
    optimizer = ek.optim.AdamW([early, late], prune=PruneConfig("2:4", start=1, end=2))
    for step in range(5):
        early.grad = torch.randn(4, 8)
        late.grad = torch.randn(4, 8) if step >= 3 else None
        optimizer.step()
        if step == 2:
            assert (late != 0).all() and late not in optimizer.state
    assert int((late == 0).sum()) == 16 and int((early == 0).sum()) == 16


def test_frozen_parameters_are_left_alone():
    w = torch.nn.Parameter(torch.randn(4, 8))
    optimizer = ek.optim.AdamW([w], prune=PruneConfig("2:4", start=2))
    w.grad = torch.randn(4, 8)
    optimizer.step()
    w.requires_grad_(False)
    before = w.clone()
    w.grad = None
    optimizer.step()
    assert torch.equal(w, before)


def test_prunable_groups_of_tied_and_excluded_weights():
    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding = torch.nn.Embedding(10, 8)
            self.body = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.LayerNorm(8))
            self.head = torch.nn.Linear(8, 10, bias=False)
            self.head.weight = self.embedding.weight
            self.out = torch.nn.Linear(8, 4)
            self.frozen = torch.nn.Linear(8, 4).requires_grad_(False)

    config = PruneConfig()
    groups = ek.optim.prunable_groups(Model(), config, exclude=["ou*"])
    assert [[n for n, _ in g["params"]] for g in groups] == [
        ["body.0.weight"],
        [
            "embedding.weight",
            "body.0.bias",
            "body.1.weight",
            "body.1.bias",
            "out.weight",
            "out.bias",
        ],
    ]
    assert [g["prune"] for g in groups] == [config, None]
    for exclude in (["nothing"], "body.2"):
        with pytest.raises(ValueError, match="match no module"):
            ek.optim.prunable_groups(Model(), config, exclude=exclude)
    with pytest.raises(ValueError, match="no weight to prune in Model"):
        ek.optim.prunable_groups(Model(), config, exclude=["*"])
    torch.optim.AdamW(ek.optim.prunable_groups(Model(), config))


def test_prunable_groups_of_transformers_conv1d():
    transformers = pytest.importorskip("transformers")
    conv = transformers.pytorch_utils.Conv1D(8, 16)
    groups = ek.optim.prunable_groups(
        torch.nn.Sequential(conv, torch.nn.Linear(8, 8)), PruneConfig()
    )
    assert [[n for n, _ in g["params"]] for g in groups] == [
        ["1.weight"],
        ["0.weight"],
        ["0.bias", "1.bias"],
    ]
    assert [g["prune"] and g["prune"].transposed for g in groups] == [False, True, None]
