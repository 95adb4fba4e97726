"""Importance rules: what makes a weight worth keeping. One file a rule, one line in ``RULES``."""

from __future__ import annotations

from evoprune_kernels.importance.base import (
    AVERAGINGS,
    Rule,
    alpha,
    averaged_step,
    parse_averaging,
)
from evoprune_kernels.importance.evolution import Evolution
from evoprune_kernels.importance.evolution_abs import EvolutionAbs
from evoprune_kernels.importance.fisher import Fisher
from evoprune_kernels.importance.magnitude import Magnitude
from evoprune_kernels.importance.movement import Movement
from evoprune_kernels.importance.platon import Platon, platon_alpha, window_ends
from evoprune_kernels.importance.taylor import Taylor

#: every rule by name
RULES: dict[str, Rule] = {
    rule.name: rule
    for rule in (
        Magnitude(),
        Evolution(),
        EvolutionAbs(),
        Taylor(),
        Movement(),
        Platon(),
        Fisher(),
    )
}
#: the rules that a fused optimizer step advances, in the order of csrc/core/step_rule.h after "none"
KERNEL_RULES: dict[str, Rule] = {
    name: rule for name, rule in RULES.items() if rule.kernel == rule.name
}


def get_rule(name: str) -> Rule:
    """The rule called ``name``.

    Raises:
        ValueError: if there is none.

    Example:
        >>> from evoprune_kernels.importance import get_rule
        >>> get_rule("evolution").has_state
        True
    """
    if name not in RULES:
        raise ValueError(f"expected an importance rule in {tuple(RULES)}, got {name!r}")
    return RULES[name]


__all__ = [
    "AVERAGINGS",
    "KERNEL_RULES",
    "RULES",
    "Evolution",
    "EvolutionAbs",
    "Fisher",
    "Magnitude",
    "Movement",
    "Platon",
    "Rule",
    "Taylor",
    "alpha",
    "averaged_step",
    "get_rule",
    "parse_averaging",
    "platon_alpha",
    "window_ends",
]
