"""The direct way to an op (ops/_direct.py): the dispatcher's results and gradients, to the bit."""

import pytest
import torch

from evoprune_kernels import ops
from evoprune_kernels.ops._direct import direct
from evoprune_kernels.ops._op import OPS
from evoprune_kernels.ops.channel_gate.cases import CASES as GATE_CASES

OP = ops.channel_gate.OP


def gate_norm(generator):
    x, weight, bias = torch.randn(4, 3, 5, 5, generator=generator), torch.rand(3), torch.randn(3)
    return x, torch.tensor([1.0, 0.0, 1.0]), weight, bias, None, None, 1e-5, True


def block_linear(generator):
    packed = ops.block_pack(
        torch.randn(32, 32, generator=generator), 16, 16, torch.ones(32, 32) > 0
    )
    x, bias = torch.randn(3, 32, generator=generator), torch.randn(32, generator=generator)
    tensors = packed.values, packed.row_ptr, packed.col_idx
    return x, *tensors, bias, 32, 32, 16, 16, "none", "canonical", None


def gather(generator):
    return torch.randn(2, 5, 3, 3, generator=generator), torch.tensor([0, 3])


INPUTS = {
    "channel_gate": GATE_CASES[0].make,
    "gate_norm": gate_norm,
    "block_linear": block_linear,
    "gather_channels": gather,
}


def run(call, args):
    """The outputs of a call and the gradients of all that can have one, with respect to every float tensor."""
    args = [a.clone().requires_grad_() if is_float(a) else a for a in args]
    outputs = call(*args)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    made = [o for o in outputs if o.requires_grad]
    grads = torch.autograd.grad(
        made,
        [a for a in args if is_float(a)],
        [torch.ones_like(o) for o in made],
        allow_unused=True,
    )
    return outputs, grads


def is_float(a):
    return isinstance(a, torch.Tensor) and a.is_floating_point()


@pytest.mark.parametrize("name", INPUTS)
def test_equals_the_dispatcher(name):
    op = OPS[name]
    args = INPUTS[name](torch.Generator().manual_seed(0))
    ours, theirs = run(op, args), run(op.overload, args)
    for mine, other in zip(ours[0] + ours[1], theirs[0] + theirs[1], strict=True):
        assert (mine is None) == (other is None)
        if mine is not None:
            assert mine.requires_grad == other.requires_grad
            torch.testing.assert_close(mine, other, rtol=0, atol=0)
    assert any(g is not None for g in ours[1])


def test_every_op_with_a_gradient_has_it():
    for op in OPS.values():
        assert (op.direct is not None) == (op.definition.backward is not None)
    assert OPS["select_nm"].direct is None


def test_eager_calls_take_it():
    x, gates = GATE_CASES[0].args()
    y = OP(x.requires_grad_(), gates)
    assert y.grad_fn.name() == "channel_gateBackward"
    assert OP.overload(x, gates).grad_fn.name().startswith("GeneratedBackwardFor_evoprune")


@pytest.mark.parametrize("guard", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_no_gradient_is_wanted(guard):
    x, gates = GATE_CASES[0].args()
    with guard():
        y = OP(x, gates)
    assert y.grad_fn is None and not y.requires_grad
    assert y.is_inference() == (guard is torch.inference_mode)
    torch.testing.assert_close(y, OP.reference(x, gates), rtol=0, atol=0)


def test_twice_differentiable():
    x, gates = (t.double() for t in GATE_CASES[0].args())
    gates = gates.where(gates != 0, torch.ones_like(gates))
    inputs = x[:1].clone().requires_grad_(), gates.requires_grad_()
    assert torch.autograd.gradgradcheck(OP, inputs)


def test_a_left_out_argument_has_its_default():
    """An op with a default: the setup of its gradient sees all arguments, and the result is the same."""
    *given, scale = block_linear(torch.Generator().manual_seed(0))
    op = OPS["block_linear"]
    short, whole = run(op, given), run(op, [*given, scale])
    torch.testing.assert_close(short, whole, rtol=0, atol=0)


def test_compiled_code_holds_the_op():
    x, gates = GATE_CASES[0].args()
    graphs = []

    def keep(graph, inputs):
        graphs.append(graph)
        return graph.forward

    torch.compile(lambda x: OP(x, gates) + 1, backend=keep, fullgraph=True)(x.requires_grad_())
    assert OP.overload in {node.target for node in graphs[0].graph.nodes}


def test_an_error_of_the_op_is_not_changed():
    call = direct(OP.overload, None, lambda ctx, grad: (grad, None))
    with pytest.raises(RuntimeError, match="expected gates of dtype"):
        call(torch.ones(1, 2, 1, 1), torch.ones(2, dtype=torch.float64))
