"""sgd_step_: against torch.optim.SGD."""

from __future__ import annotations

import torch

from evoprune_kernels import ops


def test_matches_torch_sgd():
    ours, theirs = torch.randn(9, 7), torch.nn.Parameter(torch.empty(9, 7))
    theirs.data.copy_(ours)
    opt = torch.optim.SGD([theirs], lr=0.01, momentum=0.9, weight_decay=0.1, nesterov=True)
    buffer, step = torch.full((9, 7), torch.nan), torch.tensor(0.0)
    for _ in range(10):
        g = torch.randn(9, 7)
        theirs.grad = g.clone()
        opt.step()
        ops.sgd_step_(
            [ours], [g], [buffer], [], [], [step],
            lr=0.01, momentum=0.9, weight_decay=0.1, nesterov=True,
        )  # fmt: skip
        torch.testing.assert_close(ours, theirs.detach())
