"""adamw_step_: against torch.optim.AdamW."""

from __future__ import annotations

import torch

from evoprune_kernels import ops


def test_matches_torch_adamw():
    ours, theirs = torch.randn(9, 7), torch.nn.Parameter(torch.empty(9, 7))
    theirs.data.copy_(ours)
    opt = torch.optim.AdamW([theirs], lr=0.01, weight_decay=0.1)
    m, v, step = torch.zeros(9, 7), torch.zeros(9, 7), torch.tensor(0.0)
    for _ in range(10):
        g = torch.randn(9, 7)
        theirs.grad = g.clone()
        opt.step()
        ops.adamw_step_(
            [ours], [g], [m], [v], [], [], [], [step],
            lr=0.01, beta1=0.9, beta2=0.999, eps=1e-8, weight_decay=0.1,
        )  # fmt: skip
        torch.testing.assert_close(ours, theirs.detach())
