"""``watch`` and ``version``: whether a weight has changed since its packed form was made."""

from __future__ import annotations

import weakref

import torch
from torch import Tensor
from torch.optim.optimizer import register_optimizer_step_post_hook
from torch.utils.hooks import RemovableHandle

_watched: dict[int, weakref.ref[Tensor]] = {}
_hook: list[RemovableHandle] = []


def watch(weight: Tensor) -> None:
    """Make every optimizer's step count as a change of ``weight``: torch's fused steps leave its version as it was."""
    if not _hook:
        _hook.append(register_optimizer_step_post_hook(_note_step))
    key = id(weight)
    if key not in _watched or _watched[key]() is not weight:
        _watched[key] = weakref.ref(weight, lambda _: _watched.pop(key, None))


def _note_step(optimizer: torch.optim.Optimizer, args: object, kwargs: object) -> None:
    if torch.compiler.is_compiling():  # a compiled step writes through ops that count
        return
    for group in optimizer.param_groups:
        for weight in group["params"]:
            if id(weight) in _watched and not weight.is_inference():
                torch.autograd.graph.increment_version(weight)


def version(weight: Tensor) -> int:
    """How often ``weight`` was changed, as far as autograd and ``watch`` see."""
    return 0 if weight.is_inference() else weight._version
