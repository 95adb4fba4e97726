"""Who holds the CUDA key of an op, what ``impl="triton"`` calls, and that the package does without Triton."""

from __future__ import annotations

import functools
import os
import subprocess
import sys

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

from evoprune_kernels import _ext, ops
from evoprune_kernels.ops import OPS, _triton
from evoprune_kernels.ops._op import TRITON_OWNS
from tests.ops.steps import Problem
from tests.ops.test_sgd_step import arguments

pytest.importorskip("triton", reason="triton: not installed")
has_kernel = torch._C._dispatch_has_kernel_for_dispatch_key


def test_every_written_op_is_registered():
    assert "triton" not in _ext.reasons
    for name in _triton.WRITTEN:
        assert has_kernel(f"evoprune_triton::{name}", "CUDA")
        assert has_kernel(f"evoprune::{name}", "CUDA")
        assert OPS[name].triton_reasons() == {}
        launcher, unfit = _triton.implementation(name)
        assert launcher.__name__.endswith("_triton") and unfit.__name__.endswith("_unfit")
    for name in set(OPS) - set(_triton.WRITTEN):
        assert OPS[name].triton_reasons() == {"triton": "not written for this op"}


@pytest.mark.skipif("_cuda" not in _ext.reasons, reason="_cuda.so holds the CUDA keys")
def test_without_cuda_kernels_triton_holds_their_keys():
    assert set(_triton.WRITTEN) == TRITON_OWNS
    for name in TRITON_OWNS:  # it is not taken for a CUDA C++ kernel
        assert OPS[name].reasons("cuda") == {"cuda": _ext.reasons["_cuda"]}


def test_insisting_needs_cuda_tensors():
    with pytest.raises(RuntimeError, match="impl='triton' cannot run: tensors are on 'cpu'"):
        ops.select_nm(torch.zeros(4, 4), 2, 4, impl="triton")


def test_what_a_launcher_cannot_take_goes_to_the_reference_unless_insisted_on():
    scores = torch.randn(4, 8, dtype=torch.float64)
    op = OPS["select_nm"]
    with pytest.warns(UserWarning, match="select_nm: plain torch runs, the Triton kernel"):
        found = _triton.run(op, False, scores, 2, 4)
    assert torch.equal(found, op.reference(scores, 2, 4))
    with pytest.raises(RuntimeError, match=r"select_nm: impl='triton' takes .* got float64"):
        _triton.run(op, True, scores, 2, 4)


def test_a_seed_is_for_the_kernels_too_but_not_with_importances_in_bf16():
    p = Problem.make([(3,)], torch.bfloat16)
    p.draw_gradients(0)
    _, unfit = _triton.implementation("sgd_step_")
    assert unfit(*arguments(p), momentum=0.9, seed=3) is None
    p.importances = [t.bfloat16() for t in p.importances]
    assert "got torch.bfloat16" in unfit(*arguments(p), momentum=0.9, seed=3)


def test_fake_cuda_tensors_see_the_shapes():
    with FakeTensorMode():
        scores = torch.empty(6, 16, device="cuda")
        assert OPS["select_nm"](scores, 2, 4, impl="triton").shape == (6, 16)
        values, meta = OPS["nm_pack"](scores, scores > 0, 2, 4, impl="triton")
        assert values.shape == (6, 8) and meta.shape == (6, 2)
        assert values.device.type == meta.device.type == "cuda"


@pytest.mark.parametrize("impl, namespace", [(None, "evoprune"), ("triton", "evoprune_triton")])
def test_traced_on_cuda_tensors_it_is_one_node(impl, namespace):
    with FakeTensorMode():
        scores = torch.empty(6, 16, device="cuda")
        graph = make_fx(lambda s: OPS["select_nm"](s, 2, 4, impl=impl))(scores)
    called = [str(node.target) for node in graph.graph.nodes if node.op == "call_function"]
    assert [name for name in called if "select_nm" in name] == [f"{namespace}.select_nm.default"]


