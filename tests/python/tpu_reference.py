"""The TPU kernels' own references, out of the tpu-inference wheel, whose package does not import without its host."""

import sys
import sysconfig
import types
from pathlib import Path

folder = Path(sysconfig.get_paths()["purelib"]) / "tpu_inference"
stub = types.ModuleType("tpu_inference")
stub.__path__ = [str(folder)]
# The table of tuned block sizes asks for PyTorch and vLLM, and the references do not ask for it.
tuned = types.ModuleType("tpu_inference.kernels.ragged_paged_attention.v3.tuned_block_sizes_hd64")
tuned.get_tuned_block_sizes = None
sys.modules.update({stub.__name__: stub, tuned.__name__: tuned})

from tpu_inference.kernels.ragged_paged_attention.v3.kernel import (  # noqa: E402
    get_kv_cache_shape,
    ragged_paged_attention,
    ref_ragged_paged_attention,
    static_validate_inputs,
)
from tpu_inference.kernels.ragged_paged_attention.v3.kernel_hd64 import (  # noqa: E402
    get_kv_cache_shape as get_kv_cache_shape_hd64,
)
from tpu_inference.kernels.ragged_paged_attention.v3.kernel_hd64 import (  # noqa: E402
    ragged_paged_attention_hd64,
    ref_ragged_paged_attention_hd64,
)

__all__ = [
    "get_kv_cache_shape",
    "get_kv_cache_shape_hd64",
    "ragged_paged_attention",
    "ragged_paged_attention_hd64",
    "ref_ragged_paged_attention",
    "ref_ragged_paged_attention_hd64",
    "static_validate_inputs",
]
