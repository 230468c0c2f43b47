"""Ragged paged attention for PyTorch on CPUs: custom operators, a paged cache, and attention for HuggingFace models.

    torch.ops.pagemill.attention   stores the step's new keys and values and attends
    torch.ops.pagemill.store       stores alone
    torch.ops.pagemill.merge       two results over disjoint keys into one, by lse
    PagedKVCache                   pages of many sequences, for all layers
    register_transformers()        attn_implementation="pagemill"

The operators have fake kernels (torch.compile traces through them), work in inference mode, mutate the caches in place
and run on the OpenMP threads of ATen, as many as torch.get_num_threads(). They have no gradient.
"""

import math
import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from . import caches, partial, planning
from ._core import Cache, Plan

_FP8 = (torch.float8_e4m3fn, torch.float8_e5m2)


class _Plans:
    """The last plans: the layers of a step bring the same metadata, and are planned for once."""

    CAPACITY = 16

    def __init__(self) -> None:
        self._plans: OrderedDict[tuple[Any, ...], Plan] = OrderedDict()
        self._lock = threading.Lock()
        self.made = 0

    def get(
        self,
        query_start: torch.Tensor,
        kv_len: torch.Tensor,
        page_table: torch.Tensor,
        cache: Cache,
        **options: Any,
    ) -> Plan:
        metadata = [x.numpy() for x in (query_start, kv_len, page_table)]
        geometry = (cache.layout, cache.dtype, cache.num_pages, cache.page_size, cache.num_kv_heads, cache.head_dim)
        key = (geometry, tuple(options.items()), page_table.shape, *(x.tobytes() for x in metadata))
        with self._lock:
            plan = self._plans.get(key)
            if plan is None:
                plan = planning.plan(*metadata, cache, openmp=True, **options)
                self.made += 1
                self._plans[key] = plan
                if len(self._plans) > self.CAPACITY:
                    self._plans.popitem(last=False)
            self._plans.move_to_end(key)
        return plan


def _cache(k: torch.Tensor, v: torch.Tensor, layout: str) -> Cache:
    if k.dtype not in _FP8 or v.dtype != k.dtype:
        return Cache(k, v, layout)
    return Cache(k.view(torch.uint8), v.view(torch.uint8), layout, planning.dtype_name(k.dtype))  # which DLPack has


_plans = _Plans()
_library = torch.library.Library("pagemill", "DEF")


def _operator(schema: str, fake: Callable[..., Any]) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Makes a function the CPU's kernel of the operator with this schema."""

    def define(function: Callable[..., Any]) -> Callable[..., Any]:
        name = _library.define(schema)
        operator = getattr(torch.ops.pagemill, name).default

        def without_gradient(*arguments: Any, **options: Any) -> Any:
            if torch.is_grad_enabled() and any(isinstance(x, torch.Tensor) and x.requires_grad for x in arguments):
                raise NotImplementedError(
                    f"torch.ops.pagemill.{name} has no gradient: expected torch.no_grad() or tensors that need none"
                )
            with torch._C._AutoDispatchBelowAutograd():
                return operator(*arguments, **options)

        _library.impl(name, function, "CPU")
        _library.impl(name, without_gradient, "Autograd")
        torch.library.register_fake(f"pagemill::{name}", fake, lib=_library)
        return function

    return define


def _fake_attention(q: torch.Tensor, *_: Any, **__: Any) -> tuple[torch.Tensor, torch.Tensor]:
    return q.new_empty(q.shape), q.new_empty(q.shape[:2], dtype=torch.float32)


def _fake_store(*_: Any, **__: Any) -> None:
    return None


def _fake_merge(a: torch.Tensor, lse_a: torch.Tensor, *_: Any) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.empty_like(a), torch.empty_like(lse_a)


