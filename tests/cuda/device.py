"""``DeviceGpu``: the calls of ``tests.simulated.Gpu`` on a GPU that is there, so that one suite serves both."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor


class DeviceGpu:
    """Runs ``evoprune`` ops on copies of CPU tensors; what an op changes in place is copied back.

    Args:
        device: where the copies are, ``"cuda"``; ``"cpu"`` tests this class.

    Notes:
        Whole storages are copied, so views keep their strides, their alignment and what they share. Launches are
        counted on the simulated GPU only: a test that asks for the counts of a call skips here.
    """

    def __init__(self, device: str = "cuda") -> None:
        self.device = device
        self.on_host: list[Tensor] = []  # tensors that stay on the CPU
        self._raised = False

    def call(self, op: str, *args: Any, **kwargs: Any) -> Any:
        """``torch.ops.evoprune.<op>(*args)`` on the device; the results are CPU tensors."""
        function = self.function(op)
        storages: dict[int, tuple[Tensor, Tensor]] = {}
        moved = self._move(args, storages)
        named = {name: self._move(value, storages) for name, value in kwargs.items()}
        self._raised = True
        result = function(*moved, **named)
        if self.device == "cuda":
            torch.cuda.synchronize()
        self._raised = False
        for host, there in storages.values():
            host.copy_(there)
        return _to_cpu(result)

    def function(self, op: str) -> Any:
        """What ``call`` calls."""
        packet, _, overload = op.partition(".")
        return getattr(getattr(torch.ops.evoprune, packet), overload or "default")

    @property
    def launches(self) -> list[Any]:
        if not self._raised:
            pytest.skip("launches are counted on the simulated GPU only")
        return []

    @property
    def stats(self) -> Any:
        pytest.skip("memory traffic is counted on the simulated GPU only")

    @property
    def attributes(self) -> Any:
        pytest.skip("the simulated GPU alone can act as another device")

    def _move(self, value: Any, storages: dict[int, tuple[Tensor, Tensor]]) -> Any:
        if isinstance(value, list | tuple):
            return type(value)(self._move(item, storages) for item in value)
        if not isinstance(value, Tensor) or any(value is tensor for tensor in self.on_host):
            return value
        memory = value.untyped_storage()
        key = memory.data_ptr()
        if key not in storages or not key:
            host = torch.empty(0, dtype=torch.uint8).set_(memory)
            storages[key] = host, host.to(self.device, copy=True)
        there = storages[key][1].untyped_storage()
        empty = torch.empty(0, dtype=value.dtype, device=self.device)
        return empty.set_(there, value.storage_offset(), value.shape, value.stride())


def _to_cpu(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return type(value)(_to_cpu(item) for item in value)
    return value.cpu() if isinstance(value, Tensor) else value
