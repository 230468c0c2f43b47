"""What the TPU kernels refuse when they are traced, and what the library cannot do, before anything is lowered."""

from typing import Any

import jax.numpy as jnp
import numpy as np

from .ffi import FP8

KV_DTYPES = ("float32", "bfloat16", "float16", *FP8)


def expect(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)


def expect_tensors(q: Any, k: Any, v: Any) -> None:
    expect(
        len(q.shape) == len(k.shape) == len(v.shape) == 3, f"Expected 3D array for {q.shape=}, {k.shape=}, {v.shape=}"
    )
    expect(k.shape == v.shape, f"Expected {k.shape=} to be equal to {v.shape=}")
    expect(q.shape[0] == k.shape[0], f"Expected {q.shape[0]=} to be equal to {k.shape[0]=} and {v.shape[0]=}")
    expect(q.shape[2] == k.shape[2], f"Expected {q.shape[2]=} to be equal to {k.shape[2]=} and {v.shape[2]=}")
    heads, kv_heads = q.shape[1], k.shape[1]
    expect(kv_heads > 0 and heads % kv_heads == 0, f"Expected {heads=} to be divisible by {kv_heads=}.")


def expect_cache(k: Any, v: Any, kv_cache: Any, expected_shape: tuple[int, ...]) -> None:
    expect(len(kv_cache.shape) == 5, f"Expected 5D array for {kv_cache.shape=}")
    # The cache takes keys and values as they are: whoever quantises does so before.
    expect(
        kv_cache.dtype == k.dtype == v.dtype, f"Expected {kv_cache.dtype=} to be equal to {k.dtype=} and {v.dtype=}."
    )
    expect(jnp.issubdtype(kv_cache.dtype, jnp.floating), f"Expected {kv_cache.dtype=} to be a floating point.")
    expect(kv_cache.shape == expected_shape, f"Expected {kv_cache.shape=} to be equal to {expected_shape=}")
    page_size, pack = kv_cache.shape[1], kv_cache.shape[3]
    expect(page_size % pack == 0, f"{page_size=} must be divisible by kv_packing={pack}.")
    if kv_cache.dtype.name not in KV_DTYPES:
        raise NotImplementedError(f"{kv_cache.dtype=}: expected one of {', '.join(KV_DTYPES)}")


def expect_metadata(kv_lens: Any, page_indices: Any, cu_q_lens: Any, distribution: Any) -> None:
    expect(
        all(x.dtype == jnp.int32 for x in (kv_lens, page_indices, cu_q_lens, distribution)),
        f"Expected int32 dtype for {kv_lens.dtype=}, {page_indices.dtype=}, {cu_q_lens.dtype=}, {distribution.dtype=}",
    )
    expect(
        all(len(x.shape) == 1 for x in (kv_lens, page_indices, cu_q_lens)),
        f"Expected 1D array for {kv_lens.shape=}, {page_indices.shape=}, {cu_q_lens.shape=}",
    )
    max_num_seqs = kv_lens.shape[0]
    expect(max_num_seqs > 0, f"Expected {kv_lens.shape=} to hold at least one sequence.")
    expect(
        page_indices.shape[0] % max_num_seqs == 0, f"Expected {page_indices.shape=} to be divisible by {max_num_seqs=}."
    )
    expect(cu_q_lens.shape == (max_num_seqs + 1,), f"Expected {cu_q_lens.shape=} to be ({max_num_seqs + 1},).")
    expect(distribution.shape == (3,), f"Expected {distribution.shape=} to be (3,).")


def expect_options(**options: Any) -> None:
    window, cap, mask_value = (options[name] for name in ("sliding_window", "soft_cap", "mask_value"))
    expect(window is None or window > 0, f"sliding_window={window} must be positive.")
    expect(cap is None or cap != 0.0, f"soft_cap={cap} must not be 0.0.")
    for name in ("chunk_prefill_size", "num_kv_pages_per_block", "num_queries_per_block", "vmem_limit_bytes"):
        value = options.get(name)
        expect(value is None or value > 0, f"{name}={value} must be positive.")
    for name in ("q_scale", "k_scale", "v_scale"):
        value = options[name]
        expect(value is None or (np.isfinite(value) and value > 0), f"{name}={value} must be a positive number.")
    if mask_value is not None and mask_value > -1e4:
        raise NotImplementedError(f"{mask_value=}: expected at most -1e4, masked keys take no part")


def expect_block_sizes(block_sizes: tuple[int, int, int, int] | None, prefix: str, page_size: int) -> None:
    if block_sizes is None:
        return
    bq_sz, bkv_sz, bq_csz, bkv_csz = block_sizes
    for size, part, names in ((bq_sz, bq_csz, "bq_csz and bq_sz"), (bkv_sz, bkv_csz, "bkv_csz and bkv_sz")):
        expect(
            part > 0 and size % part == 0,
            f"{prefix} {names} = {part}, {size} must satisfy 0 < part and size % part == 0.",
        )
    for name, size in (("bkv_sz", bkv_sz), ("bkv_csz", bkv_csz)):
        expect(size % page_size == 0, f"{prefix} {name}={size} must be divisible by {page_size=}.")
