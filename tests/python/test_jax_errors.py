"""Mistakes: what the TPU kernels refuse, with their exception; and metadata, when they are seen."""

import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tpu_reference
from tpu_calls import random_call

from pagemill import jax as pm

STEP = [(1, 20), (5, 40)]


def zeros(*shape: int, dtype: Any = jnp.bfloat16) -> jax.Array:
    return jnp.zeros(shape, dtype)


STATIC: list[tuple[dict[str, Any], dict[str, Any], type[Exception], str]] = [
    ({}, {"skip_kv_mask": True}, ValueError, "Can not skip kv mask when using causal mask"),
    ({"queries": zeros(6, 8 * 128)}, {}, ValueError, "Expected 3D array"),
    ({"keys": zeros(6, 1, 128)}, {}, ValueError, "Expected k.shape=(6, 1, 128) to be equal to v.shape=(6, 2, 128)"),
    ({"queries": zeros(7, 8, 128)}, {}, ValueError, "Expected q.shape[0]=7 to be equal to k.shape[0]=6"),
    ({"queries": zeros(6, 8, 64)}, {}, ValueError, "Expected q.shape[2]=64 to be equal to k.shape[2]=128"),
    ({"queries": zeros(6, 7, 128)}, {}, ValueError, "Expected heads=7 to be divisible by kv_heads=2"),
    ({"kv_cache": zeros(11, 16, 4, 1, 128)}, {}, ValueError, "Expected kv_cache.shape=(11, 16, 4, 1, 128)"),
    ({"kv_cache": zeros(11, 16, 2, 2, 64)}, {}, ValueError, "Expected kv_cache.shape=(11, 16, 2, 2, 64)"),
    ({"kv_cache": zeros(11, 16, 4, 128)}, {}, ValueError, "Expected 5D array"),
    ({"kv_cache": zeros(11, 15, 2, 2, 128)}, {}, ValueError, "page_size=15 must be divisible by kv_packing=2"),
    (
        {"kv_cache": zeros(11, 16, 4, 1, 128, dtype=jnp.float32)},
        {},
        ValueError,
        "Expected kv_cache.dtype=dtype('float32') to be equal",
    ),
    ({"kv_lens": zeros(2, dtype=jnp.int16)}, {}, ValueError, "Expected int32 dtype"),
    ({"page_indices": zeros(2, 3, dtype=jnp.int32)}, {}, ValueError, "Expected 1D array"),
    ({"page_indices": zeros(7, dtype=jnp.int32)}, {}, ValueError, "to be divisible by max_num_seqs=2"),
    ({"cu_q_lens": zeros(2, dtype=jnp.int32)}, {}, ValueError, "Expected cu_q_lens.shape=(2,) to be (3,)"),
    ({"distribution": zeros(2, dtype=jnp.int32)}, {}, ValueError, "Expected distribution.shape=(2,) to be (3,)"),
    ({}, {"sliding_window": 0}, ValueError, "sliding_window=0 must be positive"),
    ({}, {"soft_cap": 0.0}, ValueError, "soft_cap=0.0 must not be 0.0"),
    ({}, {"chunk_prefill_size": 0}, ValueError, "chunk_prefill_size=0 must be positive"),
    ({}, {"vmem_limit_bytes": -1}, ValueError, "vmem_limit_bytes=-1 must be positive"),
    ({}, {"d_block_sizes": (1, 32, 2, 32)}, ValueError, "decode bq_csz and bq_sz = 2, 1 must satisfy"),
    ({}, {"m_block_sizes": (4, 40, 4, 40)}, ValueError, "mixed bkv_sz=40 must be divisible by page_size=16"),
    ({}, {"k_scale": 0.0}, ValueError, "k_scale=0.0 must be a positive number"),
    ({}, {"mask_value": 0.0}, NotImplementedError, "mask_value=0.0: expected at most -1e4"),
]


@pytest.mark.parametrize(("changes", "options", "error", "message"), STATIC)
def test_static(
    rng: np.random.Generator, changes: dict[str, Any], options: dict[str, Any], error: type[Exception], message: str
) -> None:
    call = random_call(rng, STEP).but(**changes)
    for function in (pm.ragged_paged_attention, jax.jit(lambda *x: pm.ragged_paged_attention(*x, **options))):
        with pytest.raises(error, match=re.escape(message)):
            function(*call.arguments, **(options if function is pm.ragged_paged_attention else {}))
    assert not call.kv_cache.is_deleted()


@pytest.mark.parametrize(
    ("changes", "options"), [case[:2] for case in STATIC if case[2] is ValueError and "k_scale" not in case[1]]
)
def test_the_tpu_kernel_refuses_the_same(
    rng: np.random.Generator, changes: dict[str, Any], options: dict[str, Any]
) -> None:
    call = random_call(rng, STEP)
    tpu_reference.static_validate_inputs(*call.arguments)
    with pytest.raises(ValueError):
        tpu_reference.static_validate_inputs(*call.but(**changes).arguments, **options)


