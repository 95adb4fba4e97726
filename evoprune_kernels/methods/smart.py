"""The two methods called "smart pruning".

::

    smart_bezier_2022   train | prune and finetune: draw, AND, apply, until the target
    smart_prune_2023    train | a round: forward, layer after layer gets its mask | fine: rows | train under masks

The steps after ``train`` are those of every other method: ``finetune`` in all. The scripts of 2022 draw once an epoch,
up to 200 times or until the target; here there are ``1 / draw_every`` draws, and what is then left comes at once. A
draw takes whole weights of each bin, so nothing comes of small shares of small bins: where one takes less than 0.1 % of
the weights, ``upscale`` goes to the next published value, four times as much (.01, .04, .16, .64).
"""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor

from evoprune_kernels._check import check
from evoprune_kernels.methods.controls import weights
from evoprune_kernels.methods.evolution import averaged, window_start
from evoprune_kernels.methods.job import Job, Run
from evoprune_kernels.methods.recipe import (
    Action,
    Recipe,
    Stage,
    finetune_stage,
    needs_sparsity,
    train_stage,
)
from evoprune_kernels.selection import (
    drop_sparse_rows,
    progressive_gap,
    progressive_names,
    random_scores,
    rate_for,
    select_bezier,
    select_threshold,
)

#: the lowest published one
LEAST_UPSCALE = 0.01


def trim(
    new: dict[str, Tensor], old: dict[str, Tensor], kept: float, seed: int, draw: int
) -> dict[str, Tensor]:
    """Masks between ``old`` and ``new`` that keep ``round(kept * entries)``, where ``new`` keeps fewer.

    Of the entries that ``new`` would take from ``old``, those with the lowest random scores are taken.
    """
    total = sum(mask.numel() for mask in new.values())
    goal, left = round(kept * total), sum(int(mask.sum()) for mask in new.values())
    if left >= goal:
        return new
    scores = [
        random_scores(mask.shape, seed=seed, tensor=i, draw=draw).reshape(-1)
        for i, mask in enumerate(new.values())
    ]
    taken = torch.cat([(old[n] & ~new[n]).reshape(-1) for n in new])
    candidates = taken.nonzero().squeeze(1)
    order = torch.cat(scores)[candidates].sort(stable=True).indices
    back = torch.zeros_like(taken)
    back[candidates[order[candidates.numel() - (goal - left) :]]] = True
    parts = back.split([mask.numel() for mask in new.values()])
    return {n: m | p.view(m.shape) for (n, m), p in zip(new.items(), parts, strict=True)}


def _bezier(job: Job) -> list[Stage]:
    options = BEZIER.options_of(job)
    needs_sparsity(job, BEZIER.name)
    job.config(scope="global")  # unstructured only
    check(
        options["values"] in ("averaged", "current"),
        f"expected values in ('averaged', 'current'), got {options['values']!r}",
    )
    share = options["prune_share"]
    check(0.0 < share <= 1.0, f"expected 0 < prune_share <= 1, got prune_share={share}")
    start = window_start(job.steps, options["window"])
    train = train_stage(job, importance="evolution", averaging="sqrt", average_from=start)
    draws = Draws(job, options, last=round(share * job.finetune))
    optimizer = finetune_stage(job, draws.draw).optimizer
    prune = Stage(
        "prune and finetune",
        job.finetune,
        optimizer,
        draws.draw,
        draws.after_step,
        best_from=draws.last,
    )
    return [train, prune]


class Draws:
    """The draws of one job: every so many steps until step ``last``, and there until the target is reached."""

    def __init__(self, job: Job, options: dict[str, Any], last: int) -> None:
        check(last >= 1, f"smart_bezier_2022 prunes in the finetune steps, got {job.finetune}")
        self.job, self.options, self.last = job, options, last
        self.every = max(1, round(options["draw_every"] * job.finetune))

    def missing(self, run: Run) -> int:
        """How many weights are yet to go."""
        sizes = [w.numel() for w in run.named_weights.values()]
        kept = sum(int(m.sum()) for m in run.masks.values()) if run.masks else sum(sizes)
        return max(kept - round(self.job.kept * sum(sizes)), 0)

    def draw(self, run: Run) -> None:
        """New mask AND old mask, trimmed to the target; a draw that takes too little raises the upscale."""
        if self.missing(run) == 0:
            return
        options, seed = self.options, self.job.seed
        values = averaged(run) if options["values"] == "averaged" else weights(run)
        old = run.masks or {n: torch.ones_like(w, dtype=torch.bool) for n, w in values.items()}
        draw = int(run.numbers.get("draws", 0.0))
        upscale = run.numbers.setdefault("upscale", options["upscale"])
        new = {
            name: select_bezier(
                values[name], options["curve"], upscale, scaling=options["scaling"],
                old=old[name], seed=seed, tensor=i, epoch=draw,
            )
            for i, name in enumerate(values)
        }  # fmt: skip
        taken = sum(int((old[n] & ~new[n]).sum()) for n in new)
        if taken < 1e-3 * sum(mask.numel() for mask in new.values()):
            run.numbers["upscale"] = min(max(4 * upscale, LEAST_UPSCALE), 1.0)
        run.numbers["draws"] = draw + 1.0
        run.install(trim(new, old, self.job.kept, seed, draw))

    def after_step(self, run: Run) -> None:
        """Draw if it is time."""
        if run.step % self.every == 0 and run.step < self.last:
            self.draw(run)
        while run.step == self.last and (missing := self.missing(run)) > 0:
            upscale = run.numbers["upscale"]
            self.draw(run)
            if upscale == 1.0 and self.missing(run) == missing:
                warnings.warn(
                    f"smart_bezier_2022 ends at sparsity {run.sparsity()['sparsity']:.4f}, not {self.job.sparsity}: its"
                    f" curve with scaling {self.options['scaling']!r} never prunes the outermost bins",
                    stacklevel=2,
                )
                break


