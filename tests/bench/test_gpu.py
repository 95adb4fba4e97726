"""``python -m bench gpu`` where no GPU is: it refuses, and its program runs on the references."""

from __future__ import annotations

import json

import pytest
import torch

from bench import gpu
from bench.__main__ import main
from bench.gpu import (
    block_backward,
    compare,
    contenders,
    gates,
    linear,
    packing,
    selection,
    step,
    timing,
)
from evoprune_kernels.ops._op import OPS


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU: the command would run")
def test_without_a_gpu_it_refuses(capsys):
    assert main(["gpu"]) == 1
    assert "finds no GPU" in capsys.readouterr().err


def test_the_program_runs_on_references(tmp_path, capsys):
    out = tmp_path / "gpu.json"
    command = ["gpu", "--device", "cpu", "--quick", "--no-gate", "--seconds", "0.1"]
    assert main([*command, "--json", str(out)]) == 0
    record = json.loads(out.read_text())
    assert record["label"].startswith("quick")
    results = record["results"]
    assert {cell["pattern"] for cell in results["linear"]} == {"2:4", "block:64x64", "unstructured"}
    for cell in results["linear"]:
        assert {"dense cuBLAS", "ours"} <= set(cell["contenders"])
        assert cell["contenders"]["ours"]["over_dense"]["median"] > 0
    assert set(results["step"]["contenders"]) == set(step.BYTES)
    for section, measured in MEASURED.items():
        found = results[section]
        assert {cell["op"] for cell in found} == measured
        for cell in found:
            assert {"ours", "reference"} <= set(cell["contenders"]), cell
            assert cell["contenders"]["ours"]["over_base"]["median"] > 0
            assert cell["contenders"]["ours"]["bytes_a_second"] > 0
            known = set(cell["contenders"]) | set(cell["left_out"])
            assert cell["base"] in known and all(cell["left_out"].values())
    out = capsys.readouterr().out
    assert "time over torch" in out and "channel_gate_backward" in out


MEASURED = {
    "selection": {"select_nm", "select_nm_transposable", "select_topk", "select_block"},
    "packing": {"nm_pack", "nm_select_pack", "nm_prepare_cuda"},
    "gates": {"channel_gate", "channel_gate_backward"},
    "block_backward": {"block_linear_dx", "block_linear_dw"},
}


def test_the_sections_are_those_of_the_command():
    assert set(MEASURED) == set(gpu.OPS) and set(gpu.SECTIONS) == {"step", "linear", *MEASURED}


def test_torchs_own_contenders_are_there():
    def names(module):
        found = module.problems("cuda", False)
        return {
            p.op: set(p.contenders) for p in found if "bfloat16" in p.size or "block:" in p.size
        }

    assert "torch.topk" in names(selection)["select_topk"]
    assert "torch 2:4 tiles (greedy, packs too)" in names(selection)["select_nm_transposable"]
    assert {"torch CUTLASS", "torch cuSPARSELt"} <= names(packing)["nm_pack"]
    assert "torch product" in names(gates)["channel_gate"]
    assert {"dense cuBLAS", "torch BSR"} <= names(block_backward)["block_linear_dx"]
    assert {p.op: p.waits is not None for p in packing.problems("cuda", False)} == {
        "nm_pack": True, "nm_select_pack": False, "nm_prepare_cuda": True,
    }  # fmt: skip


def test_on_a_gpu_ours_insists_on_the_cuda_kernel():
    assert compare.forced("cuda") == "cuda" and compare.forced("cpu") is None
    for make in (selection, packing, gates):
        problem = make.problems("cuda", True)[0]
        inputs = problem.make(torch.Generator().manual_seed(0))
        with pytest.raises(RuntimeError, match="impl='cuda' cannot run"):
            problem.contenders["ours"].bind(*inputs)()


@pytest.mark.parametrize("module", [selection, packing, gates, block_backward])
def test_every_check_tells_right_from_wrong(module):
    for problem in module.problems("cpu", True):
        inputs = problem.make(torch.Generator().manual_seed(0))
        for name, contender in problem.contenders.items():
            if name in ("torch CUTLASS", "torch cuSPARSELt", "torch BSR") or "tiles" in name:
                continue  # not on a CPU
            output = contender.bind(*inputs)()
            assert contender.wrong(output, *inputs) is None, (problem.op, name)
            spoilt = [spoil(t) for t in compare.tensors_of(output)]
            spoilt = spoilt[0] if isinstance(output, torch.Tensor) else spoilt
            assert contender.wrong(spoilt, *inputs), (problem.op, name)


