"""`vllm serve`: under load, and over several processes and hosts. Each answers as one process without Pagemill."""

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from engines import Engine
from servers import VLLM, Server, serving, serving_from_two_hosts
from test_models import ragged_prompts

LINE = "Attention by Pagemill"
SMALL = ["--dtype", "float32", "--max-model-len", "2048", "--max-num-batched-tokens", "512"]
EAGER = [*SMALL, "--enforce-eager"]
ONE_CORE_EACH = "|".join(str(i % (os.cpu_count() or 1)) for i in range(2))


def built_in_answers(model: Path) -> list[list[int]]:
    with Engine(model, "built-in") as engine:
        return [answer.tokens for answer in engine.answers(ragged_prompts())]


def expect_answers(server: Server, model: Path, times: int = 1) -> None:
    """Each prompt so many times at once."""
    assert server.answers(model, ragged_prompts() * times) == built_in_answers(model) * times


def bench(server: Server, model: Path, result: Path) -> dict[str, float]:
    """What vLLM's own client measures with 32 requests at once."""
    command = [str(VLLM), "bench", "serve", "--host", server.host, "--port", str(server.port), "--model", str(model)]
    command += ["--dataset-name", "random", "--random-input-len", "200", "--random-range-ratio", "0.8"]
    command += ["--random-output-len", "16", "--num-prompts", "64", "--max-concurrency", "32", "--ignore-eos"]
    command += ["--save-result", "--result-dir", str(result.parent), "--result-filename", result.name]
    subprocess.run(command, check=True, capture_output=True)
    return json.loads(result.read_text())


def test_32_requests_at_once(model_folder: Callable[[str], Path], tmp_path: Path) -> None:
    model = model_folder("smollm2")
    log = tmp_path / "serve.log"
    with serving(model, log, *EAGER) as server:
        result = bench(server, model, tmp_path / "bench.json")
        assert (result["completed"], result["failed"]) == (64, 0)
        expect_answers(server, model, times=4)
    assert LINE in log.read_text()


def test_the_switch(model_folder: Callable[[str], Path], tmp_path: Path) -> None:
    model = model_folder("llama")
    log = tmp_path / "serve.log"
    with serving(model, log, *EAGER, PAGEMILL_VLLM="0") as server:
        expect_answers(server, model)
    assert LINE not in log.read_text()


# vLLM's pipeline on CPUs fails in eager mode, whatever the attention: the warm-up that it skips makes its buffers.
@pytest.mark.parametrize("options", [[*EAGER, "--tensor-parallel-size"], [*SMALL, "--pipeline-parallel-size"]])
def test_two_processes(model_folder: Callable[[str], Path], tmp_path: Path, options: list[str]) -> None:
    model = model_folder("llama")
    log = tmp_path / "serve.log"
    with serving(model, log, *options, "2", VLLM_CPU_OMP_THREADS_BIND=ONE_CORE_EACH) as server:
        expect_answers(server, model)
    assert log.read_text().count(LINE) == 2


@pytest.mark.skipif(os.geteuid() != 0, reason="network namespaces need root")
def test_two_hosts(model_folder: Callable[[str], Path], tmp_path: Path) -> None:
    model = model_folder("llama")
    with serving_from_two_hosts(model, tmp_path, *EAGER, "--tensor-parallel-size", "2") as (server, logs):
        expect_answers(server, model)
    assert all(LINE in log.read_text() for log in logs)
