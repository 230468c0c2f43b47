"""Whole steps through the NumPy front end against the formula in float64."""

from typing import Any

import ml_dtypes
import numpy as np
import pytest
from steps import Expected, Step, attention, filled_rows, random_step, with_options, worst_error

import pagemill

BF16, F16, F32 = ml_dtypes.bfloat16, np.float16, np.float32
E4M3, E5M2 = ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e5m2
MIXED = [(1, 40), (1, 1), (24, 24), (5, 90), (0, 7), (33, 33)]  # (q_len, kv_len)


def cache_with(step: Step, dtype: Any, layout: str) -> pagemill.Cache:
    rows = pagemill.Cache(*filled_rows(step, dtype))
    if layout == "rows":
        return rows
    tiles = pagemill.new_cache(step.num_pages, step.page_size, *step.keys[0].shape[1:], dtype, layout)
    pagemill.convert(rows, tiles)
    return tiles


def planned(step: Step, cache: pagemill.Cache, **options: Any) -> pagemill.Plan:
    return pagemill.plan(
        step.query_start,
        step.kv_len,
        step.page_table,
        cache,
        **{"num_heads": step.q.shape[1], "dtype": step.q.dtype, **step.options.of_plan(), **options},
    )


def run(step: Step, cache: pagemill.Cache, **options: Any) -> Any:
    return planned(step, cache).run(step.q, step.k_new, step.v_new, cache, **{**step.options.of_run(), **options})


def expect_close(step: Step, out: np.ndarray, lse: np.ndarray, cache_dtype: Any) -> Expected:
    expected = attention(step, cache_dtype)
    bf16 = step.q.dtype == BF16 and cache_dtype in (BF16, E4M3, E5M2)
    assert worst_error(out, expected, products_bf16=bf16) <= 1
    np.testing.assert_allclose(lse, expected.lse, rtol=0, atol=2e-2 if bf16 else 1e-3)
    return expected


def as_rows(cache: pagemill.Cache) -> pagemill.Cache:
    if cache.layout == "rows":
        return cache
    rows = pagemill.new_cache(cache.num_pages, cache.page_size, cache.num_kv_heads, cache.head_dim, cache.dtype, "rows")
    pagemill.convert(cache, rows)
    return rows


def expect_same_elements(a: pagemill.Cache, b: pagemill.Cache) -> None:
    """NaN where nothing was ever stored included."""
    np.testing.assert_array_equal(a.k.astype(F32), b.k.astype(F32))
    np.testing.assert_array_equal(a.v.astype(F32), b.v.astype(F32))


@pytest.mark.parametrize("layout", ["rows", "tiles"])
@pytest.mark.parametrize(
    ("dtype", "cache_dtype"),
    [
        *[(F32, F32), (BF16, BF16), (F16, F16), (F32, BF16), (BF16, F32), (F16, F32)],
        *[(BF16, E4M3), (BF16, E5M2), (F32, E4M3), (F16, E5M2)],
    ],
)
def test_step(rng: np.random.Generator, dtype: Any, cache_dtype: Any, layout: str) -> None:
    step = random_step(rng, dtype, MIXED)
    cache = cache_with(step, cache_dtype, layout)
    out, lse = run(step, cache, lse=True)
    assert (out.dtype, lse.dtype) == (step.q.dtype, np.float32)
    expect_close(step, out, lse, cache_dtype)
    expect_same_elements(as_rows(cache), pagemill.Cache(*filled_rows(step, cache_dtype, through=True)))


@pytest.mark.parametrize(
    "options",
    [
        {"window_left": 4},
        {"window_left": 0, "causal": False, "window_right": 3},
        {"causal": False},
        {"causal": [True, False, True, False, True, False]},
        {"scale": 0.3, "soft_cap": 2.0},
        {"q_scale": 0.5, "k_scale": 4.0, "v_scale": 0.25},
        {"sinks": np.linspace(-2, 3, 8, dtype=F32)},
        {"alibi_slopes": np.linspace(0, 0.5, 8, dtype=F32)},
    ],
    ids=lambda options: "-".join(options),
)
@pytest.mark.parametrize("dtype", [F32, BF16])
def test_options(rng: np.random.Generator, dtype: Any, options: dict[str, Any]) -> None:
    step = random_step(rng, dtype, MIXED, **options)
    out, lse = run(step, cache_with(step, dtype, "tiles"), lse=True)
    expect_close(step, out, lse, dtype)


