"""``sgd_step_`` on CUDA: the bits of the CPU kernel, 40 steps against torch and fp64, the first step, rounding."""

from __future__ import annotations

import pytest
import torch

from evoprune_kernels import _ext, ops
from evoprune_kernels.importance import alpha as alpha_of
from evoprune_kernels.ops.sgd_step.reference import sgd_step_reference
from tests.cuda.steps import (
    each_dtype,
    flat,
    footprint,
    problem,
    repeated,
    unaligned,
    with_gaps,
)
from tests.ops.steps import RULES, Problem, same_bits
from tests.ops.test_sgd_step import BASE, VARIANTS, arguments, oracle, uninitialised
from tests.tolerance import assert_accurate

OPTIONS = {"nesterov": False, "maximize": False, "rule": "none", "alpha": 0.0}


@pytest.fixture(autouse=True)
def small_memory(gpu, monkeypatch):
    """Filling the simulated memory takes longer than these problems."""
    monkeypatch.setattr(gpu, "memory_bytes", 1 << 22, raising=False)


def step(gpu, p: Problem, **kwargs) -> None:
    overload = ".tensor_lr" if isinstance(kwargs.get("lr"), torch.Tensor) else ""
    gpu.call(f"sgd_step_{overload}", *arguments(p), **{**BASE, **OPTIONS, **kwargs})


def reference(p: Problem, **kwargs) -> None:
    sgd_step_reference(*arguments(p), **{**BASE, **OPTIONS, **kwargs})


def launches(gpu, kernel: str) -> int:
    return sum(kernel in name for name, _ in gpu.launches)


@pytest.mark.skipif(not _ext.cpu_loaded(), reason="no CPU kernels to compare with")
@pytest.mark.parametrize("rule", RULES)
@each_dtype
def test_bits_of_the_cpu_kernel(gpu, dtype, state, rule):
    ours = uninitialised(problem(dtype=dtype, state=state))
    theirs = ours.copy()
    features = {"nesterov": True, "maximize": True, "grad_scale": torch.tensor(3.0)}
    for t, options in enumerate(({}, features), start=1):
        for p in (ours, theirs):
            p.draw_gradients(t)
        options = {"rule": rule, "alpha": alpha_of("sqrt", t), "dampening": 0.25, **options}
        step(gpu, ours, **options)
        ops.sgd_step_(*arguments(theirs), **{**BASE, **options}, impl="cpu")
        assert same_bits(ours.written(), theirs.written())


@pytest.mark.parametrize("rule", RULES[1:])
@each_dtype
def test_against_the_reference_and_fp64(gpu, dtype, state, rule):
    p = problem(dtype=dtype, state=state)
    options = {"rule": rule, "alpha": 0.4, "nesterov": True}
    reference(p, **options)
    p.draw_gradients(1)
    torchs, truth = p.copy(), p.double()
    step(gpu, p, **options)
    reference(torchs, **options)
    oracle(truth, **{**BASE, **options})
    for name in ("params", "first", "importances"):
        assert_accurate(*(flat(getattr(x, name)) for x in (p, truth, torchs)))


@pytest.mark.parametrize("variant", VARIANTS)
def test_steps_against_torch(gpu, variant):
    options = {**BASE, **VARIANTS[variant]}
    ours = uninitialised(problem([(3, 41), ()]))
    theirs, truth = ours.copy(), ours.double()
    leaves = [torch.nn.Parameter(w) for w in theirs.params]
    opt = torch.optim.SGD(leaves, foreach=False, **options)
    for t in range(1, 41 if variant == "momentum" else 4):
        alpha = alpha_of("sqrt", t)
        for leaf, g in zip(leaves, ours.draw_gradients(t), strict=True):
            leaf.grad = g.clone()
        truth.grads = [g.double() for g in ours.grads]
        step(gpu, ours, rule="evolution", alpha=alpha, **VARIANTS[variant])
        opt.step()
        oracle(truth, rule="evolution", alpha=alpha, **options)
        with torch.no_grad():
            for leaf, mask, average in zip(leaves, ours.masks, theirs.importances, strict=True):
                leaf.mul_(mask)
                average.lerp_(leaf, alpha)
        assert_accurate(flat(ours.params), flat(truth.params), flat(leaves))
        assert_accurate(flat(ours.importances), flat(truth.importances), flat(theirs.importances))
        if options["momentum"]:
            buffers = [opt.state[leaf]["momentum_buffer"] for leaf in leaves]
            assert_accurate(flat(ours.first), flat(truth.first), flat(buffers))
        masked = flat(ours.params)[~flat(ours.masks)]
        assert same_bits([masked], [torch.zeros_like(masked)])  # +0.0, not -0.0
        assert all(s.item() == t for s in ours.steps)


