"""``adamw_step_`` on CUDA: the bits of the CPU kernel, 40 steps against torch and fp64, layouts, lists, traffic."""

from __future__ import annotations

import pytest
import torch

from evoprune_kernels import _ext, ops
from evoprune_kernels.importance import alpha as alpha_of
from evoprune_kernels.ops.adamw_step.reference import adamw_step_reference
from tests.cuda.steps import (
    LISTS,
    each_dtype,
    flat,
    footprint,
    problem,
    repeated,
    unaligned,
    with_gaps,
)
from tests.ops.steps import RULES, Problem, same_bits
from tests.ops.test_adamw_step import BASE, arguments, oracle
from tests.tolerance import assert_accurate

OPTIONS = {"amsgrad": False, "maximize": False, "rule": "none", "alpha": 0.0}


@pytest.fixture(autouse=True)
def small_memory(gpu, monkeypatch):
    """Filling the simulated memory takes longer than these problems."""
    monkeypatch.setattr(gpu, "memory_bytes", 1 << 22, raising=False)


def step(gpu, p: Problem, **kwargs) -> None:
    overload = ".tensor_lr" if isinstance(kwargs.get("lr"), torch.Tensor) else ""
    gpu.call(f"adamw_step_{overload}", *arguments(p), **{**BASE, **OPTIONS, **kwargs})


def reference(p: Problem, **kwargs) -> None:
    adamw_step_reference(*arguments(p), **{**BASE, **OPTIONS, **kwargs})


@pytest.mark.skipif(not _ext.cpu_loaded(), reason="no CPU kernels to compare with")
@pytest.mark.parametrize("rule", RULES)
@each_dtype
def test_bits_of_the_cpu_kernel(gpu, dtype, state, rule):
    ours = problem(dtype=dtype, state=state)
    theirs = ours.copy()
    features = {"amsgrad": True, "maximize": True, "grad_scale": torch.tensor(3.0)}
    for t, options in enumerate(({}, features), start=1):
        for p in (ours, theirs):
            p.draw_gradients(t)
        options = {"rule": rule, "alpha": alpha_of("linear", t), **options}
        step(gpu, ours, **options)
        ops.adamw_step_(*arguments(theirs), **BASE, **options, impl="cpu")
        assert same_bits(ours.written(), theirs.written())


@pytest.mark.parametrize("rule", RULES)
@each_dtype
def test_against_the_reference_and_fp64(gpu, dtype, state, rule):
    p = problem(dtype=dtype, state=state)
    options = {"rule": rule, "alpha": 0.4, "amsgrad": True}
    reference(p, **options)
    p.draw_gradients(1)
    torchs, truth = p.copy(), p.double()
    step(gpu, p, **options)
    reference(torchs, **options)
    oracle(truth, **BASE, **options)
    for name in ("params", "first", "second", "largest", "importances"):
        assert_accurate(*(flat(getattr(x, name)) for x in (p, truth, torchs)))


def test_40_steps_against_torch(gpu):
    ours = problem([(3, 41), ()])
    theirs, truth = ours.copy(), ours.double()
    leaves = [torch.nn.Parameter(w) for w in theirs.params]
    opt = torch.optim.AdamW(leaves, lr=0.01, weight_decay=0.1, foreach=False)
    for t in range(1, 41):
        alpha = alpha_of("linear", t)
        for leaf, g in zip(leaves, ours.draw_gradients(t), strict=True):
            leaf.grad = g.clone()
        truth.grads = [g.double() for g in ours.grads]
        step(gpu, ours, rule="taylor", alpha=alpha)
        before = [leaf.detach().clone() for leaf in leaves]
        opt.step()
        oracle(truth, rule="taylor", alpha=alpha, **BASE)
        with torch.no_grad():
            for i, leaf in enumerate(leaves):
                theirs.importances[i].lerp_((before[i] * leaf.grad).abs(), alpha)
                leaf.mul_(ours.masks[i])
        state = [opt.state[leaf] for leaf in leaves]
        for mine, exact, torchs in (
            (ours.params, truth.params, leaves),
            (ours.first, truth.first, [s["exp_avg"] for s in state]),
            (ours.second, truth.second, [s["exp_avg_sq"] for s in state]),
            (ours.importances, truth.importances, theirs.importances),
        ):
            assert_accurate(flat(mine), flat(exact), flat(torchs))
        assert [s.item() for s in ours.steps] == [t] * len(leaves)


@pytest.mark.parametrize("t", [0, 7, 999, 100_000])
def test_bias_corrections_keep_their_digits(gpu, t):
    """1 - 0.999999**t loses its digits in single precision."""
    p = problem([(64,)])
    p.steps = [torch.tensor(float(t))]
    truth = p.double()
    step(gpu, p, beta2=0.999999, weight_decay=0.0)
    oracle(truth, **{**BASE, "beta2": 0.999999, "weight_decay": 0.0})
    torch.testing.assert_close(p.params[0].double(), truth.params[0], atol=1e-7, rtol=1e-6)


