"""``select_nm`` on the simulated GPU: masks bitwise those of the reference."""

from __future__ import annotations

import pytest
import torch

from evoprune_kernels.ops.select_nm.cases import CASES
from evoprune_kernels.ops.select_nm.reference import select_nm_reference


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_masks_are_those_of_the_reference(gpu, case):
    args = case.args()
    assert torch.equal(gpu.call("select_nm", *args), select_nm_reference(*args))


@pytest.mark.parametrize(
    "args, message",
    [
        ((torch.zeros(4, 4), 5, 4), "got n=5 m=4"),
        ((torch.zeros(4), 2, 4), "expected scores of 2 dimensions, got 1"),
        ((torch.zeros(4, 4, dtype=torch.float64), 2, 4), "dtype Double, expected Float"),
    ],
)
def test_bad_input_launches_nothing(gpu, args, message):
    with pytest.raises(RuntimeError, match=message):
        gpu.call("select_nm", *args)
    assert gpu.launches == []


def test_an_old_device_is_refused(gpu):
    try:
        gpu.attributes[75] = 7
        with pytest.raises(RuntimeError, match=r"capability 8\.0, got 7\.0"):
            gpu.call("select_nm", torch.zeros(4, 4), 2, 4)
    finally:
        gpu.attributes[75] = 8