@pytest.mark.parametrize("value", [1.0, float("nan")])
def test_a_skipped_first_step_leaves_the_buffer_unread(gpu, value):
    p = uninitialised(problem([(33,), (4101,)]))
    before = p.copy()
    skip = {"found_inf": torch.tensor(value), "grad_scale": torch.tensor(8.0)}
    step(gpu, p, rule="evolution", alpha=0.5, **skip)
    assert same_bits(p.written(), before.written())
    step(gpu, p, rule="evolution", alpha=0.5, found_inf=torch.zeros(1))
    assert [s.item() for s in p.steps] == [1.0, 1.0]
    assert not flat(p.first).isnan().any()


@pytest.mark.parametrize("on_host", [False, True])
def test_lr_and_steps_as_tensors(gpu, on_host):
    number = problem([(40,), (4101,)])
    number.steps[1] += 3
    tensor = number.copy()
    lr = torch.tensor([0.3], dtype=torch.float64)
    step(gpu, number, lr=0.3)
    try:
        gpu.on_host = [lr, *tensor.steps] if on_host else []
        step(gpu, tensor, lr=lr)
    finally:
        gpu.on_host = []
    assert same_bits(tensor.written(), number.written())


@each_dtype
def test_any_layout(gpu, dtype, state):
    options = {"rule": "taylor", "alpha": 0.3, "grad_scale": torch.tensor(2.0)}
    start = problem([(6, 11), (37, 5)], dtype, state)
    expected, moved = start.copy(), unaligned(start)
    gaps, around = with_gaps(start)
    step(gpu, expected, **options)
    for p in (moved, gaps):
        step(gpu, p, **options)
        assert same_bits(p.written(), expected.written())
    assert all((memory[:, ::2] == 7).all() for memory in around)


def test_long_lists_take_few_launches(gpu):
    """2001 counters pass the 2000 of a launch; empty tensors cost nothing else."""
    many = problem([(0,)] * 2000 + [(5,)])
    many.masks, many.importances, many.first = [], [], []
    many.steps = [torch.tensor(float(i % 7)) for i in range(2001)]
    expected = many.copy()
    step(gpu, many, momentum=0.0)
    reference(expected, momentum=0.0)
    assert [s.item() for s in many.steps] == [s.item() for s in expected.steps]
    torch.testing.assert_close(many.params[-1], expected.params[-1])
    assert launches(gpu, "step_factors_kernel") == 2
    assert launches(gpu, "sgd_step_kernel") == 1


def test_shared_parameters_and_shared_counters_step_in_turn(gpu):
    once = problem([(40,)])
    twice = repeated(once)
    for _ in range(2):
        step(gpu, once, rule="evolution", alpha=0.5)
    step(gpu, twice, rule="evolution", alpha=0.5)
    assert same_bits(twice.params[:1] + twice.steps[:1], once.params + once.steps)
    one_counter = problem([(40,), (40,)])
    one_counter.steps = [one_counter.steps[0]] * 2
    step(gpu, one_counter)
    assert one_counter.steps[0].item() == 2