@pytest.mark.parametrize("value", [1.0, 2.0, float("nan")])
def test_found_inf_changes_nothing(gpu, value):
    p = problem()
    p.grads[4][2] = float("inf")
    before = p.copy()
    skip = {"found_inf": torch.tensor(value), "grad_scale": torch.tensor(8.0)}
    step(gpu, p, rule="evolution", alpha=0.5, amsgrad=True, **skip)
    assert same_bits(p.written(), before.written())
    step(gpu, p, found_inf=torch.zeros(1))
    assert [s.item() for s in p.steps] == [1.0] * len(p.steps)


def test_steps_on_the_cpu(gpu):
    """Beside tensors on the device: the same bits, and found_inf is heeded."""
    device = problem()
    device.steps = [torch.tensor(float(i)) for i in range(len(device.params))]
    host = device.copy()
    zero, one = torch.zeros(()), torch.ones(())
    step(gpu, device, rule="taylor", alpha=0.5, found_inf=zero)
    try:
        gpu.on_host = host.steps
        step(gpu, host, rule="taylor", alpha=0.5, found_inf=zero)
        assert same_bits(host.written(), device.written())
        step(gpu, host, rule="taylor", alpha=0.5, found_inf=one)
        assert same_bits(host.written(), device.written())
    finally:
        gpu.on_host = []


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("on_host", [False, True])
def test_lr_and_scale_as_tensors(gpu, dtype, on_host):
    number = problem([(40,), (4101,)])
    tensor = number.copy()
    lr, scale = torch.tensor([0.25], dtype=dtype), torch.tensor(4.0, dtype=dtype)
    step(gpu, number, lr=0.25, grad_scale=torch.tensor(4.0))
    try:
        gpu.on_host = [lr, scale] if on_host else []
        step(gpu, tensor, lr=lr, grad_scale=scale)
    finally:
        gpu.on_host = []
    assert same_bits(tensor.written(), number.written())


@each_dtype
def test_any_layout(gpu, dtype, state):
    """Aligned, unaligned, with gaps and of other strides: the same bits, nothing written in between."""
    options = {"rule": "evolution", "alpha": 0.3, "amsgrad": True, "grad_scale": torch.tensor(2.0)}
    start = problem([(6, 11), (37, 5)], dtype, state)
    expected, moved = start.copy(), unaligned(start)
    gaps, around = with_gaps(start)
    transposed = start.copy()
    for name in LISTS:
        setattr(transposed, name, [t.t().contiguous().t() for t in getattr(transposed, name)])
    mixed = start.copy()
    mixed.grads = transposed.copy().grads
    step(gpu, expected, **options)
    for p in (moved, gaps, transposed, mixed):
        step(gpu, p, **options)
        assert same_bits(p.written(), expected.written())
    assert transposed.params[0].stride() == (1, 6)
    assert all((memory[:, ::2] == 7).all() for memory in around)


def test_long_lists_take_few_launches(gpu):
    """405 tensors pass the 400 of a launch."""
    many = problem([(3,)] * 405)
    many.steps = [torch.tensor(float(i % 7)) for i in range(405)]
    many.masks, many.importances, many.largest = [], [], []
    expected = many.copy()
    step(gpu, many)
    reference(expected)
    assert [s.item() for s in many.steps] == [s.item() for s in expected.steps]
    torch.testing.assert_close(flat(many.params), flat(expected.params))
    launches = [name for name, _ in gpu.launches]
    assert sum("step_factors_kernel" in name for name in launches) == 1
    assert sum("adamw_step_kernel" in name for name in launches) == 2


def test_mixed_dtypes_and_no_masks(gpu):
    parts = [problem([(300,)], *kind) for kind in ((torch.float32, None), (torch.bfloat16, None))]
    parts.append(problem([(77,)], torch.bfloat16, torch.float32))
    names = (*LISTS[:1], *LISTS[2:], "steps", "grads")
    joined = Problem(*([getattr(part, name)[0].clone() for part in parts] for name in names))
    for p in (*parts, joined):
        p.masks, p.largest = [], []
        step(gpu, p)
    assert same_bits(joined.params, [part.params[0] for part in parts])


def test_the_same_parameter_twice_steps_twice(gpu):
    once = problem([(4101,)])
    twice = repeated(once)
    for _ in range(2):
        step(gpu, once, rule="evolution", alpha=0.5)
    step(gpu, twice, rule="evolution", alpha=0.5)
    assert same_bits(twice.params[:1] + twice.steps[:1], once.params + once.steps)


def test_nan_stays_where_it_is_and_masked_weights_are_positive_zero(gpu):
    p = problem([(40,)])
    p.params[0][5:8] = -0.0
    p.grads[0][[3, 37]] = float("nan")
    p.masks[0][[3, 37, 5, 6]] = torch.tensor([True, False, False, True])
    twin = p.copy()
    step(gpu, p, rule="evolution", alpha=0.5, amsgrad=True)
    assert p.params[0].isnan().nonzero().flatten().tolist() == [3]
    assert p.largest[0].isnan().nonzero().flatten().tolist() == [3, 37]
    masked = p.params[0][~p.masks[0]]
    assert same_bits([masked], [torch.zeros_like(masked)])
    step(gpu, twin, rule="evolution", alpha=0.5, amsgrad=True)
    assert same_bits(twin.written(), p.written())


