"""Static counts: ptxas's words, resident blocks, budgets that do not hold, the real command for one architecture."""

from __future__ import annotations

import json
import shutil

import pytest

from bench.__main__ import main
from bench.static import budgets, compiled, roofline, simulated
from bench.static.compiled import Compiled
from bench.static.occupancy import blocks_per_processor
from bench.static.problem import Problem
from bench.static.simulated import Counts
from tests import simulated as simulator

LOG = """\
ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function '_ZN8evoprune4cuda8x_kernelI6__halfLi4EEEvNS0_4ArgsE' for 'sm_80'
ptxas info    : Function properties for _ZN8evoprune4cuda8x_kernelI6__halfLi4EEEvNS0_4ArgsE
    8 bytes stack frame, 4 bytes spill stores, 6 bytes spill loads
ptxas info    : Used 32 registers, used 1 barriers, 8 bytes cumulative stack size, 16384 bytes smem, 453 bytes cmem[0]
ptxas info    : Compile time = 6.5 ms
ptxas info    : Compiling entry function '_ZN8evoprune4cuda8y_kernelEv' for 'sm_90a'
ptxas info    : Function properties for _ZN8evoprune4cuda8y_kernelEv
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 168 registers, used 0 barriers
"""
needs_filter = pytest.mark.skipif(shutil.which("c++filt") is None, reason="no c++filt (binutils)")


@needs_filter
def test_a_log_is_read():
    assert compiled.parse(LOG) == [
        Compiled("x_kernel<__half, 4>", "80", registers=32, spills=10, stack=8, shared=16384),
        Compiled("y_kernel", "90", registers=168),
    ]
    assert compiled.parse("ptxas info    : 0 bytes gmem\n") == []


@pytest.mark.parametrize(
    "name, expected",
    [
        ("void evoprune::cuda::a_kernel<float>(evoprune::cuda::Args)", "a_kernel<float>"),
        ("void evoprune::cuda::(anonymous namespace)::a_kernel<(int)4>(int)", "a_kernel<(int)4>"),
        ("void evoprune::cuda::a_kernel<evoprune::cuda::Tile<2, 3>, true>()", "a_kernel<Tile<2, 3>, true>"),
        ("evoprune::cuda::a_kernel(evoprune::cuda::Args, float const*)", "a_kernel"),
    ],
)  # fmt: skip
def test_names_are_short(name, expected):
    assert compiled.short(name) == expected


@needs_filter
def test_a_log_is_used_while_it_is_newer_than_all_sources(tmp_path, monkeypatch):
    for name in ("KEPT", "OWN", "CSRC"):
        (tmp_path / name).mkdir()
        monkeypatch.setattr(compiled, name, tmp_path / name)
    source, header = tmp_path / "CSRC" / "x.cu", tmp_path / "CSRC" / "x.h"
    source.write_text('#include <cuda.h>\n#include "x.h"\n')
    header.write_text("")
    assert compiled.included(source) == {source, header}
    assert compiled.kept(source, ["80"]) is None
    log = tmp_path / "KEPT" / "x.o.ptxas"
    log.write_text(LOG)
    assert [k.kernel for k in compiled.kept(source, ["80"])] == ["x_kernel<__half, 4>"]
    assert compiled.kept(source, ["80", "100"]) is None  # an architecture is missing
    later = log.stat().st_mtime + 10
    shutil.os.utime(header, (later, later))
    assert compiled.kept(source, ["80"]) is None


# what NVIDIA's occupancy calculator says
@pytest.mark.parametrize(
    "arch, registers, threads, shared, blocks",
    [
        ("80", 32, 256, 0, 8),
        ("80", 33, 256, 0, 6),  # 40 registers a thread are allocated: 48 warps
        ("80", 128, 128, 0, 4),
        ("80", 255, 256, 0, 1),
        ("80", 16, 32, 0, 32),  # blocks
        ("80", 32, 128, 48 << 10, 3),  # shared memory, a KiB a block for the system
        ("80", 32, 1024, 0, 2),
        ("86", 32, 256, 0, 6),  # 1536 threads
        ("86", 32, 1024, 0, 1),
        ("86", 16, 32, 0, 16),
        ("89", 16, 32, 0, 24),
        ("90", 64, 256, 99 << 10, 2),
        ("90", 168, 384, 227 << 10, 1),
        ("90", 65, 256, 0, 3),  # 72 registers: 28 warps
    ],
)
def test_resident_blocks(arch, registers, threads, shared, blocks):
    assert blocks_per_processor(arch, registers, threads, shared) == blocks


def test_an_unknown_architecture():
    with pytest.raises(ValueError, match="architecture '75': expected one of"):
        blocks_per_processor("75", 32, 256, 0)


STATS = {
    "inst": 1000, "inst.mma.sp::ordered_metadata.sync.aligned.m16n8k32.row.col.f32.f16.f16.f32": 10,
    "inst.fma.rn.f32": 100, "inst.add.f32": 7, "inst.add.s32": 99,
    "global.load.sectors": 90, "global.load.bytes": 2400, "global.load.footprint": 2400,
    "global.store.sectors": 10, "global.store.bytes": 320, "global.store.footprint": 320,
    "shared.load.wavefronts": 30, "shared.load.ideal": 20,
}  # fmt: skip
LONGER = {
    **STATS,
    "inst": 1300,
    next(n for n in STATS if "mma" in n): 20,
    "shared.load.wavefronts": 60,
}
PROBLEM = Problem("x of 100", "x", lambda: (), 100)
COUNTS = Counts(PROBLEM, "x_kernel<float>", (((2, 1, 1), (64, 1, 1), 512),), STATS, LONGER)


