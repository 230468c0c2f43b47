"""The custom operators: against the formula in float64, under torch.compile and inference mode, on ATen's threads."""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
from steps import Step, attention, filled_rows, random_step, worst_error

import pagemill
from pagemill import torch as pt
from pagemill.torch import operators

MIXED = [(1, 40), (1, 1), (24, 24), (5, 90), (33, 33)]
DTYPES = {torch.float32: np.float32, torch.bfloat16: ml_dtypes.bfloat16, torch.float16: np.float16}
FP8 = {torch.float8_e4m3fn: ml_dtypes.float8_e4m3fn, torch.float8_e5m2: ml_dtypes.float8_e5m2}


def tensor(x: np.ndarray) -> torch.Tensor:
    if x.dtype == ml_dtypes.bfloat16:
        return torch.from_numpy(x.view(np.uint16).copy()).view(torch.bfloat16)
    return torch.from_numpy(x.copy())


def array(x: torch.Tensor) -> np.ndarray:
    return x.view(torch.uint16).numpy().view(ml_dtypes.bfloat16) if x.dtype == torch.bfloat16 else x.numpy()


def arguments(step: Step, dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
    k, v = filled_rows(step, DTYPES[dtype])
    arrays = (step.q, step.k_new, step.v_new, k, v, step.query_start, step.kv_len, step.page_table)
    return tuple(tensor(x) for x in arrays)


def expect_close(step: Step, out: torch.Tensor, lse: torch.Tensor, dtype: torch.dtype) -> None:
    expected = attention(step, DTYPES[dtype])
    assert worst_error(array(out), expected, products_bf16=dtype == torch.bfloat16) <= 1
    np.testing.assert_allclose(lse.numpy(), expected.lse, atol=2e-2 if dtype == torch.bfloat16 else 1e-3)


@pytest.mark.parametrize("fp8", FP8)
@pytest.mark.parametrize("q_dtype", [torch.bfloat16, torch.float32])
def test_fp8_caches(rng: np.random.Generator, fp8: torch.dtype, q_dtype: torch.dtype) -> None:
    scales = {"q_scale": 0.5, "k_scale": 0.25, "v_scale": 0.375}
    step = random_step(rng, DTYPES[q_dtype], MIXED, **scales)
    k, v = (torch.from_numpy(x.view(np.uint8)).view(fp8) for x in filled_rows(step, FP8[fp8]))
    q, k_new, v_new, _, _, *metadata = arguments(step, q_dtype)
    out, lse = torch.ops.pagemill.attention(q, k_new, v_new, k, v, *metadata, **scales)
    bf16 = q_dtype == torch.bfloat16
    expected = attention(step, FP8[fp8])
    assert worst_error(array(out), expected, products_bf16=bf16) <= 1
    np.testing.assert_allclose(lse.numpy(), expected.lse, atol=2e-2 if bf16 else 1e-3)
    stored, _ = filled_rows(step, FP8[fp8], through=True)
    np.testing.assert_array_equal(k.float().numpy(), stored.astype(np.float32))

    cache = pt.PagedKVCache(1, 8, 16, *k_new.shape[1:], dtype=fp8)
    seq = cache.add()
    whole = cache.attend(0, q[:40], k_new[:40], v_new[:40], cache.extend([seq], [40]), **scales)
    chunks = pt.PagedKVCache(1, 8, 16, *k_new.shape[1:], dtype=fp8, layout="rows")
    seq = chunks.add()
    parts = [
        chunks.attend(0, q[a:b], k_new[a:b], v_new[a:b], chunks.extend([seq], [b - a]), **scales)
        for a, b in ((0, 7), (7, 39), (39, 40))
    ]
    torch.testing.assert_close(torch.cat(parts).float(), whole.float(), rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("options", [{}, {"window_left": 9, "soft_cap": 3.0, "scale": 0.2}])
def test_attention(rng: np.random.Generator, dtype: torch.dtype, options: dict[str, Any]) -> None:
    step = random_step(rng, DTYPES[dtype], MIXED, **options)
    tensors = arguments(step, dtype)
    out, lse = torch.ops.pagemill.attention(*tensors, **options)
    expect_close(step, out, lse, dtype)
    expected, _ = filled_rows(step, DTYPES[dtype], through=True)
    np.testing.assert_array_equal(array(tensors[3]).astype(np.float32), expected.astype(np.float32))


def test_store_and_attend_and_merge(rng: np.random.Generator) -> None:
    step = random_step(rng, np.float32, MIXED)
    q, k_new, v_new, *rest = arguments(step, torch.float32)
    torch.ops.pagemill.store(k_new, v_new, *rest)
    out, lse = torch.ops.pagemill.attention(q, None, None, *rest, write_cache=False)
    expect_close(step, out, lse, torch.float32)
    merged, _ = torch.ops.pagemill.merge(out, lse, torch.full_like(out, 9), torch.full_like(lse, -torch.inf))
    torch.testing.assert_close(merged, out)


def test_opcheck(rng: np.random.Generator) -> None:
    """Schema, mutation and fake kernels, as PyTorch checks them."""
    step = random_step(rng, np.float32, MIXED)
    tensors = tuple(x.nan_to_num() if x.is_floating_point() else x for x in arguments(step, torch.float32))
    torch.library.opcheck(torch.ops.pagemill.attention, tensors)
    torch.library.opcheck(torch.ops.pagemill.store, tensors[1:])
    a, lse = torch.randn(4, 2, 16), torch.randn(4, 2)
    torch.library.opcheck(torch.ops.pagemill.merge, (a, lse, a.clone(), lse.clone()))


@pytest.mark.parametrize(("backend", "inference"), [("aot_eager", False), ("aot_eager", True), ("inductor", True)])
def test_compile(rng: np.random.Generator, backend: str, inference: bool) -> None:
    """A compiled layer around the operator, without graph breaks, gives what the eager one gives."""
    step = random_step(rng, np.float32, MIXED)

    def layer(q: torch.Tensor, *others: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        out, lse = torch.ops.pagemill.attention(q * 0.5, *others)
        return out * 2 + 1, lse

    with torch.inference_mode(inference):
        eager, compiled = arguments(step, torch.float32), arguments(step, torch.float32)
        expected = layer(*eager)
        actual = torch.compile(layer, fullgraph=True, backend=backend)(*compiled)
        torch.testing.assert_close(actual, expected, rtol=0, atol=0)
        torch.testing.assert_close(compiled[3], eager[3], rtol=0, atol=0, equal_nan=True)


def test_layers_share_a_plan(rng: np.random.Generator) -> None:
    step = random_step(rng, np.float32, [(1, 61), (2, 47)])
    tensors = arguments(step, torch.float32)
    before = operators.plans.made
    for _ in range(6):
        torch.ops.pagemill.attention(*tensors)
        torch.ops.pagemill.attention(*tensors, window_left=20)
    assert operators.plans.made == before + 2


def test_several_threads(rng: np.random.Generator) -> None:
    """Each with steps of its own, more of them than plans are kept."""
    steps = [random_step(rng, np.float32, [(1, 30 + n), (n, 40)]) for n in range(1, 25)]

    def run(step: Step) -> float:
        out, _ = torch.ops.pagemill.attention(*arguments(step, torch.float32))
        return worst_error(array(out), attention(step, np.float32), products_bf16=False)

    with ThreadPoolExecutor(4) as pool:
        assert max(pool.map(run, steps)) <= 1


def test_no_gradient(rng: np.random.Generator) -> None:
    tensors = arguments(random_step(rng, np.float32, MIXED), torch.float32)
    q = tensors[0].requires_grad_()
    with pytest.raises(NotImplementedError, match="torch.ops.pagemill.attention has no gradient"):
        torch.ops.pagemill.attention(q, *tensors[1:])
    with torch.no_grad():
        torch.ops.pagemill.attention(q, *tensors[1:])


def test_errors(rng: np.random.Generator) -> None:
    q, k_new, *rest = arguments(random_step(rng, np.float32, MIXED), torch.float32)
    with pytest.raises(TypeError, match="k_new.dtype = float16: expected float32"):
        torch.ops.pagemill.attention(q, k_new.half(), *rest)
    with pytest.raises(ValueError, match=r"q.shape\[0\] = 63: expected at least the plan's 64 tokens"):
        torch.ops.pagemill.attention(q[:63], k_new, *rest)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", ["rows", "tiles"])
def test_paged_kv_cache(rng: np.random.Generator, dtype: torch.dtype, layout: str) -> None:
    """Prompts, decoding, a sequence that leaves and one that takes its pages, two layers."""
    kind, (h, k, d) = DTYPES[dtype], (8, 2, 64)
    cache = pt.PagedKVCache(2, 9, 16, k, d, dtype, layout)
    history: dict[int, Step] = {}

    def take(seqs: list[int], tokens: list[int]) -> None:
        step = cache.extend(seqs, tokens)
        new = random_step(rng, kind, [(n, n) for n in tokens], (h, k, d))
        for layer in range(2):
            sign = kind(1 - 2 * layer)
            q, k_new, v_new = (tensor(x) for x in (new.q, new.k_new * sign, new.v_new))
            out = array(cache.attend(layer, q, k_new, v_new, step))
            for i, seq in enumerate(seqs):
                rows = slice(step.query_start[i], step.query_start[i + 1])
                whole = history.get(seq)
                keys = new.keys[i] if whole is None else np.concatenate([whole.keys[0], new.keys[i]])
                values = new.values[i] if whole is None else np.concatenate([whole.values[0], new.values[i]])
                of_seq = Step(new.q[rows], [keys * sign], [values], [tokens[i]], step.page_table, 16, 9)
                error = worst_error(out[rows], attention(of_seq, kind), products_bf16=dtype == torch.bfloat16)
                assert error <= 1
                if layer == 1:
                    of_seq.keys = [keys]
                    history[seq] = of_seq

    a, b = cache.add(), cache.add()
    take([a, b], [40, 17])
    take([b, a], [1, 1])
    assert cache.free_pages == 9 - 3 - 2
    cache.remove(a)
    c = cache.add()
    take([c, b], [70, 3])
    assert (cache.length(c), cache.free_pages) == (70, 2)
    with pytest.raises(MemoryError, match="expected no more than 2 free pages hold"):
        cache.extend([b], [60])
    assert cache.length(b) == 21


def test_threads_are_atens() -> None:
    """A run after ATen's first starts no thread; as many work as torch.set_num_threads says."""
    code = """
import os, torch
from pagemill import torch as pt
torch.set_num_threads(2)
a = torch.randn(1500, 1500)
(a @ a).sum(), (a + a).exp().sum()
cache = pt.PagedKVCache(1, 256, 16, 8, 128)
seqs = [cache.add() for _ in range(4)]
step = cache.extend(seqs, [1000] * 4)
q, k = torch.randn(4000, 32, 128).bfloat16(), torch.randn(4000, 8, 128).bfloat16()
def ticks(tid):
    fields = open(f"/proc/self/task/{tid}/stat").read().rsplit(")", 1)[1].split()
    return int(fields[11]) + int(fields[12])
before = {tid: ticks(tid) for tid in os.listdir("/proc/self/task")}
assert len(before) > 1
for _ in range(20):
    cache.attend(0, q, k, k, step)
after = {tid: ticks(tid) for tid in os.listdir("/proc/self/task")}
busy = [tid for tid in before if after[tid] - before[tid] > 10]
print(len(before), len(after), len(busy))
"""
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(pagemill.__file__).parents[1])])}
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, env=env)
    assert result.returncode == 0, result.stderr
    before, after, busy = map(int, result.stdout.split())
    assert after == before
    assert busy == min(2, os.cpu_count() or 1)
