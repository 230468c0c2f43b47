"""Caches: new ones, and pages from one to another."""

from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from ._core import Cache, convert_pages
from .planning import dtype_name, int32_array

GROUP = 16  # keys that lie together in layout tiles
ALIGNMENT = 64  # bytes


def zeros(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """As np.zeros, aligned as the layout tiles asks; the system hands out zeroed pages when they are first touched."""
    size = int(np.prod(shape)) * dtype.itemsize
    memory = np.zeros(size + ALIGNMENT, np.uint8)
    begin = -memory.ctypes.data % ALIGNMENT
    return memory[begin : begin + size].view(dtype).reshape(shape)


def numpy_dtype(name: str) -> np.dtype:
    if name in ("bfloat16", "float8_e4m3fn", "float8_e5m2"):
        import ml_dtypes  # NumPy alone has none of them

        return np.dtype(getattr(ml_dtypes, name))
    return np.dtype(name)


def new_cache(
    num_pages: int,
    page_size: int,
    num_kv_heads: int,
    head_dim: int,
    dtype: Any = "bfloat16",
    layout: str = "tiles",
) -> Cache:
    """A cache of zeros, in NumPy arrays of its own.

    Args:
      num_pages: pages, which page tables name 0 .. num_pages - 1.
      page_size: P in tokens, 1 to 1024; a multiple of 16 for layout tiles.
      num_kv_heads, head_dim: K and D.
      dtype: float32, float16, or with the package ml_dtypes bfloat16, float8_e4m3fn or float8_e5m2, as name or dtype
        object.
      layout: "tiles", which is faster, with the K and V planes of a head side by side in memory; or "rows", with two
        contiguous arrays [pages, P, K, D].

    Returns:
      The cache; `Cache` tells the shapes of its arrays k and v.

    Raises:
      ValueError, TypeError, NotImplementedError: as `Cache`.
    """
    for name, value in (("num_pages", num_pages), ("page_size", page_size), ("num_kv_heads", num_kv_heads)):
        if value < (name != "num_pages"):
            raise ValueError(f"{name} = {value}: expected at least {int(name != 'num_pages')}")
    element = numpy_dtype(dtype_name(dtype))
    if layout == "rows":
        k, v = (zeros((num_pages, page_size, num_kv_heads, head_dim), element) for _ in range(2))
        return Cache(k, v, layout)
    if layout != "tiles":
        raise ValueError(f"layout = {layout!r}: expected 'rows' or 'tiles'")
    if page_size % GROUP:
        raise NotImplementedError(f"page_size = {page_size}: expected a multiple of {GROUP} (layout tiles)")
    r = 4 // element.itemsize
    if r == 0 or head_dim % r:
        raise ValueError(f"head_dim = {head_dim}, dtype = {element}: expected a multiple of 8, and at most 4 bytes")
    planes = zeros((num_pages, num_kv_heads, 2, page_size * head_dim), element)
    heads = (num_pages, num_kv_heads)
    k = planes[:, :, 0].reshape(*heads, page_size // GROUP, head_dim // r, GROUP, r)
    v = planes[:, :, 1].reshape(*heads, page_size // r, head_dim, r)
    return Cache(k, v, layout)


def convert(src: Cache, dst: Cache, src_pages: ArrayLike | None = None, dst_pages: ArrayLike | None = None) -> None:
    """Copies whole pages, from one layout and dtype to another.

    Args:
      src, dst: caches of the same K, D and P, in memory of their own.
      src_pages, dst_pages: integers [n]: page src_pages[i] of src goes to page dst_pages[i] of dst. dst_pages are
        distinct. None: 0 .. n - 1; both None: all pages of src.

    Raises:
      ValueError: other K, D or P, pages out of range, lists of different lengths, memory that overlaps, a read-only
        dst. Nothing was written.

    Releases the GIL. No other call may use these pages of dst at the same time.
    """
    convert_pages(src, dst, int32_array(src_pages, "src_pages", 1), int32_array(dst_pages, "dst_pages", 1))
