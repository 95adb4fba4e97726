"""Every peer multiplies as the others do; one that is absent is named with its reason."""

from __future__ import annotations

import importlib.metadata
import sys
from types import SimpleNamespace

import pytest
import torch

from bench import peers
from bench.linear.timing import check
from bench.peers import adapter, mkl, runtimes
from evoprune_kernels import formats

PRESENT = {
    name: reason is None or reason
    for name, reason in ((n, a.missing(1)) for n, a in peers.ADAPTERS.items())
}


def job(tokens, pattern="block:16x16", layers=3):
    weight = torch.randn(48, 64, generator=torch.Generator().manual_seed(0))
    kept = torch.rand(3, 4, generator=torch.Generator().manual_seed(1)) < 0.6
    masked = weight * kept.repeat_interleave(16, 0).repeat_interleave(16, 1)
    x = torch.randn(tokens, 64, generator=torch.Generator().manual_seed(2))
    return peers.Job([masked.clone() for _ in range(layers)], x, formats.parse_pattern(pattern))


@pytest.mark.parametrize("tokens", [1, 5])
@pytest.mark.parametrize("name", peers.ADAPTERS)
def test_peers_compute_the_same_product(name, tokens):
    if PRESENT[name] is not True:
        pytest.skip(f"{name}: {PRESENT[name]}")
    work = job(tokens)
    found = peers.ADAPTERS[name]
    stack = found.build(work)
    assert stack is not None
    try:
        stack.run()
        check(stack.rows(), work.layers[0], work.x, found.error)
        assert stack.rows().shape == (tokens, 48)
    finally:
        stack.close()


@pytest.mark.parametrize("name", ["torch BSR", "MKL BSR"])
@pytest.mark.parametrize("pattern", ["2:4", "block:16x1", "block:5x5", "unstructured"])
def test_block_formats_take_square_blocks_that_fit(name, pattern):
    assert peers.ADAPTERS[name].build(job(2, pattern)) is None


def test_parts_of_a_sparse_weight():
    weight = torch.tensor([[0.0, 2.0, 0.0, 0.0], [1.0, 0.0, 0.0, 3.0]])
    pointers, columns, values = adapter.csr_parts(weight)
    assert (pointers.tolist(), columns.tolist(), values.tolist()) == (
        [0, 1, 3],
        [1, 0, 3],
        [2, 1, 3],
    )
    assert pointers.dtype == columns.dtype == torch.int32
    pointers, columns, values = adapter.bsr_parts(weight, 2)
    assert (pointers.tolist(), columns.tolist()) == ([0, 2], [0, 1])
    assert values.tolist() == [[[0, 2], [1, 0]], [[0, 0], [0, 3]]]


def test_every_peer_is_present_or_named_with_its_reason():
    found = peers.survey(1)
    assert list(found) == list(peers.ADAPTERS)
    assert all(found.values())
    assert found["torch CSR"] == f"present (torch {importlib.metadata.version('torch')})"
    assert "evaluation licence" in found["DeepSparse"]
    assert "pip" in found["libxsmm"] and "pip" in found["XNNPACK"]
    assert set(peers.survey(1, without=True).values()) == {"left out (--no-peers)"}


def test_a_module_that_is_not_installed_is_a_reason(monkeypatch):
    monkeypatch.setitem(sys.modules, "openvino", None)
    assert "not installed" in peers.survey(1)["OpenVINO dense"]


def test_mkl_is_absent_with_two_threads_and_without_its_package(monkeypatch):
    assert "one thread only" in peers.survey(2)["MKL CSR"]

    def not_found(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(mkl, "library", mkl.library.__wrapped__)
    monkeypatch.setattr(importlib.metadata, "files", not_found)
    assert "no package mkl" in peers.survey(1)["MKL BSR"]


def test_mkl_errors_are_not_silent():
    with pytest.raises(RuntimeError, match="MKL: hint returned 6, expected 0"):
        mkl.check(6, "hint")


def test_deepsparse_is_asked_for_by_name(monkeypatch):
    """The package is rarely there: a stand-in shows how it is called."""

    class Engine:
        def __init__(self, path, batch_size, num_cores):
            self.weight, self.cores = saved[path].layers[0], num_cores

        def run(self, inputs, val_inp):
            return [inputs[0] @ self.weight.numpy().T]

    saved = {}
    graph = SimpleNamespace(save=lambda model, path: saved.update({path: model}))
    monkeypatch.setitem(sys.modules, "deepsparse", SimpleNamespace(Engine=Engine))
    monkeypatch.setitem(sys.modules, "onnx", graph)
    monkeypatch.setattr(
        runtimes, "onnx_graph", lambda layers, tokens, inline: SimpleNamespace(layers=layers)
    )
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "9")
    assert peers.survey(1, deepsparse=True)["DeepSparse"] == "present (deepsparse 9)"
    assert peers.survey(1)["DeepSparse"].startswith("off")
    work = job(2)
    stack = runtimes.build_deepsparse(work)
    check(stack.rows(), work.layers[0], work.x, None)
