"""adamw_step_: 40 steps against torch and fp64, every rule, dtype, ISA level and layout, and everything that skips."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from evoprune_kernels import _ext, ops
from evoprune_kernels.importance import alpha as alpha_of
from evoprune_kernels.ops.adamw_step import OP, OP_TENSOR_LR
from tests.ops.steps import RULES, SHAPES, Problem, decayed, same_bits, update_importance_and_mask
from tests.tolerance import assert_accurate

BASE = {"lr": 0.01, "beta1": 0.9, "beta2": 0.999, "eps": 1e-8, "weight_decay": 0.1}


def arguments(p: Problem) -> tuple[list[Tensor], ...]:
    return p.params, p.grads, p.first, p.second, p.largest, p.importances, p.masks, p.steps


def step(p: Problem, impl=None, **kwargs) -> None:
    ops.adamw_step_(*arguments(p), **{**BASE, **kwargs}, impl=impl)


def oracle(p: Problem, *, lr, beta1, beta2, eps, weight_decay, amsgrad=False, maximize=False,
           rule="none", alpha=0.0, point="", sparse_decay=0.0) -> None:  # fmt: skip
    """One step in fp64, written from the formulas."""
    for i, w in enumerate(p.params):
        p.steps[i] = p.steps[i] + 1
        t = p.steps[i]
        gradient = -p.grads[i] if maximize else p.grads[i]
        g = decayed(p, i, gradient, sparse_decay)
        p.first[i] = beta1 * p.first[i] + (1 - beta1) * g
        p.second[i] = beta2 * p.second[i] + (1 - beta2) * g**2
        v = p.second[i]
        if amsgrad:
            v = p.largest[i] = torch.maximum(p.largest[i], v)
        m_hat, v_hat = p.first[i] / (1 - beta1**t), v / (1 - beta2**t)
        p.params[i] = w - lr * weight_decay * w - lr * m_hat / (v_hat.sqrt() + eps)
        update_importance_and_mask(p, i, w, gradient, rule, alpha, point, sparse_decay)


def flat(tensors: list[Tensor]) -> Tensor:
    return torch.cat([t.detach().reshape(-1) for t in tensors])


@pytest.mark.parametrize("impl", ["cpu", "reference"])
@pytest.mark.parametrize("amsgrad", [False, True])
@pytest.mark.parametrize("maximize", [False, True])
def test_40_steps_against_torch(impl, amsgrad, maximize, isa, threads):
    """Against torch.optim.AdamW with importance and mask around it, every step, by the tolerance law."""
    ours = Problem.make()
    theirs = ours.copy()
    options = {"amsgrad": amsgrad, "maximize": maximize}
    leaves = [torch.nn.Parameter(w) for w in theirs.params]
    opt = torch.optim.AdamW(leaves, lr=0.01, weight_decay=0.1, foreach=False, **options)
    truth = ours.double()
    for t in range(1, 41):
        alpha = alpha_of("linear", t)
        for leaf, g in zip(leaves, ours.draw_gradients(t), strict=True):
            leaf.grad = g.clone()
        truth.grads = [g.double() for g in ours.grads]
        step(ours, impl, rule="evolution", alpha=alpha, **options)
        opt.step()
        oracle(truth, rule="evolution", alpha=alpha, **BASE, **options)
        with torch.no_grad():
            for leaf, mask, average in zip(leaves, ours.masks, theirs.importances, strict=True):
                leaf.mul_(mask)
                average.lerp_(leaf, alpha)
        state = [opt.state[leaf] for leaf in leaves]
        for mine, exact, torchs in (
            (ours.params, truth.params, leaves),
            (ours.first, truth.first, [s["exp_avg"] for s in state]),
            (ours.second, truth.second, [s["exp_avg_sq"] for s in state]),
            (ours.importances, truth.importances, theirs.importances),
        ):
            assert_accurate(flat(mine), flat(exact), flat(torchs))
        if amsgrad:
            theirs_max = flat([s["max_exp_avg_sq"] for s in state])
            assert_accurate(flat(ours.largest), flat(truth.largest), theirs_max)
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
    """Every rule and dtype; each step starts from the same state, so the bound is that of one step."""
    p = Problem.make(dtype=dtype, state=state)
    for t in range(1, 11):
        p.draw_gradients(t)
        reference, truth = p.copy(), p.double()
        options = {"rule": rule, "alpha": alpha_of("linear", t)}
        step(p, "cpu", **options)
        step(reference, "reference", **options)
        oracle(truth, **BASE, **options)
        lists = ("params", "first", "second", "importances")
        for name in lists:
            assert_accurate(*(flat(getattr(x, name)) for x in (p, truth, reference)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("amsgrad", [False, True])
def test_bitwise_torch_fused_on_whole_vectors(dtype, amsgrad):
    """Without pruning it is torch's fused AdamW, bit for bit (torch's tails use double: whole vectors only)."""
    if _ext.isa_level() == "baseline" or "AVX" not in torch.backends.cpu.get_cpu_capability():
        pytest.skip("torch's vectors on this CPU are not ours")
    p = Problem.make([(64, 64)], dtype=dtype)
    leaf = torch.nn.Parameter(p.params[0].clone())
    opt = torch.optim.AdamW([leaf], lr=0.01, weight_decay=0.1, amsgrad=amsgrad, fused=True)
    p.importances, p.masks = [], []
    for t in range(10):
        leaf.grad = p.draw_gradients(t)[0].clone()
        opt.step()
        step(p, amsgrad=amsgrad)
        state = opt.state[leaf]
        assert same_bits(
            [*p.params, *p.first, *p.second], [leaf, state["exp_avg"], state["exp_avg_sq"]]
        )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_position_and_threads_do_not_matter(dtype, isa):
    """An element gives the same bits in a tail, in a vector, in any chunk and with any number of threads."""
    n = 3 * 16384 + 21
    whole = Problem.make([(n,), (5,), (40000,)], dtype=dtype)
    whole.draw_gradients(0)
    twin = whole.copy()
    before = torch.get_num_threads()
    for p, threads in ((whole, 1), (twin, 2)):
        torch.set_num_threads(threads)
        step(p, rule="taylor", alpha=0.4)
    torch.set_num_threads(before)
    assert same_bits(whole.written(), twin.written())
    single = Problem.make([(n,), (5,), (40000,)], dtype=dtype)
    single.draw_gradients(0)
    for i in range(3):  # element by element: everything is a tail
        for e in (0, 1, 4):
            one = Problem(*([x[i][e : e + 1].clone()] for x in (
                single.params, single.first, single.second, single.largest, single.importances, single.masks)),
                steps=[torch.tensor(0.0)], grads=[single.grads[i][e : e + 1].clone()])  # fmt: skip
            step(one, rule="taylor", alpha=0.4)
            assert same_bits(
                one.params + one.importances,
                [whole.params[i][e : e + 1], whole.importances[i][e : e + 1]],
            )


@pytest.mark.parametrize("impl", ["cpu", "reference"])
@pytest.mark.parametrize("value", [1.0, 2.0, float("nan")])
@pytest.mark.parametrize("at_first_step", [True, False])
def test_found_inf_changes_nothing(impl, value, at_first_step):
    p = Problem.make()
    if not at_first_step:
        p.draw_gradients(0)
        step(p, impl, rule="evolution", alpha=0.5)
    p.draw_gradients(1)
    p.grads[4][2] = float("inf")
    before = p.copy()
    skip = {"found_inf": torch.tensor(value), "grad_scale": torch.tensor(8.0)}
    step(p, impl, rule="evolution", alpha=0.5, amsgrad=True, **skip)
    assert same_bits(p.written(), before.written())
    p.draw_gradients(2)
    step(p, impl, found_inf=torch.zeros(1))
    assert p.steps[1].item() == before.steps[1].item() + 1


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


def views(contiguous: list[Tensor], kind: str) -> tuple[list[Tensor], list[Tensor]]:
    """The same values in memory of another layout, and the buffers around them."""
    out, buffers = [], []
    for t in contiguous:
        if kind == "transposed":
            view = t.t().contiguous().t()
            buffers.append(view)
        else:  # columns of a wider buffer, canaries between
            buffer = torch.full((t.shape[0], 2 * t.shape[1] + 1), 7, dtype=t.dtype)
            view = buffer[:, 1::2]
            view.copy_(t)
            buffers.append(buffer)
        out.append(view)
    return out, buffers


@pytest.mark.parametrize("impl", ["cpu", "reference"])
@pytest.mark.parametrize("params", ["contiguous", "transposed", "gaps"])
@pytest.mark.parametrize("others", ["contiguous", "transposed", "gaps"])
def test_any_layout(impl, params, others):
    """Strides of one index may differ, views may have gaps: the same values, and nothing written between them."""
    expected = Problem.make([(6, 11), (37, 5)])
    expected.draw_gradients(0)
    p = expected.copy()
    buffers = []
    for name in ("params", "grads", "first", "second", "largest", "importances", "masks"):
        kind = params if name in ("params", "second") else others
        if kind != "contiguous":
            tensors, around = views(getattr(p, name), kind)
            setattr(p, name, tensors)
            buffers += around if kind == "gaps" else []
    options = {"rule": "evolution", "alpha": 0.3, "amsgrad": True, "grad_scale": torch.tensor(2.0)}
    step(expected, impl, **options)
    step(p, impl, **options)
    assert same_bits(p.written(), expected.written())
    for buffer in buffers:
        assert (buffer[:, ::2] == torch.tensor(7).to(buffer.dtype)).all()


def test_channels_last_runs_in_place():
    p = Problem.make([(4, 3, 5, 5)])
    p.draw_gradients(0)
    expected = p.copy()
    for name in ("params", "grads", "first", "second", "largest", "importances", "masks"):
        tensors = [t.to(memory_format=torch.channels_last) for t in getattr(p, name)]
        setattr(p, name, tensors)
    step(expected, rule="evolution", alpha=0.5)
    step(p, rule="evolution", alpha=0.5)
    assert same_bits(p.written(), expected.written())
    assert p.params[0].is_contiguous(memory_format=torch.channels_last)


def test_expanded_gradient_is_read_and_expanded_weight_refused():
    p = Problem.make([(4, 6)])
    p.grads = [torch.ones(1, 6).expand(4, 6)]
    expected = p.copy()
    expected.grads = [torch.ones(4, 6)]
    step(p)
    step(expected)
    assert same_bits(p.params, expected.params)
    p.params = [torch.ones(1, 6).expand(4, 6)]
    with pytest.raises(RuntimeError, match=r"params\[0\] of shape \[4, 6\].*share memory"):
        step(p, "cpu")


@pytest.mark.parametrize("impl", ["cpu", "reference"])
def test_the_same_parameter_twice_steps_twice(impl, threads):
    once = Problem.make([(40000,)])
    once.draw_gradients(0)
    twice = once.copy()
    for name in ("params", "grads", "first", "second", "largest", "importances", "masks", "steps"):
        setattr(twice, name, getattr(twice, name) * 2)
    for _ in range(2):
        step(once, impl, rule="evolution", alpha=0.5)
    step(twice, impl, rule="evolution", alpha=0.5)
    assert same_bits(twice.params[:1] + twice.steps[:1], once.params + once.steps)


@pytest.mark.parametrize("impl", ["cpu", "reference"])
def test_nan_stays_where_it_is(impl):
    p = Problem.make([(40,)])
    p.draw_gradients(0)
    p.grads[0][[3, 37]] = float("nan")
    p.masks[0][3], p.masks[0][37] = True, False
    step(p, impl, rule="evolution", alpha=0.5, amsgrad=True)
    assert p.params[0].isnan().nonzero().flatten().tolist() == [3]
    assert p.largest[0].isnan().nonzero().flatten().tolist() == [3, 37]
    assert same_bits([p.params[0][37:38]], [torch.zeros(1)])


@pytest.mark.parametrize("impl", ["cpu", "reference"])
def test_tensor_lr(impl):
    number = Problem.make()
    number.draw_gradients(0)
    for lr in (torch.tensor(0.25), torch.tensor([0.25], dtype=torch.float64)):
        a, b = number.copy(), number.copy()
        step(a, impl, lr=0.25)
        step(b, impl, lr=lr)
        assert same_bits(a.written(), b.written())


def test_mixed_dtypes_in_one_list(threads):
    parts = [Problem.make([(300,)], dtype=d) for d in (torch.float32, torch.bfloat16)]
    parts.append(Problem.make([(77,)], dtype=torch.bfloat16, state=torch.float32))
    for part in parts:
        part.draw_gradients(0)
    names = ("params", "first", "second", "largest", "importances", "masks", "steps", "grads")
    joined = Problem(*([getattr(part, name)[0].clone() for part in parts] for name in names))
    for part in parts:
        step(part, rule="taylor", alpha=0.5)
    step(joined, rule="taylor", alpha=0.5)
    assert same_bits(joined.params, [part.params[0] for part in parts])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
def test_other_dtypes_take_the_reference(dtype):
    p = Problem.make([(9,)], dtype=dtype)
    p.draw_gradients(0)
    truth = p.double()
    step(p, rule="evolution", alpha=1.0)
    oracle(truth, rule="evolution", alpha=1.0, **BASE)
    torch.testing.assert_close(p.params[0].double(), truth.params[0], atol=1e-3, rtol=1e-3)
    with pytest.raises(RuntimeError, match=r"params\[0\] has dtype"):
        step(p, "cpu")


def test_version_counters_advance():
    p = Problem.make([(5,)])
    p.draw_gradients(0)
    before = [t._version for t in p.written()]
    step(p)
    assert all(t._version > v for t, v in zip(p.written(), before, strict=True))


def broken(name: str, value) -> Problem:
    p = Problem.make([(4, 6), (3,)])
    p.draw_gradients(0)
    setattr(p, name, value)
    return p


two = torch.zeros(4, 6)
ERRORS = {  # what is wrong -> (list, its tensors, options, error, message)
    "grads": ("grads", [two], {}, ValueError, r"expected 2 grads.*got 1"),
    "masks": ("masks", [two.bool()], {}, ValueError, r"expected 2 masks.*got 1"),
    "amsgrad": ("largest", [], {"amsgrad": True}, ValueError, r"needs 2 max_exp_avg_sqs.*got 0"),
    "rule": ("importances", [], {"rule": "taylor"}, ValueError, r"'taylor' needs 2 .*got 0"),
    "steps": ("steps", [two, two], {}, RuntimeError, r"steps\[0\] of 1 element.*got 24"),
    "shape": ("first", [two, two], {}, RuntimeError, r"exp_avgs\[1\].*\[4, 6\].*\[3\]"),
    "state": (
        "second",
        [two.bfloat16(), two[0, :3]],
        {},
        RuntimeError,
        r"BFloat16, expected Float",
    ),
    "bool": ("masks", [two, two[0, :3]], {}, RuntimeError, r"masks\[0\].*Float, expected Bool"),
    "dtype": ("grads", [two.double(), two[0, :3]], {}, RuntimeError, r"grads\[0\].*Double"),
}


@pytest.mark.parametrize("what", ERRORS)
def test_errors_hold_both_values_and_change_nothing(what):
    name, tensors, options, error, message = ERRORS[what]
    p = Problem.make([(4, 6), (3,)])
    p.draw_gradients(0)
    setattr(p, name, tensors)
    before = p.copy()
    with pytest.raises(error, match=message):
        step(p, **options)
    assert same_bits(p.written(), before.written())


def test_rejects_unknown_rule_and_alpha_out_of_range():
    p = Problem.make([(3,)])
    p.draw_gradients(0)
    for options, message in (({"rule": "fisher"}, "'fisher'"), ({"alpha": 1.5}, r"1\.5")):
        with pytest.raises(ValueError, match=message):
            step(p, **options)


@pytest.mark.parametrize("impl", ["cpu", "reference"])
def test_empty_list(impl):
    ops.adamw_step_([], [], [], [], [], [], [], [], **BASE, impl=impl)


SCALARS = {**BASE, "amsgrad": True, "maximize": False, "rule": "taylor", "alpha": 0.5}


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


def test_shapes_cover_tails():
    assert {torch.Size(s).numel() % 16 for s in SHAPES} >= {0, 1, 7, 8, 9, 15}
