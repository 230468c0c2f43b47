"""ggml's flash attention operator, the one of llama.cpp, through its C functions."""

import ctypes as c
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np

from step import Array, D, Step, huge, huge_copy

LIBRARIES = Path(__file__).resolve().parents[2] / "build/peers/ggml/bin"
TYPES = {np.dtype(np.float32): 0, np.dtype(np.float16): 1}  # enum ggml_type
CONTEXT_BYTES = 1 << 20  # of tensor headers and a graph

if not LIBRARIES.exists():
    raise ModuleNotFoundError(f"no {LIBRARIES}")
base, cpu = (c.CDLL(str(LIBRARIES / f"libggml-{part}.so"), c.RTLD_GLOBAL) for part in ("base", "cpu"))
base.ggml_version.restype = c.c_char_p


class InitParams(c.Structure):
    _fields_ = [("mem_size", c.c_size_t), ("mem_buffer", c.c_void_p), ("no_alloc", c.c_bool)]


def made_by(function: Any, *args: Any) -> c.c_void_p:
    """The object whose address the function returns."""
    function.restype = c.c_void_p
    return c.c_void_p(function(*args))


class Peer:
    name = "ggml FLASH_ATTN_EXT"
    dtype = "f16"
    version = base.ggml_version().decode()
    ran = "f16 keys, values and mask, f32 q; contiguous keys and values, stores nothing"
    settings = "built with `-march=native` and OpenMP; no mask in decode"

    def __init__(self, step: Step, threads: int) -> None:
        shape = step.shape
        self.backend = made_by(cpu.ggml_backend_cpu_init)
        cpu.ggml_backend_cpu_set_n_threads(self.backend, threads)
        self.q = huge_copy(step.q.swapaxes(1, 2), np.float32)  # [B, H, queries, D]
        self.out = huge(step.q.shape, np.float32)
        self.mask = None  # a decode sees all keys
        if shape.queries > 1:
            seen = np.tri(shape.queries, shape.keys, shape.past, dtype=bool)
            self.mask = huge_copy(np.where(seen, np.float16(0), np.float16(-np.inf)))
        self.caches = [tuple(huge_copy(x.swapaxes(1, 2)) for x in (step.k, step.v)) for _ in range(step.copies)]
        self.next_graph = cycle([self.make_graph(*cache) for cache in self.caches])

    def make_graph(self, keys: Array, values: Array) -> c.c_void_p:
        context = made_by(base.ggml_init, InitParams(CONTEXT_BYTES, None, True))

        def placed(made: c.c_void_p, array: Array) -> c.c_void_p:
            where = c.c_void_p(array.ctypes.data)
            buffer = made_by(base.ggml_backend_cpu_buffer_from_ptr, where, c.c_size_t(array.nbytes))
            if base.ggml_backend_tensor_alloc(buffer, made, where):
                raise RuntimeError("ggml_backend_tensor_alloc failed")
            return made

        def given(array: Array) -> c.c_void_p:
            dims = (c.c_int64(n) for n in array.shape[::-1])
            return placed(made_by(base.ggml_new_tensor_4d, context, TYPES[array.dtype], *dims), array)

        mask = given(self.mask[None, None]) if self.mask is not None else None
        scale, max_bias, soft_cap = (c.c_float(x) for x in (D**-0.5, 0, 0))
        qkv = (given(array) for array in (self.q, keys, values))
        out = made_by(base.ggml_flash_attn_ext, context, *qkv, mask, scale, max_bias, soft_cap)
        graph = made_by(base.ggml_new_graph, context)
        base.ggml_build_forward_expand(graph, placed(out, self.out))
        return graph

    def run(self) -> None:
        if base.ggml_backend_graph_compute(self.backend, next(self.next_graph)):
            raise RuntimeError("ggml_backend_graph_compute failed")

    def output(self) -> Array:
        return self.out
