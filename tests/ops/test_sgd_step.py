"""sgd_step_: 40 steps against torch and fp64, every rule and dtype, the first step, and everything that skips."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from evoprune_kernels import _ext, ops
from evoprune_kernels.importance import alpha as alpha_of
from evoprune_kernels.ops.sgd_step import OP, OP_TENSOR_LR
from tests.ops.steps import RULES, Problem, decayed, same_bits, update_importance_and_mask
from tests.tolerance import assert_accurate

BASE = {"lr": 0.05, "momentum": 0.9, "dampening": 0.0, "weight_decay": 0.1}
VARIANTS = {
    "plain": {"momentum": 0.0, "weight_decay": 0.0},
    "momentum": {},
    "dampening": {"dampening": 0.3},
    "nesterov": {"nesterov": True},
    "maximize": {"maximize": True},
}


def arguments(p: Problem) -> tuple[list[Tensor], ...]:
    return p.params, p.grads, p.first, p.importances, p.masks, p.steps


def step(p: Problem, impl=None, **kwargs) -> None:
    ops.sgd_step_(*arguments(p), **{**BASE, **kwargs}, impl=impl)


def oracle(p: Problem, *, lr, momentum, dampening, weight_decay, nesterov=False, maximize=False,
           rule="none", alpha=0.0, point="", sparse_decay=0.0) -> None:  # fmt: skip
    """One step in fp64, written from the formulas."""
    for i, w in enumerate(p.params):
        gradient = -p.grads[i] if maximize else p.grads[i]
        g = decayed(p, i, gradient, sparse_decay)
        d = g + weight_decay * w
        if momentum:
            b = p.first[i] = d if p.steps[i] == 0 else momentum * p.first[i] + (1 - dampening) * d
            d = d + momentum * b if nesterov else b
        p.steps[i] = p.steps[i] + 1
        p.params[i] = w - lr * d
        update_importance_and_mask(p, i, w, gradient, rule, alpha, point, sparse_decay)


def flat(tensors: list[Tensor]) -> Tensor:
    return torch.cat([t.detach().reshape(-1) for t in tensors])


def uninitialised(p: Problem) -> Problem:
    for buffer in p.first:  # the op must not read it before it wrote it
        buffer.fill_(float("nan"))
    return p


@pytest.mark.parametrize("impl", ["cpu", "reference"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_40_steps_against_torch(impl, variant, isa, threads):
    """Against torch.optim.SGD with importance and mask around it, every step, by the tolerance law."""
    options = {**BASE, **VARIANTS[variant]}
    ours = uninitialised(Problem.make())
    theirs, truth = ours.copy(), ours.double()
    leaves = [torch.nn.Parameter(w) for w in theirs.params]
    opt = torch.optim.SGD(leaves, foreach=False, **options)
    for t in range(1, 41):
        alpha = alpha_of("sqrt", t)
        for leaf, g in zip(leaves, ours.draw_gradients(t), strict=True):
            leaf.grad = g.clone()
        truth.grads = [g.double() for g in ours.grads]
        step(ours, impl, rule="evolution", alpha=alpha, **VARIANTS[variant])
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


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize(
    "dtype, state",
    [(torch.float32, None), (torch.bfloat16, torch.float32), (torch.bfloat16, None)],
    ids=["fp32", "bf16-fp32", "bf16"],
)
def test_kernel_against_reference_and_fp64(rule, dtype, state, isa):
    """Every rule and dtype, every element of every size: torch 2.13 leaves whole bf16 vectors untouched here."""
    p = Problem.make(dtype=dtype, state=state)
    for t in range(1, 11):
        p.draw_gradients(t)
        reference, truth = p.copy(), p.double()
        options = {"rule": rule, "alpha": alpha_of("linear", t), "nesterov": True}
        before = p.copy()
        step(p, "cpu", **options)
        step(reference, "reference", **options)
        oracle(truth, **{**BASE, **options})
        for name in ("params", "first", "importances"):
            assert_accurate(*(flat(getattr(x, name)) for x in (p, truth, reference)))
        assert not (flat(p.first) == flat(before.first)).all()


def test_bf16_moves_every_element():
    for n in (3, 16, 64, 67, 129):
        p = Problem.make([(n,)], dtype=torch.bfloat16)
        p.masks, p.grads = [], [torch.ones(n, dtype=torch.bfloat16)]
        before = p.params[0].clone()
        step(p, lr=1.0)
        assert (p.params[0] != before).all()


@pytest.mark.parametrize("variant", VARIANTS)
def test_bitwise_torch_fused_on_whole_vectors(variant):
    """Without pruning it is torch's fused SGD, bit for bit (fp32)."""
    if _ext.isa_level() == "baseline" or "AVX" not in torch.backends.cpu.get_cpu_capability():
        pytest.skip("torch's vectors on this CPU are not ours")
    p = uninitialised(Problem.make([(64, 64)]))
    p.importances, p.masks = [], []
    leaf = torch.nn.Parameter(p.params[0].clone())
    opt = torch.optim.SGD([leaf], fused=True, **{**BASE, **VARIANTS[variant]})
    for t in range(10):
        leaf.grad = p.draw_gradients(t)[0].clone()
        opt.step()
        step(p, **VARIANTS[variant])
        assert same_bits(p.params, [leaf])


