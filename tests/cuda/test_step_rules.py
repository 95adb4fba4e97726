"""Rules, points and sparse decay of the optimizer steps on CUDA: the bits of the CPU kernels, seeds, errors."""

from __future__ import annotations

import functools

import pytest
import torch

from evoprune_kernels import _ext
from tests.cuda import test_adamw_step as cuda_adamw
from tests.cuda import test_sgd_step as cuda_sgd
from tests.cuda.steps import each_dtype, flat, footprint, problem, unaligned
from tests.ops import test_adamw_step as adamw
from tests.ops import test_sgd_step as sgd
from tests.ops.steps import (
    POINT_OF,
    TINY_RATES,
    ZERO_RATES,
    Problem,
    assert_no_importance_moves,
    assert_the_point,
    same_bits,
)

#: (the step on CUDA and the reference, the op on the CPU)
each_optimizer = pytest.mark.parametrize(
    "cuda, cpu", [(cuda_adamw, adamw), (cuda_sgd, sgd)], ids=["adamw", "sgd"]
)
each_rule = pytest.mark.parametrize("rule", POINT_OF)
each_point = pytest.mark.parametrize("point", ["pre", "post"])
SHAPES = [(), (0,), (7,), (3, 41), (4101,)]


@pytest.fixture(autouse=True)
def small_memory(gpu, monkeypatch):
    """Filling the simulated memory takes longer than these problems."""
    monkeypatch.setattr(gpu, "memory_bytes", 1 << 22, raising=False)


@pytest.mark.skipif(not _ext.cpu_loaded(), reason="no CPU kernels to compare with")
@each_optimizer
@each_rule
@each_point
@each_dtype
@pytest.mark.parametrize("sparse_decay", [0.0, 0.2])
def test_bits_of_the_cpu_kernel(gpu, cuda, cpu, rule, point, dtype, state, sparse_decay):
    ours = problem(SHAPES, dtype, state)
    theirs = ours.copy()
    options = {"rule": rule, "point": point, "sparse_decay": sparse_decay}
    for alpha, maximize in ((0.7, False), (0.3, True)):
        for p in (ours, theirs):
            p.draw_gradients(int(maximize))
        cuda.step(gpu, ours, alpha=alpha, maximize=maximize, **options)
        cpu.step(theirs, "cpu", alpha=alpha, maximize=maximize, **options)
        assert same_bits(ours.written(), theirs.written())


@each_optimizer
@each_rule
@each_point
def test_the_point_bitwise(gpu, cuda, cpu, rule, point):
    for dtype in (torch.float32, torch.bfloat16):
        p = problem([(3, 41), (33,)], dtype)
        assert_the_point(functools.partial(cuda.step, gpu), p, rule, point)


@each_optimizer
@pytest.mark.parametrize("rule", ["movement", "evolution_abs"])
def test_the_point_bitwise_with_a_seed(gpu, cuda, cpu, rule):
    """The weight that "post" sees is rounded by the same random bits as the one that is stored."""
    p = problem([(3, 41), (130,)], torch.bfloat16)
    assert_the_point(functools.partial(cuda.step, gpu, seed=11), p, rule, "post")


@each_optimizer
def test_alignment_does_not_change_sparse_decay(gpu, cuda, cpu):
    p = problem([(6, 11), (130,)])
    moved = unaligned(p)
    for q in (p, moved):
        cuda.step(gpu, q, rule="movement", alpha=0.3, point="post", sparse_decay=0.1)
    assert same_bits(p.written(), moved.written())


@each_optimizer
def test_bf16_importance_is_refused_with_its_reason(gpu, cuda, cpu):
    p = problem([(33,)], torch.bfloat16)
    p.importances = [t.bfloat16() for t in p.importances]
    before = p.copy()
    with pytest.raises(RuntimeError, match=r"importances\[0\] has dtype BFloat16, expected Float"):
        cuda.step(gpu, p, rule="evolution", alpha=0.5, seed=3)
    assert gpu.launches == []
    assert same_bits(p.written(), before.written())


@each_optimizer
@each_rule
@pytest.mark.parametrize("lr", ZERO_RATES.values(), ids=ZERO_RATES)
def test_a_learning_rate_of_zero_moves_no_importance(gpu, cuda, cpu, rule, lr):
    p = problem([(3, 41), (33,), (4101,)])
    assert_no_importance_moves(functools.partial(cuda.step, gpu), p, lr=lr, rule=rule, alpha=0.5)


@each_optimizer
@pytest.mark.parametrize("lr", TINY_RATES.values(), ids=TINY_RATES)
def test_any_other_learning_rate_does(gpu, cuda, cpu, lr):
    p = problem([(33,)])
    cuda.step(gpu, p, lr=lr, rule="evolution_abs", alpha=1.0)
    assert same_bits(p.importances, [w.abs() for w in p.params])


ERRORS = {
    "rule": ({"rule": "platon"}, "evolution_abs, taylor or movement, got platon"),
    "point": ({"point": "mid"}, "expected point pre or post.* got mid"),
    "negative": ({"sparse_decay": -0.5}, r"sparse_decay >= 0 and finite, got -0\.5"),
    "nan": ({"sparse_decay": float("nan")}, "sparse_decay >= 0 and finite, got nan"),
    "masks": ({"sparse_decay": 0.5}, r"sparse_decay=0\.5 needs 2 masks.*got 0"),
}


@each_optimizer
@pytest.mark.parametrize("what", ERRORS)
def test_bad_options_launch_nothing(gpu, cuda, cpu, what):
    options, message = ERRORS[what]
    p = problem([(4, 6), (3,)])
    p.masks = []
    before = p.copy()
    with pytest.raises(RuntimeError, match=message):
        cuda.step(gpu, p, **options)
    assert gpu.launches == []
    assert same_bits(p.written(), before.written())


@each_optimizer
def test_a_nan_gradient_reaches_the_importance_of_a_masked_weight(gpu, cuda, cpu):
    p: Problem = problem([(40,)])
    p.grads[0][[3, 37]] = float("nan")
    p.masks[0][[3, 37]] = torch.tensor([True, False])
    cuda.step(gpu, p, rule="taylor", alpha=0.5, point="post")
    assert p.importances[0].isnan().nonzero().flatten().tolist() == [3, 37]
    assert p.params[0].isnan().nonzero().flatten().tolist() == [3]
    assert flat(p.importances).count_nonzero() == 40


@pytest.mark.parametrize("rule", ["evolution_abs", "movement"])
def test_traffic_stays_37_bytes_a_parameter(gpu, rule):
    p = problem([(20_000,)])
    p.largest = []
    cuda_adamw.step(gpu, p, rule=rule, alpha=0.5, point="post", sparse_decay=0.1)
    assert footprint(gpu) <= 37.2 * 20_000
