"""Row filter ("fine" pruning): a row that is almost empty goes entirely."""

from __future__ import annotations

import torch
from torch import Tensor

from evoprune_kernels._check import check, check_dtype


def drop_sparse_rows(mask: Tensor, threshold: float) -> Tensor:
    """Prune every row (output feature, filter) of which more than the share ``threshold`` is pruned already.

    ``mask'[row] = mask[row] and zeros(row) / entries(row) <= threshold``

    Args:
        mask: bool [rows, ...], True = keep.
        threshold: sparsity of a row, 0-1, that it may have and stay; 1 changes nothing.

    Returns:
        bool mask of the same shape; a new tensor.

    Raises:
        ValueError: if ``threshold`` is outside 0-1 or NaN, or the mask has no dimension.
        TypeError: if the mask is not bool.

    Notes:
        Exact: a row at the threshold stays. Rows that are empty already, and tensors without entries, do not change.
        The authors' schedule starts at 1 and lowers the threshold by 0.0005 a round.

    Source:
        ``filter_threshold`` of the authors' 2023 library ("smart pruning"); "row fusing" of arXiv 2502.17071.

    Example:
        >>> import torch
        >>> mask = torch.tensor([[1, 0, 0, 0], [1, 1, 0, 0]]).bool()
        >>> drop_sparse_rows(mask, 0.5).int().tolist()
        [[0, 0, 0, 0], [1, 1, 0, 0]]
    """
    check_dtype(mask, (torch.bool,), "mask")
    check(0 <= threshold <= 1, f"expected 0 <= threshold <= 1, got {threshold}")
    check(mask.dim() > 0, f"expected a mask with rows, got shape {tuple(mask.shape)}")
    if mask.numel() == 0:
        return mask.clone()
    rows = mask.reshape(mask.shape[0], -1)
    zeros = (~rows).sum(1).double()
    stays = zeros / rows.shape[1] <= threshold
    return (rows & stays.unsqueeze(1)).view(mask.shape)
