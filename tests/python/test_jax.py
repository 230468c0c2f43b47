"""The JAX front end beside the TPU kernels' own references."""

import inspect
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
import tpu_reference
from tpu_calls import MIXED, TOLERANCE, expect_equal, random_call, reference, run, worst_error

from pagemill import jax as pm

BF16, F32 = jnp.bfloat16, jnp.float32


@pytest.mark.parametrize("dtype", [BF16, F32])
@pytest.mark.parametrize("distribution", [(0, 0), (3, 3), (3, 4), (3, 6), (0, 6)])
def test_distributions(rng: np.random.Generator, dtype: Any, distribution: tuple[int, int]) -> None:
    """Any split of the ranges, the prefill one without chunk_prefill_size included."""
    expect_equal(random_call(rng, MIXED, dtype=dtype, distribution=distribution, spare=3), sm_scale=0.1)


@pytest.mark.parametrize("page_size", [1, 2, 8, 16, 64, 256])
def test_page_sizes(rng: np.random.Generator, page_size: int) -> None:
    dtype = F32 if page_size == 1 else BF16
    expect_equal(random_call(rng, MIXED, page_size=page_size, dtype=dtype), sm_scale=0.1)


@pytest.mark.parametrize(
    "heads", [(4, 4, 64), (32, 8, 80), (5, 1, 80), (12, 2, 128), (3, 3, 128), (16, 2, 240), (8, 1, 256), (4, 2, 60)]
)
@pytest.mark.parametrize("dtype", [BF16, F32])
def test_heads(rng: np.random.Generator, heads: tuple[int, int, int], dtype: Any) -> None:
    expect_equal(random_call(rng, MIXED[1:5], heads=heads, dtype=dtype), sm_scale=heads[2] ** -0.5)


OPTIONS: list[dict[str, Any]] = [
    {"sliding_window": 5},
    {"sliding_window": 1},
    {"sliding_window": 128, "soft_cap": 3.0},
    {"soft_cap": -2.0},
    {"k_scale": 1.7, "v_scale": 0.6},
    {"q_scale": 0.5, "k_scale": 0.3, "v_scale": 2.5},
    {"use_causal_mask": False},
    {"use_causal_mask": False, "skip_kv_mask": True, "soft_cap": 5.0},
    {"sm_scale": 0.0},
    {"sm_scale": -0.1},
]


@pytest.mark.parametrize("options", OPTIONS, ids=lambda options: "-".join(options))
@pytest.mark.parametrize("dtype", [BF16, F32])
def test_options(rng: np.random.Generator, dtype: Any, options: dict[str, Any]) -> None:
    expect_equal(random_call(rng, MIXED, dtype=dtype), **{"sm_scale": 0.1, **options})


@pytest.mark.parametrize(("q_dtype", "dtype"), [(F32, BF16), (BF16, F32)])
@pytest.mark.parametrize("out_dtype", [None, F32, BF16])
def test_mixed_dtypes(rng: np.random.Generator, q_dtype: Any, dtype: Any, out_dtype: Any) -> None:
    call = random_call(rng, MIXED, q_dtype=q_dtype, dtype=dtype)
    out, _ = run(call, sm_scale=0.1, out_dtype=out_dtype)
    expected, _ = reference(call, sm_scale=0.1)
    assert out.dtype == (out_dtype or q_dtype)
    assert worst_error(out, expected) < TOLERANCE[out.dtype.name]


def test_kv_share(rng: np.random.Generator) -> None:
    """The layer that shares another's cache sees what that one stored, and its own keys and values do not count."""
    call = random_call(rng, MIXED, distribution=(3, 4))
    out, cache = run(call, sm_scale=0.1)
    nan = jnp.full_like(call.keys, jnp.nan)
    sharing = call.but(keys=nan, values=nan, kv_cache=jnp.asarray(cache))
    shared, after = run(sharing, sm_scale=0.1, update_kv_cache=False)
    np.testing.assert_array_equal(shared, out)
    np.testing.assert_array_equal(after, cache)
    expected, _ = reference(call, sm_scale=0.1)
    assert worst_error(shared, expected) < TOLERANCE["bfloat16"]


def test_window_without_causal_mask(rng: np.random.Generator) -> None:
    """The kernel heeds it, its reference does not: the window counts. Here against the sums written out."""
    call = random_call(rng, [(6, 40)], heads=(2, 1, 64), dtype=F32)
    out, cache = run(call, sm_scale=0.2, sliding_window=9, use_causal_mask=False)
    rows = cache.reshape(-1, 16, 2, 128)[np.asarray(call.page_indices)].reshape(-1, 2, 128)[:40, :, :64]
    scores = 0.2 * np.einsum("qhd,kd->hqk", np.asarray(call.queries), rows[:, 0])
    scores[:, np.arange(40)[None] <= np.arange(34, 40)[:, None] - 9] = -np.inf
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    expected = np.einsum("hqk,kd->qhd", weights / weights.sum(-1, keepdims=True), rows[:, 1])
    assert worst_error(out, expected) < TOLERANCE["float32"]


@pytest.mark.parametrize("dtype", [BF16, F32])
def test_tolerances_notice_mistakes(rng: np.random.Generator, dtype: Any) -> None:
    options = {"sm_scale": 0.1, "k_scale": 1.2, "v_scale": 0.9, "q_scale": 0.7, "sliding_window": 30}
    call = random_call(rng, MIXED, dtype=dtype)
    expected, _ = reference(call, **options)
    tolerance = TOLERANCE[call.queries.dtype.name]
    assert worst_error(run(call, **options)[0], expected) < tolerance
    for name, value in [("k_scale", None), ("v_scale", None), ("sliding_window", 29), ("soft_cap", 9.0)]:
        out, _ = run(call, **{**options, name: value})
        assert worst_error(out, expected) > 3 * tolerance, name
    pages = call.page_indices.reshape(len(MIXED), -1)
    wrong = call.but(page_indices=pages.at[4, 4].set(pages[0, 0]).reshape(-1))
    assert worst_error(run(wrong, **options)[0], expected) > 10 * tolerance


def test_signatures() -> None:
    for ours, theirs in (
        (pm.ragged_paged_attention, tpu_reference.ragged_paged_attention),
        (pm.ragged_paged_attention_hd64, tpu_reference.ragged_paged_attention_hd64),
    ):
        a, b = inspect.signature(ours).parameters, inspect.signature(theirs).parameters
        assert list(a) == list(b)
        for name in a:
            assert (a[name].kind, a[name].default) == (b[name].kind, b[name].default), name


@pytest.mark.parametrize("kv_heads", [1, 2, 3, 8])
@pytest.mark.parametrize("dtype", [BF16, F32, jnp.float8_e4m3fn])
def test_cache_shapes(kv_heads: int, dtype: Any) -> None:
    assert pm.get_kv_cache_shape(7, 16, kv_heads, 80, dtype) == tpu_reference.get_kv_cache_shape(
        7, 16, kv_heads, 80, dtype
    )
    assert pm.get_kv_cache_shape_hd64(7, 16, kv_heads, dtype) == tpu_reference.get_kv_cache_shape_hd64(
        7, 16, kv_heads, 64, dtype
    )
