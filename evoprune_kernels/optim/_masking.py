"""The masks of pruned groups: when a schedule asks for them, and when a user gives them.

::

    due at step t    scores(importance) -> mask at the density of t                 config.grow is None
                     random at first; then the smallest of the active exchanged     config.grow
    then             weight = +0.0 where not mask; weights that grow start at +0.0 with moments of zero
                     (config.sparse_decay > 0: weights stay, ``masked()`` hides them for forward and backward)
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from evoprune_kernels._check import check
from evoprune_kernels.importance import get_rule
from evoprune_kernels.optim._counting import Counting
from evoprune_kernels.optim._layout import local
from evoprune_kernels.optim._selection import (
    exchange,
    random_masks,
    select_group,
    shard_like,
    whole,
)
from evoprune_kernels.optim.config import PruneConfig

Group = dict[str, Any]
State = dict[str, Any]
#: what a weight that grows starts without
MOMENTS = ("exp_avg", "exp_avg_sq", "max_exp_avg_sq", "momentum_buffer")


def is_prunable(param: Tensor) -> bool:
    """Whether a parameter of a pruned group is pruned: biases and norms (fewer than two dimensions) never are."""
    return param.dim() >= 2


def zeros_like(param: Tensor, dtype: torch.dtype) -> Tensor:
    """Zeros in the parameter's layout and, for a DTensor, its sharding."""
    return torch.zeros_like(
        param, dtype=dtype, memory_format=torch.preserve_format, requires_grad=False
    )


def config_of(group: Group) -> PruneConfig:
    """The configuration of a pruned group; one that was assigned by hand is put into its stored form."""
    config = PruneConfig.coerce(group["prune"])
    assert config is not None
    if isinstance(group["prune"], PruneConfig):
        group["prune"] = config.to_dict()
    return config


