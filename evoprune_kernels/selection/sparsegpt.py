"""SparseGPT: prune column by column, and let the columns to the right make up for each error.

The output error of one row is a quadratic form, ``(w - w0) H (w - w0)^T``. Column j is frozen (kept as it is by now, or
set to zero) and the columns after it move to the minimum of that form. With ``U`` the upper Cholesky factor of H^-1,
H^-1 = U^T U, that minimum needs no further inverse::

    error_j  = (w_j - frozen w_j) / U[j, j]
    w[j+1:] -= error_j * U[j, j+1:]
    score_j  = w_j^2 / U[j, j]^2              how much the form grows if column j is set to zero
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from evoprune_kernels import ops
from evoprune_kernels._check import check, check_dim, check_dtype, check_shape
from evoprune_kernels.formats import NM, parse_pattern
from evoprune_kernels.selection._layers import (
    Layer,
    Target,
    check_weight,
    choose_targets,
    find_layers,
)
from evoprune_kernels.selection.calibration import (
    ACCUMULATORS,
    Forward,
    InputSums,
    call_order,
    sum_inputs,
)

#: ``choose(|w| / diag(U) of some columns [N, b], first column, past the last)`` -> mask [N, b]
Choose = Callable[[Tensor, int, int], Tensor]


def sparsegpt_weight(
    weight: Tensor,
    gram: Tensor,
    samples: int,
    *,
    kept: float | None = None,
    pattern: str | NM | None = None,
    mask: Tensor | None = None,
    damping: float = 0.01,
    block: int = 128,
    dtype: torch.dtype = torch.float32,
    name: str = "weight",
) -> tuple[Tensor, Tensor]:
    """Prune one weight and update what is kept so that the layer's outputs change least.

    ``H = 2/samples * gram + damping * mean(diag) * I``, then as this file's head says

    Args:
        weight: [N, K], any float dtype; not changed.
        gram: [K, K], the sum of x x^T.
        samples: how many rows were summed.
        kept: share that is kept, in [0, 1]: chosen for a block of columns at a time, across all rows of the block.
        pattern: ``"n:m"`` instead: chosen for a group of columns when it is reached, so that the updates count.
        mask: bool [N, K] instead: only the update is computed.
        damping: share of the mean diagonal that is added to it.
        block: columns between two updates of all columns to the right; for n:m rounded to whole groups.
        dtype: of the computation, float32 or float64.
        name: of the weight, for messages.

    Returns:
        ``(new weight, mask)``: [N, K] in the dtype of ``weight``, exactly +0.0 where pruned; bool [N, K].

    Raises:
        ValueError: if shapes do not fit, a number is out of range, or not exactly one of ``kept``, ``pattern`` and
            ``mask`` is given.
        RuntimeError: if H is not positive definite in ``dtype``; names the weight and the damping.

    Notes:
        A column whose input was always zero (``gram[j, j] == 0``) becomes zero; in the factor it counts as independent.
        The mean diagonal is that of the data: such columns count as 0 in it. Scores are compared as float32. Ties: the
        lowest flat index within the block (n:m: the lowest column). Keeps ``round(kept * N * K)`` in all.

    Source:
        Frantar and Alistarh, "SparseGPT: Massive Language Models Can Be Accurately Pruned in One-Shot",
        arXiv 2301.00774.

    Example:
        >>> import torch
        >>> from evoprune_kernels.selection import sparsegpt_weight
        >>> x = torch.tensor([[1.0, 1.0], [2.0, 2.0], [1.0, 1.1]])  # two inputs that are nearly equal
        >>> new, mask = sparsegpt_weight(torch.tensor([[1.0, 2.0]]), x.t() @ x, 3, kept=0.5)
        >>> mask.tolist(), round(new[0, 1].item(), 1)  # what is left does the work of both
        ([[False, True]], 3.0)
    """
    check_dim(weight, 2, "weight")
    check_dtype(torch.empty(0, dtype=dtype), ACCUMULATORS, "the computation")
    check_shape(gram, (weight.shape[1], weight.shape[1]), "gram")
    check(samples >= 1, f"expected samples >= 1, got {samples}")
    check(damping >= 0, f"expected damping >= 0, got {damping}")
    check(block >= 1, f"expected block >= 1, got {block}")
    choose, span, block = _chooser(weight, kept, pattern, mask, block)
    work = weight.detach().to(dtype, copy=True, memory_format=torch.contiguous_format)
    hessian = gram.to(dtype) * (2.0 / samples)
    diagonal = hessian.diagonal()
    dead = diagonal == 0
    added = damping * diagonal.mean() if diagonal.numel() else 0.0
    diagonal.masked_fill_(dead, 1.0).add_(added)
    work.masked_fill_(dead, 0.0)
    found = _prune(work, _inverse_factor(hessian, damping, name), choose, span, block)
    return work.to(weight.dtype), found


def _chooser(
    weight: Tensor,
    kept: float | None,
    pattern: str | NM | None,
    mask: Tensor | None,
    block: int,
) -> tuple[Choose, int, int]:
    """``(choose, columns that it chooses at a time, block)``."""
    given = sum(x is not None for x in (kept, pattern, mask))
    check(given == 1, f"expected one of kept, pattern and mask, got {given} of them")
    if mask is not None:
        check_dtype(mask, (torch.bool,), "mask")
        check_shape(mask, tuple(weight.shape), "mask")
        return (lambda scores, first, end: mask[:, first:end]), block, block
    if pattern is not None:
        nm = parse_pattern(pattern)
        if not isinstance(nm, NM):
            raise ValueError(f"expected an n:m pattern, got {str(nm)!r}")
        return _choose_nm(nm), nm.m, max(block // nm.m, 1) * nm.m
    assert kept is not None
    check(0.0 <= kept <= 1.0, f"expected 0 <= kept <= 1, got {kept}")
    return _choose_share(kept, weight.shape[0]), block, block


def _choose_share(kept: float, rows: int) -> Choose:
    def choose(scores: Tensor, first: int, end: int) -> Tensor:
        # differences of rounded totals, so that the whole weight keeps round(kept * N * K)
        count = round(kept * rows * end) - round(kept * rows * first)
        return ops.select_topk(scores, count / max(scores.numel(), 1))

    return choose


def _choose_nm(nm: NM) -> Choose:
    def choose(scores: Tensor, first: int, end: int) -> Tensor:
        # rows that share a mask add up what each would lose, which is the square
        scores = scores if nm.shared == 1 else scores.square()
        return ops.select_nm(scores, nm.n, nm.m, shared=nm.shared)

    return choose


def _inverse_factor(hessian: Tensor, damping: float, name: str) -> Tensor:
    """Upper ``U`` with H^-1 = U^T U."""
    lower, failed = torch.linalg.cholesky_ex(hessian)
    if not failed:
        factor, failed = torch.linalg.cholesky_ex(torch.cholesky_inverse(lower), upper=True)
        if not failed and bool(factor.isfinite().all()):
            return factor
    raise RuntimeError(
        f"{name}: expected a positive definite Hessian, got none in {hessian.dtype} with damping={damping}: use more "
        "calibration data, a larger damping or dtype=torch.float64"
    )


def _prune(work: Tensor, factor: Tensor, choose: Choose, span: int, block: int) -> Tensor:
    """Prunes and updates ``work`` [N, K] in place; the mask. ``block`` is a multiple of ``span``."""
    columns = work.shape[1]
    mask = torch.empty_like(work, dtype=torch.bool)
    diagonal = factor.diagonal()
    for start in range(0, columns, block):
        stop = min(start + block, columns)
        errors = torch.zeros_like(work[:, start:stop])
        for j in range(start, stop):
            if (j - start) % span == 0:
                end = min(j + span, stop)
                scores = (work[:, j:end] / diagonal[j:end]).abs()
                mask[:, j:end] = choose(scores, j, end)
            pruned = ~mask[:, j]
            error = torch.where(pruned, work[:, j] / diagonal[j], 0.0)
            work[:, j].masked_fill_(pruned, 0.0)
            work[:, j + 1 : stop].addr_(error, factor[j, j + 1 : stop], alpha=-1)
            errors[:, j - start] = error
        work[:, stop:].addmm_(errors, factor[start:stop, stop:], alpha=-1)
    return mask


def sparsegpt_(
    model: nn.Module,
    batches: Iterable[Any],
    *,
    kept: float | Mapping[str, float] | None = None,
    pattern: str | NM | None = None,
    sequential: bool = True,
    damping: float = 0.01,
    block: int = 128,
    dtype: torch.dtype = torch.float32,
    forward: Forward | None = None,
    exclude: Iterable[str] = (),
) -> dict[str, Tensor]:
    """Prune the layers of ``model`` in place and update what is kept; see ``sparsegpt_weight``.

    Args:
        model: its weights are changed; see ``calibrate`` for what is not.
        batches: calibration data; held as a list, because ``sequential`` runs it several times.
        kept: share of the weights that is kept, in (0, 1]; or a share for each weight name, and the layers that are
            not named stay dense.
        pattern: ``"n:m"`` instead of ``kept``.
        sequential: whether a layer's inputs come from a model whose earlier layers are pruned, as in the paper. Costs
            one pass over ``batches`` for each layer and one more for their order, with one Gram matrix in memory.
            False: one pass for all, with all Gram matrices in memory; errors of earlier layers are not made up for.
        damping, block, dtype: see ``sparsegpt_weight``.
        forward: ``forward(model, batch)`` for batches that are neither tensors nor mappings.
        exclude: names of modules or parameters that stay dense (the output head, as a rule); wildcards are allowed.

    Returns:
        weight name -> bool mask in the weight's shape, True = keep.

    Raises:
        ValueError: as ``calibrate`` and ``sparsegpt_weight``; for NaN in a weight.
        RuntimeError: if a layer's H is not positive definite; names the layer and the damping.

    Notes:
        After an error every weight holds the bits it had; a copy of those pruned so far is kept for that.
        ``sequential`` orders layers by their first call.

    Source:
        Frantar and Alistarh, "SparseGPT: Massive Language Models Can Be Accurately Pruned in One-Shot",
        arXiv 2301.00774.

    Example:
        >>> import torch
        >>> from evoprune_kernels.selection import sparsegpt_
        >>> model = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> masks = sparsegpt_(model, [torch.randn(64, 8)], pattern="2:4", exclude=["2"])
        >>> list(masks), int((model[0].weight != 0).sum())
        (['0.weight'], 32)
    """
    batches = list(batches)
    layers = find_layers(model, exclude)
    targets = choose_targets(layers, kept, pattern)
    chosen = [layers[name] for name in targets]
    for layer in chosen:
        check_weight(layer)

    def prune(layer: Layer, sums: InputSums) -> tuple[Tensor, Tensor]:
        assert sums.gram is not None
        return sparsegpt_weight(
            layer.matrix(),
            sums.gram,
            sums.samples,
            **_as_keywords(targets[layer.name]),
            damping=damping,
            block=block,
            dtype=dtype,
            name=layer.name,
        )

    def sums_of(some: Iterable[Layer]) -> dict[str, InputSums]:
        return sum_inputs(model, batches, some, gram=True, dtype=dtype, forward=forward)

    masks: dict[str, Tensor] = {}
    before: list[tuple[Layer, Tensor]] = []
    try:
        sums = {} if sequential else sums_of(chosen)
        order = call_order(model, batches, chosen, forward) if sequential else chosen
        for layer in order:
            new, mask = prune(layer, (sums or sums_of([layer])).pop(layer.name))
            before.append((layer, layer.weight.detach().clone()))
            _write(layer, layer.shaped(new))
            masks[layer.name] = layer.shaped(mask).contiguous()
    except BaseException:
        for layer, weight in before:
            _write(layer, weight)
        raise
    return {name: masks[name] for name in targets}


def _as_keywords(target: Target) -> dict[str, Any]:
    return {"pattern": target} if isinstance(target, NM) else {"kept": target}


@torch.no_grad()
def _write(layer: Layer, weight: Tensor) -> None:
    layer.weight.copy_(weight)
