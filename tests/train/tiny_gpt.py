"""A GPT of 30,000 parameters: small enough to train for some steps in a test, real enough to go wrong."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 (its usual name)
from torch import nn


class Block(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, time, width = x.shape
        q, k, v = self.qkv(self.norm1(x)).view(batch, time, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(attended.transpose(1, 2).reshape(batch, time, width))
        return x + self.down(F.gelu(self.up(self.norm2(x))))


class TinyGPT(nn.Module):
    """`forward(input_ids, labels)` gives the loss and logits; labels as in Hugging Face: the model shifts."""

    def __init__(self, vocab: int = 300, width: int = 32, layers: int = 1, heads: int = 2, longest: int = 128) -> None:
        super().__init__()
        self.config = SimpleNamespace(to_dict=dict, to_json_string=lambda: "{}")
        self.tokens, self.places = nn.Embedding(vocab, width), nn.Embedding(longest, width)
        self.blocks = nn.Sequential(*(Block(width, heads) for _ in range(layers)))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, vocab, bias=False)

    def forward(self, input_ids: torch.Tensor, labels: torch.Tensor | None = None, **_: Any) -> dict[str, torch.Tensor]:
        places = torch.arange(input_ids.shape[1], device=input_ids.device)
        logits = self.head(self.norm(self.blocks(self.tokens(input_ids) + self.places(places))))
        out = {"logits": logits}
        if labels is not None:
            flat = logits[:, :-1].reshape(-1, logits.shape[-1])
            out = {"loss": F.cross_entropy(flat, labels[:, 1:].reshape(-1), ignore_index=-100), **out}
        return out


def seeded(seed: int = 0) -> TinyGPT:
    torch.manual_seed(seed)
    return TinyGPT()
