"""What the front ends add to the library's call: the same decode by pm_run, by `Plan.run` and by JAX, in turn; and one
of next to no work.

    PYTHONPATH=build/bindings/python build/venv/bin/python bench/python/calls.py    # after ./test
"""

import argparse
import statistics
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
from c_call import CCall

import pagemill
from pagemill import jax as pm

H, K, D, P = 32, 8, 128, 16  # Llama 3 8B


def medians(functions: list[Callable[[], object]], repetitions: int) -> list[float]:
    """Microseconds of each, measured in turn."""
    times: list[list[float]] = [[] for _ in functions]
    for _ in range(repetitions):
        for function, mine in zip(functions, times, strict=True):
            begin = time.perf_counter()
            function()
            mine.append((time.perf_counter() - begin) * 1e6)
    return [statistics.median(mine[len(mine) // 10 :]) for mine in times]


def compare(seqs: int, kv_len: int, repetitions: int) -> list[float]:
    """A decode of `seqs` sequences by the C call, through NumPy and through JAX, over caches of one shape."""
    rng = np.random.default_rng(1)
    per_seq = -(-kv_len // P)
    shape = pm.get_kv_cache_shape(seqs * per_seq, P, K, D, jnp.bfloat16)
    table = rng.permutation(seqs * per_seq).astype(np.int32).reshape(seqs, per_seq)
    q, k, v = (rng.standard_normal((seqs, heads, D), np.float32).astype(ml_dtypes.bfloat16) for heads in (H, K, K))

    rows = np.zeros((seqs * per_seq, P, 2 * K, D), ml_dtypes.bfloat16)
    rows.view(np.uint16)[:] = 0x3E00  # not zeros that share one page of memory
    cache = pagemill.Cache(rows[:, :, 0::2], rows[:, :, 1::2])
    starts, lens = np.arange(seqs + 1, dtype=np.int32), np.full(seqs, kv_len, np.int32)
    plan = pagemill.plan(starts, lens, table, cache, num_heads=H)
    out = np.empty_like(q)
    out_c = np.empty_like(q)
    run_c = CCall(kv_len, table, (q, k, v), rows, out_c)

    kv_cache = jnp.asarray(rows.reshape(shape))
    metadata = [jnp.asarray(x) for x in (lens, table.reshape(-1), starts, np.array([seqs] * 3, np.int32))]
    tensors = [jnp.asarray(x) for x in (q, k, v)]
    step = jax.jit(
        lambda cache, q, k, v, *m: pm.ragged_paged_attention(q, k, v, cache, *m, sm_scale=D**-0.5), donate_argnums=0
    )

    def run_jax() -> jax.Array:
        nonlocal kv_cache
        result, kv_cache = step(kv_cache, *tensors, *metadata)
        return jax.block_until_ready(result)

    def run_numpy() -> None:
        plan.run(q, k, v, cache, out=out)

    run_c(), run_numpy()
    for other in (out, np.asarray(run_jax())):
        np.testing.assert_array_equal(other.view(np.uint16), out_c.view(np.uint16))
    return medians([run_c, run_numpy, run_jax], repetitions)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repetitions", type=int, default=40)
    options = parser.parse_args()
    for seqs, kv_len, repetitions in ((1, 16, 50 * options.repetitions), (16, 4096, options.repetitions)):
        c, numpy, through_jax = compare(seqs, kv_len, repetitions)
        print(f"decode {seqs} x {kv_len}: C {c:.1f} us, NumPy {numpy / c:.3f} of it, JAX {through_jax / c:.3f}")
        print(f"    added: NumPy {numpy - c:.1f} us, JAX {through_jax - c:.1f} us")


if __name__ == "__main__":
    main()