@pytest.mark.parametrize("layout", ["rows", "tiles"])
@pytest.mark.parametrize("cache_dtype", [E4M3, E5M2])
def test_fp8_scales(rng: np.random.Generator, cache_dtype: Any, layout: str) -> None:
    step = random_step(rng, BF16, MIXED, q_scale=0.5, k_scale=0.125, v_scale=0.375)
    cache = cache_with(step, cache_dtype, layout)
    out, lse = run(step, cache, lse=True)
    expected = expect_close(step, out, lse, cache_dtype)
    for scale in ("k_scale", "v_scale"):
        wrong = planned(step, cache).attend(step.q, cache, **{**step.options.of_run(), scale: 0.25})
        assert worst_error(wrong, expected, products_bf16=True) > 4, scale


def test_fp8_overflow_is_the_largest_number() -> None:
    cache = pagemill.new_cache(1, 16, 1, 16, "float8_e4m3fn", "rows")
    plan = pagemill.plan([0, 1], [1], [[0]], cache, num_heads=1)  # of bf16, as nothing else is asked for
    k = np.array([1e4, -1e4, np.inf, np.nan, 448, 2.0**-9, 2.0**-10, 17] + [0] * 8, F32).astype(BF16).reshape(1, 1, 16)
    plan.store(k, k / 2, cache, v_scale=0.25)
    stored = cache.k[0, 0, 0, :8].astype(F32)
    np.testing.assert_array_equal(stored, [448, -448, 448, np.nan, 448, 2.0**-9, 0, 16])
    assert cache.v[0, 0, 0, 7] == 32  # 34, half way between 32 and 36


def test_fp8_bits(rng: np.random.Generator) -> None:
    """Frameworks whose arrays of fp8 DLPack does not know hand over bytes."""
    step = random_step(rng, BF16, MIXED)
    k, v = filled_rows(step, E4M3)
    cache = pagemill.Cache(k.view(np.uint8), v.view(np.uint8), dtype="float8_e4m3fn")
    assert cache.dtype == "float8_e4m3fn"
    expect_close(step, *run(step, cache, lse=True), E4M3)
    with pytest.raises(TypeError, match="k.dtype = uint8: expected float32"):
        pagemill.Cache(k.view(np.uint8), v.view(np.uint8))
    with pytest.raises(TypeError, match="k.dtype = uint8, dtype = bfloat16: expected bfloat16, or uint8 for fp8"):
        pagemill.Cache(k.view(np.uint8), v.view(np.uint8), dtype="bfloat16")


@pytest.mark.parametrize("page_size", [1, 3, 16, 64, 256])
def test_page_sizes(rng: np.random.Generator, page_size: int) -> None:
    step = random_step(rng, BF16, MIXED, page_size=page_size)
    out, lse = run(step, cache_with(step, BF16, "rows"), lse=True)
    expect_close(step, out, lse, BF16)


@pytest.mark.parametrize("heads", [(4, 4, 16), (8, 1, 80), (6, 2, 128), (4, 1, 240), (2, 1, 256)])
def test_heads(rng: np.random.Generator, heads: tuple[int, int, int]) -> None:
    step = random_step(rng, BF16, [(1, 130), (9, 20)], heads)
    out, lse = run(step, cache_with(step, BF16, "tiles"), lse=True)
    expect_close(step, out, lse, BF16)


def test_bound_notices_mistakes(rng: np.random.Generator) -> None:
    """What the other tests allow is little enough for them to see the mistakes that they look for."""
    step = random_step(rng, BF16, MIXED, k_scale=1.25, v_scale=0.8, q_scale=1.1, window_left=20)
    expected = attention(step, BF16)
    right = run(step, cache_with(step, BF16, "tiles"))
    assert worst_error(right, expected, products_bf16=True) <= 1
    mistaken = {
        name: with_options(step, **{name: value})
        for name, value in {"q_scale": 1, "window_left": 19, "soft_cap": 5, "scale": 0.12}.items()
    }
    for scale in ("k_scale", "v_scale"):
        cache = cache_with(step, BF16, "tiles")
        planned(step, cache).store(step.k_new, step.v_new, cache, k_scale=1.25, v_scale=0.8)
        out = planned(step, cache).attend(step.q, cache, **{**step.options.of_run(), scale: 1.0})
        assert worst_error(out, expected, products_bf16=True) > 4, scale
    for name, mistake in mistaken.items():
        out = run(mistake, cache_with(mistake, BF16, "tiles"))
        assert worst_error(out, expected, products_bf16=True) > 4, name
    cache = cache_with(step, BF16, "tiles")
    step.page_table[3, 4] = step.page_table[0, 0]  # another sequence's page
    assert worst_error(run(step, cache), expected, products_bf16=True) > 4


