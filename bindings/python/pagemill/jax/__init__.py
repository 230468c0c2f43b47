"""Ragged paged attention for JAX on CPUs: the calls of the TPU kernels, with their arguments, caches and results.

`ragged_paged_attention` and `ragged_paged_attention_hd64` take the place of the functions of these names of
tpu-inference's `ragged_paged_attention/v3`. They work under jit, lax.scan and shard_map; a donated cache is updated in
place; work runs on XLA's threads. docs/jax.md tells where they differ from the TPU kernels.
"""

from .attention import ragged_paged_attention, ragged_paged_attention_hd64
from .caches import get_kv_cache_shape, get_kv_cache_shape_hd64

__all__ = [
    "get_kv_cache_shape",
    "get_kv_cache_shape_hd64",
    "ragged_paged_attention",
    "ragged_paged_attention_hd64",
]
