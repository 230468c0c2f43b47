"""Mistakes: the exception's type, its message, and that nothing was written."""

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import pagemill

H, K, D, P, PAGES = 4, 2, 16, 16, 6
F32 = np.float32


def good_plan(**changes: Any) -> dict[str, Any]:
    return {
        "query_start": [0, 1, 4],
        "kv_len": [20, 3],
        "page_table": [[4, 1], [2, 0]],
        "cache": pagemill.new_cache(PAGES, P, K, D, F32, "rows"),
        "num_heads": H,
        **changes,
    }


def dead_float8() -> Any:
    import ml_dtypes

    return np.zeros((PAGES, P, K, D), ml_dtypes.float8_e4m3fnuz)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"query_start": [0, 2, 1]}, ValueError, "query_start[2] = 1: expected at least query_start[1] = 2"),
        ({"query_start": [1, 2, 3]}, ValueError, "query_start[0] = 1: expected 0"),
        ({"query_start": []}, ValueError, "query_start.shape"),
        ({"query_start": [[0, 1, 4]]}, ValueError, "query_start.shape = [1, 3]: expected 1 axes"),
        ({"query_start": [0.0, 1.0, 4.0]}, TypeError, "query_start.dtype = float64: expected integers"),
        ({"query_start": [0, 1, 2**40]}, ValueError, "query_start: values from 0 to 1099511627776"),
        ({"kv_len": [20]}, ValueError, "kv_len.shape = [1]: expected [B] = [2]"),
        ({"kv_len": [20, 2]}, ValueError, "kv_len[1] = 2: expected at least q_len[1] = 3"),
        ({"kv_len": None}, ValueError, "kv_len = NULL"),
        ({"kv_len": [20, 40]}, ValueError, "page"),
        ({"page_table": [[4, 1], [6, 0]]}, ValueError, "6"),
        ({"page_table": [[4, 1], [1, 0]]}, ValueError, "page"),
        ({"page_table": [4, 1]}, ValueError, "page_table.shape = [2]: expected 2 axes"),
        ({"row_index": [0, 2]}, ValueError, "row_index[1] = 2: expected a row in [0, 2)"),
        ({"num_heads": 3}, ValueError, "num_heads = 3: expected a positive multiple of num_kv_heads = 2"),
        ({"num_heads": 2 * 129}, NotImplementedError, "num_heads = 258"),
        ({"num_kv_heads": 4}, ValueError, "num_kv_heads = 4: expected the cache's 2"),
        ({"window_left": -2}, ValueError, "window_left = -2: expected at least 0"),
        ({"dtype": "float64"}, TypeError, "dtype = float64: expected float32, bfloat16 or float16"),
        ({"out_dtype": "float16"}, ValueError, "out_dtype"),
        ({"isa": "avx3"}, ValueError, "avx3"),
        ({"threads": -1}, ValueError, "threads = -1"),
        ({"causal": [True]}, ValueError, "causal.shape = [1]: expected [B] = [2]"),
        ({"cache": None}, ValueError, "cache = None: expected num_kv_heads and head_dim"),
    ],
)
def test_plan(changes: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=re.escape(message)):
        pagemill.plan(**good_plan(**changes))


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: pagemill.Cache([1], [2]), TypeError, "k: a list: expected an array"),
        (lambda: pagemill.Cache(np.zeros((2, 3, 4), F32), np.zeros((2, 3, 4), F32)), ValueError, "k.shape = [2, 3, 4]"),
        (
            lambda: pagemill.Cache(np.zeros((2, 16, 1, 16), F32), np.zeros((2, 16, 1, 24), F32)),
            ValueError,
            "v.shape = [2, 16, 1, 24]: expected [pages, P, K, D] = [2, 16, 1, 16]",
        ),
        (
            lambda: pagemill.Cache(np.zeros((2, 16, 1, 16), F32), np.zeros((2, 16, 1, 16), np.float16)),
            TypeError,
            "v.dtype = float16: expected float32",
        ),
        (
            lambda: pagemill.Cache(*(np.zeros((2, 16, 16, 2), F32).transpose(0, 1, 3, 2),) * 2),
            ValueError,
            "stride 2 of the last axis: expected it to be contiguous",
        ),
        (
            lambda: pagemill.Cache(*(np.broadcast_to(np.zeros((2, 1, 1, 16), F32), (2, 16, 1, 16)),) * 2),
            ValueError,
            "stride 0 of axis 1: expected a positive one",
        ),
        (lambda: pagemill.Cache(dead_float8(), dead_float8()), TypeError, "k: a ndarray"),
        (lambda: pagemill.Cache(*(np.zeros((2, 16, 1, 12), F32),) * 2), NotImplementedError, "head_dim = 12"),
        (lambda: pagemill.Cache(*(np.zeros((2, 16, 1, 16), np.int32),) * 2), TypeError, "k.dtype = int32"),
        (lambda: pagemill.Cache(*(np.zeros((2, 16, 1, 16), F32),) * 2, "lanes"), ValueError, "layout = 'lanes'"),
        (lambda: pagemill.new_cache(4, 8, 2, 16), NotImplementedError, "page_size = 8: expected a multiple of 16"),
        (lambda: pagemill.new_cache(4, 0, 2, 16), ValueError, "page_size = 0: expected at least 1"),
        (
            lambda: pagemill.Cache(
                *(np.zeros(2 * 16 * 16 + 1, F32)[1:].reshape(2, 1, 1, 16, 16, 1) for _ in range(1)),
                np.zeros((2, 1, 16, 16, 1), F32),
                "tiles",
            ),
            ValueError,
            "expected alignment to 64 bytes",
        ),
    ],
)
def test_cache(make: Callable[[], Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=re.escape(message)):
        make()


def test_convert() -> None:
    src, dst = pagemill.new_cache(4, 16, 2, 16), pagemill.new_cache(4, 16, 2, 32)
    with pytest.raises(ValueError, match=r"dst.head_dim = 32: expected src.head_dim = 16"):
        pagemill.convert(src, dst)
    with pytest.raises(ValueError, match=r"dst_pages\[1\] = 4: expected a page in \[0, 4\)"):
        pagemill.convert(src, pagemill.new_cache(4, 16, 2, 16), [0, 1], [0, 4])
    with pytest.raises(ValueError, match="dst.k: overlaps src.k"):
        pagemill.convert(src, src, [0], [1])
    with pytest.raises(ValueError, match="dst_pages: 1 pages: expected src_pages' 2"):
        pagemill.convert(src, pagemill.new_cache(4, 16, 2, 16), [0, 1], [0])


def array(*shape: int, dtype: Any = F32) -> np.ndarray:
    return np.ones(shape, dtype)


def read_only(x: np.ndarray) -> np.ndarray:
    x.flags.writeable = False
    return x


BUFFER = np.ones((4, H, 2 * D), F32)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"q": array(3, H, D)}, ValueError, "q.shape[0] = 3: expected at least the plan's 4 tokens"),
        ({"q": array(4, H + 1, D)}, ValueError, "q.shape = [4, 5, 16]: expected [T, H, D] = [T, 4, 16]"),
        ({"q": array(4, H * D)}, ValueError, "q.shape = [4, 64]"),
        ({"q": array(4, H, D, dtype=np.float64)}, TypeError, "q.dtype = float64: expected float32"),
        ({"q": None}, TypeError, "q"),
        ({"q": "text"}, TypeError, "q: a str: expected an array"),
        ({"k_new": None}, TypeError, "k_new: a NoneType: expected an array"),
        ({"v_new": array(4, K, D)[:, :, ::-1]}, ValueError, "v_new: stride -1"),
        ({"k_new": array(4, K, D + 8)}, ValueError, "k_new.shape = [4, 2, 24]"),
        ({"cache": None}, ValueError, "cache = None: expected the cache that the plan is for"),
        ({"cache": pagemill.new_cache(PAGES, P, K, D, F32)}, ValueError, "cache: expected layout, dtype"),
        ({"cache": pagemill.new_cache(PAGES - 1, P, K, D, F32, "rows")}, ValueError, "number of pages"),
        ({"out": array(4, H, D + 8)}, ValueError, "out.shape = [4, 4, 24]: expected [T, H, D] = [4, 4, 16]"),
        ({"out": array(4, H, D, dtype=np.float16)}, TypeError, "out.dtype = float16: expected float32"),
        ({"out": read_only(array(4, H, D))}, ValueError, "out: a read-only array"),
        ({"q": BUFFER[..., :D], "out": BUFFER[..., D - 8 : -8]}, ValueError, "out: overlaps q"),
        ({"lse": array(4, H + 1)}, ValueError, "lse.shape = [4, 5]"),
        ({"lse": array(4, H, dtype=np.float64)}, TypeError, "lse.dtype = float64"),
        ({"scale": 0.0}, ValueError, "scale = 0: expected another number"),
        ({"scale": float("nan")}, ValueError, "scale = nan: expected a finite number"),
        ({"soft_cap": -1.0}, ValueError, "soft_cap = -1: expected a positive number"),
        ({"k_scale": 0.0}, ValueError, "k_scale = 0: expected a positive number"),
        ({"sinks": array(H + 1)}, ValueError, "sinks.shape = [5]: expected [H] = [4]"),
        ({"alibi_slopes": array(H, dtype=np.float64)}, TypeError, "alibi_slopes.dtype = float64: expected float32"),
    ],
)
def test_run(changes: dict[str, Any], error: type[Exception], message: str) -> None:
    cache = pagemill.new_cache(PAGES, P, K, D, F32, "rows")
    cache.k[:], cache.v[:] = 3, 4
    plan = pagemill.plan(**good_plan(cache=cache))
    out, lse = array(4, H, D), array(4, H)
    arguments = {
        "q": array(4, H, D),
        "k_new": array(4, K, D),
        "v_new": array(4, K, D),
        "cache": cache,
        "out": out,
        "lse": lse,
        **changes,
    }
    with pytest.raises(error, match=re.escape(message)):
        plan.run(**arguments)
    assert (cache.k == 3).all()
    assert (cache.v == 4).all()
    assert (out == 1).all()
    assert (lse == 1).all()


def test_halves() -> None:
    cache = pagemill.new_cache(PAGES, P, K, D, F32, "rows")
    reading = pagemill.plan(**good_plan(cache=cache, write_cache=False))
    with pytest.raises(ValueError, match="write_cache = 0: expected a plan that writes the cache"):
        reading.store(array(4, K, D), array(4, K, D), cache)
    encoder = pagemill.plan([0, 4], num_heads=H, num_kv_heads=K, head_dim=D)
    with pytest.raises(ValueError, match="attend: the plan is for attention without a cache"):
        encoder.attend(array(4, H, D), None)


def test_merge() -> None:
    a, lse = array(5, H, D), array(5, H)
    with pytest.raises(ValueError, match="b.shape: expected that of a"):
        pagemill.merge(a, lse, array(4, H, D), lse)
    with pytest.raises(ValueError, match="lse_b.shape: expected all but the last axis of a"):
        pagemill.merge(a, lse, a.copy(), array(5, H, 1))
    with pytest.raises(ValueError, match="b: strides: expected a contiguous array"):
        pagemill.merge(a, lse, array(10, H, D)[::2], lse)
    with pytest.raises(TypeError, match="b.dtype = float16: expected float32"):
        pagemill.merge(a, lse, a.astype(np.float16), lse)
