"""Ragged paged attention for JAX on CPUs: the calls of the TPU kernels, with their arguments, caches and results.

`ragged_paged_attention` and `ragged_paged_attention_hd64` take the place of the functions of these names of
tpu-inference's `ragged_paged_attention/v3`. They work under jit, lax.scan and shard_map; a donated cache is updated in
place; work runs on XLA's threads. docs/jax.md tells where they differ from the TPU kernels.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from . import _core

for _name, _handler in _core.jax_handlers.items():
    jax.ffi.register_ffi_target(_name, _handler, platform="cpu")

LANES = 128
DEFAULT_MASK_VALUE = -0.7 * float(np.finfo(np.float32).max)
_FP8 = ("float8_e4m3fn", "float8_e5m2")
_KV_DTYPES = ("float32", "bfloat16", "float16", *_FP8)


def align_to(x: int, multiple: int) -> int:
    return -(-x // multiple) * multiple


def packing(dtype: Any) -> int:
    """Elements of a 32-bit word."""
    return 4 // np.dtype(dtype).itemsize


def get_kv_cache_shape(
    total_num_pages: int, page_size: int, actual_num_kv_heads: int, actual_head_dim: int, kv_dtype: Any
) -> tuple[int, int, int, int, int]:
    """Shape of the cache of `ragged_paged_attention`: [pages, page_size, align(2 K, pack) / pack, pack, align(D, 128)]
    with pack = 4 / itemsize. Rows are K and V of each head in turn.
    """
    pack = packing(kv_dtype)
    rows = align_to(2 * actual_num_kv_heads, pack)
    return total_num_pages, page_size, rows // pack, pack, align_to(actual_head_dim, LANES)


def get_kv_cache_shape_hd64(
    total_num_pages: int, page_size: int, actual_num_kv_heads: int, kv_dtype: Any
) -> tuple[int, int, int, int, int]:
    """Shape of the cache of `ragged_paged_attention_hd64`: [pages, page_size, align(K, pack) / pack, pack, 128] with
    pack = 4 / itemsize. A row is the 64 elements of a head's K, then those of its V.
    """
    pack = packing(kv_dtype)
    return total_num_pages, page_size, align_to(actual_num_kv_heads, pack) // pack, pack, LANES


def _expect(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)


def _validate_tensors(q: Any, k: Any, v: Any) -> None:
    _expect(
        len(q.shape) == len(k.shape) == len(v.shape) == 3, f"Expected 3D array for {q.shape=}, {k.shape=}, {v.shape=}"
    )
    _expect(k.shape == v.shape, f"Expected {k.shape=} to be equal to {v.shape=}")
    _expect(q.shape[0] == k.shape[0], f"Expected {q.shape[0]=} to be equal to {k.shape[0]=} and {v.shape[0]=}")
    _expect(q.shape[2] == k.shape[2], f"Expected {q.shape[2]=} to be equal to {k.shape[2]=} and {v.shape[2]=}")
    heads, kv_heads = q.shape[1], k.shape[1]
    _expect(kv_heads > 0 and heads % kv_heads == 0, f"Expected {heads=} to be divisible by {kv_heads=}.")


def _validate_cache(k: Any, v: Any, kv_cache: Any, expected_shape: tuple[int, ...]) -> None:
    _expect(len(kv_cache.shape) == 5, f"Expected 5D array for {kv_cache.shape=}")
    # The cache takes keys and values as they are: whoever quantises does so before.
    _expect(
        kv_cache.dtype == k.dtype == v.dtype, f"Expected {kv_cache.dtype=} to be equal to {k.dtype=} and {v.dtype=}."
    )
    _expect(jnp.issubdtype(kv_cache.dtype, jnp.floating), f"Expected {kv_cache.dtype=} to be a floating point.")
    _expect(kv_cache.shape == expected_shape, f"Expected {kv_cache.shape=} to be equal to {expected_shape=}")
    page_size, pack = kv_cache.shape[1], kv_cache.shape[3]
    _expect(page_size % pack == 0, f"{page_size=} must be divisible by kv_packing={pack}.")
    if kv_cache.dtype.name not in _KV_DTYPES:
        raise NotImplementedError(f"{kv_cache.dtype=}: expected one of {', '.join(_KV_DTYPES)}")


def _validate_metadata(kv_lens: Any, page_indices: Any, cu_q_lens: Any, distribution: Any) -> None:
    _expect(
        all(x.dtype == jnp.int32 for x in (kv_lens, page_indices, cu_q_lens, distribution)),
        f"Expected int32 dtype for {kv_lens.dtype=}, {page_indices.dtype=}, {cu_q_lens.dtype=}, {distribution.dtype=}",
    )
    _expect(
        all(len(x.shape) == 1 for x in (kv_lens, page_indices, cu_q_lens)),
        f"Expected 1D array for {kv_lens.shape=}, {page_indices.shape=}, {cu_q_lens.shape=}",
    )
    max_num_seqs = kv_lens.shape[0]
    _expect(max_num_seqs > 0, f"Expected {kv_lens.shape=} to hold at least one sequence.")
    _expect(
        page_indices.shape[0] % max_num_seqs == 0, f"Expected {page_indices.shape=} to be divisible by {max_num_seqs=}."
    )
    _expect(cu_q_lens.shape == (max_num_seqs + 1,), f"Expected {cu_q_lens.shape=} to be ({max_num_seqs + 1},).")
    _expect(distribution.shape == (3,), f"Expected {distribution.shape=} to be (3,).")


def _validate_options(**options: Any) -> None:
    window, cap, mask_value = (options[name] for name in ("sliding_window", "soft_cap", "mask_value"))
    _expect(window is None or window > 0, f"sliding_window={window} must be positive.")
    _expect(cap is None or cap != 0.0, f"soft_cap={cap} must not be 0.0.")
    for name in ("chunk_prefill_size", "num_kv_pages_per_block", "num_queries_per_block", "vmem_limit_bytes"):
        value = options.get(name)
        _expect(value is None or value > 0, f"{name}={value} must be positive.")
    for name in ("q_scale", "k_scale", "v_scale"):
        value = options[name]
        _expect(value is None or (np.isfinite(value) and value > 0), f"{name}={value} must be a positive number.")
    if mask_value is not None and mask_value > -1e4:
        raise NotImplementedError(f"{mask_value=}: expected at most -1e4, masked keys take no part")


def _validate_block_sizes(block_sizes: tuple[int, int, int, int] | None, prefix: str, page_size: int) -> None:
    if block_sizes is None:
        return
    bq_sz, bkv_sz, bq_csz, bkv_csz = block_sizes
    for size, part, names in ((bq_sz, bq_csz, "bq_csz and bq_sz"), (bkv_sz, bkv_csz, "bkv_csz and bkv_sz")):
        _expect(
            part > 0 and size % part == 0,
            f"{prefix} {names} = {part}, {size} must satisfy 0 < part and size % part == 0.",
        )
    for name, size in (("bkv_sz", bkv_sz), ("bkv_csz", bkv_csz)):
        _expect(size % page_size == 0, f"{prefix} {name}={size} must be divisible by {page_size=}.")


def _call(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    kv_cache: jax.Array,
    metadata: tuple[jax.Array, ...],
    sinks: jax.Array | None,
    *,
    out_dtype: Any,
    sm_scale: float,
    q_scale: float | None,
    k_scale: float | None,
    v_scale: float | None,
    sliding_window: int | None,
    soft_cap: float | None,
    causal: bool,
    update: bool,
    head64: bool,
) -> tuple[jax.Array, jax.Array]:
    head_dim = q.shape[2]
    if q_scale is not None:
        limits = jnp.finfo(kv_cache.dtype)
        q = jnp.clip(q / q_scale, float(limits.min), float(limits.max)).astype(kv_cache.dtype)
    # The library takes q, k and v of one dtype. Widening k and v is exact, and they are stored as they were.
    dtype = _common_dtype(q.dtype, kv_cache.dtype)
    padding = ((0, 0), (0, 0), (0, -head_dim % 8))
    q, k, v = (jnp.pad(x.astype(dtype), padding) for x in (q, k, v))
    _core.expect_supported(
        num_heads=q.shape[1], num_kv_heads=k.shape[1], head_dim=q.shape[2], page_size=kv_cache.shape[1]
    )
    out_dtype = jnp.dtype(out_dtype)
    computed = dtype if out_dtype == dtype and v_scale is None else jnp.dtype(jnp.float32)
    scale = sm_scale * (q_scale or 1.0) * (k_scale or 1.0)
    operands = (q, k, v, kv_cache, *metadata, jnp.zeros((0,), jnp.float32) if sinks is None else sinks)
    out_type = jax.ShapeDtypeStruct(q.shape, computed)
    options = {
        "causal": causal,
        "window": np.int64(min(sliding_window or 0, np.iinfo(np.int32).max)),
        # 0 would stand for 1 / sqrt(D)
        "scale": np.float32(scale or np.finfo(np.float32).tiny),
        "soft_cap": np.float32(abs(soft_cap or 0.0)),
        "head64": head64,
    }
    if update:
        target, types, aliases = "pagemill_update_and_attend", (out_type, _type_of(kv_cache)), {3: 1}
        out, kv_cache = _ffi(target, types, aliases, tuple(options.items()), *operands)
    else:
        (out,) = _ffi("pagemill_attend", (out_type,), {}, tuple(options.items()), *operands)
    if v_scale is not None:
        out = out * v_scale
    return out[..., :head_dim].astype(out_dtype), kv_cache


def _common_dtype(q: Any, kv: Any) -> Any:
    if q.name in _FP8:
        q = jnp.dtype(jnp.bfloat16)
    return q if kv.name in _FP8 else jnp.promote_types(q, kv)


def _type_of(x: jax.Array) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(x.shape, x.dtype)


@functools.partial(jax.custom_jvp, nondiff_argnums=(0, 1, 2, 3))
def _ffi(target: str, types: Any, aliases: dict[int, int], options: Any, *operands: jax.Array) -> Any:
    return jax.ffi.ffi_call(target, types, input_output_aliases=aliases)(*operands, **dict(options))


@_ffi.defjvp
def _no_gradient(*_: Any) -> Any:
    raise NotImplementedError(
        "pagemill.jax: ragged paged attention has no gradient: expected it outside of what grad, jvp, vjp differentiate"
    )


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
    _expect(not (use_causal_mask and skip_kv_mask), "Can not skip kv mask when using causal mask.")
    q, k, v = queries, keys, values
    _validate_tensors(q, k, v)
    _validate_cache(k, v, kv_cache, get_kv_cache_shape(*kv_cache.shape[:2], *k.shape[1:], kv_cache.dtype))
    _validate_metadata(kv_lens, page_indices, cu_q_lens, distribution)
    _validate_options(
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
        _validate_block_sizes(sizes, prefix, kv_cache.shape[1])
    if out_dtype is None:
        out_dtype = jnp.float32 if q.dtype == jnp.float32 else jnp.bfloat16
    return _call(
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
    _validate_tensors(q, k, v)
    head_dim = q.shape[2]
    _expect(head_dim == LANES // 2, f"Expected {head_dim=} to be 64.")
    if attention_sink is not None:
        _expect(
            attention_sink.shape == (q.shape[1],),
            f"Expected {attention_sink.shape=} to be ({q.shape[1]},) (num_q_heads).",
        )
        _expect(attention_sink.dtype == jnp.float32, f"Expected {attention_sink.dtype=} to be float32.")
    _validate_cache(k, v, kv_cache, get_kv_cache_shape_hd64(*kv_cache.shape[:2], k.shape[1], kv_cache.dtype))
    _validate_metadata(kv_lens, page_indices, cu_q_lens, distribution)
    _validate_options(
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
    return _call(
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
