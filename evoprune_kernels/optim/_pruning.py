"""What both optimizers share: masks and importance of pruned groups, and state that survives saving and loading.

A group whose ``prune`` is None is torch's business. Step ``t`` of a pruned group (``group["prune_step"]`` counts it)::

    fused op:  unscale, moments, weight, weight = +0.0 where not mask, importance += alpha_t * (x - importance)
    if the schedule says so:  scores(importance) -> mask at the density of t;  weight = +0.0 where not mask

Per-parameter state: ``step``, the moments, ``importance`` (fp32; rules with a state) and ``mask`` (bool), the last two
in the parameter's shape. Before the first choice every mask is True and is not given to the op.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from evoprune_kernels._check import check
from evoprune_kernels.importance import get_rule
from evoprune_kernels.optim import _saving
from evoprune_kernels.optim._layout import local, local_like
from evoprune_kernels.optim._selection import select_all, shard_like, whole
from evoprune_kernels.optim.config import PruneConfig

Group = dict[str, Any]
State = dict[str, Any]
#: types of tensors that are their own shards
PLAIN_TYPES = {Tensor, torch.nn.Parameter}


def is_prunable(param: Tensor) -> bool:
    """Whether a parameter of a pruned group is pruned: biases and norms (fewer than two dimensions) never are."""
    return param.dim() >= 2


@dataclass
class Bucket:
    """Parameters of one group that go into one call of the op: one device, one dtype, all pruned or none."""

    params: list[Tensor] = field(default_factory=list)
    grads: list[Tensor] = field(default_factory=list)
    states: list[State] = field(default_factory=list)
    importances: list[Tensor] = field(default_factory=list)
    masks: list[Tensor] = field(default_factory=list)

    sharded: bool = False

    def state(self, key: str) -> list[Tensor]:
        """One state tensor of every parameter, as local shards."""
        if not self.sharded:
            return [state[key] for state in self.states]
        return [local(state[key]) for state in self.states]

    def take_shards(self) -> None:
        """Replace parameters and gradients by the shards of this rank."""
        self.sharded = True
        self.grads = [local_like(g, p) for g, p in zip(self.grads, self.params, strict=True)]
        self.params = [local(p) for p in self.params]


class Pruning(torch.optim.Optimizer):
    """Mixin in front of a torch optimizer; the subclass has ``_moments``, ``_init_moments`` and ``_fused_step``."""

    _default_prune: PruneConfig | None = None

    def _moments(self, group: Group) -> tuple[str, ...]:
        """The keys of the states that the op needs for this group, besides ``step``."""
        raise NotImplementedError

    def _init_moments(self, group: Group, param: Tensor, state: State) -> None:
        """Create the states of ``param`` that the op needs and that are not there yet."""
        raise NotImplementedError

    def _fused_step(self, group: Group, bucket: Bucket, rule: str, alpha: float) -> None:
        """Call the op."""
        raise NotImplementedError

    # construction ---------------------------------------------------------------------------------------------------

    def _finish_init(self, prune: PruneConfig | None) -> None:
        self.defaults["prune"] = None if prune is None else prune.to_dict()
        pruned = [g for g in self.param_groups if g["prune"] is not None]
        if pruned and not any(is_prunable(p) for g in pruned for p in g["params"]):
            warnings.warn(
                "a PruneConfig was given, but no parameter of its groups has two or more dimensions: nothing is pruned",
                stacklevel=3,
            )

    def add_param_group(self, param_group: Group) -> None:
        """Add a group; its ``prune`` may be a PruneConfig or None, and defaults to that of the optimizer."""
        if isinstance(param_group, dict):
            config = PruneConfig.coerce(param_group.get("prune", self._default_prune))
            param_group["prune"] = None if config is None else config.to_dict()
            param_group.setdefault("prune_step", 0)
            param_group.setdefault("prune_refreshes", 0)
        super().add_param_group(param_group)
        try:
            _check_group(self.param_groups[-1])
        except Exception:
            self.param_groups.pop()
            raise

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self.defaults.setdefault("prune", None)
        self._default_prune = PruneConfig.coerce(self.defaults["prune"])
        for group in self.param_groups:
            group.setdefault("prune", None)
            group.setdefault("prune_step", 0)
            group.setdefault("prune_refreshes", 0)
        if self.defaults.get("fused"):  # torch forgets it in a deepcopy
            self._step_supports_amp_scaling = True

    @torch._disable_dynamo
    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Load a state dict of this optimizer or of torch's; importance and masks keep their own dtypes.

        Like every hyperparameter, ``prune`` is taken from the state dict where that has one, with a warning if it
        differs; where it has none, or None, the group keeps its own.
        """
        with _saving.keeping_dtypes(self):
            super().load_state_dict(dict(state_dict))

    # the step of a pruned group -------------------------------------------------------------------------------------

    @torch._disable_dynamo
    def _pruned_step(self, group: Group) -> None:
        found_inf = getattr(self, "found_inf", None)
        if found_inf is not None and found_inf.item() != 0:
            return
        config = _config(group)
        t = group["prune_step"] + 1
        counts = float(group["lr"]) != 0.0
        rule = get_rule(config.importance)
        averages = rule.has_state and counts and not config.frozen(t)
        late: list[Tensor] = []
        buckets = self._buckets(group, config, late)
        for (_, _, prunable), bucket in buckets.items():
            if prunable and averages:
                bucket.importances = bucket.state("importance")
            if prunable and group["prune_refreshes"] > 0:
                bucket.masks = bucket.state("mask")
            used = bool(bucket.importances)
            self._fused_step(
                group, bucket, rule.name if used else "none", config.alpha(t) if used else 0.0
            )
        if not counts:
            return
        group["prune_step"] = t
        if config.due(t):
            self._choose_masks(group, config, group["params"])
            group["prune_refreshes"] += 1
        elif late and group["prune_refreshes"] > 0:
            self._choose_masks(group, config, late)

    def _buckets(self, group: Group, config: PruneConfig, late: list[Tensor]) -> dict[Any, Bucket]:
        """The parameters with gradients; those that are stepped for the first time are also put into ``late``.

        This loop is what a step of many small tensors costs in Python: nothing is asked twice of a tensor.
        """
        found = [(param, grad) for param in group["params"] if (grad := param.grad) is not None]
        for param, grad in found:
            if grad.is_sparse:
                raise RuntimeError(
                    f"{type(self).__name__} with prune does not support sparse gradients,"
                    f" got one for a parameter of shape {tuple(param.shape)}"
                )
        buckets: dict[Any, Bucket] = {}
        moments, averages = self._moments(group), get_rule(config.importance).has_state
        for param, grad in found:
            state = self.state[param]
            device, prunable = param.device, is_prunable(param)
            step = state.get("step")
            if not isinstance(step, Tensor) or step.dtype != torch.float32 or step.device != device:
                first = float("momentum_buffer" in state) if step is None else float(step)
                state["step"] = torch.tensor(first, dtype=torch.float32, device=device)
            for key in moments:
                if state.get(key) is None:
                    self._init_moments(group, param, state)
            if prunable:
                if averages and "importance" not in state:
                    state["importance"] = zeros_like(param, torch.float32)
                if "mask" not in state:
                    late.append(param)
                    state["mask"] = zeros_like(param, torch.bool).logical_not_()
            kind = (device, param.dtype, prunable)
            bucket = buckets.get(kind)
            if bucket is None:
                bucket = buckets[kind] = Bucket()
            bucket.params.append(param)
            bucket.grads.append(grad)
            bucket.states.append(state)
        for bucket in buckets.values():
            if not set(map(type, bucket.params)) | set(map(type, bucket.grads)) <= PLAIN_TYPES:
                bucket.take_shards()
        return buckets

    # masks ----------------------------------------------------------------------------------------------------------

    def _choose_masks(self, group: Group, config: PruneConfig, params: Iterable[Tensor]) -> None:
        """Choose the masks anew from the importance, and zero the weights that they remove."""
        chosen = [p for p in params if p.requires_grad and "mask" in self.state.get(p, {})]
        if not chosen:
            return
        kept = config.kept(group["prune_step"])
        batches = [chosen] if config.scope == "global" else [[p] for p in chosen]
        for batch in batches:
            scores = [self._scores(config, p) for p in batch]
            for param, mask in zip(batch, select_all(config, scores, kept), strict=True):
                ours = local(self.state[param]["mask"])
                ours.copy_(shard_like(mask, param))
                local(param).masked_fill_(~ours, 0.0)
                torch.autograd.graph.increment_version(param)

    def _scores(self, config: PruneConfig, param: Tensor) -> Tensor:
        """What selection ranks; the magnitude where no importance was gathered yet."""
        rule, weight = get_rule(config.importance), whole(param.detach())
        if not rule.has_state:
            return rule.score(None, weight)
        importance = whole(self.state[param]["importance"])
        return rule.score(importance, weight) if bool(importance.any()) else weight.float().abs()

    @torch.no_grad()
    def refresh_masks_(self) -> None:
        """Choose the masks of all pruned groups now, at the density that the schedule gives for the current step.

        Notes:
            The fused step does this by itself when the schedule says so; call it after changing weights or importance
            by hand. Parameters that were never stepped are left alone, as is everything before ``start``.

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
        for group in self.param_groups:
            if group["prune"] is None:
                continue
            config = _config(group)
            if group["prune_step"] >= max(config.start, 1):
                self._choose_masks(group, config, group["params"])
                group["prune_refreshes"] += 1

    def masks(self) -> dict[Tensor, Tensor]:
        """Parameter -> its mask (bool, True = keep), for every parameter that is masked now; not copied."""
        return {p: self.state[p]["mask"] for _, _, p in self._masked()}

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
            report[f"target/group{i}"] = 1.0 - _config(group).kept(group["prune_step"])
        return report


def zeros_like(param: Tensor, dtype: torch.dtype) -> Tensor:
    """Zeros in the parameter's layout and, for a DTensor, its sharding."""
    return torch.zeros_like(
        param, dtype=dtype, memory_format=torch.preserve_format, requires_grad=False
    )


def _config(group: Group) -> PruneConfig:
    """The configuration of a pruned group; one that was assigned by hand is put into its stored form."""
    config = PruneConfig.coerce(group["prune"])
    assert config is not None
    if isinstance(group["prune"], PruneConfig):
        group["prune"] = config.to_dict()
    return config


def _check_group(group: Group) -> None:
    if group["prune"] is None:
        return
    if group.get("differentiable"):
        raise RuntimeError(
            "prune does not support differentiable=True: masks are chosen, not differentiated"
        )
    names = group.get("param_names")
    for i, param in enumerate(group["params"]):
        name = names[i] if names else f"parameter {i}"
        shape = tuple(param.shape)
        check(
            not hasattr(param, "_fsdp_flattened") and type(param).__name__ != "FlatParameter",
            f"{name} of shape {shape} was flattened by FullyShardedDataParallel, which hides its rows and columns:"
            " use torch.distributed.fsdp.fully_shard to prune",
        )
        if not param.is_floating_point():
            raise TypeError(
                f"prune needs floating parameters, got {name} of shape {shape} and {param.dtype}"
            )