def test_compiled_without_a_graph_break():
    torch._dynamo.reset()
    compiled = torch.compile(
        lambda s: OPS["select_nm"](s, 2, 4), backend="aot_eager", fullgraph=True
    )
    assert compiled(torch.empty(6, 16, device="meta")).shape == (6, 16)
    compiled = torch.compile(
        lambda s: OPS["select_nm"](s, 2, 4, impl="cpu"), backend="aot_eager", fullgraph=True
    )
    if not OPS["select_nm"].reasons():
        assert compiled(torch.zeros(6, 16)).shape == (6, 16)


def test_the_twin_has_the_gradients_of_the_op():
    """Its launcher on CPU tensors, replaced by the reference: what is tested is the autograd around it."""
    library = torch.library.Library("evoprune_triton", "FRAGMENT")
    library.impl("nm_unpack", OPS["nm_unpack"].reference, "CPU")
    values = torch.randn(3, 4, requires_grad=True)
    meta = torch.full((3, 1), 0x4D, dtype=torch.uint8)
    OPS["nm_unpack"].triton[0](values, meta, 2, 4, 8).sum().backward()
    assert torch.equal(values.grad, torch.ones(3, 4))
    library._destroy()


@pytest.mark.parametrize("lr", [0.1, torch.tensor(0.1)])
def test_the_dispatcher_hands_a_step_all_its_arguments(simulated, lr):
    """``evoprune_triton::sgd_step_`` with its launcher under the CPU key, so that CPU tensors reach it."""
    name = "sgd_step_.tensor_lr" if isinstance(lr, torch.Tensor) else "sgd_step_"
    library = torch.library.Library("evoprune_triton", "FRAGMENT")
    library.impl(name, functools.partial(_triton.run, OPS[name], True), "CPU")
    ours = Problem.make([(9,), (3, 41)])
    ours.draw_gradients(0)
    theirs, before = ours.copy(), ours.params[0]._version
    options = {"lr": lr, "momentum": 0.9, "dampening": 0.0, "weight_decay": 0.1, "nesterov": False,
               "maximize": False, "rule": "evolution", "alpha": 0.3}  # fmt: skip
    simulated.apply(OPS[name].triton[0], *arguments(ours), **options)
    library._destroy()
    assert len(simulated.launches) == 2 and ours.params[0]._version > before
    OPS[name].reference(*arguments(theirs), **options)
    for mine, other in zip(ours.written(), theirs.written(), strict=True):
        torch.testing.assert_close(mine, other)


PROGRAM = """
import sys
class NoTriton:
    def find_spec(self, name, path=None, target=None):
        if name.partition('.')[0] == 'triton':
            raise ModuleNotFoundError(name)
if HIDE:
    import importlib.util
    find = importlib.util.find_spec
    importlib.util.find_spec = lambda name, *rest: None if name == 'triton' else find(name, *rest)
    sys.meta_path.insert(0, NoTriton())
import torch
from evoprune_kernels import _ext, ops
kernels = any(n.startswith('evoprune') and n.endswith('triton_impl') for n in sys.modules)
print('reason:', _ext.reasons.get('triton'), '; kernels imported:', kernels)
print(ops.select_nm(torch.tensor([[0.1, 0.9, 0.9, 0.3]]), 2, 4).tolist())
try:
    ops.select_nm(torch.zeros(4, 4, device='meta'), 2, 4, impl='triton')
except RuntimeError as error:
    print(error)
"""


@pytest.mark.parametrize("hide, reason", [(True, "not installed"), (False, "None")])
def test_import_needs_no_triton_and_loads_no_kernel(hide, reason):
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM.replace("HIDE", str(hide))],
        capture_output=True, text=True, env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )  # fmt: skip
    assert f"reason: {reason} ; kernels imported: False" in done.stdout, done.stderr
    assert "[[False, True, True, False]]" in done.stdout
