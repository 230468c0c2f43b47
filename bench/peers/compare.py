#!/usr/bin/env python3
"""Times Pagemill and one peer in turn, in one process, on the same steps; prints a table, writes JSON.

Before any timing the results of both are compared with fp64 and with each other. The peaks of the machine are measured
between all repetitions; every ratio is a median over neighbouring repetitions.
"""

import argparse
import json
import time
from datetime import date
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from pagemill_c import VERSION, Executor, Pagemill, default_threads, make_executor, selected_isa
from peaks import Peaks, last_level_cache_bytes
from step import SHAPES, Array, Shape, Step

PEERS = ("openvino", "vllm", "torch", "onnxruntime", "ggml")
LEAST_SECONDS = 0.1  # of a repetition
IDLE = 0.05  # of the time, at most, that the threads of a process at rest run
LEAST_PAIRS = 5
MOST_RATIO = 1.02  # to a peak: above it the measurement is wrong
# |out - fp64| <= EPS |fp64| + C sum p|v|. EPS: half a unit in the last place. C: as Pagemill promises it; for f16 that
# of bf16, as ggml adds up in f16.
EPS = {"bf16": 2.0**-8, "f16": 2.0**-11, "f32": 2.0**-24}
C = {"bf16": 2.0**-8, "f16": 2.0**-8, "f32": 2.0**-16}
SAMPLED_ROWS = 64


class Contestant(Protocol):
    def run(self) -> None:
        """One step, on the next copy of the cache."""

    def output(self) -> Array:
        """[B, queries, H, D] of the last run."""


def check(name: str, out: Array, step: Step) -> float:
    """Worst error against fp64, in units of the bound."""
    random = np.random.default_rng(3)
    worst = 0.0
    for _ in range(SAMPLED_ROWS):
        row = tuple(int(random.integers(n)) for n in out.shape[:3])
        ref, abs_pv = step.reference(*row)
        error = np.abs(out[row].astype(np.float64) - ref) / (EPS[step.dtype] * np.abs(ref) + C[step.dtype] * abs_pv)
        worst = np.fmax(worst, error.max()) if np.isfinite(error).all() else np.inf
    if worst > 1:
        raise RuntimeError(f"{name}, {step.shape.name}: error {worst:.3g} times the bound")
    return float(worst)


def check_agreement(a: Array, b: Array, step: Step) -> None:
    """Every element, both within their bounds: sum p|v| is at most about 1 or the result itself."""
    a, b = a.astype(np.float32), b.astype(np.float32)
    bound = 2 * (EPS[step.dtype] * np.abs(b) + C[step.dtype] * np.maximum(np.abs(b), 1))
    wrong = ~(np.abs(a - b) <= bound)
    if wrong.any():
        where = tuple(int(i) for i in np.argwhere(wrong)[0])
        raise RuntimeError(f"{step.shape.name}: Pagemill {a[where]} and peer {b[where]} differ at {where}")


def settle() -> None:
    """Waits until no thread of this process spins any more."""
    for _ in range(100):
        busy, start = time.process_time(), time.perf_counter()
        time.sleep(0.02)
        if time.process_time() - busy < IDLE * (time.perf_counter() - start):
            return
    raise RuntimeError("threads of the peer do not come to rest")


def seconds_of(contestant: Contestant, steps: int) -> float:
    start = time.perf_counter()
    for _ in range(steps):
        contestant.run()
    return (time.perf_counter() - start) / steps


def warm_up(contestant: Contestant, copies: int, seconds: float) -> None:
    """A run on each copy of the cache, or on as many as there is time for: to one that takes so long, their first touch
    is nothing."""
    start = time.perf_counter()
    for _ in range(copies):
        contestant.run()
        if time.perf_counter() - start > seconds:
            return


def measure(contestants: list[Contestant], peaks: Peaks, seconds: float) -> Array:
    """[pairs, contestants, 3]: seconds of a step, bytes/s and flop/s of the peaks around it."""
    steps = [max(1, round(LEAST_SECONDS / seconds_of(contestant, 2))) for contestant in contestants]
    pairs: list[list[tuple[float, float, float]]] = []
    start = time.perf_counter()
    settle()
    before = peaks.slice()
    while len(pairs) < LEAST_PAIRS or time.perf_counter() - start < seconds:
        pair = []
        for contestant, n in zip(contestants, steps, strict=True):
            taken = seconds_of(contestant, n)
            settle()
            after = peaks.slice()
            pair.append((taken, *(before + after) / 2))
            before = after
        pairs.append(pair)
    return np.array(pairs)


