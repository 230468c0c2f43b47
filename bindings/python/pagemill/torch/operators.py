"""The custom operators torch.ops.pagemill.*."""

from collections.abc import Callable
from typing import Any

import torch

from .. import partial, planning
from .._core import Cache
from .plans import Plans

_FP8 = (torch.float8_e4m3fn, torch.float8_e5m2)

_library = torch.library.Library("pagemill", "DEF")
plans = Plans()


def _cache(k: torch.Tensor, v: torch.Tensor, layout: str) -> Cache:
    if k.dtype not in _FP8 or v.dtype != k.dtype:
        return Cache(k, v, layout)
    return Cache(k.view(torch.uint8), v.view(torch.uint8), layout, planning.dtype_name(k.dtype))  # which DLPack has


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
    plan = plans.get(
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
    plan = plans.get(
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
