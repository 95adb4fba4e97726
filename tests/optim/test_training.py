"""Training with a PruneConfig ends at exactly the pattern, for every pattern, rule and optimizer."""

from __future__ import annotations

import pytest
import torch

import evoprune_kernels as ek

PATTERNS = [
    ("2:4", None, 0.5),
    ("1:4", None, 0.75),
    ("block:4x8", 0.75, 0.75),
    ("unstructured", 0.9, 0.9),
    ("channel", 0.5, 0.5),
]


def train(optimizer_class, steps=12, seed=0, model=None, **kwargs):
    torch.manual_seed(seed)
    model = model or torch.nn.Sequential(
        torch.nn.Linear(32, 64), torch.nn.ReLU(), torch.nn.Linear(64, 16)
    )
    optimizer = optimizer_class(model.named_parameters(), lr=0.05, **kwargs)
    x = torch.randn(128, 32)
    y = torch.randn(128, 16)
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = (model(x) - y).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return model, optimizer, losses


@pytest.mark.parametrize("optimizer_class", [ek.optim.AdamW, ek.optim.SGD])
@pytest.mark.parametrize("importance", ["magnitude", "evolution", "taylor"])
@pytest.mark.parametrize(("pattern", "sparsity", "expected"), PATTERNS)
def test_training_reaches_exactly_the_sparsity(
    optimizer_class, importance, pattern, sparsity, expected
):
    config = ek.PruneConfig(pattern, sparsity, importance, start=2, end=8, every=3)
    model, optimizer, losses = train(optimizer_class, prune=config)
    assert losses[-1] < losses[0]
    for name in ("0", "2"):
        weight = model.get_submodule(name).weight.detach()
        zero = weight == 0
        assert not weight[zero].signbit().any(), "a masked weight is -0.0"
        assert int(zero.sum()) == weight.numel() - round((1 - expected) * weight.numel())
        assert torch.equal(optimizer.masks()[model.get_submodule(name).weight], ~zero)
    assert (model[0].bias != 0).all()
    report = optimizer.sparsity_report()
    assert report["sparsity"] == pytest.approx(expected, abs=1e-3)
    assert set(report) == {"sparsity", "sparsity/0.weight", "sparsity/2.weight", "target/group0"}


def test_two_of_four_in_every_group():
    config = ek.PruneConfig("2:4", start=2, end=8, every=3)
    model, _, _ = train(ek.optim.AdamW, prune=config)
    assert ((model[0].weight == 0).view(64, 8, 4).sum(-1) == 2).all()


def oracle(params, grads, config, optimizer_class, steps, **kwargs):
    """The same training in float64 with torch's optimizer, and importance and masks as separate passes."""
    params = [p.detach().double().requires_grad_() for p in params]
    optimizer = optimizer_class(params, fused=False, foreach=False, **kwargs)
    importance = [torch.zeros_like(p) for p in params]
    masks = [torch.ones_like(p, dtype=torch.bool) for p in params]
    for t in range(1, steps + 1):
        old = [p.detach().clone() for p in params]
        for p, g in zip(params, grads(t), strict=True):
            p.grad = g.double()
        optimizer.step()
        alpha = 2 / (t + 1)
        with torch.no_grad():
            for i, p in enumerate(params):
                p.mul_(masks[i])
                if config.frozen_after is None or t <= config.frozen_after:
                    x = p if config.importance == "evolution" else (old[i] * p.grad).abs()
                    importance[i] += alpha * (x - importance[i])
            if config.due(t):
                for i, p in enumerate(params):
                    scores = p.abs() if config.importance == "magnitude" else importance[i].abs()
                    count = round(config.kept(t) * p.numel())
                    chosen = scores.flatten().sort(descending=True, stable=True).indices[:count]
                    masks[i] = (
                        torch.zeros(p.numel(), dtype=torch.bool)
                        .scatter_(0, chosen, True)
                        .view_as(p)
                    )
                    p.mul_(masks[i])
    return params, importance, masks


