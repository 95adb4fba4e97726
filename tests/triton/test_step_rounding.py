"""A seed of the Triton steps: the bits of the reference where sums are exact, in one launch, whatever the layout."""

from __future__ import annotations

import pytest
import torch

from evoprune_kernels.ops import _philox, _step_table
from evoprune_kernels.ops._op import OPS
from tests.cuda.steps import LISTS, unaligned
from tests.ops import test_adamw_step as adamw
from tests.ops import test_sgd_step as sgd
from tests.ops.steps import Problem, same_bits

triton = pytest.importorskip("triton", reason="triton: not installed")
import triton.language as tl  # noqa: E402

from evoprune_kernels.ops import triton_impl  # noqa: E402

BF16, F32 = torch.bfloat16, torch.float32
SHARED = {"lr": 1 / 64, "maximize": False, "rule": "evolution", "alpha": 0.5, "weight_decay": 0.0}
#: numbers with which every fp32 sum of two steps is exact, or rounded once, in whatever order it is written
OPS_OF = {
    "adamw_step_": (adamw.arguments, {**SHARED, "beta1": 0.5, "beta2": 0.5, "eps": 0.25, "amsgrad": True}),
    "sgd_step_": (sgd.arguments, {**SHARED, "momentum": 0.5, "dampening": 0.0, "nesterov": False}),
}  # fmt: skip
each_op = pytest.mark.parametrize("op", OPS_OF)
HUGE_SEED = -5 + (1 << 40)


def step(run, op, p, **options):
    arguments, numbers = OPS_OF[op]
    run(op, *arguments(p), **{**numbers, **options})


def reference(op, p, **options):
    step(lambda name, *args, **kwargs: OPS[name].reference(*args, **kwargs), op, p, **options)


def draw(p, seed=0):
    """Gradients that are multiples of 1/64 below 2."""
    generator = torch.Generator().manual_seed(seed)
    p.grads = [
        torch.randint(-128, 129, t.shape, generator=generator).div(64).to(t.dtype) for t in p.params
    ]
    return p


def problem(shapes, state=None):
    return draw(Problem.make(shapes, BF16, state))


@each_op
@pytest.mark.parametrize("state", [F32, BF16], ids=["fp32", "bf16"])
def test_the_bits_of_the_reference(run, op, state):
    """Of odd sizes and more than a chunk; a parameter in fp32 counts as an index, and is not rounded."""
    ours = problem([(7,), (), (0,), (1025,), (3, 41), (2500,)], state)
    for name in ("params", "grads", "first", "second", "largest"):
        getattr(ours, name)[0] = getattr(ours, name)[0].float()
    for t in range(2):
        theirs, nearest = draw(ours, t).copy(), ours.copy()
        step(run, op, ours, seed=HUGE_SEED)
        reference(op, theirs, seed=HUGE_SEED)
        reference(op, nearest)
        assert same_bits(ours.written(), theirs.written())
        assert not same_bits(ours.params[3:], nearest.params[3:])
        assert same_bits(ours.params[:1], nearest.params[:1])
    assert (state == F32) == same_bits(ours.first[3:], nearest.first[3:])


@each_op
def test_no_layout_changes_the_bits(run, op):
    start = problem([(6, 11), (37, 5)])
    rows, moved, columns, other = start.copy(), unaligned(start), start.copy(), start.copy()
    for name in LISTS:
        setattr(columns, name, [t.t().contiguous().t() for t in getattr(columns, name)])
    strides = [t.stride() for t in columns.written()]
    for p in (rows, moved, columns):
        step(run, op, p, seed=3, grad_scale=torch.tensor(2.0))
    assert same_bits(moved.written(), rows.written())
    assert same_bits(columns.written(), rows.written())
    assert [t.stride() for t in columns.written()] == strides
    step(run, op, other, seed=4, grad_scale=torch.tensor(2.0))
    assert not same_bits(other.params, rows.params)


@each_op
def test_nothing_changes_when_the_scaler_skips(run, op):
    p = problem([(6, 11)])
    p.params = [t.t() for t in p.params]
    for name in LISTS[1:]:
        setattr(p, name, [t.t() for t in getattr(p, name)])
    before = p.copy()
    step(run, op, p, seed=3, found_inf=torch.ones(()))
    assert same_bits(p.written(), before.written())


def test_values_of_bf16_and_nan_stay(run):
    values = [0.0, -0.0, float("inf"), -float("inf"), float("nan"), 3.3895e38, -1e-39, 1.5]
    p = Problem.make([(8,)], BF16)
    p.masks = []
    p.params, p.grads = [torch.tensor(values).to(BF16)], [torch.zeros(8).to(BF16)]
    before = p.copy()
    step(run, "sgd_step_", p, momentum=0.0, rule="none", seed=7)
    assert same_bits(p.params, before.params)


@triton.jit
def words_kernel(table_ptr, first_ptr, words_ptr, CHUNK: tl.constexpr):
    a, b = triton_impl.draw(table_ptr, 1, table_ptr, tl.load(first_ptr), CHUNK, True)
    at = tl.arange(0, CHUNK)
    tl.store(words_ptr + at, a.to(tl.int32, bitcast=True))
    tl.store(words_ptr + CHUNK + at, b.to(tl.int32, bitcast=True))


@pytest.mark.parametrize("first", [0, 1 << 32, (1 << 40) + 64])
def test_the_words_are_philox_by_pairs(simulated, first):
    """Beyond 2^33 elements the pair takes both words of the counter."""
    one = torch.zeros(1).to(BF16)
    step_of_it, index, chunk = torch.tensor(9.0), 2, 64
    lists = ([one] * 3,) * 7 + ([step_of_it] * 3,)
    (table,) = _step_table.tables(lists, [0.5], -3)
    rows = table.rows[[index, -1]].contiguous()
    words = torch.empty(2, chunk, dtype=torch.int32)

    def launch(table, start, words, _):
        words_kernel[(1,)](table, start, words, CHUNK=chunk)

    simulated.apply(launch, rows, torch.tensor([first]), words, step_of_it)
    pair = first // 2 + torch.arange(chunk // 2)
    counter = pair & 0xFFFFFFFF, pair >> 32, torch.tensor(index), torch.tensor(9)
    even_a, even_b, odd_a, odd_b = _philox.philox(counter, -3)
    expected = torch.stack([even_a, odd_a, even_b, odd_b]).view(2, 2, -1).transpose(1, 2)
    assert torch.equal(words.long() & 0xFFFFFFFF, expected.reshape(2, chunk))


@each_op
def test_a_seed_moves_no_other_byte(simulated, op):
    """The same two launches; a warp reads the seed, the step and the index of its tensor, two elements share a draw."""
    elements, found = 2048 + 4096, []
    for seed in (None, 3):
        step(simulated.call, op, problem([(2048,), (4096,)]), seed=seed)
        names = [name for name, _ in simulated.launches]
        assert names == [op.replace("step_", kind) for kind in ("prepare_kernel", "step_kernel")]
        found.append(simulated.launches[1][1])
    plain, seeded = found
    warps = 4 * elements // _step_table.CHUNK
    assert seeded["global.store.bytes"] == plain["global.store.bytes"]
    assert seeded["global.store.sectors"] == plain["global.store.sectors"]
    assert seeded["global.load.sectors"] <= plain["global.load.sectors"] + 4 * warps
    assert seeded["shared.load.wavefronts"] == seeded["shared.load.ideal"]
    assert seeded["inst.mul.hi.u32"] <= 2 * 10 * elements / 2 / 32
