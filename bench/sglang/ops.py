"""A layer's attention by Pagemill and by SGLang's torch_native, in one process, one after the other in turn.

    scripts/install_sglang.sh
    build/venv-sglang/bin/python bench/sglang/ops.py [--cases decode,prefill] [--page-sizes 1,16] [--threads 2]

Both are called as SGLang calls them, each over a pool of its own, in bf16, pages in no order: metadata once a step,
then each layer stores the new keys and attends. The time is that of a step by its layers; these, 12 at most, are so
many that a byte of a decode comes back only after 4 times the last-level cache. The ratio is the median over pairs of
steps, torch_native's time by Pagemill's. Shape of Llama 3 8B: 32 query heads, 8 KV heads, head dim 128.
"""

import argparse
import os
import sys
import time
from pathlib import Path
from statistics import median

TESTS = Path(__file__).parents[2] / "tests" / "sglang"
# Where cpu_caches, pools and the stand-in for SGLang's kernels are, which neither attention calls.
sys.path[:0] = [str(Path(__file__).parents[1]), str(TESTS), str(TESTS / "stand_in")]
os.environ["SGLANG_USE_CPU_ENGINE"] = "1"

import torch  # noqa: E402
from cpu_caches import last_level_bytes  # noqa: E402
from pools import World, layer  # noqa: E402
from sglang.srt.layers.attention.torch_native_backend import TorchNativeAttnBackend  # noqa: E402

import pagemill  # noqa: E402
from pagemill.sglang.backend import Backend  # noqa: E402

H, K, D = 32, 8, 128
CASES = {  # (new tokens, keys) of each request
    "decode": [(1, 2048)] * 16,
    "prefill": [(2048, 2048)],
    "mixed": [(1, 2048)] * 14 + [(512, 1024)],
}


class Attention:
    """One of the two, with its pool and inputs."""

    def __init__(self, kind: type, requests: list[tuple[int, int]], page_size: int) -> None:
        bytes_a_layer = sum(keys for _, keys in requests) * 2 * K * D * 2
        count = min(12, max(2, -(-4 * last_level_bytes() // bytes_a_layer)))
        world = World(
            requests, torch.bfloat16, page_size=page_size, num_kv_heads=K, head_dim=D, v_head_dim=D, layers=count
        )
        self.layers = [layer(i, num_heads=H, head_dim=D, num_kv_heads=K, scaling=D**-0.5) for i in range(count)]
        self.backend, self.batch = kind(world.runner(*self.layers)), world.batch()
        self.q = world.randn(world.tokens, H * D)
        self.k, self.v = (world.randn(world.tokens, K, D) for _ in range(2))

    def step(self) -> float:
        """Milliseconds a layer."""
        decode = self.batch.forward_mode.is_decode()
        forward = self.backend.forward_decode if decode else self.backend.forward_extend
        begin = time.perf_counter()
        self.backend.init_forward_metadata(self.batch)
        for attention in self.layers:
            forward(self.q, self.k, self.v, attention, self.batch)
        return (time.perf_counter() - begin) * 1e3 / len(self.layers)


def measure(requests: list[tuple[int, int]], page_size: int, pairs: int) -> str:
    both = [Attention(kind, requests, page_size) for kind in (Backend, TorchNativeAttnBackend)]
    times = [[x.step() for x in both] for _ in range(pairs + 1)][1:]
    ours, theirs = (median(x) for x in zip(*times, strict=True))
    return f"pagemill {ours:.2f} ms, torch_native {theirs:.2f} ms, ratio {median(b / a for a, b in times):.1f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", default=",".join(CASES))
    parser.add_argument("--page-sizes", default="1,16")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--pairs", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print(f"{options.threads} threads, {pagemill.info()['isa']}, last-level cache {last_level_bytes() >> 20} MiB")
    with torch.inference_mode():
        for name in options.cases.split(","):
            for page_size in map(int, options.page_sizes.split(",")):
                result = measure(CASES[name], page_size, options.pairs)
                print(f"{name}, pages of {page_size}: {result}", flush=True)


if __name__ == "__main__":
    main()
