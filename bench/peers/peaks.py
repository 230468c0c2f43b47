"""The measured peaks of the machine, tools/peaks.h by way of peaks_c.cc."""

import ctypes as c

import numpy as np

from pagemill_c import BUILD, PM_DTYPES, Executor
from step import Array

library = c.CDLL(str(BUILD / "bench/peers/libpagemill_peaks.so"))
library.peaks_create.restype = c.c_void_p
library.peaks_last_level_cache_bytes.restype = c.c_size_t


def last_level_cache_bytes() -> int:
    return int(library.peaks_last_level_cache_bytes())


class Peaks:
    def __init__(self, executor: Executor, threads: int, isa: str, dtype: str) -> None:
        self.executor = executor
        made = library.peaks_create(c.byref(executor), threads, isa.encode(), PM_DTYPES[dtype])
        self.handle = c.c_void_p(made)

    def __del__(self) -> None:
        library.peaks_destroy(self.handle)

    def slice(self) -> Array:
        """Bytes/s and flop/s."""
        rates = (c.c_double * 2)()
        library.peaks_slice(self.handle, rates)
        return np.array(rates)
