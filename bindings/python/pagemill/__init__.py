"""Ragged paged attention for CPUs: the attention step of an LLM serving engine.

One call takes a whole step (sequences that decode one token, sequences that prefill thousands, and everything
between), stores the step's new keys and values in a paged cache, and attends to the cache:

    cache = pagemill.new_cache(num_pages, page_size, num_kv_heads, head_dim)   # one per layer
    plan = pagemill.plan(query_start, kv_len, page_table, cache, num_heads=H)  # one per step
    out = plan.run(q, k_new, v_new, cache)                                     # for every layer

Arrays are NumPy's (bfloat16 by ml_dtypes), or any in the CPU's memory that offer DLPack; none is copied. Letters:
B sequences, T tokens of the step, H query heads, K KV heads, D head dim, P page size in tokens, S keys of a sequence.

`pagemill.jax` and `pagemill.torch` are the front ends for JAX and PyTorch. Errors: ValueError for a value that does
not fit, TypeError for a type or dtype, NotImplementedError for what is legal but not supported, MemoryError; the
message names argument, value and what was expected, and nothing was written.

Environment: PAGEMILL_ISA=<name> forces an ISA, PAGEMILL_LOG=dispatch,tune reports choices on stderr, PAGEMILL_TUNE
names a file of the cost model.
"""

from ._core import Cache, Plan, version
from .caches import convert, new_cache
from .machine import info
from .partial import merge
from .planning import plan

__all__ = ["Cache", "Plan", "convert", "info", "merge", "new_cache", "plan"]
__version__: str = version()