@_operator(
    "attention(Tensor q, Tensor? k_new, Tensor? v_new, Tensor(a!) k_cache, Tensor(b!) v_cache, Tensor query_start, "
    "Tensor kv_len, Tensor page_table, Tensor? sinks=None, Tensor? alibi_slopes=None, *, str layout='rows', "
    "bool causal=True, int window_left=-1, int window_right=-1, bool write_cache=True, float? scale=None, "
    "float soft_cap=0.0, float q_scale=1.0, float k_scale=1.0, float v_scale=1.0) -> (Tensor, Tensor)",
    _fake_attention,
)
def attention(
    q: torch.Tensor,
    k_new: torch.Tensor | None,
    v_new: torch.Tensor | None,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    query_start: torch.Tensor,
    kv_len: torch.Tensor,
    page_table: torch.Tensor,
    sinks: torch.Tensor | None = None,
    alibi_slopes: torch.Tensor | None = None,
    *,
    layout: str = "rows",
    causal: bool = True,
    window_left: int = -1,
    window_right: int = -1,
    write_cache: bool = True,
    scale: float | None = None,
    soft_cap: float = 0.0,
    q_scale: float = 1.0,
    k_scale: float = 1.0,
    v_scale: float = 1.0,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Stores the step's new keys and values in the cache, and attends to it.

    Args:
      q: [T, H, D]; k_new, v_new: [T, K, D] of the same dtype, None if not write_cache.
      k_cache, v_cache: as `pagemill.Cache`, whose layout is `layout`; written in place.
      query_start: i32 [B + 1]; kv_len: i32 [B]; page_table: i32 [B, pages_per_seq]: as `pagemill.plan`.
      causal, window_left, window_right, write_cache: as `pagemill.plan`; -1: no bound.
      scale, soft_cap, q_scale, k_scale, v_scale, sinks, alibi_slopes: as `pagemill.Plan.run`.

    Returns:
      (out [T, H, D] of q's dtype, lse f32 [T, H]), 0 in rows past the last query.

    Raises:
      ValueError, TypeError, NotImplementedError: as `pagemill.plan` and `pagemill.Plan.run`.
    """
    cache = _cache(k_cache, v_cache, layout)
    plan = _plans.get(
        query_start,
        kv_len,
        page_table,
        cache,
        num_heads=q.shape[1],
        dtype=planning.dtype_name(q.dtype),
        causal=causal,
        window_left=window_left,
        window_right=window_right,
        write_cache=write_cache,
        threads=torch.get_num_threads(),
    )
    out, lse = q.new_zeros(q.shape), q.new_zeros(q.shape[:2], dtype=torch.float32)
    plan.run(
        q,
        k_new,
        v_new,
        cache,
        out=out,
        lse=lse,
        scale=scale,
        soft_cap=soft_cap,
        q_scale=q_scale,
        k_scale=k_scale,
        v_scale=v_scale,
        sinks=sinks,
        alibi_slopes=alibi_slopes,
    )
    return out, lse


@_operator(
    "store(Tensor k_new, Tensor v_new, Tensor(a!) k_cache, Tensor(b!) v_cache, Tensor query_start, Tensor kv_len, "
    "Tensor page_table, *, str layout='rows', float k_scale=1.0, float v_scale=1.0) -> ()",
    _fake_store,
)
def store(
    k_new: torch.Tensor,
    v_new: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    query_start: torch.Tensor,
    kv_len: torch.Tensor,
    page_table: torch.Tensor,
    *,
    layout: str = "rows",
    k_scale: float = 1.0,
    v_scale: float = 1.0,
) -> None:
    """The cache update of `attention` alone; arguments and errors as there."""
    cache = _cache(k_cache, v_cache, layout)
    plan = _plans.get(
        query_start,
        kv_len,
        page_table,
        cache,
        num_heads=k_new.shape[1],
        dtype=planning.dtype_name(k_new.dtype),
        threads=torch.get_num_threads(),
    )
    plan.store(k_new, v_new, cache, k_scale=k_scale, v_scale=v_scale)


@_operator("merge(Tensor a, Tensor lse_a, Tensor b, Tensor lse_b) -> (Tensor, Tensor)", _fake_merge)
def merge(
    a: torch.Tensor, lse_a: torch.Tensor, b: torch.Tensor, lse_b: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """As `pagemill.merge`: a, b [..., D]; lse_a, lse_b f32 [...]; all contiguous."""
    return partial.merge(a, lse_a, b, lse_b, out=torch.empty_like(a), out_lse=torch.empty_like(lse_a))


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
        """Tokens of a sequence so far."""
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
        lists that do not fit, MemoryError where there are too few free pages; nothing changed then.
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


def _slots(key: torch.Tensor, value: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """[B, K, S, D] as token slots [slots, 1, K, D] over the same memory, and the slots [B, S] of the tokens."""
    if key.stride() != value.stride() or key.stride(3) != 1:
        key, value = key.contiguous(), value.contiguous()
    batch, heads, length, dim = key.shape
    of_seq, of_head, of_token, _ = key.stride()
    slot = math.gcd(of_seq, of_token)
    table = (torch.arange(batch)[:, None] * of_seq + torch.arange(length) * of_token) // slot
    count = ((batch - 1) * of_seq + (length - 1) * of_token) // slot + 1
    rows = [x.as_strided((count, 1, heads, dim), (slot, slot, of_head, 1)) for x in (key, value)]
    return rows[0], rows[1], table.to(torch.int32)


def transformers_attention(
    module: torch.nn.Module,
    query: torch.Tensor,  # [B, H, T, D]
    key: torch.Tensor,  # [B, K, S, D], the new tokens included
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,  # [B, S], nonzero where there is a token; None: everywhere
    dropout: float = 0.0,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    is_causal: bool | None = None,
    s_aux: torch.Tensor | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Attention as transformers' models call it, over their own cache, read in place. Returns ([B, T, H, D], None)."""
    if dropout:
        raise NotImplementedError(f"dropout = {dropout}: expected 0, there is no gradient")
    batch, heads, new, dim = query.shape
    length = key.shape[2]
    k_cache, v_cache, slots = _slots(key.detach(), value.detach())
    kept = torch.ones(batch, length, dtype=torch.bool) if attention_mask is None else attention_mask[:, -length:].bool()
    kv_len, q_kept = kept.sum(1), kept[:, length - new :]
    order = kept.int().argsort(dim=1, descending=True, stable=True)  # slots of tokens first, in their order
    table = slots.gather(1, order)
    starts = torch.cat([torch.zeros(1, dtype=torch.int64), q_kept.sum(1).cumsum(0)])
    out, _ = torch.ops.pagemill.attention(
        query.detach().transpose(1, 2)[q_kept],
        None,
        None,
        k_cache,
        v_cache,
        starts.to(torch.int32),
        kv_len.to(torch.int32),
        table,
        causal=getattr(module, "is_causal", True) if is_causal is None else is_causal,
        window_left=-1 if sliding_window is None else sliding_window - 1,
        write_cache=False,
        scale=scaling,
        soft_cap=softcap or 0.0,
        sinks=None if s_aux is None else s_aux.detach().float(),
    )
    result = out.new_zeros(batch, new, heads, dim)
    result[q_kept] = out
    return result, None


def register_transformers() -> None:
    """Makes `attn_implementation="pagemill"` known to transformers."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import flash_attention_mask

    AttentionInterface.register("pagemill", transformers_attention)
    AttentionMaskInterface.register("pagemill", flash_attention_mask)
