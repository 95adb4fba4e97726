"""What the optimizer steps do for importance rules: closed forms, the point, sparse decay, bf16 state, errors."""

from __future__ import annotations

import functools

import pytest
import torch

from evoprune_kernels import _ext, ops
from evoprune_kernels.importance import KERNEL_RULES, alpha, averaged_step
from evoprune_kernels.ops import _step
from evoprune_kernels.ops.adamw_step import OP as ADAMW
from evoprune_kernels.ops.sgd_step import OP as SGD
from tests.ops import test_adamw_step as adamw
from tests.ops import test_sgd_step as sgd
from tests.ops.steps import (
    POINT_OF,
    RULES,
    TINY_RATES,
    VALUES,
    ZERO_RATES,
    Problem,
    assert_no_importance_moves,
    assert_the_point,
    same_bits,
    weights_seen,
)
from tests.tolerance import assert_accurate

each_optimizer = pytest.mark.parametrize("module", [adamw, sgd], ids=["adamw", "sgd"])
each_impl = pytest.mark.parametrize("impl", ["cpu", "reference"])
each_rule = pytest.mark.parametrize("rule", POINT_OF)
each_point = pytest.mark.parametrize("point", ["pre", "post"])
WEIGHTS = {"linear": lambda j: float(j), "mean": lambda j: 1.0, "ewma": lambda j: 0.99**-j}


def test_the_rules_of_the_ops_are_those_of_the_package():
    assert RULES == _step.RULE_NAMES
    assert {name: rule.default_point for name, rule in KERNEL_RULES.items()} == POINT_OF


@each_optimizer
@each_rule
@each_point
@pytest.mark.parametrize("averaging", WEIGHTS)
def test_40_steps_are_the_weighted_mean(module, rule, point, averaging):
    """In fp64, from step 4 on, against the sum of all values; "mean" times the steps is the accumulated sum."""
    p = Problem.make([(3, 5), (7,)]).double_for_ops()
    start, values, weights = 4, [], []
    for t in range(1, 41):
        p.grads = [g.double() for g in p.draw_gradients(t)]
        n = averaged_step(t, start)
        before = p.copy()
        options = {"rule": rule, "alpha": alpha(averaging, n), "point": point} if n else {}
        step = functools.partial(module.step, impl="reference")
        step(p, **options)
        weight = weights_seen(step, before, p, rule, point)
        if n:
            weights.append(WEIGHTS[averaging](n))
            values.append([VALUES[rule](w, g) for w, g in zip(weight, p.grads, strict=True)])
    assert len(values) == 37
    for i, importance in enumerate(p.importances):
        total = sum(w * v[i] for w, v in zip(weights, values, strict=True))
        torch.testing.assert_close(importance, total / sum(weights), rtol=1e-11, atol=1e-13)
        if averaging == "mean":
            torch.testing.assert_close(37 * importance, sum(v[i] for v in values))


@each_optimizer
@each_rule
@each_point
@each_impl
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_point_bitwise(module, rule, point, impl, dtype, isa, threads):
    """Of the weight as stored, and for products not yet masked; masked weights other than zero included."""
    p = Problem.make(dtype=dtype)
    p.draw_gradients(3)
    assert_the_point(functools.partial(module.step, impl=impl), p, rule, point)


@each_optimizer
@each_rule
def test_the_usual_point_is_that_of_the_rule(module, rule, isa):
    p, named = Problem.make(), Problem.make()
    for t in range(2):
        for q in (p, named):
            q.draw_gradients(t)
        module.step(p, "cpu", rule=rule, alpha=0.25)
        module.step(named, "cpu", rule=rule, alpha=0.25, point=POINT_OF[rule])
        assert same_bits(p.written(), named.written())


