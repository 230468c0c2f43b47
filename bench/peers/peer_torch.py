"""PyTorch's scaled_dot_product_attention."""

from itertools import cycle

import numpy as np
import torch
from torch.nn.functional import scaled_dot_product_attention

from step import Array, D, H, K, Step, huge_copy


def tensor(array: Array) -> torch.Tensor:
    """bf16, shares the array's memory."""
    return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)


class Peer:
    name = "PyTorch SDPA"
    dtype = "bf16"
    version = torch.__version__.split("+")[0]
    ran = "contiguous keys and values, stores nothing; in decode the G heads of a KV head as rows of one matrix"
    settings = "inference mode, OpenMP as it comes, `enable_gqa` in prefill (in decode it is many times slower)"

    def __init__(self, step: Step, threads: int) -> None:
        torch.set_num_threads(threads)
        self.step = step
        self.caches = [tuple(huge_copy(x.swapaxes(1, 2)) for x in (step.k, step.v)) for _ in range(step.copies)]
        self.next_cache = cycle([(tensor(k), tensor(v)) for k, v in self.caches])
        shape = step.shape
        self.decode = shape.queries == 1
        self.heads_first = huge_copy(step.q.swapaxes(1, 2))  # [B, H, queries, D]
        self.q = tensor(self.heads_first)
        if self.decode:
            self.q = self.q.view(shape.batch, K, H // K, D)

    def run(self) -> None:
        keys, values = next(self.next_cache)
        with torch.inference_mode():
            self.out = scaled_dot_product_attention(
                self.q, keys, values, is_causal=not self.decode, enable_gqa=not self.decode
            )

    def output(self) -> Array:
        b, queries, *_ = self.step.q.shape
        return self.out.view(b, H, queries, D).transpose(1, 2).float().numpy()
