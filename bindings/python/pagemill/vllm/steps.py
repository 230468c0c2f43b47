"""What the layers of a vLLM step share: metadata, and the plans made from them."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch

from .. import caches, planning
from .._core import Cache, Plan


def cache_of_blocks(blocks: torch.Tensor, dtype: str | None = None) -> Cache:
    """vLLM's cache [blocks, K, P, 2 D] of a layer as pages of layout `tiles`, over the same memory.

    dtype names the elements of fp8, which are uint8 to vLLM.
    """
    pages, heads, size, both = blocks.shape
    dim, lanes = both // 2, 4 // blocks.element_size()
    planes = blocks.view(pages, heads, 2, size * dim)
    k = planes[:, :, 0].view(pages, heads, size // caches.GROUP, dim // lanes, caches.GROUP, lanes)
    v = planes[:, :, 1].view(pages, heads, size // lanes, dim, lanes)
    return Cache(k, v, "tiles", dtype)


class Options(NamedTuple):
    """Of a plan, what layers of one step may differ in."""

    num_heads: int
    num_kv_heads: int
    head_dim: int
    dtype: str  # of q, k and v
    out_dtype: str
    sliding_window: int | None  # keys that a query sees, its own included
    write_cache: bool


@dataclass
class Step:
    """The metadata of a step for one of vLLM's KV-cache groups; its plans are made when first asked for.

    Not safe from several threads at once: vLLM runs the layers of a step one after the other.
    """

    num_actual_tokens: int  # padding included
    query_start_loc: torch.Tensor  # i32 [B + 1]
    seq_lens: torch.Tensor  # i32 [B], new tokens included
    block_table: torch.Tensor  # i32 [B, blocks]
    slot_mapping: torch.Tensor  # i64 [T] of new keys, block * block size + slot; < 0: not to be stored
    causal: bool | torch.Tensor  # for all, or bool [B]
    built_in: Any = None  # the same for layers that the built-in backend serves
    plans: dict[Any, Plan] = field(default_factory=dict)

    def attention(self, options: Options, cache: Cache | None) -> Plan:
        """The plan of layers with these options. cache: of one such layer; None: each sequence sees its new keys."""
        geometry = cache and (cache.dtype, cache.page_size, cache.num_pages)
        return self._made_once((options, geometry), lambda: self._plan(options, cache))

    def _plan(self, options: Options, cache: Cache | None) -> Plan:
        window = None if options.sliding_window is None else options.sliding_window - 1
        return planning.plan(
            self.query_start_loc,
            None if cache is None else self.seq_lens,
            None if cache is None else self.block_table,
            cache,
            num_heads=options.num_heads,
            num_kv_heads=options.num_kv_heads,
            head_dim=options.head_dim,
            dtype=options.dtype,
            out_dtype=options.out_dtype,
            causal=self.causal if isinstance(self.causal, bool) else self.causal.numpy(),
            window_left=window,
            window_right=None if self.causal is True else window,
            write_cache=options.write_cache,
            threads=torch.get_num_threads(),
            openmp=True,
        )

    def stores_in_order(self, page_size: int) -> bool:
        """Whether new keys go where block table and lengths put them, as a plan that writes assumes."""
        return self._made_once(("in order", page_size), lambda: self._follows_block_table(page_size))

    def _follows_block_table(self, page_size: int) -> bool:
        metadata = (x.numpy() for x in (self.query_start_loc, self.seq_lens, self.block_table))
        slots = planning.new_slots(*metadata, page_size)
        return slots is not None and np.array_equal(slots, self.slot_mapping[: len(slots)].numpy())

    def store(self, k: torch.Tensor, v: torch.Tensor, cache: Cache, k_scale: float, v_scale: float) -> None:
        """Stores k and v [T, K, D] in the slots of slot_mapping, wherever these are."""
        key = ("store", cache.page_size, cache.num_kv_heads, cache.head_dim, cache.dtype, k.dtype)
        for tokens, plan in self._made_once(key, lambda: _store_plans(self.slot_mapping.numpy(), k, cache)):
            plan.store(k[tokens], v[tokens], cache, k_scale=k_scale, v_scale=v_scale)

    def _made_once(self, key: Any, make: Callable[[], Any]) -> Any:
        if key not in self.plans:
            self.plans[key] = make()
        return self.plans[key]


def _store_plans(slots: np.ndarray, k: torch.Tensor, cache: Cache) -> list[tuple[torch.Tensor, Plan]]:
    """Plans that store token t in slots[t] where that is not negative, and the tokens of each.

    A run of tokens that lie one after the other in a page is a sequence of a plan. A plan takes one run of a page.
    """
    tokens = np.flatnonzero(slots >= 0)
    pages, offsets = np.divmod(slots[tokens], cache.page_size)
    begins = np.flatnonzero((np.diff(slots[tokens], prepend=-2) != 1) | (offsets == 0))
    lengths = np.diff(begins, append=len(tokens))
    seen: dict[int, int] = {}
    of_plan: list[list[int]] = []
    for run, page in enumerate(pages[begins].tolist()):
        nth = seen[page] = seen.get(page, -1) + 1
        if nth == len(of_plan):
            of_plan.append([])
        of_plan[nth].append(run)
    plans = []
    for runs in of_plan:
        first, count = begins[runs], lengths[runs]
        plan = planning.plan(
            np.concatenate([[0], np.cumsum(count)]),
            offsets[first] + count,
            pages[first][:, None],
            cache,
            num_heads=cache.num_kv_heads,
            dtype=k.dtype,
            threads=torch.get_num_threads(),
            openmp=True,
        )
        taken = np.concatenate([tokens[begin : begin + n] for begin, n in zip(first, count, strict=True)])
        plans.append((torch.from_numpy(taken), plan))
    return plans
