"""Answers of vLLM with one attention or another, in this process."""

import gc
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from vllm import LLM, SamplingParams
from vllm.distributed import cleanup_dist_env_and_memory
from vllm.plugins import load_general_plugins
from vllm.v1.attention.backends.registry import AttentionBackendEnum, register_backend
from vllm.v1.attention.selector import _cached_get_attn_backend

from pagemill.vllm import BACKEND

BACKENDS = {
    "built-in": None,
    "pagemill": BACKEND,
    "halved": "backends.HalvedBackend",
    "alternating": "backends.AlternatingBackend",
}


@dataclass
class Answer:
    tokens: list[int]
    logprobs: list[dict[int, float]]  # of each token the most probable ones
    cached: int  # tokens of the prompt that the cache held


def use(backend: str) -> None:
    """The attention of engines made from now on."""
    load_general_plugins()  # or the first engine does, and Pagemill takes the place of what was chosen here
    _cached_get_attn_backend.cache_clear()
    AttentionBackendEnum.CPU_ATTN.clear_override()
    if BACKENDS[backend]:
        register_backend(AttentionBackendEnum.CPU_ATTN, BACKENDS[backend])


class Engine:
    """vLLM with one model; `with` ends it."""

    def __init__(self, model: Path, backend: str, **options: Any) -> None:
        use(backend)
        settings = {"skip_tokenizer_init": True, "enforce_eager": True, "dtype": "float32", "max_model_len": 2048}
        self.llm = LLM(str(model), **(settings | options))
        assert AttentionBackendEnum.CPU_ATTN.is_overridden() == (backend != "built-in")

    def __enter__(self) -> "Engine":
        return self

    def __exit__(self, *_: Any) -> None:
        del self.llm
        gc.collect()
        cleanup_dist_env_and_memory()

    def answers(self, prompts: list[list[int]], tokens: int = 24) -> list[Answer]:
        """Greedy, to the last token, prompts at once."""
        params = SamplingParams(temperature=0, max_tokens=tokens, logprobs=5, ignore_eos=True, detokenize=False)
        outputs = self.llm.generate([{"prompt_token_ids": p} for p in prompts], params, use_tqdm=False)
        return [
            Answer(
                list(output.outputs[0].token_ids),
                [{token: x.logprob for token, x in step.items()} for step in output.outputs[0].logprobs],
                output.num_cached_tokens or 0,
            )
            for output in outputs
        ]

    def prompt_logprobs(self, prompts: list[list[int]]) -> np.ndarray:
        """Of every token of the prompts but the first, end to end."""
        params = SamplingParams(temperature=0, max_tokens=1, prompt_logprobs=0, detokenize=False)
        outputs = self.llm.generate([{"prompt_token_ids": p} for p in prompts], params, use_tqdm=False)
        return np.array(
            [
                step[token].logprob
                for prompt, output in zip(prompts, outputs, strict=True)
                for token, step in zip(prompt[1:], output.prompt_logprobs[1:], strict=True)
            ]
        )


def worst_logprob_error(got: list[Answer], expected: list[Answer]) -> float:
    """Over all tokens, those of the answers' common beginning: the chosen token's log-probability."""
    worst = 0.0
    for a, b in zip(got, expected, strict=True):
        for token, other, of_a, of_b in zip(a.tokens, b.tokens, a.logprobs, b.logprobs, strict=True):
            if token != other:
                break
            worst = max(worst, abs(of_a[token] - of_b[token]))
    return worst