def _smart_prune(job: Job) -> list[Stage]:
    options = SMART_PRUNE.options_of(job)
    needs_sparsity(job, SMART_PRUNE.name)
    job.config(scope="global")  # unstructured only
    rounds = options["rounds"]
    check(rounds >= 1, f"expected rounds >= 1, got rounds={rounds}")
    check(
        job.finetune >= 2 * rounds,
        f"smart_prune_2023 needs 2 finetune steps a round, {2 * rounds}, got {job.finetune}",
    )
    stages = [train_stage(job, importance="evolution", averaging="linear")]
    part = job.finetune // (2 * rounds)
    for index in range(rounds):
        left = job.finetune - 2 * part * (rounds - 1) - part
        stages.append(_forward(job, index, part))
        steps = part if index < rounds - 1 else left
        stages.append(finetune_stage(job, _fine(index, options), f"train {index}", steps))
    return stages


def _forward(job: Job, index: int, steps: int) -> Stage:
    """Round ``index``: the mask is computed, then applied to one layer more at every gap; weights regrow between."""
    options = SMART_PRUNE.options_of(job)

    def optimizer(run: Run) -> object:
        return job.make_optimizer(run.model, job.config(importance="magnitude"), job.finetune_lr)

    def begin(run: Run) -> None:
        current = weights(run)
        names = list(current)
        spread_of = averaged(run) if index == 0 else current
        if index == 0:
            run.numbers["rate"] = rate_for(
                [current[n] for n in names], [spread_of[n] for n in names], job.kept
            )
        rate = run.numbers["rate"] + index * options["rate_step"]
        chosen = {
            n: select_threshold(
                current[n], spread_of[n], rate, absolute=index > 0, nonzero=index > 0
            )
            for n in names
        }
        run.masks = {n: m & run.masks[n] if run.masks else m for n, m in chosen.items()}

    def after_step(run: Run) -> None:
        names = list(run.masks)
        gap = progressive_gap(len(names), steps)
        if run.step % gap == 0 or run.step == steps:
            _zero(run, progressive_names(names, run.step, steps))

    return Stage(f"forward {index}", steps, optimizer, begin, after_step)


def _fine(index: int, options: dict[str, float]) -> Action:
    """Rows that are almost empty go; ``keep`` falls a little every round."""

    def choose(run: Run) -> None:
        keep = 1.0 - index * options["keep_step"]
        current = weights(run)
        nonzero = {n: m & (current[n] != 0) for n, m in run.masks.items()}
        run.masks = {n: drop_sparse_rows(m, keep) for n, m in nonzero.items()}

    return choose


@torch.no_grad()
def _zero(run: Run, names: list[str]) -> None:
    named = run.named_weights
    for name in names:
        named[name].masked_fill_(~run.masks[name], 0.0)


BEZIER = Recipe(
    "smart_bezier_2022",
    "Islam and Belhaouari, LOD 2022: Bezier curve over the histogram of each row",
    _bezier,
    {
        "curve": [1.0, 0.14, 0.14, 0.1],
        "upscale": 0.04,
        "scaling": "+",
        "values": "averaged",
        "window": 0.5,
        "draw_every": 1 / 30,
        "prune_share": 0.7,
    },
)
SMART_PRUNE = Recipe(
    "smart_prune_2023",
    "Islam and Belhaouari, 2023 library, `smart_prune`",
    _smart_prune,
    {"rounds": 2, "rate_step": 0.005, "keep_step": 0.0005},
)
RECIPES = [BEZIER, SMART_PRUNE]