@pytest.mark.parametrize("importance", ["magnitude", "evolution", "taylor"])
@pytest.mark.parametrize(
    ("ours", "theirs", "kwargs"),
    [
        (ek.optim.AdamW, torch.optim.AdamW, {"lr": 0.02, "weight_decay": 0.1}),
        (ek.optim.AdamW, torch.optim.AdamW, {"lr": 0.02, "amsgrad": True, "maximize": True}),
        (ek.optim.SGD, torch.optim.SGD, {"lr": 0.02, "momentum": 0.9, "weight_decay": 0.1}),
        (ek.optim.SGD, torch.optim.SGD, {"lr": 0.02, "momentum": 0.9, "nesterov": True}),
        (ek.optim.SGD, torch.optim.SGD, {"lr": 0.02}),
    ],
)
def test_against_separate_passes_in_float64(ours, theirs, kwargs, importance):
    config = ek.PruneConfig("unstructured", 0.7, importance, start=4, end=16, every=4, freeze_at=20)
    start = [torch.randn(33, 17), torch.randn(8, 5, 3)]

    def grads(t):
        generator = torch.Generator().manual_seed(t)
        return [torch.randn(p.shape, generator=generator) for p in start]

    params = [torch.nn.Parameter(p.clone()) for p in start]
    optimizer = ours(params, prune=config, **kwargs)
    for t in range(1, 25):
        for p, g in zip(params, grads(t), strict=True):
            p.grad = g
        optimizer.step()
    truth, averages, masks = oracle(start, grads, config, theirs, 24, **kwargs)
    for i, p in enumerate(params):
        state = optimizer.state[p]
        assert torch.equal(state["mask"], masks[i])
        torch.testing.assert_close(p.double(), truth[i], atol=2e-5, rtol=2e-5)
        if importance == "magnitude":
            assert "importance" not in state
        else:
            assert state["importance"].dtype == torch.float32
            torch.testing.assert_close(
                state["importance"].double(), averages[i], atol=2e-5, rtol=2e-5
            )


@pytest.mark.parametrize("optimizer_class", [ek.optim.AdamW, ek.optim.SGD])
def test_no_masks_before_start_and_none_chosen_after_the_freeze(optimizer_class):
    w = torch.nn.Parameter(torch.randn(8, 16))
    config = ek.PruneConfig("2:4", start=4, end=8, every=2, freeze_at=10)
    optimizer = optimizer_class([w], lr=0.1, prune=config)
    group, masks = optimizer.param_groups[0], []
    for t in range(1, 16):
        w.grad = torch.randn(8, 16)
        optimizer.step()
        assert group["prune_step"] == t
        assert (len(optimizer.masks()) == 0) == (t < 4)
        assert t >= 4 or bool((w != 0).all())
        masks.append((optimizer.state[w]["mask"].clone(), optimizer.state[w]["importance"].clone()))
    assert group["prune_refreshes"] == 4  # 4, 6, 8, 10
    for mask, importance in masks[10:]:
        assert torch.equal(mask, masks[9][0]) and torch.equal(importance, masks[9][1])


@pytest.mark.parametrize("optimizer_class", [ek.optim.AdamW, ek.optim.SGD])
def test_steps_of_lr_zero_do_not_prune(optimizer_class):
    """A warm-up that starts at 0, and the phantom step of distributed checkpointing."""
    w = torch.nn.Parameter(torch.randn(8, 16))
    before = w.detach().clone()
    for lr in (0.0, torch.tensor(0.0)):
        optimizer = optimizer_class([w], lr=lr, prune=ek.PruneConfig("2:4"))
        w.grad = torch.randn(8, 16)
        optimizer.step()
        state = optimizer.state[w]
        assert torch.equal(w, before)
        assert state["mask"].all() and not state["importance"].any() and not optimizer.masks()
        assert optimizer.param_groups[0]["prune_step"] == 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("optimizer_class", [ek.optim.AdamW, ek.optim.SGD])
def test_other_dtypes(optimizer_class, dtype):
    torch.manual_seed(0)
    model = torch.nn.Linear(16, 8).to(dtype)
    optimizer = optimizer_class(
        [{"params": [model.weight]}, {"params": [torch.nn.Parameter(torch.randn(4, 4))]}],
        lr=0.05, prune=ek.PruneConfig("2:4", start=2, end=6, every=2),
    )  # fmt: skip
    for _ in range(8):
        optimizer.zero_grad()
        model(torch.randn(32, 16).to(dtype)).square().mean().backward()
        optimizer.step()
    state = optimizer.state[model.weight]
    assert ((model.weight == 0).view(8, 4, 4).sum(-1) == 2).all()
    assert state["importance"].dtype == torch.float32 and state["mask"].dtype == torch.bool
    assert model.weight.dtype == dtype


def test_threads_and_repetition_give_the_same_bits():
    results = []
    for threads in (1, 2, 1):
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        torch.manual_seed(0)
        w = torch.nn.Parameter(torch.randn(300, 257))
        config = ek.PruneConfig("block:8x8", 0.5, start=1, end=4, every=1)
        optimizer = ek.optim.AdamW([w], prune=config)
        for _ in range(5):
            w.grad = torch.randn(300, 257)
            optimizer.step()
        torch.set_num_threads(before)
        results.append([w.detach(), *optimizer.state[w].values()])
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_parameters_stay_the_same_objects_and_their_version_advances():
    w = torch.nn.Parameter(torch.randn(4, 8))
    pointer = w.data_ptr()
    optimizer = ek.optim.AdamW([w], prune=ek.PruneConfig("2:4", start=2))
    for _ in range(3):
        version = w._version
        w.grad = torch.randn(4, 8)
        optimizer.step()
        assert w._version > version, "caches of packed weights would not notice the step"
    assert optimizer.param_groups[0]["params"][0] is w and w.data_ptr() == pointer


