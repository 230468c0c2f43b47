"""A cache for all layers of a model, and the sequences that have its pages."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from .. import caches


@dataclass(frozen=True)
class Step:
    """Metadata of one step, for all layers: i32 tensors as the operators take them."""

    query_start: torch.Tensor  # [B + 1]
    kv_len: torch.Tensor  # [B]
    page_table: torch.Tensor  # [B, pages_per_seq]


class PagedKVCache:
    """Keys and values of many sequences, in pages that sequences take as they grow and give back.

        cache = PagedKVCache(num_layers, num_pages, page_size, num_kv_heads, head_dim)
        seq = cache.add()
        step = cache.extend([seq], [prompt_tokens])             # once a step: room for the new tokens
        out = cache.attend(layer, q, k_new, v_new, step)        # for every layer

    Args:
      num_layers, num_pages: pages of each layer; page p of a sequence is the same in all layers.
      page_size: P in tokens; a multiple of 16 for layout "tiles".
      num_kv_heads, head_dim: K and D.
      dtype: torch.float32, bfloat16, float16, float8_e4m3fn or float8_e5m2.
      layout: "tiles", which is faster, or "rows".

    Not safe from several threads at once.
    """

    def __init__(
        self,
        num_layers: int,
        num_pages: int,
        page_size: int,
        num_kv_heads: int,
        head_dim: int,
        dtype: torch.dtype = torch.bfloat16,
        layout: str = "tiles",
    ) -> None:
        self.page_size, self.layout = page_size, layout
        self._caches = [
            _tensors(num_pages, page_size, num_kv_heads, head_dim, dtype, layout) for _ in range(num_layers)
        ]
        self._free = list(reversed(range(num_pages)))
        self._pages: dict[int, list[int]] = {}
        self._lengths: dict[int, int] = {}
        self._next_seq = 0

    @property
    def free_pages(self) -> int:
        """Pages that no sequence has."""
        return len(self._free)

    def layer(self, layer: int) -> tuple[torch.Tensor, torch.Tensor]:
        """K and V of a layer, as `torch.ops.pagemill.attention` takes them."""
        return self._caches[layer]

    def length(self, seq: int) -> int:
        """Tokens of a sequence so far. KeyError if there is no such sequence."""
        return self._lengths[seq]

    def add(self) -> int:
        """A new sequence, of no tokens."""
        seq = self._next_seq
        self._next_seq += 1
        self._pages[seq], self._lengths[seq] = [], 0
        return seq

    def remove(self, seq: int) -> None:
        """Gives the sequence's pages back. KeyError if there is no such sequence."""
        self._free += reversed(self._pages.pop(seq))
        del self._lengths[seq]

    def extend(self, seqs: list[int], tokens: list[int]) -> Step:
        """Makes room for tokens[i] new tokens of sequence seqs[i].

        Returns the metadata of the step whose q, k_new and v_new hold these tokens end to end. Raises ValueError for
        lists that do not fit, KeyError for an unknown sequence, MemoryError where there are too few free pages; nothing
        changed then.
        """
        if len(seqs) != len(tokens) or len(set(seqs)) != len(seqs) or min(tokens, default=0) < 0:
            raise ValueError(f"seqs = {seqs}, tokens = {tokens}: expected distinct sequences and a count of each")
        lengths = [self._lengths[seq] + count for seq, count in zip(seqs, tokens, strict=True)]
        wanted = [
            math.ceil(length / self.page_size) - len(self._pages[seq])
            for seq, length in zip(seqs, lengths, strict=True)
        ]
        if sum(wanted) > len(self._free):
            raise MemoryError(f"tokens = {tokens}: expected no more than {len(self._free)} free pages hold")
        for seq, length, count in zip(seqs, lengths, wanted, strict=True):
            self._pages[seq] += [self._free.pop() for _ in range(count)]
            self._lengths[seq] = length
        table = torch.zeros(len(seqs), max((len(self._pages[seq]) for seq in seqs), default=0), dtype=torch.int32)
        for row, seq in zip(table, seqs, strict=True):
            row[: len(self._pages[seq])] = torch.tensor(self._pages[seq], dtype=torch.int32)
        starts = torch.tensor([0, *tokens]).cumsum(0).to(torch.int32)
        return Step(starts, torch.tensor(lengths, dtype=torch.int32), table)

    def attend(
        self, layer: int, q: torch.Tensor, k_new: torch.Tensor, v_new: torch.Tensor, step: Step, **options: Any
    ) -> torch.Tensor:
        """Stores k_new and v_new [T, K, D] of the step and attends: [T, H, D]. Options as of the operator."""
        out, _ = torch.ops.pagemill.attention(
            q,
            k_new,
            v_new,
            *self._caches[layer],
            step.query_start,
            step.kv_len,
            step.page_table,
            layout=self.layout,
            **options,
        )
        return out


def _tensors(
    num_pages: int, page_size: int, num_kv_heads: int, head_dim: int, dtype: torch.dtype, layout: str
) -> tuple[torch.Tensor, torch.Tensor]:
    """The arrays of `pagemill.new_cache` as tensors, which share no dtype with NumPy but of bits."""
    cache = caches.new_cache(num_pages, page_size, num_kv_heads, head_dim, dtype, layout)
    bits = {1: np.uint8, 2: np.uint16, 4: np.uint32}[dtype.itemsize]
    return torch.from_numpy(cache.k.view(bits)).view(dtype), torch.from_numpy(cache.v.view(bits)).view(dtype)
