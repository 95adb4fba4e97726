"""Stochastic rounding of the optimizer steps: published random numbers, unbiased, and where a seed may be given."""

from __future__ import annotations

import pytest
import torch

from evoprune_kernels import _ext, ops
from evoprune_kernels.ops import _entries, _philox
from evoprune_kernels.ops.adamw_step import OP as ADAMW
from evoprune_kernels.ops.sgd_step import OP as SGD
from tests.ops import test_adamw_step as adamw
from tests.ops import test_sgd_step as sgd
from tests.ops.steps import Problem, same_bits


def problem(dtype=torch.bfloat16) -> Problem:
    p = Problem.make([(5, 7), (300,)], dtype)
    p.draw_gradients(0)
    return p


def test_philox_gives_the_published_numbers():
    words = [torch.tensor(word) for word in (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344)]
    found = _philox.philox(tuple(words), 0x299F31D0_A4093822)
    assert [int(w) for w in found] == [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1]
    zeros = _philox.philox((torch.tensor(0),) * 4, 0)
    assert [int(w) for w in zeros] == [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]


def test_each_element_and_each_use_has_its_own_bits():
    like = torch.zeros(101)
    random = _philox.step_random(like, seed=-3, tensor=2, step=9)
    assert all(r.min() >= 0 and r.max() < 1 << 16 for r in random.values())
    assert len({tuple(r.tolist()) for r in random.values()}) == 4
    for change in ({"seed": -4}, {"tensor": 3}, {"step": 10}):
        other = _philox.step_random(like, **{"seed": -3, "tensor": 2, "step": 9, **change})
        assert not torch.equal(other["param"], random["param"])
    longer = _philox.step_random(torch.zeros(1001), seed=-3, tensor=2, step=9)
    assert torch.equal(longer["second"][:101], random["second"])


@pytest.mark.parametrize("x", [1.0 + 2**-9, -(1.0 + 2**-8), 3e-39, -0.1])
def test_the_mean_is_the_value(x):
    values = torch.full((1 << 16,), x)
    rounded = _philox.round_randomly_to_bf16(values, torch.arange(1 << 16, dtype=torch.int32))
    assert rounded.double().mean().item() == pytest.approx(values[0].double().item(), rel=1e-7)
    assert len(set(rounded.tolist())) == 2


def test_values_of_bf16_stay():
    values = torch.tensor([0.0, -0.0, float("inf"), -float("inf"), 1.5, 3.3895e38]).bfloat16()
    most = torch.full(values.shape, 0xFFFF, dtype=torch.int32)
    assert same_bits([_philox.round_randomly_to_bf16(values.float(), most)], [values])
    nan = _philox.round_randomly_to_bf16(torch.tensor([float("nan")]), most[:1])
    assert nan.isnan().all()


@pytest.mark.parametrize("module", [adamw, sgd], ids=["adamw", "sgd"])
def test_a_seed_takes_the_reference_on_the_cpu(module):
    """The same seed gives the same bits; fp32 is not affected; masked weights are +0.0."""
    first, again, other, nearest = (problem() for _ in range(4))
    for _ in range(2):
        module.step(first, seed=1)
        module.step(again, "reference", seed=1)
        module.step(other, seed=2)
        module.step(nearest)
    assert same_bits(first.written(), again.written())
    assert not same_bits(first.params, other.params)
    assert not same_bits(first.params, nearest.params)
    masked = torch.cat([w[~mask] for w, mask in zip(first.params, first.masks, strict=True)])
    assert same_bits([masked], [torch.zeros_like(masked)])
    seeded, plain = problem(torch.float32), problem(torch.float32)
    module.step(seeded, seed=1)
    module.step(plain, "reference")
    assert same_bits(seeded.written(), plain.written())


@pytest.mark.skipif(not _ext.cpu_loaded(), reason="no CPU kernels")
@pytest.mark.parametrize("module", [adamw, sgd], ids=["adamw", "sgd"])
@pytest.mark.parametrize("lr", [0.1, torch.tensor(0.1)], ids=["number", "tensor"])
def test_the_cpu_kernels_refuse_a_seed(module, lr):
    p = problem()
    before = p.copy()
    with pytest.raises(RuntimeError, match="round to nearest: expected no seed, got 5"):
        module.step(p, "cpu", seed=5, lr=lr)
    assert same_bits(p.written(), before.written())


@pytest.mark.parametrize("op", [ADAMW, SGD], ids=["adamw", "sgd"])
def test_opcheck_with_a_seed(op):
    module = adamw if op is ADAMW else sgd
    scalars = {"maximize": False, "rule": "none", "alpha": 0.0, "seed": 3}
    scalars |= {"amsgrad": True} if op is ADAMW else {"nesterov": True}
    p = problem()
    tests = ("test_schema", "test_faketensor")
    overload = op.overload
    if _ext.cpu_loaded():
        with pytest.raises(RuntimeError, match="expected no seed, got 3"):
            overload(*module.arguments(p), **module.BASE, **scalars)
    torch.library.opcheck(
        overload, module.arguments(p), {**module.BASE, **scalars, "seed": None}, test_utils=tests
    )


def test_tensors_elsewhere_go_to_the_op():
    """The short way is for plain tensors on the CPU; all others are dispatched."""
    p = problem()
    for name in ("params", "grads", "first", "second", "largest", "importances", "masks", "steps"):
        setattr(p, name, [t.to("meta") for t in getattr(p, name)])
    lists = adamw.arguments(p)
    assert _entries.collect(ADAMW.name, None, lists, 0.1, None, None) is None
    ops.adamw_step_(*lists, **adamw.BASE, amsgrad=True)