class Masking(Counting, torch.optim.Optimizer):
    """Mixin: everything about masks but their use inside the fused step."""

    # choosing -------------------------------------------------------------------------------------------------------

    def _choose_masks(self, group: Group, config: PruneConfig, params: Iterable[Tensor]) -> None:
        """Choose the masks anew, and zero the weights that they remove."""
        chosen = [p for p in params if p.requires_grad and "mask" in self.state.get(p, {})]
        if not chosen:
            return
        kept = config.kept(group["prune_step"])
        if config.grow is not None and group["prune_refreshes"] > 0:
            self._exchange(config, chosen, group["prune_step"])
            return
        alone = config.scope == "tensor" and config.grow is None  # scores of one tensor at a time
        batches = [[p] for p in chosen] if alone else [chosen]
        for batch in batches:
            if config.grow is not None:
                masks = random_masks(config, [p.shape for p in batch], kept)
            else:
                masks = select_group(config, [self._scores(config, p) for p in batch], kept)
            for param, mask in zip(batch, masks, strict=True):
                self._put_mask(config, param, mask)

    def _exchange(self, config: PruneConfig, params: list[Tensor], t: int) -> None:
        """Drop and grow the same number of weights in every tensor."""
        for index, param in enumerate(params):
            state = self.state[param]
            mask, grown, _ = exchange(
                config, whole(param.detach()), whole(state["mask"]),
                self._growth_scores(config, param), t, index,
            )  # fmt: skip
            self._put_mask(config, param, mask)
            fresh = shard_like(grown, param)
            for key in MOMENTS:
                if isinstance(state.get(key), Tensor):
                    local(state[key]).masked_fill_(fresh, 0.0)

    def _growth_scores(self, config: PruneConfig, param: Tensor) -> Tensor | None:
        if config.grow == "random":
            return None
        if config.grow == "gradient":
            grad = param.grad
            return None if grad is None else whole(grad.detach()).float().abs()
        state = self.state[param]
        moment = state["exp_avg"] if "exp_avg" in state else state["momentum_buffer"]
        return whole(moment).float().abs()

    def _put_mask(self, config: PruneConfig, param: Tensor, mask: Tensor) -> None:
        ours = local(self.state[param]["mask"])
        ours.copy_(shard_like(mask, param))
        if config.sparse_decay == 0:
            local(param).masked_fill_(~ours, 0.0)
            torch.autograd.graph.increment_version(param)

    def _scores(self, config: PruneConfig, param: Tensor) -> Tensor:
        """What selection ranks; the magnitude where no importance was gathered yet."""
        rule, weight, state = get_rule(config.importance), whole(param.detach()), self.state[param]
        read = {key: whole(state[key]) for key in (*rule.states, *rule.reads) if key in state}
        importance = whole(state["importance"]) if rule.has_state else None
        gathered = [*read.values()] if read or importance is None else [importance]
        if not all(bool(x.any()) for x in gathered):
            return weight.float().abs()
        return rule.score(importance, weight, **read)

    @torch.no_grad()
    def refresh_masks_(self) -> None:
        """Choose the masks of all pruned groups now, at the density that the schedule gives for the current step.

        Notes:
            The fused step does this by itself when the schedule says so; call it after changing weights or importance
            by hand. Parameters that were never stepped are left alone, as is everything before ``start`` and groups
            whose masks are ``"given"``.

        Example:
            >>> import torch, evoprune_kernels as ek
            >>> w = torch.nn.Parameter(torch.tensor([[1.0, 2.0, 3.0, 4.0]]))
            >>> config = ek.PruneConfig("2:4", importance="magnitude")
            >>> optimizer = ek.optim.SGD([w], lr=0.1, prune=config)
            >>> w.grad = torch.zeros_like(w)
            >>> optimizer.step()
            >>> w.data
            tensor([[0., 0., 3., 4.]])
        """
        self._settle()
        for group in self.param_groups:
            if group["prune"] is None:
                continue
            config = config_of(group)
            if config.ramp != "given" and group["prune_step"] >= max(config.start, 1):
                self._choose_masks(group, config, group["params"])
                group["prune_refreshes"] += 1

    # given by the user ----------------------------------------------------------------------------------------------

    @torch.no_grad()
    def set_masks_(self, masks: Mapping[Tensor, Tensor] | Mapping[str, Tensor]) -> None:
        """Install masks; the fused step applies them from now on, until the schedule chooses others.

        Args:
            masks: parameter, or its name where the optimizer was given names -> bool mask of its shape, True = keep.
                Parameters of pruned groups that are not named keep the mask that they have, or none.

        Raises:
            ValueError: for an unknown name, a parameter of no pruned group, or a mask of another shape. Nothing is
                changed then.
            TypeError: if a mask is not bool.

        Notes:
            Weights outside the masks become +0.0 at once (not with ``sparse_decay``).

        Example:
            >>> import torch, evoprune_kernels as ek
            >>> w = torch.nn.Parameter(torch.ones(1, 4))
            >>> config = ek.PruneConfig("unstructured", ramp="given")
            >>> optimizer = ek.optim.SGD([w], lr=0.1, prune=config)
            >>> optimizer.set_masks_({w: torch.tensor([[True, False, True, True]])})
            >>> w.data
            tensor([[1., 0., 1., 1.]])
        """
        found: list[tuple[Group, Tensor, Tensor]] = []
        known = {key: (group, p) for group, p, names in self._prunable() for key in (p, *names)}
        for key, mask in masks.items():
            what = key if isinstance(key, str) else f"parameter of shape {tuple(key.shape)}"
            check(key in known, f"{what} is in no pruned group: expected one of {_names(known)}")
            group, param = known[key]
            check(
                mask.shape == param.shape,
                f"{what}: expected a mask of shape {tuple(param.shape)}, got {tuple(mask.shape)}",
            )
            if mask.dtype != torch.bool:
                raise TypeError(f"{what}: expected a mask of torch.bool, got {mask.dtype}")
            found.append((group, param, mask))
        for group, param, mask in found:
            if "mask" not in self.state[param]:
                self.state[param]["mask"] = zeros_like(param, torch.bool).logical_not_()
            self._put_mask(config_of(group), param, mask.to(param.device))
        for group in {id(group): group for group, _, _ in found}.values():
            group["prune_refreshes"] += 1

    @contextmanager
    def masked(self) -> Iterator[None]:
        """Within the block every masked weight is ``weight * mask``; behind it the dense weights are back.

        Notes:
            For ``sparse_decay``: run forward and backward inside, ``step()`` outside. Gradients are those of the masked
            weights, passed straight through to the dense ones. Costs one copy of the masked weights.

        Example:
            >>> import torch, evoprune_kernels as ek
            >>> w = torch.nn.Parameter(torch.tensor([[1.0, 2.0, 3.0, 4.0]]))
            >>> config = ek.PruneConfig("2:4", importance="magnitude", sparse_decay=2e-4, every=1)
            >>> optimizer = ek.optim.SGD([w], lr=0.1, prune=config)
            >>> w.grad = torch.zeros_like(w)
            >>> optimizer.step()  # chooses the first masks
            >>> with optimizer.masked():
            ...     print(w.data)
            tensor([[0., 0., 3., 4.]])
            >>> [round(x, 4) for x in w.data.flatten().tolist()]
            [1.0, 2.0, 3.0, 4.0]
        """
        dense = [(p, p.data) for _, _, p in self._masked()]
        try:
            for param, data in dense:
                param.data = data.masked_fill(self.state[param]["mask"].logical_not(), 0.0)
                torch.autograd.graph.increment_version(param)
            yield
        finally:
            for param, data in dense:
                param.data = data
                torch.autograd.graph.increment_version(param)

    @torch.no_grad()
    def apply_masks_(self) -> None:
        """Make every weight outside its mask +0.0: the end of training with ``sparse_decay``.

        Example:
            >>> import torch, evoprune_kernels as ek
            >>> w = torch.nn.Parameter(torch.tensor([[1.0, 2.0]]))
            >>> config = ek.PruneConfig("unstructured", ramp="given", sparse_decay=2e-4)
            >>> optimizer = ek.optim.SGD([w], lr=0.1, prune=config)
            >>> optimizer.set_masks_({w: torch.tensor([[False, True]])})
            >>> optimizer.apply_masks_()
            >>> w.data
            tensor([[0., 2.]])
        """
        for _, _, param in self._masked():
            local(param).masked_fill_(~local(self.state[param]["mask"]), 0.0)
            torch.autograd.graph.increment_version(param)

    # reading --------------------------------------------------------------------------------------------------------

    def masks(self) -> dict[Tensor, Tensor]:
        """Parameter -> its mask (bool, True = keep), for every parameter that is masked now; not copied."""
        return {p: self.state[p]["mask"] for _, _, p in self._masked()}

    def _prunable(self) -> Iterator[tuple[Group, Tensor, tuple[str, ...]]]:
        """Every parameter that can be masked, with its group and, if it has one, its name."""
        for group in self.param_groups:
            names = group.get("param_names")
            for j, param in enumerate(group["params"]):
                if group["prune"] is not None and is_prunable(param):
                    yield group, param, (names[j],) if names else ()

    def _masked(self) -> Iterable[tuple[Group, str, Tensor]]:
        for i, group in enumerate(self.param_groups):
            if group["prune"] is None or group["prune_refreshes"] == 0:
                continue
            names = group.get("param_names")
            for j, param in enumerate(group["params"]):
                if "mask" in self.state.get(param, {}):
                    yield group, names[j] if names else f"group{i}.param{j}", param

    def sparsity_report(self) -> dict[str, float]:
        """Shares of masked weights, flat, for a logger.

        Returns:
            ``"sparsity"`` over all weights of pruned groups that can be pruned, ``"sparsity/<name>"`` for each masked
            parameter, and ``"target/group<i>"``, what the schedule asks for now. Names come from named parameters, else
            they are ``group<i>.param<j>``.

        Example:
            >>> import torch, evoprune_kernels as ek
            >>> model = torch.nn.Linear(8, 2)
            >>> config = ek.PruneConfig("2:4", start=1)
            >>> optimizer = ek.optim.AdamW(model.named_parameters(), lr=0.1, prune=config)
            >>> model(torch.ones(1, 8)).sum().backward()
            >>> optimizer.step()
            >>> optimizer.sparsity_report()
            {'sparsity': 0.5, 'sparsity/weight': 0.5, 'target/group0': 0.5}
        """
        self._settle()
        report = {"sparsity": 0.0}
        removed = 0
        for _, name, param in self._masked():
            kept: Any = self.state[param]["mask"].sum()
            zeros = param.numel() - int(whole(kept).item())
            removed += zeros
            report[f"sparsity/{name}"] = zeros / param.numel() if param.numel() else 0.0
        pruned = [(i, g) for i, g in enumerate(self.param_groups) if g["prune"] is not None]
        total = sum(p.numel() for _, g in pruned for p in g["params"] if is_prunable(p))
        report["sparsity"] = removed / total if total else 0.0
        for i, group in pruned:
            report[f"target/group{i}"] = 1.0 - config_of(group).kept(group["prune_step"])
        return report


def _names(known: Mapping[Any, Any]) -> list[str]:
    return sorted(key for key in known if isinstance(key, str)) or ["its parameters"]
