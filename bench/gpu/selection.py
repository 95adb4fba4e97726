"""Selections on the GPU: scores -> mask, against the reference and what torch has for the same."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from bench.gpu.compare import OURS, REFERENCE, Call, Contender, Problem, exact, forced
from evoprune_kernels.ops._op import OPS, Op

SHAPES = ((768, 3072), (4096, 4096), (11008, 4096))
DTYPES = (torch.float32, torch.bfloat16)


def problems(device: str, quick: bool) -> list[Problem]:
    """Every selection, for every shape and dtype."""
    shapes = ((64, 128),) if quick else SHAPES
    dtypes = DTYPES[1:] if quick else DTYPES
    return [
        problem(device, shape, dtype, op, arguments)
        for shape in shapes
        for dtype in dtypes
        for op, arguments in (
            ("select_nm", (2, 4)),
            ("select_nm", (4, 8)),
            ("select_nm_transposable", ()),
            ("select_topk", (0.5,)),
            ("select_topk", (0.1,)),
            ("select_block", (32, 32, 0.25)),
        )
    ]


def problem(
    device: str, shape: tuple[int, int], dtype: torch.dtype, name: str, arguments: tuple[Any, ...]
) -> Problem:
    """One selection: ours and the reference give the same mask, torch's a mask of scores as high."""
    op = OPS[name]
    same = exact(lambda scores: op.reference(scores, *arguments))
    contenders = {
        REFERENCE: Contender(_bound(op, arguments, REFERENCE), same),
        OURS: Contender(_bound(op, arguments, forced(device)), same),
    }
    if name == "select_nm":
        n, m = arguments
        contenders["torch.topk of groups"] = Contender(_topk(n, m), as_high(op, arguments, m))
    elif name == "select_topk":
        count = shape[0] * shape[1]
        kept = round(arguments[0] * count)
        contenders["torch.topk"] = Contender(_topk(kept, count), as_high(op, arguments, count))
    elif name == "select_nm_transposable" and dtype != torch.float32:
        contenders["torch 2:4 tiles (greedy, packs too)"] = Contender(_tiles, wrong_tiles)
    numbers = " ".join(map(str, arguments))
    size = f"{shape[0]}x{shape[1]} {str(dtype)[6:]} {numbers}".rstrip()
    moved = shape[0] * shape[1] * (dtype.itemsize + 1)

    def make(generator: torch.Generator) -> tuple[Tensor]:
        return (torch.randn(shape, generator=generator).to(dtype),)

    return Problem(name, size, make, contenders, moved)


def _bound(op: Op, arguments: tuple[Any, ...], impl: str | None) -> Callable[[Tensor], Call]:
    return lambda scores: lambda: op(scores, *arguments, impl=impl)


def _topk(kept: int, group: int) -> Callable[[Tensor], Call]:
    """``torch.topk`` of every ``group`` consecutive scores, and its indices scattered; ties fall anywhere."""

    def bind(scores: Tensor) -> Call:
        def call() -> Tensor:
            groups = scores.view(-1, group)
            chosen = groups.topk(kept, dim=1, sorted=False).indices
            mask = torch.zeros_like(groups, dtype=torch.bool).scatter_(1, chosen, True)
            return mask.view_as(scores)

        return call

    return bind


def as_high(op: Op, arguments: tuple[Any, ...], group: int) -> Callable[..., str | None]:
    """A check for masks that may break ties otherwise: the kept scores of every group are those of the reference."""

    def kept(mask: Tensor, scores: Tensor) -> Tensor:
        return torch.where(mask, scores, -torch.inf).view(-1, group).sort(dim=1).values

    def wrong(mask: Tensor, scores: Tensor) -> str | None:
        expected = kept(op.reference(scores, *arguments), scores)
        different = int((kept(mask, scores) != expected).any(1).sum())
        return f"{different} groups keep other scores" if different else None

    return wrong


def _tiles(scores: Tensor) -> Call:
    """torch's own search: the highest first, so the mask is not always the best; it packs both ways at once."""
    kind = torch.sparse.SparseSemiStructuredTensorCUTLASS
    return lambda: kind.prune_dense_static_sort(scores)


def wrong_tiles(pruned: Any, scores: Tensor) -> str | None:
    """Whether a pruned tensor breaks 2:4 along rows or columns, or holds other values than ``scores``."""
    dense = pruned.to_dense()
    kept = dense != 0
    if not bool((dense[kept] == scores[kept]).all()):
        return "keeps values that the scores do not have"
    rows, columns = kept.shape
    tiles = kept.view(rows // 4, 4, columns // 4, 4)
    most = max(int(tiles.sum(1).max()), int(tiles.sum(3).max()))
    if most > 2 or not bool(kept.any()):
        return f"keeps {most} of four, expected 2"
    return None
