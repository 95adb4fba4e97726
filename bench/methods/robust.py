"""The first paper's other claims, looked at honestly: noise, attacks, and training on a part of the data.

Cells ``"noise:arm|sigma|seed"``, ``"fgsm:arm|eps|seed"``, ``"pgd:arm|eps|seed"`` and ``"part:arm|share|seed"``, beside
those of the ladder. All networks had equal training; ``eps`` and ``sigma`` are in units of the pixel range 0-1.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import nn

from bench.methods import evaluate
from bench.methods.subsets import shrink

if TYPE_CHECKING:
    from bench.methods.ladder import Ladder

SIGMAS = (0.0, 0.241, 0.483, 0.724, 1.0)
EPS = (2 / 255, 8 / 255, 0.1)
#: test images that are attacked
IMAGES = 1000


class Extras:
    """What is measured beside the ladder."""

    def __init__(self, ladder: Ladder) -> None:
        self.ladder = ladder

    def look(
        self, arm: str, seed: int, model: nn.Module | None, sparsity: float | None = None
    ) -> None:
        """Noise and attacks on a network that was just trained, if the plan asks for them."""
        plan = self.ladder.plan
        wanted = arm == "dense" or (sparsity == plan.robust_at and arm in plan.robust_arms)
        if model is None or plan.robust_at is None or not wanted:
            return
        test = self.ladder.task.test
        images, labels = test.images[:IMAGES], test.labels[:IMAGES]
        found = evaluate.gaussian_noise(model, images, labels, SIGMAS, seed)
        self._put("noise", arm, seed, SIGMAS, found)
        self._put(
            "fgsm", arm, seed, EPS, evaluate.attack_curve(evaluate.fgsm, model, images, labels, EPS)
        )
        self._put(
            "pgd", arm, seed, EPS,
            evaluate.attack_curve(evaluate.pgd, model, images, labels, EPS, seed=seed),
        )  # fmt: skip
        self.ladder.keep()

    def train_on_parts(self, seed: int, quick: bool) -> None:
        """Dense and pruned networks on 10, 25, 50 and 100 % of the training set, with equal steps."""
        from bench.methods.ladder import Ladder, score

        ladder = self.ladder
        plan = ladder.plan
        arms = ("dense", *plan.robust_arms) if plan.shares and not quick else ()
        for share in plan.shares:
            keys = {arm: f"part:{arm}|{share}|{seed}" for arm in arms}
            if all(key in ladder.cells for key in keys.values()):
                continue
            part = Ladder(shrink(ladder.task, share, seed=0), plan, quick, ladder.path)
            part.steps, part.finetune = ladder.steps, ladder.finetune
            for arm, key in keys.items():
                sparsity = None if arm == "dense" else plan.robust_at
                result = part.run(arm, seed, sparsity)
                ladder.cells[key] = {"value": score(part.task, result.model)}
                print(f"{key}: {ladder.cells[key]['value']:.4f}", flush=True)
            ladder.keep()

    def _put(
        self, what: str, arm: str, seed: int, points: tuple[float, ...], values: list[float]
    ) -> None:
        for point, value in zip(points, values, strict=True):
            self.ladder.cells[f"{what}:{arm}|{point:.4g}|{seed}"] = {"value": value}
