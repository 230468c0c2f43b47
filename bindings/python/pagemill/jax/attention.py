"""The two functions, with the arguments of the TPU kernels."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from . import checks, ffi
from .caches import LANES, get_kv_cache_shape, get_kv_cache_shape_hd64

DEFAULT_MASK_VALUE = -0.7 * float(np.finfo(np.float32).max)


@functools.partial(
    jax.jit,
    static_argnames=(
        "use_causal_mask",
        "update_kv_cache",
        "skip_kv_mask",
        "sm_scale",
        "sliding_window",
        "soft_cap",
        "out_dtype",
        "mask_value",
        "q_scale",
        "k_scale",
        "v_scale",
        "chunk_prefill_size",
        "d_block_sizes",
        "p_block_sizes",
        "m_block_sizes",
        "vmem_limit_bytes",
        "debug_mode",
        "disable_bounds_checks",
        "disable_semaphore_checks",
    ),
    donate_argnames=("kv_cache",),
)
def ragged_paged_attention(
    queries: jax.Array,
    keys: jax.Array,
    values: jax.Array,
    kv_cache: jax.Array,
    kv_lens: jax.Array,
    page_indices: jax.Array,
    cu_q_lens: jax.Array,
    distribution: jax.Array,
    *,
    use_causal_mask: bool = True,
    update_kv_cache: bool = True,
    skip_kv_mask: bool = False,
    sm_scale: float = 1.0,
    sliding_window: int | None = None,
    soft_cap: float | None = None,
    out_dtype: Any = None,
    mask_value: float | None = None,
    q_scale: float | None = None,
    k_scale: float | None = None,
    v_scale: float | None = None,
    chunk_prefill_size: int | None = None,
    d_block_sizes: tuple[int, int, int, int] | None = None,
    p_block_sizes: tuple[int, int, int, int] | None = None,
    m_block_sizes: tuple[int, int, int, int] | None = None,
    vmem_limit_bytes: int | None = None,
    debug_mode: bool = False,
    disable_bounds_checks: bool = True,
    disable_semaphore_checks: bool = True,
) -> tuple[jax.Array, jax.Array]:
    """Stores the step's new keys and values in the cache, and attends to it.

    Args:
      queries: [max_num_tokens, H, D] f32, bf16 or f16, all sequences end to end.
      keys, values: [max_num_tokens, K, D] of the cache's dtype, already divided by their scales.
      kv_cache: f32, bf16, f16, float8_e4m3fn or float8_e5m2 of the shape that `get_kv_cache_shape` gives. Called
        outside of jit, this function donates it, as the TPU kernel does; inside, it is updated in place if the jitted
        function donates it.
      kv_lens: i32 [max_num_seqs] keys of each sequence, its new tokens included.
      page_indices: i32 [max_num_seqs * pages_per_seq], the page table, flat.
      cu_q_lens: i32 [max_num_seqs + 1], first token of each sequence. All as far as distribution[2] counts.
      distribution: i32 [3] (i, j, k): sequences [0, i) decode, [i, j) prefill chunks, [j, k) are of any kind; k is the
        number of sequences. Each is processed with the q_len that cu_q_lens gives it, whichever range it is in.
      use_causal_mask: queries see keys up to their position; False: all keys of the sequence.
      update_kv_cache: False: keys and values are ignored, the cache is only read, and returned as it is.
      sm_scale: of the scores.
      sliding_window: keys that a query sees, itself included; with and without the causal mask.
      soft_cap: c in c * tanh(score / c).
      out_dtype: of the output; None: f32 for f32 queries, else bf16. Sums are f32 in any case.
      mask_value: at most -1e4, without effect: masked keys take no part.
      q_scale, k_scale, v_scale: queries are divided by q_scale, clipped to the range of the cache's dtype and rounded
        to it; scores are multiplied by q_scale * k_scale, the output by v_scale.
      skip_kv_mask, chunk_prefill_size, d_block_sizes, p_block_sizes, m_block_sizes, vmem_limit_bytes, debug_mode,
        disable_bounds_checks, disable_semaphore_checks: checked as the TPU kernel does, without effect.

    Returns:
      ([max_num_tokens, H, D] of out_dtype, 0 in rows past the last sequence; the updated cache). The new tokens' lanes
      and rows of the cache that hold no element are 0.

    Raises:
      ValueError: shapes, dtypes or options that contradict each other, when traced. NotImplementedError: what the
      library does not support (D above 512, other fp8, gradients), when traced. jax.errors.JaxRuntimeError
      INVALID_ARGUMENT: metadata that contradict each other, when run; nothing was written.
    """
    del debug_mode, disable_bounds_checks, disable_semaphore_checks
    checks.expect(not (use_causal_mask and skip_kv_mask), "Can not skip kv mask when using causal mask.")
    q, k, v = queries, keys, values
    checks.expect_tensors(q, k, v)
    checks.expect_cache(k, v, kv_cache, get_kv_cache_shape(*kv_cache.shape[:2], *k.shape[1:], kv_cache.dtype))
    checks.expect_metadata(kv_lens, page_indices, cu_q_lens, distribution)
    checks.expect_options(
        sliding_window=sliding_window,
        soft_cap=soft_cap,
        mask_value=mask_value,
        q_scale=q_scale,
        k_scale=k_scale,
        v_scale=v_scale,
        chunk_prefill_size=chunk_prefill_size,
        vmem_limit_bytes=vmem_limit_bytes,
    )
    for prefix, sizes in (("decode", d_block_sizes), ("prefill", p_block_sizes), ("mixed", m_block_sizes)):
        checks.expect_block_sizes(sizes, prefix, kv_cache.shape[1])
    if out_dtype is None:
        out_dtype = jnp.float32 if q.dtype == jnp.float32 else jnp.bfloat16
    return ffi.call(
        q,
        k,
        v,
        kv_cache,
        (kv_lens, page_indices, cu_q_lens, distribution),
        None,
        out_dtype=out_dtype,
        sm_scale=sm_scale,
        q_scale=q_scale,
        k_scale=k_scale,
        v_scale=v_scale,
        sliding_window=sliding_window,
        soft_cap=soft_cap,
        causal=use_causal_mask,
        update=update_kv_cache,
        head64=False,
    )


@functools.partial(
    jax.jit,
    static_argnames=(
        "sm_scale",
        "sliding_window",
        "soft_cap",
        "mask_value",
        "q_scale",
        "k_scale",
        "v_scale",
        "chunk_prefill_size",
        "num_kv_pages_per_block",
        "num_queries_per_block",
        "vmem_limit_bytes",
        "debug_mode",
    ),
    donate_argnames=("kv_cache",),
)
def ragged_paged_attention_hd64(
    queries: jax.Array,
    keys: jax.Array,
    values: jax.Array,
    kv_cache: jax.Array,
    kv_lens: jax.Array,
    page_indices: jax.Array,
    cu_q_lens: jax.Array,
    distribution: jax.Array,
    attention_sink: jax.Array | None = None,
    *,
    sm_scale: float = 1.0,
    sliding_window: int | None = None,
    soft_cap: float | None = None,
    mask_value: float | None = DEFAULT_MASK_VALUE,
    q_scale: float | None = None,
    k_scale: float | None = None,
    v_scale: float | None = None,
    chunk_prefill_size: int | None = None,
    num_kv_pages_per_block: int | None = None,
    num_queries_per_block: int | None = None,
    vmem_limit_bytes: int | None = None,
    debug_mode: bool = False,
) -> tuple[jax.Array, jax.Array]:
    """As `ragged_paged_attention`, for D = 64 and a cache whose rows hold K and V of a head, with sinks.

    Args:
      kv_cache: of the shape that `get_kv_cache_shape_hd64` gives.
      attention_sink: f32 [H], logits that join the softmax denominators, or None.
      num_kv_pages_per_block, num_queries_per_block: checked, without effect.
      All others: as of `ragged_paged_attention`.

    Returns:
      ([max_num_tokens, H, 64] of the queries' dtype, 0 in rows past the last sequence; the updated cache).

    Raises:
      As `ragged_paged_attention`.
    """
    del debug_mode
    q, k, v = queries, keys, values
    checks.expect_tensors(q, k, v)
    head_dim = q.shape[2]
    checks.expect(head_dim == LANES // 2, f"Expected {head_dim=} to be 64.")
    if attention_sink is not None:
        checks.expect(
            attention_sink.shape == (q.shape[1],),
            f"Expected {attention_sink.shape=} to be ({q.shape[1]},) (num_q_heads).",
        )
        checks.expect(attention_sink.dtype == jnp.float32, f"Expected {attention_sink.dtype=} to be float32.")
    checks.expect_cache(k, v, kv_cache, get_kv_cache_shape_hd64(*kv_cache.shape[:2], k.shape[1], kv_cache.dtype))
    checks.expect_metadata(kv_lens, page_indices, cu_q_lens, distribution)
    checks.expect_options(
        sliding_window=sliding_window,
        soft_cap=soft_cap,
        mask_value=mask_value,
        q_scale=q_scale,
        k_scale=k_scale,
        v_scale=v_scale,
        chunk_prefill_size=chunk_prefill_size,
        num_kv_pages_per_block=num_kv_pages_per_block,
        num_queries_per_block=num_queries_per_block,
        vmem_limit_bytes=vmem_limit_bytes,
    )
    return ffi.call(
        q,
        k,
        v,
        kv_cache,
        (kv_lens, page_indices, cu_q_lens, distribution),
        attention_sink,
        out_dtype=q.dtype,
        sm_scale=sm_scale,
        q_scale=q_scale,
        k_scale=k_scale,
        v_scale=v_scale,
        sliding_window=sliding_window,
        soft_cap=soft_cap,
        causal=True,
        update=True,
        head64=True,
    )
