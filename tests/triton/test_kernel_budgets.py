"""Every Triton kernel is held to ``[triton]`` of ``bench/budgets.toml``: compiled for three archs, and counted."""

from __future__ import annotations

import tomllib

import pytest
import torch

from bench.static.budgets import CLOSE, PATH
from bench.static.simulated import METRICS, Counts, metrics
from evoprune_kernels.ops._triton import WRITTEN
from tests.triton.conftest import ON_GPU

triton = pytest.importorskip("triton", reason="triton: not installed")
from tests.triton.problems import PROBLEMS  # noqa: E402
from tests.triton.runner import ARCHITECTURES  # noqa: E402

COMPILED = ("registers", "shared", "stack")
BUDGETS = tomllib.loads(PATH.read_text())["triton"]
MEASURED = triton.__version__.startswith(BUDGETS.pop("version"))


def limit(value, arch):
    """A number, or one an architecture."""
    return value if isinstance(value, int | float) else value[str(arch)]


def arguments(problem):
    torch.manual_seed(0)  # the same every time
    return problem.make()


def counted(problem, launches):
    """kernel -> its metrics over the launches of one call."""
    found = {}
    for name in dict.fromkeys(name for name, _ in launches):
        stats = [counts for kernel, counts in launches if kernel == name]
        total = {}
        for one in stats:
            for key, count in one.items():
                total[key] = total.get(key, 0) + int(count)
        found[name] = metrics(Counts(problem, name, (), total))
    return found


def exceeded(budgets, kernel, found, arch=None):
    """What is over, in words; a kernel without a budget is."""
    budget = budgets.get(kernel)
    if budget is None:
        return [f"{kernel}: has no budget"]
    return [
        f"{kernel} sm_{arch or 80}: {value} {what}, the budget is {limit(budget.get(what, 0), arch)}"
        for what, value in found.items()
        if (what in budget or what in COMPILED) and value > limit(budget.get(what, 0), arch) * CLOSE
    ]


@pytest.mark.parametrize("problem", PROBLEMS, ids=lambda problem: problem.name)
def test_compiled(simulated, problem):
    figures = simulated.compile(problem.op, *arguments(problem), **problem.options)
    budgets, over = BUDGETS[problem.name], []
    for f in figures:
        print(f)
        assert f.spills == 0, f
        over += exceeded(budgets, f.kernel, {w: getattr(f, w) for w in COMPILED}, f.arch)
    assert over == [] or not MEASURED
    assert {f.kernel for f in figures} == set(budgets)
    assert {f.arch for f in figures} == set(ARCHITECTURES)


@pytest.mark.skipif(ON_GPU, reason="counts are of the simulator")
@pytest.mark.skipif(not MEASURED, reason="the budgets are of another Triton")
@pytest.mark.parametrize(
    "problem", [p for p in PROBLEMS if "step" not in p.op], ids=lambda problem: problem.name
)
def test_counted(simulated, problem):
    simulated.call(problem.op, *arguments(problem), **problem.options)
    found, budgets = counted(problem, simulated.launches), BUDGETS[problem.name]
    assert set(found) == set(budgets)
    over = []
    for kernel, values in found.items():
        print(kernel, values)
        named = set(budgets[kernel]) - set(COMPILED)
        assert named <= set(METRICS) and {"sectors_ratio", "bytes_per_item"} <= named, kernel
        assert ("wavefronts_ratio" in values) == ("wavefronts_ratio" in named), kernel
        over += exceeded(budgets, kernel, values)
    assert over == []


def test_every_op_has_a_problem_and_every_budget_is_used():
    ops = {problem.op for problem in PROBLEMS}
    assert ops >= set(WRITTEN) - {
        "adamw_step_.tensor_lr",
        "sgd_step_.tensor_lr",
        "select_topk_global",
    }
    assert set(BUDGETS) == {problem.name for problem in PROBLEMS}


def test_what_is_over_is_named():
    budgets = {"k": {"registers": {"80": 32, "90": 40}, "sectors_ratio": 1.0}}
    assert exceeded(budgets, "k", {"registers": 40, "stack": 0}, 90) == []
    assert exceeded(budgets, "k", {"stack": 8}, 90)
    (message,) = exceeded(budgets, "k", {"registers": 33}, 80)
    assert message == "k sm_80: 33 registers, the budget is 32"
    assert exceeded(budgets, "other", {}) == ["other: has no budget"]
    assert exceeded(budgets, "k", {"sectors_ratio": 1.01})
