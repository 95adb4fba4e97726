"""Stochastic rounding to bf16 in torch, bit for bit that of ``csrc/core/philox.h``, which draws the scheme.

Random bits depend on nothing but the seed, the number of the step, the index of the tensor in the call and that of the
element in the tensor, so results do not depend on the device or on how the work is shared out.
"""

from __future__ import annotations

import torch
from torch import Tensor

_LOW = 0xFFFFFFFF
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_KEYS = (0x9E3779B9, 0xBB67AE85)
#: what is rounded -> (block of random bits, word of the element, half of the word)
SLOTS = {
    "param": (0, 0, 0), "first": (0, 0, 1), "second": (0, 1, 0), "largest": (0, 1, 1),
    "importance": (1, 0, 0),
}  # fmt: skip


def philox(counter: tuple[Tensor, Tensor, Tensor, Tensor], seed: int) -> tuple[Tensor, ...]:
    """Philox 4x32-10: four words of counter -> four random words, int64 tensors that hold 32 bits.

    Source:
        Salmon et al., "Parallel Random Numbers: As Easy as 1, 2, 3", SC 2011.
    """
    c0, c1, c2, c3 = counter
    key0, key1 = seed & _LOW, seed >> 32 & _LOW
    for _ in range(10):
        # modulo 2^64; the sign is cut off below
        p0, p1 = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        c0, c1 = (p1 >> 32 & _LOW) ^ c1 ^ key0, p1 & _LOW
        c2, c3 = (p0 >> 32 & _LOW) ^ c3 ^ key1, p0 & _LOW
        key0, key1 = key0 + _KEYS[0] & _LOW, key1 + _KEYS[1] & _LOW
    return c0, c1, c2, c3


def step_random(
    like: Tensor, *, seed: int, tensor: int, step: int, slot: str = "param"
) -> dict[str, Tensor]:
    """16 random bits for each element of ``like`` and each of ``SLOTS`` in the block of ``slot``.

    int32 tensors of the shape of ``like``.
    """
    block = SLOTS[slot][0]
    pairs = torch.arange((like.numel() + 1) // 2, device=like.device)
    fixed = torch.zeros_like(pairs)
    high = pairs >> 32 | block << 31  # no tensor has 2^64 elements: the highest bit is free
    words = philox((pairs & _LOW, high, fixed + tensor, fixed + (step & _LOW)), seed)
    # [pairs, 2 elements, 2 words] -> [elements, 2 words]
    each = torch.stack(words, dim=1).view(-1, 2)[: like.numel()]
    return {
        name: (each[:, word] >> 16 * half & 0xFFFF).to(torch.int32).view(like.shape)
        for name, (where, word, half) in SLOTS.items()
        if where == block
    }


def round_randomly_to_bf16(x: Tensor, random: Tensor) -> Tensor:
    """``x`` in bf16: up with the probability of what is cut off, so that the mean is ``x``.

    Values of bf16 (zeros and infinities among them) stay, NaN stays NaN.

    Args:
        x: any floating dtype.
        random: int32 below 2^16, of the shape of ``x``.
    """
    x = x.float()
    bits = (x.contiguous().view(torch.int32) + random) & ~0xFFFF
    return torch.where(x.isnan(), x, bits.view(torch.float32)).bfloat16()
