"""The papers' methods as presets: a whole recipe from a model, data and a target, with the control arms beside them.

    result = ek.methods.run("evolution_llm_2024", model, train, validation, sparsity=0.6, steps=5000, finetune=50)

Every method takes ``steps + finetune`` optimizer steps, so that all arms can be compared. Methods that prune after
training choose their masks at ``steps``; those that prune while they train reach the target there.
"""

from evoprune_kernels.methods.engine import Dense
from evoprune_kernels.methods.job import Job, Run, classification, cross_entropy
from evoprune_kernels.methods.presets import PRESETS, Result, run
from evoprune_kernels.methods.recipe import Recipe, Stage

__all__ = [
    "PRESETS",
    "Dense",
    "Job",
    "Recipe",
    "Result",
    "Run",
    "Stage",
    "classification",
    "cross_entropy",
    "run",
]
