"""What the Triton kernels do not take: a reason with both values, and nothing runs."""

from __future__ import annotations

import re

import pytest
import torch

from evoprune_kernels.ops import _triton

pytest.importorskip("triton", reason="triton: not installed")
ONE, GATES = torch.zeros(2, 3, 4, 4), torch.zeros(3)
INDEX, POINTERS = torch.zeros(1).int(), torch.tensor([0, 1, 1]).int()
VALUES, X = torch.zeros(1, 16, 16), torch.zeros(2, 32)
HUGE = torch.empty(2**16, 2**16, device="meta")
LONG = torch.empty(1, 1, 2**28, device="meta")
CASES = [
    ("select_topk", (X.double(), 0.5), "float16 or bfloat16, got float64"),
    ("select_topk", (X, 1.5), "densities from 0 to 1, got 1.5"),
    ("select_topk", (HUGE, 0.5), r"takes up to 2143289344 scores, got 4294967296"),
    ("select_topk_global", ([X, X.int()], 0.5), "got int32"),
    ("select_topk_global", ([X, X.to("meta")], 0.5), r"one device, got \['cpu', 'meta'\]"),
    ("select_block", (X, 0, 2, 0.5), "got 2 and 0x2"),
    ("select_block", (X.double(), 2, 2, 0.5), "got float64"),
    ("topk_channels", (X, 33), r"k up to C, got \(2, 32\) and 33"),
    ("topk_channels", (X.double(), 3), "got float64"),
    ("topk_abs_channels", (ONE, 4), r"k up to C, got \(2, 3, 4, 4\) and 4"),
    ("topk_abs_channels", (ONE.double(), 2), "got float64"),
    ("topk_abs_channels", (HUGE, 2), r"less than 1073741824 planes, .* got \(65536, 65536\)"),
    ("channel_gate", (HUGE[..., None], HUGE[0]), r"less than 1073741824 planes, .* got \(65536, 65536, 1\)"),
    ("channel_gate", (ONE, torch.zeros(4)), r"got \(4,\) and \(2, 3, 4, 4\)"),
    ("channel_gate", (ONE.double(), GATES), "got torch.float64 and torch.float32"),
    ("channel_gate", (HUGE[None], HUGE[0]), "elements of a sample and of a channel"),
    ("channel_gate_backward", (LONG, LONG, GATES[:1]), r"up to 268431360 places of a channel, got \(1, 1, 268435456\)"),
    ("topk_abs_channels", (LONG, 1), r"268431360 places of a channel, got \(1, 1, 268435456\)"),
    ("channel_gate_backward", (ONE.half(), ONE, GATES), "got .* torch.float16 and .* torch.float32"),
    ("gate_norm", (ONE, torch.zeros(4), None, None, None, None, 1e-5, False), r"got \(4,\) and \(2, 3, 4, 4\)"),
    ("gate_norm", (ONE.double(), GATES, None, None, GATES, GATES, 1e-5, False), "got torch.float64"),
    ("gate_norm", (ONE, GATES, GATES[1:], None, None, None, 1e-5, False), r"\[3\] of float32 .* got \(2,\)"),
    ("gate_norm", (ONE[:1, :, :1, :1], GATES, None, None, None, None, 1e-5, True), "more than 1 value .* got 1"),
    ("gate_norm_backward", (ONE.half(), ONE, GATES, None, None, GATES, GATES, True, 1e-5, False, True), "grad like x"),
    ("gather_channels", (ONE, INDEX), r"index int64 \[K\], got .* torch.int32 \(1,\)"),
    ("gather_channels", (HUGE[..., None].expand(-1, -1, 2), INDEX.long()), r"65536, 2\) and 65536 channels"),
    ("scatter_channels", (ONE, INDEX.long(), 3), r"index int64 \[K\], got \(2, 3, 4, 4\) and torch.int64 \(1,\)"),
    ("scatter_channels", (ONE.to(torch.float8_e5m2), INDEX.long(), 3), "is added, got torch.float8_e5m2"),
    ("scatter_channels", (ONE, torch.arange(3), 2**29), r"less than 1073741824 planes .* 536870912 channels"),
    ("block_linear_dx", (X, VALUES, POINTERS, INDEX, torch.zeros(2).int(), 32, 32, 16, 16), r"order of shape \(1,\)"),
    ("block_linear_dx", (X[:, 1:], VALUES, POINTERS, INDEX, INDEX, 32, 32, 16, 16), r"\[\.\.\., 32\], got \(2, 31\)"),
    ("block_linear_dw", (X.half(), X, INDEX, INDEX, 16, 16), "got torch.float16 and torch.float32"),
    ("block_linear_dw", (X, X[:1], INDEX, INDEX, 16, 16), r"the same tokens, got \(2, 32\) and \(1, 32\)"),
    ("block_linear_dw", (X, X, INDEX, POINTERS, 16, 16), r"every block of 16x16, got \(1,\) and \(3,\)"),
]  # fmt: skip


@pytest.mark.parametrize(
    "op, args, reason", CASES, ids=[f"{c[0]}-{i}" for i, c in enumerate(CASES)]
)
def test_a_reason(op, args, reason):
    _, unfit = _triton.implementation(op)
    why = unfit(*args)
    assert why and why.startswith("takes ") and re.search(reason, why), why
