"""SET, RigL and SNFS inside the optimizer: random start, equal exchange, fresh moments, layer budgets, resumption."""

from __future__ import annotations

import copy

import pytest
import torch

import evoprune_kernels as ek
from evoprune_kernels import PruneConfig

SHAPES = [(12, 20), (6, 12)]


def make(grow, optimizer_class=ek.optim.AdamW, scope="tensor", **kwargs):
    generator = torch.Generator().manual_seed(0)
    params = [torch.nn.Parameter(torch.randn(s, generator=generator)) for s in SHAPES]
    config = PruneConfig(
        "unstructured", 0.75, importance="magnitude", grow=grow, ramp="constant", start=1, every=2, end=20,
        drop_fraction=0.5, scope=scope, seed=3,
    )  # fmt: skip
    return params, optimizer_class(params, lr=0.05, prune=config, **kwargs)


def step(params, optimizer, seed):
    generator = torch.Generator().manual_seed(seed)
    for p in params:
        p.grad = torch.randn(p.shape, generator=generator)
    optimizer.step()


def masks_of(params, optimizer):
    held = optimizer.masks()
    return [held[p].clone() for p in params]


@pytest.mark.parametrize("grow", ["random", "gradient", "momentum"])
def test_every_exchange_keeps_the_count_and_zeroes_what_grows(grow):
    params, optimizer = make(grow)
    step(params, optimizer, 0)
    before = masks_of(params, optimizer)
    for p, mask in zip(params, before, strict=True):
        assert int(mask.sum()) == round(0.25 * p.numel())
        assert bool((p[~mask] == 0).all())
    changed = False
    for t in range(2, 12):
        step(params, optimizer, t)
        after = masks_of(params, optimizer)
        for p, old, new in zip(params, before, after, strict=True):
            assert int(new.sum()) == int(old.sum())
            grown = new & ~old
            changed = changed or bool(grown.any())
            assert bool((p[grown] == 0).all()) and bool((p[~new] == 0).all())
            for moment in ("exp_avg", "exp_avg_sq"):
                assert bool((optimizer.state[p][moment][grown] == 0).all())
        before = after
    assert changed


def test_rigl_grows_where_the_gradient_is_largest():
    """Against a plain-Python exchange on the same weights, mask and gradient."""
    params, optimizer = make("gradient")
    step(params, optimizer, 0)
    step(params, optimizer, 1)
    old = masks_of(params, optimizer)
    step(params, optimizer, 2)  # t = 3: due
    fraction = 0.5 / 2 * (1 + torch.cos(torch.tensor(torch.pi * 2 / 19)).item())
    for p, mask, new in zip(params, old, masks_of(params, optimizer), strict=True):
        moved = replay(params, p)
        flat, kept = moved.flatten().tolist(), mask.flatten().tolist()
        active = [i for i, keep in enumerate(kept) if keep]
        count = int(fraction * len(active))
        stay = set(sorted(active, key=lambda i: (-abs(flat[i]), i))[: len(active) - count])
        g = p.grad.flatten().abs().tolist()
        outside = sorted((i for i in range(len(flat)) if i not in stay), key=lambda i: (-g[i], i))
        assert stay | set(outside[:count]) == set(new.flatten().nonzero().flatten().tolist())


def replay(params, wanted):
    """The weight at the moment of the third step's exchange: the same steps with masks given, none chosen."""
    fresh, optimizer = make("gradient")
    step(fresh, optimizer, 0)
    step(fresh, optimizer, 1)
    for group in optimizer.param_groups:
        group["prune"] = {**group["prune"], "ramp": "given"}
    step(fresh, optimizer, 2)
    return fresh[[p is wanted for p in params].index(True)].detach()


def test_erk_budgets_are_those_of_the_selection():
    params, optimizer = make("random", scope="erk")
    step(params, optimizer, 0)
    shares = ek.selection.erk({"0": SHAPES[0], "1": SHAPES[1]}, 0.25)
    for mask, share in zip(masks_of(params, optimizer), shares.values(), strict=True):
        assert int(mask.sum()) == round(share * mask.numel())
    assert shares["0"] < shares["1"]


def test_erk_with_scores_keeps_the_total():
    generator = torch.Generator().manual_seed(1)
    params = [torch.nn.Parameter(torch.randn(s, generator=generator)) for s in SHAPES]
    config = PruneConfig("unstructured", 0.8, importance="magnitude", scope="erk", start=1, end=1)
    optimizer = ek.optim.SGD(params, lr=1e-6, prune=config)
    step(params, optimizer, 0)
    kept = [int(m.sum()) for m in masks_of(params, optimizer)]
    assert sum(kept) == round(0.2 * sum(p.numel() for p in params))
    for p, count in zip(params, kept, strict=True):
        assert int((p != 0).sum()) == count


def test_a_resumed_run_draws_the_same_masks():
    params, optimizer = make("random")
    for t in range(4):
        step(params, optimizer, t)
    saved = copy.deepcopy((optimizer.state_dict(), [p.detach().clone() for p in params]))
    for t in range(4, 9):
        step(params, optimizer, t)
    others, other = make("random")
    other.load_state_dict(saved[0])
    with torch.no_grad():
        for p, w in zip(others, saved[1], strict=True):
            p.copy_(w)
    for t in range(4, 9):
        step(others, other, t)
    for a, b in zip(masks_of(params, optimizer), masks_of(others, other), strict=True):
        assert torch.equal(a, b)


def test_masks_freeze_at_the_end():
    params, optimizer = make("random")
    for t in range(21):
        step(params, optimizer, t)
    frozen = masks_of(params, optimizer)
    for t in range(21, 26):
        step(params, optimizer, t)
    for a, b in zip(frozen, masks_of(params, optimizer), strict=True):
        assert torch.equal(a, b)


def test_growth_by_momentum_needs_one():
    with pytest.raises(ValueError, match=r"grow='momentum' needs .* got SGD with momentum=0"):
        make("momentum", ek.optim.SGD)
    params, optimizer = make("momentum", ek.optim.SGD, momentum=0.9)
    for t in range(4):
        step(params, optimizer, t)
    assert int(optimizer.masks()[params[0]].sum()) == round(0.25 * params[0].numel())


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"grow": "up"}, "grow in .* got 'up'"),
        ({"grow": "random"}, "'constant', got 'unstructured' and 'cubic'"),
        ({"grow": "random", "ramp": "constant", "drop_fraction": 0.0}, "got drop_fraction=0.0"),
        ({"grow": "random", "ramp": "constant", "sparse_decay": 1e-4}, "must be 0, got 0.0001"),
        ({"sparse_decay": -1.0}, "sparse_decay >= 0, got sparse_decay=-1.0"),
        ({"sparse_decay": float("nan")}, "got sparse_decay=nan"),
        ({"scope": "erk", "pattern": "2:4", "sparsity": None}, "free density, got '2:4'"),
        ({"point": "mid"}, "got 'mid'"),
        ({"window": 0}, "window >= 1, got 0"),
        ({"average_from": 0}, "average_from >= 1, got 0"),
        ({"sensitivity_beta": 1.0}, "got sensitivity_beta=1.0"),
        ({"rounding": "up"}, "got 'up'"),
        ({"ramp": "step"}, "got 'step'"),
        ({"ramp": "step:0"}, "got 'step:0'"),
        ({"ramp": "cubic:3"}, "got 'cubic:3'"),
    ],
)
def test_bad_configurations(kwargs, message):
    with pytest.raises(ValueError, match=message):
        PruneConfig(**{"pattern": "unstructured", "sparsity": 0.5, **kwargs})
