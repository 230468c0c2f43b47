"""Whole models: the answers of vLLM with Pagemill beside those with its built-in attention."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from engines import Answer, Engine, worst_logprob_error
from transformers import AutoModelForCausalLM

CHUNKED = {"max_num_batched_tokens": 192, "max_num_seqs": 8, "enable_prefix_caching": True}
F32_ERROR = 2e-3  # of log-probabilities whose products are rounded to float32


def ragged_prompts(vocabulary: int = 500) -> list[list[int]]:
    """Of 1 to 700 tokens; three begin with the same 300, two of them in whole blocks."""
    rng = np.random.default_rng(7)
    prompts = [rng.integers(2, vocabulary, n).tolist() for n in (1, 17, 128, 700, 250)]
    prefix = rng.integers(2, vocabulary, 300).tolist()
    return prompts + [prefix + rng.integers(2, vocabulary, n).tolist() for n in (1, 40, 150)]


def ask(model: Path, backend: str, **options: Any) -> tuple[list[Answer], list[Answer]]:
    """Two rounds of the same prompts: the second finds prefixes in the cache."""
    with Engine(model, backend, **(CHUNKED | options)) as engine:
        return engine.answers(ragged_prompts()), engine.answers(ragged_prompts())


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("smollm2", {}),
        ("llama", {"block_size": 64}),
        ("granite", {"block_size": 32}),
        ("gemma2", {"disable_hybrid_kv_cache_manager": True}),
        ("bloom", {}),
    ],
)
def test_answers_are_those_of_the_built_in_attention(
    model_folder: Callable[[str], Path], name: str, options: dict[str, Any]
) -> None:
    model = model_folder(name)
    expected, _ = ask(model, "built-in", **options)
    first, second = ask(model, "pagemill", **options)
    halved, _ = ask(model, "halved", **options)
    assert sum(answer.cached for answer in second) >= 1000
    for answers in (first, second):
        assert [a.tokens for a in answers] == [a.tokens for a in expected]
        assert worst_logprob_error(answers, expected) < F32_ERROR
    assert sum(a.tokens == b.tokens for a, b in zip(halved, expected, strict=True)) <= 1


def logprobs(model: Path, backend: str, **options: Any) -> np.ndarray:
    with Engine(model, backend, **(CHUNKED | options)) as engine:
        return engine.prompt_logprobs(ragged_prompts())


@pytest.mark.parametrize("name", ["smollm2", "granite"])
@pytest.mark.parametrize("options", [{"dtype": "bfloat16"}, {"kv_cache_dtype": "fp8"}, {"kv_cache_dtype": "fp8_e5m2"}])
def test_rounding_is_no_coarser_than_that_of_the_built_in_attention(
    model_folder: Callable[[str], Path], name: str, options: dict[str, Any]
) -> None:
    """Of products in bf16, or of a cache in fp8: errors of the log-probabilities of all tokens of the prompts.

    Stored in fp8 by vLLM, numbers are cut towards zero, which costs about twice the error of rounding.
    """
    model = model_folder(name)
    exact = logprobs(model, "built-in")
    error = {
        backend: np.sqrt(np.mean((logprobs(model, backend, **options) - exact) ** 2))
        for backend in ("built-in", "pagemill")
    }
    print(name, options, error)
    assert F32_ERROR < error["pagemill"] < 1.1 * error["built-in"]  # not exact either: it did round


def test_a_shape_that_the_built_in_attention_has_not(model_folder: Callable[[str], Path]) -> None:
    """16 query heads a KV head, head dim 40, blocks of 16 tokens: against transformers."""
    model = model_folder("llama-odd")
    got, again = ask(model, "pagemill", block_size=16)
    reference = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    reference.generation_config.eos_token_id = None  # as ignore_eos
    for prompt, *answers in zip(ragged_prompts(), got, again, strict=True):
        output = reference.generate(torch.tensor([prompt]), max_new_tokens=24, do_sample=False)
        assert [answer.tokens for answer in answers] == [output[0, len(prompt) :].tolist()] * 2


def test_under_torch_compile(model_folder: Callable[[str], Path]) -> None:
    model = model_folder("llama")
    expected, _ = ask(model, "built-in")
    for answers in ask(model, "pagemill", enforce_eager=False):
        assert [a.tokens for a in answers] == [a.tokens for a in expected]


def test_layers_of_both_kinds_in_one_model(model_folder: Callable[[str], Path]) -> None:
    model = model_folder("granite")
    expected, _ = ask(model, "built-in")
    for answers in ask(model, "alternating"):
        assert [a.tokens for a in answers] == [a.tokens for a in expected]
        assert worst_logprob_error(answers, expected) < F32_ERROR