@each_optimizer
@each_impl
def test_a_masked_weight_can_become_important(module, impl):
    """ "post" sees the update of a masked weight, "pre" sees the zero: the reason for looking before the mask."""
    p = Problem.make([(400,)])
    p.draw_gradients(0)
    module.step(p, impl)
    found = {}
    for point in ("pre", "post"):
        twin = p.copy()
        module.step(twin, impl, rule="taylor", alpha=1.0, point=point)
        found[point] = twin.importances[0][~p.masks[0]]
        assert twin.params[0][~p.masks[0]].count_nonzero() == 0
    assert (found["pre"] == 0).all() and (found["post"] > 0).all()


@each_optimizer
@each_rule
@each_point
@pytest.mark.parametrize(
    "dtype, state",
    [(torch.float32, None), (torch.bfloat16, torch.float32), (torch.bfloat16, None)],
    ids=["fp32", "bf16-fp32", "bf16"],
)
@pytest.mark.parametrize("sparse_decay", [0.0, 0.3])
def test_kernel_against_reference_and_fp64(module, rule, point, dtype, state, sparse_decay, isa):
    p = Problem.make(dtype=dtype, state=state)
    for t in range(1, 4):
        p.draw_gradients(t)
        reference, truth = p.copy(), p.double()
        options = {"rule": rule, "alpha": alpha("linear", t), "point": point}
        options |= {"sparse_decay": sparse_decay, "maximize": t == 3}
        module.step(p, "cpu", **options)
        module.step(reference, "reference", **options)
        module.oracle(truth, **{**module.BASE, **options})
        for name in ("params", "first", "importances"):
            assert_accurate(*(module.flat(getattr(x, name)) for x in (p, truth, reference)))


@each_optimizer
@each_impl
def test_sparse_decay_pulls_masked_weights_and_no_others(module, impl):
    """Kept weights take the dense step, bit for bit; the others shrink, and are not zeroed; the importance is of g."""
    p = Problem.make([(33,), (3, 41)])
    p.draw_gradients(0)
    before, dense = p.copy(), p.copy()
    dense.masks = []
    options = {"rule": "taylor", "alpha": 1.0, "weight_decay": 0.0}
    module.step(p, impl, sparse_decay=0.5, **options)
    module.step(dense, impl, **options)
    assert same_bits(p.importances, dense.importances)
    for w, other, m in zip(p.params, dense.params, p.masks, strict=True):
        assert same_bits([w[m]], [other[m]])
        assert w[~m].count_nonzero() == w[~m].numel()
    p, plain = before.copy(), before
    p.grads = [torch.zeros_like(g) for g in p.grads]
    plain = p.copy()
    module.step(p, impl, sparse_decay=0.5, weight_decay=0.0)
    for w, old, m in zip(p.params, plain.params, p.masks, strict=True):
        assert same_bits([w[m]], [old[m]])
        assert (w[~m].abs() < old[~m].abs()).all()


@each_optimizer
@each_impl
def test_a_tiny_sparse_decay_still_does_not_zero(module, impl):
    p = Problem.make([(40,)])
    p.draw_gradients(0)
    dense = p.copy()
    dense.masks = []
    module.step(p, impl, sparse_decay=1e-60)
    module.step(dense, impl)
    assert same_bits(p.params, dense.params)


@each_optimizer
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_position_and_threads_do_not_matter_with_sparse_decay(module, dtype, isa):
    a = Problem.make([(3 * 16384 + 21,), (5,), (40000,)], dtype=dtype)
    a.draw_gradients(0)
    b = a.copy()
    options = {"rule": "movement", "alpha": 0.3, "point": "post", "sparse_decay": 0.1}
    before = torch.get_num_threads()
    for p, threads in ((a, 1), (b, 2)):
        torch.set_num_threads(threads)
        module.step(p, "cpu", **options)
    torch.set_num_threads(before)
    assert same_bits(a.written(), b.written())


