"""``DeviceGpu`` itself, on the CPU: results, changes in place, and views that keep what they are."""

from __future__ import annotations

import pytest
import torch

from evoprune_kernels.ops.select_nm.reference import select_nm_reference
from tests.cuda.device import DeviceGpu


def test_results_are_those_of_the_op():
    scores = torch.randn(6, 32)
    assert torch.equal(
        DeviceGpu("cpu").call("select_nm", scores, 2, 4), select_nm_reference(scores, 2, 4)
    )


def test_changes_in_place_come_back_and_views_keep_their_memory():
    memory = torch.arange(10.0)
    grad = torch.ones(4)
    param = memory[1:5]  # unaligned, inside other memory
    kept = [memory[0].item(), *memory[5:].tolist()]
    DeviceGpu("cpu").call(
        "sgd_step_", [param], [grad], [], [], [], [torch.zeros(())],
        lr=1.0, momentum=0.0, dampening=0.0, weight_decay=0.0, nesterov=False,
        maximize=False, rule="none", alpha=0.0, grad_scale=None, found_inf=None,
    )  # fmt: skip
    assert memory.tolist() == [kept[0], 0.0, 1.0, 2.0, 3.0, *kept[1:]]


def test_no_launch_is_seen_only_after_an_error():
    gpu = DeviceGpu("cpu")
    with pytest.raises(RuntimeError):
        gpu.call("select_nm", torch.zeros(4, 4), 5, 4)
    assert gpu.launches == []
