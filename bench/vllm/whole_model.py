"""vLLM as users run it, with Pagemill and without, by vLLM's own `bench throughput`: output tokens per second.

    build/venv-vllm/bin/python bench/vllm/whole_model.py MODEL [--input 4000] [--output 128] [--rounds 3]

MODEL is a folder as vLLM reads it; tests/vllm/smollm2.py makes one. All requests come at once, weights are bf16, and
every process starts anew; rounds alternate. The ratio is that of the medians, prompts included in the time.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median

VLLM = Path(sys.executable).with_name("vllm")


def output_tokens_per_second(options: argparse.Namespace, pagemill: bool) -> float:
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder) / "result.json"
        command = [str(VLLM), "bench", "throughput", "--model", options.model, "--dtype", "bfloat16"]
        command += ["--dataset-name", "random", "--num-prompts", str(options.requests), "--output-json", str(result)]
        command += ["--random-input-len", str(options.input), "--random-output-len", str(options.output)]
        command += ["--max-model-len", str(options.input + options.output + 64)]
        command += ["--max-num-seqs", str(options.requests)]
        offline = {"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "VLLM_CPU_KVCACHE_SPACE": str(options.cache)}
        run = subprocess.run(
            command, env=os.environ | offline | {"PAGEMILL_VLLM": str(int(pagemill))}, capture_output=True, text=True
        )
        if run.returncode:
            raise SystemExit(run.stderr[-3000:])
        return options.requests * options.output / json.loads(result.read_text())["elapsed_time"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--input", type=int, default=4000, help="tokens of each prompt")
    parser.add_argument("--output", type=int, default=128, help="tokens of each answer")
    parser.add_argument("--requests", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--cache", type=int, default=4, help="GiB of keys and values")
    options = parser.parse_args()
    speeds: dict[bool, list[float]] = {True: [], False: []}
    for _ in range(options.rounds):
        for pagemill, so_far in speeds.items():
            so_far.append(output_tokens_per_second(options, pagemill))
            print(f"{'Pagemill' if pagemill else 'built-in'}: {so_far[-1]:.1f} output tokens/s", flush=True)
    print(f"ratio of the medians: {median(speeds[True]) / median(speeds[False]):.2f}")


if __name__ == "__main__":
    main()
