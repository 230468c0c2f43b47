"""The step of attention that Pagemill and a peer both compute: its shape, its inputs, its results in fp64."""

import mmap
from dataclasses import dataclass
from math import ceil, prod
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import DTypeLike, NDArray

Array = NDArray[Any]

H, K, D = 32, 8, 128  # Llama 3 8B: query heads, KV heads, head dim
G = H // K

DTYPES: dict[str, np.dtype[Any]] = {
    "bf16": np.dtype(ml_dtypes.bfloat16),
    "f16": np.dtype(np.float16),
    "f32": np.dtype(np.float32),
}


@dataclass(frozen=True)
class Shape:
    name: str
    batch: int  # B sequences
    keys: int  # S of each, the new tokens included
    queries: int  # new tokens of each, the last ones

    @property
    def past(self) -> int:
        return self.keys - self.queries

    @property
    def flops(self) -> float:
        """4 D per visible (query, head, key)."""
        visible = self.queries * self.past + self.queries * (self.queries + 1) // 2
        return 4.0 * D * H * self.batch * visible

    def kv_bytes(self, dtype: str) -> int:
        """Keys and values, each once."""
        return 2 * self.batch * self.keys * K * D * DTYPES[dtype].itemsize


SHAPES = {
    "decode": Shape("decode 16 x 4096", 16, 4096, 1),
    "prefill": Shape("prefill 1 x 4096", 1, 4096, 4096),
    "prefill8": Shape("prefill 8 x 512", 8, 512, 512),
}


def huge(shape: tuple[int, ...], dtype: DTypeLike) -> Array:
    """A zeroed array on huge pages where the system grants them: what the peaks are measured on."""
    page = 2 << 20
    size = prod(shape) * np.dtype(dtype).itemsize
    memory = mmap.mmap(-1, size + page, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    memory.madvise(mmap.MADV_HUGEPAGE)
    raw = np.frombuffer(memory, np.uint8)
    start = -raw.ctypes.data % page
    return raw[start : start + size].view(dtype).reshape(shape)


def huge_copy(array: Array, dtype: DTypeLike | None = None) -> Array:
    copy = huge(array.shape, dtype or array.dtype)
    copy[...] = array
    return copy


class Step:
    """Inputs of one step, N(0, 1). The new tokens are the last ones of each sequence."""

    def __init__(self, shape: Shape, dtype: str, turnover: int) -> None:
        """turnover: bytes of keys and values that are read before one comes back."""
        random = np.random.default_rng(1)

        def normal(*dims: int) -> Array:
            array = huge(dims, DTYPES[dtype])
            for sequence in array:
                sequence[...] = random.standard_normal(sequence.shape, np.float32)
            return array

        self.shape, self.dtype = shape, dtype
        self.copies = ceil(turnover / shape.kv_bytes(dtype))  # of the cache, taken in turn
        self.q = normal(shape.batch, shape.queries, H, D)
        self.k = normal(shape.batch, shape.keys, K, D)
        self.v = normal(shape.batch, shape.keys, K, D)
        self.k_past, self.k_new = (huge_copy(x) for x in np.split(self.k, [shape.past], axis=1))
        self.v_past, self.v_new = (huge_copy(x) for x in np.split(self.v, [shape.past], axis=1))

    def shuffled_pages(self, page_size: int) -> Array:
        """[B, pages of a sequence] int32: each page of the cache once, in random order."""
        pages = ceil(self.shape.keys / page_size)
        order = np.random.default_rng(2).permutation(self.shape.batch * pages)
        return order.astype(np.int32).reshape(self.shape.batch, pages)

    def reference(self, b: int, i: int, h: int) -> tuple[Array, Array]:
        """Row of query i of sequence b and query head h in fp64, and sum_j p_j |v_j|."""
        seen = self.shape.past + i + 1
        k, v = (x[b, :seen, h // G].astype(np.float64) for x in (self.k, self.v))
        scores = k @ self.q[b, i, h].astype(np.float64) / D**0.5
        p = np.exp(scores - scores.max())
        p /= p.sum()
        return p @ v, p @ np.abs(v)