@pytest.mark.parametrize("impl", ["cpu", "reference"])
@pytest.mark.parametrize("value", [1.0, 2.0])
def test_momentum_starts_after_a_skipped_first_step(impl, value):
    """The overflow of a first step leaves nothing behind, also not a buffer that counts as valid."""
    p = uninitialised(Problem.make())
    p.draw_gradients(0)
    p.grads[5][0] = float("inf")
    before = p.copy()
    step(p, impl, rule="evolution", alpha=1.0, found_inf=torch.tensor(value))
    assert same_bits(p.written(), before.written())
    fresh = uninitialised(Problem.make())
    for q in (p, fresh):
        q.draw_gradients(1)
        step(q, impl, rule="evolution", alpha=1.0, found_inf=torch.tensor(0.0), dampening=0.5)
    assert same_bits(p.written(), fresh.written())
    assert all(b.isfinite().all() for b in p.first)


@pytest.mark.parametrize("impl", ["cpu", "reference"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_grad_scale_unscales_in_place(impl, dtype):
    p = Problem.make(dtype=dtype)
    p.draw_gradients(0)
    scaled = p.copy()
    scaled.grads = [g * 1024 for g in p.grads]
    step(p, impl, rule="taylor", alpha=1.0)
    step(scaled, impl, rule="taylor", alpha=1.0, grad_scale=torch.tensor([1024.0]))
    assert same_bits(scaled.written(), p.written())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_threads_do_not_matter(dtype, isa):
    a = Problem.make([(3 * 16384 + 21,), (5,), (40000,)], dtype=dtype)
    a.draw_gradients(0)
    b = a.copy()
    before = torch.get_num_threads()
    for p, threads in ((a, 1), (b, 2)):
        torch.set_num_threads(threads)
        step(p, rule="taylor", alpha=0.4)
    torch.set_num_threads(before)
    assert same_bits(a.written(), b.written())


def test_layouts_and_canaries():
    expected = Problem.make([(6, 11)])
    expected.draw_gradients(0)
    p = expected.copy()
    buffer = torch.full((6, 23), 7.0)
    buffer[:, 1::2] = p.params[0]
    p.params = [buffer[:, 1::2]]
    p.grads = [p.grads[0].t().contiguous().t()]
    step(expected, rule="evolution", alpha=0.3)
    step(p, rule="evolution", alpha=0.3)
    assert same_bits(p.written(), expected.written())
    assert (buffer[:, ::2] == 7).all()


def test_nan_under_the_mask_is_zero():
    p = Problem.make([(20,)])
    p.grads = [torch.full((20,), float("nan"))]
    step(p)
    assert torch.equal(p.params[0].isnan(), p.masks[0])


@pytest.mark.parametrize("impl", ["cpu", "reference"])
def test_tensor_lr_and_empty_list(impl):
    a = Problem.make()
    a.draw_gradients(0)
    b = a.copy()
    step(a, impl, lr=0.25)
    step(b, impl, lr=torch.tensor(0.25, dtype=torch.float64))
    assert same_bits(a.written(), b.written())
    ops.sgd_step_([], [], [], [], [], [], lr=0.1, impl=impl)


def test_errors_hold_both_values():
    p = Problem.make([(4, 6)])
    p.draw_gradients(0)
    p.first = []
    with pytest.raises(ValueError, match=r"momentum=0\.9 needs 1 momentum_buffers, got 0"):
        step(p)
    p.first = [torch.zeros(4)]
    with pytest.raises(RuntimeError, match=r"momentum_buffers\[0\] has shape \[4\].*\[4, 6\]"):
        step(p)


SCALARS = {**BASE, "nesterov": True, "maximize": False, "rule": "evolution", "alpha": 0.5}


@pytest.mark.parametrize(
    "op, lr", [(OP, 0.1), (OP_TENSOR_LR, torch.tensor(0.1))], ids=["float", "tensor"]
)
def test_opcheck_and_compile(op, lr):
    p = Problem.make([(4, 6), (3,)])
    p.draw_gradients(0)
    torch.library.opcheck(op.overload, arguments(p), {**SCALARS, "lr": lr})

    @torch.compile(fullgraph=True, backend="aot_eager")
    def compiled(lists, lr):
        op.overload(*lists, **{**SCALARS, "lr": lr})

    twin = p.copy()
    compiled(arguments(p), lr)
    step(twin, **{**SCALARS, "lr": lr})
    assert same_bits(p.written(), twin.written())
