"""State that keeps its own dtype through ``load_state_dict``.

torch casts every state to the dtype of a floating parameter while it loads: the bool mask of a bf16 parameter becomes
bf16, and an fp32 average loses its digits. Here such tensors travel through the cast inside a ``_Sealed``, which torch
passes on untouched: they are sealed after all pre-hooks of the user, and opened before all post-hooks. Nothing has to
be remembered between calls, so deepcopy and pickle need no care.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from evoprune_kernels._check import check
from evoprune_kernels.optim.config import PruneConfig

#: state key -> its dtype
OWN_STATE = {
    "importance": torch.float32,
    "sensitivity": torch.float32,
    "uncertainty": torch.float32,
    "mask": torch.bool,
}
#: group keys that a foreign state dict lacks, and that are then kept
OWN_GROUP_KEYS = ("prune", "prune_step", "prune_refreshes")


class _Sealed:
    """A tensor that ``load_state_dict`` does not recognise as one."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor


@contextmanager
def keeping_dtypes(optimizer: Optimizer) -> Iterator[None]:
    """Within the block ``optimizer.load_state_dict`` keeps the dtypes of ``OWN_STATE``."""
    first = optimizer.register_load_state_dict_pre_hook(_seal)
    last = optimizer.register_load_state_dict_post_hook(_open, prepend=True)
    try:
        yield
    finally:
        first.remove()
        last.remove()


def _seal(optimizer: Optimizer, state_dict: dict[str, Any]) -> dict[str, Any]:
    """A state dict with sealed own states and complete groups; raises before anything of the optimizer changes."""
    groups, saved = optimizer.param_groups, state_dict["param_groups"]
    if len(groups) != len(saved):
        return state_dict  # torch raises
    params: dict[Any, Tensor] = {}
    for group, other in zip(groups, saved, strict=True):
        params.update(zip(other["params"], group["params"], strict=False))
    state = {
        key: _sealed_state(value, params[key])
        if key in params and isinstance(value, dict)
        else value
        for key, value in state_dict["state"].items()
    }
    completed = [_completed(i, *pair) for i, pair in enumerate(zip(groups, saved, strict=True))]
    return {**state_dict, "state": state, "param_groups": completed}


def _completed(index: int, group: dict[str, Any], saved: dict[str, Any]) -> dict[str, Any]:
    """A saved group with the keys that it lacks; a group that was saved unpruned does not end pruning here."""
    own = {key: group[key] for key in OWN_GROUP_KEYS}
    config, current = PruneConfig.coerce(saved.get("prune")), PruneConfig.coerce(group["prune"])
    if config is None:
        return {**saved, **own}
    if current is not None and config != current:
        warnings.warn(
            f"param group {index} is pruned as its state dict says, {config}; the optimizer was made with {current}."
            " Assign param_groups[i]['prune'] after loading to change it",
            stacklevel=6,
        )
    return {**own, **saved}


def _sealed_state(state: dict[Any, Any], param: Tensor) -> dict[Any, Any]:
    sealed = dict(state)
    for key, dtype in OWN_STATE.items():
        value = sealed.get(key)
        if not isinstance(value, Tensor):
            continue
        check(
            value.shape == param.shape,
            f"state {key!r} has shape {tuple(value.shape)}, its parameter {tuple(param.shape)}",
        )
        sealed[key] = _Sealed(value.to(dtype=dtype, device=param.device, copy=True))
    return sealed


def _open(optimizer: Optimizer) -> None:
    for state in optimizer.state.values():
        for key, value in state.items() if isinstance(state, dict) else ():
            if isinstance(value, _Sealed):
                state[key] = value.tensor
