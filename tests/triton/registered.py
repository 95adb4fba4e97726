"""``on_cpu``: the launchers under CPU keys of the dispatcher, so that ops on CPU tensors run on the simulator."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from typing import Any

import torch


@contextlib.contextmanager
def on_cpu(simulated: Any, *ops: str) -> Iterator[list[str]]:
    """``"evoprune::name"`` or ``"evoprune_triton::name"``, until the end of the block; yields the kernels launched."""
    launched: list[str] = []
    libraries = []

    def call(name: str, *args: Any, **kwargs: Any) -> Any:
        result = simulated.call(name, *args, **kwargs)
        launched.extend(kernel for kernel, _ in simulated.launches)
        return result

    try:
        for qualified in ops:
            namespace, _, name = qualified.partition("::")
            libraries.append(torch.library.Library(namespace, "FRAGMENT"))
            kernel = functools.partial(call, name)
            libraries[-1].impl(name, kernel, "CPU", allow_override=True)
        yield launched
    finally:
        for library in libraries:
            library._destroy()
