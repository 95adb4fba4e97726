"""What is run for each task: arms, sparsities, epochs. Every arm takes the same steps from the same first weights.

The published protocol of the first papers: dense training, one mask, 30 epochs of retraining (E-sqrt over the last 50
epochs). What is smaller here is in ``Task.scaled_down`` and in the fields below.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from typing import Any

from evoprune_kernels._check import check

#: arms that begin with the dense training, which is shared
AFTER_TRAINING = (
    "evolution_threshold_2022", "evolution_llm_2024", "smart_bezier_2022", "smart_prune_2023",
    "magnitude_std", "magnitude_uniform", "magnitude_global", "magnitude_erk", "wanda", "sparsegpt", "ecoflap",
    "random",
)  # fmt: skip
#: what any method has to beat
CONTROLS = ("magnitude_std", "magnitude_global", "magnitude_erk", "magnitude_uniform", "random")
PUBLISHED = (
    "evolution_threshold_2022", "evolution_llm_2024", "smart_bezier_2022", "smart_prune_2023",
)  # fmt: skip


@dataclass(frozen=True)
class Plan:
    """Arms and sizes; ``finetune`` and ``epochs`` in epochs, ``finetune_steps`` instead where it is not 0.

    ``nm`` are arms that are also run with the pattern 2:4. ``window`` is the share of the dense training that E-sqrt
    averages. ``robust_at`` is the sparsity of the networks whose robustness and few-shot training are looked at.
    """

    arms: tuple[str, ...]
    sparsities: tuple[float, ...]
    finetune: int = 0
    finetune_steps: int = 0
    epochs: int | None = None
    window: float = 0.5
    nm: tuple[str, ...] = ()
    robust_at: float | None = None
    robust_arms: tuple[str, ...] = ()
    shares: tuple[float, ...] = ()
    exclude: tuple[str, ...] = ()
    options: dict[str, dict[str, Any]] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """The fields, for JSON."""
        return asdict(self)


IN_TRAINING = (
    "magnitude_cubic", "evolution_cubic", "platon", "movement", "adam_fisher", "rigl",
)  # fmt: skip
ROBUST = ("evolution_threshold_2022", "smart_bezier_2022", "magnitude_std", "magnitude_global")
#: SGD keeps no second moment, which "adam_fisher" reads
WITHOUT_ADAM = tuple(arm for arm in (*AFTER_TRAINING, *IN_TRAINING) if arm != "adam_fisher")

CHARGPT = Plan(
    ("evolution_llm_2024", "magnitude_uniform", "magnitude_global", "random"),
    (0.3, 0.5, 0.7, 0.9, 0.95, 0.98), finetune_steps=50, epochs=10,
    nm=("evolution_llm_2024", "magnitude_uniform", "platon"), exclude=("head",),
)  # fmt: skip

PLANS = {
    "mnist": Plan(
        WITHOUT_ADAM, (0.80, 0.92, 0.955, 0.974, 0.988), finetune=30, window=50 / 60, robust_at=0.92,
        robust_arms=ROBUST, shares=(0.1, 0.25, 0.5, 1.0),
    ),
    "fashion": Plan(
        (
            "evolution_threshold_2022", "smart_bezier_2022", "smart_prune_2023", "magnitude_std", "magnitude_global",
            "magnitude_erk", "random", "platon", "movement",
        ),
        (0.80, 0.92, 0.971), finetune=5, window=10 / 15, robust_at=0.92, robust_arms=ROBUST,
    ),
    "fashion-conv": Plan(
        ("evolution_threshold_2022", "smart_bezier_2022", "magnitude_std", "magnitude_global", "random"),
        (0.87, 0.92, 0.95), finetune=3, epochs=6, window=0.5,
    ),
    "cifar": Plan(
        ("evolution_threshold_2022", "smart_bezier_2022", "magnitude_std", "magnitude_global", "random"),
        (0.65, 0.75, 0.87, 0.92, 0.95), finetune=30, window=0.5,
    ),
    "digits": Plan(
        WITHOUT_ADAM, (0.8, 0.9), finetune=10, window=0.5, robust_at=0.8, robust_arms=ROBUST[:3],
        shares=(0.25, 1.0),
    ),
    "chargpt": CHARGPT,
    # 50 of 5,000 steps in the paper: the same share of ours
    "chargpt-short": replace(CHARGPT, finetune_steps=7),
}  # fmt: skip


def plan_of(task: str) -> Plan:
    """The plan of a task."""
    check(task in PLANS, f"expected a task of {sorted(PLANS)}, got {task!r}")
    return PLANS[task]
