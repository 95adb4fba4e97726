"""``select_nm`` in plain torch: the truth, the fallback and the benchmark baseline."""

from __future__ import annotations

import torch
from torch import Tensor


def select_nm_reference(scores: Tensor, n: int, m: int) -> Tensor:
    """Keep the n highest scores of every m consecutive entries of a row; see ``select_nm``."""
    rows, columns = scores.shape
    groups = -(-columns // m)
    pad = groups * m - columns
    ranked = scores.float().nan_to_num(nan=-torch.inf, posinf=torch.inf, neginf=-torch.inf)
    # an entry ranks by (is a number, value, lowest index): two stable sorts give just that
    padded = torch.nn.functional.pad(ranked, (0, pad), value=-torch.inf).view(rows, groups, m)
    number = torch.nn.functional.pad(~scores.isnan(), (0, pad), value=False).view(rows, groups, m)
    by_value = padded.sort(dim=-1, descending=True, stable=True).indices
    by_number = number.gather(-1, by_value).int().sort(dim=-1, descending=True, stable=True)
    kept = by_value.gather(-1, by_number.indices)[..., :n]
    mask = torch.zeros_like(number).scatter_(-1, kept, True)
    return mask.view(rows, columns + pad)[:, :columns].contiguous()
