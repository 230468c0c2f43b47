"""pm_run of the shared library by ctypes: the C call, with its arguments made ready beforehand."""

import ctypes
from ctypes import POINTER, byref, c_char_p, c_float, c_int32, c_int64, c_size_t, c_void_p
from pathlib import Path
from typing import Any

import numpy as np

BF16, ROWS = 1, 1  # of pm_dtype and pm_layout


def struct(name: str, **fields: Any) -> type[ctypes.Structure]:
    """A struct of pagemill.h, whose first field is its size."""
    return type(name, (ctypes.Structure,), {"_fields_": [("struct_size", c_size_t), *fields.items()]})


def strided(name: str, *axes: str) -> dict[str, Any]:
    return {name: c_void_p, **{f"{name.removesuffix('_cache')}_stride_{axis}": c_int64 for axis in axes}}


# fmt: off
Config = struct(
    "pm_config",
    num_heads=c_int32, num_kv_heads=c_int32, head_dim=c_int32, v_head_dim=c_int32, dtype=c_int32, out_dtype=c_int32,
    cache_dtype=c_int32, layout=c_int32, page_size=c_int32, num_pages=c_int64, causal=c_int32, window_left=c_int32,
    window_right=c_int32, write_cache=c_int32, batch_invariant=c_int32, threads=c_int32, isa=c_char_p,
)
Batch = struct(
    "pm_batch",
    num_seqs=c_int32, num_tokens=c_int64, query_start=c_void_p, kv_len=c_void_p, page_table=c_void_p,
    page_table_stride=c_int64, pages_per_seq=c_int32, page_table_rows=c_int32, row_index=c_void_p,
    first_position=c_void_p, causal=c_void_p,
)
Args = struct(
    "pm_args",
    **strided("q", "token", "head"), **strided("k_new", "token", "head"), **strided("v_new", "token", "head"),
    **strided("out", "token", "head"), **strided("lse", "token"),
    **strided("k_cache", "page", "token", "head"), **strided("v_cache", "page", "token", "head"),
    scale=c_float, soft_cap=c_float, q_scale=c_float, k_scale=c_float, v_scale=c_float,
    sinks=c_void_p, alibi_slopes=c_void_p,
)
Stats = struct(
    "pm_plan_stats",
    workspace_bytes=c_size_t, parts=c_int32, items=c_int64, split_items=c_int64, merges=c_int64,
    stored_tokens=c_int64, fused_tokens=c_int64, isa=c_char_p, kernel=c_char_p,
)
# fmt: on


def sized(kind: type[ctypes.Structure], **values: Any) -> ctypes.Structure:
    return kind(struct_size=ctypes.sizeof(kind), **values)


class CCall:
    """A decode in bf16 over [pages, P, 2 K, D], rows K0, V0, K1, V1, ...; calling it is pm_run and nothing else."""

    def __init__(
        self,
        library: Path,
        starts: np.ndarray,  # i32 [B + 1]
        lens: np.ndarray,  # i32 [B]
        table: np.ndarray,  # i32 [B, pages_per_seq]
        tensors: tuple[np.ndarray, np.ndarray, np.ndarray],  # q [B, H, D], k_new, v_new [B, K, D]
        rows: np.ndarray,
        out: np.ndarray,  # [B, H, D]
    ) -> None:
        self._library = ctypes.CDLL(str(library))
        self._library.pm_last_error.restype = c_char_p
        self._kept = starts, lens, table, tensors, rows, out
        q, k_new, v_new = tensors
        pages, page_size, doubled, dim = rows.shape
        config = sized(
            Config,
            num_heads=q.shape[1],
            num_kv_heads=doubled // 2,
            head_dim=dim,
            dtype=BF16,
            out_dtype=BF16,
            cache_dtype=BF16,
            layout=ROWS,
            page_size=page_size,
            num_pages=pages,
            causal=1,
            window_left=-1,
            window_right=-1,
            write_cache=1,
        )
        batch = sized(
            Batch,
            num_seqs=len(lens),
            num_tokens=len(q),
            query_start=starts.ctypes.data,
            kv_len=lens.ctypes.data,
            page_table=table.ctypes.data,
            pages_per_seq=table.shape[1],
        )
        plan, stats = c_void_p(), sized(Stats)
        self._check(self._library.pm_plan_create(byref(plan)))
        self._check(self._library.pm_plan_build(plan, byref(config), byref(batch)))
        self._check(self._library.pm_plan_get_stats(plan, byref(stats)))
        strides = {
            f"{name}_stride_{axis}": stride
            for name in ("k", "v")
            for axis, stride in (("page", page_size * doubled * dim), ("token", doubled * dim), ("head", 2 * dim))
        }
        args = sized(
            Args,
            q=q.ctypes.data,
            k_new=k_new.ctypes.data,
            v_new=v_new.ctypes.data,
            out=out.ctypes.data,
            k_cache=rows.ctypes.data,
            v_cache=rows.ctypes.data + dim * rows.itemsize,
            q_scale=1,
            k_scale=1,
            v_scale=1,
            **strides,
        )
        memory = np.empty(stats.workspace_bytes + 64, np.uint8)
        workspace = c_void_p(memory.ctypes.data + -memory.ctypes.data % 64)
        self._kept += memory, args
        self._arguments = plan, byref(args), workspace, c_size_t(stats.workspace_bytes), None
        self._library.pm_run.argtypes = [c_void_p, POINTER(Args), c_void_p, c_size_t, c_void_p]

    def _check(self, status: int) -> None:
        if status:
            raise RuntimeError(self._library.pm_last_error().decode())

    def __call__(self) -> None:
        self._check(self._library.pm_run(*self._arguments))
