"""Caches of fp8 in the JAX front end, beside the TPU kernels' own references."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tpu_reference
from tpu_calls import MIXED, TOLERANCE, expect_equal, random_call, reference, run, worst_error

from pagemill import jax as pm

BF16, F32 = jnp.bfloat16, jnp.float32
E4M3, E5M2 = jnp.float8_e4m3fn, jnp.float8_e5m2
SCALES: list[dict[str, Any]] = [
    {},
    {"k_scale": 0.5, "v_scale": 0.5},
    {"q_scale": 0.5, "k_scale": 0.5, "v_scale": 0.5},
    {"q_scale": 0.75, "k_scale": 1.7, "v_scale": 0.6, "soft_cap": 5.0, "sliding_window": 30},
]


@pytest.mark.parametrize("options", SCALES, ids=lambda options: "-".join(options) or "plain")
@pytest.mark.parametrize("dtype", [E4M3, E5M2])
@pytest.mark.parametrize("heads", [(32, 8, 128), (5, 1, 80), (3, 3, 240), (12, 2, 60)])
def test_scales(rng: np.random.Generator, heads: tuple[int, int, int], dtype: Any, options: dict[str, Any]) -> None:
    call = random_call(rng, MIXED, heads=heads, dtype=dtype, q_dtype=BF16, distribution=(3, 4), spare=2)
    expect_equal(call, sm_scale=heads[2] ** -0.5, **options)


@pytest.mark.parametrize("page_size", [4, 16, 256])
@pytest.mark.parametrize("q_dtype", [F32, jnp.float16])
def test_wider_queries(rng: np.random.Generator, page_size: int, q_dtype: Any) -> None:
    call = random_call(rng, MIXED, page_size=page_size, dtype=E4M3, q_dtype=q_dtype)
    options = {"sm_scale": 0.1, "k_scale": 1.3, "v_scale": 0.7, "out_dtype": F32}
    out, _ = run(call, **options)
    expected, _ = reference(call, **options)
    assert worst_error(out, expected) < TOLERANCE["float32"]


@pytest.mark.parametrize("dtype", [E4M3, E5M2])
@pytest.mark.parametrize("options", SCALES[:3], ids=lambda options: "-".join(options) or "plain")
def test_hd64(rng: np.random.Generator, dtype: Any, options: dict[str, Any]) -> None:
    call = random_call(rng, MIXED, heads=(12, 3, 64), dtype=dtype, q_dtype=BF16, head64=True)
    sink = jnp.asarray(rng.standard_normal(12, np.float32)) + 2
    expect_equal(call, head64=True, sink=sink, sm_scale=0.125, **options)


def test_the_reference_in_fp8(rng: np.random.Generator) -> None:
    """The reference in fp8 rounds weights to e4m3 too: those near 1 / 96, of 96 keys, to 9%, half a step of 2^-9."""
    call = random_call(rng, MIXED, dtype=E4M3, q_dtype=BF16)
    options = {"sm_scale": 0.1, "q_scale": 0.5, "k_scale": 0.5, "v_scale": 0.5}
    expected, cache = tpu_reference.ref_ragged_paged_attention(*call.arguments, **options)
    out, updated = run(call, **options)
    assert worst_error(out, np.asarray(expected)) < 0.09
    assert worst_error(run(call, **{**options, "v_scale": None})[0], np.asarray(expected)) > 0.5
    np.testing.assert_array_equal(updated.view(np.uint8), np.asarray(cache).view(np.uint8))


def test_every_byte_is_stored_as_it_was() -> None:
    bits = jnp.arange(256, dtype=jnp.uint8).reshape(2, 1, 128)
    for dtype, nan_from in ((E4M3, 0x7F), (E5M2, 0x7D)):
        call = random_call(np.random.default_rng(1), [(2, 2)], heads=(1, 1, 128), dtype=dtype, q_dtype=BF16)
        new = jax.lax.bitcast_convert_type(bits, dtype)
        page = int(call.page_indices[0])
        _, cache = run(call.but(keys=new, values=new))
        stored, given = cache.view(np.uint8)[page, :2, 0, 0], np.asarray(bits)[:, 0]
        inf = (given & 0x7F == 0x7C) & (dtype == E5M2)  # becomes the largest number
        np.testing.assert_array_equal(stored[inf] & 0x7F, 0x7B)
        nan = given & 0x7F >= nan_from
        assert np.isnan(stored[nan].view(np.dtype(dtype)).astype(np.float32)).all()
        np.testing.assert_array_equal(stored[~nan & ~inf], given[~nan & ~inf])


def test_kv_share_and_donation(rng: np.random.Generator) -> None:
    call = random_call(rng, MIXED, dtype=E4M3, q_dtype=BF16)
    out, cache = run(call, sm_scale=0.1, k_scale=0.5)
    nan = jnp.full_like(call.keys, jnp.nan)
    sharing = call.but(keys=nan, values=nan, kv_cache=jnp.asarray(cache))
    shared, after = run(sharing, sm_scale=0.1, k_scale=0.5, update_kv_cache=False)
    np.testing.assert_array_equal(shared, out)
    np.testing.assert_array_equal(after.view(np.uint8), cache.view(np.uint8))
    before = call.kv_cache.unsafe_buffer_pointer()
    _, updated = jax.block_until_ready(pm.ragged_paged_attention(*call.arguments))
    assert updated.unsafe_buffer_pointer() == before
    assert call.kv_cache.is_deleted()


def test_tolerances_notice_mistakes(rng: np.random.Generator) -> None:
    options = {"sm_scale": 0.1, "k_scale": 1.2, "v_scale": 0.9, "q_scale": 0.7}
    call = random_call(rng, MIXED, dtype=E4M3, q_dtype=BF16)
    expected, _ = reference(call, **options)
    assert worst_error(run(call, **options)[0], expected) < TOLERANCE["bfloat16"]
    for name in ("q_scale", "k_scale", "v_scale"):
        out, _ = run(call, **{**options, name: None})
        assert worst_error(out, expected) > 3 * TOLERANCE["bfloat16"], name