@each_optimizer
@each_impl
@each_rule
@each_point
def test_nan_reaches_the_importance_that_saw_it(module, impl, rule, point):
    p = Problem.make([(40,)])
    p.draw_gradients(0)
    p.grads[0][[3, 37]] = float("nan")
    p.masks[0][3], p.masks[0][37] = True, False
    module.step(p, impl, rule=rule, alpha=0.5, point=point)
    product = rule in ("taylor", "movement")
    found = [3, 37] if product else [3] if point == "post" else []
    assert p.importances[0].isnan().nonzero().flatten().tolist() == found
    assert p.params[0].isnan().nonzero().flatten().tolist() == [3]


@each_optimizer
@each_impl
@each_rule
@pytest.mark.parametrize("lr", ZERO_RATES.values(), ids=ZERO_RATES)
def test_a_learning_rate_of_zero_moves_no_importance(module, impl, rule, lr, isa):
    p = Problem.make()
    p.draw_gradients(0)
    step = functools.partial(module.step, impl=impl)
    assert_no_importance_moves(step, p, lr=lr, rule=rule, alpha=0.5)


@each_optimizer
@pytest.mark.parametrize(
    "lr", [ZERO_RATES["number"], ZERO_RATES["tensor"]], ids=["number", "tensor"]
)
def test_nor_does_it_on_the_short_way_or_with_a_seed(module, lr):
    for options in ({}, {"seed": 3}):
        p = Problem.make(dtype=torch.bfloat16)
        p.draw_gradients(0)
        assert_no_importance_moves(module.step, p, lr=lr, rule="taylor", alpha=0.5, **options)


@each_optimizer
@each_impl
@pytest.mark.parametrize("lr", TINY_RATES.values(), ids=TINY_RATES)
def test_any_other_learning_rate_does(module, impl, lr):
    p = Problem.make([(33,)])
    p.draw_gradients(0)
    module.step(p, impl, lr=lr, rule="evolution_abs", alpha=1.0)
    assert same_bits(p.importances, [w.abs() for w in p.params])


ERRORS = {  # what is wrong -> (options, message of Python, message of C++)
    "rule": ({"rule": "fisher"}, r"expected rule in .*'movement'.*got 'fisher'", "movement, got fisher"),
    "point": ({"point": "mid"}, r"expected point in .*'post'.*got 'mid'", "point pre or post.*got mid"),
    "negative": ({"sparse_decay": -0.5}, r"sparse_decay >= 0.*got -0\.5", r"sparse_decay >= 0.*got -0\.5"),
    "nan": ({"sparse_decay": float("nan")}, "sparse_decay >= 0.*got nan", "sparse_decay >= 0.*got nan"),
    "infinite": ({"sparse_decay": float("inf")}, "finite, got inf", "finite, got inf"),
    "masks": ({"sparse_decay": 0.5}, r"=0\.5 needs 2 masks.*got 0", r"=0\.5 needs 2 masks.*got 0"),
}  # fmt: skip


@each_optimizer
@pytest.mark.parametrize("what", ERRORS)
def test_errors_hold_both_values_and_change_nothing(module, what):
    options, python, native = ERRORS[what]
    p = Problem.make([(4, 6), (3,)])
    p.draw_gradients(0)
    p.masks = []
    before = p.copy()
    for impl in (None, "cpu", "reference"):
        with pytest.raises(ValueError, match=python):
            module.step(p, impl, **options)
    if _ext.cpu_loaded():
        usual = {"maximize": False, "rule": "none", "alpha": 0.0}
        usual |= {"amsgrad": False} if module is adamw else {"nesterov": False}
        with pytest.raises(RuntimeError, match=native):
            module.OP.overload(*module.arguments(p), **{**module.BASE, **usual, **options})
    assert same_bits(p.written(), before.written())


