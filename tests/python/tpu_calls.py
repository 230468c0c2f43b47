"""Random calls of the TPU kernels' interface, and what their own references make of them."""

from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tpu_reference

from pagemill import jax as pm

MIXED = [(1, 70), (1, 1), (1, 33), (20, 20), (7, 96), (33, 50)]  # (q_len, kv_len)
TOLERANCE = {"bfloat16": 1e-2, "float32": 1e-5}  # of worst_error; see test_tolerances_notice_mistakes


@dataclass
class Call:
    queries: jax.Array
    keys: jax.Array
    values: jax.Array
    kv_cache: jax.Array
    kv_lens: jax.Array
    page_indices: jax.Array
    cu_q_lens: jax.Array
    distribution: jax.Array

    @property
    def arguments(self) -> tuple[jax.Array, ...]:
        return tuple(vars(self).values())

    @property
    def num_tokens(self) -> int:
        return int(self.cu_q_lens[self.distribution[2]])

    def but(self, **changes: Any) -> "Call":
        return replace(self, **changes)


def random_call(
    rng: np.random.Generator,
    lengths: list[tuple[int, int]],  # (q_len, kv_len)
    *,
    heads: tuple[int, int, int] = (8, 2, 128),  # H, K, D
    page_size: int = 16,
    dtype: Any = jnp.bfloat16,
    q_dtype: Any = None,
    distribution: tuple[int, int] = (0, 0),
    spare: int = 0,  # sequences, and tokens, that only pad
    head64: bool = False,
) -> Call:
    h, k, d = heads
    q_lens = np.array([q_len for q_len, _ in lengths])
    kv_lens = np.array([kv_len for _, kv_len in lengths])
    tokens, seqs = int(q_lens.sum()) + spare, len(lengths) + spare
    pages_per_seq = -(-int(kv_lens.max()) // page_size)
    num_pages = len(lengths) * pages_per_seq + 5
    pages = np.full((seqs, pages_per_seq), 2**30)  # where nothing must look
    shuffled = rng.permutation(num_pages)
    for b, kv_len in enumerate(kv_lens):
        used = -(-int(kv_len) // page_size)
        pages[b, :used], shuffled = shuffled[:used], shuffled[used:]
    shape = (
        pm.get_kv_cache_shape_hd64(num_pages, page_size, k, dtype)
        if head64
        else pm.get_kv_cache_shape(num_pages, page_size, k, d, dtype)
    )

    def normal(*shape: int, dtype: Any = dtype) -> jax.Array:
        return jnp.asarray(rng.standard_normal(shape, np.float32)).astype(dtype)

    def padded(x: np.ndarray, length: int, value: int) -> jax.Array:
        return jnp.asarray(np.concatenate([x, np.full(length - len(x), value)]), jnp.int32)

    return Call(
        queries=normal(tokens, h, d, dtype=q_dtype or dtype),
        keys=normal(tokens, k, d),
        values=normal(tokens, k, d),
        kv_cache=normal(*shape),
        kv_lens=padded(kv_lens, seqs, -7),
        page_indices=jnp.asarray(pages.reshape(-1), jnp.int32),
        cu_q_lens=padded(np.concatenate([[0], np.cumsum(q_lens)]), seqs + 1, -9),
        distribution=jnp.asarray([*distribution, len(lengths)], jnp.int32),
    )


def run(call: Call, *, head64: bool = False, sink: Any = None, **options: Any) -> tuple[np.ndarray, np.ndarray]:
    """Ours; the call keeps its cache."""
    arguments = call.but(kv_cache=jnp.copy(call.kv_cache)).arguments
    if head64:
        out, cache = pm.ragged_paged_attention_hd64(*arguments, sink, **options)
    else:
        out, cache = pm.ragged_paged_attention(*arguments, **options)
    return np.asarray(out), np.asarray(cache)


def reference(call: Call, *, head64: bool = False, sink: Any = None, **options: Any) -> tuple[np.ndarray, np.ndarray]:
    """Theirs, over the same values in f32, so that its errors are far below ours; queries rounded as it rounds them."""
    q_scale = options.get("q_scale")
    if q_scale is not None:
        limits = jnp.finfo(call.kv_cache.dtype)
        q = jnp.clip(call.queries / q_scale, float(limits.min), float(limits.max)).astype(call.kv_cache.dtype)
        call = call.but(queries=q.astype(jnp.float32) * q_scale)
    wide = call.but(
        **{name: getattr(call, name).astype(jnp.float32) for name in ("queries", "keys", "values", "kv_cache")}
    )
    # f32 has other padding of heads: cache rows as they were.
    k = call.keys.shape[1]
    pages, page_size, words, pack, lanes = call.kv_cache.shape
    rows = k if head64 else 2 * k
    flat = wide.kv_cache.reshape(pages, page_size, words * pack, lanes)
    seqs = int(call.distribution[2])
    per_seq = call.page_indices.shape[0] // call.kv_lens.shape[0]
    wide = wide.but(
        kv_cache=flat[:, :, :rows, None, :],
        kv_lens=call.kv_lens[:seqs],
        page_indices=call.page_indices[: seqs * per_seq],
        cu_q_lens=call.cu_q_lens[: seqs + 1],
    )
    if head64:
        out, cache = tpu_reference.ref_ragged_paged_attention_hd64(*wide.arguments, sink, **options)
    else:
        out, cache = tpu_reference.ref_ragged_paged_attention(*wide.arguments, **options)
    return np.asarray(out), np.asarray(cache[:, :, :, 0])


def unpadded(call: Call, cache: np.ndarray, *, head64: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """(rows that hold heads, rows and that pad), as f32 [pages, P, rows, lanes]."""
    flat = cache.astype(np.float32).reshape(*cache.shape[:2], -1, cache.shape[4])
    rows = call.keys.shape[1] * (1 if head64 else 2)
    return flat[:, :, :rows], flat[:, :, rows:]


def worst_error(out: np.ndarray, expected: np.ndarray) -> float:
    """The largest of all rows (a token and head), relative to the row, both as root mean squares."""
    error = out[: len(expected)].astype(np.float64) - expected
    rows = np.sqrt((error**2).mean(axis=2) / (expected.astype(np.float64) ** 2).mean(axis=2))
    return float(rows.max())


def expect_equal(call: Call, *, head64: bool = False, **options: Any) -> None:
    out, cache = run(call, head64=head64, **options)
    options.pop("out_dtype", None)
    expected, expected_cache = reference(call, head64=head64, **options)
    assert worst_error(out, expected) < TOLERANCE[call.queries.dtype.name]
    assert not out[call.num_tokens :].any()
    held, padding = unpadded(call, cache, head64=head64)
    np.testing.assert_array_equal(held, expected_cache)
    _, padding_before = unpadded(call, np.asarray(call.kv_cache), head64=head64)
    changed = (held != unpadded(call, np.asarray(call.kv_cache), head64=head64)[0]).any(axis=(2, 3))
    np.testing.assert_array_equal(padding, np.where(changed[:, :, None, None], 0, padding_before))
