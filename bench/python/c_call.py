"""pm_run by ctypes, with its arguments made ready beforehand, on memory of the caller's."""

import sys
from ctypes import byref, c_size_t, c_void_p
from pathlib import Path

import numpy as np

sys.path.append(str(Path(__file__).resolve().parents[1] / "peers"))
from pagemill_c import PM_DTYPES, Args, Config, Plan, check, library

ROWS = 1  # of pm_layout


class CCall:
    """A decode in bf16 over [pages, P, 2 K, D], rows K0, V0, K1, V1, ...; calling it is pm_run and nothing else."""

    def __init__(
        self,
        kv_len: int,  # of every sequence
        table: np.ndarray,  # i32 [B, pages_per_seq]
        tensors: tuple[np.ndarray, np.ndarray, np.ndarray],  # q [B, H, D], k_new, v_new [B, K, D]
        rows: np.ndarray,
        out: np.ndarray,  # [B, H, D]
    ) -> None:
        q, k_new, v_new = tensors
        pages, page_size, doubled, dim = rows.shape
        bf16 = PM_DTYPES["bf16"]
        config = Config(
            num_heads=q.shape[1], num_kv_heads=doubled // 2, head_dim=dim, dtype=bf16, out_dtype=bf16, cache_dtype=bf16,
            layout=ROWS, page_size=page_size, num_pages=pages, causal=1, window_left=-1, window_right=-1, write_cache=1,
        )  # fmt: skip
        self._plan = Plan(config, table, 1, kv_len)
        strides = {
            f"{name}_stride_{axis}": stride
            for name in ("k", "v")
            for axis, stride in (("page", page_size * doubled * dim), ("token", doubled * dim), ("head", 2 * dim))
        }
        args = Args(
            q=q.ctypes.data,
            k_new=k_new.ctypes.data,
            v_new=v_new.ctypes.data,
            out=out.ctypes.data,
            k_cache=rows.ctypes.data,
            v_cache=rows.ctypes.data + dim * rows.itemsize,
            **strides,
        )
        workspace = self._plan.workspace
        self._kept = tensors, rows, out, args
        self._arguments = (
            self._plan.handle,
            byref(args),
            c_void_p(workspace.ctypes.data),
            c_size_t(workspace.nbytes),
            None,
        )

    def __call__(self) -> None:
        check(library.pm_run(*self._arguments))
