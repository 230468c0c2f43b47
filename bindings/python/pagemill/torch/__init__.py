"""Ragged paged attention for PyTorch on CPUs: custom operators, a paged cache, and attention for HuggingFace models.

    torch.ops.pagemill.attention   stores the step's new keys and values and attends
    torch.ops.pagemill.store       stores alone
    torch.ops.pagemill.merge       two results over disjoint keys into one, by lse
    PagedKVCache                   pages of many sequences, for all layers
    register_transformers()        attn_implementation="pagemill"

The operators have fake kernels (torch.compile traces through them), work in inference mode, mutate the caches in place
and run on the OpenMP threads of ATen, as many as torch.get_num_threads(). They have no gradient.
"""

from .operators import attention, merge, store
from .paged_cache import PagedKVCache, Step
from .transformers import register_transformers, transformers_attention

__all__ = [
    "PagedKVCache",
    "Step",
    "attention",
    "merge",
    "register_transformers",
    "store",
    "transformers_attention",
]
