"""``PRESETS``, every method by name, and ``run``, which runs one."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from evoprune_kernels._check import check
from evoprune_kernels.methods import (
    consensus,
    controls,
    evolution,
    oneshot,
    ramps,
    smart,
    ssprop,
)
from evoprune_kernels.methods.engine import Dense, Engine
from evoprune_kernels.methods.job import (
    Batch,
    Evaluate,
    Job,
    Log,
    Loss,
    classification,
    cross_entropy,
)
from evoprune_kernels.methods.recipe import Recipe

#: every method by name
PRESETS: dict[str, Recipe] = {
    recipe.name: recipe
    for module in (evolution, smart, ramps, oneshot, consensus, ssprop, controls)
    for recipe in module.RECIPES
}


@dataclass(frozen=True)
class Result:
    """What a run ended with.

    Attributes:
        model: the model that was given, trained and pruned in place.
        masks: parameter name -> bool mask, True = keep; empty for ``"dense"``. ``ek.convert(model, masks=...)`` and
            ``ek.optimize_for_inference`` take it from here.
        record: everything about the run that is a number or a word, for JSON.
        dense: the state after dense training, for methods that begin with it, else None.
        compacted: the plain model without the closed channels, for methods that remove channels, else None; why there
            is none stands in ``record["details"]``.
    """

    model: nn.Module
    masks: dict[str, Tensor]
    record: dict[str, Any] = field(repr=False)
    dense: Dense | None = field(default=None, repr=False)
    compacted: nn.Module | None = field(default=None, repr=False)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the record as JSON."""
        Path(path).write_text(json.dumps(self.record, indent=1, allow_nan=False) + "\n")


def run(
    method: str,
    model: nn.Module,
    train: Iterable[Batch],
    validation: Iterable[Batch] | None = None,
    *,
    steps: int,
    finetune: int = 0,
    sparsity: float | None = None,
    pattern: str = "unstructured",
    loss: Loss = cross_entropy,
    evaluate: Evaluate = classification,
    optimizer: str = "adamw",
    lr: float = 1e-3,
    finetune_lr: float | None = None,
    decay: str = "constant",
    momentum: float = 0.0,
    weight_decay: float = 0.0,
    exclude: Iterable[str] = (),
    keep_best: bool = False,
    seed: int = 0,
    dense: Dense | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    checkpoint_every: int = 500,
    progress: bool = True,
    log: Log | None = None,
    **options: Any,
) -> Result:
    """Train and prune ``model`` by a method of ``PRESETS``.

    Args:
        method: a name in ``PRESETS``.
        model: trained and pruned in place; its linear layers and convolutions are pruned.
        train: batches, iterated once an epoch; a ``DataLoader``, a list, anything with ``set_epoch(epoch)``.
        validation: batches for ``evaluate``; the only data that a choice is made on (``keep_best``).
        steps: optimizer steps of training; methods that prune meanwhile reach their target here.
        finetune: optimizer steps after that, under the final masks.
        sparsity: share of zeros in the prunable weights, 0 <= sparsity < 1; None where the pattern fixes it.
            Methods with gates: share of the gated layers' own weights that their closed channels hold; the record says
            what went of the whole model. None for ``"dense"`` and ``"ssprop"``.
        pattern: ``"unstructured"``, ``"n:m"``, ``"block:RxC"`` or ``"channel"``; not every method takes every one.
        loss: ``(model, batch) -> scalar``; default: cross-entropy of ``(inputs, labels)``.
        evaluate: ``(model, validation) -> numbers``; default: ``loss`` and ``accuracy``.
        optimizer: ``"adamw"`` or ``"sgd"``.
        lr: learning rate.
        finetune_lr: of the stages behind ``train``; None: ``lr``. Methods that prune while they train have one stage.
        decay: ``"constant"``, or ``"linear"`` or ``"cosine"`` from ``lr`` to 0 within each stage.
        momentum: of ``"sgd"``.
        weight_decay: of the optimizer.
        exclude: modules or parameters that stay dense; shell wildcards are allowed.
        keep_best: end with the state of lowest validation loss among the ends of epochs under the final masks.
        seed: of the order of the data, of random masks and growth. The model is initialised by the caller.
        dense: the ``dense`` of an earlier result with the same model and job: its training is not repeated.
        checkpoint: file for a checkpoint; if it exists, the run goes on from it.
        checkpoint_every: steps between two checkpoints.
        progress: show a progress bar (needs tqdm).
        log: called with flat numbers (``"train/loss"``, ``"validation/..."``, ``"sparsity/<name>"``) and the step: fits
            TensorBoard's ``add_scalars`` and ``wandb.log``.
        options: settings of the method; ``PRESETS[method].options`` has the defaults.

    Returns:
        the result; its record holds the method, the job, the history and the sparsity of every layer.

    Raises:
        ValueError: for an unknown method or option, a sparsity outside [0, 1), a pattern that the method or a layer
            cannot take, a checkpoint or ``dense`` of another run. The model is unchanged then.

    Notes:
        Deterministic for one number of threads, also across a cut: a run that is stopped and started again with the
        same arguments ends with the same masks. torch's global generator is seeded at the start of every epoch.

    Example:
        >>> import torch, evoprune_kernels as ek
        >>> generator = torch.Generator().manual_seed(0)
        >>> x = torch.randn(64, 8, generator=generator)
        >>> data = [(x, (x[:, 0] > 0).long())]
        >>> model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 2))
        >>> result = ek.methods.run("evolution_llm_2024", model, data, data, sparsity=0.5, steps=30, finetune=10,
        ...                         progress=False)
        >>> result.record["sparsity"]["sparsity"], sorted(result.masks)
        (0.5, ['0.weight', '2.weight'])
    """
    check(method in PRESETS, f"expected a method in {sorted(PRESETS)}, got {method!r}")
    recipe = PRESETS[method]
    job = Job(
        train, validation, sparsity, pattern, steps, finetune, loss, evaluate, optimizer, lr, finetune_lr,
        decay, momentum, weight_decay, tuple(exclude), keep_best, seed, options,
    )  # fmt: skip
    engine = Engine(
        recipe, job, model, checkpoint=checkpoint, checkpoint_every=checkpoint_every, progress=progress, log=log
    )  # fmt: skip
    engine.go(dense)
    return Result(model, engine.run.masks, _record(engine), engine.dense, engine.run.compacted)


def _record(engine: Engine) -> dict[str, Any]:
    run = engine.run
    zeros = {n: int((w == 0).sum()) / max(w.numel(), 1) for n, w in run.named_weights.items()}
    return {
        "method": engine.recipe.name,
        "source": engine.recipe.source,
        "job": engine.job.describe() | {"options": engine.options},
        "model": type(run.model).__name__,
        "parameters": sum(p.numel() for p in run.model.parameters()),
        "stages": [{"name": s.name, "steps": s.steps} for s in engine.stages],
        "sparsity": run.sparsity(),
        "zeros": zeros,
        "numbers": run.numbers,
        "details": run.details,
        "history": engine.history,
        "best_step": None if engine.best is None else engine.best["step"],
        "seconds": engine.seconds,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }
