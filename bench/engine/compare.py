#!/usr/bin/env python3
"""Steps of a model by Pagemill's engine and by llama.cpp's llama-batched-bench, in alternation.

    compare.py ENGINE_BENCH LLAMA_BATCHED_BENCH MODEL [--threads 2] [--rounds 3] [--case NAME ...]

Prints a line for each case: medians of the tokens a second, their ratio, the share of the time that attention takes.
llama.cpp runs with its defaults (f16 cache, flash attention where it chooses it). Its decode at a depth begins from one
prompt that is copied into a cache of its own for each sequence (-pps without a unified cache), so both read as many
distinct bytes.
"""

import argparse
import json
import statistics
import subprocess

CASES = {
    "decode-16x4096": (
        ("decode", 16, 4096, 16),
        ("-npp", 4096, "-ntg", 16, "-npl", 16, "-pps", "-c", 16 * 4352),
        "speed_tg",
    ),
    "prefill-8x2048": (("prefill", 8, 2048), ("-npp", 2048, "-ntg", 1, "-npl", 8, "-c", 8 * 2304), "speed_pp"),
    "decode-1x0": (("decode", 1, 1, 128), ("-npp", 1, "-ntg", 128, "-npl", 1, "-c", 256), "speed_tg"),
}


def ours(program, model, threads, words):
    done = subprocess.run([program, model, str(threads), *map(str, words)], check=True, capture_output=True, text=True)
    result = json.loads(done.stdout)
    return result["tokens_per_second"], result["attention_share"]


def theirs(program, model, threads, words, key):
    done = subprocess.run(
        [program, "-m", model, "-t", str(threads), "-tb", str(threads), "--output-format", "jsonl", *map(str, words)],
        check=True,
        capture_output=True,
        text=True,
    )
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    return lines[-1][key]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("engine_bench")
    parser.add_argument("llama_batched_bench")
    parser.add_argument("model")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--case", choices=CASES, action="append")
    options = parser.parse_args()
    for name in options.case or CASES:
        mine, other, key = CASES[name]
        rates, shares, peers = [], [], []
        for _ in range(options.rounds):
            rate, share = ours(options.engine_bench, options.model, options.threads, mine)
            rates.append(rate)
            shares.append(share)
            peers.append(theirs(options.llama_batched_bench, options.model, options.threads, other, key))
        rate, peer = statistics.median(rates), statistics.median(peers)
        print(f"| {name} | {rate:.0f} | {peer:.0f} | {rate / peer:.2f} | {statistics.median(shares):.0%} |", flush=True)


if __name__ == "__main__":
    main()