def test_tied_weights_are_stepped_once():
    def train_once(tied_optimizer):
        torch.manual_seed(0)
        embedding, head = torch.nn.Embedding(12, 8), torch.nn.Linear(8, 12, bias=False)
        head.weight = embedding.weight
        model = torch.nn.Sequential(embedding, head)
        optimizer = tied_optimizer(model.parameters())
        for _ in range(3):
            optimizer.zero_grad()
            model(torch.arange(12)).square().mean().backward()
            optimizer.step()
        assert head.weight is embedding.weight
        return head.weight.detach(), optimizer

    expected, _ = train_once(lambda p: torch.optim.AdamW(p, lr=0.1, fused=False))
    late = ek.PruneConfig("2:4", start=100)
    weight, optimizer = train_once(lambda p: ek.optim.AdamW(p, lr=0.1, prune=late))
    torch.testing.assert_close(weight, expected)
    assert len(optimizer.state) == 1


def test_gradients_that_are_none_leave_everything_alone():
    a, b = torch.nn.Parameter(torch.randn(4, 8)), torch.nn.Parameter(torch.randn(4, 8))
    optimizer = ek.optim.AdamW([a, b], prune=ek.PruneConfig("2:4", start=50))
    for step in range(3):
        a.grad = torch.randn(4, 8)
        b.grad = torch.randn(4, 8) if step == 0 else None
        optimizer.step()
        if step == 0:
            before = [b.detach().clone(), *map(torch.clone, optimizer.state[b].values())]
    after = [b.detach(), *optimizer.state[b].values()]
    assert all(torch.equal(x, y) for x, y in zip(before, after, strict=True))
    a.grad = torch.zeros_like(a)
    optimizer.step()
    assert int(optimizer.state[a]["step"]) == 4, "a zero gradient is a step"


def test_sparse_gradients_of_a_pruned_group_are_refused_before_anything_changes():
    a, b = torch.nn.Parameter(torch.ones(4, 8)), torch.nn.Parameter(torch.ones(4, 3))
    optimizer = ek.optim.SGD([a, b], lr=0.1, prune=ek.PruneConfig("2:4"))
    a.grad = torch.ones(4, 8)
    b.grad = torch.sparse_coo_tensor([[1]], torch.ones(1, 3), (4, 3), check_invariants=True)
    with pytest.raises(
        RuntimeError, match=r"sparse gradients, got one for a parameter of shape \(4, 3\)"
    ):
        optimizer.step()
    assert (a == 1).all() and not optimizer.state


@pytest.mark.filterwarnings("ignore:a PruneConfig was given")
@pytest.mark.parametrize("optimizer_class", [ek.optim.AdamW, ek.optim.SGD])
def test_dtypes_and_sizes_mixed_in_one_group(optimizer_class):
    """Each parameter is stepped as if it were alone."""
    shapes = [(), (0,), (7,), (4, 8), (33, 17), (1, 1023), (3, 5, 2), (0, 4)]
    dtypes = [torch.float32, torch.bfloat16, torch.float64]

    def params_of():
        generator = torch.Generator().manual_seed(0)
        values = [torch.randn(s, generator=generator).to(d) for s in shapes for d in dtypes]
        return [torch.nn.Parameter(v) for v in values]

    def steps(optimizer, params):
        for step in range(4):
            for p in params:
                generator = torch.Generator().manual_seed(p.numel() + step)
                p.grad = torch.randn(p.shape, generator=generator).to(p.dtype)
            optimizer.step()

    config = ek.PruneConfig("2:4", start=2, every=1)
    together = params_of()
    steps(optimizer_class(together, lr=0.05, prune=config), together)
    for mine, alone in zip(together, params_of(), strict=True):
        steps(optimizer_class([{"params": [alone], "prune": config}], lr=0.05), [alone])
        assert torch.equal(mine, alone)


def test_a_transposed_weight_and_gradients_of_other_strides():
    """The state follows the layout of the parameter; the result is that of the contiguous one."""
    values, grads = torch.randn(12, 8), [torch.randn(12, 8) for _ in range(4)]
    results = []
    for layout in (lambda x: x.clone(), lambda x: x.t().contiguous().t()):
        w = torch.nn.Parameter(layout(values))
        optimizer = ek.optim.AdamW([w], lr=0.1, prune=ek.PruneConfig("2:4", start=1, every=1))
        for i, g in enumerate(grads):
            w.grad = g.clone() if i % 2 else g.t().contiguous().t()
            optimizer.step()
        assert optimizer.state[w]["mask"].stride() == w.stride()
        results.append(w.detach().contiguous())
    assert torch.equal(*results)