def test_store_then_attend_is_run(rng: np.random.Generator) -> None:
    step = random_step(rng, BF16, MIXED, k_scale=2.0)
    whole, halves = cache_with(step, BF16, "tiles"), cache_with(step, BF16, "tiles")
    plan = planned(step, whole)
    out = plan.run(step.q, step.k_new, step.v_new, whole, k_scale=2.0)
    assert plan.store(step.k_new, step.v_new, halves, k_scale=2.0) is None
    np.testing.assert_array_equal(plan.attend(step.q, halves, k_scale=2.0), out)
    expect_same_elements(as_rows(whole), as_rows(halves))


def test_read_only_step(rng: np.random.Generator) -> None:
    step = random_step(rng, F32, MIXED)
    k, v = filled_rows(step, F32, through=True)
    k.flags.writeable = v.flags.writeable = False
    cache = pagemill.Cache(k, v)
    plan = planned(step, cache, write_cache=False)
    out, lse = plan.run(step.q, None, None, cache, lse=True)
    expect_close(step, out, lse, F32)
    with pytest.raises(ValueError, match="cache: read-only"):
        planned(step, cache).run(step.q, step.k_new, step.v_new, cache)


def test_no_cache(rng: np.random.Generator) -> None:
    step = random_step(rng, BF16, [(7, 7), (0, 0), (40, 40)], causal=False)
    plan = pagemill.plan(
        step.query_start, num_heads=8, num_kv_heads=2, head_dim=64, dtype=BF16, causal=False, out_dtype=F32
    )
    out, lse = plan.run(step.q, step.k_new, step.v_new, None, lse=True)
    assert out.dtype == F32
    expect_close(step, out, lse, BF16)


def test_first_position_and_row_index(rng: np.random.Generator) -> None:
    step = random_step(rng, F32, [(1, 30), (4, 50)], window_left=10)
    cache = cache_with(step, F32, "rows")
    plan = planned(step, cache)
    out = plan.run(step.q, step.k_new, step.v_new, cache)
    table = np.zeros((5, step.page_table.shape[1]), np.int64)  # of another dtype, rows elsewhere
    table[[3, 1]] = step.page_table
    other = pagemill.plan(
        list(step.query_start),
        list(step.kv_len),
        table,
        cache,
        num_heads=8,
        row_index=[3, 1],
        first_position=[29, 46],
        window_left=10,
        write_cache=False,
    )
    np.testing.assert_array_equal(other.attend(step.q, cache), out)


def test_merge_of_disjoint_keys_is_attention_to_all(rng: np.random.Generator) -> None:
    step = random_step(rng, F32, [(3, 96)], scale=0.2)
    cache = cache_with(step, F32, "rows")
    whole, lse = run(step, cache, lse=True)
    parts = []
    for first, last in ((0, 64), (64, 96)):
        pages = step.page_table[:, first // 16 : last // 16]
        plan = pagemill.plan(
            [0, 3],
            [last - first],
            pages,
            cache,
            num_heads=8,
            write_cache=False,
            first_position=[93 - first],
        )
        parts.append(plan.attend(step.q, cache, scale=0.2, lse=True))
    (a, lse_a), (b, lse_b) = parts
    out, out_lse = pagemill.merge(a, lse_a, b, lse_b)
    np.testing.assert_allclose(out, whole, atol=1e-5)
    np.testing.assert_allclose(out_lse, lse, atol=1e-5)
    assert pagemill.merge(a, lse_a, b, lse_b, out=a, out_lse=lse_a)[0] is a
    np.testing.assert_array_equal(a, out)
    nothing = np.full_like(lse_a, -np.inf)
    empty, empty_lse = pagemill.merge(b, nothing, b, nothing)
    assert not empty.any()
    assert (empty_lse == -np.inf).all()


def test_batch_invariant_chunks(rng: np.random.Generator) -> None:
    """A prompt in one step and in three gives the same bits."""
    step = random_step(rng, BF16, [(50, 50)])
    whole = cache_with(step, BF16, "tiles")
    out = planned(step, whole, batch_invariant=True).run(step.q, step.k_new, step.v_new, whole)
    chunked = cache_with(step, BF16, "tiles")
    rows = []
    for first, last in ((0, 20), (20, 21), (21, 50)):
        plan = pagemill.plan([0, last - first], [last], step.page_table, chunked, num_heads=8, batch_invariant=True)
        new = slice(first, last)
        rows.append(plan.run(step.q[new], step.k_new[new], step.v_new[new], chunked))
    np.testing.assert_array_equal(np.concatenate(rows).view(np.uint16), out.view(np.uint16))
