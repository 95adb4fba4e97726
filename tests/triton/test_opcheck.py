"""``torch.library.opcheck`` of the twins ``evoprune_triton::<op>``, with the launchers on the simulator."""

from __future__ import annotations

import pytest
import torch

from evoprune_kernels.ops import OPS
from tests.triton.registered import on_cpu

ROW_PTR = torch.tensor([0, 1, 2], dtype=torch.int32)
COL_IDX = torch.tensor([0, 1], dtype=torch.int32)


ADJOINTS = {
    "channel_gate": ["evoprune::channel_gate_backward"],
    "gate_norm": ["evoprune::gate_norm_backward"],
    "gather_channels": ["evoprune::scatter_channels"],
    "scatter_channels": ["evoprune::gather_channels"],
}


def cases():
    """op -> arguments, small: opcheck runs each a dozen times."""
    torch.manual_seed(0)
    x, values, scores = torch.randn(3, 32), torch.randn(2, 16, 16), torch.randn(4, 8)
    block = (values, ROW_PTR, COL_IDX)
    gates = torch.tensor([0.5, 0.0])
    return {
        "block_linear": (x.requires_grad_(), values.requires_grad_(), ROW_PTR, COL_IDX,
                         torch.randn(32, requires_grad=True), 32, 32, 16, 16, "none", "canonical"),
        "block_linear_dx": (torch.randn(3, 32), values.detach(), ROW_PTR, COL_IDX, COL_IDX, 32, 32, 16, 16),
        "block_linear_dw": (torch.randn(3, 32), x.detach(), COL_IDX, block[2], 16, 16),
        "channel_gate": (torch.randn(2, 2, 3, 3, requires_grad=True), gates.clone().requires_grad_()),
        "channel_gate_backward": (torch.randn(2, 2, 3, 3), torch.randn(2, 2, 3, 3), gates),
        "gate_norm": (torch.randn(2, 2, 3, 3), gates, torch.randn(2, requires_grad=True), None, None, None, 0.5, False),
        "gather_channels": (torch.randn(2, 3, 2, 2, requires_grad=True), torch.tensor([2, 0])),
        "scatter_channels": (torch.randn(2, 2, requires_grad=True), torch.tensor([2, 0]), 3),
        "select_block": (scores, 2, 2, 0.5),
        "select_topk": (scores, 0.5),
        "select_topk_global": ([scores, torch.randn(3)], 0.5),
        "topk_channels": (scores, 3),
        "topk_abs_channels": (torch.randn(2, 3, 2, 2), 2),
    }  # fmt: skip


@pytest.mark.parametrize("name", cases())
def test_opcheck(simulated, name):
    backward = [f"evoprune::{other}" for other in cases() if other.startswith(f"{name}_d")]
    backward += ADJOINTS.get(name, [])
    with on_cpu(simulated, f"evoprune_triton::{name}", *backward) as launched:
        torch.library.opcheck(OPS[name].triton[0], cases()[name])
    assert launched