def summary(name: str, samples: Array, shape: Shape, dtype: str, error: float) -> dict[str, Any]:
    """Medians over samples [pairs, 3]."""
    seconds, read, flops = samples.T
    step_bytes = shape.kv_bytes(dtype)
    mbu, mfu = (float(np.median(x)) for x in (step_bytes / seconds / read, shape.flops / seconds / flops))
    if max(mbu, mfu) > MOST_RATIO:
        raise RuntimeError(f"{name}, {shape.name}: measuring error: MBU {mbu:.3f}, MFU {mfu:.3f}, above {MOST_RATIO}")
    median = float(np.median(seconds))
    return {
        "seconds": median,
        "kv_gbps": step_bytes / median / 1e9,
        "tflops": shape.flops / median / 1e12,
        "mbu": mbu,
        "mfu": mfu,
        "error": error,
    }


def compare(peer_class: Any, shape: Shape, threads: int, executor: Executor, seconds: float) -> dict[str, Any]:
    step = Step(shape, peer_class.dtype, turnover=4 * last_level_cache_bytes())
    pagemill, peer = Pagemill(step, threads, executor), peer_class(step, threads)
    contestants = {"Pagemill": pagemill, peer.name: peer}
    errors = []
    for name, contestant in contestants.items():
        warm_up(contestant, step.copies, seconds)
        errors.append(check(name, contestant.output(), step))
    check_agreement(pagemill.output(), peer.output(), step)

    peaks = Peaks(executor, threads, pagemill.isa, step.dtype)
    samples = measure(list(contestants.values()), peaks, seconds)
    ratios = samples[:, 1, 0] / samples[:, 0, 0]
    low, median, high = np.quantile(ratios, (0.25, 0.5, 0.75))
    results = {
        key: summary(name, samples[:, i], shape, step.dtype, errors[i])
        for i, (key, name) in enumerate(zip(("pagemill", "peer"), contestants, strict=True))
    }
    read, flops = np.median(samples[:, :, 1:], axis=(0, 1))
    return {
        "case": shape.name,
        "dtype": step.dtype,
        "kernel": pagemill.kernel,
        **results,
        "ratio": {"median": median, "low": low, "high": high},
        "pairs": len(samples),
        "peak_read_gbps": read / 1e9,
        "peak_tflops": flops / 1e12,
    }


def cpu_name() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return "unknown CPU"


def print_case(name: str, result: dict[str, Any]) -> None:
    print(f"{result['case']}, {result['dtype']}, {result['pairs']} pairs")
    for key, label in (("pagemill", "Pagemill"), ("peer", name)):
        r = result[key]
        print(
            f"  {label:34} {r['seconds'] * 1e3:9.2f} ms {r['kv_gbps']:6.1f} GB/s {r['tflops']:6.3f} TFLOP/s"
            f"  MBU {r['mbu']:.3f}  MFU {r['mfu']:.3f}  error {r['error']:.2f} of the bound"
        )
    ratio = result["ratio"]
    print(f"  Pagemill is {ratio['median']:.2f} times as fast (quartiles {ratio['low']:.2f} to {ratio['high']:.2f})")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("peer", choices=PEERS)
    parser.add_argument("--shape", choices=SHAPES, action="append", help="default: all")
    parser.add_argument("--threads", type=int, default=default_threads(), help="default: all cores")
    parser.add_argument("--seconds", type=float, default=8, help="to repeat for, each shape (8)")
    parser.add_argument("--json", type=Path, help="file to write the results to")
    options = parser.parse_args()

    peer_class = import_module(f"peer_{options.peer}").Peer
    executor = make_executor(options.threads)
    cases = []
    for shape in options.shape or SHAPES:
        cases.append(compare(peer_class, SHAPES[shape], options.threads, executor, options.seconds))
        print_case(peer_class.name, cases[-1])
    report = {
        "date": date.today().isoformat(),
        "cpu": cpu_name(),
        "isa": selected_isa(),
        "threads": options.threads,
        "pagemill": VERSION,
        "peer": peer_class.name,
        "dtype": peer_class.dtype,
        "version": peer_class.version,
        "ran": peer_class.ran,
        "settings": peer_class.settings,
        "cases": cases,
    }
    if options.json:
        options.json.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