def spoil(tensor):
    """Another tensor of the same shape and dtype."""
    return ~tensor if tensor.dtype == torch.bool else tensor + 1


def test_a_tie_may_fall_otherwise_for_torch_alone():
    scores = torch.tensor([[1.0, 1.0, 1.0, 0.0]])
    other = torch.tensor([[False, True, True, False]])
    low = torch.tensor([[True, False, False, True]])
    op = OPS["select_nm"]
    as_high = selection.as_high(op, (2, 4), 4)
    assert as_high(other, scores) is None and as_high(low, scores) == "1 groups keep other scores"
    assert "differs in 2 of 4" in compare.exact(lambda s: op.reference(s, 2, 4))(other, scores)


@pytest.mark.parametrize(
    "spoilt, reason",
    [(None, None), ((0, 0), "keeps 3 of four"), ((0, 1), "values that the scores do not have")],
)
def test_torchs_tiles_are_checked(spoilt, reason):
    """torch's op needs a GPU; its result is played by a dense tensor."""
    scores = torch.arange(1.0, 65).view(8, 8)
    mask = torch.tensor([[0, 1, 1, 0], [1, 0, 0, 1]]).bool().repeat(4, 2)
    pruned = scores * mask
    if spoilt == (0, 0):
        pruned[0, 0] = scores[0, 0]
    elif spoilt == (0, 1):
        pruned[0, 1] = 99.0

    class Packed:
        def to_dense(self):
            return pruned

    found = selection.wrong_tiles(Packed(), scores)
    assert found is None if reason is None else reason in found


def test_where_one_waits_all_are_timed_as_calls(monkeypatch):
    done = []
    calls = {"a": lambda: done.append("a"), "b": lambda: done.append("b")}
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: done.append("wait"))
    made, how = timing.alike(calls, "cuda", "b waits")
    made["a"]()
    made["b"]()
    assert done == ["a", "wait", "b", "wait"] and how.endswith("no graph, b waits")


def test_torch_is_asked_who_waits(monkeypatch):
    mode = ["default"]
    monkeypatch.setattr(torch.cuda, "get_sync_debug_mode", lambda: mode[-1])
    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", mode.append)

    def waits():
        if mode[-1] == "error":
            raise RuntimeError("called a synchronizing CUDA operation")

    _, how = timing.alike({"good": lambda: None, "bad": waits}, "cuda")
    assert how.endswith("no graph, bad: called a synchronizing CUDA operation")
    assert mode[-1] == "default"
    monkeypatch.setattr(timing, "graphed", lambda call, device: call)
    assert timing.alike({"good": lambda: None}, "cuda")[1] == "graphs"


def test_a_contender_that_fails_or_is_wrong_is_left_out_by_name():
    def broken(x):
        raise TypeError("no such dtype\nsecond line")

    right = compare.close(lambda x: x.double() + 1, torch.float32)
    problem = compare.Problem(
        "add", "3", lambda generator: (torch.zeros(3),),
        {
            "reference": compare.Contender(lambda x: lambda: x + 1, right),
            "wrong": compare.Contender(lambda x: lambda: x + 2, right),
            "broken": compare.Contender(broken, right),
        },
        24,
    )  # fmt: skip
    cell = compare.cell(problem, "cpu", 2, 0.1)
    assert set(cell["contenders"]) == {"reference"}
    assert cell["left_out"]["broken"] == "TypeError: no such dtype"
    assert cell["left_out"]["wrong"].startswith("wrong by 1.0e+00")
    assert "wrong" in compare.row(cell)[-1]


def test_a_wrong_contender_is_left_out_with_its_error():
    x, weight = torch.randn(4, 8), torch.randn(6, 8)
    truth = x.double() @ weight.double().t()
    makers = {
        "right": lambda: contenders.dense([weight]),
        "wrong": lambda: contenders.dense([2 * weight]),
        "broken": lambda: contenders.bsr([weight], 5),
    }
    right, left_out = contenders.build(makers, x, truth)
    assert set(right) == {"right"}
    assert left_out["wrong"].startswith("wrong by 1.0e+00")
    assert "Error" in left_out["broken"]


@pytest.mark.parametrize(
    "pattern, density", [("2:4", 0.5), ("block:32x32", 0.25), ("unstructured", 0.2)]
)
def test_a_pruned_weight_has_its_density(pattern, density):
    weight = linear.pruned((64, 128), pattern, density, torch.float32)
    assert float((weight != 0).float().mean()) == pytest.approx(density, abs=0.01)


def test_bitmasks_are_measured_at_few_tokens_only():
    assert {p[1] for p in linear.problems(False) if p[2] == "unstructured"} == {1, 16}