def test_metrics_from_counts():
    assert simulated.metrics(COUNTS) == pytest.approx({
        "sectors_ratio": 3200 / 2720,
        "wavefronts_ratio": 1.5,
        "bytes_per_item": 27.2,
        "instructions_per_item": 320.0,
        "instructions_per_mma": 30.0,
        "wavefronts_per_mma": 3.0,
        "edge_instructions": (1000 - 30 * 10) / 4,  # 4 warps
    })  # fmt: skip
    plain = Counts(PROBLEM, "x_kernel<float>", COUNTS.launches, {"inst": 5})
    assert set(simulated.metrics(plain)) == {"bytes_per_item", "instructions_per_item"}


def test_operations_by_unit():
    assert simulated.operations(STATS) == {
        "sparse 16": 2 * 16 * 8 * 32 * 10,
        "fp32": 32 * (2 * 100 + 7),
    }
    int8 = "inst.mma.sp::ordered_metadata.sync.aligned.m16n8k64.row.col.satfinite.s32.s8.s8.s32"
    tf32 = "inst.mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32"
    found = simulated.operations({int8: 1, tf32: 1})
    assert found == {"sparse s8": 2.0 * 16 * 8 * 64, "tensor tf32": 2.0 * 16 * 8 * 8}


def test_the_roof_is_the_slowest_limit():
    a100, h100 = roofline.MACHINES
    assert (a100.memory, a100.peaks["sparse 16"], h100.peaks["tensor 16"]) == (2e12, 624e12, 989e12)
    limits = a100.limits(COUNTS)
    assert limits["memory"] == 2720 / 2e12
    assert limits["sparse 16"] == 81920 / 624e12
    assert limits["instructions"] == 1000 / (4 * 108 * 1.41e9)
    seconds, holds, next_ = roofline.bound(COUNTS, a100)
    assert (seconds, holds) == (limits["instructions"], "instructions")
    assert next_ == f"memory {100 * limits['memory'] / seconds:.0f} %"


def written(tmp_path, text: str) -> budgets.Budgets:
    path = tmp_path / "budgets.toml"
    path.write_text(text)
    return budgets.load(path)


KERNEL = Compiled("x_kernel<float>", "80", registers=40, spills=4, stack=8, shared=1024)
ROOMY = """
[[kernel]]
name = "x_kernel<*>"
registers = { 80 = 40, all = 32 }
shared = 2000
blocks = 6
spills = 4
stack = 8
[[problem]]
problem = "x of 100"
kernel = "x_*"
sectors_ratio = 1.2
"""


def test_what_is_within_its_budget(tmp_path):
    found = written(tmp_path, ROOMY)
    assert budgets.check_compiled(KERNEL, [COUNTS], found) == []
    assert budgets.check_counts(COUNTS, found) == []
    assert found.unused() == []


def test_what_exceeds_its_budget(tmp_path):
    text = ROOMY.replace("80 = 40", "86 = 40").replace("spills = 4\nstack = 8\n", "")
    text = text.replace("blocks = 6", "blocks = 33").replace("1.2", "1.1\nbytes_per_item = 27.3")
    found = written(tmp_path, text)
    assert budgets.check_compiled(KERNEL, [COUNTS], found) == [
        "x_kernel<float> sm_80: 40 registers, the budget is 32",
        "x_kernel<float> sm_80: 4 spills, the budget is 0",
        "x_kernel<float> sm_80: 8 stack, the budget is 0",
        "x_kernel<float> sm_80: 24 blocks a processor, the budget is at least 33",
    ]
    assert budgets.check_counts(COUNTS, found) == [
        "x of 100, x_kernel<float>: 1.176 sectors_ratio, the budget is 1.1"
    ]


def test_what_has_no_budget_or_no_kernel(tmp_path):
    found = written(tmp_path, ROOMY.replace("x_", "z_"))
    assert budgets.check_compiled(KERNEL, [COUNTS], found) == [
        "x_kernel<float> sm_80: has no budget"
    ]
    assert budgets.check_counts(COUNTS, found) == ["x of 100, x_kernel<float>: has no budget"]
    assert len(found.unused()) == 2
    other = Compiled("x_kernel<__half>", "80", 40, 4, 8, 1024)
    alone = written(tmp_path, ROOMY)
    assert budgets.check_compiled(other, [COUNTS], alone) == []  # launched as its family is
    assert budgets.check_compiled(other, [], alone) == [
        "x_kernel<__half> sm_80: no problem launches it"
    ]


def test_a_limit_that_is_not_known(tmp_path):
    with pytest.raises(ValueError, match=r"got \['warps'\]"):
        written(tmp_path, '[[kernel]]\nname = "x"\nwarps = 3\n')


@pytest.mark.slow
@pytest.mark.skipif(simulator.reason() is not None, reason=str(simulator.reason()))
def test_the_budgets_hold(tmp_path, capsys):
    target = tmp_path / "static.json"
    status = main(["static", "--arch", "80", "--roofline", "--json", str(target)])
    assert status == 0
    record = json.loads(target.read_text())
    assert record["label"] == "counted: compiled and simulated, no times"
    assert record["results"]["over_budget"] == []
    assert {k["arch"] for k in record["results"]["compiled"]} == {"80"}
    assert "never measured" in capsys.readouterr().out
