"""Greedy answers of whole models by SGLang's engine and server: ragged prompts at once, prefilled in chunks that share
steps with decodes, and prefixes that the radix cache holds."""

import json
import os
import random
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from engines import SETTINGS, Answer, Engine, request, worst_logprob_error

RAGGED = (3, 40, 130, 1, 77, 22, 200, 9)  # tokens of each prompt
NEVER = 1 << 30


def prompts() -> list[list[int]]:
    draw = random.Random(3)
    return [[draw.randrange(2, 512) for _ in range(n)] for n in RAGGED]


@dataclass
class Conversation:
    """Answers to `prompts`, and to what follows: prompts, answers and more, which the radix cache holds a part of."""

    first: list[Answer]
    second: list[Answer]

    @classmethod
    def with_engine(cls, engine: Engine, attention: str) -> "Conversation":
        first = engine.answers_of(attention, prompts())
        return cls(first, engine.answers(continued(first)))


def continued(answers: list[Answer]) -> list[list[int]]:
    return [prompt + x.tokens + [5, 6, 7] for prompt, x in zip(prompts(), answers, strict=True)]


def expect_same(got: Conversation, expected: Conversation, page_size: int = 1) -> None:
    """page_size: in tokens, of the prefixes that the cache holds."""
    for ours, theirs in ((got.first, expected.first), (got.second, expected.second)):
        assert [x.tokens for x in ours] == [x.tokens for x in theirs]
        assert worst_logprob_error(ours, theirs) < 1e-3
    assert all(x.cached >= n // page_size * page_size for x, n in zip(got.second, RAGGED, strict=True))


def expect_other(got: Conversation, expected: Conversation) -> None:
    """That a wrong attention answers otherwise, so that the comparison means something."""
    pairs = zip(got.first, expected.first, strict=True)
    same = [length for length, (a, b) in zip(RAGGED, pairs, strict=True) if a.tokens == b.tokens]
    assert same in ([], [1])  # a prompt of one token that is repeated has keys and values that are all alike


def conversations(folder: Path, *attentions: str) -> dict[str, Conversation]:
    with Engine(folder, "switching") as engine:
        return {name: Conversation.with_engine(engine, name) for name in attentions}


def conversation_by_name(folder: Path, page_size: int) -> Conversation:
    """With --attention-backend pagemill, as users choose it."""
    with Engine(folder, "pagemill", page_size=page_size) as engine:
        first = engine.answers(prompts())
        return Conversation(first, engine.answers(continued(first)))


@pytest.fixture(scope="module")
def llama(model_folder: Callable[[str], Path]) -> dict[str, Conversation]:
    return conversations(model_folder("llama"), "torch_native", "pagemill", "halved")


def test_llama(llama: dict[str, Conversation]) -> None:
    expect_same(llama["pagemill"], llama["torch_native"])
    expect_other(llama["halved"], llama["torch_native"])


def test_pages_of_16(model_folder: Callable[[str], Path], llama: dict[str, Conversation]) -> None:
    expect_same(conversation_by_name(model_folder("llama"), 16), llama["torch_native"], 16)


def test_smollm2(model_folder: Callable[[str], Path]) -> None:
    by = conversations(model_folder("smollm2"), "torch_native", "pagemill", "halved")
    expect_same(by["pagemill"], by["torch_native"])
    expect_other(by["halved"], by["torch_native"])
    expect_same(conversation_by_name(model_folder("smollm2"), 16), by["torch_native"], 16)


@pytest.mark.parametrize("name", ["gemma2", "granite-swa"])
def test_windows_caps_and_sinks(model_folder: Callable[[str], Path], name: str) -> None:
    """gemma2: windows and soft cap; granite-swa: windows with a pool of their own, and sinks. torch_native has none."""
    by = conversations(model_folder(name), "formula", "pagemill", "halved")
    # A pool of windows may have let go of the keys that a prefix needs.
    held = {"gemma2": (1, 16), "granite-swa": (NEVER, NEVER)}[name]
    expect_same(by["pagemill"], by["formula"], held[0])
    expect_other(by["halved"], by["formula"])
    expect_same(conversation_by_name(model_folder(name), 16), by["formula"], held[1])


@contextmanager
def server(model: Path) -> Iterator[str]:
    """Address of SGLang's server with --attention-backend pagemill."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = {
        "skip_tokenizer_init": False,
        "model-path": model,
        "attention-backend": "pagemill",
        "host": "127.0.0.1",
        "port": port,
    }
    command = [sys.executable, "-m", "sglang.launch_server"]
    for name, value in (SETTINGS | options).items():
        if value is not False:
            command += [f"--{name.replace('_', '-')}", *([] if value is True else [str(value)])]
    process = subprocess.Popen(command, env=os.environ, start_new_session=True)
    try:
        address = f"http://127.0.0.1:{port}"
        deadline = time.monotonic() + 400
        while True:
            assert process.poll() is None and time.monotonic() < deadline
            try:
                urllib.request.urlopen(f"{address}/health_generate", timeout=30).read()
                break
            except OSError:
                time.sleep(1)
        yield address
    finally:
        process.terminate()
        process.wait(60)


def ask(address: str, questions: list[list[int]]) -> list[Answer]:
    """Answers of a server to all at once, each by a connection of its own."""

    def answer(prompt: list[int]) -> Answer:
        body = json.dumps(request(prompt)).encode()
        post = urllib.request.Request(f"{address}/generate", body, {"Content-Type": "application/json"})
        return Answer.of(json.load(urllib.request.urlopen(post, timeout=300)))

    with ThreadPoolExecutor(len(questions)) as clients:
        return list(clients.map(answer, questions))


def bench(address: str, model: Path, result: Path) -> dict[str, Any]:
    """What SGLang's own client measures with 32 requests at once."""
    command = [sys.executable, "-m", "sglang.bench_serving", "--backend", "sglang", "--base-url", address]
    command += ["--model", str(model), "--dataset-name", "random-ids", "--tokenize-prompt"]
    command += ["--random-input-len", "100", "--random-output-len", "16", "--random-range-ratio", "0.2"]
    command += ["--num-prompts", "64", "--max-concurrency", "32", "--output-file", str(result)]
    subprocess.run(command, check=True, capture_output=True)
    return json.loads(result.read_text())


def test_32_requests_at_once(
    model_folder: Callable[[str], Path], llama: dict[str, Conversation], tmp_path: Path
) -> None:
    model = model_folder("llama")
    with server(model) as address:
        assert bench(address, model, tmp_path / "bench.json")["completed"] == 64
        first = ask(address, prompts() * 4)
        second = ask(address, continued(first[:8]))
    for i in range(0, 32, 8):
        expect_same(Conversation(first[i : i + 8], second), llama["torch_native"])
