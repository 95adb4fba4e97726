"""The record of one op: schema, reference, fake and autograd once, here; C++ only implements.

``define`` registers ``evoprune::<name>`` with the dispatcher. The reference serves every device (it is registered as
``CompositeExplicitAutograd``); ``_cpu.so`` adds a kernel under the CPU key and ``_cuda.so`` one under the CUDA key when
they are loaded, and these then win.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from evoprune_kernels import _ext, _select

NAMESPACE = "evoprune"
LIBRARY = torch.library.Library(NAMESPACE, "DEF")


@dataclass(frozen=True)
class Case:
    """One input of an op, for its tests and benchmarks: ``make(generator) -> positional arguments``."""

    name: str
    make: Callable[[torch.Generator], tuple[Any, ...]]

    def args(self, seed: int = 0) -> tuple[Any, ...]:
        """The arguments, the same for the same seed."""
        return self.make(torch.Generator().manual_seed(seed))


@dataclass(frozen=True)
class Op:
    """An op as the package calls it: ``op(*args, impl=None)``."""

    name: str
    reference: Callable[..., Any]
    overload: Callable[..., Any]

    def __call__(self, *args: Any, impl: str | None = None, **kwargs: Any) -> Any:
        requested = impl or _select.FORCED.get(self.name)
        if requested is None:
            return self.overload(*args, **kwargs)
        device = _device(args)
        unfit = self.reasons(device)
        if _select.choose(self.name, device, requested, unfit) == _select.REFERENCE:
            return self.reference(*args, **kwargs)
        return self.overload(*args, **kwargs)

    def reasons(self, device: str = _select.CPU) -> dict[str, str]:
        """The native implementation for ``device`` -> why it cannot run; empty when it can, or there is none."""
        if device not in _select.NATIVE:
            return {}
        key, library = device.upper(), f"_{device}"
        if torch._C._dispatch_has_kernel_for_dispatch_key(f"{NAMESPACE}::{self.name}", key):
            return {}
        return {device: _ext.reasons.get(library, "not written for this op")}


#: every op, in the order of definition
OPS: dict[str, Op] = {}


def define(
    schema: str,
    *,
    reference: Callable[..., Any],
    fake: Callable[..., Any],
    setup_context: Callable[..., None] | None = None,
    backward: Callable[..., Any] | None = None,
) -> Op:
    """Register ``evoprune::<schema>``; argument names and order of ``reference`` follow the schema.

    A name with a dot, such as ``adamw_step_.tensor_lr``, is an overload. An op that changes its arguments
    (``Tensor(a!)``) also advances their version counters, so that autograd and caches keyed by them notice.
    """
    name = schema.partition("(")[0]
    LIBRARY.define(schema, tags=(torch.Tag.pt2_compliant_tag,))
    LIBRARY.impl(name, reference, "CompositeExplicitAutograd")
    qualified = f"{NAMESPACE}::{name}"
    torch.library.register_fake(qualified, fake, lib=LIBRARY)
    if backward is not None:
        torch.library.register_autograd(
            qualified, backward, setup_context=setup_context, lib=LIBRARY
        )
    packet, _, variant = name.partition(".")
    overload = getattr(getattr(torch.ops.evoprune, packet), variant or "default")
    if overload._schema.is_mutable:
        _register_version_bump(name, overload)
    op = Op(name=name, reference=reference, overload=overload)
    OPS[name] = op
    return op


def _register_version_bump(name: str, overload: Any) -> None:
    """C++ kernels write through raw pointers: the version counters are advanced here, above them."""
    arguments = overload._schema.arguments
    written = [i for i, a in enumerate(arguments) if a.alias_info and a.alias_info.is_write]
    names = [arguments[i].name for i in written]
    below = torch._C._after_ADInplaceOrView_keyset

    def bump(keyset: Any, *args: Any, **kwargs: Any) -> Any:
        for i, argument in zip(written, names, strict=True):
            value = args[i] if i < len(args) else kwargs[argument]
            torch.autograd.graph.increment_version(value)
        return overload.redispatch(keyset & below, *args, **kwargs)

    LIBRARY.impl(name, bump, "ADInplaceOrView", with_keyset=True)


def _device(args: tuple[Any, ...]) -> str:
    for arg in args:
        if isinstance(arg, torch.Tensor):
            return arg.device.type
        if isinstance(arg, list | tuple) and arg and isinstance(arg[0], torch.Tensor):
            return arg[0].device.type
    return "cpu"
