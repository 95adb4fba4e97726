"""Which steps of a pruned group count, asked of a device without waiting for it where that is possible.

A step that a gradient scaler skips (``found_inf`` is not 0) does not count, nor does one with a learning rate of 0.
Where these numbers lie on a device, reading one waits for all that was launched before. So::

    step t      chooses masks, ends a window of "platon", or is a parameter's first:  read now, wait
                any other:  the op reads both on the device: found_inf stops everything, an lr of 0 the averages;
                            the answers are sent to the host; prune_step = t, as if the step counted
    step t + 1  first takes the answers, which have long arrived: where step t did not count, prune_step is t - 1 again

To choose masks takes many launches, so the host must know. A first step makes its states, which waits anyway.

Whoever else needs the count takes the answers first: ``state_dict``, pickling, ``refresh_masks_``,
``sparsity_report``. Only ``group["prune_step"]`` itself, read between two steps, may be one too high.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


def on_host(tensor: Tensor) -> bool:
    """Whether reading ``tensor`` waits for nothing."""
    return tensor.device.type == "cpu"


class Flag:
    """Whether ``number`` (one element of a device) is 0, on its way to the host."""

    def __init__(self, number: Tensor) -> None:
        zero = (number == 0).reshape(())
        self._arrived: torch.cuda.Event | None = None
        if not zero.is_cuda:
            self._zero = zero.to("cpu", non_blocking=False)
            return
        self._zero = torch.empty((), dtype=torch.bool, pin_memory=True)
        self._zero.copy_(zero, non_blocking=True)
        self._arrived = torch.cuda.Event()
        self._arrived.record(torch.cuda.current_stream(zero.device))

    def is_zero(self) -> bool:
        """The answer; waits for it, and for nothing that was launched later."""
        if self._arrived is not None:
            self._arrived.synchronize()
        return bool(self._zero)


@dataclass(frozen=True)
class Answer:
    """What is known of a step before it is made."""

    skipped: bool = False
    counts: bool = True  # as far as is known
    found_inf: Tensor | None = None  # for the op to read
    late: tuple[tuple[Flag, bool], ...] = ()  # the step counts if every flag is as it should be


def ask(found_inf: Tensor | None, lr: float | Tensor, *, now: bool) -> Answer:
    """Whether a step is made, and counts.

    Args:
        found_inf: of a gradient scaler, or None.
        lr: the learning rate.
        now: nothing may be left for later.
    """
    late: list[tuple[Flag, bool]] = []
    if found_inf is not None:
        if now or on_host(found_inf) or type(found_inf) is not Tensor:
            if found_inf.item() != 0:
                return Answer(skipped=True)
            found_inf = None
        else:
            late.append((Flag(found_inf), True))
    if isinstance(lr, Tensor) and not (now or on_host(lr)):
        late.append((Flag(lr), False))
    elif float(lr) == 0.0:
        return Answer(counts=False, found_inf=found_inf)
    return Answer(found_inf=found_inf, late=tuple(late))


class Counting:
    """Mixin: the answers that are still on their way, a group each."""

    _late: list[tuple[dict[str, Any], tuple[tuple[Flag, bool], ...]]]

    def _count(self, group: dict[str, Any], answer: Answer) -> None:
        """The step that ``answer`` is about has been made."""
        group["prune_step"] += 1
        if answer.late:
            self.__dict__.setdefault("_late", []).append((group, answer.late))

    def _settle(self, group: dict[str, Any] | None = None) -> None:
        """Take the answers of ``group``, or of all: from here on ``prune_step`` is right."""
        late = self.__dict__.pop("_late", [])
        others = [entry for entry in late if group is not None and entry[0] is not group]
        if others:
            self._late = others
        for stepped, flags in late:
            if group is not None and stepped is not group:
                continue
            if any(flag.is_zero() is not expected for flag, expected in flags):
                stepped["prune_step"] -= 1