@each_optimizer
def test_bf16_importance_needs_a_seed_and_the_reference(module):
    """Refused with the reason; with a seed it takes the reference, in words by itself that no other state uses."""
    p = Problem.make([(300,), (5, 7)], torch.bfloat16)
    p.draw_gradients(0)
    p.importances = [t.bfloat16() for t in p.importances]
    options = {"rule": "evolution", "alpha": 0.3}
    before = p.copy()
    for impl in (None, "reference"):
        with pytest.raises(ValueError, match=r"importances\[0\] is torch.bfloat16.*needs a seed"):
            module.step(p, impl, **options)
    if _ext.cpu_loaded():
        with pytest.raises(
            RuntimeError, match=r"importances\[0\] has dtype BFloat16, expected Float"
        ):
            module.step(p, "cpu", **options)
    half = p.copy()
    half.importances = [t.half() for t in half.importances]
    with pytest.raises(ValueError, match=r"importances\[0\] of torch.float32.*got torch.float16"):
        module.step(half, **options)
    assert same_bits(p.written(), before.written())
    again, wider = p.copy(), p.copy()
    wider.importances = [t.float() for t in wider.importances]
    for q in (p, again, wider):
        module.step(q, seed=5, **options)
    assert same_bits(p.written(), again.written())
    assert same_bits(p.params + p.first, wider.params + wider.first)
    error = (module.flat(p.importances).double() - module.flat(wider.importances).double()).abs()
    assert (error <= module.flat(wider.importances).double().abs() / 128).all() and error.max() > 0


@each_optimizer
def test_opcheck_with_every_option(module):
    op = ADAMW if module is adamw else SGD
    p = Problem.make([(4, 6), (3,)])
    p.draw_gradients(0)
    scalars = {"maximize": False, "rule": "movement", "alpha": 0.5, "point": "post"}
    scalars |= {"sparse_decay": 0.1, **({"amsgrad": True} if op is ADAMW else {"nesterov": True})}
    torch.library.opcheck(op.overload, module.arguments(p), {**module.BASE, **scalars})


@each_optimizer
def test_the_public_function_compiles_with_a_changing_alpha(module):
    p = Problem.make([(4, 6), (3,)])
    p.draw_gradients(0)
    twin = p.copy()
    options = {"rule": "movement", "point": "post", "sparse_decay": 0.1}

    @torch.compile(fullgraph=True, backend="aot_eager")
    def compiled(lists, share):
        name = "adamw_step_" if module is adamw else "sgd_step_"
        getattr(ops, name)(*lists, **module.BASE, **options, alpha=share)

    for t in range(1, 4):
        compiled(module.arguments(p), alpha("linear", t))
        module.step(twin, alpha=alpha("linear", t), **options)
        assert same_bits(p.written(), twin.written())


def test_ranking_in_bf16_is_lost_without_random_rounding():
    """The linear average over 2000 steps: at alpha = 2 / (t + 1) a change is below half a unit of bf16.

    Agreement of the masks that keep half with those of fp64: chance is 0.5.
    """
    count, steps = 1000, 2000
    generator = torch.Generator().manual_seed(0)
    begin, end = torch.randn(2, count, generator=generator)
    averages = {
        "nearest": torch.zeros(count, dtype=torch.bfloat16),
        "random": torch.zeros(count, dtype=torch.bfloat16),
        "fp32": torch.zeros(count),
        "fp64": torch.zeros(count, dtype=torch.float64),
    }
    nothing = torch.zeros(count)
    for t in range(1, steps + 1):
        share = alpha("linear", t)
        weight = begin + (end - begin) * (t / steps)
        averages["nearest"].copy_(averages["nearest"].float().lerp(weight, share))
        averages["fp64"].lerp_(weight.double(), share)
        averages["fp32"].lerp_(weight, share)
        _step.write_weight(
            weight.clone(), weight, nothing, mask=None, sparse_decay=0.0,
            importance=averages["random"], rule="evolution", point="", alpha=share,
            rounding=_step.Rounding(7, 0, t),
        )  # fmt: skip
    kept = {name: ops.select_topk(a.float().abs(), 0.5) for name, a in averages.items()}
    agreement = {name: (m == kept["fp64"]).double().mean().item() for name, m in kept.items()}
    assert agreement["fp32"] == 1.0
    assert agreement["random"] > 0.95
    assert agreement["nearest"] < 0.6
