"""What both optimizers share: masks and importance of pruned groups, and state that survives saving and loading.

A group whose ``prune`` is None is torch's business. Step ``t`` of a pruned group (``group["prune_step"]`` counts it)::

    fused op:  unscale, moments, weight, weight = +0.0 where not mask, importance += alpha_t * (x - importance)
    if the schedule says so:  scores(importance) -> mask at the density of t;  weight = +0.0 where not mask

Per-parameter state: ``step``, the moments, ``importance`` (fp32; rules with a state; ``sensitivity`` and
``uncertainty`` with it for "platon") and ``mask`` (bool), in the parameter's shape. Before the first choice every mask
is True and is not given to the op. How masks are chosen: ``_masking.py``.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from evoprune_kernels._check import check
from evoprune_kernels.importance import Platon, get_rule
from evoprune_kernels.optim import _saving
from evoprune_kernels.optim._counting import Answer, ask, on_host
from evoprune_kernels.optim._layout import local, local_like
from evoprune_kernels.optim._masking import (
    Group,
    Masking,
    State,
    config_of,
    is_prunable,
    zeros_like,
)
from evoprune_kernels.optim._selection import check_fits
from evoprune_kernels.optim.config import PruneConfig

#: types of tensors that are their own shards
PLAIN_TYPES = {Tensor, torch.nn.Parameter}


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


class Pruning(Masking):
    """Mixin in front of a torch optimizer; the subclass has ``_moments``, ``_init_moments`` and ``_fused_step``."""

    _default_prune: PruneConfig | None = None

    def _moments(self, group: Group) -> tuple[str, ...]:
        """The keys of the states that the op needs for this group, besides ``step``."""
        raise NotImplementedError

    def _init_moments(self, group: Group, param: Tensor, state: State) -> None:
        """Create the states of ``param`` that the op needs and that are not there yet."""
        raise NotImplementedError

    def _fused_step(self, group: Group, bucket: Bucket, options: dict[str, Any]) -> None:
        """Call the op; ``options`` are its arguments about importance and masks."""
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
            self._check_reads(self.param_groups[-1])
        except Exception:
            self.param_groups.pop()
            raise

    def _check_reads(self, group: Group) -> None:
        """``ValueError`` if the importance or the growth reads a moment that this optimizer does not keep."""
        if group["prune"] is None:
            return
        config, kept = config_of(group), self._moments(group)
        for moment in get_rule(config.importance).reads:
            check(
                moment in kept,
                f"importance={config.importance!r} reads {moment!r}, got an optimizer that keeps {kept}",
            )
        check(
            config.grow != "momentum" or bool(kept),
            "grow='momentum' needs an optimizer with a first moment, got SGD with momentum=0",
        )

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

    def __getstate__(self) -> dict[str, Any]:
        self._settle()
        state: dict[str, Any] = super().__getstate__()
        return state

    @torch._disable_dynamo
    def state_dict(self) -> dict[str, Any]:
        """As torch's, with the masks, averages and counts of pruned groups."""
        self._settle()
        state: dict[str, Any] = super().state_dict()
        return state

    @torch._disable_dynamo
    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Load a state dict of this optimizer or of torch's; importance and masks keep their own dtypes.

        Like every hyperparameter, ``prune`` is taken from the state dict where that has one, with a warning if it
        differs; where it has none, or None, the group keeps its own.
        """
        self._settle()
        with _saving.keeping_dtypes(self):
            super().load_state_dict(dict(state_dict))

    # the step of a pruned group -------------------------------------------------------------------------------------

    @torch._disable_dynamo
    def _pruned_step(self, group: Group) -> None:
        self._settle(group)
        config = config_of(group)
        t = group["prune_step"] + 1
        answer = self._ask(group, config, t)
        if answer.skipped:
            return
        averages = answer.counts and config.averages(t)
        late: list[Tensor] = []
        buckets = self._buckets(group, config, late)
        for (device, _, prunable), bucket in buckets.items():
            if prunable and averages:
                bucket.importances = bucket.state("importance")
            if prunable and group["prune_refreshes"] > 0:
                bucket.masks = bucket.state("mask")
            options = _options(config, bucket, t)
            if answer.found_inf is not None:
                options["found_inf"] = answer.found_inf.to(device)
            self._fused_step(group, bucket, options)
            windowed = get_rule(config.importance)
            if bucket.importances and isinstance(windowed, Platon) and config.window_ends(t):
                windowed.finish_window_(
                    bucket.importances, bucket.state("sensitivity"), bucket.state("uncertainty"),
                    config.sensitivity_beta, config.uncertainty_beta,
                )  # fmt: skip
        if not answer.counts:
            return
        self._count(group, answer)
        if config.due(t):
            self._choose_masks(group, config, group["params"])
            group["prune_refreshes"] += 1
        elif late and group["prune_refreshes"] > 0 and config.ramp != "given":
            self._choose_masks(group, config, late)

    def _ask(self, group: Group, config: PruneConfig, t: int) -> Answer:
        """Whether step ``t`` is made, and counts; what may be learnt later is left to the device."""
        found_inf, lr = getattr(self, "found_inf", None), group["lr"]
        far = [x for x in (found_inf, lr) if isinstance(x, Tensor) and not on_host(x)]
        now = bool(far) and (config.due(t) or config.window_ends(t) or self._has_new(group))
        return ask(found_inf, lr, now=now)

    def _has_new(self, group: Group) -> bool:
        """Whether a parameter is about to be stepped for the first time."""
        return any(
            p.grad is not None
            and ("mask" if is_prunable(p) else "step") not in self.state.get(p, {})
            for p in group["params"]
        )

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
        moments, rule = self._moments(group), get_rule(config.importance)
        averages = ("importance", *rule.states) if rule.has_state else ()
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
                for key in averages:
                    if key not in state:
                        state[key] = zeros_like(param, torch.float32)
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


def _options(config: PruneConfig, bucket: Bucket, t: int) -> dict[str, Any]:
    """The arguments of the op about importance, masks and rounding."""
    options: dict[str, Any] = {}
    if bucket.importances:
        rule = get_rule(config.importance)
        options = {"rule": rule.kernel, "alpha": config.alpha(t)}
        options["point"] = config.point or rule.default_point
    if bucket.masks and config.sparse_decay > 0:
        options["sparse_decay"] = config.sparse_decay
    if config.rounding == "stochastic" and bucket.params[0].dtype == torch.bfloat16:
        options["seed"] = config.seed
    return options


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
        if is_prunable(param):
            check_fits(config_of(group), shape, name)
