"""Importance rules: what makes a weight worth keeping. One file a rule, one line in ``RULES``."""

from __future__ import annotations

from evoprune_kernels.importance.base import AVERAGINGS, Rule, alpha, parse_averaging
from evoprune_kernels.importance.evolution import Evolution
from evoprune_kernels.importance.magnitude import Magnitude
from evoprune_kernels.importance.taylor import Taylor

#: every rule by name
RULES: dict[str, Rule] = {rule.name: rule for rule in (Magnitude(), Evolution(), Taylor())}


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
    "RULES",
    "Evolution",
    "Magnitude",
    "Rule",
    "Taylor",
    "alpha",
    "get_rule",
    "parse_averaging",
]
