"""Fixtures for every test: fixed seeds, NaN in every uninitialised buffer, and the ISA levels of this machine."""

from __future__ import annotations

import functools
import sys
from collections import Counter
from pathlib import Path

import pytest
import torch

from evoprune_kernels import _ext, _select, ops
from evoprune_kernels.ops import Op
from tests import simulated
from tests.simulated import Gpu

#: the column of CUDA C++ kernels that the PTX simulator ran
SIMULATED = "cuda sim"


@pytest.fixture(autouse=True)
def _reproducible():
    """Seeded; ``torch.empty`` is filled with NaN, so a kernel that skips an output is caught."""
    torch.manual_seed(0)
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    yield
    torch.use_deterministic_algorithms(before)


@pytest.fixture(params=["avx512", "avx2", "baseline"])
def isa(request):
    """Runs the test at each ISA level; a level that this machine lacks is skipped by name."""
    if request.param not in _ext.isa_levels():
        pytest.skip(f"ISA level {request.param} does not run here")
    level = _ext.isa_level()
    _ext.set_isa_level(request.param)
    yield request.param
    _ext.set_isa_level(level)


@pytest.fixture(params=[1, 2])
def threads(request):
    """Runs the test with one and with two threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


# ---- the closing table: op x implementation -> how many tests ran it, or why none did ----
_called: set[tuple[str, str]] = set()  # (op, implementation) during the current test
_passed: Counter[tuple[str, str]] = Counter()


def _count_calls(op: Op) -> None:
    """Wraps the op's reference where tests import it from, so that a direct call counts as well."""
    reference = op.reference

    @functools.wraps(reference)
    def counted(*args, **kwargs):
        _called.add((op.name, "reference"))
        return reference(*args, **kwargs)

    object.__setattr__(op, "reference", counted)
    module = sys.modules[reference.__module__]
    for name, value in list(vars(module).items()):
        if value is reference:
            setattr(module, name, counted)


def _count_dispatch() -> None:
    """Notes which implementation every call of an op through the package takes."""
    call = Op.__call__

    def counted(self, *args, impl=None, **kwargs):
        if not torch.compiler.is_compiling():
            forced = impl or _select.FORCED.get(self.name)
            native = forced != _select.REFERENCE and not self.reasons()
            _called.add((self.name, _ext.isa_level() if native else "reference"))
        return call(self, *args, impl=impl, **kwargs)

    Op.__call__ = counted


def _count_simulated() -> None:
    """Notes which ops run as CUDA kernels on the simulator."""
    call = Gpu.call

    def counted(self, op, *args, **kwargs):
        _called.add((op, SIMULATED))
        return call(self, op, *args, **kwargs)

    Gpu.call = counted


def pytest_configure(config):
    for op in ops.OPS.values():
        _count_calls(op)
    _count_dispatch()
    _count_simulated()
    if hasattr(config, "workerinput"):  # one of several test processes: a core each
        torch.set_num_threads(1)


@pytest.hookimpl(trylast=True)
def pytest_runtest_logreport(report):
    if getattr(report, "node", None) is not None:  # counted by the worker that ran it
        return
    if report.when == "setup":
        _called.clear()
    elif report.when == "call" and report.passed:
        _passed.update(_called)


def pytest_sessionfinish(session):
    """A worker of pytest-xdist hands its counts to the process that writes the table."""
    if hasattr(session.config, "workerinput"):
        session.config.workeroutput["passed"] = [(*cell, n) for cell, n in _passed.items()]


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node, error):
    """The counts of a worker; one that died has none, and its test is reported as failed."""
    for op, implementation, n in getattr(node, "workeroutput", {}).get("passed", ()):
        _passed[op, implementation] += n


def _has_cuda_kernel(op: Op) -> bool:
    """Whether csrc/ops_cuda registers the op; read from the sources, so that it is known without a compiler."""
    return any(f'm.impl("{op.name}"' in text for text in _bindings())


@functools.cache
def _bindings() -> tuple[str, ...]:
    folder = Path(__file__).parent.parent / "csrc" / "ops_cuda"
    return tuple(path.read_text() for path in folder.glob("*.cpp"))


def _cell(op: Op, implementation: str) -> str:
    if implementation == SIMULATED:
        if not _has_cuda_kernel(op):
            return "none"
        if simulated.reason():
            return "skipped"
    elif implementation != "reference":
        if "_cpu" in _ext.reasons or implementation not in _ext.isa_levels():
            return "skipped"
        if op.reasons():
            return "none"
    return str(_passed[op.name, implementation] or "NOT RUN")


def pytest_terminal_summary(terminalreporter, config):
    """A run that tested nothing of an op cannot look green: the count is there, or the reason."""
    whole = config.args == [str(config.rootpath / "tests")] or config.args == ["tests"]
    shown = [op for op in ops.OPS.values() if whole or any(op.name == name for name, _ in _passed)]
    if not shown:
        return
    write = terminalreporter.write_line
    levels = ["avx512vnni", "avx512", "avx2", "baseline"]
    columns = [*levels, SIMULATED, "reference"]
    terminalreporter.section("tests that ran each implementation of each op")
    width = max(len(op.name) for op in shown) + 2
    write("op".ljust(width) + "".join(c.rjust(11) for c in columns))
    for op in shown:
        write(op.name.ljust(width) + "".join(_cell(op, c).rjust(11) for c in columns))
    if reason := simulated.reason():
        write(f"skipped: {SIMULATED} (CUDA C++ on the PTX simulator): {reason}")
    if "_cpu" in _ext.reasons:
        write(f"skipped: C++ kernels: {_ext.reasons['_cpu']}")
        return
    for level in levels:
        if level not in _ext.isa_levels():
            hint = "; `make emulate` runs it" if level.startswith("avx512") else ""
            write(f"skipped: {level}: this CPU lacks the instructions{hint}")
    if missing := [op.name for op in shown if op.reasons()]:
        write(f"none: no C++ kernel for CPUs is written for {', '.join(missing)}")
    if missing := [op.name for op in shown if not _has_cuda_kernel(op)]:
        write(f"none: no CUDA kernel is written for {', '.join(missing)}")
