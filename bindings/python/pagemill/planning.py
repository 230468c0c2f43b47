"""Metadata of a step, from what users have to what the library reads."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from ._core import Cache, Plan


def dtype_name(dtype: Any) -> str:
    """Name of a dtype of NumPy, ml_dtypes, JAX or PyTorch, or the name itself."""
    if isinstance(dtype, str):
        return dtype
    text = str(dtype)
    return text.removeprefix("torch.") if text.startswith("torch.") else np.dtype(dtype).name


def int32_array(values: ArrayLike | None, name: str, dims: int) -> np.ndarray | None:
    """The values as an int32 array with contiguous rows; copied only if they are not."""
    if values is None:
        return None
    array = np.asarray(values)
    if array.size == 0:
        array = array.astype(np.int32)
    if array.dtype.kind not in "iu":
        raise TypeError(f"{name}.dtype = {array.dtype}: expected integers")
    if array.ndim != dims:
        raise ValueError(f"{name}.shape = {list(array.shape)}: expected {dims} axes")
    if array.dtype != np.int32:
        limits = np.iinfo(np.int32)
        if array.size and (array.min() < limits.min or array.max() > limits.max):
            raise ValueError(f"{name}: values from {array.min()} to {array.max()}: expected them to fit int32")
        array = array.astype(np.int32)
    rows_lie_well = array.strides[-1] == array.itemsize and (dims == 1 or array.strides[0] > 0)
    return array if rows_lie_well else np.ascontiguousarray(array)


def new_slots(
    query_start: np.ndarray,
    kv_len: np.ndarray,
    page_table: np.ndarray,
    page_size: int,
    row_index: np.ndarray | None = None,
) -> np.ndarray | None:
    """Where a plan with this metadata stores the step's new tokens: i64 [T] of page * page_size + place in the page.

    None where kv_len or the table has no place for them.
    """
    begins, ends = query_start[:-1], query_start[1:]
    rows = np.arange(len(begins)) if row_index is None else row_index
    positions = np.arange(query_start[-1]) + np.repeat(kv_len - ends, ends - begins)
    if len(positions) and not 0 <= positions.min() <= positions.max() < page_table.shape[1] * page_size:
        return None
    pages = page_table[np.repeat(rows, ends - begins), positions // page_size]
    return pages.astype(np.int64) * page_size + positions % page_size


def window(keys: int | None) -> int:
    return -1 if keys is None else keys


def plan(
    query_start: ArrayLike,
    kv_len: ArrayLike | None = None,
    page_table: ArrayLike | None = None,
    cache: Cache | None = None,
    *,
    num_heads: int,
    num_kv_heads: int | None = None,
    head_dim: int | None = None,
    dtype: Any = None,
    out_dtype: Any = None,
    causal: bool | Sequence[bool] | np.ndarray = True,
    window_left: int | None = None,
    window_right: int | None = None,
    write_cache: bool = True,
    first_position: ArrayLike | None = None,
    row_index: ArrayLike | None = None,
    batch_invariant: bool = False,
    threads: int = 0,
    isa: str | None = None,
    openmp: bool = False,
) -> Plan:
    """Plans a step. All metadata is copied; the plan serves every layer with caches of this geometry.

    Args:
      query_start: integers [B + 1], rising from 0: tokens query_start[b] to query_start[b + 1] of q are sequence b's.
      kv_len: integers [B], keys of each sequence, its new tokens included. None without a cache.
      page_table: integers [B, pages_per_seq] (or [rows, pages_per_seq] with row_index): page p of sequence b holds its
        keys p * P to p * P + P - 1. Entries that no query sees are neither read nor checked. None without a cache.
      cache: the cache of one of the layers, for layout, dtype, K, D, P and the number of pages; the plan keeps no
        reference to it. None: each sequence attends to its own k_new and v_new (encoders).
      num_heads: H, a multiple of K, at most 128 K.
      num_kv_heads, head_dim: K and D where there is no cache to tell them. D is a multiple of 8 from 16 to 512.
      dtype: of q, k_new and v_new: float32, bfloat16 or float16, as name or dtype object. None: the cache's,
        bfloat16 for one of fp8, float32 without a cache.
      out_dtype: dtype, or float32. None: dtype.
      causal: whether a query sees only keys up to its position kv_len[b] - q_len[b] + i: for all, or [B] booleans.
      window_left, window_right: how many keys before and after its position a query sees; None: no bound.
      write_cache: False: k_new and v_new are ignored and the cache is only read (layers that share one).
      first_position: integers [B], position of each sequence's first query. None: kv_len[b] - q_len[b].
      row_index: integers [B], row of page_table of each sequence. None: 0 .. B - 1.
      batch_invariant: the bits of a row of out depend on its position, its q, the keys and values that it sees and the
        options alone, not on its neighbours, chunking or the number of threads.
      threads: parts to plan for; 0: what affinity mask and cgroup quota allow.
      isa: forces an ISA by name, such as "avx2". None: PAGEMILL_ISA, or the best of the machine.
      openmp: runs use the OpenMP threads of PyTorch, which has been imported, instead of the library's pool.

    Returns:
      The plan, which never changes and may be run by several threads at once.

    Raises:
      ValueError: metadata that contradict each other, pages out of range, two sequences that write one page.
      TypeError: metadata that are no integers, a dtype of no floats.
      NotImplementedError: a head dim, group, page size or ISA that this build or machine does not have.
    """
    if cache is None and (num_kv_heads is None or head_dim is None):
        raise ValueError("cache = None: expected num_kv_heads and head_dim")
    if cache is not None:
        for name, given, known in (
            ("num_kv_heads", num_kv_heads, cache.num_kv_heads),
            ("head_dim", head_dim, cache.head_dim),
        ):
            if given is not None and given != known:
                raise ValueError(f"{name} = {given}: expected the cache's {known}")
    if dtype is None:
        dtype = "float32" if cache is None else "bfloat16" if cache.dtype.startswith("float8") else cache.dtype
    dtype = dtype_name(dtype)
    causal_of = None
    if not isinstance(causal, (bool, np.bool_)):
        causal_of = np.ascontiguousarray(causal, np.bool_).view(np.uint8)
    return Plan(
        int32_array(query_start, "query_start", 1),
        int32_array(kv_len, "kv_len", 1),
        int32_array(page_table, "page_table", 2),
        cache,
        int32_array(first_position, "first_position", 1),
        int32_array(row_index, "row_index", 1),
        causal_of,
        num_heads=num_heads,
        num_kv_heads=num_kv_heads or 0,
        head_dim=head_dim or 0,
        dtype=dtype,
        out_dtype=dtype if out_dtype is None else dtype_name(out_dtype),
        causal=causal_of is not None or bool(causal),
        window_left=window(window_left),
        window_right=window(window_right),
        write_cache=write_cache,
        batch_invariant=batch_invariant,
        threads=threads,
        isa=isa or "",
        openmp=openmp,
    )