@pytest.mark.parametrize("state", [torch.float32, None], ids=["fp32", "bf16"])
def test_a_seed_rounds_as_the_reference_does(gpu, state):
    """The random bits are the same bitwise; a sum that differs in fp32 may cross a limit now and then."""
    p = problem(dtype=torch.bfloat16, state=state)
    for t in range(1, 3):
        p.draw_gradients(t)
        torchs = p.copy()
        options = {"rule": "evolution", "alpha": 0.5, "amsgrad": True, "seed": -5 + (1 << 40)}
        step(gpu, p, **options)
        reference(torchs, **options)
        for name in ("params", "first", "second", "largest"):
            ours, theirs = flat(getattr(p, name)), flat(getattr(torchs, name))
            if ours.dtype == torch.bfloat16:
                assert (ours == theirs).float().mean() > 0.999, name
            torch.testing.assert_close(ours, theirs, rtol=1 / 64, atol=1e-6)
        masked = flat(p.params)[~flat(p.masks)]
        assert same_bits([masked], [torch.zeros_like(masked)])


def test_a_seed_changes_nothing_in_fp32_and_no_layout_changes_its_bits(gpu):
    plain = problem([(6, 11)])
    seeded = plain.copy()
    step(gpu, plain)
    step(gpu, seeded, seed=3)
    assert same_bits(plain.written(), seeded.written())
    start = problem([(6, 11)], torch.bfloat16)
    rows, moved, columns, other = start.copy(), unaligned(start), start.copy(), start.copy()
    for name in LISTS:
        setattr(columns, name, [t.t().contiguous().t() for t in getattr(columns, name)])
    for p in (rows, moved, columns):
        step(gpu, p, seed=3)
    assert same_bits(moved.written(), rows.written())
    assert same_bits(columns.written(), rows.written())
    step(gpu, other, seed=4)
    assert not same_bits(other.params, rows.params)


def test_empty_tensors_count_their_steps(gpu):
    p = problem([(0,), (0, 3)])
    step(gpu, p, rule="evolution", alpha=0.5)
    assert [s.item() for s in p.steps] == [1.0, 1.0]


TWO = torch.zeros(4, 6)
ERRORS = {  # what is wrong -> (list, its tensors, options, message)
    "count": ("grads", [TWO], {}, r"expected 2 grads, got 1"),
    "amsgrad": ("largest", [], {"amsgrad": True}, r"needs 2 max_exp_avg_sqs, got 0"),
    "rule": ("importances", [], {"rule": "taylor"}, r"taylor needs 2 importances.* got 0"),
    "name": ("largest", [], {"rule": "fisher"}, r"expected rule none.* got fisher"),
    "alpha": ("largest", [], {"alpha": 1.5}, r"expected 0 <= alpha <= 1, got 1\.5"),
    "beta": ("largest", [], {"beta2": 1.5}, r"expected 0 <= beta2 <= 1, got 1\.5"),
    "steps": ("steps", [TWO, TWO], {}, r"steps\[0\] of 1 element.*got 24"),
    "shape": ("first", [TWO, TWO], {}, r"exp_avgs\[1\] has shape \[4, 6\], its parameter \[3\]"),
    "dtype": ("grads", [TWO.double(), TWO[0, :3]], {}, r"grads\[0\] has dtype Double"),
    "double": ("params", [TWO.double(), TWO[0, :3]], {}, r"Double, expected Float or BFloat16"),
    "scale": ("largest", [], {"grad_scale": TWO}, r"grad_scale of 1 element, got shape \[4, 6\]"),
    "overlap": ("first", [TWO[:1].expand(4, 6), TWO[0, :3]], {}, r"exp_avgs\[0\].*share memory"),
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


def test_traffic_is_37_bytes_a_parameter(gpu):
    """w, g, m, v and importance read, all but g written, a byte of mask; three tensors of 20,000 elements in fp32."""
    p = problem([(20_000,)] * 3)
    p.largest = []
    step(gpu, p, rule="evolution", alpha=0.5)
    assert footprint(gpu) <= 37.2 * 60_000
    passes = [stats for name, stats in gpu.launches if "adamw_step_kernel" in name]
    (stats,) = passes
    # stores of whole sectors; loads too, but for what each warp reads of the factors (two sectors)
    assert stats["global.store.sectors"] * 32 == stats["global.store.bytes"] == 16 * 60_000
    warps = 3 * 5 * 8
    assert stats["global.load.sectors"] == 21 * 60_000 // 32 + 2 * warps


def test_traffic_of_bf16(gpu):
    """fp32 moments and importance beside bf16: no sector is fetched in halves."""
    p = problem([(20_480,)], torch.bfloat16, torch.float32)
    p.largest, p.masks = [], []
    step(gpu, p, rule="taylor", alpha=0.5)
    (stats,) = [stats for name, stats in gpu.launches if "adamw_step_kernel" in name]
    assert stats["global.store.sectors"] * 32 == stats["global.store.bytes"] == 14 * 20_480
    assert footprint(gpu) <= (16 + 14) * 20_480 + 500