def test_a_seed_rounds_bit_for_bit_as_the_reference_does(gpu):
    """With lr and alpha of powers of two every fp32 sum has one rounding, in whatever order it is written."""
    shapes = [(4101,), (7,), (0,), (), (130, 3)]
    options = {"momentum": 0.0, "weight_decay": 0.0, "lr": 1 / 64, "seed": 12345}
    ours = problem(shapes, torch.bfloat16)
    theirs, nearest = ours.copy(), ours.copy()
    for t in range(1, 3):
        for p in (ours, theirs):
            p.draw_gradients(t)
        step(gpu, ours, rule="evolution", alpha=0.5, **options)
        reference(theirs, rule="evolution", alpha=0.5, **options)
        assert same_bits(ours.params, theirs.params)
        assert same_bits(ours.importances, theirs.importances)
        masked = flat(ours.params)[~flat(ours.masks)]
        assert same_bits([masked], [torch.zeros_like(masked)])
    step(gpu, nearest, **{**options, "seed": None})
    assert not same_bits(nearest.params, ours.params)


def test_small_changes_add_up_with_a_seed(gpu):
    """A thousandth of what bf16 can tell from 1: lost by rounding to nearest, right on average with a seed."""
    p = Problem.make([(16_384,)], torch.bfloat16)
    p.params[0].fill_(1.0)
    p.grads = [torch.full_like(p.params[0], -1.0)]
    p.masks, p.first, p.importances = [], [], []
    lr = 2.0**-7 / 8
    nearest = p.copy()
    options = {"momentum": 0.0, "weight_decay": 0.0, "lr": lr}
    step(gpu, nearest, **options)
    assert (nearest.params[0] == 1).all()
    step(gpu, p, **options, seed=1)
    assert set(p.params[0].tolist()) == {1.0, 1.0 + 2.0**-7}
    share = (p.params[0] > 1).float().mean().item()
    assert abs(share - 1 / 8) < 4 * (1 / 8 * 7 / 8 / 16_384) ** 0.5


def test_values_of_bf16_and_nan_stay_as_they_are_with_a_seed(gpu):
    p = Problem.make([(8,)], torch.bfloat16)
    p.masks, p.first, p.importances = [], [], []
    values = [0.0, -0.0, float("inf"), -float("inf"), float("nan"), 3.3895e38, -1e-39, 1.5]
    p.params = [torch.tensor(values).bfloat16()]
    p.grads = [torch.zeros(8).bfloat16()]
    before = p.copy()
    step(gpu, p, momentum=0.0, weight_decay=0.0, seed=7)
    assert p.params[0].isnan().tolist() == before.params[0].isnan().tolist()
    ours, theirs = p.params[0].nan_to_num(nan=0.0), before.params[0].nan_to_num(nan=0.0)
    assert same_bits([ours[2:]], [theirs[2:]])
    assert same_bits([ours[:1]], [theirs[:1]])


TWO = torch.zeros(4, 6)
ERRORS = {  # what is wrong -> (list, its tensors, options, message)
    "momentum": ("first", [], {}, r"momentum=0.9 needs 2 momentum_buffers, got 0"),
    "shape": ("first", [TWO, TWO], {}, r"momentum_buffers\[1\] has shape \[4, 6\]"),
    "lr": ("first", [TWO, TWO[0, :3]], {"lr": TWO}, r"lr of 1 element, got shape \[4, 6\]"),
}


@pytest.mark.parametrize("what", ERRORS)
def test_bad_input_launches_nothing(gpu, what):
    name, tensors, options, message = ERRORS[what]
    p = problem([(4, 6), (3,)])
    setattr(p, name, tensors)
    before = p.copy()
    with pytest.raises(RuntimeError, match=message):
        step(gpu, p, **options)
    assert gpu.launches == []
    assert same_bits(p.written(), before.written())


def test_traffic_is_29_bytes_a_parameter(gpu):
    """w, g, b and importance read, all but g written, a byte of mask; at the first step the buffer is not read."""
    p = problem([(20_000,)] * 2)
    step(gpu, p, rule="taylor", alpha=0.5)
    assert footprint(gpu) <= 25.2 * 40_000
    step(gpu, p, rule="taylor", alpha=0.5)
    assert footprint(gpu) <= 29.2 * 40_000
    (stats,) = [stats for name, stats in gpu.launches if "sgd_step_kernel" in name]
    assert stats["global.store.sectors"] * 32 == stats["global.store.bytes"] == 12 * 40_000
