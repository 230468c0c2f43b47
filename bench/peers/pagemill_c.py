"""Pagemill through its C ABI, include/pagemill/pagemill.h. The structs end where nothing but defaults follows."""

import ctypes as c
from collections.abc import Iterator
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np

from step import DTYPES, Array, D, H, K, Step, huge

BUILD = Path(__file__).resolve().parents[2] / "build"
PM_DTYPES = {"f32": 0, "bf16": 1, "f16": 2}
PAGE_SIZE = 16  # tokens

library = c.CDLL(str(BUILD / "src/libpagemill.so"))
library.pm_last_error.restype = library.pm_version.restype = c.c_char_p
VERSION = library.pm_version().decode()


def check(status: int) -> None:
    if status:
        raise RuntimeError(library.pm_last_error().decode())


class Struct(c.Structure):
    """One of the ABI's: begins with its size."""

    def __init__(self, **fields: Any) -> None:
        super().__init__(struct_size=c.sizeof(self), **fields)


def fields(kind: Any, names: str) -> Iterator[tuple[str, Any]]:
    return ((name, kind) for name in names.split())


class Config(Struct):
    _fields_ = [
        ("struct_size", c.c_size_t),
        *fields(c.c_int32, "num_heads num_kv_heads head_dim v_head_dim dtype out_dtype cache_dtype layout page_size"),
        ("num_pages", c.c_int64),
        *fields(c.c_int32, "causal window_left window_right write_cache batch_invariant threads"),
    ]


class Batch(Struct):
    _fields_ = [
        ("struct_size", c.c_size_t),
        ("num_seqs", c.c_int32),
        ("num_tokens", c.c_int64),
        *fields(c.c_void_p, "query_start kv_len page_table"),
        ("page_table_stride", c.c_int64),
        ("pages_per_seq", c.c_int32),
    ]


class Args(Struct):
    _fields_ = [
        ("struct_size", c.c_size_t),
        *(
            (f"{name}{part}", c.c_int64 if part else c.c_void_p)
            for name in ("q", "k_new", "v_new", "out")
            for part in ("", "_stride_token", "_stride_head")
        ),
        ("lse", c.c_void_p),
        ("lse_stride_token", c.c_int64),
        *(
            (f"{name}{part}", c.c_int64 if part else c.c_void_p)
            for name in ("k", "v")
            for part in ("_cache", "_stride_page", "_stride_token", "_stride_head")
        ),
    ]


class Stats(Struct):
    _fields_ = [
        ("struct_size", c.c_size_t),
        ("workspace_bytes", c.c_size_t),
        ("parts", c.c_int32),
        *fields(c.c_int64, "items split_items merges stored_tokens fused_tokens"),
        *fields(c.c_char_p, "isa kernel"),
    ]


class IsaInfo(Struct):
    _fields_ = [
        ("struct_size", c.c_size_t),
        ("name", c.c_char_p),
        ("available", c.c_int32),
        ("selected", c.c_int32),
    ]


class Executor(Struct):
    _fields_ = [("struct_size", c.c_size_t), *fields(c.c_void_p, "context parallel_for")]


def default_threads() -> int:
    return int(library.pm_default_threads())


def selected_isa() -> str:
    """Whose kernels run what they have kernels for; other dtypes run on an ISA that it includes."""
    for index in range(library.pm_isa_count()):
        info = IsaInfo()
        check(library.pm_isa_get(index, c.byref(info)))
        if info.selected:
            return str(info.name.decode())
    raise RuntimeError("no ISA is selected")


def make_executor(threads: int) -> Executor:
    """Of a pool that lives as long as the process."""
    pool, executor = c.c_void_p(), Executor()
    check(library.pm_pool_create(threads, c.byref(pool)))
    check(library.pm_pool_executor(pool, c.byref(executor)))
    return executor


class Plan:
    """Of `queries` new tokens in each sequence of `keys`, with its workspace."""

    def __init__(self, config: Config, pages: Array, queries: int, keys: int) -> None:
        num_seqs = len(pages)
        query_start = np.arange(num_seqs + 1, dtype=np.int32) * np.int32(queries)
        kv_len = np.full(num_seqs, keys, np.int32)
        batch = Batch(
            num_seqs=num_seqs,
            num_tokens=num_seqs * queries,
            query_start=query_start.ctypes.data,
            kv_len=kv_len.ctypes.data,
            page_table=pages.ctypes.data,
            pages_per_seq=pages.shape[1],
        )
        self.handle, self.stats = c.c_void_p(), Stats()
        check(library.pm_plan_create(c.byref(self.handle)))
        check(library.pm_plan_build(self.handle, c.byref(config), c.byref(batch)))
        check(library.pm_plan_get_stats(self.handle, c.byref(self.stats)))
        self.workspace = huge((self.stats.workspace_bytes,), np.uint8)

    def __del__(self) -> None:
        library.pm_plan_destroy(self.handle)

    def call(self, function: Any, args: Args, executor: Executor) -> None:
        workspace = c.c_void_p(self.workspace.ctypes.data)
        size = c.c_size_t(self.stats.workspace_bytes)
        check(function(self.handle, c.byref(args), workspace, size, c.byref(executor)))


class Pagemill:
    def __init__(self, step: Step, threads: int, executor: Executor) -> None:
        shape, dtype = step.shape, PM_DTYPES[step.dtype]
        pages = step.shuffled_pages(PAGE_SIZE)
        plane = PAGE_SIZE * D * DTYPES[step.dtype].itemsize
        config = Config(
            num_heads=H, num_kv_heads=K, head_dim=D, dtype=dtype, out_dtype=dtype, cache_dtype=dtype,
            page_size=PAGE_SIZE, num_pages=pages.size, causal=1, window_left=-1, window_right=-1,
            write_cache=1, threads=threads,
        )  # fmt: skip
        self.step, self.executor = step, executor
        self.caches = huge((step.copies, pages.size, K, 2, plane), np.uint8)
        self.out = huge(step.q.shape, DTYPES[step.dtype])
        self.plan = Plan(config, pages, shape.queries, shape.keys)
        self.args = []
        for cache in self.caches:
            where = {"k_cache": cache.ctypes.data, "v_cache": cache.ctypes.data + plane}
            if shape.past:
                past = Args(k_new=step.k_past.ctypes.data, v_new=step.v_past.ctypes.data, **where)
                Plan(config, pages, shape.past, shape.past).call(library.pm_store, past, executor)
            new = {"k_new": step.k_new.ctypes.data, "v_new": step.v_new.ctypes.data}
            self.args.append(Args(q=step.q.ctypes.data, out=self.out.ctypes.data, **new, **where))
        self.next_args = cycle(self.args)
        self.isa = self.plan.stats.isa.decode()
        self.kernel = self.plan.stats.kernel.decode()

    def run(self) -> None:
        self.plan.call(library.pm_run, next(self.next_args), self.executor)

    def output(self) -> Array:
        return self.out
