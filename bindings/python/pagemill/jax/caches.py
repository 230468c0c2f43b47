"""Shapes of the TPU kernels' caches."""

from typing import Any

import numpy as np

LANES = 128


def align_to(x: int, multiple: int) -> int:
    return -(-x // multiple) * multiple


def packing(dtype: Any) -> int:
    """Elements of a 32-bit word."""
    return 4 // np.dtype(dtype).itemsize


def get_kv_cache_shape(
    total_num_pages: int, page_size: int, actual_num_kv_heads: int, actual_head_dim: int, kv_dtype: Any
) -> tuple[int, int, int, int, int]:
    """Shape of the cache of `ragged_paged_attention`: [pages, page_size, align(2 K, pack) / pack, pack, align(D, 128)]
    with pack = 4 / itemsize. Rows are K and V of each head in turn.
    """
    pack = packing(kv_dtype)
    rows = align_to(2 * actual_num_kv_heads, pack)
    return total_num_pages, page_size, rows // pack, pack, align_to(actual_head_dim, LANES)


def get_kv_cache_shape_hd64(
    total_num_pages: int, page_size: int, actual_num_kv_heads: int, kv_dtype: Any
) -> tuple[int, int, int, int, int]:
    """Shape of the cache of `ragged_paged_attention_hd64`: [pages, page_size, align(K, pack) / pack, pack, 128] with
    pack = 4 / itemsize. A row is the 64 elements of a head's K, then those of its V.
    """
    pack = packing(kv_dtype)
    return total_num_pages, page_size, align_to(actual_num_kv_heads, pack) // pack, pack, LANES
