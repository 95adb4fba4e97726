"""The record of one op: schema, reference, fake and autograd once, here; C++ only implements.

``define`` registers ``evoprune::<name>`` with the dispatcher. The reference serves every device (it is registered as
``CompositeExplicitAutograd``); ``_cpu.so`` adds a kernel under the CPU key and ``_cuda.so`` one under the CUDA key when
they are loaded, and these then win. Where ``_cuda.so`` has none, ``_triton.py`` adds one under the CUDA key.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

from evoprune_kernels import _ext, _select
from evoprune_kernels.ops._direct import Direct, direct

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
class Definition:
    """What is registered with the dispatcher for an op, whoever computes it."""

    schema: str
    fake: Callable[..., Any]
    setup_context: Callable[..., None] | None
    backward: Callable[..., Any] | None

    @property
    def name(self) -> str:
        return self.schema.partition("(")[0]


@dataclass(frozen=True)
class Op:
    """An op as the package calls it: ``op(*args, impl=None)``.

    ``direct`` is the cheap way to an op with a gradient, in eager calls (``_direct.py``). ``triton`` holds the overload
    that ``impl="triton"`` calls, once ``_triton.register`` has put it there.
    """

    name: str
    reference: Callable[..., Any]
    overload: Callable[..., Any]
    definition: Definition
    direct: Direct | None = None
    triton: list[Callable[..., Any]] = field(default_factory=list, compare=False)

    def __call__(self, *args: Any, impl: str | None = None, **kwargs: Any) -> Any:
        requested = impl or _select.FORCED.get(self.name)
        if requested is None:
            if self.direct is None or kwargs or torch.compiler.is_compiling():
                return self.overload(*args, **kwargs)
            return self.direct(*args)
        device = first_device(args).type
        unfit = {**self.reasons(device), **self.triton_reasons()}
        chosen = _select.choose(self.name, device, requested, unfit)
        if chosen == _select.REFERENCE:
            return self.reference(*args, **kwargs)
        overload = self.triton[0] if chosen == _select.TRITON else self.overload
        return overload(*args, **kwargs)

    def reasons(self, device: str = _select.CPU) -> dict[str, str]:
        """The native implementation for ``device`` -> why it cannot run; empty when it can, or there is none."""
        if device not in _select.NATIVE:
            return {}
        library = f"_{device}"
        has = _has_kernel(f"{NAMESPACE}::{self.name}", device.upper())
        if has and not (device == _select.CUDA and self.name in TRITON_OWNS):
            return {}
        return {device: _ext.reasons.get(library, NOT_WRITTEN)}

    def triton_reasons(self) -> dict[str, str]:
        """``{"triton": why it cannot run}``; empty when it can."""
        return {} if self.triton else {_select.TRITON: _ext.reasons.get("triton", NOT_WRITTEN)}


@torch.compiler.assume_constant_result
def _has_kernel(qualified: str, key: str) -> bool:
    return torch._C._dispatch_has_kernel_for_dispatch_key(qualified, key)


#: every op, in the order of definition
OPS: dict[str, Op] = {}
#: ops whose CUDA key holds the Triton launcher
TRITON_OWNS: set[str] = set()
NOT_WRITTEN = "not written for this op"


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
    definition = Definition(schema, fake, setup_context, backward)
    overload = register_op(LIBRARY, definition)
    LIBRARY.impl(definition.name, reference, "CompositeExplicitAutograd")
    eager = None if backward is None else direct(overload, setup_context, backward)
    op = Op(definition.name, reference, overload, definition, eager)
    OPS[op.name] = op
    return op


def register_op(library: torch.library.Library, definition: Definition) -> Any:
    """Schema, fake and autograd of an op in the namespace of ``library``; returns the overload."""
    name = definition.name
    library.define(definition.schema, tags=(torch.Tag.pt2_compliant_tag,))
    qualified = f"{library.ns}::{name}"
    torch.library.register_fake(qualified, definition.fake, lib=library)
    if definition.backward is not None:
        torch.library.register_autograd(
            qualified, definition.backward, setup_context=definition.setup_context, lib=library
        )
    packet, _, variant = name.partition(".")
    overload = getattr(getattr(getattr(torch.ops, library.ns), packet), variant or "default")
    if overload._schema.is_mutable:
        _register_version_bump(library, name, overload)
    return overload


def _register_version_bump(library: torch.library.Library, name: str, overload: Any) -> None:
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

    library.impl(name, bump, "ADInplaceOrView", with_keyset=True)


def first_device(args: tuple[Any, ...]) -> torch.device:
    """The device of the first tensor among the arguments of an op, lists included."""
    for arg in args:
        if isinstance(arg, torch.Tensor):
            return arg.device
        if isinstance(arg, list | tuple) and arg and isinstance(arg[0], torch.Tensor):
            return arg[0].device
    return torch.device("cpu")
