"""What a run is given: model, data, budget of steps, target. And what it learns on the way."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from evoprune_kernels import optim
from evoprune_kernels._check import check
from evoprune_kernels.optim import PruneConfig

Batch = Any
Loss = Callable[[nn.Module, Batch], Tensor]
Evaluate = Callable[[nn.Module, Iterable[Batch]], dict[str, float]]
Log = Callable[[dict[str, float], int], None]
OPTIMIZERS = ("adamw", "sgd")
DECAYS = ("constant", "linear", "cosine")


def cross_entropy(model: nn.Module, batch: Batch) -> Tensor:
    """The loss of a batch ``(inputs, labels)``: mean cross-entropy in nats of ``model(inputs)``."""
    inputs, labels = batch
    return F.cross_entropy(model(inputs), labels)


@torch.no_grad()
def classification(model: nn.Module, batches: Iterable[Batch]) -> dict[str, float]:
    """Mean cross-entropy in nats and share of right answers over batches ``(inputs, labels)``."""
    loss, right, count = 0.0, 0, 0
    for inputs, labels in batches:
        logits = model(inputs)
        loss += F.cross_entropy(logits, labels, reduction="sum").item()
        right += int((logits.argmax(-1) == labels).sum())
        count += labels.numel()
    check(count > 0, "expected validation data, got no batch")
    return {"loss": loss / count, "accuracy": right / count}


@dataclass(frozen=True)
class Job:
    """Everything that does not change during a run; see ``methods.run`` for the meaning of each field."""

    train: Iterable[Batch]
    validation: Iterable[Batch] | None
    sparsity: float | None
    pattern: str
    steps: int
    finetune: int
    loss: Loss = cross_entropy
    evaluate: Evaluate = classification
    optimizer: str = "adamw"
    lr: float = 1e-3
    finetune_lr: float | None = None
    decay: str = "constant"
    momentum: float = 0.0
    weight_decay: float = 0.0
    exclude: tuple[str, ...] = ()
    keep_best: bool = False
    seed: int = 0
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check(self.steps >= 1, f"expected steps >= 1, got steps={self.steps}")
        check(self.finetune >= 0, f"expected finetune >= 0, got finetune={self.finetune}")
        check(self.lr > 0, f"expected lr > 0, got lr={self.lr}")
        check(
            self.optimizer in OPTIMIZERS,
            f"expected optimizer in {OPTIMIZERS}, got {self.optimizer!r}",
        )
        check(self.decay in DECAYS, f"expected decay in {DECAYS}, got {self.decay!r}")
        check(
            not self.keep_best or self.validation is not None,
            "keep_best=True needs validation data, got validation=None",
        )

    @property
    def kept(self) -> float:
        """The share of the prunable weights that is kept in the end."""
        return self.config().density

    def config(self, **changes: Any) -> PruneConfig:
        """A ``PruneConfig`` of this pattern and sparsity: masks are given, unless ``changes`` say when to choose."""
        changes = {"ramp": "given", **changes}
        return PruneConfig(self.pattern, sparsity=self.sparsity, seed=self.seed, **changes)

    def make_optimizer(
        self,
        model: nn.Module,
        prune: PruneConfig,
        lr: float | None = None,
        apart: Mapping[str, float] | None = None,
    ) -> optim.AdamW | optim.SGD:
        """The optimizer of a stage, over named groups: the weights of linear layers and convolutions are prunable.

        ``apart``: parameters by name that have so many times the learning rate, and no weight decay.
        """
        groups = optim.prunable_groups(model, prune, exclude=self.exclude, convolutions=True)
        rate = self.lr if lr is None else lr
        if apart:
            groups = _set_apart(groups, apart, rate)
        if self.optimizer == "adamw":
            return optim.AdamW(groups, lr=rate, weight_decay=self.weight_decay)
        return optim.SGD(groups, lr=rate, momentum=self.momentum, weight_decay=self.weight_decay)

    def describe(self) -> dict[str, Any]:
        """The numbers and words of the job, for the record and to tell two jobs apart."""
        names = (
            "sparsity", "pattern", "steps", "finetune", "optimizer", "lr", "finetune_lr", "decay",
            "momentum", "weight_decay", "keep_best", "seed",
        )  # fmt: skip
        described = {name: getattr(self, name) for name in names}
        return described | {"exclude": list(self.exclude), "options": dict(self.options)}


def _set_apart(
    groups: list[dict[str, Any]], apart: Mapping[str, float], rate: float
) -> list[dict[str, Any]]:
    """``groups`` without the parameters in ``apart``, and one more group for each factor of the learning rate."""
    rest, taken = [], [pair for g in groups for pair in g["params"] if pair[0] in apart]
    for group in groups:
        pairs = [pair for pair in group["params"] if pair[0] not in apart]
        rest += [{**group, "params": pairs}] if pairs else []
    for factor in sorted({apart[name] for name, _ in taken}):
        pairs = [pair for pair in taken if apart[pair[0]] == factor]
        rest.append({"params": pairs, "prune": None, "lr": factor * rate, "weight_decay": 0.0})
    return rest


class Run:
    """What changes during a run: the model, its optimizer, the masks, and where the run is."""

    def __init__(self, job: Job, model: nn.Module) -> None:
        self.job = job
        self.model = model
        self._optimizer: optim.AdamW | optim.SGD | None = None
        #: parameter name -> mask that was chosen last
        self.masks: dict[str, Tensor] = {}
        #: parameter name -> running average of the weight, where a stage recorded one
        self.averages: dict[str, Tensor] = {}
        #: numbers that a recipe carries from stage to stage
        self.numbers: dict[str, float] = {}
        #: what ``Recipe.finish`` adds to the record
        self.details: dict[str, Any] = {}
        #: the plain, smaller model that ``Recipe.finish`` made, if it makes one
        self.compacted: nn.Module | None = None
        #: steps taken in this stage, epoch of the run, batches of that epoch that were used
        self.step, self.epoch, self.batch = 0, 0, 0
        #: steps taken in all stages
        self.total = 0

    @property
    def optimizer(self) -> optim.AdamW | optim.SGD:
        """That of the stage that runs."""
        if self._optimizer is None:
            raise RuntimeError("no stage has begun, so there is no optimizer")
        return self._optimizer

    @optimizer.setter
    def optimizer(self, optimizer: optim.AdamW | optim.SGD) -> None:
        self._optimizer = optimizer

    @property
    def named_weights(self) -> dict[str, nn.Parameter]:
        """The prunable weights by name, from the input to the output as the model registers them."""
        prune = self.job.config()
        groups = optim.prunable_groups(self.model, prune, self.job.exclude, convolutions=True)
        named = dict(pair for g in groups if g["prune"] is not None for pair in g["params"])
        return {name: named[name] for name, _ in self.model.named_parameters() if name in named}

    def install(self, masks: Mapping[str, Tensor]) -> None:
        """Give masks to the optimizer of this stage, and remember them."""
        self.masks = {name: mask.clone() for name, mask in masks.items()}
        self.optimizer.set_masks_(self.masks)

    def read_masks(self) -> None:
        """Remember the masks that the optimizer holds now."""
        held = self.optimizer.masks()
        weights = self.named_weights
        self.masks = {n: held[w].clone() for n, w in weights.items() if w in held}

    def read_averages(self) -> None:
        """Remember the importance that the optimizer holds now, as averages of the weights."""
        state = self.optimizer.state
        self.averages = {
            name: state[w]["importance"].clone()
            for name, w in self.named_weights.items()
            if "importance" in state.get(w, {})
        }

    def sparsity(self) -> dict[str, float]:
        """``"sparsity"`` over all prunable weights (masked ones), and ``"sparsity/<name>"`` of each."""
        report, zeros, total = {"sparsity": 0.0}, 0, 0
        for name, weight in self.named_weights.items():
            mask = self.masks.get(name)
            removed = 0 if mask is None else mask.numel() - int(mask.sum())
            report[f"sparsity/{name}"] = removed / max(weight.numel(), 1)
            zeros, total = zeros + removed, total + weight.numel()
        report["sparsity"] = zeros / max(total, 1)
        return report
