"""A small character-level GPT: plain ``nn.Linear`` layers, a fused q/k/v projection, a cache of keys and values.

    x = sum of token[i, character t - i] for i < 4, + position[t]
    x = x + proj(attention(qkv(norm1(x))));  x = x + down(gelu(up(norm2(x))))        per block
    logits = head(norm(x))

Each place starts from its last four characters, not one: a small model then learns words in minutes, not hours.
Nothing here knows about pruning: it is an ordinary model that the package is applied to.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F


@dataclass(frozen=True)
class GPTConfig:
    """Sizes: ``vocabulary`` symbols, ``context`` characters, ``layers`` blocks of ``width`` with ``heads`` heads;
    every place starts from its ``recent`` last characters."""

    vocabulary: int
    context: int = 128
    layers: int = 4
    width: int = 384
    heads: int = 6
    recent: int = 4


class Cache:
    """Keys and values of the characters seen so far: two tensors [layers, B, heads, context, width / heads]."""

    def __init__(self, config: GPTConfig, batch: int) -> None:
        shape = (config.layers, batch, config.heads, config.context, config.width // config.heads)
        self.keys = torch.zeros(shape)
        self.values = torch.zeros(shape)
        self.length = 0
        self.recent: Tensor | None = None

    def append(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Store ``key`` and ``value`` [B, heads, T, d] behind the ``length`` old ones; returns all of the layer's."""
        end = self.length + key.shape[2]
        self.keys[layer, :, :, self.length : end] = key
        self.values[layer, :, :, self.length : end] = value
        return self.keys[layer, :, :, :end], self.values[layer, :, :, :end]


class Block(nn.Module):
    """One transformer block: attention, then a two-layer perceptron, each behind a norm and with a residual."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        width = config.width
        self.heads = config.heads
        self.norm1 = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width)
        self.up = nn.Linear(width, 4 * width)
        self.down = nn.Linear(4 * width, width)

    def forward(self, x: Tensor, layer: int, cache: Cache | None) -> Tensor:
        x = x + self.attention(self.norm1(x), layer, cache)
        return x + self.down(F.gelu(self.up(self.norm2(x))))

    def attention(self, x: Tensor, layer: int, cache: Cache | None) -> Tensor:
        batch, length, width = x.shape
        qkv = self.qkv(x).view(batch, length, 3, self.heads, width // self.heads)
        query, key, value = qkv.permute(2, 0, 3, 1, 4)
        if cache is not None:
            key, value = cache.append(layer, key, value)
        if (
            length == 1
        ):  # one new character sees everything; for it, torch's fused attention is the slower way
            scores = query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5
            y = scores.softmax(-1) @ value
        else:
            y = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        return self.proj(y.transpose(1, 2).reshape(batch, length, width))


class CharGPT(nn.Module):
    """Characters [B, T] (int64) -> logits [B, T, vocabulary]."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.config = config
        self.token = nn.Embedding(config.recent * config.vocabulary, config.width)
        self.register_buffer(
            "offsets", torch.arange(config.recent) * config.vocabulary, persistent=False
        )
        self.position = nn.Embedding(config.context, config.width)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.norm = nn.LayerNorm(config.width)
        self.head = nn.Linear(config.width, config.vocabulary, bias=False)
        for name, parameter in self.named_parameters():
            if parameter.dim() == 2:
                into_residual = name.endswith(("proj.weight", "down.weight"))
                depth = (2 * config.layers) ** -0.5 if into_residual else 1.0
                nn.init.normal_(parameter, std=0.02 * depth)

    def forward(self, tokens: Tensor, cache: Cache | None = None) -> Tensor:
        start = 0 if cache is None else cache.length
        end = start + tokens.shape[1]
        if end > self.config.context:
            raise ValueError(f"the context holds {self.config.context} characters, got {end}")
        if start > 0 and tokens.shape[1] > 1:
            raise ValueError(
                f"with a filled cache ({start}) one character at a time, got {tokens.shape[1]}"
            )
        x = self.embed(tokens, cache) + self.position.weight[start:end]
        for layer, block in enumerate(self.blocks):
            x = block(x, layer, cache)
        if cache is not None:
            cache.length = end
        return self.head(self.norm(x))

    def embed(self, tokens: Tensor, cache: Cache | None) -> Tensor:
        """[B, T] -> [B, T, width]: row ``i * vocabulary + character`` of the table for the one ``i`` back."""
        depth = self.config.recent
        before = cache.recent if cache is not None else None
        if before is None:
            before = tokens.new_zeros(tokens.shape[0], depth - 1)  # symbol 0, the line end
        seen = torch.cat((before, tokens), 1)
        if cache is not None:
            cache.recent = seen[:, seen.shape[1] - depth + 1 :]
        windows = seen.unfold(1, depth, 1).flip(-1)
        return self.token(windows + self.offsets).sum(-2)

    def loss(self, tokens: Tensor) -> Tensor:
        """Mean cross-entropy in nats of every next character of ``tokens`` [B, T + 1]."""
        logits = self(tokens[:, :-1])
        return F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())


@torch.inference_mode()
def generate(
    model: CharGPT, prompt: Tensor, count: int, *, temperature: float = 0.0, seed: int = 0
) -> Tensor:
    """``count`` characters after each row of ``prompt`` [B, T]; temperature 0 takes the likeliest one."""
    generator = torch.Generator().manual_seed(seed)
    cache = Cache(model.config, prompt.shape[0])
    tokens, new = prompt, []
    for _ in range(count):
        logits = model(tokens, cache)[:, -1]
        if temperature == 0.0:
            tokens = logits.argmax(-1, keepdim=True)
        else:
            tokens = (logits / temperature).softmax(-1).multinomial(1, generator=generator)
        new.append(tokens)
    return torch.cat(new, 1)
