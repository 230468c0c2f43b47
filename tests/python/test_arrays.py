"""Arrays as they lie: views, strides, other libraries' arrays, without copies."""

import subprocess
import sys
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from steps import attention, filled_rows, random_step, worst_error
from test_steps import BF16, F32, planned, run

import pagemill

LENGTHS = [(1, 40), (9, 50), (16, 16)]


def test_strided_queries(rng: np.random.Generator) -> None:
    """q, k and v as views into one array of a fused projection; out with heads outside."""
    step = random_step(rng, F32, LENGTHS)
    fused = np.concatenate([step.q, step.k_new, step.v_new], axis=1)
    q, k_new, v_new = np.split(fused, [8, 10], axis=1)
    cache = pagemill.Cache(*filled_rows(step, F32))
    out = np.full((8, 26, 64), np.nan, F32).transpose(1, 0, 2)
    lse = np.full((30, 8), np.nan, F32)[:26]
    result = planned(step, cache).run(q, k_new, v_new, cache, out=out, lse=lse)
    assert result[0] is out
    assert result[1] is lse
    expected = attention(step, F32)
    assert worst_error(out, expected, products_bf16=False) <= 1
    np.testing.assert_allclose(lse, expected.lse, atol=1e-3)


@pytest.mark.parametrize("arrangement", ["heads outside tokens", "token slots", "interleaved"])
def test_layouts_of_others(rng: np.random.Generator, arrangement: str) -> None:
    step = random_step(rng, F32, LENGTHS, page_size=1 if arrangement == "token slots" else 16)
    k, v = filled_rows(step, F32)
    if arrangement == "heads outside tokens":
        k, v = (np.ascontiguousarray(x.transpose(0, 2, 1, 3)).transpose(0, 2, 1, 3) for x in (k, v))
    elif arrangement == "interleaved":
        both = np.stack([k, v], axis=3)  # [pages, P, K, 2, D]
        k, v = both[:, :, :, 0], both[:, :, :, 1]
    cache = pagemill.Cache(k, v)
    assert cache.k is k
    assert worst_error(run(step, cache), attention(step, F32), products_bf16=False) <= 1
    expected, _ = filled_rows(step, F32, through=True)
    np.testing.assert_array_equal(k, expected)


def test_padding_rows(rng: np.random.Generator) -> None:
    step = random_step(rng, F32, LENGTHS)
    cache = pagemill.Cache(*filled_rows(step, F32))
    padded = [np.concatenate([x, np.full((5, *x.shape[1:]), np.nan, F32)]) for x in (step.q, step.k_new, step.v_new)]
    plan = planned(step, cache)
    out, lse = plan.run(*padded, cache, lse=True)
    assert not out[26:].any()
    assert not lse[26:].any()
    given = np.full_like(out, 7)
    plan.run(*padded, cache, out=given)
    assert (given[26:] == 7).all()
    np.testing.assert_array_equal(given[:26], out[:26])


@pytest.mark.parametrize("dtype", [F32, BF16])
def test_jax_arrays(rng: np.random.Generator, dtype: Any) -> None:
    jnp = pytest.importorskip("jax.numpy")
    step = random_step(rng, dtype, LENGTHS)
    cache = pagemill.Cache(*filled_rows(step, dtype))
    out = planned(step, cache).run(jnp.asarray(step.q), jnp.asarray(step.k_new), jnp.asarray(step.v_new), cache)
    again = pagemill.Cache(*filled_rows(step, dtype))
    np.testing.assert_array_equal(out.astype(F32), run(step, again).astype(F32))
    with pytest.raises(ValueError, match="out: a read-only array"):
        planned(step, cache).run(step.q, step.k_new, step.v_new, cache, out=jnp.asarray(step.q))
    of_jax = pagemill.Cache(jnp.asarray(cache.k), jnp.asarray(cache.v))
    with pytest.raises(ValueError, match="cache: read-only arrays"):
        run(step, of_jax)
    np.testing.assert_array_equal(planned(step, of_jax, write_cache=False).attend(step.q, of_jax), out)


@pytest.mark.parametrize("dtype", [F32, BF16, np.float16])
def test_new_cache(dtype: Any) -> None:
    cache = pagemill.new_cache(5, 32, 2, 80, dtype)
    r = 4 // np.dtype(dtype).itemsize
    assert cache.k.shape == (5, 2, 2, 80 // r, 16, r)
    assert cache.v.shape == (5, 2, 32 // r, 80, r)
    assert (cache.layout, cache.dtype) == ("tiles", np.dtype(dtype).name)
    assert (cache.num_pages, cache.page_size, cache.num_kv_heads, cache.head_dim) == (5, 32, 2, 80)
    assert cache.nbytes == cache.k.nbytes + cache.v.nbytes
    assert not cache.k.any()
    rows = pagemill.new_cache(5, 7, 2, 80, dtype, "rows")
    assert rows.k.shape == (5, 7, 2, 80)


def test_tiles_as_documented(rng: np.random.Generator) -> None:
    """Where layout tiles puts key 21 of a page, and the pages that conversion moves."""
    rows = pagemill.Cache(*(rng.standard_normal((4, 32, 2, 16), F32).astype(BF16) for _ in range(2)))
    tiles = pagemill.new_cache(6, 32, 2, 16)
    pagemill.convert(rows, tiles, [3, 0], [5, 2])
    for d in range(16):
        assert tiles.k[5, 1, 21 // 16, d // 2, 21 % 16, d % 2] == rows.k[3, 21, 1, d]
        assert tiles.v[2, 0, 21 // 2, d, 21 % 2] == rows.v[0, 21, 0, d]
    assert not tiles.k[[0, 1, 3, 4]].any()
    back = pagemill.new_cache(4, 32, 2, 16, F32, "rows")
    pagemill.convert(tiles, back, dst_pages=[1, 0, 3], src_pages=[5, 0, 2])
    np.testing.assert_array_equal(back.k[1], rows.k[3].astype(F32))
    np.testing.assert_array_equal(back.v[3], rows.v[0].astype(F32))


def test_numpy_is_enough() -> None:
    code = """
import sys
for name in ("ml_dtypes", "jax", "jaxlib", "torch"):
    sys.modules[name] = None  # import fails
import numpy as np, pagemill
cache = pagemill.new_cache(4, 16, 2, 16, "float32")
plan = pagemill.plan([0, 3], [3], [[2]], cache, num_heads=4)
x = np.ones((3, 4, 16), np.float32)
out = plan.run(x, x[:, :2], x[:, :2], cache)
assert np.allclose(out, 1), out
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_info() -> None:
    info = pagemill.info()
    assert info["version"] == pagemill.__version__
    assert info["threads"] >= 1
    assert [isa["name"] for isa in info["isas"] if isa["selected"]] == [info["isa"]]
    assert {"scalar"} <= {isa["name"] for isa in info["isas"] if isa["available"]}
    assert any(kernel.startswith("attend_bf16_d128") for kernel in info["kernels"])


def test_float16_and_bfloat16_are_not_confused() -> None:
    cache = pagemill.new_cache(2, 16, 1, 16, "bfloat16")
    plan = pagemill.plan([0, 1], [1], [[0]], cache, num_heads=1)
    good, bad = np.ones((1, 1, 16), ml_dtypes.bfloat16), np.ones((1, 1, 16), np.float16)
    plan.run(good, good, good, cache)
    for arguments in ((bad, good, good), (good, bad, good), (good, good, bad), (good.view(np.uint16), good, good)):
        with pytest.raises(TypeError, match=r"dtype = .*: expected bfloat16"):
            plan.run(*arguments, cache)