@pytest.mark.parametrize("dtype", [jnp.float8_e4m3fnuz, jnp.float8_e3m4])
def test_other_fp8_is_refused(dtype: Any) -> None:
    k = zeros(6, 2, 128, dtype=dtype)
    cache = zeros(11, 16, 1, 4, 128, dtype=dtype)
    call = random_call(np.random.default_rng(1), STEP).but(keys=k, values=k, kv_cache=cache)
    with pytest.raises(NotImplementedError, match=f"{np.dtype(dtype).name}.*expected one of float32"):
        pm.ragged_paged_attention(*call.arguments, k_scale=0.5)


def test_integers_are_refused() -> None:
    k = zeros(6, 2, 128, dtype=jnp.int8)
    call = random_call(np.random.default_rng(1), STEP).but(
        keys=k, values=k, kv_cache=zeros(11, 16, 1, 4, 128, dtype=jnp.int8)
    )
    with pytest.raises(ValueError, match="to be a floating point"):
        pm.ragged_paged_attention(*call.arguments)


def test_hd64(rng: np.random.Generator) -> None:
    call = random_call(rng, STEP, heads=(8, 2, 64), head64=True)
    good = jnp.zeros(8, jnp.float32)
    for arguments, message in (
        ((*call.arguments, good[:7]), "Expected attention_sink.shape=(7,) to be (8,)"),
        ((*call.arguments, good.astype(jnp.bfloat16)), "Expected attention_sink.dtype="),
        (random_call(rng, STEP).arguments, "Expected head_dim=128 to be 64"),
        (random_call(rng, STEP, heads=(8, 2, 64)).arguments, "Expected kv_cache.shape="),
    ):
        with pytest.raises(ValueError, match=re.escape(message)):
            pm.ragged_paged_attention_hd64(*arguments)
    with pytest.raises(ValueError, match="num_queries_per_block=0 must be positive"):
        pm.ragged_paged_attention_hd64(*call.arguments, num_queries_per_block=0)


def test_head_dims_beyond_the_library(rng: np.random.Generator) -> None:
    call = random_call(rng, STEP, heads=(2, 1, 520))
    with pytest.raises(NotImplementedError, match="head_dim = 520: expected a multiple of 8 from 16 to 512"):
        pm.ragged_paged_attention(*call.arguments)


def test_tuning_arguments_have_no_effect(rng: np.random.Generator) -> None:
    call = random_call(rng, STEP)
    plain, _ = jax.jit(pm.ragged_paged_attention)(*call.arguments)
    blocks = (4, 32, 2, 16)
    tuned, _ = jax.jit(
        lambda *x: pm.ragged_paged_attention(
            *x,
            chunk_prefill_size=4,
            d_block_sizes=blocks,
            p_block_sizes=blocks,
            m_block_sizes=blocks,
            vmem_limit_bytes=1 << 20,
            debug_mode=True,
            disable_bounds_checks=False,
            disable_semaphore_checks=False,
            mask_value=-1e30,
        )
    )(*call.arguments)
    np.testing.assert_array_equal(np.asarray(plain), np.asarray(tuned))


def int32(*values: int) -> jax.Array:
    return jnp.asarray(values, jnp.int32)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"distribution": int32(0, 0, 3)}, "distribution[2] = 3: expected at most the 2 sequences of kv_lens"),
        ({"distribution": int32(2, 1, 2)}, "distribution[1] = 1: expected at least 2"),
        ({"distribution": int32(-1, 0, 2)}, "distribution[0] = -1: expected at least 0"),
        ({"cu_q_lens": int32(0, 1, 7)}, "cu_q_lens[2] = 7: expected at most the 6 tokens of queries"),
        ({"cu_q_lens": int32(0, 3, 1)}, "query_start[2] = 1: expected at least query_start[1] = 3"),
        ({"kv_lens": int32(20, 4)}, "kv_len[1] = 4: expected at least q_len[1] = 5"),
        ({"kv_lens": int32(20, 49)}, "page"),
        ({"page_indices": int32(0, 1, 2, 3, 11, 4)}, "11"),
        ({"page_indices": int32(0, 1, 2, 3, 4, 1)}, "page"),
    ],
)
def test_metadata(rng: np.random.Generator, changes: dict[str, Any], message: str) -> None:
    call = random_call(rng, STEP).but(**changes)
    cache = np.array(call.kv_cache)
    with pytest.raises((ValueError, jax.errors.JaxRuntimeError), match="INVALID_ARGUMENT.*" + re.escape(message)):
        jax.block_until_ready(jax.jit(pm.ragged_paged_attention)(*call.arguments))
    np.testing.assert_array_equal(np.asarray(call.kv_cache), cache)


def test_no_sequences(rng: np.random.Generator) -> None:
    call = random_call(rng, STEP).but(distribution=int32(0, 0, 0))
    out, cache = jax.jit(pm.ragged_paged_attention)(*call.arguments)
    assert not np.asarray(out).any()
    np.testing.assert_array_equal(np.asarray(cache), np.asarray(call.kv_cache))
